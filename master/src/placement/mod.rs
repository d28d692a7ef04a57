//! Which of the waiting jobs get a slot now. Pure: the order, the capacity and what runs in; choices out.
//!
//! A job whose platform has reached its limit steps aside. A job that does not fit into the host's memory or
//! processors holds back those after it, or a big one would wait for ever behind small ones.

use crate::model::JobId;
use crate::queue::Waiting;
use std::collections::BTreeMap;

/// What a host has for guests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    pub memory_mib: u64,
    pub vcpus: u32,
}

/// What one slot of a platform takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub memory_mib: u64,
    pub vcpus: u32,
    /// Most at once.
    pub limit: u32,
}

/// What becomes of a waiting job in this look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// It gets a slot.
    Placed(JobId),
    /// It can never run here; the sentence says why.
    Impossible(JobId, String),
}

/// Whether the host, and the platform's limit, have room for one more machine of it.
pub fn has_room(
    platform: &str,
    capacity: Capacity,
    sizes: &BTreeMap<String, Size>,
    running: &BTreeMap<String, u32>,
) -> bool {
    sizes.get(platform).is_some_and(|size| {
        running.get(platform).copied().unwrap_or(0) < size.limit
            && fits(size, capacity, sizes, running)
    })
}

fn fits(
    size: &Size,
    capacity: Capacity,
    sizes: &BTreeMap<String, Size>,
    used: &BTreeMap<String, u32>,
) -> bool {
    let (mut memory_mib, mut vcpus) = (size.memory_mib, u64::from(size.vcpus));
    for (name, count) in used {
        if let Some(taken) = sizes.get(name) {
            memory_mib += taken.memory_mib * u64::from(*count);
            vcpus += u64::from(taken.vcpus) * u64::from(*count);
        }
    }
    memory_mib <= capacity.memory_mib && vcpus <= u64::from(capacity.vcpus)
}

/// Chooses from `ordered`; `running` counts the slots in use by platform. A platform without a size is out of service.
pub fn place(
    ordered: &[Waiting],
    capacity: Capacity,
    sizes: &BTreeMap<String, Size>,
    running: &BTreeMap<String, u32>,
) -> Vec<Placement> {
    let mut used = running.clone();
    let mut placements = Vec::new();
    let mut host_is_full = false;
    for waiting in ordered {
        let Some(size) = sizes.get(&waiting.platform) else {
            continue;
        };
        if size.memory_mib > capacity.memory_mib || size.vcpus > capacity.vcpus {
            placements.push(Placement::Impossible(
                waiting.job,
                format!(
                    "a VM of `{}` needs {} MiB and {} vCPUs, the host has {} MiB and {} vCPUs for guests",
                    waiting.platform, size.memory_mib, size.vcpus, capacity.memory_mib, capacity.vcpus
                ),
            ));
            continue;
        }
        if used.get(&waiting.platform).copied().unwrap_or(0) >= size.limit {
            continue;
        }
        let fits = fits(size, capacity, sizes, &used);
        // A machine that is no VM takes nothing from the host.
        let is_free = size.memory_mib == 0 && size.vcpus == 0;
        if is_free || (fits && !host_is_full) {
            *used.entry(waiting.platform.clone()).or_default() += 1;
            placements.push(Placement::Placed(waiting.job));
        } else {
            host_is_full = true;
        }
    }
    placements
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Priority;
    use proptest::prelude::*;

    const HOST: Capacity = Capacity {
        memory_mib: 1000,
        vcpus: 4,
    };

    fn waiting(id: i64, platform: &str) -> Waiting {
        Waiting {
            job: JobId(id),
            repository: "r".into(),
            platform: platform.into(),
            priority: Priority::Push,
        }
    }

    fn sizes() -> BTreeMap<String, Size> {
        let size = |memory_mib, vcpus, limit| Size {
            memory_mib,
            vcpus,
            limit,
        };
        BTreeMap::from([
            ("small".into(), size(100, 1, 2)),
            ("big".into(), size(900, 1, 9)),
            ("huge".into(), size(2000, 1, 9)),
            ("board".into(), size(0, 0, 1)),
        ])
    }

    #[test]
    fn a_platform_at_its_limit_steps_aside() {
        let jobs = [
            waiting(1, "small"),
            waiting(2, "small"),
            waiting(3, "small"),
            waiting(4, "board"),
        ];
        let placed = place(&jobs, HOST, &sizes(), &BTreeMap::new());
        assert_eq!(placed, [1, 2, 4].map(|id| Placement::Placed(JobId(id))));
    }

    #[test]
    fn one_more_machine_needs_room_as_a_job_does() {
        let room = |platform: &str, running: &[(&str, u32)]| {
            let running = running
                .iter()
                .map(|(name, count)| ((*name).to_owned(), *count));
            has_room(platform, HOST, &sizes(), &running.collect())
        };
        assert!(room("small", &[("small", 1), ("big", 0)]));
        assert!(!room("small", &[("small", 2)]), "its limit");
        assert!(!room("big", &[("small", 2)]), "the host's memory");
        assert!(room("board", &[("small", 1), ("big", 1)]), "takes nothing");
        assert!(!room("gone", &[]));
    }

    #[test]
    fn small_jobs_do_not_overtake_a_big_one_for_ever() {
        let running = BTreeMap::from([("small".to_owned(), 1), ("big".to_owned(), 0)]);
        let jobs = [waiting(1, "big"), waiting(2, "big"), waiting(3, "small")];
        let placed = place(&jobs, HOST, &sizes(), &running);
        assert_eq!(placed, [Placement::Placed(JobId(1))]);
    }

    #[test]
    fn a_job_that_never_fits_says_so_and_blocks_nobody() {
        let jobs = [waiting(1, "huge"), waiting(2, "small")];
        let placed = place(&jobs, HOST, &sizes(), &BTreeMap::new());
        assert!(
            matches!(&placed[0], Placement::Impossible(JobId(1), why) if why.contains("2000 MiB"))
        );
        assert_eq!(placed[1], Placement::Placed(JobId(2)));
    }

    proptest! {
        #[test]
        fn the_host_is_never_overfull(
            jobs in prop::collection::vec(prop::sample::select(vec!["small", "big", "huge", "board", "gone"]), 0..40),
            memory_mib in 0..5000_u64,
            vcpus in 0..10_u32,
        ) {
            let jobs: Vec<_> = jobs.iter().enumerate().map(|(id, p)| waiting(id as i64, p)).collect();
            let sizes = sizes();
            let placed = place(&jobs, Capacity { memory_mib, vcpus }, &sizes, &BTreeMap::new());
            let mut count: BTreeMap<&str, u32> = BTreeMap::new();
            for placement in &placed {
                if let Placement::Placed(id) = placement {
                    *count.entry(jobs[id.0 as usize].platform.as_str()).or_default() += 1;
                }
            }
            prop_assert!(count.iter().all(|(name, n)| *n <= sizes[*name].limit));
            let memory: u64 = count.iter().map(|(name, n)| sizes[*name].memory_mib * u64::from(*n)).sum();
            let cpus: u32 = count.iter().map(|(name, n)| sizes[*name].vcpus * n).sum();
            prop_assert!(memory <= memory_mib && cpus <= vcpus);
        }

        #[test]
        fn an_idle_host_serves_the_first_that_can_run(
            jobs in prop::collection::vec(prop::sample::select(vec!["small", "big"]), 1..20),
        ) {
            let jobs: Vec<_> = jobs.iter().enumerate().map(|(id, p)| waiting(id as i64, p)).collect();
            let placed = place(&jobs, HOST, &sizes(), &BTreeMap::new());
            prop_assert_eq!(&placed[0], &Placement::Placed(JobId(0)));
        }
    }
}
