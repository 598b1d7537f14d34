//! The number of the namespace's nf_tables generation: one more with each transaction, whoever made it. Who knows it after a
//! change of his own can tell whether anybody else has made one since, without reading a table.

use super::batch::{message_type, nfgenmsg};
use super::{NftError, NftSocket};
use crate::netlink::{Failure, Writer, attributes};
use std::io;

/// `NFTA_GEN_ID`
const NFTA_GEN_ID: u16 = 1;

impl NftSocket {
    /// The number now.
    pub fn generation(&self) -> Result<u32, NftError> {
        let mut w = Writer::default();
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        w.message(message_type(libc::NFT_MSG_GETGEN), flags, 1, |w| w.raw(&nfgenmsg(libc::AF_UNSPEC, 0)));
        let mut number = None;
        let asked = self.0.request(w.bytes(), 1, |message| {
            let body = message.body.get(4..).unwrap_or(&[]);
            number = attributes(body).find(|a| a.kind == NFTA_GEN_ID).and_then(|a| a.be32());
        });
        match (asked, number) {
            (Ok(()), Some(number)) => Ok(number),
            (Ok(()), None) => Err(io::Error::other("the kernel tells no generation").into()),
            (Err(Failure::Io(error)), _) => Err(error.into()),
            (Err(Failure::Refused(refusal)), _) => Err(io::Error::from(refusal.errno).into()),
        }
    }
}
