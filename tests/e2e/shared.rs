//! Networks that containers share: their names, neighbours, pods, joined containers, further cards, and what a joined container
//! does to the table (A20, A21, A22).

use crate::expect::{all_arrived, is_refused, nothing_arrived, reaches, refused_at_once, soonest, steps};
use std::time::Duration;
use terok_tests::{
    Container, Mode, Net, Pod, Recipe, bad_addresses, both_modes, eventually, every_card, every_network,
    networks, seen_at, site,
};

/// Where the probe is in a container.
const PROBE: &str = "/run/terok-probe";

/// A container without terok that serves TCP and UDP on `port` of the network `duo`.
#[track_caller]
fn server(mode: Mode, network: &str, port: u16) -> Container {
    networks(mode);
    let container = Recipe::bare(mode).network(network).start(&[PROBE, &format!("serve {port}")]);
    eventually("the server listens", || container.podman(&["logs"]).stdout.contains("open"));
    container
}

/// That the container is cut off; gives how long it took.
#[track_caller]
fn noticed(container: &Container, opened: &str) -> Duration {
    let took = eventually("the container is cut off", || {
        container.nsenter(&["ip", "-o", "link"]).stdout.lines().all(|line| line.contains(": lo:"))
    });
    let line = container.try_step(&format!("tcp {opened} 80"));
    assert_eq!(line["ok"], false, "{line}");
    container.audited("lifecycle", "tampered", "");
    took
}

both_modes! {
    /// `db:5432`: another container by its name, on that port only, as the network's own name server knows it.
    fn another_containers_name_leads_to_it_on_its_port_only(mode: Mode) {
        let db = server(mode, "duo", 5432);
        let (name, fqdn) = (db.name.clone(), format!("{}.dns.podman", db.name));
        let container = Recipe::bare(mode).network("duo").annotate("shield.allow", &format!("{name}:5432 {fqdn}:5432/udp no-such-container:80")).idle();
        let tries = [format!("tcp {name} 5432 hello"), format!("tcp {name}%6 5432 hello"), format!("udp {fqdn} 5432 hello")];
        // The network's name server knows nobody for a moment while containers come and go.
        eventually("it is reached by name", || steps(&container, &tries).iter().all(|line| line["ok"] == true));
        let lines = steps(&container, &[format!("tcp {} 80", db.address(false)), format!("udp {} 80 x", db.address(false)), format!("tcp {} 80", db.address(true))]);
        lines.iter().for_each(refused_at_once);
        // How fast depends on the network's name server, which drops questions while containers come and go.
        for step in [format!("tcp {name} 80"), format!("udp {name} 80 x"), "tcp no-such-container 80 GET".to_owned()] {
            let line = container.try_step(&step);
            assert_eq!(line["ok"], false, "{line}");
        }
        let mut log = String::new();
        eventually("the server's log has who came", || {
            log = db.podman(&["logs"]).stdout;
            log.matches("\"tcp\"").count() >= 2 && log.contains("\"udp\"")
        });
        // What the container starts has a port where nothing new may come in: a peer that lost its rule does not come back by it.
        let peers = log.split('"').filter_map(|word| word.parse::<std::net::SocketAddr>().ok());
        assert!(peers.clone().count() >= 3 && peers.into_iter().all(|peer| peer.port() >= 61_000), "{log}");
        crate::expect::terok(&container, &["deny", &name]);
        assert_eq!(container.try_step(&format!("tcp {name} 5432"))["ok"], false);
        assert_eq!(container.try_step(&format!("tcp {} 5432", db.address(false)))["ok"], false);
    }

    /// What no rule names is not there, and nobody is let in: neighbours of one network.
    fn neighbours_reach_each_other_in_neither_direction_without_a_rule(mode: Mode) {
        let neighbour = server(mode, "duo", 7000);
        let container = Recipe::bare(mode).network("duo").annotate("shield.allow", "api.example.com").start(&[PROBE, "serve 7000"]);
        eventually("it listens", || container.podman(&["logs"]).stdout.contains("open"));
        for v6 in [false, true] {
            let (ours, theirs) = (container.address(v6), neighbour.address(v6));
            for line in steps(&container, &[format!("tcp {theirs} 7000"), format!("udp {theirs} 7000 x"), format!("ping {theirs}")]) {
                refused_at_once(&line);
            }
            for line in steps(&neighbour, &[format!("tcp {ours} 7000"), format!("udp {ours} 7000 x")]) {
                assert_eq!(line["ok"], false, "{line}");
            }
        }
        assert_eq!(container.podman(&["logs"]).stdout.lines().count(), 1, "somebody came in");
        assert_eq!(neighbour.podman(&["logs"]).stdout.lines().count(), 1, "something went out");
    }

    fn several_cards_are_all_filtered(mode: Mode) {
        let (site, (v4, v6), (other4, other6)) = (site(), bad_addresses(), bad_addresses());
        let peer = server(mode, "duo2", 7000);
        let container = Recipe::bare(mode).network("duo").also("duo2").annotate("shield.allow", &format!("{} {v4}:80 [{v6}]:80 {}:7000", site.name, peer.name)).idle();
        reaches(&container, &site.name);
        all_arrived(&steps(&container, &[format!("tcp {v4} 80"), format!("tcp {v6} 80")]));
        eventually("a neighbour is reached by name", || container.try_step(&format!("tcp {} 7000", peer.name))["ok"] == true);
        let lines = steps(&container, &[format!("tcp {other4} 80"), format!("tcp {other6} 80"), format!("udp {other4} 123 x"), format!("tcp {} 80", peer.address(false))]);
        lines.iter().for_each(refused_at_once);
        nothing_arrived(&[other4.to_string(), other6.to_string()]);
        assert_eq!(container.ruleset().matches("hook egress").count(), 2, "a chain for each card");
    }

    /// `podman network connect`: the card comes after the hook and meets the same default deny.
    fn a_card_that_is_attached_later_is_filtered(mode: Mode) {
        let ((v4, v6), (other4, other6)) = (bad_addresses(), bad_addresses());
        networks(mode);
        let container = Recipe::bare(mode).network("duo").annotate("shield.allow", &format!("{v4}:80 [{v6}]:80")).idle();
        mode.podman(&["network", "connect", "duo2", &container.name]).succeeded();
        eventually("the new card has a chain of its own", || container.ruleset().matches("hook egress").count() == 2);
        mode.podman(&["network", "disconnect", "duo", &container.name]).succeeded();
        let container = container.settled();
        all_arrived(&steps(&container, &[format!("tcp {v4} 80"), format!("tcp {v6} 80")]));
        let lines = steps(&container, &[format!("tcp {other4} 80"), format!("udp {other4} 123 x"), format!("tcp {other6} 80")]);
        lines.iter().for_each(refused_at_once);
        nothing_arrived(&[other4.to_string(), other6.to_string()]);
    }

    /// A10: a network without IPv4: names lead out by the proxy on both families, literal rules by the card.
    fn a_network_with_ipv6_alone_works(mode: Mode) {
        let (site, (v4, v6), (other4, other6)) = (site(), bad_addresses(), bad_addresses());
        networks(mode);
        let container = Recipe::bare(mode).network("six").annotate("shield.allow", &format!("{} v4only.example.com [{v6}]:80 [{v6}]:123/udp", site.name)).idle().settled();
        all_arrived(&steps(&container, &[
            format!("http {0}%6 80 {0} /six", site.name), format!("http {0}%4 80 {0} /four", site.name),
            "http v4only.example.com 80 v4only.example.com /".to_owned(), format!("http {v6} 80 any /six"), format!("udp {v6} 123 six"),
        ]));
        let lines = steps(&container, &[format!("tcp {other6} 80"), format!("udp {other6} 123 x"), format!("tcp {other4} 80"), format!("tcp {v4} 80")]);
        lines.iter().for_each(refused_at_once);
        nothing_arrived(&[v4.to_string(), other4.to_string(), other6.to_string()]);
    }

    /// An internal network has no way out; the supervisor has.
    fn names_work_on_an_internal_network(mode: Mode) {
        let (site, (v4, _)) = (site(), bad_addresses());
        networks(mode);
        let container = Recipe::bare(mode).network("inner").annotate("shield.allow", &site.name).idle();
        reaches(&container, &site.name);
        refused_at_once(&container.try_step(&format!("tcp {v4} 80")));
    }

    /// A22: one network, one policy.
    fn members_of_a_pod_have_one_policy(mode: Mode) {
        let (site, (v4, _)) = (site(), bad_addresses());
        networks(mode);
        for network in ["duo", "none"] {
            let pod = Pod::new(mode, network, &[]);
            let first = Recipe::sealed(mode, &site.name).pod(&pod).idle();
            let second = Recipe::sealed(mode, &site.name).pod(&pod).idle();
            for member in [&first, &second] {
                reaches(member, &site.name);
                refused_at_once(&member.try_step(&format!("tcp {v4} 80")));
            }
            let (third, ended) = Recipe::sealed(mode, "other.example.com").pod(&pod).run(&["true"]);
            let said = ended.failed();
            assert!(said.contains("policy") || said.contains("hook"), "{said}");
            drop(third);
            // A member without terok has no say: the rules are the network's.
            let plain = Recipe::bare(mode).pod(&pod).idle();
            refused_at_once(&plain.try_step(&format!("tcp {v4} 80")));
            reaches(&plain, &site.name);
            // The one that started it all may go; the others stay protected.
            drop(first);
            reaches(&second, &site.name);
            refused_at_once(&second.try_step(&format!("tcp {v4} 80")));
            crate::expect::terok(&second, &["deny", &site.name]);
            is_refused(&second, &site.name);
        }
        nothing_arrived(&[v4.to_string()]);
    }

    /// A22: a pod that already runs something without terok is no place for protection.
    fn a_pod_with_an_unprotected_member_is_refused(mode: Mode) {
        networks(mode);
        let pod = Pod::new(mode, "duo", &[]);
        let _plain = Recipe::bare(mode).pod(&pod).idle();
        let (_gone, ended) = Recipe::sealed(mode, "api.example.com").pod(&pod).run(&["true"]);
        ended.failed();
    }

    /// A pod that stops and starts comes back protected.
    fn a_pod_that_starts_again_is_protected_again(mode: Mode) {
        let (site, (v4, _)) = (site(), bad_addresses());
        networks(mode);
        let pod = Pod::new(mode, "duo", &[]);
        let member = Recipe::sealed(mode, &site.name).pod(&pod).idle();
        mode.podman(&["pod", "restart", &pod.name]).succeeded();
        reaches(&member, &site.name);
        refused_at_once(&member.try_step(&format!("tcp {v4} 80")));
    }
}

every_network! {
    /// A22: `--network container:X` with the same policy, another, none on either side.
    fn a_joined_container_has_the_same_policy_or_is_refused(net: Net) {
        let (site, (v4, _)) = (site(), bad_addresses());
        let ours = Recipe::on(net, &site.name).idle();
        let network = format!("container:{}", ours.name);
        let same = Recipe::on(net, &site.name).network(&network).idle();
        reaches(&same, &site.name);
        refused_at_once(&same.try_step(&format!("tcp {v4} 80")));
        let (_gone, ended) = Recipe::on(net, "other.example.com").network(&network).run(&["true"]);
        let said = ended.failed();
        assert!(said.contains("policy") || said.contains("hook"), "{said}");
        let plain = Recipe::bare(net.mode()).network(&network).idle();
        refused_at_once(&plain.try_step(&format!("tcp {v4} 80")));
        drop((same, plain));
        reaches(&ours, &site.name);

        let open = Recipe::unprotected(net).idle();
        let (_gone, ended) = Recipe::on(net, &site.name).network(&format!("container:{}", open.name)).run(&["true"]);
        ended.failed();
        assert!(seen_at(v4).is_empty());
    }
}

every_card! {
    /// A20, A21: what a joined container with every network capability does to the table is noticed, and the container is cut off.
    fn a_table_that_is_flushed_cuts_the_container_off_within_a_second(net: Net) {
        let (site, (v4, allowed)) = (site(), (bad_addresses().0, bad_addresses().0));
        let tamperings = [
            &["flush", "ruleset"][..],
            &["delete", "table", "inet", "terok"],
            &["add", "chain", "inet", "terok", "out", "{ policy accept; }"],
            &["insert", "rule", "inet", "terok", "out", "accept"],
            &["delete", "table", "netdev", "terok"],
        ];
        let times = tamperings.map(|tampering| {
            let container = Recipe::on(net, &format!("{} {allowed}:80", site.name)).idle();
            reaches(&container, &allowed.to_string());
            container.nsenter(&[&["nft"], tampering].concat()).succeeded();
            let took = noticed(&container, &v4.to_string());
            is_refused(&container, &site.name);
            let status = crate::expect::terok(&container, &["status", "--json"]);
            assert!(status.contains("tampered"), "{status}");
            took
        });
        soonest(&times);
        assert!(seen_at(v4).is_empty());
    }
}
