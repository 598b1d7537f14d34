//! Parent, worker and helper together, each under its own limits: a credential goes from the vault to the service, and nowhere else.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod rig;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rig::{Rig, Wish};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::sync::mpsc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use terok_kernel::statedir::Dir;
use terok_policy::layout;
use terok_policy::policy::{SshGrant, VaultGrant};
use terok_policy::provision;
use terok_vault::ssh_key::{Kind, SshKey};
use terok_vault::{Cost, MasterKey, New, Revocation, Secret, SshPublic, Store, session};
use zeroize::Zeroizing;

const TOKEN: &str = "tk-terok0123456789abcdefghijklmnopqrstuvwxyz";
const REAL: &str = "tk-real-9f3c1d77e0b24a55";

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A service on the host's loopback that answers `ok`; the Authorization of each request is told.
fn service() -> (u16, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (told, seen) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let told = told.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok) {
                    if let Some(value) = line.strip_prefix("authorization: ") {
                        let _ = told.send(value.to_owned());
                    }
                    if line.is_empty() {
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
                    }
                }
            });
        }
    });
    (port, seen)
}

fn grant(port: u16) -> VaultGrant {
    serde_json::from_value(json!({
        "provider": {
            "name": "plain", "title": "plain", "upstream": format!("http://host:{port}"), "hosts": [],
            "token": { "prefix": "tk-", "length": TOKEN.len() },
            "credential": { "key": { "header": "authorization", "prefix": "Bearer " } },
        },
        "credential": "default",
    }))
    .unwrap()
}

struct Vault {
    base: Dir,
    store: Store,
    key: MasterKey,
    pem: Zeroizing<String>,
}

/// A vault, unlocked, with the credential and an SSH key that was not granted.
fn vault(root: &std::path::Path) -> Vault {
    let base = Dir::base(root).unwrap();
    let folder = base.make_private("vault").unwrap();
    let (mut store, key) = Store::create(&folder, "correct horse", Cost::LEAST, now()).unwrap();
    let secret = Secret::Key(Zeroizing::new(REAL.into()));
    let new = New { provider: "plain", name: "default", secret: &secret, expires: None, ssh: None };
    store.add(&key, &new, now()).unwrap();
    let ssh = SshKey::generate(Kind::Ed25519, "work").unwrap();
    let (pem, public) = (ssh.to_pem().unwrap(), SshPublic { public: ssh.public(), users: vec![] });
    let new = New {
        provider: "",
        name: "work",
        secret: &Secret::Ssh(pem.clone()),
        expires: None,
        ssh: Some(&public),
    };
    store.add(&key, &new, now()).unwrap();
    let base = base.make_private("run").unwrap();
    session::write(&base, &key, now() + 600).unwrap();
    Vault { base, store, key, pem }
}

/// Status and body of a request at the base URL, sent from inside.
fn request(rig: &Rig) -> (u16, String) {
    let (_, addresses) = rig.resolve("vault.terok.internal");
    rig.inside(move || {
        let mut stream = TcpStream::connect((addresses[0], 80)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let head = format!(
            "GET /plain/v1 HTTP/1.1\r\nhost: vault.terok.internal\r\nauthorization: Bearer {TOKEN}\r\nconnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let status = text.split(' ').nth(1).unwrap_or_else(|| panic!("{text:?}")).parse().unwrap();
        (status, text)
    })
}

fn state(rig: &Rig) -> Value {
    rig.ask("Status", json!({}))["parameters"]["status"]["credentials"][0]["state"].clone()
}

/// Whether `needle` is anywhere in the memory of `pid`.
fn holds(pid: i32, needle: &[u8]) -> bool {
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut read = 0;
    let found = maps.lines().any(|line| {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next().unwrap(), words.next().unwrap());
        if !rights.starts_with("rw") {
            return false;
        }
        let (from, to) = range.split_once('-').unwrap();
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        let mut content = vec![0; usize::try_from(number(to) - number(from)).unwrap()];
        let Ok(length) = memory.read_at(&mut content, number(from)) else { return false };
        read += length;
        content[..length].windows(needle.len()).any(|window| window == needle)
    });
    assert!(found || read > 100_000, "only {read} octets of {pid} could be read");
    found
}

#[test]
fn a_credential_goes_to_the_service_and_follows_the_vault_without_a_restart() {
    if !terok_need::network_namespaces() {
        return;
    }
    let (port, seen) = service();
    let root = tempfile::tempdir().unwrap();
    let Vault { base, mut store, key, .. } = vault(root.path());
    let rig = Rig::start_in(root, &Wish { vault: vec![(grant(port), TOKEN)], ..Wish::default() });
    assert_eq!(state(&rig), "unused");
    let (status, text) = request(&rig);
    assert_eq!(status, 200, "{text} {}", rig.log());
    assert_eq!(seen.recv_timeout(Duration::from_secs(60)).unwrap(), format!("Bearer {REAL}"));
    assert_eq!(state(&rig), "ready");

    session::remove(&base).unwrap();
    let (status, text) = request(&rig);
    assert!(status == 503 && text.contains("terok vault unlock"), "{text}");
    assert_eq!(state(&rig), "locked");
    session::write(&base, &key, now() + 600).unwrap();
    assert_eq!(request(&rig).0, 200);

    let applied = rig.ask("Revoke", json!({ "grants": ["plain"] }));
    assert_eq!(applied["parameters"]["applied"]["changed"], json!(["plain"]), "{applied}");
    assert_eq!((request(&rig).0, state(&rig)), (401, json!("revoked")));
    rig.ask("Revoke", json!({ "grants": [], "undo": true }));
    assert_eq!(request(&rig).0, 200);

    // What is noted beside the store counts although nobody tells the worker, and none of its own words undoes it.
    let folder = Dir::base(rig.root.path()).unwrap().private("vault").unwrap().unwrap();
    Revocation::note(&folder, "c1", &["plain".to_owned()], false).unwrap();
    assert_eq!((request(&rig).0, state(&rig)), (401, json!("revoked")));
    rig.ask("Revoke", json!({ "grants": [], "undo": true }));
    assert_eq!(request(&rig).0, 401);
    Revocation::note(&folder, "c1", &[], true).unwrap();
    assert_eq!(request(&rig).0, 200);

    let record = store.credential("plain", "default").unwrap();
    let newer = Secret::Key(Zeroizing::new("tk-newer".into()));
    store.replace_secret(&key, &record, &newer, None, now()).unwrap();
    while seen.try_recv().is_ok() {}
    assert_eq!(request(&rig).0, 200);
    assert_eq!(seen.recv_timeout(Duration::from_secs(60)).unwrap(), "Bearer tk-newer");
    store.remove(&store.credential("plain", "default").unwrap()).unwrap();
    let (status, text) = request(&rig);
    assert!(status == 503 && text.contains("terok vault add plain"), "{text}");

    let audit = rig.state(layout::AUDIT);
    assert!(!audit.contains(REAL) && !rig.log().contains(REAL), "{audit}");
    let birth = rig.root.path().join("run").join(layout::BIRTH).join("c1");
    assert!(birth.exists());
    let root = rig.end();
    assert!(!birth.exists() && root.path().join("vault").exists());
}

/// From the person's own file and terok's, for the granted host alone, and before the container runs.
#[test]
fn a_container_with_a_key_finds_the_keys_of_the_host_that_it_may_log_in_at() {
    if !terok_need::network_namespaces() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    vault(root.path());
    let [own, learnt, other] = [0; 3].map(|_| SshKey::generate(Kind::Ed25519, "").unwrap().public());
    let [own, learnt, other] = [own, learnt, other].map(|key| key.trim_end().to_owned());
    std::fs::create_dir(root.path().join(".ssh")).unwrap();
    let text = format!("[git.example]:2222 {own}\nsecret.example {other}\n");
    std::fs::write(root.path().join(".ssh/known_hosts"), text).unwrap();
    let file = root.path().join("vault").join(layout::VAULT_KNOWN_HOSTS);
    std::fs::write(file, format!("git.example {learnt}\n")).unwrap();
    let grant = SshGrant { key: "work".into(), host: Some("git.example".parse().unwrap()) };
    let rig = Rig::start_in(root, &Wish { ssh: vec![grant], ..Wish::default() });
    let inside = rig.root.path().join("run").join(layout::BIRTH).join("c1").join(layout::INSIDE);
    let file = inside.join(provision::KNOWN_HOSTS);
    let text = std::fs::read_to_string(&file).unwrap();
    let mut lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let mut wanted = [own, learnt].map(|key| format!("git.example {key}"));
    lines.sort_unstable();
    wanted.sort();
    assert_eq!(lines, wanted);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o444);
}

#[test]
fn the_parent_never_holds_a_key_and_the_worker_only_what_was_granted() {
    if !terok_need::network_namespaces() {
        return;
    }
    let (port, _seen) = service();
    let root = tempfile::tempdir().unwrap();
    let Vault { pem, .. } = vault(root.path());
    let session =
        std::fs::read(root.path().join("run").join(layout::SESSION).join(layout::SESSION_KEY)).unwrap();
    let session: Value = serde_json::from_slice(&session).unwrap();
    let encoded = session["key"].as_str().unwrap().to_owned();
    let master = BASE64_STANDARD.decode(&encoded).unwrap();
    let rig = Rig::start_in(root, &Wish { vault: vec![(grant(port), TOKEN)], ..Wish::default() });
    for _ in 0..5 {
        assert_eq!(request(&rig).0, 200);
    }
    let (parent, worker) = (rig.parent.id() as i32, rig.worker());
    assert!(holds(worker, REAL.as_bytes()), "the search finds what is there");
    let private = pem.lines().nth(3).unwrap();
    for (what, needle) in
        [("key", master.as_slice()), ("session", encoded.as_bytes()), ("ssh", private.as_bytes())]
    {
        assert!(!holds(worker, needle), "the worker holds the {what}");
        assert!(!holds(parent, needle), "the parent holds the {what}");
    }
    assert!(!holds(parent, REAL.as_bytes()), "the parent holds the credential");
}
