//! `terok audit`: reads, filters, verifies and follows the audit log of a container, running or gone.

use crate::containers::{self, Known};
use crate::{cli::Json, show};
use anyhow::{Context as _, bail};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;
use terok_install::host::Host;
use terok_policy::audit::{self, Chain, Kind, Line};

/// A file that grows is looked at this often. A log is small and grows by whole lines: no need for a watch on it.
const LOOK: Duration = Duration::from_millis(200);

/// `terok audit`
#[derive(Debug, clap::Args)]
pub(crate) struct AuditArgs {
    /// Name, id or the beginning of one
    container: String,
    /// Go on with what happens, until the container ends
    #[arg(long, short)]
    follow: bool,
    /// Check the chain of hashes: that no line was changed, removed or put in between
    #[arg(long, conflicts_with = "follow")]
    verify: bool,
    /// Only these kinds: lifecycle, dns, connect, http, control, verdict, publish, vault, ssh, kernel
    #[arg(long, value_name = "KIND", value_delimiter = ',', value_parser = parse_kind)]
    kind: Vec<Kind>,
    /// Only refusals
    #[arg(long)]
    refused: bool,
    /// Only what happened in the last 90s, 10m, 1h30m …
    #[arg(long, value_name = "TIME", value_parser = show::parse_duration)]
    since: Option<Duration>,
    #[command(flatten)]
    json: Json,
}

struct Filter {
    kinds: Vec<Kind>,
    refused: bool,
    /// Unix milliseconds.
    from: u64,
}

impl Filter {
    fn passes(&self, line: &Line) -> bool {
        let event = &line.event;
        (self.kinds.is_empty() || self.kinds.contains(&event.kind))
            && (!self.refused || event.action.starts_with("refuse"))
            && event.t >= self.from
    }
}

/// Prints or verifies the log.
pub(crate) fn audit(host: &Host, args: &AuditArgs) -> anyhow::Result<()> {
    let known = containers::find(host, &args.container)?;
    let log = known.audit_log();
    if !log.exists() {
        bail!(
            "container {} has no audit log ({}): it never started; terok status {} says why",
            known.name(),
            log.display(),
            args.container
        );
    }
    if args.verify {
        return verify(known.name(), &log, args.json);
    }
    let now = show::now().saturating_mul(1000);
    let since = args.since.map_or(now, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
    let filter = Filter { kinds: args.kind.clone(), refused: args.refused, from: now.saturating_sub(since) };
    let mut out = io::stdout().lock();
    let mut print = |text: &str| -> anyhow::Result<()> {
        match serde_json::from_str::<Line>(text) {
            Ok(line) if !filter.passes(&line) => {}
            Ok(_) if args.json.json => writeln!(out, "{text}")?,
            Ok(line) => writeln!(out, "{}", show::event(&line.event))?,
            // A line that is being written, or was spoilt: --verify tells which.
            Err(_) => writeln!(io::stderr(), "terok: a line of {} is not readable", log.display())?,
        }
        Ok(())
    };
    let rotated = rotated(&log);
    if rotated.exists() {
        for line in BufReader::new(File::open(&rotated)?).lines() {
            print(&line?)?;
        }
    }
    let mut reader = Tail::open(&log)?;
    loop {
        // Looked at before the log is read to its end: what is written after the folder went is nobody's line.
        let ended = known.run.as_ref().is_none_or(|run| !run.exists());
        while let Some(line) = reader.line()? {
            print(&line)?;
        }
        if !args.follow || ended {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
}

/// Whole lines of a log that may grow and be rotated.
struct Tail<'a> {
    path: &'a Path,
    reader: BufReader<File>,
    inode: u64,
    partial: String,
}

impl<'a> Tail<'a> {
    fn open(path: &'a Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        let inode = file.metadata()?.ino();
        Ok(Tail { path, reader: BufReader::new(file), inode, partial: String::new() })
    }

    /// The next whole line without its newline, `None` where there is none yet.
    fn line(&mut self) -> anyhow::Result<Option<String>> {
        loop {
            self.reader.read_line(&mut self.partial)?;
            if self.partial.ends_with('\n') {
                self.partial.pop();
                return Ok(Some(std::mem::take(&mut self.partial)));
            }
            // All read. A new file under the name means that this one was rotated away and gets no more lines.
            let rotated = std::fs::metadata(self.path).is_ok_and(|meta| meta.ino() != self.inode);
            if !rotated {
                if self.reader.get_ref().metadata()?.len() < self.reader.stream_position()? {
                    self.reader.seek(SeekFrom::Start(0))?;
                    self.partial.clear();
                }
                return Ok(None);
            }
            *self = Tail::open(self.path)?;
        }
    }
}

/// The whole log of a container, as far as it is kept.
pub(crate) fn text(known: &Known) -> anyhow::Result<String> {
    let log = known.audit_log();
    if !log.exists() {
        let name = known.name();
        bail!(
            "container {name} has no audit log ({}): it never started; terok status {name} says why",
            log.display()
        );
    }
    whole(&log)
}

fn whole(log: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    for path in [rotated(log), log.to_path_buf()] {
        match std::fs::read_to_string(&path) {
            Ok(part) => text += &part,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        }
    }
    Ok(text)
}

/// The whole log as it stands between two lines: of one that is being written the last line may be half there, or be rotated away
/// between the two files. One that is spoilt stays as it is.
fn at_rest(log: &Path) -> anyhow::Result<String> {
    let is_whole = |text: &str| start(text).is_ok_and(|start| audit::verify(start, text.lines()).is_ok());
    let mut text = whole(log)?;
    for _ in 0..25 {
        if is_whole(&text) {
            break;
        }
        std::thread::sleep(LOOK);
        let again = whole(log)?;
        if again == text {
            break;
        }
        text = again;
    }
    Ok(text)
}

/// Where the chain stood before the first line we have: older ones may have been rotated away.
fn start(text: &str) -> anyhow::Result<Chain> {
    let first: Option<Line> = text.lines().next().map(serde_json::from_str).transpose().context("line 1")?;
    Ok(first.map_or_else(Chain::default, |line| Chain { n: line.n.saturating_sub(1), hash: line.prev }))
}

fn verify(name: &str, log: &Path, json: Json) -> anyhow::Result<()> {
    let text = at_rest(log)?;
    let start = start(&text)?;
    let from = start.n + 1;
    match audit::verify(start, text.lines()) {
        Ok(end) if json.json => {
            say!("{}", serde_json::json!({"ok": true, "first": from, "last": end.n, "hash": end.hash}))?;
        }
        Ok(end) => {
            let dropped =
                if from > 1 { format!("; lines before {from} were rotated away") } else { String::new() };
            say!("{name}: {} lines, chain whole, last hash {}{dropped}", end.n + 1 - from, end.hash)?;
        }
        Err(broken) => {
            if json.json {
                say!("{}", serde_json::json!({"ok": false, "line": broken.line, "reason": broken.reason}))?;
            }
            bail!("{name}: the chain is broken at {broken}: lines from there on prove nothing");
        }
    }
    Ok(())
}

fn rotated(log: &Path) -> std::path::PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

fn parse_kind(text: &str) -> Result<Kind, String> {
    serde_json::from_value(text.into()).map_err(|_| {
        "the kinds are lifecycle, dns, connect, http, control, verdict, publish, vault, ssh and kernel"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_gives_whole_lines_and_follows_a_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        std::fs::write(&path, "one\ntw").unwrap();
        let mut tail = Tail::open(&path).unwrap();
        assert_eq!(tail.line().unwrap().as_deref(), Some("one"));
        assert_eq!(tail.line().unwrap(), None);
        let mut file = File::options().append(true).open(&path).unwrap();
        file.write_all(b"o\nthree\n").unwrap();
        std::fs::rename(&path, rotated(&path)).unwrap();
        std::fs::write(&path, "four\n").unwrap();
        let lines: Vec<_> = std::iter::from_fn(|| tail.line().unwrap()).collect();
        assert_eq!(lines, ["two", "three", "four"]);
        assert_eq!(tail.line().unwrap(), None);
    }

    #[test]
    fn kinds_are_those_of_the_log() {
        assert_eq!(parse_kind("dns"), Ok(Kind::Dns));
        assert!(parse_kind("DNS").is_err());
    }

    #[test]
    fn refusals_of_all_kinds_pass_the_filter() {
        let line = |action: &str, t: u64| -> Line {
            let text = format!(r#"{{"n":1,"t":{t},"kind":"connect","action":"{action}","prev":""}}"#);
            serde_json::from_str(&text).unwrap()
        };
        let filter = Filter { kinds: vec![Kind::Connect], refused: true, from: 10 };
        assert!(filter.passes(&line("refuse", 10)) && filter.passes(&line("refused", 11)));
        assert!(!filter.passes(&line("allow", 11)) && !filter.passes(&line("refuse", 9)));
    }
}
