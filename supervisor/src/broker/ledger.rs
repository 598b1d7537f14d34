//! One audit line for each request (V5), written when it is over, whichever way it ends: provider, method, path without its query, status, octets, time.

use super::refusal::Refusal;
use super::watch::Stop;
use crate::audit::{Facts as _, event};
use crate::context::Context;
use http::{Method, StatusCode};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;
use terok_policy::audit::{Event, Kind};

/// Longest method and path that a line repeats.
const REPEATED: usize = 200;

/// A request under way. Dropped without a word about its end, the client has gone.
pub(super) struct Entry {
    context: Rc<Context>,
    provider: String,
    target: String,
    method: String,
    path: String,
    status: Option<StatusCode>,
    up: Rc<Cell<u64>>,
    down: u64,
    /// Secrets covered: in the answer's fields, in its body.
    covered: (u64, u64),
    started: Instant,
    open: bool,
    /// Requests under way.
    _place: Place,
}

/// A place among the requests under way, free again when dropped.
pub(super) struct Place(Rc<Cell<usize>>);

impl Place {
    /// One more, where no more than `limit` are there then.
    pub(super) fn take(open: &Rc<Cell<usize>>, limit: usize) -> Option<Self> {
        if open.get() >= limit {
            return None;
        }
        open.set(open.get() + 1);
        Some(Place(open.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

impl Entry {
    /// A request that has begun.
    pub(super) fn new(
        context: Rc<Context>,
        target: String,
        method: &Method,
        path: &str,
        place: Place,
    ) -> Self {
        Entry {
            context,
            provider: String::new(),
            target,
            method: repeated(method.as_str()),
            path: repeated(path.split(['?', '#']).next().unwrap_or_default()),
            status: None,
            up: Rc::default(),
            down: 0,
            covered: (0, 0),
            started: Instant::now(),
            open: true,
            _place: place,
        }
    }

    /// It is for this provider.
    pub(super) fn provider(&mut self, name: &str) {
        self.provider = name.to_owned();
    }

    /// It goes to this upstream.
    pub(super) fn target(&mut self, target: String) {
        self.target = target;
    }

    /// It was answered with this.
    pub(super) fn status(&mut self, status: StatusCode) {
        self.status = Some(status);
    }

    /// Counts what goes up.
    pub(super) fn up(&self) -> Rc<Cell<u64>> {
        self.up.clone()
    }

    /// So much more came down.
    pub(super) fn down(&mut self, octets: usize) {
        self.down += octets as u64;
    }

    /// So often the credential was covered in the answer's fields.
    pub(super) fn covered_above(&mut self, count: u64) {
        self.covered.0 = count;
    }

    /// So often in its body until now.
    pub(super) fn covered(&mut self, count: u64) {
        self.covered.1 = count;
    }

    /// Whether a line about it could be written now: where the last one failed, one is, before anything is forwarded.
    pub(super) fn is_recordable(&self) -> bool {
        !self.context.audit.is_failing() || self.context.audit.record(self.line("request")).is_ok()
    }

    /// It is over.
    pub(super) fn finish(&mut self) {
        self.close("forward", |line| line);
    }

    /// The right to it is gone.
    pub(super) fn cut(&mut self) {
        self.close("cut", |line| line);
    }

    /// The answer broke off.
    pub(super) fn failed(&mut self, error: &dyn std::error::Error) {
        let error = chain(error);
        self.close("forward", |line| line.with("error", error));
    }

    /// The answer was ended because of what is in it.
    pub(super) fn stopped(&mut self, stop: Stop) {
        self.close("cut", |line| line.with("error", stop.to_string()));
    }

    /// It was not forwarded.
    pub(super) fn refuse(&mut self, refusal: &Refusal) {
        self.open = false;
        self.status = Some(refusal.status);
        let line = self.line("refuse").reason(refusal.reason).with("what", refusal.message.as_str());
        self.context.audit.refusal(line);
    }

    fn close(&mut self, action: &str, also: impl FnOnce(Event) -> Event) {
        if !std::mem::take(&mut self.open) {
            return;
        }
        let milliseconds = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let line = self.line(action).with("bytes_up", self.up.get()).with("bytes_down", self.down);
        let mut line = line.with("ms", milliseconds);
        if self.covered != (0, 0) {
            line = line.with("redacted", self.covered.0 + self.covered.1);
        }
        // The octets have flowed: a full disk refuses the next request, not this one's past.
        let _ = self.context.audit.record(also(line));
    }

    fn line(&self, action: &str) -> Event {
        let mut line = event(Kind::Http, action, self.target.as_str());
        if !self.provider.is_empty() {
            line = line.with("provider", self.provider.as_str());
        }
        line = line.with("method", self.method.as_str()).with("path", self.path.as_str());
        match self.status {
            Some(status) => line.with("status", status.as_u16()),
            None => line,
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.close("forward", |line| line.with("error", "the client has gone"));
    }
}

/// An error with what is behind it, in one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    repeated(&text)
}

/// The beginning of `text`, without what a terminal takes for an order.
pub(super) fn repeated(text: &str) -> String {
    text.chars().take(REPEATED).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
