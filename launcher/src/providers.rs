//! `terok provider`: the definitions that ship with terok and the person's own, `NAME.toml` in the provider folders.

use crate::{profiles, show};
use anyhow::{Context as _, bail};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use terok_install::host::Host;
use terok_install::setup;
use terok_policy::layout;
use terok_policy::provider::{self, Definition, Endpoint, Provider, is_provider_name};

/// The provider `name`, ready to be used.
pub(crate) fn provider(host: &Host, name: &str) -> anyhow::Result<Provider> {
    Ok(provider::resolve(&profiles::catalog(host)?, name)?)
}

/// Every definition, by name.
pub(crate) fn definitions(host: &Host) -> anyhow::Result<Vec<(String, Definition)>> {
    let catalog = profiles::catalog(host)?;
    let read = |name: &String| Ok((name.clone(), provider::read(&catalog, name)?));
    catalog.providers.keys().map(read).collect()
}

/// The files of the provider folders by name, a later folder's in the place of an earlier one's.
pub(crate) fn own(host: &Host) -> anyhow::Result<BTreeMap<String, PathBuf>> {
    profiles::files(host.provider_dirs(), name_of)
}

/// `terok provider list`
pub(crate) fn list(host: &Host, json: bool) -> anyhow::Result<()> {
    let own = own(host)?;
    let rows = definitions(host)?.into_iter().map(|(name, definition)| {
        let origin = own.get(&name).map_or_else(|| "bundled".to_owned(), |path| path.display().to_string());
        (name, origin, definition)
    });
    if json {
        let rows: Vec<_> = rows
            .map(|(name, origin, definition)| {
                let grantable = matches!(definition, Definition::Provider(_));
                serde_json::json!({"name": name, "origin": origin, "title": definition.title(), "template": !grantable})
            })
            .collect();
        say!("{}", serde_json::to_string(&rows)?)?;
        return Ok(());
    }
    for (name, origin, definition) in rows {
        let more = match &definition {
            Definition::Provider(_) => "",
            Definition::Template(_) => "  (for terok provider new --like)",
        };
        let origin = if origin == "bundled" { String::new() } else { format!("  [{origin}]") };
        say!("{name:18} {}{more}{origin}", show::printable(definition.title()))?;
    }
    Ok(())
}

/// `terok provider show`
pub(crate) fn show(host: &Host, name: &str, json: bool) -> anyhow::Result<()> {
    let catalog = profiles::catalog(host)?;
    let definition = provider::read(&catalog, name)?;
    let provider = match definition {
        Definition::Provider(provider) if json => {
            say!("{}", serde_json::to_string(&provider)?)?;
            return Ok(());
        }
        Definition::Provider(provider) => provider,
        Definition::Template(template) if json => {
            say!("{}", serde_json::json!({"name": name, "title": template.title, "token": template.token}))?;
            return Ok(());
        }
        Definition::Template(template) => {
            say!("{:12} {}", "provider", name)?;
            say!("{:12} {}", "title", show::printable(&template.title))?;
            say!(
                "it has no upstream: terok provider new NAME --like {name} --upstream URL makes one of your own"
            )?;
            return Ok(());
        }
    };
    let line = |key: &str, value: &str| {
        if value.is_empty() { Ok(()) } else { say!("{key:12} {}", show::printable(value)) }
    };
    line("provider", name)?;
    line("title", &provider.title)?;
    line("upstream", &String::from(provider.upstream.clone()))?;
    for route in &provider.route {
        line("route", &format!("{} to {}", route.path, String::from(route.upstream.clone())))?;
    }
    let hosts: Vec<_> = provider.hosts().iter().map(ToString::to_string).collect();
    line("intercepts", &hosts.join(" "))?;
    line("takes", &provider.credential.keys().map(show::word).collect::<Vec<_>>().join(" "))?;
    line("token in", &provider.token.variables.join(" "))?;
    if let Some(base) = &provider.base_url {
        line("base URL in", &base.variables.join(" "))?;
    }
    let more: Vec<_> =
        provider.env.keys().chain(provider.restricted_env.keys()).map(String::as_str).collect();
    line("sets also", &more.join(" "))?;
    line("git", &provider.git.keys().map(String::as_str).collect::<Vec<_>>().join(" "))?;
    let egress: Vec<_> = provider.egress.iter().map(ToString::to_string).collect();
    line("allows also", &egress.join(" "))?;
    for rule in &provider.rule {
        let verdict = if rule.allow { "forward" } else { "refuse" };
        let methods = if rule.methods.is_empty() { "any".to_owned() } else { rule.methods.join(",") };
        let host = rule.host.as_ref().map_or_else(String::new, ToString::to_string);
        line(verdict, &format!("{methods} {host}{}", rule.path))?;
    }
    line("files", &provider.files.join(" "))?;
    Ok(())
}

/// `terok provider check`
pub(crate) fn check(host: &Host, files: &[PathBuf]) -> anyhow::Result<()> {
    let mut wrong = 0;
    for file in files {
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let name = name_of(file).with_context(|| {
            format!("{}: a definition is called NAME.toml, the name of a-z, 0-9 and -", file.display())
        })?;
        let mut catalog = profiles::catalog(host)?;
        catalog.providers.insert(name.clone(), text);
        match provider::read(&catalog, &name) {
            Ok(Definition::Provider(provider)) => {
                say!(
                    "{}: provider {name}, requests go to {}",
                    file.display(),
                    String::from(provider.upstream)
                )?;
            }
            Ok(Definition::Template(_)) => say!("{}: a template, without an upstream", file.display())?,
            Err(error) => {
                wrong += 1;
                eprintln!("terok: {}: {error}", file.display());
            }
        }
    }
    anyhow::ensure!(wrong == 0, "{wrong} of {} definitions are not usable", files.len());
    Ok(())
}

/// `terok provider new`
pub(crate) fn new(host: &Host, name: &str, like: &str, upstream: &str) -> anyhow::Result<()> {
    if !is_provider_name(name) {
        bail!("{name:?} is no provider name: 1 to 64 of a-z, 0-9 and -, beginning with a letter or digit");
    }
    let mut catalog = profiles::catalog(host)?;
    if catalog.providers.contains_key(name) {
        bail!(
            "provider {name} is there already: choose another name, or change its file; terok provider list says where it is"
        );
    }
    let endpoint =
        Endpoint::parse(upstream).map_err(|reason| anyhow::anyhow!("--upstream {upstream}: {reason}"))?;
    let like_title = provider::read(&catalog, like)?.title().to_owned();
    let quoted = |text: &str| serde_json::to_string(text);
    let text = format!(
        "# {name}: made by terok provider new. What stands here replaces what it is like; docs/providers.md has every key.\n\
         like = {}\ntitle = {}\nupstream = {}\n",
        quoted(like)?,
        quoted(&format!("{name} ({like_title})"))?,
        quoted(&String::from(endpoint))?
    );
    catalog.providers.insert(name.to_owned(), text.clone());
    provider::resolve(&catalog, name)?;
    let path = host.at(host.home.join(layout::PROVIDERS_USER)).join(format!("{name}.toml"));
    setup::put(&path, text.as_bytes(), 0o644).with_context(|| path.display().to_string())?;
    say!("wrote {}", path.display())?;
    say!("next: terok vault add {name}, then: terok run --vault {name} IMAGE")?;
    Ok(())
}

fn name_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?.strip_suffix(".toml")?;
    Some(name.to_owned()).filter(|name| is_provider_name(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containers::host_at;

    #[test]
    fn a_definition_of_ones_own_is_written_once_and_can_be_granted() {
        let root = tempfile::tempdir().unwrap();
        let host = host_at(root.path());
        new(&host, "local-llm", "openai", "http://host:8000/v1").unwrap();
        let made = provider(&host, "local-llm").unwrap();
        assert_eq!(String::from(made.upstream), "http://host:8000/v1");
        assert!(own(&host).unwrap().contains_key("local-llm"));
        let error = new(&host, "local-llm", "openai", "https://a.example").unwrap_err();
        assert!(error.to_string().contains("already"));
    }

    #[test]
    fn a_definition_that_would_not_work_is_not_written() {
        let root = tempfile::tempdir().unwrap();
        let host = host_at(root.path());
        for (name, like, upstream) in [
            ("Own", "openai", "https://a.example"),
            ("own", "opnai", "https://a.example"),
            ("own", "openai", "ftp://a.example"),
            ("own", "openai", "http://a.example"),
            ("openai", "openai", "https://a.example"),
        ] {
            assert!(new(&host, name, like, upstream).is_err(), "{name} {like} {upstream}");
        }
        assert!(!host.at(host.home.join(layout::PROVIDERS_USER)).exists());
    }
}
