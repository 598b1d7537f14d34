//! A credential that lives with one container (`terok run --credential`): a file on tmpfs that the launcher writes, that the container's start
//! claims by renaming it, and that goes with the container's end. Never in the store.

use serde::{Deserialize, Serialize};
use terok_policy::provider::CredentialType;
use zeroize::Zeroizing;

/// What the file holds, as JSON. Plain: who can read the tmpfs of its owner can read its processes too.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ephemeral {
    /// The provider it is for; another one's grant must not have it.
    pub provider: String,
    /// Its type.
    pub kind: CredentialType,
    /// User name of a Basic one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Key, password or access token.
    pub secret: Zeroizing<String>,
}

impl Ephemeral {
    /// The file's content.
    pub fn to_json(&self) -> Zeroizing<Vec<u8>> {
        // A struct of strings is always JSON.
        Zeroizing::new(serde_json::to_vec(self).unwrap_or_default())
    }

    /// Reads the file's content; `None` where it is not one that [`Ephemeral::to_json`] wrote.
    pub fn parse(content: &[u8]) -> Option<Self> {
        serde_json::from_slice(content).ok()
    }
}

/// Never the secret.
impl std::fmt::Debug for Ephemeral {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ephemeral")
            .field("provider", &self.provider)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_never_shown() {
        let written = Ephemeral {
            provider: "anthropic".into(),
            kind: CredentialType::Key,
            user: String::new(),
            secret: Zeroizing::new("sk-ant-real".into()),
        };
        assert_eq!(Ephemeral::parse(&written.to_json()), Some(written.clone()));
        assert!(!format!("{written:?}").contains("real"));
        assert_eq!(Ephemeral::parse(br#"{"provider":"x","kind":"key","secret":"s","more":1}"#), None);
        assert_eq!(Ephemeral::parse(b"x"), None);
    }
}
