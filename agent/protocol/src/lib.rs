//! What the master and the agent say to each other. No I/O here.
//!
//! ```text
//!   master                                     agent (in the guest)
//!     |  exec "…/vivarium-agent serve NONCE" over one SSH channel  |
//!     |<------------------ preamble line with NONCE ---------------|
//!     |<================== frames, both ways =====================>|
//! ```
//!
//! A frame is `length: u32 big endian`, `kind: u8`, payload; `length` counts kind and payload.
//! Control messages are JSON ([`ToAgent`], [`ToMaster`]); output and file content travel raw, because
//! guests write any code page. The bounds in this module are checked before memory is taken.

mod frame;
mod message;

pub use frame::{
    DATA_HEAD, Decoder, Frame, FrameError, MAX_CONTROL, MAX_DATA, MAX_FRAME, OUTPUT_HEAD,
    data_head, output_head,
};
pub use message::{
    CollectedFile, Execution, ExecutionState, Exit, Hello, Pty, Skipped, StepCommand, ToAgent,
    ToMaster,
};

/// The version both sides must share; it changes when a message changes its meaning.
pub const PROTOCOL_VERSION: u32 = 1;

/// What the agent prints before its first frame, followed by the nonce and a line feed.
///
/// A guest's shell may print a banner or a message of the day into the channel; the master skips at most
/// [`MAX_BANNER`] bytes until it reads this line with the nonce that it sent.
pub const PREAMBLE: &str = "VIVARIUM-AGENT ";

/// How many bytes of banner the master skips before it gives up.
pub const MAX_BANNER: usize = 64 * 1024;
