use super::*;
use crate::model::{BuildId, Ending, NewBuild, StatusState, Trigger};
use proptest::prelude::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn build(reason: Option<Reason>, finished_at: i64) -> Build {
    Build {
        id: BuildId(1),
        new: NewBuild {
            repository: "o/r".into(),
            trigger: Trigger::PullRequest,
            key: "pull:1:main:a".into(),
            reference: "refs/pull/1/head".into(),
            pull_request: Some(1),
            base_ref: Some("main".into()),
            head_sha: "a".into(),
            from_fork: false,
            publish: false,
            title: String::new(),
            author: None,
            event_at: None,
            before_sha: None,
            only_platforms: Vec::new(),
        },
        state: match reason {
            Some(_) => BuildState::Finished,
            None => BuildState::Running,
        },
        base_sha: None,
        tested_sha: None,
        changed_files: None,
        finished_at: reason.map(|_| at(finished_at)),
        ending: reason.map(|reason| Ending::new(reason, "")),
        created_at: at(0),
    }
}

const WHEN: fn() -> When = || When {
    began: at(100),
    oldest: at(10),
    after_outage: false,
};

#[test]
fn what_has_no_build_gets_one_unless_it_is_old() {
    assert_eq!(missing(None, Some(at(50)), WHEN()), Missing::Build);
    assert_eq!(missing(None, None, WHEN()), Missing::Build);
    assert_eq!(missing(None, Some(at(5)), WHEN()), Missing::Nothing);
}

#[test]
fn only_what_nobody_wanted_is_taken_up_and_only_if_that_was_before_the_look() {
    for reason in Reason::ALL {
        let is_unwanted = matches!(reason, Reason::Closed | Reason::Superseded);
        let expected = match is_unwanted {
            true => Missing::TakeUp,
            false => Missing::Nothing,
        };
        let before = missing(Some(&build(Some(reason), 50)), None, WHEN());
        assert_eq!(before, expected, "{reason:?}");
        let after = missing(Some(&build(Some(reason), 150)), None, WHEN());
        assert_eq!(after, Missing::Nothing, "{reason:?}");
    }
    let running = missing(Some(&build(None, 0)), None, WHEN());
    assert_eq!(running, Missing::Nothing);
}

#[test]
fn what_could_not_be_fetched_is_fetched_after_the_outage_but_not_for_ever() {
    let mut unfetched = build(Some(Reason::SourceError), 50);
    let back = When {
        after_outage: true,
        ..WHEN()
    };
    assert_eq!(missing(Some(&unfetched), None, back), Missing::TakeUp);
    assert_eq!(missing(Some(&unfetched), None, WHEN()), Missing::Nothing);
    unfetched.tested_sha = Some("b".into());
    assert_eq!(missing(Some(&unfetched), None, back), Missing::Nothing);
}

#[test]
fn a_context_is_ours_by_its_name_and_its_link() {
    let own = |url: &str| url.starts_with("https://ci/");
    for (context, url, expected) in [
        ("vivarium", "https://ci/builds/1", true),
        ("Vivarium/test (x)", "https://ci/jobs/1", true),
        ("vivarium", "https://other/builds/1", false),
        ("vivariums", "https://ci/builds/1", false),
        ("build", "https://ci/builds/1", false),
    ] {
        let status = CommitStatus {
            context: context.into(),
            state: StatusState::Success,
            description: String::new(),
            target_url: url.into(),
        };
        assert_eq!(is_ours(&status, own), expected, "{context} {url}");
        let is_sum = expected && context == "vivarium";
        assert_eq!(was_tested(&[status], own), is_sum, "{context} {url}");
    }
}

#[test]
fn as_few_lists_as_possible_are_asked_for() {
    let globs = |texts: &[&str]| -> Vec<String> {
        let globs: Vec<String> = texts.iter().map(|&text| text.to_owned()).collect();
        beginnings(&globs)
    };
    assert_eq!(
        globs(&["main", "release/*", "main-*", "release/1.?"]),
        ["gh-readonly-queue/", "main", "release/"]
    );
    assert_eq!(globs(&["*"]), [""]);
    assert_eq!(globs(&["{main,next}"]), [""]);
}

#[test]
fn an_event_is_missed_when_no_attempt_delivered_it() {
    let attempt = |id, guid: &str, status_code| LoggedDelivery {
        id,
        guid: guid.into(),
        delivered_at: at(id),
        status_code,
        event: "push".into(),
    };
    let log = [
        attempt(6, "b", 502),
        attempt(5, "a", 202),
        attempt(4, "c", 0),
        attempt(3, "b", 0),
        attempt(2, "a", 500),
        attempt(1, "d", 200),
    ];
    let ids: Vec<i64> = missed(&log).iter().map(|attempt| attempt.id).collect();
    assert_eq!(ids, [3, 4]);
}

proptest! {
    /// Whatever the globs are, no branch that they match is left out.
    #[test]
    fn every_tested_branch_is_in_some_list(globs in prop::collection::vec("[ab*?/]{1,4}", 1..4), branch in "[ab/]{1,5}") {
        let text = format!("[[repository]]\nname = 'x'\nurl = '/x'\nbranches = {globs:?}\n");
        if let Ok(config) = crate::config::Config::parse(std::path::Path::new("/v.toml"), &text)
            && config.repositories[0].tests_branch(&branch)
        {
            prop_assert!(beginnings(&globs).iter().any(|beginning| branch.starts_with(beginning.as_str())));
        }
    }
}
