//! What the worker learns of the vault: it names a grant of its container's policy, the parent starts a helper for it, and the helper answers on a line
//! of its own, so that no secret passes through the parent and none but the granted ones reaches the worker (design §8).

pub(crate) mod attempt;
mod errands;
mod fetch;
mod granted;
mod helper;
mod reach;
mod reader;
mod renewal;
mod stamp;
mod token;

pub(crate) use errands::{Errands, Means};
pub(crate) use fetch::Vault;
pub(crate) use granted::{Granted, Standings};
pub(crate) use helper::run;
pub(crate) use stamp::Stamp;

use serde::{Deserialize, Serialize};
use terok_policy::policy::SshGrant;
use terok_policy::provider::CredentialType;
use zeroize::Zeroizing;

/// What a helper is started for; part of a question to the parent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Errand {
    /// The credential of a grant.
    Credential {
        /// Position in [`terok_policy::Policy::vault`].
        grant: usize,
        /// The revision that the provider has just refused, so that an OAuth token is renewed although its time is not over.
        refused: Option<u64>,
    },
    /// The public keys of all SSH grants that are in the vault.
    Keys,
    /// A signature. The helper judges once more: the worker's word is not enough.
    Sign {
        /// Position in [`terok_policy::Policy::ssh`].
        grant: usize,
        /// `session-bind@openssh.com` messages of this agent connection, in order, base64.
        bindings: Vec<String>,
        /// What to sign, base64.
        data: String,
        /// Flags of SSH_AGENTC_SIGN_REQUEST.
        flags: u32,
    },
}

/// What `terok vault revoke` calls an SSH grant; no provider's name has a colon.
pub(crate) fn ssh_name(grant: &SshGrant) -> String {
    format!("ssh:{}", grant.key)
}

/// In words for a person: `name` was taken back.
pub(crate) fn revoked(name: &str, container: &str) -> String {
    let short = container.get(..12).unwrap_or(container);
    format!(
        "{name} was taken back from this container; `terok vault revoke {short} {name} --undo` gives it back"
    )
}

/// What a helper finds from descriptor 3 on: the configuration, the vault's folder, the runtime base folder, the container's state folder, the vault line,
/// the order.
pub(crate) const HELPER_FDS: usize = 6;

/// What a helper is handed: an errand and the number to report it under.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    /// The question's number.
    pub(crate) number: u64,
    /// The errand.
    pub(crate) errand: Errand,
}

/// What a helper says, one JSON datagram.
#[derive(Serialize, Deserialize)]
pub(crate) struct Report {
    /// The question's number.
    pub(crate) number: u64,
    /// How the vault's files were before it was read: while they are so, the result stands.
    pub(crate) stamp: Stamp,
    /// The result.
    pub(crate) done: Result<Fetched, Trouble>,
}

/// What was fetched.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Fetched {
    /// A credential.
    Credential(Credential),
    /// Public keys with the position of their grant.
    Keys(Vec<AgentKey>),
    /// A signature, SSH wire form (RFC 4253 §6.6), base64.
    Signature(String),
}

/// A credential as it is sent upstream.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Credential {
    /// Its type.
    pub(crate) kind: CredentialType,
    /// User name of a Basic one.
    #[serde(default)]
    pub(crate) user: String,
    /// The key, password or access token.
    pub(crate) secret: Zeroizing<String>,
    /// Counted up when it changes.
    pub(crate) revision: u64,
    /// Unix seconds after which it must not be used: the end of the token less a margin, or of the vault's session.
    pub(crate) until: Option<u64>,
}

/// Public key of a granted SSH key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AgentKey {
    /// Position in [`terok_policy::Policy::ssh`].
    pub(crate) grant: usize,
    /// SSH wire form, base64.
    pub(crate) blob: String,
    /// Comment: the key's name.
    pub(crate) comment: String,
    /// Users it signs logins of; any where empty.
    pub(crate) users: Vec<String>,
}

/// Why nothing was fetched. Each says what to do, in words for a person.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Trouble {
    /// The vault is locked.
    #[error("{0}")]
    Locked(String),
    /// No vault, or not this credential in it.
    #[error("{0}")]
    Missing(String),
    /// An operator took it back.
    #[error("{0}")]
    Revoked(String),
    /// A signature that the grant does not cover.
    #[error("{0}")]
    Refused(String),
    /// It could not be read or renewed.
    #[error("{0}")]
    Failed(String),
}
