//! Elements of sets as the kernel's keys. A concatenated key pads each field to four octets: address, protocol, port.

use super::NftError;
use super::uapi::*;
use crate::netlink::{Writer, attributes};
use std::net::IpAddr;
use std::time::Duration;
use terok_policy::ruleset::{Element, Family, Set, Transport};

/// An element whose end is less than this off the wanted one keeps it: ends are counted in whole seconds, ticks aside.
const SLACK: Duration = Duration::from_millis(1_100);

/// The first and the last key of an element, both in network byte order.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Interval {
    pub(super) first: Vec<u8>,
    pub(super) last: Vec<u8>,
    /// How long it still has.
    pub(super) timeout: Option<Duration>,
}

/// An element as dumped.
#[derive(Debug)]
pub(super) struct Dumped {
    key: Vec<u8>,
    key_end: Option<Vec<u8>>,
    interval_end: bool,
    timeout: Option<Duration>,
}

/// The intervals of a set, sorted.
pub(super) fn sorted(set: &Set) -> Result<Vec<Interval>, NftError> {
    let intervals = set.elements.iter().map(|e| interval(set, e));
    let mut all: Vec<_> =
        intervals.collect::<Result<_, _>>().map_err(|why| NftError::Element { set: set.name, why })?;
    all.sort();
    Ok(all)
}

/// What to remove from `present` and then to add to it, both sorted, to have `wanted`. What is wanted as it is stays, so that
/// one new end is not a change of all.
pub(super) fn changes(wanted: Vec<Interval>, present: Vec<Interval>) -> (Vec<Interval>, Vec<Interval>) {
    let stays = |i: &Interval, others: &[Interval]| {
        let other = others.binary_search_by(|other| (&other.first, &other.last).cmp(&(&i.first, &i.last)));
        other.ok().and_then(|at| others.get(at)).is_some_and(|other| alike(i.timeout, other.timeout, SLACK))
    };
    let gone = present.iter().filter(|i| !stays(i, &wanted)).cloned().collect();
    let new = wanted.iter().filter(|i| !stays(i, &present)).cloned().collect();
    (gone, new)
}

fn interval(set: &Set, element: &Element) -> Result<Interval, &'static str> {
    let (first, last) = element.addr;
    let of_family = |ip: IpAddr| ip.is_ipv4() == (set.family == Family::V4);
    if !of_family(first) || !of_family(last) || first > last {
        return Err("an address range of another family, or reversed");
    }
    let (first, last) = match (set.ports, element.ports) {
        (true, Some((proto, low, high))) if low <= high => {
            (concatenated(first, proto, low), concatenated(last, proto, high))
        }
        (false, None) if element.timeout.is_none() => (octets(first), octets(last)),
        (true, _) => return Err("no ports, or reversed"),
        (false, _) => return Err("ports or a timeout in a set of addresses"),
    };
    let timeout = element.timeout.map(|t| t.max(Duration::from_millis(1)));
    Ok(Interval { first, last, timeout })
}

/// Writes one element as `NFTA_LIST_ELEM`. A set of addresses takes a range as its first address and, marked, the first
/// address after it; where there is none the range is open.
pub(super) fn write(interval: &Interval, concatenation: bool, w: &mut Writer) {
    let key = |w: &mut Writer, kind, key: &[u8]| w.nest(kind, |w| w.attribute(NFTA_DATA_VALUE, key));
    w.nest(NFTA_LIST_ELEM, |w| {
        key(w, NFTA_SET_ELEM_KEY, &interval.first);
        if concatenation {
            key(w, NFTA_SET_ELEM_KEY_END, &interval.last);
        }
        if let Some(timeout) = interval.timeout {
            let ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
            w.be64(NFTA_SET_ELEM_TIMEOUT, ms);
        }
    });
    if concatenation {
        return;
    }
    if let Some(after) = step(&interval.last, true) {
        w.nest(NFTA_LIST_ELEM, |w| {
            key(w, NFTA_SET_ELEM_KEY, &after);
            w.be32(NFTA_SET_ELEM_FLAGS, libc::NFT_SET_ELEM_INTERVAL_END as u32);
        });
    }
}

/// Reads one `NFTA_LIST_ELEM`; `None` when it carries what ours never do (a verdict, an expression, the catch-all flag).
pub(super) fn read(element: &[u8]) -> Option<Dumped> {
    let mut dumped = Dumped { key: Vec::new(), key_end: None, interval_end: false, timeout: None };
    let mut whole = None;
    for a in attributes(element) {
        let value = || Some(attributes(a.value).find(|a| a.kind == NFTA_DATA_VALUE)?.value.to_vec());
        match a.kind {
            NFTA_SET_ELEM_KEY => dumped.key = value()?,
            NFTA_SET_ELEM_KEY_END => dumped.key_end = Some(value()?),
            NFTA_SET_ELEM_TIMEOUT => whole = Some(Duration::from_millis(a.be64()?)),
            NFTA_SET_ELEM_EXPIRATION => dumped.timeout = Some(Duration::from_millis(a.be64()?)),
            NFTA_SET_ELEM_FLAGS => {
                dumped.interval_end = match a.be32()? as i32 {
                    0 => false,
                    libc::NFT_SET_ELEM_INTERVAL_END => true,
                    _ => return None,
                }
            }
            // User data is the nft tool's own.
            NFTA_SET_ELEM_USERDATA | NFTA_SET_ELEM_PAD => {}
            _ => return None,
        }
    }
    dumped.timeout = dumped.timeout.or(whole);
    Some(dumped)
}

/// The intervals that a dump describes, sorted.
pub(super) fn assemble(mut dumped: Vec<Dumped>, concatenation: bool) -> Vec<Interval> {
    if concatenation {
        let whole = |d: Dumped| Interval {
            last: d.key_end.unwrap_or_else(|| d.key.clone()),
            first: d.key,
            timeout: d.timeout,
        };
        let mut all: Vec<_> = dumped.into_iter().map(whole).collect();
        all.sort();
        return all;
    }
    // The end of one range comes before the start of the next at the same address.
    dumped.sort_by(|a, b| (&a.key, !a.interval_end).cmp(&(&b.key, !b.interval_end)));
    let mut all = Vec::new();
    let mut rest = dumped.into_iter().peekable();
    while let Some(start) = rest.next() {
        if start.interval_end {
            // The nft tool puts one before everything; it changes nothing.
            continue;
        }
        let end = rest.next_if(|next| next.interval_end);
        let last = match end {
            Some(end) => step(&end.key, false).unwrap_or_default(),
            None => vec![0xff; start.key.len()],
        };
        all.push(Interval { first: start.key, last, timeout: start.timeout });
    }
    all
}

/// The first difference between the wanted and the found intervals, both sorted. What ends within `grace` may be gone, and
/// other ends may be as much off. What is not wanted must not be there, however short: it could be put back for ever.
pub(super) fn difference(wanted: &[Interval], found: &[Interval], grace: Duration) -> Option<String> {
    let ending = |i: &Interval| i.timeout.is_some_and(|t| t < grace);
    let mut found = found.iter().peekable();
    for w in wanted {
        let before = |f: &&Interval| (&f.first, &f.last) < (&w.first, &w.last);
        match found.next_if(|f| (&f.first, &f.last) == (&w.first, &w.last)) {
            Some(f) if alike(w.timeout, f.timeout, grace) => {}
            Some(f) => {
                let (want, have) = (w.timeout, f.timeout);
                return Some(format!("{} has timeout {have:?} instead of {want:?}", name(w)));
            }
            None if ending(w) => {}
            None => {
                return Some(match found.peek() {
                    Some(f) if before(f) => format!("{} does not belong here", name(f)),
                    _ => format!("{} is missing", name(w)),
                });
            }
        }
    }
    found.next().map(|f| format!("{} does not belong here", name(f)))
}

fn alike(a: Option<Duration>, b: Option<Duration>, within: Duration) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => a.abs_diff(b) <= within,
        (a, b) => a == b,
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn concatenated(ip: IpAddr, proto: Transport, port: u16) -> Vec<u8> {
    let mut key = octets(ip);
    key.extend([proto.0, 0, 0, 0]);
    key.extend(port.to_be_bytes());
    key.extend([0, 0]);
    key
}

/// The key one up or down; `None` past either end.
fn step(key: &[u8], up: bool) -> Option<Vec<u8>> {
    let mut key = key.to_vec();
    for octet in key.iter_mut().rev() {
        let (next, carry) = if up { octet.overflowing_add(1) } else { octet.overflowing_sub(1) };
        *octet = next;
        if !carry {
            return Some(key);
        }
    }
    None
}

/// An interval for people.
fn name(interval: &Interval) -> String {
    let one = |key: &[u8]| match key.len() {
        4 | 12 => key.first_chunk::<4>().map(|a| IpAddr::from(*a)),
        _ => key.first_chunk::<16>().map(|a| IpAddr::from(*a)),
    };
    let ends = (one(&interval.first), one(&interval.last));
    let (Some(first), Some(last)) = ends else {
        return format!("{:02x?}", interval.first);
    };
    match (interval.first.get(octets(first).len()..), interval.last.get(octets(last).len()..)) {
        (Some(&[proto, _, _, _, a, b, ..]), Some(&[_, _, _, _, c, d, ..])) => {
            let ports = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            format!("element {first}-{last} protocol {proto} ports {}-{}", ports.0, ports.1)
        }
        _ => format!("element {first}-{last}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(key: u8, timeout: Option<u64>) -> Interval {
        Interval {
            first: vec![0, 0, 0, key],
            last: vec![0, 0, 0, key],
            timeout: timeout.map(Duration::from_millis),
        }
    }

    #[test]
    fn an_element_with_the_wanted_end_stays_when_another_gets_a_new_one() {
        let present = vec![one(1, Some(59_100)), one(2, Some(10_000)), one(3, None), one(4, Some(5_000))];
        let wanted = vec![one(1, Some(60_000)), one(2, Some(60_000)), one(3, None), one(5, Some(1_000))];
        let (gone, new) = changes(wanted, present);
        assert_eq!(gone, [one(2, Some(10_000)), one(4, Some(5_000))]);
        assert_eq!(new, [one(2, Some(60_000)), one(5, Some(1_000))]);
    }

    #[test]
    fn an_element_that_becomes_timed_or_permanent_is_replaced() {
        let (gone, new) =
            changes(vec![one(1, None), one(2, Some(9_000))], vec![one(1, Some(9_000)), one(2, None)]);
        assert_eq!((gone.len(), new.len()), (2, 2));
    }

    #[test]
    fn what_is_about_to_end_may_be_gone_and_what_is_not_wanted_must_be() {
        let grace = Duration::from_secs(2);
        let (stays, ends) = (one(2, None), |key| one(key, Some(1_000)));
        assert_eq!(difference(&[ends(1), stays.clone(), ends(3)], std::slice::from_ref(&stays), grace), None);
        let found = [ends(1), stays.clone()];
        assert!(difference(std::slice::from_ref(&stays), &found, grace).is_some());
        assert_eq!(difference(&[one(1, Some(60_000))], &[one(1, Some(58_500))], grace), None);
        for found in [vec![], vec![one(1, None), stays.clone()], vec![stays.clone(), one(3, Some(3_000))]] {
            assert!(difference(std::slice::from_ref(&stays), &found, grace).is_some(), "{found:?}");
        }
        assert!(difference(&[one(1, Some(60_000))], &[one(1, Some(70_000))], grace).is_some());
        assert!(difference(&[one(1, Some(60_000))], &[], grace).is_some());
    }
}
