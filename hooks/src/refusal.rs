//! Why a container does not start, and telling it: one line, wherever a person may look for it (L2).

use crate::argv::{Stage, Usage};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use terok_kernel::nft::NftError;
use terok_kernel::pidfd::PidFd;
use terok_kernel::rtnl::RtnlError;
use terok_kernel::statedir::Dir;
use terok_policy::amend::AmendError;
use terok_policy::audit::{Chain, Event, Kind};
use terok_policy::plan::PlanError;
use terok_policy::settings::SettingsError;
use terok_policy::tighten::UnderError;
use terok_policy::{AnnotationError, layout};

/// Why a stage ends without success.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(transparent)]
    Usage(#[from] Usage),
    /// What the runtime handed over cannot be read.
    #[error("{what}: {reason}")]
    Input { what: String, reason: String },
    #[error(transparent)]
    Annotation(#[from] AnnotationError),
    /// A2
    #[error(
        "{what} {key}={value:?} comes from the image, which may not set it; give {key} yourself, with another value, or remove it from the image"
    )]
    FromImage { what: &'static str, key: String, value: String },
    /// A2
    #[error(
        "annotation {key}={value:?} is in the container's configuration, but Docker was not asked for it; give it with --annotation"
    )]
    Unasked { key: String, value: String },
    /// A2
    #[error(
        "Docker was asked for {key}, which is not in the container's configuration: the container was not started through terok's shim; run `terok doctor`"
    )]
    Lacking { key: String },
    /// A2
    #[error("{key} is given as annotation with {annotation:?} and as label with {label:?}; give it once")]
    TwoValues { key: String, annotation: String, label: String },
    /// A2
    #[error("cannot tell whether the image set {grant}, because {reason}; start the container without it")]
    ImageUnknown { grant: String, reason: String },
    #[error(transparent)]
    Under(#[from] UnderError),
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Amend(#[from] AmendError),
    /// L9: `precreate` did not run, or another hook undid it.
    #[error(
        "the container lacks terok's seccomp rules ({0}): the precreate hook did not run; run `terok doctor`"
    )]
    NotAmended(AmendError),
    /// `precreate` did not run for this start, or another hook undid it.
    #[error(
        "the container lacks the tokens and the folder of its vault and SSH grants: the precreate hook did not run, or something changed them since; start it again, and if that fails run `terok doctor`"
    )]
    NotProvided,
    /// L8
    #[error("{0}")]
    Guard(String),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Kernel(#[from] terok_kernel::Error),
    #[error("the container's nftables table: {0}")]
    Nft(#[from] NftError),
    #[error("the container's loopback interface: {0}")]
    Rtnl(#[from] RtnlError),
    #[error("{doing}: {error}")]
    Io { doing: &'static str, error: std::io::Error },
    #[error("cannot tell where this user's state belongs: {0}")]
    Place(String),
    /// A part of the installation is gone.
    #[error("{0}; run `terok setup` again")]
    NotInstalled(terok_kernel::Error),
    #[error("the supervisor {reason}; see {log}")]
    Supervisor { reason: String, log: String },
}

impl Refusal {
    pub(crate) fn io(doing: &'static str) -> impl FnOnce(std::io::Error) -> Refusal {
        move |error| Refusal::Io { doing, error }
    }

    pub(crate) fn input(what: impl Into<String>, reason: impl ToString) -> Refusal {
        Refusal::Input { what: what.into(), reason: reason.to_string() }
    }

    /// A program of ours that could not be opened.
    pub(crate) fn missing(error: terok_kernel::Error) -> Self {
        match error.is_missing() {
            true => Refusal::NotInstalled(error),
            false => error.into(),
        }
    }

    /// 1: refused; 2: the host cannot; 64: usage.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Refusal::Usage(_) => 64,
            Refusal::Kernel(_)
            | Refusal::Nft(_)
            | Refusal::Rtnl(_)
            | Refusal::Io { .. }
            | Refusal::Place(_)
            | Refusal::NotInstalled(_)
            | Refusal::Supervisor { .. } => 2,
            _ => 1,
        }
    }
}

/// Says why on stderr, and at `precreate` on Podman's own too.
pub(crate) fn report(refusal: &Refusal, stage: Option<Stage>) -> ExitCode {
    let line = format!("terok: {}\n", one_line(&refusal.to_string()));
    let mut stderr = std::io::stderr();
    // Nobody may be reading; the exit code says it as well.
    let _ = stderr.write_all(line.as_bytes());
    if stage == Some(Stage::Precreate)
        && let Some(mut podman) = parents_stderr()
    {
        let _ = podman.write_all(line.as_bytes());
    }
    ExitCode::from(refusal.exit_code())
}

/// Podman keeps a precreate hook's stderr to itself and prints only "exit status 1" (4.3 to 5.8). Its own stderr is where
/// the person who started the container looks. `None` where that is our stderr anyway.
fn parents_stderr() -> Option<File> {
    use std::os::unix::fs::MetadataExt;
    let parent = std::os::unix::process::parent_id() as i32;
    let pidfd = (parent > 1).then(|| PidFd::open(parent).ok())??;
    let theirs = File::from(pidfd.descriptor(2).ok()?);
    let ours = File::from(std::io::stderr().as_fd().try_clone_to_owned().ok()?);
    let (a, b) = (theirs.metadata().ok()?, ours.metadata().ok()?);
    ((a.dev(), a.ino()) != (b.dev(), b.ino())).then_some(theirs)
}

/// Leaves the reason in the container's state folder: a line in its log and one in its audit log.
pub(crate) fn record(state: &Dir, refusal: &Refusal) {
    let reason = one_line(&refusal.to_string());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // What cannot be written has been said on stderr.
    let _ = state
        .append(layout::LOG)
        .and_then(|mut log| log.append(format!("{} refused: {reason}", now.as_secs()).as_bytes()));
    let event = Event {
        t: now.as_millis() as u64,
        kind: Kind::Lifecycle,
        action: "refused".into(),
        target: String::new(),
        reason: None,
        rule: String::new(),
        count: None,
        detail: BTreeMap::from([("why".to_owned(), reason.into())]),
    };
    let _ = append_to_chain(state, &event);
}

/// Only where no supervisor writes: the supervisor of an earlier run may still be at its last line.
fn append_to_chain(state: &Dir, event: &Event) -> Option<()> {
    const LONGEST_LINE: u64 = 64 * 1024;
    let _lock = state.lock(Duration::from_millis(200)).ok()?;
    let mut log = state.append(layout::AUDIT).ok()?;
    let chain = match log.tail(LONGEST_LINE).ok()? {
        None => Chain::default(),
        Some(tail) if tail.complete => Chain::after(std::str::from_utf8(&tail.line).ok()?).ok()?,
        Some(_) => return None,
    };
    log.append(chain.line(event).as_bytes()).ok()
}

/// Control characters, of which a hostile annotation may be full, as escapes.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut line, c| {
        if c.is_control() {
            let _ = write!(line, "{}", c.escape_default());
        } else {
            line.push(c);
        }
        line
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_one_line_whatever_it_quotes() {
        assert_eq!(one_line("a\nb\x1b[2J"), "a\\nb\\u{1b}[2J");
    }

    #[test]
    fn a_refusal_is_left_in_both_logs_of_the_state_folder() {
        let folder = tempfile::tempdir().unwrap();
        let base = Dir::base(folder.path()).unwrap();
        let state = base.make_private("id").unwrap();
        record(&state, &Refusal::Guard("first".into()));
        record(&state, &Refusal::Guard("second".into()));
        let audit = String::from_utf8(state.read(layout::AUDIT, 10_000).unwrap().unwrap()).unwrap();
        assert_eq!(terok_policy::audit::verify(Chain::default(), audit.lines()).unwrap().n, 2);
        assert!(audit.contains("second"));
        let log = String::from_utf8(state.read(layout::LOG, 10_000).unwrap().unwrap()).unwrap();
        assert!(log.lines().nth(1).unwrap().ends_with("refused: second"), "{log}");
    }
}
