//! The store: records that anybody with the file may list, secrets that only its master key opens.

use crate::error::{Error, Result, one_line};
use crate::key::{Cost, MasterKey, Wrapped};
use crate::record::{self, Kind, Problem, Record, Secret, SshPublic};
use crate::row::{self, COLUMNS, Head};
use crate::{files, schema, seal};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use terok_kernel::statedir::{Dir, Hold, Lock};
use terok_policy::layout::VAULT_STORE;

/// A store that is being made.
const NEW: &str = ".vault.db.new";

/// An open vault. Every change is a transaction: when a method has returned, it is on the disk; when the process was killed within it, nothing of
/// it or all of it is.
pub struct Store {
    connection: Connection,
    head: Head,
    path: String,
    _in_use: Lock,
}

/// A record to add.
#[derive(Debug, Clone)]
pub struct New<'a> {
    /// The provider; empty for an SSH key.
    pub provider: &'a str,
    /// Its name.
    pub name: &'a str,
    /// The secret.
    pub secret: &'a Secret,
    /// End of an OAuth access token, Unix seconds.
    pub expires: Option<u64>,
    /// The readable part of an SSH key.
    pub ssh: Option<&'a SshPublic>,
}

impl Store {
    /// Makes a vault in `dir` (0700), with a new master key under `passphrase`. One that is there is left as it is.
    pub fn create(dir: &Dir, passphrase: &str, cost: Cost, now: u64) -> Result<(Self, MasterKey)> {
        let path = files::path(dir, VAULT_STORE)?;
        let exists = || Error::Exists { path: path.display().to_string() };
        if path.symlink_metadata().is_ok() {
            return Err(exists());
        }
        let mut id = [0; 16];
        seal::fill_random(&mut id)?;
        let id: String = id.iter().map(|octet| format!("{octet:02x}")).collect();
        let key = MasterKey::random(&id)?;
        let wrapped = Wrapped::new(&key, passphrase, cost)?;
        let alone = files::take(dir, Hold::Alone)?;
        if path.symlink_metadata().is_ok() {
            return Err(exists());
        }
        let log = files::beside(&path, "-wal");
        if !files::is_empty(&log) {
            return Err(Error::Untrusted {
                path: log.display().to_string(),
                reason: "is the log of a vault that was moved away, perhaps with its last changes; put the vault back, or remove this file".into(),
            });
        }
        let new = files::path(dir, NEW)?;
        let made = (|| {
            files::remove_with_logs(dir, NEW)?;
            files::make_file(&new)?;
            let connection = schema::make(&new)?;
            row::insert_head(&connection, &id, now, &wrapped)
                .map_err(Error::database(&path.display().to_string()))?;
            connection.close().map_err(|(_, error)| Error::database(&path.display().to_string())(error))?;
            dir.rename(NEW, VAULT_STORE)?;
            files::sync_folder(dir)
        })();
        if made.is_err() {
            let _ = files::remove_with_logs(dir, NEW);
        }
        drop(alone);
        made?;
        Ok((Store::open(dir)?, key))
    }

    /// Opens the vault in `dir`. Secrets need its master key besides.
    pub fn open(dir: &Dir) -> Result<Self> {
        let path = files::path(dir, VAULT_STORE)?;
        // Before anything is made in the folder of somebody who has no vault.
        if path.symlink_metadata().is_err() {
            return Err(Error::None { path: dir.path().join(VAULT_STORE).display().to_string() });
        }
        let in_use = files::take(dir, Hold::Shared)?;
        let connection = schema::open(&path)?;
        let path = path.display().to_string();
        let head = row::read_head(&connection, &path)?;
        Ok(Store { connection, head, path, _in_use: in_use })
    }

    /// Which vault it is: random, made with it, kept by its backups.
    pub fn id(&self) -> &str {
        &self.head.id
    }

    /// When it was made, Unix seconds.
    pub fn created(&self) -> u64 {
        self.head.created
    }

    /// What its passphrase costs to try.
    pub fn cost(&self) -> Cost {
        self.head.wrapped.cost
    }

    /// The master key, by passphrase.
    pub fn unlock(&self, passphrase: &str) -> Result<MasterKey> {
        self.head.unlock(passphrase)
    }

    /// Puts the master key under another passphrase. The key stays: sessions and whoever has it open notice nothing.
    pub fn change_passphrase(&mut self, key: &MasterKey, passphrase: &str, cost: Cost) -> Result<()> {
        self.check_key(key)?;
        let wrapped = Wrapped::new(key, passphrase, cost)?;
        self.write(|transaction| {
            transaction.execute(
                "UPDATE vault SET memory = ?1, passes = ?2, lanes = ?3, salt = ?4, sealed = ?5",
                params![cost.memory, cost.passes, cost.lanes, wrapped.salt, wrapped.sealed],
            )?;
            Ok(())
        })?;
        self.head.wrapped = wrapped;
        self.forget_old_pages();
        Ok(())
    }

    /// All records, by provider and name. One whose readable part is damaged is left out here and named by [`Store::damaged`].
    pub fn records(&self) -> Result<Vec<Record>> {
        let failed = Error::database(&self.path);
        let select = format!("SELECT {COLUMNS} FROM record ORDER BY provider, name");
        let mut statement = self.connection.prepare(&select).map_err(&failed)?;
        let rows = statement.query_map([], |row| Ok(row::read_record(row))).map_err(&failed)?;
        let rows: Vec<_> = rows.collect::<rusqlite::Result<_>>().map_err(&failed)?;
        Ok(rows.into_iter().filter_map(Result::ok).collect())
    }

    /// The credential `name` of `provider`.
    pub fn credential(&self, provider: &str, name: &str) -> Result<Record> {
        self.find(provider, name)
    }

    /// The credential `name` of `provider` with its secret, as they stand together: another process may change them between two questions.
    pub fn open_credential(&self, key: &MasterKey, provider: &str, name: &str) -> Result<(Record, Secret)> {
        // Ends with what it has read; nothing is written.
        let _snapshot = self.connection.unchecked_transaction().map_err(Error::database(&self.path))?;
        let record = self.credential(provider, name)?;
        let secret = self.open_secret(key, &record)?;
        Ok((record, secret))
    }

    /// The SSH key `name`.
    pub fn ssh_key(&self, name: &str) -> Result<Record> {
        self.find("", name)
    }

    fn find(&self, provider: &str, name: &str) -> Result<Record> {
        let select = format!("SELECT {COLUMNS} FROM record WHERE provider = ?1 AND name = ?2");
        self.connection
            .query_row(&select, [provider, name], |row| Ok(row::read_record(row)))
            .optional()
            .map_err(Error::database(&self.path))?
            .unwrap_or_else(|| Err(Error::Absent { record: record::words(provider, name) }))
    }

    /// The secret of a record.
    pub fn open_secret(&self, key: &MasterKey, record: &Record) -> Result<Secret> {
        self.check_key(key)?;
        let sealed: Option<(i64, Vec<u8>)> = self
            .connection
            .query_row("SELECT revision, sealed FROM record WHERE id = ?1", [record.id], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()
            .map_err(Error::database(&self.path))?;
        let (revision, sealed) = sealed.ok_or_else(|| Error::Absent { record: record.words() })?;
        if revision as u64 != record.revision {
            return Err(Error::Changed { record: record.words() });
        }
        seal::open(key.bytes(), &identity(&self.head.id, record), &sealed)
            .and_then(|opened| Secret::decode(&record.kind, &opened))
            .ok_or_else(|| Error::Damaged { record: record.words() })
    }

    /// Adds a record.
    pub fn add(&mut self, key: &MasterKey, new: &New<'_>, now: u64) -> Result<Record> {
        self.check_key(key)?;
        record::check_name(new.name)?;
        let kind = new.secret.kind();
        if kind == Kind::Ssh {
            if !new.provider.is_empty() || new.ssh.is_none() {
                return Err(Error::Unfit("an SSH key has a public key and no provider".into()));
            }
            if new.ssh.is_some_and(|ssh| !row::is_plain(ssh)) {
                return Err(Error::Unfit("a public key and its users are on one line each".into()));
            }
        } else {
            record::check_name(new.provider)?;
        }
        let encoded = new.secret.encode()?;
        let id = self.head.id.clone();
        let words = record::words(new.provider, new.name);
        let added = self.write(|transaction| {
            let there: bool = transaction.query_row(
                "SELECT EXISTS (SELECT 1 FROM record WHERE provider = ?1 AND name = ?2)",
                [new.provider, new.name],
                |row| row.get(0),
            )?;
            if there {
                return Ok(None);
            }
            // The number is part of what the secret is sealed for, and known only once the row is there.
            transaction.execute(
                "INSERT INTO record (kind, provider, name, revision, created, changed, expires, public, users, sealed)
                 VALUES (?1, ?2, ?3, 1, ?4, ?4, ?5, ?6, ?7, x'')",
                params![
                    kind.word(),
                    new.provider,
                    new.name,
                    now as i64,
                    new.expires.map(|at| at as i64),
                    new.ssh.map(|ssh| &ssh.public),
                    new.ssh.map(|ssh| row::users(&ssh.users)),
                ],
            )?;
            let record = Record {
                id: transaction.last_insert_rowid(),
                kind: kind.clone(),
                provider: new.provider.into(),
                name: new.name.into(),
                revision: 1,
                created: now,
                changed: now,
                expires: new.expires,
                ssh: new.ssh.cloned(),
                problem: None,
            };
            let sealed = seal::seal(key.bytes(), &identity(&id, &record), &encoded)?;
            transaction.execute("UPDATE record SET sealed = ?1 WHERE id = ?2", params![sealed, record.id])?;
            Ok(Some(record))
        })?;
        added.ok_or(Error::Taken { record: words })
    }

    /// Gives a record another secret, unless somebody has changed it since `record` was read. It may be of another type; an SSH key stays one.
    pub fn replace_secret(
        &mut self,
        key: &MasterKey,
        record: &Record,
        secret: &Secret,
        expires: Option<u64>,
        now: u64,
    ) -> Result<Record> {
        self.check_key(key)?;
        if (secret.kind() == Kind::Ssh) || (record.kind == Kind::Ssh) {
            return Err(Error::Unfit("an SSH key is not changed: remove it and add another".into()));
        }
        let replaced = Record {
            kind: secret.kind(),
            revision: record.revision + 1,
            changed: now,
            expires,
            problem: None,
            ..record.clone()
        };
        let sealed = seal::seal(key.bytes(), &identity(&self.head.id, &replaced), &secret.encode()?)?;
        let done = self.write(|transaction| {
            Ok(transaction.execute(
                "UPDATE record SET kind = ?1, revision = ?2, changed = ?3, expires = ?4, sealed = ?5, problem_at = NULL, problem = NULL
                 WHERE id = ?6 AND revision = ?7",
                params![
                    replaced.kind.word(),
                    replaced.revision as i64,
                    now as i64,
                    expires.map(|at| at as i64),
                    sealed,
                    record.id,
                    record.revision as i64,
                ],
            )?)
        })?;
        match done {
            0 => Err(self.why_not(record)),
            _ => Ok(replaced),
        }
    }

    /// The users whose logins an SSH key signs; any where empty.
    pub fn set_ssh_users(&mut self, record: &Record, users: &[String]) -> Result<()> {
        if users.iter().any(|user| user.is_empty() || user.contains(char::is_control)) {
            return Err(Error::Unfit("a user has a name, on one line".into()));
        }
        let list = row::users(users);
        let done = self.write(|transaction| {
            let update = "UPDATE record SET users = ?1 WHERE id = ?2 AND kind = 'ssh'";
            Ok(transaction.execute(update, params![list, record.id])?)
        })?;
        match done {
            0 => Err(Error::Absent { record: record.words() }),
            _ => Ok(()),
        }
    }

    /// Notes why a renewal failed; a new secret clears it. Says nothing where the record has changed since: the failure is history.
    pub fn set_problem(&mut self, record: &Record, problem: &Problem) -> Result<()> {
        self.write(|transaction| {
            transaction.execute(
                "UPDATE record SET problem_at = ?1, problem = ?2 WHERE id = ?3 AND revision = ?4",
                params![problem.at as i64, one_line(&problem.reason), record.id, record.revision as i64],
            )?;
            Ok(())
        })
    }

    /// Removes a record and overwrites its secret. Needs no key: who may write the file can.
    pub fn remove(&mut self, record: &Record) -> Result<()> {
        let done = self
            .write(|transaction| Ok(transaction.execute("DELETE FROM record WHERE id = ?1", [record.id])?))?;
        self.forget_old_pages();
        match done {
            0 => Err(Error::Absent { record: record.words() }),
            _ => Ok(()),
        }
    }

    /// As [`Store::remove`], for one that may be damaged; an SSH key has no provider. Whether there was one.
    pub fn remove_named(&mut self, provider: &str, name: &str) -> Result<bool> {
        let delete = "DELETE FROM record WHERE provider = ?1 AND name = ?2";
        let done = self.write(|transaction| Ok(transaction.execute(delete, [provider, name])?))?;
        self.forget_old_pages();
        Ok(done > 0)
    }

    /// What is damaged, in words: the database's structure, records whose readable part is no record, and with `key` each secret that does not open.
    pub fn damaged(&self, key: Option<&MasterKey>) -> Result<Vec<String>> {
        let failed = Error::database(&self.path);
        let mut damaged = Vec::new();
        let structure: String =
            self.connection.pragma_query_value(None, "quick_check", |row| row.get(0)).map_err(&failed)?;
        if structure != "ok" {
            damaged.push(one_line(&structure));
        }
        let select = format!("SELECT {COLUMNS} FROM record ORDER BY provider, name");
        let mut statement = self.connection.prepare(&select).map_err(&failed)?;
        let mut rows = statement.query([]).map_err(&failed)?;
        while let Some(row) = rows.next().map_err(&failed)? {
            match row::read_record(row) {
                Err(error) => damaged.push(error.to_string()),
                Ok(record) => {
                    let Some(key) = key else { continue };
                    if let Err(error) = self.open_secret(key, &record) {
                        damaged.push(error.to_string());
                    }
                }
            }
        }
        Ok(damaged)
    }

    pub(crate) fn connection(&self) -> &Connection {
        &self.connection
    }

    fn check_key(&self, key: &MasterKey) -> Result<()> {
        match key.vault() == self.head.id {
            true => Ok(()),
            false => Err(Error::OtherVault),
        }
    }

    /// Why no row fitted.
    fn why_not(&self, record: &Record) -> Error {
        match self.find(&record.provider, &record.name) {
            Err(error) => error,
            Ok(_) => Error::Changed { record: record.words() },
        }
    }

    /// One transaction, which has the right to write from its beginning: what it reads nobody changes before its end.
    fn write<T>(&mut self, change: impl FnOnce(&Transaction<'_>) -> Result<T, Change>) -> Result<T> {
        let failed = Error::database(&self.path);
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&failed)?;
        let done = change(&transaction).map_err(|error| match error {
            Change::Database(error) => failed(error),
            Change::Refused(error) => error,
        })?;
        transaction.commit().map_err(&failed)?;
        Ok(done)
    }

    /// Takes what was overwritten out of the write-ahead log too, if nobody reads it just now; else the last one to close does.
    fn forget_old_pages(&self) {
        let _ = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
    }
}

/// Why a transaction was not finished.
enum Change {
    Database(rusqlite::Error),
    Refused(Error),
}

impl From<rusqlite::Error> for Change {
    fn from(error: rusqlite::Error) -> Self {
        Change::Database(error)
    }
}
impl From<Error> for Change {
    fn from(error: Error) -> Self {
        Change::Refused(error)
    }
}

/// What a record's secret is sealed for: it opens in no other place, and no older one in its place.
fn identity(vault: &str, record: &Record) -> Vec<u8> {
    seal::identity(&[
        b"terok vault: record",
        vault.as_bytes(),
        &record.id.to_le_bytes(),
        record.kind.word().as_bytes(),
        record.provider.as_bytes(),
        record.name.as_bytes(),
        &record.revision.to_le_bytes(),
    ])
}
