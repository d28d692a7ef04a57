//! What the API shows, as a client of it knows it: only what scenarios look at.

use jiff::Timestamp;
use serde::Deserialize;

#[derive(Debug, Clone, Deserialize)]
pub struct BuildView {
    pub number: i64,
    pub repository: String,
    pub event: String,
    pub title: String,
    pub pull_request: Option<i64>,
    pub head_sha: String,
    pub base_sha: Option<String>,
    pub tested_sha: Option<String>,
    pub state: String,
    pub conclusion: Option<String>,
    pub reason: Option<String>,
    pub message: Option<String>,
    pub jobs: Vec<JobView>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct JobView {
    pub number: i64,
    pub suite: String,
    pub platform: String,
    pub state: String,
    pub phase: Option<String>,
    pub conclusion: Option<String>,
    pub reason: Option<String>,
    pub message: Option<String>,
    pub waiting: Option<String>,
    pub tests: Option<TestsView>,
    pub queued_at: Timestamp,
    pub artifacts: Vec<ArtifactView>,
    #[serde(default)]
    pub attempts: Vec<AttemptView>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct AttemptView {
    pub vm: String,
    pub number: i64,
    pub phase: String,
    /// Each phase with the time at which it began.
    pub phases: Vec<(String, Timestamp)>,
    pub conclusion: Option<String>,
    pub reason: Option<String>,
    pub message: Option<String>,
    pub boot: BootView,
    pub console_tail: Option<String>,
    pub qemu_log: Option<String>,
    pub screenshot_url: Option<String>,
    pub steps: Vec<StepView>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct BootView {
    /// Each milestone with the time at which it was first seen.
    pub milestones: Vec<(String, Timestamp)>,
    pub waited_for: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct StepView {
    pub name: String,
    pub log_offset: u64,
    pub started_at: Timestamp,
    pub finished_at: Option<Timestamp>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct ArtifactView {
    pub path: String,
    pub size: u64,
    pub sha256: String,
    pub url: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct TestsView {
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
    pub failing: Vec<String>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct PlatformsView {
    pub ready: Vec<PlatformView>,
    /// Those that take no work yet.
    pub held: Vec<RefusedView>,
    /// Those whose guests did not come up.
    pub out_of_service: Vec<RefusedView>,
    pub refused: Vec<RefusedView>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct PlatformView {
    pub name: String,
}

#[derive(Debug, Clone, Deserialize)]
pub struct RefusedView {
    pub name: String,
    pub why: String,
}
