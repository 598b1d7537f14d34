//! Copies of the vault: sealed ones for a backup, and an export that holds a secret only where that was asked for twice.

use super::{Ask, Open, folder, prompt, tiers};
use crate::show;
use anyhow::{Context as _, bail};
use std::fs::File;
use std::io::IsTerminal as _;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use terok_install::host::Host;
use terok_vault::{BEFORE_RESTORE, Error, Restore};

/// `terok vault export`
#[derive(Debug, clap::Args)]
pub(crate) struct ExportArgs {
    /// With the secrets, as they are
    #[arg(long)]
    reveal: bool,
    /// Even onto a terminal, where they can be read over your shoulder and stay in its buffer
    #[arg(long, requires = "reveal")]
    to_terminal: bool,
}

/// `terok vault backup`
pub(super) fn backup(host: &Host, file: &Path) -> anyhow::Result<()> {
    Open::new(host)?.store.backup(file)?;
    say!("copied to {}; it opens with the passphrase that the vault has now", file.display())?;
    Ok(())
}

/// `terok vault restore`: the backup is opened with its passphrase before anything is replaced.
pub(super) fn restore(host: &Host, file: &Path, ask: Ask, yes: bool) -> anyhow::Result<()> {
    let folder = folder(host)?;
    let copy = Restore::new(&folder, file)?;
    tiers::unlock(host, &|passphrase| copy.unlock(passphrase), ask).context("the backup")?;
    let there = host.vault_dir().join(terok_policy::layout::VAULT_STORE).exists();
    if there
        && !yes
        && !prompt::confirm("put this backup in the vault's place?")
            .context("give --yes to restore without asking")?
    {
        bail!("nothing was changed");
    }
    copy.finish()?;
    match there {
        true => say!("restored; what was there is now {}", host.vault_dir().join(BEFORE_RESTORE).display())?,
        false => say!("restored")?,
    }
    Ok(())
}

/// `terok vault export`
pub(super) fn export(host: &Host, args: &ExportArgs) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    if args.reveal && out.is_terminal() && !args.to_terminal {
        bail!("not onto a terminal: write it into a file, or give --to-terminal");
    }
    if args.reveal {
        check_closed(&out)?;
    }
    let open = Open::new(host)?;
    if !args.reveal {
        let (records, damaged) = (open.store.records()?, open.store.damaged(None)?);
        let mut value = serde_json::json!({"vault": open.store.id(), "records": records});
        if !damaged.is_empty() {
            value["damaged"] = damaged.clone().into();
        }
        say!("{}", serde_json::to_string_pretty(&value)?)?;
        return incomplete(&damaged);
    }
    let key = open.key()?;
    let damaged = match open.store.export(&key, &mut out) {
        // Nobody reads any more: that ends the program quietly.
        Err(Error::File { error, .. }) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            return Err(error.into());
        }
        exported => exported?,
    };
    incomplete(&damaged).context("what was printed holds the secrets as they are")?;
    eprintln!("terok: what was printed holds the secrets as they are");
    Ok(())
}

/// An error that names what is damaged, if anything is.
fn incomplete(damaged: &[String]) -> anyhow::Result<()> {
    if damaged.is_empty() {
        return Ok(());
    }
    bail!("not all was exported: {}", show::printable(&damaged.join("; ")))
}

/// Refuses a file that others may read or write: a shell makes one so.
fn check_closed(out: &impl AsFd) -> anyhow::Result<()> {
    let meta = File::from(out.as_fd().try_clone_to_owned()?).metadata()?;
    if meta.is_file() && meta.mode() & 0o077 != 0 {
        bail!(
            "others may read the file it would be written into (mode {:o}): run `umask 077` first and name a new one",
            meta.mode() & 0o777
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn secrets_are_written_into_no_file_that_others_may_read() {
        let file = tempfile::tempfile().unwrap();
        for (mode, closed) in [(0o600, true), (0o644, false), (0o660, false), (0o604, false)] {
            file.set_permissions(PermissionsExt::from_mode(mode)).unwrap();
            assert_eq!(check_closed(&file).is_ok(), closed, "{mode:o}");
        }
        check_closed(&std::io::pipe().unwrap().1).unwrap();
    }
}
