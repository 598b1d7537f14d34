//! A table with each match and statement that a container with a card needs and a sealed one does not.

use super::table::{addresses, for_seconds, set, tcp};
use terok_policy::layout::{NFLOG_GROUP, TABLE};
use terok_policy::rule::Cidr;
use terok_policy::ruleset::{
    Chain, ChainKind, Egress, Element, End, Family, Hook, Match, NftRule, Ruleset, Set, Statement, Transport,
};

pub const MARK: u32 = 0x1234_5678;
const TCP: Match = Match::L4Proto(6);
const UDP: Match = Match::L4Proto(17);
const ESTABLISHED: u32 = 2;
const RELATED: u32 = 4;
const NEW: u32 = 8;

/// The same table in nft's language is `card.nft`.
pub fn card() -> Ruleset {
    Ruleset { table: TABLE, sets: sets(), chains: vec![postrouting(), out(), input()] }
}

/// The same table in nft's language is `egress.nft`.
pub fn egress(cards: &[&str]) -> Egress {
    Egress {
        table: TABLE,
        cards: cards.iter().map(|name| (*name).to_owned()).collect(),
        rules: vec![
            rule([Match::Mark(MARK)], [Statement::SetMark(0), Statement::Accept]),
            rule([Match::EtherType(0x0806)], [Statement::Accept]),
            rule([], [Statement::Counter, Statement::Drop]),
        ],
    }
}

fn sets() -> Vec<Set> {
    let udp = |element: Element| Element {
        ports: element.ports.map(|(_, low, high)| (Transport::UDP, low, high)),
        ..element
    };
    vec![
        set("named4", Family::V4, true, vec![for_seconds(udp(tcp("192.0.2.1", "192.0.2.1", 443, 443)), 300)]),
        set("named6", Family::V6, true, vec![tcp("2001:db8::1", "2001:db8::1", 443, 443)]),
        set(
            "near4",
            Family::V4,
            false,
            vec![addresses("10.1.2.0", "10.1.2.0"), addresses("10.1.2.2", "10.1.2.255")],
        ),
        set("near6", Family::V6, false, vec![]),
    ]
}

fn rule<const M: usize, const S: usize>(matches: [Match; M], statements: [Statement; S]) -> NftRule {
    NftRule { matches: matches.into(), statements: statements.into() }
}

fn from(addr: &str, prefix: u8) -> Match {
    Match::SAddr(Cidr { addr: addr.parse().unwrap(), prefix })
}

fn looked_up(end: End, name: &'static str, family: Family, ports: bool) -> Match {
    Match::InSet { end, set: name, family, ports }
}

fn postrouting() -> Chain {
    let away = |proto| rule([Match::OutCard, proto], [Statement::Masquerade(61_000, 65_535)]);
    let rules = vec![away(TCP), away(UDP)];
    Chain {
        name: "nat_post",
        kind: ChainKind::Nat,
        hook: Hook::Postrouting,
        priority: 100,
        drop: false,
        rules,
    }
}

fn out() -> Chain {
    let accept = || [Statement::SetMark(MARK), Statement::Accept];
    let log = Statement::Log { group: NFLOG_GROUP, prefix: "terok:allow" };
    let limit = Statement::Limit { rate: 20, burst: 40 };
    let named = || looked_up(End::Destination, "named4", Family::V4, true);
    let rules = vec![
        rule([Match::FromElsewhere], [Statement::Drop]),
        rule([Match::ToLocal], [Statement::Accept]),
        rule([from("10.1.2.3", 32), UDP, Match::SPort(5353)], accept()),
        rule([from("fd00::", 9)], [Statement::Drop]),
        rule([Match::CtReply, Match::CtState(ESTABLISHED)], accept()),
        rule([Match::CtState(RELATED), Match::L4Proto(1)], accept()),
        rule([Match::OutCard, named(), Match::CtState(NEW)], [limit, log]),
        rule([Match::OutCard, named()], accept()),
        rule([Match::Mark(MARK)], [Statement::Accept]),
    ];
    Chain { name: "out", kind: ChainKind::Filter, hook: Hook::Output, priority: 0, drop: true, rules }
}

fn input() -> Chain {
    let lookups = [
        looked_up(End::Source, "named4", Family::V4, true),
        looked_up(End::Source, "named6", Family::V6, true),
        looked_up(End::Source, "near4", Family::V4, false),
        looked_up(End::Source, "near6", Family::V6, false),
    ];
    let mut rules = vec![rule([Match::CtOriginal, TCP, Match::DPortBelow(61_000)], [Statement::Accept])];
    rules.extend(lookups.map(|lookup| rule([Match::CtReply, lookup], [Statement::Accept])));
    Chain { name: "in", kind: ChainKind::Filter, hook: Hook::Input, priority: 0, drop: true, rules }
}
