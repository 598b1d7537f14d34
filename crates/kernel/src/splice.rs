//! Moving bytes between sockets inside the kernel: a pipe and splice(2).

use crate::error::{Error, Result};
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// A non-blocking pipe that holds bytes on their way from one socket to another.
#[derive(Debug)]
pub struct Pipe {
    /// Where bytes leave.
    pub read: OwnedFd,
    /// Where bytes enter.
    pub write: OwnedFd,
    /// How many octets fit when they come in whole pages.
    pub capacity: usize,
}

impl Pipe {
    /// A pipe of about `wanted` octets. A user's pipe budget (`fs.pipe-user-pages-soft`) may leave it at the default.
    pub fn new(wanted: usize) -> Result<Self> {
        let (read, write) =
            nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).map_err(Error::call("pipe2", ""))?;
        let wanted = i32::try_from(wanted).unwrap_or(i32::MAX);
        let _ = fcntl(&write, FcntlArg::F_SETPIPE_SZ(wanted));
        let capacity = fcntl(&write, FcntlArg::F_GETPIPE_SZ).map_err(Error::call("fcntl", "F_GETPIPE_SZ"))?;
        Ok(Pipe { read, write, capacity: capacity.unsigned_abs() as usize })
    }
}

/// Moves at most `len` octets from `from` to `to` (one of them a pipe) without blocking; 0 is end of file.
/// `WouldBlock` when either side is not ready.
pub fn splice(from: impl AsFd, to: impl AsFd, len: usize) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    Ok(nix::fcntl::splice(from, None, to, None, len, flags)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};

    fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn bytes_go_from_socket_to_socket_through_a_pipe() {
        let (mut source, from) = connected();
        let (to, mut sink) = connected();
        let pipe = Pipe::new(1 << 16).unwrap();
        source.write_all(b"hello").unwrap();
        crate::pidfd::readable(&[from.as_fd()], None).unwrap();
        assert_eq!(splice(&from, &pipe.write, pipe.capacity).unwrap(), 5);
        assert_eq!(splice(&pipe.read, &to, 5).unwrap(), 5);
        let mut got = [0; 5];
        sink.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"hello");
        source.shutdown(Shutdown::Write).unwrap();
        crate::pidfd::readable(&[from.as_fd()], None).unwrap();
        assert_eq!(splice(&from, &pipe.write, pipe.capacity).unwrap(), 0);
        assert_eq!(splice(&pipe.read, &to, 5).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
