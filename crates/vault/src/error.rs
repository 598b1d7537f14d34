//! What can be wrong with a vault, each in one line that says what to do. No message holds a secret.

use rusqlite::ErrorCode;

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why the vault did not do it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No store in the folder.
    #[error("no vault at {path}; make one with `terok vault init`")]
    None {
        /// Where it would be.
        path: String,
    },
    /// A store is there already.
    #[error("{path} is there already; it is left as it is")]
    Exists {
        /// The file.
        path: String,
    },
    /// Folder or file that others may use, or that is not what it should be.
    #[error("{path}: {reason}")]
    Untrusted {
        /// The file or folder.
        path: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// Some other file.
    #[error(
        "{path} is not a vault of terok ({reason}); move it away, or put a backup in its place with `terok vault restore FILE`"
    )]
    Foreign {
        /// The file.
        path: String,
        /// What was found.
        reason: String,
    },
    /// Made by a later version of terok.
    #[error("{path} was made by a newer terok (schema {found}, this one knows up to {known}): update terok")]
    Newer {
        /// The file.
        path: String,
        /// Its schema.
        found: i64,
        /// The newest one known here.
        known: i64,
    },
    /// The database itself is broken.
    #[error("{path} is damaged ({reason}); put a backup in its place with `terok vault restore FILE`")]
    Broken {
        /// The file.
        path: String,
        /// What SQLite found.
        reason: String,
    },
    /// Wrong passphrase.
    #[error("wrong passphrase")]
    WrongPassphrase,
    /// A passphrase that is not taken.
    #[error("the passphrase {0}")]
    Passphrase(String),
    /// A key of another vault: the session is older than a restored or new store.
    #[error("the session belongs to another vault; run `terok vault lock` and `terok vault unlock`")]
    OtherVault,
    /// One record does not open; the others do.
    #[error(
        "{record} is damaged in the vault and cannot be opened; remove it and add it again (other records are not affected)"
    )]
    Damaged {
        /// The record, in words.
        record: String,
    },
    /// No such record.
    #[error("no {record} in the vault; `terok vault list` shows what is there")]
    Absent {
        /// The record, in words.
        record: String,
    },
    /// The name is in use.
    #[error("{record} is in the vault already; remove it first, or choose another name")]
    Taken {
        /// The record, in words.
        record: String,
    },
    /// Somebody else changed the record since it was read.
    #[error("{record} was changed by another process meanwhile; look at it and try again")]
    Changed {
        /// The record, in words.
        record: String,
    },
    /// Something that cannot be a record.
    #[error("{0}")]
    Unfit(String),
    /// An SSH key that is not taken.
    #[error("SSH key: {0}")]
    SshKey(String),
    /// Another process holds it for too long.
    #[error("{path} is in use by another process; try again")]
    Busy {
        /// What was waited for.
        path: String,
    },
    /// No room.
    #[error("no room on the disk for {path}; nothing was changed: make room and try again")]
    Full {
        /// The file.
        path: String,
    },
    /// A file that cannot be read or written.
    #[error("{action} {path}: {error}")]
    File {
        /// `read`, `write`, …
        action: &'static str,
        /// The file.
        path: String,
        /// The system's answer.
        error: std::io::Error,
    },
    /// The system gave no random numbers, or no memory for a key.
    #[error("{0}")]
    System(String),
    /// What SQLite says beside all that.
    #[error("{path}: {reason}")]
    Database {
        /// The file.
        path: String,
        /// SQLite's answer.
        reason: String,
    },
}

impl Error {
    /// For `map_err` behind a call of SQLite on the file `path`.
    pub(crate) fn database(path: &str) -> impl Fn(rusqlite::Error) -> Error + '_ {
        move |error| {
            let path = path.to_owned();
            let reason = one_line(&error.to_string());
            let rusqlite::Error::SqliteFailure(failure, _) = &error else {
                return Error::Database { path, reason };
            };
            match failure.code {
                ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Error::Busy { path },
                ErrorCode::DiskFull => Error::Full { path },
                // What a write-ahead log and its index report where the disk is full.
                ErrorCode::SystemIoFailure if is_write(failure.extended_code) => Error::Full { path },
                ErrorCode::DatabaseCorrupt => Error::Broken { path, reason },
                ErrorCode::NotADatabase => Error::Foreign { path, reason },
                _ => Error::Database { path, reason },
            }
        }
    }

    /// For `map_err` behind a call on a file.
    pub(crate) fn file(
        action: &'static str,
        path: impl std::fmt::Display,
    ) -> impl FnOnce(std::io::Error) -> Error {
        move |error| match error.kind() {
            std::io::ErrorKind::StorageFull => Error::Full { path: path.to_string() },
            _ => Error::File { action, path: path.to_string(), error },
        }
    }
}

/// `text` as the end of one line: what stands in a damaged file must not move a terminal's cursor.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().take(500).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn is_write(extended: i32) -> bool {
    use rusqlite::ffi;
    matches!(extended, ffi::SQLITE_IOERR_WRITE | ffi::SQLITE_IOERR_SHMSIZE | ffi::SQLITE_IOERR_TRUNCATE)
}

impl From<terok_kernel::Error> for Error {
    fn from(error: terok_kernel::Error) -> Self {
        match error {
            terok_kernel::Error::Untrusted { path, reason } => Error::Untrusted { path, reason },
            terok_kernel::Error::Call { call, subject, errno } => {
                let io = std::io::Error::from(errno);
                match io.kind() {
                    std::io::ErrorKind::StorageFull => Error::Full { path: subject },
                    std::io::ErrorKind::WouldBlock => Error::Busy { path: subject },
                    _ => Error::File { action: call, path: subject, error: io },
                }
            }
            error => Error::System(error.to_string()),
        }
    }
}
