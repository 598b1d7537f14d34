//! Fuzzing on the stable toolchain: the coverage that libFuzzer wants is an LLVM pass any rustc has; cargo-fuzz is not needed.

use crate::process::{cargo, must, status, target, workspace};
use anyhow::{Context, bail};
use std::fs::File;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// What `cargo fuzz` passes, without the sanitizers that need a nightly compiler.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Ccodegen-units=1";

/// `cargo xtask fuzz`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only this target; all where none is named
    name: Option<String>,
    /// How long each target runs
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Seed of the random numbers: the same inputs in the same order each time; 0 for new ones
    #[arg(long, default_value_t = 0)]
    seed: u32,
    /// At most this many inputs for each target; -1 for no limit
    #[arg(long, default_value_t = -1, allow_negative_numbers = true)]
    runs: i64,
}

impl Options {
    /// Ten seconds of each target at the most, and the same inputs each time: what a change breaks is the change's
    /// doing. New inputs are found by running `cargo xtask fuzz` for longer.
    pub(crate) fn brief() -> Self {
        Options { name: None, seconds: 10, seed: 1, runs: 10_000 }
    }
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let build = target().join("fuzz");
    let manifest = workspace().join("fuzz/Cargo.toml");
    must(
        cargo()
            .args(["build", "--quiet", "--target", &triple, "--manifest-path"])
            .arg(&manifest)
            .env("CARGO_TARGET_DIR", &build)
            .env("RUSTFLAGS", COVERAGE),
    )?;
    let mut names = targets()?;
    if let Some(only) = &options.name {
        names.retain(|name| name == only);
    }
    if names.is_empty() {
        bail!("no such fuzz target: they are the files of fuzz/targets");
    }
    for name in names {
        let corpus = build.join("corpus").join(&name);
        if options.seed != 0 && corpus.exists() {
            std::fs::remove_dir_all(&corpus).with_context(|| format!("emptying {}", corpus.display()))?;
        }
        std::fs::create_dir_all(&corpus).with_context(|| format!("creating {}", corpus.display()))?;
        let seeds = workspace().join("fuzz/seeds").join(&name);
        let artifacts = format!("-artifact_prefix={}/", build.display());
        println!("fuzzing {name} for {} s", options.seconds);
        // libFuzzer's chatter matters only when it found something.
        let log = build.join(format!("{name}.log"));
        let chatter = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let ended = status(
            Command::new(build.join(&triple).join("debug").join(&name))
                .arg(&corpus)
                .args(seeds.is_dir().then_some(&seeds))
                .args([
                    &format!("-max_total_time={}", options.seconds),
                    &format!("-seed={}", options.seed),
                    &format!("-runs={}", options.runs),
                    // The clock of one input is that of the machine, which others use as well.
                    "-timeout=30",
                    "-rss_limit_mb=1024",
                    &artifacts,
                ])
                .stdout(chatter.try_clone()?)
                .stderr(chatter),
        )?;
        if !ended.success() {
            bail!("{name} found an input that fails; see {} and the file it names", log.display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The targets' names.
fn targets() -> anyhow::Result<Vec<String>> {
    let folder: PathBuf = workspace().join("fuzz/targets");
    let entries = std::fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}
