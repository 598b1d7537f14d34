//! What an operator took back from containers (`terok vault revoke`): a file for each, beside the store. The launcher writes it and the
//! supervisor's helpers read it; a worker, which may write its own container's folders, may not write here.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;
use terok_kernel::statedir::{Dir, Hold};
use terok_policy::layout::{self, REVOKED};

const LIMIT: u64 = 1 << 20;
/// Beside the store, not among the files that are named by containers.
const LOCK: &str = "revoked.lock";
const PATIENCE: Duration = Duration::from_secs(5);

/// What was taken back from one container: providers by name, SSH keys as `ssh:KEY`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Revocation {
    /// These.
    Of(BTreeSet<String>),
    /// All that it was granted, but for these.
    AllBut(BTreeSet<String>),
}

impl Default for Revocation {
    fn default() -> Self {
        Revocation::Of(BTreeSet::new())
    }
}

impl Revocation {
    /// What was taken back from `container`, by the vault's folder.
    pub fn read(vault: &Dir, container: &str) -> Result<Self> {
        let Some(folder) = vault.private(REVOKED)? else { return Ok(Revocation::default()) };
        let Some(text) = folder.read(container, LIMIT)? else { return Ok(Revocation::default()) };
        serde_json::from_slice(&text).map_err(|error| Error::Untrusted {
            path: folder.path().join(container).display().to_string(),
            reason: format!("does not say what was revoked ({error}); remove it and revoke again"),
        })
    }

    /// Takes `names` back from `container`, or gives them again; all that it was granted where none is named.
    pub fn note(vault: &Dir, container: &str, names: &[String], undo: bool) -> Result<()> {
        if !layout::is_container_id(container) {
            return Err(Error::Unfit(format!("{container:?} is no container's id")));
        }
        let _turn = vault.lock_file(LOCK, Hold::Alone, PATIENCE)?;
        let folder = vault.make_private(REVOKED)?;
        let mut after = match names.is_empty() {
            true => Revocation::default(),
            false => Revocation::read(vault, container)?,
        };
        match undo {
            true => after.give(names),
            false => after.take(names),
        }
        if after == Revocation::default() {
            return Ok(folder.remove(container)?);
        }
        let text = serde_json::to_vec(&after).map_err(|error| Error::System(error.to_string()))?;
        Ok(folder.write(container, &text)?)
    }

    /// Removes what was noted of containers that are no more, but for the newest `keep`: whether an engine still has a container that nothing
    /// else is known of any more, cannot be told here.
    pub fn prune(vault: &Dir, keep: usize, is_there: impl Fn(&str) -> bool) -> Result<()> {
        let _turn = vault.lock_file(LOCK, Hold::Alone, PATIENCE)?;
        let Some(folder) = vault.private(REVOKED)? else { return Ok(()) };
        let mut gone = folder.list()?;
        gone.retain(|entry| !entry.folder && !is_there(&entry.name));
        gone.sort_by_key(|entry| std::cmp::Reverse(entry.modified));
        for entry in gone.iter().skip(keep) {
            folder.remove(&entry.name)?;
        }
        Ok(())
    }

    /// Where that of `container` is, or would be.
    pub fn path(vault: &Path, container: &str) -> PathBuf {
        vault.join(REVOKED).join(container)
    }

    /// Whether `name` was taken back.
    pub fn has(&self, name: &str) -> bool {
        match self {
            Revocation::Of(names) => names.contains(name),
            Revocation::AllBut(names) => !names.contains(name),
        }
    }

    fn take(&mut self, names: &[String]) {
        match self {
            _ if names.is_empty() => *self = Revocation::AllBut(BTreeSet::new()),
            Revocation::Of(taken) => taken.extend(names.iter().cloned()),
            Revocation::AllBut(left) => left.retain(|name| !names.contains(name)),
        }
    }

    fn give(&mut self, names: &[String]) {
        match self {
            _ if names.is_empty() => *self = Revocation::default(),
            Revocation::Of(taken) => taken.retain(|name| !names.contains(name)),
            Revocation::AllBut(left) => left.extend(names.iter().cloned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    fn vault() -> (tempfile::TempDir, Dir) {
        let root = tempfile::tempdir().unwrap();
        let vault = Dir::base(root.path()).unwrap().make_private("vault").unwrap();
        (root, vault)
    }

    fn note(vault: &Dir, names: &[&str], undo: bool) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        Revocation::note(vault, "c1", &names, undo).unwrap();
    }

    fn revoked(vault: &Dir) -> [bool; 3] {
        let revocation = Revocation::read(vault, "c1").unwrap();
        ["github", "ssh:work", "openai"].map(|name| revocation.has(name))
    }

    #[test]
    fn what_was_taken_back_by_name_or_all_together_is_given_again_by_name_or_all_together() {
        let (_root, vault) = vault();
        assert_eq!(revoked(&vault), [false; 3]);
        note(&vault, &["github", "ssh:work"], false);
        assert_eq!(revoked(&vault), [true, true, false]);
        note(&vault, &["github"], true);
        assert_eq!(revoked(&vault), [false, true, false]);
        note(&vault, &[], false);
        assert_eq!(revoked(&vault), [true; 3]);
        note(&vault, &["openai"], true);
        assert_eq!(revoked(&vault), [true, true, false]);
        note(&vault, &["openai"], false);
        assert_eq!(revoked(&vault), [true; 3]);
        note(&vault, &[], true);
        assert_eq!(revoked(&vault), [false; 3]);
        assert!(!Revocation::path(vault.path(), "c1").exists());
    }

    #[test]
    fn each_container_has_its_own_and_of_those_that_are_no_more_the_oldest_are_forgotten() {
        let (_root, vault) = vault();
        for (container, age) in [("c1", 90), ("c2", 60), ("c3", 30)] {
            Revocation::note(&vault, container, &[], false).unwrap();
            let file = std::fs::File::options().write(true).open(Revocation::path(vault.path(), container));
            file.unwrap().set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
        }
        Revocation::prune(&vault, 1, |container| container == "c1").unwrap();
        let has = |container| Revocation::read(&vault, container).unwrap().has("github");
        assert_eq!(["c1", "c2", "c3"].map(has), [true, false, true]);
        Revocation::note(&vault, "../vault.db", &[], false).unwrap_err();
    }

    #[test]
    fn what_cannot_be_read_is_an_error_until_all_is_taken_or_given() {
        let (_root, vault) = vault();
        note(&vault, &["github"], false);
        std::fs::write(Revocation::path(vault.path(), "c1"), "{").unwrap();
        let reason = Revocation::read(&vault, "c1").unwrap_err().to_string();
        assert!(reason.contains("revoked/c1") && reason.contains("revoke again"), "{reason}");
        Revocation::note(&vault, "c1", &["github".to_owned()], true).unwrap_err();
        note(&vault, &[], false);
        assert_eq!(revoked(&vault), [true; 3]);
    }
}
