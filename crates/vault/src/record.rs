//! What is kept: a record that anybody with the file may read, and a secret that only an unlocked vault opens.

use serde::{Deserialize, Serialize};
use terok_policy::provider::CredentialType;
use zeroize::Zeroizing;

/// What a record is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A provider's credential.
    Credential(CredentialType),
    /// An SSH private key.
    Ssh,
}

/// A record without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Number in this vault; never used again.
    pub id: i64,
    /// What it is for.
    pub kind: Kind,
    /// The provider; empty for an SSH key.
    pub provider: String,
    /// Its name, one of a kind for each provider.
    pub name: String,
    /// Counted up whenever the secret changes.
    pub revision: u64,
    /// Unix seconds.
    pub created: u64,
    /// Unix seconds of the last change of the secret.
    pub changed: u64,
    /// End of an OAuth access token, Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// SSH: the public key in OpenSSH's one-line form, and the users it may log in as (any where empty).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ssh: Option<SshPublic>,
    /// Why the last renewal failed, and when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

/// The readable part of an SSH key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshPublic {
    /// `ssh-ed25519 AAAA… comment`
    pub public: String,
    /// Users it signs logins of; any where empty.
    #[serde(default)]
    pub users: Vec<String>,
}

/// A failed renewal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Unix seconds.
    pub at: u64,
    /// One line, without a secret.
    pub reason: String,
}

/// A secret, opened. Overwritten when dropped.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// An API key or token.
    Key(Zeroizing<String>),
    /// A user name and a password.
    Basic {
        /// User name.
        user: String,
        /// Password.
        password: Zeroizing<String>,
    },
    /// OAuth tokens.
    OAuth {
        /// Access token.
        access: Zeroizing<String>,
        /// Refresh token, where there is one.
        refresh: Option<Zeroizing<String>>,
    },
    /// An SSH private key, OpenSSH's own PEM, not encrypted.
    Ssh(Zeroizing<String>),
}

/// Never the secret.
impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Secret::Key(_) => "Key(…)",
            Secret::Basic { .. } => "Basic(…)",
            Secret::OAuth { .. } => "OAuth(…)",
            Secret::Ssh(_) => "Ssh(…)",
        })
    }
}
