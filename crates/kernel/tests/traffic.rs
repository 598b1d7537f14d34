//! What the table of a sealed container does to packets: real sockets in a network namespace with nothing but `lo`.
#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};
use support::table::{for_seconds, set, tcp};
use support::{in_netns, sent_again};
use terok_kernel::netlink::Socket;
use terok_kernel::nft::{self, NftSocket};
use terok_kernel::rtnl::Rtnl;
use terok_kernel::socket::{Loopback, original_dst, tcp_loopback, udp_loopback};
use terok_kernel::{nflog, nft::NftError};
use terok_policy::grants::Grants;
use terok_policy::layout::NFLOG_GROUP;
use terok_policy::live::Live;
use terok_policy::plan::{HostFacts, Now, Plan, Wiring};
use terok_policy::policy::{Policy, Source, Sourced};
use terok_policy::rule::Rule;
use terok_policy::ruleset::{Family, Ruleset};

/// Enough for what passes, on any machine.
const PASSES: Duration = Duration::from_secs(20);

/// A container's network as the hook leaves it.
struct Sealed {
    dns_udp: Loopback<UdpSocket>,
    dns_tcp: Loopback<TcpListener>,
    proxy: Loopback<TcpListener>,
    nft: NftSocket,
    nflog: Socket,
}

/// A datagram of NFLOG, in owned form.
#[derive(Debug)]
struct Logged {
    prefix: String,
    proto: u8,
    src: IpAddr,
    dst: IpAddr,
    dport: Option<u16>,
    uid: Option<u32>,
}

fn sealed(allow: &[&str], deny: &[&str]) -> Sealed {
    let ipv6 = Rtnl::open().unwrap().lo_up().unwrap();
    let (dns_udp, dns_tcp) = (udp_loopback(ipv6).unwrap(), tcp_loopback(ipv6).unwrap());
    let proxy = tcp_loopback(ipv6).unwrap();
    let wiring =
        Wiring { dns_udp: dns_udp.port, dns_tcp: dns_tcp.port, proxy: proxy.port, peers: 0, mark: 1 };
    let nflog = Socket::from(nflog::bind(NFLOG_GROUP).unwrap());
    let nft = nft::open().unwrap();
    let wanted = ruleset(allow, deny, wiring, ipv6);
    nft.load(&wanted).unwrap();
    nft.verify(&wanted).unwrap();
    Sealed { dns_udp, dns_tcp, proxy, nft, nflog }
}

fn ruleset(allow: &[&str], deny: &[&str], wiring: Wiring, ipv6: bool) -> Ruleset {
    let sourced = |rule| Sourced { rule, source: Source::Annotation };
    let policy = Policy {
        allow: allow.iter().map(|text| sourced(text.parse().unwrap())).collect(),
        deny: deny.iter().map(|text| sourced(Rule::parse_deny(text).unwrap())).collect(),
        ..Policy::default()
    };
    let facts = HostFacts::sealed(ipv6);
    Plan::new(policy, facts)
        .unwrap()
        .ruleset(&wiring, &Now { live: &Live::default(), grants: &Grants::default(), unix: 0 })
}

impl Sealed {
    /// The next packet logged.
    fn logged(&self) -> Logged {
        let deadline = Instant::now() + PASSES;
        while Instant::now() < deadline {
            if let Some(first) = self.all_logged().into_iter().next() {
                return first;
            }
            std::thread::yield_now();
        }
        panic!("nothing was logged");
    }

    /// What was logged up to now.
    fn all_logged(&self) -> Vec<Logged> {
        let (mut all, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
        while let Ok(datagram) = self.nflog.receive(&mut buffer) {
            all.extend(nflog::parse(datagram).map(|p| Logged {
                prefix: p.prefix.to_owned(),
                proto: p.proto,
                src: p.src,
                dst: p.dst,
                dport: p.dport,
                uid: p.uid,
            }));
        }
        all
    }

    /// Connects to `address` and accepts at the proxy: where the connection wanted to go.
    fn arrives(&self, address: &str) -> SocketAddr {
        let to: SocketAddr = address.parse().unwrap();
        let _client = TcpStream::connect_timeout(&to, PASSES).unwrap_or_else(|e| panic!("{to}: {e}"));
        let listener = if to.is_ipv4() { &self.proxy.v4 } else { self.proxy.v6.as_ref().unwrap() };
        let (connection, _) = listener.accept().unwrap();
        original_dst(&connection, to.is_ipv6()).unwrap()
    }
}

/// Connects to `address`, which must be refused at once.
fn refused(address: &str) {
    let before = sent_again();
    let error = TcpStream::connect_timeout(&address.parse().unwrap(), PASSES).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{address}: {error}");
    assert_eq!(sent_again(), before, "{address}: refused at the second try");
}

#[test]
fn virtual_addresses_arrive_at_the_proxy_and_say_where_they_wanted_to_go() {
    in_netns(|| {
        let net = sealed(&["a.example"], &[]);
        for address in
            ["198.18.1.0:443", "198.19.255.254:1", "[fd74:6572:6f6b::100]:443", "[fd74:6572:6f6b::1:ffff]:9"]
        {
            assert_eq!(net.arrives(address), address.parse().unwrap());
        }
    });
}

#[test]
fn allowed_literals_arrive_and_only_on_their_ports() {
    in_netns(|| {
        let net = sealed(&["192.0.2.10:443", "10.1.0.0/16:8000-8010", "[2001:db8::/32]:443"], &[]);
        for address in ["192.0.2.10:443", "10.1.2.3:8005", "[2001:db8:1::1]:443"] {
            assert_eq!(net.arrives(address), address.parse().unwrap());
        }
        for address in [
            "192.0.2.10:80",
            "192.0.2.11:443",
            "10.1.2.3:8011",
            "10.2.0.1:8005",
            "[2001:db8:1::1]:80",
            "[2001:db9::1]:443",
        ] {
            refused(address);
        }
    });
}

#[test]
fn what_no_rule_names_is_refused_at_once_and_logged_with_its_sender() {
    in_netns(|| {
        let net = sealed(&[], &[]);
        let uid = nix::unistd::getuid().as_raw();
        for address in ["192.0.2.99:443", "[2001:db8::99]:443"] {
            refused(address);
            let logged = net.logged();
            let to: SocketAddr = address.parse().unwrap();
            assert_eq!((logged.prefix.as_str(), logged.proto), ("terok:default", 6));
            assert_eq!((logged.dst, logged.dport, logged.uid), (to.ip(), Some(to.port()), Some(uid)));
            let own = if to.is_ipv4() { "127.0.0.1" } else { "fd74:6572:6f6b:1::1" };
            assert_eq!(logged.src, own.parse::<IpAddr>().unwrap());
        }
        assert_eq!(net.all_logged().len(), 0);
    });
}

#[test]
fn a_denial_and_the_floor_are_logged_under_their_own_names() {
    in_netns(|| {
        let net = sealed(&["203.0.113.0/24:443", "any:443"], &["203.0.113.7"]);
        for (address, prefix) in [
            ("203.0.113.7:443", "terok:deny"),
            ("169.254.169.254:443", "terok:floor"),
            ("[fd00:ec2::254]:443", "terok:floor"),
        ] {
            refused(address);
            assert_eq!(net.logged().prefix, prefix, "{address}");
        }
        assert_eq!(net.arrives("203.0.113.8:443"), "203.0.113.8:443".parse().unwrap());
        assert_eq!(net.arrives("8.8.8.8:443"), "8.8.8.8:443".parse().unwrap());
        assert_eq!(net.arrives("[2001:4860::8]:443"), "[2001:4860::8]:443".parse().unwrap());
    });
}

#[test]
fn udp_has_no_way_out_and_learns_so_at_once() {
    in_netns(|| {
        let net = sealed(&["any"], &[]);
        for (from, to) in [
            ("0.0.0.0:0", "192.0.2.99:443"),
            ("[::]:0", "[2001:db8::99]:443"),
            ("0.0.0.0:0", "198.18.1.0:443"),
        ] {
            let socket = UdpSocket::bind(from).unwrap();
            socket.set_read_timeout(Some(PASSES)).unwrap();
            socket.connect(to).unwrap();
            let error = socket.send(b"x").and_then(|_| socket.recv(&mut [0; 8])).unwrap_err();
            assert_ne!(error.kind(), ErrorKind::WouldBlock, "{to}: no answer");
            let logged = net.logged();
            assert_eq!((logged.proto, logged.dport), (17, Some(443)), "{to}");
        }
    });
}

#[test]
fn every_question_to_any_resolver_arrives_and_the_answer_comes_from_it() {
    in_netns(|| {
        let net = sealed(&[], &[]);
        for resolver in
            ["8.8.8.8:53", "127.0.0.53:53", "10.0.2.3:53", "[2001:4860:4860::8888]:53", "[::1]:53"]
        {
            let to: SocketAddr = resolver.parse().unwrap();
            let (udp, dns_tcp) = match to.is_ipv4() {
                true => (&net.dns_udp.v4, &net.dns_tcp.v4),
                false => (net.dns_udp.v6.as_ref().unwrap(), net.dns_tcp.v6.as_ref().unwrap()),
            };
            // UDP, the way resolvers do it: connected, so that an answer from elsewhere would not count.
            let client = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
            client.set_read_timeout(Some(PASSES)).unwrap();
            client.connect(to).unwrap();
            client.send(b"question").unwrap();
            let mut buffer = [0; 16];
            let (length, from) = udp.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"question");
            udp.send_to(b"answer", from).unwrap();
            let length = client.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"answer", "{resolver}");

            let mut client = TcpStream::connect_timeout(&to, PASSES).unwrap();
            let (mut server, _) = dns_tcp.accept().unwrap();
            server.write_all(b"answer").unwrap();
            client.read_exact(&mut buffer[..6]).unwrap();
            assert_eq!(&buffer[..6], b"answer", "{resolver}");
        }
    });
}

#[test]
fn loopback_is_the_containers_own() {
    in_netns(|| {
        let _net = sealed(&[], &[]);
        for own in ["127.0.0.1:0", "[::1]:0", "127.9.9.9:0"] {
            let server = TcpListener::bind(own).unwrap();
            TcpStream::connect_timeout(&server.local_addr().unwrap(), PASSES).unwrap();
        }
        refused("127.0.0.1:9");
        refused("[::1]:9");
    });
}

#[test]
fn sets_replaced_under_way_decide_the_next_connection() {
    in_netns(|| {
        let net = sealed(&["192.0.2.10:443"], &[]);
        net.arrives("192.0.2.10:443");
        refused("192.0.2.11:443");
        let deny = |element| set("deny4", Family::V4, true, element);
        net.nft.replace_sets(&[deny(vec![tcp("192.0.2.10", "192.0.2.10", 0, 65535)])]).unwrap();
        refused("192.0.2.10:443");
        assert_eq!(net.all_logged().last().unwrap().prefix, "terok:deny");
        // Down for a moment: the kernel closes by itself.
        let open_for = |seconds| {
            let open = for_seconds(tcp("0.0.0.0", "255.255.255.255", 0, 65535), seconds);
            net.nft.replace_sets(&[deny(vec![]), set("open4", Family::V4, true, vec![open])]).unwrap();
        };
        open_for(600);
        net.arrives("192.0.2.10:443");
        net.arrives("192.0.2.11:443");
        refused("10.0.0.1:443");
        open_for(1);
        let deadline = Instant::now() + PASSES;
        while TcpStream::connect_timeout(&"192.0.2.11:443".parse().unwrap(), PASSES).is_ok() {
            net.proxy.v4.accept().unwrap();
            assert!(Instant::now() < deadline, "still open");
        }
        refused("192.0.2.11:443");
        net.arrives("192.0.2.10:443");
    });
}

#[test]
fn sets_built_anew_keep_rules_and_counters() {
    in_netns(|| {
        let net = sealed(&[], &[]);
        refused("192.0.2.11:443");
        let many = (0..200).map(|n| tcp(&format!("20.0.0.{n}"), &format!("20.0.0.{n}"), 443, 443)).collect();
        net.nft.replace_sets(&[set("allow4", Family::V4, true, many)]).unwrap();
        net.arrives("20.0.0.199:443");
        // 200 removals: the set is deleted and created again.
        net.nft
            .replace_sets(&[set("allow4", Family::V4, true, vec![tcp("20.0.1.1", "20.0.1.1", 443, 443)])])
            .unwrap();
        let wiring = Wiring {
            dns_udp: net.dns_udp.port,
            dns_tcp: net.dns_tcp.port,
            proxy: net.proxy.port,
            peers: 0,
            mark: 1,
        };
        net.nft.verify(&ruleset(&["20.0.1.1:443"], &[], wiring, true)).unwrap();
        refused("20.0.0.199:443");
        net.arrives("20.0.1.1:443");
        if support::has("nft") {
            let list = support::run("nft", &["list", "chain", "inet", "terok", "out"], "").unwrap();
            assert!(list.contains("counter packets 2 bytes 120 reject with tcp reset"), "{list}");
        }
    });
}

#[test]
fn a_flood_of_refusals_is_logged_within_a_rate() {
    in_netns(|| {
        let net = sealed(&[], &[]);
        let start = Instant::now();
        for port in 1000..1500 {
            refused(&format!("192.0.2.1:{port}"));
        }
        // Forty at once and twenty a second.
        let most = 60 + 20 * start.elapsed().as_secs() as usize;
        let logged = net.all_logged().len();
        assert!((1..=most).contains(&logged), "{logged} of at most {most}");
    });
}

#[test]
fn a_second_listener_on_the_group_is_an_error() {
    in_netns(|| {
        let _first = nflog::bind(NFLOG_GROUP).unwrap();
        assert!(nflog::bind(NFLOG_GROUP).is_err());
        nflog::bind(NFLOG_GROUP + 1).unwrap();
    });
}

#[test]
fn a_socket_goes_on_serving_its_namespace_from_another() {
    in_netns(|| {
        let net = sealed(&[], &[]);
        let Sealed { nft, nflog, .. } = net;
        let change = [set("allow4", Family::V4, true, vec![tcp("192.0.2.1", "192.0.2.1", 1, 1)])];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                nft.replace_sets(&change).unwrap();
                assert!(matches!(nft::open().unwrap().replace_sets(&change), Err(NftError::Differs(_))));
            });
        });
        drop((nft, nflog));
        if support::has("nft") {
            let list = support::run("nft", &["list", "set", "inet", "terok", "allow4"], "").unwrap();
            assert!(list.contains("192.0.2.1 . tcp . 1"), "{list}");
        }
    });
}
