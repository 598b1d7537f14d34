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
    if !running.iter().any(|known| is_wanted(known, wanted)) {
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
                for known in containers::running(host)? {
                    if is_wanted(&known, wanted) && followed.insert(known.id.clone()) {
                        let (lines, gone) = (lines.clone(), gone.clone());
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

fn is_wanted(known: &Known, wanted: &[String]) -> bool {
    wanted.is_empty()
        || wanted
            .iter()
            .any(|text| known.id.starts_with(text.as_str()) || known.name().starts_with(text.as_str()))
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
