//! Starting another program of ours: by descriptor, never by a search in `PATH`, with exactly the descriptors it is
//! to have and in a session of its own.

use crate::error::{Error, Result};
use crate::pidfd::PidFd;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// An executable file, opened: replaced on disk, it stays the one that was checked.
#[derive(Debug)]
pub struct Program {
    file: File,
    name: CString,
}

/// A child process. Not killed when dropped.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    pidfd: PidFd,
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Program {
    /// This very program.
    pub fn own() -> Result<Self> {
        let path = "/proc/self/exe";
        Ok(Program { file: File::open(path).map_err(Error::io("open", path))?, name: c"self".into() })
    }

    /// The program `name` in the folder of this one, owned like this one and writable by nobody else.
    pub fn sibling(name: &str) -> Result<Self> {
        let path = own_folder()?.join(name);
        let untrusted =
            |reason: &str| Error::Untrusted { path: path.display().to_string(), reason: reason.into() };
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path)
            .map_err(Error::io("open", path.display()))?;
        let meta = file.metadata().map_err(Error::io("stat", path.display()))?;
        let own = Self::own()?.file.metadata().map_err(Error::io("stat", "/proc/self/exe"))?;
        if !meta.is_file() {
            return Err(untrusted("is not a regular file"));
        }
        if meta.uid() != own.uid() || meta.mode() & 0o022 != 0 {
            return Err(untrusted("may be changed by others; run `terok setup` again"));
        }
        let name = CString::new(name).map_err(|_| untrusted("has a NUL in its name"))?;
        Ok(Program { file, name })
    }

    /// Starts the program with `args` behind its name, an empty environment, and `fds` as its descriptors from 0 on;
    /// all others are closed. Returns once the kernel has accepted the program.
    pub fn spawn(&self, args: &[&str], fds: &[BorrowedFd<'_>]) -> Result<Child> {
        let subject = self.name.to_string_lossy().into_owned();
        let args: Vec<CString> = args
            .iter()
            .map(|arg| CString::new(*arg))
            .collect::<std::result::Result<_, _>>()
            .map_err(|_| Error::call("exec", &subject)(Errno::EINVAL))?;
        let mut argv = vec![self.name.as_ptr()];
        argv.extend(args.iter().map(|arg| arg.as_ptr()));
        argv.push(std::ptr::null());

        // Everything the child needs sits above the numbers it will fill, so that no dup2 overwrites a source.
        let above = fds.len() as i32;
        let lift = |fd: BorrowedFd<'_>| -> Result<OwnedFd> {
            let fd = fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(above)).map_err(Error::call("dup", &subject))?;
            // SAFETY: the call succeeded, so `fd` is a new descriptor that nobody else owns.
            #[allow(unsafe_code, reason = "takes ownership of a fresh descriptor")]
            Ok(unsafe { OwnedFd::from_raw_fd(fd) })
        };
        let sources: Vec<OwnedFd> = fds.iter().map(|&fd| lift(fd)).collect::<Result<_>>()?;
        let program = lift(self.file.as_fd())?;
        let (report, low) =
            nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(Error::call("pipe", &subject))?;
        let failure = lift(low.as_fd())?;
        drop(low);

        // SAFETY: the child calls nothing but async-signal-safe system calls on memory prepared above.
        #[allow(unsafe_code, reason = "fork with chosen descriptors")]
        let forked = unsafe { libc::fork() };
        if forked == 0 {
            // SAFETY: this is the child, between fork and exec; `argv` ends with a null pointer.
            #[allow(unsafe_code, reason = "never returns to code of the parent")]
            unsafe {
                become_program(&sources, &program, &argv, &failure)
            }
        }
        let pid = Pid::from_raw(Errno::result(forked).map_err(Error::call("fork", &subject))?);
        drop(failure);
        let pidfd = PidFd::open(pid.as_raw())?;
        let mut errno = Vec::new();
        File::from(report).read_to_end(&mut errno).map_err(Error::io("read", &subject))?;
        if let Ok(errno) = <[u8; 4]>::try_from(errno.as_slice()) {
            let _ = waitpid(pid, None);
            return Err(Error::call("exec", &subject)(Errno::from_raw(i32::from_ne_bytes(errno))));
        }
        Ok(Child { pid, pidfd })
    }
}

/// The child's side of [`Program::spawn`].
///
/// # Safety
/// Only between fork and exec; `argv` ends with a null pointer.
#[allow(unsafe_code, reason = "raw system calls between fork and exec")]
unsafe fn become_program(
    sources: &[OwnedFd],
    program: &OwnedFd,
    argv: &[*const libc::c_char],
    failure: &OwnedFd,
) -> ! {
    let environment: [*const libc::c_char; 1] = [std::ptr::null()];
    // SAFETY: see above; every pointer stays valid, the descriptors belong to this copy of the process.
    unsafe {
        libc::setsid();
        let mut ready = true;
        for (number, source) in sources.iter().enumerate() {
            ready &= libc::dup3(source.as_raw_fd(), number as i32, 0) >= 0;
        }
        let (first, last) = (sources.len() as u32, u32::MAX);
        ready &= libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC) == 0;
        if ready {
            libc::syscall(
                libc::SYS_execveat,
                program.as_raw_fd(),
                c"".as_ptr(),
                argv.as_ptr(),
                environment.as_ptr(),
                libc::AT_EMPTY_PATH,
            );
        }
        let errno = (*libc::__errno_location()).to_ne_bytes();
        libc::write(failure.as_raw_fd(), errno.as_ptr().cast(), errno.len());
        libc::_exit(127)
    }
}

impl Child {
    /// Its number, valid until [`Child::reap`] has returned an exit.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Its pidfd: readable when it is dead.
    pub fn pidfd(&self) -> &PidFd {
        &self.pidfd
    }

    /// How the child ended, `None` while it runs. Call again after an exit and the child is gone (ECHILD).
    pub fn reap(&self) -> Result<Option<Exit>> {
        match waitpid(self.pid, Some(WaitPidFlag::WNOHANG)).map_err(Error::call("waitpid", self.pid))? {
            WaitStatus::Exited(_, code) => Ok(Some(Exit::Code(code))),
            WaitStatus::Signaled(_, signal, _) => Ok(Some(Exit::Signal(signal as i32))),
            _ => Ok(None),
        }
    }

    /// Kills the child and every process of its session's first group, and waits for the child's end. Its number
    /// cannot be another's: it was not reaped yet.
    pub fn kill(&self) -> Result<()> {
        let _ = nix::sys::signal::killpg(self.pid, nix::sys::signal::Signal::SIGKILL);
        self.pidfd.signal(nix::sys::signal::Signal::SIGKILL)?;
        let _ = waitpid(self.pid, None);
        Ok(())
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Names this process for `ps`: started by descriptor, it would carry the descriptor's number on older kernels.
pub fn set_name(name: &str) {
    if let Ok(name) = CString::new(name) {
        let _ = nix::sys::prctl::set_name(&name);
    }
}

/// Keeps the memory of this process, which will hold secrets, out of core dumps and from other processes of its user. Ends with `exec`.
pub fn hide_memory() -> Result<()> {
    nix::sys::prctl::set_dumpable(false).map_err(Error::call("prctl", "dumpable"))
}

/// The folder of this program.
pub fn own_folder() -> Result<PathBuf> {
    let link = "/proc/self/exe";
    let path = std::fs::read_link(link).map_err(Error::io("readlink", link))?;
    path.parent().filter(|folder| folder.is_absolute()).map(Path::to_owned).ok_or_else(|| Error::Untrusted {
        path: path.display().to_string(),
        reason: "does not tell the folder of this program".into(),
    })
}
