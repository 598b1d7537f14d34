//! `terok ssh`: the keys that containers log in and sign commits with, and the hosts they are known to be used at. A private key is made or taken over
//! here and leaves the vault no more.

use crate::vault::{Open, prompt};
use crate::{cli::Json, show};
use anyhow::{Context as _, bail};
use std::path::PathBuf;
use terok_install::host::Host;
use terok_policy::{Name, layout};
use terok_vault::known_hosts;
use terok_vault::ssh_key::{Kind as KeyKind, SshKey, SshKeyError, fingerprint};
use terok_vault::{Error, Kind, New, Record, Secret, SshPublic};

/// The user that git hosts have.
const USER: &str = "git";
/// terok's own known hosts are this long at most.
const HOSTS_LIMIT: u64 = 4 << 20;

/// `terok ssh …`
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Ssh {
    /// Make a key and print its public part
    New {
        /// What to call it; a container is granted it with --ssh NAME@HOST
        name: String,
        /// ed25519, ecdsa-256, ecdsa-384 or ecdsa-521
        #[arg(long = "type", value_name = "TYPE", default_value = "ed25519", value_parser = kind_of)]
        kind: KeyKind,
        #[command(flatten)]
        users: LoginAs,
    },
    /// Take over a private key that ssh-keygen made
    Import {
        /// What to call it
        name: String,
        /// The private key's file, or - for standard input; a passphrase is asked for where it has one
        file: PathBuf,
        #[command(flatten)]
        users: LoginAs,
    },
    /// The keys there are
    List(Json),
    /// Print a public key, as it is given to a git host
    Public {
        /// Its name
        name: String,
    },
    /// Say as whom a key logs in
    Users {
        /// Its name
        name: String,
        #[command(flatten)]
        users: LoginAs,
    },
    /// Remove a key; containers that were granted it get no signature from then on
    Remove {
        /// Its name
        name: String,
        /// Without asking
        #[arg(long)]
        yes: bool,
    },
    /// The host keys by which hosts are recognised, beside ~/.ssh/known_hosts, /etc/ssh/ssh_known_hosts and the bundled ones of public git hosts
    #[command(subcommand)]
    Hosts(Hosts),
}

/// As whom.
#[derive(Debug, clap::Args)]
pub(crate) struct LoginAs {
    /// A user it may log in as; may be given more than once
    #[arg(long = "user", value_name = "USER", default_value = USER)]
    users: Vec<String>,
    /// It may log in as anybody
    #[arg(long, conflicts_with = "users")]
    any_user: bool,
}

/// `terok ssh hosts …`
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Hosts {
    /// What was added
    List(Json),
    /// Recognise a host by a key; takes effect at once
    Add {
        /// The host
        host: String,
        /// Its fingerprint, SHA256:…, or the public key: ssh-ed25519 AAAA…
        #[arg(required = true)]
        key: Vec<String>,
    },
    /// Forget what was added of a host
    Remove {
        /// The host
        host: String,
    },
}

/// Does what was asked.
pub(crate) fn ssh(host: &Host, verb: Ssh) -> anyhow::Result<()> {
    match verb {
        Ssh::New { name, kind, users } => {
            is_free(host, &name)?;
            add(host, &name, &SshKey::generate(kind, &name)?, users)
        }
        Ssh::Import { name, file, users } => {
            is_free(host, &name)?;
            add(host, &name, &import(&file)?, users)
        }
        Ssh::List(json) => list(host, json),
        Ssh::Public { name } => {
            let record = Open::new(host)?.store.ssh_key(&name)?;
            say!("{}", show::printable(&public(&record)))?;
            Ok(())
        }
        Ssh::Users { name, users } => {
            let mut open = Open::new(host)?;
            let (record, users) = (open.store.ssh_key(&name)?, users.list()?);
            open.store.set_ssh_users(&record, &users)?;
            let users = if users.is_empty() { "anybody".to_owned() } else { users.join(", ") };
            say!("{} logs in as {users}", show::printable(&name))?;
            Ok(())
        }
        Ssh::Remove { name, yes } => remove(host, &name, yes),
        Ssh::Hosts(Hosts::List(json)) => list_hosts(host, json),
        Ssh::Hosts(Hosts::Add { host: at, key }) => add_host(host, &at, &key.join(" ")),
        Ssh::Hosts(Hosts::Remove { host: at }) => remove_host(host, &at),
    }
}

fn kind_of(text: &str) -> Result<KeyKind, String> {
    match text {
        "ed25519" => Ok(KeyKind::Ed25519),
        "ecdsa" | "ecdsa-256" => Ok(KeyKind::EcdsaP256),
        "ecdsa-384" => Ok(KeyKind::EcdsaP384),
        "ecdsa-521" => Ok(KeyKind::EcdsaP521),
        "rsa" => {
            Err("make it with `ssh-keygen -t rsa -b 3072` and take it over with `terok ssh import`".into())
        }
        _ => Err("ed25519, ecdsa-256, ecdsa-384 and ecdsa-521 are made".into()),
    }
}

impl LoginAs {
    /// Nobody in particular where it may be anybody.
    fn list(&self) -> anyhow::Result<Vec<String>> {
        if self.any_user {
            return Ok(Vec::new());
        }
        let fits = |user: &&String| {
            !user.is_empty() && user.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',')
        };
        match self.users.iter().find(|user| !fits(user)) {
            Some(user) => bail!("{user:?} is no user name"),
            None => Ok(self.users.clone()),
        }
    }
}

/// Before anything is made or typed.
fn is_free(host: &Host, name: &str) -> anyhow::Result<()> {
    if Open::new(host)?.store.ssh_key(name).is_ok() {
        bail!("the vault has an SSH key {name} already: remove it or choose another name");
    }
    Ok(())
}

fn import(file: &std::path::Path) -> anyhow::Result<SshKey> {
    let shown = file.display();
    let text = if file.as_os_str() == "-" {
        prompt::standard_input()?
    } else {
        prompt::read(std::fs::File::open(file).with_context(|| shown.to_string())?)
            .with_context(|| shown.to_string())?
    };
    match SshKey::import(&text, None) {
        Err(SshKeyError::Encrypted) => {
            let passphrase = prompt::hidden(&format!("passphrase of {shown}")).context(
                "the key is encrypted: import it on a terminal, or a copy that `ssh-keygen -p` has decrypted",
            )?;
            SshKey::import(&text, Some(&passphrase)).with_context(|| shown.to_string())
        }
        read => read.with_context(|| shown.to_string()),
    }
}

fn add(host: &Host, name: &str, key: &SshKey, users: LoginAs) -> anyhow::Result<()> {
    let mut open = Open::new(host)?;
    let ssh = SshPublic { public: key.public(), users: users.list()? };
    let secret = Secret::Ssh(key.to_pem()?);
    let master = open.key()?;
    let new = New { provider: "", name, secret: &secret, expires: None, ssh: Some(&ssh) };
    open.store.add(&master, &new, show::now())?;
    say!("{}", show::printable(&ssh.public))?;
    eprintln!(
        "terok: give this public key to the host; a container uses it with: terok run --ssh {name}@HOST"
    );
    Ok(())
}

fn list(host: &Host, json: Json) -> anyhow::Result<()> {
    let mut records = Open::new(host)?.store.records()?;
    records.retain(|record| record.kind == Kind::Ssh);
    if json.json {
        say!("{}", serde_json::to_string(&records)?)?;
        return Ok(());
    }
    if records.is_empty() {
        say!("no SSH key is in the vault; make one with: terok ssh new NAME")?;
        return Ok(());
    }
    say!("{:16} {:20} {:16} {}", "NAME", "TYPE", "USERS", "FINGERPRINT")?;
    for record in &records {
        let public = public(record);
        let kind = public.split(' ').next().unwrap_or_default().to_owned();
        let users = match record.ssh.as_ref().map(|ssh| ssh.users.join(",")).unwrap_or_default() {
            users if users.is_empty() => "(any)".to_owned(),
            users => users,
        };
        let print = fingerprint(&public).unwrap_or_default();
        let name = show::printable(&record.name);
        say!("{name:16} {:20} {:16} {print}", show::printable(&kind), show::printable(&users))?;
    }
    Ok(())
}

fn public(record: &Record) -> String {
    record.ssh.as_ref().map(|ssh| ssh.public.clone()).unwrap_or_default()
}

fn remove(host: &Host, name: &str, yes: bool) -> anyhow::Result<()> {
    let mut open = Open::new(host)?;
    let record = match open.store.ssh_key(name) {
        Ok(record) => Some(record),
        // Its row is no record any more, and goes by its name.
        Err(Error::Damaged { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let words = record.as_ref().map_or_else(|| format!("the damaged SSH key {name}"), Record::words);
    if !yes
        && !prompt::confirm(&format!("remove {words}?")).context("give --yes to remove it without asking")?
    {
        bail!("nothing was removed");
    }
    match &record {
        Some(record) => open.store.remove(record)?,
        None => drop(open.store.remove_named("", name)?),
    }
    say!("removed {words}; hosts that know its public key still do: remove it there as well")?;
    Ok(())
}

/// What was added, line by line.
fn own(host: &Host) -> anyhow::Result<(terok_vault::Dir, Vec<String>)> {
    let folder = crate::vault::folder(host)?;
    let text = folder.read(layout::VAULT_KNOWN_HOSTS, HOSTS_LIMIT)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    Ok((folder, text.lines().map(str::to_owned).collect()))
}

fn list_hosts(host: &Host, json: Json) -> anyhow::Result<()> {
    let (_, lines) = own(host)?;
    if json.json {
        let hosts = lines.iter().filter_map(|line| line.split_once(' '));
        let hosts: Vec<_> =
            hosts.map(|(host, key)| serde_json::json!({ "host": host, "key": key })).collect();
        say!("{}", serde_json::to_string(&hosts)?)?;
        return Ok(());
    }
    if lines.is_empty() {
        say!("no host key was added; add one with: terok ssh hosts add HOST SHA256:…")?;
    }
    for line in &lines {
        say!("{}", show::printable(line))?;
    }
    Ok(())
}

fn add_host(host: &Host, at: &str, key: &str) -> anyhow::Result<()> {
    let name: Name = at.parse()?;
    let line = known_hosts::line(&name, key).with_context(|| {
        format!("{key:?} is neither a fingerprint (SHA256:…) nor a public key (ssh-ed25519 AAAA…)")
    })?;
    let (folder, mut lines) = own(host)?;
    if !lines.contains(&line) {
        lines.push(line);
        folder.write(layout::VAULT_KNOWN_HOSTS, (lines.join("\n") + "\n").as_bytes())?;
    }
    say!("{name} is known by that key, from now on")?;
    Ok(())
}

fn remove_host(host: &Host, at: &str) -> anyhow::Result<()> {
    let name: Name = at.parse()?;
    let (folder, mut lines) = own(host)?;
    let before = lines.len();
    lines.retain(|line| line.split(' ').next() != Some(name.as_str()));
    if lines.len() == before {
        bail!("nothing was added of {name}; `terok ssh hosts list` shows what was");
    }
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    folder.write(layout::VAULT_KNOWN_HOSTS, text.as_bytes())?;
    say!("what was added of {name} is forgotten")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(names: &[&str], any_user: bool) -> anyhow::Result<Vec<String>> {
        LoginAs { users: names.iter().map(|name| (*name).to_owned()).collect(), any_user }.list()
    }

    #[test]
    fn a_key_is_for_named_users_or_for_anybody_on_purpose() {
        assert_eq!(users(&["git", "deploy"], false).unwrap(), ["git", "deploy"]);
        assert!(users(&["git"], true).unwrap().is_empty());
        for name in ["", "a,b", "a b", "a\n"] {
            assert!(users(&[name], false).is_err(), "{name:?}");
        }
    }

    #[test]
    fn what_is_not_made_here_says_where_it_is() {
        assert_eq!(kind_of("ecdsa-521"), Ok(KeyKind::EcdsaP521));
        assert!(kind_of("rsa").unwrap_err().contains("terok ssh import"));
        assert!(kind_of("dsa").is_err());
    }

    #[test]
    fn a_file_of_ssh_keygen_is_taken_over_and_another_names_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        let key = SshKey::generate(KeyKind::Ed25519, "me@here").unwrap();
        std::fs::write(&file, key.to_pem().unwrap().as_bytes()).unwrap();
        assert_eq!(import(&file).unwrap().public(), key.public());
        std::fs::write(&file, key.public()).unwrap();
        let error = format!("{:#}", import(&file).unwrap_err());
        assert!(error.contains("key: ") && error.contains("ssh-keygen -p"), "{error}");
    }
}
