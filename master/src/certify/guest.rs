//! The machine under test: booted and reached by what jobs use, and asked with steps as jobs have them.

use super::certificate::{TestedAgent, Verdict};
use super::place::{Place, VM};
use super::{Bench, seconds};
use crate::model::{BootRecord, Ending, Platform};
use crate::pipeline::reach::{Boot, LOOPBACK, Reach, Recorder, guest};
use crate::session::{Agent, FollowEvent, SessionError};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};
use vivarium_protocol::{Execution, Exit, StepCommand};

/// What a step may print; the largest prints 10 MiB.
const MOST_OUTPUT: usize = 16 << 20;
/// As jobs have it by default.
const SPOOL_BYTES: u64 = 64 << 20;
/// Output is acknowledged as it is stored by a job: in pieces.
const ACKNOWLEDGED_BYTES: u64 = 1 << 20;

/// Why a check came to no answer of its own.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The guest did something else than it should.
    Check(String),
    /// Nothing more can be asked over this connection.
    Lost(String),
}

impl From<SessionError> for Trouble {
    fn from(error: SessionError) -> Trouble {
        match error.is_fatal() {
            true => Trouble::Lost(error.to_string()),
            false => Trouble::Check(error.to_string()),
        }
    }
}

/// What a step printed, and how it ended.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) bytes: Vec<u8>,
    pub(super) exit: Exit,
    /// When each part of the output had come, by the number of bytes until then.
    pub(super) arrivals: Vec<(usize, Instant)>,
}

impl Said {
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// The text of a step that ended well.
    pub(super) fn good(self) -> Result<String, Trouble> {
        match self.exit {
            Exit::Code { code: 0 } => Ok(self.text()),
            exit => Err(Trouble::Check(format!(
                "the step for it {}: {}",
                ended(exit),
                shown(&self.bytes)
            ))),
        }
    }
}

/// What a check asks the guest.
pub(super) struct Question {
    shell: Vec<String>,
    script: String,
    env: BTreeMap<String, String>,
}

impl Question {
    /// To the shell that every Unix has.
    pub(super) fn sh(script: impl Into<String>) -> Question {
        Question::to(&["sh", "-c"], script)
    }

    pub(super) fn to(shell: &[&str], script: impl Into<String>) -> Question {
        Question {
            shell: shell.iter().map(|word| (*word).to_owned()).collect(),
            script: script.into(),
            env: BTreeMap::new(),
        }
    }

    pub(super) fn with(mut self, name: &str, value: &str) -> Question {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }
}

/// A machine that runs.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    pub(super) bench: &'a Bench,
    pub(super) place: &'a Place,
    pub(super) platform: &'a Platform,
    reach: Reach<'a>,
    port: u16,
    started: Instant,
}

impl<'a> Machine<'a> {
    /// Starts it. An error is the host's.
    pub(super) async fn start(
        bench: &'a Bench,
        place: &'a Place,
        platform: &'a Platform,
    ) -> Result<Machine<'a>, Ending> {
        let reach = Reach {
            machines: &place.machines,
            transport: &bench.ssh,
            id: VM,
            platform,
            tcg_scale: bench.tcg_deadline_scale,
            heartbeat: Duration::from_secs(bench.heartbeat_secs),
            recorder: Recorder::new(bench.clock.clone(), BootRecord::default()),
        };
        let started = Instant::now();
        let port = reach.start().await?;
        Ok(Machine {
            bench,
            place,
            platform,
            reach,
            port,
            started,
        })
    }

    /// A deadline as jobs have it: longer where guests run without KVM.
    pub(super) fn scaled(&self, secs: u64) -> Duration {
        self.reach.scaled(secs)
    }

    /// Waits for the marker on the console, and says what came of that. An error is the host's.
    pub(super) async fn boot(&self) -> Result<(Boot, Verdict), Ending> {
        let booted = self.reach.wait_until_booted().await;
        let verdict = match &booted {
            Ok(Boot::Over) => Verdict::Passed(format!(
                "{} until its console said so, {} are allowed",
                seconds(self.started.elapsed()),
                seconds(self.reach.boot_patience())
            )),
            Ok(Boot::UnderWay) => {
                let why = "its platform.toml names no ready_marker, so its boot ends with the first answer by SSH";
                Verdict::NotChecked(why.to_owned())
            }
            Err(ending) if ending.reason.is_of_boot() => {
                Verdict::Failed(format!("{}{}", ending.message, self.console().await))
            }
            Err(ending) => return Err(ending.clone()),
        };
        Ok((booted.unwrap_or(Boot::UnderWay), verdict))
    }

    /// The last words of the console, as a clause.
    async fn console(&self) -> String {
        const TAIL: usize = 400;
        let tail = self.place.machines.console_tail(VM, TAIL).await;
        let lines: Vec<&str> = tail.lines().map(str::trim).collect();
        let lines: Vec<&str> = lines.into_iter().filter(|line| !line.is_empty()).collect();
        match lines.is_empty() {
            true => "; the console is empty".to_owned(),
            false => format!("; its last words: {}", lines.join(" / ")),
        }
    }

    /// Connects as a job does; the error is the sentence.
    pub(super) async fn connect(&self, boot: Boot) -> Result<(Agent, Duration), String> {
        let began = Instant::now();
        match self.reach.connect(LOOPBACK, self.port, boot).await {
            Ok(agent) => Ok((agent, began.elapsed())),
            Err(ending) => Err(format!("{}{}", ending.message, self.console().await)),
        }
    }

    pub(super) fn tested_agent(&self, agent: &Agent) -> Option<TestedAgent> {
        let hello = agent.hello();
        let program = self
            .bench
            .ssh
            .agents
            .greeted(&guest(self.platform), hello)?;
        Some(TestedAgent {
            version: hello.agent_version.clone(),
            sha256: program.sha256().to_owned(),
        })
    }
}

/// One that answers.
#[derive(Debug)]
pub(super) struct Guest<'a> {
    pub(super) machine: Machine<'a>,
    pub(super) agent: Agent,
    /// Each step has a name of its own.
    asked: u32,
}

impl<'a> Guest<'a> {
    pub(super) fn new(machine: Machine<'a>, agent: Agent) -> Guest<'a> {
        Guest {
            machine,
            agent,
            asked: 0,
        }
    }

    pub(super) fn platform(&self) -> &'a Platform {
        self.machine.platform
    }

    /// A path in the work directory.
    pub(super) fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.platform().work_dir)
    }

    /// Another connection in place of one that is lost.
    pub(super) async fn reconnect(&mut self) -> Result<(), String> {
        let (agent, _) = self.machine.connect(Boot::Over).await?;
        self.agent = agent;
        Ok(())
    }

    /// The name and the command of the next step.
    pub(super) fn step(&mut self, question: Question) -> (Execution, StepCommand) {
        self.asked += 1;
        let mut env = BTreeMap::from([
            ("CI".to_owned(), "true".to_owned()),
            ("VIVARIUM".to_owned(), "true".to_owned()),
        ]);
        env.extend(self.platform().env.clone());
        env.extend(question.env);
        let command = StepCommand {
            shell: question.shell,
            script: question.script,
            dir: self.platform().work_dir.clone(),
            env,
            spool_bytes: SPOOL_BYTES,
            pty: None,
        };
        // With a mark: an earlier connection's step of this number may still run.
        let mark = rand::random::<u32>();
        (
            Execution(format!("test-{}-{mark:08x}", self.asked)),
            command,
        )
    }

    /// Runs a step to its end.
    pub(super) async fn ask(&mut self, question: Question) -> Result<Said, Trouble> {
        let (execution, command) = self.step(question);
        let mut following = self.agent.start(&execution, command).await?;
        let (mut bytes, mut arrivals, mut acknowledged) = (Vec::new(), Vec::new(), 0);
        loop {
            match following.next().await? {
                FollowEvent::Output {
                    bytes: piece,
                    offset,
                } => {
                    bytes.extend_from_slice(&piece);
                    if bytes.len() > MOST_OUTPUT {
                        let why = format!("a step printed more than {} MiB", MOST_OUTPUT >> 20);
                        return Err(Trouble::Lost(why));
                    }
                    arrivals.push((bytes.len(), Instant::now()));
                    let until = offset + piece.len() as u64;
                    if until >= acknowledged + ACKNOWLEDGED_BYTES {
                        self.agent.acknowledge(&execution, until).await?;
                        acknowledged = until;
                    }
                }
                FollowEvent::Exited { exit, .. } => {
                    return Ok(Said {
                        bytes,
                        exit,
                        arrivals,
                    });
                }
            }
        }
    }

    /// Starts a step, waits until it has printed a line `ready`, ends it, and waits for that.
    pub(super) async fn ask_and_stop(
        &mut self,
        question: Question,
        grace: Duration,
        limit: Duration,
    ) -> Result<Exit, Trouble> {
        let (execution, command) = self.step(question);
        let mut following = self.agent.start(&execution, command).await?;
        let mut bytes = Vec::new();
        let give_up = Instant::now() + limit;
        let mut is_stopped = false;
        loop {
            let event = timeout_at(give_up, following.next()).await;
            let event = event.map_err(|_| match is_stopped {
                true => Trouble::Check(format!(
                    "a step that was ended still runs after {}",
                    seconds(limit)
                )),
                false => Trouble::Check(format!(
                    "its processes were not there in {}: {}",
                    seconds(limit),
                    shown(&bytes)
                )),
            })??;
            match event {
                FollowEvent::Output { bytes: piece, .. } => {
                    bytes.extend_from_slice(&piece);
                    bytes.truncate(MOST_OUTPUT);
                    let is_ready = String::from_utf8_lossy(&bytes)
                        .lines()
                        .any(|line| line.trim() == "ready");
                    if is_ready && !is_stopped {
                        self.agent.stop(&execution, grace).await?;
                        is_stopped = true;
                    }
                }
                FollowEvent::Exited { exit, .. } => return Ok(exit),
            }
        }
    }
}

/// How a step ended, as a clause.
pub(super) fn ended(exit: Exit) -> String {
    match exit {
        Exit::Code { code } => format!("exited with {code}"),
        Exit::Signal { signal } => format!("was ended by signal {signal}"),
        Exit::Lost => "ended in a way nobody saw".to_owned(),
    }
}

/// What a guest said, fit for one line of ours.
pub(super) fn shown(bytes: &[u8]) -> String {
    const LONGEST: usize = 200;
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim_end();
    let mut line: String = text.escape_debug().take(LONGEST).collect();
    if text.escape_debug().nth(LONGEST).is_some() {
        line.push('…');
    }
    match line.is_empty() {
        true => "it said nothing".to_owned(),
        false => format!("it said \"{line}\""),
    }
}
