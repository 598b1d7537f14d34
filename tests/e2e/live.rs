//! The operator's hand while a container runs: deny, block, down; at once, and for good.

use crate::expect::{FOREVER, cut_within_a_second, download, is_refused, reaches, terok};
use serde_json::Value;
use std::time::Duration;
use terok_tests::{
    Mode, Net, Recipe, bad_addresses, both_modes, eventually, every_network, seen_at, site, within,
};

every_network! {
    /// A8: the flow goes with its rule; the other name on the same address stays.
    fn deny_cuts_a_live_download_and_only_that(net: Net) {
        // api.example.com and shared.example.org are one address.
        let container = Recipe::on(net, "api.example.com shared.example.org").idle();
        let cut = download(&container, &format!("hold api.example.com 80 {FOREVER}"));
        let mut kept = download(&container, "hold shared.example.org 80 /drip/40");
        terok(&container, &["deny", "api.example.com"]);
        cut_within_a_second(cut);
        is_refused(&container, "api.example.com");
        let line = kept.line();
        assert_eq!(line["ok"], true, "the other name's flow was cut: {line}");
        reaches(&container, "shared.example.org");
        container.audited("control", "deny", "");
        container.audited("connect", "cut", "api.example.com");
    }

    /// E1: a denied address is denied under every name that leads to it, a flow that is open included.
    fn denying_an_address_cuts_the_names_that_lead_to_it(net: Net) {
        let (denied, other) = (site(), site());
        let container = Recipe::on(net, &format!("{} {}", denied.name, other.name)).idle();
        let cut = download(&container, &format!("hold {} 80 {FOREVER}", denied.name));
        terok(&container, &["deny", &denied.v4.to_string(), &denied.v6.to_string()]);
        cut_within_a_second(cut);
        is_refused(&container, &denied.name);
        reaches(&container, &other.name);
        let line = container.audited("connect", "refuse", &denied.name);
        assert_eq!(line["reason"], "denied", "{line}");
    }

    fn deny_survives_stop_and_start_and_a_crash_of_the_worker(net: Net) {
        let (denied, other) = (site(), site());
        let container = Recipe::on(net, &format!("{} {}", denied.name, other.name)).idle();
        reaches(&container, &denied.name);
        terok(&container, &["deny", &denied.name]);
        is_refused(&container, &denied.name);

        let worker = *container.supervisors().last().expect("a worker");
        Mode::Rootful.run("kill", &["-KILL", &worker.to_string()]).succeeded();
        eventually("the worker is back", || container.supervisors().last().is_some_and(|pid| *pid != worker));
        is_refused(&container, &denied.name);
        reaches(&container, &other.name);

        container.podman(&["stop", "--time=0"]).succeeded();
        container.podman(&["start"]).succeeded();
        is_refused(&container, &denied.name);
        reaches(&container, &other.name);
        assert!(denied.paths().iter().all(|path| path == "/reached"), "{:?}", denied.paths());
    }

    fn a_live_allow_opens_at_once_and_lasts(net: Net) {
        let site = site();
        let (v4, _) = bad_addresses();
        let container = Recipe::on(net, "").idle();
        is_refused(&container, &site.name);
        terok(&container, &["allow", &site.name, &format!("{v4}:80")]);
        reaches(&container, &site.name);
        reaches(&container, &v4.to_string());
        container.podman(&["stop", "--time=0"]).succeeded();
        container.podman(&["start"]).succeeded();
        reaches(&container, &site.name);
        reaches(&container, &v4.to_string());
        terok(&container, &["deny", &site.name]);
        is_refused(&container, &site.name);
    }

    fn block_cuts_everything_and_lasts(net: Net) {
        let site = site();
        let (v4, _) = bad_addresses();
        let container = Recipe::on(net, &format!("{} {v4}:80", site.name)).idle();
        let named = download(&container, &format!("hold {} 80 {FOREVER}", site.name));
        let literal = download(&container, &format!("hold {v4} 80 {FOREVER}"));
        terok(&container, &["block"]);
        cut_within_a_second(named);
        cut_within_a_second(literal);
        is_refused(&container, &site.name);
        is_refused(&container, &v4.to_string());

        let worker = *container.supervisors().last().expect("a worker");
        Mode::Rootful.run("kill", &["-KILL", &worker.to_string()]).succeeded();
        eventually("the worker is back", || container.supervisors().last().is_some_and(|pid| *pid != worker));
        is_refused(&container, &site.name);
        container.podman(&["stop", "--time=0"]).succeeded();
        container.podman(&["start"]).succeeded();
        is_refused(&container, &site.name);
        terok(&container, &["up"]);
        reaches(&container, &site.name);
    }

    /// `down` lets through what is neither denied nor below the floor, and ends by itself.
    fn down_opens_all_but_the_floor_and_the_denies_for_its_time(net: Net) {
        let site = site();
        let ((open, _), (denied, _)) = (bad_addresses(), bad_addresses());
        let container = Recipe::on(net, "api.example.com").annotate("shield.deny", &format!("{denied}:80")).idle();
        is_refused(&container, &site.name);
        // Long enough for everything below on a busy machine.
        terok(&container, &["down", "--for", "15s"]);
        let since = std::time::Instant::now();
        reaches(&container, &site.name);
        reaches(&container, &open.to_string());
        for host in [denied.to_string(), "10.66.0.9".to_owned(), "169.254.169.254".to_owned(), "192.0.2.10".to_owned()] {
            is_refused(&container, &host);
            assert!(seen_at(&host).iter().all(|line| line["path"] != "/refused"), "{host}");
        }
        let mut flow = download(&container, &format!("hold {open} 80 {FOREVER}"));
        let line = flow.line(); // its end
        assert_eq!(line["errno"], 104, "{line}");
        let lasted = since.elapsed();
        assert!((13..=17).contains(&lasted.as_secs()), "down ended after {lasted:?}");
        is_refused(&container, &site.name);
        is_refused(&container, &open.to_string());
        container.audited("control", "state", "");
    }

    /// A29: what cannot be written down does not happen.
    fn while_no_worker_runs_everything_waits_or_is_refused(net: Net) {
        let site = site();
        let container = Recipe::on(net, &site.name).idle();
        let (v4, _) = bad_addresses();
        let supervisors = container.supervisors();
        for pid in &supervisors {
            Mode::Rootful.run("kill", &["-STOP", &pid.to_string()]).succeeded();
        }
        let line = container.try_step(&format!("tcp {v4} 80"));
        assert_eq!(line["errno"], 111, "the kernel refuses by itself: {line}");
        assert!(seen_at(v4).is_empty() && site.seen().is_empty());
        for pid in &supervisors {
            Mode::Rootful.run("kill", &["-CONT", &pid.to_string()]).succeeded();
        }
        within(Duration::from_secs(5), "it serves again", || {
            container.try_step(&format!("http {0} 80 {0} /again", site.name))["ok"] == true
        });
    }

    fn many_changes_in_one_call_all_count(net: Net) {
        let sites: Vec<_> = (0..20).map(|_| site()).collect();
        let container = Recipe::on(net, "").idle();
        let names: Vec<&str> = sites.iter().map(|site| site.name.as_str()).collect();
        terok(&container, &[&["allow"], names.as_slice()].concat());
        for name in [names[0], names[10], names[19]] {
            reaches(&container, name);
        }
        terok(&container, &[&["deny"], &names[..10]].concat());
        is_refused(&container, names[0]);
        is_refused(&container, names[9]);
        reaches(&container, names[10]);
    }

    fn up_and_down_in_quick_turns_end_as_the_last_word_says(net: Net) {
        let site = site();
        let container = Recipe::on(net, "").idle();
        for _ in 0..5 {
            terok(&container, &["down"]);
            terok(&container, &["down"]);
            terok(&container, &["up"]);
            terok(&container, &["up"]);
        }
        is_refused(&container, &site.name);
        assert!(site.seen().is_empty());
        let states: Vec<String> = container.audit().iter().filter(|line| line["kind"] == "control" && line["action"] == "state").map(|line| line["target"].as_str().unwrap_or_default().to_owned()).collect();
        assert_eq!((states.first().map(String::as_str), states.last().map(String::as_str)), (Some("down"), Some("up")), "{states:?}");
        terok(&container, &["down"]);
        reaches(&container, &site.name);
    }
}

both_modes! {
    fn status_and_ps_tell_what_is_in_force(mode: Mode) {
        let container = Recipe::sealed(mode, "api.example.com").idle();
        let status: Value = serde_json::from_str(&terok(&container, &["status", "--json"])).expect("JSON");
        assert_eq!(status["state"], "up", "{status}");
        assert!(status.to_string().contains("api.example.com"), "{status}");
        assert!(mode.terok(&["ps"]).succeeded().contains(&container.name));
        assert!(mode.terok(&["status", "no-such-container"]).failed().contains("no-such-container"));
    }

    fn the_audit_log_verifies_and_shows_a_change(mode: Mode) {
        let container = Recipe::sealed(mode, "api.example.com").idle();
        reaches(&container, "api.example.com");
        terok(&container, &["audit", "--verify"]);
        let path = mode.state(&container.id).join("audit.jsonl");
        let text = std::fs::read_to_string(&path).expect("an audit log");
        container.podman(&["rm", "--force", "--time=0"]).succeeded();
        container.is_left_alone();
        std::fs::write(&path, text.replacen("api.example.com", "bpi.example.com", 1)).expect("root may write");
        assert!(!mode.terok(&["audit", &container.id, "--verify"]).failed().is_empty());
    }
}
