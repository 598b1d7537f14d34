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
        socket.set_read_timeout(Some(std::time::Duration::from_millis(200)))?;
        socket.send(&[kind, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3, 4])?;
        let n = socket.recv(&mut [0; 64])?;
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
