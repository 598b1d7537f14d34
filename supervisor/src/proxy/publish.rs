//! Published ports (`terok.publish`): connections to a listener on the host, carried to a port of the container's loopback.
//! The way in is a pool of sockets that were made in the container's network namespace: the worker cannot go there itself.

use super::Proxy;
use super::exchange::exchange;
use super::relay::{Moved, Socket};
use crate::audit::{Facts as _, event};
use crate::flows::{Grounds, Host, Target};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream as StdTcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::rc::Rc;
use std::time::Duration;
use terok_kernel::socket;
use terok_policy::Shield;
use terok_policy::audit::{Event, Kind};
use terok_policy::judge::Reason;
use terok_policy::policy::Publish;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

/// For a socket to become free, and for the container to take the connection.
const PATIENCE: Duration = Duration::from_secs(10);
/// For the container to take what was sent before an orderly end; then the rest is forgotten.
const LINGER: Duration = Duration::from_secs(30);
/// How often that is looked for: doubled at each, up to the second.
const LOOK: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(200));
/// Of the sockets that could do both, every one of so many is for IPv6, the others for IPv4.
const FOR_V6: usize = 4;
/// Between two accepts when the process is out of descriptors.
const PAUSE: Duration = Duration::from_millis(50);

/// The sockets inside.
pub(crate) struct Insides {
    free: RefCell<Vec<Inside>>,
    freed: Notify,
    /// How many there are, for IPv4 and for IPv6.
    count: (usize, usize),
    /// Accepted connections without a socket yet.
    pending: Cell<usize>,
}

/// One of them. What it connects to is of one family for ever: the kernel cannot change that back from IPv4
/// (`ipv6_mapped` in net/ipv6/tcp_ipv6.c).
struct Inside {
    socket: OwnedFd,
    family: Family,
    /// Of AF_INET6.
    mapped: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// An accepted connection's claim on a socket; dropped when it has one, or gets none.
struct Claim(Rc<Insides>);

/// A socket that is in use; given back, reset, when dropped.
struct Lease<'a> {
    insides: &'a Insides,
    inside: Option<Inside>,
}

impl Insides {
    /// Takes over sockets, always in the same order: a worker before may have left them connected.
    pub(crate) fn new(sockets: Vec<OwnedFd>) -> io::Result<Self> {
        let mut free = Vec::with_capacity(sockets.len());
        for (index, socket) in sockets.into_iter().enumerate() {
            let stream = StdTcpStream::from(socket);
            stream.set_nonblocking(true)?;
            let mapped = stream.local_addr()?.is_ipv6();
            let family = if mapped && index % FOR_V6 == FOR_V6 - 1 { Family::V6 } else { Family::V4 };
            let socket = OwnedFd::from(stream);
            socket::refresh(&socket).map_err(io::Error::other)?;
            free.push(Inside { socket, family, mapped });
        }
        let v4 = free.iter().filter(|inside| inside.family == Family::V4).count();
        let count = (v4, free.len() - v4);
        Ok(Insides { free: RefCell::new(free), freed: Notify::new(), count, pending: Cell::new(0) })
    }

    /// Descriptors that are taken when all are in use: the sockets, and the connections that they are for.
    pub(crate) fn descriptors(&self) -> u64 {
        3 * (self.count.0 + self.count.1) as u64
    }

    /// Whether there are sockets for this family at all.
    fn serve(&self, family: Family) -> bool {
        match family {
            Family::V4 => self.count.0 > 0,
            Family::V6 => self.count.1 > 0,
        }
    }

    /// A socket for this family, as soon as there is one.
    async fn lease(&self, family: Family) -> Lease<'_> {
        loop {
            let freed = self.freed.notified();
            if let Some(inside) = self.take(family) {
                return Lease { insides: self, inside: Some(inside) };
            }
            freed.await;
        }
    }

    fn take(&self, family: Family) -> Option<Inside> {
        let mut free = self.free.borrow_mut();
        let index = free.iter().position(|inside| inside.family == family)?;
        Some(free.swap_remove(index))
    }

    /// Returns once a connection more would find a socket.
    async fn room(&self, family: Family) {
        loop {
            let freed = self.freed.notified();
            let free = self.free.borrow().iter().filter(|inside| inside.family == family).count();
            if free > self.pending.get() {
                return;
            }
            freed.await;
        }
    }
}

impl Claim {
    fn new(insides: Rc<Insides>) -> Self {
        insides.pending.set(insides.pending.get() + 1);
        Claim(insides)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.pending.set(self.0.pending.get() - 1);
        self.0.freed.notify_waiters();
    }
}

impl Lease<'_> {
    /// Connects to the container's loopback.
    fn connect(&self, port: u16) -> impl Future<Output = io::Result<TcpStream>> + use<> {
        let socket = self.inside.as_ref().map(|inside| (inside.socket.as_fd().try_clone_to_owned(), inside));
        let opened = match socket {
            Some((socket, inside)) => socket.map(|socket| {
                let to: IpAddr = match inside.family {
                    Family::V6 => Ipv6Addr::LOCALHOST.into(),
                    Family::V4 if inside.mapped => Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(),
                    Family::V4 => Ipv4Addr::LOCALHOST.into(),
                };
                (TcpSocket::from_std_stream(StdTcpStream::from(socket)), SocketAddr::new(to, port))
            }),
            None => Err(io::ErrorKind::NotConnected.into()),
        };
        async move {
            let (socket, to) = opened?;
            let stream = socket.connect(to).await?;
            // A port that nobody listens on can be met by this very socket (simultaneous open).
            if stream.local_addr()? == stream.peer_addr()? {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            Ok(stream)
        }
    }

    /// Waits until all that was sent has arrived, so that giving the socket back resets nothing.
    async fn settle(self) {
        let Some(inside) = &self.inside else { return };
        let (deadline, mut wait) = (Instant::now() + LINGER, LOOK.0);
        while !socket::has_ended(&inside.socket).unwrap_or(true) && Instant::now() < deadline {
            sleep(wait).await;
            wait = (wait * 2).min(LOOK.1);
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let Some(inside) = self.inside.take() else { return };
        // One that cannot be made fresh is of no use: the pool is smaller from now on.
        if socket::refresh(&inside.socket).is_ok() {
            self.insides.free.borrow_mut().push(inside);
        }
        self.insides.freed.notify_waiters();
    }
}

/// Serves `listener`, on the host, for ever. To be called within a `LocalSet`. While no socket is free, connections wait in
/// the backlog.
pub(crate) async fn publish(
    proxy: Rc<Proxy>,
    insides: Rc<Insides>,
    listener: TcpListener,
    published: Publish,
) {
    // Which family the container's program listened on last.
    let last = Rc::new(Cell::new(Family::V4));
    loop {
        insides.room(last.get()).await;
        match listener.accept().await {
            Ok((client, peer)) => {
                let (proxy, last) = (proxy.clone(), last.clone());
                let claim = Claim::new(insides.clone());
                tokio::task::spawn_local(async move {
                    serve(&proxy, claim, &last, client, peer, published).await;
                });
            }
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(_) => sleep(PAUSE).await,
        }
    }
}

async fn serve(
    proxy: &Proxy,
    claim: Claim,
    last: &Cell<Family>,
    client: TcpStream,
    peer: SocketAddr,
    published: Publish,
) {
    let client = Socket::new(client);
    let insides = claim.0.clone();
    let audit = &proxy.context.audit;
    let line = |action: &str| line(action, published, peer);
    if proxy.context.shield() == Shield::Block {
        return audit.refusal(line("refuse").reason(Reason::Blocked));
    }
    let target = Target { host: Host::Loopback, port: published.to };
    let flow = proxy.context.flows.insert(target, Grounds::Published);
    let (moved, started, accepted) = (Moved::default(), Instant::now(), Cell::new(false));
    let carried = async {
        let reached = reach(&insides, last, published.to).await;
        drop(claim);
        let (lease, inside) = match reached {
            Ok(reached) => reached,
            Err(error) => {
                let refusal = line("refuse").reason(Reason::Unreachable);
                audit.refusal(refusal.with("error", error.to_string()));
                return Ok(None);
            }
        };
        let inside = Socket::new(inside);
        if audit.record(line("accept")).is_err() {
            audit.refusal(line("refuse").reason(Reason::AuditUnwritable));
            return Ok(None);
        }
        accepted.set(true);
        exchange(&proxy.relay, &client, &inside, None, &moved).await?;
        Ok::<_, super::exchange::Fault>(Some(lease))
    };
    let end = tokio::select! {
        biased;
        () = flow.cut() => None,
        end = carried => Some(end),
    };
    drop(flow);
    if accepted.get() {
        let event = line(if end.is_some() { "close" } else { "cut" })
            .with("bytes_in", moved.up.get())
            .with("bytes_out", moved.down.get())
            .with("ms", u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX));
        let event = match &end {
            Some(Err(super::exchange::Fault::Io(error))) => event.with("error", error.to_string()),
            _ => event,
        };
        // The bytes have flowed: a full disk refuses the next connection, not this one's past.
        let _ = audit.record(event);
    }
    if let Some(Ok(Some(lease))) = end {
        lease.settle().await;
    }
}

/// A connection to the container's `port`: on 127.0.0.1, and where that refuses, on ::1; or first where it was found last.
async fn reach<'a>(
    insides: &'a Insides,
    last: &Cell<Family>,
    port: u16,
) -> io::Result<(Lease<'a>, TcpStream)> {
    let order = match last.get() {
        Family::V4 => [Family::V4, Family::V6],
        Family::V6 => [Family::V6, Family::V4],
    };
    let mut refused = None;
    for family in order.into_iter().filter(|family| insides.serve(*family)) {
        let attempt = async {
            let lease = insides.lease(family).await;
            let stream = lease.connect(port).await?;
            Ok((lease, stream))
        };
        match timeout(PATIENCE, attempt).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(reached) => {
                last.set(family);
                return Ok(reached);
            }
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    Err(refused.unwrap_or_else(|| io::ErrorKind::NotConnected.into()))
}

fn line(action: &str, published: Publish, peer: SocketAddr) -> Event {
    let target = SocketAddr::new(published.addr, published.port).to_string();
    event(Kind::Publish, action, target).with("peer", peer.to_string()).with("to", published.to)
}

#[cfg(test)]
mod tests;
