//! The audit event and the hash chain of its lines (design §9). One JSON object a line.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One audit event, without its place in the chain.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Unix time in milliseconds.
    pub t: u64,
    /// Kind of event.
    pub kind: Kind,
    /// What happened, a short kebab-case word: `start`, `ready`, `allow`, `refuse`, `cut`, `end`, …
    pub action: String,
    /// Host name or address and port concerned, `api.example.com:443`; empty where none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub target: String,
    /// Why, for refusals ([`crate::judge::Reason`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<crate::judge::Reason>,
    /// The rule that decided, `rule (source)`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rule: String,
    /// How many like events this line stands for; 1 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Further facts: `bytes_up`, `bytes_down`, `ms`, `address`, `proto`, `uid`, `method`, `path`, …
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub detail: BTreeMap<String, serde_json::Value>,
}

/// Kinds of event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Kind {
    /// Start, ready, worker restart, end.
    Lifecycle,
    /// A DNS question.
    Dns,
    /// A connection.
    Connect,
    /// An HTTP request.
    Http,
    /// An operator's change: allow, deny, state.
    Control,
    /// A packet the kernel refused (NFLOG).
    Kernel,
}

/// A line's place in the chain: SHA-256 over the previous line's bytes (without newline), lower-case hex; 64 zeros before the first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Sequence number from 1.
    pub n: u64,
    /// The event.
    #[serde(flatten)]
    pub event: Event,
    /// Hash of the line before.
    pub prev: String,
}

/// Where a chain stands: number and hash of its last line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Number of the last line; 0: none yet.
    pub n: u64,
    /// Hash of the last line.
    pub hash: String,
}

/// Where and how a chain is broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct BrokenChain {
    /// Line number in the text, from 1.
    pub line: usize,
    /// What does not agree.
    pub reason: String,
}

impl Default for Chain {
    fn default() -> Self {
        Chain { n: 0, hash: "0".repeat(64) }
    }
}

impl Chain {
    /// The chain after a log whose last complete line is `last` (no newline).
    pub fn after(last: &str) -> Result<Self, BrokenChain> {
        let _ = last;
        todo!()
    }
    /// The next line for `event`, without newline. Does not advance: call [`Chain::advance`] once it is written.
    pub fn line(&self, event: &Event) -> String {
        let _ = event;
        todo!()
    }
    /// Moves past `line`, as written.
    pub fn advance(&mut self, line: &str) {
        let _ = line;
        todo!()
    }
}

/// Checks that `lines` (no newlines) follow `start` without a gap; returns where the chain then stands.
pub fn verify<'a>(start: Chain, lines: impl Iterator<Item = &'a str>) -> Result<Chain, BrokenChain> {
    let _ = (start, lines.count());
    todo!()
}
