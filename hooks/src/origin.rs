//! Whose word a container's annotations are (A2), told by the place of its bundle: engines keep apart what a person asked for and
//! what an image says, each in its own way. The same places tell a container's name, and what of its configuration was chosen.

mod containerd;
mod docker;
mod said;
mod storage;

use crate::refusal::Refusal;
use crate::state::{Annotations, ours};
use docker::Docker;
use serde_json::Value;
use std::path::Path;
use storage::Found;
use terok_policy::{Policy, annotation};

/// Where a container comes from.
#[derive(Debug)]
pub(crate) enum Origin {
    /// A store of containers/storage: Podman, CRI-O.
    Storage(Found),
    /// Docker.
    Docker(Box<Docker>),
    /// containerd itself: its CRI, `ctr`, nerdctl.
    Containerd(containerd::Task),
    /// No engine's that is known, or one whose files cannot be read: why.
    Unknown(String),
}

/// Why the image cannot be asked.
#[derive(Debug)]
enum Unknown {
    /// There is nothing where one looks for what it says: another engine, another store.
    Missing(String),
    /// There is something, and the engine may have read in it what we cannot: its author's doing.
    Damaged(String),
}

impl Origin {
    /// Of the container `id` with this bundle and configuration. Refused where labels may hold what is to protect it, and cannot
    /// be read.
    pub(crate) fn of_bundle(bundle: &Path, id: &str, config: &Value) -> Result<Self, Refusal> {
        if let Some(namespace) = containerd::namespace(bundle) {
            return match docker::is_its(namespace, id, config) {
                true => Docker::find(id, config).map(|found| Origin::Docker(Box::new(found))),
                false => Ok(Origin::Containerd(containerd::Task::new(id, config))),
            };
        }
        Ok(Origin::in_storage(storage::by_bundle(bundle, id)))
    }

    /// Of the container with this configuration: all that `precreate` is told.
    pub(crate) fn of_config(config: &Value) -> Self {
        Origin::in_storage(storage::by_config(config))
    }

    /// Whether what is to protect the container may be elsewhere than in its configuration.
    pub(crate) fn has_labels(bundle: &Path, id: &str, config: &Value) -> bool {
        containerd::namespace(bundle).is_some_and(|namespace| docker::is_its(namespace, id, config))
    }

    fn in_storage(found: Result<Found, String>) -> Self {
        found.map_or_else(Origin::Unknown, Origin::Storage)
    }

    /// The container's id, where the place tells it.
    pub(crate) fn id(&self) -> Result<String, String> {
        match self {
            Origin::Storage(found) => Ok(found.record.id.clone()),
            Origin::Unknown(reason) => Err(reason.clone()),
            Origin::Docker(_) | Origin::Containerd(_) => Err("its place does not tell".into()),
        }
    }

    /// The container's name, empty where it has none.
    pub(crate) fn name(&self) -> String {
        match self {
            Origin::Storage(found) => found.name(),
            Origin::Docker(docker) => docker.name.clone(),
            Origin::Containerd(task) => task.name.clone(),
            Origin::Unknown(_) => String::new(),
        }
    }

    /// What is said to terok: the annotations below its prefix and, of Docker, the labels, which are no part of a configuration.
    pub(crate) fn ours(&self, annotations: &Annotations) -> Result<Annotations, Refusal> {
        let ours = ours(annotations);
        match self {
            Origin::Docker(docker) => docker.with_labels(ours),
            _ => Ok(ours),
        }
    }

    /// Refuses what the image said, and what it may have said where that cannot be known.
    pub(crate) fn check(&self, ours: &Annotations, policy: &Policy) -> Result<(), Refusal> {
        let unknown = match self {
            Origin::Docker(docker) => return docker.check(ours, policy),
            Origin::Storage(found) => match found.image_annotations() {
                Ok(said) => return not_said(ours, &said, "annotation"),
                Err(unknown) => unknown,
            },
            Origin::Containerd(task) => match &task.doubt {
                Some(doubt) => Unknown::Damaged(doubt.clone()),
                None => return Ok(()),
            },
            Origin::Unknown(reason) => Unknown::Missing(reason.clone()),
        };
        refuse_doubtful(ours, policy, unknown)
    }

    /// Whether the container of this configuration has no card yet and will get one, by a hook of the engine's or by the engine
    /// itself once the container is created.
    pub(crate) fn brings_card(&self, config: &Value) -> bool {
        match self {
            Origin::Docker(docker) => docker.brings_card(),
            Origin::Containerd(_) => containerd::brings_card(config),
            Origin::Storage(_) | Origin::Unknown(_) => storage::brings_card(config),
        }
    }

    /// Whether the container has CAP_NET_RAW, if it has it, only because its engine gives it to every one. containerd's
    /// configurations do not tell. One without a card may yet get one: `docker network connect`.
    pub(crate) fn has_raw_by_default(&self) -> bool {
        match self {
            Origin::Docker(docker) => !docker.wants_raw(),
            Origin::Containerd(_) => true,
            Origin::Storage(_) | Origin::Unknown(_) => false,
        }
    }

    /// The engine's name server inside the container's network, if it may have one there, now or once it is connected to a network.
    pub(crate) fn name_server(&self) -> Option<std::net::IpAddr> {
        match self {
            Origin::Docker(docker) if docker.has_own_network() => Some(docker::NAME_SERVER.into()),
            _ => None,
        }
    }
}

/// Refuses what the image said in the same words.
fn not_said(ours: &Annotations, said: &said::Said, what: &'static str) -> Result<(), Refusal> {
    let of_image = |key: &str, value: &str| said.iter().any(|(k, v)| k == key && v == value);
    match ours.iter().find(|(key, value)| of_image(key, value)) {
        Some((key, value)) => Err(Refusal::FromImage { what, key: key.clone(), value: value.clone() }),
        None => Ok(()),
    }
}

/// Refuses what may not come from an image, where that cannot be told.
fn refuse_doubtful(ours: &Annotations, policy: &Policy, unknown: Unknown) -> Result<(), Refusal> {
    let (grant, reason) = match unknown {
        Unknown::Missing(reason) => (annotation::grant(policy), reason),
        Unknown::Damaged(reason) => {
            let widens = [annotation::ALLOW, annotation::PROFILES]
                .into_iter()
                .find_map(|key| ours.get(key).map(|value| format!("{key}={value}")));
            (annotation::grant(policy).or(widens), reason)
        }
    };
    match grant {
        Some(grant) => Err(Refusal::ImageUnknown { grant, reason }),
        None => Ok(()),
    }
}
