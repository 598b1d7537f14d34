//! `terok watch`: the audit lines of all containers as they are written, of those started later too.

use crate::containers::{self, Known};
use crate::{cli::Json, control, show};
use std::collections::HashSet;
use std::io::Write;
use std::time::Duration;
use terok_install::host::Host;
use terok_policy::audit::Line;
use tokio::sync::mpsc;

/// The runtime folder is looked at this often for new containers.
const LOOK: Duration = Duration::from_millis(200);

/// Follows the containers whose name, id or beginning of one is in `wanted`; all where it is empty.
pub(crate) fn watch(host: &Host, wanted: &[String], json: Json) -> anyhow::Result<()> {
    for text in wanted {
        if !terok_policy::layout::is_container_id(text) {
            anyhow::bail!(
                "{text:?} is no container: a name or an id has letters, digits, dots, dashes and underscores"
            );
        }
    }
    let running = containers::running(host)?;
    if !running.iter().any(|known| is_wanted(known, &running, wanted)) {
        let what = if wanted.is_empty() { String::new() } else { format!(" called {}", wanted.join(" or ")) };
        eprintln!("terok: no protected container{what} runs yet: waiting for one (Ctrl-C ends)");
    }
    control::block_on(tokio::task::LocalSet::new().run_until(follow_all(host, wanted, json)))?
}

async fn follow_all(host: &Host, wanted: &[String], json: Json) -> anyhow::Result<()> {
    let (lines, mut arriving) = mpsc::unbounded_channel::<(Known, Line)>();
    let (gone, mut going) = mpsc::unbounded_channel::<String>();
    let mut followed = HashSet::new();
    let mut looks = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            _ = looks.tick() => {
                let running = containers::running(host)?;
                for known in &running {
                    if is_wanted(known, &running, wanted) && followed.insert(known.id.clone()) {
                        let (known, lines, gone) = (known.clone(), lines.clone(), gone.clone());
                        tokio::task::spawn_local(async move {
                            // A supervisor whose worker is just being restarted is found again at the next look.
                            let _ = control::subscribe(&known, |line| drop(lines.send((known.clone(), line)))).await;
                            drop(gone.send(known.id));
                        });
                    }
                }
            }
            Some((known, line)) = arriving.recv() => print(&known, &line, json)?,
            Some(id) = going.recv() => { followed.remove(&id); }
        }
    }
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

fn print(known: &Known, line: &Line, json: Json) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json.json {
        let line = serde_json::json!({"container": {"id": known.id, "name": known.name()}, "event": line});
        writeln!(out, "{line}")?;
    } else {
        writeln!(out, "{:16} {}", show::printable(known.name()), show::event(&line.event))?;
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
