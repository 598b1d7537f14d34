//! `all_containers` in `shim.toml`, so that hooks and shim are for the same containers. The rest of the file is somebody's own.

use crate::setup::{SetupError, Step};
use crate::target::Target;

const KEY: &str = "all_containers";

/// What is written: the whole file, or its first line. By the comment it is known again.
const LINE: &str = "all_containers = true # by `terok setup --all-containers`\n";

/// Makes the shim protect every container, or takes that back; nothing where it is so, or where somebody else has said so.
pub(crate) fn step(target: &Target, all: bool) -> Result<Option<Step>, SetupError> {
    let to = target.at(&target.shim_settings());
    let failed = |reason: String| SetupError::Settings { path: to.clone(), reason };
    let text = match std::fs::read_to_string(&to) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        read => read.map_err(|error| failed(error.to_string()))?,
    };
    let without = text.replacen(LINE, "", 1);
    let amended = match (all, says(&without).map_err(failed)?) {
        (true, Some(true)) | (false, _) => without,
        (true, None) => format!("{LINE}{without}"),
        (true, Some(false)) => {
            return Err(failed(format!("{KEY} = false is against --all-containers: take it out")));
        }
    };
    Ok(match amended {
        same if same == text => None,
        nothing if nothing.is_empty() => Some(Step::Remove(to)),
        text => Some(Step::Amended { to, text }),
    })
}

/// What a file says, if anything.
pub(crate) fn says(text: &str) -> Result<Option<bool>, String> {
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| error.message().to_owned())?;
    Ok(table.get(KEY).and_then(toml::Value::as_bool))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::tests_host;
    use crate::setup::apply;

    #[test]
    fn one_line_comes_and_goes_and_a_file_of_its_own_with_it() {
        let root = tempfile::tempdir().unwrap();
        let target = Target::of(&tests_host(root.path(), 1001), false, None);
        let file = target.at(&target.shim_settings());
        let set = |all| {
            apply(&step(&target, all).unwrap().into_iter().collect::<Vec<_>>()).unwrap();
            assert_eq!(step(&target, all).unwrap(), None, "twice is once");
            std::fs::read_to_string(&file).unwrap_or_default()
        };
        assert_eq!(set(false), "");
        assert_eq!(says(&set(true)), Ok(Some(true)));
        set(false);
        assert!(!file.exists());
        let own = "# ours\nruntime = \"/opt/crun\"";
        std::fs::write(&file, own).unwrap();
        assert_eq!(set(true), format!("{LINE}{own}"));
        assert_eq!(set(false), own);
        std::fs::write(&file, "all_containers = true\n").unwrap();
        assert_eq!(
            (set(true), set(false)),
            ("all_containers = true\n".into(), "all_containers = true\n".into())
        );
        for wrong in ["all_containers = false\n", "runtime = ["] {
            std::fs::write(&file, wrong).unwrap();
            assert!(step(&target, true).unwrap_err().to_string().contains("shim.toml"));
        }
    }
}
