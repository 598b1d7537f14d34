//! Podman: a drop-in of our own, whose `[engine.runtimes]` Podman adds to those it has (4.3 and 5.4: a name is replaced by the last
//! file that has it, other names stay). Podman reads its files at each call.

use crate::containers_conf::{ConfError, files, table};
use crate::doctor::Finding;
use crate::engine::{Hidden, Registered, Removal, shim_before};
use crate::host::Host;
use crate::setup::{SetupError, Step};
use crate::target::{Scope, Target};
use std::path::{Path, PathBuf};
use terok_policy::layout;

/// Runtimes that start containers without control groups; Podman's own list (containers-common, `runtimeSupportsNoCgroups`).
const WITHOUT_CGROUPS: [&str; 2] = ["crun", "krun"];
/// The list's key, and as Podman 4.3 spells it.
const NO_CGROUPS: [&str; 2] = ["runtime_supports_nocgroups", "runtime_supports_nocgroup"];

pub(super) fn registered(target: &Target) -> Result<Registered, SetupError> {
    let Some(table) = table(&target.at(&target.runtime_drop_in()))? else { return Ok(Registered::No) };
    Ok(match table.get("engine").and_then(|engine| engine.get("runtime")) {
        Some(_) => Registered::Default,
        None => Registered::Named,
    })
}

pub(super) fn register(host: &Host, target: &Target, default: bool) -> Result<Vec<Step>, SetupError> {
    let to = target.at(&target.runtime_drop_in());
    let others = Others::read(host, target, &to)?;
    let said = others.runtime.as_ref().and_then(|(name, _)| Path::new(name).file_name());
    let runtime = said.and_then(|name| layout::RUNTIMES.into_iter().find(|known| name == *known));
    if let (Some((name, file)), None, true) = (&others.runtime, runtime, default) {
        return Err(SetupError::Engine {
            path: file.clone(),
            reason: format!(
                "podman's runtime is {name:?}, before which terok does not stand: take it out, or leave out --default-runtime"
            ),
        });
    }
    let runtime = runtime.unwrap_or_else(|| {
        let there = |name: &&str| {
            layout::RUNTIME_FOLDERS.iter().any(|folder| target.at(&Path::new(folder).join(name)).is_file())
        };
        layout::RUNTIMES.into_iter().find(there).unwrap_or(layout::RUNTIMES[0])
    });
    let text = text(&shim_before(target, runtime), runtime, default, others.without_cgroups);
    Ok(vec![Step::Text { to, text }])
}

pub(super) fn unregister(target: &Target) -> Result<Removal, SetupError> {
    let steps = vec![Step::Remove(target.at(&target.runtime_drop_in()))];
    Ok(Removal { steps, notes: Vec::new() })
}

/// A later file of Podman's that has another word for the name, or for the default.
pub(super) fn hidden(host: &Host, target: &Target, registered: Registered) -> Option<Hidden> {
    let own = target.at(&target.runtime_drop_in());
    let later = files(host).ok()?.into_iter().skip_while(|path| *path != own).skip(1);
    let default = registered == Registered::Default;
    // Podman reads its files at each call anyway.
    let stays = |finding| Some(Hidden { finding, reload_mends: false });
    for path in later.filter(|path| path.file_name() != own.file_name()) {
        let Ok(Some(table)) = table(&path) else { continue };
        let Some(engine) = table.get("engine") else { continue };
        let runtimes = engine.get("runtimes").and_then(|runtimes| runtimes.get(layout::ENGINE_RUNTIME));
        if let Some(list) = runtimes {
            return stays(Finding::fail(
                "shim",
                format!("{} makes {list} of the runtime terok", path.display()),
                "take it out, or give it another name",
            ));
        }
        if let Some(name) =
            engine.get("runtime").filter(|name| default && name.as_str() != Some(layout::ENGINE_RUNTIME))
        {
            return stays(Finding::warn(
                "shim",
                format!("{} makes {name} podman's default runtime again", path.display()),
                "take it out, or start containers with --runtime terok",
            ));
        }
    }
    None
}

fn text(shim: &Path, runtime: &str, default: bool, mut without_cgroups: Vec<String>) -> String {
    let name = layout::ENGINE_RUNTIME;
    let mut text =
        "# Written by `terok setup --engine podman`, taken away by `terok uninstall`.\n[engine]\n".to_owned();
    if default {
        text += &format!("runtime = {}\n", quoted(name));
    }
    // Podman asks by the name: what the runtime behind it can do, terok can.
    if without_cgroups.iter().any(|known| known == runtime) {
        without_cgroups.push(name.to_owned());
        let list = without_cgroups.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", ");
        text += "# The last such list that podman reads replaces the earlier ones, so the one in force is repeated here.\n";
        for key in NO_CGROUPS {
            text += &format!("{key} = [{list}]\n");
        }
    }
    text + &format!("[engine.runtimes]\n{name} = [{}]\n", quoted(&shim.display().to_string()))
}

fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// What Podman's other files say.
struct Others {
    /// `runtime`, and the file that says it last.
    runtime: Option<(String, PathBuf)>,
    without_cgroups: Vec<String>,
}

impl Others {
    fn read(host: &Host, target: &Target, own: &Path) -> Result<Self, ConfError> {
        let mut others =
            Others { runtime: None, without_cgroups: WITHOUT_CGROUPS.map(str::to_owned).to_vec() };
        // A package is for other machines than the one that builds it, and root's own files are root's.
        let files = match target.scope {
            Scope::System if target.destdir != host.root => Vec::new(),
            Scope::System => {
                let roots = host.at(host.config_home.join("containers"));
                files(host)?.into_iter().filter(|path| !path.starts_with(&roots)).collect()
            }
            Scope::User { .. } => files(host)?,
        };
        // What terok wrote for the machine is no word of anybody's about a user's runtime.
        let ours = target.runtime_drop_in();
        let ours = |path: &Path| path == own || path.file_name() == ours.file_name();
        for path in files.into_iter().filter(|path| !ours(path)) {
            let Some(table) = table(&path)? else { continue };
            let Some(engine) = table.get("engine").and_then(toml::Value::as_table) else { continue };
            if let Some(name) = engine.get("runtime").and_then(toml::Value::as_str) {
                others.runtime = Some((name.to_owned(), path));
            }
            for key in NO_CGROUPS {
                if let Some(list) = engine.get(key).and_then(toml::Value::as_array) {
                    others.without_cgroups =
                        list.iter().filter_map(|name| Some(name.as_str()?.to_owned())).collect();
                    others.without_cgroups.retain(|known| known != layout::ENGINE_RUNTIME);
                }
            }
        }
        Ok(others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Engine, register_steps};
    use crate::host::{tests_file as write, tests_host};
    use crate::setup::apply;

    fn set_up(host: &Host, default: Option<bool>) -> Result<toml::Table, SetupError> {
        let target = Target::of(host, false, None);
        for (_, steps) in register_steps(host, &target, &[Engine::Podman], default)? {
            apply(&steps)?;
        }
        Ok(table(&target.at(&target.runtime_drop_in()))?.unwrap_or_default())
    }

    #[test]
    fn podman_is_told_of_the_shim_before_the_runtime_it_has() {
        let root = tempfile::tempdir().unwrap();
        let host = tests_host(root.path(), 0);
        let shim = |table: &toml::Table| table["engine"]["runtimes"]["terok"][0].as_str().unwrap().to_owned();
        assert_eq!(shim(&set_up(&host, None).unwrap()), "/usr/libexec/terok/terok-shim-crun");
        write(&host, "/usr/sbin/runc", "");
        let found = set_up(&host, None).unwrap();
        assert_eq!(shim(&found), "/usr/libexec/terok/terok-shim-runc");
        assert!(NO_CGROUPS.iter().all(|key| !found["engine"].as_table().unwrap().contains_key(*key)));
        write(&host, "/usr/bin/crun", "");
        let found = set_up(&host, None).unwrap();
        assert_eq!(shim(&found), "/usr/libexec/terok/terok-shim-crun");
        assert!(!found["engine"].as_table().unwrap().contains_key("runtime"));
        let list = |found: &toml::Table, key| found["engine"][key].to_string();
        for key in NO_CGROUPS {
            assert_eq!(list(&found, key), r#"["crun", "krun", "terok"]"#);
        }
        write(&host, "/etc/containers/containers.conf", "[engine]\nruntime=\"runc\"\n");
        assert!(shim(&set_up(&host, None).unwrap()).ends_with("-runc"), "the machine's own choice");
        write(
            &host,
            "/etc/containers/containers.conf",
            "[engine]\nruntime=\"/usr/bin/crun\"\nruntime_supports_nocgroup=[\"crun\"]\n",
        );
        assert_eq!(list(&set_up(&host, None).unwrap(), NO_CGROUPS[0]), r#"["crun", "terok"]"#);
        write(&host, "/etc/terok/shim.toml", "runtime = \"/opt/crun\"\n");
        assert!(shim(&set_up(&host, None).unwrap()).ends_with("/terok-shim"), "the settings say which");
    }

    #[test]
    fn being_the_default_stays_until_it_is_taken_back_and_goes_with_the_rest() {
        for uid in [0, 1001] {
            let root = tempfile::tempdir().unwrap();
            let host = tests_host(root.path(), uid);
            let target = Target::of(&host, false, None);
            for (asked, registered) in [
                (None, Registered::Named),
                (Some(true), Registered::Default),
                (None, Registered::Default),
                (Some(false), Registered::Named),
            ] {
                set_up(&host, asked).unwrap();
                assert_eq!(Engine::Podman.registered(&target).unwrap(), registered);
            }
            let again = register_steps(&host, &target, &[], None).unwrap();
            assert_eq!(again.len(), 1, "a plain setup keeps it");
            assert_eq!(apply(&again[0].1).unwrap(), Vec::<PathBuf>::new());
            apply(&Engine::Podman.unregister(&target).unwrap().steps).unwrap();
            assert_eq!(Engine::Podman.registered(&target).unwrap(), Registered::No);
            assert_eq!(register_steps(&host, &target, &[], None).unwrap(), []);
        }
    }

    #[test]
    fn a_runtime_that_terok_cannot_stand_before_is_not_hidden() {
        let root = tempfile::tempdir().unwrap();
        let host = tests_host(root.path(), 1001);
        write(&host, "/etc/containers/containers.conf.d/kata.conf", "[engine]\nruntime=\"kata\"\n");
        let error = set_up(&host, Some(true)).unwrap_err().to_string();
        assert!(error.contains("kata.conf") && error.contains("\"kata\""), "{error}");
        set_up(&host, None).unwrap();
    }
}
