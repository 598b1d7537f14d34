//! containerd, as a Kubernetes node has it: a runtime handler in the table of its CRI plugin. The file belongs to the machine's
//! people: what they wrote, comments too, stays octet by octet.
//!
//! The handler is the default runtime over again, with the shim before it, so that a pod under it is set up as any other
//! (`SystemdCgroup` must agree with the kubelet). Two things containerd 1 does are why this is no drop-in: a file in `imports` that
//! names the plugin replaces the plugin's whole table, and a table that names any runtime displaces the built-in `runc`.

use crate::doctor::Finding;
use crate::engine::{Registered, Removal, is_shim, shim_before};
use crate::host::Host;
use crate::process::{command_lines, is_called};
use crate::setup::{SetupError, Step};
use crate::target::{Scope, Target};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use terok_policy::layout;
use toml_edit::{DocumentMut, InlineTable, Item, Table, TableLike, Value};

/// containerd's configuration (containerd-config.toml(5)).
const FILE: &str = "/etc/containerd/config.toml";
/// Where the daemon answers.
const SOCKET: &str = "/run/containerd/containerd.sock";
/// Containers run on meanwhile.
pub(super) const RELOAD: &str = "systemctl restart containerd";
/// The plugin by its name in files of version 2, and in later ones.
const PLUGIN_2: &str = "io.containerd.grpc.v1.cri";
const PLUGIN_3: &str = "io.containerd.cri.v1.runtime";
/// The newest version whose names are known.
const NEWEST: i64 = 4;
/// containerd's runtimes that call an OCI runtime, `BinaryName`.
const RUNC_V2: &str = "io.containerd.runc.v2";
const BUILT_IN: &str = "runc";
/// Annotations of a pod that the handler passes on.
const PASSED_ON: &str = "terok.*";
const DEFAULT: &str = "default_runtime_name";
/// Begins the comment beside a default of ours, which says what was there: a name, none, or not even its table's head.
const BEFORE: &str = " # before terok: ";
const NO_NAME: &str = "\"\"";
const NO_HEAD: &str = "nothing";
const OF_OURS: &str = "# Written by `terok setup`, taken away by `terok uninstall`.\n";
const OF_BUILT_IN: &str =
    "# Written by `terok setup`: containerd 1 forgets its own where another is named.\n";
/// What a file begins with that is made where there is none: containerd 2.2 reads this folder by itself only then.
const FRESH: &str = "# Made by `terok setup`, taken away by `terok uninstall`.\nversion = 2\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n";

pub(super) fn registered(target: &Target) -> Result<Registered, SetupError> {
    let Some(file) = File::of(target)? else { return Ok(Registered::No) };
    Ok(match (file.handler().is_some_and(is_ours), file.default() == layout::ENGINE_RUNTIME) {
        (false, _) => Registered::No,
        (true, false) => Registered::Named,
        (true, true) => Registered::Default,
    })
}

pub(super) fn register(host: &Host, target: &Target, default: bool) -> Result<Vec<Step>, SetupError> {
    let path = target.at(Path::new(FILE));
    let refused = |path: &Path, reason: String| Err(SetupError::Engine { path: path.to_path_buf(), reason });
    if let Scope::User { .. } = target.scope {
        return refused(
            Path::new(FILE),
            "containerd is the machine's: as root, terok setup --engine containerd".to_owned(),
        );
    }
    // Below a destdir there may be a whole machine, as a pod sees its node; a package's has no processes.
    if let Some(other) = other_file(&Host { root: target.destdir.clone(), ..host.clone() }) {
        return refused(
            &path,
            format!(
                "the running containerd reads {other} in its place: add the handler there (docs/kubernetes.md)"
            ),
        );
    }
    let (mut file, made) = match File::of(target)? {
        Some(file) => (file, false),
        None => (File::parse(path.clone(), FRESH)?, true),
    };
    if let Err(reason) = file.add(target, default) {
        return refused(&file.path, reason);
    }
    let text = file.document.to_string();
    Ok(vec![if made { Step::Text { to: path, text } } else { Step::Amended { to: file.path, text } }])
}

pub(super) fn unregister(target: &Target) -> Result<Removal, SetupError> {
    if let Scope::User { .. } = target.scope {
        return Ok(Removal::default());
    }
    let Some(mut file) = File::of(target)? else { return Ok(Removal::default()) };
    match file.handler() {
        None => return Ok(Removal::default()),
        Some(handler) if !is_ours(handler) => {
            let note = format!(
                "{}: the runtime {} is not terok's and stays",
                file.path.display(),
                layout::ENGINE_RUNTIME
            );
            return Ok(Removal { steps: Vec::new(), notes: vec![note] });
        }
        Some(_) => {}
    }
    file.remove();
    let text = file.document.to_string();
    let step = match text == FRESH {
        true => Step::Remove(file.path),
        false => Step::Amended { to: file.path, text },
    };
    Ok(Removal { steps: vec![step], notes: Vec::new() })
}

/// Whether the running containerd has read its file since somebody wrote it; nothing where none runs. Its socket is made anew at each
/// start.
pub(super) fn hidden(host: &Host, target: &Target) -> Option<Finding> {
    let wanted = registered(target).ok().filter(|registered| *registered != Registered::No)?;
    let written = File::of(target).ok()??.path.metadata().ok()?.modified().ok()?;
    let started = std::fs::symlink_metadata(host.at(SOCKET)).ok()?.modified().ok()?;
    if started >= written {
        return None;
    }
    let what = format!("containerd has not read {FILE} since it was written");
    Some(match wanted {
        Registered::Default => Finding::fail(
            "shim",
            format!("{what}: pods that name no runtime class may start without protection"),
            format!("run: {RELOAD}"),
        ),
        _ => Finding::warn("shim", what, format!("run: {RELOAD}")),
    })
}

/// The file that a running containerd reads, where none reads ours. Docker's own, below `/var/run/docker` or `/run/docker`, starts
/// no pods.
fn other_file(host: &Host) -> Option<String> {
    let daemons = command_lines(host).into_iter().filter(|words| is_called(words, "containerd"));
    let files = daemons.map(|words| {
        let option = |name: &str| ["-c", "--config", "-config"].contains(&name);
        let said = words.iter().enumerate().find_map(|(n, word)| match word.split_once('=') {
            Some((name, value)) if option(name) => Some(value.to_owned()),
            _ if option(word) => words.get(n + 1).cloned(),
            _ => None,
        });
        said.unwrap_or_else(|| FILE.to_owned())
    });
    let mut files: Vec<_> = files.filter(|file| !file.contains("run/docker/")).collect();
    if files.iter().any(|file| file == FILE) { None } else { files.pop() }
}

/// A file of containerd's.
struct File {
    path: PathBuf,
    document: DocumentMut,
    plugin: &'static str,
}

impl File {
    /// The file that has the last word on the plugin; `None` where there is no configuration.
    fn of(target: &Target) -> Result<Option<Self>, SetupError> {
        let path = target.at(Path::new(FILE));
        let Some(main) = Self::read(&path)? else { return Ok(None) };
        if main.plugin == PLUGIN_3 {
            return Ok(Some(main)); // containerd 2 puts tables of both together
        }
        let mut imported = Vec::new();
        for path in main.imports(target)? {
            imported
                .extend(Self::read(&path)?.filter(|file| file.table(&["plugins", file.plugin]).is_some()));
        }
        if imported.len() > 1 {
            let names: Vec<_> = imported.iter().map(|file| file.path.display().to_string()).collect();
            let reason = format!(
                "{} each replace the whole table of the plugin {PLUGIN_2} in containerd 1: put them together first",
                names.join(" and ")
            );
            return Err(SetupError::Engine { path, reason });
        }
        Ok(Some(imported.pop().unwrap_or(main)))
    }

    fn read(path: &Path) -> Result<Option<Self>, SetupError> {
        let failed = |error: std::io::Error| SetupError::Engine {
            path: path.to_path_buf(),
            reason: error.to_string(),
        };
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            read => read.map_err(failed)?,
        };
        Self::parse(path.canonicalize().map_err(failed)?, &text).map(Some)
    }

    fn parse(path: PathBuf, text: &str) -> Result<Self, SetupError> {
        let refused = |reason: String| SetupError::Engine { path: path.clone(), reason };
        let document: DocumentMut = text.parse().map_err(|error: toml_edit::TomlError| {
            let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
            let what = error.message().replace('\n', " ");
            refused(format!("line {line}: {what}; containerd does not start with it: put it right first"))
        })?;
        let off = document.get("disabled_plugins").and_then(Item::as_array);
        let is_cri =
            |name: &Value| name.as_str().is_some_and(|name| ["cri", PLUGIN_2, PLUGIN_3].contains(&name));
        if off.is_some_and(|off| off.iter().any(is_cri)) {
            return Err(refused(
                "disabled_plugins holds cri, so no kubelet can use this containerd: take it out of the list first".to_owned(),
            ));
        }
        let plugin = match document.get("version").map(Item::as_integer) {
            Some(Some(2)) => PLUGIN_2,
            Some(Some(version)) if version > 2 && version <= NEWEST => PLUGIN_3,
            Some(_) => return Err(refused(format!("version is none from 2 to {NEWEST}, which terok knows"))),
            None => {
                return Err(refused(
                    "has no version, so it is of version 1, which containerd 2 does not read: see containerd config migrate".to_owned(),
                ));
            }
        };
        Ok(File { path, document, plugin })
    }

    /// The files that this one imports: patterns have their star in the last part, as containerd's documents do.
    fn imports(&self, target: &Target) -> Result<Vec<PathBuf>, SetupError> {
        let patterns = self.document.get("imports").and_then(Item::as_array).into_iter().flatten();
        let mut paths = Vec::new();
        for pattern in patterns.filter_map(Value::as_str).map(Path::new) {
            // Relative ones are beside the file.
            let pattern = match pattern.is_absolute() {
                true => target.at(pattern),
                false => self.path.with_file_name(pattern),
            };
            let name = pattern.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Some((head, tail)) = name.split_once('*') else {
                paths.push(pattern);
                continue;
            };
            let entries = pattern.parent().and_then(|folder| std::fs::read_dir(folder).ok());
            let mut found: Vec<_> =
                entries.into_iter().flatten().flatten().map(|entry| entry.path()).collect();
            found.retain(|path| {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                name.len() >= head.len() + tail.len() && name.starts_with(head) && name.ends_with(tail)
            });
            found.sort();
            paths.extend(found);
        }
        Ok(paths)
    }

    fn table(&self, path: &[&str]) -> Option<&dyn TableLike> {
        let mut table: &dyn TableLike = self.document.as_table();
        for name in path {
            table = table.get(name)?.as_table_like()?;
        }
        Some(table)
    }

    fn runtime(&self, name: &str) -> Option<&dyn TableLike> {
        self.table(&["plugins", self.plugin, "containerd", "runtimes", name])
    }

    fn handler(&self) -> Option<&dyn TableLike> {
        self.runtime(layout::ENGINE_RUNTIME)
    }

    /// Name of the runtime of pods that name none.
    fn default(&self) -> &str {
        let containerd = self.table(&["plugins", self.plugin, "containerd"]);
        containerd.and_then(|table| table.get(DEFAULT)?.as_str()).unwrap_or(BUILT_IN)
    }

    /// What [`File::default`] was before it was ours, as it was written.
    fn before(&self) -> Option<(String, String)> {
        let containerd = self.table(&["plugins", self.plugin, "containerd"])?;
        let comment = containerd.get(DEFAULT)?.as_value()?.decor().suffix()?.as_str()?;
        let said = comment.strip_prefix(BEFORE)?;
        // A name in quotes, and then whatever stood behind it.
        let end = said.get(1..)?.find('"').map_or(said.len(), |end| end + 2);
        let (name, rest) = said.split_at(end);
        let name = if name == NO_HEAD { "" } else { name.trim_matches('"') };
        Some((name.to_owned(), rest.to_owned()))
    }

    fn add(&mut self, target: &Target, default: bool) -> Result<(), String> {
        let name = layout::ENGINE_RUNTIME;
        if self.handler().is_some_and(|handler| !is_ours(handler)) {
            return Err(format!("a runtime {name} is there already and not terok's: give it another name"));
        }
        let like = match self.before() {
            Some((before, _)) if self.default() == name && !before.is_empty() => before,
            _ if self.default() == name => BUILT_IN.to_owned(),
            _ => self.default().to_owned(),
        };
        let handler = self.handler_like(target, &like, default)?;
        let none =
            self.table(&["plugins", self.plugin, "containerd", "runtimes"]).is_none_or(TableLike::is_empty);
        let plugin = self.plugin;
        let containerd =
            child(child(child(self.document.as_table_mut(), "plugins")?, plugin)?, "containerd")?;
        if none && like != BUILT_IN {
            return Err(format!("{DEFAULT} is {like:?}, which is no runtime in this file"));
        }
        let runtimes = child(containerd, "runtimes")?;
        if none {
            let mut built_in = Table::new();
            built_in.insert("runtime_type", RUNC_V2.into());
            built_in.decor_mut().set_prefix(format!("\n{OF_BUILT_IN}"));
            runtimes.insert(BUILT_IN, Item::Table(built_in));
        }
        let there = runtimes.get(name).and_then(Item::as_table_like);
        if !there.is_some_and(|there| is_same(there, &handler)) {
            runtimes.insert(name, Item::Table(handler));
        }
        match (default, self.default() == name) {
            (true, false) => self.make_default(),
            (false, true) => self.restore_default(),
            _ => Ok(()),
        }
    }

    /// The runtime `like` with the shim before it. One that calls no OCI runtime which the shim knows can be no default of ours:
    /// pods would lose what it does.
    fn handler_like(&self, target: &Target, like: &str, default: bool) -> Result<Table, String> {
        let text =
            |table: &dyn TableLike, key: &str| table.get(key).and_then(Item::as_str).map(str::to_owned);
        let other = self.runtime(like);
        let binary = other.and_then(|table| text(table.get("options")?.as_table_like()?, "BinaryName"));
        let binary = binary.filter(|binary| !binary.is_empty()).unwrap_or_else(|| BUILT_IN.to_owned());
        let called = Path::new(&binary).file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let kind = other.and_then(|table| text(table, "runtime_type"));
        let fits = kind.is_none_or(|kind| kind == RUNC_V2) && layout::RUNTIMES.contains(&called);
        if default && !fits {
            return Err(format!(
                "{DEFAULT} is {like:?}, before which terok does not stand: choose another, or leave out --default-runtime"
            ));
        }
        let mut handler = Table::new();
        handler.decor_mut().set_prefix(format!("\n{OF_OURS}"));
        let mut options = Table::new();
        handler.insert("runtime_type", RUNC_V2.into());
        let mut passed_on = toml_edit::Array::new();
        if let Some(other) = other.filter(|_| fits) {
            for (key, value) in other.iter() {
                match key {
                    "options" => {
                        let values = value.as_table_like().into_iter().flat_map(TableLike::iter);
                        values.for_each(|(key, value)| drop(options.insert(key, bare(value))));
                    }
                    "pod_annotations" => {
                        let patterns = value.as_array().into_iter().flatten();
                        patterns.filter_map(Value::as_str).for_each(|pattern| passed_on.push(pattern));
                    }
                    _ => drop(handler.insert(key, bare(value))),
                }
            }
        }
        if !passed_on.iter().any(|pattern| pattern.as_str() == Some(PASSED_ON)) {
            passed_on.push(PASSED_ON);
        }
        handler.insert("pod_annotations", Item::Value(passed_on.into()));
        let shim = shim_before(target, if fits { called } else { BUILT_IN });
        options.insert("BinaryName", shim.display().to_string().into());
        handler.insert("options", Item::Table(options));
        Ok(handler)
    }

    fn make_default(&mut self) -> Result<(), String> {
        let plugin = self.plugin;
        let head = self.document.get("plugins").and_then(|item| item.get(plugin)?.get("containerd"));
        let head = !head.and_then(Item::as_table).is_some_and(Table::is_implicit);
        let containerd =
            child(child(child(self.document.as_table_mut(), "plugins")?, plugin)?, "containerd")?;
        let mut value = Value::from(layout::ENGINE_RUNTIME);
        let before = match containerd.get(DEFAULT).and_then(Item::as_value) {
            Some(old) => {
                let behind = old.decor().suffix().and_then(|suffix| suffix.as_str()).unwrap_or_default();
                format!("{:?}{behind}", old.as_str().unwrap_or_default())
            }
            None if head => NO_NAME.to_owned(),
            None => NO_HEAD.to_owned(),
        };
        *value.decor_mut() = toml_edit::Decor::new(" ", format!("{BEFORE}{before}"));
        // The key keeps the place and the comments that it has.
        match containerd.get_mut(DEFAULT) {
            Some(old) => *old = Item::Value(value),
            None => drop(containerd.insert(DEFAULT, Item::Value(value))),
        }
        Ok(())
    }

    fn restore_default(&mut self) -> Result<(), String> {
        let before = self.before();
        let plugin = self.plugin;
        let containerd =
            child(child(child(self.document.as_table_mut(), "plugins")?, plugin)?, "containerd")?;
        match before {
            Some((name, behind)) if !name.is_empty() => {
                let mut value = Value::from(name);
                *value.decor_mut() = toml_edit::Decor::new(" ", behind);
                if let Some(old) = containerd.get_mut(DEFAULT) {
                    *old = Item::Value(value);
                }
            }
            _ => {
                let comment = containerd
                    .get(DEFAULT)
                    .and_then(Item::as_value)
                    .and_then(|value| value.decor().suffix()?.as_str());
                let head = comment != Some(&format!("{BEFORE}{NO_HEAD}"));
                containerd.remove(DEFAULT);
                let plugin = self.document.get_mut("plugins").and_then(|item| item.get_mut(plugin));
                let table = plugin.and_then(|item| item.get_mut("containerd")?.as_table_mut());
                if let Some(table) = table.filter(|_| !head) {
                    table.set_implicit(true);
                }
            }
        }
        Ok(())
    }

    /// Takes away what [`File::add`] wrote, with the tables that nothing else stands in.
    fn remove(&mut self) {
        if self.default() == layout::ENGINE_RUNTIME {
            // The tables are there, or this would not be so.
            let _ = self.restore_default();
        }
        let path = ["plugins", self.plugin, "containerd", "runtimes"];
        let mut table: Option<&mut dyn TableLike> = Some(self.document.as_table_mut());
        for name in path {
            table = table.and_then(|table| table.get_mut(name)?.as_table_like_mut());
        }
        if let Some(runtimes) = table {
            runtimes.remove(layout::ENGINE_RUNTIME);
            if runtimes.get(BUILT_IN).is_some_and(is_our_built_in) {
                runtimes.remove(BUILT_IN);
            }
        }
        prune(self.document.as_table_mut(), &path);
    }
}

/// The table `name`, made where it is not; made ones show only what is in them.
fn child<'t>(table: &'t mut dyn TableLike, name: &str) -> Result<&'t mut dyn TableLike, String> {
    let made = || {
        let mut made = Table::new();
        made.set_implicit(true);
        Item::Table(made)
    };
    if table.get(name).is_none_or(Item::is_none) {
        table.insert(name, made());
    }
    let item = table.get_mut(name).ok_or_else(|| format!("{name} is not there"))?;
    item.as_table_like_mut().ok_or_else(|| format!("{name} is not a table"))
}

/// Takes the empty tables away that [`child`] made: nobody wrote their heads.
fn prune(table: &mut dyn TableLike, path: &[&str]) {
    let Some((name, rest)) = path.split_first() else { return };
    if let Some(inner) = table.get_mut(name).and_then(Item::as_table_like_mut) {
        prune(inner, rest);
    }
    if table.get(name).and_then(Item::as_table).is_some_and(|inner| inner.is_empty() && inner.is_implicit()) {
        table.remove(name);
    }
}

/// Whether a handler calls the shim, however it came there.
fn is_ours(handler: &dyn TableLike) -> bool {
    let options = handler.get("options").and_then(Item::as_table_like);
    let binary = options.and_then(|options| options.get("BinaryName")?.as_str());
    binary.is_some_and(|binary| is_shim(Path::new(binary)))
}

/// Whether it is the one of ours, with nothing added by somebody.
fn is_our_built_in(runtime: &Item) -> bool {
    let Some(table) = runtime.as_table() else { return false };
    let comment = table.decor().prefix().and_then(|prefix| prefix.as_str()).unwrap_or_default();
    comment.ends_with(OF_BUILT_IN) && table.len() == 1
}

/// Whether two tables say the same, in whatever order and with whatever comments.
fn is_same(one: &dyn TableLike, other: &dyn TableLike) -> bool {
    one.len() == other.len()
        && one.iter().all(|(key, value)| match (value.as_table_like(), other.get(key)) {
            (_, None) => false,
            (Some(one), Some(other)) => other.as_table_like().is_some_and(|other| is_same(one, other)),
            (None, Some(other)) => bare(value).to_string() == bare(other).to_string(),
        })
}

/// The same values without comments and spaces of somebody's own.
fn bare(item: &Item) -> Item {
    match item {
        Item::Value(Value::InlineTable(table)) => {
            let values = table.iter().map(|(key, value)| (key, bare_value(value)));
            Item::Value(Value::InlineTable(values.collect::<InlineTable>()))
        }
        Item::Value(value) => Item::Value(bare_value(value)),
        Item::Table(table) => {
            let mut plain = Table::new();
            table.iter().for_each(|(key, value)| drop(plain.insert(key, bare(value))));
            Item::Table(plain)
        }
        other => other.clone(),
    }
}

fn bare_value(value: &Value) -> Value {
    let mut plain = value.clone();
    plain.decor_mut().clear();
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;
    use crate::engine::{Engine, register_steps};
    use crate::host::{tests_file as write, tests_host};
    use crate::process::tests_process;
    use crate::setup::apply;
    use std::os::unix::fs::PermissionsExt;

    /// As kubeadm's documents have it.
    const KUBEADM: &str = r#"# nodes of the lab
version = 2

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.9" # as kubeadm wants it
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"  # ours
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      pod_annotations = ["lab.example.com/*"]
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = true # the kubelet's driver

[debug]
  level = "info"
"#;
    /// Debian's package.
    const DEBIAN: &str = r#"version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
      conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd/opt"
"#;
    const SHIM: &str = "/usr/libexec/terok/terok-shim-runc";

    fn set_up(host: &Host, asked: bool, default: Option<bool>) -> Result<Vec<PathBuf>, SetupError> {
        let asked = if asked { vec![Engine::Containerd] } else { Vec::new() };
        let all = register_steps(host, &Target::of(host, false, None), &asked, default)?;
        Ok(all.iter().flat_map(|(_, steps)| apply(steps).unwrap()).collect())
    }

    #[test]
    fn a_daemon_that_has_not_read_its_file_is_told_of() {
        let root = tempfile::tempdir().unwrap();
        let host = tests_host(root.path(), 0);
        let target = Target::of(&host, false, None);
        let unread = || Engine::Containerd.is_unread(&host, &target);
        set_up(&host, true, None).unwrap();
        assert!(!unread(), "none runs");
        let written = std::fs::metadata(host.at(FILE)).unwrap().modified().unwrap();
        std::fs::create_dir_all(host.at(SOCKET).parent().unwrap()).unwrap();
        let socket = std::fs::File::create(host.at(SOCKET)).unwrap();
        let minute = std::time::Duration::from_secs(60);
        socket.set_modified(written - minute).unwrap();
        assert!(unread());
        assert_eq!(
            hidden(&host, &target).unwrap().level,
            Level::Warn,
            "pods of a class that is not known wait"
        );
        set_up(&host, true, Some(true)).unwrap();
        assert_eq!(hidden(&host, &target).unwrap().level, Level::Fail);
        socket.set_modified(written + minute).unwrap();
        assert!(!unread());
        take_away(&host);
        socket.set_modified(written - minute).unwrap();
        assert!(!unread(), "it is not told of terok");
    }

    fn take_away(host: &Host) -> Vec<String> {
        let removal = Engine::Containerd.unregister(&Target::of(host, false, None)).unwrap();
        apply(&removal.steps).unwrap();
        removal.notes
    }

    fn with_file(text: &str) -> (tempfile::TempDir, Host, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let host = tests_host(root.path(), 0);
        let file = write(&host, FILE, text);
        (root, host, file)
    }

    /// The CRI plugin's `containerd` table as another parser reads it.
    fn containerd(file: &Path) -> toml::Value {
        let table: toml::Table = std::fs::read_to_string(file).unwrap().parse().unwrap();
        let plugins = table["plugins"].as_table().unwrap();
        plugins.get(PLUGIN_2).or(plugins.get(PLUGIN_3)).unwrap()["containerd"].clone()
    }

    #[test]
    fn the_handler_is_the_default_runtime_with_the_shim_before_it() {
        let (_root, host, file) = with_file(KUBEADM);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        set_up(&host, true, None).unwrap();
        let table = containerd(&file);
        let expected: toml::Table = format!(
            "runtime_type = \"io.containerd.runc.v2\"\npod_annotations = [\"lab.example.com/*\", \"terok.*\"]\n[options]\nSystemdCgroup = true\nBinaryName = \"{SHIM}\""
        )
        .parse()
        .unwrap();
        assert_eq!(table["runtimes"]["terok"], toml::Value::Table(expected));
        assert_eq!(table["runtimes"]["runc"]["options"]["SystemdCgroup"], toml::Value::Boolean(true));
        assert_eq!(table["default_runtime_name"].as_str(), Some("runc"));
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_stood_there_is_the_same_again_afterwards() {
        let three = DEBIAN.replace("version = 2", "version = 3").replace(PLUGIN_2, PLUGIN_3);
        let inline =
            "version = 2\nplugins.\"io.containerd.grpc.v1.cri\".containerd.snapshotter = \"native\" # why\n";
        for text in [KUBEADM, DEBIAN, &three, inline, "version = 2\n", "# only this\nversion=2 # x\n"] {
            let (_root, host, file) = with_file(text);
            let read = || std::fs::read_to_string(&file).unwrap();
            assert_eq!(set_up(&host, true, None).unwrap().len(), 1);
            assert_eq!(set_up(&host, true, None).unwrap(), Vec::<PathBuf>::new(), "a second one");
            let named = read();
            let registered = || Engine::Containerd.registered(&Target::of(&host, false, None)).unwrap();
            assert_eq!(registered(), Registered::Named);
            assert_eq!(set_up(&host, true, Some(true)).unwrap().len(), 1);
            assert_eq!(registered(), Registered::Default, "{}", read());
            assert_eq!(containerd(&file)["default_runtime_name"].as_str(), Some("terok"));
            assert_eq!(set_up(&host, false, None).unwrap(), Vec::<PathBuf>::new(), "a plain setup keeps it");
            set_up(&host, true, Some(false)).unwrap();
            assert_eq!(read(), named);
            set_up(&host, true, Some(true)).unwrap();
            assert_eq!(take_away(&host), Vec::<String>::new());
            assert_eq!(read(), text);
            assert_eq!(set_up(&host, false, None).unwrap(), Vec::<PathBuf>::new());
        }
    }

    #[test]
    fn a_file_that_names_no_runtime_gets_the_built_in_one_too() {
        let (_root, host, file) = with_file(DEBIAN);
        set_up(&host, true, None).unwrap();
        let runtimes = containerd(&file)["runtimes"].clone();
        assert_eq!(runtimes["runc"]["runtime_type"].as_str(), Some(RUNC_V2));
        assert_eq!(runtimes["terok"]["options"]["BinaryName"].as_str(), Some(SHIM));
    }

    #[test]
    fn without_a_file_one_is_made_and_goes_again() {
        let root = tempfile::tempdir().unwrap();
        let host = tests_host(root.path(), 0);
        for default in [None, Some(true)] {
            set_up(&host, true, default).unwrap();
            let file = host.at(FILE);
            assert_eq!(containerd(&file)["runtimes"].as_table().unwrap().len(), 2);
            take_away(&host);
            assert!(!file.exists());
        }
        set_up(&host, true, None).unwrap();
        let text = std::fs::read_to_string(host.at(FILE)).unwrap();
        write(&host, FILE, &format!("{text}\n[debug]\nlevel = \"debug\"\n"));
        take_away(&host);
        let left = std::fs::read_to_string(host.at(FILE)).unwrap();
        assert!(left.contains("debug") && !left.contains("shim"), "{left}");
    }

    #[test]
    fn an_imported_file_that_replaces_the_plugins_table_is_the_one_that_is_changed() {
        let (_root, host, file) = with_file("version = 2\nimports = [\"/etc/containerd/more/*.toml\"]\n");
        let other =
            write(&host, "/etc/containerd/more/10-other.toml", "version = 2\n[debug]\nlevel = \"info\"\n");
        let cri = write(&host, "/etc/containerd/more/20-cri.toml", KUBEADM);
        set_up(&host, true, None).unwrap();
        assert!(containerd(&cri)["runtimes"].get("terok").is_some());
        assert!(![file, other].iter().any(|file| std::fs::read_to_string(file).unwrap().contains("shim")));
        take_away(&host);
        assert_eq!(std::fs::read_to_string(&cri).unwrap(), KUBEADM);
        write(&host, "/etc/containerd/more/30-cri.toml", KUBEADM);
        let error = set_up(&host, true, None).unwrap_err().to_string();
        assert!(error.contains("20-cri.toml and ") && error.contains("30-cri.toml"), "{error}");
    }

    #[test]
    fn a_default_that_is_no_runc_is_not_replaced() {
        let kata = KUBEADM
            .replace("= \"runc\"", "= \"kata\"")
            .replace("runtimes.runc", "runtimes.kata")
            .replace("runc.v2", "kata.v2");
        let (_root, host, file) = with_file(&kata);
        assert!(set_up(&host, true, Some(true)).unwrap_err().to_string().contains("\"kata\""));
        set_up(&host, true, None).unwrap();
        let handler = containerd(&file)["runtimes"]["terok"].clone();
        assert_eq!(handler["runtime_type"].as_str(), Some(RUNC_V2));
        assert!(handler["options"].get("SystemdCgroup").is_none(), "{handler}");
        let crun = KUBEADM.replace("SystemdCgroup = true", "BinaryName = \"/usr/bin/crun\"");
        let (_root, host, file) = with_file(&crun);
        set_up(&host, true, Some(true)).unwrap();
        let name = containerd(&file)["runtimes"]["terok"]["options"]["BinaryName"].clone();
        assert_eq!(name.as_str(), Some("/usr/libexec/terok/terok-shim-crun"));
    }

    #[test]
    fn what_cannot_be_changed_for_the_better_is_refused_and_stays() {
        let theirs = format!(
            "{KUBEADM}[plugins.\"{PLUGIN_2}\".containerd.runtimes.terok]\nruntime_type = \"io.containerd.other.v1\"\n"
        );
        for (text, said) in [
            (theirs.as_str(), "not terok's"),
            ("version = 2\n[plugins\n", "line 2"),
            ("version = 9\n", "from 2 to 4"),
            ("[plugins.cri]\n", "config migrate"),
            ("disabled_plugins = [\"cri\"]\n", "disabled_plugins"),
            ("version = 2\nplugins = 3\n", "not a table"),
        ] {
            let (_root, host, file) = with_file(text);
            let error = set_up(&host, true, None).unwrap_err().to_string();
            assert!(
                error.contains("config.toml") && error.contains(said) && !error.contains('\n'),
                "{error}"
            );
            assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
        }
        let (_root, host, file) = with_file(&theirs);
        assert!(take_away(&host)[0].contains("not terok's"));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), theirs);
        let user = tests_host(&host.root, 1001);
        assert!(set_up(&user, true, None).unwrap_err().to_string().contains("as root"));
    }

    #[test]
    fn a_daemon_that_reads_another_file_is_told() {
        let (_root, host, _) = with_file(DEBIAN);
        tests_process(
            &host,
            7,
            "containerd --config /var/run/docker/containerd/containerd.toml --log-level info",
        );
        set_up(&host, true, None).unwrap();
        tests_process(
            &host,
            8,
            "/var/lib/rancher/k3s/data/current/bin/containerd -c /var/lib/rancher/k3s/agent/etc/containerd/config.toml",
        );
        let error = set_up(&host, true, None).unwrap_err().to_string();
        assert!(error.contains("/var/lib/rancher/k3s/agent/etc/containerd/config.toml"), "{error}");
        tests_process(&host, 9, "/usr/bin/containerd");
        set_up(&host, true, None).unwrap();
    }
}
