//! One file of containerd's configuration, in which the handler comes and goes: everything else in it stays octet by octet.

use super::FILE;
use crate::engine::{is_shim, shim_before};
use crate::setup::SetupError;
use crate::target::Target;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use terok_policy::layout;
use toml_edit::{DocumentMut, InlineTable, Item, Table, TableLike, Value};

/// The plugin by its name in files of version 2, and in later ones.
pub(super) const PLUGIN_2: &str = "io.containerd.grpc.v1.cri";
pub(super) const PLUGIN_3: &str = "io.containerd.cri.v1.runtime";
/// The newest version whose names are known.
const NEWEST: i64 = 4;
/// containerd's runtimes that call an OCI runtime, `BinaryName`.
pub(super) const RUNC_V2: &str = "io.containerd.runc.v2";
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

/// A file of containerd's.
pub(super) struct File {
    pub(super) path: PathBuf,
    pub(super) document: DocumentMut,
    plugin: &'static str,
}

impl File {
    /// The file that has the last word on the plugin; `None` where there is no configuration.
    pub(super) fn of(target: &Target) -> Result<Option<Self>, SetupError> {
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

    pub(super) fn parse(path: PathBuf, text: &str) -> Result<Self, SetupError> {
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

    pub(super) fn handler(&self) -> Option<&dyn TableLike> {
        self.runtime(layout::ENGINE_RUNTIME)
    }

    /// Name of the runtime of pods that name none.
    pub(super) fn default(&self) -> &str {
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

    pub(super) fn add(&mut self, target: &Target, default: bool) -> Result<(), String> {
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
    pub(super) fn remove(&mut self) {
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
pub(super) fn is_ours(handler: &dyn TableLike) -> bool {
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
