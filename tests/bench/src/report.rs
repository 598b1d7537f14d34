//! The result: rows of value, baseline, ratio and budget; as a table and as JSON.

use crate::sample::Samples;
use serde::Serialize;
use std::fmt;

/// Everything that was measured.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

/// One measured quantity.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Row {
    what: String,
    unit: &'static str,
    /// Median.
    value: Option<f64>,
    p10: Option<f64>,
    p90: Option<f64>,
    samples: usize,
    /// What it is compared with, and that one's median.
    against: Option<String>,
    baseline: Option<f64>,
    /// Median of value by baseline, round by round.
    ratio: Option<f64>,
    budget: Option<Budget>,
    /// Whether the budget is kept.
    kept: Option<bool>,
    /// Why there is no value.
    absent: Option<String>,
}

/// What design and README promise.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Budget {
    /// The value is at most this.
    AtMost(f64),
    /// The ratio is at most this.
    RatioAtMost(f64),
    /// The ratio is at least this.
    RatioAtLeast(f64),
}

impl Report {
    /// A value by itself.
    pub(crate) fn value(&mut self, what: impl Into<String>, unit: &'static str, samples: &Samples) {
        self.rows.push(Row::of(what.into(), unit, samples));
    }

    /// A value with a budget of its own.
    pub(crate) fn budgeted(
        &mut self,
        what: impl Into<String>,
        unit: &'static str,
        samples: &Samples,
        budget: Budget,
    ) {
        let row = Row::of(what.into(), unit, samples);
        self.rows.push(row.judged(budget));
    }

    /// A value beside that of `against`.
    pub(crate) fn compared(
        &mut self,
        what: impl Into<String>,
        unit: &'static str,
        samples: &Samples,
        (against, baseline): (&str, &Samples),
        budget: Option<Budget>,
    ) {
        let mut row = Row::of(what.into(), unit, samples);
        row.against = Some(against.to_owned());
        row.baseline = finite(baseline.median());
        row.ratio = finite(samples.over(baseline).median());
        self.rows.push(match budget {
            Some(budget) => row.judged(budget),
            None => row,
        });
    }

    /// Something that could not be measured.
    pub(crate) fn absent(&mut self, what: impl Into<String>, why: &str) {
        self.rows.push(Row { what: what.into(), absent: Some(why.to_owned()), ..Row::default() });
    }

    /// One line.
    pub(crate) fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
    }
}

impl Row {
    fn of(what: String, unit: &'static str, samples: &Samples) -> Self {
        Row {
            what,
            unit,
            value: finite(samples.median()),
            p10: finite(samples.quantile(0.1)),
            p90: finite(samples.quantile(0.9)),
            samples: samples.count(),
            ..Row::default()
        }
    }

    fn judged(mut self, budget: Budget) -> Self {
        self.kept = match budget {
            Budget::AtMost(most) => self.value.map(|value| value <= most),
            Budget::RatioAtMost(most) => self.ratio.map(|ratio| ratio <= most),
            Budget::RatioAtLeast(least) => self.ratio.map(|ratio| ratio >= least),
        };
        self.budget = Some(budget);
        self
    }
}

fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Budget::AtMost(most) => write!(f, "≤ {most}"),
            Budget::RatioAtMost(most) => write!(f, "≤ {most} ×"),
            Budget::RatioAtLeast(least) => write!(f, "≥ {least} ×"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|row| row.what.chars().count()).max().unwrap_or(0);
        writeln!(
            f,
            "{:<width$}  {:>9} {:<6} {:>19}  {:<30} {:>7}  {:<9}",
            "what", "median", "", "p10 … p90", "beside", "ratio", "budget"
        )?;
        for row in &self.rows {
            if let Some(why) = &row.absent {
                writeln!(f, "{:<width$}  not measured: {why}", row.what)?;
                continue;
            }
            let spread = format!("{} … {}", number(row.p10), number(row.p90));
            let beside = row.against.as_ref().map(|name| format!("{name} {}", number(row.baseline)));
            let ratio = row.ratio.map(|ratio| format!("{ratio:.2}"));
            let budget = row.budget.map(|budget| budget.to_string());
            let verdict = match row.kept {
                Some(true) => "ok",
                Some(false) => "MISSED",
                None => "",
            };
            let line = format!(
                "{:<width$}  {:>9} {:<6} {:>19}  {:<30} {:>7}  {:<9} {verdict}",
                row.what,
                number(row.value),
                row.unit,
                spread,
                beside.unwrap_or_default(),
                ratio.unwrap_or_default(),
                budget.unwrap_or_default(),
            );
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Three significant digits or so.
fn number(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value.abs() >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        Some(value) if value.abs() >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(value: f64, baseline: f64, budget: Budget) -> Report {
        let mut report = Report::default();
        let (value, baseline) = (Samples::from(vec![value]), Samples::from(vec![baseline]));
        report.compared("sealed", "ms", &value, ("none", &baseline), Some(budget));
        report
    }

    #[test]
    fn a_missed_budget_says_so() {
        assert!(report(3.0, 2.0, Budget::RatioAtMost(1.0)).to_string().contains("MISSED"));
        assert!(report(3.0, 2.0, Budget::RatioAtLeast(1.0)).to_string().ends_with("ok\n"));
        assert!(report(3.0, 2.0, Budget::AtMost(2.9)).json().contains("\"kept\":false"));
    }

    #[test]
    fn what_could_not_be_measured_is_neither_kept_nor_missed() {
        let mut report = Report::default();
        report.absent("pasta", "Podman 4.3 has none");
        report.compared(
            "sealed",
            "ms",
            &Samples::default(),
            ("none", &Samples::default()),
            Some(Budget::AtMost(1.0)),
        );
        let text = report.to_string();
        assert!(text.contains("not measured: Podman 4.3 has none"));
        assert!(!text.contains("MISSED") && !text.contains(" ok"));
    }
}
