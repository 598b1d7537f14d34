//! Containers of containerd: `ctr`, its CRI (Kubernetes), nerdctl. Neither `ctr` nor CRI copies an image's labels or annotations
//! into a configuration: labels stay with containerd's container, CRI passes on what the pod has.

use serde_json::Value;
use std::ffi::OsStr;
use std::path::Path;

/// Folders of tasks, as the runtimes of containerd 1 and 2 name them.
const TASKS: [&str; 2] = ["io.containerd.runtime.v2.task", "io.containerd.runtime.v1.linux"];
const NERDCTL: &str = "nerdctl/";

/// What the configuration tells.
#[derive(Debug)]
pub(crate) struct Task {
    pub(super) name: String,
    /// Why an annotation may be the image's word.
    pub(super) doubt: Option<String>,
}

impl Task {
    pub(super) fn new(id: &str, config: &Value) -> Self {
        let annotations = config.get("annotations").and_then(Value::as_object);
        let text = |key: &str| annotations.and_then(|all| all.get(key)).and_then(Value::as_str);
        let name = |what: &str| text(&format!("io.kubernetes.cri.{what}-name"));
        let pod = [text("io.kubernetes.cri.sandbox-namespace"), name("sandbox"), name("container")];
        let name = match pod {
            [Some(_), Some(_), _] => pod.into_iter().flatten().collect::<Vec<_>>().join("/"),
            _ => text("nerdctl/name").unwrap_or(id).to_owned(),
        };
        // nerdctl 1 makes annotations of all labels, the image's among them, and 2 of its own; which it was cannot be seen.
        let nerdctl = annotations.into_iter().flat_map(|all| all.keys()).any(|key| key.contains(NERDCTL));
        let doubt = nerdctl.then(|| "nerdctl may have made annotations of the image's labels".to_owned());
        Task { name, doubt }
    }
}

/// The namespace of containerd in `…/io.containerd.runtime.v2.task/<namespace>/<id>`.
pub(super) fn namespace(bundle: &Path) -> Option<&str> {
    let namespace = bundle.parent()?;
    let tasks = namespace.parent()?.file_name()?;
    TASKS.iter().any(|known| OsStr::new(known) == tasks).then(|| namespace.file_name()?.to_str())?
}

/// Whether a card comes into the namespace that the runtime makes: nerdctl's hook, which runs before ours, says so; `ctr --cni`
/// attaches one behind the runtime's back, and nothing of it is in the configuration. CRI prepares namespaces itself.
pub(super) fn brings_card(config: &Value) -> bool {
    let has = |prefix: &str| {
        let annotations = config.get("annotations").and_then(Value::as_object);
        annotations.into_iter().flat_map(|all| all.keys()).any(|key| key.starts_with(prefix))
    };
    let networks = config.pointer("/annotations/nerdctl~1networks").and_then(Value::as_str);
    match has(NERDCTL) {
        true => networks != Some(r#"["none"]"#),
        false => !has("io.kubernetes.cri."),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Origin;
    use super::*;
    use crate::refusal::Refusal;
    use crate::{guards, state};
    use serde_json::json;
    use std::collections::BTreeMap;
    use terok_policy::{Policy, Shield};

    fn origin(id: &str, config: &Value) -> Origin {
        let bundle = Path::new("/run/containerd/io.containerd.runtime.v2.task/k8s.io").join(id);
        Origin::of_bundle(&bundle, id, config).unwrap()
    }

    #[test]
    fn tasks_are_known_by_their_place_and_docker_is_one_of_them() {
        for (bundle, is) in [
            ("/run/containerd/io.containerd.runtime.v2.task/default/box", Some("default")),
            ("/run/user/1000/x/io.containerd.runtime.v2.task/moby/abc", Some("moby")),
            ("/run/containerd/io.containerd.runtime.v2.task/box", None),
            ("/var/lib/containers/storage/overlay-containers/abc/userdata", None),
            ("/b", None),
        ] {
            assert_eq!(namespace(Path::new(bundle)), is, "{bundle}");
        }
        let in_namespace = |namespace: &str| {
            let bundle = format!("/run/x/io.containerd.runtime.v2.task/{namespace}/abc");
            Origin::has_labels(Path::new(&bundle), "abc", &Value::Null)
        };
        assert!(in_namespace("moby") && !in_namespace("default"));
    }

    #[test]
    fn a_container_is_named_by_its_pod_by_nerdctl_or_by_its_id() {
        let pod = json!({ "annotations": {
            "io.kubernetes.cri.sandbox-namespace": "team", "io.kubernetes.cri.sandbox-name": "web-1",
            "io.kubernetes.cri.container-name": "app",
        }});
        assert_eq!(origin("abc", &pod).name(), "team/web-1/app");
        assert_eq!(origin("abc", &json!({ "annotations": { "nerdctl/name": "box" } })).name(), "box");
        assert_eq!(origin("abc", &json!({ "annotations": null })).name(), "abc");
    }

    #[test]
    fn a_pod_as_containerd_1_6_and_1_7_describe_it_is_the_persons_and_its_network_is_prepared() {
        let down = Policy { shield: Shield::Down, ..Policy::default() };
        for (version, place) in [("1.6.20", "lab/p253-3"), ("1.7.24", "lab/p238-4")] {
            for (member, name) in [("pause", place.to_owned()), ("member", format!("{place}/c"))] {
                let path = format!(
                    "{}/tests/fixtures/containerd-{version}-cri-{member}.config.json",
                    env!("CARGO_MANIFEST_DIR")
                );
                let config: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
                let origin = origin("abc", &config);
                assert!(origin.name().starts_with(&name), "{}", origin.name());
                assert!(!origin.brings_card(&config) && origin.has_raw_by_default());
                assert_ne!(guards::wanted(&config), guards::Wanted::Own, "{version} {member}");
                let ours =
                    origin.ours(&state::parse_config(config.to_string().as_bytes()).unwrap().1).unwrap();
                assert_eq!(ours["terok.shield.allow"], "site-5.example.com");
                origin.check(&ours, &down).unwrap();
            }
        }
    }

    #[test]
    fn annotations_are_the_persons_unless_nerdctl_may_have_made_them_of_labels() {
        let down = Policy { shield: Shield::Down, ..Policy::default() };
        let ours = BTreeMap::from([("terok.shield".to_owned(), "down".to_owned())]);
        origin("abc", &json!({ "annotations": {} })).check(&ours, &down).unwrap();
        let nerdctls = origin("abc", &json!({ "annotations": { "nerdctl/name": "box" } }));
        assert!(matches!(nerdctls.check(&ours, &down), Err(Refusal::ImageUnknown { .. })));
        nerdctls.check(&BTreeMap::new(), &Policy::default()).unwrap();
    }

    #[test]
    fn whoever_does_not_say_that_there_is_no_network_brings_a_card() {
        for (annotations, card) in [
            (json!({ "nerdctl/networks": r#"["bridge"]"# }), true),
            (json!({ "nerdctl/networks": r#"["none"]"# }), false),
            (json!({ "io.kubernetes.cri.container-type": "container" }), false),
            (json!({ "terok.shield": "up" }), true),
            (json!(null), true),
        ] {
            assert_eq!(brings_card(&json!({ "annotations": annotations })), card, "{annotations}");
        }
    }
}
