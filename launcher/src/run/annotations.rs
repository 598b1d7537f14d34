//! The annotations that terok's own options stand for.

use crate::vault::ephemeral::Given;
use anyhow::{Context as _, bail};
use clap::ArgMatches;
use std::collections::BTreeMap;
use std::ffi::OsString;
use terok_policy::annotation;

/// Those that are given, by key. One is always written: any of them summons the hooks.
pub(super) fn annotations(matches: &ArgMatches) -> anyhow::Result<BTreeMap<String, String>> {
    let mut annotations = BTreeMap::new();
    let list = |option: &str| -> Option<String> {
        // Spaces, because Podman up to 4.9 splits --annotation at commas.
        let values = matches.get_many::<String>(option)?;
        let words: Vec<&str> =
            values.flat_map(|value| value.split([' ', ','])).filter(|word| !word.is_empty()).collect();
        Some(words.join(" "))
    };
    for (option, key) in [
        ("allow", "terok.shield.allow"),
        ("deny", "terok.shield.deny"),
        ("profile", "terok.shield.profiles"),
        ("vault", annotation::VAULT),
        ("ssh", annotation::SSH),
    ] {
        if let Some(value) = list(option) {
            annotations.insert(key.to_owned(), value);
        }
    }
    for (option, key) in [
        ("project", "terok.project"),
        ("task", "terok.task"),
        ("shield", "terok.shield"),
        ("hold", "terok.shield.hold"),
    ] {
        let mut values = matches.get_many::<String>(option).into_iter().flatten();
        if let Some(value) = values.next() {
            annotations.insert(key.to_owned(), value.clone());
        }
        if values.next().is_some() {
            bail!("--{option} is given twice; give it once");
        }
    }
    for (option, key) in [("restricted", "terok.restricted"), ("learn", "terok.shield.learn")] {
        if matches.get_flag(option) {
            annotations.insert(key.to_owned(), "true".to_owned());
        }
    }
    if let Some(name) = matches.get_many::<OsString>("name").and_then(Iterator::last) {
        let name = name.to_str().context("--name is not UTF-8")?;
        annotations.insert("terok.name".to_owned(), name.to_owned());
    }
    if !annotations.contains_key("terok.shield")
        && !matches
            .get_many::<String>("annotation")
            .into_iter()
            .flatten()
            .any(|a| a.starts_with("terok.shield="))
    {
        annotations.insert("terok.shield".to_owned(), "up".to_owned());
    }
    Ok(annotations)
}

/// Adds the credentials that live with this container to what the vault gives it; a provider has one credential.
pub(super) fn grant(annotations: &mut BTreeMap<String, String>, credentials: &[Given]) -> anyhow::Result<()> {
    if credentials.is_empty() {
        return Ok(());
    }
    let vault = annotations.entry(annotation::VAULT.to_owned()).or_default();
    let mut words: Vec<String> = vault.split_whitespace().map(str::to_owned).collect();
    for given in credentials {
        let same = |word: &String| word.split('=').next() == Some(given.provider());
        if words.iter().any(same) {
            bail!(
                "--credential {0} and --vault {0}: a provider has one credential; leave one of them out",
                given.provider()
            );
        }
        words.push(given.grant());
    }
    *vault = words.join(" ");
    Ok(())
}
