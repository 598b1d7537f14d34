//! `terok panic`: nothing new starts, and nothing that runs reaches anything. The marker that stops starts comes first,
//! then every supervisor is told at once; each has the same short time to answer.

mod users;

use crate::containers::{self, Known};
use crate::control::{self, Order};
use crate::show::{self, Tone};
use anyhow::{Context as _, bail};
use clap::Args;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use terok_install::host::Host;
use terok_install::{podman, setup};
use terok_policy::policy::Shield;
use zlink::futures_util::future::join_all;

/// How long a supervisor, and then Podman, may take.
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
}

/// Sounds the alarm or ends it. Exit code 1 where something could not be stopped.
pub(crate) fn panic(host: &Host, args: &PanicArgs) -> anyhow::Result<ExitCode> {
    if args.clear {
        clear(host)?;
        return Ok(ExitCode::SUCCESS);
    }
    // A marker that cannot be written must not keep the containers that run from being blocked.
    let marked = if args.own { Ok(None) } else { mark(host).map(Some) };
    match &marked {
        Ok(Some(path)) => say!("no container starts any more, because of {}", path.display())?,
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
    Ok(if stopped { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
    let orders = known.iter().map(|known| async move {
        let order = control::give(known, Order::State(Shield::Block, None));
        match tokio::time::timeout(DEADLINE, order).await {
            Ok(answer) => answer.map(|applied| applied.cut),
            Err(_) => bail!("its supervisor does not answer"),
        }
    });
    let answers = control::block_on(join_all(orders))?;
    let killed: Vec<Option<Result<(), String>>> = match kill {
        true => killed(known).into_iter().map(Some).collect(),
        false => known.iter().map(|_| None).collect(),
    };
    let mut stopped = true;
    for ((known, answer), killed) in known.iter().zip(answers).zip(killed) {
        let name = show::printable(known.name());
        let blocked = match &answer {
            Ok(0) => show::toned(Tone::Good, "blocked"),
            Ok(cut) => format!("{}, {cut} connections cut", show::toned(Tone::Good, "blocked")),
            Err(error) => {
                show::toned(Tone::Bad, &format!("not blocked: {}", show::printable(&format!("{error:#}"))))
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
