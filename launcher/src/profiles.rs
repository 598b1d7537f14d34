//! `terok profile`: the egress lists that ship with terok and the person's own.

pub(crate) mod learn;

use crate::providers;
use anyhow::{Context as _, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use terok_install::host::Host;
use terok_install::setup;
use terok_policy::layout;
use terok_policy::profile::{Catalog, Entry, is_profile_name, parse};
use terok_policy::rule::Rule;

/// The bundled profiles and providers, and those in the profile and provider folders: a later folder replaces an earlier one's.
pub(crate) fn catalog(host: &Host) -> anyhow::Result<Catalog> {
    let mut catalog = Catalog::bundled();
    for (name, path) in own(host)? {
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        catalog.profiles.insert(name, text);
    }
    for (name, path) in providers::own(host)? {
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        catalog.providers.insert(name, text);
    }
    Ok(catalog)
}

/// `terok profile list`
pub(crate) fn list(host: &Host, json: bool) -> anyhow::Result<()> {
    let catalog = catalog(host)?;
    let own = own(host)?;
    let row = |(name, text): (&String, &String)| {
        let origin = own.get(name).map_or_else(|| "bundled".to_owned(), |path| path.display().to_string());
        (name.clone(), origin, summary(name, text))
    };
    let rows: Vec<_> = catalog.profiles.iter().map(row).collect();
    if json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(name, origin, summary)| serde_json::json!({"name": name, "origin": origin, "summary": summary}))
            .collect();
        say!("{}", serde_json::to_string(&rows)?)?;
        return Ok(());
    }
    for (name, origin, summary) in rows {
        say!(
            "{name:16} {summary}{}",
            if origin == "bundled" { String::new() } else { format!("  [{origin}]") }
        )?;
    }
    Ok(())
}

/// `terok profile show NAME…`: the rules with includes followed.
pub(crate) fn show(host: &Host, names: &[String], json: bool) -> anyhow::Result<()> {
    let rules = catalog(host)?.resolve(names)?;
    if json {
        say!("{}", serde_json::to_string(&rules)?)?;
        return Ok(());
    }
    if rules.is_empty() {
        say!("no rules: {} adds nothing to what is allowed by name", names.join(", "))?;
    }
    for sourced in rules {
        say!("{:40} {}", sourced.rule.to_string(), crate::show::source(&sourced.source))?;
    }
    Ok(())
}

/// `terok profile check FILE…`: whether each is a profile, with the place of what is wrong.
pub(crate) fn check(host: &Host, files: &[PathBuf]) -> anyhow::Result<()> {
    let mut wrong = 0;
    for file in files {
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let name = profile_name(file)
            .with_context(|| format!("{}: a profile is called NAME.txt", file.display()))?;
        let mut catalog = catalog(host)?;
        catalog.profiles.insert(name.clone(), text);
        match catalog.resolve(&[name]) {
            Ok(rules) => {
                let rules: Vec<Rule> = rules.into_iter().map(|sourced| sourced.rule).collect();
                say!("{}: {} rules", file.display(), rules.len())?;
            }
            Err(error) => {
                wrong += 1;
                eprintln!("terok: {}: {error}", file.display());
            }
        }
    }
    anyhow::ensure!(wrong == 0, "{wrong} of {} profiles are not usable", files.len());
    Ok(())
}

/// A profile file of the person's own, which need not exist yet.
#[derive(Debug)]
pub(crate) struct Own {
    path: PathBuf,
    name: String,
    text: Option<String>,
}

impl Own {
    /// Opens `NAME.txt` in the person's own folder. A name that another profile has already is refused: the file would
    /// take its place.
    pub(crate) fn open(host: &Host, name: &str) -> anyhow::Result<Self> {
        if !is_profile_name(name) {
            bail!(
                "{name:?} is no profile name: 1 to 64 of a-z, 0-9, - and _, beginning with a letter or digit"
            );
        }
        let path = host.at(host.home.join(layout::PROFILES_USER)).join(format!("{name}.txt"));
        // Where the file is a link to another place, that one is written.
        let path = path.canonicalize().unwrap_or(path);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        if let Some(text) = &text {
            parse(name, text)?;
        } else if catalog(host)?.profiles.contains_key(name) {
            bail!(
                "profile {name} is not yours, and a file of yours of that name would take its place: choose another name, and put `include {name}` into it"
            );
        }
        Ok(Own { path, name: name.to_owned(), text })
    }

    /// Where it is, or will be.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file is there.
    pub(crate) fn exists(&self) -> bool {
        self.text.is_some()
    }

    /// Adds `rule` with a comment before it; returns whether it was not there.
    pub(crate) fn add(&mut self, rule: &Rule, comment: &str) -> anyhow::Result<bool> {
        let head = format!("# {}: what you allowed.\n", self.name);
        let mut text = self.text.clone().unwrap_or(head);
        if parse(&self.name, &text)?.iter().any(|(_, entry)| *entry == Entry::Rule(rule.clone())) {
            return Ok(false);
        }
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text += &format!("# {}\n{rule}\n", comment.replace(['\n', '\r'], " "));
        self.write(text)?;
        Ok(true)
    }

    /// Writes the whole file anew.
    pub(crate) fn write(&mut self, text: String) -> anyhow::Result<()> {
        parse(&self.name, &text)?;
        setup::put(&self.path, text.as_bytes(), 0o644).with_context(|| self.path.display().to_string())?;
        self.text = Some(text);
        Ok(())
    }
}

fn own(host: &Host) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    files(host.profile_dirs(), profile_name)
}

/// The files in `folders` by the name that each has, a later folder's in the place of an earlier one's.
pub(crate) fn files(
    folders: impl IntoIterator<Item = PathBuf>,
    name_of: fn(&Path) -> Option<String>,
) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    for folder in folders {
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| folder.display().to_string()),
        };
        for entry in entries {
            let path = entry.with_context(|| folder.display().to_string())?.path();
            if let Some(name) = name_of(&path) {
                files.insert(name, path);
            }
        }
    }
    Ok(files)
}

fn profile_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?.strip_suffix(".txt")?;
    Some(name.to_owned()).filter(|name| is_profile_name(name))
}

/// The first line of the header comment, without the profile's own name.
fn summary(name: &str, text: &str) -> String {
    let first = text.lines().find_map(|line| line.strip_prefix('#')).unwrap_or_default().trim();
    first.strip_prefix(name).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(first).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containers::host_at;

    #[test]
    fn a_rule_is_written_once_and_what_stood_there_stays() {
        let root = tempfile::tempdir().unwrap();
        let host = host_at(root.path());
        let rule: Rule = "api.example.com:443".parse().unwrap();
        let mut own = Own::open(&host, "mine").unwrap();
        assert!(!own.exists());
        assert!(own.add(&rule, "allowed for a\n*.evil.example").unwrap());
        assert!(!own.add(&rule, "again").unwrap());
        std::fs::write(own.path(), "# by hand\ninclude base\nb.example").unwrap();
        let mut own = Own::open(&host, "mine").unwrap();
        assert!(own.add(&rule, "allowed for a").unwrap());
        let text = std::fs::read_to_string(own.path()).unwrap();
        assert_eq!(text, "# by hand\ninclude base\nb.example\n# allowed for a\napi.example.com:443\n");
        assert_eq!(catalog(&host).unwrap().resolve(&["mine".to_owned()]).unwrap().len(), 2);
    }

    #[test]
    fn a_profile_of_somebody_else_is_not_replaced_and_a_broken_one_not_written_to() {
        let root = tempfile::tempdir().unwrap();
        let host = host_at(root.path());
        let error = Own::open(&host, "dev-python").unwrap_err().to_string();
        assert!(error.contains("include dev-python"), "{error}");
        for name in ["", "../x", "A", "a/b"] {
            assert!(Own::open(&host, name).unwrap_err().to_string().contains("no profile name"), "{name}");
        }
        let folder = host.at("/home/u/.config/terok/profiles");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("bad.txt"), "a.example:99999\n").unwrap();
        assert!(Own::open(&host, "bad").unwrap_err().to_string().contains("line 1"));
    }
}
