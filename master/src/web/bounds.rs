//! What all visitors together, and each address, may take of the master at the same time.

use super::App;
use super::asker::{Asker, Proxies};
use super::error::ApiError;
use super::slots::{Slot, Slots};
use crate::config::ServerConfig;
use std::time::Duration;

/// A request other than a webhook and a build by hand is answered in this time, or not at all. What streams has begun by then.
pub(super) const REQUEST_DEADLINE: Duration = Duration::from_secs(30);

/// Clones share what is counted.
#[derive(Debug, Clone)]
pub struct Bounds {
    pub(super) proxies: Proxies,
    /// Live logs and downloads, each of which holds a piece of a file in memory.
    streams: Slots,
}

impl Bounds {
    pub fn new(config: &ServerConfig) -> Bounds {
        let limits = config.limits;
        Bounds {
            proxies: Proxies::new(&config.trusted_proxies),
            streams: Slots::new(limits.streams, limits.streams_per_address),
        }
    }
}

impl App {
    /// Room for one more live log or download.
    pub(super) fn stream_slot(&self, asker: Asker) -> Result<Slot, ApiError> {
        self.bounds
            .streams
            .take(asker)
            .ok_or_else(ApiError::no_room)
    }
}
