//! Links, addresses and routes over rtnetlink (`linux/rtnetlink.h`): the container's loopback made to carry everything,
//! and the question whether an address is the host's own.

mod links;

pub use links::{Address, Gateway, Interface};

use crate::netlink::{Failure, Socket, Writer};
use nix::errno::Errno;
use nix::sys::socket::SockProtocol;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};
use terok_policy::rule::Cidr;
use terok_policy::virt::{V4_POOL, V6_POOL, V6_SELF};

/// `lo` has this index in every network namespace.
const LO: u32 = 1;
/// Metric of our default routes: any other route is preferred. (u32::MAX itself marks the IPv6 null route.)
const LAST_RESORT: u32 = u32::MAX - 1;
/// How long the kernel may take to make an address local; it takes some microseconds.
const LOCAL_WITHIN: Duration = Duration::from_secs(2);
const LOCAL_POLL: Duration = Duration::from_micros(20);
/// Attempts at a dump while the kernel's tables change, or at a request among too much news.
const ATTEMPTS: usize = 8;
/// Groups of the news: links, addresses and routes of both families (`RTMGRP_*`).
const NEWS: u32 = 0x1 | 0x10 | 0x40 | 0x100 | 0x400;
/// `RTPROT_STATIC`
const RTPROT_STATIC: u8 = 4;

/// What is there already is an error, which is then ignored; a link must not be asked for like this.
const NEW: i32 = libc::NLM_F_CREATE | libc::NLM_F_EXCL;

/// A route netlink socket of one network namespace, which it stays in, whoever holds it; changing anything through it takes
/// `CAP_NET_ADMIN` in the opener and in the sender.
#[derive(Debug)]
pub struct Rtnl(Socket);

/// Opens a socket in the calling thread's network namespace that is also readable after any change of links, addresses and
/// routes there: see [`Rtnl::heard`].
pub fn news() -> io::Result<Rtnl> {
    Socket::open_to(SockProtocol::NetlinkRoute, NEWS).map(Rtnl)
}

/// Why the network could not be set up or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RtnlError {
    /// The socket failed.
    #[error("route netlink: {0}")]
    Socket(#[from] io::Error),
    /// A card that no rule can name.
    #[error("the network card of index {0} has a name that is not UTF-8: rename it")]
    Name(u32),
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

    /// Whether anything changed since it was last asked, of a socket of [`news`]. Ask again after acting on it, until there is
    /// nothing: what is heard during another request does not make the socket readable.
    pub fn heard(&self) -> io::Result<bool> {
        self.0.heard()
    }

    /// Removes an interface, and the other end of a veth with it. What cannot be removed, a physical card, is shut down.
    pub fn delete_link(&self, index: u32) -> Result<(), RtnlError> {
        let deleted = self.set("to remove a link", libc::RTM_DELLINK, 0, |w| w.raw(&ifinfomsg(index, 0, 0)));
        match deleted {
            Err(RtnlError::Refused { errno: Errno::ENODEV, .. }) => Ok(()),
            Err(RtnlError::Refused { errno: Errno::EOPNOTSUPP, .. }) => {
                self.set("to shut a link down", libc::RTM_NEWLINK, 0, |w| {
                    w.raw(&ifinfomsg(index, 0, libc::IFF_UP as u32));
                })
            }
            done => done,
        }
    }

    /// Makes `lo` carry everything: up, an address of our own, default routes of the highest metric for both families, and
    /// routes to the virtual addresses, which no card must ever be chosen for.
    /// What is there already stays. Returns whether IPv6 is usable here (it is not where `disable_ipv6` is set).
    pub fn lo_up(&self) -> Result<bool, RtnlError> {
        let up = libc::IFF_UP as u32;
        self.set("lo up", libc::RTM_NEWLINK, 0, |w| {
            w.raw(&ifinfomsg(LO, up, up));
        })?;
        let own = Ipv4Addr::LOCALHOST.into();
        self.route_by_lo("the IPv4 default route by lo", None, own)?;
        self.route_by_lo("the route to virtual IPv4 addresses by lo", Some(pool(V4_POOL)), own)?;
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
        self.route_by_lo("the IPv6 default route by lo", None, V6_SELF.into())?;
        self.route_by_lo("the route to virtual IPv6 addresses by lo", Some(pool(V6_POOL)), V6_SELF.into())?;
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
    fn route_by_lo(&self, what: &'static str, to: Option<Cidr>, source: IpAddr) -> Result<(), RtnlError> {
        let (family, _) = family(source);
        self.set(what, libc::RTM_NEWROUTE, NEW, |w| {
            let table = libc::RT_TABLE_MAIN;
            let prefix = to.map_or(0, |to| to.prefix);
            w.raw(&rtmsg(family, prefix, table, RTPROT_STATIC, libc::RT_SCOPE_LINK, libc::RTN_UNICAST));
            w.attribute(libc::RTA_OIF, &LO.to_ne_bytes());
            w.attribute(libc::RTA_PREFSRC, &octets(source));
            match to {
                Some(to) => w.attribute(libc::RTA_DST, &octets(to.addr)),
                None => w.attribute(libc::RTA_PRIORITY, &LAST_RESORT.to_ne_bytes()),
            }
        })
    }

    /// What `read` makes of each message of a dump.
    fn dump<T>(
        &self,
        what: &'static str,
        kind: u16,
        read: fn(&[u8]) -> Option<T>,
        select: impl Fn(&mut Writer),
    ) -> Result<Vec<T>, RtnlError> {
        let mut w = Writer::default();
        w.message(kind, libc::NLM_F_REQUEST | libc::NLM_F_DUMP, 1, select);
        let mut attempts = 1..ATTEMPTS;
        loop {
            let mut found = Vec::new();
            match self.0.dump(w.bytes(), |m| found.extend(read(m.body))) {
                Ok(()) => return Ok(found),
                Err(Failure::Io(e))
                    if e.kind() == io::ErrorKind::Interrupted && attempts.next().is_some() => {}
                Err(e) => return Err(RtnlError::of(what, e)),
            }
        }
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
        let mut attempts = 1..ATTEMPTS;
        loop {
            match self.0.request(w.bytes(), 1, |_| {}) {
                Err(Failure::Refused(r)) if r.errno == Errno::EEXIST => return Ok(()),
                // Too much news: the answer may be lost. All that is asked for here can be asked again.
                Err(Failure::Io(e))
                    if e.raw_os_error() == Some(libc::ENOBUFS) && attempts.next().is_some() => {}
                done => return done.map_err(|e| RtnlError::of(what, e)),
            }
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

impl From<OwnedFd> for Rtnl {
    /// Takes a descriptor that [`Rtnl::open`] or [`news`] made, in this process or another.
    fn from(fd: OwnedFd) -> Self {
        Self(fd.into())
    }
}

impl From<Rtnl> for OwnedFd {
    fn from(rtnl: Rtnl) -> Self {
        rtnl.0.into()
    }
}

impl AsFd for Rtnl {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Rtnl {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn pool<A: Into<IpAddr>>((addr, prefix): (A, u8)) -> Cidr {
    Cidr { addr: addr.into(), prefix }
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

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}
