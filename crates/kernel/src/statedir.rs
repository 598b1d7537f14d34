//! Folders of state (L6): opened without following a symbolic link, owned by us and closed to others, written by
//! temporary file and rename. Everything goes by descriptor, so a folder swapped by name later does not matter.

use crate::error::{Error, Result};
use nix::dir::Dir as Entries;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2, renameat};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const FOLDER: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_RDONLY).union(OFlag::O_CLOEXEC);

/// An open folder.
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

/// What an entry of a folder is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// A folder, not a file, socket or symbolic link.
    pub folder: bool,
    /// Last change, seconds since the Unix epoch.
    pub modified: i64,
}

impl Dir {
    /// Opens a folder that terok does not make: `/run`, `/var/lib`, a home. Links on the way are the system's own and
    /// followed; the folder itself must belong to this user and be writable by nobody else.
    pub fn base(path: &Path) -> Result<Self> {
        let fd =
            nix::fcntl::open(path, FOLDER, Mode::empty()).map_err(Error::call("open", path.display()))?;
        let dir = Dir { fd, path: path.to_owned() };
        dir.check(0o022)?;
        Ok(dir)
    }

    /// Takes over a descriptor of a folder; `path` is for messages and [`Dir::is_still_at_its_path`].
    pub fn from_fd(fd: OwnedFd, path: impl Into<PathBuf>) -> Self {
        Dir { fd, path: path.into() }
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder `name` in this one: ours, 0700. `None` where there is none.
    pub fn private(&self, name: &str) -> Result<Option<Self>> {
        match self.child(name) {
            Ok(dir) => dir.check(0o077).map(|()| Some(dir)),
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The folder `name` in this one, made with 0700 where there is none.
    pub fn make_private(&self, name: &str) -> Result<Self> {
        self.make(name)?;
        let dir = self.child(name)?;
        dir.check(0o077)?;
        Ok(dir)
    }

    /// The folder at relative `path`, one that others may read (`.local`): ours, made with 0700 where there is none.
    pub fn make_shared(&self, path: &str) -> Result<Self> {
        let mut dir = Dir {
            fd: self.fd.try_clone().map_err(Error::io("dup", self.path.display()))?,
            path: self.path.clone(),
        };
        for name in path.split('/') {
            dir.make(name)?;
            dir = dir.child(name)?;
            dir.check(0o022)?;
        }
        Ok(dir)
    }

    /// The folder `name` in this one, ours, that others may look into.
    pub fn folder(&self, name: &str) -> Result<Self> {
        let dir = self.child(name)?;
        dir.check(0o022)?;
        Ok(dir)
    }

    fn make(&self, name: &str) -> Result<()> {
        let name = component(name)?;
        match mkdirat(&self.fd, name, Mode::S_IRWXU) {
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(errno) => Err(Error::call("mkdir", self.place(name))(errno)),
        }
    }

    fn child(&self, name: &str) -> Result<Self> {
        Ok(Dir { fd: self.open(name, FOLDER)?, path: self.path.join(name) })
    }

    fn open(&self, name: &str, flags: OFlag) -> Result<OwnedFd> {
        let name = component(name)?;
        let resolve = ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_BENEATH;
        let mut how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW).resolve(resolve);
        if flags.contains(OFlag::O_CREAT) {
            how = how.mode(Mode::S_IRUSR | Mode::S_IWUSR);
        }
        openat2(&self.fd, name, how).map_err(|errno| match errno {
            Errno::ELOOP => self.untrusted(name, "is a symbolic link; remove it"),
            // What the kernel says of a link where a folder was asked for.
            Errno::ENOTDIR => self.untrusted(name, "is a symbolic link or a file, not a folder; remove it"),
            errno => Error::call("open", self.place(name))(errno),
        })
    }

    /// Owner and mode: nobody but this user may do what `forbidden` bits allow.
    fn check(&self, forbidden: u32) -> Result<()> {
        let stat = fstat(&self.fd).map_err(Error::call("stat", self.path.display()))?;
        check(&stat, forbidden)
            .map_err(|reason| Error::Untrusted { path: self.path.display().to_string(), reason })
    }

    /// Whether the path this folder was opened at still leads to it: a newer one may have taken its place.
    pub fn is_still_at_its_path(&self) -> bool {
        self.is_at(&self.path)
    }

    /// Whether `path` leads to this folder.
    pub fn is_at(&self, path: &Path) -> bool {
        let same = |a: FileStat, b: FileStat| a.st_dev == b.st_dev && a.st_ino == b.st_ino;
        match (fstat(&self.fd), nix::sys::stat::lstat(path)) {
            (Ok(own), Ok(there)) => same(own, there),
            _ => false,
        }
    }

    /// The content of file `name`, `None` where there is none; more than `limit` octets, a link or a foreign owner is an error.
    pub fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let fd = match self.open(name, OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => return Ok(None),
            opened => opened?,
        };
        self.check_file(name, fd.as_fd())?;
        let mut content = Vec::new();
        File::from(fd)
            .take(limit + 1)
            .read_to_end(&mut content)
            .map_err(Error::io("read", self.place(name)))?;
        if content.len() as u64 > limit {
            return Err(self.untrusted(name, "is larger than terok ever writes it; move it away"));
        }
        Ok(Some(content))
    }

    fn check_file(&self, name: &str, fd: BorrowedFd<'_>) -> Result<()> {
        let stat = fstat(fd).map_err(Error::call("stat", self.place(name)))?;
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
            return Err(self.untrusted(name, "is not a regular file; remove it"));
        }
        check(&stat, 0o022).map_err(|reason| self.untrusted(name, &reason))
    }

    /// Replaces file `name` (0600) as a whole: after a crash it has the old content or the new one, on disk.
    pub fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        self.replace(name, content, None)
    }

    fn replace(&self, name: &str, content: &[u8], mode: Option<Mode>) -> Result<()> {
        let temporary = format!(".{name}.new");
        self.remove(&temporary)?;
        let written = (|| {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
            let mut file = File::from(self.open(&temporary, flags)?);
            // Only where it is wanted: the supervisor writes under a filter that knows no chmod.
            if let Some(mode) = mode {
                nix::sys::stat::fchmod(&file, mode).map_err(Error::call("chmod", self.place(name)))?;
            }
            file.write_all(content)
                .and_then(|()| file.sync_all())
                .map_err(Error::io("write", self.place(name)))?;
            renameat(&self.fd, temporary.as_str(), &self.fd, component(name)?)
                .map_err(Error::call("rename", self.place(name)))
        })();
        if written.is_err() {
            let _ = self.remove(&temporary);
            return written;
        }
        nix::unistd::fsync(&self.fd).map_err(Error::call("fsync", self.path.display()))
    }

    /// Makes folder `name`, new, that everybody may look into (0755), whatever the umask.
    pub fn make_open(&self, name: &str) -> Result<Self> {
        let name = component(name)?;
        mkdirat(&self.fd, name, Mode::S_IRWXU).map_err(Error::call("mkdir", self.place(name)))?;
        let dir = self.child(name)?;
        let mode = Mode::from_bits_truncate(0o755);
        nix::sys::stat::fchmod(&dir.fd, mode).map_err(Error::call("chmod", self.place(name)))?;
        Ok(dir)
    }

    /// Replaces file `name` as [`Dir::write`] does, by one that everybody may read (0444).
    pub fn write_for_all(&self, name: &str, content: &[u8]) -> Result<()> {
        self.replace(name, content, Some(Mode::from_bits_truncate(0o444)))
    }

    /// Opens file `name` (0600) for appending, made where there is none.
    pub fn append(&self, name: &str) -> Result<AppendLog> {
        let flags = OFlag::O_RDWR | OFlag::O_APPEND | OFlag::O_CREAT | OFlag::O_NONBLOCK;
        let fd = self.open(name, flags)?;
        self.check_file(name, fd.as_fd())?;
        Ok(AppendLog { file: fd.into(), path: self.path.join(name) })
    }

    /// Renames file `from` to `to` in this folder, replacing what is there.
    pub fn rename(&self, from: &str, to: &str) -> Result<()> {
        renameat(&self.fd, component(from)?, &self.fd, component(to)?)
            .map_err(Error::call("rename", self.place(from)))
    }

    /// A listening unix socket `name` (0600), non-blocking. Bound through the descriptor: no path is walked again, and
    /// the name may be longer than a socket address.
    pub fn listen(&self, name: &str) -> Result<UnixListener> {
        self.listen_as(name, 0o600)
    }

    /// As [`Dir::listen`], one that everybody may connect to who reaches the folder (0666).
    pub fn listen_for_all(&self, name: &str) -> Result<UnixListener> {
        self.listen_as(name, 0o666)
    }

    fn listen_as(&self, name: &str, mode: u32) -> Result<UnixListener> {
        let name = component(name)?;
        let path = format!("/proc/self/fd/{}/{name}", self.fd.as_raw_fd());
        let listener = UnixListener::bind(&path).map_err(Error::io("bind", self.place(name)))?;
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode))
            .and_then(|()| listener.set_nonblocking(true))
            .map_err(Error::io("chmod", self.place(name)))?;
        Ok(listener)
    }

    /// Whether anybody listens on unix socket `name`. Never waits: a full queue means that somebody does.
    pub fn is_served(&self, name: &str) -> Result<bool> {
        let address =
            UnixAddr::new(format!("/proc/self/fd/{}/{}", self.fd.as_raw_fd(), component(name)?).as_str())
                .map_err(Error::call("connect", self.place(name)))?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let client = socket(AddressFamily::Unix, SockType::Stream, flags, None)
            .map_err(Error::call("socket", "unix"))?;
        Ok(matches!(connect(client.as_raw_fd(), &address), Ok(()) | Err(Errno::EAGAIN)))
    }

    /// What is in the folder, unsorted, without `.` and `..`.
    pub fn list(&self) -> Result<Vec<Entry>> {
        let fd = openat2(&self.fd, ".", OpenHow::new().flags(FOLDER))
            .map_err(Error::call("open", self.path.display()))?;
        let mut entries = Entries::from_fd(fd).map_err(Error::call("read", self.path.display()))?;
        let mut found = Vec::new();
        for entry in entries.iter() {
            let entry = entry.map_err(Error::call("read", self.path.display()))?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if matches!(name, "." | "..") {
                continue;
            }
            // Gone since it was listed: somebody tidies up at the same time.
            let Ok(stat) = fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW) else { continue };
            let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
            found.push(Entry { name: name.into(), folder: kind == SFlag::S_IFDIR, modified: stat.st_mtime });
        }
        Ok(found)
    }

    /// Removes file, socket or link `name`; none there is no error.
    pub fn remove(&self, name: &str) -> Result<()> {
        match unlinkat(&self.fd, component(name)?, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(Error::call("remove", self.place(name))(errno)),
        }
    }

    /// Removes folder `name`, which must be empty; none there is no error.
    pub fn remove_empty(&self, name: &str) -> Result<()> {
        match unlinkat(&self.fd, component(name)?, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(Error::call("remove", self.place(name))(errno)),
        }
    }

    /// Removes `name` and all below it, following no link; none there is no error.
    pub fn remove_tree(&self, name: &str) -> Result<()> {
        let name = component(name)?;
        match unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(()),
            Err(Errno::EISDIR | Errno::EPERM) => {}
            Err(errno) => return Err(Error::call("remove", self.place(name))(errno)),
        }
        let inside = match self.child(name) {
            Err(error) if error.errno() == Some(Errno::ENOENT) => return Ok(()),
            opened => opened?,
        };
        for entry in inside.list()? {
            inside.remove_tree(&entry.name)?;
        }
        match unlinkat(&self.fd, name, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(errno) => Err(Error::call("remove", self.place(name))(errno)),
        }
    }

    /// Removes this folder and what is in it: the content by descriptor, the folder by path only once it is empty. One
    /// that has taken its place meanwhile keeps everything.
    pub fn remove_self(&self) -> Result<()> {
        for entry in self.list()? {
            self.remove_tree(&entry.name)?;
        }
        match unlinkat(nix::fcntl::AT_FDCWD, &self.path, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT | Errno::ENOTEMPTY) => Ok(()),
            Err(errno) => Err(Error::call("remove", self.path.display())(errno)),
        }
    }

    /// Takes this folder for the calling program alone, waiting at most `limit` for another that has it: its logs have
    /// one writer. Held until the returned descriptor, and every copy a child inherits, is closed.
    pub fn lock(&self, limit: Duration) -> Result<Lock> {
        let fd = openat2(&self.fd, ".", OpenHow::new().flags(FOLDER))
            .map_err(Error::call("open", self.path.display()))?;
        take(fd, Hold::Alone, limit).map_err(Error::call("lock", self.path.display()))
    }

    /// As [`Dir::lock`], by file `name` (0600) in this folder, made where there is none and left there.
    pub fn lock_file(&self, name: &str, hold: Hold, limit: Duration) -> Result<Lock> {
        let fd = self.open(name, OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NONBLOCK)?;
        self.check_file(name, fd.as_fd())?;
        take(fd, hold, limit).map_err(Error::call("lock", self.place(name)))
    }

    /// The same folder, for messages and [`Dir::is_still_at_its_path`] known at `path`, where it was moved to.
    pub fn moved_to(self, path: impl Into<PathBuf>) -> Self {
        Dir { fd: self.fd, path: path.into() }
    }

    fn place(&self, name: &str) -> String {
        self.path.join(name).display().to_string()
    }

    fn untrusted(&self, name: &str, reason: &str) -> Error {
        Error::Untrusted { path: self.place(name), reason: reason.into() }
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
impl From<Dir> for OwnedFd {
    fn from(dir: Dir) -> Self {
        dir.fd
    }
}

/// A folder or file taken with [`Dir::lock`] or [`Dir::lock_file`].
#[derive(Debug)]
pub struct Lock {
    _fd: OwnedFd,
}

/// Beside whom a file is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// Beside others that share it.
    Shared,
    /// Beside nobody.
    Alone,
}

/// A log that only grows, a line at a time.
#[derive(Debug)]
pub struct AppendLog {
    file: File,
    path: PathBuf,
}

/// The end of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tail {
    /// The last line without its newline; cut at the front where it is longer than was asked for.
    pub line: Vec<u8>,
    /// The line ends with a newline; if not, a crash or a full disk tore it.
    pub complete: bool,
    /// Offset of the first octet of the line.
    pub offset: u64,
}

impl AppendLog {
    /// Appends `line` and a newline in one write. A write that fits only in part (full disk) is undone and an error.
    pub fn append(&mut self, line: &[u8]) -> Result<()> {
        let mut whole = Vec::with_capacity(line.len() + 1);
        whole.extend_from_slice(line);
        whole.push(b'\n');
        let written = self.file.write(&whole).map_err(Error::io("append", self.path.display()))?;
        if written < whole.len() {
            let size = self.size()?;
            self.truncate(size.saturating_sub(written as u64))?;
            return Err(Error::call("append", self.path.display())(Errno::ENOSPC));
        }
        Ok(())
    }

    /// Its length in octets.
    pub fn size(&self) -> Result<u64> {
        Ok(self.file.metadata().map_err(Error::io("stat", self.path.display()))?.len())
    }

    /// Cuts the log to `size` octets.
    pub fn truncate(&mut self, size: u64) -> Result<()> {
        self.file.set_len(size).map_err(Error::io("truncate", self.path.display()))
    }

    /// The last line, read from at most `limit` octets at the end; `None` in an empty log.
    pub fn tail(&self, limit: u64) -> Result<Option<Tail>> {
        use std::os::unix::fs::FileExt;
        let size = self.size()?;
        let from = size.saturating_sub(limit);
        let mut end = vec![0; (size - from) as usize];
        self.file.read_exact_at(&mut end, from).map_err(Error::io("read", self.path.display()))?;
        if end.is_empty() {
            return Ok(None);
        }
        let complete = end.ends_with(b"\n");
        end.truncate(end.len() - usize::from(complete));
        let start = end.iter().rposition(|&octet| octet == b'\n').map_or(0, |newline| newline + 1);
        Ok(Some(Tail { line: end[start..].to_vec(), complete, offset: from + start as u64 }))
    }

    /// Puts what was appended on disk.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::io("fsync", self.path.display()))
    }

    /// Moves the log, file `name` of `dir`, to `name.1` (replacing an older one) and goes on in a new file.
    pub fn rotate(&mut self, dir: &Dir, name: &str) -> Result<()> {
        dir.rename(name, &format!("{name}.1"))?;
        *self = dir.append(name)?;
        Ok(())
    }
}

impl AsFd for AppendLog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Waits with growing pauses: many may wait for one.
fn take(fd: OwnedFd, hold: Hold, limit: Duration) -> std::result::Result<Lock, Errno> {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_millis(1);
    let operation = match hold {
        Hold::Shared => libc::LOCK_SH,
        Hold::Alone => libc::LOCK_EX,
    };
    // SAFETY: flock on a descriptor that lives in this scope.
    #[allow(unsafe_code, reason = "nix's Flock wants a File to read and write")]
    let flock = || Errno::result(unsafe { libc::flock(fd.as_raw_fd(), operation | libc::LOCK_NB) });
    loop {
        match flock() {
            Ok(_) => return Ok(Lock { _fd: fd }),
            Err(Errno::EWOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(20));
            }
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// One name, not a path.
fn component(name: &str) -> Result<&str> {
    if matches!(name, "" | "." | "..") || name.contains(['/', '\0']) {
        return Err(Error::Untrusted {
            path: format!("{name:?}"),
            reason: "is not the name of a file".into(),
        });
    }
    Ok(name)
}

fn check(stat: &FileStat, forbidden: u32) -> std::result::Result<(), String> {
    let me = nix::unistd::geteuid().as_raw();
    if stat.st_uid != me {
        return Err(format!("belongs to uid {}, not to {me}", stat.st_uid));
    }
    if stat.st_mode & forbidden != 0 {
        return Err(format!(
            "has mode {:o}; chmod it so that no bit of {forbidden:o} is set",
            stat.st_mode & 0o7777
        ));
    }
    Ok(())
}
