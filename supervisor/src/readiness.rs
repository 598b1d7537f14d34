//! Waiting for a descriptor that tokio has no type for.

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
