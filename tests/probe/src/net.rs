//! Ordinary TCP and UDP, and the two protocols whose names are checked: TLS and HTTP.

use crate::{dns, failed, milliseconds, say};
use serde_json::{Value, json};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// Longer than any refusal may take, so that a silent drop shows as a time-out, and than an answer takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// For the answer to a request that may wait for an operator's word.
const VERDICT: Duration = Duration::from_secs(30);
/// For the answer to a datagram, which is sent so many times: the first ones on a new link may be lost.
pub(crate) const ECHO: (Duration, u32) = (Duration::from_millis(200), 40);

pub(crate) fn tcp(host: &str, port: &str, text: &[&str]) -> Value {
    let attempt = || -> io::Result<Value> {
        let mut stream = connect(host, port)?;
        let peer = stream.peer_addr()?.to_string();
        if text.is_empty() {
            return Ok(json!({"ok": true, "errno": 0, "peer": peer}));
        }
        stream.write_all(&unescape(&text.join(" ")))?;
        let got = read_once(&mut stream)?;
        Ok(json!({"ok": !got.is_empty(), "errno": 0, "peer": peer, "got": String::from_utf8_lossy(&got)}))
    };
    attempt().unwrap_or_else(|error| failed(&error))
}

pub(crate) fn unix(path: &str, text: &[&str]) -> Value {
    let attempt = || -> io::Result<Value> {
        let mut stream = std::os::unix::net::UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&unescape(&text.join(" ")))?;
        let got = read_once(&mut stream)?;
        Ok(json!({"ok": !got.is_empty(), "errno": 0, "got": String::from_utf8_lossy(&got)}))
    };
    attempt().unwrap_or_else(|error| failed(&error))
}

pub(crate) fn tls(host: &str, port: &str, sni: Option<&str>) -> Value {
    let attempt = || -> io::Result<Value> {
        let mut stream = connect(host, port)?;
        stream.write_all(&client_hello(sni))?;
        let got = read_once(&mut stream)?;
        // A handshake record: the server answered with its hello.
        Ok(json!({"ok": got.first() == Some(&22), "errno": 0, "record": got.first()}))
    };
    attempt().unwrap_or_else(|error| failed(&error))
}

pub(crate) fn http(host: &str, port: &str, requests: &[&str]) -> Value {
    let mut answers = Vec::new();
    let mut attempt = || -> io::Result<()> {
        let mut stream = connect(host, port)?;
        stream.set_read_timeout(Some(VERDICT))?;
        for pair in requests.chunks_exact(2) {
            let (name, path) = (pair[0], pair[1]);
            let started = Instant::now();
            write!(stream, "GET {path} HTTP/1.1\r\nHost: {name}\r\nUser-Agent: terok-probe\r\n\r\n")?;
            let (status, body) = response(&mut stream)?;
            answers.push(json!({"status": status, "body": body, "ms": milliseconds(started)}));
        }
        Ok(())
    };
    let ended = attempt();
    let mut line = ended.map_or_else(|error| failed(&error), |()| json!({"ok": true, "errno": 0}));
    line["answers"] = json!(answers);
    line
}

pub(crate) fn hold(host: &str, port: &str, path: Option<&str>) -> Value {
    let mut total = 0_u64;
    let mut attempt = || -> io::Result<()> {
        let mut stream = connect(host, port)?;
        if let Some(path) = path {
            let name = host.split('%').next().unwrap_or(host);
            write!(stream, "GET {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n")?;
        }
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        let mut block = vec![0; 1 << 16];
        let mut told = path.is_none();
        if told {
            say(&json!({"open": true}));
        }
        loop {
            let n = stream.read(&mut block)?;
            if n == 0 {
                return Ok(());
            }
            total += n as u64;
            if !told {
                say(&json!({"open": true}));
                told = true;
            }
        }
    };
    let ended = attempt();
    let mut line = ended.map_or_else(|error| failed(&error), |()| json!({"ok": true, "errno": 0}));
    line["bytes"] = json!(total);
    line
}

pub(crate) fn udp(host: &str, port: &str, text: &str) -> Value {
    let attempt = || -> io::Result<Value> {
        let target = SocketAddr::new(resolve(host)?, number(port)?);
        let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(target)?;
        let mut block = [0; 2048];
        let n = echo(&socket, text.as_bytes(), &mut block)?;
        Ok(json!({"ok": true, "errno": 0, "got": String::from_utf8_lossy(&block[..n])}))
    };
    attempt().unwrap_or_else(|error| failed(&error))
}

/// Sends until something comes back, or a refusal does.
pub(crate) fn echo(socket: &UdpSocket, datagram: &[u8], answer: &mut [u8]) -> io::Result<usize> {
    let (patience, times) = ECHO;
    socket.set_read_timeout(Some(patience))?;
    for _ in 1..times {
        socket.send(datagram)?;
        match socket.recv(answer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            ended => return ended,
        }
    }
    socket.send(datagram)?;
    socket.recv(answer)
}

pub(crate) fn udp_hold(host: &str, port: &str) -> Value {
    let mut answers = 0_u64;
    let mut attempt = || -> io::Result<()> {
        let target = SocketAddr::new(resolve(host)?, number(port)?);
        let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(target)?;
        socket.set_read_timeout(Some(ECHO.0))?;
        let (mut block, mut missed) = ([0; 64], 0);
        loop {
            socket.send(b"again")?;
            match socket.recv(&mut block) {
                // Answers may be late or lost: neighbours on the way are still being asked for. That nothing more is sent shows
                // with the next question.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && missed < ECHO.1 => {
                    missed += 1;
                }
                Err(error) => return Err(error),
                Ok(_) => {
                    if answers == 0 {
                        say(&json!({"open": true}));
                    }
                    (answers, missed) = (answers + 1, 0);
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let ended = attempt();
    let mut line = ended.map_or_else(|error| failed(&error), |()| json!({"ok": true, "errno": 0}));
    line["answers"] = json!(answers);
    line
}

pub(crate) fn flood(count: &str, host: &str, port: &str) -> Value {
    let attempt = || -> io::Result<u64> {
        let target = SocketAddr::new(resolve(host)?, number(port)?);
        let any: IpAddr = if target.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        let socket = UdpSocket::bind((any, 0))?;
        let count: u64 = count.parse().unwrap_or(0);
        Ok((0..count).map(|_| u64::from(socket.send_to(b"flood", target).is_err())).sum())
    };
    attempt()
        .map_or_else(|error| failed(&error), |refused| json!({"ok": true, "errno": 0, "refused": refused}))
}

pub(crate) fn idle(count: &str, host: &str, port: &str) -> Value {
    let count: usize = count.parse().unwrap_or(0);
    let open: Vec<TcpStream> = (0..count).filter_map(|_| connect(host, port).ok()).collect();
    say(&json!({"open": true, "count": open.len()}));
    loop {
        std::thread::park();
    }
}

pub(crate) fn serve(port: &str, count: &str) -> Value {
    let attempt = || -> io::Result<u64> {
        let any = (std::net::Ipv6Addr::UNSPECIFIED, number(port)?); // dual-stack, as is Linux's default
        let (listener, datagrams) = (std::net::TcpListener::bind(any)?, UdpSocket::bind(any)?);
        say(&json!({"open": true}));
        std::thread::spawn(move || {
            let mut block = [0; 2048];
            while let Ok((n, peer)) = datagrams.recv_from(&mut block) {
                say(&json!({"udp": plain(peer), "got": String::from_utf8_lossy(&block[..n])}));
                let _ = datagrams.send_to(format!("udp {}\n", plain(peer)).as_bytes(), peer);
            }
        });
        let count = count.parse().unwrap_or(0);
        for _ in 0..count {
            let (mut stream, peer) = listener.accept()?;
            say(&json!({"tcp": plain(peer)}));
            std::thread::spawn(move || {
                let _ = stream.write_all(format!("tcp {}\n", plain(peer)).as_bytes());
                let mut block = [0; 2048];
                while let Ok(n @ 1..) = stream.read(&mut block) {
                    if stream.write_all(&block[..n]).is_err() {
                        break;
                    }
                }
            });
        }
        Ok(count)
    };
    attempt().map_or_else(|error| failed(&error), |count| json!({"ok": true, "errno": 0, "count": count}))
}

/// A peer of a dual-stack socket, as people write it.
fn plain(peer: SocketAddr) -> String {
    SocketAddr::new(peer.ip().to_canonical(), peer.port()).to_string()
}

pub(crate) fn burst(count: &str, targets: &[&str]) -> Value {
    let started = Instant::now();
    let pairs: Vec<(String, String)> =
        targets.chunks_exact(2).map(|pair| (pair[0].to_owned(), pair[1].to_owned())).collect();
    let threads: Vec<_> = (0..count.parse().unwrap_or(0))
        .filter_map(|n: usize| pairs.get(n % pairs.len().max(1)).cloned())
        .map(|(host, port)| {
            std::thread::spawn(move || {
                let attempt = || -> io::Result<Value> {
                    // An allowed connection is one on which the server answers, not one that the proxy merely took.
                    let mut stream = connect(&host, &port)?;
                    let name = host.split('%').next().unwrap_or(&host);
                    write!(stream, "GET /burst HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n")?;
                    let (status, _) = response(&mut stream)?;
                    Ok(json!({"ok": status == 200, "errno": 0}))
                };
                let mut line = attempt().unwrap_or_else(|error| failed(&error));
                line["host"] = json!(host);
                line["ms"] = json!(milliseconds(started));
                line
            })
        })
        .collect();
    let results: Vec<Value> = threads.into_iter().filter_map(|thread| thread.join().ok()).collect();
    json!({"ok": true, "errno": 0, "results": results})
}

/// Connects to an address or a name.
pub(crate) fn connect(host: &str, port: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::new(resolve(host)?, number(port)?), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The address of `host`, asked of the container's resolver where it is a name.
pub(crate) fn resolve(host: &str) -> io::Result<IpAddr> {
    if let Ok(ip) = host.parse() {
        return Ok(ip);
    }
    let (name, kinds): (&str, &[&str]) = match host.split_once('%') {
        Some((name, "6")) => (name, &["AAAA"]),
        Some((name, _)) => (name, &["A"]),
        None => (host, &["A", "AAAA"]),
    };
    for kind in kinds {
        let answer = dns::ask(dns::usual(dns::resolver()), name, kind, false)?;
        if let Some(ip) = answer.addresses.first() {
            return Ok(*ip);
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("no address for {name}")))
}

pub(crate) fn number(port: &str) -> io::Result<u16> {
    port.parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "bad port"))
}

fn read_once(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut block = vec![0; 4096];
    let n = stream.read(&mut block)?;
    block.truncate(n);
    Ok(block)
}

/// Status and body of one response with a Content-Length.
fn response(stream: &mut TcpStream) -> io::Result<(u16, String)> {
    let cut = || io::Error::new(io::ErrorKind::UnexpectedEof, "closed before an answer");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if stream.read(&mut byte)? == 0 {
            return Err(cut());
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    let length = head
        .lines()
        .find_map(|line| {
            line.to_ascii_lowercase().strip_prefix("content-length:").map(|n| n.trim().to_owned())
        })
        .and_then(|n| n.parse().ok())
        .unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        match rest.next() {
            Some(b'r') => out.push(b'\r'),
            Some(b'n') => out.push(b'\n'),
            Some(b'x') => {
                let digits: String = rest.by_ref().take(2).map(char::from).collect();
                out.push(u8::from_str_radix(&digits, 16).unwrap_or(b'?'));
            }
            other => out.extend(other),
        }
    }
    out
}

/// A TLS 1.2 ClientHello (RFC 5246 7.4.1.2) that any server with an ECDSA key answers.
fn client_hello(sni: Option<&str>) -> Vec<u8> {
    let with_length = |body: &[u8]| [&(body.len() as u16).to_be_bytes(), body].concat();
    let extension = |kind: u16, body: &[u8]| [&kind.to_be_bytes()[..], &with_length(body)].concat();
    let mut extensions = Vec::new();
    if let Some(name) = sni {
        let entry = [&[0][..], &with_length(name.as_bytes())].concat();
        extensions.extend(extension(0, &with_length(&entry)));
    }
    extensions.extend(extension(10, &with_length(&[0, 23, 0, 24]))); // groups: P-256, P-384
    extensions.extend(extension(11, &[1, 0])); // uncompressed points
    extensions.extend(extension(13, &with_length(&[4, 3, 5, 3, 8, 4, 4, 1]))); // signature algorithms
    let mut body = vec![3, 3];
    body.extend([0x5a; 32]); // random
    body.push(0); // no session
    body.extend(with_length(&[0xc0, 0x2b, 0xc0, 0x2c, 0xcc, 0xa9])); // ECDHE-ECDSA suites
    body.extend([1, 0]); // no compression
    body.extend(with_length(&extensions));
    let length = (body.len() as u32).to_be_bytes();
    let handshake = [&[1][..], &length[1..], &body].concat();
    [&[22, 3, 1][..], &with_length(&handshake)].concat()
}
