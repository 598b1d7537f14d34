//! `amend`: the pure edit of an OCI `config.json` that every adapter applies (design §2). Unknown fields survive; applying it twice changes nothing.

mod restricted;
mod seccomp;
mod sockets;

use crate::policy::Policy;
use seccomp::Filter;
use serde_json::{Map, Value};

/// Marks an amended configuration for people; [`is_amended`] looks at the filter itself.
/// Not under `terok.`, where an unknown key is an error.
pub const MARK: &str = "io.terok.amended";

/// crun loads this annotation's bytes instead of the configured filter.
const RAW_FILTER: &str = "run.oci.seccomp_bpf_data";

/// Why a configuration cannot be amended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("config.json {place}: {reason}")]
pub struct AmendError {
    /// JSON pointer.
    pub place: String,
    /// What is wrong.
    pub reason: String,
}

/// Adds what every protected container gets: the seccomp rules of L9, and with `terok.restricted` no-new-privileges, no capabilities, a stricter filter.
pub fn amend(config: Value, policy: &Policy) -> Result<Value, AmendError> {
    let mut config = config;
    refuse_raw_filter(&config)?;
    if policy.restricted {
        restricted::process(object(&mut config, &["process"])?);
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
    object(&mut config, &["annotations"])?.insert(MARK.to_owned(), "1".into());
    Ok(config)
}

/// Checks that `config` carries the L9 rules (create refuses a container that lacks them).
pub fn is_amended(config: &Value) -> Result<(), AmendError> {
    refuse_raw_filter(config)?;
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

fn refuse_raw_filter(config: &Value) -> Result<(), AmendError> {
    match config.pointer("/annotations").and_then(|annotations| annotations.get(RAW_FILTER)) {
        None => Ok(()),
        Some(_) => Err(AmendError {
            place: format!("/annotations/{RAW_FILTER}"),
            reason: "it replaces the seccomp filter that terok relies on; remove it".into(),
        }),
    }
}

/// Whether CAP_NET_RAW was granted on purpose: engines' defaults have it only where the engine's author chose so.
fn grants_raw_sockets(config: &Value) -> bool {
    let bounding = config.pointer("/process/capabilities/bounding").and_then(Value::as_array);
    bounding.is_some_and(|caps| caps.iter().any(|cap| cap == "CAP_NET_RAW"))
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
