//! Bytes between two connected sockets: spliced inside the kernel, or copied where no pipe is to be had. Each step moves
//! one pipeful and waits until the other side took it: that is the back-pressure and the bound on memory.

use std::cell::{Cell, RefCell};
use std::io;
use terok_kernel::socket;
use terok_kernel::splice::{Pipe, splice};
use tokio::io::Interest;
use tokio::net::TcpStream;

/// What a pipe holds: the first ones much, for throughput; with many connections stuck at slow receivers, the rest
/// little, for memory and for the user's share of pipe pages (pipe(7), pipe-user-pages-soft).
const LARGE: usize = 1 << 20;
const SMALL: usize = 64 * 1024;
const LARGE_PIPES: usize = 16;
/// Pipes at a time; further steps copy. A user's programs share one allowance of pipe pages, 64 MiB by default.
pub(super) const PIPES: usize = 256;
/// Empty pipes kept for the next step of any connection.
const SPARE: usize = 4;
/// What one copy moves where splicing is not possible.
pub(super) const SCRATCH: usize = 16 * 1024;
/// Steps without waiting before other connections get their turn.
const STEPS: u32 = 8;

/// Pipes and buffer that all connections share: an idle connection holds neither.
pub(super) struct Relay {
    spare: RefCell<Vec<Pipe>>,
    /// Pipes that exist, spare ones included.
    pipes: Cell<usize>,
    /// How many may exist.
    limit: usize,
    scratch: RefCell<Box<[u8]>>,
    /// No pipe was to be had, or splice is not supported: copy.
    copies: Cell<bool>,
}

/// A connected socket that is reset when dropped, unless both sides have ended in order.
pub(super) struct Socket {
    stream: TcpStream,
    ended: Cell<bool>,
}

/// Octets moved each way.
#[derive(Debug, Default)]
pub(super) struct Moved {
    pub(super) up: Cell<u64>,
    pub(super) down: Cell<u64>,
}

/// A pipe for one step. Given back when dropped, if it is empty again.
struct Lease<'a> {
    relay: &'a Relay,
    pipe: Option<Pipe>,
    /// Octets in the pipe.
    left: Cell<usize>,
}

/// What a step did.
enum Step {
    Moved,
    NotReady,
    End,
}

impl Socket {
    /// Small writes leave at once; a silent dead peer is noticed.
    pub(super) fn new(stream: TcpStream) -> Self {
        // Without these options the connection is slower or lives longer, no less correct.
        let _ = stream.set_nodelay(true);
        let _ = socket::keep_alive(&stream);
        Socket { stream, ended: Cell::new(false) }
    }

    /// Closes without a reset when dropped.
    pub(super) fn end(&self) {
        self.ended.set(true);
    }
}

impl std::ops::Deref for Socket {
    type Target = TcpStream;
    fn deref(&self) -> &TcpStream {
        &self.stream
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if !self.ended.get() {
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl Relay {
    /// A relay that makes at most `limit` pipes, of two descriptors each.
    pub(super) fn new(limit: usize) -> Self {
        Relay {
            spare: RefCell::default(),
            pipes: Cell::new(0),
            limit: limit.min(PIPES),
            scratch: RefCell::new(vec![0; SCRATCH].into_boxed_slice()),
            copies: Cell::new(false),
        }
    }

    /// Moves everything `from` sends to `to`, counting it, until the end of the stream, which is passed on.
    /// `pause` is asked before each wait and step; when it says so, the bytes are left to the caller, as `Ok(false)`.
    pub(super) async fn pump(
        &self,
        from: &TcpStream,
        to: &TcpStream,
        count: &Cell<u64>,
        pause: &Pause,
    ) -> io::Result<bool> {
        let mut steps = 0;
        loop {
            if pause.is_asked() {
                return Ok(false);
            }
            match self.step(from, to, count).await? {
                Step::Moved => {
                    steps += 1;
                    if steps >= STEPS {
                        steps = 0;
                        tokio::task::yield_now().await;
                    }
                }
                Step::NotReady => {
                    steps = 0;
                    tokio::select! {
                        biased;
                        () = pause.asked() => {}
                        ready = from.readable() => ready?,
                    }
                }
                Step::End => {
                    finish(to)?;
                    return Ok(true);
                }
            }
        }
    }

    async fn step(&self, from: &TcpStream, to: &TcpStream, count: &Cell<u64>) -> io::Result<Step> {
        let lease = match self.copies.get() {
            true => None,
            false => self.lease(),
        };
        if let Some(lease) = lease {
            match lease.step(from, to, count).await {
                Err(e) if e.kind() == io::ErrorKind::InvalidInput => self.copies.set(true),
                step => return step,
            }
        }
        self.copy_step(from, to, count).await
    }

    async fn copy_step(&self, from: &TcpStream, to: &TcpStream, count: &Cell<u64>) -> io::Result<Step> {
        let mut bytes = Vec::new();
        match self.read(from, &mut bytes) {
            Ok(0) => Ok(Step::End),
            Ok(_) => {
                write_all(to, &bytes, count).await?;
                Ok(Step::Moved)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(Step::NotReady),
            Err(e) => Err(e),
        }
    }

    /// Appends what `from` has, at most [`SCRATCH`] octets, to `bytes`; `WouldBlock` when it has nothing.
    pub(super) fn read(&self, from: &TcpStream, bytes: &mut Vec<u8>) -> io::Result<usize> {
        let scratch = &mut *self.scratch.borrow_mut();
        let length = from.try_read(scratch)?;
        bytes.extend_from_slice(scratch.get(..length).unwrap_or_default());
        Ok(length)
    }

    /// `None`: no pipe is left, so this step copies.
    fn lease(&self) -> Option<Lease<'_>> {
        let spare = self.spare.borrow_mut().pop();
        let pipe = match spare {
            Some(pipe) => pipe,
            None if self.pipes.get() >= self.limit => return None,
            None => {
                let size = if self.pipes.get() < LARGE_PIPES { LARGE } else { SMALL };
                let pipe = Pipe::new(size).ok()?;
                self.pipes.set(self.pipes.get() + 1);
                pipe
            }
        };
        Some(Lease { relay: self, pipe: Some(pipe), left: Cell::new(0) })
    }
}

impl Lease<'_> {
    async fn step(&self, from: &TcpStream, to: &TcpStream, count: &Cell<u64>) -> io::Result<Step> {
        let Some(pipe) = &self.pipe else { return Err(io::ErrorKind::InvalidInput.into()) };
        let filled = match from.try_io(Interest::READABLE, || splice(from, &pipe.write, pipe.capacity)) {
            Ok(0) => return Ok(Step::End),
            Ok(filled) => filled,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Step::NotReady),
            Err(e) => return Err(e),
        };
        self.left.set(filled);
        while self.left.get() > 0 {
            match to.try_io(Interest::WRITABLE, || splice(&pipe.read, to, self.left.get())) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(moved) => {
                    self.left.set(self.left.get().saturating_sub(moved));
                    count.set(count.get() + moved as u64);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => to.writable().await?,
                Err(e) => return Err(e),
            }
        }
        Ok(Step::Moved)
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut spare = self.relay.spare.borrow_mut();
        match self.pipe.take() {
            Some(pipe) if self.left.get() == 0 && spare.len() < SPARE => spare.push(pipe),
            _ => self.relay.pipes.set(self.relay.pipes.get().saturating_sub(1)),
        }
    }
}

/// Writes all of `bytes`, counting them.
pub(super) async fn write_all(to: &TcpStream, mut bytes: &[u8], count: &Cell<u64>) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.try_write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                count.set(count.get() + written as u64);
                bytes = bytes.get(written..).unwrap_or_default();
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => to.writable().await?,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Passes an end of stream on.
pub(super) fn finish(to: &TcpStream) -> io::Result<()> {
    socket::finish_sending(to).map_err(|e| match e.errno() {
        Some(errno) => errno.into(),
        None => io::Error::other(e),
    })
}

/// A request to a pump to leave the bytes to its caller.
#[derive(Default)]
pub(super) struct Pause {
    asked: Cell<bool>,
    notify: tokio::sync::Notify,
}

impl Pause {
    /// Asks the pump to pause.
    pub(super) fn ask(&self) {
        self.asked.set(true);
        self.notify.notify_waiters();
    }

    /// Takes the request back.
    pub(super) fn clear(&self) {
        self.asked.set(false);
    }

    fn is_asked(&self) -> bool {
        self.asked.get()
    }

    async fn asked(&self) {
        let notified = self.notify.notified();
        if !self.asked.get() {
            notified.await;
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
