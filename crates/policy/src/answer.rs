//! How a name is to be answered in a container with a card: with a virtual address, or with real ones which the kernel
//! then lets through (design §1).

use crate::floor::floor;
use crate::live::Live;
use crate::name::Name;
use crate::plan::HostFacts;
use crate::policy::Policy;
use crate::rule::{Proto, Rule, Target};
use std::net::IpAddr;

/// Podman's own zone.
const PEERS: &str = ".dns.podman";

/// What an answer carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    /// A virtual address: TCP through the proxy.
    Virtual,
    /// The name's real addresses: a `direct` rule or a `/udp` rule names it.
    Real,
    /// What the DNS servers of the container's own networks say. Where they do not know the name, [`otherwise`].
    Peer,
}

/// How `name` is answered, once [`crate::judge`] said that it is.
pub fn answer(policy: &Policy, live: &Live, facts: &HostFacts, name: &Name) -> Answer {
    let listed = || allows(policy, live).any(|rule| rule.target.names(name));
    if is_peer_name(facts, name) && listed() { Answer::Peer } else { otherwise(policy, live, facts, name) }
}

/// How `name` is answered where no other container has it.
pub fn otherwise(policy: &Policy, live: &Live, facts: &HostFacts, name: &Name) -> Answer {
    let real = |rule: &Rule| is_real(rule) && rule.target.names(name) && !name.is_internal();
    if !facts.cards.is_empty() && allows(policy, live).any(real) { Answer::Real } else { Answer::Virtual }
}

/// Whether an answer of that kind may give out `ip`: a name leads to nothing below the floor and to no address of the host
/// (E3), and another container's name only to addresses in the container's own networks that are no gateway.
pub fn may_be_given(facts: &HostFacts, kind: Answer, ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    if facts.own.iter().any(|own| own.to_canonical() == ip) {
        return false;
    }
    match kind {
        Answer::Virtual => false,
        Answer::Real => floor(ip).is_none(),
        Answer::Peer => {
            !facts.cards.iter().any(|card| card.gateways.iter().any(|gateway| gateway.to_canonical() == ip))
                && facts.cards.iter().any(|card| card.nets.iter().any(|net| net.contains(ip)))
        }
    }
}

/// Whether the DNS servers of the container's networks are asked for `name`, if a rule lists it: a single label, or a
/// name below Podman's own zone.
pub fn is_peer_name(facts: &HostFacts, name: &Name) -> bool {
    let single = !name.as_str().contains('.');
    facts.has_peers() && (single || name.as_str().ends_with(PEERS))
}

/// The other name of the same container: `db` for `db.dns.podman` and the reverse. A client with `search dns.podman` asks
/// for the long one first, whichever was written.
pub fn other_form(facts: &HostFacts, name: &Name) -> Option<Name> {
    if !is_peer_name(facts, name) {
        return None;
    }
    match name.as_str().strip_suffix(PEERS) {
        Some(short) if short.contains('.') => None,
        Some(short) => short.parse().ok(),
        None => format!("{name}{PEERS}").parse().ok(),
    }
}

/// Whether every name below `zone` is of that kind.
pub(crate) fn is_peer_zone(facts: &HostFacts, zone: &Name) -> bool {
    facts.has_peers() && (zone.as_str() == &PEERS[1..] || zone.as_str().ends_with(PEERS))
}

/// Whether a name that `rule` allows is answered with real addresses.
pub(crate) fn is_real(rule: &Rule) -> bool {
    matches!(rule.target, Target::Name(_) | Target::Under(_)) && (rule.direct || rule.proto == Proto::Udp)
}

fn allows<'a>(policy: &'a Policy, live: &'a Live) -> impl Iterator<Item = &'a Rule> {
    policy.allow.iter().map(|sourced| &sourced.rule).chain(&live.allow)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Card;
    use crate::policy::{Source, Sourced};

    fn policy(allow: &[&str]) -> Policy {
        let sourced = |text: &&str| Sourced { rule: text.parse().unwrap(), source: Source::Annotation };
        Policy { allow: allow.iter().map(sourced).collect(), ..Policy::default() }
    }

    fn bridge() -> HostFacts {
        let net = |text: &str| match text.parse::<Rule>().unwrap().target {
            Target::Net(net) => net,
            other => panic!("{other:?}"),
        };
        HostFacts {
            network: crate::plan::Network::Filtered,
            cards: vec![Card {
                index: 2,
                name: "eth0".into(),
                shared: true,
                nets: vec![net("10.88.0.0/16"), net("fd10::/64")],
                gateways: vec!["10.88.0.1".parse().unwrap(), "fd10::1".parse().unwrap()],
            }],
            own: vec!["203.0.113.1".parse().unwrap()],
            resolvers: vec!["10.88.0.1".parse().unwrap()],
            ..HostFacts::sealed(true)
        }
    }

    fn kind(policy: &Policy, facts: &HostFacts, name: &str) -> Answer {
        answer(policy, &Live::default(), facts, &name.parse().unwrap())
    }

    #[test]
    fn direct_and_udp_names_have_real_addresses_and_other_containers_names_those_of_their_network() {
        let policy = policy(&[
            "a.example",
            "b.example direct",
            "*.c.example:443/udp",
            "any",
            "db:5432",
            "*.dns.podman:80",
        ]);
        for (name, wanted) in [
            ("a.example", Answer::Virtual),
            ("b.example", Answer::Real),
            ("x.c.example", Answer::Real),
            ("c.example", Answer::Virtual),
            ("db", Answer::Peer),
            ("web", Answer::Virtual),
            ("web.dns.podman", Answer::Peer),
            ("host.terok.internal", Answer::Virtual),
        ] {
            assert_eq!(kind(&policy, &bridge(), name), wanted, "{name}");
        }
        let lonely = HostFacts { resolvers: Vec::new(), ..bridge() };
        assert_eq!(kind(&policy, &lonely, "db"), Answer::Virtual);
        assert_eq!(kind(&policy, &HostFacts::sealed(true), "b.example"), Answer::Virtual);
    }

    #[test]
    fn a_container_has_a_short_name_and_a_long_one() {
        let form = |name: &str| other_form(&bridge(), &name.parse().unwrap()).map(|name| name.to_string());
        assert_eq!(form("db").as_deref(), Some("db.dns.podman"));
        assert_eq!(form("db.dns.podman").as_deref(), Some("db"));
        assert_eq!((form("a.db.dns.podman"), form("a.example")), (None, None));
        let lonely = HostFacts { resolvers: Vec::new(), ..bridge() };
        assert_eq!(other_form(&lonely, &"db".parse().unwrap()), None);
    }

    #[test]
    fn a_live_rule_makes_a_name_real() {
        let mut live = Live::default();
        live.allow("a.example:443/udp".parse().unwrap());
        let name = "a.example".parse().unwrap();
        assert_eq!(answer(&policy(&[]), &live, &bridge(), &name), Answer::Real);
    }

    #[test]
    fn what_an_answer_gives_out_is_above_the_floor_or_in_the_containers_own_network() {
        for (kind, ip, given) in [
            (Answer::Real, "198.51.100.1", true),
            (Answer::Real, "::ffff:198.51.100.1", true),
            (Answer::Real, "203.0.113.1", false),
            (Answer::Real, "10.88.0.7", false),
            (Answer::Real, "169.254.169.254", false),
            (Answer::Peer, "10.88.0.7", true),
            (Answer::Peer, "fd10::7", true),
            (Answer::Peer, "10.88.0.1", false),
            (Answer::Peer, "::ffff:10.88.0.1", false),
            (Answer::Peer, "10.89.0.7", false),
            (Answer::Peer, "198.51.100.1", false),
            (Answer::Virtual, "198.51.100.1", false),
        ] {
            assert_eq!(may_be_given(&bridge(), kind, ip.parse().unwrap()), given, "{kind:?} {ip}");
        }
    }
}
