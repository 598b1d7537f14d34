//! The audit log (design §9): chained JSON lines, bounded in size. What cannot be written is not allowed to happen:
//! [`Audit::record`] comes before the deed and its error refuses it. Like refusals beyond a burst are summed.

mod coalesce;
mod file;

use crate::context::unix_millis;
use coalesce::Coalescer;
pub(crate) use file::{LogFile, open_file};
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};
use terok_policy::Verdict;
use terok_policy::audit::{Chain, Event, Kind};
use terok_policy::judge::Reason;
use terok_policy::policy::{Source, Sourced};
use tokio::sync::{Notify, broadcast};

/// Lines a subscriber may lag behind before it loses some (and is told so).
const SUBSCRIBER_LINES: usize = 256;

/// Time over which like events are summed.
const SUMMED_OVER: Duration = Duration::from_secs(1);

/// The log of one container.
pub(crate) struct Audit {
    log: RefCell<Log>,
    coalescer: RefCell<Coalescer>,
    watchers: broadcast::Sender<Rc<str>>,
    allowed: Cell<u64>,
    refused: Cell<u64>,
    /// Something waits to be summed.
    waiting: Notify,
    /// The last line could not be written.
    failing: Cell<bool>,
}

struct Log {
    file: LogFile,
    chain: Chain,
}

/// The line could not be written; the deed it records is refused.
#[derive(Debug, thiserror::Error)]
#[error("the audit log cannot be written: {0}; free space in the state folder")]
pub(crate) struct AuditError(#[from] io::Error);

impl Audit {
    /// Continues the log of `file`. A torn last line is cut off and the cut recorded; a last line that is no line of
    /// ours starts a new chain, recorded as such, so that `terok audit --verify` points at the place.
    pub(crate) fn open(mut file: LogFile) -> io::Result<Self> {
        let torn = file.cut_torn_line()?;
        let (chain, broken) = match file.last_line()? {
            None => (Chain::default(), None),
            Some(line) => match Chain::after(&line) {
                Ok(chain) => (chain, None),
                Err(error) => (Chain::default(), Some(error.to_string())),
            },
        };
        let audit = Audit {
            log: RefCell::new(Log { file, chain }),
            coalescer: RefCell::new(Coalescer::default()),
            watchers: broadcast::Sender::new(SUBSCRIBER_LINES),
            allowed: Cell::new(0),
            refused: Cell::new(0),
            waiting: Notify::new(),
            failing: Cell::new(false),
        };
        if torn > 0 {
            let _ = audit.record(event(Kind::Lifecycle, "repair", "").with("cut_bytes", torn));
        }
        if let Some(reason) = broken {
            let _ = audit.record(event(Kind::Lifecycle, "repair", "").with("new_chain", reason));
        }
        Ok(audit)
    }

    /// Writes `event` before the deed it records. On an error the deed must not happen.
    pub(crate) fn record(&self, event: Event) -> Result<(), AuditError> {
        self.write(&event)?;
        self.count(&event);
        Ok(())
    }

    /// Records a refusal, which has already taken effect: at once within the burst of its class, else summed into one
    /// line a second. Refusals that the disk has no room for are kept and counted until it has.
    pub(crate) fn refusal(&self, event: Event) {
        self.note(event);
    }

    /// As [`Audit::refusal`], for what takes nothing out and may come in floods: an answered question.
    pub(crate) fn note(&self, event: Event) {
        self.count(&event);
        let now = self.coalescer.borrow_mut().admit(event, Instant::now());
        match now {
            Some(event) if self.write(&event).is_ok() => return,
            Some(event) => self.coalescer.borrow_mut().put_back(event),
            None => {}
        }
        self.waiting.notify_one();
    }

    /// Writes sums a second after the first of their events, for as long as it is polled.
    pub(crate) async fn flush_sums(&self) {
        loop {
            self.waiting.notified().await;
            while self.has_sums() {
                tokio::time::sleep(SUMMED_OVER).await;
                self.flush();
            }
        }
    }

    /// Writes the sums that have come together.
    pub(crate) fn flush(&self) {
        let sums = self.coalescer.borrow_mut().take(Instant::now());
        for event in sums {
            if self.write(&event).is_err() {
                self.coalescer.borrow_mut().put_back(event);
            }
        }
    }

    /// Whether [`Audit::flush`] has something to write.
    pub(crate) fn has_sums(&self) -> bool {
        self.coalescer.borrow().has_sums()
    }

    /// Every line from now on, as written (no newline).
    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Rc<str>> {
        self.watchers.subscribe()
    }

    /// How many receive the lines now.
    pub(crate) fn subscribers(&self) -> usize {
        self.watchers.receiver_count()
    }

    /// Connections and names allowed since the worker's start.
    pub(crate) fn allowed(&self) -> u64 {
        self.allowed.get()
    }

    /// Refusals since the worker's start.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.get()
    }

    /// Whether the last line could not be written: who records after the deed tries again before the next one.
    pub(crate) fn is_failing(&self) -> bool {
        self.failing.get()
    }

    fn count(&self, event: &Event) {
        let counter = match (event.kind, event.action.as_str()) {
            (Kind::Connect | Kind::Kernel, "allow") | (Kind::Dns, "answer") => &self.allowed,
            (_, "refuse") => &self.refused,
            _ => return,
        };
        counter.set(counter.get() + event.count.unwrap_or(1));
    }

    fn write(&self, event: &Event) -> Result<(), AuditError> {
        let log = &mut *self.log.borrow_mut();
        let line = log.chain.line(event);
        let written = log.file.append(&line);
        self.failing.set(written.is_err());
        written?;
        log.chain.advance(&line);
        if self.watchers.receiver_count() > 0 {
            let _ = self.watchers.send(Rc::from(line));
        }
        Ok(())
    }
}

#[cfg(test)]
impl Audit {
    /// Has every line meet a full disk; [`Audit::free`] takes what this returns.
    pub(crate) fn fill(&self) -> std::fs::File {
        let full = std::fs::File::options().append(true).open("/dev/full").expect("/dev/full");
        self.log.borrow_mut().file.swap(full)
    }

    /// Frees the disk.
    pub(crate) fn free(&self, real: std::fs::File) {
        self.log.borrow_mut().file.swap(real);
    }
}

/// An event of now.
pub(crate) fn event(kind: Kind, action: &str, target: impl Into<String>) -> Event {
    Event {
        t: unix_millis(),
        kind,
        action: action.to_owned(),
        target: target.into(),
        reason: None,
        rule: String::new(),
        count: None,
        detail: Default::default(),
    }
}

/// Facts added to an event.
pub(crate) trait Facts {
    /// Why it was refused.
    fn reason(self, reason: Reason) -> Self;
    /// The deciding rule, and the reason where the verdict is a refusal.
    fn verdict(self, verdict: &Verdict) -> Self;
    /// A further fact.
    fn with(self, key: &str, value: impl Into<serde_json::Value>) -> Self;
}

impl Facts for Event {
    fn reason(mut self, reason: Reason) -> Self {
        self.reason = Some(reason);
        self
    }

    fn verdict(mut self, verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Allow { rule } => self.rule = sourced(rule),
            Verdict::Down => self.rule = "shield down".to_owned(),
            Verdict::Learn => self.rule = "learn".to_owned(),
            Verdict::Operator => self.rule = "verdict".to_owned(),
            Verdict::Refuse { reason, rule } => {
                self.reason = Some(*reason);
                self.rule = rule.as_ref().map(sourced).unwrap_or_default();
            }
        }
        self
    }

    fn with(mut self, key: &str, value: impl Into<serde_json::Value>) -> Self {
        self.detail.insert(key.to_owned(), value.into());
        self
    }
}

/// `rule (source)`
fn sourced(rule: &Sourced) -> String {
    match &rule.source {
        Source::Annotation => format!("{} (annotation)", rule.rule),
        Source::Profile(name) => format!("{} (profile {name})", rule.rule),
        Source::Provider(name) => format!("{} (provider {name})", rule.rule),
        Source::Live => format!("{} (live)", rule.rule),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use terok_kernel::statedir::Dir;
    use terok_policy::audit::verify;

    fn audit(dir: &tempfile::TempDir) -> Audit {
        Audit::open(LogFile::open(&Dir::base(dir.path()).unwrap()).unwrap()).unwrap()
    }

    fn lines(dir: &tempfile::TempDir, name: &str) -> Vec<String> {
        std::fs::read_to_string(dir.path().join(name)).unwrap().lines().map(str::to_owned).collect()
    }

    fn refusal(target: &str) -> Event {
        event(Kind::Dns, "refuse", target).reason(Reason::Unlisted)
    }

    #[test]
    fn the_chain_continues_after_reopening_and_a_torn_line_is_cut_and_recorded() {
        let dir = tempfile::tempdir().unwrap();
        audit(&dir).record(event(Kind::Lifecycle, "start", "")).unwrap();
        let path = dir.path().join("audit.jsonl");
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str("{\"n\":2,\"t\":1,\"ki");
        std::fs::write(&path, text).unwrap();
        audit(&dir).record(event(Kind::Lifecycle, "end", "")).unwrap();
        let lines = lines(&dir, "audit.jsonl");
        assert_eq!(lines.len(), 3);
        assert!(lines[1].contains("cut_bytes"), "{}", lines[1]);
        assert_eq!(verify(Chain::default(), lines.iter().map(String::as_str)).unwrap().n, 3);
    }

    #[test]
    fn rotation_carries_the_chain_on_and_bounds_the_size() {
        let dir = tempfile::tempdir().unwrap();
        let log = audit(&dir);
        let filler = "x".repeat(60_000);
        for _ in 0..400 {
            log.record(event(Kind::Lifecycle, "start", "").with("filler", filler.as_str())).unwrap();
        }
        let (old, new) = (lines(&dir, "audit.jsonl.1"), lines(&dir, "audit.jsonl"));
        let size = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().len();
        assert!(size("audit.jsonl") <= file::CAP && size("audit.jsonl.1") <= file::CAP);
        let first: serde_json::Value = serde_json::from_str(&old[0]).unwrap();
        let start =
            Chain { n: first["n"].as_u64().unwrap() - 1, hash: first["prev"].as_str().unwrap().to_owned() };
        let end = verify(start, old.iter().chain(&new).map(String::as_str)).unwrap();
        assert_eq!(end.n, 400);
    }

    #[test]
    fn a_million_refusals_make_few_lines_with_exact_counts() {
        let dir = tempfile::tempdir().unwrap();
        let log = audit(&dir);
        for n in 0..1_000_000u32 {
            log.refusal(refusal(&format!("{}.example:443", n % 5_000)));
            if n % 100_000 == 0 {
                log.flush();
            }
        }
        while log.has_sums() {
            log.flush();
        }
        assert_eq!(log.refused(), 1_000_000);
        let lines = lines(&dir, "audit.jsonl");
        assert!(lines.len() < 2_000, "{} lines", lines.len());
        let sum: u64 =
            lines.iter().map(|l| serde_json::from_str::<Event>(l).unwrap().count.unwrap_or(1)).sum();
        assert_eq!(sum, 1_000_000);
        verify(Chain::default(), lines.iter().map(String::as_str)).unwrap();
    }

    #[test]
    fn a_full_disk_refuses_and_recovers_without_a_gap() {
        let dir = tempfile::tempdir().unwrap();
        let log = audit(&dir);
        log.record(event(Kind::Lifecycle, "start", "")).unwrap();
        let real = log.fill();
        assert!(log.record(event(Kind::Connect, "allow", "a.example:443")).is_err());
        log.refusal(refusal("b.example"));
        assert_eq!(log.allowed(), 0);
        log.free(real);
        log.record(event(Kind::Connect, "allow", "a.example:443")).unwrap();
        log.flush();
        let lines = lines(&dir, "audit.jsonl");
        assert_eq!(verify(Chain::default(), lines.iter().map(String::as_str)).unwrap().n, 3);
        assert!(lines[2].contains("b.example"));
    }

    #[test]
    fn a_subscriber_sees_lines_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let log = audit(&dir);
        let mut seen = log.subscribe();
        log.record(event(Kind::Lifecycle, "start", "")).unwrap();
        assert_eq!(*seen.try_recv().unwrap(), *lines(&dir, "audit.jsonl")[0]);
    }
}
