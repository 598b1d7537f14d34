//! What is asked for: the container's annotations, and the host's settings over or under them.

use crate::argv::Request;
use crate::catalog;
use crate::origin::Origin;
use crate::place::Place;
use crate::refusal::Refusal;
use crate::state::{Annotations, read_file};
use std::path::{Path, PathBuf};
use terok_policy::settings::{Settings, Upstream};
use terok_policy::{Policy, annotation, layout, tighten};

const SETTINGS_LIMIT: u64 = 1 << 20;

/// A policy, and how the host reaches the outside.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) policy: Policy,
    pub(crate) upstream: Option<Upstream>,
}

/// Reads both for the owner of `place`. Where every container is protected, its own annotations may only tighten what the
/// settings say; what it has from them is not the image's word.
pub(crate) fn read(
    request: &Request,
    ours: &Annotations,
    place: &Place,
    origin: &Origin,
) -> Result<Asked, Refusal> {
    let catalog = catalog::read(place.home())?;
    let settings = settings_of(place)?;
    let own = annotation::parse(ours, &catalog)?;
    if !ours.is_empty() || matches!(origin, Origin::Docker(_)) {
        origin.check(ours, &own)?;
    }
    let policy = match request.all {
        true => tighten::under(&settings.all_containers, ours, &catalog)?,
        false => own,
    };
    Ok(Asked { policy, upstream: settings.upstream })
}

/// The policy alone, for a container that runs: its annotations have been judged.
pub(crate) fn policy(request: &Request, ours: &Annotations, place: &Place) -> Result<Policy, Refusal> {
    let catalog = catalog::read(place.home())?;
    match request.all {
        true => Ok(tighten::under(&settings_of(place)?.all_containers, ours, &catalog)?),
        false => Ok(annotation::parse(ours, &catalog)?),
    }
}

fn settings_of(place: &Place) -> Result<Settings, Refusal> {
    settings(&[place.home().join(layout::CONFIG_USER), layout::CONFIG_SYSTEM.into()])
}

/// The settings of the first file over those of the second.
fn settings([user, machine]: &[PathBuf; 2]) -> Result<Settings, Refusal> {
    Ok(one(user)?.over(one(machine)?))
}

fn one(file: &Path) -> Result<Settings, Refusal> {
    let name = file.display().to_string();
    match file.symlink_metadata() {
        Err(error) if is_absent(&error) => return Ok(Settings::default()),
        _ => {}
    }
    let text = read_file(file, SETTINGS_LIMIT).map_err(|error| Refusal::input(&name, error))?;
    let text = String::from_utf8(text).map_err(|_| Refusal::input(&name, "is not UTF-8"))?;
    Ok(Settings::parse(&name, &text)?)
}

fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_settings_stand_over_the_machines_and_neither_needs_to_be_there() {
        let folder = tempfile::tempdir().unwrap();
        let files = [folder.path().join("user"), folder.path().join("machine")];
        assert_eq!(settings(&files).unwrap(), Settings::default());
        let both =
            "upstream_proxy = \"http://machine.example:1\"\n[all_containers]\n\"terok.shield\" = \"block\"\n";
        std::fs::write(&files[1], both).unwrap();
        std::fs::write(&files[0], "upstream_proxy = \"socks5://user.example:2\"\n").unwrap();
        let read = settings(&files).unwrap();
        assert_eq!(read.upstream.unwrap().host, "user.example");
        assert_eq!(read.all_containers["terok.shield"], "block");
    }

    #[test]
    fn settings_that_are_wrong_or_unreadable_stop_every_start_and_name_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let files = [folder.path().join("user"), folder.path().join("machine")];
        for wrong in ["upstream = \"x\"".as_bytes(), &[0xff]] {
            std::fs::write(&files[0], wrong).unwrap();
            let error = settings(&files).unwrap_err().to_string();
            assert!(error.contains(&files[0].display().to_string()), "{error}");
        }
        std::fs::remove_file(&files[0]).unwrap();
        std::os::unix::fs::symlink("/nowhere", &files[0]).unwrap();
        assert!(settings(&files).is_err());
    }
}
