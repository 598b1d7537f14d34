//! The parent's side of the vault: starts a helper for each errand, a few at a time, and sees to its end. It hands descriptors on and never reads what
//! comes of it, so that no secret is ever in its memory.

use super::{Errand, Order};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use terok_kernel::memfd;
use terok_kernel::program::{Child, Exit, Program};

/// Helpers at a time. Each is a process of a few megabytes for some milliseconds.
const AT_ONCE: usize = 4;
/// Errands that wait; a worker of ours asks once for each grant and signs no faster than its limit.
const WAITING: usize = 256;
/// How long a helper may take: a renewal waits for a service on the network, and for another container's renewal before.
const RENEWAL: Duration = Duration::from_secs(45);
/// The same of one that only reads.
const READING: Duration = Duration::from_secs(10);

/// What every helper is started with.
pub(crate) struct Means<'a> {
    /// This program.
    pub(crate) program: &'a Program,
    /// Real uid of the person whose container this is.
    pub(crate) owner: u32,
    /// Its descriptors from 3 on, but for the errand, which comes last ([`super::HELPER_FDS`]).
    pub(crate) fds: [BorrowedFd<'a>; 5],
}

/// The errands of the worker that serves now. Helpers of one before are seen to their end, unanswered: a renewal that was begun is finished.
#[derive(Default)]
pub(crate) struct Errands {
    waiting: VecDeque<Order>,
    running: Vec<Running>,
}

struct Running {
    child: Child,
    deadline: Instant,
    /// The question's number, while the worker that asked it serves.
    number: Option<u64>,
}

/// An errand that has ended, by its number, or why nothing comes of it.
pub(crate) type Ended = (u64, Result<(), String>);

impl Errands {
    /// Takes an order; done at once only where it cannot wait.
    pub(crate) fn take(&mut self, order: Order) -> Option<Ended> {
        if self.waiting.len() >= WAITING {
            return Some((order.number, Err("too many requests at once; try again".to_owned())));
        }
        self.waiting.push_back(order);
        None
    }

    /// Sees to those that have ended or take too long.
    pub(crate) fn reap(&mut self) -> Vec<Ended> {
        let mut ended = Vec::new();
        self.running.retain(|running| match running.outcome() {
            None => true,
            Some(outcome) => {
                ended.extend(running.number.map(|number| (number, outcome)));
                false
            }
        });
        ended
    }

    /// Starts what waits, as far as there is room; what could not be started has ended.
    pub(crate) fn start(&mut self, means: &Means<'_>) -> Vec<Ended> {
        let mut failed = Vec::new();
        while self.running.len() < AT_ONCE
            && let Some(order) = self.waiting.pop_front()
        {
            match start(means, &order) {
                Ok(running) => self.running.push(running),
                Err(error) => failed.push((order.number, Err(error))),
            }
        }
        failed
    }

    /// The worker that asked is no more.
    pub(crate) fn forget(&mut self) {
        self.waiting.clear();
        for running in &mut self.running {
            running.number = None;
        }
    }

    /// Readable when one has ended.
    pub(crate) fn watched(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.running.iter().map(|running| running.child.pidfd().as_fd())
    }

    /// When one will have taken too long.
    pub(crate) fn due(&self) -> Option<Duration> {
        self.running.iter().map(|running| running.deadline.saturating_duration_since(Instant::now())).min()
    }
}

impl Running {
    /// How it ended; `None` while it may go on.
    fn outcome(&self) -> Option<Result<(), String>> {
        match self.child.reap() {
            Ok(Some(Exit::Code(0))) => Some(Ok(())),
            Ok(Some(_)) => Some(Err("its helper failed; see the container's log file".to_owned())),
            Err(error) => Some(Err(error.to_string())),
            Ok(None) if Instant::now() >= self.deadline => {
                let _ = self.child.kill();
                Some(Err("its helper took too long and was ended; try again".to_owned()))
            }
            Ok(None) => None,
        }
    }
}

fn start(means: &Means<'_>, order: &Order) -> Result<Running, String> {
    let limit = match order.errand {
        Errand::Credential { .. } => RENEWAL,
        Errand::Keys | Errand::Sign { .. } => READING,
    };
    let text = serde_json::to_vec(order).map_err(|error| error.to_string())?;
    let errand: OwnedFd = memfd::sealed("errand", &text).map_err(|error| error.to_string())?;
    let (null, log) = (std::io::stdin(), std::io::stderr());
    let mut fds: Vec<BorrowedFd<'_>> = vec![null.as_fd(), null.as_fd(), log.as_fd()];
    fds.extend(means.fds);
    fds.push(errand.as_fd());
    let child = means
        .program
        .spawn(&["vault", &means.owner.to_string()], &fds)
        .map_err(|error| format!("no helper could be started: {error}"))?;
    Ok(Running { child, deadline: Instant::now() + limit, number: Some(order.number) })
}
