//! The verdict on one query: pure, total, deny before allow (E1).

use crate::live::Live;
use crate::name::Name;
use crate::policy::{Policy, Shield, Sourced};
use crate::rule::Proto;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Something a container asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Query<'a> {
    /// May this name be answered at all (does any rule allow it on some port)?
    Resolve(&'a Name),
    /// A connection to a name.
    Name {
        /// Canonical name.
        name: &'a Name,
        /// Destination port.
        port: u16,
        /// Transport.
        proto: Proto,
    },
    /// A connection to a literal address that no answer of ours gave out.
    Literal {
        /// Destination.
        ip: IpAddr,
        /// Destination port.
        port: u16,
        /// Transport.
        proto: Proto,
    },
    /// A connection to the host's loopback (`host.terok.internal`).
    Host {
        /// Port on the host.
        port: u16,
        /// Transport.
        proto: Proto,
    },
}

/// The answer, with the rule that decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "verdict")]
pub enum Verdict {
    /// Allowed by this rule.
    Allow {
        /// The deciding rule.
        rule: Sourced,
    },
    /// Allowed because the shield is down.
    Down,
    /// Refused.
    Refuse {
        /// Why.
        reason: Reason,
        /// The deny rule, where one decided.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        rule: Option<Sourced>,
    },
}

/// Why something is refused. The kebab-case name is what audit lines carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Reason {
    /// No rule names it.
    Unlisted,
    /// The name is listed, this port is not.
    PortUnlisted,
    /// A deny rule names it.
    Denied,
    /// The shield is in `block`.
    Blocked,
    /// The address is below the floor (E3).
    Floor,
    /// TLS server name differs from the name (E4).
    SniMismatch,
    /// TLS without a server name.
    SniMissing,
    /// HTTP Host or absolute-form target differs from the name.
    HostMismatch,
    /// Bytes that are neither TLS, HTTP/1 nor SSH on a web port, or a malformed or ambiguous message.
    BadProtocol,
    /// Hello or headers above the size limit.
    TooLarge,
    /// Hello or headers did not arrive in time.
    HandshakeTimeout,
    /// Too many connections at once.
    TooManyConnections,
    /// Wildcard budget spent (E7), or the virtual pool is full.
    NameBudget,
    /// The name did not resolve, or no address could be connected.
    Unreachable,
    /// The audit log could not be written.
    AuditUnwritable,
    /// A DNS message we do not answer.
    BadDns,
}

impl Verdict {
    /// Whether the query may go ahead.
    pub fn allows(&self) -> bool {
        !matches!(self, Verdict::Refuse { .. })
    }
}

/// Judges `query` under `policy` and the operator's `live` additions with the shield in `state`.
/// Deny beats allow from any source, also with the shield down. Literal queries below the floor need a literal rule.
pub fn judge(policy: &Policy, live: &Live, state: Shield, query: &Query<'_>) -> Verdict {
    let _ = (policy, live, state, query);
    todo!()
}
