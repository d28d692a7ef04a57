//! Changes that make good what was missed: a merge group that is gone, a context that GitHub still shows as pending.

use super::Ledger;
use crate::github::answer;
use crate::model::{BuildId, BuildState, CommitStatus, Ending, StatusState, Trigger};
use crate::report::wording;
use crate::store::{Reopen, StatusRow, StoreError, heads, send_again, status_of, want_status};

impl Ledger {
    /// Cancels the build that a merge queue asked for, if it has not ended; says which.
    pub async fn cancel_merge_group(
        &self,
        repository: &str,
        key: &str,
        ending: &Ending,
    ) -> Result<Option<BuildId>, StoreError> {
        let now = self.clock.now();
        let mut tx = self.store.write().await?;
        let build = heads::build_of_key(&mut tx, repository, key).await?;
        let under_way = build.filter(|build| {
            build.state != BuildState::Finished && build.new.trigger == Trigger::MergeGroup
        });
        let Some(build) = under_way else {
            return Ok(None);
        };
        self.cancel_in(&mut tx, build.id, ending, now).await?;
        tx.commit().await?;
        self.signals.state_changed();
        Ok(Some(build.id))
    }

    /// Whether a link leads to this master.
    pub fn is_own_page(&self, url: &str) -> bool {
        let base = self.public_url.as_str().trim_end_matches('/');
        url.strip_prefix(base)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// GitHub shows something else than it was told for a context of this commit, or knows it as pending although no
    /// build of the commit is under way. True when it will be told.
    pub async fn tell_again(
        &self,
        repository: &str,
        sha: &str,
        context: &str,
    ) -> Result<bool, StoreError> {
        let now = self.clock.now();
        let mut tx = self.store.write().await?;
        if heads::is_under_way(&mut tx, repository, sha).await? {
            return Ok(false);
        }
        let mut row = status_of(&mut tx, repository, sha, context).await?;
        if row
            .as_ref()
            .is_some_and(|row| row.is_unsent() || is_refused_for_good(row))
        {
            return Ok(false);
        }
        if let Some(pending) = row.as_ref().filter(|row| !row.status.state.is_terminal()) {
            // Its build has ended: what that means is told first.
            self.write_statuses(&mut tx, pending.generation, now)
                .await?;
            row = status_of(&mut tx, repository, sha, context).await?;
        }
        match row {
            Some(row) if row.is_unsent() => {}
            Some(row) if row.status.state.is_terminal() => send_again(&mut tx, row.id, now).await?,
            row => {
                let generation = row.as_ref().map_or(BuildId(0), |row| row.generation);
                let status = CommitStatus {
                    context: row.map_or_else(|| context.to_owned(), |row| row.status.context),
                    state: StatusState::Error,
                    description: wording::ABANDONED.to_owned(),
                    target_url: self.public_url.to_string(),
                };
                want_status(
                    &mut tx,
                    repository,
                    sha,
                    &status,
                    generation,
                    Reopen::No,
                    now,
                )
                .await?;
            }
        }
        tx.commit().await?;
        self.signals.state_changed();
        Ok(true)
    }
}

fn is_refused_for_good(row: &StatusRow) -> bool {
    row.refused.as_deref().is_some_and(answer::is_for_good)
}
