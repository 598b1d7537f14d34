//! Egress rules (design §5): `target [":" ports] ["/" proto] [" direct"]`, parsed and printed.

use crate::name::Name;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// One egress rule. `Display` prints the shortest spelling that parses back to the same rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rule {
    /// What may be reached.
    pub target: Target,
    /// On which ports.
    pub ports: Ports,
    /// Over which transport.
    pub proto: Proto,
    /// Real addresses in a timed set instead of a virtual address and the proxy (filtered containers only).
    pub direct: bool,
}

/// What a rule names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// That host only.
    Name(Name),
    /// `*.name`: its subdomains only.
    Under(Name),
    /// An address or a block of addresses; v4-mapped IPv6 is stored as IPv4.
    Net(Cidr),
    /// The host's loopback.
    Host,
    /// Everything but the floor.
    Any,
}

/// An address block with no host bits set; a single address has the full prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    /// First address of the block.
    pub addr: IpAddr,
    /// Prefix length in bits.
    pub prefix: u8,
}

impl Cidr {
    /// Whether `ip` (a v4-mapped address counts as IPv4) lies in the block.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let _ = ip;
        todo!()
    }
    /// First and last address.
    pub fn range(&self) -> (IpAddr, IpAddr) {
        todo!()
    }
}

/// A transport protocol a rule can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    /// IPPROTO_TCP (MPTCP gets the same verdict).
    Tcp,
    /// IPPROTO_UDP.
    Udp,
}

/// Sorted, merged, non-overlapping inclusive port ranges.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ports(pub Vec<(u16, u16)>);

impl Ports {
    /// Whether `port` is in one of the ranges.
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|&(from, to)| (from..=to).contains(&port))
    }
}

/// Why a text is not a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?}: {reason}")]
pub struct RuleError {
    /// The rule as written.
    pub text: String,
    /// What is wrong with it and what to write instead.
    pub reason: String,
}

impl std::str::FromStr for Rule {
    type Err = RuleError;
    fn from_str(text: &str) -> Result<Self, RuleError> {
        let _ = text;
        todo!()
    }
}
impl std::fmt::Display for Rule {
    fn fmt(&self, _f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        todo!()
    }
}
impl TryFrom<String> for Rule {
    type Error = RuleError;
    fn try_from(text: String) -> Result<Self, RuleError> {
        text.parse()
    }
}
impl From<Rule> for String {
    fn from(rule: Rule) -> String {
        rule.to_string()
    }
}
