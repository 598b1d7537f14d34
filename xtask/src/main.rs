//! `cargo xtask`: builds, tests, measures and shows terok, with its own set-up. Not shipped.

mod bench;
mod ci;
mod demo;
mod dist;
mod fuzz;
mod lab;
mod mutants;
mod process;
mod test;

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
    /// Shows terok at work: one container that reaches one name and is refused another
    Demo(demo::Options),
    /// Runs every test: the workspace's own, then end to end in the lab
    Test(test::Options),
    /// Measures terok beside what it replaces, in the lab
    Bench(bench::Options),
    /// Opens the lab: a throw-away machine with Podman and a fake internet
    Lab(lab::Options),
    /// Runs the tests without each protection in turn: they must fail
    Mutants(mutants::Options),
    /// Builds the static programs into target/dist/bin
    Dist(dist::Options),
    /// Everything a change must pass: format, lint, licences, tests, a brief fuzz
    Ci,
    /// Fuzzes the parsers of untrusted bytes
    Fuzz(fuzz::Options),
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
        Command::Demo(options) => demo::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Lab(options) => lab::run(&options),
        Command::Mutants(options) => mutants::run(&options),
        Command::Dist(options) => dist::run(&options),
        Command::Ci => ci::run(),
        Command::Fuzz(options) => fuzz::run(&options),
    }
}
