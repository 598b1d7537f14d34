//! The store's files in their folder: where, whose they may be, how they are made and taken, and how they go.

use crate::error::{Error, Result};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use terok_kernel::statedir::{Dir, Hold, Lock};
use terok_policy::layout::VAULT_STORE;

/// How long a process waits for another one that has the store.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Held, shared, by whoever has the store open, and alone by who puts another file in its place.
const IN_USE: &str = "in-use.lock";

/// File `name` of `dir` by a path without links: SQLite follows none on its way.
pub(crate) fn path(dir: &Dir, name: &str) -> Result<PathBuf> {
    let folder = std::fs::canonicalize(format!("/proc/self/fd/{}", dir.as_fd().as_raw_fd()))
        .map_err(Error::file("find", dir.path().display()))?;
    Ok(folder.join(name))
}

/// Refuses a file that others may read or write, a link, and one of somebody else. `false` where there is none.
pub(crate) fn check_file(path: &Path) -> Result<bool> {
    let shown = || path.display().to_string();
    let untrusted = |reason: String| Err(Error::Untrusted { path: shown(), reason });
    let found = match path.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        found => found.map_err(Error::file("stat", shown()))?,
    };
    if found.is_symlink() {
        return untrusted("is a symbolic link; put the file itself there".into());
    }
    if !found.is_file() {
        return untrusted("is not a file; move it away".into());
    }
    let folder = path.parent().map(Path::metadata).transpose().map_err(Error::file("stat", shown()))?;
    if folder.is_some_and(|folder| folder.uid() != found.uid()) {
        return untrusted(format!("belongs to uid {}, unlike its folder; move it away", found.uid()));
    }
    let who = match found.mode() {
        mode if mode & 0o007 != 0 => "everybody on this machine",
        mode if mode & 0o070 != 0 => "its group",
        _ => return Ok(true),
    };
    untrusted(format!("has mode {:o}, so {who} may use it; run `chmod 600` on it", found.mode() & 0o7777))
}

/// `path` with `suffix` behind its name.
pub(crate) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Takes the folder's store, waiting for who has it.
pub(crate) fn take(dir: &Dir, hold: Hold) -> Result<Lock> {
    dir.lock_file(IN_USE, hold, PATIENCE).map_err(|error| match Error::from(error) {
        Error::Busy { .. } => Error::Busy { path: dir.path().join(VAULT_STORE).display().to_string() },
        error => error,
    })
}

/// An empty file that nobody else can read from its first moment on.
pub(crate) fn make_file(path: &Path) -> Result<std::fs::File> {
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(Error::file("make", path.display()))
}

/// Removes a database that nobody has open.
pub(crate) fn remove_with_logs(dir: &Dir, name: &str) -> Result<()> {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        dir.remove(&format!("{name}{suffix}"))?;
    }
    Ok(())
}

/// Puts the folder's names on the disk.
pub(crate) fn sync_folder(dir: &Dir) -> Result<()> {
    let folder = path(dir, ".")?;
    std::fs::File::open(&folder)
        .and_then(|open| open.sync_all())
        .map_err(Error::file("sync", folder.display()))
}

/// Nothing is there, or nothing in it.
pub(crate) fn is_empty(path: &Path) -> bool {
    path.symlink_metadata().map_or(true, |found| found.len() == 0)
}
