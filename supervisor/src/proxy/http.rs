//! The requests of one HTTP/1 connection, as a state machine without I/O (RFC 9112): every head is parsed strictly, held
//! to the name the connection was made for (E4) and written anew; bodies pass through by their framing. What two
//! implementations could read in two ways is refused, so that the server sees the requests that were judged.

mod chunked;
mod head;

use chunked::Chunked;
use head::{Asked, Framing, Judged};
use terok_policy::Name;
use terok_policy::judge::Reason;

pub use head::Authority;

/// Largest head of a request or an answer.
pub const HEAD_LIMIT: usize = 64 * 1024;

/// The client's side of one HTTP/1 connection.
pub struct Requests {
    authority: Authority,
    state: State,
    /// The head received so far.
    head: Vec<u8>,
    /// Heads forwarded.
    count: u64,
    served: bool,
}

enum State {
    Head,
    Body(u64),
    Chunked(Chunked),
    Upgrading,
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// For the audit line.
    pub reason: Reason,
    /// What is wrong with the message, for a person.
    pub what: &'static str,
    /// The method, where it was readable.
    pub method: String,
    /// The path without its query, where it was readable.
    pub path: String,
    /// The host asked for, where it was readable.
    pub host: String,
}

impl Refusal {
    fn new(reason: Reason, what: &'static str) -> Self {
        Refusal { reason, what, method: String::new(), path: String::new(), host: String::new() }
    }
    pub(super) fn bad(what: &'static str) -> Self {
        Refusal::new(Reason::BadProtocol, what)
    }
}

impl Requests {
    /// Requests to `name` on `port`.
    pub fn new(name: Name, port: u16) -> Self {
        let authority = Authority { name, port, scheme: "http" };
        Requests { authority, state: State::Head, head: Vec::new(), count: 0, served: false }
    }

    /// Likewise, within TLS.
    pub fn over_tls(name: Name, port: u16) -> Self {
        let mut requests = Self::new(name, port);
        requests.authority.scheme = "https";
        requests
    }

    /// The same for a server in this process, which tells when it has answered each: any of them may ask for WebSocket, and none
    /// has a target that this server could not read.
    pub fn served(self) -> Self {
        Requests { served: true, ..self }
    }

    /// Takes the client's next bytes and appends to `out` what may be forwarded. Returns how many bytes were taken:
    /// all, unless a request to change the protocol awaits its answer ([`Requests::upgrading`]).
    pub fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, Refusal> {
        let mut taken = 0;
        while let Some(rest) = input.get(taken..).filter(|rest| !rest.is_empty()) {
            taken += match &mut self.state {
                State::Upgrading => break,
                State::Head => self.take_head(rest, out)?,
                State::Body(left) => {
                    let part = rest.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    out.extend_from_slice(rest.get(..part).unwrap_or(rest));
                    *left -= part as u64;
                    if *left == 0 {
                        self.state = State::Head;
                    }
                    part
                }
                State::Chunked(chunked) => {
                    let part = chunked.feed(rest, out)?;
                    if chunked.is_done() {
                        self.state = State::Head;
                    }
                    part
                }
            };
        }
        Ok(taken)
    }

    /// A request to change to WebSocket was forwarded: nothing more is taken until [`Requests::stay`], or the connection
    /// carries another protocol.
    pub fn upgrading(&self) -> bool {
        matches!(self.state, State::Upgrading)
    }

    /// The server did not change the protocol: further requests follow.
    pub fn stay(&mut self) {
        if self.upgrading() {
            self.state = State::Head;
        }
    }

    /// Whether a head has begun and is not complete.
    pub fn in_head(&self) -> bool {
        !self.head.is_empty()
    }

    /// Whether a request's body is under way.
    pub fn in_body(&self) -> bool {
        matches!(self.state, State::Body(_) | State::Chunked(_))
    }

    /// How many requests were forwarded.
    pub fn count(&self) -> u64 {
        self.count
    }

    fn take_head(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, Refusal> {
        for (at, &byte) in input.iter().enumerate() {
            let last = self.head.last().copied();
            match (last, byte) {
                (None, b'\r' | b'\n') => return Err(Refusal::bad("a blank line before a request")),
                (Some(b'\r'), b'\n') => {}
                (_, b'\n') | (Some(b'\r'), _) => {
                    return Err(Refusal::bad("a line that does not end with CR LF"));
                }
                _ => {}
            }
            if self.head.len() >= HEAD_LIMIT {
                return Err(Refusal::new(Reason::TooLarge, "a head above 64 KiB"));
            }
            self.head.push(byte);
            if byte == b'\n' && self.head.ends_with(b"\r\n\r\n") {
                let head = std::mem::take(&mut self.head);
                let asked = Asked { first: self.count == 0, served: self.served };
                let Judged { framing, upgrade } = head::judge(&head, &self.authority, asked, out)?;
                self.count += 1;
                self.state = match framing {
                    _ if upgrade => State::Upgrading,
                    Framing::Length(0) => State::Head,
                    Framing::Length(length) => State::Body(length),
                    Framing::Chunked => State::Chunked(Chunked::default()),
                };
                return Ok(at + 1);
            }
        }
        Ok(input.len())
    }
}

/// What a server said to a request to change the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// 101 to WebSocket: from here on the bytes are the new protocol's.
    Switched,
    /// Anything else.
    Stayed,
}

/// Reads the server's `answer` so far; `None` while its final head is incomplete. Interim answers (1xx) are skipped.
pub fn upgrade_answer(answer: &[u8]) -> Option<Answer> {
    let mut rest = answer;
    loop {
        let mut headers = [httparse::EMPTY_HEADER; head::HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        match response.parse(rest) {
            Ok(httparse::Status::Complete(length)) => match response.code {
                Some(101) => {
                    let mut upgrade =
                        response.headers.iter().filter(|h| h.name.eq_ignore_ascii_case("upgrade"));
                    let socket = upgrade.next().is_some_and(|h| h.value.eq_ignore_ascii_case(b"websocket"));
                    return Some(if socket { Answer::Switched } else { Answer::Stayed });
                }
                Some(100..200) => rest = rest.get(length..)?,
                _ => return Some(Answer::Stayed),
            },
            Ok(httparse::Status::Partial) if answer.len() < HEAD_LIMIT => return None,
            _ => return Some(Answer::Stayed),
        }
    }
}

#[cfg(test)]
mod tests;
