//! The server name of a TLS client's first flight, read by rustls and compared with the name the connection was made
//! for (E4). Nothing is answered and nothing decrypted; of an Encrypted ClientHello it is the outer name that counts.

use rustls::server::Acceptor;
use rustls::{Error, PeerMisbehaved};
use terok_policy::Name;
use terok_policy::judge::Reason;

/// Hellos with post-quantum keys and many extensions stay below 4 KiB.
pub const LIMIT: usize = 32 * 1024;

/// A ClientHello being received.
#[derive(Default)]
pub struct Hello {
    acceptor: Acceptor,
    seen: Vec<u8>,
}

/// Why a hello is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// For the audit line.
    pub reason: Reason,
    /// The server name asked for, where one was readable.
    pub sni: Option<String>,
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Refusal { reason, sni: None }
    }
}

impl Hello {
    /// Takes the next `bytes` of the client. `Ok(true)`: the hello is complete and names `name`; `Ok(false)`: more is
    /// needed. Not to be called again after anything but `Ok(false)`.
    pub fn feed(&mut self, bytes: &[u8], name: &Name) -> Result<bool, Refusal> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let before = rest;
            match self.acceptor.read_tls(&mut rest) {
                Ok(read) if read > 0 => self.seen.extend_from_slice(before.get(..read).unwrap_or(before)),
                _ => return Err(Reason::BadProtocol.into()),
            }
            match self.acceptor.accept() {
                Ok(Some(accepted)) => {
                    let agreed = agreement(accepted.client_hello().server_name(), name)?;
                    return match names_one(&self.seen) {
                        Some(true) => Ok(agreed),
                        _ => Err(Reason::SniMismatch.into()),
                    };
                }
                Ok(None) if self.seen.len() > LIMIT => return Err(Reason::TooLarge.into()),
                Ok(None) => {}
                Err((error, _)) => return Err(reason(&error).into()),
            }
        }
        Ok(false)
    }
}

fn agreement(sni: Option<&str>, name: &Name) -> Result<bool, Refusal> {
    let Some(sni) = sni else { return Err(Reason::SniMissing.into()) };
    match Name::parse(sni) {
        Ok(asked) if asked == *name => Ok(true),
        _ => Err(Refusal { reason: Reason::SniMismatch, sni: Some(sni.to_owned()) }),
    }
}

/// Whether the hello in `records` has one server name and nothing beside it. rustls reads no further than an entry of a
/// type it does not know (RFC 6066 §3); servers that do would find another name there.
fn names_one(records: &[u8]) -> Option<bool> {
    let message = message(records)?;
    // Type and length, version and random; then session id, cipher suites, compression methods, extensions.
    let rest = message.get(4 + 2 + 32..)?;
    let (_, rest) = prefixed::<1>(rest)?;
    let (_, rest) = prefixed::<2>(rest)?;
    let (_, rest) = prefixed::<1>(rest)?;
    let (mut extensions, _) = prefixed::<2>(rest)?;
    let mut names = 0;
    while let Some((kind, rest)) = extensions.split_first_chunk::<2>() {
        let (extension, rest) = prefixed::<2>(rest)?;
        extensions = rest;
        if *kind == [0, 0] {
            let (list, after) = prefixed::<2>(extension)?;
            let (host_name, entry) = list.split_first()?;
            let (_, further) = prefixed::<2>(entry)?;
            if *host_name != 0 || !further.is_empty() || !after.is_empty() {
                return Some(false);
            }
            names += 1;
        }
    }
    Some(names == 1)
}

/// The handshake message that `records` begin with, which is whole.
fn message(records: &[u8]) -> Option<Vec<u8>> {
    let (mut rest, mut message) = (records, Vec::new());
    loop {
        let (part, after) = prefixed::<2>(rest.get(3..)?)?;
        message.extend_from_slice(part);
        rest = after;
        if let [_, high, middle, low, ..] = message[..] {
            let whole = 4 + u32::from_be_bytes([0, high, middle, low]) as usize;
            if message.len() >= whole {
                message.truncate(whole);
                return Some(message);
            }
        }
    }
}

/// What a length of `N` octets announces, and what follows.
fn prefixed<const N: usize>(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<N>()?;
    rest.split_at_checked(length.iter().fold(0, |length, octet| length << 8 | usize::from(*octet)))
}

fn reason(error: &Error) -> Reason {
    match error {
        Error::PeerMisbehaved(PeerMisbehaved::ServerNameMustContainOneHostName) => Reason::SniMismatch,
        _ => Reason::BadProtocol,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A ClientHello record with these extensions beside the usual ones, in records of at most `record` bytes.
    pub(crate) fn client_hello(sni: Option<&str>, record: usize) -> Vec<u8> {
        hello_with(sni.map(|sni| server_names(&[(0, sni)])).unwrap_or_default(), record)
    }

    /// A server_name extension with these entries.
    fn server_names(entries: &[(u8, &str)]) -> Vec<u8> {
        let entry = |(kind, name): &(u8, &str)| [&[*kind][..], &prefixed2(name.as_bytes())].concat();
        let list: Vec<u8> = entries.iter().flat_map(entry).collect();
        [&[0, 0][..], &prefixed2(&prefixed2(&list))].concat()
    }

    fn hello_with(mut extensions: Vec<u8>, record: usize) -> Vec<u8> {
        let schemes = prefixed2(&[0x04, 0x03, 0x08, 0x04]);
        extensions.extend([&[0, 13][..], &prefixed2(&schemes)].concat());
        extensions.extend([&[0, 43][..], &prefixed2(&[2, 3, 4])].concat());
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.push(0);
        body.extend(prefixed2(&[0x13, 0x01]));
        body.extend([1, 0]);
        body.extend(prefixed2(&extensions));
        let mut message = vec![1, 0];
        message.extend(prefixed2(&body));
        message.chunks(record).flat_map(|part| [&[0x16, 3, 1][..], &prefixed2(part)].concat()).collect()
    }

    fn prefixed2(bytes: &[u8]) -> Vec<u8> {
        [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
    }

    fn name() -> Name {
        "api.example.com".parse().unwrap()
    }

    fn whole(hello: &[u8]) -> Result<bool, Reason> {
        Hello::default().feed(hello, &name()).map_err(|r| r.reason)
    }

    #[test]
    fn the_name_is_compared_in_canonical_form() {
        for sni in ["api.example.com", "API.Example.COM", "api.example.com."] {
            assert_eq!(whole(&client_hello(Some(sni), 9999)), Ok(true), "{sni}");
        }
    }

    #[test]
    fn another_server_name_is_refused_and_reported() {
        let refusal = Hello::default().feed(&client_hello(Some("evil.example"), 9999), &name()).unwrap_err();
        assert_eq!(refusal, Refusal { reason: Reason::SniMismatch, sni: Some("evil.example".into()) });
        for sni in ["example.com", "x.api.example.com", "api.example.com.evil.example", "api.example.com\0.b"]
        {
            assert_eq!(whole(&client_hello(Some(sni), 9999)), Err(Reason::SniMismatch), "{sni}");
        }
    }

    #[test]
    fn no_server_name_and_an_address_as_server_name_are_refused() {
        assert_eq!(whole(&client_hello(None, 9999)), Err(Reason::SniMissing));
        assert_eq!(whole(&client_hello(Some("192.0.2.1"), 9999)), Err(Reason::SniMissing));
    }

    #[test]
    fn a_hello_that_arrives_byte_by_byte_in_small_records_is_read() {
        for record in [1, 3, 50, 9999] {
            for (sni, want) in [("api.example.com", Ok(true)), ("evil.example", Err(Reason::SniMismatch))] {
                let bytes = client_hello(Some(sni), record);
                let mut hello = Hello::default();
                let (last, first) = bytes.split_last().unwrap();
                for byte in first {
                    assert_eq!(hello.feed(&[*byte], &name()), Ok(false));
                }
                assert_eq!(hello.feed(&[*last], &name()).map_err(|r| r.reason), want);
            }
        }
    }

    #[test]
    fn a_hello_that_names_several_servers_in_any_way_is_refused() {
        let (good, evil) = ((0, "api.example.com"), (0, "evil.example"));
        let mut hidden = server_names(&[good]);
        hidden.extend(b"\0\0\0\0");
        for extensions in [
            server_names(&[good, evil]),
            server_names(&[(1, "evil.example"), good]),
            server_names(&[good, (1, "x"), evil]),
            server_names(&[good, (1, "evil.example")]),
            [server_names(&[good]), server_names(&[evil])].concat(),
            [server_names(&[evil]), server_names(&[good])].concat(),
            hidden,
        ] {
            assert!(whole(&hello_with(extensions.clone(), 9999)).is_err(), "{extensions:?}");
        }
    }

    #[test]
    fn what_follows_the_hello_does_not_matter() {
        let mut bytes = client_hello(Some("api.example.com"), 9999);
        bytes.extend([0x14, 3, 3, 0, 1, 1, 0x17, 3, 3, 0, 4, 1, 2, 3, 4]);
        assert_eq!(whole(&bytes), Ok(true));
    }

    #[test]
    fn garbage_is_no_hello() {
        assert_eq!(whole(b"\x16\x03\x01\x00\x05hello"), Err(Reason::BadProtocol));
        assert_eq!(whole(&[0x16, 3, 1, 0xff, 0xff, 1, 2, 3]), Err(Reason::BadProtocol));
        assert_eq!(whole(b"\x16\x03\x01\x00\x04\x02\x00\x00\x00"), Err(Reason::BadProtocol));
    }

    #[test]
    fn an_endless_hello_is_refused() {
        let mut hello = Hello::default();
        let mut message = vec![1, 0, 0xff, 0xf0];
        message.extend(vec![0; 60_000]);
        let stream: Vec<u8> =
            message.chunks(1000).flat_map(|part| [&[0x16, 3, 1][..], &prefixed2(part)].concat()).collect();
        let end = stream.chunks(999).find_map(|part| hello.feed(part, &name()).err());
        assert_eq!(end.map(|r| r.reason), Some(Reason::TooLarge));
    }
}
