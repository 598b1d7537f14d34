//! Running a test's dangerous half in a child process: what it does to itself ends with it.
#![allow(dead_code, unreachable_pub, reason = "every test binary uses a part")]
#![allow(unsafe_code, reason = "fork")]

use nix::sys::wait::{WaitStatus, waitpid};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `test` in a forked child and fails if it fails there.
pub fn in_child(test: impl FnOnce()) {
    // SAFETY: the child has one thread; it runs `test` and leaves without unwinding into the harness.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        0 => {
            let passed = catch_unwind(AssertUnwindSafe(test)).is_ok();
            // SAFETY: ends the child without the harness's exit handlers.
            unsafe { libc::_exit(i32::from(!passed)) }
        }
        child => {
            let ended = waitpid(nix::unistd::Pid::from_raw(child), None).unwrap();
            assert!(matches!(ended, WaitStatus::Exited(_, 0)), "child: {ended:?}");
        }
    }
}

/// A field of this thread's status, as the kernel prints it.
pub fn status(field: &str) -> String {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field}")).trim().to_owned()
}
