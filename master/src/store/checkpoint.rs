//! Moves what was written from the write-ahead log into the database file, beside the writer.
//!
//! SQLite by itself does this inside a commit, each thousand pages: at a brisk pace that is one commit in a hundred that
//! waits for megabytes to reach the disk instead of for its own few pages.

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{SqliteExecutor, SqlitePool};
use std::time::Duration;
use tokio_util::task::AbortOnDropHandle;

/// Between two looks; one with nothing to move costs nothing.
const PAUSE: Duration = Duration::from_secs(1);
/// While writes never pause, the log cannot begin anew by itself. With so many pages in it (64 MiB) the writer is held
/// up for the moment that this takes.
const MOST_PAGES: i64 = 16 * 1024;

/// Looks every second, on a connection of its own.
#[derive(Debug)]
pub(super) struct Checkpointer {
    own: SqlitePool,
    looks: AbortOnDropHandle<()>,
}

impl Checkpointer {
    pub(super) async fn start(
        options: SqliteConnectOptions,
        writer: SqlitePool,
    ) -> Result<Checkpointer, sqlx::Error> {
        let own = super::one_that_writes().connect_with(options).await?;
        let looks = tokio::spawn(run(own.clone(), writer));
        Ok(Checkpointer {
            own,
            looks: AbortOnDropHandle::new(looks),
        })
    }

    pub(super) async fn close(&self) {
        self.looks.abort();
        self.own.close().await;
    }
}

async fn run(own: SqlitePool, writer: SqlitePool) {
    let mut is_stuck = false;
    loop {
        tokio::time::sleep(PAUSE).await;
        let looked = look(&own, &writer, MOST_PAGES).await;
        // Said once, not every second.
        if let Err(error) = &looked
            && !is_stuck
        {
            tracing::warn!(%error, "the write-ahead log cannot be moved into the database, and grows; trying again");
        }
        is_stuck = looked.is_err();
    }
}

async fn look(own: &SqlitePool, writer: &SqlitePool, most_pages: i64) -> Result<(), sqlx::Error> {
    let pages = pages_after(own, "PRAGMA wal_checkpoint(PASSIVE)").await?;
    if pages > most_pages {
        // In the writer's own turn: nobody writes meanwhile, and what came since the line above is little.
        pages_after(writer, "PRAGMA wal_checkpoint(RESTART)").await?;
    }
    Ok(())
}

/// How many pages the log holds after the statement, moved or not.
async fn pages_after(
    connection: impl SqliteExecutor<'_>,
    statement: &'static str,
) -> Result<i64, sqlx::Error> {
    let (_busy, pages, _moved): (i64, i64, i64) =
        sqlx::query_as(statement).fetch_one(connection).await?;
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{NewDelivery, Store};
    use jiff::Timestamp;

    async fn insert(store: &Store, guid: String) {
        let delivery = NewDelivery {
            guid,
            event: "push".to_owned(),
            body: vec![b'x'; 64 << 10].into(),
            sha256: String::new(),
            received_at: Timestamp::now(),
            outcome: None,
        };
        store.insert_delivery(&delivery).await.expect("inserted");
    }

    #[tokio::test]
    async fn the_log_is_used_again_from_its_beginning() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("vivarium.sqlite");
        let store = Store::open(&path).await.expect("opened");
        let log = folder.path().join("vivarium.sqlite-wal");
        let mut sizes = Vec::new();
        for round in 0..3 {
            for number in 0..30 {
                insert(&store, format!("{round}-{number}")).await;
            }
            sizes.push(std::fs::metadata(&log).expect("a log").len());
            let own = &store.checkpointer.as_ref().expect("one").own;
            look(own, &store.writer, 10).await.expect("moved");
        }
        assert!(sizes[2] <= sizes[0] * 3 / 2, "it grows: {sizes:?}");
        // All of it is in the database's own file now.
        let copy = folder.path().join("copy.sqlite");
        std::fs::copy(&path, &copy).expect("copied");
        let copy = Store::open(&copy).await.expect("opened");
        let counts = copy.delivery_counts().await.expect("counted");
        assert_eq!(counts.stored, 90);
    }

    #[tokio::test]
    async fn a_commit_never_moves_the_log_by_itself() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::open(&folder.path().join("vivarium.sqlite"))
            .await
            .expect("opened");
        let own = &store.checkpointer.as_ref().expect("one").own;
        for pool in [&store.writer, own] {
            let pages: i64 = sqlx::query_scalar("PRAGMA wal_autocheckpoint")
                .fetch_one(pool)
                .await
                .expect("answered");
            assert_eq!(pages, 0);
        }
    }
}
