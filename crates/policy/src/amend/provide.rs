//! What a container of the vault or the signer is given: one mount and variables.

use super::{AmendError, list, object};
use crate::layout;
use crate::provision::{INSIDE, Provision, spellings};
use serde_json::{Map, Value, json};

/// In a mount's options: a folder that nothing inside can write to, make devices in or run programs from.
const OPTIONS: [&str; 6] = ["rbind", "rprivate", "ro", "nosuid", "nodev", "noexec"];
const COUNT: &str = "GIT_CONFIG_COUNT";

/// Adds the mount at [`INSIDE`] and the variables to an OCI `config.json`; nothing where there is no folder to mount. What the
/// user mounted there is never replaced, and applying it twice changes nothing.
pub fn provide(config: Value, provision: &Provision) -> Result<Value, AmendError> {
    let mut config = config;
    let Some(folder) = &provision.folder else { return Ok(config) };
    mount(object(&mut config, &[])?, folder)?;
    variables(object(&mut config, &["process"])?, provision)?;
    Ok(config)
}

/// Adds the variables to a further process: what the engine hands to the runtime's `exec`.
pub fn provide_process(process: Value, provision: &Provision) -> Result<Value, AmendError> {
    let mut process = process;
    if provision.folder.is_some() {
        variables(object(&mut process, &[])?, provision)?;
    }
    Ok(process)
}

fn variables(process: &mut Map<String, Value>, provision: &Provision) -> Result<(), AmendError> {
    let env = list(process, "env", "/process/env")?;
    for (variable, value) in &provision.env {
        set(env, variable, value);
    }
    for (variable, value) in &provision.defaults {
        if spellings(variable).all(|own| find(env, own).is_none()) {
            set(env, variable, value);
        }
    }
    configure_git(env, &provision.git)
}

fn mount(config: &mut Map<String, Value>, folder: &str) -> Result<(), AmendError> {
    let mounts = list(config, "mounts", "/mounts")?;
    let ours = json!({ "destination": INSIDE, "type": "bind", "source": folder, "options": OPTIONS });
    if mounts.contains(&ours) {
        return Ok(());
    }
    for (at, mount) in mounts.iter_mut().enumerate() {
        // A bundle that was amended before, now for a container of another id.
        if is_one_of_ours(mount, &ours) {
            *mount = ours;
            return Ok(());
        }
        let destination = mount.get("destination").and_then(Value::as_str).unwrap_or_default();
        if is_at_or_below(destination, INSIDE) {
            return Err(AmendError {
                place: format!("/mounts/{at}"),
                reason: format!(
                    "{destination:?} is where terok.vault and terok.ssh put what they give; mount it elsewhere"
                ),
            });
        }
    }
    mounts.push(ours);
    Ok(())
}

/// Whether `mount` differs from ours only in the container's id: `…/.birth/<id>/inside`.
fn is_one_of_ours(mount: &Value, ours: &Value) -> bool {
    let births = |mount: &Value| {
        let folder = mount.get("source")?.as_str()?.strip_suffix(layout::INSIDE)?.strip_suffix('/')?;
        let (births, id) = folder.rsplit_once('/')?;
        layout::is_container_id(id).then(|| births.to_owned())
    };
    let same = |key| mount.get(key) == ours.get(key);
    same("destination")
        && same("type")
        && same("options")
        && births(mount).is_some_and(|found| births(ours) == Some(found))
}

/// Whether an absolute path, however written, is `folder` or something in it. `/var/run` is `/run` in nearly every image.
fn is_at_or_below(path: &str, folder: &str) -> bool {
    let mut words: Vec<&str> = Vec::new();
    for word in path.split('/') {
        match word {
            "" | "." => {}
            ".." => drop(words.pop()),
            word => words.push(word),
        }
    }
    if words.starts_with(&["var", "run"]) {
        words.remove(0);
    }
    let folder: Vec<&str> = folder.split('/').filter(|word| !word.is_empty()).collect();
    words.starts_with(&folder)
}

/// Adds pairs behind those that the container has, but none that is there already.
fn configure_git(env: &mut Vec<Value>, git: &[(String, String)]) -> Result<(), AmendError> {
    if git.is_empty() {
        return Ok(());
    }
    let written = find(env, COUNT).unwrap_or_default().to_owned();
    let read = if written.is_empty() {
        Some(0)
    } else {
        written.parse::<usize>().ok().filter(|count| *count < 10_000)
    };
    let Some(mut count) = read else {
        return Err(AmendError {
            place: "/process/env".into(),
            reason: format!("{COUNT}={written:?} is no count that git would take; remove it"),
        });
    };
    for (key, value) in git {
        let there = (0..count).any(|at| {
            find(env, &format!("GIT_CONFIG_KEY_{at}")) == Some(key)
                && find(env, &format!("GIT_CONFIG_VALUE_{at}")) == Some(value)
        });
        if there {
            continue;
        }
        set(env, &format!("GIT_CONFIG_KEY_{count}"), key);
        set(env, &format!("GIT_CONFIG_VALUE_{count}"), value);
        count += 1;
    }
    set(env, COUNT, &count.to_string());
    Ok(())
}

/// Replaces a variable: the place of its first mention is kept, further ones go.
fn set(env: &mut Vec<Value>, variable: &str, value: &str) {
    let line = Value::String(format!("{variable}={value}"));
    let first = env.iter().position(|entry| is(entry, variable));
    let mut at = 0;
    env.retain(|entry| {
        at += 1;
        !is(entry, variable) || Some(at - 1) == first
    });
    match first.and_then(|first| env.get_mut(first)) {
        Some(entry) => *entry = line,
        None => env.push(line),
    }
}

/// Of several the last counts, as it does for a shell.
fn find<'a>(env: &'a [Value], variable: &str) -> Option<&'a str> {
    let value = |entry: &'a Value| entry.as_str()?.strip_prefix(variable)?.strip_prefix('=');
    env.iter().rev().find_map(value)
}

fn is(entry: &Value, variable: &str) -> bool {
    entry.as_str().and_then(|entry| entry.split_once('=')).is_some_and(|(name, _)| name == variable)
}
