//! Links, addresses and routes, held against iproute2.
#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod support;

use std::os::unix::ffi::OsStrExt;
use std::process::Command;
use std::time::{Duration, Instant};
use support::{has, in_netns, run};
use terok_kernel::rtnl::{self, Interface, Rtnl};
use terok_policy::rule::Cidr;

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
        let v4 = ip("route");
        let ours = [
            "default dev lo proto static scope link src 127.0.0.1 metric 4294967294",
            "198.18.0.0/15 dev lo proto static scope link src 127.0.0.1",
        ];
        assert_eq!(v4.lines().map(str::trim).collect::<Vec<_>>(), ours);
        let v6 = ip("-6 route");
        for ours in [
            "default dev lo proto static src fd74:6572:6f6b:1::1 metric 4294967294",
            "fd74:6572:6f6b::/64 dev lo proto static src fd74:6572:6f6b:1::1 metric 1024",
        ] {
            assert!(v6.lines().any(|line| line.starts_with(ours)), "{v6}");
        }
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
            return support::missing("netns", format!("disable_ipv6 cannot be set: {e}"));
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
        let lo = Interface { index: 1, name: "lo".to_owned(), up: false, loopback: true, kind: None };
        assert_eq!(rtnl.interfaces().unwrap(), std::slice::from_ref(&lo));
        rtnl.lo_up().unwrap();
        ip("link add eth0 type veth peer name eth1");
        ip("link set eth0 up");
        let found = rtnl.interfaces().unwrap();
        assert_eq!(found.len(), 3);
        assert_eq!(found[0], Interface { up: true, ..lo });
        let eth0 = found.iter().find(|i| i.name == "eth0").unwrap();
        assert!(eth0.up && !eth0.loopback);
        assert_eq!(eth0.kind.as_deref(), Some("veth"));
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
            let deadline = Instant::now() + Duration::from_secs(60);
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

fn net(text: &str) -> Cidr {
    let (addr, prefix) = text.split_once('/').unwrap();
    Cidr { addr: addr.parse().unwrap(), prefix: prefix.parse().unwrap() }
}

#[test]
fn cards_have_their_connected_networks_and_gateways() {
    if !has("ip") {
        return;
    }
    in_netns(|| {
        let rtnl = Rtnl::open().unwrap();
        rtnl.lo_up().unwrap();
        assert_eq!(rtnl.cards().unwrap(), []);
        for command in [
            "link add eth0 type veth peer name eth1",
            "tuntap add tap0 mode tap",
            "link set eth0 addrgenmode none",
            "link set eth1 addrgenmode none",
            "addr add 10.88.1.2/16 dev eth0",
            "addr add 10.88.1.3/16 dev eth0",
            "addr add 2001:db8::2/64 dev eth0 nodad",
            "addr add 192.0.2.1 peer 192.0.2.2/32 dev eth1",
            "addr add 10.0.2.100/24 dev tap0",
            "link set eth0 up",
            "link set eth1 up",
            "link set tap0 up",
            "route add default via 10.88.0.1",
            "route add 203.0.113.0/24 via 10.88.0.1",
            "-6 route add default via 2001:db8::1 dev eth0",
            "route add 198.51.100.0/24 nexthop via 10.88.0.7 dev eth0 nexthop via 192.0.2.2 dev eth1",
            "route add 198.51.101.0/24 via inet6 2001:db8::9 dev eth0",
            "route add 203.0.114.0/24 via 10.0.2.2 dev tap0 table 77",
        ] {
            ip(command);
        }
        let cards = rtnl.cards().unwrap();
        let card = |name: &str| cards.iter().find(|c| c.name == name).unwrap();
        let ips = |all: &[&str]| all.iter().map(|ip| ip.parse().unwrap()).collect::<Vec<std::net::IpAddr>>();
        assert_eq!(cards.len(), 3);
        let eth0 = card("eth0");
        // The link-local network is there before the address.
        assert_eq!(eth0.nets, [net("10.88.0.0/16"), net("2001:db8::/64"), net("fe80::/64")]);
        assert_eq!(eth0.gateways, ips(&["10.88.0.1", "10.88.0.7", "2001:db8::1", "2001:db8::9"]));
        assert!(eth0.shared);
        assert_eq!(card("eth1").nets, [net("192.0.2.2/32"), net("fe80::/64")]);
        assert_eq!(card("eth1").gateways, ips(&["192.0.2.2"]));
        let tap0 = card("tap0");
        assert!(!tap0.shared);
        assert_eq!(
            (tap0.nets.as_slice(), tap0.gateways.as_slice()),
            (&[net("10.0.2.0/24")][..], &ips(&["10.0.2.2"])[..])
        );
        let own = rtnl.addresses().unwrap();
        let mut own: Vec<_> = own.iter().filter(|a| a.index == card("eth1").index).map(|a| a.ip).collect();
        own.sort_unstable();
        assert_eq!(own, ips(&["192.0.2.1"]));
    });
}

#[test]
fn a_removed_link_is_gone_and_removing_it_again_is_no_error() {
    if !has("ip") {
        return;
    }
    in_netns(|| {
        let rtnl = Rtnl::open().unwrap();
        ip("link add eth0 type veth peer name eth1");
        ip("tuntap add tap0 mode tap");
        for card in rtnl.cards().unwrap() {
            rtnl.delete_link(card.index).unwrap();
        }
        assert_eq!(rtnl.cards().unwrap(), []);
        // A name that is not UTF-8: no rule can name it, but it can be removed.
        ip("link add eth0 type veth peer name eth1");
        let odd = std::ffi::OsStr::from_bytes(b"odd\xff");
        let renamed = Command::new("ip").args(["link", "set", "eth0", "name"]).arg(odd).status().unwrap();
        assert!(renamed.success());
        let error = rtnl.cards().unwrap_err().to_string();
        assert!(error.contains("has a name that is not UTF-8"), "{error}");
        rtnl.delete_cards().unwrap();
        assert_eq!(rtnl.cards().unwrap(), []);
        // lo itself cannot be removed: it is shut down.
        rtnl.lo_up().unwrap();
        rtnl.delete_link(1).unwrap();
        assert!(!rtnl.interfaces().unwrap()[0].up);
    });
}

#[test]
fn news_of_links_addresses_and_routes_is_heard_once() {
    if !has("ip") {
        return;
    }
    in_netns(|| {
        let news = rtnl::news().unwrap();
        let quiet = || while news.heard().unwrap() {};
        for command in [
            "link add eth0 type veth peer name eth1",
            "link set eth0 up",
            "link set eth1 up",
            "addr add 192.0.2.1/24 dev eth0",
            "route add 198.51.100.0/24 via 192.0.2.9",
            "-6 addr add 2001:db8::1/64 dev eth0",
            "-6 route add 2001:db8:1::/64 via 2001:db8::9",
            "link del eth0",
        ] {
            quiet();
            ip(command);
            assert!(news.heard().unwrap(), "{command}");
        }
        quiet();
        // A request takes the news out of the socket, not out of the world.
        ip("link add eth0 type veth peer name eth1");
        assert_eq!(news.cards().unwrap().len(), 2);
        assert!(news.heard().unwrap());
        quiet();
        // More of it than the socket holds.
        run("ip", &["-batch", "-"], &"link set eth0 up\nlink set eth0 down\n".repeat(1000)).unwrap();
        assert_eq!(news.cards().unwrap().len(), 2);
        assert!(news.heard().unwrap());
    });
}
