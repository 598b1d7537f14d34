//! Putting a file in place of another as a whole: whoever opens it finds the old one or the new one.

use std::fs::File;
use std::io::{Error, ErrorKind, Result, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;

/// Replaces the content of the file at `path`, keeping its mode and owner.
pub(crate) fn file(path: &Path, content: &[u8]) -> Result<()> {
    let before = std::fs::metadata(path)?;
    let (Some(folder), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Err(Error::new(ErrorKind::InvalidInput, "is no file in a folder"));
    };
    let fresh = folder.join(format!(".{name}.terok-{}", std::process::id()));
    let written = write(&fresh, content, &before).and_then(|()| std::fs::rename(&fresh, path));
    written.inspect_err(|_| {
        // What matters is why it could not be written.
        let _ = std::fs::remove_file(&fresh);
    })
}

fn write(path: &Path, content: &[u8], like: &std::fs::Metadata) -> Result<()> {
    let mut file = open(path).or_else(|error| match error.kind() {
        // Left by one that was killed, whose number comes round.
        ErrorKind::AlreadyExists => std::fs::remove_file(path).and_then(|()| open(path)),
        _ => Err(error),
    })?;
    let now = file.metadata()?;
    if (now.uid(), now.gid()) != (like.uid(), like.gid()) {
        fchown(&file, Some(like.uid()), Some(like.gid()))?;
    }
    file.set_permissions(like.permissions())?;
    file.write_all(content)
}

fn open(path: &Path) -> Result<File> {
    File::options().write(true).create_new(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn content_changes_and_mode_stays_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        for mode in [0o600, 0o644, 0o440] {
            std::fs::write(&path, "before").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            file(&path, b"after").unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"after");
            assert_eq!(path.metadata().unwrap().mode() & 0o777, mode);
            assert_eq!(folder.path().read_dir().unwrap().count(), 1);
            std::fs::remove_file(&path).unwrap();
        }
        assert!(file(&path, b"x").is_err(), "nothing is made where nothing was");
    }
}
