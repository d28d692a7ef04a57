//! A small SSH server that behaves like Win32-OpenSSH as far as Vivarium needs it: it runs what it is told in `cmd.exe`, and
//! serves files by SFTP. Under Wine it is the tests' Windows machine.
//!
//! ```text
//!   windows-double HOST_KEY AUTHORIZED_KEYS          in the folder that is the user's home
//!     says on stdout: "listening on PORT"; ends when its input does
//! ```

mod commands;
mod files;

use anyhow::{Context, Result, bail};
use russh::keys::{PrivateKey, PublicKey, load_secret_key};
use russh::server::{
    Auth, ChannelOpenHandle, Config, Handler, Msg, Session, VerifiedPublicKey, run_stream,
};
use russh::{Channel, ChannelId};
use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [host_key, authorized_keys] = arguments.as_slice() else {
        bail!("usage: windows-double HOST_KEY AUTHORIZED_KEYS");
    };
    let key = load_secret_key(host_key, None).context("cannot read the host key")?;
    let users = std::fs::read_to_string(authorized_keys).context("cannot read the users' keys")?;
    let users = users
        .lines()
        .map(PublicKey::from_openssh)
        .collect::<Result<Vec<_>, _>>()
        .context("cannot read the users' keys")?;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    writeln!(
        std::io::stdout(),
        "listening on {}",
        listener.local_addr()?.port()
    )?;
    let mut input = tokio::io::stdin();
    tokio::select! {
        served = serve(&listener, key, users.into()) => served,
        // Whoever started this has gone.
        _ = input.read_u8() => Ok(()),
    }
}

async fn serve(listener: &TcpListener, key: PrivateKey, users: Arc<[PublicKey]>) -> Result<()> {
    let config = Arc::new(Config {
        keys: vec![key],
        auth_rejection_time: Duration::ZERO,
        nodelay: true,
        ..Config::default()
    });
    loop {
        let (socket, _) = listener.accept().await?;
        let connection = Connection {
            users: Arc::clone(&users),
            channels: HashMap::new(),
        };
        let config = Arc::clone(&config);
        tokio::spawn(async move {
            match run_stream(config, socket, connection).await {
                Ok(session) => drop(session.await),
                Err(error) => drop(writeln!(std::io::stderr(), "no session: {error:#}")),
            }
        });
    }
}

/// One client, and the channels that nothing runs in yet.
struct Connection {
    users: Arc<[PublicKey]>,
    channels: HashMap<ChannelId, Channel<Msg>>,
}

impl Handler for Connection {
    type Error = anyhow::Error;

    async fn auth_publickey(&mut self, _user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth> {
        let known = |user: &PublicKey| user.key_data() == key.public_key.key_data();
        Ok(if self.users.iter().any(known) {
            Auth::Accept
        } else {
            Auth::reject()
        })
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<()> {
        self.channels.insert(channel.id(), channel);
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        line: &[u8],
        session: &mut Session,
    ) -> Result<()> {
        let line = String::from_utf8_lossy(line).into_owned();
        match self.channels.remove(&id) {
            Some(channel) => {
                session.channel_success(id)?;
                tokio::spawn(commands::run(channel, line));
            }
            None => session.channel_failure(id)?,
        }
        Ok(())
    }

    async fn subsystem_request(
        &mut self,
        id: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<()> {
        match self.channels.remove(&id).filter(|_| name == "sftp") {
            Some(channel) => {
                session.channel_success(id)?;
                let home = files::Files::below(Path::new(".").to_owned());
                russh_sftp::server::run(channel.into_stream(), home).await;
            }
            None => session.channel_failure(id)?,
        }
        Ok(())
    }
}
