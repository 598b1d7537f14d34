//! The flows that the kernel tracks in a network namespace (`linux/netfilter/nfnetlink_conntrack.h`): which are alive, and
//! forgetting one. Asked through the socket that changes tables: both are netfilter's.

use crate::netlink::{Failure, Socket, Writer, find};
use crate::nft::NftSocket;
use nix::errno::Errno;
use std::io;
use std::net::IpAddr;

/// `enum cntl_msg_types`
const IPCTNL_MSG_CT_GET: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
/// `enum ctattr_type`, and what is in them.
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_PROTOINFO: u16 = 4;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const CTA_PROTOINFO_TCP: u16 = 1;
const CTA_PROTOINFO_TCP_STATE: u16 = 1;
/// `TCP_CONNTRACK_LAST_ACK`; time-wait and closed follow.
const LAST_ACK: u8 = 6;
/// `TCP_CONNTRACK_CLOSE`
const CLOSE: u8 = 8;
/// A dump is repeated this often when it was interrupted.
const ATTEMPTS: usize = 4;

/// A tracked flow as the one who began it sees it, before any translation of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Transport protocol number.
    pub proto: u8,
    /// From where.
    pub src: IpAddr,
    /// To where.
    pub dst: IpAddr,
    /// From which port; 0 of a protocol without ports.
    pub sport: u16,
    /// To which port, likewise.
    pub dport: u16,
}

/// Gives every flow of the socket's namespace to `each`, except TCP connections that both ends have closed.
pub fn flows(socket: &NftSocket, each: impl FnMut(Flow)) -> io::Result<()> {
    flows_of(socket.netlink(), each)
}

/// Makes the kernel forget a flow: its next packet begins a new one. Whether there was such a flow.
pub fn forget(socket: &NftSocket, flow: &Flow) -> io::Result<bool> {
    let mut w = Writer::default();
    w.message(kind(IPCTNL_MSG_CT_DELETE), libc::NLM_F_REQUEST | libc::NLM_F_ACK, 1, |w| {
        let family = if flow.src.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        w.raw(&[family as u8, 0, 0, 0]);
        w.nest(CTA_TUPLE_ORIG, |w| write(flow, w));
    });
    match socket.netlink().request(w.bytes(), 1, |_| {}) {
        Ok(()) => Ok(true),
        Err(Failure::Refused(r)) if r.errno == Errno::ENOENT => Ok(false),
        Err(e) => Err(error(e)),
    }
}

fn flows_of(socket: &Socket, mut each: impl FnMut(Flow)) -> io::Result<()> {
    let mut w = Writer::default();
    w.message(kind(IPCTNL_MSG_CT_GET), libc::NLM_F_REQUEST | libc::NLM_F_DUMP, 1, |w| {
        // struct nfgenmsg: every family
        w.raw(&[libc::AF_UNSPEC as u8, 0, 0, 0]);
    });
    let mut attempts = 1..ATTEMPTS;
    loop {
        match socket.dump(w.bytes(), |m| m.body.get(4..).and_then(open).into_iter().for_each(&mut each)) {
            Err(Failure::Io(e)) if e.kind() == io::ErrorKind::Interrupted && attempts.next().is_some() => {}
            done => return done.map_err(error),
        }
    }
}

/// The flow in the attributes of a message.
fn open(list: &[u8]) -> Option<Flow> {
    let tcp = find(list, CTA_PROTOINFO).and_then(|info| find(info, CTA_PROTOINFO_TCP));
    let state = tcp.and_then(|tcp| find(tcp, CTA_PROTOINFO_TCP_STATE)?.first());
    if state.is_some_and(|state| (LAST_ACK..=CLOSE).contains(state)) {
        return None;
    }
    let tuple = find(list, CTA_TUPLE_ORIG)?;
    let (ip, proto) = (find(tuple, CTA_TUPLE_IP)?, find(tuple, CTA_TUPLE_PROTO)?);
    let address = |v4, v6| match (find(ip, v4), find(ip, v6)) {
        (Some(octets), _) => <[u8; 4]>::try_from(octets).ok().map(IpAddr::from),
        (None, Some(octets)) => <[u8; 16]>::try_from(octets).ok().map(IpAddr::from),
        (None, None) => None,
    };
    let port = |kind| find(proto, kind)?.try_into().ok().map(u16::from_be_bytes);
    Some(Flow {
        proto: *find(proto, CTA_PROTO_NUM)?.first()?,
        src: address(CTA_IP_V4_SRC, CTA_IP_V6_SRC)?,
        dst: address(CTA_IP_V4_DST, CTA_IP_V6_DST)?,
        sport: port(CTA_PROTO_SRC_PORT).unwrap_or(0),
        dport: port(CTA_PROTO_DST_PORT).unwrap_or(0),
    })
}

fn write(flow: &Flow, w: &mut Writer) {
    w.nest(CTA_TUPLE_IP, |w| {
        let mut address = |ip, v4, v6| match ip {
            IpAddr::V4(ip) => w.attribute(v4, &ip.octets()),
            IpAddr::V6(ip) => w.attribute(v6, &ip.octets()),
        };
        address(flow.src, CTA_IP_V4_SRC, CTA_IP_V6_SRC);
        address(flow.dst, CTA_IP_V4_DST, CTA_IP_V6_DST);
    });
    w.nest(CTA_TUPLE_PROTO, |w| {
        w.attribute(CTA_PROTO_NUM, &[flow.proto]);
        w.attribute(CTA_PROTO_SRC_PORT, &flow.sport.to_be_bytes());
        w.attribute(CTA_PROTO_DST_PORT, &flow.dport.to_be_bytes());
    });
}

fn kind(message: u16) -> u16 {
    ((libc::NFNL_SUBSYS_CTNETLINK as u16) << 8) | message
}

fn error(failure: Failure) -> io::Error {
    match failure {
        Failure::Io(e) => e,
        Failure::Refused(r) => r.errno.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(flow: &Flow, state: Option<u8>) -> Vec<u8> {
        let mut w = Writer::default();
        w.nest(CTA_TUPLE_ORIG, |w| write(flow, w));
        if let Some(state) = state {
            w.nest(CTA_PROTOINFO, |w| {
                w.nest(CTA_PROTOINFO_TCP, |w| w.attribute(CTA_PROTOINFO_TCP_STATE, &[state]));
            });
        }
        w.bytes().to_vec()
    }

    fn flow(src: &str, dst: &str) -> Flow {
        Flow { proto: 6, src: src.parse().unwrap(), dst: dst.parse().unwrap(), sport: 40_000, dport: 443 }
    }

    #[test]
    fn flows_of_both_families_are_read_and_closed_ones_are_left_out() {
        for flow in [flow("10.0.2.100", "192.0.2.1"), flow("2001:db8::2", "2001:db8::1")] {
            assert_eq!(open(&message(&flow, None)), Some(flow));
            assert_eq!(open(&message(&flow, Some(3))), Some(flow));
            assert_eq!(open(&message(&flow, Some(7))), None);
        }
    }

    #[test]
    fn any_bytes_are_read_without_panic() {
        let whole = message(&flow("10.0.2.100", "192.0.2.1"), Some(3));
        for cut in 0..whole.len() {
            open(&whole[..cut]);
            for octet in [0, 1, 4, 0x7f, 0xff] {
                let mut broken = whole.clone();
                broken[cut] = octet;
                open(&broken);
            }
        }
    }
}
