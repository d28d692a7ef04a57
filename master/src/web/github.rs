//! How it stands between the master and GitHub: what GitHub was not told, what it refused, when it was looked at.

use super::App;
use super::error::ApiError;
use super::views::{StatusView, status_view};
use crate::report::wording;
use crate::store::{Backlog, LookRow, StoreError};
use axum::Json;
use axum::extract::State;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

/// Refused statuses in one answer.
const MOST_REFUSED: i64 = 100;
/// A backlog that is younger is in order, and no page tells of it.
const NOTABLE: SignedDuration = SignedDuration::from_mins(2);

#[derive(Debug, Serialize)]
pub(super) struct GithubView {
    /// Statuses that GitHub was not told yet.
    unsent: i64,
    /// When the oldest of them changed.
    oldest_unsent_at: Option<Timestamp>,
    /// Why one of them could not be sent.
    trouble: Option<String>,
    /// Statuses that GitHub refused, of which the newest are listed.
    refused: i64,
    refused_statuses: Vec<RefusedView>,
    /// When each repository was compared with the database.
    looks: Vec<LookRow>,
    /// Events that GitHub could not deliver and that were fetched from its log.
    fetched_deliveries: i64,
}

#[derive(Debug, Serialize)]
struct RefusedView {
    repository: String,
    sha: String,
    build: String,
    changed_at: Timestamp,
    #[serde(flatten)]
    status: StatusView,
}

pub(super) async fn show(State(app): State<App>) -> Result<Json<GithubView>, ApiError> {
    let store = &app.ledger.store;
    let backlog = store.status_backlog().await?;
    let refused_statuses = store
        .refused_statuses(MOST_REFUSED)
        .await?
        .into_iter()
        .map(|row| RefusedView {
            repository: row.repository.clone(),
            sha: row.sha.clone(),
            build: row.generation.to_string(),
            changed_at: row.changed_at,
            status: status_view(row),
        })
        .collect();
    Ok(Json(GithubView {
        unsent: backlog.unsent,
        oldest_unsent_at: backlog.oldest,
        trouble: backlog.trouble,
        refused: backlog.refused,
        refused_statuses,
        looks: store.looks().await?,
        fetched_deliveries: store.fetched_deliveries().await?,
    }))
}

impl App {
    /// A sentence for every page, when GitHub has long not been told of something.
    pub(super) async fn github_notice(&self) -> Option<String> {
        let notice = async || -> Result<Option<String>, StoreError> {
            let backlog = self.ledger.store.status_backlog().await?;
            Ok(notice(&backlog, self.ledger.clock.now()))
        };
        notice().await.unwrap_or_else(|error| {
            tracing::warn!(%error, "the outbox cannot be looked at");
            None
        })
    }
}

fn notice(backlog: &Backlog, now: Timestamp) -> Option<String> {
    let oldest = backlog.oldest?;
    if now.duration_since(oldest) < NOTABLE {
        return None;
    }
    Some(wording::backlog(
        backlog.unsent,
        oldest,
        now,
        backlog.trouble.as_deref(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_tell_of_a_backlog_once_it_is_old() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let backlog = |secs| Backlog {
            unsent: 2,
            refused: 0,
            oldest: Some(now - SignedDuration::from_secs(secs)),
            trouble: Some("GitHub answered 502 Bad Gateway".to_owned()),
        };
        assert_eq!(notice(&Backlog::default(), now), None);
        assert_eq!(notice(&backlog(30), now), None);
        assert_eq!(
            notice(&backlog(180), now).unwrap(),
            "GitHub was not told of 2 statuses yet, the oldest for 3 min: GitHub answered 502 Bad Gateway"
        );
    }
}
