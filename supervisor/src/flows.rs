//! The connections that are open now, each with what it was allowed as, so that one which lost its rule can be cut (E1).

use crate::context::is_open_question;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use terok_policy::judge::Reason;
use terok_policy::rule::Proto;
use terok_policy::{Name, Query, Verdict};
use tokio::sync::Notify;

/// What a connection was made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// Host.
    pub(crate) host: Host,
    /// Destination port.
    pub(crate) port: u16,
}

/// The host of a [`Target`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Host {
    /// The name behind a virtual address.
    Name(Name),
    /// An address that no answer of ours gave out.
    Literal(IpAddr),
    /// The host's loopback.
    Loopback,
}

/// The open connections.
#[derive(Default)]
pub(crate) struct Flows {
    inner: Rc<RefCell<Inner>>,
}

#[derive(Default)]
struct Inner {
    next: u64,
    open: HashMap<u64, Rc<Flow>>,
}

struct Flow {
    target: Target,
    grounds: Grounds,
    /// Where a name led to, once connected: a denied address is denied under every name.
    address: Cell<Option<SocketAddr>>,
    cut: Cell<bool>,
    notify: Notify,
}

/// Why a connection is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grounds {
    /// What the rules and the shield's state say, now and as long as it lives.
    Rules,
    /// An operator's verdict on it: it needs no rule, but none may be against it.
    Operator,
    /// It came in by a published port: it stands while anything may pass.
    Published,
    /// A request with the credential of this grant, position in [`terok_policy::Policy::vault`]: whoever granted it allowed where it goes, so it needs
    /// no rule, but none may be against it.
    Brokered(usize),
}

/// A connection's place among the open ones; dropped with the connection.
pub(crate) struct FlowGuard {
    id: u64,
    flow: Rc<Flow>,
    inner: Rc<RefCell<Inner>>,
}

impl Flows {
    /// Enters a connection. To be called in the same step as its verdict, so that no change can come between.
    pub(crate) fn insert(&self, target: Target, grounds: Grounds) -> FlowGuard {
        let (address, cut) = (Cell::new(None), Cell::new(false));
        let flow = Rc::new(Flow { target, grounds, address, cut, notify: Notify::new() });
        let mut inner = self.inner.borrow_mut();
        let id = inner.next;
        inner.next += 1;
        inner.open.insert(id, flow.clone());
        FlowGuard { id, flow, inner: self.inner.clone() }
    }

    /// Cuts every connection that `judge` allows no more; returns how many.
    pub(crate) fn recheck(&self, judge: impl Fn(&Query<'_>) -> Verdict) -> usize {
        let inner = self.inner.borrow();
        let lost = inner.open.values().filter(|flow| {
            let denied = || flow.address.get().is_some_and(|address| is_denied(address, &judge));
            !flow.cut.get() && (!flow.grounds.hold(&judge(&flow.target.query())) || denied())
        });
        lost.map(|flow| flow.end()).count()
    }

    /// Cuts the requests with credentials of which `is_gone` says so, by position of their grant; returns how many.
    pub(crate) fn cut_brokered(&self, is_gone: impl Fn(usize) -> bool) -> usize {
        let inner = self.inner.borrow();
        let lost = inner.open.values().filter(|flow| {
            !flow.cut.get() && matches!(flow.grounds, Grounds::Brokered(grant) if is_gone(grant))
        });
        lost.map(|flow| flow.end()).count()
    }

    /// How many connections are open.
    pub(crate) fn open(&self) -> usize {
        self.inner.borrow().open.len()
    }
}

impl Flow {
    fn end(&self) {
        self.cut.set(true);
        self.notify.notify_waiters();
    }
}

impl Grounds {
    /// Those of a connection that `verdict` was given for.
    pub(crate) fn of(verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Operator => Grounds::Operator,
            _ => Grounds::Rules,
        }
    }

    /// Whether a connection with these stands where the rules now say `verdict` of its target.
    pub(crate) fn hold(self, verdict: &Verdict) -> bool {
        match self {
            Grounds::Rules => verdict.allows(),
            Grounds::Operator => verdict.allows() || is_open_question(verdict),
            Grounds::Published => !matches!(verdict, Verdict::Refuse { reason: Reason::Blocked, .. }),
            Grounds::Brokered(_) => !matches!(
                verdict,
                Verdict::Refuse { reason: Reason::Denied | Reason::Blocked | Reason::Tampered, .. }
            ),
        }
    }
}

impl FlowGuard {
    /// What the connection was made for.
    pub(crate) fn target(&self) -> &Target {
        &self.flow.target
    }

    /// The name led to `address`. To be called in the same step as the check that it is not denied.
    pub(crate) fn dialled(&self, address: SocketAddr) {
        self.flow.address.set(Some(address));
    }

    /// As [`FlowGuard::dialled`], where it may not be known: whoever looks names up is elsewhere.
    pub(crate) fn lead_to(&self, address: Option<SocketAddr>) {
        self.flow.address.set(address);
    }

    /// Where the name led to, once connected.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.flow.address.get()
    }

    /// Returns once the connection must end.
    pub(crate) async fn cut(&self) {
        let notified = self.flow.notify.notified();
        if !self.flow.cut.get() {
            notified.await;
        }
    }
}

impl Drop for FlowGuard {
    fn drop(&mut self) {
        self.inner.borrow_mut().open.remove(&self.id);
    }
}

/// Whether a deny rule names this address: then no name leads to it either (E1).
pub(crate) fn is_denied(address: SocketAddr, judge: impl Fn(&Query<'_>) -> Verdict) -> bool {
    let query = Query::Literal { ip: address.ip().to_canonical(), port: address.port(), proto: Proto::Tcp };
    matches!(judge(&query), Verdict::Refuse { reason: Reason::Denied, .. })
}

impl Target {
    /// The question the policy answers.
    pub(crate) fn query(&self) -> Query<'_> {
        let (port, proto) = (self.port, Proto::Tcp);
        match &self.host {
            Host::Name(name) => Query::Name { name, port, proto },
            Host::Literal(ip) => Query::Literal { ip: *ip, port, proto },
            Host::Loopback => Query::Host { port, proto },
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.host {
            Host::Name(name) => write!(f, "{name}:{}", self.port),
            Host::Literal(ip) => SocketAddr::new(*ip, self.port).fmt(f),
            Host::Loopback => write!(f, "host:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn no(reason: Reason) -> Verdict {
        Verdict::Refuse { reason, rule: None }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_connection_by_name_is_cut_when_its_address_is_denied() {
        let flows = Flows::default();
        let name = || Target { host: Host::Name("api.example.com".parse().unwrap()), port: 443 };
        let (denied, other) = (flows.insert(name(), Grounds::Rules), flows.insert(name(), Grounds::Rules));
        denied.dialled("192.0.2.1:443".parse().unwrap());
        other.dialled("192.0.2.2:443".parse().unwrap());
        let judge = |query: &Query<'_>| match query {
            Query::Literal { ip, .. } if *ip == IpAddr::from([192, 0, 2, 1]) => no(Reason::Denied),
            Query::Literal { .. } => no(Reason::Unlisted),
            _ => Verdict::Down,
        };
        assert_eq!(flows.recheck(judge), 1);
        denied.cut().await;
        assert!(tokio::time::timeout(Duration::from_millis(20), other.cut()).await.is_err());
    }

    fn literal(last: u8) -> Target {
        Target { host: Host::Literal(IpAddr::from([192, 0, 2, last])), port: 443 }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn only_a_connection_that_lost_its_rule_is_cut() {
        let flows = Flows::default();
        let (lost, kept) =
            (flows.insert(literal(1), Grounds::Rules), flows.insert(literal(2), Grounds::Rules));
        let cut = flows
            .recheck(|query| if *query == literal(2).query() { Verdict::Down } else { no(Reason::Unlisted) });
        assert_eq!(cut, 1);
        lost.cut().await;
        assert!(tokio::time::timeout(Duration::from_millis(20), kept.cut()).await.is_err());
        assert_eq!(flows.recheck(|_| Verdict::Down), 0, "a flow is cut once");
    }

    #[test]
    fn an_operators_connection_needs_no_rule_but_ends_with_one_against_it() {
        let flows = Flows::default();
        let _rules = flows.insert(literal(1), Grounds::Rules);
        let _operators = flows.insert(literal(1), Grounds::Operator);
        let _published = flows.insert(literal(1), Grounds::Published);
        assert_eq!(flows.recheck(|_| no(Reason::Unlisted)), 1);
        assert_eq!(flows.recheck(|_| no(Reason::Denied)), 1);
        assert_eq!(flows.recheck(|_| no(Reason::Floor)), 0);
        assert_eq!(flows.recheck(|_| no(Reason::Blocked)), 1);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_waiting_connection_learns_of_its_cut() {
        let flows = Flows::default();
        let flow = flows.insert(literal(1), Grounds::Rules);
        let ((), cut) = tokio::join!(flow.cut(), async { flows.recheck(|_| no(Reason::Blocked)) });
        assert_eq!(cut, 1);
    }

    #[test]
    fn a_dropped_connection_is_open_no_more() {
        let flows = Flows::default();
        let flow = flows.insert(literal(1), Grounds::Rules);
        assert_eq!((flows.open(), flow.target().to_string().as_str()), (1, "192.0.2.1:443"));
        drop(flow);
        assert_eq!(flows.open(), 0);
    }
}
