//! `create` (createRuntime): the container's namespaces exist, nothing of it runs. When this returns success its table
//! is in force and every service answers (L1); any error stops the start (L2).

use crate::argv::Request;
use crate::handover::{self, Handover};
use crate::place::Place;
use crate::refusal::{self, Refusal};
use crate::state::{self, Annotations, State, ours};
use crate::{catalog, guards, image, inside};
use std::os::unix::net::UnixListener;
use std::time::{SystemTime, UNIX_EPOCH};
use terok_kernel::netns::NetNs;
use terok_kernel::pidfd::PidFd;
use terok_kernel::statedir::Dir;
use terok_policy::control::Container;
use terok_policy::live::Live;
use terok_policy::{amend, annotation, layout};

const LIVE_LIMIT: u64 = 16 << 20;

/// Protects the container that stdin describes, or refuses it.
pub(crate) fn run(request: &Request) -> Result<(), Refusal> {
    let state =
        State::read(std::io::stdin().lock()).map_err(|error| Refusal::input("the OCI state", error))?;
    let ours = ours(&state.annotations);
    if ours.is_empty() {
        return Ok(());
    }
    let place = Place::find(request)?;
    let folder = place.state()?.make_private(&state.id)?;
    protect(&state, &ours, &place, &folder).inspect_err(|refusal| refusal::record(&folder, refusal))
}

fn protect(state: &State, ours: &Annotations, place: &Place, folder: &Dir) -> Result<(), Refusal> {
    // What was asked for, and by whom.
    let mut policy = annotation::parse(ours, &catalog::read(place.home())?)?;
    let container = image::by_bundle(&state.bundle, &state.id);
    image::check(ours, &policy, &container)?;

    // What the runtime is about to start: is it what precreate made of it, in a network of its own?
    check_config(state, ours)?;
    let pid = state.pid.ok_or_else(|| Refusal::input("the OCI state", "has no pid"))?;
    let pidfd = PidFd::open(pid)?;
    let network = NetNs::of(pid, &pidfd)?;
    if network == NetNs::own()? {
        return Err(guards::host());
    }

    // Inside: loopback, sockets, table; with what the operator had set before.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let live = operator_state(folder)?;
    let inside = network.run(|| inside::prepare(policy.clone(), &live, now))??;

    // Outside: the runtime folder, then the supervisor, then nothing until it is ready.
    let name = container.ok().and_then(|found| found.record.names).and_then(|names| names.into_iter().next());
    let name = name.unwrap_or_default();
    if policy.labels.name.is_empty() {
        policy.labels.name = name.clone();
    }
    let record = Container {
        id: state.id.clone(),
        name,
        pid,
        started: now,
        bundle: state.bundle.display().to_string(),
        labels: policy.labels.clone(),
        network: Some(inside.facts.network),
        netns: None,
        policy: String::new(),
        served_by: None,
    };
    let base = place.runtime()?;
    let (runtime, control) = runtime_folder(&base, &record)?;
    let handover = Handover {
        id: &state.id,
        policy,
        pidfd: &pidfd,
        control: &control,
        runtime: &runtime,
        state: folder,
    };
    handover::start(handover, &inside).inspect_err(|_| {
        // The refusal is what matters; the next start replaces the folder anyway.
        let _ = runtime.remove_self();
    })
}

/// The bundle's `config.json`: amended, with the same annotations, and a network of the container's own.
fn check_config(state: &State, ours: &Annotations) -> Result<(), Refusal> {
    let path = state.bundle.join("config.json");
    let what = || path.display().to_string();
    let file = std::fs::File::open(&path).map_err(|error| Refusal::input(what(), error))?;
    let json = state::read_config(file).map_err(|error| Refusal::input(what(), error))?;
    let (config, annotations) = state::parse_config(&json).map_err(|error| Refusal::input(what(), error))?;
    if state::ours(&annotations) != *ours {
        return Err(Refusal::input(what(), "has other terok. annotations than the runtime reports"));
    }
    amend::is_amended(&config).map_err(Refusal::NotAmended)?;
    guards::check(&config)
}

/// What an operator set in an earlier run. It may be a denial, so what cannot be read is no reason to go on without.
fn operator_state(folder: &Dir) -> Result<Live, Refusal> {
    match folder.read(layout::LIVE, LIVE_LIMIT)? {
        None => Ok(Live::default()),
        Some(json) => serde_json::from_slice(&json).map_err(|error| {
            let path = folder.path().join(layout::LIVE).display().to_string();
            Refusal::input(path, format!("is damaged ({error}); remove it to start without live rules"))
        }),
    }
}

/// A fresh runtime folder with its control socket, put in place as a whole. The supervisor of an earlier run may still
/// be ending: it finds that the folder at its path is not its own any more, and a folder that is never empty there.
fn runtime_folder(base: &Dir, record: &Container) -> Result<(Dir, UnixListener), Refusal> {
    let fresh = format!(".new-{}", record.id);
    base.remove_tree(&fresh)?;
    let folder = base.make_private(&fresh)?;
    let json = serde_json::to_vec(record).map_err(|error| Refusal::input(layout::CONTAINER, error))?;
    folder.write(layout::CONTAINER, &json)?;
    let control = folder.listen(layout::CONTROL)?;
    base.remove_tree(&record.id)?;
    base.rename(&fresh, &record.id)?;
    Ok((folder.moved_to(base.path().join(&record.id)), control))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Container {
        Container {
            id: "c1".into(),
            name: String::new(),
            pid: 1,
            started: 0,
            bundle: "/b".into(),
            labels: Default::default(),
            network: None,
            netns: None,
            policy: String::new(),
            served_by: None,
        }
    }

    #[test]
    fn a_stale_runtime_folder_is_replaced_and_its_old_owner_cannot_remove_the_new_one() {
        let temporary = tempfile::tempdir().unwrap();
        let base = Dir::base(temporary.path()).unwrap();
        let (old, _old_control) = runtime_folder(&base, &record()).unwrap();
        let (new, _control) = runtime_folder(&base, &record()).unwrap();
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
