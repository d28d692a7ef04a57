//! Values of one thing measured again and again.

use std::time::Duration;

#[derive(Debug, Clone, Default)]
pub(crate) struct Samples {
    values: Vec<f64>,
}

impl Samples {
    pub(crate) fn add(&mut self, value: f64) {
        let place = self.values.partition_point(|known| *known <= value);
        self.values.insert(place, value);
    }

    /// Adds a time in milliseconds.
    pub(crate) fn add_time(&mut self, time: Duration) {
        self.add(time.as_secs_f64() * 1e3);
    }

    pub(crate) fn join(&mut self, other: Samples) {
        self.values.extend(other.values);
        self.values.sort_by(f64::total_cmp);
    }

    /// The value that this part of the others does not exceed; NaN where nothing was measured.
    pub(crate) fn percentile(&self, part: f64) -> f64 {
        let last = self.values.len().saturating_sub(1);
        let place = (last as f64 * part).round() as usize;
        self.values.get(place).copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn median(&self) -> f64 {
        self.percentile(0.5)
    }

    pub(crate) fn p99(&self) -> f64 {
        self.percentile(0.99)
    }

    /// Smallest and largest.
    pub(crate) fn range(&self) -> (f64, f64) {
        (self.percentile(0.0), self.percentile(1.0))
    }
}
