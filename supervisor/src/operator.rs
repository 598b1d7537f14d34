//! An operator's change on the running container: on disk before it is acknowledged, in the kernel's sets through the
//! parent, and in force on flows that are open already (E1).

use crate::audit::{AuditError, Facts as _, event};
use crate::context::{Context, unix_seconds};
use crate::hold::Answer;
use crate::names::NameTableError;
use crate::parent_link::RefusedByParent;
use crate::vault::ssh_name;
use std::io;
use std::rc::Rc;
use std::time::Duration;
use terok_policy::audit::Kind;
use terok_policy::control::{Applied, RULES_AT_ONCE, Scope};
use terok_policy::grants::Grants;
use terok_policy::judge::Reason;
use terok_policy::live::Live;
use terok_policy::plan::{Network, Now};
use terok_policy::policy::{Policy, Shield, Sourced};
use terok_policy::rule::{Proto, RuleError, Target};
use terok_policy::{Plan, Query, Rule, Verdict, judge};
use tokio::sync::{Mutex, Notify};

/// The longest `down --for`.
const LONGEST_DOWN: u64 = 366 * 24 * 3600;

/// Changes, one at a time.
pub(crate) struct Operator {
    context: Rc<Context>,
    turn: Mutex<()>,
    /// The end of a lowered shield may have moved.
    timer: Notify,
}

/// A change that an operator asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// Allow these; the later word wins over an equal live deny.
    Allow(Vec<Rule>),
    /// Deny these; the later word wins over an equal live allow.
    Deny(Vec<Rule>),
    /// Forget live allows and denies equal to these.
    Forget(Vec<Rule>),
    /// Another state, `down` for a number of seconds or until further notice.
    State(Shield, Option<u64>),
    /// Take granted credentials back from this container: providers by name, SSH keys as `ssh:KEY`; all where none is named.
    Revoke(Vec<String>),
    /// Give them back.
    Return(Vec<String>),
}

/// Why a change is not, or not wholly, in force.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChangeError {
    /// Not a rule.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// A rule this container cannot carry.
    #[error(transparent)]
    Plan(#[from] terok_policy::plan::PlanError),
    /// A deny rule that is not live stands against it.
    #[error("{rule} stays denied by {by}: a deny beats an allow; create the container without that deny")]
    StillDenied {
        /// What was to be allowed.
        rule: String,
        /// The deny rule and its source.
        by: String,
    },
    /// Not one of its grants.
    #[error("this container was not granted {name}{}", match granted.is_empty() { true => ", nor anything else of the vault".to_owned(), false => format!("; it has {granted}") })]
    NotGranted {
        /// What was named.
        name: String,
        /// What there is.
        granted: String,
    },
    /// Nothing waits under this number.
    #[error("no connection waits under {0}; `terok status` lists those that do")]
    NotWaiting(u64),
    /// Not a state or not a time.
    #[error("{0}")]
    State(String),
    /// Nothing was changed.
    #[error("nothing was changed: {0}")]
    Unchanged(#[from] Obstacle),
    /// In force now, but not everywhere or not for long.
    #[error("in force for names, but not complete: {0}")]
    Partial(Obstacle),
}

/// What stood in the way.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Obstacle {
    /// The change cannot be recorded.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The change cannot be kept.
    #[error("live.json: {0}; free space in the state folder")]
    Persist(#[from] io::Error),
    /// A name cannot get an address.
    #[error(transparent)]
    Names(#[from] NameTableError),
    /// The kernel's sets cannot be changed.
    #[error(transparent)]
    Kernel(#[from] RefusedByParent),
}

impl Operator {
    /// Changes go through the context's parent into the kernel.
    pub(crate) fn new(context: Rc<Context>) -> Rc<Self> {
        Rc::new(Operator { context, turn: Mutex::new(()), timer: Notify::new() })
    }

    /// Puts the kernel's sets in agreement with what is in force: after a crash they may lag behind the disk.
    pub(crate) async fn reconcile(&self) -> Result<(), RefusedByParent> {
        let _turn = self.turn.lock().await;
        self.context.parent.apply().await
    }

    /// Has the kernel's sets changed where `live` asks for other ones than `before`. Without a card names are not in them; with
    /// one they may be, for the addresses that only the parent knows it has granted.
    async fn load(&self, before: &Live, live: &Live) -> Result<(), RefusedByParent> {
        let config = &self.context.config;
        if config.facts.network == Network::Sealed && before.until == live.until {
            let plan = Plan { policy: config.policy.clone(), facts: config.facts.clone() };
            let (grants, unix) = (Grants::default(), unix_seconds());
            let sets = |live: &Live| plan.live_sets(&Now { live, grants: &grants, unix });
            if sets(before) == sets(live) {
                return Ok(());
            }
        }
        self.context.parent.apply().await
    }

    /// Makes `change`. A change that closes is in force at the proxy whatever stands in its way; one that opens is
    /// wholly made or not at all.
    pub(crate) async fn change(&self, change: Change, by: u32) -> Result<Applied, ChangeError> {
        let _turn = self.turn.lock().await;
        let before = self.context.live().clone();
        let now = unix_seconds();
        let (after, changed) = apply(&self.context.config.policy, &before, &change, now)?;
        if let Change::Allow(rules) | Change::Deny(rules) = &change {
            self.check(&after, &change, rules)?;
        }
        if let Change::Return(_) = &change {
            self.context.given_back();
        }
        if changed.is_empty() {
            return Ok(Applied { changed, cut: 0 });
        }
        let opens = change.opens(self.context.shield());
        let recorded = self.record(&change, &changed, by);
        let made = if opens {
            recorded?;
            self.open(&before, &after).await
        } else {
            let kept = self.context.keep(&after).map_err(Obstacle::from);
            self.context.set_live(after.clone());
            // The parent reads the file.
            let loaded = match change {
                Change::State(Shield::Block, _) if kept.is_err() => self.context.parent.block().await,
                _ => self.load(&before, &after).await,
            };
            let loaded = loaded.map_err(Obstacle::from);
            recorded.and(kept).and(loaded).map_err(ChangeError::Partial)
        };
        self.timer.notify_one();
        let cut = self.context.recheck();
        made.map(|()| {
            let mut changed = changed;
            changed.truncate(RULES_AT_ONCE);
            Applied { changed, cut }
        })
    }

    /// An operator's word on what waits under `id`; returns the rule that speaks of it alone as well.
    pub(crate) async fn verdict(
        &self,
        id: u64,
        allow: bool,
        scope: Scope,
        by: u32,
    ) -> Result<(Applied, String), ChangeError> {
        let hold = &self.context.hold;
        let (target, rule) = hold.question(id).ok_or(ChangeError::NotWaiting(id))?;
        let (text, answer) = (rule.to_string(), if allow { Answer::Allow } else { Answer::Deny });
        if scope == Scope::Always {
            let rules = vec![rule];
            let applied =
                self.change(if allow { Change::Allow(rules) } else { Change::Deny(rules) }, by).await?;
            // The rule has spoken, unless another one beat it.
            hold.settle(id, Answer::Rules);
            return Ok((applied, text));
        }
        let action = if allow { "allow" } else { "deny" };
        let line = event(Kind::Verdict, action, target.to_string()).verdict(&Verdict::Operator);
        let recorded = self.context.audit.record(line.with("id", id).with("uid", by)).map_err(Obstacle::from);
        if allow {
            recorded?;
            hold.settle(id, answer);
        } else {
            hold.settle(id, answer);
            recorded.map_err(ChangeError::Partial)?;
        }
        Ok((Applied { changed: Vec::new(), cut: 0 }, text))
    }

    /// Ends a lowered shield on time, as long as the worker lives.
    pub(crate) async fn end_downs(&self) {
        loop {
            let until = self.context.live().until;
            match until {
                None => self.timer.notified().await,
                Some(until) => {
                    let left = Duration::from_secs(until.saturating_sub(unix_seconds()));
                    // Short steps: a clock that was set must not keep the shield down.
                    let step = left.min(Duration::from_secs(30));
                    let _ = tokio::time::timeout(step, self.timer.notified()).await;
                    if unix_seconds() >= until && self.context.live().until == Some(until) {
                        self.end_down(until).await;
                    }
                }
            }
        }
    }

    async fn end_down(&self, until: u64) {
        let _turn = self.turn.lock().await;
        let mut live = self.context.live().clone();
        if live.until != Some(until) {
            return;
        }
        (live.state, live.until) = (Some(Shield::Up), None);
        // From `until` on the state is up whatever happens here; the kernel's elements have ended by themselves.
        let kept = self.context.keep(&live);
        self.context.set_live(live);
        let loaded = self.context.parent.apply().await;
        let cut = self.context.recheck();
        let mut line = event(Kind::Control, "state", "up").with("by", "timer").with("cut", cut);
        if let Some(error) = kept.err().map(|e| e.to_string()).or(loaded.err().map(|e| e.to_string())) {
            line = line.with("error", error);
        }
        self.context.audit.note(line);
    }

    async fn open(&self, before: &Live, after: &Live) -> Result<(), ChangeError> {
        let named = after.allow.iter().filter_map(|rule| match &rule.target {
            Target::Name(name) => Some(name),
            _ => None,
        });
        self.context.names.allocate_all(named).map_err(Obstacle::from)?;
        self.context.keep(after).map_err(Obstacle::from)?;
        if let Err(error) = self.load(before, after).await {
            // The parent reads the file: put back what it could not load.
            let _ = self.context.keep(before);
            return Err(Obstacle::from(error).into());
        }
        self.context.set_live(after.clone());
        Ok(())
    }

    fn record(&self, change: &Change, changed: &[String], by: u32) -> Result<(), Obstacle> {
        let line = event(Kind::Control, change.action(), changed.join(" ")).with("uid", by);
        let line = match change {
            Change::State(_, Some(seconds)) => line.with("seconds", *seconds),
            _ => line,
        };
        Ok(self.context.audit.record(line)?)
    }

    /// Refuses rules that this container cannot carry, and allows that would change nothing because a deny stands.
    fn check(&self, after: &Live, change: &Change, rules: &[Rule]) -> Result<(), ChangeError> {
        let policy = &self.context.config.policy;
        let facts = self.context.config.facts.clone();
        if !matches!(change, Change::Allow(_)) {
            // One that nothing here could ever allow is a mistake.
            let one = |rule: &Rule| Live { allow: vec![rule.clone()], ..Live::default() };
            let empty = Plan { policy: Policy::default(), facts };
            return Ok(rules.iter().try_for_each(|rule| empty.carries(&one(rule)))?);
        }
        Plan { policy: policy.clone(), facts }.carries(after)?;
        for rule in rules {
            if let Some(by) = denied(policy, after, rule) {
                return Err(ChangeError::StillDenied { rule: rule.to_string(), by: by.rule.to_string() });
            }
        }
        Ok(())
    }
}

impl Change {
    fn action(&self) -> &'static str {
        match self {
            Change::Allow(_) => "allow",
            Change::Deny(_) => "deny",
            Change::Forget(_) => "forget",
            Change::State(..) => "state",
            Change::Revoke(_) => "revoke",
            Change::Return(_) => "return",
        }
    }

    /// Whether it may let through what was refused under `state`. Forgetting can: a live deny may go.
    fn opens(&self, state: Shield) -> bool {
        match self {
            Change::Allow(_) | Change::Forget(_) | Change::Return(_) => true,
            Change::Deny(_) | Change::Revoke(_) => false,
            Change::State(wanted, _) => match wanted {
                Shield::Block => false,
                Shield::Up => state == Shield::Block,
                Shield::Down => true,
            },
        }
    }
}

/// The operator's state after `change`, and what of it is new. Pure.
fn apply(
    policy: &Policy,
    live: &Live,
    change: &Change,
    now: u64,
) -> Result<(Live, Vec<String>), ChangeError> {
    let mut after = live.clone();
    let mut changed = Vec::new();
    match change {
        Change::Allow(rules) => {
            for rule in rules {
                let before = about(&after, rule);
                after.allow(rule.clone());
                if policy.allow.iter().any(|s| s.rule == *rule) {
                    remove(&mut after.allow, rule);
                }
                if about(&after, rule) != before {
                    changed.push(rule.to_string());
                }
            }
        }
        Change::Deny(rules) => {
            for rule in rules {
                let before = about(&after, rule);
                after.deny(rule.clone());
                if policy.deny.iter().any(|s| s.rule == *rule) {
                    remove(&mut after.deny, rule);
                }
                if about(&after, rule) != before {
                    changed.push(rule.to_deny_string());
                }
            }
        }
        Change::Forget(rules) => {
            for rule in rules {
                let before = about(&after, rule);
                remove(&mut after.allow, rule);
                if rule.is_whole() {
                    after.deny.retain(|deny| deny.target != rule.target);
                } else {
                    remove(&mut after.deny, rule);
                }
                if about(&after, rule) != before {
                    changed.push(if rule.is_whole() { rule.to_deny_string() } else { rule.to_string() });
                }
            }
        }
        Change::Revoke(names) => {
            for name in grants(policy, names)? {
                if !after.revoked.contains(&name) {
                    after.revoked.push(name.clone());
                    changed.push(name);
                }
            }
        }
        Change::Return(names) => {
            for name in grants(policy, names)? {
                if after.revoked.contains(&name) {
                    after.revoked.retain(|other| *other != name);
                    changed.push(name);
                }
            }
        }
        Change::State(state, seconds) => {
            let until = match (state, seconds) {
                (Shield::Down, Some(seconds)) if (1..=LONGEST_DOWN).contains(seconds) => Some(now + seconds),
                (Shield::Down, Some(seconds)) => {
                    return Err(ChangeError::State(format!(
                        "down for {seconds} seconds: give 1 to {LONGEST_DOWN}, or no time for until further notice"
                    )));
                }
                (_, Some(_)) => return Err(ChangeError::State("only down takes a time".to_owned())),
                (_, None) => None,
            };
            let was = (live.shield(policy.shield, now), live.until.filter(|&until| until > now));
            if was != (*state, until) {
                changed.push(format!("{state:?}").to_lowercase());
            }
            (after.state, after.until) = (Some(*state), until);
        }
    }
    Ok((after, changed))
}

/// The grants that `names` mean: all of them where it is empty.
fn grants(policy: &Policy, names: &[String]) -> Result<Vec<String>, ChangeError> {
    let providers = policy.vault.iter().map(|grant| grant.provider.name.clone());
    let granted: Vec<String> = providers.chain(policy.ssh.iter().map(ssh_name)).collect();
    if let Some(name) = names.iter().find(|name| !granted.contains(name)) {
        return Err(ChangeError::NotGranted { name: name.clone(), granted: granted.join(" ") });
    }
    Ok(if names.is_empty() { granted } else { names.to_vec() })
}

/// The live allows and denies with the target of `rule`, which are all that a change by it can touch.
fn about(live: &Live, rule: &Rule) -> [Vec<Rule>; 2] {
    [&live.allow, &live.deny]
        .map(|rules| rules.iter().filter(|other| other.target == rule.target).cloned().collect())
}

fn remove(rules: &mut Vec<Rule>, rule: &Rule) -> bool {
    let before = rules.len();
    rules.retain(|r| r != rule);
    rules.len() != before
}

/// The deny rule that stands against everything `rule` would allow at its first port; `None` where that cannot be
/// told by one question (blocks, wildcards).
fn denied(policy: &Policy, live: &Live, rule: &Rule) -> Option<Sourced> {
    let port = rule.ports.0.first().map_or(443, |&(from, _)| from);
    let query = match &rule.target {
        Target::Name(name) => Query::Name { name, port, proto: Proto::Tcp },
        Target::Net(cidr) => Query::Literal { ip: cidr.addr, port, proto: Proto::Tcp },
        Target::Host => Query::Host { port, proto: Proto::Tcp },
        Target::Under(_) | Target::Any => return None,
    };
    match judge(policy, live, Shield::Up, &query) {
        Verdict::Refuse { reason: Reason::Denied, rule: Some(by) } => Some(by),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use terok_policy::policy::{Source, SshGrant};

    fn rules(texts: &[&str]) -> Vec<Rule> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn policy(allow: &[&str], deny: &[&str]) -> Policy {
        let sourced = |texts: &[&str]| {
            rules(texts).into_iter().map(|rule| Sourced { rule, source: Source::Annotation }).collect()
        };
        Policy { allow: sourced(allow), deny: sourced(deny), ..Policy::default() }
    }

    fn after(policy: &Policy, changes: &[Change]) -> (Live, Vec<String>) {
        let mut live = Live::default();
        let mut changed = Vec::new();
        for change in changes {
            (live, changed) = apply(policy, &live, change, 1000).unwrap();
        }
        (live, changed)
    }

    #[test]
    fn the_later_word_wins_between_equal_live_rules() {
        let policy = policy(&[], &[]);
        let (allow, deny) = (Change::Allow(rules(&["a.example"])), Change::Deny(rules(&["a.example"])));
        let (live, _) = after(&policy, &[allow.clone(), deny.clone()]);
        assert_eq!((live.allow.len(), live.deny.len()), (0, 1));
        let (live, _) = after(&policy, &[allow.clone(), deny, allow]);
        assert_eq!((live.allow.len(), live.deny.len()), (1, 0));
    }

    #[test]
    fn what_is_so_already_changes_nothing() {
        let policy = policy(&["a.example"], &["b.example"]);
        assert!(after(&policy, &[Change::Allow(rules(&["a.example"]))]).1.is_empty());
        assert!(after(&policy, &[Change::Deny(rules(&["b.example"]))]).1.is_empty());
        assert!(after(&policy, &[Change::Forget(rules(&["a.example"]))]).1.is_empty());
        assert!(after(&policy, &[Change::State(Shield::Up, None)]).1.is_empty());
        let twice = [Change::Deny(rules(&["a.example"])), Change::Deny(rules(&["a.example"]))];
        assert!(after(&policy, &twice).1.is_empty());
    }

    #[test]
    fn a_live_deny_of_a_whole_host_gives_way_to_the_ports_of_a_later_allow() {
        let deny = Change::Deny(vec![Rule::parse_deny("a.example").unwrap()]);
        let (live, changed) =
            after(&policy(&[], &[]), &[deny.clone(), Change::Allow(rules(&["a.example:443/udp"]))]);
        assert_eq!(changed, ["a.example:443/udp"]);
        let name = "a.example".parse().unwrap();
        let allows = |port, proto| {
            judge(&policy(&[], &[]), &live, Shield::Down, &Query::Name { name: &name, port, proto }).allows()
        };
        assert!(allows(443, Proto::Udp) && !allows(443, Proto::Tcp) && !allows(444, Proto::Udp));
        let forget = Change::Forget(vec![Rule::parse_deny("a.example").unwrap()]);
        let (live, changed) = after(&policy(&[], &[]), &[deny, forget]);
        assert_eq!((live, changed), (Live::default(), vec!["a.example".to_owned()]));
    }

    #[test]
    fn thousands_of_rules_at_once_are_no_matter_of_minutes() {
        let rules: Vec<Rule> =
            (0..4_000u32).map(|n| format!("100.{}.{}.1", n / 256, n % 256).parse().unwrap()).collect();
        let start = std::time::Instant::now();
        let (live, changed) = after(&policy(&[], &[]), &[Change::Allow(rules)]);
        assert_eq!((live.allow.len(), changed.len()), (4_000, 4_000));
        // A second for an unoptimised program that has the machine to itself.
        assert!(start.elapsed().as_secs() < 100, "{:?}", start.elapsed());
    }

    #[test]
    fn forgetting_takes_back_allows_and_denies() {
        let policy = policy(&[], &[]);
        let changes = [
            Change::Allow(rules(&["a.example"])),
            Change::Deny(rules(&["b.example"])),
            Change::Forget(rules(&["a.example", "b.example", "c.example"])),
        ];
        let (live, changed) = after(&policy, &changes);
        assert_eq!(live, Live::default());
        assert_eq!(changed, ["a.example", "b.example"]);
    }

    #[test]
    fn only_down_takes_a_time_and_a_sensible_one() {
        let policy = policy(&[], &[]);
        let state = |state, seconds| apply(&policy, &Live::default(), &Change::State(state, seconds), 1000);
        let (live, changed) = state(Shield::Down, Some(600)).unwrap();
        assert_eq!((live.state, live.until, changed), (Some(Shield::Down), Some(1600), vec!["down".into()]));
        assert!(state(Shield::Down, Some(0)).is_err());
        assert!(state(Shield::Down, Some(u64::MAX)).is_err());
        assert!(state(Shield::Block, Some(5)).is_err());
    }

    #[test]
    fn an_allow_under_a_standing_deny_is_told_so() {
        let policy = policy(&[], &["*.example.com", "10.0.0.0/8"]);
        for rule in ["api.example.com", "10.1.2.3:80"] {
            let rule: Rule = rule.parse().unwrap();
            let live = Live { allow: vec![rule.clone()], ..Live::default() };
            assert!(denied(&policy, &live, &rule).is_some(), "{rule}");
        }
        let free: Rule = "example.com".parse().unwrap();
        assert_eq!(denied(&policy, &Live { allow: vec![free.clone()], ..Live::default() }, &free), None);
    }

    #[test]
    fn grants_are_taken_back_by_name_or_all_together_and_given_again() {
        let work = SshGrant { key: "work".into(), host: None };
        let home = SshGrant { key: "home".into(), host: None };
        let policy = Policy { ssh: vec![work, home], ..Policy::default() };
        let made = |live: &Live, change: Change| apply(&policy, live, &change, 0);
        let (one, changed) = made(&Live::default(), Change::Revoke(vec!["ssh:work".into()])).unwrap();
        assert_eq!((&one.revoked, changed), (&vec!["ssh:work".to_owned()], vec!["ssh:work".to_owned()]));
        assert!(made(&one, Change::Revoke(vec!["ssh:work".into()])).unwrap().1.is_empty());
        let (all, changed) = made(&one, Change::Revoke(vec![])).unwrap();
        assert_eq!((all.revoked.len(), changed), (2, vec!["ssh:home".to_owned()]));
        let (one, _) = made(&all, Change::Return(vec!["ssh:work".into()])).unwrap();
        assert_eq!(one.revoked, ["ssh:home"]);
        assert_eq!(made(&one, Change::Return(vec![])).unwrap().0, Live::default());
        let unknown = made(&one, Change::Revoke(vec!["github".into()])).unwrap_err().to_string();
        assert_eq!(unknown, "this container was not granted github; it has ssh:work ssh:home");
        // Taking back never opens, giving back does: it is on disk before it is in force.
        assert!(!Change::Revoke(vec![]).opens(Shield::Up) && Change::Return(vec![]).opens(Shield::Up));
    }
}
