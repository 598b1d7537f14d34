//! The master key, and how a passphrase keeps it: Argon2id stretches the passphrase, the result seals the key.

use crate::error::{Error, Result};
use crate::passphrase;
use crate::seal::{self, KEY_LENGTH};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use zeroize::{Zeroize, Zeroizing};

const SALT_LENGTH: usize = 16;

/// Opens every secret of one vault. Overwritten when dropped.
pub struct MasterKey {
    vault: String,
    key: Zeroizing<[u8; KEY_LENGTH]>,
}

/// Never the key.
impl std::fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MasterKey({})", self.vault)
    }
}

impl MasterKey {
    pub(crate) fn new(vault: &str, key: Zeroizing<[u8; KEY_LENGTH]>) -> Self {
        MasterKey { vault: vault.to_owned(), key }
    }

    /// A new one, for a new vault.
    pub(crate) fn random(vault: &str) -> Result<Self> {
        let mut key = Zeroizing::new([0; KEY_LENGTH]);
        seal::fill_random(&mut *key)?;
        Ok(MasterKey::new(vault, key))
    }

    /// Which vault it opens ([`crate::Store::id`]).
    pub fn vault(&self) -> &str {
        &self.vault
    }

    pub(crate) fn bytes(&self) -> &[u8; KEY_LENGTH] {
        &self.key
    }
}

/// What stretching a passphrase costs (RFC 9106 §3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Memory, KiB.
    pub memory: u32,
    /// Passes over it.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Default for Cost {
    /// 64 MiB three times (RFC 9106 §4, the second recommended option, in one lane): some tenths of a second.
    fn default() -> Self {
        Cost { memory: 64 * 1024, passes: 3, lanes: 1 }
    }
}

impl Cost {
    /// The least there is. For tests.
    pub const LEAST: Cost = Cost { memory: 8, passes: 1, lanes: 1 };

    /// A file that asks for more than this is not ours, and must not take the machine's memory.
    const MOST: Cost = Cost { memory: 1024 * 1024, passes: 100, lanes: 16 };

    fn parameters(self) -> Result<Params> {
        let unfit = || Error::System(format!("the vault's key cannot be stretched with {self:?}"));
        if self.memory > Self::MOST.memory || self.passes > Self::MOST.passes || self.lanes > Self::MOST.lanes
        {
            return Err(unfit());
        }
        Params::new(self.memory, self.passes, self.lanes, Some(KEY_LENGTH)).map_err(|_| unfit())
    }
}

/// A master key under a passphrase, as it is stored.
#[derive(Debug, Clone)]
pub(crate) struct Wrapped {
    pub(crate) cost: Cost,
    pub(crate) salt: Vec<u8>,
    pub(crate) sealed: Vec<u8>,
}

impl Wrapped {
    /// Keeps `key` under `passphrase`.
    pub(crate) fn new(key: &MasterKey, passphrase: &str, cost: Cost) -> Result<Self> {
        passphrase::check(passphrase)?;
        let mut salt = vec![0; SALT_LENGTH];
        seal::fill_random(&mut salt)?;
        let stretched = stretch(passphrase, &salt, cost)?;
        let sealed = seal::seal(&stretched, &identity(&key.vault, cost, &salt), key.bytes())?;
        Ok(Wrapped { cost, salt, sealed })
    }

    /// The key of `vault`.
    pub(crate) fn open(&self, vault: &str, passphrase: &str) -> Result<MasterKey> {
        let stretched = stretch(passphrase, &self.salt, self.cost)?;
        let identity = identity(vault, self.cost, &self.salt);
        let opened = seal::open(&stretched, &identity, &self.sealed).ok_or(Error::WrongPassphrase)?;
        let mut key = Zeroizing::new([0; KEY_LENGTH]);
        if opened.len() != KEY_LENGTH {
            return Err(Error::WrongPassphrase);
        }
        key.copy_from_slice(&opened);
        Ok(MasterKey::new(vault, key))
    }
}

fn identity(vault: &str, cost: Cost, salt: &[u8]) -> Vec<u8> {
    let Cost { memory, passes, lanes } = cost;
    let cost = [memory, passes, lanes].map(u32::to_le_bytes).concat();
    seal::identity(&[b"terok vault: master key", vault.as_bytes(), &cost, salt])
}

fn stretch(passphrase: &str, salt: &[u8], cost: Cost) -> Result<Zeroizing<[u8; KEY_LENGTH]>> {
    let failed = |error: argon2::Error| Error::System(format!("the passphrase cannot be stretched: {error}"));
    let parameters = cost.parameters()?;
    let mut memory: Vec<Block> = Vec::new();
    memory
        .try_reserve_exact(parameters.block_count())
        .map_err(|_| Error::System(format!("no memory to stretch the passphrase: {} KiB", cost.memory)))?;
    memory.resize(parameters.block_count(), Block::new());
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, parameters);
    let mut stretched = Zeroizing::new([0; KEY_LENGTH]);
    let done =
        argon2.hash_password_into_with_memory(passphrase.as_bytes(), salt, &mut *stretched, &mut memory);
    memory.iter_mut().for_each(Zeroize::zeroize);
    done.map_err(failed)?;
    Ok(stretched)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn argon2id_is_the_one_of_the_rfc() {
        // From OpenSSL, through Python: `Argon2id(salt, length=32, iterations=3, lanes=1, memory_cost=1024).derive(b"correct horse")`.
        let cost = Cost { memory: 1024, passes: 3, lanes: 1 };
        let stretched = stretch("correct horse", b"0123456789abcdef", cost).unwrap();
        let hex: String = stretched.iter().map(|octet| format!("{octet:02x}")).collect();
        assert_eq!(hex, EXPECTED);
    }
    const EXPECTED: &str = "7879645409224416c7fb41bc02819d5d41b9cd146cf501794daf608db30fcd57";

    #[test]
    fn a_wrapped_key_opens_with_its_passphrase_for_its_vault_only() {
        let key = MasterKey::random("a").unwrap();
        let wrapped = Wrapped::new(&key, "correct horse", Cost::LEAST).unwrap();
        assert_eq!(wrapped.open("a", "correct horse").unwrap().bytes(), key.bytes());
        assert!(matches!(wrapped.open("a", "correct horsf"), Err(Error::WrongPassphrase)));
        assert!(matches!(wrapped.open("b", "correct horse"), Err(Error::WrongPassphrase)));
        let cheaper = Wrapped { cost: Cost { passes: 2, ..wrapped.cost }, ..wrapped.clone() };
        assert!(matches!(cheaper.open("a", "correct horse"), Err(Error::WrongPassphrase)));
    }

    #[test]
    fn a_cost_that_would_take_the_machine_is_refused() {
        for cost in [
            Cost { memory: u32::MAX, passes: 1, lanes: 1 },
            Cost { memory: 8, passes: u32::MAX, lanes: 1 },
            Cost { memory: 8, passes: 1, lanes: 10_000 },
            Cost { memory: 0, passes: 0, lanes: 0 },
        ] {
            assert!(stretch("correct horse", &[0; 16], cost).is_err(), "{cost:?}");
        }
    }

    #[test]
    fn debug_never_shows_a_key() {
        let key = MasterKey::random("a").unwrap();
        assert_eq!(format!("{key:?}"), "MasterKey(a)");
    }
}
