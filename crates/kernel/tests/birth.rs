//! L3, Clean birth: what a hook inherits from crun, and what a program started by us inherits.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(unsafe_code, reason = "makes the mess that has to be cleaned up")]

mod process;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::stat::{Mode, umask};
use process::{in_child, status};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use terok_kernel::birth;
use terok_kernel::program::{Exit, Program};

/// What crun 1.8 to 1.28 hands to a hook, and worse.
fn be_born_badly() -> i32 {
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None).unwrap();
    for signal in [libc::SIGTERM, libc::SIGCHLD, libc::SIGUSR1] {
        // SAFETY: ignores a signal.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    umask(Mode::empty());
    setrlimit(Resource::RLIMIT_NOFILE, 64, getrlimit(Resource::RLIMIT_NOFILE).unwrap().1).unwrap();
    // SAFETY: one thread in this child.
    unsafe { std::env::set_var("LD_PRELOAD", "/evil.so") };
    let leaked = std::fs::File::open("/dev/null").unwrap();
    std::os::fd::IntoRawFd::into_raw_fd(leaked)
}

#[test]
fn whatever_was_inherited_is_put_right() {
    in_child(|| {
        let leaked = be_born_badly();
        // SAFETY: standard input is nobody's in this child.
        unsafe { libc::close(0) };
        birth::clean().unwrap();
        birth::close_from(3).unwrap();
        assert_eq!(status("SigBlk"), "0".repeat(16));
        assert_eq!(status("SigIgn"), format!("{:016x}", 1 << (libc::SIGPIPE - 1)));
        assert_eq!(status("Umask"), "0077");
        assert_eq!(std::env::current_dir().unwrap(), std::path::Path::new("/"));
        assert_eq!(std::env::vars_os().count(), 0);
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(soft, hard);
        assert_eq!(getrlimit(Resource::RLIMIT_CORE).unwrap(), (0, 0));
        assert!(!std::path::Path::new(&format!("/proc/self/fd/{leaked}")).exists());
        assert_eq!(std::fs::read_link("/proc/self/fd/0").unwrap(), std::path::Path::new("/dev/null"));
    });
}

/// Not a test of its own: what [`a_started_program_has_its_descriptors_and_nothing_else`] starts.
#[test]
#[ignore = "started by another test, with descriptors of its choice"]
fn newborn() {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap().map(|fd| fd.unwrap());
    let fds: Vec<String> = fds
        .filter_map(|fd| {
            Some(format!("{}={}", fd.file_name().to_str()?, fd.path().read_link().ok()?.display()))
        })
        .collect();
    println!("fds {}", fds.join(" "));
    println!("env {}", std::env::vars_os().count());
    println!("sid {}", nix::unistd::getsid(None).unwrap() == nix::unistd::getpid());
}

#[test]
fn a_started_program_has_its_descriptors_and_nothing_else() {
    let leak = std::fs::File::open("/proc/version").unwrap();
    nix::fcntl::fcntl(&leak, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let null = std::fs::File::open("/dev/null").unwrap();
    let (mut out, into) = std::io::pipe().unwrap();
    let passed = std::fs::File::open("/etc/passwd").unwrap();
    // The order asks for each number that another source sits on.
    let fds = [null.as_fd(), into.as_fd(), into.as_fd(), passed.as_fd()];
    let args = ["--exact", "newborn", "--ignored", "--nocapture", "--test-threads=1"];
    let child = Program::own().unwrap().spawn(&args, &fds).unwrap();
    drop(into);
    let mut said = String::new();
    out.read_to_string(&mut said).unwrap();
    assert!(child.pidfd().wait(std::time::Duration::from_secs(60)));
    assert_eq!(child.reap().unwrap(), Some(Exit::Code(0)), "{said}");
    assert!(said.contains("3=/etc/passwd"), "{said}");
    assert!(!said.contains("/proc/version"), "{said}");
    assert!(said.contains("env 0") && said.contains("sid true"), "{said}");
    assert!(leak.as_raw_fd() > 2);
}

#[test]
fn a_program_that_cannot_be_executed_is_an_error_and_leaves_no_child() {
    let error = Program::sibling("no-such-program").unwrap_err();
    assert!(error.is_missing(), "{error}");
    let folder = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let path = folder.join(format!("not-a-program-{}", std::process::id()));
    std::fs::write(&path, "neither ELF nor script").unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let program = Program::sibling(path.file_name().unwrap().to_str().unwrap()).unwrap();
    // A test beside this one may have forked while the file was open for writing: busy until its child has executed.
    let errno = loop {
        match program.spawn(&[], &[]).unwrap_err().errno() {
            Some(nix::errno::Errno::ETXTBSY) => std::thread::yield_now(),
            errno => break errno,
        }
    };
    assert_eq!(errno, Some(nix::errno::Errno::ENOEXEC));
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let refused = Program::sibling(path.file_name().unwrap().to_str().unwrap()).unwrap_err();
    assert!(refused.to_string().contains("may be changed by others"), "{refused}");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_killed_child_takes_its_group_along() {
    let null = std::fs::File::open("/dev/null").unwrap();
    let (mut out, into) = std::io::pipe().unwrap();
    let args = ["--exact", "parent_of_a_sleeper", "--ignored", "--nocapture"];
    let child = Program::own().unwrap().spawn(&args, &[null.as_fd(), into.as_fd(), null.as_fd()]).unwrap();
    drop(into);
    let mut seen = String::new();
    while !seen.contains("asleep") {
        let mut octet = [0];
        out.read_exact(&mut octet).unwrap();
        seen.push(octet[0] as char);
    }
    child.kill().unwrap();
    // The pipe ends only when the sleeper, which holds it too, is dead.
    out.read_to_string(&mut seen).unwrap();
}

#[test]
#[ignore = "started by another test"]
fn parent_of_a_sleeper() {
    let mut sleeper = std::process::Command::new("/bin/sleep").arg("600").spawn().unwrap();
    println!("asleep");
    sleeper.wait().unwrap();
}
