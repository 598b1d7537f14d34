//! The filters of both halves: the program that is loaded, held against libseccomp's for the same table, and real calls
//! under it.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(unsafe_code, reason = "raw system calls are what is tested")]

mod process;

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use std::io::{Read, Seek};
use terok_kernel::seccomp::{Argument, Call, Filter, install, program, table};

#[cfg(target_arch = "x86_64")]
const ARCH: (u32, ScmpArch) = (0xc000_003e, ScmpArch::X8664);
#[cfg(target_arch = "aarch64")]
const ARCH: (u32, ScmpArch) = (0xc000_00b7, ScmpArch::Aarch64);

const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0000 | libc::EPERM as u32;

/// One instruction of classic BPF: code, jump if true, jump if false, constant.
type Instruction = (u16, u8, u8, u32);

/// What `filter` says of a call: an interpreter of the instructions that seccomp filters use (linux/filter.h).
fn verdict(filter: &[Instruction], arch: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut data = [0u8; 64];
    data[0..4].copy_from_slice(&number.to_ne_bytes());
    data[4..8].copy_from_slice(&arch.to_ne_bytes());
    for (index, arg) in args.iter().enumerate() {
        data[16 + 8 * index..24 + 8 * index].copy_from_slice(&arg.to_ne_bytes());
    }
    let (mut at, mut a) = (0, 0u32);
    loop {
        let (code, yes, no, k) = filter[at];
        at += 1;
        let jump = |holds: bool| usize::from(if holds { yes } else { no });
        match code {
            0x20 => a = u32::from_ne_bytes(data[k as usize..k as usize + 4].try_into().unwrap()),
            0x54 => a &= k,
            0x05 => at += k as usize,
            0x15 => at += jump(a == k),
            0x25 => at += jump(a > k),
            0x35 => at += jump(a >= k),
            0x45 => at += jump(a & k != 0),
            0x06 => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
}

fn ours(filter: Filter) -> Vec<Instruction> {
    program(filter).unwrap().iter().map(|i| (i.code, i.jt, i.jf, i.k)).collect()
}

/// The same table, built by the reference library.
fn theirs(calls: &[Call]) -> Vec<Instruction> {
    let mut context = ScmpFilterContext::new(ScmpAction::Errno(libc::EPERM)).unwrap();
    assert!(context.is_arch_present(ARCH.1).unwrap());
    for call in calls {
        // Names are resolved by the library: a wrong number in the table would show.
        let number = ScmpSyscall::from_name(call.name).unwrap();
        if call.rules.is_empty() {
            context.add_rule(ScmpAction::Allow, number).unwrap();
        }
        for rule in call.rules {
            let compare = |argument: &Argument| match *argument {
                Argument::Is(index, value) => (index, u32::MAX, value),
                Argument::Masked(index, mask, value) => (index, mask, value),
            };
            let conditions: Vec<ScmpArgCompare> = rule
                .iter()
                .map(compare)
                .map(|(index, mask, value)| {
                    let operator = ScmpCompareOp::MaskedEqual(mask.into());
                    ScmpArgCompare::new(index.into(), operator, value.into())
                })
                .collect();
            context.add_rule_conditional(ScmpAction::Allow, number, &conditions).unwrap();
        }
    }
    let mut exported = tempfile::tempfile().unwrap();
    context.export_bpf(&exported).unwrap();
    exported.rewind().unwrap();
    let mut bpf = Vec::new();
    exported.read_to_end(&mut bpf).unwrap();
    let instruction = |octets: &[u8]| {
        let code = u16::from_ne_bytes(octets[0..2].try_into().unwrap());
        (code, octets[2], octets[3], u32::from_ne_bytes(octets[4..8].try_into().unwrap()))
    };
    bpf.chunks_exact(8).map(instruction).collect()
}

const ALL: [Filter; 4] = [Filter::Parent, Filter::Worker, Filter::Reader, Filter::Renewer];

/// Values around everything that the tables compare.
fn arguments() -> Vec<[u64; 6]> {
    let high = 7u64 << 32;
    let first: Vec<u64> =
        (0..48).chain([0x1000_0000, 0x0002_0000, 0x4000_0011, u64::from(u32::MAX), high | 2]).collect();
    let second: Vec<u64> =
        [0, 1, 2, 3, 5, 10, 0x80801, 0x80802, 0x80803, high | 1, u64::MAX, libc::FIONREAD, libc::FIONBIO]
            .into();
    let third = [0u64, 6, 15, 16, 262, high | 15];
    let mut all = Vec::new();
    for &a in &first {
        for &b in &second {
            all.extend(third.iter().map(|&c| [a, b, c, 0, 0, 0]));
        }
    }
    all
}

#[test]
fn the_reference_library_judges_every_call_alike() {
    let arguments = arguments();
    for filter in ALL {
        let calls = table(filter);
        let (ours, theirs) = (ours(filter), theirs(&calls));
        let mut allowed = 0;
        for number in 0..=512 {
            let conditional =
                calls.iter().any(|call| call.number == i64::from(number) && !call.rules.is_empty());
            let arguments = if conditional { arguments.as_slice() } else { &arguments[..1] };
            for args in arguments {
                let (a, b) = (verdict(&ours, ARCH.0, number, *args), verdict(&theirs, ARCH.0, number, *args));
                assert_eq!(a, b, "{filter:?} call {number} {args:x?}");
                allowed += usize::from(a == ALLOW);
            }
        }
        assert!(allowed >= calls.len());
    }
}

#[test]
fn other_architectures_and_x32_numbers_never_pass() {
    for filter in ALL {
        let filter = ours(filter);
        assert_ne!(verdict(&filter, 0x4000_0003, 0, [0; 6]), ALLOW);
        for number in 0..=1024u32 {
            assert_ne!(verdict(&filter, ARCH.0, 0x4000_0000 | number, [0; 6]), ALLOW);
        }
    }
}

#[test]
fn the_parents_filter_contains_the_others() {
    let parent = ours(Filter::Parent);
    for filter in ALL {
        let inner = ours(filter);
        for call in table(filter) {
            for args in arguments() {
                let number = call.number as u32;
                if verdict(&inner, ARCH.0, number, args) == ALLOW {
                    let outer = verdict(&parent, ARCH.0, number, args);
                    assert_eq!(outer, ALLOW, "{filter:?} {} {args:x?}", call.name);
                }
            }
        }
    }
}

#[test]
fn what_would_lead_out_of_confinement_is_in_no_table() {
    let dangerous = [
        "ptrace",
        "process_vm_writev",
        "mount",
        "unshare",
        "setns",
        "bpf",
        "io_uring_setup",
        "keyctl",
        "kexec_load",
        "init_module",
        "open_by_handle_at",
        "userfaultfd",
        "perf_event_open",
        "chroot",
        "pivot_root",
        "reboot",
        "clone3",
        "pidfd_getfd",
        "kill",
    ];
    for name in dangerous {
        let number: i32 = ScmpSyscall::from_name(name).unwrap().into();
        for filter in ALL {
            assert_eq!(verdict(&ours(filter), ARCH.0, number as u32, [0; 6]), EPERM, "{filter:?} {name}");
        }
    }
    let exec: i32 = ScmpSyscall::from_name("execveat").unwrap().into();
    let socket: i32 = ScmpSyscall::from_name("socket").unwrap().into();
    for filter in [Filter::Worker, Filter::Reader, Filter::Renewer] {
        assert_eq!(verdict(&ours(filter), ARCH.0, exec as u32, [0; 6]), EPERM, "{filter:?}");
    }
    assert_eq!(verdict(&ours(Filter::Reader), ARCH.0, socket as u32, [2, 1, 0, 0, 0, 0]), EPERM);
}

#[test]
fn a_worker_under_its_filter_can_dial_but_not_start_a_program() {
    process::in_child(|| {
        nix::sys::prctl::set_no_new_privs().unwrap();
        install(Filter::Worker).unwrap();
        let listener = std::net::TcpStream::connect(("127.0.0.1", 1));
        assert_eq!(listener.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
        for (family, kind) in [
            (libc::AF_VSOCK, libc::SOCK_STREAM),
            (libc::AF_PACKET, libc::SOCK_RAW),
            (libc::AF_INET, libc::SOCK_RAW),
        ] {
            // SAFETY: creates a socket or does not.
            let socket = unsafe { libc::socket(family, kind, 0) };
            assert_eq!((socket, nix::errno::Errno::last()), (-1, nix::errno::Errno::EPERM), "{family}");
        }
        // SAFETY: refused before the kernel looks at the pointers.
        let started = unsafe { libc::syscall(libc::SYS_execve, c"/bin/true".as_ptr(), 0, 0) };
        assert_eq!((started, nix::errno::Errno::last()), (-1, nix::errno::Errno::EPERM));
    });
}

#[test]
fn limits_are_a_process_own_to_set() {
    let other = nix::unistd::getpid().as_raw();
    process::in_child(|| {
        nix::sys::prctl::set_no_new_privs().unwrap();
        install(Filter::Parent).unwrap();
        let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
        let mut look = |pid: libc::pid_t| {
            // SAFETY: sets nothing, and writes one limit into memory of its size.
            let done = unsafe {
                let none = std::ptr::null::<libc::rlimit64>();
                libc::syscall(libc::SYS_prlimit64, pid, libc::RLIMIT_CPU, none, &raw mut limit)
            };
            nix::errno::Errno::result(done).map(drop)
        };
        assert_eq!(look(0), Ok(()));
        // With a second of CPU time as its limit, a process of the same user would be killed as by a signal.
        assert_eq!(look(other), Err(nix::errno::Errno::EPERM));
    });
}
