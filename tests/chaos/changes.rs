//! What people do meanwhile: they push and open pull requests, as fast as commits are settled. Each suite prints lines
//! that bear their commit and their own place, so that nothing lost, doubled or mixed up goes unseen.

use anyhow::Result;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tests::git::Commit;
use tests::github::{GitHub, PullRequestSpec};
use tests::repository::{FILE, Suites};
use tests::world::{AGGREGATE, REPOSITORY};
use tokio_util::sync::CancellationToken;

/// The platforms of the suite: a guest, and a machine at the other end of a wire.
pub(crate) const PLATFORMS: [&str; 2] = ["tiny-linux", "desk"];
/// Commits that are under way at the same time.
const AT_ONCE: usize = 3;
/// Every fifth pull request gets a second commit at once, which takes the first one's place.
const SUPERSEDED_EVERY: usize = 5;
/// Files of this size travel into each machine.
const BALLAST: usize = 700_000;
/// Lines of output: in portions, with pauses between them.
const PORTIONS: usize = 10;
const LINES_OF_PORTION: usize = 300;
/// Lines of the larger artefact.
const ARTIFACT_LINES: usize = 20_000;

/// A commit that somebody made, whose delivery may or may not have arrived.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) head: String,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// On the main branch: artefacts are kept.
    Push,
    PullRequest(i64),
    /// A newer commit of the same pull request took its place, before or after it was tested.
    Superseded(i64),
}

/// All changes so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Changes(Arc<Mutex<Vec<Change>>>);

impl Changes {
    pub(crate) fn all(&self) -> Vec<Change> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn add(&self, head: &str, kind: Kind) {
        let head = head.to_owned();
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Change { head, kind });
    }
}

/// The repository's suites.
pub(crate) fn suites() -> Suites {
    let line = format!(
        "awk -v tag=\"$tag\" -v from=$((portion * {LINES_OF_PORTION})) \
         'BEGIN {{ for (n = from; n < from + {LINES_OF_PORTION}; n++) printf \"%s %010d\\n\", tag, n * 20 }}'"
    );
    let tag = "tag=$(echo \"$VIVARIUM_HEAD_SHA\" | cut -c1-8)";
    let portions: Vec<String> = (0..PORTIONS).map(|portion| portion.to_string()).collect();
    let count = format!(
        "{tag}\nfor portion in {}; do\n{line}\nsleep 0.4\ndone",
        portions.join(" ")
    );
    let build = format!(
        "{tag}\nmkdir dist\n\
         awk -v tag=\"$tag\" 'BEGIN {{ for (n = 0; n < {ARTIFACT_LINES}; n++) printf \"%s %d\\n\", tag, n }}' >dist/large\n\
         echo \"$tag\" >dist/small"
    );
    Suites::test_on(&PLATFORMS)
        .step("count", &count)
        .artifacts("build", &build, &["dist/*"])
}

/// What the suite prints.
pub(crate) fn output_of(head: &str) -> String {
    (0..PORTIONS * LINES_OF_PORTION)
        .map(|n| format!("{} {:010}\n", &head[..8], n * 20))
        .collect()
}

/// The artefacts, by path.
pub(crate) fn artifacts_of(head: &str) -> [(&'static str, String); 2] {
    let tag = &head[..8];
    let large = (0..ARTIFACT_LINES)
        .map(|n| format!("{tag} {n}\n"))
        .collect();
    [("dist/large", large), ("dist/small", format!("{tag}\n"))]
}

/// Makes changes until it is told to stop.
pub(crate) async fn make(github: GitHub, changes: Changes, stop: CancellationToken) -> Result<()> {
    for number in 0.. {
        while unsettled(&github, &changes) >= AT_ONCE && !stop.is_cancelled() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        if stop.is_cancelled() {
            break;
        }
        match number % 2 {
            0 => push(&github, &changes, number).await?,
            _ => propose(&github, &changes, number).await?,
        }
    }
    Ok(())
}

/// Commits that were not told their outcome yet.
fn unsettled(github: &GitHub, changes: &Changes) -> usize {
    let is_settled = |change: &Change| {
        let history = github.status_history(REPOSITORY, &change.head, AGGREGATE);
        history
            .last()
            .is_some_and(|status| status.state.is_terminal())
    };
    changes
        .all()
        .iter()
        .filter(|change| !is_settled(change))
        .count()
}

fn commit_on(branch: &str, number: usize) -> Commit {
    let ballast: Vec<u8> = (0..BALLAST)
        .map(|n| ((n * (number + 7)) % 251) as u8)
        .collect();
    Commit::on(branch)
        .message(&format!("Change {number}"))
        .file(FILE, suites().to_toml())
        .file(&format!("ballast-{}", number % 2), ballast)
        .file("number", number.to_string())
}

async fn push(github: &GitHub, changes: &Changes, number: usize) -> Result<()> {
    let head = github.commit(REPOSITORY, commit_on("main", number)).await?;
    changes.add(&head, Kind::Push);
    Ok(())
}

async fn propose(github: &GitHub, changes: &Changes, number: usize) -> Result<()> {
    let branch = format!("topic-{number}");
    let topic = |text: &str| {
        // Its own file, so that it merges whatever happens on the main branch.
        Commit::on(&branch).message(text).file(&branch, text)
    };
    let head = github
        .commit(REPOSITORY, topic("first").from("main"))
        .await?;
    let pull = github
        .open_pull_request(REPOSITORY, PullRequestSpec::from(&branch))
        .await?;
    if number % (2 * SUPERSEDED_EVERY) != 1 {
        changes.add(&head, Kind::PullRequest(pull));
        return Ok(());
    }
    changes.add(&head, Kind::Superseded(pull));
    let head = github.commit(REPOSITORY, topic("second")).await?;
    changes.add(&head, Kind::PullRequest(pull));
    Ok(())
}

/// Delivers again what did not arrive, as GitHub's own page or a reconciliation does.
pub(crate) async fn redeliver(github: GitHub, stop: CancellationToken) {
    while !stop.is_cancelled() {
        for delivery in github.deliveries() {
            if !delivery.is_delivered() && !delivery.attempts.is_empty() {
                // Whether it arrived is seen at the next look.
                github.redeliver(&delivery.guid).await.ok();
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
