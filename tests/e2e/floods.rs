//! What comes in masses: refusals, connections on which nobody speaks (A36, A37). Counted, bounded, and nobody else waits.

use crate::expect::{at_once, reaches, terok};
use terok_tests::{Net, Recipe, bad_addresses, every_network, seen_at, site};

every_network! {
    /// A36: each packet is counted by the kernel; the log holds a few lines of them, and verifies.
    fn a_flood_of_refusals_is_counted_and_the_log_stays_small(net: Net) {
        let (site, (v4, v6)) = (site(), bad_addresses());
        let container = Recipe::on(net, &site.name).idle();
        for address in [v4.to_string(), v6.to_string()] {
            let line = container.try_step(&format!("flood 50000 {address} 123"));
            assert_eq!(line["refused"], 50000, "{line}");
            assert!(seen_at(address).is_empty());
        }
        let counted: u64 = container.ruleset().lines().filter(|line| line.contains("reject")).filter_map(|line| {
            line.split("packets ").nth(1)?.split(' ').next()?.parse::<u64>().ok()
        }).sum();
        assert!(counted >= 100_000, "the kernel counted {counted}");
        container.audited("kernel", "refuse", &v4.to_string());
        assert!(container.audit().len() < 200, "{} lines", container.audit().len());
        terok(&container, &["audit", "--verify"]);
        reaches(&container, &site.name);
    }

    /// A37: connections that say nothing keep nobody out.
    fn silent_connections_keep_nobody_out(net: Net) {
        let (site, other) = (site(), site());
        let container = Recipe::on(net, &format!("{} {}", site.name, other.name)).idle();
        let mut silent = container.spawn(&format!("idle 60 {} 80", other.name));
        let line = silent.line();
        assert_eq!(line["open"], true, "{line}");
        reaches(&container, &site.name);
        let lines = container.probe(&["dns - evil.example.net A", "tcp 203.0.113.66 80"]);
        assert!(lines.iter().all(|line| line["ok"] == false), "{lines:?}");
        lines.iter().for_each(at_once);
    }

    /// A37: connections are bounded, and what is one too many is refused, which the log says; the operator is still heard.
    fn more_connections_than_there_is_room_for_are_refused(net: Net) {
        let site = site();
        let container = Recipe::on(net, &format!("{}:7", site.name)).idle();
        let mut silent: Vec<_> = (0..2).map(|_| container.spawn(&format!("idle 800 {} 7", site.name))).collect();
        for silent in &mut silent {
            let line = silent.line();
            assert_eq!(line["open"], true, "{line}");
        }
        let line = container.audited("connect", "refuse", &site.name);
        assert_eq!(line["reason"], "too-many-connections", "{line}");
        assert!(terok(&container, &["status", "--json"]).contains("\"up\""));
    }
}
