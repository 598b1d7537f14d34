//! The container's only DNS server: a virtual address for every name that may be reached, NXDOMAIN for the rest, and
//! nobody is ever asked (design §1). The name's real addresses are looked up when a connection is dialled.

pub mod answer;

use crate::audit::{Facts as _, event};
use crate::context::Context;
use crate::names::NameTableError;
use answer::{Asked, Known, Names, answer};
use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};
use terok_policy::audit::Kind;
use terok_policy::judge::Reason;
use terok_policy::{Name, Query, Verdict, name, virt};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

/// A query is a header and one name; a client that sends more is not asking.
const QUERY_LIMIT: usize = 1232;
/// Connections served at a time; more wait in the backlog.
const TCP_CONNECTIONS: usize = 16;
/// A connection may be this long without a whole query.
const TCP_IDLE: Duration = Duration::from_secs(5);

/// Answers datagrams.
pub(crate) async fn serve_udp(context: Rc<Context>, socket: UdpSocket) {
    let mut query = [0; QUERY_LIMIT];
    loop {
        // An error here is an earlier reply's: the client's port was closed.
        let Ok((length, from)) = socket.recv_from(&mut query).await else { continue };
        if let Some(reply) = answer(&query[..length], &mut Source { context: &context, proto: "udp" }) {
            // A client that does not read loses its reply.
            let _ = socket.try_send_to(&reply, from);
        }
    }
}

/// Answers connections (RFC 7766).
pub(crate) async fn serve_tcp(context: Rc<Context>, listener: TcpListener) {
    let open = Rc::new(Cell::new(0usize));
    let room = Rc::new(tokio::sync::Notify::new());
    loop {
        if open.get() >= TCP_CONNECTIONS {
            room.notified().await;
            continue;
        }
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors: a moment later some are free again.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        open.set(open.get() + 1);
        let (context, open, room) = (context.clone(), open.clone(), room.clone());
        tokio::task::spawn_local(async move {
            converse(&context, stream).await;
            open.set(open.get() - 1);
            room.notify_one();
        });
    }
}

/// Queries of one connection, until it ends, stalls or sends something else.
async fn converse(context: &Context, mut stream: TcpStream) {
    let mut frame = Vec::new();
    loop {
        let Ok(Ok(length)) = timeout(TCP_IDLE, stream.read_u16()).await else { return };
        if usize::from(length) > QUERY_LIMIT {
            return context.audit.refusal(
                event(Kind::Dns, "refuse", "")
                    .reason(Reason::BadDns)
                    .with("why", "too long")
                    .with("proto", "tcp"),
            );
        }
        frame.resize(usize::from(length), 0);
        let Ok(Ok(_)) = timeout(TCP_IDLE, stream.read_exact(&mut frame)).await else { return };
        let Some(reply) = answer(&frame, &mut Source { context, proto: "tcp" }) else { return };
        let mut framed = Vec::with_capacity(reply.len() + 2);
        framed.extend_from_slice(&(reply.len() as u16).to_be_bytes());
        framed.extend_from_slice(&reply);
        let Ok(Ok(())) = timeout(TCP_IDLE, stream.write_all(&framed)).await else { return };
    }
}

/// Names as one client may see them.
struct Source<'a> {
    context: &'a Context,
    proto: &'static str,
}

impl Names for Source<'_> {
    fn look_up(&mut self, asked: &Asked, rtype: &str) -> Known {
        let name = match asked {
            Asked::Name(name) => name,
            Asked::Reverse(index) if self.context.names.name(*index).is_some() => {
                return Known::Virtual(*index);
            }
            Asked::Reverse(index) => {
                return self.refuse(&virt::addresses(*index).0.to_string(), rtype, &unlisted());
            }
            Asked::Invalid(text) if text == "." => return Known::Nothing,
            Asked::Invalid(text) => return self.refuse(text, rtype, &unlisted()),
        };
        if name.as_str() == "localhost" || name.as_str().ends_with(".localhost") {
            return Known::Loopback;
        }
        let verdict = self.context.judge(&Query::Resolve(name));
        if !verdict.allows() {
            return self.refuse(name.as_str(), rtype, &verdict);
        }
        match self.index(name) {
            Ok(index) => {
                let (v4, v6) = virt::addresses(index);
                let address = if rtype == "AAAA" { v6.to_string() } else { v4.to_string() };
                self.context.audit.note(
                    event(Kind::Dns, "answer", name.as_str())
                        .verdict(&verdict)
                        .with("address", address)
                        .with("type", rtype)
                        .with("proto", self.proto),
                );
                Known::Virtual(index)
            }
            Err(error) => {
                let reason = match error {
                    NameTableError::Budget | NameTableError::Full => Reason::NameBudget,
                    NameTableError::File(_) => Reason::AuditUnwritable,
                };
                self.refuse(name.as_str(), rtype, &Verdict::Refuse { reason, rule: None });
                Known::NotNow
            }
        }
    }

    fn reverse(&mut self, index: u32) -> Option<Name> {
        self.context.names.name(index)
    }

    fn ipv6(&self) -> bool {
        self.context.config.facts.ipv6
    }

    fn refused(&mut self, why: &str) {
        self.context.audit.refusal(
            event(Kind::Dns, "refuse", "").reason(answer::BAD).with("why", why).with("proto", self.proto),
        );
    }
}

impl Source<'_> {
    fn index(&self, name: &Name) -> Result<u32, NameTableError> {
        if name.as_str() == name::HOST {
            return Ok(virt::HOST);
        }
        // Names that a rule spells out have their address since the rule was there: what is new here has only a
        // wildcard, an `any` rule or the lowered shield to thank.
        self.context.names.allocate_budgeted(name, Instant::now())
    }

    fn refuse(&self, target: &str, rtype: &str, verdict: &Verdict) -> Known {
        self.context.audit.refusal(
            event(Kind::Dns, "refuse", target).verdict(verdict).with("type", rtype).with("proto", self.proto),
        );
        Known::Nothing
    }
}

fn unlisted() -> Verdict {
    Verdict::Refuse { reason: Reason::Unlisted, rule: None }
}
