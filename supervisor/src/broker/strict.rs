//! HTTP/1 of the container, before the server reads it: each message passes the proxy's strict parser (E4, A16), which writes it anew or ends the
//! connection. What two implementations could read in two ways is read by none.

use crate::proxy::http::{Refusal, Requests};
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// For a head to be complete.
const HEAD: Duration = Duration::from_secs(10);
/// Most that is read behind a request to change the protocol, before its answer.
const BEHIND: usize = 64 * 1024;
/// Between two requests.
const IDLE: Duration = Duration::from_secs(60);
/// For a client to take what waits for it.
const STALLED: Duration = Duration::from_secs(120);
/// One read.
const READ: usize = 16 * 1024;

/// A client's connection whose requests are judged before they are read.
pub(super) struct Strict<S> {
    io: S,
    requests: Requests,
    /// Received and not judged.
    raw: Vec<u8>,
    /// Judged and not read.
    judged: Vec<u8>,
    at: usize,
    ended: bool,
    talk: Rc<Talk>,
    timer: Pin<Box<Sleep>>,
    /// What the timer runs for.
    waiting: Option<(Waiting, Instant)>,
    stalled: Option<Pin<Box<Sleep>>>,
}

/// What the connection and whoever answers its requests tell each other.
#[derive(Default)]
pub(super) struct Talk {
    /// Requests whose answer is not through.
    pub(super) busy: Cell<usize>,
    refusal: RefCell<Option<Refusal>>,
    /// Requests that were answered without a change of the protocol; they are answered in order.
    kept: Cell<u64>,
    waker: RefCell<Option<Waker>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    Head,
    Idle,
}

impl Talk {
    /// The protocol was not changed: further requests follow.
    pub(super) fn stay(&self) {
        self.kept.set(self.kept.get() + 1);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Why the connection was ended.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        self.refusal.take()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Strict<S> {
    /// Requests on `io` that must be as `requests` has them.
    pub(super) fn new(io: S, requests: Requests, talk: Rc<Talk>) -> Self {
        Strict {
            io,
            requests: requests.served(),
            raw: Vec::new(),
            judged: Vec::new(),
            at: 0,
            ended: false,
            talk,
            timer: Box::pin(sleep_until(Instant::now() + HEAD)),
            waiting: Some((Waiting::Head, Instant::now() + HEAD)),
            stalled: None,
        }
    }

    /// The connection, and what came behind the last request.
    pub(super) fn into_parts(self) -> (S, Bytes) {
        (self.io, Bytes::from(self.raw))
    }

    fn judge(&mut self) {
        self.judged.clear();
        self.at = 0;
        match self.requests.feed(&self.raw, &mut self.judged) {
            Ok(taken) => drop(self.raw.drain(..taken)),
            Err(refusal) => {
                self.talk.refusal.replace(Some(refusal));
                self.raw = Vec::new();
                self.judged = Vec::new();
                self.ended = true;
            }
        }
    }

    /// Reads what comes while a change of the protocol is awaited, to be judged or relayed; ready when the client has gone.
    fn poll_behind(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.raw.len() < BEHIND {
            let mut scratch = [std::mem::MaybeUninit::uninit(); READ];
            let mut read = ReadBuf::uninit(&mut scratch);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                self.ended = true;
                return Poll::Ready(Ok(()));
            }
            self.raw.extend_from_slice(read.filled());
        }
        Poll::Pending
    }

    /// Whether the client has had its time.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let waiting = match (self.requests.in_head(), self.talk.busy.get()) {
            (true, _) => Some(Waiting::Head),
            (false, 0) if !self.requests.in_body() => {
                Some(if self.requests.count() == 0 { Waiting::Head } else { Waiting::Idle })
            }
            // A body may take as long as it takes, and so may an answer.
            (false, _) => None,
        };
        let Some(waiting) = waiting else {
            self.waiting = None;
            return Poll::Pending;
        };
        if self.waiting.is_none_or(|(before, _)| before != waiting) {
            let deadline = Instant::now() + if waiting == Waiting::Head { HEAD } else { IDLE };
            self.waiting = Some((waiting, deadline));
            self.timer.as_mut().reset(deadline);
        }
        self.timer.as_mut().poll(cx)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Strict<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if let Some(rest) = this.judged.get(this.at..).filter(|rest| !rest.is_empty()) {
                let part = rest.len().min(buf.remaining());
                buf.put_slice(rest.get(..part).unwrap_or_default());
                this.at += part;
                return Poll::Ready(Ok(()));
            }
            if this.ended {
                return Poll::Ready(Ok(()));
            }
            if this.requests.upgrading() {
                if this.talk.kept.get() < this.requests.count() {
                    this.talk.waker.replace(Some(cx.waker().clone()));
                    return this.poll_behind(cx);
                }
                this.requests.stay();
            }
            if !this.raw.is_empty() {
                this.judge();
                continue;
            }
            let mut scratch = [std::mem::MaybeUninit::uninit(); READ];
            let mut read = ReadBuf::uninit(&mut scratch);
            match Pin::new(&mut this.io).poll_read(cx, &mut read) {
                Poll::Ready(Ok(())) if read.filled().is_empty() => this.ended = true,
                Poll::Ready(Ok(())) => {
                    this.raw.extend_from_slice(read.filled());
                    this.judge();
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    ready!(this.poll_patience(cx));
                    this.ended = true;
                }
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Strict<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        match Pin::new(&mut this.io).poll_write(cx, buf) {
            Poll::Pending => stalled(&mut this.stalled, cx),
            done => {
                this.stalled = None;
                done
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match Pin::new(&mut this.io).poll_flush(cx) {
            Poll::Pending => stalled(&mut this.stalled, cx),
            done => {
                this.stalled = None;
                done
            }
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

/// A client that takes nothing for long is gone.
fn stalled<T>(timer: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
    let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(Instant::now() + STALLED)));
    ready!(timer.as_mut().poll(cx));
    Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
}
