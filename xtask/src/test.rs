//! Every test: the workspace's own where they are, then end to end inside one lab.

use crate::dist;
use crate::lab::Lab;
use crate::process::{cargo, code, must, output, read, status, target};
use anyhow::Context;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};

/// More failures than this are no accident of a busy machine.
const UNSTEADY: usize = 3;

/// `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only tests whose path contains this
    filter: Option<String>,
    /// End to end on Debian 13 with Podman 5, instead of this machine's Podman
    #[arg(long)]
    podman5: bool,
    /// Only the end-to-end tests
    #[arg(long)]
    e2e: bool,
    /// How many end-to-end tests run at once
    #[arg(long, default_value_t = 4)]
    jobs: usize,
    /// Run an end-to-end test that failed beside the others once more, alone; it is named, and fails if it fails again
    #[arg(long)]
    again: bool,
}

impl Options {
    /// Every test, on this machine's Podman, where somebody else's load may slow it down.
    pub(crate) fn everything() -> Self {
        Options { filter: None, podman5: false, e2e: false, jobs: 4, again: true }
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let lab = Lab { podman5: options.podman5, rootless: false, image: true, bench: false };
    lab.prepare()?;
    let mut worst = ExitCode::SUCCESS;
    if !options.e2e {
        let ended = status(
            cargo()
                .args(["test", "--quiet", "--workspace", "--no-fail-fast", "--exclude", "terok-tests"])
                .args(&options.filter),
        )?;
        if !ended.success() {
            worst = ExitCode::FAILURE;
        }
    }
    let bin = staged()?;
    println!(
        "end to end, in the lab ({}):",
        if options.podman5 { "Podman 5" } else { "this machine's Podman" }
    );
    let ended = end_to_end(lab, &bin, options)?;
    Ok(if ended.success() { worst } else { code(ended) })
}

fn end_to_end(lab: Lab, bin: &Path, options: &Options) -> anyhow::Result<ExitStatus> {
    let run = |tests: &[&str], jobs: usize| {
        let mut command = lab.open(bin, &[])?;
        command.arg("/run/lab/bin/e2e").args(tests).arg(format!("--test-threads={jobs}"));
        anyhow::Ok(command)
    };
    let filter = options.filter.as_deref();
    let (mut failed, mut counted) = (Vec::new(), None);
    let ended = read(&mut run(filter.as_slice(), options.jobs)?, |line| {
        failed.extend(failure(line));
        counted = failures(line).or(counted);
    })?;
    // A run that broke off, or with a failure that was not read, says nothing of the tests that are not named here.
    if ended.success() || !options.again || counted != Some(failed.len()) || failed.len() > UNSTEADY {
        return Ok(ended);
    }
    println!("failed beside the others, once more and alone: {}", failed.join(", "));
    let mut alone: Vec<&str> = failed.iter().map(String::as_str).collect();
    alone.push("--exact");
    let ended = status(&mut run(&alone, 1)?)?;
    if ended.success() {
        println!("unsteady: passed alone, failed beside the others: {}", failed.join(", "));
    }
    Ok(ended)
}

/// The test that a line of libtest's says has failed.
fn failure(line: &str) -> Option<String> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED").map(str::to_owned)
}

/// How many tests have failed, by libtest's last line, which it writes once all of them have ended.
fn failures(line: &str) -> Option<usize> {
    let counts = line.strip_prefix("test result: FAILED. ")?;
    counts.split("; ").find_map(|count| count.strip_suffix(" failed"))?.parse().ok()
}

/// One folder with everything that runs in the lab: the programs, the probe, the compiled tests.
pub(crate) fn staged() -> anyhow::Result<PathBuf> {
    let folder = target().join("lab-bin");
    std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let programs = dist::build_here()?;
    for program in dist::PROGRAMS {
        dist::replace(&programs.join(program), &folder.join(program))?;
    }
    dist::replace(&dist::probe()?, &folder.join("terok-probe"))?;
    dist::replace(&compiled_tests()?, &folder.join("e2e"))?;
    Ok(folder)
}

/// Compiles the end-to-end tests without running them.
pub(crate) fn compiled_tests() -> anyhow::Result<PathBuf> {
    let command = ["test", "--quiet", "-p", "terok-tests", "--test", "e2e", "--no-run"];
    must(cargo().args(command))?;
    let messages = output(cargo().args(command).arg("--message-format=json"))?;
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == "e2e")
        .find_map(|message| message["executable"].as_str().map(|path| Path::new(path).to_path_buf()))
        .context("cargo did not say where the compiled tests are")
}

#[cfg(test)]
mod tests {
    use super::{failure, failures};

    #[test]
    fn a_failed_test_is_known_by_its_line() {
        assert_eq!(
            failure("test live::it_ends::rootless ... FAILED").as_deref(),
            Some("live::it_ends::rootless")
        );
        for other in
            ["test live::it_ends ... ok", "test result: FAILED. 637 passed; 1 failed", "    live::it_ends"]
        {
            assert_eq!(failure(other), None, "{other}");
        }
    }

    #[test]
    fn failures_are_counted_where_all_tests_have_ended() {
        let line = "test result: FAILED. 637 passed; 3 failed; 0 ignored; 0 measured; 2 filtered out; finished in 9.81s";
        assert_eq!(failures(line), Some(3));
        for other in
            ["test live::it_ends ... FAILED", "test result: ok. 4 passed; 0 failed; 0 ignored", "failures:"]
        {
            assert_eq!(failures(other), None, "{other}");
        }
    }
}
