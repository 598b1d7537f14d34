//! The chains of a container without a network card: everything allowed is redirected to the supervisor's sockets on
//! loopback, the rest is refused where it would leave. They name no way out, so that a card which an engine attaches
//! later changes nothing.

use super::clauses::*;
use super::{HostFacts, Wiring};
use crate::policy::Policy;
use crate::rule::Cidr;
use crate::ruleset::{Chain, End, Hook, Match, NftRule, Statement};
use crate::virt::V6_SELF;

pub(super) fn chains(policy: &Policy, facts: &HostFacts, wiring: &Wiring) -> Vec<Chain> {
    vec![
        nat("nat_out", Hook::Output, before_a_name_server(facts), redirects(policy, wiring)),
        filter("out", Hook::Output, output(facts)),
        leave(None),
        filter("in", Hook::Input, input()),
        filter("forward", Hook::Forward, Vec::new()),
    ]
}

fn redirects(policy: &Policy, wiring: &Wiring) -> Vec<NftRule> {
    let to_proxy = || Statement::Redirect(wiring.proxy);
    let mut rules: Vec<NftRule> = dns_redirects(wiring.dns_udp, wiring.dns_tcp).collect();
    rules.extend(loopback().map(|block| rule([Match::DAddr(block)], [Statement::Return])));
    rules.extend(pool_redirects(wiring.proxy));
    // What no rule names is not redirected: the filter chain refuses it where it would leave.
    let verdicts = [
        (["deny4", "deny6"], true, Statement::Return),
        (["allow4", "allow6"], true, to_proxy()),
        (["floor4", "floor6"], false, Statement::Return),
        (["open4", "open6"], true, to_proxy()),
    ];
    for (sets, ports, verdict) in verdicts {
        rules.extend(
            lookups(End::Destination, sets, ports)
                .map(|lookup| rule([Match::L4Proto(TCP), lookup], [verdict.clone()])),
        );
    }
    if policy.holds_or_learns() {
        rules.push(rule([Match::L4Proto(TCP)], [to_proxy()]));
    }
    rules
}

fn output(facts: &HostFacts) -> Vec<NftRule> {
    let own = Cidr { addr: V6_SELF.into(), prefix: 128 };
    let mut rules: Vec<NftRule> = name_servers_inside(facts)
        .flat_map(|server| refusal(&[Match::DAddr(Cidr::host(server))], "terok:dns"))
        .collect();
    rules.extend(loopback().chain([own]).map(|block| rule([Match::DAddr(block)], [Statement::Accept])));
    // The kernel's own resets, where a card came later: they go to its address.
    rules.push(rule([Match::ToLocal, Match::CtState(RELATED)], [Statement::Accept]));
    rules.extend(neighbour_discovery().map(|kind| rule([Match::L4Proto(ICMP6), kind], [Statement::Accept])));
    for lookup in lookups(End::Destination, ["deny4", "deny6"], true) {
        rules.extend(refusal(&[lookup], "terok:deny"));
    }
    for lookup in lookups(End::Destination, ["floor4", "floor6"], false) {
        rules.extend(refusal(&[lookup], "terok:floor"));
    }
    rules.extend(refusal(&[], "terok:default"));
    rules
}

fn input() -> Vec<NftRule> {
    let mut rules = vec![
        rule([Match::InLo], [Statement::Accept]),
        rule([Match::CtState(ESTABLISHED | RELATED)], [Statement::Accept]),
    ];
    rules.extend(neighbour_discovery().map(|kind| rule([Match::L4Proto(ICMP6), kind], [Statement::Accept])));
    rules
}
