//! What grants cost: a sealed container with a credential and an SSH key beside one without.

use crate::footprint::{RESIDENT, pss, settle};
use crate::hooks::Stopwatch;
use crate::report::{Budget, Report};
use crate::sample::{Bounds, Samples, interleaved};
use crate::start::{life, started, watched};
use crate::subject::{Network, Subject, user};
use std::time::Duration;
use terok_tests::{Mode, Vault, secret};

/// What the vault has for it, by name.
const NAME: &str = "bench";

pub(crate) fn measure(report: &mut Report) -> anyhow::Result<()> {
    let stopwatch = Stopwatch::new()?;
    for mode in [Mode::Rootless, Mode::Rootful] {
        let pair = [Subject::new(mode, Network::Sealed), granted(mode)];
        starts(report, &pair, &stopwatch);
        let bounds = Bounds { rounds: 10, limit: Duration::from_secs(30) };
        for (subject, outcome) in pair.iter().zip(interleaved(&pair, bounds, life)) {
            let what = format!("podman stop, {}", label(subject));
            match outcome {
                Ok([_, _, stop, _]) => report.value(what, "ms", &stop),
                Err(error) => report.absent(what, &format!("{error:#}")),
            }
        }
        let container = pair[1].idle()?;
        settle(std::slice::from_ref(&container));
        let resident = container.supervisors().into_iter().map(pss).sum::<anyhow::Result<f64>>()?;
        let what = format!("terok's memory (PSS), 1 container, {}", label(&pair[1]));
        report.budgeted(what, "MiB", &Samples::from(vec![resident]), RESIDENT);
    }
    Ok(())
}

/// The start and its two hooks.
fn starts(report: &mut Report, pair: &[Subject; 2], stopwatch: &Stopwatch) {
    let timed = pair.clone().map(|subject| watched(stopwatch, subject));
    let bounds = Bounds { rounds: 15, limit: Duration::from_secs(40) };
    let outcomes = interleaved(&timed, bounds, |subject| started(stopwatch, subject));
    let [Ok(plain), Ok(granted)] = outcomes.as_slice() else {
        for error in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
            report.absent(label(&pair[1]), &format!("{error:#}"));
        }
        return;
    };
    let budgets = [None, None, Some(Budget::AtMost(10.0))];
    for (n, what) in ["podman start", "hook precreate", "hook create, to ready"].into_iter().enumerate() {
        let what = format!("{what}, {}", label(&pair[1]));
        report.compared(what, "ms", &granted[n], ("no grants", &plain[n]), budgets[n]);
    }
}

/// A container with a credential and a key.
fn granted(mode: Mode) -> Subject {
    Vault::open(mode).add("github", NAME, &secret("ghp_"));
    mode.terok(&["ssh", "new", NAME]).succeeded();
    let vault = format!("terok.vault=github={NAME}");
    Subject::new(mode, Network::Sealed).protected(&[&vault, &format!("terok.ssh={NAME}@github.com")])
}

fn label(subject: &Subject) -> String {
    let granted = subject.annotations.iter().any(|annotation| annotation.starts_with("terok.vault="));
    format!("{} {}", if granted { "vault and SSH" } else { "no grants" }, user(subject.mode))
}
