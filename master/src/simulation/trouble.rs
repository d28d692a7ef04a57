//! What breaks in a schedule, and what people do meanwhile.

use super::plan::Happening;
use super::random::Random;
use super::world::Moment;
use std::time::Duration;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outage {
    GitHub,
    Objects,
    Hypervisor,
    Source,
}

/// How often things break, in percent of the tries; most schedules have only some of these.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Faults {
    pub(super) create_fails: u64,
    pub(super) create_fails_after_all: u64,
    pub(super) port_taken: u64,
    pub(super) never_boots: u64,
    pub(super) dies_booting: u64,
    pub(super) destroy_fails: u64,
    pub(super) hypervisor_fails: u64,
    pub(super) connect_hangs: u64,
    pub(super) refuses_for_good: u64,
    pub(super) cut: u64,
    pub(super) unpack_fails: u64,
    pub(super) collect_fails: u64,
    pub(super) vanishes: u64,
    pub(super) source_fails: u64,
    pub(super) archive_fails: u64,
    pub(super) objects_fail: u64,
    pub(super) github_fails: u64,
    pub(super) github_late: u64,
    pub(super) github_unknown: u64,
    pub(super) github_limits: u64,
    pub(super) database_fails: u64,
}

impl Faults {
    /// A schedule in which everything breaks gets nowhere: each has its few favourites.
    pub(super) fn some(seed: u64) -> Faults {
        let random = &mut Random::of(seed, "faults", 0);
        let mut faults = Faults::default();
        let is_quiet = random.happens(15);
        let all: [(&mut u64, u64); 21] = [
            (&mut faults.create_fails, 30),
            (&mut faults.create_fails_after_all, 30),
            (&mut faults.port_taken, 40),
            (&mut faults.never_boots, 30),
            (&mut faults.dies_booting, 30),
            (&mut faults.destroy_fails, 60),
            (&mut faults.hypervisor_fails, 20),
            (&mut faults.connect_hangs, 30),
            (&mut faults.refuses_for_good, 20),
            (&mut faults.cut, 70),
            (&mut faults.unpack_fails, 30),
            (&mut faults.collect_fails, 50),
            (&mut faults.vanishes, 20),
            (&mut faults.source_fails, 30),
            (&mut faults.archive_fails, 40),
            (&mut faults.objects_fail, 50),
            (&mut faults.github_fails, 60),
            (&mut faults.github_late, 50),
            (&mut faults.github_unknown, 30),
            (&mut faults.github_limits, 10),
            (&mut faults.database_fails, 3),
        ];
        for (fault, most) in all {
            if random.happens(22) && !is_quiet {
                *fault = random.between(1, most);
            }
        }
        faults
    }
}

/// What happens once, at some time of the first ten seconds. Each thing has numbers of its own, so that a new one leaves
/// the others as they are.
pub(super) fn disturbances(seed: u64) -> Vec<(Moment, Happening)> {
    let mut happenings = Vec::new();
    let mut number = 0;
    let mut add = |percent: u64, happening: &dyn Fn(&mut Random) -> Happening| {
        number += 1;
        let random = &mut Random::of(seed, "disturbance", number);
        if random.happens(percent) {
            let at = Moment::from_millis(random.between(0, 10_000));
            happenings.push((at, happening(random)));
        }
    };
    let long = |random: &mut Random, most| Duration::from_millis(random.between(100, most));
    add(15, &|random| Happening::CancelBuild(random.next()));
    add(15, &|random| Happening::CancelJob(random.next()));
    add(10, &|random| Happening::Rerun(random.next()));
    add(6, &|_| Happening::Build);
    add(12, &|_| Happening::HostReboots);
    add(15, &|random| Happening::MachineDies(random.next()));
    add(12, &|random| Happening::MachineDies(random.next()));
    add(15, &|_| Happening::CutAll);
    add(10, &|_| Happening::CutAll);
    add(15, &|random| Happening::Freeze(long(random, 12_000)));
    add(8, &|random| {
        Happening::ClockJumps(random.pick(&[-60, -5, 5, 60, 900]))
    });
    for outage in [
        Outage::GitHub,
        Outage::Objects,
        Outage::Hypervisor,
        Outage::Source,
    ] {
        add(10, &|random| Happening::Outage(outage, long(random, 7_000)));
    }
    happenings
}
