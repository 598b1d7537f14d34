//! `terok verdict`: an operator's word on connections that wait (`terok.shield.hold`).

use crate::cli::Json;
use crate::containers::{self, Known};
use crate::profiles::Own;
use crate::{control, show};
use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use terok_install::host::Host;
use terok_policy::control::{Scope, Waiting};
use terok_policy::rule::Rule;

/// `terok verdict`
#[derive(Debug, Args)]
pub(crate) struct VerdictArgs {
    /// Name, id or the beginning of one
    container: String,
    /// The number that terok watch and terok status show
    id: u64,
    /// What becomes of it
    word: Word,
    /// For the connections that wait now (default)
    #[arg(long, conflicts_with_all = ["always", "profile"])]
    once: bool,
    /// Until the container is removed, as terok allow and terok deny
    #[arg(long)]
    always: bool,
    /// As --always, and write the rule into this profile of yours, for later containers
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    #[command(flatten)]
    json: Json,
}

/// The two verdicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Word {
    /// Let it through
    Allow,
    /// Refuse it
    Deny,
}

/// Gives the verdict, and writes the rule down where asked to.
pub(crate) fn verdict(host: &Host, args: &VerdictArgs) -> anyhow::Result<()> {
    let known = containers::find_running(host, &args.container)?;
    let allow = args.word == Word::Allow;
    let scope = if args.always || args.profile.is_some() { Scope::Always } else { Scope::Once };
    // What would keep the rule from being written is found before the verdict is given.
    let profile = match &args.profile {
        Some(_) if !allow => bail!(
            "--profile is for allow: a profile says what is allowed; --always keeps a deny until the container is removed"
        ),
        Some(name) => Some((name, Own::open(host, name)?)),
        None => None,
    };
    let reply = control::block_on(control::verdict(&known, args.id, allow, scope))??;
    let mut written = None;
    if let Some((name, mut own)) = profile {
        let rule: Rule =
            reply.rule.parse().with_context(|| format!("{}: the supervisor's rule", reply.rule))?;
        let comment = format!("allowed for {} on {}", show::printable(known.name()), show::day(show::now()));
        let path = own.path().to_path_buf();
        let new = own.add(&rule, &comment).with_context(|| {
            format!("{rule} is allowed until the container is removed, but not written to {}", path.display())
        })?;
        written = Some((name, path, new));
    }
    if args.json.json {
        let path = written.as_ref().map(|(_, path, _)| path);
        say!("{}", serde_json::json!({"applied": reply.applied, "rule": reply.rule, "profile": path}))?;
        return Ok(());
    }
    let verb = if allow { "allowed" } else { "denied" };
    let lasts = match scope {
        Scope::Once => "once",
        Scope::Always => "until the container is removed",
    };
    say!("{}: {verb} {} {lasts}", known.name(), show::printable(&reply.rule))?;
    if let Some((name, path, new)) = written {
        let how = if new { "written to" } else { "stands already in" };
        say!("{how} {}; containers started with --profile {name} have it", path.display())?;
    }
    Ok(())
}

/// The command that decides about a waiting connection, ready to be typed.
pub(crate) fn command(container: &str, id: u64) -> String {
    format!("terok verdict {} {id} allow|deny", show::printable(container))
}

/// One line for each connection that waits, with the command that decides about it.
pub(crate) fn lines(known: &Known, waiting: &[Waiting], now_ms: u64) -> Vec<String> {
    let line = |waiting: &Waiting| {
        let left = show::span(waiting.until.saturating_sub(now_ms).div_ceil(1000));
        let several = match waiting.connections {
            0 | 1 => String::new(),
            n => format!(", {n} connections"),
        };
        let target = show::printable(&waiting.target);
        format!("{:>3}  {target} ({left} left{several}): {}", waiting.id, command(known.name(), waiting.id))
    };
    waiting.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waiting_connection_is_shown_with_the_command_to_type() {
        let known = Known { id: "abc".into(), record: None, run: None, state: "/".into() };
        let waiting = Waiting {
            id: 7,
            target: "a.example\u{1b}:443".into(),
            rule: "a.example:443".into(),
            since: 1_000,
            until: 31_000,
            connections: 3,
        };
        let lines = lines(&known.called("agent".into()), &[waiting], 2_500);
        assert_eq!(
            lines,
            ["  7  a.example\u{fffd}:443 (29s left, 3 connections): terok verdict agent 7 allow|deny"]
        );
    }
}
