//! Refusals by class: the first ones of a class at once, the rest as sums, so that a container cannot fill the log by
//! asking, and no refusal goes uncounted.

use std::collections::HashMap;
use std::time::{Duration, Instant};
use terok_policy::audit::{Event, Kind};
use terok_policy::judge::Reason;

/// Lines of one class written at once before it is summed.
const CLASS_BURST: u32 = 20;
/// A class that was quiet this long has its burst again.
const CLASS_QUIET: Duration = Duration::from_secs(10);
/// Classes told apart at a time; refusals of further ones are summed by kind and reason.
const CLASSES: usize = 512;
/// Lines of all classes written at once.
const TOTAL_BURST: u32 = 300;
/// Lines a second that come back to the burst of all classes.
const TOTAL_RATE: u32 = 5;
/// Sums that name their target, for each flush; the rest are merged by kind and reason.
const NAMED_SUMS: usize = 8;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Class {
    kind: Kind,
    action: String,
    target: String,
    reason: Option<Reason>,
}

struct Seen {
    left: u32,
    last: Instant,
}

/// What was written lately, and what waits to be summed.
#[derive(Default)]
pub(super) struct Coalescer {
    seen: HashMap<Class, Seen>,
    sums: HashMap<Class, Event>,
    tokens: Option<(u32, Instant)>,
}

impl Coalescer {
    /// The event back, if it is to be written now; `None` when it was added to a sum.
    pub(super) fn admit(&mut self, event: Event, now: Instant) -> Option<Event> {
        let class = class(&event);
        if self.class_admits(&class, now) && self.total_admits(now) {
            return Some(event);
        }
        self.add(class, event);
        None
    }

    /// Takes back an event that could not be written.
    pub(super) fn put_back(&mut self, event: Event) {
        self.add(class(&event), event);
    }

    /// The sums to write now: some with their target, the rest merged.
    pub(super) fn take(&mut self, now: Instant) -> Vec<Event> {
        self.seen.retain(|_, seen| now.saturating_duration_since(seen.last) < CLASS_QUIET);
        let mut sums: Vec<Event> = self.sums.drain().map(|(_, event)| event).collect();
        sums.sort_by_key(|event| std::cmp::Reverse(event.count));
        let rest = sums.split_off(NAMED_SUMS.min(sums.len()));
        let mut merged: HashMap<Class, Event> = HashMap::new();
        for event in rest {
            let event = anonymous(event);
            merge(&mut merged, class(&event), event);
        }
        sums.extend(merged.into_values());
        sums.sort_by_key(|event| event.t);
        sums
    }

    /// Whether anything waits.
    pub(super) fn has_sums(&self) -> bool {
        !self.sums.is_empty()
    }

    fn class_admits(&mut self, class: &Class, now: Instant) -> bool {
        if let Some(seen) = self.seen.get_mut(class) {
            if now.saturating_duration_since(seen.last) >= CLASS_QUIET {
                seen.left = CLASS_BURST;
            }
            seen.last = now;
            let admitted = seen.left > 0;
            seen.left = seen.left.saturating_sub(1);
            return admitted;
        }
        if self.seen.len() >= CLASSES {
            return false;
        }
        self.seen.insert(class.clone(), Seen { left: CLASS_BURST - 1, last: now });
        true
    }

    fn total_admits(&mut self, now: Instant) -> bool {
        let (left, since) = self.tokens.get_or_insert((TOTAL_BURST, now));
        let back = now.saturating_duration_since(*since).as_secs();
        if back > 0 {
            *left = u32::try_from(back).unwrap_or(u32::MAX).saturating_mul(TOTAL_RATE).saturating_add(*left);
            *left = (*left).min(TOTAL_BURST);
            *since = now;
        }
        let admitted = *left > 0;
        *left = left.saturating_sub(1);
        admitted
    }

    fn add(&mut self, class: Class, event: Event) {
        if self.sums.len() >= CLASSES && !self.sums.contains_key(&class) {
            let event = anonymous(event);
            merge(&mut self.sums, self::class(&event), event);
        } else {
            merge(&mut self.sums, class, event);
        }
    }
}

fn class(event: &Event) -> Class {
    Class {
        kind: event.kind,
        action: event.action.clone(),
        target: event.target.clone(),
        reason: event.reason,
    }
}

fn merge(sums: &mut HashMap<Class, Event>, class: Class, event: Event) {
    let count = event.count.unwrap_or(1);
    sums.entry(class)
        .and_modify(|sum| {
            sum.count = Some(sum.count.unwrap_or(1).saturating_add(count));
            // A fact that differs between the events of a sum would be true of only one of them.
            sum.detail.retain(|key, value| event.detail.get(key) == Some(value));
        })
        .or_insert(event);
}

/// The event without what tells it from others of its kind and reason.
fn anonymous(mut event: Event) -> Event {
    event.target.clear();
    event.rule.clear();
    event.detail.clear();
    event
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Facts as _, event};

    fn refusal(target: &str) -> Event {
        event(Kind::Dns, "refuse", target).reason(Reason::Unlisted)
    }

    #[test]
    fn a_class_is_summed_after_its_burst_and_written_again_after_quiet() {
        let (mut coalescer, now) = (Coalescer::default(), Instant::now());
        let written = (0..100).filter(|_| coalescer.admit(refusal("a.example"), now).is_some()).count();
        assert_eq!(written, CLASS_BURST as usize);
        let sums = coalescer.take(now);
        assert_eq!(sums.len(), 1);
        assert_eq!((sums[0].target.as_str(), sums[0].count), ("a.example", Some(80)));
        assert!(coalescer.admit(refusal("a.example"), now + CLASS_QUIET).is_some());
    }

    #[test]
    fn a_sum_keeps_only_facts_that_all_its_events_share() {
        let (mut coalescer, now) = (Coalescer::default(), Instant::now());
        for port in 0..30 {
            coalescer.admit(refusal("a.example").with("proto", "udp").with("port", port), now);
        }
        let sums = coalescer.take(now);
        assert!(sums[0].detail.contains_key("proto") && !sums[0].detail.contains_key("port"));
    }

    #[test]
    fn many_targets_are_summed_by_reason() {
        let (mut coalescer, now) = (Coalescer::default(), Instant::now());
        let total = 100_000;
        let written =
            (0..total).filter(|n| coalescer.admit(refusal(&format!("{n}.example")), now).is_some()).count();
        assert!(written <= TOTAL_BURST as usize);
        let sums = coalescer.take(now);
        assert!(sums.len() <= NAMED_SUMS + 1);
        let summed: u64 = sums.iter().map(|e| e.count.unwrap_or(1)).sum();
        assert_eq!(written as u64 + summed, total);
    }
}
