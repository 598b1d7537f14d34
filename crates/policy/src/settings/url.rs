//! The URL of an upstream proxy. Messages repeat nothing of it: what is written in the wrong place may be the password.

use super::{Scheme, Upstream};
use crate::name::Name;
use std::net::{IpAddr, Ipv6Addr};

const FORM: &str = "write http://HOST:PORT or socks5://HOST:PORT";

pub(super) fn parse(url: &str) -> Result<Upstream, String> {
    let (scheme, rest) = url.split_once("://").ok_or(FORM)?;
    let scheme = match scheme.to_ascii_lowercase().as_str() {
        "http" => Scheme::Http,
        "socks5" | "socks5h" => Scheme::Socks5,
        "https" => return Err(format!("a proxy that is spoken to over TLS is not supported: {FORM}")),
        _ => return Err(format!("that is no proxy's scheme: {FORM}")),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (login, place) = match rest.rsplit_once('@') {
        Some((login, place)) => (Some(parse_login(login)?), place),
        None => (None, rest),
    };
    if place.contains(['/', '?', '#']) {
        return Err(format!("nothing stands behind the port: {FORM}"));
    }
    let (host, port) = match place.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port),
        _ => return Err(format!("the port is missing: {FORM}")),
    };
    let port = match port.parse::<u16>() {
        Ok(number) if number != 0 && port.bytes().all(|b| b.is_ascii_digit()) => number,
        _ => return Err("the port is a number, 1 to 65535".into()),
    };
    if scheme == Scheme::Socks5
        && login.as_ref().is_some_and(|(user, password)| user.len() > 255 || password.len() > 255)
    {
        return Err("SOCKS5 takes a user and a password of at most 255 octets".into()); // RFC 1929
    }
    Ok(Upstream { scheme, host: parse_host(host)?, port, login, except: Vec::new() })
}

fn parse_host(host: &str) -> Result<String, String> {
    if let Some(inside) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        let address = inside.parse::<Ipv6Addr>();
        return Ok(address.map_err(|_| "an IPv6 address stands between the brackets")?.to_string());
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        return match address {
            IpAddr::V4(address) => Ok(address.to_string()),
            IpAddr::V6(_) => Err("an IPv6 address stands in brackets".into()),
        };
    }
    Name::parse(host).map(|name| name.to_string()).map_err(|_| "the host is no host name".into())
}

fn parse_login(login: &str) -> Result<(String, String), String> {
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let decoded = |what, text| match percent_decoded(text) {
        Some(text) if !text.chars().any(char::is_control) => Ok(text),
        _ => Err(format!("the {what} is no printable text; write other characters as %XX")),
    };
    let (user, password) = (decoded("user", user)?, decoded("password", password)?);
    // RFC 7617: a colon would end the user.
    if user.is_empty() || user.contains(':') {
        return Err("a user is not empty and has no colon".into());
    }
    Ok((user, password))
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(octet) = rest.next() {
        octets.push(match octet {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            plain => plain,
        });
    }
    String::from_utf8(octets).ok()
}
