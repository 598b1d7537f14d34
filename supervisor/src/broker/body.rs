//! Bodies on their way: streamed, counted, cut when the right to them is gone, and read along for the credential on the way back.

use super::forward::Busy;
use super::headers;
use super::ledger::Entry;
use super::redact::{Patterns, Redactor};
use super::watch::Watch;
use crate::flows::FlowGuard;
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use std::cell::Cell;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use terok_policy::provider::Token;
use tokio::time::{Sleep, sleep};

/// Most that is read of a refused request's body, and for how long: a client may look for the answer only when it has sent all.
const DROPPED: usize = 64 << 10;
const DROPPING: Duration = Duration::from_secs(1);

/// Reads the rest of a refused request's body, if it is little and comes soon; else what is left of it.
pub(super) async fn dropped(mut body: Incoming) -> Option<Incoming> {
    let mut octets = 0;
    let read = async {
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return true };
            octets += frame.data_ref().map_or(0, Bytes::len);
            if octets > DROPPED {
                return false;
            }
        }
        true
    };
    let whole = tokio::time::timeout(DROPPING, read).await.unwrap_or(false);
    (!whole).then_some(body)
}

/// Where a request's body is while nobody reads it.
pub(super) type Unread = Rc<Cell<Option<Incoming>>>;

/// A request's body.
pub(super) enum Outgoing {
    /// Held: nothing, or little that may have to be sent again.
    Held(Option<Bytes>),
    /// As it comes, but for trailers in which credentials stand.
    Streamed(Box<Lent>, Rc<Cell<u64>>, Rc<Token>),
}

/// A body that goes back to where it was when its reader has not come to its end. It ends with the right to the request, also when the answer
/// is through already.
pub(super) struct Lent {
    body: Option<Incoming>,
    unread: Unread,
    cut: Pin<Box<dyn Future<Output = ()>>>,
}

impl Lent {
    /// `body`, which was in `unread`, for as long as `flow` is not cut.
    pub(super) fn new(body: Incoming, unread: Unread, flow: Rc<FlowGuard>) -> Self {
        Lent { body: Some(body), unread, cut: Box::pin(async move { flow.cut().await }) }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.unread.set(self.body.take().filter(|body| !body.is_end_stream()));
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Outgoing::Held(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Outgoing::Streamed(lent, count, shape) => {
                if lent.cut.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Some(Err(io::ErrorKind::ConnectionAborted.into())));
                }
                let Some(incoming) = &mut lent.body else { return Poll::Ready(None) };
                let frame = ready!(Pin::new(incoming).poll_frame(cx));
                let frame = frame.map(|frame| frame.map(|frame| onward(frame, shape)));
                if let Some(data) =
                    frame.as_ref().and_then(|frame| frame.as_ref().ok()).and_then(Frame::data_ref)
                {
                    count.set(count.get() + data.len() as u64);
                }
                Poll::Ready(frame.map(|frame| frame.map_err(io::Error::other)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Outgoing::Held(bytes) => bytes.is_none(),
            Outgoing::Streamed(lent, ..) => lent.body.as_ref().is_none_or(Body::is_end_stream),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Outgoing::Held(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Outgoing::Streamed(lent, ..) => {
                lent.body.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
            }
        }
    }
}

fn onward(frame: Frame<Bytes>, shape: &Token) -> Frame<Bytes> {
    match frame.into_trailers() {
        Ok(trailers) => Frame::trailers(headers::trailers_onward(shape, trailers)),
        Err(frame) => frame,
    }
}

/// An answer's body.
pub(super) enum Relayed {
    /// Our own words.
    Said(Said),
    /// The upstream's.
    Upstream(Box<Stream>),
}

/// Words of our own, after what is left of the request's body.
#[derive(Default)]
pub(super) struct Said {
    text: Option<Bytes>,
    left: Option<Left>,
}

/// A body that nobody wants.
struct Left {
    body: Incoming,
    octets: usize,
    timer: Pin<Box<Sleep>>,
    _busy: Option<Busy>,
}

/// An upstream's body on its way to the container.
pub(super) struct Stream {
    from: Incoming,
    reader: Reader,
    patterns: Rc<Patterns>,
    /// May go on, in order.
    ready: VecDeque<Bytes>,
    /// Go on when all data has.
    trailers: Option<HeaderMap>,
    ended: bool,
    cut: Pin<Box<dyn Future<Output = ()>>>,
    entry: Entry,
    _busy: Busy,
}

/// How it is read along.
pub(super) enum Reader {
    /// It has no body that could be read.
    Nothing,
    /// Plain: the credential is covered.
    Redactor(Redactor),
    /// Compressed: the credential ends it.
    Watch(Box<Watch>),
}

impl Relayed {
    /// Words of our own.
    pub(super) fn said(text: impl Into<Bytes>) -> Self {
        Relayed::Said(Said { text: Some(text.into()), left: None })
    }

    /// The same, once little is left of `body`: over HTTP/2 an answer's end is the end of its request as well.
    pub(super) fn behind(self, body: Incoming, busy: Option<Busy>) -> Self {
        match self {
            Relayed::Said(Said { text, .. }) if !body.is_end_stream() => {
                let timer = Box::pin(sleep(DROPPING));
                Relayed::Said(Said { text, left: Some(Left { body, octets: 0, timer, _busy: busy }) })
            }
            other => other,
        }
    }

    /// No words at all.
    pub(super) fn nothing() -> Self {
        Relayed::Said(Said::default())
    }

    /// The body `from`, for as long as `flow` is not cut.
    pub(super) fn upstream(
        from: Incoming,
        reader: Reader,
        patterns: Rc<Patterns>,
        flow: Rc<FlowGuard>,
        mut entry: Entry,
        busy: Busy,
    ) -> Self {
        if from.is_end_stream() {
            // Nobody asks for it again.
            entry.finish();
        }
        let cut = Box::pin(async move { flow.cut().await });
        let (ready, trailers) = (VecDeque::new(), None);
        let stream =
            Stream { from, reader, patterns, ready, trailers, ended: false, cut, entry, _busy: busy };
        Relayed::Upstream(Box::new(stream))
    }
}

impl Said {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        while let Some(left) = &mut self.left {
            if left.timer.as_mut().poll(cx).is_pending() {
                let frame = ready!(Pin::new(&mut left.body).poll_frame(cx));
                if let Some(Ok(frame)) = frame {
                    left.octets += frame.data_ref().map_or(0, Bytes::len);
                    if left.octets <= DROPPED {
                        continue;
                    }
                }
            }
            self.left = None;
        }
        Poll::Ready(self.text.take().map(|text| Ok(Frame::data(text))))
    }
}

impl Stream {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        if self.cut.as_mut().poll(cx).is_ready() {
            self.entry.cut();
            return Poll::Ready(Some(Err(io::ErrorKind::ConnectionAborted.into())));
        }
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                self.entry.down(bytes.len());
                if self.from.is_end_stream() && self.within() == 0 && self.trailers.is_none() {
                    // Who knows the length does not ask for the end.
                    self.entry.finish();
                }
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if self.ended {
                return match self.trailers.take() {
                    Some(trailers) => {
                        Poll::Ready(Some(Ok(Frame::trailers(headers::trailers(trailers, &self.patterns)))))
                    }
                    None => {
                        self.entry.finish();
                        Poll::Ready(None)
                    }
                };
            }
            match ready!(Pin::new(&mut self.from).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.take(data)?,
                    Err(frame) => {
                        self.trailers = frame.into_trailers().ok();
                        self.end();
                    }
                },
                Some(Err(error)) => {
                    self.entry.failed(&error);
                    return Poll::Ready(Some(Err(io::Error::other(error))));
                }
                None => self.end(),
            }
        }
    }

    fn take(&mut self, data: Bytes) -> io::Result<()> {
        match &mut self.reader {
            Reader::Nothing => self.ready.push_back(data),
            Reader::Redactor(redactor) => {
                let free = redactor.feed(data);
                self.entry.covered(redactor.covered());
                if !free.is_empty() {
                    self.ready.push_back(free);
                }
            }
            Reader::Watch(watch) => match watch.feed(data) {
                Ok(free) => self.ready.extend(free),
                Err(stop) => {
                    self.entry.stopped(stop);
                    return Err(io::Error::other(stop));
                }
            },
        }
        Ok(())
    }

    fn end(&mut self) {
        self.ended = true;
        match &mut self.reader {
            Reader::Nothing => {}
            Reader::Redactor(redactor) => {
                self.ready.extend(Some(redactor.finish()).filter(|rest| !rest.is_empty()));
            }
            Reader::Watch(watch) => self.ready.extend(watch.finish()),
        }
    }

    /// Octets that were taken from upstream and not given on.
    fn within(&self) -> u64 {
        let held = match &self.reader {
            Reader::Nothing => 0,
            Reader::Redactor(redactor) => redactor.held(),
            Reader::Watch(watch) => watch.held(),
        };
        (held + self.ready.iter().map(Bytes::len).sum::<usize>()) as u64
    }
}

impl Body for Relayed {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Relayed::Said(said) => said.poll_frame(cx),
            Relayed::Upstream(stream) => stream.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Relayed::Said(said) => said.text.is_none(),
            Relayed::Upstream(stream) => {
                stream.from.is_end_stream() && stream.within() == 0 && stream.trailers.is_none()
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Relayed::Said(said) => {
                SizeHint::with_exact(said.text.as_ref().map_or(0, |text| text.len() as u64))
            }
            Relayed::Upstream(stream) => match stream.from.size_hint().exact() {
                Some(left) => SizeHint::with_exact(left + stream.within()),
                None => SizeHint::default(),
            },
        }
    }
}
