//! What `doctor` reads without starting a container: kernel features, engine versions, configuration files.

use crate::containers_conf::{Network, files, hook_dirs, networks as conf_networks};
use crate::doctor::Finding;
use crate::host::Host;
use crate::settings;
use crate::target::Target;
use serde::Deserialize;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use terok_policy::layout;

/// Versions of runtimes below which a container can leave its box.
const KNOWN_BAD: &[(&str, &[Fixed])] = &[
    (
        "runc",
        &[
            Fixed { cve: "CVE-2019-5736", branches: &[(1, 0, 0)] },
            Fixed { cve: "CVE-2024-21626", branches: &[(1, 1, 12)] },
            Fixed {
                cve: "CVE-2025-31133, CVE-2025-52565, CVE-2025-52881",
                branches: &[(1, 2, 8), (1, 3, 3), (1, 4, 0)],
            },
        ],
    ),
    ("crun", &[Fixed { cve: "CVE-2022-27650", branches: &[(1, 4, 4)] }]),
];

/// Where a flaw is fixed: the first good version of each branch; branches in between and later ones are good from their start.
struct Fixed {
    cve: &'static str,
    branches: &'static [(u32, u32, u32)],
}

impl Fixed {
    fn has_flaw(&self, version: (u32, u32, u32)) -> bool {
        let branch = self.branches.iter().find(|fixed| (fixed.0, fixed.1) == (version.0, version.1));
        match branch {
            Some(fixed) => version < *fixed,
            None => self.branches.iter().all(|fixed| version < *fixed),
        }
    }
}

/// Namespaces, seccomp, Landlock.
pub(crate) fn kernel(host: &Host) -> Vec<Finding> {
    let read = |path: &str| std::fs::read_to_string(host.at(path)).unwrap_or_default().trim().to_owned();
    let mut found = Vec::new();
    let release = read("/proc/sys/kernel/osrelease");
    found.push(Finding::ok("kernel", format!("Linux {release}")));
    if read("/proc/sys/kernel/seccomp/actions_avail").contains("errno") {
        found.push(Finding::ok("kernel", "seccomp filters"));
    } else {
        found.push(Finding::fail("kernel", "no seccomp filters", "use a kernel with CONFIG_SECCOMP_FILTER"));
    }
    let modules = read("/sys/kernel/security/lsm");
    if modules.split(',').any(|module| module == "landlock") {
        found.push(Finding::ok("kernel", "Landlock is active"));
    } else if !modules.is_empty() {
        found.push(Finding::warn(
            "kernel",
            format!("Landlock is not active (security modules: {modules})"),
            "boot with lsm=landlock,… so that supervisors confine their file access",
        ));
    }
    if host.rootless() {
        found.extend(user_namespaces(&read));
    }
    found
}

/// Where no container starts: whether nf_tables may be what is missing. It can also be built in, which nothing in /sys tells.
pub(crate) fn netfilter(host: &Host) -> Option<Finding> {
    if host.at("/sys/module/nf_tables").exists() {
        return None;
    }
    Some(Finding::warn(
        "kernel",
        "nf_tables is built in or not loaded",
        "if it is missing, as root: modprobe nf_tables",
    ))
}

fn user_namespaces(read: &dyn Fn(&str) -> String) -> Vec<Finding> {
    let off = |what: &str, remedy: &str| vec![Finding::fail("kernel", what, remedy)];
    if read("/proc/sys/user/max_user_namespaces") == "0" {
        return off("user namespaces are switched off", "as root: sysctl user.max_user_namespaces=15000");
    }
    if read("/proc/sys/kernel/unprivileged_userns_clone") == "0" {
        return off(
            "user namespaces are for root only",
            "as root: sysctl kernel.unprivileged_userns_clone=1",
        );
    }
    vec![Finding::ok("kernel", "user namespaces for users")]
}

/// Podman and its runtime.
pub(crate) fn engine(podman: &Path) -> Vec<Finding> {
    #[derive(Deserialize)]
    struct Info {
        host: InfoHost,
        version: Version,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct InfoHost {
        oci_runtime: Runtime,
    }
    #[derive(Deserialize)]
    struct Runtime {
        name: String,
        version: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Version {
        version: String,
    }
    let output = match Command::new(podman).args(["info", "--format", "json"]).output() {
        Ok(output) if output.status.success() => output,
        Ok(output) => {
            let reason = String::from_utf8_lossy(&output.stderr);
            let reason = reason.lines().last().unwrap_or("it says nothing").to_owned();
            return vec![Finding::fail(
                "engine",
                format!("podman info fails: {reason}"),
                "make podman itself work first",
            )];
        }
        Err(error) => return vec![Finding::fail("engine", format!("{}: {error}", podman.display()), "")],
    };
    let info: Info = match serde_json::from_slice(&output.stdout) {
        Ok(info) => info,
        Err(error) => return vec![Finding::fail("engine", format!("podman info: {error}"), "")],
    };
    let mut found = Vec::new();
    let version = info.version.version;
    if number(&version) < (4, 3, 0) {
        found.push(Finding::warn(
            "engine",
            format!("podman {version}"),
            "terok is tested with 4.3 and later",
        ));
    } else {
        found.push(Finding::ok("engine", format!("podman {version}")));
    }
    let runtime = info.host.oci_runtime;
    // What is behind the shim is found where the shim is looked at.
    if runtime.name != layout::ENGINE_RUNTIME {
        found.extend(runtime_finding(&runtime.name, &runtime.version));
    }
    found
}

/// An OCI runtime by its name and the first line of its `--version`.
pub(crate) fn runtime_finding(name: &str, version_text: &str) -> Vec<Finding> {
    // `crun version 1.8.1\ncommit: …`
    let text = version_text.lines().next().unwrap_or_default();
    let word = text
        .split_whitespace()
        .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))
        .unwrap_or_default();
    let version = number(word);
    let Some((_, flaws)) = KNOWN_BAD.iter().find(|(known, _)| *known == name) else {
        return vec![Finding::warn(
            "engine",
            format!("runtime {name} {word}"),
            "terok is tested with crun and runc",
        )];
    };
    let bad: Vec<&str> = flaws.iter().filter(|flaw| flaw.has_flaw(version)).map(|flaw| flaw.cve).collect();
    if bad.is_empty() {
        return vec![Finding::ok("engine", format!("runtime {name} {word}"))];
    }
    vec![Finding::warn(
        "engine",
        format!("runtime {name} {word} is older than the fix of {}", bad.join(", ")),
        "update it, or check that your distribution has put the fix into this version",
    )]
}

/// Files that decide whether hooks run, and rootless prerequisites.
pub(crate) fn configuration(host: &Host) -> Vec<Finding> {
    let mut found = Vec::new();
    let target = Target::of(host, false, None);
    let drop_in = target.at(&target.drop_in());
    if drop_in.exists()
        && let (Ok(with), Ok(without), Ok(files)) =
            (hook_dirs(host, None), hook_dirs(host, Some(&drop_in)), files(host))
    {
        for dir in without.dirs.iter().filter(|dir| !with.dirs.contains(dir)) {
            found.push(Finding::warn(
                "configuration",
                format!("{} hides the hooks in {}", drop_in.display(), dir.display()),
                "run: terok setup, which writes it anew",
            ));
        }
        if let Some(later) = with.set_by.filter(|by| *by != drop_in && files.contains(by)) {
            found.push(Finding::warn(
                "configuration",
                format!("{} sets hooks_dir after {}", later.display(), drop_in.display()),
                "take hooks_dir out of it and run: terok setup",
            ));
        }
    }
    if host.rootless() {
        found.extend(["/etc/subuid", "/etc/subgid"].iter().filter_map(|file| subordinate_ids(host, file)));
    }
    found
}

/// Networks that Podman's files give containers and that cannot be protected, or not wholly.
pub(crate) fn networks(host: &Host) -> Vec<Finding> {
    // A file that cannot be read is told about where the hooks are looked for.
    let found = conf_networks(host).unwrap_or_default();
    found.into_iter().filter_map(network).collect()
}

fn network(network: Network) -> Option<Finding> {
    match network {
        Network::Default(file, mode) if mode == "host" || mode.starts_with("ns:") => Some(Finding::warn(
            "network",
            format!(
                "{} gives containers netns = {mode:?}: protected ones do not start there",
                file.display()
            ),
            "take netns out of it, or name another network at each start",
        )),
        Network::Default(..) => None,
        Network::Pasta(file, option) => Some(Finding::warn(
            "network",
            format!(
                "{} starts pasta with {option}: the container's loopback then leads to the host's, past the firewall",
                file.display()
            ),
            "take it out of pasta_options; a port of the host is reached with --allow host:PORT",
        )),
    }
}

/// A panic that is in force.
pub(crate) fn panic(host: &Host) -> Vec<Finding> {
    let finding = |marker: &std::path::PathBuf| {
        let own = *marker == host.panic_marker();
        Finding::fail(
            "configuration",
            format!("no protected container starts, because of {}", marker.display()),
            if own { "when the danger is over: terok panic --clear" } else { "as root: terok panic --clear" },
        )
    };
    host.panics().iter().map(finding).collect()
}

/// Settings that cannot be read: then no container starts.
pub(crate) fn settings(host: &Host) -> Vec<Finding> {
    let mut found = Vec::new();
    for path in host.settings_files() {
        match settings::file(&path) {
            Ok(Some(terok_policy::settings::Settings { upstream: Some(upstream), .. })) => {
                if upstream.login.is_some() && is_open(&path) {
                    // Rootless hooks read the machine's file as their user.
                    let remedy = match path == host.at(layout::CONFIG_SYSTEM) {
                        true => format!(
                            "write upstream_proxy into ~/{} of those who need it",
                            layout::CONFIG_USER
                        ),
                        false => format!("chmod 600 {}", path.display()),
                    };
                    let what = format!("{} holds a password that others can read", path.display());
                    found.push(Finding::warn("configuration", what, remedy));
                }
                let (host, port) = (upstream.host, upstream.port);
                found.push(Finding::ok(
                    "configuration",
                    format!(
                        "allowed names are reached through the proxy {host}:{port}, as {} says",
                        path.display()
                    ),
                ));
            }
            Ok(_) => {}
            Err(reason) => {
                found.push(Finding::fail(
                    "configuration",
                    reason,
                    "no protected container starts until it is put right",
                ));
            }
        }
    }
    found
}

/// Whether others than the owner can read the file.
fn is_open(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.mode() & 0o044 != 0)
}

/// Where every container is protected: by what.
pub(crate) fn all_containers(host: &Host) -> Finding {
    let says = |path: &&std::path::PathBuf| matches!(settings::file(path), Ok(Some(settings)) if !settings.all_containers.is_empty());
    let files = host.settings_files();
    match files.iter().rev().find(says) {
        Some(file) => Finding::ok(
            "configuration",
            format!("every container is protected, one without annotations as {} says", file.display()),
        ),
        None => Finding::warn(
            "configuration",
            "every container is protected, but no [all_containers] says how: those without annotations get the default, which reaches nothing",
            "run: terok setup --all-containers",
        ),
    }
}

/// The folders in which containers leave their sockets and logs (L6): where the hook would refuse one, it cannot say so there.
pub(crate) fn folders(host: &Host) -> Vec<Finding> {
    let mut found = Vec::new();
    let session = host.at(format!("/run/user/{}", host.uid));
    if host.rootless() && !session.is_dir() {
        found.push(Finding::fail(
            "configuration",
            format!(
                "no {}: there is no login session, so nowhere for a container's sockets",
                session.display()
            ),
            format!("log in instead of using su, or as root: loginctl enable-linger {}", host.uid),
        ));
    }
    // Inside a user namespace the person's own files have another number.
    let own = std::fs::metadata("/proc/self").map_or(host.uid, |meta| meta.uid());
    for folder in [host.run_dir(), host.state_dir()] {
        let Ok(meta) = std::fs::symlink_metadata(&folder) else { continue };
        if !meta.is_dir() || (meta.uid() != host.uid && meta.uid() != own) {
            found.push(Finding::fail(
                "configuration",
                format!("{} is not a folder of yours: no protected container starts", folder.display()),
                "move it away",
            ));
        } else if meta.mode() & 0o077 != 0 {
            found.push(Finding::fail(
                "configuration",
                format!(
                    "{} is open to others (mode {:o}): no protected container starts",
                    folder.display(),
                    meta.mode() & 0o777
                ),
                format!("look who wrote to it, then: chmod 700 {}", folder.display()),
            ));
        }
    }
    found
}

/// Missing subordinate ids: containers then have one user only.
fn subordinate_ids(host: &Host, file: &str) -> Option<Finding> {
    let passwd = std::fs::read_to_string(host.at("/etc/passwd")).unwrap_or_default();
    let uid = host.uid.to_string();
    let name = passwd
        .lines()
        .find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)? == uid).then_some(name)
        })
        .unwrap_or(&uid);
    let ids = std::fs::read_to_string(host.at(file)).unwrap_or_default();
    if ids.lines().filter_map(|line| line.split(':').next()).any(|owner| owner == name || owner == uid) {
        return None;
    }
    Some(Finding::warn(
        "configuration",
        format!("{file} gives {name} no subordinate ids"),
        format!(
            "as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}; then: podman system migrate"
        ),
    ))
}

/// `1.1.12+ds1-2` as numbers; missing parts are 0.
fn number(version: &str) -> (u32, u32, u32) {
    let mut parts = version.split(['.', '-', '+', '~']).map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;
    use crate::host::tests_host;
    use crate::setup::tests_install;

    fn level(name: &str, version: &str) -> Level {
        runtime_finding(name, version)[0].level
    }

    #[test]
    fn runtimes_with_known_flaws_are_named() {
        assert_eq!(level("runc", "runc version 1.1.5+ds1"), Level::Warn);
        assert_eq!(level("runc", "runc version 1.2.7"), Level::Warn);
        assert_eq!(level("runc", "runc version 1.2.8"), Level::Ok);
        assert_eq!(level("runc", "runc version 1.3.2"), Level::Warn);
        assert_eq!(level("runc", "runc version 1.4.1"), Level::Ok);
        assert_eq!(level("crun", "crun version 1.8.1\ncommit: f8a096be"), Level::Ok);
        assert_eq!(level("crun", "crun version 1.4.3"), Level::Warn);
        assert_eq!(level("youki", "youki version 0.5"), Level::Warn);
        assert!(runtime_finding("runc", "runc version 1.1.5")[0].what.contains("CVE-2024-21626"));
    }

    #[test]
    fn a_drop_in_that_lost_touch_is_found() {
        let root = tempfile::tempdir().unwrap();
        let host = tests_host(root.path(), 1001);
        for file in ["/etc/subuid", "/etc/subgid"] {
            std::fs::create_dir_all(host.at("/etc")).unwrap();
            std::fs::write(host.at(file), "1001:100000:65536\n").unwrap();
        }
        tests_install(&host);
        assert_eq!(configuration(&host), []);
        std::fs::create_dir_all(host.at("/etc/containers")).unwrap();
        std::fs::write(host.at("/etc/containers/containers.conf"), "[engine]\nhooks_dir=[\"/new\"]\n")
            .unwrap();
        assert!(configuration(&host)[0].what.contains("hides the hooks in /new"));
        let later = host.at("/home/u/.config/containers/containers.conf.d/99.conf");
        std::fs::write(later, "[engine]\nhooks_dir=[\"/later\"]\n").unwrap();
        assert!(
            configuration(&host).iter().any(|finding| finding.what.contains("99.conf sets hooks_dir after"))
        );
    }

    #[test]
    fn networks_that_cannot_be_protected_are_found_where_podman_reads_them() {
        let root = tempfile::tempdir().unwrap();
        let host = tests_host(root.path(), 1001);
        let conf = host.at("/home/u/.config/containers/containers.conf");
        std::fs::create_dir_all(conf.parent().unwrap()).unwrap();
        std::fs::write(
            &conf,
            "[containers]\nnetns = \"private\"\n[network]\npasta_options = [\"--map-gw\"]\n",
        )
        .unwrap();
        assert_eq!(networks(&host), []);
        std::fs::write(
            &conf,
            "[containers]\nnetns = \"host\"\n[network]\npasta_options = [\"-T\", \"auto\"]\n",
        )
        .unwrap();
        let found = networks(&host);
        assert!(
            found[0].what.contains("netns = \"host\"") && found[1].what.contains("pasta with -T"),
            "{found:?}"
        );
    }

    #[test]
    fn a_panic_is_found_with_who_can_end_it() {
        let root = tempfile::tempdir().unwrap();
        let (user, admin) = (tests_host(root.path(), 1001), tests_host(root.path(), 0));
        std::fs::create_dir_all(root.path().join("var/lib")).unwrap();
        assert_eq!(panic(&user), []);
        std::fs::write(admin.panic_marker(), "").unwrap();
        assert!(panic(&user)[0].remedy.contains("as root") && !panic(&admin)[0].remedy.contains("as root"));
    }

    #[test]
    fn where_every_container_is_protected_the_file_that_says_how_is_named() {
        let root = tempfile::tempdir().unwrap();
        let host = tests_host(root.path(), 1001);
        assert_eq!(all_containers(&host).level, Level::Warn);
        let [system, own] = host.settings_files().try_into().unwrap();
        for file in [&system, &own] {
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, "[all_containers]\n\"terok.shield\" = \"up\"\n").unwrap();
            assert!(all_containers(&host).what.contains(&file.display().to_string()));
        }
    }

    #[test]
    fn settings_that_cannot_be_read_are_named_with_their_line_and_a_proxy_without_its_password() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let host = tests_host(root.path(), 1001);
        assert_eq!(settings(&host), []);
        let [_, own] = host.settings_files().try_into().unwrap();
        std::fs::create_dir_all(own.parent().unwrap()).unwrap();
        std::fs::write(&own, "upstream_proxy = \"http://u:secret@proxy.example:3128\"\n").unwrap();
        let mode = |mode| std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&own, mode(0o644)).unwrap();
        let found = settings(&host);
        assert_eq!((found.len(), found[0].level), (2, Level::Warn));
        assert!(found[0].remedy.starts_with("chmod 600 "), "{found:?}");
        std::fs::set_permissions(&own, mode(0o600)).unwrap();
        let found = settings(&host);
        assert!(
            found[0].what.contains("proxy.example:3128") && !found[0].what.contains("secret"),
            "{found:?}"
        );
        std::fs::write(&own, "\nupstream_prxy = \"\"\n").unwrap();
        let found = settings(&host);
        assert!(found[0].what.contains("line 2") && found[0].what.contains("upstream_proxy"), "{found:?}");
        assert_eq!(found[0].level, Level::Fail);
    }

    #[test]
    fn folders_that_the_hook_would_refuse_are_found() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let host = tests_host(root.path(), 1001);
        assert!(folders(&host)[0].remedy.contains("loginctl enable-linger 1001"));
        std::fs::create_dir_all(host.run_dir()).unwrap();
        std::fs::create_dir_all(host.state_dir()).unwrap();
        for folder in [host.run_dir(), host.state_dir()] {
            std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).unwrap();
        }
        assert_eq!(folders(&host), []);
        std::fs::set_permissions(host.state_dir(), std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(folders(&host)[0].what.contains("mode 755"), "{:?}", folders(&host));
        std::fs::remove_dir(host.state_dir()).unwrap();
        std::os::unix::fs::symlink("/tmp", host.state_dir()).unwrap();
        assert!(folders(&host)[0].what.contains("not a folder of yours"));
    }

    #[test]
    fn missing_subordinate_ids_are_found_by_name_or_number() {
        let root = tempfile::tempdir().unwrap();
        let host = tests_host(root.path(), 1001);
        std::fs::create_dir_all(host.at("/etc")).unwrap();
        std::fs::write(
            host.at("/etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nanna:x:1001:1001::/home/u:/bin/sh\n",
        )
        .unwrap();
        std::fs::write(host.at("/etc/subuid"), "anna:100000:65536\n").unwrap();
        std::fs::write(host.at("/etc/subgid"), "bert:100000:65536\n").unwrap();
        let found = configuration(&host);
        assert_eq!(found.len(), 1);
        assert!(found[0].what.contains("/etc/subgid gives anna"));
    }

    #[test]
    fn this_kernel_is_described() {
        let found = kernel(&Host { root: "/".into(), ..tests_host(Path::new("/"), 1001) });
        assert!(found.iter().any(|finding| finding.what.contains("Linux")));
        assert!(found.len() >= 2);
    }
}
