//! What a seed means: commits, what GitHub tells of them, what people do, what breaks, and when the master dies.

use super::program::{End, Program};
use super::random::Random;
use super::trouble::{Faults, Outage, disturbances};
use super::world::Moment;
use crate::placement::Capacity;
use jiff::Timestamp;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

pub(super) const REPOSITORY: &str = "ada/engine";
/// A repository that is polled.
pub(super) const LOCAL: &str = "local";
pub(super) const MAIN: &str = "main";
/// From here on nothing breaks any more, and all must come to its end.
pub(super) const CALM: Moment = Moment::from_secs(20);

#[derive(Debug)]
pub(super) struct Plan {
    pub(super) seed: u64,
    pub(super) capacity: Capacity,
    pub(super) on_new_commit: &'static str,
    pub(super) retries: u32,
    pub(super) commits: BTreeMap<String, Commit>,
    pub(super) happenings: Vec<(Moment, Happening)>,
    pub(super) faults: Faults,
    /// Each life of the master ends after so many steps; the last one lives on.
    pub(super) kills: Vec<u64>,
    /// Pull requests as GitHub has them in the end, by number.
    pub(super) pull_requests: BTreeMap<i64, PullRequest>,
    /// Commits that were pushed to the main branch.
    pub(super) pushed: Vec<String>,
    /// Commits that come to the main branch of the polled repository, in order.
    pub(super) local: Vec<(Moment, String)>,
    /// Whether people follow the logs.
    pub(super) has_readers: bool,
    /// Whether the last look is that of a master that was started anew.
    pub(super) ends_with_restart: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Commit {
    pub(super) parent: Option<String>,
    /// Its `.vivarium.toml`.
    pub(super) file: String,
    /// It does not merge into the main branch.
    pub(super) conflicts: bool,
}

#[derive(Debug, Clone)]
pub(super) struct PullRequest {
    pub(super) head: String,
    pub(super) is_open: bool,
}

#[derive(Debug, Clone)]
pub(super) enum Happening {
    Delivery(Delivery),
    /// A person cancels what is under way: the build with this place among the unfinished.
    CancelBuild(u64),
    CancelJob(u64),
    /// A person has finished jobs of a build run again.
    Rerun(u64),
    /// A person asks for a build of the main branch.
    Build,
    /// All machines are gone.
    HostReboots,
    /// One of the machines is gone.
    MachineDies(u64),
    CutAll,
    /// Guests neither read nor write for so long.
    Freeze(Duration),
    /// The wall clock of the host is set, by so many seconds.
    ClockJumps(i64),
    Outage(Outage, Duration),
}

#[derive(Debug, Clone)]
pub(super) struct Delivery {
    pub(super) guid: String,
    pub(super) event: &'static str,
    pub(super) body: Value,
}

/// A platform of every schedule; the files are made by the stage.
#[derive(Debug, Clone, Copy)]
pub(super) struct PlatformPlan {
    pub(super) name: &'static str,
    /// Tells a machine's platform.
    pub(super) memory_mib: u64,
    pub(super) vcpus: u32,
    pub(super) limit: u32,
    pub(super) has_marker: bool,
}

pub(super) const PLATFORMS: [PlatformPlan; 2] = [
    PlatformPlan {
        name: "alpha",
        memory_mib: 512,
        vcpus: 1,
        limit: 2,
        has_marker: true,
    },
    PlatformPlan {
        name: "beta",
        memory_mib: 768,
        vcpus: 2,
        limit: 1,
        has_marker: false,
    },
];

impl Plan {
    pub(super) fn of(seed: u64) -> Plan {
        let random = &mut Random::of(seed, "setting", 0);
        let capacity = |memory_mib, vcpus| Capacity { memory_mib, vcpus };
        let mut plan = Plan {
            seed,
            capacity: random.pick(&[
                capacity(1300, 4),
                capacity(1024, 3),
                capacity(2048, 2),
                capacity(4096, 8),
            ]),
            on_new_commit: random.pick(&["cancel", "cancel", "queue"]),
            retries: random.pick(&[2, 2, 2, 1, 0]),
            has_readers: random.happens(20),
            ends_with_restart: random.happens(70),
            commits: BTreeMap::new(),
            happenings: disturbances(seed),
            faults: Faults::some(seed),
            kills: kills(seed),
            pull_requests: BTreeMap::new(),
            pushed: Vec::new(),
            local: Vec::new(),
        };
        plan.make_history();
        plan.happenings.sort_by_key(|(at, _)| *at);
        plan
    }

    pub(super) fn root(&self) -> String {
        format!("{:08x}", 0xc0).repeat(5)
    }

    /// How often a closed pull request with this head was opened again.
    pub(super) fn times_reopened(&self, sha: &str) -> usize {
        let reopens = |body: &Value| {
            body["action"] == "reopened" && body["pull_request"]["head"]["sha"] == sha
        };
        let told = self.happenings.iter().filter(|(_, happening)| {
            matches!(happening, Happening::Delivery(delivery) if reopens(&delivery.body))
        });
        told.count()
    }

    /// Whether GitHub told of a closing that came after this.
    pub(super) fn is_closed_after(&self, earlier: &Value) -> bool {
        let number = |body: &Value| body["pull_request"]["number"].as_i64();
        let at = |body: &Value| {
            let at = body["pull_request"]["updated_at"].as_str();
            at.and_then(|at| at.parse::<Timestamp>().ok())
        };
        self.happenings
            .iter()
            .any(|(_, happening)| match happening {
                Happening::Delivery(delivery) => {
                    let body = &delivery.body;
                    body["action"] == "closed"
                        && number(body) == number(earlier)
                        && at(body) > at(earlier)
                }
                _ => false,
            })
    }

    /// Whether a finished job may be run again, which begins its log anew.
    pub(super) fn reruns(&self) -> bool {
        self.happenings
            .iter()
            .any(|(_, happening)| match happening {
                Happening::Rerun(_) => true,
                Happening::Delivery(delivery) => delivery.body["action"] == "reopened",
                _ => false,
            })
    }

    /// Whether the wall clock is set.
    pub(super) fn jumps(&self) -> bool {
        self.happenings
            .iter()
            .any(|(_, happening)| matches!(happening, Happening::ClockJumps(_)))
    }

    /// Whether a wall clock may have told a deadline that was none.
    pub(super) fn jumps_ahead(&self) -> bool {
        self.happenings
            .iter()
            .any(|(_, happening)| matches!(happening, Happening::ClockJumps(secs) if *secs > 0))
    }
}

impl PullRequest {
    /// Not cancelled by anything that GitHub told: the newest of an open pull request.
    pub(super) fn wants(&self, sha: &str) -> bool {
        self.is_open && self.head == sha
    }
}

fn kills(seed: u64) -> Vec<u64> {
    let random = &mut Random::of(seed, "kills", 0);
    let count = random.pick(&[0, 1, 1, 1, 2, 3]);
    (0..count)
        .map(|_| {
            let most = random.pick(&[40, 150, 400]);
            random.between(1, most)
        })
        .collect()
}

/// How a job with these scripts ends where nothing of ours breaks.
pub(super) fn natural_end<'a>(scripts: impl Iterator<Item = &'a str>) -> Option<End> {
    scripts
        .filter_map(Program::parse)
        .map(|program| program.end)
        .find(|end| *end != End::Exits(0))
}
