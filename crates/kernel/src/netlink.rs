//! Netlink: sockets, messages and attributes, as nf_tables, rtnetlink and NFLOG need them. Every answer is read without
//! waiting: the kernel works on a request inside `sendmsg`, so what has not come by then will not come.
//! Layout: `linux/netlink.h`, in host byte order.

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname, getsockopt,
    recvmsg, send, setsockopt, socket, sockopt,
};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// `struct nlmsghdr`
const HEADER: usize = 16;
/// The kernel's dumps come in pieces of at most 32 KiB.
const RECEIVE: usize = 1 << 16;
/// `NLMSGERR_ATTR_MSG`
const NLMSGERR_ATTR_MSG: u16 = 1;
/// Datagrams of processes dropped in a row, and stale ones before a request: more than a socket's buffer holds, so that
/// only somebody who sends faster than we drop gets so far.
const DROPPED: usize = 1024;
/// Flags and kind share an attribute's second word.
const NLA_TYPE_MASK: u16 = 0x3fff;
const NLA_F_NESTED: u16 = 0x8000;

/// A non-blocking netlink socket of the network namespace that the opening thread was in.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    /// News came in between the answers to a request.
    heard: AtomicBool,
}

/// Tells that something changed in the network namespace that the opening thread was in; never what, because the kernel drops
/// what comes too fast. Readable when there is news.
#[derive(Debug)]
pub struct News(Socket);

/// A message received.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// `nlmsg_type`
    pub kind: u16,
    /// `nlmsg_flags`
    pub flags: u16,
    /// `nlmsg_seq`
    pub seq: u32,
    /// `nlmsg_pid`
    pub pid: u32,
    /// What follows the header.
    pub body: &'a [u8],
}

/// An attribute: its kind without flags, and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// `nla_type`
    pub kind: u16,
    /// The value without padding.
    pub value: &'a [u8],
}

/// An error the kernel answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Sequence number of the message refused.
    pub seq: u32,
    /// Why.
    pub errno: Errno,
    /// The kernel's own words, where it has any.
    pub text: Option<String>,
}

/// Why an exchange with the kernel failed.
#[derive(Debug)]
pub enum Failure {
    /// The socket did.
    Io(io::Error),
    /// The kernel refused a message.
    Refused(Refusal),
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

impl Socket {
    /// Opens a socket of `protocol`.
    pub fn open(protocol: SockProtocol) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        // Short acknowledgements with the kernel's own words; both exist since Linux 4.12.
        set_option(&fd, libc::NETLINK_CAP_ACK, 1)?;
        set_option(&fd, libc::NETLINK_EXT_ACK, 1)?;
        Ok(fd.into())
    }

    /// Opens a socket that hears the multicast `groups` (bit n-1 for group n) beside the answers to its requests.
    pub fn open_to(protocol: SockProtocol, groups: u32) -> io::Result<Self> {
        let socket = Self::open(protocol)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(socket)
    }

    /// Forgets all that was received, and says whether there was anything since it was last asked: also in the course of a
    /// request, and also what the kernel had to drop. Ask again after acting on it, until there is nothing.
    pub fn heard(&self) -> io::Result<bool> {
        // What is longer than the buffer is news as well, and so is a flood of what processes send.
        match self.drop_stale(&mut [0; HEADER]) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(true),
            drained => drained.map(|()| self.heard.swap(false, Ordering::Relaxed)),
        }
    }

    /// Sends one datagram to the kernel.
    pub fn send(&self, datagram: &[u8]) -> io::Result<()> {
        send(self.fd.as_raw_fd(), datagram, MsgFlags::MSG_NOSIGNAL)?;
        Ok(())
    }

    /// Receives one datagram of the kernel's; `WouldBlock` when there is none. Datagrams of processes are dropped: who has
    /// `CAP_NET_ADMIN` in the namespace could forge answers. `Interrupted` when there is no end of those: try again later.
    pub fn receive<'b>(&self, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
        self.receive_of(buffer, DROPPED)
    }

    fn receive_of<'b>(&self, buffer: &'b mut [u8], most: usize) -> io::Result<&'b [u8]> {
        let mut dropped = 0;
        let length = loop {
            if dropped > most {
                let what = "a process in the container's network floods the netlink socket";
                return Err(io::Error::new(io::ErrorKind::Interrupted, what));
            }
            let mut parts = [IoSliceMut::new(buffer)];
            let got = recvmsg::<NetlinkAddr>(self.fd.as_raw_fd(), &mut parts, None, MsgFlags::MSG_DONTWAIT)?;
            if got.address.is_none_or(|from| from.pid() != 0) {
                dropped += 1;
                continue;
            }
            if got.flags.contains(MsgFlags::MSG_TRUNC) {
                return Err(Errno::EMSGSIZE.into());
            }
            break got.bytes;
        };
        Ok(&buffer[..length])
    }

    /// Sends requests in one datagram and reads all answers. Fails with the first refusal, and when `last`, the sequence
    /// number of a request with `NLM_F_ACK`, is not acknowledged. Other answers go to `each`.
    pub fn request(
        &self,
        datagram: &[u8],
        last: u32,
        mut each: impl FnMut(Message<'_>),
    ) -> Result<(), Failure> {
        let mut buffer = vec![0; RECEIVE];
        self.drop_stale(&mut buffer)?;
        self.send(datagram)?;
        let own = self.own()?;
        let (mut acknowledged, mut refused) = (false, None);
        loop {
            let datagram = match self.receive_answer(&mut buffer, own) {
                Ok(datagram) => datagram,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(e.into()),
            };
            for message in messages(datagram) {
                match (i32::from(message.kind), refusal(&message)) {
                    (libc::NLMSG_ERROR, None) => acknowledged |= message.seq == last,
                    (_, Some(refusal)) => refused = refused.or(Some(refusal)),
                    _ => each(message),
                }
            }
        }
        match refused {
            Some(refusal) => Err(Failure::Refused(refusal)),
            None if acknowledged => Ok(()),
            None => Err(io::Error::other("the kernel did not acknowledge").into()),
        }
    }

    /// Sends one request with `NLM_F_DUMP` and gives every answer to `each`. `Interrupted` when the kernel's tables changed
    /// meanwhile.
    pub fn dump(&self, request: &[u8], mut each: impl FnMut(Message<'_>)) -> Result<(), Failure> {
        let mut buffer = vec![0; RECEIVE];
        self.drop_stale(&mut buffer)?;
        self.send(request)?;
        let own = self.own()?;
        let (mut interrupted, mut lost) = (false, 0);
        loop {
            let datagram = match self.receive_answer(&mut buffer, own) {
                Ok(datagram) => datagram,
                // News too fast for us; a dump waits until there is room.
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) && lost < DROPPED => {
                    self.heard.store(true, Ordering::Relaxed);
                    lost += 1;
                    continue;
                }
                Err(e) => return Err(e.into()),
            };
            for message in messages(datagram) {
                interrupted |= message.flags & libc::NLM_F_DUMP_INTR as u16 != 0;
                if let Some(refusal) = refusal(&message) {
                    return Err(Failure::Refused(refusal));
                }
                match i32::from(message.kind) {
                    libc::NLMSG_DONE if interrupted => {
                        return Err(io::Error::from(io::ErrorKind::Interrupted).into());
                    }
                    libc::NLMSG_DONE => return Ok(()),
                    _ => each(message),
                }
            }
        }
    }

    /// Asks for a send buffer of `bytes`; the kernel gives at most `net.core.wmem_max`, and doubles it.
    pub fn set_send_buffer(&self, bytes: usize) -> io::Result<()> {
        Ok(setsockopt(&self.fd, sockopt::SndBuf, &bytes)?)
    }

    /// The longest datagram that can be sent.
    pub fn longest(&self) -> io::Result<usize> {
        // net/netlink/af_netlink.c: `len > sk->sk_sndbuf - 32` is EMSGSIZE.
        Ok(getsockopt(&self.fd, sockopt::SndBuf)?.saturating_sub(32))
    }

    /// Our address, which the kernel repeats in answers; in news it puts another one or none.
    fn own(&self) -> io::Result<u32> {
        Ok(getsockname::<NetlinkAddr>(self.as_raw_fd())?.pid())
    }

    /// The next datagram that is an answer to us; what else comes is news. `Interrupted` when there is no end of that.
    fn receive_answer<'b>(&self, buffer: &'b mut [u8], own: u32) -> io::Result<&'b [u8]> {
        for _ in 0..DROPPED {
            let length = self.receive(buffer)?.len();
            if messages(&buffer[..length]).any(|message| message.pid == own) {
                return Ok(&buffer[..length]);
            }
            self.heard.store(true, Ordering::Relaxed);
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "news of the container's network has no end"))
    }

    fn drop_stale(&self, buffer: &mut [u8]) -> io::Result<()> {
        for _ in 0..DROPPED {
            match self.receive(buffer) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // Too long, or lost: stale all the same.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EMSGSIZE | libc::ENOBUFS)) => {}
                Err(e) => return Err(e),
            }
            self.heard.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl From<OwnedFd> for Socket {
    /// Takes a descriptor that [`Socket::open`] made, in this process or another.
    fn from(fd: OwnedFd) -> Self {
        Self { fd, heard: AtomicBool::new(false) }
    }
}

impl From<Socket> for OwnedFd {
    fn from(socket: Socket) -> Self {
        socket.fd
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl News {
    /// Opens a socket that hears the multicast `groups` (bit n-1 for group n).
    pub fn open(protocol: SockProtocol, groups: u32) -> io::Result<Self> {
        Socket::open_to(protocol, groups).map(Self)
    }

    /// Whether there was anything since it was last asked. Ask again after acting on it, until there is nothing.
    pub fn drain(&self) -> io::Result<bool> {
        self.0.heard()
    }
}

impl From<OwnedFd> for News {
    /// Takes a descriptor that [`News::open`] made, in this process or another.
    fn from(fd: OwnedFd) -> Self {
        Self(fd.into())
    }
}

impl From<News> for OwnedFd {
    fn from(news: News) -> Self {
        news.0.into()
    }
}

impl AsFd for News {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for News {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Builds messages and their attributes.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// Appends a message.
    pub fn message(&mut self, kind: u16, flags: i32, seq: u32, body: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend([0; 4]);
        self.0.extend(kind.to_ne_bytes());
        self.0.extend((flags as u16).to_ne_bytes());
        self.0.extend(seq.to_ne_bytes());
        self.0.extend([0; 4]);
        body(self);
        let length = (self.0.len() - start) as u32;
        self.0[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Sets more flags in the message whose first octet is at `start`.
    pub fn add_flags(&mut self, start: usize, flags: i32) {
        if let Some([low, high]) = self.0.get_mut(start + 6..start + 8) {
            let flags = (flags as u16).to_ne_bytes();
            (*low, *high) = (*low | flags[0], *high | flags[1]);
        }
    }

    /// Appends bytes as they are, then zeroes up to the next multiple of four: a protocol's own header.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// Appends an attribute.
    pub fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.0.extend(attribute_length(value.len() + 4));
        self.0.extend(kind.to_ne_bytes());
        self.raw(value);
    }

    /// Appends a string that ends in NUL.
    pub fn string(&mut self, kind: u16, value: &str) {
        self.0.extend(attribute_length(value.len() + 5));
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value.as_bytes());
        self.raw(&[0]);
    }

    /// Appends a number in network byte order.
    pub fn be32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// Appends a number in network byte order.
    pub fn be64(&mut self, kind: u16, value: u64) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// Appends an attribute that holds attributes.
    pub fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.attribute(kind | NLA_F_NESTED, &[]);
        body(self);
        let length = attribute_length(self.0.len() - start);
        self.0[start..start + 2].copy_from_slice(&length);
    }

    /// What was written.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What was too long says so with a length that no kernel accepts (it is no longer than the rest of the message).
fn attribute_length(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(0).to_ne_bytes()
}

/// The messages of a datagram, up to the first that is cut short.
pub fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header = datagram.first_chunk::<HEADER>()?;
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let body = datagram.get(HEADER..length)?;
        let message = Message {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            seq: u32::from_ne_bytes([header[8], header[9], header[10], header[11]]),
            pid: u32::from_ne_bytes([header[12], header[13], header[14], header[15]]),
            body,
        };
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(message)
    })
}

/// The attributes in `bytes`, up to the first that is cut short.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = Attribute<'_>> {
    std::iter::from_fn(move || {
        let header = bytes.first_chunk::<4>()?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & NLA_TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        Some(Attribute { kind, value })
    })
}

/// The value of the first attribute of `kind`.
pub fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|a| a.kind == kind).map(|a| a.value)
}

impl<'a> Attribute<'a> {
    /// The value as a number in network byte order.
    pub fn be32(&self) -> Option<u32> {
        Some(u32::from_be_bytes(self.value.try_into().ok()?))
    }

    /// The value as a number in network byte order.
    pub fn be64(&self) -> Option<u64> {
        Some(u64::from_be_bytes(self.value.try_into().ok()?))
    }

    /// The value as a string, without its NUL.
    pub fn string(&self) -> Option<&'a str> {
        let end = self.value.iter().position(|b| *b == 0);
        str::from_utf8(&self.value[..end.unwrap_or(self.value.len())]).ok()
    }
}

/// The refusal in a message, `None` in an acknowledgement and in what is no `NLMSG_ERROR`.
fn refusal(message: &Message<'_>) -> Option<Refusal> {
    if i32::from(message.kind) != libc::NLMSG_ERROR && i32::from(message.kind) != libc::NLMSG_DONE {
        return None;
    }
    // A dump that failed midway ends in NLMSG_DONE with the error.
    let error = i32::from_ne_bytes(*message.body.first_chunk()?);
    if error >= 0 {
        return None;
    }
    // struct nlmsgerr: the error, the header of the message refused (capped), then attributes.
    let text = message
        .body
        .get(4 + HEADER..)
        .and_then(|rest| attributes(rest).find(|a| a.kind == NLMSGERR_ATTR_MSG)?.string())
        .map(str::to_owned);
    Some(Refusal { seq: message.seq, errno: Errno::from_raw(-error), text })
}

#[allow(unsafe_code, reason = "nix has no netlink socket options")]
fn set_option(fd: &OwnedFd, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: the value is an int of this frame and its length is given.
    let rc = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            (&raw const value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    Errno::result(rc)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_reads_back() {
        let mut w = Writer::default();
        w.message(7, libc::NLM_F_ACK, 3, |w| {
            w.nest(1, |w| {
                w.string(2, "abc");
                w.be32(3, 9);
            });
            w.be64(4, 10);
        });
        let all: Vec<_> = messages(w.bytes()).collect();
        assert_eq!((all.len(), all[0].kind, all[0].seq), (1, 7, 3));
        let outer: Vec<_> = attributes(all[0].body).collect();
        assert_eq!((outer.len(), outer[1].be64()), (2, Some(10)));
        let inner: Vec<_> = attributes(outer[0].value).collect();
        assert_eq!((inner[0].string(), inner[1].be32()), (Some("abc"), Some(9)));
    }

    #[test]
    fn datagrams_of_processes_are_dropped_and_a_flood_of_them_holds_nobody_up() {
        // Any process may send to another here; in the protocols in use it takes CAP_NET_ADMIN.
        let ours = Socket::open(SockProtocol::NetlinkUserSock).unwrap();
        nix::sys::socket::bind(ours.as_raw_fd(), &NetlinkAddr::new(0, 0)).unwrap();
        let address: NetlinkAddr = nix::sys::socket::getsockname(ours.as_raw_fd()).unwrap();
        let theirs = Socket::open(SockProtocol::NetlinkUserSock).unwrap();
        let mut w = Writer::default();
        w.message(libc::NLMSG_ERROR as u16, 0, 1, |w| w.raw(&[0; 20]));
        for _ in 0..20 {
            nix::sys::socket::sendto(theirs.as_raw_fd(), w.bytes(), &address, MsgFlags::empty()).unwrap();
        }
        let mut buffer = [0; 256];
        let kind = |most, buffer: &mut [u8]| ours.receive_of(buffer, most).unwrap_err().kind();
        assert_eq!(kind(10, &mut buffer), io::ErrorKind::Interrupted);
        assert_eq!(kind(10, &mut buffer), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn bytes_cut_anywhere_are_read_without_panic() {
        let mut w = Writer::default();
        for seq in 0..3 {
            w.message(1, 0, seq, |w| w.string(1, "x"));
        }
        for cut in 0..w.bytes().len() {
            for m in messages(&w.bytes()[..cut]) {
                attributes(m.body).for_each(drop);
            }
        }
        // A length shorter than its own header ends the walk.
        assert_eq!(messages(&[0; 64]).count(), 0);
        assert_eq!(attributes(&[0; 64]).count(), 0);
    }

    #[test]
    fn an_attribute_too_long_for_its_length_field_cannot_pass() {
        let mut w = Writer::default();
        w.attribute(1, &vec![0; 70_000]);
        assert_eq!(attributes(w.bytes()).count(), 0);
    }
}
