//! The guard on real tables: a container's network namespace with a card, the other end of it, and a host's.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use crate::rig;
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use terok_kernel::nft;
use terok_kernel::pidfd::readable;
use terok_kernel::socket::{tcp_loopback, udp_loopback};
use terok_policy::Rule;
use terok_policy::grants::Grants;
use terok_policy::plan::Card;
use terok_policy::policy::{Source, Sourced};

const SERVER: &str = "198.51.100.1";
const SERVER6: &str = "2001:db8:1::1";
/// Enough for what comes to pass, on any machine.
const PASSES: Duration = Duration::from_secs(20);

/// A network namespace, held by a process in it.
struct Netns(Child);

impl Netns {
    fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let mut sleep = Command::new("sleep");
            sleep.arg("600").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            Netns(sleep.spawn().unwrap())
        };
        std::thread::spawn(make).join().unwrap()
    }

    /// Runs `job` in it.
    fn run<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        let netns = File::open(format!("/proc/{}/ns/net", self.0.id())).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(netns, CloneFlags::CLONE_NEWNET).unwrap();
                job()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn sh(&self, script: &str) {
        let status = self.run(|| Command::new("sh").args(["-ec", script]).status().unwrap());
        assert!(status.success(), "{script}");
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Rig {
    guard: Guard,
    inside: Netns,
    outside: Netns,
    host: Netns,
    state: tempfile::TempDir,
}

/// Whether it can be done here.
fn possible() -> bool {
    terok_need::network_namespaces() && terok_need::starts("nft", "nft", &["-V"])
}

fn policy(allow: &[&str], deny: &[&str]) -> Policy {
    let sourced = |rule| Sourced { rule, source: Source::Annotation };
    Policy {
        allow: allow.iter().map(|text| sourced(text.parse().unwrap())).collect(),
        deny: deny.iter().map(|text| sourced(Rule::parse_deny(text).unwrap())).collect(),
        ..Policy::default()
    }
}

/// A card to a router with servers behind it, as Podman's bridge is.
const INSIDE: &str =
    "ip addr add 10.88.0.2/24 dev eth0; ip addr add fd88::2/64 dev eth0 nodad; ip link set eth0 up;
    ip route add default via 10.88.0.1; ip -6 route add default via fd88::1";
const OUTSIDE: &str = "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0; ip link set lo up;
    ip addr add 10.88.0.1/24 dev out0; ip addr add fd88::1/64 dev out0 nodad; ip link set out0 up;
    for n in 1 2 3; do ip addr add 198.51.100.$n/32 dev lo; ip addr add 2001:db8:1::$n/128 dev lo nodad; done";

impl Rig {
    fn new(policy: Policy) -> Self {
        Rig::on(Network::Filtered, policy)
    }

    /// One without a card, which somebody may attach.
    fn sealed() -> Self {
        let mut rig = Rig::on(Network::Sealed, Policy::default());
        assert_eq!((rig.cards(), rig.told(Duration::from_millis(50))), (0, Vec::new()));
        rig
    }

    fn on(network: Network, policy: Policy) -> Self {
        let (inside, outside, host) = (Netns::new(), Netns::new(), Netns::new());
        outside.sh(&format!("ip link add out0 type veth peer name eth0 netns {}", inside.0.id()));
        let ipv6 = inside.run(|| Rtnl::open().unwrap().lo_up().unwrap());
        outside.sh(OUTSIDE);
        match network {
            Network::Filtered => inside.sh(INSIDE),
            Network::Sealed => inside.sh("ip link delete eth0"),
        }
        let ports = inside.run(|| {
            let ports =
                (udp_loopback(ipv6).unwrap(), tcp_loopback(ipv6).unwrap(), tcp_loopback(ipv6).unwrap());
            (ports.0.port, ports.1.port, ports.2.port)
        });
        let wiring = Wiring { dns_udp: ports.0, dns_tcp: ports.1, proxy: ports.2, peers: 0, mark: 0x7e70 };
        let facts = HostFacts {
            network,
            cards: inside.run(|| Rtnl::open().unwrap().cards().unwrap()),
            own: vec!["203.0.113.1".parse().unwrap()],
            ..HostFacts::sealed(ipv6)
        };
        host.sh("ip link set lo up; ip link add ext type dummy 2>/dev/null || ip link add ext type veth peer name int;
            ip addr add 203.0.113.1/24 dev ext; ip link set ext up");
        let config =
            SupervisorConfig { facts: facts.clone(), wiring, ..rig::config("".as_ref(), policy.clone()) };
        let plan = Plan::new(policy, facts.clone()).unwrap();
        let (nft, tables, cards) = inside.run(|| {
            let nft = nft::open().unwrap();
            let (live, grants) = (Live::default(), Grants::default());
            nft.load(&plan.ruleset(&wiring, &Now { live: &live, grants: &grants, unix: 0 })).unwrap();
            plan.egress(&wiring).iter().for_each(|egress| nft.load_egress(egress).unwrap());
            (nft, nft::news().unwrap(), rtnl::news().unwrap())
        });
        let sockets = Sockets {
            nft,
            tables: Some(tables),
            cards: Some(cards),
            host: Some(host.run(|| rtnl::news().unwrap())),
        };
        let mut guard = Guard::with(sockets, StoredConfig::of(&config), wiring, facts, Live::default());
        assert!(guard.egress == (network == Network::Filtered) && guard.generation.is_some());
        guard.generation = None;
        guard.check();
        assert!(guard.generation.is_some(), "{:?}", guard.untold);
        Rig { guard, inside, outside, host, state: tempfile::tempdir().unwrap() }
    }

    /// Sets what an operator says.
    fn live(&mut self, live: &Live) {
        let state = Dir::base(self.state.path()).unwrap();
        state.write(layout::LIVE, &serde_json::to_vec(live).unwrap()).unwrap();
        self.guard.apply(&state).unwrap();
        assert!(self.guard.tampered.is_none(), "{:?}", self.guard.untold);
    }

    fn deny(&mut self, rules: &[&str]) {
        self.live(&Live {
            deny: rules.iter().map(|rule| Rule::parse_deny(rule).unwrap()).collect(),
            ..Live::default()
        });
    }

    fn grant(&mut self, name: &str, addresses: &[&str]) -> Result<Vec<String>, String> {
        let addresses: Vec<IpAddr> = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        let granted = self.guard.grant(&name.parse().unwrap(), 1, &addresses);
        granted.map(|ips| ips.iter().map(IpAddr::to_string).collect()).map_err(|error| error.to_string())
    }

    /// Grants for so many seconds only.
    fn grant_for(&mut self, name: &str, ip: &str, seconds: u64) {
        self.guard
            .granting
            .know(&self.guard.facts.clone(), || Ok(self.guard.config.read::<SupervisorConfig>()?.policy))
            .unwrap();
        let until = self.guard.clock.now() + seconds;
        self.guard.granting.give(&name.parse().unwrap(), ip.parse().unwrap(), until);
        self.guard.load_granted().unwrap();
    }

    /// An echo server outside; it answers for as long as the test runs.
    fn serve(&self) {
        for ip in [SERVER, SERVER6] {
            let at = SocketAddr::new(ip.parse().unwrap(), 443);
            let (tcp, udp) =
                self.outside.run(|| (TcpListener::bind(at).unwrap(), UdpSocket::bind(at).unwrap()));
            std::thread::spawn(move || {
                for stream in tcp.incoming() {
                    let mut stream = stream.unwrap();
                    std::thread::spawn(move || {
                        let mut buffer = [0; 64];
                        while let Ok(length @ 1..) = stream.read(&mut buffer) {
                            let _ = stream.write_all(&buffer[..length]);
                        }
                    });
                }
            });
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                    let _ = udp.send_to(&buffer[..length], from);
                }
            });
        }
    }

    fn tcp(&self, ip: &str) -> Result<TcpStream, ErrorKind> {
        let to = SocketAddr::new(ip.parse().unwrap(), 443);
        let stream = self.inside.run(|| TcpStream::connect_timeout(&to, PASSES));
        let stream = stream.map_err(|error| error.kind())?;
        stream.set_read_timeout(Some(PASSES)).unwrap();
        Ok(stream)
    }

    fn udp(&self, ip: &str) -> Result<UdpSocket, ErrorKind> {
        let to = SocketAddr::new(ip.parse().unwrap(), 443);
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = self.inside.run(|| UdpSocket::bind(any).unwrap());
        socket.set_read_timeout(Some(PASSES)).unwrap();
        socket.connect(to).map_err(|error| error.kind())?;
        udp_echo(&socket)?;
        Ok(socket)
    }

    /// Waits for what the guard has to tell of the tables. Its own address makes a card's news a moment after it came up.
    fn told(&mut self, limit: Duration) -> Vec<News> {
        let end = Instant::now() + limit;
        loop {
            let mut told = self.all_told(end.saturating_duration_since(Instant::now()));
            told.retain(|news| !matches!(news, News::Cards(_)));
            if !told.is_empty() || Instant::now() >= end {
                return told;
            }
        }
    }

    /// Waits for what the guard has to tell, as the parent does.
    fn all_told(&mut self, limit: Duration) -> Vec<News> {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let due = self.guard.due().map_or(left, |due| due.min(left));
            readable(&self.guard.watched(), Some(due)).unwrap();
            let told = self.guard.attend();
            if !told.is_empty() || left.is_zero() {
                return told;
            }
        }
    }

    /// Attends to everything until it is so, and nothing but cards may be told meanwhile.
    fn settles(&mut self, what: &str, so: impl Fn(&Rig) -> bool) {
        let end = Instant::now() + PASSES;
        while !so(self) {
            assert!(Instant::now() < end, "waited in vain for {what}");
            assert_eq!(self.told(Duration::from_millis(50)), [], "{what}");
        }
    }

    /// The cards, once those are told that are wanted.
    fn told_cards(&mut self, wanted: impl Fn(&[Card]) -> bool) -> Vec<Card> {
        let end = Instant::now() + PASSES;
        loop {
            let told = self.all_told(end.saturating_duration_since(Instant::now()));
            for news in &told {
                let News::Cards(cards) = news else { panic!("{told:?}") };
                if wanted(cards) {
                    return cards.clone();
                }
            }
            assert!(Instant::now() < end, "waited in vain for the cards");
        }
    }

    /// The tables as nft lists them.
    fn listed(&self) -> String {
        let list = self.inside.run(|| Command::new("nft").args(["list", "ruleset"]).output().unwrap().stdout);
        String::from_utf8(list).unwrap()
    }

    fn cards(&self) -> usize {
        self.inside.run(|| Rtnl::open().unwrap().cards().unwrap().len())
    }
}

fn tcp_echo(stream: &mut TcpStream) -> Result<(), ErrorKind> {
    stream.write_all(b"ping").map_err(|error| error.kind())?;
    let mut buffer = [0; 4];
    stream.read_exact(&mut buffer).map_err(|error| error.kind())
}

fn udp_echo(socket: &UdpSocket) -> Result<(), ErrorKind> {
    socket.send(b"ping").map_err(|error| error.kind())?;
    socket.recv(&mut [0; 4]).map(drop).map_err(|error| error.kind())
}

const DIRECT: &[&str] = &["a.example:443 direct", "a.example:443/udp", "b.example:443 direct", "c.example"];

#[test]
fn what_an_answer_grants_passes_until_the_name_is_denied_and_flows_end_with_it() {
    if !possible() {
        return;
    }
    let mut rig = Rig::new(policy(DIRECT, &[]));
    rig.serve();
    for ip in [SERVER, SERVER6] {
        assert_eq!(rig.tcp(ip).map(drop), Err(ErrorKind::ConnectionRefused), "{ip}");
        assert!(rig.udp(ip).is_err(), "{ip}");
    }
    assert_eq!(rig.grant("a.example", &[SERVER, SERVER6]).unwrap(), [SERVER, SERVER6]);
    let mut open = Vec::new();
    for ip in [SERVER, SERVER6] {
        let (mut stream, socket) = (rig.tcp(ip).unwrap(), rig.udp(ip).unwrap());
        tcp_echo(&mut stream).unwrap();
        open.push((stream, socket));
    }
    assert!(rig.tcp("198.51.100.2").is_err());
    rig.deny(&["a.example", "a.example:443/udp"]);
    for (mut stream, socket) in open {
        assert!(tcp_echo(&mut stream).is_err());
        assert!(udp_echo(&socket).is_err());
    }
    assert!(rig.tcp(SERVER).is_err() && rig.tcp(SERVER6).is_err());
    assert_eq!(rig.told(Duration::ZERO), []);
}

#[test]
fn an_address_that_two_names_share_stays_open_for_the_other() {
    if !possible() {
        return;
    }
    let mut rig = Rig::new(policy(DIRECT, &[]));
    rig.serve();
    rig.grant("a.example", &[SERVER]).unwrap();
    rig.grant("b.example", &[SERVER]).unwrap();
    let (mut stream, socket) = (rig.tcp(SERVER).unwrap(), rig.udp(SERVER).unwrap());
    rig.deny(&["a.example:443", "a.example:443/udp"]);
    tcp_echo(&mut stream).unwrap();
    rig.tcp(SERVER).unwrap();
    // Only a.example had UDP.
    assert!(udp_echo(&socket).is_err());
    rig.deny(&["a.example", "b.example"]);
    assert!(tcp_echo(&mut stream).is_err());
}

#[test]
fn only_what_the_policy_answers_with_real_addresses_above_the_floor_is_granted() {
    if !possible() {
        return;
    }
    let mut rig = Rig::new(policy(DIRECT, &[]));
    for name in ["c.example", "other.example"] {
        assert!(rig.grant(name, &[SERVER]).unwrap_err().contains("real addresses"), "{name}");
    }
    // The floor; the host's own by the facts, and by the kernel's word; the container's own network.
    rig.host.sh("ip addr add 203.0.113.2/24 dev ext");
    let below =
        ["10.0.0.1", "169.254.169.254", "::ffff:127.0.0.1", "203.0.113.1", "203.0.113.2", "10.88.0.7"];
    assert_eq!(rig.grant("a.example", &below).unwrap(), [] as [&str; 0]);
    assert_eq!(rig.grant("a.example", &["10.0.0.1", SERVER, SERVER]).unwrap(), [SERVER]);
    let many: Vec<String> = (0..70).map(|n| format!("192.0.2.{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(rig.grant("a.example", &many).unwrap().len(), 63);
    assert_eq!(rig.told(Duration::ZERO), []);
}

#[test]
fn what_was_granted_ends_by_itself() {
    if !possible() {
        return;
    }
    let mut rig = Rig::new(policy(DIRECT, &[]));
    rig.serve();
    // Long enough to be used, which takes a slow machine a while.
    let socket = [2, 8, 32].into_iter().find_map(|seconds| {
        rig.grant_for("a.example", SERVER, seconds);
        rig.udp(SERVER).ok()
    });
    // Nobody attends to anything: the kernel ends it.
    let (socket, started) = (socket.unwrap(), Instant::now());
    while udp_echo(&socket).is_ok() {
        assert!(started.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(rig.told(Duration::ZERO), []);
}

#[test]
fn an_address_with_an_open_flow_stays_and_one_without_goes() {
    if !possible() {
        return;
    }
    let mut rig = Rig::new(policy(&[DIRECT, &["d.example:444/udp"]].concat(), &[]));
    rig.serve();
    // Long enough for the flows to begin, which takes a slow machine a while.
    let flows = [3, 12, 48].into_iter().find_map(|seconds| {
        rig.grant_for("a.example", SERVER, seconds);
        rig.grant_for("b.example", SERVER6, seconds);
        // Another name's, whose rules opened no port of the flow.
        rig.grant_for("d.example", SERVER, seconds);
        Some((rig.tcp(SERVER).ok()?, rig.udp(SERVER).ok()?, 2 * seconds))
    });
    let (mut stream, socket, seconds) = flows.unwrap();
    assert_eq!(rig.told(Duration::from_secs(seconds)), []);
    tcp_echo(&mut stream).unwrap();
    udp_echo(&socket).unwrap();
    let left = |rig: &Rig| -> Vec<_> {
        rig.guard.granting.grants().iter().map(|(name, ip, _)| (name.to_string(), ip)).collect()
    };
    rig.settles("the end of what nothing uses", |rig| left(rig).len() == 1);
    assert_eq!(left(&rig), [("a.example".to_owned(), SERVER.parse().unwrap())]);
    assert_eq!(rig.tcp(SERVER6).map(drop), Err(ErrorKind::ConnectionRefused));
}

#[test]
fn changes_of_our_own_and_the_ends_of_elements_are_no_tampering() {
    if !possible() {
        return;
    }
    let mut rig = Rig::new(policy(&[DIRECT, &["192.0.2.0/24", "any:80"]].concat(), &["192.0.2.7:*"]));
    let until = unix_in(2);
    rig.live(&Live { state: Some(Shield::Down), until: Some(until), ..Live::default() });
    rig.grant_for("a.example", SERVER, 1);
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(4500) {
        rig.guard.generation = None;
        rig.guard.compared = None;
        rig.guard.check();
        assert_eq!(rig.told(Duration::from_millis(100)), []);
        rig.grant("b.example", &[SERVER6]).unwrap();
    }
    rig.live(&Live { state: Some(Shield::Block), ..Live::default() });
    rig.live(&Live::default());
    assert_eq!(rig.told(Duration::from_millis(300)), []);
    rig.settles("the last comparison", |rig| rig.guard.generation.is_some());
}

fn unix_in(seconds: u64) -> u64 {
    crate::context::unix_seconds() + seconds
}

#[test]
fn a_container_whose_tables_somebody_changed_is_cut_off_at_once() {
    if !possible() {
        return;
    }
    let changes = [
        "nft delete table inet terok",
        "nft flush chain inet terok out",
        "nft chain inet terok out '{ policy accept; }'",
        "nft insert rule inet terok out accept",
        "nft add element inet terok allow4 '{ 198.51.100.1 . tcp . 443 }'",
        // Gone before anybody looks, and put back again and again.
        "nft add element inet terok open4 '{ 0.0.0.0-255.255.255.255 . tcp . 0-65535 timeout 1s }'",
        "nft add table inet terok '{ flags dormant; }'",
        "nft delete table netdev terok",
        "nft flush chain netdev terok egress-eth0",
    ];
    for change in changes {
        let mut rig = Rig::new(policy(&["192.0.2.1"], &[]));
        assert_eq!(rig.told(Duration::from_millis(50)), [], "{change}");
        rig.inside.sh(change);
        // By the kernel's word: without it, it would be seen at the next loading.
        let told = rig.told(PASSES);
        assert!(matches!(&told[..], [News::Tampered { cut: true, .. }]), "{change}: {told:?}");
        assert_eq!(rig.cards(), 0, "{change}");
        // The table refuses again, and nothing opens it.
        assert!(rig.tcp(SERVER).is_err());
        let state = Dir::base(rig.state.path()).unwrap();
        assert!(rig.guard.apply(&state).unwrap_err().to_string().contains("start it again"));
        assert!(rig.grant("a.example", &[SERVER]).unwrap_err().contains("cut off"));
        // A card that is attached now goes at once.
        rig.outside.sh(&format!("ip link add out1 type veth peer name eth1 netns {}", rig.inside.0.id()));
        rig.settles("the end of the card", |rig| rig.cards() == 0);
    }
}

#[test]
fn another_table_is_no_tampering_however_often_it_changes() {
    if !possible() {
        return;
    }
    let mut rig = Rig::new(policy(&["192.0.2.1"], &[]));
    let script = (0..2000).map(|n| format!("add table ip other{n}\n")).collect::<String>();
    std::fs::write(rig.state.path().join("script"), script).unwrap();
    rig.inside.sh(&format!("nft -f {}", rig.state.path().join("script").display()));
    for n in 0..20 {
        rig.inside.sh(&format!("nft add table ip more{n}"));
        assert_eq!(rig.told(Duration::from_millis(10)), []);
    }
    assert_eq!(rig.told(Duration::from_millis(500)), []);
    rig.settles("a comparison", |rig| rig.guard.generation.is_some());
    rig.inside.sh("nft flush chain inet terok out");
    assert_eq!(rig.told(PASSES).len(), 1);
}

#[test]
fn a_card_that_is_attached_later_is_guarded_and_told() {
    if !possible() {
        return;
    }
    let mut rig = Rig::new(policy(&["192.0.2.1"], &[]));
    rig.outside.sh(&format!("ip link add out1 type veth peer name eth1 netns {}", rig.inside.0.id()));
    rig.outside.sh("ip addr add 10.89.0.1/24 dev out1; ip link set out1 up");
    rig.inside.sh("ip addr add 10.89.0.2/24 dev eth1; ip link set eth1 up");
    let nets = |card: &Card| card.nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let cards = rig.told_cards(|cards| cards.len() == 2 && nets(&cards[1]).contains("10.89.0.0/24"));
    assert_eq!(cards[1].name, "eth1");
    rig.settles("its chain and its network", |rig| {
        let list = rig.listed();
        list.contains("egress-eth1") && list.contains("10.89.0.0")
    });
    rig.inside.sh("ip link delete eth1");
    rig.told_cards(|left| left.len() == 1);
    assert_eq!(rig.told(Duration::from_millis(300)), []);
}

/// Attaches a card to a container that was made without one, as an engine does behind the runtime's back.
fn attach(rig: &Rig) {
    rig.outside.sh(&format!("ip link add out0 type veth peer name eth0 netns {}", rig.inside.0.id()));
    rig.outside
        .sh("ip addr add 10.88.0.1/24 dev out0; ip addr add fd88::1/64 dev out0 nodad; ip link set out0 up");
    rig.inside.sh(INSIDE);
}

#[test]
fn the_first_card_of_a_sealed_container_lets_nothing_out_packet_sockets_included() {
    if !possible() {
        return;
    }
    let mut rig = Rig::sealed();
    attach(&rig);
    rig.told_cards(|cards| cards.len() == 1);
    assert!(rig.tcp(SERVER).is_err());
    assert!(rig.listed().contains("egress-eth0"));
    rig.inside.sh("ip link delete eth0");
    rig.told_cards(<[Card]>::is_empty);
    attach(&rig);
    assert_eq!(rig.told(Duration::from_millis(500)), []);
    rig.settles("the guard of the next card", |rig| rig.guard.egress && rig.guard.generation.is_some());
    assert!(rig.tcp(SERVER).is_err());
}

#[test]
fn a_sealed_container_whose_tables_somebody_changed_loses_each_card_it_has_or_gets() {
    if !possible() {
        return;
    }
    for (first, change) in [
        ("card", "nft delete table inet terok"),
        ("card", "nft flush chain netdev terok egress-eth0"),
        ("change", "nft delete table inet terok"),
    ] {
        let mut rig = Rig::sealed();
        if first == "card" {
            attach(&rig);
            rig.told_cards(|cards| cards.len() == 1);
            rig.inside.sh(change);
        } else {
            rig.inside.sh(change);
            let told = rig.told(PASSES);
            assert!(matches!(&told[..], [News::Tampered { cut: false, .. }]), "{told:?}");
            rig.outside.sh(&format!("ip link add out0 type veth peer name eth0 netns {}", rig.inside.0.id()));
        }
        let told = rig.told(PASSES);
        assert!(matches!(&told[..], [.., News::Tampered { cut: true, .. }]), "{first} {change}: {told:?}");
        assert_eq!(rig.cards(), 0, "{first} {change}");
        rig.outside.sh(&format!("ip link add out1 type veth peer name eth1 netns {}", rig.inside.0.id()));
        rig.settles("the end of the card", |rig| rig.cards() == 0);
    }
}

/// As Docker does: it moves the card in by the name it was made with, and renames it there.
#[test]
fn a_card_that_is_renamed_is_guarded_by_its_new_name_and_no_tampering() {
    if !possible() {
        return;
    }
    let mut rig = Rig::new(policy(&["192.0.2.1"], &[]));
    rig.outside.sh(&format!("ip link add out1 type veth peer name veth1 netns {}", rig.inside.0.id()));
    assert_eq!(rig.told(Duration::from_millis(500)), []);
    rig.inside.sh("ip link set veth1 name eth1; ip link set eth1 up");
    assert_eq!(rig.told(Duration::from_millis(500)), []);
    rig.settles("its chain", |rig| rig.listed().contains("egress-eth1"));
    assert_eq!(rig.cards(), 2);
}

#[test]
fn the_hosts_new_address_is_below_the_floor_from_then_on() {
    if !possible() {
        return;
    }
    let mut rig = Rig::new(policy(&["any"], &[]));
    rig.host.sh("ip addr add 203.0.113.9/24 dev ext");
    let list = |rig: &Rig| {
        let list =
            rig.inside.run(|| Command::new("nft").args(["list", "set", "inet", "terok", "floor4"]).output());
        String::from_utf8(list.unwrap().stdout).unwrap()
    };
    rig.settles("the new address", |rig| list(rig).contains("203.0.113.9"));
    rig.host.sh("ip addr del 203.0.113.9/24 dev ext");
    rig.settles("the end of the address", |rig| !list(rig).contains("203.0.113.9"));
}
