//! What the tables of a container with a card do to packets: real sockets in two network namespaces with a veth between.
#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

mod support;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recv, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};
use support::link::{
    DROPPED, Far, Filtered, GATEWAY4, GATEWAY6, MARK, NEIGHBOUR4, NEIGHBOUR6, OWN4, OWN6, PASSES, PEERS,
    WORLD4, WORLD6, at, batch, filtered, send_frame, udp, udp_frame,
};
use support::table::{for_seconds, set, tcp};
use support::{has, in_netns, run, sent_again};
use terok_kernel::conntrack::{self, Flow};
use terok_kernel::socket::{original_dst, own_ports};
use terok_policy::live::Live;
use terok_policy::policy::Shield;
use terok_policy::ruleset::{Element, Family, Transport};

/// Where what the container starts begins on the wire.
const FIRST_OWN_PORT: u16 = 61_000;

fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PASSES)?;
    stream.set_read_timeout(Some(PASSES))?;
    Ok(stream)
}

/// A connection that reaches the far listener: both ends, and where it came from on the wire.
fn reaches(server: &TcpListener) -> (TcpStream, TcpStream, SocketAddr) {
    let to = server.local_addr().unwrap();
    let near = connect(to).unwrap_or_else(|e| panic!("{to}: {e}"));
    let (far, from) = server.accept().unwrap();
    far.set_read_timeout(Some(PASSES)).unwrap();
    (near, far, from)
}

/// Connects to `to`, which must be refused at once.
fn refused(to: SocketAddr) {
    let before = sent_again();
    let error = connect(to).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{to}: {error}");
    assert_eq!(sent_again(), before, "{to}: refused at the second try");
}

fn arrives_at_the_proxy(net: &Filtered, to: SocketAddr) {
    let _near = connect(to).unwrap_or_else(|e| panic!("{to}: {e}"));
    let listener = if to.is_ipv4() { &net.proxy.v4 } else { net.proxy.v6.as_ref().unwrap() };
    let (connection, _) = listener.accept().unwrap();
    assert_eq!(original_dst(&connection, to.is_ipv6()).unwrap(), to);
}

fn any(like: SocketAddr) -> SocketAddr {
    at(if like.is_ipv4() { "0.0.0.0" } else { "::" }, 0)
}

/// A datagram there and one back.
fn exchanges(near: &UdpSocket, far: &UdpSocket) -> std::io::Result<SocketAddr> {
    let mut buffer = [0; 16];
    near.send(b"there")?;
    let (length, from) = far.recv_from(&mut buffer)?;
    assert_eq!(&buffer[..length], b"there");
    far.send_to(b"back", from)?;
    let length = near.recv(&mut buffer)?;
    assert_eq!(&buffer[..length], b"back");
    Ok(from)
}

fn dialled(to: SocketAddr) -> UdpSocket {
    let near = udp(any(to));
    near.connect(to).unwrap();
    near
}

#[test]
fn virtual_addresses_never_choose_a_card() {
    if !has("ip") {
        return;
    }
    in_netns(|| {
        let net = filtered(&["a.example"], &[]);
        for to in ["198.18.1.0", "198.19.255.254", "fd74:6572:6f6b::100", "fd74:6572:6f6b::1:ffff"] {
            arrives_at_the_proxy(&net, at(to, 443));
        }
        let source = dialled(at("198.18.1.0", 9)).local_addr().unwrap().ip();
        assert_eq!(source, "127.0.0.1".parse::<IpAddr>().unwrap());
    });
}

#[test]
fn every_question_to_any_resolver_is_answered_here() {
    if !has("ip") {
        return;
    }
    in_netns(|| {
        let net = filtered(&["any:53/udp", "any:53"], &[]);
        for resolver in [WORLD4, GATEWAY4, OWN4, "127.0.0.53", WORLD6, GATEWAY6, OWN6, "::1", "169.254.1.1"] {
            let to = at(resolver, 53);
            let near = dialled(to);
            let here = if to.is_ipv4() { &net.dns_udp.v4 } else { net.dns_udp.v6.as_ref().unwrap() };
            exchanges(&near, here).unwrap_or_else(|e| panic!("{resolver}: {e}"));
        }
    });
}

#[test]
fn our_own_questions_reach_the_resolvers_of_the_network_and_nothing_else_there() {
    if !has("ip") {
        return;
    }
    in_netns(|| {
        let net = filtered(&[], &[]);
        for (resolver, neighbour, own) in [(GATEWAY4, NEIGHBOUR4, OWN4), (GATEWAY6, NEIGHBOUR6, OWN6)] {
            let there = net.far.udp(at(resolver, 53));
            let ours = udp(at(own, PEERS));
            ours.connect(at(resolver, 53)).unwrap();
            let from = exchanges(&ours, &there).unwrap();
            assert!(from.port() >= FIRST_OWN_PORT, "{from}");
            // From our port to anybody else: answered here like any other.
            let ours = udp(at(if own == OWN4 { "127.0.0.1" } else { "::1" }, PEERS));
            let elsewhere = net.far.udp(at(neighbour, 53));
            elsewhere.set_read_timeout(Some(DROPPED)).unwrap();
            let _ = ours.send_to(b"question", at(neighbour, 53));
            assert!(elsewhere.recv(&mut [0; 16]).is_err());
        }
    });
}

#[test]
fn a_listed_address_is_reached_by_the_card_and_only_on_its_ports() {
    if !has("ip") {
        return;
    }
    in_netns(|| {
        let net = filtered(
            &[
                "8.8.8.8:443",
                "8.8.8.8:99/udp",
                "[2606:4700::/32]:443",
                "[2606:4700::1111]:99/udp",
                "10.1.1.1:8080",
            ],
            &[],
        );
        for ip in [WORLD4, WORLD6] {
            let (mut near, mut far, from) = reaches(&net.far.tcp(at(ip, 443)));
            assert!(from.port() >= FIRST_OWN_PORT, "{from}");
            let own = if from.is_ipv4() { OWN4 } else { OWN6 };
            assert_eq!(from.ip(), own.parse::<IpAddr>().unwrap());
            near.write_all(b"there").unwrap();
            far.read_exact(&mut [0; 5]).unwrap();
            far.write_all(b"back!").unwrap();
            near.read_exact(&mut [0; 5]).unwrap();
            let from = exchanges(&dialled(at(ip, 99)), &net.far.udp(at(ip, 99))).unwrap();
            assert!(from.port() >= FIRST_OWN_PORT, "{from}");
            assert_eq!(net.logged(), ["terok:allow", "terok:allow"]);
        }
        // An address that is near needs a rule like any other, and nothing listens there.
        refused(at(GATEWAY4, 8080));
        assert_eq!(net.logged(), ["terok:allow"]);
        let _there = net.far.tcp(at(GATEWAY4, 80));
        for to in [at(WORLD4, 80), at("8.8.8.9", 443), at(WORLD6, 80), at(GATEWAY4, 80), at(NEIGHBOUR4, 8080)]
        {
            refused(to);
        }
        let logged = net.logged();
        assert_eq!(logged[..3], ["terok:default", "terok:default", "terok:default"], "{logged:?}");
        assert_eq!(logged[3..], ["terok:floor", "terok:floor"]);
        for to in [at(WORLD4, 98), at("8.8.8.9", 99), at(WORLD6, 443)] {
            let near = dialled(to);
            let error = near.send(b"x").and_then(|_| near.recv(&mut [0; 8])).unwrap_err();
            assert_ne!(error.kind(), ErrorKind::WouldBlock, "{to}: no answer");
        }
        // A closed port behind a rule answers for itself.
        let near = dialled(at(WORLD4, 99));
        near.send(b"x").unwrap();
        assert_eq!(near.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    });
}

#[test]
fn any_goes_through_the_proxy_where_it_is_tcp_and_by_the_card_where_it_is_udp() {
    if !has("ip") {
        return;
    }
    in_netns(|| {
        let net = filtered(&["any:443", "any:99/udp"], &["8.8.4.4"]);
        arrives_at_the_proxy(&net, at(WORLD4, 443));
        arrives_at_the_proxy(&net, at(WORLD6, 443));
        for ip in [WORLD4, WORLD6] {
            exchanges(&dialled(at(ip, 99)), &net.far.udp(at(ip, 99))).unwrap();
        }
        for to in [at("8.8.4.4", 443), at(GATEWAY4, 443), at("169.254.169.254", 443), at(GATEWAY6, 443)] {
            refused(to);
        }
        for to in [at("8.8.4.4", 99), at(GATEWAY4, 99), at(GATEWAY6, 99)] {
            let near = dialled(to);
            near.send(b"x").and_then(|_| near.recv(&mut [0; 8])).unwrap_err();
        }
    });
}

/// Flows to both families over TCP and UDP end at once, for both ends, after `cut`.
fn flows_end_after(cut: impl FnOnce(&Filtered)) {
    let net = filtered(&["8.8.8.8", "8.8.8.8/udp", "[2606:4700::1111]", "[2606:4700::1111]/udp"], &[]);
    let tcp: Vec<_> = [WORLD4, WORLD6].map(|ip| reaches(&net.far.tcp(at(ip, 443)))).into();
    let udp: Vec<_> = [WORLD4, WORLD6]
        .map(|ip| {
            let (near, far) = (dialled(at(ip, 99)), net.far.udp(at(ip, 99)));
            let from = exchanges(&near, &far).unwrap();
            (near, far, from)
        })
        .into();
    cut(&net);
    for (mut near, mut far, from) in tcp {
        // A program that only reads learns of it as well: its acknowledgement of what still comes in is what is refused.
        far.write_all(b"after").unwrap();
        near.set_read_timeout(Some(PASSES)).unwrap();
        let error = loop {
            match near.read(&mut [0; 8]) {
                Ok(0) => panic!("{from}: closed, not reset"),
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{from}");
    }
    for (near, far, from) in udp {
        far.send_to(b"after", from).unwrap();
        near.set_read_timeout(Some(DROPPED)).unwrap();
        assert_eq!(near.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock, "{from}");
        near.send(b"after").and_then(|_| near.recv(&mut [0; 8])).unwrap_err();
        far.set_read_timeout(Some(DROPPED)).unwrap();
        assert!(far.recv(&mut [0; 8]).is_err(), "{from}");
    }
}

#[test]
fn a_denial_cuts_flows_at_once_in_both_directions() {
    if !has("ip") {
        return;
    }
    in_netns(|| {
        flows_end_after(|net| {
            let mut live = Live::default();
            for rule in ["8.8.8.8", "8.8.8.8/udp", "[2606:4700::1111]", "[2606:4700::1111]/udp"] {
                live.deny(terok_policy::rule::Rule::parse_deny(rule).unwrap());
            }
            net.set(&live);
        });
    });
}

#[test]
fn block_cuts_every_flow_at_once_also_what_came_in() {
    if !has("ip") {
        return;
    }
    let block = Live { state: Some(Shield::Block), ..Live::default() };
    in_netns(|| flows_end_after(|net| net.set(&block)));
    in_netns(|| {
        let net = filtered(&[], &[]);
        let server = TcpListener::bind(at("0.0.0.0", 8080)).unwrap();
        let mut outside = net.far.comes_in(GATEWAY4, at(OWN4, 8080));
        let (mut inside, _) = server.accept().unwrap();
        net.set(&block);
        outside.write_all(b"after").unwrap();
        inside.set_read_timeout(Some(DROPPED)).unwrap();
        assert_eq!(inside.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
        inside.set_read_timeout(Some(PASSES)).unwrap();
        inside.write_all(b"after").unwrap();
        assert_eq!(inside.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        net.far.stays_out(at(GATEWAY4, 0), at(OWN4, 8080));
    });
}

#[test]
fn a_flow_ends_with_the_time_of_its_element_and_nobody_has_to_live_for_that() {
    if !has("ip") {
        return;
    }
    in_netns(|| {
        let net = filtered(&[], &[]);
        let (to4, to6) = (at(WORLD4, 443), at(WORLD6, 99));
        refused(to4);
        let open_for = |seconds| {
            let element = |ip: &str, kind, port| Element {
                ports: Some((kind, port, port)),
                ..for_seconds(tcp(ip, ip, 0, 0), seconds)
            };
            let named4 = set("named4", Family::V4, true, vec![element(WORLD4, Transport::TCP, 443)]);
            let named6 = set("named6", Family::V6, true, vec![element(WORLD6, Transport::UDP, 99)]);
            net.nft.replace_sets(&[named4, named6]).unwrap();
        };
        open_for(600);
        let (mut near, _far, _) = reaches(&net.far.tcp(to4));
        let (near6, far6) = (dialled(to6), net.far.udp(to6));
        exchanges(&near6, &far6).unwrap();
        open_for(1);
        far6.set_read_timeout(Some(DROPPED)).unwrap();
        near6.set_read_timeout(Some(DROPPED)).unwrap();
        let deadline = Instant::now() + PASSES;
        // Slow is not closed: that is a refusal.
        while exchanges(&near6, &far6).map_or_else(|error| error.kind() == ErrorKind::WouldBlock, |_| true) {
            assert!(Instant::now() < deadline, "still open");
            std::thread::yield_now();
        }
        near.write_all(b"after").unwrap();
        assert_eq!(near.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        refused(to4);
    });
}

#[test]
fn what_the_engine_forwards_comes_in_and_neighbours_do_not() {
    if !has("ip") {
        return;
    }
    in_netns(|| {
        let net = filtered(&[], &[]);
        let server = TcpListener::bind(at("::", 8080)).unwrap();
        for (from, to) in [(GATEWAY4, OWN4), ("192.0.2.9", OWN4), (GATEWAY6, OWN6), (WORLD6, OWN6)] {
            let mut outside = net.far.comes_in(from, at(to, 8080));
            let (mut inside, _) = server.accept().unwrap();
            outside.write_all(b"there").unwrap();
            inside.read_exact(&mut [0; 5]).unwrap();
            inside.write_all(b"back!").unwrap();
            outside.read_exact(&mut [0; 5]).unwrap();
        }
        assert_eq!(net.logged(), Vec::<String>::new());
        for (from, to) in [(NEIGHBOUR4, OWN4), (NEIGHBOUR6, OWN6)] {
            net.far.stays_out(at(from, 0), at(to, 8080));
            assert_eq!(net.next_logged(), "terok:in", "{from}");
            let there = net.far.udp(at(from, 0));
            let here = udp(at(to, 5000));
            here.set_read_timeout(Some(DROPPED)).unwrap();
            there.send_to(b"x", at(to, 5000)).unwrap();
            here.recv(&mut [0; 8]).unwrap_err();
        }
    });
}

#[test]
fn nothing_new_comes_in_where_the_containers_own_flows_leave() {
    if !has("ip") {
        return;
    }
    in_netns(|| {
        let net = filtered(&[], &[]);
        let below = TcpListener::bind(at("::", FIRST_OWN_PORT - 1)).unwrap();
        let own = TcpListener::bind(at("::", FIRST_OWN_PORT)).unwrap();
        for (from, to) in [(GATEWAY4, OWN4), (GATEWAY6, OWN6)] {
            net.far.comes_in(from, at(to, FIRST_OWN_PORT - 1));
            below.accept().unwrap();
            net.far.stays_out(at(from, 0), at(to, FIRST_OWN_PORT));
        }
        own.set_nonblocking(true).unwrap();
        assert_eq!(own.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    });
}

/// What comes to the far end over TCP, which answers nothing any more: no reset where nobody listens either.
fn silent_far_end(net: &Filtered) -> OwnedFd {
    net.far.run(|| {
        let tcp = SockProtocol::Tcp;
        let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, tcp);
        batch(&format!("route add blackhole {OWN4}/32"));
        let raw = raw.unwrap();
        setsockopt(&raw, sockopt::ReceiveTimeout, &TimeVal::new(20, 0)).unwrap();
        raw
    })
}

/// The source port of the next first packet of a connection.
fn first_port(caught: &OwnedFd) -> u16 {
    let mut packet = [0; 128];
    loop {
        let n = recv(caught.as_raw_fd(), &mut packet, MsgFlags::empty()).unwrap();
        // SYN without ACK, behind an IPv4 header of 20 octets
        if n >= 40 && packet[33] & 0x12 == 0x02 {
            return u16::from_be_bytes([packet[20], packet[21]]);
        }
    }
}

#[test]
fn a_peer_whose_rule_went_does_not_come_back_through_a_half_open_connection() {
    if !has("ip") {
        return;
    }
    in_netns(|| {
        let net = filtered(&[], &[]);
        let rule = Live { allow: vec!["8.8.8.8:443".parse().unwrap()], ..Live::default() };
        net.set(&rule);
        // The far end's neighbour entry, before nothing goes back any more.
        drop(reaches(&net.far.tcp(at(WORLD4, 443))));
        let caught = silent_far_end(&net);
        let near = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).unwrap();
        let _ = nix::sys::socket::connect(near.as_raw_fd(), &SockaddrStorage::from(at(WORLD4, 443)));
        let wire = first_port(&caught);
        // The rule goes, and the container has its kernel forget the flow (a flood of others does that). A router before it
        // still knows it, and takes the first packet of the peer for a simultaneous open.
        net.set(&Live::default());
        let near = TcpStream::from(near);
        let local = near.local_addr().unwrap();
        let flow =
            Flow { proto: 6, src: local.ip(), dst: WORLD4.parse().unwrap(), sport: local.port(), dport: 443 };
        assert!(conntrack::forget(&net.nft, &flow).unwrap());
        net.far.run(|| batch(&format!("route del blackhole {OWN4}/32")));
        net.far.stays_out(at(WORLD4, 443), at(OWN4, wire));
        near.peer_addr().unwrap_err();
    });
}

#[test]
fn a_port_is_the_same_on_the_wire_and_used_again_however_it_was_closed() {
    if !has("ip") {
        return;
    }
    in_netns(|| {
        let net = filtered(&["8.8.8.8"], &[]);
        own_ports(u16::MAX - 7).unwrap();
        let server = net.far.tcp(at(WORLD4, 443));
        for nth in 0..40 {
            // Eight ports, each free a second after the container closed first, and at once if the peer did.
            let deadline = Instant::now() + PASSES;
            let near = loop {
                match connect(at(WORLD4, 443)) {
                    Err(e) if e.kind() == ErrorKind::AddrNotAvailable && Instant::now() < deadline => {
                        std::thread::sleep(Duration::from_millis(10));
                    }
                    connected => break connected.unwrap(),
                }
            };
            let (far, from) = server.accept().unwrap();
            assert_eq!(near.local_addr().unwrap().port(), from.port());
            let (mut last, first) = if nth < 20 { (near, far) } else { (far, near) };
            drop(first);
            assert_eq!(last.read(&mut [0]).unwrap(), 0);
        }
    });
}

#[test]
fn frames_past_the_ip_stack_stop_at_the_card_and_only_there() {
    if !has("ip") {
        return;
    }
    in_netns(|| {
        let net = filtered(&["8.8.8.8:99/udp"], &[]);
        let there = net.far.udp(at(WORLD4, 99));
        there.set_read_timeout(Some(DROPPED)).unwrap();
        let card = net.links.cards().unwrap()[0].index;
        // Even what would be allowed to a socket of the IP stack.
        let frame = udp_frame(at(OWN4, 5000), at(WORLD4, 99), b"frame");
        let _ = send_frame(card, &frame);
        assert!(there.recv(&mut [0; 8]).is_err(), "a frame got out");
        exchanges(&dialled(at(WORLD4, 99)), &there).unwrap();
        // The frame is sound: without the table it arrives.
        if has("nft") {
            run("nft", &["delete", "table", "netdev", "terok"], "").unwrap();
            send_frame(card, &frame).unwrap();
            assert_eq!(there.recv(&mut [0; 8]).unwrap(), 5);
        }
    });
}

/// IP packets that came to the far end until now: of IPv6 with those that look for neighbours.
fn arrived(net: &Filtered, v4: bool) -> u64 {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap();
    net.far.run(|| {
        let text = read(if v4 { "snmp" } else { "snmp6" });
        // InReceives: in a row of its own, or the third of the second row.
        let row = match v4 {
            true => {
                text.lines().filter(|line| line.starts_with("Ip:")).nth(1).and_then(|l| l.split(' ').nth(3))
            }
            false => text.lines().find_map(|line| line.strip_prefix("Ip6InReceives")),
        };
        row.unwrap().trim().parse().unwrap()
    })
}

#[test]
fn a_socket_bound_to_the_card_sends_nothing_to_local_addresses_by_it() {
    if !has("ip") || !has("nft") {
        return;
    }
    in_netns(|| {
        let net = filtered(&[], &[]);
        // The table at the cards would stop it as well, where the kernel has it.
        run("nft", &["delete", "table", "netdev", "terok"], "").unwrap();
        for to in [at("127.0.0.1", 99), at(OWN4, 99), at(OWN6, 99), at(WORLD4, 53), at("198.18.1.0", 443)] {
            let near = UdpSocket::bind(any(to)).unwrap();
            setsockopt(&near, sockopt::BindToDevice, &"eth0".into()).unwrap();
            let before = arrived(&net, to.is_ipv4());
            for _ in 0..20 {
                let _ = near.send_to(b"x", to);
            }
            let after = arrived(&net, to.is_ipv4());
            assert!(
                after - before < if to.is_ipv4() { 1 } else { 10 },
                "{to}: {} packets left by the card",
                after - before
            );
        }
        for to in [at("127.0.0.1", 80), at("198.18.1.0", 443), at(WORLD4, 53)] {
            let before = arrived(&net, true);
            let socket = bound_tcp();
            let _ = nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(to));
            let after = arrived(&net, true);
            assert_eq!(after - before, 0, "{to}: TCP left by the card");
        }
    });
}

/// A socket with an address that is not ours, which IPv6 sends from without any capability.
fn spoofing(source: SocketAddr) -> UdpSocket {
    let (family, flags) = (AddressFamily::Inet6, SockFlag::SOCK_CLOEXEC);
    let socket = socket(family, SockType::Datagram, flags, None).unwrap();
    let on: libc::c_int = 1;
    // SAFETY: the value is an int of this frame and its length is given.
    #[allow(unsafe_code, reason = "nix has no IPV6_FREEBIND")]
    let set = unsafe {
        let length = size_of::<libc::c_int>() as libc::socklen_t;
        let option = libc::IPV6_FREEBIND;
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_IPV6, option, (&raw const on).cast(), length)
    };
    assert_eq!(set, 0);
    nix::sys::socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(source)).unwrap();
    socket.into()
}

#[test]
fn a_flow_that_the_container_begins_in_anothers_name_opens_no_way_out() {
    if !has("ip") {
        return;
    }
    in_netns(|| {
        let net = filtered(&[], &[]);
        let (there, ours) = (at(WORLD6, 9999), at(OWN6, 7000));
        let far = net.far.udp(there);
        far.set_read_timeout(Some(DROPPED)).unwrap();
        let near = udp(ours);
        let _ = spoofing(there).send_to(b"question", ours);
        for _ in 0..3 {
            let _ = near.send_to(b"answer", there);
        }
        assert!(far.recv(&mut [0; 16]).is_err(), "an answer to itself got out");
    });
}

#[test]
fn a_refusal_goes_to_nobody_but_the_container() {
    if !has("ip") || !has("nft") {
        return;
    }
    in_netns(|| {
        let net = filtered(&[], &[]);
        let before = arrived_errors(&net);
        let near = spoofing(at(WORLD6, 9999));
        for to in [at("2606:4700::2222", 99), at(GATEWAY6, 99), at("fd74:6572:6f6b::100", 99)] {
            let _ = near.send_to(b"secret", to);
        }
        std::thread::sleep(DROPPED);
        assert_eq!(arrived_errors(&net), before, "the refusal carried the datagram out");
    });
}

/// ICMPv6 errors that came to the far end until now.
fn arrived_errors(net: &Filtered) -> u64 {
    net.far.run(|| {
        let text = std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap();
        let row = |line: &str| line.strip_prefix("Icmp6InDestUnreachs")?.trim().parse().ok();
        text.lines().find_map(row).unwrap()
    })
}

/// A TCP socket bound to the card that tries to connect for a moment.
fn bound_tcp() -> OwnedFd {
    let (family, kind) = (AddressFamily::Inet, SockType::Stream);
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&socket, sockopt::BindToDevice, &"eth0".into()).unwrap();
    setsockopt(&socket, sockopt::SendTimeout, &TimeVal::new(0, 100_000)).unwrap();
    socket
}

#[test]
fn a_mark_set_by_the_sender_changes_no_verdict() {
    if !has("ip") {
        return;
    }
    in_netns(|| {
        let net = filtered(&[], &[]);
        let there = net.far.udp(at(WORLD4, 99));
        there.set_read_timeout(Some(DROPPED)).unwrap();
        let near = dialled(at(WORLD4, 99));
        setsockopt(&near, sockopt::Mark, &MARK).unwrap();
        near.send(b"x").and_then(|_| near.recv(&mut [0; 8])).unwrap_err();
        assert!(there.recv(&mut [0; 8]).is_err());
    });
}

#[test]
fn a_card_that_comes_later_is_closed_until_it_has_its_chain() {
    if !has("ip") {
        return;
    }
    in_netns(|| {
        let net = filtered(&["192.0.2.0/24:443"], &[]);
        let far = link_more(&net);
        let _there = far.tcp(at("192.0.2.1", 80));
        refused(at("192.0.2.1", 80));
        reaches(&far.tcp(at("192.0.2.1", 443)));
        // The table at the cards does not know it yet, and says so.
        let facts =
            terok_policy::plan::HostFacts { cards: net.links.cards().unwrap(), ..net.plan.facts.clone() };
        assert_eq!(facts.cards.len(), 2);
        let plan = terok_policy::plan::Plan { policy: net.plan.policy.clone(), facts };
        let egress = plan.egress(&net.wiring).unwrap();
        assert!(
            net.nft.verify_egress(&egress).unwrap_err().to_string().contains("chain egress-eth1 is missing")
        );
        net.nft.add_egress_card(&egress, "eth1").unwrap();
        net.nft.replace_sets(&plan.near_sets()).unwrap();
        net.nft.verify_egress(&egress).unwrap();
        reaches(&far.tcp(at("192.0.2.2", 443)));
        let there = far.udp(at("192.0.2.1", 99));
        there.set_read_timeout(Some(DROPPED)).unwrap();
        let mut frame = udp_frame(at("10.2.2.2", 5000), at("192.0.2.1", 99), b"frame");
        frame[..6].copy_from_slice(&[2, 0, 0, 0, 1, 1]);
        let _ = send_frame(plan.facts.cards[1].index, &frame);
        assert!(there.recv(&mut [0; 8]).is_err(), "a frame got out");
        // Its neighbours are no better than those of the first.
        let server = TcpListener::bind(at("10.2.2.2", 8080)).unwrap();
        far.stays_out(at("10.2.2.1", 0), server.local_addr().unwrap());
    });
}

/// A second card, `eth1`, to the same far end, with 192.0.2.0/24 on it.
fn link_more(net: &Filtered) -> &Far {
    batch(&format!(
        "link add eth1 address 02:00:00:00:01:02 type veth peer name far1 address 02:00:00:00:01:01 netns {}
         addr add 10.2.2.2/24 dev eth1
         link set eth1 up
         route add 192.0.2.0/24 dev eth1",
        net.far.path()
    ));
    net.far.run(|| batch("addr add 10.2.2.1/24 dev far1\nlink set far1 up"));
    &net.far
}

#[test]
fn neighbours_find_each_other_under_the_tables() {
    if !has("ip") {
        return;
    }
    in_netns(|| {
        let net = filtered(&["[2606:4700::1111]:443", "8.8.8.8:443"], &[]);
        batch("neigh flush nud all dev eth0");
        net.far.run(|| batch("neigh flush nud all dev far0"));
        reaches(&net.far.tcp(at(WORLD4, 443)));
        reaches(&net.far.tcp(at(WORLD6, 443)));
        let known = |own: &str| run("ip", &["neigh", "show", own], "").unwrap();
        for gateway in [GATEWAY4, GATEWAY6] {
            assert!(known(gateway).contains("lladdr 02:00:00:00:00:01"), "{}", known(gateway));
            assert!(!known(gateway).contains("PERMANENT"));
        }
    });
}

#[test]
fn own_addresses_and_loopback_are_the_containers_own() {
    if !has("ip") {
        return;
    }
    in_netns(|| {
        let _net = filtered(&[], &[]);
        for own in [OWN4, OWN6, "127.0.0.1", "127.9.9.9", "::1"] {
            let server = TcpListener::bind(at(own, 0)).unwrap();
            reaches(&server);
            refused(at(own, 9));
        }
    });
}

#[test]
fn every_single_change_of_the_tables_is_noticed() {
    if !has("ip") || !has("nft") {
        return;
    }
    in_netns(|| {
        let net = filtered(&["8.8.8.8:443", "any:99/udp"], &["8.8.4.4"]);
        let ruleset = net.ruleset(&Live::default());
        let restored = |what: &str| {
            assert!(net.verify().is_err(), "{what} was not noticed");
            if net.nft.verify(&ruleset).is_err() {
                net.nft.reload(&ruleset).unwrap();
            }
            if net.nft.verify_egress(&net.egress()).is_err() {
                let _ = run("nft", &["delete", "table", "netdev", "terok"], "");
                net.nft.load_egress(&net.egress()).unwrap();
            }
            net.verify().unwrap();
        };
        let mut changes: Vec<String> = [
            "flush ruleset",
            "flush table inet terok",
            "flush table netdev terok",
            "delete table netdev terok",
            "add table inet terok { flags dormant; }",
            "add chain inet terok mine",
            "add chain inet terok mine { type filter hook output priority -200; }",
            "add chain netdev terok mine { type filter hook egress device eth0 priority -1; }",
            "add chain netdev terok egress-eth0 { policy accept; }",
            "add set inet terok mine { type mark; }",
        ]
        .map(str::to_owned)
        .into();
        for chain in ruleset.chains.iter().map(|chain| chain.name) {
            changes.push(format!("insert rule inet terok {chain} accept"));
            changes.push(format!("add rule inet terok {chain} accept"));
        }
        for chain in ["out", "in", "forward"] {
            changes.push(format!("add chain inet terok {chain} {{ policy accept; }}"));
        }
        for set in &ruleset.sets {
            let ip = if set.family == Family::V4 { "203.0.113.77" } else { "2001:db8:77::77" };
            let element = if set.ports { format!("{ip} . tcp . 7") } else { ip.to_owned() };
            changes.push(format!("add element inet terok {} {{ {element} }}", set.name));
            if !set.elements.is_empty() {
                changes.push(format!("flush set inet terok {}", set.name));
            }
        }
        for command in &changes {
            run("nft", &["-f", "-"], command).unwrap();
            restored(command);
        }
        // Each rule of both tables, taken away.
        let listed = run("nft", &["-a", "list", "ruleset"], "").unwrap();
        let rules = listed.lines().filter(|line| line.contains("# handle") && !line.contains(" {")).count();
        let wanted: usize = ruleset.chains.iter().map(|chain| chain.rules.len()).sum();
        assert_eq!(rules, wanted + net.egress().rules.len());
        for nth in 0..rules {
            let listed = run("nft", &["-a", "list", "ruleset"], "").unwrap();
            let (mut table, mut chain, mut seen) = ("", "", 0);
            for line in listed.lines() {
                let words: Vec<&str> = line.split_whitespace().collect();
                match words.as_slice() {
                    ["table", family, ..] => table = family,
                    ["chain", name, ..] => chain = name,
                    [.., "handle", handle] if !line.contains(" {") => {
                        if seen == nth {
                            let rule = ["delete", "rule", table, "terok", chain, "handle", handle];
                            run("nft", &rule, "").unwrap();
                        }
                        seen += 1;
                    }
                    _ => {}
                }
            }
            restored(&format!("rule {nth} deleted"));
        }
    });
}

#[test]
fn living_flows_are_listed_and_can_be_forgotten() {
    if !has("ip") {
        return;
    }
    in_netns(|| {
        let net = filtered(&["8.8.8.8", "[2606:4700::1111]/udp"], &[]);
        let (near, far, _) = reaches(&net.far.tcp(at(WORLD4, 443)));
        let near6 = dialled(at(WORLD6, 99));
        exchanges(&near6, &net.far.udp(at(WORLD6, 99))).unwrap();
        let flow = |proto, near: SocketAddr, far: SocketAddr| Flow {
            proto,
            src: near.ip(),
            dst: far.ip(),
            sport: near.port(),
            dport: far.port(),
        };
        let listed = || {
            let mut all = Vec::new();
            conntrack::flows(&net.nft, |flow| all.push(flow)).unwrap();
            all.retain(|flow| [443, 99].contains(&flow.dport));
            all.sort_by_key(|flow| flow.dport);
            all
        };
        let tcp = flow(6, near.local_addr().unwrap(), at(WORLD4, 443));
        let udp = flow(17, near6.local_addr().unwrap(), at(WORLD6, 99));
        assert_eq!(listed(), [udp, tcp]);
        assert!(conntrack::forget(&net.nft, &udp).unwrap());
        assert!(!conntrack::forget(&net.nft, &udp).unwrap());
        assert_eq!(listed(), [tcp]);
        // Closed at both ends, it lives no longer.
        drop((near, far));
        let deadline = Instant::now() + PASSES;
        while !listed().is_empty() {
            assert!(Instant::now() < deadline, "{:?}", listed());
            std::thread::yield_now();
        }
    });
}
