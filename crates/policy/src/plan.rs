//! What will be done for one container: pure in policy and host facts, printable (`terok explain`, A3).

use crate::live::Live;
use crate::policy::{Policy, Shield};
use crate::ruleset::{Ruleset, Set};
use serde::{Deserialize, Serialize};

/// What planning needs to know of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// Which network the container got.
    pub network: Network,
    /// IPv6 is usable in the container's namespace.
    pub ipv6: bool,
}

/// The container's network, found in its namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// Only `lo`.
    Sealed,
    /// A card.
    Filtered,
}

/// The kernel-chosen ports of the listeners inside the namespace; the same port number serves IPv4 and IPv6 of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// DNS over UDP.
    pub dns_udp: u16,
    /// DNS over TCP.
    pub dns_tcp: u16,
    /// The TCP proxy.
    pub proxy: u16,
}

/// The plan of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The policy it was made from.
    pub policy: Policy,
    /// The facts it was made from.
    pub facts: HostFacts,
}

/// Why no plan can be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A container with a card.
    #[error(
        "the container has a network card; this version of terok protects containers without one: start it with --network none"
    )]
    Filtered,
    /// A rule that a sealed container cannot carry.
    #[error(
        "rule {rule:?} needs a network card: a container without one carries TCP through the proxy; remove {what}"
    )]
    NeedsCard {
        /// The rule.
        rule: String,
        /// `/udp` or `direct`.
        what: &'static str,
    },
}

impl Plan {
    /// Makes the plan, or says why not.
    pub fn new(policy: Policy, facts: HostFacts) -> Result<Self, PlanError> {
        let _ = (policy, facts);
        todo!()
    }
    /// The table to load, with the operator's `live` state of an earlier run in force at `now` (Unix seconds).
    pub fn ruleset(&self, ports: Ports, live: &Live, now: u64) -> Ruleset {
        let _ = (ports, live, now);
        todo!()
    }
}

/// The wanted contents of the table's variable sets. The supervisor replaces them whole after each change.
/// With `state` down, the open sets carry `down_for` as the kernel's own timeout.
pub fn live_sets(
    policy: &Policy,
    live: &Live,
    state: Shield,
    down_for: Option<std::time::Duration>,
) -> Vec<Set> {
    let _ = (policy, live, state, down_for);
    todo!()
}

impl std::fmt::Display for Plan {
    fn fmt(&self, _f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        todo!()
    }
}

/// What the hook hands to the supervisor, as JSON in a sealed memfd at descriptor 3; the descriptors listed in `fds` follow from 4 on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SupervisorConfig {
    /// Container id.
    pub id: String,
    /// The policy.
    pub policy: Policy,
    /// The facts.
    pub facts: HostFacts,
    /// Ports of the listeners in the container's namespace.
    pub ports: Ports,
    /// Absolute runtime folder of this container.
    pub run_dir: String,
    /// Absolute state folder of this container.
    pub state_dir: String,
    /// What each descriptor from 4 on is, in order.
    pub fds: Vec<Fd>,
}

/// A descriptor handed to the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Fd {
    /// pidfd of the container's init: readable when it is dead.
    Pidfd,
    /// Write end of the readiness pipe: one byte `1` when every service answers; closed without it: not ready.
    Ready,
    /// UDP 127.0.0.1, DNS.
    DnsUdp4,
    /// UDP ::1, DNS.
    DnsUdp6,
    /// TCP 127.0.0.1, DNS.
    DnsTcp4,
    /// TCP ::1, DNS.
    DnsTcp6,
    /// TCP 127.0.0.1, proxy.
    Proxy4,
    /// TCP ::1, proxy.
    Proxy6,
    /// NETLINK_NETFILTER socket in the container's namespace, bound to the NFLOG group.
    Nflog,
    /// NETLINK_NETFILTER socket in the container's namespace, for changes of the sets.
    Nftables,
    /// Listening unix socket of the control interface.
    Control,
    /// The container's runtime folder, opened O_PATH|O_DIRECTORY.
    RunDir,
    /// The container's state folder, opened O_RDONLY|O_DIRECTORY.
    StateDir,
}
