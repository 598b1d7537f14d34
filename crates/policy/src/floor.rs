//! The floor (E3): addresses that no name may lead to; only a literal rule reaches them.

use crate::rule::Cidr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

/// Why an address is below the floor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Floor {
    /// 0.0.0.0/8, ::
    Unspecified,
    /// 127.0.0.0/8, ::1
    Loopback,
    /// RFC 1918, RFC 4193 (and deprecated site-local)
    Private,
    /// 169.254.0.0/16, fe80::/10
    LinkLocal,
    /// 100.64.0.0/10 (RFC 6598)
    SharedAddress,
    /// Multicast and broadcast
    Multicast,
    /// Cloud metadata: 169.254.169.254, fd00:ec2::254 and the like
    Metadata,
    /// Reserved, benchmarking (our virtual pool) and other blocks that are no destination
    Reserved,
    /// One of the host's own addresses
    HostOwn,
}

/// The floor's reason against `ip`, or `None`. v4-mapped, v4-compatible, NAT64 (64:ff9b::/96) and 6to4 forms are judged by the IPv4 address inside.
/// The host's own addresses are the kernel's to know: the caller adds [`Floor::HostOwn`].
pub fn floor(ip: IpAddr) -> Option<Floor> {
    match ip {
        IpAddr::V4(ip) => floor4(ip),
        IpAddr::V6(ip) => V6
            .iter()
            .find(|&&(addr, prefix, _)| same_prefix(u128::from(ip), u128::from(addr), prefix))
            .map(|&(_, _, why)| why)
            .or_else(|| embedded(ip).and_then(floor4)),
    }
}

/// The blocks of [`floor`] as disjoint CIDRs, for the nftables table.
pub fn blocks() -> &'static [Cidr] {
    static BLOCKS: LazyLock<Vec<Cidr>> = LazyLock::new(disjoint);
    &BLOCKS
}

fn disjoint() -> Vec<Cidr> {
    let v4 = V4.iter().map(|&(addr, prefix, _)| (IpAddr::V4(addr), prefix));
    let v6 = V6.iter().map(|&(addr, prefix, _)| (IpAddr::V6(addr), prefix));
    let forms = EMBEDDING.iter().flat_map(|&(form, bits)| {
        V4.iter().map(move |&(addr, prefix, _)| {
            let inside = u128::from(u32::from(addr)) << (96 - bits);
            (IpAddr::V6(Ipv6Addr::from(u128::from(form) | inside)), bits + prefix)
        })
    });
    let mut all: Vec<Cidr> = v4.chain(v6).chain(forms).map(|(addr, prefix)| Cidr { addr, prefix }).collect();
    // CIDRs nest or are disjoint: what covers a block is the last one kept before it, the wider first where both begin alike.
    all.sort_unstable_by_key(|block| (block.addr, block.prefix));
    let mut kept: Vec<Cidr> = Vec::new();
    for block in all {
        if kept.last().is_none_or(|outer| outer.range().1 < block.addr) {
            kept.push(block);
        }
    }
    kept
}

/// More specific blocks first. Documentation blocks (RFC 5737) are absent on purpose: nobody's private network is there.
const V4: &[(Ipv4Addr, u8, Floor)] = &[
    (Ipv4Addr::new(255, 255, 255, 255), 32, Floor::Multicast),
    (Ipv4Addr::new(169, 254, 169, 254), 32, Floor::Metadata),
    (Ipv4Addr::new(169, 254, 170, 2), 32, Floor::Metadata), // Amazon ECS task credentials
    (Ipv4Addr::new(100, 100, 100, 200), 32, Floor::Metadata), // Alibaba Cloud
    (Ipv4Addr::new(168, 63, 129, 16), 32, Floor::Metadata), // Azure wire server, a public address
    (Ipv4Addr::new(192, 0, 0, 192), 32, Floor::Metadata),   // Oracle Cloud
    (Ipv4Addr::new(0, 0, 0, 0), 8, Floor::Unspecified),
    (Ipv4Addr::new(10, 0, 0, 0), 8, Floor::Private),
    (Ipv4Addr::new(100, 64, 0, 0), 10, Floor::SharedAddress),
    (Ipv4Addr::new(127, 0, 0, 0), 8, Floor::Loopback),
    (Ipv4Addr::new(169, 254, 0, 0), 16, Floor::LinkLocal),
    (Ipv4Addr::new(172, 16, 0, 0), 12, Floor::Private),
    (Ipv4Addr::new(192, 0, 0, 0), 24, Floor::Reserved),
    (Ipv4Addr::new(192, 88, 99, 0), 24, Floor::Reserved), // 6to4 relays, RFC 7526
    (Ipv4Addr::new(192, 168, 0, 0), 16, Floor::Private),
    (Ipv4Addr::new(198, 18, 0, 0), 15, Floor::Reserved),
    (Ipv4Addr::new(224, 0, 0, 0), 4, Floor::Multicast),
    (Ipv4Addr::new(240, 0, 0, 0), 4, Floor::Reserved),
];

/// More specific blocks first. Documentation (2001:db8::/32) is absent, as in [`V4`].
const V6: &[(Ipv6Addr, u8, Floor)] = &[
    (Ipv6Addr::UNSPECIFIED, 128, Floor::Unspecified),
    (Ipv6Addr::LOCALHOST, 128, Floor::Loopback),
    (Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), 128, Floor::Metadata), // Amazon
    (Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254), 128, Floor::Metadata),  // Google
    (Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48, Floor::Private),        // local NAT64, RFC 8215
    (Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0), 64, Floor::Reserved),           // discard, RFC 6666
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 32, Floor::Reserved),          // Teredo, RFC 4380
    (Ipv6Addr::new(0x5f00, 0, 0, 0, 0, 0, 0, 0), 16, Floor::Reserved),          // SRv6, RFC 9602
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7, Floor::Private),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10, Floor::LinkLocal),
    (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10, Floor::Private),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8, Floor::Multicast),
];

/// Forms of IPv6 address with an IPv4 address inside, directly after the prefix.
const EMBEDDING: &[(Ipv6Addr, u8)] = &[
    (Ipv6Addr::UNSPECIFIED, 96),                         // v4-compatible
    (Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0), 96),    // v4-mapped
    (Ipv6Addr::new(0, 0, 0, 0, 0xffff, 0, 0, 0), 96),    // v4-translated, RFC 2765
    (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96), // NAT64, RFC 6052
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),    // 6to4, RFC 3056
];

fn floor4(ip: Ipv4Addr) -> Option<Floor> {
    let inside = |&&(addr, prefix, _): &&(Ipv4Addr, u8, Floor)| {
        same_prefix(u128::from(u32::from(ip)) << 96, u128::from(u32::from(addr)) << 96, prefix)
    };
    V4.iter().find(inside).map(|&(_, _, why)| why)
}

fn embedded(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let bits = u128::from(ip);
    let &(_, prefix) =
        EMBEDDING.iter().find(|&&(form, prefix)| same_prefix(bits, u128::from(form), prefix))?;
    Some(Ipv4Addr::from(((bits >> (96 - prefix)) & 0xffff_ffff) as u32))
}

/// Whether two addresses, as the high bits of 128, agree in the first `prefix` bits.
fn same_prefix(a: u128, b: u128, prefix: u8) -> bool {
    prefix == 0 || (a ^ b) >> (128 - u32::from(prefix)) == 0
}

impl std::fmt::Display for Floor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Floor::Unspecified => "unspecified address",
            Floor::Loopback => "loopback address",
            Floor::Private => "private address",
            Floor::LinkLocal => "link-local address",
            Floor::SharedAddress => "carrier-grade NAT address",
            Floor::Multicast => "multicast address",
            Floor::Metadata => "cloud metadata address",
            Floor::Reserved => "reserved address",
            Floor::HostOwn => "address of this host",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(text: &str) -> Option<Floor> {
        floor(text.parse().unwrap())
    }

    #[test]
    fn private_and_local_addresses_are_below_the_floor() {
        for (text, why) in [
            ("127.0.0.1", Floor::Loopback),
            ("127.255.255.254", Floor::Loopback),
            ("0.0.0.0", Floor::Unspecified),
            ("10.0.0.1", Floor::Private),
            ("172.16.0.1", Floor::Private),
            ("172.31.255.255", Floor::Private),
            ("192.168.1.1", Floor::Private),
            ("169.254.1.1", Floor::LinkLocal),
            ("169.254.169.254", Floor::Metadata),
            ("168.63.129.16", Floor::Metadata),
            ("100.64.0.1", Floor::SharedAddress),
            ("100.100.100.200", Floor::Metadata),
            ("224.0.0.251", Floor::Multicast),
            ("255.255.255.255", Floor::Multicast),
            ("240.0.0.1", Floor::Reserved),
            ("198.18.1.0", Floor::Reserved),
            ("::", Floor::Unspecified),
            ("::1", Floor::Loopback),
            ("fc00::1", Floor::Private),
            ("fd00:ec2::254", Floor::Metadata),
            ("fe80::1", Floor::LinkLocal),
            ("fec0::1", Floor::Private),
            ("ff02::1", Floor::Multicast),
        ] {
            assert_eq!(of(text), Some(why), "{text}");
        }
    }

    #[test]
    fn an_ipv4_address_inside_an_ipv6_one_is_judged_as_itself() {
        for text in
            ["::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::127.0.0.1", "2002:7f00:1::", "::ffff:0:127.0.0.1"]
        {
            assert_eq!(of(text), Some(Floor::Loopback), "{text}");
        }
        assert_eq!(of("::ffff:169.254.169.254"), Some(Floor::Metadata));
        assert_eq!(of("64:ff9b::8.8.8.8"), None);
        assert_eq!(of("::ffff:8.8.8.8"), None);
        assert_eq!(of("2002:808:808::1"), None);
    }

    #[test]
    fn public_addresses_are_above_the_floor() {
        for text in
            ["1.1.1.1", "172.32.0.1", "100.128.0.1", "198.51.100.10", "203.0.113.66", "2001:db8:1::10"]
        {
            assert_eq!(of(text), None, "{text}");
        }
        assert_eq!(of("2606:4700::1111"), None);
    }

    #[test]
    fn the_blocks_are_disjoint() {
        let blocks = blocks();
        let mut ranges: Vec<_> = blocks.iter().map(Cidr::range).collect();
        ranges.sort();
        assert!(ranges.windows(2).all(|pair| pair[0].1 < pair[1].0), "{ranges:?}");
    }

    fn near_the_floor() -> impl Strategy<Value = IpAddr> {
        let edges: Vec<IpAddr> = blocks().iter().flat_map(|b| [b.range().0, b.range().1]).collect();
        let edge = (proptest::sample::select(edges), -1i64..=1).prop_map(|(ip, step)| match ip {
            IpAddr::V4(ip) => IpAddr::V4(Ipv4Addr::from(u32::from(ip).wrapping_add(step as u32))),
            IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from(u128::from(ip).wrapping_add(step as i128 as u128))),
        });
        prop_oneof![
            edge,
            any::<u32>().prop_map(|v| IpAddr::V4(v.into())),
            any::<u128>().prop_map(|v| IpAddr::V6(v.into()))
        ]
    }

    proptest! {
        #[test]
        fn the_blocks_and_the_verdict_agree(ip in near_the_floor()) {
            let inside = blocks().iter().any(|block| {
                let (first, last) = block.range();
                first.is_ipv4() == ip.is_ipv4() && first <= ip && ip <= last
            });
            prop_assert_eq!(floor(ip).is_some(), inside, "{}", ip);
        }
    }
}
