//! The program as a person runs it: what it prints, what it exits with, and that nothing happens where nothing should.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A person with an empty home, whose Podman is a script that says how it was called.
struct Person {
    home: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

/// One at a time: a program started by one test would inherit the file that another is just writing its Podman into,
/// and the kernel starts no program that is open for writing.
static ALONE: Mutex<()> = Mutex::new(());

impl Person {
    fn new() -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let person = Person { home: tempfile::tempdir().unwrap(), _alone: alone };
        std::fs::write(person.podman(), "#!/bin/sh\necho \"podman was started: $*\"\n").unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(person.podman(), mode).unwrap();
        // A configuration of their own: whatever this machine has installed is out of sight.
        std::fs::write(person.conf(), "[engine]\nhooks_dir = [\"/nowhere\"]\n").unwrap();
        person
    }
    fn podman(&self) -> PathBuf {
        self.home.path().join("podman")
    }
    fn conf(&self) -> PathBuf {
        self.home.path().join("containers.conf")
    }
    fn terok(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_terok"))
            .args(arguments)
            .env_clear()
            .env("HOME", self.home.path())
            .env("TEROK_PODMAN", self.podman())
            .env("CONTAINERS_CONF", self.conf())
            .output()
            .unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn a_dry_run_prints_the_command_and_starts_nothing() {
    let person = Person::new();
    let output = person.terok(&[
        "run",
        "--dry-run",
        "--rm",
        "--allow",
        "api.example.com:443",
        "--project=p 1",
        "debian:12",
        "echo",
        "it's",
    ]);
    let expected = format!(
        "{} run '--annotation=terok.project=p 1' --annotation=terok.shield=up --annotation=terok.shield.allow=api.example.com:443 \
         --network=none --security-opt=no-new-privileges --http-proxy=false --sdnotify=conmon --cap-drop=all --cap-add=CHOWN --cap-add=DAC_OVERRIDE \
         --cap-add=FOWNER --cap-add=FSETID --cap-add=KILL --cap-add=SETGID --cap-add=SETUID --rm -- debian:12 echo 'it'\\''s'\n",
        person.podman().display()
    );
    assert_eq!(text(&output.stdout), expected);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn without_hooks_nothing_is_started() {
    let person = Person::new();
    let output = person.terok(&["run", "debian:12"]);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(
        said.contains("/nowhere") && said.contains("containers.conf") && said.contains("terok setup"),
        "{said}"
    );
    assert!(output.stdout.is_empty());
}

#[test]
fn with_hooks_podman_takes_over() {
    let person = Person::new();
    let hooks = install(&person);
    std::fs::write(person.conf(), format!("[engine]\nhooks_dir = [\"{}\"]\n", hooks.display())).unwrap();
    let output = person.terok(&["run", "debian:12", "true"]);
    assert!(
        text(&output.stdout)
            .starts_with("podman was started: run --annotation=terok.shield=up --network=none"),
        "{output:?}"
    );
}

/// Stand-in binaries and the hook files that name them; returns the hooks directory.
fn install(person: &Person) -> PathBuf {
    let hooks = person.home.path().join("hooks.d");
    std::fs::create_dir(&hooks).unwrap();
    for name in ["terok-hook", "terok-supervisor"] {
        std::fs::copy(person.podman(), person.home.path().join(name)).unwrap();
    }
    for (stage, verb) in [("createRuntime", "create"), ("precreate", "precreate"), ("poststop", "stop")] {
        let path = person.home.path().join("terok-hook");
        let file = serde_json::json!({
            "version": "1.0.0", "hook": {"path": path, "args": ["terok-hook", verb]},
            "when": {"annotations": {"^terok\\.": ".*"}}, "stages": [stage],
        });
        std::fs::write(hooks.join(format!("{verb}.json")), file.to_string()).unwrap();
    }
    hooks
}

#[test]
fn what_is_wrong_is_refused_before_podman_with_a_next_step() {
    let person = Person::new();
    for (line, hint) in [
        (&["run", "--allow", "exa mple..com", "i"][..], "exa"),
        (&["run", "--profile", "dev-pyton", "i"], "dev-python"),
        (&["run", "--shield", "sideways", "i"], "sideways"),
        (&["run", "--annotation", "terok.shield.alow=x", "i"], "terok.shield.allow"),
        (&["run", "--allow", "ntp.example.com:123/udp", "i"], "/udp"),
        (&["run", "--privileged", "i"], "refused"),
        (&["explain", "terok.sheild=up"], "terok.shield"),
        (&["explain", "other=1"], "terok."),
        (&["profile", "show", "nonesuch"], "nonesuch"),
        (&["status", "no-such"], "terok ps"),
        (&["deny", "no-such", "x.example"], "terok ps"),
        (&["audit", "no-such"], "terok ps"),
        (&["block", "../../etc"], "no container"),
        (&["verdict", "no-such", "7", "allow"], "terok ps"),
        (&["profile", "learn", "no-such"], "terok ps"),
        (&["watch", "--ask"], "terok verdict"),
        (&["run", "--network", "host", "i"], "--allow"),
        (&["run", "--network", "bridge", "--cap-add", "NET_RAW", "i"], "--network none"),
        (&["run", "-p", "80", "i"], "HOSTPORT"),
        (&["run", "--hold", "soon", "i"], "30s"),
        (&["run", "--network", "bridge", "--allow", "a.example a.example:1/udp", "i"], "a.example direct"),
        (&["explain", "--network", "host"], "host"),
    ] {
        let output = person.terok(line);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{line:?}: {said}");
        assert!(
            said.starts_with("terok: ") && said.contains(hint) && said.lines().count() == 1,
            "{line:?}: {said}"
        );
    }
}

#[test]
fn usage_errors_exit_with_64() {
    let person = Person::new();
    for line in [
        &[][..],
        &["run"],
        &["run", "--bogus", "i"],
        &["down", "c", "--for", "soon"],
        &["frobnicate"],
        &["allow", "c"],
        &["panic", "--kill", "--clear"],
        &["verdict", "c", "seven", "allow"],
        &["verdict", "c", "7", "maybe"],
        &["verdict", "c", "7", "allow", "--once", "--always"],
        &["setup", "--all-containers", "--no-all-containers"],
    ] {
        assert_eq!(person.terok(line).status.code(), Some(64), "{line:?}");
    }
    assert_eq!(person.terok(&["--help"]).status.code(), Some(0));
}

#[test]
fn an_option_that_run_does_not_know_is_named_in_one_line() {
    let output = Person::new().terok(&["run", "--privilegd", "image"]);
    let said = text(&output.stderr);
    assert_eq!((output.status.code(), said.lines().count()), (Some(64), 1), "{said}");
    assert!(said.contains("--privilegd (did you mean --privileged?) is no option of terok run"), "{said}");
}

#[test]
fn every_question_to_port_53_is_answered_by_our_own_server() {
    let output = Person::new().terok(&["explain", "terok.shield.allow=any", "--ask", "8.8.8.8:53"]);
    assert!(text(&output.stdout).ends_with("terok's own DNS server, as every question to port 53 is\n"));
}

#[test]
fn with_a_card_the_plan_is_another_and_says_that_the_card_is_an_example() {
    let person = Person::new();
    let rules = "terok.shield.allow=ntp.example.com:123/udp";
    let output = person.terok(&["explain", "--network", "bridge", rules, "--ask", "ntp.example.com:123/udp"]);
    let said = text(&output.stdout);
    assert!(said.contains("filtered") && said.contains("the card is an example"), "{said}");
    assert!(said.ends_with("allowed by ntp.example.com:123/udp (annotation)\n"), "{said}");
    let output = person.terok(&["explain", rules]);
    assert_eq!(output.status.code(), Some(1), "a container without a card cannot carry it");
}

#[test]
fn explain_says_what_would_wait_for_a_verdict() {
    let rules =
        ["terok.shield.allow=api.example.com", "terok.shield.hold=30s", "terok.shield.deny=evil.example.net"];
    let asked =
        ["api.example.com:443", "new.example.com:443", "evil.example.net:443", "10.0.0.1:80", "host:8080"];
    let mut words = vec!["explain"];
    words.extend(rules);
    words.extend(asked.iter().flat_map(|target| ["--ask", target]));
    let output = Person::new().terok(&words);
    let said = text(&output.stdout);
    let answer = |target: &str| {
        said.lines().find_map(|line| line.strip_prefix(&format!("{target}: "))).unwrap().to_owned()
    };
    assert!(answer("api.example.com:443").starts_with("allowed"), "{said}");
    assert!(
        answer("new.example.com:443").starts_with("waits 30 seconds for an operator's verdict"),
        "{said}"
    );
    for target in &asked[2..] {
        assert!(answer(target).starts_with("refused"), "{said}");
    }
}

#[test]
fn explain_prints_the_plan_and_answers_questions() {
    let person = Person::new();
    let output = person.terok(&[
        "explain",
        "terok.shield.allow=api.example.com",
        "terok.shield.deny=x.example",
        "--ask",
        "api.example.com:443",
        "--ask",
        "evil.example.net:443",
        "--ask",
        "x.example:80",
    ]);
    let said = text(&output.stdout);
    let answers: Vec<_> = said.lines().rev().take(3).collect();
    assert_eq!(
        answers,
        [
            "x.example:80: refused: denied by x.example:* (annotation)",
            "evil.example.net:443: refused: unlisted",
            "api.example.com:443: allowed by api.example.com (annotation)",
        ]
    );
    let output = person.terok(&["explain", "--json", "terok.shield=down", "--ask", "x.example:80"]);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["verdicts"][0]["answer"]["verdict"], "down");
    assert_eq!(value["policy"]["shield"], "down");
}

#[test]
fn a_persons_own_profile_is_listed_shown_and_checked() {
    let person = Person::new();
    let folder = person.home.path().join(".config/terok/profiles");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(
        folder.join("mine.txt"),
        "# mine: our own server.\ngit.example.com:443+22\ninclude base\n",
    )
    .unwrap();
    std::fs::write(folder.join("bad.txt"), "# bad\n\nexample.com:99999\n").unwrap();
    let list = text(&person.terok(&["profile", "list"]).stdout);
    assert!(
        list.contains("mine") && list.contains("our own server.") && list.contains("dev-python"),
        "{list}"
    );
    let show = text(&person.terok(&["profile", "show", "mine"]).stdout);
    assert!(show.contains("git.example.com:22+443"), "{show}");
    let check = |name: &str| person.terok(&["profile", "check", folder.join(name).to_str().unwrap()]);
    assert_eq!(check("mine.txt").status.code(), Some(0));
    let output = check("bad.txt");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("line 3"), "{output:?}");
}

#[test]
fn setup_below_a_destdir_is_whole_and_idempotent() {
    let person = Person::new();
    let folder = person.home.path().join("build");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_terok"), folder.join("terok")).unwrap();
    let destdir = person.home.path().join("package");
    let setup = |verb: &str| {
        Command::new(folder.join("terok"))
            .args([verb, "--system", "--destdir"])
            .arg(&destdir)
            .env("HOME", person.home.path())
            .output()
            .unwrap()
    };
    let output = setup("setup");
    assert!(text(&output.stderr).contains("terok-supervisor: missing"), "{output:?}");
    assert!(!destdir.exists(), "a setup that cannot be finished is not begun");
    for name in ["terok-hook", "terok-supervisor", "terok-shim"] {
        std::fs::copy(person.podman(), folder.join(name)).unwrap();
    }
    assert_eq!(setup("setup").status.code(), Some(0));
    let expected = [
        "etc/containers/containers.conf.d/50-terok.conf",
        "usr/libexec/terok/terok-hook",
        "usr/libexec/terok/terok-shim",
        "usr/libexec/terok/terok-shim-crun",
        "usr/libexec/terok/terok-shim-runc",
        "usr/libexec/terok/terok-shim-youki",
        "usr/libexec/terok/terok-supervisor",
        "usr/local/bin/terok",
        "usr/share/terok/hooks.d/50-terok-create.json",
        "usr/share/terok/hooks.d/50-terok-precreate.json",
        "usr/share/terok/hooks.d/50-terok-stop.json",
    ];
    assert_eq!(files(&destdir), expected.map(PathBuf::from));
    assert_eq!(text(&setup("setup").stdout), "already set up\n");
    let all = Command::new(folder.join("terok"))
        .args(["setup", "--system", "--all-containers", "--destdir"])
        .arg(&destdir)
        .env("HOME", person.home.path())
        .output()
        .unwrap();
    assert_eq!(
        text(&all.stdout).lines().count(),
        5,
        "three hook files and the settings of hooks and shim: {all:?}"
    );
    assert!(files(&destdir).contains(&PathBuf::from("etc/terok/config.toml")));
    assert_eq!(text(&setup("setup").stdout), "already set up\n", "a plain setup keeps it");
    assert_eq!(setup("uninstall").status.code(), Some(0));
    assert_eq!(files(&destdir), Vec::<PathBuf>::new());
    assert_eq!(text(&setup("uninstall").stdout), "nothing is installed here\n");
}

#[test]
fn one_engine_is_made_to_forget_terok_and_all_else_stays() {
    let person = Person::new();
    let folder = person.home.path().join("build");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_terok"), folder.join("terok")).unwrap();
    for name in ["terok-hook", "terok-shim", "terok-supervisor"] {
        std::fs::copy(person.podman(), folder.join(name)).unwrap();
    }
    let destdir = person.home.path().join("package");
    let terok = |words: &[&str]| {
        let mut command = Command::new(folder.join("terok"));
        command.args(words).args(["--system", "--destdir"]).arg(&destdir).env("HOME", person.home.path());
        command.output().unwrap()
    };
    assert_eq!(terok(&["setup", "--engine", "docker"]).status.code(), Some(0));
    let with_one = files(&destdir);
    assert_eq!(terok(&["setup", "--engine", "podman"]).status.code(), Some(0));
    let with_two = files(&destdir);
    assert_eq!(with_two.len(), with_one.len() + 1);
    let away = terok(&["uninstall", "--engine", "podman"]);
    assert!(
        text(&away.stdout).contains("podman: containers that were made with the runtime terok"),
        "{away:?}"
    );
    assert_eq!(files(&destdir), with_one);
    assert!(with_one.contains(&PathBuf::from("etc/docker/daemon.json")));
    let again = terok(&["uninstall", "--engine", "podman"]);
    assert_eq!(text(&again.stdout), "no engine was told of terok here\n");
    assert_eq!(terok(&["uninstall", "--engine", "podman", "--purge"]).status.code(), Some(64));
}

/// The files below `root`, sorted, relative to it.
fn files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(root).unwrap().to_path_buf());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_reader_that_went_away_ends_the_program_quietly() {
    let person = Person::new();
    for line in [&["profile", "show", "dev-standard"][..], &["profile", "list", "--json"], &["explain"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Command::new(env!("CARGO_BIN_EXE_terok"))
            .args(line)
            .env("HOME", person.home.path())
            .env("CONTAINERS_CONF", person.conf())
            .stdout(writer)
            .output()
            .unwrap();
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()), "{line:?}");
    }
}

/// A configuration as Podman 4.3 wrote it, with these annotations.
fn bundle(person: &Person, name: &str, annotations: &[(&str, &str)]) -> String {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hooks/tests/fixtures");
    let captured = std::fs::read(fixture.join(format!("{name}.config.json"))).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&captured).unwrap();
    let all = config["annotations"].as_object_mut().unwrap();
    all.retain(|key, _| !key.starts_with("terok."));
    all.extend(annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).into())));
    let path = person.home.path().join("config.json");
    std::fs::write(&path, config.to_string()).unwrap();
    path.display().to_string()
}

#[test]
fn explain_shows_what_becomes_of_a_configuration_and_leaves_the_file_alone() {
    let person = Person::new();
    let keys = [("terok.vault", "anthropic github"), ("terok.restricted", "true")];
    let file = bundle(&person, "podman-4.3.1-rootless", &keys);
    let before = std::fs::read(&file).unwrap();
    let output = person.terok(&["explain", "--config", &file, "--ask", "api.anthropic.com:443"]);
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    for line in [
        "restricted  yes",
        "network     sealed",
        "+ /annotations/io.terok.amended  restricted",
        "+ /process/env  ANTHROPIC_API_KEY=<token for anthropic>",
        "- /process/capabilities/bounding  CAP_",
        "+ /process/noNewPrivileges  true",
        "/.birth/<id>/inside (rbind,rprivate,ro,nosuid,nodev,noexec)",
        "+ /hooks/createRuntime  ",
        "base64 of x-access-token:token for github",
        "in some forms only: clone socket socketpair",
        "sockets that pass: AF_UNIX",
        "+ /linux/maskedPaths  /proc/interrupts",
        "api.anthropic.com:443: ",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert_eq!(std::fs::read(&file).unwrap(), before);
    assert_eq!(std::fs::read_dir(person.home.path()).unwrap().count(), 3, "something was made");
}

#[test]
fn a_configuration_is_explained_with_more_annotations_and_from_standard_input() {
    let person = Person::new();
    let file = bundle(&person, "podman-4.3.1-rootless", &[("terok.shield", "up")]);
    let output = person.terok(&["explain", "--config", &file, "terok.shield=block"]);
    assert!(text(&output.stdout).starts_with("shield      block\n"), "{}", text(&output.stdout));
    let shell = format!("{} explain --config - <{file}", env!("CARGO_BIN_EXE_terok"));
    let output = Command::new("sh").args(["-c", &shell]).env("HOME", person.home.path()).output().unwrap();
    assert!(text(&output.stdout).contains("config      standard input\n"), "{}", text(&output.stderr));
}

/// The patch is what makes the amended configuration, which terok then has nothing to add to.
#[test]
fn the_patch_of_explain_applied_gives_a_configuration_that_is_amended_already() {
    let person = Person::new();
    let file = bundle(&person, "podman-4.3.1-rootless", &[("terok.vault", "anthropic")]);
    let explained = |file: &str| -> serde_json::Value {
        serde_json::from_slice(&person.terok(&["explain", "--json", "--config", file]).stdout).unwrap()
    };
    let first = explained(&file);
    assert_eq!((&first["config"]["amended"], &first["config"]["network"]), (&false.into(), &"own".into()));
    assert_eq!(first["policy"]["vault"][0]["provider"]["name"], "anthropic");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let patch: json_patch::Patch = serde_json::from_value(first["config"]["patch"].clone()).unwrap();
    json_patch::patch(&mut config, &patch).unwrap();
    std::fs::write(&file, config.to_string()).unwrap();
    let again = explained(&file);
    assert_eq!(
        (&again["config"]["amended"], &again["config"]["patch"]),
        (&true.into(), &serde_json::json!([]))
    );
    let said = text(&person.terok(&["explain", "--config", &file]).stdout);
    assert!(
        said.contains("config.json, amended already\n") && said.ends_with("changes     none\n"),
        "{said}"
    );
}

#[test]
fn explain_says_what_would_refuse_a_configuration() {
    let person = Person::new();
    let up = [("terok.shield", "up")];
    for (name, keys, hint) in [
        ("podman-4.3.1-rootful-host", &up[..], "host's network namespace"),
        ("podman-4.3.1-rootless-privileged", &up, "--privileged"),
        ("podman-4.3.1-rootless", &[("terok.sheild", "up")], "terok.shield"),
        ("podman-4.3.1-rootless", &[("terok.shield", "up"), ("run.oci.handler", "krun")], "run.oci.handler"),
    ] {
        let file = bundle(&person, name, keys);
        for form in [&["explain", "--config", &file][..], &["explain", "--json", "--config", &file]] {
            let output = person.terok(form);
            let said = text(&output.stderr);
            assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
            assert!(said.starts_with("terok: ") && said.contains(hint), "{said}");
        }
    }
}

#[test]
fn a_configuration_that_is_none_of_teroks_is_left_alone_and_a_broken_one_is_one_clear_line() {
    let person = Person::new();
    let file = bundle(&person, "podman-4.3.1-rootless", &[]);
    let output = person.terok(&["explain", "--config", &file]);
    assert!(output.status.success() && text(&output.stdout).contains("it is not protected"));
    for (content, hint) in
        [("{", "is not JSON"), ("[]", "object"), (r#"{"annotations":{"a":1}}"#, "not text")]
    {
        std::fs::write(&file, content).unwrap();
        let output = person.terok(&["explain", "--config", &file, "terok.shield=up"]);
        let said = text(&output.stderr);
        assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
        assert!(said.contains(&file) && said.contains(hint), "{said}");
    }
    std::fs::remove_file(&file).unwrap();
    assert!(text(&person.terok(&["explain", "--config", &file]).stderr).contains("No such file"));
    let both = person.terok(&["explain", "--config", &file, "--network", "bridge"]);
    assert_eq!(both.status.code(), Some(64));
}
