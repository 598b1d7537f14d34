//! Which Podman is started: an absolute path from a fixed list, never a search through `PATH`.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Overrides the list; must be absolute.
pub const VARIABLE: &str = "TEROK_PODMAN";
/// Where Podman is looked for, in this order.
pub const PLACES: [&str; 2] = ["/usr/bin/podman", "/usr/local/bin/podman"];

/// Why no Podman can be started.
#[derive(Debug, thiserror::Error)]
pub enum NoPodman {
    /// None of [`PLACES`] is a program.
    #[error(
        "no podman in /usr/bin or /usr/local/bin: install it (Debian: apt install podman), or set TEROK_PODMAN to its absolute path"
    )]
    Missing,
    /// The override is not usable.
    #[error("TEROK_PODMAN={path}: not an absolute path of a program")]
    BadOverride {
        /// Its value.
        path: PathBuf,
    },
}

/// The Podman to start.
///
/// # Errors
/// When none is installed, or the override names no program.
pub fn find() -> Result<PathBuf, NoPodman> {
    if let Some(path) = std::env::var_os(VARIABLE).map(PathBuf::from) {
        return if path.is_absolute() && is_program(&path) {
            Ok(path)
        } else {
            Err(NoPodman::BadOverride { path })
        };
    }
    PLACES.iter().map(PathBuf::from).find(|path| is_program(path)).ok_or(NoPodman::Missing)
}

pub(crate) fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}
