//! The files for Kubernetes are such as its API server takes, to the letter: every field is one of its types (k8s-openapi), none that
//! must be there is missing, and the rules of its validation that no type knows are kept (k8s.io/apimachinery/pkg/util/validation,
//! k8s.io/kubernetes/pkg/apis/core/validation). No server is asked.

use k8s_openapi::Resource;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container, Namespace, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::api::node::v1::RuntimeClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const CLASS: &str = include_str!("../kubernetes/runtimeclass.yaml");
const INSTALL: &str = include_str!("../kubernetes/install.yaml");
const UNINSTALL: &str = include_str!("../kubernetes/uninstall.yaml");
const POD: &str = include_str!("../kubernetes/pod.yaml");

#[test]
fn the_api_server_has_nothing_to_say_of_them() {
    for (yaml, kinds) in [
        (CLASS, &["RuntimeClass"][..]),
        (INSTALL, &["Namespace", "DaemonSet"]),
        // It comes to where the other one was.
        (&format!("{}---\n{UNINSTALL}", INSTALL.split("---").next().unwrap()), &["Namespace", "DaemonSet"]),
        (POD, &["Pod"]),
    ] {
        assert_eq!(faults(yaml), [""; 0]);
        let found: Vec<_> =
            documents(yaml).unwrap().iter().map(|document| document["kind"].clone()).collect();
        assert_eq!(found, kinds);
    }
}

#[test]
fn what_the_api_server_would_refuse_is_found() {
    for (yaml, from, to, said) in [
        (INSTALL, "tolerations:", "toleration:", "spec.template.spec.toleration: not a field"),
        (
            INSTALL,
            "            privileged: true",
            "            priviledged: true",
            "priviledged: not a field",
        ),
        (INSTALL, "  selector:\n    matchLabels: *labels\n", "", "spec.selector: missing"),
        (
            INSTALL,
            "        - name: setup\n          image:",
            "        - image:",
            "initContainers.0.name: missing",
        ),
        (
            INSTALL,
            "hostPath:\n            path: /\n            type",
            "hostPath:\n            type",
            "hostPath.path: missing",
        ),
        (INSTALL, "apps/v1", "extensions/v1beta1", "extensions/v1beta1"),
        (INSTALL, "kind: DaemonSet", "kind: DeamonSet", "DeamonSet"),
        (INSTALL, "privileged: true", "privileged: \"yes\"", "invalid type"),
        (INSTALL, "privileged: true", "privileged: true\n            privileged: true", "duplicate"),
        (INSTALL, "name: terok-install\n  n", "name: terok_install\n  n", "\"terok_install\": not a name"),
        (INSTALL, "- name: done", "- name: Done", "\"Done\": not a name"),
        (INSTALL, "- name: done", "- name: setup", "\"setup\": named twice"),
        (INSTALL, "matchLabels: *labels", "matchLabels: {app: other}", "selects other pods"),
        (INSTALL, "matchLabels: *labels", "matchLabels: {}", "selects every pod"),
        (INSTALL, "terok/runtime: \"true\"", "terok//runtime: \"true\"", "\"terok//runtime\": not a key"),
        (INSTALL, "terok/runtime: \"true\"", "terok/runtime: \"tr ue\"", "\"tr ue\": not a value"),
        (INSTALL, "terok/runtime: \"true\"", "terok/runtime: true", "invalid type"),
        (INSTALL, "            - name: host\n", "            - name: node\n", "no volume \"node\""),
        (INSTALL, "mountPath: /host", "mountPath: host", "\"host\": not an absolute path"),
        (INSTALL, "type: Directory", "type: Folder", "\"Folder\": not one of"),
        (INSTALL, "type: RollingUpdate", "type: Rolling", "\"Rolling\": not one of"),
        (INSTALL, "maxUnavailable: 1", "maxUnavailable: 0", "nothing may be replaced"),
        (INSTALL, "operator: Exists", "operator: Any", "\"Any\": not one of Exists, Equal"),
        (INSTALL, "{memory: 128Mi}", "{memory: 128MiB}", "\"128MiB\": not a quantity"),
        (INSTALL, "{memory: 128Mi}", "{memory: 8Mi}", "memory: asks for more than its limit"),
        (INSTALL, "pause:3.10", "pause", "\"registry.k8s.io/pause\": not pinned"),
        (INSTALL, "pause:3.10", "pause:latest", "not pinned"),
        (INSTALL, "runAsUser: 65534", "runAsUser: 0", "root, and not"),
        (INSTALL, "type: RuntimeDefault", "type: Default", "\"Default\": not one of"),
        (
            INSTALL,
            "privileged: true\n",
            "privileged: true\n            allowPrivilegeEscalation: false\n",
            "privileged, and not",
        ),
        (INSTALL, "enforce: privileged", "enforce: baseline", "privileged in a namespace"),
        (INSTALL, "namespace: terok", "namespace: terok-system", "no namespace \"terok-system\""),
        (CLASS, "handler: terok", "handler: terok.shim", "\"terok.shim\": not a handler"),
        (CLASS, "handler: terok\n", "", "handler: missing"),
        (CLASS, "podFixed", "podfixed", "overhead.podfixed: not a field"),
        (POD, "runtimeClassName: terok", "runtimeClassName: Terok", "\"Terok\": not a name"),
        (POD, "terok.vault: anthropic", "terok..vault:: anthropic", "\"terok..vault:\": not a key"),
        (POD, "agent:1", "agent", "not pinned"),
        (
            POD,
            "  containers:\n    - name: agent\n      image: registry.example.com/agent:1\n",
            "",
            "spec.containers: missing",
        ),
    ] {
        let changed = yaml.replacen(from, to, 1);
        assert_ne!(changed, yaml, "{from}");
        let found = faults(&changed);
        assert!(found.iter().any(|fault| fault.contains(said)), "{to}: {found:?}");
    }
}

/// What the API server would say of a file.
fn faults(yaml: &str) -> Vec<String> {
    let documents = match documents(yaml) {
        Ok(documents) => documents,
        Err(error) => return vec![error],
    };
    let is_namespace = |document: &&Value| document["kind"] == Namespace::KIND;
    let mut faults = Faults::default();
    faults.namespaces.extend(documents.iter().find(is_namespace).cloned());
    for document in &documents {
        faults.document(document);
    }
    faults.found
}

fn documents(yaml: &str) -> Result<Vec<Value>, String> {
    let document = |text: serde_norway::Deserializer<'_>| {
        let value = serde_norway::Value::deserialize(text).map_err(|error| error.to_string())?;
        serde_json::to_value(value).map_err(|error| error.to_string())
    };
    serde_norway::Deserializer::from_str(yaml).map(document).collect()
}

#[derive(Debug, Default)]
struct Faults {
    found: Vec<String>,
    /// Which there are.
    namespaces: Vec<Value>,
}

impl Faults {
    fn unless(&mut self, holds: bool, fault: impl FnOnce() -> String) {
        if !holds {
            self.found.push(fault());
        }
    }

    fn document(&mut self, document: &Value) {
        match document["kind"].as_str() {
            Some(Namespace::KIND) => {
                self.typed::<Namespace>(document);
                self.name(document["metadata"]["name"].as_str(), is_label);
            }
            Some(RuntimeClass::KIND) => {
                let Some(class) = self.typed::<RuntimeClass>(document) else { return };
                self.name(class.metadata.name.as_deref(), is_subdomain);
                self.unless(is_label(&class.handler), || format!("{:?}: not a handler", class.handler));
                let selector = class.scheduling.and_then(|scheduling| scheduling.node_selector);
                self.labels(selector.as_ref());
                self.quantities(class.overhead.and_then(|overhead| overhead.pod_fixed).as_ref());
            }
            Some(DaemonSet::KIND) => {
                let Some(set) = self.typed::<DaemonSet>(document) else { return };
                self.daemon_set(&set);
            }
            Some(Pod::KIND) => {
                let Some(pod) = self.typed::<Pod>(document) else { return };
                self.name(pod.metadata.name.as_deref(), is_subdomain);
                for key in pod.metadata.annotations.iter().flatten().map(|(key, _)| key) {
                    self.unless(is_key(key), || format!("{key:?}: not a key"));
                }
                self.pod(&pod.spec.unwrap_or_default());
            }
            other => self.found.push(format!("{other:?}: not a kind that is known here")),
        }
    }

    /// Reads a document as its type and writes it again: what is lost is no field, what comes in addition must be said.
    fn typed<T: Resource + DeserializeOwned + serde::Serialize>(&mut self, document: &Value) -> Option<T> {
        let version = &document["apiVersion"];
        self.unless(version == T::API_VERSION, || format!("{version}: not the version of {}", T::KIND));
        let read = serde_json::from_value(document.clone());
        match read.and_then(|typed: T| Ok((serde_json::to_value(&typed)?, typed))) {
            Ok((again, typed)) => {
                self.compare(T::KIND, document, &again);
                Some(typed)
            }
            Err(error) => {
                self.found.push(error.to_string());
                None
            }
        }
    }

    fn compare(&mut self, path: &str, said: &Value, known: &Value) {
        match (said, known) {
            (Value::Object(said), Value::Object(known)) => {
                for key in said.keys().chain(known.keys()).collect::<BTreeSet<_>>() {
                    let path = format!("{path}.{key}");
                    match (said.get(key), known.get(key)) {
                        (Some(said), Some(known)) => self.compare(&path, said, known),
                        (Some(_), None) => self.found.push(format!("{path}: not a field")),
                        (None, _) => self.found.push(format!("{path}: missing")),
                    }
                }
            }
            (Value::Array(said), Value::Array(known)) if said.len() == known.len() => {
                for (at, (said, known)) in said.iter().zip(known).enumerate() {
                    self.compare(&format!("{path}.{at}"), said, known);
                }
            }
            _ => self.unless(said == known, || format!("{path}: {said} is read as {known}")),
        }
    }

    fn daemon_set(&mut self, set: &DaemonSet) {
        self.name(set.metadata.name.as_deref(), is_subdomain);
        self.labels(set.metadata.labels.as_ref());
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        let made = self.namespaces.iter().find(|made| made["metadata"]["name"] == namespace);
        let enforced =
            made.map(|made| made["metadata"]["labels"]["pod-security.kubernetes.io/enforce"].clone());
        self.unless(enforced.is_some(), || format!("no namespace {namespace:?}"));
        let Some(spec) = &set.spec else { return };
        let labels = spec.template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
        self.labels(Some(&labels));
        let selected = spec.selector.match_labels.clone().unwrap_or_default();
        self.unless(!selected.is_empty(), || "it selects every pod".to_owned());
        self.unless(selected.iter().all(|(key, value)| labels.get(key) == Some(value)), || {
            "it selects other pods than it makes".to_owned()
        });
        if let Some(strategy) = &spec.update_strategy {
            self.one_of(strategy.type_.as_deref(), &["RollingUpdate", "OnDelete"]);
            let rolling = strategy.rolling_update.clone().unwrap_or_default();
            let none = |count: Option<IntOrString>| matches!(count, None | Some(IntOrString::Int(0)));
            self.unless(
                rolling.max_unavailable.is_none()
                    || !none(rolling.max_unavailable)
                    || !none(rolling.max_surge),
                || "nothing may be replaced".to_owned(),
            );
        }
        if let Some(pod) = &spec.template.spec {
            self.one_of(pod.restart_policy.as_deref(), &["Always"]);
            self.unless(!is_privileged(pod) || enforced.is_none_or(|level| level == "privileged"), || {
                format!("privileged in a namespace that admits no such pod, {namespace:?}")
            });
            self.pod(pod);
        }
    }

    fn pod(&mut self, pod: &PodSpec) {
        self.labels(pod.node_selector.as_ref());
        if pod.runtime_class_name.is_some() {
            self.name(pod.runtime_class_name.as_deref(), is_subdomain);
        }
        for toleration in pod.tolerations.iter().flatten() {
            self.one_of(toleration.operator.as_deref(), &["Exists", "Equal"]);
            self.unless(toleration.key.is_some() || toleration.operator.as_deref() == Some("Exists"), || {
                "a toleration of everything says Exists".to_owned()
            });
        }
        let mut volumes = BTreeSet::new();
        for volume in pod.volumes.iter().flatten() {
            self.name(Some(&volume.name), is_label);
            self.unless(volumes.insert(volume.name.as_str()), || format!("{:?}: named twice", volume.name));
            if let Some(path) = &volume.host_path {
                let types = [
                    "DirectoryOrCreate",
                    "Directory",
                    "FileOrCreate",
                    "File",
                    "Socket",
                    "CharDevice",
                    "BlockDevice",
                ];
                self.one_of(path.type_.as_deref(), &types);
                self.unless(is_absolute(&path.path), || format!("{:?}: not an absolute path", path.path));
            }
        }
        let mut names = BTreeSet::new();
        self.unless(!pod.containers.is_empty(), || "no container".to_owned());
        for container in pod.init_containers.iter().flatten().chain(&pod.containers) {
            self.name(Some(&container.name), is_label);
            self.unless(names.insert(&container.name), || format!("{:?}: named twice", container.name));
            self.container(container, &volumes);
        }
    }

    fn container(&mut self, container: &Container, volumes: &BTreeSet<&str>) {
        let image = container.image.as_deref().unwrap_or_default();
        let last = image.rsplit('/').next().unwrap_or_default();
        let pinned =
            last.contains('@') || last.split_once(':').is_some_and(|(_, tag)| !["", "latest"].contains(&tag));
        self.unless(pinned, || format!("{image:?}: not pinned"));
        let mut places = BTreeSet::new();
        for mount in container.volume_mounts.iter().flatten() {
            self.unless(volumes.contains(mount.name.as_str()), || format!("no volume {:?}", mount.name));
            self.unless(is_absolute(&mount.mount_path), || {
                format!("{:?}: not an absolute path", mount.mount_path)
            });
            self.unless(places.insert(&mount.mount_path), || {
                format!("{:?}: mounted twice", mount.mount_path)
            });
        }
        self.resources(container.resources.as_ref());
        let Some(security) = &container.security_context else { return };
        self.unless(security.run_as_non_root != Some(true) || security.run_as_user != Some(0), || {
            "to run as root, and not as root".to_owned()
        });
        self.unless(
            security.privileged != Some(true) || security.allow_privilege_escalation != Some(false),
            || "privileged, and not to get privileges".to_owned(),
        );
        if let Some(profile) = &security.seccomp_profile {
            self.one_of(Some(&profile.type_), &["RuntimeDefault", "Localhost", "Unconfined"]);
        }
    }

    fn resources(&mut self, resources: Option<&ResourceRequirements>) {
        let Some(resources) = resources else { return };
        self.quantities(resources.requests.as_ref());
        self.quantities(resources.limits.as_ref());
        for (name, asked) in resources.requests.iter().flatten() {
            let limit = resources.limits.as_ref().and_then(|limits| limits.get(name));
            let fits = limit.is_none_or(|limit| thousandths(asked) <= thousandths(limit));
            self.unless(fits, || format!("{name}: asks for more than its limit"));
        }
    }

    fn quantities(&mut self, quantities: Option<&BTreeMap<String, Quantity>>) {
        for quantity in quantities.into_iter().flat_map(BTreeMap::values) {
            self.unless(thousandths(quantity).is_some(), || format!("{:?}: not a quantity", quantity.0));
        }
    }

    fn labels(&mut self, labels: Option<&BTreeMap<String, String>>) {
        for (key, value) in labels.into_iter().flatten() {
            self.unless(is_key(key), || format!("{key:?}: not a key"));
            self.unless(value.is_empty() || is_word(value), || format!("{value:?}: not a value"));
        }
    }

    fn name(&mut self, name: Option<&str>, is_one: fn(&str) -> bool) {
        self.unless(name.is_some_and(is_one), || format!("{:?}: not a name", name.unwrap_or_default()));
    }

    fn one_of(&mut self, value: Option<&str>, known: &[&str]) {
        if let Some(value) = value {
            self.unless(known.contains(&value), || format!("{value:?}: not one of {}", known.join(", ")));
        }
    }
}

/// Whether the namespace must admit privileged pods for it (Pod Security Standards).
fn is_privileged(pod: &PodSpec) -> bool {
    let mut containers = pod.init_containers.iter().flatten().chain(&pod.containers);
    let privileged = |container: &Container| {
        container.security_context.as_ref().is_some_and(|security| security.privileged == Some(true))
    };
    containers.any(privileged) || pod.volumes.iter().flatten().any(|volume| volume.host_path.is_some())
}

/// RFC 1123's label.
fn is_label(name: &str) -> bool {
    name.len() <= 63 && is_subdomain(name) && !name.contains('.')
}

/// RFC 1123's labels with dots between.
fn is_subdomain(name: &str) -> bool {
    let inner = |octet: u8| octet.is_ascii_lowercase() || octet.is_ascii_digit() || octet == b'-';
    name.len() <= 253
        && name.split('.').all(|label| {
            !label.is_empty() && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
        })
}

/// A key of labels or annotations: `[PREFIX/]NAME`.
fn is_key(key: &str) -> bool {
    key.split_once('/').map_or_else(|| is_word(key), |(prefix, name)| is_subdomain(prefix) && is_word(name))
}

fn is_word(word: &str) -> bool {
    let ends = |octet: Option<u8>| octet.is_some_and(|octet| octet.is_ascii_alphanumeric());
    word.len() <= 63
        && word.bytes().all(|octet| octet.is_ascii_alphanumeric() || b"-_.".contains(&octet))
        && ends(word.bytes().next())
        && ends(word.bytes().last())
}

fn is_absolute(path: &str) -> bool {
    path.starts_with('/') && !path.split('/').any(|part| part == "..") && !path.contains(':')
}

fn thousandths(quantity: &Quantity) -> Option<u64> {
    let digits = quantity.0.trim_end_matches(char::is_alphabetic);
    let unit = match &quantity.0[digits.len()..] {
        "m" => 1,
        "" => 1000,
        "Ki" => 1000 << 10,
        "Mi" => 1000 << 20,
        "Gi" => 1000 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}
