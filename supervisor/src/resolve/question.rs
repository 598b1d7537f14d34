//! One question to the name servers: over UDP (random id and port, answers from elsewhere ignored), again over TCP where
//! the answer was cut short, the next server where one fails (RFC 1035, RFC 6891, RFC 7766).

use super::Family;
use domain::base::iana::Rcode;
use domain::base::message_builder::OptBuilder;
use domain::base::{Message, MessageBuilder, Name as DomainName, Rtype};
use domain::rdata::{A, Aaaa, Soa};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use terok_policy::Name;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// One server's time to answer.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Every server is asked this often.
const ROUNDS: usize = 2;
/// UDP payload offered (DNS flag day 2020: never fragmented).
const PAYLOAD: u16 = 1232;
/// Most addresses taken from an answer.
const ADDRESSES: usize = 32;
/// How long the lack of an address is believed when no SOA says.
const NEGATIVE: Duration = Duration::from_secs(5);
/// How long it is believed at most (RFC 2308 allows more; an operator who just made the record should not wait).
const NEGATIVE_MOST: Duration = Duration::from_secs(30);

/// An answer, possibly that there is no address.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) ttl: Duration,
}

/// Why no server answered; of several, the last.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Failure {
    /// None in time.
    #[error("no name server answered in time")]
    Timeout,
    /// An answer that is an error.
    #[error("the name server {0} answered {1}")]
    Refused(SocketAddr, String),
    /// No server could be asked.
    #[error("the name server {0} cannot be asked: {1}")]
    Unreachable(SocketAddr, String),
}

/// Asks `servers` in turn.
pub(super) async fn ask(servers: &[SocketAddr], name: &Name, family: Family) -> Result<Answer, Failure> {
    let mut failure = Failure::Timeout;
    for &server in servers.iter().cycle().take(servers.len() * ROUNDS) {
        match timeout(PATIENCE, ask_one(server, name, family)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(other)) => failure = other,
            Err(_) => failure = Failure::Timeout,
        }
    }
    Err(failure)
}

async fn ask_one(server: SocketAddr, name: &Name, family: Family) -> Result<Answer, Failure> {
    let unreachable = |e: io::Error| Failure::Unreachable(server, e.to_string());
    let mut code = Rcode::SERVFAIL;
    // A server that stumbles over EDNS is asked without (RFC 6891 §7).
    for edns in [true, false] {
        let query = query(name, family, edns, true).map_err(|what| unreachable(io::Error::other(what)))?;
        let mut reply = over_udp(server, &query).await.map_err(unreachable)?;
        if reply.header().tc() {
            reply = over_tcp(server, &query).await.map_err(unreachable)?;
        }
        code = reply.header().rcode();
        match code {
            Rcode::NOERROR | Rcode::NXDOMAIN => {
                return read(&reply, family)
                    .ok_or(Failure::Refused(server, "a malformed message".to_owned()));
            }
            Rcode::FORMERR | Rcode::NOTIMP => {}
            _ => break,
        }
    }
    Err(Failure::Refused(server, code.to_string()))
}

/// A question to a server that resolves for us (`recursive`), or that is to tell only what it knows itself.
pub(super) fn query(
    name: &Name,
    family: Family,
    edns: bool,
    recursive: bool,
) -> Result<Message<Vec<u8>>, &'static str> {
    const LONG: &str = "the name does not fit a question";
    let name: DomainName<Vec<u8>> = DomainName::vec_from_str(name.as_str()).map_err(|_| LONG)?;
    let kind = match family {
        Family::V4 => Rtype::A,
        Family::V6 => Rtype::AAAA,
    };
    let mut builder = MessageBuilder::new_vec();
    builder.header_mut().set_random_id();
    builder.header_mut().set_rd(recursive);
    let mut question = builder.question();
    question.push((name, kind)).map_err(|_| LONG)?;
    let mut additional = question.additional();
    if edns {
        let offer = |opt: &mut OptBuilder<'_, _>| {
            opt.set_udp_payload_size(PAYLOAD);
            Ok(())
        };
        additional.opt(offer).map_err(|_| LONG)?;
    }
    Ok(additional.into_message())
}

async fn over_udp(server: SocketAddr, query: &Message<Vec<u8>>) -> io::Result<Message<Vec<u8>>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // The kernel chooses a random port, and a connected socket hears the server only.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(query.as_slice()).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let message = buffer.get(..length).and_then(|bytes| Message::from_octets(bytes.to_vec()).ok());
        if let Some(message) = message.filter(|m| m.is_answer(query)) {
            return Ok(message);
        }
    }
}

async fn over_tcp(server: SocketAddr, query: &Message<Vec<u8>>) -> io::Result<Message<Vec<u8>>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.as_slice().len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), query.as_slice()].concat()).await?;
    let mut bytes = vec![0; stream.read_u16().await?.into()];
    stream.read_exact(&mut bytes).await?;
    Message::from_octets(bytes)
        .ok()
        .filter(|m| m.is_answer(query))
        .ok_or_else(|| io::Error::other("the answer is to another question"))
}

/// The addresses at the end of the CNAME chain, `None` for a message that cannot be read.
pub(super) fn read(reply: &Message<Vec<u8>>, family: Family) -> Option<Answer> {
    let canonical = reply.canonical_name()?;
    let (mut addresses, mut ttl) = (Vec::new(), None);
    for record in reply.answer().ok()? {
        let record = record.ok()?;
        let seconds = u64::from(record.ttl().as_secs());
        ttl = Some(ttl.map_or(seconds, |ttl: u64| ttl.min(seconds)));
        if record.owner() != canonical || addresses.len() >= ADDRESSES {
            continue;
        }
        match family {
            Family::V4 => {
                addresses.extend(record.to_record::<A>().ok()?.map(|r| IpAddr::V4(r.data().addr())))
            }
            Family::V6 => {
                addresses.extend(record.to_record::<Aaaa>().ok()?.map(|r| IpAddr::V6(r.data().addr())))
            }
        }
    }
    if addresses.is_empty() {
        return Some(Answer { addresses, ttl: negative_ttl(reply) });
    }
    Some(Answer { addresses, ttl: Duration::from_secs(ttl.unwrap_or(0)) })
}

/// RFC 2308 §5.
fn negative_ttl(reply: &Message<Vec<u8>>) -> Duration {
    let soa = reply.authority().ok().and_then(|section| section.limit_to::<Soa<_>>().next()?.ok());
    let seconds = soa.map(|record| record.ttl().as_secs().min(record.data().minimum().as_secs()));
    seconds.map_or(NEGATIVE, |seconds| Duration::from_secs(seconds.into()).min(NEGATIVE_MOST))
}
