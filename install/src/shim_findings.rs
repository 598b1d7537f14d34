//! What `doctor` finds about the shim and the engines that are told of it. It is asked for its version, which is that of the runtime
//! behind it.

use crate::doctor::Finding;
use crate::engine::{self, Engine, Registered};
use crate::findings::runtime_finding;
use crate::host::Host;
use crate::setup::{Step, is_done};
use crate::target::Target;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use terok_policy::layout;

const AREA: &str = "shim";

/// Looks at each installation that this person's containers may use.
pub(crate) fn findings(host: &Host) -> Vec<Finding> {
    let mut targets = vec![Target::of(host, false, None), Target::of(host, true, None)];
    targets.dedup();
    targets.retain(|target| target.at(&target.bin_dir().join(layout::HOOK)).exists());
    targets.iter().flat_map(|target| installation(host, target)).collect()
}

fn installation(host: &Host, target: &Target) -> Vec<Finding> {
    let mut found: Vec<Finding> = open_folder(host, &target.bin_dir()).into_iter().collect();
    let broken = broken_names(target);
    if !broken.is_empty() {
        found.push(Finding::fail(
            AREA,
            format!("{} in {}: missing, or not terok's shim", broken.join(", "), target.bin_dir().display()),
            "run: terok setup",
        ));
    }
    let mut asked = Vec::new();
    for engine in Engine::ALL {
        let registered = match engine.registered(target) {
            Ok(Registered::No) => continue,
            Ok(registered) => registered,
            Err(error) => {
                found.push(Finding::warn(AREA, format!("{}: {error}", engine.name()), ""));
                continue;
            }
        };
        found.push(told(engine, registered));
        let steps = match engine.register(host, target, registered == Registered::Default) {
            Ok(steps) => steps,
            Err(error) => {
                found.push(Finding::warn(AREA, format!("{}: {error}", engine.name()), ""));
                continue;
            }
        };
        let other = |step: &&Step| !is_done(step);
        found.extend(steps.iter().filter(other).map(|step| {
            Finding::warn(
                AREA,
                format!("{} is not as terok setup would write it now", step.path().display()),
                format!("run: terok setup --engine {}", engine.name()),
            )
        }));
        found.extend(engine.hidden(host, target, registered).map(|hidden| hidden.finding));
        asked.extend(names_in(target, &steps));
    }
    asked.sort();
    asked.dedup();
    if broken.is_empty() {
        found.extend(asked.iter().flat_map(|name| behind(&target.at(&target.bin_dir().join(name)))));
    }
    found
}

fn told(engine: Engine, registered: Registered) -> Finding {
    let (name, runtime) = (engine.name(), layout::ENGINE_RUNTIME);
    Finding::ok(
        AREA,
        match registered {
            Registered::Default => format!("{name} starts every container that names no runtime through it"),
            _ => format!(
                "{name} starts containers that name the runtime {runtime} through it, and others without"
            ),
        },
    )
}

/// Names of the shim that do not lead to it.
fn broken_names(target: &Target) -> Vec<String> {
    let place = |name: &str| {
        let meta = std::fs::metadata(target.at(&target.bin_dir().join(name))).ok()?;
        (meta.is_file() && meta.mode() & 0o111 != 0).then(|| (meta.dev(), meta.ino()))
    };
    let shim = place(layout::SHIM);
    let names = layout::RUNTIMES.map(engine::link).into_iter().chain([layout::SHIM.to_owned()]);
    names.filter(|name| shim.is_none() || place(name) != shim).collect()
}

/// By which names the steps make engines call the shim.
fn names_in(target: &Target, steps: &[Step]) -> Vec<String> {
    let names = layout::RUNTIMES.map(engine::link).into_iter().chain([layout::SHIM.to_owned()]);
    let named = |name: &String| {
        let path = format!("{}\"", target.bin_dir().join(name).display());
        steps.iter().any(|step| step.text().is_some_and(|text| text.contains(&path)))
    };
    names.filter(named).collect()
}

/// What stands behind the shim at `path`.
fn behind(path: &Path) -> Vec<Finding> {
    // Without what this person's shell has set: an engine sets other things.
    let run = Command::new(path).arg("--version").env_clear().stdin(Stdio::null()).output();
    let output = match run {
        Ok(output) => output,
        Err(error) => {
            return vec![Finding::fail(
                AREA,
                format!("{} does not run: {error}", path.display()),
                "run: terok setup",
            )];
        }
    };
    let said = |text: &[u8]| String::from_utf8_lossy(text).lines().next().unwrap_or_default().to_owned();
    if !output.status.success() {
        return vec![Finding::fail(
            AREA,
            format!("{}: {}", path.display(), said(&output.stderr)),
            "install the runtime, or name it in shim.toml, and run: terok setup",
        )];
    }
    let version = said(&output.stdout);
    // `runc version 1.1.5+ds1`, `youki 0.5.7`
    let name = version.split_whitespace().next().unwrap_or_default().to_owned();
    let found = runtime_finding(&name, &version);
    found.into_iter().map(|finding| Finding { area: AREA, ..finding }).collect()
}

/// A folder above the programs in which somebody else could put others: whoever can, decides what runs for every container.
fn open_folder(host: &Host, bin_dir: &Path) -> Option<Finding> {
    let own = std::fs::metadata("/proc/self").map_or(host.uid, |meta| meta.uid());
    let open = |path: &PathBuf| {
        let Ok(meta) = std::fs::metadata(host.at(path)) else { return false };
        let others = ![0, host.uid, own].contains(&meta.uid());
        // With the sticky bit nobody takes away what is another's. Where each user has a group, its number is the user's.
        let group = meta.mode() & 0o020 != 0 && meta.gid() != 0 && meta.gid() != meta.uid();
        others || (meta.mode() & 0o1000 == 0 && (meta.mode() & 0o002 != 0 || group))
    };
    let folder = bin_dir.ancestors().map(Path::to_path_buf).find(open)?;
    Some(Finding::fail(
        AREA,
        format!(
            "others can write in {}: they can put programs of their own in the place of terok's",
            folder.display()
        ),
        format!("look who did, then: chmod go-w {}", folder.display()),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;
    use crate::engine::register_steps;
    use crate::host::tests_host;
    use crate::setup::{apply, tests_install};
    use std::os::unix::fs::PermissionsExt;

    /// An installation whose shim answers as a runtime.
    fn installed(root: &Path, answer: &str) -> (Host, Target) {
        std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o755)).unwrap();
        let host = tests_host(root, 0);
        tests_install(&host);
        let target = Target::of(&host, false, None);
        let shim = target.at(&target.bin_dir().join(layout::SHIM));
        // By another process: a file that is open for writing here is so in what a test beside this one forks, and the kernel
        // starts no program that is open for writing.
        let mut write = Command::new("sh");
        write.args(["-c", "printf '#!/bin/sh\\n%s\\n' \"$0\" >\"$1\"", answer]).arg(&shim);
        assert!(write.status().unwrap().success());
        (host, target)
    }

    fn tell(host: &Host, target: &Target, engine: Engine, default: bool) {
        for (_, steps) in register_steps(host, target, &[engine], Some(default)).unwrap() {
            apply(&steps).unwrap();
        }
    }

    fn bad(found: &[Finding]) -> Vec<(Level, String)> {
        let bad = found.iter().filter(|finding| finding.level != Level::Ok);
        bad.map(|finding| (finding.level, finding.what.clone())).collect()
    }

    #[test]
    fn a_runtime_with_a_known_flaw_is_found_behind_the_shim() {
        let root = tempfile::tempdir().unwrap();
        let (host, target) = installed(root.path(), "echo \"runc version 1.1.5\"; echo commit");
        assert_eq!(findings(&host), [], "nobody calls it");
        tell(&host, &target, Engine::Docker, false);
        assert_eq!(engine::machines(&host), [Engine::Docker]);
        let found = findings(&host);
        assert!(found[0].what.contains("docker starts containers that name the runtime terok"), "{found:?}");
        assert!(found[1].what.contains("CVE-2024-21626") && found[1].level == Level::Warn, "{found:?}");
        let (host, target) = installed(root.path(), "echo \"terok: no OCI runtime found\" >&2; exit 2");
        tell(&host, &target, Engine::Docker, false);
        assert!(bad(&findings(&host))[0].1.contains("no OCI runtime found"));
    }

    #[test]
    fn a_shim_that_is_missing_or_replaced_is_found() {
        let root = tempfile::tempdir().unwrap();
        let (host, target) = installed(root.path(), "echo crun version 1.21");
        tell(&host, &target, Engine::Podman, true);
        let found = findings(&host);
        assert_eq!(bad(&found), [], "{found:?}");
        assert!(found[0].what.contains("every container"));
        let link = target.at(&target.bin_dir().join("terok-shim-crun"));
        std::fs::remove_file(&link).unwrap();
        std::fs::write(&link, "").unwrap();
        assert!(bad(&findings(&host))[0].1.starts_with("terok-shim-crun in "));
        std::fs::remove_file(target.at(&target.bin_dir().join(layout::SHIM))).unwrap();
        assert_eq!(bad(&findings(&host))[0].0, Level::Fail);
    }

    #[test]
    fn files_that_say_something_else_than_setup_wrote_are_found() {
        let root = tempfile::tempdir().unwrap();
        let (host, target) = installed(root.path(), "echo crun version 1.21");
        tell(&host, &target, Engine::Podman, true);
        let drop_in = target.at(&target.runtime_drop_in());
        let text = std::fs::read_to_string(&drop_in).unwrap();
        std::fs::write(&drop_in, text.replace("shim-crun", "shim-youki")).unwrap();
        assert!(bad(&findings(&host))[0].1.contains("50-terok-runtime.conf is not as"));
        std::fs::write(&drop_in, text).unwrap();
        let later = drop_in.with_file_name("99.conf");
        std::fs::write(&later, "[engine]\nruntime = \"crun\"\n").unwrap();
        let found = bad(&findings(&host));
        assert!(found[0].1.contains("99.conf") && found[0].1.contains("\"crun\""), "{found:?}");
        std::fs::write(&later, "[engine.runtimes]\nterok = [\"/usr/bin/crun\"]\n").unwrap();
        let found = bad(&findings(&host));
        assert!(found[0].0 == Level::Fail && found[0].1.contains("/usr/bin/crun"), "{found:?}");
    }

    #[test]
    fn a_folder_in_which_others_write_is_found() {
        let root = tempfile::tempdir().unwrap();
        let (host, target) = installed(root.path(), "");
        assert_eq!(findings(&host), []);
        let folder = target.at(Path::new("/usr"));
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).unwrap();
        let found = findings(&host);
        assert!(found[0].what.contains("others can write in /usr:"), "{found:?}");
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o1777)).unwrap();
        assert_eq!(findings(&host), []);
    }
}
