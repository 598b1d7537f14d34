//! Whether Podman, started now by this person, runs our hooks: `terok run` refuses to start otherwise,
//! because Podman says nothing about a hook that it does not consult.

use crate::containers_conf::{ConfError, HookDirs, possible_hook_dirs};
use crate::hook_json::{Containers, HookFile, STAGES};
use crate::host::Host;
use crate::target::Target;
use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use terok_policy::layout;

/// An installation that Podman consults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consulted {
    /// Our hook files, in the order of [`STAGES`].
    pub files: Vec<PathBuf>,
    /// Folder of the binaries they name.
    pub bin_dir: PathBuf,
    /// For which containers they run.
    pub containers: Containers,
}

/// Why our hooks would not run, or not safely.
#[derive(Debug, thiserror::Error)]
pub enum NotConsulted {
    /// No file of ours in any directory.
    #[error("podman would not run terok's hooks: no {stage} hook of terok in {dirs}{because}; {remedy}")]
    Missing {
        /// The first stage without a hook.
        stage: &'static str,
        /// The directories in force.
        dirs: String,
        /// The file that says so, `(set by FILE)`.
        because: String,
        /// What to do.
        remedy: String,
    },
    /// Two hooks for a stage: the second would meet what the first made.
    #[error(
        "two hooks of terok for {stage}: {first} and {second}; remove the older installation with: terok uninstall"
    )]
    Twice {
        /// The stage.
        stage: &'static str,
        /// A file.
        first: PathBuf,
        /// Another one.
        second: PathBuf,
    },
    /// Some hooks are for every container, others for annotated ones.
    #[error(
        "{one} is for every container, {other} for annotated ones only; write them anew with: terok setup"
    )]
    Mixed {
        /// A file.
        one: PathBuf,
        /// Another one.
        other: PathBuf,
    },
    /// A file in a hooks directory that Podman cannot read: it then starts no container at all.
    #[error("{path}: podman starts no container while this file is there: {reason}")]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The program is missing or could be replaced by somebody else. Podman skips a missing one without a word.
    #[error("{path}, named by {file}: {reason}; run: terok setup")]
    BadProgram {
        /// The program.
        path: PathBuf,
        /// The hook file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The engine is elsewhere.
    #[error("{what} makes podman use a remote engine, whose hooks cannot be checked: unset it")]
    Remote {
        /// The variable or file.
        what: String,
    },
    /// A configuration file is broken.
    #[error(transparent)]
    Conf(#[from] ConfError),
}

/// Finds the hooks that Podman would run for a container with a `terok.` annotation.
///
/// # Errors
/// Whatever would leave such a container unprotected.
pub fn consulted(host: &Host) -> Result<Consulted, NotConsulted> {
    if let Some(variable) = host.remote {
        return Err(NotConsulted::Remote { what: variable.to_owned() });
    }
    let mut found = None;
    for in_force in possible_hook_dirs(host)? {
        found = Some(consulted_in(host, in_force)?);
    }
    found.ok_or_else(|| NotConsulted::Missing {
        stage: STAGES[0].hook.stage,
        dirs: "no directory".to_owned(),
        because: String::new(),
        remedy: "run: terok setup".to_owned(),
    })
}

fn consulted_in(host: &Host, in_force: HookDirs) -> Result<Consulted, NotConsulted> {
    if let Some(file) = in_force.remote {
        return Err(NotConsulted::Remote { what: format!("engine.remote in {}", file.display()) });
    }
    let files = effective_files(host, &in_force.dirs)?;
    let mut found = Vec::new();
    let mut bin_dir = PathBuf::new();
    let mut kinds: Vec<(PathBuf, Containers)> = Vec::new();
    for stage in STAGES {
        let mut ours = files.values().filter_map(|(path, file)| Some((path, file, stage.is_in(file)?)));
        let Some((path, file, containers)) = ours.next() else {
            let dirs: Vec<_> = in_force.dirs.iter().map(|dir| dir.display().to_string()).collect();
            let set_by = in_force.set_by.as_ref();
            return Err(NotConsulted::Missing {
                stage: stage.hook.stage,
                dirs: if dirs.is_empty() {
                    "an empty list of directories".to_owned()
                } else {
                    dirs.join(", ")
                },
                because: set_by.map_or_else(String::new, |file| format!(" (set by {})", file.display())),
                remedy: remedy(host, &in_force),
            });
        };
        if let Some((second, _, _)) = ours.next() {
            let (first, second) = (path.clone(), second.clone());
            return Err(NotConsulted::Twice { stage: stage.hook.stage, first, second });
        }
        check_programs(host, path, &file.hook.path)?;
        bin_dir = file.hook.path.parent().map(Path::to_path_buf).unwrap_or_default();
        found.push(path.clone());
        kinds.push((path.clone(), containers));
    }
    let of = |containers| kinds.iter().find(|(_, other)| *other == containers).map(|(path, _)| path.clone());
    match (of(Containers::All), of(Containers::Annotated)) {
        (Some(one), Some(other)) => Err(NotConsulted::Mixed { one, other }),
        (None, _) => Ok(Consulted { files: found, bin_dir, containers: Containers::Annotated }),
        (_, None) => Ok(Consulted { files: found, bin_dir, containers: Containers::All }),
    }
}

/// Where the hooks are installed but another file hides them, installing once more does not help.
fn remedy(host: &Host, in_force: &HookDirs) -> String {
    let installed =
        |dir: &PathBuf| host.at(dir.join(STAGES[0].file)).exists() && !in_force.dirs.contains(dir);
    let hidden = [false, true].map(|system| Target::of(host, system, None).hooks_dir());
    match (&in_force.set_by, hidden.iter().find(|dir| installed(dir))) {
        (Some(file), Some(dir)) => format!("add {:?} to hooks_dir in {}", dir, file.display()),
        _ => "run: terok setup".to_owned(),
    }
}

/// The hook files by name; a later directory's file replaces an earlier one's of the same name.
fn effective_files(
    host: &Host,
    dirs: &[PathBuf],
) -> Result<BTreeMap<std::ffi::OsString, (PathBuf, HookFile)>, NotConsulted> {
    let mut files = BTreeMap::new();
    for dir in dirs {
        let Ok(entries) = std::fs::read_dir(host.at(dir)) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let bad = |reason: String| NotConsulted::BadFile { path: path.clone(), reason };
            let text = std::fs::read(&path).map_err(|error| bad(error.to_string()))?;
            // Old-format files of other hooks have other fields; only what claims to be ours must have our shape.
            match serde_json::from_slice::<HookFile>(&text) {
                Ok(file) => {
                    files.insert(entry.file_name(), (path, file));
                }
                Err(_) => {
                    serde_json::from_slice::<serde_json::Value>(&text)
                        .map_err(|error| bad(error.to_string()))?;
                    files.remove(&entry.file_name());
                }
            }
        }
    }
    Ok(files)
}

fn check_programs(host: &Host, file: &Path, hook: &Path) -> Result<(), NotConsulted> {
    for path in [hook.to_path_buf(), hook.with_file_name(layout::SUPERVISOR)] {
        let bad = |reason: &str| {
            Err(NotConsulted::BadProgram {
                path: path.clone(),
                file: file.to_path_buf(),
                reason: reason.to_owned(),
            })
        };
        if !path.is_absolute() {
            return bad("not an absolute path");
        }
        let Ok(meta) = std::fs::metadata(host.at(&path)) else { return bad("missing") };
        if !meta.is_file() || meta.permissions().mode() & 0o111 == 0 {
            return bad("not a program");
        }
        if meta.permissions().mode() & 0o022 != 0 {
            return bad("can be changed by other users");
        }
        let owner = std::fs::metadata("/proc/self").map_or(host.uid, |meta| meta.uid());
        if meta.uid() != 0 && meta.uid() != host.uid && meta.uid() != owner {
            return bad("belongs to another user");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::tests_host;
    use crate::setup::tests_install;

    #[test]
    fn an_installation_is_consulted_until_something_hides_it() {
        let root = tempfile::tempdir().unwrap();
        let host = tests_host(root.path(), 1001);
        assert!(matches!(consulted(&host), Err(NotConsulted::Missing { .. })));
        tests_install(&host);
        assert_eq!(consulted(&host).unwrap().bin_dir, Path::new("/home/u/.local/share/terok/bin"));

        let later = host.at("/home/u/.config/containers/containers.conf.d/99-later.conf");
        std::fs::write(&later, "[engine]\nhooks_dir=[\"/elsewhere\"]\n").unwrap();
        let error = consulted(&host).unwrap_err().to_string();
        assert!(error.contains("99-later.conf") && error.contains("/elsewhere"), "{error}");
        assert!(error.contains("add \"/home/u/.local/share/terok/hooks.d\" to hooks_dir in"), "{error}");
        std::fs::remove_file(later).unwrap();

        let mut hidden = host.clone();
        hidden.conf = Some("/dev/null".into());
        assert!(matches!(consulted(&hidden), Err(NotConsulted::Missing { .. })));
        let mut remote = host.clone();
        remote.remote = Some("CONTAINER_HOST");
        assert!(matches!(consulted(&remote), Err(NotConsulted::Remote { .. })));
    }

    #[test]
    fn a_missing_or_open_binary_is_not_consulted() {
        let root = tempfile::tempdir().unwrap();
        let host = tests_host(root.path(), 1001);
        tests_install(&host);
        let supervisor = host.at("/home/u/.local/share/terok/bin/terok-supervisor");
        std::fs::set_permissions(&supervisor, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(consulted(&host).unwrap_err().to_string().contains("changed by other users"));
        std::fs::remove_file(&supervisor).unwrap();
        assert!(consulted(&host).unwrap_err().to_string().contains("terok-supervisor"));
    }

    #[test]
    fn a_second_installation_under_another_name_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let host = tests_host(root.path(), 1001);
        tests_install(&host);
        let dir = host.at("/home/u/.local/share/terok/hooks.d");
        std::fs::copy(dir.join(STAGES[0].file), dir.join("60-old.json")).unwrap();
        assert!(matches!(consulted(&host), Err(NotConsulted::Twice { stage: "createRuntime", .. })));
    }

    #[test]
    fn a_broken_neighbour_is_named() {
        let root = tempfile::tempdir().unwrap();
        let host = tests_host(root.path(), 1001);
        tests_install(&host);
        std::fs::create_dir_all(host.at("/usr/share/containers/oci/hooks.d")).unwrap();
        std::fs::write(host.at("/usr/share/containers/oci/hooks.d/a.json"), "{").unwrap();
        assert!(matches!(consulted(&host), Err(NotConsulted::BadFile { .. })));
        std::fs::write(host.at("/usr/share/containers/oci/hooks.d/a.json"), "{\"version\":\"0.1.0\"}")
            .unwrap();
        consulted(&host).unwrap();
    }
}
