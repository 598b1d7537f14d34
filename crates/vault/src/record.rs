//! What is kept: a record that anybody with the file may read, and a secret that only an unlocked vault opens.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use terok_policy::provider::CredentialType;
use zeroize::Zeroizing;

/// A secret has at most so many octets.
pub const SECRET_LIMIT: usize = 64 * 1024;
/// A name has at most so many characters.
const NAME_LIMIT: usize = 64;

/// What a record is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A provider's credential.
    Credential(CredentialType),
    /// An SSH private key.
    Ssh,
}

impl Kind {
    /// As it is stored.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Kind::Credential(CredentialType::Key) => "key",
            Kind::Credential(CredentialType::Basic) => "basic",
            Kind::Credential(CredentialType::OAuth) => "oauth",
            Kind::Ssh => "ssh",
        }
    }

    pub(crate) fn from_word(word: &str) -> Option<Self> {
        let all = [CredentialType::Key, CredentialType::Basic, CredentialType::OAuth].map(Kind::Credential);
        all.into_iter().chain([Kind::Ssh]).find(|kind| kind.word() == word)
    }
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

impl Record {
    /// In words: `credential anthropic=default`, `SSH key work`.
    pub fn words(&self) -> String {
        words(&self.provider, &self.name)
    }
}

/// A record in words; an SSH key has no provider.
pub(crate) fn words(provider: &str, name: &str) -> String {
    match provider {
        "" => format!("SSH key {name}"),
        provider => format!("credential {provider}={name}"),
    }
}

/// Whether a record may be called so: what can stand in an annotation, and in one line.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > NAME_LIMIT || !name.chars().all(fits) {
        let shown: String = name.chars().take(NAME_LIMIT).collect();
        return Err(Error::Unfit(format!(
            "{shown:?} is no name: letters, digits, `-`, `_` and `.`, at most {NAME_LIMIT}"
        )));
    }
    Ok(())
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

impl Secret {
    /// What it is.
    pub fn kind(&self) -> Kind {
        match self {
            Secret::Key(_) => Kind::Credential(CredentialType::Key),
            Secret::Basic { .. } => Kind::Credential(CredentialType::Basic),
            Secret::OAuth { .. } => Kind::Credential(CredentialType::OAuth),
            Secret::Ssh(_) => Kind::Ssh,
        }
    }

    /// Its fields, each with its length before it: what is sealed. Allocated once, so that no copy stays behind.
    pub(crate) fn encode(&self) -> Result<Zeroizing<Vec<u8>>> {
        let fields: Vec<&str> = match self {
            Secret::Key(key) | Secret::Ssh(key) => vec![key],
            Secret::Basic { user, password } => vec![user, password],
            Secret::OAuth { access, refresh: None } => vec![access],
            Secret::OAuth { access, refresh: Some(refresh) } => vec![access, refresh],
        };
        let length = fields.iter().map(|field| 4 + field.len()).sum();
        if length > SECRET_LIMIT {
            return Err(Error::Unfit(format!("the secret is longer than {SECRET_LIMIT} octets")));
        }
        if fields[0].is_empty() && !matches!(self, Secret::Basic { .. }) {
            return Err(Error::Unfit("the secret is empty".into()));
        }
        let mut encoded = Zeroizing::new(Vec::with_capacity(length));
        for field in fields {
            encoded.extend_from_slice(&(field.len() as u32).to_le_bytes());
            encoded.extend_from_slice(field.as_bytes());
        }
        Ok(encoded)
    }

    /// What [`Secret::encode`] made of a secret of `kind`.
    pub(crate) fn decode(kind: &Kind, mut encoded: &[u8]) -> Option<Self> {
        let mut fields = Vec::new();
        while !encoded.is_empty() {
            let (length, rest) = encoded.split_first_chunk::<4>()?;
            let (field, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
            fields.push(Zeroizing::new(std::str::from_utf8(field).ok()?.to_owned()));
            encoded = rest;
        }
        let mut fields = fields.into_iter();
        let first = fields.next()?;
        let secret = match kind {
            Kind::Credential(CredentialType::Key) => Secret::Key(first),
            Kind::Credential(CredentialType::Basic) => {
                Secret::Basic { user: first.to_string(), password: fields.next()? }
            }
            Kind::Credential(CredentialType::OAuth) => {
                Secret::OAuth { access: first, refresh: fields.next() }
            }
            Kind::Ssh => Secret::Ssh(first),
        };
        fields.next().is_none().then_some(secret)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Zeroizing<String> {
        Zeroizing::new(text.into())
    }

    #[test]
    fn every_secret_is_decoded_as_it_was_and_as_no_other_kind() {
        for secret in [
            Secret::Key(text("sk-1")),
            Secret::Basic { user: "u".into(), password: text("p") },
            Secret::Basic { user: "".into(), password: text("p") },
            Secret::OAuth { access: text("a"), refresh: None },
            Secret::OAuth { access: text("a"), refresh: Some(text("r")) },
            Secret::Ssh(text("-----BEGIN\n")),
        ] {
            let encoded = secret.encode().unwrap();
            assert!(Secret::decode(&secret.kind(), &encoded) == Some(secret.clone()), "{secret:?}");
            assert_eq!(Kind::from_word(secret.kind().word()), Some(secret.kind()));
            assert!(Secret::decode(&secret.kind(), &encoded[..encoded.len() - 1]).is_none());
        }
        let three = [&[1, 0, 0, 0, b'a'][..]; 3].concat();
        assert!(Secret::decode(&Kind::Credential(CredentialType::OAuth), &three).is_none());
        assert!(Secret::decode(&Kind::Ssh, b"").is_none());
    }

    #[test]
    fn an_empty_or_overlong_secret_is_refused() {
        assert!(Secret::Key(text("")).encode().is_err());
        assert!(Secret::Key(text(&"x".repeat(SECRET_LIMIT))).encode().is_err());
    }

    #[test]
    fn names_that_would_not_stand_in_an_annotation_are_refused() {
        for name in ["", "a b", "a=b", "a@b", "a,b", "a\n", "ä", "../a", &"a".repeat(65)] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        check_name("work-2.x_Y").unwrap();
    }
}
