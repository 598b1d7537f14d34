//! The host as seen by the person who runs terok: who they are, and where their files are.
//! Read once at the edge, so that everything else can be tested below a temporary root.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use terok_policy::layout;

/// Who asks, and what of the environment decides which files Podman reads.
#[derive(Debug, Clone)]
pub struct Host {
    /// `/`, or a folder that stands for it in tests.
    pub root: PathBuf,
    /// The real user id, outside any user namespace.
    pub uid: u32,
    /// Absolute home directory.
    pub home: PathBuf,
    /// `$XDG_CONFIG_HOME`, or `~/.config`.
    pub config_home: PathBuf,
    /// `$CONTAINERS_CONF`: Podman then reads this file only.
    pub conf: Option<PathBuf>,
    /// `$CONTAINERS_CONF_OVERRIDE`: read after every other file.
    pub conf_override: Option<PathBuf>,
    /// The variable that makes Podman talk to a remote engine, if one is set.
    pub remote: Option<&'static str>,
}

impl Host {
    /// Reads `/proc/self` and the environment.
    ///
    /// # Errors
    /// Where `/proc` is not mounted or no absolute `$HOME` is set.
    pub fn current() -> io::Result<Self> {
        let path = |key: &str| std::env::var_os(key).filter(|v| !v.is_empty()).map(PathBuf::from);
        let home = path("HOME").filter(|home| home.is_absolute()).ok_or_else(|| {
            io::Error::other("HOME is not set to an absolute path: set it to your home directory")
        })?;
        let inside = std::fs::metadata("/proc/self")?.uid();
        let map = std::fs::read_to_string("/proc/self/uid_map")?;
        Ok(Host {
            root: PathBuf::from("/"),
            uid: outside_uid(inside, &map).unwrap_or(inside),
            config_home: path("XDG_CONFIG_HOME")
                .filter(|dir| dir.is_absolute())
                .unwrap_or_else(|| home.join(".config")),
            home,
            conf: path("CONTAINERS_CONF"),
            conf_override: path("CONTAINERS_CONF_OVERRIDE"),
            remote: ["CONTAINER_HOST", "CONTAINER_CONNECTION"]
                .into_iter()
                .find(|key| std::env::var_os(key).is_some()),
        })
    }

    /// Whether Podman runs without privileges for this user.
    pub fn rootless(&self) -> bool {
        self.uid != 0
    }

    /// `absolute` below [`Host::root`].
    pub fn at(&self, absolute: impl AsRef<Path>) -> PathBuf {
        let path = absolute.as_ref();
        if self.root == Path::new("/") {
            return path.to_path_buf();
        }
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// The folder that holds one runtime folder for each running container (L6).
    pub fn run_dir(&self) -> PathBuf {
        if self.rootless() {
            self.at(format!("/run/user/{}/{}", self.uid, layout::RUN_USER))
        } else {
            self.at(layout::RUN_ROOTFUL)
        }
    }

    /// The folder that holds one state folder for each container, gone ones included (L6).
    pub fn state_dir(&self) -> PathBuf {
        if self.rootless() {
            self.at(self.home.join(layout::STATE_USER))
        } else {
            self.at(layout::STATE_ROOTFUL)
        }
    }

    /// The marker with which this person's `terok panic` stops every start: root's stops everybody's.
    pub fn panic_marker(&self) -> PathBuf {
        if self.rootless() { self.state_dir().join(layout::PANIC) } else { self.at(layout::PANIC_ROOTFUL) }
    }

    /// The markers that are in force for this person.
    pub fn panics(&self) -> Vec<PathBuf> {
        let mut markers = vec![self.at(layout::PANIC_ROOTFUL), self.panic_marker()];
        markers.dedup();
        // A marker that cannot be looked at counts, as it does for the hooks.
        markers.retain(|marker| {
            !matches!(std::fs::symlink_metadata(marker), Err(error) if error.kind() == io::ErrorKind::NotFound)
        });
        markers
    }

    /// Settings files, the one that counts more last.
    pub fn settings_files(&self) -> Vec<PathBuf> {
        vec![self.at(layout::CONFIG_SYSTEM), self.at(self.home.join(layout::CONFIG_USER))]
    }

    /// The vault's folder, made when there is a vault.
    pub fn vault_dir(&self) -> PathBuf {
        if self.rootless() {
            self.at(self.home.join(layout::VAULT_USER))
        } else {
            self.at(layout::VAULT_ROOTFUL)
        }
    }

    /// Folders of provider definitions in the order they are read: a later one replaces a definition of the same name.
    pub fn provider_dirs(&self) -> Vec<PathBuf> {
        vec![self.at(layout::PROVIDERS_SYSTEM), self.at(self.home.join(layout::PROVIDERS_USER))]
    }

    /// Profile folders in the order they are read: a later one replaces a profile of the same name.
    pub fn profile_dirs(&self) -> Vec<PathBuf> {
        vec![self.at(layout::PROFILES_SYSTEM), self.at(self.home.join(layout::PROFILES_USER))]
    }
}

/// The uid outside for `inside`, by the lines `inside outside count` of `uid_map` (user_namespaces(7)).
fn outside_uid(inside: u32, map: &str) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        let (from, to, count) = (numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?);
        let offset = inside.checked_sub(from).filter(|offset| *offset < count)?;
        to.checked_add(offset)
    })
}

/// A user of a host that lives below `root`.
#[cfg(test)]
pub(crate) fn tests_host(root: &Path, uid: u32) -> Host {
    Host {
        root: root.to_path_buf(),
        uid,
        home: PathBuf::from("/home/u"),
        config_home: PathBuf::from("/home/u/.config"),
        conf: None,
        conf_override: None,
        remote: None,
    }
}

/// Gives a host that lives in a folder a file.
#[cfg(test)]
pub(crate) fn tests_file(host: &Host, path: &str, text: &str) -> PathBuf {
    let path = host.at(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, text).unwrap();
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_panic_counts_for_everybody_and_a_users_for_the_user() {
        let root = tempfile::tempdir().unwrap();
        let (admin, user) = (tests_host(root.path(), 0), tests_host(root.path(), 1001));
        std::fs::create_dir_all(user.state_dir()).unwrap();
        std::fs::create_dir_all(root.path().join("var/lib")).unwrap();
        assert_eq!((admin.panics(), user.panics()), (vec![], vec![]));
        std::fs::write(user.panic_marker(), "").unwrap();
        assert_eq!((admin.panics(), user.panics()), (vec![], vec![user.panic_marker()]));
        std::fs::write(admin.panic_marker(), "").unwrap();
        assert_eq!(user.panics(), [admin.panic_marker(), user.panic_marker()]);
    }

    #[test]
    fn the_real_uid_is_the_one_outside_the_user_namespace() {
        assert_eq!(
            outside_uid(0, "         0       1001          1\n         1     100000      65536\n"),
            Some(1001)
        );
        assert_eq!(outside_uid(1000, "0 1001 1\n1 100000 65536\n"), Some(100_999));
        assert_eq!(outside_uid(1001, "0 0 4294967295\n"), Some(1001));
        assert_eq!(outside_uid(7, "0 1001 1\n"), None);
    }
}
