//! Where the passphrase comes from: standard input, a systemd credential, the person's passphrase command, or the terminal.

use super::prompt;
use anyhow::{Context as _, bail};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;
use terok_install::host::Host;
use terok_policy::layout;
use terok_policy::settings::Settings;
use terok_vault::{MasterKey, passphrase};
use zeroize::Zeroizing;

/// systemd.exec(5)
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";
/// How long a passphrase command may take: a person types into it.
const PATIENCE: Duration = Duration::from_secs(60);

/// How to come by the passphrase.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(crate) struct Ask {
    /// Read the passphrase from standard input, one line
    #[arg(long)]
    pub(super) passphrase_stdin: bool,
    /// Ask on the terminal, whatever passphrase command or systemd credential there is
    #[arg(long, conflicts_with = "passphrase_stdin")]
    pub(super) prompt: bool,
}

/// A way to the passphrase that needs nobody at this terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Tier {
    /// [`passphrase::CREDENTIAL`] in this folder, which systemd made.
    Credential(PathBuf),
    /// `[vault] passphrase_command` in the person's own settings.
    Command(Vec<String>),
}

impl std::fmt::Display for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Tier::Credential(folder) => {
                write!(f, "systemd credential {}", folder.join(passphrase::CREDENTIAL).display())
            }
            // The program alone: an argument could be what it should not be.
            Tier::Command(words) => {
                write!(f, "passphrase command {}", words.first().map_or("", String::as_str))
            }
        }
    }
}

impl Tier {
    /// The ways that are set up, in the order they are tried.
    pub(super) fn configured(host: &Host) -> anyhow::Result<Vec<Tier>> {
        let mut tiers = Vec::new();
        if let Some(folder) = std::env::var_os(CREDENTIALS_DIRECTORY) {
            let folder = PathBuf::from(folder);
            if folder.is_absolute() && folder.join(passphrase::CREDENTIAL).exists() {
                tiers.push(Tier::Credential(folder));
            }
        }
        tiers.extend(command(host)?.map(Tier::Command));
        Ok(tiers)
    }

    /// `quiet`: nobody is asked.
    fn passphrase(&self, quiet: bool) -> anyhow::Result<Zeroizing<String>> {
        match self {
            Tier::Credential(folder) => {
                passphrase::from_systemd(folder)?.with_context(|| format!("{self} is empty"))
            }
            // Says itself which command it is.
            Tier::Command(words) => Ok(passphrase::from_command(words, quiet, PATIENCE)?),
        }
    }
}

/// Whether nobody is there to ask and nothing else is set up.
pub(super) fn is_out_of_reach(host: &Host) -> anyhow::Result<bool> {
    Ok(!prompt::is_possible() && Tier::configured(host)?.is_empty())
}

/// What opens a vault by its passphrase.
pub(super) type Unlock<'a> = &'a dyn Fn(&str) -> terok_vault::Result<MasterKey>;

/// The master key, by the way that `ask` chooses or the first that is set up.
pub(super) fn unlock(host: &Host, with: Unlock<'_>, ask: Ask) -> anyhow::Result<MasterKey> {
    if ask.passphrase_stdin {
        let [passphrase] = prompt::lines()?;
        return Ok(with(&passphrase)?);
    }
    if !ask.prompt
        && let Some(tier) = Tier::configured(host)?.first()
    {
        return match with(&tier.passphrase(false)?) {
            Err(error @ terok_vault::Error::WrongPassphrase) => {
                bail!("{tier}: {error}; type the right one with --prompt")
            }
            opened => Ok(opened?),
        };
    }
    let passphrase = prompt::hidden("passphrase of the vault").context(
        "no passphrase: give it with --passphrase-stdin, or set [vault] passphrase_command in config.toml",
    )?;
    Ok(with(&passphrase)?)
}

/// The master key by the ways that need nobody, each tried; the last one's trouble where none works, `None` where none is set up.
pub(super) fn silently(host: &Host, with: Unlock<'_>) -> anyhow::Result<Option<MasterKey>> {
    let mut trouble = None;
    for tier in Tier::configured(host)? {
        let opened = |passphrase: Zeroizing<String>| with(&passphrase).with_context(|| tier.to_string());
        match tier.passphrase(true).and_then(opened) {
            Ok(key) => return Ok(Some(key)),
            Err(error) => trouble = Some(error),
        }
    }
    trouble.map_or(Ok(None), Err)
}

/// A passphrase that is being made.
pub(super) fn new_passphrase(host: &Host, ask: Ask) -> anyhow::Result<Zeroizing<String>> {
    let chosen = if ask.passphrase_stdin {
        let [line] = prompt::lines()?;
        line
    } else {
        let tiers = if ask.prompt { Vec::new() } else { Tier::configured(host)? };
        match tiers.first() {
            Some(tier) => tier.passphrase(false)?,
            None => prompt::new_secret("passphrase for the vault")
                .context("no passphrase: give it with --passphrase-stdin")?,
        }
    };
    passphrase::check(&chosen)?;
    Ok(chosen)
}

/// The person's passphrase command. Nobody else may have written it: the file and the folder it is in are theirs alone to write.
fn command(host: &Host) -> anyhow::Result<Option<Vec<String>>> {
    let path = host.at(host.home.join(layout::CONFIG_USER));
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let settings = Settings::parse(&path.display().to_string(), &text)?;
    if settings.passphrase_command.is_some() {
        let folder = path.parent().unwrap_or(&path).to_path_buf();
        for place in [&path, &folder] {
            let meta = std::fs::metadata(place).with_context(|| place.display().to_string())?;
            let own = nix::unistd::geteuid().as_raw();
            if meta.mode() & 0o022 != 0 || !(meta.uid() == own || meta.uid() == 0) {
                bail!(
                    "{}: others may write it, so its passphrase_command is not run: chmod go-w {0}",
                    place.display()
                );
            }
        }
    }
    Ok(settings.passphrase_command)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containers::host_at;
    use std::os::unix::fs::PermissionsExt;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn a_passphrase_command_that_others_may_write_is_not_run() {
        let root = tempfile::tempdir().unwrap();
        let host = host_at(root.path());
        assert_eq!(command(&host).unwrap(), None);
        let path = host.at(host.home.join(layout::CONFIG_USER));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "[vault]\npassphrase_command = [\"echo\", \"x\"]\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(command(&host).unwrap(), Some(words(&["echo", "x"])));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o620)).unwrap();
        assert!(command(&host).unwrap_err().to_string().contains("chmod go-w"));
    }
}
