use super::hello::tests::client_hello;
use super::relay::tests::{local, pair};
use super::*;
use crate::audit::{Audit, LogFile, open_file};
use crate::names::NameTable;
use crate::parent_link::ParentLink;
use crate::rig::{self, PASSES};
use crate::vault::Vault;
use std::net::IpAddr;
use std::time::Instant;
use terok_kernel::statedir::Dir;
use terok_policy::layout;
use terok_policy::live::Live;
use terok_policy::plan::SupervisorConfig;
use terok_policy::policy::{Policy, Source, Sourced};
use terok_policy::provision::Issued;
use terok_policy::settings::{self, Scheme};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

mod brokered;
mod granted;
mod hold;
mod through;

/// A proxy under a policy, without a container around it.
pub(super) struct Rig {
    pub(super) proxy: Rc<Proxy>,
    pub(super) context: Rc<Context>,
    dir: tempfile::TempDir,
}

impl Rig {
    /// Allows `allow`; `hosts` is the hosts file, and no name server answers.
    pub(super) fn new(allow: &[String], hosts: &str) -> Self {
        let allow =
            allow.iter().map(|rule| Sourced { rule: rule.parse().unwrap(), source: Source::Annotation });
        Self::under(Policy { allow: allow.collect(), ..Policy::default() }, None, hosts)
    }

    fn under(policy: Policy, upstream: Option<settings::Upstream>, hosts: &str) -> Self {
        Self::with(policy, upstream, hosts, None, Vault::answered_by(|_| unreachable!("nothing is brokered")))
    }

    fn with(
        policy: Policy,
        upstream: Option<settings::Upstream>,
        hosts: &str,
        issued: Option<Issued>,
        vault: Vault,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = || Dir::base(dir.path()).unwrap();
        let brokered = !policy.vault.is_empty();
        let config =
            SupervisorConfig { upstream: upstream.clone(), issued, ..rig::config(dir.path(), policy) };
        let audit = Audit::open(LogFile::open(&state()).unwrap()).unwrap();
        let names = NameTable::open(open_file(&state(), layout::NAMES).unwrap()).unwrap();
        let link = Rc::new(ParentLink::alone());
        let context = Context::new(config, audit, names, Live::default(), state(), state(), link, vault);
        std::fs::write(dir.path().join("hosts"), hosts).unwrap();
        std::fs::write(dir.path().join("resolv.conf"), "nameserver 127.0.0.1\n").unwrap();
        // Nobody answers on port 1, and the kernel says so at once.
        let files = Files::at(dir.path().join("hosts"), dir.path().join("resolv.conf"), 1);
        let broker = brokered.then(|| {
            let inside = state().make_private("inside").unwrap();
            let ca = crate::broker::Ca::open(&state(), &inside, "test", &[], b"").unwrap();
            Broker::new(context.clone(), ca, b"").unwrap()
        });
        let proxy = Proxy {
            context: context.clone(),
            resolver: Resolver::new(files),
            upstream: upstream.map(Upstream::new),
            broker,
            routes: Rtnl::open().unwrap(),
            relay: Relay::new(relay::PIPES),
            limit: 8,
            open: Cell::new(0),
        };
        Rig { proxy: Rc::new(proxy), context, dir }
    }

    /// A connection to `host`:`port`, seen from inside.
    async fn connect(&self, host: Host, port: u16) -> TcpStream {
        let (inside, accepted) = pair().await;
        self.proxy.clone().admit(accepted, Target { host, port });
        inside
    }

    /// The audit lines, once there are `count`.
    pub(super) async fn lines(&self, count: usize) -> Vec<serde_json::Value> {
        let start = Instant::now();
        loop {
            let text = std::fs::read_to_string(self.dir.path().join(layout::AUDIT)).unwrap();
            let lines: Vec<serde_json::Value> =
                text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
            if lines.len() >= count {
                return lines;
            }
            assert!(start.elapsed() < PASSES, "{lines:?}");
            tokio::task::yield_now().await;
        }
    }
}

/// A proxy of the host's network at which every name is the one listener; and its settings.
async fn upstream() -> (TcpListener, settings::Upstream) {
    let (listener, port) = listener().await;
    let host = "127.0.0.1".to_owned();
    let settings = settings::Upstream { scheme: Scheme::Http, host, port, login: None, except: Vec::new() };
    (listener, settings)
}

/// The next connection that is made through `listener`, and to where.
async fn asked_for(listener: &TcpListener) -> (TcpStream, String) {
    let (mut stream, _) = timeout(PASSES, listener.accept()).await.unwrap().unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    let head = String::from_utf8(head).unwrap();
    (stream, head.split(' ').nth(1).unwrap().to_owned())
}

fn name(text: &str) -> Host {
    Host::Name(text.parse().unwrap())
}

async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

pub(super) async fn assert_reset(stream: &mut TcpStream) {
    let read = timeout(PASSES, stream.read(&mut [0])).await.unwrap();
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "current_thread")]
async fn the_hosts_loopback_is_dialled_by_its_own_rule_and_both_ends_of_the_connection_are_recorded() {
    local! {
        let (listener, port) = listener().await;
        let rig = Rig::new(&[format!("host:{port}")], "");
        let mut client = rig.connect(Host::Loopback, port).await;
        client.write_all(b"\x16anything").await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let mut got = [0; 9];
        server.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"\x16anything");
        server.write_all(b"ok").await.unwrap();
        drop(server);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        drop(client);
        let lines = rig.lines(2).await;
        let target = format!("host:{port}");
        assert_eq!((&lines[0]["action"], &lines[0]["target"]), (&"allow".into(), &target.as_str().into()));
        assert_eq!(lines[0]["rule"], format!("{target} (annotation)"));
        assert_eq!(lines[1]["action"], "close");
        assert_eq!((&lines[1]["detail"]["bytes_up"], &lines[1]["detail"]["bytes_down"]), (&9.into(), &2.into()));
        assert_eq!(rig.context.flows.open(), 0);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn what_no_rule_names_is_reset_before_it_says_anything_and_recorded() {
    local! {
        let rig = Rig::new(&["api.example.com".to_owned()], "");
        for (host, port, reason) in [
            (Host::Literal(IpAddr::from([192, 0, 2, 1])), 443, "unlisted"),
            (name("evil.example"), 443, "unlisted"),
            (name("api.example.com"), 22, "port-unlisted"),
            (Host::Loopback, 5432, "unlisted"),
        ] {
            let before = rig.lines(0).await.len();
            assert_reset(&mut rig.connect(host, port).await).await;
            let lines = rig.lines(before + 1).await;
            assert_eq!(lines[before]["action"], "refuse");
            assert_eq!(lines[before]["reason"], reason);
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_name_that_leads_below_the_floor_is_not_dialled() {
    local! {
        let (listener, port) = listener().await;
        for address in ["127.0.0.1", "::1", "::ffff:127.0.0.1", "10.0.0.1", "169.254.169.254", "fd00::1", "0.0.0.0"] {
            let rig = Rig::new(&[format!("api.example.com:{port}")], &format!("{address} api.example.com\n"));
            let mut client = rig.connect(name("api.example.com"), port).await;
            assert_reset(&mut client).await;
            let lines = rig.lines(3).await;
            assert_eq!((&lines[1]["action"], &lines[1]["reason"]), (&"refuse".into(), &"floor".into()), "{address}");
        }
        assert!(timeout(Duration::from_millis(20), listener.accept()).await.is_err(), "dialled");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn the_hosts_own_address_counts_as_below_the_floor() {
    local! {
        let rig = Rig::new(&[], "");
        assert_eq!(rig.proxy.floor("127.0.0.1".parse().unwrap()), Some(terok_policy::floor::Floor::Loopback));
        let probe = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        // No packet is sent: connecting only chooses a source address.
        let own = probe.connect("1.1.1.1:53").and_then(|()| probe.local_addr()).map(|a| a.ip());
        if let Ok(own) = own.as_ref() {
            assert!(rig.proxy.floor(*own).is_some(), "{own}");
        }
        assert_eq!(rig.proxy.floor("1.1.1.1".parse().unwrap()), None);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_wrong_server_name_and_a_wrong_host_are_refused_before_anything_is_dialled() {
    local! {
        let rig = Rig::new(&["api.example.com".to_owned()], "");
        let mut client = rig.connect(name("api.example.com"), 443).await;
        client.write_all(&client_hello(Some("evil.example"), 9999)).await.unwrap();
        assert_reset(&mut client).await;
        let mut client = rig.connect(name("api.example.com"), 443).await;
        client.write_all(&client_hello(None, 9999)).await.unwrap();
        assert_reset(&mut client).await;
        let mut client = rig.connect(name("api.example.com"), 80).await;
        client.write_all(b"GET /x?secret HTTP/1.1\r\nHost: evil.example\r\n\r\n").await.unwrap();
        assert_reset(&mut client).await;
        let lines = rig.lines(3).await;
        assert_eq!(lines.len(), 3, "no allow line: {lines:?}");
        assert_eq!((&lines[0]["reason"], &lines[0]["detail"]["sni"]), (&"sni-mismatch".into(), &"evil.example".into()));
        assert_eq!(lines[1]["reason"], "sni-missing");
        assert_eq!((&lines[2]["kind"], &lines[2]["reason"]), (&"http".into(), &"host-mismatch".into()));
        assert_eq!((&lines[2]["detail"]["path"], &lines[2]["detail"]["host"]), (&"/x".into(), &"evil.example".into()));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_name_that_does_not_resolve_is_refused_soon() {
    local! {
        let rig = Rig::new(&["api.example.com:25".to_owned()], "");
        assert_reset(&mut rig.connect(name("api.example.com"), 25).await).await;
        let lines = rig.lines(3).await;
        assert_eq!(lines[1]["reason"], "unreachable");
        assert!(lines[1]["detail"]["error"].as_str().unwrap().contains("127.0.0.1:1"), "{lines:?}");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_deny_cuts_the_flow_it_concerns_although_nobody_reads_it_and_no_other() {
    local! {
        let ((first, port), (second, other)) = (listener().await, listener().await);
        let rig = Rig::new(&[format!("host:{port}"), format!("host:{other}")], "");
        let mut client = rig.connect(Host::Loopback, port).await;
        let mut kept = rig.connect(Host::Loopback, other).await;
        let (mut server, _) = first.accept().await.unwrap();
        let (mut kept_server, _) = second.accept().await.unwrap();
        server.write_all(b"x").await.unwrap();
        client.read_u8().await.unwrap();
        // A download that nobody reads: the cut must not wait for the socket.
        let block = vec![0; 1 << 20];
        let _ = timeout(Duration::from_millis(200), async { while server.write_all(&block).await.is_ok() {} }).await;
        let deny = Live { deny: vec![format!("host:{port}").parse().unwrap()], ..Live::default() };
        rig.context.set_live(deny);
        assert_eq!(rig.context.recheck(), 1);
        let end = async {
            let mut buffer = vec![0; 1 << 20];
            loop {
                match client.read(&mut buffer).await {
                    Ok(0) => panic!("an orderly end"),
                    Ok(_) => {}
                    Err(error) => return error.kind(),
                }
            }
        };
        assert_eq!(timeout(PASSES, end).await.unwrap(), io::ErrorKind::ConnectionReset);
        assert!(server.write_all(&block).await.is_err());
        let lines = rig.lines(3).await;
        assert_eq!(lines[2]["action"], "cut");
        assert!(lines[2]["detail"]["bytes_down"].as_u64().unwrap() > 0);
        kept.write_all(b"x").await.unwrap();
        assert_eq!(kept_server.read_u8().await.unwrap(), b'x');
    }
}

#[tokio::test(flavor = "current_thread")]
async fn more_connections_than_the_limit_are_refused_and_a_closed_one_makes_room() {
    local! {
        let (listener, port) = listener().await;
        let rig = Rig::new(&[format!("host:{port}")], "");
        let mut open = Vec::new();
        for _ in 0..8 {
            let client = rig.connect(Host::Loopback, port).await;
            open.push((client, listener.accept().await.unwrap()));
        }
        assert_reset(&mut rig.connect(Host::Loopback, port).await).await;
        assert_eq!(rig.lines(9).await[8]["reason"], "too-many-connections");
        open.pop();
        rig.lines(10).await;
        let _client = rig.connect(Host::Loopback, port).await;
        timeout(PASSES, listener.accept()).await.unwrap().unwrap();
    }
}

#[test]
fn connections_leave_descriptors_for_the_operator_whatever_they_are_at() {
    for descriptors in [256, 1024, 4096, 1 << 20] {
        let most = connections(descriptors) as u64;
        let dialling = most * (1 + dial::AT_ONCE as u64);
        let relaying = most * 2 + 2 * most.min(relay::PIPES as u64);
        // 64 control connections, 16 of DNS, 25 that are always open, a few for files written by rename.
        assert!(dialling.max(relaying) + 64 + 16 + 25 + 8 <= descriptors, "{most} of {descriptors}");
    }
}
