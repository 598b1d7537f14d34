//! Which network a container is started on, as `--network` and `--pod` say, and what becomes of published ports there.

use std::net::IpAddr;

/// What the container's network will be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// No card: `--network none`, the default.
    Sealed,
    /// A card of its own, behind the firewall.
    Filtered,
    /// Another container's or a pod's, which may have a card or none: the hooks see.
    Shared,
}

/// Options of pasta that leave the container's loopback alone (passt(1)). `-T` and `-U` would lead it to the host's.
const PASTA: &[&str] = &[
    "-4",
    "-6",
    "-a",
    "-g",
    "-i",
    "-I",
    "-m",
    "-M",
    "-n",
    "-t",
    "-u",
    "--address",
    "--gateway",
    "--interface",
    "--ipv4-only",
    "--ipv6-only",
    "--map-gw",
    "--mtu",
    "--netmask",
    "--no-dhcp",
    "--no-dhcpv6",
    "--no-icmp",
    "--no-map-gw",
    "--no-ndp",
    "--no-ra",
    "--no-tcp",
    "--no-udp",
    "--ns-ifname",
    "--ns-mac-addr",
    "--outbound",
    "--outbound-if4",
    "--outbound-if6",
    "--tcp-ports",
    "--udp-ports",
];

/// Reads the values of `--network` and `--pod`.
pub(super) fn wanted(networks: &[&str], pod: bool) -> Result<Wanted, String> {
    let mut kinds = Vec::new();
    for value in networks {
        kinds.extend(kinds_of(value)?);
    }
    if pod {
        return Ok(Wanted::Shared);
    }
    match kinds.as_slice() {
        [] => Ok(Wanted::Sealed),
        [only] => Ok(*only),
        several if several.iter().all(|kind| *kind == Wanted::Filtered) => Ok(Wanted::Filtered),
        several if several.iter().all(|kind| *kind == Wanted::Sealed) => Ok(Wanted::Sealed),
        _ => Err("none and container:NAME stand alone".to_owned()),
    }
}

/// What one value asks for; Podman takes several names with commas between them.
pub(super) fn kinds_of(value: &str) -> Result<Vec<Wanted>, String> {
    if value.contains('"') || value.contains(char::is_control) || value.contains(char::is_whitespace) {
        return Err("write MODE[:OPTION,…] or the name of a network".to_owned());
    }
    let (modes, options) = match value.split_once(':') {
        Some((mode, options)) => (vec![mode], options),
        None => (value.split(',').collect(), ""),
    };
    modes.into_iter().map(|mode| kind(mode, options)).collect()
}

fn kind(mode: &str, options: &str) -> Result<Wanted, String> {
    let is_name = mode.starts_with(|c: char| c.is_ascii_alphanumeric())
        && mode.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    match mode {
        "none" if options.is_empty() => Ok(Wanted::Sealed),
        "host" => Err(
            "the container would be in the host's network, where nothing of terok applies; leave it out and use --allow"
                .to_owned(),
        ),
        "ns" => Err(
            "nothing is known of a network that is given by its path; name the container with container:NAME".to_owned(),
        ),
        "container" if options.is_empty() => Err("write container:NAME".to_owned()),
        "container" => Ok(Wanted::Shared),
        "pasta" => pasta(options).map(|()| Wanted::Filtered),
        _ if is_name => Ok(Wanted::Filtered),
        _ => Err("write none, bridge, slirp4netns, pasta, container:NAME or the name of a network".to_owned()),
    }
}

fn pasta(options: &str) -> Result<(), String> {
    for option in options.split(',').filter(|option| option.starts_with('-')) {
        let name = if option.starts_with("--") { option.split('=').next().unwrap_or(option) } else { option };
        if !PASTA.contains(&name) {
            return Err(format!(
                "{option} of pasta is not known to leave the host's loopback alone; reach it with --allow host:PORT"
            ));
        }
    }
    Ok(())
}

/// `-p` of a container without a card, as a word of `terok.publish`.
pub(super) fn published(value: &str) -> Result<String, String> {
    let (ports, proto) = value.rsplit_once('/').unwrap_or((value, "tcp"));
    if proto != "tcp" {
        return Err(format!("without a network card TCP alone is published; {proto} needs --network bridge"));
    }
    let wrong = || "write HOSTPORT:PORT or ADDRESS:HOSTPORT:PORT".to_owned();
    let (host, inside) = ports.rsplit_once(':').ok_or_else(|| {
        "name the port on the host as well, as HOSTPORT:PORT; a port of chance is not available without a network card"
            .to_owned()
    })?;
    let (address, outside) = match host.rsplit_once(':') {
        Some((address, outside)) => (Some(address), outside),
        None => (None, host),
    };
    for port in [outside, inside] {
        if port.contains('-') {
            return Err("without a network card single ports are published; write each on its own".to_owned());
        }
        port.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
    }
    match address {
        None => Ok(format!("{outside}:{inside}")),
        Some(address) => {
            let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
            let ip: IpAddr = bare.unwrap_or(address).parse().map_err(|_| wrong())?;
            match ip {
                IpAddr::V4(ip) => Ok(format!("{ip}:{outside}:{inside}")),
                IpAddr::V6(ip) => Ok(format!("[{ip}]:{outside}:{inside}")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_told_apart() {
        for (values, pod, expected) in [
            (&[][..], false, Wanted::Sealed),
            (&["none"], false, Wanted::Sealed),
            (&["bridge"], false, Wanted::Filtered),
            (&["slirp4netns:enable_ipv6=true,mtu=1500"], false, Wanted::Filtered),
            (&["pasta:--ipv4-only,--mtu,1500,-t,8080"], false, Wanted::Filtered),
            (&["mynet:ip=10.89.0.7,mac=aa:bb:cc:dd:ee:ff", "other"], false, Wanted::Filtered),
            (&["one,two"], false, Wanted::Filtered),
            (&["container:web"], false, Wanted::Shared),
            (&[], true, Wanted::Shared),
        ] {
            assert_eq!(wanted(values, pod), Ok(expected), "{values:?}");
        }
        for values in [
            &["host"][..],
            &["bridge,host"],
            &["bridge", "host"],
            &["ns:/proc/1/ns/net"],
            &["none", "bridge"],
            &["container:"],
            &["container:a", "bridge"],
            &["pasta:-T,auto"],
            &["pasta:-Tauto"],
            &["pasta:--tcp-ns=5432"],
            &[""],
            &["a b"],
            &["-x"],
        ] {
            assert!(wanted(values, false).is_err(), "{values:?}");
        }
        assert!(wanted(&["host"], true).is_err(), "a pod does not make the host's network right");
    }

    #[test]
    fn ports_of_a_sealed_container_are_single_and_tcp() {
        for (value, expected) in [
            ("8080:80", "8080:80"),
            ("127.0.0.1:8080:80/tcp", "127.0.0.1:8080:80"),
            ("[::1]:8080:80", "[::1]:8080:80"),
        ] {
            assert_eq!(published(value).as_deref(), Ok(expected));
        }
        for (value, hint) in [
            ("53:53/udp", "TCP alone"),
            ("80", "port on the host"),
            ("8000-8010:8000-8010", "single ports"),
            ("127.0.0.1::80", "HOSTPORT:PORT"),
            ("0:80", "HOSTPORT:PORT"),
            ("localhost:80:80", "ADDRESS"),
        ] {
            assert!(published(value).unwrap_err().contains(hint), "{value}");
        }
    }
}
