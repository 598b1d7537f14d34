//! The TCP proxy: each connection of the container is judged by what it was made for, held to that name where the
//! protocol says one (E4), dialled from the host's side and relayed. A refusal is a reset at once (E5).

mod brokered;
mod connection;
mod dial;
mod exchange;
pub mod gate;
pub mod hello;
pub mod http;
mod publish;
mod relay;
mod retry;
pub mod sniff;
mod upstream;
mod verdict;

use crate::audit::{Facts as _, event};
use crate::broker::Broker;
use crate::context::Context;
use crate::flows::{Host, Target};
use crate::resolve::{Files, Resolver};
pub(crate) use dial::dial;
pub(crate) use publish::{Insides, publish};
use relay::{Relay, Socket};
use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use terok_kernel::rtnl::Rtnl;
use terok_kernel::{birth, socket};
use terok_policy::audit::Kind;
use terok_policy::judge::Reason;
use terok_policy::{Name, name, virt};
use tokio::net::{TcpListener, TcpStream};
pub(crate) use upstream::Upstream;

/// Most connections of a container at once.
const CONNECTIONS: usize = 1024;
/// Descriptors left for everything that is no connection: a container that fills the rest must not keep the operator's
/// call, his change on disk or the log's rotation from theirs.
const RESERVED: u64 = 128;
/// A connection's own: its two sockets; or the client's and those that are being dialled, or that ask name servers.
/// What the two sockets leave free is for pipes.
const EACH: u64 = 1 + dial::AT_ONCE as u64;
/// Between two accepts when the process is out of descriptors.
const PAUSE: Duration = Duration::from_millis(50);

/// What all connections share.
pub(crate) struct Proxy {
    context: Rc<Context>,
    resolver: Resolver,
    /// What stands between the host and the outside.
    upstream: Option<Upstream>,
    /// Serves brokered hosts, where the policy grants credentials.
    broker: Option<Rc<Broker>>,
    /// Knows the host's own addresses.
    routes: Rtnl,
    relay: Relay,
    limit: usize,
    open: Cell<usize>,
}

impl Proxy {
    /// A proxy in the network namespace of the calling thread, the host's.
    ///
    /// Besides the usual ones, `taken` descriptors are somebody else's.
    pub(crate) fn new(context: Rc<Context>, taken: u64, broker: Option<Rc<Broker>>) -> io::Result<Rc<Self>> {
        let limit = connections(birth::descriptor_limit().unwrap_or(1024).saturating_sub(taken));
        let upstream = context.config.upstream.clone().map(Upstream::new);
        Ok(Rc::new(Proxy {
            context,
            upstream,
            broker,
            resolver: Resolver::new(Files::host_files()),
            routes: Rtnl::open()?,
            relay: Relay::new(limit),
            limit,
            open: Cell::new(0),
        }))
    }

    /// Serves `listener` for ever. To be called within a `LocalSet`.
    pub(crate) async fn serve(self: Rc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((client, _)) => self.clone().take(client),
                // Of a connection that is gone already: the next one. Of descriptors: wait until some are free.
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    fn take(self: Rc<Self>, client: TcpStream) {
        let target = match destination(&client).map(|to| self.target(to)) {
            Some(Ok(target)) => target,
            // Not redirected: somebody inside speaks to the proxy's own port. Nobody is meant.
            None => return drop(Socket::new(client)),
            Some(Err(to)) => {
                let event = event(Kind::Connect, "refuse", to.to_string()).reason(Reason::Unlisted);
                self.context.audit.refusal(event.with("proto", "tcp"));
                return drop(Socket::new(client));
            }
        };
        self.admit(client, target);
    }

    fn admit(self: Rc<Self>, client: TcpStream, target: Target) {
        if self.open.get() >= self.limit {
            let event = event(Kind::Connect, "refuse", target.to_string()).reason(Reason::TooManyConnections);
            self.context.audit.refusal(event.with("proto", "tcp").with("limit", self.limit));
            return drop(Socket::new(client));
        }
        self.open.set(self.open.get() + 1);
        tokio::task::spawn_local(async move {
            connection::serve(&self, client, target).await;
            self.open.set(self.open.get() - 1);
        });
    }

    /// What a connection to `to` is made for; an address of the pool that stands for nothing is an error.
    fn target(&self, to: SocketAddr) -> Result<Target, SocketAddr> {
        let ip = to.ip().to_canonical();
        let host = match virt::index(ip) {
            None => Host::Literal(ip),
            Some(virt::HOST) => Host::Loopback,
            Some(virt::VAULT) => Host::Name(Name::parse(name::VAULT).map_err(|_| to)?),
            Some(index) => Host::Name(self.context.names.name(index).ok_or(to)?),
        };
        Ok(Target { host, port: to.port() })
    }
}

/// How many connections fit into this many descriptors.
fn connections(descriptors: u64) -> usize {
    usize::try_from(descriptors.saturating_sub(RESERVED) / EACH).unwrap_or(CONNECTIONS).clamp(1, CONNECTIONS)
}

/// Where a client wanted to go; `None` where it meant the proxy itself.
fn destination(client: &TcpStream) -> Option<SocketAddr> {
    let own = client.local_addr().ok()?;
    let to = socket::original_dst(client, own.is_ipv6()).ok()?;
    (!to.ip().to_canonical().is_loopback()).then_some(to)
}

#[cfg(test)]
mod tests;
