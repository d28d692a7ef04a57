//! What GitHub is told: in come rows of the outbox (`store/statuses.rs`), out go commit statuses.
//!
//! ```text
//!  build, job ─► wording ─► want_status ─► reporter ─► StatusSink ─► GitHub
//!               (sentences)  (one row a    (one at a time a row,
//!                             context)      retries, pauses)
//! ```
//!
//! The reporter looks at the difference between what is wanted and what was sent, and takes a step; it owns nothing that
//! a restart would lose. [`answer`] decides, purely, what a reply of GitHub means.

#![cfg_attr(
    not(test),
    warn(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

pub mod answer;
pub mod github;
pub mod reporter;
mod token;
pub mod wording;

pub use answer::Verdict;
pub use github::{GitHub, GitHubCheck, GitHubError, RepositoryCheck};
pub use reporter::{Pace, Reporter, StatusSink};
