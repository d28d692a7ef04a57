//! Things of which there are so many at the same time, and so many of one address.

use super::asker::Asker;
use futures::{Stream, StreamExt};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Counts what is held; clones count together.
#[derive(Debug, Clone)]
pub(super) struct Slots {
    held: Arc<Mutex<Held>>,
    most: u32,
    most_of_one: u32,
}

#[derive(Debug, Default)]
struct Held {
    all: u32,
    /// Only addresses that hold something.
    of: HashMap<IpAddr, u32>,
}

/// Room for one; given back when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    held: Arc<Mutex<Held>>,
    asker: Asker,
}

impl Slots {
    pub(super) fn new(most: u32, most_of_one: u32) -> Slots {
        Slots {
            held: Arc::default(),
            most,
            most_of_one,
        }
    }

    /// None when all are held, or all that one asker may have.
    pub(super) fn take(&self, asker: Asker) -> Option<Slot> {
        let mut held = lock(&self.held);
        if held.all >= self.most {
            return None;
        }
        if let Asker::One(address) = asker {
            let of_one = held.of.entry(address).or_default();
            if *of_one >= self.most_of_one {
                return None;
            }
            *of_one += 1;
        }
        held.all += 1;
        Some(Slot {
            held: self.held.clone(),
            asker,
        })
    }
}

impl Slot {
    /// The same stream, which holds the slot until it ends or nobody reads it any more.
    pub(super) fn held_by<S: Stream>(self, stream: S) -> impl Stream<Item = S::Item> {
        stream.map(move |item| {
            let _held = &self;
            item
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut held = lock(&self.held);
        held.all -= 1;
        if let Asker::One(address) = self.asker
            && let Some(of_one) = held.of.get_mut(&address)
        {
            *of_one -= 1;
            if *of_one == 0 {
                held.of.remove(&address);
            }
        }
    }
}

fn lock(held: &Mutex<Held>) -> MutexGuard<'_, Held> {
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_does_not_take_all_and_what_is_dropped_is_free() {
        let slots = Slots::new(4, 2);
        let one = |last| Asker::One([10, 0, 0, last].into());
        let first = slots.take(one(1)).unwrap();
        let _second = slots.take(one(1)).unwrap();
        assert!(slots.take(one(1)).is_none());
        let _third = slots.take(one(2)).unwrap();
        let _fourth = slots.take(Asker::Anybody).unwrap();
        assert!(slots.take(Asker::Anybody).is_none() && slots.take(one(3)).is_none());
        drop(first);
        assert!(slots.take(one(1)).is_some());
        drop(_second);
        assert_eq!(lock(&slots.held).of.len(), 1);
    }
}
