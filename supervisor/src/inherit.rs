//! What the supervisor is born with: its configuration at descriptor 3 and the descriptors that it lists, from 4 on. The
//! worker gets the same from the parent, without what only the parent may hold and with two lines at the end: to the parent, and from the vault.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use terok_kernel::statedir::Dir;
use terok_kernel::{error, inherited, memfd};
use terok_policy::plan::{Fd, HostFacts, SupervisorConfig, Wiring};
use terok_policy::policy::SshGrant;

/// Ten thousand rules are one megabyte.
const CONFIG_LIMIT: u64 = 64 << 20;

/// Descriptors by meaning.
pub(crate) struct Inherited {
    config: StoredConfig,
    fds: HashMap<Fd, OwnedFd>,
    /// In the worker: the lines to the parent and from the vault.
    lines: Option<Lines>,
}

/// The worker's ends of its two lines.
pub(crate) struct Lines {
    /// To the parent.
    pub(crate) parent: OwnedFd,
    /// From the vault's helpers, whose reports the parent must not read.
    pub(crate) vault: OwnedFd,
}

/// Why the supervisor cannot start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BirthError {
    /// Not started by the hook.
    #[error("{0}; {program} is started by {hook}, not by hand", program = terok_policy::layout::SUPERVISOR, hook = terok_policy::layout::HOOK)]
    Kernel(#[from] error::Error),
    /// The configuration is not what this version writes.
    #[error("configuration: {0}; run `terok setup` so that hook and supervisor are of one version")]
    Config(#[from] serde_json::Error),
    /// A descriptor is missing.
    #[error("no descriptor for {0:?}; run `terok setup` so that hook and supervisor are of one version")]
    Missing(Fd),
    /// The worker's lines are missing.
    #[error("no lines to the parent; a worker is started by its parent, not by hand")]
    NoLines,
    /// A descriptor could not be duplicated.
    #[error("descriptor: {0}")]
    Io(#[from] io::Error),
}

/// What the worker must not hold: rights over the kernel's table, the vault, and the word to the hook that all is well.
fn is_parents(fd: Fd) -> bool {
    matches!(fd, Fd::Nftables | Fd::NftablesNews | Fd::Links | Fd::Ready | Fd::Vault | Fd::Session)
}

/// The part of [`SupervisorConfig`] that the parent lives by: a policy that may be large is the worker's to read.
#[derive(Debug, Deserialize)]
pub(crate) struct ParentConfig {
    /// Container id.
    pub(crate) id: String,
    /// Absolute runtime folder of this container.
    pub(crate) run_dir: String,
    /// Absolute state folder of this container.
    pub(crate) state_dir: String,
    /// The owner's home, where SSH keys were granted.
    #[serde(default)]
    pub(crate) home: String,
    /// What of the policy is the parent's.
    pub(crate) policy: ParentPolicy,
    /// The facts.
    pub(crate) facts: HostFacts,
    /// What was chosen at the start.
    pub(crate) wiring: Wiring,
    /// What each descriptor from 4 on is, in order.
    pub(crate) fds: Vec<Fd>,
}

/// The part of the policy that the parent reads.
#[derive(Debug, Deserialize)]
pub(crate) struct ParentPolicy {
    /// SSH keys, each for a host.
    #[serde(default)]
    pub(crate) ssh: Vec<SshGrant>,
}

/// The configuration where it is kept, read again when it is needed: the parent keeps no copy of a policy that may be large.
pub(crate) struct StoredConfig(OwnedFd);

impl StoredConfig {
    /// One with that in it.
    #[cfg(test)]
    #[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
    pub(crate) fn of(config: &SupervisorConfig) -> Self {
        StoredConfig(memfd::sealed("config", &serde_json::to_vec(config).unwrap()).unwrap())
    }

    /// All of it.
    pub(crate) fn read<C: DeserializeOwned>(&self) -> Result<C, BirthError> {
        Ok(serde_json::from_slice(&memfd::read_sealed(self.0.try_clone()?, CONFIG_LIMIT)?)?)
    }
}

impl From<OwnedFd> for StoredConfig {
    fn from(config: OwnedFd) -> Self {
        StoredConfig(config)
    }
}
impl From<StoredConfig> for OwnedFd {
    fn from(config: StoredConfig) -> Self {
        config.0
    }
}

impl Inherited {
    /// Takes over what the hook handed to the parent.
    pub(crate) fn of_parent() -> Result<(Self, ParentConfig), BirthError> {
        Self::take(|config: &ParentConfig| config.fds.clone(), false)
    }

    /// Takes over what the parent handed to the worker.
    pub(crate) fn of_worker() -> Result<(Self, SupervisorConfig), BirthError> {
        let held =
            |config: &SupervisorConfig| config.fds.iter().copied().filter(|&fd| !is_parents(fd)).collect();
        Self::take(held, true)
    }

    fn take<C: DeserializeOwned>(held: impl Fn(&C) -> Vec<Fd>, lines: bool) -> Result<(Self, C), BirthError> {
        let config = StoredConfig(inherited::take(3, 1)?.pop().ok_or(BirthError::Missing(Fd::Ready))?);
        let parsed = config.read()?;
        let kinds = held(&parsed);
        let mut fds = inherited::take(4, kinds.len() + if lines { 2 } else { 0 })?;
        let lines = match lines {
            true => fds.pop().and_then(|vault| Some(Lines { vault, parent: fds.pop()? })),
            false => None,
        };
        Ok((Inherited { fds: kinds.into_iter().zip(fds).collect(), lines, config }, parsed))
    }

    /// The configuration, to be read again.
    pub(crate) fn stored_config(&self) -> Result<StoredConfig, BirthError> {
        Ok(StoredConfig(self.config.0.try_clone()?))
    }

    /// Hands out one descriptor.
    pub(crate) fn take_fd(&mut self, fd: Fd) -> Result<OwnedFd, BirthError> {
        self.fds.remove(&fd).ok_or(BirthError::Missing(fd))
    }

    /// A second descriptor of one that stays for the worker.
    pub(crate) fn share(&self, fd: Fd) -> Result<OwnedFd, BirthError> {
        Ok(self.fds.get(&fd).ok_or(BirthError::Missing(fd))?.try_clone()?)
    }

    /// A second descriptor of a folder.
    pub(crate) fn folder(&self, fd: Fd, path: &str) -> Result<Dir, BirthError> {
        Ok(Dir::from_fd(self.share(fd)?, Path::new(path)))
    }

    /// The lines to the parent and from the vault, in the worker.
    pub(crate) fn take_lines(&mut self) -> Result<Lines, BirthError> {
        self.lines.take().ok_or(BirthError::NoLines)
    }

    /// Whether it was handed over.
    pub(crate) fn has(&self, fd: Fd) -> bool {
        self.fds.contains_key(&fd)
    }

    /// What a worker is started with, from descriptor 3 on, in the order of the configuration's `list`.
    pub(crate) fn for_worker<'a>(&'a self, list: &[Fd], lines: &'a Lines) -> Vec<BorrowedFd<'a>> {
        let listed = list.iter().filter(|&&fd| !is_parents(fd)).filter_map(|fd| self.fds.get(fd));
        let lines = [&lines.parent, &lines.vault];
        std::iter::once(&self.config.0).chain(listed).chain(lines).map(|fd| fd.as_fd()).collect()
    }
}
