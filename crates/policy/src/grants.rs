//! Real addresses that the supervisor's own DNS answers gave out for `direct` names, UDP by name and other containers'
//! names: what the kernel lets through because of a name, for as long as the answer said (design §1).

use crate::name::Name;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// Addresses by name, each until a Unix time in seconds. Two names may have the same address; each keeps its own time.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Grants {
    by_name: BTreeMap<Name, BTreeMap<IpAddr, u64>>,
}

impl Grants {
    /// An answer gave out `addresses` for `name`; they stand until `until`, or longer if an earlier answer said so.
    pub fn grant(&mut self, name: &Name, addresses: &[IpAddr], until: u64) {
        let known = self.by_name.entry(name.clone()).or_default();
        for address in addresses {
            let end = known.entry(address.to_canonical()).or_default();
            *end = until.max(*end);
        }
    }

    /// Forgets what has ended at `now`.
    pub fn expire(&mut self, now: u64) {
        self.by_name.retain(|_, addresses| {
            addresses.retain(|_, until| *until > now);
            !addresses.is_empty()
        });
    }

    /// Name, address and end of each, in order of names.
    pub fn iter(&self) -> impl Iterator<Item = (&Name, IpAddr, u64)> {
        let each = |(name, addresses)| {
            let addresses: &BTreeMap<IpAddr, u64> = addresses;
            addresses.iter().map(move |(address, until)| (name, *address, *until))
        };
        self.by_name.iter().flat_map(each)
    }

    /// When the first of them ends.
    pub fn next_end(&self) -> Option<u64> {
        self.iter().map(|(_, _, until)| until).min()
    }
}
