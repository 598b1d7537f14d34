//! Addresses of a name, asked for on the host's side and only when a connection to it is dialled: /etc/hosts, then the
//! name servers of /etc/resolv.conf. Never getaddrinfo: it loads code and asks services that were not agreed on.

mod files;
mod peers;
mod question;

pub(crate) use files::Files;
pub(crate) use peers::Peers;
use question::Failure;
use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};
use terok_policy::Name;
use tokio::sync::Mutex;
use tokio::time::timeout;

/// For everything that is asked about one name.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long IPv6 addresses are waited for when IPv4 addresses are there (RFC 8305 §3).
const RESOLUTION_DELAY: Duration = Duration::from_millis(50);
/// Answers are kept for their TTL within these bounds.
const KEPT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// Failures are kept as long, so that waiting connections do not repeat them one after the other.
const KEPT_FAILURE: Duration = Duration::from_secs(2);
/// How long what /etc/hosts says may be believed: who changes a file does not announce it.
const HOSTS_TTL: Duration = Duration::from_secs(60);
/// Most answers kept.
const CACHE: usize = 1024;

/// Resolves names, with a cache.
pub(crate) struct Resolver {
    files: RefCell<Files>,
    cache: RefCell<HashMap<Key, Kept>>,
    /// Questions on their way; who asks the same waits for the first.
    asking: RefCell<HashMap<Key, Rc<Mutex<()>>>>,
}

/// An address family to ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Family {
    /// A
    V4,
    /// AAAA
    V6,
}

/// The addresses of one family, possibly none, and for how long they may be believed from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Records {
    /// In the order they were told.
    pub(crate) addresses: Vec<IpAddr>,
    /// Time to live.
    pub(crate) ttl: Duration,
}

type Key = (Name, Family);
type Addresses = Result<Vec<IpAddr>, Failure>;

#[derive(Clone)]
struct Kept {
    answer: Addresses,
    until: Instant,
}

/// Why there is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ResolveError {
    /// The name servers know none.
    #[error("{0} has no address")]
    NoAddress(Name),
    /// No name server answered.
    #[error("{0} was not resolved: {1}")]
    Failed(Name, Failure),
}

impl Resolver {
    /// Resolves with these files.
    pub(crate) fn new(files: Files) -> Self {
        Resolver { files: RefCell::new(files), cache: RefCell::default(), asking: RefCell::default() }
    }

    /// The addresses of `name` in the order to dial them: IPv6 first, then alternating (RFC 8305 §4). Never empty.
    pub(crate) async fn addresses(&self, name: &Name) -> Result<Vec<IpAddr>, ResolveError> {
        if let Some(addresses) = self.files.borrow_mut().host(name) {
            return Ok(alternating(addresses));
        }
        let (v6, v4) = timeout(DEADLINE, self.both(name))
            .await
            .unwrap_or((Err(Failure::Timeout), Err(Failure::Timeout)));
        match (v6, v4) {
            (Err(failure), Err(_)) => Err(ResolveError::Failed(name.clone(), failure)),
            (v6, v4) => {
                let addresses: Vec<_> =
                    v6.unwrap_or_default().into_iter().chain(v4.unwrap_or_default()).collect();
                match addresses.is_empty() {
                    true => Err(ResolveError::NoAddress(name.clone())),
                    false => Ok(alternating(addresses)),
                }
            }
        }
    }

    /// The addresses of `name` in the hosts file, possibly none.
    pub(crate) fn in_hosts(&self, name: &Name) -> Vec<IpAddr> {
        self.files.borrow_mut().host(name).unwrap_or_default()
    }

    /// What is known of `name` in one family.
    pub(crate) async fn records(&self, name: &Name, family: Family) -> Result<Records, ResolveError> {
        if let Some(mut addresses) = self.files.borrow_mut().host(name) {
            addresses.retain(|ip| family.has(*ip));
            return Ok(Records { addresses, ttl: HOSTS_TTL });
        }
        let failed = |failure| ResolveError::Failed(name.clone(), failure);
        let kept =
            timeout(DEADLINE, self.lookup(name, family)).await.map_err(|_| failed(Failure::Timeout))?;
        let ttl = kept.until.saturating_duration_since(Instant::now());
        kept.answer.map(|addresses| Records { addresses, ttl }).map_err(failed)
    }

    async fn both(&self, name: &Name) -> (Addresses, Addresses) {
        let answer = async |family| self.lookup(name, family).await.answer;
        let mut v6 = pin!(answer(Family::V6));
        let v4 = pin!(answer(Family::V4));
        alternatives(&mut v6, v4).await
    }

    async fn lookup(&self, name: &Name, family: Family) -> Kept {
        let key = (name.clone(), family);
        if let Some(kept) = self.kept(&key) {
            return kept;
        }
        let turn = self.turn(&key);
        let _turn = turn.lock().await;
        if let Some(kept) = self.kept(&key) {
            return kept;
        }
        let servers = self.files.borrow_mut().servers();
        let (answer, ttl) = match question::ask(&servers, name, family).await {
            Ok(answer) => (Ok(answer.addresses), answer.ttl.clamp(KEPT.0, KEPT.1)),
            Err(failure) => (Err(failure), KEPT_FAILURE),
        };
        let now = Instant::now();
        let kept = Kept { answer, until: now + ttl };
        self.keep(key, kept.clone(), now);
        kept
    }

    fn kept(&self, key: &Key) -> Option<Kept> {
        self.cache.borrow().get(key).filter(|kept| kept.until > Instant::now()).cloned()
    }

    fn keep(&self, key: Key, kept: Kept, now: Instant) {
        let mut cache = self.cache.borrow_mut();
        if cache.len() >= CACHE {
            cache.retain(|_, kept| kept.until > now);
        }
        if cache.len() >= CACHE {
            cache.clear();
        }
        cache.insert(key, kept);
    }

    fn turn(&self, key: &Key) -> Rc<Mutex<()>> {
        let mut asking = self.asking.borrow_mut();
        asking.retain(|_, turn| Rc::strong_count(turn) > 1);
        asking.entry(key.clone()).or_default().clone()
    }
}

impl Family {
    /// Whether `ip` is of this family.
    pub(crate) fn has(self, ip: IpAddr) -> bool {
        ip.is_ipv6() == (self == Family::V6)
    }
}

/// Both answers; when the IPv4 addresses are there, the IPv6 ones have little time left.
async fn alternatives(
    v6: &mut (impl Future<Output = Addresses> + Unpin),
    mut v4: impl Future<Output = Addresses> + Unpin,
) -> (Addresses, Addresses) {
    tokio::select! {
        v6 = &mut *v6 => (v6, v4.await),
        v4 = &mut v4 => match &v4 {
            Ok(found) if !found.is_empty() => {
                (timeout(RESOLUTION_DELAY, v6).await.unwrap_or(Err(Failure::Timeout)), v4)
            }
            _ => (v6.await, v4),
        },
    }
}

fn alternating(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let count = addresses.len();
    let (v6, v4): (Vec<_>, Vec<_>) = addresses.into_iter().partition(IpAddr::is_ipv6);
    let (mut v6, mut v4) = (v6.into_iter(), v4.into_iter());
    let mut ordered = Vec::with_capacity(count);
    while ordered.len() < count {
        ordered.extend(v6.next());
        ordered.extend(v4.next());
    }
    ordered
}

#[cfg(test)]
pub(crate) mod tests;
