//! Whose containers these are: the uid behind root of a user namespace (L6).

use crate::error::{Error, Result};

/// The person whose engine runs here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Root of the machine, or of a container in which a rootful engine runs.
    Root,
    /// A user, by real uid: this process is root of a rootless engine's user namespace, or the user itself.
    User(u32),
}

/// The owner of this process, from its effective uid and `/proc/self/uid_map`.
pub fn owner() -> Result<Owner> {
    let path = "/proc/self/uid_map";
    let map = std::fs::read_to_string(path).map_err(Error::io("read", path))?;
    owner_of(nix::unistd::geteuid().as_raw(), &map).ok_or_else(|| Error::Untrusted {
        path: path.into(),
        reason: "does not say who started this engine".into(),
    })
}

/// A rootless engine maps its user to root alone (`0 UID 1`) and subordinate ids behind it; the first namespace, and a
/// container in which a rootful engine runs, map root together with what follows.
fn owner_of(euid: u32, map: &str) -> Option<Owner> {
    let mut ranges = map.lines().map(|line| {
        let mut numbers = line.split_ascii_whitespace().map(|number| number.parse::<u32>().ok());
        Some((numbers.next()??, numbers.next()??, numbers.next()??))
    });
    let (inside, outside, count) =
        ranges.find_map(|range| range.filter(|&(first, _, count)| euid >= first && euid - first < count))?;
    match euid {
        0 if count == 1 && outside != 0 => Some(Owner::User(outside)),
        0 => Some(Owner::Root),
        _ => Some(Owner::User(outside.checked_add(euid - inside)?)),
    }
}

/// Whether this process lives in a user namespace other than the first.
pub fn in_userns() -> bool {
    std::fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_ascii_whitespace().collect::<Vec<_>>() != ["0", "0", "4294967295"])
}

/// Name and home directory of `uid` in `/etc/passwd` text. No NSS: a static binary has none.
pub fn passwd_entry(passwd: &str, uid: u32) -> Option<(String, std::path::PathBuf)> {
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let found = fields.len() >= 6 && fields[2].parse() == Ok(uid) && fields[5].starts_with('/');
        found.then(|| (fields[0].to_owned(), fields[5].into()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_namespace_is_roots() {
        assert_eq!(owner_of(0, "         0          0 4294967295\n"), Some(Owner::Root));
        assert_eq!(owner_of(1000, "         0          0 4294967295\n"), Some(Owner::User(1000)));
    }

    #[test]
    fn rootless_root_is_the_user_who_started_podman() {
        // Written by newuidmap for podman 4.3.
        let map = "         0       1001          1\n         1     100000      65536\n";
        assert_eq!(owner_of(0, map), Some(Owner::User(1001)));
    }

    #[test]
    fn root_of_a_container_with_an_engine_in_it_is_root() {
        assert_eq!(owner_of(0, "0 100000 65536\n"), Some(Owner::Root));
    }

    #[test]
    fn an_unmapped_or_garbled_owner_is_not_guessed() {
        assert_eq!(owner_of(65534, "0 1001 1\n"), None);
        assert_eq!(owner_of(0, "nonsense\n"), None);
        assert_eq!(owner_of(0, ""), None);
    }

    #[test]
    fn the_home_comes_from_passwd_and_must_be_absolute() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\nshort:x:5\nrel:x:7:7::home:/bin/sh\nt:x:1001:1001::/home/t:\n";
        assert_eq!(passwd_entry(passwd, 1001), Some(("t".into(), "/home/t".into())));
        assert_eq!(passwd_entry(passwd, 7), None);
        assert_eq!(passwd_entry(passwd, 5), None);
    }
}
