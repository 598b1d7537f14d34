//! What terok costs beside what it replaces, in one run. What is measured, and how, is in tests/bench.

use crate::dist;
use crate::lab::Lab;
use crate::process::{code, target};
use anyhow::{Context, bail};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

/// `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Print JSON instead of the table; both are left in target/bench
    #[arg(long)]
    json: bool,
    /// On Debian 13 with Podman 5, instead of this machine's Podman
    #[arg(long)]
    podman5: bool,
    /// Only these parts: start, hooks, bundle, footprint, granted, network, dns, growth, crowd, filtered, card, rules, broker
    only: Vec<String>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let lab = Lab { podman5: options.podman5, bench: true, ..Default::default() };
    lab.prepare()?;
    eprintln!("Building terok …");
    let bin = staged()?;
    let mut command = lab.open(&bin, &[])?;
    command.arg("/run/lab/bin/terok-bench").args(&options.only).stdout(Stdio::piped());
    let ended = command.spawn().context("opening the lab")?.wait_with_output()?;
    if !ended.status.success() {
        return Ok(code(ended.status));
    }
    let text = String::from_utf8(ended.stdout).context("the report")?;
    let Some((json, table)) = text.split_once('\n').filter(|(json, _)| json.starts_with('{')) else {
        bail!("not a report: {text}");
    };
    keep(json, table)?;
    print!("{}", if options.json { format!("{json}\n") } else { table.to_owned() });
    Ok(ExitCode::SUCCESS)
}

fn keep(json: &str, table: &str) -> anyhow::Result<()> {
    let folder = target().join("bench");
    std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    for (name, text) in [("report.json", json), ("report.txt", table)] {
        let path = folder.join(name);
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// One folder with the programs as they are shipped, and those that measure.
fn staged() -> anyhow::Result<PathBuf> {
    let folder = target().join("bench-bin");
    std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let programs = dist::build_here()?;
    for program in dist::PROGRAMS {
        dist::replace(&programs.join(program), &folder.join(program))?;
    }
    let measuring: [(&str, PathBuf); 2] =
        [("terok-probe", dist::probe()?), ("terok-bench", dist::for_the_lab("terok-bench")?)];
    for (name, built) in &measuring {
        dist::replace(Path::new(built), &folder.join(name))?;
    }
    Ok(folder)
}
