//! What a start and a stop cost: wall time, programs run, and growth with rules and with containers.

use crate::hooks::Stopwatch;
use crate::report::{Budget, Report};
use crate::sample::{Bounds, Outcome, Samples, interleaved, timed};
use crate::subject::{Network, Subject, name, podman, user};
use anyhow::Context;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use terok_tests::Mode;

/// Start, stop and whole life of each kind of container.
pub(crate) fn phases(report: &mut Report) -> anyhow::Result<()> {
    for mode in [Mode::Rootless, Mode::Rootful] {
        let subjects = Subject::all(mode)?;
        let bounds = Bounds { rounds: 10, limit: Duration::from_secs(45) };
        let outcomes = interleaved(&subjects, bounds, life);
        let of = |network| {
            let at = subjects.iter().position(|subject| subject.network == network)?;
            outcomes[at].as_ref().ok()
        };
        let sealed = of(Network::Sealed);
        let verbs = ["run --rm true", "start", "stop", "rm"];
        for (phase, verb) in verbs.iter().enumerate() {
            for (subject, outcome) in subjects.iter().zip(&outcomes) {
                let what = format!("podman {verb}, {}", subject.label());
                match outcome {
                    Ok(samples) => report.value(what, "ms", &samples[phase]),
                    // Once, not for each phase.
                    Err(error) if phase == 0 => report.absent(what, &format!("{error:#}")),
                    Err(_) => {}
                }
            }
        }
        let Some(sealed) = sealed else { continue };
        if let Some(none) = of(Network::None) {
            for (phase, verb) in [(1, "start"), (2, "stop"), (3, "rm")] {
                let what = format!("added to podman {verb}, {}", user(mode));
                let added = sealed[phase].less(&none[phase]);
                report.budgeted(what, "ms", &added, Budget::AtMost(10.0));
            }
        }
        for network in [Network::Slirp, Network::Pasta, Network::Bridge] {
            let Some(other) = of(network) else { continue };
            let label = Subject::new(mode, network).label();
            report.compared(
                format!("sealed start, {}", user(mode)),
                "ms",
                &sealed[1],
                (&label, &other[1]),
                Some(Budget::RatioAtMost(1.0)),
            );
        }
    }
    executed(report)
}

/// `run --rm true`, then `start`, `stop` and `rm` of a container that sleeps.
pub(crate) fn life(subject: &Subject) -> anyhow::Result<[f64; 4]> {
    let run = timed(|| run_true(subject))?;
    let [start, stop, rm] = sleeper(subject)?;
    Ok([run, start, stop, rm])
}

/// `start`, `stop` and `rm` of a container that sleeps.
fn sleeper(subject: &Subject) -> anyhow::Result<[f64; 3]> {
    let name = name();
    let mut create = subject.arguments(&["create"], &name);
    create.extend(["sleep".to_owned(), "600".to_owned()]);
    podman(subject.mode, &create)?;
    let phase = |verb: &[&str]| {
        let arguments: Vec<&str> = subject
            .global
            .iter()
            .map(String::as_str)
            .chain(verb.iter().copied())
            .chain([name.as_str()])
            .collect();
        timed(|| podman(subject.mode, &arguments))
    };
    let started = phase(&["start"]);
    let stopped = started.is_ok().then(|| phase(&["stop", "--time=0"]));
    let removed = phase(&["rm", "--force", "--time=0"])?;
    Ok([started?, stopped.context("not started")??, removed])
}

fn run_true(subject: &Subject) -> anyhow::Result<()> {
    let mut run = subject.arguments(&["run", "--rm"], &name());
    run.push("true".to_owned());
    podman(subject.mode, &run).map(|_| ())
}

/// The hooks by themselves, from their first instruction to their last; `create` ends when every service answers.
pub(crate) fn hooks_alone(report: &mut Report) -> anyhow::Result<()> {
    let stopwatch = Stopwatch::new()?;
    for mode in [Mode::Rootless, Mode::Rootful] {
        let subject = watched(&stopwatch, Subject::new(mode, Network::Sealed));
        let bounds = Bounds { rounds: 15, limit: Duration::from_secs(15) };
        let outcome = interleaved(&[subject], bounds, |subject| {
            run_true(subject)?;
            stopwatch.take(["precreate", "create", "stop"])
        });
        for outcome in outcome {
            let [precreate, create, stop] = outcome?;
            let user = user(mode);
            report.value(format!("hook precreate, {user}"), "ms", &precreate);
            report.budgeted(format!("hook create, to ready, {user}"), "ms", &create, Budget::AtMost(10.0));
            report.budgeted(format!("hook stop, {user}"), "ms", &stop, Budget::AtMost(10.0));
        }
    }
    Ok(())
}

/// `subject` with hooks that are timed.
pub(crate) fn watched(stopwatch: &Stopwatch, mut subject: Subject) -> Subject {
    subject.global = vec![format!("--hooks-dir={}", stopwatch.folder.display())];
    subject
}

/// Programs executed for `run --rm true`, as strace sees them.
fn executed(report: &mut Report) -> anyhow::Result<()> {
    let strace = Command::new("strace").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !strace.is_ok_and(|status| status.success()) {
        report.absent("programs executed for a start", "strace is not installed");
        return Ok(());
    }
    for mode in [Mode::Rootless, Mode::Rootful] {
        let mut none = None;
        for network in [Network::None, Network::Bridge, Network::Sealed] {
            let subject = Subject::new(mode, network);
            let what = format!("programs executed for a start, {}", subject.label());
            let count = match execs(&subject) {
                Ok(count) => Samples::from(vec![count]),
                Err(error) => {
                    report.absent(what, &format!("{error:#}"));
                    continue;
                }
            };
            match &none {
                None => report.value(what, "", &count),
                Some(none) => report.compared(what, "", &count, ("none", none), None),
            }
            none.get_or_insert(count);
        }
    }
    Ok(())
}

fn execs(subject: &Subject) -> anyhow::Result<f64> {
    let log = Path::new("/run/bench-execs");
    let mut run = subject.arguments(&["run", "--rm"], &name());
    run.push("true".to_owned());
    // The user's podman under root's strace: an unprivileged tracer would take newuidmap's privilege away.
    let podman = subject.mode.command("podman");
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq", "-e", "trace=execve", "-e", "signal=none", "-o"]).arg(log);
    traced.arg(podman.get_program()).args(podman.get_args()).args(&run);
    if let Some(folder) = podman.get_current_dir() {
        traced.current_dir(folder);
    }
    let output = traced.stdin(Stdio::null()).output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    let text = std::fs::read_to_string(log)?;
    Ok(text.lines().filter(|line| line.contains("execve") && line.trim_end().ends_with("= 0")).count() as f64)
}

/// Many rules: a start must not feel them. How many containers there are is measured in [`crate::filtered::crowd`].
pub(crate) fn growth(report: &mut Report) -> anyhow::Result<()> {
    started_with(report, &Subject::new(Mode::Rootless, Network::Sealed), "sealed")
}

/// Starts on the network of `plain` with 10, 1 000 and 10 000 rules.
pub(crate) fn started_with(report: &mut Report, plain: &Subject, kind: &str) -> anyhow::Result<()> {
    const COUNTS: [usize; 3] = [10, 1_000, 10_000];
    let stopwatch = Stopwatch::new()?;
    for rules in ["names", "literals"] {
        let ruled = |count| -> anyhow::Result<Subject> {
            let annotation = format!("terok.shield.profiles={}", profile(rules, count)?);
            Ok(watched(&stopwatch, plain.protected(&[&annotation])))
        };
        let subjects = COUNTS.map(ruled).into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        let bounds = Bounds { rounds: 8, limit: Duration::from_secs(40) };
        let outcomes = interleaved(&subjects, bounds, |subject| started(&stopwatch, subject));
        let Some((few, more)) = outcomes.split_first() else { continue };
        for (count, many) in COUNTS[1..].iter().zip(more) {
            compare(report, &format!("{count} rules ({rules}, {kind})"), "10 rules", [few, many]);
        }
    }
    Ok(())
}

fn compare(report: &mut Report, what: &str, than: &str, pair: [&Outcome<3>; 2]) {
    let [Ok(few), Ok(many)] = pair else {
        for error in pair.iter().filter_map(|outcome| outcome.as_ref().err()) {
            report.absent(what, &format!("{error:#}"));
        }
        return;
    };
    let phases = [("start", Some(Budget::RatioAtMost(1.1))), ("hook precreate", None), ("hook create", None)];
    for (n, (phase, budget)) in phases.into_iter().enumerate() {
        report.compared(format!("{phase} with {what}"), "ms", &many[n], (than, &few[n]), budget);
    }
}

/// `podman start`, and the two hooks in it.
pub(crate) fn started(stopwatch: &Stopwatch, subject: &Subject) -> anyhow::Result<[f64; 3]> {
    let [start] = start(subject)?;
    let [precreate, create] = stopwatch.take(["precreate", "create"])?;
    Ok([start, precreate, create])
}

pub(crate) fn start(subject: &Subject) -> anyhow::Result<[f64; 1]> {
    let [start, ..] = sleeper(subject)?;
    Ok([start])
}

/// A profile of `count` rules, made for every user of the machine.
fn profile(kind: &str, count: usize) -> anyhow::Result<String> {
    let folder = Path::new(terok_policy::layout::PROFILES_SYSTEM);
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    let rules: String = (0..count)
        .map(|n| match kind {
            "names" => format!("host-{n}.example.com\n"),
            // No two of them next to each other, so that they stay as many ranges in the kernel.
            _ => format!("20.0.{}.{}:443\n", n / 128, n % 128 * 2),
        })
        .collect();
    let name = format!("bench-{kind}-{count}");
    std::fs::write(folder.join(format!("{name}.txt")), rules)?;
    Ok(name)
}
