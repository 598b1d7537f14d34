//! The chains of a container with a network card. Names go through the proxy on loopback as in a sealed container;
//! addresses that a rule lists, and those that an answer of ours gave out, leave by the card. Every packet is looked up,
//! `established` ones too: when an element goes, the flow ends with its next packet.

use super::clauses::*;
use super::{HostFacts, Wiring};
use crate::policy::Policy;
use crate::rule::Cidr;
use crate::ruleset::{Chain, Egress, End, Family, Hook, Match, NftRule, Set, Statement};
use crate::virt::V6_SELF;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What the container starts has a port from here on the wire ([`Statement::Masquerade`]), and nothing new may come in
/// there: a peer that lost its rule cannot come back as a flow from outside. That new TCP begins with a SYN is no substitute: a
/// router that remembers a half-open connection takes the peer's SYN for its other half, and lets it in.
pub const FIRST_OWN_PORT: u16 = 61_000;
/// ETH_P_ARP
const ARP: u16 = 0x0806;
/// IPPROTO_IGMP, and of ICMPv6 the multicast listener messages (RFC 3810): kernels send them unasked.
const IGMP: u8 = 2;
const LISTENER_REPORTS: [u8; 4] = [130, 131, 132, 143];
const ECHO_REQUEST6: u8 = 128;

pub(super) fn chains(policy: &Policy, facts: &HostFacts, wiring: &Wiring) -> Vec<Chain> {
    let peers = Peers { resolvers: &facts.resolvers, port: wiring.peers };
    let masquerade = Statement::Masquerade(FIRST_OWN_PORT, u16::MAX);
    let leaving = |proto| rule([Match::OutCard, Match::L4Proto(proto)], [masquerade.clone()]);
    vec![
        nat("nat_out", Hook::Output, before_a_name_server(facts), redirects(policy, &peers, wiring)),
        nat("nat_post", Hook::Postrouting, 100, vec![leaving(TCP), leaving(UDP)]),
        filter("out", Hook::Output, output(facts, &peers, wiring.mark)),
        leave(Some(wiring.mark)),
        filter("in", Hook::Input, input(policy, &peers, wiring)),
        filter("forward", Hook::Forward, Vec::new()),
    ]
}

/// What may leave by each card: what the table marked, and ARP.
pub(super) fn egress(facts: &HostFacts, wiring: &Wiring) -> Egress {
    Egress {
        table: crate::layout::TABLE,
        cards: facts.cards.iter().map(|card| card.name.clone()).collect(),
        rules: vec![
            rule([Match::Mark(wiring.mark)], [Statement::SetMark(0), Statement::Accept]),
            rule([Match::EtherType(ARP)], [Statement::Accept]),
        ],
    }
}

/// Sets of who is on the same link as the container: the networks of shared cards without their gateways.
pub(super) fn near_sets(facts: &HostFacts) -> Vec<Set> {
    let mut near = Vec::new();
    for card in facts.cards.iter().filter(|card| card.shared) {
        let mut gateways: Vec<IpAddr> = card.gateways.iter().map(IpAddr::to_canonical).collect();
        gateways.sort_unstable();
        for net in &card.nets {
            let (mut first, last) = net.range();
            let mut left = true;
            for &gateway in gateways.iter().filter(|gateway| net.contains(**gateway)) {
                near.extend(
                    previous(gateway).filter(|&before| first <= before).map(|before| (first, before)),
                );
                match next(gateway) {
                    Some(after) => first = after,
                    None => left = false,
                }
            }
            if left && first <= last {
                near.push((first, last));
            }
        }
    }
    [("near4", Family::V4), ("near6", Family::V6)]
        .into_iter()
        .map(|(name, family)| address_set(name, family, near.iter().copied()))
        .collect()
}

/// The supervisor's own questions to the DNS servers of the container's networks.
struct Peers<'a> {
    resolvers: &'a [IpAddr],
    port: u16,
}

impl Peers<'_> {
    fn questions(&self) -> impl Iterator<Item = [Match; 4]> {
        let question = |&ip| {
            let server = Match::DAddr(Cidr::host(ip));
            [Match::L4Proto(UDP), Match::SPort(self.port), Match::DPort(53), server]
        };
        self.resolvers.iter().filter(|_| self.port != 0).map(question)
    }

    fn answers(&self) -> impl Iterator<Item = [Match; 5]> {
        let answer = |&ip| {
            let server = Match::SAddr(Cidr::host(ip));
            [Match::CtReply, Match::L4Proto(UDP), Match::SPort(53), Match::DPort(self.port), server]
        };
        self.resolvers.iter().filter(|_| self.port != 0).map(answer)
    }
}

fn redirects(policy: &Policy, peers: &Peers<'_>, wiring: &Wiring) -> Vec<NftRule> {
    let to_proxy = || Statement::Redirect(wiring.proxy);
    let mut rules: Vec<NftRule> =
        peers.questions().map(|question| rule(question, [Statement::Return])).collect();
    rules.extend(dns_redirects(wiring.dns_udp, wiring.dns_tcp));
    rules.push(rule([Match::ToLocal], [Statement::Return]));
    rules.extend(pool_redirects(wiring.proxy));
    let mut by_set = |sets, ports, way: Option<Match>, verdict: Statement| {
        for lookup in lookups(End::Destination, sets, ports) {
            let matches = way.clone().into_iter().chain([Match::L4Proto(TCP), lookup]);
            rules.push(rule(matches, [verdict.clone()]));
        }
    };
    by_set(["deny4", "deny6"], true, None, Statement::Return);
    // A listed address that no card leads to is reached through the proxy, as in a sealed container.
    by_set(["allow4", "allow6"], true, Some(Match::OutLo), to_proxy());
    by_set(["allow4", "allow6"], true, None, Statement::Return);
    by_set(["named4", "named6"], true, None, Statement::Return);
    by_set(["floor4", "floor6"], false, None, Statement::Return);
    // `any` and `down` go through the proxy, where each connection is judged and recorded.
    by_set(["open4", "open6"], true, None, to_proxy());
    if policy.holds_or_learns() {
        rules.push(rule([Match::L4Proto(TCP)], [to_proxy()]));
    }
    rules
}

fn output(facts: &HostFacts, peers: &Peers<'_>, mark: u32) -> Vec<NftRule> {
    let pass = || pass(mark);
    let mut rules = Vec::new();
    for server in name_servers_inside(facts).map(|ip| Match::DAddr(Cidr::host(ip))) {
        // The engine has translated the port already: the real one is for everybody inside to read in /proc/net/udp.
        let question = [Match::L4Proto(UDP), Match::SPort(peers.port), server.clone()];
        rules.extend((peers.port != 0).then(|| rule(question, [Statement::Accept])));
        rules.extend(refusal(&[server], "terok:dns"));
    }
    rules.extend(loopback().map(|net| rule([Match::SAddr(net), Match::DAddr(net)], [Statement::Accept])));
    // The kernel's own resets come in the name of who was not reached.
    rules.push(rule([Match::ToLocal, Match::CtState(RELATED)], [Statement::Accept]));
    rules.extend(neighbour_discovery().map(|kind| rule([Match::L4Proto(ICMP6), kind], pass())));
    rules.extend(
        LISTENER_REPORTS.map(|kind| rule([Match::L4Proto(ICMP6), Match::Icmp6Type(kind)], [Statement::Drop])),
    );
    rules.push(rule([Match::L4Proto(IGMP)], [Statement::Drop]));
    // IPv6 lets anybody send in any name (IPV6_FREEBIND). A flow begun so towards ourselves would make an answer of what we
    // send, and a refusal would carry the packet to whose name it is: not even that.
    rules.push(rule([Match::FromElsewhere], log("terok:default")));
    rules.push(rule([Match::FromElsewhere], [Statement::Counter, Statement::Drop]));
    // Own services, own addresses and what was redirected: `oif` still says the card there.
    rules.extend(loopback().map(|net| rule([Match::DAddr(net)], [Statement::Accept])));
    // rootlessport, which publishes a user's ports, connects from inside the namespace to the card's own address: `block`
    // and whoever denies that address mean these, too. Answers and resets to that address are no such connections.
    for lookup in lookups(End::Destination, ["deny4", "deny6"], true) {
        let begun = [Match::ToLocal, Match::CtOriginal, Match::CtState(NEW | ESTABLISHED), lookup];
        rules.extend(refusal(&begun, "terok:deny"));
    }
    rules.push(rule([Match::ToLocal], [Statement::Accept]));
    rules.extend(peers.questions().map(|question| rule(question, pass())));
    for (proto, refuse) in [(TCP, Statement::RejectTcpReset), (UDP, Statement::RejectAdminProhibited)] {
        let question = [Match::OutCard, Match::L4Proto(proto), Match::DPort(53)];
        rules.push(rule(question.clone(), log("terok:dns")));
        rules.push(rule(question, [Statement::Counter, refuse]));
    }
    for lookup in lookups(End::Destination, ["deny4", "deny6"], true) {
        rules.extend(refusal(&[lookup], "terok:deny"));
    }
    rules.push(rule([Match::CtReply, Match::CtState(ESTABLISHED)], pass()));
    rules.extend(errors().map(|matches| rule(matches, pass())));
    for sets in [["allow4", "allow6"], ["named4", "named6"]] {
        for lookup in lookups(End::Destination, sets, true) {
            rules.extend(recorded(&[Match::OutCard, lookup], mark));
        }
    }
    for lookup in lookups(End::Destination, ["floor4", "floor6"], false) {
        rules.extend(refusal(&[lookup], "terok:floor"));
    }
    for (lookup, icmp) in lookups(End::Destination, ["open4", "open6"], true).zip([ICMP, ICMP6]) {
        for proto in [UDP, icmp] {
            rules.extend(recorded(&[Match::OutCard, Match::L4Proto(proto), lookup.clone()], mark));
        }
    }
    rules.extend(refusal(&[], "terok:default"));
    rules
}

fn pass(mark: u32) -> [Statement; 2] {
    [Statement::SetMark(mark), Statement::Accept]
}

/// Lets through what matches; a flow's first packet is logged.
fn recorded(matches: &[Match], mark: u32) -> [NftRule; 2] {
    let fresh = [matches, &[Match::CtState(NEW)]].concat();
    [rule(fresh, log("terok:allow")), rule(matches.to_vec(), pass(mark))]
}

fn input(policy: &Policy, peers: &Peers<'_>, wiring: &Wiring) -> Vec<NftRule> {
    let accept = |matches: &[Match]| rule(matches.to_vec(), [Statement::Accept]);
    let own = [(UDP, wiring.dns_udp), (TCP, wiring.dns_tcp), (TCP, wiring.proxy)];
    let mut rules: Vec<NftRule> = own
        .into_iter()
        .map(|(proto, port)| accept(&[Match::InLo, Match::L4Proto(proto), Match::DPort(port)]))
        .collect();
    let inside = loopback().into_iter().chain([Cidr::host(V6_SELF.into())]);
    rules.extend(inside.map(|block| accept(&[Match::InLo, Match::SAddr(block)])));
    // What a rootless engine publishes comes by lo as well: its helper in this namespace connects from the card's own address.
    // The answers of our services are on their way back, and resets of ours, from any address, are related.
    let coming = [Match::InLo, Match::CtOriginal, Match::CtState(NEW | ESTABLISHED)];
    for lookup in lookups(End::Source, ["deny4", "deny6"], true) {
        let tcp = [&coming[..], &[Match::L4Proto(TCP), lookup.clone()]].concat();
        rules.push(rule(tcp.clone(), log("terok:in")));
        rules.push(rule(tcp, [Statement::Counter, Statement::RejectTcpReset]));
        rules.push(rule([&coming[..], &[lookup]].concat(), [Statement::Counter, Statement::Drop]));
    }
    rules.push(accept(&[Match::InLo]));
    rules.extend(neighbour_discovery().map(|kind| accept(&[Match::L4Proto(ICMP6), kind])));
    rules.push(rule([Match::L4Proto(IGMP)], [Statement::Drop]));
    rules.extend(peers.answers().map(|answer| accept(&answer)));
    // A flow whose rule went ends by the reset that its next packet out gets: where the container only reads, that is the
    // acknowledgement of what still comes in. Dropped here, the program inside would wait for ever.
    rules.push(accept(&[Match::CtReply, Match::L4Proto(TCP), Match::CtState(ESTABLISHED)]));
    rules.extend(
        lookups(End::Source, ["deny4", "deny6"], true).map(|lookup| rule([lookup], [Statement::Drop])),
    );
    // Answers, while what they answer is still allowed.
    let answers = [
        (["allow4", "allow6"], true, Statement::Accept),
        (["named4", "named6"], true, Statement::Accept),
        (["floor4", "floor6"], false, Statement::Drop),
        (["open4", "open6"], true, Statement::Accept),
    ];
    for (sets, ports, verdict) in answers {
        rules.extend(
            lookups(End::Source, sets, ports).map(|lookup| rule([Match::CtReply, lookup], [verdict.clone()])),
        );
    }
    rules.extend(errors().map(|matches| accept(&matches)));
    // What comes in is what the engine publishes: it forwards nothing else here. Neighbours on the link are not the engine.
    let below = |proto| [Match::CtOriginal, Match::L4Proto(proto), Match::DPortBelow(FIRST_OWN_PORT)];
    // Of ICMP only requests begin a flow for conntrack.
    let echo4 = [Match::CtOriginal, Match::L4Proto(ICMP), Match::CtState(NEW | ESTABLISHED)];
    let echo6 = [Match::CtOriginal, Match::L4Proto(ICMP6), Match::Icmp6Type(ECHO_REQUEST6)];
    let mut published: Vec<u16> = policy.publish.iter().map(|publish| publish.to).collect();
    published.retain(|&port| port < FIRST_OWN_PORT);
    published.sort_unstable();
    published.dedup();
    rules.extend(
        published.iter().map(|&port| accept(&[Match::CtOriginal, Match::L4Proto(TCP), Match::DPort(port)])),
    );
    for lookup in lookups(End::Source, ["near4", "near6"], false) {
        rules.push(rule([Match::CtOriginal, lookup.clone()], log("terok:in")));
        rules.push(rule([Match::CtOriginal, lookup], [Statement::Counter, Statement::Drop]));
    }
    rules.extend([below(TCP), below(UDP), echo4, echo6].map(|matches| accept(&matches)));
    rules
}

fn loopback() -> [Cidr; 2] {
    [Cidr { addr: Ipv4Addr::new(127, 0, 0, 0).into(), prefix: 8 }, Cidr::host(Ipv6Addr::LOCALHOST.into())]
}

/// ICMP errors about flows that are known.
fn errors() -> impl Iterator<Item = [Match; 2]> {
    [ICMP, ICMP6].into_iter().map(|proto| [Match::L4Proto(proto), Match::CtState(RELATED)])
}
