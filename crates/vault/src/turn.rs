//! One at a time for each record: who renews a credential holds its turn, so that a refresh token is used once.

use crate::error::{Error, Result};
use crate::record::Record;
use std::time::Duration;
use terok_kernel::statedir::{Dir, Hold, Lock};

/// The right to renew one record, among all processes. Ends when dropped and with the process, however it ends.
#[derive(Debug)]
pub struct Turn {
    _lock: Lock,
}

impl Turn {
    /// Waits at most `limit` for the turn at `record` of the vault in `dir`. Read the record again afterwards: who had the turn before may have
    /// renewed it.
    pub fn take(dir: &Dir, record: &Record, limit: Duration) -> Result<Self> {
        let lock = dir.lock_file(&format!("record-{}.lock", record.id), Hold::Alone, limit);
        lock.map(|lock| Turn { _lock: lock }).map_err(|error| match Error::from(error) {
            Error::Busy { .. } => Error::Busy { path: record.words() },
            error => error,
        })
    }
}
