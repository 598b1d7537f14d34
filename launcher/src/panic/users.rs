//! Root's panic for the containers of other users: this program once more, as each of them, because a supervisor hears
//! its owner only and a user's Podman knows the user's containers only.

use crate::show;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use terok_policy::layout;

/// Where login sessions keep their runtime folders.
const SESSIONS: &str = "/run/user";

/// A user with protected containers.
#[derive(Debug, PartialEq, Eq)]
struct User {
    uid: u32,
    gid: u32,
    name: String,
    home: PathBuf,
}

/// Whether the containers of every user were stopped.
pub(super) fn panic(kill: bool) -> anyhow::Result<bool> {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mut stopped = true;
    for user in users(Path::new(SESSIONS), &passwd) {
        say!("containers of {}:", show::printable(&user.name))?;
        let ended = Command::new("/proc/self/exe")
            .args(["panic", "--own"])
            .args(kill.then_some("--kill"))
            .env_clear()
            .env("HOME", &user.home)
            .env("XDG_RUNTIME_DIR", Path::new(SESSIONS).join(user.uid.to_string()))
            // Rootless Podman looks for newuidmap there.
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .envs(
                std::env::var_os(terok_install::podman::VARIABLE)
                    .map(|podman| (terok_install::podman::VARIABLE, podman)),
            )
            .current_dir("/")
            .uid(user.uid)
            .gid(user.gid)
            .stdin(Stdio::null())
            .status();
        match ended {
            Ok(status) => stopped &= status.success(),
            Err(error) => {
                stopped = false;
                eprintln!("terok: not stopped: the containers of {}: {error}", user.name);
            }
        }
    }
    Ok(stopped)
}

/// Those who have a runtime folder of terok, with what /etc/passwd says of them.
fn users(sessions: &Path, passwd: &str) -> Vec<User> {
    let mut users = Vec::new();
    for entry in std::fs::read_dir(sessions).into_iter().flatten().flatten() {
        let Some(uid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(meta) = entry.metadata() else { continue };
        let has_containers = entry.path().join(layout::RUN_USER).is_dir();
        if uid == 0 || !has_containers || meta.uid() != uid {
            continue;
        }
        let fields = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
        let known = fields.into_iter().find(|fields| fields.get(2) == Some(&uid.to_string().as_str()));
        users.push(match known.as_deref() {
            Some([name, _, _, gid, _, home, ..]) => User {
                uid,
                gid: gid.parse().unwrap_or(meta.gid()),
                name: (*name).to_owned(),
                home: PathBuf::from(home),
            },
            // A user of a directory service: enough to find the sockets.
            _ => User { uid, gid: meta.gid(), name: uid.to_string(), home: PathBuf::from("/") },
        });
    }
    users.sort_by_key(|user| user.uid);
    users
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_those_with_a_folder_of_their_own() {
        let sessions = tempfile::tempdir().unwrap();
        let own = std::fs::metadata(sessions.path()).unwrap().uid();
        for folder in
            ["terok".to_owned(), "0/terok".to_owned(), "x/terok".to_owned(), "4000000000/terok".to_owned()]
        {
            std::fs::create_dir_all(sessions.path().join(folder)).unwrap();
        }
        // The folder of 4000000000 belongs to whoever runs the tests.
        assert_eq!(users(sessions.path(), ""), []);
        if own != 0 {
            std::fs::create_dir_all(sessions.path().join(format!("{own}/terok"))).unwrap();
            let found =
                users(sessions.path(), &format!("root:x:0:0::/root:\nanna:x:{own}:7::/home/a:/bin/sh\n"));
            assert_eq!(found, [User { uid: own, gid: 7, name: "anna".into(), home: "/home/a".into() }]);
            return;
        }
        let folder = sessions.path().join("1001");
        std::fs::create_dir_all(folder.join("terok")).unwrap();
        std::os::unix::fs::chown(&folder, Some(1001), Some(1002)).unwrap();
        let found = users(sessions.path(), "root:x:0:0::/root:\nanna:x:1001:7::/home/a:/bin/sh\n");
        assert_eq!(found, [User { uid: 1001, gid: 7, name: "anna".into(), home: "/home/a".into() }]);
        let found = users(sessions.path(), "");
        assert_eq!((found[0].gid, found[0].name.as_str()), (1002, "1001"));
    }
}
