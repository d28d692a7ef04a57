//! One act at a time per attempt: a destroy waits for the start it overtook, and a sweep knows what is new.

use crate::model::AttemptId;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::OwnedMutexGuard;
use tokio::time::Instant;

#[derive(Debug, Default)]
pub(super) struct Turns {
    entries: Mutex<HashMap<AttemptId, Entry>>,
}

#[derive(Debug, Default)]
struct Entry {
    turn: Arc<tokio::sync::Mutex<()>>,
    starting: Starting,
}

#[derive(Debug, Default, Clone, Copy)]
enum Starting {
    #[default]
    Never,
    Now,
    Until(Instant),
}

/// Held while something is done to an attempt's machine.
#[derive(Debug)]
pub(super) struct Turn {
    _guard: OwnedMutexGuard<()>,
}

impl Turns {
    pub(super) async fn take(&self, attempt: AttemptId) -> Turn {
        let turn = Arc::clone(&self.lock().entry(attempt).or_default().turn);
        Turn {
            _guard: turn.lock_owned().await,
        }
    }

    pub(super) fn start_begins(&self, attempt: AttemptId) {
        self.lock().entry(attempt).or_default().starting = Starting::Now;
    }

    pub(super) fn start_ended(&self, attempt: AttemptId) {
        self.lock().entry(attempt).or_default().starting = Starting::Until(Instant::now());
    }

    /// Whether the attempt was still being started at that moment, or later: who listed the live attempts then may
    /// not have known it.
    pub(super) fn was_starting_since(&self, attempt: AttemptId, moment: Instant) -> bool {
        match self.lock().get(&attempt).map(|entry| entry.starting) {
            None | Some(Starting::Never) => false,
            Some(Starting::Now) => true,
            Some(Starting::Until(end)) => end >= moment,
        }
    }

    /// Nothing is left of the attempt; its entry goes unless somebody waits for a turn.
    pub(super) fn forget(&self, attempt: AttemptId, turn: Turn) {
        let mut entries = self.lock();
        drop(turn);
        if let Some(entry) = entries.get_mut(&attempt) {
            entry.starting = Starting::Never;
            if Arc::strong_count(&entry.turn) == 1 {
                entries.remove(&attempt);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AttemptId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
