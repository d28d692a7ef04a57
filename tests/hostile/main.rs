//! An agent that does not mean well, for tests: the program that an SSH server starts in the place of the shell.
//!
//! ```text
//!   sshd ── ForceCommand hostile-agent CONDUCT [NUMBER] ──► greeting, frames as CONDUCT has them
//! ```
//!
//! It runs nothing that it is asked to. Beyond its conduct it is polite: what the master waits for, comes.

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::time::Duration;
use vivarium_protocol::{
    CollectedFile, Decoder, Execution, ExecutionState, Exit, Frame, Hello, MAX_DATA, PREAMBLE,
    PROTOCOL_VERSION, ToAgent, ToMaster,
};

/// What it does wrong, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Conduct {
    /// Says that all went well.
    Obliging,
    /// Prints so many bytes without a line feed.
    Flood(u64),
    /// Begins a frame of four GiB.
    LongFrame,
    /// Sends bytes that are no frame of any kind.
    Noise,
    /// Leaves a gap in the output.
    Gap,
    /// Ends what has not begun.
    Early,
    /// Prints a byte of a frame every now and then, and never the whole.
    Trickle,
    /// Shows signs of life and takes nothing that it is sent.
    Mute,
    /// Complains without end of requests that nobody made.
    Babble,
    /// Has so many files to collect, of no bytes each.
    Many(u64),
    /// Has one file, of so many bytes as it says.
    Large(u64),
    /// Has files with names that lead elsewhere, one of which is the given.
    Named(usize),
    /// Has a report that grows when it is read.
    Bomb,
}

/// Names that a guest must not choose. The first ones would lead out of the folder.
const NAMES: [&str; 6] = [
    "../../../../tmp/vivarium-escape",
    "/tmp/vivarium-escape",
    "a/../../vivarium-escape",
    "dist/NUL.txt",
    "dist/a\u{202e}txt.exe",
    "dist/C:\\x",
];

fn conduct() -> Result<Conduct> {
    let mut arguments = std::env::args().skip(1);
    let name = arguments.next().context("no conduct is given")?;
    let number: u64 = arguments.next().unwrap_or_default().parse().unwrap_or(0);
    Ok(match name.as_str() {
        "obliging" => Conduct::Obliging,
        "flood" => Conduct::Flood(number),
        "long-frame" => Conduct::LongFrame,
        "noise" => Conduct::Noise,
        "gap" => Conduct::Gap,
        "early" => Conduct::Early,
        "trickle" => Conduct::Trickle,
        "mute" => Conduct::Mute,
        "babble" => Conduct::Babble,
        "many" => Conduct::Many(number),
        "large" => Conduct::Large(number),
        "named" => Conduct::Named(usize::try_from(number)?),
        "bomb" => Conduct::Bomb,
        other => bail!("there is no conduct `{other}`"),
    })
}

struct Agent {
    conduct: Conduct,
    out: std::io::StdoutLock<'static>,
}

impl Agent {
    fn send(&mut self, message: &ToMaster) -> Result<()> {
        self.send_frame(&Frame::to_master(message))
    }

    fn send_frame(&mut self, frame: &Frame) -> Result<()> {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.out.write_all(&bytes)?;
        Ok(self.out.flush()?)
    }

    /// What the real one says before its first frame; the nonce is the last word of what the master wanted run.
    fn greet(&mut self) -> Result<()> {
        let wanted = std::env::var("SSH_ORIGINAL_COMMAND")?;
        let nonce = wanted.split(' ').next_back().unwrap_or_default();
        write!(
            self.out,
            "VIVARIUM-PUSH {nonce} HAVE\n\n{PREAMBLE}{nonce}\n"
        )?;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        self.send(&ToMaster::Hello(Hello {
            protocol: PROTOCOL_VERSION,
            agent_version: "0".to_owned(),
            os: "linux".to_owned(),
            arch: "x86_64".to_owned(),
            pid: 1,
            unix_ms: u64::try_from(now.as_millis())?,
        }))
    }

    fn serve(&mut self) -> Result<()> {
        self.greet()?;
        let mut decoder = Decoder::new();
        let mut input = std::io::stdin().lock();
        let mut buffer = vec![0; 64 << 10];
        let mut upload = None;
        loop {
            while let Some(frame) = decoder.next_frame()? {
                let Frame::Control(json) = frame else {
                    continue;
                };
                match Frame::parse::<ToAgent>(&json)? {
                    ToAgent::Ping { sequence } => self.send(&ToMaster::Pong { sequence })?,
                    ToAgent::Unpack { .. } => upload = Some(ToMaster::Unpacked { entries: 1 }),
                    ToAgent::Write { .. } => upload = Some(ToMaster::Written { bytes: 0 }),
                    ToAgent::EndOfData => {
                        if let Some(answer) = upload.take()
                            && self.conduct != Conduct::Mute
                        {
                            self.send(&answer)?;
                        }
                    }
                    ToAgent::Start { execution, .. } => {
                        self.run(&execution, ExecutionState::New, 0)?;
                    }
                    ToAgent::Attach { execution, from } => {
                        self.run(&execution, ExecutionState::Attached, from)?;
                    }
                    ToAgent::Collect { .. } => self.collect()?,
                    ToAgent::SetClock { .. } => self.send(&ToMaster::ClockSet { stepped_ms: 0 })?,
                    ToAgent::Acknowledge { .. } | ToAgent::Stop { .. } => {}
                }
            }
            match input.read(&mut buffer)? {
                0 => return Ok(()),
                count => decoder.push(buffer.get(..count).unwrap_or_default()),
            }
        }
    }

    fn run(&mut self, execution: &Execution, state: ExecutionState, from: u64) -> Result<()> {
        let mut output_bytes = from;
        let exited = |output_bytes| ToMaster::Exited {
            execution: execution.clone(),
            exit: Exit::Code { code: 0 },
            output_bytes,
        };
        if self.conduct == Conduct::Early {
            self.send(&ToMaster::Collected {
                files: 0,
                bytes: 0,
                skipped: Vec::new(),
            })?;
        }
        self.send(&ToMaster::Started {
            execution: execution.clone(),
            state,
        })?;
        // What is to be cleared away after the job.
        let conduct = match execution.0.ends_with("-leave") {
            true => Conduct::Obliging,
            false => self.conduct,
        };
        match conduct {
            Conduct::Flood(bytes) => {
                let mut frame = Vec::new();
                while output_bytes < bytes {
                    let length = (bytes - output_bytes).min(MAX_DATA as u64);
                    frame.clear();
                    let bytes = vec![b'x'; usize::try_from(length)?];
                    Frame::Output {
                        offset: output_bytes,
                        bytes,
                    }
                    .encode(&mut frame);
                    self.out.write_all(&frame)?;
                    output_bytes += length;
                }
            }
            Conduct::LongFrame => self.out.write_all(&[0xff, 0xff, 0xff, 0xff, 0, b'{'])?,
            Conduct::Noise => self
                .out
                .write_all(&[0, 0, 0, 9, 77, 1, 2, 3, 4, 5, 6, 7, 8])?,
            Conduct::Gap => self.send_frame(&Frame::Output {
                offset: from + 7,
                bytes: b"seven are missing\n".to_vec(),
            })?,
            Conduct::Trickle => {
                let mut frame = Vec::new();
                let bytes = vec![b'x'; MAX_DATA];
                Frame::Output {
                    offset: from,
                    bytes,
                }
                .encode(&mut frame);
                // Longer than any step of the tests may take; then it is gone.
                for byte in frame.into_iter().take(120) {
                    self.out.write_all(&[byte])?;
                    self.out.flush()?;
                    std::thread::sleep(Duration::from_millis(200));
                }
                bail!("it has lost its patience")
            }
            Conduct::Babble => loop {
                self.send(&ToMaster::Unknown {
                    execution: Execution("nobody".to_owned()),
                })?;
            },
            Conduct::Obliging
            | Conduct::Mute
            | Conduct::Early
            | Conduct::Many(_)
            | Conduct::Large(_)
            | Conduct::Named(_)
            | Conduct::Bomb => {}
        }
        self.out.flush()?;
        self.send(&exited(output_bytes))
    }

    fn collect(&mut self) -> Result<()> {
        match self.conduct {
            Conduct::Many(files) => {
                for number in 0..files {
                    self.file(&format!("dist/{number}"), 0, b"")?;
                }
            }
            Conduct::Large(size) => {
                self.file("dist/large", size, &vec![0; MAX_DATA])?;
            }
            Conduct::Named(which) => {
                let name = NAMES.get(which).context("there is no such name")?;
                self.file(name, 1, b"x")?;
                self.file("dist/good", 1, b"x")?;
            }
            Conduct::Bomb => {
                let mut xml =
                    "<?xml version=\"1.0\"?><!DOCTYPE b [<!ENTITY a0 \"aaaaaaaaaa\">".to_owned();
                for level in 1..30 {
                    let below = format!("&a{};", level - 1).repeat(10);
                    xml.push_str(&format!("<!ENTITY a{level} \"{below}\">"));
                }
                xml.push_str(
                    "]><testsuite><testcase name=\"&a29;\"><failure/></testcase></testsuite>",
                );
                self.file("report.xml", xml.len() as u64, xml.as_bytes())?;
            }
            Conduct::Obliging
            | Conduct::Flood(_)
            | Conduct::LongFrame
            | Conduct::Noise
            | Conduct::Gap
            | Conduct::Early
            | Conduct::Trickle
            | Conduct::Mute
            | Conduct::Babble => {}
        }
        self.send(&ToMaster::Collected {
            files: 0,
            bytes: 0,
            skipped: Vec::new(),
        })
    }

    fn file(&mut self, path: &str, size: u64, content: &[u8]) -> Result<()> {
        self.send(&ToMaster::File(CollectedFile {
            path: path.to_owned(),
            size,
            executable: false,
        }))?;
        if !content.is_empty() {
            self.send_frame(&Frame::Data(content.to_vec()))?;
        }
        let sha256 = Sha256::digest(content);
        let sha256 = sha256.iter().map(|byte| format!("{byte:02x}")).collect();
        self.send(&ToMaster::EndOfFile { sha256 })
    }
}

fn main() -> Result<()> {
    let mut agent = Agent {
        conduct: conduct()?,
        out: std::io::stdout().lock(),
    };
    agent.serve()
}
