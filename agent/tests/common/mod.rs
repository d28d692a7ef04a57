//! A guest in small: a state folder, and connections to the real agent over pipes.

#![allow(
    dead_code,
    unreachable_pub,
    missing_debug_implementations,
    reason = "what a test needs of it differs"
)]

mod agents;
pub mod windows;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use vivarium_protocol::{
    Decoder, Execution, ExecutionState, Exit, Frame, Hello, MAX_DATA, PREAMBLE, StepCommand,
    ToAgent, ToMaster,
};

/// How long anything may take before a test is declared stuck; generous, because machines are busy.
pub const DEADLINE: Duration = Duration::from_secs(60);

pub use agents::Agent;

pub struct Guest {
    agent: Agent,
    folder: TempDir,
    state: PathBuf,
}

impl Guest {
    pub fn new(agent: Agent) -> Self {
        Self::in_folder(agent, "state")
    }

    /// A guest whose state folder has this name.
    pub fn in_folder(agent: Agent, name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("work")).unwrap();
        let state = folder.path().join(name);
        Self {
            agent,
            folder,
            state,
        }
    }

    pub fn state(&self) -> PathBuf {
        self.state.clone()
    }

    /// The folder in which commands run.
    pub fn work(&self) -> PathBuf {
        self.folder.path().join("work")
    }

    pub fn execution_dir(&self, id: &str) -> PathBuf {
        self.state().join("exec").join(id)
    }

    pub fn connect(&self) -> Connection {
        let mut command = self.agent.command();
        command
            .args(["serve", "nonce-1", "--state"])
            .arg(self.state());
        Connection::open(self.agent, command, &self.work())
    }

    /// Connects to an agent whose state folder is a file system of its own, this small; `None`, with the reason said,
    /// where a user may not mount one.
    pub fn connect_with_small_disk(&self, size: &str) -> Option<Connection> {
        std::fs::create_dir_all(self.state()).unwrap();
        let agent = self.agent.command();
        let isolated = |script: &str| {
            let mut command = Command::new("unshare");
            command.args(["--user", "--map-root-user", "--mount", "sh", "-ec", script]);
            command.args(["sh", size]).arg(self.state());
            // The agent's PATH is for the agent alone: BusyBox's mount is another program.
            let path = agent.get_envs().find(|(name, _)| *name == "PATH");
            if let Some((_, Some(path))) = path {
                command
                    .arg("env")
                    .arg(format!("PATH={}", path.to_str().unwrap()));
            }
            command.arg(agent.get_program()).args(agent.get_args());
            command
        };
        let mount = "size=$1; state=$2; shift 2; mount -t tmpfs -o size=$size none \"$state\"";
        if !isolated(mount)
            .status()
            .is_ok_and(|status| status.success())
        {
            eprintln!("skipped: this user may not mount a file system in a namespace of its own");
            return None;
        }
        let serve = format!("{mount}; exec \"$@\" serve nonce-1 --state \"$state\"");
        Some(Connection::open(self.agent, isolated(&serve), &self.work()))
    }

    /// The processes of this guest: supervisors and agents by their state folder, commands by where they run.
    pub fn processes(&self) -> Vec<(i32, String)> {
        let place = self.folder.path();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
                continue;
            };
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            // A program of Windows is named in its own way.
            let line = line.replace('\\', "/");
            let cwd = std::fs::read_link(entry.path().join("cwd"));
            if cwd.is_ok_and(|cwd| cwd.starts_with(place)) || line.contains(place.to_str().unwrap())
            {
                found.push((pid, line));
            }
        }
        found
    }

    /// Waits until no process of this guest is left.
    pub fn wait_until_quiet(&self) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let mut left = self.processes();
            left.retain(|(_, line)| windows::is_running(line));
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "there are still {left:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        for (pid, _) in self.processes() {
            kill(pid, "KILL");
        }
    }
}

pub fn kill(pid: i32, signal: &str) {
    Command::new("kill")
        .args([&format!("-{signal}"), "--", &pid.to_string()])
        .stderr(Stdio::null())
        .status()
        .unwrap();
}

pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "still waiting for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn id(name: &str) -> Execution {
    Execution(name.to_owned())
}

/// One connection, closed when dropped.
pub struct Connection {
    agent: Agent,
    child: Child,
    input: Option<ChildStdin>,
    frames: Receiver<Result<Frame, String>>,
    pub hello: Hello,
    work: PathBuf,
}

/// What came of following an execution to its end.
#[derive(Debug)]
pub struct Finished {
    pub output: Vec<u8>,
    pub exit: Exit,
}

impl Connection {
    fn open(agent: Agent, mut command: Command, work: &Path) -> Self {
        let mut child = command
            .current_dir(work)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let mut output = BufReader::with_capacity(MAX_DATA, child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "\n");
        line.clear();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, format!("{PREAMBLE}nonce-1\n"));
        // Few frames wait here, so that a test that does not read makes the agent wait.
        let (send, frames) = sync_channel(2);
        std::thread::spawn(move || {
            let mut decoder = Decoder::new();
            let mut bytes = vec![0; MAX_DATA];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                decoder.push(&bytes[..count]);
                while let Some(frame) = decoder.next_frame().transpose() {
                    if send.send(frame.map_err(|e| e.to_string())).is_err() {
                        return;
                    }
                }
            }
        });
        let mut connection = Self {
            agent,
            child,
            input,
            frames,
            hello: Hello {
                protocol: 0,
                agent_version: String::new(),
                os: String::new(),
                arch: String::new(),
                pid: 0,
                unix_ms: 0,
            },
            work: work.to_owned(),
        };
        match connection.message() {
            ToMaster::Hello(hello) => connection.hello = hello,
            other => panic!("no hello: {other:?}"),
        }
        connection
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.input.as_mut().unwrap().write_all(bytes).unwrap();
    }

    pub fn send(&mut self, message: &ToAgent) {
        self.send_bytes(&Frame::to_agent(message).into_bytes());
    }

    /// Sends data frames of odd sizes and their end.
    pub fn send_data(&mut self, data: &[u8]) {
        for piece in data.chunks(100_003) {
            self.send_bytes(&Frame::Data(piece.to_vec()).into_bytes());
        }
        self.send(&ToAgent::EndOfData);
    }

    pub fn frame(&mut self) -> Frame {
        match self.frames.recv_timeout(DEADLINE) {
            Ok(frame) => frame.unwrap(),
            Err(RecvTimeoutError::Timeout) => panic!("the agent says nothing"),
            Err(RecvTimeoutError::Disconnected) => panic!("the agent has left"),
        }
    }

    /// The next frame if one comes within this time.
    pub fn frame_within(&mut self, time: Duration) -> Option<Frame> {
        self.frames.recv_timeout(time).ok().map(Result::unwrap)
    }

    pub fn message(&mut self) -> ToMaster {
        match self.frame() {
            Frame::Control(json) => Frame::parse(&json).unwrap(),
            other => panic!("not a message: {other:?}"),
        }
    }

    /// Expects a refusal of this request and says its sentence.
    pub fn refusal(&mut self, expected: &str) -> String {
        match self.message() {
            ToMaster::Failed { request, message } => {
                assert_eq!(request, expected, "{message}");
                message
            }
            other => panic!("not refused: {other:?}"),
        }
    }

    pub fn ping(&mut self, sequence: u64) {
        self.send(&ToAgent::Ping { sequence });
        assert_eq!(self.message(), ToMaster::Pong { sequence });
    }

    pub fn command(&self, script: &str) -> StepCommand {
        self.agent.step(script, &self.work)
    }

    pub fn start(&mut self, name: &str, script: &str) {
        let command = self.command(script);
        self.start_command(name, command);
    }

    pub fn start_command(&mut self, name: &str, command: StepCommand) {
        self.send(&ToAgent::Start {
            execution: id(name),
            command,
        });
        assert_eq!(self.message(), started(name, ExecutionState::New));
    }

    pub fn attach(&mut self, name: &str, from: u64) {
        self.send(&ToAgent::Attach {
            execution: id(name),
            from,
        });
        assert_eq!(self.message(), started(name, ExecutionState::Attached));
    }

    pub fn stop(&mut self, name: &str, grace_ms: u64) {
        self.send(&ToAgent::Stop {
            execution: id(name),
            grace_ms,
        });
    }

    pub fn acknowledge(&mut self, name: &str, until: u64) {
        self.send(&ToAgent::Acknowledge {
            execution: id(name),
            until,
        });
    }

    /// Reads output up to at least `until` bytes, each where it belongs; `from` is where it starts.
    pub fn read_output(&mut self, from: u64, until: u64) -> Vec<u8> {
        let mut output = Vec::new();
        while from + (output.len() as u64) < until {
            match self.frame() {
                Frame::Output { offset, bytes } => {
                    assert_eq!(offset, from + output.len() as u64);
                    output.extend_from_slice(&bytes);
                }
                other => panic!("no output: {:?}", readable(&other)),
            }
        }
        output
    }

    /// Reads output that starts at `from` to the end, acknowledging as it comes.
    pub fn finish(&mut self, name: &str, from: u64) -> Finished {
        let mut output: Vec<u8> = Vec::new();
        loop {
            match self.frame() {
                Frame::Output { offset, bytes } => {
                    assert_eq!(offset, from + output.len() as u64);
                    output.extend_from_slice(&bytes);
                    self.acknowledge(name, offset + bytes.len() as u64);
                }
                Frame::Control(json) => match Frame::parse(&json).unwrap() {
                    ToMaster::Exited {
                        execution,
                        exit,
                        output_bytes,
                    } => {
                        assert_eq!(execution, id(name));
                        assert_eq!(output_bytes, from + output.len() as u64);
                        return Finished { output, exit };
                    }
                    other => panic!("not the end: {other:?}"),
                },
                Frame::Data(_) => panic!("data among the output"),
            }
        }
    }

    pub fn run(&mut self, name: &str, script: &str) -> Finished {
        self.start(name, script);
        self.finish(name, 0)
    }

    /// Closes the master's side without reading on, and waits until the agent has left.
    pub fn wait_until_left_unread(mut self) {
        drop(self.input.take());
        let status = self.child.wait().unwrap();
        assert!(status.success(), "the agent left with {status}");
    }

    /// Cuts the connection as a lost network does: the agent's side just ends.
    pub fn cut(mut self) {
        self.child.kill().unwrap();
    }

    /// Closes the master's side and says what else the agent sent; it has to leave by itself.
    pub fn close(mut self) -> Vec<Frame> {
        drop(self.input.take());
        let mut rest = Vec::new();
        loop {
            match self.frames.recv_timeout(DEADLINE) {
                Ok(frame) => rest.push(frame.unwrap()),
                Err(RecvTimeoutError::Timeout) => panic!("the agent does not leave"),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let status = self.child.wait().unwrap();
        assert!(status.success(), "the agent left with {status}");
        rest
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn started(name: &str, state: ExecutionState) -> ToMaster {
    ToMaster::Started {
        execution: id(name),
        state,
    }
}

fn readable(frame: &Frame) -> String {
    match frame {
        Frame::Control(json) => String::from_utf8_lossy(json).into_owned(),
        Frame::Output { offset, bytes } => format!("{} bytes of output at {offset}", bytes.len()),
        Frame::Data(bytes) => format!("{} bytes of data", bytes.len()),
    }
}

/// Bytes that look like noise and are the same at every run (xorshift).
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
