//! Links, addresses and routes over rtnetlink (`linux/rtnetlink.h`): the container's loopback made to carry everything,
//! and the question whether an address is the host's own.

use crate::netlink::{self, Failure, Socket, Writer};
use nix::errno::Errno;
use nix::sys::socket::SockProtocol;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};
use terok_policy::virt::V6_SELF;

/// `lo` has this index in every network namespace.
const LO: u32 = 1;
/// Metric of our default routes: any other route is preferred. (u32::MAX itself marks the IPv6 null route.)
const LAST_RESORT: u32 = u32::MAX - 1;
/// How long the kernel may take to make an address local; it takes some microseconds.
const LOCAL_WITHIN: Duration = Duration::from_secs(2);
const LOCAL_POLL: Duration = Duration::from_micros(20);
/// `RTPROT_STATIC`
const RTPROT_STATIC: u8 = 4;
/// `IFLA_EXT_MASK`, `RTEXT_FILTER_SKIP_STATS`
const IFLA_EXT_MASK: u16 = 29;
const RTEXT_FILTER_SKIP_STATS: u32 = 8;

/// What is there already is an error, which is then ignored; a link must not be asked for like this.
const NEW: i32 = libc::NLM_F_CREATE | libc::NLM_F_EXCL;

/// A route netlink socket of one network namespace.
#[derive(Debug)]
pub struct Rtnl(Socket);

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// `IFF_UP`
    pub up: bool,
    /// `IFF_LOOPBACK`
    pub loopback: bool,
}

/// Why the network could not be set up or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RtnlError {
    /// The socket failed.
    #[error("route netlink: {0}")]
    Socket(#[from] io::Error),
    /// The kernel refused a request.
    #[error("the kernel refused {what}: {errno}{}", .text.as_deref().map(|t| format!(" ({t})")).unwrap_or_default())]
    Refused {
        /// What was asked for.
        what: &'static str,
        /// Why not.
        errno: Errno,
        /// The kernel's own words.
        text: Option<String>,
    },
}

impl Rtnl {
    /// Opens a socket in the calling thread's network namespace; it stays there.
    pub fn open() -> io::Result<Self> {
        Socket::open(SockProtocol::NetlinkRoute).map(Self)
    }

    /// The namespace's interfaces.
    pub fn interfaces(&self) -> Result<Vec<Interface>, RtnlError> {
        let mut w = Writer::default();
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
        w.message(libc::RTM_GETLINK, flags, 1, |w| {
            w.raw(&ifinfomsg(0, 0, 0));
            w.attribute(IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
        });
        let mut found = Vec::new();
        let dumped = self.0.dump(w.bytes(), |m| {
            let Some(header) = m.body.first_chunk::<16>() else {
                return;
            };
            let flags = word(header, 8) as i32;
            let name = netlink::attributes(&m.body[16..]).find(|a| a.kind == libc::IFLA_IFNAME);
            found.push(Interface {
                index: word(header, 4),
                name: name.and_then(|a| a.string()).unwrap_or("?").to_owned(),
                up: flags & libc::IFF_UP != 0,
                loopback: flags & libc::IFF_LOOPBACK != 0,
            });
        });
        dumped.map_err(|e| RtnlError::of("the list of interfaces", e))?;
        Ok(found)
    }

    /// Makes `lo` carry everything: up, an address of our own, default routes of the highest metric for both families.
    /// What is there already stays. Returns whether IPv6 is usable here (it is not where `disable_ipv6` is set).
    pub fn lo_up(&self) -> Result<bool, RtnlError> {
        let up = libc::IFF_UP as u32;
        self.set("lo up", libc::RTM_NEWLINK, 0, |w| {
            w.raw(&ifinfomsg(LO, up, up));
        })?;
        self.default_by_lo("the IPv4 default route by lo", Ipv4Addr::LOCALHOST.into())?;
        match self.v6() {
            Ok(()) => Ok(true),
            // EACCES: disable_ipv6 is set. The others: the kernel knows no IPv6 at all.
            Err(RtnlError::Refused {
                errno: Errno::EACCES | Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT,
                ..
            }) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Whether packets to `ip` stay on this host: its own address, broadcast, anycast or multicast. An address without a
    /// route is not local.
    pub fn is_local(&self, ip: IpAddr) -> io::Result<bool> {
        let ip = ip.to_canonical();
        let (family, bits) = family(ip);
        let mut w = Writer::default();
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        w.message(libc::RTM_GETROUTE, flags, 1, |w| {
            w.raw(&rtmsg(family, bits, 0, 0, 0, 0));
            w.attribute(libc::RTA_DST, &octets(ip));
        });
        let mut kind = None;
        let asked = self.0.request(w.bytes(), 1, |m| {
            // struct rtmsg: rtm_type is its eighth octet
            kind = m.body.get(7).copied().filter(|_| m.kind == libc::RTM_NEWROUTE);
        });
        match (asked, kind) {
            (Ok(()), Some(kind)) => Ok(kind != libc::RTN_UNICAST),
            (Ok(()), None) => Err(io::Error::other("the kernel answered without a route")),
            (Err(Failure::Io(e)), _) => Err(e),
            (Err(Failure::Refused(r)), _) => match r.errno {
                Errno::ENETUNREACH | Errno::EHOSTUNREACH => Ok(false),
                errno => Err(errno.into()),
            },
        }
    }

    fn v6(&self) -> Result<(), RtnlError> {
        self.set("our IPv6 address on lo", libc::RTM_NEWADDR, NEW, |w| {
            // struct ifaddrmsg
            let mut header = [0; 8];
            header[0] = libc::AF_INET6 as u8;
            header[1] = 128;
            header[2] = libc::IFA_F_NODAD as u8;
            header[4..].copy_from_slice(&LO.to_ne_bytes());
            w.raw(&header);
            w.attribute(libc::IFA_LOCAL, &V6_SELF.octets());
            w.attribute(libc::IFA_ADDRESS, &V6_SELF.octets());
        })?;
        self.default_by_lo("the IPv6 default route by lo", V6_SELF.into())?;
        // net/ipv6/addrconf.c makes the address local in a work queue of its own, a moment after the answer. An answer to a
        // connection opened before that would be lost, and tried again after a second.
        let deadline = Instant::now() + LOCAL_WITHIN;
        while !self.is_local(V6_SELF.into())? {
            if Instant::now() > deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "our IPv6 address is not local").into());
            }
            std::thread::sleep(LOCAL_POLL);
        }
        Ok(())
    }

    /// The source is named because the kernel would otherwise send from the unspecified address.
    fn default_by_lo(&self, what: &'static str, source: IpAddr) -> Result<(), RtnlError> {
        let (family, _) = family(source);
        self.set(what, libc::RTM_NEWROUTE, NEW, |w| {
            let table = libc::RT_TABLE_MAIN;
            w.raw(&rtmsg(family, 0, table, RTPROT_STATIC, libc::RT_SCOPE_LINK, libc::RTN_UNICAST));
            w.attribute(libc::RTA_OIF, &LO.to_ne_bytes());
            w.attribute(libc::RTA_PREFSRC, &octets(source));
            w.attribute(libc::RTA_PRIORITY, &LAST_RESORT.to_ne_bytes());
        })
    }

    fn set(
        &self,
        what: &'static str,
        kind: u16,
        flags: i32,
        body: impl FnOnce(&mut Writer),
    ) -> Result<(), RtnlError> {
        let mut w = Writer::default();
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags;
        w.message(kind, flags, 1, body);
        match self.0.request(w.bytes(), 1, |_| {}) {
            Err(Failure::Refused(r)) if r.errno == Errno::EEXIST => Ok(()),
            done => done.map_err(|e| RtnlError::of(what, e)),
        }
    }
}

impl RtnlError {
    fn of(what: &'static str, failure: Failure) -> Self {
        match failure {
            Failure::Io(e) => Self::Socket(e),
            Failure::Refused(r) => Self::Refused { what, errno: r.errno, text: r.text },
        }
    }
}

/// `struct ifinfomsg`
fn ifinfomsg(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..].copy_from_slice(&change.to_ne_bytes());
    header
}

/// `struct rtmsg`
fn rtmsg(family: i32, dst_len: u8, table: u8, protocol: u8, scope: u8, kind: u8) -> [u8; 12] {
    [family as u8, dst_len, 0, 0, table, protocol, scope, kind, 0, 0, 0, 0]
}

fn family(ip: IpAddr) -> (i32, u8) {
    match ip {
        IpAddr::V4(_) => (libc::AF_INET, 32),
        IpAddr::V6(_) => (libc::AF_INET6, 128),
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn word(header: &[u8; 16], at: usize) -> u32 {
    u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
}
