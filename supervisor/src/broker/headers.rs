//! Which header fields go on: all in their order, but what is said to the next hop alone, and credentials (RFC 9110 §7.6.1).

use super::redact::{Patterns, covered};
use super::request::is_credential;
use super::watch::Coding;
use crate::vault::Credential;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use std::rc::Rc;
use terok_policy::provider::{CredentialType, FRAMING, Provider, Sent, Token};
use zeroize::Zeroizing;

/// Fields between two neighbours.
const HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

/// A request's fields as they go upstream, without `Host` and without a credential.
pub(super) fn onward(provider: &Provider, from: &HeaderMap) -> HeaderMap {
    let options = options(from);
    let mut headers = HeaderMap::with_capacity(from.len() + 4);
    for (name, value) in from {
        let text = name.as_str();
        match text {
            // A session is a credential too, and the broker's answers set none.
            "host" | "cookie" | "expect" | "accept-encoding" => {}
            // Compressed frames could not be read along.
            "sec-websocket-extensions" => {}
            "te" if value.as_bytes().eq_ignore_ascii_case(b"trailers") => {
                headers.append(name, value.clone());
            }
            _ if HOP.contains(&text) || options.iter().any(|option| option == text) => {}
            _ if is_credential(name, &provider.token) => {}
            _ => {
                headers.append(name, value.clone());
            }
        }
    }
    if let Some(readable) = readable(from) {
        headers.insert(header::ACCEPT_ENCODING, readable);
    }
    headers
}

/// Puts the real credential in.
pub(crate) fn send(headers: &mut HeaderMap, sent: &Sent, credential: &Credential) -> Result<(), http::Error> {
    let name = HeaderName::try_from(sent.header.as_str())?;
    let login = |user: &str| {
        let plain = Zeroizing::new([user, ":", &credential.secret].concat());
        Zeroizing::new(format!("Basic {}", STANDARD.encode(plain.as_bytes())))
    };
    let value = match sent.prefix.strip_prefix("basic:") {
        Some(user) => login(user),
        None if credential.kind == CredentialType::Basic => login(&credential.user),
        None => Zeroizing::new([&sent.prefix, credential.secret.as_str()].concat()),
    };
    let mut value = HeaderValue::try_from(value.as_str())?;
    value.set_sensitive(true);
    headers.insert(name, value);
    for (name, value) in &sent.headers {
        add(headers, HeaderName::try_from(name.as_str())?, value)?;
    }
    Ok(())
}

/// Beside what the client said of the same.
fn add(headers: &mut HeaderMap, name: HeaderName, value: &str) -> Result<(), http::Error> {
    let there: Vec<String> =
        headers.get_all(&name).iter().map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned()).collect();
    if there.iter().flat_map(|v| v.split(',')).any(|word| word.trim() == value) {
        return Ok(());
    }
    let joined = there.into_iter().chain([value.to_owned()]).collect::<Vec<_>>().join(",");
    headers.insert(name, HeaderValue::try_from(joined)?);
    Ok(())
}

/// An answer's fields as the container gets them.
pub(super) fn back(from: &HeaderMap, patterns: &Rc<Patterns>) -> (HeaderMap, u64) {
    let options = options(from);
    let mut headers = HeaderMap::with_capacity(from.len());
    let mut count = 0;
    for (name, value) in from {
        let text = name.as_str();
        // A session that the service opens for the real credential is not the container's.
        if text == "set-cookie" || HOP.contains(&text) || options.iter().any(|option| option == text) {
            continue;
        }
        let clean =
            covered(patterns, value.as_bytes()).and_then(|clean| HeaderValue::from_bytes(&clean).ok());
        count += u64::from(clean.is_some());
        headers.append(name, clean.unwrap_or_else(|| value.clone()));
    }
    (headers, count)
}

/// Trailers likewise.
pub(super) fn trailers(from: HeaderMap, patterns: &Rc<Patterns>) -> HeaderMap {
    back(&from, patterns).0
}

/// A request's trailers as they go upstream: what is no header field there, is none behind the body (RFC 9110 §6.5.1).
pub(super) fn trailers_onward(shape: &Token, from: HeaderMap) -> HeaderMap {
    let goes = |name: &HeaderName| {
        let name = name.as_str();
        !HOP.contains(&name) && !FRAMING.contains(&name) && name != "cookie" && name != "content-range"
    };
    let kept = from.iter().filter(|(name, _)| goes(name) && !is_credential(name, shape));
    kept.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Whether an answer was sent in no coding but chunks: one beneath would reach the container without a word of it.
pub(super) fn is_read_whole(headers: &HeaderMap) -> bool {
    let codings = headers.get_all(header::TRANSFER_ENCODING);
    codings.iter().all(|value| value.as_bytes().eq_ignore_ascii_case(b"chunked"))
}

/// How the body is coded; an error names a coding that nobody here can read.
pub(super) fn coding(headers: &HeaderMap) -> Result<Option<Coding>, String> {
    let all: Vec<String> = headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .flat_map(|value| {
            String::from_utf8_lossy(value.as_bytes())
                .split(',')
                .map(|w| w.trim().to_ascii_lowercase())
                .collect::<Vec<_>>()
        })
        .filter(|word| !word.is_empty() && word != "identity")
        .collect();
    match all.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => Ok(None),
        ["gzip" | "x-gzip"] => Ok(Some(Coding::Gzip)),
        ["deflate"] => Ok(Some(Coding::Deflate)),
        _ => Err(all.join(", ").chars().take(40).collect()),
    }
}

/// What the client takes, as far as it can be read along; `None` where it says nothing.
fn readable(from: &HeaderMap) -> Option<HeaderValue> {
    let mut said = false;
    let mut kept = Vec::new();
    for value in from.get_all(header::ACCEPT_ENCODING) {
        said = true;
        let Ok(value) = value.to_str() else { continue };
        for word in value.split(',').map(str::trim) {
            let coding = word.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
            if matches!(coding.as_str(), "gzip" | "x-gzip" | "deflate" | "identity") {
                kept.push(word.to_owned());
            }
        }
    }
    if !said {
        return None;
    }
    let value = if kept.is_empty() { "identity".to_owned() } else { kept.join(", ") };
    HeaderValue::try_from(value).ok()
}

/// What `Connection` names.
fn options(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(|word| word.trim().to_ascii_lowercase()).collect()
}
