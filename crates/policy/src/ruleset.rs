//! The nftables table as data: only what terok's own table needs, printed like `nft list` for people.

use crate::rule::Proto;
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
    /// Protocol and first and last port; `None` in a set without ports.
    pub ports: Option<(Proto, u16, u16)>,
    /// Removed by the kernel after this time.
    pub timeout: Option<Duration>,
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
    /// `ip daddr` / `ip6 daddr` in a block
    DAddr(crate::rule::Cidr),
    /// `ip daddr . meta l4proto . th dport @set` or `ip daddr @set`
    InSet {
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

impl std::fmt::Display for Ruleset {
    fn fmt(&self, _f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        todo!()
    }
}
