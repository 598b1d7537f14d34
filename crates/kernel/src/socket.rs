//! Sockets of the calling thread's network namespace: loopback listeners that share a port between IPv4 and IPv6,
//! where a redirected connection wanted to go, who speaks on a unix socket, and refusing by reset.

use crate::error::{Error, Result};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, getsockname, getsockopt, listen,
    setsockopt, socket, sockopt,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

/// The same port on both families: of 127.0.0.1 and ::1 unless said otherwise.
#[derive(Debug)]
pub struct Loopback<T> {
    /// Port of both.
    pub port: u16,
    /// IPv4.
    pub v4: T,
    /// IPv6, where there is any.
    pub v6: Option<T>,
}

/// TCP listeners on a port of the kernel's choice, non-blocking, close-on-exec.
pub fn tcp_loopback(ipv6: bool) -> Result<Loopback<TcpListener>> {
    pair(SockType::Stream, (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST), ipv6)
}

/// UDP sockets on a port of the kernel's choice, non-blocking, close-on-exec.
pub fn udp_loopback(ipv6: bool) -> Result<Loopback<UdpSocket>> {
    pair(SockType::Datagram, (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST), ipv6)
}

/// UDP sockets of no address in particular, for questions to others, on a port of the kernel's choice; non-blocking,
/// close-on-exec.
pub fn udp_asking(ipv6: bool) -> Result<Loopback<UdpSocket>> {
    pair(SockType::Datagram, (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED), ipv6)
}

/// An unconnected TCP socket, non-blocking, close-on-exec; where there is IPv6, one for both families.
pub fn tcp_unconnected(ipv6: bool) -> Result<OwnedFd> {
    let family = if ipv6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)
        .map_err(Error::call("socket", "tcp"))?;
    if ipv6 {
        setsockopt(&fd, sockopt::Ipv6V6Only, &false).map_err(Error::call("setsockopt IPV6_V6ONLY", "tcp"))?;
    }
    Ok(fd)
}

fn pair<T: From<OwnedFd>>(kind: SockType, (v4, v6): (Ipv4Addr, Ipv6Addr), ipv6: bool) -> Result<Loopback<T>> {
    // The port the kernel chooses on one family may be taken on the other.
    for _ in 0..16 {
        let (socket, port) = bound(kind, SocketAddr::new(v4.into(), 0))?;
        if !ipv6 {
            return Ok(Loopback { port, v4: socket.into(), v6: None });
        }
        match bound(kind, SocketAddr::new(v6.into(), port)) {
            Ok((other, _)) => return Ok(Loopback { port, v4: socket.into(), v6: Some(other.into()) }),
            Err(error) if error.errno() == Some(Errno::EADDRINUSE) => continue,
            Err(error) => return Err(error),
        }
    }
    Err(Error::call("bind", "one port of both families")(Errno::EADDRINUSE))
}

fn bound(kind: SockType, address: SocketAddr) -> Result<(OwnedFd, u16)> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)
        .map_err(Error::call("socket", address))?;
    if address.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)
            .map_err(Error::call("setsockopt IPV6_V6ONLY", address))?;
    }
    use std::os::fd::AsRawFd;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(address)).map_err(Error::call("bind", address))?;
    if kind == SockType::Stream {
        // Clients wait here while a worker is restarted.
        listen(&fd, Backlog::MAXCONN).map_err(Error::call("listen", address))?;
    }
    let name: SockaddrStorage = getsockname(fd.as_raw_fd()).map_err(Error::call("getsockname", address))?;
    let port = match (name.as_sockaddr_in(), name.as_sockaddr_in6()) {
        (Some(v4), _) => v4.port(),
        (_, Some(v6)) => v6.port(),
        _ => return Err(Error::call("getsockname", address)(Errno::EAFNOSUPPORT)),
    };
    Ok((fd, port))
}

/// Where a redirected connection wanted to go (SO_ORIGINAL_DST, IP6T_SO_ORIGINAL_DST), by the family of the socket.
/// ENOENT: the connection was not redirected.
pub fn original_dst(connection: impl AsFd, ipv6: bool) -> Result<SocketAddr> {
    if ipv6 {
        let to = getsockopt(&connection, sockopt::Ip6tOriginalDst)
            .map_err(Error::call("getsockopt", "IP6T_SO_ORIGINAL_DST"))?;
        let ip = Ipv6Addr::from(to.sin6_addr.s6_addr);
        Ok(SocketAddrV6::new(ip, u16::from_be(to.sin6_port), 0, to.sin6_scope_id).into())
    } else {
        let to = getsockopt(&connection, sockopt::OriginalDst)
            .map_err(Error::call("getsockopt", "SO_ORIGINAL_DST"))?;
        let ip = Ipv4Addr::from(u32::from_be(to.sin_addr.s_addr));
        Ok(SocketAddrV4::new(ip, u16::from_be(to.sin_port)).into())
    }
}

/// Closing `connection` from now on sends a reset and forgets what was queued.
pub fn reset_on_close(connection: impl AsFd) -> Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(&connection, sockopt::Linger, &linger).map_err(Error::call("setsockopt", "SO_LINGER"))
}

/// Gives a connection up when its other end has been silent and unreachable for about two minutes.
pub fn keep_alive(connection: impl AsFd) -> Result<()> {
    setsockopt(&connection, sockopt::KeepAlive, &true).map_err(Error::call("setsockopt", "SO_KEEPALIVE"))?;
    setsockopt(&connection, sockopt::TcpKeepIdle, &60).map_err(Error::call("setsockopt", "TCP_KEEPIDLE"))?;
    setsockopt(&connection, sockopt::TcpKeepInterval, &15)
        .map_err(Error::call("setsockopt", "TCP_KEEPINTVL"))?;
    setsockopt(&connection, sockopt::TcpKeepCount, &4).map_err(Error::call("setsockopt", "TCP_KEEPCNT"))
}

/// Ends this side's half of a connection: the other end reads an end of stream, and may go on sending.
pub fn finish_sending(connection: impl AsFd) -> Result<()> {
    nix::sys::socket::shutdown(connection.as_fd().as_raw_fd(), nix::sys::socket::Shutdown::Write)
        .map_err(Error::call("shutdown", ""))
}

/// Makes a TCP socket that was connected, or failed to be, one that can be connected again: what is left of the connection
/// is reset, and what was not sent is forgotten. One that had an IPv4 peer through a v4-mapped address can have no IPv6 one.
pub fn refresh(socket: impl AsFd) -> Result<()> {
    setsockopt(&socket, sockopt::Linger, &libc::linger { l_onoff: 0, l_linger: 0 })
        .map_err(Error::call("setsockopt", "SO_LINGER"))?;
    let nobody = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    // SAFETY: the kernel reads `nobody`, of the length given, and keeps nothing of it.
    #[allow(unsafe_code, reason = "nix has no address of family AF_UNSPEC")]
    let parted = unsafe {
        let length = size_of::<libc::sockaddr>() as libc::socklen_t;
        libc::connect(socket.as_fd().as_raw_fd(), &raw const nobody, length)
    };
    Errno::result(parted).map(drop).map_err(Error::call("connect", "AF_UNSPEC"))
}

/// Whether nothing is left of a TCP connection: both ends have ended it, and all that was sent has arrived.
pub fn has_ended(connection: impl AsFd) -> Result<bool> {
    // include/net/tcp_states.h; the state is the first octet of struct tcp_info.
    const TCP_CLOSE: u8 = 7;
    let mut state = 0u8;
    let mut length = size_of::<u8>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` octets to `state`, which lives until the call has returned.
    #[allow(unsafe_code, reason = "nix has no wrapper for TCP_INFO")]
    let got = unsafe {
        libc::getsockopt(
            connection.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut state).cast(),
            &mut length,
        )
    };
    Errno::result(got).map(|_| state == TCP_CLOSE).map_err(Error::call("getsockopt", "TCP_INFO"))
}

/// The process at the other end of a connected unix socket, as it was when it connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Process number; 0 when it lives in a pid namespace that cannot be seen from here.
    pub pid: i32,
    /// Effective uid, as this user namespace sees it.
    pub uid: u32,
}

/// Who connected.
pub fn peer(connection: impl AsFd) -> Result<Peer> {
    let credentials = getsockopt(&connection, sockopt::PeerCredentials)
        .map_err(Error::call("getsockopt", "SO_PEERCRED"))?;
    Ok(Peer { pid: credentials.pid(), uid: credentials.uid() })
}

/// The network namespace `socket` belongs to, as a number that no other one ever has (SO_NETNS_COOKIE, Linux 5.14). An
/// accepted unix socket belongs to the one of the process that connected.
pub fn namespace_cookie(socket: impl AsFd) -> Result<u64> {
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` octets to `cookie`, which lives until the call has returned.
    #[allow(unsafe_code, reason = "nix has no wrapper for SO_NETNS_COOKIE")]
    let got = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &mut length,
        )
    };
    Errno::result(got).map(|_| cookie).map_err(Error::call("getsockopt", "SO_NETNS_COOKIE"))
}

/// A connected pair of unix sockets that keeps message boundaries, close-on-exec.
pub fn message_pair() -> Result<(OwnedFd, OwnedFd)> {
    nix::sys::socket::socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .map_err(Error::call("socketpair", ""))
}

/// Whether `ip` is one of the two loopback addresses the listeners use.
pub fn is_listener_address(ip: IpAddr) -> bool {
    ip == IpAddr::V4(Ipv4Addr::LOCALHOST) || ip == IpAddr::V6(Ipv6Addr::LOCALHOST)
}

/// Makes the kernel choose source ports from `first` on in the namespace of the calling thread, and choose one again a second
/// after its connection was closed here (RFC 6191), not a minute: there are fewer of them than usual.
pub fn own_ports(first: u16) -> std::io::Result<()> {
    std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", format!("{first} {}", u16::MAX))?;
    std::fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{ErrorKind, Read};
    use std::net::TcpStream;

    #[test]
    fn a_listener_pair_answers_on_one_port_of_both_families() {
        let tcp = tcp_loopback(true).unwrap();
        TcpStream::connect(("127.0.0.1", tcp.port)).unwrap();
        TcpStream::connect(("::1", tcp.port)).unwrap();
        let udp = udp_loopback(true).unwrap();
        let client = UdpSocket::bind("[::1]:0").unwrap();
        client.send_to(b"q", ("::1", udp.port)).unwrap();
        assert_eq!(udp.v4.local_addr().unwrap().port(), udp.v6.unwrap().local_addr().unwrap().port());
        assert!(udp_loopback(false).unwrap().v6.is_none());
    }

    #[test]
    fn sockets_for_questions_have_one_port_on_both_families_and_share_it_with_nobody() {
        let asking = udp_asking(true).unwrap();
        assert_eq!(
            asking.v4.local_addr().unwrap(),
            SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), asking.port)
        );
        assert_eq!(asking.v6.unwrap().local_addr().unwrap().port(), asking.port);
        assert_eq!(UdpSocket::bind(("127.0.0.1", asking.port)).unwrap_err().kind(), ErrorKind::AddrInUse);
    }

    #[test]
    fn an_unconnected_socket_reaches_both_families() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::from(tcp_unconnected(true).unwrap());
        let to = SocketAddr::new(
            Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(),
            listener.local_addr().unwrap().port(),
        );
        let started = nix::sys::socket::connect(stream.as_raw_fd(), &SockaddrStorage::from(to));
        assert!(matches!(started, Ok(()) | Err(Errno::EINPROGRESS)), "{started:?}");
        assert!(listener.accept().unwrap().1.ip().is_loopback());
        tcp_unconnected(false).unwrap();
    }

    #[test]
    fn a_connection_that_was_not_redirected_has_no_original_destination() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (served, _) = listener.accept().unwrap();
        // Without connection tracking the kernel knows no such option at all.
        let errno = original_dst(&served, false).unwrap_err().errno();
        assert!(matches!(errno, Some(Errno::ENOENT | Errno::ENOPROTOOPT)), "{errno:?}");
    }

    #[test]
    fn a_refused_connection_sees_a_reset() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (served, _) = listener.accept().unwrap();
        reset_on_close(&served).unwrap();
        drop(served);
        assert_eq!(client.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_refreshed_socket_connects_again_and_its_old_peer_is_reset() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let client = TcpStream::connect(address).unwrap();
        let (mut first, _) = listener.accept().unwrap();
        reset_on_close(&client).unwrap();
        refresh(&client).unwrap();
        assert_eq!(first.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        nix::sys::socket::connect(client.as_raw_fd(), &SockaddrStorage::from(address)).unwrap();
        let (mut second, _) = listener.accept().unwrap();
        drop(client);
        assert_eq!(
            second.read(&mut [0]).unwrap(),
            0,
            "an orderly end: the earlier reset on close is forgotten"
        );
    }

    #[test]
    fn a_connection_has_ended_when_both_ends_have_said_so_and_all_has_arrived() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (served, _) = listener.accept().unwrap();
        assert!(!has_ended(&client).unwrap());
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(!has_ended(&client).unwrap());
        drop(served);
        let start = std::time::Instant::now();
        while !has_ended(&client).unwrap() {
            assert!(start.elapsed().as_secs() < 60);
        }
    }

    #[test]
    fn the_peer_of_a_unix_socket_is_known() {
        let (a, _b) = message_pair().unwrap();
        assert_eq!(
            peer(&a).unwrap(),
            Peer { pid: std::process::id() as i32, uid: nix::unistd::geteuid().as_raw() }
        );
    }
}
