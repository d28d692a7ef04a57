use super::*;
use crate::model::{
    AttemptId, BuildId, BuildState, JobId, JobPlan, NewBuild, Priority, Timeouts, Trigger,
};
use jiff::Timestamp;
use proptest::prelude::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

fn job(platform: &str, ending: Option<Ending>) -> Job {
    Job {
        id: JobId(1),
        build: BuildId(1),
        repository: "o/r".into(),
        suite: "check".into(),
        platform: platform.into(),
        plan: JobPlan {
            steps: Vec::new(),
            timeouts: Timeouts {
                job_secs: 1,
                no_output_secs: 1,
            },
            artifacts: Vec::new(),
            reports: Vec::new(),
            history: false,
            known_issue: None,
        },
        priority: Priority::PullRequest,
        state: if ending.is_some() {
            JobState::Finished
        } else {
            JobState::Queued
        },
        attempts: 1,
        attempt: Some(AttemptId(1)),
        cancel: None,
        finished_at: ending.as_ref().map(|_| at(233)),
        ending,
        queued_at: at(90),
        not_before: at(0),
        started_at: Some(at(100)),
    }
}

fn build(ending: Option<Ending>) -> Build {
    Build {
        id: BuildId(1),
        new: NewBuild {
            repository: "o/r".into(),
            trigger: Trigger::PullRequest,
            key: "k".into(),
            reference: "refs/pull/1/head".into(),
            pull_request: Some(1),
            base_ref: Some("main".into()),
            head_sha: "a".repeat(40),
            from_fork: false,
            publish: false,
            title: "t".into(),
            author: None,
            event_at: None,
            before_sha: None,
            only_platforms: Vec::new(),
        },
        state: BuildState::Running,
        base_sha: None,
        tested_sha: None,
        changed_files: None,
        ending,
        created_at: at(0),
        finished_at: None,
    }
}

fn tests(failed: u64, failing: &[&str]) -> TestCounts {
    TestCounts {
        passed: 512 - failed,
        failed,
        skipped: 0,
        failing: failing.iter().map(|name| (*name).to_owned()).collect(),
    }
}

fn told(job: &Job, tests: Option<&TestCounts>) -> (StatusState, String) {
    let status = job_status(job, None, tests, "https://ci/1".into());
    (status.state, status.description)
}

#[test]
fn each_ending_has_its_sentence() {
    let ending = |reason, message: &str| Some(Ending::new(reason, message));
    let passed = job("debian-12", ending(Reason::Passed, "passed"));
    let failed = job(
        "debian-12",
        ending(Reason::StepFailed, "Step `make check` exited with 2"),
    );
    let superseded = job(
        "debian-12",
        ending(
            Reason::Superseded,
            &superseded_by("abc1234def5678901234567890123456789012345"),
        ),
    );
    let mut lost = job("debian-12", ending(Reason::GuestDied, "the guest died"));
    lost.attempts = 3;
    for (job, tests, state, text) in [
        (
            &passed,
            Some(tests(0, &[])),
            StatusState::Success,
            "Passed in 2 min 13 s · 512 tests",
        ),
        (&passed, None, StatusState::Success, "Passed in 2 min 13 s"),
        (
            &failed,
            Some(tests(2, &["test_a", "test_b"])),
            StatusState::Failure,
            "2 of 512 tests failed: test_a, test_b · 2 min 13 s",
        ),
        (
            &failed,
            Some(tests(0, &[])),
            StatusState::Failure,
            "Step `make check` exited with 2 after 2 min 13 s",
        ),
        (
            &superseded,
            None,
            StatusState::Error,
            "Superseded by abc1234",
        ),
        (
            &lost,
            None,
            StatusState::Error,
            "No result: the guest died (3 tries)",
        ),
    ] {
        assert_eq!(told(job, tests.as_ref()), (state, text.to_owned()));
    }
}

#[test]
fn a_job_under_way_says_what_it_is_at() {
    let mut waiting_job = job("debian-12", None);
    waiting_job.attempts = 0;
    assert_eq!(waiting(&waiting_job, None), "Waiting for a machine");
    assert_eq!(
        waiting(&waiting_job, Some(3)),
        "Waiting for a machine, 3 jobs ahead"
    );
    let step = Some(StepProgress {
        number: 2,
        of: 5,
        name: "make check",
    });
    let phase = Phase::Running;
    assert_eq!(
        running("debian-12", Progress { phase, step }),
        "Running: step 2 of 5, make check"
    );
    let phase = Phase::Booting;
    assert_eq!(
        running("debian-12", Progress { phase, step: None }),
        "Booting debian-12"
    );
}

#[test]
fn the_aggregate_waits_for_all_and_then_takes_the_worst() {
    let sum = |jobs: &[Job], ending: Option<Ending>| {
        let status = aggregate_status(&build(ending), jobs, String::new());
        (status.state, status.description)
    };
    let passed = || job("debian-12", Some(Ending::new(Reason::Passed, "")));
    let failed = || job("freebsd-14", Some(Ending::new(Reason::StepFailed, "")));
    let lost = || job("windows-11", Some(Ending::new(Reason::GuestDied, "")));
    let mut running = job("netbsd-10", None);
    running.state = JobState::Running;
    let conflict = Ending::new(Reason::MergeConflict, "Conflicts in a.c");
    for (jobs, ending, state, text) in [
        (
            vec![],
            None,
            StatusState::Pending,
            "Fetching and merging the commit",
        ),
        (
            vec![],
            Some(conflict),
            StatusState::Failure,
            "Conflicts in a.c",
        ),
        (
            vec![passed(), running.clone(), job("x", None)],
            None,
            StatusState::Pending,
            "1 of 3 machines done, 1 running",
        ),
        (
            vec![failed(), running],
            None,
            StatusState::Pending,
            "1 of 2 machines done (1 not passed), 1 running",
        ),
        (
            vec![passed(), passed()],
            None,
            StatusState::Success,
            "All 2 machines passed in 3 min 53 s",
        ),
        (
            vec![passed(), lost(), failed()],
            None,
            StatusState::Failure,
            "1 of 3 machines failed: freebsd-14",
        ),
        (
            vec![passed(), lost()],
            None,
            StatusState::Error,
            "No result from 1 of 2 machines: windows-11",
        ),
    ] {
        assert_eq!(sum(&jobs, ending), (state, text.to_owned()));
    }
}

#[test]
fn durations_read_as_people_say_them() {
    for (seconds, text) in [
        (0, "less than 1 s"),
        (59, "59 s"),
        (60, "1 min"),
        (133, "2 min 13 s"),
        (3900, "1 h 5 min"),
    ] {
        assert_eq!(duration(Duration::from_secs(seconds)), text);
    }
}

#[test]
fn a_long_list_of_tests_leaves_the_duration_standing() {
    let names: Vec<_> = (0..60).map(|n| format!("suite::test_{n}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let failed = job(
        "debian-12",
        Some(Ending::new(Reason::StepFailed, "Step failed")),
    );
    let (_, text) = told(&failed, Some(&tests(60, &names)));
    assert_eq!(text.chars().count(), LONGEST_DESCRIPTION);
    assert!(text.ends_with("… · 2 min 13 s"), "{text}");
}

proptest! {
    #[test]
    fn github_takes_every_description(message in ".{0,400}", name in "\\PC{0,200}", attempts in 0_i64..9, which in 0_usize..18) {
        let mut job = job("p", Some(Ending::new(Reason::ALL[which], message)));
        job.attempts = attempts;
        let (_, text) = told(&job, Some(&tests(1, &[&name, "😀", "a\nb"])));
        prop_assert!(text.chars().count() <= LONGEST_DESCRIPTION);
        prop_assert!(text.chars().all(|c| c.len_utf8() < 4 && !c.is_control()));
    }
}

#[test]
fn a_known_issue_is_reported_and_blocks_nobody() {
    let known = |reason, message: &str| {
        let mut job = job("netbsd-10", Some(Ending::new(reason, message)));
        job.plan.known_issue = Some("vfork hangs, PR 58".into());
        job
    };
    let failed = known(Reason::StepFailed, "Step `x` exited with 1");
    let own = job_status(&failed, None, None, String::new());
    assert_eq!(own.state, StatusState::Failure, "it did not pass");
    assert_eq!(
        own.description,
        "Known issue, blocks nobody. Step `x` exited with 1 after 2 min 13 s (vfork hangs, PR 58)"
    );
    let passed = job("debian-12", Some(Ending::new(Reason::Passed, "Passed")));
    let sum = |jobs: &[Job]| {
        let status = aggregate_status(&build(None), jobs, String::new());
        (status.state, status.description)
    };
    let (state, text) = sum(&[passed.clone(), failed.clone()]);
    assert_eq!(state, StatusState::Success);
    assert!(text.starts_with("debian-12 passed in "), "{text}");
    assert!(
        text.ends_with("; not passed, for known issues: netbsd-10"),
        "{text}"
    );
    let (state, text) = sum(&[known(Reason::HostError, "no libvirt")]);
    assert_eq!(state, StatusState::Success);
    assert_eq!(text, "Not passed, for known issues: netbsd-10");
    let other = job("openbsd-7", Some(Ending::new(Reason::StepFailed, "no")));
    let (state, text) = sum(&[passed, failed, other]);
    assert_eq!(state, StatusState::Failure);
    assert_eq!(text, "1 of 2 machines failed: openbsd-7");
    let well = known(Reason::Passed, "Passed");
    assert_eq!(sum(&[well]).0, StatusState::Success);
}
