//! The audit event and the hash chain of its lines (design §9). One JSON object a line.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
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
    /// A held connection: wait, allow, deny, timeout.
    Verdict,
    /// A connection to a published port.
    Publish,
    /// A credential: read, renewed, missing, revoked; the vault locked or unlocked as far as a request noticed.
    Vault,
    /// A question to the SSH agent.
    Ssh,
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
        let line = read(1, last)?;
        Ok(Chain { n: line.n, hash: hash(last) })
    }
    /// The next line for `event`, without newline. Does not advance: call [`Chain::advance`] once it is written.
    pub fn line(&self, event: &Event) -> String {
        let line = Line { n: self.n + 1, event: event.clone(), prev: self.hash.clone() };
        // Neither map keys other than strings nor failing Serialize impls occur in a Line.
        serde_json::to_string(&line).unwrap_or_default()
    }
    /// Moves past `line`, as written.
    pub fn advance(&mut self, line: &str) {
        self.n += 1;
        self.hash = hash(line);
    }
}

/// Checks that `lines` (no newlines) follow `start` without a gap; returns where the chain then stands.
pub fn verify<'a>(start: Chain, lines: impl Iterator<Item = &'a str>) -> Result<Chain, BrokenChain> {
    let mut chain = start;
    for (at, text) in lines.enumerate().map(|(index, text)| (index + 1, text)) {
        let line = read(at, text)?;
        if line.n != chain.n + 1 {
            let reason =
                format!("number {} where {} follows: lines are missing or added", line.n, chain.n + 1);
            return Err(BrokenChain { line: at, reason });
        }
        if line.prev != chain.hash {
            let reason = "does not carry the hash of the line before: one of the two was changed".to_owned();
            return Err(BrokenChain { line: at, reason });
        }
        chain.advance(text);
    }
    Ok(chain)
}

fn read(at: usize, text: &str) -> Result<Line, BrokenChain> {
    serde_json::from_str(text)
        .map_err(|error| BrokenChain { line: at, reason: format!("is not an audit line: {error}") })
}

fn hash(line: &str) -> String {
    use std::fmt::Write as _;
    Sha256::digest(line.as_bytes()).iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::Reason;

    fn log() -> Vec<String> {
        let mut chain = Chain::default();
        let mut lines = Vec::new();
        for port in 1..=4u16 {
            let event = Event {
                t: 1_700_000_000_000 + u64::from(port),
                kind: Kind::Connect,
                action: "refuse".into(),
                target: format!("evil.example.net:{port}"),
                reason: Some(Reason::PortUnlisted),
                rule: String::new(),
                count: (port == 2).then_some(7),
                detail: [("ms".to_owned(), 3.into())].into(),
            };
            let line = chain.line(&event);
            chain.advance(&line);
            lines.push(line);
        }
        lines
    }

    fn check(lines: &[String]) -> Result<Chain, BrokenChain> {
        verify(Chain::default(), lines.iter().map(String::as_str))
    }

    #[test]
    fn a_line_has_a_stable_form() {
        let zeros = "0".repeat(64);
        let expected = format!(
            r#"{{"n":1,"t":1700000000001,"kind":"connect","action":"refuse","target":"evil.example.net:1","reason":"port-unlisted","detail":{{"ms":3}},"prev":"{zeros}"}}"#
        );
        assert_eq!(log()[0], expected);
    }

    #[test]
    fn an_untouched_log_verifies_and_can_be_continued() {
        let lines = log();
        let end = check(&lines).unwrap();
        assert_eq!(end.n, 4);
        assert_eq!(Chain::after(&lines[3]).unwrap(), end);
        let second = Chain::after(&lines[1]).unwrap();
        assert_eq!(verify(second, lines[2..].iter().map(String::as_str)).unwrap(), end);
    }

    #[test]
    fn a_changed_line_breaks_the_chain_at_the_next_one() {
        let mut lines = log();
        lines[1] = lines[1].replace(":2\"", ":9\"");
        assert_eq!(check(&lines).unwrap_err().line, 3);
    }

    #[test]
    fn a_missing_doubled_or_swapped_line_breaks_the_chain() {
        let lines = log();
        let without = [lines[0].clone(), lines[2].clone()];
        assert_eq!(check(&without).unwrap_err().line, 2);
        let doubled = [lines[0].clone(), lines[0].clone()];
        assert_eq!(check(&doubled).unwrap_err().line, 2);
        let headless = &lines[1..];
        assert_eq!(check(headless).unwrap_err().line, 1);
        let rubbish = [lines[0].clone(), "{".to_owned()];
        assert_eq!(check(&rubbish).unwrap_err().line, 2);
    }
}
