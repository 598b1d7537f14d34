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
use terok_policy::audit;
use terok_policy::floor::{Floor, floor};
use terok_policy::judge::Reason;
use terok_policy::plan::{Card, Network};
use terok_policy::policy::{Source, Sourced};
use terok_policy::rule::{Proto, Rule, Target};
use terok_policy::{Name, Query, Verdict};
use tokio::sync::OnceCell;

/// Names and families looked up at a time.
const AT_ONCE: usize = 64;

/// The zone in which Podman's DNS servers know containers; they know them without it as well.
const PEERS: &str = ".dns.podman";

/// How a name's real addresses are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// By the host's resolver.
    Outside,
    /// By the DNS servers of the container's own networks.
    Peer,
}

/// What became of a question.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Outcome {
    /// These addresses, which packets reach for longer than the number of seconds.
    Addresses(Vec<IpAddr>, u32),
    /// No other container is called so: it is a name like any other.
    Ordinary,
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

    /// How the real addresses of `name` are found; `None` for a name with a virtual address.
    pub(super) fn way(&self, name: &Name) -> Option<Kind> {
        let facts = &self.context.config.facts;
        let a_peers = !name.as_str().contains('.') || name.as_str().ends_with(PEERS);
        if facts.network == Network::Sealed {
            None
        } else if a_peers && !facts.resolvers.is_empty() && self.rules(|rule| leads_to(rule, name)) {
            Some(Kind::Peer)
        } else if self.needs_real(name) {
            Some(Kind::Outside)
        } else {
            None
        }
    }

    /// Whether a rule names `name` itself.
    pub(super) fn is_spelt_out(&self, name: &Name) -> bool {
        self.rules(|rule| matches!(&rule.target, Target::Name(named) if named == name))
    }

    /// The real addresses of `name` in one family, let through before they are returned.
    pub(super) async fn find(&self, name: &Name, family: Family, kind: Kind) -> Outcome {
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

    async fn look_up(&self, name: &Name, family: Family, kind: Kind) -> Outcome {
        if kind == Kind::Peer {
            match self.peers.addresses(name).await {
                Ok(Some(addresses)) => return self.offer(name, family, kind, addresses, PEER_TTL).await,
                Ok(None) if !self.needs_real(name) => return Outcome::Ordinary,
                Ok(None) => {}
                Err(error) => return Outcome::Failed(Reason::Unreachable, error.to_string()),
            }
        }
        if !self.is_routed(family) {
            return Outcome::Addresses(Vec::new(), 0);
        }
        match self.resolver.records(name, family).await {
            Ok(found) => {
                let ttl = u32::try_from(found.ttl.as_secs()).unwrap_or(u32::MAX);
                self.offer(name, family, Kind::Outside, found.addresses, ttl).await
            }
            Err(error) => Outcome::Failed(Reason::Unreachable, error.to_string()),
        }
    }

    /// Has what may be answered of `addresses` let through.
    async fn offer(
        &self,
        name: &Name,
        family: Family,
        kind: Kind,
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
        match self.context.parent.grant(name, ttl, &open).await {
            Ok(granted) => {
                open.retain(|ip| granted.contains(ip));
                match open.is_empty() {
                    // The policy changed meanwhile, or the parent's bounds are reached.
                    true => self.nothing_granted(name),
                    false => Outcome::Addresses(open, ttl),
                }
            }
            Err(error) => Outcome::Failed(Reason::Unreachable, error.to_string()),
        }
    }
}

/// For how long other containers' addresses may be kept: they are given anew at each start.
const PEER_TTL: u32 = 5;

impl Real {
    /// Why `ip` is not answered for `name`.
    fn obstacle(&self, name: &Name, ip: IpAddr, kind: Kind) -> Option<Outcome> {
        let facts = |more: Vec<(&'static str, String)>| [vec![("address", ip.to_string())], more].concat();
        let below = |floor: String| {
            let verdict = Verdict::Refuse { reason: Reason::Floor, rule: None };
            Outcome::Refused(verdict, facts(vec![("floor", floor)]))
        };
        match kind {
            Kind::Peer if !self.is_peer(ip) => {
                return Some(below("not in a network of the container's own".to_owned()));
            }
            Kind::Peer => {}
            // No packet to a v4-mapped address ever leaves.
            Kind::Outside if ip != ip.to_canonical() => return Some(below("v4-mapped address".to_owned())),
            Kind::Outside => {
                if let Some(floor) = self.floor(ip) {
                    return Some(below(floor.to_string()));
                }
            }
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

    /// Whether `ip` is a neighbour in a network of the container's own, and not the host's end of it.
    fn is_peer(&self, ip: IpAddr) -> bool {
        let cards = self.context.cards();
        cards.iter().any(|card| card.nets.iter().any(|net| net.contains(ip)))
            && !cards.iter().any(|card| card.gateways.contains(&ip))
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
    fn denied(&self, name: &Name, ip: IpAddr, kind: Kind) -> Option<Sourced> {
        let policy = &self.context.config.policy;
        let live = self.context.live();
        let live_deny = live.deny.iter().map(|rule| Sourced { rule: rule.clone(), source: Source::Live });
        let denies: Vec<Sourced> = policy
            .deny
            .iter()
            .cloned()
            .chain(live_deny)
            .filter(|deny| match &deny.rule.target {
                Target::Any => true,
                Target::Net(net) => net.contains(ip),
                Target::Name(denied) => denied == name,
                Target::Under(denied) => name.is_under(denied),
                Target::Host => false,
            })
            .collect();
        let closed = |rule: &Rule| {
            let here = denies.iter().filter(|deny| deny.rule.proto == rule.proto);
            here.fold(rule.ports.clone(), |left, deny| left.without(&deny.rule.ports)).is_empty()
        };
        let allows = policy.allow.iter().map(|sourced| &sourced.rule).chain(&live.allow);
        let mut opening = allows.filter(|rule| leads_to(rule, name) && (kind == Kind::Peer || is_real(rule)));
        match opening.all(closed) {
            true => denies.into_iter().find(|deny| matches!(deny.rule.target, Target::Net(_) | Target::Any)),
            false => None,
        }
    }

    fn nothing_granted(&self, name: &Name) -> Outcome {
        match self.context.judge(&Query::Resolve(name)) {
            refused @ Verdict::Refuse { .. } => Outcome::Refused(refused, Vec::new()),
            _ => Outcome::Failed(Reason::NameBudget, "no room for more addresses".to_owned()),
        }
    }

    /// Whether a rule for `name` needs its real addresses.
    fn needs_real(&self, name: &Name) -> bool {
        self.rules(|rule| is_real(rule) && leads_to(rule, name))
    }

    fn rules(&self, wanted: impl Fn(&Rule) -> bool) -> bool {
        let written = &self.context.config.policy.allow;
        written.iter().any(|sourced| wanted(&sourced.rule)) || self.context.live().allow.iter().any(wanted)
    }
}

/// Whether packets to `rule`'s target leave by a card themselves.
fn is_real(rule: &Rule) -> bool {
    rule.direct || rule.proto == Proto::Udp
}

fn leads_to(rule: &Rule, name: &Name) -> bool {
    match &rule.target {
        Target::Name(named) => named == name,
        Target::Under(named) => name.is_under(named),
        _ => false,
    }
}
