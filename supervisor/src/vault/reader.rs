//! What a helper does for each errand: reads the session and the store, and picks what the policy grants. Every refusal says what to do.

use super::renewal::{self, Wanted};
use super::{AgentKey, Credential, Errand, Fetched, Stamp, Trouble};
use crate::context::{kept_live, unix_seconds};
use crate::ssh::errand;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use terok_kernel::statedir::Dir;
use terok_policy::layout;
use terok_policy::live::Live;
use terok_policy::policy::{SshGrant, VaultGrant};
use terok_policy::provider::{CredentialType, Provider};
use terok_policy::settings::Upstream;
use terok_vault::ephemeral::Ephemeral;
use terok_vault::known_hosts::{self, KnownHosts};
use terok_vault::session::{self, Session};
use terok_vault::{Error, Kind, MasterKey, Record, Revocation, Secret, SshPublic, Store, ssh_key};
use zeroize::Zeroizing;

/// An ephemeral credential is this long at most.
const EPHEMERAL_LIMIT: u64 = 1 << 20;

/// The part of [`terok_policy::plan::SupervisorConfig`] that is about the vault.
#[derive(Debug, Deserialize)]
pub(crate) struct Grants {
    /// Container id.
    pub(crate) id: String,
    /// What was granted.
    pub(crate) policy: Granted,
    /// The proxy of the host's own network.
    #[serde(default)]
    pub(crate) upstream: Option<Upstream>,
    /// The owner's home.
    #[serde(default)]
    pub(crate) home: String,
}

/// The part of [`terok_policy::Policy`] that is.
#[derive(Debug, Deserialize)]
pub(crate) struct Granted {
    #[serde(default)]
    vault: Vec<VaultGrant>,
    #[serde(default)]
    ssh: Vec<SshGrant>,
}

/// A helper's means.
pub(crate) struct Reader {
    /// The vault's folder.
    pub(crate) vault: Dir,
    /// The runtime base folder.
    pub(crate) base: Dir,
    /// The container's state folder.
    pub(crate) state: Dir,
    /// What it may read.
    pub(crate) grants: Grants,
}

impl Grants {
    /// Whether this grant's credential may have to be renewed.
    pub(crate) fn renews(&self, grant: usize) -> bool {
        self.policy
            .vault
            .get(grant)
            .is_some_and(|grant| grant.provider.oauth.is_some() && !is_ephemeral(grant))
    }
}

/// What was taken back from the container.
struct Revoked<'a> {
    container: &'a str,
    /// Beside the store, where its worker cannot write.
    noted: Revocation,
    /// In `live.json`: what the worker was told.
    live: Vec<String>,
}

impl Revoked<'_> {
    /// Refuses the grant that is called `name`, if it was.
    fn refuse(&self, name: &str) -> Result<(), Trouble> {
        match self.noted.has(name) || self.live.iter().any(|revoked| revoked == name) {
            true => Err(Trouble::Revoked(super::revoked(name, self.container))),
            false => Ok(()),
        }
    }
}

/// A store with the key to it.
struct Opened {
    store: Store,
    key: MasterKey,
    /// Unix seconds.
    until: u64,
}

impl Reader {
    /// Runs an errand.
    pub(crate) fn run(&self, errand: &Errand) -> Result<Fetched, Trouble> {
        match errand {
            Errand::Credential { grant, refused } => {
                self.credential(*grant, *refused).map(Fetched::Credential)
            }
            Errand::Keys => self.keys().map(Fetched::Keys),
            Errand::Sign { grant, bindings, data, flags } => {
                let wanted = errand::Wanted { bindings, data, flags: *flags };
                self.sign(*grant, &wanted).map(Fetched::Signature)
            }
        }
    }

    /// How the files are that the errand's result comes from.
    pub(crate) fn stamp(&self, errand: &Errand) -> Stamp {
        let granted = match errand {
            Errand::Credential { grant, .. } => {
                self.grants.policy.vault.get(*grant).filter(|grant| is_ephemeral(grant))
            }
            _ => None,
        };
        let mut watched = match granted.and_then(|grant| self.claimed(grant)) {
            Some(name) => vec![self.base.path().join(layout::EPHEMERAL).join(name)],
            None => {
                let session: PathBuf = self.base.path().join(layout::SESSION).join(layout::SESSION_KEY);
                terok_vault::watched(self.vault.path()).into_iter().chain([session]).collect()
            }
        };
        watched.push(Revocation::path(self.vault.path(), &self.grants.id));
        Stamp::take(&watched)
    }

    fn credential(&self, grant: usize, refused: Option<u64>) -> Result<Credential, Trouble> {
        let granted = self.grants.policy.vault.get(grant).ok_or_else(not_granted)?;
        let provider = &granted.provider;
        self.revoked()?.refuse(&provider.name)?;
        if is_ephemeral(granted) {
            return self.ephemeral(granted);
        }
        let mut opened = self.open()?;
        let found = opened.store.open_credential(&opened.key, &provider.name, &granted.credential);
        let (record, secret) = match found {
            Err(Error::Absent { .. }) => return Err(absent(granted)),
            found => found.map_err(failed)?,
        };
        let credential = match &record.kind {
            Kind::Credential(CredentialType::OAuth) => {
                let Opened { store, key, .. } = &mut opened;
                let wanted =
                    Wanted { dir: &self.vault, provider, upstream: self.grants.upstream.as_ref(), refused };
                renewal::current(store, key, (record, secret), &wanted)?
            }
            _ => plain(&record, secret)?,
        };
        let until = credential.until.map_or(opened.until, |until| until.min(opened.until));
        let credential = Credential { until: Some(until), ..credential };
        taken(provider, &credential)?;
        Ok(credential)
    }

    /// A credential that lives with this container.
    fn ephemeral(&self, granted: &VaultGrant) -> Result<Credential, Trouble> {
        let gone = || {
            Trouble::Missing(format!(
                "the credential for {} lived for one run of this container; start another with `terok run --credential`",
                granted.provider.name
            ))
        };
        let name = self.claimed(granted).ok_or_else(gone)?;
        let folder = self.base.private(layout::EPHEMERAL).map_err(failed)?.ok_or_else(gone)?;
        let text = Zeroizing::new(folder.read(&name, EPHEMERAL_LIMIT).map_err(failed)?.ok_or_else(gone)?);
        let Ephemeral { provider, kind, user, secret } = Ephemeral::parse(&text).ok_or_else(gone)?;
        if provider != granted.provider.name {
            return Err(gone());
        }
        let credential = Credential { kind, user, secret, revision: 1, until: None };
        taken(&granted.provider, &credential)?;
        Ok(credential)
    }

    /// Name of the file that this container, and no other, has claimed.
    fn claimed(&self, granted: &VaultGrant) -> Option<String> {
        layout::claimed(granted.reference()?, &self.grants.id)
    }

    /// The store and the session's key to it.
    fn open(&self) -> Result<Opened, Trouble> {
        let store = self.store()?;
        match session::read(&self.base, store.id(), unix_seconds()).map_err(failed)? {
            Session::Unlocked { key, until } => Ok(Opened { store, key, until }),
            Session::Locked(why) => Err(Trouble::Locked(why.to_string())),
        }
    }

    fn store(&self) -> Result<Store, Trouble> {
        Store::open(&self.vault).map_err(|error| match error {
            Error::None { .. } => Trouble::Missing(error.to_string()),
            error => failed(error),
        })
    }

    /// What an operator took back. An unreadable file gives nothing.
    fn revoked(&self) -> Result<Revoked<'_>, Trouble> {
        let container = &self.grants.id;
        let noted = Revocation::read(&self.vault, container).map_err(failed)?;
        let Live { revoked: live, .. } =
            kept_live(&self.state).map_err(|error| failed(format!("{error:#}")))?;
        Ok(Revoked { container, noted, live })
    }

    /// Public keys are readable while the vault is locked.
    fn keys(&self) -> Result<Vec<AgentKey>, Trouble> {
        let (store, revoked) = (self.store()?, self.revoked()?);
        let mut keys = Vec::new();
        for (grant, granted) in self.grants.policy.ssh.iter().enumerate() {
            if revoked.refuse(&super::ssh_name(granted)).is_err() {
                continue;
            }
            let record = match store.ssh_key(&granted.key) {
                Err(Error::Absent { .. }) => continue,
                record => record.map_err(failed)?,
            };
            let Some(SshPublic { public, users }) = record.ssh else { continue };
            let Some((blob, _)) = ssh_key::read_public(&public) else { continue };
            let (blob, comment) = (BASE64_STANDARD.encode(blob), granted.key.clone());
            keys.push(AgentKey { grant, blob, comment, users });
        }
        Ok(keys)
    }

    /// A signature, once the request is judged.
    fn sign(&self, grant: usize, wanted: &errand::Wanted<'_>) -> Result<String, Trouble> {
        let granted = self.grants.policy.ssh.get(grant).ok_or_else(not_granted)?;
        let name = super::ssh_name(granted);
        self.revoked()?.refuse(&name)?;
        let Opened { store, key, .. } = self.open()?;
        let record = match store.ssh_key(&granted.key) {
            Err(Error::Absent { .. }) => {
                let key = &granted.key;
                return Err(Trouble::Missing(format!(
                    "no SSH key {key} in the vault; `terok ssh new {key}` or `terok ssh import` puts one there"
                )));
            }
            record => record.map_err(failed)?,
        };
        let words = record.words();
        let public = record.ssh.as_ref().ok_or_else(|| failed(format!("{words} has no public key")))?;
        let known = KnownHosts::read(&self.known_hosts()).map_err(|error| {
            failed(format!("{error}; if the file is newer than the container, start the container again"))
        })?;
        errand::sign(wanted, granted, public, &known, || {
            match store.open_secret(&key, &record).map_err(failed)? {
                Secret::Ssh(pem) => Ok(pem),
                Secret::Key(_) | Secret::Basic { .. } | Secret::OAuth { .. } => {
                    Err(failed(format!("{words} is no SSH key")))
                }
            }
        })
    }

    /// Files with hosts' keys.
    pub(crate) fn known_hosts(&self) -> Vec<PathBuf> {
        known_hosts::files(self.vault.path(), Path::new(&self.grants.home))
    }
}

/// A key or a password.
fn plain(record: &Record, secret: Secret) -> Result<Credential, Trouble> {
    let (kind, user, secret) = match secret {
        Secret::Key(secret) => (CredentialType::Key, String::new(), secret),
        Secret::Basic { user, password } => (CredentialType::Basic, user, password),
        Secret::OAuth { .. } | Secret::Ssh(_) => {
            return Err(Trouble::Failed(format!(
                "{} holds something else than its type; add it again",
                record.words()
            )));
        }
    };
    Ok(Credential { kind, user, secret, revision: record.revision, until: None })
}

/// Whether the provider says how such a credential is sent.
fn taken(provider: &Provider, credential: &Credential) -> Result<(), Trouble> {
    if provider.credential.contains_key(&credential.kind) {
        return Ok(());
    }
    let name = &provider.name;
    Err(Trouble::Failed(format!(
        "provider {name} takes no credential of this type; `terok provider show {name}` tells which, `terok vault add {name} --replace` puts another in its place"
    )))
}

fn is_ephemeral(grant: &VaultGrant) -> bool {
    grant.credential.starts_with('@')
}

/// Without the names of others that are there: the container reads it too, and was not granted them.
fn absent(granted: &VaultGrant) -> Trouble {
    let (provider, name) = (&granted.provider.name, &granted.credential);
    let wanted = if name == VaultGrant::DEFAULT { provider.clone() } else { format!("{provider} {name}") };
    Trouble::Missing(format!(
        "no credential {name} of {provider} in the vault (`terok vault list` shows what is); run `terok vault add {wanted}`"
    ))
}

fn not_granted() -> Trouble {
    Trouble::Refused("not granted".into())
}

fn failed(error: impl std::fmt::Display) -> Trouble {
    Trouble::Failed(error.to_string())
}
