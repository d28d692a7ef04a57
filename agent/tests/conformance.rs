//! One suite of promises, kept by every agent: the native one, and the `sh` agent under several shells.
//!
//! All tests apply to all agents. What a shell cannot promise as exactly as the native agent does, docs/protocol.md says.

#![allow(
    clippy::duplicate_mod,
    reason = "the same tests are meant once for each agent"
)]

mod common;

/// The whole suite for one agent; a test is called `dash::stopping::stop_ends_the_whole_tree_with_its_daemons`.
macro_rules! conformance {
    ($module:ident, $agent:expr) => {
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
        }
    };
}

conformance!(native, Agent::Native);
conformance!(dash, Agent::Dash);
conformance!(busybox, Agent::Busybox);
conformance!(ksh, Agent::Ksh);
