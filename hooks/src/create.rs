//! `create` (createRuntime): the container's namespaces exist, nothing of it runs. When this returns success its table
//! is in force and every service answers (L1); any error stops the start (L2).

use crate::argv::Request;
use crate::birth::{self, Birth};
use crate::handover::{self, Grants, Handover};
use crate::inside::{self, Before};
use crate::origin::Origin;
use crate::place::Place;
use crate::refusal::{self, Refusal};
use crate::standing::{Asking, Standing};
use crate::state::{self, Annotations, State, ours};
use crate::{asked, guards, publish, records};
use serde_json::Value;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use terok_kernel::netns::NetNs;
use terok_kernel::pidfd::PidFd;
use terok_kernel::statedir::Dir;
use terok_policy::control::Container;
use terok_policy::live::Live;
use terok_policy::{Policy, amend, layout, provision};

const RESOLV_CONF_LIMIT: u64 = 64 << 10;

/// Protects the container that stdin describes, or refuses it.
pub(crate) fn run(request: &Request) -> Result<(), Refusal> {
    let state =
        State::read(std::io::stdin().lock()).map_err(|error| Refusal::input("the OCI state", error))?;
    let ours = ours(&state.annotations);
    if ours.is_empty() && !request.all {
        return Ok(());
    }
    let place = Place::find(request)?;
    let folder = place.state()?.make_private(&state.id)?;
    protect(request, &state, &ours, &place, &folder).inspect_err(|refusal| refusal::record(&folder, refusal))
}

fn protect(
    request: &Request,
    state: &State,
    ours: &Annotations,
    place: &Place,
    folder: &Dir,
) -> Result<(), Refusal> {
    // What was asked for, and by whom.
    place.refuse_in_panic()?;
    let config = read_config(state, ours)?;
    let origin = Origin::of_bundle(&state.bundle, &state.id, &config)?;
    let asked = asked::read(request, ours, place, &origin)?;
    let mut policy = asked.policy;

    // What the runtime is about to start: is it what precreate made of it, in a network of its own?
    amend::is_amended(&config).map_err(Refusal::NotAmended)?;
    let base = place.runtime()?;
    records::refuse_namesake(&base, &state.id, &state.bundle)?;
    let given = birth::mounted(&config, &base);
    let alone = guards::wanted(&config) == guards::Wanted::Own;
    let brings_card = origin.brings_card(&config);
    let sockets = guards::check(&config, &place.keep(given.as_deref()), !alone || brings_card)?;
    let pid = state.pid.ok_or_else(|| Refusal::input("the OCI state", "has no pid"))?;
    let pidfd = PidFd::open(pid)?;
    let network = NetNs::of(pid, &pidfd)?;
    if network == NetNs::own()? {
        return Err(guards::host(&config));
    }

    // Who else is in that network?
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let name = origin.name();
    let digest = policy.digest();
    let asking = Asking { state, ours, config: &config, pid, network: &network, digest: &digest };
    let standing = asking.standing(&base)?;
    let guard_id = match &standing {
        Standing::Alone => &state.id,
        Standing::First(infra, _) => &infra.id,
        Standing::Member(guard) => &guard.id,
    };
    let birth = born(&config, &policy, &base, guard_id)?;
    if birth.is_none() && given.is_some() {
        return Err(Refusal::NotProvided);
    }
    if policy.labels.name.is_empty() {
        policy.labels.name = name.clone();
    }
    let netns = network.id();
    let mut record = Container {
        id: state.id.clone(),
        name,
        pid,
        started: now,
        bundle: state.bundle.display().to_string(),
        labels: policy.labels.clone(),
        network: None,
        netns: Some((netns.dev, netns.ino)),
        policy: digest.clone(),
        served_by: None,
    };
    if let Standing::Member(guard) = &standing {
        record.served_by = Some(guard.id.clone());
        record.network = guard.network;
        return runtime_folder(&base, &record).and_then(|folder| still_wanted(place, &folder));
    }

    // Inside: loopback, sockets, tables; with what the operator had set before. A pod's guard has folders of its own.
    let (guarded, folder, pidfd) = match &standing {
        Standing::First(infra, _) => {
            record.served_by = Some(infra.id.clone());
            policy.labels.name = infra.name.clone();
            let guarded = Container {
                id: infra.id.clone(),
                name: infra.name.clone(),
                pid: infra.pid,
                bundle: infra.bundle.display().to_string(),
                labels: policy.labels.clone(),
                served_by: None,
                ..record.clone()
            };
            (guarded, &place.state()?.make_private(&infra.id)?, &infra.pidfd)
        }
        _ => (record.clone(), folder, &pidfd),
    };
    let published = publish::listen(&policy.publish)?;
    let live = operator_state(folder)?;
    let before = Before {
        brings_card,
        own: if alone && !brings_card { Vec::new() } else { inside::own_addresses()? },
        resolvers: inside::nameservers(&resolv_conf(&config)),
        name_server: origin.name_server(),
        beyond_a_card: guards::over_a_card(&config).err(),
        live: &live,
        now,
        may_have_a_table: !alone,
    };
    let inside = network.run(|| inside::prepare(policy.clone(), before))??;

    // Outside: the runtime folder, then the supervisor, then nothing until it is ready.
    record.network = Some(inside.facts.network);
    let guarded = Container { network: record.network, ..guarded };
    let (runtime, control) = guarded_folder(&base, &guarded)?;
    still_wanted(place, &runtime)?;
    let grants = birth.map(|birth| Grants::take(birth, &policy, place)).transpose()?;
    let handover = Handover {
        id: &guarded.id,
        policy,
        grants: grants.as_ref(),
        upstream: asked.upstream,
        sockets,
        pidfd,
        control: &control,
        runtime: &runtime,
        state: folder,
        published: &published,
    };
    let started = handover::start(handover, &inside).and_then(|()| match &record.served_by {
        Some(_) => runtime_folder(&base, &record).map(drop),
        None => Ok(()),
    });
    started.inspect_err(|_| {
        // The refusal is what matters; the next start replaces the folder anyway.
        let _ = runtime.remove_self();
    })
}

/// What precreate gave the container, where its policy grants anything. Without it, or with anything of it changed since, the
/// container does not start.
fn born(config: &Value, policy: &Policy, base: &Dir, id: &str) -> Result<Option<Birth>, Refusal> {
    if !provision::is_wanted(policy) {
        return Ok(None);
    }
    match Birth::open(base, id, policy)? {
        Some(birth) if birth.is_in(config, policy) => Ok(Some(birth)),
        _ => Err(Refusal::NotProvided),
    }
}

/// The bundle's `config.json`, with the same annotations.
fn read_config(state: &State, ours: &Annotations) -> Result<Value, Refusal> {
    let (config, annotations) = state::of_bundle(&state.bundle)?;
    if state::ours(&annotations) != *ours {
        let what = state.bundle.join("config.json").display().to_string();
        return Err(Refusal::input(what, "has other terok. annotations than the runtime reports"));
    }
    Ok(config)
}

/// What the engine mounts as `/etc/resolv.conf`. Without one nobody is asked for other containers' names.
fn resolv_conf(config: &Value) -> String {
    let mut mounts = config.get("mounts").and_then(Value::as_array).into_iter().flatten();
    let text = |mount: &Value, key| mount.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let source = mounts.rfind(|mount| text(mount, "destination") == "/etc/resolv.conf");
    let read =
        source.and_then(|mount| state::read_file(Path::new(&text(mount, "source")), RESOLV_CONF_LIMIT).ok());
    String::from_utf8(read.unwrap_or_default()).unwrap_or_default()
}

/// What an operator set in an earlier run. It may be a denial, so what cannot be read is no reason to go on without.
fn operator_state(folder: &Dir) -> Result<Live, Refusal> {
    match folder.read(layout::LIVE, Live::LIMIT)? {
        None => Ok(Live::default()),
        Some(json) => serde_json::from_slice(&json).map_err(|error| {
            let path = folder.path().join(layout::LIVE).display().to_string();
            Refusal::input(path, format!("is damaged ({error}); remove it to start without live rules"))
        }),
    }
}

/// Whether nobody has sounded the alarm since this start began. `terok panic` writes its marker, then blocks every container
/// that has a runtime folder: one whose folder came later finds the marker here.
fn still_wanted(place: &Place, folder: &Dir) -> Result<(), Refusal> {
    place.refuse_in_panic().inspect_err(|_| {
        // The refusal is what matters; the next start replaces the folder anyway.
        let _ = folder.remove_self();
    })
}

/// A fresh runtime folder, put in place as a whole. The supervisor of an earlier run may still be ending: it finds that the
/// folder at its path is not its own any more, and a folder that is never empty there.
fn runtime_folder(base: &Dir, record: &Container) -> Result<Dir, Refusal> {
    fresh_folder(base, record, |_| Ok(())).map(|(folder, ())| folder)
}

/// One with the control socket of a guard.
fn guarded_folder(base: &Dir, record: &Container) -> Result<(Dir, UnixListener), Refusal> {
    fresh_folder(base, record, |folder| Ok(folder.listen(layout::CONTROL)?))
}

fn fresh_folder<T>(
    base: &Dir,
    record: &Container,
    fill: impl FnOnce(&Dir) -> Result<T, Refusal>,
) -> Result<(Dir, T), Refusal> {
    let fresh = format!(".new-{}", record.id);
    base.remove_tree(&fresh)?;
    let folder = base.make_private(&fresh)?;
    let json = serde_json::to_vec(record).map_err(|error| Refusal::input(layout::CONTAINER, error))?;
    folder.write(layout::CONTAINER, &json)?;
    let filled = fill(&folder)?;
    base.remove_tree(&record.id)?;
    base.rename(&fresh, &record.id)?;
    Ok((folder.moved_to(base.path().join(&record.id)), filled))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Container {
        Container { id: "c1".into(), pid: 1, bundle: "/b".into(), ..Container::default() }
    }

    #[test]
    fn a_stale_runtime_folder_is_replaced_and_its_old_owner_cannot_remove_the_new_one() {
        let temporary = tempfile::tempdir().unwrap();
        let base = Dir::base(temporary.path()).unwrap();
        let (old, _old_control) = guarded_folder(&base, &record()).unwrap();
        let (new, _control) = guarded_folder(&base, &record()).unwrap();
        assert!(!old.is_still_at_its_path());
        old.remove_self().unwrap();
        assert!(new.is_still_at_its_path());
        std::os::unix::net::UnixStream::connect(new.path().join(layout::CONTROL)).unwrap();
        new.remove_self().unwrap();
        assert!(!temporary.path().join("c1").exists());
    }

    #[test]
    fn damaged_operator_state_is_refused_by_its_path() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = Dir::base(temporary.path()).unwrap().make_private("c1").unwrap();
        assert_eq!(operator_state(&folder).unwrap(), Live::default());
        folder.write(layout::LIVE, b"{").unwrap();
        assert!(operator_state(&folder).unwrap_err().to_string().contains("c1/live.json"));
    }
}
