//! Copies of the store: made while it is in use, and put back in its place as a whole.

use crate::error::{Error, Result};
use crate::key::MasterKey;
use crate::schema::{self, beside};
use crate::store::{self, Store};
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
        if to.symlink_metadata().is_ok() {
            return Err(Error::Exists { path: shown });
        }
        store::make_file(&to)?;
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
            for suffix in ["", "-journal", "-wal", "-shm"] {
                let _ = std::fs::remove_file(beside(&to, suffix));
            }
        }
        copied
    }
}

/// A copy that was found to be a whole vault, ready to take the store's place.
pub struct Restore<'a> {
    dir: &'a Dir,
    staged: PathBuf,
    store: store::Head,
    _alone: Lock,
}

impl<'a> Restore<'a> {
    /// Takes a copy of the file `from` into `dir` and looks whether it is a vault of a known schema, whole, and with nothing in it that terok has
    /// not put there. The store in `dir` is not touched yet.
    pub fn new(dir: &'a Dir, from: &Path) -> Result<Self> {
        let alone = dir.lock(schema::PATIENCE)?;
        store::remove_with_logs(dir, STAGED)?;
        let staged = schema::path(dir, STAGED)?;
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
                let _ = store::remove_with_logs(dir, STAGED);
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
        let _in_use = store::take(self.dir, Hold::Alone)?;
        let path = schema::path(self.dir, VAULT_STORE)?;
        if path.symlink_metadata().is_ok() {
            self.retire(&path)?;
        }
        self.dir.rename(STAGED, VAULT_STORE)?;
        store::sync_folder(self.dir)
    }

    /// What the old store's log holds goes into it, or beside it where that cannot be done: SQLite would play a log into any file of the store's name.
    fn retire(&self, path: &Path) -> Result<()> {
        if let Ok(old) = schema::connect(path, VAULT_STORE) {
            let _ = old.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        }
        let log = format!("{VAULT_STORE}-wal");
        self.dir.remove(LEAVING)?;
        self.dir.remove(&format!("{BEFORE_RESTORE}-wal"))?;
        match beside(path, "-wal").symlink_metadata() {
            Ok(found) if found.len() > 0 => self.dir.rename(&log, &format!("{BEFORE_RESTORE}-wal"))?,
            _ => self.dir.remove(&log)?,
        }
        self.dir.remove(&format!("{VAULT_STORE}-shm"))?;
        // Two names for a moment, so that there is a store at every moment.
        let leaving = path.with_file_name(LEAVING);
        std::fs::hard_link(path, &leaving).map_err(Error::file("link", leaving.display()))?;
        self.dir.rename(LEAVING, BEFORE_RESTORE)?;
        store::sync_folder(self.dir)
    }
}

impl Drop for Restore<'_> {
    fn drop(&mut self) {
        for suffix in ["", "-wal", "-shm", "-journal"] {
            let _ = std::fs::remove_file(beside(&self.staged, suffix));
        }
    }
}

/// Copies `from`, which is not opened as a database where it is: that could change it.
fn stage(from: &Path, staged: &Path) -> Result<()> {
    let shown = from.display();
    if beside(from, "-wal").metadata().is_ok_and(|log| log.len() > 0) {
        return Err(Error::Unfit(format!(
            "{shown} has a write-ahead log beside it ({shown}-wal), so it is no finished copy; make one with `terok vault backup`"
        )));
    }
    let file = std::fs::File::open(from).map_err(Error::file("open", shown))?;
    if !file.metadata().map_err(Error::file("stat", from.display()))?.is_file() {
        return Err(Error::Unfit(format!("{} is not a file", from.display())));
    }
    let mut copy = store::make_file(staged)?;
    let copied = std::io::copy(&mut file.take(LIMIT + 1), &mut copy)
        .and_then(|copied| copy.sync_all().map(|()| copied))
        .map_err(Error::file("copy", from.display()))?;
    match copied > LIMIT {
        true => Err(Error::Unfit(format!("{} is larger than any vault", from.display()))),
        false => Ok(()),
    }
}

/// Whether the staged copy of `from` is a vault. Messages name `from`.
fn look(staged: &Path, from: &Path) -> Result<store::Head> {
    let shown = from.display().to_string();
    let failed = Error::database(&shown);
    let mut connection = schema::connect(staged, &shown)?;
    schema::recognise(&connection, &shown)?;
    schema::check_whole(&connection, &shown)?;
    schema::migrate(&mut connection, &shown)?;
    connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())).map_err(&failed)?;
    let head = store::read_head(&connection, &shown)?;
    close(connection, &shown)?;
    Ok(head)
}

fn close(connection: Connection, shown: &str) -> Result<()> {
    connection.close().map_err(|(_, error)| Error::database(shown)(error))
}
