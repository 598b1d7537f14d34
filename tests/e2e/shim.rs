//! The shim in place of the hooks directory, and beside it: containers whose engine calls `terok-shim` for its runtime.

use serde_json::Value;
use std::path::Path;
use terok_policy::layout;
use terok_tests::{Container, Lab, Mode, Net, Recipe, bad_addresses, install, seen_at, site};

/// Where the system-wide installation has its programs.
pub(crate) const FOLDER: &str = "/usr/libexec/terok";

/// Puts the shim beside the installed programs, before crun: runc cannot do without control groups, which the lab's Podman has none of.
pub(crate) fn put_shim() -> String {
    // Where a test before this one failed, they may be away.
    hook_files(true);
    let shim = Path::new(FOLDER).join(layout::SHIM).display().to_string();
    Mode::Rootful
        .run("install", &["-m", "755", &format!("/run/lab/bin/{}", layout::SHIM), &shim])
        .succeeded();
    Mode::Rootful.run("mkdir", &["-p", "/etc/terok"]).succeeded();
    std::fs::write(layout::SHIM_SYSTEM, "runtime = \"/usr/bin/crun\"\n").expect("shim.toml");
    shim
}

pub(crate) fn take_shim() {
    Mode::Rootful.run("rm", &["-f", layout::SHIM_SYSTEM, &format!("{FOLDER}/{}", layout::SHIM)]).succeeded();
}

/// Takes away, or puts back, what makes Podman read our hook files.
pub(crate) fn hook_files(there: bool) {
    if Path::new("/etc/containers/containers.conf.d/50-terok.conf").exists() == there {
        return;
    }
    let files = ["/run/drop-in.away", "/etc/containers/containers.conf.d/50-terok.conf"];
    let [from, to] = if there { files } else { [files[1], files[0]] };
    Mode::Rootful.run("mv", &[from, to]).succeeded();
}

#[track_caller]
pub(crate) fn is_protected(container: &Container, allowed: &str) {
    let (v4, _) = bad_addresses();
    let lines = container.probe(&[
        &format!("http {allowed} 80 {allowed} /shim"),
        &format!("tcp {v4} 80"),
        "socket 40 1 0",
    ]);
    assert_eq!(lines[0]["answers"][0]["status"], 200, "{lines:?}");
    assert_eq!(lines[1]["errno"], 111, "{lines:?}");
    assert_eq!(lines[2]["errno"], 1, "{lines:?}");
    assert!(seen_at(v4).is_empty());
}

pub(crate) fn through(shim: &str, recipe: Recipe) -> Recipe {
    recipe.option(&format!("--runtime={shim}"))
}

/// `config.json` as the runtime got it.
pub(crate) fn config(container: &Container) -> Value {
    let bundle = container.podman(&["inspect", "--format={{.OCIConfigPath}}"]).succeeded();
    serde_json::from_str(&std::fs::read_to_string(bundle.trim()).expect("config.json")).expect("JSON")
}

fn our_hooks(config: &Value, stage: &str) -> usize {
    let hooks = config["hooks"][stage].as_array().into_iter().flatten();
    hooks.filter(|hook| hook["path"].as_str().is_some_and(|path| path.ends_with(layout::HOOK))).count()
}

#[test]
fn without_hook_files_the_shim_protects_and_again_after_stop_and_start() {
    let Some(_lab) = Lab::alone() else { return };
    let shim = put_shim();
    hook_files(false);
    let nets = [Net::Sealed, Net::SealedRootful].into_iter().chain(Net::cards());
    for (net, mode) in nets.map(|net| (net, net.mode())) {
        let site = site();
        let container = through(&shim, Recipe::on(net, &site.name)).idle();
        is_protected(&container, &site.name);
        assert_eq!(our_hooks(&config(&container), "createRuntime"), 1);
        // Podman remembers the runtime.
        for verb in [&["stop", "--time=0"][..], &["restart", "--time=0"], &["kill"]] {
            container.podman(verb).succeeded();
            if verb[0] != "restart" {
                container.is_left_alone();
                container.podman(&["start"]).succeeded();
            }
            is_protected(&container, &site.name);
        }
        let (_gone, ended) = through(&shim, Recipe::bare(mode).annotate("sheild", "up")).run(&["true"]);
        let said = ended.failed();
        assert!(said.contains("terok.sheild") && said.contains("terok.shield"), "{said}");
        through(&shim, Recipe::bare(mode)).run(&["true"]).1.succeeded();
    }
    hook_files(true);
    take_shim();
    install();
}

#[test]
fn with_hook_files_and_shim_everything_happens_once() {
    let Some(_lab) = Lab::alone() else { return };
    let shim = put_shim();
    for mode in [Mode::Rootless, Mode::Rootful] {
        let site = site();
        let container =
            through(&shim, Recipe::sealed(mode, &site.name).annotate("vault", "anthropic")).idle();
        is_protected(&container, &site.name);
        let config = config(&container);
        for stage in ["createRuntime", "poststop"] {
            assert_eq!(our_hooks(&config, stage), 1, "{stage}");
        }
        let env = config["process"]["env"].as_array().expect("env");
        let tokens = env
            .iter()
            .filter(|line| line.as_str().is_some_and(|line| line.starts_with("ANTHROPIC_API_KEY=")));
        assert_eq!(tokens.count(), 1);
        // `podman exec` gives a further process what the engine has stored; the shim gives it the rest.
        let without = Recipe::sealed(mode, &site.name).annotate("vault", "anthropic").idle();
        let bare = mode.podman(&["exec", &without.name, "cat", "/proc/self/environ"]).succeeded();
        assert!(!bare.contains("ANTHROPIC_API_KEY="), "{bare}");
        let first = mode.podman(&["exec", &container.name, "cat", "/proc/1/environ"]).succeeded();
        let further = mode.podman(&["exec", &container.name, "cat", "/proc/self/environ"]).succeeded();
        let token = |environ: &str| {
            environ.split('\0').find(|line| line.starts_with("ANTHROPIC_API_KEY=")).map(str::to_owned)
        };
        assert!(token(&first).is_some() && token(&first) == token(&further), "{further:?}");
    }
    take_shim();
    install();
}

#[test]
fn a_restricted_container_and_what_is_started_in_it_have_no_privileges() {
    let Some(_lab) = Lab::alone() else { return };
    let shim = put_shim();
    for mode in [Mode::Rootless, Mode::Rootful] {
        let container = through(&shim, Recipe::sealed(mode, "").annotate("restricted", "true")).idle();
        for (process, options) in [("1", &[][..]), ("self", &[]), ("self", &["--privileged"])] {
            let status = format!("/proc/{process}/status");
            let line = [&["exec"], options, &[&container.name, "cat", &status]].concat();
            let status = mode.podman(&line).succeeded();
            for line in
                ["NoNewPrivs:\t1", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "Seccomp:\t2"]
            {
                assert!(status.contains(line), "{process} {line}: {status}");
            }
        }
        let lines = container.probe(&["io_uring"]);
        assert_eq!(lines[0]["errno"], 1, "{lines:?}");
        // With the hooks alone a further process has the rights that the engine gives it, under the same filter.
        let without = Recipe::sealed(mode, "").annotate("restricted", "true").idle();
        let status = mode.podman(&["exec", &without.name, "cat", "/proc/self/status"]).succeeded();
        assert!(status.contains("NoNewPrivs:\t0") && status.contains("Seccomp:\t2"), "{status}");
    }
    take_shim();
    install();
}

/// What a container is refused at its start, no further process of it gets: with a card it could undo the rules.
#[test]
fn a_further_process_beside_a_card_gets_no_privileges_and_one_without_a_card_does() {
    let Some(_lab) = Lab::alone() else { return };
    let shim = put_shim();
    for net in [Net::Slirp, Net::RootfulBridge, Net::Sealed] {
        let site = site();
        let container = through(&shim, Recipe::on(net, &site.name)).idle();
        let ended = net.mode().podman(&["exec", "--privileged", &container.name, "true"]);
        match net.is_sealed() {
            true => drop(ended.succeeded()),
            false => {
                let said = ended.failed();
                assert!(said.contains("CAP_NET_ADMIN") && said.contains("--privileged"), "{said}");
            }
        }
        // By the runtime's own line, without an engine: this one can do without a bundle's control groups.
        if net == Net::RootfulBridge {
            let line = |more: &str| {
                call(&shim, &format!("--cgroup-manager=disabled exec {more} {} true", container.id))
            };
            assert_eq!(line("--cap CAP_CHOWN").0, 0, "{:?}", line("--cap CAP_CHOWN"));
            for capability in ["CAP_NET_RAW", "net_admin"] {
                let (code, [_, said]) = line(&format!("--cap {capability}"));
                assert!(code == 1 && said.contains(&format!("without --cap {capability}")), "{code} {said}");
            }
        }
        is_protected(&container, &site.name);
    }
    take_shim();
    install();
}

/// A bundle with the probe as its only program.
pub(crate) const BUNDLE: &str = r#"set -e; rm -rf /run/bundle; mkdir -p /run/bundle/rootfs/proc /run/bundle/rootfs/dev /run/bundle/rootfs/sys; cd /run/bundle
cp /run/lab/bin/terok-probe rootfs/probe; crun spec
python3 - <<'P'
import json
c = json.load(open('config.json'))
c['process'].update(terminal=False, args=['/probe', 'sleep'])
json.dump(c, open('config.json', 'w'))
json.dump({**c['process'], 'args': ['/probe', 'socket 2 1 0']}, open('process.json', 'w'))
P"#;

/// One life of a container, and lines that no runtime takes.
const LINES: [&str; 23] = [
    "--version",
    "features",
    "--help",
    "create --help",
    "state nobody",
    "GLOBAL create --bundle /run/bundle --pid-file /run/bundle/pid side",
    "GLOBAL create --bundle /run/bundle side",
    "GLOBAL state side",
    "GLOBAL start side",
    "GLOBAL list -q",
    "GLOBAL exec --process /run/bundle/process.json side",
    "GLOBAL exec side /probe socket",
    "GLOBAL ps side",
    "GLOBAL pause side",
    "GLOBAL resume side",
    "GLOBAL events --stats side",
    "GLOBAL kill side KILL",
    "GLOBAL delete --force side",
    "GLOBAL create --bundle /nowhere side",
    "GLOBAL create --bundle=/run/bundle",
    "GLOBAL run --tomorrow --bundle /run/bundle side",
    "--tomorrow create --bundle /run/bundle side",
    "tomorrow",
];

/// The runtimes that this machine has, by their absolute path, with the options that the lab's control groups want.
pub(crate) fn runtimes() -> [(String, &'static str); 2] {
    [("crun", "--cgroup-manager=disabled"), ("runc", "--debug=false")].map(|(runtime, options)| {
        (Mode::Rootful.run("which", &[runtime]).succeeded().trim().to_owned(), options)
    })
}

/// Where the shim looks for youki, among other places.
pub(crate) const YOUKI: &str = "/usr/local/bin/youki";

/// youki, which Debian does not have, in its place for as long as a test needs it (tests/README.md).
pub(crate) struct Youki(());

impl Youki {
    pub(crate) fn installed() -> Option<Self> {
        let built = "/run/lab/home/bin/youki";
        if !Path::new(built).exists() {
            terok_need::missing("youki", "it is not built: tests/README.md has the command");
            return None;
        }
        Mode::Rootful.run("install", &["-m", "755", built, YOUKI]).succeeded();
        Some(Youki(()))
    }
}

impl Drop for Youki {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(YOUKI);
    }
}

pub(crate) fn stand_before(runtime: &str) {
    std::fs::write(layout::SHIM_SYSTEM, format!("runtime = {runtime:?}\n")).expect("shim.toml");
}

/// Calls an OCI runtime, whose container keeps the descriptors it was created with.
pub(crate) fn call(program: &str, line: &str) -> (i32, [String; 2]) {
    let script = format!("exec {program} {line} >/run/out 2>/run/err");
    let ended = Mode::Rootful.run("timeout", &["20", "bash", "-c", &script]);
    (ended.code, ["/run/out", "/run/err"].map(|file| std::fs::read_to_string(file).unwrap_or_default()))
}

fn without_numbers(text: &str) -> String {
    let text = text.replace(|c: char| c.is_ascii_digit(), "");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn answers_as_alone(all: &[(String, &str)]) {
    let shim = put_shim();
    Mode::Rootful.run("bash", &["-c", BUNDLE]).succeeded();
    for (runtime, options) in all {
        stand_before(runtime);
        // Times and pids differ from call to call, and how wide they stand in a table.
        let answers = |program: &str| {
            // youki tells its features in another order each time.
            let lines = LINES.iter().filter(|line| runtime != YOUKI || **line != "features");
            lines
                .map(|line| {
                    let (code, said) = call(program, &line.replace("GLOBAL", options));
                    (line, code, said.map(|text| without_numbers(&text)))
                })
                .collect::<Vec<_>>()
        };
        let (alone, through) = (answers(runtime), answers(&shim));
        for (alone, through) in alone.iter().zip(&through) {
            assert_eq!(alone, through, "{runtime}");
        }
        let lived = alone.iter().filter(|(line, code, _)| line.starts_with("GLOBAL") && *code == 0).count();
        assert!(lived >= 7, "the container of {runtime} did not live: {alone:?}");
    }
    take_shim();
    install();
}

#[test]
fn every_line_is_answered_as_the_runtime_alone_answers_it() {
    let Some(_lab) = Lab::alone() else { return };
    answers_as_alone(&runtimes());
}

#[test]
fn every_line_is_answered_as_youki_alone_answers_it() {
    let Some(_lab) = Lab::alone() else { return };
    let Some(_youki) = Youki::installed() else { return };
    answers_as_alone(&[(YOUKI.to_owned(), "--log-level=error")]);
}

/// No engine at all: the configuration is the runtime's own `spec` with two annotations.
#[test]
fn a_bare_bundle_is_protected_on_each_runtime() {
    let Some(_lab) = Lab::alone() else { return };
    protects_a_bare_bundle(&runtimes());
}

/// youki 0.7 takes mask and value of a masked comparison for each other (no socket could be made), and nothing of `linux` for `exec`.
#[test]
fn youki_gets_containers_that_are_not_protected_and_no_other() {
    let Some(_lab) = Lab::alone() else { return };
    let Some(_youki) = Youki::installed() else { return };
    hook_files(false);
    let shim = format!("{FOLDER}/{}-youki", layout::SHIM);
    let plain = |recipe: Recipe| through(&shim, recipe.option("--cgroups=enabled"));
    let container = plain(Recipe::unprotected(Net::Slirp)).idle();
    let site = site();
    assert_eq!(
        container.try_step(&format!("http {0} 80 {0} /youki", site.name))["answers"][0]["status"],
        200
    );
    for verb in [&["stop", "--time=0"][..], &["start"]] {
        container.podman(verb).succeeded();
    }
    container.exec(&["true"]).succeeded();
    let (_gone, ended) = plain(Recipe::on(Net::Slirp, &site.name)).run(&["true"]);
    let said = ended.failed();
    assert!(said.contains("youki 0.7") && said.contains("take crun or runc"), "{said}");
    hook_files(true);
    install();
}

#[track_caller]
fn protects_a_bare_bundle(all: &[(String, &str)]) {
    let shim = put_shim();
    for (runtime, options) in all {
        stand_before(runtime);
        Mode::Rootful.run("bash", &["-c", BUNDLE]).succeeded();
        let (site, (v4, _)) = (site(), bad_addresses());
        let path = "/run/bundle/config.json";
        let mut config: Value =
            serde_json::from_str(&std::fs::read_to_string(path).expect(path)).expect(path);
        // Nobody can tell whose word that is: an image's, where an engine that nobody knows made the bundle.
        for (key, value) in [("terok.shield", "down"), ("terok.vault", "anthropic")] {
            config["annotations"] = serde_json::json!({ key: value });
            std::fs::write(path, config.to_string()).expect(path);
            let (code, [_, said]) =
                call(&shim, &format!("{options} create --bundle /run/bundle grant{}", site.number));
            assert!(code == 1 && said.contains("cannot tell whether the image set"), "{key}: {code} {said}");
        }
        config["annotations"] = serde_json::json!({ "terok.shield.allow": site.name, "terok.restricted": "true", "terok.name": "bare" });
        std::fs::write(path, config.to_string()).expect(path);
        let id = format!("bare{}", site.number);
        let well = |line: &str| {
            let (code, [out, err]) = call(&shim, &format!("{options} {line}"));
            assert_eq!(code, 0, "{runtime} {line}: {err}");
            out
        };
        well(&format!("create --bundle /run/bundle {id}"));
        well(&format!("start {id}"));
        let steps =
            [format!("http {0} 80 {0} /bare", site.name), format!("tcp {v4} 80"), "socket 40 1 0".to_owned()];
        let lines: Vec<Value> = steps
            .iter()
            .map(|step| serde_json::from_str(&well(&format!("exec {id} /probe '{step}'"))).expect("JSON"))
            .collect();
        assert_eq!(lines[0]["answers"][0]["status"], 200, "{lines:?}");
        assert_eq!((&lines[1]["errno"], &lines[2]["errno"]), (&111.into(), &1.into()), "{lines:?}");
        assert!(seen_at(v4).is_empty());
        // The configuration says restricted; its own line does not give back what that took.
        let (code, [_, said]) =
            call(&shim, &format!("{options} exec --cap CAP_CHOWN {id} /probe 'socket 2 1 0'"));
        assert!(code == 1 && said.contains("is restricted"), "{code} {said}");
        well(&format!("delete --force {id}"));
    }
    take_shim();
    install();
}
