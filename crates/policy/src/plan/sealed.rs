//! The chains of a container without a network card: everything allowed is redirected to the supervisor's sockets on
//! loopback, the rest is refused where it would leave by `lo`.

use super::Wiring;
use crate::floor;
use crate::layout::NFLOG_GROUP;
use crate::rule::Cidr;
use crate::ruleset::{Chain, ChainKind, Element, End, Family, Hook, Match, NftRule, Set, Statement};
use crate::virt::{V4_POOL, V6_POOL, V6_SELF};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP6: u8 = 58;
/// Router and neighbour solicitations and advertisements (RFC 4861): without them IPv6 is dead.
const NEIGHBOUR_DISCOVERY: [u8; 4] = [133, 134, 135, 136];
const ESTABLISHED_OR_RELATED: u32 = 2 | 4;

/// Sets of the addresses that only a literal rule reaches (E3), neighbouring blocks merged.
pub(super) fn floor_sets() -> Vec<Set> {
    [("floor4", Family::V4), ("floor6", Family::V6)]
        .into_iter()
        .map(|(name, family)| {
            let mut ranges: Vec<(IpAddr, IpAddr)> = Vec::new();
            for block in floor::blocks().iter().filter(|block| block.addr.is_ipv4() == (family == Family::V4))
            {
                let (first, last) = block.range();
                match ranges.last_mut() {
                    Some(before) if next(before.1) == Some(first) => before.1 = last,
                    _ => ranges.push((first, last)),
                }
            }
            let elements =
                ranges.into_iter().map(|addr| Element { addr, ports: None, timeout: None }).collect();
            Set { name, family, ports: false, elements }
        })
        .collect()
}

fn next(ip: IpAddr) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).checked_add(1).map(|next| IpAddr::V4(next.into())),
        IpAddr::V6(ip) => u128::from(ip).checked_add(1).map(|next| IpAddr::V6(next.into())),
    }
}

pub(super) fn chains(wiring: &Wiring) -> Vec<Chain> {
    vec![
        Chain {
            name: "nat_out",
            kind: ChainKind::Nat,
            hook: Hook::Output,
            priority: -100,
            drop: false,
            rules: redirects(wiring),
        },
        Chain {
            name: "out",
            kind: ChainKind::Filter,
            hook: Hook::Output,
            priority: 0,
            drop: true,
            rules: output(),
        },
        Chain {
            name: "in",
            kind: ChainKind::Filter,
            hook: Hook::Input,
            priority: 0,
            drop: true,
            rules: input(),
        },
        Chain {
            name: "forward",
            kind: ChainKind::Filter,
            hook: Hook::Forward,
            priority: 0,
            drop: true,
            rules: Vec::new(),
        },
    ]
}

fn redirects(wiring: &Wiring) -> Vec<NftRule> {
    let to_proxy = || Statement::Redirect(wiring.proxy);
    let dns = |proto, port| rule([Match::L4Proto(proto), Match::DPort(53)], [Statement::Redirect(port)]);
    let pool =
        |addr: IpAddr, prefix| rule([Match::DAddr(Cidr { addr, prefix }), Match::L4Proto(TCP)], [to_proxy()]);
    let mut rules = vec![dns(UDP, wiring.dns_udp), dns(TCP, wiring.dns_tcp)];
    rules.extend(loopback().map(|block| rule([Match::DAddr(block)], [Statement::Return])));
    rules.push(pool(V4_POOL.0.into(), V4_POOL.1));
    rules.push(pool(V6_POOL.0.into(), V6_POOL.1));
    // What no rule names is not redirected: the filter chain refuses it where it would leave.
    let verdicts = [
        (["deny4", "deny6"], true, Statement::Return),
        (["allow4", "allow6"], true, to_proxy()),
        (["floor4", "floor6"], false, Statement::Return),
        (["open4", "open6"], true, to_proxy()),
    ];
    for (sets, ports, verdict) in verdicts {
        rules.extend(
            lookups(sets, ports)
                .map(|lookup| rule([Match::OutLo, Match::L4Proto(TCP), lookup], [verdict.clone()])),
        );
    }
    rules
}

fn output() -> Vec<NftRule> {
    let own = Cidr { addr: V6_SELF.into(), prefix: 128 };
    let mut rules: Vec<NftRule> = loopback()
        .chain([own])
        .map(|block| rule([Match::OutLo, Match::DAddr(block)], [Statement::Accept]))
        .collect();
    rules.extend(neighbour_discovery());
    for lookup in lookups(["deny4", "deny6"], true) {
        rules.extend(refusal(&[lookup], "terok:deny"));
    }
    for lookup in lookups(["floor4", "floor6"], false) {
        rules.extend(refusal(&[lookup], "terok:floor"));
    }
    rules.extend(refusal(&[], "terok:default"));
    rules
}

fn input() -> Vec<NftRule> {
    let mut rules = vec![
        rule([Match::InLo], [Statement::Accept]),
        rule([Match::CtState(ESTABLISHED_OR_RELATED)], [Statement::Accept]),
    ];
    rules.extend(neighbour_discovery());
    rules
}

fn neighbour_discovery() -> impl Iterator<Item = NftRule> {
    NEIGHBOUR_DISCOVERY
        .into_iter()
        .map(|number| rule([Match::L4Proto(ICMP6), Match::Icmp6Type(number)], [Statement::Accept]))
}

/// Logs within a rate, counts every packet, and refuses at once: icmpx would stall an IPv6 connect for a second.
fn refusal(matches: &[Match], prefix: &'static str) -> [NftRule; 3] {
    let with = |more: &[Match], statements: Vec<Statement>| NftRule {
        matches: [matches, more].concat(),
        statements,
    };
    [
        with(
            &[],
            vec![Statement::Limit { rate: 20, burst: 40 }, Statement::Log { group: NFLOG_GROUP, prefix }],
        ),
        with(&[Match::L4Proto(TCP)], vec![Statement::Counter, Statement::RejectTcpReset]),
        with(&[], vec![Statement::Counter, Statement::RejectAdminProhibited]),
    ]
}

fn loopback() -> impl Iterator<Item = Cidr> {
    let v4 = Cidr { addr: Ipv4Addr::new(127, 0, 0, 0).into(), prefix: 8 };
    [v4, Cidr { addr: Ipv6Addr::LOCALHOST.into(), prefix: 128 }].into_iter()
}

fn lookups(sets: [&'static str; 2], ports: bool) -> impl Iterator<Item = Match> {
    let [v4, v6] = sets;
    [(v4, Family::V4), (v6, Family::V6)].into_iter().map(move |(set, family)| Match::InSet {
        end: End::Destination,
        set,
        family,
        ports,
    })
}

fn rule<const M: usize, const S: usize>(matches: [Match; M], statements: [Statement; S]) -> NftRule {
    NftRule { matches: matches.into(), statements: statements.into() }
}
