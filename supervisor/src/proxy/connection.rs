//! One connection of the container, from its verdict to its last byte.

use super::dial::dial;
use super::exchange::{self, Judged, exchange, opening};
use super::gate::{Gate, Refusal, is_web};
use super::relay::{Moved, Socket};
use super::upstream::Upstream;
use super::verdict::judge;
use super::{Proxy, brokered};
use crate::audit::{Facts as _, event};
use crate::flows::{FlowGuard, Grounds, Host, Target, is_denied};
use std::cell::Cell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::time::Instant;
use terok_policy::audit::{Event, Kind};
use terok_policy::floor::{Floor, floor};
use terok_policy::judge::Reason;
use terok_policy::rule;
use terok_policy::{Name, Verdict};
use tokio::net::TcpStream;

/// How a connection ended other than in order.
pub(super) enum Fault {
    /// Refused by us; the event says why.
    Refused(Box<Event>),
    /// One of the sockets failed; the other is reset too.
    Io(io::Error),
}

/// What is known of a connection at its end.
#[derive(Default)]
pub(super) struct Tally {
    moved: Moved,
    /// The address dialled, once connected.
    address: Cell<Option<IpAddr>>,
    /// An `allow` line was written, so an end is due.
    allowed: Cell<bool>,
}

/// Serves `client`, which was on its way to `target`.
pub(super) async fn serve(proxy: &Rc<Proxy>, client: TcpStream, target: Target) {
    let client = Socket::new(client);
    let verdict = match judge(proxy, &client, &target).await {
        Ok(verdict) => verdict,
        Err(event) => return proxy.context.audit.refusal(*event),
    };
    if let Some(meets) = proxy.broker.as_ref().and_then(|broker| broker.meets(&target)) {
        return brokered::serve(proxy, client, target, &verdict, meets).await;
    }
    let flow = proxy.context.flows.insert(target, Grounds::of(&verdict));
    let (tally, started) = (Tally::default(), Instant::now());
    let end = tokio::select! {
        biased;
        () = flow.cut() => None,
        end = carry(proxy, &client, &flow, &verdict, &tally) => Some(end),
    };
    let action = match &end {
        None => "cut",
        Some(_) => "close",
    };
    let broken = match end {
        Some(Err(Fault::Refused(event))) => {
            proxy.context.audit.refusal(*event);
            None
        }
        Some(Err(Fault::Io(error))) => Some(error),
        Some(Ok(())) | None => None,
    };
    if tally.allowed.get() {
        let mut event = event(Kind::Connect, action, flow.target().to_string())
            .with("bytes_up", tally.moved.up.get())
            .with("bytes_down", tally.moved.down.get())
            .with("ms", u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX));
        if let Some(address) = tally.address.get() {
            event = event.with("address", address.to_string());
        }
        if let Some(error) = broken {
            event = event.with("error", error.to_string());
        }
        // The bytes have flowed: a full disk refuses the next connection, not this one's past.
        let _ = proxy.context.audit.record(event);
    }
}

async fn carry(
    proxy: &Proxy,
    client: &Socket,
    flow: &FlowGuard,
    verdict: &Verdict,
    tally: &Tally,
) -> Result<(), Fault> {
    let target = flow.target();
    let mut gate = match &target.host {
        Host::Name(name) if proxy.broker.as_ref().is_some_and(|broker| broker.is_brokered(name)) => {
            Some(Gate::for_ssh_alone(name.clone(), target.port))
        }
        Host::Name(name) => Some(Gate::new(name.clone(), target.port)),
        Host::Literal(_) | Host::Loopback => None,
    };
    let judged = match &mut gate {
        Some(gate) if is_web(target.port) => match opening(&proxy.relay, client, gate).await {
            Ok(Some(judged)) => Some(judged),
            Ok(None) => {
                client.end();
                return Ok(());
            }
            Err(e) => return Err(fault(target, e)),
        },
        Some(gate) => Some(Judged { gate, out: Vec::new(), rest: Vec::new() }),
        None => None,
    };

    let protocol = judged.as_ref().and_then(|judged| judged.gate.protocol()).unwrap_or("tcp");
    let via = proxy.upstream.as_ref().filter(|upstream| upstream.carries(&target.host));
    let mut allow =
        event(Kind::Connect, "allow", target.to_string()).verdict(verdict).with("proto", protocol);
    if let Some(via) = via {
        allow = allow.with("upstream", via.to_string());
    }
    if proxy.context.audit.record(allow).is_err() {
        return refused(refusal(target).reason(Reason::AuditUnwritable));
    }
    tally.allowed.set(true);

    let upstream = Socket::new(match via {
        Some(via) => through(proxy, via, target, verdict, tally).await?,
        None => directly(proxy, flow, verdict, tally).await?,
    });
    exchange(&proxy.relay, client, &upstream, judged, &tally.moved).await.map_err(|e| fault(target, e))
}

/// A connection to `target` made by the proxy of the host's own network, which looks names up itself: where they lead to
/// is not known here.
pub(super) async fn through(
    proxy: &Proxy,
    via: &Upstream,
    target: &Target,
    verdict: &Verdict,
    tally: &Tally,
) -> Result<TcpStream, Fault> {
    match &target.host {
        Host::Name(name) if is_own_name(name) || proxy.is_this_host(name) => {
            return refused(refusal(target).reason(Reason::Floor).with("floor", Floor::Loopback.to_string()));
        }
        Host::Name(_) | Host::Loopback => {}
        Host::Literal(ip) => {
            addresses(proxy, target, verdict).await?;
            tally.address.set(Some(*ip));
        }
    }
    match via.connect(&proxy.resolver, target).await {
        Ok(stream) => Ok(stream),
        Err(error) => refused(
            refusal(target)
                .reason(Reason::Unreachable)
                .with("upstream", via.to_string())
                .with("error", error.to_string()),
        ),
    }
}

/// A name of whoever looks it up (RFC 6761 §6.3).
fn is_own_name(name: &Name) -> bool {
    name.as_str() == "localhost" || name.as_str().ends_with(".localhost")
}

/// A connection to one of the addresses that `flow` is meant for.
pub(super) async fn directly(
    proxy: &Proxy,
    flow: &FlowGuard,
    verdict: &Verdict,
    tally: &Tally,
) -> Result<TcpStream, Fault> {
    let target = flow.target();
    let addresses = addresses(proxy, target, verdict).await?;
    let upstream = match dial(&addresses).await {
        Ok(stream) => stream,
        Err(error) => {
            let event = refusal(target).reason(Reason::Unreachable).with("error", error.to_string());
            return refused(match addresses.first() {
                Some(address) => event.with("address", address.ip().to_string()),
                None => event,
            });
        }
    };
    if let Ok(address) = upstream.peer_addr() {
        tally.address.set(Some(address.ip()));
        if matches!(target.host, Host::Name(_)) {
            // Denied while it was dialled: from here on a change finds it among the flows.
            if proxy.denied(address) {
                return refused(
                    refusal(target).reason(Reason::Denied).with("address", address.ip().to_string()),
                );
            }
            flow.dialled(address);
        }
    }
    Ok(upstream)
}

/// Where to dial. What a name leads to must be above the floor; what a literal rule names, need not (E3).
async fn addresses(proxy: &Proxy, target: &Target, verdict: &Verdict) -> Result<Vec<SocketAddr>, Fault> {
    let found = match &target.host {
        Host::Loopback => {
            let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            return Ok(loopback.map(|ip| SocketAddr::new(ip, target.port)).to_vec());
        }
        Host::Literal(ip) if is_literal_rule(verdict) => return Ok(vec![SocketAddr::new(*ip, target.port)]),
        Host::Literal(ip) => vec![*ip],
        Host::Name(name) => match proxy.resolver.addresses(name).await {
            Ok(found) => found,
            Err(error) => {
                return refused(refusal(target).reason(Reason::Unreachable).with("error", error.to_string()));
            }
        },
    };
    let mut refusal = None;
    let mut open = Vec::new();
    for ip in found {
        let address = SocketAddr::new(ip.to_canonical(), target.port);
        let refuse = |reason| self::refusal(target).reason(reason).with("address", ip.to_string());
        if let Some(floor) = proxy.floor(ip) {
            refusal = refusal.or_else(|| Some(refuse(Reason::Floor).with("floor", floor.to_string())));
        } else if proxy.denied(address) {
            refusal = refusal.or_else(|| Some(refuse(Reason::Denied)));
        } else {
            open.push(address);
        }
    }
    match refusal {
        Some(event) if open.is_empty() => refused(event),
        _ => Ok(open),
    }
}

impl Proxy {
    /// Whether a deny rule names this address.
    fn denied(&self, address: SocketAddr) -> bool {
        is_denied(address, |query| self.context.judge(query))
    }

    /// Whether the hosts file says that `name` is this very host. A proxy that runs here, as many do, reads the same file.
    fn is_this_host(&self, name: &Name) -> bool {
        let own = |ip: &IpAddr| {
            matches!(floor(*ip), Some(Floor::Loopback | Floor::Unspecified))
                || self.routes.is_local(*ip).unwrap_or(true)
        };
        self.resolver.in_hosts(name).iter().any(own)
    }

    /// Why `ip` is below the floor, the host's own addresses included. What the kernel does not tell is refused.
    pub(super) fn floor(&self, ip: IpAddr) -> Option<Floor> {
        floor(ip).or_else(|| self.routes.is_local(ip).unwrap_or(true).then_some(Floor::HostOwn))
    }
}

fn is_literal_rule(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Allow { rule } if matches!(rule.rule.target, rule::Target::Net(_)))
}

pub(super) fn refusal(target: &Target) -> Event {
    event(Kind::Connect, "refuse", target.to_string()).with("proto", "tcp")
}

fn refused<T>(event: Event) -> Result<T, Fault> {
    Err(Fault::Refused(Box::new(event)))
}

fn fault(target: &Target, fault: exchange::Fault) -> Fault {
    match fault {
        exchange::Fault::Io(error) => Fault::Io(error),
        exchange::Fault::Slow => Fault::Refused(Box::new(refusal(target).reason(Reason::HandshakeTimeout))),
        exchange::Fault::Refused(refusal) => Fault::Refused(Box::new(described(target, refusal))),
    }
}

fn described(target: &Target, refusal: Refusal) -> Event {
    match refusal {
        Refusal::Bytes(bytes) => {
            let event = self::refusal(target).reason(bytes.reason);
            match bytes.sni {
                Some(sni) => event.with("sni", sni),
                None => event,
            }
        }
        Refusal::Request(request) => {
            let mut event = event(Kind::Http, "refuse", target.to_string()).reason(request.reason);
            event = event.with("what", request.what);
            for (key, value) in [("method", request.method), ("path", request.path), ("host", request.host)] {
                if !value.is_empty() {
                    event = event.with(key, value);
                }
            }
            event
        }
    }
}
