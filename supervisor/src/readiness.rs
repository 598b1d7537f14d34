//! Waiting for a descriptor that tokio has no type for, or for the end of one that somebody else reads.

use std::io;
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches `fd` for something to read, or its end.
#[expect(
    deprecated,
    reason = "unsound only for types that close or exchange their descriptor, which OwnedFd does not; the replacement is unsafe"
)]
pub(crate) fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}

/// Returns once the other end of the connected socket `watched`, a descriptor of its own, sends no more.
pub(crate) async fn hung_up(watched: &AsyncFd<OwnedFd>) {
    loop {
        let Ok(mut ready) = watched.readable().await else { return };
        if ready.ready().is_read_closed() {
            return;
        }
        ready.clear_ready();
    }
}
