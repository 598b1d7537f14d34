//! How often something may happen: a burst, and so many a second after it.

use std::time::Instant;

/// A bucket of tokens that fills by itself.
#[derive(Debug)]
pub(crate) struct Rate {
    burst: f64,
    second: f64,
    left: f64,
    at: Instant,
}

impl Rate {
    /// Full.
    pub(crate) fn new(burst: u32, second: u32, now: Instant) -> Self {
        Rate { burst: burst.into(), second: second.into(), left: burst.into(), at: now }
    }

    /// Takes a token, if there is one.
    pub(crate) fn admits(&mut self, now: Instant) -> bool {
        let filled = now.saturating_duration_since(self.at).as_secs_f64() * self.second;
        (self.left, self.at) = ((self.left + filled).min(self.burst), now);
        let admitted = self.left >= 1.0;
        self.left -= f64::from(u8::from(admitted));
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_burst_passes_and_then_so_many_a_second() {
        let start = Instant::now();
        let mut rate = Rate::new(30, 10, start);
        let count = |rate: &mut Rate, ms: u64| {
            (0..100).filter(|_| rate.admits(start + Duration::from_millis(ms))).count()
        };
        assert_eq!(count(&mut rate, 0), 30);
        assert_eq!(count(&mut rate, 1), 0);
        assert_eq!(count(&mut rate, 1_001), 10);
        assert_eq!(count(&mut rate, 60_000), 30);
    }
}
