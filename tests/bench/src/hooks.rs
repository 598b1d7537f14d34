//! A stopwatch between the runtime and terok's hooks: the same hook files, with this program before the real one.

use anyhow::{Context, bail};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

/// The argument that makes this program the stopwatch.
pub(crate) const VERB: &str = "hook";
/// Where this program is in the lab.
const SELF: &str = "/run/lab/bin/terok-bench";
/// Where terok's hooks are installed.
const INSTALLED: &str = "/usr/share/terok/hooks.d";

/// Hook files with a stopwatch, and the log it writes.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    /// For `podman --hooks-dir`.
    pub(crate) folder: PathBuf,
    log: PathBuf,
}

impl Stopwatch {
    /// Reads what `terok setup --system` installed.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let folder = PathBuf::from("/run/bench/hooks.d");
        std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
        let log = PathBuf::from("/run/bench/hooks.log");
        std::fs::write(&log, "")?;
        // Hooks run as either user.
        std::fs::set_permissions(&log, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
        let mut found = 0;
        for entry in std::fs::read_dir(INSTALLED).with_context(|| format!("reading {INSTALLED}"))? {
            let path = entry?.path();
            let mut file: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
            if !file["hook"]["path"].as_str().unwrap_or_default().ends_with(terok_policy::layout::HOOK) {
                continue;
            }
            let mut arguments =
                vec![json!("terok-bench"), json!(VERB), json!(log), file["hook"]["path"].clone()];
            arguments.extend(file["hook"]["args"].as_array().into_iter().flatten().skip(1).cloned());
            file["hook"]["path"] = json!(SELF);
            file["hook"]["args"] = json!(arguments);
            std::fs::write(folder.join(entry_name(&path)?), file.to_string())?;
            found += 1;
        }
        if found == 0 {
            bail!("no hook of terok's in {INSTALLED}");
        }
        Ok(Stopwatch { folder, log })
    }

    /// Milliseconds of the hook `verb` since the last call that asked for anything.
    pub(crate) fn take<const N: usize>(&self, verbs: [&str; N]) -> anyhow::Result<[f64; N]> {
        let text = std::fs::read_to_string(&self.log)?;
        std::fs::write(&self.log, "")?;
        let mut taken = [0.0; N];
        for (verb, taken) in verbs.iter().zip(&mut taken) {
            let line = text.lines().rev().find_map(|line| line.strip_prefix(verb));
            *taken = line
                .and_then(|ms| ms.trim().parse().ok())
                .with_context(|| format!("the hook {verb} did not run"))?;
        }
        Ok(taken)
    }
}

fn entry_name(path: &Path) -> anyhow::Result<&std::ffi::OsStr> {
    path.file_name().context("a hook file has a name")
}

/// Runs the real hook on our standard streams and writes down how long it took.
pub(crate) fn run(log: &Path, program: &str, arguments: &[String]) -> ExitCode {
    let started = Instant::now();
    let ended = Command::new(program).args(arguments).status();
    let ms = started.elapsed().as_secs_f64() * 1e3;
    let verb = arguments.first().map_or("", String::as_str);
    let written = std::fs::OpenOptions::new()
        .append(true)
        .open(log)
        .and_then(|mut log| writeln!(log, "{verb} {ms:.3}"));
    match (ended, written) {
        (Ok(status), Ok(())) if status.success() => ExitCode::SUCCESS,
        (Ok(status), Ok(())) => {
            ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
        }
        (ended, written) => {
            eprintln!("terok-bench: {ended:?} {written:?}");
            ExitCode::FAILURE
        }
    }
}
