//! Folders whose content others make, such as mounts that a container shares: walked by descriptor, so that no symbolic link is
//! followed, no mount is crossed and nothing outside the first folder is touched, whatever is renamed meanwhile.

use crate::error::{Error, Result};
use nix::dir::Dir as Entries;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

const FOLDER: OFlag =
    OFlag::O_DIRECTORY.union(OFlag::O_RDONLY).union(OFlag::O_CLOEXEC).union(OFlag::O_NOFOLLOW);

/// An open folder of the tree.
#[derive(Debug)]
pub struct Folder {
    fd: OwnedFd,
    path: PathBuf,
}

/// An entry of a folder, as it was when the folder was listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub name: OsString,
    /// What it is.
    pub kind: Kind,
    /// Octets of a file.
    pub size: u64,
    /// Names that it has.
    pub links: u64,
    device: u64,
    inode: u64,
}

/// What an entry is; a link is never what it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A device, socket or named pipe.
    Special,
}

impl Folder {
    /// Opens the folder at `path`, which must not itself be a symbolic link; links on the way to it are followed.
    ///
    /// # Errors
    /// `ENOTDIR` or `ELOOP` for a link or a file; otherwise what the kernel says.
    pub fn open(path: &Path) -> Result<Self> {
        let fd =
            nix::fcntl::open(path, FOLDER, Mode::empty()).map_err(Error::call("open", path.display()))?;
        Ok(Folder { fd, path: path.to_owned() })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is in it, by name, without `.` and `..`.
    ///
    /// # Errors
    /// Where it cannot be read, or an entry cannot be looked at for another reason than being gone.
    pub fn list(&self) -> Result<Vec<Found>> {
        let fd = openat2(&self.fd, ".", OpenHow::new().flags(FOLDER))
            .map_err(Error::call("open", self.path.display()))?;
        let mut entries = Entries::from_fd(fd).map_err(Error::call("read", self.path.display()))?;
        let mut found = Vec::new();
        for entry in entries.iter() {
            let entry = entry.map_err(Error::call("read", self.path.display()))?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if matches!(name.as_bytes(), b"." | b"..") {
                continue;
            }
            match fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
                Ok(stat) => found.push(Found::of(name, &stat)),
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(Error::call("stat", self.path.join(name).display())(errno)),
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// The folder that was found in this one.
    ///
    /// # Errors
    /// `EXDEV` where something is mounted; an untrusted entry where it is another one than was found.
    pub fn folder(&self, found: &Found) -> Result<Self> {
        let fd = self.open_entry(found, FOLDER)?;
        Ok(Folder { fd, path: self.path.join(&found.name) })
    }

    /// The content of the file that was found, at most `limit` octets of it.
    ///
    /// # Errors
    /// As [`Folder::folder`]; `EFBIG` where it is larger.
    pub fn read(&self, found: &Found, limit: u64) -> Result<Vec<u8>> {
        let flags =
            OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = self.open_entry(found, flags)?;
        let mut content = Vec::new();
        let path = self.path.join(&found.name);
        let read = File::from(fd).take(limit.saturating_add(1)).read_to_end(&mut content);
        read.map_err(Error::io("read", path.display()))?;
        if content.len() as u64 > limit {
            return Err(Error::call("read", path.display())(Errno::EFBIG));
        }
        Ok(content)
    }

    /// Takes the name of the file that was found out of this folder.
    ///
    /// # Errors
    /// An untrusted entry where it is another one by now; otherwise what the kernel says.
    pub fn remove(&self, found: &Found) -> Result<()> {
        let path = self.path.join(&found.name);
        let stat = fstatat(&self.fd, found.name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)
            .map_err(Error::call("stat", path.display()))?;
        found.is(&stat, &path)?;
        unlinkat(&self.fd, found.name.as_os_str(), UnlinkatFlags::NoRemoveDir)
            .map_err(Error::call("remove", path.display()))
    }

    fn open_entry(&self, found: &Found, flags: OFlag) -> Result<OwnedFd> {
        let path = self.path.join(&found.name);
        let resolve = ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_MAGICLINKS
            | ResolveFlag::RESOLVE_NO_XDEV;
        let how = OpenHow::new().flags(flags).resolve(resolve);
        let fd =
            openat2(&self.fd, found.name.as_os_str(), how).map_err(Error::call("open", path.display()))?;
        let stat = fstat(&fd).map_err(Error::call("stat", path.display()))?;
        found.is(&stat, &path)?;
        Ok(fd)
    }
}

impl Found {
    fn of(name: &OsStr, stat: &FileStat) -> Self {
        let kind = match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFREG => Kind::File,
            SFlag::S_IFDIR => Kind::Folder,
            SFlag::S_IFLNK => Kind::Link,
            _ => Kind::Special,
        };
        Found {
            name: name.to_owned(),
            kind,
            size: u64::try_from(stat.st_size).unwrap_or_default(),
            // Narrower on some architectures.
            #[allow(clippy::useless_conversion, reason = "u32 on aarch64")]
            links: stat.st_nlink.into(),
            device: stat.st_dev,
            inode: stat.st_ino,
        }
    }

    /// Whether `stat` is of the same file or folder, and of the same kind.
    fn is(&self, stat: &FileStat, path: &Path) -> Result<()> {
        let now = Found::of(&self.name, stat);
        if (now.device, now.inode, now.kind) == (self.device, self.inode, self.kind) {
            return Ok(());
        }
        Err(Error::Untrusted {
            path: path.display().to_string(),
            reason: "became something else while it was looked at".into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn find(folder: &Folder, name: &str) -> Found {
        folder.list().unwrap().into_iter().find(|found| found.name == name).unwrap()
    }

    #[test]
    fn entries_are_what_they_are_and_not_what_they_lead_to() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("file"), "12345").unwrap();
        std::fs::create_dir(temp.path().join("folder")).unwrap();
        symlink("/etc", temp.path().join("link")).unwrap();
        nix::unistd::mkfifo(&temp.path().join("pipe"), Mode::S_IRWXU).unwrap();
        let folder = Folder::open(temp.path()).unwrap();
        let kinds: Vec<_> = folder.list().unwrap().into_iter().map(|found| found.kind).collect();
        assert_eq!(kinds, [Kind::File, Kind::Folder, Kind::Link, Kind::Special]);
        assert_eq!(folder.read(&find(&folder, "file"), 5).unwrap(), b"12345");
        assert_eq!(folder.read(&find(&folder, "file"), 4).unwrap_err().errno(), Some(Errno::EFBIG));
    }

    #[test]
    fn no_link_is_followed_even_where_a_folder_or_file_stood_when_it_was_listed() {
        let temp = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::write(outside.path().join("secret"), "secret").unwrap();
        std::fs::create_dir(temp.path().join("a")).unwrap();
        std::fs::write(temp.path().join("b"), "b").unwrap();
        let folder = Folder::open(temp.path()).unwrap();
        let (a, b) = (find(&folder, "a"), find(&folder, "b"));
        std::fs::remove_dir(temp.path().join("a")).unwrap();
        std::fs::remove_file(temp.path().join("b")).unwrap();
        symlink(outside.path(), temp.path().join("a")).unwrap();
        symlink(outside.path().join("secret"), temp.path().join("b")).unwrap();
        assert_eq!(folder.folder(&a).unwrap_err().errno(), Some(Errno::ENOTDIR));
        assert_eq!(folder.read(&b, 100).unwrap_err().errno(), Some(Errno::ELOOP));
        assert!(matches!(folder.remove(&b), Err(Error::Untrusted { .. })));
        assert!(temp.path().join("b").is_symlink());
        assert!(Folder::open(&temp.path().join("a")).is_err());
    }

    #[test]
    fn what_was_swapped_is_neither_read_nor_removed() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("a"), "old").unwrap();
        let folder = Folder::open(temp.path()).unwrap();
        let found = find(&folder, "a");
        std::fs::write(temp.path().join("b"), "new").unwrap();
        std::fs::rename(temp.path().join("b"), temp.path().join("a")).unwrap();
        assert!(matches!(folder.read(&found, 9), Err(Error::Untrusted { .. })));
        assert!(matches!(folder.remove(&found), Err(Error::Untrusted { .. })));
        folder.remove(&find(&folder, "a")).unwrap();
        assert_eq!(folder.list().unwrap(), []);
    }

    #[test]
    fn a_mount_is_not_crossed() {
        let root = Folder::open(Path::new("/")).unwrap();
        // Device and inode in the listing are those of what is mounted, so only the kernel's refusal keeps us out.
        assert_eq!(root.folder(&find(&root, "proc")).unwrap_err().errno(), Some(Errno::EXDEV));
    }
}
