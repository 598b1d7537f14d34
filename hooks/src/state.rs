//! What a runtime hands over: the OCI state on stdin and `config.json` in the bundle. Parsed once, refused when doubtful.

use crate::refusal::Refusal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use terok_policy::{annotation, layout};

/// Far above what Podman writes (11 KiB), far below what would hurt.
const STATE_LIMIT: u64 = 1 << 20;
const CONFIG_LIMIT: u64 = 16 << 20;
/// Above what Podman writes.
const ORDINARY: usize = 32 << 10;

/// Annotations, sorted.
pub type Annotations = BTreeMap<String, String>;

/// The OCI state, as far as it is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Container id, fit to be the name of a folder.
    pub id: String,
    /// Init's pid; `None` at poststop.
    pub pid: Option<i32>,
    /// Absolute path of the bundle.
    pub bundle: PathBuf,
    /// All annotations.
    pub annotations: Annotations,
}

/// Why the state or the configuration is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreadable(String);

impl State {
    /// Parses the state. `status` is not read: runtimes differ in it, and the stage comes from the command line.
    pub fn parse(json: &[u8]) -> Result<Self, Unreadable> {
        let state: oci_spec::runtime::State = serde_json::from_slice(json)
            .map_err(|error| Unreadable(format!("is not an OCI state: {error}")))?;
        if !layout::is_container_id(state.id()) {
            return Err(Unreadable(format!("has an id that is none: {:?}", state.id())));
        }
        if !state.bundle().is_absolute() {
            return Err(Unreadable(format!("has no absolute bundle: {:?}", state.bundle())));
        }
        Ok(State {
            id: state.id().clone(),
            // crun writes 0 where there is no process.
            pid: state.pid().filter(|&pid| pid != 0),
            bundle: state.bundle().clone(),
            annotations: state.annotations().clone().unwrap_or_default().into_iter().collect(),
        })
    }

    /// Reads the state from `input`.
    pub fn read(input: impl Read) -> Result<Self, Unreadable> {
        State::parse(&bounded(input, STATE_LIMIT)?)
    }
}

/// The octets of `config.json` from `input`.
pub fn read_config(input: impl Read) -> Result<Vec<u8>, Unreadable> {
    bounded(input, CONFIG_LIMIT)
}

/// The `config.json` of a bundle, with its annotations.
pub(crate) fn of_bundle(bundle: &Path) -> Result<(Value, Annotations), Refusal> {
    let path = bundle.join("config.json");
    let unreadable = |error: &dyn std::fmt::Display| Refusal::input(path.display().to_string(), error);
    let file = std::fs::File::open(&path).map_err(|error| unreadable(&error))?;
    read_config(file).and_then(|json| parse_config(&json)).map_err(|error| unreadable(&error))
}

/// `config.json` as JSON with all its fields, and its annotations.
pub fn parse_config(json: &[u8]) -> Result<(Value, Annotations), Unreadable> {
    let config: Value =
        serde_json::from_slice(json).map_err(|error| Unreadable(format!("is not JSON: {error}")))?;
    let annotations = match config.get("annotations") {
        None | Some(Value::Null) => Annotations::new(),
        Some(Value::Object(annotations)) => annotations
            .iter()
            .map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect::<Option<_>>()
            .ok_or_else(|| Unreadable("has an annotation that is not text".into()))?,
        Some(_) => return Err(Unreadable("has annotations that are no object".into())),
    };
    if !config.is_object() {
        return Err(Unreadable("is not a JSON object".into()));
    }
    Ok((config, annotations))
}

/// The annotations that are terok's.
pub fn ours(annotations: &Annotations) -> Annotations {
    let ours = annotations.iter().filter(|(key, _)| key.starts_with(annotation::PREFIX));
    ours.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Reads the whole file at `path`, at most `limit` octets.
pub(crate) fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, Unreadable> {
    let file = std::fs::File::open(path).map_err(|error| Unreadable(format!("cannot be opened: {error}")))?;
    bounded(file, limit)
}

fn bounded(input: impl Read, limit: u64) -> Result<Vec<u8>, Unreadable> {
    // A configuration fits in; read in pieces that only double, it would take ten.
    let mut read = Vec::with_capacity(ORDINARY);
    input
        .take(limit + 1)
        .read_to_end(&mut read)
        .map_err(|error| Unreadable(format!("cannot be read: {error}")))?;
    if read.len() as u64 > limit {
        return Err(Unreadable(format!("is larger than {limit} octets")));
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(json: &str) -> Result<State, Unreadable> {
        State::parse(json.as_bytes())
    }

    #[test]
    fn a_missing_pid_and_pid_zero_are_no_process() {
        assert_eq!(state(r#"{"id":"a","bundle":"/b"}"#).unwrap().pid, None);
        assert_eq!(state(r#"{"id":"a","bundle":"/b","pid":0}"#).unwrap().pid, None);
        assert_eq!(state(r#"{"id":"a","bundle":"/b","pid":7}"#).unwrap().pid, Some(7));
    }

    #[test]
    fn ids_and_bundles_that_could_lead_elsewhere_are_refused() {
        for wrong in [
            r#"{"id":"../a","bundle":"/b"}"#,
            r#"{"id":"","bundle":"/b"}"#,
            r#"{"bundle":"/b"}"#,
            r#"{"id":"a","bundle":"b"}"#,
            r#"{"id":"a"}"#,
            "",
            "[]",
        ] {
            assert!(state(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn annotations_that_are_not_text_are_refused() {
        assert!(parse_config(br#"{"annotations":{"a":1}}"#).is_err());
        assert!(parse_config(br#"{"annotations":[]}"#).is_err());
        assert!(parse_config(b"[]").is_err());
        assert_eq!(parse_config(br#"{"annotations":null}"#).unwrap().1, Annotations::new());
    }

    #[test]
    fn endless_input_is_refused() {
        assert!(State::read(std::io::repeat(b' ')).is_err());
    }
}
