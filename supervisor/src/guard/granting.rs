//! Real addresses that answers gave out: which ones an answer may give, until when, and for how long an open flow keeps them.
//! In memory alone: a parent that dies grants nothing any more, and what it granted ends by itself.

use std::net::IpAddr;
use std::time::Duration;
use terok_kernel::conntrack::Flow;
use terok_policy::Name;
use terok_policy::answer::{Answer, answer, is_peer_name, may_be_given};
use terok_policy::grants::Grants;
use terok_policy::live::Live;
use terok_policy::plan::{HostFacts, Now, Plan};
use terok_policy::policy::Policy;
use terok_policy::rule::{Proto, Rule, Target};
use terok_policy::ruleset::{Element, Set};

/// How long an answer stands at least, and how much longer than the container may keep it: a client resolves, then connects.
const AT_LEAST: u64 = 60;
const GRACE: u64 = 30;
/// How long it stands at most without being asked for again, whatever the zone says.
const AT_MOST: u64 = 24 * 3600;
/// Addresses of one name, and of all: an element of the kernel's set each.
const OF_A_NAME: usize = 64;
const OF_ALL: usize = 4096;
/// An address with an open flow stands so much longer, from so long before its end on; flows are looked for this often.
const KEPT: u64 = 120;
const EARLY: u64 = 10;
const LOOK: u64 = 5;

/// What was granted.
#[derive(Default)]
pub(super) struct Granting {
    grants: Grants,
    /// Those before the last change, until it is loaded.
    before: Grants,
    /// The rules by name that grants are about; a policy may be large, and few of its rules are such.
    plan: Option<Plan>,
    /// When flows were last looked for.
    looked: u64,
}

/// An answer that is about to be given.
pub(super) struct Asked<'a> {
    pub(super) name: &'a Name,
    /// Seconds.
    pub(super) ttl: u32,
    pub(super) addresses: &'a [IpAddr],
}

/// What becomes of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Granted {
    /// The addresses that may be given out.
    pub(super) addresses: Vec<IpAddr>,
    /// The kernel does not let them pass for long enough yet.
    pub(super) new: bool,
}

impl Granting {
    /// Takes the rules that grants are about from the container's policy; needed once after each change of rules.
    pub(super) fn know(
        &mut self,
        facts: &HostFacts,
        policy: impl FnOnce() -> anyhow::Result<Policy>,
    ) -> anyhow::Result<()> {
        if self.plan.is_none() {
            let mut policy = policy()?;
            policy.allow.retain(|sourced| concerns(facts, &sourced.rule));
            policy.deny.retain(|sourced| is_by_name(&sourced.rule));
            policy.allow.shrink_to_fit();
            policy.deny.shrink_to_fit();
            self.plan = Some(Plan { policy, facts: facts.clone() });
        }
        Ok(())
    }

    /// Notes what an answer may give out, by the rules, the floor and the limits.
    pub(super) fn grant(
        &mut self,
        live: &Live,
        facts: &HostFacts,
        is_own: impl Fn(IpAddr) -> bool,
        asked: &Asked<'_>,
        now: u64,
    ) -> Result<Granted, String> {
        let Asked { name, ttl, addresses } = asked;
        let Some(plan) = &self.plan else { return Err("no rules are known".to_owned()) };
        let kind = answer(&plan.policy, live, facts, name);
        if kind == Answer::Virtual {
            return Err(format!("no rule answers {name} with real addresses"));
        }
        self.before = self.grants.clone();
        let stands = (u64::from(*ttl)).clamp(AT_LEAST, AT_MOST);
        let (mut given, mut new) = (Vec::new(), false);
        let (mut of_name, mut of_all) = (0, 0);
        for (other, ..) in self.grants.iter().filter(|&(.., until)| until > now) {
            of_all += 1;
            of_name += usize::from(other == *name);
        }
        for ip in addresses.iter().map(IpAddr::to_canonical) {
            if given.contains(&ip) || !allowed(facts, kind, ip, &is_own) {
                continue;
            }
            let until =
                self.grants.iter().find(|(of, at, _)| of == name && *at == ip).map(|(.., until)| until);
            if until.is_none() && (of_name >= OF_A_NAME || of_all >= OF_ALL) {
                continue;
            }
            if until.is_none() {
                (of_name, of_all) = (of_name + 1, of_all + 1);
            }
            if until.is_none_or(|until| until < now + stands) {
                self.grants.grant(name, &[ip], now + stands + GRACE);
                new = true;
            }
            given.push(ip);
        }
        Ok(Granted { addresses: given, new })
    }

    /// Undoes the last [`Granting::grant`]: it could not be loaded.
    pub(super) fn take_back(&mut self) {
        self.grants = std::mem::take(&mut self.before);
    }

    /// Grants without any question.
    #[cfg(test)]
    pub(super) fn give(&mut self, name: &Name, ip: IpAddr, until: u64) {
        self.grants.grant(name, &[ip], until);
    }

    /// All that stands.
    pub(super) fn grants(&self) -> &Grants {
        &self.grants
    }

    pub(super) fn is_empty(&self) -> bool {
        self.grants.next_end().is_none()
    }

    /// The rules may have changed.
    pub(super) fn forget_rules(&mut self) {
        self.plan = None;
    }

    pub(super) fn expire(&mut self, now: u64) {
        self.grants.expire(now);
    }

    /// The sets that hold what stands.
    pub(super) fn sets(&self, live: &Live, facts: &HostFacts, now: u64) -> Vec<Set> {
        self.sets_of(&self.grants, live, facts, now)
    }

    /// How long until flows are to be looked for.
    pub(super) fn due(&self, now: u64) -> Option<Duration> {
        let end = self.grants.next_end()?;
        let at = end.saturating_sub(EARLY).max(self.looked + LOOK);
        Some(Duration::from_secs(at.saturating_sub(now)))
    }

    /// What ends soon.
    pub(super) fn ending(&self, now: u64) -> Vec<(Name, IpAddr)> {
        let soon = |until: u64| now < until && until <= now + EARLY;
        let ending = self.grants.iter().filter(|&(.., until)| soon(until));
        ending.map(|(name, ip, _)| (name.clone(), ip)).collect()
    }

    /// Lets those of `ending` stand longer to which a flow is open by the name's own rules. Whether there is one.
    pub(super) fn keep(
        &mut self,
        live: &Live,
        facts: &HostFacts,
        ending: &[(Name, IpAddr)],
        flows: &[Flow],
        now: u64,
    ) -> bool {
        self.looked = now;
        let mut kept = false;
        for (name, ip) in ending.iter().filter(|(_, ip)| flows.iter().any(|flow| flow.dst == *ip)) {
            let mut alone = Grants::default();
            alone.grant(name, &[*ip], now + KEPT);
            let opened: Vec<Element> =
                self.sets_of(&alone, live, facts, now).into_iter().flat_map(|set| set.elements).collect();
            if flows.iter().any(|flow| opened.iter().any(|element| is_in(flow, element))) {
                self.grants.grant(name, &[*ip], now + KEPT);
                kept = true;
            }
        }
        kept
    }

    fn sets_of(&self, grants: &Grants, live: &Live, facts: &HostFacts, now: u64) -> Vec<Set> {
        let Some(plan) = &self.plan else { return Vec::new() };
        let plan = Plan { policy: plan.policy.clone(), facts: facts.clone() };
        let mut sets = plan.live_sets(&Now { live, grants, unix: now });
        sets.retain(|set| set.name.starts_with("named"));
        sets
    }
}

fn is_in(flow: &Flow, element: &Element) -> bool {
    let (first, last) = element.addr;
    let ports = element
        .ports
        .is_some_and(|(proto, from, to)| proto.0 == flow.proto && (from..=to).contains(&flow.dport));
    first.is_ipv4() == flow.dst.is_ipv4() && first <= flow.dst && flow.dst <= last && ports
}

fn allowed(facts: &HostFacts, kind: Answer, ip: IpAddr, is_own: impl Fn(IpAddr) -> bool) -> bool {
    // The host may stand in the container's network as well (a bridge's gateway), but is no peer there.
    may_be_given(facts, kind, ip) && !is_own(ip)
}

/// Whether grants can be about a name that this allow rule names.
fn concerns(facts: &HostFacts, rule: &Rule) -> bool {
    let peers = match &rule.target {
        Target::Name(name) => is_peer_name(facts, name),
        Target::Under(_) => !facts.resolvers.is_empty(),
        _ => false,
    };
    is_by_name(rule) && (peers || rule.direct || rule.proto == Proto::Udp)
}

fn is_by_name(rule: &Rule) -> bool {
    matches!(rule.target, Target::Name(_) | Target::Under(_))
}
