//! Real clients, unmodified, with a phantom token: the service sees the real credential, and nothing else does.

use std::path::Path;
use terok_tests::{
    Container, Ended, Mode, Net, Recipe, Service, Vault, both_modes, eventually, every_network, secret, seen,
    site,
};

/// A git host and a token for it, in the vault under a name of the test's own.
fn github(mode: Mode) -> (String, String) {
    let (name, token) = (format!("t{}", site().number), secret("ghp_"));
    Vault::open(mode).add("github", &name, &token);
    (name, token)
}

/// An SSH key in the vault under a name of its own, which the git hosts of the lab let in; its name and private part (PEM).
#[track_caller]
pub(crate) fn key(mode: Mode, kind: &str) -> (String, String) {
    let name = format!("k{}", site().number);
    let path = format!("/run/home/tester/{name}");
    Vault::open(mode);
    Mode::Rootless.run("ssh-keygen", &["-q", "-t", kind, "-N", "", "-C", &name, "-f", &path]).succeeded();
    let private = std::fs::read_to_string(&path).expect("it was just made");
    let public = std::fs::read_to_string(format!("{path}.pub")).expect("it was just made");
    mode.run("terok", &["ssh", "import", &name, &path]).succeeded();
    for end in ["", ".pub"] {
        std::fs::remove_file(format!("{path}{end}")).expect("it was just made");
    }
    let keys = std::fs::OpenOptions::new().append(true).open("/run/inet/git_keys");
    std::io::Write::write_all(&mut keys.expect("the lab has one"), public.as_bytes())
        .expect("it can be written");
    (name, private)
}

/// A container whose agent has this key for logins at github.com, and which may connect to the lab's git hosts.
pub(crate) fn with_key(net: Net, key: &str) -> Recipe {
    Recipe::on(net, "github.com:22 ssh2.example.com:22")
        .image("localhost/wl")
        .annotate("ssh", &format!("{key}@github.com"))
        .option("--volume=/run/inet/git_hosts:/etc/ssh/ssh_known_hosts:ro")
}

const PYTHON: &str = r#"
import os, requests, httpx
url, base, token = os.environ['URL'], os.environ['LAB_BASE_URL'], os.environ['LAB_TOKEN']
own = {'Authorization': 'Bearer ' + token}
for way in (base, url):
    print(requests.get(way + '/seen/requests', headers=own).json()['target'])
    print(httpx.get(way + '/seen/httpx', headers=own).json()['target'])
with httpx.Client(http2=True) as client:
    answer = client.get(url + '/seen/http2', headers=own); print(answer.http_version, answer.json()['target'])
"#;

const NODE: &str = r"
const own = { Authorization: 'Bearer ' + process.env.LAB_TOKEN };
for (const way of [process.env.LAB_BASE_URL, process.env.URL])
  fetch(way + '/seen/node', { headers: own }).then(r => r.json()).then(seen => console.log(seen.target));
";

#[track_caller]
fn count(ended: Ended, word: &str) -> usize {
    ended.succeeded().lines().filter(|line| line.ends_with(word)).count()
}

every_network! {
    /// By the base URL and at the service's own name, over HTTP/1.1 and HTTP/2.
    fn curl_is_served_over_both_ways_in(net: Net) {
        let service = Service::new(net.mode());
        let container = service.recipe(net).idle().settled();
        for way in ["$LAB_BASE_URL", &format!("https://{}", service.site.name)] {
            for version in ["--http1.1", "--http2"] {
                let answer = container.curl(&format!("{version} {way}/v1/messages -H \"Authorization: Bearer $LAB_TOKEN\""));
                assert_eq!(answer.status, 200, "{way} {version}: {answer:?}");
            }
        }
        assert_eq!(service.requests("/v1/messages").len(), 4);
        service.got_the_real_key("/v1/messages");
    }
}

both_modes! {
    fn requests_httpx_and_fetch_are_served_over_both_ways_in(mode: Mode) {
        let service = Service::new(mode);
        let recipe = service.recipe(Net::sealed(mode)).option(&format!("--env=URL=https://{}", service.site.name));
        let (_gone, ended) = recipe.run(&["python3", "-c", PYTHON]);
        assert_eq!(ended.succeeded(), "/seen/requests\n/seen/httpx\n/seen/requests\n/seen/httpx\nHTTP/2 /seen/http2\n");
        let (_gone, ended) = recipe.run(&["node", "-e", NODE]);
        assert_eq!(count(ended, "/seen/node"), 2);
        for path in ["/seen/requests", "/seen/httpx", "/seen/http2", "/seen/node"] {
            service.got_the_real_key(path);
        }
    }

    /// The bundled definition: no provider file, the variables that the service's own client reads.
    fn the_anthropic_api_is_served_with_its_own_variables(mode: Mode) {
        let (name, key) = (format!("t{}", site().number), secret("sk-ant-api03-"));
        Vault::open(mode).add("anthropic", &name, &key);
        let recipe = Recipe::sealed(mode, "").image("localhost/wl").annotate("vault", &format!("anthropic={name}"));
        let container = recipe.idle();
        for way in ["$ANTHROPIC_BASE_URL", "https://api.anthropic.com"] {
            let answer = container.curl(&format!("-N {way}/v1/messages -H \"x-api-key: $ANTHROPIC_API_KEY\" -H 'content-type: application/json' -d '{{\"stream\":true}}'"));
            assert!(answer.status == 200 && answer.body.contains("\"lab\""), "{way}: {answer:?}");
        }
        assert!(container.variable("ANTHROPIC_API_KEY").starts_with("sk-ant-api03-"));
        let arrived = seen().into_iter().filter(|line| line["host"] == "api.anthropic.com" && line.to_string().contains(&key));
        assert_eq!(arrived.count(), 2);
    }

    fn git_clones_and_pushes_over_https_with_a_token(mode: Mode) {
        let ((name, token), branch) = (github(mode), site().name);
        let recipe = Recipe::sealed(mode, "").image("localhost/wl").annotate("vault", &format!("github={name}"));
        let script = format!("cd /tmp; git clone -q https://github.com/lab/repo.git r; cd r; cat README; git config user.email a@b; git config user.name a
            head -c 3000000 /dev/urandom > blob; git add blob; git commit -qm blob; git push -q origin HEAD:refs/heads/{branch}; git ls-remote origin {branch}");
        let (_gone, ended) = recipe.run(&["sh", "-ec", &script]);
        let out = ended.succeeded();
        assert!(out.contains("hello from the lab") && out.contains(&branch), "{out}");
        // base64 of `x-access-token:TOKEN`, as the server saw it.
        let arrived = seen().into_iter().filter(|line| line["host"] == "github.com" && line["method"] == "POST");
        let ours = arrived.filter(|line| {
            terok_tests::headers(line, "authorization").iter().any(|value| decoded(value).ends_with(&format!(":{token}")))
        });
        assert!(ours.count() >= 2, "a clone and a push");
    }

    fn git_and_ssh_log_in_with_a_sealed_key(mode: Mode) {
        let branch = site().name;
        for kind in ["ed25519", "ecdsa", "rsa"] {
            let (key, _) = key(mode, kind);
            let script = format!("ssh-add -l; ssh -o BatchMode=yes git@github.com \"git-upload-pack 'lab/repo.git'\" </dev/null 2>/dev/null | head -c 4 | wc -c
                cd /tmp; rm -rf r; git clone -q git@github.com:lab/repo.git r; cd r; cat README; git config user.email a@b; git config user.name a
                git commit -q --allow-empty -m {kind}; git push -q origin HEAD:refs/heads/{branch}-{kind}; git ls-remote origin {branch}-{kind}");
            let (container, ended) = with_key(Net::sealed(mode), &key).run(&["sh", "-ec", &script]);
            let out = ended.succeeded();
            assert!(out.contains("hello from the lab") && out.contains(&format!("{branch}-{kind}")), "{kind}: {out}");
            assert!(out.contains("\n4\n"), "ssh itself: {out}");
            container.audited("ssh", "sign", "");
        }
    }

    fn a_commit_is_signed_with_a_sealed_key(mode: Mode) {
        let (key, _) = key(mode, "ed25519");
        let script = "cd /tmp; git init -q r; cd r; git config user.email a@b; git config user.name a; git config gpg.format ssh
            ssh-add -L | head -1 > /tmp/key.pub; git config user.signingkey /tmp/key.pub
            echo \"a@b namespaces=\\\"git\\\" $(cut -d' ' -f1,2 /tmp/key.pub)\" > /tmp/signers; git config gpg.ssh.allowedSignersFile /tmp/signers
            git commit -q --allow-empty -S -m signed; git verify-commit HEAD 2>&1";
        let (container, ended) = with_key(Net::sealed(mode), &key).run(&["sh", "-ec", script]);
        let out = ended.succeeded();
        assert!(out.contains("Good \"git\" signature for a@b"), "{out}");
        container.audited("ssh", "sign", "");
    }

    /// One container that used an API key, a git token and an SSH key; then every place it, Podman and terok leave anything is searched.
    fn the_real_keys_are_upstream_and_nowhere_else(mode: Mode) {
        let service = Service::new(mode);
        let (name, token) = github(mode);
        let (key, private) = key(mode, "ed25519");
        let container = with_key(Net::sealed(mode), &key).annotate("vault", &format!("{} github={name}", service.provider)).idle();
        let base = container.curl("$LAB_BASE_URL/v1/messages -H \"Authorization: Bearer $LAB_TOKEN\"");
        let own = container.curl(&format!("https://{}/reflect/plain -H \"Authorization: Bearer $LAB_TOKEN\"", service.site.name));
        assert_eq!((base.status, own.status), (200, 200), "{base:?} {own:?}");
        container.sh("cd /tmp; git clone -q https://github.com/lab/repo.git a; git clone -q git@github.com:lab/repo.git b").succeeded();
        service.got_the_real_key("/v1/messages");

        let phantom = container.variable("LAB_TOKEN");
        let pem: Vec<&str> = private.lines().filter(|line| !line.starts_with('-')).collect();
        // The middle lines of the key file hold the private half.
        let mut secrets = vec![service.secret.clone(), token.clone(), format!("x-access-token:{token}")];
        secrets.extend(pem.iter().skip(2).take(2).map(ToString::to_string));
        for places in [of_the_container(&container), of_podman(&container), of_terok(&container)] {
            let found = holding(&places, &secrets);
            assert!(found.is_empty(), "a real key is in {found:?}");
        }
        // The search does find what is there: the token that the container was given.
        assert!(!holding(&of_the_container(&container), std::slice::from_ref(&phantom)).is_empty(), "the search finds nothing");
        let (parent, worker) = container.served_by();
        let planted: Vec<Vec<u8>> = secrets.iter().map(|s| s.clone().into_bytes()).chain([seed(&private)]).collect();
        let in_parent = planted.iter().filter(|secret| memory_holds(parent, secret)).count();
        assert_eq!(in_parent, 0, "the parent's memory holds a real key");
        assert!(!memory_holds(worker, &seed(&private)), "the worker's memory holds the private key");
        assert!(memory_holds(worker, phantom.as_bytes()), "the search of a memory finds nothing");
        container.podman(&["stop", "--time=0"]).succeeded();
        eventually("its supervisor ends", || container.supervisors().is_empty());
        let found = holding(&[of_podman(&container), of_terok(&container)].concat(), &secrets);
        assert!(found.is_empty(), "after its end a real key is in {found:?}");
    }
}

/// `Basic …` without its base64.
fn decoded(header: &str) -> String {
    let text = header.split_once(' ').map_or("", |(_, text)| text);
    Mode::Rootful.fed("base64", &["-d"], text).stdout
}

/// The 32 octets of an ed25519 private key: they stand before the last copy of the public ones (PROTOCOL.key).
fn seed(pem: &str) -> Vec<u8> {
    let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let path = format!("/run/inet/seed-{}", site().number);
    Mode::Rootful.fed("sh", &["-c", &format!("base64 -d > {path}")], &body).succeeded();
    let octets = std::fs::read(&path).expect("it was just written");
    let _ = std::fs::remove_file(path);
    // `openssh-key-v1`, none, none, no options, one key: kind and public part from octet 43 on, 4 + 11 + 4 before the 32.
    let public = &octets[62..94];
    let at = octets.windows(32).rposition(|window| window == public).expect("the public half is in it twice");
    octets[at - 32..at].to_vec()
}

/// What the container sees: its files, and what its processes show of themselves.
fn of_the_container(container: &Container) -> Vec<String> {
    let root = format!("/proc/{}/root", container.pid());
    let mut places: Vec<String> =
        ["bin", "etc", "home", "opt", "root", "run", "srv", "tmp", "usr", "var", "dev/shm"]
            .iter()
            .map(|folder| format!("{root}/{folder}"))
            .collect();
    for what in ["environ", "cmdline", "mountinfo"] {
        places.push(format!("/proc/{}/{what}", container.pid()));
    }
    places.retain(|place| Path::new(place).exists());
    places
}

/// What Podman keeps and says.
fn of_podman(container: &Container) -> Vec<String> {
    let inspect = format!("/run/inet/inspect-{}", container.name);
    let text = container.mode.podman(&["inspect", &container.name]).succeeded();
    std::fs::write(&inspect, text).expect("/run is writable");
    let (store, run) = match container.mode {
        Mode::Rootful => ("/var/lib/containers/storage", "/run/containers"),
        Mode::Rootless => ("/run/home/tester/.local/share/containers/storage", "/run/user/1001"),
    };
    let mut places: Vec<String> = ["overlay-containers", "libpod", "volumes", "db.sql"]
        .iter()
        .map(|name| format!("{store}/{name}"))
        .filter(|place| Path::new(place).exists())
        .collect();
    let upper = container.podman(&["inspect", "--format={{.GraphDriver.Data.UpperDir}}"]).succeeded();
    places.extend([upper.trim().to_owned(), run.to_owned(), inspect]);
    places
}

/// What terok keeps: state, audit log, runtime folders, the sealed store, the session.
fn of_terok(container: &Container) -> Vec<String> {
    let parent = |path: std::path::PathBuf| path.parent().expect("it has one").display().to_string();
    vec![
        parent(container.mode.state(&container.id)),
        parent(container.mode.runtime(&container.id)),
        Vault(container.mode).folder().display().to_string(),
    ]
}

/// Those of `places`, folders with all that is below them, that hold one of the `secrets`.
fn holding(places: &[String], secrets: &[String]) -> Vec<String> {
    // Below a folder that is not searched itself.
    let list = format!("/run/inet/secrets-{}", site().number);
    std::fs::write(&list, secrets.join("\n")).expect("/run is writable");
    let mut arguments = vec!["-rlaF", "--devices=skip", "-f", &list];
    arguments.extend(places.iter().map(String::as_str));
    Mode::Rootful.run("grep", &arguments).stdout.lines().map(str::to_owned).collect()
}

/// Whether a process has these octets anywhere in its memory: what a core dump of it would show.
pub(crate) fn memory_holds(pid: u32, octets: &[u8]) -> bool {
    use std::os::unix::fs::FileExt;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process lives");
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).expect("root may read it");
    let mut read = 0;
    let held = maps.lines().any(|line| {
        let Some((start, end)) = line.split(' ').next().and_then(|range| range.split_once('-')) else {
            return false;
        };
        let number = |text| u64::from_str_radix(text, 16).unwrap_or(0);
        let mut area = vec![0; usize::try_from(number(end) - number(start)).unwrap_or(0)];
        // Guard pages and the kernel's own cannot be read.
        if memory.read_exact_at(&mut area, number(start)).is_err() {
            return false;
        }
        read += area.len();
        area.windows(octets.len()).any(|window| window == octets)
    });
    assert!(held || read > 100_000, "its memory could not be read");
    held
}
