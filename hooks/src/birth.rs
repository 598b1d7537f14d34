//! What a container is born with where its policy grants credentials or keys: tokens, and the folder that it sees at
//! [`provision::INSIDE`]. `precreate` makes both anew at every start; `create` takes nothing for granted that is not there.
//!
//! crun and runc bind the folder by its path, after `createRuntime`: what precreate made must stay that very folder until the
//! container has ended. Nobody but its owner reaches it by path on the host, for the folders above are 0700; inside, every
//! user of the container may connect to the signer's socket in it.

use crate::guards::{self, Wanted};
use crate::refusal::Refusal;
use serde_json::Value;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use terok_kernel::statedir::Dir;
use terok_policy::policy::VaultGrant;
use terok_policy::provision::{self, Issued, Provision};
use terok_policy::{Policy, amend, layout, phantom};

const GRANTED_LIMIT: u64 = 64 << 10;
/// A folder of a container that never started is left alone for this long: it may be about to.
const ABANDONED: Duration = Duration::from_secs(3600);
/// Such folders that one start clears away, at most.
const CLEARED: usize = 32;

/// A container's birth folder.
#[derive(Debug)]
pub(crate) struct Birth {
    id: String,
    folder: Dir,
    /// What the container sees.
    pub(crate) inside: Dir,
    /// What it was given.
    pub(crate) issued: Issued,
    /// By this start, not found: who joins a network finds the folder of those that run there.
    made: bool,
}

impl Birth {
    /// Makes the folder of container `id` anew, below the owner's runtime folder `base`, with new tokens.
    pub(crate) fn make(base: &Dir, id: &str, policy: &Policy) -> Result<Self, Refusal> {
        let births = base.make_private(layout::BIRTH)?;
        prune(base, &births)?;
        let issued = issue(policy)?;
        let fresh = format!(".new-{id}");
        births.remove_tree(&fresh)?;
        let folder = births.make_private(&fresh)?;
        let inside = folder.make_open(layout::INSIDE)?;
        let json = serde_json::to_vec(&issued).map_err(|error| Refusal::input(layout::GRANTED, error))?;
        folder.write(layout::GRANTED, &json)?;
        births.remove_tree(id)?;
        births.rename(&fresh, id)?;
        let folder = folder.moved_to(births.path().join(id));
        let inside = inside.moved_to(folder.path().join(layout::INSIDE));
        let birth = Birth { id: id.to_owned(), folder, inside, issued, made: true };
        birth
            .inside
            .write_for_all(provision::ENV, provision::env_file(&birth.provision(policy)).as_bytes())?;
        Ok(birth)
    }

    /// The one that precreate made; `None` where there is none.
    pub(crate) fn open(base: &Dir, id: &str, policy: &Policy) -> Result<Option<Self>, Refusal> {
        let Some(births) = base.private(layout::BIRTH)? else { return Ok(None) };
        let Some(folder) = births.private(id)? else { return Ok(None) };
        let what = || folder.path().join(layout::GRANTED).display().to_string();
        let Some(json) = folder.read(layout::GRANTED, GRANTED_LIMIT)? else { return Ok(None) };
        let issued: Issued = serde_json::from_slice(&json).map_err(|error| Refusal::input(what(), error))?;
        if issued.tokens.len() != policy.vault.len() {
            return Ok(None);
        }
        let inside = folder.folder(layout::INSIDE)?;
        Ok(Some(Birth { id: id.to_owned(), folder, inside, issued, made: false }))
    }

    /// What the configuration is to carry.
    pub(crate) fn provision(&self, policy: &Policy) -> Provision {
        provision::provision(policy, &self.issued, &self.inside.path().display().to_string())
    }

    /// Whether `config` carries it: the mount and every variable.
    pub(crate) fn is_in(&self, config: &Value, policy: &Policy) -> bool {
        amend::provide(config.clone(), &self.provision(policy)).is_ok_and(|provided| provided == *config)
    }

    /// The signer's socket, bound anew.
    pub(crate) fn agent(&self) -> Result<UnixListener, Refusal> {
        self.inside.remove(provision::AGENT)?;
        Ok(self.inside.listen_for_all(provision::AGENT)?)
    }

    /// Takes the credentials that live with one run for this container; another's are refused.
    pub(crate) fn claim(&self, base: &Dir, policy: &Policy) -> Result<(), Refusal> {
        for reference in ephemeral(policy) {
            let folder = self.unclaimed(base, reference)?;
            let own = self.claimed(reference)?;
            if folder.read(&own, EPHEMERAL_LIMIT)?.is_none() {
                folder.rename(reference, &own)?;
            }
        }
        Ok(())
    }

    /// Refuses what [`Birth::claim`] would refuse.
    pub(crate) fn foresee(&self, base: &Dir, policy: &Policy) -> Result<(), Refusal> {
        ephemeral(policy).try_for_each(|reference| self.unclaimed(base, reference).map(drop))
    }

    fn unclaimed(&self, base: &Dir, reference: &str) -> Result<Dir, Refusal> {
        let gone = || {
            Refusal::Guard(
                "the credential given with --credential lives for one run, and that is over: start the container anew with `terok run --credential`"
                    .into(),
            )
        };
        let folder = base.private(layout::EPHEMERAL)?.ok_or_else(gone)?;
        for name in [reference.to_owned(), self.claimed(reference)?] {
            if folder.read(&name, EPHEMERAL_LIMIT)?.is_some() {
                return Ok(folder);
            }
        }
        Err(gone())
    }

    fn claimed(&self, reference: &str) -> Result<String, Refusal> {
        layout::claimed(reference, &self.id)
            .ok_or_else(|| Refusal::input(layout::EPHEMERAL, "no file has such a name"))
    }

    /// Removes the folder that was made for a container that will not start. One that was found stays: others live with it.
    pub(crate) fn abandon(&self) -> Result<(), Refusal> {
        if self.made { Ok(self.folder.remove_self()?) } else { Ok(()) }
    }
}

const EPHEMERAL_LIMIT: u64 = 64 << 10;

/// References of the credentials that live with one container.
fn ephemeral(policy: &Policy) -> impl Iterator<Item = &str> {
    policy.vault.iter().filter_map(VaultGrant::reference)
}

fn issue(policy: &Policy) -> Result<Issued, Refusal> {
    let mut tokens = Vec::new();
    for grant in &policy.vault {
        let mut random = [0; phantom::MOST];
        getrandom::fill(&mut random).map_err(|error| Refusal::input("the kernel's random numbers", error))?;
        tokens.push(phantom::token(&grant.provider.token, &random));
    }
    Ok(Issued { tokens })
}

/// Where the birth folder of a container is that joins another's network: the members of one network have one supervisor,
/// and so its tokens. `None`: it has a network of its own.
pub(crate) fn guard_of(config: &Value, base: &Dir) -> Result<Option<String>, Refusal> {
    match guards::wanted(config) {
        Wanted::Joined { holder } => crate::standing::guard_id(config, holder, base),
        _ => Ok(None),
    }
}

/// The folder that the configuration mounts at [`provision::INSIDE`], if it is one of ours: not a door.
pub(crate) fn mounted(config: &Value, base: &Dir) -> Option<PathBuf> {
    let source = source_inside(config)?;
    let below = source.strip_prefix(base.path().join(layout::BIRTH)).ok()?.to_str()?;
    let (id, last) = below.split_once('/')?;
    (layout::is_container_id(id) && last == layout::INSIDE).then_some(source)
}

/// What the configuration mounts at [`provision::INSIDE`], whoever put it there.
pub(crate) fn source_inside(config: &Value) -> Option<PathBuf> {
    let mut mounts = config.get("mounts").and_then(Value::as_array)?.iter();
    let mount =
        mounts.find(|mount| mount.get("destination").and_then(Value::as_str) == Some(provision::INSIDE))?;
    mount.get("source").and_then(Value::as_str).map(PathBuf::from)
}

/// Removes what starts that came to nothing have left.
fn prune(base: &Dir, births: &Dir) -> Result<(), Refusal> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let old = |modified: i64| now.saturating_sub(u64::try_from(modified).unwrap_or(0)) > ABANDONED.as_secs();
    if let Some(folder) = base.private(layout::EPHEMERAL)? {
        for entry in folder.list()?.into_iter().filter(|entry| !entry.folder && old(entry.modified)) {
            // Claimed, and its container's supervisor was killed before it could remove it; or never claimed.
            let (reference, id) = entry.name.split_once('.').unwrap_or((&entry.name, ""));
            let lives = layout::is_container_id(id) && base.private(id)?.is_some();
            if layout::is_reference(reference) && !lives {
                folder.remove(&entry.name)?;
            }
        }
    }
    let mut cleared = 0;
    for entry in births.list()?.into_iter().filter(|entry| old(entry.modified)) {
        if cleared == CLEARED {
            break;
        }
        let id = entry.name.strip_prefix(".new-").unwrap_or(&entry.name);
        if !layout::is_container_id(id) || base.private(id)?.is_none() {
            births.remove_tree(&entry.name)?;
            cleared += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::BTreeMap;
    use std::os::unix::fs::PermissionsExt;
    use terok_policy::annotation;
    use terok_policy::profile::Catalog;

    fn base() -> (tempfile::TempDir, Dir) {
        let folder = tempfile::tempdir().unwrap();
        let base = Dir::base(folder.path()).unwrap();
        (folder, base)
    }

    fn policy(vault: &str) -> Policy {
        let annotations = [("terok.vault", vault), ("terok.ssh", "work@github.com")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()));
        annotation::parse(&BTreeMap::from(annotations), &Catalog::bundled()).unwrap()
    }

    #[test]
    fn each_start_has_tokens_of_its_own_and_only_the_inner_folder_is_open() {
        let (folder, base) = base();
        let policy = policy("anthropic github");
        let first = Birth::make(&base, "c1", &policy).unwrap();
        let second = Birth::make(&base, "c1", &policy).unwrap();
        assert_eq!(first.issued.tokens.len(), 2);
        assert!(first.issued.tokens.iter().all(|token| !second.issued.tokens.contains(token)));
        assert!(second.inside.is_still_at_its_path() && !first.inside.is_still_at_its_path());
        let mode = |path: &str| {
            folder.path().join(".birth").join(path).symlink_metadata().unwrap().permissions().mode() & 0o777
        };
        assert_eq!((mode("."), mode("c1"), mode("c1/granted.json")), (0o700, 0o700, 0o600));
        assert_eq!((mode("c1/inside"), mode("c1/inside/env")), (0o755, 0o444));
        let _agent = second.agent().unwrap();
        assert_eq!(mode("c1/inside/ssh-agent.sock"), 0o666);
        second.agent().unwrap();
    }

    #[test]
    fn create_finds_what_precreate_made_and_nothing_else() {
        let (_folder, base) = base();
        let policy = policy("anthropic");
        assert!(Birth::open(&base, "c1", &policy).unwrap().is_none());
        let made = Birth::make(&base, "c1", &policy).unwrap();
        let found = Birth::open(&base, "c1", &policy).unwrap().unwrap();
        assert_eq!(found.issued.tokens, made.issued.tokens);
        assert!(Birth::open(&base, "c1", &self::policy("anthropic openai")).unwrap().is_none());
        assert!(Birth::open(&base, "c2", &policy).unwrap().is_none());

        let config = json!({"process": {"env": ["A=1"]}, "mounts": []});
        let provided = amend::provide(config.clone(), &made.provision(&policy)).unwrap();
        assert!(found.is_in(&provided, &policy) && !found.is_in(&config, &policy));
        assert_eq!(mounted(&provided, &base).as_deref(), Some(made.inside.path()));
        let mut other = provided.clone();
        other["mounts"][0]["source"] = json!("/srv");
        assert!(!found.is_in(&other, &policy) && mounted(&other, &base).is_none());
        let mut other = provided;
        for variable in other["process"]["env"].as_array_mut().unwrap() {
            if variable.as_str().unwrap().starts_with("ANTHROPIC_BASE_URL=") {
                *variable = json!("ANTHROPIC_BASE_URL=http://evil.example");
            }
        }
        assert!(!found.is_in(&other, &policy));
    }

    #[test]
    fn who_is_refused_to_join_takes_nothing_from_those_that_run() {
        let (_folder, base) = base();
        let policy = policy("anthropic");
        let made = Birth::make(&base, "guard", &policy).unwrap();
        let agent = made.agent().unwrap();
        let joining = Birth::open(&base, "guard", &policy).unwrap().unwrap();
        joining.abandon().unwrap();
        assert!(made.inside.is_still_at_its_path() && made.inside.is_served(provision::AGENT).unwrap());
        assert!(Birth::open(&base, "guard", &policy).unwrap().is_some());
        drop(agent);
        made.abandon().unwrap();
        assert!(Birth::open(&base, "guard", &policy).unwrap().is_none());
    }

    #[test]
    fn a_credential_for_one_run_is_one_containers() {
        let (_folder, base) = base();
        let reference = "0123456789abcdef0123456789abcdef";
        let policy = policy(&format!("anthropic=@{reference}"));
        let [first, second] = ["c1", "c2"].map(|id| Birth::make(&base, id, &policy).unwrap());
        let refused = first.foresee(&base, &policy).unwrap_err().to_string();
        assert!(refused.contains("terok run --credential"), "{refused}");
        base.make_private(layout::EPHEMERAL).unwrap().write(reference, b"{}").unwrap();
        first.foresee(&base, &policy).unwrap();
        second.foresee(&base, &policy).unwrap();
        first.claim(&base, &policy).unwrap();
        first.claim(&base, &policy).unwrap();
        second.claim(&base, &policy).unwrap_err();
        second.foresee(&base, &policy).unwrap_err();
    }

    #[test]
    fn what_starts_that_came_to_nothing_left_is_cleared_away_after_an_hour() {
        let (folder, base) = base();
        let policy = policy("anthropic");
        for id in ["old", "running"] {
            Birth::make(&base, id, &policy).unwrap();
            let long_ago = SystemTime::now() - ABANDONED - Duration::from_secs(60);
            let births = folder.path().join(".birth").join(id);
            std::fs::File::open(births).unwrap().set_modified(long_ago).unwrap();
        }
        base.make_private("running").unwrap();
        let ephemeral = base.make_private(layout::EPHEMERAL).unwrap();
        let reference = "0123456789abcdef0123456789abcdef";
        for (name, is_old) in [
            (reference.to_owned(), true),
            (format!("{reference}.old"), true),
            (format!("{reference}.running"), true),
            (format!("{reference}.young"), false),
        ] {
            ephemeral.write(&name, b"{}").unwrap();
            if is_old {
                let file = std::fs::File::options().write(true).open(ephemeral.path().join(&name)).unwrap();
                file.set_modified(SystemTime::now() - ABANDONED - Duration::from_secs(60)).unwrap();
            }
        }
        Birth::make(&base, "new", &policy).unwrap();
        assert!(Birth::open(&base, "old", &policy).unwrap().is_none());
        assert!(Birth::open(&base, "running", &policy).unwrap().is_some());
        let mut left: Vec<_> = ephemeral.list().unwrap().into_iter().map(|entry| entry.name).collect();
        left.sort();
        assert_eq!(left, [format!("{reference}.running"), format!("{reference}.young")]);
    }
}
