//! Getting the agent into the guest and started, in one exec channel.
//!
//! ```text
//!   master                                    sh in the guest
//!     | exec: sh -c SCRIPT …                       |
//!     |<---- (banner of a login script) -----------|
//!     |<---- VIVARIUM-PUSH nonce PACKED, or -------|   is <state dir>/agent-<hash> there and executable?
//!     |      PLAIN where there is no gzip, or HAVE |
//!     |----- exactly the agent's bytes ----------->|   head -c, gzip -dc; chmod once it is whole
//!     |<==== VIVARIUM-AGENT nonce, frames ========>|   exec agent serve
//! ```
//!
//! One channel, because every login and every exec costs an emulated guest up to a second. For the same reason the
//! script starts as few programs as it can, and the agent travels packed: in an emulated guest each takes a tenth of a
//! second, and so does each 150 kB that arrive.

use super::error::one_line;
use super::ssh::Connection;
use super::{GuestSpec, SessionError};
use crate::model::{Architecture, OsFamily};
use russh::client::Msg;
use russh::{Channel, ChannelMsg};
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::io::Read;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use vivarium_protocol::{Decoder, Frame, Hello, MAX_BANNER, PREAMBLE, PROTOCOL_VERSION, ToMaster};

include!(concat!(env!("OUT_DIR"), "/agents.rs"));

/// From the exec to the script's first word: a shell and its start-up files on a booting, emulated guest.
const FIRST_WORD: Duration = Duration::from_secs(60);
/// The upload: a megabyte or two through an emulated network card and a guest's disk.
const UPLOAD: Duration = Duration::from_secs(120);
/// From the agent's last byte to its hello.
const GREETING: Duration = Duration::from_secs(60);
/// How much of what the guest says on stderr is kept for an error message.
const MAX_STDERR: usize = 4096;

const PUSH: &str = "VIVARIUM-PUSH ";

/// The script: arguments are the state folder, the hash, both sizes and the nonce. One line without `'`, `!` and `\`,
/// so that it passes a csh or a fish on its way to `sh`. The file is executable once it is whole, and not before; one
/// that somebody else's broken connection left half-way is replaced by another, because it may still be written to.
const SCRIPT: &str = concat!(
    r#"d=$1; a=$d/agent-$2; p=$3; n=$4; "#,
    r#"if [ -x "$a" ]; then echo "VIVARIUM-PUSH $5 HAVE"; "#,
    r#"else [ -d "$d" ] || mkdir -p "$d" || exit 71; [ -e "$a" ] && rm -f "$a"; "#,
    r#"if command -v gzip >/dev/null 2>&1; then echo "VIVARIUM-PUSH $5 PACKED"; head -c "$p" | gzip -dc >"$a"; "#,
    r#"else echo "VIVARIUM-PUSH $5 PLAIN"; head -c "$n" >"$a" && [ "$(wc -c <"$a")" -eq "$n" ]; fi && chmod 755 "$a" "#,
    r#"|| { echo "the agent could not be stored as $a" >&2; exit 74; }; fi; "#,
    r#"exec "$a" serve "$5" --state "$d""#,
);

/// An agent's program, as it is embedded in the master.
#[derive(Debug)]
pub(super) struct Program {
    os: OsFamily,
    arch: Architecture,
    /// In bytes.
    size: usize,
    /// By gzip.
    packed: &'static [u8],
}

/// The agents in this build, with their sizes in bytes.
pub fn available_agents() -> Vec<(OsFamily, Architecture, usize)> {
    AGENTS
        .iter()
        .map(|program| (program.os, program.arch, program.size))
        .collect()
}

impl Program {
    /// The agent for this guest, if there is one.
    pub(super) fn find(name: &str, guest: &GuestSpec) -> Result<&'static Self, SessionError> {
        AGENTS
            .iter()
            .find(|program| (program.os, program.arch) == (guest.os, guest.arch))
            .ok_or_else(|| SessionError::NoAgent {
                name: name.to_owned(),
                os: guest.os,
                arch: guest.arch,
            })
    }

    /// Names the program's file in the guest, so that another version is another file.
    fn hash(&self) -> String {
        let mut hash = hex::encode(Sha256::digest(self.packed));
        hash.truncate(16);
        hash
    }

    fn command(&self, state_dir: &str, nonce: &str) -> String {
        format!(
            "exec sh -c {} vivarium {} {} {} {} {nonce}",
            quote(SCRIPT),
            quote(state_dir),
            self.hash(),
            self.packed.len(),
            self.size
        )
    }

    /// For a guest that cannot unpack it.
    fn plain(&self) -> Result<Vec<u8>, Failed> {
        let mut plain = Vec::with_capacity(self.size);
        flate2::read::GzDecoder::new(self.packed)
            .read_to_end(&mut plain)
            .map_err(|error| Failed::Agent(format!("cannot be unpacked here: {error}")))?;
        Ok(plain)
    }
}

/// One word for any shell: sh, csh and fish agree on single quotes.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The agent has answered: what is read next is frames.
pub(super) struct Greeted {
    pub(super) channel: Channel<Msg>,
    pub(super) decoder: Decoder,
    pub(super) hello: Hello,
}

/// Why there is no agent on the other side.
pub(super) enum Failed {
    /// The connection broke or is too slow; another one may do better.
    Lost(String),
    /// The guest answered, and not with an agent.
    Agent(String),
}

/// Pushes the program if the guest has it not, starts it and waits for its hello.
pub(super) async fn start_agent(
    connection: &Connection,
    program: &Program,
    state_dir: &str,
) -> Result<Greeted, Failed> {
    let nonce = format!("{:032x}", rand::random::<u128>());
    let channel = connection
        .exec(&program.command(state_dir, &nonce))
        .await
        .map_err(Failed::Lost)?;
    let mut bootstrap = Bootstrap {
        connection,
        channel,
        received: Vec::new(),
        skipped: 0,
        stderr: Vec::new(),
        exit: None,
    };
    let answer = {
        let word = format!("{PUSH}{nonce} ");
        let wait = async {
            bootstrap.skip_past(word.as_bytes()).await?;
            bootstrap.line().await
        };
        within(FIRST_WORD, "start of the shell", wait).await?
    };
    let wanted = match answer.as_slice() {
        b"HAVE" => None,
        b"PACKED" => Some(Cow::Borrowed(program.packed)),
        b"PLAIN" => Some(Cow::Owned(program.plain()?)),
        other => {
            return Err(Failed::Agent(format!(
                "was asked for with {:?}",
                one_line(other)
            )));
        }
    };
    if let Some(bytes) = wanted {
        let upload = bootstrap.upload(&bytes);
        within(UPLOAD, "upload of the agent", upload).await?;
    }
    let hello = within(GREETING, "agent's hello", bootstrap.hello(&nonce)).await?;
    crate::crash::point("agent_greeted");
    Ok(Greeted {
        channel: bootstrap.channel,
        decoder: hello.1,
        hello: hello.0,
    })
}

async fn within<T>(
    time: Duration,
    what: &str,
    wait: impl Future<Output = Result<T, Failed>>,
) -> Result<T, Failed> {
    match timeout(time, wait).await {
        Ok(result) => result,
        Err(_) => Err(Failed::Lost(format!(
            "the {what} took longer than {} s",
            time.as_secs()
        ))),
    }
}

/// The channel before it speaks in frames.
struct Bootstrap<'a> {
    connection: &'a Connection,
    channel: Channel<Msg>,
    /// Not looked at yet.
    received: Vec<u8>,
    /// How much banner was skipped, of [`MAX_BANNER`].
    skipped: usize,
    stderr: Vec<u8>,
    exit: Option<String>,
}

impl Bootstrap<'_> {
    /// Waits for more bytes from the guest's stdout.
    async fn receive(&mut self) -> Result<(), Failed> {
        loop {
            match self.channel.wait().await {
                Some(ChannelMsg::Data { data }) => {
                    self.received.extend_from_slice(&data);
                    return Ok(());
                }
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
                Some(ChannelMsg::Failure) => {
                    return Err(Failed::Agent(
                        "cannot be started: its SSH server refuses to run commands".to_owned(),
                    ));
                }
                Some(ChannelMsg::Close) | None => return Err(self.ended()),
                // Success, end of the output (the exit status follows), window sizes.
                Some(_) => {}
            }
        }
    }

    fn ended(&self) -> Failed {
        let Some(exit) = &self.exit else {
            let farewell = self.connection.farewell.reason();
            return Failed::Lost(farewell.unwrap_or_else(|| "the channel was closed".to_owned()));
        };
        let said = one_line(&self.stderr);
        let rest = one_line(&self.received);
        let said = if said.is_empty() { rest } else { said };
        Failed::Agent(format!(
            "could not be started: the shell ended {exit} and said {said:?}"
        ))
    }

    /// Skips what login scripts print, up to and with `word`.
    async fn skip_past(&mut self, word: &[u8]) -> Result<(), Failed> {
        loop {
            if let Some(at) = find(&self.received, word) {
                self.skipped += at;
                self.received.drain(..at + word.len());
                return Ok(());
            }
            if self.skipped + self.received.len() > MAX_BANNER {
                let begin = self.received.get(..80).unwrap_or_default();
                return Err(Failed::Agent(format!(
                    "did not say its word within {MAX_BANNER} bytes, but {:?}…\nhint: a login script in the guest prints too much",
                    one_line(begin)
                )));
            }
            self.receive().await?;
        }
    }

    /// The rest of the line.
    async fn line(&mut self) -> Result<Vec<u8>, Failed> {
        const LONGEST: usize = 64;
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.received.drain(..=end).collect();
                line.pop();
                return Ok(line);
            }
            if self.received.len() > LONGEST {
                return Err(Failed::Agent("did not end its line".to_owned()));
            }
            self.receive().await?;
        }
    }

    /// Sends the program while listening, so that a script that gives up is heard.
    async fn upload(&mut self, program: &[u8]) -> Result<(), Failed> {
        let mut writer = self.channel.make_writer();
        let mut sending = std::pin::pin!(writer.write_all(program));
        loop {
            tokio::select! {
                sent = &mut sending => match sent {
                    Ok(()) => return Ok(()),
                    // Why, comes from the other side.
                    Err(_) => break,
                },
                heard = self.receive() => heard?,
            }
            if self.received.len() > MAX_BANNER {
                break;
            }
        }
        while self.received.len() <= MAX_BANNER {
            self.receive().await?;
        }
        Err(Failed::Agent(format!(
            "said more than {MAX_BANNER} bytes while it was uploaded"
        )))
    }

    async fn hello(&mut self, nonce: &str) -> Result<(Hello, Decoder), Failed> {
        self.skip_past(format!("{PREAMBLE}{nonce}\n").as_bytes())
            .await?;
        let mut decoder = Decoder::new();
        decoder.push(&std::mem::take(&mut self.received));
        let wrong = |why: String| Failed::Agent(format!("does not speak the protocol: {why}"));
        let json = loop {
            match decoder.next_frame() {
                Ok(Some(Frame::Control(json))) => break json,
                Ok(Some(_)) => return Err(wrong("its first frame is no message".to_owned())),
                Ok(None) => {}
                Err(error) => return Err(wrong(error.to_string())),
            }
            self.receive().await?;
            decoder.push(&std::mem::take(&mut self.received));
        };
        match Frame::parse::<ToMaster>(&json) {
            Ok(ToMaster::Hello(hello)) if hello.protocol == PROTOCOL_VERSION => {
                Ok((presentable(hello), decoder))
            }
            Ok(ToMaster::Hello(hello)) => Err(wrong(format!(
                "it speaks version {}, we speak {PROTOCOL_VERSION}",
                hello.protocol
            ))),
            Ok(_) => Err(wrong("its first message is no hello".to_owned())),
            Err(error) => Err(wrong(error.to_string())),
        }
    }
}

/// A guest's words about itself end up in logs and pages.
fn presentable(mut hello: Hello) -> Hello {
    for word in [&mut hello.agent_version, &mut hello.os, &mut hello.arch] {
        *word = one_line(word.as_bytes());
    }
    hello
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_is_one_word_in_any_shell() {
        assert!(!SCRIPT.contains(['\'', '!', '\\', '\n']));
        assert!(
            SCRIPT.matches(PUSH).count() == 3,
            "the script says the word that is waited for"
        );
        assert_eq!(quote("it's"), r"'it'\''s'");
    }

    #[test]
    fn a_guest_without_an_agent_is_named() {
        let guest = GuestSpec {
            os: OsFamily::Windows,
            arch: Architecture::Aarch64,
            state_dir: "x".to_owned(),
        };
        let error = Program::find("vm-7", &guest).unwrap_err().to_string();
        assert!(
            error.contains("no agent for windows/aarch64") && error.contains("vm-7"),
            "{error}"
        );
    }

    #[test]
    fn an_agent_for_this_machine_is_embedded() {
        assert!(available_agents().iter().any(|(os, arch, size)| {
            (os.as_str(), arch.as_str()) == (std::env::consts::OS, std::env::consts::ARCH)
                && *size > 100_000
        }));
    }
}
