//! What `create` recorded of each of the owner's containers, in its runtime folder: by that it finds who shares a network
//! with whom. All of a network have one policy, for the kernel's table knows no containers.

use crate::companions::link;
use crate::refusal::Refusal;
use crate::state::{self, Annotations, ours};
use std::collections::BTreeSet;
use std::path::Path;
use terok_kernel::netns::NsId;
use terok_kernel::statedir::Dir;
use terok_policy::control::Container;
use terok_policy::layout;

/// Records of the owner's containers in namespace `netns` whose init is still there, and of the one among them whose
/// supervisor answers for all: the guard.
pub(crate) fn members(base: &Dir, netns: NsId) -> Result<(Vec<Container>, Option<Container>), Refusal> {
    let (mut members, mut guard) = (Vec::new(), None);
    for entry in base.list()?.into_iter().filter(|entry| entry.folder && layout::is_container_id(&entry.name))
    {
        // One that goes away at this moment is no member.
        let Ok(Some(folder)) = base.private(&entry.name) else { continue };
        let Ok(Some(record)) = read(&folder) else { continue };
        if record.netns != Some((netns.dev, netns.ino)) || !is_there(&record) {
            continue;
        }
        if record.served_by.is_none() && folder.is_served(layout::CONTROL)? {
            guard = Some(record.clone());
        }
        members.push(record);
    }
    Ok((members, guard))
}

/// Refuses a container with the id of another one that runs, of another engine or another namespace of containerd: by its id the
/// operator reaches a container, and `terok panic` too. `base` is the folder of runtime folders.
pub(crate) fn refuse_namesake(base: &Dir, id: &str, bundle: &Path) -> Result<(), Refusal> {
    let other = base.private(id)?.and_then(|folder| read(&folder).ok()?);
    match other.filter(|other| Path::new(&other.bundle) != bundle && is_there(other)) {
        Some(other) => Err(Refusal::Guard(format!(
            "a protected container with the id {id} runs already ({}), and by its id terok knows a container: give this one another",
            other.bundle
        ))),
        None => Ok(()),
    }
}

/// What `create` wrote in a runtime folder; `None` where it did not.
pub(crate) fn read(folder: &Dir) -> Result<Option<Container>, Refusal> {
    let Some(json) = folder.read(layout::CONTAINER, Container::LIMIT)? else { return Ok(None) };
    let what = || folder.path().join(layout::CONTAINER).display().to_string();
    serde_json::from_slice(&json).map(Some).map_err(|error| Refusal::input(what(), error))
}

/// Whether its init is still in its network namespace.
fn is_there(record: &Container) -> bool {
    record.netns.is_some_and(|(_, inode)| link(record.pid, "net") == Some(format!("net:[{inode}]")))
}

/// Refuses a container whose policy is not that of the network's guard, naming the annotations that differ.
pub(crate) fn same_policy(guard: &Container, digest: &str, asked: &Annotations) -> Result<(), Refusal> {
    if guard.policy == digest {
        return Ok(());
    }
    let name = if guard.name.is_empty() { &guard.id } else { &guard.name };
    let theirs = state::of_bundle(Path::new(&guard.bundle)).map(|(_, annotations)| ours(&annotations)).ok();
    let theirs = theirs.filter(|theirs| !theirs.is_empty());
    let keys = theirs.iter().flat_map(|theirs| {
        theirs.keys().chain(asked.keys()).filter(|key| theirs.get(*key) != asked.get(*key))
    });
    let labels =
        [terok_policy::annotation::PROJECT, terok_policy::annotation::TASK, terok_policy::annotation::NAME];
    let keys: BTreeSet<&str> = keys.map(String::as_str).filter(|key| !labels.contains(key)).collect();
    let keys = match keys.is_empty() {
        true => "terok annotations and profiles".to_owned(),
        false => keys.into_iter().collect::<Vec<_>>().join(", "),
    };
    Err(Refusal::Guard(format!(
        "the container shares its network with {name}, which has another policy; give both the same {keys}, or start this one with a network of its own"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn the_guard_of_a_network_is_the_living_one_that_answers_for_it() {
        let temporary = tempfile::tempdir().unwrap();
        let base = Dir::base(temporary.path()).unwrap();
        let here = Path::new("/proc/self/ns/net").metadata().unwrap();
        let netns = NsId { dev: here.dev(), ino: here.ino() };
        let put = |id: &str, netns: u64, served_by: Option<&str>, served: bool| {
            let record = Container {
                id: id.into(),
                pid: std::process::id() as i32,
                netns: Some((here.dev(), netns)),
                served_by: served_by.map(str::to_owned),
                ..Container::default()
            };
            let folder = base.make_private(id).unwrap();
            folder.write(layout::CONTAINER, &serde_json::to_vec(&record).unwrap()).unwrap();
            served.then(|| folder.listen(layout::CONTROL).unwrap())
        };
        put("dead", netns.ino, None, false);
        assert_eq!(members(&base, netns).unwrap().1, None);
        let _elsewhere = put("elsewhere", netns.ino + 1, None, true);
        let _guard = put("guard", netns.ino, None, true);
        put("member", netns.ino, Some("guard"), false);
        let (members, guard) = members(&base, netns).unwrap();
        let mut ids: Vec<&str> = members.iter().map(|member| member.id.as_str()).collect();
        ids.sort();
        assert_eq!(ids, ["dead", "guard", "member"]);
        assert_eq!(guard.unwrap().id, "guard");
    }

    #[test]
    fn of_two_containers_with_one_id_the_second_is_refused_while_the_first_runs() {
        let temporary = tempfile::tempdir().unwrap();
        let base = Dir::base(temporary.path()).unwrap();
        refuse_namesake(&base, "box", Path::new("/run/b/box")).unwrap();
        let here = Path::new("/proc/self/ns/net").metadata().unwrap();
        let put = |inode: u64| {
            let record = Container {
                pid: std::process::id() as i32,
                bundle: "/run/a/box".into(),
                netns: Some((here.dev(), inode)),
                ..Container::default()
            };
            let folder = base.make_private("box").unwrap();
            folder.write(layout::CONTAINER, &serde_json::to_vec(&record).unwrap()).unwrap();
        };
        put(here.ino());
        let reason = refuse_namesake(&base, "box", Path::new("/run/b/box")).unwrap_err().to_string();
        assert!(reason.contains("box") && reason.contains("/run/a/box"), "{reason}");
        refuse_namesake(&base, "box", Path::new("/run/a/box")).unwrap();
        refuse_namesake(&base, "other", Path::new("/run/b/other")).unwrap();
        // Its number is another process's by now.
        put(here.ino() + 1);
        refuse_namesake(&base, "box", Path::new("/run/b/box")).unwrap();
    }

    #[test]
    fn another_policy_is_refused_with_the_annotations_that_differ() {
        let bundle = tempfile::tempdir().unwrap();
        std::fs::write(
            bundle.path().join("config.json"),
            r#"{"annotations":{"terok.shield":"up","terok.name":"x"}}"#,
        )
        .unwrap();
        let bundle = bundle.path().display().to_string();
        let guard = Container { name: "web".into(), policy: "a".into(), bundle, ..Container::default() };
        let ours = [("terok.shield", "up"), ("terok.shield.allow", "a.example"), ("terok.name", "y")];
        let ours = ours.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        same_policy(&guard, "a", &ours).unwrap();
        let reason = same_policy(&guard, "b", &ours).unwrap_err().to_string();
        assert!(
            reason.contains("web") && reason.contains("terok.shield.allow") && !reason.contains("terok.name"),
            "{reason}"
        );
    }
}
