//! `terok setup` and `terok uninstall`: a list of steps as data, then their application.
//! Binaries come first, then hook files and what engines are told last, and the other way round on the way out: Podman skips a hook
//! whose program is missing without a word, so a hook file without its binary must never exist, not even for a moment.

use crate::all_containers;
use crate::containers_conf::{ConfError, DEFAULT_DIR, hook_dirs, system_hook_dirs};
use crate::engine;
use crate::hook_json::{Containers, HookFile, STAGES};
use crate::host::Host;
use crate::shim_settings;
use crate::target::{Scope, Target};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use terok_policy::layout;

/// One thing to do. Each is whole or not done, and doing it twice changes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Put a program in place.
    Program {
        /// Where it is now.
        from: PathBuf,
        /// Where it goes.
        to: PathBuf,
    },
    /// Make a name for a file in the same folder.
    Link {
        /// The name.
        at: PathBuf,
        /// The file's.
        to: String,
    },
    /// Put a text in place.
    Text {
        /// Where it goes.
        to: PathBuf,
        /// Its content.
        text: String,
    },
    /// Put a new text in the place of one that may hold a password: who could not read the old one cannot read the new one.
    Amended {
        /// Where it goes.
        to: PathBuf,
        /// Its content.
        text: String,
    },
    /// Take a file away.
    Remove(PathBuf),
    /// Take a folder away if it is empty.
    RemoveFolder(PathBuf),
    /// Take a folder away with all it holds.
    RemoveTree(PathBuf),
}

/// Why an installation could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A binary is not beside the running program.
    #[error(
        "{path}: missing; terok, terok-hook, terok-shim and terok-supervisor must be in one folder (cargo xtask dist puts them into target/dist/bin)"
    )]
    NoSource {
        /// Where it was expected.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("{path}: {error}{hint}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel says.
        error: io::Error,
        /// What to do.
        hint: &'static str,
    },
    /// The settings cannot be read, so nothing can be added to them.
    #[error("{path}: {reason}; put it right first")]
    Settings {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// An engine's configuration stands in the way.
    #[error("{path}: {reason}")]
    Engine {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// Podman's configuration cannot be read.
    #[error(transparent)]
    Conf(#[from] ConfError),
}

/// For which containers the hooks at `target` are now; annotated ones where none are installed.
pub fn installed_for(target: &Target) -> Containers {
    let all = STAGES.iter().any(|stage| {
        let text = std::fs::read(target.at(&target.hooks_dir().join(stage.file))).unwrap_or_default();
        let file = serde_json::from_slice::<HookFile>(&text).ok();
        file.and_then(|file| stage.is_in(&file)) == Some(Containers::All)
    });
    if all { Containers::All } else { Containers::Annotated }
}

/// The steps that install the binaries found in `source` at `target`, with hooks for `containers`.
///
/// # Errors
/// A missing binary, or a configuration that cannot be read.
pub fn install_steps(
    host: &Host,
    target: &Target,
    source: &Path,
    containers: Containers,
) -> Result<Vec<Step>, SetupError> {
    let mut steps = Vec::new();
    let places = [
        (layout::SUPERVISOR, target.bin_dir().join(layout::SUPERVISOR)),
        (layout::HOOK, target.bin_dir().join(layout::HOOK)),
        (layout::SHIM, target.bin_dir().join(layout::SHIM)),
        (layout::LAUNCHER, target.launcher()),
    ];
    for (name, to) in places {
        let from = source.join(name);
        // An installed launcher finds the others in their own folder.
        let from = if from.is_file() { from } else { target.at(&to) };
        if !from.is_file() {
            return Err(SetupError::NoSource { path: source.join(name) });
        }
        steps.push(Step::Program { from, to: target.at(&to) });
    }
    for runtime in layout::RUNTIMES {
        let at = target.at(&target.bin_dir().join(engine::link(runtime)));
        steps.push(Step::Link { at, to: layout::SHIM.to_owned() });
    }
    if containers == Containers::All {
        // Before the hooks that ask for it.
        steps.extend(all_containers::step(target)?);
    }
    steps.extend(shim_settings::step(target, containers == Containers::All)?);
    for stage in STAGES {
        let to = target.at(&target.hooks_dir().join(stage.file));
        steps.push(Step::Text { to, text: stage.file_for(target, containers).text() });
    }
    let to = target.at(&target.drop_in());
    let mut dirs = match target.scope {
        // A package is for other machines than the one that builds it.
        Scope::System if target.destdir != host.root => vec![PathBuf::from(DEFAULT_DIR)],
        Scope::System => system_hook_dirs(host, Some(&to))?.dirs,
        Scope::User { .. } => hook_dirs(host, Some(&to))?.dirs,
    };
    if !dirs.contains(&target.hooks_dir()) {
        dirs.push(target.hooks_dir());
    }
    steps.push(Step::Text { to, text: drop_in_text(&dirs) });
    Ok(steps)
}

/// The steps that take everything away again; with `purge`, audit logs and operator state as well.
pub fn uninstall_steps(host: &Host, target: &Target, purge: bool) -> Vec<Step> {
    let mut steps = vec![Step::Remove(target.at(&target.drop_in()))];
    for stage in STAGES.iter().rev() {
        steps.push(Step::Remove(target.at(&target.hooks_dir().join(stage.file))));
    }
    for runtime in layout::RUNTIMES {
        steps.push(Step::Remove(target.at(&target.bin_dir().join(engine::link(runtime)))));
    }
    for name in [layout::SHIM, layout::HOOK, layout::SUPERVISOR] {
        steps.push(Step::Remove(target.at(&target.bin_dir().join(name))));
    }
    steps.push(Step::Remove(target.at(&target.launcher())));
    // Settings that somebody wrote into stay, as profiles do.
    if all_containers::is_untouched(target) {
        steps.push(Step::Remove(target.at(&target.settings())));
    }
    // What cannot be read is somebody's, and stays.
    steps.extend(shim_settings::step(target, false).ok().flatten());
    steps.extend(target.folders().iter().map(|folder| Step::RemoveFolder(target.at(folder))));
    if purge {
        steps.push(Step::RemoveTree(host.state_dir()));
        steps.push(Step::Remove(host.panic_marker()));
        if host.rootless() {
            steps.extend(host.state_dir().parent().map(|folder| Step::RemoveFolder(folder.to_path_buf())));
        }
        steps.push(Step::RemoveFolder(host.run_dir()));
    }
    steps
}

impl Step {
    /// What it is about.
    pub fn path(&self) -> &Path {
        match self {
            Step::Program { to, .. } | Step::Text { to, .. } | Step::Amended { to, .. } => to,
            Step::Link { at, .. } => at,
            Step::Remove(path) | Step::RemoveFolder(path) | Step::RemoveTree(path) => path,
        }
    }

    /// The text that it puts in place.
    pub fn text(&self) -> Option<&str> {
        match self {
            Step::Text { text, .. } | Step::Amended { text, .. } => Some(text),
            _ => None,
        }
    }
}

/// Whether a step about a text would change nothing of it.
pub(crate) fn is_done(step: &Step) -> bool {
    step.text().is_none_or(|text| std::fs::read_to_string(step.path()).is_ok_and(|old| old == text))
}

/// Does `steps` in order and returns what was changed: nothing where all was so already.
///
/// # Errors
/// The first step that fails; those before it stand.
pub fn apply(steps: &[Step]) -> Result<Vec<PathBuf>, SetupError> {
    let mut changed = Vec::new();
    for step in steps {
        let (path, done) = match step {
            Step::Program { from, to } => (to, put_program(from, to)),
            Step::Link { at, to } => (at, put_link(at, to)),
            Step::Text { to, text } => (to, put(to, text.as_bytes(), 0o644)),
            Step::Amended { to, text } => (to, put(to, text.as_bytes(), mode_of(to).unwrap_or(0o644))),
            Step::Remove(path) => (path, remove(path)),
            Step::RemoveFolder(path) => (path, remove_if_empty(path)),
            Step::RemoveTree(path) => (path, missing_is_fine(std::fs::remove_dir_all(path))),
        };
        match done {
            Ok(true) => changed.push(path.clone()),
            Ok(false) => {}
            Err(error) => {
                let hint = if error.kind() == io::ErrorKind::PermissionDenied {
                    "; run it as root for --system"
                } else {
                    ""
                };
                return Err(SetupError::Io { path: path.clone(), error, hint });
            }
        }
    }
    Ok(changed)
}

fn mode_of(path: &Path) -> Option<u32> {
    std::fs::metadata(path).ok().map(|meta| meta.permissions().mode() & 0o777)
}

fn drop_in_text(dirs: &[PathBuf]) -> String {
    let list: Vec<_> =
        dirs.iter().map(|dir| toml::Value::from(dir.display().to_string()).to_string()).collect();
    format!(
        "# Written by `terok setup`, taken away by `terok uninstall`.\n\
         # The last hooks_dir that podman reads replaces the earlier ones, so those in force are repeated here.\n\
         [engine]\nhooks_dir = [{}]\n",
        list.join(", ")
    )
}

fn put_program(from: &Path, to: &Path) -> io::Result<bool> {
    let mut content = Vec::new();
    std::fs::File::open(from)?.read_to_end(&mut content)?;
    put(to, &content, 0o755)
}

/// Writes by temporary file, sync and rename, so that `to` is the old file or the new one, whole. Returns whether
/// anything changed.
///
/// # Errors
/// Whatever the file system says.
pub fn put(to: &Path, content: &[u8], mode: u32) -> io::Result<bool> {
    let same = |meta: std::fs::Metadata| {
        meta.is_file()
            && meta.permissions().mode() & 0o7777 == mode
            && std::fs::read(to).is_ok_and(|old| old == content)
    };
    if std::fs::symlink_metadata(to).is_ok_and(same) {
        return Ok(false);
    }
    let folder = to.parent().ok_or_else(|| io::Error::other("has no folder"))?;
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    let temporary = temporary(to);
    missing_is_fine(std::fs::remove_file(&temporary))?;
    let written =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary).and_then(
            |mut file| {
                file.write_all(content)?;
                // The umask must not decide who can run the hook.
                file.set_permissions(std::fs::Permissions::from_mode(mode))?;
                file.sync_all()
            },
        );
    if let Err(error) = written.and_then(|()| std::fs::rename(&temporary, to)) {
        missing_is_fine(std::fs::remove_file(&temporary))?;
        return Err(error);
    }
    sync_parent(to)?;
    Ok(true)
}

fn put_link(at: &Path, to: &str) -> io::Result<bool> {
    if std::fs::read_link(at).is_ok_and(|old| old == Path::new(to)) {
        return Ok(false);
    }
    let temporary = temporary(at);
    missing_is_fine(std::fs::remove_file(&temporary))?;
    std::os::unix::fs::symlink(to, &temporary)?;
    if let Err(error) = std::fs::rename(&temporary, at) {
        missing_is_fine(std::fs::remove_file(&temporary))?;
        return Err(error);
    }
    sync_parent(at)?;
    Ok(true)
}

/// Where `to` is written before it is renamed: no name that Podman reads.
fn temporary(to: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(to.file_name().unwrap_or_default());
    name.push(".new");
    to.with_file_name(name)
}

/// Removes a file, and what an interrupted [`put`] left beside it.
fn remove(path: &Path) -> io::Result<bool> {
    missing_is_fine(std::fs::remove_file(temporary(path)))?;
    missing_is_fine(std::fs::remove_file(path).and_then(|()| sync_parent(path)))
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| std::fs::File::open(folder)?.sync_all())
}

fn missing_is_fine(done: io::Result<()>) -> io::Result<bool> {
    match done {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn remove_if_empty(path: &Path) -> io::Result<bool> {
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
        done => missing_is_fine(done),
    }
}

/// Installs stand-in binaries for the user of `host`, below its root.
#[cfg(test)]
pub(crate) fn tests_install(host: &Host) -> Vec<PathBuf> {
    let source = host.at("/build");
    std::fs::create_dir_all(&source).unwrap();
    for name in [layout::LAUNCHER, layout::HOOK, layout::SHIM, layout::SUPERVISOR] {
        std::fs::write(source.join(name), format!("program {name}")).unwrap();
    }
    let target = Target::of(host, false, None);
    let containers = installed_for(&target);
    apply(&install_steps(host, &target, &source, containers).unwrap()).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consulted::consulted;
    use crate::hook_json::HookFile;
    use crate::host::tests_host;
    use std::collections::BTreeMap;

    /// Every file below `root` with its content and mode.
    fn tree(root: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
        let mut found = BTreeMap::new();
        let mut folders = vec![root.to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let mode = path.metadata().unwrap().permissions().mode();
                    found.insert(path.clone(), (mode, std::fs::read(&path).unwrap()));
                }
            }
        }
        found
    }

    /// No hook file anywhere below `root` names a program that is not there.
    fn no_hook_without_its_binary(host: &Host) {
        for (path, (_, content)) in tree(&host.root) {
            if path.extension().is_some_and(|extension| extension == "json") {
                let file: HookFile = serde_json::from_slice(&content).unwrap();
                assert!(host.at(&file.hook.path).is_file(), "{} without its binary", path.display());
                assert!(host.at(file.hook.path.with_file_name(layout::SUPERVISOR)).is_file());
            }
        }
    }

    #[test]
    fn a_second_setup_changes_nothing() {
        for uid in [0, 1001] {
            let root = tempfile::tempdir().unwrap();
            let host = tests_host(root.path(), uid);
            assert!(!tests_install(&host).is_empty());
            let before = tree(root.path());
            assert_eq!(tests_install(&host), Vec::<PathBuf>::new());
            assert_eq!(tree(root.path()), before);
            consulted(&host).unwrap();
        }
    }

    #[test]
    fn uninstall_leaves_nothing_and_purge_takes_the_state_too() {
        for uid in [0, 1001] {
            let root = tempfile::tempdir().unwrap();
            let host = tests_host(root.path(), uid);
            tests_install(&host);
            std::fs::remove_dir_all(host.at("/build")).unwrap();
            std::fs::create_dir_all(host.state_dir().join("abc")).unwrap();
            let hooks = Target::of(&host, false, None).hooks_dir();
            std::fs::write(host.at(hooks.join(".50-terok-stop.json.new")), "half").unwrap();
            std::fs::write(host.state_dir().join("abc/audit.jsonl"), "{}").unwrap();
            let target = Target::of(&host, false, None);
            apply(&uninstall_steps(&host, &target, false)).unwrap();
            assert_eq!(tree(root.path()).len(), 1, "the audit log stays");
            assert_eq!(apply(&uninstall_steps(&host, &target, false)).unwrap(), Vec::<PathBuf>::new());
            apply(&uninstall_steps(&host, &target, true)).unwrap();
            assert!(tree(root.path()).is_empty());
        }
    }

    #[test]
    fn interrupted_after_any_step_no_hook_file_lacks_its_binary() {
        for uid in [0, 1001] {
            let root = tempfile::tempdir().unwrap();
            let host = tests_host(root.path(), uid);
            tests_install(&host);
            let target = Target::of(&host, false, None);
            let install = install_steps(&host, &target, &host.at("/build"), Containers::Annotated).unwrap();
            let uninstall = uninstall_steps(&host, &target, false);
            for done in 0..=uninstall.len() {
                tests_install(&host);
                apply(&uninstall[..done]).unwrap();
                no_hook_without_its_binary(&host);
            }
            for done in 0..=install.len() {
                apply(&uninstall).unwrap();
                apply(&install[..done]).unwrap();
                no_hook_without_its_binary(&host);
            }
        }
    }

    #[test]
    fn while_installing_and_removing_a_start_is_never_half_guarded() {
        // precreate without create would let a container through with no table.
        let root = tempfile::tempdir().unwrap();
        let host = tests_host(root.path(), 0);
        tests_install(&host);
        let target = Target::of(&host, false, None);
        let dir = target.at(&target.hooks_dir());
        let uninstall = uninstall_steps(&host, &target, false);
        for done in 0..=uninstall.len() {
            tests_install(&host);
            apply(&uninstall[..done]).unwrap();
            assert!(dir.join(STAGES[0].file).exists() || !dir.join(STAGES[1].file).exists());
        }
    }

    #[test]
    fn the_drop_in_keeps_the_directories_in_force() {
        let root = tempfile::tempdir().unwrap();
        let host = tests_host(root.path(), 1001);
        let conf = host.at("/etc/containers/containers.conf");
        std::fs::create_dir_all(conf.parent().unwrap()).unwrap();
        std::fs::write(&conf, "[engine]\nhooks_dir=[\"/etc/my hooks\", \"/q\\\"uote\"]\n").unwrap();
        tests_install(&host);
        let dirs = hook_dirs(&host, None).unwrap().dirs;
        let expected = ["/etc/my hooks", "/q\"uote", "/home/u/.local/share/terok/hooks.d"];
        assert_eq!(dirs, expected.map(PathBuf::from));
    }

    #[test]
    fn roots_builds_do_not_meet_the_hooks() {
        // Buildah reads this folder unasked, and gives up at a hook that is for Podman alone.
        let root = tempfile::tempdir().unwrap();
        let host = tests_host(root.path(), 0);
        let own = host.at(host.config_home.join("containers/containers.conf"));
        std::fs::create_dir_all(own.parent().unwrap()).unwrap();
        std::fs::write(&own, "[engine]\nhooks_dir=[\"/root/private\", \"/usr/share/terok/hooks.d\"]\n")
            .unwrap();
        tests_install(&host);
        assert!(!host.at(DEFAULT_DIR).exists());
        let everybody = system_hook_dirs(&host, None).unwrap();
        let expected = [DEFAULT_DIR, "/usr/share/terok/hooks.d"].map(PathBuf::from);
        assert_eq!(everybody.dirs, expected, "and root's own directories are root's");
        consulted(&host).unwrap();
    }

    #[test]
    fn hooks_for_all_containers_stay_so_until_they_are_told_otherwise() {
        for uid in [0, 1001] {
            let root = tempfile::tempdir().unwrap();
            let host = tests_host(root.path(), uid);
            tests_install(&host);
            let target = Target::of(&host, false, None);
            let install = |containers| {
                apply(&install_steps(&host, &target, &host.at("/build"), containers).unwrap()).unwrap()
            };
            assert_eq!(install(Containers::All).len(), 5, "three hooks, the settings and the shim's");
            assert_eq!(consulted(&host).unwrap().containers, Containers::All);
            let before = tree(root.path());
            assert_eq!(tests_install(&host), Vec::<PathBuf>::new(), "a plain setup keeps it");
            assert_eq!(tree(root.path()), before);
            assert_eq!(install(Containers::Annotated).len(), 4);
            assert_eq!(consulted(&host).unwrap().containers, Containers::Annotated);
            install(Containers::All);
            std::fs::remove_dir_all(host.at("/build")).unwrap();
            apply(&uninstall_steps(&host, &target, false)).unwrap();
            assert!(tree(root.path()).is_empty());
        }
    }

    #[test]
    fn interrupted_between_the_two_kinds_of_hooks_it_is_noticed() {
        let root = tempfile::tempdir().unwrap();
        let host = tests_host(root.path(), 0);
        tests_install(&host);
        let target = Target::of(&host, false, None);
        let steps = install_steps(&host, &target, &host.at("/build"), Containers::All).unwrap();
        // The last hook file and the drop-in, which is there already.
        apply(&steps[..steps.len() - 2]).unwrap();
        let error = consulted(&host).unwrap_err().to_string();
        assert!(error.contains("for every container") && error.contains("terok setup"), "{error}");
        assert_eq!(installed_for(&target), Containers::All, "a setup without options finishes it");
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_temporary() {
        let root = tempfile::tempdir().unwrap();
        let to = root.path().join("x");
        std::fs::create_dir(&to).unwrap();
        put(&to, b"new", 0o644).unwrap_err();
        assert!(to.is_dir());
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_binary_changes_nothing() {
        let root = tempfile::tempdir().unwrap();
        let host = tests_host(root.path(), 0);
        let target = Target::of(&host, false, None);
        let error = install_steps(&host, &target, Path::new("/nowhere"), Containers::Annotated).unwrap_err();
        assert!(error.to_string().contains("/nowhere/terok-supervisor"));
    }
}
