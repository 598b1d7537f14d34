//! A stub resolver that shows what it was told (RFC 1035).

use crate::{failed, milliseconds};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// What a server answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) rcode: u8,
    pub(crate) truncated: bool,
    pub(crate) records: usize,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) ttl: Option<u32>,
}

pub(crate) fn ask_step(server: &str, name: &str, kind: &str, tcp: bool) -> Value {
    // Its port as well, where that is another than usual.
    let server = match server {
        "-" => Ok(usual(resolver())),
        _ => server.parse().or_else(|_| server.parse().map(usual)),
    };
    let answer = server
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "bad server"))
        .and_then(|server| ask(server, name, kind, tcp));
    match answer {
        Ok(a) => {
            json!({"ok": a.rcode == 0 && a.records > 0, "errno": 0, "rcode": a.rcode, "truncated": a.truncated,
                   "records": a.records, "addresses": a.addresses, "ttl": a.ttl})
        }
        Err(error) => failed(&error),
    }
}

pub(crate) fn labels(count: &str, suffix: &str) -> Value {
    let mut rcodes: BTreeMap<String, u64> = BTreeMap::new();
    let mut slowest = 0.0_f64;
    for n in 0..count.parse::<u64>().unwrap_or(0) {
        let started = Instant::now();
        // Looks like the data a tunnel would carry, and is different for each question.
        let label = format!("{:016x}{n:08x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let answer = ask(usual(resolver()), &format!("{label}.{suffix}"), "TXT", false);
        let key = answer.map_or_else(|error| error.kind().to_string(), |a| a.rcode.to_string());
        *rcodes.entry(key).or_default() += 1;
        slowest = slowest.max(milliseconds(started));
    }
    json!({"ok": true, "errno": 0, "rcodes": rcodes, "slowest": slowest})
}

/// The first nameserver of resolv.conf, or the container itself.
pub(crate) fn resolver() -> IpAddr {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("nameserver")?.trim().parse().ok())
        .unwrap_or(IpAddr::from([127, 0, 0, 1]))
}

/// The port at which every server is asked.
pub(crate) fn usual(server: IpAddr) -> SocketAddr {
    SocketAddr::new(server, 53)
}

/// Asks `server`, by UDP a second time where no answer comes.
pub(crate) fn ask(server: SocketAddr, name: &str, kind: &str, tcp: bool) -> io::Result<Answer> {
    let patience = Some(Duration::from_secs(6));
    let query = query(name, kind)?;
    let mut reply = vec![0; 65535];
    let n = if tcp {
        let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(6))?;
        stream.set_read_timeout(patience)?;
        stream.write_all(&[&(query.len() as u16).to_be_bytes()[..], &query].concat())?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let n = usize::from(u16::from_be_bytes(length));
        stream.read_exact(&mut reply[..n])?;
        n
    } else {
        let any: IpAddr = if server.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(server)?; // an answer from another address is not ours
        socket.set_read_timeout(patience)?;
        socket.send(&query)?;
        match socket.recv(&mut reply) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                socket.send(&query)?;
                socket.recv(&mut reply)?
            }
            ended => ended?,
        }
    };
    parse(reply.get(..n).unwrap_or_default())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a DNS answer"))
}

pub(crate) fn query(name: &str, kind: &str) -> io::Result<Vec<u8>> {
    let kind: u16 = match kind {
        "A" => 1,
        "CNAME" => 5,
        "TXT" => 16,
        "AAAA" => 28,
        "SVCB" => 64,
        "HTTPS" => 65,
        "ANY" => 255,
        other => other.parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "bad type"))?,
    };
    let mut query = vec![0x74, 0x6b, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        query.push(label.len() as u8);
        query.extend(label.bytes());
    }
    query.push(0);
    query.extend(kind.to_be_bytes());
    query.extend([0, 1]);
    Ok(query)
}

pub(crate) fn parse(reply: &[u8]) -> Option<Answer> {
    let half = |at: usize| Some(u16::from_be_bytes(reply.get(at..at + 2)?.try_into().ok()?));
    let mut at = 12;
    for _ in 0..half(4)? {
        at = skip_name(reply, at)? + 4;
    }
    let records = usize::from(half(6)?);
    let (mut addresses, mut ttl) = (Vec::new(), None);
    for _ in 0..records {
        at = skip_name(reply, at)?;
        let (kind, length) = (half(at)?, usize::from(half(at + 8)?));
        ttl = Some(u32::from_be_bytes(reply.get(at + 4..at + 8)?.try_into().ok()?));
        let data = reply.get(at + 10..at + 10 + length)?;
        match kind {
            1 => addresses.push(IpAddr::from(<[u8; 4]>::try_from(data).ok()?)),
            28 => addresses.push(IpAddr::from(<[u8; 16]>::try_from(data).ok()?)),
            _ => {}
        }
        at += 10 + length;
    }
    Some(Answer { rcode: reply.get(3)? & 15, truncated: reply.get(2)? & 2 != 0, records, addresses, ttl })
}

fn skip_name(reply: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *reply.get(at)? {
            0 => return Some(at + 1),
            pointer if pointer & 0xc0 == 0xc0 => return Some(at + 2),
            length => at += 1 + usize::from(length),
        }
    }
}
