//! The agent protocol's messages, as far as they are answered (draft-ietf-sshm-ssh-agent, OpenSSH's PROTOCOL.agent). The parser borrows and never
//! panics; what it does not know is [`Request::Other`].

/// The longest message, without its length. OpenSSH's own limit.
pub const LONGEST: usize = 256 << 10;

const FAILURE: u8 = 5;
const SUCCESS: u8 = 6;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;
const EXTENSION: u8 = 27;
const SESSION_BIND: &[u8] = b"session-bind@openssh.com";

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request<'a> {
    /// The public keys.
    List,
    /// A signature.
    Sign {
        /// Public key in wire form.
        key: &'a [u8],
        /// What to sign.
        data: &'a [u8],
        /// Its flags.
        flags: u32,
    },
    /// What a session is bound to: the extension's contents, for [`super::judge::Binding`].
    Bind(&'a [u8]),
    /// Another message by its number, or one that is cut short.
    Other(u8),
}

impl<'a> Request<'a> {
    /// Reads a message without its length.
    pub fn read(message: &'a [u8]) -> Self {
        let Some((&number, mut rest)) = message.split_first() else { return Request::Other(0) };
        let read = match number {
            REQUEST_IDENTITIES if rest.is_empty() => Some(Request::List),
            SIGN_REQUEST => sign(&mut rest),
            EXTENSION => match string(&mut rest) {
                Some(SESSION_BIND) => Some(Request::Bind(rest)),
                _ => None,
            },
            _ => None,
        };
        read.unwrap_or(Request::Other(number))
    }
}

fn sign<'a>(rest: &mut &'a [u8]) -> Option<Request<'a>> {
    let (key, data) = (string(rest)?, string(rest)?);
    let flags = u32::from_be_bytes((*rest).try_into().ok()?);
    Some(Request::Sign { key, data, flags })
}

/// Takes a string (RFC 4251 §5).
pub fn string<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, behind) = rest.split_at_checked(4)?;
    let length = u32::from_be_bytes(length.try_into().ok()?);
    let (text, behind) = behind.split_at_checked(usize::try_from(length).ok()?)?;
    *rest = behind;
    Some(text)
}

/// Takes a byte.
pub fn byte(rest: &mut &[u8]) -> Option<u8> {
    let (&byte, behind) = rest.split_first()?;
    *rest = behind;
    Some(byte)
}

/// No, whatever was asked.
pub fn failure() -> Vec<u8> {
    framed(&[FAILURE])
}

/// Yes, with nothing to tell.
pub fn success() -> Vec<u8> {
    framed(&[SUCCESS])
}

/// The public keys (wire form, comment).
pub fn identities<'a>(keys: impl ExactSizeIterator<Item = (&'a [u8], &'a str)>) -> Vec<u8> {
    let mut message = vec![IDENTITIES_ANSWER];
    message.extend(count(keys.len()));
    for (key, comment) in keys {
        put(&mut message, key);
        put(&mut message, comment.as_bytes());
    }
    framed(&message)
}

/// A signature, wire form.
pub fn signature(signature: &[u8]) -> Vec<u8> {
    let mut message = vec![SIGN_RESPONSE];
    put(&mut message, signature);
    framed(&message)
}

/// Adds a string.
pub(crate) fn put(to: &mut Vec<u8>, text: &[u8]) {
    to.extend(count(text.len()));
    to.extend(text);
}

fn framed(message: &[u8]) -> Vec<u8> {
    let mut framed = Vec::with_capacity(message.len() + 4);
    put(&mut framed, message);
    framed
}

/// Nothing of ours is longer than what came in.
fn count(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sign_request(key: &[u8], data: &[u8], flags: u32) -> Vec<u8> {
        let mut message = vec![SIGN_REQUEST];
        put(&mut message, key);
        put(&mut message, data);
        message.extend(flags.to_be_bytes());
        message
    }

    #[test]
    fn the_messages_that_are_answered_are_read() {
        assert_eq!(Request::read(&[11]), Request::List);
        let message = sign_request(b"key", b"data", 4);
        assert_eq!(Request::read(&message), Request::Sign { key: b"key", data: b"data", flags: 4 });
        let mut message = vec![EXTENSION];
        put(&mut message, SESSION_BIND);
        message.extend(b"rest");
        assert_eq!(Request::read(&message), Request::Bind(b"rest"));
    }

    #[test]
    fn everything_else_is_another_message() {
        let mut query = vec![EXTENSION];
        put(&mut query, b"query");
        let long = [&[11][..], b"x"].concat();
        let longer = [sign_request(b"k", b"d", 0), vec![0]].concat();
        for message in [&[][..], &long, &longer, &query, &[17, 0], &[18], &[19], &[22], &[25], &[27], &[255]]
        {
            assert!(matches!(Request::read(message), Request::Other(_)), "{message:?}");
        }
    }

    #[test]
    fn answers_have_the_form_of_the_protocol() {
        assert_eq!(failure(), [0, 0, 0, 1, 5]);
        assert_eq!(success(), [0, 0, 0, 1, 6]);
        assert_eq!(identities([].into_iter()), [0, 0, 0, 5, 12, 0, 0, 0, 0]);
        assert_eq!(signature(b"s"), [0, 0, 0, 6, 14, 0, 0, 0, 1, b's']);
        let list = identities([(&b"k"[..], "c")].into_iter());
        assert_eq!(list, [0, 0, 0, 15, 12, 0, 0, 0, 1, 0, 0, 0, 1, b'k', 0, 0, 0, 1, b'c']);
    }

    proptest! {
        #[test]
        fn a_request_to_sign_is_read_as_it_was_written(
            key in prop::collection::vec(any::<u8>(), 0..80), data in prop::collection::vec(any::<u8>(), 0..80), flags: u32
        ) {
            let message = sign_request(&key, &data, flags);
            prop_assert_eq!(Request::read(&message), Request::Sign { key: &key, data: &data, flags });
            for end in 0..message.len() {
                prop_assert!(matches!(Request::read(&message[..end]), Request::Other(_)));
            }
        }
    }
}
