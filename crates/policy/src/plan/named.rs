//! What answers gave out, as disjoint boxes: the addresses of each granted name on the ports of its `direct` and `/udp`
//! rules (of all its rules, where another container has that name), until the answer's end.

use super::{HostFacts, Now};
use crate::answer::{self, Answer};
use crate::name::Name;
use crate::policy::Policy;
use crate::rule::{Ports, Proto, Rule};
use crate::ruleset::Element;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// Ports of one protocol and when they close, Unix seconds.
type Spans = Vec<(u16, u16, u64)>;

pub(super) fn elements(policy: &Policy, facts: &HostFacts, now: &Now<'_>) -> Vec<Element> {
    let rules = Rules::of(policy, now);
    let mut spans: BTreeMap<(IpAddr, Proto), Spans> = BTreeMap::new();
    let mut known: Option<(&Name, [Opened; 2])> = None;
    for (name, ip, until) in now.grants.iter().filter(|&(_, _, until)| until > now.unix) {
        // Grants come in order of names.
        if known.as_ref().is_none_or(|(before, _)| *before != name) {
            known = Some((name, Proto::ALL.map(|proto| rules.opened(facts, name, proto))));
        }
        let Some((_, opened)) = &known else { continue };
        for (proto, opened) in Proto::ALL.into_iter().zip(opened) {
            let list = opened.at(facts, ip).iter().map(|&(from, to)| (from, to, until));
            spans.entry((ip, proto)).or_default().extend(list);
        }
    }
    let mut elements: Vec<Element> = Vec::new();
    for ((ip, proto), spans) in spans {
        elements.extend(latest(&spans).into_iter().map(|(from, to, until)| Element {
            addr: (ip, ip),
            ports: Some((proto.into(), from, to)),
            timeout: Some(Duration::from_secs(until - now.unix)),
        }));
    }
    elements.sort_unstable();
    elements
}

/// Overlapping spans as disjoint ones, each with the latest end of those that cover it.
fn latest(spans: &Spans) -> Spans {
    let mut edges: Vec<u32> =
        spans.iter().flat_map(|&(from, to, _)| [u32::from(from), u32::from(to) + 1]).collect();
    edges.sort_unstable();
    edges.dedup();
    let mut disjoint: Spans = Vec::new();
    for (edge, next) in edges.iter().zip(edges.iter().skip(1)) {
        let (first, last) = (*edge as u16, (*next - 1) as u16);
        let covering = spans.iter().filter(|&&(from, to, _)| from <= first && last <= to);
        let Some(until) = covering.map(|&(_, _, until)| until).max() else { continue };
        match disjoint.last_mut() {
            Some((_, end, same)) if u32::from(*end) + 1 == *edge && *same == until => *end = last,
            _ => disjoint.push((first, last, until)),
        }
    }
    disjoint
}

/// What a name opens on the addresses it is answered with.
struct Opened {
    /// On addresses of the outside.
    real: Ports,
    /// On addresses of other containers, for a name that they may have.
    peer: Option<Ports>,
}

impl Opened {
    fn at(&self, facts: &HostFacts, ip: IpAddr) -> &[(u16, u16)] {
        match &self.peer {
            Some(peer) if answer::may_be_given(facts, Answer::Peer, ip) => &peer.0,
            _ if answer::may_be_given(facts, Answer::Real, ip) => &self.real.0,
            _ => &[],
        }
    }
}

/// The rules that name something.
struct Rules<'a> {
    allow: Vec<&'a Rule>,
    deny: Vec<&'a Rule>,
}

impl<'a> Rules<'a> {
    fn of(policy: &'a Policy, now: &Now<'a>) -> Self {
        let allow = policy.allow.iter().map(|sourced| &sourced.rule).chain(&now.live.allow);
        let deny = policy.deny.iter().map(|sourced| &sourced.rule).chain(&now.live.deny);
        Rules { allow: allow.collect(), deny: deny.collect() }
    }

    fn opened(&self, facts: &HostFacts, name: &Name, proto: Proto) -> Opened {
        let naming = |rules: &[&'a Rule], with: &dyn Fn(&Rule) -> bool| {
            let these = rules.iter().filter(|rule| rule.target.names(name) && with(rule));
            Ports::new(these.flat_map(|rule| rule.ports.0.iter().copied()).collect())
        };
        let denied = naming(&self.deny, &|rule| rule.denies_over(proto));
        let open = |with: &dyn Fn(&Rule) -> bool| {
            naming(&self.allow, &|rule| rule.proto == proto && with(rule)).without(&denied)
        };
        let real = open(&answer::is_real);
        let peer = answer::is_peer_name(facts, name).then(|| open(&|_| true));
        Opened { real, peer }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn spans_are_disjoint_and_each_port_closes_at_the_latest_end(
            spans in proptest::collection::vec((0u16..12, 0u16..5, 1u64..4), 0..6),
            last: bool,
        ) {
            let base = if last { u16::MAX - 16 } else { 0 };
            let spans: Spans = spans.into_iter().map(|(from, n, until)| (base + from, base + from + n, until)).collect();
            let disjoint = latest(&spans);
            for port in base..=base + 16 {
                let wanted = spans.iter().filter(|span| (span.0..=span.1).contains(&port)).map(|span| span.2).max();
                let found: Vec<u64> =
                    disjoint.iter().filter(|span| (span.0..=span.1).contains(&port)).map(|span| span.2).collect();
                prop_assert_eq!(found, Vec::from_iter(wanted), "port {}", port);
            }
            let joined = disjoint.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0 || pair[0].2 != pair[1].2);
            prop_assert!(joined, "{:?} could be fewer", disjoint);
        }
    }
}
