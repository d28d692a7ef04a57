//! In which order waiting jobs are served. Pure: rows in, an order out.
//!
//! Merges go before pushes, pushes before pull requests. Among equals the repository that has least running goes
//! first, so that one repository's hundred jobs do not keep another's single one waiting; then the older job.

use crate::model::{JobId, Priority};
use std::collections::{BTreeMap, HashMap, VecDeque};

/// A job that waits for a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub job: JobId,
    pub repository: String,
    pub platform: String,
    pub priority: Priority,
}

/// The order in which the jobs should get slots, given how many each repository has running.
pub fn order(waiting: Vec<Waiting>, running: &HashMap<String, usize>) -> Vec<Waiting> {
    let mut by_priority: BTreeMap<Priority, BTreeMap<String, VecDeque<Waiting>>> = BTreeMap::new();
    let mut waiting = waiting;
    waiting.sort_by_key(|job| job.job);
    let total = waiting.len();
    for job in waiting {
        by_priority
            .entry(job.priority)
            .or_default()
            .entry(job.repository.clone())
            .or_default()
            .push_back(job);
    }
    let mut load: HashMap<String, usize> = running.clone();
    let mut ordered = Vec::with_capacity(total);
    for (_, mut repositories) in by_priority.into_iter().rev() {
        while let Some(next) = repositories
            .iter()
            .filter_map(|(name, jobs)| Some((load.get(name).copied().unwrap_or(0), jobs.front()?)))
            .min_by_key(|(load, job)| (*load, job.job))
            .map(|(_, job)| job.repository.clone())
        {
            let job = repositories.get_mut(&next).and_then(VecDeque::pop_front);
            if repositories.get(&next).is_some_and(VecDeque::is_empty) {
                repositories.remove(&next);
            }
            *load.entry(next).or_default() += 1;
            ordered.extend(job);
        }
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn job(id: i64, repository: &str, priority: Priority) -> Waiting {
        Waiting {
            job: JobId(id),
            repository: repository.into(),
            platform: "debian-12".into(),
            priority,
        }
    }

    fn ids(ordered: &[Waiting]) -> Vec<i64> {
        ordered.iter().map(|job| job.job.0).collect()
    }

    #[test]
    fn a_lone_job_does_not_wait_behind_another_repositorys_crowd() {
        let waiting = (1..=4)
            .map(|id| job(id, "big", Priority::Push))
            .chain([job(5, "small", Priority::Push)])
            .collect();
        assert_eq!(ids(&order(waiting, &HashMap::new())), [1, 5, 2, 3, 4]);
    }

    #[test]
    fn merges_go_first() {
        let waiting = vec![
            job(1, "a", Priority::PullRequest),
            job(2, "a", Priority::Push),
            job(3, "a", Priority::Merge),
        ];
        assert_eq!(ids(&order(waiting, &HashMap::new())), [3, 2, 1]);
    }

    #[test]
    fn what_runs_already_counts() {
        let waiting = vec![job(1, "a", Priority::Push), job(2, "b", Priority::Push)];
        let running = HashMap::from([("a".to_owned(), 2)]);
        assert_eq!(ids(&order(waiting, &running)), [2, 1]);
    }

    fn some_jobs() -> impl Strategy<Value = Vec<Waiting>> {
        prop::collection::vec((0..4_u8, 1..=3_i64), 0..60).prop_map(|jobs| {
            jobs.into_iter()
                .enumerate()
                .map(|(id, (repository, priority))| {
                    job(
                        id as i64,
                        &format!("r{repository}"),
                        Priority::from_number(priority),
                    )
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn the_order_has_each_job_once_and_never_a_lower_priority_first(jobs in some_jobs()) {
            let ordered = order(jobs.clone(), &HashMap::new());
            let mut sorted = ids(&ordered);
            sorted.sort();
            prop_assert_eq!(sorted, ids(&jobs));
            prop_assert!(ordered.windows(2).all(|pair| pair[0].priority >= pair[1].priority));
        }

        #[test]
        fn a_repositorys_own_jobs_keep_their_order(jobs in some_jobs()) {
            let ordered = order(jobs, &HashMap::new());
            for (at, job) in ordered.iter().enumerate() {
                for later in &ordered[at + 1..] {
                    if later.repository == job.repository && later.priority == job.priority {
                        prop_assert!(job.job < later.job);
                    }
                }
            }
        }

        #[test]
        fn shares_of_equals_differ_by_one_at_most(jobs in some_jobs(), served in 0..60_usize) {
            // While every repository still has a job waiting at this priority, none is served twice more than another.
            let jobs: Vec<_> = jobs.into_iter().map(|j| Waiting { priority: Priority::Push, ..j }).collect();
            let mut total: HashMap<&str, usize> = HashMap::new();
            for job in &jobs { *total.entry(&job.repository).or_default() += 1; }
            let ordered = order(jobs.clone(), &HashMap::new());
            let mut share: HashMap<&str, usize> = total.keys().map(|k| (*k, 0)).collect();
            for job in ordered.iter().take(served) { *share.get_mut(job.repository.as_str()).unwrap() += 1; }
            if share.iter().all(|(name, count)| *count < total[name]) {
                let most = share.values().max().copied().unwrap_or(0);
                let least = share.values().min().copied().unwrap_or(0);
                prop_assert!(most - least <= 1);
            }
        }
    }
}
