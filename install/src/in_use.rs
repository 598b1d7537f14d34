//! Containers that run through the shim. Their engine calls it again to stop and remove them, and without it Podman 4.3 says that it
//! did and leaves the process behind: while there is one, the shim must not go.

use crate::host::Host;
use crate::process::{command_lines, is_called, option};
use crate::target::Target;
use std::path::{Path, PathBuf};

/// Where containerd keeps its bundles, `NAMESPACE/ID` below: its own, the one that dockerd starts, and k3s's.
const BUNDLES: [&str; 4] = [
    "/run/containerd/io.containerd.runtime.v2.task",
    "/run/docker/containerd/io.containerd.runtime.v2.task",
    "/run/docker/containerd/daemon/io.containerd.runtime.v2.task",
    "/run/k3s/containerd/io.containerd.runtime.v2.task",
];
/// Docker's namespace in containerd.
const DOCKERS: &str = "moby";

/// A container that runs through the shim.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct User {
    /// `podman`, `docker` or `containerd`.
    pub engine: &'static str,
    /// How the engine calls it.
    pub name: String,
}

/// Who runs through the shim that is installed at `target`, as far as this person may see.
pub fn users(host: &Host, target: &Target) -> Vec<User> {
    let bin_dir = target.bin_dir();
    let is_ours = |runtime: &str| Path::new(runtime).parent() == Some(&bin_dir);
    let mut users: Vec<User> =
        command_lines(host).iter().filter_map(|words| conmon(words, &is_ours)).collect();
    for folder in BUNDLES {
        for namespace in folders(&host.at(folder)) {
            let running = folders(&namespace)
                .into_iter()
                .filter(|bundle| runtime_of(bundle).is_some_and(|runtime| is_ours(&runtime)));
            users.extend(running.filter(|bundle| runs(host, bundle)).map(|bundle| task(&namespace, &bundle)));
        }
    }
    users.sort();
    users.dedup();
    users
}

/// conmon(8) stands over each of Podman's containers: `-r RUNTIME`, `-n NAME`, `-c ID`.
fn conmon(words: &[String], is_ours: &dyn Fn(&str) -> bool) -> Option<User> {
    // What follows is the command that conmon runs at the end.
    let own = words.iter().position(|word| word.starts_with("--exit-command"));
    let own = &words[..own.unwrap_or(words.len())];
    let ours = is_called(words, "conmon") && option(own, &["-r", "--runtime"]).is_some_and(is_ours);
    let name = option(own, &["-n", "--name"]).or(option(own, &["-c", "--cid"]))?;
    ours.then(|| User { engine: "podman", name: name.to_owned() })
}

/// containerd's runc shim writes down what it calls (`runtime`, later `options.json` as well), and runc the first process's number.
fn runtime_of(bundle: &Path) -> Option<String> {
    let options = || {
        let text = std::fs::read(bundle.join("options.json")).ok()?;
        let options: serde_json::Value = serde_json::from_slice(&text).ok()?;
        Some(options.get("binary_name")?.as_str()?.to_owned())
    };
    let written = std::fs::read_to_string(bundle.join("runtime")).ok();
    written.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()).or_else(options)
}

/// Not what was left by a machine that went down. A container that is being made has no process yet.
fn runs(host: &Host, bundle: &Path) -> bool {
    std::fs::read_to_string(bundle.join("init.pid"))
        .map_or(true, |pid| host.at(format!("/proc/{}", pid.trim())).exists())
}

fn task(namespace: &Path, bundle: &Path) -> User {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match (name(namespace), name(bundle)) {
        (namespace, id) if namespace == DOCKERS => {
            // As `docker ps` shows it.
            User { engine: "docker", name: id.chars().take(12).collect() }
        }
        (namespace, id) => User { engine: "containerd", name: format!("{namespace}/{id}") },
    }
}

fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::tests_host;
    use crate::process::tests_process;

    #[test]
    fn podmans_containers_are_found_by_their_conmon() {
        let root = tempfile::tempdir().unwrap();
        let host = tests_host(root.path(), 1001);
        let system = Target::of(&host, true, None);
        assert_eq!(users(&host, &system), []);
        for (pid, line) in [
            (
                2,
                "/usr/bin/conmon --api-version 1 -c c0ffee -u c0ffee -r /usr/libexec/terok/terok-shim-crun -b /b -n web --exit-command /usr/bin/podman --exit-command-arg --runtime",
            ),
            (3, "/usr/bin/conmon --api-version 1 -c c0ffee -r /usr/libexec/terok/terok-shim-crun -e -n web"),
            (4, "/usr/bin/conmon -c beef -r /usr/bin/crun -n plain"),
            (5, "/usr/bin/conmon --cid=beef2 --runtime=/usr/libexec/terok/terok-shim"),
            (6, "/usr/bin/conmon -c u -r /home/u/.local/share/terok/bin/terok-shim-crun -n own"),
            (7, "vi -r /usr/libexec/terok/terok-shim-crun -n text"),
            (8, "conmon"),
        ] {
            tests_process(&host, pid, line);
        }
        let names =
            |target: &Target| users(&host, target).into_iter().map(|user| user.name).collect::<Vec<_>>();
        assert_eq!(names(&system), ["beef2", "web"]);
        assert_eq!(names(&Target::of(&host, false, None)), ["own"]);
    }

    #[test]
    fn dockers_and_containerds_are_found_by_their_bundles() {
        let root = tempfile::tempdir().unwrap();
        let host = tests_host(root.path(), 0);
        let target = Target::of(&host, false, None);
        let bundle = |place: &str, file: &str, text: &str, pid: Option<&str>| {
            let folder = host.at(place);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(file), text).unwrap();
            if let Some(pid) = pid {
                std::fs::write(folder.join("init.pid"), pid).unwrap();
            }
        };
        tests_process(&host, 7, "sleep 1");
        let shim = "/usr/libexec/terok/terok-shim-runc";
        let moby = format!("{}/moby", BUNDLES[0]);
        bundle(&format!("{moby}/0123456789abcdef"), "runtime", shim, Some("7"));
        bundle(&format!("{moby}/other"), "runtime", "/usr/bin/runc", Some("7"));
        bundle(&format!("{moby}/dead"), "runtime", shim, Some("8"));
        let options = format!("{{\"binary_name\":\"{shim}\",\"root\":\"\"}}");
        bundle(&format!("{}/k8s.io/pod", BUNDLES[3]), "options.json", &options, None);
        bundle(&format!("{}/k8s.io/new", BUNDLES[3]), "config.json", "{}", None);
        let found: Vec<_> =
            users(&host, &target).into_iter().map(|user| format!("{} {}", user.engine, user.name)).collect();
        assert_eq!(found, ["containerd k8s.io/pod", "docker 0123456789ab"]);
    }
}
