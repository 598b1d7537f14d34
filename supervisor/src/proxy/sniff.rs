//! What a client's first bytes are: pure, and the same on every port, so that TLS and HTTP are held to their name (E4)
//! wherever they are spoken.

/// What the first bytes of a connection belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// A TLS handshake record.
    Tls,
    /// Something an HTTP server could read as an HTTP request, well formed or not.
    Http,
    /// An SSH version banner (RFC 4253 §4.2).
    Ssh,
    /// Anything else.
    Opaque,
}

const SSH: &[u8] = b"SSH-2.0-";
/// A first line that begins like a request line and is longer than this is taken for one without waiting for its end.
const LINE: usize = 8 * 1024;
/// No HTTP method is longer.
const METHOD: usize = 64;

/// The protocol that `head`, the first bytes of a client, belongs to; `None` while they could still become several.
pub fn protocol(head: &[u8]) -> Option<Protocol> {
    match head {
        [] | [0x16] => None,
        [0x16, 0x03, ..] => Some(Protocol::Tls),
        _ if head.starts_with(SSH) => Some(Protocol::Ssh),
        _ if SSH.starts_with(head) => None,
        _ => request_line(head),
    }
}

/// Servers skip blank lines before a request and take several blanks for one (RFC 9112 §2.2, §3), so both count here.
fn request_line(head: &[u8]) -> Option<Protocol> {
    let start = head.iter().position(|b| *b != b'\n' && !is_blank(*b))?;
    let head = head.get(start..)?;
    let method = head.iter().take(METHOD).take_while(|b| is_token(**b)).count();
    match head.get(method) {
        None => return None,
        Some(&b) if method > 0 && is_blank(b) => {}
        _ => return Some(Protocol::Opaque),
    }
    // No server takes a line with a NUL for a request; git's own protocol has one, and no end of line (pack-protocol).
    let Some(end) = head.iter().take(LINE).position(|b| matches!(b, b'\n' | 0)) else {
        return (head.len() >= LINE).then_some(Protocol::Http);
    };
    if head.get(end) == Some(&0) {
        return Some(Protocol::Opaque);
    }
    let version = |w: &[u8]| is_blank(w[0]) && w[1..].eq_ignore_ascii_case(b"HTTP/");
    let named = head.get(..end)?.windows(6).any(version);
    Some(if named { Protocol::Http } else { Protocol::Opaque })
}

/// What RFC 9112 §3 lets a server take for a space.
fn is_blank(b: u8) -> bool {
    b" \t\x0b\x0c\r".contains(&b)
}

/// `tchar` of RFC 9110 §5.6.2.
pub(super) fn is_token(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_protocol_is_recognised_by_its_first_bytes() {
        assert_eq!(protocol(b"\x16\x03\x01\x02\x00\x01"), Some(Protocol::Tls));
        assert_eq!(protocol(b"GET / HTTP/1.1\r\n"), Some(Protocol::Http));
        assert_eq!(protocol(b"SSH-2.0-OpenSSH_9.2p1\r\n"), Some(Protocol::Ssh));
        for opaque in [
            &b"\x00\x00\x00\x08\x04\xd2\x16\x2f"[..],
            b"EHLO client.example\r\n",
            b"*1\r\n$4\r\nPING\r\n",
            b"<?xml version='1.0'?>",
            b"AMQP\x00\x00\x09\x01",
            b"0032git-upload-pack /a.git\0host=b\0",
        ] {
            assert_eq!(protocol(opaque), Some(Protocol::Opaque), "{opaque:?}");
        }
    }

    #[test]
    fn a_beginning_that_could_become_several_protocols_waits() {
        for head in [&b""[..], b"\x16", b"S", b"SSH-2.0", b"GET", b"GET /index", b"\r\n", b"GET / HTTP/1.1\r"]
        {
            assert_eq!(protocol(head), None, "{head:?}");
        }
    }

    #[test]
    fn what_a_lenient_server_reads_as_a_request_counts_as_one() {
        for head in [
            &b"\r\n\r\nGET / HTTP/1.1\r\n"[..],
            b"\nGET / HTTP/1.1\n",
            b"GET  \t /  HTTP/1.1\r\n",
            b"get / http/1.1\n",
            b" GET / HTTP/1.1\r\n",
            b"\x0bGET\x0b/\x0cHTTP/1.1\r\n",
            b"GET\r/\rHTTP/1.1\r\n",
            b"PRI * HTTP/2.0\r\n",
            b"CONNECT a:443 HTTP/1.1\r\n",
        ] {
            assert_eq!(protocol(head), Some(Protocol::Http), "{head:?}");
        }
        let long = [b"GET /".as_slice(), &vec![b'a'; LINE]].concat();
        assert_eq!(protocol(&long), Some(Protocol::Http));
    }

    #[test]
    fn an_endless_first_word_is_no_request() {
        assert_eq!(protocol(&[b'a'; METHOD]), None, "a blank could follow");
        assert_eq!(protocol(&[b'a'; 100]), Some(Protocol::Opaque));
    }
}
