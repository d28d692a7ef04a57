//! The messages' form on the wire, written out: another agent may be built from it.

use proptest::prelude::*;
use std::collections::BTreeMap;
use vivarium_protocol::{
    CollectedFile, Execution, ExecutionState, Exit, Frame, Hello, Pty, Skipped, StepCommand,
    ToAgent, ToMaster,
};

fn id() -> Execution {
    Execution("job-1".into())
}

fn json(frame: Frame) -> String {
    match frame {
        Frame::Control(json) => String::from_utf8(json).unwrap(),
        other => panic!("not a message: {other:?}"),
    }
}

#[test]
fn messages_to_the_agent_look_like_this() {
    let command = StepCommand {
        shell: vec!["sh".into(), "-c".into()],
        script: "make".into(),
        dir: "work".into(),
        env: BTreeMap::from([("CI".into(), "true".into())]),
        spool_bytes: 1024,
        pty: None,
    };
    let on_terminal = StepCommand {
        pty: Some(Pty {
            columns: 120,
            rows: 40,
        }),
        ..command.clone()
    };
    let (dir, path, execution) = ("work".to_owned(), "a/b".to_owned(), id());
    let messages = [
        (
            ToAgent::Ping { sequence: 1 },
            r#"{"type":"ping","sequence":1}"#,
        ),
        (
            ToAgent::Unpack { dir: dir.clone() },
            r#"{"type":"unpack","dir":"work"}"#,
        ),
        (
            ToAgent::Write {
                path,
                executable: true,
            },
            r#"{"type":"write","path":"a/b","executable":true}"#,
        ),
        (ToAgent::EndOfData, r#"{"type":"end_of_data"}"#),
        (
            ToAgent::Start {
                execution: id(),
                command,
            },
            r#"{"type":"start","execution":"job-1","command":{"shell":["sh","-c"],"script":"make","dir":"work","env":{"CI":"true"},"spool_bytes":1024}}"#,
        ),
        (
            ToAgent::Start {
                execution: id(),
                command: on_terminal,
            },
            r#"{"type":"start","execution":"job-1","command":{"shell":["sh","-c"],"script":"make","dir":"work","env":{"CI":"true"},"spool_bytes":1024,"pty":{"columns":120,"rows":40}}}"#,
        ),
        (
            ToAgent::Attach {
                execution: id(),
                from: 5,
            },
            r#"{"type":"attach","execution":"job-1","from":5}"#,
        ),
        (
            ToAgent::Acknowledge {
                execution: id(),
                until: 5,
            },
            r#"{"type":"acknowledge","execution":"job-1","until":5}"#,
        ),
        (
            ToAgent::Stop {
                execution,
                grace_ms: 9,
            },
            r#"{"type":"stop","execution":"job-1","grace_ms":9}"#,
        ),
        (
            ToAgent::Collect {
                dir,
                globs: vec!["**".into()],
                max_files: 1,
                max_bytes: 2,
            },
            r#"{"type":"collect","dir":"work","globs":["**"],"max_files":1,"max_bytes":2}"#,
        ),
        (
            ToAgent::SetClock { unix_ms: 3 },
            r#"{"type":"set_clock","unix_ms":3}"#,
        ),
    ];
    for (message, text) in messages {
        assert_eq!(json(Frame::to_agent(&message)), text);
        assert_eq!(Frame::parse::<ToAgent>(text.as_bytes()).unwrap(), message);
    }
}

#[test]
fn messages_to_the_master_look_like_this() {
    let hello = Hello {
        protocol: 1,
        agent_version: "0.1.0".into(),
        os: "linux".into(),
        arch: "x86_64".into(),
        pid: 7,
        unix_ms: 8,
    };
    let exited = |exit| ToMaster::Exited {
        execution: id(),
        exit,
        output_bytes: 4,
    };
    let file = CollectedFile {
        path: "a".into(),
        size: 1,
        executable: false,
    };
    let skipped = Skipped {
        path: "b".into(),
        why: "w".into(),
    };
    let messages = [
        (
            ToMaster::Hello(hello),
            r#"{"type":"hello","protocol":1,"agent_version":"0.1.0","os":"linux","arch":"x86_64","pid":7,"unix_ms":8}"#,
        ),
        (
            ToMaster::Pong { sequence: 1 },
            r#"{"type":"pong","sequence":1}"#,
        ),
        (
            ToMaster::Unpacked { entries: 2 },
            r#"{"type":"unpacked","entries":2}"#,
        ),
        (
            ToMaster::Written { bytes: 2 },
            r#"{"type":"written","bytes":2}"#,
        ),
        (
            ToMaster::Started {
                execution: id(),
                state: ExecutionState::New,
            },
            r#"{"type":"started","execution":"job-1","state":{"state":"new"}}"#,
        ),
        (
            ToMaster::Started {
                execution: id(),
                state: ExecutionState::Attached,
            },
            r#"{"type":"started","execution":"job-1","state":{"state":"attached"}}"#,
        ),
        (
            ToMaster::Unknown { execution: id() },
            r#"{"type":"unknown","execution":"job-1"}"#,
        ),
        (
            exited(Exit::Code { code: 2 }),
            r#"{"type":"exited","execution":"job-1","exit":{"how":"code","code":2},"output_bytes":4}"#,
        ),
        (
            exited(Exit::Signal { signal: 9 }),
            r#"{"type":"exited","execution":"job-1","exit":{"how":"signal","signal":9},"output_bytes":4}"#,
        ),
        (
            exited(Exit::Lost),
            r#"{"type":"exited","execution":"job-1","exit":{"how":"lost"},"output_bytes":4}"#,
        ),
        (
            ToMaster::File(file),
            r#"{"type":"file","path":"a","size":1,"executable":false}"#,
        ),
        (
            ToMaster::EndOfFile {
                sha256: "00".into(),
            },
            r#"{"type":"end_of_file","sha256":"00"}"#,
        ),
        (
            ToMaster::Collected {
                files: 1,
                bytes: 1,
                skipped: vec![skipped],
            },
            r#"{"type":"collected","files":1,"bytes":1,"skipped":[{"path":"b","why":"w"}]}"#,
        ),
        (
            ToMaster::ClockSet { stepped_ms: -5 },
            r#"{"type":"clock_set","stepped_ms":-5}"#,
        ),
        (
            ToMaster::Failed {
                request: "start".into(),
                message: "no".into(),
            },
            r#"{"type":"failed","request":"start","message":"no"}"#,
        ),
    ];
    for (message, text) in messages {
        assert_eq!(json(Frame::to_master(&message)), text);
        assert_eq!(Frame::parse::<ToMaster>(text.as_bytes()).unwrap(), message);
    }
}

#[test]
fn an_execution_is_named_by_at_most_64_harmless_characters() {
    for name in ["a", "job-204_2", &"x".repeat(64)] {
        assert!(Execution(name.into()).is_valid(), "{name:?}");
    }
    for name in [
        "",
        ".",
        "..",
        "a/b",
        "a\\b",
        "a b",
        "é",
        "a\0",
        &"x".repeat(65),
    ] {
        assert!(!Execution(name.into()).is_valid(), "{name:?}");
    }
}

proptest! {
    #[test]
    fn no_control_message_panics(json in proptest::collection::vec(any::<u8>(), 0..500), text in ".{0,300}") {
        for bytes in [&json[..], text.as_bytes()] {
            Frame::parse::<ToAgent>(bytes).ok();
            Frame::parse::<ToMaster>(bytes).ok();
        }
    }
}
