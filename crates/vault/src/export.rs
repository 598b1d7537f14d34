//! All that is in the vault, plain: for moving away from it.

use crate::error::{Error, Result};
use crate::key::MasterKey;
use crate::record::{Record, Secret};
use crate::store::Store;
use serde::Serialize;
use std::io::Write;
use zeroize::Zeroizing;

impl Store {
    /// Writes all records with their secrets, plain, as JSON. The caller sees to it that nobody reads it who should not.
    /// What is damaged is left out and returned in words: the rest is what there is to be saved.
    pub fn export(&self, key: &MasterKey, out: &mut dyn Write) -> Result<Vec<String>> {
        let mut records = Vec::new();
        for record in self.records()? {
            match self.open_secret(key, &record) {
                Ok(secret) => records.push(Exported { record, secret: secret.into() }),
                // Said below.
                Err(Error::Damaged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let damaged = self.damaged(Some(key))?;
        let export = Export { vault: self.id(), records, damaged: &damaged };
        let written = serde_json::to_writer_pretty(&mut *out, &export);
        written
            .map_err(std::io::Error::from)
            .and_then(|()| writeln!(out))
            .map_err(Error::file("write", "the export"))?;
        Ok(damaged)
    }
}

#[derive(Serialize)]
struct Export<'a> {
    vault: &'a str,
    records: Vec<Exported>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    damaged: &'a [String],
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
