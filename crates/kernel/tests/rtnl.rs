//! Links, addresses and routes, held against iproute2.
#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod support;

use std::time::{Duration, Instant};
use support::{has, in_netns, run};
use terok_kernel::rtnl::{Interface, Rtnl};

fn ip(args: &str) -> String {
    run("ip", &args.split(' ').collect::<Vec<_>>(), "").unwrap()
}

#[test]
fn lo_carries_everything_by_routes_of_last_resort() {
    if !has("ip") {
        return;
    }
    in_netns(|| {
        let rtnl = Rtnl::open().unwrap();
        assert!(rtnl.lo_up().unwrap());
        assert_eq!(
            ip("route").trim(),
            "default dev lo proto static scope link src 127.0.0.1 metric 4294967294"
        );
        let v6 = ip("-6 route");
        let ours = "default dev lo proto static src fd74:6572:6f6b:1::1 metric 4294967294";
        assert!(v6.lines().any(|line| line.starts_with(ours)), "{v6}");
        let addresses = ip("-6 -o addr show dev lo");
        assert!(addresses.contains("fd74:6572:6f6b:1::1/128"), "{addresses}");
        assert!(!addresses.contains("tentative"), "{addresses}");
        // Again, over what is there.
        assert!(rtnl.lo_up().unwrap());
    });
}

#[test]
fn a_namespace_without_ipv6_is_told_and_ipv4_works() {
    in_netns(|| {
        if let Err(e) = std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1") {
            return support::missing("netns", &format!("disable_ipv6 cannot be set: {e}"));
        }
        assert!(!Rtnl::open().unwrap().lo_up().unwrap());
        std::net::UdpSocket::bind("127.0.0.1:0").unwrap().connect("198.18.0.1:1").unwrap();
    });
}

#[test]
fn interfaces_are_listed_with_their_state() {
    if !has("ip") {
        return;
    }
    in_netns(|| {
        let rtnl = Rtnl::open().unwrap();
        let lo = Interface { index: 1, name: "lo".to_owned(), up: false, loopback: true };
        assert_eq!(rtnl.interfaces().unwrap(), std::slice::from_ref(&lo));
        rtnl.lo_up().unwrap();
        ip("link add eth0 type veth peer name eth1");
        ip("link set eth0 up");
        let found = rtnl.interfaces().unwrap();
        assert_eq!(found.len(), 3);
        assert_eq!(found[0], Interface { up: true, ..lo });
        let eth0 = found.iter().find(|i| i.name == "eth0").unwrap();
        assert!(eth0.up && !eth0.loopback);
        assert!(!found.iter().any(|i| i.name == "eth1" && i.up));
    });
}

#[test]
fn the_hosts_own_addresses_are_local_and_others_are_not() {
    if !has("ip") {
        return;
    }
    in_netns(|| {
        let rtnl = Rtnl::open().unwrap();
        // Nothing is up: no address has a route.
        assert!(!rtnl.is_local("192.0.2.1".parse().unwrap()).unwrap());
        for command in [
            "link set lo up",
            "link add eth0 type veth peer name eth1",
            "addr add 192.0.2.1/24 dev eth0",
            "addr add 2001:db8::1/64 dev eth0 nodad",
            "link set eth1 up",
            "link set eth0 up",
            "route add default via 192.0.2.254",
            "route add blackhole 198.51.100.0/24",
        ] {
            ip(command);
        }
        for own in [
            "127.0.0.1",
            "127.8.8.8",
            "::1",
            "192.0.2.1",
            "2001:db8::1",
            "::ffff:192.0.2.1",
            "192.0.2.255",
            "224.0.0.1",
            "255.255.255.255",
            "ff02::1",
        ] {
            // Links and the routes that come with them rise by and by.
            let deadline = Instant::now() + Duration::from_secs(5);
            while !rtnl.is_local(own.parse().unwrap()).unwrap() {
                assert!(Instant::now() < deadline, "{own}");
                std::thread::yield_now();
            }
        }
        for other in ["192.0.2.2", "8.8.8.8", "2001:db8::2", "2001:db9::1", "::ffff:8.8.8.8"] {
            assert!(!rtnl.is_local(other.parse().unwrap()).unwrap(), "{other}");
        }
        assert!(rtnl.is_local("198.51.100.1".parse().unwrap()).is_err());
    });
}

#[test]
fn our_ipv6_address_answers_as_soon_as_lo_is_up() {
    for _ in 0..50 {
        in_netns(|| {
            let rtnl = Rtnl::open().unwrap();
            rtnl.lo_up().unwrap();
            assert!(rtnl.is_local(terok_policy::virt::V6_SELF.into()).unwrap());
        });
    }
}
