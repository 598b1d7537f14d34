//! One request head: parsed, judged, written anew.

use super::Refusal;
use crate::proxy::sniff::is_token;
use std::borrow::Cow;
use terok_policy::Name;
use terok_policy::judge::Reason;

/// Most header fields of a head.
pub(super) const HEADERS: usize = 128;
/// Longest method, path or host that an audit line repeats.
const REPEATED: usize = 200;

/// Whom the requests of a connection must be for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// The host.
    pub name: Name,
    /// The port.
    pub port: u16,
    /// How an absolute target begins.
    pub scheme: &'static str,
}

/// Which request of its connection a head is, and who answers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    /// None went before it.
    pub(super) first: bool,
    /// A server in this process.
    pub(super) served: bool,
}

/// How a body's end is found (RFC 9112 §6.3).
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
}

pub(super) struct Judged {
    pub(super) framing: Framing,
    /// The request asks for WebSocket and was forwarded as such.
    pub(super) upgrade: bool,
}

/// What the fields of a head say about the message, beside what is only carried.
#[derive(Default)]
struct Control<'a> {
    host: Option<&'a [u8]>,
    length: Option<u64>,
    chunked: bool,
    /// The client takes trailers.
    trailers: bool,
    /// Options of `Connection`, lower case.
    options: Vec<String>,
    upgrade: Vec<String>,
}

/// Judges `head` (complete, with its blank line) and appends it to `out` as it is forwarded.
pub(super) fn judge(
    head: &[u8],
    authority: &Authority,
    asked: Asked,
    out: &mut Vec<u8>,
) -> Result<Judged, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Err(httparse::Error::TooManyHeaders) => {
            return Err(Refusal::new(Reason::TooLarge, "more than 128 header fields"));
        }
        _ => return Err(Refusal::bad("a malformed head")),
    }
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(Refusal::bad("a malformed request line"));
    };
    let blame = |mut refusal: Refusal| {
        refusal.method = repeated(method);
        refusal.path = repeated(target.split(['?', '#']).next().unwrap_or_default());
        refusal
    };
    let target = origin_form(method, target, authority).map_err(blame)?;
    if asked.served && target.parse::<http::Uri>().is_err() {
        return Err(blame(Refusal::bad(
            "a request target that is too long or has characters that must be percent-encoded",
        )));
    }
    let control = control(request.headers, version).map_err(blame)?;
    let Some(host) = control.host else {
        return Err(blame(Refusal::new(Reason::HostMismatch, "no Host")));
    };
    let Some(host) = authority.agrees(host) else {
        let mut refusal =
            blame(Refusal::new(Reason::HostMismatch, "a Host other than the name connected to"));
        refusal.host = repeated(&String::from_utf8_lossy(host));
        return Err(refusal);
    };
    let framing =
        if control.chunked { Framing::Chunked } else { Framing::Length(control.length.unwrap_or(0)) };
    // An answer from elsewhere is matched to its request only where it is the connection's first; WebSocket clients make it so.
    let upgrade = (asked.first || asked.served)
        && method == "GET"
        && version == 1
        && framing == Framing::Length(0)
        && control.upgrade == ["websocket"]
        && control.options.iter().any(|o| o == "upgrade");

    out.extend_from_slice(format!("{method} {target} HTTP/1.{version}\r\n").as_bytes());
    for header in request.headers.iter() {
        let name = header.name.to_ascii_lowercase();
        match name.as_str() {
            "host" => write(out, header.name, host.as_bytes()),
            // The server must neither forget a field that was judged nor change to a protocol that is not read here.
            "connection" | "upgrade" | "http2-settings" | "proxy-connection" => {}
            // Trailers pass here: said of this hop, it is true of the next (RFC 9110 §10.1.4).
            "te" if control.trailers => write(out, header.name, header.value),
            _ if control.options.contains(&name) => {}
            _ => write(out, header.name, header.value),
        }
    }
    let kept = |o: &&str| match *o {
        "close" | "keep-alive" => true,
        "upgrade" => upgrade,
        "te" => control.trailers,
        _ => false,
    };
    let options: Vec<&str> = control.options.iter().map(String::as_str).filter(kept).collect();
    if !options.is_empty() {
        write(out, "Connection", options.join(", ").as_bytes());
    }
    if upgrade {
        write(out, "Upgrade", b"websocket");
    }
    out.extend_from_slice(b"\r\n");
    Ok(Judged { framing, upgrade })
}

impl Authority {
    /// The canonical spelling of `host` as the value of a Host field, if it means this authority.
    fn agrees(&self, host: &[u8]) -> Option<String> {
        let host = std::str::from_utf8(host).ok()?;
        let (name, port) = host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
        if Name::parse(name).ok()? != self.name {
            return None;
        }
        match port {
            None | Some("") => Some(self.name.to_string()),
            Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => {
                (port.parse() == Ok(self.port)).then(|| format!("{}:{}", self.name, self.port))
            }
            Some(_) => None,
        }
    }
}

/// The request target as it is forwarded: an absolute form for this authority becomes the origin form (RFC 9112 §3.2.2).
fn origin_form<'a>(method: &str, target: &'a str, authority: &Authority) -> Result<Cow<'a, str>, Refusal> {
    if method.eq_ignore_ascii_case("CONNECT") {
        return Err(Refusal::bad("CONNECT to a server that is reached directly"));
    }
    if method == "PRI" {
        return Err(Refusal::bad("HTTP/2 without TLS"));
    }
    if target.starts_with('/') || (target == "*" && method == "OPTIONS") {
        return Ok(Cow::Borrowed(target));
    }
    let Some((scheme, rest)) = target.split_once("://") else {
        return Err(Refusal::bad("a request target that is no path"));
    };
    if !scheme.eq_ignore_ascii_case(authority.scheme) {
        return Err(Refusal::bad("a request target with another scheme than the connection's"));
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (host, path) = rest.split_at(end);
    if authority.agrees(host.as_bytes()).is_none() {
        let what = "a request target for another host than the name connected to";
        return Err(Refusal { host: repeated(host), ..Refusal::new(Reason::HostMismatch, what) });
    }
    Ok(match (path, method) {
        ("", "OPTIONS") => Cow::Borrowed("*"),
        (path, _) if path.starts_with('/') => Cow::Borrowed(path),
        (path, _) => Cow::Owned(format!("/{path}")),
    })
}

fn control<'a>(headers: &[httparse::Header<'a>], version: u8) -> Result<Control<'a>, Refusal> {
    let mut control = Control::default();
    for header in headers {
        let value = header.value;
        match header.name.to_ascii_lowercase().as_str() {
            "host" => once(&mut control.host, value, "more than one Host")?,
            "content-length" => once(&mut control.length, length(value)?, "more than one Content-Length")?,
            "transfer-encoding" => {
                // Any list or other coding is read differently by different servers; clients send only this.
                if control.chunked || version != 1 || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Refusal::bad("a Transfer-Encoding other than chunked"));
                }
                control.chunked = true;
            }
            "te" => control.trailers = value.eq_ignore_ascii_case(b"trailers"),
            "connection" | "proxy-connection" => control.options.extend(tokens(value)?),
            "upgrade" => control.upgrade.extend(tokens(value)?),
            _ => {}
        }
    }
    if control.chunked && control.length.is_some() {
        return Err(Refusal::bad("Content-Length beside Transfer-Encoding"));
    }
    if control.options.iter().any(|o| is_framing(o)) {
        return Err(Refusal::bad("a Connection option that names a field of routing or framing"));
    }
    Ok(control)
}

fn once<T>(field: &mut Option<T>, value: T, twice: &'static str) -> Result<(), Refusal> {
    match field.replace(value) {
        None => Ok(()),
        Some(_) => Err(Refusal::bad(twice)),
    }
}

/// Fields that decide where a message goes and where it ends; also not allowed in trailers (RFC 9110 §6.5.1).
pub(super) fn is_framing(name: &str) -> bool {
    ["host", "content-length", "transfer-encoding", "connection"].iter().any(|n| name.eq_ignore_ascii_case(n))
}

fn length(value: &[u8]) -> Result<u64, Refusal> {
    std::str::from_utf8(value)
        .ok()
        .filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .ok_or(Refusal::bad("a Content-Length that is no number"))
}

fn tokens(value: &[u8]) -> Result<Vec<String>, Refusal> {
    let text = std::str::from_utf8(value).map_err(|_| Refusal::bad("a malformed list of options"))?;
    text.split(',')
        .map(|token| token.trim_matches([' ', '\t']))
        .filter(|token| !token.is_empty())
        .map(|token| match token.bytes().all(|b| is_token(b) || b == b'/') {
            true => Ok(token.to_ascii_lowercase()),
            false => Err(Refusal::bad("a malformed list of options")),
        })
        .collect()
}

fn write(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// The beginning of `text` for the audit log, without what a terminal takes for an order: JSON leaves C1 as it is.
fn repeated(text: &str) -> String {
    text.chars().take(REPEATED).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
