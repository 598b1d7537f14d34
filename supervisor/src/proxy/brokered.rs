//! Connections to what the credential broker serves, and the broker's own way out: the same resolver, floor, rules and upstream proxy as everybody's.

use super::Proxy;
use super::connection::{Fault, Tally, directly, refusal, through};
use super::dial::dial;
use super::relay::Socket;
use crate::audit::{Facts as _, event};
use crate::broker::{Dialling, Meets, Outward, Unreachable};
use crate::flows::{FlowGuard, Grounds, Host, Target, is_denied};
use std::cell::Cell;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;
use terok_policy::Verdict;
use terok_policy::audit::Kind;
use terok_policy::judge::Reason;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Serves `client`, whose `target` is the broker's to serve.
pub(super) async fn serve(
    proxy: &Rc<Proxy>,
    client: Socket,
    target: Target,
    verdict: &Verdict,
    meets: Meets,
) {
    let context = &proxy.context;
    let entrance = match (meets, &proxy.broker) {
        (Meets::Broker(entrance), Some(_)) => entrance,
        _ => {
            let what = "a brokered host is spoken to over TLS on port 443, the broker on ports 80 and 443";
            return context.audit.refusal(refusal(&target).reason(Reason::BadProtocol).with("what", what));
        }
    };
    let Some(broker) = &proxy.broker else { return };
    let flow = context.flows.insert(target, Grounds::of(verdict));
    let name = flow.target().to_string();
    let allow = event(Kind::Connect, "allow", name.as_str()).verdict(verdict).with("proto", "broker");
    if context.audit.record(allow).is_err() {
        return context.audit.refusal(refusal(flow.target()).reason(Reason::AuditUnwritable));
    }
    let started = Instant::now();
    let client = Rc::new(client);
    let (up, down) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let carried = Carried { socket: client.clone(), up: up.clone(), down: down.clone() };
    let outward: Rc<dyn Outward> = proxy.clone();
    let action = tokio::select! {
        biased;
        () = flow.cut() => "cut",
        () = broker.serve(outward, carried, flow.target(), entrance) => {
            client.end();
            "close"
        }
    };
    let line = event(Kind::Connect, action, name).with("bytes_up", up.get()).with("bytes_down", down.get());
    // The bytes have flowed: a full disk refuses the next connection, not this one's past.
    let _ = context
        .audit
        .record(line.with("ms", u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX)));
}

/// The client's socket as the broker reads and writes it; it can be reset from outside.
struct Carried {
    socket: Rc<Socket>,
    up: Rc<Cell<u64>>,
    down: Rc<Cell<u64>>,
}

impl AsyncRead for Carried {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.socket.poll_read_ready(cx))?;
            let into = buf.initialize_unfilled();
            match self.socket.try_read(into) {
                Ok(length) => {
                    buf.advance(length);
                    self.up.set(self.up.get() + length as u64);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncWrite for Carried {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_write_ready(cx))?;
            match self.socket.try_write(bytes) {
                Ok(length) => {
                    self.down.set(self.down.get() + length as u64);
                    return Poll::Ready(Ok(length));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_write_ready(cx))?;
            match self.socket.try_write_vectored(slices) {
                Ok(length) => {
                    self.down.set(self.down.get() + length as u64);
                    return Poll::Ready(Ok(length));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(super::relay::finish(&self.socket))
    }
}

impl Outward for Proxy {
    fn dial<'a>(&'a self, flow: &'a FlowGuard) -> Dialling<'a> {
        Box::pin(async move {
            let target = flow.target();
            let via = self.upstream.as_ref().filter(|upstream| upstream.carries(&target.host));
            let connected = match (&target.host, via) {
                (Host::Name(_), Some(via)) => {
                    through(self, via, target, &Verdict::Operator, &Tally::default()).await
                }
                (Host::Name(_), None) => directly(self, flow, &Verdict::Operator, &Tally::default()).await,
                // Whoever defined the provider wrote where it is, so that may be below the floor.
                (_, Some(via)) => {
                    let connected = via.connect(&self.resolver, target).await;
                    return connected.map_err(|error| unreachable(error.to_string()));
                }
                (Host::Literal(ip), None) => {
                    return dial(&[SocketAddr::new(*ip, target.port)])
                        .await
                        .map_err(|e| unreachable(e.to_string()));
                }
                (Host::Loopback, None) => {
                    let addresses = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
                    let addresses = addresses.map(|ip| SocketAddr::new(ip, target.port));
                    return dial(&addresses).await.map_err(|error| unreachable(error.to_string()));
                }
            };
            connected.map_err(|fault| match fault {
                Fault::Io(error) => unreachable(error.to_string()),
                Fault::Refused(event) => {
                    let facts = ["error", "floor", "upstream", "address"]
                        .into_iter()
                        .filter_map(|key| event.detail.get(key));
                    let words: Vec<&str> = facts.filter_map(serde_json::Value::as_str).collect();
                    Unreachable {
                        reason: event.reason.unwrap_or(Reason::Unreachable),
                        what: words.join(", "),
                    }
                }
            })
        })
    }

    fn is_denied(&self, address: SocketAddr) -> bool {
        is_denied(address, |query| self.context.judge(query))
    }
}

fn unreachable(what: String) -> Unreachable {
    Unreachable { reason: Reason::Unreachable, what }
}
