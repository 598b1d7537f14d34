//! Addresses of a name, asked for on the host's side and only when a connection to it is dialled: /etc/hosts, then the
//! name servers of /etc/resolv.conf. Never getaddrinfo: it loads code and asks services that were not agreed on.

mod files;
mod question;

pub(crate) use files::Files;
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

type Key = (Name, Family);
type Addresses = Result<Vec<IpAddr>, Failure>;

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

    async fn both(&self, name: &Name) -> (Addresses, Addresses) {
        let mut v6 = pin!(self.lookup(name, Family::V6));
        let v4 = pin!(self.lookup(name, Family::V4));
        alternatives(&mut v6, v4).await
    }

    async fn lookup(&self, name: &Name, family: Family) -> Addresses {
        let key = (name.clone(), family);
        if let Some(answer) = self.kept(&key) {
            return answer;
        }
        let turn = self.turn(&key);
        let _turn = turn.lock().await;
        if let Some(answer) = self.kept(&key) {
            return answer;
        }
        let servers = self.files.borrow_mut().servers();
        let (answer, ttl) = match question::ask(&servers, name, family).await {
            Ok(answer) => (Ok(answer.addresses), answer.ttl.clamp(KEPT.0, KEPT.1)),
            Err(failure) => (Err(failure), KEPT_FAILURE),
        };
        self.keep(key, answer.clone(), ttl);
        answer
    }

    fn kept(&self, key: &Key) -> Option<Addresses> {
        let cache = self.cache.borrow();
        cache.get(key).filter(|kept| kept.until > Instant::now()).map(|kept| kept.answer.clone())
    }

    fn keep(&self, key: Key, answer: Addresses, ttl: Duration) {
        let mut cache = self.cache.borrow_mut();
        let now = Instant::now();
        if cache.len() >= CACHE {
            cache.retain(|_, kept| kept.until > now);
        }
        if cache.len() >= CACHE {
            cache.clear();
        }
        cache.insert(key, Kept { answer, until: now + ttl });
    }

    fn turn(&self, key: &Key) -> Rc<Mutex<()>> {
        let mut asking = self.asking.borrow_mut();
        asking.retain(|_, turn| Rc::strong_count(turn) > 1);
        asking.entry(key.clone()).or_default().clone()
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
mod tests;
