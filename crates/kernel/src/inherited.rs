//! Descriptors that a program was started with, at numbers it was told.

use crate::error::{Error, Result};
use nix::errno::Errno;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

/// The lowest number that nobody has taken.
static FREE: AtomicI32 = AtomicI32::new(3);

/// Takes over the `count` descriptors from `first` (3 or more) on, close-on-exec from now on. EBADF when one is not
/// open; EBUSY for numbers below those taken before, for they have an owner. Before the program opens anything of its own.
pub fn take(first: RawFd, count: usize) -> Result<Vec<OwnedFd>> {
    let too_many = || Error::call("inherit", count)(Errno::EINVAL);
    let last = RawFd::try_from(count).ok().and_then(|n| first.checked_add(n)).ok_or_else(too_many)?;
    FREE.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |free| (first >= free).then_some(last))
        .map_err(|_| Error::call("inherit", first)(Errno::EBUSY))?;
    for fd in first..last {
        // SAFETY: sets a flag of a descriptor that may or may not be open.
        #[allow(unsafe_code, reason = "a raw descriptor whose existence is the question")]
        let set = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        Errno::result(set).map_err(Error::call("inherit", fd))?;
    }
    // SAFETY: each is open, and by the flag above nobody in this process owns it yet.
    #[allow(unsafe_code, reason = "takes ownership of inherited descriptors, once")]
    Ok((first..last).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect())
}
