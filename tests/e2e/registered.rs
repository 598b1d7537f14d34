//! The shim under its name: `terok setup --engine podman`, then `podman run --runtime terok` and Podman's default.

use crate::shim::{hook_files, is_protected};
use std::path::Path;
use terok_tests::{Engine, Lab, Mode, Recipe, bad_addresses, eventually, install, major, seen_at, site};

fn set_up(more: &[&str]) -> String {
    let words = [&["setup", "--system", "--engine", "podman"], more].concat();
    Mode::Rootful.terok(&words).succeeded()
}

/// Podman tidies up after its containers through the shim, on a slow machine for a while.
fn uninstall() -> String {
    let mut said = String::new();
    eventually("podman has tidied up", || {
        let ended = Mode::Rootful.terok(&["uninstall", "--system"]);
        said = format!("{}{}", ended.stdout, ended.stderr);
        ended.code == 0
    });
    said
}

fn default_runtime(mode: Mode) -> String {
    mode.podman(&["info", "--format={{.Host.OCIRuntime.Name}}"]).succeeded().trim().to_owned()
}

#[test]
fn a_container_that_names_terok_is_protected_through_stop_start_and_upgrade() {
    let Some(_lab) = Lab::alone() else { return };
    set_up(&[]);
    assert!(set_up(&[]).contains("already set up"));
    hook_files(false);
    for mode in [Mode::Rootless, Mode::Rootful] {
        assert_eq!(default_runtime(mode), "crun", "it is asked for by name alone");
        // The names that were there are there.
        mode.podman(&["--runtime=crun", "info"]).succeeded();
        let site = site();
        let container = Recipe::sealed(mode, &site.name).option("--runtime=terok").idle();
        is_protected(&container, &site.name);
        let said = Mode::Rootful.terok(&["uninstall", "--system"]).failed();
        assert!(said.contains(&container.name) && said.contains("stop them first"), "{said}");
        is_protected(&container, &site.name);
        // Other programs of the same name, in the place of those that stand over a container.
        let newer = "mkdir -p /run/newer; cd /run/lab/bin; for p in terok terok-hook terok-shim terok-supervisor; do \
            cp $p /run/newer/ && echo >> /run/newer/$p; done; exec /run/newer/terok setup --system";
        let said = Mode::Rootful.run("sh", &["-c", newer]).succeeded();
        // Setup has put the hook files' drop-in back.
        hook_files(false);
        assert!(
            said.contains("wrote /usr/libexec/terok/terok-shim\n") && !said.contains("terok-runtime.conf"),
            "{said}"
        );
        for verb in [&["stop", "--time=0"][..], &["kill"]] {
            container.podman(verb).succeeded();
            container.is_left_alone();
            container.podman(&["start"]).succeeded();
            is_protected(&container, &site.name);
        }
        Recipe::bare(mode).option("--runtime=terok").run(&["true"]).1.succeeded();
        install();
        hook_files(false);
    }
    hook_files(true);
    uninstall();
    install();
}

#[test]
fn as_podmans_default_runtime_it_cannot_be_forgotten() {
    let Some(_lab) = Lab::alone() else { return };
    set_up(&["--default-runtime"]);
    hook_files(false);
    for mode in [Mode::Rootless, Mode::Rootful] {
        let said = mode.terok(&["doctor"]).stdout;
        assert!(said.contains("podman starts every container that names no runtime through it"), "{said}");
        assert!(said.contains("shim          runtime crun "), "{said}");
        assert_eq!(default_runtime(mode), "terok");
        let site = site();
        let container = Recipe::sealed(mode, &site.name).idle();
        is_protected(&container, &site.name);
        Recipe::bare(mode).run(&["true"]).1.succeeded();
        let (_gone, ended) = Recipe::bare(mode).annotate("sheild", "up").run(&["true"]);
        assert!(ended.failed().contains("terok.shield"));
        // A user's own drop-in adds a runtime, and takes none away.
        if mode == Mode::Rootless {
            let own = "mkdir -p .config/containers/containers.conf.d && \
                printf '[engine.runtimes]\\nmine = [\"/usr/bin/crun\"]\\n' > .config/containers/containers.conf.d/mine.conf";
            mode.run("sh", &["-c", own]).succeeded();
            for name in ["mine", "terok", "crun"] {
                mode.podman(&["--runtime", name, "info"]).succeeded();
            }
            mode.run("rm", &["-r", ".config/containers/containers.conf.d"]).succeeded();
        }
        container.podman(&["stop", "--time=0"]).succeeded();
        hook_files(true);
        container.is_left_alone();
        let said = uninstall();
        assert!(said.contains("removed /etc/containers/containers.conf.d/50-terok-runtime.conf"), "{said}");
        assert!(said.contains("do not start any more"), "{said}");
        assert_eq!(default_runtime(mode), "crun");
        container.podman(&["start"]).failed();
        container.podman(&["rm", "--force"]).succeeded();
        set_up(&["--default-runtime"]);
        hook_files(false);
    }
    assert!(set_up(&["--no-default-runtime"]).contains("that name the runtime terok"));
    assert_eq!(default_runtime(Mode::Rootful), "crun");
    uninstall();
    install();
}

/// Hooks are not asked about the steps of a build; the runtime is.
#[test]
fn as_the_default_for_every_container_it_protects_the_steps_of_a_build_too() {
    let Some(_lab) = Lab::alone() else { return };
    if major() < 5 {
        eprintln!(
            "skipped: this Podman's builds want limits that the lab lacks (cargo xtask test --podman5)"
        );
        return;
    }
    let build = |address: &str| {
        let script = format!(
            "d=$(mktemp -d) && printf 'FROM localhost/bb\\nRUN wget -q -O /dev/null http://{address}/ || true\\n' > $d/Containerfile && \
             podman build -q --no-cache --ulimit nofile=1024:1024 $d && rm -r $d"
        );
        let image = Mode::Rootful.run("sh", &["-c", &script]).succeeded();
        Mode::Rootful.podman(&["rmi", "--force", image.trim()]).succeeded();
    };
    let (v4, _) = bad_addresses();
    set_up(&["--all-containers"]);
    build(&v4.to_string());
    assert!(!seen_at(v4).is_empty(), "without the shim a build reaches what it likes");
    set_up(&["--default-runtime"]);
    let (v4, _) = bad_addresses();
    build(&v4.to_string());
    assert!(seen_at(v4).is_empty(), "{:?}", seen_at(v4));
    set_up(&["--no-all-containers"]);
    let (v4, _) = bad_addresses();
    build(&v4.to_string());
    assert!(!seen_at(v4).is_empty());
    uninstall();
    install();
}

#[test]
fn while_docker_or_containerd_run_a_container_through_it_it_stays() {
    let Some(_lab) = Lab::alone() else { return };
    for engine in [Engine::Docker, Engine::Containerd] {
        if !engine.starts() {
            continue;
        }
        let recipe =
            if engine == Engine::Docker { Recipe::docker("none", "") } else { Recipe::containerd("") };
        let container = recipe.idle();
        let said = Mode::Rootful.terok(&["uninstall", "--system"]).failed();
        let name = if engine == Engine::Docker { &container.id[..12] } else { &container.id };
        assert!(said.contains(name) && said.contains("stop them first"), "{said}");
        let doctor = Mode::Rootful.terok(&["doctor"]).stdout;
        let told = "docker starts containers that name the runtime terok through it";
        assert!(engine != Engine::Docker || doctor.contains(told), "{doctor}");
        assert!(!doctor.contains("has not read"), "{doctor}");
    }
    let said = uninstall();
    assert!(!Path::new("/etc/docker/daemon.json").exists(), "{said}");
    install();
}
