//! The vault's helper, the real program: what it reads for whom, what it says when it cannot, and that a token is renewed once however many ask.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use nix::fcntl::{FcntlArg, fcntl};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use terok_kernel::statedir::Dir;
use terok_kernel::{memfd, socket};
use terok_policy::layout;
use terok_policy::provider::CredentialType;
use terok_vault::ephemeral::Ephemeral;
use terok_vault::ssh_key::{Kind as KeyKind, SshKey};
use terok_vault::{Cost, MasterKey, New, Problem, Record, Revocation, Secret, SshPublic, Store, session};
use zeroize::Zeroizing;

/// Descriptors without close-on-exec exist while a helper is started; nothing else may start a process then.
static SPAWNING: Mutex<()> = Mutex::new(());

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A user's folders, and what one container was granted.
struct Bench {
    root: tempfile::TempDir,
    config: Value,
}

const ID: &str = "c0ffee";
const REFERENCE: &str = "0123456789abcdef0123456789abcdef";

fn provider(name: &str, types: &[&str], token_url: &str) -> Value {
    let sent: serde_json::Map<_, _> = types
        .iter()
        .map(|kind| ((*kind).to_owned(), json!({ "header": "authorization", "prefix": "Bearer " })))
        .collect();
    let mut provider = json!({
        "name": name, "title": name, "upstream": "https://api.example", "token": { "length": 60 }, "credential": sent,
    });
    if !token_url.is_empty() {
        provider["oauth"] = json!({ "token_url": token_url, "client_id": "app" });
    }
    provider
}

fn grant(provider: Value, credential: &str) -> Value {
    json!({ "provider": provider, "credential": credential })
}

impl Bench {
    fn new(vault: &[Value], ssh: &[&str]) -> Self {
        let root = tempfile::tempdir().unwrap();
        let base = Dir::base(root.path()).unwrap();
        base.make_private("vault").unwrap();
        base.make_private("run").unwrap();
        base.make_private("state").unwrap();
        let ssh: Vec<_> = ssh.iter().map(|key| json!({ "key": key })).collect();
        Bench { root, config: json!({ "id": ID, "policy": { "vault": vault, "ssh": ssh } }) }
    }

    fn dir(&self, name: &str) -> Dir {
        Dir::base(self.root.path()).unwrap().private(name).unwrap().unwrap()
    }

    /// A vault, unlocked for an hour.
    fn unlocked(&self) -> (Store, MasterKey) {
        let (store, key) = Store::create(&self.dir("vault"), "correct horse", Cost::LEAST, now()).unwrap();
        session::write(&self.dir("run"), &key, now() + 3600).unwrap();
        (store, key)
    }

    /// Starts a helper; its report comes on the socket.
    fn start(&self, errand: &Value) -> (Child, UnixDatagram) {
        let (ours, theirs) = socket::message_pair().unwrap();
        let order = json!({ "number": 7, "errand": errand });
        let fds: Vec<OwnedFd> = vec![
            memfd::sealed("config", self.config.to_string().as_bytes()).unwrap(),
            self.dir("vault").into(),
            self.dir("run").into(),
            self.dir("state").into(),
            theirs,
            memfd::sealed("errand", order.to_string().as_bytes()).unwrap(),
        ];
        let spawning = SPAWNING.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let above: Vec<i32> = fds.iter().map(|fd| fcntl(fd, FcntlArg::F_DUPFD(200)).unwrap()).collect();
        let moves: String =
            above.iter().enumerate().map(|(n, fd)| format!("exec {}<&{fd} {fd}<&-; ", n + 3)).collect();
        let program = env!("CARGO_BIN_EXE_terok-supervisor");
        let log =
            std::fs::File::options().create(true).append(true).open(self.root.path().join("log")).unwrap();
        let child = Command::new("bash")
            .args(["-c", &format!("{moves} exec {program} vault 0")])
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        for fd in above {
            nix::unistd::close(fd).unwrap();
        }
        drop(spawning);
        let line = UnixDatagram::from(ours);
        line.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        (child, line)
    }

    /// What a helper reports.
    fn run(&self, errand: &Value) -> Value {
        let (child, line) = self.start(errand);
        self.report(child, &line)
    }

    fn report(&self, mut child: Child, line: &UnixDatagram) -> Value {
        let mut buffer = vec![0; 1 << 20];
        let length = line.recv(&mut buffer).unwrap();
        let exit = child.wait().unwrap();
        let log = std::fs::read_to_string(self.root.path().join("log")).unwrap();
        assert!(length > 0 && exit.success(), "{exit}: {log}");
        let report: Value = serde_json::from_slice(&buffer[..length]).unwrap();
        assert_eq!(report["number"], 7);
        report["done"].clone()
    }

    fn credential(&self, grant: usize) -> Value {
        self.run(&json!({ "credential": { "grant": grant, "refused": null } }))
    }

    fn refused(&self, grant: usize, revision: u64) -> Value {
        self.run(&json!({ "credential": { "grant": grant, "refused": revision } }))
    }
}

fn add(
    store: &mut Store,
    key: &MasterKey,
    provider: &str,
    name: &str,
    secret: Secret,
    expires: Option<u64>,
) -> Record {
    store.add(key, &New { provider, name, secret: &secret, expires, ssh: None }, now()).unwrap()
}

fn key(text: &str) -> Secret {
    Secret::Key(Zeroizing::new(text.into()))
}

fn oauth(access: &str, refresh: &str) -> Secret {
    Secret::OAuth { access: Zeroizing::new(access.into()), refresh: Some(Zeroizing::new(refresh.into())) }
}

/// The secret of a report.
fn secret(done: &Value) -> &str {
    done["Ok"]["credential"]["secret"].as_str().unwrap_or_else(|| panic!("{done}"))
}

/// The words of a trouble of this kind.
fn trouble<'a>(done: &'a Value, kind: &str) -> &'a str {
    done["Err"][kind].as_str().unwrap_or_else(|| panic!("{done}"))
}

/// A token endpoint: each answer is the next of `answers`, or the last again; it counts what it was asked and with which refresh token.
struct Endpoint {
    url: String,
    asked: Arc<AtomicUsize>,
    seen: mpsc::Receiver<String>,
}

impl Endpoint {
    fn new(answers: Vec<(u16, Value)>, slow: Duration) -> Self {
        Endpoint::pausing(answers, &[slow])
    }

    /// One that waits before each answer for the next of `pauses`, or the last again.
    fn pausing(answers: Vec<(u16, Value)>, pauses: &[Duration]) -> Self {
        let pauses = pauses.to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://host:{}/token", listener.local_addr().unwrap().port());
        let asked = Arc::new(AtomicUsize::new(0));
        let (tell, seen) = mpsc::channel();
        let counted = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (number, tell) = (counted.fetch_add(1, Ordering::SeqCst), tell.clone());
                let (status, body) = answers[number.min(answers.len() - 1)].clone();
                let slow = pauses[number.min(pauses.len() - 1)];
                std::thread::spawn(move || answer(stream.unwrap(), status, &body, slow, &tell));
            }
        });
        Endpoint { url, asked, seen }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn answer(mut stream: TcpStream, status: u16, body: &Value, slow: Duration, tell: &mpsc::Sender<String>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
    }
    let mut form = vec![0; length];
    reader.read_exact(&mut form).unwrap();
    let _ = tell.send(String::from_utf8(form).unwrap());
    std::thread::sleep(slow);
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    // A helper that was killed does not hear it.
    let _ = stream.write_all(format!("{head}{body}").as_bytes());
}

fn tokens(access: &str, refresh: &str) -> (u16, Value) {
    (200, json!({ "access_token": access, "refresh_token": refresh, "expires_in": 3600 }))
}

#[test]
fn a_container_gets_what_it_was_granted_and_nothing_else() {
    let work = grant(provider("github", &["key", "basic"], ""), "work");
    let bench = Bench::new(&[work], &[]);
    let (mut store, master) = bench.unlocked();
    add(&mut store, &master, "github", "work", key("ghp_work"), None);
    add(&mut store, &master, "github", "private", key("ghp_private"), None);
    let done = bench.credential(0);
    assert_eq!(secret(&done), "ghp_work");
    let credential = &done["Ok"]["credential"];
    assert_eq!((&credential["kind"], &credential["revision"]), (&json!("key"), &json!(1)));
    assert!(credential["until"].as_u64().unwrap() <= now() + 3600);
    trouble(&bench.credential(1), "refused");

    let record = store.credential("github", "work").unwrap();
    let basic = Secret::Basic { user: "ann".into(), password: Zeroizing::new("hunter22".into()) };
    store.replace_secret(&master, &record, &basic, None, now()).unwrap();
    let done = bench.credential(0);
    let credential = &done["Ok"]["credential"];
    assert_eq!(
        (secret(&done), &credential["user"], &credential["revision"]),
        ("hunter22", &json!("ann"), &json!(2))
    );
}

#[test]
fn each_trouble_says_what_to_do() {
    let bench = Bench::new(&[grant(provider("github", &["key"], ""), "work")], &[]);
    assert!(trouble(&bench.credential(0), "missing").contains("`terok vault init`"));
    // Nothing was made for somebody who has no vault.
    assert_eq!(bench.dir("vault").list().unwrap(), []);

    let (mut store, master) =
        Store::create(&bench.dir("vault"), "correct horse", Cost::LEAST, now()).unwrap();
    assert!(trouble(&bench.credential(0), "locked").contains("`terok vault unlock`"));
    session::write(&bench.dir("run"), &master, now() - 1).unwrap();
    assert!(trouble(&bench.credential(0), "locked").contains("ended"));
    session::write(&bench.dir("run"), &master, now() + 60).unwrap();

    add(&mut store, &master, "github", "private", key("ghp_private"), None);
    let missing = bench.credential(0);
    let missing = trouble(&missing, "missing");
    assert!(missing.contains("`terok vault add github work`") && !missing.contains("private"), "{missing}");

    let record = add(&mut store, &master, "github", "work", oauth("a", "r"), None);
    assert!(trouble(&bench.credential(0), "failed").contains("`terok provider show github`"));
    store.remove(&record).unwrap();
    add(&mut store, &master, "github", "work", key("ghp_work"), None);
    assert_eq!(secret(&bench.credential(0)), "ghp_work");

    let live = br#"{"revoked":["github"]}"#;
    bench.dir("state").write(layout::LIVE, live).unwrap();
    assert!(trouble(&bench.credential(0), "revoked").contains("`terok vault revoke c0ffee github --undo`"));
    // What cannot be read gives nothing.
    bench.dir("state").write(layout::LIVE, b"{").unwrap();
    trouble(&bench.credential(0), "failed");
    bench.dir("state").write(layout::LIVE, b"{}").unwrap();
    assert_eq!(secret(&bench.credential(0)), "ghp_work");
    Revocation::note(&bench.dir("vault"), ID, &[], false).unwrap();
    assert!(trouble(&bench.credential(0), "revoked").contains("`terok vault revoke c0ffee github --undo`"));
    std::fs::write(Revocation::path(bench.dir("vault").path(), ID), b"{").unwrap();
    assert!(trouble(&bench.credential(0), "failed").contains("revoke again"));
    Revocation::note(&bench.dir("vault"), ID, &[], true).unwrap();
    assert_eq!(secret(&bench.credential(0)), "ghp_work");

    session::remove(&bench.dir("run")).unwrap();
    trouble(&bench.credential(0), "locked");
    // A session of the vault before it.
    let other = Bench::new(&[], &[]);
    let (_, others) = other.unlocked();
    session::write(&bench.dir("run"), &others, now() + 60).unwrap();
    assert!(trouble(&bench.credential(0), "locked").contains("the one before it"));
}

#[test]
fn what_lives_with_one_container_is_its_own_and_needs_no_vault() {
    let bench = Bench::new(&[grant(provider("github", &["key"], ""), &format!("@{REFERENCE}"))], &[]);
    let folder = bench.dir("run").make_private(layout::EPHEMERAL).unwrap();
    let file = |provider: &str| Ephemeral {
        provider: provider.into(),
        kind: CredentialType::Key,
        user: String::new(),
        secret: Zeroizing::new("ghp_once".into()),
    };
    // Not claimed yet, or by another container.
    folder.write(REFERENCE, &file("github").to_json()).unwrap();
    folder.write(&format!("{REFERENCE}.beef"), &file("github").to_json()).unwrap();
    assert!(trouble(&bench.credential(0), "missing").contains("`terok run --credential`"));
    folder.rename(REFERENCE, &format!("{REFERENCE}.{ID}")).unwrap();
    assert_eq!(secret(&bench.credential(0)), "ghp_once");
    folder.write(&format!("{REFERENCE}.{ID}"), &file("gitlab").to_json()).unwrap();
    trouble(&bench.credential(0), "missing");
}

#[test]
fn public_keys_are_told_although_the_vault_is_locked() {
    let bench = Bench::new(&[], &["work", "absent", "taken", "noted"]);
    let (mut store, master) = bench.unlocked();
    let mut blobs = Vec::new();
    for name in ["work", "taken", "noted", "other"] {
        let made = SshKey::generate(KeyKind::Ed25519, name).unwrap();
        let ssh = SshPublic { public: made.public(), users: vec!["git".into()] };
        let new = New {
            provider: "",
            name,
            secret: &Secret::Ssh(made.to_pem().unwrap()),
            expires: None,
            ssh: Some(&ssh),
        };
        store.add(&master, &new, now()).unwrap();
        blobs.push(made.blob());
    }
    session::remove(&bench.dir("run")).unwrap();
    bench.dir("state").write(layout::LIVE, br#"{"revoked":["ssh:taken"]}"#).unwrap();
    Revocation::note(&bench.dir("vault"), ID, &["ssh:noted".to_owned()], false).unwrap();
    let done = bench.run(&json!("keys"));
    let signed = bench.run(&json!({ "sign": { "grant": 3, "bindings": [], "data": "", "flags": 0 } }));
    assert!(trouble(&signed, "revoked").contains("ssh:noted"));
    let keys = done["Ok"]["keys"].as_array().unwrap();
    assert_eq!(keys.len(), 1, "{done}");
    use base64::Engine as _;
    let blob = base64::prelude::BASE64_STANDARD.encode(&blobs[0]);
    assert_eq!(keys[0], json!({ "grant": 0, "blob": blob, "comment": "work", "users": ["git"] }));
}

#[test]
fn two_hundred_that_ask_at_once_renew_a_token_once() {
    let endpoint = Endpoint::new(vec![tokens("access-2", "refresh-2")], Duration::from_millis(300));
    let bench = Bench::new(&[grant(provider("claude", &["oauth"], &endpoint.url), "default")], &[]);
    let (mut store, master) = bench.unlocked();
    add(&mut store, &master, "claude", "default", oauth("access-1", "refresh-1"), Some(now()));
    let all: Vec<_> =
        (0..200).map(|_| bench.start(&json!({ "credential": { "grant": 0, "refused": null } }))).collect();
    for (child, line) in all {
        let done = bench.report(child, &line);
        assert_eq!((secret(&done), &done["Ok"]["credential"]["revision"]), ("access-2", &json!(2)));
    }
    assert_eq!(endpoint.asked(), 1);
    let form = endpoint.seen.recv_timeout(Duration::from_secs(60)).unwrap();
    assert_eq!(form, "grant_type=refresh_token&refresh_token=refresh-1&client_id=app");
    let record = store.credential("claude", "default").unwrap();
    assert!(store.open_secret(&master, &record).unwrap() == oauth("access-2", "refresh-2"));
    assert!(record.expires.unwrap() > now() + 3500);
}

#[test]
fn a_token_that_is_good_is_not_renewed_unless_the_service_refused_it() {
    let endpoint =
        Endpoint::new(vec![tokens("access-2", "refresh-2"), tokens("access-3", "refresh-3")], Duration::ZERO);
    let bench = Bench::new(&[grant(provider("claude", &["oauth"], &endpoint.url), "default")], &[]);
    let (mut store, master) = bench.unlocked();
    add(&mut store, &master, "claude", "default", oauth("access-1", "refresh-1"), Some(now() + 3600));
    let done = bench.credential(0);
    assert_eq!((secret(&done), endpoint.asked()), ("access-1", 0));
    // The margin before its end.
    assert!(done["Ok"]["credential"]["until"].as_u64().unwrap() <= now() + 3300);
    // An older revision was refused: what is there now is newer.
    assert_eq!(secret(&bench.refused(0, 0)), "access-1");
    assert_eq!(secret(&bench.refused(0, 1)), "access-2");
    assert_eq!(secret(&bench.refused(0, 1)), "access-2");
    // The new one is refused at once: another would be too.
    assert_eq!(secret(&bench.refused(0, 2)), "access-2");
    assert_eq!(endpoint.asked(), 1);
    let record = store.credential("claude", "default").unwrap();
    let aged = store
        .replace_secret(&master, &record, &oauth("access-2", "refresh-2"), Some(now() + 3600), now() - 61)
        .unwrap();
    assert_eq!(secret(&bench.refused(0, aged.revision)), "access-3");
}

#[test]
fn a_dead_refresh_token_is_tried_once_noted_and_left_alone_until_it_is_replaced() {
    let refusal = (400, json!({ "error": "invalid_grant", "error_description": "refresh-1 is gone" }));
    let endpoint = Endpoint::new(vec![refusal, tokens("access-2", "refresh-2")], Duration::ZERO);
    let bench = Bench::new(&[grant(provider("claude", &["oauth"], &endpoint.url), "default")], &[]);
    let (mut store, master) = bench.unlocked();
    add(&mut store, &master, "claude", "default", oauth("access-1", "refresh-1"), Some(now()));
    for _ in 0..3 {
        let done = bench.credential(0);
        let words = trouble(&done, "failed");
        assert!(words.contains("invalid_grant") && words.contains("--oauth FILE"), "{words}");
        assert!(!words.contains("refresh-1") && !words.contains("access-1"), "{words}");
    }
    assert_eq!(endpoint.asked(), 1);
    let record = store.credential("claude", "default").unwrap();
    assert!(record.problem.as_ref().unwrap().reason.contains("invalid_grant"));
    store.replace_secret(&master, &record, &oauth("access-1b", "refresh-1b"), Some(now()), now()).unwrap();
    assert_eq!(secret(&bench.credential(0)), "access-2");
    assert_eq!(endpoint.asked(), 2);
    assert_eq!(store.credential("claude", "default").unwrap().problem, None);
}

#[test]
fn a_failure_that_a_clock_noted_which_was_ahead_keeps_nobody_from_trying_again() {
    let endpoint = Endpoint::new(vec![tokens("access-2", "refresh-2")], Duration::ZERO);
    let bench = Bench::new(&[grant(provider("claude", &["oauth"], &endpoint.url), "default")], &[]);
    let (mut store, master) = bench.unlocked();
    let record = add(&mut store, &master, "claude", "default", oauth("access-1", "refresh-1"), Some(now()));
    let tomorrow = Problem { at: now() + 24 * 3600, reason: "the service answers with status 500".into() };
    store.set_problem(&record, &tomorrow).unwrap();
    assert_eq!(secret(&bench.credential(0)), "access-2");
}

#[test]
fn a_token_in_its_last_minutes_serves_while_the_service_is_down() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://host:{nobody}/token");
    let bench = Bench::new(&[grant(provider("claude", &["oauth"], &url), "default")], &[]);
    let (mut store, master) = bench.unlocked();
    let record =
        add(&mut store, &master, "claude", "default", oauth("access-1", "refresh-1"), Some(now() + 3600));
    // Long ago it was given for an hour.
    let old = store
        .replace_secret(&master, &record, &oauth("access-1", "refresh-1"), Some(now() + 60), now() - 3540)
        .unwrap();
    let done = bench.credential(0);
    assert_eq!(secret(&done), "access-1");
    assert!(done["Ok"]["credential"]["until"].as_u64().unwrap() <= now() + 60);
    store
        .replace_secret(&master, &old, &oauth("access-1", "refresh-1"), Some(now() - 1), now() - 3600)
        .unwrap();
    assert!(trouble(&bench.credential(0), "failed").contains("tried again"));
    assert_eq!(store.credential("claude", "default").unwrap().problem, None);
}

#[test]
fn a_helper_killed_in_the_middle_holds_up_nobody() {
    let pauses = [Duration::from_secs(600), Duration::ZERO];
    let endpoint = Endpoint::pausing(vec![tokens("access-2", "refresh-2")], &pauses);
    let bench = Bench::new(&[grant(provider("claude", &["oauth"], &endpoint.url), "default")], &[]);
    let (mut store, master) = bench.unlocked();
    add(&mut store, &master, "claude", "default", oauth("access-1", "refresh-1"), Some(now()));
    let ask = json!({ "credential": { "grant": 0, "refused": null } });
    let (mut first, _line) = bench.start(&ask);
    endpoint.seen.recv_timeout(Duration::from_secs(60)).unwrap();
    // It has the turn and waits for the service; a second one waits for the turn.
    let (second, line) = bench.start(&ask);
    std::thread::sleep(Duration::from_millis(100));
    first.kill().unwrap();
    first.wait().unwrap();
    let done = bench.report(second, &line);
    assert_eq!(secret(&done), "access-2");
    assert_eq!(endpoint.asked(), 2);
    assert_eq!(
        endpoint.seen.recv_timeout(Duration::from_secs(60)).unwrap(),
        "grant_type=refresh_token&refresh_token=refresh-1&client_id=app"
    );
}
