//! Which processes are in the container's network namespace (L8) beside its own: those of its pod's members, of containers joined
//! with `--network container:X`, and the engine's helpers. One of an unprotected container among them is refused.

use crate::refusal::Refusal;
use std::collections::BTreeSet;
use terok_policy::control::Container;

/// Bits of `CapBnd` with which a pod's infra process could undo the table: NET_ADMIN, NET_RAW, SYS_ADMIN, SYS_PTRACE.
const UNDOING: u64 = 1 << 12 | 1 << 13 | 1 << 21 | 1 << 19;
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

/// What `/proc/PID/ns` has for a namespace; `None` where there is no such process, or another user's.
pub(crate) fn link(pid: i32, namespace: &str) -> Option<String> {
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
}
