//! The supervisor of one container: a parent that keeps the sockets and a worker that serves them (design §6).
//! A library so that fuzz targets and tests reach its parsers; the binary is `main` and nothing else.

pub(crate) mod audit;
pub mod broker;
pub(crate) mod context;
pub(crate) mod control;
pub mod dns;
pub(crate) mod flows;
pub(crate) mod guard;
pub(crate) mod hold;
pub(crate) mod inherit;
pub(crate) mod names;
pub(crate) mod nflog;
pub(crate) mod operator;
pub(crate) mod parent;
pub(crate) mod parent_link;
pub mod proxy;
pub(crate) mod readiness;
pub(crate) mod remains;
pub(crate) mod resolve;
#[cfg(test)]
mod rig;
pub mod ssh;
pub(crate) mod trust;
pub(crate) mod vault;
pub(crate) mod worker;

use std::path::PathBuf;
use std::process::ExitCode;
use terok_kernel::confine::Layer;
use terok_policy::layout;

/// The program. Its standard error is the container's log file.
pub fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error:#}", layout::SUPERVISOR);
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    terok_kernel::birth::clean()?;
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => parent::run(),
        ["worker", restarts, owner, why] => {
            worker::run(&worker::Turn { restarts: restarts.parse()?, owner: owner.parse()?, why: why.into() })
        }
        ["vault", owner] => vault::run(owner.parse()?),
        [terok_vault::attempt::ATTEMPT] => vault::attempt::run(),
        ["--version"] => {
            println!("{} {}", layout::SUPERVISOR, env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        _ => anyhow::bail!("is started by {}, not by hand", layout::HOOK),
    }
}

/// Files that name resolution reads, and the folders of those that are links: there a file is replaced, not rewritten.
fn resolver_files(owner: u32) -> Vec<PathBuf> {
    // A static program has no dlsym, so that its getrandom falls back to the device files.
    let mut files: Vec<PathBuf> =
        ["/etc/hosts", "/etc/resolv.conf", "/dev/random", "/dev/urandom"].map(PathBuf::from).to_vec();
    if let Ok(target) = std::fs::canonicalize("/etc/resolv.conf")
        && let Some(folder) = target.parent().filter(|folder| folder.starts_with("/run"))
    {
        files.push(folder.to_owned());
    }
    if owner != 0 {
        // A user's supervisor reads there what every user may; root's, which could read more, keeps to the two files.
        files.push("/etc".into());
    }
    files
}

/// A layer that the kernel lacks is said once, in the log; one that must be there ends the program.
fn report(layers: &[Layer]) -> anyhow::Result<()> {
    for layer in layers {
        match layer {
            Layer::Holds(_) => {}
            Layer::Missing(name, reason)
                if matches!(*name, "no-new-privs" | "no-capabilities" | "only-net-admin") =>
            {
                anyhow::bail!("{name}: {reason}");
            }
            Layer::Missing(..) => eprintln!("{}: {layer}", layout::SUPERVISOR),
            _ => {}
        }
    }
    Ok(())
}

/// Has `look` run in a thread that may read in `places` alone, after `change` was made.
#[cfg(test)]
fn confined_reader(places: Vec<PathBuf>, change: impl FnOnce(), look: impl FnOnce() + Send) {
    use terok_kernel::landlock::{Allowed, Enforced, restrict};
    let (confined, ready) = std::sync::mpsc::channel();
    let (changed, go) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let enforced = restrict(&Allowed { read: places, ..Allowed::default() });
            let _ = confined.send(());
            assert_eq!(go.recv(), Ok(()));
            match enforced {
                Enforced::No(reason) => terok_need::missing("landlock", reason),
                _ => look(),
            }
        });
        assert_eq!(ready.recv(), Ok(()));
        change();
        assert_eq!(changed.send(()), Ok(()));
        if let Err(panic) = reader.join() {
            std::panic::resume_unwind(panic);
        }
    });
}
