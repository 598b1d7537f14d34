//! How a file is now, so that a change is seen without opening it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Device, inode, change time (seconds, nanoseconds) and size; all zero for a file that is empty or not there. Two looks at the same path that
/// differ had a change between them. An empty write-ahead log comes and goes as readers do, so it counts as none.
pub fn stamp(path: &Path) -> [u64; 5] {
    match path.symlink_metadata() {
        Ok(found) if found.len() > 0 => {
            [found.dev(), found.ino(), found.ctime() as u64, found.ctime_nsec() as u64, found.len()]
        }
        _ => [0; 5],
    }
}
