//! The log's file: appends whole lines or nothing, and rotates to `audit.jsonl.1` at its cap.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsFd as _;
use terok_kernel::statedir::Dir;
use terok_policy::layout;

/// Size at which the log is rotated; with the rotated one it takes at most twice this.
pub(crate) const CAP: u64 = 8 << 20;
/// No line of ours is longer; the tail of this length holds the last line.
const LONGEST_LINE: u64 = 256 << 10;

/// An append-only file of lines.
pub(crate) struct LogFile {
    file: File,
    dir: Dir,
    size: u64,
}

impl LogFile {
    /// Opens or creates the log in `dir`.
    pub(crate) fn open(dir: &Dir) -> io::Result<Self> {
        let file = open_file(dir, layout::AUDIT)?;
        let size = file.metadata()?.len();
        let dir = Dir::from_fd(dir.as_fd().try_clone_to_owned()?, dir.path());
        Ok(LogFile { file, dir, size })
    }

    /// Appends `line` and a newline, or nothing.
    pub(crate) fn append(&mut self, line: &str) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(line.len() + 1);
        bytes.extend_from_slice(line.as_bytes());
        bytes.push(b'\n');
        if self.size + bytes.len() as u64 > CAP && self.size > 0 {
            self.rotate()?;
        }
        match self.file.write_all(&bytes) {
            Ok(()) => {
                self.size += bytes.len() as u64;
                Ok(())
            }
            Err(error) => {
                // A full disk takes a part of the line: the next line must not be glued to it.
                let _ = self.file.set_len(self.size);
                Err(error)
            }
        }
    }

    /// Cuts off what follows the last newline; returns how many bytes that were.
    pub(crate) fn cut_torn_line(&mut self) -> io::Result<u64> {
        let tail = self.tail()?;
        let torn = tail.iter().rev().take_while(|&&b| b != b'\n').count() as u64;
        if torn > 0 {
            self.size -= torn;
            self.file.set_len(self.size)?;
        }
        Ok(torn)
    }

    /// The last line, of the rotated file where this one is empty; `None` in an empty log.
    pub(crate) fn last_line(&mut self) -> io::Result<Option<String>> {
        let mut tail = self.tail()?;
        if tail.is_empty() {
            let old = self.dir.read(&rotated(), CAP + LONGEST_LINE).map_err(io::Error::other)?;
            tail = old.unwrap_or_default();
        }
        let text = tail.strip_suffix(b"\n").unwrap_or(&tail);
        let line = text.rsplit(|&b| b == b'\n').next().unwrap_or_default();
        Ok((!line.is_empty()).then(|| String::from_utf8_lossy(line).into_owned()))
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.dir.rename(layout::AUDIT, &rotated()).map_err(io::Error::other)?;
        self.file = open_file(&self.dir, layout::AUDIT)?;
        self.size = 0;
        Ok(())
    }

    fn tail(&mut self) -> io::Result<Vec<u8>> {
        tail_of(&mut self.file)
    }

    #[cfg(test)]
    pub(super) fn swap(&mut self, file: File) -> File {
        std::mem::replace(&mut self.file, file)
    }
}

fn tail_of(file: &mut File) -> io::Result<Vec<u8>> {
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(LONGEST_LINE)))?;
    let mut tail = Vec::new();
    file.take(LONGEST_LINE).read_to_end(&mut tail)?;
    Ok(tail)
}

/// Opens or creates a file of `dir` for reading and appending: ours, 0600, no link.
pub(crate) fn open_file(dir: &Dir, name: &str) -> io::Result<File> {
    let log = dir.append(name).map_err(io::Error::other)?;
    Ok(log.as_fd().try_clone_to_owned()?.into())
}

fn rotated() -> String {
    format!("{}.1", layout::AUDIT)
}
