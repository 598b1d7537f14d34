//! The engines, and terok, as the two kinds of user call them.

use crate::container::Ended;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock};

const DAEMON_JSON: &str = "/etc/docker/daemon.json";

/// What starts and restarts daemons.
const DAEMONS: &str = "/run/lab/scripts/engines.sh";

/// Who runs Podman.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// `tester`, a user without privileges.
    Rootless,
    /// root.
    Rootful,
}

impl Mode {
    /// A command run as this user.
    pub fn command(self, program: &str) -> Command {
        match self {
            Mode::Rootful => {
                let mut command = Command::new(program);
                command.current_dir("/root");
                command
            }
            Mode::Rootless => {
                let mut command = Command::new("/run/lab/scripts/as-tester");
                command.arg(program).current_dir("/run/home/tester");
                command
            }
        }
    }

    /// Runs podman to its end.
    pub fn podman(self, arguments: &[&str]) -> Ended {
        self.run("podman", arguments)
    }

    /// Runs terok to its end.
    pub fn terok(self, arguments: &[&str]) -> Ended {
        self.run("terok", arguments)
    }

    /// Runs a program to its end, without standard input.
    pub fn run(self, program: &str, arguments: &[&str]) -> Ended {
        let mut command = self.command(program);
        command.args(arguments).stdin(Stdio::null());
        Ended::of(&mut command)
    }

    /// This user's state folder of container `id`.
    pub fn state(self, id: &str) -> PathBuf {
        match self {
            Mode::Rootful => PathBuf::from(terok_policy::layout::STATE_ROOTFUL).join(id),
            Mode::Rootless => {
                PathBuf::from("/run/home/tester").join(terok_policy::layout::STATE_USER).join(id)
            }
        }
    }

    /// This user's runtime folder of container `id`.
    pub fn runtime(self, id: &str) -> PathBuf {
        match self {
            Mode::Rootful => PathBuf::from(terok_policy::layout::RUN_ROOTFUL).join(id),
            Mode::Rootless => PathBuf::from("/run/user/1001").join(terok_policy::layout::RUN_USER).join(id),
        }
    }
}

/// Which engine's command line starts a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Podman, by its hook files.
    Podman,
    /// Docker, by the runtime `terok`.
    Docker,
    /// containerd's own client, by the shim's path.
    Containerd,
}

impl Engine {
    /// Its client.
    pub fn program(self) -> &'static str {
        match self {
            Engine::Podman => "podman",
            // The one of the daemon's own package, whatever else this machine has.
            Engine::Docker => "/usr/bin/docker",
            Engine::Containerd => "ctr",
        }
    }

    /// The word for it in `TEROK_TEST_REQUIRE`, and to lab/engines.sh.
    fn word(self) -> &'static str {
        match self {
            Engine::Podman => "podman",
            Engine::Docker => "docker",
            Engine::Containerd => "containerd",
        }
    }

    /// Starts the daemon, once, and has terok stand before its runtime; `false`, said aloud, where it does not run on this machine.
    pub fn starts(self) -> bool {
        static STARTED: [OnceLock<Result<(), String>>; 2] = [OnceLock::new(), OnceLock::new()];
        if self == Engine::Podman {
            return true;
        }
        let started = STARTED[usize::from(self == Engine::Docker)].get_or_init(|| {
            let ended = Mode::Rootful.run(DAEMONS, &[self.word()]);
            if ended.code == 0 { Ok(()) } else { Err(ended.stderr) }
        });
        if let Err(reason) = started {
            terok_need::missing(self.word(), format!("it does not start on this machine: {reason}"));
            return false;
        }
        self.register();
        true
    }

    /// Docker's networks `duo` and `duo2`, with IPv6 and names; made once.
    pub fn docker_networks() {
        static MADE: OnceLock<()> = OnceLock::new();
        MADE.get_or_init(|| {
            for (name, v4, v6) in
                [("duo", "10.92.1.0/24", "fd00:d:1::/64"), ("duo2", "10.92.2.0/24", "fd00:d:2::/64")]
            {
                let subnets = ["--ipv6", "--subnet", v4, "--subnet", v6];
                let line = [&["network", "create"], &subnets[..], &[name]].concat();
                Mode::Rootful.run(Engine::Docker.program(), &line).succeeded();
            }
        });
    }

    /// Stops the daemon, until [`Engine::restart`].
    pub fn stop(self) {
        Mode::Rootful.run(DAEMONS, &["stop", self.word()]).succeeded();
    }

    /// Stops the daemon and starts it again.
    pub fn restart(self) {
        Mode::Rootful.run(DAEMONS, &["restart", self.word()]).succeeded();
    }

    /// `terok setup --engine`, again where another test uninstalled it.
    fn register(self) {
        static REGISTERING: Mutex<()> = Mutex::new(());
        let _one = REGISTERING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if self == Engine::Docker
            && !std::fs::read_to_string(DAEMON_JSON).is_ok_and(|text| text.contains("terok"))
        {
            crate::set_up(&["--engine", "docker"]);
            Mode::Rootful.run(DAEMONS, &["reload", "docker"]).succeeded();
        }
    }

    /// Docker's major version: from 24 on its command line has annotations.
    pub fn docker_major() -> u32 {
        static MAJOR: OnceLock<u32> = OnceLock::new();
        *MAJOR.get_or_init(|| {
            let program = Engine::Docker.program();
            let version =
                Mode::Rootful.run(program, &["version", "--format={{.Server.Version}}"]).succeeded();
            version.split('.').next().and_then(|major| major.trim().parse().ok()).unwrap_or(0)
        })
    }
}

/// Who runs Podman, and on which network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Net {
    /// No card, a user without privileges.
    Sealed,
    /// No card, root.
    SealedRootful,
    /// slirp4netns, with IPv6.
    Slirp,
    /// A user's own bridge, with IPv6 and names.
    Bridge,
    /// Root's bridge, with IPv6 and names.
    RootfulBridge,
    /// pasta, from Podman 4.4 on.
    Pasta,
}

impl Net {
    /// Without a card.
    pub fn sealed(mode: Mode) -> Self {
        if mode == Mode::Rootful { Net::SealedRootful } else { Net::Sealed }
    }

    /// Whose Podman.
    pub fn mode(self) -> Mode {
        match self {
            Net::SealedRootful | Net::RootfulBridge => Mode::Rootful,
            Net::Sealed | Net::Slirp | Net::Bridge | Net::Pasta => Mode::Rootless,
        }
    }

    /// Whether its containers have no card.
    pub fn is_sealed(self) -> bool {
        matches!(self, Net::Sealed | Net::SealedRootful)
    }

    /// Podman's word for it.
    pub fn network(self) -> &'static str {
        match self {
            Net::Sealed | Net::SealedRootful => "none",
            Net::Slirp => "slirp4netns:enable_ipv6=true",
            Net::Bridge | Net::RootfulBridge => {
                networks(self.mode());
                "duo"
            }
            Net::Pasta => "pasta",
        }
    }

    /// The networks with a card that this machine's Podman has.
    pub fn cards() -> Vec<Self> {
        let mut all = vec![Net::Slirp, Net::Bridge, Net::RootfulBridge];
        all.extend((major() >= 5).then_some(Net::Pasta));
        all
    }

    /// Whether this machine's Podman has it; said aloud where not.
    pub fn exists(self) -> bool {
        let exists = self != Net::Pasta || major() >= 5;
        if !exists {
            eprintln!("skipped: this Podman has no pasta (cargo xtask test --podman5)");
        }
        exists
    }
}

/// Podman's major version.
pub fn major() -> u32 {
    static MAJOR: OnceLock<u32> = OnceLock::new();
    *MAJOR.get_or_init(|| {
        let version = Mode::Rootful.podman(&["version", "--format={{.Client.Version}}"]).succeeded();
        version.split('.').next().and_then(|major| major.trim().parse().ok()).unwrap_or(0)
    })
}

/// Makes this user's networks, once (lab/networks.sh).
pub fn networks(mode: Mode) {
    static DONE: [OnceLock<()>; 2] = [OnceLock::new(), OnceLock::new()];
    DONE[usize::from(mode == Mode::Rootful)].get_or_init(|| networks_anew(mode));
}

/// Makes again of this user's networks what does not live through a reboot.
pub fn networks_anew(mode: Mode) {
    mode.run("/run/lab/scripts/networks.sh", &[]).succeeded();
}
