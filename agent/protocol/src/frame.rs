//! Framing: bytes in, frames out, with every length checked before it is believed.

use crate::{ToAgent, ToMaster};
use serde::{Serialize, de::DeserializeOwned};

/// The most a control message may take, in bytes.
pub const MAX_CONTROL: usize = 256 * 1024;
/// The most content one output or data frame carries, in bytes.
pub const MAX_DATA: usize = 256 * 1024;
/// The largest `length` that a frame may declare: kind, an output offset and the content.
pub const MAX_FRAME: usize = 1
    + 8
    + if MAX_CONTROL > MAX_DATA {
        MAX_CONTROL
    } else {
        MAX_DATA
    };

const KIND_CONTROL: u8 = 0;
const KIND_OUTPUT: u8 = 1;
const KIND_DATA: u8 = 2;

/// One unit on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A JSON message, not yet parsed.
    Control(Vec<u8>),
    /// Output of the execution followed last; `offset` is the place of its first byte in the whole output.
    Output { offset: u64, bytes: Vec<u8> },
    /// Content of a file or of an archive.
    Data(Vec<u8>),
}

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("a frame declares {0} bytes, at most {MAX_FRAME} are allowed")]
    TooLong(usize),
    #[error("a frame of {0} bytes is too short for its kind")]
    TooShort(usize),
    #[error("a frame has the unknown kind {0}")]
    UnknownKind(u8),
    #[error("a control message does not parse: {0}")]
    Json(#[from] serde_json::Error),
}

impl Frame {
    /// A control message for the agent.
    pub fn to_agent(message: &ToAgent) -> Frame {
        Frame::control(message)
    }

    /// A control message for the master.
    pub fn to_master(message: &ToMaster) -> Frame {
        Frame::control(message)
    }

    fn control<T: Serialize>(message: &T) -> Frame {
        // Our own enums of strings and numbers always serialise; an empty frame would be refused by the reader.
        Frame::Control(serde_json::to_vec(message).unwrap_or_default())
    }

    /// Parses the message of a control frame.
    pub fn parse<T: DeserializeOwned>(control: &[u8]) -> Result<T, FrameError> {
        Ok(serde_json::from_slice(control)?)
    }

    /// Appends the frame's bytes to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (kind, offset, content): (u8, Option<u64>, &[u8]) = match self {
            Frame::Control(json) => (KIND_CONTROL, None, json),
            Frame::Output { offset, bytes } => (KIND_OUTPUT, Some(*offset), bytes),
            Frame::Data(bytes) => (KIND_DATA, None, bytes),
        };
        let length = 1 + offset.map_or(0, |_| 8) + content.len();
        debug_assert!(length <= MAX_FRAME, "the sender splits what it sends");
        out.extend_from_slice(&(length as u32).to_be_bytes());
        out.push(kind);
        if let Some(offset) = offset {
            out.extend_from_slice(&offset.to_be_bytes());
        }
        out.extend_from_slice(content);
    }

    pub fn into_bytes(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(OUTPUT_HEAD);
        self.encode(&mut out);
        out
    }
}

/// How many bytes stand before the content of an output frame.
pub const OUTPUT_HEAD: usize = 4 + 1 + 8;
/// How many bytes stand before the content of a data frame.
pub const DATA_HEAD: usize = 4 + 1;

/// What stands before `length` bytes of output whose first byte has this offset, for a sender that reads the
/// content straight into its place behind the head. `length` is at most [`MAX_DATA`].
pub fn output_head(offset: u64, length: usize) -> [u8; OUTPUT_HEAD] {
    debug_assert!(length <= MAX_DATA, "the sender splits what it sends");
    let [a, b, c, d] = ((1 + 8 + length) as u32).to_be_bytes();
    let [e, f, g, h, i, j, k, l] = offset.to_be_bytes();
    [a, b, c, d, KIND_OUTPUT, e, f, g, h, i, j, k, l]
}

/// The same for a data frame.
pub fn data_head(length: usize) -> [u8; DATA_HEAD] {
    debug_assert!(length <= MAX_DATA, "the sender splits what it sends");
    let [a, b, c, d] = ((1 + length) as u32).to_be_bytes();
    [a, b, c, d, KIND_DATA]
}

/// Turns a byte stream into frames; feed it with what arrives, take frames until it wants more.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
}

impl Decoder {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes. The caller drains [`Decoder::next_frame`] after each call, so that the buffer stays below
    /// one frame plus one read.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 && self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        } else if self.start > MAX_FRAME {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, or `None` until more bytes come. After an error the stream cannot be trusted any more.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let rest = self.buffer.get(self.start..).unwrap_or_default();
        let Some((head, rest)) = rest.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*head) as usize;
        if length > MAX_FRAME {
            return Err(FrameError::TooLong(length));
        }
        if length == 0 {
            return Err(FrameError::TooShort(length));
        }
        if let Some(kind) = rest.first() {
            check_length(*kind, length)?;
        }
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let frame = Self::parse_body(body)?;
        self.start += 4 + length;
        Ok(Some(frame))
    }

    fn parse_body(body: &[u8]) -> Result<Frame, FrameError> {
        let Some((kind, content)) = body.split_first() else {
            return Err(FrameError::TooShort(body.len()));
        };
        match *kind {
            KIND_CONTROL => Ok(Frame::Control(content.to_vec())),
            KIND_OUTPUT => {
                let Some((offset, bytes)) = content.split_first_chunk::<8>() else {
                    return Err(FrameError::TooShort(body.len()));
                };
                Ok(Frame::Output {
                    offset: u64::from_be_bytes(*offset),
                    bytes: bytes.to_vec(),
                })
            }
            KIND_DATA => Ok(Frame::Data(content.to_vec())),
            unknown => Err(FrameError::UnknownKind(unknown)),
        }
    }

    /// How many bytes the decoder holds, those of frames that were taken included.
    pub fn buffered_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Whether bytes of an unfinished frame are waiting.
    pub fn is_mid_frame(&self) -> bool {
        self.start < self.buffer.len()
    }
}

/// Refuses a length that its kind does not allow as soon as the kind is known, before the content is awaited.
fn check_length(kind: u8, length: usize) -> Result<(), FrameError> {
    let (least, most) = match kind {
        KIND_CONTROL => (1, 1 + MAX_CONTROL),
        KIND_OUTPUT => (1 + 8, 1 + 8 + MAX_DATA),
        KIND_DATA => (1, 1 + MAX_DATA),
        unknown => return Err(FrameError::UnknownKind(unknown)),
    };
    if length < least {
        return Err(FrameError::TooShort(length));
    }
    if length > most {
        return Err(FrameError::TooLong(length));
    }
    Ok(())
}
