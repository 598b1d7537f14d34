//! Providers: services whose real credential stays on the host. A definition says where the service is, how its credential is
//! sent, and what a container gets in its place (design §8, V1 to V3).

mod endpoint;
mod read;
mod request;

pub use endpoint::{Endpoint, Host};
pub use read::{Definition, Template, parse, read, resolve};
pub use request::{OVERRIDES, Refused};

use crate::name::Name;
use crate::rule::Rule;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Definitions that ship with terok (`profiles/providers/*.toml`).
pub const BUNDLED: &[(&str, &str)] = &[
    ("anthropic", include_str!("../../../profiles/providers/anthropic.toml")),
    ("basic", include_str!("../../../profiles/providers/basic.toml")),
    ("bearer", include_str!("../../../profiles/providers/bearer.toml")),
    ("github", include_str!("../../../profiles/providers/github.toml")),
    ("gitlab", include_str!("../../../profiles/providers/gitlab.toml")),
    ("mistral", include_str!("../../../profiles/providers/mistral.toml")),
    ("openai", include_str!("../../../profiles/providers/openai.toml")),
    ("openai-compatible", include_str!("../../../profiles/providers/openai-compatible.toml")),
    ("openrouter", include_str!("../../../profiles/providers/openrouter.toml")),
];

/// Headers that are the framing of a message, or belong to one connection (RFC 9110 §7.6.1): no credential is in them.
pub const FRAMING: [&str; 16] = [
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
];

/// A service that terok sends requests to in a container's stead.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    /// What it is called in `terok.vault`: the file's name ([`is_provider_name`]), not written in the file.
    pub name: String,
    /// For people.
    pub title: String,
    /// Where requests to the base URL go.
    pub upstream: Endpoint,
    /// Names whose connections on port 443 are ended by terok (interception): those of the upstreams, and what is written beside them.
    #[serde(default)]
    pub hosts: Vec<Name>,
    /// Other upstreams by the beginning of a request's path at the base URL, the longest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub route: Vec<Route>,
    /// What the container gets in the credential's place.
    pub token: Token,
    /// Variables that hold the base URL; the value is `http://vault.terok.internal/NAME` and `path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_url: Option<BaseUrl>,
    /// How a real credential is sent, by its type.
    pub credential: BTreeMap<CredentialType, Sent>,
    /// How an expired OAuth token is renewed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oauth: Option<OAuth>,
    /// Which requests are forwarded: the first rule that fits decides; without any rule all are, else what no rule fits is refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rule: Vec<RequestRule>,
    /// What the client itself has to reach beside the brokered hosts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub egress: Vec<Rule>,
    /// Further variables of the container. `{token}`, `{base_url}`, `{basic:USER}` (base64 of `USER:token`) and `{ca}` (path of the
    /// CA bundle) are replaced.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// git configuration of the container, given as `GIT_CONFIG_COUNT` and so on; replaced as in `env`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub git: BTreeMap<String, String>,
    /// Variables that a restricted container gets as well.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub restricted_env: BTreeMap<String, String>,
    /// The shape of a refusal's body, and the challenge of a 401.
    #[serde(default)]
    pub errors: Errors,
    /// Files in which the service's own clients keep credentials, below a home directory: `terok vault clean` looks for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<String>,
    /// What `terok vault test` asks for: something cheap that only a good credential gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<TestRequest>,
}

/// A GET that shows whether a credential is good.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestRequest {
    /// Path below the upstream's own, `/v1/models`.
    pub path: String,
    /// Headers that the service wants.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
}

/// Another upstream below a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// `/upload`: taken off the path, which goes on below the upstream's.
    pub path: String,
    /// As [`Provider::upstream`].
    pub upstream: Endpoint,
}

/// A phantom token's shape (V1) and where it is put.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    /// Variables that hold it.
    #[serde(default)]
    pub variables: Vec<String>,
    /// How the provider's own tokens begin.
    #[serde(default)]
    pub prefix: String,
    /// Other beginnings of its tokens: no phantom token has them, but a credential may (`terok vault add`, `terok vault clean`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<String>,
    /// How they end.
    #[serde(default)]
    pub suffix: String,
    /// Characters in all, at most 255; prefix, suffix, the mark and at least 24 random characters fit in.
    #[serde(default)]
    pub length: usize,
    /// Which characters.
    #[serde(default)]
    pub alphabet: Alphabet,
    /// Where a request may carry it.
    #[serde(default = "Carrier::bearer")]
    pub carriers: Vec<Carrier>,
}

/// Characters of a token's random part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Alphabet {
    /// `0-9A-Za-z`
    #[default]
    Base62,
    /// Base62, `-` and `_`.
    Base64url,
    /// `0-9a-f`
    Hex,
}

/// Where a token stands in a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Carrier {
    /// `Authorization: Bearer TOKEN` or `Authorization: token TOKEN`
    Bearer,
    /// The password of `Authorization: Basic`, or its user name where the password is empty or `x-oauth-basic`.
    Basic,
    /// A header whose whole value it is, lower case.
    Header(String),
}

impl Token {
    /// How the provider's own tokens are known to begin.
    pub fn beginnings(&self) -> impl Iterator<Item = &str> {
        let all = std::iter::once(&self.prefix).chain(&self.also);
        all.map(String::as_str).filter(|beginning| !beginning.is_empty())
    }
}

impl Carrier {
    fn bearer() -> Vec<Carrier> {
        vec![Carrier::Bearer]
    }
}

/// Variables with the base URL.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseUrl {
    /// Their names.
    #[serde(default)]
    pub variables: Vec<String>,
    /// What follows `http://vault.terok.internal/NAME`, such as `/v1`; taken as part of the path that goes upstream.
    #[serde(default)]
    pub path: String,
}

/// What a credential is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CredentialType {
    /// An API key or personal access token.
    Key,
    /// A user name and a password.
    Basic,
    /// An OAuth access token, renewed with its refresh token.
    OAuth,
}

/// How a credential is put into a request; what the container sent in any carrier is taken out first.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sent {
    /// The header, lower case.
    pub header: String,
    /// What stands before the secret: `Bearer `. `basic:USER` makes it `Basic base64(USER:secret)`. A user name and a password
    /// ([`CredentialType::Basic`]) are always sent so, and this is empty.
    #[serde(default)]
    pub prefix: String,
    /// The user name with which it is sent as a Basic password where the container's token came as one: a service that takes Bearer
    /// for its API and Basic for git. [`Sent::as_asked`] says which.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basic: Option<String>,
    /// Further headers; one the client sent too keeps the client's value with this one added after a comma.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
}

/// Renewal of an OAuth access token (RFC 6749 §6).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OAuth {
    /// Where the request is sent, in the form of [`Provider::upstream`].
    #[serde(default)]
    pub token_url: String,
    /// Public client identifier.
    #[serde(default)]
    pub client_id: String,
    /// How the request is written.
    #[serde(default)]
    pub format: OAuthFormat,
    /// JSON pointers into the file that the service's own client keeps: access token, refresh token, end (Unix seconds or milliseconds).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub import: Option<OAuthImport>,
}

/// Body of a refresh request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OAuthFormat {
    /// `application/x-www-form-urlencoded`, as the RFC has it.
    #[default]
    Form,
    /// `application/json`
    Json,
}

/// Where the tokens are in a client's own file (`terok vault add --oauth FILE`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OAuthImport {
    /// JSON pointer of the access token.
    pub access: String,
    /// JSON pointer of the refresh token.
    pub refresh: String,
    /// JSON pointer of the end of the access token; seconds, or milliseconds from 10^11 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
}

/// Which requests pass.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestRule {
    /// Methods; all where empty.
    #[serde(default)]
    pub methods: Vec<String>,
    /// Only for this host, where the provider has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Name>,
    /// `/v1/messages`, `/repos/*/*/pulls` (`*`: one segment), `/v1/**` (`**`: any number of them, once in a path). A rule that
    /// refuses also refuses its words in capitals and with an extension, `/keys.json`.
    pub path: String,
    /// Forwarded or refused.
    pub allow: bool,
    /// Forwarded also where the request carries no credential at all, and then without one ([`Provider::lets_anonymous`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub anonymous: bool,
}

/// How refusals read.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Errors {
    /// Body.
    #[serde(default)]
    pub shape: ErrorShape,
    /// `WWW-Authenticate` of a 401: `Basic realm="terok"` where git asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub challenge: Option<String>,
}

/// JSON bodies that clients of an API show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ErrorShape {
    /// `{"error":{"message":…,"type":…,"code":…}}`
    #[default]
    OpenAi,
    /// `{"type":"error","error":{"type":…,"message":…}}`
    Anthropic,
    /// `{"message":…}`
    Message,
}

/// What is wrong in a definition, with its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("provider {provider}{}: {reason}", if place.is_empty() { String::new() } else { format!(" {place}") })]
pub struct ProviderError {
    /// Its name.
    pub provider: String,
    /// `line 4` or the key.
    pub place: String,
    /// What is wrong and what to do.
    pub reason: String,
}

impl Sent {
    /// How the credential is sent in answer to a request whose `Authorization` header, if it has one, was `authorization`.
    pub fn as_asked(&self, authorization: Option<&str>) -> Sent {
        let scheme =
            |value: &str| value.trim_start().get(..6).is_some_and(|word| word.eq_ignore_ascii_case("basic "));
        match &self.basic {
            Some(user) if authorization.is_some_and(scheme) => Sent {
                header: "authorization".into(),
                prefix: format!("basic:{user}"),
                basic: None,
                headers: self.headers.clone(),
            },
            _ => Sent { basic: None, ..self.clone() },
        }
    }
}

impl Provider {
    /// The names whose connections on port 443 terok ends.
    pub fn hosts(&self) -> &[Name] {
        &self.hosts
    }

    /// Whether `name` is one of them.
    pub fn is_host(&self, name: &Name) -> bool {
        self.hosts.contains(name)
    }

    /// Whether requests reach it only through the base URL.
    pub fn is_base_url_only(&self) -> bool {
        self.hosts.is_empty()
    }
}

/// Whether `name` may name a provider: 1 to 64 of `[a-z0-9-]`, starting with a letter or digit; it is part of URLs.
pub fn is_provider_name(name: &str) -> bool {
    crate::profile::is_profile_name(name) && !name.contains('_')
}

/// Whether `name` may name a credential or an SSH key in the vault: 1 to 64 of `[A-Za-z0-9._-]`, starting with a letter or digit.
pub fn is_credential_name(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}
