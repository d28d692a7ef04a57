//! Stepping the system's clock, by right or through the image's root helper.

use anyhow::{Context, Result, bail};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Sets the clock to this time since 1970-01-01 UTC.
pub(crate) fn step_clock(time: Duration) -> Result<()> {
    match clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(time)) {
        Ok(()) => Ok(()),
        Err(nix::Error::EPERM) => step_by_helper(time),
        Err(error) => Err(error).context("cannot set the clock"),
    }
}

fn step_by_helper(time: Duration) -> Result<()> {
    // BusyBox's `date` takes no fractions of a second.
    let time = format!("@{}", time.as_secs_f64().round());
    let output = Command::new("sudo")
        .args(["-n", "date", "-u", "-s", &time])
        .stdin(Stdio::null())
        .output()
        .context("cannot set the clock: this user may not, and sudo does not start")?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        bail!(
            "cannot set the clock: this user may not, and sudo says: {}",
            why.trim()
        );
    }
    Ok(())
}
