//! `terok profile`: the egress lists that ship with terok and the person's own.

use anyhow::Context as _;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use terok_install::host::Host;
use terok_policy::profile::{Catalog, is_profile_name};
use terok_policy::rule::Rule;

/// The bundled profiles, and those in the profile folders: `NAME.txt`, a later folder replaces an earlier one's.
pub(crate) fn catalog(host: &Host) -> anyhow::Result<Catalog> {
    let mut catalog = Catalog::bundled();
    for (name, path) in own(host)? {
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        catalog.0.insert(name, text);
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
    let rows: Vec<_> = catalog.0.iter().map(row).collect();
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
        catalog.0.insert(name.clone(), text);
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

fn own(host: &Host) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    let mut own = BTreeMap::new();
    for folder in host.profile_dirs() {
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| folder.display().to_string()),
        };
        for entry in entries {
            let path = entry.with_context(|| folder.display().to_string())?.path();
            if let Some(name) = profile_name(&path) {
                own.insert(name, path);
            }
        }
    }
    Ok(own)
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
