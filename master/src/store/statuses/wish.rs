//! What GitHub should show: wishes, and the rule of what may be written over what.

use super::{Reopen, StatusRow, Wanted, settled_at, status_of};
use crate::model::{BuildId, CommitStatus, StatusState};
use crate::store::{Store, StoreError, millis};
use jiff::Timestamp;
use sqlx::SqliteConnection;

/// Records what GitHub should show, inside the transaction of the change that leads to it.
pub async fn want_status(
    connection: &mut SqliteConnection,
    repository: &str,
    sha: &str,
    status: &CommitStatus,
    generation: BuildId,
    reopen: Reopen,
    now: Timestamp,
) -> Result<Wanted, StoreError> {
    let key = status.context.to_lowercase();
    let before = status_of(connection, repository, sha, &status.context).await?;
    let Some(before) = before else {
        sqlx::query(
            "INSERT INTO statuses (repository, sha, context_key, context, generation, state, description, target_url,
                                   changed_at, version)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 1)",
        )
        .bind(repository)
        .bind(sha)
        .bind(&key)
        .bind(&status.context)
        .bind(generation.0)
        .bind(status.state.as_str())
        .bind(&status.description)
        .bind(&status.target_url)
        .bind(millis(now))
        .execute(connection)
        .await?;
        return Ok(Wanted::Changed);
    };
    let wanted = compare(&before, status, generation, reopen);
    match wanted {
        Wanted::Outdated | Wanted::Ended => return Ok(wanted),
        Wanted::Unchanged => {
            sqlx::query("UPDATE statuses SET generation = ? WHERE id = ?")
                .bind(generation.0)
                .bind(before.id.0)
                .execute(connection)
                .await?;
            return Ok(wanted);
        }
        Wanted::Changed => {}
    }
    // A pause after a failure is waited out: a request that seemed to fail may still arrive, and must not arrive last.
    let pause = if before.tries > 0 && before.refused.is_none() {
        millis(before.next_try_at)
    } else {
        0
    };
    let settles = status.state == StatusState::Pending
        && before.sent_state == Some(StatusState::Pending)
        && before.generation == generation;
    let next_try_at = if settles {
        pause.max(millis(settled_at(now)))
    } else {
        pause
    };
    sqlx::query(
        "UPDATE statuses SET context = ?, generation = ?, state = ?, description = ?, target_url = ?, changed_at = ?,
                version = version + 1, next_try_at = ?, refused = NULL
         WHERE id = ?",
    )
    .bind(&status.context)
    .bind(generation.0)
    .bind(status.state.as_str())
    .bind(&status.description)
    .bind(&status.target_url)
    .bind(millis(now))
    .bind(next_try_at)
    .bind(before.id.0)
    .execute(connection)
    .await?;
    Ok(Wanted::Changed)
}

/// The rule of what may be written over what.
pub(super) fn compare(
    before: &StatusRow,
    status: &CommitStatus,
    generation: BuildId,
    reopen: Reopen,
) -> Wanted {
    if generation < before.generation {
        return Wanted::Outdated;
    }
    let is_newer = generation > before.generation;
    if before.status == *status {
        // What was refused is worth another try once somebody builds again.
        let again = before.refused.is_some() && (is_newer || reopen == Reopen::Yes);
        return if again {
            Wanted::Changed
        } else {
            Wanted::Unchanged
        };
    }
    let reopens = before.status.state.is_terminal() && !status.state.is_terminal();
    if reopens && !is_newer && reopen == Reopen::No {
        return Wanted::Ended;
    }
    Wanted::Changed
}

impl Store {
    /// [`want_status`] in a transaction of its own.
    pub async fn want_status(
        &self,
        repository: &str,
        sha: &str,
        status: &CommitStatus,
        generation: BuildId,
        reopen: Reopen,
        now: Timestamp,
    ) -> Result<Wanted, StoreError> {
        let mut transaction = self.write().await?;
        let wanted = want_status(
            &mut transaction,
            repository,
            sha,
            status,
            generation,
            reopen,
            now,
        )
        .await?;
        transaction.commit().await?;
        Ok(wanted)
    }
}
