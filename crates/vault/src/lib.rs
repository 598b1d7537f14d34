//! The sealed store of real credentials and SSH keys, and the ways to unlock it (design §8).
//!
//! One SQLite file. Names and dates of records are readable; each secret is sealed on its own under a random master key, which is itself sealed under
//! a passphrase. The unlocked master key lies in a session file on tmpfs until its end: whoever reads it is the owner anyway.

pub mod ephemeral;
mod record;
pub mod ssh_key;

pub use record::{Kind, Record, Secret};
