use super::file::{PLUGIN_2, PLUGIN_3, RUNC_V2};
use super::*;
use crate::doctor::Level;
use crate::engine::{Engine, register_steps};
use crate::host::{tests_file as write, tests_host};
use crate::process::tests_process;
use crate::setup::apply;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// As kubeadm's documents have it.
const KUBEADM: &str = r#"# nodes of the lab
version = 2

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.9" # as kubeadm wants it
  [plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "runc"  # ours
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  pod_annotations = ["lab.example.com/*"]
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
    SystemdCgroup = true # the kubelet's driver

[debug]
  level = "info"
"#;
/// Debian's package.
const DEBIAN: &str = r#"version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
      conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd/opt"
"#;
const SHIM: &str = "/usr/libexec/terok/terok-shim-runc";

fn set_up(host: &Host, asked: bool, default: Option<bool>) -> Result<Vec<PathBuf>, SetupError> {
    let asked = if asked { vec![Engine::Containerd] } else { Vec::new() };
    let all = register_steps(host, &Target::of(host, false, None), &asked, default)?;
    Ok(all.iter().flat_map(|(_, steps)| apply(steps).unwrap()).collect())
}

#[test]
fn a_daemon_that_has_not_read_its_file_is_told_of() {
    let root = tempfile::tempdir().unwrap();
    let host = tests_host(root.path(), 0);
    let target = Target::of(&host, false, None);
    let registered = || Engine::Containerd.registered(&target).unwrap();
    let unread = || Engine::Containerd.is_unread(&host, &target, registered());
    let level = || hidden(&host, &target, registered()).unwrap().finding.level;
    set_up(&host, true, None).unwrap();
    assert!(!unread(), "none runs");
    let written = std::fs::metadata(host.at(FILE)).unwrap().modified().unwrap();
    std::fs::create_dir_all(host.at(SOCKET).parent().unwrap()).unwrap();
    let socket = std::fs::File::create(host.at(SOCKET)).unwrap();
    let minute = std::time::Duration::from_secs(60);
    socket.set_modified(written - minute).unwrap();
    assert!(unread());
    assert_eq!(level(), Level::Warn, "pods of a class that is not known wait");
    set_up(&host, true, Some(true)).unwrap();
    assert_eq!(level(), Level::Fail);
    socket.set_modified(written + minute).unwrap();
    assert!(!unread());
    for text in [None, Some(KUBEADM)] {
        if let Some(text) = text {
            write(&host, FILE, text);
            set_up(&host, true, None).unwrap();
        }
        take_away(&host);
        assert_eq!((registered(), host.at(FILE).exists()), (Registered::No, text.is_some()));
        socket.set_modified(written - minute).unwrap();
        assert!(unread(), "it has the handler still");
        socket.set_modified(written + minute).unwrap();
        assert!(!unread());
    }
    let user = Target::of(&tests_host(root.path(), 1001), false, None);
    socket.set_modified(written - minute).unwrap();
    assert!(!Engine::Containerd.is_unread(&host, &user, Registered::No), "the machine's is not the user's");
}

fn take_away(host: &Host) -> Vec<String> {
    let removal = Engine::Containerd.unregister(&Target::of(host, false, None)).unwrap();
    apply(&removal.steps).unwrap();
    removal.notes
}

fn with_file(text: &str) -> (tempfile::TempDir, Host, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let host = tests_host(root.path(), 0);
    let file = write(&host, FILE, text);
    (root, host, file)
}

/// The CRI plugin's `containerd` table as another parser reads it.
fn containerd(file: &Path) -> toml::Value {
    let table: toml::Table = std::fs::read_to_string(file).unwrap().parse().unwrap();
    let plugins = table["plugins"].as_table().unwrap();
    plugins.get(PLUGIN_2).or(plugins.get(PLUGIN_3)).unwrap()["containerd"].clone()
}

#[test]
fn the_handler_is_the_default_runtime_with_the_shim_before_it() {
    let (_root, host, file) = with_file(KUBEADM);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    set_up(&host, true, None).unwrap();
    let table = containerd(&file);
    let expected: toml::Table = format!(
        "runtime_type = \"io.containerd.runc.v2\"\npod_annotations = [\"lab.example.com/*\", \"terok.*\"]\n[options]\nSystemdCgroup = true\nBinaryName = \"{SHIM}\""
    )
    .parse()
    .unwrap();
    assert_eq!(table["runtimes"]["terok"], toml::Value::Table(expected));
    assert_eq!(table["runtimes"]["runc"]["options"]["SystemdCgroup"], toml::Value::Boolean(true));
    assert_eq!(table["default_runtime_name"].as_str(), Some("runc"));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn what_stood_there_is_the_same_again_afterwards() {
    let three = DEBIAN.replace("version = 2", "version = 3").replace(PLUGIN_2, PLUGIN_3);
    let inline =
        "version = 2\nplugins.\"io.containerd.grpc.v1.cri\".containerd.snapshotter = \"native\" # why\n";
    for text in [KUBEADM, DEBIAN, &three, inline, "version = 2\n", "# only this\nversion=2 # x\n"] {
        let (_root, host, file) = with_file(text);
        let read = || std::fs::read_to_string(&file).unwrap();
        assert_eq!(set_up(&host, true, None).unwrap().len(), 1);
        assert_eq!(set_up(&host, true, None).unwrap(), Vec::<PathBuf>::new(), "a second one");
        let named = read();
        let registered = || Engine::Containerd.registered(&Target::of(&host, false, None)).unwrap();
        assert_eq!(registered(), Registered::Named);
        assert_eq!(set_up(&host, true, Some(true)).unwrap().len(), 1);
        assert_eq!(registered(), Registered::Default, "{}", read());
        assert_eq!(containerd(&file)["default_runtime_name"].as_str(), Some("terok"));
        assert_eq!(set_up(&host, false, None).unwrap(), Vec::<PathBuf>::new(), "a plain setup keeps it");
        set_up(&host, true, Some(false)).unwrap();
        assert_eq!(read(), named);
        set_up(&host, true, Some(true)).unwrap();
        assert_eq!(take_away(&host), Vec::<String>::new());
        assert_eq!(read(), text);
        assert_eq!(set_up(&host, false, None).unwrap(), Vec::<PathBuf>::new());
    }
}

#[test]
fn a_file_that_names_no_runtime_gets_the_built_in_one_too() {
    let (_root, host, file) = with_file(DEBIAN);
    set_up(&host, true, None).unwrap();
    let runtimes = containerd(&file)["runtimes"].clone();
    assert_eq!(runtimes["runc"]["runtime_type"].as_str(), Some(RUNC_V2));
    assert_eq!(runtimes["terok"]["options"]["BinaryName"].as_str(), Some(SHIM));
}

#[test]
fn without_a_file_one_is_made_and_goes_again() {
    let root = tempfile::tempdir().unwrap();
    let host = tests_host(root.path(), 0);
    for default in [None, Some(true)] {
        set_up(&host, true, default).unwrap();
        let file = host.at(FILE);
        assert_eq!(containerd(&file)["runtimes"].as_table().unwrap().len(), 2);
        take_away(&host);
        assert!(!file.exists());
    }
    set_up(&host, true, None).unwrap();
    let text = std::fs::read_to_string(host.at(FILE)).unwrap();
    write(&host, FILE, &format!("{text}\n[debug]\nlevel = \"debug\"\n"));
    take_away(&host);
    let left = std::fs::read_to_string(host.at(FILE)).unwrap();
    assert!(left.contains("debug") && !left.contains("shim"), "{left}");
}

#[test]
fn an_imported_file_that_replaces_the_plugins_table_is_the_one_that_is_changed() {
    let (_root, host, file) = with_file("version = 2\nimports = [\"/etc/containerd/more/*.toml\"]\n");
    let other =
        write(&host, "/etc/containerd/more/10-other.toml", "version = 2\n[debug]\nlevel = \"info\"\n");
    let cri = write(&host, "/etc/containerd/more/20-cri.toml", KUBEADM);
    set_up(&host, true, None).unwrap();
    assert!(containerd(&cri)["runtimes"].get("terok").is_some());
    assert!(![file, other].iter().any(|file| std::fs::read_to_string(file).unwrap().contains("shim")));
    take_away(&host);
    assert_eq!(std::fs::read_to_string(&cri).unwrap(), KUBEADM);
    write(&host, "/etc/containerd/more/30-cri.toml", KUBEADM);
    let error = set_up(&host, true, None).unwrap_err().to_string();
    assert!(error.contains("20-cri.toml and ") && error.contains("30-cri.toml"), "{error}");
}

#[test]
fn a_default_that_is_no_runc_is_not_replaced() {
    let kata = KUBEADM
        .replace("= \"runc\"", "= \"kata\"")
        .replace("runtimes.runc", "runtimes.kata")
        .replace("runc.v2", "kata.v2");
    let (_root, host, file) = with_file(&kata);
    assert!(set_up(&host, true, Some(true)).unwrap_err().to_string().contains("\"kata\""));
    set_up(&host, true, None).unwrap();
    let handler = containerd(&file)["runtimes"]["terok"].clone();
    assert_eq!(handler["runtime_type"].as_str(), Some(RUNC_V2));
    assert!(handler["options"].get("SystemdCgroup").is_none(), "{handler}");
    let crun = KUBEADM.replace("SystemdCgroup = true", "BinaryName = \"/usr/bin/crun\"");
    let (_root, host, file) = with_file(&crun);
    set_up(&host, true, Some(true)).unwrap();
    let name = containerd(&file)["runtimes"]["terok"]["options"]["BinaryName"].clone();
    assert_eq!(name.as_str(), Some("/usr/libexec/terok/terok-shim-crun"));
}

#[test]
fn what_cannot_be_changed_for_the_better_is_refused_and_stays() {
    let theirs = format!(
        "{KUBEADM}[plugins.\"{PLUGIN_2}\".containerd.runtimes.terok]\nruntime_type = \"io.containerd.other.v1\"\n"
    );
    for (text, said) in [
        (theirs.as_str(), "not terok's"),
        ("version = 2\n[plugins\n", "line 2"),
        ("version = 9\n", "from 2 to 4"),
        ("[plugins.cri]\n", "config migrate"),
        ("disabled_plugins = [\"cri\"]\n", "disabled_plugins"),
        ("version = 2\nplugins = 3\n", "not a table"),
    ] {
        let (_root, host, file) = with_file(text);
        let error = set_up(&host, true, None).unwrap_err().to_string();
        assert!(error.contains("config.toml") && error.contains(said) && !error.contains('\n'), "{error}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    }
    let (_root, host, file) = with_file(&theirs);
    assert!(take_away(&host)[0].contains("not terok's"));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), theirs);
    let user = tests_host(&host.root, 1001);
    assert!(set_up(&user, true, None).unwrap_err().to_string().contains("as root"));
}

#[test]
fn a_daemon_that_reads_another_file_is_told() {
    let (_root, host, _) = with_file(DEBIAN);
    tests_process(
        &host,
        7,
        "containerd --config /var/run/docker/containerd/containerd.toml --log-level info",
    );
    set_up(&host, true, None).unwrap();
    tests_process(
        &host,
        8,
        "/var/lib/rancher/k3s/data/current/bin/containerd -c /var/lib/rancher/k3s/agent/etc/containerd/config.toml",
    );
    let error = set_up(&host, true, None).unwrap_err().to_string();
    assert!(error.contains("/var/lib/rancher/k3s/agent/etc/containerd/config.toml"), "{error}");
    tests_process(&host, 9, "/usr/bin/containerd");
    set_up(&host, true, None).unwrap();
}
