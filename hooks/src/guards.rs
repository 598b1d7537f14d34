//! What no protection can be built on (L8), read from the configuration: a namespace that is not the container's own.

use crate::refusal::Refusal;
use serde_json::Value;
use terok_policy::plan::PlanError;

const HOST: &str = "the container is in the host's network namespace, where nothing can be kept from it; start it with --network none";
const SHARED: &str = "the container joins another container's network namespace (or a pod's), which this version of terok does not protect; start it with --network none";

/// The container's network namespace, as the configuration wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Made by the runtime, for this container alone.
    Own,
    /// Prepared by the engine (with a card in it) or by somebody else.
    Prepared,
    /// That of another process.
    Joined,
    /// None: the host's.
    Host,
}

/// What the configuration says of the network.
pub(crate) fn wanted(config: &Value) -> Wanted {
    let namespaces = config.pointer("/linux/namespaces").and_then(Value::as_array);
    let network = namespaces
        .into_iter()
        .flatten()
        .find(|namespace| namespace.get("type").and_then(Value::as_str) == Some("network"));
    match network.map(|network| network.get("path").and_then(Value::as_str).unwrap_or_default()) {
        None => Wanted::Host,
        Some("") => Wanted::Own,
        // Podman writes /proc/PID/ns/net for `--network container:X` and pods.
        Some(path) if path.starts_with("/proc/") => Wanted::Joined,
        Some(_) => Wanted::Prepared,
    }
}

/// Refuses every network but one of the container's own.
pub(crate) fn check(config: &Value) -> Result<(), Refusal> {
    match wanted(config) {
        Wanted::Own => Ok(()),
        Wanted::Prepared => Err(PlanError::Filtered.into()),
        Wanted::Joined => Err(Refusal::Guard(SHARED)),
        Wanted::Host => Err(Refusal::Guard(HOST)),
    }
}

/// The refusal of a process that is in the host's namespace in spite of its configuration.
pub(crate) fn host() -> Refusal {
    Refusal::Guard(HOST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_a_namespace_of_the_containers_own_passes() {
        let of = |namespaces: Value| wanted(&json!({"linux": {"namespaces": namespaces}}));
        assert_eq!(of(json!([{"type": "pid"}, {"type": "network"}])), Wanted::Own);
        assert_eq!(of(json!([{"type": "network", "path": "/run/netns/netns-1"}])), Wanted::Prepared);
        assert_eq!(of(json!([{"type": "network", "path": "/proc/398/ns/net"}])), Wanted::Joined);
        assert_eq!(of(json!([{"type": "pid"}])), Wanted::Host);
        assert_eq!(wanted(&json!({})), Wanted::Host);
    }
}
