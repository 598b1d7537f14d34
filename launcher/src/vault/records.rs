//! What is in the vault, without the secrets.

use super::{Open, Which, prompt};
use crate::{cli::Json, show};
use anyhow::{Context as _, bail};
use terok_install::host::Host;
use terok_vault::{Error, Kind, Record};

/// `terok vault list`
pub(super) fn list(host: &Host, json: Json) -> anyhow::Result<()> {
    let open = Open::new(host)?;
    let records = open.store.records()?;
    // Beside the list, which holds only what can be read of.
    for what in open.store.damaged(None)? {
        eprintln!("terok: {}", show::printable(&what));
    }
    if json.json {
        say!("{}", serde_json::to_string(&records)?)?;
        return Ok(());
    }
    if records.is_empty() {
        say!("nothing is in the vault; add to it with: terok vault add PROVIDER, terok ssh new NAME")?;
        return Ok(());
    }
    say!("{:16} {:16} {:6} {:10}  ", "PROVIDER", "NAME", "TYPE", "CHANGED")?;
    for record in &records {
        let provider = if record.kind == Kind::Ssh { "(ssh)" } else { &record.provider };
        say!(
            "{:16} {:16} {:6} {:10}  {}",
            show::printable(provider),
            show::printable(&record.name),
            kind(record),
            show::day(record.changed),
            remark(record)
        )?;
    }
    Ok(())
}

/// `terok vault show`
pub(super) fn show(host: &Host, which: &Which, json: Json) -> anyhow::Result<()> {
    let record = Open::new(host)?.store.credential(&which.provider, &which.name)?;
    if json.json {
        say!("{}", serde_json::to_string(&record)?)?;
        return Ok(());
    }
    let line = |key: &str, value: &str| say!("{key:12} {}", show::printable(value));
    line("provider", &record.provider)?;
    line("name", &record.name)?;
    line("type", kind(&record))?;
    line("added", &show::time(record.created.saturating_mul(1000)))?;
    line("changed", &show::time(record.changed.saturating_mul(1000)))?;
    line("revision", &record.revision.to_string())?;
    if let Some(expires) = record.expires {
        line("expires", &show::time(expires.saturating_mul(1000)))?;
    }
    if let Some(problem) = &record.problem {
        line("problem", &format!("{} ({})", problem.reason, show::time(problem.at.saturating_mul(1000))))?;
    }
    line("granted by", &format!("terok run --vault {}", grant(&record)))?;
    Ok(())
}

/// `terok vault remove`
pub(super) fn remove(host: &Host, which: &Which, yes: bool) -> anyhow::Result<()> {
    let mut open = Open::new(host)?;
    let record = match open.store.credential(&which.provider, &which.name) {
        Ok(record) => Some(record),
        // Its row is no record any more, and goes by its name.
        Err(Error::Damaged { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let words = match &record {
        Some(record) => record.words(),
        None => format!("the damaged credential {}={}", which.provider, which.name),
    };
    if !yes
        && !prompt::confirm(&format!("remove {words}?")).context("give --yes to remove it without asking")?
    {
        bail!("nothing was removed");
    }
    match &record {
        Some(record) => open.store.remove(record)?,
        None => drop(open.store.remove_named(&which.provider, &which.name)?),
    }
    say!("removed {words}; it is still good where it was issued: revoke it there as well")?;
    Ok(())
}

/// The type in a word.
pub(super) fn kind(record: &Record) -> &'static str {
    use terok_policy::provider::CredentialType::{Basic, Key, OAuth};
    match record.kind {
        Kind::Credential(Key) => "key",
        Kind::Credential(Basic) => "basic",
        Kind::Credential(OAuth) => "oauth",
        Kind::Ssh => "ssh",
    }
}

fn grant(record: &Record) -> String {
    match record.name.as_str() {
        terok_policy::policy::VaultGrant::DEFAULT => record.provider.clone(),
        name => format!("{}={name}", record.provider),
    }
}

fn remark(record: &Record) -> String {
    if let Some(problem) = &record.problem {
        return show::toned(show::Tone::Bad, &show::printable(&problem.reason));
    }
    match record.expires {
        Some(expires) if expires <= show::now() => "to be renewed at its next use".to_owned(),
        Some(expires) => format!("renewed within {}", show::span(expires - show::now())),
        None => String::new(),
    }
}
