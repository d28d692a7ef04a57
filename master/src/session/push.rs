//! Getting the agent into the guest and started, in one exec channel.
//!
//! ```text
//!   master                                    sh in the guest
//!     | exec: sh -c SCRIPT …                       |
//!     |<---- (banner of a login script) -----------|
//!     |<---- VIVARIUM-PUSH nonce PACKED, or -------|   is <state dir>/agent-<hash> there, executable, whole?
//!     |      PLAIN where there is no gzip, or HAVE |
//!     |----- exactly the agent's bytes ----------->|   head -c, gzip -dc; its SHA-256 is looked at; chmod
//!     |<==== VIVARIUM-AGENT nonce, frames ========>|   exec agent serve
//! ```
//!
//! Windows has no such shell: there the program comes by SFTP, see [`sftp`].
//!
//! One channel, because every login and every exec costs an emulated guest up to a second. For the same reason the
//! script starts as few programs as it can, and the agent travels packed: in an emulated guest each takes a tenth of a
//! second, and so does each 150 kB that arrive.

use super::GuestSpec;
use super::error::one_line;
use super::programs::Program;
use super::sftp::{self, Place};
use super::ssh::Connection;
use crate::model::OsFamily;
use russh::client::Msg;
use russh::{Channel, ChannelMsg};
use std::borrow::Cow;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use vivarium_protocol::{Decoder, Frame, Hello, MAX_BANNER, PREAMBLE, PROTOCOL_VERSION, ToMaster};

/// From the exec to the script's first word: a shell and its start-up files on a booting, emulated guest.
const FIRST_WORD: Duration = Duration::from_secs(60);
/// The upload: a megabyte or two through an emulated network card and a guest's disk.
const UPLOAD: Duration = Duration::from_secs(120);
/// From the agent's last byte to its hello.
const GREETING: Duration = Duration::from_secs(60);
/// How much of what the guest says on stderr is kept for an error message.
const MAX_STDERR: usize = 4096;

const PUSH: &str = "VIVARIUM-PUSH ";

/// The script: arguments are the state folder, the file's name in it, the program's hash, both sizes and the nonce. One line
/// without `'`, `!` and `\`, so that it passes a csh or a fish on its way to `sh`.
///
/// The file is executable once it is whole, and not before; one that somebody else's broken connection left half-way is
/// replaced by another, because it may still be written to. What is there is looked at before each start, for on a
/// machine that outlives its jobs it may have been half on disk when the power went.
const SCRIPT: &str = concat!(
    r#"d=$1; a=$d/$2; h=$3; p=$4; n=$5; "#,
    r#"fail() { echo "$1" >&2; exit 74; }; "#,
    r#"sum() { sha256sum || sha256 || shasum -a 256 || openssl dgst -sha256 || cksum -a sha256; }; "#,
    r#"whole() { case $(sum <"$a" 2>/dev/null) in *"$h"*) ;; "") [ "$(wc -c <"$a")" -eq "$n" ] ;; *) false ;; esac; }; "#,
    r#"if [ -x "$a" ] && whole; then echo "VIVARIUM-PUSH $6 HAVE"; "#,
    r#"else [ -d "$d" ] || mkdir -p "$d" || exit 71; [ -e "$a" ] && rm -f "$a"; "#,
    r#"if command -v gzip >/dev/null 2>&1; then echo "VIVARIUM-PUSH $6 PACKED"; head -c "$p" | gzip -dc >"$a"; "#,
    r#"else echo "VIVARIUM-PUSH $6 PLAIN"; head -c "$n" >"$a"; fi || fail "the agent could not be stored as $a"; "#,
    r#"whole || fail "what is stored as $a is not the agent that was sent: its SHA-256 should be $h"; "#,
    r#"chmod 755 "$a" || fail "$a cannot be made executable"; fi; "#,
    r#"exec "$a" serve "$6" --state "$d""#,
);

fn command(program: &Program, state_dir: &str, nonce: &str) -> String {
    // Another version is another file.
    let version = program.sha256.get(..16).unwrap_or_default();
    format!(
        "exec sh -c {} vivarium {} agent-{version} {} {} {} {nonce}",
        quote(SCRIPT),
        quote(state_dir),
        program.sha256,
        program.packed().len(),
        program.size
    )
}

/// For a guest that cannot unpack it.
fn unpacked(program: &Program) -> Result<Cow<'_, [u8]>, Failed> {
    let unpacked = program.unpacked();
    unpacked.map_err(|error| Failed::Agent(format!("cannot be unpacked here: {error}")))
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
    /// The program is in the guest, and ended before it said anything: it may be none for this system.
    NotStarted(String),
}

/// Pushes the program if the guest has it not, starts it and waits for its hello.
pub(super) async fn start_agent(
    connection: &Connection,
    program: &Program,
    guest: &GuestSpec,
) -> Result<Greeted, Failed> {
    let nonce = format!("{:032x}", rand::random::<u128>());
    let state_dir = guest.state_dir.as_str();
    if guest.os == OsFamily::Windows {
        return start_on_windows(connection, program, state_dir, &nonce).await;
    }
    let command = command(program, state_dir, &nonce);
    let mut bootstrap = Bootstrap::exec(connection, &command, Stage::Storing).await?;
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
        b"PACKED" => Some(Cow::Borrowed(program.packed())),
        b"PLAIN" => Some(unpacked(program)?),
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
    bootstrap.greet(&nonce).await
}

async fn start_on_windows(
    connection: &Connection,
    program: &Program,
    state_dir: &str,
    nonce: &str,
) -> Result<Greeted, Failed> {
    let place = Place::new(state_dir, &program.sha256, nonce);
    sftp::put(
        connection,
        &place,
        program.size,
        || unpacked(program),
        UPLOAD,
    )
    .await?;
    let bootstrap = Bootstrap::exec(connection, &place.command, Stage::Starting).await?;
    bootstrap.greet(nonce).await
}

/// Waits that long, and says then what took longer.
pub(super) async fn within<T>(
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
    exit: Option<Exit>,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Storing,
    Starting,
}

/// How the script, or what it became, ended.
enum Exit {
    Status(u32),
    Signal(String),
}

/// The script's own, when the program could not be stored.
const NOT_STORED: [u32; 2] = [71, 74];

impl<'a> Bootstrap<'a> {
    async fn exec(connection: &'a Connection, command: &str, stage: Stage) -> Result<Self, Failed> {
        let channel = connection.exec(command).await.map_err(Failed::Lost)?;
        Ok(Bootstrap {
            connection,
            channel,
            received: Vec::new(),
            skipped: 0,
            stderr: Vec::new(),
            exit: None,
            stage,
        })
    }

    async fn greet(mut self, nonce: &str) -> Result<Greeted, Failed> {
        self.stage = Stage::Starting;
        let hello = within(GREETING, "agent's hello", self.hello(nonce)).await?;
        crate::crash::point("agent_greeted");
        Ok(Greeted {
            channel: self.channel,
            decoder: hello.1,
            hello: hello.0,
        })
    }

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
                    self.exit = Some(Exit::Status(exit_status))
                }
                Some(ChannelMsg::ExitSignal { signal_name, .. }) => {
                    self.exit = Some(Exit::Signal(format!("{signal_name:?}")))
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
        let how = match exit {
            Exit::Status(status) => format!("with status {status}"),
            Exit::Signal(name) => format!("by signal {name}"),
        };
        let why = format!("could not be started: the shell ended {how} and said {said:?}");
        match (self.stage, exit) {
            (Stage::Starting, Exit::Status(status)) if NOT_STORED.contains(status) => {
                Failed::Agent(why)
            }
            (Stage::Starting, _) => Failed::NotStarted(why),
            (Stage::Storing, _) => Failed::Agent(why),
        }
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
}
