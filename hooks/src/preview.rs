//! What the adapters would do to a configuration, told and not done (`terok explain --config`): nothing is made, bound or
//! started, and neither the engine nor the vault is asked. Of the engine only files are read.

use crate::doors::Keep;
use crate::guards::{self, Wanted};
use crate::origin::Origin;
use crate::state::Annotations;
use crate::{adapter, birth, refusal};
use serde_json::Value;
use std::path::{Path, PathBuf};
use terok_policy::amend::hooks::Installed;
use terok_policy::amend::{self, hooks};
use terok_policy::provision::Provision;
use terok_policy::{Policy, layout};

/// A container that may be started with a configuration.
#[derive(Debug)]
pub struct Container {
    origin: Origin,
    /// The configuration, and what is said to terok beside it in it.
    pub config: Value,
    /// What is said to terok.
    pub annotations: Annotations,
}

/// The network that a configuration asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// One of its own, in which there will be no card.
    Own,
    /// One that the engine prepares, before or after our hook, with a card in it for all that can be told.
    Prepared,
    /// That of another process, whose container knows what it is.
    Joined {
        /// Its pid.
        holder: i32,
    },
    /// The host's.
    Host,
}

impl Container {
    /// Of the configuration at `path`, whose place tells the engine; nowhere, none is known.
    pub fn new(path: Option<&Path>, config: Value, annotations: &Annotations) -> Result<Self, String> {
        let bundle =
            path.and_then(|path| path.canonicalize().ok()).and_then(|path| Some(path.parent()?.to_owned()));
        let origin = match &bundle {
            Some(bundle) => Origin::of_bundle(bundle, &id(bundle), &config).map_err(line)?,
            None => Origin::Unknown("it is in no bundle".into()),
        };
        let annotations = origin.ours(annotations).map_err(line)?;
        let config = match annotations.is_empty() {
            true => config,
            false => amend::annotate(config, &annotations).map_err(line)?,
        };
        Ok(Container { origin, config, annotations })
    }

    /// The network that it asks for.
    pub fn network(&self) -> Network {
        match guards::wanted(&self.config) {
            Wanted::Own if self.origin.brings_card(&self.config) => Network::Prepared,
            Wanted::Own => Network::Own,
            Wanted::Prepared => Network::Prepared,
            Wanted::Joined { holder } => Network::Joined { holder },
            Wanted::Host => Network::Host,
        }
    }

    /// Why it cannot be told whose word the annotations are: at its real place that would refuse what grants.
    pub fn doubt(&self) -> Option<&str> {
        match &self.origin {
            Origin::Unknown(reason) => Some(reason),
            _ => None,
        }
    }

    /// The host's sockets that are mounted and let be; or, in one line, why it would not start. `uid` is its owner's, `vault` the
    /// folder of their vault.
    pub fn guard(&self, policy: &Policy, uid: u32, vault: &Path) -> Result<Vec<String>, String> {
        if self.doubt().is_none() {
            self.origin.check(&self.annotations, policy).map_err(line)?;
        }
        let given = self.given();
        let keep = Keep { uid, vault: vault.into(), given: given.as_deref() };
        let (config, carded) = adapter::without_defaults(self.config.clone(), &self.origin).map_err(line)?;
        guards::check(&config, &keep, carded).map_err(line)
    }

    /// The configuration as the runtime would get it from the shim; from `precreate` without the hooks, which Podman adds itself.
    /// What was given to the container already stays.
    pub fn amended(
        &self,
        policy: &Policy,
        provision: &Provision,
        installed: &Installed,
    ) -> Result<Value, String> {
        let provision = Some(provision).filter(|_| self.given().is_none());
        let (config, _) = adapter::without_defaults(self.config.clone(), &self.origin).map_err(line)?;
        let amended = adapter::edited(config, policy, provision).map_err(line)?;
        hooks::inject(amended, installed).map_err(line)
    }

    /// The folder that an adapter made at an earlier start and mounted at [`terok_policy::provision::INSIDE`].
    fn given(&self) -> Option<PathBuf> {
        // Whose runtime folder it lies in is not known here, so its shape has to do.
        let source = birth::source_inside(&self.config)?;
        let births = source.parent()?.parent()?;
        (source.file_name()? == layout::INSIDE && births.file_name()? == layout::BIRTH).then_some(source)
    }
}

/// Podman's bundles are `<id>/userdata`, others `<id>`.
fn id(bundle: &Path) -> String {
    let folder = match bundle.file_name() {
        Some(name) if name == "userdata" => bundle.parent().unwrap_or(bundle),
        _ => bundle,
    };
    folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn line(error: impl std::fmt::Display) -> String {
    refusal::one_line(&error.to_string())
}
