//! The throw-away container of `terok doctor`: an image that holds this program alone, started with a `terok.` annotation.
//! From inside, the program looks for what the hooks must have made; from outside, its supervisor and audit log are asked.
//! Needs neither network nor registry.

use crate::doctor::{Ask, Finding};
use crate::host::Host;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use terok_policy::layout;

/// The hidden verb that runs inside.
pub const PROBE: &str = "doctor-probe";
/// A name that no rule allows; reserved by RFC 6761.
const UNLISTED: &str = "terok-doctor.invalid";
/// An address that no rule allows; reserved by RFC 5737.
const UNLISTED_ADDRESS: &str = "192.0.2.1:443";
/// A start takes well under a second; a slow disk may need some.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the probe stays, so that its supervisor can be asked.
const STAY: Duration = Duration::from_secs(30);

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

/// Starts the containers and says what was found.
pub(crate) fn container(host: &Host, podman: &Path, ask: Ask<'_>) -> Vec<Finding> {
    match Trial::new(podman) {
        Ok(trial) => {
            let mut found = protected(host, &trial, ask);
            found.push(misspelt(&trial));
            found
        }
        Err(reason) => vec![Finding::fail("container", reason, "make podman itself work first")],
    }
}

/// An image and the containers made of it; gone when dropped.
struct Trial<'a> {
    podman: &'a Path,
    image: String,
}

impl<'a> Trial<'a> {
    fn new(podman: &'a Path) -> Result<Self, String> {
        let own = std::fs::read("/proc/self/exe").map_err(|error| format!("/proc/self/exe: {error}"))?;
        if !is_static(&own) {
            return Err("this build of terok needs shared libraries, so it cannot run alone in a container: use the one of cargo xtask dist".into());
        }
        let image = format!("localhost/terok-doctor:{}", std::process::id());
        let mut child = Command::new(podman)
            .args(["import", "--quiet", "-", &image])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{}: {error}", podman.display()))?;
        let written =
            child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(&archive(layout::LAUNCHER, &own)));
        let output = child.wait_with_output().map_err(|error| error.to_string())?;
        if !output.status.success() || written.is_err() {
            return Err(format!("podman import fails: {}", last_line(&output.stderr)));
        }
        Ok(Trial { podman, image })
    }

    fn podman(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new(self.podman).args(arguments).stdin(Stdio::null()).output();
        let output = output.map_err(|error| format!("{}: {error}", self.podman.display()))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        Err(last_line(&output.stderr))
    }

    fn create(&self, annotation: &str) -> Result<String, String> {
        let annotation = format!("--annotation={annotation}");
        let program = format!("/{}", layout::LAUNCHER);
        self.podman(&[
            "create",
            "--pull=never",
            "--network=none",
            "--http-proxy=false",
            "--security-opt=no-new-privileges",
            "--cap-drop=all",
            &annotation,
            &self.image,
            &program,
            PROBE,
        ])
    }

    fn remove(&self, id: &str) {
        // A container that is gone already is what is wanted.
        let _ = self.podman(&["rm", "--force", "--time=0", id]);
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        let _ = self.podman(&["rmi", "--force", &self.image]);
    }
}

/// A container with an annotation must be sealed, answered by its supervisor, and audited.
fn protected(host: &Host, trial: &Trial<'_>, ask: Ask<'_>) -> Vec<Finding> {
    let id = match trial.create("terok.shield=up") {
        Ok(id) => id,
        Err(reason) => {
            return vec![Finding::fail(
                "container",
                format!("podman create fails: {reason}"),
                "make podman itself work first",
            )];
        }
    };
    let state = host.state_dir().join(&id);
    let mut found = Vec::new();
    match start(trial, &id) {
        Ok((mut child, seen)) => {
            found.extend(inside(&seen));
            found.extend(outside(&id, &state, ask));
            trial.remove(&id);
            // It ends with its container.
            let _ = child.wait();
        }
        Err(reason) => {
            let logged =
                std::fs::read(state.join(layout::LOG)).map(|log| last_line(&log)).unwrap_or_default();
            let reason = if logged.is_empty() { reason } else { logged };
            found.push(Finding::fail(
                "container",
                format!("a protected container does not start: {reason}"),
                "",
            ));
            trial.remove(&id);
        }
    }
    forget(&state);
    found
}

/// What hook and supervisor wrote into the state folder, which goes with the doctor's container.
fn logged(state: &Path) -> Option<String> {
    let log = std::fs::read_to_string(state.join(layout::LOG)).ok()?;
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    (!lines.is_empty()).then(|| lines[lines.len().saturating_sub(4)..].join(" | "))
}

fn start(trial: &Trial<'_>, id: &str) -> Result<(Child, Seen), String> {
    let mut child = Command::new(trial.podman)
        .args(["start", "--attach", id])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let (sender, receiver) = mpsc::channel();
    let stdout = child.stdout.take();
    std::thread::spawn(move || {
        let mut line = String::new();
        if let Some(stdout) = stdout {
            // An unreadable line is answered by the parser.
            let _ = io::BufRead::read_line(&mut io::BufReader::new(stdout), &mut line);
        }
        let _ = sender.send(line);
    });
    let line = receiver.recv_timeout(PATIENCE).unwrap_or_default();
    match serde_json::from_str(&line) {
        Ok(seen) => Ok((child, seen)),
        Err(_) => {
            trial.remove(id);
            let mut message = Vec::new();
            if let Some(stderr) = &mut child.stderr {
                let _ = stderr.read_to_end(&mut message);
            }
            let _ = child.wait();
            Err(last_line(&message))
        }
    }
}

fn inside(seen: &Seen) -> Vec<Finding> {
    let mut found = Vec::new();
    if seen.interfaces == ["lo"] {
        found.push(Finding::ok("container", "has no network card"));
    } else {
        found.push(Finding::fail(
            "container",
            format!("has network interfaces {}", seen.interfaces.join(", ")),
            "take network settings out of containers.conf",
        ));
    }
    match &seen.dns {
        Ok(NXDOMAIN) => found
            .push(Finding::ok("container", "is answered by its supervisor: an unlisted name does not exist")),
        Ok(code) => found.push(Finding::fail(
            "container",
            format!("an unlisted name is answered with code {code}"),
            "",
        )),
        Err(error) => found.push(Finding::fail(
            "container",
            format!("no supervisor answers in it: {error}"),
            "podman did not run the hooks; run: terok setup",
        )),
    }
    let (outcome, ms) = &seen.connect;
    if outcome == "refused" && *ms < 1000 {
        found.push(Finding::ok("container", format!("an unlisted address is refused after {ms} ms")));
    } else {
        found.push(Finding::fail(
            "container",
            format!("an unlisted address: {outcome} after {ms} ms"),
            "podman did not run the hooks; run: terok setup",
        ));
    }
    found
}

fn outside(id: &str, state: &Path, ask: Ask<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    match ask(id) {
        Ok(status) => {
            let missing: Vec<&str> = status
                .confinement
                .iter()
                .map(String::as_str)
                .filter(|layer| layer.starts_with("no-"))
                .collect();
            if missing.is_empty() {
                found.push(Finding::ok(
                    "container",
                    format!("its supervisor is confined: {}", status.confinement.join(", ")),
                ));
            } else {
                found.push(Finding::warn(
                    "container",
                    format!("its supervisor lacks {}", missing.join(", ")),
                    "a newer kernel, or one with these features switched on",
                ));
            }
        }
        Err(error) => {
            found.push(Finding::fail("container", format!("its supervisor does not answer: {error}"), ""))
        }
    }
    let log = std::fs::read_to_string(state.join(layout::AUDIT)).unwrap_or_default();
    if log.lines().any(|line| line.contains(UNLISTED)) {
        found.push(Finding::ok("container", "its refusals are in the audit log"));
    } else {
        found.push(Finding::fail(
            "container",
            format!("no refusal in {}", state.join(layout::AUDIT).display()),
            "",
        ));
    }
    found
}

/// A misspelt key must summon the hooks, which refuse it (A1).
fn misspelt(trial: &Trial<'_>) -> Finding {
    let id = match trial.create("terok.shield.alow=example.com") {
        Ok(id) => id,
        Err(reason) => {
            return Finding::fail(
                "container",
                format!("podman create fails: {reason}"),
                "make podman itself work first",
            );
        }
    };
    let started = start(trial, &id);
    trial.remove(&id);
    match started {
        Ok((mut child, _)) => {
            let _ = child.wait();
            Finding::fail(
                "container",
                "starts with a misspelt annotation",
                "podman did not run the hooks; run: terok setup",
            )
        }
        Err(_) => Finding::ok("container", "does not start with a misspelt annotation"),
    }
}

/// Removes the state of the doctor's own container, once its supervisor is done with it.
fn forget(state: &Path) {
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        let log = std::fs::read_to_string(state.join(layout::AUDIT)).unwrap_or_default();
        let ended = log.lines().last().is_none_or(|line| line.contains("\"action\":\"end\""));
        if ended && state.join(layout::CONTAINER).exists() || log.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // A folder left over is history like any other container's, and is pruned as such.
    let _ = std::fs::remove_dir_all(state);
}

/// DNS response code: the name does not exist (RFC 1035 §4.1.1).
const NXDOMAIN: u8 = 3;

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

/// Whether an ELF program asks for no interpreter (elf(5): no PT_INTERP program header).
fn is_static(program: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let half = |at: usize| program.get(at..at + 2).map(|b| usize::from(u16::from_le_bytes([b[0], b[1]])));
    let word = |at: usize| program.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    // ELF64 little endian: e_phoff at 32 (headers lie below 4 GiB), e_phentsize at 54, e_phnum at 56.
    let (Some(offset), Some(size), Some(count)) = (word(32), half(54), half(56)) else { return false };
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    program.starts_with(b"\x7fELF\x02\x01")
        && (0..count).all(|n| word(offset.saturating_add(n * size)) != Some(PT_INTERP))
}

/// A tar archive (POSIX ustar) with one executable file and the folders a container needs.
fn archive(name: &str, content: &[u8]) -> Vec<u8> {
    let mut tar = Vec::with_capacity(content.len() + 8192);
    for folder in ["proc/", "sys/", "dev/", "etc/", "run/", "tmp/"] {
        tar.extend(header(folder, b'5', 0o755, 0));
    }
    tar.extend(header(name, b'0', 0o755, content.len()));
    tar.extend(content);
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}

fn header(name: &str, kind: u8, mode: u32, size: usize) -> [u8; 512] {
    let mut header = [0; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, &format!("{mode:07o}"));
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{size:011o}"));
    put(136, "00000000000");
    put(148, "        ");
    put(257, "ustar");
    put(263, "00");
    header[156] = kind;
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header
}

fn last_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tar_reads_the_archive() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.tar");
        std::fs::write(&path, archive("terok", b"hello")).unwrap();
        let list = Command::new("tar").arg("-tvf").arg(&path).output().unwrap();
        let list = String::from_utf8(list.stdout).unwrap();
        assert!(list.contains("-rwxr-xr-x") && list.contains(" 5 ") && list.ends_with("terok\n"), "{list}");
        let text = Command::new("tar").arg("-xOf").arg(&path).arg("terok").output().unwrap();
        assert_eq!(text.stdout, b"hello");
    }

    #[test]
    fn a_program_with_an_interpreter_is_not_static() {
        assert!(!is_static(&std::fs::read("/bin/ls").unwrap()));
        assert!(!is_static(b"#!/bin/sh\n"));
        if let Ok(busybox) = std::fs::read("/usr/lib/busybox/bin/busybox-static") {
            assert!(is_static(&busybox));
        }
    }

    #[test]
    fn an_unprotected_look_fails_on_every_count() {
        let seen = Seen {
            interfaces: vec!["lo".into(), "eth0".into()],
            dns: Err("connection refused".into()),
            connect: ("connected".into(), 12),
        };
        assert!(inside(&seen).iter().all(|finding| finding.level == crate::doctor::Level::Fail));
        let seen = Seen { interfaces: vec!["lo".into()], dns: Ok(NXDOMAIN), connect: ("refused".into(), 1) };
        assert!(inside(&seen).iter().all(|finding| finding.level == crate::doctor::Level::Ok));
        let seen = Seen { connect: ("refused".into(), 5000), ..seen };
        assert_eq!(
            inside(&seen).iter().filter(|finding| finding.level == crate::doctor::Level::Fail).count(),
            1
        );
    }
}
