//! What GitHub is told: in come rows of the outbox (`store/statuses.rs`), out go commit statuses.
//!
//! ```text
//!  build, job ─► wording ─► want_status ─► reporter ─► StatusSink ─► GitHub
//!               (sentences)  (one row a    (one at a time a row,
//!                             context)      retries, pauses)
//! ```
//!
//! The reporter looks at the difference between what is wanted and what was sent, and takes a step; it owns nothing that
//! a restart would lose. What a reply of GitHub means is decided, purely, by [`crate::github::answer`].

#![cfg_attr(
    not(test),
    warn(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

pub mod reporter;
mod rules;
mod sink;
pub mod wording;

pub use crate::github::Verdict;
pub use reporter::Reporter;
pub use rules::Pace;
pub use sink::StatusSink;
