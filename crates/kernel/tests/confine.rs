//! L7: after confinement the kernel itself refuses files, ports, signals and capabilities.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod process;

use process::{in_child, status};
use std::fs;
use std::os::fd::AsFd;
use terok_kernel::capabilities::{self, Kept};
use terok_kernel::confine::{Confinement, Layer, confine};
use terok_kernel::landlock::{self, Allowed, Enforced};
use terok_kernel::pidfd::PidFd;
use terok_kernel::seccomp::Filter;

#[test]
fn only_the_files_that_were_named_can_be_touched() {
    let folder = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("there"), "x").unwrap();
    fs::write(other.path().join("secret"), "x").unwrap();
    let own = fs::File::open(folder.path()).unwrap();
    in_child(|| {
        nix::sys::prctl::set_no_new_privs().unwrap();
        let read = vec!["/etc/hosts".into(), "/no/such/file".into()];
        let enforced = landlock::restrict(&Allowed { read, write: vec![own.as_fd()], ..Allowed::default() });
        if let Enforced::No(reason) = &enforced {
            terok_need::missing("landlock", reason);
            return;
        }
        assert_eq!(fs::read_to_string(folder.path().join("there")).unwrap(), "x");
        fs::write(folder.path().join("new"), "y").unwrap();
        fs::rename(folder.path().join("new"), folder.path().join("newer")).unwrap();
        fs::read("/etc/hosts").unwrap();
        for path in ["/etc/passwd", "/proc/self/status", "/etc"] {
            assert!(fs::File::open(path).is_err(), "{path}");
        }
        assert!(fs::read(other.path().join("secret")).is_err());
        assert!(fs::write(other.path().join("new"), "").is_err());
        if matches!(enforced, Enforced::Full(_)) {
            assert!(std::net::TcpListener::bind("127.0.0.1:0").is_err());
            assert!(std::process::Command::new("/bin/true").status().is_err());
            let parent = PidFd::open(nix::unistd::getppid().as_raw()).unwrap();
            let refused = parent.signal(nix::sys::signal::Signal::SIGCONT).unwrap_err();
            assert_eq!(refused.errno(), Some(nix::errno::Errno::EPERM));
        }
    });
}

#[test]
fn capabilities_are_gone_and_do_not_come_back_by_exec() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root has capabilities to give up");
        return;
    }
    in_child(|| {
        capabilities::keep_only(&[Kept::NetAdmin]).unwrap();
        let net_admin = format!("{:016x}", 1 << 12);
        for set in ["CapPrm", "CapEff", "CapBnd"] {
            assert_eq!(status(set), net_admin, "{set}");
        }
        assert!(capabilities::has_net_admin());
        assert_eq!(capabilities::effective().unwrap(), ["CAP_NET_ADMIN"]);
        capabilities::keep_only(&[]).unwrap();
        for set in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
            assert_eq!(status(set), "0".repeat(16), "{set}");
        }
        nix::sys::prctl::set_no_new_privs().unwrap();
        let executed =
            std::process::Command::new("/bin/grep").args(["CapEff", "/proc/self/status"]).output().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&executed.stdout).split_whitespace().last(),
            Some("0000000000000000")
        );
    });
}

#[test]
fn every_layer_is_reported_and_holds() {
    in_child(|| {
        let files = Allowed { read: vec!["/proc".into()], ..Allowed::default() };
        let layers = confine(&Confinement { keep: &[], files, calls: Filter::Worker });
        assert_eq!(layers.len(), 5);
        assert_eq!(layers[2], Layer::Holds("no-new-privs".into()));
        assert_eq!(layers[4], Layer::Holds("seccomp".into()));
        assert_eq!(status("NoNewPrivs"), "1");
        assert_eq!(status("Seccomp"), "2");
        assert_eq!(status("CapEff"), "0".repeat(16));
        assert!(!nix::sys::prctl::get_dumpable().is_ok_and(|dumpable| dumpable));
    });
}

#[test]
fn hidden_memory_is_in_no_core_dump() {
    in_child(|| {
        terok_kernel::program::hide_memory().unwrap();
        assert!(!nix::sys::prctl::get_dumpable().unwrap());
        // Its own /proc stays readable for it.
        fs::read_link("/proc/self/exe").unwrap();
        assert!(fs::read_dir("/proc/self/fd").unwrap().count() > 0);
    });
}

#[test]
fn a_missing_layer_says_its_name_and_the_reason() {
    let layer = Layer::Missing("landlock", "not in this kernel".into());
    assert_eq!(layer.to_string(), "no-landlock: not in this kernel");
}
