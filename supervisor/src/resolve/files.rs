//! /etc/hosts and /etc/resolv.conf, read again when they change.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use terok_policy::Name;

/// A file is looked at again after this long.
const LOOK: Duration = Duration::from_secs(1);
/// What is read of a file; a block list in /etc/hosts can be long.
const SIZE: u64 = 8 << 20;
/// More name servers are not asked (resolv.conf(5), MAXNS).
const SERVERS: usize = 3;

/// What the host's files say.
pub(crate) struct Files {
    hosts: Watched<HashMap<Name, Vec<IpAddr>>>,
    servers: Watched<Vec<SocketAddr>>,
}

impl Files {
    /// The files of the host.
    pub(crate) fn host_files() -> Self {
        Files::at("/etc/hosts".into(), "/etc/resolv.conf".into(), 53)
    }

    /// These files; name servers are asked on `port`.
    pub(crate) fn at(hosts: PathBuf, resolv_conf: PathBuf, port: u16) -> Self {
        Files {
            hosts: Watched::new(hosts, Box::new(addresses)),
            servers: Watched::new(resolv_conf, Box::new(move |text| servers(text, port))),
        }
    }

    /// The addresses of `name` in the hosts file, `None` where it is not there.
    pub(crate) fn host(&mut self, name: &Name) -> Option<Vec<IpAddr>> {
        self.hosts.value().get(name).cloned()
    }

    /// The name servers, in the order to ask them; never empty.
    pub(crate) fn servers(&mut self) -> Vec<SocketAddr> {
        self.servers.value().clone()
    }
}

/// Something read from a file.
struct Watched<T> {
    path: PathBuf,
    parse: Box<dyn Fn(&str) -> T>,
    read: Option<Read<T>>,
}

struct Read<T> {
    value: T,
    stamp: Option<Stamp>,
    looked: Instant,
}

/// Device, inode, size and times: what changes with a file.
type Stamp = (u64, u64, u64, i64, i64);

impl<T> Watched<T> {
    fn new(path: PathBuf, parse: Box<dyn Fn(&str) -> T>) -> Self {
        Watched { path, parse, read: None }
    }

    fn value(&mut self) -> &T {
        let now = Instant::now();
        let read = match self.read.take() {
            Some(read) if now.saturating_duration_since(read.looked) < LOOK => read,
            Some(read) if read.stamp == stamp(&self.path) => Read { looked: now, ..read },
            before => {
                // The stamp is taken first: a change while reading is seen at the next look.
                let stamp = stamp(&self.path);
                match (text(&self.path), before) {
                    // Landlock lets the worker read the files that were there at its start, not what replaces them.
                    (Err(e), Some(before)) if e.kind() == ErrorKind::PermissionDenied => {
                        Read { stamp, looked: now, ..before }
                    }
                    // No file is an empty file, as for the C library.
                    (text, _) => Read { value: (self.parse)(&text.unwrap_or_default()), stamp, looked: now },
                }
            }
        };
        &self.read.insert(read).value
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let of = |m: Metadata| (m.dev(), m.ino(), m.len(), m.mtime(), m.mtime_nsec());
    std::fs::metadata(path).ok().map(of)
}

fn text(path: &Path) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(SIZE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// hosts(5)
fn addresses(text: &str) -> HashMap<Name, Vec<IpAddr>> {
    let mut hosts: HashMap<Name, Vec<IpAddr>> = HashMap::new();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let Some(ip) = words.next().and_then(|ip| ip.parse::<IpAddr>().ok()) else { continue };
        for name in words.filter_map(|name| Name::parse(name).ok()) {
            let ips = hosts.entry(name).or_default();
            if !ips.contains(&ip) {
                ips.push(ip);
            }
        }
    }
    hosts
}

/// resolv.conf(5): only whom to ask. Search lists serve short names, and every name here is whole.
fn servers(text: &str, port: u16) -> Vec<SocketAddr> {
    let mut servers: Vec<SocketAddr> = text
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("nameserver"))
        .filter(|rest| rest.starts_with([' ', '\t']))
        .filter_map(|rest| rest.split_whitespace().next())
        .filter_map(|ip| server(ip, port))
        .take(SERVERS)
        .collect();
    if servers.is_empty() {
        servers.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
    }
    servers
}

/// An address, with a zone where it is link-local: `fe80::1%2`, `fe80::1%eth0`.
fn server(text: &str, port: u16) -> Option<SocketAddr> {
    let Some((ip, zone)) = text.split_once('%') else {
        return Some(SocketAddr::new(text.parse().ok()?, port));
    };
    let index = || std::fs::read_to_string(Path::new("/sys/class/net").join(zone).join("ifindex")).ok();
    let zone = zone.parse().ok().or_else(|| index()?.trim().parse().ok())?;
    Some(std::net::SocketAddrV6::new(ip.parse().ok()?, port, 0, zone).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_hosts_file_gives_every_name_of_a_line_its_addresses() {
        let text = "127.0.0.1 localhost\n# 192.0.2.9 no\n192.0.2.1\tA.Example b.example # c\n\
                    2001:db8::1 a.example\n192.0.2.1 a.example\nnonsense d.example\n";
        let hosts = addresses(text);
        let of = |name: &str| hosts.get(&name.parse().unwrap());
        assert_eq!(of("a.example"), Some(&vec![ip("192.0.2.1"), ip("2001:db8::1")]));
        assert_eq!(of("b.example"), Some(&vec![ip("192.0.2.1")]));
        assert_eq!((of("c"), of("d.example")), (None, None));
    }

    #[test]
    fn resolv_conf_names_at_most_three_servers_and_else_the_local_one() {
        let text = "search example\nnameserver 192.0.2.1\n nameserver\t2001:db8::1 # x\nnameserverx 192.0.2.2\n\
                    nameserver bad\nnameserver fe80::1%7\nnameserver 192.0.2.3\noptions timeout:1\n";
        let got: Vec<_> = servers(text, 53).iter().map(ToString::to_string).collect();
        assert_eq!(got, ["192.0.2.1:53", "[2001:db8::1]:53", "[fe80::1%7]:53"]);
        assert_eq!(servers("", 53), ["127.0.0.1:53".parse().unwrap()]);
    }

    #[test]
    fn a_changed_file_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let hosts = dir.path().join("hosts");
        let mut files = Files::at(hosts.clone(), dir.path().join("none"), 53);
        let name = "a.example".parse().unwrap();
        assert_eq!(files.host(&name), None);
        std::fs::write(&hosts, "192.0.2.1 a.example\n").unwrap();
        let start = Instant::now();
        while files.host(&name).is_none() {
            assert!(start.elapsed() < LOOK * 60, "the change was not seen");
            std::thread::yield_now();
        }
        assert_eq!(files.host(&name), Some(vec![ip("192.0.2.1")]));
    }
}
