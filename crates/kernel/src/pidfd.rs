//! A process held by descriptor: it can be watched and signalled without fear that its number was given to another.

use crate::error::{Error, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// A process, by pidfd (close-on-exec). Readable once the process is dead.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Opens process `pid`; 0 and negative numbers name no single process and are refused.
    pub fn open(pid: i32) -> Result<Self> {
        if pid <= 0 {
            return Err(Error::Gone { pid });
        }
        // SAFETY: pidfd_open takes two integers and touches no memory of ours.
        #[allow(unsafe_code, reason = "neither nix nor std wraps pidfd_open")]
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        match Errno::result(fd) {
            // SAFETY: the call succeeded, so `fd` is a new descriptor that nobody else owns.
            #[allow(unsafe_code, reason = "takes ownership of a fresh descriptor")]
            Ok(fd) => Ok(PidFd(unsafe { OwnedFd::from_raw_fd(fd as i32) })),
            Err(Errno::ESRCH) => Err(Error::Gone { pid }),
            Err(errno) => Err(Error::call("pidfd_open", pid)(errno)),
        }
    }

    /// Whether the process still runs.
    pub fn is_alive(&self) -> bool {
        !self.wait(Duration::ZERO)
    }

    /// Waits at most `limit` for the death of the process; `true` when it is dead.
    pub fn wait(&self, limit: Duration) -> bool {
        readable(&[self.0.as_fd()], Some(limit)).is_ok_and(|ready| ready[0])
    }

    /// Sends `signal`; a process that is dead already is no error.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        // SAFETY: pidfd_send_signal with a null siginfo touches no memory of ours.
        #[allow(unsafe_code, reason = "neither nix nor std wraps pidfd_send_signal")]
        let sent = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                signal as i32,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        match Errno::result(sent) {
            Ok(_) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(Error::call("pidfd_send_signal", signal)(errno)),
        }
    }

    /// A copy of descriptor `number` of the process: the same open file. Needs the right to trace it.
    pub fn descriptor(&self, number: i32) -> Result<OwnedFd> {
        // SAFETY: pidfd_getfd takes three integers and touches no memory of ours.
        #[allow(unsafe_code, reason = "neither nix nor std wraps pidfd_getfd")]
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.0.as_raw_fd(), number, 0) };
        let fd = Errno::result(fd).map_err(Error::call("pidfd_getfd", number))?;
        // SAFETY: the call succeeded, so `fd` is a new descriptor that nobody else owns.
        #[allow(unsafe_code, reason = "takes ownership of a fresh descriptor")]
        Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }
}

/// Waits until one of `fds` is readable (or has hung up), at most `limit`; which ones are, in order.
pub fn readable(fds: &[BorrowedFd<'_>], limit: Option<Duration>) -> Result<Vec<bool>> {
    let deadline = limit.map(|limit| std::time::Instant::now() + limit);
    let mut polled: Vec<PollFd<'_>> = fds.iter().map(|&fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    loop {
        let timeout = match deadline {
            None => PollTimeout::NONE,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(std::time::Instant::now());
                // Rounded up: a wait of less than a millisecond must not spin.
                let millis = left.as_micros().div_ceil(1000).min(i32::MAX as u128);
                PollTimeout::try_from(millis as i32).unwrap_or(PollTimeout::MAX)
            }
        };
        match poll(&mut polled, timeout) {
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(Error::call("poll", "")(errno)),
            Ok(_) => return Ok(polled.iter().map(|fd| fd.any().unwrap_or(true)).collect()),
        }
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
impl From<OwnedFd> for PidFd {
    fn from(fd: OwnedFd) -> Self {
        PidFd(fd)
    }
}
impl From<PidFd> for OwnedFd {
    fn from(fd: PidFd) -> Self {
        fd.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_death_is_seen_and_a_signal_to_the_dead_is_no_error() {
        let mut child = std::process::Command::new("/bin/sleep").arg("60").spawn().unwrap();
        let pidfd = PidFd::open(child.id() as i32).unwrap();
        assert!(pidfd.is_alive());
        pidfd.signal(Signal::SIGKILL).unwrap();
        assert!(pidfd.wait(Duration::from_secs(60)));
        child.wait().unwrap();
        assert!(!pidfd.is_alive());
        pidfd.signal(Signal::SIGKILL).unwrap();
    }

    #[test]
    fn numbers_that_name_no_process_are_refused() {
        for pid in [0, -1, i32::MAX] {
            assert_eq!(PidFd::open(pid).unwrap_err(), Error::Gone { pid });
        }
    }
}
