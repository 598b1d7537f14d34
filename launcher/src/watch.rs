//! `terok watch`: the audit lines of all containers as they are written, of those started later too; connections that
//! wait for a verdict with the command that decides about them, or with `--ask` as questions.

mod questions;

use crate::containers::{self, Known};
use crate::{cli::Json, control, show, verdict};
use anyhow::bail;
use questions::Questions;
use std::collections::HashSet;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;
use terok_install::host::Host;
use terok_policy::audit::{Event, Kind, Line};
use tokio::sync::mpsc;

/// The runtime folder is looked at this often for new containers.
const LOOK: Duration = Duration::from_millis(200);

/// Follows the containers whose name, id or beginning of one is in `wanted`; all where it is empty.
pub(crate) fn watch(host: &Host, wanted: &[String], ask: bool, json: Json) -> anyhow::Result<()> {
    for text in wanted {
        if !terok_policy::layout::is_container_id(text) {
            bail!(
                "{text:?} is no container: a name or an id has letters, digits, dots, dashes and underscores"
            );
        }
    }
    if ask && !std::io::stdin().is_terminal() {
        bail!("--ask needs a terminal to ask at; without one, decide with: terok verdict C ID allow|deny");
    }
    let running = containers::running(host)?;
    if !running.iter().any(|known| is_wanted(known, &running, wanted)) {
        let what = if wanted.is_empty() { String::new() } else { format!(" called {}", wanted.join(" or ")) };
        eprintln!("terok: no protected container{what} runs yet: waiting for one (Ctrl-C ends)");
    }
    let questions = ask.then(Questions::new);
    control::block_on(tokio::task::LocalSet::new().run_until(follow_all(host, wanted, questions, json)))?
}

/// What a followed supervisor says.
enum Said {
    Line(Line),
    /// What waited already when we began to listen.
    Waits(u64, String),
    End,
}

async fn follow_all(
    host: &Host,
    wanted: &[String],
    mut questions: Option<Questions>,
    json: Json,
) -> anyhow::Result<()> {
    let (tell, mut told) = mpsc::unbounded_channel::<(Known, Said)>();
    // By socket: the members of a pod have one supervisor, whose lines are shown once.
    let mut followed: HashSet<PathBuf> = HashSet::new();
    let mut looks = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            _ = looks.tick() => {
                let running = containers::running(host)?;
                for known in &running {
                    if let Some(socket) = known.socket()
                        && is_wanted(known, &running, wanted)
                        && followed.insert(socket)
                    {
                        tokio::task::spawn_local(follow(known.clone(), tell.clone()));
                    }
                }
            }
            Some((known, said)) = told.recv() => match said {
                Said::Line(line) => {
                    print(&known, &line, questions.is_some(), json)?;
                    if let Some(questions) = &mut questions {
                        questions.hear(&known, &line.event)?;
                    }
                }
                Said::Waits(id, target) => match &mut questions {
                    Some(questions) => questions.waits(&known, id, &target)?,
                    None if !json.json => say!("{:16} {target} waits: {}", show::printable(known.name()), verdict::command(known.name(), id))?,
                    None => {}
                },
                Said::End => { known.socket().map(|socket| followed.remove(&socket)); }
            },
            line = Questions::line(&mut questions) => match (line, &mut questions) {
                (Some(line), Some(questions)) => questions.answer(&line).await?,
                _ => return Ok(()),
            }
        }
    }
}

async fn follow(known: Known, tell: mpsc::UnboundedSender<(Known, Said)>) {
    let waiting = async {
        for waiting in control::status(&known).await.map(|status| status.waiting).unwrap_or_default() {
            drop(tell.send((known.clone(), Said::Waits(waiting.id, show::printable(&waiting.target)))));
        }
    };
    // A supervisor whose worker is just being restarted is found again at the next look.
    let lines = control::subscribe(&known, |line| drop(tell.send((known.clone(), Said::Line(line)))));
    let _ = tokio::join!(lines, waiting);
    drop(tell.send((known, Said::End)));
}

/// The number of the connection that `event` is about, where it is one that waits or waited.
fn verdict_id(event: &Event) -> Option<u64> {
    (event.kind == Kind::Verdict).then(|| event.detail.get("id")?.as_u64()).flatten()
}

/// A container that is called so is meant alone; else all whose name or id begins so.
fn is_wanted(known: &Known, running: &[Known], wanted: &[String]) -> bool {
    let matches = |text: &String| {
        if running.iter().any(|other| other.is_called(text)) {
            return known.is_called(text);
        }
        known.id.starts_with(text.as_str()) || known.name().starts_with(text.as_str())
    };
    wanted.is_empty() || wanted.iter().any(matches)
}

fn print(known: &Known, line: &Line, asks: bool, json: Json) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if asks && out.is_terminal() {
        // The line takes the place of the question, which comes again below it.
        write!(out, "\r\x1b[K")?;
    }
    if json.json {
        let line = serde_json::json!({"container": {"id": known.id, "name": known.name()}, "event": line});
        writeln!(out, "{line}")?;
    } else {
        writeln!(out, "{:16} {}", show::printable(known.name()), show::event(&line.event))?;
        if let Some(id) = verdict_id(&line.event).filter(|_| !asks && line.event.action == "wait") {
            let command = show::toned(show::Tone::Notice, &verdict::command(known.name(), id));
            writeln!(out, "{:16} {command}", "")?;
        }
    }
    out.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_means_that_container_and_a_beginning_all_that_begin_so() {
        let known = |id: &str, name: &str| {
            Known { id: id.into(), record: None, run: None, state: "/".into() }.called(name.into())
        };
        let running = [known("abc", "agent"), known("abd", "agent-2"), known("eee", "web")];
        let followed = |wanted: &[&str]| -> Vec<&str> {
            let wanted: Vec<String> = wanted.iter().map(|text| (*text).to_owned()).collect();
            running.iter().filter(|known| is_wanted(known, &running, &wanted)).map(Known::name).collect()
        };
        assert_eq!(followed(&[]), ["agent", "agent-2", "web"]);
        assert_eq!(followed(&["agent"]), ["agent"]);
        assert_eq!(followed(&["ag", "eee"]), ["agent", "agent-2", "web"]);
        assert_eq!(followed(&["agent", "agent-2"]), ["agent", "agent-2"]);
    }
}
