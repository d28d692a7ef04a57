//! What a suite finds in its guest, and what is read out of its reports.

use crate::{DEBIAN, TINY, needs_guests};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use tests::find;
use tests::git::Commit;
use tests::github::StatusState;
use tests::master::TestsView;
use tests::repository::Suites;
use tests::world::{REPOSITORY, World, context_of};

#[tokio::test(flavor = "multi_thread")]
async fn a_suite_with_history_has_a_clone_and_every_suite_its_environment() -> Result<()> {
    needs_guests!();
    let history = "git log --format=%s >subjects\ncat subjects\necho describe=$(git describe)\n\
                   echo head=$(git rev-parse HEAD) base=$(git rev-parse HEAD^1) other=$(git rev-parse HEAD^2)\n\
                   rm subjects\necho status=$(git status --porcelain)";
    let environment =
        "echo changed $(cat \"$VIVARIUM_CHANGED_FILES\")\nenv | grep -E '^(CI|VIVARIUM)' | sort";
    let suites = Suites::default()
        .suite("history", &[DEBIAN])
        .set("history", "history", true)
        .step_of("history", "git", history)
        .step_of("history", "environment", environment)
        .suite("without-git", &[TINY])
        .set("without-git", "history", true)
        .step_of("without-git", "never", "true");
    let world = World::with(&[DEBIAN, TINY], &suites).await?;
    let git = world.github.git(REPOSITORY)?;
    git.git(&["tag", "-a", "-m", "The first", "v1.0", &world.main])
        .await?;
    let second = Commit::on("main").message("The second").file("b", "2");
    let base = world.github.commit(REPOSITORY, second).await?;
    let (number, head) = world
        .propose("topic", |commit| {
            commit
                .from(&world.main)
                .message("The change")
                .file("sub/changed", "1")
        })
        .await?;

    world
        .settled_as(&head, &context_of("history", DEBIAN), StatusState::Success)
        .await?;
    let job = world.ended_job(&head, "history", DEBIAN).await?;
    let log = String::from_utf8(world.log(&job).await?.to_vec())?;
    let build = world.master.builds().await?;
    let build = build
        .iter()
        .find(|build| build.head_sha == head)
        .context("no build")?;
    let tested = build.tested_sha.clone().context("nothing was tested")?;
    for subject in ["The change", "The second", "First commit"] {
        assert!(log.contains(&format!("\n{subject}\n")), "{log}");
    }
    assert!(
        log.contains(&format!("head={tested} base={base} other={head}\n")),
        "{log}"
    );
    assert!(
        log.contains(&format!("describe=v1.0-3-g{}", &tested[..7])),
        "{log}"
    );
    assert!(log.contains("status=\n"), "{log}");
    assert!(log.contains("changed sub/changed\n"), "{log}");

    let found: BTreeMap<&str, &str> = log
        .lines()
        .filter(|line| line.starts_with("CI=") || line.starts_with("VIVARIUM"))
        .filter_map(|line| line.split_once('='))
        .collect();
    let (number, reference) = (number.to_string(), format!("refs/pull/{number}/head"));
    let (build, job) = (
        format!("build-{}", build.number),
        format!("job-{}", job.number),
    );
    let expected = BTreeMap::from([
        ("CI", "true"),
        ("VIVARIUM", "true"),
        ("VIVARIUM_REPOSITORY", REPOSITORY),
        ("VIVARIUM_SHA", &tested),
        ("VIVARIUM_HEAD_SHA", &head),
        ("VIVARIUM_BASE_SHA", &base),
        ("VIVARIUM_REF", &reference),
        ("VIVARIUM_EVENT", "pull_request"),
        ("VIVARIUM_PULL_REQUEST", &number),
        ("VIVARIUM_PLATFORM", DEBIAN),
        ("VIVARIUM_SUITE", "history"),
        ("VIVARIUM_BUILD", &build),
        ("VIVARIUM_JOB", &job),
        ("VIVARIUM_CHANGED_FILES", "/tmp/vivarium/changed-files"),
    ]);
    assert_eq!(found, expected);

    let description = world
        .settled_as(
            &head,
            &context_of("without-git", TINY),
            StatusState::Failure,
        )
        .await?;
    assert!(
        description.contains("needs git in the guest"),
        "{description}"
    );
    world.end().await
}

const REPORT: &str = r#"<testsuites><testsuite name="widget">
<testcase classname="widget" name="turns"/>
<testcase classname="widget" name="stops"><failure message="it went on">at widget.c:3</failure></testcase>
<testcase classname="widget" name="rests"><skipped/></testcase>
<testcase classname="gadget" name="starts"><error message="no power"/></testcase>
</testsuite></testsuites>
"#;

#[tokio::test(flavor = "multi_thread")]
async fn reports_tell_how_many_tests_failed_and_which() -> Result<()> {
    needs_guests!();
    let suites = Suites::default()
        .suite("failing", &[TINY])
        .set("failing", "reports", vec!["out/*.xml"])
        .step_of("failing", "check", "mkdir out; cp report.xml out/; exit 1")
        // Reports count, but a suite that exits 0 has passed; what is no report costs a line in the log.
        .suite("lenient", &[TINY])
        .set("lenient", "reports", vec!["**/*.xml"])
        .step_of("lenient", "check", "echo '<testsuite' >broken.xml");
    let world = World::with(&[TINY], &suites).await?;
    let (_, head) = world
        .propose("topic", |commit| commit.file("report.xml", REPORT))
        .await?;
    let tests = TestsView {
        passed: 1,
        failed: 2,
        skipped: 1,
        failing: vec!["widget::stops".to_owned(), "gadget::starts".to_owned()],
    };
    let description = world
        .settled_as(&head, &context_of("failing", TINY), StatusState::Failure)
        .await?;
    assert!(
        description.starts_with("2 of 4 tests failed: widget::stops, gadget::starts"),
        "{description}"
    );
    let failing = world.ended_job(&head, "failing", TINY).await?;
    assert_eq!(failing.tests.as_ref(), Some(&tests));

    let description = world
        .settled_as(&head, &context_of("lenient", TINY), StatusState::Success)
        .await?;
    assert!(description.contains("2 of 4 tests failed"), "{description}");
    let lenient = world.ended_job(&head, "lenient", TINY).await?;
    assert_eq!(lenient.tests.as_ref(), Some(&tests));
    let log = world.log(&lenient).await?;
    assert!(find(&log, b"==> report broken.xml: ").is_some(), "{log:?}");
    world.end().await
}
