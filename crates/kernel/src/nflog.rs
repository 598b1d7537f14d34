//! NFLOG (`linux/netfilter/nfnetlink_log.h`): the packets that the table's `log` statements hand over. Reads bytes of the
//! container's making, so it takes any input without panic or growth.

use crate::netlink::{self, Failure, Socket, Writer};
use nix::sys::socket::SockProtocol;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::OwnedFd;

/// Octets of each packet that are copied: the IP header with options, extension headers and the ports.
const COPY: u32 = 128;
/// Sequence number of the bind request.
const BIND: u32 = 1;
const TCP: u8 = libc::IPPROTO_TCP as u8;
const UDP: u8 = libc::IPPROTO_UDP as u8;
const UDPLITE: u8 = libc::IPPROTO_UDPLITE as u8;
const SCTP: u8 = libc::IPPROTO_SCTP as u8;
const DCCP: u8 = libc::IPPROTO_DCCP as u8;

/// What is known of a logged packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Prefix of the rule that logged it; empty when it is not printable ASCII.
    pub prefix: &'a str,
    /// Transport protocol number.
    pub proto: u8,
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Source port, of a protocol that has ports and a packet that shows them.
    pub sport: Option<u16>,
    /// Destination port, likewise.
    pub dport: Option<u16>,
    /// User who sent it, as seen from the user namespace of the process that called [`bind`].
    pub uid: Option<u32>,
}

/// Opens a non-blocking socket in the calling thread's network namespace and binds it to `group`. `AddrInUse` when another
/// socket has the group. Read it with [`Socket::receive`], which fails with `ENOBUFS` once after packets were lost.
pub fn bind(group: u16) -> io::Result<OwnedFd> {
    let socket = Socket::open(SockProtocol::NetlinkNetFilter)?;
    match socket.request(bind_request(group).bytes(), BIND, |_| {}) {
        Ok(()) => Ok(socket.into()),
        Err(Failure::Io(e)) => Err(e),
        // The kernel says EPERM to a second listener; a missing capability is EPERM as well.
        Err(Failure::Refused(refusal)) => Err(refusal.errno.into()),
    }
}

/// The packets in a datagram received from a socket of [`bind`].
pub fn parse(datagram: &[u8]) -> impl Iterator<Item = Packet<'_>> {
    let packet = ((libc::NFNL_SUBSYS_ULOG as u16) << 8) | libc::NFULNL_MSG_PACKET as u16;
    netlink::messages(datagram)
        .filter(move |m| m.kind == packet)
        // struct nfgenmsg comes first
        .filter_map(|m| logged(m.body.get(4..)?))
}

fn bind_request(group: u16) -> Writer {
    let kind = ((libc::NFNL_SUBSYS_ULOG as u16) << 8) | libc::NFULNL_MSG_CONFIG as u16;
    let mut w = Writer::default();
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
    w.message(kind, flags, BIND, |w| {
        // struct nfgenmsg: AF_UNSPEC, version 0, the group
        let [high, low] = group.to_be_bytes();
        w.raw(&[0, 0, high, low]);
        w.attribute(libc::NFULA_CFG_CMD as u16, &[libc::NFULNL_CFG_CMD_BIND as u8]);
        // struct nfulnl_msg_config_mode
        let mut mode = COPY.to_be_bytes().to_vec();
        mode.extend([libc::NFULNL_COPY_PACKET as u8, 0]);
        w.attribute(libc::NFULA_CFG_MODE as u16, &mode);
        // Each packet at once: the rules that log are rate-limited.
        w.be32(libc::NFULA_CFG_QTHRESH as u16, 1);
    });
    w
}

fn logged(attributes: &[u8]) -> Option<Packet<'_>> {
    let (mut prefix, mut uid, mut payload) = ("", None, None);
    for a in netlink::attributes(attributes) {
        match i32::from(a.kind) {
            libc::NFULA_PREFIX => prefix = a.string().filter(|p| printable(p)).unwrap_or(""),
            libc::NFULA_UID => uid = a.be32(),
            libc::NFULA_PAYLOAD => payload = Some(a.value),
            _ => {}
        }
    }
    let payload = payload?;
    let (src, dst, proto, rest) = match payload.first()? >> 4 {
        4 => v4(payload)?,
        6 => v6(payload)?,
        _ => return None,
    };
    let ports = rest
        .filter(|_| matches!(proto, TCP | UDP | UDPLITE | SCTP | DCCP))
        .and_then(|rest| rest.first_chunk::<4>());
    Some(Packet {
        prefix,
        proto,
        src,
        dst,
        sport: ports.map(|p| u16::from_be_bytes([p[0], p[1]])),
        dport: ports.map(|p| u16::from_be_bytes([p[2], p[3]])),
        uid,
    })
}

/// Source, destination, protocol, and the transport header unless this is a later fragment.
type Headers<'a> = (IpAddr, IpAddr, u8, Option<&'a [u8]>);

/// RFC 791
fn v4(packet: &[u8]) -> Option<Headers<'_>> {
    let header = packet.first_chunk::<20>()?;
    let first = u16::from_be_bytes([header[6], header[7]]) & 0x1fff == 0;
    let rest = packet.get(usize::from(header[0] & 15) * 4..);
    Some((
        IpAddr::from(*header[12..].first_chunk::<4>()?),
        IpAddr::from(*header[16..].first_chunk::<4>()?),
        header[9],
        rest.filter(|_| first),
    ))
}

/// RFC 8200; extension headers are walked as far as the copy goes.
fn v6(packet: &[u8]) -> Option<Headers<'_>> {
    let header = packet.first_chunk::<40>()?;
    let src = Ipv6Addr::from(*header[8..].first_chunk::<16>()?);
    let dst = Ipv6Addr::from(*header[24..].first_chunk::<16>()?);
    let (mut proto, mut rest) = (header[6], packet.get(40..));
    while let Some(next) = rest.and_then(|r| r.first_chunk::<8>()) {
        let length = match i32::from(proto) {
            libc::IPPROTO_HOPOPTS | libc::IPPROTO_ROUTING | libc::IPPROTO_DSTOPTS => {
                usize::from(next[1]) * 8 + 8
            }
            libc::IPPROTO_FRAGMENT => 8,
            _ => break,
        };
        let later = i32::from(proto) == libc::IPPROTO_FRAGMENT
            && u16::from_be_bytes([next[2], next[3]]) & 0xfff8 != 0;
        proto = next[0];
        rest = rest.and_then(|r| r.get(length..)).filter(|_| !later);
    }
    Some((src.into(), dst.into(), proto, rest))
}

fn printable(text: &str) -> bool {
    text.bytes().all(|b| b == b' ' || b.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
    use netlink_packet_netfilter::{NetfilterMessage, NetfilterMessageInner};

    /// A UDP packet from 127.0.0.1:1000 to 192.0.2.1:2000.
    const UDP4: [u8; 28] =
        [0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 127, 0, 0, 1, 192, 0, 2, 1, 3, 0xe8, 7, 0xd0, 0, 8, 0, 0];

    fn datagram(prefix: &[u8], payload: &[u8]) -> Vec<u8> {
        let kind = ((libc::NFNL_SUBSYS_ULOG as u16) << 8) | libc::NFULNL_MSG_PACKET as u16;
        let mut w = Writer::default();
        w.message(kind, 0, 0, |w| {
            w.raw(&[2, 0, 0, 1]);
            w.attribute(libc::NFULA_PREFIX as u16, prefix);
            w.be32(libc::NFULA_UID as u16, 1000);
            w.attribute(libc::NFULA_PAYLOAD as u16, payload);
        });
        w.bytes().to_vec()
    }

    fn v6(next: u8, rest: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[0] = 0x60;
        packet[6] = next;
        packet[23] = 1;
        packet[39] = 2;
        packet.extend(rest);
        packet
    }

    fn ports(payload: &[u8]) -> (u8, Option<u16>, Option<u16>) {
        let datagram = datagram(b"p\0", payload);
        let packet = parse(&datagram).next().unwrap();
        (packet.proto, packet.sport, packet.dport)
    }

    #[test]
    fn a_packet_is_read_whole() {
        let datagram = datagram(b"terok:default\0", &UDP4);
        let wanted = Packet {
            prefix: "terok:default",
            proto: 17,
            src: "127.0.0.1".parse().unwrap(),
            dst: "192.0.2.1".parse().unwrap(),
            sport: Some(1000),
            dport: Some(2000),
            uid: Some(1000),
        };
        assert_eq!(parse(&datagram).collect::<Vec<_>>(), [wanted]);
    }

    #[test]
    fn extension_headers_are_walked_and_later_fragments_have_no_ports() {
        let udp = [3, 0xe8, 7, 0xd0, 0, 8, 0, 0];
        let after = |header: [u8; 8]| [header.as_slice(), &udp].concat();
        assert_eq!(ports(&v6(17, &udp)), (17, Some(1000), Some(2000)));
        assert_eq!(ports(&v6(0, &after([17, 0, 1, 4, 0, 0, 0, 0]))), (17, Some(1000), Some(2000)));
        assert_eq!(ports(&v6(44, &after([17, 0, 0, 1, 0, 0, 0, 9]))), (17, Some(1000), Some(2000)));
        assert_eq!(ports(&v6(44, &after([17, 0, 0, 8, 0, 0, 0, 9]))), (17, None, None));
        let mut fragment = UDP4;
        fragment[7] = 1;
        assert_eq!(ports(&fragment), (17, None, None));
        assert_eq!(ports(&UDP4[..22]), (17, None, None));
        // ICMPv6 has no ports.
        assert_eq!(ports(&v6(58, &udp)), (58, None, None));
    }

    #[test]
    fn a_prefix_that_is_not_printable_is_left_out() {
        for forged in [b"terok:\n{\"x\":1}\0".as_slice(), b"\xff\xfe\0", b"\x1b[2J\0"] {
            assert_eq!(parse(&datagram(forged, &UDP4)).next().unwrap().prefix, "");
        }
    }

    #[test]
    fn any_bytes_are_read_without_panic() {
        let whole = [datagram(b"terok:deny\0", &UDP4), datagram(b"x\0", &v6(0, &[44; 64]))].concat();
        for at in 0..whole.len() {
            parse(&whole[..at]).for_each(drop);
            for value in [0, 1, 4, 0x45, 0x60, 0x7f, 0x80, 0xff] {
                let mut bent = whole.clone();
                bent[at] = value;
                parse(&bent).for_each(drop);
            }
        }
    }

    #[test]
    fn the_request_says_what_another_implementation_reads_in_it() {
        use netlink_packet_netfilter::nflog::{ConfigCmd, ConfigMode, ConfigNla, ULogMessage};
        let request = bind_request(7468);
        let message = NetlinkMessage::<NetfilterMessage>::deserialize(request.bytes()).unwrap();
        let NetlinkPayload::InnerMessage(message) = message.payload else {
            panic!("{message:?}");
        };
        assert_eq!(message.header.res_id, 7468);
        let NetfilterMessageInner::ULog(ULogMessage::Config(nlas)) = message.inner else {
            panic!("{message:?}");
        };
        assert_eq!(nlas[0], ConfigNla::from(ConfigCmd::Bind));
        assert_eq!(nlas[1], ConfigNla::from(ConfigMode::new_packet(COPY)));
        assert_eq!(nlas.len(), 3);
    }
}
