//! Copies of the vault: sealed ones for a backup, and an export that holds a secret only where that was asked for twice.

use super::{Ask, Open, folder, prompt, tiers};
use anyhow::{Context as _, bail};
use std::io::IsTerminal as _;
use std::path::Path;
use terok_install::host::Host;
use terok_vault::{BEFORE_RESTORE, Restore};

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
    say!("restored; what was there is now {}", host.vault_dir().join(BEFORE_RESTORE).display())?;
    Ok(())
}

/// `terok vault export`
pub(super) fn export(host: &Host, args: &ExportArgs) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    if args.reveal && out.is_terminal() && !args.to_terminal {
        bail!("not onto a terminal: write it into a file, or give --to-terminal");
    }
    let open = Open::new(host)?;
    if !args.reveal {
        let records = open.store.records()?;
        say!(
            "{}",
            serde_json::to_string_pretty(&serde_json::json!({"vault": open.store.id(), "records": records}))?
        )?;
        return Ok(());
    }
    open.store.export(&open.key()?, &mut out)?;
    eprintln!("terok: what was printed holds the secrets as they are");
    Ok(())
}
