//! What a client's bytes must prove before they are forwarded (E4), without I/O: TLS names the right server, HTTP/1 the
//! right host on every request; on a web port nothing else passes but SSH.

use super::hello::{self, Hello};
use super::http::{self, Requests};
use super::retry::{self, Next, Records};
use super::sniff::{self, Protocol};
use terok_policy::Name;
use terok_policy::judge::Reason;

/// The client's side of a connection to a name.
pub struct Gate {
    name: Name,
    port: u16,
    /// Nothing but SSH may pass: what is spoken over TLS and HTTP to this name is the broker's.
    ssh_alone: bool,
    state: State,
    /// Received and not judged.
    held: Vec<u8>,
}

enum State {
    Sniffing,
    Hello(Box<Hello>),
    /// The first hello has passed, and a second could follow.
    Records(Records),
    SecondHello(Box<Hello>),
    Http(Box<Requests>),
    Open(Protocol),
}

/// Why a client's bytes are refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// TLS, or bytes of no known protocol.
    Bytes(hello::Refusal),
    /// An HTTP request.
    Request(http::Refusal),
}

impl Gate {
    /// For a connection to `name` on `port`.
    pub fn new(name: Name, port: u16) -> Self {
        Gate { name, port, ssh_alone: false, state: State::Sniffing, held: Vec::new() }
    }

    /// For a connection to a brokered host past its broker: SSH, as git has it, and nothing else (V3).
    pub fn for_ssh_alone(name: Name, port: u16) -> Self {
        Gate { ssh_alone: true, ..Gate::new(name, port) }
    }

    /// Takes the client's next bytes and appends to `out` what may be forwarded. Returns how many bytes were taken: all,
    /// unless a request to change the protocol awaits its answer ([`Gate::upgrading`]).
    pub fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, Refusal> {
        if matches!(self.state, State::Sniffing) {
            self.held.extend_from_slice(input);
            let Some(protocol) = sniff::protocol(&self.held) else { return Ok(input.len()) };
            self.state = match protocol {
                Protocol::Tls | Protocol::Http | Protocol::Opaque if self.ssh_alone => {
                    let what =
                        "a brokered host is spoken to over TLS on port 443; on other ports only SSH passes";
                    return Err(Refusal::Request(http::Refusal::bad(what)));
                }
                Protocol::Tls => State::Hello(Box::default()),
                Protocol::Http => State::Http(Box::new(Requests::new(self.name.clone(), self.port))),
                Protocol::Opaque if is_web(self.port) => {
                    return Err(Refusal::Bytes(Reason::BadProtocol.into()));
                }
                Protocol::Ssh | Protocol::Opaque => State::Open(protocol),
            };
            let held = std::mem::take(&mut self.held);
            let taken = self.judge(&held, out)?;
            // What was held before is taken in any case; only the end of `input` can be left.
            return Ok(input.len().saturating_sub(held.len() - taken));
        }
        self.judge(input, out)
    }

    fn judge(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, Refusal> {
        match &mut self.state {
            State::Sniffing => {}
            State::Open(_) => out.extend_from_slice(input),
            State::Http(requests) => return requests.feed(input, out).map_err(Refusal::Request),
            State::Hello(hello) => {
                self.held.extend_from_slice(input);
                if hello.feed(input, &self.name).map_err(Refusal::Bytes)? {
                    let mut passed = std::mem::take(&mut self.held);
                    let end =
                        retry::end_of_hello(&passed).ok_or(Refusal::Bytes(Reason::BadProtocol.into()))?;
                    let after = passed.split_off(end);
                    out.append(&mut passed);
                    self.state = State::Records(Records::default());
                    self.judge(&after, out)?;
                }
            }
            State::Records(records) => {
                match records.feed(input, out).map_err(|reason| Refusal::Bytes(reason.into()))? {
                    Next::Records => {}
                    Next::Hello(bytes) => {
                        self.state = State::SecondHello(Box::default());
                        self.judge(&bytes, out)?;
                    }
                    Next::Open(bytes) => {
                        out.extend_from_slice(&bytes);
                        self.state = State::Open(Protocol::Tls);
                    }
                }
            }
            State::SecondHello(hello) => {
                self.held.extend_from_slice(input);
                if hello.feed(input, &self.name).map_err(Refusal::Bytes)? {
                    out.append(&mut self.held);
                    self.held = Vec::new();
                    self.state = State::Open(Protocol::Tls);
                }
            }
        }
        Ok(input.len())
    }

    /// Everything that follows passes unread.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }

    /// Bytes are held back that are not judged yet.
    pub fn is_holding(&self) -> bool {
        match &self.state {
            State::Http(requests) => requests.in_head(),
            State::Records(records) => records.is_holding(),
            _ => !self.held.is_empty(),
        }
    }

    /// See [`Requests::upgrading`].
    pub fn upgrading(&self) -> bool {
        matches!(&self.state, State::Http(requests) if requests.upgrading())
    }

    /// The server's answer to a request to change the protocol.
    pub fn answered(&mut self, answer: http::Answer) {
        if let State::Http(requests) = &mut self.state {
            match answer {
                http::Answer::Switched => self.state = State::Open(Protocol::Http),
                http::Answer::Stayed => requests.stay(),
            }
        }
    }

    /// The protocol, for the audit line; `None` while it is unknown.
    pub fn protocol(&self) -> Option<&'static str> {
        match &self.state {
            State::Sniffing | State::Open(Protocol::Opaque) => None,
            State::Hello(_) | State::Records(_) | State::SecondHello(_) | State::Open(Protocol::Tls) => {
                Some("tls")
            }
            State::Http(_) | State::Open(Protocol::Http) => Some("http"),
            State::Open(Protocol::Ssh) => Some("ssh"),
        }
    }
}

/// Ports where the client speaks first and says whom it means: nothing is dialled before.
pub fn is_web(port: u16) -> bool {
    matches!(port, 80 | 443)
}

#[cfg(test)]
mod tests {
    use super::super::hello::tests::client_hello;
    use super::*;

    fn through(port: u16, input: &[u8], step: usize) -> Result<(Vec<u8>, Gate), Refusal> {
        let mut gate = Gate::new("api.example.com".parse().unwrap(), port);
        let mut out = Vec::new();
        for piece in input.chunks(step) {
            assert_eq!(gate.feed(piece, &mut out)?, piece.len());
        }
        Ok((out, gate))
    }

    #[test]
    fn tls_to_the_name_opens_the_gate_on_any_port() {
        let mut bytes = client_hello(Some("api.example.com"), 9999);
        bytes.extend(b"\x14\x03\x03\x00\x01\x01");
        for (port, step) in [(443, 1), (443, 9999), (80, 5), (8443, 1), (8443, 9999)] {
            let (out, gate) = through(port, &bytes, step).unwrap();
            assert_eq!(out, bytes);
            assert!(!gate.is_holding());
            assert_eq!(gate.protocol(), Some("tls"));
        }
    }

    #[test]
    fn past_the_broker_ssh_alone_reaches_its_host() {
        let hello = client_hello(Some("api.example.com"), 9999);
        for (bytes, passes) in [
            (&b"SSH-2.0-OpenSSH_9.2p1\r\n"[..], true),
            (&hello, false),
            (b"GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n", false),
            (b"\r\nGET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n", false),
            (b"\x00\x01\x02\x03", false),
        ] {
            for step in [1, 9999] {
                let mut gate = Gate::for_ssh_alone("api.example.com".parse().unwrap(), 8443);
                let mut out = Vec::new();
                let fed = bytes.chunks(step).try_for_each(|piece| gate.feed(piece, &mut out).map(|_| ()));
                assert_eq!((fed.is_ok(), out == bytes), (passes, passes), "{bytes:?} {step}");
                assert!(passes || out.is_empty());
            }
        }
    }

    #[test]
    fn a_second_hello_must_name_the_server_too() {
        let first = client_hello(Some("api.example.com"), 9999);
        let spec = b"\x14\x03\x03\x00\x01\x01";
        let early = [&b"\x17\x03\x03\x40\x00"[..], &[9; 0x4000]].concat();
        for between in [&b""[..], spec, &early, &[spec, &early[..], b"\x15\x03\x03\x00\x02\x01\x5a"].concat()]
        {
            for (sni, passes) in [("api.example.com", true), ("evil.example", false)] {
                for (record, step) in [(9999, 9999), (9999, 1), (100, 7)] {
                    let second = client_hello(Some(sni), record);
                    let end = b"\x17\x03\x03\x00\x04abcd";
                    let bytes = [&first, between, &second, &end[..]].concat();
                    match through(443, &bytes, step) {
                        Ok((out, gate)) => assert!(passes && out == bytes && gate.is_open(), "{sni} {step}"),
                        Err(Refusal::Bytes(r)) => {
                            assert!(!passes && r.reason == Reason::SniMismatch, "{r:?}")
                        }
                        Err(other) => panic!("{other:?}"),
                    }
                }
            }
            // In splinters too small to tell what they are, nobody sends one.
            let bytes = [&first, between, &client_hello(Some("evil.example"), 3)].concat();
            assert!(
                matches!(through(443, &bytes, 1), Err(Refusal::Bytes(r)) if r.reason == Reason::BadProtocol)
            );
        }
        // Not at the end of its record, so that a second one could begin in it.
        let mut joined = first.clone();
        joined[4] += 1;
        joined.push(1);
        assert!(
            matches!(through(443, &joined, 9999), Err(Refusal::Bytes(r)) if r.reason == Reason::BadProtocol)
        );
    }

    #[test]
    fn tls_opens_where_no_second_hello_can_come() {
        let first = client_hello(Some("api.example.com"), 9999);
        // TLS 1.2: a key exchange; or a resumed session's Finished, encrypted, after the change of cipher.
        let key_exchange = b"\x16\x03\x03\x00\x25\x10\x00\x00\x21\x20\x01";
        let finished = b"\x14\x03\x03\x00\x01\x01\x16\x03\x03\x00\x28\x01\x02\x03\x04\x05\x06\x07";
        for after in [&key_exchange[..], finished] {
            for step in [1, 9999] {
                let bytes = [&first, after].concat();
                let (out, gate) = through(443, &bytes, step).unwrap();
                assert!(out == bytes && gate.is_open());
            }
        }
        let upload = [&b"\x17\x03\x03\x40\x00"[..], &[9; 0x4000]].concat().repeat(6);
        let bytes = [first, upload].concat();
        let (out, gate) = through(443, &bytes, 999).unwrap();
        assert!(out == bytes && gate.is_open());
    }

    #[test]
    fn tls_and_http_to_another_name_are_refused_on_any_port() {
        let hello = client_hello(Some("evil.example"), 9999);
        let request = b"\r\nGET / HTTP/1.1\r\nHost: evil.example\r\n\r\n";
        for port in [80, 443, 22, 8080] {
            for step in [1, 9999] {
                assert!(matches!(through(port, &hello, step), Err(Refusal::Bytes(_))));
                assert!(matches!(through(port, request, step), Err(Refusal::Request(_))));
                assert!(matches!(through(port, &request[2..], step), Err(Refusal::Request(_))));
            }
        }
    }

    #[test]
    fn nothing_is_forwarded_before_it_is_judged() {
        let mut gate = Gate::new("api.example.com".parse().unwrap(), 443);
        let mut out = Vec::new();
        let hello = client_hello(Some("api.example.com"), 9999);
        gate.feed(&hello[..hello.len() - 1], &mut out).unwrap();
        assert!(out.is_empty() && gate.is_holding());
    }

    #[test]
    fn another_protocol_passes_except_on_a_web_port() {
        let smtp = b"EHLO client.example\r\n";
        assert!(
            matches!(through(443, smtp, 9999), Err(Refusal::Bytes(r)) if r.reason == Reason::BadProtocol)
        );
        let (out, gate) = through(25, smtp, 3).unwrap();
        assert!(out == smtp && gate.is_open());
        let (out, gate) = through(443, b"SSH-2.0-x\r\n", 1).unwrap();
        assert!(out == b"SSH-2.0-x\r\n" && gate.is_open());
    }

    #[test]
    fn bytes_after_a_websocket_request_wait_even_when_they_come_with_it() {
        let request =
            b"GET / HTTP/1.1\r\nHost: api.example.com\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
        let mut gate = Gate::new("api.example.com".parse().unwrap(), 443);
        let mut out = Vec::new();
        assert_eq!(gate.feed(&request[..5], &mut out), Ok(5));
        let rest = [&request[5..], b"frames"].concat();
        assert_eq!(gate.feed(&rest, &mut out), Ok(rest.len() - 6));
        assert!(gate.upgrading());
        gate.answered(http::Answer::Switched);
        assert!(gate.is_open());
    }
}
