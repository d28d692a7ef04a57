//! Bytes on their way to a guest while git is still making them.

use super::SourceError;
use super::process::Running;
use std::io::{self, Cursor};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, ReadBuf};

/// A tar archive or a bundle as git writes it. Dropping it ends git.
pub struct Archive {
    /// What comes before git's own output.
    head: Cursor<Vec<u8>>,
    running: Running,
    is_read_to_the_end: bool,
}

impl Archive {
    pub(super) fn new(head: Vec<u8>, running: Running) -> Archive {
        Archive {
            head: Cursor::new(head),
            running,
            is_read_to_the_end: false,
        }
    }

    /// Waits for git to end, to be called after the last byte: only then is the archive known to be whole.
    pub async fn finish(self) -> Result<(), SourceError> {
        let is_read_to_the_end = self.is_read_to_the_end;
        match self.running.finish().await {
            Err(SourceError::Git {
                repository, what, ..
            }) if !is_read_to_the_end => Err(SourceError::Git {
                repository,
                what,
                why: "it was not read to its end".into(),
            }),
            result => result,
        }
    }
}

impl AsyncRead for Archive {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let head = Pin::new(&mut self.head).poll_read(context, buffer);
        if buffer.filled().len() > before {
            return head;
        }
        let read = Pin::new(&mut self.running.stdout).poll_read(context, buffer);
        if matches!(read, Poll::Ready(Ok(()))) && buffer.filled().len() == before {
            self.is_read_to_the_end = true;
        }
        read
    }
}

impl std::fmt::Debug for Archive {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Archive").finish_non_exhaustive()
    }
}
