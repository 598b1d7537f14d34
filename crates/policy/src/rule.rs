//! Egress rules (design §5): `target [":" ports] ["/" proto] [" direct"]`, parsed and printed.

use crate::name::Name;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// DNS over TLS: opened by a rule that names it or by `*`, never by leaving the port out.
pub const DOT: u16 = 853;

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

impl Target {
    /// Whether this is `name`, or the wildcard above it; `any` names nothing.
    pub fn names(&self, name: &Name) -> bool {
        match self {
            Target::Name(own) => own == name,
            Target::Under(zone) => name.is_under(zone),
            Target::Net(_) | Target::Host | Target::Any => false,
        }
    }
}

/// An address block with no host bits set; a single address has the full prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Cidr {
    /// First address of the block.
    pub addr: IpAddr,
    /// Prefix length in bits.
    pub prefix: u8,
}

impl Cidr {
    /// The block of one address (v4-mapped becomes IPv4).
    pub fn host(ip: IpAddr) -> Self {
        let addr = ip.to_canonical();
        Cidr { addr, prefix: if addr.is_ipv4() { 32 } else { 128 } }
    }
    /// Whether `ip` (a v4-mapped address counts as IPv4) lies in the block.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let (first, last) = self.range();
        let ip = ip.to_canonical();
        ip.is_ipv4() == first.is_ipv4() && first <= ip && ip <= last
    }
    /// The block with its host bits cleared.
    #[must_use]
    pub fn masked(&self) -> Self {
        Cidr { addr: mask(self.addr, self.prefix), prefix: self.prefix }
    }
    /// First and last address.
    pub fn range(&self) -> (IpAddr, IpAddr) {
        let last = match self.addr {
            IpAddr::V4(ip) => {
                let host = u32::MAX.checked_shr(u32::from(self.prefix)).unwrap_or(0);
                IpAddr::V4((u32::from(ip) | host).into())
            }
            IpAddr::V6(ip) => {
                let host = u128::MAX.checked_shr(u32::from(self.prefix)).unwrap_or(0);
                IpAddr::V6((u128::from(ip) | host).into())
            }
        };
        (self.addr, last)
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let full = if self.addr.is_ipv4() { 32 } else { 128 };
        if self.prefix == full {
            write!(f, "{}", self.addr)
        } else {
            write!(f, "{}/{}", self.addr, self.prefix)
        }
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
    /// Every port, `*`.
    pub fn all() -> Self {
        Ports(vec![(0, u16::MAX)])
    }
    /// Every port but 853 (DNS over TLS, RFC 7858, and over QUIC): what an address or `any` means where no port is written,
    /// and what opens while the shield is down or learning.
    pub fn but_dot() -> Self {
        Ports(vec![(0, DOT - 1), (DOT + 1, u16::MAX)])
    }
    /// 80 and 443: what a name means where no port is written.
    pub fn web() -> Self {
        Ports(vec![(80, 80), (443, 443)])
    }
    /// Sorts and merges inclusive ranges.
    pub fn new(mut ranges: Vec<(u16, u16)>) -> Self {
        ranges.retain(|(from, to)| from <= to);
        ranges.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
        for (from, to) in ranges {
            match merged.last_mut() {
                Some(last) if u32::from(from) <= u32::from(last.1) + 1 => last.1 = last.1.max(to),
                _ => merged.push((from, to)),
            }
        }
        Ports(merged)
    }
    /// Whether `port` is in one of the ranges.
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|&(from, to)| (from..=to).contains(&port))
    }
    /// Whether no port is in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// The ports of `self` that are not in `other`.
    #[must_use]
    pub fn without(&self, other: &Ports) -> Ports {
        let mut left = Vec::new();
        for &(from, to) in &self.0 {
            let mut next = u32::from(from);
            for &(cut_from, cut_to) in other.0.iter().filter(|&&(f, t)| f <= to && t >= from) {
                if u32::from(cut_from) > next {
                    left.push((next as u16, cut_from - 1));
                }
                next = next.max(u32::from(cut_to) + 1);
            }
            if next <= u32::from(to) {
                left.push((next as u16, to));
            }
        }
        Ports(left)
    }
}

impl std::fmt::Display for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if *self == Ports::all() {
            return f.write_str("*");
        }
        for (index, &(from, to)) in self.0.iter().enumerate() {
            let plus = if index == 0 { "" } else { "+" };
            if from == to { write!(f, "{plus}{from}")? } else { write!(f, "{plus}{from}-{to}")? }
        }
        Ok(())
    }
}

impl Proto {
    /// Each of them.
    pub const ALL: [Proto; 2] = [Proto::Tcp, Proto::Udp];
    /// IANA protocol number.
    pub fn number(self) -> u8 {
        match self {
            Proto::Tcp => 6,
            Proto::Udp => 17,
        }
    }
}

impl std::fmt::Display for Proto {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Proto::Tcp => "tcp",
            Proto::Udp => "udp",
        })
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

impl Rule {
    /// Parses `text` as a rule that denies: as [`Rule::from_str`](std::str::FromStr), except that a name without ports
    /// means every port. Whoever writes `deny github.com` does not mean to leave its port 22 open.
    pub fn parse_deny(text: &str) -> Result<Self, RuleError> {
        parse(text, Verb::Deny)
    }

    /// Whether this, as a deny, closes its target altogether: every port and no protocol written means UDP and ICMP as well.
    pub fn is_whole(&self) -> bool {
        self.proto == Proto::Tcp && self.ports == Ports::all()
    }

    /// Whether this, as a deny, closes its ports over `proto`.
    pub fn denies_over(&self, proto: Proto) -> bool {
        self.proto == proto || self.is_whole()
    }

    /// The shortest spelling that [`Rule::parse_deny`] reads as this rule.
    pub fn to_deny_string(&self) -> String {
        let ports = self.ports != Verb::Deny.default_ports(&self.target);
        Spelling { rule: self, ports }.to_string()
    }
}

impl std::str::FromStr for Rule {
    type Err = RuleError;
    fn from_str(text: &str) -> Result<Self, RuleError> {
        parse(text, Verb::Allow)
    }
}
impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ports = self.target == Target::Host || self.ports != Verb::Allow.default_ports(&self.target);
        Spelling { rule: self, ports }.fmt(f)
    }
}
/// A target alone.
impl std::str::FromStr for Target {
    type Err = RuleError;
    fn from_str(text: &str) -> Result<Self, RuleError> {
        let refuse = |reason: String| RuleError { text: text.chars().take(300).collect(), reason };
        match parse_spec(text).map_err(refuse)? {
            (target, None) => Ok(target),
            (target, Some(_)) => Err(refuse(format!("no port stands here: write {target}"))),
        }
    }
}
impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Name(name) => write!(f, "{name}"),
            Target::Under(name) => write!(f, "*.{name}"),
            Target::Net(net) => write!(f, "{net}"),
            Target::Host => f.write_str("host"),
            Target::Any => f.write_str("any"),
        }
    }
}
/// What was written by terok itself: beside what people may write, the broker's own rule.
impl TryFrom<String> for Rule {
    type Error = RuleError;
    fn try_from(text: String) -> Result<Self, RuleError> {
        if let (crate::name::VAULT, Ok(vault)) = (text.as_str(), Name::parse(&text)) {
            return Ok(Rule {
                target: Target::Name(vault),
                ports: Ports::web(),
                proto: Proto::Tcp,
                direct: false,
            });
        }
        text.parse()
    }
}
impl From<Rule> for String {
    fn from(rule: Rule) -> String {
        rule.to_string()
    }
}

/// What a rule without ports means depends on whether it opens or closes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verb {
    Allow,
    Deny,
}

impl Verb {
    fn default_ports(self, target: &Target) -> Ports {
        match target {
            _ if self == Verb::Deny => Ports::all(),
            Target::Name(_) | Target::Under(_) => Ports::web(),
            Target::Net(_) | Target::Any => Ports::but_dot(),
            // Has to name its ports.
            Target::Host => Ports::all(),
        }
    }
}

struct Spelling<'a> {
    rule: &'a Rule,
    ports: bool,
}

impl std::fmt::Display for Spelling<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Rule { target, ports, proto, direct } = self.rule;
        match target {
            Target::Net(net) if self.ports && net.addr.is_ipv6() => write!(f, "[{net}]")?,
            _ => target.fmt(f)?,
        }
        if self.ports {
            write!(f, ":{ports}")?;
        }
        if *proto != Proto::Tcp {
            write!(f, "/{proto}")?;
        }
        if *direct { f.write_str(" direct") } else { Ok(()) }
    }
}

fn parse(text: &str, verb: Verb) -> Result<Rule, RuleError> {
    let refuse = |reason: String| RuleError { text: text.chars().take(300).collect(), reason };
    let mut words = text.split_ascii_whitespace();
    let (Some(spec), direct, None) = (words.next(), words.next(), words.next()) else {
        return Err(refuse("a rule is TARGET[:PORTS][/PROTO][ direct]".into()));
    };
    let direct = match direct {
        None => false,
        Some("direct") => true,
        Some(word) => return Err(refuse(format!("{word:?} after the target: only `direct` may follow"))),
    };
    let (spec, proto) = match spec.rsplit_once('/') {
        Some((spec, "tcp")) => (spec, Proto::Tcp),
        Some((spec, "udp")) => (spec, Proto::Udp),
        Some((_, proto))
            if matches!(proto, "sctp" | "icmp" | "icmpv6" | "dccp" | "quic" | "any" | "TCP" | "UDP") =>
        {
            return Err(refuse(format!("protocol {proto:?}: write /tcp or /udp")));
        }
        _ => (spec, Proto::Tcp),
    };
    let (target, ports) = parse_spec(spec).map_err(refuse)?;
    let ports = match ports {
        Some(ports) => parse_ports(ports).map_err(refuse)?,
        None if target == Target::Host && verb == Verb::Allow => {
            return Err(refuse("name the port of the host's loopback: host:PORT".into()));
        }
        None => verb.default_ports(&target),
    };
    if direct && !matches!(target, Target::Name(_) | Target::Under(_)) {
        return Err(refuse("`direct` is for names: an address is reached directly anyway".into()));
    }
    Ok(Rule { target, ports, proto, direct })
}

/// Splits `target[:ports]` and reads the target. An IPv6 address with ports stands in brackets.
fn parse_spec(spec: &str) -> Result<(Target, Option<&str>), String> {
    if let Some(rest) = spec.strip_prefix('[') {
        let (inside, after) = rest.split_once(']').ok_or("`[` without `]`")?;
        let net = parse_net(inside).filter(|_| inside.contains(':'));
        let net = net.ok_or_else(|| format!("{inside:?} is not an IPv6 address or block"))??;
        return match after.strip_prefix(':') {
            Some(ports) => Ok((net, Some(ports))),
            None if after.is_empty() => Ok((net, None)),
            None => Err(format!("{after:?} after `]`: write [ADDRESS/PREFIX]:PORTS")),
        };
    }
    if let Some(net) = parse_net(spec) {
        return Ok((net?, None));
    }
    let (target, ports) = match spec.rsplit_once(':') {
        Some((target, ports)) => (target, Some(ports)),
        None => (spec, None),
    };
    let target = match target {
        "host" => Target::Host,
        "any" => Target::Any,
        "*" => return Err("write `any` for every destination, or `*.NAME` for the subdomains of NAME".into()),
        _ => match parse_net(target) {
            Some(net) => net?,
            None => parse_name(target, spec)?,
        },
    };
    Ok((target, ports))
}

/// Reads an address or a block; `None` where the text is neither.
fn parse_net(text: &str) -> Option<Result<Target, String>> {
    let (addr, prefix) = match text.split_once('/') {
        Some((addr, prefix)) => (addr, Some(prefix)),
        None => (text, None),
    };
    let addr: IpAddr = addr.parse().ok()?;
    if prefix.is_some_and(|prefix| prefix.is_empty() || !prefix.bytes().all(|b| b.is_ascii_digit())) {
        return None;
    }
    Some(net(addr, prefix).map(Target::Net))
}

fn net(written: IpAddr, prefix: Option<&str>) -> Result<Cidr, String> {
    let full = if written.is_ipv4() { 32 } else { 128 };
    let mut prefix = match prefix {
        None => full,
        Some(text) if text.len() > 1 && text.starts_with('0') => full + 1,
        Some(text) => text.parse().unwrap_or(full + 1),
    };
    if prefix > full {
        return Err(format!("the prefix length of a block is 0 to {full}"));
    }
    let mut addr = written;
    if addr.to_canonical().is_ipv4() && addr.is_ipv6() && prefix >= 96 {
        (addr, prefix) = (addr.to_canonical(), prefix - 96);
    }
    let masked = mask(addr, prefix);
    if masked != addr {
        return Err(format!("address bits beyond the prefix: write {}", Cidr { addr: masked, prefix }));
    }
    let net = Cidr { addr, prefix };
    if addr.is_loopback() && net.range().1.is_loopback() {
        return Err(
            "the container's own loopback is never filtered; for a port of the host write host:PORT".into()
        );
    }
    if crate::virt::index(addr).is_some() && crate::virt::index(net.range().1).is_some() {
        return Err("198.18.0.0/15 and fd74:6572:6f6b::/64 are terok's own: name the host instead".into());
    }
    Ok(net)
}

fn mask(addr: IpAddr, prefix: u8) -> IpAddr {
    match addr {
        IpAddr::V4(ip) => {
            IpAddr::V4((u32::from(ip) & u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)).into())
        }
        IpAddr::V6(ip) => {
            IpAddr::V6((u128::from(ip) & u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)).into())
        }
    }
}

fn parse_name(text: &str, spec: &str) -> Result<Target, String> {
    // What was written goes into messages only escaped, or as the canonical name it turned out to be.
    let alone = |host: &str| match Name::parse(host) {
        Ok(name) => format!("write the host name alone: {name}"),
        Err(_) => "write the host name alone".to_owned(),
    };
    if let Some((_, rest)) = spec.split_once("://") {
        return Err(alone(rest.split(['/', ':', '?', '#']).next().unwrap_or(rest)));
    }
    if text.contains(':') {
        return Err("an IPv6 address with ports stands in brackets: [ADDRESS]:PORTS".into());
    }
    if let Some((host, path)) = text.split_once('/') {
        let what =
            format!("{path:?} is no protocol (tcp, udp) and no prefix length, and rules know no paths");
        return Err(format!("{what}: {}", alone(host)));
    }
    let (under, plain) = match text.strip_prefix("*.") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    if plain.contains('*') {
        return Err("a wildcard stands for whole labels at the front: *.NAME".into());
    }
    let name = Name::parse(plain).map_err(|error| error.to_string())?;
    if !under && name.as_str() == "direct" {
        return Err(
            "`direct`, in small letters, follows the rule it belongs to; it is no host name here".into()
        );
    }
    if !under && matches!(name.as_str(), "host" | "any") {
        return Err(format!(
            "{text:?} is no host name here: write `{name}` for what that word means in a rule"
        ));
    }
    if name.is_internal() {
        return Err(
            "names under terok.internal are terok's own; for a port of the host write host:PORT".into()
        );
    }
    if name.as_str() == "localhost" || name.as_str().ends_with(".localhost") {
        return Err(
            "the container's own loopback is never filtered; for a port of the host write host:PORT".into()
        );
    }
    Ok(if under { Target::Under(name) } else { Target::Name(name) })
}

fn parse_ports(text: &str) -> Result<Ports, String> {
    const FORM: &str = "ports are PORT+PORT…, PORT-PORT or *, each 1 to 65535";
    if text == "*" {
        return Ok(Ports::all());
    }
    let port = |text: &str| match text.parse::<u16>() {
        Ok(port) if port != 0 && text.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
        _ => Err(format!("{text:?} is no port: {FORM}")),
    };
    let mut ranges = Vec::new();
    for part in text.split('+') {
        let (from, to) = match part.split_once('-') {
            // What is left of `*` without some ports begins at 0.
            Some(("0", to)) => (0, port(to)?),
            Some((from, to)) => (port(from)?, port(to)?),
            None => (port(part)?, port(part)?),
        };
        if from > to {
            return Err(format!("{part:?} ends before it starts: write {to}-{from}"));
        }
        ranges.push((from, to));
    }
    Ok(Ports::new(ranges))
}

#[cfg(test)]
mod tests;
