//! Literal rules as disjoint boxes of addresses × protocol × ports: the kernel's concatenated interval sets take no overlap.

use crate::rule::{Cidr, Ports, Proto, Rule, Target};
use crate::ruleset::{Element, Family};
use std::cmp::Reverse;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The union of the literal and `any` rules of `family` as disjoint elements, sorted.
///
/// Blocks of addresses nest or are disjoint, so one pass over their edges with a stack of the blocks that are open
/// suffices: O(n log n) for n rules, and at most one element per edge, protocol and port range.
pub(super) fn disjoint<'a>(family: Family, rules: impl Iterator<Item = &'a Rule>) -> Vec<Element> {
    disjoint_around(family, rules, &[])
}

/// As [`disjoint`], without the addresses of `holes`.
pub(super) fn disjoint_around<'a>(
    family: Family,
    rules: impl Iterator<Item = &'a Rule>,
    holes: &[Cidr],
) -> Vec<Element> {
    let hole = |net: &Cidr| {
        let (first, last) = net.range();
        Block { first: number(first), last: number(last), ports: None }
    };
    let of_family = |net: &&Cidr| net.addr.is_ipv4() == (family == Family::V4);
    let mut tcp: Vec<Block<'_>> = holes.iter().filter(of_family).map(hole).collect();
    let mut udp: Vec<Block<'_>> = holes.iter().filter(of_family).map(hole).collect();
    for rule in rules {
        let (first, last) = match rule.target {
            Target::Net(net) if net.addr.is_ipv4() == (family == Family::V4) => net.range(),
            Target::Any => everything(family),
            _ => continue,
        };
        let block = Block { first: number(first), last: number(last), ports: Some(&rule.ports) };
        match rule.proto {
            Proto::Tcp => tcp.push(block),
            Proto::Udp => udp.push(block),
        }
    }
    let mut elements = sweep(family, Proto::Tcp, tcp);
    elements.extend(sweep(family, Proto::Udp, udp));
    elements.sort_unstable();
    elements
}

/// First and last address of the family.
pub(super) fn everything(family: Family) -> (IpAddr, IpAddr) {
    match family {
        Family::V4 => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::BROADCAST.into()),
        Family::V6 => (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::from(u128::MAX).into()),
    }
}

/// A rule's addresses; without ports, a hole.
struct Block<'a> {
    first: u128,
    last: u128,
    ports: Option<&'a Ports>,
}

/// A block that is open at the sweep's position, with the ports of itself and everything around it; none in a hole.
struct Open {
    last: u128,
    ports: Option<Ports>,
}

fn sweep(family: Family, proto: Proto, mut blocks: Vec<Block<'_>>) -> Vec<Element> {
    blocks.sort_by_key(|block| (block.first, Reverse(block.last)));
    let mut edges: Vec<u128> = blocks.iter().map(|block| block.first).collect();
    edges.extend(blocks.iter().filter_map(|block| block.last.checked_add(1)));
    edges.sort_unstable();
    edges.dedup();

    let mut runs: Vec<(u128, u128, Ports)> = Vec::new();
    let mut open: Vec<Open> = Vec::new();
    let mut next = blocks.iter().peekable();
    for (index, &edge) in edges.iter().enumerate() {
        while open.last().is_some_and(|block| block.last < edge) {
            open.pop();
        }
        while let Some(block) = next.next_if(|block| block.first == edge) {
            let ports = match (block.ports, open.last().map(|around| &around.ports)) {
                (None, _) | (_, Some(None)) => None,
                (Some(own), None) => Some(own.clone()),
                (Some(own), Some(Some(around))) => Some(Ports::new([&*own.0, &*around.0].concat())),
            };
            open.push(Open { last: block.last, ports });
        }
        let Some(Open { last, ports: Some(ports) }) = open.last() else { continue };
        let until = edges.get(index + 1).map_or(*last, |edge| edge - 1);
        match runs.last_mut() {
            Some((_, end, same)) if *end + 1 == edge && same == ports => *end = until,
            _ => runs.push((edge, until, ports.clone())),
        }
    }
    let element = |first, last, (from, to)| Element {
        addr: (address(family, first), address(family, last)),
        ports: Some((proto.into(), from, to)),
        timeout: None,
    };
    runs.iter()
        .flat_map(|(first, last, ports)| ports.0.iter().map(|&range| element(*first, *last, range)))
        .collect()
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

fn address(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from(number as u32).into(),
        Family::V6 => Ipv6Addr::from(number).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(texts: &[&str]) -> Vec<Rule> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn shown(family: Family, texts: &[&str]) -> Vec<String> {
        disjoint(family, parsed(texts).iter()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_block_and_an_address_inside_it_can_stand_together() {
        assert_eq!(
            shown(Family::V4, &["192.0.2.0/24:443", "192.0.2.8:22", "2001:db8::1"]),
            [
                "192.0.2.0/29 . tcp . 443",
                "192.0.2.8 . tcp . 22",
                "192.0.2.8 . tcp . 443",
                "192.0.2.9-192.0.2.255 . tcp . 443"
            ]
        );
        assert_eq!(
            shown(Family::V4, &["192.0.2.0/24", "192.0.2.8:22", "192.0.2.0/25"]),
            ["192.0.2.0/24 . tcp . 0-852", "192.0.2.0/24 . tcp . 854-65535"]
        );
    }

    #[test]
    fn everything_reaches_the_last_address_of_each_family() {
        assert_eq!(shown(Family::V4, &["any:*", "255.255.255.255:80"]), ["0.0.0.0/0 . tcp . 0-65535"]);
        assert_eq!(shown(Family::V6, &["any:443"]), ["::/0 . tcp . 443"]);
        assert_eq!(shown(Family::V6, &["ffff::/16:1", "192.0.2.1"]), ["ffff::/16 . tcp . 1"]);
    }

    #[test]
    fn ten_thousand_rules_make_a_linear_number_of_boxes() {
        let rules: Vec<Rule> = (0..10_000u32)
            .map(|n| Rule {
                target: Target::Net(Cidr {
                    addr: Ipv4Addr::from(0xcb00_0000 + n * 4).into(),
                    prefix: 32 - (n % 3) as u8,
                }),
                ports: Ports::new(vec![(80 + (n % 7) as u16, 90)]),
                proto: Proto::Tcp,
                direct: false,
            })
            .collect();
        let boxes = disjoint(Family::V4, rules.iter());
        assert!(boxes.len() <= 2 * rules.len());
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let net = (0u32..64, 26u8..=32).prop_map(|(low, prefix)| {
            Target::Net(Cidr { addr: Ipv4Addr::from(0xffff_ffc0 + low).into(), prefix }.masked())
        });
        let target = prop_oneof![9 => net, 1 => Just(Target::Any)];
        let ports =
            proptest::collection::vec((1u16..12, 0u16..4).prop_map(|(from, n)| (from, from + n)), 1..3);
        (target, ports, prop_oneof![3 => Just(Proto::Tcp), 1 => Just(Proto::Udp)]).prop_map(
            |(target, ports, proto)| Rule { target, ports: Ports::new(ports), proto, direct: false },
        )
    }

    proptest! {
        #[test]
        fn boxes_are_disjoint_and_cover_what_the_rules_cover(
            rules in proptest::collection::vec(rule(), 0..12),
            holes in proptest::collection::vec(rule(), 0..3),
        ) {
            let holes: Vec<Cidr> = holes.iter().filter_map(|rule| match rule.target {
                Target::Net(net) => Some(net),
                _ => None,
            }).collect();
            let boxes = disjoint_around(Family::V4, rules.iter(), &holes);
            for low in (0u32..=64).map(|low| 0xffff_ffbf + low) {
                let ip = IpAddr::V4(low.into());
                for port in 0..18u16 {
                    for proto in [Proto::Tcp, Proto::Udp] {
                        let wanted = rules.iter().any(|rule| {
                            let here = match rule.target { Target::Net(net) => net.contains(ip), _ => true };
                            here && rule.proto == proto && rule.ports.contains(port) && !holes.iter().any(|hole| hole.contains(ip))
                        });
                        let hits = boxes.iter().filter(|element| {
                            let (first, last) = element.addr;
                            element.ports.is_some_and(|(p, from, to)| p == proto.into() && (from..=to).contains(&port))
                                && first <= ip && ip <= last
                        });
                        prop_assert_eq!(hits.count(), usize::from(wanted), "{} {} {}", ip, proto, port);
                    }
                }
            }
        }
    }
}
