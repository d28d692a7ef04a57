//! To the guest: a request, the bytes of a reader as data frames, one answer.

use super::SessionError;
use super::link::Link;
use super::route::{Ending, Router, Upload};
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{Mutex, oneshot};
use vivarium_protocol::{Frame, MAX_DATA, ToAgent};

/// Half an upload cannot be taken back: the agent would take the next one's bytes for its rest.
struct BreakOff<'a>(Option<&'a Router>);

impl Drop for BreakOff<'_> {
    fn drop(&mut self) {
        if let Some(router) = self.0 {
            router.end(Ending::Lost("an upload was broken off".to_owned()));
        }
    }
}

/// Sends everything from `source` and returns the agent's count. Cancelled in the middle, it ends the connection.
pub(super) async fn upload<R: AsyncRead + Unpin + Send>(
    link: &Link,
    turn: &Arc<Mutex<()>>,
    upload: Upload,
    request: &ToAgent,
    mut source: R,
) -> Result<u64, SessionError> {
    let turn = turn.lock().await;
    let router = &*link.router;
    let (sender, mut answer) = oneshot::channel();
    let request = link.frame(upload.request(), request)?;
    router.await_upload(upload, sender)?;
    let mut unfinished = BreakOff(Some(router));
    link.send(request).await?;
    // A refusal may come early: a full disk. The rest is then not even read.
    let mut early = None;
    loop {
        let mut content = Vec::with_capacity(MAX_DATA);
        let mut piece = (&mut source).take(MAX_DATA as u64);
        tokio::select! {
            biased;
            answered = &mut answer => {
                early = Some(answered.map_err(|_| router.lost())?);
                break;
            }
            read = piece.read_buf(&mut content) => match read {
                Ok(0) => break,
                Ok(_) => {
                    link.send_data(content).await?;
                    crate::crash::point("source_piece_sent");
                }
                Err(source) => {
                    return Err(SessionError::Source { name: router.name().to_owned(), source });
                }
            },
        }
    }
    link.send(Frame::to_agent(&ToAgent::EndOfData)).await?;
    let answered = match early {
        Some(answered) => answered,
        None => (&mut answer).await.map_err(|_| router.lost())?,
    };
    unfinished.0 = None;
    drop(turn);
    answered.map_err(|message| router.refused(upload.request(), &message))
}
