//! GitHub's side: what it shows of each commit, and the ways in which it does not take, or takes late, what it is told.

use super::trouble::Outage;
use super::world::World;
use crate::github::Verdict;
use crate::model::{CommitStatus, StatusState};
use crate::report::StatusSink;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// What is shown: the last status of each context of each commit.
#[derive(Debug, Default)]
pub(super) struct GitHubSide {
    pub(super) shown: BTreeMap<(String, String), Shown>,
    /// How often each became pending again after it had ended.
    reopened: BTreeMap<(String, String), usize>,
    /// By people.
    pub(super) reruns: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) state: StatusState,
    description: String,
    /// The page it leads to, which tells the build or the job.
    url: String,
}

#[derive(Debug)]
pub(super) struct GitHub(pub(super) Arc<World>);

impl StatusSink for GitHub {
    fn post<'a>(
        &'a self,
        _repository: &'a str,
        sha: &'a str,
        status: &'a CommitStatus,
    ) -> BoxFuture<'a, Verdict> {
        self.answer(sha, status).boxed()
    }

    fn shows<'a>(
        &'a self,
        _repository: &'a str,
        sha: &'a str,
        status: &'a CommitStatus,
    ) -> BoxFuture<'a, Result<bool, Verdict>> {
        async move {
            self.asked(sha).await?;
            let key = (sha.to_owned(), status.context.clone());
            let state = self.0.state();
            Ok(state.github.shown.get(&key) == Some(&Shown::of(status)))
        }
        .boxed()
    }
}

impl Shown {
    fn of(status: &CommitStatus) -> Shown {
        Shown {
            state: status.state,
            description: status.description.clone(),
            url: status.target_url.clone(),
        }
    }
}

impl GitHub {
    /// Takes a request about a commit, or does not.
    async fn asked(&self, sha: &str) -> Result<(), Verdict> {
        let world = &self.0;
        let faults = &world.plan.faults;
        world.takes("github", 0, 400).await;
        if world.is_out(Outage::GitHub) || world.breaks(faults.github_fails, "github", 1) {
            return Err(later("502 Bad Gateway"));
        }
        let is_known = world
            .state()
            .github
            .shown
            .keys()
            .any(|(known, _)| known == sha);
        if !is_known && world.breaks(faults.github_unknown, "github", 2) {
            let why = "422 No commit found".to_owned();
            return Err(Verdict::NotYet { why });
        }
        if world.breaks(faults.github_limits, "github", 3) {
            let wait = world.draw("github", 3, |random| {
                random
                    .happens(60)
                    .then(|| Duration::from_secs(random.between(1, 6)))
            });
            let why = "429 Too Many Requests".to_owned();
            return Err(Verdict::Limited { wait, why });
        }
        Ok(())
    }

    async fn answer(&self, sha: &str, status: &CommitStatus) -> Verdict {
        if let Err(verdict) = self.asked(sha).await {
            return verdict;
        }
        let world = &self.0;
        world.show(sha, status);
        if world.breaks(world.plan.faults.github_late, "github", 4) {
            // It was done, and the answer is lost.
            tokio::time::sleep(Duration::from_secs(5)).await;
            return later("no answer in 5 s");
        }
        world.takes("github", 0, 50).await;
        Verdict::Sent { pause: None }
    }
}

fn later(why: &str) -> Verdict {
    Verdict::Later {
        why: why.to_owned(),
    }
}

/// The number at the end of a page's address.
fn number_of(url: &str) -> u64 {
    let digits = url.rsplit('/').next().unwrap_or_default();
    digits.parse().unwrap_or_default()
}

impl World {
    /// GitHub shows it, and nothing newer was shown before.
    fn show(&self, sha: &str, status: &CommitStatus) {
        let what = format!(
            "{} {}: {:?}, {}",
            &sha[..8],
            status.context,
            status.state,
            status.description
        );
        self.note("github", &what);
        let key = (sha.to_owned(), status.context.clone());
        let mut state = self.state();
        let new = Shown::of(status);
        let before = state.github.shown.insert(key.clone(), new.clone());
        drop(state);
        let Some(before) = before else { return };
        // What is pending may have been something else meanwhile, and never sent.
        if before == new && new.state.is_terminal() && !self.plan.jumps() && !self.plan.reruns() {
            self.violated(format_args!("GitHub is told twice: {what}"));
        }
        if number_of(&before.url) > number_of(&status.target_url) {
            self.violated(format_args!(
                "an older build's status replaces a newer one's: {what}"
            ));
        }
        let reopens = before.state.is_terminal() && !status.state.is_terminal();
        if reopens && before.url == status.target_url {
            let mut state = self.state();
            let times = state.github.reopened.entry(key).or_default();
            *times += 1;
            let times = *times;
            let is_one_too_many = times > self.plan.times_reopened(sha) + state.github.reruns;
            drop(state);
            if !is_one_too_many {
                return;
            }
            self.violated(format_args!("pending replaces what had ended: {what}"));
        }
    }
}
