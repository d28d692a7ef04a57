//! Vivarium's promises, kept by the real thing: the real program, real guests, real Git, a GitHub with state.
//!
//! One binary, so that the number of test threads bounds the number of guests. Each test is named for what it
//! promises. The program and the images must have been built: `cargo build --workspace`, `images/build tiny-linux
//! debian-12 debian-12-cloud`. Where no guest can run, `VIVARIUM_WITHOUT_GUESTS=<reason>` skips the tests that need one.

mod artefacts;
mod backups;
mod certificates;
mod cloud_images;
mod command_line;
mod connections;
mod crashes;
mod delivery_log;
mod demo;
mod fetched_images;
mod guests;
mod hostile_agents;
mod late_events;
mod logins;
mod networks;
mod object_store;
mod out_of_service;
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

/// The images that scenarios use.
const TINY: &str = "tiny-linux";
const DEBIAN: &str = "debian-12";
/// One that needs a minute to boot: for what no other can show.
const CLOUD: &str = "debian-12-cloud";
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
