//! kill -9 before every single system call that changes a file: what was reported is there, and the rest happened or did not.
#![cfg(target_arch = "x86_64")]
#![allow(
    clippy::unwrap_used,
    unsafe_code,
    reason = "a failed unwrap is a failed test; the child asks to be traced between fork and exec"
)]

mod support;

use nix::libc;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use support::{NOW, PASSPHRASE, add, api_key};
use terok_vault::{Cost, Dir, Error, Restore, Secret, Store};

const OTHER: &str = "another horse";
type Contents = BTreeMap<String, String>;

/// One thing after the other, each reported when it is done.
fn run(folder: &Path) {
    let done = |what: &str| println!("\ndone: {what}");
    let dir = Dir::base(folder).unwrap();
    let copy = folder.join("copy");
    let (mut store, key) = Store::create(&dir, PASSPHRASE, Cost::LEAST, NOW).unwrap();
    done("create");
    let first = add(&mut store, &key, "p", "a", "1");
    done("add a");
    add(&mut store, &key, "p", "b", "1");
    done("add b");
    store.replace_secret(&key, &first, &api_key("2"), None, NOW).unwrap();
    done("replace a");
    store.change_passphrase(&key, OTHER, Cost::LEAST).unwrap();
    done("passphrase");
    assert!(store.remove_named("p", "b").unwrap());
    done("remove b");
    add(&mut store, &key, "p", "c", &"long".repeat(5000));
    done("add c");
    store.backup(&copy).unwrap();
    done("backup");
    add(&mut store, &key, "p", "d", "1");
    done("add d");
    drop(store);
    done("close");
    Restore::new(&dir, &copy).unwrap().finish().unwrap();
    done("restore");
    let mut store = Store::open(&dir).unwrap();
    add(&mut store, &key, "p", "e", "1");
    done("add e");
}

/// What there is after so many reports.
fn expected(reports: usize) -> Option<(&'static str, Contents)> {
    let long = "long".repeat(5000);
    let long = long.as_str();
    let (passphrase, contents): (_, &[(&str, &str)]) = match reports {
        0 => return None,
        1 => (PASSPHRASE, &[]),
        2 => (PASSPHRASE, &[("a", "1")]),
        3 => (PASSPHRASE, &[("a", "1"), ("b", "1")]),
        4 => (PASSPHRASE, &[("a", "2"), ("b", "1")]),
        5 => (OTHER, &[("a", "2"), ("b", "1")]),
        6 => (OTHER, &[("a", "2")]),
        7 | 8 | 11 => (OTHER, &[("a", "2"), ("c", long)]),
        9 | 10 => (OTHER, &[("a", "2"), ("c", long), ("d", "1")]),
        _ => (OTHER, &[("a", "2"), ("c", long), ("e", "1")]),
    };
    Some((passphrase, contents.iter().map(|(name, secret)| (name.to_string(), secret.to_string())).collect()))
}

/// What there is.
fn found(folder: &Path) -> Option<(&'static str, Contents)> {
    let dir = Dir::base(folder).unwrap();
    let store = match Store::open(&dir) {
        Err(Error::None { .. }) => return None,
        opened => opened.unwrap(),
    };
    let opens = [PASSPHRASE, OTHER].into_iter().find_map(|p| Some((p, store.unlock(p).ok()?)));
    let (passphrase, key) = opens.expect("one of the passphrases opens it");
    assert_eq!(store.damaged(Some(&key)).unwrap(), [""; 0]);
    let mut contents = Contents::new();
    for record in store.records().unwrap() {
        let Secret::Key(secret) = store.open_secret(&key, &record).unwrap() else { panic!("{record:?}") };
        contents.insert(record.name, secret.to_string());
    }
    Some((passphrase, contents))
}

#[test]
fn killed_before_any_write_the_vault_holds_all_that_was_reported() {
    if let Some(folder) = support::child() {
        return run(&folder);
    }
    let mut kills = 0;
    loop {
        // Memory where there is: a killed process loses nothing that the kernel has.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let (reports, killed) = kill_before(kills, folder.path());
        let there = found(folder.path());
        let either = [expected(reports), expected(reports + 1)];
        assert!(either.contains(&there), "killed before change {kills}, after {reports} reports: {there:?}");
        goes_on(folder.path());
        if !killed {
            assert_eq!(reports, 12, "the child did all");
            break;
        }
        kills += 1;
    }
    println!("{kills} kills");
    assert!(kills > 100, "only {kills} changes were seen: the tracer is blind");
}

/// A vault that was left behind takes the next change, and a restore that was cut short can be repeated.
fn goes_on(folder: &Path) {
    let dir = Dir::base(folder).unwrap();
    let (mut store, key) = match Store::open(&dir) {
        Err(_) => Store::create(&dir, PASSPHRASE, Cost::LEAST, NOW).unwrap(),
        Ok(store) => {
            let key = store.unlock(PASSPHRASE).or_else(|_| store.unlock(OTHER)).unwrap();
            (store, key)
        }
    };
    add(&mut store, &key, "p", "z", "1");
    assert_eq!(support::secret(&store, &key, "p", "z"), "1");
    let copy = folder.join("another copy");
    store.backup(&copy).unwrap();
    drop(store);
    Restore::new(&dir, &copy).unwrap().finish().unwrap();
    let store = Store::open(&dir).unwrap();
    assert_eq!(support::secret(&store, &key, "p", "z"), "1");
}

/// Runs the child and kills it before its change number `limit` of a file. How many reports it made, and whether it was killed.
fn kill_before(limit: usize, folder: &Path) -> (usize, bool) {
    let mut command = support::again("killed_before_any_write_the_vault_holds_all_that_was_reported", folder);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    // SAFETY: ptrace is a bare system call.
    unsafe { command.pre_exec(|| Ok(ptrace::traceme()?)) };
    let mut child = command.spawn().unwrap();
    let pid = Pid::from_raw(child.id() as i32);
    // At its exec.
    waitpid(pid, None).unwrap();
    use ptrace::Options;
    let options = Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL | Options::PTRACE_O_TRACECLONE;
    ptrace::setoptions(pid, options).unwrap();
    ptrace::syscall(pid, None).unwrap();
    let mut changes = 0;
    // The test's harness runs it in a thread: those that are in a system call.
    let mut inside = BTreeSet::new();
    let killed = loop {
        match waitpid(None, Some(WaitPidFlag::__WALL)).unwrap() {
            WaitStatus::PtraceSyscall(thread) => {
                if !inside.remove(&thread) {
                    inside.insert(thread);
                    if changes_a_file(thread) {
                        if changes == limit {
                            child.kill().unwrap();
                            break true;
                        }
                        changes += 1;
                    }
                }
                ptrace::syscall(thread, None).unwrap();
            }
            // A thread's first stop is not a signal for it.
            WaitStatus::Stopped(thread, Signal::SIGSTOP) => ptrace::syscall(thread, None).unwrap(),
            WaitStatus::Stopped(thread, signal) => ptrace::syscall(thread, signal).unwrap(),
            WaitStatus::PtraceEvent(thread, ..) => ptrace::syscall(thread, None).unwrap(),
            WaitStatus::Exited(thread, code) if thread == pid => {
                assert_eq!(code, 0, "the child failed by itself");
                break false;
            }
            WaitStatus::Exited(..) => {}
            other => panic!("{other:?}"),
        }
    };
    // The rest of its threads' ends, so that the next child's are not mixed up with them.
    while waitpid(None, Some(WaitPidFlag::__WALL)).is_ok() {}
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    // Reaped above, with its threads.
    let _ = child.wait();
    (said.lines().filter(|line| line.starts_with("done: ")).count(), killed)
}

fn changes_a_file(pid: Pid) -> bool {
    let registers = ptrace::getregs(pid).unwrap();
    let makes = |flags: u64| flags as i32 & (libc::O_CREAT | libc::O_TRUNC) != 0;
    match registers.orig_rax as i64 {
        // Standard output is no file here.
        libc::SYS_write => registers.rdi > 2,
        libc::SYS_open => makes(registers.rsi),
        libc::SYS_openat => makes(registers.rdx),
        // Its flags are in memory: any may make a file.
        libc::SYS_openat2 => true,
        libc::SYS_pwrite64 | libc::SYS_ftruncate | libc::SYS_fsync | libc::SYS_fdatasync => true,
        libc::SYS_unlink
        | libc::SYS_unlinkat
        | libc::SYS_rename
        | libc::SYS_renameat
        | libc::SYS_renameat2 => true,
        libc::SYS_link | libc::SYS_linkat | libc::SYS_mkdirat | libc::SYS_mkdir => true,
        libc::SYS_copy_file_range | libc::SYS_sendfile | libc::SYS_splice => true,
        _ => false,
    }
}
