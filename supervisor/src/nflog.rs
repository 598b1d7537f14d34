//! Packets that the kernel's table logs, as audit events: what it refused, and what it let out by a card. A packet to an
//! address of ours, or to one that an answer of ours gave out, is called by its name.

use crate::audit::{Facts as _, event};
use crate::context::Context;
use crate::readiness::readable;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use terok_kernel::netlink::Socket;
use terok_kernel::nflog::{self, Packet};
use terok_policy::audit::{Event, Kind};
use terok_policy::judge::Reason;
use terok_policy::rule::Proto;
use terok_policy::{Name, Query, Verdict, virt};

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
                    context.audit.note(logged(&*context, &packet));
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

/// What is known of addresses.
trait Book {
    /// The name behind a virtual address.
    fn virtual_name(&self, index: u32) -> Option<Name>;
    /// The name that an answer last gave this address out for.
    fn answered(&self, address: IpAddr) -> Option<Name>;
    /// The verdict on a packet.
    fn judge(&self, query: &Query<'_>) -> Verdict;
}

impl Book for Context {
    fn virtual_name(&self, index: u32) -> Option<Name> {
        self.names.name(index)
    }
    fn answered(&self, address: IpAddr) -> Option<Name> {
        self.names.answered(address)
    }
    fn judge(&self, query: &Query<'_>) -> Verdict {
        Context::judge(self, query)
    }
}

fn logged(book: &impl Book, packet: &Packet<'_>) -> Event {
    let event = match packet.prefix {
        "terok:allow" => sent(book, packet, "allow"),
        "terok:in" => incoming(packet),
        prefix => match virt::index(packet.dst) {
            Some(index) => to_virtual(book, packet, index),
            None => sent(book, packet, "refuse").reason(match prefix {
                "terok:deny" => Reason::Denied,
                "terok:floor" => Reason::Floor,
                // A question that did not come to our own server.
                "terok:dns" => Reason::BadDns,
                _ => Reason::Unlisted,
            }),
        },
    };
    let event = event.with("proto", protocol(packet.proto));
    match packet.uid {
        Some(uid) => event.with("uid", uid),
        None => event,
    }
}

/// A packet to a real address.
fn sent(book: &impl Book, packet: &Packet<'_>, action: &str) -> Event {
    match book.answered(packet.dst) {
        Some(name) => event(Kind::Kernel, action, on_port(name.as_str(), packet.dport))
            .with("address", packet.dst.to_string()),
        None => event(Kind::Kernel, action, at(packet.dst, packet.dport)),
    }
}

/// A packet from outside: whoever sent it is the one concerned, and the port it was for a fact.
fn incoming(packet: &Packet<'_>) -> Event {
    let refusal = event(Kind::Kernel, "refuse", packet.src.to_string()).reason(Reason::Unlisted);
    let refusal = refusal.with("direction", "in");
    match packet.dport {
        Some(port) => refusal.with("port", port),
        None => refusal,
    }
}

/// A packet to a virtual address that is not carried: all but TCP on a listed port ends here.
fn to_virtual(book: &impl Book, packet: &Packet<'_>, index: u32) -> Event {
    let proto = match i32::from(packet.proto) {
        libc::IPPROTO_TCP => Some(Proto::Tcp),
        libc::IPPROTO_UDP => Some(Proto::Udp),
        _ => None,
    };
    let name = if index == virt::HOST { None } else { book.virtual_name(index) };
    let query = match (&name, packet.dport, proto) {
        (Some(name), Some(port), Some(proto)) => Some(Query::Name { name, port, proto }),
        (None, Some(port), Some(proto)) if index == virt::HOST => Some(Query::Host { port, proto }),
        _ => None,
    };
    let target = match &name {
        Some(name) => on_port(name.as_str(), packet.dport),
        None if index == virt::HOST => on_port("host", packet.dport),
        None => at(packet.dst, packet.dport),
    };
    let refusal = event(Kind::Kernel, "refuse", target);
    match query.map(|query| book.judge(&query)) {
        Some(verdict @ Verdict::Refuse { .. }) => refusal.verdict(&verdict),
        // Allowed, but not over this transport: only TCP has a way from a virtual address.
        Some(_) => refusal.reason(Reason::PortUnlisted),
        None => refusal.reason(Reason::Unlisted),
    }
}

fn on_port(name: &str, port: Option<u16>) -> String {
    match port {
        Some(port) => format!("{name}:{port}"),
        None => name.to_owned(),
    }
}

fn at(ip: IpAddr, port: Option<u16>) -> String {
    match port {
        Some(port) => SocketAddr::new(ip, port).to_string(),
        None => ip.to_string(),
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

    /// `api.example.com` has index 300 and may be reached on TCP 443; `peer.example` was answered with 192.0.2.1.
    struct Known;

    impl Book for Known {
        fn virtual_name(&self, index: u32) -> Option<Name> {
            (index == 300).then(|| "api.example.com".parse().unwrap())
        }
        fn answered(&self, address: IpAddr) -> Option<Name> {
            (address == IpAddr::from([192, 0, 2, 1])).then(|| "peer.example".parse().unwrap())
        }
        fn judge(&self, query: &Query<'_>) -> Verdict {
            match query {
                Query::Name { port: 443, proto: Proto::Tcp, .. } => Verdict::Down,
                Query::Name { .. } => Verdict::Refuse { reason: Reason::PortUnlisted, rule: None },
                _ => Verdict::Refuse { reason: Reason::Unlisted, rule: None },
            }
        }
    }

    fn packet(prefix: &'static str, dst: IpAddr, proto: u8, dport: Option<u16>) -> Packet<'static> {
        Packet {
            prefix,
            proto,
            src: "10.88.0.5".parse().unwrap(),
            dst,
            sport: dport.map(|_| 40_000),
            dport,
            uid: None,
        }
    }

    /// Action, target and reason.
    fn of(
        prefix: &'static str,
        dst: &str,
        proto: u8,
        dport: Option<u16>,
    ) -> (String, String, Option<Reason>) {
        let event = logged(&Known, &packet(prefix, dst.parse().unwrap(), proto, dport));
        (event.action, event.target, event.reason)
    }

    fn refuse(target: &str, reason: Reason) -> (String, String, Option<Reason>) {
        ("refuse".into(), target.into(), Some(reason))
    }

    #[test]
    fn a_packet_is_named_by_destination_protocol_and_reason() {
        let mut packet = packet("terok:floor", "fd00::1".parse().unwrap(), 17, Some(4433));
        packet.uid = Some(1000);
        let event = logged(&Known, &packet);
        assert_eq!((event.target.as_str(), event.reason), ("[fd00::1]:4433", Some(Reason::Floor)));
        assert_eq!((&event.detail["proto"], &event.detail["uid"]), (&"udp".into(), &1000.into()));
        assert_eq!(of("terok:dns", "192.0.2.9", 17, Some(53)), refuse("192.0.2.9:53", Reason::BadDns));
        assert_eq!(of("terok:default", "192.0.2.9", 1, None), refuse("192.0.2.9", Reason::Unlisted));
    }

    #[test]
    fn a_packet_to_a_virtual_address_is_named_and_judged_as_its_name_is() {
        let (v4, v6) = virt::addresses(300);
        for address in [v4.to_string(), v6.to_string()] {
            let reason = Reason::PortUnlisted;
            assert_eq!(of("terok:floor", &address, 17, Some(443)), refuse("api.example.com:443", reason));
            assert_eq!(of("terok:floor", &address, 6, Some(443)), refuse("api.example.com:443", reason));
            assert_eq!(of("terok:floor", &address, 1, None), refuse("api.example.com", Reason::Unlisted));
        }
        let host = virt::addresses(virt::HOST).0.to_string();
        assert_eq!(of("terok:floor", &host, 17, Some(80)), refuse("host:80", Reason::Unlisted));
        let nobody = virt::addresses(999).0.to_string();
        assert_eq!(
            of("terok:floor", &nobody, 17, Some(80)),
            refuse(&format!("{nobody}:80"), Reason::Unlisted)
        );
    }

    #[test]
    fn an_address_that_was_answered_carries_its_name() {
        let event = logged(&Known, &packet("terok:allow", "192.0.2.1".parse().unwrap(), 17, Some(4433)));
        assert_eq!((event.action.as_str(), event.target.as_str()), ("allow", "peer.example:4433"));
        assert_eq!((event.reason, &event.detail["address"]), (None, &"192.0.2.1".into()));
        assert_eq!(of("terok:allow", "192.0.2.2", 6, Some(5)), ("allow".into(), "192.0.2.2:5".into(), None));
        assert_eq!(of("terok:deny", "192.0.2.1", 6, Some(5)), refuse("peer.example:5", Reason::Denied));
    }

    #[test]
    fn a_packet_from_outside_is_named_by_who_sent_it() {
        let event = logged(&Known, &packet("terok:in", "10.88.0.2".parse().unwrap(), 6, Some(22)));
        assert_eq!((event.action.as_str(), event.target.as_str()), ("refuse", "10.88.0.5"));
        assert_eq!((&event.detail["direction"], &event.detail["port"]), (&"in".into(), &22.into()));
    }
}
