//! Podman and terok as the two kinds of user call them.

use crate::container::Ended;
use std::path::PathBuf;
use std::process::{Command, Stdio};

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

    /// The network this user's Podman gives a container without terok.
    pub fn plain_network(self) -> &'static str {
        match self {
            Mode::Rootful => "bridge",
            Mode::Rootless => "slirp4netns:enable_ipv6=true",
        }
    }
}
