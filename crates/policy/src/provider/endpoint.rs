//! Where requests go: an `https://` URL, or `http://` to an address literal or the host's own loopback.

use crate::name::Name;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv6Addr};

const FORM: &str =
    "write https://HOST[:PORT][/PATH], or http:// to an address literal or `host` (the host's loopback)";

/// The beginning of an upstream's URLs, in canonical form.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Endpoint {
    /// Whether it is spoken to over TLS.
    pub tls: bool,
    /// Who it is.
    pub host: Host,
    /// Its port.
    pub port: u16,
    /// What every path there begins with: empty, or `/…` without a slash at its end.
    pub path: String,
}

/// Who an upstream is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// A name, resolved and held to the floor like any other (E3).
    Name(Name),
    /// A literal address, whether or not it is below the floor; with TLS, its certificate names the address.
    Address(IpAddr),
    /// The host's own loopback; with TLS, its certificate names `localhost`.
    Loopback,
}

impl Endpoint {
    /// Reads a URL.
    pub fn parse(url: &str) -> Result<Self, String> {
        let (scheme, rest) = url.split_once("://").ok_or(FORM)?;
        let tls = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err(format!("scheme {scheme:?}: {FORM}")),
        };
        if rest.contains('@') {
            return Err(format!("a user or password has no place in it: {FORM}"));
        }
        if rest.contains(['?', '#']) {
            return Err(format!("it ends before any ? or #: {FORM}"));
        }
        let (place, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, Some(port)),
            _ => (place, None),
        };
        let port = match port {
            None => {
                if tls {
                    443
                } else {
                    80
                }
            }
            Some(text) => match text.parse::<u16>() {
                Ok(port) if port != 0 && text.bytes().all(|b| b.is_ascii_digit()) => port,
                _ => return Err(format!("{text:?} is no port, 1 to 65535")),
            },
        };
        let host = parse_host(host)?;
        if !tls && matches!(host, Host::Name(_)) {
            return Err(format!("a credential goes to a name over TLS only: {FORM}"));
        }
        Ok(Endpoint { tls, host, port, path: parse_path(path)? })
    }

    /// The name, where it has one.
    pub fn name(&self) -> Option<&Name> {
        match &self.host {
            Host::Name(name) => Some(name),
            Host::Address(_) | Host::Loopback => None,
        }
    }

    /// What `Host` and `:authority` say: without the port where the scheme implies it.
    pub fn authority(&self) -> String {
        let implied = if self.tls { 443 } else { 80 };
        let host = match &self.host {
            Host::Loopback => "localhost".to_owned(),
            host => host.to_string(),
        };
        if self.port == implied { host } else { format!("{host}:{}", self.port) }
    }
}

fn parse_host(text: &str) -> Result<Host, String> {
    if let Some(inside) = text.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        let address = inside.parse::<Ipv6Addr>().map_err(|_| format!("{inside:?} is no IPv6 address"))?;
        return literal(address.into());
    }
    if text.contains(':') {
        return Err("an IPv6 address stands in brackets".into());
    }
    match text.parse::<IpAddr>() {
        Ok(address) => literal(address),
        Err(_) if text == "host" => Ok(Host::Loopback),
        Err(_) => match Name::parse(text).map_err(|error| error.to_string())? {
            name if name.is_reserved() || is_local(&name) => Err(format!(
                "{name} is no name of the outside; for a port of the host write http://host:PORT"
            )),
            name => Ok(Host::Name(name)),
        },
    }
}

/// A written loopback address is the host's, and so are those that lead there.
fn literal(address: IpAddr) -> Result<Host, String> {
    let address = address.to_canonical();
    if address.is_loopback() || address.is_unspecified() {
        return Err("for a port of the host's loopback write http://host:PORT".into());
    }
    if address.is_multicast() || crate::virt::index(address).is_some() {
        return Err(format!("{address} is no address of a server"));
    }
    Ok(Host::Address(address))
}

/// Other containers' names and `localhost`, which mean something else on the host.
pub(super) fn is_local(name: &Name) -> bool {
    let text = name.as_str();
    !text.contains('.') || text.ends_with(".dns.podman") || text.ends_with(".localhost")
}

fn parse_path(path: &str) -> Result<String, String> {
    let path = path.strip_suffix('/').unwrap_or(path);
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,=:@/".contains(&b);
    let dots = path.split('/').any(|segment| matches!(segment, "." | ".."));
    if !path.bytes().all(plain) || path.contains("//") || path.ends_with('/') || dots {
        return Err(format!("{path:?} is no plain path: {FORM}"));
    }
    Ok(path.to_owned())
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Host::Name(name) => write!(f, "{name}"),
            Host::Address(IpAddr::V4(address)) => write!(f, "{address}"),
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
            Host::Loopback => f.write_str("host"),
        }
    }
}
/// The URL.
impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Endpoint { tls, host, port, path } = self;
        write!(f, "{}://{host}", if *tls { "https" } else { "http" })?;
        if *port != if *tls { 443 } else { 80 } {
            write!(f, ":{port}")?;
        }
        f.write_str(path)
    }
}
impl TryFrom<String> for Endpoint {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Endpoint::parse(&text)
    }
}
impl From<Endpoint> for String {
    fn from(endpoint: Endpoint) -> String {
        endpoint.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(url: &str) -> String {
        Endpoint::parse(url).map_or_else(|error| format!("refused: {error}"), |endpoint| endpoint.to_string())
    }

    #[test]
    fn a_url_has_one_canonical_form() {
        for (url, form) in [
            ("https://API.Example.com/", "https://api.example.com"),
            ("https://api.example.com:443/v1/", "https://api.example.com/v1"),
            ("https://api.example.com:8443", "https://api.example.com:8443"),
            ("http://host:11434/v1", "http://host:11434/v1"),
            ("http://10.0.0.5:8000", "http://10.0.0.5:8000"),
            ("http://[fd00::1]:80/x", "http://[fd00::1]/x"),
            ("https://[2001:db8::1]", "https://[2001:db8::1]"),
        ] {
            assert_eq!(shown(url), form);
        }
        assert_eq!(Endpoint::parse("http://host:11434/v1").unwrap().authority(), "localhost:11434");
        assert_eq!(Endpoint::parse("https://a.example/v1").unwrap().authority(), "a.example");
    }

    #[test]
    fn what_a_credential_must_not_be_sent_to_is_refused() {
        for (url, hint) in [
            ("api.example.com", "write https://"),
            ("ftp://a.example", "scheme"),
            ("http://a.example", "over TLS only"),
            ("https://user:pw@a.example", "no place in it"),
            ("https://a.example?x", "before any"),
            ("https://a.example:0", "no port"),
            ("https://a.example:+1", "no port"),
            ("https://a.example/a//b", "no plain path"),
            ("https://a.example/../b", "no plain path"),
            ("https://a.example/%2e", "no plain path"),
            ("https://localhost", "no name of the outside"),
            ("https://db", "no name of the outside"),
            ("https://db.dns.podman", "no name of the outside"),
            ("https://vault.terok.internal", "no name of the outside"),
            ("http://127.0.0.1:80", "http://host:PORT"),
            ("http://[::1]:80", "http://host:PORT"),
            ("http://0.0.0.0", "http://host:PORT"),
            ("http://198.18.0.2", "no address of a server"),
            ("http://::1", "brackets"),
            ("http://2130706433", "not a host name"),
        ] {
            let error = Endpoint::parse(url).unwrap_err();
            assert!(error.contains(hint), "{url}: {error}");
            assert!(!error.contains('\n'));
        }
    }

    proptest! {
        #[test]
        fn a_canonical_url_is_its_own_canonical_form(url in "https?://(\\[::[0-9a-f:]{0,6}\\]|[a-z0-9.]{1,12}|host)(:[0-9]{1,5})?(/[a-z./%]{0,8})?") {
            if let Ok(endpoint) = Endpoint::parse(&url) {
                prop_assert_eq!(Endpoint::parse(&endpoint.to_string()), Ok(endpoint));
            }
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}", rest in "\\PC{0,40}") {
            let _ = Endpoint::parse(&text);
            let _ = Endpoint::parse(&format!("https://{rest}"));
        }
    }
}
