//! System-call filters of the supervisor's two halves: a list of what each needs, everything else is EPERM.

use crate::error::{Error, Result};
use nix::errno::Errno;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};
use std::collections::BTreeMap;

/// Whose filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// The parent: polls, applies sets, starts workers.
    Parent,
    /// The worker: serves the container, dials, writes its logs. Starts no program.
    Worker,
    /// A helper that reads the vault: files and nothing else, no socket.
    Reader,
    /// A helper that renews a credential as well: it dials.
    Renewer,
}

/// A condition on one 32-bit argument; all conditions of a rule must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Argument {
    /// Argument number, exact value.
    Is(u8, u32),
    /// Argument number, mask, value under the mask.
    Masked(u8, u32, u32),
}

/// An allowed call: its name (for people and for the oracle in the tests), its number here, and when it is allowed;
/// no rule at all means always.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// Name as in the kernel.
    pub name: &'static str,
    /// Number on this architecture.
    pub number: i64,
    /// Alternatives; one must hold.
    pub rules: &'static [&'static [Argument]],
}

macro_rules! calls {
    ($($call:ident),* $(,)?) => {
        &[$(Call { name: stringify!($call), number: $call, rules: &[] }),*]
    };
}

use numbers::*;

/// What both halves need: memory, time, poll, descriptors they hold, files below their folders, signals to themselves.
const COMMON: &[Call] = calls![
    read,
    write,
    readv,
    writev,
    pread64,
    pwrite64,
    close,
    fstat,
    newfstatat,
    statx,
    lseek,
    openat,
    openat2,
    getdents64,
    fcntl,
    ftruncate,
    fchmod,
    fsync,
    fdatasync,
    renameat,
    renameat2,
    unlinkat,
    mkdirat,
    readlinkat,
    faccessat2,
    flock,
    brk,
    mmap,
    munmap,
    mremap,
    madvise,
    mprotect,
    futex,
    rseq,
    set_robust_list,
    membarrier,
    rt_sigaction,
    rt_sigprocmask,
    rt_sigreturn,
    sigaltstack,
    gettid,
    getpid,
    getppid,
    getuid,
    geteuid,
    getgid,
    getegid,
    tgkill,
    clock_gettime,
    clock_nanosleep,
    gettimeofday,
    nanosleep,
    restart_syscall,
    sched_yield,
    sched_getaffinity,
    getrandom,
    ppoll,
    pselect6,
    epoll_create1,
    epoll_ctl,
    epoll_pwait,
    eventfd2,
    timerfd_create,
    timerfd_settime,
    pipe2,
    dup,
    dup3,
    recvmsg,
    sendmsg,
    recvfrom,
    sendto,
    getsockopt,
    setsockopt,
    getsockname,
    getpeername,
    shutdown,
    exit,
    exit_group,
    uname,
    sysinfo,
    getrusage,
    pidfd_send_signal,
    wait4,
    waitid,
];

/// Limits of its own alone: with a limit on CPU time, a process of the same user is killed as by a signal.
const OWN: &[Call] = &[Call { name: "prlimit64", number: prlimit64, rules: &[&[Argument::Is(0, 0)]] }];

/// Calls that only x86_64 has.
#[cfg(target_arch = "x86_64")]
const LEGACY: &[Call] = calls![
    arch_prctl, poll, epoll_wait, stat, lstat, open, readlink, access, rename, unlink, mkdir, rmdir, time
];
#[cfg(not(target_arch = "x86_64"))]
const LEGACY: &[Call] = &[];

/// The parent starts workers; the programs it can reach are Landlock's to say.
const PARENT: &[Call] = &[
    Call { name: "execveat", number: execveat, rules: &[] },
    // What execveat's new program does before it has a filter of its own.
    Call { name: "set_tid_address", number: set_tid_address, rules: &[] },
    Call { name: "prctl", number: prctl, rules: &[] },
    Call { name: "capget", number: capget, rules: &[] },
    Call { name: "capset", number: capset, rules: &[] },
    Call { name: "seccomp", number: seccomp, rules: &[] },
    Call { name: "landlock_create_ruleset", number: landlock_create_ruleset, rules: &[] },
    Call { name: "landlock_add_rule", number: landlock_add_rule, rules: &[] },
    Call { name: "landlock_restrict_self", number: landlock_restrict_self, rules: &[] },
    Call { name: "clone", number: clone, rules: CLONE },
    Call { name: "close_range", number: close_range, rules: &[] },
    Call { name: "setsid", number: setsid, rules: &[] },
    Call { name: "pidfd_open", number: pidfd_open, rules: &[] },
    Call { name: "socketpair", number: socketpair, rules: UNIX },
    Call { name: "memfd_create", number: memfd_create, rules: &[] },
    Call { name: "umask", number: umask, rules: &[] },
    Call { name: "chdir", number: chdir, rules: &[] },
];

const WORKER: &[Call] = &[
    Call { name: "socket", number: socket, rules: SOCKETS },
    Call { name: "connect", number: connect, rules: &[] },
    Call { name: "bind", number: bind, rules: &[] },
    Call { name: "accept4", number: accept4, rules: &[] },
    Call { name: "splice", number: splice, rules: &[] },
    Call { name: "tee", number: tee, rules: &[] },
    Call { name: "socketpair", number: socketpair, rules: UNIX },
    Call { name: "sendmmsg", number: sendmmsg, rules: &[] },
    Call { name: "recvmmsg", number: recvmmsg, rules: &[] },
    Call {
        name: "ioctl",
        number: ioctl,
        rules: &[&[Argument::Is(1, libc::FIONREAD as u32)], &[Argument::Is(1, libc::FIONBIO as u32)]],
    },
    // Naming itself.
    Call { name: "prctl", number: prctl, rules: &[&[Argument::Is(0, libc::PR_SET_NAME as u32)]] },
];

/// What of the worker's it takes to ask a name server and a service.
const RENEWER: &[Call] = &[
    Call { name: "socketpair", number: socketpair, rules: UNIX },
    Call { name: "socket", number: socket, rules: SOCKETS },
    Call { name: "connect", number: connect, rules: &[] },
    Call { name: "bind", number: bind, rules: &[] },
    Call { name: "sendmmsg", number: sendmmsg, rules: &[] },
    Call { name: "recvmmsg", number: recvmmsg, rules: &[] },
    Call { name: "ioctl", number: ioctl, rules: &[&[Argument::Is(1, libc::FIONBIO as u32)]] },
];

/// Processes, not namespaces: none of the CLONE_NEW* bits.
const CLONE: &[&[Argument]] = &[&[Argument::Masked(
    0,
    (libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET) as u32,
    0,
)]];
const UNIX: &[&[Argument]] = &[&[Argument::Is(0, libc::AF_UNIX as u32)]];
/// Type under SOCK_CLOEXEC and SOCK_NONBLOCK.
const TYPE: u32 = 0xf;
/// What is dialled and asked: TCP and UDP, and routes of the host.
const SOCKETS: &[&[Argument]] = &[
    &[Argument::Is(0, libc::AF_INET as u32), Argument::Masked(1, TYPE, libc::SOCK_STREAM as u32)],
    &[Argument::Is(0, libc::AF_INET as u32), Argument::Masked(1, TYPE, libc::SOCK_DGRAM as u32)],
    &[Argument::Is(0, libc::AF_INET6 as u32), Argument::Masked(1, TYPE, libc::SOCK_STREAM as u32)],
    &[Argument::Is(0, libc::AF_INET6 as u32), Argument::Masked(1, TYPE, libc::SOCK_DGRAM as u32)],
    &[Argument::Is(0, libc::AF_NETLINK as u32), Argument::Is(2, libc::NETLINK_ROUTE as u32)],
];

/// The table of `filter`. The parent's contains the others: they start under the parent's filter.
pub fn table(filter: Filter) -> Vec<Call> {
    let own = match filter {
        Filter::Worker => vec![COMMON, OWN, LEGACY, WORKER],
        Filter::Reader => vec![COMMON, OWN, LEGACY],
        Filter::Renewer => vec![COMMON, OWN, LEGACY, RENEWER],
        Filter::Parent => vec![COMMON, OWN, LEGACY, WORKER, PARENT],
    };
    let mut merged: BTreeMap<i64, Call> = BTreeMap::new();
    // A later entry widens an earlier one; in the lists above every later one contains the earlier.
    for call in own.into_iter().flatten() {
        merged.insert(call.number, *call);
    }
    merged.into_values().collect()
}

/// The filter as a BPF program.
pub fn program(filter: Filter) -> Result<BpfProgram> {
    compile(&table(filter)).map_err(|_| Error::call("seccomp", "filter")(Errno::EINVAL))
}

fn compile(calls: &[Call]) -> std::result::Result<BpfProgram, seccompiler::BackendError> {
    let rules = calls
        .iter()
        .map(|call| {
            let rules =
                call.rules.iter().map(|arguments| rule(arguments)).collect::<std::result::Result<_, _>>()?;
            Ok((call.number, rules))
        })
        .collect::<std::result::Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError>>()?;
    let architecture: TargetArch = std::env::consts::ARCH.try_into()?;
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(rules, refuse, SeccompAction::Allow, architecture)?.try_into()
}

fn rule(arguments: &[Argument]) -> std::result::Result<SeccompRule, seccompiler::BackendError> {
    let condition = |argument: &Argument| match *argument {
        Argument::Is(index, value) => {
            SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value.into())
        }
        Argument::Masked(index, mask, value) => {
            let operator = SeccompCmpOp::MaskedEq(mask.into());
            SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value.into())
        }
    };
    SeccompRule::new(arguments.iter().map(condition).collect::<std::result::Result<_, _>>()?)
}

/// Puts the calling thread, and what it starts, under `filter`. Needs no-new-privileges.
pub fn install(filter: Filter) -> Result<()> {
    let program = program(filter)?;
    seccompiler::apply_filter(&program).map_err(|_| Error::call("seccomp", "install")(Errno::last()))
}

/// Numbers under their kernel names.
#[allow(non_upper_case_globals, reason = "the kernel's names")]
mod numbers {
    macro_rules! numbers {
        ($($name:ident = $number:ident),* $(,)?) => { $(pub(super) const $name: i64 = libc::$number;)* };
    }
    numbers! {
        accept4 = SYS_accept4, bind = SYS_bind, brk = SYS_brk, capget = SYS_capget, capset = SYS_capset,
        chdir = SYS_chdir, clock_gettime = SYS_clock_gettime, clock_nanosleep = SYS_clock_nanosleep,
        clone = SYS_clone, close = SYS_close, close_range = SYS_close_range, connect = SYS_connect,
        dup = SYS_dup, dup3 = SYS_dup3, epoll_create1 = SYS_epoll_create1, epoll_ctl = SYS_epoll_ctl,
        epoll_pwait = SYS_epoll_pwait, eventfd2 = SYS_eventfd2, execveat = SYS_execveat, exit = SYS_exit,
        exit_group = SYS_exit_group, faccessat2 = SYS_faccessat2, fcntl = SYS_fcntl,
        fchmod = SYS_fchmod, fdatasync = SYS_fdatasync, flock = SYS_flock, fstat = SYS_fstat, fsync = SYS_fsync,
        ftruncate = SYS_ftruncate, futex = SYS_futex, getdents64 = SYS_getdents64, getegid = SYS_getegid,
        geteuid = SYS_geteuid, getgid = SYS_getgid, getpeername = SYS_getpeername, getpid = SYS_getpid,
        getppid = SYS_getppid, getrandom = SYS_getrandom, getrusage = SYS_getrusage,
        getsockname = SYS_getsockname, getsockopt = SYS_getsockopt, gettid = SYS_gettid,
        gettimeofday = SYS_gettimeofday, getuid = SYS_getuid, ioctl = SYS_ioctl,
        landlock_add_rule = SYS_landlock_add_rule, landlock_create_ruleset = SYS_landlock_create_ruleset,
        landlock_restrict_self = SYS_landlock_restrict_self, lseek = SYS_lseek, madvise = SYS_madvise,
        membarrier = SYS_membarrier, memfd_create = SYS_memfd_create, mkdirat = SYS_mkdirat,
        mmap = SYS_mmap, mprotect = SYS_mprotect, mremap = SYS_mremap, munmap = SYS_munmap,
        nanosleep = SYS_nanosleep, newfstatat = SYS_newfstatat, openat = SYS_openat, openat2 = SYS_openat2,
        pidfd_open = SYS_pidfd_open, pidfd_send_signal = SYS_pidfd_send_signal, pipe2 = SYS_pipe2,
        ppoll = SYS_ppoll, prctl = SYS_prctl, pread64 = SYS_pread64, prlimit64 = SYS_prlimit64,
        pselect6 = SYS_pselect6, pwrite64 = SYS_pwrite64, read = SYS_read, readlinkat = SYS_readlinkat,
        readv = SYS_readv, recvfrom = SYS_recvfrom, recvmmsg = SYS_recvmmsg, recvmsg = SYS_recvmsg,
        renameat = SYS_renameat, renameat2 = SYS_renameat2, restart_syscall = SYS_restart_syscall,
        rseq = SYS_rseq, rt_sigaction = SYS_rt_sigaction, rt_sigprocmask = SYS_rt_sigprocmask,
        rt_sigreturn = SYS_rt_sigreturn, sched_getaffinity = SYS_sched_getaffinity,
        sched_yield = SYS_sched_yield, seccomp = SYS_seccomp, sendmmsg = SYS_sendmmsg,
        sendmsg = SYS_sendmsg, sendto = SYS_sendto, set_robust_list = SYS_set_robust_list,
        set_tid_address = SYS_set_tid_address, setsid = SYS_setsid, setsockopt = SYS_setsockopt,
        shutdown = SYS_shutdown, sigaltstack = SYS_sigaltstack, socket = SYS_socket,
        socketpair = SYS_socketpair, splice = SYS_splice, statx = SYS_statx, sysinfo = SYS_sysinfo,
        tee = SYS_tee, tgkill = SYS_tgkill, timerfd_create = SYS_timerfd_create,
        timerfd_settime = SYS_timerfd_settime, umask = SYS_umask, uname = SYS_uname,
        unlinkat = SYS_unlinkat, wait4 = SYS_wait4, waitid = SYS_waitid, write = SYS_write,
        writev = SYS_writev,
    }
    #[cfg(target_arch = "x86_64")]
    numbers! {
        access = SYS_access, arch_prctl = SYS_arch_prctl, epoll_wait = SYS_epoll_wait, lstat = SYS_lstat,
        mkdir = SYS_mkdir, open = SYS_open, poll = SYS_poll, readlink = SYS_readlink, rename = SYS_rename,
        rmdir = SYS_rmdir, stat = SYS_stat, time = SYS_time, unlink = SYS_unlink,
    }
}
