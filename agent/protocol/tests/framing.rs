//! Framing against everything a stranger may send: any split of a stream, garbage, lying lengths.

use proptest::prelude::*;
use vivarium_protocol::{
    DATA_HEAD, Decoder, Frame, FrameError, MAX_CONTROL, MAX_DATA, MAX_FRAME, OUTPUT_HEAD,
    data_head, output_head,
};

fn any_frame() -> impl Strategy<Value = Frame> {
    let content = || proptest::collection::vec(any::<u8>(), 0..2000);
    prop_oneof![
        content().prop_map(Frame::Control),
        (any::<u64>(), content()).prop_map(|(offset, bytes)| Frame::Output { offset, bytes }),
        content().prop_map(Frame::Data),
    ]
}

fn encode(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for frame in frames {
        frame.encode(&mut bytes);
    }
    bytes
}

/// Feeds the stream in pieces whose sizes are taken from `sizes`, over and over.
fn decode(stream: &[u8], sizes: &[usize]) -> Result<(Vec<Frame>, Decoder), FrameError> {
    let mut decoder = Decoder::new();
    let mut frames = Vec::new();
    let mut rest = stream;
    let mut sizes = sizes.iter().cycle();
    while !rest.is_empty() {
        let size = sizes.next().copied().unwrap_or(1).clamp(1, rest.len());
        let (piece, later) = rest.split_at(size);
        decoder.push(piece);
        while let Some(frame) = decoder.next_frame()? {
            frames.push(frame);
        }
        rest = later;
    }
    Ok((frames, decoder))
}

proptest! {
    #[test]
    fn any_split_of_a_stream_gives_the_same_frames(
        frames in proptest::collection::vec(any_frame(), 0..12),
        sizes in proptest::collection::vec(1usize..5000, 1..8),
    ) {
        let (decoded, decoder) = decode(&encode(&frames), &sizes).unwrap();
        prop_assert_eq!(decoded, frames);
        prop_assert!(!decoder.is_mid_frame());
    }

    #[test]
    fn a_stream_that_is_cut_gives_the_whole_frames_and_says_that_it_was_cut(
        frames in proptest::collection::vec(any_frame(), 1..5),
        cut in any::<prop::sample::Index>(),
    ) {
        let stream = encode(&frames);
        let cut = cut.index(stream.len());
        let (decoded, decoder) = decode(&stream[..cut], &[4096]).unwrap();
        let whole = encode(&decoded);
        prop_assert!(stream.starts_with(&whole));
        prop_assert_eq!(decoder.is_mid_frame(), whole.len() < cut);
    }

    #[test]
    fn garbage_neither_panics_nor_is_hoarded(
        garbage in proptest::collection::vec(any::<u8>(), 0..4000),
        sizes in proptest::collection::vec(1usize..300, 1..5),
    ) {
        if let Ok((frames, _)) = decode(&garbage, &sizes) {
            prop_assert!(encode(&frames).len() <= garbage.len());
        }
    }

    #[test]
    fn one_changed_byte_never_panics(
        frames in proptest::collection::vec(any_frame(), 1..5),
        place in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let mut stream = encode(&frames);
        let place = place.index(stream.len());
        stream[place] = byte;
        decode(&stream, &[777]).ok();
    }

    #[test]
    fn a_length_that_its_kind_does_not_allow_is_refused_before_the_content_comes(
        length in any::<u32>(),
        kind in any::<u8>(),
    ) {
        let mut decoder = Decoder::new();
        decoder.push(&length.to_be_bytes());
        decoder.push(&[kind]);
        let length = length as usize;
        let most = match kind {
            0 => 1 + MAX_CONTROL,
            1 => 9 + MAX_DATA,
            2 => 1 + MAX_DATA,
            _ => 0,
        };
        let least = if kind == 1 { 9 } else { 1 };
        let allowed = (least..=most).contains(&length);
        prop_assert_eq!(decoder.next_frame().is_ok(), allowed);
    }

    #[test]
    fn heads_are_what_whole_frames_begin_with(
        offset in any::<u64>(),
        bytes in proptest::collection::vec(any::<u8>(), 0..1000),
    ) {
        let output = [&output_head(offset, bytes.len())[..], &bytes[..]].concat();
        let data = [&data_head(bytes.len())[..], &bytes[..]].concat();
        prop_assert_eq!(output.len(), OUTPUT_HEAD + bytes.len());
        prop_assert_eq!(data.len(), DATA_HEAD + bytes.len());
        prop_assert_eq!(output, Frame::Output { offset, bytes: bytes.clone() }.into_bytes());
        prop_assert_eq!(data, Frame::Data(bytes).into_bytes());
    }
}

#[test]
fn the_largest_frames_pass() {
    for frame in [
        Frame::Control(vec![b' '; MAX_CONTROL]),
        Frame::Output {
            offset: u64::MAX,
            bytes: vec![1; MAX_DATA],
        },
        Frame::Data(vec![2; MAX_DATA]),
    ] {
        let (decoded, _) = decode(&frame.clone().into_bytes(), &[65_536]).unwrap();
        assert_eq!(decoded, [frame]);
    }
}

#[test]
fn lying_lengths_and_unknown_kinds_are_told_apart() {
    let refuse = |bytes: &[u8]| {
        let mut decoder = Decoder::new();
        decoder.push(bytes);
        decoder.next_frame().unwrap_err()
    };
    assert!(matches!(refuse(&[0, 0, 0, 0]), FrameError::TooShort(0)));
    assert!(matches!(refuse(&[0xff; 4]), FrameError::TooLong(_)));
    assert!(matches!(refuse(&[0, 0, 0, 8, 1]), FrameError::TooShort(8)));
    assert!(matches!(
        refuse(&[0, 0, 0, 1, 3]),
        FrameError::UnknownKind(3)
    ));
    let over = (MAX_FRAME as u32 + 1).to_be_bytes();
    assert!(matches!(refuse(&over), FrameError::TooLong(_)));
}

#[test]
fn the_buffer_stays_below_two_frames_and_two_reads() {
    let frame = Frame::Data(vec![0; MAX_DATA - 1]).into_bytes();
    let mut decoder = Decoder::new();
    let read = 100_000;
    for piece in frame.repeat(40).chunks(read) {
        decoder.push(piece);
        while decoder.next_frame().unwrap().is_some() {}
        assert!(
            decoder.buffered_bytes() <= 2 * (MAX_FRAME + 4 + read),
            "{}",
            decoder.buffered_bytes()
        );
    }
}
