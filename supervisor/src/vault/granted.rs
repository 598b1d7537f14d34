//! The container's grants as its worker sees them: what an operator took back counts before anything is fetched, and how each stands is kept for
//! `terok status` and written down when it changes.

use super::{Credential, Trouble, revoked, ssh_name};
use crate::audit::{Facts as _, event};
use crate::context::Context;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use terok_policy::audit::Kind;
use terok_policy::control::{CredentialState, CredentialStatus};

/// One of a container's grants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Granted {
    /// Position in [`terok_policy::Policy::vault`].
    Credential(usize),
    /// Position in [`terok_policy::Policy::ssh`].
    Key(usize),
}

/// How the grants stand, since the worker's start.
#[derive(Default)]
pub(crate) struct Standings(RefCell<HashMap<Granted, Standing>>);

#[derive(Default)]
struct Standing {
    state: Option<CredentialState>,
    reason: String,
    revision: u64,
    used: u64,
    refused: u64,
}

impl Context {
    /// The credential of a grant, unless it was taken back.
    pub(crate) async fn credential(&self, grant: usize) -> Result<Rc<Credential>, Trouble> {
        let fetched = match self.taken_back(Granted::Credential(grant)) {
            Some(trouble) => Err(trouble),
            None => self.vault.credential(grant).await,
        };
        self.heed(grant, fetched)
    }

    /// Another one for a grant whose `revision` the provider has refused ([`super::Vault::refused`]).
    pub(crate) async fn credential_refused(
        &self,
        grant: usize,
        revision: u64,
    ) -> Result<Rc<Credential>, Trouble> {
        let fetched = match self.taken_back(Granted::Credential(grant)) {
            Some(trouble) => Err(trouble),
            None => self.vault.refused(grant, revision).await,
        };
        self.heed(grant, fetched)
    }

    /// A signature with the key of an SSH grant ([`super::Vault::sign`]), unless it was taken back.
    pub(crate) async fn sign(
        &self,
        grant: usize,
        bindings: Vec<String>,
        data: String,
        flags: u32,
    ) -> Result<String, Trouble> {
        let granted = Granted::Key(grant);
        let signed = match self.taken_back(granted) {
            Some(trouble) => Err(trouble),
            None => self.vault.sign(grant, bindings, data, flags).await,
        };
        self.stand(granted, signed.as_ref().err());
        self.count(granted, signed.is_ok());
        signed
    }

    /// Whether an operator took a grant back, in words.
    pub(crate) fn taken_back(&self, granted: Granted) -> Option<Trouble> {
        let name = self.grant_name(granted)?;
        self.live().revoked.contains(&name).then(|| Trouble::Revoked(revoked(&name, &self.config.id)))
    }

    /// An operator has given grants back: the next request tells how each stands.
    pub(crate) fn given_back(&self) {
        let mut standings = self.standings.0.borrow_mut();
        for standing in standings.values_mut().filter(|s| s.state == Some(CredentialState::Revoked)) {
            (standing.state, standing.reason) = (None, String::new());
        }
    }

    /// A request was forwarded or a signature given, or refused.
    pub(crate) fn count(&self, granted: Granted, used: bool) {
        let mut standings = self.standings.0.borrow_mut();
        let standing = standings.entry(granted).or_default();
        *(if used { &mut standing.used } else { &mut standing.refused }) += 1;
    }

    /// Takes note of how a grant stands, and writes it down where that is new.
    pub(crate) fn stand(&self, granted: Granted, trouble: Option<&Trouble>) {
        let (state, reason) = match trouble {
            None => (CredentialState::Ready, String::new()),
            Some(trouble) => (
                match trouble {
                    Trouble::Locked(_) => CredentialState::Locked,
                    Trouble::Missing(_) => CredentialState::Missing,
                    Trouble::Revoked(_) => CredentialState::Revoked,
                    // A signature that is refused says nothing of the key.
                    Trouble::Refused(_) => return,
                    Trouble::Failed(_) => CredentialState::Failed,
                },
                trouble.to_string(),
            ),
        };
        {
            let mut standings = self.standings.0.borrow_mut();
            let standing = standings.entry(granted).or_default();
            if standing.state == Some(state) && standing.reason == reason {
                return;
            }
            (standing.state, standing.reason) = (Some(state), reason.clone());
        }
        let mut line = event(Kind::Vault, word(state), self.grant_text(granted));
        if !reason.is_empty() {
            line = line.with("reason", reason);
        }
        self.audit.note(line);
    }

    /// How each grant stands.
    pub(crate) fn credentials(&self) -> Vec<CredentialStatus> {
        let policy = &self.config.policy;
        let vault = (0..policy.vault.len()).map(Granted::Credential);
        let all = vault.chain((0..policy.ssh.len()).map(Granted::Key));
        let standings = self.standings.0.borrow();
        all.map(|granted| {
            let standing = standings.get(&granted);
            let (state, reason) = match self.taken_back(granted) {
                Some(trouble) => (CredentialState::Revoked, trouble.to_string()),
                None => match standing.map(|standing| (standing.state, &standing.reason)) {
                    Some((Some(state), reason)) => (state, reason.clone()),
                    _ => (CredentialState::Unused, String::new()),
                },
            };
            let (used, refused) = standing.map_or((0, 0), |standing| (standing.used, standing.refused));
            CredentialStatus { grant: self.grant_text(granted), state, reason, used, refused }
        })
        .collect()
    }

    fn heed(
        &self,
        grant: usize,
        fetched: Result<Rc<Credential>, Trouble>,
    ) -> Result<Rc<Credential>, Trouble> {
        let granted = Granted::Credential(grant);
        self.stand(granted, fetched.as_ref().err());
        if let Ok(credential) = &fetched {
            let before = {
                let mut standings = self.standings.0.borrow_mut();
                std::mem::replace(&mut standings.entry(granted).or_default().revision, credential.revision)
            };
            if before != 0 && before != credential.revision {
                let line = event(Kind::Vault, "changed", self.grant_text(granted));
                self.audit.note(line.with("revision", credential.revision));
            }
        }
        fetched
    }

    /// What `terok vault revoke` calls it.
    pub(crate) fn grant_name(&self, granted: Granted) -> Option<String> {
        let policy = &self.config.policy;
        match granted {
            Granted::Credential(grant) => policy.vault.get(grant).map(|grant| grant.provider.name.clone()),
            Granted::Key(grant) => policy.ssh.get(grant).map(ssh_name),
        }
    }

    /// As people read it.
    fn grant_text(&self, granted: Granted) -> String {
        let policy = &self.config.policy;
        match granted {
            Granted::Credential(grant) => policy.vault.get(grant).map(ToString::to_string),
            Granted::Key(grant) => policy.ssh.get(grant).map(|grant| format!("ssh {grant}")),
        }
        .unwrap_or_default()
    }
}

fn word(state: CredentialState) -> &'static str {
    match state {
        CredentialState::Unused => "unused",
        CredentialState::Ready => "ready",
        CredentialState::Locked => "locked",
        CredentialState::Missing => "missing",
        CredentialState::Revoked => "revoked",
        CredentialState::Failed => "failed",
    }
}
