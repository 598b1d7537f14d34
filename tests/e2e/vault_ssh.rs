//! The SSH agent of a container is no signing oracle: granted keys, granted hosts, granted users, commits; nothing else (A19).

use crate::vault_clients::{key, with_key};
use serde_json::Value;
use terok_tests::{Container, Mode, Net, Recipe, Vault, both_modes, both_modes_alone, eventually};

/// Refused and signed, as the audit log has them.
fn signatures(container: &Container) -> (u64, u64) {
    let lines = container.audit();
    let count = |action: &str| {
        let ours = lines.iter().filter(|line| line["kind"] == "ssh" && line["action"] == action);
        ours.map(|line| line["count"].as_u64().unwrap_or(1)).sum()
    };
    (count("refuse"), count("sign"))
}

#[track_caller]
fn idle(mode: Mode, key: &str) -> Container {
    with_key(Net::sealed(mode), key).idle()
}

/// Speaks the agent's protocol (draft-ietf-sshm-ssh-agent) octet by octet.
const AGENT: &str = r"
import os, socket, struct, sys
def text(b): return struct.pack('>I', len(b)) + b
def ask(kind, body, s=None):
    if s is None: s = socket.socket(socket.AF_UNIX); s.connect(os.environ['SSH_AUTH_SOCK']); s.settimeout(10)
    s.sendall(text(bytes([kind]) + body))
    def take(n):
        got = b''
        while len(got) < n:
            part = s.recv(n - len(got))
            if not part: return None
            got += part
        return got
    n = take(4)
    return (take(struct.unpack('>I', n)[0]) if n else None), s
keys, s = ask(11, b'')
assert keys[0] == 12, keys
blob = keys[9:9 + struct.unpack('>I', keys[5:9])[0]]
def sign(data, s=None): return ask(13, text(blob) + text(data) + struct.pack('>I', 0), s)[0]
def login(user, session=b'\x07' * 32): return text(session) + b'\x32' + text(user) + text(b'ssh-connection') + text(b'publickey') + b'\x01' + text(b'ssh-ed25519') + text(blob)
";

both_modes! {
    /// Both servers would let the key in, as either user: only the signer stands before it.
    fn a_login_elsewhere_or_as_somebody_else_is_not_signed(mode: Mode) {
        let (key, _) = key(mode, "ed25519");
        let container = idle(mode, &key);
        container.sh("ssh -o BatchMode=yes git@github.com \"git-upload-pack 'lab/repo.git'\" </dev/null | head -c 1 | wc -c").succeeded();
        let (refused, _) = signatures(&container);
        assert_eq!(refused, 0);
        for target in ["git@ssh2.example.com", "deploy@github.com"] {
            let said = container.sh(&format!("ssh -o BatchMode=yes -o PreferredAuthentications=publickey {target} true")).failed();
            assert!(said.contains("Permission denied"), "{target}: {said}");
        }
        eventually("both refusals and the allowed login are in the audit log", || {
            let (refused, signed) = signatures(&container);
            refused >= 2 && signed >= 1
        });
    }

    fn only_the_namespace_of_git_is_signed(mode: Mode) {
        let (key, _) = key(mode, "ed25519");
        let container = idle(mode, &key);
        let sign = |namespace: &str| container.sh(&format!("ssh-add -L > /tmp/key.pub; echo text > /tmp/text; rm -f /tmp/text.sig; ssh-keygen -Y sign -n {namespace} -f /tmp/key.pub /tmp/text"));
        sign("git").succeeded();
        for namespace in ["file", "email", "gitx", "GIT"] {
            sign(namespace).failed();
        }
        eventually("the refusals are in the audit log", || signatures(&container).0 >= 4);
    }

    /// Octets that are no login and no commit; a login of a session that nobody bound; a bound one whose host signed nothing.
    fn what_no_client_of_a_granted_host_would_ask_is_not_signed(mode: Mode) {
        let (key, _) = key(mode, "ed25519");
        let container = idle(mode, &key);
        let program = format!("{AGENT}{}", r"
import base64
tries = {
    'octets': sign(b'hello'), 'nothing': sign(b''), 'unbound login': sign(login(b'git')), 'a token': sign(b'SSHSIG' + text(b'file') + text(b'') + text(b'sha512') + text(b'\0' * 64)),
    'a certificate': ask(13, text(text(b'ssh-ed25519-cert-v01@openssh.com') + blob) + text(login(b'git')) + struct.pack('>I', 0))[0],
    'a key it does not have': ask(13, text(text(b'ssh-ed25519') + text(b'\x01' * 32)) + text(login(b'git')) + struct.pack('>I', 0))[0],
    'add': ask(17, text(b'ssh-ed25519') + text(b'\0' * 32))[0], 'remove all': ask(19, b'')[0], 'lock': ask(22, text(b'x'))[0], 'unknown extension': ask(27, text(b'query@evil.example'))[0], 'smart card': ask(20, text(b'/x') + text(b''))[0],
}
bind = lambda host, session, signature: text(b'session-bind@openssh.com') + text(host) + text(session) + text(signature) + b'\0'
# The granted host's own key, which everybody knows: only its signature is missing.
host = next(base64.b64decode(line.split()[2]) for line in open('/etc/ssh/ssh_known_hosts') if line.startswith('github.com ssh-ed25519 '))
bound, s = ask(27, bind(host, b'\x07' * 32, text(b'ssh-ed25519') + text(b'\x03' * 64)))
tries['a forged binding'] = bound
tries['a login with a forged binding'] = sign(login(b'git'), s)
for name, got in tries.items():
    # 28: an extension's own failure
    print(name, 'refused' if got is None or got[0] in (5, 28) else got.hex())
");
        let out = container.python(&program).succeeded();
        assert_eq!(out.lines().count(), 13, "{out}");
        assert!(out.lines().all(|line| line.ends_with(" refused")), "{out}");
        assert_eq!(signatures(&container).1, 0);
        container.sh("ssh-add -L").succeeded();
    }

    fn a_flood_of_signatures_is_slowed_down(mode: Mode) {
        let (key, _) = key(mode, "ed25519");
        let container = idle(mode, &key);
        let program = format!("{AGENT}{}", r"
import hashlib
data = b'SSHSIG' + text(b'git') + text(b'') + text(b'sha512') + text(hashlib.sha512(b'x').digest())
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(24) as pool: print(sum(1 for got in pool.map(lambda n: sign(data), range(600)) if got and got[0] == 14))
");
        let started = std::time::Instant::now();
        let signed: u64 = container.python(&program).succeeded().trim().parse().expect("a number");
        let most = 31 + 10 * started.elapsed().as_secs().saturating_add(1);
        assert!((10..=most).contains(&signed), "{signed} in {:?}", started.elapsed());
        assert!(signed < 600, "none was refused, in {:?}", started.elapsed());
    }

    fn only_granted_keys_are_there_and_only_where_granted(mode: Mode) {
        let ((mine, _), (other, _)) = (key(mode, "ed25519"), key(mode, "ed25519"));
        let listed = idle(mode, &mine).sh("ssh-add -l").succeeded();
        assert!(listed.contains(&mine) && !listed.contains(&other) && listed.lines().count() == 1, "{listed}");
        let without = Recipe::sealed(mode, "github.com:22").image("localhost/wl").idle();
        let said = mode.podman(&["exec", &without.name, "sh", "-c", "ls /run/terok; echo agent: $SSH_AUTH_SOCK"]);
        assert!(said.stdout.ends_with("agent:\n") && !said.stdout.contains("sock"), "{said:?}");
    }

    /// A user of the container's own, and after the worker died: the socket is the same.
    fn the_agent_outlives_its_worker_and_serves_every_user(mode: Mode) {
        let (key, _) = key(mode, "ed25519");
        let container = with_key(Net::sealed(mode), &key).option("--user=1000:1000").idle();
        let inode = || container.sh("stat -c %i $SSH_AUTH_SOCK; stat -c %i /run/terok").succeeded();
        let (before, listed) = (inode(), container.sh("ssh-add -L").succeeded());
        container.loses_its_worker();
        assert_eq!(container.sh("ssh-add -L").succeeded(), listed);
        assert_eq!(inode(), before);
    }
}

both_modes_alone! {
    fn a_locked_vault_signs_nothing_and_signs_again_when_unlocked(mode: Mode) {
        let (key, _) = key(mode, "ed25519");
        let container = idle(mode, &key);
        let sign = || container.sh("ssh-add -L > /tmp/key.pub; echo text > /tmp/text; rm -f /tmp/text.sig; ssh-keygen -Y sign -n git -f /tmp/key.pub /tmp/text");
        sign().succeeded();
        let _locked = Vault(mode).lock();
        sign().failed();
        let told = |line: &Value| line["kind"] == "ssh" && line.to_string().contains("terok vault unlock");
        eventually("the audit log has the command", || container.audit().iter().any(told));
        Vault(mode).unlock();
        sign().succeeded();
    }
}
