//! The database: how it is opened, what it must be, and the steps from one schema to the next.

use crate::error::{Error, Result, one_line};
use crate::files;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use std::path::Path;

/// `terk`: what `file` and SQLite's tools show as application id.
const APPLICATION: i32 = 0x7465_726b;

/// Each leads from the schema before it to its own, counted from 1. Never changed, only added to.
const STEPS: &[&str] = &[
    "
    CREATE TABLE vault (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        id TEXT NOT NULL,
        created INTEGER NOT NULL,
        memory INTEGER NOT NULL,
        passes INTEGER NOT NULL,
        lanes INTEGER NOT NULL,
        salt BLOB NOT NULL,
        sealed BLOB NOT NULL
    ) STRICT;
    CREATE TABLE record (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        kind TEXT NOT NULL,
        provider TEXT NOT NULL,
        name TEXT NOT NULL,
        revision INTEGER NOT NULL,
        created INTEGER NOT NULL,
        changed INTEGER NOT NULL,
        expires INTEGER,
        public TEXT,
        users TEXT,
        sealed BLOB NOT NULL,
        UNIQUE (provider, name)
    ) STRICT;
",
    // Why the last renewal failed, and when.
    "
    ALTER TABLE record ADD COLUMN problem_at INTEGER;
    ALTER TABLE record ADD COLUMN problem TEXT;
",
];

/// The newest schema.
pub(crate) const NEWEST: i64 = STEPS.len() as i64;

/// Opens the vault at `path`, brought to the newest schema.
pub(crate) fn open(path: &Path) -> Result<Connection> {
    let shown = path.display().to_string();
    if !files::check_file(path)? {
        return Err(Error::None { path: shown });
    }
    for suffix in ["-wal", "-shm"] {
        files::check_file(&files::beside(path, suffix))?;
    }
    let mut connection = connect(path, &shown)?;
    recognise(&connection, &shown)?;
    migrate(&mut connection, &shown)?;
    Ok(connection)
}

/// Makes the empty file at `path` a vault's database of the newest schema.
pub(crate) fn make(path: &Path) -> Result<Connection> {
    let shown = path.display().to_string();
    let failed = Error::database(&shown);
    let mut connection = connect(path, &shown)?;
    connection.pragma_update(None, "application_id", APPLICATION).map_err(&failed)?;
    connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())).map_err(&failed)?;
    migrate(&mut connection, &shown)?;
    Ok(connection)
}

/// Messages name it as `shown`. Nothing is written but in the file's own folder; every commit is on the disk before it returns; what is deleted is overwritten.
pub(crate) fn connect(path: &Path, shown: &str) -> Result<Connection> {
    let failed = Error::database(shown);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW
        | OpenFlags::SQLITE_OPEN_EXRESCODE;
    let connection = Connection::open_with_flags(path, flags).map_err(&failed)?;
    connection.busy_timeout(files::PATIENCE).map_err(&failed)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true).map_err(&failed)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false).map_err(&failed)?;
    for (name, value) in [
        ("synchronous", "full"),
        ("secure_delete", "on"),
        ("foreign_keys", "on"),
        ("cell_size_check", "on"),
        ("temp_store", "memory"),
    ] {
        connection.pragma_update(None, name, value).map_err(&failed)?;
    }
    Ok(connection)
}

pub(crate) fn recognise(connection: &Connection, shown: &str) -> Result<()> {
    let number = |name| {
        connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map_err(Error::database(shown))
    };
    let application = number("application_id")?;
    if application != i64::from(APPLICATION) {
        return Err(Error::Foreign {
            path: shown.into(),
            reason: format!("its application id is {application:#x}"),
        });
    }
    match number("user_version")? {
        found if found > NEWEST => Err(Error::Newer { path: shown.into(), found, known: NEWEST }),
        found if found < 1 => Err(Error::Foreign { path: shown.into(), reason: format!("schema {found}") }),
        _ => Ok(()),
    }
}

/// All steps in one transaction: a crash leaves the old schema or the new one.
pub(crate) fn migrate(connection: &mut Connection, shown: &str) -> Result<()> {
    let failed = Error::database(shown);
    let version = |connection: &Connection| {
        connection.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0)).map_err(&failed)
    };
    if version(connection)? == NEWEST {
        return Ok(());
    }
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&failed)?;
    // Another process may have done it while this one waited.
    let found = version(&transaction)?;
    for step in STEPS.iter().skip(found.max(0) as usize) {
        transaction.execute_batch(step).map_err(&failed)?;
    }
    transaction.pragma_update(None, "user_version", NEWEST.max(found)).map_err(&failed)?;
    transaction.commit().map_err(&failed)
}

/// Every page and index is sound, and there is nothing but what the steps up to its version make: no trigger, no view, no other table.
pub(crate) fn check_whole(connection: &Connection, shown: &str) -> Result<()> {
    let failed = Error::database(shown);
    let sound: String =
        connection.pragma_query_value(None, "integrity_check", |row| row.get(0)).map_err(&failed)?;
    if sound != "ok" {
        let reason = one_line(&sound);
        return Err(Error::Broken { path: shown.into(), reason });
    }
    let version: i64 =
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(&failed)?;
    let genuine = Connection::open_in_memory().map_err(&failed)?;
    for step in STEPS.iter().take(version as usize) {
        genuine.execute_batch(step).map_err(&failed)?;
    }
    match schema_of(connection).map_err(&failed)? == schema_of(&genuine).map_err(&failed)? {
        true => Ok(()),
        false => Err(Error::Foreign { path: shown.into(), reason: "its tables are not terok's".into() }),
    }
}

fn schema_of(connection: &Connection) -> rusqlite::Result<Vec<[Option<String>; 4]>> {
    let select = "SELECT type, name, tbl_name, sql FROM sqlite_schema ORDER BY type, name";
    let mut statement = connection.prepare(select)?;
    let rows = statement.query_map([], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?]))?;
    rows.collect()
}
