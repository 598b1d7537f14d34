//! The public interface: the `terok.` annotation table and its strict parser (A1), both directions.

use crate::policy::Policy;
use crate::profile::Catalog;
use std::collections::BTreeMap;

/// Prefix of every key.
pub const PREFIX: &str = "terok.";

/// One annotation key: parser, launcher, hook JSON, docs and man pages read this table.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Full key, `terok.shield.allow`.
    pub key: &'static str,
    /// Form of the value, `RULE…`.
    pub value: &'static str,
    /// What holds when absent.
    pub default: &'static str,
    /// An example value.
    pub example: &'static str,
    /// One sentence.
    pub help: &'static str,
    /// Whether the value grants something, so that an image must not set it (A2).
    pub grants: bool,
}

/// Every key this version accepts.
pub const KEYS: &[Key] = &[];

/// Why annotations are refused: key, value, reason and the nearest valid spelling (A1).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}={value:?}: {reason}")]
pub struct AnnotationError {
    /// The key as given.
    pub key: String,
    /// The value as given (cut to 200 characters).
    pub value: String,
    /// What is wrong, with a hint.
    pub reason: String,
}

/// Whether any key is ours.
pub fn concerns(annotations: &BTreeMap<String, String>) -> bool {
    annotations.keys().any(|key| key.starts_with(PREFIX))
}

/// Parses the `terok.` keys of `annotations` (others are ignored) and resolves profiles in `catalog`.
pub fn parse(annotations: &BTreeMap<String, String>, catalog: &Catalog) -> Result<Policy, AnnotationError> {
    let _ = (annotations, catalog);
    todo!()
}

/// The annotations that parse back to `policy`: rules from profiles are left to the profiles key.
pub fn render(policy: &Policy) -> BTreeMap<String, String> {
    let _ = policy;
    todo!()
}
