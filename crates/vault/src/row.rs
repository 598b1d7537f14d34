//! Rows of the database as values: what the vault says of itself, and its records.

use crate::error::{Error, Result, one_line};
use crate::key::{Cost, MasterKey, Wrapped};
use crate::record::{self, Kind, Problem, Record, SshPublic};
use rusqlite::{Connection, Row, params};

/// What a vault says of itself.
pub(crate) struct Head {
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) wrapped: Wrapped,
}

impl Head {
    pub(crate) fn unlock(&self, passphrase: &str) -> Result<MasterKey> {
        self.wrapped.open(&self.id, passphrase)
    }
}

/// What [`read_record`] reads.
pub(crate) const COLUMNS: &str =
    "id, kind, provider, name, revision, created, changed, expires, public, users, problem_at, problem";

/// Writes the row of a new vault.
pub(crate) fn insert_head(
    connection: &Connection,
    id: &str,
    now: u64,
    wrapped: &Wrapped,
) -> rusqlite::Result<()> {
    let Wrapped { cost, salt, sealed } = wrapped;
    connection.execute(
        "INSERT INTO vault (one, id, created, memory, passes, lanes, salt, sealed) VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![id, now as i64, cost.memory, cost.passes, cost.lanes, salt, sealed],
    )?;
    Ok(())
}

/// Reads the vault's own row.
pub(crate) fn read_head(connection: &Connection, path: &str) -> Result<Head> {
    let select = "SELECT id, created, memory, passes, lanes, salt, sealed FROM vault WHERE one = 1";
    let read = connection.query_row(select, [], |row| {
        let cost = Cost { memory: row.get(2)?, passes: row.get(3)?, lanes: row.get(4)? };
        let wrapped = Wrapped { cost, salt: row.get(5)?, sealed: row.get(6)? };
        Ok(Head { id: row.get(0)?, created: row.get::<_, i64>(1)? as u64, wrapped })
    });
    match read {
        Err(rusqlite::Error::SqliteFailure(..)) => read.map_err(Error::database(path)),
        read => {
            read.map_err(|error| Error::Broken { path: path.into(), reason: one_line(&error.to_string()) })
        }
    }
}

/// A record, or which one is damaged.
pub(crate) fn read_record(row: &Row<'_>) -> Result<Record> {
    let id: i64 = row.get(0).unwrap_or_default();
    let damaged = || Error::Damaged {
        record: match (row.get::<_, String>(2), row.get::<_, String>(3)) {
            (Ok(provider), Ok(name)) if are_names(&provider, &name) => record::words(&provider, &name),
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
    let fits = (record.kind == Kind::Ssh) == record.ssh.is_some()
        && (record.kind == Kind::Ssh) == record.provider.is_empty()
        && are_names(&record.provider, &record.name)
        && record.ssh.as_ref().is_none_or(is_plain)
        && !record.problem.as_ref().is_some_and(|problem| problem.reason.contains(char::is_control));
    if fits { Ok(record) } else { Err(damaged()) }
}

fn are_names(provider: &str, name: &str) -> bool {
    record::check_name(name).is_ok() && (provider.is_empty() || record::check_name(provider).is_ok())
}

/// Nothing in it moves a terminal's cursor.
pub(crate) fn is_plain(ssh: &SshPublic) -> bool {
    let mut texts = ssh.users.iter().chain([&ssh.public]);
    !texts.any(|text| text.is_empty() || text.contains(char::is_control))
}

/// As they are stored.
pub(crate) fn users(users: &[String]) -> String {
    serde_json::Value::from(users).to_string()
}
