//! SSH by russh: keys from files, the pinned host key, and one exec channel.
//!
//! ```text
//!   Keys (read once) ──> open: TCP, greeting, key exchange, host key, login ──> Connection ──> exec: one channel
//! ```
//!
//! [`open`] is one try; which failures are worth another is told by [`Failed`].

use super::gate::{Gate, GatedStream};
use super::keys::{Keys, Proof, describe};
use super::transport::Failed;
use super::{Endpoint, SessionError};
use crate::model::{Milestone, Witness};
use russh::client::{
    self, AuthResult, DisconnectReason, Handle, KeyboardInteractiveAuthResponse, Msg,
};
use russh::keys::ssh_key::PublicKey;
use russh::keys::{HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{Channel, MethodKind, Preferred, cipher, compression, kex};
use secrecy::{ExposeSecret, SecretString};
use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A TCP handshake over a local network takes milliseconds; a guest whose network is not up yet answers none.
const CONNECT: Duration = Duration::from_secs(10);
/// From the connection to agreed keys. QEMU's forward accepts long before sshd is there and then holds the
/// connection, so this is what patience with a booting guest costs at most when the held one has died.
const HANDSHAKE: Duration = Duration::from_secs(60);
/// A login costs an emulated guest 1 to 2 s of its processor, and more while it boots.
const LOGIN: Duration = Duration::from_secs(60);
/// Opening a channel makes sshd start the user's shell.
const EXEC: Duration = Duration::from_secs(60);

/// A server that asks more often is not asking for a password. An answer without a question (PAM's last word) counts.
const MOST_QUESTIONS: usize = 4;

/// How much a channel may send before it is given more. Large enough for a gigabit at 100 ms; memory is bounded by the gate.
const WINDOW: u32 = 16 * 1024 * 1024;
/// The largest that fits russh's limit; fewer packets, fewer seals.
const PACKET: u32 = 65535;
/// How many packets wait between russh and our reader, which never waits for anybody.
const CHANNEL_QUEUE: usize = 64;

/// Authenticated ciphers that `ring` does in hardware first.
const CIPHERS: &[cipher::Name] = &[
    cipher::AES_128_GCM,
    cipher::AES_256_GCM,
    cipher::CHACHA20_POLY1305,
    cipher::AES_256_CTR,
    cipher::AES_192_CTR,
    cipher::AES_128_CTR,
];
/// The cheapest exchange for an emulated guest first: what is carried is as public as the build, or short-lived.
const EXCHANGES: &[kex::Name] = &[
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::MLKEM768X25519_SHA256,
    kex::ECDH_SHA2_NISTP256,
    kex::ECDH_SHA2_NISTP384,
    kex::ECDH_SHA2_NISTP521,
    kex::DH_GEX_SHA256,
    kex::DH_G16_SHA512,
    kex::DH_G14_SHA256,
    kex::EXTENSION_SUPPORT_AS_CLIENT,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
];

fn config(keys: &Keys) -> client::Config {
    client::Config {
        window_size: WINDOW,
        maximum_packet_size: PACKET,
        channel_buffer_size: CHANNEL_QUEUE,
        nodelay: true,
        // The agent's heartbeat is ours: it asks the agent, not only its sshd.
        keepalive_interval: None,
        inactivity_timeout: None,
        preferred: Preferred {
            kex: Cow::Borrowed(EXCHANGES),
            key: Cow::Owned(keys.host_key_algorithms()),
            cipher: Cow::Borrowed(CIPHERS),
            compression: Cow::Borrowed(&[compression::NONE]),
            ..Preferred::DEFAULT
        },
        ..client::Config::default()
    }
}

/// What russh's task tells us: why it ended.
#[derive(Debug, Clone, Default)]
pub(super) struct Farewell(Arc<Mutex<Option<String>>>);

impl Farewell {
    pub(super) fn reason(&self) -> Option<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn say(&self, reason: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
    }
}

/// russh's events that concern us.
struct Events {
    pinned: Vec<PublicKey>,
    farewell: Farewell,
}

#[derive(Debug)]
enum Trouble {
    Ssh(russh::Error),
    OtherKey { shown: String },
}

impl From<russh::Error> for Trouble {
    fn from(error: russh::Error) -> Self {
        Trouble::Ssh(error)
    }
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Trouble::Ssh(russh::Error::IO(error))
                if error.kind() == std::io::ErrorKind::UnexpectedEof =>
            {
                f.write_str("the connection was closed")
            }
            Trouble::Ssh(russh::Error::Disconnect | russh::Error::HUP) => {
                f.write_str("the connection was closed")
            }
            Trouble::Ssh(error) => error.fmt(f),
            Trouble::OtherKey { shown } => write!(f, "it shows the host key {shown}"),
        }
    }
}

impl client::Handler for Events {
    type Error = Trouble;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, Trouble> {
        let shown = shown.public_key();
        if self
            .pinned
            .iter()
            .any(|pinned| pinned.key_data() == shown.key_data())
        {
            return Ok(true);
        }
        Err(Trouble::OtherKey {
            shown: describe(&shown),
        })
    }

    async fn disconnected(&mut self, reason: DisconnectReason<Trouble>) -> Result<(), Trouble> {
        self.farewell.say(match &reason {
            DisconnectReason::ReceivedDisconnect(info) => {
                format!(
                    "its SSH server said goodbye: {}",
                    super::error::one_line(info.message.as_bytes())
                )
            }
            DisconnectReason::Error(error) => error.to_string(),
        });
        Ok(())
    }
}

/// An SSH connection with a user logged in. Dropped, it is closed.
pub(super) struct Connection {
    handle: Handle<Events>,
    pub(super) gate: Arc<Gate>,
    pub(super) farewell: Farewell,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.gate.close();
    }
}

/// Closes the socket of a try that is given up, also while russh's own task holds it.
struct CloseOnDrop(Option<Arc<Gate>>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        if let Some(gate) = &self.0 {
            gate.close();
        }
    }
}

/// One try: connect, agree on keys, check the host key, log in.
pub(super) async fn open(
    endpoint: &Endpoint,
    keys: &Keys,
    witness: &dyn Witness,
) -> Result<Connection, Failed> {
    let address = (endpoint.host.as_str(), endpoint.port);
    let socket = match timeout(CONNECT, TcpStream::connect(address)).await {
        Ok(Ok(socket)) => socket,
        Ok(Err(error)) => return Err(Failed::NotYet(error.to_string())),
        Err(_) => {
            return Err(Failed::NotYet(format!(
                "no answer to TCP within {} s",
                CONNECT.as_secs()
            )));
        }
    };
    witness.sees(Milestone::PortAnswered);
    // Without it a request of a few bytes waits for an acknowledgement; the connection works all the same.
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(vm = endpoint.name, %error, "cannot switch off Nagle's algorithm");
    }
    let gate = Arc::new(Gate::default());
    let mut abandoned = CloseOnDrop(Some(Arc::clone(&gate)));
    let farewell = Farewell::default();
    let events = Events {
        pinned: keys.pinned.clone(),
        farewell: farewell.clone(),
    };
    let stream = GatedStream::new(socket, Arc::clone(&gate));
    let shaken = client::connect_stream(Arc::new(config(keys)), stream, events);
    let shaken = seeing_the_banner(shaken, &gate, witness);
    let mut handle = match timeout(HANDSHAKE, shaken).await {
        Ok(Ok(handle)) => handle,
        Ok(Err(trouble)) => return Err(judge_handshake(endpoint, keys, &trouble)),
        Err(_) => {
            let silent = if gate.is_greeted() {
                "the key exchange took longer than"
            } else {
                "no SSH greeting within"
            };
            return Err(Failed::NotYet(format!(
                "{silent} {} s",
                HANDSHAKE.as_secs()
            )));
        }
    };
    witness.sees(Milestone::SshHandshake);
    match timeout(LOGIN, log_in(endpoint, keys, &mut handle, &farewell)).await {
        Ok(result) => result?,
        Err(_) => {
            return Err(Failed::NotYet(format!(
                "the login took longer than {} s",
                LOGIN.as_secs()
            )));
        }
    }
    witness.sees(Milestone::LoggedIn);
    abandoned.0 = None;
    Ok(Connection {
        handle,
        gate,
        farewell,
    })
}

/// Tells of the server's first byte while the handshake is under way.
async fn seeing_the_banner<T>(
    shaken: impl Future<Output = T>,
    gate: &Gate,
    witness: &dyn Witness,
) -> T {
    tokio::pin!(shaken);
    let first = tokio::select! {
        biased;
        result = &mut shaken => Some(result),
        () = gate.greeted() => None,
    };
    if gate.is_greeted() {
        witness.sees(Milestone::SshBanner);
    }
    match first {
        Some(result) => result,
        None => shaken.await,
    }
}

fn judge_handshake(endpoint: &Endpoint, keys: &Keys, trouble: &Trouble) -> Failed {
    let pins: Vec<String> = keys.pinned.iter().map(describe).collect();
    let pins = pins.join(" or ");
    let other = |why: String| {
        Failed::ForGood(SessionError::HostKey {
            name: endpoint.name.clone(),
            address: endpoint.address(),
            pinned: endpoint.host_key.clone(),
            why,
        })
    };
    match trouble {
        Trouble::OtherKey { shown } => {
            other(format!("it shows the host key {shown} instead of {pins}"))
        }
        Trouble::Ssh(russh::Error::NoCommonAlgo {
            kind: russh::AlgorithmKind::Key,
            theirs,
            ..
        }) => other(format!(
            "it has no host key like {pins}, only {}",
            super::error::one_line(theirs.join(", ").as_bytes())
        )),
        Trouble::Ssh(russh::Error::WrongServerSig) => {
            other("it cannot sign with the host key it shows".to_owned())
        }
        Trouble::Ssh(error @ (russh::Error::NoCommonAlgo { .. } | russh::Error::Version)) => {
            Failed::ForGood(SessionError::Agent {
                name: endpoint.name.clone(),
                why: format!("cannot be reached: its SSH server does not suit ours: {error}"),
            })
        }
        Trouble::Ssh(_) => Failed::NotYet(trouble.to_string()),
    }
}

async fn log_in(
    endpoint: &Endpoint,
    keys: &Keys,
    handle: &mut Handle<Events>,
    farewell: &Farewell,
) -> Result<(), Failed> {
    let answer = match &keys.client {
        Proof::Key(key) => offer_key(endpoint, key, handle).await,
        Proof::Password(password) => tell_password(endpoint, password, handle).await,
    };
    match answer {
        Ok(AuthResult::Success) => Ok(()),
        // Closed instead of answered: an account that may not log in before the guest has booted looks like this.
        Ok(AuthResult::Failure { .. }) if handle.is_closed() => {
            let why = farewell
                .reason()
                .unwrap_or_else(|| "the connection was closed".to_owned());
            Err(Failed::NotYet(format!("during the login: {why}")))
        }
        Ok(AuthResult::Failure {
            remaining_methods, ..
        }) => Err(Failed::ForGood(SessionError::Authentication {
            name: endpoint.name.clone(),
            user: endpoint.user.clone(),
            credential: endpoint.credential.clone(),
            why: refusal(&keys.client, &remaining_methods),
        })),
        Err(error) => Err(Failed::NotYet(format!("during the login: {error}"))),
    }
}

async fn offer_key(
    endpoint: &Endpoint,
    key: &Arc<PrivateKey>,
    handle: &mut Handle<Events>,
) -> Result<AuthResult, russh::Error> {
    // RSA signs with SHA-1 in old servers only; the server says what it takes.
    let hash = match key.algorithm().is_rsa() {
        true => {
            let named = handle.best_supported_rsa_hash().await?;
            named.unwrap_or(Some(HashAlg::Sha256))
        }
        false => None,
    };
    let key = PrivateKeyWithHashAlg::new(Arc::clone(key), hash);
    handle.authenticate_publickey(&endpoint.user, key).await
}

/// By the method of that name, or where the server has only that one by answering its questions.
async fn tell_password(
    endpoint: &Endpoint,
    password: &SecretString,
    handle: &mut Handle<Events>,
) -> Result<AuthResult, russh::Error> {
    let password = password.expose_secret();
    let answer = handle
        .authenticate_password(&endpoint.user, password)
        .await?;
    match &answer {
        AuthResult::Failure {
            remaining_methods, ..
        } if remaining_methods.contains(&MethodKind::KeyboardInteractive) => {}
        AuthResult::Failure { .. } | AuthResult::Success => return Ok(answer),
    }
    let mut question = handle
        .authenticate_keyboard_interactive_start(&endpoint.user, None)
        .await?;
    for _ in 0..MOST_QUESTIONS {
        let prompts = match question {
            KeyboardInteractiveAuthResponse::Success => return Ok(AuthResult::Success),
            KeyboardInteractiveAuthResponse::Failure {
                remaining_methods,
                partial_success,
            } => {
                return Ok(AuthResult::Failure {
                    remaining_methods,
                    partial_success,
                });
            }
            KeyboardInteractiveAuthResponse::InfoRequest { prompts, .. } => prompts,
        };
        let answers = prompts.iter().map(|_| password.to_owned()).collect();
        question = handle
            .authenticate_keyboard_interactive_respond(answers)
            .await?;
    }
    Ok(answer)
}

impl Connection {
    /// Starts a command on a channel of its own.
    pub(super) async fn exec(&self, command: &str) -> Result<Channel<Msg>, String> {
        self.open_channel(async |channel| channel.exec(true, command).await)
            .await
    }

    /// Asks for a subsystem on a channel of its own; whether the server has it, is its first answer there.
    pub(super) async fn subsystem(&self, name: &str) -> Result<Channel<Msg>, String> {
        self.open_channel(async |channel| channel.request_subsystem(true, name).await)
            .await
    }

    async fn open_channel(
        &self,
        ask: impl AsyncFnOnce(&Channel<Msg>) -> Result<(), russh::Error>,
    ) -> Result<Channel<Msg>, String> {
        let opened = async {
            let channel = self.handle.channel_open_session().await?;
            ask(&channel).await?;
            Ok::<_, russh::Error>(channel)
        };
        match timeout(EXEC, opened).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => Err(self
                .farewell
                .reason()
                .unwrap_or_else(|| Trouble::Ssh(error).to_string())),
            Err(_) => Err(format!("no channel was opened within {} s", EXEC.as_secs())),
        }
    }

    /// Says goodbye, so that the guest's sshd does not wonder.
    pub(super) async fn say_goodbye(&self) {
        let said = self
            .handle
            .disconnect(russh::Disconnect::ByApplication, "done", "en")
            .await;
        if let Err(error) = said {
            tracing::debug!(%error, "the connection was closed before the goodbye");
        }
    }
}

fn refusal(proof: &Proof, others: &[MethodKind]) -> String {
    let what = match proof {
        Proof::Key(_) => "key",
        Proof::Password(_) => "password",
    };
    let others: Vec<&str> = others.iter().map(Into::into).collect();
    format!(
        "the {what} is refused; the server takes {}",
        others.join(", ")
    )
}
