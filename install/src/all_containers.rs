//! The table `[all_containers]` of the settings: the annotations that every container has where
//! `terok setup --all-containers` is in force. It is written once, and only where there is none.

use crate::setup::{SetupError, Step};
use crate::target::Target;

/// Name of the table.
const TABLE: &str = "all_containers";

/// What is written where there is nothing.
const TEXT: &str = "\
# Annotations of every container that podman starts, written by `terok setup --all-containers`.
# A container's own annotations may only tighten them. What they mean: terok explain KEY=VALUE.
[all_containers]
\"terok.shield\" = \"up\"
# \"terok.shield.profiles\" = \"dev-standard os-packages\"
# \"terok.shield.allow\" = \"registry.example.com\"
";

/// Adds the table to the settings of `target`, or makes the file. What stands there stays as it is.
pub(crate) fn step(target: &Target) -> Result<Option<Step>, SetupError> {
    let to = target.at(&target.settings());
    let failed = |reason: String| SetupError::Settings { path: to.clone(), reason };
    let text = match std::fs::read_to_string(&to) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(failed(error.to_string())),
    };
    let table: toml::Table =
        text.parse().map_err(|error: toml::de::Error| failed(error.message().to_owned()))?;
    if table.contains_key(TABLE) {
        return Ok(None);
    }
    let gap = match text.as_str() {
        "" => "",
        text if text.ends_with('\n') => "\n",
        _ => "\n\n",
    };
    Ok(Some(Step::Amended { to, text: format!("{text}{gap}{TEXT}") }))
}

/// Whether the settings are what [`step`] wrote, so that nobody misses them.
pub(crate) fn is_untouched(target: &Target) -> bool {
    std::fs::read_to_string(target.at(&target.settings())).is_ok_and(|text| text == TEXT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::apply;
    use crate::target::Scope;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn settings_that_are_there_keep_every_byte() {
        let root = tempfile::tempdir().unwrap();
        let target = Target {
            scope: Scope::System,
            config_home: "/home/u/.config".into(),
            destdir: root.path().into(),
        };
        let file = target.at(&target.settings());
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, "# ours\nno_proxy = []").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let mode = || std::fs::metadata(&file).unwrap().permissions().mode() & 0o777;
        apply(&step(&target).unwrap().into_iter().collect::<Vec<_>>()).unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(mode(), 0o600, "a password in it stays a secret");
        assert_eq!(text, format!("# ours\nno_proxy = []\n\n{TEXT}"));
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(table[TABLE]["terok.shield"].as_str(), Some("up"));
        let settings = terok_policy::settings::Settings::parse("config.toml", &text).unwrap();
        let policy = settings.all_policy(&terok_policy::profile::Catalog::bundled()).unwrap();
        assert!(policy.allow.is_empty(), "what is written by itself opens nothing");
        assert_eq!(step(&target).unwrap(), None);
        assert!(!is_untouched(&target));
        std::fs::write(&file, "no_proxy = [").unwrap();
        assert!(step(&target).unwrap_err().to_string().contains("config.toml"));
    }
}
