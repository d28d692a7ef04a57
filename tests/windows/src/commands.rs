//! A command line in one channel: input to it, both outputs from it, and its exit code.

use anyhow::Result;
use russh::server::Msg;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use std::io::Write;
use std::process::Stdio;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStdin, Command};

/// What an SSH client sees as the second stream.
const STDERR: u32 = 1;

pub(crate) async fn run(channel: Channel<Msg>, line: String) {
    if let Err(error) = try_to_run(channel, &line).await {
        writeln!(std::io::stderr(), "{line}: {error:#}").ok();
    }
}

async fn try_to_run(channel: Channel<Msg>, line: &str) -> Result<()> {
    let mut child = shell(line)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let (reader, writer) = channel.split();
    if let Some(input) = child.stdin.take() {
        tokio::spawn(feed(reader, input));
    }
    let writer = Arc::new(writer);
    let output = forward(child.stdout.take(), Arc::clone(&writer), Stream::Output);
    let complaints = forward(child.stderr.take(), Arc::clone(&writer), Stream::Complaints);
    tokio::join!(output, complaints);
    let code = child.wait().await?.code().unwrap_or(255);
    writer.exit_status(code.cast_unsigned()).await?;
    writer.eof().await?;
    writer.close().await?;
    Ok(())
}

/// As Win32-OpenSSH does it where no other shell is set: all between two quotation marks.
#[cfg(windows)]
fn shell(line: &str) -> Command {
    let mut shell = Command::new("cmd.exe");
    shell.raw_arg(format!("/c \"{line}\""));
    shell
}

#[cfg(not(windows))]
fn shell(line: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", line]);
    shell
}

/// Passes on what the client sends, to its end: then the command's input ends.
async fn feed(mut from: ChannelReadHalf, mut input: ChildStdin) {
    while let Some(message) = from.wait().await {
        let done = match message {
            ChannelMsg::Data { data } => input.write_all(&data).await.is_err(),
            ChannelMsg::Eof | ChannelMsg::Close => true,
            _ => false,
        };
        if done {
            break;
        }
    }
    drop(input);
    // A channel that nobody reads would hold up the others.
    while from.wait().await.is_some() {}
}

#[derive(Clone, Copy)]
enum Stream {
    Output,
    Complaints,
}

async fn forward(
    from: Option<impl AsyncRead + Unpin>,
    to: Arc<ChannelWriteHalf<Msg>>,
    stream: Stream,
) {
    let Some(mut from) = from else { return };
    let mut buffer = vec![0; 32 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let bytes = buffer[..count].to_vec();
        let sent = match stream {
            Stream::Output => to.data_bytes(bytes).await,
            Stream::Complaints => to.extended_data_bytes(STDERR, bytes).await,
        };
        if sent.is_err() {
            return;
        }
    }
}
