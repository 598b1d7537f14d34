//! The fake internet: addresses for one test alone, and what its servers really saw.

use crate::Mode;
use serde_json::Value;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU16, Ordering};

/// A web site that only the test that asked for it knows.
#[derive(Debug, Clone)]
pub struct Site {
    /// Its number, for whatever else must be the test's own.
    pub number: u16,
    /// Its name.
    pub name: String,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
}

/// A site of the test's own.
pub fn site() -> Site {
    static NEXT: AtomicU16 = AtomicU16::new(300);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let [high, low] = number.to_be_bytes();
    Site {
        number,
        name: format!("site-{number}.example.com"),
        v4: Ipv4Addr::new(198, 52, high, low),
        v6: Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, number),
    }
}

/// Addresses that answer and that no name leads to, of the test's own.
pub fn bad_addresses() -> (Ipv4Addr, Ipv6Addr) {
    static NEXT: AtomicU16 = AtomicU16::new(300);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let [high, low] = number.to_be_bytes();
    (Ipv4Addr::new(203, 1, high, low), Ipv6Addr::new(0x2001, 0xdb8, 0xbad, 0, 0, 0, 0, number))
}

/// Blocks of 16 addresses, /28 and /124, that all answer and that no name leads to, of the test's own; their first addresses.
pub fn bad_blocks() -> (Ipv4Addr, Ipv6Addr) {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let [high, low] = (0x8000 | number << 4).to_be_bytes();
    (Ipv4Addr::new(203, 1, high, low), Ipv6Addr::new(0x2001, 0xdb8, 0xbad, 0, 0, 0, 1, number << 4))
}

/// A port of the host's that no other test uses.
pub fn host_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(21_000);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A step of the probe on the host itself.
#[track_caller]
pub fn on_the_host(step: &str) -> Value {
    Mode::Rootful.run("/run/lab/bin/terok-probe", &[step]).lines().pop().unwrap_or_default()
}

/// A step of the probe somewhere in the fake internet.
#[track_caller]
pub fn outside(step: &str) -> Value {
    let net = "--net=/run/netns/inet";
    Mode::Rootful.run("nsenter", &[net, "/run/lab/bin/terok-probe", step]).lines().pop().unwrap_or_default()
}

/// Everything the servers saw so far.
pub fn seen() -> Vec<Value> {
    seen_with("")
}

/// The same, of lines alone that have this text somewhere: most are of other tests, and need not be taken apart.
fn seen_with(text: &str) -> Vec<Value> {
    let all = std::fs::read_to_string("/run/inet/seen.jsonl").expect("the fake internet keeps a log");
    // The last line may be one that is being written.
    all.lines()
        .filter(|line| line.contains(text))
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

/// What the servers saw at one address, DNS aside.
pub fn seen_at(address: impl ToString) -> Vec<Value> {
    let address = address.to_string();
    let lines = seen_with(&address).into_iter();
    lines.filter(|line| line["dst"] == address.as_str() && line["proto"] != "dns").collect()
}

/// Names under `suffix` that any DNS server was asked for.
pub fn queries(suffix: &str) -> Vec<String> {
    let below = format!(".{suffix}");
    let names = seen_with(suffix).into_iter().filter(|line| line["proto"] == "dns");
    names
        .filter_map(|line| line["name"].as_str().map(str::to_owned))
        .filter(|name| name == suffix || name.ends_with(&below))
        .collect()
}

impl Site {
    /// What its servers saw, over both addresses.
    pub fn seen(&self) -> Vec<Value> {
        let mut lines = seen_at(self.v4);
        lines.extend(seen_at(self.v6));
        lines
    }

    /// The paths requested from it.
    pub fn paths(&self) -> Vec<String> {
        self.seen().iter().filter_map(|line| line["path"].as_str().map(str::to_owned)).collect()
    }
}
