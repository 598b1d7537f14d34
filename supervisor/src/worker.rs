//! The worker: everything that meets bytes from the container. It confines itself before the first of them (L7), serves
//! until the container has ended, and may be killed at any moment: its parent starts another (L5).

use crate::audit::{Audit, Facts as _, LogFile, event, open_file};
use crate::broker::{Broker, Ca};
use crate::context::{Context, kept_live, unix_seconds};
use crate::control::Desk;
use crate::dns::Dns;
use crate::inherit::{BirthError, Inherited};
use crate::names::NameTable;
use crate::operator::Operator;
use crate::parent_link::ParentLink;
use crate::proxy::{Insides, Proxy, publish};
use crate::readiness::readable;
use crate::resolve::{Files, Peers, Resolver};
use crate::ssh::Signer;
use crate::vault::Vault;
use crate::{control, nflog, remains, trust};
use anyhow::{Context as _, bail};
use std::fs::File;
use std::net::{TcpListener as StdTcpListener, UdpSocket as StdUdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::rc::Rc;
use std::time::{Duration, Instant};
use terok_kernel::confine::{Confinement, confine};
use terok_kernel::landlock::Allowed;
use terok_kernel::program::set_name;
use terok_kernel::seccomp::Filter;
use terok_kernel::statedir::Dir;
use terok_policy::Verdict;
use terok_policy::audit::Kind;
use terok_policy::judge::Reason;
use terok_policy::layout;
use terok_policy::plan::{Fd, SupervisorConfig};
use terok_policy::rule::Target;
use tokio::net::{TcpListener, UdpSocket, UnixListener};
use tokio::task::JoinSet;

/// How often, and how long at most, the worker looks for what is still under way when its container has ended.
const SETTLING: Duration = Duration::from_millis(5);
const SETTLED: Duration = Duration::from_millis(200);

/// Which worker this is, from its arguments.
pub(crate) struct Turn {
    /// How many came before.
    pub(crate) restarts: u64,
    /// Real uid of the person whose container this is.
    pub(crate) owner: u32,
    /// How the last one ended.
    pub(crate) why: String,
}

/// Serves until the container has ended.
pub(crate) fn run(turn: &Turn) -> anyhow::Result<()> {
    set_name("terok-worker");
    let (inherited, config) = Inherited::of_worker()?;
    let run_dir = inherited.folder(Fd::RunDir, &config.run_dir)?;
    let state_dir = inherited.folder(Fd::StateDir, &config.state_dir)?;
    let authority = authority(&inherited, &config, &run_dir)?;
    let around = File::open(run_dir.path().parent().unwrap_or(run_dir.path()))?;
    let files = files(turn.owner, &run_dir, &state_dir, &around);
    let layers = confine(&Confinement { keep: &[], files, calls: Filter::Worker });
    drop(around);
    crate::report(&layers)?;
    let confinement = layers.iter().map(ToString::to_string).chain(config.missing.iter().cloned()).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new()
        .block_on(&runtime, serve(turn, inherited, config, run_dir, state_dir, confinement, authority))
}

/// What is left to it of all files: its own container's folders. What an operator took back lies elsewhere ([`terok_vault::Revocation`]).
fn files<'a>(owner: u32, run: &'a Dir, state: &'a Dir, around: &'a File) -> Allowed<'a> {
    Allowed {
        read: crate::resolver_files(owner),
        write: vec![run.as_fd(), state.as_fd()],
        remove: vec![around.as_fd()],
        ..Allowed::default()
    }
}

#[allow(clippy::too_many_arguments, reason = "what was opened before the limits")]
async fn serve(
    turn: &Turn,
    mut inherited: Inherited,
    config: SupervisorConfig,
    run_dir: Dir,
    state_dir: Dir,
    confinement: Vec<String>,
    authority: Option<Authority>,
) -> anyhow::Result<()> {
    let parent = std::os::unix::process::parent_id();
    let container = readable(inherited.take_fd(Fd::Pidfd)?)?;
    let audit = Audit::open(LogFile::open(&state_dir)?).context(layout::AUDIT)?;
    let names = NameTable::open(open_file(&state_dir, layout::NAMES)?).context(layout::NAMES)?;
    let live = kept_live(&state_dir)?;
    let policy_names = config.policy.allow.iter().map(|sourced| &sourced.rule).chain(&live.allow);
    names.allocate_all(policy_names.filter_map(|rule| match &rule.target {
        Target::Name(name) => Some(name),
        _ => None,
    }))?;
    let lines = inherited.take_lines()?;
    let link = Rc::new(ParentLink::new(lines.parent)?);
    let vault = Vault::new(link.clone(), lines.vault)?;
    let context = Context::new(config, audit, names, live, run_dir, state_dir, link, vault);
    context.hold.number_from(unix_seconds());
    announce(turn, &context, &confinement)?;
    let told = context.clone();
    tokio::task::spawn_local(async move { told.parent.listen(|news| told.hear(news)).await });
    let reported = context.clone();
    tokio::task::spawn_local(async move { reported.vault.listen().await });

    let operator = Operator::new(context.clone());
    if turn.restarts > 0 {
        // The one before may have died between the disk and the kernel.
        if let Err(error) = operator.reconcile().await {
            context.audit.note(event(Kind::Lifecycle, "sets", "").with("error", error.to_string()));
        }
    }
    let desk = Rc::new(Desk {
        context: context.clone(),
        operator: operator.clone(),
        restarts: turn.restarts,
        confinement,
        owner: turn.owner,
    });
    let broker = match authority {
        Some(Authority { ca, bundle }) => Some(Broker::new(context.clone(), ca, &bundle)?),
        None => None,
    };
    let mut tasks = services(&mut inherited, &context, desk, broker)?;
    let timed = operator.clone();
    tasks.spawn_local(async move { timed.end_downs().await });
    let flushed = context.clone();
    tasks.spawn_local(async move { flushed.audit.flush_sums().await });

    context.audit.record(event(Kind::Lifecycle, "ready", ""))?;
    // A parent that is gone cannot be told; what is served is served all the same.
    let _ = context.parent.ready().await;
    tokio::select! {
        _ = container.readable() => {}
        _ = tasks.join_next() => bail!("a service ended"),
    }
    settle(&context).await;
    end(&context, parent)
}

/// What vouches for the broker inside, and for upstreams outside.
struct Authority {
    ca: Ca,
    /// The host's CA certificates, PEM.
    bundle: Vec<u8>,
}

/// Opened before the worker's own limits: no byte of the container has been read, and later the certificates of the host need not be readable.
fn authority(
    inherited: &Inherited,
    config: &SupervisorConfig,
    run_dir: &Dir,
) -> anyhow::Result<Option<Authority>> {
    if config.policy.vault.is_empty() {
        return Ok(None);
    }
    let inside = Dir::from_fd(inherited.share(Fd::Birth)?, layout::INSIDE);
    let hosts: Vec<_> =
        config.policy.vault.iter().flat_map(|grant| grant.provider.hosts().to_vec()).collect();
    let bundle = match trust::bundle() {
        Ok((_, pem)) => pem,
        // Providers on this very host need none.
        Err(error) => {
            eprintln!("{}: {error}", layout::SUPERVISOR);
            Vec::new()
        }
    };
    let ca = Ca::open(run_dir, &inside, &config.id, &hosts, &bundle)
        .context("the container's certificate authority")?;
    Ok(Some(Authority { ca, bundle }))
}

/// What every connection gets in the end.
const ENDED: Verdict = Verdict::Refuse { reason: Reason::Blocked, rule: None };

/// Lets what the container did last get its lines: packets refused a moment ago, connections that end with it.
async fn settle(context: &Context) {
    let deadline = Instant::now() + SETTLED;
    loop {
        tokio::time::sleep(SETTLING).await;
        match context.flows.open() {
            0 => return,
            _ if Instant::now() < deadline => {}
            // Ends of the container's that something else keeps open.
            _ if context.flows.recheck(|_| ENDED) == 0 => return,
            _ => {}
        }
    }
}

/// Every socket gets its task. What is not there must not be there: no IPv6, no IPv6 listeners.
fn services(
    inherited: &mut Inherited,
    context: &Rc<Context>,
    desk: Rc<Desk>,
    broker: Option<Rc<Broker>>,
) -> anyhow::Result<JoinSet<()>> {
    let mut tasks = JoinSet::new();
    let ipv6 = context.config.facts.ipv6;
    let insides = insides(inherited, context)?;
    let mut both = |v4: Fd, v6: Fd| -> Result<Vec<OwnedFd>, BirthError> {
        let first = inherited.take_fd(v4)?;
        let second = if ipv6 { Some(inherited.take_fd(v6)?) } else { None };
        Ok([Some(first), second].into_iter().flatten().collect())
    };
    let (dns_udp, dns_tcp) = (both(Fd::DnsUdp4, Fd::DnsUdp6)?, both(Fd::DnsTcp4, Fd::DnsTcp6)?);
    let proxy = Proxy::new(context.clone(), insides.descriptors(), broker)?;
    for fd in both(Fd::Proxy4, Fd::Proxy6)? {
        tasks.spawn_local(proxy.clone().serve(tcp(fd)?));
    }
    let peers = peers(inherited, context)?;
    for socket in 0..peers.sockets() {
        tasks.spawn_local(peers.clone().listen(socket));
    }
    let dns = Dns::new(context.clone(), Resolver::new(Files::host_files()), peers)?;
    for fd in dns_udp {
        tasks.spawn_local(dns.clone().serve_udp(udp(fd)?));
    }
    for fd in dns_tcp {
        tasks.spawn_local(dns.clone().serve_tcp(tcp(fd)?));
    }
    for (index, published) in context.config.policy.publish.iter().enumerate() {
        let listener = tcp(inherited.take_fd(Fd::Publish(u16::try_from(index)?))?)?;
        tasks.spawn_local(publish(proxy.clone(), insides.clone(), listener, *published));
    }
    let control = StdUnixListener::from(inherited.take_fd(Fd::Control)?);
    control.set_nonblocking(true)?;
    tasks.spawn_local(control::serve(desk, UnixListener::from_std(control)?));
    if context.config.fds.contains(&Fd::Agent) {
        let agent = StdUnixListener::from(inherited.take_fd(Fd::Agent)?);
        agent.set_nonblocking(true)?;
        tasks.spawn_local(Signer::new(context.clone()).serve(UnixListener::from_std(agent)?));
    }
    let (context, nflog) = (context.clone(), inherited.take_fd(Fd::Nflog)?);
    tasks.spawn_local(async move {
        if let Err(error) = nflog::watch(context, nflog).await {
            eprintln!("{}: nflog: {error}", layout::SUPERVISOR);
        }
    });
    Ok(tasks)
}

/// The DNS servers of the container's own networks, where it has such.
fn peers(inherited: &mut Inherited, context: &Context) -> anyhow::Result<Rc<Peers>> {
    let sockets = [Fd::Peers4, Fd::Peers6].into_iter().filter_map(|fd| inherited.take_fd(fd).ok());
    let sockets = sockets.map(udp).collect::<std::io::Result<_>>()?;
    Ok(Rc::new(Peers::new(sockets, &context.config.facts.resolvers, 53)))
}

fn udp(fd: OwnedFd) -> std::io::Result<UdpSocket> {
    let socket = StdUdpSocket::from(fd);
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

/// The sockets inside that published ports are served with.
fn insides(inherited: &mut Inherited, context: &Context) -> anyhow::Result<Rc<Insides>> {
    let listed = context.config.fds.iter().filter(|fd| matches!(fd, Fd::Inside(_)));
    let sockets: Vec<OwnedFd> = listed.map(|fd| inherited.take_fd(*fd)).collect::<Result<_, _>>()?;
    Ok(Rc::new(Insides::new(sockets)?))
}

fn tcp(fd: OwnedFd) -> std::io::Result<TcpListener> {
    let listener = StdTcpListener::from(fd);
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

fn announce(turn: &Turn, context: &Context, confinement: &[String]) -> anyhow::Result<()> {
    let action = if turn.restarts == 0 { "start" } else { "worker-restart" };
    let mut line = event(Kind::Lifecycle, action, "")
        .with("state", format!("{:?}", context.shield()).to_lowercase())
        .with("confinement", confinement.to_vec());
    if !context.config.sockets.is_empty() {
        line = line.with("sockets", context.config.sockets.clone());
    }
    if turn.restarts > 0 {
        line = line.with("restarts", turn.restarts).with("why", turn.why.as_str());
        // A full disk must not keep the rest from being served: what it refuses is refused one by one.
        context.audit.note(line);
        return Ok(());
    }
    Ok(context.audit.record(line)?)
}

/// The log's last line; and where the parent died before, what it would have cleared up.
fn end(context: &Context, parent: u32) -> anyhow::Result<()> {
    context.audit.flush();
    let facts = event(Kind::Lifecycle, "end", "")
        .with("allowed", context.audit.allowed())
        .with("refused", context.audit.refused());
    let ended = context.audit.record(facts);
    if std::os::unix::process::parent_id() != parent {
        remains::clear(&context.run_dir, &context.state_dir, &context.config.id)?;
    }
    Ok(ended?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use terok_kernel::landlock::{Enforced, restrict};
    use terok_vault::Revocation;

    #[test]
    fn a_worker_may_rewrite_what_it_was_told_and_not_what_was_taken_back_from_its_container() {
        let root = tempfile::tempdir().unwrap();
        let make = |name: &str| Dir::base(root.path()).unwrap().make_private(name).unwrap();
        let (vault, run, state) = (make("vault"), make("run").make_private("c1").unwrap(), make("state"));
        let state = state.make_private("c1").unwrap();
        Revocation::note(&vault, "c1", &["github".to_owned()], false).unwrap();
        let note = Revocation::path(vault.path(), "c1");
        let worker = std::thread::spawn(move || {
            let around = File::open(run.path().parent().unwrap()).unwrap();
            if let Enforced::No(reason) = restrict(&files(0, &run, &state, &around)) {
                terok_need::missing("landlock", reason);
                return;
            }
            state.write(layout::LIVE, b"{}").unwrap();
            let vault = note.parent().unwrap().parent().unwrap();
            fs::write(&note, b"{}").unwrap_err();
            fs::remove_file(&note).unwrap_err();
            fs::rename(&note, state.path().join("note")).unwrap_err();
            fs::rename(state.path().join(layout::LIVE), &note).unwrap_err();
            fs::hard_link(state.path().join(layout::LIVE), vault.join("c1")).unwrap_err();
            fs::rename(vault, state.path().join("vault")).unwrap_err();
            fs::rename(note.parent().unwrap(), vault.join("aside")).unwrap_err();
            fs::remove_dir_all(vault).unwrap_err();
        });
        worker.join().unwrap();
        assert!(Revocation::read(&vault, "c1").unwrap().has("github"));
    }
}
