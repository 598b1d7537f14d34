//! The clauses that the tables of sealed and filtered containers are written with.

use super::HostFacts;
use crate::floor;
use crate::layout::NFLOG_GROUP;
use crate::rule::Cidr;
use crate::ruleset::{Chain, ChainKind, Element, End, Family, Hook, Match, NftRule, Set, Statement};
use crate::virt::{V4_POOL, V6_POOL};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMP6: u8 = 58;
pub(super) const ESTABLISHED: u32 = 2;
pub(super) const RELATED: u32 = 4;
pub(super) const NEW: u32 = 8;
/// Router and neighbour solicitations and advertisements (RFC 4861): without them IPv6 is dead.
const NEIGHBOUR_DISCOVERY: [u8; 4] = [133, 134, 135, 136];

pub(super) fn rule(
    matches: impl IntoIterator<Item = Match>,
    statements: impl IntoIterator<Item = Statement>,
) -> NftRule {
    NftRule { matches: matches.into_iter().collect(), statements: statements.into_iter().collect() }
}

pub(super) fn filter(name: &'static str, hook: Hook, rules: Vec<NftRule>) -> Chain {
    Chain { name, kind: ChainKind::Filter, hook, priority: 0, drop: true, rules }
}

/// Only here the way out is the real one: a socket bound to a card sends even to local addresses by it, and a host may take
/// 127.0.0.1 from a bridge for its own (`route_localnet`). By a card leaves what the table marked, if anything.
pub(super) fn leave(mark: Option<u32>) -> Chain {
    let marked = mark.map(|mark| rule([Match::Mark(mark)], [Statement::Accept]));
    let rules = [rule([Match::OutLo], [Statement::Accept])].into_iter().chain(marked).collect();
    filter("leave", Hook::Postrouting, rules)
}

pub(super) fn nat(name: &'static str, hook: Hook, priority: i32, rules: Vec<NftRule>) -> Chain {
    Chain { name, kind: ChainKind::Nat, hook, priority, drop: false, rules }
}

/// Servers inside the namespace: Docker's own, which asks outside for names that nobody here has.
pub(super) fn name_servers_inside(facts: &HostFacts) -> impl Iterator<Item = IpAddr> {
    facts.resolvers.iter().copied().filter(IpAddr::is_loopback)
}

/// Priority of our translations: such a server has some of its own at -100, which the engine may add when ours are there already.
pub(super) fn before_a_name_server(facts: &HostFacts) -> i32 {
    if name_servers_inside(facts).next().is_some() { -101 } else { -100 }
}

/// Questions to any server go to ours.
pub(super) fn dns_redirects(udp: u16, tcp: u16) -> impl Iterator<Item = NftRule> {
    [(UDP, udp), (TCP, tcp)]
        .into_iter()
        .map(|(proto, port)| rule([Match::L4Proto(proto), Match::DPort(53)], [Statement::Redirect(port)]))
}

/// TCP to virtual addresses goes to the proxy.
pub(super) fn pool_redirects(proxy: u16) -> impl Iterator<Item = NftRule> {
    [(V4_POOL.0.into(), V4_POOL.1), (V6_POOL.0.into(), V6_POOL.1)].into_iter().map(move |(addr, prefix)| {
        rule([Match::DAddr(Cidr { addr, prefix }), Match::L4Proto(TCP)], [Statement::Redirect(proxy)])
    })
}

pub(super) fn neighbour_discovery() -> impl Iterator<Item = Match> {
    NEIGHBOUR_DISCOVERY.into_iter().map(Match::Icmp6Type)
}

/// Logs within a rate, counts every packet, and refuses at once: icmpx would stall an IPv6 connect for a second.
pub(super) fn refusal(matches: &[Match], prefix: &'static str) -> [NftRule; 3] {
    let with = |more: &[Match], statements: Vec<Statement>| NftRule {
        matches: [matches, more].concat(),
        statements,
    };
    [
        with(&[], log(prefix).into()),
        with(&[Match::L4Proto(TCP)], vec![Statement::Counter, Statement::RejectTcpReset]),
        with(&[], vec![Statement::Counter, Statement::RejectAdminProhibited]),
    ]
}

/// A log line, within a rate.
pub(super) fn log(prefix: &'static str) -> [Statement; 2] {
    [Statement::Limit { rate: 20, burst: 40 }, Statement::Log { group: NFLOG_GROUP, prefix }]
}

pub(super) fn loopback() -> impl Iterator<Item = Cidr> {
    let v4 = Cidr { addr: Ipv4Addr::new(127, 0, 0, 0).into(), prefix: 8 };
    [v4, Cidr { addr: Ipv6Addr::LOCALHOST.into(), prefix: 128 }].into_iter()
}

/// Looks `end` up in the set of either family.
pub(super) fn lookups(end: End, sets: [&'static str; 2], ports: bool) -> impl Iterator<Item = Match> {
    let [v4, v6] = sets;
    [(v4, Family::V4), (v6, Family::V6)].into_iter().map(move |(set, family)| Match::InSet {
        end,
        set,
        family,
        ports,
    })
}

/// Sets of the addresses that only a literal rule reaches (E3), the host's `own` among them, neighbouring blocks merged.
pub(super) fn floor_sets(own: &[IpAddr]) -> Vec<Set> {
    let blocks = || floor::blocks().iter().copied().chain(own.iter().map(|&ip| Cidr::host(ip)));
    [("floor4", Family::V4), ("floor6", Family::V6)]
        .into_iter()
        .map(|(name, family)| address_set(name, family, blocks().map(|block| block.range())))
        .collect()
}

/// A set of addresses from those of `ranges` that are of `family`; overlapping and neighbouring ones are merged.
pub(super) fn address_set(
    name: &'static str,
    family: Family,
    ranges: impl Iterator<Item = (IpAddr, IpAddr)>,
) -> Set {
    let mut sorted: Vec<_> = ranges.filter(|range| range.0.is_ipv4() == (family == Family::V4)).collect();
    sorted.sort_unstable();
    let mut merged: Vec<(IpAddr, IpAddr)> = Vec::new();
    for (first, last) in sorted {
        match merged.last_mut() {
            Some(before) if next(before.1).is_none_or(|next| first <= next) => before.1 = before.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    let elements = merged.into_iter().map(|addr| Element { addr, ports: None, timeout: None }).collect();
    Set { name, family, ports: false, elements }
}

/// The address after `ip`.
pub(super) fn next(ip: IpAddr) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).checked_add(1).map(|next| IpAddr::V4(next.into())),
        IpAddr::V6(ip) => u128::from(ip).checked_add(1).map(|next| IpAddr::V6(next.into())),
    }
}

/// The address before `ip`.
pub(super) fn previous(ip: IpAddr) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).checked_sub(1).map(|before| IpAddr::V4(before.into())),
        IpAddr::V6(ip) => u128::from(ip).checked_sub(1).map(|before| IpAddr::V6(before.into())),
    }
}
