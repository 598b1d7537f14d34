//! The hook as a program, on what real runtimes wrote: output, exit code, one line of reason.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use serde_json::{Value, json};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const STATES: [&str; 4] =
    ["crun-1.8.1-rootful", "crun-1.8.1-rootless", "crun-1.21-rootful", "runc-1.1.5-rootful"];
const CONFIGS: [&str; 3] = ["podman-4.3.1-rootful", "podman-4.3.1-rootless", "podman-5.4.2-rootful"];

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap()
}

fn config(name: &str) -> Value {
    serde_json::from_slice(&fixture(&format!("{name}.config.json"))).unwrap()
}

/// The hook as it is installed, beside a supervisor (which nothing here starts).
fn installed(folder: &Path) -> PathBuf {
    let hook = folder.join("terok-hook");
    std::fs::copy(env!("CARGO_BIN_EXE_terok-hook"), &hook).unwrap();
    std::fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o755)
        .open(folder.join("terok-supervisor"))
        .unwrap();
    hook
}

/// Runs a stage with `input` and a home directory of the test's own.
fn hook(stage: &str, home: &Path, input: &[u8]) -> Output {
    static INSTALLED: std::sync::LazyLock<(tempfile::TempDir, PathBuf)> = std::sync::LazyLock::new(|| {
        let folder = tempfile::tempdir().unwrap();
        let hook = installed(folder.path());
        (folder, hook)
    });
    hook_at(&INSTALLED.1, stage, home, input)
}

fn hook_at(program: &Path, stage: &str, home: &Path, input: &[u8]) -> Output {
    let mut command = Command::new(program);
    command.args([stage, &format!("--home={}", home.display())]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = loop {
        match command.spawn() {
            // A test beside this one may have forked while the copy was open for writing.
            Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
            spawned => break spawned.unwrap(),
        }
    };
    // A hook that refuses early closes its input early.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn precreate(config: &Value) -> Output {
    let home = tempfile::tempdir().unwrap();
    hook("precreate", home.path(), &serde_json::to_vec(config).unwrap())
}

/// Nothing on stdout, one line on stderr that says `reason`, this exit code.
#[track_caller]
fn assert_refused(output: &Output, code: i32, reason: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(reason), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.starts_with("terok: "), "{said}");
    assert!(output.stdout.is_empty());
    assert_eq!(output.status.code(), Some(code), "{said}");
}

#[test]
fn a_container_that_is_not_ours_passes_octet_by_octet() {
    for name in CONFIGS {
        let mut foreign = config(name);
        foreign["annotations"].as_object_mut().unwrap().remove("terok.shield");
        let pretty = serde_json::to_vec_pretty(&foreign).unwrap();
        let home = tempfile::tempdir().unwrap();
        let output = hook("precreate", home.path(), &pretty);
        assert_eq!(output.stdout, pretty);
        assert!(output.status.success() && output.stderr.is_empty());
    }
}

#[test]
fn a_configuration_is_amended_once_and_stays_as_it_is() {
    for name in CONFIGS {
        let once = precreate(&config(name));
        assert!(once.status.success(), "{}", String::from_utf8_lossy(&once.stderr));
        let amended: Value = serde_json::from_slice(&once.stdout).unwrap();
        terok_policy::amend::is_amended(&amended).unwrap();
        assert!(terok_policy::amend::is_amended(&config(name)).is_err());
        let twice: Value = serde_json::from_slice(&precreate(&amended).stdout).unwrap();
        assert_eq!(twice, amended);
    }
}

#[test]
fn a_missing_supervisor_is_said_before_the_runtime_is_asked() {
    let (folder, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let program = installed(folder.path());
    std::fs::remove_file(folder.path().join("terok-supervisor")).unwrap();
    let input = serde_json::to_vec(&config(CONFIGS[0])).unwrap();
    assert_refused(&hook_at(&program, "precreate", home.path(), &input), 2, "run `terok setup` again");
}

#[test]
fn a_misspelt_key_is_refused_with_the_right_spelling() {
    let mut config = config(CONFIGS[0]);
    config["annotations"]["terok.shild"] = json!("up");
    assert_refused(&precreate(&config), 1, "terok.shield");
}

#[test]
fn a_key_cannot_forge_lines_in_the_refusal() {
    let mut config = config(CONFIGS[0]);
    config["annotations"]["terok.x\nterok: all is well\u{1b}[2J"] = json!("up");
    assert_refused(&precreate(&config), 1, "unknown key");
}

#[test]
fn every_network_of_podmans_passes_but_the_hosts() {
    for name in ["rootless-slirp4netns", "rootless-bridge", "rootless-pod-member", "rootful-container"] {
        let output = precreate(&config(&format!("podman-4.3.1-{name}")));
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert_refused(&precreate(&config("podman-4.3.1-rootful-host")), 1, "host's network namespace");
}

#[test]
fn what_would_undo_the_protection_is_refused_before_anything_is_started() {
    assert_refused(&precreate(&config("podman-4.3.1-rootless-privileged")), 1, "CAP_NET_ADMIN");
    let mut with_bus = config(CONFIGS[0]);
    let mounts = with_bus["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": "/run", "type": "bind", "source": "/run", "options": ["rbind"]}));
    assert_refused(&precreate(&with_bus), 1, "container engine's socket");
}

#[test]
fn what_grants_is_refused_where_the_image_cannot_be_asked() {
    let mut config = config(CONFIGS[0]);
    config["annotations"]["terok.shield"] = json!("down");
    assert_refused(&precreate(&config), 1, "cannot tell whether the image set terok.shield=down");
}

#[test]
fn garbage_is_refused_at_every_stage_but_stop() {
    let home = tempfile::tempdir().unwrap();
    for garbage in [b"" as &[u8], b"{", b"[]", b"null", &[0xff; 100]] {
        for stage in ["precreate", "create"] {
            let output = hook(stage, home.path(), garbage);
            assert_eq!(output.status.code(), Some(1), "{stage} {garbage:?}");
            assert!(output.stdout.is_empty());
        }
        assert_eq!(hook("stop", home.path(), garbage).status.code(), Some(0));
    }
}

#[test]
fn usage_errors_have_their_own_code() {
    let home = tempfile::tempdir().unwrap();
    assert_refused(&hook("poststart", home.path(), b""), 64, "usage");
}

/// `create` writes to the owner's folders, so it runs where these are the test's own.
mod create {
    use super::*;
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    use std::net::{SocketAddr, TcpStream};
    use std::os::unix::process::CommandExt;
    use std::process::Child;
    use std::time::{Duration, Instant};
    use terok_kernel::netns::NetNs;
    use terok_kernel::pidfd::PidFd;
    use terok_kernel::statedir::Dir;
    use terok_policy::layout;

    const ID: &str = "c0ffee";

    /// Runs `test` on a thread that sees empty `/run` and `/var/lib`. Needs root: otherwise says so and skips.
    fn with_folders(test: impl FnOnce() + Send) {
        let isolated = || -> nix::Result<()> {
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS)?;
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
            for folder in ["/run", "/var/lib"] {
                mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), Some("mode=755"))?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let ran = scope.spawn(|| match isolated() {
                Ok(()) => test(),
                Err(error) => {
                    let required = std::env::var("TEROK_TEST_REQUIRE").unwrap_or_default();
                    assert!(!required.contains("netns"), "required: netns: {error}");
                    eprintln!("skipped: netns: cannot make a mount namespace: {error}");
                }
            });
            if let Err(panic) = ran.join() {
                std::panic::resume_unwind(panic);
            }
        });
    }

    /// A container as far as a hook sees it: a process in a network namespace, a bundle, and an installed terok.
    struct Lab {
        folder: tempfile::TempDir,
        init: Child,
    }

    impl Lab {
        fn new(config: &Value, behaviour: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("config.json"), serde_json::to_vec(config).unwrap()).unwrap();
            let hook = Path::new(env!("CARGO_BIN_EXE_terok-hook"));
            std::fs::copy(hook, folder.path().join(layout::HOOK)).unwrap();
            let stand_in = hook.parent().unwrap().join("examples/stand_in_supervisor");
            std::fs::copy(stand_in, folder.path().join(layout::SUPERVISOR))
                .expect("the stand-in supervisor: `cargo test` builds it, `cargo test --test` does not (add --examples)");
            std::fs::write(folder.path().join("behaviour"), behaviour).unwrap();
            let mut init = Command::new("/bin/sleep");
            let apart = || Ok(unshare(CloneFlags::CLONE_NEWNET)?);
            // SAFETY: unshare is a bare system call.
            #[allow(unsafe_code, reason = "between fork and exec")]
            let init = unsafe { init.arg("600").pre_exec(apart) }.spawn().unwrap();
            Lab { folder, init }
        }

        fn state(&self) -> Value {
            let mut state: Value = serde_json::from_slice(&fixture("crun-1.8.1-rootful.state.json")).unwrap();
            state["id"] = json!(ID);
            state["pid"] = json!(self.init.id());
            state["bundle"] = json!(self.folder.path());
            state
        }

        fn run(&self, stage: &str, state: &Value) -> Output {
            let mut child = Command::new(self.folder.path().join(layout::HOOK))
                .arg(stage)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            child.stdin.take().unwrap().write_all(&serde_json::to_vec(state).unwrap()).unwrap();
            child.wait_with_output().unwrap()
        }

        fn create(&self) -> Output {
            self.run("create", &self.state())
        }

        fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
            let pid = self.init.id() as i32;
            NetNs::of(pid, &PidFd::open(pid).unwrap()).unwrap().run(work).unwrap()
        }
    }

    impl Drop for Lab {
        fn drop(&mut self) {
            let _ = self.init.kill();
            let _ = self.init.wait();
        }
    }

    fn amended() -> Value {
        let output = precreate(&config(CONFIGS[0]));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn runtime() -> PathBuf {
        Path::new(layout::RUN_ROOTFUL).join(ID)
    }

    #[test]
    fn a_protected_container_has_its_table_and_its_sockets_before_it_runs() {
        with_folders(|| {
            let lab = Lab::new(&amended(), "ready");
            let output = lab.create();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let unlisted: [SocketAddr; 2] =
                ["203.0.113.66:443".parse().unwrap(), "[2001:db8:bad::66]:443".parse().unwrap()];
            for address in unlisted {
                let asked = Instant::now();
                let refused = lab.inside(|| TcpStream::connect(address)).unwrap_err();
                assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{address}");
                assert!(asked.elapsed() < Duration::from_millis(500), "{address}");
            }
            let base = Dir::base(Path::new("/run")).unwrap().private("terok").unwrap().unwrap();
            assert!(base.private(ID).unwrap().unwrap().is_served(layout::CONTROL).unwrap());
            let log =
                std::fs::read_to_string(Path::new(layout::STATE_ROOTFUL).join(ID).join(layout::LOG)).unwrap();
            assert_eq!(log, "stand-in: ready\n");
            // The table is there once: a second create of the same namespace is refused, not added to it.
            assert_eq!(lab.create().status.code(), Some(2));
        });
    }

    #[test]
    fn a_supervisor_that_is_not_ready_stops_the_start_and_leaves_no_folder() {
        with_folders(|| {
            let lab = Lab::new(&amended(), "exit");
            assert_refused(&lab.create(), 2, "the supervisor ended with code 3 before it was ready");
            assert!(!runtime().exists());
            let audit = Path::new(layout::STATE_ROOTFUL).join(ID).join(layout::AUDIT);
            assert!(std::fs::read_to_string(audit).unwrap().contains("\"refused\""));
            // A namespace that has the table already is not entered again, so this one is fresh.
            let lab = Lab::new(&amended(), "exit");
            std::fs::remove_file(lab.folder.path().join(layout::SUPERVISOR)).unwrap();
            assert_refused(&lab.create(), 2, layout::SUPERVISOR);
        });
    }

    #[test]
    fn a_configuration_without_the_seccomp_rules_is_refused() {
        with_folders(|| {
            let lab = Lab::new(&config(CONFIGS[0]), "ready");
            assert_refused(&lab.create(), 1, "lacks terok's seccomp rules");
            assert!(!runtime().exists());
        });
    }

    #[test]
    fn nothing_starts_while_root_panics() {
        with_folders(|| {
            let lab = Lab::new(&amended(), "ready");
            std::fs::write(layout::PANIC_ROOTFUL, "").unwrap();
            assert_refused(&precreate(&config(CONFIGS[0])), 1, "sudo terok panic --clear");
            assert_refused(&lab.create(), 1, "sudo terok panic --clear");
            std::fs::remove_file(layout::PANIC_ROOTFUL).unwrap();
            assert!(lab.create().status.success());
        });
    }

    #[test]
    fn a_process_in_the_hosts_namespace_is_refused_whatever_the_configuration_says() {
        with_folders(|| {
            let lab = Lab::new(&amended(), "ready");
            let mut state = lab.state();
            state["pid"] = json!(std::process::id());
            assert_refused(&lab.run("create", &state), 1, "host's network namespace");
        });
    }

    #[test]
    fn a_process_that_is_gone_or_was_never_named_is_refused() {
        with_folders(|| {
            let mut lab = Lab::new(&amended(), "ready");
            let state = lab.state();
            lab.init.kill().unwrap();
            lab.init.wait().unwrap();
            assert_refused(&lab.run("create", &state), 2, "is gone");
            for pid in [json!(0), Value::Null] {
                let mut state = lab.state();
                state["pid"] = pid;
                assert_refused(&lab.run("create", &state), 1, "has no pid");
            }
        });
    }

    #[test]
    fn annotations_that_changed_since_precreate_are_refused() {
        with_folders(|| {
            let lab = Lab::new(&amended(), "ready");
            let mut state = lab.state();
            state["annotations"]["terok.shield.allow"] = json!("evil.example.net");
            assert_refused(&lab.run("create", &state), 1, "other terok. annotations");
        });
    }

    #[test]
    fn stop_tidies_up_behind_a_supervisor_that_was_killed_and_leaves_a_living_one_alone() {
        with_folders(|| {
            let mut lab = Lab::new(&amended(), "ready");
            assert!(lab.create().status.success());
            let mut state = lab.state();
            state.as_object_mut().unwrap().remove("pid");
            assert!(lab.run("stop", &state).status.success());
            assert!(runtime().join(layout::CONTROL).exists());
            lab.init.kill().unwrap();
            lab.init.wait().unwrap();
            // The stand-in ends with the container and removes nothing, as one that was killed.
            let deadline = Instant::now() + Duration::from_secs(5);
            while runtime().exists() && Instant::now() < deadline {
                assert!(lab.run("stop", &state).status.success());
            }
            assert!(!runtime().exists());
        });
    }
}

#[test]
fn every_runtimes_state_is_understood() {
    for name in STATES {
        let state = terok_hook::state::State::parse(&fixture(&format!("{name}.state.json"))).unwrap();
        assert!(state.pid.is_some() && state.annotations.contains_key("terok.shield"), "{name}");
        assert!(state.bundle.ends_with("userdata"), "{name}");
    }
}
