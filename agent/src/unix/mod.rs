//! Everything that only Unix knows: sessions, process trees, poll, sockets, file modes.
//!
//! The rest of the agent uses the names exported here, so that another system's module can stand beside this one.

mod child;
mod clock;
mod files;
mod launch;
mod link;
mod memory;
mod orders;
mod supervise;
mod terminal;
mod tree;

pub(crate) use clock::step_clock;
pub(crate) use files::{
    create_private_dir, is_executable, make_removable, open_regular, raw_stdout, reserve,
    set_executable,
};
pub(crate) use launch::{launch_supervisor, prepare_connection};
pub(crate) use link::{Link, connect};
pub(crate) use supervise::supervise;
pub(crate) use terminal::enter_terminal;
