//! When a step, or its job, has had its time.

use crate::clock::Clock;
use crate::model::{Ending, Reason, Step};
use jiff::Timestamp;
use std::time::Duration;
use tokio::time::Instant;

/// The times at which a step is ended.
pub(super) struct StepLimits {
    pub(super) step: Instant,
    pub(super) job: Instant,
    /// What the job had in all, for the sentence.
    pub(super) job_secs: u64,
    pub(super) silence: Duration,
}

impl StepLimits {
    /// The next deadline that output does not put off, and what it means when it passes.
    pub(super) fn hard(
        &self,
        step: &Step,
        stopped: &Option<(Ending, Instant)>,
    ) -> (Instant, Ending) {
        if let Some((ending, until)) = stopped {
            return (*until, ending.clone());
        }
        if self.step <= self.job {
            let message = format!(
                "Step `{}` ran longer than its {} s",
                step.name, step.timeout_secs
            );
            (self.step, Ending::new(Reason::StepTimeout, message))
        } else {
            let message = format!(
                "The job ran longer than its {} s, at last in step `{}`",
                self.job_secs, step.name
            );
            (self.job, Ending::new(Reason::JobTimeout, message))
        }
    }

    /// When the step has been silent for too long, and what that means.
    pub(super) fn silent(&self, step: &Step, heard: Instant) -> (Instant, Ending) {
        let message = format!(
            "Step `{}` printed nothing for {} s",
            step.name,
            self.silence.as_secs()
        );
        let ending = Ending::new(Reason::NoOutputTimeout, message);
        (heard + self.silence, ending)
    }
}

/// A moment some seconds after a time of the wall clock.
pub(super) fn deadline(clock: &Clock, began: Timestamp, secs: u64) -> Instant {
    let elapsed = clock.now().duration_since(began);
    let elapsed = Duration::try_from(elapsed).unwrap_or_default();
    Instant::now() + Duration::from_secs(secs).saturating_sub(elapsed)
}
