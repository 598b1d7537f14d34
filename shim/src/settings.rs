//! Which runtime the shim stands before: `shim.toml`, or what its own name says. Never `PATH`, and never the environment, which is
//! the engine's.
//!
//! ```toml
//! runtime = "/usr/bin/crun"   # absolute
//! all_containers = true       # those without annotations too; false if absent
//! ```

use serde::Deserialize;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use terok_kernel::userns::{self, Owner};
use terok_policy::layout;

/// Runtimes that are tried where nothing is said, the first that is there.
const RUNTIMES: [&str; 3] = ["crun", "runc", "youki"];
const FOLDERS: [&str; 4] = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"];

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
        let runtime = match user.runtime.or(machine.runtime) {
            Some(runtime) => runtime,
            None => default(own_name, &FOLDERS)?,
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

/// `terok-shim-NAME` stands before NAME, `terok-shim` before the first of [`RUNTIMES`], in the folders where distributions have them.
fn default(own_name: Option<&OsString>, folders: &[&str]) -> Result<PathBuf, SettingsError> {
    let own_name = own_name.map(Path::new).and_then(Path::file_name).and_then(|name| name.to_str());
    let named = own_name.and_then(|name| name.strip_prefix(layout::SHIM)?.strip_prefix('-'));
    let named = named.filter(|name| !name.is_empty());
    let names = named.map_or(RUNTIMES.to_vec(), |name| vec![name]);
    let paths = names.iter().flat_map(|name| folders.iter().map(move |folder| Path::new(folder).join(name)));
    paths
        .into_iter()
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
    fn without_one_its_own_name_says_which() {
        let folder = tempfile::tempdir().unwrap();
        let folders = [folder.path().to_str().unwrap()];
        let of = |name: &str| default(Some(&name.into()), &folders);
        assert!(of("terok-shim").unwrap_err().to_string().contains("crun, runc, youki"));
        for name in ["runc", "crun", "custom"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(of("/usr/bin/terok-shim").unwrap(), folder.path().join("crun"));
        assert_eq!(of("terok-shim-runc").unwrap(), folder.path().join("runc"));
        assert_eq!(of("terok-shim-custom").unwrap(), folder.path().join("custom"));
        assert!(of("terok-shim-youki").is_err());
        assert_eq!(default(None, &folders).unwrap(), folder.path().join("crun"));
    }

    #[test]
    fn the_shim_does_not_stand_before_itself() {
        assert!(is_itself(&std::env::current_exe().unwrap()));
        assert!(!is_itself(Path::new("/bin/sh")) && !is_itself(Path::new("/nowhere")));
    }
}
