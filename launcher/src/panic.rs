//! `terok panic`: nothing new starts, and nothing that runs reaches anything. The marker that stops starts comes first,
//! then every supervisor is told at once; each has the same short time to answer.

mod users;

use crate::containers::{self, Known};
use crate::control::{self, Order};
use crate::show::{self, Tone};
use anyhow::Context as _;
use clap::Args;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use terok_install::host::Host;
use terok_install::{podman, setup};
use terok_policy::control::Applied;
use terok_policy::policy::Shield;
use zlink::futures_util::future::join_all;

/// How long Podman may take; a supervisor has the time that [`control`] gives every answer.
const DEADLINE: Duration = Duration::from_secs(5);

/// `terok panic`
#[derive(Debug, Args)]
pub(crate) struct PanicArgs {
    /// Kill the containers as well
    #[arg(long, conflicts_with = "clear")]
    kill: bool,
    /// Let containers start again; those that run stay blocked until terok up
    #[arg(long)]
    clear: bool,
    /// Only the containers of this user, without the marker: how root's panic reaches those of others
    #[arg(long, hide = true, conflicts_with = "clear")]
    own: bool,
    /// Only the containers of other users
    #[arg(long, hide = true, conflicts_with_all = ["clear", "own"])]
    others: bool,
}

/// Sounds the alarm or ends it. Exit code 1 where something could not be stopped.
pub(crate) fn panic(host: &Host, args: &PanicArgs) -> anyhow::Result<ExitCode> {
    if args.clear {
        clear(host)?;
        return Ok(ExitCode::SUCCESS);
    }
    let stopped = if args.others { users::others(args.kill)? } else { alarm(host, args)? };
    Ok(if stopped { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether everything was stopped.
fn alarm(host: &Host, args: &PanicArgs) -> anyhow::Result<bool> {
    // A marker that cannot be written must not keep the containers that run from being blocked.
    let marked = if args.own { Ok(None) } else { mark(host).map(Some) };
    match &marked {
        Ok(Some(path)) => say!("no protected container starts any more, because of {}", path.display())?,
        Ok(None) => {}
        Err(error) => eprintln!("terok: containers can still be started: {error:#}"),
    }
    // Containers whose start was under way when the marker came are told as well.
    let mut stopped = marked.is_ok();
    let mut done: Vec<String> = Vec::new();
    loop {
        let running = containers::running(host)?;
        let new: Vec<Known> = running.into_iter().filter(|known| !done.contains(&known.id)).collect();
        if new.is_empty() {
            break;
        }
        stopped &= stop(&new, args.kill)?;
        done.extend(new.into_iter().map(|known| known.id));
    }
    if !host.rootless() && !args.own {
        stopped &= users::panic(args.kill)?;
    } else if done.is_empty() {
        say!("no protected container runs")?;
    }
    if marked.is_ok() && !args.own {
        say!("to let containers start again: terok panic --clear")?;
    }
    Ok(stopped)
}

fn mark(host: &Host) -> anyhow::Result<PathBuf> {
    let marker = host.panic_marker();
    if host.rootless() {
        // The hooks insist on a closed folder.
        let folder = host.state_dir();
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.with_context(|| folder.display().to_string())?;
    }
    let text = format!("terok panic, {}\n", show::time(show::now().saturating_mul(1000)));
    setup::put(&marker, text.as_bytes(), 0o644).with_context(|| marker.display().to_string())?;
    Ok(marker)
}

/// Blocks, and with `kill` kills; tells what became of each. Whether all were stopped.
fn stop(known: &[Known], kill: bool) -> anyhow::Result<bool> {
    let orders = known.iter().map(|known| control::give(known, Order::State(Shield::Block, None)));
    let answers = control::block_on(join_all(orders))?;
    let killed: Vec<Option<Result<(), String>>> = match kill {
        true => killed(known).into_iter().map(Some).collect(),
        false => known.iter().map(|_| None).collect(),
    };
    let mut stopped = true;
    for ((known, answer), killed) in known.iter().zip(answers).zip(killed) {
        let name = show::printable(known.name());
        let blocked = match &answer {
            Ok(Applied { cut: 0, .. }) => show::toned(Tone::Good, "blocked"),
            Ok(Applied { cut, .. }) => {
                format!("{}, {cut} connections cut", show::toned(Tone::Good, "blocked"))
            }
            Err(error) => {
                // Its name stands before it already.
                let reason = error.chain().nth(1).map_or_else(|| error.to_string(), ToString::to_string);
                show::toned(Tone::Bad, &format!("not blocked: {}", show::printable(&reason)))
            }
        };
        let end = match &killed {
            None if answer.is_err() => "; kill it with: terok panic --kill".to_owned(),
            None => String::new(),
            Some(Ok(())) => format!("; {}", show::toned(Tone::Good, "killed")),
            Some(Err(reason)) => format!("; {}", show::toned(Tone::Bad, &format!("not killed: {reason}"))),
        };
        // Dead is as good as blocked; but who asked for it to be killed wants it dead.
        stopped &= killed.map_or(answer.is_ok(), |killed| killed.is_ok());
        say!("{name}: {blocked}{end}")?;
    }
    Ok(stopped)
}

/// Asks Podman, by full id: a pid of ours could have become another process in the meantime.
fn killed(known: &[Known]) -> Vec<Result<(), String>> {
    let podman = match podman::find() {
        Ok(podman) => podman,
        Err(error) => return known.iter().map(|_| Err(error.to_string())).collect(),
    };
    let start = |known: &Known| {
        let child = Command::new(&podman)
            .args(["kill", "--signal=KILL", &known.id])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        child.map_err(|error| format!("{}: {error}", podman.display()))
    };
    let mut started: Vec<_> = known.iter().map(start).collect();
    let until = Instant::now() + DEADLINE;
    loop {
        // What Podman says matters less than whether the container is gone.
        let left = known.iter().filter(|known| containers::lives(known)).count();
        if left == 0 || Instant::now() >= until {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let ended = known.iter().zip(&mut started).map(|(known, child)| {
        if let Ok(child) = child {
            let _ = child.kill();
            let _ = child.wait();
        }
        match child {
            _ if !containers::lives(known) => Ok(()),
            Err(error) => Err(error.clone()),
            Ok(_) => Err(format!("it still runs {} s after podman kill", DEADLINE.as_secs())),
        }
    });
    ended.collect()
}

fn clear(host: &Host) -> anyhow::Result<()> {
    let marker = host.panic_marker();
    match std::fs::remove_file(&marker) {
        Ok(()) => say!("containers start again")?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => say!("there was no panic")?,
        Err(error) => return Err(error).with_context(|| marker.display().to_string()),
    }
    for other in host.panics() {
        say!("but root's panic still keeps them from it ({}): sudo terok panic --clear", other.display())?;
    }
    let running = containers::running(host)?;
    let asked = running.iter().map(|known| async move { (known, control::status(known).await) });
    for (known, status) in control::block_on(join_all(asked))? {
        let name = show::printable(known.name());
        match status {
            Ok(status) if status.state == Shield::Block => {
                say!("{name} is still blocked; lift it with: terok up {name}")?;
            }
            Ok(_) => {}
            Err(error) => say!("{name}: {error:#}")?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containers::host_at;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;
    use terok_policy::control::Container;
    use terok_policy::layout;

    const NOTHING: PanicArgs = PanicArgs { kill: false, clear: false, own: false, others: false };

    /// The runtime folder of a container that is this very process.
    fn container(host: &Host, id: &str) -> PathBuf {
        let run = host.run_dir().join(id);
        std::fs::create_dir_all(&run).unwrap();
        let pid = i32::try_from(std::process::id()).unwrap();
        let record = Container { id: id.to_owned(), name: id.to_owned(), pid, ..Container::default() };
        std::fs::write(run.join(layout::CONTAINER), serde_json::to_string(&record).unwrap()).unwrap();
        run
    }

    /// A supervisor that answers one call as if it blocked; what it was asked.
    fn supervisor(run: &std::path::Path) -> std::thread::JoinHandle<String> {
        let listener = UnixListener::bind(run.join(layout::CONTROL)).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut call = vec![0; 4096];
            let n = stream.read(&mut call).unwrap();
            stream
                .write_all(b"{\"parameters\":{\"applied\":{\"changed\":[\"block\"],\"cut\":2}}}\0")
                .unwrap();
            String::from_utf8_lossy(&call[..n]).into_owned()
        })
    }

    #[test]
    fn the_marker_comes_first_and_every_supervisor_is_told_to_block() {
        let root = tempfile::tempdir().unwrap();
        let host = host_at(root.path());
        let supervisor = supervisor(&container(&host, "abc"));
        assert!(alarm(&host, &NOTHING).unwrap());
        assert!(host.panic_marker().exists());
        let asked = supervisor.join().unwrap();
        assert!(asked.contains("SetState") && asked.contains("\"block\""), "{asked}");
        clear(&host).unwrap();
        assert!(!host.panic_marker().exists());
        clear(&host).unwrap();
    }

    #[test]
    fn a_supervisor_that_does_not_answer_is_no_success_and_keeps_no_other_from_being_told() {
        let root = tempfile::tempdir().unwrap();
        let host = host_at(root.path());
        container(&host, "dead");
        let supervisor = supervisor(&container(&host, "good"));
        assert!(!alarm(&host, &NOTHING).unwrap());
        supervisor.join().unwrap();
    }

    #[test]
    fn a_marker_that_cannot_be_written_is_no_success_but_what_runs_is_blocked() {
        let root = tempfile::tempdir().unwrap();
        let host = host_at(root.path());
        let supervisor = supervisor(&container(&host, "abc"));
        std::fs::create_dir_all(host.panic_marker()).unwrap();
        assert!(!alarm(&host, &NOTHING).unwrap());
        supervisor.join().unwrap();
    }
}
