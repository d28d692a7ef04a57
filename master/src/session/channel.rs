//! SSH as the transport: log in, push the agent, read and write its channel.

use super::error::one_line;
use super::keys::Keys;
use super::ssh::{self, Farewell};
use super::transport::{Connection, Failed, FromGuest, Opened, ToGuest, Transport};
use super::{Agents, Endpoint, GuestSpec, SessionError, push};
use crate::model::{AgentKind, Milestone, Witness};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use russh::client::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use std::sync::Arc;

/// How much of the agent's stderr is kept, for the sentence about its end.
const MAX_STDERR: usize = 4096;

/// Guests are reached by SSH, and get the agent that there is for them.
#[derive(Debug, Clone, Default)]
pub struct Ssh {
    pub agents: Agents,
}

impl Transport for Ssh {
    fn open<'a>(
        &'a self,
        endpoint: &'a Endpoint,
        guest: &'a GuestSpec,
        witness: &'a dyn Witness,
    ) -> BoxFuture<'a, Result<Opened, Failed>> {
        open(&self.agents, endpoint, guest, witness).boxed()
    }

    fn agent_kind(&self, guest: &GuestSpec) -> Option<AgentKind> {
        let chosen = self.agents.choose(guest.os, guest.arch, guest.agent);
        chosen.map(|program| program.kind)
    }
}

async fn open(
    agents: &Agents,
    endpoint: &Endpoint,
    guest: &GuestSpec,
    witness: &dyn Witness,
) -> Result<Opened, Failed> {
    let program = agents
        .find(&endpoint.name, guest)
        .map_err(Failed::ForGood)?;
    let keys = Keys::read(endpoint).await.map_err(Failed::ForGood)?;
    let connection = ssh::open(endpoint, &keys, witness).await?;
    let mut started = push::start_agent(&connection, program, guest).await;
    if let Err(push::Failed::NotStarted(why)) = &started
        && program.kind == AgentKind::Native
        && let Some(stand_in) = agents.stand_in(guest)
    {
        tracing::warn!(
            vm = endpoint.name,
            why,
            "the native agent does not start in this guest, so the one in sh is used"
        );
        started = push::start_agent(&connection, stand_in, guest).await;
    }
    let greeted = match started {
        Ok(greeted) => greeted,
        Err(push::Failed::Lost(why)) => return Err(Failed::NotYet(why)),
        Err(push::Failed::Agent(why) | push::Failed::NotStarted(why)) => {
            return Err(Failed::ForGood(SessionError::Agent {
                name: endpoint.name.clone(),
                why,
            }));
        }
    };
    witness.sees(Milestone::NonceEchoed);
    let (reader, writer) = greeted.channel.split();
    Ok(Opened {
        hello: greeted.hello,
        decoder: greeted.decoder,
        incoming: Box::new(Reader {
            channel: reader,
            farewell: connection.farewell.clone(),
            stderr: Vec::new(),
            exit: None,
        }),
        outgoing: Box::new(Writer(writer)),
        gate: Arc::clone(&connection.gate),
        connection: Box::new(connection),
    })
}

struct Reader {
    channel: ChannelReadHalf,
    farewell: Farewell,
    stderr: Vec<u8>,
    exit: Option<String>,
}

impl FromGuest for Reader {
    fn next(&mut self) -> BoxFuture<'_, Result<Bytes, String>> {
        async {
            loop {
                match self.channel.wait().await {
                    Some(ChannelMsg::Data { data }) => return Ok(data),
                    Some(ChannelMsg::ExtendedData { data, .. }) => {
                        let room = MAX_STDERR.saturating_sub(self.stderr.len());
                        self.stderr.extend(data.iter().take(room));
                    }
                    Some(ChannelMsg::ExitStatus { exit_status }) => {
                        self.exit = Some(format!("with status {exit_status}"))
                    }
                    Some(ChannelMsg::ExitSignal { signal_name, .. }) => {
                        self.exit = Some(format!("by signal {signal_name:?}"))
                    }
                    Some(ChannelMsg::Close) | None => return Err(self.reason()),
                    Some(_) => {}
                }
            }
        }
        .boxed()
    }
}

impl Reader {
    fn reason(&self) -> String {
        let mut reason = match (&self.exit, self.farewell.reason()) {
            (Some(exit), _) => format!("the agent ended {exit}"),
            (None, Some(farewell)) => farewell,
            (None, None) => "the connection was closed by the guest".to_owned(),
        };
        if !self.stderr.is_empty() {
            reason.push_str(&format!(", and said {:?}", one_line(&self.stderr)));
        }
        reason
    }
}

struct Writer(ChannelWriteHalf<Msg>);

impl ToGuest for Writer {
    fn send(&mut self, frame: Vec<u8>) -> BoxFuture<'_, bool> {
        async { self.0.data_bytes(frame).await.is_ok() }.boxed()
    }
}

impl Connection for ssh::Connection {
    fn disconnect(&self) -> BoxFuture<'_, ()> {
        self.say_goodbye().boxed()
    }
}
