//! Whose container this is, and where its folders are (L6). What cannot be decided is refused, not guessed.

use crate::argv::Request;
use crate::doors::Keep;
use crate::refusal::Refusal;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use terok_kernel::statedir::Dir;
use terok_kernel::userns::{self, Owner};
use terok_policy::layout;

/// The owner's places.
#[derive(Debug)]
pub(crate) struct Place {
    owner: Owner,
    home: PathBuf,
}

impl Place {
    /// From the uid map and the home that was pinned at installation, else the one in `/etc/passwd`.
    pub(crate) fn find(request: &Request) -> Result<Self, Refusal> {
        let owner = userns::owner()?;
        let home = match &request.home {
            Some(home) => home.clone(),
            None => home_of(owner)?,
        };
        Ok(Place { owner, home })
    }

    /// The owner's uid.
    pub(crate) fn uid(&self) -> u32 {
        match self.owner {
            Owner::Root => 0,
            Owner::User(uid) => uid,
        }
    }

    /// The owner's home directory.
    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    /// Refuses every start while `terok panic` is in force, the owner's or the machine's.
    pub(crate) fn refuse_in_panic(&self) -> Result<(), Refusal> {
        let own = self.home.join(layout::STATE_USER).join(layout::PANIC);
        let own = (self.owner != Owner::Root).then_some((own, "terok panic --clear"));
        for (marker, command) in
            own.into_iter().chain([(layout::PANIC_ROOTFUL.into(), "sudo terok panic --clear")])
        {
            match marker.symlink_metadata() {
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
                Err(error) => return Err(Refusal::input(marker.display().to_string(), error)),
                Ok(_) => {
                    return Err(Refusal::Guard(format!(
                        "`terok panic` is in force, so no protected container starts; `{command}` lifts it"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Refuses folders that [`Place::runtime`] and [`Place::state`] would refuse, and makes none.
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        self.existing_runtime()?;
        match self.owner {
            Owner::Root => existing(Path::new(layout::STATE_ROOTFUL))?,
            Owner::User(_) => existing(&self.home.join(layout::STATE_USER))?,
        };
        Ok(())
    }

    /// The folder of runtime folders, where it is there already.
    pub(crate) fn existing_runtime(&self) -> Result<Option<Dir>, Refusal> {
        match self.login()? {
            Some(base) => Ok(base.private(layout::RUN_USER)?),
            None => existing(Path::new(layout::RUN_ROOTFUL)),
        }
    }

    /// The folder of runtime folders, made where there is none.
    pub(crate) fn runtime(&self) -> Result<Dir, Refusal> {
        match self.login()? {
            Some(base) => Ok(base.make_private(layout::RUN_USER)?),
            None => private(layout::RUN_ROOTFUL),
        }
    }

    /// Where the owner's vault is, or would be.
    pub(crate) fn vault_path(&self) -> PathBuf {
        match self.owner {
            Owner::Root => layout::VAULT_ROOTFUL.into(),
            Owner::User(_) => self.home.join(layout::VAULT_USER),
        }
    }

    /// The vault's folder, made where there is none: a vault that is made later is found in it.
    pub(crate) fn vault(&self) -> Result<Dir, Refusal> {
        self.kept(layout::VAULT_ROOTFUL, layout::VAULT_USER)
    }

    /// What of the owner's no container may mount, but for `given`.
    pub(crate) fn keep<'a>(&self, given: Option<&'a Path>) -> Keep<'a> {
        Keep { uid: self.uid(), vault: self.vault_path(), given }
    }

    /// The user's own folder of a login session; none for root.
    fn login(&self) -> Result<Option<Dir>, Refusal> {
        let Owner::User(uid) = self.owner else { return Ok(None) };
        let base = format!("/run/user/{uid}");
        match Dir::base(Path::new(&base)) {
            Ok(base) => Ok(Some(base)),
            Err(error) if error.is_missing() => Err(Refusal::Place(format!(
                "{base} does not exist; log in, or run `loginctl enable-linger` for this user"
            ))),
            Err(error) => Err(error.into()),
        }
    }

    /// The folder of state folders, made where there is none.
    pub(crate) fn state(&self) -> Result<Dir, Refusal> {
        self.kept(layout::STATE_ROOTFUL, layout::STATE_USER)
    }

    /// A folder of the owner's that outlives a login, made where there is none: `rootful`, or `user` below their home.
    fn kept(&self, rootful: &str, user: &str) -> Result<Dir, Refusal> {
        if self.owner == Owner::Root {
            return private(rootful);
        }
        let (shared, name) = user.rsplit_once('/').ok_or_else(|| Refusal::Place(user.into()))?;
        Ok(Dir::base(&self.home)?.make_shared(shared)?.make_private(name)?)
    }
}

/// A folder of terok's own, where it is there already.
fn existing(path: &Path) -> Result<Option<Dir>, Refusal> {
    let (Some(base), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Err(Refusal::Place(path.display().to_string()));
    };
    match Dir::base(base) {
        Ok(base) => Ok(base.private(name)?),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A folder of terok's own below one of the system's.
fn private(path: &str) -> Result<Dir, Refusal> {
    match path.rsplit_once('/') {
        Some((base, name)) => Ok(Dir::base(Path::new(base))?.make_private(name)?),
        None => Err(Refusal::Place(path.into())),
    }
}

fn home_of(owner: Owner) -> Result<PathBuf, Refusal> {
    let uid = match owner {
        Owner::Root => 0,
        Owner::User(uid) => uid,
    };
    let passwd = std::fs::read_to_string("/etc/passwd").map_err(Refusal::io("read /etc/passwd"))?;
    let entry = userns::passwd_entry(&passwd, uid);
    let (_, home) = entry.ok_or_else(|| {
        Refusal::Place(format!("uid {uid} is not in /etc/passwd; run `terok setup` as that user"))
    })?;
    Ok(home)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_starts_while_a_user_panics_and_root_does_not_ask_that_users_marker() {
        let home = tempfile::tempdir().unwrap();
        let of = |owner| Place { owner, home: home.path().into() };
        of(Owner::User(1001)).refuse_in_panic().unwrap();
        let marker = home.path().join(layout::STATE_USER).join(layout::PANIC);
        std::fs::create_dir_all(marker.parent().unwrap()).unwrap();
        std::fs::write(marker, "").unwrap();
        let refused = of(Owner::User(1001)).refuse_in_panic().unwrap_err().to_string();
        assert!(refused.contains("`terok panic --clear`"), "{refused}");
        of(Owner::Root).refuse_in_panic().unwrap();
    }
}
