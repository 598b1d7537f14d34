//! `terok.restricted`: no new privileges, no capabilities, and no system call that only tools for taking things apart need.

use super::seccomp::{Arg, ENOSYS, EPERM, Filter, Form};
use serde_json::{Map, Value, json};

/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const NAMESPACES: u64 = 0x7e02_0000;
const SIGCHLD: u64 = 17;

const REFUSED: &[&str] = &[
    "acct",
    "add_key",
    "bpf",
    "chroot",
    "delete_module",
    "fanotify_init",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "init_module",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "personality",
    "pidfd_getfd",
    "pivot_root",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "quotactl",
    "request_key",
    "setns",
    "swapoff",
    "swapon",
    "umount",
    "umount2",
    "unshare",
    "userfaultfd",
    "vm86",
    "vm86old",
];

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
