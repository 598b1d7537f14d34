//! The view from inside `doctor`'s container: what there is of a network, who answers questions for names, and what
//! becomes of a connection that no rule allows. Runs as the container's only program.

use crate::doctor::Finding;
use serde::{Deserialize, Serialize};
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// The hidden verb that runs inside.
pub const PROBE: &str = "doctor-probe";
/// A name that no rule allows; reserved by RFC 6761.
pub(crate) const UNLISTED: &str = "terok-doctor.invalid";
/// An address that no rule allows; reserved by RFC 5737.
const UNLISTED_ADDRESS: &str = "192.0.2.1:443";
/// How long the probe stays, so that its supervisor can be asked.
const STAY: Duration = Duration::from_secs(30);
/// DNS response code: the name does not exist (RFC 1035 §4.1.1).
const NXDOMAIN: u8 = 3;

/// What the program saw inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Network interfaces.
    pub interfaces: Vec<String>,
    /// DNS response code for a name that no rule allows, or why there was none.
    pub dns: Result<u8, String>,
    /// What came of a connection to an address that no rule allows, and after how many milliseconds.
    pub connect: (String, u64),
}

/// Runs inside the container: prints [`Seen`] as JSON and stays until it is ended.
///
/// # Errors
/// Where standard output is gone.
pub fn probe() -> io::Result<()> {
    let seen = Seen {
        interfaces: interfaces(),
        dns: ask_dns().map_err(|error| error.to_string()),
        connect: try_connect(),
    };
    let mut out = io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(&seen)?)?;
    out.flush()?;
    std::thread::sleep(STAY);
    Ok(())
}

/// What it means, in a container that was to have a network card or none.
pub(crate) fn inside(seen: &Seen, card: bool) -> Vec<Finding> {
    let mut found = Vec::new();
    let area = if card { "network" } else { "container" };
    let interfaces = seen.interfaces.join(", ");
    match (card, seen.interfaces == ["lo"]) {
        (false, true) => found.push(Finding::ok(area, "has no network card")),
        (false, false) => found.push(Finding::fail(
            area,
            format!("has network interfaces {interfaces}"),
            "take network settings out of containers.conf",
        )),
        (true, false) => {
            found.push(Finding::ok(area, format!("a container with a network card starts: {interfaces}")));
        }
        (true, true) => found.push(Finding::warn(
            area,
            "containers get no network card by default, so none was tried",
            "",
        )),
    }
    match &seen.dns {
        Ok(NXDOMAIN) => {
            found.push(Finding::ok(area, "is answered by its supervisor: an unlisted name does not exist"))
        }
        Ok(code) => {
            found.push(Finding::fail(area, format!("an unlisted name is answered with code {code}"), ""))
        }
        Err(error) => found.push(Finding::fail(
            area,
            format!("no supervisor answers in it: {error}"),
            "podman did not run the hooks; run: terok setup",
        )),
    }
    let (outcome, ms) = &seen.connect;
    if outcome == "refused" && *ms < 1000 {
        found.push(Finding::ok(area, format!("an unlisted address is refused after {ms} ms")));
    } else {
        found.push(Finding::fail(
            area,
            format!("an unlisted address: {outcome} after {ms} ms"),
            "podman did not run the hooks; run: terok setup",
        ));
    }
    found
}

fn ask_dns() -> io::Result<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    // Header: id, recursion desired, one question (RFC 1035 §4.1.1).
    let mut query = vec![0x74, 0x6b, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in UNLISTED.split('.') {
        query.push(u8::try_from(label.len()).unwrap_or(0));
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    socket.send_to(&query, SocketAddr::from((IpAddr::from([127, 0, 0, 1]), 53)))?;
    let mut answer = [0; 512];
    let n = socket.recv(&mut answer)?;
    if n < 12 || answer[..2] != query[..2] {
        return Err(io::Error::other("an answer to another question"));
    }
    Ok(answer[3] & 0x0f)
}

fn try_connect() -> (String, u64) {
    let started = Instant::now();
    let address = UNLISTED_ADDRESS.parse().map_err(io::Error::other);
    let outcome =
        address.and_then(|address: SocketAddr| TcpStream::connect_timeout(&address, Duration::from_secs(2)));
    let ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let text = match outcome {
        Ok(_) => "connected".to_owned(),
        Err(error)
            if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset) =>
        {
            "refused".to_owned()
        }
        Err(error) => error.to_string(),
    };
    (text, ms)
}

/// Second and later lines of /proc/net/dev: `  name: …`.
fn interfaces() -> Vec<String> {
    let table = std::fs::read_to_string("/proc/net/dev").unwrap_or_default();
    table.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unprotected_look_fails_on_every_count() {
        let seen = Seen {
            interfaces: vec!["lo".into(), "eth0".into()],
            dns: Err("connection refused".into()),
            connect: ("connected".into(), 12),
        };
        assert!(inside(&seen, false).iter().all(|finding| finding.level == crate::doctor::Level::Fail));
        let seen = Seen { interfaces: vec!["lo".into()], dns: Ok(NXDOMAIN), connect: ("refused".into(), 1) };
        assert!(inside(&seen, false).iter().all(|finding| finding.level == crate::doctor::Level::Ok));
        let with_card = Seen { interfaces: vec!["lo".into(), "eth0".into()], ..seen.clone() };
        assert!(inside(&with_card, true).iter().all(|finding| finding.level == crate::doctor::Level::Ok));
        let seen = Seen { connect: ("refused".into(), 5000), ..seen };
        assert_eq!(
            inside(&seen, false).iter().filter(|finding| finding.level == crate::doctor::Level::Fail).count(),
            1
        );
    }
}
