//! The table of a sealed container, built by hand.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;
use terok_policy::layout::{NFLOG_GROUP, TABLE};
use terok_policy::rule::{Cidr, Proto};
use terok_policy::ruleset::{
    Chain, ChainKind, Element, End, Family, Hook, Match, NftRule, Ruleset, Set, Statement,
};
use terok_policy::virt::{V4_POOL, V6_POOL, V6_SELF};

const TCP: Match = Match::L4Proto(6);
const UDP: Match = Match::L4Proto(17);

/// Ports of the listeners.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    pub dns_udp: u16,
    pub dns_tcp: u16,
    pub proxy: u16,
}

pub const PORTS: Ports = Ports { dns_udp: 1053, dns_tcp: 1054, proxy: 1080 };

/// A whole table: what a sealed container gets, with literal rules.
pub fn sealed(ports: Ports) -> Ruleset {
    Ruleset { table: TABLE, sets: sets(), chains: vec![nat_out(ports), out(), input(), forward()] }
}

pub fn set(name: &'static str, family: Family, ports: bool, elements: Vec<Element>) -> Set {
    Set { name, family, ports, elements }
}

/// Every address from `first` to `last`, on TCP ports `low` to `high`.
pub fn tcp(first: &str, last: &str, low: u16, high: u16) -> Element {
    let addr = (first.parse().unwrap(), last.parse().unwrap());
    Element { addr, ports: Some((Proto::Tcp.into(), low, high)), timeout: None }
}

pub fn addresses(first: &str, last: &str) -> Element {
    let addr = (first.parse().unwrap(), last.parse().unwrap());
    Element { addr, ports: None, timeout: None }
}

pub fn for_seconds(element: Element, seconds: u64) -> Element {
    Element { timeout: Some(Duration::from_secs(seconds)), ..element }
}

pub fn sets() -> Vec<Set> {
    let (v4, v6) = (Family::V4, Family::V6);
    vec![
        set("deny4", v4, true, vec![tcp("203.0.113.0", "203.0.113.255", 0, 65535)]),
        set(
            "deny6",
            v6,
            true,
            vec![tcp("2001:db8:dead::", "2001:db8:dead:ffff:ffff:ffff:ffff:ffff", 0, 65535)],
        ),
        set(
            "floor4",
            v4,
            false,
            vec![
                addresses("0.0.0.0", "0.255.255.255"),
                addresses("10.0.0.0", "10.255.255.255"),
                addresses("192.168.0.0", "192.168.255.255"),
                addresses("224.0.0.0", "239.255.255.255"),
                addresses("240.0.0.0", "255.255.255.255"),
            ],
        ),
        set(
            "floor6",
            v6,
            false,
            vec![
                addresses("::", "::"),
                addresses("fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
                addresses("ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ],
        ),
        set(
            "allow4",
            v4,
            true,
            vec![tcp("192.0.2.10", "192.0.2.10", 443, 443), tcp("10.1.2.0", "10.1.2.7", 1, 1024)],
        ),
        set("allow6", v6, true, vec![tcp("2001:db8::10", "2001:db8::10", 443, 443)]),
        set("open4", v4, true, vec![for_seconds(tcp("0.0.0.0", "255.255.255.255", 8000, 8999), 600)]),
        set("open6", v6, true, vec![]),
    ]
}

fn rule(matches: impl Into<Vec<Match>>, statements: impl Into<Vec<Statement>>) -> NftRule {
    NftRule { matches: matches.into(), statements: statements.into() }
}

fn block(addr: impl Into<IpAddr>, prefix: u8) -> Match {
    Match::DAddr(Cidr { addr: addr.into(), prefix })
}

fn in_sets(name4: &'static str, name6: &'static str, ports: bool) -> [Match; 2] {
    let of = |set, family| Match::InSet { end: End::Destination, set, family, ports };
    [of(name4, Family::V4), of(name6, Family::V6)]
}

fn loopback() -> [Match; 2] {
    [block(Ipv4Addr::new(127, 0, 0, 0), 8), block(Ipv6Addr::LOCALHOST, 128)]
}

fn nat_out(ports: Ports) -> Chain {
    let proxy = Statement::Redirect(ports.proxy);
    let mut rules = vec![
        rule([UDP, Match::DPort(53)], [Statement::Redirect(ports.dns_udp)]),
        rule([TCP, Match::DPort(53)], [Statement::Redirect(ports.dns_tcp)]),
    ];
    rules.extend(loopback().map(|own| rule([own], [Statement::Return])));
    rules.extend(
        [block(V4_POOL.0, V4_POOL.1), block(V6_POOL.0, V6_POOL.1)]
            .map(|pool| rule([TCP, pool], [proxy.clone()])),
    );
    for (sets, then) in [
        (in_sets("deny4", "deny6", true), Statement::Return),
        (in_sets("allow4", "allow6", true), proxy.clone()),
        (in_sets("floor4", "floor6", false), Statement::Return),
        (in_sets("open4", "open6", true), proxy.clone()),
    ] {
        rules.extend(sets.map(|set| rule([Match::OutLo, TCP, set], [then.clone()])));
    }
    Chain { name: "nat_output", kind: ChainKind::Nat, hook: Hook::Output, priority: -100, drop: false, rules }
}

fn out() -> Chain {
    let mut rules: Vec<_> = loopback()
        .into_iter()
        .chain([block(V6_SELF, 128)])
        .map(|own| rule([Match::OutLo, own], [Statement::Accept]))
        .collect();
    rules.extend((133..=136).map(|kind| rule([Match::Icmp6Type(kind)], [Statement::Accept])));
    let refused = |found: Option<Match>, prefix: &'static str| {
        let with = |more: &[Match]| found.iter().chain(more).cloned().collect::<Vec<_>>();
        let log = [Statement::Limit { rate: 20, burst: 40 }, Statement::Log { group: NFLOG_GROUP, prefix }];
        [
            rule(with(&[]), log),
            rule(with(&[TCP]), [Statement::Counter, Statement::RejectTcpReset]),
            rule(with(&[]), [Statement::Counter, Statement::RejectAdminProhibited]),
        ]
    };
    for set in in_sets("deny4", "deny6", true) {
        rules.extend(refused(Some(set), "terok:deny"));
    }
    for set in in_sets("floor4", "floor6", false) {
        rules.extend(refused(Some(set), "terok:floor"));
    }
    rules.extend(refused(None, "terok:default"));
    Chain { name: "output", kind: ChainKind::Filter, hook: Hook::Output, priority: 0, drop: true, rules }
}

fn input() -> Chain {
    let mut rules =
        vec![rule([Match::InLo], [Statement::Accept]), rule([Match::CtState(2)], [Statement::Accept])];
    rules.extend((133..=136).map(|kind| rule([Match::Icmp6Type(kind)], [Statement::Accept])));
    Chain { name: "input", kind: ChainKind::Filter, hook: Hook::Input, priority: 0, drop: true, rules }
}

fn forward() -> Chain {
    Chain {
        name: "forward",
        kind: ChainKind::Filter,
        hook: Hook::Forward,
        priority: 0,
        drop: true,
        rules: vec![],
    }
}
