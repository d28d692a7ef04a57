//! The real store, on a file in memory, through one connection: what waits for it waits in one order.

use super::check::WITNESS;
use super::turns::{SqliteThread, wait_while};
use super::world::World;
use crate::store::{Store, is_outside_transactions};
use sqlx::SqlitePool;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteLockingMode,
    SqlitePoolOptions, SqliteSynchronous,
};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

#[derive(Debug, Default)]
pub(super) struct Database {
    pool: Mutex<Option<SqlitePool>>,
    opening: AtomicBool,
    /// Whoever has the connection stands still because the master is dead.
    frozen: Arc<AtomicBool>,
    /// Of the connection: a new one has a thread of its own.
    thread: Arc<Mutex<Arc<SqliteThread>>>,
    /// So many steps of SQLite from now a statement fails; nothing below 0.
    fails_in: Arc<AtomicI64>,
    /// Shared with each connection; the count tells when the last one is closed.
    open: Arc<()>,
}

impl Database {
    /// Opens the store. On a task of the runtime, not in its first future.
    pub(super) async fn open(&self, world: &Arc<World>) -> (Store, SqlitePool) {
        let current = Arc::clone(&self.thread);
        self.opening.store(true, Ordering::SeqCst);
        self.fails_in.store(-1, Ordering::SeqCst);
        let held = Arc::clone(&self.open);
        let options = options(&world.folder.join("vivarium.sqlite"))
            // Kept by the connection until SQLite has closed it.
            .collation("open", move |a, b| {
                debug_assert!(Arc::strong_count(&held) > 0);
                a.cmp(b)
            });
        let (world, frozen) = (Arc::clone(world), Arc::clone(&self.frozen));
        let fails_in = Arc::clone(&self.fails_in);
        let breaks = world.plan.faults.database_fails > 0;
        let countdown = Arc::clone(&fails_in);
        let broken = breaks.then(|| Arc::clone(&fails_in));
        let pool = pool_options()
            .after_connect(move |connection, _| {
                let thread = Arc::new(SqliteThread::default());
                *current.lock().expect("no panic") = Arc::clone(&thread);
                let countdown = Arc::clone(&countdown);
                Box::pin(async move {
                    let mut handle = connection.lock_handle().await?;
                    handle.set_progress_handler(1, move || {
                        thread.steps();
                        countdown.load(Ordering::SeqCst) < 0
                            || countdown.fetch_sub(1, Ordering::SeqCst) > 0
                    });
                    drop(handle);
                    // Its first steps.
                    sqlx::query("SELECT 1").execute(connection).await?;
                    Ok(())
                })
            })
            .before_acquire(move |_, _| {
                let (world, frozen) = (Arc::clone(&world), Arc::clone(&frozen));
                let fails_in = Arc::clone(&fails_in);
                Box::pin(async move {
                    let percent = world.plan.faults.database_fails;
                    let fails = world.breaks(percent, "database", 0);
                    let steps = world.draw("database", 0, |random| random.between(0, 400));
                    fails_in.store(if fails { steps as i64 } else { -1 }, Ordering::SeqCst);
                    frozen.store(true, Ordering::SeqCst);
                    world.step().await;
                    frozen.store(false, Ordering::SeqCst);
                    Ok(true)
                })
            })
            .after_release(move |connection, _| {
                let countdown = broken.clone();
                Box::pin(async move {
                    match countdown {
                        Some(countdown) => may_be_used_again(connection, &countdown).await,
                        None => Ok(true),
                    }
                })
            })
            .connect_with(options)
            .await
            .expect("the database opens");
        *self.pool.lock().expect("no panic") = Some(pool.clone());
        self.opening.store(false, Ordering::SeqCst);
        (Store::over(pool.clone(), pool.clone()), pool)
    }

    /// Its thread, if that has something to answer.
    pub(super) fn busy_thread(&self) -> Option<Arc<SqliteThread>> {
        let pool = self.pool.lock().expect("no panic");
        let is_in_use = pool.as_ref().is_some_and(|pool| {
            pool.num_idle() < pool.size() as usize && !self.frozen.load(Ordering::SeqCst)
        });
        let is_busy = is_in_use || self.opening.load(Ordering::SeqCst);
        is_busy.then(|| Arc::clone(&self.thread.lock().expect("no panic")))
    }

    /// The connections of a life that has ended are closed when this returns.
    pub(super) fn wait_until_closed(&self) {
        *self.pool.lock().expect("no panic") = None;
        self.thread.lock().expect("no panic").let_go();
        self.frozen.store(false, Ordering::SeqCst);
        wait_while(
            || Arc::strong_count(&self.open) > 1,
            "a connection stays open",
        );
    }
}

/// As in the real store. And an interruption, other than a disk that fails, may come after a BEGIN was carried out.
async fn may_be_used_again(
    connection: &mut SqliteConnection,
    fails_in: &AtomicI64,
) -> sqlx::Result<bool> {
    let is_outside = is_outside_transactions(connection).await?;
    // After the rollback that is under way: it may fail as well.
    fails_in.store(-1, Ordering::SeqCst);
    let was_inside = sqlx::query("ROLLBACK").execute(connection).await.is_ok();
    Ok(is_outside && !was_inside)
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Memory)
        .synchronous(SqliteSynchronous::Off)
        .locking_mode(SqliteLockingMode::Exclusive)
        .foreign_keys(true)
        // All rows of an answer come at once.
        .row_buffer_size(10_000)
}

fn pool_options() -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
}

/// The database as the master left it, for a look at the end.
pub(super) async fn open_plainly(path: &Path) -> SqlitePool {
    let pool = pool_options().connect_with(options(path)).await;
    pool.expect("the database opens")
}

/// An empty database of this version's form, to be copied.
pub(super) fn make_template(path: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let pool = pool_options()
            .connect_with(options(path))
            .await
            .expect("a new database");
        sqlx::migrate!("./migrations")
            .run(&pool)
            .await
            .expect("the migrations apply");
        sqlx::raw_sql(WITNESS)
            .execute(&pool)
            .await
            .expect("a trigger");
        pool.close().await;
    });
}
