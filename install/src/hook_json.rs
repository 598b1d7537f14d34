//! The three hook files that Podman reads: written from one table, and recognised by it.
//! Format: oci-hooks(5), version 1.0.0.

use crate::target::{Scope, Target};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use terok_policy::amend::hooks::{self, ALL, ENVIRONMENT, Hook, Installed};
use terok_policy::{annotation, layout};

/// One of our hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage {
    /// File name in the hooks directory.
    pub file: &'static str,
    /// What runs, and when.
    pub hook: Hook,
}

/// In the order they are installed. `create` comes first and goes last: alone it refuses every start, while
/// `precreate` alone would let a container through without its table.
pub const STAGES: [Stage; 3] = [
    Stage { file: "50-terok-create.json", hook: hooks::CREATE },
    Stage { file: "50-terok-precreate.json", hook: hooks::PRECREATE },
    Stage { file: "50-terok-stop.json", hook: hooks::STOP },
];

/// A hook file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookFile {
    /// `1.0.0`
    pub version: String,
    /// What is run.
    pub hook: Program,
    /// For which containers; all conditions must hold.
    pub when: When,
    /// At which stages.
    pub stages: Vec<String>,
}

/// The program of a hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// Absolute path.
    pub path: PathBuf,
    /// With the program's own name first.
    #[serde(default)]
    pub args: Vec<String>,
    /// `KEY=value`
    #[serde(default)]
    pub env: Vec<String>,
    /// Seconds.
    #[serde(default)]
    pub timeout: Option<u32>,
}

/// The condition of a hook.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct When {
    /// For every container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub always: Option<bool>,
    /// Regular expression for a key → regular expression for its value.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Which containers the hooks are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Containers {
    /// Those with a `terok.` annotation.
    Annotated,
    /// Every one: those without annotations get what the settings say.
    All,
}

impl Stage {
    /// The file for an installation at `target`.
    pub fn file_for(&self, target: &Target, containers: Containers) -> HookFile {
        let program = target.bin_dir().join(layout::HOOK);
        let home = match &target.scope {
            Scope::User { home } => Some(home.display().to_string()),
            Scope::System => None,
        };
        let all = containers == Containers::All;
        let installed = Installed { program: program.display().to_string(), home, all };
        let when = match containers {
            Containers::Annotated => {
                When { annotations: BTreeMap::from([(condition(), ".*".to_owned())]), ..When::default() }
            }
            Containers::All => When { always: Some(true), ..When::default() },
        };
        HookFile {
            version: "1.0.0".to_owned(),
            hook: Program {
                path: program,
                args: installed.arguments(&self.hook),
                env: ENVIRONMENT.map(str::to_owned).to_vec(),
                timeout: Some(self.hook.timeout),
            },
            when,
            stages: vec![self.hook.stage.to_owned()],
        }
    }

    /// For which containers `file` is this hook, where it is that of some installation of terok.
    pub fn is_in(&self, file: &HookFile) -> Option<Containers> {
        let ours = file.hook.path.file_name().is_some_and(|name| name == layout::HOOK)
            && file.hook.args.get(1).is_some_and(|verb| verb == self.hook.verb)
            && file.stages.iter().any(|stage| stage == self.hook.stage);
        let all = file.hook.args.iter().any(|word| word == ALL);
        match (&file.when.always, file.when.annotations.get(&condition()).map(String::as_str)) {
            _ if !ours => None,
            (Some(true), None) if all && file.when.annotations.is_empty() => Some(Containers::All),
            (None, Some(".*")) if !all => Some(Containers::Annotated),
            _ => None,
        }
    }
}

impl HookFile {
    /// The text as installed.
    pub fn text(&self) -> String {
        // Strings, numbers and lists of them always serialise.
        serde_json::to_string_pretty(self).map(|text| text + "\n").unwrap_or_default()
    }
}

/// Matches the prefix, so that a misspelt key still summons the hook, which refuses it (A1).
fn condition() -> String {
    format!("^{}", annotation::PREFIX.replace('.', "\\."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_what_podman_expects() {
        let target = Target { scope: Scope::User { home: "/home/u".into() }, ..Target::tests_system() };
        assert_eq!(
            STAGES[0].file_for(&target, Containers::Annotated).text(),
            r#"{
  "version": "1.0.0",
  "hook": {
    "path": "/home/u/.local/share/terok/bin/terok-hook",
    "args": [
      "terok-hook",
      "create",
      "--home=/home/u"
    ],
    "env": [
      "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
    ],
    "timeout": 20
  },
  "when": {
    "annotations": {
      "^terok\\.": ".*"
    }
  },
  "stages": [
    "createRuntime"
  ]
}
"#
        );
        let system = Target::tests_system();
        assert_eq!(STAGES[0].file_for(&system, Containers::Annotated).hook.args, ["terok-hook", "create"]);
        let all = STAGES[0].file_for(&system, Containers::All);
        assert_eq!(all.hook.args, ["terok-hook", "create", "--all"]);
        assert!(all.text().contains("\"when\": {\n    \"always\": true\n  }"), "{}", all.text());
    }

    #[test]
    fn a_file_is_recognised_by_program_verb_stage_and_condition() {
        let target = Target::tests_system();
        let ours = STAGES[1].file_for(&target, Containers::Annotated);
        assert_eq!(STAGES[1].is_in(&ours), Some(Containers::Annotated));
        assert_eq!(STAGES[1].is_in(&STAGES[1].file_for(&target, Containers::All)), Some(Containers::All));
        assert_eq!(STAGES[0].is_in(&ours), None);
        let not = |change: &dyn Fn(&mut HookFile)| {
            let mut other = ours.clone();
            change(&mut other);
            assert_eq!(STAGES[1].is_in(&other), None, "{other:?}");
        };
        // `when: {}` never runs.
        not(&|file| file.when = When::default());
        not(&|file| file.when = When { always: Some(true), ..When::default() });
        not(&|file| file.when.always = Some(false));
        not(&|file| file.hook.args.push(ALL.to_owned()));
        not(&|file| file.stages.clear());
        not(&|file| file.hook.path = "/usr/bin/true".into());
    }
}
