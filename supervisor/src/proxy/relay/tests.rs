use super::*;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

const WHOLE: u64 = 256 << 20;

/// Two ends with a relay between them, as the proxy has it.
struct Between {
    client: TcpStream,
    server: TcpStream,
    up: Rc<Cell<u64>>,
    down: Rc<Cell<u64>>,
    relay: tokio::task::JoinHandle<io::Result<()>>,
}

pub(in crate::proxy) async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connecting = TcpStream::connect(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(connecting, listener.accept());
    (near.unwrap(), far.unwrap().0)
}

async fn between(copies: bool) -> Between {
    let ((client, inner_client), (inner_server, server)) = (pair().await, pair().await);
    let (up, down) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let (up_count, down_count) = (up.clone(), down.clone());
    let relay = tokio::task::spawn_local(async move {
        let relay = Relay::new(PIPES);
        relay.copies.set(copies);
        let (client, server) = (Socket::new(inner_client), Socket::new(inner_server));
        let never = Pause::default();
        tokio::try_join!(
            relay.pump(&client, &server, &up_count, &never),
            relay.pump(&server, &client, &down_count, &never)
        )?;
        client.end();
        server.end();
        Ok(())
    });
    Between { client, server, up, down, relay }
}

macro_rules! local {
    ($($body:tt)*) => { tokio::task::LocalSet::new().run_until(async { $($body)* }).await };
}
pub(in crate::proxy) use local;

#[tokio::test(flavor = "current_thread")]
async fn each_half_closes_by_itself() {
    local! {
        for copies in [false, true] {
            let Between { mut client, mut server, up, down, relay } = between(copies).await;
            let mut got = Vec::new();
            client.write_all(b"question").await.unwrap();
            client.shutdown().await.unwrap();
            server.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, b"question");
            server.write_all(b"a long answer").await.unwrap();
            assert_eq!((client.read_u8().await.unwrap(), relay.is_finished()), (b'a', false));
            server.shutdown().await.unwrap();
            got.clear();
            client.read_to_end(&mut got).await.unwrap();
            assert_eq!(got, b" long answer");
            relay.await.unwrap().unwrap();
            assert_eq!((up.get(), down.get()), (8, 13));
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn the_other_half_may_close_first() {
    local! {
        let Between { mut client, mut server, relay, .. } = between(false).await;
        server.shutdown().await.unwrap();
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        client.write_all(b"still here").await.unwrap();
        client.shutdown().await.unwrap();
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"still here");
        relay.await.unwrap().unwrap();
    }
}

/// A pseudo-random stream, the same at both ends.
struct Stream(u64);

impl Stream {
    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let word = self.0.to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

async fn send(to: &mut OwnedWriteHalf, seed: u64) {
    let mut stream = Stream(seed);
    let mut buffer = vec![0; 1 << 16];
    for _ in 0..WHOLE >> 16 {
        stream.fill(&mut buffer);
        to.write_all(&buffer).await.unwrap();
    }
    to.shutdown().await.unwrap();
}

async fn check(from: &mut OwnedReadHalf, seed: u64) {
    let mut stream = Stream(seed);
    let (mut got, mut want) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    for _ in 0..WHOLE >> 16 {
        from.read_exact(&mut got).await.unwrap();
        stream.fill(&mut want);
        assert!(got == want);
    }
    assert_eq!(from.read(&mut got).await.unwrap(), 0);
}

#[tokio::test(flavor = "current_thread")]
async fn a_quarter_gigabyte_arrives_unchanged_in_both_directions_at_once() {
    local! {
        let Between { client, server, up, down, relay } = between(false).await;
        let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
            (client.into_split(), server.into_split());
        tokio::join!(
            send(&mut to_client, 1),
            check(&mut from_server, 1),
            send(&mut to_server, 2),
            check(&mut from_client, 2)
        );
        relay.await.unwrap().unwrap();
        assert_eq!((up.get(), down.get()), (WHOLE, WHOLE));
    }
}

/// The most that one TCP connection holds.
fn buffers() -> usize {
    let most =
        |path| std::fs::read_to_string(path).unwrap().split_whitespace().nth(2).unwrap().parse::<usize>();
    most("/proc/sys/net/ipv4/tcp_rmem").unwrap() + most("/proc/sys/net/ipv4/tcp_wmem").unwrap()
}

#[tokio::test(flavor = "current_thread")]
async fn a_receiver_that_does_not_read_stops_the_sender() {
    local! {
        for copies in [false, true] {
            let Between { client, server: _server, up, .. } = between(copies).await;
            let block = vec![0; 1 << 16];
            let mut sent = 0;
            while let Ok(ready) = timeout(Duration::from_millis(300), client.writable()).await {
                ready.unwrap();
                sent += client.try_write(&block).unwrap_or(0);
                // Two connections' socket buffers and one pipe hold what is on the way.
                assert!(sent < 2 * buffers() + LARGE, "no end to what is taken");
            }
            assert!(sent - usize::try_from(up.get()).unwrap() < buffers() + LARGE);
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_reset_of_one_side_resets_the_other() {
    local! {
        for from_client in [false, true] {
            let Between { client, server, relay, .. } = between(false).await;
            let (breaking, mut other) = if from_client { (client, server) } else { (server, client) };
            other.write_all(b"x").await.unwrap();
            breaking.readable().await.unwrap();
            breaking.set_zero_linger().unwrap();
            drop(breaking);
            let error = other.read(&mut [0]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            assert!(relay.await.unwrap().is_err());
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn an_aborted_relay_resets_both_sides() {
    local! {
        let Between { mut client, mut server, relay, .. } = between(false).await;
        client.write_all(b"x").await.unwrap();
        server.read_u8().await.unwrap();
        relay.abort();
        for side in [&mut client, &mut server] {
            assert_eq!(side.read(&mut [0]).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn small_messages_go_back_and_forth_without_delay() {
    local! {
        let Between { mut client, mut server, .. } = between(false).await;
        client.set_nodelay(true).unwrap();
        server.set_nodelay(true).unwrap();
        let start = Instant::now();
        for _ in 0..1000 {
            client.write_u8(1).await.unwrap();
            server.read_u8().await.unwrap();
            server.write_u8(2).await.unwrap();
            client.read_u8().await.unwrap();
        }
        // Nagle's delay alone would be 40 ms a round.
        assert!(start.elapsed() < Duration::from_secs(35), "{:?}", start.elapsed());
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_paused_pump_leaves_the_bytes() {
    local! {
        let ((mut client, from), (to, _server)) = (pair().await, pair().await);
        let (relay, pause, count) = (Relay::new(PIPES), Pause::default(), Cell::new(0));
        let (went_on, ()) = tokio::join!(relay.pump(&from, &to, &count, &pause), async {
            tokio::task::yield_now().await;
            pause.ask();
            client.write_all(b"answer").await.unwrap();
        });
        assert!(!went_on.unwrap());
        assert_eq!(count.get(), 0);
        pause.clear();
        client.shutdown().await.unwrap();
        assert!(relay.pump(&from, &to, &count, &pause).await.unwrap());
        assert_eq!(count.get(), 6);
    }
}

/// Waits until `what` is there and has been the same for a while, in turns of the runtime and not of the clock.
async fn still(what: impl Fn() -> Option<u64>) {
    let (mut last, mut turns) = (None, 0);
    while turns < 50 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let now = what();
        turns = if now.is_some() && now == last { turns + 1 } else { 0 };
        last = now;
    }
}

#[tokio::test(flavor = "current_thread")]
async fn pipes_are_given_back_when_empty_and_closed_when_not() {
    local! {
        let ((mut client, from), (to, server)) = (pair().await, pair().await);
        let (relay, count, never) = (Relay::new(PIPES), Cell::new(0), Pause::default());
        client.write_all(b"hello").await.unwrap();
        tokio::select! {
            _ = relay.pump(&from, &to, &count, &never) => panic!("nobody has ended"),
            () = still(|| (count.get() == 5).then_some(5)) => {}
        }
        assert_eq!((relay.spare.borrow().len(), relay.pipes.get()), (1, 1));
        let block = vec![0; 1 << 20];
        let sending = async { while client.write_all(&block).await.is_ok() {} };
        let both = async { tokio::join!(sending, relay.pump(&from, &to, &count, &never)) };
        tokio::select! {
            _ = both => panic!("nobody reads"),
            () = still(|| Some(count.get())) => {}
        }
        assert_eq!((relay.spare.borrow().len(), relay.pipes.get()), (0, 0), "it held bytes");
        drop(server);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn beyond_its_pipes_a_relay_copies() {
    local! {
        let relay = Relay::new(1);
        let lease = relay.lease();
        assert!(lease.is_some() && relay.lease().is_none());
        let ((mut client, from), (to, mut server)) = (pair().await, pair().await);
        let count = Cell::new(0);
        client.write_all(b"x").await.unwrap();
        client.shutdown().await.unwrap();
        assert!(relay.pump(&from, &to, &count, &Pause::default()).await.unwrap());
        assert_eq!((server.read_u8().await.unwrap(), count.get()), (b'x', 1));
    }
}
