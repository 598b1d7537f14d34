//! Copies of the store: made while it is in use, and put back in its place as a whole.

use crate::error::{Error, Result};
use crate::files::{self, beside};
use crate::key::MasterKey;
use crate::row::{self, Head};
use crate::schema;
use crate::store::Store;
use rusqlite::Connection;
use rusqlite::backup::Backup;
use std::io::Read;
use std::path::{Path, PathBuf};
use terok_kernel::statedir::{Dir, Hold, Lock};
use terok_policy::layout::VAULT_STORE;

/// What a restored copy has replaced.
pub const BEFORE_RESTORE: &str = "vault.db.before-restore";
/// A copy that is being looked at before it takes the store's place.
const STAGED: &str = ".vault.db.restore";
/// The store on its way to [`BEFORE_RESTORE`].
const LEAVING: &str = ".vault.db.leaving";
/// A store is smaller: thousands of records.
const LIMIT: u64 = 256 << 20;
/// A database's own file, and what SQLite puts beside it.
const LOGS: [&str; 4] = ["", "-journal", "-wal", "-shm"];

impl Store {
    /// Copies the store to the new file `to` (0600) as it is at one moment, while others go on using it. The copy's secrets are sealed, under the
    /// passphrase of that moment.
    pub fn backup(&self, to: &Path) -> Result<()> {
        let shown = to.display().to_string();
        let unfit = || Error::Unfit(format!("{shown} is no name of a file"));
        let folder = match to.parent().ok_or_else(unfit)? {
            folder if folder.as_os_str().is_empty() => Path::new("."),
            folder => folder,
        };
        let folder = folder.canonicalize().map_err(Error::file("find", folder.display()))?;
        let to = folder.join(to.file_name().ok_or_else(unfit)?);
        // In a folder where others may write, SQLite would take over a log or journal that somebody put there for it.
        for path in LOGS.map(|suffix| beside(&to, suffix)) {
            if path.symlink_metadata().is_ok() {
                return Err(Error::Exists { path: path.display().to_string() });
            }
        }
        files::make_file(&to)?;
        let copied = (|| {
            let failed = Error::database(&shown);
            let mut copy = schema::connect(&to, &shown)?;
            Backup::new(self.connection(), &mut copy)
                .and_then(|backup| backup.step(-1).map(drop))
                .map_err(&failed)?;
            // One file, without a log beside it, that can be read where nothing can be written.
            copy.pragma_update_and_check(None, "journal_mode", "delete", |_| Ok(())).map_err(&failed)?;
            copy.close().map_err(|(_, error)| failed(error))?;
            std::fs::File::open(&folder)
                .and_then(|folder| folder.sync_all())
                .map_err(Error::file("sync", folder.display()))
        })();
        if copied.is_err() {
            for path in LOGS.map(|suffix| beside(&to, suffix)) {
                let _ = std::fs::remove_file(path);
            }
        }
        copied
    }
}

/// A copy that was found to be a whole vault, ready to take the store's place.
pub struct Restore<'a> {
    dir: &'a Dir,
    staged: PathBuf,
    store: Head,
    _alone: Lock,
}

impl<'a> Restore<'a> {
    /// Takes a copy of the file `from` into `dir` and looks whether it is a vault of a known schema, whole, and with nothing in it that terok has
    /// not put there. The store in `dir` is not touched yet.
    pub fn new(dir: &'a Dir, from: &Path) -> Result<Self> {
        let alone = dir.lock(files::PATIENCE)?;
        files::remove_with_logs(dir, STAGED)?;
        let staged = files::path(dir, STAGED)?;
        let looked_at =
            stage(from, &staged).and_then(|()| look(&staged, from)).map_err(|error| match error {
                Error::Broken { path, reason } | Error::Foreign { path, reason } => Error::Unfit(format!(
                    "{path} is no whole copy of a vault ({reason}); nothing was changed"
                )),
                error => error,
            });
        match looked_at {
            Ok(store) => Ok(Restore { dir, staged, store, _alone: alone }),
            Err(error) => {
                let _ = files::remove_with_logs(dir, STAGED);
                Err(error)
            }
        }
    }

    /// Which vault the copy is of.
    pub fn id(&self) -> &str {
        &self.store.id
    }

    /// The copy's master key, by the passphrase it was made under.
    pub fn unlock(&self, passphrase: &str) -> Result<MasterKey> {
        self.store.unlock(passphrase)
    }

    /// Puts the copy in the store's place, which stays beside it as [`BEFORE_RESTORE`]. Waits for who has the store open.
    pub fn finish(self) -> Result<()> {
        let _in_use = files::take(self.dir, Hold::Alone)?;
        let path = files::path(self.dir, VAULT_STORE)?;
        let there = path.symlink_metadata().is_ok();
        if there && let Ok(old) = schema::connect(&path, VAULT_STORE) {
            let _ = old.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        }
        self.put_log_aside(&path)?;
        if there {
            // Two names for a moment, so that there is a store at every moment.
            self.dir.remove(LEAVING)?;
            let leaving = path.with_file_name(LEAVING);
            std::fs::hard_link(&path, &leaving).map_err(Error::file("link", leaving.display()))?;
            self.dir.rename(LEAVING, BEFORE_RESTORE)?;
            files::sync_folder(self.dir)?;
        }
        self.dir.rename(STAGED, VAULT_STORE)?;
        files::sync_folder(self.dir)
    }

    /// A log that SQLite could not put into its own file is kept beside it: SQLite would play it into any file of the store's name.
    fn put_log_aside(&self, path: &Path) -> Result<()> {
        let [log, kept] = [VAULT_STORE, BEFORE_RESTORE].map(|name| format!("{name}-wal"));
        self.dir.remove(&kept)?;
        match files::is_empty(&beside(path, "-wal")) {
            true => self.dir.remove(&log)?,
            false => self.dir.rename(&log, &kept)?,
        }
        Ok(self.dir.remove(&format!("{VAULT_STORE}-shm"))?)
    }
}

impl Drop for Restore<'_> {
    fn drop(&mut self) {
        for path in LOGS.map(|suffix| beside(&self.staged, suffix)) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Copies `from`, which is not opened as a database where it is: that could change it.
fn stage(from: &Path, staged: &Path) -> Result<()> {
    let shown = from.display();
    if !files::is_empty(&beside(from, "-wal")) {
        return Err(Error::Unfit(format!(
            "{shown} has a write-ahead log beside it ({shown}-wal), so it is no finished copy; make one with `terok vault backup`"
        )));
    }
    let file = std::fs::File::open(from).map_err(Error::file("open", shown))?;
    if !file.metadata().map_err(Error::file("stat", from.display()))?.is_file() {
        return Err(Error::Unfit(format!("{} is not a file", from.display())));
    }
    let mut copy = files::make_file(staged)?;
    let copied = std::io::copy(&mut file.take(LIMIT + 1), &mut copy)
        .and_then(|copied| copy.sync_all().map(|()| copied))
        .map_err(Error::file("copy", from.display()))?;
    match copied > LIMIT {
        true => Err(Error::Unfit(format!("{} is larger than any vault", from.display()))),
        false => Ok(()),
    }
}

/// Whether the staged copy of `from` is a vault. Messages name `from`.
fn look(staged: &Path, from: &Path) -> Result<Head> {
    let shown = from.display().to_string();
    let failed = Error::database(&shown);
    let mut connection = schema::connect(staged, &shown)?;
    schema::recognise(&connection, &shown)?;
    schema::check_whole(&connection, &shown)?;
    schema::migrate(&mut connection, &shown)?;
    connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())).map_err(&failed)?;
    let head = row::read_head(&connection, &shown)?;
    close(connection, &shown)?;
    Ok(head)
}

fn close(connection: Connection, shown: &str) -> Result<()> {
    connection.close().map_err(|(_, error)| Error::database(shown)(error))
}
