//! What is kept comes back, to who has the key and to nobody else, and each thing that can be wrong has its own words.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use support::{NOW, PASSPHRASE, Vault, api_key, folder};
use terok_vault::{Cost, Error, Kind, MasterKey, New, Problem, Secret, Store};
use zeroize::Zeroizing;

#[test]
fn what_was_added_is_there_after_closing_and_opens_with_the_passphrase() {
    let mut vault = Vault::new();
    vault.add("anthropic", "default", "sk-ant-1");
    vault.add_ssh("work");
    let Vault { folder, dir, store, .. } = vault;
    drop(store);
    let store = Store::open(&dir).unwrap();
    let key = store.unlock(PASSPHRASE).unwrap();
    assert_eq!(support::secret(&store, &key, "anthropic", "default"), "sk-ant-1");
    let work = store.ssh_key("work").unwrap();
    assert_eq!((work.kind.clone(), work.ssh.unwrap().users), (Kind::Ssh, vec!["git".to_owned()]));
    let names: Vec<_> = store.records().unwrap().iter().map(|record| record.words()).collect();
    assert_eq!(names, ["SSH key work", "credential anthropic=default"]);
    drop(folder);
}

#[test]
fn no_secret_and_no_key_is_readable_in_any_file() {
    let mut vault = Vault::new();
    let record = vault.add("anthropic", "default", "sk-ant-first");
    vault.store.replace_secret(&vault.key, &record, &api_key("sk-ant-second"), None, NOW).unwrap();
    for entry in fs::read_dir(vault.folder.path()).unwrap() {
        let path = entry.unwrap().path();
        let content = fs::read(&path).unwrap();
        let has = |what: &[u8]| content.windows(what.len()).any(|window| window == what);
        assert!(!has(b"sk-ant-"), "{path:?}");
        assert!(!has(PASSPHRASE.as_bytes()), "{path:?}");
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{path:?}");
    }
}

#[test]
fn a_wrong_passphrase_is_said_so() {
    let vault = Vault::new();
    let refused = vault.store.unlock("correct horsf").unwrap_err();
    assert!(matches!(refused, Error::WrongPassphrase), "{refused}");
}

#[test]
fn a_second_vault_does_not_replace_the_first() {
    let mut vault = Vault::new();
    vault.add("anthropic", "default", "sk-ant-1");
    let refused = Store::create(&vault.dir, "another one", Cost::LEAST, NOW).err().unwrap();
    assert!(matches!(refused, Error::Exists { .. }), "{refused}");
    assert_eq!(vault.secret("anthropic", "default"), "sk-ant-1");
}

#[test]
fn where_there_is_no_vault_nothing_is_made() {
    let (folder, dir) = folder();
    let refused = Store::open(&dir).err().unwrap();
    assert!(matches!(refused, Error::None { .. }), "{refused}");
    assert!(refused.to_string().contains("terok vault init"), "{refused}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_name_is_taken_once_for_each_provider() {
    let mut vault = Vault::new();
    vault.add("anthropic", "default", "sk-ant-1");
    vault.add("github", "default", "ghp_1");
    vault.add_ssh("default");
    let secret = api_key("sk-ant-2");
    let again = New { provider: "anthropic", name: "default", secret: &secret, expires: None, ssh: None };
    let refused = vault.store.add(&vault.key, &again, NOW).unwrap_err();
    assert!(matches!(refused, Error::Taken { .. }), "{refused}");
    assert_eq!(vault.secret("anthropic", "default"), "sk-ant-1");
}

#[test]
fn a_replaced_secret_counts_its_revision_and_the_older_one_is_not_replaced_again() {
    let mut vault = Vault::new();
    let first = vault.add("openai", "default", "sk-1");
    let tokens = Secret::OAuth {
        access: Zeroizing::new("access".into()),
        refresh: Some(Zeroizing::new("refresh".into())),
    };
    let second = vault.store.replace_secret(&vault.key, &first, &tokens, Some(NOW + 3600), NOW + 1).unwrap();
    assert_eq!((second.revision, second.expires, second.changed), (2, Some(NOW + 3600), NOW + 1));
    assert_eq!(vault.store.credential("openai", "default").unwrap(), second);
    assert!(vault.store.open_secret(&vault.key, &second).unwrap() == tokens);
    let refused = vault.store.replace_secret(&vault.key, &first, &api_key("sk-2"), None, NOW).unwrap_err();
    assert!(matches!(refused, Error::Changed { .. }), "{refused}");
    assert!(matches!(vault.store.open_secret(&vault.key, &first), Err(Error::Changed { .. })));
    vault.store.remove(&second).unwrap();
    let refused = vault.store.replace_secret(&vault.key, &second, &api_key("sk-2"), None, NOW).unwrap_err();
    assert!(matches!(refused, Error::Absent { .. }), "{refused}");
}

#[test]
fn a_credential_and_its_secret_are_of_one_revision_however_often_it_changes() {
    let mut vault = Vault::new();
    let mut record = vault.add("github", "work", "secret-1");
    let reader = Store::open(&vault.dir).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (key, done) = (&vault.key, &done);
        let reading = scope.spawn(move || {
            let mut revisions = std::collections::BTreeSet::new();
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                let (record, secret) = reader.open_credential(key, "github", "work").unwrap();
                assert!(secret == api_key(&format!("secret-{}", record.revision)));
                revisions.insert(record.revision);
            }
            revisions.len()
        });
        for n in 2..=300 {
            let secret = api_key(&format!("secret-{n}"));
            record = vault.store.replace_secret(&vault.key, &record, &secret, None, NOW).unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(reading.join().unwrap() > 1, "nothing was read while it changed");
    });
}

#[test]
fn a_number_is_not_used_again() {
    let mut vault = Vault::new();
    let first = vault.add("anthropic", "default", "sk-ant-1");
    vault.store.remove(&first).unwrap();
    let second = vault.add("anthropic", "default", "sk-ant-2");
    assert!(second.id > first.id);
    assert!(matches!(vault.store.open_secret(&vault.key, &first), Err(Error::Absent { .. })));
}

#[test]
fn another_passphrase_keeps_key_sessions_and_secrets() {
    let mut vault = Vault::new();
    vault.add("anthropic", "default", "sk-ant-1");
    vault.store.change_passphrase(&vault.key, "another horse", Cost::LEAST).unwrap();
    assert!(matches!(vault.store.unlock(PASSPHRASE), Err(Error::WrongPassphrase)));
    vault.store.unlock("another horse").unwrap();
    assert_eq!(vault.secret("anthropic", "default"), "sk-ant-1");
    let store = Store::open(&vault.dir).unwrap();
    let key: MasterKey = store.unlock("another horse").unwrap();
    assert_eq!(support::secret(&store, &key, "anthropic", "default"), "sk-ant-1");
    let short = vault.store.change_passphrase(&vault.key, "short", Cost::LEAST).unwrap_err();
    assert!(matches!(short, Error::Passphrase(_)), "{short}");
}

#[test]
fn a_link_in_the_files_place_and_a_file_others_may_use_are_refused() {
    let Vault { folder, dir, store, .. } = Vault::new();
    drop(store);
    let path = folder.path().join("vault.db");
    for (mode, who) in [(0o640, "its group"), (0o604, "everybody"), (0o620, "its group")] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let refused = Store::open(&dir).err().unwrap().to_string();
        assert!(refused.contains(who) && refused.contains("chmod 600"), "{refused}");
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    Store::open(&dir).unwrap();
    fs::rename(&path, folder.path().join("elsewhere")).unwrap();
    symlink("elsewhere", &path).unwrap();
    let refused = Store::open(&dir).err().unwrap().to_string();
    assert!(refused.contains("symbolic link"), "{refused}");
}

#[test]
fn a_file_that_is_no_vault_is_left_as_it_is() {
    let (folder, dir) = folder();
    let path = folder.path().join("vault.db");
    let other = folder.path().join("other");
    rusqlite::Connection::open(&other).unwrap().execute_batch("CREATE TABLE note (text)").unwrap();
    for content in [
        b"".to_vec(),
        b"just some text, long enough for a header of SQLite".repeat(100),
        fs::read(other).unwrap(),
    ] {
        fs::write(&path, &content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let refused = Store::open(&dir).err().unwrap();
        assert!(matches!(refused, Error::Foreign { .. }), "{refused}");
        assert_eq!(fs::read(&path).unwrap(), content);
    }
}

#[test]
fn a_newer_schema_is_refused_and_not_touched() {
    let Vault { folder, dir, store, .. } = Vault::new();
    drop(store);
    support::tamper(&folder.path().join("vault.db"), "PRAGMA user_version = 99");
    let refused = Store::open(&dir).err().unwrap();
    assert!(matches!(refused, Error::Newer { found: 99, .. }), "{refused}");
    assert!(refused.to_string().contains("update terok"), "{refused}");
}

#[test]
fn a_vault_of_the_first_schema_is_brought_to_the_newest_with_all_its_secrets() {
    let (folder, dir) = folder();
    let path = folder.path().join("vault.db");
    fs::write(&path, include_bytes!("fixtures/schema-1.db")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let mut store = Store::open(&dir).unwrap();
    let key = store.unlock(PASSPHRASE).unwrap();
    assert_eq!(support::secret(&store, &key, "anthropic", "default"), "sk-ant-of-schema-1");
    let work = store.ssh_key("work").unwrap();
    assert!(store.open_secret(&key, &work).unwrap() == Secret::Ssh(Zeroizing::new("-----BEGIN".into())));
    let problem = Problem { at: NOW, reason: "the provider said no".into() };
    store.set_problem(&work, &problem).unwrap();
    assert_eq!(store.ssh_key("work").unwrap().problem, Some(problem));
    assert_eq!(store.damaged(Some(&key)).unwrap(), [""; 0]);
}

#[test]
fn a_failed_renewal_is_noted_until_the_next_secret_and_not_for_a_newer_one() {
    let mut vault = Vault::new();
    let first = vault.add("openai", "default", "sk-1");
    let problem = Problem { at: NOW, reason: "invalid_grant".into() };
    vault.store.set_problem(&first, &problem).unwrap();
    let noted = vault.store.credential("openai", "default").unwrap();
    assert_eq!(noted.problem.as_ref(), Some(&problem));
    let second = vault.store.replace_secret(&vault.key, &noted, &api_key("sk-2"), None, NOW).unwrap();
    assert_eq!(vault.store.credential("openai", "default").unwrap(), second);
    assert_eq!(second.problem, None);
    vault.store.set_problem(&first, &problem).unwrap();
    assert_eq!(vault.store.credential("openai", "default").unwrap().problem, None);
}

#[test]
fn a_secret_opens_in_its_own_place_only() {
    let mut vault = Vault::new();
    let first = vault.add("anthropic", "default", "sk-ant-1");
    vault.add("anthropic", "other", "sk-ant-2");
    vault.tamper("CREATE TABLE kept AS SELECT name, sealed FROM record");
    vault.store.replace_secret(&vault.key, &first, &api_key("sk-ant-3"), None, NOW).unwrap();
    let mut elsewhere = Vault::new();
    elsewhere.add("anthropic", "default", "sk-ant-1");
    let attach = format!("ATTACH '{}' AS elsewhere;", elsewhere.path().display());
    let put = |from: &str| format!("{attach} UPDATE record SET sealed = ({from}) WHERE name = 'default'");
    let right = "SELECT sealed FROM genuine WHERE name = 'default'";
    vault.tamper("CREATE TABLE genuine AS SELECT name, sealed FROM record");
    for (what, from) in [
        ("another record's", "SELECT sealed FROM kept WHERE name = 'other'"),
        ("an older revision's", "SELECT sealed FROM kept WHERE name = 'default'"),
        ("another vault's", "SELECT sealed FROM elsewhere.record"),
        ("none", "SELECT x''"),
    ] {
        vault.tamper(&put(from));
        let record = vault.store.credential("anthropic", "default").unwrap();
        let refused = vault.store.open_secret(&vault.key, &record).unwrap_err();
        assert!(matches!(refused, Error::Damaged { .. }), "{what}: {refused}");
        assert!(refused.to_string().contains("anthropic=default"), "{what}: {refused}");
        assert_eq!(vault.secret("anthropic", "other"), "sk-ant-2", "{what}");
    }
    vault.tamper(&put(right));
    assert_eq!(vault.secret("anthropic", "default"), "sk-ant-3");
    for change in ["kind = 'basic'", "provider = 'openai'", "name = 'renamed'", "revision = 1", "id = 77"] {
        vault.tamper(&format!("UPDATE record SET {change} WHERE name = 'default'"));
        let changed = vault.store.records().unwrap().into_iter().find(|r| r.name != "other").unwrap();
        let refused = vault.store.open_secret(&vault.key, &changed).unwrap_err();
        assert!(matches!(refused, Error::Damaged { .. }), "{change}: {refused}");
        vault.tamper("UPDATE record SET id = 1, kind = 'key', provider = 'anthropic', name = 'default', revision = 2 WHERE name <> 'other'");
        assert_eq!(vault.secret("anthropic", "default"), "sk-ant-3", "{change}");
    }
}

#[test]
fn a_key_of_another_vault_opens_and_changes_nothing() {
    let mut vault = Vault::new();
    let record = vault.add("anthropic", "default", "sk-ant-1");
    let other = Vault::new();
    assert!(matches!(vault.store.open_secret(&other.key, &record), Err(Error::OtherVault)));
    let secret = api_key("x");
    let new = New { provider: "github", name: "default", secret: &secret, expires: None, ssh: None };
    assert!(matches!(vault.store.add(&other.key, &new, NOW), Err(Error::OtherVault)));
    let replaced = vault.store.replace_secret(&other.key, &record, &secret, None, NOW);
    assert!(matches!(replaced, Err(Error::OtherVault)));
    let changed = vault.store.change_passphrase(&other.key, "another horse", Cost::LEAST);
    assert!(matches!(changed, Err(Error::OtherVault)));
}

#[test]
fn a_damaged_record_is_named_and_the_others_stay_usable() {
    let mut vault = Vault::new();
    vault.add("anthropic", "default", "sk-ant-1");
    vault.add("github", "work", "ghp_1");
    vault.add_ssh("deploy");
    vault.tamper("UPDATE record SET kind = 'kez' WHERE provider = 'github'");
    vault.tamper("UPDATE record SET users = 'not JSON' WHERE provider = ''");
    assert_eq!(vault.secret("anthropic", "default"), "sk-ant-1");
    let names: Vec<_> = vault.store.records().unwrap().iter().map(|record| record.words()).collect();
    assert_eq!(names, ["credential anthropic=default"]);
    let damaged = vault.store.damaged(None).unwrap();
    assert_eq!(damaged.len(), 2);
    assert!(damaged[0].starts_with("SSH key deploy is damaged"), "{damaged:?}");
    assert!(damaged[1].starts_with("credential github=work is damaged"), "{damaged:?}");
    assert!(matches!(vault.store.credential("github", "work"), Err(Error::Damaged { .. })));
    vault.tamper("UPDATE record SET sealed = randomblob(60) WHERE provider = 'anthropic'");
    assert_eq!(vault.store.damaged(Some(&vault.key)).unwrap().len(), 3);
}

#[test]
fn nothing_that_was_put_into_the_file_reaches_a_terminal_unchanged() {
    let mut vault = Vault::new();
    vault.add("github", "work", "ghp_1");
    vault.add_ssh("deploy");
    let esc = "'a' || char(27) || '[2J' || char(10) || 'b'";
    let noted = vault.store.credential("github", "work").unwrap();
    let problem = Problem { at: NOW, reason: "no\u{1b}[2J\nmore".into() };
    vault.store.set_problem(&noted, &problem).unwrap();
    let reason = vault.store.credential("github", "work").unwrap().problem.unwrap().reason;
    assert_eq!(reason, "no [2J more");
    for (put, back) in [
        (format!("name = {esc} WHERE provider = 'github'"), "name = 'work' WHERE provider = 'github'"),
        (format!("provider = {esc} WHERE name = 'work'"), "provider = 'github' WHERE name = 'work'"),
        (format!("problem = {esc} WHERE name = 'work'"), "problem = NULL WHERE name = 'work'"),
        (format!("public = {esc} WHERE name = 'deploy'"), "public = 'ssh-ed25519 A' WHERE name = 'deploy'"),
        (r#"users = '["\u001b"]' WHERE name = 'deploy'"#.into(), "users = '[]' WHERE name = 'deploy'"),
    ] {
        vault.tamper(&format!("UPDATE record SET {put}"));
        assert_eq!(vault.store.records().unwrap().len(), 1, "{put}");
        let damaged = vault.store.damaged(None).unwrap();
        assert_eq!(damaged.len(), 1, "{put}");
        assert!(!damaged[0].contains(char::is_control), "{damaged:?}");
        vault.tamper(&format!("UPDATE record SET {back}"));
        assert_eq!(vault.store.records().unwrap().len(), 2, "{back}");
    }
    let deploy = vault.store.ssh_key("deploy").unwrap();
    assert!(vault.store.set_ssh_users(&deploy, &["gi\nt".into()]).is_err());
    vault.store.set_ssh_users(&deploy, &["git".into(), "gerrit".into()]).unwrap();
    assert_eq!(vault.store.ssh_key("deploy").unwrap().ssh.unwrap().users, ["git", "gerrit"]);
}

#[test]
fn a_damaged_record_can_be_removed_by_name_and_added_again() {
    let mut vault = Vault::new();
    vault.add("github", "work", "ghp_1");
    vault.tamper("UPDATE record SET kind = 'kez'");
    assert!(vault.store.remove_named("github", "work").unwrap());
    assert!(!vault.store.remove_named("github", "work").unwrap());
    vault.add("github", "work", "ghp_2");
    assert_eq!(vault.secret("github", "work"), "ghp_2");
}

#[test]
fn a_database_with_torn_pages_is_said_to_be_damaged() {
    let mut vault = Vault::new();
    for number in 0..200 {
        vault.add("anthropic", &format!("n{number}"), "sk-ant-1");
    }
    let Vault { folder, dir, store, .. } = vault;
    drop(store);
    let path = folder.path().join("vault.db");
    let mut content = fs::read(&path).unwrap();
    let half = content.len() / 2;
    content[half..].fill(0xff);
    fs::write(&path, content).unwrap();
    let read = Store::open(&dir).and_then(|store| store.damaged(None));
    match read {
        Ok(damaged) => assert!(!damaged.is_empty()),
        Err(refused) => {
            assert!(matches!(refused, Error::Broken { .. }), "{refused}");
            assert!(refused.to_string().contains("terok vault restore"), "{refused}");
        }
    }
}
