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
use terok_policy::audit::Line;
use terok_policy::control::{Applied, Status};
use terok_policy::layout;
use terok_policy::policy::{Shield, Sourced};

/// `terok ps`
pub(crate) fn ps(host: &Host, json: Json) -> anyhow::Result<()> {
    let running = containers::running(host)?;
    // All at once: one supervisor that is slow to answer must not hold up the others' lines.
    let asked = running.iter().map(|known| async move { (known, control::status(known).await) });
    let answers = control::block_on(zlink::futures_util::future::join_all(asked))?;
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
    let name = known.name();
    match last_refusal(known) {
        Some((at, reason)) => {
            bail!("container {name} does not run; its start at {} was refused: {reason}", show::time(at))
        }
        None => bail!("container {name} does not run; terok audit {name} shows what it did"),
    }
}

/// When and why the last start was refused, if nothing was started since.
fn last_refusal(known: &Known) -> Option<(u64, String)> {
    let log = end_of(&known.state.join(layout::LOG))?;
    // The hook writes `UNIX-SECONDS refused: REASON`; other lines are the supervisor's.
    let (at, reason) = log.lines().rev().find_map(|line| {
        let (at, reason) = line.split_once(" refused: ")?;
        Some((at.parse::<u64>().ok()?.checked_mul(1000)?, show::printable(reason)))
    })?;
    let audit = end_of(&known.state.join(layout::AUDIT)).unwrap_or_default();
    let started = audit.lines().rev().find_map(|line| {
        let line: Line = serde_json::from_str(line).ok()?;
        (line.event.action == "start").then_some(line.event.t)
    });
    // The log counts in seconds.
    started.is_none_or(|started| started < at + 1000).then_some((at, reason))
}

/// The last 64 KiB of a file.
fn end_of(path: &std::path::Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(64 << 10))).ok()?;
    let mut end = Vec::new();
    file.read_to_end(&mut end).ok()?;
    Some(String::from_utf8_lossy(&end).into_owned())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_start_is_told_until_a_later_one_succeeds() {
        let folder = tempfile::tempdir().unwrap();
        let known = Known { id: "abc".into(), record: None, run: None, state: folder.path().into() };
        assert!(not_running(&known).unwrap_err().to_string().contains("terok audit abc"));
        let log =
            "100 refused: an older reason\n200 refused: the container has a network card\nsupervisor: bye\n";
        std::fs::write(folder.path().join(layout::LOG), log).unwrap();
        let error = not_running(&known).unwrap_err().to_string();
        assert!(
            error.contains("at 1970-01-01T00:03:20.000Z was refused: the container has a network card"),
            "{error}"
        );
        let start = r#"{"n":1,"t":201500,"kind":"lifecycle","action":"start","prev":"0"}"#;
        std::fs::write(folder.path().join(layout::AUDIT), start).unwrap();
        assert!(last_refusal(&known).is_none());
        std::fs::write(folder.path().join(layout::AUDIT), start.replace("201500", "150000")).unwrap();
        assert!(last_refusal(&known).is_some());
    }
}
