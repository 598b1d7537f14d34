//! The two directions of a connected pair: the client's bytes as the gate lets them, the server's as they come, and the
//! one moment where they depend on each other: a request to change the protocol and its answer.

use super::gate::{Gate, Refusal};
use super::http;
use super::relay::{Moved, Pause, Relay, Socket, finish, write_all};
use std::cell::Cell;
use std::io;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

/// For a hello or a request head to be complete, and for the first byte on a web port.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(10);

/// Reads of a judged client before other connections get their turn.
const READS: u32 = 8;

/// How an exchange ended other than in order; both sockets are to be reset.
#[derive(Debug)]
pub(super) enum Fault {
    /// The client's bytes are refused.
    Refused(Refusal),
    /// The client left a hello or a head incomplete for too long.
    Slow,
    /// One of the sockets failed.
    Io(io::Error),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Fault::Io(error)
    }
}

/// A client whose bytes are judged, and what was read of it before the server was dialled.
pub(super) struct Judged<'a> {
    pub(super) gate: &'a mut Gate,
    /// To be forwarded.
    pub(super) out: Vec<u8>,
    /// Not taken by the gate yet.
    pub(super) rest: Vec<u8>,
}

/// Moves bytes both ways until both sides have ended. Without `judged`, the client's pass unread.
pub(super) async fn exchange(
    relay: &Relay,
    client: &Socket,
    upstream: &Socket,
    judged: Option<Judged<'_>>,
    moved: &Moved,
) -> Result<(), Fault> {
    let upgrade = Upgrade::default();
    let up = async {
        if let Some(judged) = judged
            && !judge(relay, client, upstream, judged, &upgrade, &moved.up).await?
        {
            return Ok(());
        }
        relay.pump(client, upstream, &moved.up, &Pause::default()).await?;
        Ok::<_, Fault>(())
    };
    let down = async {
        while !relay.pump(upstream, client, &moved.down, &upgrade.pause).await? {
            let answer = upgrade_answer(relay, upstream, client, &moved.down).await?;
            upgrade.pause.clear();
            upgrade.give(answer);
        }
        Ok::<_, Fault>(())
    };
    tokio::try_join!(up, down)?;
    client.end();
    upstream.end();
    Ok(())
}

/// Reads a client's first bytes until some of them may be forwarded. `None`: it left without a word.
pub(super) async fn opening<'a>(
    relay: &Relay,
    client: &Socket,
    gate: &'a mut Gate,
) -> Result<Option<Judged<'a>>, Fault> {
    let deadline = Instant::now() + HANDSHAKE;
    let (mut out, mut rest) = (Vec::new(), Vec::new());
    while out.is_empty() {
        match timeout_at(deadline, read(relay, client, &mut rest)).await {
            Ok(Ok(0)) if gate.is_holding() => {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            Ok(Ok(0)) => return Ok(None),
            Ok(length) => length?,
            Err(_) => return Err(Fault::Slow),
        };
        let taken = gate.feed(&rest, &mut out).map_err(Fault::Refused)?;
        rest.drain(..taken);
    }
    Ok(Some(Judged { gate, out, rest }))
}

/// Forwards the client's bytes as the gate lets them, until it stands open (`true`) or the client has ended (`false`).
async fn judge(
    relay: &Relay,
    client: &Socket,
    upstream: &Socket,
    judged: Judged<'_>,
    upgrade: &Upgrade,
    count: &Cell<u64>,
) -> Result<bool, Fault> {
    let Judged { gate, mut out, mut rest } = judged;
    let mut deadline = None;
    let mut reads = 0;
    loop {
        if gate.upgrading() {
            // Before the request leaves, so that no byte of its answer passes unread.
            upgrade.pause.ask();
        }
        // A connection that waits for its next request holds no buffer.
        write_all(upstream, &std::mem::take(&mut out), count).await?;
        if gate.upgrading() {
            gate.answered(upgrade.answer().await);
        }
        if gate.is_open() {
            write_all(upstream, &rest, count).await?;
            return Ok(true);
        }
        if rest.is_empty() {
            deadline = gate.is_holding().then(|| deadline.unwrap_or_else(|| Instant::now() + HANDSHAKE));
            let reading = read(relay, client, &mut rest);
            let length = match deadline {
                None => reading.await?,
                Some(deadline) => timeout_at(deadline, reading).await.map_err(|_| Fault::Slow)??,
            };
            // A client that always has bytes for a server that always takes them must not keep the thread.
            reads += 1;
            if reads >= READS {
                reads = 0;
                tokio::task::yield_now().await;
            }
            if length == 0 {
                finish(upstream)?;
                return Ok(false);
            }
        }
        let taken = gate.feed(&rest, &mut out).map_err(Fault::Refused)?;
        rest = rest.split_off(taken);
    }
}

/// Passes the server's answer to a request to change the protocol on, and tells what it was.
async fn upgrade_answer(
    relay: &Relay,
    upstream: &Socket,
    client: &Socket,
    count: &Cell<u64>,
) -> io::Result<http::Answer> {
    let mut seen = Vec::new();
    loop {
        let before = seen.len();
        if read(relay, upstream, &mut seen).await? == 0 {
            return Ok(http::Answer::Stayed);
        }
        write_all(client, seen.get(before..).unwrap_or_default(), count).await?;
        if let Some(answer) = http::upgrade_answer(&seen) {
            return Ok(answer);
        }
    }
}

async fn read(relay: &Relay, from: &Socket, bytes: &mut Vec<u8>) -> io::Result<usize> {
    loop {
        from.readable().await?;
        match relay.read(from, bytes) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            length => return length,
        }
    }
}

/// The way a request to change the protocol reaches the other direction, and its answer comes back.
#[derive(Default)]
struct Upgrade {
    pause: Pause,
    answer: Cell<Option<http::Answer>>,
    given: Notify,
}

impl Upgrade {
    fn give(&self, answer: http::Answer) {
        self.answer.set(Some(answer));
        self.given.notify_one();
    }

    async fn answer(&self) -> http::Answer {
        loop {
            if let Some(answer) = self.answer.take() {
                return answer;
            }
            self.given.notified().await;
        }
    }
}

#[cfg(test)]
mod tests;
