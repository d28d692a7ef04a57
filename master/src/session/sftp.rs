//! Putting the agent into a Windows guest: `cmd` has no way to take bytes from its input, but every Windows sshd serves SFTP.
//!
//! ```text
//!   master                                             Win32-OpenSSH in the guest
//!     | sftp: is <state dir>/agent-<hash>.exe there? -----|
//!     |------ if not: written beside it, and renamed ---->|
//!     | exec: <state dir>\agent-<hash>.exe serve … -------|   cmd.exe /c "…", or PowerShell
//!     |<===== VIVARIUM-AGENT nonce, frames ===============|   the agent hashes itself first
//! ```

use super::push::{Failed, within};
use super::ssh::Connection;
use russh::{Channel, ChannelMsg, client::Msg};
use russh_sftp::client::SftpSession;
use std::borrow::Cow;
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// From the request to the server's version: a process of the guest's.
const OPENING: Duration = Duration::from_secs(60);
/// How long a single answer may take, in seconds: an emulated guest writes to its disk.
const ANSWER_SECS: u64 = 60;
/// How much goes out at once.
const PIECE: usize = 32 * 1024;

/// Where the agent is in the guest, in both of the ways in which its paths are written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Forward slashes, and one in front of a drive.
    folder: String,
    file: String,
    /// As `cmd` takes it.
    pub(super) command: String,
}

impl Place {
    /// `hash` is what the file has to have, hexadecimal.
    pub(super) fn new(state_dir: &str, hash: &str, nonce: &str) -> Place {
        let name = format!("agent-{}.exe", hash.get(..16).unwrap_or(hash));
        let slashes = state_dir.replace('\\', "/");
        let folder = match slashes.as_bytes() {
            [drive, b':', ..] if drive.is_ascii_alphabetic() => format!("/{slashes}"),
            _ => slashes,
        };
        let folder = folder.trim_end_matches('/').to_owned();
        let state = state_dir.replace('/', "\\");
        let state = state.trim_end_matches('\\');
        Place {
            file: format!("{folder}/{name}"),
            folder,
            command: format!(
                "{} serve {nonce} --state {} --sha256 {hash}",
                quote(&format!("{state}\\{name}")),
                quote(state)
            ),
        }
    }
}

/// One word for `cmd`. Left alone where that is possible: PowerShell takes a program in quotation marks for a text.
fn quote(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:\\".contains(&byte);
    if word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("\"{word}\"")
    }
}

/// Sees to it that the program is in its place.
pub(super) async fn put<'a>(
    connection: &Connection,
    place: &Place,
    size: usize,
    program: impl FnOnce() -> Result<Cow<'a, [u8]>, Failed>,
    deadline: Duration,
) -> Result<(), Failed> {
    let session = within(OPENING, "start of SFTP", open(connection)).await?;
    session.set_timeout(ANSWER_SECS);
    let there = session.metadata(place.file.as_str()).await;
    if !there.is_ok_and(|metadata| metadata.len() == size as u64) {
        let program = program()?;
        let upload = upload(&session, place, &program);
        within(deadline, "upload of the agent", upload).await?;
    }
    // The server's end of it is a process.
    session.close().await.ok();
    Ok(())
}

async fn open(connection: &Connection) -> Result<SftpSession, Failed> {
    let mut channel = connection.subsystem("sftp").await.map_err(Failed::Lost)?;
    await_consent(&mut channel).await?;
    SftpSession::new(channel.into_stream())
        .await
        .map_err(|error| Failed::Lost(format!("SFTP did not begin: {error}")))
}

async fn await_consent(channel: &mut Channel<Msg>) -> Result<(), Failed> {
    loop {
        match channel.wait().await {
            Some(ChannelMsg::Success) => return Ok(()),
            Some(ChannelMsg::Failure) => {
                return Err(Failed::Agent(
                    "cannot be stored: the SSH server has no SFTP\nhint: a line `Subsystem sftp sftp-server.exe` in sshd_config of the guest".to_owned(),
                ));
            }
            Some(ChannelMsg::Close) | None => {
                return Err(Failed::Lost("the channel was closed".to_owned()));
            }
            // Window sizes.
            Some(_) => {}
        }
    }
}

/// Writes beside the place and renames: what has its name is whole.
async fn upload(session: &SftpSession, place: &Place, program: &[u8]) -> Result<(), Failed> {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        Failed::Agent(format!(
            "could not be stored as {}: cannot {what}: {error}",
            place.file
        ))
    };
    for (at, _) in place.folder.match_indices('/').skip(1) {
        make_folder(session, place.folder.get(..at).unwrap_or_default()).await;
    }
    make_folder(session, &place.folder).await;
    let beside = format!("{}.{:016x}", place.file, rand::random::<u64>());
    let mut file = session
        .create(beside.as_str())
        .await
        .map_err(|error| failed("create the file", &error))?;
    for piece in program.chunks(PIECE) {
        let written = file.write_all(piece).await;
        written.map_err(|error| failed("write it", &error))?;
    }
    let closed = file.close().await;
    closed.map_err(|error| failed("write it", &error))?;
    // What has another size; mostly there is none.
    session.remove_file(place.file.as_str()).await.ok();
    if let Err(error) = session.rename(beside.as_str(), place.file.as_str()).await {
        session.remove_file(beside).await.ok();
        // Another connection may have been quicker; a program that runs cannot be replaced.
        if !session
            .try_exists(place.file.as_str())
            .await
            .unwrap_or(false)
        {
            return Err(failed("name it", &error));
        }
    }
    Ok(())
}

/// One that is there is refused, and so is a drive; what is missing then is told by the file.
async fn make_folder(session: &SftpSession, folder: &str) {
    if let Err(error) = session.create_dir(folder).await {
        tracing::trace!(folder, %error, "not created");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_written_in_both_ways() {
        let hash = "0123456789abcdef0123";
        let place = Place::new("C:/Users/build/.vivarium", hash, "n1");
        assert_eq!(place.folder, "/C:/Users/build/.vivarium");
        assert_eq!(
            place.file,
            "/C:/Users/build/.vivarium/agent-0123456789abcdef.exe"
        );
        assert_eq!(
            place.command,
            r"C:\Users\build\.vivarium\agent-0123456789abcdef.exe serve n1 --state C:\Users\build\.vivarium --sha256 0123456789abcdef0123"
        );
        let place = Place::new(r"D:\a b\", hash, "n1");
        assert_eq!(place.folder, "/D:/a b");
        assert!(
            place
                .command
                .starts_with(r#""D:\a b\agent-0123456789abcdef.exe" serve n1 --state "D:\a b" "#)
        );
        let place = Place::new("state", hash, "n1");
        assert_eq!(place.file, "state/agent-0123456789abcdef.exe");
    }
}
