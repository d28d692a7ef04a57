//! What is outside of the master: time, machines, GitHub, repositories, and when each of them breaks.
//!
//! It outlives the master: a life of the master ends with its runtime, and the next one finds the world as it was.
//! Everything happens on one thread and at times that follow from the seed.

use super::github::GitHubSide;
use super::guest::Guest;
use super::plan::{CALM, Happening, Plan};
use super::random::Random;
use super::trouble::Outage;
use crate::clock::Clock;
use crate::model::{AttemptId, JobId};
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// A time since the world began.
pub(super) type Moment = Duration;
/// When the world began.
pub(super) const EPOCH: Timestamp = Timestamp::constant(1_767_225_600, 0);

#[derive(Debug)]
pub(super) struct World {
    pub(super) plan: Plan,
    /// Where this master keeps its files.
    pub(super) folder: PathBuf,
    /// Told when the master is to die.
    pub(super) death: Notify,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// Of the present life: how much time there was before it, and when it began by tokio's clock.
    before: Duration,
    began: Option<Instant>,
    wall_offset: SignedDuration,
    streams: BTreeMap<(&'static str, i64), Random>,
    /// What the master has done to the outside in this life.
    steps: u64,
    dies_after: Option<u64>,
    pub(super) is_dead: bool,
    pub(super) happenings: Vec<(Moment, Happening)>,
    pub(super) guests: BTreeMap<AttemptId, Guest>,
    pub(super) github: GitHubSide,
    outages: BTreeMap<Outage, Moment>,
    /// Deliveries that the master said it has.
    pub(super) accepted: BTreeSet<String>,
    /// What those who follow a log have read of it.
    pub(super) read: BTreeMap<JobId, Vec<u8>>,
    pub(super) violations: Vec<String>,
    pub(super) faults_met: u64,
    trace: Trace,
}

/// Everything that crossed the border, in order: equal for equal runs.
#[derive(Debug, Default)]
struct Trace {
    hash: u64,
    lines: Vec<String>,
    is_kept: bool,
}

impl World {
    pub(super) fn new(plan: Plan, folder: &Path, keeps_trace: bool) -> Arc<World> {
        let state = State {
            happenings: plan.happenings.clone(),
            trace: Trace {
                is_kept: keeps_trace,
                ..Trace::default()
            },
            ..State::default()
        };
        Arc::new(World {
            plan,
            folder: folder.to_owned(),
            death: Notify::new(),
            state: Mutex::new(state),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panicked with it")
    }

    /// A life of the master begins, inside its runtime.
    pub(super) fn begin_life(&self, number: usize) {
        let mut state = self.state();
        state.began = Some(Instant::now());
        state.steps = 0;
        state.is_dead = false;
        state.dies_after = self.plan.kills.get(number).copied();
        drop(state);
        self.note("master", format_args!("life {number} begins"));
    }

    pub(super) fn end_life(&self) {
        let now = self.now();
        let mut state = self.state();
        state.before = now;
        state.began = None;
        for guest in state.guests.values_mut() {
            guest.drop_connections();
        }
        drop(state);
    }

    pub(super) fn now(&self) -> Moment {
        let state = self.state();
        state.before + state.began.map_or(Duration::ZERO, |began| began.elapsed())
    }

    /// The clock of the master's host.
    pub(super) fn clock(self: &Arc<World>) -> Clock {
        let world = Arc::clone(self);
        Clock::of(move || {
            let offset = world.state().wall_offset;
            EPOCH + world.now() + offset
        })
    }

    pub(super) fn is_calm(&self) -> bool {
        self.now() >= CALM
    }

    /// Something crosses the border. The master may die right here: then this never returns.
    pub(super) async fn step(&self) {
        let is_dead = {
            let mut state = self.state();
            state.steps += 1;
            if !state.is_dead && state.dies_after.is_some_and(|after| state.steps > after) {
                state.is_dead = true;
                self.death.notify_one();
            }
            state.is_dead
        };
        if is_dead {
            std::future::pending::<()>().await;
        }
    }

    /// [`World::step`], and some milliseconds.
    pub(super) async fn takes(&self, stream: &'static str, number: i64, most_ms: u64) {
        self.step().await;
        let millis = self.draw(stream, number, |random| random.between(1, most_ms));
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }

    /// Draws from the numbers of one thing, so that what happens to it does not depend on what others do.
    pub(super) fn draw<T>(
        &self,
        stream: &'static str,
        number: i64,
        draw: impl FnOnce(&mut Random) -> T,
    ) -> T {
        let seed = self.plan.seed;
        let mut state = self.state();
        let random = state
            .streams
            .entry((stream, number))
            .or_insert_with(|| Random::of(seed, stream, number));
        draw(random)
    }

    /// Whether something breaks now that breaks so often.
    pub(super) fn breaks(&self, percent: u64, stream: &'static str, number: i64) -> bool {
        let breaks = self.draw(stream, number, |random| random.happens(percent));
        let breaks = breaks && !self.is_calm();
        if breaks {
            self.state().faults_met += 1;
        }
        breaks
    }

    pub(super) fn is_out(&self, what: Outage) -> bool {
        let now = self.now();
        let until = self.state().outages.get(&what).copied();
        now < CALM && until.is_some_and(|until| now < until)
    }

    /// Remembers what happened, for the comparison of two runs.
    pub(super) fn note(&self, who: &'static str, what: impl Display) {
        let line = format!("{:>9.3} {who}: {what}", self.now().as_secs_f64());
        let mut state = self.state();
        let trace = &mut state.trace;
        for byte in line.bytes() {
            trace.hash = (trace.hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
        if trace.is_kept {
            trace.lines.push(line);
        }
    }

    /// A promise was broken.
    pub(super) fn violated(&self, what: impl Display) {
        self.note("violation", &what);
        self.state().violations.push(what.to_string());
    }

    pub(super) fn trace(&self) -> (u64, Vec<String>) {
        let state = self.state();
        (state.trace.hash, state.trace.lines.clone())
    }

    /// What happens on the outside now; deliveries are the caller's.
    pub(super) fn happen(&self, happening: &Happening) {
        let now = self.now();
        self.note("world", format_args!("{happening:?}"));
        let mut state = self.state();
        state.faults_met += 1;
        match happening {
            Happening::HostReboots => {
                for guest in state.guests.values_mut() {
                    guest.die(now, "the host was started anew");
                }
            }
            Happening::MachineDies(which) => {
                let alive: Vec<AttemptId> = state
                    .guests
                    .iter()
                    .filter(|(_, guest)| guest.is_alive())
                    .map(|(id, _)| *id)
                    .collect();
                if !alive.is_empty() {
                    let id = alive[*which as usize % alive.len()];
                    if let Some(guest) = state.guests.get_mut(&id) {
                        guest.die(now, "QEMU was killed");
                    }
                }
            }
            Happening::CutAll => {
                for guest in state.guests.values_mut() {
                    guest.drop_connections();
                }
            }
            Happening::Freeze(long) => {
                for guest in state.guests.values_mut() {
                    guest.deaf_until = now + *long;
                }
            }
            Happening::ClockJumps(secs) => state.wall_offset += SignedDuration::from_secs(*secs),
            Happening::Outage(what, long) => {
                state.outages.insert(*what, now + *long);
            }
            Happening::Rerun(_) => state.github.reruns += 1,
            Happening::Delivery(_)
            | Happening::CancelBuild(_)
            | Happening::CancelJob(_)
            | Happening::Build => {}
        }
    }
}
