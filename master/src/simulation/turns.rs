//! The order of what other threads do. A paused clock goes on when all tasks wait, and knows nothing of SQLite's thread;
//! and which of two threads is done first is chance. So whenever the runtime has nothing left to do, one thread works,
//! and no other does meanwhile:
//!
//! ```text
//!   tasks wait ─► SQLite has something to answer? let its thread work until it waits ─► tasks go on
//!                   └no► work on files was asked for? let its thread run to its end ─► tasks go on
//!                           └no► the clock goes to the next timer
//! ```

use super::database::Database;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};
use tokio::runtime::Handle;

/// How long a thread may take by a real clock before the run is given up: a machine may be busy.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// The thread for work on files: it ends when it has none, and does not begin before it may.
#[derive(Debug, Default)]
pub(super) struct FileThread {
    state: Mutex<FileState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct FileState {
    /// Made, and not ended.
    threads: usize,
    may_work: bool,
}

impl FileThread {
    pub(super) fn is_made(&self) {
        self.state().threads += 1;
    }

    /// On the thread itself, before its first work.
    pub(super) fn begins(&self) {
        self.wait_while(|state| !state.may_work, "a thread for files never works");
    }

    pub(super) fn ends(&self) {
        self.state().threads -= 1;
        self.changed.notify_all();
    }

    /// From now on it needs no leave: the life is over.
    pub(super) fn let_go(&self) {
        self.state().may_work = true;
        self.changed.notify_all();
    }

    fn has_work(&self) -> bool {
        self.state().threads > 0
    }

    fn work(&self) {
        self.let_go();
        self.wait_while(|state| state.threads > 0, "work on files does not end");
        self.state().may_work = false;
    }

    fn state(&self) -> MutexGuard<'_, FileState> {
        self.state.lock().expect("no panic")
    }

    fn wait_while(&self, condition: impl Fn(&FileState) -> bool, otherwise: &str) {
        let waited = self
            .changed
            .wait_timeout_while(self.state(), PATIENCE, |state| condition(state));
        let is_late = waited.expect("no panic").1.timed_out();
        assert!(!is_late, "{otherwise}");
    }
}

/// SQLite's thread: what it does to a statement it does while all tasks wait, so that no task sees how far it has come.
#[derive(Debug, Default)]
pub(super) struct SqliteThread {
    may_work: AtomicBool,
    /// It waits until it may.
    waits: AtomicBool,
    gate: Mutex<()>,
    changed: Condvar,
    /// What the kernel says of it, from its first statement on.
    stat: OnceLock<File>,
}

impl SqliteThread {
    /// On the thread itself, again and again in each statement, the last time before its answer.
    pub(super) fn steps(&self) {
        self.stat
            .get_or_init(|| File::open("/proc/thread-self/stat").expect("Linux has it"));
        if self.may_work.load(Ordering::SeqCst) {
            return;
        }
        let gate = self.gate.lock().expect("no panic");
        self.waits.store(true, Ordering::SeqCst);
        let waited = self
            .changed
            .wait_timeout_while(gate, PATIENCE, |()| !self.may_work.load(Ordering::SeqCst));
        let is_late = waited.expect("no panic").1.timed_out();
        assert!(!is_late, "SQLite never works");
        self.waits.store(false, Ordering::SeqCst);
    }

    /// From now on it needs no leave: the life is over.
    pub(super) fn let_go(&self) {
        let _gate = self.gate.lock().expect("no panic");
        self.may_work.store(true, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Until it has answered, and has nothing else to do.
    fn work(&self, is_woken: impl Fn() -> bool) {
        self.let_go();
        wait_while(
            || !is_woken() || !self.is_idle(),
            "a task keeps the database's connection while it waits for something else",
        );
        self.may_work.store(false, Ordering::SeqCst);
    }

    fn is_idle(&self) -> bool {
        let Some(stat) = self.stat.get() else {
            // The connection is being opened, and one task alone waits for it.
            return true;
        };
        if self.waits.load(Ordering::SeqCst) {
            return false;
        }
        let mut text = [0; 64];
        let Ok(length) = stat.read_at(&mut text, 0) else {
            // It has ended, because its connection is closed.
            return true;
        };
        // 4711 (sqlx-sqlite-wor) S …
        let state = text[..length].rsplit(|byte| *byte == b')').next();
        state.is_some_and(|rest| rest.starts_with(b" S"))
    }
}

/// Called when all tasks wait; returns whether another thread has woken one.
pub(super) fn take_a_turn(runtime: &Handle, database: &Arc<Database>, files: &FileThread) -> bool {
    let is_woken = || runtime.metrics().global_queue_depth() > 0;
    if !is_woken() {
        if let Some(thread) = database.busy_thread() {
            thread.work(is_woken);
        } else if files.has_work() {
            files.work();
        }
    }
    is_woken()
}

/// Keeps this thread and those that it makes on one processor: only one of them works at a time, and to wake one on
/// another processor takes longer than what it has to do.
pub(super) fn stay_on_processor(number: usize) {
    let this = nix::unistd::Pid::from_raw(0);
    let Ok(allowed) = sched_getaffinity(this) else {
        return;
    };
    let mut allowed = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu) == Ok(true));
    let mut one = CpuSet::new();
    if let Some(cpu) = allowed.nth(number)
        && one.set(cpu).is_ok()
        && let Err(error) = sched_setaffinity(this, &one)
    {
        println!("the schedules take longer: a thread cannot stay on its processor: {error}");
    }
}

/// The others have this processor meanwhile.
pub(super) fn wait_while(condition: impl Fn() -> bool, otherwise: &str) {
    let mut looks = 0_u32;
    let mut began = None;
    while condition() {
        looks += 1;
        std::thread::yield_now();
        let began = began.get_or_insert_with(Instant::now);
        assert!(
            !looks.is_multiple_of(1000) || began.elapsed() < PATIENCE,
            "{otherwise}"
        );
    }
}
