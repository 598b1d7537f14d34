//! What no protection can be built on (L8), read from the configuration: namespaces that are not the container's own,
//! capabilities over a network that has a card, doors out of it.

use crate::doors::{self, Keep};
use crate::refusal::Refusal;
use serde_json::Value;
use std::os::unix::fs::MetadataExt;
use terok_policy::capabilities;

const HOST: &str = "the container is in the host's network namespace, where nothing can be kept from it; ";
const HOST_PIDS: &str =
    "the container is in the host's pid namespace, where it reaches processes outside of every protection; ";
/// By what CRI's engines say of a container of Kubernetes, where nobody writes options.
const KUBERNETES: &str = "/annotations/io.kubernetes.cri.container-type";
/// Over its own network a container that has one of these can undo what the table says, or see and send what passes it by.
const CAPABILITIES: [&str; 4] = ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE"];

/// The container's network namespace, as the configuration wants it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// Made by the runtime, for this container alone: there will be no card in it.
    Own,
    /// Prepared by the engine (with a card in it) or by somebody else.
    Prepared,
    /// That of another process: `--network container:X`, or the infra container of a pod.
    Joined {
        /// Its number, as this pid namespace counts.
        holder: i32,
    },
    /// None: the host's.
    Host,
}

/// What the configuration says of the network.
pub(crate) fn wanted(config: &Value) -> Wanted {
    let path = match namespace(config, "network") {
        None => return Wanted::Host,
        Some("") => return Wanted::Own,
        Some(path) => path,
    };
    // Podman writes /proc/PID/ns/net for `--network container:X` and pods.
    let holder = path.strip_prefix("/proc/").and_then(|rest| rest.strip_suffix("/ns/net"));
    match holder.and_then(|pid| pid.parse().ok()) {
        Some(holder) => Wanted::Joined { holder },
        None => Wanted::Prepared,
    }
}

/// The path of a namespace in the configuration, empty where the runtime makes a new one; `None` where the container has
/// the host's.
fn namespace<'a>(config: &'a Value, kind: &str) -> Option<&'a str> {
    let namespaces = config.pointer("/linux/namespaces").and_then(Value::as_array);
    let namespace = namespaces
        .into_iter()
        .flatten()
        .find(|namespace| namespace.get("type").and_then(Value::as_str) == Some(kind))?;
    Some(namespace.get("path").and_then(Value::as_str).unwrap_or_default())
}

/// Whether the container has other users than its engine.
pub(crate) fn has_user_namespace(config: &Value) -> bool {
    namespace(config, "user").is_some()
}

/// Whether the container shares the processes of another one.
pub(crate) fn joins_pids(config: &Value) -> bool {
    namespace(config, "pid").is_some_and(|path| !path.is_empty())
}

/// Refuses what cannot be protected; the host's sockets that are mounted, for the audit log. `keep` is what of the owner's nobody
/// may mount, `carded` whether there is a network card or will be.
pub(crate) fn check(config: &Value, keep: &Keep<'_>, carded: bool) -> Result<Vec<String>, Refusal> {
    if wanted(config) == Wanted::Host || is_hosts(namespace(config, "network")) {
        return Err(host(config));
    }
    if namespace(config, "pid").is_none() {
        let remedy = remedy(config, "start it without --pid=host", "start the pod without hostPID");
        return Err(Refusal::Guard(format!("{HOST_PIDS}{remedy}")));
    }
    if carded {
        over_a_card(config)?;
    }
    doors::check(config, keep)
}

/// Refuses capabilities that undo the protection of a container with a card.
pub(crate) fn over_a_card(config: &Value) -> Result<(), Refusal> {
    let Some(process) = config.get("process") else { return Ok(()) };
    let found = CAPABILITIES.into_iter().find(|capability| capabilities::has(process, capability));
    let Some(found) = found else { return Ok(()) };
    let short = capabilities::short(found);
    let (option, field) = match capabilities::has_all(process) {
        true => (
            "start it without --privileged, or with --network none".to_owned(),
            "start it without securityContext.privileged".to_owned(),
        ),
        false => (
            format!("start it with --cap-drop={short}, or with --network none"),
            format!("list {short} in securityContext.capabilities.drop, and not in add"),
        ),
    };
    Err(Refusal::Guard(format!(
        "the container has {found}, with which it could undo the protection of its network card; {}",
        remedy(config, &option, &field)
    )))
}

/// Refuses a further process of a container with a card that has more rights than the container may have.
pub(crate) fn further(process: &Value) -> Result<(), Refusal> {
    capabilities::listed(process).try_for_each(|name| undoes(name, "without --privileged and --cap-add"))
}

/// Refuses a process that is given this capability beside a card.
pub(crate) fn undoes(capability: &str, instead: &str) -> Result<(), Refusal> {
    match CAPABILITIES.into_iter().find(|guarded| capabilities::same(guarded, capability)) {
        None => Ok(()),
        Some(guarded) => Err(Refusal::Guard(format!(
            "the process has {guarded}, with which it could undo the protection of the container's network card; start it {instead}"
        ))),
    }
}

/// The refusal of a process that is in the host's namespace, be it in spite of its configuration.
pub(crate) fn host(config: &Value) -> Refusal {
    let remedy = remedy(config, "start it with another --network", "start the pod without hostNetwork");
    Refusal::Guard(format!("{HOST}{remedy}"))
}

/// What to do, in the words of the engine: an option of its command line, or a field of a manifest.
fn remedy<'a>(config: &Value, option: &'a str, field: &'a str) -> &'a str {
    if config.pointer(KUBERNETES).is_some() { field } else { option }
}

/// Whether the namespace at this path is ours, and so the host's: Docker 20.10 names one where others name none.
fn is_hosts(path: Option<&str>) -> bool {
    let id = |path: &str| std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    path.filter(|path| !path.is_empty())
        .and_then(id)
        .is_some_and(|there| id("/proc/self/ns/net") == Some(there))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn fixture(name: &str) -> Value {
        let path = format!("{}/tests/fixtures/{name}.config.json", env!("CARGO_MANIFEST_DIR"));
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    fn keep() -> Keep<'static> {
        Keep { uid: 1001, vault: "/nowhere".into(), given: None }
    }

    fn refused(config: &Value) -> String {
        check(config, &keep(), wanted(config) != Wanted::Own).unwrap_err().to_string()
    }

    #[test]
    fn the_wanted_network_is_told_from_what_podman_writes() {
        for (name, wanting) in [
            ("podman-4.3.1-rootless", Wanted::Own),
            ("podman-4.3.1-rootless-slirp4netns", Wanted::Prepared),
            ("podman-4.3.1-rootless-bridge", Wanted::Prepared),
            ("podman-4.3.1-rootless-pod-member", Wanted::Joined { holder: 2262 }),
            ("podman-4.3.1-rootful-container", Wanted::Joined { holder: 1502 }),
            ("podman-4.3.1-rootful-host", Wanted::Host),
            ("podman-4.3.1-rootful-ns-path", Wanted::Prepared),
        ] {
            assert_eq!(wanted(&fixture(name)), wanting, "{name}");
        }
        assert_eq!(wanted(&json!({})), Wanted::Host);
    }

    #[test]
    fn what_podman_starts_by_default_passes_on_every_network() {
        for name in ["", "-slirp4netns", "-bridge", "-pod-member"] {
            assert_eq!(
                check(&fixture(&format!("podman-4.3.1-rootless{name}")), &keep(), true).unwrap(),
                [""; 0]
            );
        }
    }

    #[test]
    fn the_hosts_namespaces_are_refused() {
        assert!(refused(&fixture("podman-4.3.1-rootful-host")).contains("host's network namespace"));
        let mut config = fixture("podman-4.3.1-rootless");
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "pid");
        assert!(refused(&config).contains("--pid=host"));
    }

    #[test]
    fn a_privileged_container_with_a_card_is_refused_and_one_without_is_not() {
        let mut config = fixture("podman-4.3.1-rootless-privileged");
        assert!(refused(&config).contains("without --privileged"));
        for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
            namespace.as_object_mut().unwrap().remove("path");
        }
        check(&config, &keep(), false).unwrap();
    }

    #[test]
    fn each_capability_over_a_card_is_refused_by_its_name_in_whichever_set_it_is() {
        for capability in CAPABILITIES {
            for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
                let mut config = fixture("podman-4.3.1-rootless-bridge");
                config["process"]["capabilities"][set] = json!([capability]);
                let reason = refused(&config);
                let short = capability.trim_start_matches("CAP_");
                assert!(
                    reason.contains(capability) && reason.contains(&format!("--cap-drop={short}")),
                    "{reason}"
                );
            }
        }
    }

    #[test]
    fn of_dockers_networks_the_hosts_is_refused_and_the_rest_told_by_its_namespace() {
        for (name, wanting) in [
            ("26.1.5-bridge", Wanted::Own),
            ("26.1.5-none", Wanted::Own),
            ("20.10.24-network", Wanted::Own),
            ("20.10.24-joined", Wanted::Joined { holder: 1634 }),
            // By its path, which leads to our own namespace where that is the host's.
            ("20.10.24-host", Wanted::Prepared),
        ] {
            assert_eq!(wanted(&fixture(&format!("docker-{name}"))), wanting, "{name}");
        }
        let mut config = fixture("docker-20.10.24-host");
        for namespace in config["linux"]["namespaces"].as_array_mut().unwrap() {
            if namespace["type"] == "network" {
                namespace["path"] = json!("/proc/self/ns/net");
            }
        }
        assert!(refused(&config).contains("host's network namespace"));
    }

    #[test]
    fn in_kubernetes_a_refusal_names_fields_of_the_manifest() {
        let pause = fixture("containerd-1.7.24-cri-pause");
        assert!(refused(&pause).contains("securityContext.capabilities.drop"), "{}", refused(&pause));
        let mut config = pause.clone();
        config["linux"]["namespaces"] = json!([{ "type": "network" }]);
        assert!(refused(&config).contains("hostPID"));
        config["linux"]["namespaces"] = json!([]);
        assert!(refused(&config).contains("hostNetwork"));
    }

    #[test]
    fn a_further_process_with_rights_over_a_card_is_refused() {
        let process = |capability: &str| json!({ "capabilities": { "bounding": [capability] } });
        further(&process("CAP_CHOWN")).unwrap();
        for capability in CAPABILITIES {
            assert!(further(&process(capability)).unwrap_err().to_string().contains("--privileged"));
        }
    }
}
