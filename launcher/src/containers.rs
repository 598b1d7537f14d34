//! Which containers there are, and which one a person means by a name, an id or the beginning of one.
//! Read from the runtime folders (running) and the state folders (everything that ever ran); the engine is asked only
//! for names that are not in them.

use crate::engine;
use anyhow::{Context as _, bail};
use std::path::{Path, PathBuf};
use terok_install::host::Host;
use terok_policy::control::Container;
use terok_policy::plan::Network;
use terok_policy::{Labels, layout};

/// A container that has left something on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    /// Full id.
    pub(crate) id: String,
    /// What `create` recorded; `None` where no start ever succeeded.
    pub(crate) record: Option<Container>,
    /// Runtime folder, while it runs.
    pub(crate) run: Option<PathBuf>,
    /// State folder: may not exist.
    pub(crate) state: PathBuf,
}

impl Known {
    /// The name to show: the engine's, the label's, or the short id.
    pub(crate) fn name(&self) -> &str {
        let names = self.record.iter().flat_map(|record| [&record.name, &record.labels.name]);
        names.map(String::as_str).find(|name| !name.is_empty()).unwrap_or_else(|| short(&self.id))
    }

    /// The control socket that answers for a running container: its own, or that of the container whose supervisor
    /// serves the network namespace they share.
    pub(crate) fn socket(&self) -> Option<PathBuf> {
        let run = self.run.as_ref()?;
        match self.served_by() {
            Some(guard) => Some(run.parent()?.join(guard).join(layout::CONTROL)),
            None => Some(run.join(layout::CONTROL)),
        }
    }

    /// Id of the container whose supervisor serves this one, where that is not its own.
    pub(crate) fn served_by(&self) -> Option<&str> {
        let guard = self.record.as_ref()?.served_by.as_deref()?;
        layout::is_container_id(guard).then_some(guard)
    }

    /// Its audit log: that of the container whose supervisor serves it, where that is not its own.
    pub(crate) fn audit_log(&self) -> PathBuf {
        let state = match (self.served_by(), self.state.parent()) {
            (Some(guard), Some(folder)) => folder.join(guard),
            _ => self.state.clone(),
        };
        state.join(layout::AUDIT)
    }

    /// Its network, where `create` recorded it.
    pub(crate) fn network(&self) -> Option<Network> {
        self.record.as_ref()?.network
    }

    /// With the name that the engine gives it.
    pub(crate) fn called(mut self, name: String) -> Self {
        match &mut self.record {
            Some(record) => record.name = name,
            None => {
                let labels = Labels::default();
                let id = self.id.clone();
                self.record = Some(Container {
                    id,
                    name,
                    pid: 0,
                    started: 0,
                    bundle: String::new(),
                    labels,
                    ..Container::default()
                });
            }
        }
        self
    }

    /// Whether this is its name, its label or its whole id.
    pub(crate) fn is_called(&self, name: &str) -> bool {
        let of = |record: &Container| record.name == name || record.labels.name == name;
        self.id == name || self.record.as_ref().is_some_and(of)
    }
}

/// The first twelve digits of an id, as engines print it.
pub(crate) fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// The containers that run, by start.
pub(crate) fn running(host: &Host) -> anyhow::Result<Vec<Known>> {
    let mut found = Vec::new();
    for id in ids(&host.run_dir())? {
        let run = host.run_dir().join(&id);
        // Without the record the start is not finished, or the container is just going.
        if let Some(record) = record(&run)
            && is_alive(record.pid)
        {
            found.push(Known { state: host.state_dir().join(&id), id, record: Some(record), run: Some(run) });
        }
    }
    found.sort_by_key(|known| known.record.as_ref().map(|record| (record.started, record.name.clone())));
    Ok(found)
}

/// Running containers, and those that left a state folder.
pub(crate) fn all(host: &Host) -> anyhow::Result<Vec<Known>> {
    let mut found = running(host)?;
    for id in ids(&host.state_dir())? {
        if found.iter().all(|known| known.id != id) {
            let state = host.state_dir().join(&id);
            found.push(Known { record: record(&state), id, run: None, state });
        }
    }
    Ok(found)
}

/// The running container that `text` means.
pub(crate) fn find_running(host: &Host, text: &str) -> anyhow::Result<Known> {
    let known = find(host, text)?;
    if known.run.is_none() {
        bail!(
            "container {0} does not run; terok ps lists those that do, terok audit {0} shows what it did",
            known.name()
        );
    }
    Ok(known)
}

/// The container that `text` means, running or not.
pub(crate) fn find(host: &Host, text: &str) -> anyhow::Result<Known> {
    named(all(host)?, text, engine::container)
}

/// `asked` is what the engine answers to a name: it alone knows what a start that was refused was called, and new names.
fn named(
    known: Vec<Known>,
    text: &str,
    asked: impl Fn(&str) -> Option<(String, String)>,
) -> anyhow::Result<Known> {
    if let Some(known) = choose(&known, text)? {
        return Ok(known);
    }
    let Some((id, name)) = asked(text) else {
        bail!("no protected container {text:?}: terok ps --all lists them")
    };
    match known.into_iter().find(|known| known.id == id) {
        Some(known) => Ok(known.called(name)),
        None => bail!(
            "container {name} is not protected, or never came so far: it has no terok. annotation, or terok doctor tells what keeps it from starting"
        ),
    }
}

/// An exact name or id wins over the beginning of one, the newest of a name over removed ones, and what runs over what
/// does not. A beginning never leads past a container that is called so: an order must not reach another one.
fn choose(known: &[Known], text: &str) -> anyhow::Result<Option<Known>> {
    // Kubernetes' are called NAMESPACE/POD and NAMESPACE/POD/CONTAINER.
    if text.split('/').count() > 3 || !text.split('/').all(layout::is_container_id) {
        bail!("{text:?} is no container: a name or an id has letters, digits, dots, dashes and underscores");
    }
    let newest = |known: &&Known| (known.run.is_some(), known.record.as_ref().map(|record| record.started));
    if let Some(exact) = known.iter().filter(|known| known.is_called(text)).max_by_key(newest) {
        return Ok(Some(exact.clone()));
    }
    let begins: Vec<&Known> =
        known.iter().filter(|known| known.id.starts_with(text) || known.name().starts_with(text)).collect();
    let running: Vec<&Known> = begins.iter().copied().filter(|known| known.run.is_some()).collect();
    match if running.is_empty() { &begins[..] } else { &running[..] } {
        [] => Ok(None),
        [one] => Ok(Some((*one).clone())),
        several => {
            let names: Vec<_> =
                several.iter().map(|known| format!("{} ({})", known.name(), short(&known.id))).collect();
            bail!("{text:?} could be {}: write more of it", names.join(", "))
        }
    }
}

fn ids(folder: &Path) -> anyhow::Result<Vec<String>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| folder.display().to_string()),
    };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter(|name| layout::is_container_id(name)).collect())
}

/// Whether the first process of a container that ran a moment ago still does.
pub(crate) fn lives(known: &Known) -> bool {
    known.record.as_ref().is_some_and(|record| is_alive(record.pid))
}

/// Whether there is a process `pid`. A runtime folder outlives its container where supervisor and all were killed.
fn is_alive(pid: i32) -> bool {
    Path::new("/proc").join(pid.to_string()).exists()
}

fn record(folder: &Path) -> Option<Container> {
    serde_json::from_slice(&std::fs::read(folder.join(layout::CONTAINER)).ok()?).ok()
}

/// User 1001, with the home `/home/u`, on a machine whose `/` is `root`.
#[cfg(test)]
pub(crate) fn host_at(root: &std::path::Path) -> Host {
    Host {
        root: root.into(),
        uid: 1001,
        home: "/home/u".into(),
        config_home: "/home/u/.config".into(),
        conf: None,
        conf_override: None,
        remote: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(id: &str, name: &str, label: &str, started: u64) -> Known {
        let labels = Labels { name: label.to_owned(), ..Labels::default() };
        let record = Container {
            id: id.to_owned(),
            name: name.to_owned(),
            pid: 1,
            started,
            bundle: String::new(),
            labels,
            ..Container::default()
        };
        Known { id: id.to_owned(), record: Some(record), run: None, state: PathBuf::new() }
    }

    fn chosen(text: &str) -> Result<Option<String>, String> {
        let all = vec![
            known("abc111", "web", "", 1),
            known("abd222", "web-2", "agent", 2),
            known("eee333", "old", "", 3),
            known("eee444", "old", "", 9),
        ];
        choose(&all, text).map(|known| known.map(|known| known.id)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_name_an_id_or_an_unambiguous_beginning_is_enough() {
        assert_eq!(chosen("web"), Ok(Some("abc111".into())), "an exact name wins over a longer one");
        assert_eq!(chosen("abc"), Ok(Some("abc111".into())));
        assert_eq!(chosen("abd222"), Ok(Some("abd222".into())));
        assert_eq!(chosen("agent"), Ok(Some("abd222".into())));
        assert_eq!(chosen("old"), Ok(Some("eee444".into())), "the newest of a name");
        assert_eq!(chosen("zzz"), Ok(None));
        assert!(chosen("ab").unwrap_err().contains("write more"));
    }

    #[test]
    fn a_stopped_container_is_not_taken_for_a_running_one_whose_name_it_begins() {
        let mut all = vec![known("abc111", "agent", "", 1), known("abd222", "agent-2", "", 2)];
        all[1].run = Some("/run".into());
        assert_eq!(choose(&all, "agent").unwrap().unwrap().id, "abc111");
        assert_eq!(choose(&all, "age").unwrap().unwrap().id, "abd222", "what runs is meant first");
        assert_eq!(choose(&all, "ab").unwrap().unwrap().id, "abd222");
    }

    #[test]
    fn the_engine_knows_the_name_of_a_refused_start_and_of_what_is_not_protected() {
        let refused = Known { record: None, ..known("abc111", "", "", 0) };
        let engine = |name: &str| match name {
            "bad" => Some(("abc111".to_owned(), "bad".to_owned())),
            "plain" => Some(("fff".to_owned(), "plain".to_owned())),
            _ => None,
        };
        let found = named(vec![refused.clone()], "bad", engine).unwrap();
        assert_eq!((found.id.as_str(), found.name()), ("abc111", "bad"));
        let error = named(vec![refused.clone()], "plain", engine).unwrap_err().to_string();
        assert!(error.contains("plain is not protected"), "{error}");
        let error = named(vec![refused], "nobody", engine).unwrap_err().to_string();
        assert!(error.contains("terok ps --all"), "{error}");
    }

    #[test]
    fn a_pod_is_called_by_its_namespace_and_name() {
        let all = [known("abc111", "default/agent", "", 1), known("abd222", "default/agent/main", "", 2)];
        for (text, id) in
            [("default/agent", "abc111"), ("default/agent/main", "abd222"), ("default/agent/m", "abd222")]
        {
            assert_eq!(choose(&all, text).unwrap().unwrap().id, id, "{text}");
        }
        assert!(choose(&all, "default/other").unwrap().is_none());
    }

    #[test]
    fn orders_to_a_member_of_a_pod_go_to_the_supervisor_that_serves_it() {
        let mut member = known("abd222", "member", "", 1);
        member.run = Some("/run/terok/abd222".into());
        assert_eq!(member.socket().unwrap(), Path::new("/run/terok/abd222/control.sock"));
        member.record.as_mut().unwrap().served_by = Some("abc111".into());
        assert_eq!(member.socket().unwrap(), Path::new("/run/terok/abc111/control.sock"));
        member.record.as_mut().unwrap().served_by = Some("../elsewhere".into());
        assert_eq!(member.socket().unwrap(), Path::new("/run/terok/abd222/control.sock"));
    }

    #[test]
    fn paths_are_not_containers() {
        for text in ["..", ".", "", "a//b", "a/..", "a/b/c/d", "/etc", "../x", "-x", "a b", "a\0"] {
            assert!(chosen(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn folders_are_read_and_strangers_in_them_ignored() {
        let root = tempfile::tempdir().unwrap();
        let host = host_at(root.path());
        assert!(running(&host).unwrap().is_empty());
        for (folder, name) in [(host.run_dir().join("aaa"), "one"), (host.state_dir().join("bbb"), "gone")] {
            std::fs::create_dir_all(&folder).unwrap();
            let record = known(folder.file_name().unwrap().to_str().unwrap(), name, "", 5).record;
            std::fs::write(folder.join(layout::CONTAINER), serde_json::to_string(&record).unwrap()).unwrap();
        }
        std::fs::create_dir_all(host.run_dir().join("unfinished")).unwrap();
        std::fs::create_dir_all(host.state_dir().join(".tmp")).unwrap();
        assert_eq!(running(&host).unwrap().len(), 1);
        assert_eq!(all(&host).unwrap().len(), 2);
        let dead = host.run_dir().join("dead");
        std::fs::create_dir_all(&dead).unwrap();
        let mut record = known("dead", "dead", "", 5).record.unwrap();
        record.pid = i32::MAX;
        std::fs::write(dead.join(layout::CONTAINER), serde_json::to_string(&record).unwrap()).unwrap();
        assert_eq!(running(&host).unwrap().len(), 1, "a folder without its process is not running");
        assert_eq!(find_running(&host, "one").unwrap().id, "aaa");
        let error = find_running(&host, "gone").unwrap_err().to_string();
        assert!(error.contains("does not run") && error.contains("terok audit gone"), "{error}");
    }
}
