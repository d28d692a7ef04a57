use super::*;
use crate::store::deliveries::NewDelivery;
use bytes::Bytes;
use tempfile::TempDir;

async fn open() -> (TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("state.db")).await.unwrap();
    (dir, store)
}

fn delivery(guid: &str, bytes: usize) -> NewDelivery {
    NewDelivery {
        guid: guid.to_owned(),
        event: "push".to_owned(),
        body: Bytes::from(vec![b'x'; bytes]),
        sha256: guid.to_owned(),
        received_at: Timestamp::UNIX_EPOCH,
        outcome: None,
    }
}

/// What a commit leaves only in the memory of the machine is gone after a power cut.
#[tokio::test]
async fn a_commit_is_on_the_disk_before_it_is_told() {
    let (_dir, store) = open().await;
    for pool in [&store.writer, &store.reader] {
        let mode: String = sqlx::query_scalar("PRAGMA journal_mode")
            .fetch_one(pool)
            .await
            .unwrap();
        let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous")
            .fetch_one(pool)
            .await
            .unwrap();
        const FULL: i64 = 2;
        assert_eq!((mode.as_str(), synchronous), ("wal", FULL));
    }
}

/// SQLite ended the transaction by itself, and the connection refused every one after it.
#[tokio::test]
async fn a_full_database_takes_writes_again_once_there_is_room() {
    let (_dir, store) = open().await;
    let limit_pages = async |pages: &str| {
        sqlx::query(&format!("PRAGMA max_page_count = {pages}"))
            .execute(&store.writer)
            .await
            .unwrap();
    };
    // Less than the file has: SQLite takes the file's size then, so that nothing more fits.
    limit_pages("1").await;
    let mut refused = 0;
    for number in 0..3 {
        let guid = format!("full-{number}");
        let inserted = store.insert_delivery(&delivery(&guid, 1 << 20)).await;
        refused += usize::from(inserted.is_err());
    }
    assert_eq!(refused, 3);
    limit_pages("1000000").await;
    store
        .insert_delivery(&delivery("room", 1 << 20))
        .await
        .unwrap();
    let stored = store.recent_deliveries(9).await.unwrap();
    assert_eq!(stored.len(), 1);
}
