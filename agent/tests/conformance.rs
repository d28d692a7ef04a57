//! One suite of promises, kept by every agent: the native ones, and the `sh` agent under several shells.
//!
//! `executions`, `files` and `stopping` apply to all agents; `unix` and `windows` have what only those systems know. What a
//! shell cannot promise as exactly as the native agent does, docs/protocol.md says.

#![allow(
    clippy::duplicate_mod,
    reason = "the same tests are meant once for each agent"
)]

mod common;

/// The whole suite for one agent; a test is called `dash::stopping::stop_ends_the_whole_tree_with_its_daemons`.
macro_rules! conformance {
    ($module:ident, $agent:expr, $system:ident) => {
        #[path = "suite"]
        mod $module {
            use crate::common::{Agent, Guest};

            const AGENT: Agent = $agent;

            fn guest() -> Guest {
                Guest::new(AGENT)
            }

            mod executions;
            mod files;
            mod stopping;
            mod terminals;
            mod $system;
        }
    };
}

conformance!(native, Agent::Native, unix);
conformance!(dash, Agent::Dash, unix);
conformance!(busybox, Agent::Busybox, unix);
conformance!(ksh, Agent::Ksh, unix);
conformance!(wine, Agent::Windows, windows);
