//! Who else is in the container's network namespace (L8): the members of its pod, containers joined with `--network
//! container:X`. All of them have one policy, for the kernel's table knows no containers; a process of an unprotected
//! container among them is refused.

use crate::refusal::Refusal;
use std::collections::BTreeSet;
use std::path::Path;
use terok_kernel::netns::NsId;
use terok_kernel::statedir::Dir;
use terok_policy::control::Container;
use terok_policy::layout;

/// Bits of `CapBnd` with which a pod's infra process could undo the table: NET_ADMIN, NET_RAW, SYS_ADMIN, SYS_PTRACE.
const UNDOING: u64 = 1 << 12 | 1 << 13 | 1 << 21 | 1 << 19;
const RECORD_LIMIT: u64 = 1 << 20;
/// Generations between a process and the container's init.
const ANCESTORS: usize = 64;

/// The namespaces of a process, as `/proc/PID/ns` links them, and its parent.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    net: String,
    pids: String,
    mounts: String,
}

/// Everybody in the namespaces of one container.
#[derive(Debug)]
pub(crate) struct Companions {
    init: Process,
    own: Process,
    /// In its network namespace, itself and terok's hook left out.
    others: Vec<Process>,
    /// In its pid namespace, but not in its network namespace.
    elsewhere: Vec<Process>,
}

impl Companions {
    /// Those of the container whose init is `pid`; `shares_pids` asks for its pid namespace too.
    pub(crate) fn of(pid: i32, shares_pids: bool) -> Result<Self, Refusal> {
        let unreadable = || Refusal::input(format!("/proc/{pid}/ns"), "cannot be read");
        let init = Process::read(pid).ok_or_else(unreadable)?;
        let own = Process::read(std::process::id() as i32).ok_or_else(unreadable)?;
        let mut companions = Companions { init, own, others: Vec::new(), elsewhere: Vec::new() };
        let entries = std::fs::read_dir("/proc").map_err(Refusal::io("read /proc"))?;
        for pid in entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
            if pid != companions.init.pid && pid != companions.own.pid {
                companions.meet(pid, shares_pids);
            }
        }
        Ok(companions)
    }

    fn meet(&mut self, pid: i32, shares_pids: bool) {
        // One that ended meanwhile, or that is another user's.
        let Some(net) = link(pid, "net") else { return };
        if net == self.init.net {
            self.others.extend(Process::read(pid));
        } else if shares_pids && link(pid, "pid").as_ref() == Some(&self.init.pids) {
            self.elsewhere.extend(Process::read(pid));
        }
    }

    /// Whether the container has its network for itself, helpers of the engine aside.
    pub(crate) fn is_alone(&self) -> bool {
        self.strangers(&[]).is_empty()
    }

    /// Refuses processes that are neither of the containers with these records, nor the infra process `holder` of a pod, nor
    /// of this container, nor helpers of the engine, which live in its own namespaces.
    pub(crate) fn refuse_strangers(&self, members: &[Container], holder: Option<i32>) -> Result<(), Refusal> {
        let inits: Vec<i32> = members.iter().map(|member| member.pid).chain(holder).collect();
        if let Some(stranger) = self.strangers(&inits).first() {
            return Err(self::stranger(stranger.pid));
        }
        if let Some(process) = self.elsewhere.first() {
            return Err(Refusal::Guard(format!(
                "the container shares the processes of process {} ({}), which is in another network and can be made to work for it; start it without --pid",
                process.pid,
                name(process.pid)
            )));
        }
        Ok(())
    }

    /// Others than processes of the containers whose inits these are.
    fn strangers(&self, inits: &[i32]) -> Vec<&Process> {
        let members: Vec<&Process> = self.others.iter().filter(|other| inits.contains(&other.pid)).collect();
        let homes = || members.iter().copied().chain([&self.init, &self.own]);
        let pids: BTreeSet<&str> = homes().map(|home| home.pids.as_str()).collect();
        let mounts: BTreeSet<&str> = homes().map(|home| home.mounts.as_str()).collect();
        let is_known = |process: &Process| {
            pids.contains(process.pids.as_str()) && mounts.contains(process.mounts.as_str())
                || self.descends(process, inits)
        };
        self.others.iter().filter(|process| !is_known(process)).collect()
    }

    /// A sandbox that a container's own process made around its children.
    fn descends(&self, process: &Process, inits: &[i32]) -> bool {
        let mut at = process.parent;
        for _ in 0..ANCESTORS {
            if at == self.init.pid || inits.contains(&at) {
                return true;
            }
            match self.others.iter().find(|other| other.pid == at) {
                Some(parent) => at = parent.parent,
                None => return false,
            }
        }
        false
    }

    /// Whether `holder` is but the infra process of a pod: alone in its pid namespace or in the one the container shares with
    /// it, and without the capabilities that could undo the table.
    pub(crate) fn is_infra(&self, holder: i32) -> bool {
        let mut all = self.others.iter().chain([&self.init]);
        let Some(infra) = all.find(|other| other.pid == holder) else { return false };
        let company = self.others.iter().any(|other| other.pid != holder && other.pids == infra.pids);
        let own_pids = infra.pids != self.own.pids;
        own_pids
            && (!company || infra.pids == self.init.pids)
            && bounding(holder).is_some_and(|bounding| bounding & UNDOING == 0)
    }
}

impl Process {
    fn read(pid: i32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Process {
            pid,
            parent: parent(&stat)?,
            net: link(pid, "net")?,
            pids: link(pid, "pid")?,
            mounts: link(pid, "mnt")?,
        })
    }
}

/// The refusal of a network in which an unprotected process is.
pub(crate) fn stranger(pid: i32) -> Refusal {
    Refusal::Guard(format!(
        "the container shares its network with process {pid} ({}), which no terok annotation covers: give every container of that network the same annotations, or start this one with a network of its own",
        name(pid)
    ))
}

fn link(pid: i32, namespace: &str) -> Option<String> {
    std::fs::read_link(format!("/proc/{pid}/ns/{namespace}")).ok()?.into_os_string().into_string().ok()
}

/// `PID (NAME) STATE PPID …`; the name may hold anything.
fn parent(stat: &str) -> Option<i32> {
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

fn name(pid: i32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    name.trim_end().to_owned()
}

fn bounding(pid: i32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let set = status.lines().find_map(|line| line.strip_prefix("CapBnd:"))?;
    u64::from_str_radix(set.trim(), 16).ok()
}

/// Records of the owner's containers in namespace `netns` whose init is still there, and of the one among them whose
/// supervisor answers for all: the guard.
pub(crate) fn members(base: &Dir, netns: NsId) -> Result<(Vec<Container>, Option<Container>), Refusal> {
    let (mut members, mut guard) = (Vec::new(), None);
    for entry in base.list()?.into_iter().filter(|entry| entry.folder && layout::is_container_id(&entry.name))
    {
        // One that goes away at this moment is no member.
        let Ok(Some(folder)) = base.private(&entry.name) else { continue };
        let Some(record) = record(&folder) else { continue };
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
    let other = base.private(id)?.and_then(|folder| record(&folder));
    match other.filter(|other| Path::new(&other.bundle) != bundle && is_there(other)) {
        Some(other) => Err(Refusal::Guard(format!(
            "a protected container with the id {id} runs already ({}), and by its id terok knows a container: give this one another",
            other.bundle
        ))),
        None => Ok(()),
    }
}

fn record(folder: &Dir) -> Option<Container> {
    let json = folder.read(layout::CONTAINER, RECORD_LIMIT).ok()??;
    serde_json::from_slice(&json).ok()
}

/// Whether its init is still in its network namespace.
fn is_there(record: &Container) -> bool {
    record.netns.is_some_and(|(_, inode)| link(record.pid, "net") == Some(format!("net:[{inode}]")))
}

/// Refuses a container whose policy is not that of the network's guard, naming the annotations that differ.
pub(crate) fn same_policy(
    guard: &Container,
    digest: &str,
    ours: &crate::state::Annotations,
) -> Result<(), Refusal> {
    if guard.policy == digest {
        return Ok(());
    }
    let name = if guard.name.is_empty() { &guard.id } else { &guard.name };
    let theirs = annotations(Path::new(&guard.bundle));
    let keys = theirs
        .iter()
        .flat_map(|theirs| theirs.keys().chain(ours.keys()).filter(|key| theirs.get(*key) != ours.get(*key)));
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

fn annotations(bundle: &Path) -> Option<crate::state::Annotations> {
    let json = crate::state::read_config(std::fs::File::open(bundle.join("config.json")).ok()?).ok()?;
    let (_, annotations) = crate::state::parse_config(&json).ok()?;
    Some(crate::state::ours(&annotations)).filter(|ours| !ours.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32, pids: &str, mounts: &str) -> Process {
        Process { pid, parent, net: "net:[1]".into(), pids: pids.into(), mounts: mounts.into() }
    }

    /// A container (init 10) in podman's namespaces, and these others in its network.
    fn with(others: &[Process]) -> Companions {
        Companions {
            init: process(10, 1, "pid:[10]", "mnt:[10]"),
            own: process(2, 1, "pid:[1]", "mnt:[1]"),
            others: others.to_vec(),
            elsewhere: Vec::new(),
        }
    }

    #[test]
    fn podmans_helpers_and_the_containers_own_processes_are_no_strangers() {
        let port = process(5, 1, "pid:[1]", "mnt:[1]");
        let exec = process(11, 1, "pid:[1]", "mnt:[10]");
        let sandbox = process(12, 10, "pid:[12]", "mnt:[12]");
        let deeper = process(13, 12, "pid:[13]", "mnt:[13]");
        assert!(with(&[port, exec, sandbox, deeper]).is_alone());
    }

    #[test]
    fn a_process_of_an_unprotected_container_is_refused_by_its_number_and_one_of_a_member_is_not() {
        let joined = process(20, 1, "pid:[20]", "mnt:[20]");
        let companions = with(std::slice::from_ref(&joined));
        assert!(!companions.is_alone());
        let reason = companions.refuse_strangers(&[], None).unwrap_err().to_string();
        assert!(reason.contains("process 20"), "{reason}");
        let member = Container { pid: 20, ..Container::default() };
        companions.refuse_strangers(&[member], None).unwrap();
        companions.refuse_strangers(&[], Some(20)).unwrap();
        // The host's pid namespace, as --pid=host gives it, makes no helper.
        assert!(!with(&[process(21, 1, "pid:[1]", "mnt:[21]")]).is_alone());
        assert!(!with(&[process(22, 1, "pid:[22]", "mnt:[1]")]).is_alone());
    }

    #[test]
    fn processes_shared_with_another_network_are_refused() {
        let mut companions = with(&[]);
        companions.elsewhere.push(process(30, 1, "pid:[10]", "mnt:[30]"));
        assert!(companions.refuse_strangers(&[], None).unwrap_err().to_string().contains("--pid"));
    }

    #[test]
    fn the_parent_is_read_behind_any_name() {
        assert_eq!(parent("12 (a) b) 7 (c) S 34 1 1"), Some(34));
        assert_eq!(parent("12"), None);
        assert_eq!(
            Process::read(std::process::id() as i32).unwrap().parent,
            std::os::unix::process::parent_id() as i32
        );
        assert!(bounding(std::process::id() as i32).is_some());
    }

    #[test]
    fn the_guard_of_a_network_is_the_living_one_that_answers_for_it() {
        let temporary = tempfile::tempdir().unwrap();
        let base = Dir::base(temporary.path()).unwrap();
        let here = Path::new("/proc/self/ns/net").metadata().unwrap();
        use std::os::unix::fs::MetadataExt;
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
        use std::os::unix::fs::MetadataExt;
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
