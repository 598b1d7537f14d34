//! Rules that no container can carry together, or not without a card.

use super::{HostFacts, Network, PlanError};
use crate::answer;
use crate::name::Name;
use crate::policy::VaultGrant;
use crate::rule::{Proto, Rule, Target};
use std::collections::HashMap;

/// Whether a container with these facts can carry all of `allow`.
pub(super) fn check<'a>(
    facts: &HostFacts,
    allow: impl Iterator<Item = &'a Rule> + Clone,
) -> Result<(), PlanError> {
    match facts.network {
        Network::Sealed => allow.into_iter().try_for_each(carries),
        Network::Filtered => one_kind_of_address(facts, allow),
    }
}

/// Whether a rule would give a brokered host its real address, past the broker.
pub(super) fn brokered<'a>(
    facts: &HostFacts,
    vault: &[VaultGrant],
    allow: impl Iterator<Item = &'a Rule> + Clone,
) -> Result<(), PlanError> {
    if facts.network == Network::Sealed {
        return Ok(());
    }
    for VaultGrant { provider, .. } in vault {
        for host in provider.hosts() {
            if let Some(rule) = allow.clone().find(|rule| answer::is_real(rule) && rule.target.names(host)) {
                return Err(PlanError::Brokered {
                    host: host.to_string(),
                    provider: provider.name.clone(),
                    real: rule.to_string(),
                });
            }
        }
    }
    Ok(())
}

/// Whether a container without a card can carry an allow rule.
fn carries(rule: &Rule) -> Result<(), PlanError> {
    let what = match rule {
        Rule { direct: true, .. } => "direct",
        Rule { proto: Proto::Udp, .. } => "/udp",
        _ => return Ok(()),
    };
    Err(PlanError::NeedsCard { rule: rule.to_string(), what })
}

/// A name has either a virtual address or its real ones: rules for the proxy and rules for the card cannot share a name.
/// Other containers' names always have real ones.
fn one_kind_of_address<'a>(
    facts: &HostFacts,
    allow: impl Iterator<Item = &'a Rule> + Clone,
) -> Result<(), PlanError> {
    let named = allow.filter(|rule| match &rule.target {
        Target::Name(name) => !answer::is_peer_name(facts, name) && !name.is_internal(),
        Target::Under(zone) => !answer::is_peer_zone(facts, zone),
        _ => false,
    });
    let real = Index::of(named.clone().filter(|rule| answer::is_real(rule)));
    if real.is_empty() {
        return Ok(());
    }
    let proxied = Index::of(named.clone().filter(|rule| !answer::is_real(rule)));
    for rule in named {
        let (real, proxied) = match answer::is_real(rule) {
            true => (Some(rule), proxied.covering(&rule.target)),
            false => (real.covering(&rule.target), Some(rule)),
        };
        if let (Some(real), Some(proxied)) = (real, proxied) {
            return Err(PlanError::TwoKinds {
                // The narrower of the two is what they share.
                name: rule.target.to_string(),
                real: real.to_string(),
                proxied: proxied.to_string(),
                instead: Rule { direct: true, ..proxied.clone() }.to_string(),
            });
        }
    }
    Ok(())
}

/// Rules by what they name: finding one that covers a name takes as many look-ups as the name has labels.
#[derive(Default)]
struct Index<'a> {
    names: HashMap<&'a str, &'a Rule>,
    under: HashMap<&'a str, &'a Rule>,
}

impl<'a> Index<'a> {
    fn of(rules: impl Iterator<Item = &'a Rule>) -> Self {
        let mut index = Index::default();
        for rule in rules {
            match &rule.target {
                Target::Name(name) => index.names.entry(name.as_str()).or_insert(rule),
                Target::Under(name) => index.under.entry(name.as_str()).or_insert(rule),
                _ => continue,
            };
        }
        index
    }

    fn is_empty(&self) -> bool {
        self.names.is_empty() && self.under.is_empty()
    }

    /// A rule that names all of what `target` names.
    fn covering(&self, target: &Target) -> Option<&'a Rule> {
        let above = |name: &Name| {
            let text = name.as_str();
            text.match_indices('.').find_map(|(dot, _)| self.under.get(&text[dot + 1..]).copied())
        };
        match target {
            Target::Name(name) => self.names.get(name.as_str()).copied().or_else(|| above(name)),
            Target::Under(name) => self.under.get(name.as_str()).copied().or_else(|| above(name)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Card;
    use proptest::prelude::*;

    fn filtered() -> HostFacts {
        let card =
            Card { index: 2, name: "tap0".into(), shared: false, nets: Vec::new(), gateways: Vec::new() };
        HostFacts { network: Network::Filtered, cards: vec![card], ..HostFacts::sealed(true) }
    }

    fn checked(facts: &HostFacts, rules: &[&str]) -> Result<(), String> {
        let rules: Vec<Rule> = rules.iter().map(|text| text.parse().unwrap()).collect();
        check(facts, rules.iter()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_name_cannot_be_answered_in_two_ways() {
        assert_eq!(
            checked(&filtered(), &["a.example:443", "a.example:443/udp"]).unwrap_err(),
            "a.example is answered with its real address because of a.example:443/udp, so a.example:443 cannot be proxied: write \"a.example:443 direct\""
        );
        for rules in [
            ["*.b.example direct", "a.b.example"],
            ["a.b.example", "*.b.example/udp"],
            ["*.b.example", "a.b.example direct"],
            ["*.a.b.example direct", "*.b.example"],
            ["*.example", "*.example:53/udp"],
        ] {
            assert!(checked(&filtered(), &rules).unwrap_err().contains("real address"), "{rules:?}");
        }
        for rules in [
            ["*.b.example direct", "b.example"],
            ["a.example direct", "a.example:443/udp"],
            ["ab.example direct", "*.b.example"],
            ["a.example direct", "any"],
            ["192.0.2.0/24", "192.0.2.1/udp"],
        ] {
            checked(&filtered(), &rules).unwrap();
        }
    }

    #[test]
    fn a_brokered_host_is_reached_through_the_broker_alone() {
        let catalog = crate::profile::Catalog::bundled();
        let provider = crate::provider::resolve(&catalog, "github").unwrap();
        let vault = [VaultGrant { provider, credential: "default".into() }];
        let brokered = |facts: &HostFacts, text: &str| {
            let rule: Rule = text.parse().unwrap();
            super::brokered(facts, &vault, std::iter::once(&rule)).map_err(|error| error.to_string())
        };
        assert_eq!(
            brokered(&filtered(), "*.github.com direct").unwrap_err(),
            "api.github.com belongs to github of terok.vault and is reached through the broker alone: remove *.github.com direct, or github"
        );
        brokered(&filtered(), "github.com:443/udp").unwrap_err();
        for rule in ["github.com:22", "*.github.com", "codeload.github.com direct", "any"] {
            brokered(&filtered(), rule).unwrap();
        }
    }

    #[test]
    fn other_containers_names_have_real_addresses_whatever_the_rule() {
        let facts = HostFacts { resolvers: vec!["10.88.0.1".parse().unwrap()], ..filtered() };
        for rules in [["db:5432", "db:53/udp"], ["*.dns.podman", "db.dns.podman direct"]] {
            checked(&facts, &rules).unwrap();
            checked(&filtered(), &rules).unwrap_err();
        }
        checked(&facts, &["*.podman direct", "*.podman:80"]).unwrap_err();
    }

    proptest! {
        #[test]
        fn every_overlap_is_found(rules in proptest::collection::vec("(\\*\\.)?([ab]\\.){0,2}x\\.y( direct)?", 0..6)) {
            let rules: Vec<Rule> = rules.iter().map(|text| text.parse().unwrap()).collect();
            let overlap = |a: &Target, b: &Target| match (a, b) {
                (Target::Name(a), Target::Name(b)) => a == b,
                (Target::Name(name), Target::Under(zone)) | (Target::Under(zone), Target::Name(name)) => name.is_under(zone),
                (Target::Under(a), Target::Under(b)) => a == b || a.is_under(b) || b.is_under(a),
                _ => false,
            };
            let clash = rules.iter().any(|a| rules.iter().any(|b| a.direct != b.direct && overlap(&a.target, &b.target)));
            prop_assert_eq!(check(&filtered(), rules.iter()).is_err(), clash, "{:?}", rules);
        }
    }
}
