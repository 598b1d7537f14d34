//! A connection of the container to the broker: TLS ended with a certificate of its own authority, then HTTP/1.1 or 2, each request answered by
//! [`super::forward`].

use super::body::Relayed;
use super::forward::{Tunnel, Visit};
use super::ledger::chain;
use super::strict::{Strict, Talk};
use super::{Broker, Entrance, Outward};
use crate::audit::{Facts as _, event};
use crate::flows::Target;
use crate::proxy::http::{self, Requests};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::server::Acceptor;
use std::cell::RefCell;
use std::convert::Infallible;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;
use terok_policy::Name;
use terok_policy::audit::Kind;
use terok_policy::judge::Reason;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;

/// For a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// For a client to take the end of a connection, and how much of what it still sends is read.
const LINGER: Duration = Duration::from_secs(1);
const LINGERING: usize = 1 << 20;
/// Requests of one HTTP/2 connection at once.
const STREAMS: u32 = 100;
/// What the container may send ahead of the upstream: of one request, and of all on one connection.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
const SEND_BUFFER: usize = 128 << 10;
const HEADER_LIST: u32 = 64 << 10;
const HEADERS: usize = 128;
/// Streams that a client resets before they were answered, at a time (CVE-2023-44487).
const RESETS: usize = 20;
const PING: Duration = Duration::from_secs(60);
const PONG: Duration = Duration::from_secs(20);

/// Serves `client`, which is on its way to `target`. An error is for the audit log.
pub(super) async fn serve<S>(
    broker: &Rc<Broker>,
    outward: Rc<dyn Outward>,
    client: S,
    target: &Target,
    entrance: Entrance,
) where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let name = entrance.name().clone();
    let visit = |talk: Rc<Talk>| {
        Rc::new(Visit::new(broker.clone(), outward.clone(), entrance.clone(), target.to_string(), talk))
    };
    if !entrance.is_tls() {
        return over_http1(client, Requests::new(name.clone(), target.port), target, visit).await;
    }
    match timeout(HANDSHAKE, shake(broker, client, &name)).await {
        Ok(Ok(stream)) => match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => over_http2(stream, visit(Rc::default())).await,
            _ => over_http1(stream, Requests::over_tls(name.clone(), target.port), target, visit).await,
        },
        Ok(Err(fault)) => {
            let line = event(Kind::Connect, "refuse", target.to_string()).reason(fault.reason);
            broker.context.audit.refusal(line.with("proto", "tls").with("what", fault.what));
        }
        Err(_) => {
            let line = event(Kind::Connect, "refuse", target.to_string()).reason(Reason::HandshakeTimeout);
            broker.context.audit.refusal(line.with("proto", "tls"));
        }
    }
}

/// Why there is no TLS.
struct Fault {
    reason: Reason,
    what: String,
}

async fn shake<S>(
    broker: &Broker,
    client: S,
    name: &Name,
) -> Result<tokio_rustls::server::TlsStream<S>, Fault>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let fault = |reason: Reason, what: String| Fault { reason, what };
    let broken = |error: std::io::Error| fault(Reason::BadProtocol, chain(&error));
    let start = LazyConfigAcceptor::new(Acceptor::default(), client).await.map_err(broken)?;
    match start.client_hello().server_name() {
        None => return Err(fault(Reason::SniMissing, "no server name".to_owned())),
        Some(asked) if Name::parse(asked).as_ref() != Ok(name) => {
            return Err(fault(Reason::SniMismatch, super::ledger::repeated(asked)));
        }
        Some(_) => {}
    }
    let config = broker.ca.serving(name).map_err(|error| fault(Reason::BadProtocol, error.to_string()))?;
    // A client that does not trust the authority says so here.
    start.into_stream(config).await.map_err(broken)
}

async fn over_http1<S>(
    client: S,
    requests: Requests,
    target: &Target,
    visit: impl FnOnce(Rc<Talk>) -> Rc<Visit>,
) where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let talk = Rc::new(Talk::default());
    let visit = visit(talk.clone());
    let served = visit.clone();
    let service = service_fn(move |request: Request<Incoming>| Box::pin(answer(served.clone(), request)));
    let mut connection = http1::Builder::new()
        .preserve_header_case(true)
        .max_headers(HEADERS)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(Strict::new(client, requests, talk.clone())), service);
    let done = std::future::poll_fn(|cx| connection.poll_without_shutdown(cx)).await;
    let parts = connection.into_parts();
    let (mut client, behind) = parts.io.into_inner().into_parts();
    if let Some(Tunnel { switched, entry, redactor, flow }) = visit.tunnel().filter(|_| done.is_ok()) {
        let read = [parts.read_buf, behind].concat();
        return super::tunnel::relay(client, read.into(), switched, entry, redactor, &flow).await;
    }
    if let Some(refusal) = talk.refusal() {
        visit.refused(target, &refusal);
        // Within a body there is an answer under way, and another would be taken for the next request's.
        if talk.busy.get() == 0 {
            let _ = client.write_all(bad_request(&refusal).as_bytes()).await;
        }
    }
    let _ = timeout(LINGER, linger(client)).await;
}

/// Ends a connection so that what was said last arrives: with octets unread, the kernel would reset it.
async fn linger(mut client: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
    client.shutdown().await?;
    let (mut scratch, mut left) = (vec![0; 16 << 10], LINGERING);
    while left > 0 {
        match client.read(&mut scratch).await? {
            0 => break,
            length => left = left.saturating_sub(length),
        }
    }
    Ok(())
}

async fn over_http2<S>(client: S, visit: Rc<Visit>)
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let tasks = Tasks::default();
    let service = service_fn(move |request: Request<Incoming>| answer(visit.clone(), request));
    let connection = http2::Builder::new(tasks.clone())
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(HEADER_LIST)
        .max_pending_accept_reset_streams(RESETS)
        .max_local_error_reset_streams(RESETS)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PONG)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(client), service);
    let _ = connection.await;
    // What it had under way ends with it.
    tasks.0.borrow_mut().abort_all();
}

async fn answer(visit: Rc<Visit>, request: Request<Incoming>) -> Result<Response<Relayed>, Infallible> {
    Ok(visit.answer(request).await)
}

fn bad_request(refusal: &http::Refusal) -> String {
    let status = match refusal.reason {
        Reason::TooLarge => "431 Request Header Fields Too Large",
        Reason::HostMismatch => "421 Misdirected Request",
        _ => "400 Bad Request",
    };
    let body = serde_json::json!({ "error": { "message": format!("terok: {}", refusal.what), "type": "invalid_request_error" } });
    let body = body.to_string();
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// The tasks of one connection: they end with it.
#[derive(Clone, Default)]
struct Tasks(Rc<RefCell<JoinSet<()>>>);

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output = ()> + 'static,
{
    fn execute(&self, future: F) {
        let mut tasks = self.0.borrow_mut();
        while tasks.try_join_next().is_some() {}
        tasks.spawn_local(future);
    }
}
