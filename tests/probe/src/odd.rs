//! The other ways out: socket families and kinds that a packet filter does not see, ICMP, Multipath TCP, Fast Open, io_uring.
#![allow(unsafe_code, reason = "a probe asks the kernel for what the standard library does not offer")]

use crate::{failed, net};
use serde_json::{Value, json};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

pub(crate) fn socket(family: &str, kind: &str, protocol: &str) -> Value {
    let parsed = (family.parse(), kind.parse(), protocol.parse());
    let (Ok(family), Ok(kind), Ok(protocol)) = parsed else {
        return json!({"ok": false, "errno": 0, "error": "bad number"});
    };
    create(family, kind, protocol).map_or_else(|error| failed(&error), |_| json!({"ok": true, "errno": 0}))
}

pub(crate) fn ping(host: &str) -> Value {
    let attempt = || -> io::Result<Value> {
        let target = SocketAddr::new(net::resolve(host)?, 0);
        let (family, protocol, kind) = if target.is_ipv4() {
            (libc::AF_INET, libc::IPPROTO_ICMP, 8)
        } else {
            (libc::AF_INET6, libc::IPPROTO_ICMPV6, 128)
        };
        let socket = create(family, libc::SOCK_DGRAM, protocol)?;
        // The standard library's UDP methods are what a ping socket needs: connect, send, receive with a time-out.
        let socket = std::net::UdpSocket::from(socket);
        socket.connect(target)?;
        let n = net::echo(&socket, &[kind, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4], &mut [0; 64])?;
        Ok(json!({"ok": n > 0, "errno": 0}))
    };
    attempt().unwrap_or_else(|error| failed(&error))
}

pub(crate) fn mptcp(host: &str, port: &str) -> Value {
    let attempt = || -> io::Result<Value> {
        let target = SocketAddr::new(net::resolve(host)?, net::number(port)?);
        let family = if target.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let socket = create(family, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)?;
        let (address, length) = native(target);
        // SAFETY: `address` is a filled sockaddr_storage and `length` the size of what it holds.
        check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
        Ok(json!({"ok": true, "errno": 0}))
    };
    attempt().unwrap_or_else(|error| failed(&error))
}

pub(crate) fn fastopen(host: &str, port: &str, text: &str) -> Value {
    let attempt = || -> io::Result<Value> {
        let target = SocketAddr::new(net::resolve(host)?, net::number(port)?);
        let family = if target.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let socket = create(family, libc::SOCK_STREAM, 0)?;
        let (address, length) = native(target);
        // SAFETY: buffer and address are valid for the lengths given.
        let sent = unsafe {
            libc::sendto(
                socket.as_raw_fd(),
                text.as_ptr().cast(),
                text.len(),
                libc::MSG_FASTOPEN | libc::MSG_NOSIGNAL,
                (&raw const address).cast(),
                length,
            )
        };
        check(i32::try_from(sent).unwrap_or(-1))?;
        Ok(json!({"ok": true, "errno": 0}))
    };
    attempt().unwrap_or_else(|error| failed(&error))
}

pub(crate) fn sendmmsg(host: &str, port: &str, text: &str) -> Value {
    let attempt = || -> io::Result<Value> {
        let target = SocketAddr::new(net::resolve(host)?, net::number(port)?);
        let family = if target.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let socket = create(family, libc::SOCK_DGRAM, 0)?;
        let (mut address, length) = native(target);
        let mut part = libc::iovec { iov_base: text.as_ptr().cast_mut().cast(), iov_len: text.len() };
        // SAFETY: all zeros is a valid mmsghdr.
        let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
        message.msg_hdr.msg_name = (&raw mut address).cast();
        message.msg_hdr.msg_namelen = length;
        message.msg_hdr.msg_iov = &raw mut part;
        message.msg_hdr.msg_iovlen = 1;
        // SAFETY: one message, whose address and buffer outlive the call.
        check(unsafe { libc::sendmmsg(socket.as_raw_fd(), &raw mut message, 1, 0) })?;
        Ok(json!({"ok": true, "errno": 0}))
    };
    attempt().unwrap_or_else(|error| failed(&error))
}

pub(crate) fn marked(mark: &str, host: &str, port: &str) -> Value {
    let attempt = || -> io::Result<Value> {
        let target = SocketAddr::new(net::resolve(host)?, net::number(port)?);
        let family = if target.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let socket = create(family, libc::SOCK_STREAM, 0)?;
        let mark: u32 = mark.parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "bad mark"))?;
        let (value, size) = ((&raw const mark).cast(), size_of::<u32>() as libc::socklen_t);
        // SAFETY: `value` points to four bytes, as `size` says.
        check(unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_MARK, value, size) })?;
        let (address, length) = native(target);
        // SAFETY: `address` is a filled sockaddr_storage and `length` the size of what it holds.
        check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) })?;
        Ok(json!({"ok": true, "errno": 0}))
    };
    attempt().unwrap_or_else(|error| failed(&error))
}

pub(crate) fn raw(address: &str, port: &str, text: &str) -> Value {
    let attempt = || -> io::Result<Value> {
        let target = SocketAddr::new(net::resolve(address)?, 0);
        let family = if target.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let socket = create(family, libc::SOCK_RAW, libc::IPPROTO_UDP)?;
        if target.is_ipv6() {
            let offset: libc::c_int = 6; // IPv6 requires a checksum; the kernel puts it there (RFC 3542 3.1)
            let size = size_of::<libc::c_int>() as libc::socklen_t;
            // SAFETY: `offset` is an int, as `size` says.
            check(unsafe {
                libc::setsockopt(
                    socket.as_raw_fd(),
                    libc::IPPROTO_IPV6,
                    libc::IPV6_CHECKSUM,
                    (&raw const offset).cast(),
                    size,
                )
            })?;
        }
        let datagram = datagram(net::number(port)?, text);
        let (address, length) = native(target);
        // SAFETY: buffer and address are valid for the lengths given.
        let sent = unsafe {
            let (data, size) = (datagram.as_ptr().cast(), datagram.len());
            libc::sendto(socket.as_raw_fd(), data, size, 0, (&raw const address).cast(), length)
        };
        check(i32::try_from(sent).unwrap_or(-1))?;
        Ok(json!({"ok": true, "errno": 0}))
    };
    attempt().unwrap_or_else(|error| failed(&error))
}

/// A UDP datagram without a checksum, which IPv4 allows.
fn datagram(port: u16, text: &str) -> Vec<u8> {
    let length = (8 + text.len()) as u16;
    let source = 40_000_u16.to_be_bytes();
    [&source[..], &port.to_be_bytes(), &length.to_be_bytes(), &[0, 0], text.as_bytes()].concat()
}

pub(crate) fn frame(card: &str, mac: &str, source: &str, address: &str, port: &str, text: &str) -> Value {
    let attempt = || -> io::Result<Value> {
        let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("bad {what}"));
        let v4 = |text: &str| text.parse::<std::net::Ipv4Addr>().map_err(|_| bad("address"));
        let mac: Vec<u8> = mac
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16).map_err(|_| bad("mac")))
            .collect::<Result<_, _>>()?;
        let datagram = datagram(net::number(port)?, text);
        let mut packet = vec![0x45, 0];
        packet.extend(((20 + datagram.len()) as u16).to_be_bytes());
        packet.extend([0, 0, 0, 0, 64, 17, 0, 0]);
        packet.extend(v4(source)?.octets());
        packet.extend(v4(address)?.octets());
        let sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        let folded = !(((sum & 0xffff) + (sum >> 16)) as u16);
        packet[10..12].copy_from_slice(&folded.to_be_bytes());
        packet.extend(datagram);

        let protocol = (libc::ETH_P_IP as u16).to_be();
        let socket = create(libc::AF_PACKET, libc::SOCK_DGRAM, i32::from(protocol))?;
        let name = std::ffi::CString::new(card).map_err(|_| bad("card"))?;
        // SAFETY: all zeros is a valid sockaddr_ll.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_protocol = protocol;
        // SAFETY: a string that ends with zero.
        to.sll_ifindex = i32::try_from(unsafe { libc::if_nametoindex(name.as_ptr()) }).unwrap_or(0);
        to.sll_halen = 6;
        to.sll_addr[..6].copy_from_slice(mac.get(..6).ok_or_else(|| bad("mac"))?);
        // SAFETY: buffer and address are valid for the lengths given.
        let sent = unsafe {
            let (data, size) = (packet.as_ptr().cast(), packet.len());
            let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            libc::sendto(socket.as_raw_fd(), data, size, 0, (&raw const to).cast(), length)
        };
        check(i32::try_from(sent).unwrap_or(-1))?;
        Ok(json!({"ok": true, "errno": 0}))
    };
    attempt().unwrap_or_else(|error| failed(&error))
}

pub(crate) fn settle() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cards = read("/proc/net/dev")
        .lines()
        .filter_map(|line| line.split_once(':'))
        .any(|(name, _)| name.trim() != "lo");
    // proc(5): flag 0x40 is an address whose duplicates are still looked for; a route of length 0 by a card is a default one.
    let tentative = || {
        let flags = |line: &str| u32::from_str_radix(line.split_whitespace().nth(4)?, 16).ok();
        read("/proc/net/if_inet6").lines().filter_map(flags).any(|flags| flags & 0x40 != 0)
    };
    let leads_out = || {
        read("/proc/net/ipv6_route").lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.get(1) == Some(&"00") && words.last() != Some(&"lo")
        })
    };
    for _ in 0..3000 {
        if !cards || (leads_out() && !tentative()) {
            return json!({"ok": true, "errno": 0});
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    json!({"ok": false, "errno": 0, "addresses": read("/proc/net/if_inet6"), "routes": read("/proc/net/ipv6_route")})
}

pub(crate) fn io_uring() -> Value {
    let mut parameters = [0_u8; 120]; // struct io_uring_params
    // SAFETY: the parameters are as long as the kernel's structure and zeroed.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, parameters.as_mut_ptr()) };
    match check(i32::try_from(fd).unwrap_or(-1)) {
        Ok(fd) => {
            // SAFETY: the kernel just gave us this descriptor.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
            json!({"ok": true, "errno": 0})
        }
        Err(error) => failed(&error),
    }
}

fn create(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; a returned descriptor is ours.
    let fd = check(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: see above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn native(target: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: all zeros is a valid sockaddr_storage.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let port = target.port().to_be();
    let length = match target.ip() {
        IpAddr::V4(ip) => {
            let address = libc::sockaddr_in {
                sin_family: libc::AF_INET as u16,
                sin_port: port,
                sin_addr: libc::in_addr { s_addr: u32::from(ip).to_be() },
                sin_zero: [0; 8],
            };
            // SAFETY: sockaddr_storage is large enough and aligned for every address.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(address) };
            size_of::<libc::sockaddr_in>()
        }
        IpAddr::V6(ip) => {
            let address = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as u16,
                sin6_port: port,
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: ip.octets() },
                sin6_scope_id: 0,
            };
            // SAFETY: as above.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in6>().write(address) };
            size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, length as libc::socklen_t)
}
