//! Setting the guest's clock from the master's: a guest restored from a saved state lives in the past.

use crate::platform;
use anyhow::Result;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A clock this close is left alone, in milliseconds.
const TOLERANCE_MS: u64 = 1000;

/// The guest's clock, milliseconds since 1970-01-01 UTC.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Sets the clock if it is more than a second off, and says by how many milliseconds it was moved.
pub(crate) fn set(wanted_ms: u64) -> Result<i64> {
    let now = unix_ms();
    if wanted_ms.abs_diff(now) <= TOLERANCE_MS {
        return Ok(0);
    }
    platform::step_clock(Duration::from_millis(wanted_ms))?;
    let distance = i64::try_from(wanted_ms.abs_diff(now)).unwrap_or(i64::MAX);
    Ok(if wanted_ms >= now {
        distance
    } else {
        -distance
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_clock_that_is_right_is_left_alone() {
        assert_eq!(super::set(super::unix_ms()).unwrap(), 0);
    }
}
