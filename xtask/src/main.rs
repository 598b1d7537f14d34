//! `cargo xtask`: builds, tests, measures and shows terok, with its own set-up. Not shipped.

mod dist;
mod lab;
mod process;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// The development tool of terok.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Opens the lab: a throw-away machine with Podman and a fake internet
    Lab(lab::Options),
    /// Builds the static programs into target/dist/bin
    Dist(dist::Options),
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Lab(options) => lab::run(&options),
        Command::Dist(options) => dist::run(&options),
    }
}
