//! Measured values and the order in which they are taken.

use std::time::{Duration, Instant};

/// Values of one quantity, in the order they were measured.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Linear interpolation between the two nearest values.
    pub(crate) fn quantile(&self, q: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
        let at = q * last as f64;
        let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
        low + (high - low) * at.fract()
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Round by round, this less `other`.
    pub(crate) fn less(&self, other: &Samples) -> Samples {
        Samples(self.0.iter().zip(&other.0).map(|(a, b)| a - b).collect())
    }

    /// Round by round, this divided by `other`.
    pub(crate) fn over(&self, other: &Samples) -> Samples {
        Samples(self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect())
    }
}

impl From<Vec<f64>> for Samples {
    fn from(values: Vec<f64>) -> Self {
        Samples(values)
    }
}

/// How long a part of the run may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Counted rounds; one more goes before them to warm up.
    pub(crate) rounds: usize,
    /// After this no new round begins, however few there were.
    pub(crate) limit: Duration,
}

/// What `measure` gave of one subject: `N` quantities, or why there are none.
pub(crate) type Outcome<const N: usize> = anyhow::Result<[Samples; N]>;

/// Measures every subject once a round, each round beginning with another one. A subject that fails is left out from
/// then on, and its error is its outcome.
pub(crate) fn interleaved<S, const N: usize>(
    subjects: &[S],
    bounds: Bounds,
    mut measure: impl FnMut(&S) -> anyhow::Result<[f64; N]>,
) -> Vec<Outcome<N>> {
    let mut outcomes: Vec<Outcome<N>> =
        subjects.iter().map(|_| Ok(std::array::from_fn(|_| Samples::default()))).collect();
    let started = Instant::now();
    for round in 0..=bounds.rounds {
        if round > 3 && started.elapsed() > bounds.limit {
            break;
        }
        for turn in 0..subjects.len() {
            let n = (turn + round) % subjects.len();
            let Ok(samples) = &mut outcomes[n] else { continue };
            match measure(&subjects[n]) {
                Err(error) => outcomes[n] = Err(error),
                Ok(values) if round > 0 => {
                    for (samples, value) in samples.iter_mut().zip(values) {
                        samples.0.push(value);
                    }
                }
                Ok(_) => {}
            }
        }
    }
    outcomes
}

/// Milliseconds that `work` takes.
pub(crate) fn timed<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<f64> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed().as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_the_nearest_values() {
        let samples = Samples::from(vec![4.0, 1.0, 3.0, 2.0]);
        assert_eq!(samples.median(), 2.5);
        assert_eq!(samples.quantile(0.0), 1.0);
        assert_eq!(samples.quantile(1.0), 4.0);
        assert!(Samples::default().median().is_nan());
    }

    #[test]
    fn a_subject_that_fails_is_left_out_and_the_first_round_is_not_counted() {
        let mut calls = Vec::new();
        let bounds = Bounds { rounds: 2, limit: Duration::from_secs(60) };
        let outcomes = interleaved(&["a", "b"], bounds, |name| {
            calls.push(*name);
            if *name == "b" { anyhow::bail!("no b here") } else { Ok([1.0]) }
        });
        assert_eq!(outcomes[0].as_ref().map(|[samples]| samples.count()).unwrap(), 2);
        assert_eq!(outcomes[1].as_ref().map(|_| ()).unwrap_err().to_string(), "no b here");
        assert_eq!(calls, ["a", "b", "a", "a"]);
    }
}
