//! The wanted contents of the variable sets: literal rules, `any` and `down`, and what answers gave out.

use super::{HostFacts, Network, Now, boxes, named};
use crate::floor::{self, Floor};
use crate::policy::{Policy, Shield};
use crate::rule::{Cidr, Ports, Proto, Rule, Target};
use crate::ruleset::{Element, Family, Set, Transport};
use std::time::Duration;

pub(super) fn live_sets(policy: &Policy, facts: &HostFacts, now: &Now<'_>) -> Vec<Set> {
    let state = now.live.shield(policy.shield, now.unix);
    let filtered = facts.network == Network::Filtered;
    let allow = || policy.allow.iter().map(|sourced| &sourced.rule).chain(&now.live.allow);
    let deny = || policy.deny.iter().map(|sourced| &sourced.rule).chain(&now.live.deny);
    let blocked = state == Shield::Block;
    // The proxy refuses these by itself; a card would carry them off to a network that takes them for the host.
    let holes = if filtered { nowhere() } else { Vec::new() };
    let granted = if filtered && !blocked { named::elements(policy, facts, now) } else { Vec::new() };
    let mut sets = Vec::with_capacity(8);
    for family in [Family::V4, Family::V6] {
        let literal = allow().filter(|rule| !blocked && matches!(rule.target, Target::Net(_)));
        let closed = if filtered && blocked {
            sorted(kinds(family).into_iter().flat_map(|kind| whole(family, kind, &Ports::all(), None)))
        } else if filtered {
            denied(family, deny())
        } else {
            boxes::disjoint(family, deny())
        };
        let [deny_set, allow_set, open_set, named_set] = match family {
            Family::V4 => ["deny4", "allow4", "open4", "named4"],
            Family::V6 => ["deny6", "allow6", "open6", "named6"],
        };
        let set = |name, elements| Set { name, family, ports: true, elements };
        sets.push(set(deny_set, closed));
        sets.push(set(allow_set, boxes::disjoint_around(family, literal, &holes)));
        sets.push(set(open_set, open(family, policy, filtered, state, now)));
        if filtered {
            let here = |element: &&Element| element.addr.0.is_ipv4() == (family == Family::V4);
            sets.push(set(named_set, granted.iter().filter(here).copied().collect()));
        }
    }
    sets
}

/// What deny rules close: one without ports closes UDP and ICMP as well.
fn denied<'a>(family: Family, rules: impl Iterator<Item = &'a Rule>) -> Vec<Element> {
    let [.., icmp] = kinds(family);
    let rules: Vec<&Rule> = rules.collect();
    let whole = || rules.iter().copied().filter(|rule| rule.is_whole());
    let udp: Vec<Rule> = whole().map(|rule| Rule { proto: Proto::Udp, ..rule.clone() }).collect();
    let mut elements = boxes::disjoint(family, rules.iter().copied().chain(&udp));
    elements.extend(
        boxes::disjoint(family, whole())
            .into_iter()
            .map(|element| Element { ports: element.ports.map(|(_, from, to)| (icmp, from, to)), ..element }),
    );
    sorted(elements)
}

/// `any` rules; with the shield down or while learning, what they leave, for as long as that lasts. Without a card there is
/// nothing but TCP, and a learning proxy gets all of it without being looked up.
fn open(family: Family, policy: &Policy, filtered: bool, state: Shield, now: &Now<'_>) -> Vec<Element> {
    let allow = policy.allow.iter().map(|sourced| &sourced.rule).chain(&now.live.allow);
    let any: Vec<&Rule> = allow.filter(|rule| state != Shield::Block && rule.target == Target::Any).collect();
    let mut elements = boxes::disjoint(family, any.iter().copied());
    let down_for = now.live.until.map(|until| Duration::from_secs(until.saturating_sub(now.unix)));
    let rest = |proto: Proto| {
        let ports =
            any.iter().filter(|rule| rule.proto == proto).flat_map(|rule| rule.ports.0.iter().copied());
        Ports::but_dot().without(&Ports::new(ports.collect()))
    };
    let [tcp, udp, icmp] = kinds(family);
    let learns = filtered && policy.learn;
    match state {
        Shield::Down => {
            elements.extend(whole(family, tcp, &rest(Proto::Tcp), down_for));
            // What learning opens stays open when `down` ends.
            let ends = down_for.filter(|_| !learns);
            if filtered {
                elements.extend(whole(family, udp, &rest(Proto::Udp), ends));
                elements.extend(whole(family, icmp, &Ports::all(), ends));
            }
        }
        Shield::Up if learns => {
            elements.extend(whole(family, udp, &rest(Proto::Udp), None));
            elements.extend(whole(family, icmp, &Ports::all(), None));
        }
        Shield::Up | Shield::Block => {}
    }
    sorted(elements)
}

fn kinds(family: Family) -> [Transport; 3] {
    let icmp = match family {
        Family::V4 => Transport::ICMP,
        Family::V6 => Transport::ICMP6,
    };
    [Transport::TCP, Transport::UDP, icmp]
}

/// Every address of the family on these ports.
fn whole(family: Family, kind: Transport, ports: &Ports, timeout: Option<Duration>) -> Vec<Element> {
    let addr = boxes::everything(family);
    ports.0.iter().map(|&(from, to)| Element { addr, ports: Some((kind, from, to)), timeout }).collect()
}

fn sorted(elements: impl IntoIterator<Item = Element>) -> Vec<Element> {
    let mut elements: Vec<Element> = elements.into_iter().collect();
    elements.sort_unstable();
    elements
}

/// Addresses that not even the widest literal rule means: loopback and no address at all, in every form.
fn nowhere() -> Vec<Cidr> {
    let local = |net: &Cidr| matches!(floor::floor(net.addr), Some(Floor::Loopback | Floor::Unspecified));
    floor::blocks().iter().copied().filter(local).collect()
}
