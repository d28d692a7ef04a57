//! What a job leaves behind: its log, its artefacts, its test counts.
//!
//! ```text
//!  session ──bytes──► log ──────► segments on disk ──(complete)──┐
//!          ──files──► artifacts ───────────────────────────────┐ │
//!          ──XML────► junit ──► TestCounts ──► jobs.tests      ▼ ▼
//!                                                         object store, and a row that says so
//! ```
//!
//! In come bytes that a stranger's suite produced; all of them are bounded before they are read, and no name in them
//! becomes a path without [`artifacts::check_name`]. Out go objects, and rows of `logs`, `artifacts` and `jobs.tests`.

#![cfg_attr(
    not(test),
    warn(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

pub mod artifacts;
pub mod junit;
pub mod log;
pub mod objects;
