//! Several processes at one vault, a full disk, and a process that is confined as the supervisor's are.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use support::{NOW, PASSPHRASE, Vault, add, api_key, secret};
use terok_kernel::confine::{Confinement, Layer, confine};
use terok_kernel::landlock::Allowed;
use terok_kernel::seccomp::Filter;
use terok_vault::session::{self, Locked, Session};
use terok_vault::{Cost, Dir, Error, Store, Turn, watched};

/// Device, inode, change time and size; zeros for a file that is empty or not there.
fn facts(path: &Path) -> [u64; 5] {
    match path.symlink_metadata() {
        Ok(found) if found.len() > 0 => {
            [found.dev(), found.ino(), found.ctime() as u64, found.ctime_nsec() as u64, found.len()]
        }
        _ => [0; 5],
    }
}

/// Waits for the line `ready` of a child.
fn wait_ready(child: &mut Child) {
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().ends_with("ready")), "the child ended early");
}

#[test]
fn two_processes_that_write_at_once_lose_nothing() {
    const EACH: usize = 40;
    if let Some(folder) = support::child() {
        let dir = Dir::base(&folder).unwrap();
        for number in 0..EACH {
            // A program of the command line opens the store for each thing it does.
            let mut store = Store::open(&dir).unwrap();
            let key = store.unlock(PASSPHRASE).unwrap();
            add(&mut store, &key, "own", &format!("{}-{number}", std::process::id()), "x");
            loop {
                let record = store.credential("shared", "counter").unwrap();
                // Another may change it between the two: then this one has lost and looks again.
                let Ok(count) = store.open_secret(&key, &record).map(|secret| match secret {
                    terok_vault::Secret::Key(count) => count.parse::<usize>().unwrap(),
                    other => panic!("{other:?}"),
                }) else {
                    continue;
                };
                let next = api_key(&(count + 1).to_string());
                match store.replace_secret(&key, &record, &next, None, NOW) {
                    Ok(_) => break,
                    Err(Error::Changed { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }
        return;
    }
    let mut vault = Vault::new();
    vault.add("shared", "counter", "0");
    let name = "two_processes_that_write_at_once_lose_nothing";
    let writers: Vec<_> =
        (0..3).map(|_| support::again(name, vault.folder.path()).spawn().unwrap()).collect();
    for mut writer in writers {
        assert!(writer.wait().unwrap().success());
    }
    assert_eq!(vault.secret("shared", "counter"), (3 * EACH).to_string());
    assert_eq!(vault.store.records().unwrap().len(), 3 * EACH + 1);
    assert_eq!(vault.store.damaged(Some(&vault.key)).unwrap(), [""; 0]);
}

#[test]
fn a_turn_is_one_processs_alone_and_ends_with_it_however_it_ends() {
    let name = "a_turn_is_one_processs_alone_and_ends_with_it_however_it_ends";
    if let Some(folder) = support::child() {
        let dir = Dir::base(&folder).unwrap();
        let record = Store::open(&dir).unwrap().credential("openai", "default").unwrap();
        let _turn = Turn::take(&dir, &record, Duration::ZERO).unwrap();
        println!("\nready");
        let _ = std::io::stdin().read(&mut [0]);
        unreachable!("killed before");
    }
    let mut vault = Vault::new();
    let record = vault.add("openai", "default", "sk-1");
    let other = vault.add("github", "default", "ghp_1");
    let mut child = support::again(name, vault.folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait_ready(&mut child);
    let refused = Turn::take(&vault.dir, &record, Duration::from_millis(30)).unwrap_err();
    assert!(matches!(refused, Error::Busy { .. }), "{refused}");
    assert!(refused.to_string().starts_with("credential openai=default is in use"), "{refused}");
    Turn::take(&vault.dir, &other, Duration::ZERO).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    Turn::take(&vault.dir, &record, Duration::ZERO).unwrap();
}

#[test]
fn what_another_process_unlocks_and_locks_counts_at_once_and_shows_from_outside() {
    let name = "what_another_process_unlocks_and_locks_counts_at_once_and_shows_from_outside";
    if let Some(folder) = support::child() {
        let [vault, runtime] = ["vault", "runtime"].map(|name| Dir::base(&folder.join(name)).unwrap());
        let key = Store::open(&vault).unwrap().unlock(PASSPHRASE).unwrap();
        session::write(&runtime, &key, NOW + 60).unwrap();
        return;
    }
    let (folder, base) = support::folder();
    let [vault, runtime] = ["vault", "runtime"].map(|name| base.make_private(name).unwrap());
    let (mut store, key) = Store::create(&vault, PASSPHRASE, Cost::LEAST, NOW).unwrap();
    add(&mut store, &key, "anthropic", "default", "sk-ant-1");
    let session = folder.path().join("runtime/.session/key.json");
    let state = |now| session::read(&runtime, store.id(), now).unwrap();
    assert!(matches!(state(NOW), Session::Locked(Locked::Never)));
    let before = facts(&session);
    assert_eq!(before, [0; 5]);
    assert!(support::again(name, folder.path()).status().unwrap().success());
    let Session::Unlocked { key, until } = state(NOW) else { panic!("it is unlocked") };
    assert_eq!(until, NOW + 60);
    assert_eq!(secret(&store, &key, "anthropic", "default"), "sk-ant-1");
    let unlocked = facts(&session);
    assert_ne!(unlocked, before);
    assert!(matches!(state(NOW + 60), Session::Locked(Locked::Ended)));
    session::write(&runtime, &key, NOW + 120).unwrap();
    assert_ne!(facts(&session), unlocked);
    assert!(session::remove(&runtime).unwrap());
    assert!(!session::remove(&runtime).unwrap());
    assert!(matches!(state(NOW), Session::Locked(Locked::Never)));
    assert_eq!(facts(&session), before);
}

#[test]
fn the_key_of_a_session_that_has_ended_is_removed_and_no_other() {
    let (folder, base) = support::folder();
    let [vault, runtime] = ["vault", "runtime"].map(|name| base.make_private(name).unwrap());
    let (_, key) = Store::create(&vault, PASSPHRASE, Cost::LEAST, NOW).unwrap();
    let file = folder.path().join("runtime/.session/key.json");
    assert!(!session::forget_ended(&runtime, NOW).unwrap());
    session::write(&runtime, &key, NOW + 60).unwrap();
    assert!(!session::forget_ended(&runtime, NOW + 59).unwrap() && file.exists());
    assert!(session::forget_ended(&runtime, NOW + 60).unwrap() && !file.exists());
    assert!(!session::forget_ended(&runtime, NOW + 60).unwrap());
}

#[test]
fn every_change_of_a_record_shows_in_the_watched_files_and_no_look_does() {
    let mut vault = Vault::new();
    let files = watched(vault.folder.path());
    let look = || files.each_ref().map(|file| facts(file));
    // Times of files are as coarse as the kernel's tick.
    let tick = || std::thread::sleep(Duration::from_millis(25));
    let mut last = look();
    tick();
    let mut changed = |what: &str| {
        let now = look();
        assert_ne!(std::mem::replace(&mut last, now), now, "{what}");
        tick();
    };
    let record = vault.add("openai", "default", "sk-1");
    changed("add");
    let record = vault.store.replace_secret(&vault.key, &record, &api_key("sk-2"), None, NOW).unwrap();
    changed("replace");
    vault.store.change_passphrase(&vault.key, "another horse", Cost::LEAST).unwrap();
    changed("passphrase");
    let copy = vault.folder.path().join("copy");
    vault.store.backup(&copy).unwrap();
    vault.store.remove(&record).unwrap();
    changed("remove");
    let Vault { folder: _folder, dir, store, .. } = vault;
    drop(store);
    let last = look();
    for _ in 0..3 {
        let store = Store::open(&dir).unwrap();
        store.records().unwrap();
        assert_eq!(look(), last, "while it is read");
        drop(store);
        assert_eq!(look(), last, "after it was read");
    }
    terok_vault::Restore::new(&dir, &copy).unwrap().finish().unwrap();
    assert_ne!(look(), last, "restore");
}

#[test]
fn a_session_of_another_vault_or_an_altered_one_opens_nothing() {
    let [vault, other] = [Vault::new(), Vault::new()];
    let (folder, runtime) = support::folder();
    session::write(&runtime, &other.key, NOW + 60).unwrap();
    let read = || session::read(&runtime, vault.store.id(), NOW);
    assert!(matches!(read().unwrap(), Session::Locked(Locked::OtherVault)));
    let file = folder.path().join(".session/key.json");
    for content in ["", "{}", r#"{"vault":"x","key":"AAAA","until":9999999999}"#, "\0"] {
        fs::write(&file, content).unwrap();
        let refused = read().unwrap_err().to_string();
        assert!(refused.contains("is not a session"), "{content:?}: {refused}");
    }
    fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &file).unwrap();
    assert!(read().is_err());
}

#[test]
fn the_store_serves_a_process_that_is_confined_as_the_supervisor_is() {
    let name = "the_store_serves_a_process_that_is_confined_as_the_supervisor_is";
    if let Some(folder) = support::child() {
        let [vault, runtime] = ["vault", "runtime"].map(|name| Dir::base(&folder.join(name)).unwrap());
        let path = vault.path().to_owned();
        // As the supervisor has it: by descriptor.
        let vault = Dir::from_fd(vault.into(), path);
        let files = Allowed {
            write: vec![std::os::fd::AsFd::as_fd(&vault), std::os::fd::AsFd::as_fd(&runtime)],
            ..Allowed::default()
        };
        let layers = confine(&Confinement { keep: &[], files, calls: Filter::Parent });
        let seccomp = layers.iter().any(|layer| matches!(layer, Layer::Holds(what) if what == "seccomp"));
        assert!(seccomp, "{layers:?}");
        assert!(
            fs::read("/etc/passwd").is_err()
                || layers.iter().any(|layer| matches!(layer, Layer::Missing("landlock", _)))
        );
        let mut store = Store::open(&vault).unwrap();
        let Session::Unlocked { key, .. } = session::read(&runtime, store.id(), NOW).unwrap() else {
            panic!("it is unlocked")
        };
        let record = store.credential("openai", "default").unwrap();
        let _turn = Turn::take(&vault, &record, Duration::ZERO).unwrap();
        assert_eq!(secret(&store, &key, "openai", "default"), "sk-1");
        // Larger than a page, so that pages are taken and given back.
        store.replace_secret(&key, &record, &api_key(&"long".repeat(8000)), Some(NOW), NOW).unwrap();
        drop(store);
        let mut store = Store::open(&vault).unwrap();
        let record = store.credential("openai", "default").unwrap();
        store.replace_secret(&key, &record, &api_key("sk-2"), Some(NOW), NOW).unwrap();
        return;
    }
    let (folder, base) = support::folder();
    let [vault, runtime] = ["vault", "runtime"].map(|name| base.make_private(name).unwrap());
    let (mut store, key) = Store::create(&vault, PASSPHRASE, Cost::LEAST, NOW).unwrap();
    add(&mut store, &key, "openai", "default", "sk-1");
    session::write(&runtime, &key, NOW + 60).unwrap();
    drop(store);
    let output = support::again(name, folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let store = Store::open(&vault).unwrap();
    assert_eq!(secret(&store, &key, "openai", "default"), "sk-2");
    assert_eq!(store.credential("openai", "default").unwrap().revision, 3);
}

#[test]
fn a_full_disk_is_said_so_and_loses_nothing() {
    let name = "a_full_disk_is_said_so_and_loses_nothing";
    let Some(folder) = support::child() else {
        let folder = tempfile::tempdir().unwrap();
        // Also what a rootless supervisor is: uid 0 of a user namespace.
        let works = Command::new("unshare").args(["-Urm", "true"]).output();
        if !works.as_ref().is_ok_and(|output| output.status.success()) {
            return terok_need::missing("mount", format!("unshare -Urm does not work: {works:?}"));
        }
        let again = support::again(name, folder.path());
        let mut command = Command::new("unshare");
        command
            .arg("-Urm")
            .arg(again.get_program())
            .args(again.get_args())
            .env(support::CHILD, folder.path());
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        return assert!(output.status.success(), "{said}");
    };
    mount_small(&folder, "400k");
    let dir = Dir::base(&folder).unwrap();
    let (mut store, key) = Store::create(&dir, PASSPHRASE, Cost::LEAST, NOW).unwrap();
    let first = add(&mut store, &key, "p", "first", "1");
    let filler = folder.join("filler");
    fill(&filler);
    let large = api_key(&"x".repeat(60_000));
    let new = terok_vault::New { provider: "p", name: "large", secret: &large, expires: None, ssh: None };
    let full = |what: &str, refused: Error| {
        assert!(matches!(refused, Error::Full { .. }), "{what}: {refused}");
        assert!(refused.to_string().contains("no room on the disk"), "{what}: {refused}");
    };
    full("add", store.add(&key, &new, NOW).unwrap_err());
    full("replace", store.replace_secret(&key, &first, &large, None, NOW).unwrap_err());
    full("backup", store.backup(&folder.join("copy")).unwrap_err());
    assert_eq!(secret(&store, &key, "p", "first"), "1");
    drop(store);
    assert!(!folder.join("copy").exists());
    // The log was put away with room for a while: nothing is to be had now.
    fill(&filler);
    if let Err(refused) = Store::open(&dir) {
        full("open", refused);
    }
    fs::remove_file(&filler).unwrap();
    let mut store = Store::open(&dir).unwrap();
    assert_eq!(secret(&store, &key, "p", "first"), "1");
    assert_eq!(store.damaged(Some(&key)).unwrap(), [""; 0]);
    store.add(&key, &new, NOW).unwrap();
    drop(store);

    let nowhere = folder.join("nowhere");
    fs::create_dir(&nowhere).unwrap();
    fs::set_permissions(&nowhere, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    fill(&filler);
    let other = Dir::base(&nowhere).unwrap();
    full("create", Store::create(&other, PASSPHRASE, Cost::LEAST, NOW).err().unwrap());
    assert!(matches!(Store::open(&other), Err(Error::None { .. })));
}

fn mount_small(folder: &Path, size: &str) {
    let options = format!("size={size},mode=700");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder).status();
    assert!(mounted.unwrap().success());
}

/// Takes what room there is.
fn fill(filler: &Path) {
    use std::io::Write;
    let mut file = fs::File::options().append(true).create(true).open(filler).unwrap();
    while file.write(&[0; 512]).is_ok_and(|written| written > 0) {}
}
