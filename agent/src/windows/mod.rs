//! Everything that only Windows knows: job objects, consoles, handles that are inherited, `cmd`'s own quoting.
//!
//! ```text
//!   serve ──DETACHED, out of sshd's job──> supervise ──job object, kill on close──> the command and its descendants
//!     └── control file: port and word ──loopback TCP──┘
//! ```
//!
//! The rest of the agent uses the names exported here; `unix` beside it offers the same. What Windows wants in `unsafe`
//! is in `sys`, and nowhere else.

mod child;
mod control;
mod files;
mod launch;
mod lock;
mod supervise;
mod sys;
mod terminal;
mod words;

pub(crate) use control::{Stream, dial};
pub(crate) use files::{
    check_name, create_private_dir, enter, is_executable, make_removable, open_regular, raw_stdout,
    remove, rename, reserve, resolve, set_executable, write_link,
};
pub(crate) use launch::{detach, prepare_connection, spawn_supervisor};
pub(crate) use lock::{is_supervised, lock_execution};
pub(crate) use supervise::Supervisor;
pub(crate) use sys::step_clock;
pub(crate) use terminal::enter_terminal;
