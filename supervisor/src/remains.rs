//! What is left when a container has ended: its runtime folder goes, its state folder stays as history, and the oldest
//! histories of containers that were removed go (L4, L6).

use std::path::Path;
use terok_kernel::statedir::Dir;
use terok_policy::control::Container;
use terok_policy::layout;

/// Histories of removed containers that are kept for `terok audit`.
const HISTORIES: usize = 32;

/// Keeps who the container was with its history, and removes its runtime folder unless a newer one has taken its place.
/// Everything is tried; the first thing that failed is returned.
pub(crate) fn clear(run: &Dir, state: &Dir, id: &str) -> Result<(), terok_kernel::error::Error> {
    let kept = run.read(layout::CONTAINER, Container::LIMIT).and_then(|text| match text {
        Some(text) => state.write(layout::CONTAINER, &text),
        None => Ok(()),
    });
    if !run.is_still_at_its_path() {
        return kept;
    }
    let members = remove_members(run, id);
    kept.and(members).and(remove(run, id))
}

/// Removes what the container was given at its start: its birth folder, if `inside` is still the folder in it, and credentials that lived with this
/// container alone. To be called before [`clear`]; where a newer start has taken this one's place, what is there is that one's.
pub(crate) fn clear_given(
    run: &Dir,
    inside: Option<&Dir>,
    id: &str,
) -> Result<(), terok_kernel::error::Error> {
    if !run.is_still_at_its_path() {
        return Ok(());
    }
    let base = Dir::base(run.path().parent().unwrap_or(Path::new("/")))?;
    let birth = (|| {
        let Some(births) = base.private(layout::BIRTH)? else { return Ok(()) };
        match inside {
            Some(inside) if inside.is_at(&births.path().join(id).join(layout::INSIDE)) => {
                births.remove_tree(id)
            }
            _ => Ok(()),
        }
    })();
    let ephemeral = (|| {
        let Some(folder) = base.private(layout::EPHEMERAL)? else { return Ok(()) };
        let claimed = |name: &str| name.split_once('.').is_some_and(|(_, by)| by == id);
        for entry in folder.list()?.iter().filter(|entry| !entry.folder && claimed(&entry.name)) {
            folder.remove(&entry.name)?;
        }
        Ok(())
    })();
    birth.and(ephemeral)
}

/// The folders of other containers of the same network, which this supervisor served: the network is gone with them.
fn remove_members(run: &Dir, id: &str) -> Result<(), terok_kernel::error::Error> {
    let runs = Dir::base(run.path().parent().unwrap_or(Path::new("/")))?;
    let mut removed = Ok(());
    for entry in runs.list()?.iter().filter(|entry| entry.folder && entry.name != id) {
        let Ok(Some(folder)) = runs.private(&entry.name) else { continue };
        if read_container(&folder).is_some_and(|container| container.served_by.as_deref() == Some(id)) {
            removed = removed.and(remove(&folder, &entry.name));
        }
    }
    removed
}

fn remove(run: &Dir, id: &str) -> Result<(), terok_kernel::error::Error> {
    for entry in run.list()? {
        run.remove(&entry.name)?;
    }
    let parent = run.path().parent().unwrap_or(Path::new("/"));
    Dir::base(parent)?.remove_empty(id)
}

/// Removes the oldest state folders of containers that exist no more, but for the newest [`HISTORIES`] ones. A
/// container exists while its bundle does, or while it has a runtime folder beside `run`.
pub(crate) fn prune(run: &Dir, state: &Dir) -> Result<(), terok_kernel::error::Error> {
    let (Some(runs), Some(states)) = (run.path().parent(), state.path().parent()) else { return Ok(()) };
    let states = Dir::base(states)?;
    let mut gone: Vec<_> = states
        .list()?
        .into_iter()
        .filter(|entry| entry.folder && layout::is_container_id(&entry.name))
        .filter(|entry| !runs.join(&entry.name).exists() && !bundle_exists(&states, &entry.name))
        .collect();
    gone.sort_by_key(|entry| std::cmp::Reverse(entry.modified));
    for entry in gone.iter().skip(HISTORIES) {
        states.remove_tree(&entry.name)?;
    }
    Ok(())
}

fn bundle_exists(states: &Dir, id: &str) -> bool {
    let Ok(Some(folder)) = states.private(id) else { return false };
    read_container(&folder).is_some_and(|container| Path::new(&container.bundle).exists())
}

/// What `create` wrote down of the container of this folder.
pub(crate) fn read_container(folder: &Dir) -> Option<Container> {
    serde_json::from_slice(&folder.read(layout::CONTAINER, Container::LIMIT).ok()??).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders(root: &Path, id: &str) -> (Dir, Dir) {
        let make =
            |kind: &str| Dir::base(root).unwrap().make_private(kind).unwrap().make_private(id).unwrap();
        (make("run"), make("state"))
    }

    fn container(id: &str, bundle: &Path) -> Vec<u8> {
        let container = Container {
            id: id.into(),
            name: "web".into(),
            pid: 1,
            started: 1,
            bundle: bundle.display().to_string(),
            labels: Default::default(),
            ..Container::default()
        };
        serde_json::to_vec(&container).unwrap()
    }

    #[test]
    fn the_runtime_folder_goes_and_the_history_tells_who_it_was() {
        let root = tempfile::tempdir().unwrap();
        let (run, state) = folders(root.path(), "c1");
        run.write(layout::CONTAINER, &container("c1", root.path())).unwrap();
        std::os::unix::net::UnixListener::bind(root.path().join("run/c1").join(layout::CONTROL)).unwrap();
        clear(&run, &state, "c1").unwrap();
        assert!(!root.path().join("run/c1").exists());
        assert_eq!(state.read(layout::CONTAINER, 1000).unwrap().unwrap(), container("c1", root.path()));
    }

    #[test]
    fn what_a_container_was_given_goes_with_it_and_nobody_elses() {
        let root = tempfile::tempdir().unwrap();
        let (run, _) = folders(root.path(), "c1");
        let base = Dir::base(root.path()).unwrap().private("run").unwrap().unwrap();
        let give = |id: &str| {
            let birth = base.make_private(layout::BIRTH).unwrap().make_private(id).unwrap();
            birth.write(layout::GRANTED, b"{}").unwrap();
            let inside = birth.make_private(layout::INSIDE).unwrap();
            inside.write("env", b"").unwrap();
            inside
        };
        let reference = "0123456789abcdef0123456789abcdef";
        let ephemeral = base.make_private(layout::EPHEMERAL).unwrap();
        for name in [format!("{reference}.c1"), format!("{reference}.c12"), reference.to_owned()] {
            ephemeral.write(&name, b"{}").unwrap();
        }
        let (inside, _other) = (give("c1"), give("c12"));
        // A newer start of the same container.
        let births = root.path().join("run").join(layout::BIRTH);
        std::fs::rename(births.join("c1"), root.path().join("older")).unwrap();
        let newer = give("c1");
        clear_given(&run, Some(&inside), "c1").unwrap();
        assert!(births.join("c1/inside/env").exists());
        clear_given(&run, Some(&newer), "c1").unwrap();
        assert!(!births.join("c1").exists() && births.join("c12/inside/env").exists());
        let mut left: Vec<_> = ephemeral.list().unwrap().into_iter().map(|entry| entry.name).collect();
        left.sort();
        assert_eq!(left, [reference.to_owned(), format!("{reference}.c12")]);
    }

    #[test]
    fn the_folders_of_members_of_its_network_go_with_it() {
        let root = tempfile::tempdir().unwrap();
        let (run, state) = folders(root.path(), "infra");
        run.write(layout::CONTAINER, &container("infra", root.path())).unwrap();
        for (member, guard) in [("m1", "infra"), ("m2", "infra"), ("other", "infra2")] {
            let mut container: Container = serde_json::from_slice(&container(member, root.path())).unwrap();
            container.served_by = Some(guard.into());
            folders(root.path(), member)
                .0
                .write(layout::CONTAINER, &serde_json::to_vec(&container).unwrap())
                .unwrap();
        }
        clear(&run, &state, "infra").unwrap();
        let left: Vec<_> = std::fs::read_dir(root.path().join("run")).unwrap().flatten().collect();
        assert_eq!(left.iter().map(|entry| entry.file_name()).collect::<Vec<_>>(), ["other"]);
    }

    #[test]
    fn a_newer_folder_at_the_same_path_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let (run, state) = folders(root.path(), "c1");
        std::fs::rename(root.path().join("run/c1"), root.path().join("run/old")).unwrap();
        let (newer, _) = folders(root.path(), "c1");
        newer.write(layout::CONTAINER, b"{}").unwrap();
        clear(&run, &state, "c1").unwrap();
        assert!(root.path().join("run/c1").join(layout::CONTAINER).exists());
    }

    #[test]
    fn only_old_histories_of_removed_containers_are_pruned() {
        let root = tempfile::tempdir().unwrap();
        let (run, state) = folders(root.path(), "self");
        for n in 0..HISTORIES + 8 {
            folders(root.path(), &format!("gone{n}"));
            std::fs::remove_dir(root.path().join(format!("run/gone{n}"))).unwrap();
        }
        let (_, stopped) = folders(root.path(), "stopped");
        std::fs::remove_dir(root.path().join("run/stopped")).unwrap();
        stopped.write(layout::CONTAINER, &container("stopped", root.path())).unwrap();
        prune(&run, &state).unwrap();
        let left: Vec<_> = std::fs::read_dir(root.path().join("state")).unwrap().collect();
        assert_eq!(left.len(), HISTORIES + 2);
        assert!(root.path().join("state/stopped").exists() && root.path().join("state/self").exists());
    }
}
