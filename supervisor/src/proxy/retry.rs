//! A TLS client's records after its hello, as far as a second hello can still be among them: a server that wants another
//! key share asks for one (HelloRetryRequest, RFC 8446 §4.1.4), and OpenSSL goes by the name in the second. Nothing is
//! decrypted: a second hello is in the clear.

use terok_policy::judge::Reason;

/// Early data (RFC 8446 §4.2.10) may come before the second hello: servers skip 16 KiB of it, and some a little more.
/// Beyond this the handshake is over.
const LIMIT: usize = 64 * 1024;
/// Type, version and length of a record; then type, length and version of a hello.
const RECORD: usize = 5;
const HELLO: usize = 6;
/// OpenSSL reads hellos up to 131 396 octets: the first octet of a length.
const LONGEST: u8 = 2;

const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

/// The records after the first hello.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// The beginning of a record that is not decided yet.
    begun: Vec<u8>,
    /// Octets to come of a record that passes.
    left: usize,
    seen: usize,
}

/// What follows.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// More of the same.
    Records,
    /// A second hello, which begins with these octets.
    Hello(Vec<u8>),
    /// No second hello can come; these octets pass, and all after them.
    Open(Vec<u8>),
}

/// Where the hello that `bytes` begin with ends. It ends with its record: RFC 8446 §5.1.
pub(super) fn end_of_hello(bytes: &[u8]) -> Option<usize> {
    let (mut at, mut length, mut begun) = (0, 0, Vec::new());
    loop {
        let header = bytes.get(at..at + RECORD)?;
        let part = bytes.get(at + RECORD..at + RECORD + record_length(header))?;
        begun.extend(part.iter().take(4 - begun.len()));
        length += part.len();
        at += RECORD + part.len();
        if let [_, high, middle, low] = begun[..] {
            let whole = 4 + u32::from_be_bytes([0, high, middle, low]) as usize;
            if length >= whole {
                return (length == whole).then_some(at);
            }
        }
    }
}

impl Records {
    /// Takes the client's next bytes and appends to `out` what may be forwarded.
    pub(super) fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Next, Reason> {
        let mut rest = input;
        while !rest.is_empty() {
            let passing = self.left.min(rest.len());
            let (now, later) = rest.split_at(passing);
            out.extend_from_slice(now);
            self.left -= passing;
            let Some((&octet, later)) = later.split_first() else { break };
            rest = later;
            self.begun.push(octet);
            if !(CHANGE_CIPHER_SPEC..=APPLICATION_DATA).contains(&self.begun[0]) {
                return Ok(Next::Open(self.with(rest)));
            }
            if self.begun.len() < RECORD {
                continue;
            }
            let (header, payload) = self.begun.split_at(RECORD);
            let length = record_length(header);
            match header[0] {
                CHANGE_CIPHER_SPEC | ALERT | APPLICATION_DATA if self.seen <= LIMIT => {
                    self.seen += RECORD + length;
                    self.left = length;
                    out.append(&mut self.begun);
                }
                HANDSHAKE if payload.len() < length.min(HELLO) => {}
                HANDSHAKE => match payload {
                    [1, 0..=LONGEST, _, _, 3, _] => return Ok(Next::Hello(self.with(rest))),
                    // A hello in splinters, which no client sends.
                    [1, ..] if payload.len() < HELLO => return Err(Reason::BadProtocol),
                    _ => return Ok(Next::Open(self.with(rest))),
                },
                _ => return Ok(Next::Open(self.with(rest))),
            }
        }
        Ok(Next::Records)
    }

    /// Octets are held back.
    pub(super) fn is_holding(&self) -> bool {
        !self.begun.is_empty()
    }

    fn with(&mut self, rest: &[u8]) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.begun);
        bytes.extend_from_slice(rest);
        bytes
    }
}

fn record_length(header: &[u8]) -> usize {
    match header {
        [_, _, _, high, low] => usize::from(u16::from_be_bytes([*high, *low])),
        _ => 0,
    }
}
