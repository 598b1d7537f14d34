//! How fast: one large body, connections a second, questions one after the other.

use crate::{dns, failed, net};
use serde_json::{Value, json};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// Reads a whole response and says how many bytes came a second, from the connect to the end.
pub(crate) fn bulk(host: &str, port: &str, path: &str) -> Value {
    let attempt = || -> io::Result<Value> {
        let target = SocketAddr::new(net::resolve(host)?, net::number(port)?);
        let started = Instant::now();
        let mut stream = ask(target, host, path)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut block = vec![0; 1 << 18];
        let mut total = 0_u64;
        loop {
            match stream.read(&mut block)? {
                0 => break,
                n => total += n as u64,
            }
        }
        let seconds = started.elapsed().as_secs_f64();
        Ok(
            json!({"ok": total > 1 << 20, "errno": 0, "bytes": total, "bytes_per_second": total as f64 / seconds}),
        )
    };
    attempt().unwrap_or_else(|error| failed(&error))
}

/// For `seconds`, `threads` connect, ask for `path`, read the answer and connect again.
pub(crate) fn rate(seconds: &str, threads: &str, host: &str, port: &str, path: &str) -> Value {
    let attempt = || -> io::Result<Value> {
        let target = SocketAddr::new(net::resolve(host)?, net::number(port)?);
        let (threads, seconds): (usize, u64) = (threads.parse().unwrap_or(1), seconds.parse().unwrap_or(1));
        let started = Instant::now();
        let end = started + Duration::from_secs(seconds);
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                let (host, path) = (host.to_owned(), path.to_owned());
                std::thread::spawn(move || until(end, || whole(target, &host, &path)))
            })
            .collect();
        let (mut done, mut failures) = (0_u64, 0_u64);
        for (good, bad) in workers.into_iter().filter_map(|worker| worker.join().ok()) {
            done += good;
            failures += bad;
        }
        let per_second = done as f64 / started.elapsed().as_secs_f64();
        Ok(
            json!({"ok": failures == 0 && done > 0, "errno": 0, "done": done, "failures": failures, "per_second": per_second}),
        )
    };
    attempt().unwrap_or_else(|error| failed(&error))
}

/// For `seconds`, so many connections ask for `path` again and again, each as soon as the last answer was there; `header` is `name:value`.
pub(crate) fn requests(
    seconds: &str,
    connections: &str,
    host: &str,
    port: &str,
    path: &str,
    header: &str,
) -> Value {
    let attempt = || -> io::Result<Value> {
        let target = SocketAddr::new(net::resolve(host)?, net::number(port)?);
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{header}\r\n\r\n").into_bytes();
        let started = Instant::now();
        let end = started + Duration::from_secs(seconds.parse().unwrap_or(1));
        let workers: Vec<_> = (0..connections.parse().unwrap_or(1))
            .map(|_| {
                let request = request.clone();
                std::thread::spawn(move || again(target, &request, end))
            })
            .collect();
        let mut taken = Vec::new();
        for worker in workers {
            taken.extend(worker.join().map_err(|_| io::Error::other("a thread panicked"))??);
        }
        let per_second = taken.len() as f64 / started.elapsed().as_secs_f64();
        taken.sort_by(f64::total_cmp);
        let quantile = |q: f64| taken.get(((taken.len().max(1) - 1) as f64 * q) as usize);
        let (p50, p99) = (quantile(0.5), quantile(0.99));
        Ok(
            json!({"ok": true, "errno": 0, "done": taken.len(), "per_second": per_second, "p50": p50, "p99": p99}),
        )
    };
    attempt().unwrap_or_else(|error| failed(&error))
}

/// Milliseconds of each request on one connection; the answers say their length.
fn again(target: SocketAddr, request: &[u8], end: Instant) -> io::Result<Vec<f64>> {
    let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(10))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let (mut taken, mut got) = (Vec::new(), Vec::new());
    while Instant::now() < end {
        let started = Instant::now();
        stream.write_all(request)?;
        got.clear();
        let mut block = [0; 4096];
        while !is_whole(&got)? {
            match stream.read(&mut block)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => got.extend_from_slice(&block[..n]),
            }
        }
        taken.push(started.elapsed().as_secs_f64() * 1e3);
    }
    Ok(taken)
}

/// Whether head and body of a 200 with a length have come.
fn is_whole(got: &[u8]) -> io::Result<bool> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, String::from_utf8_lossy(got).into_owned());
    let Some(end) = got.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(false) };
    let head = String::from_utf8_lossy(&got[..end]).to_lowercase();
    if !head.starts_with("http/1.1 200 ") {
        return Err(invalid());
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")).ok_or_else(invalid)?;
    Ok(got.len() >= end + 4 + length.trim().parse::<usize>().map_err(|_| invalid())?)
}

/// Asks for the IPv4 address of `name`, `count` times, one question after the other on one socket.
pub(crate) fn asks(count: &str, server: &str, port: &str, name: &str) -> Value {
    let attempt = || -> io::Result<Value> {
        let server = SocketAddr::new(net::resolve(server)?, net::number(port)?);
        let socket = UdpSocket::bind((if server.is_ipv4() { "0.0.0.0" } else { "::" }, 0))?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        let query = dns::query(name, "A")?;
        let mut reply = [0; 1500];
        let mut taken = Vec::new();
        for _ in 0..count.parse().unwrap_or(0) {
            let started = Instant::now();
            socket.send(&query)?;
            let n = socket.recv(&mut reply)?;
            taken.push(started.elapsed().as_secs_f64() * 1e3);
            if !dns::parse(&reply[..n])
                .is_some_and(|answer| answer.rcode == 0 && !answer.addresses.is_empty())
            {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "no address in the answer"));
            }
        }
        taken.sort_by(f64::total_cmp);
        let quantile = |q: f64| taken.get(((taken.len().max(1) - 1) as f64 * q) as usize);
        Ok(json!({"ok": true, "errno": 0, "p50": quantile(0.5), "p99": quantile(0.99)}))
    };
    attempt().unwrap_or_else(|error| failed(&error))
}

/// How often `work` succeeded and failed until `end`.
fn until(end: Instant, work: impl Fn() -> io::Result<()>) -> (u64, u64) {
    let (mut good, mut bad) = (0, 0);
    while Instant::now() < end {
        match work() {
            Ok(()) => good += 1,
            Err(_) => bad += 1,
        }
    }
    (good, bad)
}

/// One connection: a request and everything that comes back.
fn whole(target: SocketAddr, host: &str, path: &str) -> io::Result<()> {
    let mut stream = ask(target, host, path)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    if answer.starts_with(b"HTTP/1.1 200 ") { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

fn ask(target: SocketAddr, host: &str, path: &str) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(10))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let port = target.port();
    stream.write_all(
        format!("GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    Ok(stream)
}
