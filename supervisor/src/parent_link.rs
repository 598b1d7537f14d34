//! The worker's line to its parent, which holds what the worker must not: the right to change the kernel's sets. Words,
//! one a message, so that nothing the worker says is parsed.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram as StdUnixDatagram;
use std::time::Duration;
use tokio::net::UnixDatagram;

/// Worker to parent: every service answers.
pub(crate) const READY: &[u8] = b"ready";
/// Worker to parent: load what `live.json` says into the kernel's sets.
pub(crate) const APPLY: &[u8] = b"apply";
/// Parent to worker: done. Any other answer to [`APPLY`] is the reason why not.
pub(crate) const DONE: &[u8] = b"done";
/// The longest message.
pub(crate) const LONGEST: usize = 1024;

/// How long the parent may take: a batch of ten thousand elements takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// The worker's end.
pub(crate) struct ParentLink {
    socket: UnixDatagram,
}

/// The kernel's sets stay as they were.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RefusedByParent {
    /// The parent is gone: the worker serves on, but rights to change the kernel's rules are gone with it.
    #[error(
        "the supervisor's parent is gone, so rules for addresses cannot be changed; restart the container"
    )]
    Gone,
    /// The parent could not do it.
    #[error("the kernel's sets: {0}")]
    Failed(String),
}

impl ParentLink {
    /// A connected SEQPACKET socket.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        let socket = StdUnixDatagram::from(socket);
        socket.set_nonblocking(true)?;
        Ok(ParentLink { socket: UnixDatagram::from_std(socket)? })
    }

    /// Tells the parent that every service answers.
    pub(crate) async fn ready(&self) -> io::Result<()> {
        self.socket.send(READY).await.map(drop)
    }

    /// Has the parent load what `live.json` says.
    pub(crate) async fn apply(&self) -> Result<(), RefusedByParent> {
        let exchange = async {
            let mut answer = [0; LONGEST];
            // An answer that came too late for the question before must not pass for this one's.
            while self.socket.try_recv(&mut answer).is_ok_and(|length| length > 0) {}
            self.socket.send(APPLY).await?;
            let length = self.socket.recv(&mut answer).await?;
            Ok::<_, io::Error>(answer[..length].to_vec())
        };
        match tokio::time::timeout(PATIENCE, exchange).await {
            Ok(Ok(answer)) if answer == DONE => Ok(()),
            Ok(Ok(answer)) if answer.is_empty() => Err(RefusedByParent::Gone),
            Ok(Ok(answer)) => Err(RefusedByParent::Failed(String::from_utf8_lossy(&answer).into_owned())),
            Ok(Err(_)) => Err(RefusedByParent::Gone),
            Err(_) => Err(RefusedByParent::Failed("the parent does not answer".to_owned())),
        }
    }
}
