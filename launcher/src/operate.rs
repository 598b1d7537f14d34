//! The verbs for running containers: thin clients of their supervisors.

use crate::cli::{Json, One, Rules};
use crate::containers::{self, Known, short};
use crate::control::{self, Order};
use crate::show::{self, Tone};
use crate::{past, verdict};
use anyhow::bail;
use std::time::Duration;
use terok_install::engine;
use terok_install::host::Host;
use terok_policy::control::{Applied, CredentialState, CredentialStatus, Status};
use terok_policy::plan::Network;
use terok_policy::policy::{Shield, Sourced};

/// `terok ps`
pub(crate) fn ps(host: &Host, every: bool, json: Json) -> anyhow::Result<()> {
    let running = containers::running(host)?;
    // All at once: one supervisor that is slow to answer must not hold up the others' lines.
    let asked = running.iter().map(|known| async move { (known, control::status(known).await) });
    let answers = control::block_on(zlink::futures_util::future::join_all(asked))?;
    let gone = if every { past::past(host)? } else { Vec::new() };
    if json.json {
        let rows = answers.iter().map(|(known, status)| match status {
            Ok(status) => serde_json::json!(status),
            Err(error) => serde_json::json!({"container": known.record, "error": format!("{error:#}")}),
        });
        // The status is the guard's; the container is the one that was found.
        let rows = answers.iter().zip(rows).map(|((known, _), mut row)| {
            if known.served_by().is_some() {
                row["container"] = serde_json::json!(known.record);
            }
            row
        });
        let rows: Vec<_> = rows.chain(gone.iter().map(past::Past::json)).collect();
        say!("{}", serde_json::to_string(&rows)?)?;
        return Ok(());
    }
    if answers.is_empty() && gone.is_empty() {
        let more = if every { "" } else { ", see those that ended with: terok ps --all" };
        say!("no protected container runs; start one with: terok run IMAGE{more}")?;
        let others = engine::machines(host);
        if host.rootless() && !others.is_empty() {
            let names: Vec<_> = others.iter().map(|engine| engine.name()).collect();
            say!("containers of {} are root's: sudo terok ps", names.join(" and "))?;
        }
        return Ok(());
    }
    say!(
        "{:12}  {:20} {:16} {:8} {:8} {:>6} {:>8} {:>8} {:>7}  UP",
        "ID",
        "NAME",
        "PROJECT",
        "NETWORK",
        "SHIELD",
        "OPEN",
        "ALLOWED",
        "REFUSED",
        "WAITING"
    )?;
    for (known, status) in &answers {
        let name = show::printable(known.name());
        match status {
            Ok(status) => {
                let container = known.record.as_ref().unwrap_or(&status.container);
                let (shield, plain) = match status.tampered {
                    Some(_) => (show::toned(Tone::Bad, "tampered"), "tampered".to_owned()),
                    None => (show::shield(status.state), show::word(&status.state)),
                };
                say!(
                    "{:12}  {name:20} {:16} {:8} {} {:>6} {:>8} {:>8} {:>7}  {}",
                    short(&known.id),
                    show::printable(&container.labels.project),
                    known.network().map_or_else(|| "-".to_owned(), |network| show::word(&network)),
                    pad(&shield, &plain, 8),
                    status.connections,
                    status.allowed,
                    status.refused,
                    status.waiting.len(),
                    show::span(show::now().saturating_sub(container.started)),
                )?;
            }
            Err(error) => {
                say!("{:12}  {name:20} {}", short(&known.id), show::toned(Tone::Bad, &format!("{error:#}")))?
            }
        }
    }
    for past in &gone {
        say!("{past}")?;
    }
    Ok(())
}

/// `terok status C`
pub(crate) fn status(host: &Host, container: &str, json: Json) -> anyhow::Result<()> {
    let known = containers::find(host, container)?;
    if known.run.is_none() {
        return not_running(&known);
    }
    let mut status = control::block_on(control::whole_status(&known))??;
    let guard = known.served_by().map(|guard| guard_name(host, guard));
    if let (Some(_), Some(record)) = (&guard, &known.record) {
        status.container = record.clone();
    }
    if json.json {
        say!("{}", serde_json::to_string(&status)?)?;
    } else {
        print_status(&known, &status, guard.as_deref())?;
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
    // What was set is kept for its next start; until then nothing opens it.
    if state != Shield::Block
        && known.network() != Some(Network::Sealed)
        && let Some(how) = control::block_on(control::whole_status(&known))??.tampered
    {
        bail!("container {}: {}: {}", known.name(), show::printable(&how), remedy(&known));
    }
    if one.json.json {
        say!("{}", serde_json::to_string(&applied)?)?;
        return Ok(());
    }
    let was = if applied.changed.is_empty() { " already" } else { "" };
    let until = time.map_or_else(String::new, |time| format!(" for {}, then up", show::span(time.as_secs())));
    say!("{}: shield is{was} {}{until}{}", known.name(), show::shield(state), cut(&applied))?;
    Ok(())
}

fn change(host: &Host, rules: &Rules, order: Order<'_>, verb: &str) -> anyhow::Result<()> {
    let known = containers::find_running(host, &rules.container)?;
    let (order, verb) = if rules.forget { (Order::Forget(&rules.rules), "forgotten") } else { (order, verb) };
    let applied = control::block_on(control::give(&known, order))??;
    if rules.json.json {
        say!("{}", serde_json::to_string(&applied)?)?;
    } else if applied.changed.is_empty() {
        let state = if rules.forget { "no such live rule" } else { "it was so already" };
        say!("{}: nothing changed: {state}{}", known.name(), cut(&applied))?;
    } else {
        say!("{}: {verb} {}{}", known.name(), applied.changed.join(", "), cut(&applied))?;
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
    match past::last_refusal(known) {
        Some((at, reason)) => {
            bail!("container {name} does not run; its start at {} was refused: {reason}", show::time(at))
        }
        None => bail!("container {name} does not run; terok audit {name} shows what it did"),
    }
}

/// What helps where somebody changed the table.
fn remedy(known: &Known) -> &'static str {
    match known.network() {
        Some(Network::Sealed) => "it has no network card to be cut off from; start it again",
        _ => "cut off until it is started again",
    }
}

/// What the container is called whose supervisor serves another one as well.
fn guard_name(host: &Host, id: &str) -> String {
    let known = containers::find(host, id);
    known.map_or_else(|_| short(id).to_owned(), |known| format!("{} ({})", known.name(), short(id)))
}

fn print_status(known: &Known, status: &Status, guard: Option<&str>) -> anyhow::Result<()> {
    let container = &status.container;
    let line = |key: &str, value: &str| {
        if value.is_empty() { Ok(()) } else { say!("{key:12} {}", show::printable(value)) }
    };
    line("container", &container.name)?;
    line("id", &container.id)?;
    line("label", &container.labels.name)?;
    line("project", &container.labels.project)?;
    line("task", &container.labels.task)?;
    line("pid", &container.pid.to_string())?;
    line("up", &show::span(show::now().saturating_sub(container.started)))?;
    line("network", &known.network().map(|network| show::word(&network)).unwrap_or_default())?;
    line("served by", &guard.map(|guard| format!("the supervisor of {guard}")).unwrap_or_default())?;
    if let Some(how) = &status.tampered {
        let how = show::printable(how);
        say!(
            "{:12} {}",
            "tampered",
            show::toned(Tone::Bad, &format!("{how}: cut off until it is started again"))
        )?;
    }
    let until = status.until.map_or_else(String::new, |until| {
        format!(", up again in {}", show::span(until.saturating_sub(show::now())))
    });
    say!("{:12} {}{until}", "shield", show::shield(status.state))?;
    line("connections", &format!("{} open", status.connections))?;
    line("verdicts", &format!("{} allowed, {} refused", status.allowed, status.refused))?;
    line("restarts", &status.restarts.to_string())?;
    line("confinement", &status.confinement.join(", "))?;
    for (at, credential) in status.credentials.iter().enumerate() {
        let title = if at == 0 { "credentials" } else { "" };
        say!("{title:12} {}", credential_line(credential))?;
    }
    rules("allow", &status.allow)?;
    rules("deny", &status.deny)?;
    let waiting = verdict::lines(known, &status.waiting, show::now().saturating_mul(1000));
    for (at, waiting) in waiting.iter().enumerate() {
        let title = if at == 0 { "waiting" } else { "" };
        say!("{title:12} {}", show::toned(Tone::Notice, waiting))?;
    }
    Ok(())
}

fn credential_line(credential: &CredentialStatus) -> String {
    let tone = match credential.state {
        CredentialState::Ready => Tone::Good,
        CredentialState::Unused => Tone::Faint,
        CredentialState::Locked | CredentialState::Revoked => Tone::Notice,
        CredentialState::Missing | CredentialState::Failed => Tone::Bad,
    };
    let word = show::word(&credential.state);
    let reason = match credential.reason.as_str() {
        "" => String::new(),
        reason => format!("  {}", show::printable(reason)),
    };
    format!(
        "{:24} {} {} used, {} refused{reason}",
        show::printable(&credential.grant),
        pad(&show::toned(tone, &word), &word, 8),
        credential.used,
        credential.refused
    )
}

fn rules(title: &str, rules: &[Sourced]) -> anyhow::Result<()> {
    for (at, sourced) in rules.iter().enumerate() {
        let title = if at == 0 { title } else { "" };
        say!(
            "{title:12} {:40} {}",
            sourced.rule.to_string(),
            show::toned(Tone::Faint, &show::source(&sourced.source))
        )?;
    }
    if rules.is_empty() {
        say!("{title:12} {}", show::toned(Tone::Faint, "nothing"))?;
    }
    Ok(())
}

/// `shown` (perhaps coloured) padded as if it were `plain`.
fn pad(shown: &str, plain: &str, width: usize) -> String {
    format!("{shown}{}", " ".repeat(width.saturating_sub(plain.len())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use terok_policy::layout;

    #[test]
    fn a_container_that_does_not_run_says_why_or_where_to_look() {
        let folder = tempfile::tempdir().unwrap();
        let known = Known { id: "abc".into(), record: None, run: None, state: folder.path().into() };
        assert!(not_running(&known).unwrap_err().to_string().contains("terok audit abc"));
        std::fs::write(folder.path().join(layout::LOG), "200 refused: the container has a network card\n")
            .unwrap();
        let error = not_running(&known).unwrap_err().to_string();
        assert!(
            error.contains("at 1970-01-01T00:03:20.000Z was refused: the container has a network card"),
            "{error}"
        );
    }
}
