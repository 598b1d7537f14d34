//! What one container may do, typed: the meaning of its annotations with profiles resolved.

use crate::name::Name;
use crate::provider::Provider;
use crate::rule::Rule;
use serde::{Deserialize, Serialize};

/// The firewall's state (design §5, "States").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shield {
    /// Default deny.
    #[default]
    Up,
    /// Everything but the floor and the denies passes, audited.
    Down,
    /// Nothing passes, every flow is cut.
    Block,
}

/// Names a person gave, for audit and prompts. Empty where not given.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Labels {
    /// `terok.project`
    pub project: String,
    /// `terok.task`
    pub task: String,
    /// `terok.name`; the container's own name where absent
    pub name: String,
}

/// Where a rule was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// An annotation of the container.
    Annotation,
    /// A profile, by name (the one that was asked for or included).
    Profile(String),
    /// A provider of `terok.vault`: its hosts, and what its client itself needs.
    Provider(String),
    /// `terok allow` / `terok deny` on the running container.
    Live,
}

/// A rule and where it was written.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Sourced {
    /// The rule.
    pub rule: Rule,
    /// Its origin.
    pub source: Source,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Annotation => f.write_str("annotation"),
            Source::Profile(name) => write!(f, "profile {name}"),
            Source::Provider(name) => write!(f, "provider {name}"),
            Source::Live => f.write_str("live"),
        }
    }
}

/// `rule (source)`, as audit lines carry it.
impl std::fmt::Display for Sourced {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.rule, self.source)
    }
}

impl std::fmt::Display for Shield {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Shield::Up => "up",
            Shield::Down => "down",
            Shield::Block => "block",
        })
    }
}

/// A port of the container's loopback that the host listens for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Publish {
    /// Address on the host; loopback unless another is written. `::` is IPv6 alone (IPV6_V6ONLY).
    pub addr: std::net::IpAddr,
    /// TCP port on the host.
    pub port: u16,
    /// TCP port inside.
    pub to: u16,
}

impl Publish {
    /// The host's loopback.
    pub const LOOPBACK: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
}

/// As the annotation is written.
impl std::fmt::Display for Publish {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Publish { addr, port, to } = *self;
        if addr == Publish::LOOPBACK {
            write!(f, "{port}:{to}")
        } else {
            write!(f, "{}:{to}", std::net::SocketAddr::new(addr, port))
        }
    }
}

/// A provider whose credential the container may use through the broker.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct VaultGrant {
    /// The provider as it was defined at the start.
    pub provider: Provider,
    /// Which of its credentials, by name; [`VaultGrant::DEFAULT`] where none was written, or `@REF` for one that lives with this
    /// container alone (`terok run --credential`).
    pub credential: String,
}

impl VaultGrant {
    /// The credential that a bare provider name means.
    pub const DEFAULT: &str = "default";

    /// What a credential that lives with this container alone is called; `None` for one of the vault.
    pub fn reference(&self) -> Option<&str> {
        self.credential.strip_prefix('@')
    }
}

/// `provider` or `provider=credential`, as the annotation is written.
impl std::fmt::Display for VaultGrant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.provider.name)?;
        if self.credential == Self::DEFAULT { Ok(()) } else { write!(f, "={}", self.credential) }
    }
}

/// An SSH key the container may have signatures from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SshGrant {
    /// Name of the key in the vault.
    pub key: String,
    /// The one host it signs logins for; any where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Name>,
}

/// `key` or `key@host`, as the annotation is written.
impl std::fmt::Display for SshGrant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.key)?;
        self.host.as_ref().map_or(Ok(()), |host| write!(f, "@{host}"))
    }
}

/// The typed policy of one container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Policy {
    /// State at start; what an operator set later lives in [`crate::live::Live`].
    pub shield: Shield,
    /// Profiles asked for, in order; `["base"]` where the annotation is absent.
    pub profiles: Vec<String>,
    /// Allow rules of annotation and profiles, duplicates removed, first source kept.
    pub allow: Vec<Sourced>,
    /// Deny rules of the annotation.
    pub deny: Vec<Sourced>,
    /// `terok.shield.hold`, seconds an unlisted connection waits for an operator's verdict; 0: refused at once.
    #[serde(default)]
    pub hold: u32,
    /// `terok.shield.learn`: what is not denied and not below the floor passes and is recorded.
    #[serde(default)]
    pub learn: bool,
    /// `terok.publish`
    #[serde(default)]
    pub publish: Vec<Publish>,
    /// `terok.vault`, providers resolved.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vault: Vec<VaultGrant>,
    /// `terok.ssh`
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh: Vec<SshGrant>,
    /// `terok.restricted`
    pub restricted: bool,
    /// Labels.
    pub labels: Labels,
}

impl Policy {
    /// Whether TCP that no rule names goes to the proxy all the same, to wait for a verdict or to be recorded.
    pub fn holds_or_learns(&self) -> bool {
        self.hold > 0 || self.learn
    }
    /// What containers that share a network namespace must have in common: everything but the labels, as a digest.
    pub fn digest(&self) -> String {
        use sha2::{Digest, Sha256};
        let shared = Policy { labels: Labels::default(), ..self.clone() };
        let json = serde_json::to_vec(&shared).unwrap_or_else(|_| format!("{shared:?}").into_bytes());
        Sha256::digest(json).iter().fold(String::with_capacity(64), |mut hex, octet| {
            use std::fmt::Write as _;
            let _ = write!(hex, "{octet:02x}");
            hex
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_tells_policies_apart_and_leaves_labels_out() {
        let named = Labels { name: "a".into(), ..Labels::default() };
        let plain = Policy::default();
        assert_eq!(plain.digest(), Policy { labels: named, ..Policy::default() }.digest());
        assert_ne!(plain.digest(), Policy { learn: true, ..Policy::default() }.digest());
    }
}
