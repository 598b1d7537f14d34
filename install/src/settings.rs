//! What `config.toml` of the machine and of a person say, read as the hook reads them.

use crate::host::Host;
use std::path::Path;
use terok_policy::settings::Settings;

/// Both, the person's over the machine's.
///
/// # Errors
/// The first file that cannot be read, in one line that names it: then no protected container starts.
pub fn read(host: &Host) -> Result<Settings, String> {
    host.settings_files().iter().try_fold(Settings::default(), |below, path| {
        Ok(match file(path)? {
            Some(settings) => settings.over(below),
            None => below,
        })
    })
}

/// One file; nothing where there is none.
pub(crate) fn file(path: &Path) -> Result<Option<Settings>, String> {
    match std::fs::read_to_string(path) {
        Ok(text) => {
            Settings::parse(&path.display().to_string(), &text).map(Some).map_err(|error| error.to_string())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{tests_file, tests_host};
    use terok_policy::layout;

    #[test]
    fn a_persons_words_stand_over_the_machines_and_what_cannot_be_read_is_named() {
        let root = tempfile::tempdir().unwrap();
        let host = tests_host(root.path(), 1001);
        assert_eq!(read(&host).unwrap(), Settings::default());
        tests_file(&host, layout::CONFIG_SYSTEM, "upstream_proxy = \"http://machine.example:1\"\n");
        let upstream = |host: &Host| read(host).unwrap().upstream.unwrap().host;
        assert_eq!(upstream(&host), "machine.example");
        let own = host.home.join(layout::CONFIG_USER);
        tests_file(&host, own.to_str().unwrap(), "upstream_proxy = \"http://own.example:2\"\n");
        assert_eq!(upstream(&host), "own.example");
        tests_file(&host, own.to_str().unwrap(), "upstream_proxy = 3\n");
        assert!(read(&host).unwrap_err().contains("config.toml"));
    }
}
