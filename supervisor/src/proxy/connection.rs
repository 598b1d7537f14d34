//! One connection of the container, from its verdict to its last byte.

use super::Proxy;
use super::dial::dial;
use super::gate::{Gate, Refusal, is_web};
use super::http;
use super::relay::{Pause, Socket, finish, write_all};
use crate::audit::{Facts as _, event};
use crate::flows::{Host, Target};
use std::cell::Cell;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use terok_policy::Verdict;
use terok_policy::audit::{Event, Kind};
use terok_policy::floor::{Floor, floor};
use terok_policy::judge::Reason;
use terok_policy::rule;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

/// For a hello or a request head to be complete, and for the first byte on a web port.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How a connection ended other than in order.
enum Fault {
    /// Refused by us; the event says why.
    Refused(Box<Event>),
    /// One of the sockets failed; the other is reset too.
    Io,
}

impl From<io::Error> for Fault {
    fn from(_: io::Error) -> Self {
        Fault::Io
    }
}

/// What is known of a connection at its end.
#[derive(Default)]
struct Tally {
    up: Cell<u64>,
    down: Cell<u64>,
    /// The address dialled, once connected.
    address: Cell<Option<IpAddr>>,
    /// An `allow` line was written, so an end is due.
    allowed: Cell<bool>,
}

/// Serves `client`, which was on its way to `target`.
pub(super) async fn serve(proxy: &Proxy, client: TcpStream, target: Target) {
    let client = Socket::new(client);
    let verdict = proxy.context.judge(&target.query());
    if !verdict.allows() {
        proxy.context.audit.refusal(refusal(&target).verdict(&verdict));
        return;
    }
    let flow = proxy.context.flows.insert(target);
    let (tally, started) = (Tally::default(), Instant::now());
    let end = tokio::select! {
        biased;
        () = flow.cut() => None,
        end = carry(proxy, &client, flow.target(), &verdict, &tally) => Some(end),
    };
    let action = match &end {
        None => "cut",
        Some(_) => "close",
    };
    let reset = matches!(end, Some(Err(Fault::Io)));
    if let Some(Err(Fault::Refused(event))) = end {
        proxy.context.audit.refusal(*event);
    }
    if tally.allowed.get() {
        let mut event = event(Kind::Connect, action, flow.target().to_string())
            .with("bytes_up", tally.up.get())
            .with("bytes_down", tally.down.get())
            .with("ms", u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX));
        if let Some(address) = tally.address.get() {
            event = event.with("address", address.to_string());
        }
        if reset {
            event = event.with("reset", true);
        }
        // The bytes have flowed: a full disk refuses the next connection, not this one's past.
        let _ = proxy.context.audit.record(event);
    }
}

async fn carry(
    proxy: &Proxy,
    client: &Socket,
    target: &Target,
    verdict: &Verdict,
    tally: &Tally,
) -> Result<(), Fault> {
    let mut gate = match &target.host {
        Host::Name(name) => Some(Gate::new(name.clone(), target.port)),
        Host::Literal(_) | Host::Loopback => None,
    };
    let mut first = Vec::new();
    let mut rest = Vec::new();
    if let Some(gate) = gate.as_mut().filter(|_| is_web(target.port))
        && !opening(proxy, client, target, gate, &mut first, &mut rest).await?
    {
        client.end();
        return Ok(());
    }

    let protocol = gate.as_ref().and_then(Gate::protocol).unwrap_or("tcp");
    let allow = event(Kind::Connect, "allow", target.to_string()).verdict(verdict).with("proto", protocol);
    if proxy.context.audit.record(allow).is_err() {
        return refused(refusal(target).reason(Reason::AuditUnwritable));
    }
    tally.allowed.set(true);

    let addresses = addresses(proxy, target, verdict).await?;
    let upstream = match dial(&addresses).await {
        Ok(stream) => Socket::new(stream),
        Err(error) => {
            let event = refusal(target).reason(Reason::Unreachable).with("error", error.to_string());
            return refused(match addresses.first() {
                Some(address) => event.with("address", address.ip().to_string()),
                None => event,
            });
        }
    };
    tally.address.set(upstream.peer_addr().ok().map(|a| a.ip()));

    let (pause, answer) = (Pause::default(), Answers::default());
    let up = async {
        if let Some(gate) = &mut gate {
            let upgrade = Upgrade { pause: &pause, answers: &answer };
            if !judged(proxy, client, &upstream, target, gate, first, rest, upgrade, tally).await? {
                return Ok(());
            }
        }
        proxy.relay.pump(client, &upstream, &tally.up, &Pause::default()).await?;
        Ok::<_, Fault>(())
    };
    let down = async {
        while !proxy.relay.pump(&upstream, client, &tally.down, &pause).await? {
            let said = upgrade_answer(proxy, &upstream, client, tally).await?;
            pause.clear();
            answer.give(said);
        }
        Ok::<_, Fault>(())
    };
    tokio::try_join!(up, down)?;
    client.end();
    upstream.end();
    Ok(())
}

/// Reads a web client's first bytes until some of them may be forwarded. `false`: it left without a word.
async fn opening(
    proxy: &Proxy,
    client: &Socket,
    target: &Target,
    gate: &mut Gate,
    out: &mut Vec<u8>,
    rest: &mut Vec<u8>,
) -> Result<bool, Fault> {
    let deadline = Instant::now() + HANDSHAKE;
    while out.is_empty() {
        let mut bytes = Vec::new();
        match timeout_at(deadline, read(proxy, client, &mut bytes)).await {
            Ok(Ok(0)) if gate.is_holding() => return Err(Fault::Io),
            Ok(Ok(0)) => return Ok(false),
            Ok(length) => length?,
            Err(_) => return refused(refusal(target).reason(Reason::HandshakeTimeout)),
        };
        let taken = gate.feed(&bytes, out).map_err(|r| Fault::Refused(Box::new(described(target, r))))?;
        *rest = bytes.split_off(taken);
    }
    Ok(true)
}

/// The way a request to change the protocol reaches the other direction, and its answer comes back.
#[derive(Clone, Copy)]
struct Upgrade<'a> {
    pause: &'a Pause,
    answers: &'a Answers,
}

#[derive(Default)]
struct Answers {
    answer: Cell<Option<http::Answer>>,
    notify: tokio::sync::Notify,
}

impl Answers {
    fn give(&self, answer: http::Answer) {
        self.answer.set(Some(answer));
        self.notify.notify_one();
    }
    async fn next(&self) -> http::Answer {
        loop {
            if let Some(answer) = self.answer.take() {
                return answer;
            }
            self.notify.notified().await;
        }
    }
}

/// Forwards `out` and then the client's bytes as the gate lets them, until it stands open (`true`) or the client has
/// ended (`false`). `rest`: read, and not taken by the gate yet.
#[expect(clippy::too_many_arguments, reason = "the two sockets, what they carry and what was read so far")]
async fn judged(
    proxy: &Proxy,
    client: &Socket,
    upstream: &Socket,
    target: &Target,
    gate: &mut Gate,
    mut out: Vec<u8>,
    mut rest: Vec<u8>,
    upgrade: Upgrade<'_>,
    tally: &Tally,
) -> Result<bool, Fault> {
    let mut deadline = None;
    loop {
        if gate.upgrading() {
            // Before the request leaves, so that no byte of its answer passes unread.
            upgrade.pause.ask();
        }
        write_all(upstream, &out, &tally.up).await?;
        out.clear();
        if gate.upgrading() {
            gate.answered(upgrade.answers.next().await);
        }
        if gate.is_open() {
            write_all(upstream, &rest, &tally.up).await?;
            return Ok(true);
        }
        if rest.is_empty() {
            deadline = gate.is_holding().then(|| deadline.unwrap_or_else(|| Instant::now() + HANDSHAKE));
            let reading = read(proxy, client, &mut rest);
            let length = match deadline {
                None => reading.await?,
                Some(deadline) => match timeout_at(deadline, reading).await {
                    Ok(length) => length?,
                    Err(_) => return refused(refusal(target).reason(Reason::HandshakeTimeout)),
                },
            };
            if length == 0 {
                finish(upstream)?;
                return Ok(false);
            }
        }
        let taken = gate.feed(&rest, &mut out).map_err(|r| Fault::Refused(Box::new(described(target, r))))?;
        rest.drain(..taken);
    }
}

/// Passes the server's answer to a request to change the protocol on, and tells what it was.
async fn upgrade_answer(
    proxy: &Proxy,
    upstream: &Socket,
    client: &Socket,
    tally: &Tally,
) -> Result<http::Answer, Fault> {
    let mut seen = Vec::new();
    loop {
        let before = seen.len();
        if read(proxy, upstream, &mut seen).await? == 0 {
            return Ok(http::Answer::Stayed);
        }
        write_all(client, seen.get(before..).unwrap_or_default(), &tally.down).await?;
        if let Some(answer) = http::upgrade_answer(&seen) {
            return Ok(answer);
        }
    }
}

async fn read(proxy: &Proxy, from: &Socket, bytes: &mut Vec<u8>) -> io::Result<usize> {
    loop {
        from.readable().await?;
        match proxy.relay.read(from, bytes) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            length => return length,
        }
    }
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
    let mut below = None;
    let mut above = Vec::new();
    for ip in found {
        match proxy.floor(ip) {
            Some(floor) => below = below.or(Some((ip, floor))),
            None => above.push(SocketAddr::new(ip.to_canonical(), target.port)),
        }
    }
    match below {
        Some((ip, floor)) if above.is_empty() => {
            let event = refusal(target).reason(Reason::Floor);
            refused(event.with("address", ip.to_string()).with("floor", floor.to_string()))
        }
        _ => Ok(above),
    }
}

impl Proxy {
    /// Why `ip` is below the floor, the host's own addresses included. What the kernel does not tell is refused.
    fn floor(&self, ip: IpAddr) -> Option<Floor> {
        floor(ip).or_else(|| self.routes.is_local(ip).unwrap_or(true).then_some(Floor::HostOwn))
    }
}

fn is_literal_rule(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Allow { rule } if matches!(rule.rule.target, rule::Target::Net(_)))
}

fn refusal(target: &Target) -> Event {
    event(Kind::Connect, "refuse", target.to_string()).with("proto", "tcp")
}

fn refused<T>(event: Event) -> Result<T, Fault> {
    Err(Fault::Refused(Box::new(event)))
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
