//! What goes wrong and when: all of it follows from the seed.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::fmt;
use std::time::Duration;

/// Something goes wrong. A time is how long it lasts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Fault {
    /// SIGKILL; it is started again after this.
    KillMaster(Duration),
    /// SIGTERM; it is started again after its end.
    StopMaster,
    /// SIGSTOP.
    FreezeMaster(Duration),
    /// SIGKILL for the QEMU of one machine.
    KillMachine,
    /// SIGSTOP for the QEMU of one machine.
    FreezeMachine(Duration),
    /// As a person suspends it in libvirt.
    PauseMachine(Duration),
    /// SIGKILL; it is started again after this.
    KillLibvirt(Duration),
    /// The kernel takes the TCP connection to one machine away.
    CutConnection,
    CutWire,
    ResetWire,
    HalfOpenWire,
    FreezeWire(Duration),
    SlowWire(Duration),
    GitHub(Mood),
    GitHubAway(Duration),
    /// Another process holds the database's file.
    LockDatabase(Duration),
    /// The object store takes nothing.
    CloseObjects(Duration),
}

/// What GitHub does to the next few requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mood {
    Breaks,
    BreaksAfter,
    Resets,
    ResetsAfter,
    Limits,
    Forgets,
    Dawdles,
}

impl Fault {
    /// Its line in the report.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Fault::KillMaster(_) => "master killed",
            Fault::StopMaster => "master stopped",
            Fault::FreezeMaster(_) => "master frozen",
            Fault::KillMachine => "QEMU killed",
            Fault::FreezeMachine(_) => "QEMU frozen",
            Fault::PauseMachine(_) => "guest paused",
            Fault::KillLibvirt(_) => "libvirtd killed",
            Fault::CutConnection => "guest's connection cut",
            Fault::CutWire => "wire cut",
            Fault::ResetWire => "wire reset",
            Fault::HalfOpenWire => "wire half open",
            Fault::FreezeWire(_) => "wire frozen",
            Fault::SlowWire(_) => "wire slow",
            Fault::GitHub(_) => "GitHub's answers wrong",
            Fault::GitHubAway(_) => "GitHub away",
            Fault::LockDatabase(_) => "database locked",
            Fault::CloseObjects(_) => "object store down",
        }
    }

    /// How long it lasts.
    pub(crate) fn lasts(self) -> Option<Duration> {
        match self {
            Fault::KillMaster(time)
            | Fault::FreezeMaster(time)
            | Fault::FreezeMachine(time)
            | Fault::PauseMachine(time)
            | Fault::KillLibvirt(time)
            | Fault::FreezeWire(time)
            | Fault::SlowWire(time)
            | Fault::GitHubAway(time)
            | Fault::LockDatabase(time)
            | Fault::CloseObjects(time) => Some(time),
            Fault::StopMaster
            | Fault::KillMachine
            | Fault::CutConnection
            | Fault::CutWire
            | Fault::ResetWire
            | Fault::HalfOpenWire
            | Fault::GitHub(_) => None,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())?;
        if let Fault::GitHub(mood) = self {
            write!(f, " ({mood:?})")?;
        }
        match self.lasts() {
            Some(time) => write!(f, " for {:.1} s", time.as_secs_f64()),
            None => Ok(()),
        }
    }
}

/// The faults of one run, endless.
#[derive(Debug)]
pub(crate) struct Schedule {
    random: StdRng,
}

impl Schedule {
    pub(crate) fn of(seed: u64) -> Schedule {
        Schedule {
            random: StdRng::seed_from_u64(seed),
        }
    }

    /// The next fault, and how long after the one before it comes.
    pub(crate) fn next(&mut self) -> (Duration, Fault) {
        let pause = self.millis(200, 3500);
        (pause, self.fault())
    }

    /// One of so many.
    pub(crate) fn choose(&mut self, count: usize) -> Option<usize> {
        // Drawn also when there is none, so that what follows does not depend on it.
        let drawn: usize = self.random.random_range(0..usize::MAX);
        drawn.checked_rem(count)
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.random.random_range(from..to))
    }

    fn fault(&mut self) -> Fault {
        // Machines take ten seconds to boot here: what costs one is rarer than what does not.
        match self.random.random_range(0..100) {
            0..9 => Fault::KillMaster(self.millis(0, 3000)),
            9..11 => Fault::StopMaster,
            11..14 => Fault::FreezeMaster(self.millis(500, 12_000)),
            14..17 => Fault::KillMachine,
            17..21 => Fault::FreezeMachine(self.millis(500, 9000)),
            21..24 => Fault::PauseMachine(self.millis(500, 9000)),
            24..28 => Fault::KillLibvirt(self.millis(0, 5000)),
            28..40 => Fault::CutConnection,
            40..46 => Fault::CutWire,
            46..52 => Fault::ResetWire,
            52..56 => Fault::HalfOpenWire,
            56..60 => Fault::FreezeWire(self.millis(500, 9000)),
            60..64 => Fault::SlowWire(self.millis(1000, 8000)),
            64..84 => Fault::GitHub(self.mood()),
            84..88 => Fault::GitHubAway(self.millis(500, 6000)),
            88..95 => Fault::LockDatabase(self.millis(500, 12_000)),
            _ => Fault::CloseObjects(self.millis(500, 6000)),
        }
    }

    fn mood(&mut self) -> Mood {
        const MOODS: [Mood; 7] = [
            Mood::Breaks,
            Mood::BreaksAfter,
            Mood::Resets,
            Mood::ResetsAfter,
            Mood::Limits,
            Mood::Forgets,
            Mood::Dawdles,
        ];
        MOODS[self.random.random_range(0..MOODS.len())]
    }
}
