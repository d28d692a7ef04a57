//! When a command's tree is ended and when its end is recorded: decisions without I/O.
//!
//! Events come in (the main process ended, the tree is empty, the pipe is at its end, the master says stop, the disk
//! is full), and [`Lifetime::next`] says the one thing to do now, or until when nothing is to be done.
//!
//! ```text
//!   running ──stop, or leftovers past their time──> terminating ──grace over──> killing ──in vain──> given up
//!      └────────────── tree empty and output at its end ──────────┴──────────────────┘──> finish
//! ```

use std::time::{Duration, Instant};
use vivarium_protocol::Exit;

/// How long descendants may hold the output open after the main process has ended.
const LINGER: Duration = Duration::from_secs(2);
/// How long descendants that do not hold the output may go on after the main process has ended.
const LINGER_SILENT: Duration = Duration::from_millis(500);
/// How long leftovers have between TERM and KILL.
const LEFTOVER_GRACE: Duration = Duration::from_secs(2);
/// The pause between two rounds of KILL: a process that forks meanwhile is found in the next one.
const KILL_PAUSE: Duration = Duration::from_millis(20);
/// How long KILL is repeated. What survives that (a process in an uninterruptible wait) is left to the VM's end.
const KILL_PATIENCE: Duration = Duration::from_secs(10);
/// How long the output may stay open and silent when no process of ours is left: a stranger holds it.
const DRAIN: Duration = Duration::from_secs(2);
/// How long such a stranger may go on writing: what our own have left in the pipe is at most 1 MiB.
const LONGEST_DRAIN: Duration = Duration::from_secs(30);
/// How long a full disk is waited for while the command lives, and when only its last output is left.
const FULL_PATIENCE: Duration = Duration::from_secs(300);
const FULL_PATIENCE_AT_END: Duration = Duration::from_secs(10);
/// A grace asked for is cut to this.
const MAX_GRACE: Duration = Duration::from_secs(3600);

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    /// Nothing before this instant, if there is one, unless something happens.
    Wait(Option<Instant>),
    Terminate,
    Kill,
    /// The disk has been full for too long: give up the output, and the command with it.
    AbandonOutput,
    Finish,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    /// TERM is due.
    Ending {
        grace: Duration,
    },
    Terminating {
        kill_at: Instant,
    },
    Killing {
        next: Instant,
        give_up_at: Instant,
    },
}

#[derive(Debug)]
pub(crate) struct Lifetime {
    phase: Phase,
    main: Option<Exit>,
    linger_until: Option<Instant>,
    tree_empty: bool,
    output_ended: bool,
    drain_until: Option<Instant>,
    drain_until_at_last: Option<Instant>,
    full_since: Option<Instant>,
}

impl Lifetime {
    pub(crate) fn new() -> Self {
        Self {
            phase: Phase::Running,
            main: None,
            linger_until: None,
            tree_empty: false,
            output_ended: false,
            drain_until: None,
            drain_until_at_last: None,
            full_since: None,
        }
    }

    pub(crate) fn exit(&self) -> Option<Exit> {
        self.main
    }

    /// Whether no process is left: then the output's bound does not matter any more, for nothing is added to the pipe.
    pub(crate) fn is_tree_empty(&self) -> bool {
        self.tree_empty
    }

    pub(crate) fn main_ended(&mut self, exit: Exit, now: Instant) {
        self.main = Some(exit);
        self.linger_until = Some(
            now + if self.output_ended {
                LINGER_SILENT
            } else {
                LINGER
            },
        );
    }

    pub(crate) fn tree_emptied(&mut self, now: Instant) {
        self.tree_empty = true;
        self.drain_until = Some(now + DRAIN);
        self.drain_until_at_last = Some(now + LONGEST_DRAIN);
    }

    pub(crate) fn output_read(&mut self, now: Instant) {
        self.full_since = None;
        let at_last = self.drain_until_at_last;
        self.drain_until = at_last.map(|at_last| at_last.min(now + DRAIN));
    }

    pub(crate) fn output_ended(&mut self, now: Instant) {
        self.output_ended = true;
        let silent = now + LINGER_SILENT;
        self.linger_until = self.linger_until.map(|until| until.min(silent));
    }

    /// A write into the spool failed; `output_read` takes it back.
    pub(crate) fn disk_full(&mut self, now: Instant) {
        self.full_since.get_or_insert(now);
    }

    /// The master asks for the end. Asking again can only shorten the grace.
    pub(crate) fn stop(&mut self, grace: Duration, now: Instant) {
        let grace = grace.min(MAX_GRACE);
        match &mut self.phase {
            Phase::Running => self.phase = Phase::Ending { grace },
            Phase::Ending { grace: earlier } => *earlier = grace.min(*earlier),
            Phase::Terminating { kill_at } => *kill_at = (now + grace).min(*kill_at),
            Phase::Killing { .. } => {}
        }
    }

    /// The main process has ended, and the rest cannot have heard that it was asked to: of the grace it has what
    /// leftovers have.
    #[cfg_attr(
        not(any(windows, test)),
        expect(dead_code, reason = "TERM reaches everybody here")
    )]
    pub(crate) fn rest_is_deaf(&mut self, now: Instant) {
        if let Phase::Terminating { kill_at } = &mut self.phase {
            *kill_at = (now + LEFTOVER_GRACE).min(*kill_at);
        }
    }

    pub(crate) fn next(&mut self, now: Instant) -> Act {
        if self.tree_empty && (self.output_ended || self.is_drained(now)) {
            return Act::Finish;
        }
        if let Some(since) = self.full_since
            && now >= since + self.full_patience()
        {
            self.full_since = None;
            self.stop(Duration::ZERO, now);
            return Act::AbandonOutput;
        }
        match self.phase {
            Phase::Running => match self.linger_until {
                Some(until) if now >= until && !self.tree_empty => {
                    self.phase = Phase::Terminating {
                        kill_at: now + LEFTOVER_GRACE,
                    };
                    Act::Terminate
                }
                until => self.wait(until.filter(|_| !self.tree_empty)),
            },
            Phase::Ending { grace } => {
                self.phase = Phase::Terminating {
                    kill_at: now + grace,
                };
                Act::Terminate
            }
            Phase::Terminating { .. } | Phase::Killing { .. } if self.tree_empty => self.wait(None),
            Phase::Terminating { kill_at } if now >= kill_at => {
                self.phase = Phase::Killing {
                    next: now + KILL_PAUSE,
                    give_up_at: now + KILL_PATIENCE,
                };
                Act::Kill
            }
            Phase::Terminating { kill_at } => self.wait(Some(kill_at)),
            Phase::Killing { give_up_at, .. } if now >= give_up_at => Act::Finish,
            Phase::Killing { next, give_up_at } if now >= next => {
                self.phase = Phase::Killing {
                    next: now + KILL_PAUSE,
                    give_up_at,
                };
                Act::Kill
            }
            Phase::Killing { next, .. } => self.wait(Some(next)),
        }
    }

    fn is_drained(&self, now: Instant) -> bool {
        self.full_since.is_none() && self.drain_until.is_some_and(|until| now >= until)
    }

    fn full_patience(&self) -> Duration {
        if self.tree_empty {
            FULL_PATIENCE_AT_END
        } else {
            FULL_PATIENCE
        }
    }

    /// Waits for the earliest of the given instant and those of the output.
    fn wait(&self, until: Option<Instant>) -> Act {
        let full = self.full_since.map(|since| since + self.full_patience());
        let drained = self.drain_until.filter(|_| self.full_since.is_none());
        Act::Wait([until, full, drained].into_iter().flatten().min())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: Exit = Exit::Code { code: 0 };

    #[test]
    fn an_end_without_leftovers_is_recorded_at_once() {
        let now = Instant::now();
        let mut life = Lifetime::new();
        assert_eq!(life.next(now), Act::Wait(None));
        life.main_ended(OK, now);
        life.tree_emptied(now);
        assert!(
            matches!(life.next(now), Act::Wait(Some(_))),
            "the output is still open"
        );
        life.output_ended(now);
        assert_eq!(life.next(now), Act::Finish);
    }

    #[test]
    fn leftovers_get_term_then_kill_and_then_are_given_up() {
        let mut now = Instant::now();
        let mut life = Lifetime::new();
        life.main_ended(OK, now);
        assert_eq!(life.next(now), Act::Wait(Some(now + LINGER)));
        now += LINGER;
        assert_eq!(life.next(now), Act::Terminate);
        assert_eq!(life.next(now), Act::Wait(Some(now + LEFTOVER_GRACE)));
        now += LEFTOVER_GRACE;
        assert_eq!(life.next(now), Act::Kill);
        now += KILL_PAUSE;
        assert_eq!(life.next(now), Act::Kill);
        now += KILL_PATIENCE;
        assert_eq!(life.next(now), Act::Finish);
    }

    #[test]
    fn a_second_stop_shortens_the_grace_and_never_lengthens_it() {
        let now = Instant::now();
        let mut life = Lifetime::new();
        life.stop(Duration::from_secs(30), now);
        assert_eq!(life.next(now), Act::Terminate);
        life.stop(Duration::from_secs(60), now);
        assert_eq!(
            life.next(now),
            Act::Wait(Some(now + Duration::from_secs(30)))
        );
        life.stop(Duration::ZERO, now);
        assert_eq!(life.next(now), Act::Kill);
    }

    #[test]
    fn who_cannot_hear_does_not_have_the_whole_grace() {
        let now = Instant::now();
        let mut life = Lifetime::new();
        life.rest_is_deaf(now);
        assert_eq!(life.next(now), Act::Wait(None));
        life.stop(Duration::from_secs(60), now);
        assert_eq!(life.next(now), Act::Terminate);
        life.rest_is_deaf(now);
        assert_eq!(life.next(now), Act::Wait(Some(now + LEFTOVER_GRACE)));
    }

    #[test]
    fn a_full_disk_is_waited_for_and_then_ends_the_command() {
        let mut now = Instant::now();
        let mut life = Lifetime::new();
        life.disk_full(now);
        assert_eq!(life.next(now), Act::Wait(Some(now + FULL_PATIENCE)));
        life.output_read(now);
        assert_eq!(life.next(now), Act::Wait(None));
        life.disk_full(now);
        now += FULL_PATIENCE;
        assert_eq!(life.next(now), Act::AbandonOutput);
        assert_eq!(life.next(now), Act::Terminate);
        assert_eq!(life.next(now), Act::Kill);
    }

    #[test]
    fn output_held_open_by_a_stranger_ends_after_its_last_byte() {
        let mut now = Instant::now();
        let mut life = Lifetime::new();
        life.main_ended(OK, now);
        life.tree_emptied(now);
        now += DRAIN / 2;
        life.output_read(now);
        now += DRAIN / 2;
        assert!(matches!(life.next(now), Act::Wait(Some(_))));
        now += DRAIN;
        assert_eq!(life.next(now), Act::Finish);
    }

    #[test]
    fn a_stranger_who_never_stops_writing_does_not_hold_the_end() {
        let began = Instant::now();
        let mut life = Lifetime::new();
        life.main_ended(OK, began);
        life.tree_emptied(began);
        let writes = (0..1000).map(|step| began + DRAIN / 4 * step);
        let end = writes
            .take_while(|now| {
                life.output_read(*now);
                life.next(*now) != Act::Finish
            })
            .last();
        assert!(end.is_some_and(|end| end < began + LONGEST_DRAIN));
    }
}
