//! Who got a slot before whom: as the queue and the placement promise it.
//!
//! A trigger writes down who waited when an attempt began; here it is judged. What changed in the moment before is given
//! to the master: its look and its act are two.

use super::super::plan::PLATFORMS;
use super::Check;
use crate::model::Phase;
use sqlx::SqlitePool;
use std::collections::BTreeMap;

/// Remembers, for each attempt, the jobs that waited when it got its slot; not those whose platform is out of service.
pub(in crate::simulation) const WITNESS: &str = "
    CREATE TABLE waited (
        attempt BIGINT NOT NULL, job BIGINT NOT NULL, repository TEXT NOT NULL, platform TEXT NOT NULL,
        priority BIGINT NOT NULL, ready_at BIGINT NOT NULL
    );
    CREATE TRIGGER witness AFTER INSERT ON attempts BEGIN
        INSERT INTO waited SELECT NEW.id, id, repository, platform, priority, MAX(queued_at, not_before)
        FROM jobs WHERE state = 'queued' AND id <> NEW.job AND cancel_reason IS NULL
        AND platform NOT IN (SELECT platform FROM platform_boots WHERE out_since IS NOT NULL);
    END;";

/// Milliseconds between a look at the rows and what is done about it.
const MOMENT: i64 = 100;

#[derive(sqlx::FromRow)]
struct Placed {
    id: i64,
    job: i64,
    repository: String,
    platform: String,
    priority: i64,
    phases: String,
}

#[derive(sqlx::FromRow)]
struct Waited {
    attempt: i64,
    job: i64,
    repository: String,
    platform: String,
    priority: i64,
    ready_at: i64,
}

/// An attempt, and when it had its slot and counted as running.
struct Slot {
    placed: Placed,
    from: i64,
    /// Its job does not run any more.
    concluded: i64,
    /// Its room is free again.
    ended: i64,
}

impl Slot {
    fn of(placed: Placed) -> Slot {
        let phases: Vec<(Phase, i64)> = serde_json::from_str(&placed.phases).expect("phases");
        let at = |wanted: Phase| {
            let found = phases.iter().find(|(phase, _)| *phase == wanted);
            found.map_or(i64::MAX, |(_, at)| *at)
        };
        Slot {
            from: at(Phase::Placed),
            concluded: at(Phase::CleaningUp),
            ended: at(Phase::Ended),
            placed,
        }
    }
}

impl Check<'_> {
    /// Merges before pushes before pull requests, then the repository with least running, then the older job; only a
    /// job whose platform is full is passed.
    pub(super) async fn order(&self) {
        if self.plan().jumps() {
            return;
        }
        let slots = read_slots(&self.pool).await;
        let waited: Vec<Waited> = sqlx::query_as("SELECT * FROM waited ORDER BY attempt, job")
            .fetch_all(&self.pool)
            .await
            .expect("read");
        let mut by_attempt: BTreeMap<i64, Vec<Waited>> = BTreeMap::new();
        for waited in waited {
            by_attempt.entry(waited.attempt).or_default().push(waited);
        }
        for (attempt, waited) in by_attempt {
            let at = slots.iter().position(|slot| slot.placed.id == attempt);
            let Some((slot, earlier)) = at.and_then(|at| Some((slots.get(at)?, &slots[..at])))
            else {
                continue;
            };
            let ready = |waited: &&Waited| waited.ready_at + MOMENT <= slot.from;
            for one in waited.iter().filter(ready) {
                if is_full(&one.platform, earlier, slot.from) {
                    continue;
                }
                let is_first_of_its_own = waited
                    .iter()
                    .filter(|other| other.repository == one.repository)
                    .all(|other| (-other.priority, other.job) >= (-one.priority, one.job));
                self.expect(
                    !goes_before(one, is_first_of_its_own, slot, earlier),
                    || {
                        format!(
                            "{} of job-{} passed job-{}",
                            slot.placed.id, slot.placed.job, one.job
                        )
                    },
                );
            }
        }
    }
}

async fn read_slots(pool: &SqlitePool) -> Vec<Slot> {
    let placed: Vec<Placed> = sqlx::query_as(
        "SELECT attempts.id, job, repository, attempts.platform, priority, phases
         FROM attempts JOIN jobs ON jobs.id = attempts.job ORDER BY attempts.id",
    )
    .fetch_all(pool)
    .await
    .expect("read");
    placed.into_iter().map(Slot::of).collect()
}

/// Whether it was, at any time of the moment before.
fn is_full(platform: &str, earlier: &[Slot], now: i64) -> bool {
    let limit = PLATFORMS.iter().find(|plan| plan.name == platform);
    let taken = earlier
        .iter()
        .filter(|slot| slot.placed.platform == platform && slot.ended > now - MOMENT)
        .count();
    limit.is_some_and(|plan| taken >= plan.limit as usize)
}

fn goes_before(waited: &Waited, is_first: bool, slot: &Slot, earlier: &[Slot]) -> bool {
    let placed = &slot.placed;
    if waited.priority != placed.priority {
        return waited.priority > placed.priority;
    }
    if waited.repository == placed.repository {
        return waited.job < placed.job;
    }
    let running = |repository: &str, until: i64| {
        earlier
            .iter()
            .filter(|slot| slot.placed.repository == repository && slot.concluded > until)
            .count()
    };
    let most = running(&waited.repository, slot.from - MOMENT);
    let least = running(&placed.repository, slot.from);
    is_first && most < least
}
