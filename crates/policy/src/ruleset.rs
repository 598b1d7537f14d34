//! The nftables table as data: only what terok's own table needs, printed like `nft list` for people.

use crate::rule::{Cidr, Proto};

use std::fmt::{Display, Formatter};
use std::net::IpAddr;
use std::time::Duration;

/// A whole table of family `inet`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    /// Table name.
    pub table: &'static str,
    /// Named sets, before the chains that look them up.
    pub sets: Vec<Set>,
    /// Base chains.
    pub chains: Vec<Chain>,
}

/// Address family of a set or match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A named set of `address . protocol . port` (all of them `flags interval,timeout`) or, with `ports: false`, of addresses (`flags interval`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Name, at most 31 octets.
    pub name: &'static str,
    /// Family of the address.
    pub family: Family,
    /// Concatenated with protocol and port.
    pub ports: bool,
    /// Disjoint elements.
    pub elements: Vec<Element>,
}

/// One element: a box of addresses × one protocol × ports, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Element {
    /// First and last address.
    pub addr: (IpAddr, IpAddr),
    /// Protocol and first and last port (0 to 65535 for a protocol without ports); `None` in a set without ports.
    pub ports: Option<(Transport, u16, u16)>,
    /// Removed by the kernel after this time.
    pub timeout: Option<Duration>,
}

/// An IP protocol number, as sets and matches carry it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Transport(pub u8);

impl Transport {
    /// IPPROTO_ICMP
    pub const ICMP: Transport = Transport(1);
    /// IPPROTO_TCP
    pub const TCP: Transport = Transport(6);
    /// IPPROTO_UDP
    pub const UDP: Transport = Transport(17);
    /// IPPROTO_ICMPV6
    pub const ICMP6: Transport = Transport(58);
}

impl From<Proto> for Transport {
    fn from(proto: Proto) -> Self {
        match proto {
            Proto::Tcp => Transport::TCP,
            Proto::Udp => Transport::UDP,
        }
    }
}

impl Display for Transport {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match *self {
            Transport::ICMP => f.write_str("icmp"),
            Transport::TCP => f.write_str("tcp"),
            Transport::UDP => f.write_str("udp"),
            Transport::ICMP6 => f.write_str("ipv6-icmp"),
            Transport(number) => write!(f, "{number}"),
        }
    }
}

/// The table of family `netdev`: what may leave by each card. Frames of packet sockets never pass the `inet` table; here
/// they lack its mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Egress {
    /// Table name.
    pub table: &'static str,
    /// Names of the cards; each has a base chain `egress-NAME` (type filter, hook egress, priority 0, policy drop).
    pub cards: Vec<String>,
    /// The rules of every chain.
    pub rules: Vec<NftRule>,
}

/// A base chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Name.
    pub name: &'static str,
    /// Chain type.
    pub kind: ChainKind,
    /// Hook.
    pub hook: Hook,
    /// Priority (filter 0, dstnat −100).
    pub priority: i32,
    /// Policy: `true` drop, `false` accept.
    pub drop: bool,
    /// Rules in order.
    pub rules: Vec<NftRule>,
}

/// Chain type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChainKind {
    /// `type filter`
    Filter,
    /// `type nat`
    Nat,
}

/// Netfilter hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// NF_INET_LOCAL_IN
    Input,
    /// NF_INET_FORWARD
    Forward,
    /// NF_INET_LOCAL_OUT
    Output,
    /// NF_INET_POST_ROUTING
    Postrouting,
}

/// A rule: every match must hold, then the statements run in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NftRule {
    /// Matches.
    pub matches: Vec<Match>,
    /// Statements.
    pub statements: Vec<Statement>,
}

/// A match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// `meta oif 1`: leaves by `lo` (index 1 in every network namespace).
    OutLo,
    /// `meta iif 1`.
    InLo,
    /// `meta l4proto`
    L4Proto(u8),
    /// `th dport` (tcp or udp; put an [`Match::L4Proto`] before it)
    DPort(u16),
    /// `th sport`, likewise
    SPort(u16),
    /// `th dport < PORT`, likewise
    DPortBelow(u16),
    /// `meta oif != 1`. After a redirect in the same output hook this still says the card: match [`Match::ToLocal`] first.
    OutCard,
    /// `fib daddr type local`
    ToLocal,
    /// `fib saddr type != local`: sent in the name of an address that is not the namespace's own.
    FromElsewhere,
    /// `ct direction original`: on its way from who began the flow
    CtOriginal,
    /// `ct direction reply`
    CtReply,
    /// `meta mark`
    Mark(u32),
    /// `meta protocol` (an EtherType), in the `netdev` family
    EtherType(u16),
    /// `ip daddr` / `ip6 daddr` in a block
    DAddr(Cidr),
    /// `ip saddr` / `ip6 saddr` in a block
    SAddr(Cidr),
    /// `ip daddr . meta l4proto . th dport @set` or `ip daddr @set`; at the source end `ip saddr . meta l4proto . th sport @set`
    InSet {
        /// Which end of the packet is looked up.
        end: End,
        /// Set name.
        set: &'static str,
        /// Family of the set.
        family: Family,
        /// Set is concatenated with protocol and port.
        ports: bool,
    },
    /// `ct state` has one of these bits (invalid 1, established 2, related 4, new 8)
    CtState(u32),
    /// `icmpv6 type`
    Icmp6Type(u8),
}

/// An end of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// Where it comes from.
    Source,
    /// Where it goes.
    Destination,
}

/// A statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    /// `counter`
    Counter,
    /// `limit rate N/second burst M packets`; the rest of the rule runs only within the limit
    Limit {
        /// Packets a second.
        rate: u64,
        /// Burst in packets.
        burst: u32,
    },
    /// `log prefix P group G`
    Log {
        /// NFLOG group.
        group: u16,
        /// Prefix, at most 127 octets.
        prefix: &'static str,
    },
    /// `redirect to :PORT`
    Redirect(u16),
    /// `masquerade to :FIRST-LAST`
    Masquerade(u16, u16),
    /// `meta mark set MARK`
    SetMark(u32),
    /// `accept`
    Accept,
    /// `drop`
    Drop,
    /// `return`
    Return,
    /// `reject with tcp reset`
    RejectTcpReset,
    /// `reject with icmpx admin-prohibited`
    RejectAdminProhibited,
}

impl Ruleset {
    /// The set of that name.
    pub fn set(&self, name: &str) -> Option<&Set> {
        self.sets.iter().find(|set| set.name == name)
    }
}

/// Printed like `nft list table`, for people; terok never gives text to nft.
impl Display for Ruleset {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "table inet {} {{", self.table)?;
        for set in &self.sets {
            set.fmt(f)?;
        }
        for chain in &self.chains {
            chain.fmt(f)?;
        }
        writeln!(f, "}}")
    }
}

/// Printed like `nft list table`.
impl Display for Egress {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "table netdev {} {{", self.table)?;
        for card in &self.cards {
            writeln!(f, "\tchain egress-{card} {{")?;
            writeln!(f, "\t\ttype filter hook egress device \"{card}\" priority 0; policy drop;")?;
            for rule in &self.rules {
                writeln!(f, "\t\t{rule}")?;
            }
            writeln!(f, "\t}}")?;
        }
        writeln!(f, "}}")
    }
}

impl Display for Set {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let Set { name, family, ports, elements } = self;
        let addr = match family {
            Family::V4 => "ipv4_addr",
            Family::V6 => "ipv6_addr",
        };
        writeln!(f, "\tset {name} {{")?;
        if *ports {
            writeln!(f, "\t\ttype {addr} . inet_proto . inet_service\n\t\tflags interval,timeout")?;
        } else {
            writeln!(f, "\t\ttype {addr}\n\t\tflags interval")?;
        }
        for (index, element) in elements.iter().enumerate() {
            let start = if index == 0 { "elements = { " } else { "             " };
            let end = if index + 1 == elements.len() { " }" } else { "," };
            writeln!(f, "\t\t{start}{element}{end}")?;
        }
        writeln!(f, "\t}}")
    }
}

impl Display for Element {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match block(self.addr) {
            Some(block) => write!(f, "{block}")?,
            None => write!(f, "{}-{}", self.addr.0, self.addr.1)?,
        }
        match self.ports {
            Some((proto, from, to)) if from == to => write!(f, " . {proto} . {from}")?,
            Some((proto, from, to)) => write!(f, " . {proto} . {from}-{to}")?,
            None => {}
        }
        match self.timeout {
            Some(timeout) => write!(f, " timeout {}s", timeout.as_secs()),
            None => Ok(()),
        }
    }
}

impl Display for Chain {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let kind = match self.kind {
            ChainKind::Filter => "filter",
            ChainKind::Nat => "nat",
        };
        let hook = match self.hook {
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        };
        let policy = if self.drop { "drop" } else { "accept" };
        writeln!(f, "\tchain {} {{", self.name)?;
        writeln!(f, "\t\ttype {kind} hook {hook} priority {}; policy {policy};", self.priority)?;
        for rule in &self.rules {
            writeln!(f, "\t\t{rule}")?;
        }
        writeln!(f, "\t}}")
    }
}

impl Display for NftRule {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let matches = self.matches.iter().map(ToString::to_string);
        let words: Vec<String> = matches.chain(self.statements.iter().map(ToString::to_string)).collect();
        f.write_str(&words.join(" "))
    }
}

impl Display for Match {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let ip = |v4| if v4 { "ip" } else { "ip6" };
        match self {
            Match::OutLo => f.write_str("oif 1"),
            Match::InLo => f.write_str("iif 1"),
            Match::L4Proto(6) => f.write_str("meta l4proto tcp"),
            Match::L4Proto(17) => f.write_str("meta l4proto udp"),
            Match::L4Proto(58) => f.write_str("meta l4proto ipv6-icmp"),
            Match::L4Proto(number) => write!(f, "meta l4proto {number}"),
            Match::DPort(port) => write!(f, "th dport {port}"),
            Match::SPort(port) => write!(f, "th sport {port}"),
            Match::DPortBelow(port) => write!(f, "th dport < {port}"),
            Match::OutCard => f.write_str("oif != 1"),
            Match::ToLocal => f.write_str("fib daddr type local"),
            Match::FromElsewhere => f.write_str("fib saddr type != local"),
            Match::CtOriginal => f.write_str("ct direction original"),
            Match::CtReply => f.write_str("ct direction reply"),
            Match::Mark(mark) => write!(f, "meta mark {mark:#010x}"),
            Match::EtherType(0x0806) => f.write_str("meta protocol arp"),
            Match::EtherType(number) => write!(f, "meta protocol {number:#06x}"),
            Match::SAddr(block) => write!(f, "{} saddr {block}", ip(block.addr.is_ipv4())),
            Match::DAddr(block) => write!(f, "{} daddr {block}", ip(block.addr.is_ipv4())),
            Match::InSet { end, set, family, ports } => {
                let side = match end {
                    End::Source => 's',
                    End::Destination => 'd',
                };
                let key = if *ports { format!(" . meta l4proto . th {side}port") } else { String::new() };
                write!(f, "{} {side}addr{key} @{set}", ip(*family == Family::V4))
            }
            Match::CtState(bits) => {
                let names = [(1, "invalid"), (2, "established"), (4, "related"), (8, "new")];
                let named = names.iter().filter(|(bit, _)| bits & bit != 0).map(|&(_, name)| name);
                write!(f, "ct state {}", named.collect::<Vec<_>>().join(","))
            }
            Match::Icmp6Type(number) => write!(f, "icmpv6 type {number}"),
        }
    }
}

impl Display for Statement {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            Statement::Counter => f.write_str("counter"),
            Statement::Limit { rate, burst } => write!(f, "limit rate {rate}/second burst {burst} packets"),
            Statement::Log { group, prefix } => write!(f, "log prefix \"{prefix}\" group {group}"),
            Statement::Redirect(port) => write!(f, "redirect to :{port}"),
            Statement::Masquerade(first, last) => write!(f, "masquerade to :{first}-{last}"),
            Statement::SetMark(mark) => write!(f, "meta mark set {mark:#010x}"),
            Statement::Accept => f.write_str("accept"),
            Statement::Drop => f.write_str("drop"),
            Statement::Return => f.write_str("return"),
            Statement::RejectTcpReset => f.write_str("reject with tcp reset"),
            Statement::RejectAdminProhibited => f.write_str("reject with icmpx admin-prohibited"),
        }
    }
}

/// The range as a block, where it is one.
fn block((first, last): (IpAddr, IpAddr)) -> Option<Cidr> {
    let (differing, bits) = match (first, last) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u128::from(u32::from(a) ^ u32::from(b)), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => (u128::from(a) ^ u128::from(b), 128),
        _ => return None,
    };
    let host = 128 - differing.leading_zeros();
    let block = Cidr { addr: first, prefix: bits - u8::try_from(host).ok()? };
    (block.range() == (first, last) && block.masked() == block).then_some(block)
}
