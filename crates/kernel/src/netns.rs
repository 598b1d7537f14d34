//! Network namespaces, held by descriptor. Work inside one happens on a thread that ends there: a rootless hook may
//! enter the container's namespace but never come back (the host's is not owned by its user namespace).

use crate::error::{Error, Result};
use crate::pidfd::PidFd;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

/// A network namespace, kept alive by this descriptor (close-on-exec).
#[derive(Debug)]
pub struct NetNs {
    file: File,
    id: NsId,
}

/// What tells two namespaces apart: device and inode of the namespace file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NsId {
    /// Device of the nsfs.
    pub dev: u64,
    /// Inode on it.
    pub ino: u64,
}

impl NetNs {
    /// The namespace of the calling thread.
    pub fn own() -> Result<Self> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// The namespace of process `pid`, which `pidfd` holds: still running after the namespace was opened, so the
    /// number cannot have been given to another process in between.
    pub fn of(pid: i32, pidfd: &PidFd) -> Result<Self> {
        let opened = Self::open(&format!("/proc/{pid}/ns/net"));
        if !pidfd.is_alive() {
            return Err(Error::Gone { pid });
        }
        opened
    }

    /// The namespace mounted at or linked from `path`.
    pub fn open(path: &str) -> Result<Self> {
        let file = File::open(path).map_err(Error::io("open", path))?;
        let meta = file.metadata().map_err(Error::io("stat", path))?;
        Ok(NetNs { id: NsId { dev: meta.dev(), ino: meta.ino() }, file })
    }

    /// What tells this namespace from another.
    pub fn id(&self) -> NsId {
        self.id
    }

    /// The user namespace that owns this one: who has its root may change the rules in it.
    pub fn owning_userns(&self) -> Result<NsId> {
        // linux/nsfs.h: _IO(0xb7, 0x1)
        const NS_GET_USERNS: libc::c_ulong = 0xb701;
        // SAFETY: NS_GET_USERNS takes no argument and returns a new descriptor or -1.
        #[allow(unsafe_code, reason = "no wrapper for the nsfs ioctls")]
        let fd = unsafe { libc::ioctl(self.file.as_raw_fd(), NS_GET_USERNS as _) };
        let fd = Errno::result(fd).map_err(Error::call("NS_GET_USERNS", "network namespace"))?;
        // SAFETY: the ioctl succeeded, so `fd` is a new descriptor that nobody else owns.
        #[allow(unsafe_code, reason = "takes ownership of a fresh descriptor")]
        let userns = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        let meta = userns.metadata().map_err(Error::io("stat", "user namespace"))?;
        Ok(NsId { dev: meta.dev(), ino: meta.ino() })
    }

    /// Runs `work` on a fresh thread inside this namespace and waits for it. The calling thread stays where it is.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let inside = std::thread::Builder::new().spawn_scoped(scope, || {
                setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)
                    .map_err(Error::call("setns", "network namespace"))?;
                Ok(work())
            });
            let inside = inside.map_err(Error::io("spawn thread", ""))?;
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Processes in this namespace, as far as this process may look; at most `limit`.
    pub fn processes(&self, limit: usize) -> Result<Vec<i32>> {
        let here = format!("net:[{}]", self.id.ino);
        let entries = std::fs::read_dir("/proc").map_err(Error::io("read", "/proc"))?;
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let inside = pids.filter(|pid| {
            std::fs::read_link(format!("/proc/{pid}/ns/net"))
                .is_ok_and(|link| link.as_os_str() == here.as_str())
        });
        Ok(inside.take(limit).collect())
    }
}

/// The user namespace of the calling process.
pub fn own_userns() -> Result<NsId> {
    NetNs::open("/proc/thread-self/ns/user").map(|ns| ns.id())
}

impl PartialEq for NetNs {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}
