//! The signer with real clients: `ssh-add`, `ssh-keygen`, `git`, `ssh` and `dbclient`, at a real server.

use super::errand::{self, Wanted};
use super::*;
use crate::audit::{Audit, LogFile, open_file};
use crate::names::NameTable;
use crate::parent_link::ParentLink;
use crate::rig;
use crate::vault::{Errand, Fetched, Vault};
use message::{put, string};
use std::cell::Cell;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use terok_kernel::statedir::Dir;
use terok_policy::layout;
use terok_policy::live::Live;
use terok_policy::policy::Policy;
use terok_vault::SshPublic;
use terok_vault::known_hosts::KnownHosts;
use terok_vault::ssh_key::{Kind as KeyKind, SshKey};
use tokio::task::{LocalSet, spawn_blocking};

/// Whether a program is there.
fn there(program: &str) -> bool {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let there = path.split(':').any(|folder| Path::new(folder).join(program).is_file());
    if !there {
        terok_need::missing("ssh", format!("no {program}"));
    }
    there
}

/// What stands in for the vault and its helper: the same judgement, keys in memory.
#[derive(Default)]
struct Store {
    keys: RefCell<Vec<(SshKey, SshPublic)>>,
    known: RefCell<String>,
    locked: Cell<bool>,
    signed: Cell<usize>,
    /// What was to be signed.
    asked: RefCell<Vec<Vec<u8>>>,
}

struct Rig {
    dir: tempfile::TempDir,
    context: Rc<Context>,
    store: Rc<Store>,
}

impl Rig {
    /// A signer with a key for each grant, in their order.
    fn start(grants: &[&str], kind: KeyKind, users: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = || Dir::base(dir.path()).unwrap();
        let grant = |text: &&str| match text.split_once('@') {
            Some((key, host)) => SshGrant { key: key.into(), host: Some(host.parse().unwrap()) },
            None => SshGrant { key: (*text).into(), host: None },
        };
        let ssh: Vec<SshGrant> = grants.iter().map(grant).collect();
        let store = Rc::new(Store::default());
        for grant in &ssh {
            let same = ssh.iter().position(|other| other.key == grant.key).unwrap();
            let pem = store.keys.borrow().get(same).map(|(key, _)| key.to_pem().unwrap());
            let key = pem.map_or_else(
                || SshKey::generate(kind, &grant.key).unwrap(),
                |pem| SshKey::from_pem(&pem).unwrap(),
            );
            let public =
                SshPublic { public: key.public(), users: users.iter().map(|user| (*user).into()).collect() };
            store.keys.borrow_mut().push((key, public));
        }
        let (policy, helper) = (Policy { ssh: ssh.clone(), ..Policy::default() }, store.clone());
        let vault = Vault::answered_by(move |errand| helper.run(&ssh, errand));
        let config = rig::config(dir.path(), policy);
        let audit = Audit::open(LogFile::open(&state()).unwrap()).unwrap();
        let names = NameTable::open(open_file(&state(), layout::NAMES).unwrap()).unwrap();
        let link = Rc::new(ParentLink::alone());
        let context = Context::new(config, audit, names, Live::default(), state(), state(), link, vault);
        let listener = UnixListener::bind(dir.path().join("agent.sock")).unwrap();
        tokio::task::spawn_local(Signer::new(context.clone()).serve(listener));
        Rig { dir, context, store }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn blob(&self, at: usize) -> Vec<u8> {
        self.store.keys.borrow()[at].0.blob()
    }

    /// Runs a program that has the signer for its agent.
    async fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .env("HOME", self.dir.path());
        command.env("SSH_AUTH_SOCK", self.path("agent.sock")).env_remove("SSH_ASKPASS").env_remove("DISPLAY");
        command.env("GIT_CONFIG_NOSYSTEM", "1");
        spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    async fn good(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.run(program, arguments).await;
        assert!(output.status.success(), "{program} {arguments:?}: {output:?}\n{:?}", self.lines());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// A new connection's answer to each message.
    async fn say(&self, messages: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut stream = UnixStream::connect(self.path("agent.sock")).await.unwrap();
        let mut answers = Vec::new();
        for message in messages {
            let mut framed = Vec::new();
            put(&mut framed, message);
            stream.write_all(&framed).await.unwrap();
            let Ok(length) = stream.read_u32().await else { break };
            let mut answer = vec![0; length as usize];
            stream.read_exact(&mut answer).await.unwrap();
            answers.push(answer);
        }
        answers
    }

    fn lines(&self) -> Vec<serde_json::Value> {
        self.context.audit.flush();
        let text = std::fs::read_to_string(self.path(layout::AUDIT)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The last refusal's reason.
    fn why(&self) -> String {
        let lines = self.lines();
        let last = lines.iter().rev().find(|line| line["action"] == "refuse").unwrap();
        assert_eq!(last["kind"], "ssh");
        last["detail"]["why"].as_str().unwrap_or_default().to_owned()
    }
}

impl Store {
    fn run(&self, grants: &[SshGrant], errand: &Errand) -> Result<Fetched, Trouble> {
        let keys = self.keys.borrow();
        match errand {
            Errand::Keys => Ok(Fetched::Keys(
                keys.iter()
                    .enumerate()
                    .map(|(grant, (key, public))| AgentKey {
                        grant,
                        blob: STANDARD.encode(key.blob()),
                        comment: grants[grant].key.clone(),
                        users: public.users.clone(),
                    })
                    .collect(),
            )),
            Errand::Sign { .. } if self.locked.get() => {
                Err(Trouble::Locked("the vault is locked: run `terok vault unlock`".into()))
            }
            Errand::Sign { grant, bindings, data, flags } => {
                let mut known = KnownHosts::default();
                known.add(&self.known.borrow());
                let (key, public) = &keys[*grant];
                self.signed.set(self.signed.get() + 1);
                self.asked.borrow_mut().push(STANDARD.decode(data).unwrap());
                let wanted = Wanted { bindings, data, flags: *flags };
                errand::sign(&wanted, &grants[*grant], public, &known, || Ok(key.to_pem().unwrap()))
                    .map(Fetched::Signature)
            }
            Errand::Credential { .. } => unreachable!("the signer needs no credential"),
        }
    }
}

fn request(number: u8, parts: &[&[u8]], rest: &[u8]) -> Vec<u8> {
    let mut message = vec![number];
    parts.iter().for_each(|part| put(&mut message, part));
    message.extend(rest);
    message
}

fn sshsig(namespace: &str) -> Vec<u8> {
    let mut data = b"SSHSIG".to_vec();
    [namespace.as_bytes(), b"", b"sha512", &[7; 64]].iter().for_each(|part| put(&mut data, part));
    data
}

fn sign_git(key: &[u8]) -> Vec<u8> {
    request(13, &[key, &sshsig("git")], &[0; 4])
}

#[tokio::test]
async fn what_is_neither_a_list_nor_a_granted_signature_fails_and_is_recorded() {
    LocalSet::new()
        .run_until(async {
            let rig = Rig::start(&["work"], KeyKind::Ed25519, &["git"]);
            let stranger = SshKey::generate(KeyKind::Ed25519, "").unwrap().blob();
            let key = rig.blob(0);
            let asked = [
                request(17, &[b"ssh-ed25519"], b""),
                request(18, &[&key], b""),
                request(19, &[], b""),
                request(22, &[b"lock"], b""),
                request(27, &[b"query"], b""),
                request(27, &[b"session-bind@openssh.com", b"x"], b""),
                request(13, &[&stranger, &sshsig("git")], &[0; 4]),
                request(13, &[&key, &sshsig("file")], &[0; 4]),
                request(13, &[&key, b"anything"], &[0; 4]),
                vec![255],
            ];
            for (n, answer) in rig.say(&asked).await.iter().enumerate() {
                assert_eq!(answer, &[5], "{n}");
            }
            assert_eq!(rig.lines().iter().filter(|line| line["action"] == "refuse").count(), asked.len());
            assert_eq!(rig.store.signed.get(), 0);
            let answers = rig.say(&[vec![11], sign_git(&key)]).await;
            assert_eq!((answers[0][0], answers[1][0]), (12, 14));
            assert_eq!(
                rig.lines().last().unwrap()["detail"],
                serde_json::json!({ "key": "work", "for": "git" })
            );
            assert_eq!(rig.context.audit.refused(), asked.len() as u64);
        })
        .await;
}

#[tokio::test]
async fn a_message_that_is_too_long_or_empty_ends_the_connection() {
    LocalSet::new()
        .run_until(async {
            let rig = Rig::start(&["work"], KeyKind::Ed25519, &["git"]);
            for length in [0, message::LONGEST as u32 + 1, u32::MAX] {
                let mut stream = UnixStream::connect(rig.path("agent.sock")).await.unwrap();
                stream.write_all(&length.to_be_bytes()).await.unwrap();
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).await.unwrap();
                assert_eq!(answer, message::failure());
            }
            let mut full = vec![0; message::LONGEST];
            full[0] = 13;
            assert_eq!(rig.say(&[full, vec![11]]).await[0], [5]);
        })
        .await;
}

#[tokio::test]
async fn a_locked_vault_lists_its_keys_and_signs_again_after_the_unlock() {
    LocalSet::new()
        .run_until(async {
            let rig = Rig::start(&["work"], KeyKind::Ed25519, &["git"]);
            let key = rig.blob(0);
            rig.store.locked.set(true);
            let answers = rig.say(&[vec![11], sign_git(&key)]).await;
            assert_eq!((answers[0][0], &answers[1]), (12, &vec![5]));
            assert!(rig.why().contains("`terok vault unlock`"));
            rig.store.locked.set(false);
            assert_eq!(rig.say(&[sign_git(&key)]).await[0][0], 14);
        })
        .await;
}

#[tokio::test]
async fn a_flood_is_held_to_its_rate_and_nothing_is_signed_unrecorded_or_in_block() {
    LocalSet::new()
        .run_until(async {
            let rig = Rig::start(&["work@github.com"], KeyKind::Ed25519, &["git"]);
            let key = rig.blob(0);
            let full = rig.context.audit.fill();
            assert_eq!(rig.say(&[sign_git(&key)]).await[0], [5]);
            rig.context.audit.free(full);
            rig.context.set_live(Live { state: Some(Shield::Block), ..Live::default() });
            assert_eq!(rig.say(&[sign_git(&key)]).await[0], [5]);
            rig.context.set_live(Live::default());
            // What is refused costs no signature, so that a slow machine floods as well.
            let flood: Vec<Vec<u8>> =
                (0..500).map(|_| request(13, &[&key, &sshsig("file")], &[0; 4])).collect();
            let answers = rig.say(&flood).await;
            assert!(answers.len() == 500 && answers.iter().all(|answer| answer == &[5]));
            assert_eq!(rig.context.audit.refused(), 502);
            let too_many = |line: &serde_json::Value| {
                line["detail"]["why"].as_str().is_some_and(|why| why.contains("too many signatures"))
            };
            assert!(rig.lines().iter().any(too_many));
            assert_eq!(rig.store.signed.get(), 1);
        })
        .await;
}

#[tokio::test]
async fn who_finds_all_places_taken_waits_for_one() {
    LocalSet::new()
        .run_until(async {
            let rig = Rig::start(&["work"], KeyKind::Ed25519, &["git"]);
            let mut hanging = Vec::new();
            for _ in 0..CONNECTIONS {
                hanging.push(UnixStream::connect(rig.path("agent.sock")).await.unwrap());
            }
            let list = [vec![11]];
            let mut waiting = std::pin::pin!(rig.say(&list));
            tokio::time::timeout(Duration::from_millis(200), &mut waiting).await.unwrap_err();
            drop(hanging.pop());
            assert_eq!(waiting.await[0][0], 12);
        })
        .await;
}

#[tokio::test]
async fn ssh_add_lists_the_granted_keys_once_each_and_changes_nothing() {
    if !there("ssh-add") {
        return;
    }
    LocalSet::new()
        .run_until(async {
            let rig = Rig::start(&["work@a.example", "work@b.example", "home"], KeyKind::EcdsaP256, &["git"]);
            let listed = rig.good("ssh-add", &["-l"]).await;
            let prints: Vec<String> = [0, 2].map(|at| rig.store.keys.borrow()[at].0.fingerprint()).to_vec();
            assert_eq!(listed.lines().count(), 2, "{listed}");
            assert!(prints.iter().all(|print| listed.contains(print)), "{listed}");
            let theirs = SshKey::generate(KeyKind::Ed25519, "").unwrap();
            std::fs::write(rig.path("theirs"), theirs.to_pem().unwrap().as_bytes()).unwrap();
            std::fs::set_permissions(rig.path("theirs"), PermissionsExt::from_mode(0o600)).unwrap();
            for arguments in [&["theirs"][..], &["-D"], &["-x"]] {
                assert!(!rig.run("ssh-add", arguments).await.status.success(), "{arguments:?}");
            }
            assert_eq!(rig.good("ssh-add", &["-l"]).await, listed);
        })
        .await;
}

#[tokio::test]
async fn ssh_keygen_signs_for_git_alone_and_git_signs_commits() {
    if !there("ssh-keygen") || !there("git") {
        return;
    }
    LocalSet::new()
        .run_until(async {
            for kind in [KeyKind::Ed25519, KeyKind::EcdsaP521] {
                let rig = Rig::start(&["work@github.com"], kind, &["git"]);
                let public = rig.store.keys.borrow()[0].1.public.clone();
                std::fs::write(rig.path("work.pub"), format!("{public}\n")).unwrap();
                std::fs::write(rig.path("signers"), format!("me@example.com {public}\n")).unwrap();
                std::fs::write(rig.path("message"), "text").unwrap();
                let sign = |namespace| ["-Y", "sign", "-n", namespace, "-f", "work.pub", "message"];
                assert!(!rig.run("ssh-keygen", &sign("file")).await.status.success());
                assert!(rig.why().contains("not file"));
                rig.good("ssh-keygen", &sign("git")).await;
                rig.good("git", &["init", "-q", "repo"]).await;
                let set = [
                    ("gpg.format", "ssh"),
                    ("user.signingkey", "work.pub"),
                    ("user.email", "me@example.com"),
                    ("user.name", "Me"),
                    ("gpg.ssh.allowedSignersFile", "signers"),
                ];
                for (name, value) in set {
                    let value = if value.contains("work.pub") || value == "signers" {
                        rig.path(value).display().to_string()
                    } else {
                        value.to_owned()
                    };
                    rig.good("git", &["-C", "repo", "config", name, &value]).await;
                }
                rig.good("git", &["-C", "repo", "commit", "-q", "-S", "--allow-empty", "-m", "signed"]).await;
                rig.good("git", &["-C", "repo", "verify-commit", "HEAD"]).await;
            }
        })
        .await;
}

/// A real SSH server on loopback, in a mount namespace where root's home is its own.
struct Server {
    child: Child,
    port: String,
}

impl Server {
    /// Lets the key of the rig's first grant in; `None` where it cannot be started here.
    async fn start(rig: &Rig, name: &str) -> Option<Self> {
        if !there("dropbear") || !there("dropbearkey") || !there("unshare") {
            return None;
        }
        let mounts = Command::new("unshare").args(["-m", "true"]).stderr(Stdio::null()).status();
        if !mounts.is_ok_and(|mounts| mounts.success()) {
            eprintln!("skipped: no mount namespace; run as root");
            return None;
        }
        let host = rig.path(name);
        rig.good("dropbearkey", &["-t", "ed25519", "-f", &host.display().to_string()]).await;
        std::fs::write(rig.path("authorized_keys"), &rig.store.keys.borrow()[0].1.public).unwrap();
        // The port is found free and taken a moment later; nobody else's tests look for one between.
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
        let script = "mount -t tmpfs -o mode=700 tmpfs /root && mkdir -m 700 /root/.ssh && cp authorized_keys /root/.ssh/ \
                      && chmod 600 /root/.ssh/authorized_keys && cd /root && PATH=$PATH:/usr/sbin \
                      && exec dropbear -F -E -s -r \"$0\" -p 127.0.0.1:\"$1\" -P /root/pid";
        let child = Command::new("unshare")
            .args(["-m", "sh", "-c", script])
            .arg(&host)
            .arg(&port)
            .current_dir(rig.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(rig.path("server.log")).unwrap())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while std::net::TcpStream::connect(("127.0.0.1", port.parse::<u16>().unwrap())).is_err() {
            let log = || std::fs::read_to_string(rig.path("server.log"));
            assert!(Instant::now() < deadline, "no server: {:?}", log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Some(Server { child, port })
    }

    /// OpenSSH's server, which forwards agents and takes logins that name its host key; `None` where it cannot be started here.
    async fn openssh(rig: &Rig, name: &str) -> Option<Self> {
        if !there("sshd") || !there("ssh-keygen") || !there("unshare") {
            return None;
        }
        let mounts = Command::new("unshare").args(["-m", "true"]).stderr(Stdio::null()).status();
        if !mounts.is_ok_and(|mounts| mounts.success()) {
            eprintln!("skipped: no mount namespace; run as root");
            return None;
        }
        rig.good("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", name]).await;
        std::fs::write(rig.path("authorized_keys"), &rig.store.keys.borrow()[0].1.public).unwrap();
        let port =
            std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
        let config = format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {}\nPidFile none\nUsePAM no\nStrictModes no\nPermitRootLogin yes\n\
             AllowAgentForwarding yes\nAuthorizedKeysFile {}\nKbdInteractiveAuthentication no\nPasswordAuthentication no\n",
            rig.path(name).display(),
            rig.path("authorized_keys").display()
        );
        std::fs::write(rig.path(&format!("{name}.conf")), config).unwrap();
        // It demands an absolute path, a folder of its own in /run, and a shell's home without anybody's start-up files.
        let script = "mount -t tmpfs tmpfs /run && mkdir /run/sshd && mount -t tmpfs -o mode=700 tmpfs /root \
                      && PATH=$PATH:/usr/sbin && exec \"$(command -v sshd)\" -D -e -f \"$0\"";
        let child = Command::new("unshare")
            .args(["-m", "sh", "-c", script])
            .arg(rig.path(&format!("{name}.conf")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(rig.path(&format!("{name}.log"))).unwrap())
            .spawn()
            .unwrap();
        let server = Server { child, port };
        let deadline = Instant::now() + Duration::from_secs(60);
        while std::net::TcpStream::connect(("127.0.0.1", server.port.parse::<u16>().unwrap())).is_err() {
            let log = || std::fs::read_to_string(rig.path(&format!("{name}.log")));
            assert!(Instant::now() < deadline, "no server: {:?}", log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Some(server)
    }

    /// Its public key on one line.
    async fn key(rig: &Rig, name: &str) -> String {
        let shown = rig.good("dropbearkey", &["-y", "-f", name]).await;
        shown.lines().find(|line| line.starts_with("ssh-")).unwrap().to_owned()
    }

    /// Logs in with `ssh` as root and runs a command.
    async fn login(&self, rig: &Rig) -> Output {
        self.login_with(rig, &[], "echo in").await
    }

    async fn login_with(&self, rig: &Rig, more: &[&str], command: &str) -> Output {
        let options = [
            "-F",
            "none",
            "-p",
            &self.port,
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=known",
            "-o",
            "BatchMode=yes",
            "-o",
            "ConnectTimeout=10",
        ];
        let options = [&options[..], more, &["root@127.0.0.1", command]].concat();
        rig.run("ssh", &options).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn ssh_logs_in_at_the_granted_host_and_nowhere_else() {
    if !there("ssh") {
        return;
    }
    LocalSet::new()
        .run_until(async {
            let rig = Rig::start(&["work@git.example"], KeyKind::Ed25519, &["root"]);
            let Some(server) = Server::start(&rig, "host").await else { return };
            assert!(!server.login(&rig).await.status.success());
            assert!(rig.why().contains("terok ssh hosts add git.example SHA256:"), "{}", rig.why());
            let other = SshKey::generate(KeyKind::Ed25519, "").unwrap().public();
            rig.store.known.replace(format!("git.example {other}\n"));
            assert!(!server.login(&rig).await.status.success());
            assert!(rig.why().contains("none of those known"), "{}", rig.why());
            rig.store.known.replace(format!("git.example {}\n", Server::key(&rig, "host").await));
            let output = server.login(&rig).await;
            assert_eq!(String::from_utf8_lossy(&output.stdout), "in\n", "{output:?} {:?}", rig.lines());
            let line = rig.lines().pop().unwrap();
            assert_eq!((&line["action"], &line["target"]), (&"sign".into(), &"git.example".into()));
            let detail = serde_json::json!({ "key": "work", "for": "login", "user": "root" });
            assert_eq!(line["detail"], detail);
        })
        .await;
}

/// OpenSSH's client and server agree on a login that names the host key inside what is signed (PROTOCOL, section 3.1).
#[tokio::test]
async fn a_login_that_names_the_hosts_key_is_signed_at_that_host_and_is_not_forwarded() {
    if !there("ssh") {
        return;
    }
    LocalSet::new()
        .run_until(async {
            let rig = Rig::start(&["work@git.example"], KeyKind::Ed25519, &["root"]);
            let Some(server) = Server::openssh(&rig, "host").await else { return };
            let public = std::fs::read_to_string(rig.path("host.pub")).unwrap();
            let other = SshKey::generate(KeyKind::Ed25519, "").unwrap().public();
            rig.store.known.replace(format!("git.example {other}\n"));
            assert!(!server.login(&rig).await.status.success());
            assert!(rig.why().contains("none of those known"), "{}", rig.why());

            rig.store.known.replace(format!("git.example {public}\n"));
            let output = server.login(&rig).await;
            assert_eq!(String::from_utf8_lossy(&output.stdout), "in\n", "{output:?} {:?}", rig.lines());
            let asked = rig.store.asked.borrow().last().unwrap().clone();
            let has = |needle: &[u8]| asked.windows(needle.len()).any(|window| window == needle);
            let host_key = STANDARD.decode(public.split(' ').nth(1).unwrap()).unwrap();
            assert!(has(b"publickey-hostbound-v00@openssh.com") && has(&host_key), "not bound to the host's key");

            // From there, with the agent forwarded, back to the same host: granted, known, and still not from here.
            let signed = rig.store.signed.get();
            let again = format!(
                "ssh -F none -p {} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o BatchMode=yes root@127.0.0.1 echo through",
                server.port
            );
            let output = server.login_with(&rig, &["-A"], &format!("{again}; ssh-add -l")).await;
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(!said.contains("through") && said.contains("SHA256:"), "{output:?}");
            assert_eq!(rig.why(), "the agent is not forwarded to other hosts");
            assert_eq!(rig.store.signed.get(), signed + 1, "the first login's alone");
        })
        .await;
}

/// With the file that a container is given, and the user's own checks as strict as they can be.
#[tokio::test]
async fn the_file_of_known_hosts_is_what_a_strict_client_needs() {
    if !there("ssh") {
        return;
    }
    LocalSet::new()
        .run_until(async {
            let rig = Rig::start(&["work@git.example"], KeyKind::Ed25519, &["root"]);
            let Some(server) = Server::openssh(&rig, "host").await else { return };
            let public = std::fs::read_to_string(rig.path("host.pub")).unwrap();
            rig.store.known.replace(format!("git.example {public}\n"));
            for (text, good) in [(format!("git.example {public}\n"), true), (String::new(), false)] {
                let mut known = KnownHosts::default();
                known.add(&text);
                let file = rig.path("given");
                std::fs::write(&file, known.file_for(&rig.context.config.policy.ssh)).unwrap();
                let global = format!("GlobalKnownHostsFile={} /none", file.display());
                let strict = [
                    "StrictHostKeyChecking=yes",
                    "UserKnownHostsFile=/none",
                    "HostName=127.0.0.1",
                    "BatchMode=yes",
                    &global,
                ];
                let mut options = vec!["-F", "none", "-p", &server.port];
                strict.iter().for_each(|option| options.extend(["-o", option]));
                options.extend(["-o", "HostKeyAlias=git.example", "root@git.example", "echo in"]);
                let output = rig.run("ssh", &options).await;
                assert_eq!(output.stdout == b"in\n", good, "{output:?} {:?}", rig.lines());
            }
        })
        .await;
}

#[tokio::test]
async fn ssh_logs_in_as_no_other_user_than_the_keys() {
    if !there("ssh") {
        return;
    }
    LocalSet::new()
        .run_until(async {
            let rig = Rig::start(&["work"], KeyKind::Ed25519, &["git"]);
            let Some(server) = Server::start(&rig, "host").await else { return };
            assert!(!server.login(&rig).await.status.success());
            assert!(rig.why().contains("for the users git, not root"), "{}", rig.why());
        })
        .await;
}

#[tokio::test]
async fn a_client_that_binds_no_session_logs_in_with_a_key_for_any_host_alone() {
    if !there("dbclient") {
        return;
    }
    LocalSet::new()
        .run_until(async {
            for (grant, good) in [("work", true), ("work@git.example", false)] {
                let rig = Rig::start(&[grant], KeyKind::Ed25519, &["root"]);
                let Some(server) = Server::start(&rig, "host").await else { return };
                rig.store.known.replace(format!("git.example {}\n", Server::key(&rig, "host").await));
                let output = rig
                    .run("dbclient", &["-y", "-y", "-T", "-p", &server.port, "root@127.0.0.1", "echo in"])
                    .await;
                assert_eq!(output.stdout == b"in\n", good, "{grant}: {output:?} {:?}", rig.lines());
                if !good {
                    assert!(rig.why().contains("does not say at which host"), "{}", rig.why());
                }
            }
        })
        .await;
}

#[tokio::test]
async fn a_key_for_two_hosts_is_used_at_each() {
    if !there("ssh") {
        return;
    }
    LocalSet::new()
        .run_until(async {
            let rig = Rig::start(&["work@a.example", "work@b.example"], KeyKind::EcdsaP384, &["root"]);
            let Some(server) = Server::start(&rig, "host").await else { return };
            rig.store.known.replace(format!("b.example {}\n", Server::key(&rig, "host").await));
            let output = server.login(&rig).await;
            assert_eq!(String::from_utf8_lossy(&output.stdout), "in\n", "{output:?} {:?}", rig.lines());
            assert_eq!(rig.lines().pop().unwrap()["target"], "b.example");
        })
        .await;
}

#[tokio::test]
async fn an_answer_lists_keys_in_wire_form() {
    LocalSet::new()
        .run_until(async {
            let rig = Rig::start(&["work"], KeyKind::Ed25519, &["git"]);
            let answer = rig.say(&[vec![11]]).await.remove(0);
            let mut rest = &answer[5..];
            assert_eq!(
                (string(&mut rest).unwrap(), string(&mut rest).unwrap()),
                (&rig.blob(0)[..], &b"work"[..])
            );
        })
        .await;
}
