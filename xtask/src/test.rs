//! Every test: the workspace's own where they are, then end to end inside one lab.

use crate::dist;
use crate::lab::Lab;
use crate::process::{cargo, code, must, output, status, target};
use anyhow::Context;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

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
}

impl Options {
    /// Every test, on this machine's Podman.
    pub(crate) fn everything() -> Self {
        Options { filter: None, podman5: false, e2e: false, jobs: 4 }
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
    let jobs = format!("--test-threads={}", options.jobs);
    let ended = status(lab.open(&bin, &[])?.arg("/run/lab/bin/e2e").args(&options.filter).arg(jobs))?;
    Ok(if ended.success() { worst } else { code(ended) })
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
