//! Vivarium: a CI master that runs each commit's suites in throw-away virtual machines.
//!
//! ```text
//! [event] ─► [queue] ─► [placement] ─► [vm] ─► [session] ─► [result] ─► [report]
//!               ▲                                               │
//!               └────── again, only for infrastructure ─────────┘
//! ```
//!
//! Data flows one way; what crosses between stages is a type of [`model`]. [`pipeline`] alone knows all the stages.

pub mod certify;
pub mod cli;
pub mod clock;
pub mod config;
mod crash;
pub mod event;
pub mod fetch;
pub mod github;
pub mod model;
pub mod pipeline;
pub mod placement;
pub mod pulse;
pub mod queue;
pub mod report;
pub mod result;
pub mod session;
#[cfg(test)]
mod simulation;
pub mod source;
pub mod store;
pub mod vm;
pub mod web;
