//! The throw-away container of `terok doctor`: an image that holds this program alone, started with a `terok.` annotation.
//! From inside, the program looks for what the hooks must have made; from outside, its supervisor and audit log are asked.
//! Needs neither network nor registry.

use crate::doctor::{Ask, Finding};
use crate::host::Host;
use crate::image::{PROGRAM, archive, is_static};
use crate::probe::{PROBE, Seen, UNLISTED, inside};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use terok_policy::layout;

/// A start takes well under a second; a slow disk may need some.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts the containers and says what was found.
pub(crate) fn container(host: &Host, podman: &Path, ask: Ask<'_>) -> Vec<Finding> {
    match Trial::new(podman) {
        Ok(trial) => {
            let mut found = protected(host, &trial, ask);
            found.push(misspelt(host, &trial));
            found.extend(with_card(host, &trial, ask));
            found
        }
        Err(finding) => vec![finding],
    }
}

/// An image and the containers made of it; gone when dropped.
struct Trial<'a> {
    podman: &'a Path,
    image: String,
}

impl<'a> Trial<'a> {
    fn new(podman: &'a Path) -> Result<Self, Finding> {
        let own = std::fs::read("/proc/self/exe")
            .map_err(|error| Finding::fail("container", format!("/proc/self/exe: {error}"), "mount /proc"))?;
        if !is_static(&own) {
            return Err(Finding::fail(
                "container",
                "this build of terok needs shared libraries, so it cannot run alone in a container",
                "use the one that cargo xtask dist builds",
            ));
        }
        Self::import(podman, &own)
            .map_err(|reason| Finding::fail("container", reason, "make podman itself work first"))
    }

    fn import(podman: &'a Path, own: &[u8]) -> Result<Self, String> {
        let image = format!("localhost/terok-doctor:{}", std::process::id());
        let mut child = Command::new(podman)
            .args(["import", "--quiet", "-", &image])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{}: {error}", podman.display()))?;
        let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(&archive(PROGRAM, own)));
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

    /// A container without a network card, with `annotation`.
    fn create(&self, annotation: &str) -> Result<String, String> {
        self.create_on(Some("none"), &format!("--annotation={annotation}"))
    }

    /// A container on `network`, or on what Podman takes by itself.
    fn create_on(&self, network: Option<&str>, annotation: &str) -> Result<String, String> {
        let network = network.map(|network| format!("--network={network}"));
        let program = format!("/{PROGRAM}");
        let mut words = vec!["create", "--pull=never", "--http-proxy=false"];
        words.extend(network.as_deref());
        words.extend(["--security-opt=no-new-privileges", "--cap-drop=all", annotation]);
        words.extend([self.image.as_str(), program.as_str(), PROBE]);
        self.podman(&words)
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
            found.extend(inside(&seen, false));
            found.extend(outside(&id, &state, ask));
            trial.remove(&id);
            // It ends with its container.
            let _ = child.wait();
        }
        Err(reason) => {
            let reason = logged(&state).unwrap_or(reason);
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

/// A container on Podman's own default network must be answered and refused likewise. That it does not start is worth a
/// warning: nobody is left unprotected by it.
fn with_card(host: &Host, trial: &Trial<'_>, ask: Ask<'_>) -> Vec<Finding> {
    let warn = |what: String, remedy: &str| vec![Finding::warn("network", what, remedy)];
    let id = match trial.create_on(None, "--annotation=terok.shield=up") {
        Ok(id) => id,
        Err(reason) => {
            return warn(format!("podman creates no container with a network card: {reason}"), "");
        }
    };
    let state = host.state_dir().join(&id);
    let found = match start(trial, &id) {
        Ok((mut child, seen)) => {
            let mut found = inside(&seen, true);
            if let Ok(status) = ask(&id) {
                let lacks = status.confinement.iter().filter(|layer| layer.starts_with("no-egress"));
                found.extend(lacks.map(|layer| {
                    Finding::warn(
                        "network",
                        format!("this kernel guards no card: {layer}"),
                        "a kernel with CONFIG_NETFILTER_EGRESS (5.16); until then a packet socket in the container's namespace is not stopped at the card",
                    )
                }));
            }
            trial.remove(&id);
            let _ = child.wait();
            found
        }
        Err(reason) => {
            let reason = logged(&state).unwrap_or(reason);
            trial.remove(&id);
            match plain_start(trial) {
                Ok(()) => warn(
                    format!("a protected container with a network card does not start: {reason}"),
                    "start containers with --network none; as root, for nf_tables: modprobe -a nft_fib_inet nft_masq nft_ct nft_reject_inet",
                ),
                Err(plain) => warn(
                    format!("podman itself starts no container with a network card: {plain}"),
                    "install slirp4netns, or passt with podman 5; containers with --network none need neither",
                ),
            }
        }
    };
    forget(&state);
    found
}

/// Whether Podman starts a container with a card where nothing of ours is asked.
fn plain_start(trial: &Trial<'_>) -> Result<(), String> {
    let id = trial.create_on(None, "--annotation=com.example.terok=unprotected")?;
    let started = start(trial, &id);
    trial.remove(&id);
    started.map(|(mut child, _)| {
        let _ = child.wait();
    })
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

fn outside(id: &str, state: &Path, ask: Ask<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    match ask(id) {
        Ok(status) => {
            // A layer that is missing says why: `no-landlock: REASON`; `no-new-privs` is a layer.
            let missing: Vec<&str> =
                status.confinement.iter().map(String::as_str).filter(|layer| layer.contains(": ")).collect();
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
fn misspelt(host: &Host, trial: &Trial<'_>) -> Finding {
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
    // That it was refused is the doctor's own doing: nobody is to find it in `terok ps --all`.
    forget(&host.state_dir().join(&id));
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

fn last_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing").trim().to_owned()
}
