//! What terok costs, measured side by side with what it replaces, in one run inside the lab (`cargo xtask bench`).
//! Everything is interleaved, so that a busy machine slows all alike; ratios and differences count, not single numbers.
//! Standard output: one line of JSON, then the table. Progress goes to standard error.

mod broker;
mod bundle;
mod filtered;
mod footprint;
mod granted;
mod hooks;
mod network;
mod report;
mod sample;
mod start;
mod subject;

use report::Report;
use std::path::Path;
use std::process::ExitCode;
use terok_tests::Mode;

/// A part of the run: its name and what measures it.
type Section = (&'static str, fn(&mut Report) -> anyhow::Result<()>);

const SECTIONS: [Section; 13] = [
    ("start", start::phases),
    ("hooks", start::hooks_alone),
    ("bundle", bundle::measure),
    ("footprint", footprint::measure),
    ("granted", granted::measure),
    ("network", network::measure),
    ("dns", network::dns),
    ("growth", start::growth),
    ("crowd", filtered::crowd),
    ("filtered", filtered::phases),
    ("card", filtered::throughput),
    ("rules", filtered::rules),
    ("broker", broker::measure),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [verb, log, program, arguments @ ..] = arguments.as_slice()
        && verb == hooks::VERB
    {
        return hooks::run(Path::new(log), program, arguments);
    }
    if std::env::var_os("TEROK_LAB").is_none() {
        eprintln!("terok-bench: not in the lab: run cargo xtask bench");
        return ExitCode::from(64);
    }
    match run(&arguments) {
        Ok(report) => {
            println!("{}", report.json());
            print!("{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("terok-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(only: &[String]) -> anyhow::Result<Report> {
    // The lab's root has the images already; the user has not.
    Mode::Rootless.run("/run/lab/scripts/load-images.sh", &[]).succeeded();
    Mode::Rootful.terok(&["setup", "--system"]).succeeded();
    let mut report = Report::default();
    for (name, measure) in SECTIONS {
        if !only.is_empty() && !only.iter().any(|wanted| wanted == name) {
            continue;
        }
        eprintln!("bench: {name} …");
        if let Err(error) = measure(&mut report) {
            report.absent(name, &format!("{error:#}"));
        }
    }
    Ok(report)
}
