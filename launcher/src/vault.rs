//! `terok vault`: the sealed store of real credentials, as a person sees it. No secret is ever an argument, and none is printed but by `export --reveal`.

mod add;
mod clean;
mod copies;
pub(crate) mod ephemeral;
pub(crate) mod prompt;
mod records;
mod session;
mod test;
mod tiers;

use crate::containers::Known;
use crate::{cli::Json, containers, control, profiles, show};
use anyhow::{Context as _, bail};
use std::process::ExitCode;
use terok_install::host::Host;
use terok_policy::control::Applied;
use terok_policy::layout;
use terok_vault::session::{Locked, Session};
use terok_vault::{Dir, Error, MasterKey, Revocation, Store};

pub(crate) use session::{findings, missing, unlock_silently};
use tiers::Ask;

/// What was taken back from containers that left no history is kept this often: files of a few octets.
const REVOKED_KEPT: usize = 1000;

/// `terok vault …`
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Vault {
    /// Make a vault, under a passphrase
    Init {
        #[command(flatten)]
        ask: Ask,
    },
    /// Let containers use what they were granted, for a time
    Unlock {
        #[command(flatten)]
        ask: Ask,
        /// How long, as 90s, 10m or 1h30m; forever means until lock, logout or reboot
        #[arg(long = "for", value_name = "TIME", default_value = "8h", value_parser = session::parse_time)]
        time: session::Time,
    },
    /// Nothing is read from the vault until it is unlocked; takes effect with each container's next request
    Lock,
    /// The passphrase
    #[command(subcommand)]
    Passphrase(Passphrase),
    /// Where the vault is, whether it is unlocked, how it can be, and what is wrong in it
    Status(Json),
    /// Copy the vault into a file, sealed as it is
    Backup {
        /// A file that is not there yet
        file: std::path::PathBuf,
    },
    /// Put a backup in the vault's place; the one before it stays beside it as vault.db.before-restore
    Restore {
        /// What `terok vault backup` wrote
        file: std::path::PathBuf,
        #[command(flatten)]
        ask: Ask,
        /// Without asking
        #[arg(long)]
        yes: bool,
    },
    /// Print what is in the vault as JSON, without the secrets
    Export(copies::ExportArgs),
    /// Add a provider's credential: asked for and not shown while typed, or from standard input, a variable or a file
    Add(add::AddArgs),
    /// The credentials and keys there are
    List(Json),
    /// What is known of one, without its secret
    Show {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        json: Json,
    },
    /// Remove one; containers that were granted it are refused from their next request on
    Remove {
        #[command(flatten)]
        which: Which,
        /// Without asking
        #[arg(long)]
        yes: bool,
    },
    /// Send one real request to the provider, over verified TLS, and say how it was answered
    Test {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        json: Json,
    },
    /// Take granted providers back from a container: its tokens answer 401 from now on
    Revoke {
        /// Name, id or the beginning of one
        container: String,
        /// Provider names, and SSH keys as ssh:KEY; all that it was granted where none is given
        #[arg(value_name = "PROVIDER")]
        grants: Vec<String>,
        /// Give them again
        #[arg(long)]
        undo: bool,
        #[command(flatten)]
        json: Json,
    },
    /// Find and remove credential files in folders that are shared with containers
    #[command(
        after_help = "Exit status: 0 clean, 1 credentials are left, 2 none found but something could not be checked."
    )]
    Clean(clean::CleanArgs),
}

/// `terok vault passphrase …`
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Passphrase {
    /// Set another one; nothing has to stop for it. With --passphrase-stdin: the old one, then the new one, a line each
    Change {
        #[command(flatten)]
        ask: Ask,
    },
}

/// A credential.
#[derive(Debug, clap::Args)]
pub(crate) struct Which {
    /// The provider
    pub(super) provider: String,
    /// Which of its credentials
    #[arg(default_value = terok_policy::policy::VaultGrant::DEFAULT)]
    pub(super) name: String,
}

/// Does what was asked.
pub(crate) fn vault(host: &Host, verb: Vault) -> anyhow::Result<ExitCode> {
    match verb {
        Vault::Init { ask } => session::init(host, ask)?,
        Vault::Unlock { ask, time } => session::unlock(host, ask, time)?,
        Vault::Lock => session::lock(host)?,
        Vault::Passphrase(Passphrase::Change { ask }) => session::change(host, ask)?,
        Vault::Status(json) => session::status(host, json)?,
        Vault::Backup { file } => copies::backup(host, &file)?,
        Vault::Restore { file, ask, yes } => copies::restore(host, &file, ask, yes)?,
        Vault::Export(args) => copies::export(host, &args)?,
        Vault::Add(args) => add::add(host, &args)?,
        Vault::List(json) => records::list(host, json)?,
        Vault::Show { which, json } => records::show(host, &which, json)?,
        Vault::Remove { which, yes } => records::remove(host, &which, yes)?,
        Vault::Test { which, json } => return test::test(host, &which, json),
        Vault::Revoke { container, grants, undo, json } => {
            revoke(host, &container, &grants, undo, json)?;
        }
        Vault::Clean(args) => return clean::clean(host, &args),
    }
    Ok(ExitCode::SUCCESS)
}

/// The vault of the person who asks, open.
pub(crate) struct Open<'a> {
    host: &'a Host,
    /// Its records.
    pub(crate) store: Store,
}

impl<'a> Open<'a> {
    /// Opens it; without one an error that says how it is made.
    pub(crate) fn new(host: &'a Host) -> anyhow::Result<Self> {
        Ok(Open { host, store: Store::open(&folder(host)?)? })
    }

    /// What opens its secrets: of the session, or by a passphrase, which is then asked for and opens nothing else.
    pub(crate) fn key(&self) -> anyhow::Result<MasterKey> {
        match self.session()? {
            Session::Unlocked { key, .. } => Ok(key),
            // These have no --passphrase-stdin.
            Session::Locked(locked) if tiers::is_out_of_reach(self.host)? => bail!("{locked}"),
            Session::Locked(_) => {
                tiers::unlock(self.host, &|passphrase| self.store.unlock(passphrase), Ask::default())
                    .context("the vault is locked")
            }
        }
    }

    /// Whether it is unlocked. The key of a session that has ended goes with the first look at it.
    pub(crate) fn session(&self) -> anyhow::Result<Session> {
        let Some(base) = base(self.host, false)? else { return Ok(Session::Locked(Locked::Never)) };
        let now = show::now();
        let session = terok_vault::session::read(&base, self.store.id(), now)?;
        if matches!(session, Session::Locked(Locked::Ended)) {
            terok_vault::session::forget_ended(&base, now)?;
        }
        Ok(session)
    }
}

/// The vault's folder, made where there is none.
pub(crate) fn folder(host: &Host) -> anyhow::Result<Dir> {
    let path = host.vault_dir();
    if host.rootless() {
        return Ok(terok_vault::user_folder(&host.at(&host.home))?);
    }
    let name = path.file_name().and_then(std::ffi::OsStr::to_str).unwrap_or_default();
    Ok(Dir::base(path.parent().unwrap_or(&path))?.make_private(name)?)
}

/// The folder on tmpfs that holds the session and the credentials that live with one container: above the runtime folders of containers.
fn base(host: &Host, make: bool) -> anyhow::Result<Option<Dir>> {
    let path = host.run_dir();
    let above = path.parent().unwrap_or(&path);
    let name = path.file_name().and_then(std::ffi::OsStr::to_str).unwrap_or(layout::RUN_USER);
    if !above.is_dir() {
        bail!(
            "no {}: there is no login session; log in instead of using su, or as root: loginctl enable-linger {}",
            above.display(),
            host.uid
        );
    }
    let above = Dir::base(above)?;
    Ok(if make { Some(above.make_private(name)?) } else { above.private(name)? })
}

/// `terok vault revoke`
fn revoke(host: &Host, container: &str, grants: &[String], undo: bool, json: Json) -> anyhow::Result<()> {
    let known = containers::find(host, container)?;
    if known.run.is_none() && !undo {
        refuse_misspelt(host, grants)?;
    }
    // First where no worker can undo it: one that a container took over could keep the word to itself.
    let noted = note_revocation(host, &known, grants, undo);
    let told = match known.run {
        // What runs loses its grants even where a full disk keeps no note of it.
        Some(_) if noted.is_ok() || !undo => tell_revocation(&known, grants, undo),
        _ => Ok(Applied { changed: grants.to_vec(), cut: 0 }),
    };
    noted.context("not noted beside the vault, where it would outlive the container's supervisor")?;
    let applied = told?;
    if json.json {
        say!("{}", serde_json::to_string(&applied)?)?;
        return Ok(());
    }
    if known.run.is_none() {
        let what = if grants.is_empty() { "what it was granted".to_owned() } else { grants.join(", ") };
        let has = if undo { "has" } else { "does without" };
        let (name, what) = (show::printable(known.name()), show::printable(&what));
        say!("{name} does not run; from its next start on it {has} {what}")?;
        return Ok(());
    }
    let what = match (undo, applied.changed.is_empty()) {
        (false, false) => format!("revoked {}", applied.changed.join(", ")),
        (false, true) => "was revoked already".to_owned(),
        (true, false) => format!("granted again {}", applied.changed.join(", ")),
        (true, true) => "was not revoked".to_owned(),
    };
    let cut = match applied.cut {
        0 => String::new(),
        n => format!("; cut {n} requests"),
    };
    say!("{}: {}{cut}", show::printable(known.name()), show::printable(&what))?;
    Ok(())
}

/// What a container that does not run was granted nobody can tell any more; a name that is no provider's and no key's it never had,
/// and what was meant would stay with it.
fn refuse_misspelt(host: &Host, grants: &[String]) -> anyhow::Result<()> {
    let providers = profiles::catalog(host)?.providers;
    // Without a vault there is no list of keys.
    let store = Store::open(&folder(host)?).ok();
    let is_known = |name: &str| match name.strip_prefix("ssh:") {
        Some(key) => {
            store.as_ref().is_none_or(|store| !matches!(store.ssh_key(key), Err(Error::Absent { .. })))
        }
        None => providers.contains_key(name),
    };
    match grants.iter().find(|name| !is_known(name)) {
        Some(name) => bail!(
            "{name:?} is no provider and no SSH key, so nothing was taken back: `terok provider list` and `terok ssh list` tell the names; without a name all that was granted is taken back"
        ),
        None => Ok(()),
    }
}

/// For the container itself and for the one whose supervisor serves it: which of them it is, is told by a file of the worker's. So
/// nothing is given again by that word, which could be another container's.
fn note_revocation(host: &Host, known: &Known, grants: &[String], undo: bool) -> anyhow::Result<()> {
    if let Some(guard) = known.served_by().filter(|_| undo) {
        bail!(
            "{} shares the network and the grants of {guard}: `terok vault revoke {guard} --undo` gives them again to all of its members",
            show::printable(known.name())
        );
    }
    let vault = folder(host)?;
    for id in [Some(known.id.as_str()), known.served_by()].into_iter().flatten() {
        Revocation::note(&vault, id, grants, undo)?;
    }
    let states = host.state_dir();
    Ok(Revocation::prune(&vault, REVOKED_KEPT, |id| states.join(id).is_dir())?)
}

fn tell_revocation(known: &Known, grants: &[String], undo: bool) -> anyhow::Result<Applied> {
    let told = control::block_on(control::give(known, control::Order::Revoke(grants, undo)))?;
    match told {
        Err(error) if !undo => {
            bail!(
                "{error:#}; the vault gives it nothing more of what was named, whatever its supervisor does"
            )
        }
        told => told,
    }
}
