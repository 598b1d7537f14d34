//! The profiles and providers a policy may name: bundled ones, the system's, the user's; a later one replaces an earlier of its
//! name.

use crate::refusal::Refusal;
use crate::state::read_file;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use terok_policy::layout;
use terok_policy::profile::{Catalog, is_profile_name};
use terok_policy::provider::is_provider_name;

const PROFILE_LIMIT: u64 = 1 << 20;

/// All that are there for the owner of `home`.
pub(crate) fn read(home: &Path) -> Result<Catalog, Refusal> {
    let mut catalog = Catalog::bundled();
    for folder in [PathBuf::from(layout::PROFILES_SYSTEM), home.join(layout::PROFILES_USER)] {
        add(&mut catalog.profiles, &folder, ".txt", is_profile_name)?;
    }
    for folder in [PathBuf::from(layout::PROVIDERS_SYSTEM), home.join(layout::PROVIDERS_USER)] {
        add(&mut catalog.providers, &folder, ".toml", is_provider_name)?;
    }
    Ok(catalog)
}

fn add(
    texts: &mut BTreeMap<String, String>,
    folder: &Path,
    ending: &str,
    is_name: fn(&str) -> bool,
) -> Result<(), Refusal> {
    let unreadable = |error: std::io::Error| Refusal::input(folder.display().to_string(), error);
    let entries = match std::fs::read_dir(folder) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(()),
        entries => entries.map_err(unreadable)?,
    };
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(ending));
        let Some(name) = name.filter(|name| is_name(name)) else { continue };
        let refuse = |reason: &dyn std::fmt::Display| Refusal::input(path.display().to_string(), reason);
        let text = read_file(&path, PROFILE_LIMIT).map_err(|error| refuse(&error))?;
        let text = String::from_utf8(text).map_err(|_| refuse(&"is not UTF-8"))?;
        texts.insert(name.to_owned(), text);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_profile_replaces_a_bundled_one_and_other_files_are_left_alone() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join(layout::PROFILES_USER);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("base.txt"), "own.example.com:443\n").unwrap();
        std::fs::write(folder.join("base.txt~"), [0xff]).unwrap();
        std::fs::write(folder.join("README"), [0xff]).unwrap();
        let catalog = read(home.path()).unwrap();
        assert_eq!(catalog.profiles["base"], "own.example.com:443\n");
        assert_eq!(catalog.profiles.len(), Catalog::bundled().profiles.len());
    }

    #[test]
    fn a_profile_that_is_not_text_is_refused_by_its_path() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join(layout::PROFILES_USER);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("odd.txt"), [0xff]).unwrap();
        assert!(read(home.path()).unwrap_err().to_string().contains("odd.txt"));
    }
}
