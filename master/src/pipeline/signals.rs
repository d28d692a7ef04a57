//! Wake-ups between the loops. They only make the next look come sooner: each loop also looks by itself.

use std::sync::Arc;
use tokio::sync::{Notify, watch};

/// One notifier a loop, and a counter for those who show state; clones share them.
#[derive(Debug, Clone)]
pub struct Signals {
    /// Deliveries were stored.
    pub deliveries: Arc<Notify>,
    /// Builds may want preparing.
    pub preparation: Arc<Notify>,
    /// Jobs may want slots, or running ones may be cancelled.
    pub scheduling: Arc<Notify>,
    /// The outbox may have something to send.
    pub outbox: Arc<Notify>,
    changes: watch::Sender<u64>,
}

impl Default for Signals {
    fn default() -> Self {
        Signals {
            deliveries: Arc::default(),
            preparation: Arc::default(),
            scheduling: Arc::default(),
            outbox: Arc::default(),
            changes: watch::Sender::new(0),
        }
    }
}

impl Signals {
    /// Rows changed: wakes every loop that acts on rows.
    pub fn state_changed(&self) {
        self.preparation.notify_one();
        self.scheduling.notify_one();
        self.outbox.notify_one();
        self.changes.send_modify(|count| *count += 1);
    }

    /// Tells of each change, for pages and command lines that follow.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}
