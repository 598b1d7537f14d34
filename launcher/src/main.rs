//! `terok`: starts protected containers and controls those that run.

mod audit;
mod cli;
mod containers;
mod control;
mod explain;
mod generate;
mod maintain;
mod operate;
mod profiles;
mod run;
mod show;
mod watch;

fn main() -> std::process::ExitCode {
    cli::main()
}
