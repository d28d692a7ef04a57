use super::*;
use crate::event::form::{CommitAnswer, Reference};
use crate::event::subjects::Tip;
use crate::model::{MergeGroup, PullRequest, Reason};
use proptest::prelude::*;
use serde_json::{Value, json};

fn config() -> Config {
    Config::parse(
        std::path::Path::new("/etc/vivarium/vivarium.toml"),
        "[github]\ntoken_file = '/t'\n[[repository]]\nname = 'codertocat/hello-world'\nbranches = ['master', 'release/*']",
    )
    .unwrap()
}

macro_rules! recorded {
    ($name:literal) => {
        serde_json::from_str::<Value>(include_str!(concat!(
            "../../../tests/fixtures/github/",
            $name,
            ".json"
        )))
        .unwrap()
    };
}

fn read(event: &str, body: &Value) -> Result<Interpreted, InterpretError> {
    interpret(event, body.to_string().as_bytes(), &config())
}

fn intents(event: &str, body: &Value) -> Vec<Intent> {
    match read(event, body).unwrap() {
        Interpreted::Act {
            repository,
            intents,
        } => {
            assert_eq!(repository, "codertocat/hello-world");
            intents
        }
        Interpreted::Nothing { why } => panic!("nothing: {why}"),
    }
}

fn why_nothing(event: &str, body: &Value) -> String {
    match read(event, body).unwrap() {
        Interpreted::Nothing { why } => why,
        act @ Interpreted::Act { .. } => panic!("{act:?}"),
    }
}

fn built(event: &Value) -> PullRequest {
    match intents("pull_request", event).as_slice() {
        [Intent::BuildPullRequest(request)] => request.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_pull_request_is_built_when_it_has_something_new() {
    for event in [
        recorded!("pull_request.opened"),
        recorded!("pull_request.synchronize"),
        recorded!("pull_request.ready_for_review"),
    ] {
        let request = built(&event);
        assert_eq!(request.number, 2);
        assert_eq!(request.title, "Update the README with new information.");
        assert_eq!(request.author.as_deref(), Some("Codertocat"));
        assert_eq!(request.head_sha, "ec26c3e57ca3a959ca5aad62de7213c562f8c821");
        assert_eq!(request.base_ref, "master");
        assert!(!request.from_fork);
    }
}

#[test]
fn a_draft_is_built_too() {
    let mut event = recorded!("pull_request.opened");
    event["pull_request"]["draft"] = json!(true);
    built(&event);
    event["action"] = json!("converted_to_draft");
    assert!(why_nothing("pull_request", &event).contains("converted_to_draft"));
}

#[test]
fn an_author_who_may_be_a_stranger_is_one() {
    let mut event = recorded!("pull_request.opened");
    event["pull_request"]["head"]["repo"]["id"] = json!(7);
    assert!(built(&event).from_fork);
    event["pull_request"]["head"]["repo"] = Value::Null;
    event["pull_request"]["user"] = Value::Null;
    let request = built(&event);
    assert!(request.from_fork);
    assert_eq!(request.author, None);
}

#[test]
fn an_edit_is_built_only_when_the_base_changed() {
    let mut event = recorded!("pull_request.opened");
    event["action"] = json!("edited");
    event["changes"] = json!({"title": {"from": "x"}});
    assert!(why_nothing("pull_request", &event).contains("keeps its base"));
    event["changes"] = json!({"base": {"ref": {"from": "x"}, "sha": {"from": "y"}}});
    built(&event);
    event["pull_request"]["state"] = json!("closed");
    assert!(why_nothing("pull_request", &event).contains("is closed"));
}

#[test]
fn a_merge_ends_the_pull_requests_builds_and_builds_the_branch() {
    let mut event = recorded!("pull_request.closed");
    let cancel = Intent::CancelPullRequest {
        number: 2,
        reason: Reason::Closed,
        closed_at: "2019-05-15T15:21:18Z".parse().ok(),
    };
    assert_eq!(
        intents("pull_request", &event),
        std::slice::from_ref(&cancel)
    );
    let merge = "1".repeat(40);
    event["pull_request"]["merged"] = json!(true);
    event["pull_request"]["merge_commit_sha"] = json!(merge);
    let build = Intent::BuildCommit {
        branch: "master".into(),
        sha: merge,
        title: "Update the README with new information.".into(),
        author: Some("Codertocat".into()),
        merged_pull_request: Some(2),
        learnt: Learnt::FromEvent { before: None },
    };
    assert_eq!(intents("pull_request", &event), [cancel.clone(), build]);
    event["pull_request"]["base"]["ref"] = json!("topic");
    assert_eq!(intents("pull_request", &event), [cancel]);
}

fn pushed() -> Value {
    let mut event = recorded!("push.created");
    event["before"] = json!("a".repeat(40));
    event["after"] = json!("b".repeat(40));
    event["head_commit"] =
        json!({"message": "Fix it\n\nat last", "author": {"name": "Ada", "username": "ada"}});
    event
}

fn group(action: &str) -> Value {
    json!({
        "action": action,
        "merge_group": {
            "head_sha": "c".repeat(40),
            "head_ref": "refs/heads/gh-readonly-queue/master/pr-2-bbbb",
            "base_sha": "b".repeat(40),
            "base_ref": "refs/heads/master",
            "head_commit": {"message": "Merge pull request #2", "author": {"name": "Ada"}},
        },
        "repository": {"id": 186853002, "full_name": "Codertocat/Hello-World"},
    })
}

/// A merge queue waits for the required status of its own commit.
#[test]
fn a_merge_group_is_built_and_ends_with_its_group() {
    let build = |learnt| {
        Intent::BuildMergeGroup(MergeGroup {
            reference: "refs/heads/gh-readonly-queue/master/pr-2-bbbb".into(),
            base_ref: "master".into(),
            head_sha: "c".repeat(40),
            title: "Merge pull request #2".into(),
            author: Some("Ada".into()),
            learnt,
        })
    };
    assert_eq!(
        intents("merge_group", &group("checks_requested")),
        [build(Learnt::FromEvent { before: None })]
    );
    let cancel = Intent::CancelMergeGroup {
        head_sha: "c".repeat(40),
        reason: Reason::Closed,
    };
    assert_eq!(intents("merge_group", &group("destroyed")), [cancel]);
    assert!(why_nothing("merge_group", &group("painted")).contains("`painted`"));
    let mut push = pushed();
    push["ref"] = json!("refs/heads/gh-readonly-queue/master/pr-2-bbbb");
    assert!(why_nothing("push", &push).contains("merge queue"));
    // Found by looking it is the same.
    let reference: Reference = serde_json::from_value(json!({
        "ref": "refs/heads/gh-readonly-queue/master/pr-2-bbbb",
        "object": {"type": "commit", "sha": "c".repeat(40)},
    }))
    .unwrap();
    let commit: CommitAnswer = serde_json::from_value(json!({
        "commit": {"message": "Merge pull request #2\n\n[skip ci]", "author": {"name": "Ada"}},
        "author": null,
    }))
    .unwrap();
    let tip = Tip::of(&reference).unwrap().unwrap();
    let at = jiff::Timestamp::UNIX_EPOCH;
    let seen = build(Learnt::ByLooking { at });
    assert_eq!(tip.intent(&commit, at), Some(seen));
    let tip = Tip {
        branch: "master".into(),
        ..tip
    };
    assert_eq!(tip.intent(&commit, at), None, "its author asks to skip it");
}

#[test]
fn a_push_to_a_tested_branch_is_built() {
    let mut event = pushed();
    for (reference, branch) in [
        ("refs/heads/master", "master"),
        ("refs/heads/release/1.2", "release/1.2"),
    ] {
        event["ref"] = json!(reference);
        let expected = Intent::BuildCommit {
            branch: branch.into(),
            sha: "b".repeat(40),
            title: "Fix it".into(),
            author: Some("ada".into()),
            merged_pull_request: None,
            learnt: Learnt::FromEvent {
                before: Some("a".repeat(40)),
            },
        };
        assert_eq!(intents("push", &event), [expected]);
    }
    event["before"] = json!("0".repeat(40));
    event["head_commit"] = Value::Null;
    assert!(matches!(
        intents("push", &event).as_slice(),
        [Intent::BuildCommit {
            learnt: Learnt::FromEvent { before: None },
            author: None,
            ..
        }]
    ));
    intents("push", &recorded!("push.created"));
}

#[test]
fn other_pushes_say_why_they_are_not_built() {
    let with = |key: &str, value: Value| {
        let mut event = pushed();
        event[key] = value;
        why_nothing("push", &event)
    };
    assert!(with("ref", json!("refs/heads/topic")).contains("not among those"));
    assert!(with("ref", json!("refs/tags/v1")).contains("not a branch"));
    assert!(with("deleted", json!(true)).contains("deleted"));
    for message in [
        "docs [skip ci]",
        "docs\n\n[CI skip]",
        "x\n\nskip-checks: true",
        "[no ci]",
    ] {
        let why = with("head_commit", json!({ "message": message }));
        assert!(why.contains("asks to skip"), "{why}");
    }
    let why = with("repository", json!({"full_name": "other/one"}));
    assert!(why.contains("`other/one` is not configured"), "{why}");
    assert!(why_nothing("push", &recorded!("push.tag_deleted")).contains("not a branch"));
    assert!(why_nothing("ping", &recorded!("ping")).contains("`ping`"));
}

#[test]
fn an_unknown_action_is_no_error() {
    assert!(why_nothing("pull_request", &recorded!("pull_request.labeled")).contains("labeled"));
    let mut event = recorded!("pull_request.opened");
    event["action"] = json!("stacked");
    event["a new field"] = json!([1, {}]);
    assert!(why_nothing("pull_request", &event).contains("stacked"));
}

#[test]
fn what_would_reach_git_is_checked() {
    for branch in [
        "--upload-pack=x",
        "a..b",
        "a b",
        "a\nb",
        "x.lock",
        "a//b",
        "",
        "@{u}",
    ] {
        let mut event = recorded!("pull_request.opened");
        event["pull_request"]["base"]["ref"] = json!(branch);
        assert!(read("pull_request", &event).is_err(), "{branch:?}");
    }
    for sha in ["HEAD", "--all", "abc", "", &"0".repeat(40), &"g".repeat(40)] {
        let mut event = recorded!("pull_request.opened");
        event["pull_request"]["head"]["sha"] = json!(sha);
        assert!(read("pull_request", &event).is_err(), "{sha:?}");
    }
    let mut event = recorded!("pull_request.opened");
    event["pull_request"]["title"] = json!(format!("a\nb\u{1b}[31m{}", "x".repeat(5000)));
    let title = built(&event).title;
    assert!(title.starts_with("a b [31mx") && title.chars().count() == 200);
}

/// Any JSON, as deep and as wide as is quick.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map("[a-z_]{1,8}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// The places that are read.
const PATHS: [&str; 16] = [
    "/action",
    "/pull_request",
    "/pull_request/number",
    "/pull_request/state",
    "/pull_request/title",
    "/pull_request/user",
    "/pull_request/head",
    "/pull_request/head/sha",
    "/pull_request/head/repo",
    "/pull_request/base/ref",
    "/repository/full_name",
    "/merge_group/head_ref",
    "/merge_group/head_commit",
    "/after",
    "/before",
    "/ref",
];

proptest! {
    #[test]
    fn no_json_makes_it_panic(event in "pull_request|push|ping|.{0,9}", body in any_json()) {
        drop(read(&event, &body));
    }

    #[test]
    fn no_change_to_a_payload_makes_it_panic(path in prop::sample::select(&PATHS[..]), value in any_json(),
                                             action in "opened|edited|closed|synchronize") {
        for (event, mut body) in [
            ("pull_request", recorded!("pull_request.opened")),
            ("push", pushed()),
            ("merge_group", group("checks_requested")),
        ] {
            if event == "pull_request" {
                body["action"] = json!(action);
            }
            if let Some(place) = body.pointer_mut(path) {
                *place = value.clone();
            }
            drop(read(event, &body));
        }
    }

    #[test]
    fn no_damage_to_the_bytes_makes_it_panic(at in 0_usize..20_000, byte in any::<u8>(), cut in any::<bool>()) {
        let mut body = recorded!("pull_request.opened").to_string().into_bytes();
        let at = at % body.len();
        body[at] = byte;
        if cut {
            body.truncate(at);
        }
        drop(interpret("pull_request", &body, &config()));
    }

    #[test]
    fn a_branch_that_passes_is_one_for_git(name in "[a-c./@{~ -]{1,8}") {
        if branch("branch", &name).is_ok() {
            prop_assert!(!name.starts_with('-') && !name.contains("..") && !name.contains(' '));
        }
    }
}
