//! Every sentence that GitHub shows, as pure functions, so that they can be read as a list.
//!
//! A description has 140 characters at most and none that takes four bytes in UTF-8: GitHub refuses both. Every sentence
//! leaves here through [`description`], which sees to that.

use crate::model::{
    Build, CommitStatus, Conclusion, Ending, Job, JobState, Phase, Reason, StatusState, TestCounts,
};
use jiff::Timestamp;
use std::time::Duration;

/// GitHub's limit, in characters.
pub const LONGEST_DESCRIPTION: usize = 140;
/// A SHA is recognised by so many digits.
const SHORT_SHA: usize = 7;

pub const PREPARING: &str = "Fetching and merging the commit";
pub const WAITING: &str = "Waiting for a machine";
pub const CLOSED: &str = "The pull request was closed";
pub const MERGED: &str = "The pull request was merged";
pub const UNQUEUED: &str = "The merge queue does not wait for it any more";
pub const ABANDONED: &str =
    "No result: no job is at work on it any more. Push again, or rerun the build";

/// What a running job is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    pub phase: Phase,
    pub step: Option<StepProgress<'a>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepProgress<'a> {
    /// From 1.
    pub number: usize,
    pub of: usize,
    pub name: &'a str,
}

/// The status of one job.
pub fn job_status(
    job: &Job,
    progress: Option<Progress<'_>>,
    tests: Option<&TestCounts>,
    target_url: String,
) -> CommitStatus {
    let (state, text) = match (job.state, &job.ending) {
        (JobState::Finished, Some(ending)) => {
            let (state, text) = ended(job, ending, tests);
            match job.plan.known_issue.as_deref().filter(|_| !job.counts()) {
                Some(issue) => (state, known_issue(issue, &text)),
                None => (state, text),
            }
        }
        (JobState::Finished, None) => (StatusState::Error, "It ended without a result".to_owned()),
        (JobState::Queued, _) => (StatusState::Pending, waiting(job, None)),
        (JobState::Running, _) => {
            let text = progress.map_or_else(
                || booting(&job.platform),
                |progress| running(&job.platform, progress),
            );
            (StatusState::Pending, text)
        }
    };
    CommitStatus {
        context: job.context(),
        state,
        description: description(&text),
        target_url,
    }
}

/// A job that did not pass, where that was to be expected. What became of it goes before why.
fn known_issue(issue: &str, text: &str) -> String {
    format!("Known issue, blocks nobody. {text} ({issue})")
}

/// A job in the queue; `ahead` of it go so many others, if that is known.
pub fn waiting(job: &Job, ahead: Option<usize>) -> String {
    let text = if job.attempts > 0 {
        format!(
            "Waiting for another machine: try {} of it failed through our fault",
            job.attempts
        )
    } else {
        match ahead {
            None | Some(0) => WAITING.to_owned(),
            Some(1) => format!("{WAITING}, 1 job ahead"),
            Some(ahead) => format!("{WAITING}, {ahead} jobs ahead"),
        }
    };
    description(&text)
}

fn booting(platform: &str) -> String {
    format!("Booting {platform}")
}

/// A job on a machine.
pub fn running(platform: &str, progress: Progress<'_>) -> String {
    let text = match progress.phase {
        Phase::Placed | Phase::Booting => booting(platform),
        Phase::Connecting => format!("Connecting to {platform}"),
        Phase::SendingSource => format!("Sending the source to {platform}"),
        Phase::Running => match progress.step {
            Some(StepProgress { number, of, name }) => {
                format!("Running: step {number} of {of}, {name}")
            }
            None => format!("Running on {platform}"),
        },
        Phase::Collecting | Phase::CleaningUp | Phase::Ended => "Collecting results".to_owned(),
    };
    description(&text)
}

/// What GitHub calls a conclusion: their failures are `failure`, ours and cancellations are `error`.
pub fn state_of(conclusion: Conclusion) -> StatusState {
    match conclusion {
        Conclusion::Success => StatusState::Success,
        Conclusion::Failure | Conclusion::TimedOut => StatusState::Failure,
        Conclusion::Cancelled | Conclusion::InfrastructureError => StatusState::Error,
    }
}

fn ended(job: &Job, ending: &Ending, tests: Option<&TestCounts>) -> (StatusState, String) {
    let conclusion = ending.conclusion();
    let took = took(job);
    let text = match conclusion {
        Conclusion::Success => passed(took, tests),
        Conclusion::Failure => match tests.filter(|tests| tests.failed > 0) {
            Some(tests) if ending.reason == Reason::StepFailed => failing_tests(tests, took),
            Some(_) | None => after(&ending.message, took),
        },
        // "Ran longer than its 60 s after 70 s" would puzzle.
        Conclusion::TimedOut => fitted(&ending.message, &in_all(took)),
        Conclusion::Cancelled => ending.message.clone(),
        Conclusion::InfrastructureError => {
            let tries = match job.attempts {
                ..=1 => String::new(),
                tries => format!(" ({tries} tries)"),
            };
            fitted(&format!("No result: {}", ending.message), &tries)
        }
    };
    (state_of(conclusion), text)
}

fn took(job: &Job) -> Option<Duration> {
    let (from, to) = (job.started_at?, job.finished_at?);
    Duration::try_from(to.duration_since(from)).ok()
}

fn passed(took: Option<Duration>, tests: Option<&TestCounts>) -> String {
    let mut text = match took {
        Some(took) => format!("Passed in {}", duration(took)),
        None => "Passed".to_owned(),
    };
    if let Some(tests) = tests.filter(|tests| count(tests) > 0) {
        text.push_str(&format!(" · {}", counts(tests)));
    }
    text
}

/// `12 tests, 2 skipped` or `1 of 12 tests failed`.
pub fn counts(tests: &TestCounts) -> String {
    let all = counted(count(tests), "test");
    let mut text = match tests.failed {
        0 => all,
        failed => format!("{failed} of {all} failed"),
    };
    if tests.skipped > 0 {
        text.push_str(&format!(", {} skipped", tests.skipped));
    }
    text
}

fn failing_tests(tests: &TestCounts, took: Option<Duration>) -> String {
    let mut text = format!(
        "{} of {} failed",
        tests.failed,
        counted(count(tests), "test")
    );
    if !tests.failing.is_empty() {
        text.push_str(": ");
        text.push_str(&tests.failing.join(", "));
    }
    fitted(&text, &in_all(took))
}

fn in_all(took: Option<Duration>) -> String {
    took.map_or_else(String::new, |took| format!(" · {}", duration(took)))
}

fn after(message: &str, took: Option<Duration>) -> String {
    let took = took.map_or_else(String::new, |took| format!(" after {}", duration(took)));
    fitted(message.trim_end_matches('.'), &took)
}

fn count(tests: &TestCounts) -> u64 {
    tests
        .passed
        .saturating_add(tests.failed)
        .saturating_add(tests.skipped)
}

/// The one status to require: it sums up all jobs of the build.
pub fn aggregate_status(build: &Build, jobs: &[Job], target_url: String) -> CommitStatus {
    let (state, text) = aggregate(build, jobs);
    CommitStatus {
        context: CommitStatus::AGGREGATE.to_owned(),
        state,
        description: description(&text),
        target_url,
    }
}

fn aggregate(build: &Build, jobs: &[Job]) -> (StatusState, String) {
    let done = |job: &&Job| job.state == JobState::Finished;
    let finished = jobs.iter().filter(done).count();
    if jobs.is_empty() || finished < jobs.len() {
        return match &build.ending {
            Some(ending) if jobs.is_empty() => {
                (state_of(ending.conclusion()), ending.message.clone())
            }
            _ if jobs.is_empty() => (StatusState::Pending, PREPARING.to_owned()),
            _ => (StatusState::Pending, under_way(jobs, finished)),
        };
    }
    let (jobs, known): (Vec<&Job>, Vec<&Job>) = jobs.iter().partition(|job| job.counts());
    let expected = names(&known, &[StatusState::Failure, StatusState::Error]);
    let all = machines(jobs.len());
    let failed = names(&jobs, &[StatusState::Failure]);
    let error = names(&jobs, &[StatusState::Error]);
    if !failed.is_empty() {
        let text = format!("{} of {all} failed: {}", failed.len(), failed.join(", "));
        return (StatusState::Failure, text);
    }
    if !error.is_empty() {
        let first = jobs.iter().find_map(|job| {
            let ending = job.ending.as_ref()?;
            (ending.conclusion() == Conclusion::Cancelled).then_some(ending)
        });
        let text = match first {
            Some(ending) => ending.message.clone(),
            None => format!(
                "No result from {} of {all}: {}",
                error.len(),
                error.join(", ")
            ),
        };
        return (StatusState::Error, text);
    }
    let took = build
        .finished_at
        .or_else(|| jobs.iter().filter_map(|job| job.finished_at).max())
        .and_then(|end| Duration::try_from(end.duration_since(build.created_at)).ok())
        .map_or_else(String::new, |took| format!(" in {}", duration(took)));
    let mut text = match &jobs[..] {
        [] => String::new(),
        [job] => format!("{} passed{took}", job.platform),
        _ => format!("All {all} passed{took}"),
    };
    if !expected.is_empty() {
        let but = match text.is_empty() {
            true => "Not passed, for known issues",
            false => "; not passed, for known issues",
        };
        text.push_str(&format!("{but}: {}", expected.join(", ")));
    }
    (StatusState::Success, text)
}

fn under_way(jobs: &[Job], finished: usize) -> String {
    let jobs: Vec<&Job> = jobs.iter().collect();
    let running = jobs
        .iter()
        .filter(|job| job.state == JobState::Running)
        .count();
    let failed = names(&jobs, &[StatusState::Failure, StatusState::Error]).len();
    let mut text = format!("{finished} of {} done", machines(jobs.len()));
    if failed > 0 {
        text.push_str(&format!(" ({failed} not passed)"));
    }
    if running > 0 {
        text.push_str(&format!(", {running} running"));
    }
    text
}

/// Jobs that ended in one of the states, named by what tells them apart.
fn names(jobs: &[&Job], states: &[StatusState]) -> Vec<String> {
    let one_suite = jobs
        .windows(2)
        .all(|pair| matches!(pair, [a, b] if a.suite == b.suite));
    jobs.iter()
        .filter(|job| {
            job.state == JobState::Finished
                && states.contains(
                    &job.ending
                        .as_ref()
                        .map_or(StatusState::Error, |ending| state_of(ending.conclusion())),
                )
        })
        .map(|job| {
            if one_suite {
                job.platform.clone()
            } else {
                format!("{} ({})", job.suite, job.platform)
            }
        })
        .collect()
}

/// Statuses that wait to be sent; `why` is the trouble of one of them.
pub fn backlog(unsent: i64, oldest: Timestamp, now: Timestamp, why: Option<&str>) -> String {
    let unsent = u64::try_from(unsent).unwrap_or(0);
    let statuses = match unsent {
        1 => "1 status".to_owned(),
        _ => format!("{unsent} statuses"),
    };
    let mut text = format!(
        "GitHub was not told of {statuses} yet, the oldest for {}",
        between(oldest, now)
    );
    if let Some(why) = why {
        text.push_str(": ");
        text.push_str(why);
    }
    text
}

/// A newer commit of the same pull request or branch took the place.
pub fn superseded_by(sha: &str) -> String {
    format!("Superseded by {}", short_sha(sha))
}

pub fn cancelled_by(person: &str) -> String {
    description(&format!("Cancelled by {person}"))
}

pub fn short_sha(sha: &str) -> &str {
    sha.get(..SHORT_SHA).unwrap_or(sha)
}

fn machines(count: usize) -> String {
    counted(u64::try_from(count).unwrap_or(u64::MAX), "machine")
}

fn counted(count: u64, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ => format!("{count} {noun}s"),
    }
}

/// The time between two moments, as [`duration`] says it.
pub fn between(from: Timestamp, to: Timestamp) -> String {
    duration(Duration::try_from(to.duration_since(from)).unwrap_or_default())
}

/// `42 s`, `2 min 13 s`, `1 h 5 min`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 => "less than 1 s".to_owned(),
        1..60 => format!("{seconds} s"),
        60..3600 if seconds.is_multiple_of(60) => format!("{} min", seconds / 60),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// Text as GitHub takes it: one line, no character of four bytes, 140 characters at most.
pub fn description(text: &str) -> String {
    fitted(text, "")
}

/// A text and its end, of which the end is kept whole where it can be.
fn fitted(text: &str, end: &str) -> String {
    let (text, end) = (plain(text), plain_end(end));
    let room = LONGEST_DESCRIPTION.saturating_sub(end.chars().count());
    let mut fitted = if text.chars().count() > room {
        let cut: String = text.chars().take(room.saturating_sub(1)).collect();
        format!("{}…", cut.trim_end())
    } else {
        text
    };
    fitted.push_str(&end);
    fitted
}

fn plain_end(end: &str) -> String {
    end.chars().filter(|c| c.len_utf8() < 4).take(40).collect()
}

fn plain(text: &str) -> String {
    let replaced: String = text
        .chars()
        .map(|c| match c {
            c if c.is_control() => ' ',
            c if c.len_utf8() == 4 => '\u{fffd}',
            c => c,
        })
        .collect();
    replaced.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
