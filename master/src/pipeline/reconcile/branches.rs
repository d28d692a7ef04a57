//! Tips of branches that are tested, and of merge groups: each has its build; a group that is gone has none under way.

use super::rules::{Missing, beginnings, is_watched, missing};
use super::{Broken, Look};
use crate::event::form::{CommitAnswer, Reference};
use crate::event::subjects::{Tip, committed_at, dropped, is_of_merge_queue};
use crate::pipeline::intake::wanted::{Publish, commit_key, publish};
use std::collections::HashSet;

impl Look<'_> {
    /// Gives the commits at the tips.
    pub(super) async fn look_at_branches(&mut self) -> Result<Vec<String>, Broken> {
        let mut tips = Vec::new();
        let mut is_whole = true;
        for beginning in beginnings(&self.repository.branches) {
            self.spend()?;
            let pages = self.known.branches.entry(beginning.clone()).or_default();
            let listed = self
                .github
                .branches(&self.repository.name, &beginning, pages)
                .await?;
            is_whole &= listed.is_whole;
            tips.extend(listed.items.iter().filter_map(|item| self.tip(item)));
        }
        for tip in &tips {
            self.look_at_tip(tip).await?;
        }
        if is_whole {
            self.look_for_dropped_groups(&tips).await?;
        }
        Ok(tips.into_iter().map(|tip| tip.sha).collect())
    }

    fn tip(&self, reference: &Reference) -> Option<Tip> {
        let tip = match Tip::of(reference)? {
            Ok(tip) => tip,
            Err(error) => {
                tracing::debug!(repository = self.repository.name, %error, "a branch is passed over");
                return None;
            }
        };
        is_watched(&tip.branch, |name| self.repository.tests_branch(name)).then_some(tip)
    }

    async fn look_at_tip(&mut self, tip: &Tip) -> Result<(), Broken> {
        let publish = match is_of_merge_queue(&tip.branch) {
            true => Publish::No,
            false => publish(self.repository, &tip.branch),
        };
        let key = commit_key(&tip.sha, publish);
        let store = &self.intake.ledger.store;
        let known = store.build_of_key(&self.repository.name, &key).await?;
        let is_missing = match missing(known.as_ref(), None, self.when) {
            Missing::Nothing => false,
            Missing::TakeUp => true,
            Missing::Build => !self.was_tested_before(&tip.sha, &key).await?,
        };
        if !is_missing {
            return Ok(());
        }
        self.spend()?;
        let commit: Option<CommitAnswer> =
            self.github.commit(&self.repository.name, &tip.sha).await?;
        // Gone since the list was made.
        let Some(commit) = commit else {
            return Ok(());
        };
        let is_too_old = committed_at(&commit).is_some_and(|at| at < self.when.oldest);
        match tip.intent(&commit, self.when.began).filter(|_| !is_too_old) {
            Some(intent) => {
                let why = format!("a commit on `{}` that has no build", tip.branch);
                self.carry_out(vec![intent], &why).await
            }
            None => {
                self.known.settled.insert(key);
                Ok(())
            }
        }
    }

    async fn look_for_dropped_groups(&mut self, tips: &[Tip]) -> Result<(), Broken> {
        let present: HashSet<&str> = tips.iter().map(|tip| tip.sha.as_str()).collect();
        let under_way = self
            .intake
            .ledger
            .store
            .merge_groups_under_way(&self.repository.name, self.when.began)
            .await?;
        for sha in under_way {
            if !present.contains(sha.as_str()) {
                let intent = dropped(&sha).map_err(anyhow::Error::from)?;
                self.carry_out(vec![intent], "that a merge group is gone")
                    .await?;
            }
        }
        Ok(())
    }
}
