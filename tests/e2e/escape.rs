//! Ways in which containers have reached what runs for them on the host: the environment, descriptors, `/proc/PID/exe`, links in the image
//! (A25-A27; CVE-2019-5736, 2024-21626, 2025-31133, 2025-52565, 2025-52881). What the runtime does about them is its own matter: these
//! show that terok's programs, which stand before, behind and beside it, open no further one.

use crate::shim::{FOLDER, hook_files, is_protected, put_shim, take_shim, through};
use std::collections::BTreeSet;
use std::path::Path;
use terok_policy::layout;
use terok_tests::{Lab, Mode, Net, Recipe, Service, eventually, install, site};

/// Four programs that a container's start goes through, where they are installed.
fn programs() -> [String; 4] {
    let launcher = Mode::Rootful.run("which", &["terok"]).succeeded();
    let [hook, supervisor, shim] =
        [layout::HOOK, layout::SUPERVISOR, layout::SHIM].map(|name| format!("{FOLDER}/{name}"));
    [hook, supervisor, shim, launcher.trim().to_owned()]
}

/// An image of busybox with the variables `env` and what `script` makes in its root folder.
fn image(mode: Mode, env: &[&str], script: &str) -> String {
    let image = format!("localhost/hostile-{}", site().number);
    let changes: String = env.iter().map(|line| format!(" --change 'ENV {line}'")).collect();
    let make = format!(
        "set -e; d=$(mktemp -d); cd $d; tar xf /run/lab/home/bb.tar; {script}
         tar --numeric-owner -c . | podman import -q{changes} - {image}; cd /; rm -rf $d"
    );
    mode.run("bash", &["-c", &make]).succeeded();
    image
}

/// The library of `lab/marks.c`, on the host at the same path as in the image; /run/evil/marks has the marks that it leaves.
const LIBRARY: &str = r#"set -e; rm -rf /run/evil; mkdir -p -m 1777 /run/evil /run/evil/marks
cp /run/lab/home/marks.so /run/evil/evil.so
cp /run/evil/evil.so /run/evil/UTF-7.so
printf 'module UTF-7// INTERNAL evil 1\n' > /run/evil/gconv-modules
chmod 1777 /run/evil/marks"#;

/// What an image's author would have the host's programs load.
const HOSTILE: [&str; 7] = [
    "LD_PRELOAD=/run/evil/evil.so",
    "LD_LIBRARY_PATH=/run/evil",
    "LD_AUDIT=/run/evil/evil.so",
    "GCONV_PATH=/run/evil",
    "GLIBC_TUNABLES=glibc.malloc.mxfast=0x2000:glibc.malloc.mxfast=0x2000",
    "LOCPATH=/run/evil",
    "PATH=/run/evil",
];

/// The programs that loaded it, and forgets them.
fn loaded() -> Vec<String> {
    let marks = Path::new("/run/evil/marks");
    let all = std::fs::read_dir(marks).expect("made above").map(|entry| {
        let path = entry.expect("an entry").path();
        let by = std::fs::read_to_string(&path).unwrap_or_default().trim_end_matches('\0').to_owned();
        std::fs::remove_file(path).expect("root may");
        by
    });
    all.collect()
}

#[test]
fn a_library_that_the_image_names_is_loaded_by_none_of_the_programs() {
    let Some(_lab) = Lab::alone() else { return };
    let shim = put_shim();
    Mode::Rootful.run("bash", &["-c", LIBRARY]).succeeded();
    let hostile = |program: &str, words: &[&str]| {
        Mode::Rootful.run("env", &[&HOSTILE[..], &[program], words].concat());
        loaded()
    };
    // It is loaded where the loader is asked; by none of ours, which have none.
    assert!(
        !hostile("/bin/cat", &["/dev/null"]).is_empty(),
        "the library leaves no mark: this shows nothing"
    );
    for program in programs() {
        for words in [&["--version"][..], &["create"], &["precreate"], &["stop"], &["state", "nobody"]] {
            let mut by = hostile(&program, words);
            // The shim becomes the runtime, which has a loader.
            by.retain(|by| by.contains("terok") || !program.ends_with(layout::SHIM));
            assert_eq!(by, [""; 0], "{program} {words:?}");
        }
        let trace = format!("/run/evil/trace-{}", program.rsplit('/').next().unwrap_or_default());
        Mode::Rootful.run(
            "env",
            &[
                &["strace", "-f", "-e", "trace=file", "-o", &trace, "env"],
                &HOSTILE[..],
                &[&program, "--version"],
            ]
            .concat(),
        );
        loaded();
        let trace = std::fs::read_to_string(&trace).expect("strace wrote it");
        let (_, own) = trace
            .split_once(&format!("execve(\"{program}\""))
            .unwrap_or_else(|| panic!("{program} did not run: {trace}"));
        let own = own.split_once('\n').map_or("", |(_, own)| own);
        let own = own.split("execve(").next().unwrap_or_default();
        assert!(!own.contains("/run/evil"), "{program} looks there: {own}");
    }
    for mode in [Mode::Rootless, Mode::Rootful] {
        // At the same path in the image, for whoever is in its root.
        let image = image(
            mode,
            &HOSTILE[..6],
            "mkdir -p run/evil; cp /run/evil/*.so /run/evil/gconv-modules run/evil/",
        );
        let site = site();
        for with_shim in [false, true] {
            let recipe = Recipe::sealed(mode, &site.name).image(&image);
            let recipe = if with_shim { through(&shim, recipe) } else { recipe };
            let container = recipe.idle();
            is_protected(&container, &site.name);
            let (parent, worker) = container.served_by();
            for pid in [parent, worker] {
                let environment = std::fs::read(format!("/proc/{pid}/environ")).expect("it runs");
                assert_eq!(environment, b"", "the supervisor has an environment");
            }
            container.podman(&["stop", "--time=0"]).succeeded();
            container.is_left_alone();
            let all = loaded();
            assert!(all.iter().all(|by| !by.contains("terok")), "{all:?}");
        }
    }
    take_shim();
    install();
}

/// What of the host a container's programs hold open: nothing that the engine did not give.
const DESCRIPTORS: &str =
    "for p in 1 self; do for f in /proc/$p/fd/*; do echo \"$p ${f##*/} $(readlink $f)\"; done; done";

#[test]
fn no_descriptor_of_the_host_is_in_the_container_or_its_supervisor() {
    let Some(_lab) = Lab::alone() else { return };
    let shim = put_shim();
    hook_files(false);
    for mode in [Mode::Rootless, Mode::Rootful] {
        let service = Service::new(mode);
        let ours = through(&shim, service.recipe(Net::sealed(mode))).idle();
        let held = mode.podman(&["exec", &ours.name, "sh", "-c", DESCRIPTORS]).succeeded();
        for line in held.lines() {
            let (number, to) =
                line.split_once(' ').and_then(|(_, rest)| rest.split_once(' ')).expect("three words");
            let is_plain = to.is_empty()
                || ["pipe:", "/dev/", "socket:", "/proc/"].iter().any(|known| to.starts_with(known));
            assert!(is_plain && number.parse::<u32>().is_ok_and(|number| number < 4), "{held}");
        }
        // The supervisor has folders of its own only: none of the container, of the engine, no root.
        let (parent, worker) = ours.served_by();
        for pid in [parent, worker] {
            let own = [mode.state(&ours.id), mode.runtime(&ours.id)]
                .map(|path| path.parent().expect("below a base").display().to_string());
            for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs") {
                let path = entry.expect("an entry").path();
                let (Ok(to), Ok(meta)) = (std::fs::read_link(&path), path.metadata()) else { continue };
                let to = to.display().to_string();
                let is_own = own.iter().any(|own| to.starts_with(own.as_str())) || to.contains("terok");
                assert!(!meta.is_dir() || is_own, "{pid} has {to} open");
            }
        }
        // CVE-2024-21626: a working folder that is a descriptor of the runtime's. The host's root would show the lab.
        for number in 3..24 {
            let (_gone, ended) = through(&shim, Recipe::sealed(mode, "").option(&format!("--workdir=/proc/self/fd/{number}")))
                .run(&["sh", "-c", "ls -d ../run/lab ../../run/lab ../../../run/lab ../../../../../../run/lab run/lab 2>/dev/null; true"]);
            assert_eq!(ended.stdout, "", "descriptor {number} leads to the host");
        }
    }
    hook_files(true);
    take_shim();
    install();
}

/// CVE-2019-5736: looks at every process of the container, all the time, for a program of the host's, and tries to write to it.
const LURK: &str = r#"echo lurking; while :; do for p in /proc/[0-9]*; do
  e=$(readlink $p/exe 2>/dev/null) || continue
  case $e in *terok-[hs]*|*/terok) echo "saw $e"; (echo evil > $p/exe) 2>/dev/null && echo "wrote $e";; */other/busybox) echo other;; esac
done; done"#;

#[test]
fn our_programs_are_seen_and_written_by_nobody_inside() {
    let Some(_lab) = Lab::alone() else { return };
    let shim = put_shim();
    let sums = || Mode::Rootful.run("sha256sum", &programs().each_ref().map(String::as_str)).succeeded();
    let before = sums();
    for mode in [Mode::Rootless, Mode::Rootful] {
        // Its shell is a link to whatever runs, so that `exec sh` would start the runtime, or the shim, anew inside.
        let image = image(
            mode,
            &[],
            "mkdir bin/other; cp bin/busybox bin/other; printf '#!/proc/self/exe\\n' > bin/again; chmod 755 bin/again",
        );
        for net in [Net::sealed(mode)] {
            let container = through(&shim, Recipe::on(net, "").image(&image)).start(&["sh", "-c", LURK]);
            for _ in 0..10 {
                mode.podman(&["exec", &container.name, "/bin/other/busybox", "sleep", "0.3"]).succeeded();
                mode.podman(&["exec", &container.name, "/bin/again"]);
            }
            let (_gone, again) =
                through(&shim, Recipe::on(net, "").image(&image)).run(&["/bin/again", "--version"]);
            assert!(!again.stdout.contains("terok"), "{}", again.stdout);
            let mut saw = String::new();
            eventually("it sees what is started beside it", || {
                mode.podman(&["exec", &container.name, "/bin/other/busybox", "sleep", "0.3"]).succeeded();
                saw = container.podman(&["logs"]).stdout;
                saw.contains("other")
            });
            assert!(!saw.contains("saw") && !saw.contains("wrote"), "{saw}");
        }
    }
    assert_eq!(sums(), before);
    take_shim();
    install();
}

/// Links where the engine, the runtime and terok mount, hide and write.
const LINKS: [&str; 6] = [
    "mkdir -p run; ln -s /etc run/terok",
    "mkdir -p run; ln -s ../../../../../../../../etc run/terok",
    "rm -rf run; ln -s /proc/1/root/run run",
    "mkdir -p run; ln -s /proc/self/fd/7 run/terok",
    "rm -rf dev; mkdir dev; ln -s /etc/passwd dev/null; ln -s /etc/passwd dev/console; ln -s /etc/passwd dev/ptmx",
    "mkdir -p proc/sys/net/ipv4; ln -s /run/evil/written proc/sys/net/ipv4/ip_local_port_range; rm -rf sys; ln -s /run/evil sys",
];

/// What none of that may change on the host.
const HOST: &str = "cut -d' ' -f2-3 /proc/mounts | grep -v -e overlay -e containers; find /etc /run/evil -newer /run/lab/before; sha256sum /etc/passwd
    stat -c '%n %U %a' /etc /run /dev/null /dev/console";

/// Whatever links the image has: the container starts protected, with its folder at its place inside, or it does not start; nothing is
/// mounted, written or changed on the host.
#[test]
fn links_in_the_image_lead_nowhere_outside() {
    let Some(_lab) = Lab::alone() else { return };
    let shim = put_shim();
    hook_files(false);
    Mode::Rootful.run("bash", &["-c", "rm -rf /run/evil; mkdir -m 777 /run/evil"]).succeeded();
    let host = || -> BTreeSet<String> {
        let said = Mode::Rootful.run("bash", &["-c", HOST]).stdout;
        said.lines().map(str::to_owned).collect()
    };
    let unchanged = |before: &BTreeSet<String>, what: &str| {
        let (now, nothing) = (host(), Vec::<&String>::new());
        assert_eq!(now.symmetric_difference(before).collect::<Vec<_>>(), nothing, "{what}");
    };
    Mode::Rootful.run("bash", &["-c", "sleep 0.02; touch /run/lab/before"]).succeeded();
    for mode in [Mode::Rootless, Mode::Rootful] {
        let (service, site) = (Service::new(mode), site());
        let mut started = 0;
        // What an engine's first start makes is there before.
        drop(Recipe::bare(mode).run(&["true"]));
        let before = host();
        for script in LINKS {
            let image = image(mode, &[], script);
            let recipe = Recipe::sealed(mode, &site.name)
                .image(&image)
                .annotate("vault", &service.provider)
                .annotate("restricted", "true");
            let (container, ended) = through(&shim, recipe.clone()).run(&["cat", "/proc/self/mountinfo"]);
            drop(container);
            unchanged(&before, script);
            if ended.code != 0 {
                eprintln!("{mode:?} {script}: {}", ended.stderr);
                continue;
            }
            started += 1;
            let inside: Vec<&str> = ended.stdout.lines().filter(|line| line.contains("/.birth/")).collect();
            assert_eq!(inside.len(), 1, "{script}: {}", ended.stdout);
            let container = through(&shim, recipe).idle();
            is_protected(&container, &site.name);
            let files = container.mode.podman(&["exec", &container.name, "sh", "-c", "cat /proc/kcore /proc/keys /proc/timer_list 2>/dev/null | wc -c; echo x 2>/dev/null > /proc/sys/kernel/domainname && echo written; true"]);
            assert_eq!(files.succeeded(), "0\n", "{script}");
            drop(container);
            unchanged(&before, script);
        }
        assert!(started >= 3, "only {started} of the images start: this shows little");
        let all: Vec<String> = site.paths();
        assert!(!all.is_empty());
    }
    hook_files(true);
    take_shim();
    install();
}

/// What the hook does while the container's own mounts are there already: it looks at none of them. Writes to `/proc/sys` go by the host's
/// (CVE-2025-52881 had the container's), and no namespace but the network's is entered.
#[test]
fn the_hook_enters_the_network_namespace_alone_and_opens_nothing_of_the_containers() {
    let Some(_lab) = Lab::alone() else { return };
    let shim = put_shim();
    hook_files(false);
    let hook = format!("{FOLDER}/{}", layout::HOOK);
    for net in [Net::SealedRootful, Net::RootfulBridge] {
        // What the configuration names is a script of the same name that has the hook traced.
        let script = format!(
            "#!/bin/sh\nexec /usr/bin/strace -D -f -e trace=file,setns,unshare,chroot,pivot_root,fchdir -o /run/trace.$$ {hook} \"$@\"\n"
        );
        std::fs::create_dir_all("/run/traced").expect("/run is the lab's own");
        std::fs::write("/run/traced/terok-hook", script).expect("/run is the lab's own");
        Mode::Rootful
            .run("bash", &["-c", "rm -f /run/trace.*; chmod 755 /run/traced/terok-hook"])
            .succeeded();
        for (stage, verb) in [("createRuntime", "create"), ("poststop", "stop")] {
            let file = serde_json::json!({ "version": "1.0.0", "hook": { "path": "/run/traced/terok-hook", "args": ["terok-hook", verb],
                "env": ["PATH=/usr/bin"], "timeout": 60 }, "when": { "annotations": { "^terok\\.": ".*" } }, "stages": [stage] });
            std::fs::write(format!("/run/traced/{verb}.json"), file.to_string())
                .expect("/run is the lab's own");
        }
        let (service, site) = (Service::new(Mode::Rootful), site());
        let recipe = Recipe::on(net, &site.name).annotate("vault", &service.provider).image("localhost/wl");
        let traced = Traced::there();
        let container = through(&shim, recipe).idle().settled();
        drop(traced);
        is_protected(&container, &site.name);
        let trace = Mode::Rootful.run("bash", &["-c", "cat /run/trace.*"]).succeeded();
        let lines = |word: &str| {
            trace.lines().filter(|line| line.contains(word)).map(str::to_owned).collect::<Vec<_>>()
        };
        let entered = lines(" setns(");
        assert!(
            !entered.is_empty() && entered.iter().all(|line| line.contains("CLONE_NEWNET")),
            "{entered:?}"
        );
        for call in [" unshare(", " chroot(", " pivot_root("] {
            assert_eq!(lines(call), [""; 0]);
        }
        let merged = container.podman(&["inspect", "--format={{.GraphDriver.Data.MergedDir}}"]).succeeded();
        assert!(merged.trim().starts_with('/'), "{merged}");
        assert_eq!(lines(&format!("{}/", merged.trim())), [""; 0]);
        let init = container.pid();
        for folder in ["root", "cwd", "fd"] {
            assert_eq!(lines(&format!("/proc/{init}/{folder}")), [""; 0]);
        }
        assert!(!lines("config.json").is_empty(), "{trace}");
    }
    Mode::Rootful.run("rm", &["-rf", "/run/traced"]).succeeded();
    hook_files(true);
    take_shim();
    install();
}

/// A drop-in by which Podman reads the traced hooks in place of ours, while it lives.
struct Traced;

impl Traced {
    const DROP_IN: &str = "/etc/containers/containers.conf.d/60-traced.conf";

    fn there() -> Self {
        std::fs::create_dir_all("/etc/containers/containers.conf.d").expect("/etc is the lab's own");
        std::fs::write(Self::DROP_IN, "[engine]\nhooks_dir = [\"/run/traced\"]\n")
            .expect("/etc is the lab's own");
        Traced
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(Self::DROP_IN);
    }
}
