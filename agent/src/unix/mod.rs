//! Everything that only Unix knows: sessions, process trees, poll, sockets, file modes.
//!
//! The rest of the agent uses the names exported here; `windows` beside it offers the same.

mod child;
mod clock;
mod files;
mod launch;
mod lock;
mod memory;
mod orders;
mod supervise;
mod terminal;
mod tree;

pub(crate) use clock::step_clock;
pub(crate) use files::{
    check_name, create_private_dir, enter, is_executable, make_removable, open_regular, raw_stdout,
    remove, rename, reserve, resolve, set_executable, write_link,
};
pub(crate) use launch::{detach, prepare_connection, spawn_supervisor};
pub(crate) use lock::{is_supervised, lock_execution};
pub(crate) use orders::{Stream, dial};
pub(crate) use supervise::Supervisor;
pub(crate) use terminal::enter_terminal;
