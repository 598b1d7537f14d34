//! Names that are answered with real addresses: those with a `direct` or `/udp` rule, which packets reach by a card of
//! the container's own, and other containers'. The kernel lets packets to an address pass before the answer names it, and
//! nothing below the floor, of the host's own or denied is answered (E3, E1).

use super::answer::ADDRESSES;
use crate::audit::{Facts as _, event};
use crate::context::Context;
use crate::resolve::{Family, Peers, Resolver};
use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use terok_kernel::rtnl::Rtnl;
use terok_policy::answer::{Answer, answer, may_be_given, other_form, otherwise};
use terok_policy::audit;
use terok_policy::floor::{Floor, floor};
use terok_policy::judge::Reason;
use terok_policy::plan::{Card, HostFacts};
use terok_policy::policy::{Source, Sourced};
use terok_policy::rule::{Proto, Rule, Target};
use terok_policy::{Name, Query, Verdict};
use tokio::sync::OnceCell;

/// Names and families looked up at a time.
const AT_ONCE: usize = 64;

/// What became of a question.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Outcome {
    /// These addresses, which packets reach for longer than the number of seconds.
    Addresses(Vec<IpAddr>, u32),
    /// No other container is called so: it is a name like any other.
    Ordinary,
    /// No other container is called so, and nobody else can be.
    Nobody,
    /// Every address it has is refused; with further facts.
    Refused(Verdict, Vec<(&'static str, String)>),
    /// It could not be found out, or the addresses not be let through.
    Failed(Reason, String),
}

/// A question on its way, and in the end what became of it.
type Asking = Rc<OnceCell<Outcome>>;

/// Finds real addresses.
pub(super) struct Real {
    context: Rc<Context>,
    resolver: Resolver,
    peers: Rc<Peers>,
    /// Knows the host's own addresses.
    routes: Rtnl,
    /// Questions on their way; who asks the same waits for the first.
    asking: RefCell<HashMap<(Name, Family), Asking>>,
}

impl Real {
    /// To be called in the host's network namespace.
    pub(super) fn new(context: Rc<Context>, resolver: Resolver, peers: Rc<Peers>) -> io::Result<Self> {
        Ok(Real { context, resolver, peers, routes: Rtnl::open()?, asking: RefCell::default() })
    }

    /// How `name` is to be answered.
    pub(super) fn answer_of(&self, name: &Name) -> Answer {
        answer(&self.context.config.policy, &self.context.live(), &self.facts(), name)
    }

    /// The name under which rules know the container that `name` means; `name` itself where none knows the other form.
    pub(super) fn listed_form(&self, name: &Name) -> Name {
        match self.other_listed(name) {
            Some(other) if self.answer_of(name) != Answer::Peer => other,
            _ => name.clone(),
        }
    }

    /// The other name of the container that `name` means, where rules list it.
    fn other_listed(&self, name: &Name) -> Option<Name> {
        let other = other_form(&self.context.config.facts, name)?;
        let listed = self.answer_of(&other) == Answer::Peer;
        (listed && self.context.judge(&Query::Resolve(&other)).allows()).then_some(other)
    }

    /// Whether a rule names `name` itself.
    pub(super) fn is_spelt_out(&self, name: &Name) -> bool {
        let named = |rule: &Rule| matches!(&rule.target, Target::Name(named) if named == name);
        let written = &self.context.config.policy.allow;
        written.iter().any(|sourced| named(&sourced.rule)) || self.context.live().allow.iter().any(named)
    }

    /// The real addresses of `name` in one family, let through before they are returned.
    pub(super) async fn find(&self, name: &Name, family: Family, kind: Answer) -> Outcome {
        let Some(cell) = self.cell(name, family) else {
            return Outcome::Failed(Reason::NameBudget, format!("{AT_ONCE} other names are being looked up"));
        };
        cell.get_or_init(|| self.look_up(name, family, kind)).await.clone()
    }

    /// The place of a question among those on their way; `None` where there are too many.
    fn cell(&self, name: &Name, family: Family) -> Option<Asking> {
        let mut asking = self.asking.borrow_mut();
        asking.retain(|_, cell| Rc::strong_count(cell) > 1);
        let key = (name.clone(), family);
        if asking.len() >= AT_ONCE && !asking.contains_key(&key) {
            return None;
        }
        Some(asking.entry(key).or_default().clone())
    }

    async fn look_up(&self, name: &Name, family: Family, kind: Answer) -> Outcome {
        if kind == Answer::Peer {
            match self.peers.addresses(name).await {
                Ok(Some(addresses)) => return self.offer(name, family, kind, addresses, PEER_TTL).await,
                Ok(None) => {
                    let config = &self.context.config;
                    let kind = otherwise(&config.policy, &self.context.live(), &self.facts(), name);
                    if kind != Answer::Real {
                        // Nobody else has names in Podman's own zone, and a client that finds one asks for no shorter one.
                        return if name.as_str().contains('.') { Outcome::Nobody } else { Outcome::Ordinary };
                    }
                }
                Err(error) => return Outcome::Failed(Reason::Unreachable, error.to_string()),
            }
        }
        if !self.is_routed(family) {
            return Outcome::Addresses(Vec::new(), 0);
        }
        match self.resolver.records(name, family).await {
            Ok(found) => {
                let ttl = u32::try_from(found.ttl.as_secs()).unwrap_or(u32::MAX);
                self.offer(name, family, Answer::Real, found.addresses, ttl).await
            }
            Err(error) => Outcome::Failed(Reason::Unreachable, error.to_string()),
        }
    }

    /// Has what may be answered of `addresses` let through.
    async fn offer(
        &self,
        name: &Name,
        family: Family,
        kind: Answer,
        addresses: Vec<IpAddr>,
        ttl: u32,
    ) -> Outcome {
        let mut refused = None;
        let mut open = Vec::new();
        for ip in addresses.into_iter().filter(|ip| family.has(*ip)) {
            match self.obstacle(name, ip, kind) {
                Some(obstacle) => refused = refused.or(Some(obstacle)),
                None if open.len() < ADDRESSES && !open.contains(&ip) => open.push(ip),
                None => {}
            }
        }
        if open.is_empty() {
            return refused.unwrap_or(Outcome::Addresses(Vec::new(), 0));
        }
        let names = &self.context.names;
        let fresh: Vec<String> =
            open.iter().filter(|ip| !names.is_answered(name, **ip)).map(ToString::to_string).collect();
        if !fresh.is_empty() {
            // Packets that a grant lets through have no other line that could refuse them.
            let line = event(audit::Kind::Dns, "grant", name.as_str()).with("address", fresh.join(" "));
            if let Err(error) = self.context.audit.record(line.with("ttl", ttl)) {
                return Outcome::Failed(Reason::AuditUnwritable, error.to_string());
            }
        }
        open.iter().for_each(|ip| names.answer(name, *ip));
        // What rules say of the same container under its other name holds for these addresses as well.
        if kind == Answer::Peer
            && let Some(other) = self.other_listed(name)
            && let Err(error) = self.context.parent.grant(&other, ttl, &open).await
        {
            return Outcome::Failed(Reason::Unreachable, error.to_string());
        }
        match self.context.parent.grant(name, ttl, &open).await {
            Ok(granted) => {
                open.retain(|ip| granted.contains(ip));
                // An operator's word may have come between the question and now.
                match self.context.judge(&Query::Resolve(name)) {
                    refused @ Verdict::Refuse { .. } => Outcome::Refused(refused, Vec::new()),
                    _ if open.is_empty() => {
                        Outcome::Failed(Reason::NameBudget, "no room for more addresses".to_owned())
                    }
                    _ => Outcome::Addresses(open, ttl),
                }
            }
            Err(error) => Outcome::Failed(Reason::Unreachable, error.to_string()),
        }
    }
}

/// For how long other containers' addresses may be kept: they are given anew at each start.
pub(super) const PEER_TTL: u32 = 5;

impl Real {
    /// Why `ip` is not answered for `name`.
    fn obstacle(&self, name: &Name, ip: IpAddr, kind: Answer) -> Option<Outcome> {
        let facts = |more: Vec<(&'static str, String)>| [vec![("address", ip.to_string())], more].concat();
        let below = |floor: String| {
            let verdict = Verdict::Refuse { reason: Reason::Floor, rule: None };
            Outcome::Refused(verdict, facts(vec![("floor", floor)]))
        };
        let floor = match kind {
            Answer::Peer => None,
            // No packet to a v4-mapped address ever leaves.
            _ if ip != ip.to_canonical() => return Some(below("v4-mapped address".to_owned())),
            _ => self.floor(ip),
        };
        if let Some(floor) = floor {
            return Some(below(floor.to_string()));
        }
        if !may_be_given(&self.facts(), kind, ip) {
            let why = match kind {
                Answer::Peer => "not another container's address".to_owned(),
                _ => Floor::HostOwn.to_string(),
            };
            return Some(below(why));
        }
        let deny = self.denied(name, ip, kind)?;
        Some(Outcome::Refused(
            Verdict::Refuse { reason: Reason::Denied, rule: Some(deny) },
            facts(Vec::new()),
        ))
    }

    /// Why `ip` is below the floor, the host's own addresses included. What the kernel does not tell is refused.
    fn floor(&self, ip: IpAddr) -> Option<Floor> {
        floor(ip).or_else(|| self.routes.is_local(ip).unwrap_or(true).then_some(Floor::HostOwn))
    }

    /// The facts with the cards that there are now.
    fn facts(&self) -> HostFacts {
        HostFacts { cards: self.context.cards().clone(), ..self.context.config.facts.clone() }
    }

    /// Whether packets of this family can leave by a card: an address that only times out is not answered.
    fn is_routed(&self, family: Family) -> bool {
        let link_local = |ip: IpAddr| floor(ip) == Some(Floor::LinkLocal);
        let nets = |card: &Card| {
            card.nets
                .iter()
                .any(|net| family.has(net.addr) && !(family == Family::V6 && link_local(net.addr)))
        };
        self.context.cards().iter().any(nets)
    }

    /// A deny rule that closes `ip` on every port on which rules open it for `name`.
    fn denied(&self, name: &Name, ip: IpAddr, kind: Answer) -> Option<Sourced> {
        let policy = &self.context.config.policy;
        let live = self.context.live();
        let written = policy.deny.iter().map(|sourced| (&sourced.rule, &sourced.source));
        let here = |rule: &Rule| match &rule.target {
            Target::Any => true,
            Target::Net(net) => net.contains(ip),
            target => target.names(name),
        };
        let denies = written.chain(live.deny.iter().map(|rule| (rule, &Source::Live)));
        let denies: Vec<(&Rule, &Source)> = denies.filter(|(rule, _)| here(rule)).collect();
        let closed = |rule: &Rule| {
            let same = denies.iter().filter(|(deny, _)| deny.proto == rule.proto);
            same.fold(rule.ports.clone(), |left, (deny, _)| left.without(&deny.ports)).is_empty()
        };
        let allows = policy.allow.iter().map(|sourced| &sourced.rule).chain(&live.allow);
        let mut opening =
            allows.filter(|rule| rule.target.names(name) && (kind == Answer::Peer || is_real(rule)));
        let by_address = |rule: &Rule| matches!(rule.target, Target::Net(_) | Target::Any);
        let (rule, source) = denies.iter().find(|(rule, _)| by_address(rule))?;
        opening.all(closed).then(|| Sourced { rule: (*rule).clone(), source: (*source).clone() })
    }
}

/// Whether packets to `rule`'s target leave by a card themselves.
fn is_real(rule: &Rule) -> bool {
    rule.direct || rule.proto == Proto::Udp
}
