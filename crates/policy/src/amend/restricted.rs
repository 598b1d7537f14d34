//! `terok.restricted`: no new privileges, no capabilities, no system call that only tools for taking things apart need, none of
//! the kernel's files that tell of the host, and an end to how many processes there may be.
//!
//! A call is refused by its name, and so by each number it has: those of i386 and of x32 as well.

use super::seccomp::{Arg, ENOSYS, EPERM, Filter, Form};
use super::{AmendError, object};
use crate::capabilities;
use serde_json::{Map, Value, json};

/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const NAMESPACES: u64 = 0x7e02_0000;
const SIGCHLD: u64 = 17;

const REFUSED: &[&str] = &[
    "_sysctl",
    "acct",
    "add_key",
    "bpf",
    "chroot",
    "create_module",
    "delete_module",
    "fanotify_init",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "get_kernel_syms",
    "init_module",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mount",
    "mount_setattr",
    "move_mount",
    "nfsservctl",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "personality",
    "pidfd_getfd",
    "pivot_root",
    "process_madvise",
    "process_mrelease",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "query_module",
    "quotactl",
    "quotactl_fd",
    "request_key",
    "setns",
    "swapoff",
    "swapon",
    "sysfs",
    "syslog",
    "umount",
    "umount2",
    "unshare",
    "uselib",
    "userfaultfd",
    "ustat",
    "vm86",
    "vm86old",
];

/// What Podman and Docker hide from a container that is not privileged, either's list; what is not there is passed over.
const MASKED: [&str; 15] = [
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/dev/block",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/selinux",
    "/sys/kernel/security",
];
const READ_ONLY: [&str; 5] = ["/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"];
/// Podman's default.
const PROCESSES: u64 = 2048;

/// Refuses what asks for every privilege and for none. What is beyond capabilities and filter, the host's devices above all, stays with
/// a privileged container, so that it would only look restricted.
pub(super) fn refuse_privileged(config: &Value) -> Result<(), AmendError> {
    let masked = config.pointer("/linux/maskedPaths").and_then(Value::as_array);
    // Every engine's `--privileged`: all capabilities, and nothing is hidden.
    if config.get("process").is_some_and(capabilities::has_all) && masked.is_none_or(Vec::is_empty) {
        return Err(AmendError {
            place: "/process/capabilities".into(),
            reason: "the container is privileged, so terok.restricted=true could not be kept: start it without --privileged, or without terok.restricted"
                .into(),
        });
    }
    Ok(())
}

/// Hides and protects files of the kernel, beside those that the engine has hidden, and limits how many processes there may be.
pub(super) fn surroundings(config: &mut Value) -> Result<(), AmendError> {
    let libpod = config.pointer("/annotations/io.container.manager").is_some_and(|engine| engine == "libpod");
    let linux = object(config, &["linux"])?;
    for (key, paths) in [("maskedPaths", &MASKED[..]), ("readonlyPaths", &READ_ONLY)] {
        let place = format!("/linux/{key}");
        let listed = super::list(linux, key, &place)?;
        for path in paths {
            if !listed.iter().any(|listed| listed == path) {
                listed.push((*path).into());
            }
        }
    }
    // Without a path the engine keeps the container out of control groups, where a limit would stop the start.
    let grouped = linux.get("cgroupsPath").and_then(Value::as_str).is_some_and(|path| !path.is_empty());
    let limit = linux.get("resources").and_then(|resources| resources.pointer("/pids/limit"));
    // Podman sets a limit by itself wherever it can.
    let possible = grouped && (limit.is_some() || !libpod);
    if possible && limit.and_then(Value::as_i64).is_none_or(|limit| limit <= 0) {
        object(config, &["linux", "resources", "pids"])?.insert("limit".into(), PROCESSES.into());
    }
    Ok(())
}

/// Takes privileges from the `process` object.
pub(super) fn process(process: &mut Map<String, Value>) {
    process.insert("noNewPrivileges".into(), true.into());
    process.insert(
        "capabilities".into(),
        json!({ "bounding": [], "effective": [], "inheritable": [], "permitted": [], "ambient": [] }),
    );
}

pub(super) fn limit(filter: &mut Filter) {
    let bits: Vec<u64> = (0..64).map(|bit| 1 << bit).filter(|bit| bit & NAMESPACES != 0).collect();
    let clone = |bit: u64| [bit | SIGCHLD, 0, 0, 0, 0, 0];
    // A profile that refuses every new namespace already keeps its own rules.
    if filter.allows_by_default() || bits.iter().any(|&bit| filter.about("clone").permits(&clone(bit))) {
        let plain = Form { args: vec![Arg::masked(0, NAMESPACES, 0)], samples: vec![clone(0)] };
        let refusals: Vec<Vec<Arg>> = bits.iter().map(|&bit| vec![Arg::masked(0, bit, bit)]).collect();
        filter.limit("clone", &[plain], &refusals);
    }
    filter.refuse(REFUSED, EPERM);
    // Its flags are behind a pointer; on ENOSYS the C libraries fall back to clone.
    filter.refuse(&["clone3"], ENOSYS);
}
