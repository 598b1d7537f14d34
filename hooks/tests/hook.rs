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

/// Copies a program by another process: a file that is open for writing here is so in what a test beside this one forks, and
/// the kernel starts no program that is open for writing.
#[track_caller]
fn copy(program: &Path, to: &Path) {
    let copied = Command::new("cp").args([program, to]).status().unwrap();
    assert!(copied.success(), "{} cannot be copied", program.display());
}

/// The hook as it is installed, beside a supervisor (which nothing here starts).
fn installed(folder: &Path) -> PathBuf {
    let hook = folder.join("terok-hook");
    copy(Path::new(env!("CARGO_BIN_EXE_terok-hook")), &hook);
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
    let mut child = command.spawn().unwrap();
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
fn what_needs_a_card_is_refused_where_there_will_be_none() {
    for rule in ["192.0.2.1:123/udp", "a.example:443 direct"] {
        for name in CONFIGS {
            let mut config = config(name);
            config["annotations"]["terok.shield.allow"] = json!(rule);
            assert_refused(&precreate(&config), 1, "needs a network card");
        }
        let mut config = config("podman-4.3.1-rootless-bridge");
        config["annotations"]["terok.shield.allow"] = json!(rule);
        assert!(precreate(&config).status.success());
    }
}

#[test]
fn every_network_of_podmans_passes_but_the_hosts() {
    for name in ["rootless-slirp4netns", "rootless-bridge", "rootful-ns-path"] {
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
    use nix::sched::{CloneFlags, unshare};
    use std::net::{SocketAddr, TcpStream};
    use std::os::unix::process::CommandExt;
    use std::process::Child;
    use std::time::{Duration, Instant};
    use terok_kernel::netns::NetNs;
    use terok_kernel::pidfd::PidFd;
    use terok_kernel::statedir::Dir;
    use terok_need::with_empty_folders;
    use terok_policy::layout;

    const ID: &str = "c0ffee";

    /// A container as far as a hook sees it: a process in a network namespace, a bundle, and an installed terok.
    struct Lab {
        id: String,
        folder: tempfile::TempDir,
        init: Child,
    }

    impl Lab {
        fn new(config: &Value, behaviour: &str) -> Self {
            let apart = || Ok(unshare(CloneFlags::CLONE_NEWNET)?);
            Lab::with(ID, config, behaviour, apart)
        }

        /// One whose init is in the network of process `holder`, and says so.
        fn joining(id: &str, holder: u32, config: Value) -> Self {
            let config = join(config, holder);
            let path = format!("/proc/{holder}/ns/net");
            let joined = move || {
                let network = std::fs::File::open(&path)?;
                nix::sched::setns(&network, CloneFlags::CLONE_NEWNET)?;
                Ok(unshare(CloneFlags::CLONE_NEWNS)?)
            };
            Lab::with(id, &config, "ready", joined)
        }

        fn with(
            id: &str,
            config: &Value,
            behaviour: &str,
            apart: impl FnMut() -> std::io::Result<()> + Send + Sync + 'static,
        ) -> Self {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("config.json"), serde_json::to_vec(config).unwrap()).unwrap();
            let hook = Path::new(env!("CARGO_BIN_EXE_terok-hook"));
            let stand_in = hook.parent().unwrap().join("examples/stand_in_supervisor");
            copy(hook, &folder.path().join(layout::HOOK));
            // `cargo test` builds it, `cargo test --test` does not (add --examples).
            copy(&stand_in, &folder.path().join(layout::SUPERVISOR));
            std::fs::write(folder.path().join("behaviour"), behaviour).unwrap();
            let mut init = Command::new("/bin/sleep");
            // SAFETY: opening a file and entering namespaces are bare system calls.
            #[allow(unsafe_code, reason = "between fork and exec")]
            let init = unsafe { init.arg("600").pre_exec(apart) }.spawn().unwrap();
            Lab { id: id.to_owned(), folder, init }
        }

        fn state(&self) -> Value {
            let mut state: Value = serde_json::from_slice(&fixture("crun-1.8.1-rootful.state.json")).unwrap();
            state["id"] = json!(self.id);
            state["pid"] = json!(self.init.id());
            state["bundle"] = json!(self.folder.path());
            state
        }

        fn run(&self, stage: &str, state: &Value) -> Output {
            self.run_with(&[stage], state)
        }

        fn run_with(&self, words: &[&str], state: &Value) -> Output {
            let mut child = Command::new(self.folder.path().join(layout::HOOK))
                .args(words)
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

        /// As [`Lab::create`], with the bundle in a container store that lists this container and `others`.
        fn create_in_store(&self, others: &[&str]) -> Output {
            let store = self.folder.path().join("overlay-containers");
            let bundle = store.join(&self.id).join("userdata");
            std::fs::create_dir_all(&bundle).unwrap();
            std::fs::copy(self.folder.path().join("config.json"), bundle.join("config.json")).unwrap();
            let listed = others.iter().copied().chain([self.id.as_str()]);
            let records: Vec<Value> = listed.map(|id| json!({ "id": id, "names": [id] })).collect();
            std::fs::write(store.join("containers.json"), serde_json::to_vec(&records).unwrap()).unwrap();
            let mut state = self.state();
            state["bundle"] = json!(bundle);
            self.run("create", &state)
        }

        fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
            let pid = self.init.id() as i32;
            NetNs::of(pid, &PidFd::open(pid).unwrap()).unwrap().run(work).unwrap()
        }
    }

    /// A process tree that goes with its test.
    struct Infra(Child);

    impl Drop for Infra {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
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
        with_empty_folders(|| {
            let lab = Lab::new(&amended(), "ready");
            let output = lab.create();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let unlisted: [SocketAddr; 2] =
                ["203.0.113.66:443".parse().unwrap(), "[2001:db8:bad::66]:443".parse().unwrap()];
            for address in unlisted {
                // A refusal that was lost would come a second later, each time.
                let at_once = (0..60).any(|_| {
                    let asked = Instant::now();
                    let refused = lab.inside(|| TcpStream::connect(address)).unwrap_err();
                    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{address}");
                    asked.elapsed() < Duration::from_millis(500)
                });
                assert!(at_once, "{address}");
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

    /// `config` with the network of process `holder`.
    fn join(mut config: Value, holder: u32) -> Value {
        for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
            if namespace["type"] == "network" {
                namespace["path"] = json!(format!("/proc/{holder}/ns/net"));
            }
        }
        config
    }

    /// What precreate makes of that: at that time there is no init.
    fn precreate_joining(config: Value, holder: u32) -> Output {
        precreate(&join(config, holder))
    }

    fn record(id: &str) -> Value {
        let path = Path::new(layout::RUN_ROOTFUL).join(id).join(layout::CONTAINER);
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    #[test]
    fn a_container_that_joins_a_protected_one_is_served_by_its_guard_if_both_have_one_policy() {
        with_empty_folders(|| {
            let first = Lab::new(&amended(), "ready");
            assert!(first.create().status.success());
            assert!(precreate_joining(amended(), first.init.id()).status.success());
            let second = Lab::joining("second", first.init.id(), amended());
            let output = second.create();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            assert_eq!(record("second")["served_by"], ID);
            assert_eq!(record("second")["netns"], record(ID)["netns"]);

            let mut other = amended();
            other["annotations"]["terok.shield.deny"] = json!("x.example");
            assert_refused(
                &precreate_joining(other.clone(), first.init.id()),
                1,
                "the same terok.shield.deny",
            );
            let third = Lab::joining("third", first.init.id(), other);
            let mut state = third.state();
            state["annotations"]["terok.shield.deny"] = json!("x.example");
            assert_refused(&third.run("create", &state), 1, "the same terok.shield.deny");
            drop(third);

            let mut ended = second.state();
            ended.as_object_mut().unwrap().remove("pid");
            assert!(second.run("stop", &ended).status.success());
            assert!(!Path::new(layout::RUN_ROOTFUL).join("second").exists());
            assert!(runtime().join(layout::CONTROL).exists());
        });
    }

    #[test]
    fn a_network_with_an_unprotected_process_in_it_is_refused() {
        with_empty_folders(|| {
            let plain = Lab::new(&amended(), "ready");
            let reason = format!("process {} (sleep), which no terok annotation covers", plain.init.id());
            assert_refused(&precreate_joining(amended(), plain.init.id()), 1, &reason);
            let ours = Lab::joining("ours", plain.init.id(), amended());
            // In the hook's own mount namespace it could be a helper of the engine's; in another it cannot.
            let stranger = Lab::joining("stranger", plain.init.id(), amended());
            let reason = format!("process {} (sleep), which no terok annotation covers", stranger.init.id());
            assert_refused(&ours.create(), 1, &reason);
            drop(stranger);
            assert!(ours.create().status.success());
            let _late = Lab::joining("late", plain.init.id(), amended());
            let second = Lab::joining("second", ours.init.id(), amended());
            assert_refused(&second.create(), 1, "which no terok annotation covers");
        });
    }

    #[test]
    fn the_members_of_a_pod_have_one_guard_which_is_the_infra_containers() {
        with_empty_folders(|| {
            let infra = |script: &str| {
                let mut infra = Command::new("unshare");
                infra.args(["--net", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script]);
                let infra = Infra(infra.spawn().unwrap());
                let children = format!("/proc/{0}/task/{0}/children", infra.0.id());
                let deadline = Instant::now() + Duration::from_secs(60);
                loop {
                    let child = std::fs::read_to_string(&children).unwrap();
                    let pid: Option<u32> = child.trim().parse().ok();
                    let settled = pid.filter(|pid| {
                        std::fs::read_to_string(format!("/proc/{pid}/comm"))
                            .is_ok_and(|name| name == "sleep\n")
                    });
                    if let Some(pid) = settled {
                        return (infra, pid);
                    }
                    assert!(Instant::now() < deadline, "no infra process");
                    std::thread::yield_now();
                }
            };
            let mut config = amended();
            config["annotations"]["io.kubernetes.cri-o.SandboxID"] = json!("podsinfra");
            let (_tame, holder) =
                infra("exec setpriv --bounding-set=-net_admin,-net_raw,-sys_admin,-sys_ptrace sleep 600");
            // Podman 4.3 takes annotations from images too: what the engine does not know is no infra container.
            let unknown = Lab::joining("unknown", holder, config.clone()).create_in_store(&[]);
            assert_refused(&unknown, 1, "which no terok annotation covers");
            for id in ["one", "two"] {
                let output = precreate_joining(config.clone(), holder);
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                let output = Lab::joining(id, holder, config.clone()).create_in_store(&["podsinfra"]);
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                assert_eq!(record(id)["served_by"], "podsinfra");
            }
            assert_eq!(record("podsinfra")["pid"], holder);
            let state = Path::new(layout::STATE_ROOTFUL).join("podsinfra").join(layout::LOG);
            assert_eq!(std::fs::read_to_string(state).unwrap(), "stand-in: ready\n");

            // An infra container that could undo the table is no infra container.
            let (_wild, holder) = infra("exec sleep 600");
            assert_refused(&precreate_joining(config.clone(), holder), 1, "which no terok annotation covers");
            let lab = Lab::joining("three", holder, config);
            assert_refused(&lab.create(), 1, "which no terok annotation covers");
        });
    }

    #[test]
    fn every_container_is_protected_where_the_settings_say_so_and_may_only_tighten() {
        with_empty_folders(|| {
            let home = tempfile::tempdir().unwrap();
            let all = |config: &Value| {
                let input = serde_json::to_vec(config).unwrap();
                let mut command = Command::new(installed(tempfile::tempdir().unwrap().keep().as_path()));
                command.args(["precreate", "--all", &format!("--home={}", home.path().display())]);
                command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
                let mut child = command.spawn().unwrap();
                let _ = child.stdin.take().unwrap().write_all(&input);
                child.wait_with_output().unwrap()
            };
            let settings = home.path().join(layout::CONFIG_USER);
            std::fs::create_dir_all(settings.parent().unwrap()).unwrap();
            let mut plain = config(CONFIGS[0]);
            plain["annotations"].as_object_mut().unwrap().remove("terok.shield");
            // The default's own grant is not the image's word, though nobody knows the image.
            std::fs::write(&settings, "[all_containers]\n\"terok.shield.allow\" = \"10.0.0.1:80\"\n")
                .unwrap();
            let output = all(&plain);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let amended: Value = serde_json::from_slice(&output.stdout).unwrap();
            terok_policy::amend::is_amended(&amended).unwrap();
            plain["annotations"]["terok.shield.deny"] = json!("x.example");
            assert!(all(&plain).status.success());
            plain["annotations"]["terok.shield.allow"] = json!("y.example");
            assert_refused(&all(&plain), 1, "beyond what every container here may do");
            std::fs::write(&settings, "nonsense = 1\n").unwrap();
            assert_refused(&all(&plain), 1, "config.toml");
        });
    }

    #[test]
    fn a_supervisor_that_is_not_ready_stops_the_start_and_leaves_no_folder() {
        with_empty_folders(|| {
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
        with_empty_folders(|| {
            let lab = Lab::new(&config(CONFIGS[0]), "ready");
            assert_refused(&lab.create(), 1, "lacks terok's seccomp rules");
            assert!(!runtime().exists());
        });
    }

    #[test]
    fn nothing_starts_while_root_panics() {
        with_empty_folders(|| {
            let lab = Lab::new(&amended(), "ready");
            std::fs::write(layout::PANIC_ROOTFUL, "").unwrap();
            assert_refused(&precreate(&config(CONFIGS[0])), 1, "sudo terok panic --clear");
            assert_refused(&lab.create(), 1, "sudo terok panic --clear");
            std::fs::remove_file(layout::PANIC_ROOTFUL).unwrap();
            assert!(lab.create().status.success());
        });
    }

    #[test]
    fn a_start_that_was_under_way_when_root_panicked_is_refused() {
        with_empty_folders(|| {
            let home = tempfile::tempdir().unwrap();
            let settings = home.path().join(layout::CONFIG_USER);
            std::fs::create_dir_all(settings.parent().unwrap()).unwrap();
            let lab = Lab::new(&amended(), "ready");
            let attempt = || {
                let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
                let port = taken.local_addr().unwrap().port();
                std::fs::write(&settings, format!("[all_containers]\n\"terok.publish\" = \"{port}:80\"\n"))
                    .unwrap();
                let _ = std::fs::remove_file(layout::PANIC_ROOTFUL);
                std::thread::scope(|scope| {
                    scope.spawn(|| {
                        // It looked for the marker long ago, and waits for its port now.
                        std::thread::sleep(Duration::from_millis(500));
                        std::fs::write(layout::PANIC_ROOTFUL, "").unwrap();
                        drop(taken);
                    });
                    let words = ["create", "--all", &format!("--home={}", home.path().display())];
                    lab.run_with(&words, &lab.state())
                })
            };
            // It waits two seconds for its port, in which a slow machine may not come to the marker.
            let gave_up = |output: &Output| String::from_utf8_lossy(&output.stderr).contains("is in use");
            let refused = (0..10).map(|_| attempt()).find(|output| !gave_up(output)).unwrap();
            assert_refused(&refused, 1, "sudo terok panic --clear");
            assert!(!runtime().exists());
        });
    }

    #[test]
    fn a_process_in_the_hosts_namespace_is_refused_whatever_the_configuration_says() {
        with_empty_folders(|| {
            let lab = Lab::new(&amended(), "ready");
            let mut state = lab.state();
            state["pid"] = json!(std::process::id());
            assert_refused(&lab.run("create", &state), 1, "host's network namespace");
        });
    }

    #[test]
    fn a_process_that_is_gone_or_was_never_named_is_refused() {
        with_empty_folders(|| {
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
        with_empty_folders(|| {
            let lab = Lab::new(&amended(), "ready");
            let mut state = lab.state();
            state["annotations"]["terok.shield.allow"] = json!("evil.example.net");
            assert_refused(&lab.run("create", &state), 1, "other terok. annotations");
        });
    }

    #[test]
    fn stop_tidies_up_behind_a_supervisor_that_was_killed_and_leaves_a_living_one_alone() {
        with_empty_folders(|| {
            let mut lab = Lab::new(&amended(), "ready");
            assert!(lab.create().status.success());
            let mut state = lab.state();
            state.as_object_mut().unwrap().remove("pid");
            assert!(lab.run("stop", &state).status.success());
            assert!(runtime().join(layout::CONTROL).exists());
            lab.init.kill().unwrap();
            lab.init.wait().unwrap();
            // The stand-in ends with the container and removes nothing, as one that was killed.
            let deadline = Instant::now() + Duration::from_secs(60);
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
