use super::*;
use crate::audit::{Audit, LogFile, open_file};
use crate::names::NameTable;
use crate::parent_link::{Ask, LONGEST_QUESTION, ParentLink, Question as ToParent, Told};
use crate::resolve::Files;
use crate::resolve::tests::{Server, addresses, error, good, local_set, server, silent};
use crate::rig::{self, PASSES};
use crate::vault::Vault;
use domain::base::iana::Rcode;
use domain::base::{Message, MessageBuilder, Name as Wire};
use domain::rdata::A;
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixDatagram as StdUnixDatagram;
use terok_kernel::socket::message_pair;
use terok_kernel::statedir::Dir;
use terok_policy::layout;
use terok_policy::live::Live;
use terok_policy::plan::{Card, HostFacts, Network, SupervisorConfig, Wiring};
use terok_policy::policy::{Policy, Shield, Source, Sourced};
use terok_policy::rule::Rule;
use tokio::net::UnixDatagram;
use tokio::sync::Notify;

/// What a test is about.
#[derive(Default)]
struct Wish {
    allow: Vec<&'static str>,
    deny: Vec<&'static str>,
    /// Name servers of the host and of the container's network.
    outside: Option<SocketAddr>,
    inside: Option<SocketAddr>,
    hold: u32,
    learn: bool,
    /// An address of the host's.
    own: Option<&'static str>,
    /// The parent grants nothing.
    grudging: bool,
    /// The parent is gone.
    alone: bool,
}

/// Name, time to live and addresses of each grant.
type Granted = Rc<RefCell<Vec<(String, u32, Vec<IpAddr>)>>>;
type Held = Rc<(Cell<bool>, Notify)>;

/// A server on a loopback socket, with a parent that keeps account.
struct Rig {
    context: Rc<Context>,
    at: SocketAddr,
    /// Grants, in the order they were asked for.
    granted: Granted,
    /// While it is set, the parent does not answer; [`Notify`] tells that it was cleared.
    held: Held,
    dir: tempfile::TempDir,
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// 10.88.0.0/16 and a routed IPv6 network on a bridge, the host's end at .1.
fn facts(resolvers: Vec<IpAddr>) -> HostFacts {
    let net = |text: &str| match text.parse::<Rule>().unwrap().target {
        terok_policy::rule::Target::Net(net) => net,
        other => panic!("{other:?}"),
    };
    let card = Card {
        index: 2,
        name: "eth0".into(),
        shared: true,
        nets: vec![net("10.88.0.0/16"), net("fd10::/64")],
        gateways: vec![ip("10.88.0.1")],
    };
    HostFacts { network: Network::Filtered, cards: vec![card], resolvers, ..HostFacts::sealed(true) }
}

impl Rig {
    async fn start(wish: Wish) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = || Dir::base(dir.path()).unwrap();
        let sourced = |rule: Rule| Sourced { rule, source: Source::Annotation };
        let policy = Policy {
            allow: wish.allow.iter().map(|rule| sourced(rule.parse().unwrap())).collect(),
            deny: wish.deny.iter().map(|rule| sourced(Rule::parse_deny(rule).unwrap())).collect(),
            hold: wish.hold,
            learn: wish.learn,
            ..Policy::default()
        };
        let shared = rig::config(dir.path(), policy);
        let config = SupervisorConfig {
            facts: HostFacts {
                own: wish.own.iter().map(|own| ip(own)).collect(),
                ..facts(wish.inside.iter().map(SocketAddr::ip).collect())
            },
            wiring: Wiring { peers: 4, ..shared.wiring },
            ..shared
        };
        let audit = Audit::open(LogFile::open(&state()).unwrap()).unwrap();
        let names = NameTable::open(open_file(&state(), layout::NAMES).unwrap()).unwrap();
        let (ours, theirs) = message_pair().unwrap();
        let link = Rc::new(ParentLink::new(theirs).unwrap());
        let vault = Vault::answered_by(|_| unreachable!("no answer of DNS needs a credential"));
        let context = Context::new(config, audit, names, Live::default(), state(), state(), link, vault);
        let told = context.clone();
        tokio::task::spawn_local(async move { told.parent.listen(|news| told.hear(news)).await });
        let (granted, held): (Granted, Held) = Default::default();
        if !wish.alone {
            let parent = StdUnixDatagram::from(ours);
            parent.set_nonblocking(true).unwrap();
            let parent = UnixDatagram::from_std(parent).unwrap();
            tokio::task::spawn_local(parent_of(parent, granted.clone(), held.clone(), wish.grudging));
        }
        let outside = wish.outside.unwrap_or_else(|| "127.0.0.1:1".parse().unwrap());
        std::fs::write(dir.path().join("resolv.conf"), format!("nameserver {}\n", outside.ip())).unwrap();
        let files = Files::at(dir.path().join("hosts"), dir.path().join("resolv.conf"), outside.port());
        let (inside, port) = match wish.inside {
            Some(inside) => (vec![inside.ip()], inside.port()),
            None => (Vec::new(), 53),
        };
        let peers = Rc::new(Peers::new(vec![UdpSocket::bind("127.0.0.1:0").await.unwrap()], &inside, port));
        tokio::task::spawn_local(peers.clone().listen(0));
        let dns = Dns::new(context.clone(), Resolver::new(files), peers).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let at = socket.local_addr().unwrap();
        tokio::task::spawn_local(dns.serve_udp(socket));
        Rig { context, at, granted, held, dir }
    }

    /// The reply to one question.
    async fn ask(&self, name: &str, rtype: Rtype) -> Message<Vec<u8>> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(self.at).await.unwrap();
        let mut question = MessageBuilder::new_vec().question();
        question.push((name.parse::<Wire<Vec<u8>>>().unwrap(), rtype)).unwrap();
        socket.send(&question.finish()).await.unwrap();
        let mut reply = vec![0; 512];
        let length = timeout(PASSES, socket.recv(&mut reply)).await.unwrap().unwrap();
        reply.truncate(length);
        Message::from_octets(reply).unwrap()
    }

    /// The code, and the IPv4 addresses with their time to live.
    /// As [`Rig::a`], with `meanwhile` done after the parent was asked and before it answers.
    async fn a_while_held(&self, name: &str, meanwhile: impl FnOnce()) -> (Rcode, Vec<(IpAddr, u32)>) {
        self.held.0.set(true);
        let (reply, ()) = tokio::join!(self.a(name), async {
            while self.granted.borrow().is_empty() {
                tokio::task::yield_now().await;
            }
            meanwhile();
            self.held.0.set(false);
            self.held.1.notify_one();
        });
        reply
    }

    async fn a(&self, name: &str) -> (Rcode, Vec<(IpAddr, u32)>) {
        let reply = self.ask(name, Rtype::A).await;
        let records = reply.answer().unwrap().limit_to::<A>().map(|record| {
            let record = record.unwrap();
            (record.data().addr().into(), record.ttl().as_secs())
        });
        (reply.header().rcode(), records.collect())
    }

    /// The last audit line of this action.
    fn last(&self, action: &str) -> serde_json::Value {
        let text = std::fs::read_to_string(self.dir.path().join(layout::AUDIT)).unwrap();
        let mut lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.rfind(|line| line["action"] == action).unwrap_or_default()
    }
}

async fn parent_of(link: UnixDatagram, granted: Granted, held: Held, grudging: bool) {
    let mut buffer = vec![0; LONGEST_QUESTION];
    while let Ok(length @ 1..) = link.recv(&mut buffer).await {
        let ToParent { number, ask } = serde_json::from_slice(&buffer[..length]).unwrap();
        let Ask::Grant { name, ttl, addresses } = ask else { continue };
        granted.borrow_mut().push((name.to_string(), ttl, addresses.clone()));
        while held.0.get() {
            held.1.notified().await;
        }
        let done = Ok(if grudging { Vec::new() } else { addresses });
        link.send(&serde_json::to_vec(&Told::Answer { number, done }).unwrap()).await.unwrap();
    }
}

/// Answers every A question with this address, and no other.
fn only(query: &Message<Vec<u8>>, address: [u8; 4]) -> Vec<Vec<u8>> {
    let owner: Wire<Vec<u8>> = query.sole_question().unwrap().qname().to_string().parse().unwrap();
    let mut answer = MessageBuilder::new_vec().start_answer(query, Rcode::NOERROR).unwrap();
    if query.qtype() == Some(Rtype::A) {
        answer.push((&owner, domain::base::Ttl::from_secs(60), A::new(address.into()))).unwrap();
    }
    vec![answer.finish()]
}

async fn outside() -> Server {
    server(good, silent).await
}

fn at(server: &Server) -> Option<SocketAddr> {
    Some(server.address)
}

#[tokio::test(flavor = "current_thread")]
async fn a_real_address_is_let_through_before_the_answer_names_it() {
    local_set! {
        let server = outside().await;
        let rig = Rig::start(Wish { allow: vec!["a.example direct"], outside: at(&server), ..Wish::default() }).await;
        // The parent has not answered yet, so nobody is to have the address.
        let unanswered = || assert_eq!(rig.last("answer"), serde_json::Value::Null);
        let (code, records) = rig.a_while_held("a.example", unanswered).await;
        assert_eq!((code, records.len(), records[0].0), (Rcode::NOERROR, 1, ip("192.0.2.7")));
        let granted = rig.granted.borrow()[0].clone();
        assert_eq!((granted.0.as_str(), granted.2), ("a.example", vec![ip("192.0.2.7")]));
        assert!(records[0].1 <= granted.1, "an answer is not kept for longer than it stands");
        assert_eq!(rig.last("grant")["detail"]["address"], "192.0.2.7");
        assert_eq!(rig.last("answer")["detail"]["address"], "192.0.2.7");
        assert_eq!(rig.context.names.answered(ip("192.0.2.7")), Some("a.example".parse().unwrap()));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_cached_answer_is_let_through_again_and_recorded_once() {
    local_set! {
        let server = outside().await;
        let rig = Rig::start(Wish { allow: vec!["a.example:443/udp"], outside: at(&server), ..Wish::default() }).await;
        for _ in 0..3 {
            assert_eq!(rig.a("a.example").await.1[0].0, ip("192.0.2.7"));
        }
        assert_eq!((rig.granted.borrow().len(), server.udp.get()), (3, 1));
        let text = std::fs::read_to_string(rig.dir.path().join(layout::AUDIT)).unwrap();
        assert_eq!(text.matches("\"grant\"").count(), 1);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn two_names_of_one_address_are_let_through_each_for_itself() {
    local_set! {
        let server = outside().await;
        let allow = vec!["a.example direct", "b.example:53/udp"];
        let rig = Rig::start(Wish { allow, outside: at(&server), ..Wish::default() }).await;
        rig.a("a.example").await;
        rig.a("b.example").await;
        let names: Vec<String> = rig.granted.borrow().iter().map(|grant| grant.0.clone()).collect();
        assert_eq!(names, ["a.example", "b.example"]);
        assert_eq!(rig.context.names.answered(ip("192.0.2.7")), Some("b.example".parse().unwrap()));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn both_families_are_answered_and_other_types_ask_nobody() {
    local_set! {
        let server = outside().await;
        let rig = Rig::start(Wish { allow: vec!["a.example direct"], outside: at(&server), ..Wish::default() }).await;
        for rtype in [Rtype::HTTPS, Rtype::SVCB, Rtype::TXT, Rtype::MX, Rtype::ANY] {
            let reply = rig.ask("a.example", rtype).await;
            assert_eq!((reply.header().rcode(), reply.header_counts().ancount()), (Rcode::NOERROR, 0), "{rtype}");
        }
        assert_eq!((server.udp.get(), rig.granted.borrow().len()), (0, 0));
        let reply = rig.ask("a.example", Rtype::AAAA).await;
        assert_eq!(reply.header_counts().ancount(), 1);
        assert_eq!(rig.granted.borrow()[0].2, [ip("2001:db8::7")]);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_name_that_leads_below_the_floor_does_not_exist_and_nothing_is_let_through() {
    local_set! {
        for (reply, why) in [
            ((|q| only(q, [10, 0, 0, 5])) as crate::resolve::tests::Reply, "private address"),
            (|q| only(q, [127, 0, 0, 1]), "loopback address"),
            (|q| only(q, [169, 254, 169, 254]), "cloud metadata address"),
            (|q| only(q, [198, 18, 1, 44]), "reserved address"),
            // In the container's own network, but no other container's name.
            (|q| only(q, [10, 88, 0, 5]), "private address"),
        ] {
            let server = server(reply, silent).await;
            let rig = Rig::start(Wish { allow: vec!["a.example direct"], outside: at(&server), ..Wish::default() }).await;
            assert_eq!(rig.a("a.example").await, (Rcode::NXDOMAIN, vec![]));
            assert!(rig.granted.borrow().is_empty());
            let refusal = rig.last("refuse");
            assert_eq!((&refusal["reason"], &refusal["detail"]["floor"]), (&"floor".into(), &why.into()));
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn an_address_of_the_hosts_own_is_not_answered_whoever_has_it() {
    local_set! {
        let (outside, inside) = (outside().await, server(|q| only(q, [10, 88, 0, 9]), silent).await);
        let allow = vec!["a.example direct", "db:5432"];
        let wish = || Wish { allow: allow.clone(), inside: at(&inside), outside: at(&outside), ..Wish::default() };
        for (name, own) in [("a.example", "192.0.2.7"), ("db", "10.88.0.9")] {
            let rig = Rig::start(Wish { own: Some(own), ..wish() }).await;
            assert_eq!(rig.a(name).await, (Rcode::NXDOMAIN, vec![]), "{name}");
            assert_eq!(rig.last("refuse")["reason"], "floor");
            assert!(rig.granted.borrow().is_empty());
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_mixed_answer_keeps_what_is_above_the_floor_and_not_denied() {
    local_set! {
        let server = server(|query| {
            let owner: Wire<Vec<u8>> = "a.example".parse().unwrap();
            let mut answer = MessageBuilder::new_vec().start_answer(query, Rcode::NOERROR).unwrap();
            for address in [[10, 0, 0, 5], [192, 0, 2, 66], [192, 0, 2, 7], [192, 0, 2, 7]] {
                answer.push((&owner, domain::base::Ttl::from_secs(60), A::new(address.into()))).unwrap();
            }
            vec![answer.finish()]
        }, silent).await;
        let wish = |deny| Wish { allow: vec!["a.example:443 direct"], deny, outside: at(&server), ..Wish::default() };
        let rig = Rig::start(wish(vec!["192.0.2.66:443"])).await;
        let (_, records) = rig.a("a.example").await;
        assert_eq!(records.iter().map(|r| r.0).collect::<Vec<_>>(), [ip("192.0.2.7")]);
        // Denied on another port only: what is left of it is the kernel's to tell apart.
        let rig = Rig::start(wish(vec!["192.0.2.66:80", "192.0.2.66:443/udp"])).await;
        assert_eq!(rig.a("a.example").await.1.len(), 2);
        let rig = Rig::start(wish(vec!["192.0.2.0/24:443"])).await;
        assert_eq!(rig.a("a.example").await, (Rcode::NXDOMAIN, vec![]));
        assert_eq!(rig.last("refuse")["reason"], "floor");
        let denied = self::server(|q| only(q, [192, 0, 2, 66]), silent).await;
        let rig = Rig::start(Wish { outside: at(&denied), ..wish(vec!["192.0.2.0/24:443"]) }).await;
        assert_eq!(rig.a("a.example").await, (Rcode::NXDOMAIN, vec![]));
        let refusal = rig.last("refuse");
        assert_eq!((&refusal["reason"], &refusal["rule"]), (&"denied".into(), &"192.0.2.0/24:443 (annotation)".into()));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn an_alias_opens_nothing_for_the_name_it_leads_to() {
    local_set! {
        let server = server(|q| vec![addresses(q, 3)], silent).await;
        let rig = Rig::start(Wish { allow: vec!["a.example direct"], outside: at(&server), ..Wish::default() }).await;
        assert_eq!(rig.a("a.example").await.1[0].0, ip("192.0.2.7"));
        assert_eq!(rig.granted.borrow()[0].0, "a.example");
        assert_eq!(rig.a("alias2.example.net").await, (Rcode::NXDOMAIN, vec![]));
        assert_eq!((rig.granted.borrow().len(), server.udp.get()), (1, 1));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn what_cannot_be_resolved_or_let_through_is_a_failure() {
    local_set! {
        let failing = server(|q| vec![error(q, Rcode::SERVFAIL)], silent).await;
        let rig = Rig::start(Wish { allow: vec!["a.example direct"], outside: at(&failing), ..Wish::default() }).await;
        assert_eq!(rig.a("a.example").await, (Rcode::SERVFAIL, vec![]));
        assert_eq!(rig.last("refuse")["reason"], "unreachable");
        let server = outside().await;
        let wish = || Wish { allow: vec!["a.example direct"], outside: at(&server), ..Wish::default() };
        let rig = Rig::start(Wish { alone: true, ..wish() }).await;
        assert_eq!(rig.a("a.example").await, (Rcode::SERVFAIL, vec![]));
        assert!(rig.last("refuse")["detail"]["error"].as_str().unwrap().contains("parent is gone"));
        let rig = Rig::start(Wish { grudging: true, ..wish() }).await;
        assert_eq!(rig.a("a.example").await, (Rcode::SERVFAIL, vec![]));
        assert_eq!(rig.granted.borrow().len(), 1);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_name_that_was_denied_while_it_was_looked_up_is_refused() {
    local_set! {
        let server = outside().await;
        let rig = Rig::start(Wish { allow: vec!["a.example direct"], outside: at(&server), ..Wish::default() }).await;
        let denied = || {
            let deny = vec![Rule::parse_deny("a.example").unwrap()];
            rig.context.set_live(Live { deny, ..Live::default() });
        };
        assert_eq!(rig.a_while_held("a.example", denied).await, (Rcode::NXDOMAIN, vec![]));
        assert_eq!(rig.last("refuse")["reason"], "denied");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_log_that_cannot_be_written_lets_no_new_address_through() {
    local_set! {
        let server = outside().await;
        let rig = Rig::start(Wish { allow: vec!["a.example direct"], outside: at(&server), ..Wish::default() }).await;
        let real = rig.context.audit.fill();
        assert_eq!(rig.a("a.example").await, (Rcode::SERVFAIL, vec![]));
        assert!(rig.granted.borrow().is_empty());
        rig.context.audit.free(real);
        assert_eq!(rig.a("a.example").await.1.len(), 1);
        assert_eq!(rig.last("grant")["target"], "a.example");
    }
}

thread_local! {
    /// How often each name was asked for.
    static ASKED: RefCell<HashMap<String, usize>> = RefCell::default();
}

/// Is silent, and notes what was asked.
fn noted(query: &Message<Vec<u8>>) -> Vec<Vec<u8>> {
    let name = query.sole_question().unwrap().qname().to_string().to_lowercase();
    ASKED.with_borrow_mut(|asked| *asked.entry(name).or_default() += 1);
    Vec::new()
}

#[tokio::test(flavor = "current_thread")]
async fn slow_names_hold_up_nobody_and_are_bounded() {
    local_set! {
        let server = server(noted, silent).await;
        let question = |name: &str| {
            let mut question = MessageBuilder::new_vec().question();
            question.push((name.parse::<Wire<Vec<u8>>>().unwrap(), Rtype::A)).unwrap();
            question.finish()
        };
        let (mut attempts, mut last) = (0, None);
        // A server has three seconds: who had to wait for the others would never be sooner.
        rig::takes_less_than(Duration::from_secs(2), async || {
            attempts += 1;
            let zone = format!("z{attempts}.slow.example");
            let allow = vec!["*.slow.example direct", "quick.example"];
            let rig = Rig::start(Wish { allow, outside: at(&server), ..Wish::default() }).await;
            let flood = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            flood.connect(rig.at).await.unwrap();
            for n in 0..40 {
                flood.send(&question(&format!("l{n}.{zone}"))).await.unwrap();
                // The same question again and again is one question.
                flood.send(&question(&zone)).await.unwrap();
                tokio::task::yield_now().await;
            }
            assert_eq!(rig.a("quick.example").await.0, Rcode::NOERROR);
            last = Some((rig, flood, zone));
        })
        .await;
        let (_rig, _flood, zone) = last.unwrap();
        let names = || ASKED.with_borrow(|asked| asked.keys().filter(|name| name.ends_with(&zone)).count());
        let start = Instant::now();
        while names() < 41 {
            assert!(start.elapsed() < PASSES);
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        let again = ASKED.with_borrow(|asked| asked[&zone]);
        assert!(again <= 2, "asked {again} times, which is more than once and once again after a silence");
    }
}

#[tokio::test(flavor = "current_thread")]
async fn names_of_a_wildcard_that_are_asked_for_outside_are_limited_a_minute() {
    local_set! {
        let server = outside().await;
        let allow = vec!["*.a.example direct", "b.a.example direct"];
        let rig = Rig::start(Wish { allow, outside: at(&server), ..Wish::default() }).await;
        for n in 0..60 {
            assert_eq!(rig.a(&format!("l{n}.a.example")).await.0, Rcode::NOERROR, "{n}");
        }
        assert_eq!(rig.a("secret.a.example").await, (Rcode::REFUSED, vec![]));
        assert_eq!(rig.last("refuse")["reason"], "name-budget");
        assert_eq!(server.udp.get(), 60);
        assert_eq!(rig.a("b.a.example").await.0, Rcode::NOERROR);
        assert_eq!(rig.a("l7.a.example").await.0, Rcode::NOERROR);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn another_containers_name_is_asked_of_its_networks_server_and_nobody_else() {
    local_set! {
        let (inside, outside) = (server(|q| only(q, [10, 88, 0, 9]), silent).await, outside().await);
        let allow = vec!["db:5432", "web.dns.podman"];
        let rig = Rig::start(Wish { allow, inside: at(&inside), outside: at(&outside), ..Wish::default() }).await;
        for name in ["db", "web.dns.podman"] {
            assert_eq!(rig.a(name).await.1, [(ip("10.88.0.9"), real::PEER_TTL)]);
        }
        assert_eq!(rig.granted.borrow()[1].0, "web.dns.podman");
        assert_eq!(rig.a("cache").await, (Rcode::NXDOMAIN, vec![]));
        assert_eq!(outside.udp.get(), 0);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn another_containers_name_leads_into_the_containers_own_networks_only() {
    local_set! {
        for reply in [
            (|q| only(q, [10, 89, 0, 9])) as crate::resolve::tests::Reply,
            |q| only(q, [192, 0, 2, 7]),
            |q| only(q, [169, 254, 169, 254]),
            // The host's end of the bridge.
            |q| only(q, [10, 88, 0, 1]),
        ] {
            let inside = server(reply, silent).await;
            let rig = Rig::start(Wish { allow: vec!["db:5432"], inside: at(&inside), ..Wish::default() }).await;
            assert_eq!(rig.a("db").await, (Rcode::NXDOMAIN, vec![]));
            assert!(rig.granted.borrow().is_empty());
            assert_eq!(rig.last("refuse")["reason"], "floor");
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_name_that_no_other_container_has_is_a_name_like_any_other() {
    local_set! {
        let (inside, outside) = (server(|q| vec![error(q, Rcode::NXDOMAIN)], silent).await, outside().await);
        let wish = |allow| Wish { allow, inside: at(&inside), outside: at(&outside), ..Wish::default() };
        let rig = Rig::start(wish(vec!["db:5432"])).await;
        let (code, records) = rig.a("db").await;
        assert_eq!(code, Rcode::NOERROR);
        assert!(virt::index(records[0].0).is_some() && records[0].1 == 1, "{records:?}");
        assert_eq!(outside.udp.get(), 0);
        let rig = Rig::start(wish(vec!["db:5432 direct"])).await;
        assert_eq!(rig.a("db").await.1[0].0, ip("192.0.2.7"));
        let quiet = server(silent, silent).await;
        let rig = Rig::start(Wish { inside: at(&quiet), ..wish(vec!["db:5432"]) }).await;
        assert_eq!(rig.a("db").await, (Rcode::SERVFAIL, vec![]));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_containers_two_names_are_one() {
    local_set! {
        let inside = server(|q| only(q, [10, 88, 0, 9]), silent).await;
        let wish = |allow, deny| Wish { allow, deny, inside: at(&inside), ..Wish::default() };
        let granted = |rig: &Rig| rig.granted.borrow().iter().map(|grant| grant.0.clone()).collect::<Vec<_>>();
        for (rule, other) in [("db:5432", "db.dns.podman"), ("db.dns.podman:5432", "db")] {
            let rig = Rig::start(wish(vec![rule], vec![])).await;
            assert_eq!(rig.a(other).await.1[0].0, ip("10.88.0.9"), "{rule}");
            assert_eq!(granted(&rig), [rule.trim_end_matches(":5432")]);
        }
        // A rule for one form must not hide the ports of a rule for the other.
        let rig = Rig::start(wish(vec!["db:5432", "*.dns.podman:80"], vec![])).await;
        assert_eq!(rig.a("db.dns.podman").await.1[0].0, ip("10.88.0.9"));
        assert_eq!(granted(&rig), ["db", "db.dns.podman"]);
        let rig = Rig::start(wish(vec!["db:5432", "any"], vec![])).await;
        assert_eq!(rig.a("db.dns.podman").await.1[0].0, ip("10.88.0.9"));
        let rig = Rig::start(wish(vec!["db:5432"], vec!["db.dns.podman"])).await;
        assert_eq!(rig.a("db.dns.podman").await, (Rcode::NXDOMAIN, vec![]));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_name_in_podmans_zone_that_no_container_has_does_not_exist() {
    local_set! {
        let inside = server(|q| vec![error(q, Rcode::NXDOMAIN)], silent).await;
        let allow = vec!["*.dns.podman", "intranet:80"];
        let rig = Rig::start(Wish { allow, inside: at(&inside), ..Wish::default() }).await;
        assert_eq!(rig.a("web.dns.podman").await, (Rcode::NXDOMAIN, vec![]));
        // So that a client with a search list comes to the name that was meant.
        assert_eq!(rig.a("intranet.dns.podman").await, (Rcode::NXDOMAIN, vec![]));
        assert!(virt::index(rig.a("intranet").await.1[0].0).is_some());
    }
}

#[tokio::test(flavor = "current_thread")]
async fn an_unlisted_name_is_answered_while_somebody_may_allow_it() {
    local_set! {
        let wish = || Wish { hold: 30, deny: vec!["evil.example"], ..Wish::default() };
        let rig = Rig::start(wish()).await;
        assert_eq!(rig.a("new.example").await, (Rcode::NXDOMAIN, vec![]));
        let listener = rig.context.audit.subscribe();
        let (code, records) = rig.a("new.example").await;
        assert!(code == Rcode::NOERROR && virt::index(records[0].0).is_some(), "{records:?}");
        for name in ["evil.example", "x.terok.internal", "host.terok.internal"] {
            assert_eq!(rig.a(name).await, (Rcode::NXDOMAIN, vec![]), "{name}");
        }
        for n in 1..60 {
            assert_eq!(rig.a(&format!("l{n}.example")).await.0, Rcode::NOERROR);
        }
        assert_eq!(rig.a("more.example").await, (Rcode::REFUSED, vec![]));
        drop(listener);
        assert_eq!(rig.a("other.example").await, (Rcode::NXDOMAIN, vec![]));
        let rig = Rig::start(wish()).await;
        let _listener = rig.context.audit.subscribe();
        rig.context.set_live(Live { state: Some(Shield::Block), ..Live::default() });
        assert_eq!(rig.a("new.example").await, (Rcode::NXDOMAIN, vec![]));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_learning_container_resolves_what_is_not_denied_within_the_budget() {
    local_set! {
        let rig = Rig::start(Wish { learn: true, deny: vec!["evil.example"], ..Wish::default() }).await;
        for n in 0..60 {
            let (code, records) = rig.a(&format!("l{n}.example")).await;
            assert!(code == Rcode::NOERROR && virt::index(records[0].0).is_some(), "{records:?}");
        }
        assert_eq!(rig.last("answer")["rule"], "learn");
        assert_eq!(rig.a("more.example").await, (Rcode::REFUSED, vec![]));
        assert_eq!(rig.a("evil.example").await, (Rcode::NXDOMAIN, vec![]));
        assert!(rig.granted.borrow().is_empty());
    }
}
