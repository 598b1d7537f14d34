//! L6: folders of state follow no link, trust no foreign owner or open mode, and change files as a whole.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use terok_kernel::statedir::{Dir, Entry, Hold};

fn base() -> (tempfile::TempDir, Dir) {
    let folder = tempfile::tempdir().unwrap();
    let dir = Dir::base(folder.path()).unwrap();
    (folder, dir)
}

#[test]
fn a_folder_is_made_closed_and_an_open_one_is_refused() {
    let (folder, base) = base();
    base.make_private("a").unwrap();
    assert_eq!(fs::metadata(folder.path().join("a")).unwrap().permissions().mode() & 0o777, 0o700);
    fs::set_permissions(folder.path().join("a"), fs::Permissions::from_mode(0o750)).unwrap();
    let refused = base.make_private("a").unwrap_err().to_string();
    assert!(refused.contains("has mode 750"), "{refused}");
    assert!(base.private("none").unwrap().is_none());
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    assert!(Dir::base(folder.path()).is_err());
}

#[test]
fn a_link_is_not_followed_anywhere_below_the_base() {
    let (folder, base) = base();
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("secret"), "x").unwrap();
    symlink(elsewhere.path(), folder.path().join("a")).unwrap();
    symlink(elsewhere.path(), folder.path().join(".local")).unwrap();
    let refused = base.make_private("a").unwrap_err().to_string();
    assert!(refused.contains("symbolic link"), "{refused}");
    assert!(base.make_shared(".local/state").is_err());
    let own = base.make_private("own").unwrap();
    for name in ["log", "live.json"] {
        symlink(elsewhere.path().join("secret"), folder.path().join("own").join(name)).unwrap();
    }
    assert!(own.append("log").is_err());
    assert!(own.read("live.json", 100).is_err());
    own.write("live.json", b"new").unwrap();
    assert_eq!(fs::read(elsewhere.path().join("secret")).unwrap(), b"x");
    assert_eq!(own.read("live.json", 100).unwrap().unwrap(), b"new");
}

#[test]
fn names_that_are_paths_are_refused() {
    let (_folder, base) = base();
    for name in ["", ".", "..", "a/b", "../a", "/etc", "a\0b"] {
        assert!(base.make_private(name).is_err(), "{name:?}");
        assert!(base.write(name, b"").is_err(), "{name:?}");
        assert!(base.remove_tree(name).is_err(), "{name:?}");
    }
}

#[test]
fn a_folder_of_another_user_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root can make a folder that is another user's");
        return;
    }
    let (folder, base) = base();
    base.make_private("a").unwrap();
    std::os::unix::fs::chown(folder.path().join("a"), Some(12345), None).unwrap();
    let refused = base.make_private("a").unwrap_err().to_string();
    assert!(refused.contains("belongs to uid 12345"), "{refused}");
}

#[test]
fn a_file_is_replaced_as_a_whole_and_leaves_nothing_behind() {
    let (folder, base) = base();
    fs::write(folder.path().join(".live.json.new"), "left by a crash").unwrap();
    base.write("live.json", b"one").unwrap();
    let before = fs::File::open(folder.path().join("live.json")).unwrap();
    base.write("live.json", b"two").unwrap();
    assert_eq!(std::io::read_to_string(before).unwrap(), "one");
    assert_eq!(base.read("live.json", 3).unwrap().unwrap(), b"two");
    assert!(base.read("live.json", 2).is_err());
    assert!(base.read("none", 2).unwrap().is_none());
    let names: Vec<Entry> = base.list().unwrap();
    assert_eq!(names.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>(), ["live.json"]);
}

#[test]
fn a_tree_is_removed_without_following_links() {
    let (folder, base) = base();
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("kept"), "").unwrap();
    let deep = folder.path().join("a/b/c");
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), "").unwrap();
    symlink(elsewhere.path(), deep.join("link")).unwrap();
    base.remove_tree("a").unwrap();
    base.remove_tree("a").unwrap();
    assert!(!folder.path().join("a").exists());
    assert!(elsewhere.path().join("kept").exists());
}

#[test]
fn a_log_grows_by_lines_knows_its_end_and_rotates() {
    let (folder, base) = base();
    let mut log = base.append("log").unwrap();
    assert_eq!(log.tail(100).unwrap(), None);
    log.append(b"one").unwrap();
    log.append(b"two").unwrap();
    let tail = log.tail(100).unwrap().unwrap();
    assert_eq!((tail.line.as_slice(), tail.complete, tail.offset), (b"two".as_slice(), true, 4));
    assert_eq!(log.tail(3).unwrap().unwrap().line, b"wo");
    fs::write(folder.path().join("log"), "one\ntorn").unwrap();
    let tail = log.tail(100).unwrap().unwrap();
    assert_eq!((tail.line.as_slice(), tail.complete), (b"torn".as_slice(), false));
    log.truncate(tail.offset).unwrap();
    log.append(b"whole").unwrap();
    log.rotate(&base, "log").unwrap();
    log.append(b"new").unwrap();
    assert_eq!(fs::read_to_string(folder.path().join("log.1")).unwrap(), "one\nwhole\n");
    assert_eq!(fs::read_to_string(folder.path().join("log")).unwrap(), "new\n");
}

#[test]
fn a_full_disk_leaves_no_half_line() {
    // RLIMIT_FSIZE cuts a write short, as a full disk does.
    process::in_child(|| {
        let (_folder, base) = base();
        let mut log = base.append("log").unwrap();
        log.append(b"first").unwrap();
        // SAFETY: ignores a signal.
        #[allow(unsafe_code, reason = "the limit would kill otherwise")]
        unsafe {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        }
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_FSIZE, 10, 10).unwrap();
        assert!(log.append(b"second").is_err());
        assert_eq!(log.size().unwrap(), 6);
        log.append(b"3").unwrap();
        assert_eq!(log.size().unwrap(), 8);
    });
}

#[test]
fn a_locked_folder_has_one_owner_at_a_time() {
    let (_folder, base) = base();
    let lock = base.lock(Duration::ZERO).unwrap();
    assert!(base.lock(Duration::from_millis(5)).is_err());
    drop(lock);
    base.lock(Duration::ZERO).unwrap();
}

#[test]
fn a_socket_is_closed_to_others_and_known_to_be_served() {
    let (folder, base) = base();
    let listener = base.listen("control.sock").unwrap();
    let path = folder.path().join("control.sock");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    UnixStream::connect(&path).unwrap();
    assert!(base.is_served("control.sock").unwrap());
    drop(listener);
    assert!(!base.is_served("control.sock").unwrap());
    assert!(!base.is_served("none").unwrap());
}

mod process;

#[test]
fn a_file_is_held_by_many_who_share_it_or_by_one_alone() {
    let (folder, base) = base();
    let at_once = Duration::ZERO;
    let first = base.lock_file("use", Hold::Shared, at_once).unwrap();
    let second = base.lock_file("use", Hold::Shared, at_once).unwrap();
    let refused = base.lock_file("use", Hold::Alone, at_once).unwrap_err();
    assert_eq!(refused.errno(), Some(nix::errno::Errno::EWOULDBLOCK), "{refused}");
    drop((first, second));
    let alone = base.lock_file("use", Hold::Alone, at_once).unwrap();
    assert!(base.lock_file("use", Hold::Shared, Duration::from_millis(20)).is_err());
    drop(alone);
    base.lock_file("use", Hold::Shared, at_once).unwrap();
    let mode = fs::metadata(folder.path().join("use")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    symlink("/dev/null", folder.path().join("link")).unwrap();
    assert!(base.lock_file("link", Hold::Alone, at_once).is_err());
}
