//! How machines came up, and what that means for their platforms.

use super::Ledger;
use crate::model::Attempt;
use crate::model::service::{Boot, Outcome, after_boot};
use crate::store::{Decided, StoreError, attempts, platform_boots};
use sqlx::SqliteConnection;

/// A machine that did not come up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedBoot {
    /// What its platform's files were.
    pub files: String,
}

impl Ledger {
    /// Writes down how an attempt ends, before anybody is told; and once, if its machine did not come up, that this was so.
    pub async fn decide(
        &self,
        attempt: &Attempt,
        decided: Decided<'_>,
        failed_boot: Option<&FailedBoot>,
    ) -> Result<(), StoreError> {
        let mut tx = self.store.write().await?;
        let is_first = attempts::decide_ending(&mut tx, attempt.id, decided).await?;
        if let Some(failed) = failed_boot.filter(|_| is_first) {
            let outcome = Outcome::Failed(&decided.ending.message);
            self.count_boot(
                &mut tx,
                &attempt.platform,
                Boot::Job,
                &failed.files,
                outcome,
            )
            .await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Writes down that an attempt's machine came up, made of these files. Safe to repeat.
    pub async fn record_arrival(&self, attempt: &Attempt, files: &str) -> Result<(), StoreError> {
        let mut tx = self.store.write().await?;
        attempts::write_boot(&mut tx, attempt.id, &attempt.boot).await?;
        self.count_boot(&mut tx, &attempt.platform, Boot::Job, files, Outcome::Up)
            .await?;
        Ok(tx.commit().await?)
    }

    /// Writes down how a canary boot ended.
    pub async fn record_canary(
        &self,
        platform: &str,
        files: &str,
        outcome: Outcome<'_>,
    ) -> Result<(), StoreError> {
        let mut tx = self.store.write().await?;
        self.count_boot(&mut tx, platform, Boot::Canary, files, outcome)
            .await?;
        tx.commit().await?;
        self.signals.scheduling.notify_one();
        Ok(())
    }

    async fn count_boot(
        &self,
        tx: &mut SqliteConnection,
        platform: &str,
        boot: Boot,
        files: &str,
        outcome: Outcome<'_>,
    ) -> Result<(), StoreError> {
        let (limit, now) = (self.config.limits.platform_failures, self.clock.now());
        platform_boots::update(tx, platform, |before| {
            after_boot(before, boot, files, outcome, limit, now)
        })
        .await
    }
}
