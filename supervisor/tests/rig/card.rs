//! A card for the container: a veth to a router with servers behind it, as Podman's bridge is.

use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::process::{Child, Command, Stdio};
use terok_kernel::rtnl::Rtnl;
use terok_policy::plan::{HostFacts, Network};

/// Addresses behind the router.
pub(crate) const SERVER: &str = "198.51.100.1";

/// The network namespace of the other end, held by a process in it.
pub(crate) struct Router(Child);

impl Router {
    /// Attaches `eth0` to the namespace of process `container`, which this thread is in.
    pub(crate) fn attach(container: u32) -> Self {
        let hold = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let mut sleep = Command::new("sleep");
            sleep.arg("600").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            Router(sleep.spawn().unwrap())
        };
        let router = std::thread::spawn(hold).join().unwrap();
        let ends = format!(
            "ip link set lo up; ip addr add {SERVER}/32 dev lo; ip link add out0 type veth peer name eth0 netns {container};
             ip addr add 10.88.0.1/24 dev out0; ip link set out0 up"
        );
        router.run(move || sh(&ends));
        sh("ip addr add 10.88.0.2/24 dev eth0; ip link set eth0 up; ip route add default via 10.88.0.1");
        router
    }

    /// Runs `job` there.
    pub(crate) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let netns = File::open(format!("/proc/{}/ns/net", self.0.id())).unwrap();
        let thread = std::thread::spawn(move || {
            setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
            job()
        });
        thread.join().unwrap()
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The facts of a container with the cards of this thread's namespace.
pub(crate) fn facts(ipv6: bool) -> HostFacts {
    let cards = Rtnl::open().unwrap().cards().unwrap();
    HostFacts { network: Network::Filtered, cards, ..HostFacts::sealed(ipv6) }
}

/// Runs a script in this thread's namespace.
pub(crate) fn sh(script: &str) {
    assert!(Command::new("sh").args(["-ec", script]).status().unwrap().success(), "{script}");
}
