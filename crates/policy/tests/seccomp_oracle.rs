//! The amended filters through the real libseccomp, as crun builds them, and the resulting program run on system calls:
//! what libseccomp makes of our rules is what counts, not what we think it does.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use serde_json::Value;
use terok_policy::amend::amend;
use terok_policy::policy::Policy;

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;
const X32_BIT: u32 = 0x4000_0000;
const ALLOW: u32 = 0x7fff_0000;
const EPERM: u32 = 0x0005_0001;
const ENOSYS: u32 = 0x0005_0026;

/// `NAME eperm` is NAME with the default of Docker's profile, EPERM instead of ENOSYS.
fn fixture(name: &str) -> Value {
    if let Some(name) = name.strip_suffix(" eperm") {
        let mut config = fixture(name);
        config["linux"]["seccomp"]["defaultErrnoRet"] = 1.into();
        return config;
    }
    let path = format!("{}/tests/fixtures/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn amended(name: &str, restricted: bool) -> Program {
    let mut config = fixture(name);
    if restricted {
        // Privileged and restricted is refused: what counts here is the filter.
        config["process"]["capabilities"] = serde_json::json!({});
    }
    let config = amend(config, &Policy { restricted, ..Policy::default() }).unwrap();
    compile(&config["linux"]["seccomp"])
}

/// crun's libcrun_generate_seccomp (src/libcrun/seccomp.c), step by step.
fn compile(seccomp: &Value) -> Program {
    let default = action(&seccomp["defaultAction"], &seccomp["defaultErrnoRet"]);
    let mut filter = ScmpFilterContext::new(default).unwrap();
    for arch in seccomp["architectures"].as_array().unwrap() {
        let arch = match arch.as_str().unwrap() {
            "SCMP_ARCH_X86_64" => ScmpArch::X8664,
            "SCMP_ARCH_X86" => ScmpArch::X86,
            "SCMP_ARCH_X32" => ScmpArch::X32,
            other => panic!("{other}"),
        };
        if !filter.is_arch_present(arch).unwrap() {
            filter.add_arch(arch).unwrap();
        }
    }
    for rule in seccomp["syscalls"].as_array().unwrap() {
        let action = action(&rule["action"], &rule["errnoRet"]);
        if action == default {
            continue;
        }
        let args: Vec<ScmpArgCompare> =
            rule["args"].as_array().into_iter().flatten().map(condition).collect();
        for name in rule["names"].as_array().unwrap() {
            let Ok(syscall) = ScmpSyscall::from_name(name.as_str().unwrap()) else { continue };
            let added = if args.is_empty() {
                filter.add_rule(action, syscall)
            } else {
                filter.add_rule_conditional(action, syscall, &args)
            };
            added.unwrap_or_else(|error| panic!("{rule}: {error}"));
        }
    }
    let mut file = tempfile::tempfile().unwrap();
    filter.export_bpf(&mut file).unwrap();
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut file).unwrap();
    std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
    assert!(bytes.len() / 8 <= 4096, "{} instructions: the kernel takes 4096", bytes.len() / 8);
    Program(bytes)
}

fn action(name: &Value, errno: &Value) -> ScmpAction {
    match name.as_str().unwrap() {
        "SCMP_ACT_ALLOW" => ScmpAction::Allow,
        "SCMP_ACT_ERRNO" => ScmpAction::Errno(errno.as_i64().unwrap_or(1) as i32),
        other => panic!("{other}"),
    }
}

fn condition(arg: &Value) -> ScmpArgCompare {
    let number = |key: &str| arg[key].as_u64().unwrap_or(0);
    let (op, datum) = match arg["op"].as_str().unwrap() {
        "SCMP_CMP_NE" => (ScmpCompareOp::NotEqual, number("value")),
        "SCMP_CMP_EQ" => (ScmpCompareOp::Equal, number("value")),
        "SCMP_CMP_GT" => (ScmpCompareOp::Greater, number("value")),
        "SCMP_CMP_MASKED_EQ" => (ScmpCompareOp::MaskedEqual(number("value")), number("valueTwo")),
        other => panic!("{other}"),
    };
    ScmpArgCompare::new(number("index") as u32, op, datum)
}

/// A classic BPF program over struct seccomp_data.
struct Program(Vec<u8>);

impl Program {
    fn run(&self, arch: u32, nr: u32, args: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend(nr.to_ne_bytes());
        data.extend(arch.to_ne_bytes());
        data.extend(0u64.to_ne_bytes());
        args.iter().for_each(|arg| data.extend(arg.to_ne_bytes()));
        let mut accumulator = 0u32;
        let mut scratch = [0u32; 16];
        let mut index_register = 0u32;
        let mut pc = 0usize;
        loop {
            let instruction = &self.0[pc * 8..pc * 8 + 8];
            let code = u16::from_ne_bytes([instruction[0], instruction[1]]);
            let (jump_true, jump_false) = (instruction[2] as usize, instruction[3] as usize);
            let k = u32::from_ne_bytes(instruction[4..8].try_into().unwrap());
            pc += 1;
            let mut branch = |taken: bool| pc += if taken { jump_true } else { jump_false };
            match code {
                0x20 => {
                    accumulator = u32::from_ne_bytes(data[k as usize..k as usize + 4].try_into().unwrap())
                }
                0x02 => scratch[k as usize] = accumulator,
                0x60 => accumulator = scratch[k as usize],
                0x61 => index_register = scratch[k as usize],
                0x07 => index_register = accumulator,
                0x87 => accumulator = index_register,
                0x54 => accumulator &= k,
                0x05 => pc += k as usize,
                0x15 => branch(accumulator == k),
                0x25 => branch(accumulator > k),
                0x35 => branch(accumulator >= k),
                0x06 => return k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    fn socket(&self, family: u64, kind: u64, protocol: u64) -> u32 {
        let args = [family, kind, protocol, 0, 0, 0];
        let verdicts =
            [self.run(X86_64, 41, args), self.run(X86_64, X32_BIT | 41, args), self.run(I386, 359, args)];
        assert!(verdicts.iter().all(|verdict| *verdict == verdicts[0]), "socket{args:?}: {verdicts:x?}");
        verdicts[0]
    }
}

const ALL: [&str; 10] = [
    // EPERM is its default.
    "docker-26.1-network",
    "podman-4.3-rootful",
    "podman-4.3-rootful-net-raw",
    "podman-4.3-rootful-privileged",
    "podman-4.3-rootful-unconfined",
    "podman-4.3-rootless",
    "podman-5.4-rootful",
    "podman-5.4-rootless",
    "podman-5.4-rootless-nnp",
    "podman-5.4-rootless eperm",
];
const CLOEXEC: u64 = 0o2_000_000;
const NONBLOCK: u64 = 0o4_000;

#[test]
fn the_sockets_that_programs_use_pass_on_every_abi() {
    for name in ALL {
        for restricted in [false, true] {
            let program = amended(name, restricted);
            for flags in [0, CLOEXEC, CLOEXEC | NONBLOCK] {
                for (family, kind, protocol) in [
                    (1, 1, 0),
                    (1, 2, 0),
                    (1, 5, 0),
                    (2, 1, 0),
                    (2, 1, 6),
                    (2, 1, 262),
                    (2, 2, 0),
                    (2, 2, 17),
                    (2, 2, 1),
                    (10, 1, 0),
                    (10, 1, 6),
                    (10, 1, 262),
                    (10, 2, 0),
                    (10, 2, 17),
                    (10, 2, 58),
                    (16, 3, 0),
                    (16, 2, 15),
                    (16, 3, 16),
                ] {
                    let verdict = program.socket(family, kind | flags, protocol);
                    assert_eq!(
                        verdict, ALLOW,
                        "{name}: socket({family}, {kind}|{flags:#o}, {protocol}) {verdict:#x}"
                    );
                }
            }
            assert_eq!(program.run(X86_64, 53, [1, 1 | CLOEXEC, 0, 0, 0, 0]), ALLOW, "{name}: socketpair");
            for (what, nr) in [("read", 0), ("connect", 42), ("execve", 59), ("openat", 257), ("clone", 56)] {
                assert_eq!(program.run(X86_64, nr, [17, 0, 0, 0, 0, 0]), ALLOW, "{name}: {what}");
            }
        }
    }
}

#[test]
fn every_other_family_is_refused_with_eperm_on_every_abi() {
    for name in ALL {
        for restricted in [false, true] {
            let raw = !restricted
                && (name.contains("net-raw") || name.starts_with("docker") || name.contains("privileged"));
            let program = amended(name, restricted);
            for family in (0..80).filter(|family| !([1, 2, 10, 16].contains(family) || raw && *family == 17))
            {
                for kind in [1, 2, 3, 4, 5, 10, 1 | CLOEXEC] {
                    assert_eq!(program.socket(family, kind, 0), EPERM, "{name}: socket({family}, {kind})");
                }
            }
            for family in [40, 17 + u64::from(raw), 38, 30, 43] {
                assert_ne!(
                    program.socket(family | 1 << 32, 1, 0),
                    ALLOW,
                    "{name}: family {family} with high bits"
                );
            }
            for family in 2..50 {
                assert_eq!(
                    program.run(X86_64, 53, [family, 1, 0, 0, 0, 0]),
                    EPERM,
                    "{name}: socketpair({family})"
                );
            }
        }
    }
}

#[test]
fn raw_sockets_and_other_transports_are_refused_with_eperm() {
    for name in ALL {
        let raw = name.contains("net-raw") || name.starts_with("docker") || name.contains("privileged");
        let program = amended(name, false);
        for family in [2, 10] {
            for kind in [3, 10, 3 | CLOEXEC] {
                assert_eq!(
                    program.socket(family, kind, 255) == ALLOW,
                    raw && (kind & 0xf == 3 || name.contains("privileged")),
                    "{name} {family} {kind}"
                );
            }
            for (kind, protocol) in [(1, 132), (5, 132), (2, 136), (6, 33), (1, 256), (5, 0)] {
                assert_eq!(
                    program.socket(family, kind, protocol),
                    EPERM,
                    "{name}: socket({family}, {kind}, {protocol})"
                );
                assert_ne!(program.socket(family, kind, protocol | 1 << 32), ALLOW);
            }
        }
        assert_eq!(program.socket(17, 3, 0x300) == ALLOW, raw, "{name}: AF_PACKET");
    }
}

#[test]
fn io_uring_and_the_i386_multiplexer_are_refused() {
    for name in ALL {
        let program = amended(name, false);
        for nr in 425..=427 {
            for (arch, nr) in [(X86_64, nr), (X86_64, nr | X32_BIT), (I386, nr)] {
                assert_eq!(program.run(arch, nr, [0; 6]), EPERM, "{name}: io_uring {nr:#x}");
            }
        }
        for call in 0..21 {
            for args in [[call, 0, 0, 0, 0, 0], [call, 1, 6, 0, 0, 0], [call, 0xffff_d000, 0, 0, 0, 0]] {
                let refused =
                    if name.ends_with("eperm") || name.starts_with("docker") { ENOSYS } else { EPERM };
                assert_eq!(program.run(I386, 102, args), refused, "{name}: socketcall({call})");
            }
        }
    }
}

#[test]
fn what_the_engine_refuses_stays_refused() {
    let netlink_audit = [16, 3, 9, 0, 0, 0];
    for name in ALL.iter().filter(|name| fixture(name)["linux"]["seccomp"].is_object()) {
        let (before, after) = (compile(&fixture(name)["linux"]["seccomp"]), amended(name, false));
        assert_eq!(before.run(X86_64, 41, netlink_audit), after.run(X86_64, 41, netlink_audit), "{name}");
        for (arch, nr) in (0..470).flat_map(|nr| [(X86_64, nr), (X86_64, nr | X32_BIT), (I386, nr)]) {
            for args in
                [[0; 6], [1, 1, 0, 0, 0, 0], [2, 1, 6, 0, 0, 0], [0x1000_0011, 0, 0, 0, 0, 0], [u64::MAX; 6]]
            {
                let (was, is) = (before.run(arch, nr, args), after.run(arch, nr, args));
                assert!(
                    was == ALLOW || is != ALLOW,
                    "{name}: {arch:#x} {nr} {args:x?}: was {was:#x}, is {is:#x}"
                );
            }
        }
    }
}

#[test]
fn restricted_refuses_what_takes_things_apart_on_every_abi() {
    for name in ALL {
        let program = amended(name, true);
        for (what, nr, i386) in [
            ("ptrace", 101, 26),
            ("mount", 165, 21),
            ("unshare", 272, 310),
            ("setns", 308, 346),
            ("bpf", 321, 357),
            ("userfaultfd", 323, 374),
            ("keyctl", 250, 288),
            ("perf_event_open", 298, 336),
            ("add_key", 248, 286),
            ("request_key", 249, 287),
            ("kexec_load", 246, 283),
            ("init_module", 175, 128),
            ("process_vm_readv", 310, 347),
            ("open_by_handle_at", 304, 342),
            ("syslog", 103, 103),
            ("io_uring_setup", 425, 425),
        ] {
            assert_eq!(program.run(X86_64, nr, [0; 6]), EPERM, "{name}: {what}");
            assert_eq!(program.run(I386, i386, [0; 6]), EPERM, "{name}: {what} of i386");
            // x32 has its own numbers for what takes pointers to structures (arch/x86/entry/syscalls/syscall_64.tbl).
            let x32 = match what {
                "ptrace" => 521,
                "kexec_load" => 528,
                "process_vm_readv" => 539,
                _ => nr,
            };
            let x32 = X32_BIT | x32;
            assert_eq!(program.run(X86_64, x32, [0; 6]), EPERM, "{name}: {what} of x32");
        }
        for bit in [0x2_0000, 0x200_0000, 0x400_0000, 0x800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000u64] {
            for (arch, nr) in [(X86_64, 56), (X86_64, 56 | X32_BIT), (I386, 120)] {
                assert_ne!(
                    program.run(arch, nr, [bit | 17, 0, 0, 0, 0, 0]),
                    ALLOW,
                    "{name}: clone({bit:#x})"
                );
            }
        }
        assert_eq!(program.run(X86_64, 435, [0; 6]), ENOSYS, "{name}: clone3 is ENOSYS");
    }
}
