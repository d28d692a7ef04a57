//! Who ends first when the guest runs out of memory: the command, and not the agent that has to tell of it.
//!
//! Linux kills the process with the highest score, which a child inherits. Anybody may raise his own, and take back what he
//! raised.

use std::fs;

const SCORE: &str = "/proc/self/oom_score_adj";
/// Half of all memory is added to what a process has: any that the command starts goes before the agent and sshd.
const COMMANDS: i32 = 500;

/// The score that a command inherits, for as long as this lives.
#[derive(Debug)]
pub(super) struct Sacrifice {
    before: Option<String>,
}

impl Sacrifice {
    pub(super) fn begin() -> Sacrifice {
        let before = fs::read_to_string(SCORE).ok();
        let is_lower = |score: &String| {
            score
                .trim()
                .parse()
                .is_ok_and(|score: i32| score < COMMANDS)
        };
        Sacrifice {
            before: before
                .filter(is_lower)
                .filter(|_| fs::write(SCORE, COMMANDS.to_string()).is_ok()),
        }
    }
}

impl Drop for Sacrifice {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // Then it goes first as well: no worse than without.
            fs::write(SCORE, before.trim()).ok();
        }
    }
}
