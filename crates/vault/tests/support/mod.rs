//! A throw-away vault.
#![allow(dead_code, unreachable_pub, reason = "every test binary uses a part")]

use std::path::{Path, PathBuf};
use std::process::Command;
use terok_vault::{Cost, Dir, MasterKey, New, Record, Secret, SshPublic, Store};
use zeroize::Zeroizing;

pub const PASSPHRASE: &str = "correct horse";
pub const NOW: u64 = 1_790_000_000;

/// A folder with a vault in it.
pub struct Vault {
    pub folder: tempfile::TempDir,
    pub dir: Dir,
    pub store: Store,
    pub key: MasterKey,
}

impl Vault {
    pub fn new() -> Self {
        let (folder, dir) = folder();
        let (store, key) = Store::create(&dir, PASSPHRASE, Cost::LEAST, NOW).unwrap();
        Vault { folder, dir, store, key }
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("vault.db")
    }

    pub fn add(&mut self, provider: &str, name: &str, secret: &str) -> Record {
        add(&mut self.store, &self.key, provider, name, secret)
    }

    pub fn add_ssh(&mut self, name: &str) -> Record {
        let public = SshPublic { public: "ssh-ed25519 AAAA".into(), users: vec!["git".into()] };
        let secret = Secret::Ssh(Zeroizing::new("-----BEGIN".into()));
        let new = New { provider: "", name, secret: &secret, expires: None, ssh: Some(&public) };
        self.store.add(&self.key, &new, NOW).unwrap()
    }

    pub fn secret(&self, provider: &str, name: &str) -> String {
        secret(&self.store, &self.key, provider, name)
    }

    /// Runs SQL on the file, as somebody would who wants to deceive the store.
    pub fn tamper(&self, sql: &str) {
        tamper(&self.path(), sql);
    }
}

pub fn folder() -> (tempfile::TempDir, Dir) {
    let folder = tempfile::tempdir().unwrap();
    let dir = Dir::base(folder.path()).unwrap();
    (folder, dir)
}

pub fn api_key(text: &str) -> Secret {
    Secret::Key(Zeroizing::new(text.into()))
}

pub fn add(store: &mut Store, key: &MasterKey, provider: &str, name: &str, secret: &str) -> Record {
    let secret = api_key(secret);
    store.add(key, &New { provider, name, secret: &secret, expires: None, ssh: None }, NOW).unwrap()
}

pub fn secret(store: &Store, key: &MasterKey, provider: &str, name: &str) -> String {
    let record = store.credential(provider, name).unwrap();
    match store.open_secret(key, &record).unwrap() {
        Secret::Key(key) => key.to_string(),
        other => panic!("{other:?}"),
    }
}

pub fn tamper(path: &Path, sql: &str) {
    rusqlite::Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

/// Set in a process that a test started for itself: the folder it works in.
pub const CHILD: &str = "TEROK_TEST_CHILD";

/// The folder, in such a process.
pub fn child() -> Option<PathBuf> {
    std::env::var_os(CHILD).map(PathBuf::from)
}

/// This program again, running `test` alone, on its main thread, in `folder`.
pub fn again(test: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env(CHILD, folder);
    command
}
