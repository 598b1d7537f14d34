//! Which runtime the shim stands before: what its own name says, else `shim.toml`, else the first that is installed. Never `PATH`, and
//! never the environment, which is the engine's.
//!
//! ```toml
//! runtime = "/usr/bin/crun"   # absolute; for a shim that is called by no other name than `terok-shim`
//! all_containers = true       # those without annotations too; false if absent
//! ```

use serde::Deserialize;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use terok_kernel::userns::{self, Owner};
use terok_policy::layout;

/// What holds for this call.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Absolute path of the real runtime.
    pub(crate) runtime: PathBuf,
    /// Every container is protected.
    pub(crate) all: bool,
    /// Home directory of the user whose own installation this is.
    pub(crate) home: Option<PathBuf>,
}

/// Why no runtime is known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsError {
    #[error("{file}: {reason}")]
    File { file: String, reason: String },
    #[error("no OCI runtime found ({0}); write runtime = \"/path/to/runtime\" into {file}", file = layout::SHIM_SYSTEM)]
    NoRuntime(String),
    #[error("the runtime {0} is terok-shim itself; name the real one in {file}", file = layout::SHIM_SYSTEM)]
    Itself(String),
    #[error(transparent)]
    Kernel(#[from] terok_kernel::Error),
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    runtime: Option<PathBuf>,
    #[serde(default)]
    all_containers: bool,
}

impl Settings {
    /// Reads the settings of the user whose engine this is, over the machine's. `own_name`: how the shim was called.
    pub(crate) fn read(own_name: Option<&OsString>) -> Result<Self, SettingsError> {
        let folder = terok_kernel::program::own_folder()?;
        let home = folder.to_str().and_then(|folder| folder.strip_suffix(layout::BIN_USER));
        let home = home.filter(|home| home.len() > 1 && home.ends_with('/'));
        let home = home.map(|home| PathBuf::from(home.trim_end_matches('/')));
        let user = match &home {
            Some(home) => Some(home.clone()),
            None => users_home()?,
        };
        let user = match user {
            Some(home) => written(&home.join(layout::SHIM_USER))?,
            None => Written::default(),
        };
        let machine = written(Path::new(layout::SHIM_SYSTEM))?;
        // An engine that calls it by a runtime's name was set up for that one.
        let runtime = match (named(own_name), user.runtime.or(machine.runtime)) {
            (Some(name), _) => first_of(&[name], &layout::RUNTIME_FOLDERS)?,
            (None, Some(runtime)) => runtime,
            (None, None) => first_of(&layout::RUNTIMES, &layout::RUNTIME_FOLDERS)?,
        };
        if is_itself(&runtime) {
            return Err(SettingsError::Itself(runtime.display().to_string()));
        }
        Ok(Settings { runtime, all: user.all_containers || machine.all_containers, home })
    }
}

/// The home directory of the user who is not root.
fn users_home() -> Result<Option<PathBuf>, SettingsError> {
    let Owner::User(uid) = userns::owner()? else { return Ok(None) };
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    Ok(userns::passwd_entry(&passwd, uid).map(|(_, home)| home))
}

fn written(path: &Path) -> Result<Written, SettingsError> {
    let wrong = |reason: String| SettingsError::File { file: path.display().to_string(), reason };
    let text = match std::fs::read_to_string(path) {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Written::default());
        }
        read => read.map_err(|error| wrong(error.to_string()))?,
    };
    let written: Written =
        toml::from_str(&text).map_err(|error| wrong(error.message().replace('\n', " ")))?;
    if let Some(runtime) = written.runtime.as_ref().filter(|runtime| !runtime.is_absolute()) {
        return Err(wrong(format!("runtime = {runtime:?} is not an absolute path")));
    }
    Ok(written)
}

/// NAME, where it was called `terok-shim-NAME`.
fn named(own_name: Option<&OsString>) -> Option<&str> {
    let own_name = Path::new(own_name?).file_name()?.to_str()?;
    own_name.strip_prefix(layout::SHIM)?.strip_prefix('-').filter(|name| !name.is_empty())
}

/// The first of `names` that is in one of `folders`.
fn first_of(names: &[&str], folders: &[&str]) -> Result<PathBuf, SettingsError> {
    let mut paths =
        names.iter().flat_map(|name| folders.iter().map(move |folder| Path::new(folder).join(name)));
    paths
        .find(|path| path.is_file())
        .ok_or_else(|| SettingsError::NoRuntime(format!("{} in {}", names.join(", "), folders.join(", "))))
}

fn is_itself(runtime: &Path) -> bool {
    let place = |path: &Path| path.metadata().map(|meta| (meta.dev(), meta.ino())).ok();
    place(runtime).is_some() && place(runtime) == place(Path::new("/proc/self/exe"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_the_runtime_and_what_is_wrong_in_it_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shim.toml");
        assert_eq!(written(&path).unwrap(), Written::default());
        std::fs::write(&path, "runtime = \"/opt/crun\"\nall_containers = true\n").unwrap();
        let read = written(&path).unwrap();
        assert_eq!((read.runtime.unwrap(), read.all_containers), ("/opt/crun".into(), true));
        for wrong in ["runtime = \"crun\"", "runtme = \"/opt/crun\"", "runtime = 1", "{"] {
            std::fs::write(&path, wrong).unwrap();
            let error = written(&path).unwrap_err().to_string();
            assert!(error.contains("shim.toml") && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn a_runtime_in_its_own_name_is_looked_for_and_no_other() {
        let of = |name: &str| named(Some(&name.into())).map(str::to_owned);
        assert_eq!(of("/usr/libexec/terok/terok-shim-runc").as_deref(), Some("runc"));
        assert_eq!(of("terok-shim-custom").as_deref(), Some("custom"));
        for other in ["terok-shim", "terok-shim-", "runc", "/usr/bin/terok-shims", ""] {
            assert_eq!(of(other), None, "{other}");
        }
        assert_eq!(named(None), None);
        let folder = tempfile::tempdir().unwrap();
        let folders = ["/nowhere", folder.path().to_str().unwrap()];
        let error = first_of(&layout::RUNTIMES, &folders).unwrap_err().to_string();
        assert!(error.contains("crun, runc, youki in /nowhere"), "{error}");
        for name in ["runc", "youki"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(first_of(&layout::RUNTIMES, &folders).unwrap(), folder.path().join("runc"));
        assert_eq!(first_of(&["youki"], &folders).unwrap(), folder.path().join("youki"));
        assert!(first_of(&["crun"], &folders).is_err());
    }

    #[test]
    fn the_shim_does_not_stand_before_itself() {
        assert!(is_itself(&std::env::current_exe().unwrap()));
        assert!(!is_itself(Path::new("/bin/sh")) && !is_itself(Path::new("/nowhere")));
    }
}
