//! Containers that do not run: when they ended, or why their start was refused. Read from what they left on disk.

use crate::containers::{self, Known, short};
use crate::engine;
use crate::show::{self, Tone};
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use terok_install::host::Host;
use terok_policy::audit::Line;
use terok_policy::layout;

/// A container whose audit log is kept.
#[derive(Debug)]
pub(crate) struct Past {
    known: Known,
    /// Unix milliseconds of its last line.
    last: u64,
    /// Why its last start was refused, if it was.
    refused: Option<String>,
}

/// The containers that do not run, by their last line.
pub(crate) fn past(host: &Host) -> anyhow::Result<Vec<Past>> {
    let mut gone: Vec<Known> = containers::all(host)?;
    gone.retain(|known| known.run.is_none());
    if gone.iter().any(|known| known.record.is_none()) {
        let names = engine::names();
        for known in &mut gone {
            if known.record.is_none()
                && let Some(name) = names.get(&known.id)
            {
                *known = known.clone().called(name.clone());
            }
        }
    }
    let mut past: Vec<Past> = gone.into_iter().map(Past::of).collect();
    past.sort_by_key(|past| past.last);
    Ok(past)
}

impl Past {
    fn of(known: Known) -> Self {
        let refused = last_refusal(&known);
        let audit = end_of(&known.state.join(layout::AUDIT)).unwrap_or_default();
        let last = audit.lines().rev().find_map(|line| serde_json::from_str::<Line>(line).ok());
        let last = last.map(|line| line.event.t).or(refused.as_ref().map(|(at, _)| *at)).unwrap_or_default();
        Past { known, last, refused: refused.map(|(_, reason)| reason) }
    }

    /// For `terok ps --all --json`.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "container": {"id": self.known.id, "name": self.known.name()},
            "last": self.last,
            "refusal": self.refused,
        })
    }
}

impl fmt::Display for Past {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = show::printable(self.known.name());
        let project = self.known.record.as_ref().map_or("", |record| &record.labels.project);
        let project = show::printable(project);
        write!(f, "{:12}  {name:20} {project:16} ", short(&self.known.id))?;
        let ago = show::span(show::now().saturating_sub(self.last / 1000));
        match &self.refused {
            Some(reason) => {
                write!(f, "{} {ago} ago: {}", show::toned(Tone::Bad, "refused"), show::printable(reason))
            }
            None => write!(f, "{}", show::toned(Tone::Faint, &format!("ended {ago} ago"))),
        }
    }
}

/// When (Unix milliseconds) and why the last start was refused, if nothing was started since.
pub(crate) fn last_refusal(known: &Known) -> Option<(u64, String)> {
    let log = end_of(&known.state.join(layout::LOG))?;
    // The hook writes `UNIX-SECONDS refused: REASON`; other lines are the supervisor's.
    let (at, reason) = log.lines().rev().find_map(|line| {
        let (at, reason) = line.split_once(" refused: ")?;
        Some((at.parse::<u64>().ok()?.checked_mul(1000)?, show::printable(reason)))
    })?;
    let audit = end_of(&known.state.join(layout::AUDIT)).unwrap_or_default();
    let started = audit.lines().rev().find_map(|line| {
        let line: Line = serde_json::from_str(line).ok()?;
        (line.event.action == "start").then_some(line.event.t)
    });
    // The log counts in seconds.
    started.is_none_or(|started| started < at + 1000).then_some((at, reason))
}

/// The last 64 KiB of a file.
fn end_of(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(64 << 10))).ok()?;
    let mut end = Vec::new();
    file.read_to_end(&mut end).ok()?;
    Some(String::from_utf8_lossy(&end).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: &str = r#"{"n":1,"t":201500,"kind":"lifecycle","action":"start","prev":"0"}"#;

    fn container() -> (tempfile::TempDir, Known) {
        let folder = tempfile::tempdir().unwrap();
        let known = Known { id: "abc".into(), record: None, run: None, state: folder.path().into() };
        (folder, known)
    }

    #[test]
    fn a_refused_start_is_told_until_a_later_one_succeeds() {
        let (folder, known) = container();
        assert_eq!(last_refusal(&known), None);
        let log =
            "100 refused: an older reason\n200 refused: the container has a network card\nsupervisor: bye\n";
        std::fs::write(folder.path().join(layout::LOG), log).unwrap();
        assert_eq!(last_refusal(&known), Some((200_000, "the container has a network card".into())));
        std::fs::write(folder.path().join(layout::AUDIT), START).unwrap();
        assert_eq!(last_refusal(&known), None);
        std::fs::write(folder.path().join(layout::AUDIT), START.replace("201500", "150000")).unwrap();
        assert!(last_refusal(&known).is_some());
    }

    #[test]
    fn what_ended_and_what_was_refused_is_listed_with_its_time_and_reason() {
        let (folder, known) = container();
        std::fs::write(folder.path().join(layout::AUDIT), START).unwrap();
        let past = Past::of(known.clone());
        assert_eq!((past.last, past.json()["refusal"].is_null()), (201_500, true));
        assert!(past.to_string().contains("ended"), "{past}");
        std::fs::write(folder.path().join(layout::LOG), "300 refused: no\u{1b}[2J profile\n").unwrap();
        let past = Past::of(known.called("bad".into()));
        let line = past.to_string();
        assert!(
            line.starts_with("abc           bad ") && line.contains("ago: no\u{fffd}[2J profile"),
            "{line}"
        );
    }
}
