//! The container's cards and the host's addresses, which the tables must know and which change while the container runs.

use super::Guard;
use crate::parent_link::News;
use std::net::IpAddr;
use std::time::Instant;
use terok_kernel::nft::NftError;
use terok_policy::floor::floor;
use terok_policy::layout;
use terok_policy::plan::{Card, Network, Plan};
use terok_policy::policy::Policy;

impl Guard {
    /// A card came, went or got another address.
    pub(super) fn note_cards(&mut self) {
        if self.is_cut_off() {
            return self.remove_cards();
        }
        let Some(socket) = &self.sockets.cards else { return };
        let cards = match socket.cards() {
            Ok(cards) if cards == self.facts.cards => return,
            Ok(cards) => cards,
            Err(error) => return self.try_again("the container's cards", &error),
        };
        let before = std::mem::replace(&mut self.facts.cards, cards);
        if let Some(tampering) = &mut self.tampered {
            // Of a container that had none.
            tampering.cut = true;
            self.untold.push(tampering.news());
            return self.cut_off();
        }
        self.generation = None;
        self.again.get_or_insert_with(Instant::now);
        match self.guard_cards(&before) {
            Ok(()) => self.untold.push(News::Cards(self.facts.cards.clone())),
            Err(error) => {
                self.facts.cards = before;
                self.try_again("the container's new card", &*error);
            }
        }
    }

    /// The table refuses what it does not know by whichever card; what is missing is the chain that stops other frames.
    fn guard_cards(&mut self, before: &[Card]) -> anyhow::Result<()> {
        let plan = Plan { policy: Policy::default(), facts: self.facts.clone() };
        if self.facts.network == Network::Sealed {
            return self.guard_first_cards(&plan);
        }
        if let Some(egress) = plan.egress(&self.wiring).filter(|_| self.egress) {
            let known = |card: &&String| !before.iter().any(|before| before.name == **card);
            for card in egress.cards.iter().filter(known) {
                self.sockets.nft.add_egress_card(&egress, card)?;
            }
        }
        self.load(|plan, _, _| plan.near_sets())
    }

    /// Cards of a container that was made without one: nothing leaves by them, packet sockets included.
    fn guard_first_cards(&mut self, plan: &Plan) -> anyhow::Result<()> {
        self.egress = match plan.egress(&self.wiring).map(|egress| self.sockets.nft.reload_egress(&egress)) {
            Some(Ok(())) => true,
            None | Some(Err(NftError::NoEgress(_))) => false,
            Some(Err(error)) => return Err(error.into()),
        };
        Ok(())
    }

    /// The host's own addresses may have changed. Those below the floor anyway, as of each container's link, do not matter.
    pub(super) fn note_addresses(&mut self) {
        let Some(host) = &self.sockets.host else { return };
        let own = match host.addresses() {
            Ok(addresses) => above_the_floor(addresses.iter().map(|address| address.ip)),
            Err(error) => return self.try_again("the host's addresses", &error),
        };
        if self.is_cut_off() || own == above_the_floor(self.facts.own.iter().copied()) {
            return;
        }
        let before = std::mem::replace(&mut self.facts.own, own);
        self.generation = None;
        self.again.get_or_insert_with(Instant::now);
        let loaded = self.load(|plan, now, wiring| {
            let sets = plan.ruleset(wiring, now).sets;
            sets.into_iter().filter(|set| set.name.starts_with("floor")).collect()
        });
        if let Err(error) = loaded {
            self.facts.own = before;
            self.try_again("the host's addresses", &*error);
        }
    }

    pub(super) fn has_egress(&self) -> bool {
        let plan = Plan { policy: Policy::default(), facts: self.facts.clone() };
        let Some(egress) = plan.egress(&self.wiring) else { return false };
        let probed = egress.cards.first().map(|card| self.sockets.nft.add_egress_card(&egress, card));
        !matches!(probed, Some(Err(NftError::NoEgress(_))))
    }

    /// Whatever the tables say: there is nothing to leave by.
    pub(super) fn remove_cards(&self) {
        let Some(socket) = &self.sockets.cards else { return };
        if let Err(error) = socket.delete_cards() {
            eprintln!("{}: the container's cards: {error}", layout::SUPERVISOR);
        }
    }
}

fn above_the_floor(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let mut above: Vec<IpAddr> =
        addresses.map(|ip| ip.to_canonical()).filter(|ip| floor(*ip).is_none()).collect();
    above.sort_unstable();
    above.dedup();
    above
}
