//! What a request carries in a credential's place, judged without I/O: exactly one carrier, exactly this container's token for this provider. On a
//! brokered host any other credential is a way to send data out under somebody else's name, and is refused (V3).

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::HeaderMap;
use http::header::{AUTHORIZATION, HeaderName, SEC_WEBSOCKET_PROTOCOL};
use std::borrow::Cow;
use subtle::ConstantTimeEq as _;
use terok_policy::phantom;
use terok_policy::provider::{Carrier, Token};

/// Headers in which services take credentials; a provider's own carriers come in addition.
const HEADERS: [&str; 41] = [
    "authorization",
    "proxy-authorization",
    "x-api-key",
    "api-key",
    "apikey",
    "x-apikey",
    "x-auth-token",
    "x-auth-key",
    "x-access-token",
    "x-authorization",
    "authentication",
    "private-token",
    "job-token",
    "deploy-token",
    "x-goog-api-key",
    "x-goog-iam-authorization-token",
    "x-amz-security-token",
    "x-github-token",
    "x-vault-token",
    "x-csrf-session",
    "x-nuget-apikey",
    "x-jfrog-art-api",
    "x-api-token",
    "x-client-secret",
    "x-functions-key",
    "ocp-apim-subscription-key",
    "x-subscription-token",
    "x-rapidapi-key",
    "x-consul-token",
    "x-nomad-token",
    "x-redmine-api-key",
    "x-figma-token",
    "x-shopify-access-token",
    "x-buildkite-token",
    "x-gitlab-static-object-token",
    "circle-token",
    "fastly-key",
    "dd-api-key",
    "dd-application-key",
    "cf-access-token",
    "cf-access-client-secret",
];

/// Query parameters likewise, lower case.
const PARAMETERS: [&str; 19] = [
    "api_key",
    "apikey",
    "api-key",
    "x-api-key",
    "access_token",
    "accesstoken",
    "private_token",
    "job_token",
    "oauth_token",
    "auth_token",
    "client_secret",
    "authorization",
    "x-amz-credential",
    "x-goog-credential",
    "api_token",
    "apitoken",
    "subscription-key",
    "feed_token",
    "rss_token",
];

/// What the credentials of a request come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Exactly our token, where it may stand.
    Ours,
    /// None at all.
    Nothing,
    /// One of ours: dead, another container's, another provider's; or this one in a place where the provider takes none, or twice.
    Phantom,
    /// Somebody's own.
    Foreign,
}

/// Judges a request with these headers and this query against `token`, issued in the shape `shape`.
pub fn standing(shape: &Token, token: &str, headers: &HeaderMap, query: &str) -> Standing {
    let mut found = Vec::new();
    for (name, value) in headers {
        if is_credential(name, shape) {
            found.push(in_header(shape, token, name, value.as_bytes()));
        } else if *name == SEC_WEBSOCKET_PROTOCOL {
            found.extend(value.as_bytes().split(|octet| *octet == b',').filter_map(in_subprotocol));
        }
    }
    // Some servers take a semicolon for an ampersand.
    found.extend(query.split(['&', ';']).filter_map(in_query));
    if found.contains(&Standing::Foreign) {
        return Standing::Foreign;
    }
    match found[..] {
        [] => Standing::Nothing,
        [Standing::Ours] => Standing::Ours,
        _ => Standing::Phantom,
    }
}

/// Whether a header is one in which credentials stand: taken out before the real one is put in.
pub fn is_credential(name: &HeaderName, shape: &Token) -> bool {
    let name = spelled(name.as_str());
    let carries = |carrier: &Carrier| matches!(carrier, Carrier::Header(header) if *name == *spelled(header));
    HEADERS.contains(&&*name) || shape.carriers.iter().any(carries)
}

/// A field's name as a server reads it that turns it into a variable: there an underscore is a hyphen.
pub(super) fn spelled(name: &str) -> Cow<'_, str> {
    match name.contains('_') {
        true => Cow::Owned(name.replace('_', "-")),
        false => Cow::Borrowed(name),
    }
}

fn in_header(shape: &Token, token: &str, name: &HeaderName, value: &[u8]) -> Standing {
    let Ok(value) = std::str::from_utf8(value) else { return Standing::Foreign };
    let value = value.trim_matches([' ', '\t']);
    if *name != AUTHORIZATION {
        let here = |carrier: &Carrier| matches!(carrier, Carrier::Header(header) if *name == header.as_str());
        return of_text(token, value, shape.carriers.iter().any(here));
    }
    let (scheme, rest) = value.split_once([' ', '\t']).unwrap_or(("", value));
    let rest = rest.trim_matches([' ', '\t']);
    let takes = |carrier: Carrier| shape.carriers.contains(&carrier);
    match scheme.to_ascii_lowercase().as_str() {
        "bearer" | "token" => of_text(token, rest, takes(Carrier::Bearer)),
        "basic" => match basic(rest) {
            Some((user, password)) => {
                let word = if password.is_empty() || password == "x-oauth-basic" { &user } else { &password };
                of_text(token, word, takes(Carrier::Basic))
            }
            None => Standing::Foreign,
        },
        _ => of_text(token, rest, takes(Carrier::Header("authorization".to_owned()))),
    }
}

fn of_text(token: &str, text: &str, may_stand_here: bool) -> Standing {
    if bool::from(token.as_bytes().ct_eq(text.as_bytes())) && !token.is_empty() {
        return if may_stand_here { Standing::Ours } else { Standing::Phantom };
    }
    // A mark inside something longer does not make a foreign key ours.
    if phantom::is_marked(text) && text.len() <= phantom::MOST {
        Standing::Phantom
    } else {
        Standing::Foreign
    }
}

/// User and password, RFC 7617.
fn basic(coded: &str) -> Option<(String, String)> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let plain = String::from_utf8(LENIENT.decode(coded).ok()?).ok()?;
    let (user, password) = plain.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

/// A parameter that carries a credential. Ours have no place in an address: it ends up in logs.
fn in_query(parameter: &str) -> Option<Standing> {
    let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
    let name = decoded(name).to_ascii_lowercase();
    // `[name]` and `name[]` are `name` to Rack and to PHP.
    let name =
        name.trim_start_matches([' ', '[', ']']).split(['[', ']']).next().unwrap_or_default().trim_end();
    let value = decoded(value);
    // Google's are called `key`, as much else is.
    let named = PARAMETERS.contains(&name) || (name == "key" && value.starts_with("AIza"));
    if phantom::is_marked(&value) {
        return Some(Standing::Phantom);
    }
    (named && !value.is_empty()).then_some(Standing::Foreign)
}

/// A word of a WebSocket's subprotocols, in which browsers send a key where they can send no header.
fn in_subprotocol(word: &[u8]) -> Option<Standing> {
    let word = String::from_utf8_lossy(word).trim().to_ascii_lowercase();
    if phantom::is_marked(&word) {
        return Some(Standing::Phantom);
    }
    let carries = ["api-key", "apikey", "api_key", "bearer", "authorization", "token"];
    carries.iter().any(|sign| word.contains(sign)).then_some(Standing::Foreign)
}

/// Whether a query asks for another method, as frameworks let forms do.
pub(super) fn overrides_method(query: &str) -> bool {
    query.split(['&', ';']).any(|parameter| {
        let name = parameter.split('=').next().unwrap_or_default();
        decoded(name).trim_start_matches([' ', '[']).to_ascii_lowercase().starts_with("_method")
    })
}

/// With percent-encodings and plus signs read, again and again: a server may do so more than once.
fn decoded(text: &str) -> String {
    let mut text = text.replace('+', " ");
    for _ in 0..3 {
        if !text.contains('%') {
            break;
        }
        let (mut out, mut rest) = (Vec::with_capacity(text.len()), text.as_bytes());
        while let [first, behind @ ..] = rest {
            let digits = behind.get(..2).and_then(|pair| std::str::from_utf8(pair).ok());
            let digits = digits.filter(|pair| pair.bytes().all(|b| b.is_ascii_hexdigit()));
            match digits.and_then(|pair| u8::from_str_radix(pair, 16).ok()).filter(|_| *first == b'%') {
                Some(octet) => {
                    out.push(octet);
                    rest = behind.get(2..).unwrap_or_default();
                }
                None => {
                    out.push(*first);
                    rest = behind;
                }
            }
        }
        text = String::from_utf8_lossy(&out).into_owned();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::STANDARD;
    use http::HeaderValue;
    use terok_policy::provider::Alphabet;

    const OURS: &str = "sk-terokABCDEFGHIJKLMNOPQRSTUVWXYZ012345";
    const OTHER: &str = "sk-terokZZZZZZHIJKLMNOPQRSTUVWXYZ0123456";

    fn shape() -> Token {
        Token {
            variables: vec![],
            prefix: "sk-".to_owned(),
            also: vec![],
            suffix: String::new(),
            length: OURS.len(),
            alphabet: Alphabet::Base62,
            carriers: vec![Carrier::Bearer, Carrier::Basic, Carrier::Header("x-own-key".to_owned())],
        }
    }

    fn judged(headers: &[(&'static str, &str)], query: &str) -> Standing {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_str(value).unwrap());
        }
        standing(&shape(), OURS, &map, query)
    }

    fn login(user: &str, password: &str) -> String {
        format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
    }

    #[test]
    fn our_token_stands_wherever_the_provider_takes_one() {
        for value in [
            format!("Bearer {OURS}"),
            format!("bearer   {OURS} "),
            format!("token {OURS}"),
            login("x-access-token", OURS),
            login(OURS, ""),
            login(OURS, "x-oauth-basic"),
        ] {
            assert_eq!(judged(&[("authorization", &value)], "a=b"), Standing::Ours, "{value}");
        }
        assert_eq!(judged(&[("x-own-key", OURS), ("accept", "*/*")], ""), Standing::Ours);
    }

    #[test]
    fn ours_twice_or_in_another_place_is_not_taken() {
        let bearer = format!("Bearer {OURS}");
        assert_eq!(judged(&[("authorization", &bearer), ("authorization", &bearer)], ""), Standing::Phantom);
        assert_eq!(judged(&[("authorization", &bearer), ("x-own-key", OURS)], ""), Standing::Phantom);
        assert_eq!(judged(&[("x-api-key", OURS)], ""), Standing::Phantom);
        assert_eq!(judged(&[], &format!("access_token={OURS}")), Standing::Phantom);
        assert_eq!(judged(&[("authorization", &bearer)], &format!("q={OURS}")), Standing::Phantom);
        assert_eq!(judged(&[("authorization", OURS)], ""), Standing::Phantom);
    }

    #[test]
    fn anothers_phantom_is_known_for_one() {
        assert_eq!(judged(&[("authorization", &format!("Bearer {OTHER}"))], ""), Standing::Phantom);
        assert_eq!(judged(&[("authorization", &login("git", OTHER))], ""), Standing::Phantom);
    }

    #[test]
    fn anybodys_own_key_is_foreign() {
        let bearer = format!("Bearer {OURS}");
        for (name, value) in [
            ("authorization", "Bearer sk-evil"),
            ("authorization", "Digest username=x"),
            ("authorization", "Basic !!!"),
            ("authorization", ""),
            ("x-api-key", "sk-evil"),
            ("private-token", "glpat-evil"),
            ("x-goog-api-key", "AIza"),
            ("proxy-authorization", "Basic eDp5"),
            ("x-nuget-apikey", "glpat-evil"),
            ("x-jfrog-art-api", "evil"),
        ] {
            assert_eq!(judged(&[(name, value)], ""), Standing::Foreign, "{name}: {value}");
            assert_eq!(
                judged(&[("x-own-key", OURS), (name, value)], ""),
                Standing::Foreign,
                "{name}: {value}"
            );
        }
        for query in [
            "access_token=evil",
            "a=1&API_KEY=evil",
            "%61ccess%5ftoken=evil",
            "%2561pi_key=evil",
            "key=AIzaEvil",
            "api_token=evil",
        ] {
            assert_eq!(judged(&[("authorization", &bearer)], query), Standing::Foreign, "{query}");
        }
        assert_eq!(
            judged(&[("authorization", &bearer)], "key=cache-key&token_type=x&api_key="),
            Standing::Ours
        );
    }

    #[test]
    fn a_key_is_found_however_the_server_behind_may_spell_its_place() {
        let bearer = format!("Bearer {OURS}");
        for query in [
            "a=1;private_token=evil",
            "[private_token]=evil",
            "private_token[]=evil",
            "%5Baccess_token%5D=evil",
            "+access_token+=evil",
        ] {
            assert_eq!(judged(&[("authorization", &bearer)], query), Standing::Foreign, "{query}");
        }
        for name in ["x_api_key", "private_token", "x_own_key", "proxy_authorization"] {
            assert_eq!(
                judged(&[("authorization", &bearer), (name, "evil")], ""),
                Standing::Foreign,
                "{name}"
            );
        }
        let words = "realtime, openai-insecure-api-key.sk-evil";
        assert_eq!(
            judged(&[("authorization", &bearer), ("sec-websocket-protocol", words)], ""),
            Standing::Foreign
        );
        let ours = format!("openai-insecure-api-key.{OURS}");
        assert_eq!(judged(&[("sec-websocket-protocol", &ours)], ""), Standing::Phantom);
        let words = "graphql-transport-ws, openai-beta.realtime-v1";
        assert_eq!(
            judged(&[("authorization", &bearer), ("sec-websocket-protocol", words)], "a=1;b=2"),
            Standing::Ours
        );
    }

    #[test]
    fn a_request_without_any_has_nothing() {
        assert_eq!(judged(&[("accept", "text/html")], "page=2"), Standing::Nothing);
    }
}
