//! The table as the kernel has it, compared with the one wanted. Strict: what is not understood is a difference.

use super::batch::{BaseChain, Shape, message_type, nfgenmsg};
use super::element::{self, Dumped, Interval};
use super::uapi::*;
use super::{NftError, Object, egress, expr};
use crate::netlink::{Attribute, Failure, Message, Socket, Writer, attributes, find};
use nix::errno::Errno;
use std::time::Duration;
use terok_policy::ruleset::{Egress, NftRule, Ruleset, Set};

/// Elements that expire within this time may be gone when they are read back, and ends may be as much off: whole seconds, and
/// what two clocks drift apart in an hour.
const GRACE: Duration = Duration::from_secs(3);
/// What a dump may hold, each message counted with what keeping it costs: a million elements.
const MOST: usize = 128 << 20;
const EACH: usize = 64;
/// `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE`, `NFTA_SET_TABLE`, `NFTA_SET_ELEM_LIST_TABLE`: one number.
const NFTA_TABLE: u16 = 1;
/// A dump is repeated this often when the kernel's tables change meanwhile.
const ATTEMPTS: usize = 8;

/// See [`super::NftSocket::verify`].
pub(super) fn verify(socket: &Socket, ruleset: &Ruleset) -> Result<(), NftError> {
    let whole = In { socket, family: libc::NFPROTO_INET, table: ruleset.table, name: Object::Table };
    let table = whole.table()?;
    let sets = whole.dump(libc::NFT_MSG_GETSET, |w| w.string(NFTA_SET_TABLE, ruleset.table))?;
    same_names("set", &sets, NFTA_SET_NAME, ruleset.sets.iter().map(|s| s.name))?;
    for set in &ruleset.sets {
        whole.at(Object::Set(set.name)).set(set, named(&sets, NFTA_SET_NAME, set.name))?;
        whole.at(Object::Elements(set.name)).elements(set)?;
    }
    let chains = whole.chains()?;
    same_names("chain", &chains, NFTA_CHAIN_NAME, ruleset.chains.iter().map(|c| c.name))?;
    let rules = whole.rules()?;
    for chain in &ruleset.chains {
        whole.whole_chain(&chain.into(), &chains, &rules)?;
    }
    // Whatever else is in the table, stateful objects and flow tables, counts here.
    let objects = ruleset.sets.len() + ruleset.chains.len();
    whole.number(&table, NFTA_TABLE_USE, "objects", objects as u32)
}

/// See [`super::NftSocket::verify_egress`].
pub(super) fn verify_egress(socket: &Socket, egress: &Egress) -> Result<(), NftError> {
    let whole = In { socket, family: libc::NFPROTO_NETDEV, table: egress.table, name: Object::EgressTable };
    let table = whole.table()?;
    let (chains, rules) = (whole.chains()?, whole.rules()?);
    for body in &chains {
        let name = string(body, NFTA_CHAIN_NAME).unwrap_or("?");
        let Some(card) = egress::card(name) else {
            let chain = Object::Chain(name.to_owned().into());
            return Err(NftError::Differs(format!("{chain} does not belong here")));
        };
        whole.whole_chain(&egress::chain(egress, card), &chains, &rules)?;
    }
    let there = |name: &str| chains.iter().any(|body| string(body, NFTA_CHAIN_NAME) == Some(name));
    if let Some(missing) = egress.cards.iter().map(|card| egress::name(card)).find(|name| !there(name)) {
        return Err(NftError::Differs(format!("{} is missing", Object::Chain(missing))));
    }
    whole.number(&table, NFTA_TABLE_USE, "objects", chains.len() as u32)
}

/// The elements of a set, sorted.
pub(super) fn elements(socket: &Socket, table: &'static str, set: &Set) -> Result<Vec<Interval>, NftError> {
    In { socket, family: libc::NFPROTO_INET, table, name: Object::Elements(set.name) }.present(set)
}

/// The attributes of each rule, in order within each chain.
pub(super) fn rules(socket: &Socket, table: &'static str) -> Result<Vec<Vec<u8>>, NftError> {
    In { socket, family: libc::NFPROTO_INET, table, name: Object::Rules }.rules()
}

/// What is read, in which table, named as in errors.
struct In<'a> {
    socket: &'a Socket,
    family: i32,
    table: &'static str,
    name: Object,
}

impl In<'_> {
    fn at(&self, name: Object) -> Self {
        Self { name, ..*self }
    }

    fn table(&self) -> Result<Vec<u8>, NftError> {
        let mut w = Writer::default();
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        w.message(message_type(libc::NFT_MSG_GETTABLE), flags, 1, |w| {
            w.raw(&nfgenmsg(self.family, 0));
            w.string(NFTA_TABLE_NAME, self.table);
        });
        let mut body = Vec::new();
        let asked = self.socket.request(w.bytes(), 1, |m| body = payload(&m));
        asked.map_err(|e| self.failure(e))?;
        // NFT_TABLE_F_DORMANT switches the table off, NFT_TABLE_F_OWNER ties it to a socket.
        self.number(&body, NFTA_TABLE_FLAGS, "flags", 0)?;
        Ok(body)
    }

    fn set(&self, set: &Set, body: &[u8]) -> Result<(), NftError> {
        let shape = Shape::of(set);
        self.number(body, NFTA_SET_FLAGS, "flags", shape.flags)?;
        self.number(body, NFTA_SET_KEY_TYPE, "key type", shape.key_type)?;
        self.number(body, NFTA_SET_KEY_LEN, "key length", shape.key_len)?;
        let unwanted = [
            (NFTA_SET_DATA_TYPE, "is a map"),
            (NFTA_SET_TIMEOUT, "has a timeout of its own"),
            (NFTA_SET_EXPR, "has an expression"),
            (NFTA_SET_EXPRESSIONS, "has expressions"),
        ];
        if let Some((_, what)) = unwanted.iter().find(|(kind, _)| find(body, *kind).is_some()) {
            return self.differs((*what).to_owned());
        }
        let description = find(body, NFTA_SET_DESC).unwrap_or(&[]);
        if find(description, NFTA_SET_DESC_SIZE).is_some() {
            return self.differs("has a limited size".to_owned());
        }
        let fields = attributes(find(description, NFTA_SET_DESC_CONCAT).unwrap_or(&[]));
        let lengths = fields.map(|f| attributes(f.value).find_map(|a| a.be32()));
        if !lengths.eq(shape.fields.iter().map(|l| Some(*l))) {
            return self.differs("has other fields".to_owned());
        }
        Ok(())
    }

    fn elements(&self, set: &Set) -> Result<(), NftError> {
        match element::difference(&element::sorted(set)?, &self.present(set)?, GRACE) {
            None => Ok(()),
            Some(difference) => self.differs(difference),
        }
    }

    fn present(&self, set: &Set) -> Result<Vec<Interval>, NftError> {
        let messages = self.dump(libc::NFT_MSG_GETSETELEM, |w| {
            w.string(NFTA_SET_ELEM_LIST_TABLE, self.table);
            w.string(NFTA_SET_ELEM_LIST_SET, set.name);
        })?;
        let lists = messages.iter().filter_map(|body| find(body, NFTA_SET_ELEM_LIST_ELEMENTS));
        let dumped: Option<Vec<Dumped>> =
            lists.flat_map(attributes).map(|a| element::read(a.value)).collect();
        match dumped {
            Some(dumped) => Ok(element::assemble(dumped, set.ports)),
            None => self.differs("have attributes that ours do not have".to_owned()),
        }
    }

    /// The kernel dumps the chains of all tables.
    fn chains(&self) -> Result<Vec<Vec<u8>>, NftError> {
        let mut all = self.dump(libc::NFT_MSG_GETCHAIN, |w| w.string(NFTA_CHAIN_TABLE, self.table))?;
        all.retain(|body| string(body, NFTA_CHAIN_TABLE) == Some(self.table));
        Ok(all)
    }

    fn rules(&self) -> Result<Vec<Vec<u8>>, NftError> {
        let mut all = self.dump(libc::NFT_MSG_GETRULE, |w| w.string(NFTA_RULE_TABLE, self.table))?;
        all.retain(|body| string(body, NFTA_RULE_TABLE) == Some(self.table));
        Ok(all)
    }

    /// A chain with its rules, among `chains` and `rules` of the table.
    fn whole_chain(
        &self,
        chain: &BaseChain<'_>,
        chains: &[Vec<u8>],
        rules: &[Vec<u8>],
    ) -> Result<(), NftError> {
        let body = named(chains, NFTA_CHAIN_NAME, &chain.name);
        self.at(Object::Chain(chain.name.clone())).chain(chain, body)?;
        let bodies = rules.iter().map(Vec::as_slice);
        let own: Vec<_> = bodies.filter(|body| string(body, NFTA_RULE_CHAIN) == Some(&chain.name)).collect();
        rules_alike(chain, &own)
    }

    fn chain(&self, chain: &BaseChain<'_>, body: &[u8]) -> Result<(), NftError> {
        if string(body, NFTA_CHAIN_TYPE) != Some(chain.kind) {
            return self.differs("has another type".to_owned());
        }
        self.number(body, NFTA_CHAIN_POLICY, "policy", chain.policy)?;
        let hook = find(body, NFTA_CHAIN_HOOK).unwrap_or(&[]);
        self.number(hook, NFTA_HOOK_HOOKNUM, "hook", chain.hook)?;
        self.number(hook, NFTA_HOOK_PRIORITY, "priority", chain.priority as u32)?;
        let devices = attributes(find(hook, NFTA_HOOK_DEVS).unwrap_or(&[]));
        if !devices.map(|a| a.string()).eq(chain.device.map(Some)) {
            return self.differs("is not at its card".to_owned());
        }
        match find(body, NFTA_CHAIN_FLAGS) {
            None => Ok(()),
            Some(_) => self.number(body, NFTA_CHAIN_FLAGS, "flags", NFT_CHAIN_BASE),
        }
    }

    /// The payloads of a dump that are about our table, which every kind names first. Whoever may change it must not fill our
    /// memory with it.
    fn dump(&self, kind: i32, select: impl Fn(&mut Writer)) -> Result<Vec<Vec<u8>>, NftError> {
        let mut w = Writer::default();
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
        w.message(message_type(kind), flags, 1, |w| {
            w.raw(&nfgenmsg(self.family, 0));
            select(w);
        });
        let mut attempts = 1..=ATTEMPTS;
        loop {
            let (mut found, mut octets) = (Vec::new(), 0);
            let dumped = self.socket.dump(w.bytes(), |m| {
                let body = m.body.get(4..).unwrap_or(&[]);
                if string(body, NFTA_TABLE) == Some(self.table) {
                    octets += body.len() + EACH;
                    found.extend(Some(body).filter(|_| octets <= MOST).map(<[u8]>::to_vec));
                }
            });
            match dumped {
                Ok(()) if octets > MOST => return self.differs("is far larger than any of ours".to_owned()),
                Ok(()) => return Ok(found),
                Err(Failure::Io(e))
                    if e.kind() == std::io::ErrorKind::Interrupted && attempts.next().is_some() => {}
                Err(e) => return Err(self.failure(e)),
            }
        }
    }

    fn number(&self, body: &[u8], kind: u16, what: &str, wanted: u32) -> Result<(), NftError> {
        let found = attributes(body).find(|a| a.kind == kind).and_then(|a: Attribute<'_>| a.be32());
        match found {
            Some(found) if found == wanted => Ok(()),
            Some(found) => self.differs(format!("has {what} {found:#x} instead of {wanted:#x}")),
            None => self.differs(format!("has no {what}")),
        }
    }

    fn differs<T>(&self, how: String) -> Result<T, NftError> {
        Err(NftError::Differs(format!("{}: {how}", self.name)))
    }

    fn failure(&self, failure: Failure) -> NftError {
        match failure {
            Failure::Io(e) => NftError::Socket(e),
            Failure::Refused(r) if r.errno == Errno::ENOENT => {
                NftError::Differs(format!("{} does not exist", self.name))
            }
            Failure::Refused(r) => {
                NftError::Refused { object: self.name.clone(), errno: r.errno, text: r.text }
            }
        }
    }
}

fn rules_alike(chain: &BaseChain<'_>, found: &[&[u8]]) -> Result<(), NftError> {
    let read = |body: &&[u8]| expr::read(find(body, NFTA_RULE_EXPRESSIONS).unwrap_or(&[]));
    let wanted = |rule: &NftRule| expr::lower(rule);
    for (index, rule) in chain.rules.iter().enumerate() {
        let object = Object::Rule(chain.name.clone(), index + 1);
        let Some(found) = found.get(index).map(read) else {
            return Err(NftError::Differs(format!("{object} is missing")));
        };
        let wanted = wanted(rule);
        if found != wanted {
            return Err(NftError::Differs(format!("{object} is {found:?} instead of {wanted:?}")));
        }
    }
    if found.len() > chain.rules.len() {
        let object = Object::Rule(chain.name.clone(), chain.rules.len() + 1);
        return Err(NftError::Differs(format!("{object} does not belong here")));
    }
    Ok(())
}

fn same_names(
    what: &str,
    found: &[Vec<u8>],
    kind: u16,
    wanted: impl Iterator<Item = &'static str> + Clone,
) -> Result<(), NftError> {
    let mut names = found.iter().map(|body| string(body, kind).unwrap_or("?"));
    if let Some(missing) = wanted.clone().find(|w| !names.clone().any(|n| n == *w)) {
        return Err(NftError::Differs(format!("{what} {missing} is missing")));
    }
    match names.find(|n| !wanted.clone().any(|w| w == *n)) {
        Some(extra) => Err(NftError::Differs(format!("{what} {extra} does not belong here"))),
        None => Ok(()),
    }
}

fn named<'a>(bodies: &'a [Vec<u8>], kind: u16, name: &str) -> &'a [u8] {
    let mut bodies = bodies.iter().map(Vec::as_slice);
    bodies.find(|body| string(body, kind) == Some(name)).unwrap_or(&[])
}

fn string(body: &[u8], kind: u16) -> Option<&str> {
    attributes(body).find(|a| a.kind == kind)?.string()
}

/// The attributes of a message, after `struct nfgenmsg`.
fn payload(message: &Message<'_>) -> Vec<u8> {
    message.body.get(4..).unwrap_or(&[]).to_vec()
}
