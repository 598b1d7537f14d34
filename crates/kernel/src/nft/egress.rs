//! The table of family `netdev`: a base chain at each card, where frames of packet sockets pass too.

use super::batch::{BaseChain, Batch, FILTER};
use super::{NftError, NftSocket, Object, readback};
use nix::errno::Errno;
use std::borrow::Cow;
use terok_policy::ruleset::Egress;

/// Before the name of the card.
const PREFIX: &str = "egress-";

impl NftSocket {
    /// Creates the table in one transaction; it must not exist. [`NftError::NoEgress`] where the kernel has no such hook.
    ///
    /// A chain belongs to a card by its name: since Linux 6.16 a card that is renamed leaves its chain, and a name that no
    /// card has is no error. So take the names from the kernel, and again after every news of links.
    pub fn load_egress(&self, egress: &Egress) -> Result<(), NftError> {
        self.load_egress_after(egress, |_| {})
    }

    /// Makes the table be `egress`, whatever it was: the old one, where there is one, goes in the same transaction.
    pub fn reload_egress(&self, egress: &Egress) -> Result<(), NftError> {
        self.load_egress_after(egress, Batch::delete_table)
    }

    fn load_egress_after(&self, egress: &Egress, first: impl FnOnce(&mut Batch)) -> Result<(), NftError> {
        let mut batch = self.batch(libc::NFPROTO_NETDEV, egress.table)?;
        first(&mut batch);
        batch.table();
        egress.cards.iter().for_each(|card| batch.chain(&chain(egress, card)));
        self.commit(batch).map_err(no_egress)
    }

    /// Adds the chain of one more card. A chain of that name stays as it is: since Linux 6.16 the one of a card that went
    /// away waits for the next of its name. What it holds, [`Self::verify_egress`] tells.
    pub fn add_egress_card(&self, egress: &Egress, card: &str) -> Result<(), NftError> {
        let mut batch = self.batch(libc::NFPROTO_NETDEV, egress.table)?;
        batch.chain(&chain(egress, card));
        match self.commit(batch).map_err(no_egress) {
            Err(NftError::Refused { object: Object::Chain(_), errno: Errno::EEXIST, .. }) => Ok(()),
            done => done,
        }
    }

    /// Reads the table back and compares all of it, as [`Self::verify`] does. The chain of a card that is not listed (it
    /// went away) may be there if it is like the others.
    pub fn verify_egress(&self, egress: &Egress) -> Result<(), NftError> {
        readback::verify_egress(&self.0, egress)
    }
}

/// The card of a chain of ours.
pub(super) fn card(chain: &str) -> Option<&str> {
    chain.strip_prefix(PREFIX)
}

/// The name of the chain at `card`; the kernel's names of cards have at most 15 octets.
pub(super) fn name(card: &str) -> Cow<'static, str> {
    Cow::Owned(format!("{PREFIX}{card}"))
}

/// The chain at `card`.
pub(super) fn chain<'a>(egress: &'a Egress, card: &'a str) -> BaseChain<'a> {
    BaseChain {
        name: name(card),
        kind: FILTER,
        hook: libc::NF_NETDEV_EGRESS as u32,
        priority: 0,
        device: Some(card),
        policy: libc::NF_DROP as u32,
        rules: &egress.rules,
    }
}

/// `CONFIG_NETFILTER_EGRESS` and the hook exist since Linux 5.16.
fn no_egress(error: NftError) -> NftError {
    match error {
        NftError::Refused {
            object: Object::Chain(_) | Object::EgressTable,
            errno: errno @ (Errno::EOPNOTSUPP | Errno::EAFNOSUPPORT),
            ..
        } => NftError::NoEgress(errno),
        other => other,
    }
}
