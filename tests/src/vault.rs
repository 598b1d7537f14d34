//! The vault of each of the lab's users, services that only one test knows with a credential in it, and how containers ask them.

use crate::{Container, Ended, Mode, Net, Recipe, Site, site};
use serde_json::Value;
use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::OnceLock;

/// Of both users' vaults.
pub const PASSPHRASE: &str = "correct horse battery";

/// One user's vault, unlocked.
#[derive(Debug, Clone, Copy)]
pub struct Vault(pub Mode);

impl Vault {
    /// Made and unlocked once.
    pub fn open(mode: Mode) -> Self {
        static MADE: [OnceLock<()>; 2] = [OnceLock::new(), OnceLock::new()];
        let vault = Vault(mode);
        MADE[usize::from(mode == Mode::Rootful)].get_or_init(|| {
            vault.says(&["init", "--passphrase-stdin"], PASSPHRASE).succeeded();
            vault.unlock();
        });
        vault
    }

    /// `terok vault …` with this on its standard input.
    pub fn says(self, arguments: &[&str], input: &str) -> Ended {
        self.0.fed("terok", &[&["vault"], arguments].concat(), input)
    }

    /// `terok vault unlock`
    #[track_caller]
    pub fn unlock(self) {
        self.says(&["unlock", "--passphrase-stdin"], PASSPHRASE).succeeded();
    }

    /// `terok vault lock`; unlocked again when the test is over: one that fails takes no other with it.
    #[track_caller]
    pub fn lock(self) -> Locked {
        self.says(&["lock"], "").succeeded();
        Locked(self)
    }

    /// `terok vault add`, or a new value of the credential that is there.
    #[track_caller]
    pub fn add(self, provider: &str, name: &str, secret: &str) {
        self.says(&["add", provider, name, "--stdin", "--replace"], secret).succeeded();
    }

    /// Takes an OAuth login as the lab's service renews it: `at-REAL-ACCOUNT-N` and `rt-REAL-ACCOUNT-0`, good for so many seconds.
    #[track_caller]
    pub fn add_login(self, provider: &str, account: &str, access: &str, seconds: i64) {
        let path = format!("/run/home/tester/login-{account}.json");
        let now =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |t| t.as_secs());
        let end = i64::try_from(now).unwrap_or(i64::MAX) + seconds;
        let text =
            serde_json::json!({"access": access, "refresh": format!("rt-REAL-{account}-0"), "end": end});
        std::fs::write(&path, text.to_string()).expect("the home is writable");
        self.says(&["add", provider, "--oauth", &path, "--replace"], "").succeeded();
        std::fs::remove_file(&path).expect("it was just written");
    }

    /// Where it is.
    pub fn folder(self) -> PathBuf {
        match self.0 {
            Mode::Rootful => PathBuf::from(terok_policy::layout::VAULT_ROOTFUL),
            Mode::Rootless => PathBuf::from("/run/home/tester").join(terok_policy::layout::VAULT_USER),
        }
    }
}

/// See [`Vault::lock`].
#[must_use]
#[derive(Debug)]
pub struct Locked(Vault);

impl Drop for Locked {
    fn drop(&mut self) {
        let _ = self.0.says(&["unlock", "--passphrase-stdin"], PASSPHRASE);
    }
}

impl Mode {
    /// Runs a program to its end with `input` on its standard input.
    pub fn fed(self, program: &str, arguments: &[&str], input: &str) -> Ended {
        let mut command = self.command(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("starting {program}: {error}"));
        if let Some(mut stdin) = child.stdin.take() {
            // A program that refuses before it reads closes its end.
            let _ = stdin.write_all(input.as_bytes());
        }
        Ended::awaited(child, &format!("{program} {arguments:?}"))
    }
}

/// A secret that the lab's services take, and that is found nowhere else.
pub fn secret(prefix: &str) -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/uuid").expect("proc is mounted");
    format!("{prefix}REAL{}", text.trim().replace('-', ""))
}

/// A service of the test's own: a site, the provider that leads to it, and a credential in the vault.
#[derive(Debug, Clone)]
pub struct Service {
    /// Where it is.
    pub site: Site,
    /// What it is called in `terok.vault`.
    pub provider: String,
    /// The real credential.
    pub secret: String,
    /// Whose vault holds it.
    pub vault: Vault,
}

impl Service {
    /// A service with an API key in `Authorization: Bearer`.
    #[track_caller]
    pub fn new(mode: Mode) -> Self {
        Self::with(mode, "")
    }

    /// The same with more tables in its definition.
    #[track_caller]
    pub fn with(mode: Mode, more: &str) -> Self {
        let service = Self::defined(mode, "LAB", "", more);
        service.vault.add(&service.provider, "default", &service.secret);
        service
    }

    /// One whose variables are `OTHER_TOKEN` and `OTHER_BASE_URL`, for a container that has two.
    #[track_caller]
    pub fn second(mode: Mode) -> Self {
        let service = Self::defined(mode, "OTHER", "", "");
        service.vault.add(&service.provider, "default", &service.secret);
        service
    }

    /// A service over HTTP/2.
    #[track_caller]
    pub fn over_http2(mode: Mode) -> Self {
        let service = Self::defined(mode, "LAB", ":9443", "");
        service.vault.add(&service.provider, "default", &service.secret);
        service
    }

    /// Only the definition; the vault has no credential for it.
    #[track_caller]
    pub fn defined(mode: Mode, variables: &str, port: &str, more: &str) -> Self {
        let site = site();
        let provider = format!("lab{}", site.number);
        let folder = terok_policy::layout::PROVIDERS_SYSTEM;
        let text = format!(
            r#"title = "A service of the lab"
upstream = "https://{name}{port}"
[token]
variables = ["{variables}_TOKEN"]
prefix = "lab-"
length = 60
carriers = ["bearer", {{ header = "x-api-key" }}, "basic"]
[base_url]
variables = ["{variables}_BASE_URL"]
[credential.key]
header = "authorization"
prefix = "Bearer "
[credential.oauth]
header = "authorization"
prefix = "Bearer "
[oauth]
token_url = "https://{name}/oauth/token"
client_id = "lab-client"
[oauth.import]
access = "/access"
refresh = "/refresh"
expires = "/end"
{more}
"#,
            name = site.name,
        );
        std::fs::create_dir_all(folder).expect("/etc is the lab's own");
        std::fs::write(format!("{folder}/{provider}.toml"), text).expect("/etc is the lab's own");
        Service { site, provider, secret: secret("lab-"), vault: Vault::open(mode) }
    }

    /// A Debian with real clients that was granted this service.
    pub fn recipe(&self, net: Net) -> Recipe {
        self.granted(Recipe::on(net, "").image("localhost/wl"))
    }

    /// The same on any recipe whose image has a shell and curl.
    pub fn granted(&self, recipe: Recipe) -> Recipe {
        recipe.annotate("vault", &self.provider)
    }

    /// The same without a card, idle.
    #[track_caller]
    pub fn sealed(&self) -> Container {
        self.recipe(Net::sealed(self.vault.0)).idle()
    }

    /// The requests that arrived with this path, query included.
    pub fn requests(&self, path: &str) -> Vec<Value> {
        self.site.seen().into_iter().filter(|line| line["path"] == path).collect()
    }

    /// That a request for `path` arrived, and all that did had the real credential and nothing like a phantom token.
    #[track_caller]
    pub fn got_the_real_key(&self, path: &str) {
        let requests = self.requests(path);
        assert!(!requests.is_empty(), "{path} never arrived at {}", self.site.name);
        for request in requests {
            assert_eq!(headers(&request, "authorization"), [format!("Bearer {}", self.secret)], "{request}");
            assert!(!request.to_string().contains("terok"), "{request}");
        }
    }
}

/// The values of a header in a line of what the servers saw.
pub fn headers(request: &Value, name: &str) -> Vec<String> {
    let all = request["headers"].as_array().cloned().unwrap_or_default();
    all.iter()
        .filter(|pair| pair[0].as_str().is_some_and(|key| key.eq_ignore_ascii_case(name)))
        .filter_map(|pair| pair[1].as_str().map(str::to_owned))
        .collect()
}

/// What curl made of a request: its status, 0 where there was no answer, and the body or what curl said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Body; after a failure curl's words.
    pub body: String,
}

impl Container {
    /// Runs a shell script inside, with the variables that programs started by the container have.
    pub fn sh(&self, script: &str) -> Ended {
        let script = format!(". /run/terok/env\n{script}");
        self.exec(&["sh", "-ec", &script])
    }

    /// Runs a Python program inside, with those variables.
    pub fn python(&self, program: &str) -> Ended {
        let mut arguments = vec!["exec", "--interactive", &self.name, "sh", "-c"];
        arguments.push(". /run/terok/env; exec python3 -");
        self.mode.fed("podman", &arguments, program)
    }

    /// curl with these arguments (shell words), inside.
    #[track_caller]
    pub fn curl(&self, arguments: &str) -> Answer {
        let ended = self.sh(&format!(
            "curl --silent --show-error --max-time 30 --write-out '\\n%{{http_code}}' {arguments} || true"
        ));
        let (body, status) = ended.stdout.rsplit_once('\n').unwrap_or(("", "0"));
        let status = status.trim().parse().unwrap_or(0);
        let body = if status == 0 { ended.stderr.clone() } else { body.to_owned() };
        Answer { status, body }
    }

    /// A variable that it was given.
    #[track_caller]
    pub fn variable(&self, name: &str) -> String {
        self.sh(&format!("printf %s \"${name}\"")).succeeded()
    }
}
