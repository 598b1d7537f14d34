//! `amend`: the pure edit of an OCI `config.json` that every adapter applies (design §2). Unknown fields survive; applying it twice changes nothing.

use crate::policy::Policy;
use serde_json::Value;

/// Why a configuration cannot be amended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("config.json {place}: {reason}")]
pub struct AmendError {
    /// JSON pointer.
    pub place: String,
    /// What is wrong.
    pub reason: String,
}

/// Adds what every protected container gets: the seccomp rules of L9, and with `terok.restricted` no-new-privileges, no capabilities, a stricter filter.
pub fn amend(config: Value, policy: &Policy) -> Result<Value, AmendError> {
    let _ = policy;
    let _ = config;
    todo!()
}

/// Checks that `config` carries the L9 rules (create refuses a container that lacks them).
pub fn is_amended(config: &Value) -> Result<(), AmendError> {
    let _ = config;
    todo!()
}
