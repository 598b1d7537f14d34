//! What the adapters would do to a configuration, told and not done (`terok explain --config`): nothing is made, bound or
//! started, and neither the engine nor the vault is asked.

use crate::doors::Keep;
use crate::guards::{self, Wanted};
use crate::{adapter, refusal};
use serde_json::Value;
use std::path::{Path, PathBuf};
use terok_policy::amend::hooks::{self, Installed};
use terok_policy::provision::{self, Provision};
use terok_policy::{Policy, layout};

/// The network that a configuration asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// One of its own, in which there will be no card.
    Own,
    /// One that the engine prepares, with a card in it for all that can be told.
    Prepared,
    /// That of another process, whose container knows what it is.
    Joined {
        /// Its pid.
        holder: i32,
    },
    /// The host's.
    Host,
}

/// The network that `config` asks for.
pub fn network(config: &Value) -> Network {
    match guards::wanted(config) {
        Wanted::Own => Network::Own,
        Wanted::Prepared => Network::Prepared,
        Wanted::Joined { holder } => Network::Joined { holder },
        Wanted::Host => Network::Host,
    }
}

/// The host's sockets that are mounted and let be; or, in one line, why a container of this configuration would not start,
/// whatever its policy. `uid` is its owner's, `vault` the folder of their vault.
pub fn guard(config: &Value, uid: u32, vault: &Path) -> Result<Vec<String>, String> {
    let given = given(config);
    let carded = guards::wanted(config) != Wanted::Own;
    guards::check(config, &Keep { uid, vault: vault.into(), given: given.as_deref() }, carded).map_err(line)
}

/// The configuration as the runtime would get it from the shim; from `precreate` without the hooks, which Podman adds itself.
/// What was given to the container already stays.
pub fn amended(
    config: Value,
    policy: &Policy,
    provision: &Provision,
    installed: &Installed,
) -> Result<Value, String> {
    let provision = Some(provision).filter(|_| given(&config).is_none());
    let amended = adapter::edited(config, policy, provision).map_err(line)?;
    hooks::inject(amended, installed).map_err(line)
}

/// The folder that an adapter made at an earlier start and mounted at [`provision::INSIDE`].
pub fn given(config: &Value) -> Option<PathBuf> {
    let mut mounts = config.get("mounts").and_then(Value::as_array)?.iter();
    let mount =
        mounts.find(|mount| mount.get("destination").and_then(Value::as_str) == Some(provision::INSIDE))?;
    let source = PathBuf::from(mount.get("source").and_then(Value::as_str)?);
    let birth = source.parent()?.parent()?;
    (source.file_name()? == layout::INSIDE && birth.file_name()? == layout::BIRTH).then_some(source)
}

fn line(error: impl std::fmt::Display) -> String {
    refusal::one_line(&error.to_string())
}
