//! Vivarium's promises, kept by the real thing: the real program, real guests, real Git, a GitHub with state.
//!
//! One binary, so that the number of test threads bounds the number of guests. Each test is named for what it
//! promises. The program and the images must have been built: `cargo build --workspace`, `images/build tiny-linux
//! debian-12`. Where no guest can run, `VIVARIUM_WITHOUT_GUESTS=<reason>` skips the tests that need one.

mod artefacts;
mod backups;
mod command_line;
mod connections;
mod crashes;
mod delivery_log;
mod demo;
mod guests;
mod hostile_agents;
mod late_events;
mod networks;
mod object_store;
mod outbox;
mod output;
mod platforms;
mod polling;
mod power_cuts;
mod pull_requests;
mod reconciliation;
mod reporting;
mod restarts;
mod secrets;
mod ssh_machines;
mod stopping;
mod storage_faults;
mod suites;
mod timeouts;
mod visitors;
mod webhooks;
mod windows;

use tests::machine::guests_run_here;

/// The two images that scenarios use.
const TINY: &str = "tiny-linux";
const DEBIAN: &str = "debian-12";
const BOTH: [&str; 2] = [TINY, DEBIAN];

/// Leaves the test where no guest can run; the reason is printed.
macro_rules! needs_guests {
    () => {
        if !$crate::guests_run_here() {
            return Ok(());
        }
    };
}
use needs_guests;
