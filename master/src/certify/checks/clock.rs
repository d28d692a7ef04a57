//! The guest's clock: right when a job begins, and no faster or slower than the host's.
//!
//! A shell tells whole seconds only. So it says when one begins, and the host notes when that arrives: of a few of these
//! the one that took least time on its way is the truest.

use super::Checks;
use crate::certify::certificate::Verdict;
use crate::certify::guest::{Question, Said, Trouble};
use crate::certify::seconds;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::time::{Instant, sleep_until};

/// What the agent leaves alone, and a little for what comes late.
const TOLERANCE_SECS: f64 = 2.0;
/// A clock that is watched for so short a time may seem to be off by this, in seconds,
const SEEMING_DRIFT_SECS: f64 = 0.5;
/// and by this part of the time: a second in a minute, with the above.
const DRIFT_PART: f64 = 0.01;
/// Prints the time at the beginning of each of the next seconds.
const TICKS: &str = r#"n=3; s=$(date +%s); while [ "$n" -gt 0 ]; do t=$(date +%s); if [ "$t" != "$s" ]; then echo "$t"; s=$t; n=$((n - 1)); fi; done"#;

/// The guest's clock against the host's, in seconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ticks {
    at: Instant,
    /// The guest's time less the host's steady one, counted from `at`.
    guest: f64,
}

pub(super) fn unix_ms() -> i128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis().cast_signed())
}

impl Checks<'_> {
    pub(super) async fn clock(&mut self) -> Result<Verdict, Trouble> {
        let hello = i128::from(self.guest.agent.hello().unix_ms);
        let at_boot = (hello - self.connected_unix_ms) as f64 / 1000.0;
        if !self.guest.platform().os.is_unix() {
            return Ok(match at_boot.abs() <= TOLERANCE_SECS {
                true => Verdict::Passed(format!("{} when it was connected", off(at_boot))),
                false => Verdict::Failed(format!("{} when it was connected", off(at_boot))),
            });
        }
        let ticks = self.ticks(Instant::now()).await?;
        self.ticks = Some(ticks);
        let elapsed = i128::try_from(ticks.at.elapsed().as_millis()).unwrap_or_default();
        let host = (unix_ms() - elapsed) as f64 / 1000.0;
        let now = ticks.guest - host;
        let said = format!("{}; at its boot it was {}", off(now), off(at_boot));
        Ok(match now.abs() <= TOLERANCE_SECS {
            true => Verdict::Passed(said),
            false => Verdict::Failed(format!(
                "{said}\nhint: the agent sets it, if its user may become root"
            )),
        })
    }

    pub(super) async fn clock_drift(&mut self) -> Result<Verdict, Trouble> {
        if let Some(verdict) = self.unless_unix() {
            return Ok(verdict);
        }
        let Some(first) = self.ticks else {
            let why = "the clock could not be read at the beginning";
            return Ok(Verdict::NotChecked(why.to_owned()));
        };
        sleep_until(first.at + self.drift).await;
        let last = self.ticks(first.at).await?;
        let watched = first.at.elapsed();
        let drift = last.guest - first.guest;
        let allowed = SEEMING_DRIFT_SECS + DRIFT_PART * watched.as_secs_f64();
        let said = format!("{drift:+.2} s in {}", seconds(watched));
        Ok(match drift.abs() <= allowed {
            true => Verdict::Passed(said),
            false => Verdict::Failed(format!("{said}, {allowed:.1} s are allowed")),
        })
    }

    async fn ticks(&mut self, at: Instant) -> Result<Ticks, Trouble> {
        let said = self.guest.ask(Question::sh(TICKS)).await?;
        let guest = offset(&said, at)?;
        Ok(Ticks { at, guest })
    }
}

fn off(secs: f64) -> String {
    match secs.abs() < 0.05 {
        true => "right".to_owned(),
        false if secs < 0.0 => format!("{:.1} s behind", -secs),
        false => format!("{secs:.1} s ahead"),
    }
}

/// The guest's time at `at`, in seconds since 1970, by the line that came soonest.
fn offset(said: &Said, at: Instant) -> Result<f64, Trouble> {
    let text = said.text();
    let mut end = 0;
    let mut best: Option<f64> = None;
    for line in text.split_inclusive('\n') {
        end += line.len();
        let arrival = said.arrivals.iter().find(|(until, _)| *until >= end);
        let (Ok(secs), Some((_, arrived))) = (line.trim().parse::<u32>(), arrival) else {
            continue;
        };
        let passed = arrived.saturating_duration_since(at);
        let offset = f64::from(secs) - passed.as_secs_f64();
        best = Some(best.map_or(offset, |best| best.max(offset)));
    }
    best.ok_or_else(|| {
        let said = crate::certify::guest::shown(&said.bytes);
        Trouble::Check(format!("`date +%s` does not tell the time: {said}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use vivarium_protocol::Exit;

    #[test]
    fn the_line_that_came_soonest_counts() {
        let at = Instant::now();
        let after = |millis| at + Duration::from_millis(millis);
        let said = Said {
            bytes: b"1000\n1001\n1002\n".to_vec(),
            exit: Exit::Code { code: 0 },
            // The second and third came together, late.
            arrivals: vec![(5, after(300)), (15, after(2900))],
        };
        let offset = offset(&said, at).unwrap();
        assert!((offset - 999.7).abs() < 0.001, "{offset}");
    }
}
