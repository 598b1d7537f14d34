use super::*;
use crate::rig::takes_less_than;
use domain::base::iana::Rcode;
use domain::base::{Message, MessageBuilder, Name as DomainName, Rtype, Ttl};
use domain::rdata::{A, Aaaa, Cname};
use std::cell::Cell;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};

/// A name server on loopback that answers each UDP question with messages, and each TCP question with one.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    /// Questions that came.
    pub(crate) udp: Rc<Cell<usize>>,
    tcp: Rc<Cell<usize>>,
}

pub(crate) type Reply = fn(&Message<Vec<u8>>) -> Vec<Vec<u8>>;

pub(crate) async fn server(udp_reply: Reply, tcp_reply: Reply) -> Server {
    server_at("127.0.0.1:0", udp_reply, tcp_reply).await
}

pub(crate) async fn server_at(address: &str, udp_reply: Reply, tcp_reply: Reply) -> Server {
    // A port that is free for UDP may be somebody's for TCP.
    let (socket, address, listener) = loop {
        let socket = UdpSocket::bind(address).await.unwrap();
        let found = socket.local_addr().unwrap();
        match TcpListener::bind(found).await {
            Ok(listener) => break (socket, found, listener),
            Err(error) => assert!(address.ends_with(":0"), "{found}: {error}"),
        }
    };
    let (udp, tcp) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let (udp_count, tcp_count) = (udp.clone(), tcp.clone());
    tokio::task::spawn_local(async move {
        let mut buffer = [0; 2048];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            udp_count.set(udp_count.get() + 1);
            let query = Message::from_octets(buffer[..length].to_vec()).unwrap();
            for reply in udp_reply(&query) {
                socket.send_to(&reply, from).await.unwrap();
            }
        }
    });
    tokio::task::spawn_local(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tcp_count.set(tcp_count.get() + 1);
            let mut query = vec![0; stream.read_u16().await.unwrap().into()];
            stream.read_exact(&mut query).await.unwrap();
            for reply in tcp_reply(&Message::from_octets(query).unwrap()) {
                stream.write_u16(reply.len().try_into().unwrap()).await.unwrap();
                stream.write_all(&reply).await.unwrap();
            }
        }
    });
    Server { address, udp, tcp }
}

/// Answers A with 192.0.2.7 and AAAA with 2001:db8::7, behind `aliases` CNAMEs.
pub(crate) fn addresses(query: &Message<Vec<u8>>, aliases: usize) -> Vec<u8> {
    let question = query.sole_question().unwrap();
    let mut answer = MessageBuilder::new_vec().start_answer(query, Rcode::NOERROR).unwrap();
    let mut owner: DomainName<Vec<u8>> = question.qname().to_string().parse().unwrap();
    let ttl = Ttl::from_secs(60);
    for alias in 0..aliases {
        let next: DomainName<Vec<u8>> = format!("alias{alias}.example.net").parse().unwrap();
        answer.push((&owner, ttl, Cname::new(next.clone()))).unwrap();
        owner = next;
    }
    match question.qtype() {
        Rtype::A => answer.push((&owner, ttl, A::from_octets(192, 0, 2, 7))).unwrap(),
        Rtype::AAAA => answer.push((&owner, ttl, Aaaa::new("2001:db8::7".parse().unwrap()))).unwrap(),
        _ => {}
    }
    let stranger: DomainName<Vec<u8>> = "stranger.example".parse().unwrap();
    answer.push((&stranger, ttl, A::from_octets(192, 0, 2, 99))).unwrap();
    answer.finish()
}

pub(crate) fn error(query: &Message<Vec<u8>>, code: Rcode) -> Vec<u8> {
    MessageBuilder::new_vec().start_answer(query, code).unwrap().finish()
}

pub(crate) fn good(query: &Message<Vec<u8>>) -> Vec<Vec<u8>> {
    vec![addresses(query, 0)]
}

pub(crate) fn silent(_: &Message<Vec<u8>>) -> Vec<Vec<u8>> {
    Vec::new()
}

fn name() -> Name {
    "api.example.com".parse().unwrap()
}

fn both() -> Vec<IpAddr> {
    vec!["2001:db8::7".parse().unwrap(), "192.0.2.7".parse().unwrap()]
}

/// A resolver that asks `addresses` (which share a port) in this order.
pub(crate) fn resolver(servers: &[SocketAddr]) -> (Resolver, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let text: String = servers.iter().map(|s| format!("nameserver {}\n", s.ip())).collect();
    std::fs::write(dir.path().join("resolv.conf"), text).unwrap();
    let files = Files::at(dir.path().join("hosts"), dir.path().join("resolv.conf"), servers[0].port());
    (Resolver::new(files), dir)
}

async fn resolved(servers: &[SocketAddr]) -> Result<Vec<IpAddr>, ResolveError> {
    let (resolver, _dir) = resolver(servers);
    resolver.addresses(&name()).await
}

macro_rules! local_set {
    ($($body:tt)*) => { tokio::task::LocalSet::new().run_until(async { $($body)* }).await };
}
pub(crate) use local_set;

#[tokio::test(flavor = "current_thread")]
async fn both_families_are_asked_once_and_kept() {
    local_set! {
        let server = server(good, silent).await;
        let (resolver, _dir) = resolver(&[server.address]);
        let name = name();
        let (one, two) = tokio::join!(resolver.addresses(&name), resolver.addresses(&name));
        assert_eq!((one, two), (Ok(both()), Ok(both())));
        assert_eq!(resolver.addresses(&name).await, Ok(both()));
        assert_eq!(server.udp.get(), 2);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_chain_of_aliases_is_followed_inside_the_answer_and_others_records_ignored() {
    local_set! {
        let server = server(|q| vec![addresses(q, 5)], silent).await;
        assert_eq!(resolved(&[server.address]).await, Ok(both()));
        let endless = self::server(|q| vec![addresses(q, 30)], silent).await;
        assert!(matches!(resolved(&[endless.address]).await, Err(ResolveError::Failed(..))));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn an_alias_that_leads_in_a_circle_resolves_to_nothing() {
    local_set! {
        let server = server(|query| {
            let owner: DomainName<Vec<u8>> = "api.example.com".parse().unwrap();
            let mut answer = MessageBuilder::new_vec().start_answer(query, Rcode::NOERROR).unwrap();
            answer.push((&owner, Ttl::from_secs(60), Cname::new(owner.clone()))).unwrap();
            vec![answer.finish()]
        }, silent).await;
        assert!(matches!(resolved(&[server.address]).await, Err(ResolveError::Failed(..))));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_truncated_answer_is_asked_for_again_over_tcp() {
    local_set! {
        let server = server(|query| {
            let mut answer = MessageBuilder::new_vec().start_answer(query, Rcode::NOERROR).unwrap();
            answer.header_mut().set_tc(true);
            vec![answer.finish()]
        }, good).await;
        assert_eq!(resolved(&[server.address]).await, Ok(both()));
        assert_eq!((server.udp.get(), server.tcp.get()), (2, 2));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn answers_to_other_questions_are_ignored() {
    local_set! {
        let server = server(|query| {
            let mut wrong_id = addresses(query, 0);
            wrong_id[0] ^= 0x55;
            let mut no_answer = addresses(query, 0);
            no_answer[2] &= 0x7f;
            let other: DomainName<Vec<u8>> = "other.example".parse().unwrap();
            let mut question = MessageBuilder::new_vec().question();
            question.push((other, Rtype::A)).unwrap();
            let mut wrong_name = addresses(&question.into_message(), 0);
            wrong_name[..2].copy_from_slice(&query.as_slice()[..2]);
            vec![wrong_id, no_answer, wrong_name, b"garbage".to_vec(), Vec::new(), addresses(query, 0)]
        }, silent).await;
        assert_eq!(resolved(&[server.address]).await, Ok(both()));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_server_that_is_silent_or_fails_is_followed_by_the_next() {
    local_set! {
        for bad in [silent as Reply, |q| vec![error(q, Rcode::SERVFAIL)], |q| vec![error(q, Rcode::REFUSED)]] {
            let first = server(bad, silent).await;
            let second = format!("127.0.0.2:{}", first.address.port());
            let second = server_at(&second, good, silent).await;
            assert_eq!(resolved(&[first.address, second.address]).await, Ok(both()));
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_server_that_stumbles_over_edns_is_asked_without() {
    local_set! {
        let server = server(|q| vec![match q.opt() {
            Some(_) => error(q, Rcode::FORMERR),
            None => addresses(q, 0),
        }], silent).await;
        assert_eq!(resolved(&[server.address]).await, Ok(both()));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_name_that_does_not_exist_has_no_address_and_is_not_asked_again_at_once() {
    local_set! {
        let server = server(|q| vec![error(q, Rcode::NXDOMAIN)], silent).await;
        let (resolver, _dir) = resolver(&[server.address]);
        for _ in 0..3 {
            assert_eq!(resolver.addresses(&name()).await, Err(ResolveError::NoAddress(name())));
        }
        assert_eq!(server.udp.get(), 2);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn ipv4_does_not_wait_long_for_ipv6() {
    local_set! {
        let server = server(|q| match q.qtype() {
            Some(Rtype::A) => good(q),
            _ => Vec::new(),
        }, silent).await;
        takes_less_than(Duration::from_millis(500), async || {
            assert_eq!(resolved(&[server.address]).await, Ok(vec!["192.0.2.7".parse().unwrap()]));
        })
        .await;
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_server_on_ipv6_is_asked() {
    local_set! {
        let server = server_at("[::1]:0", good, silent).await;
        assert_eq!(resolved(&[server.address]).await, Ok(both()));
    }
}

#[tokio::test(flavor = "current_thread")]
async fn the_hosts_file_goes_before_the_servers() {
    local_set! {
        let server = server(good, silent).await;
        let (resolver, dir) = resolver(&[server.address]);
        std::fs::write(dir.path().join("hosts"), "192.0.2.1 api.example.com\n2001:db8::1 api.example.com\n").unwrap();
        let want: Vec<IpAddr> = vec!["2001:db8::1".parse().unwrap(), "192.0.2.1".parse().unwrap()];
        assert_eq!(resolver.addresses(&name()).await, Ok(want));
        assert_eq!(server.udp.get(), 0);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn one_family_is_told_with_the_time_that_is_left() {
    local_set! {
        let server = server(good, silent).await;
        let (resolver, _dir) = resolver(&[server.address]);
        let first = resolver.records(&name(), Family::V4).await.unwrap();
        assert_eq!(first.addresses, ["192.0.2.7".parse::<IpAddr>().unwrap()]);
        assert!(first.ttl <= Duration::from_secs(60) && first.ttl > Duration::from_secs(20), "{:?}", first.ttl);
        tokio::time::sleep(Duration::from_millis(20)).await;
        let second = resolver.records(&name(), Family::V4).await.unwrap();
        assert!(second.ttl < first.ttl - Duration::from_millis(15), "{:?} {:?}", first.ttl, second.ttl);
        assert_eq!(server.udp.get(), 1);
        let (resolver, dir) = self::resolver(&[server.address]);
        std::fs::write(dir.path().join("hosts"), "192.0.2.1 here.example\n").unwrap();
        let here = "here.example".parse().unwrap();
        let v6 = resolver.records(&here, Family::V6).await.unwrap();
        assert_eq!((v6.addresses, v6.ttl), (vec![], HOSTS_TTL));
    }
}

#[test]
fn addresses_alternate_between_the_families() {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let given = vec![ip("192.0.2.1"), ip("192.0.2.2"), ip("192.0.2.3"), ip("2001:db8::1")];
    let want = [ip("2001:db8::1"), ip("192.0.2.1"), ip("192.0.2.2"), ip("192.0.2.3")];
    assert_eq!(alternating(given), want);
}

fn reply() -> Message<Vec<u8>> {
    let question = question::query(&name(), Family::V6, true, true).unwrap();
    Message::from_octets(addresses(&question, 3)).unwrap()
}

proptest::proptest! {
    #[test]
    fn any_bytes_of_a_server_are_survived(bytes in proptest::collection::vec(proptest::num::u8::ANY, 12..600)) {
        let message = Message::from_octets(bytes).unwrap();
        for family in [Family::V4, Family::V6] {
            let addresses = question::read(&message, family).map_or(0, |answer| answer.addresses.len());
            proptest::prop_assert!(addresses <= 32);
        }
        message.is_answer(&reply());
    }

    #[test]
    fn a_damaged_reply_is_survived(at in 0usize..400, to in proptest::num::u8::ANY, cut in 0usize..400) {
        let mut bytes = reply().as_slice().to_vec();
        let at = at % bytes.len();
        bytes[at] = to;
        bytes.truncate(cut.max(12));
        let message = Message::from_octets(bytes).unwrap();
        question::read(&message, Family::V6);
        message.is_answer(&reply());
    }
}
