//! A container's own annotations under the default of every container (`terok setup --all-containers`): they may tighten it
//! and nothing else.

use crate::annotation::{self, AnnotationError};
use crate::policy::{Policy, Shield, Source, Sourced, SshGrant};
use crate::profile::Catalog;
use crate::rule::{Ports, Rule, Target};
use std::collections::BTreeMap;

/// What a container asks for beyond the default.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Loosened {
    /// A rule that no rule of the default covers.
    #[error(
        "rule {rule:?} ({from}) goes beyond what every container here may do; remove it, or allow it in [all_containers] of the settings"
    )]
    Rule {
        /// The rule.
        rule: String,
        /// Where it was written.
        from: Source,
    },
    /// Another key.
    #[error(
        "{key}={value} goes beyond what every container here may do; remove it, or set it in [all_containers] of the settings"
    )]
    Key {
        /// The annotation.
        key: &'static str,
        /// Its value.
        value: String,
    },
}

/// Why a container's annotations are refused where every container has a default.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnderError {
    /// They, or those of the default, are wrong in themselves.
    #[error(transparent)]
    Annotation(#[from] AnnotationError),
    /// They ask for more.
    #[error(transparent)]
    Loosened(#[from] Loosened),
}

/// The policy of a container with `annotations` where every container has the annotations `default`: a key that the
/// container does not write has the default's value.
pub fn under(
    default: &BTreeMap<String, String>,
    annotations: &BTreeMap<String, String>,
    catalog: &Catalog,
) -> Result<Policy, UnderError> {
    let wide = annotation::parse(default, catalog)?;
    let mut both = default.clone();
    both.extend(annotations.iter().map(|(key, value)| (key.clone(), value.clone())));
    Ok(within(&wide, &annotation::parse(&both, catalog)?)?)
}

/// `asked` with the denies of `default` added, if it allows nothing that `default` does not. Waiting for an operator and
/// publishing ports let nothing more out.
pub fn within(default: &Policy, asked: &Policy) -> Result<Policy, Loosened> {
    let key = |key, value: String| Err(Loosened::Key { key, value });
    let widest = |state| match state {
        Shield::Block => 0,
        Shield::Up => 1,
        Shield::Down => 2,
    };
    if widest(asked.shield) > widest(default.shield) {
        return key(annotation::SHIELD, asked.shield.to_string());
    }
    if asked.learn && !default.learn {
        return key(annotation::LEARN, "true".into());
    }
    if default.restricted && !asked.restricted {
        return key(annotation::RESTRICTED, "false".into());
    }
    if let Some(grant) = asked.vault.iter().find(|grant| !default.vault.contains(grant)) {
        return key(annotation::VAULT, grant.to_string());
    }
    if let Some(grant) = asked.ssh.iter().find(|grant| !default.ssh.iter().any(|wide| signs_for(wide, grant)))
    {
        return key(annotation::SSH, grant.to_string());
    }
    if let Some(Sourced { rule, source }) = asked.allow.iter().find(|asked| !covered(default, &asked.rule)) {
        return Err(Loosened::Rule { rule: rule.to_string(), from: source.clone() });
    }
    let mut policy = asked.clone();
    for deny in &default.deny {
        if !policy.deny.iter().any(|own| own.rule == deny.rule) {
            policy.deny.push(deny.clone());
        }
    }
    Ok(policy)
}

/// Whether a key that signs for `wide` may sign for `narrow`.
fn signs_for(wide: &SshGrant, narrow: &SshGrant) -> bool {
    wide.key == narrow.key && (wide.host.is_none() || wide.host == narrow.host)
}

/// Whether the default's rules together allow each port of `rule`, to all of its target.
fn covered(default: &Policy, rule: &Rule) -> bool {
    let covering = default.allow.iter().map(|sourced| &sourced.rule).filter(|wide| {
        wide.proto == rule.proto && (!rule.direct || wide.direct) && contains(&wide.target, &rule.target)
    });
    covering.fold(rule.ports.clone(), |left: Ports, wide| left.without(&wide.ports)).is_empty()
}

/// Whether allowing `wide` allows `narrow`. `any` means addresses above the floor and names that lead there, which those of
/// other containers ([`crate::answer`]) do not.
fn contains(wide: &Target, narrow: &Target) -> bool {
    match (wide, narrow) {
        (Target::Name(_), _) | (Target::Host, _) => wide == narrow,
        (Target::Under(zone), Target::Name(name)) => name.is_under(zone),
        (Target::Under(zone), Target::Under(below)) => below == zone || below.is_under(zone),
        (Target::Net(wide), Target::Net(narrow)) => {
            let (first, last) = narrow.range();
            wide.contains(first) && wide.contains(last)
        }
        (Target::Any, Target::Name(name)) => {
            name.as_str().contains('.') && name.as_str().rsplit('.').next() != Some("podman")
        }
        (Target::Any, Target::Under(zone)) => zone.as_str().rsplit('.').next() != Some("podman"),
        (Target::Any, Target::Any) => true,
        (Target::Any, Target::Net(net)) => {
            let (first, last) = net.range();
            crate::floor::blocks()
                .iter()
                .map(|block| block.range())
                .all(|(from, to)| from.is_ipv4() != first.is_ipv4() || last < from || to < first)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::Live;
    use crate::profile::Catalog;
    use crate::rule::Proto;
    use crate::{Query, judge};
    use proptest::prelude::*;
    use std::net::IpAddr;

    fn policy(text: &str) -> Policy {
        let pairs = text.lines().map(|line| line.trim().split_once('=').unwrap());
        let mut annotations: std::collections::BTreeMap<String, String> =
            pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        annotations.entry(annotation::PROFILES.to_owned()).or_insert_with(|| "none".into());
        annotation::parse(&annotations, &Catalog::bundled()).unwrap()
    }

    fn refused(default: &str, asked: &str) -> String {
        within(&policy(default), &policy(asked)).unwrap_err().to_string()
    }

    #[test]
    fn what_the_default_covers_is_taken_and_its_denies_are_added() {
        let default = policy(
            "terok.shield.allow=*.a.example:1-100 a.example 10.0.0.0/8 any:443\nterok.shield.deny=x.a.example",
        );
        let asked = policy(
            "terok.shield.allow=b.a.example:22+80 a.example:443 10.1.0.0/16:22 z.example:443 1.1.1.1:443\nterok.shield.deny=y.a.example",
        );
        let within = within(&default, &asked).unwrap();
        assert_eq!(within.allow, asked.allow);
        let denies: Vec<String> = within.deny.iter().map(|deny| deny.rule.to_deny_string()).collect();
        assert_eq!(denies, ["y.a.example", "x.a.example"]);
    }

    #[test]
    fn a_rule_beyond_the_default_is_named() {
        let default = "terok.shield.allow=*.a.example:443 192.0.2.0/24:443 any:8443";
        for rule in [
            "a.example:443",
            "b.a.example",
            "*.example:443",
            "192.0.2.0/23:443",
            "b.a.example:443 direct",
            "b.a.example:443/udp",
            "10.0.0.1:8443",
            "host:8443",
            "any:443",
            "db:8443",
            "db.dns.podman:8443",
            "*.podman:8443",
        ] {
            let error = refused(default, &format!("terok.shield.allow={rule}"));
            assert!(
                error.starts_with(&format!(
                    "rule {:?} (annotation)",
                    rule.parse::<Rule>().unwrap().to_string()
                )),
                "{error}"
            );
        }
        let error = refused(default, "terok.shield.profiles=dev-rust");
        assert!(error.contains("(profile dev-rust)"), "{error}");
    }

    #[test]
    fn what_is_no_rule_is_not_loosened_either() {
        for (asked, named) in [
            ("terok.shield=down", "terok.shield=down"),
            ("terok.shield.learn=true", "terok.shield.learn=true"),
        ] {
            assert!(refused("terok.name=x", asked).starts_with(named));
            within(&policy(asked), &policy(asked)).unwrap();
        }
        assert!(refused("terok.restricted=true", "terok.name=x").starts_with("terok.restricted=false"));
        assert!(refused("terok.shield=block", "terok.shield=up").starts_with("terok.shield=up"));
        for asked in
            ["terok.shield=block", "terok.shield.hold=30s", "terok.publish=80:80", "terok.restricted=true"]
        {
            within(&policy("terok.shield=up"), &policy(asked)).unwrap();
        }
    }

    #[test]
    fn what_the_default_grants_of_the_vault_may_be_taken_and_nothing_else() {
        let default = "terok.vault=anthropic github=work\nterok.ssh=work@github.com deploy";
        for asked in [
            "terok.vault=anthropic",
            "terok.vault=github=work\nterok.ssh=deploy@x.example",
            "terok.ssh=work@github.com",
        ] {
            within(&policy(default), &policy(asked)).unwrap();
        }
        let ephemeral = format!("anthropic=@{}", "00".repeat(16));
        for (asked, named) in [
            ("terok.vault=github", "terok.vault=github goes"),
            ("terok.vault=openai", "terok.vault=openai goes"),
            (&format!("terok.vault={ephemeral}"), "terok.vault=anthropic=@00"),
            ("terok.ssh=work", "terok.ssh=work goes"),
            ("terok.ssh=work@gitlab.com", "terok.ssh=work@gitlab.com goes"),
            ("terok.ssh=other", "terok.ssh=other goes"),
        ] {
            let error = refused(default, asked);
            assert!(error.starts_with(named), "{asked}: {error}");
        }
    }

    #[test]
    fn a_key_that_is_not_written_has_the_defaults_value() {
        let map = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
        };
        let default = map(&[
            (annotation::PROFILES, "dev-rust"),
            (annotation::RESTRICTED, "true"),
            (annotation::DENY, "x.example"),
        ]);
        let catalog = Catalog::bundled();
        let named =
            under(&default, &map(&[(annotation::NAME, "a"), (annotation::DENY, "y.example")]), &catalog)
                .unwrap();
        assert_eq!((named.profiles.as_slice(), named.restricted), (&["dev-rust".to_owned()][..], true));
        assert_eq!(named.deny.len(), 2);
        assert!(under(&default, &map(&[(annotation::PROFILES, "none")]), &catalog).unwrap().allow.is_empty());
        let more = under(&default, &map(&[(annotation::ALLOW, "z.example")]), &catalog).unwrap_err();
        assert!(more.to_string().starts_with("rule \"z.example\" (annotation) goes beyond"), "{more}");
        assert!(
            under(&default, &map(&[("terok.sheild", "up")]), &catalog)
                .unwrap_err()
                .to_string()
                .contains("did you mean")
        );
    }

    fn rules() -> impl Strategy<Value = Vec<String>> {
        let target = prop_oneof![
            "(\\*\\.)?([ab]\\.){0,2}x",
            (0u8..8, 29u8..=32).prop_map(|(low, prefix)| {
                let low = low & (0xffu16 << (32 - prefix)) as u8;
                format!("10.0.0.{low}/{prefix}")
            }),
            (0u8..8).prop_map(|low| format!("192.0.2.{low}")),
            Just("any".to_owned())
        ];
        let ports = prop_oneof![Just("1"), Just("2"), Just("1-2"), Just("*")];
        proptest::collection::vec(
            (target, ports).prop_map(|(target, ports)| format!("{target}:{ports}")),
            0..5,
        )
    }

    proptest! {
        #[test]
        fn what_is_within_the_default_allows_nothing_more(wide in rules(), asked in rules()) {
            let default = policy(&format!("terok.shield.allow={}", wide.join(" ")));
            let asked = policy(&format!("terok.shield.allow={}", asked.join(" ")));
            let Ok(within) = within(&default, &asked) else { return Ok(()) };
            let allows = |policy: &Policy, query: &Query<'_>| judge(policy, &Live::default(), Shield::Up, query).allows();
            for port in 1..=3 {
                for text in ["x", "a.x", "b.x", "a.b.x", "b.b.x", "z.z.z.x", "y"] {
                    let name = text.parse().unwrap();
                    let query = Query::Name { name: &name, port, proto: Proto::Tcp };
                    prop_assert!(!allows(&within, &query) || allows(&default, &query), "{:?}", query);
                }
                for low in 0..8u8 {
                    for ip in [IpAddr::from([10, 0, 0, low]), IpAddr::from([192, 0, 2, low])] {
                        let query = Query::Literal { ip, port, proto: Proto::Tcp };
                        prop_assert!(!allows(&within, &query) || allows(&default, &query), "{:?}", query);
                    }
                }
            }
        }
    }
}
