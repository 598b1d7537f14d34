//! The sealed store of real credentials and SSH keys, and the ways to unlock it (design §8).
//!
//! One SQLite file. Names and dates of records are readable; each secret is sealed on its own under a random master key, which is itself sealed under
//! a passphrase. The unlocked master key lies in a session file on tmpfs until its end: whoever reads it is the owner anyway.
//!
//! Paths, folders and the time of day are the caller's: nothing here looks at the environment or a clock.

pub mod attempt;
mod copies;
pub mod ephemeral;
mod error;
mod export;
mod files;
mod key;
pub mod known_hosts;
pub mod passphrase;
mod record;
mod revocation;
mod row;
mod schema;
mod seal;
pub mod session;
pub mod ssh_key;
mod store;
mod turn;

pub use copies::{BEFORE_RESTORE, Restore};
pub use error::{Error, Result};
pub use key::{Cost, MasterKey};
pub use record::{Kind, Problem, Record, SECRET_LIMIT, Secret, SshPublic};
pub use revocation::Revocation;
pub use store::{New, Store};
pub use terok_kernel::statedir::Dir;
pub use turn::Turn;

use std::path::Path;
use terok_policy::layout::{VAULT_ROOTFUL, VAULT_STORE, VAULT_USER};

/// A user's vault folder below `home`, made (0700) where there is none.
pub fn user_folder(home: &Path) -> Result<Dir> {
    let (above, name) = VAULT_USER.rsplit_once('/').unwrap_or((".", VAULT_USER));
    Ok(Dir::base(home)?.make_shared(above)?.make_private(name)?)
}

/// Root's vault folder, made (0700) where there is none.
pub fn machine_folder() -> Result<Dir> {
    let (above, name) = VAULT_ROOTFUL.rsplit_once('/').unwrap_or(("/", VAULT_ROOTFUL));
    Ok(Dir::base(Path::new(above))?.make_private(name)?)
}

/// The files of the vault in `folder`: the store and its write-ahead log. With every change of a record one of them changes by what stat tells; a
/// look changes neither, but that an empty log may come and go.
pub fn watched(folder: &Path) -> [std::path::PathBuf; 2] {
    [folder.join(VAULT_STORE), folder.join(format!("{VAULT_STORE}-wal"))]
}
