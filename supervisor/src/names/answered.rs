//! Which names a real address was answered for, so that a packet to it can be called by its name. Only answers of ours
//! count: what else has the address is not known here.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use terok_policy::Name;

/// Most addresses remembered; the oldest make way.
const ADDRESSES: usize = 4096;
/// Most names remembered of one address.
const NAMES: usize = 8;

/// Names by address, the last answered first.
#[derive(Default)]
pub(super) struct Answered {
    names: HashMap<IpAddr, VecDeque<Name>>,
    /// The addresses in the order they were first answered.
    order: VecDeque<IpAddr>,
}

impl Answered {
    /// Takes note of an answer.
    pub(super) fn answer(&mut self, name: &Name, address: IpAddr) {
        let address = address.to_canonical();
        if !self.names.contains_key(&address) {
            if self.order.len() >= ADDRESSES
                && let Some(oldest) = self.order.pop_front()
            {
                self.names.remove(&oldest);
            }
            self.order.push_back(address);
        }
        let names = self.names.entry(address).or_default();
        names.retain(|known| known != name);
        names.push_front(name.clone());
        names.truncate(NAMES);
    }

    /// Whether `address` was answered for `name`.
    pub(super) fn has(&self, name: &Name, address: IpAddr) -> bool {
        self.names.get(&address.to_canonical()).is_some_and(|names| names.contains(name))
    }

    /// The name that `address` was last answered for.
    pub(super) fn name(&self, address: IpAddr) -> Option<&Name> {
        self.names.get(&address.to_canonical())?.front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_called_by_the_name_it_was_last_answered_for() {
        let mut answered = Answered::default();
        let address = IpAddr::from([192, 0, 2, 1]);
        assert!(!answered.has(&name("a.example"), address));
        answered.answer(&name("a.example"), address);
        answered.answer(&name("b.example"), address);
        assert_eq!(answered.name(address), Some(&name("b.example")));
        assert!(answered.has(&name("a.example"), address));
        answered.answer(&name("a.example"), address);
        assert_eq!(answered.name("::ffff:192.0.2.1".parse().unwrap()), Some(&name("a.example")));
        assert_eq!(answered.name(IpAddr::from([192, 0, 2, 2])), None);
    }

    #[test]
    fn addresses_and_names_are_bounded() {
        let mut answered = Answered::default();
        for n in 0..ADDRESSES as u32 + 10 {
            answered.answer(&name("a.example"), IpAddr::V4(n.into()));
        }
        assert_eq!((answered.names.len(), answered.order.len()), (ADDRESSES, ADDRESSES));
        assert_eq!(answered.name(IpAddr::V4(0.into())), None);
        let address = IpAddr::V4(100.into());
        for n in 0..100 {
            answered.answer(&name(&format!("l{n}.example")), address);
        }
        assert_eq!(answered.names[&address].len(), NAMES);
    }
}
