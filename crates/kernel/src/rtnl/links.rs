//! What is there: links, their addresses and the gateways of routes, and the cards that they make up.

use super::{Rtnl, RtnlError, ifinfomsg, rtmsg, word};
use crate::netlink::{attributes, find};
use nix::errno::Errno;
use std::net::{IpAddr, Ipv6Addr};
use terok_policy::plan::Card;
use terok_policy::rule::Cidr;

/// `IFLA_EXT_MASK`, `RTEXT_FILTER_SKIP_STATS`
const IFLA_EXT_MASK: u16 = 29;
const RTEXT_FILTER_SKIP_STATS: u32 = 8;
/// `IFLA_INFO_KIND` in `IFLA_LINKINFO`
const IFLA_INFO_KIND: u16 = 1;
/// fe80::/64
const LINK_LOCAL: Cidr = Cidr { addr: IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), prefix: 64 };
/// Name and kind of the devices that come with tunnel modules.
const FALLBACK_TUNNELS: [(&str, &str); 9] = [
    ("tunl0", "ipip"),
    ("sit0", "sit"),
    ("ip6tnl0", "ip6tnl"),
    ("gre0", "gre"),
    ("gretap0", "gretap"),
    ("erspan0", "erspan"),
    ("ip6gre0", "ip6gre"),
    ("ip_vti0", "vti"),
    ("ip6_vti0", "vti6"),
];
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

impl Interface {
    /// Whether this is a device that a tunnel module puts into every new namespace (`sysctl net.core.fb_tunnels_only_for_init_net`),
    /// as it was put there. One that is up is a card like any other.
    pub fn is_fallback_tunnel(&self) -> bool {
        !self.up && self.kind.as_deref().is_some_and(|kind| FALLBACK_TUNNELS.contains(&(&self.name, kind)))
    }
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
    /// The network cards, by index: every interface but loopback, up or not, with its connected networks and gateways. What
    /// the kernel puts into each new namespace by itself ([`Interface::is_fallback_tunnel`]) is none.
    pub fn cards(&self) -> Result<Vec<Card>, RtnlError> {
        let (interfaces, addresses, gateways) = (self.interfaces()?, self.addresses()?, self.gateways()?);
        if let Some(odd) = interfaces.iter().find(|i| i.name.contains(char::REPLACEMENT_CHARACTER)) {
            return Err(RtnlError::Name(odd.index));
        }
        let card = |interface: Interface| {
            let shared = interface.kind.as_deref() != Some(TUN);
            let own = addresses.iter().filter(|a| a.index == interface.index);
            // A link-local address comes by itself, some time after the link is up.
            let mut nets: Vec<Cidr> = own.map(|a| a.net).chain(shared.then_some(LINK_LOCAL)).collect();
            nets.sort_by_key(|net| (net.addr, net.prefix));
            nets.dedup();
            let own = gateways.iter().filter(|g| g.index == interface.index);
            let gateways = own.map(|g| g.ip).collect();
            Card { index: interface.index, name: interface.name, shared, nets, gateways }
        };
        let is_card = |i: &Interface| !i.loopback && !i.is_fallback_tunnel();
        let mut cards: Vec<Card> = interfaces.into_iter().filter(is_card).map(card).collect();
        cards.sort_by_key(|card| card.index);
        Ok(cards)
    }

    /// Removes every interface but loopback, also one that cannot be named. Each is tried; the first that failed is told.
    pub fn delete_cards(&self) -> Result<(), RtnlError> {
        let others = self.interfaces()?.into_iter().filter(|i| !i.loopback && !i.is_fallback_tunnel());
        others.map(|card| self.delete_link(card.index)).fold(Ok(()), Result::and)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fallback_tunnel_is_no_card_until_it_is_up() {
        let sit0 = Interface {
            index: 2,
            name: "sit0".to_owned(),
            up: false,
            loopback: false,
            kind: Some("sit".to_owned()),
        };
        assert!(sit0.is_fallback_tunnel());
        for other in [
            Interface { up: true, ..sit0.clone() },
            Interface { name: "sit1".to_owned(), ..sit0.clone() },
            Interface { kind: Some("veth".to_owned()), ..sit0.clone() },
            Interface { kind: None, ..sit0 },
        ] {
            assert!(!other.is_fallback_tunnel(), "{other:?}");
        }
    }

    #[test]
    fn messages_cut_anywhere_are_read_without_panic() {
        let mut w = crate::netlink::Writer::default();
        w.raw(&[0; 12]);
        w.nest(libc::RTA_MULTIPATH, |w| w.raw(&[12, 0, 0, 0, 2, 0, 0, 0, 8, 0, 5, 0]));
        w.attribute(libc::RTA_VIA, &[2, 0, 10, 0, 0, 1]);
        w.attribute(libc::RTA_OIF, &[3, 0, 0, 0]);
        for cut in 0..w.bytes().len() {
            for octet in [0, 1, 7, 0xff] {
                let mut bytes = w.bytes().to_vec();
                bytes[cut] = octet;
                for bytes in [&bytes[..], &bytes[..cut]] {
                    drop((route(bytes), address(bytes), interface(bytes)));
                }
            }
        }
    }
}
