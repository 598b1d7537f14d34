//! Which hooks directories Podman reads: the `hooks_dir` that its configuration files leave in force.
//! The rules are containers-common's, as observed on Podman 4.3, 5.4 and 5.8 (the last file that sets the list replaces it).

use crate::host::Host;
use std::path::{Path, PathBuf};

/// Read by Podman when no file sets `hooks_dir`.
pub const DEFAULT_DIR: &str = "/usr/share/containers/oci/hooks.d";
/// Read besides [`DEFAULT_DIR`] only by a privileged Podman whose configuration sets an empty list.
const OVERRIDE_DIR: &str = "/etc/containers/oci/hooks.d";

/// The directories in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookDirs {
    /// In the order Podman reads them; a later directory replaces a file of the same name.
    pub dirs: Vec<PathBuf>,
    /// The last file that had a say, `None` for the built-in default.
    pub set_by: Option<PathBuf>,
    /// The file that makes Podman a client of a remote engine, if one does.
    pub remote: Option<PathBuf>,
}

/// A configuration file that cannot be understood. Podman refuses to start with it.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct ConfError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub reason: String,
}

/// The hooks directories in force for `host`, as if the file `without` did not exist.
///
/// # Errors
/// A file that exists but cannot be read or understood.
pub fn hook_dirs(host: &Host, without: Option<&Path>) -> Result<HookDirs, ConfError> {
    in_force(host, files(host)?, without)
}

/// Every list that may be in force: a privileged Podman up to 4.x reads no files in root's home, one from 5.x does.
///
/// # Errors
/// As [`hook_dirs`].
pub fn possible_hook_dirs(host: &Host) -> Result<Vec<HookDirs>, ConfError> {
    let mut possible = vec![hook_dirs(host, None)?];
    if !host.rootless() {
        possible.push(system_hook_dirs(host, None)?);
        possible.dedup();
    }
    Ok(possible)
}

/// The hooks directories in force for everybody, as if the file `without` did not exist: no user's files count.
///
/// # Errors
/// As [`hook_dirs`].
pub fn system_hook_dirs(host: &Host, without: Option<&Path>) -> Result<HookDirs, ConfError> {
    let own = host.at(host.config_home.join("containers"));
    let files = files(host)?.into_iter().filter(|path| !path.starts_with(&own)).collect();
    in_force(host, files, without)
}

fn in_force(host: &Host, files: Vec<PathBuf>, without: Option<&Path>) -> Result<HookDirs, ConfError> {
    let default = HookDirs { dirs: vec![PathBuf::from(DEFAULT_DIR)], set_by: None, remote: None };
    let mut in_force = default;
    for path in files {
        if without == Some(path.as_path()) {
            continue;
        }
        let Some(settings) = read(&path)? else { continue };
        match settings.remote {
            Some(true) => in_force.remote = Some(path.clone()),
            Some(false) => in_force.remote = None,
            None => {}
        }
        if let Some((dirs, append)) = settings.hooks_dir {
            if !append {
                in_force.dirs.clear();
            }
            in_force.dirs.extend(dirs);
            in_force.set_by = Some(path);
        }
    }
    if in_force.dirs.is_empty() && !host.rootless() {
        in_force.dirs = vec![PathBuf::from(DEFAULT_DIR), PathBuf::from(OVERRIDE_DIR)];
    }
    Ok(in_force)
}

/// The configuration files Podman reads, in order.
///
/// # Errors
/// A drop-in folder that cannot be listed.
pub fn files(host: &Host) -> Result<Vec<PathBuf>, ConfError> {
    let mut files = Vec::new();
    if let Some(only) = &host.conf {
        files.push(only.clone());
    } else {
        files.push(host.at("/usr/share/containers/containers.conf"));
        files.push(host.at("/etc/containers/containers.conf"));
        files.extend(drop_ins(&host.at("/etc/containers/containers.conf.d"))?);
        let own = host.at(host.config_home.join("containers/containers.conf"));
        files.push(own.clone());
        files.extend(drop_ins(&own.with_extension("conf.d"))?);
    }
    files.extend(host.conf_override.clone());
    Ok(files)
}

fn drop_ins(dir: &Path) -> Result<Vec<PathBuf>, ConfError> {
    let failed = |error: std::io::Error| ConfError { path: dir.to_path_buf(), reason: error.to_string() };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "conf") && !path.is_dir() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// What the files say about networks, where it keeps a container from being protected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Network {
    /// `containers.netns`, in this file.
    Default(PathBuf, String),
    /// An option in `network.pasta_options` that leads to the host's loopback.
    Pasta(PathBuf, String),
}

/// The last words on `netns` and `pasta_options`.
///
/// # Errors
/// As [`hook_dirs`].
pub(crate) fn networks(host: &Host) -> Result<Vec<Network>, ConfError> {
    let (mut netns, mut pasta) = (None, Vec::new());
    for path in files(host)? {
        let Some(settings) = read(&path)? else { continue };
        if let Some(value) = settings.netns {
            netns = Some(Network::Default(path.clone(), value));
        }
        if let Some(options) = settings.pasta {
            let leads = |option: &String| {
                ["-T", "-U", "--tcp-ns", "--udp-ns"].iter().any(|name| option.starts_with(name))
            };
            pasta = options
                .into_iter()
                .filter(leads)
                .map(|option| Network::Pasta(path.clone(), option))
                .collect();
        }
    }
    Ok(netns.into_iter().chain(pasta).collect())
}

struct Settings {
    netns: Option<String>,
    pasta: Option<Vec<String>>,
    /// The list, and whether it is added to the one before.
    hooks_dir: Option<(Vec<PathBuf>, bool)>,
    remote: Option<bool>,
}

fn read(path: &Path) -> Result<Option<Settings>, ConfError> {
    let failed = |reason: String| ConfError { path: path.to_path_buf(), reason };
    table(path)?.map(|table| settings(&table)).transpose().map_err(failed)
}

/// A configuration file as it stands; `None` where there is none.
///
/// # Errors
/// A file that cannot be read or is no TOML.
pub(crate) fn table(path: &Path) -> Result<Option<toml::Table>, ConfError> {
    let failed = |reason: String| ConfError { path: path.to_path_buf(), reason };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error.to_string())),
    };
    text.parse().map(Some).map_err(|error: toml::de::Error| {
        let line = error.span().map_or(0, |span| text[..span.start].lines().count().max(1));
        failed(format!("line {line}: {}", error.message()))
    })
}

fn settings(table: &toml::Table) -> Result<Settings, String> {
    let engine = table.get("engine").and_then(toml::Value::as_table);
    let remote = engine.and_then(|engine| engine.get("remote")).and_then(toml::Value::as_bool);
    let of = |section: &str, key: &str| table.get(section)?.as_table()?.get(key);
    let netns = of("containers", "netns").and_then(toml::Value::as_str).map(str::to_owned);
    let words =
        |list: &Vec<toml::Value>| list.iter().filter_map(|word| Some(word.as_str()?.to_owned())).collect();
    let pasta = of("network", "pasta_options").and_then(toml::Value::as_array).map(words);
    let Some(list) = engine.and_then(|engine| engine.get("hooks_dir")) else {
        return Ok(Settings { netns, pasta, hooks_dir: None, remote });
    };
    let list = list.as_array().ok_or("engine.hooks_dir is not a list")?;
    let mut dirs = Vec::new();
    let mut append = false;
    for item in list {
        match item {
            toml::Value::String(dir) => dirs.push(PathBuf::from(dir)),
            // `{append=true}`: containers-common 0.57 (Podman 4.8) and later.
            toml::Value::Table(attributes) => {
                append = attributes.get("append").and_then(toml::Value::as_bool).unwrap_or(append);
            }
            _ => return Err("engine.hooks_dir holds something that is not a path".to_owned()),
        }
    }
    Ok(Settings { netns, pasta, hooks_dir: Some((dirs, append)), remote })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{tests_file as write, tests_host};

    fn dirs(host: &Host) -> Vec<String> {
        let found = hook_dirs(host, None).unwrap();
        found.dirs.iter().map(|dir| dir.display().to_string()).collect()
    }

    #[test]
    fn without_files_the_default_directory_is_read() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(dirs(&tests_host(root.path(), 1001)), [DEFAULT_DIR]);
        assert_eq!(dirs(&tests_host(root.path(), 0)), [DEFAULT_DIR]);
    }

    #[test]
    fn the_last_file_that_sets_the_list_replaces_it() {
        let root = tempfile::tempdir().unwrap();
        let host = tests_host(root.path(), 1001);
        write(&host, "/etc/containers/containers.conf", "[engine]\nhooks_dir=[\"/etc/a\"]\n");
        write(&host, "/etc/containers/containers.conf.d/20-b.conf", "[engine]\nhooks_dir=[\"/b\"]\n");
        write(&host, "/etc/containers/containers.conf.d/10-c.conf", "[engine]\nhooks_dir=[\"/c\"]\n");
        write(&host, "/etc/containers/containers.conf.d/30-d.txt", "not read");
        assert_eq!(dirs(&host), ["/b"]);
        write(&host, "/home/u/.config/containers/containers.conf", "[containers]\n");
        assert_eq!(dirs(&host), ["/b"]);
        write(&host, "/home/u/.config/containers/containers.conf.d/x.conf", "[engine]\nhooks_dir=[\"/x\"]\n");
        assert_eq!(dirs(&host), ["/x"]);
        let possible = possible_hook_dirs(&tests_host(root.path(), 0)).unwrap();
        let possible: Vec<_> = possible.into_iter().flat_map(|found| found.dirs).collect();
        assert_eq!(possible, ["/x", "/b"].map(PathBuf::from), "root's own files count from podman 5 on");
    }

    #[test]
    fn append_keeps_what_was_in_force() {
        let root = tempfile::tempdir().unwrap();
        let host = tests_host(root.path(), 1001);
        write(&host, "/etc/containers/containers.conf", "[engine]\nhooks_dir=[\"/x\", {append=true}]\n");
        assert_eq!(dirs(&host), [DEFAULT_DIR, "/x"]);
    }

    #[test]
    fn an_empty_list_means_no_hooks_for_a_user_and_the_two_defaults_for_root() {
        let root = tempfile::tempdir().unwrap();
        let host = tests_host(root.path(), 1001);
        write(&host, "/etc/containers/containers.conf", "[engine]\nhooks_dir=[]\n");
        assert!(dirs(&host).is_empty());
        assert_eq!(dirs(&tests_host(root.path(), 0)), [DEFAULT_DIR, OVERRIDE_DIR]);
    }

    #[test]
    fn containers_conf_in_the_environment_hides_every_other_file() {
        let root = tempfile::tempdir().unwrap();
        let mut host = tests_host(root.path(), 1001);
        write(&host, "/etc/containers/containers.conf", "[engine]\nhooks_dir=[\"/x\"]\n");
        host.conf = Some(PathBuf::from("/dev/null"));
        assert_eq!(dirs(&host), [DEFAULT_DIR]);
        write(&host, "/over.conf", "[engine]\nhooks_dir=[\"/over\"]\n");
        host.conf_override = Some(host.at("/over.conf"));
        assert_eq!(dirs(&host), ["/over"]);
    }

    #[test]
    fn a_broken_file_is_named_with_its_line() {
        let root = tempfile::tempdir().unwrap();
        let host = tests_host(root.path(), 1001);
        write(&host, "/etc/containers/containers.conf", "[engine]\nhooks_dir = oops\n");
        let error = hook_dirs(&host, None).unwrap_err().to_string();
        assert!(error.contains("containers.conf: line 2"), "{error}");
        write(&host, "/etc/containers/containers.conf", "[engine]\nhooks_dir = \"/x\"\n");
        assert!(hook_dirs(&host, None).unwrap_err().to_string().contains("not a list"));
    }
}
