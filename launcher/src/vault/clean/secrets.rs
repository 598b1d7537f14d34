//! Which secrets a file of a known form holds. Pure; what is found is compared with phantom tokens and never shown.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use terok_policy::phantom;
use terok_policy::provider::Token;

/// How a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// JSON, or lines `key = value`, `key: value`, with URLs that hold a password.
    Any,
    /// `machine … login … password …` (netrc(5)).
    Netrc,
    /// A secret is the whole file.
    Whole,
    /// A private key where it says so.
    Pem,
    /// A database, or sealed: a secret where it is not empty.
    Opaque,
    /// `host:port:database:user:password` lines.
    Pgpass,
    /// `<password>…</password>`
    Xml,
    /// `NAME=value` lines that are settings as often as secrets.
    Dotenv,
}

/// How keys of services begin that are told by that alone.
const PREFIXES: [&str; 26] = [
    "sk-",
    "sk_live_",
    "rk_live_",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "gldt-",
    "glrt-",
    "AKIA",
    "ASIA",
    "xoxb-",
    "xoxp-",
    "xapp-",
    "npm_",
    "pypi-",
    "hf_",
    "AIza",
    "ya29.",
    "dop_v1_",
    "shpat_",
    "SG.",
    "AGE-SECRET-KEY-",
];

/// How keys begin: of well-known services, and of the providers that are defined.
pub(super) struct Beginnings(Vec<String>);

impl Beginnings {
    pub(super) fn new<'a>(shapes: impl IntoIterator<Item = &'a Token>) -> Self {
        let defined = shapes.into_iter().flat_map(Token::beginnings).filter(|text| text.len() >= 3);
        Beginnings(PREFIXES.into_iter().chain(defined).map(str::to_owned).collect())
    }

    /// Whether `value` is long enough for a key and begins as one.
    fn fit(&self, value: &str) -> bool {
        let value = value.trim_matches(['"', '\'']);
        value.len() >= 16
            && !value.contains(char::is_whitespace)
            && self.0.iter().any(|beginning| value.starts_with(beginning.as_str()))
    }
}

/// Parts of names whose values are secrets.
const NAMES: [&str; 13] = [
    "token",
    "secret",
    "password",
    "passwd",
    "passphrase",
    "apikey",
    "api_key",
    "api-key",
    "access_key",
    "private_key",
    "client-key-data",
    "credential",
    "authorization",
];
/// Whole names, where a part would be too much.
const WHOLE_NAMES: [&str; 6] = ["auth", "_auth", "pass", "key", "cookie", "client_key"];
/// Ends of names whose values say something about a secret.
const ABOUT: [&str; 13] = [
    "_id", "_type", "type", "_uri", "_url", "url", "endpoint", "_file", "_path", "_command", "_expires",
    "expiry", "helper",
];

/// The secrets in `content`.
///
/// # Errors
/// Where it is not of its form, so that it cannot be said what is in it.
pub(super) fn secrets(
    form: Form,
    content: &[u8],
    beginnings: &Beginnings,
) -> Result<Vec<String>, &'static str> {
    if content.iter().all(u8::is_ascii_whitespace) {
        return Ok(Vec::new());
    }
    if form == Form::Opaque {
        return Ok(vec!["sealed".to_owned()]);
    }
    let Ok(text) = std::str::from_utf8(content) else {
        // A key in OpenSSH's or PEM's form is text.
        return if form == Form::Pem { Ok(Vec::new()) } else { Err("it is not text") };
    };
    let mut found = match form {
        Form::Any => match serde_json::from_str(text) {
            Ok(value) => {
                let mut found = Vec::new();
                json(None, &value, beginnings, &mut found);
                found
            }
            Err(_) if text.trim_start().starts_with('{') => {
                return Err("it is not the JSON that it begins as");
            }
            Err(_) => text.lines().flat_map(|text| line(text, beginnings)).collect(),
        },
        Form::Netrc => netrc(text),
        Form::Whole => vec![text.trim().to_owned()],
        Form::Pem => {
            let private = |line: &str| {
                line.trim_start().starts_with("-----BEGIN ") && line.contains("PRIVATE KEY")
                    || line.trim_start().starts_with("AGE-SECRET-KEY-")
            };
            text.lines().filter(|line| private(line)).map(str::to_owned).collect()
        }
        Form::Pgpass => {
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            lines.filter_map(|line| line.splitn(5, ':').nth(4)).map(str::to_owned).collect()
        }
        Form::Xml => xml(text),
        Form::Dotenv => text.lines().flat_map(|text| dotenv(text, beginnings)).collect(),
        Form::Opaque => Vec::new(),
    };
    if form == Form::Any {
        found.extend(text.split(|c: char| c.is_whitespace() || "\"'<>,;".contains(c)).filter_map(userinfo));
    }
    found.retain(|secret| !is_reference(secret));
    Ok(found)
}

/// Whether `secret` is one that a container was given, plain or as the password of `user:password` in base64.
pub(super) fn is_phantom(secret: &str, shapes: &[Token]) -> bool {
    let mut parts = vec![secret.to_owned()];
    for engine in [STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
        if let Some(text) = engine.decode(secret).ok().and_then(|bytes| String::from_utf8(bytes).ok()) {
            parts.extend(text.split_once(':').map(|(user, password)| {
                // The token is the user name where the password says nothing: `TOKEN:x-oauth-basic`.
                if matches!(password, "" | "x-oauth-basic") { user } else { password }.to_owned()
            }));
            parts.push(text);
        }
    }
    parts.iter().any(|part| shapes.iter().any(|shape| phantom::is_phantom(shape, part)))
}

fn json(name: Option<&str>, value: &serde_json::Value, beginnings: &Beginnings, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) => {
            for (name, value) in map {
                json(Some(name), value, beginnings, found);
            }
        }
        serde_json::Value::Array(list) => {
            for value in list {
                json(name, value, beginnings, found);
            }
        }
        serde_json::Value::String(text) if name.is_some_and(is_secret_name) || beginnings.fit(text) => {
            found.extend(value_of(text));
        }
        _ => {}
    }
}

/// `key = value`, `key: value` and both at once (`extraHeader = Authorization: Basic …`).
fn line(text: &str, beginnings: &Beginnings) -> Vec<String> {
    let text = text.trim();
    if text.starts_with(['#', ';']) {
        return Vec::new();
    }
    let splits = [text.split_once('='), text.split_once(": "), text.split_once(" = ")];
    let mut found: Vec<String> = splits
        .into_iter()
        .flatten()
        .filter(|(name, value)| {
            // `//registry.example/:_authToken`, `export NAME`, `- token`, `http.extraHeader = Authorization`
            let name = name.trim_end().trim_end_matches(['"', '\'']);
            let last = name.rsplit([':', '/', ' ', '"', '\'', '.', '\t']).next().unwrap_or_default();
            is_secret_name(last) || beginnings.fit(value.trim())
        })
        .filter_map(|(_, value)| value_of(value))
        .collect();
    found.dedup();
    found
}

fn dotenv(text: &str, beginnings: &Beginnings) -> Option<String> {
    let text = text.trim();
    let (name, value) = text.strip_prefix("export ").unwrap_or(text).split_once('=')?;
    let value = value_of(value.split(" #").next().unwrap_or(value))?;
    let looks_secret = is_secret_name(name.trim())
        && value.len() >= 16
        && !value.contains(char::is_whitespace)
        && !is_placeholder(&value);
    (!text.starts_with('#') && (beginnings.fit(&value) || looks_secret || userinfo(&value).is_some()))
        .then_some(value)
}

fn netrc(text: &str) -> Vec<String> {
    let mut words = text.split_whitespace();
    let mut found = Vec::new();
    while let Some(word) = words.next() {
        if word == "password" {
            found.extend(words.next().map(str::to_owned));
        }
    }
    found
}

fn xml(text: &str) -> Vec<String> {
    let tags = ["password", "passphrase", "privateKey"];
    let of = |tag: &str| {
        let open = format!("<{tag}>");
        let parts = text.split(open.as_str()).skip(1).filter_map(|rest| rest.split_once("</"));
        parts.map(|(value, _)| value.trim().to_owned()).filter(|value| !value.is_empty()).collect::<Vec<_>>()
    };
    tags.iter().flat_map(|tag| of(tag)).collect()
}

/// The password of `https://user:password@host`, or the user name where there is no password and it is long enough to be a token.
fn userinfo(word: &str) -> Option<String> {
    let (_, rest) = word.split_once("://")?;
    let (authority, _) = rest.split_once('/').unwrap_or((rest, ""));
    let (login, _) = authority.rsplit_once('@')?;
    let secret = match login.split_once(':') {
        Some((user, "" | "x-oauth-basic")) => user,
        Some((_, password)) => password,
        None if login.len() >= 20 => login,
        None => return None,
    };
    Some(secret.to_owned()).filter(|secret| !secret.is_empty())
}

fn is_secret_name(name: &str) -> bool {
    let name = name.trim().to_ascii_lowercase();
    let part = NAMES.iter().any(|part| name.contains(part));
    (part || WHOLE_NAMES.contains(&name.as_str())) && !ABOUT.iter().any(|end| name.ends_with(end))
}

/// Without quotes, a comma behind it and the scheme of a header.
fn value_of(text: &str) -> Option<String> {
    let text = text.trim().trim_end_matches(',').trim().trim_matches(['"', '\'']);
    let text = match text.rsplit_once(": ") {
        Some((name, value)) if is_secret_name(name) => value,
        _ => text,
    };
    let text = ["Bearer ", "bearer ", "Basic ", "basic ", "token "]
        .iter()
        .find_map(|scheme| text.strip_prefix(scheme))
        .unwrap_or(text);
    let nothing = ["", "true", "false", "null", "none", "{", "[", "bearer", "Bearer"];
    (!nothing.contains(&text)).then(|| text.to_owned())
}

/// Something that stands for a secret which is elsewhere.
fn is_reference(value: &str) -> bool {
    value.starts_with('$')
        || value.starts_with("env:")
        || value.starts_with("{{")
        || value.starts_with("op://")
}

fn is_placeholder(value: &str) -> bool {
    let value = value.to_ascii_lowercase();
    let first = value.chars().next();
    ["your", "<", "xxx", "changeme", "change-me", "example", "placeholder", "dummy"]
        .iter()
        .any(|start| value.starts_with(start))
        || value.chars().all(|c| Some(c) == first)
}

#[cfg(test)]
mod tests;
