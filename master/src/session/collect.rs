//! Files from the guest: one after the other, in pieces, checked at their end.

use super::SessionError;
use super::error::one_line;
use super::gate::Charged;
use super::route::Router;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::sync::Arc;
use tokio::sync::mpsc;
use vivarium_protocol::{CollectedFile, Skipped};

/// The longest path that a guest may send, in bytes; what most file systems take.
const MAX_PATH: usize = 4096;

/// What comes out of the router, in the order of the wire.
#[derive(Debug)]
pub(super) enum CollectItem {
    File(CollectedFile),
    Data(Bytes),
    EndOfFile { sha256: String },
    Collected { skipped: Vec<Skipped> },
    Refused { message: String },
}

/// Files that match, as the guest sends them. A connection has one collection at a time.
///
/// What is not taken makes the guest wait. A collection that is dropped early is read to its end and thrown away.
pub struct Collection {
    items: mpsc::UnboundedReceiver<Charged<CollectItem>>,
    router: Arc<Router>,
    /// The file being received, if its end has not been seen.
    open: Option<Progress>,
    skipped: Vec<Skipped>,
    ended: bool,
    files_left: u64,
    bytes_left: u64,
}

impl std::fmt::Debug for Collection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Collection")
            .field("vm", &self.router.name())
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

/// How far a file has come.
struct Progress {
    path: String,
    size: u64,
    received: u64,
    hash: Sha256,
}

impl Collection {
    pub(super) fn new(
        items: mpsc::UnboundedReceiver<Charged<CollectItem>>,
        router: Arc<Router>,
        max_files: u64,
        max_bytes: u64,
    ) -> Self {
        Self {
            items,
            router,
            open: None,
            skipped: Vec::new(),
            ended: false,
            files_left: max_files,
            bytes_left: max_bytes,
        }
    }

    /// The next file; `None` after the last. What was not taken of the file before is skipped.
    ///
    /// The file's path is relative, with `/` between its parts, none of them `.` or `..`.
    pub async fn next_file(&mut self) -> Result<Option<IncomingFile<'_>>, SessionError> {
        while self.open.is_some() {
            // Nobody wants the rest, whatever it is.
            match self.next_chunk().await {
                Ok(_) | Err(SessionError::Incomplete { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        if self.ended {
            return Ok(None);
        }
        match self.next_item().await? {
            CollectItem::File(file) => {
                self.admit(&file)?;
                self.open = Some(Progress {
                    path: file.path.clone(),
                    size: file.size,
                    received: 0,
                    hash: Sha256::new(),
                });
                Ok(Some(IncomingFile {
                    file,
                    collection: self,
                }))
            }
            CollectItem::Collected { skipped } => {
                self.ended = true;
                self.skipped = skipped;
                Ok(None)
            }
            CollectItem::Refused { message } => {
                self.ended = true;
                Err(self.router.refused("collect", &message))
            }
            // The router hands these out inside a file only.
            CollectItem::Data(_) | CollectItem::EndOfFile { .. } => {
                Err(self.wrong("a piece came without its file"))
            }
        }
    }

    /// The files that matched and did not come, with why. Complete after [`Collection::next_file`] has returned `None`.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    async fn next_item(&mut self) -> Result<CollectItem, SessionError> {
        match self.items.recv().await {
            Some(item) => Ok(item.take()),
            None => Err(self.router.lost()),
        }
    }

    /// Checks what the guest announces: its path and the limits that it was given.
    fn admit(&mut self, file: &CollectedFile) -> Result<(), SessionError> {
        if !is_plain(&file.path) {
            let path = one_line(file.path.as_bytes());
            return Err(self.wrong(&format!(
                "it names a file {path:?}, which leads out of the collected folder"
            )));
        }
        let (Some(files), Some(bytes)) = (
            self.files_left.checked_sub(1),
            self.bytes_left.checked_sub(file.size),
        ) else {
            return Err(self.wrong("it sends more files or bytes than were allowed"));
        };
        self.files_left = files;
        self.bytes_left = bytes;
        Ok(())
    }

    async fn next_chunk(&mut self) -> Result<Option<Bytes>, SessionError> {
        if self.open.is_none() {
            return Ok(None);
        }
        let item = self.next_item().await?;
        let Some(mut progress) = self.open.take() else {
            return Ok(None);
        };
        match item {
            CollectItem::Data(bytes) => {
                progress.received = progress.received.saturating_add(bytes.len() as u64);
                if progress.received > progress.size {
                    return Err(self.wrong(&format!(
                        "it sends more than the {} bytes of a file",
                        progress.size
                    )));
                }
                progress.hash.update(&bytes);
                self.open = Some(progress);
                Ok(Some(bytes))
            }
            CollectItem::EndOfFile { sha256 } => match progress.check(&sha256) {
                Ok(()) => Ok(None),
                Err(why) => {
                    // It does not count: the agent does not count it either.
                    self.files_left += 1;
                    self.bytes_left += progress.size;
                    Err(SessionError::Incomplete {
                        name: self.router.name().to_owned(),
                        path: progress.path,
                        why,
                    })
                }
            },
            CollectItem::Refused { message } => {
                self.ended = true;
                Err(self.router.refused("collect", &message))
            }
            CollectItem::File(_) | CollectItem::Collected { .. } => {
                Err(self.wrong("a file does not end"))
            }
        }
    }

    /// Ends the connection: the agent's word cannot be trusted.
    fn wrong(&mut self, why: &str) -> SessionError {
        self.ended = true;
        self.router
            .end(super::route::Ending::Protocol(why.to_owned()));
        self.router.lost()
    }
}

impl Progress {
    fn check(&self, sha256: &str) -> Result<(), String> {
        if self.received != self.size {
            return Err(format!(
                "{} of {} bytes came, it changed while it was sent",
                self.received, self.size
            ));
        }
        let arrived = hex::encode(self.hash.clone().finalize());
        if arrived != sha256 {
            return Err(format!(
                "its SHA-256 is {arrived}, the agent says {}",
                one_line(sha256.as_bytes())
            ));
        }
        Ok(())
    }
}

/// Whether a guest's path stays below the folder that we put it in.
fn is_plain(path: &str) -> bool {
    path.len() <= MAX_PATH
        && !path.contains('\0')
        && path
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..")
}

/// A file on its way. Dropped before its end, the rest of it is skipped.
pub struct IncomingFile<'a> {
    pub file: CollectedFile,
    collection: &'a mut Collection,
}

impl std::fmt::Debug for IncomingFile<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IncomingFile")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl IncomingFile<'_> {
    /// The next piece, of at most 256 KiB; `None` at the end, and then size and SHA-256 are what the agent said.
    /// May be cancelled and called again.
    ///
    /// [`SessionError::Incomplete`] concerns this file alone: discard it and go on with [`Collection::next_file`].
    pub async fn next_chunk(&mut self) -> Result<Option<Bytes>, SessionError> {
        self.collection.next_chunk().await
    }
}

#[cfg(test)]
mod tests {
    use super::is_plain;

    #[test]
    fn a_guests_path_never_leads_out() {
        for path in ["a", "a/b.xml", "..a/b..", "ü/\\"] {
            assert!(is_plain(path), "{path}");
        }
        for path in ["", "/a", "a/", "a//b", ".", "a/./b", "..", "a/../b", "a\0b"] {
            assert!(!is_plain(path), "{path}");
        }
        assert!(!is_plain(&"a".repeat(5000)));
    }
}
