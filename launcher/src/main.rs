//! `terok`: starts protected containers and controls those that run.

/// Prints a line; an error where nobody reads any more, which ends the program quietly.
macro_rules! say {
    ($($text:tt)*) => { crate::show::say(format_args!($($text)*)) };
}

mod audit;
mod cli;
mod containers;
mod control;
mod engine;
mod explain;
mod generate;
mod maintain;
mod operate;
mod panic;
mod past;
mod profiles;
mod providers;
mod run;
mod show;
mod ssh;
mod vault;
mod verdict;
mod watch;

fn main() -> std::process::ExitCode {
    cli::main()
}
