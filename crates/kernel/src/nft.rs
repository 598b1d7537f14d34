//! The nf_tables table (`linux/netfilter/nf_tables.h`): loaded as one transaction, read back and compared, its sets replaced
//! while the container runs. Knows the types of [`terok_policy::ruleset`] and nothing of what a rule is for.

mod batch;
mod egress;
mod element;
mod expr;
mod generation;
mod readback;
mod uapi;

use crate::netlink::{Failure, News, Socket};
use batch::Batch;
use nix::errno::Errno;
use nix::sys::socket::SockProtocol;
use std::borrow::Cow;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use terok_policy::layout;
use terok_policy::ruleset::{Ruleset, Set};

/// Send buffer asked for. Under the kernel's own limit (`net.core.wmem_max`, 208 KiB) the longest transaction has twice that,
/// some 6 000 elements.
const SEND_BUFFER: usize = 4 << 20;
/// More removals than this, and creating the sets anew is faster.
const REMOVED_ONE_BY_ONE: usize = 64;
/// Attempts at a change while elements expire.
const ATTEMPTS: usize = 4;

/// A netfilter socket. It stays in the network namespace it was opened in, whoever holds it; changing tables through it
/// takes `CAP_NET_ADMIN` in the opener and in the sender.
#[derive(Debug)]
pub struct NftSocket(Socket);

/// Opens a socket in the calling thread's network namespace.
pub fn open() -> io::Result<NftSocket> {
    let socket = Socket::open(SockProtocol::NetlinkNetFilter)?;
    socket.set_send_buffer(SEND_BUFFER)?;
    Ok(NftSocket(socket))
}

/// Opens a socket in the calling thread's network namespace that is readable after any change of tables there, by whomever;
/// not when an element's time is over.
pub fn news() -> io::Result<News> {
    News::open(SockProtocol::NetlinkNetFilter, 1 << (libc::NFNLGRP_NFTABLES - 1))
}

/// Part of a table, as errors name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// The transaction as a whole.
    Transaction,
    /// The table.
    Table,
    /// The table of family `netdev`.
    EgressTable,
    /// A set.
    Set(&'static str),
    /// Elements of a set.
    Elements(&'static str),
    /// A chain.
    Chain(Cow<'static, str>),
    /// A rule: chain and position from 1.
    Rule(Cow<'static, str>, usize),
    /// The rules of the table.
    Rules,
}

/// Why a table could not be loaded or changed, or is not as it should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NftError {
    /// The socket failed.
    #[error("netfilter socket: {0}")]
    Socket(#[from] io::Error),
    /// The kernel refused part of a transaction, so nothing of it happened.
    #[error("the kernel refused {object}: {errno}{}", .text.as_deref().map(|t| format!(" ({t})")).unwrap_or_default())]
    Refused {
        /// What it refused.
        object: Object,
        /// Why.
        errno: Errno,
        /// The kernel's own words.
        text: Option<String>,
    },
    /// The kernel has no hook where frames leave by a card: what a packet socket sends cannot be stopped there.
    #[error(
        "the kernel has no nf_tables egress hook ({0}): it needs Linux 5.16 with CONFIG_NETFILTER_EGRESS"
    )]
    NoEgress(Errno),
    /// An element that its set cannot hold.
    #[error("set {set}: {why}")]
    Element {
        /// The set.
        set: &'static str,
        /// What is wrong with the element.
        why: &'static str,
    },
    /// The table in the kernel is not the one wanted.
    #[error("the table in the kernel is not the one loaded: {0}")]
    Differs(String),
}

impl NftError {
    /// Whether the table could not be created because there is one of its name.
    pub fn is_table_there(&self) -> bool {
        matches!(
            self,
            NftError::Refused { object: Object::Table | Object::EgressTable, errno: Errno::EEXIST, .. }
        )
    }
}

impl NftSocket {
    /// Creates `ruleset` in one transaction; the table must not exist. Only adds: in a batch that deletes, closing the socket
    /// waits some 11 ms.
    ///
    /// Elements that do not fit into one datagram follow in further transactions, in the order of the sets: list the sets
    /// that refuse before those that allow, and less is open on the way, never more. Until this returns the container must
    /// not run.
    pub fn load(&self, ruleset: &Ruleset) -> Result<(), NftError> {
        self.load_after(ruleset, |_| {})
    }

    /// Makes the table be `ruleset`, whatever it was: the old one, where there is one, goes in the same transaction.
    pub fn reload(&self, ruleset: &Ruleset) -> Result<(), NftError> {
        self.load_after(ruleset, Batch::delete_table)
    }

    fn load_after(&self, ruleset: &Ruleset, first: impl FnOnce(&mut Batch)) -> Result<(), NftError> {
        let mut batch = self.batch(libc::NFPROTO_INET, ruleset.table)?;
        first(&mut batch);
        batch.table();
        for (index, set) in ruleset.sets.iter().enumerate() {
            batch.set(set, index as u32 + 1);
        }
        for chain in &ruleset.chains {
            batch.chain(&chain.into());
        }
        for set in &ruleset.sets {
            batch.add(set, &element::sorted(set)?);
        }
        self.commit(batch)
    }

    /// Makes `sets` of the table of [`layout::TABLE`] hold exactly these elements, in one transaction. What is there already is
    /// left alone; a timeout is what an element still has from now on, and one that is less than two seconds off stays.
    ///
    /// A change too large for one datagram empties the sets first and fills them in the order given, as [`Self::load`] does.
    pub fn replace_sets(&self, sets: &[Set]) -> Result<(), NftError> {
        for _ in 1..ATTEMPTS {
            match self.change_sets(sets) {
                // Removed by its own timeout between the reading and the change.
                Err(NftError::Refused { object: Object::Elements(_), errno: Errno::ENOENT, .. }) => {}
                done => return done,
            }
        }
        self.rebuild_sets(sets)
    }

    /// Reads the table back and compares all of it: flags, sets and elements, chains with type, hook, priority and policy,
    /// and each expression of each rule. Counters do not count, and timeouts are what elements still have, give or take two
    /// seconds. The error names the first difference.
    pub fn verify(&self, ruleset: &Ruleset) -> Result<(), NftError> {
        readback::verify(&self.0, ruleset)
    }

    /// The socket, for other requests to netfilter.
    pub(crate) fn netlink(&self) -> &Socket {
        &self.0
    }

    fn change_sets(&self, sets: &[Set]) -> Result<(), NftError> {
        let mut removed = Vec::new();
        let mut added = Vec::new();
        for set in sets {
            let wanted = element::sorted(set)?;
            let present = readback::elements(&self.0, layout::TABLE, set)?;
            let (gone, new) = element::changes(wanted, present);
            removed.push((set, gone));
            added.push((set, new));
        }
        if removed.iter().map(|(_, gone)| gone.len()).sum::<usize>() > REMOVED_ONE_BY_ONE {
            return self.rebuild_sets(sets);
        }
        let mut batch = self.batch(libc::NFPROTO_INET, layout::TABLE)?;
        removed.iter().for_each(|(set, gone)| batch.remove(set, gone));
        added.iter().for_each(|(set, new)| batch.add(set, new));
        match batch.is_one() {
            true => self.commit(batch),
            false => self.rebuild_sets(sets),
        }
    }

    /// Deletes the sets with all rules and creates them again: the kernel takes time in the square of their number to remove
    /// elements from a set of ranges, but none to forget the set. Rules are sent back as the kernel gave them, counters included.
    fn rebuild_sets(&self, sets: &[Set]) -> Result<(), NftError> {
        let rules = readback::rules(&self.0, layout::TABLE)?;
        let mut batch = self.batch(libc::NFPROTO_INET, layout::TABLE)?;
        batch.delete_rules();
        sets.iter().for_each(|set| batch.delete_set(set.name));
        for (index, set) in sets.iter().enumerate() {
            batch.set(set, index as u32 + 1);
        }
        rules.iter().for_each(|rule| batch.raw_rule(rule));
        for set in sets {
            batch.add(set, &element::sorted(set)?);
        }
        self.commit(batch)
    }

    fn batch(&self, family: i32, table: &'static str) -> Result<Batch, NftError> {
        Ok(Batch::new(family, table, self.0.longest()?))
    }

    fn commit(&self, batch: Batch) -> Result<(), NftError> {
        for datagram in batch.finish() {
            match self.0.request(datagram.bytes(), datagram.last(), |_| {}) {
                Ok(()) => {}
                Err(Failure::Io(e)) => return Err(e.into()),
                Err(Failure::Refused(r)) => {
                    return Err(NftError::Refused {
                        object: datagram.object(r.seq),
                        errno: r.errno,
                        text: r.text,
                    });
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transaction => write!(f, "the nf_tables transaction"),
            Self::Table => write!(f, "the nf_tables table"),
            Self::EgressTable => write!(f, "the nf_tables table at the cards"),
            Self::Set(name) => write!(f, "set {name}"),
            Self::Elements(name) => write!(f, "elements of set {name}"),
            // A card's name may hold anything but spaces, slashes and colons.
            Self::Chain(name) => write!(f, "chain {}", name.escape_default()),
            Self::Rules => write!(f, "the rules of the table"),
            Self::Rule(chain, position) => write!(f, "rule {position} of chain {}", chain.escape_default()),
        }
    }
}

impl From<OwnedFd> for NftSocket {
    /// Takes a descriptor that [`open`] made, in this process or another.
    fn from(fd: OwnedFd) -> Self {
        Self(fd.into())
    }
}

impl From<NftSocket> for OwnedFd {
    fn from(socket: NftSocket) -> Self {
        socket.0.into()
    }
}

impl AsFd for NftSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
