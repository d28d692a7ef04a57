//! The nouns that cross from one stage to the next: no I/O, no clock, no runtime.
//!
//! ```text
//!  Intent ──► Build ──► Job ──► Attempt ──► Ending ──► CommitStatus
//!  (event)    (source)  (queue) (vm, session) (result)  (report)
//! ```

mod attempt;
mod boot;
mod build;
mod drain;
mod ending;
mod ids;
mod intent;
mod job;
mod plan;
mod platform;
mod right;
pub mod service;
mod status;
mod visible;

pub use attempt::{Attempt, Phase};
pub use boot::{Awaited, BootRecord, Milestone, Witness};
pub use build::{Build, BuildState, NewBuild, Trigger};
pub use drain::{AfterDrain, Drain};
pub use ending::{Conclusion, Ending, Reason};
pub use ids::{AttemptId, BuildId, JobId};
pub use intent::{Intent, Learnt, MergeGroup, PullRequest};
pub use job::{Job, JobState, NewJob, Priority};
pub use plan::{JobPlan, Step, Timeouts};
pub use platform::{
    AgentKind, Architecture, ClockOffset, ConsoleSpec, DiskBus, DiskFormat, DiskSpec, Firmware,
    HostKey, KernelSpec, Login, Network, NetworkDevice, OsFamily, Packing, Platform, PlatformKind,
    Seed, SshSpec,
};
pub use right::Right;
pub use status::{CommitStatus, StatusState, TestCounts};
pub use visible::{visible, visible_line};
