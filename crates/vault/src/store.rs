//! The store: records that anybody with the file may list, secrets that only its master key opens.

use crate::error::{Error, Result};
use crate::key::{Cost, MasterKey, Wrapped};
use crate::record::{self, Kind, Problem, Record, Secret, SshPublic};
use crate::{schema, seal};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};
use serde::Serialize;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use terok_kernel::statedir::{Dir, Hold, Lock};
use terok_policy::layout::VAULT_STORE;
use zeroize::Zeroizing;

/// Held, shared, by whoever has the store open, and alone by who puts another file in its place.
const IN_USE: &str = "in-use.lock";
/// A store that is being made.
const NEW: &str = ".vault.db.new";

const COLUMNS: &str =
    "id, kind, provider, name, revision, created, changed, expires, public, users, problem_at, problem";

/// An open vault. Every change is a transaction: when a method has returned, it is on the disk; when the process was killed within it, nothing of
/// it or all of it is.
pub struct Store {
    connection: Connection,
    head: Head,
    path: String,
    _in_use: Lock,
}

/// What a vault says of itself.
pub(crate) struct Head {
    pub(crate) id: String,
    created: u64,
    wrapped: Wrapped,
}

impl Head {
    pub(crate) fn unlock(&self, passphrase: &str) -> Result<MasterKey> {
        self.wrapped.open(&self.id, passphrase)
    }
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
        let path = schema::path(dir, VAULT_STORE)?;
        let exists = || Error::Exists { path: path.display().to_string() };
        if path.symlink_metadata().is_ok() {
            return Err(exists());
        }
        let mut id = [0; 16];
        seal::fill_random(&mut id)?;
        let id: String = id.iter().map(|octet| format!("{octet:02x}")).collect();
        let key = MasterKey::random(&id)?;
        let wrapped = Wrapped::new(&key, passphrase, cost)?;
        let alone = take(dir, Hold::Alone)?;
        if path.symlink_metadata().is_ok() {
            return Err(exists());
        }
        let new = schema::path(dir, NEW)?;
        let made = (|| {
            remove_with_logs(dir, NEW)?;
            make_file(&new)?;
            let connection = schema::make(&new)?;
            insert_vault(&connection, &id, now, &wrapped)
                .map_err(Error::database(&path.display().to_string()))?;
            connection.close().map_err(|(_, error)| Error::database(&path.display().to_string())(error))?;
            dir.rename(NEW, VAULT_STORE)?;
            sync_folder(dir)
        })();
        if made.is_err() {
            let _ = remove_with_logs(dir, NEW);
        }
        drop(alone);
        made?;
        Ok((Store::open(dir)?, key))
    }

    /// Opens the vault in `dir`. Secrets need its master key besides.
    pub fn open(dir: &Dir) -> Result<Self> {
        let path = schema::path(dir, VAULT_STORE)?;
        // Before anything is made in the folder of somebody who has no vault.
        if path.symlink_metadata().is_err() {
            return Err(Error::None { path: dir.path().join(VAULT_STORE).display().to_string() });
        }
        let in_use = take(dir, Hold::Shared)?;
        let connection = schema::open(&path)?;
        let path = path.display().to_string();
        let head = read_head(&connection, &path)?;
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
        let rows = statement.query_map([], |row| Ok(read_record(row))).map_err(&failed)?;
        let rows: Vec<_> = rows.collect::<rusqlite::Result<_>>().map_err(&failed)?;
        Ok(rows.into_iter().filter_map(Result::ok).collect())
    }

    /// The credential `name` of `provider`.
    pub fn credential(&self, provider: &str, name: &str) -> Result<Record> {
        self.find(provider, name)
    }

    /// The SSH key `name`.
    pub fn ssh_key(&self, name: &str) -> Result<Record> {
        self.find("", name)
    }

    fn find(&self, provider: &str, name: &str) -> Result<Record> {
        let select = format!("SELECT {COLUMNS} FROM record WHERE provider = ?1 AND name = ?2");
        self.connection
            .query_row(&select, [provider, name], |row| Ok(read_record(row)))
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
                    new.ssh.map(|ssh| users(&ssh.users)),
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
        let list = self::users(users);
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
                params![problem.at as i64, problem.reason, record.id, record.revision as i64],
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
            damaged.push(structure.lines().next().unwrap_or_default().to_owned());
        }
        let select = format!("SELECT {COLUMNS} FROM record ORDER BY provider, name");
        let mut statement = self.connection.prepare(&select).map_err(&failed)?;
        let mut rows = statement.query([]).map_err(&failed)?;
        while let Some(row) = rows.next().map_err(&failed)? {
            match read_record(row) {
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

    /// Writes all records with their secrets, plain, as JSON. The caller sees to it that nobody reads it who should not.
    pub fn export(&self, key: &MasterKey, out: &mut dyn Write) -> Result<()> {
        let mut records = Vec::new();
        for record in self.records()? {
            let secret = self.open_secret(key, &record)?;
            records.push(Exported { record, secret: secret.into() });
        }
        let written = serde_json::to_writer_pretty(&mut *out, &Export { vault: self.id(), records });
        written
            .map_err(std::io::Error::from)
            .and_then(|()| writeln!(out))
            .map_err(Error::file("write", "the export"))
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

#[derive(Serialize)]
struct Export<'a> {
    vault: &'a str,
    records: Vec<Exported>,
}

#[derive(Serialize)]
struct Exported {
    #[serde(flatten)]
    record: Record,
    secret: PlainSecret,
}

#[derive(Serialize)]
#[serde(untagged)]
enum PlainSecret {
    Key { key: Zeroizing<String> },
    Basic { user: String, password: Zeroizing<String> },
    OAuth { access: Zeroizing<String>, refresh: Option<Zeroizing<String>> },
    Ssh { private: Zeroizing<String> },
}

impl From<Secret> for PlainSecret {
    fn from(secret: Secret) -> Self {
        match secret {
            Secret::Key(key) => PlainSecret::Key { key },
            Secret::Basic { user, password } => PlainSecret::Basic { user, password },
            Secret::OAuth { access, refresh } => PlainSecret::OAuth { access, refresh },
            Secret::Ssh(private) => PlainSecret::Ssh { private },
        }
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

/// Takes the folder's store, waiting for who has it.
pub(crate) fn take(dir: &Dir, hold: Hold) -> Result<Lock> {
    dir.lock_file(IN_USE, hold, schema::PATIENCE).map_err(|error| match Error::from(error) {
        Error::Busy { .. } => Error::Busy { path: dir.path().join(VAULT_STORE).display().to_string() },
        error => error,
    })
}

/// An empty file that nobody else can read from its first moment on.
pub(crate) fn make_file(path: &std::path::Path) -> Result<std::fs::File> {
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
    let path = schema::path(dir, ".")?;
    std::fs::File::open(&path)
        .and_then(|folder| folder.sync_all())
        .map_err(Error::file("sync", path.display()))
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

fn insert_vault(connection: &Connection, id: &str, now: u64, wrapped: &Wrapped) -> rusqlite::Result<()> {
    let Wrapped { cost, salt, sealed } = wrapped;
    connection.execute(
        "INSERT INTO vault (one, id, created, memory, passes, lanes, salt, sealed) VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![id, now as i64, cost.memory, cost.passes, cost.lanes, salt, sealed],
    )?;
    Ok(())
}

pub(crate) fn read_head(connection: &Connection, path: &str) -> Result<Head> {
    let select = "SELECT id, created, memory, passes, lanes, salt, sealed FROM vault WHERE one = 1";
    let read = connection.query_row(select, [], |row| {
        let cost = Cost { memory: row.get(2)?, passes: row.get(3)?, lanes: row.get(4)? };
        let wrapped = Wrapped { cost, salt: row.get(5)?, sealed: row.get(6)? };
        Ok(Head { id: row.get(0)?, created: row.get::<_, i64>(1)? as u64, wrapped })
    });
    match read {
        Err(rusqlite::Error::SqliteFailure(..)) => read.map_err(Error::database(path)),
        read => read.map_err(|error| Error::Broken { path: path.into(), reason: error.to_string() }),
    }
}

fn read_record(row: &Row<'_>) -> Result<Record> {
    let id: i64 = row.get(0).unwrap_or_default();
    let damaged = || Error::Damaged {
        record: match (row.get::<_, String>(2), row.get::<_, String>(3)) {
            (Ok(provider), Ok(name)) => record::words(&provider, &name),
            _ => format!("record {id}"),
        },
    };
    let read = || -> rusqlite::Result<Option<Record>> {
        let Some(kind) = Kind::from_word(&row.get::<_, String>(1)?) else { return Ok(None) };
        let ssh = match (row.get::<_, Option<String>>(8)?, row.get::<_, Option<String>>(9)?) {
            (Some(public), Some(users)) => match serde_json::from_str(&users) {
                Ok(users) => Some(SshPublic { public, users }),
                Err(_) => return Ok(None),
            },
            _ => None,
        };
        let number = |at| row.get::<_, i64>(at).map(|number| number as u64);
        let problem = match (row.get::<_, Option<i64>>(10)?, row.get(11)?) {
            (Some(at), Some(reason)) => Some(Problem { at: at as u64, reason }),
            _ => None,
        };
        Ok(Some(Record {
            id,
            kind,
            provider: row.get(2)?,
            name: row.get(3)?,
            revision: number(4)?,
            created: number(5)?,
            changed: number(6)?,
            expires: row.get::<_, Option<i64>>(7)?.map(|at| at as u64),
            ssh,
            problem,
        }))
    };
    let record = read().ok().flatten().ok_or_else(damaged)?;
    match (record.kind == Kind::Ssh) == record.ssh.is_some() {
        true => Ok(record),
        false => Err(damaged()),
    }
}

fn users(users: &[String]) -> String {
    serde_json::Value::from(users).to_string()
}
