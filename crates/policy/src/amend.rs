//! `amend`: the pure edit of an OCI `config.json` that every adapter applies (design §2). Unknown fields survive; applying it twice changes nothing.

pub mod hooks;
mod provide;
mod restricted;
mod seccomp;
mod sockets;

use crate::capabilities;
use crate::policy::Policy;
use seccomp::Filter;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

pub use provide::{provide, provide_process};

/// Marks an amended configuration for people, `1` or `restricted`; [`is_amended`] looks at the filter itself.
/// Not under `terok.`, where an unknown key is an error.
pub const MARK: &str = "io.terok.amended";
const RESTRICTED: &str = "restricted";
/// Names the capabilities that [`without_raw_sockets`] took away, for people and for further processes.
pub const DROPPED: &str = "io.terok.dropped";
const RAW: &str = "CAP_NET_RAW";

/// Annotations by which crun is told to go around what it is configured to do. Podman 4.3 takes an image's annotations
/// over, so that its author can give such orders too.
const ORDERS: [(&str, &str); 5] = [
    ("run.oci.seccomp_bpf_data", "it replaces the seccomp filter that terok relies on; remove it"),
    ("run.oci.seccomp.", "it hands system calls to another program; remove it"),
    (
        "run.oci.handler",
        "it runs the container by other means than the runtime's, where terok's filter is not; remove it",
    ),
    (
        "module.wasm.",
        "it runs the container by other means than the runtime's, where terok's filter is not; remove it",
    ),
    ("run.oci.hooks.", "it writes what hooks say to a file of the host; remove it"),
];

/// Why a configuration cannot be amended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("config.json {place}: {reason}")]
pub struct AmendError {
    /// JSON pointer.
    pub place: String,
    /// What is wrong.
    pub reason: String,
}

/// Adds what every protected container gets: the seccomp rules of L9, and with `terok.restricted` no-new-privileges, no capabilities, a stricter filter,
/// hidden files of the kernel and a limit of processes.
pub fn amend(config: Value, policy: &Policy) -> Result<Value, AmendError> {
    let mut config = config;
    refuse_orders(&config)?;
    if policy.restricted {
        restricted::refuse_privileged(&config)?;
        restricted::process(object(&mut config, &["process"])?);
        restricted::surroundings(&mut config)?;
    }
    let raw_sockets = grants_raw_sockets(&config);
    let linux = object(&mut config, &["linux"])?;
    let mut filter = match linux.get("seccomp") {
        Some(seccomp) if !seccomp.is_null() => Filter::read(seccomp)?,
        _ => Filter::allowing(),
    };
    if policy.restricted {
        restricted::limit(&mut filter);
    }
    sockets::limit(&mut filter, raw_sockets);
    linux.insert("seccomp".to_owned(), filter.into_value());
    let mark = if policy.restricted { RESTRICTED } else { "1" };
    object(&mut config, &["annotations"])?.insert(MARK.to_owned(), mark.into());
    Ok(config)
}

/// Takes CAP_NET_RAW from a container that has it because its engine gives it to every one: over a card it could be used to send
/// what the table does not see, and to look like who may.
pub fn without_raw_sockets(config: Value) -> Result<Value, AmendError> {
    let mut config = config;
    if drop_raw(object(&mut config, &["process"])?) {
        object(&mut config, &["annotations"])?.insert(DROPPED.to_owned(), RAW.into());
    }
    Ok(config)
}

/// Whether [`without_raw_sockets`] took something from the container of `config`.
pub fn is_without_raw_sockets(config: &Value) -> bool {
    config.get("annotations").and_then(|annotations| annotations.get(DROPPED)).is_some()
}

/// As [`without_raw_sockets`], for a further process: the engine gives it the same capabilities.
pub fn process_without_raw_sockets(process: Value) -> Result<Value, AmendError> {
    let mut process = process;
    drop_raw(object(&mut process, &[])?);
    Ok(process)
}

fn drop_raw(process: &mut Map<String, Value>) -> bool {
    let sets = process.get_mut("capabilities").and_then(Value::as_object_mut);
    let mut dropped = false;
    for set in sets.into_iter().flat_map(|sets| sets.values_mut()).filter_map(Value::as_array_mut) {
        let before = set.len();
        set.retain(|capability| !capability.as_str().is_some_and(|name| capabilities::same(name, RAW)));
        dropped |= set.len() < before;
    }
    dropped
}

/// Adds `annotations`: what an engine keeps elsewhere is in the configuration for whoever looks at it later.
pub fn annotate(config: Value, annotations: &BTreeMap<String, String>) -> Result<Value, AmendError> {
    let mut config = config;
    let all = object(&mut config, &["annotations"])?;
    all.extend(annotations.iter().map(|(key, value)| (key.clone(), value.as_str().into())));
    Ok(config)
}

/// Whether [`amend`] made `config` that of a restricted container.
pub fn is_restricted(config: &Value) -> bool {
    config
        .get("annotations")
        .and_then(|annotations| annotations.get(MARK))
        .is_some_and(|mark| mark == RESTRICTED)
}

/// Takes the privileges from a further process of a restricted container: `process` is what the engine hands to the runtime's
/// `exec`. The container's filter holds for it without this.
pub fn restrict_process(process: Value) -> Result<Value, AmendError> {
    let mut process = process;
    restricted::process(object(&mut process, &[])?);
    Ok(process)
}

/// Checks that `config` carries the L9 rules (create refuses a container that lacks them).
pub fn is_amended(config: &Value) -> Result<(), AmendError> {
    refuse_orders(config)?;
    let lacks = |reason: String| AmendError { place: "/linux/seccomp".into(), reason };
    let filter = match config.pointer("/linux/seccomp") {
        Some(seccomp) if !seccomp.is_null() => Filter::read(seccomp)?,
        _ => return Err(lacks("no seccomp filter: the precreate hook did not run".into())),
    };
    match sockets::open_door(&filter, grants_raw_sockets(config)) {
        None => Ok(()),
        Some(door) => Err(lacks(format!("the filter lets {door} through: the precreate hook did not run"))),
    }
}

/// The sockets that a container with this configuration can make, as numbers of family and type; `None`: of every kind, for it
/// has no filter.
pub fn sockets(config: &Value) -> Result<Option<Vec<(u32, u32)>>, AmendError> {
    match config.pointer("/linux/seccomp") {
        Some(seccomp) if !seccomp.is_null() => Ok(Some(sockets::passing(&Filter::read(seccomp)?))),
        _ => Ok(None),
    }
}

fn refuse_orders(config: &Value) -> Result<(), AmendError> {
    let annotations = config.pointer("/annotations").and_then(Value::as_object);
    for key in annotations.into_iter().flat_map(Map::keys) {
        if let Some((_, reason)) = ORDERS.iter().find(|(order, _)| key.starts_with(order)) {
            return Err(AmendError { place: format!("/annotations/{key}"), reason: (*reason).to_owned() });
        }
    }
    Ok(())
}

/// Whether CAP_NET_RAW was granted on purpose: engines' defaults have it only where the engine's author chose so.
fn grants_raw_sockets(config: &Value) -> bool {
    let bounding = config.pointer("/process/capabilities/bounding").and_then(Value::as_array);
    bounding.is_some_and(|caps| caps.iter().any(|cap| cap == RAW))
}

/// The object at `path`, made where it is missing.
fn object<'a>(config: &'a mut Value, path: &[&str]) -> Result<&'a mut Map<String, Value>, AmendError> {
    let mut place = String::new();
    let mut here = config;
    for key in path {
        let Value::Object(map) = here else {
            return Err(AmendError { place, reason: "is not an object".into() });
        };
        place = format!("{place}/{key}");
        here = map.entry(*key).or_insert_with(|| Value::Object(Map::new()));
        if here.is_null() {
            *here = Value::Object(Map::new());
        }
    }
    match here {
        Value::Object(map) => Ok(map),
        _ => Err(AmendError { place, reason: "is not an object".into() }),
    }
}

/// The list at `key`, made where it is missing.
fn list<'a>(
    object: &'a mut Map<String, Value>,
    key: &str,
    place: &str,
) -> Result<&'a mut Vec<Value>, AmendError> {
    let value = object.entry(key).or_insert_with(|| Value::Array(Vec::new()));
    if value.is_null() {
        *value = Value::Array(Vec::new());
    }
    value.as_array_mut().ok_or_else(|| AmendError { place: place.to_owned(), reason: "is not a list".into() })
}
