//! The container's only DNS server: a virtual address for every name that may be reached, NXDOMAIN for the rest, and
//! nobody is asked (design §1). Only names with a rule that needs real addresses, and other containers' names, are looked
//! up before they are answered; that holds up nobody else's question.

pub mod answer;
mod real;

use crate::audit::{Facts as _, event};
use crate::context::Context;
use crate::names::NameTableError;
use crate::resolve::{Family, Peers, Resolver};
use answer::{Asked, Known, Question, Received};
use domain::base::iana::Rtype;
use real::{Outcome, Real};
use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};
use terok_policy::answer::Answer;
use terok_policy::audit::{Event, Kind};
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
/// Questions that wait for real addresses at a time, repeated ones included; more are told to come again.
const WAITING: usize = 256;

/// The server.
pub(crate) struct Dns {
    context: Rc<Context>,
    real: Real,
    waiting: Cell<usize>,
}

impl Dns {
    /// A server that has real addresses looked up by `resolver`, and other containers' by `peers`.
    pub(crate) fn new(context: Rc<Context>, resolver: Resolver, peers: Rc<Peers>) -> io::Result<Rc<Self>> {
        let real = Real::new(context.clone(), resolver, peers)?;
        Ok(Rc::new(Dns { context, real, waiting: Cell::new(0) }))
    }

    /// Answers datagrams. To be called within a `LocalSet`.
    pub(crate) async fn serve_udp(self: Rc<Self>, socket: UdpSocket) {
        let socket = Rc::new(socket);
        let mut query = [0; QUERY_LIMIT];
        loop {
            // An error here is an earlier reply's: the client's port was closed.
            let Ok((length, from)) = socket.recv_from(&mut query).await else { continue };
            // A client that does not read loses its reply.
            match self.take(&query[..length], "udp") {
                Step::Reply(reply) => {
                    let _ = reply.map(|reply| socket.try_send_to(&reply, from));
                }
                Step::Wait(waiting) => {
                    let (dns, socket) = (self.clone(), socket.clone());
                    tokio::task::spawn_local(async move {
                        let reply = dns.finish(waiting).await;
                        let _ = reply.map(|reply| socket.try_send_to(&reply, from));
                    });
                }
            }
        }
    }

    /// Answers connections (RFC 7766). To be called within a `LocalSet`.
    pub(crate) async fn serve_tcp(self: Rc<Self>, listener: TcpListener) {
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
            let (dns, open, room) = (self.clone(), open.clone(), room.clone());
            tokio::task::spawn_local(async move {
                dns.converse(stream).await;
                open.set(open.get() - 1);
                room.notify_one();
            });
        }
    }

    /// Queries of one connection, until it ends, stalls or sends something else.
    async fn converse(&self, mut stream: TcpStream) {
        let mut frame = Vec::new();
        loop {
            let Ok(Ok(length)) = timeout(TCP_IDLE, stream.read_u16()).await else { return };
            if usize::from(length) > QUERY_LIMIT {
                return self.unread("too long", "tcp");
            }
            frame.resize(usize::from(length), 0);
            let Ok(Ok(_)) = timeout(TCP_IDLE, stream.read_exact(&mut frame)).await else { return };
            let reply = match self.take(&frame, "tcp") {
                Step::Reply(reply) => reply,
                Step::Wait(waiting) => self.finish(waiting).await,
            };
            let Some(reply) = reply else { return };
            let mut framed = Vec::with_capacity(reply.len() + 2);
            framed.extend_from_slice(&(reply.len() as u16).to_be_bytes());
            framed.extend_from_slice(&reply);
            let Ok(Ok(())) = timeout(TCP_IDLE, stream.write_all(&framed)).await else { return };
        }
    }
}

/// What is to be done with a message.
enum Step {
    /// This is the reply, if there is one.
    Reply(Option<Vec<u8>>),
    /// The reply needs time.
    Wait(Waiting),
}

/// A question that waits for real addresses.
struct Waiting {
    question: Question,
    name: Name,
    family: Family,
    way: Answer,
    /// Why the name may be answered.
    verdict: Verdict,
    proto: &'static str,
}

impl Dns {
    fn take(&self, message: &[u8], proto: &'static str) -> Step {
        match answer::read(message) {
            Received::Nothing => Step::Reply(None),
            Received::Refused(why, reply) => {
                self.unread(why, proto);
                Step::Reply(reply)
            }
            Received::Question(question) => match self.look_up(&question, proto) {
                Found::Known(known) => Step::Reply(question.reply(&known, self.ipv6())),
                Found::Later { name, family, way, verdict } => {
                    Step::Wait(Waiting { question, name, family, way, verdict, proto })
                }
            },
        }
    }

    async fn finish(&self, waiting: Waiting) -> Option<Vec<u8>> {
        if self.waiting.get() >= WAITING {
            let refusal = waiting.refusal().reason(Reason::NameBudget).with("waiting", WAITING);
            self.context.audit.refusal(refusal);
            return waiting.question.reply(&Known::Failed, self.ipv6());
        }
        self.waiting.set(self.waiting.get() + 1);
        let outcome = self.real.find(&waiting.name, waiting.family, waiting.way).await;
        self.waiting.set(self.waiting.get() - 1);
        let known = self.conclude(&waiting, outcome);
        waiting.question.reply(&known, self.ipv6())
    }

    fn conclude(&self, waiting: &Waiting, outcome: Outcome) -> Known {
        match outcome {
            Outcome::Addresses(addresses, ttl) => {
                let told: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                let answer = waiting.event("answer").verdict(&waiting.verdict);
                self.context.audit.note(match told.is_empty() {
                    true => answer,
                    false => answer.with("address", told.join(" ")).with("ttl", ttl),
                });
                Known::Real(addresses, ttl)
            }
            Outcome::Ordinary => match self.context.names.allocate(&waiting.name) {
                Ok(index) => {
                    self.note_virtual(
                        &waiting.name,
                        index,
                        waiting.question.rtype(),
                        waiting.proto,
                        &waiting.verdict,
                    );
                    Known::Provisional(index)
                }
                Err(error) => {
                    self.context.audit.refusal(waiting.refusal().reason(reason(&error)));
                    Known::NotNow
                }
            },
            Outcome::Nobody => {
                let refusal = waiting.refusal().reason(Reason::Unreachable);
                self.context.audit.refusal(refusal.with("error", "no container is called so"));
                Known::Nothing
            }
            Outcome::Refused(verdict, facts) => {
                self.context.audit.refusal(with_all(waiting.refusal().verdict(&verdict), facts));
                Known::Nothing
            }
            Outcome::Failed(reason, error) => {
                self.context.audit.refusal(waiting.refusal().reason(reason).with("error", error));
                Known::Failed
            }
        }
    }

    /// What is known of a name at once.
    fn look_up(&self, question: &Question, proto: &'static str) -> Found {
        let rtype = question.rtype();
        let refuse = |target: &str, verdict: &Verdict| {
            self.context.audit.refusal(asked("refuse", target, rtype, proto).verdict(verdict));
            Found::Known(Known::Nothing)
        };
        let name = match question.asked() {
            Asked::Name(name) => name,
            Asked::Reverse(index) => {
                return match self.context.names.name(*index) {
                    Some(name) => Found::Known(Known::Pointer(name)),
                    None => refuse(&virt::addresses(*index).0.to_string(), &UNLISTED),
                };
            }
            Asked::Invalid(text) if text == "." => return Found::Known(Known::Nothing),
            Asked::Invalid(text) => return refuse(text, &UNLISTED),
        };
        if name.as_str() == "localhost" || name.as_str().ends_with(".localhost") {
            return Found::Known(Known::Loopback);
        }
        let mut verdict = self.context.judge(&Query::Resolve(name));
        let listed = match verdict {
            Verdict::Refuse { reason: Reason::Denied | Reason::Blocked, .. } => name.clone(),
            _ => self.real.listed_form(name),
        };
        if listed != *name {
            verdict = self.context.judge(&Query::Resolve(&listed));
        }
        let (name, query) = (&listed, Query::Resolve(&listed));
        if !verdict.allows() {
            if !self.context.holds(&query, &verdict) {
                return refuse(name.as_str(), &verdict);
            }
            // The connection will wait for an operator's word; whether there will be one is not known yet.
            verdict = Verdict::Operator;
        }
        match self.real.answer_of(name) {
            way @ (Answer::Real | Answer::Peer) => {
                self.look_up_real(name.clone(), way, verdict, rtype, proto)
            }
            Answer::Virtual => Found::Known(self.look_up_virtual(name, &verdict, rtype, proto)),
        }
    }

    fn look_up_virtual(&self, name: &Name, verdict: &Verdict, rtype: Rtype, proto: &'static str) -> Known {
        // Names that a rule spells out have their address since the rule was there: what is new here has only a
        // wildcard, an `any` rule, the lowered shield, learning or an operator's patience to thank.
        let index = match name.as_str() {
            name::HOST => Ok(virt::HOST),
            name::VAULT => Ok(virt::VAULT),
            _ => self.context.names.allocate_budgeted(name, Instant::now()),
        };
        match index {
            Ok(index) => {
                self.note_virtual(name, index, rtype, proto, verdict);
                Known::Virtual(index)
            }
            Err(error) => self.over(name, &error, rtype, proto),
        }
    }

    fn look_up_real(
        &self,
        name: Name,
        way: Answer,
        verdict: Verdict,
        rtype: Rtype,
        proto: &'static str,
    ) -> Found {
        let family = match rtype {
            Rtype::A => Family::V4,
            Rtype::AAAA => Family::V6,
            // Nothing of any other type is told of any name, so nobody is asked.
            _ => {
                self.context.audit.note(asked("answer", name.as_str(), rtype, proto).verdict(&verdict));
                return Found::Known(Known::Real(Vec::new(), 0));
            }
        };
        if !self.real.is_spelt_out(&name)
            && let Err(error) = self.context.names.pay(&name, Instant::now())
        {
            return Found::Known(self.over(&name, &error, rtype, proto));
        }
        Found::Later { name, family, way, verdict }
    }

    /// A name beyond the budget, the pool or the disk.
    fn over(&self, name: &Name, error: &NameTableError, rtype: Rtype, proto: &'static str) -> Known {
        self.context.audit.refusal(asked("refuse", name.as_str(), rtype, proto).reason(reason(error)));
        Known::NotNow
    }

    fn note_virtual(&self, name: &Name, index: u32, rtype: Rtype, proto: &'static str, verdict: &Verdict) {
        let (v4, v6) = virt::addresses(index);
        let address = if rtype == Rtype::AAAA { v6.to_string() } else { v4.to_string() };
        let answer = asked("answer", name.as_str(), rtype, proto).verdict(verdict);
        self.context.audit.note(answer.with("address", address));
    }

    fn unread(&self, why: &str, proto: &'static str) {
        let refusal = event(Kind::Dns, "refuse", "").reason(Reason::BadDns);
        self.context.audit.refusal(refusal.with("why", why).with("proto", proto));
    }

    /// Whether the container has IPv6; an address it cannot use is not given out.
    fn ipv6(&self) -> bool {
        self.context.config.facts.ipv6
    }
}

/// What [`Dns::look_up`] found.
enum Found {
    Known(Known),
    Later { name: Name, family: Family, way: Answer, verdict: Verdict },
}

impl Waiting {
    fn event(&self, action: &str) -> Event {
        asked(action, self.name.as_str(), self.question.rtype(), self.proto)
    }

    fn refusal(&self) -> Event {
        self.event("refuse")
    }
}

const UNLISTED: Verdict = Verdict::Refuse { reason: Reason::Unlisted, rule: None };

fn asked(action: &str, target: &str, rtype: Rtype, proto: &'static str) -> Event {
    event(Kind::Dns, action, target).with("type", rtype.to_string()).with("proto", proto)
}

fn with_all(event: Event, facts: Vec<(&'static str, String)>) -> Event {
    facts.into_iter().fold(event, |event, (key, value)| event.with(key, value))
}

fn reason(error: &NameTableError) -> Reason {
    match error {
        NameTableError::Budget | NameTableError::Full => Reason::NameBudget,
        NameTableError::File(_) => Reason::AuditUnwritable,
    }
}

#[cfg(test)]
mod tests;
