//! Network namespaces: held by descriptor, entered by a thread that never comes back, told apart, never mistaken.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(unsafe_code, reason = "unshares in a child between fork and exec")]

use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use terok_kernel::netns::{NetNs, own_userns};
use terok_kernel::pidfd::PidFd;
use terok_kernel::socket;

/// A sleeper in a network namespace of its own, `None` (said why) where none can be made.
fn sleeper() -> Option<(Child, PidFd)> {
    let mut command = Command::new("/bin/sleep");
    let unshare = || Ok(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?);
    // SAFETY: unshare is a bare system call.
    unsafe { command.arg("600").pre_exec(unshare) };
    match command.spawn() {
        Ok(child) => {
            let pidfd = PidFd::open(child.id() as i32).unwrap();
            Some((child, pidfd))
        }
        Err(error) => {
            terok_need::missing("netns", error);
            None
        }
    }
}

#[test]
fn a_socket_made_inside_belongs_there_and_the_caller_stays_outside() {
    let Some((mut child, pidfd)) = sleeper() else { return };
    let own = NetNs::own().unwrap();
    let there = NetNs::of(child.id() as i32, &pidfd).unwrap();
    assert_ne!(own, there);
    let listener = there
        .run(|| {
            assert_eq!(NetNs::own().unwrap(), there);
            // Nothing is up there, and no port of ours is taken there.
            assert!(std::net::TcpStream::connect("127.0.0.1:1").is_err());
            socket::tcp_loopback(false).unwrap()
        })
        .unwrap();
    assert_eq!(NetNs::own().unwrap(), own);
    assert!(std::net::TcpStream::connect(("127.0.0.1", listener.port)).is_err());
    assert_eq!(there.processes(9).unwrap(), [child.id() as i32]);
    assert_eq!(there.owning_userns().unwrap(), own_userns().unwrap());
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_process_that_died_has_no_namespace_even_if_its_number_lives_on() {
    let mut child = Command::new("/bin/sleep").arg("600").spawn().unwrap();
    let pidfd = PidFd::open(child.id() as i32).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    // The number of a living process, the pidfd of a dead one: as if the number had been given away.
    let pid = std::process::id() as i32;
    assert_eq!(NetNs::of(pid, &pidfd).unwrap_err(), terok_kernel::Error::Gone { pid });
}

#[test]
fn a_panic_inside_is_a_panic_outside() {
    let own = NetNs::own().unwrap();
    if own.run(|| ()).is_err() {
        eprintln!("skipped: netns: no right to enter a namespace");
        return;
    }
    assert!(std::panic::catch_unwind(|| own.run(|| panic!("inside"))).is_err());
}
