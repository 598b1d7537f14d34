//! containerd, as a Kubernetes node has it: a runtime handler in the table of its CRI plugin. The file belongs to the machine's
//! people: what they wrote, comments too, stays octet by octet.
//!
//! The handler is the default runtime over again, with the shim before it, so that a pod under it is set up as any other
//! (`SystemdCgroup` must agree with the kubelet). Two things containerd 1 does are why this is no drop-in: a file in `imports` that
//! names the plugin replaces the plugin's whole table, and a table that names any runtime displaces the built-in `runc`.

mod file;

use crate::doctor::Finding;
use crate::engine::{Hidden, Registered, Removal};
use crate::host::Host;
use crate::process::{command_lines, is_called, option};
use crate::setup::{SetupError, Step};
use crate::target::{Scope, Target};
use file::{File, is_ours};
use std::path::Path;
use terok_policy::layout;

/// containerd's configuration (containerd-config.toml(5)).
const FILE: &str = "/etc/containerd/config.toml";
/// Where the daemon answers.
const SOCKET: &str = "/run/containerd/containerd.sock";
/// Containers run on meanwhile.
pub(super) const RELOAD: &str = "systemctl restart containerd";
/// What a file begins with that is made where there is none: containerd 2.2 reads this folder by itself only then.
const FRESH: &str = "# Made by `terok setup`, taken away by `terok uninstall`.\nversion = 2\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n";

pub(super) fn registered(target: &Target) -> Result<Registered, SetupError> {
    let Some(file) = File::of(target)? else { return Ok(Registered::No) };
    Ok(match (file.handler().is_some_and(is_ours), file.default() == layout::ENGINE_RUNTIME) {
        (false, _) => Registered::No,
        (true, false) => Registered::Named,
        (true, true) => Registered::Default,
    })
}

pub(super) fn register(host: &Host, target: &Target, default: bool) -> Result<Vec<Step>, SetupError> {
    let path = target.at(Path::new(FILE));
    let refused = |path: &Path, reason: String| Err(SetupError::Engine { path: path.to_path_buf(), reason });
    if let Scope::User { .. } = target.scope {
        return refused(
            Path::new(FILE),
            "containerd is the machine's: as root, terok setup --engine containerd".to_owned(),
        );
    }
    if let Some(other) = other_file(&target.machine(host)) {
        return refused(
            &path,
            format!(
                "the running containerd reads {other} in its place: add the handler there (docs/kubernetes.md)"
            ),
        );
    }
    let (mut file, made) = match File::of(target)? {
        Some(file) => (file, false),
        None => (File::parse(path.clone(), FRESH)?, true),
    };
    if let Err(reason) = file.add(target, default) {
        return refused(&file.path, reason);
    }
    let text = file.document.to_string();
    Ok(vec![if made { Step::Text { to: path, text } } else { Step::Amended { to: file.path, text } }])
}

pub(super) fn unregister(target: &Target) -> Result<Removal, SetupError> {
    let Some(mut file) = File::of(target)? else { return Ok(Removal::default()) };
    match file.handler() {
        None => return Ok(Removal::default()),
        Some(handler) if !is_ours(handler) => {
            let note = format!(
                "{}: the runtime {} is not terok's and stays",
                file.path.display(),
                layout::ENGINE_RUNTIME
            );
            return Ok(Removal { steps: Vec::new(), notes: vec![note] });
        }
        Some(_) => {}
    }
    file.remove();
    let text = file.document.to_string();
    let step = match text == FRESH {
        true => Step::Remove(file.path),
        false => Step::Amended { to: file.path, text },
    };
    Ok(Removal { steps: vec![step], notes: Vec::new() })
}

/// Whether the running containerd has read its file since somebody wrote it; nothing where none runs. Its socket is made anew at each
/// start.
pub(super) fn hidden(host: &Host, target: &Target, registered: Registered) -> Option<Hidden> {
    let file = File::of(target).ok()?.map(|file| file.path);
    // Of a file that was taken away its folder knows when.
    let place = file.or_else(|| target.at(Path::new(FILE)).parent().map(Path::to_path_buf))?;
    let written = place.metadata().ok()?.modified().ok()?;
    let started = std::fs::symlink_metadata(host.at(SOCKET)).ok()?.modified().ok()?;
    if started >= written {
        return None;
    }
    let what = format!("containerd has not read {FILE} since it was written");
    let finding = match registered {
        Registered::Default => Finding::fail(
            "shim",
            format!("{what}: pods that name no runtime class may start without protection"),
            format!("run: {RELOAD}"),
        ),
        _ => Finding::warn("shim", what, format!("run: {RELOAD}")),
    };
    Some(Hidden { finding, reload_mends: true })
}

/// The file that a running containerd reads, where none reads ours. Docker's own, below `/var/run/docker` or `/run/docker`, starts
/// no pods.
fn other_file(host: &Host) -> Option<String> {
    let daemons = command_lines(host).into_iter().filter(|words| is_called(words, "containerd"));
    let files =
        daemons.map(|words| option(&words, &["-c", "--config", "-config"]).unwrap_or(FILE).to_owned());
    let mut files: Vec<_> = files.filter(|file| !file.contains("run/docker/")).collect();
    if files.iter().any(|file| file == FILE) { None } else { files.pop() }
}

#[cfg(test)]
mod tests;
