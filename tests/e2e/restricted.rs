//! `terok.restricted`: what takes things apart gets EPERM by each of its numbers, and ordinary tools do not notice.

use terok_tests::{Mode, Recipe, both_modes, site};

/// Calls by number, x86-64: what each gives in a restricted container. x32's numbers have bit 30 set.
const CALLS: &str = r#"
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
def call(name, number, *args):
    ctypes.set_errno(0)
    if libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, args)) >= 0: print(name, 0)
    else: print(name, ctypes.get_errno())
X32, USER = 1 << 30, 0x10000000
call("keyctl", 250, 0, -3, 0); call("keyctl x32", X32 | 250, 0, -3, 0); call("add_key", 248, 0, 0, 0, 0, 0)
call("userns", 272, USER); call("userns x32", X32 | 272, USER); call("clone userns", 56, USER | 17, 0, 0, 0, 0)
call("io_uring", 425, 4, 0); call("io_uring x32", X32 | 425, 4, 0)
call("bpf", 321, 0, 0, 0); call("userfaultfd", 323, 0); call("perf", 298, 0, 0, -1, -1, 0)
call("ptrace", 101, 16, 1, 0, 0); call("ptrace x32", X32 | 521, 16, 1, 0, 0); call("process_vm_readv", 310, 1, 0, 0, 0, 0, 0)
call("mount", 165, 0, 0, 0, 0, 0); call("setns", 308, 0, 0); call("kexec_load", 246, 0, 0, 0, 0); call("syslog", 103, 3, 0, 0)
call("clone3", 435, 0, 0)
call("getpid", 39)
"#;

/// What is hidden reads empty, and no setting of the kernel's is written.
const FILES: &str = "cat /proc/keys /proc/timer_list /proc/interrupts /proc/kcore 2>/dev/null | wc -c; ls -A /sys/firmware 2>/dev/null | wc -l
    (echo x > /proc/sys/kernel/domainname) 2>/dev/null && echo written; (echo b > /proc/sysrq-trigger) 2>/dev/null; true";

fn restricted(mode: Mode, rules: &str) -> Recipe {
    Recipe::sealed(mode, rules).annotate("restricted", "true").debian()
}

both_modes! {
    fn what_takes_things_apart_is_refused_by_each_of_its_numbers(mode: Mode) {
        let calls = |recipe: Recipe| recipe.run(&["python3", "-c", CALLS]).1.succeeded();
        let out = calls(restricted(mode, ""));
        for line in out.lines() {
            let (name, errno) = line.rsplit_once(' ').expect("a name and a number");
            let expected = match name {
                "getpid" => "0",
                "clone3" => "38",
                _ => "1",
            };
            assert_eq!(errno, expected, "{name}: {out}");
        }
        assert_eq!(out.lines().count(), 20, "{out}");
        let free = calls(Recipe::sealed(mode, "").debian());
        for line in ["keyctl 0", "userns 0", "process_vm_readv 0"] {
            assert!(free.lines().any(|free| free == line), "{line} without it, or this shows nothing: {free}");
        }
    }

    fn no_privilege_and_no_file_of_the_kernels(mode: Mode) {
        let status = restricted(mode, "").run(&["cat", "/proc/self/status"]).1.succeeded();
        for line in ["NoNewPrivs:\t1", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "Seccomp:\t2"] {
            assert!(status.contains(line), "{line}: {status}");
        }
        for unmasked in [None, Some("--security-opt=unmask=ALL")] {
            let recipe = unmasked.iter().fold(restricted(mode, ""), |recipe, option| recipe.option(option));
            let files = recipe.run(&["sh", "-c", FILES]).1.succeeded();
            assert_eq!(files, "0\n0\n", "{unmasked:?}");
        }
    }

    /// Of a privileged container the host's devices would stay, and nothing would say so.
    fn privileged_at_once_is_refused(mode: Mode) {
        let said = restricted(mode, "").option("--privileged").run(&["true"]).1.failed();
        assert!(said.contains("--privileged") && said.contains("terok.restricted"), "{said}");
        restricted(mode, "").option("--cap-add=all").run(&["true"]).1.succeeded();
    }

    fn git_python_and_node_work(mode: Mode) {
        let site = site();
        let rules = format!("git.example.com {}", site.name);
        let script = format!("
            git clone -q https://git.example.com/git/repo.git /tmp/r; cat /tmp/r/README
            python3 -c 'import subprocess, threading, urllib.request as u
def get(): print(u.urlopen(\"https://{0}/python\").read().decode())
t = threading.Thread(target=get); t.start(); t.join()
print(subprocess.run([\"git\", \"--version\"], capture_output=True, text=True).stdout)
import multiprocessing; print(sum(multiprocessing.Pool(2).map(abs, [-1, 2])))'
            node -e 'const {{ Worker }} = require(\"worker_threads\");
                require(\"child_process\").execFileSync(\"git\", [\"--version\"]);
                new Worker(\"console.log(6 * 7)\", {{ eval: true }}).on(\"exit\", () =>
                    fetch(\"https://{0}/node\").then(r => r.text()).then(t => console.log(t)))'", site.name);
        let out = restricted(mode, &rules).run(&["sh", "-ec", &script]).1.succeeded();
        for word in ["hello from the lab", "path=/python", "git version", "\n3\n", "42", "path=/node"] {
            assert!(out.contains(word), "{word}: {out}");
        }
    }
}

/// Where this machine has a Rust toolchain that the container may be shown. A library: the image has no linker.
#[test]
fn cargo_build_works() {
    let Some(_lab) = terok_tests::Lab::open() else { return };
    let Ok(toolchain) = std::fs::read_dir("/root/.rustup/toolchains")
        .map(|all| all.flatten().map(|entry| entry.path()).find(|path| path.join("bin/cargo").exists()))
    else {
        return eprintln!("skipped: no Rust toolchain below /root/.rustup");
    };
    let toolchain = toolchain.expect("a toolchain with cargo").display().to_string();
    let script = "cargo new -q --lib --vcs none /tmp/one; cd /tmp/one; cargo build -q --offline; ls target/debug/*.rlib";
    let out = restricted(Mode::Rootful, "")
        .option(&format!("--volume={toolchain}:/rust:ro"))
        .option("--env=PATH=/rust/bin:/usr/bin:/bin")
        .run(&["sh", "-ec", script])
        .1
        .succeeded();
    assert!(out.contains("libone.rlib"), "{out}");
}
