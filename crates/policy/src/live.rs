//! What an operator set on a container: survives stop/start, supervisor restart and reboot as `live.json`.

use crate::policy::Shield;
use crate::rule::Rule;
use serde::{Deserialize, Serialize};

/// The persisted operator state of one container. Serialised as JSON with [`crate::layout::LIVE`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Live {
    /// State set by an operator; `None`: the policy's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<Shield>,
    /// When `down` ends, seconds since the Unix epoch; then `up`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
    /// Live allows, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<Rule>,
    /// Live denies, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<Rule>,
}

impl Live {
    /// The state in force at `now` (seconds since the Unix epoch) over a policy's own `base` state.
    pub fn shield(&self, base: Shield, now: u64) -> Shield {
        match (self.state, self.until) {
            (Some(Shield::Down), Some(until)) if now >= until => Shield::Up,
            (Some(state), _) => state,
            (None, _) => base,
        }
    }
}
