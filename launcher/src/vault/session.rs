//! Making, unlocking and locking the vault, its passphrase, and how it stands.

use super::tiers::{self, Ask, Tier};
use super::{Open, base, folder, prompt};
use crate::{cli::Json, show};
use anyhow::{Context as _, bail};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;
use terok_install::doctor::Finding;
use terok_install::host::Host;
use terok_policy::policy::{SshGrant, VaultGrant};
use terok_policy::{Policy, layout};
use terok_vault::session::Session;
use terok_vault::{Cost, Error, Store};

/// Of a session without an end: the last second of the year 9999.
const FOREVER: u64 = 253_402_300_799;
/// Of one that `terok run` began by itself.
const A_DAYS_WORK: Time = Time::For(Duration::from_secs(8 * 3600));

/// How long a session lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Time {
    For(Duration),
    Forever,
}

/// `8h`, `forever`
pub(super) fn parse_time(text: &str) -> Result<Time, String> {
    match text {
        "forever" => Ok(Time::Forever),
        text => show::parse_duration(text).map(Time::For).map_err(|error| format!("{error}, or forever")),
    }
}

/// `terok vault init`
pub(super) fn init(host: &Host, ask: Ask) -> anyhow::Result<()> {
    let folder = folder(host)?;
    match Store::open(&folder) {
        Err(Error::None { .. }) => {}
        Ok(_) => bail!(
            "{} is there already; it is left as it is",
            host.vault_dir().join(layout::VAULT_STORE).display()
        ),
        Err(error) => return Err(error.into()),
    }
    let passphrase = tiers::new_passphrase(host, ask)?;
    Store::create(&folder, &passphrase, Cost::default(), show::now())?;
    say!("made a vault in {}", host.vault_dir().display())?;
    say!("it is sealed: without its passphrase nobody gets anything out of it, you neither")?;
    say!("next: terok vault unlock, then: terok vault add PROVIDER")?;
    Ok(())
}

/// `terok vault unlock`
pub(super) fn unlock(host: &Host, ask: Ask, time: Time) -> anyhow::Result<()> {
    let open = Open::new(host)?;
    let key = tiers::unlock(host, &|passphrase| open.store.unlock(passphrase), ask)?;
    begin(host, &key, time)?;
    if let Some(doubt) = kept_on_disk(host) {
        eprintln!("terok: {doubt}");
    }
    match time {
        Time::For(time) => say!("unlocked for {}", show::span(time.as_secs()))?,
        Time::Forever => say!("unlocked until terok vault lock, logout or reboot")?,
    }
    Ok(())
}

fn begin(host: &Host, key: &terok_vault::MasterKey, time: Time) -> anyhow::Result<()> {
    let until = match time {
        Time::For(time) => show::now().saturating_add(time.as_secs()),
        Time::Forever => FOREVER,
    };
    let base = base(host, true)?.context("no runtime folder")?;
    Ok(terok_vault::session::write(&base, key, until)?)
}

/// Whether the vault is unlocked, or could be by a systemd credential or the passphrase command; otherwise why not, in words.
pub(crate) fn unlock_silently(host: &Host) -> Result<(), String> {
    let tried = || -> anyhow::Result<Result<(), String>> {
        if !host.vault_dir().join(layout::VAULT_STORE).exists() {
            return Ok(Err("there is no vault yet: terok vault init".to_owned()));
        }
        let open = Open::new(host)?;
        let locked = match open.session()? {
            Session::Unlocked { .. } => return Ok(Ok(())),
            Session::Locked(locked) => locked,
        };
        let Some(key) = tiers::silently(host, &|passphrase| open.store.unlock(passphrase))? else {
            return Ok(Err(locked.to_string()));
        };
        begin(host, &key, A_DAYS_WORK)?;
        Ok(Ok(()))
    };
    tried().unwrap_or_else(|error| Err(format!("the vault stays locked ({error:#}): terok vault unlock")))
}

/// What a container of this policy was granted and the vault does not have, in words; nothing where there is no vault.
pub(crate) fn missing(host: &Host, policy: &Policy) -> anyhow::Result<Vec<String>> {
    if !host.vault_dir().join(layout::VAULT_STORE).exists() {
        return Ok(Vec::new());
    }
    let store = Open::new(host)?.store;
    let mut missing = Vec::new();
    for grant in policy.vault.iter().filter(|grant| grant.reference().is_none()) {
        let (provider, name) = (&grant.provider.name, &grant.credential);
        if let Err(Error::Absent { record }) = store.credential(provider, name) {
            let name = if name == VaultGrant::DEFAULT { "" } else { name };
            missing
                .push(format!("no {record} in the vault: terok vault add {provider} {name}").trim().into());
        }
    }
    for SshGrant { key, .. } in &policy.ssh {
        if let Err(Error::Absent { record }) = store.ssh_key(key) {
            missing.push(format!("no {record} in the vault: terok ssh new {key}"));
        }
    }
    Ok(missing)
}

/// Why the folder of the session may be no place for a key, in words.
fn kept_on_disk(host: &Host) -> Option<String> {
    let path = host.run_dir();
    let there = path.ancestors().find(|path| path.is_dir())?;
    let kind = nix::sys::statfs::statfs(there).ok()?.filesystem_type();
    (kind != nix::sys::statfs::TMPFS_MAGIC).then(|| {
        format!(
            "{} is not in memory (tmpfs): the key to the vault is written to a disk while it is unlocked",
            there.display()
        )
    })
}

/// `terok vault lock`
pub(super) fn lock(host: &Host) -> anyhow::Result<()> {
    let was = match base(host, false)? {
        Some(base) => terok_vault::session::remove(&base)?,
        None => false,
    };
    say!("{}", if was { "locked" } else { "locked already" })?;
    Ok(())
}

/// `terok vault passphrase change`
pub(super) fn change(host: &Host, ask: Ask) -> anyhow::Result<()> {
    let mut open = Open::new(host)?;
    let (key, new) = if ask.passphrase_stdin {
        let [old, new] = prompt::lines()?;
        (open.store.unlock(&old)?, new)
    } else {
        let key = tiers::unlock(host, &|passphrase| open.store.unlock(passphrase), ask)?;
        (key, prompt::new_secret("new passphrase for the vault")?)
    };
    open.store.change_passphrase(&key, &new, Cost::default())?;
    say!("changed; what is unlocked stays so, and running containers notice nothing")?;
    for tier in Tier::configured(host)? {
        say!("{tier} must give the new one from now on")?;
    }
    say!("backups that were made before open with the old one, and the key in them opens this vault too")?;
    Ok(())
}

/// `terok vault status`
pub(super) fn status(host: &Host, json: Json) -> anyhow::Result<()> {
    let path = host.vault_dir().join(layout::VAULT_STORE);
    if !path.exists() {
        if json.json {
            say!("{}", serde_json::json!({"path": path.to_string_lossy(), "exists": false}))?;
            return Ok(());
        }
        bail!("no vault at {}; make one with: terok vault init", path.display());
    }
    let open = Open::new(host)?;
    let (key, until, locked) = match open.session()? {
        Session::Unlocked { key, until } => (Some(key), Some(until), None),
        Session::Locked(locked) => (None, None, Some(locked.to_string())),
    };
    let records = open.store.records()?;
    let damaged = open.store.damaged(key.as_ref())?;
    let tiers: Vec<String> = Tier::configured(host)?.iter().map(Tier::to_string).collect();
    if json.json {
        let problems: Vec<_> = records.iter().filter(|record| record.problem.is_some()).collect();
        let value = serde_json::json!({
            "path": path.to_string_lossy(), "exists": true, "unlocked": until.is_some(), "until": until.filter(|until| *until != FOREVER),
            "locked": locked, "tiers": tiers, "records": records.len(), "problems": problems, "damaged": damaged,
        });
        say!("{value}")?;
        return Ok(());
    }
    say!("{:12} {}", "vault", path.display())?;
    let state = match (until, locked) {
        (Some(FOREVER), _) => show::toned(show::Tone::Good, "unlocked until lock, logout or reboot"),
        (Some(until), _) => {
            let left = show::span(until.saturating_sub(show::now()));
            show::toned(show::Tone::Good, &format!("unlocked for {left}"))
        }
        (None, locked) => show::toned(show::Tone::Notice, &locked.unwrap_or_default()),
    };
    say!("{:12} {state}", "state")?;
    say!(
        "{:12} passphrase{}",
        "unlocked by",
        tiers.iter().map(|tier| format!(", {tier}")).collect::<String>()
    )?;
    say!("{:12} {}", "records", records.len())?;
    for record in &records {
        if let Some(problem) = &record.problem {
            let what = format!(
                "{}: {} ({})",
                record.words(),
                problem.reason,
                show::time(problem.at.saturating_mul(1000))
            );
            say!("{:12} {}", "problem", show::toned(show::Tone::Bad, &show::printable(&what)))?;
        }
    }
    for what in damaged {
        say!("{:12} {}", "damaged", show::toned(show::Tone::Bad, &show::printable(&what)))?;
    }
    Ok(())
}

/// What `terok doctor` says of the vault: nothing where there is none.
pub(crate) fn findings(host: &Host) -> Vec<Finding> {
    let path = host.vault_dir().join(layout::VAULT_STORE);
    let Ok(meta) = std::fs::symlink_metadata(&path) else { return Vec::new() };
    let mut found = Vec::new();
    for suffix in ["", "-wal", "-shm", ".before-restore"] {
        let path = path.with_file_name(format!("{}{suffix}", layout::VAULT_STORE));
        if std::fs::symlink_metadata(&path).is_ok_and(|meta| meta.mode() & 0o077 != 0) {
            let remedy = format!("chmod 600 {}", path.display());
            found.push(Finding::warn("vault", format!("{} is open to others", path.display()), remedy));
        }
    }
    if !meta.is_file() {
        found.push(Finding::warn(
            "vault",
            format!("{} is not a file", path.display()),
            "look who put it there, and move it away",
        ));
        return found;
    }
    if let Some(what) = kept_on_disk(host) {
        found.push(Finding::warn("vault", what, "let systemd-logind make it, or mount a tmpfs there"));
    }
    if !layout::CA_BUNDLES.iter().any(|path| host.at(path).is_file()) {
        let what = format!("no certificate authorities in {}", layout::CA_BUNDLES.join(", "));
        let remedy =
            "install the package ca-certificates: without it no provider beyond this host is reached";
        found.push(Finding::warn("vault", what, remedy));
    }
    let looked = || -> anyhow::Result<(bool, Vec<terok_vault::Record>, Vec<String>)> {
        let open = Open::new(host)?;
        let session = open.session()?;
        let key = match &session {
            Session::Unlocked { key, .. } => Some(key),
            Session::Locked(_) => None,
        };
        Ok((key.is_some(), open.store.records()?, open.store.damaged(key)?))
    };
    match looked() {
        Ok((unlocked, records, damaged)) => {
            let state = if unlocked { "unlocked" } else { "locked (terok vault unlock)" };
            found.push(Finding::ok(
                "vault",
                format!("{}: {} records, {state}", path.display(), records.len()),
            ));
            for what in damaged {
                found.push(Finding::warn(
                    "vault",
                    what,
                    "remove it and add it again, or: terok vault restore FILE",
                ));
            }
            for record in records {
                if let Some(problem) = &record.problem {
                    let what = format!("{}: {}", record.words(), problem.reason);
                    let remedy =
                        format!("terok vault add {} {} --replace --oauth FILE", record.provider, record.name);
                    found.push(Finding::warn("vault", what, remedy));
                }
            }
        }
        Err(error) => found.push(Finding::warn("vault", format!("{error:#}"), "see: terok vault status")),
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_certificate_authorities_is_found_out_before_a_container_is() {
        let root = tempfile::tempdir().unwrap();
        let host = crate::containers::host_at(root.path());
        let said = || findings(&host).iter().filter(|found| found.what.contains("authorities")).count();
        assert_eq!(said(), 0, "nobody asked for a vault");
        std::fs::create_dir_all(host.vault_dir()).unwrap();
        std::fs::write(host.vault_dir().join(layout::VAULT_STORE), "").unwrap();
        assert_eq!(said(), 1);
        let bundle = host.at(layout::CA_BUNDLES[1]);
        std::fs::create_dir_all(bundle.parent().unwrap()).unwrap();
        std::fs::write(bundle, "").unwrap();
        assert_eq!(said(), 0);
    }

    #[test]
    fn a_session_has_an_end_or_lasts_for_ever() {
        assert_eq!(parse_time("8h"), Ok(A_DAYS_WORK));
        assert_eq!(parse_time("forever"), Ok(Time::Forever));
        assert!(parse_time("soon").unwrap_err().contains("or forever"));
        assert_eq!(show::time(FOREVER * 1000), "9999-12-31T23:59:59.000Z");
    }
}
