//! The verbs for running containers: thin clients of their supervisors.

use crate::cli::{Json, One, Rules};
use crate::containers::{self, Known, short};
use crate::control::{self, Order};
use crate::show::{self, Tone};
use anyhow::bail;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::time::Duration;
use terok_install::host::Host;
use terok_policy::control::{Applied, Status};
use terok_policy::layout;
use terok_policy::policy::{Shield, Sourced};

/// `terok ps`
pub(crate) fn ps(host: &Host, json: Json) -> anyhow::Result<()> {
    let running = containers::running(host)?;
    let answers = control::block_on(async {
        let mut answers = Vec::new();
        for known in &running {
            answers.push((known, control::status(known).await));
        }
        answers
    })?;
    if json.json {
        let rows: Vec<_> = answers
            .iter()
            .map(|(known, status)| match status {
                Ok(status) => serde_json::json!(status),
                Err(error) => serde_json::json!({"container": known.record, "error": format!("{error:#}")}),
            })
            .collect();
        println!("{}", serde_json::to_string(&rows)?);
        return Ok(());
    }
    if answers.is_empty() {
        println!("no protected container runs; start one with: terok run IMAGE");
        return Ok(());
    }
    println!(
        "{:12}  {:20} {:16} {:6} {:>6} {:>8} {:>8}  UP",
        "ID", "NAME", "PROJECT", "SHIELD", "OPEN", "ALLOWED", "REFUSED"
    );
    for (known, status) in &answers {
        let name = show::printable(known.name());
        match status {
            Ok(status) => {
                let container = &status.container;
                println!(
                    "{:12}  {name:20} {:16} {} {:>6} {:>8} {:>8}  {}",
                    short(&known.id),
                    show::printable(&container.labels.project),
                    pad(&show::shield(status.state), &show::word(&status.state), 6),
                    status.connections,
                    status.allowed,
                    status.refused,
                    show::span(show::now().saturating_sub(container.started)),
                );
            }
            Err(error) => println!(
                "{:12}  {name:20} {}",
                short(&known.id),
                show::toned(Tone::Bad, &format!("{error:#}"))
            ),
        }
    }
    Ok(())
}

/// `terok status C`
pub(crate) fn status(host: &Host, container: &str, json: Json) -> anyhow::Result<()> {
    let known = containers::find(host, container)?;
    if known.run.is_none() {
        return not_running(&known);
    }
    let status = control::block_on(control::status(&known))??;
    if json.json {
        println!("{}", serde_json::to_string(&status)?);
    } else {
        print_status(&status);
    }
    Ok(())
}

/// `terok allow C RULE…`
pub(crate) fn allow(host: &Host, rules: &Rules) -> anyhow::Result<()> {
    change(host, rules, Order::Allow(&rules.rules), "allowed")
}

/// `terok deny C RULE…`
pub(crate) fn deny(host: &Host, rules: &Rules) -> anyhow::Result<()> {
    change(host, rules, Order::Deny(&rules.rules), "denied")
}

/// `terok up`, `down`, `block`
pub(crate) fn set_state(host: &Host, one: &One, state: Shield, time: Option<Duration>) -> anyhow::Result<()> {
    let known = containers::find_running(host, &one.container)?;
    let applied = control::block_on(control::give(&known, Order::State(state, time)))??;
    if one.json.json {
        println!("{}", serde_json::to_string(&applied)?);
        return Ok(());
    }
    let was = if applied.changed.is_empty() { " already" } else { "" };
    let until = time.map_or_else(String::new, |time| format!(" for {}, then up", show::span(time.as_secs())));
    println!("{}: shield is{was} {}{until}{}", known.name(), show::shield(state), cut(&applied));
    Ok(())
}

fn change(host: &Host, rules: &Rules, order: Order<'_>, verb: &str) -> anyhow::Result<()> {
    let known = containers::find_running(host, &rules.container)?;
    let (order, verb) = if rules.forget { (Order::Forget(&rules.rules), "forgotten") } else { (order, verb) };
    let applied = control::block_on(control::give(&known, order))??;
    if rules.json.json {
        println!("{}", serde_json::to_string(&applied)?);
    } else if applied.changed.is_empty() {
        let state = if rules.forget { "no such live rule" } else { "it was so already" };
        println!("{}: nothing changed: {state}{}", known.name(), cut(&applied));
    } else {
        println!("{}: {verb} {}{}", known.name(), applied.changed.join(", "), cut(&applied));
    }
    Ok(())
}

fn cut(applied: &Applied) -> String {
    match applied.cut {
        0 => String::new(),
        1 => "; 1 connection cut".to_owned(),
        n => format!("; {n} connections cut"),
    }
}

/// What is known of a container that does not run: why its last start was refused, or that it ended.
fn not_running(known: &Known) -> anyhow::Result<()> {
    let log = known.state.join(layout::LOG);
    let refused = last_line(&log).filter(|line| !line.is_empty() && !ended_after(known));
    match refused {
        Some(line) => bail!(
            "container {} does not run; the last line of {}: {}",
            known.name(),
            log.display(),
            show::printable(&line)
        ),
        None => {
            bail!("container {} does not run; terok audit {} shows what it did", known.name(), known.name())
        }
    }
}

/// Whether the audit log was written after the log: then the container started and ended since.
fn ended_after(known: &Known) -> bool {
    let time = |name: &str| known.state.join(name).metadata().and_then(|meta| meta.modified()).ok();
    let (audit, log) = (time(layout::AUDIT), time(layout::LOG));
    let last = last_line(&known.state.join(layout::AUDIT)).unwrap_or_default();
    let last: Option<terok_policy::audit::Line> = serde_json::from_str(&last).ok();
    audit > log && last.is_some_and(|line| line.event.action != "refused")
}

fn last_line(path: &std::path::Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(64 << 10))).ok()?;
    let mut end = Vec::new();
    file.read_to_end(&mut end).ok()?;
    String::from_utf8_lossy(&end).lines().last().map(str::to_owned)
}

fn print_status(status: &Status) {
    let container = &status.container;
    let line = |key: &str, value: &str| {
        if !value.is_empty() {
            println!("{key:12} {}", show::printable(value));
        }
    };
    line("container", &container.name);
    line("id", &container.id);
    line("label", &container.labels.name);
    line("project", &container.labels.project);
    line("task", &container.labels.task);
    line("pid", &container.pid.to_string());
    line("up", &show::span(show::now().saturating_sub(container.started)));
    let until = status
        .until
        .map_or_else(String::new, |until| format!(" for {}", show::span(until.saturating_sub(show::now()))));
    println!("{:12} {}{until}", "shield", show::shield(status.state));
    line(
        "connections",
        &format!("{} open, {} allowed, {} refused", status.connections, status.allowed, status.refused),
    );
    line("restarts", &status.restarts.to_string());
    line("confinement", &status.confinement.join(", "));
    rules("allow", &status.allow);
    rules("deny", &status.deny);
}

fn rules(title: &str, rules: &[Sourced]) {
    for (at, sourced) in rules.iter().enumerate() {
        let title = if at == 0 { title } else { "" };
        println!(
            "{title:12} {:40} {}",
            sourced.rule.to_string(),
            show::toned(Tone::Faint, &show::source(&sourced.source))
        );
    }
    if rules.is_empty() {
        println!("{title:12} {}", show::toned(Tone::Faint, "nothing"));
    }
}

/// `shown` (perhaps coloured) padded as if it were `plain`.
fn pad(shown: &str, plain: &str, width: usize) -> String {
    format!("{shown}{}", " ".repeat(width.saturating_sub(plain.len())))
}
