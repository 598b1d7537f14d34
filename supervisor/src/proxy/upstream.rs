//! The proxy of the host's own network (`upstream_proxy` in the host's settings): connections that leave through HTTP
//! CONNECT (RFC 9110 §9.3.6) or SOCKS5 (RFC 1928). A name is handed over as a name, and never looked up here. What the
//! proxy answers is bounded, in length and in time.

use super::dial::dial;
use crate::flows::{Host, Target};
use crate::resolve::Resolver;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use terok_policy::settings::{self, Scheme};
use terok_policy::{Name, Rule, rule};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// From its greeting to its word: the proxy connects meanwhile.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest head of an answer.
const HEAD: usize = 8 * 1024;
/// Header fields of an answer.
const FIELDS: usize = 64;
/// Of the proxy's own words, this much goes into the log.
const WORDS: usize = 80;

/// The proxy, and what is dialled without it.
pub(crate) struct Upstream {
    settings: settings::Upstream,
    except: Vec<rule::Target>,
}

/// Why a connection could not be made through it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Its own name has no address.
    #[error("upstream_proxy: {0}")]
    Unresolved(String),
    /// It cannot be reached.
    #[error("upstream_proxy: {0}")]
    Io(io::Error),
    /// It said nothing, or not all.
    #[error("upstream_proxy: it ended the connection")]
    Ended,
    /// It did not answer in time.
    #[error("upstream_proxy: no answer within {} seconds", PATIENCE.as_secs())]
    Slow,
    /// It does not speak the protocol.
    #[error("upstream_proxy: {0}; check the scheme and the port in config.toml")]
    Protocol(&'static str),
    /// It will not let us in.
    #[error(
        "upstream_proxy: {0}; give user and password in config.toml, as in http://user:password@host:port"
    )]
    Login(String),
    /// It refuses this target or cannot reach it.
    #[error("upstream_proxy: {0}")]
    Refused(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Failure::Ended,
            _ => Failure::Io(error),
        }
    }
}

impl Upstream {
    /// As the settings say.
    pub(crate) fn new(settings: settings::Upstream) -> Self {
        let except = settings.except.iter().filter_map(|text| text.parse::<Rule>().ok());
        let except = except.map(|rule| rule.target).collect();
        Upstream { settings, except }
    }

    /// Whether connections to `host` go through it. The host's own ports never do.
    pub(crate) fn carries(&self, host: &Host) -> bool {
        let excepted = |target: &rule::Target| match (target, host) {
            (rule::Target::Any, _) => true,
            (rule::Target::Name(name), Host::Name(host)) => name == host,
            (rule::Target::Under(name), Host::Name(host)) => host.is_under(name),
            (rule::Target::Net(net), Host::Literal(ip)) => net.contains(*ip),
            _ => false,
        };
        *host != Host::Loopback && !self.except.iter().any(excepted)
    }

    /// A connection to `target`, whose next byte is the server's first.
    pub(crate) async fn connect(&self, resolver: &Resolver, target: &Target) -> Result<TcpStream, Failure> {
        let mut stream = dial(&self.addresses(resolver).await?).await?;
        let _ = stream.set_nodelay(true);
        let asked = async {
            match self.settings.scheme {
                Scheme::Http => self.http(&mut stream, target).await,
                Scheme::Socks5 => self.socks5(&mut stream, target).await,
            }
        };
        timeout(PATIENCE, asked).await.map_err(|_| Failure::Slow)??;
        Ok(stream)
    }

    /// It is the operator's own choice, so it may be anywhere, the host's loopback included.
    async fn addresses(&self, resolver: &Resolver) -> Result<Vec<SocketAddr>, Failure> {
        let settings::Upstream { host, port, .. } = &self.settings;
        let found = match host.parse::<IpAddr>() {
            Ok(ip) => vec![ip],
            Err(_) => {
                let name = Name::parse(host).map_err(|error| Failure::Unresolved(error.to_string()))?;
                let found = resolver.addresses(&name).await;
                found.map_err(|error| Failure::Unresolved(error.to_string()))?
            }
        };
        Ok(found.into_iter().map(|ip| SocketAddr::new(ip, *port)).collect())
    }

    async fn http(&self, stream: &mut TcpStream, target: &Target) -> Result<(), Failure> {
        let to = match &target.host {
            Host::Literal(ip) => SocketAddr::new(*ip, target.port).to_string(),
            _ => target.to_string(),
        };
        let mut request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n");
        if let Some((user, password)) = &self.settings.login {
            let login = base64(format!("{user}:{password}").as_bytes());
            request.push_str(&format!("Proxy-Authorization: Basic {login}\r\n"));
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await?;
        let (status, reason) = answer(stream).await?;
        let said = format!("{status} {}", printable(&reason));
        match status {
            200..=299 => Ok(()),
            407 => Err(Failure::Login(said)),
            _ => Err(Failure::Refused(said)),
        }
    }

    async fn socks5(&self, stream: &mut TcpStream, target: &Target) -> Result<(), Failure> {
        const NOT_SOCKS: Failure = Failure::Protocol("its answer is not SOCKS5");
        let login = self.settings.login.as_ref();
        let greeting: &[u8] = if login.is_some() { &[5, 2, 0, 2] } else { &[5, 1, 0] };
        stream.write_all(greeting).await?;
        match (read::<2>(stream).await?, login) {
            ([5, 0], _) => {}
            ([5, 2], Some((user, password))) => {
                let mut words = vec![1];
                for word in [user, password] {
                    let length = u8::try_from(word.len())
                        .map_err(|_| Failure::Login("user or password above 255 octets".to_owned()))?;
                    words.push(length);
                    words.extend_from_slice(word.as_bytes());
                }
                stream.write_all(&words).await?;
                // RFC 1929 §2: any other status than 0 is a refusal.
                match read::<2>(stream).await? {
                    [_, 0] => {}
                    _ => return Err(Failure::Login("user and password are refused".to_owned())),
                }
            }
            ([5, _], _) => return Err(Failure::Login("it wants a login of another kind".to_owned())),
            _ => return Err(NOT_SOCKS),
        }
        let mut request = vec![5, 1, 0];
        match &target.host {
            Host::Literal(IpAddr::V4(ip)) => request.extend([&[1], &ip.octets()[..]].concat()),
            Host::Literal(IpAddr::V6(ip)) => request.extend([&[4], &ip.octets()[..]].concat()),
            Host::Name(name) => {
                let name = name.as_str().as_bytes();
                // A name is at most 253 octets.
                request.extend([&[3, u8::try_from(name.len()).unwrap_or(u8::MAX)], name].concat());
            }
            Host::Loopback => return Err(Failure::Protocol("the host's own ports are dialled directly")),
        }
        request.extend(target.port.to_be_bytes());
        stream.write_all(&request).await?;
        let [5, code, _, kind] = read::<4>(stream).await? else { return Err(NOT_SOCKS) };
        if code != 0 {
            return Err(Failure::Refused(socks_reason(code)));
        }
        // The address it is bound to, which nobody needs.
        let bound = match kind {
            1 => 4,
            4 => 16,
            3 => usize::from(read::<1>(stream).await?[0]),
            _ => return Err(NOT_SOCKS),
        };
        stream.read_exact(&mut vec![0; bound + 2]).await?;
        Ok(())
    }
}

/// `host:port`, as the log names it: without the login.
impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings::Upstream { host, port, .. } = &self.settings;
        match host.contains(':') {
            true => write!(f, "[{host}]:{port}"),
            false => write!(f, "{host}:{port}"),
        }
    }
}

async fn read<const N: usize>(stream: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut octets = [0; N];
    stream.read_exact(&mut octets).await?;
    Ok(octets)
}

/// Status and reason of the answer; what follows its head stays in the socket.
async fn answer(stream: &mut TcpStream) -> Result<(u16, String), Failure> {
    let mut head = vec![0; HEAD];
    let mut taken = 0;
    loop {
        let room = head.get_mut(taken..).filter(|room| !room.is_empty());
        let seen = stream.peek(room.ok_or(Failure::Protocol("its answer has no end"))?).await?;
        if seen == 0 {
            return Err(Failure::Ended);
        }
        let mut fields = [httparse::EMPTY_HEADER; FIELDS];
        let mut response = httparse::Response::new(&mut fields);
        let parsed = response.parse(head.get(..taken + seen).unwrap_or_default());
        let parsed = parsed.map_err(|_| Failure::Protocol("its answer is not HTTP"))?;
        let (whole, word) = match parsed {
            httparse::Status::Complete(length) => {
                let status = response.code.unwrap_or_default();
                (length - taken, Some((status, response.reason.unwrap_or_default().to_owned())))
            }
            httparse::Status::Partial => (seen, None),
        };
        stream.read_exact(head.get_mut(taken..taken + whole).unwrap_or_default()).await?;
        taken += whole;
        match word {
            // An interim answer (RFC 9110 §15.2) has another one after it.
            Some((100..=199, _)) => taken = 0,
            Some(word) => return Ok(word),
            None => {}
        }
    }
}

fn printable(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(WORDS).collect()
}

/// RFC 1928 §6.
fn socks_reason(code: u8) -> String {
    let reason = match code {
        1 => "general failure",
        2 => "not allowed by its rules",
        3 => "network unreachable",
        4 => "host unreachable",
        5 => "connection refused",
        6 => "time to live expired",
        7 => "command not supported",
        8 => "address type not supported",
        _ => "unknown",
    };
    format!("SOCKS5 error {code}, {reason}")
}

/// RFC 4648 §4.
fn base64(octets: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(octets.len().div_ceil(3) * 4);
    for chunk in octets.chunks(3) {
        let word =
            chunk.iter().fold(0u32, |word, octet| word << 8 | u32::from(*octet)) << (8 * (3 - chunk.len()));
        for place in 0..4usize {
            let digit = usize::try_from(word >> (18 - 6 * place) & 63).unwrap_or_default();
            text.push(if place <= chunk.len() { char::from(DIGITS[digit]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests;
