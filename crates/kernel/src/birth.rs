//! Clean birth (L3): what a program inherits from its parent is put right before anything else is done. crun starts
//! hooks with nearly all signals blocked, some versions with umask 0, and with the container's limits.

use crate::error::{Error, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::stat::{Mode, umask};
use std::os::fd::RawFd;

/// Resets signals, umask, working directory, environment and limits, and opens missing standard descriptors on
/// `/dev/null`. To be called first in `main`, while there is one thread.
pub fn clean() -> Result<()> {
    reset_signals()?;
    open_standard_descriptors()?;
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
    nix::unistd::chdir("/").map_err(Error::call("chdir", "/"))?;
    // SAFETY: there is one thread, and no reference into the environment is held.
    #[allow(unsafe_code, reason = "std has no clearenv")]
    unsafe {
        libc::clearenv();
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(Error::call("getrlimit", "NOFILE"))?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(Error::call("setrlimit", "NOFILE"))?;
    // A core dump would put what a connection carried on disk.
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(Error::call("setrlimit", "CORE"))
}

/// How many descriptors this process may have open.
pub fn descriptor_limit() -> Result<u64> {
    getrlimit(Resource::RLIMIT_NOFILE).map(|(soft, _)| soft).map_err(Error::call("getrlimit", "NOFILE"))
}

/// Closes every descriptor from `first` on. No owned descriptor may be alive there.
pub fn close_from(first: RawFd) -> Result<()> {
    let first = u32::try_from(first).unwrap_or(3);
    // SAFETY: closes descriptors only; the caller holds none of them.
    #[allow(unsafe_code, reason = "no wrapper for close_range")]
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    nix::errno::Errno::result(closed).map(drop).map_err(Error::call("close_range", first))
}

/// Empty mask, default dispositions; SIGPIPE stays ignored, as everywhere in Rust, so that a write reports EPIPE.
fn reset_signals() -> Result<()> {
    // The kernel's struct sigaction: handler, flags, restorer, mask; all zero is SIG_DFL.
    const DEFAULT: [u64; 4] = [0; 4];
    for signal in 1..=64 {
        let mut action = DEFAULT;
        if signal == libc::SIGPIPE {
            action[0] = libc::SIG_IGN as u64;
        }
        // SAFETY: installs no handler; the kernel reads the 32 octets of `action`. KILL and STOP are refused with EINVAL,
        // as they should be. The library's signal() would leave out 32 and 33, which conmon's children inherit ignored.
        #[allow(unsafe_code, reason = "every signal, also those that glibc keeps for itself")]
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, action.as_ptr(), std::ptr::null::<u64>(), 8usize);
        }
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(Error::call("sigprocmask", ""))
}

fn open_standard_descriptors() -> Result<()> {
    for fd in 0..=2 {
        // SAFETY: F_GETFD reads a flag of a descriptor that may or may not be open.
        #[allow(unsafe_code, reason = "asks whether a raw descriptor is open")]
        let open = unsafe { libc::fcntl(fd, libc::F_GETFD) } != -1;
        if !open {
            // SAFETY: a constant path; the lowest free number is `fd`, which then stays open for good.
            #[allow(unsafe_code, reason = "the descriptor is to outlive every owner")]
            let opened = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
            nix::errno::Errno::result(opened).map_err(Error::call("open", "/dev/null"))?;
        }
    }
    Ok(())
}
