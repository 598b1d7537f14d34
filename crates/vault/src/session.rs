//! The session: the master key of an unlocked vault, in a file that only its user reads and that lies in memory (tmpfs), until its end.

use crate::error::{Error, Result};
use crate::key::MasterKey;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use terok_kernel::statedir::{Dir, Lock};
use terok_policy::layout::{SESSION, SESSION_KEY};
use zeroize::Zeroizing;

/// A session file is shorter.
const LIMIT: u64 = 4096;
/// How long another process that begins or ends a session is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a session file says.
#[derive(Debug)]
pub enum Session {
    /// The vault is unlocked.
    Unlocked {
        /// Opens its secrets.
        key: MasterKey,
        /// Unix seconds after which it is locked.
        until: u64,
    },
    /// It is locked.
    Locked(Locked),
}

/// Why it is locked, in words for a person.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Locked {
    /// Nobody unlocked it since the machine started, or somebody locked it.
    #[error("the vault is locked; run `terok vault unlock`")]
    Never,
    /// Its time is over.
    #[error("the vault's session has ended; run `terok vault unlock`")]
    Ended,
    /// It was unlocked, and then another vault put in its place.
    #[error("the vault is locked (the session belongs to the one before it); run `terok vault unlock`")]
    OtherVault,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    vault: String,
    key: Zeroizing<String>,
    until: u64,
}

/// Unlocks the vault of `key` until `until` (Unix seconds) for who may read `base`, the folder above the containers' runtime folders.
pub fn write(base: &Dir, key: &MasterKey, until: u64) -> Result<()> {
    let mut encoded = Zeroizing::new(String::with_capacity(64));
    BASE64_STANDARD.encode_string(key.bytes(), &mut encoded);
    let written = Written { vault: key.vault().into(), key: encoded, until };
    // Room for all of it, so that no shorter copy stays in memory.
    let mut text = Zeroizing::new(Vec::with_capacity(LIMIT as usize));
    serde_json::to_writer(&mut *text, &written).map_err(|error| Error::System(error.to_string()))?;
    let folder = base.make_private(SESSION)?;
    let _alone = alone(&folder)?;
    Ok(folder.write(SESSION_KEY, &text)?)
}

/// Whether vault `vault` ([`crate::Store::id`]) is unlocked at `now`.
pub fn read(base: &Dir, vault: &str, now: u64) -> Result<Session> {
    let Some(folder) = base.private(SESSION)? else { return Ok(Session::Locked(Locked::Never)) };
    let Some(text) = folder.read(SESSION_KEY, LIMIT)? else { return Ok(Session::Locked(Locked::Never)) };
    let text = Zeroizing::new(text);
    let Some((written, key)) = parse(&text) else {
        return Err(Error::Untrusted {
            path: folder.path().join(SESSION_KEY).display().to_string(),
            reason: "is not a session; run `terok vault lock` and `terok vault unlock`".into(),
        });
    };
    Ok(if written.vault != vault {
        Session::Locked(Locked::OtherVault)
    } else if written.until <= now {
        Session::Locked(Locked::Ended)
    } else {
        Session::Unlocked { key: MasterKey::new(vault, key), until: written.until }
    })
}

/// Removes a session whose time is over at `now`: it opens nothing, and the key in it would lie there for whoever reads the file. Whether there was one.
pub fn forget_ended(base: &Dir, now: u64) -> Result<bool> {
    let Some(folder) = base.private(SESSION)? else { return Ok(false) };
    // Another process may have begun a new one since this one looked.
    let _alone = alone(&folder)?;
    let text = Zeroizing::new(folder.read(SESSION_KEY, LIMIT)?.unwrap_or_default());
    let ended = parse(&text).is_some_and(|(written, _)| written.until <= now);
    if ended {
        folder.remove(SESSION_KEY)?;
    }
    Ok(ended)
}

fn alone(folder: &Dir) -> Result<Lock> {
    Ok(folder.lock(PATIENCE)?)
}

/// Locks. Whether there was a session.
pub fn remove(base: &Dir) -> Result<bool> {
    let Some(folder) = base.private(SESSION)? else { return Ok(false) };
    let there = folder.list()?.iter().any(|entry| entry.name == SESSION_KEY);
    folder.remove(SESSION_KEY)?;
    Ok(there)
}

fn parse(text: &[u8]) -> Option<(Written, Zeroizing<[u8; 32]>)> {
    let written: Written = serde_json::from_slice(text).ok()?;
    let mut key = Zeroizing::new([0; 32]);
    let length = BASE64_STANDARD.decode_slice(written.key.as_bytes(), &mut *key).ok()?;
    (length == key.len()).then_some((written, key))
}
