//! The shim as a program, before a runtime that only says what it was given.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use terok_need::with_empty_folders;
use terok_policy::amend::{self, hooks};
use terok_policy::plan::Network;
use terok_policy::profile::Catalog;
use terok_policy::provision::Issued;
use terok_policy::{annotation, layout, provision};

const CONFIGS: [&str; 3] = ["podman-4.3.1-rootful", "podman-4.3.1-rootless", "podman-5.4.2-rootful"];
const ID: &str = "c0ffee";
/// Tells, in files beside itself, how it was called.
const RUNTIME: &str = r#"#!/bin/sh
here=${0%/*}
printf '%s\0' "$@" > "$here/arguments"
env -0 > "$here/environment"
umask > "$here/umask"
pwd > "$here/folder"
grep -E '^Sig(Blk|Ign)' /proc/self/status > "$here/signals"
ls /proc/self/fd > "$here/descriptors"
exit 42
"#;

/// A user's own installation before the telling runtime, and a bundle.
struct Lab {
    folder: tempfile::TempDir,
}

impl Lab {
    fn new(config: &[u8]) -> Self {
        let lab = Lab { folder: tempfile::tempdir().unwrap() };
        let bin = lab.bin();
        for folder in [&bin, &lab.path("home/.config/terok"), &lab.path("bundle")] {
            std::fs::create_dir_all(folder).unwrap();
        }
        for (program, content) in [(layout::HOOK, ""), (layout::SUPERVISOR, ""), ("runtime", RUNTIME)] {
            std::fs::write(bin.join(program), content).unwrap();
            std::fs::set_permissions(bin.join(program), std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        std::fs::copy(env!("CARGO_BIN_EXE_terok-shim"), bin.join(layout::SHIM)).unwrap();
        lab.settings("");
        std::fs::write(lab.config(), config).unwrap();
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
    fn bin(&self) -> PathBuf {
        self.path("home").join(layout::BIN_USER)
    }
    fn config(&self) -> PathBuf {
        self.path("bundle/config.json")
    }
    fn settings(&self, more: &str) {
        let text = format!("runtime = {:?}\n{more}\n", self.bin().join("runtime"));
        std::fs::write(self.path("home").join(layout::SHIM_USER), text).unwrap();
    }
    fn read(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.config()).unwrap()).unwrap()
    }
    /// What the runtime told.
    fn told(&self, what: &str) -> Vec<u8> {
        std::fs::read(self.bin().join(what)).unwrap()
    }

    fn shim(&self) -> Command {
        Command::new(self.bin().join(layout::SHIM))
    }

    fn run(command: &mut Command) -> Output {
        loop {
            match command.output() {
                // A test beside this one may have forked while the copy was open for writing.
                Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => {}
                Ok(output) if String::from_utf8_lossy(&output.stderr).contains("Text file busy") => {}
                output => return output.unwrap(),
            }
            std::thread::yield_now();
        }
    }

    fn create(&self) -> Output {
        Self::run(self.shim().args(["create", "--bundle"]).arg(self.path("bundle")).arg(ID))
    }

    #[track_caller]
    fn passed(&self) {
        let output = self.create();
        assert_eq!(output.status.code(), Some(42), "{output:?}");
    }

    #[track_caller]
    fn refused(&self, why: &str) {
        let before = std::fs::read(self.config()).unwrap();
        let _ = std::fs::remove_file(self.bin().join("arguments"));
        let output = self.create();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.starts_with("terok: ") && said.contains(why), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(!self.bin().join("arguments").exists(), "the runtime was called");
        assert_eq!(std::fs::read(self.config()).unwrap(), before);
    }
}

fn fixture(name: &str) -> Value {
    let path = format!("{}/../hooks/tests/fixtures/{name}.config.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A configuration without terok's annotations, and with `ours`.
fn config(name: &str, ours: &[(&str, &str)]) -> Vec<u8> {
    let mut config = fixture(name);
    let annotations = config["annotations"].as_object_mut().unwrap();
    annotations.retain(|key, _| !key.starts_with(annotation::PREFIX));
    annotations.extend(ours.iter().map(|(key, value)| ((*key).to_owned(), json!(value))));
    serde_json::to_vec_pretty(&config).unwrap()
}

fn policy(ours: &[(&str, &str)]) -> terok_policy::Policy {
    let ours: BTreeMap<String, String> =
        ours.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    annotation::parse(&ours, &Catalog::bundled()).unwrap()
}

fn installed(lab: &Lab, all: bool) -> hooks::Installed {
    let home = Some(lab.path("home").display().to_string());
    hooks::Installed { program: lab.bin().join(layout::HOOK).display().to_string(), home, all }
}

#[test]
fn whatever_is_on_the_line_reaches_the_runtime_as_it_was() {
    let lab = Lab::new(&config(CONFIGS[0], &[]));
    let lines: [&[&[u8]]; 7] = [
        &[],
        &[b"--version"],
        &[b"--log-format", b"json", b"--log", b"/nowhere/log", b"state", b"c 1"],
        &[b"create", b"--bundle", b"/nowhere", b"c1"],
        &[b"exec", b"--process", b"/nowhere", b"c1"],
        &[b"", b"-", b"--", b"--x=\xff\xfe", b"\n", b"'\"$(x)`"],
        &[b"checkpoint", b"--image-path=/i", b"-\xf0", b"create"],
    ];
    for line in lines {
        let words = line.iter().map(|word| OsString::from_vec(word.to_vec()));
        let output = Lab::run(lab.shim().args(words));
        assert_eq!(output.status.code(), Some(42), "{output:?}");
        let told: Vec<u8> = line.iter().flat_map(|word| [*word, b"\0"].concat()).collect();
        let told = if line.is_empty() { b"\0".to_vec() } else { told };
        assert_eq!(lab.told("arguments"), told);
    }
}

#[test]
fn environment_folder_umask_signals_and_descriptors_reach_it_too_and_none_of_ours() {
    let lab = Lab::new(&config(CONFIGS[0], &[]));
    let script = "trap '' USR1; umask 031; exec 7</dev/null; exec \"$0\" \"$@\"";
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]).arg(lab.bin().join(layout::SHIM)).args(["create", "-b", "bundle", ID]);
    command.env_clear().envs([("LISTEN_FDS", "1"), ("LD_PRELOAD", "/nowhere.so"), ("HOME", "/h")]);
    let output = Lab::run(command.current_dir(lab.folder.path()));
    assert_eq!(output.status.code(), Some(42), "{output:?}");
    let environment = String::from_utf8(lab.told("environment")).unwrap();
    for variable in ["LISTEN_FDS=1", "LD_PRELOAD=/nowhere.so", "HOME=/h"] {
        assert!(environment.split('\0').any(|line| line == variable), "{environment:?}");
    }
    assert_eq!(lab.told("umask"), b"0031\n");
    assert_eq!(String::from_utf8(lab.told("folder")).unwrap().trim(), lab.folder.path().to_str().unwrap());
    let signals = String::from_utf8(lab.told("signals")).unwrap();
    // USR1 is 10. PIPE, 13, the standard library ignores in this program, and no child of it inherits that; 32 and 33 are the
    // C library's.
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let ignored = |status: &str| {
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).unwrap();
        u64::from_str_radix(mask, 16).unwrap() & !(0b11 << 31)
    };
    assert_eq!(ignored(&signals), ignored(&own) & !(1 << 12) | 1 << 9);
    assert!(signals.contains("SigBlk:\t0000000000000000"), "{signals}");
    // Whatever these tests were started with is there without the shim as well; `ls` has the folder open.
    let without =
        Command::new("/bin/sh").args(["-c", "exec 7</dev/null; exec ls /proc/self/fd"]).output().unwrap();
    let sorted = |listed: &[u8]| {
        let mut listed: Vec<u32> =
            std::str::from_utf8(listed).unwrap().lines().map(|line| line.parse().unwrap()).collect();
        listed.sort_unstable();
        listed
    };
    let descriptors = sorted(&lab.told("descriptors"));
    assert_eq!(descriptors, sorted(&without.stdout));
    assert!(descriptors.contains(&7), "{descriptors:?}");
}

#[test]
fn a_bundle_without_a_key_stays_octet_by_octet() {
    for name in CONFIGS {
        let octets = config(name, &[]);
        let lab = Lab::new(&octets);
        let before = lab.config().metadata().unwrap();
        lab.passed();
        let after = lab.config().metadata().unwrap();
        assert_eq!(std::fs::read(lab.config()).unwrap(), octets);
        assert_eq!((before.ino(), before.mtime_nsec()), (after.ino(), after.mtime_nsec()));
    }
    for octets in [&b"not JSON"[..], b"{}", b"[]"] {
        let lab = Lab::new(octets);
        if octets == b"{}" { lab.passed() } else { lab.refused("config.json") }
    }
}

#[test]
fn what_precreate_makes_of_a_bundle_the_shim_makes_too_and_hooks_besides() {
    with_empty_folders(|| {
        for name in CONFIGS {
            for ours in [
                &[("terok.shield", "up")][..],
                &[("terok.shield.allow", "example.com"), ("terok.restricted", "true")],
            ] {
                let lab = Lab::new(&config(name, ours));
                std::fs::set_permissions(lab.config(), std::fs::Permissions::from_mode(0o640)).unwrap();
                lab.passed();
                let before: Value = serde_json::from_slice(&config(name, ours)).unwrap();
                let amended = amend::amend(before, &policy(ours)).unwrap();
                assert_eq!(lab.read(), hooks::inject(amended, &installed(&lab, false)).unwrap(), "{name}");
                assert_eq!(lab.config().metadata().unwrap().mode() & 0o777, 0o640);
                let octets = std::fs::read(lab.config()).unwrap();
                lab.passed();
                assert_eq!(std::fs::read(lab.config()).unwrap(), octets, "once more changes nothing");
            }
        }
    });
}

#[test]
fn tokens_are_made_at_each_start_but_not_where_precreate_made_them() {
    with_empty_folders(|| {
        let ours = [("terok.vault", "anthropic"), ("terok.ssh", "work@github.com")];
        let before = config(CONFIGS[2], &ours);
        let lab = Lab::new(&before);
        // As for a container whose image is known: it has none.
        let (id, store) = (ID, lab.path("store/overlay-containers"));
        let bundle = store.join(id).join("userdata");
        std::fs::create_dir_all(&bundle).unwrap();
        std::fs::write(store.join("containers.json"), json!([{ "id": id, "image": "" }]).to_string())
            .unwrap();
        std::fs::rename(lab.config(), bundle.join("config.json")).unwrap();
        std::fs::remove_dir(lab.path("bundle")).unwrap();
        std::os::unix::fs::symlink(&bundle, lab.path("bundle")).unwrap();
        let create = || {
            let output = Lab::run(lab.shim().args(["create", "--bundle"]).arg(&bundle).arg(ID));
            assert_eq!(output.status.code(), Some(42), "{output:?}");
        };
        let issued = || -> Issued {
            let path = format!("/run/terok/{}/{ID}/{}", layout::BIRTH, layout::GRANTED);
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
        };
        create();
        let (first, amended) = (issued(), lab.read());
        let policy = policy(&ours);
        let inside = format!("/run/terok/{}/{ID}/{}", layout::BIRTH, layout::INSIDE);
        let expected = amend::amend(serde_json::from_slice(&before).unwrap(), &policy).unwrap();
        let expected = amend::provide(expected, &provision::provision(&policy, &first, &inside)).unwrap();
        assert_eq!(amended, hooks::inject(expected.clone(), &installed(&lab, false)).unwrap());

        // Podman has run precreate: only the hooks are missing, or nothing.
        std::fs::write(lab.config(), serde_json::to_vec(&expected).unwrap()).unwrap();
        create();
        assert!(issued().tokens == first.tokens && lab.read() == amended);
        let octets = std::fs::read(lab.config()).unwrap();
        create();
        assert!(issued().tokens == first.tokens && std::fs::read(lab.config()).unwrap() == octets);

        // The next start, from what the engine has kept.
        std::fs::write(lab.config(), &before).unwrap();
        create();
        assert!(issued().tokens != first.tokens);
    });
}

#[test]
fn what_cannot_be_protected_does_not_reach_the_runtime() {
    with_empty_folders(|| {
        let lab = |name: &str, ours: &[(&str, &str)]| Lab::new(&config(name, ours));
        let shield = [("terok.shield", "up")];
        lab(CONFIGS[0], &[("terok.sheild", "up")]).refused("terok.sheild");
        lab("podman-4.3.1-rootful-host", &shield).refused("host's network namespace");
        for program in [layout::HOOK, layout::SUPERVISOR] {
            let lab = lab(CONFIGS[0], &shield);
            std::fs::remove_file(lab.bin().join(program)).unwrap();
            lab.refused("run `terok setup` again");
        }
        let lab = lab(CONFIGS[0], &shield);
        let other = lab.path("other.json");
        std::fs::write(&other, b"{}").unwrap();
        let with = |more: &[&str]| {
            let mut command = lab.shim();
            command.args(more).arg("--bundle").arg(lab.path("bundle")).arg(ID);
            String::from_utf8(Lab::run(&mut command).stderr).unwrap()
        };
        assert!(with(&["restore"]).contains("cannot be restored"));
        std::fs::rename(lab.bin().join("runtime"), lab.bin().join("crun")).unwrap();
        let text = format!("runtime = {:?}", lab.bin().join("crun"));
        std::fs::write(lab.path("home").join(layout::SHIM_USER), text).unwrap();
        let said = with(&["create", "--config", other.to_str().unwrap()]);
        assert!(said.contains("other.json is not amended"), "{said}");
        assert_eq!(with(&["create", "--config", "config.json"]), "");
    });
}

/// Labels are no part of the configuration.
#[test]
fn a_container_of_dockers_that_is_protected_by_a_label_is_not_restored_either() {
    with_empty_folders(|| {
        let fixture = |name: &str| {
            let name = format!("docker-26.1.5-image-label.{name}.json");
            let text = std::fs::read_to_string(format!(
                "{}/../hooks/tests/fixtures/{name}",
                env!("CARGO_MANIFEST_DIR")
            ));
            text.unwrap()
        };
        let lab = Lab::new(b"{}");
        let data = lab.folder.path().canonicalize().unwrap().join("docker");
        let container = fixture("config.v2");
        let id = serde_json::from_str::<Value>(&container).unwrap()["ID"].as_str().unwrap().to_owned();
        let folder = data.join("containers").join(&id);
        let bundle = lab.path("io.containerd.runtime.v2.task/moby").join(&id);
        for folder in [&folder, &bundle] {
            std::fs::create_dir_all(folder).unwrap();
        }
        std::fs::write(folder.join("hostconfig.json"), fixture("hostconfig")).unwrap();
        let config = fixture("config").replace("/var/lib/docker", data.to_str().unwrap());
        std::fs::write(bundle.join("config.json"), config).unwrap();
        let restore = |container: &str| {
            std::fs::write(folder.join("config.v2.json"), container).unwrap();
            let mut command = lab.shim();
            command.args(["restore", "--image-path", "/i", "--bundle"]).arg(&bundle).arg(&id);
            String::from_utf8(Lab::run(&mut command).stderr).unwrap()
        };
        let said = restore(&container);
        assert!(said.contains("cannot be restored"), "{said}");
        assert_eq!(restore(&container.replace("terok.", "other.")), "");
    });
}

#[test]
fn why_is_said_on_stderr_and_in_the_log_as_the_engine_wants_it() {
    let lab = Lab::new(b"[]");
    let log = lab.path("log");
    for format in ["json", "text"] {
        let _ = std::fs::remove_file(&log);
        let mut command = lab.shim();
        command.args(["--log-format", format, "--log"]).arg(&log).args(["create", "--bundle"]);
        let output = Lab::run(command.arg(lab.path("bundle")).arg(ID));
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        let log = std::fs::read_to_string(&log).unwrap();
        let logged = match format {
            "json" => {
                let line: Value = serde_json::from_str(&log).unwrap();
                assert_eq!(line["level"], "error");
                line["msg"].as_str().unwrap().to_owned() + "\n"
            }
            _ => {
                log.trim().strip_prefix("level=error msg=\"").unwrap().trim_end_matches('"').to_owned() + "\n"
            }
        };
        assert_eq!(logged, said);
    }
}

#[test]
fn with_all_containers_one_without_a_key_is_protected_too() {
    with_empty_folders(|| {
        let lab = Lab::new(&config(CONFIGS[0], &[]));
        lab.settings("all_containers = true");
        lab.passed();
        assert_eq!(amend::is_amended(&lab.read()), Ok(()));
        let before: Value = serde_json::from_slice(&config(CONFIGS[0], &[])).unwrap();
        let hooks = hooks::inject(before, &installed(&lab, true)).unwrap()["hooks"].take();
        assert_eq!(lab.read()["hooks"], hooks);
        assert!(hooks.to_string().contains("--all"));
    });
}

/// It takes mask and value of a masked comparison for each other, and nothing of `linux` for a further process.
#[test]
fn youki_gets_no_protected_container() {
    let lab = Lab::new(&config(CONFIGS[0], &[("terok.shield", "up")]));
    let youki = lab.bin().join("youki");
    std::fs::copy(lab.bin().join("runtime"), &youki).unwrap();
    let settings = format!("runtime = {youki:?}\n");
    std::fs::write(lab.path("home").join(layout::SHIM_USER), settings).unwrap();
    lab.refused("take crun or runc");
    std::fs::write(lab.config(), config(CONFIGS[0], &[])).unwrap();
    lab.passed();
}

#[test]
fn settings_that_are_wrong_stop_it_and_name_the_file() {
    let lab = Lab::new(&config(CONFIGS[0], &[]));
    lab.settings("all_container = true");
    lab.refused("shim.toml");
    let itself = format!("runtime = {:?}", lab.bin().join(layout::SHIM));
    std::fs::write(lab.path("home").join(layout::SHIM_USER), itself).unwrap();
    lab.refused("terok-shim itself");
}

/// Has the runtime create a container with these annotations, and writes down of it what `create` does.
fn running(ours: &[(&str, &str)], network: Network) -> Lab {
    let lab = Lab::new(&config(CONFIGS[0], ours));
    lab.passed();
    let folder = Path::new(layout::RUN_ROOTFUL).join(ID);
    make_private(folder.parent().unwrap());
    make_private(&folder);
    let container = terok_policy::control::Container {
        id: ID.into(),
        bundle: lab.path("bundle").display().to_string(),
        network: Some(network),
        ..Default::default()
    };
    let record = folder.join(layout::CONTAINER);
    std::fs::write(&record, serde_json::to_vec(&container).unwrap()).unwrap();
    std::fs::set_permissions(&record, std::fs::Permissions::from_mode(0o600)).unwrap();
    lab
}

/// A further process with these capabilities: as the runtime gets it, or why it does not.
fn exec(lab: &Lab, capabilities: &[&str]) -> Result<Value, String> {
    let described = json!({ "args": ["sh"], "cwd": "/", "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 },
        "capabilities": { "bounding": capabilities, "effective": capabilities } });
    let process = lab.path("process.json");
    std::fs::write(&process, described.to_string()).unwrap();
    let mut command = lab.shim();
    answer(command.args(["exec", "--detach", "--process"]).arg(&process).arg(ID))
        .map(|()| serde_json::from_slice(&std::fs::read(&process).unwrap()).unwrap())
}

/// One that is described on the line.
fn exec_line(lab: &Lab, options: &[&str]) -> Result<(), String> {
    answer(lab.shim().arg("exec").args(options).args([ID, "sh"]))
}

fn answer(command: &mut Command) -> Result<(), String> {
    let output = Lab::run(command);
    match output.status.code() {
        Some(42) => Ok(()),
        Some(1) => Err(String::from_utf8(output.stderr).unwrap()),
        _ => panic!("{output:?}"),
    }
}

#[test]
fn a_further_process_of_a_restricted_container_is_restricted() {
    with_empty_folders(|| {
        let lab = running(&[("terok.restricted", "true")], Network::Filtered);
        let process = exec(&lab, &["CAP_CHOWN", "CAP_SYS_ADMIN"]).unwrap();
        assert_eq!(process["noNewPrivileges"], true);
        assert_eq!(process["capabilities"]["bounding"], json!([]));
        assert_eq!(process["env"], json!(["PATH=/bin"]));
        exec_line(&lab, &["--no-new-privs", "-e", "A=1"]).unwrap();
        for options in [&["--cap", "CAP_CHOWN"][..], &["--no-new-privs=false"]] {
            assert!(exec_line(&lab, options).unwrap_err().contains("is restricted"), "{options:?}");
        }
        std::fs::remove_dir_all(layout::RUN_ROOTFUL).unwrap();
        // Of a container that the hook did not protect.
        assert_eq!(
            exec(&lab, &["CAP_SYS_ADMIN"]).unwrap()["capabilities"]["bounding"],
            json!(["CAP_SYS_ADMIN"])
        );
        exec_line(&lab, &["--cap", "CAP_CHOWN"]).unwrap();
    });
}

#[test]
fn a_further_process_beside_a_card_has_nothing_that_could_undo_the_protection() {
    with_empty_folders(|| {
        let lab = running(&[("terok.shield", "up")], Network::Filtered);
        let bounding = |capabilities: &[&str]| {
            exec(&lab, capabilities).map(|mut process| process["capabilities"]["bounding"].take())
        };
        assert_eq!(bounding(&["CAP_CHOWN"]).unwrap(), json!(["CAP_CHOWN"]));
        for capability in ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE"] {
            let said = bounding(&["CAP_CHOWN", capability]).unwrap_err();
            assert!(said.contains(capability) && said.contains("--privileged"), "{said}");
            for spelt in [capability.to_owned(), capability.to_lowercase(), capability.replace("CAP_", "")] {
                let said = exec_line(&lab, &["--cap", &spelt]).unwrap_err();
                assert!(said.contains(capability) && said.contains("--cap"), "{said}");
            }
        }
        exec_line(&lab, &["--cap", "CAP_CHOWN"]).unwrap();
        std::fs::remove_dir_all(layout::RUN_ROOTFUL).unwrap();
        // Without a card there is nothing to undo.
        let lab = running(&[("terok.shield", "up")], Network::Sealed);
        let process = exec(&lab, &["CAP_NET_ADMIN"]).unwrap();
        assert_eq!(process["capabilities"]["bounding"], json!(["CAP_NET_ADMIN"]));
        exec_line(&lab, &["--cap", "CAP_NET_ADMIN"]).unwrap();
    });
}

fn make_private(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)).unwrap();
}
