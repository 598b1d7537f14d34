//! The control interface of a supervisor (design §10): shapes only, spoken as Varlink by supervisor and launcher.

use crate::plan::Network;
use crate::policy::{Labels, Shield, Sourced};
use serde::{Deserialize, Serialize};

/// Varlink interface name.
pub const INTERFACE: &str = "io.terok.Supervisor";

/// What `create` records of a container in [`crate::layout::CONTAINER`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Container {
    /// Full id.
    pub id: String,
    /// Name in the engine, where the bundle tells it.
    pub name: String,
    /// Init's pid, in the host's pid namespace.
    pub pid: i32,
    /// Unix time of the start, seconds.
    pub started: u64,
    /// Absolute bundle path: gone when the container was removed.
    pub bundle: String,
    /// Labels.
    pub labels: Labels,
    /// Its network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// Device and inode of its network namespace, `[dev, ino]`: members of one pod have the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<(u64, u64)>,
    /// [`crate::Policy::digest`] of what is enforced there.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub policy: String,
    /// Id of the container whose supervisor serves this one as well: they share a network namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub served_by: Option<String>,
}

impl Container {
    /// Its file is this long at most, octets.
    pub const LIMIT: u64 = 1 << 20;
}

/// A connection that waits for a verdict (`terok.shield.hold`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// What `terok verdict` calls it; never used again, not even by the supervisor that comes after a crash or a restart.
    pub id: u64,
    /// `name:port` or `address:port`.
    pub target: String,
    /// The rule that would allow it.
    pub rule: String,
    /// Unix milliseconds of the first connection.
    pub since: u64,
    /// Unix milliseconds at which it is refused.
    pub until: u64,
    /// Connections that wait for this verdict.
    pub connections: u64,
}

/// How long a verdict holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// For the connections that wait now.
    Once,
    /// For this container's life: a live rule.
    Always,
}

/// Rules in one reply, of each kind, at most: the rest is asked for with `Rules`, so that no reply holds the supervisor up.
pub const RULES_AT_ONCE: usize = 256;

/// How a granted credential stands, as far as the supervisor knows without asking for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialStatus {
    /// `provider=credential`, or `ssh KEY@HOST`.
    pub grant: String,
    /// Its state.
    pub state: CredentialState,
    /// Why, and what to do; empty where it works.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Requests forwarded or signatures given since the supervisor's start.
    pub used: u64,
    /// Requests refused.
    pub refused: u64,
}

/// State of a granted credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CredentialState {
    /// Nobody has asked for it yet.
    Unused,
    /// It was read.
    Ready,
    /// The vault is locked.
    Locked,
    /// The vault, or this credential in it, is not there.
    Missing,
    /// An operator took it back from this container.
    Revoked,
    /// It could not be read or renewed.
    Failed,
}

/// Answer of `Status`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The container.
    pub container: Container,
    /// State in force.
    pub state: Shield,
    /// Unix seconds at which `down` ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
    /// Allow rules in force with their sources, live ones last; the first [`RULES_AT_ONCE`].
    pub allow: Vec<Sourced>,
    /// Deny rules in force, likewise.
    pub deny: Vec<Sourced>,
    /// How many allow and deny rules there are beyond those.
    #[serde(default)]
    pub more_rules: u64,
    /// Open connections now.
    pub connections: u64,
    /// Connections and names allowed since the supervisor's start.
    pub allowed: u64,
    /// Refusals since the supervisor's start, kernel ones included.
    pub refused: u64,
    /// Connections that wait for a verdict.
    #[serde(default)]
    pub waiting: Vec<Waiting>,
    /// The providers and SSH keys it was granted.
    #[serde(default)]
    pub credentials: Vec<CredentialStatus>,
    /// How the kernel's table was found changed by somebody else; the container is cut off since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tampered: Option<String>,
    /// Times the worker was restarted.
    pub restarts: u64,
    /// Confinement layers in force, `landlock=…`, `seccomp`, …; a missing one as `no-landlock: reason`.
    pub confinement: Vec<String>,
}

/// Answer of `Allow`, `Deny`, `Forget` and `SetState`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// What changed, as canonical rules or the new state; empty where it was so already. The first [`RULES_AT_ONCE`].
    pub changed: Vec<String>,
    /// Live flows that were cut.
    pub cut: u64,
}
