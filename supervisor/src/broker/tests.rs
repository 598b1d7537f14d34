use super::*;
use crate::audit::{Audit, LogFile, open_file};
use crate::flows::FlowGuard;
use crate::names::NameTable;
use crate::parent_link::ParentLink;
use crate::rig::{self, PASSES};
use crate::vault::{Errand, Fetched, Trouble, Vault};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use terok_kernel::statedir::Dir;
use terok_policy::layout;
use terok_policy::live::Live;
use terok_policy::plan::SupervisorConfig;
use terok_policy::policy::{Policy, Source, Sourced};
use terok_policy::profile::Catalog;
use terok_policy::provider::{self, CredentialType};
use terok_policy::provision::Issued;
use terok_policy::{Rule, phantom};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

mod answers;
mod bulk;
mod ends;
mod requests;
mod smuggling;
mod streams;
mod tls;

const SECRET: &str = "sk-real-0123456789abcdefghijklmnop";
/// A provider without TLS, so that tests see what is sent.
const PLAIN: &str = r#"
title = "Test API"
upstream = "http://192.0.2.7:8080/base"
[token]
variables = ["TEST_KEY"]
prefix = "sk-"
length = 48
carriers = ["bearer", { header = "x-test-key" }]
[base_url]
variables = ["TEST_URL"]
[credential.key]
header = "authorization"
prefix = "Bearer "
[credential.oauth]
header = "authorization"
prefix = "Bearer "
[oauth]
token_url = "https://login.example/token"
client_id = "terok"
[[rule]]
path = "/base/keys/**"
allow = false
[[rule]]
methods = ["GET"]
path = "/base/open/**"
allow = true
anonymous = true
[[rule]]
path = "/**"
allow = true
"#;
/// One that is intercepted.
const NAMED: &str = r#"
title = "Named API"
upstream = "https://api.example"
[token]
variables = ["NAMED_KEY"]
prefix = "nm-"
length = 48
carriers = ["bearer", "basic"]
[credential.key]
header = "x-api-key"
[errors]
shape = "anthropic"
challenge = "Basic realm=\"terok\""
"#;

macro_rules! local {
    ($($body:tt)*) => {
        tokio::task::LocalSet::new().run_until(async move { $($body)* }).await
    };
}
pub(super) use local;

type Stored = Result<(CredentialType, u64, String), Trouble>;

/// A broker without a container around it.
pub(super) struct Rig {
    pub(super) broker: Rc<Broker>,
    pub(super) context: Rc<Context>,
    pub(super) tokens: Vec<String>,
    /// Revision and secret in the vault, or why there is none.
    pub(super) vault: Rc<RefCell<Stored>>,
    /// What the vault was asked for.
    pub(super) errands: Rc<RefCell<Vec<Errand>>>,
    outward: Rc<Out>,
    dir: tempfile::TempDir,
    upstream: Option<Arc<ServerConfig>>,
}

/// Whatever is dialled is the one listener.
struct Out {
    to: Cell<Option<SocketAddr>>,
    dialled: RefCell<Vec<String>>,
}

impl Outward for Out {
    fn dial<'a>(&'a self, flow: &'a FlowGuard) -> Dialling<'a> {
        self.dialled.borrow_mut().push(flow.target().to_string());
        let to = self.to.get();
        Box::pin(async move {
            let unreachable =
                |what: String| Unreachable { reason: terok_policy::judge::Reason::Unreachable, what };
            let to = to.ok_or_else(|| unreachable("nobody".to_owned()))?;
            TcpStream::connect(to).await.map_err(|error| unreachable(error.to_string()))
        })
    }

    fn is_denied(&self, _: SocketAddr) -> bool {
        false
    }
}

impl Rig {
    pub(super) fn new() -> Self {
        Self::under(Policy::default())
    }

    pub(super) fn under(mut policy: Policy) -> Self {
        let mut catalog = Catalog::bundled();
        for (name, text) in [("plain", PLAIN), ("named", NAMED)] {
            catalog.providers.insert(name.to_owned(), text.to_owned());
            let provider = provider::resolve(&catalog, name).unwrap();
            policy.vault.push(VaultGrant { provider, credential: "default".to_owned() });
        }
        let token = |(n, grant): (usize, &VaultGrant)| {
            phantom::token(&grant.provider.token, &[n as u8 * 7 + 3; phantom::MOST])
        };
        let tokens: Vec<String> = policy.vault.iter().enumerate().map(token).collect();
        let dir = tempfile::tempdir().unwrap();
        let state = || Dir::base(dir.path()).unwrap();
        let config = SupervisorConfig {
            issued: Some(Issued { tokens: tokens.clone() }),
            ..rig::config(dir.path(), policy)
        };
        let audit = Audit::open(LogFile::open(&state()).unwrap()).unwrap();
        let names = NameTable::open(open_file(&state(), layout::NAMES).unwrap()).unwrap();
        let stored = Rc::new(RefCell::new(Ok((CredentialType::Key, 1, SECRET.to_owned()))));
        let errands = Rc::new(RefCell::new(Vec::new()));
        let (asked, heard) = (stored.clone(), errands.clone());
        let vault = Vault::answered_by(move |errand| {
            heard.borrow_mut().push(errand.clone());
            let mut stored = asked.borrow_mut();
            if let (Errand::Credential { refused: Some(_), .. }, Ok((_, revision, secret))) =
                (errand, &mut *stored)
            {
                *revision += 1;
                *secret = format!("renewed-{revision}-0123456789");
            }
            let (kind, revision, secret) = stored.clone()?;
            let secret = secret.into();
            Ok(Fetched::Credential(Credential { kind, user: String::new(), secret, revision, until: None }))
        });
        let link = Rc::new(ParentLink::alone());
        let context = Context::new(config, audit, names, Live::default(), state(), state(), link, vault);
        let (upstream, bundle) = authority();
        let inside = state().make_private("inside").unwrap();
        let hosts = ["api.example".parse().unwrap()];
        let ca = Ca::open(&state(), &inside, "0123456789abcdef", &hosts, b"").unwrap();
        let broker = Broker::new(context.clone(), ca, bundle.as_bytes()).unwrap();
        let outward = Rc::new(Out { to: Cell::new(None), dialled: RefCell::default() });
        Rig { broker, context, tokens, vault: stored, errands, outward, dir, upstream: Some(upstream) }
    }

    /// A connection of the container to `target`.
    pub(super) async fn connect(&self, name: &str, port: u16) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let inside = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let target = Target { host: Host::Name(name.parse().unwrap()), port };
        let Some(Meets::Broker(entrance)) = self.broker.meets(&target) else {
            panic!("{target} is nobody's")
        };
        let (broker, outward) = (self.broker.clone(), self.outward.clone());
        tokio::task::spawn_local(async move { broker.serve(outward, accepted, &target, entrance).await });
        inside
    }

    /// To the base URL.
    pub(super) async fn base(&self) -> TcpStream {
        self.connect("vault.terok.internal", 80).await
    }

    /// Sends `request` to the base URL and reads to the end of the connection.
    pub(super) async fn ask(&self, request: &str) -> String {
        let mut client = self.base().await;
        client.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        timeout(Duration::from_secs(10), client.read_to_end(&mut answer)).await.unwrap().unwrap();
        String::from_utf8(answer).unwrap()
    }

    /// A request to the base URL with our token; `head` is further header lines.
    pub(super) fn get(&self, path: &str, head: &str) -> String {
        let token = &self.tokens[0];
        format!(
            "GET {path} HTTP/1.1\r\nHost: vault.terok.internal\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n{head}\r\n"
        )
    }

    /// Has every dialled connection served by `serve`, without TLS.
    pub(super) async fn upstream<F>(&self, serve: impl Fn(TcpStream) -> F + 'static)
    where
        F: Future<Output = ()> + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        self.outward.to.set(Some(listener.local_addr().unwrap()));
        tokio::task::spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::task::spawn_local(serve(stream));
            }
        });
    }

    /// Answers each request with `body`, for as long as the client stays; how many connections have ended.
    pub(super) async fn answers(&self, body: &'static str) -> Rc<Cell<usize>> {
        let ended = Rc::new(Cell::new(0));
        let count = ended.clone();
        self.upstream(move |mut stream| {
            let count = count.clone();
            async move {
                while read_request(&mut stream).await.is_some() {
                    stream.write_all(ok(body).as_bytes()).await.unwrap();
                }
                count.set(count.get() + 1);
            }
        })
        .await;
        ended
    }

    /// Answers each request with `answer`, octet for octet; what it saw.
    pub(super) async fn replies(&self, answer: impl Into<Vec<u8>>) -> Rc<RefCell<Vec<String>>> {
        let (answer, seen) = (Rc::new(answer.into()), Rc::new(RefCell::new(Vec::new())));
        let told = seen.clone();
        self.upstream(move |mut stream| {
            let (answer, seen) = (answer.clone(), seen.clone());
            async move {
                while let Some(request) = read_request(&mut stream).await {
                    seen.borrow_mut().push(request);
                    if stream.write_all(&answer).await.is_err() {
                        return;
                    }
                }
            }
        })
        .await;
        told
    }

    /// The same over TLS, with `protocols` to choose from.
    pub(super) fn acceptor(&self, protocols: &[&[u8]]) -> TlsAcceptor {
        let mut config = (**self.upstream.as_ref().unwrap()).clone();
        config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
        TlsAcceptor::from(Arc::new(config))
    }

    pub(super) fn dialled(&self) -> Vec<String> {
        self.outward.dialled.borrow().clone()
    }

    /// The authority inside, PEM.
    pub(super) fn ca(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("inside/ca.crt")).unwrap()
    }

    /// The audit lines of requests, once there are `count`.
    pub(super) async fn lines(&self, count: usize) -> Vec<serde_json::Value> {
        let start = Instant::now();
        loop {
            let text = std::fs::read_to_string(self.dir.path().join(layout::AUDIT)).unwrap();
            let lines: Vec<serde_json::Value> =
                text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
            let lines: Vec<_> = lines.into_iter().filter(|line| line["kind"] == "http").collect();
            if lines.len() >= count {
                return lines;
            }
            assert!(start.elapsed() < Duration::from_secs(10), "{lines:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Everything that was written, as text.
    pub(super) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join(layout::AUDIT)).unwrap()
    }
}

pub(super) fn denying(rule: &str) -> Policy {
    let deny = Sourced { rule: Rule::parse_deny(rule).unwrap(), source: Source::Annotation };
    Policy { deny: vec![deny], ..Policy::default() }
}

/// The outside's own authority, with a certificate for the host that is intercepted.
fn authority() -> (Arc<ServerConfig>, String) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let root = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let leaf_key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["api.example".to_owned()])
        .unwrap()
        .signed_by(&leaf_key, &issuer)
        .unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
    let chain: Vec<CertificateDer<'static>> = vec![leaf.der().clone()];
    let config = ServerConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    (Arc::new(config), root.pem())
}

/// A whole request, head and body, as it was sent; `None` at the end.
pub(super) async fn read_request(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Option<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    if let Some(length) = length {
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.ok()?;
        bytes.extend(body);
    } else if head.contains("transfer-encoding: chunked") {
        while !bytes.ends_with(b"0\r\n\r\n") {
            bytes.push(stream.read_u8().await.ok()?);
        }
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// An answer with this body.
pub(super) fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}
