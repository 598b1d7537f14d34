//! The hooks of terok: at which stages they run and how. `terok setup` writes them where Podman reads them; the shim puts them into
//! the configuration itself, for engines that read none and containers whose engine was told to read others.

use super::{AmendError, list, object};
use crate::layout;
use serde_json::{Value, json};

/// One of our hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    /// The stage's name in `hooks` of a configuration and in Podman's hook files.
    pub stage: &'static str,
    /// `terok-hook`'s argument.
    pub verb: &'static str,
    /// Seconds after which the engine or the runtime kills the hook, which stops a start.
    pub timeout: u32,
}

/// Puts the container under its rules, or stops the start.
pub const CREATE: Hook = Hook { stage: "createRuntime", verb: "create", timeout: 20 };
/// Podman's own stage: edits the configuration.
pub const PRECREATE: Hook = Hook { stage: "precreate", verb: "precreate", timeout: 10 };
/// Tidies.
pub const STOP: Hook = Hook { stage: "poststop", verb: "stop", timeout: 5 };

/// Tells the hook that it is run for every container.
pub const ALL: &str = "--all";

/// The whole environment of a hook. It must not be empty: Podman drops an empty list, and the hook would inherit conmon's.
pub const ENVIRONMENT: [&str; 1] = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"];

/// The hook program as it is installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installed {
    /// Absolute path.
    pub program: String,
    /// The home directory of a user's own installation.
    pub home: Option<String>,
    /// Every container is protected.
    pub all: bool,
}

impl Installed {
    /// The hook's command line, its own name first.
    pub fn arguments(&self, hook: &Hook) -> Vec<String> {
        let mut arguments = vec![layout::HOOK.to_owned(), hook.verb.to_owned()];
        arguments.extend(self.home.as_ref().map(|home| format!("--home={home}")));
        arguments.extend(self.all.then(|| ALL.to_owned()));
        arguments
    }
}

/// Adds [`CREATE`] and [`STOP`] to an OCI `config.json`, behind the hooks that it has: theirs may be what makes the network. A stage
/// that has ours already keeps it.
pub fn inject(config: Value, installed: &Installed) -> Result<Value, AmendError> {
    let mut config = config;
    for hook in [&CREATE, &STOP] {
        let hooks = object(&mut config, &["hooks"])?;
        let at_stage = list(hooks, hook.stage, &format!("/hooks/{}", hook.stage))?;
        if !at_stage.iter().any(|there| is_ours(there, hook)) {
            at_stage.push(json!({
                "path": installed.program,
                "args": installed.arguments(hook),
                "env": ENVIRONMENT,
                "timeout": hook.timeout,
            }));
        }
    }
    Ok(config)
}

fn is_ours(there: &Value, hook: &Hook) -> bool {
    let path = there.get("path").and_then(Value::as_str).unwrap_or_default();
    let is_program = path.starts_with('/') && path.rsplit('/').next() == Some(layout::HOOK);
    is_program && there.pointer("/args/1").is_some_and(|verb| verb == hook.verb)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installed() -> Installed {
        Installed { program: "/usr/libexec/terok/terok-hook".into(), home: None, all: false }
    }

    #[test]
    fn our_hooks_come_behind_the_engines_and_only_once() {
        let network = json!({ "path": "/usr/bin/nerdctl", "args": ["nerdctl", "internal", "oci-hook", "createRuntime"] });
        let config = json!({ "hooks": { "createRuntime": [network], "poststop": null } });
        let once = inject(config, &installed()).unwrap();
        assert_eq!(once["hooks"]["createRuntime"][0], network);
        assert_eq!(
            once["hooks"]["createRuntime"][1],
            json!({ "path": "/usr/libexec/terok/terok-hook", "args": ["terok-hook", "create"],
                "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "timeout": 20 })
        );
        assert_eq!(once["hooks"]["poststop"][0]["args"], json!(["terok-hook", "stop"]));
        assert_eq!(inject(once.clone(), &installed()).unwrap(), once);
    }

    #[test]
    fn hooks_of_podmans_files_are_ours_wherever_they_are_installed() {
        let theirs =
            Installed { program: "/home/u/bin/terok-hook".into(), home: Some("/home/u".into()), all: true };
        let config = inject(json!({}), &theirs).unwrap();
        assert_eq!(
            config["hooks"]["createRuntime"][0]["args"],
            json!(["terok-hook", "create", "--home=/home/u", "--all"])
        );
        assert_eq!(inject(config.clone(), &installed()).unwrap(), config);
    }

    #[test]
    fn what_only_looks_like_our_hook_does_not_replace_it() {
        for other in [
            json!({ "path": "/usr/bin/true", "args": ["terok-hook", "create"] }),
            json!({ "path": "/usr/libexec/terok/terok-hook", "args": ["terok-hook", "stop"] }),
            json!({ "path": "/usr/libexec/terok/terok-hook" }),
            json!({ "path": "terok-hook", "args": ["terok-hook", "create"] }),
        ] {
            let config = json!({ "hooks": { "createRuntime": [other] } });
            let injected = inject(config, &installed()).unwrap();
            assert_eq!(injected["hooks"]["createRuntime"].as_array().unwrap().len(), 2, "{injected}");
        }
        assert!(inject(json!({ "hooks": [] }), &installed()).is_err());
    }
}
