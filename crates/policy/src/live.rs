//! What an operator set on a container: survives stop/start, supervisor restart and reboot as `live.json`.

use crate::policy::Shield;
use crate::rule::{Ports, Proto, Rule};
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
    /// Providers whose tokens were taken back (`terok vault revoke`), by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revoked: Vec<String>,
}

impl Live {
    /// Its file is this long at most, octets: ten thousand rules are one megabyte.
    pub const LIMIT: u64 = 16 << 20;

    /// The state in force at `now` (seconds since the Unix epoch) over a policy's own `base` state.
    pub fn shield(&self, base: Shield, now: u64) -> Shield {
        match (self.state, self.until) {
            (Some(Shield::Down), Some(until)) if now >= until => Shield::Up,
            (Some(state), _) => state,
            (None, _) => base,
        }
    }

    /// Adds a live allow; the ports it names are taken out of live denies of the same target, since the later word wins.
    /// Returns whether anything changed.
    pub fn allow(&mut self, rule: Rule) -> bool {
        open_up(&mut self.deny, &rule);
        let cut = take_out(&mut self.deny, &rule);
        add(&mut self.allow, rule) || cut
    }

    /// Adds a live deny; the ports it names are taken out of live allows of the same target.
    /// Returns whether anything changed.
    pub fn deny(&mut self, rule: Rule) -> bool {
        let cut = take_out(&mut self.allow, &rule);
        add(&mut self.deny, rule) || cut
    }

    /// Removes what live allows and denies say of the rule's target on its ports. Returns whether anything changed.
    pub fn forget(&mut self, rule: &Rule) -> bool {
        let whole = self.deny.iter().any(|deny| deny.is_whole() && deny.target == rule.target);
        if whole && !rule.is_whole() {
            open_up(&mut self.deny, rule);
        }
        let allow = take_out(&mut self.allow, rule);
        take_out(&mut self.deny, rule) || allow
    }
}

fn add(rules: &mut Vec<Rule>, rule: Rule) -> bool {
    let new = !rules.contains(&rule);
    if new {
        rules.push(rule);
    }
    new
}

/// A deny of the whole target as one for each protocol, of which a port can be taken: what is left is no longer
/// [`Rule::is_whole`], since nobody listens at port 0.
fn open_up(denies: &mut Vec<Rule>, rule: &Rule) {
    let Some(at) = denies.iter().position(|deny| deny.is_whole() && deny.target == rule.target) else {
        return;
    };
    let whole = denies.remove(at);
    let part = |proto| Rule { ports: Ports::new(vec![(1, u16::MAX)]), proto, ..whole.clone() };
    for part in Proto::ALL.map(part) {
        add(denies, part);
    }
}

/// Takes the ports of `rule` out of the rules with the same target and protocol.
fn take_out(rules: &mut Vec<Rule>, rule: &Rule) -> bool {
    let mut changed = false;
    rules.retain_mut(|other| {
        if other.target != rule.target || other.proto != rule.proto {
            return true;
        }
        let left = other.ports.without(&rule.ports);
        changed |= left != other.ports;
        other.ports = left;
        !other.ports.is_empty()
    });
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> Rule {
        text.parse().unwrap()
    }
    fn deny(text: &str) -> Rule {
        Rule::parse_deny(text).unwrap()
    }

    #[test]
    fn the_later_of_two_opposite_live_rules_wins() {
        let mut live = Live::default();
        assert!(live.allow(rule("a.example")));
        assert!(live.deny(deny("a.example")));
        assert_eq!((live.allow.len(), live.deny.len()), (0, 1));
        assert!(live.allow(rule("a.example:443")));
        assert!(!live.deny[0].ports.contains(443) && live.deny[0].ports.contains(22));
        assert_eq!(live.allow, [rule("a.example:443")]);
    }

    #[test]
    fn a_later_udp_rule_is_taken_out_of_a_deny_of_the_whole_host() {
        let mut live = Live::default();
        live.deny(deny("a.example"));
        assert!(live.allow(rule("a.example:443/udp")));
        let denies: Vec<String> = live.deny.iter().map(Rule::to_string).collect();
        assert_eq!(denies, ["a.example:1-65535", "a.example:1-442+444-65535/udp"]);
        assert!(live.forget(&deny("a.example")));
        assert!(live.deny.iter().all(|rule| rule.proto == Proto::Udp), "{live:?}");
        let text = serde_json::to_string(&live).unwrap();
        assert_eq!(serde_json::from_str::<Live>(&text).unwrap(), live);
    }

    #[test]
    fn a_live_rule_leaves_other_targets_alone() {
        let mut live = Live::default();
        live.allow(rule("*.a.example"));
        live.deny(deny("b.a.example"));
        assert_eq!((live.allow.len(), live.deny.len()), (1, 1));
    }

    #[test]
    fn saying_the_same_twice_changes_nothing() {
        let mut live = Live::default();
        assert!(live.allow(rule("a.example")));
        assert!(!live.allow(rule("a.example")));
        assert!(live.forget(&rule("a.example")));
        assert!(!live.forget(&rule("a.example")));
        assert_eq!(live, Live::default());
    }

    #[test]
    fn down_ends_by_itself_in_up() {
        let live = Live { state: Some(Shield::Down), until: Some(100), ..Live::default() };
        assert_eq!(live.shield(Shield::Up, 99), Shield::Down);
        assert_eq!(live.shield(Shield::Down, 100), Shield::Up);
        assert_eq!(Live::default().shield(Shield::Block, 0), Shield::Block);
    }

    #[test]
    fn live_state_survives_json() {
        let mut live = Live { state: Some(Shield::Block), ..Live::default() };
        live.allow(rule("host:8080"));
        live.deny(deny("*.a.example"));
        let text = serde_json::to_string(&live).unwrap();
        assert_eq!(text, r#"{"state":"block","allow":["host:8080"],"deny":["*.a.example:*"]}"#);
        assert_eq!(serde_json::from_str::<Live>(&text).unwrap(), live);
    }
}
