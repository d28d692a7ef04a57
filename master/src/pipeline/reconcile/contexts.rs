//! Contexts of ours: none stays pending at GitHub when no build of its commit is under way.

use super::rules::is_ours;
use super::{Broken, Look};
use crate::model::{CommitStatus, StatusState};
use crate::store::StatusRow;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

impl Look<'_> {
    pub(super) async fn look_at_contexts(&mut self, heads: Vec<String>) -> Result<(), Broken> {
        let heads: HashSet<String> = heads.into_iter().collect();
        self.known.verified.retain(|sha, _| heads.contains(sha));
        for sha in heads {
            self.look_at_commit(&sha).await?;
        }
        Ok(())
    }

    async fn look_at_commit(&mut self, sha: &str) -> Result<(), Broken> {
        let ledger = &self.intake.ledger;
        let name = &self.repository.name;
        if ledger.store.is_under_way(name, sha).await? {
            return Ok(());
        }
        let rows = ledger.store.statuses_of(name, sha).await?;
        let print = fingerprint(&rows);
        if rows.iter().any(|row| self.is_fresh(row)) || self.known.verified.get(sha) == Some(&print)
        {
            return Ok(());
        }
        self.spend()?;
        let shown = self.github.shown_statuses(name, sha).await?;
        let mut is_right = true;
        for status in &shown {
            let row = rows.iter().find(|row| row.status.is_of(&status.context));
            let is_ours = row.is_some() || is_ours(status, |url| ledger.is_own_page(url));
            if is_ours && status.state == StatusState::Pending {
                is_right = false;
                self.tell_again(sha, &status.context).await?;
            } else if let Some(row) = row.filter(|row| differs(row, status)) {
                tracing::warn!(
                    repository = name,
                    sha,
                    context = row.status.context,
                    "GitHub shows `{}` where this master said `{}`: somebody else reports under this name",
                    status.state.as_str(),
                    row.status.state.as_str()
                );
            }
        }
        for row in &rows {
            if !shown.iter().any(|status| status.is_of(&row.status.context)) {
                is_right = false;
                self.tell_again(sha, &row.status.context).await?;
            }
        }
        if is_right {
            self.known.verified.insert(sha.to_owned(), print);
        }
        Ok(())
    }

    async fn tell_again(&mut self, sha: &str, context: &str) -> Result<(), Broken> {
        let name = &self.repository.name;
        if self.intake.ledger.tell_again(name, sha, context).await? {
            self.made_good += 1;
            tracing::info!(
                repository = name,
                sha,
                context,
                "GitHub does not show how it ended: it is told again"
            );
        }
        Ok(())
    }

    /// Still to be sent, or sent so lately that GitHub need not show it yet.
    fn is_fresh(&self, row: &StatusRow) -> bool {
        row.is_unsent() || self.when.began.duration_since(row.changed_at) < self.spreads
    }
}

/// Two terminal states that are not the same.
fn differs(row: &StatusRow, shown: &CommitStatus) -> bool {
    row.refused.is_none() && row.status.state.is_terminal() && row.status.state != shown.state
}

fn fingerprint(rows: &[StatusRow]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for row in rows {
        (row.id, row.version, row.sent_version, row.refused.is_some()).hash(&mut hasher);
    }
    hasher.finish()
}
