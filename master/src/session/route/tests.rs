//! What a guest may say, and what it may not.

use super::*;
use proptest::prelude::*;
use vivarium_protocol::{CollectedFile, Exit};

fn router() -> Router {
    Router::new("vm-17", Arc::new(Gate::default()))
}

fn turn() -> Turn {
    Arc::new(tokio::sync::Mutex::new(()))
        .try_lock_owned()
        .unwrap()
}

fn id(name: &str) -> Execution {
    Execution(name.to_owned())
}

fn output(offset: u64, text: &str) -> Frame {
    Frame::Output {
        offset,
        bytes: text.as_bytes().to_vec(),
    }
}

type Answered = oneshot::Receiver<Result<Option<ExecutionState>, String>>;

fn ask(router: &Router, name: &str, from: u64) -> (Answered, super::super::follow::Events) {
    let (answer, answered) = oneshot::channel();
    let (queue, events) = mpsc::unbounded_channel();
    let request = FollowRequest {
        execution: id(name),
        from,
        answer,
        queue,
        turn: turn(),
    };
    router.await_follow(request).unwrap();
    (answered, events)
}

fn started(name: &str) -> Frame {
    Frame::to_master(&ToMaster::Started {
        execution: id(name),
        state: ExecutionState::New,
    })
}

fn exited(name: &str, output_bytes: u64) -> Frame {
    Frame::to_master(&ToMaster::Exited {
        execution: id(name),
        exit: Exit::Code { code: 0 },
        output_bytes,
    })
}

#[test]
fn output_is_contiguous_or_the_guest_is_wrong() {
    for wrong in [
        output(7, "gap"),
        output(4, "overlap"),
        output(0, "again"),
        exited("a", 4),
        exited("a", 6),
    ] {
        let router = router();
        let (_answered, _events) = ask(&router, "a", 2);
        router.take(started("a")).unwrap();
        router.take(output(2, "abc")).unwrap();
        assert!(router.take(wrong).is_err());
    }
    let router = router();
    let (_answered, mut events) = ask(&router, "a", 2);
    router.take(started("a")).unwrap();
    router.take(output(2, "abc")).unwrap();
    router.take(exited("a", 5)).unwrap();
    assert!(matches!(
        events.try_recv().unwrap().take(),
        Ok(FollowEvent::Output { offset: 2, .. })
    ));
    assert!(matches!(
        events.try_recv().unwrap().take(),
        Ok(FollowEvent::Exited { .. })
    ));
}

#[test]
fn output_of_the_one_followed_before_is_not_the_next_ones() {
    let router = router();
    let (_answered, mut first) = ask(&router, "first", 0);
    router.take(started("first")).unwrap();
    let (mut answered, mut second) = ask(&router, "second", 0);
    router.take(output(0, "old")).unwrap();
    router.take(exited("first", 3)).unwrap();
    router.take(started("second")).unwrap();
    router.take(output(0, "new")).unwrap();
    assert!(answered.try_recv().unwrap().is_ok());
    assert!(first.try_recv().is_err());
    assert!(second.try_recv().is_ok());
}

#[test]
fn what_nobody_asked_for_ends_the_connection() {
    let file = ToMaster::File(CollectedFile {
        path: "a".to_owned(),
        size: 1,
        executable: false,
    });
    let end = ToMaster::EndOfFile {
        sha256: String::new(),
    };
    let collected = ToMaster::Collected {
        files: 0,
        bytes: 0,
        skipped: Vec::new(),
    };
    for frame in [
        started("a"),
        Frame::Data(vec![0]),
        Frame::to_master(&file),
        Frame::to_master(&end),
        Frame::to_master(&collected),
        Frame::to_master(&ToMaster::Unpacked { entries: 1 }),
        Frame::to_master(&ToMaster::Written { bytes: 1 }),
        Frame::Control(b"{}".to_vec()),
    ] {
        assert!(router().take(frame.clone()).is_err(), "{frame:?}");
    }
}

#[test]
fn an_agent_that_only_complains_is_given_up() {
    let router = router();
    let complaints = [
        ToMaster::Unknown {
            execution: id("nobody"),
        },
        ToMaster::Failed {
            request: "stop".to_owned(),
            message: "no".to_owned(),
        },
    ];
    let mut complaints = complaints.iter().cycle().map(Frame::to_master);
    let few = complaints.by_ref().take(MOST_COMPLAINTS as usize);
    assert!(few.into_iter().all(|frame| router.take(frame).is_ok()));
    assert!(
        complaints
            .next()
            .is_some_and(|frame| router.take(frame).is_err())
    );
}

#[test]
fn a_request_whose_caller_has_gone_keeps_its_place() {
    let router = router();
    let (answered, events) = ask(&router, "gone", 0);
    drop((answered, events));
    router.take(started("gone")).unwrap();
    router.take(output(0, "for nobody")).unwrap();
    assert!(!router.gate.is_shut());
}

#[test]
fn after_the_end_nothing_is_awaited() {
    let router = router();
    let (mut answered, _events) = ask(&router, "a", 0);
    router.end(Ending::Lost("cut".to_owned()));
    router.end(Ending::Lost("later".to_owned()));
    assert!(answered.try_recv().is_err());
    assert!(router.lost().to_string().contains("cut"));
    let (answer, _answered) = oneshot::channel();
    assert!(router.await_upload(Upload::Write, answer).is_err());
}

proptest! {
    #[test]
    fn no_frame_makes_it_panic(offset in any::<u64>(), bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let router = router();
        let (_answered, _events) = ask(&router, "a", offset);
        router.take(started("a")).unwrap();
        let length = bytes.len() as u64;
        let counted = router.take(Frame::Output { offset, bytes: bytes.clone() }).is_ok();
        prop_assert_eq!(counted, offset.checked_add(length).is_some());
        router.take(Frame::Control(bytes.clone())).ok();
        router.take(Frame::Data(bytes)).ok();
    }
}
