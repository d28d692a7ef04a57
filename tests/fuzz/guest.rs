//! What a guest sends: frames, names of files, reports.

use crate::assert_plain;
use std::path::{Component, Path};
use vivarium::result::artifacts::check_name;
use vivarium::result::junit;
use vivarium_protocol::{Decoder, Frame, MAX_FRAME, ToAgent, ToMaster};

/// The first byte says in which pieces the rest arrives.
pub(crate) fn frames(data: &[u8]) {
    let Some((size, stream)) = data.split_first() else {
        return;
    };
    let pieces = usize::from(*size).max(1);
    let mut decoder = Decoder::new();
    let mut whole = Vec::new();
    'stream: for piece in stream.chunks(pieces) {
        decoder.push(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => {
                    if let Frame::Control(json) = &frame {
                        understand(json);
                    }
                    frame.encode(&mut whole);
                }
                Ok(None) => break,
                Err(error) => {
                    assert_plain(&error.to_string());
                    break 'stream;
                }
            }
        }
        assert!(decoder.buffered_bytes() <= 2 * (4 + MAX_FRAME) + piece.len());
    }
    assert!(
        stream.starts_with(&whole),
        "the frames are not the stream's"
    );
}

/// A message that is understood is said the same way again.
fn understand(json: &[u8]) {
    if let Ok(message) = Frame::parse::<ToMaster>(json) {
        let Frame::Control(again) = Frame::to_master(&message) else {
            panic!("a message is a control frame");
        };
        let understood: ToMaster = Frame::parse(&again).expect("what we write we read");
        assert_eq!(format!("{understood:?}"), format!("{message:?}"));
    }
    if let Ok(message) = Frame::parse::<ToAgent>(json) {
        let Frame::Control(again) = Frame::to_agent(&message) else {
            panic!("a message is a control frame");
        };
        let understood: ToAgent = Frame::parse(&again).expect("what we write we read");
        assert_eq!(format!("{understood:?}"), format!("{message:?}"));
    }
}

pub(crate) fn artifact_name(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match check_name(text) {
        Ok(name) => {
            let path = Path::new(name.as_str());
            assert!(path.components().all(|c| matches!(c, Component::Normal(_))));
            assert_eq!(path.components().count(), name.parts().count());
            assert_plain(name.as_str());
            assert!(!name.as_str().contains(['\\', '\n']));
        }
        Err(error) => assert_plain(&error.to_string()),
    }
}

pub(crate) fn junit(data: &[u8]) {
    if let Ok(counts) = junit::parse(data) {
        let names: usize = counts.failing.iter().map(String::len).sum();
        assert!(counts.failing.len() <= 50 && names <= 50 * 200 * 4);
    }
}
