//! Engines that call the shim as one of their runtimes: what each is told, one file an engine. Of the daemons
//! Docker's alone is asked what it knows.
//!
//! An engine knows the shim as [`layout::ENGINE_RUNTIME`]; behind that name is a link that says which runtime the shim stands before.

mod containerd;
mod docker;
mod podman;

use crate::doctor::Finding;
use crate::host::Host;
use crate::setup::{SetupError, Step};
use crate::target::{Scope, Target};
use std::path::{Path, PathBuf};
use terok_policy::layout;

/// An engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// Podman: a drop-in of `containers.conf`.
    Podman,
    /// Docker: its daemon's file.
    Docker,
    /// containerd, for the pods of a Kubernetes node: its configuration.
    Containerd,
}

/// What an engine knows of terok.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registered {
    /// Nothing.
    No,
    /// A runtime that a container names.
    Named,
    /// The runtime of every container that names none.
    Default,
}

/// What takes terok away from an engine.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Removal {
    /// The steps.
    pub steps: Vec<Step>,
    /// What is left where it was, and why.
    pub notes: Vec<String>,
}

/// What keeps what an engine was told from counting: other files of its own, or a daemon that has not read them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hidden {
    /// As it is told.
    pub(crate) finding: Finding,
    /// Whether [`Engine::reload`] puts it right.
    pub(crate) reload_mends: bool,
}

impl Engine {
    /// Every engine.
    pub const ALL: [Engine; 3] = [Engine::Podman, Engine::Docker, Engine::Containerd];

    /// As written on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Engine::Podman => "podman",
            Engine::Docker => "docker",
            Engine::Containerd => "containerd",
        }
    }

    /// What the engine's files at `target` say now.
    ///
    /// # Errors
    /// Files that cannot be read or understood.
    pub fn registered(self, target: &Target) -> Result<Registered, SetupError> {
        match self {
            Engine::Podman => podman::registered(target),
            _ if self.is_anothers(target) => Ok(Registered::No),
            Engine::Docker => docker::registered(target),
            Engine::Containerd => containerd::registered(target),
        }
    }

    /// What the engine knows of terok before it is to forget it: what its files at `target` say, and a default that the daemon of `host`
    /// keeps whatever they say by now.
    ///
    /// # Errors
    /// Files that cannot be read or understood.
    pub fn known(self, host: &Host, target: &Target) -> Result<Registered, SetupError> {
        let registered = self.registered(target)?;
        let kept = self == Engine::Docker && !self.is_anothers(target) && docker::keeps_default(host, target);
        Ok(if kept { Registered::Default } else { registered })
    }

    /// The steps that tell the engine of the shim at `target`, which must be there by then. `default`: for every container that
    /// names no runtime.
    ///
    /// # Errors
    /// Files that cannot be read or understood, or in which something else has terok's name or place.
    pub fn register(self, host: &Host, target: &Target, default: bool) -> Result<Vec<Step>, SetupError> {
        match self {
            Engine::Podman => podman::register(host, target, default),
            Engine::Docker => docker::register(host, target, default),
            Engine::Containerd => containerd::register(host, target, default),
        }
    }

    /// What takes back what [`Engine::register`] did.
    ///
    /// # Errors
    /// Files that cannot be read or understood.
    pub fn unregister(self, target: &Target) -> Result<Removal, SetupError> {
        match self {
            Engine::Podman => podman::unregister(target),
            _ if self.is_anothers(target) => Ok(Removal::default()),
            Engine::Docker => docker::unregister(target),
            Engine::Containerd => containerd::unregister(target),
        }
    }

    /// What keeps from counting what the files at `target` say, which is `registered`.
    pub(crate) fn hidden(self, host: &Host, target: &Target, registered: Registered) -> Option<Hidden> {
        match self {
            Engine::Podman => podman::hidden(host, target, registered),
            _ if self.is_anothers(target) => None,
            Engine::Docker => docker::hidden(host, target, registered),
            Engine::Containerd => containerd::hidden(host, target, registered),
        }
    }

    /// Whether a daemon runs that has not read what its files say of terok, which is `registered`, and would by [`Engine::reload`].
    /// Of containerd that has nothing of terok in its files: whether it has read them, whoever changed them.
    pub fn is_unread(self, host: &Host, target: &Target, registered: Registered) -> bool {
        self.hidden(host, target, registered).is_some_and(|hidden| hidden.reload_mends)
    }

    /// Whether its files are the machine's and the installation a user's own.
    fn is_anothers(self, target: &Target) -> bool {
        self != Engine::Podman && matches!(target.scope, Scope::User { .. })
    }

    /// The command that makes a daemon forget a default which was taken out of its files, where reading them again does not. It is
    /// for a person to run: containers end by it.
    pub fn forget(self) -> Option<&'static str> {
        match self {
            Engine::Docker => Some(docker::RESTART),
            Engine::Podman | Engine::Containerd => None,
        }
    }

    /// The command that makes the engine read its files again, where it does not by itself.
    pub fn reload(self) -> Option<&'static str> {
        match self {
            Engine::Podman => None,
            Engine::Docker => Some(docker::RELOAD),
            Engine::Containerd => Some(containerd::RELOAD),
        }
    }
}

/// Engines of the machine other than Podman that start containers through its shim. Those containers are root's.
pub fn machines(host: &Host) -> Vec<Engine> {
    let target = Target::of(host, true, None);
    let told = |engine: &Engine| !matches!(engine.registered(&target), Ok(Registered::No) | Err(_));
    Engine::ALL.into_iter().filter(|engine| *engine != Engine::Podman && told(engine)).collect()
}

/// The steps for the engines that are `asked` for and for those that know terok already, with what is said of being the default:
/// as it was, where nothing is.
///
/// # Errors
/// As [`Engine::register`]; files of an engine that nobody asked for count only where they name terok.
pub fn register_steps(
    host: &Host,
    target: &Target,
    asked: &[Engine],
    default: Option<bool>,
) -> Result<Vec<(Engine, Vec<Step>)>, SetupError> {
    let mut all = Vec::new();
    for engine in Engine::ALL {
        let asked = asked.contains(&engine);
        let before = match engine.registered(target) {
            Err(error) if asked => return Err(error),
            before => before.unwrap_or(Registered::No),
        };
        if !asked && before == Registered::No {
            continue;
        }
        let default = default.filter(|_| asked).unwrap_or(before == Registered::Default);
        all.push((engine, engine.register(host, target, default)?));
    }
    Ok(all)
}

/// By what path an engine at `target` calls the shim, so that it stands before `runtime`. A runtime that the settings name is meant
/// for every engine: it is the plain name's.
pub(crate) fn shim_before(target: &Target, runtime: &str) -> PathBuf {
    let chosen = std::fs::read_to_string(target.at(&target.shim_settings()))
        .is_ok_and(|text| text.parse().is_ok_and(|table: toml::Table| table.contains_key("runtime")));
    let name = if chosen { layout::SHIM.to_owned() } else { link(runtime) };
    target.bin_dir().join(name)
}

/// The link by which the shim stands before `runtime`.
pub(crate) fn link(runtime: &str) -> String {
    format!("{}-{runtime}", layout::SHIM)
}

/// Whether `path`, which an engine names, is the shim of some installation.
pub(crate) fn is_shim(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let link = |runtime: &str| name == link(runtime);
    path.is_absolute() && (name == layout::SHIM || layout::RUNTIMES.into_iter().any(link))
}
