//! The time by which elements of the kernel's sets end: seconds as on the wall clock at the start, counted by the clock that
//! the kernel's timeouts run by. A wall clock that is set, or a machine that slept, makes no difference between the two.

use crate::context::unix_seconds;
use std::time::Instant;
use terok_policy::live::Live;

/// Since when, by both clocks.
pub(super) struct Steady {
    unix: u64,
    since: Instant,
}

impl Steady {
    pub(super) fn new() -> Self {
        Steady { unix: unix_seconds(), since: Instant::now() }
    }

    /// Seconds now.
    pub(super) fn now(&self) -> u64 {
        self.unix + self.since.elapsed().as_secs()
    }

    /// What an operator set, with the end of a lowered shield by this clock.
    pub(super) fn of_live(&self, live: Live) -> Live {
        let (now, wall) = (self.now(), unix_seconds());
        let until = live.until.map(|until| if until > wall { now + (until - wall) } else { until.min(now) });
        Live { until, ..live }
    }
}
