//! How files of the vault were at a moment, by what stat tells: any unlock, lock, change, removal or replacement shows in it. The worker may not open
//! them, but it may look at them so.

use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A change this young may be followed by another one with the same time: clocks of file systems tick each 1 to 10 ms.
const TICK: Duration = Duration::from_millis(50);

/// How some files were.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    files: Vec<(PathBuf, Facts)>,
    /// None of them had changed just now.
    settled: bool,
}

/// Device, inode, change time in seconds and nanoseconds, size; zeros where nothing is, or nothing in it.
type Facts = [u64; 5];

impl Stamp {
    /// How the files at `paths` are.
    pub(crate) fn take(paths: &[PathBuf]) -> Self {
        let young = SystemTime::now()
            .checked_sub(TICK)
            .and_then(|then| then.duration_since(UNIX_EPOCH).ok())
            .map_or(0, |then| then.as_nanos());
        let files: Vec<_> = paths.iter().map(|path| (path.clone(), facts(path))).collect();
        let settled = files.iter().all(|(_, facts)| {
            u128::from(facts[2]) * 1_000_000_000 + u128::from(facts[3]) < young || *facts == Facts::default()
        });
        Stamp { files, settled }
    }

    /// One that never stands for what is there now.
    pub(crate) fn none() -> Self {
        Stamp { files: Vec::new(), settled: false }
    }

    /// Whether all of them are still as they were. Never so for one that was taken right after a change.
    pub(crate) fn is_current(&self) -> bool {
        self.settled && self.files.iter().all(|(path, then)| facts(path) == *then)
    }
}

fn facts(path: &Path) -> Facts {
    match std::fs::symlink_metadata(path) {
        // A write-ahead log that was just made says nothing yet, and the last one to close the store takes it away.
        Ok(meta) if meta.len() == 0 => Facts::default(),
        Ok(meta) => [meta.dev(), meta.ino(), meta.ctime() as u64, meta.ctime_nsec() as u64, meta.len()],
        Err(error) if error.kind() == ErrorKind::NotFound => Facts::default(),
        // What cannot be seen is never as it was.
        Err(_) => [u64::MAX; 5],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settled(path: &Path) -> Stamp {
        std::thread::sleep(TICK + Duration::from_millis(5));
        Stamp::take(&[path.to_owned()])
    }

    #[test]
    fn it_stands_while_nothing_changes_and_not_after_a_change_of_any_kind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vault.db");
        let absent = Stamp::take(std::slice::from_ref(&path));
        assert!(absent.is_current());
        std::fs::write(&path, "one").unwrap();
        assert!(!absent.is_current());
        let first = settled(&path);
        assert!(first.is_current());
        // The same size, in place.
        std::fs::write(&path, "two").unwrap();
        assert!(!first.is_current());
        let second = settled(&path);
        std::fs::write(folder.path().join("new"), "two").unwrap();
        std::fs::rename(folder.path().join("new"), &path).unwrap();
        assert!(!second.is_current());
        let third = settled(&path);
        std::fs::remove_file(&path).unwrap();
        assert!(!third.is_current());
    }

    #[test]
    fn one_that_was_taken_right_after_a_change_does_not_stand() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vault.db");
        // Unless the machine stood still in between, which makes it another case.
        let in_time = (0..100).any(|_| {
            let start = std::time::Instant::now();
            std::fs::write(&path, "one").unwrap();
            let stamp = Stamp::take(std::slice::from_ref(&path));
            let right_after = start.elapsed() < TICK / 2;
            assert!(!(right_after && stamp.is_current()));
            right_after
        });
        assert!(in_time);
        assert!(!Stamp::none().is_current());
        assert!(settled(&path).is_current());
    }

    #[test]
    fn an_empty_write_ahead_log_is_as_good_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vault.db-wal");
        let absent = Stamp::take(std::slice::from_ref(&path));
        std::fs::write(&path, "").unwrap();
        assert!(absent.is_current());
    }
}
