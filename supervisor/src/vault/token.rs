//! The words of a renewal (RFC 6749 §6): the request's body, and what the answer grants. Nothing of either is ever shown but an error code.

use serde::Deserialize;
use terok_policy::provider::{OAuth, OAuthFormat};
use zeroize::Zeroizing;

/// The longest token that is taken.
const TOKEN: usize = 32 << 10;

/// What the service gave.
#[derive(PartialEq, Eq)]
pub(super) struct Grant {
    /// The new access token.
    pub(super) access: Zeroizing<String>,
    /// Another refresh token, where it rotates.
    pub(super) refresh: Option<Zeroizing<String>>,
    /// Seconds from now.
    pub(super) lasts: Option<u64>,
}

/// What it answered instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Rejected {
    /// An error of RFC 6749 §5.2.
    #[error("the service says {1} ({0})")]
    Error(u16, String),
    /// Another status.
    #[error("the service answers with status {0}")]
    Status(u16),
    /// Success, but nothing that can be used.
    #[error("the service's answer holds no token")]
    Nothing,
}

#[derive(Deserialize)]
struct Answer {
    access_token: Zeroizing<String>,
    #[serde(default)]
    refresh_token: Option<Zeroizing<String>>,
    #[serde(default)]
    expires_in: Option<Lasts>,
}

/// A number, which some services write as a text or with a fraction.
#[derive(Deserialize)]
#[serde(untagged)]
enum Lasts {
    Whole(u64),
    Fraction(f64),
    Text(String),
}

#[derive(Deserialize)]
struct Failure {
    error: String,
}

impl Grant {
    /// Reads an answer.
    pub(super) fn read(status: u16, body: &[u8]) -> Result<Self, Rejected> {
        if status != 200 {
            let code = serde_json::from_slice::<Failure>(body).ok().map(|failure| failure.error);
            // A code of the RFC's, not whatever a service writes there: it might be the token.
            let plain = code
                .filter(|code| code.len() <= 40 && code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
            return Err(plain.map_or(Rejected::Status(status), |code| Rejected::Error(status, code)));
        }
        let answer: Answer = serde_json::from_slice(body).map_err(|_| Rejected::Nothing)?;
        let usable = |token: &str| {
            !token.is_empty() && token.len() <= TOKEN && token.bytes().all(|b| b.is_ascii_graphic())
        };
        let refresh = answer.refresh_token.filter(|token| !token.is_empty());
        if !usable(&answer.access_token) || !refresh.as_ref().is_none_or(|token| usable(token)) {
            return Err(Rejected::Nothing);
        }
        let lasts = answer.expires_in.and_then(|lasts| match lasts {
            Lasts::Whole(seconds) => Some(seconds),
            Lasts::Fraction(seconds) => (seconds >= 0.0).then_some(seconds as u64),
            Lasts::Text(text) => text.parse().ok(),
        });
        // No time at all is how some say that it has no end; taken at its word, each request would renew it.
        let lasts = lasts.filter(|seconds| *seconds > 0);
        Ok(Grant { access: answer.access_token, refresh, lasts })
    }
}

/// The body of a request, and its type.
pub(super) fn request(oauth: &OAuth, refresh: &str) -> (&'static str, Zeroizing<Vec<u8>>) {
    let fields =
        [("grant_type", "refresh_token"), ("refresh_token", refresh), ("client_id", &oauth.client_id)];
    let fields = fields.iter().filter(|(_, value)| !value.is_empty());
    // Room for all of it, escaped, so that no shorter copy stays in memory.
    let mut body = Zeroizing::new(Vec::with_capacity(256 + 6 * (refresh.len() + oauth.client_id.len())));
    match oauth.format {
        OAuthFormat::Form => {
            for (number, (name, value)) in fields.enumerate() {
                if number > 0 {
                    body.push(b'&');
                }
                body.extend_from_slice(name.as_bytes());
                body.push(b'=');
                escape(value, &mut body);
            }
            ("application/x-www-form-urlencoded", body)
        }
        OAuthFormat::Json => {
            let fields: std::collections::BTreeMap<_, _> = fields.copied().collect();
            // Texts are always JSON.
            let _ = serde_json::to_writer(&mut *body, &fields);
            ("application/json", body)
        }
    }
}

/// As in <https://url.spec.whatwg.org/#application/x-www-form-urlencoded>.
fn escape(text: &str, into: &mut Vec<u8>) {
    for &octet in text.as_bytes() {
        match octet {
            b' ' => into.push(b'+'),
            b'*' | b'-' | b'.' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => into.push(octet),
            _ => {
                let digit = |value: u8| b"0123456789ABCDEF"[usize::from(value)];
                into.extend([b'%', digit(octet >> 4), digit(octet & 15)]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(body: &str) -> Result<(String, Option<String>, Option<u64>), Rejected> {
        let Grant { access, refresh, lasts } = Grant::read(200, body.as_bytes())?;
        Ok((access.to_string(), refresh.map(|token| token.to_string()), lasts))
    }

    #[test]
    fn a_request_is_written_as_the_service_wants_it() {
        let mut oauth = OAuth {
            token_url: "https://auth.example/token".into(),
            client_id: "app 1".into(),
            format: OAuthFormat::Form,
            import: None,
        };
        let (kind, body) = request(&oauth, "r&=%+/é");
        assert_eq!(kind, "application/x-www-form-urlencoded");
        let form = "grant_type=refresh_token&refresh_token=r%26%3D%25%2B%2F%C3%A9&client_id=app+1";
        assert_eq!(std::str::from_utf8(&body).unwrap(), form);
        oauth.format = OAuthFormat::Json;
        let (kind, body) = request(&oauth, "r\"1");
        assert_eq!(kind, "application/json");
        let read: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let wanted = serde_json::json!({ "grant_type": "refresh_token", "refresh_token": "r\"1", "client_id": "app 1" });
        assert_eq!(read, wanted);
    }

    #[test]
    fn an_answer_grants_tokens_and_their_time() {
        let whole = r#"{"access_token":"a1","refresh_token":"r2","expires_in":3600,"token_type":"Bearer","scope":"x"}"#;
        assert_eq!(grant(whole), Ok(("a1".into(), Some("r2".into()), Some(3600))));
        assert_eq!(grant(r#"{"access_token":"a1"}"#), Ok(("a1".into(), None, None)));
        assert_eq!(grant(r#"{"access_token":"a1","expires_in":"60"}"#), Ok(("a1".into(), None, Some(60))));
        assert_eq!(grant(r#"{"access_token":"a1","expires_in":59.9}"#), Ok(("a1".into(), None, Some(59))));
        for nothing in ["0", "-1", "-3600.5", "\"0\"", "\"soon\""] {
            let body = format!(r#"{{"access_token":"a1","expires_in":{nothing}}}"#);
            assert_eq!(grant(&body), Ok(("a1".into(), None, None)), "{nothing}");
        }
        assert_eq!(grant(r#"{"access_token":"a1","refresh_token":""}"#), Ok(("a1".into(), None, None)));
    }

    #[test]
    fn what_grants_nothing_is_rejected_and_never_cited() {
        for body in [
            "",
            "{}",
            "<html>",
            r#"{"access_token":""}"#,
            r#"{"access_token":"a\r\nX: 1"}"#,
            r#"{"access_token":7}"#,
        ] {
            assert_eq!(grant(body), Err(Rejected::Nothing), "{body}");
        }
        let long = format!(r#"{{"access_token":"{}"}}"#, "a".repeat(TOKEN + 1));
        assert_eq!(grant(&long), Err(Rejected::Nothing));
        let read = |status, body: &str| Grant::read(status, body.as_bytes()).err().unwrap();
        assert_eq!(
            read(400, r#"{"error":"invalid_grant","error_description":"rt-secret"}"#).to_string(),
            "the service says invalid_grant (400)"
        );
        assert_eq!(read(400, r#"{"error":"rt-Secret-1"}"#), Rejected::Status(400));
        assert_eq!(read(503, "down"), Rejected::Status(503));
        // A redirect is no grant, whatever its body says.
        assert_eq!(read(302, r#"{"access_token":"a1"}"#), Rejected::Status(302));
    }
}
