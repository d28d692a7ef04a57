//! The agent in a machine: it speaks the real protocol over a pipe, and what its steps do follows from the time.

use super::guest::{JUNIT, artifacts};
use super::pipe;
use super::program::{Program, Run, text};
use super::world::{EPOCH, Moment, World};
use crate::model::{AgentKind, AttemptId, Milestone, Witness};
use crate::session::{Endpoint, Failed, GuestSpec, Opened, SessionError, Transport};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use vivarium_protocol::{
    CollectedFile, Decoder, Execution, ExecutionState, Exit, Frame, Hello, PROTOCOL_VERSION,
    ToAgent, ToMaster,
};

/// The way into simulated guests.
#[derive(Debug)]
pub(super) struct Cables(pub(super) Arc<World>);

impl Transport for Cables {
    fn open<'a>(
        &'a self,
        endpoint: &'a Endpoint,
        _guest: &'a GuestSpec,
        witness: &'a dyn Witness,
    ) -> BoxFuture<'a, Result<Opened, Failed>> {
        async move {
            let opened = open(&self.0, endpoint).await?;
            witness.sees(Milestone::NonceEchoed);
            Ok(opened)
        }
        .boxed()
    }

    fn agent_kind(&self, _guest: &GuestSpec) -> Option<AgentKind> {
        Some(AgentKind::Native)
    }
}

async fn open(world: &Arc<World>, endpoint: &Endpoint) -> Result<Opened, Failed> {
    let id: AttemptId = endpoint.name.parse().expect("the name of an attempt");
    world.takes("connect", id.0, 150).await;
    let faults = &world.plan.faults;
    let now = world.now();
    let refused = || Err(Failed::NotYet("connection refused".to_owned()));
    {
        let mut state = world.state();
        let Some(guest) = state.guests.get_mut(&id) else {
            return refused();
        };
        guest.live_until(now);
        if !guest.is_alive() || guest.ssh_port != endpoint.port || !guest.has_booted(now) {
            return refused();
        }
    }
    if world.breaks(faults.connect_hangs, "connect", id.0) {
        tokio::time::sleep(Duration::from_secs(3)).await;
        return Err(Failed::NotYet("no SSH greeting within 3 s".to_owned()));
    }
    if world.breaks(faults.refuses_for_good, "connect", id.0) {
        return Err(Failed::ForGood(SessionError::Agent {
            name: endpoint.name.clone(),
            why: "could not be started".to_owned(),
        }));
    }
    let cut = CancellationToken::new();
    if let Some(guest) = world.state().guests.get_mut(&id) {
        guest.connections.push(cut.clone());
    }
    let cut_after = world
        .breaks(faults.cut, "connect", id.0)
        .then(|| world.draw("connect", id.0, |random| random.between(0, 3000)));
    let (to_agent, from_master) = mpsc::channel(4);
    let (to_master, from_agent) = mpsc::channel(4);
    let session = Session {
        world: Arc::clone(world),
        id,
        to_master,
        cut_after,
        decoder: Decoder::new(),
        receiving: None,
        following: None,
    };
    tokio::spawn(async move {
        tokio::select! {
            biased;
            () = cut.cancelled() => {}
            () = session.serve(from_master) => {}
        }
    });
    world.note("guest", format_args!("{id} greets"));
    let hello = Hello {
        protocol: PROTOCOL_VERSION,
        agent_version: "simulated".to_owned(),
        os: "linux".to_owned(),
        arch: "x86_64".to_owned(),
        pid: 1,
        unix_ms: (EPOCH + now).as_millisecond() as u64,
    };
    Ok(pipe::opened(hello, from_agent, to_agent))
}

/// One connection, on the guest's side.
struct Session {
    world: Arc<World>,
    id: AttemptId,
    to_master: mpsc::Sender<Bytes>,
    /// The connection breaks after so many bytes.
    cut_after: Option<u64>,
    decoder: Decoder,
    receiving: Option<Receiving>,
    following: Option<(Execution, u64)>,
}

struct Receiving {
    what: ToAgent,
    content: Vec<u8>,
}

/// The connection is over.
struct Gone;

impl Session {
    async fn serve(mut self, mut from_master: mpsc::Receiver<Vec<u8>>) {
        loop {
            let now = self.world.now();
            let next = match self.follow(now).await {
                Ok(next) => next.unwrap_or(now + Duration::from_secs(3600)),
                Err(Gone) => return,
            };
            tokio::select! {
                biased;
                bytes = from_master.recv() => {
                    let Some(bytes) = bytes else { return };
                    self.listen().await;
                    self.decoder.push(&bytes);
                    while let Some(frame) = self.decoder.next_frame().expect("our own frames") {
                        if self.take(frame).await.is_err() {
                            return;
                        }
                    }
                }
                () = tokio::time::sleep(next.saturating_sub(now)) => {}
            }
        }
    }

    /// Returns when the guest does anything at all.
    async fn listen(&self) {
        let now = self.world.now();
        let until = self
            .world
            .state()
            .guests
            .get(&self.id)
            .map_or(Moment::ZERO, |guest| guest.deaf_until);
        tokio::time::sleep(until.saturating_sub(now)).await;
    }

    /// Sends what the followed execution has printed; tells when there will be more.
    async fn follow(&mut self, now: Moment) -> Result<Option<Moment>, Gone> {
        let Some((execution, mut sent)) = self.following.clone() else {
            return Ok(None);
        };
        let Some(run) = self.run_of(&execution) else {
            return Ok(None);
        };
        let printed = run.printed(now);
        while sent < printed {
            let most = self
                .world
                .draw("chunk", self.id.0, |random| random.between(1, 400));
            let to = printed.min(sent + most);
            let bytes = text(sent, to);
            self.send(Frame::Output {
                offset: sent,
                bytes,
            })
            .await?;
            sent = to;
            self.following = Some((execution.clone(), sent));
        }
        if let Some(exit) = run.exit(now) {
            self.following = None;
            self.world
                .note("guest", format_args!("{execution} {exit:?}"));
            self.tell(&ToMaster::Exited {
                execution,
                exit,
                output_bytes: sent,
            })
            .await?;
            return Ok(None);
        }
        Ok(run.next_change(now))
    }

    async fn take(&mut self, frame: Frame) -> Result<(), Gone> {
        match frame {
            Frame::Data(bytes) => {
                match &mut self.receiving {
                    Some(receiving) => receiving.content.extend_from_slice(&bytes),
                    None => self.world.violated("data comes without an upload"),
                }
                Ok(())
            }
            Frame::Output { .. } => {
                self.world.violated("the master sends output");
                Err(Gone)
            }
            Frame::Control(json) => {
                let message: ToAgent = Frame::parse(&json).expect("the master's own message");
                self.obey(message).await
            }
        }
    }

    async fn obey(&mut self, message: ToAgent) -> Result<(), Gone> {
        let world = Arc::clone(&self.world);
        match message {
            ToAgent::Ping { sequence } => self.tell(&ToMaster::Pong { sequence }).await,
            ToAgent::SetClock { .. } => self.tell(&ToMaster::ClockSet { stepped_ms: 1 }).await,
            what @ (ToAgent::Unpack { .. } | ToAgent::Write { .. }) => {
                self.receiving = Some(Receiving {
                    what,
                    content: Vec::new(),
                });
                Ok(())
            }
            ToAgent::EndOfData => {
                world.takes("guest", self.id.0, 60).await;
                let answer = self.finish_upload();
                self.tell(&answer).await
            }
            ToAgent::Start { execution, command } => {
                world.takes("guest", self.id.0, 30).await;
                let state = match self.start(&execution, &command.script) {
                    Ok(state) => state,
                    Err(message) => {
                        let request = "start".to_owned();
                        return self.tell(&ToMaster::Failed { request, message }).await;
                    }
                };
                self.following = Some((execution.clone(), 0));
                self.tell(&ToMaster::Started { execution, state }).await
            }
            ToAgent::Attach { execution, from } => {
                world.takes("guest", self.id.0, 30).await;
                if world.breaks(world.plan.faults.vanishes, "vanish", self.id.0) {
                    // The guest was reset: it is there, and remembers nothing.
                    if let Some(guest) = world.state().guests.get_mut(&self.id) {
                        guest.runs.clear();
                    }
                }
                let Some(run) = self.run_of(&execution) else {
                    return self.tell(&ToMaster::Unknown { execution }).await;
                };
                if from < run.acknowledged {
                    world.violated(format_args!(
                        "{execution} is asked for from byte {from}, up to {} was acknowledged",
                        run.acknowledged
                    ));
                }
                if from > run.printed(world.now()) {
                    world.violated(format_args!("{execution} has not printed {from} bytes"));
                }
                self.following = Some((execution.clone(), from));
                let state = ExecutionState::Attached;
                self.tell(&ToMaster::Started { execution, state }).await
            }
            ToAgent::Acknowledge { execution, until } => {
                world.step().await;
                let printed = self.run_of(&execution).map(|run| run.printed(world.now()));
                if printed.is_some_and(|printed| until > printed) {
                    world.violated(format_args!(
                        "{until} bytes of {execution} are acknowledged"
                    ));
                }
                self.change(&execution, |run| {
                    run.acknowledged = run.acknowledged.max(until)
                });
                Ok(())
            }
            ToAgent::Stop { execution, .. } => {
                world.takes("guest", self.id.0, 30).await;
                world.note("guest", format_args!("{execution} is stopped"));
                let now = world.now();
                self.change(&execution, |run| {
                    run.stopped.get_or_insert(now);
                });
                Ok(())
            }
            ToAgent::Collect { globs, .. } => {
                world.takes("guest", self.id.0, 60).await;
                if world.breaks(world.plan.faults.collect_fails, "guest", self.id.0) {
                    let (request, message) = ("collect".to_owned(), "no".to_owned());
                    return self.tell(&ToMaster::Failed { request, message }).await;
                }
                self.collect(&globs).await
            }
        }
    }

    fn finish_upload(&mut self) -> ToMaster {
        let Some(Receiving { what, content }) = self.receiving.take() else {
            self.world.violated("an upload ends that had not begun");
            return failed("unpack");
        };
        let breaks = self
            .world
            .breaks(self.world.plan.faults.unpack_fails, "guest", self.id.0);
        let mut state = self.world.state();
        let guest = state.guests.get_mut(&self.id);
        match what {
            ToAgent::Unpack { .. } if breaks => failed("unpack"),
            ToAgent::Unpack { .. } => {
                if let Some(guest) = guest {
                    guest.tree = Some(content);
                }
                ToMaster::Unpacked { entries: 3 }
            }
            ToAgent::Write { path, .. } => {
                let bytes = content.len() as u64;
                if let Some(guest) = guest {
                    guest.files.insert(path, content);
                }
                ToMaster::Written { bytes }
            }
            ToAgent::Ping { .. }
            | ToAgent::EndOfData
            | ToAgent::Start { .. }
            | ToAgent::Attach { .. }
            | ToAgent::Acknowledge { .. }
            | ToAgent::Stop { .. }
            | ToAgent::Collect { .. }
            | ToAgent::SetClock { .. } => unreachable!("no upload"),
        }
    }

    /// A command begins, once, in a machine that has the whole source and has passed the steps before it.
    fn start(&self, execution: &Execution, script: &str) -> Result<ExecutionState, String> {
        let program = Program::parse(script).ok_or("no such program")?;
        let now = self.world.now();
        let mut wrong = None;
        {
            let mut state = self.world.state();
            let guest = state
                .guests
                .get_mut(&self.id)
                .ok_or("the machine is gone")?;
            if guest.runs.contains_key(execution) {
                return Ok(ExecutionState::Attached);
            }
            if guest.tree.is_none() || !guest.files.contains_key("/tmp/vivarium/changed-files") {
                wrong = Some("without its source");
            }
            if guest
                .runs
                .values()
                .any(|run| run.exit(now) != Some(Exit::Code { code: 0 }))
            {
                wrong = Some("after one that has not passed");
            }
            guest.runs.insert(execution.clone(), Run::new(program, now));
        }
        if let Some(wrong) = wrong {
            self.world
                .violated(format_args!("{execution} is started {wrong}"));
        }
        self.world
            .note("guest", format_args!("{execution} runs `{script}`"));
        Ok(ExecutionState::New)
    }

    async fn collect(&mut self, globs: &[String]) -> Result<(), Gone> {
        let files = match globs {
            [glob] if glob == "dist/*" => artifacts(self.id),
            _ => vec![("junit.xml".to_owned(), JUNIT.as_bytes().to_vec())],
        };
        let (count, mut total) = (files.len() as u64, 0);
        for (path, content) in files {
            total += content.len() as u64;
            self.tell(&ToMaster::File(CollectedFile {
                path,
                size: content.len() as u64,
                executable: false,
            }))
            .await?;
            for piece in content.chunks(256) {
                self.send(Frame::Data(piece.to_vec())).await?;
            }
            let sha256 = hex::encode(Sha256::digest(&content));
            self.tell(&ToMaster::EndOfFile { sha256 }).await?;
        }
        self.tell(&ToMaster::Collected {
            files: count,
            bytes: total,
            skipped: Vec::new(),
        })
        .await
    }

    fn run_of(&self, execution: &Execution) -> Option<Run> {
        let state = self.world.state();
        state.guests.get(&self.id)?.runs.get(execution).cloned()
    }

    fn change(&self, execution: &Execution, change: impl FnOnce(&mut Run)) {
        let mut state = self.world.state();
        if let Some(run) = state
            .guests
            .get_mut(&self.id)
            .and_then(|guest| guest.runs.get_mut(execution))
        {
            change(run);
        }
    }

    async fn tell(&mut self, message: &ToMaster) -> Result<(), Gone> {
        self.send(Frame::to_master(message)).await
    }

    /// Sends a frame in pieces, or as much of it as comes through.
    async fn send(&mut self, frame: Frame) -> Result<(), Gone> {
        self.listen().await;
        let mut bytes = Bytes::from(frame.into_bytes());
        while !bytes.is_empty() {
            if self.cut_after == Some(0) {
                return Err(Gone);
            }
            let most = self
                .world
                .draw("piece", self.id.0, |random| random.between(1, 900));
            let most = self.cut_after.map_or(most, |left| most.min(left));
            let piece = bytes.split_to(bytes.len().min(most as usize));
            if let Some(left) = &mut self.cut_after {
                *left -= piece.len() as u64;
            }
            self.to_master.send(piece).await.map_err(|_| Gone)?;
        }
        Ok(())
    }
}

fn failed(request: &str) -> ToMaster {
    ToMaster::Failed {
        request: request.to_owned(),
        message: "no space left on the guest's disk".to_owned(),
    }
}
