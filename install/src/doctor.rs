//! `terok doctor`: whether a container started now would be protected, and what on this host is in the way.

use crate::consulted::consulted;
use crate::engine;
use crate::findings;
use crate::hook_json::Containers;
use crate::host::Host;
use crate::{podman, shim_findings, trial};
use serde::Serialize;
use terok_policy::control::Status;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, but could be better or safer.
    Warn,
    /// Containers are not protected, or do not start.
    Fail,
}

/// One thing looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// `kernel`, `engine`, `shim`, `configuration`, `container` (one without a network card) or `network` (one with a card).
    pub area: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub what: String,
    /// What to do; empty where there is nothing to do.
    pub remedy: String,
}

impl Finding {
    /// As it should be.
    pub fn ok(area: &'static str, what: impl Into<String>) -> Self {
        Finding { area, level: Level::Ok, what: what.into(), remedy: String::new() }
    }
    /// Worth a look, with what to do.
    pub fn warn(area: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Finding { area, level: Level::Warn, what: what.into(), remedy: remedy.into() }
    }
    /// In the way, with what to do.
    pub fn fail(area: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Finding { area, level: Level::Fail, what: what.into(), remedy: remedy.into() }
    }
}

/// How the supervisor of a container (by id) is asked for its status.
pub type Ask<'a> = &'a dyn Fn(&str) -> Result<Status, String>;

/// Looks at kernel, engine and configuration, then starts a throw-away container.
pub fn examine(host: &Host, ask: Ask<'_>) -> Vec<Finding> {
    let mut found = findings::kernel(host);
    let podman = match podman::find() {
        Ok(podman) => podman,
        Err(error) => {
            let others = engine::machines(host);
            found.push(match others.is_empty() {
                true => Finding::fail("engine", error.to_string(), ""),
                false => Finding::ok("engine", "no podman, so no hooks: other engines call the shim"),
            });
            found.extend(shim_findings::findings(host));
            // What keeps the shim from starting anything as it keeps the hooks.
            found.extend(findings::folders(host));
            found.extend(findings::settings(host));
            found.extend(findings::panic(host));
            return found;
        }
    };
    found.extend(findings::engine(&podman));
    found.extend(shim_findings::findings(host));
    found.extend(findings::configuration(host));
    found.extend(findings::folders(host));
    found.extend(findings::networks(host));
    let settings = findings::settings(host);
    let mut nothing_starts = settings.iter().any(|finding| finding.level == Level::Fail);
    found.extend(settings);
    let panics = findings::panic(host);
    nothing_starts |= !panics.is_empty();
    found.extend(panics);
    match consulted(host) {
        Ok(consulted) => {
            found.push(Finding::ok(
                "configuration",
                format!(
                    "podman reads terok's hooks; they run the programs in {}",
                    consulted.bin_dir.display()
                ),
            ));
            // Why is said above; a container that does not start would only say it again.
            if nothing_starts {
                return found;
            }
            if consulted.containers == Containers::All {
                found.push(findings::all_containers(host));
            }
            let trial = trial::container(host, &podman, ask);
            if trial.iter().any(|finding| finding.level == Level::Fail) {
                found.extend(findings::netfilter(host));
            }
            found.extend(trial);
        }
        Err(error) => found.push(Finding::fail("configuration", error.to_string(), "")),
    }
    found
}
