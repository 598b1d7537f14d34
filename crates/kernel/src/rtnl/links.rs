//! What is there: links, their addresses and the gateways of routes, and the cards that they make up.

use super::{Rtnl, RtnlError, ifinfomsg, rtmsg, word};
use crate::netlink::{attributes, find};
use nix::errno::Errno;
use std::net::IpAddr;
use terok_policy::plan::Card;
use terok_policy::rule::Cidr;

/// `IFLA_EXT_MASK`, `RTEXT_FILTER_SKIP_STATS`
const IFLA_EXT_MASK: u16 = 29;
const RTEXT_FILTER_SKIP_STATS: u32 = 8;
/// `IFLA_INFO_KIND` in `IFLA_LINKINFO`
const IFLA_INFO_KIND: u16 = 1;
/// The kind of both tun and tap.
const TUN: &str = "tun";

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Index.
    pub index: u32,
    /// Name; U+FFFD for what is not UTF-8.
    pub name: String,
    /// `IFF_UP`
    pub up: bool,
    /// `IFF_LOOPBACK`
    pub loopback: bool,
    /// Driver of a virtual one: `veth`, `tun` (and tap), `macvlan` …
    pub kind: Option<String>,
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// Index of the interface.
    pub index: u32,
    /// The address.
    pub ip: IpAddr,
    /// The network connected by it, masked: on a point-to-point link that of the other end.
    pub net: Cidr,
}

/// The next hop of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gateway {
    /// Index of the interface it is reached by.
    pub index: u32,
    /// Its address.
    pub ip: IpAddr,
}

impl Rtnl {
    /// The network cards, by index: every interface but loopback, up or not, with its connected networks and gateways.
    pub fn cards(&self) -> Result<Vec<Card>, RtnlError> {
        let (interfaces, addresses, gateways) = (self.interfaces()?, self.addresses()?, self.gateways()?);
        let card = |interface: Interface| {
            let own = addresses.iter().filter(|a| a.index == interface.index);
            let mut nets: Vec<Cidr> = own.map(|a| a.net).collect();
            nets.sort_by_key(|net| (net.addr, net.prefix));
            nets.dedup();
            let own = gateways.iter().filter(|g| g.index == interface.index);
            Card {
                index: interface.index,
                shared: interface.kind.as_deref() != Some(TUN),
                name: interface.name,
                nets,
                gateways: own.map(|g| g.ip).collect(),
            }
        };
        if let Some(odd) = interfaces.iter().find(|i| i.name.contains(char::REPLACEMENT_CHARACTER)) {
            return Err(RtnlError::Name(odd.index));
        }
        let mut cards: Vec<Card> = interfaces.into_iter().filter(|i| !i.loopback).map(card).collect();
        cards.sort_by_key(|card| card.index);
        Ok(cards)
    }

    /// The namespace's interfaces.
    pub fn interfaces(&self) -> Result<Vec<Interface>, RtnlError> {
        self.dump("the list of interfaces", libc::RTM_GETLINK, interface, |w| {
            w.raw(&ifinfomsg(0, 0, 0));
            w.attribute(IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
        })
    }

    /// The addresses of all interfaces.
    pub fn addresses(&self) -> Result<Vec<Address>, RtnlError> {
        // struct ifaddrmsg, of both families
        self.dump("the list of addresses", libc::RTM_GETADDR, address, |w| w.raw(&[0; 8]))
    }

    /// The next hops of all routes, sorted, each once.
    pub fn gateways(&self) -> Result<Vec<Gateway>, RtnlError> {
        let mut found = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let hops = self.dump("the list of routes", libc::RTM_GETROUTE, route, |w| {
                w.raw(&rtmsg(family, 0, 0, 0, 0, 0));
            });
            match hops {
                Ok(hops) => found.extend(hops.into_iter().flatten()),
                // The kernel knows no IPv6.
                Err(RtnlError::Refused { errno: Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT, .. }) => {}
                Err(e) => return Err(e),
            }
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }
}

/// `RTM_NEWLINK`: `struct ifinfomsg` and attributes.
fn interface(body: &[u8]) -> Option<Interface> {
    let (header, rest) = body.split_first_chunk::<16>()?;
    let flags = word(header, 8)? as i32;
    let name = find(rest, libc::IFLA_IFNAME).unwrap_or(&[]);
    let kind = find(rest, libc::IFLA_LINKINFO).and_then(|info| {
        attributes(info).find(|a| a.kind == IFLA_INFO_KIND).and_then(|a| a.string()).map(str::to_owned)
    });
    Some(Interface {
        index: word(header, 4)?,
        name: String::from_utf8_lossy(name.strip_suffix(&[0]).unwrap_or(name)).into_owned(),
        up: flags & libc::IFF_UP != 0,
        loopback: flags & libc::IFF_LOOPBACK != 0,
        kind,
    })
}

/// `RTM_NEWADDR`: `struct ifaddrmsg` and attributes.
fn address(body: &[u8]) -> Option<Address> {
    let (header, rest) = body.split_first_chunk::<8>()?;
    let index = word(header, 4)?;
    // IFA_ADDRESS is the other end where there is a single one, and IFA_LOCAL then ours.
    let peer = find(rest, libc::IFA_ADDRESS).and_then(ip);
    let local = find(rest, libc::IFA_LOCAL).and_then(ip);
    let net = Cidr { addr: peer.or(local)?, prefix: header[1] }.masked();
    Some(Address { index, ip: local.or(peer)?, net })
}

/// `RTM_NEWROUTE`: the next hops, in `struct rtmsg`'s attributes or in those of each `struct rtnexthop`.
fn route(body: &[u8]) -> Option<Vec<Gateway>> {
    let (_, rest) = body.split_first_chunk::<12>()?;
    let oif = find(rest, libc::RTA_OIF).and_then(|oif| word(oif, 0));
    let mut found: Vec<Gateway> = oif.and_then(|index| gateway(index, rest)).into_iter().collect();
    let mut hops = find(rest, libc::RTA_MULTIPATH).unwrap_or(&[]);
    while let Some((header, _)) = hops.split_first_chunk::<8>() {
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let (Some(index), Some(own)) = (word(header, 4), hops.get(8..length)) else {
            break;
        };
        found.extend(gateway(index, own));
        hops = hops.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    Some(found)
}

/// Of the route's family, or of the other (`struct rtvia`: the family, then the address).
fn gateway(index: u32, list: &[u8]) -> Option<Gateway> {
    let same = find(list, libc::RTA_GATEWAY).and_then(ip);
    let other = || find(list, libc::RTA_VIA).and_then(|via| ip(via.get(2..)?));
    Some(Gateway { index, ip: same.or_else(other)? })
}

fn ip(octets: &[u8]) -> Option<IpAddr> {
    let v4 = |octets: &[u8]| <[u8; 4]>::try_from(octets).ok().map(IpAddr::from);
    v4(octets).or_else(|| <[u8; 16]>::try_from(octets).ok().map(IpAddr::from))
}
