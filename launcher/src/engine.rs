//! What only the engine knows: how containers are called that never started, or were renamed.

use std::collections::HashMap;
use std::process::{Command, Stdio};
use terok_install::podman;
use terok_policy::layout;

/// Id and name of the container that Podman knows by `text`.
pub(crate) fn container(text: &str) -> Option<(String, String)> {
    let said = ask(&["container", "inspect", "--format", "{{.Id}} {{.Name}}", text])?;
    pair(said.trim())
}

/// The names of all containers Podman has, by id; none where it does not answer.
pub(crate) fn names() -> HashMap<String, String> {
    let said = ask(&["ps", "--all", "--no-trunc", "--format", "{{.ID}} {{.Names}}"]).unwrap_or_default();
    said.lines().filter_map(pair).collect()
}

/// `ID NAME`, and nothing that only looks like it.
fn pair(line: &str) -> Option<(String, String)> {
    let (id, name) = line.split_once(' ')?;
    let is_id = id.len() == 64 && id.bytes().all(|digit| digit.is_ascii_hexdigit());
    (is_id && layout::is_container_id(name)).then(|| (id.to_owned(), name.to_owned()))
}

fn ask(arguments: &[&str]) -> Option<String> {
    let podman = podman::find().ok()?;
    let output =
        Command::new(podman).args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
