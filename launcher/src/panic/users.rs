//! Root's panic for the containers of other users: this program once more, as each of them, because a supervisor hears
//! its owner only and a user's Podman knows the user's containers only.

use crate::show;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};
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

/// For all that is done as one user. Whoever holds that up must not hold up what is done as the others.
const DEADLINE: Duration = Duration::from_secs(20);
/// What is shown of one user's containers, at most.
const SAID: u64 = 256 << 10;
/// Leaves the terminal (util-linux, busybox). What runs as a user could type into root's or read what root types.
const SETSID: &str = "/usr/bin/setsid";

/// Whether the containers of every user were stopped: asks this program once more, outside of the terminal's session.
pub(super) fn panic(kill: bool) -> anyhow::Result<bool> {
    // Not /proc/self: that would be setsid.
    let ended = Command::new(SETSID)
        .arg(format!("/proc/{}/exe", std::process::id()))
        .args(["panic", "--others"])
        .args(kill.then_some("--kill"))
        .stdin(Stdio::null())
        .status();
    match ended {
        Ok(status) => Ok(status.success()),
        // Better from here than not at all.
        Err(error) if error.kind() == io::ErrorKind::NotFound => others(kill),
        Err(error) => {
            eprintln!("terok: not stopped: the containers of other users: {SETSID}: {error}");
            Ok(false)
        }
    }
}

/// As [`panic`], from where this process is: as all users at once.
pub(super) fn others(kill: bool) -> anyhow::Result<bool> {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let users = users(Path::new(SESSIONS), &passwd).into_iter();
    let asked: Vec<_> = users.map(|user| (Asked::start(own(&user, kill)), user)).collect();
    let until = Instant::now() + DEADLINE;
    let mut stopped = true;
    for (asked, user) in asked {
        let name = show::printable(&user.name);
        let ended = asked.and_then(|asked| asked.end(until));
        let (said, whole) = match ended {
            Ok((said, status)) => (said, status.success()),
            Err(error) => (format!("not stopped: {error}"), false),
        };
        stopped &= whole;
        say!("containers of {name}:")?;
        for line in said.lines() {
            say!("{}", show::printable(line))?;
        }
    }
    Ok(stopped)
}

/// This program as that user.
fn own(user: &User, kill: bool) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command
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
        .gid(user.gid);
    command
}

/// A program that was started, and what it says.
struct Asked {
    child: Child,
    said: Receiver<Vec<u8>>,
}

impl Asked {
    fn start(mut command: Command) -> io::Result<Self> {
        let (out, into) = io::pipe()?;
        let child = command.stdin(Stdio::null()).stdout(into.try_clone()?).stderr(into).spawn()?;
        // Or the pipe would have no end.
        drop(command);
        let (tell, said) = channel();
        std::thread::spawn(move || {
            let mut text = Vec::new();
            // What was said before an error is something.
            let _ = out.take(SAID).read_to_end(&mut text);
            let _ = tell.send(text);
        });
        Ok(Asked { child, said })
    }

    /// Its end, and what it said till then; one that has not ended `until` then is killed.
    fn end(mut self, until: Instant) -> io::Result<(String, ExitStatus)> {
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            if Instant::now() >= until {
                self.child.kill()?;
                self.child.wait()?;
                return Err(io::Error::other(format!("no answer within {} seconds", DEADLINE.as_secs())));
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        // Somebody else may have kept the pipe.
        let said = self.said.recv_timeout(Duration::from_secs(1)).unwrap_or_default();
        Ok((String::from_utf8_lossy(&said).into_owned(), status))
    }
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

    #[test]
    fn one_who_does_not_answer_is_given_up_and_what_others_say_is_heard() {
        let start = |script: &str| {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", script]);
            Asked::start(command).unwrap()
        };
        let (silent, loud) = (start("kill -STOP $$"), start("echo out; echo err >&2; exit 3"));
        // Its child keeps the pipe.
        let leaving = start("sleep 5 & exit 0");
        let soon = Instant::now() + Duration::from_millis(300);
        assert!(silent.end(soon).unwrap_err().to_string().contains("no answer"));
        let until = Instant::now() + Duration::from_secs(60);
        let (said, status) = loud.end(until).unwrap();
        assert_eq!((said.as_str(), status.code()), ("out\nerr\n", Some(3)));
        assert_eq!(leaving.end(until).unwrap().0, "");
    }
}
