//! Handing a container to its supervisor: the configuration sealed, the descriptors in order, and no return before it
//! answers everywhere (L1).

use crate::birth::Birth;
use crate::inside::Inside;
use crate::place::Place;
use crate::refusal::Refusal;
use std::fs::File;
use std::io::Read;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use terok_kernel::pidfd::{PidFd, readable};
use terok_kernel::program::{Child, Exit, Program};
use terok_kernel::statedir::{AppendLog, Dir};
use terok_kernel::{Error, memfd};
use terok_policy::plan::{Fd, READY_DEADLINE, SupervisorConfig};
use terok_policy::provision::Issued;
use terok_policy::settings::Upstream;
use terok_policy::{Policy, layout};

/// A log that has grown beyond this is put aside before it gets more.
const LOG_LIMIT: u64 = 256 << 10;

/// What the supervisor gets beside what comes from inside.
pub(crate) struct Handover<'a> {
    pub(crate) id: &'a str,
    pub(crate) policy: Policy,
    pub(crate) upstream: Option<Upstream>,
    /// What its credentials and keys need.
    pub(crate) grants: Option<&'a Grants>,
    /// Unix sockets of the host that are mounted into the container.
    pub(crate) sockets: Vec<String>,
    pub(crate) pidfd: &'a PidFd,
    pub(crate) control: &'a UnixListener,
    pub(crate) runtime: &'a Dir,
    pub(crate) state: &'a Dir,
    /// Listeners of the policy's published ports, in order.
    pub(crate) published: &'a [TcpListener],
}

/// What a supervisor needs that serves credentials or keys.
pub(crate) struct Grants {
    issued: Issued,
    home: String,
    inside: Dir,
    agent: Option<UnixListener>,
    vault: Dir,
    base: Dir,
}

impl Grants {
    /// Claims what lives with this container alone, and opens the rest.
    pub(crate) fn take(birth: Birth, policy: &Policy, place: &Place) -> Result<Self, Refusal> {
        let base = place.runtime()?;
        birth.claim(&base, policy)?;
        let agent = if policy.ssh.is_empty() { None } else { Some(birth.agent()?) };
        let home = place.home().display().to_string();
        Ok(Grants { issued: birth.issued, home, inside: birth.inside, agent, vault: place.vault()?, base })
    }

    fn descriptors(&self) -> impl Iterator<Item = (Fd, BorrowedFd<'_>)> {
        let agent = self.agent.as_ref().map(|agent| (Fd::Agent, agent.as_fd()));
        let folders = [
            (Fd::Birth, self.inside.as_fd()),
            (Fd::Vault, self.vault.as_fd()),
            (Fd::Session, self.base.as_fd()),
        ];
        folders.into_iter().chain(agent)
    }
}

/// Starts the supervisor and waits until it is ready; one that is not in time is killed.
pub(crate) fn start(handover: Handover<'_>, inside: &Inside) -> Result<(), Refusal> {
    let log = open_log(handover.state)?;
    let null =
        File::options().read(true).write(true).open("/dev/null").map_err(Refusal::io("open /dev/null"))?;
    let (ready, tell) = std::io::pipe().map_err(Refusal::io("make a pipe"))?;
    let named = descriptors(&handover, inside, tell.as_fd());

    let config = SupervisorConfig {
        id: handover.id.to_owned(),
        policy: handover.policy,
        facts: inside.facts.clone(),
        wiring: inside.wiring,
        upstream: handover.upstream,
        issued: handover.grants.map(|grants| grants.issued.clone()),
        home: handover.grants.map(|grants| grants.home.clone()).unwrap_or_default(),
        sockets: handover.sockets,
        missing: inside.missing.clone(),
        run_dir: handover.runtime.path().display().to_string(),
        state_dir: handover.state.path().display().to_string(),
        fds: named.iter().map(|(name, _)| *name).collect(),
    };
    let config = serde_json::to_vec(&config)
        .map_err(|error| Refusal::input("the supervisor's configuration", error))?;
    let config = memfd::sealed("terok-config", &config)?;

    let mut fds = vec![null.as_fd(), null.as_fd(), log.as_fd(), config.as_fd()];
    fds.extend(named.iter().map(|(_, fd)| *fd));
    let supervisor = supervisor()?.spawn(&[], &fds)?;
    // Its copy is the only one left: if it dies, the pipe says so.
    drop(tell);
    match wait(&supervisor, ready.into()) {
        Ok(()) => Ok(()),
        Err(reason) => {
            let _ = supervisor.kill();
            let log = handover.state.path().join(layout::LOG).display().to_string();
            Err(Refusal::Supervisor { reason, log })
        }
    }
}

/// The supervisor's program, as installed beside this one.
pub(crate) fn supervisor() -> Result<Program, Refusal> {
    Program::sibling(layout::SUPERVISOR).map_err(Refusal::missing)
}

/// The descriptors from 4 on, with what each is.
fn descriptors<'a>(
    handover: &Handover<'a>,
    inside: &'a Inside,
    tell: BorrowedFd<'a>,
) -> Vec<(Fd, BorrowedFd<'a>)> {
    let mut fds = vec![
        (Fd::Pidfd, handover.pidfd.as_fd()),
        (Fd::Ready, tell),
        (Fd::DnsUdp4, inside.dns_udp.v4.as_fd()),
    ];
    fds.extend(inside.dns_udp.v6.as_ref().map(|socket| (Fd::DnsUdp6, socket.as_fd())));
    fds.push((Fd::DnsTcp4, inside.dns_tcp.v4.as_fd()));
    fds.extend(inside.dns_tcp.v6.as_ref().map(|listener| (Fd::DnsTcp6, listener.as_fd())));
    fds.push((Fd::Proxy4, inside.proxy.v4.as_fd()));
    fds.extend(inside.proxy.v6.as_ref().map(|listener| (Fd::Proxy6, listener.as_fd())));
    fds.extend([
        (Fd::Nflog, inside.nflog.as_fd()),
        (Fd::Nftables, inside.nftables.as_fd()),
        (Fd::NftablesNews, inside.news.as_fd()),
        (Fd::Links, inside.links.as_fd()),
        (Fd::Control, handover.control.as_fd()),
        (Fd::RunDir, handover.runtime.as_fd()),
        (Fd::StateDir, handover.state.as_fd()),
    ]);
    if let Some(peers) = &inside.peers {
        fds.push((Fd::Peers4, peers.v4.as_fd()));
        fds.extend(peers.v6.as_ref().map(|socket| (Fd::Peers6, socket.as_fd())));
    }
    let numbered = |index: usize| index as u16;
    let published = handover.published.iter().enumerate();
    fds.extend(published.map(|(index, listener)| (Fd::Publish(numbered(index)), listener.as_fd())));
    let towards = inside.towards.iter().enumerate();
    fds.extend(towards.map(|(index, socket)| (Fd::Inside(numbered(index)), socket.as_fd())));
    fds.extend(handover.grants.into_iter().flat_map(Grants::descriptors));
    fds
}

fn wait(supervisor: &Child, ready: std::os::fd::OwnedFd) -> Result<(), String> {
    let answered = readable(&[ready.as_fd()], Some(READY_DEADLINE)).map_err(|error| error.to_string())?;
    if !answered.first().copied().unwrap_or(false) {
        return Err(format!("was not ready after {} s", READY_DEADLINE.as_secs()));
    }
    let mut word = [0];
    match File::from(ready).read(&mut word) {
        Ok(1) if &word == b"1" => Ok(()),
        Ok(0) => Err(match ended(supervisor) {
            Some(Exit::Code(code)) => format!("ended with code {code} before it was ready"),
            Some(Exit::Signal(signal)) => format!("was ended by signal {signal} before it was ready"),
            None => "gave up before it was ready".into(),
        }),
        _ => Err("spoke nonsense before it was ready".into()),
    }
}

/// The pipe closes a moment before the process can be waited for.
fn ended(supervisor: &Child) -> Option<Exit> {
    supervisor.pidfd().wait(std::time::Duration::from_millis(100));
    supervisor.reap().ok().flatten()
}

fn open_log(state: &Dir) -> Result<AppendLog, Error> {
    let mut log = state.append(layout::LOG)?;
    if log.size()? > LOG_LIMIT {
        log.rotate(state, layout::LOG)?;
    }
    Ok(log)
}
