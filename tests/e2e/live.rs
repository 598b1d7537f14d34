//! The operator's hand while a container runs: deny, block, down; at once, and for good.

use crate::expect::{FOREVER, download, is_cut, is_refused, reaches, soonest, steps, terok};
use serde_json::Value;
use std::time::Duration;
use terok_tests::{
    Mode, Net, Recipe, bad_addresses, both_modes, eventually, every_network, kill, seen_at, site,
};

every_network! {
    /// A8: the flow goes with its rule; the other name on the same address stays.
    fn deny_cuts_a_live_download_and_only_that(net: Net) {
        // api.example.com and shared.example.org are one address.
        let container = Recipe::on(net, "api.example.com shared.example.org").idle();
        let cut = download(&container, &format!("hold api.example.com 80 {FOREVER}"));
        let mut kept = download(&container, "hold shared.example.org 80 /drip/40");
        terok(&container, &["deny", "api.example.com"]);
        is_cut(cut);
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
        is_cut(cut);
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

        container.loses_its_worker();
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
        is_cut(named);
        is_cut(literal);
        is_refused(&container, &site.name);
        is_refused(&container, &v4.to_string());

        container.loses_its_worker();
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
        let since = std::time::Instant::now();
        terok(&container, &["down", "--for", "20s"]);
        let kept_out = [denied.to_string(), "10.66.0.9".to_owned(), "169.254.169.254".to_owned(), "192.0.2.10".to_owned()];
        let ask = |host: &str, path: &str| format!("http {host} 80 {host} {path}");
        let tries = [vec![ask(&site.name, "/down"), ask(&open.to_string(), "/down")], kept_out.iter().map(|host| ask(host, "/refused")).collect()].concat();
        let flow = download(&container, &format!("hold {open} 80 {FOREVER}"));
        let lines = steps(&container, &tries);
        for line in &lines[..2] {
            assert_eq!(line["answers"][0]["status"], 200, "{line}");
        }
        for (host, line) in kept_out.iter().zip(&lines[2..]) {
            assert_eq!(line["ok"], false, "{line}");
            assert!(seen_at(host).iter().all(|line| line["path"] != "/refused"), "{host}");
        }
        is_cut(flow);
        let lasted = since.elapsed();
        // The clock counts whole seconds.
        assert!((19..60).contains(&lasted.as_secs()), "down ended after {lasted:?}");
        is_refused(&container, &site.name);
        is_refused(&container, &open.to_string());
        container.audited("control", "state", "");
    }

    /// A29: what cannot be written down does not happen.
    fn while_no_worker_runs_everything_waits_or_is_refused(net: Net) {
        let site = site();
        let container = Recipe::on(net, &site.name).idle();
        let (v4, _) = bad_addresses();
        let (parent, worker) = container.served_by();
        for pid in [parent, worker] {
            kill("-STOP", pid);
        }
        let line = container.try_step(&format!("tcp {v4} 80"));
        assert_eq!(line["errno"], 111, "the kernel refuses by itself: {line}");
        assert!(seen_at(v4).is_empty() && site.seen().is_empty());
        for pid in [parent, worker] {
            kill("-CONT", pid);
        }
        eventually("it serves again", || {
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
        let mut states: Vec<String> = Vec::new();
        eventually("each turn is in the audit log", || {
            states = container.audit().iter().filter(|line| line["kind"] == "control" && line["action"] == "state").map(|line| line["target"].as_str().unwrap_or_default().to_owned()).collect();
            states.len() >= 10
        });
        assert_eq!((states.first().map(String::as_str), states.last().map(String::as_str)), (Some("down"), Some("up")), "{states:?}");
        terok(&container, &["down"]);
        reaches(&container, &site.name);
    }
}

both_modes! {
    fn a_flow_is_cut_within_a_second_of_the_word(mode: Mode) {
        let container = Recipe::sealed(mode, "").idle();
        let times: [Duration; 5] = std::array::from_fn(|_| {
            let site = site();
            terok(&container, &["allow", &site.name]);
            let flow = download(&container, &format!("hold {} 80 {FOREVER}", site.name));
            terok(&container, &["deny", &site.name]);
            is_cut(flow)
        });
        soonest(&times);
    }

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
