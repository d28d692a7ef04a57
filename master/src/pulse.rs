//! Signs of life: each loop says that it goes on, and somebody notices when one does not.
//!
//! A master whose process lives but whose queue stands still is worse than one that ended: systemd starts the latter
//! anew. So the watchdog is fed, and `/healthz` answers well, only while every loop comes round.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The loops of a master; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Pulses {
    loops: Arc<Mutex<Vec<Beat>>>,
}

#[derive(Debug)]
struct Beat {
    name: &'static str,
    /// The longest that one round may take.
    at_most: Duration,
    last: Instant,
    has_ended: bool,
}

/// One loop's own; dropped with it.
#[derive(Debug)]
pub struct Pulse {
    loops: Arc<Mutex<Vec<Beat>>>,
    place: usize,
}

impl Pulses {
    /// Watches a loop from now on. `at_most` is far beyond the longest round that is in order.
    pub fn watch(&self, name: &'static str, at_most: Duration) -> Pulse {
        let mut loops = lock(&self.loops);
        loops.push(Beat {
            name,
            at_most,
            last: Instant::now(),
            has_ended: false,
        });
        Pulse {
            loops: Arc::clone(&self.loops),
            place: loops.len() - 1,
        }
    }

    /// A sentence on each loop that does not go on.
    pub fn stuck(&self) -> Vec<String> {
        lock(&self.loops)
            .iter()
            .filter_map(|beat| {
                let silent = beat.last.elapsed();
                if beat.has_ended {
                    Some(format!("the loop `{}` broke off", beat.name))
                } else if silent > beat.at_most {
                    let secs = silent.as_secs();
                    Some(format!("the loop `{}` hangs for {secs} s", beat.name))
                } else {
                    None
                }
            })
            .collect()
    }
}

impl Pulse {
    /// The loop goes on.
    pub fn beat(&self) {
        if let Some(beat) = lock(&self.loops).get_mut(self.place) {
            beat.last = Instant::now();
        }
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        if let Some(beat) = lock(&self.loops).get_mut(self.place) {
            beat.has_ended = true;
        }
    }
}

fn lock(loops: &Mutex<Vec<Beat>>) -> MutexGuard<'_, Vec<Beat>> {
    loops.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_hangs_or_broke_off_is_named() {
        let pulses = Pulses::default();
        let lively = pulses.watch("lively", Duration::from_secs(3600));
        let hanging = pulses.watch("hanging", Duration::ZERO);
        let broken = pulses.watch("broken", Duration::from_secs(3600));
        drop(broken);
        std::thread::yield_now();
        let stuck = pulses.stuck();
        assert_eq!(
            stuck,
            [
                "the loop `hanging` hangs for 0 s",
                "the loop `broken` broke off"
            ]
        );
        drop((lively, hanging));
    }
}
