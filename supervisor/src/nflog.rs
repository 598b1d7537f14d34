//! Packets that the kernel's table refused, as audit events: what the container tried beside names and the proxy.

use crate::audit::{Facts as _, event};
use crate::context::Context;
use crate::readiness::readable;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use terok_kernel::netlink::Socket;
use terok_kernel::nflog::{self, Packet};
use terok_policy::audit::{Event, Kind};
use terok_policy::judge::Reason;

/// One logged packet is its first 128 octets and a few attributes.
const DATAGRAM: usize = 2048;

/// Reads the group's socket until it fails for good.
pub(crate) async fn watch(context: Rc<Context>, socket: OwnedFd) -> std::io::Result<()> {
    let readable = readable(socket.try_clone()?)?;
    let socket = Socket::from(socket);
    let mut buffer = [0; DATAGRAM];
    loop {
        let mut ready = readable.readable().await?;
        let Ok(received) = ready.try_io(|_| socket.receive(&mut buffer).map(<[u8]>::len)) else { continue };
        match received {
            Ok(length) => {
                for packet in nflog::parse(&buffer[..length]) {
                    context.audit.refusal(refusal(&packet));
                }
                // A container with CAP_NET_ADMIN can take our limit off the rule: its flood must not keep the thread.
                tokio::task::yield_now().await;
            }
            // Datagrams of the container's own, without end: others get their turn.
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => tokio::task::yield_now().await,
            // The kernel had more to say than the socket's buffer holds; how much more it does not say.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                context.audit.refusal(event(Kind::Kernel, "refuse", "").with("lost", true));
            }
            Err(error) => return Err(error),
        }
    }
}

fn refusal(packet: &Packet<'_>) -> Event {
    let target = match packet.dport {
        Some(port) => std::net::SocketAddr::new(packet.dst, port).to_string(),
        None => packet.dst.to_string(),
    };
    let reason = match packet.prefix {
        "terok:deny" => Reason::Denied,
        "terok:floor" => Reason::Floor,
        _ => Reason::Unlisted,
    };
    let refusal = event(Kind::Kernel, "refuse", target).reason(reason).with("proto", protocol(packet.proto));
    match packet.uid {
        Some(uid) => refusal.with("uid", uid),
        None => refusal,
    }
}

fn protocol(number: u8) -> String {
    match i32::from(number) {
        libc::IPPROTO_TCP => "tcp".to_owned(),
        libc::IPPROTO_UDP => "udp".to_owned(),
        libc::IPPROTO_ICMP => "icmp".to_owned(),
        libc::IPPROTO_ICMPV6 => "icmpv6".to_owned(),
        libc::IPPROTO_SCTP => "sctp".to_owned(),
        libc::IPPROTO_UDPLITE => "udplite".to_owned(),
        number => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_named_by_destination_protocol_and_reason() {
        let packet = Packet {
            prefix: "terok:floor",
            proto: 17,
            src: "127.0.0.1".parse().unwrap(),
            dst: "fd00::1".parse().unwrap(),
            sport: Some(1),
            dport: Some(4433),
            uid: Some(1000),
        };
        let event = refusal(&packet);
        assert_eq!((event.target.as_str(), event.reason), ("[fd00::1]:4433", Some(Reason::Floor)));
        assert_eq!((&event.detail["proto"], &event.detail["uid"]), (&"udp".into(), &1000.into()));
    }
}
