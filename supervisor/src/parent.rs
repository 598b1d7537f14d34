//! The parent: keeps the sockets while workers come and go (L5), holds the one right that the worker must not have, and
//! clears up when the container has ended (L4). One thread, no runtime, and no byte from the container is ever read here.

use crate::guard::Guard;
use crate::inherit::{BirthError, Inherited, Lines, ParentConfig};
use crate::parent_link::{Ask, LONGEST_QUESTION, Question, Told};
use crate::remains;
use crate::trust;
use crate::vault::{Errands, Means, Order};
use anyhow::{anyhow, bail};
use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use terok_kernel::capabilities::Kept;
use terok_kernel::confine::{Confinement, confine};
use terok_kernel::landlock::Allowed;
use terok_kernel::pidfd::{PidFd, readable};
use terok_kernel::program::{Child, Exit, Program, set_name};
use terok_kernel::seccomp::Filter;
use terok_kernel::socket::message_pair;
use terok_kernel::statedir::Dir;
use terok_kernel::userns::{Owner, owner};
use terok_policy::plan::Fd;
use terok_policy::{layout, provision};
use terok_vault::known_hosts::{self, KnownHosts};

/// Wait before a restart: doubled at each, back to the first after a worker that lived [`LIVED`].
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(2));
const LIVED: Duration = Duration::from_secs(10);
/// How long a worker may take to end after its container: it writes the log's last lines, on a machine that may be busy with others.
const FAREWELL: Duration = Duration::from_secs(10);

/// Supervises until the container has ended.
pub(crate) fn run() -> anyhow::Result<()> {
    set_name(layout::SUPERVISOR);
    let (mut inherited, config) = Inherited::of_parent()?;
    let state = inherited.folder(Fd::StateDir, &config.state_dir)?;
    let guard = Guard::new(&mut inherited, &config, &state)?;
    let mut parent = Parent {
        owner: match owner()? {
            Owner::User(uid) => uid,
            Owner::Root => 0,
        },
        program: Program::own()?,
        container: PidFd::from(inherited.share(Fd::Pidfd)?),
        ready: Some(inherited.take_fd(Fd::Ready)?),
        guard,
        run: inherited.folder(Fd::RunDir, &config.run_dir)?,
        state,
        config,
        vault: Folders::of(&inherited)?,
        errands: Errands::default(),
        inherited,
        restarts: 0,
    };
    parent.introduce_hosts()?;
    parent.confine()?;
    parent.supervise()
}

struct Parent {
    program: Program,
    /// Real uid of the person whose container this is. The worker is told: under these limits /proc cannot be asked.
    owner: u32,
    inherited: Inherited,
    container: PidFd,
    /// Closed once the hook was told.
    ready: Option<OwnedFd>,
    guard: Guard,
    run: Dir,
    state: Dir,
    config: ParentConfig,
    /// Where anything was granted.
    vault: Option<Folders>,
    errands: Errands,
    restarts: u64,
}

/// What the vault's helpers read.
struct Folders {
    /// The configuration's memfd.
    config: OwnedFd,
    /// The vault's, and where it is.
    vault: OwnedFd,
    path: PathBuf,
    /// The runtime base folder, with the vault's session.
    session: OwnedFd,
}

impl Folders {
    fn of(inherited: &Inherited) -> Result<Option<Self>, BirthError> {
        if !inherited.has(Fd::Vault) {
            return Ok(None);
        }
        let (config, vault) = (inherited.stored_config()?.into(), inherited.share(Fd::Vault)?);
        let path = std::fs::read_link(format!("/proc/self/fd/{}", vault.as_raw_fd()))?;
        Ok(Some(Folders { config, vault, path, session: inherited.share(Fd::Session)? }))
    }
}

struct Worker {
    child: Child,
    link: UnixDatagram,
    /// The end of the vault line that helpers write to; the other one is the worker's alone.
    reports: OwnedFd,
    born: Instant,
}

impl Parent {
    /// Gives the container the keys by which the hosts are known that it may log in at: its own `ssh` asks for them before the signer does.
    fn introduce_hosts(&self) -> anyhow::Result<()> {
        let (Some(folders), false) = (&self.vault, self.config.policy.ssh.is_empty()) else { return Ok(()) };
        let files = known_hosts::files(&folders.path, Path::new(&self.config.home));
        let known = KnownHosts::read(&files).unwrap_or_else(|error| {
            eprintln!("{}: {error}", layout::SUPERVISOR);
            KnownHosts::default()
        });
        let text = known.file_for(&self.config.policy.ssh);
        let inside = self.inherited.folder(Fd::Birth, layout::INSIDE)?;
        Ok(inside.write_for_all(provision::KNOWN_HOSTS, text.as_bytes())?)
    }

    /// The worker inherits these limits and adds its own, so they leave room for what both need.
    fn confine(&self) -> anyhow::Result<()> {
        let around = |dir: &Dir| File::open(dir.path().parent().unwrap_or(dir.path()));
        let (runs, states) = (around(&self.run)?, around(&self.state)?);
        let libraries = libraries();
        let mut execute: Vec<BorrowedFd<'_>> = libraries.iter().map(AsFd::as_fd).collect();
        execute.push(self.program.as_fd());
        let (mut read, mut write) = (crate::resolver_files(self.owner), vec![runs.as_fd(), states.as_fd()]);
        if let Some(folders) = &self.vault {
            // For the helpers: the session and what lives with one container lie beside the runtime folders.
            read.extend(trust::places());
            if self.inherited.has(Fd::Agent) {
                read.extend(known_hosts::places(Path::new(&self.config.home)));
            }
            write.push(folders.vault.as_fd());
        }
        let layers = confine(&Confinement {
            keep: &[Kept::NetAdmin],
            files: Allowed { read, write, look: vec![], remove: vec![], execute },
            calls: Filter::Parent,
        });
        crate::report(&layers)
    }

    fn supervise(&mut self) -> anyhow::Result<()> {
        let mut why = String::new();
        let mut wait = BACKOFF.0;
        loop {
            match self.start(&why) {
                Ok(worker) => {
                    let Some(exit) = self.attend(&worker)? else {
                        return self.farewell(worker);
                    };
                    why = describe(exit);
                    if worker.born.elapsed() >= LIVED {
                        wait = BACKOFF.0;
                    }
                }
                // The machine is out of processes or memory for a while.
                Err(error) => why = format!("not started: {error:#}"),
            }
            if self.ready.is_some() {
                bail!("the worker ended before it was ready: {why}");
            }
            if !self.container.is_alive() && wait == BACKOFF.1 {
                bail!("no worker could be started for the container's end: {why}");
            }
            self.restarts += 1;
            // A container that ends meanwhile still gets a worker: it writes the log's last line.
            self.pause(wait)?;
            wait = (wait * 2).min(BACKOFF.1);
        }
    }

    fn start(&mut self, why: &str) -> anyhow::Result<Worker> {
        let ((ours, parent), (reports, vault)) = (message_pair()?, message_pair()?);
        let theirs = Lines { parent, vault };
        let (null, log) = (std::io::stdin(), std::io::stderr());
        let mut fds: Vec<BorrowedFd<'_>> = vec![null.as_fd(), null.as_fd(), log.as_fd()];
        fds.extend(self.inherited.for_worker(&self.config.fds, &theirs));
        let child = self
            .program
            .spawn(&["worker", &self.restarts.to_string(), &self.owner.to_string(), why], &fds)?;
        let link = UnixDatagram::from(ours);
        link.set_nonblocking(true)?;
        let worker = Worker { child, link, reports, born: Instant::now() };
        for news in self.guard.standing(&self.config) {
            self.tell(&worker, &Told::News(news))?;
        }
        Ok(worker)
    }

    /// Answers the worker until it ends (how) or the container does (`None`).
    fn attend(&mut self, worker: &Worker) -> anyhow::Result<Option<Exit>> {
        let mut listening = true;
        loop {
            let mut watched = vec![self.container.as_fd(), worker.child.pidfd().as_fd()];
            if listening {
                watched.push(worker.link.as_fd());
            }
            watched.extend(self.guard.watched());
            watched.extend(self.errands.watched());
            let due = [self.guard.due(), self.errands.due()].into_iter().flatten().min();
            let ready = readable(&watched, due)?;
            if ready[0] {
                return Ok(None);
            }
            for news in self.guard.attend() {
                self.tell(worker, &Told::News(news))?;
            }
            if listening && ready[2] {
                listening = self.answer(worker)?;
            }
            self.run_errands(worker)?;
            if ready[1] {
                self.errands.forget();
                return Ok(Some(worker.child.reap()?.unwrap_or(Exit::Code(0))));
            }
        }
    }

    /// Waits between two workers; whatever the guard finds out meanwhile, the next one is told.
    fn pause(&mut self, limit: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let mut watched = vec![self.container.as_fd()];
            watched.extend(self.guard.watched());
            watched.extend(self.errands.watched());
            let due = [self.guard.due(), self.errands.due(), Some(left)].into_iter().flatten().min();
            let ready = readable(&watched, due)?;
            if ready[0] || left.is_zero() {
                return Ok(());
            }
            self.guard.attend();
            self.errands.reap();
        }
    }

    /// Answers one message; `false` when the worker has closed its end.
    fn answer(&mut self, worker: &Worker) -> anyhow::Result<bool> {
        let mut message = vec![0; LONGEST_QUESTION];
        let length = match worker.link.recv(&mut message) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
            // A worker that dies with an answer unread resets the line: closed, like one that just dies.
            Ok(0) | Err(_) => return Ok(false),
            Ok(length) => length,
        };
        let Ok(Question { number, ask }) = serde_json::from_slice(&message[..length]) else {
            // Nothing else is said by a worker of ours; one that was taken over is not humoured.
            worker.child.kill()?;
            return Ok(true);
        };
        let done = match ask {
            Ask::Ready => {
                if let Some(ready) = self.ready.take() {
                    // A hook that waits no more has refused the start, and the container's end will follow.
                    let _ = File::from(ready).write_all(b"1");
                }
                return Ok(true);
            }
            Ask::Apply => self.guard.apply(&self.state).map(|()| Vec::new()),
            Ask::Block => self.guard.close().map(|()| Vec::new()),
            Ask::Grant { name, ttl, addresses } => self.guard.grant(&name, ttl, &addresses),
            Ask::Vault(_) if self.vault.is_none() => {
                Err(anyhow!("this container was granted nothing of the vault"))
            }
            Ask::Vault(errand) => match self.errands.take(Order { number, errand }) {
                Some((_, refused)) => refused.map(|()| Vec::new()).map_err(|why| anyhow!(why)),
                None => return Ok(true),
            },
        };
        self.tell(worker, &Told::Answer { number, done: done.map_err(|error| format!("{error:#}")) })?;
        Ok(true)
    }

    /// Starts helpers for what the worker has asked of the vault, and tells it of those that have ended.
    fn run_errands(&mut self, worker: &Worker) -> anyhow::Result<()> {
        let Some(Folders { config, vault, session, .. }) = &self.vault else { return Ok(()) };
        let means = Means {
            program: &self.program,
            owner: self.owner,
            fds: [config.as_fd(), vault.as_fd(), session.as_fd(), self.state.as_fd(), worker.reports.as_fd()],
        };
        let mut ended = self.errands.reap();
        ended.extend(self.errands.start(&means));
        for (number, done) in ended {
            self.tell(worker, &Told::Answer { number, done: done.map(|()| Vec::new()) })?;
        }
        Ok(())
    }

    /// Says something to the worker, without ever waiting for it: one that does not read would stop the parent's watch.
    fn tell(&self, worker: &Worker, told: &Told) -> anyhow::Result<()> {
        match worker.link.send(&serde_json::to_vec(told)?) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(worker.child.kill()?),
            // One that died meanwhile is seen by its pidfd.
            _ => Ok(()),
        }
    }

    /// Sees the worker off. One that died with the container, before it wrote the log's last line, has one successor.
    fn farewell(&mut self, worker: Worker) -> anyhow::Result<()> {
        let exit = see_off(worker)?;
        if exit != Exit::Code(0) {
            self.restarts += 1;
            see_off(self.start(&describe(exit))?)?;
        }
        let inside = self.inherited.folder(Fd::Birth, layout::INSIDE).ok();
        let given = remains::clear_given(&self.run, inside.as_ref(), &self.config.id);
        let cleared = remains::clear(&self.run, &self.state, &self.config.id);
        let pruned = remains::prune(&self.run, &self.state);
        Ok(given.and(cleared).and(pruned)?)
    }
}

fn see_off(worker: Worker) -> anyhow::Result<Exit> {
    let Worker { child, link, .. } = worker;
    // Nothing more is loaded: a worker that waits for an answer has it by this.
    drop(link);
    if !child.pidfd().wait(FAREWELL) {
        child.kill()?;
        return Ok(Exit::Code(0));
    }
    Ok(child.reap()?.unwrap_or(Exit::Code(0)))
}

/// The files this program was loaded from beside its own: none in the static build, the loader and the libraries in a
/// distribution's. A worker needs them as well.
fn libraries() -> Vec<File> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let own = std::fs::read_link("/proc/self/exe").unwrap_or_default();
    let mut paths: Vec<&str> = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..])).collect();
    paths.sort_unstable();
    paths.dedup();
    paths.retain(|path| Path::new(path) != own);
    paths.iter().filter_map(|path| File::open(path).ok()).collect()
}

fn describe(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => format!("exit code {code}"),
        Exit::Signal(signal) => format!("signal {signal}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_hosts_that_ssh_wrote_anew_are_read_by_who_was_confined_before() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join(".ssh");
        std::fs::create_dir(&folder).unwrap();
        let file = folder.join("known_hosts");
        std::fs::write(&file, "old").unwrap();
        crate::confined_reader(
            known_hosts::places(home.path()),
            || {
                std::fs::write(folder.join("new"), "new").unwrap();
                std::fs::rename(folder.join("new"), &file).unwrap();
            },
            || {
                let read = known_hosts::files(Path::new("/no/vault"), home.path()).into_iter();
                let read: Vec<_> = read.filter_map(|file| std::fs::read_to_string(file).ok()).collect();
                assert!(read.contains(&"new".to_owned()));
                assert!(std::fs::read(home.path().join("other")).is_err());
            },
        );
    }
}
