//! Transactions: nf_tables messages between `NFNL_MSG_BATCH_BEGIN` and `END`, one datagram each.

use super::element::{self, Interval};
use super::uapi::*;
use super::{Object, expr};
use crate::netlink::{Writer, find};
use libc::{
    NFT_SET_INTERVAL, NFT_SET_TIMEOUT, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST,
};
use std::borrow::Cow;
use terok_policy::ruleset::{Chain, ChainKind, Family, Hook, NftRule, Set};

/// Elements in one message: the attribute that holds them ends at 64 KiB, an element has at most 84 octets.
const CHUNK: usize = 700;
/// The kernel's name of the chain type.
pub(super) const FILTER: &str = "filter";
/// Octets kept free for the message that ends a transaction.
const END: usize = 32;

/// A sequence of transactions on one table.
#[derive(Debug)]
pub(super) struct Batch {
    family: i32,
    table: &'static str,
    limit: usize,
    done: Vec<Datagram>,
    open: Datagram,
}

/// One transaction.
#[derive(Debug)]
pub(super) struct Datagram {
    family: i32,
    writer: Writer,
    /// What each sequence number is about.
    objects: Vec<Object>,
    /// Where the last message starts, and its sequence number.
    last: (usize, u32),
}

impl Batch {
    /// `limit`: the longest datagram that can be sent.
    pub(super) fn new(family: i32, table: &'static str, limit: usize) -> Self {
        Self { family, table, limit, done: Vec::new(), open: Datagram::begin(family) }
    }

    /// Creates the table, which must not exist.
    pub(super) fn table(&mut self) {
        self.new_table(NLM_F_CREATE | NLM_F_EXCL);
    }

    /// Deletes the table and all that is in it, where it exists.
    pub(super) fn delete_table(&mut self) {
        // What does not exist cannot be deleted.
        self.new_table(NLM_F_CREATE);
        let (name, object) = (self.table, self.table_object());
        self.message(libc::NFT_MSG_DELTABLE, 0, object, |w| w.string(NFTA_TABLE_NAME, name));
    }

    fn new_table(&mut self, flags: i32) {
        let (name, object) = (self.table, self.table_object());
        self.message(libc::NFT_MSG_NEWTABLE, flags, object, |w| {
            w.string(NFTA_TABLE_NAME, name);
            w.be32(NFTA_TABLE_FLAGS, 0);
        });
    }

    fn table_object(&self) -> Object {
        if self.family == libc::NFPROTO_NETDEV { Object::EgressTable } else { Object::Table }
    }

    pub(super) fn set(&mut self, set: &Set, id: u32) {
        let table = self.table;
        self.create(libc::NFT_MSG_NEWSET, Object::Set(set.name), |w| {
            let shape = Shape::of(set);
            w.string(NFTA_SET_TABLE, table);
            w.string(NFTA_SET_NAME, set.name);
            w.be32(NFTA_SET_FLAGS, shape.flags);
            w.be32(NFTA_SET_KEY_TYPE, shape.key_type);
            w.be32(NFTA_SET_KEY_LEN, shape.key_len);
            w.be32(NFTA_SET_ID, id);
            if !shape.fields.is_empty() {
                w.nest(NFTA_SET_DESC, |w| {
                    w.nest(NFTA_SET_DESC_CONCAT, |w| {
                        for length in shape.fields {
                            w.nest(NFTA_LIST_ELEM, |w| w.be32(NFTA_SET_FIELD_LEN, *length));
                        }
                    });
                });
            }
        });
    }

    /// A chain and its rules.
    pub(super) fn chain(&mut self, chain: &BaseChain<'_>) {
        let table = self.table;
        self.create(libc::NFT_MSG_NEWCHAIN, Object::Chain(chain.name.clone()), |w| {
            w.string(NFTA_CHAIN_TABLE, table);
            w.string(NFTA_CHAIN_NAME, &chain.name);
            w.nest(NFTA_CHAIN_HOOK, |w| {
                w.be32(NFTA_HOOK_HOOKNUM, chain.hook);
                w.be32(NFTA_HOOK_PRIORITY, chain.priority as u32);
                if let Some(device) = chain.device {
                    w.string(NFTA_HOOK_DEV, device);
                }
            });
            w.be32(NFTA_CHAIN_POLICY, chain.policy);
            w.string(NFTA_CHAIN_TYPE, chain.kind);
        });
        for (index, rule) in chain.rules.iter().enumerate() {
            let object = Object::Rule(chain.name.clone(), index + 1);
            self.message(libc::NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, object, |w| {
                w.string(NFTA_RULE_TABLE, table);
                w.string(NFTA_RULE_CHAIN, &chain.name);
                w.nest(NFTA_RULE_EXPRESSIONS, |w| expr::write(&expr::lower(rule), w));
            });
        }
    }

    /// Adds elements to a set, in a new transaction where they do not fit any more.
    pub(super) fn add(&mut self, set: &Set, intervals: &[Interval]) {
        self.elements(libc::NFT_MSG_NEWSETELEM, NLM_F_CREATE | NLM_F_EXCL, set, intervals);
    }

    /// Removes elements from a set.
    pub(super) fn remove(&mut self, set: &Set, intervals: &[Interval]) {
        self.elements(libc::NFT_MSG_DELSETELEM, 0, set, intervals);
    }

    /// Deletes a set that no rule uses.
    pub(super) fn delete_set(&mut self, set: &'static str) {
        let table = self.table;
        self.message(libc::NFT_MSG_DELSET, 0, Object::Set(set), |w| {
            w.string(NFTA_SET_TABLE, table);
            w.string(NFTA_SET_NAME, set);
        });
    }

    /// Deletes the rules of all chains.
    pub(super) fn delete_rules(&mut self) {
        let table = self.table;
        self.message(libc::NFT_MSG_DELRULE, 0, Object::Rules, |w| w.string(NFTA_RULE_TABLE, table));
    }

    /// A rule as the kernel gave it.
    pub(super) fn raw_rule(&mut self, body: &[u8]) {
        let table = self.table;
        self.message(libc::NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, Object::Rules, |w| {
            w.string(NFTA_RULE_TABLE, table);
            for kind in [NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS] {
                w.attribute(kind, find(body, kind).unwrap_or(&[]));
            }
        });
    }

    /// Whether all of it is one transaction.
    pub(super) fn is_one(&self) -> bool {
        self.done.is_empty()
    }

    fn elements(&mut self, kind: i32, flags: i32, set: &Set, intervals: &[Interval]) {
        for chunk in intervals.chunks(CHUNK) {
            let mut content = Writer::default();
            element_list(self.table, set, chunk, &mut content);
            if self.open.bytes().len() + content.bytes().len() + 2 * END > self.limit {
                self.done.push(std::mem::replace(&mut self.open, Datagram::begin(self.family)));
            }
            self.message(kind, flags, Object::Elements(set.name), |w| w.raw(content.bytes()));
        }
    }

    /// The transactions that have anything to do, in order.
    pub(super) fn finish(self) -> impl Iterator<Item = Datagram> {
        let all = self.done.into_iter().chain([self.open]);
        all.filter(|datagram| datagram.last() > 0).map(Datagram::end)
    }

    fn create(&mut self, kind: i32, object: Object, body: impl FnOnce(&mut Writer)) {
        self.message(kind, NLM_F_CREATE | NLM_F_EXCL, object, body);
    }

    fn message(&mut self, kind: i32, flags: i32, object: Object, body: impl FnOnce(&mut Writer)) {
        self.open.push(kind, flags, object, body);
    }
}

impl Datagram {
    fn begin(family: i32) -> Self {
        let mut datagram = Self { family, writer: Writer::default(), objects: Vec::new(), last: (0, 0) };
        datagram.boundary(libc::NFNL_MSG_BATCH_BEGIN);
        datagram
    }

    fn end(mut self) -> Self {
        // An error is answered in any case; one acknowledgement tells that all went well.
        self.writer.add_flags(self.last.0, NLM_F_ACK);
        self.boundary(libc::NFNL_MSG_BATCH_END);
        self
    }

    /// The whole transaction.
    pub(super) fn bytes(&self) -> &[u8] {
        self.writer.bytes()
    }

    /// The last message before the end: once it is acknowledged, all is done.
    pub(super) fn last(&self) -> u32 {
        self.last.1
    }

    /// What the message `seq` was about.
    pub(super) fn object(&self, seq: u32) -> Object {
        self.objects.get(seq as usize).cloned().unwrap_or(Object::Transaction)
    }

    fn push(&mut self, kind: i32, flags: i32, object: Object, body: impl FnOnce(&mut Writer)) {
        let seq = self.objects.len() as u32;
        self.last = (self.writer.bytes().len(), seq);
        self.objects.push(object);
        let (kind, family) = (message_type(kind), self.family);
        self.writer.message(kind, NLM_F_REQUEST | flags, seq, |w| {
            w.raw(&nfgenmsg(family, 0));
            body(w);
        });
    }

    fn boundary(&mut self, kind: i32) {
        let seq = self.objects.len() as u32;
        self.objects.push(Object::Transaction);
        self.writer.message(kind as u16, NLM_F_REQUEST, seq, |w| {
            w.raw(&nfgenmsg(libc::AF_UNSPEC, libc::NFNL_SUBSYS_NFTABLES as u16));
        });
    }
}

/// What the kernel keeps of a set beside its elements.
pub(super) struct Shape {
    pub(super) flags: u32,
    pub(super) key_type: u32,
    pub(super) key_len: u32,
    /// Length of each field of a concatenation.
    pub(super) fields: &'static [u32],
}

impl Shape {
    pub(super) fn of(set: &Set) -> Self {
        let (address_type, address_len, fields): (_, _, &[u32]) = match set.family {
            Family::V4 => (TYPE_IPADDR, 4, &[4, 1, 2]),
            Family::V6 => (TYPE_IP6ADDR, 16, &[16, 1, 2]),
        };
        if !set.ports {
            return Self {
                flags: NFT_SET_INTERVAL as u32,
                key_type: address_type,
                key_len: address_len,
                fields: &[],
            };
        }
        let ports = (TYPE_INET_PROTOCOL << TYPE_BITS) | TYPE_INET_SERVICE;
        Self {
            flags: (NFT_SET_INTERVAL | NFT_SET_TIMEOUT) as u32 | NFT_SET_CONCAT,
            key_type: (address_type << (2 * TYPE_BITS)) | ports,
            key_len: address_len + 8,
            fields,
        }
    }
}

/// A base chain of any family, in the kernel's terms.
#[derive(Debug)]
pub(super) struct BaseChain<'a> {
    pub(super) name: Cow<'static, str>,
    /// Chain type.
    pub(super) kind: &'static str,
    /// Number of the hook in its family.
    pub(super) hook: u32,
    pub(super) priority: i32,
    /// The one card it is at, in the family `netdev`.
    pub(super) device: Option<&'a str>,
    /// What it does at its end.
    pub(super) policy: u32,
    pub(super) rules: &'a [NftRule],
}

impl<'a> From<&'a Chain> for BaseChain<'a> {
    fn from(chain: &'a Chain) -> Self {
        Self {
            name: Cow::Borrowed(chain.name),
            kind: match chain.kind {
                ChainKind::Filter => FILTER,
                ChainKind::Nat => "nat",
            },
            // enum nf_inet_hooks
            hook: match chain.hook {
                Hook::Input => libc::NF_INET_LOCAL_IN,
                Hook::Forward => libc::NF_INET_FORWARD,
                Hook::Output => libc::NF_INET_LOCAL_OUT,
                Hook::Postrouting => libc::NF_INET_POST_ROUTING,
            } as u32,
            priority: chain.priority,
            device: None,
            policy: (if chain.drop { libc::NF_DROP } else { libc::NF_ACCEPT }) as u32,
            rules: &chain.rules,
        }
    }
}

/// `nlmsg_type` of an nf_tables message.
pub(super) fn message_type(kind: i32) -> u16 {
    ((libc::NFNL_SUBSYS_NFTABLES as u16) << 8) | kind as u16
}

/// `struct nfgenmsg`
pub(super) fn nfgenmsg(family: i32, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family as u8, 0, high, low]
}

fn element_list(table: &str, set: &Set, intervals: &[Interval], w: &mut Writer) {
    w.string(NFTA_SET_ELEM_LIST_TABLE, table);
    w.string(NFTA_SET_ELEM_LIST_SET, set.name);
    w.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |w| {
        for interval in intervals {
            element::write(interval, set.ports, w);
        }
    });
}
