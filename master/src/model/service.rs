//! Whether a platform is in service, by how its boots end. Pure: what was known, what happened and the time in; what is
//! known then out.
//!
//! ```text
//!              failed, N in a row                      a canary came up, or another machine of these files
//!  in service ───────────────────► out of service ─────────────────────────────────────────────────────────► in service
//!                                   │        ▲
//!                                   └ canary ┘ after 30 s, 1 min, 2 min … half an hour; at once when the files change
//! ```

use jiff::{SignedDuration, Timestamp};
use std::fmt;

/// The pause before the first canary boot; doubled each time.
const FIRST_PAUSE: SignedDuration = SignedDuration::from_secs(30);
const LONGEST_PAUSE: SignedDuration = SignedDuration::from_mins(30);

/// A platform whose last boot failed. One that boots has nothing to remember.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Boots that failed in a row.
    pub failures: u32,
    /// How the last one ended, in a sentence.
    pub why: String,
    /// What its files were then.
    pub files: String,
    /// While it takes no job.
    pub out: Option<Out>,
}

/// It is out of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Out {
    pub since: Timestamp,
    /// Canary boots that failed.
    pub canaries: u32,
    /// When the next one is tried.
    pub next_canary: Timestamp,
}

/// Whose machine it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boot {
    Job,
    Canary,
}

/// How a boot ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome<'a> {
    Up,
    /// A sentence how.
    Failed(&'a str),
}

/// What is known of a platform after a boot of these `files`. It goes out of service after `limit` failures in a row;
/// 0: never.
pub fn after_boot(
    before: Option<Service>,
    boot: Boot,
    files: &str,
    outcome: Outcome<'_>,
    limit: u32,
    now: Timestamp,
) -> Option<Service> {
    let (why, before) = match (outcome, before) {
        // A job's machine of other files says nothing of these; a canary's is of those that are there now.
        (Outcome::Up, Some(before))
            if boot == Boot::Job && before.out.is_some() && before.files != files =>
        {
            return Some(before);
        }
        (Outcome::Up, _) => return None,
        (Outcome::Failed(why), None) => {
            return Some(in_service(1, why, files, limit, now));
        }
        (Outcome::Failed(why), Some(before)) => (why, before),
    };
    let Some(out) = before.out else {
        let failures = match before.files == files {
            true => before.failures.saturating_add(1),
            false => 1,
        };
        return Some(in_service(failures, why, files, limit, now));
    };
    let failures = before.failures.saturating_add(1);
    Some(match boot {
        // It was under way when its platform went out of service.
        Boot::Job => Service { failures, ..before },
        Boot::Canary => {
            let canaries = out.canaries.saturating_add(1);
            Service {
                failures,
                why: why.to_owned(),
                files: files.to_owned(),
                out: Some(Out {
                    since: out.since,
                    canaries,
                    next_canary: now + pause(canaries),
                }),
            }
        }
    })
}

fn in_service(failures: u32, why: &str, files: &str, limit: u32, now: Timestamp) -> Service {
    let is_out = limit > 0 && failures >= limit;
    Service {
        failures,
        why: why.to_owned(),
        files: files.to_owned(),
        out: is_out.then(|| Out {
            since: now,
            canaries: 0,
            next_canary: now + pause(0),
        }),
    }
}

fn pause(canaries: u32) -> SignedDuration {
    let doublings = canaries.min(10);
    (FIRST_PAUSE * 2_i32.pow(doublings)).min(LONGEST_PAUSE)
}

impl Service {
    /// Whether a canary boot is to be tried now; `files` are what the platform's are now.
    pub fn is_canary_due(&self, files: &str, now: Timestamp) -> bool {
        let is_time = |out: Out| now >= out.next_canary || self.files != files;
        self.out.is_some_and(is_time)
    }

    /// Whether a job that was queued then has waited for its platform as long as it may, with 0 seconds at once.
    pub fn patience_is_over(&self, queued: Timestamp, secs: u64, now: Timestamp) -> bool {
        let Some(out) = self.out else { return false };
        let waited = now.duration_since(queued.max(out.since));
        waited >= SignedDuration::from_secs(i64::try_from(secs).unwrap_or(i64::MAX))
    }
}

impl fmt::Display for Service {
    /// One sentence without its end: `out of service since …: 3 boots in a row failed, the last one: …`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = self.why.trim_end_matches('.');
        let boots = match self.failures {
            1 => "1 boot failed".to_owned(),
            failures => format!("{failures} boots in a row failed"),
        };
        let Some(out) = self.out else {
            return write!(f, "{boots}, the last one: {why}");
        };
        write!(
            f,
            "out of service since {}: {boots}, the last one: {why}; a canary boot is tried at {} or when its files change",
            out.since.strftime("%Y-%m-%d %H:%M:%S UTC"),
            out.next_canary.strftime("%H:%M:%S UTC")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn failed(before: Option<Service>, boot: Boot, files: &str, second: i64) -> Option<Service> {
        let outcome = Outcome::Failed("it hung");
        after_boot(before, boot, files, outcome, 3, at(second))
    }

    /// Out of service since the third second, with the files `a`.
    fn out() -> Service {
        let mut service = None;
        for second in 1..=3 {
            service = failed(service, Boot::Job, "a", second);
        }
        service.expect("remembered")
    }

    #[test]
    fn so_many_failures_in_a_row_put_a_platform_out_of_service() {
        let once = failed(None, Boot::Job, "a", 1);
        let twice = failed(once, Boot::Job, "a", 2);
        assert_eq!(twice.as_ref().and_then(|service| service.out), None);
        let up = after_boot(twice.clone(), Boot::Job, "a", Outcome::Up, 3, at(3));
        assert_eq!(up, None, "not in a row any more");
        assert_eq!(out().out.map(|out| out.since), Some(at(3)));
        let changed = failed(twice, Boot::Job, "b", 3).expect("remembered");
        assert_eq!((changed.failures, changed.out), (1, None), "other files");
    }

    #[test]
    fn nothing_puts_a_platform_out_where_that_is_not_wanted() {
        let mut service = None;
        for second in 0..50 {
            let outcome = Outcome::Failed("it hung");
            service = after_boot(service, Boot::Job, "a", outcome, 0, at(second));
        }
        assert_eq!(
            service.map(|service| (service.failures, service.out)),
            Some((50, None))
        );
    }

    #[test]
    fn canaries_come_at_growing_intervals_and_at_once_when_the_files_change() {
        let service = out();
        assert!(!service.is_canary_due("a", at(32)));
        assert!(service.is_canary_due("a", at(33)));
        assert!(service.is_canary_due("b", at(4)));
        let again = failed(Some(service), Boot::Canary, "b", 40).expect("remembered");
        assert_eq!(again.out.map(|out| out.since), Some(at(3)));
        assert!(!again.is_canary_due("b", at(99)));
        assert!(again.is_canary_due("b", at(100)), "a minute later");
        let mut service = Some(again);
        for _ in 0..40 {
            service = failed(service, Boot::Canary, "b", 200);
        }
        let much_later = service.expect("remembered");
        assert!(much_later.is_canary_due("b", at(200 + 1800)));
    }

    #[test]
    fn a_machine_that_comes_up_brings_its_platform_back_if_it_is_of_the_same_files() {
        let up = |boot, files| after_boot(Some(out()), boot, files, Outcome::Up, 3, at(50));
        assert_eq!(up(Boot::Canary, "a"), None);
        assert_eq!(up(Boot::Canary, "mended"), None);
        assert_eq!(up(Boot::Job, "a"), None);
        assert_eq!(up(Boot::Job, "old"), Some(out()));
        let late = failed(Some(out()), Boot::Job, "old", 50).expect("remembered");
        assert_eq!(late.out, out().out, "it changes no canary's time");
    }

    #[test]
    fn jobs_wait_from_when_both_are_there() {
        let service = out();
        assert!(!service.patience_is_over(at(0), 10, at(12)));
        assert!(service.patience_is_over(at(0), 10, at(13)));
        assert!(!service.patience_is_over(at(8), 10, at(13)));
        assert!(service.patience_is_over(at(8), 0, at(8)));
    }

    #[test]
    fn the_sentence_says_since_when_and_why() {
        let said = out().to_string();
        assert!(
            said.starts_with("out of service since 1970-01-01 00:00:03 UTC: 3 boots in a row failed, the last one: it hung; "),
            "{said}"
        );
    }

    proptest! {
        #[test]
        fn a_platform_is_out_only_after_enough_failures_and_back_after_a_canary(
            limit in 1..5_u32,
            boots in prop::collection::vec((any::<bool>(), any::<bool>()), 0..40),
        ) {
            let mut service = None;
            let mut in_a_row = 0;
            for (second, (is_canary, is_up)) in (0..).zip(boots) {
                let was_out = service.as_ref().is_some_and(|service: &Service| service.out.is_some());
                // A canary is booted only of a platform that is out.
                let boot = if is_canary && was_out { Boot::Canary } else { Boot::Job };
                let outcome = if is_up { Outcome::Up } else { Outcome::Failed("no") };
                in_a_row = if is_up { 0 } else { in_a_row + 1 };
                service = after_boot(service, boot, "a", outcome, limit, at(second));
                let out = service.as_ref().and_then(|service| service.out);
                prop_assert_eq!(out.is_some(), in_a_row >= limit);
                prop_assert_eq!(service.as_ref().map_or(0, |service| service.failures), in_a_row);
                prop_assert!(out.is_none_or(|out| out.next_canary > out.since));
            }
        }
    }
}
