//! `terok-probe STEP…`: what a hostile or honest program in a container tries, one JSON line a step:
//! `ok`, `errno` (0 where none), `ms` for the whole attempt, and what came back. It judges nothing; the tests do.

mod dns;
mod net;
mod odd;
mod speed;

use serde_json::{Value, json};
use std::io::Write;

/// The steps, each one argument of words separated by spaces. HOST is an address or a name; `NAME%4` and `NAME%6` choose the family.
const HELP: &str = "\
tcp HOST PORT [TEXT]          connect; send TEXT (\\r \\n \\xHH are understood) and read once
unix PATH TEXT                the same on a socket of the file system
tls HOST PORT SNI|-           connect, send a ClientHello with SNI or without one, read the first record
http HOST PORT HOST PATH …    keep-alive GETs with the given Host and path, pair by pair, on one connection
hold HOST PORT [PATH]         connect (and GET PATH with Host HOST); print `open`, then read until the end and print why it ended
udp HOST PORT TEXT            send again every 200 ms until an answer comes, for 8 s
udphold HOST PORT             send again and again; print `open` at the first answer, then why no further one came
flood COUNT HOST PORT         as many datagrams, one after the other; how many were refused
idle COUNT HOST PORT          open as many connections and say nothing; print `open`, then sleep
serve PORT [COUNT]            TCP and UDP on both families: print `open`, then one line for each peer, which is sent its own address
settle                        wait until every card has its addresses and a default route of IPv6
ping HOST                     ICMP echoes from a ping socket, in the same way
dns SERVER NAME TYPE [tcp]    one question
labels COUNT SUFFIX           COUNT questions for random labels under SUFFIX to the resolver
socket FAMILY TYPE PROTOCOL   create a socket, by number
mptcp HOST PORT               connect with Multipath TCP
fastopen HOST PORT TEXT       TEXT in the SYN
mmsg HOST PORT TEXT           UDP by sendmmsg
marked MARK HOST PORT         connect with SO_MARK
raw ADDRESS PORT TEXT         UDP from a raw socket
frame CARD MAC SOURCE ADDRESS PORT TEXT   UDP in a frame of its own, from a packet socket
io_uring                      set up a ring
burst COUNT HOST PORT …       COUNT connects at once, to each target in turn
bulk HOST PORT PATH           GET PATH, bytes a second
rate SECONDS THREADS HOST PORT PATH   connections a second, each with one GET
requests SECONDS CONNECTIONS HOST PORT PATH HEADER:VALUE   GETs on connections that stay, their number a second, p50 and p99
asks COUNT SERVER PORT NAME   COUNT questions one after the other, their p50 and p99
sleep                         sleep for ever";

fn main() {
    let steps: Vec<String> = std::env::args().skip(1).collect();
    if steps.is_empty() {
        eprintln!("{HELP}");
        std::process::exit(64);
    }
    for step in steps {
        let words: Vec<&str> = step.split(' ').collect();
        let started = std::time::Instant::now();
        let mut line = run(&words);
        if let Value::Object(line) = &mut line {
            line.insert("step".to_owned(), json!(step));
            line.entry("ms").or_insert_with(|| json!(milliseconds(started)));
        }
        say(&line);
    }
}

fn run(words: &[&str]) -> Value {
    match *words {
        ["unix", path, ..] => net::unix(path, words.get(2..).unwrap_or_default()),
        ["tcp", host, port, ..] => net::tcp(host, port, words.get(3..).unwrap_or_default()),
        ["tls", host, port, sni] => net::tls(host, port, (sni != "-").then_some(sni)),
        ["http", host, port, ..] => net::http(host, port, words.get(3..).unwrap_or_default()),
        ["hold", host, port] => net::hold(host, port, None),
        ["hold", host, port, path] => net::hold(host, port, Some(path)),
        ["udp", host, port, text] => net::udp(host, port, text),
        ["udphold", host, port] => net::udp_hold(host, port),
        ["flood", count, host, port] => net::flood(count, host, port),
        ["idle", count, host, port] => net::idle(count, host, port),
        ["serve", port] => net::serve(port, "1000000"),
        ["serve", port, count] => net::serve(port, count),
        ["settle"] => odd::settle(),
        ["burst", count, ..] => net::burst(count, words.get(2..).unwrap_or_default()),
        ["dns", server, name, kind] => dns::ask_step(server, name, kind, false),
        ["dns", server, name, kind, "tcp"] => dns::ask_step(server, name, kind, true),
        ["labels", count, suffix] => dns::labels(count, suffix),
        ["ping", host] => odd::ping(host),
        ["socket", family, kind, protocol] => odd::socket(family, kind, protocol),
        ["mptcp", host, port] => odd::mptcp(host, port),
        ["fastopen", host, port, text] => odd::fastopen(host, port, text),
        ["mmsg", host, port, text] => odd::sendmmsg(host, port, text),
        ["marked", mark, host, port] => odd::marked(mark, host, port),
        ["raw", address, port, text] => odd::raw(address, port, text),
        ["frame", card, mac, source, address, port, text] => {
            odd::frame(card, mac, source, address, port, text)
        }
        ["io_uring"] => odd::io_uring(),
        ["bulk", host, port, path] => speed::bulk(host, port, path),
        ["rate", seconds, threads, host, port, path] => speed::rate(seconds, threads, host, port, path),
        ["requests", seconds, connections, host, port, path, header] => {
            speed::requests(seconds, connections, host, port, path, header)
        }
        ["asks", count, server, port, name] => speed::asks(count, server, port, name),
        ["sleep"] => loop {
            std::thread::park();
        },
        _ => json!({"ok": false, "errno": 0, "error": "no such step"}),
    }
}

/// Prints one line at once.
pub(crate) fn say(line: &Value) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Milliseconds since `started`, with a fraction.
pub(crate) fn milliseconds(started: std::time::Instant) -> f64 {
    (started.elapsed().as_secs_f64() * 1e6).round() / 1e3
}

/// The line of a step that failed.
pub(crate) fn failed(error: &std::io::Error) -> Value {
    json!({"ok": false, "errno": error.raw_os_error().unwrap_or(0), "error": error.to_string()})
}
