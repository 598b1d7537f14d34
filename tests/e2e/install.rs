//! A23, A25, A26: what happens without the hooks, with an image that annotates itself, with a hostile environment.

use terok_tests::{Lab, Mode, Recipe, bad_addresses, both_modes, install, seen_at, site};

/// Without the hooks, a container without a card has no network at all.
fn without_hooks_there_is_no_network(mode: Mode) {
    let site = site();
    let (v4, v6) = bad_addresses();
    let (_gone, lines) = Recipe::sealed(mode, &site.name).probe(&[
        &format!("tcp {} 80", site.v4),
        &format!("tcp {} 80", site.v6),
        &format!("tcp {} 80", site.name),
        &format!("udp {v4} 123 x"),
        &format!("tcp {v6} 80"),
    ]);
    assert!(lines.iter().all(|line| line["ok"] == false), "{lines:?}");
    assert!(site.seen().is_empty() && seen_at(v4).is_empty() && seen_at(v6).is_empty());
    for network in ["none", if mode == Mode::Rootful { "bridge" } else { "slirp4netns" }] {
        let line = ["run", "--network", network, "--allow", &site.name, "localhost/bb", "true"];
        let said = mode.terok(&line).failed();
        assert!(said.contains("terok setup"), "{said}");
    }
}

#[test]
fn uninstalled_means_no_network_rootless_and_rootful() {
    let Some(_lab) = Lab::alone() else { return };
    Mode::Rootful.terok(&["uninstall", "--system"]).succeeded();
    for mode in [Mode::Rootless, Mode::Rootful] {
        without_hooks_there_is_no_network(mode);
    }
    install();
}

/// A user's own installation, without root: protected, also over stop and start, and gone without a trace.
#[test]
fn a_users_own_installation_protects() {
    let Some(_lab) = Lab::alone() else { return };
    Mode::Rootful.terok(&["uninstall", "--system"]).succeeded();
    let before = Mode::Rootless.run("find", &[".config", ".local/share/terok"]).stdout;
    Mode::Rootless.terok(&["setup"]).succeeded();
    Mode::Rootless.terok(&["setup"]).succeeded();
    let site = site();
    let container = Recipe::sealed(Mode::Rootless, &site.name).idle();
    for _ in 0..2 {
        let (v4, _) = bad_addresses();
        let lines = container.probe(&[&format!("http {0} 80 {0} /own", site.name), &format!("tcp {v4} 80")]);
        assert_eq!(lines[0]["answers"][0]["status"], 200, "{lines:?}");
        assert_eq!(lines[1]["errno"], 111, "{lines:?}");
        container.podman(&["restart", "--time=0"]).succeeded();
    }
    drop(container);
    Mode::Rootless.terok(&["doctor"]).succeeded();
    Mode::Rootless.terok(&["uninstall"]).succeeded();
    assert_eq!(
        Mode::Rootless.run("find", &[".config", ".local/share/terok"]).stdout,
        before,
        "uninstall left something"
    );
    install();
}

both_modes! {
    fn doctor_proves_that_the_hooks_are_consulted(mode: Mode) {
        mode.terok(&["doctor"]).succeeded();
    }

    fn a_misspelt_key_is_refused_with_the_right_spelling(mode: Mode) {
        let (_gone, ended) = Recipe::bare(mode).annotate("sheild", "up").run(&["true"]);
        let said = ended.failed();
        assert!(said.contains("terok.sheild") && said.contains("terok.shield"), "{said}");
    }

    /// A2 of the interface: Podman 4.3 copies an image's annotations into the container.
    fn an_image_that_annotates_itself_is_refused(mode: Mode) {
        let image = format!("localhost/annotated-{}", site().number);
        // An OCI image with a manifest annotation, through buildah's own path: podman build --annotation.
        let script = format!("d=$(mktemp -d) && echo 'FROM localhost/bb' > $d/Containerfile && \
            podman build -q --isolation=chroot --format=oci --annotation terok.shield.allow=evil.example.net -t {image} $d && rm -rf $d");
        mode.run("sh", &["-c", &script]).succeeded();
        let (container, ended) = Recipe::bare(mode).image(&image).run(&["/run/terok-probe", "tcp evil.example.net 80"]);
        if ended.code == 0 {
            // Podman 5 does not copy them: then the container is a plain one without a network.
            assert!(ended.stdout.contains("\"ok\":false"), "{}", ended.stdout);
        } else {
            assert!(ended.stderr.contains("terok") || ended.stderr.contains("image"), "{}", ended.stderr);
        }
        container.is_left_alone();
        drop(container);
        mode.podman(&["rmi", "--force", &image]).succeeded();
    }

    /// Root's buildah reads Podman's default folder of hooks unasked, and gives up at a stage that is Podman's own.
    fn a_build_does_not_meet_the_hooks(mode: Mode) {
        let image = format!("localhost/built-{}", site().number);
        let script = format!("d=$(mktemp -d) && printf 'FROM localhost/bb\\nRUN true\\n' > $d/Containerfile && \
            podman build -q -t {image} $d; rm -rf $d");
        let ended = mode.run("sh", &["-c", &script]);
        // Some labs have limits too small for any step of a build; that comes after the hooks.
        let said = format!("{} {}", ended.stdout, ended.stderr).to_lowercase();
        assert!(!said.contains("hooks"), "{said}");
        assert!(said.contains("setrlimit") || mode.podman(&["rmi", "--force", &image]).code == 0, "{said}");
    }

    /// A25, A26: nothing of the image's environment reaches the hook.
    fn a_preload_in_the_environment_has_no_effect(mode: Mode) {
        let site = site();
        let (_gone, lines) = Recipe::sealed(mode, &site.name)
            .option("--env=LD_PRELOAD=/evil.so").option("--env=LD_LIBRARY_PATH=/evil").option("--env=PATH=/evil").option("--env=HOME=/evil")
            .probe(&[&format!("http {0} 80 {0} /preload", site.name), "tcp 203.0.113.66 80"]);
        assert_eq!(lines[0]["answers"][0]["status"], 200, "{lines:?}");
        assert_eq!(lines[1]["errno"], 111, "{lines:?}");
    }

    fn the_hosts_network_is_refused(mode: Mode) {
        let (container, ended) = Recipe::sealed(mode, "api.example.com").network("host").run(&["true"]);
        let said = ended.failed();
        assert!(said.contains("hook") || said.contains("terok"), "{said}");
        let why = std::fs::read_to_string(mode.state(&container.id).join("log")).unwrap_or_default();
        assert!(why.contains("network"), "the reason is written down: {why:?} {said}");
    }

    /// A21, A22: a namespace shared with another container.
    fn joining_or_being_joined_gains_nothing(mode: Mode) {
        let site = site();
        let ours = Recipe::sealed(mode, &site.name).idle();
        let (v4, _) = bad_addresses();
        let (_gone, ended) = Recipe::bare(mode).network(&format!("container:{}", ours.name)).option("--cap-add=NET_ADMIN")
            .run(&["/run/terok-probe", &format!("tcp {v4} 80"), "tcp evil.example.net 80"]);
        assert!(!ended.stdout.contains("\"ok\":true"), "{}", ended.stdout);
        let plain = Recipe::bare(mode).idle();
        let (_gone, ended) = Recipe::sealed(mode, &site.name).network(&format!("container:{}", plain.name)).run(&["true"]);
        ended.failed();
        assert!(seen_at(v4).is_empty());
    }
}
