//! The value of `terok.publish`: `[addr:]port:container-port`, TCP.

use crate::policy::Publish;
use std::net::IpAddr;

/// Each takes a listener and a descriptor on the host.
const MOST: usize = 64;

pub(super) fn parse(value: &str) -> Result<Vec<Publish>, String> {
    let mut ports: Vec<Publish> = Vec::new();
    for item in super::items(value) {
        let one = parse_one(item).map_err(|reason| format!("{item:?}: {reason}"))?;
        if ports.contains(&one) {
            continue;
        }
        if let Some(other) = ports.iter().find(|other| clash(other, &one)) {
            let addr = if other.addr.is_unspecified() { one.addr } else { other.addr };
            return Err(format!("port {} on {addr} twice: {other} and {one}; choose another port", one.port));
        }
        ports.push(one);
    }
    if ports.len() > MOST {
        return Err(format!("at most {MOST} ports are published; these are {}", ports.len()));
    }
    Ok(ports)
}

fn parse_one(item: &str) -> Result<Publish, String> {
    const FORM: &str = "write [ADDR:]PORT:CONTAINER-PORT, an IPv6 address in brackets";
    if item.contains('/') {
        return Err("only TCP is published, without a protocol behind the port".into());
    }
    let (rest, to) = item.rsplit_once(':').ok_or(FORM)?;
    let (addr, port) = match rest.rsplit_once(':') {
        None => (Publish::LOOPBACK, rest),
        Some((addr, port)) => {
            let inside = addr.strip_prefix('[').and_then(|addr| addr.strip_suffix(']'));
            let read: Option<IpAddr> = match inside {
                Some(inside) => inside.parse().ok().filter(IpAddr::is_ipv6),
                None => addr.parse().ok().filter(IpAddr::is_ipv4),
            };
            (read.ok_or_else(|| format!("{addr:?} is no address: {FORM}"))?.to_canonical(), port)
        }
    };
    if addr.is_multicast() {
        return Err(format!("{addr} is no address of a host"));
    }
    let number = |text: &str| match text.parse::<u16>() {
        Ok(port) if port != 0 && text.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
        _ => Err(format!("{text:?} is no port, 1 to 65535: {FORM}")),
    };
    Ok(Publish { addr, port: number(port)?, to: number(to)? })
}

/// Whether the host cannot listen for both.
fn clash(a: &Publish, b: &Publish) -> bool {
    let same = a.addr == b.addr
        || a.addr.is_ipv4() == b.addr.is_ipv4() && (a.addr.is_unspecified() || b.addr.is_unspecified());
    a.port == b.port && same
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(value: &str) -> Result<String, String> {
        let ports: Vec<String> = parse(value)?.iter().map(ToString::to_string).collect();
        Ok(ports.join(" "))
    }

    #[test]
    fn loopback_is_meant_where_no_address_is_written() {
        assert_eq!(parse("8080:80").unwrap()[0].addr, Publish::LOOPBACK);
        let written = "127.0.0.1:8080:80, [::1]:8080:80 192.0.2.1:8080:81,[::ffff:192.0.2.2]:1:2 0.0.0.0:22:22 [::]:22:22";
        let shortest = "8080:80 [::1]:8080:80 192.0.2.1:8080:81 192.0.2.2:1:2 0.0.0.0:22:22 [::]:22:22";
        assert_eq!(shown(written).unwrap(), shortest);
        assert_eq!(shown(shortest).unwrap(), shortest);
        assert_eq!(shown("80:80 80:80").unwrap(), "80:80");
        assert_eq!(shown("").unwrap(), "");
    }

    #[test]
    fn what_the_host_cannot_listen_for_is_refused() {
        for (value, hint) in [
            ("80", "PORT:CONTAINER-PORT"),
            ("0:80", "no port"),
            ("80:0", "no port"),
            ("80:65536", "no port"),
            ("+80:80", "no port"),
            ("80:", "no port"),
            (":80", "no port"),
            ("::1:80:80", "brackets"),
            ("[127.0.0.1]:80:80", "brackets"),
            ("localhost:80:80", "no address"),
            ("224.0.0.1:80:80", "no address of a host"),
            ("80:80/udp", "only TCP"),
            ("80:80 80:81", "twice"),
            ("80:80 0.0.0.0:80:81", "port 80 on 127.0.0.1 twice"),
        ] {
            let error = parse(value).unwrap_err();
            assert!(error.contains(hint), "{value}: {error}");
        }
        let many: Vec<String> = (1..=65).map(|port| format!("{port}:80")).collect();
        assert!(parse(&many.join(" ")).unwrap_err().contains("at most 64"));
    }
}
