use super::*;
use jiff::Timestamp;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn cancelled(reason: Reason) -> Build {
    let mut build: Build = serde_json::from_value(serde_json::json!({
        "id": 1, "repository": "o/r", "trigger": "pull_request", "key": "k", "reference": "refs/pull/1/head",
        "pull_request": 1, "base_ref": "main", "head_sha": "a", "from_fork": false, "publish": false, "title": "",
        "author": null, "event_at": null, "before_sha": null, "only_platforms": [], "state": "finished",
        "base_sha": null, "tested_sha": null, "ending": null, "created_at": at(0), "finished_at": at(100),
    }))
    .unwrap();
    build.ending = Some(Ending::new(reason, ""));
    build
}

const LATE: Learnt = Learnt::FromEvent { before: None };

fn is_wanted_again(build: &Build, learnt: &Learnt, is_news: bool) -> bool {
    let reason = build.ending.as_ref().unwrap().reason;
    Evidence::of(learnt, build, is_news).voids(reason)
}

/// A head that was pushed back stayed "superseded" for ever.
#[test]
fn a_head_that_was_pushed_back_is_wanted_again_and_a_late_event_is_not() {
    let build = cancelled(Reason::Superseded);
    assert!(is_wanted_again(&build, &LATE, true));
    assert!(!is_wanted_again(&build, &LATE, false));
    let build = cancelled(Reason::Closed);
    assert!(
        is_wanted_again(&build, &LATE, false),
        "within the second of its closing"
    );
}

#[test]
fn what_was_seen_before_the_cancelling_does_not_count() {
    for reason in [Reason::Superseded, Reason::Closed] {
        let build = cancelled(reason);
        let seen = |second| Learnt::ByLooking { at: at(second) };
        assert!(is_wanted_again(&build, &seen(101), false));
        assert!(!is_wanted_again(&build, &seen(100), false));
    }
}

#[test]
fn what_could_not_be_fetched_is_fetched_once_github_is_back() {
    let seen = Learnt::ByLooking { at: at(200) };
    let mut build = cancelled(Reason::SourceError);
    assert!(is_wanted_again(&build, &seen, false));
    assert!(!is_wanted_again(&build, &LATE, true));
    build.tested_sha = Some("b".into());
    assert!(!is_wanted_again(&build, &seen, false));
}

#[test]
fn what_a_person_cancelled_or_what_ended_by_itself_stays() {
    let seen = Learnt::ByLooking { at: at(200) };
    for reason in [
        Reason::CancelledByPerson,
        Reason::Passed,
        Reason::StepFailed,
        Reason::HostError,
    ] {
        assert!(!is_wanted_again(&cancelled(reason), &seen, true));
        assert!(!is_wanted_again(&cancelled(reason), &LATE, true));
    }
}
