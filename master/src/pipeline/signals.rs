//! Wake-ups between the loops. They only make the next look come sooner: each loop also looks by itself.

use crate::pulse::Pulses;
use std::sync::Arc;
use tokio::sync::Notify;

/// One notifier a loop, and the loops' signs of life; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Signals {
    /// Deliveries were stored.
    pub deliveries: Arc<Notify>,
    /// Builds may want preparing.
    pub preparation: Arc<Notify>,
    /// Jobs may want slots, or running ones may be cancelled.
    pub scheduling: Arc<Notify>,
    /// The outbox may have something to send.
    pub outbox: Arc<Notify>,
    /// Jobs may have left something for the object store.
    pub results: Arc<Notify>,
    pub pulses: Pulses,
}

impl Signals {
    /// Rows changed: wakes every loop that acts on rows.
    pub fn state_changed(&self) {
        self.preparation.notify_one();
        self.scheduling.notify_one();
        self.outbox.notify_one();
        self.results.notify_one();
    }
}
