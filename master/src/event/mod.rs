//! What happened outside: in come GitHub's webhook deliveries, out go intents.
//!
//! ```text
//!  POST /webhook/github ─► webhook ─► store ─► interpret ─► Intent
//!                          (checked)  (durable) (pure)
//! ```
//!
//! [`webhook`] answers GitHub and does nothing else; [`interpret`] is a pure function that the processing loop calls
//! with each stored delivery.

#![cfg_attr(
    not(test),
    warn(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

mod check;
pub(crate) mod form;
pub mod interpret;
mod names;
mod secrets;
pub(crate) mod subjects;
pub mod webhook;
