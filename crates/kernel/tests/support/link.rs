//! A container's namespace with a card, and what is at the other end of it: the engine's gateway, a neighbour on the same
//! link and the world behind the gateway.

use super::run;
use std::fs::File;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};
use terok_kernel::netlink::Socket;
use terok_kernel::netns::NetNs;
use terok_kernel::nflog;
use terok_kernel::nft::{self, NftSocket};
use terok_kernel::rtnl::Rtnl;
use terok_kernel::socket::{Loopback, tcp_loopback, udp_loopback};
use terok_policy::grants::Grants;
use terok_policy::layout::NFLOG_GROUP;
use terok_policy::live::Live;
use terok_policy::plan::{HostFacts, Network, Now, Plan, Wiring};
use terok_policy::policy::{Policy, Source, Sourced};
use terok_policy::rule::Rule;
use terok_policy::ruleset::Egress;

pub const MARK: u32 = 0x7e40_1234;
pub const PEERS: u16 = 40_053;
/// Hosts in the world, which answer on any port something listens on.
pub const WORLD4: &str = "8.8.8.8";
pub const WORLD6: &str = "2606:4700::1111";
/// The card's own addresses, the gateway's and a neighbour's.
pub const OWN4: &str = "10.1.1.2";
pub const OWN6: &str = "fd01::2";
pub const GATEWAY4: &str = "10.1.1.1";
pub const GATEWAY6: &str = "fd01::1";
pub const NEIGHBOUR4: &str = "10.1.1.7";
pub const NEIGHBOUR6: &str = "fd01::7";

/// Enough for what passes, and an end for what is dropped.
pub const PASSES: Duration = Duration::from_secs(20);
pub const DROPPED: Duration = Duration::from_millis(300);

/// The other end of the link.
#[derive(Debug)]
pub struct Far {
    ns: NetNs,
    file: File,
}

/// The container's end, this thread's.
#[derive(Debug)]
pub struct Filtered {
    pub far: Far,
    pub links: Rtnl,
    pub nft: NftSocket,
    pub nflog: Socket,
    pub dns_udp: Loopback<UdpSocket>,
    pub proxy: Loopback<TcpListener>,
    pub wiring: Wiring,
    pub plan: Plan,
    _dns_tcp: Loopback<TcpListener>,
}

/// Makes the far end and a link to it from this thread's namespace, `eth0`.
pub fn link() -> Far {
    let made = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        (NetNs::own().unwrap(), File::open("/proc/thread-self/ns/net").unwrap())
    });
    let (ns, file) = made.join().unwrap();
    let far = Far { ns, file };
    let path = far.path();
    // Addresses are in place before the link is up, so that nobody waits for duplicates.
    batch(&format!(
        "link set lo up
         link add eth0 address 02:00:00:00:00:02 type veth peer name far0 address 02:00:00:00:00:01 netns {path}
         addr add {OWN4}/24 dev eth0
         addr add {OWN6}/64 dev eth0 nodad
         link set eth0 up"
    ));
    far.run(|| {
        batch(&format!(
            "link set lo up
             addr add {GATEWAY4}/24 dev far0
             addr add {NEIGHBOUR4}/24 dev far0
             addr add {GATEWAY6}/64 dev far0 nodad
             addr add {NEIGHBOUR6}/64 dev far0 nodad
             link set far0 up
             route add local 8.8.0.0/16 dev lo
             route add local 192.0.2.0/24 dev lo
             addr add {WORLD6}/128 dev lo nodad"
        ));
    });
    // The first neighbour solicitation on a fresh link is lost, and the next comes a second later.
    far.run(|| batch(&format!("neigh add {OWN6} lladdr 02:00:00:00:00:02 dev far0")));
    batch(&format!(
        "route add default via {GATEWAY4}
         route add default via {GATEWAY6} dev eth0
         neigh add {GATEWAY6} lladdr 02:00:00:00:00:01 dev eth0"
    ));
    far
}

/// Loads both tables over the link, as the hook does.
pub fn filtered(allow: &[&str], deny: &[&str]) -> Filtered {
    let far = link();
    let links = Rtnl::open().unwrap();
    assert!(links.lo_up().unwrap());
    let (dns_udp, dns_tcp) = (udp_loopback(true).unwrap(), tcp_loopback(true).unwrap());
    let proxy = tcp_loopback(true).unwrap();
    let wiring =
        Wiring { dns_udp: dns_udp.port, dns_tcp: dns_tcp.port, proxy: proxy.port, peers: PEERS, mark: MARK };
    let sourced = |rule| Sourced { rule, source: Source::Annotation };
    let policy = Policy {
        allow: allow.iter().map(|text| sourced(text.parse().unwrap())).collect(),
        deny: deny.iter().map(|text| sourced(Rule::parse_deny(text).unwrap())).collect(),
        ..Policy::default()
    };
    let facts = HostFacts {
        network: Network::Filtered,
        cards: links.cards().unwrap(),
        resolvers: vec![GATEWAY4.parse().unwrap(), GATEWAY6.parse().unwrap()],
        ..HostFacts::sealed(true)
    };
    let plan = Plan::new(policy, facts).unwrap();
    let nflog = Socket::from(nflog::bind(NFLOG_GROUP).unwrap());
    let nft = nft::open().unwrap();
    let made = Filtered { far, links, nft, nflog, dns_udp, proxy, wiring, plan, _dns_tcp: dns_tcp };
    made.nft.load(&made.ruleset(&Live::default())).unwrap();
    made.nft.load_egress(&made.egress()).unwrap();
    made.verify().unwrap();
    made
}

impl Filtered {
    pub fn ruleset(&self, live: &Live) -> terok_policy::ruleset::Ruleset {
        self.plan.ruleset(&self.wiring, &Now { live, grants: &Grants::default(), unix: 0 })
    }

    pub fn egress(&self) -> Egress {
        self.plan.egress(&self.wiring).unwrap()
    }

    pub fn verify(&self) -> Result<(), nft::NftError> {
        self.nft.verify(&self.ruleset(&Live::default()))?;
        self.nft.verify_egress(&self.egress())
    }

    /// What an operator decides, as the supervisor applies it.
    pub fn set(&self, live: &Live) {
        self.nft
            .replace_sets(&self.plan.live_sets(&Now { live, grants: &Grants::default(), unix: 0 }))
            .unwrap();
    }

    /// The first that is logged from now on, by its prefix.
    pub fn next_logged(&self) -> String {
        let deadline = Instant::now() + PASSES;
        loop {
            if let Some(first) = self.logged().into_iter().next() {
                return first;
            }
            assert!(Instant::now() < deadline, "nothing was logged");
            std::thread::yield_now();
        }
    }

    /// Prefixes of what was logged since the last call.
    pub fn logged(&self) -> Vec<String> {
        let (mut all, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
        while let Ok(datagram) = self.nflog.receive(&mut buffer) {
            all.extend(nflog::parse(datagram).map(|p| p.prefix.to_owned()));
        }
        all
    }
}

impl Far {
    /// The namespace, as other programs find it.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Runs `work` there.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.ns.run(work).unwrap()
    }

    pub fn tcp(&self, address: SocketAddr) -> TcpListener {
        self.run(|| TcpListener::bind(address).unwrap())
    }

    pub fn udp(&self, address: SocketAddr) -> UdpSocket {
        self.run(|| udp(address))
    }

    /// Connects from `from` there to `to` here, which must come in.
    #[track_caller]
    pub fn comes_in(&self, from: &str, to: SocketAddr) -> TcpStream {
        self.run(|| connect_from(at(from, 0), to, PASSES)).unwrap_or_else(|e| panic!("{from}: {e}"))
    }

    /// Tries to connect from an address and port there to `to` here, which must not come in.
    #[track_caller]
    pub fn stays_out(&self, from: SocketAddr, to: SocketAddr) {
        self.run(|| connect_from(from, to, DROPPED)).expect_err("it came in");
    }
}

pub fn udp(address: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_read_timeout(Some(PASSES)).unwrap();
    socket
}

pub fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

/// One command of iproute2 a line.
pub fn batch(commands: &str) {
    let lines: String = commands.lines().map(|line| format!("{}\n", line.trim())).collect();
    run("ip", &["-batch", "-"], &lines).unwrap();
}

/// The standard library cannot choose the source of a connection.
fn connect_from(from: SocketAddr, to: SocketAddr, within: Duration) -> std::io::Result<TcpStream> {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, sockopt,
    };
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = nix::sys::socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // The time a connect may take is that of sending.
    let limit = nix::sys::time::TimeVal::new(within.as_secs() as i64, within.subsec_micros().into());
    setsockopt(&socket, sockopt::SendTimeout, &limit)?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(from))?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(TcpStream::from(socket))
}

/// Sends a frame by `card` past the IP stack.
#[allow(unsafe_code, reason = "packet sockets have no safe wrapper")]
pub fn send_frame(card: u32, frame: &[u8]) -> std::io::Result<()> {
    // SAFETY: socket returns a fresh descriptor or -1; sendto gets a whole sockaddr_ll and the frame's own length.
    unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        nix::errno::Errno::result(fd)?;
        let _socket = OwnedFd::from_raw_fd(fd);
        let mut to: libc::sockaddr_ll = std::mem::zeroed();
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = card as i32;
        to.sll_halen = 6;
        let sent = libc::sendto(
            fd,
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            size_of::<libc::sockaddr_ll>() as u32,
        );
        nix::errno::Errno::result(sent)?;
    }
    Ok(())
}

/// An Ethernet frame from the container to the gateway with a UDP datagram, without checksum of UDP.
pub fn udp_frame(from: SocketAddr, to: SocketAddr, data: &[u8]) -> Vec<u8> {
    let (IpAddr::V4(src), IpAddr::V4(dst)) = (from.ip(), to.ip()) else { panic!("IPv4 only") };
    let length = (20 + 8 + data.len()) as u16;
    let mut ip = vec![0x45, 0];
    ip.extend(length.to_be_bytes());
    ip.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    ip.extend(src.octets());
    ip.extend(dst.octets());
    let sum: u32 = ip.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend(ip);
    for word in [from.port(), to.port(), length - 20, 0] {
        frame.extend(word.to_be_bytes());
    }
    frame.extend(data);
    frame
}
