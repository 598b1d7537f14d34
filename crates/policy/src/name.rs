//! A canonical DNS name: IDNA A-labels, lower case, no trailing dot (E2). Nothing else compares names.

use serde::{Deserialize, Serialize};

/// A host name in canonical form; at least one label, at most 253 octets, labels of 1 to 63 octets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

/// Why a text is not a host name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Nothing, or only a dot.
    #[error("empty name")]
    Empty,
    /// IDNA (UTS 46) or host-name rules refuse it.
    #[error("{0:?} is not a host name")]
    Invalid(String),
}

impl Name {
    /// Canonicalises `text` (UTS 46 non-transitional, STD3 rules, `_` allowed), refusing IP literals and control characters.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let _ = text;
        todo!()
    }
    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// Whether `self` is a proper subdomain of `parent`.
    pub fn is_under(&self, parent: &Name) -> bool {
        self.0.strip_suffix(parent.as_str()).is_some_and(|rest| rest.ends_with('.') && rest.len() > 1)
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::str::FromStr for Name {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Name::parse(text)
    }
}
impl TryFrom<String> for Name {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        Name::parse(&text)
    }
}
impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}
