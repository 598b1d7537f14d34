//! Connections to upstreams: verified TLS, HTTP/2 or 1.1 as both sides can, used again by requests of the same grant. A request goes out once: again
//! only where a used connection had died before any of it was sent.

use super::body::Outgoing;
use super::ledger::chain;
use crate::flows::{self, FlowGuard};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Request, Response, Uri, Version, uri};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use terok_policy::judge::Reason;
use terok_policy::provider::{Endpoint, Host};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

/// For a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a connection is kept for the next request, and how many of one upstream.
const IDLE: Duration = Duration::from_secs(90);
const IDLE_MOST: usize = 64;
/// A peer that does not answer a ping this long after the last octet is gone.
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(20);
/// What an upstream may send ahead of the container: of one answer, and of all on one connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
const SEND_BUFFER: usize = 256 << 10;
const HEADERS: usize = 128;

/// The way out: the proxy's resolver, floor, rules and upstream proxy.
pub(crate) trait Outward {
    /// A connection to what `flow` is for.
    fn dial<'a>(&'a self, flow: &'a FlowGuard) -> Dialling<'a>;
    /// Whether a deny rule names this address.
    fn is_denied(&self, address: SocketAddr) -> bool;
}

/// A connection that is being made.
pub(crate) type Dialling<'a> = Pin<Box<dyn Future<Output = Result<TcpStream, Unreachable>> + 'a>>;

/// Why there is no answer from upstream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub(crate) struct Unreachable {
    /// For the audit log.
    pub(crate) reason: Reason,
    /// In words.
    pub(crate) what: String,
}

impl Unreachable {
    fn because(what: impl Into<String>) -> Self {
        Unreachable { reason: Reason::Unreachable, what: what.into() }
    }
}

/// Both halves of a connection, whatever it runs over.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

/// A connection that left HTTP, and what was read of it already.
pub(super) struct Switched {
    pub(super) io: Box<dyn Stream>,
    pub(super) read: bytes::Bytes,
}

/// Connections by grant and upstream. They hold no credential: each request brings its own, checked when it comes, and HTTP/2's compression never
/// remembers it (it is marked as sensitive, RFC 7541 §7.1.3). So one that is kept outlives a lock or a revocation without harm, and nothing is
/// sent on it but what a request sends.
pub(super) struct Pool {
    both: Arc<ClientConfig>,
    http1: Arc<ClientConfig>,
    known: RefCell<HashMap<(usize, String), Rc<Known>>>,
}

/// What is there for one upstream.
#[derive(Default)]
struct Known {
    http2: RefCell<Option<Multiplexed>>,
    /// The longest kept first.
    idle: RefCell<VecDeque<Idle>>,
    /// Whether somebody ends those that were kept too long.
    swept: Cell<bool>,
    next: Cell<u64>,
    /// When a request last went over HTTP/2.
    asked: Cell<Option<Instant>>,
    speaks_http1: Cell<bool>,
    /// Who asks while the first connection is made waits for it: over HTTP/2 one is enough.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Multiplexed {
    number: u64,
    sender: http2::SendRequest<Outgoing>,
    address: Option<SocketAddr>,
}

struct Idle {
    since: Instant,
    sender: http1::SendRequest<Outgoing>,
    address: Option<SocketAddr>,
}

/// A connection for one request.
enum Line {
    Http2(Multiplexed),
    Http1(http1::SendRequest<Outgoing>, Option<SocketAddr>),
}

/// For whom and where a request goes.
pub(super) struct Way<'a> {
    pub(super) grant: usize,
    pub(super) endpoint: &'a Endpoint,
    pub(super) outward: &'a dyn Outward,
    pub(super) flow: &'a Rc<FlowGuard>,
}

impl Pool {
    /// One that trusts the authorities of `bundle`, PEM.
    pub(super) fn new(bundle: &[u8]) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        // A bundle may hold what this verifier does not read: the rest counts.
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(bundle).filter_map(Result::ok));
        let config = |protocols: &[&[u8]]| -> anyhow::Result<Arc<ClientConfig>> {
            let mut config = ClientConfig::builder_with_provider(ring::default_provider().into())
                .with_safe_default_protocol_versions()?
                .with_root_certificates(roots.clone())
                .with_no_client_auth();
            config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
            Ok(Arc::new(config))
        };
        let (both, http1) = (config(&[b"h2", b"http/1.1"])?, config(&[b"http/1.1"])?);
        Ok(Pool { both, http1, known: RefCell::default() })
    }

    /// How many HTTP/2 connections are kept.
    #[cfg(test)]
    pub(super) fn lines(&self) -> usize {
        self.known.borrow().values().filter(|known| known.http2.borrow().is_some()).count()
    }

    /// How many tasks of HTTP/1 wait for something, a connection's own not counted.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.known.borrow().values().map(|known| Rc::strong_count(known) - 1).sum()
    }

    /// Sends `request`, whose target is `path`, and returns the head of its answer.
    pub(super) async fn send(
        &self,
        way: &Way<'_>,
        path: &uri::PathAndQuery,
        mut request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, Unreachable> {
        let known = self.known.borrow_mut().entry((way.grant, way.endpoint.to_string())).or_default().clone();
        loop {
            let (line, used) = match known.line(way) {
                Some(line) => (line, true),
                None => {
                    let turn = match known.speaks_http1.get() {
                        false => Some(known.turn.lock().await),
                        true => None,
                    };
                    let made = match known.line(way) {
                        Some(line) => (line, true),
                        None => (self.connect(way, &known).await?, false),
                    };
                    drop(turn);
                    made
                }
            };
            fit(&mut request, way.endpoint, path, matches!(line, Line::Http2(_)))?;
            let unsent = match line {
                Line::Http2(mut line) => match line.sender.try_send_request(request).await {
                    Ok(response) => return Ok(response),
                    Err(mut error) => {
                        known.give_up(line.number);
                        error.take_message().ok_or_else(|| error.into_error())
                    }
                },
                Line::Http1(mut sender, address) => match sender.try_send_request(request).await {
                    Ok(response) => {
                        known.keep(sender, address);
                        return Ok(response);
                    }
                    Err(mut error) => error.take_message().ok_or_else(|| error.into_error()),
                },
            };
            match unsent {
                Ok(unsent) if used => request = unsent,
                Ok(_) => return Err(Unreachable::because("the upstream ended the connection at once")),
                Err(error) => return Err(Unreachable::because(chain(&error))),
            }
        }
    }

    /// As [`Pool::send`], over a connection of its own that may leave HTTP: then it comes through the receiver.
    pub(super) async fn switch(
        &self,
        way: &Way<'_>,
        path: &uri::PathAndQuery,
        mut request: Request<Outgoing>,
    ) -> Result<(Response<Incoming>, oneshot::Receiver<Switched>), Unreachable> {
        let (io, _) = self.open(way, &self.http1).await?;
        let (mut sender, mut connection) = handshake1(io).await?;
        let (tell, told) = oneshot::channel();
        tokio::task::spawn_local(async move {
            if std::future::poll_fn(|cx| connection.poll_without_shutdown(cx)).await.is_ok() {
                let parts = connection.into_parts();
                let _ = tell.send(Switched { io: parts.io.into_inner(), read: parts.read_buf });
            }
        });
        fit(&mut request, way.endpoint, path, false)?;
        let headers = request.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        match sender.send_request(request).await {
            Ok(response) => Ok((response, told)),
            Err(error) => Err(Unreachable::because(chain(&error))),
        }
    }

    async fn connect(&self, way: &Way<'_>, known: &Rc<Known>) -> Result<Line, Unreachable> {
        let (io, http2) = self.open(way, &self.both).await?;
        let address = way.flow.address();
        known.speaks_http1.set(!http2);
        if !http2 {
            let (sender, connection) = handshake1(io).await?;
            tokio::task::spawn_local(async move {
                let _ = connection.await;
            });
            return Ok(Line::Http1(sender, address));
        }
        let handshake = http2::Builder::new(Local)
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PONG)
            .handshake(TokioIo::new(io));
        let (sender, connection) = handshake.await.map_err(|error| Unreachable::because(chain(&error)))?;
        tokio::task::spawn_local(async move {
            let _ = connection.await;
        });
        let line = Multiplexed { number: known.number(), sender, address };
        known.hold(line.clone());
        Ok(Line::Http2(line))
    }

    /// A connection to the endpoint, and whether it speaks HTTP/2.
    async fn open(
        &self,
        way: &Way<'_>,
        config: &Arc<ClientConfig>,
    ) -> Result<(Box<dyn Stream>, bool), Unreachable> {
        let stream = way.outward.dial(way.flow).await?;
        let _ = stream.set_nodelay(true);
        if !way.endpoint.tls {
            return Ok((Box::new(stream), false));
        }
        let server = match &way.endpoint.host {
            Host::Name(name) => ServerName::try_from(name.to_string()),
            Host::Address(address) => Ok(ServerName::from(*address)),
            Host::Loopback => ServerName::try_from("localhost".to_owned()),
        };
        let server = server.map_err(|error| Unreachable::because(error.to_string()))?;
        let shaken = timeout(HANDSHAKE, TlsConnector::from(config.clone()).connect(server, stream)).await;
        match shaken {
            Ok(Ok(stream)) => {
                let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                Ok((Box::new(stream), http2))
            }
            Ok(Err(error)) => Err(Unreachable::because(format!("TLS: {}", chain(&error)))),
            Err(_) => Err(Unreachable::because("TLS: no answer in time")),
        }
    }
}

async fn handshake1(
    io: Box<dyn Stream>,
) -> Result<(http1::SendRequest<Outgoing>, http1::Connection<TokioIo<Box<dyn Stream>>, Outgoing>), Unreachable>
{
    let shaken =
        http1::Builder::new().preserve_header_case(true).max_headers(HEADERS).handshake(TokioIo::new(io));
    shaken.await.map_err(|error| Unreachable::because(chain(&error)))
}

impl Known {
    /// A connection that is there, and may be used for `way`.
    fn line(&self, way: &Way<'_>) -> Option<Line> {
        let denied =
            |address: Option<SocketAddr>| address.is_some_and(|address| way.outward.is_denied(address));
        let shared =
            self.http2.borrow().clone().filter(|line| !line.sender.is_closed() && !denied(line.address));
        if let Some(line) = shared {
            way.flow.lead_to(line.address);
            self.asked.set(Some(Instant::now()));
            return Some(Line::Http2(line));
        }
        self.http2.replace(None);
        loop {
            let idle = self.idle.borrow_mut().pop_back()?;
            if idle.sender.is_ready() && !denied(idle.address) {
                way.flow.lead_to(idle.address);
                return Some(Line::Http1(idle.sender, idle.address));
            }
        }
    }

    fn number(&self) -> u64 {
        let number = self.next.get();
        self.next.set(number + 1);
        number
    }

    /// Keeps an HTTP/2 connection until nothing was asked of it for a while. Answers under way are finished on it then, and it ends.
    fn hold(self: &Rc<Self>, line: Multiplexed) {
        let (known, number) = (self.clone(), line.number);
        self.http2.replace(Some(line));
        self.asked.set(Some(Instant::now()));
        tokio::task::spawn_local(async move {
            while known.http2.borrow().as_ref().is_some_and(|line| line.number == number) {
                match known.asked.get().map(|asked| asked + IDLE).filter(|end| *end > Instant::now()) {
                    Some(end) => tokio::time::sleep_until(end).await,
                    None => known.give_up(number),
                }
            }
        });
    }

    /// Asks no more of this HTTP/2 connection.
    fn give_up(&self, number: u64) {
        self.http2.borrow_mut().take_if(|line| line.number == number);
    }

    /// Keeps a connection for the next request, once this one's answer is through.
    fn keep(self: &Rc<Self>, mut sender: http1::SendRequest<Outgoing>, address: Option<SocketAddr>) {
        let known = self.clone();
        tokio::task::spawn_local(async move {
            if sender.ready().await.is_err() || known.idle.borrow().len() >= IDLE_MOST {
                return;
            }
            known.idle.borrow_mut().push_back(Idle { since: Instant::now(), sender, address });
            known.sweep();
        });
    }

    /// Ends connections that nobody used for a while. One task for all of them: with one for each request, as many would wait as there are
    /// requests in that while.
    fn sweep(self: &Rc<Self>) {
        if self.swept.replace(true) {
            return;
        }
        let known = self.clone();
        tokio::task::spawn_local(async move {
            loop {
                let Some(end) = known.idle.borrow().front().map(|idle| idle.since + IDLE) else { break };
                tokio::time::sleep_until(end).await;
                known.idle.borrow_mut().retain(|idle| idle.since + IDLE > Instant::now());
            }
            known.swept.set(false);
        });
    }
}

/// Writes the request's target and `Host` as the protocol has them.
fn fit(
    request: &mut Request<Outgoing>,
    endpoint: &Endpoint,
    path: &uri::PathAndQuery,
    http2: bool,
) -> Result<(), Unreachable> {
    let wrong = |error: &dyn std::fmt::Display| {
        Unreachable::because(format!("the request cannot be written: {error}"))
    };
    let authority = endpoint.authority();
    let mut target = uri::Parts::default();
    target.path_and_query = Some(path.clone());
    let mut headers = HeaderMap::with_capacity(request.headers().len() + 2);
    if http2 {
        target.scheme = Some(if endpoint.tls { uri::Scheme::HTTPS } else { uri::Scheme::HTTP });
        target.authority = Some(authority.parse().map_err(|error: uri::InvalidUri| wrong(&error))?);
    } else {
        headers.insert(header::HOST, HeaderValue::try_from(authority).map_err(|error| wrong(&error))?);
        if request.headers().contains_key(header::TE) {
            headers.insert(header::CONNECTION, HeaderValue::from_static("TE"));
        }
    }
    for (name, value) in request.headers().iter().filter(|(name, _)| *name != header::HOST) {
        headers.append(name, value.clone());
    }
    let bodiless = matches!(*request.method(), Method::GET | Method::HEAD);
    if !http2 && bodiless && request.body().size_hint().exact().is_none() {
        // Hyper takes these to have no body unless it is told.
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    } else {
        headers.remove(header::TRANSFER_ENCODING);
    }
    *request.headers_mut() = headers;
    *request.uri_mut() = Uri::from_parts(target).map_err(|error| wrong(&error))?;
    *request.version_mut() = if http2 { Version::HTTP_2 } else { Version::HTTP_11 };
    Ok(())
}

/// What a request to `endpoint` is for, among the flows.
pub(super) fn target(endpoint: &Endpoint) -> flows::Target {
    let host = match &endpoint.host {
        Host::Name(name) => flows::Host::Name(name.clone()),
        Host::Address(address) => flows::Host::Literal(*address),
        Host::Loopback => flows::Host::Loopback,
    };
    flows::Target { host, port: endpoint.port }
}

/// Starts tasks on this thread.
#[derive(Clone)]
struct Local;

impl<F> hyper::rt::Executor<F> for Local
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}
