//! Connecting to one of several addresses: the next one starts when the one before fails or has had a quarter of a
//! second, and the first to connect wins (RFC 8305 §5). Few at a time: each is a descriptor, and whoever answers for the
//! name says how many addresses it has.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Connection Attempt Delay.
const STAGGER: Duration = Duration::from_millis(250);
/// Attempts of one connection at a time.
pub(super) const AT_ONCE: usize = 3;
/// For one attempt: the third SYN is three seconds old (RFC 6298).
const PATIENCE: Duration = Duration::from_secs(6);
/// For all attempts together.
const DEADLINE: Duration = Duration::from_secs(20);

/// Connects to the first of `addresses` that answers. To be called within a `LocalSet`.
pub(crate) async fn dial(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    timeout(DEADLINE, race(addresses, PATIENCE)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn race(addresses: &[SocketAddr], patience: Duration) -> io::Result<TcpStream> {
    let mut waiting = addresses.iter().copied();
    let mut attempts = JoinSet::new();
    let mut error = io::Error::from(io::ErrorKind::AddrNotAvailable);
    loop {
        if attempts.len() < AT_ONCE
            && let Some(address) = waiting.next()
        {
            attempts.spawn_local(async move {
                timeout(patience, connect(address)).await.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
            });
        }
        let more = waiting.len() > 0 && attempts.len() < AT_ONCE;
        tokio::select! {
            biased;
            ended = attempts.join_next() => match ended {
                Some(Ok(Ok(stream))) => return Ok(stream),
                Some(Ok(Err(failed))) => error = failed,
                Some(Err(failed)) => error = io::Error::other(failed),
                None => return Err(error),
            },
            () = sleep(STAGGER), if more => {}
        }
    }
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    // A port of the host's own that nobody listens on can be met by this very socket (simultaneous open).
    if stream.local_addr()? == stream.peer_addr()? {
        stream.set_zero_linger()?;
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rig::takes_less_than;
    use std::time::Instant;
    use tokio::net::TcpListener;
    use tokio::task::LocalSet;

    async fn listener() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").await.unwrap()
    }

    /// An address that refuses for as long as it is held: nobody else can listen there.
    fn refusing() -> (SocketAddr, tokio::net::TcpSocket) {
        let held = tokio::net::TcpSocket::new_v4().unwrap();
        held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        (held.local_addr().unwrap(), held)
    }

    /// A listener whose backlog is full does not answer.
    async fn silent() -> (SocketAddr, (TcpListener, Vec<TcpStream>)) {
        let full = tokio::net::TcpSocket::new_v4().unwrap();
        full.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let full = full.listen(1).unwrap();
        let silent = full.local_addr().unwrap();
        let mut fill = Vec::new();
        while let Ok(stream) = timeout(Duration::from_millis(100), TcpStream::connect(silent)).await {
            fill.push(stream.unwrap());
        }
        (silent, (full, fill))
    }

    #[tokio::test(flavor = "current_thread")]
    async fn many_silent_addresses_are_tried_a_few_at_a_time_and_hide_no_good_one() {
        let (silent, _fill) = silent().await;
        let listening = listener().await;
        let patience = Duration::from_secs(2);
        let addresses = [silent, silent, silent, silent, listening.local_addr().unwrap()];
        takes_less_than(patience * 2, async || {
            let start = Instant::now();
            let stream = LocalSet::new().run_until(race(&addresses, patience)).await.unwrap();
            assert_eq!(stream.peer_addr().unwrap(), listening.local_addr().unwrap());
            assert!(start.elapsed() >= patience, "{:?}", start.elapsed());
            drop((stream, listening.accept().await.unwrap()));
        })
        .await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_address_that_refuses_costs_no_time() {
        let listening = listener().await;
        let (gone, _held) = refusing();
        let addresses = [gone, gone, listening.local_addr().unwrap()];
        takes_less_than(STAGGER, async || {
            let stream = LocalSet::new().run_until(dial(&addresses)).await.unwrap();
            assert_eq!(stream.peer_addr().unwrap(), listening.local_addr().unwrap());
            drop((stream, listening.accept().await.unwrap()));
        })
        .await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_address_that_is_silent_costs_a_quarter_of_a_second() {
        let (silent, _fill) = silent().await;
        let listening = listener().await;
        let addresses = [silent, listening.local_addr().unwrap()];
        takes_less_than(STAGGER * 3, async || {
            let start = Instant::now();
            let stream = LocalSet::new().run_until(dial(&addresses)).await.unwrap();
            assert_eq!(stream.peer_addr().unwrap(), listening.local_addr().unwrap());
            assert!(start.elapsed() >= STAGGER, "{:?}", start.elapsed());
            drop((stream, listening.accept().await.unwrap()));
        })
        .await;
    }

    #[tokio::test(flavor = "current_thread")]
    async fn when_all_refuse_the_last_refusal_is_told() {
        let (gone, _held) = refusing();
        let error = LocalSet::new().run_until(dial(&[gone, gone])).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(LocalSet::new().run_until(dial(&[])).await.is_err());
    }
}
