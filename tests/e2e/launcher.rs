//! `terok run`: what it starts is protected and has few privileges, and ordinary tools still do their work in it.

use terok_tests::{Mode, Net, Recipe, bad_addresses, both_modes, every_card, seen_at, site};

const STATUS: &str = "grep -E '^(NoNewPrivs|Seccomp|CapEff|CapBnd):' /proc/self/status | tr -d '\\t'";

/// CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID (capabilities(7)): what `terok run` leaves.
const KEPT: &str = "00000000000000fb";

both_modes! {
    fn what_run_starts_has_the_documented_privileges_and_its_rules(mode: Mode) {
        let said = mode.terok(&["run", "--rm", "--allow", "api.example.com", "localhost/bb", "sh", "-c",
            &format!("{STATUS}; nslookup api.example.com; nslookup evil.example.net")]);
        assert!(said.stdout.contains("NoNewPrivs:1\n"), "{said:?}");
        assert!(said.stdout.contains(&format!("CapBnd:{KEPT}\n")), "{said:?}");
        assert!(said.stdout.contains("Seccomp:2\n") && said.stdout.contains("198.18."), "{said:?}");
        assert!(said.stdout.contains("NXDOMAIN") || said.stderr.contains("NXDOMAIN"), "{said:?}");
    }

    /// The capabilities that are left are enough for a package manager as root.
    fn apt_and_pip_work_with_what_run_leaves(mode: Mode) {
        let script = "rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*
            echo 'deb [trusted=yes] http://deb.example.com/ ./' > /etc/apt/sources.list
            apt-get update -q >&2; apt-get install -y -q labpkg >&2; cat /usr/share/labpkg/word
            pip install -q --root-user-action=ignore --break-system-packages --disable-pip-version-check --index-url https://pypi.example.com/simple/ labpkg
            python3 -c 'import labpkg; print(labpkg.WORD)'";
        let said = mode.terok(&["run", "--rm", "--allow", "deb.example.com:80", "--allow", "pypi.example.com",
            "--volume", "/run/inet/bundle.pem:/etc/ssl/certs/ca-certificates.crt:ro",
            "--env", "PIP_CERT=/etc/ssl/certs/ca-certificates.crt", "localhost/wl", "sh", "-ec", script]);
        assert_eq!(said.succeeded().matches("installed through the proxy").count(), 2);
    }

    fn a_refused_option_starts_nothing(mode: Mode) {
        for options in [&["--privileged"][..], &["--network=host"], &["--volume=/:/host"], &["--cap-add=NET_ADMIN"]] {
            let line = [&["run"], options, &["localhost/bb", "true"]].concat();
            let said = mode.terok(&line).failed();
            assert!(said.contains("is refused"), "{options:?}: {said}");
        }
    }

    /// `terok.restricted`: no capability, no way to get one.
    fn a_restricted_container_has_no_privileges_and_no_namespaces(mode: Mode) {
        let script = format!("{STATUS}; unshare -U true 2>&1; echo user namespace: $?");
        let plain = Recipe::sealed(mode, "api.example.com");
        let (_gone, ended) = plain.clone().annotate("restricted", "true").run(&["sh", "-c", &script]);
        let said = ended.succeeded();
        for line in ["NoNewPrivs:1\n", "CapEff:0000000000000000\n", "CapBnd:0000000000000000\n", "Seccomp:2\n"] {
            assert!(said.contains(line), "{line}: {said}");
        }
        assert!(said.contains("Operation not permitted") && !said.contains("user namespace: 0"), "{said}");
        let (_gone, ended) = plain.run(&["sh", "-c", &script]);
        assert!(ended.succeeded().contains("NoNewPrivs:0\n"), "the probe can tell");
    }
}

every_card! {
    /// `terok run --network …`: the same rules, and what the card could be misused with is refused before Podman starts.
    fn run_on_a_network_is_filtered(net: Net) {
        let (site, (v4, _)) = (site(), bad_addresses());
        let network = format!("--network={}", net.network());
        let (step, refused) = (format!("http {0} 80 {0} /run", site.name), format!("tcp {v4} 80"));
        let line = ["run", "--rm", &network, "--allow", &site.name, "--volume", "/run/lab/bin/terok-probe:/p:ro", "localhost/bb", "/p", &step, &refused];
        let lines = net.mode().terok(&line).lines();
        assert_eq!((&lines[0]["ok"], &lines[1]["ok"]), (&true.into(), &false.into()), "{lines:?}");
        assert_eq!(site.paths(), ["/run"]);
        assert!(seen_at(v4).is_empty());
        let said = net.mode().terok(&["run", "--rm", &network, "--cap-add=NET_RAW", "localhost/bb", "true"]).failed();
        assert!(said.contains("NET_RAW") || said.contains("cap-add"), "{said}");
    }
}
