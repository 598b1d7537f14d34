//! A copy is whole and closed to others; what takes the store's place was looked at first, and nothing of the old one is left in it.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use support::{PASSPHRASE, Vault, secret, tamper};
use terok_vault::{BEFORE_RESTORE, Cost, Dir, Error, Restore, Store};

/// A vault with one record, and a copy of it in a folder of its own.
fn copied() -> (Vault, tempfile::TempDir, PathBuf) {
    let mut vault = Vault::new();
    vault.add("anthropic", "default", "sk-ant-1");
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy");
    vault.store.backup(&copy).unwrap();
    (vault, folder, copy)
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn restore(dir: &Dir, from: &Path) -> Result<(), Error> {
    Restore::new(dir, from)?.finish()
}

#[test]
fn a_copy_is_one_closed_file_and_replaces_none() {
    let (vault, folder, copy) = copied();
    assert_eq!(names(folder.path()), ["copy"]);
    assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
    let before = fs::read(&copy).unwrap();
    let link = folder.path().join("link");
    symlink("nowhere", &link).unwrap();
    for there in [&copy, &link] {
        let refused = vault.store.backup(there).unwrap_err();
        assert!(matches!(refused, Error::Exists { .. }), "{refused}");
    }
    assert_eq!(fs::read(&copy).unwrap(), before);
    assert_eq!(names(folder.path()), ["copy", "link"]);
    assert!(vault.store.backup(&folder.path().join("no/such/folder")).is_err());
}

#[test]
fn what_somebody_put_beside_a_copys_name_is_neither_used_nor_removed() {
    let vault = Vault::new();
    for suffix in ["-journal", "-wal", "-shm"] {
        let folder = tempfile::tempdir().unwrap();
        let planted = folder.path().join(format!("copy{suffix}"));
        fs::write(&planted, "planted").unwrap();
        let refused = vault.store.backup(&folder.path().join("copy")).unwrap_err();
        assert!(matches!(&refused, Error::Exists { path } if path.ends_with(suffix)), "{refused}");
        assert_eq!(fs::read(&planted).unwrap(), b"planted");
        assert_eq!(names(folder.path()), [format!("copy{suffix}")]);
    }
}

#[test]
fn a_copy_holds_what_only_the_log_has_yet() {
    let mut vault = Vault::new();
    // A reader holds the log open, so nothing moves from it into the file.
    let reader = rusqlite::Connection::open(vault.path()).unwrap();
    reader.execute_batch("BEGIN; SELECT * FROM record").unwrap();
    vault.add("anthropic", "default", "sk-ant-1");
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("copy");
    vault.store.backup(&copy).unwrap();
    let (_empty, dir) = support::folder();
    restore(&dir, &copy).unwrap();
    let store = Store::open(&dir).unwrap();
    assert_eq!(secret(&store, &store.unlock(PASSPHRASE).unwrap(), "anthropic", "default"), "sk-ant-1");
}

#[test]
fn a_restored_copy_is_as_it_was_and_the_store_before_it_is_kept() {
    let (mut vault, _folder, copy) = copied();
    vault.add("github", "default", "ghp_later");
    vault.store.change_passphrase(&vault.key, "another horse", Cost::LEAST).unwrap();
    let Vault { folder, dir, store, .. } = vault;
    drop(store);
    let waiting = Restore::new(&dir, &copy).unwrap();
    assert!(matches!(waiting.unlock("another horse"), Err(Error::WrongPassphrase)));
    waiting.unlock(PASSPHRASE).unwrap();
    waiting.finish().unwrap();
    let store = Store::open(&dir).unwrap();
    let key = store.unlock(PASSPHRASE).unwrap();
    assert_eq!(secret(&store, &key, "anthropic", "default"), "sk-ant-1");
    assert!(matches!(store.credential("github", "default"), Err(Error::Absent { .. })));
    drop(store);
    assert_eq!(names(folder.path()), ["in-use.lock", "vault.db", BEFORE_RESTORE]);
    // And back again.
    restore(&dir, &folder.path().join(BEFORE_RESTORE)).unwrap();
    let store = Store::open(&dir).unwrap();
    let key = store.unlock("another horse").unwrap();
    assert_eq!(secret(&store, &key, "github", "default"), "ghp_later");
    for name in names(folder.path()) {
        let mode = fs::metadata(folder.path().join(&name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{name}");
    }
}

/// As a process leaves it that was killed: a log with commits that are not in the file.
fn with_a_log_left(vault: Vault) -> (tempfile::TempDir, Dir) {
    let Vault { folder, dir, store, .. } = vault;
    let [path, log] = ["vault.db", "vault.db-wal"].map(|name| folder.path().join(name));
    let saved = [&path, &log].map(|file| fs::read(file).unwrap());
    assert!(!saved[1].is_empty());
    drop(store);
    for (file, content) in [&path, &log].into_iter().zip(saved) {
        fs::write(file, content).unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
    }
    (folder, dir)
}

#[test]
fn a_log_that_the_old_store_left_is_not_played_into_the_restored_one() {
    let (mut vault, _folder, copy) = copied();
    for number in 0..20 {
        vault.add("github", &format!("n{number}"), "ghp_later");
    }
    let (folder, dir) = with_a_log_left(vault);
    restore(&dir, &copy).unwrap();
    let store = Store::open(&dir).unwrap();
    assert_eq!(store.records().unwrap().len(), 1);
    drop(store);
    // The old one lost nothing of its log.
    restore(&dir, &folder.path().join(BEFORE_RESTORE)).unwrap();
    assert_eq!(Store::open(&dir).unwrap().records().unwrap().len(), 21);
}

#[test]
fn a_log_whose_store_was_moved_away_is_not_played_into_a_new_one() {
    let (mut vault, _folder, copy) = copied();
    vault.add("github", "default", "ghp_later");
    let (folder, dir) = with_a_log_left(vault);
    let [path, log, away] = ["vault.db", "vault.db-wal", "away"].map(|name| folder.path().join(name));
    fs::rename(&path, &away).unwrap();
    let content = fs::read(&log).unwrap();
    let refused = Store::create(&dir, PASSPHRASE, Cost::LEAST, support::NOW).err().unwrap().to_string();
    assert!(refused.contains("vault.db-wal: is the log of a vault that was moved away"), "{refused}");
    assert_eq!(fs::read(&log).unwrap(), content);
    restore(&dir, &copy).unwrap();
    assert_eq!(Store::open(&dir).unwrap().records().unwrap().len(), 1);
    assert_eq!(fs::read(folder.path().join("vault.db.before-restore-wal")).unwrap(), content);
}

#[test]
fn a_broken_store_gives_way_and_its_log_stays_beside_it() {
    let (mut vault, _folder, copy) = copied();
    vault.add("github", "default", "ghp_later");
    let (folder, dir) = with_a_log_left(vault);
    let path = folder.path().join("vault.db");
    fs::write(&path, b"no database at all, but long enough to look at".repeat(100)).unwrap();
    assert!(Store::open(&dir).is_err());
    restore(&dir, &copy).unwrap();
    let store = Store::open(&dir).unwrap();
    assert_eq!(secret(&store, &store.unlock(PASSPHRASE).unwrap(), "anthropic", "default"), "sk-ant-1");
    assert!(fs::read(folder.path().join(BEFORE_RESTORE)).unwrap().starts_with(b"no database"));
}

#[test]
fn a_copy_of_an_older_schema_is_restored() {
    let (_folder, dir) = support::folder();
    let copy = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/schema-1.db");
    restore(&dir, &copy).unwrap();
    let store = Store::open(&dir).unwrap();
    let key = store.unlock(PASSPHRASE).unwrap();
    assert_eq!(secret(&store, &key, "anthropic", "default"), "sk-ant-of-schema-1");
}

#[test]
fn what_is_no_whole_vault_is_refused_and_the_store_untouched() {
    let (vault, folder, copy) = copied();
    let good = fs::read(&copy).unwrap();
    let put = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let with = |name: &str, sql: &str| {
        let path = put(name, &good);
        tamper(&path, sql);
        path
    };
    let newer = with("newer", "PRAGMA user_version = 99");
    let trigger = with("trigger", "CREATE TRIGGER t AFTER UPDATE ON record BEGIN DELETE FROM record; END");
    let view = with("view", "CREATE VIEW v AS SELECT 1");
    let table = with("table", "CREATE TABLE t (x)");
    let headless = with("headless", "DELETE FROM vault");
    let costly = with("costly", "UPDATE vault SET memory = 4294967295");
    let index = with("index", "PRAGMA writable_schema = ON; DELETE FROM sqlite_schema WHERE type = 'index'");
    let half = put("half", &good[..good.len() / 2]);
    let mut torn = good.clone();
    torn[good.len() / 2..].fill(0xff);
    let torn = put("torn", &torn);
    let text = put("text", &b"some text".repeat(1000));
    let empty = put("empty", b"");
    let live = put("live", &good);
    put("live-wal", b"x");
    for (path, said) in [
        (&newer, "update terok"),
        (&trigger, "its tables are not terok's"),
        (&view, "its tables are not terok's"),
        (&table, "its tables are not terok's"),
        (&index, "no whole copy of a vault"),
        (&headless, "no whole copy of a vault"),
        (&half, "no whole copy of a vault"),
        (&torn, "no whole copy of a vault"),
        (&text, "no whole copy of a vault"),
        (&empty, "no whole copy of a vault"),
        (&live, "write-ahead log"),
        (&folder.path().join("none"), "No such file"),
        (&folder.path().to_owned(), "not a file"),
    ] {
        let refused = restore(&vault.dir, path).unwrap_err().to_string();
        let broad = said == "damaged" && refused.contains("no whole copy of a vault");
        assert!(refused.contains(said) || broad, "{path:?}: {refused}");
        assert!(refused.contains(path.file_name().unwrap().to_str().unwrap()), "{refused}");
    }
    // Its key cannot be had, so whoever asks for the passphrase first does not put it in place.
    assert!(Restore::new(&vault.dir, &costly).unwrap().unlock(PASSPHRASE).is_err());
    assert_eq!(vault.secret("anthropic", "default"), "sk-ant-1");
    let left = names(vault.folder.path());
    assert!(left.iter().all(|name| !name.contains("restore")), "{left:?}");
}

#[test]
fn a_restore_waits_for_who_has_the_store_open() {
    let (vault, _folder, copy) = copied();
    let Vault { dir, store, .. } = vault;
    let waiting = Restore::new(&dir, &copy).unwrap();
    let finished = std::thread::scope(|scope| {
        let thread = scope.spawn(|| waiting.finish());
        std::thread::sleep(std::time::Duration::from_millis(200));
        let early = thread.is_finished();
        drop(store);
        thread.join().unwrap().unwrap();
        early
    });
    assert!(!finished, "the store was replaced under its user");
}

#[test]
fn an_export_holds_every_secret_and_its_record() {
    let (mut vault, ..) = copied();
    vault.add_ssh("work");
    let mut out = Vec::new();
    vault.store.export(&vault.key, &mut out).unwrap();
    let export: serde_json::Value = serde_json::from_slice(&out).unwrap();
    assert_eq!(export["vault"], vault.store.id());
    assert_eq!(export["records"][0]["secret"]["private"], "-----BEGIN");
    assert_eq!(export["records"][1]["provider"], "anthropic");
    assert_eq!(export["records"][1]["secret"]["key"], "sk-ant-1");
    assert!(export.get("damaged").is_none());
}
