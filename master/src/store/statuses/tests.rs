use super::wish::compare;
use super::*;
use crate::store::Store;
use jiff::SignedDuration;
use proptest::prelude::*;

fn status(state: StatusState, description: &str) -> CommitStatus {
    CommitStatus {
        context: "vivarium".into(),
        state,
        description: description.into(),
        target_url: String::new(),
    }
}

async fn store() -> (Store, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("vivarium.db"))
        .await
        .unwrap();
    (store, folder)
}

#[tokio::test]
async fn a_wish_lives_and_dies_with_the_transaction_it_belongs_to() {
    let (store, _folder) = store().await;
    let pending = status(StatusState::Pending, "Waiting");
    for commits in [false, true] {
        let mut transaction = store.writer.begin().await.unwrap();
        let (build, now) = (BuildId(1), Timestamp::now());
        want_status(
            &mut transaction,
            "o/r",
            "a",
            &pending,
            build,
            Reopen::No,
            now,
        )
        .await
        .unwrap();
        if commits {
            transaction.commit().await.unwrap();
        } else {
            transaction.rollback().await.unwrap();
        }
        let backlog = store.status_backlog().await.unwrap();
        assert_eq!(backlog.unsent, i64::from(commits));
        assert_eq!(backlog.oldest.is_some(), commits);
    }
}

#[tokio::test]
async fn a_new_wish_waits_out_the_pause_after_a_failure() {
    let (store, _folder) = store().await;
    let (now, later) = (
        Timestamp::now(),
        Timestamp::now() + SignedDuration::from_secs(30),
    );
    let want = async |state| {
        let status = status(state, "text");
        let (build, reopen) = (BuildId(1), Reopen::No);
        store
            .want_status("o/r", "a", &status, build, reopen, now)
            .await
            .unwrap()
    };
    assert_eq!(want(StatusState::Pending).await, Wanted::Changed);
    let id = store.due_statuses(now, 1).await.unwrap()[0];
    store.retry_status_at(id, later, "500").await.unwrap();
    assert_eq!(want(StatusState::Success).await, Wanted::Changed);
    assert!(store.due_statuses(now, 1).await.unwrap().is_empty());
    assert_eq!(store.due_statuses(later, 1).await.unwrap(), [id]);
    // An answer to an older version, or a refusal of it, does not settle the newer one.
    store.status_refused(id, 1, "no").await.unwrap();
    assert!(store.status_row(id).await.unwrap().unwrap().is_unsent());
    store
        .status_sent(id, 1, StatusState::Pending, now)
        .await
        .unwrap();
    assert!(store.status_row(id).await.unwrap().unwrap().is_unsent());
    store
        .status_sent(id, 2, StatusState::Success, now)
        .await
        .unwrap();
    assert!(!store.status_row(id).await.unwrap().unwrap().is_unsent());
}

/// A person who reads `vivarium` as failed looks for the job that failed: it must be there by then.
#[tokio::test]
async fn the_sum_is_sent_after_its_parts_unless_one_cannot_be_sent() {
    let (store, _folder) = store().await;
    let now = Timestamp::now();
    let want = async |context: &str| {
        let status = CommitStatus {
            context: context.into(),
            ..status(StatusState::Failure, "no")
        };
        let (build, reopen) = (BuildId(1), Reopen::No);
        store
            .want_status("o/r", "a", &status, build, reopen, now)
            .await
            .unwrap();
    };
    want(CommitStatus::AGGREGATE).await;
    want("vivarium/test (one)").await;
    want("vivarium/test (two)").await;
    let due = async || store.due_statuses(now, 9).await.unwrap();
    let parts = due().await;
    assert_eq!(parts.len(), 2);
    store
        .status_sent(parts[0], 1, StatusState::Failure, now)
        .await
        .unwrap();
    assert_eq!(due().await, [parts[1]]);
    store
        .retry_status_at(parts[1], now + SignedDuration::from_secs(9), "500")
        .await
        .unwrap();
    let sum = store.status_row(due().await[0]).await.unwrap().unwrap();
    assert_eq!(sum.status.context, CommitStatus::AGGREGATE);
}

proptest! {
    #[test]
    fn nothing_older_is_written_over_anything_newer(
        before in (1_i64..4, 0_usize..4), after in (1_i64..4, 0_usize..4), reopen in any::<bool>(), refused in any::<bool>(),
    ) {
        let row = StatusRow {
            id: StatusId(1),
            repository: "o/r".into(),
            sha: "a".into(),
            generation: BuildId(before.0),
            status: status(StatusState::ALL[before.1], "before"),
            changed_at: Timestamp::UNIX_EPOCH,
            version: 1,
            sent_version: 1,
            sent_state: None,
            tries: 0,
            next_try_at: Timestamp::UNIX_EPOCH,
            trouble: None,
            refused: refused.then(|| "no".into()),
        };
        let wish = status(StatusState::ALL[after.1], "after");
        let reopen = if reopen { Reopen::Yes } else { Reopen::No };
        let wanted = compare(&row, &wish, BuildId(after.0), reopen);
        prop_assert_eq!(wanted == Wanted::Outdated, after.0 < before.0);
        let reopens = row.status.state.is_terminal() && !wish.state.is_terminal();
        prop_assert_eq!(wanted == Wanted::Ended, after.0 == before.0 && reopens && reopen == Reopen::No);
    }
}
