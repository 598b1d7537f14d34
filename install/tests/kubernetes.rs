//! The files for Kubernetes say what the code says.

use std::path::{Path, PathBuf};
use terok_install::engine::Engine;
use terok_install::host::Host;
use terok_install::setup::apply;
use terok_install::target::Target;
use terok_policy::{annotation, layout};

const CLASS: &str = include_str!("../kubernetes/runtimeclass.yaml");
const INSTALL: &str = include_str!("../kubernetes/install.yaml");
const UNINSTALL: &str = include_str!("../kubernetes/uninstall.yaml");
const POD: &str = include_str!("../kubernetes/pod.yaml");
const HANDLER: &str = include_str!("../kubernetes/containerd.toml");
const IMAGE: &str = include_str!("../kubernetes/Containerfile");

/// What follows `KEY:` in every line that has it.
fn values<'t>(yaml: &'t str, key: &str) -> Vec<&'t str> {
    let lines = yaml.lines().map(|line| line.trim_start_matches([' ', '-']));
    lines.filter_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim).collect()
}

fn node(root: &Path) -> Host {
    Host {
        root: root.to_path_buf(),
        uid: 0,
        home: PathBuf::from("/root"),
        config_home: PathBuf::from("/root/.config"),
        conf: None,
        conf_override: None,
        remote: None,
    }
}

#[test]
fn the_handler_by_hand_is_the_one_that_setup_writes() {
    let root = tempfile::tempdir().unwrap();
    let host = node(root.path());
    let target = Target::of(&host, true, None);
    apply(&Engine::Containerd.register(&host, &target, false).unwrap()).unwrap();
    let written = std::fs::read_to_string(root.path().join("etc/containerd/config.toml")).unwrap();
    let mut written: toml::Table = written.parse().unwrap();
    // Only a file that setup makes says where more are.
    written.remove("imports");
    assert_eq!(written, HANDLER.parse::<toml::Table>().unwrap());
}

#[test]
fn the_class_names_the_handler_and_the_nodes_that_are_set_up() {
    assert_eq!(values(CLASS, "handler"), [layout::ENGINE_RUNTIME]);
    assert_eq!(values(POD, "runtimeClassName"), values(CLASS, "name"));
    let label = "terok/runtime";
    assert_eq!(values(CLASS, label), ["\"true\""]);
    assert_eq!(values(INSTALL, label), values(CLASS, label));
    assert_eq!(values(UNINSTALL, label), ["remove"]);
}

#[test]
fn the_image_has_the_programs_and_the_nodes_run_them_below_their_root() {
    for program in [layout::LAUNCHER, layout::HOOK, layout::SHIM, layout::SUPERVISOR] {
        assert!(
            IMAGE.lines().any(|line| line.starts_with("COPY") && line.split(' ').any(|word| word == program))
        );
    }
    assert!(IMAGE.contains(&format!("ENTRYPOINT [\"/terok/{}\"]", layout::LAUNCHER)));
    for (yaml, verb) in
        [(INSTALL, "[setup, --system, --engine, containerd,"), (UNINSTALL, "[uninstall, --system,")]
    {
        let arguments = values(yaml, "args");
        assert!(arguments.len() == 1 && arguments[0].starts_with(verb), "{arguments:?}");
        assert!(arguments[0].contains(&format!("--destdir, {}, --reload", values(yaml, "mountPath")[0])));
    }
    assert_eq!(values(INSTALL, "image"), values(UNINSTALL, "image"));
    assert!(values(INSTALL, "image")[0].ends_with(&format!(":{}", env!("CARGO_PKG_VERSION"))));
    assert!(values(INSTALL, "automountServiceAccountToken").iter().all(|value| *value == "false"));
}

#[test]
fn the_pods_annotations_are_terok_s() {
    for key in [annotation::ALLOW, annotation::VAULT, annotation::RESTRICTED] {
        assert_eq!(values(POD, key).len(), 1, "{key}");
    }
    assert_eq!(POD.lines().filter(|line| line.trim().starts_with(annotation::PREFIX)).count(), 3);
}
