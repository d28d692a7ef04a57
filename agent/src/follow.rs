//! Following one execution: its spooled output goes out as frames, then how it ended.
//!
//! ```text
//!   spool ──SpoolReader──> frames ──> outbox        woken by the supervisor's byte, ended by its hanging up
//! ```
//!
//! A thread of its own, so that requests are answered while output flows. It owns the reader; the connection keeps a
//! second handle of the link, for acknowledgements and to end the following.

use crate::execution::output_bytes;
use crate::link::{self, Link};
use crate::outbox::{Closed, Outbox};
use crate::platform;
use crate::record::{self, End};
use crate::spool::{self, SpoolReader};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use vivarium_protocol::{Execution, ExecutionState, Exit, ToMaster};

/// The pause while a supervisor that has hung up is still ending.
const ENDING_PAUSE: Duration = Duration::from_millis(2);

/// The connection's handle on the following.
#[derive(Debug)]
pub(crate) struct Follower {
    execution: Execution,
    link: Option<Link>,
    acknowledged: Arc<AtomicU64>,
    cancelled: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What is followed, and on whose behalf.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) execution: Execution,
    pub(crate) dir: PathBuf,
    pub(crate) from: u64,
    /// The request that is refused if the following fails.
    pub(crate) request: &'static str,
    /// What is said about it before its output.
    pub(crate) state: ExecutionState,
}

/// Starts following. An error means that there is nothing to follow from that byte on.
pub(crate) fn follow(subject: Subject, outbox: Outbox) -> Result<Follower> {
    let link = link::connect(&subject.dir)?;
    // Looked for after the link was made: an end recorded later is told by the link.
    let end = record::read_end(&subject.dir)?;
    let reader = SpoolReader::open(&subject.dir, subject.from, end.as_ref().map(output_bytes))?;
    let kept = link.as_ref().map(Link::try_clone).transpose()?;
    let cancelled = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::new(AtomicU64::new(0));
    let execution = subject.execution.clone();
    let following = Following {
        subject,
        reader,
        link,
        outbox,
        acknowledged: Arc::clone(&acknowledged),
        cancelled: Arc::clone(&cancelled),
    };
    let thread = std::thread::Builder::new()
        .name("follower".into())
        .spawn(move || {
            // The connection has gone: nobody is left to tell.
            following.run().ok();
        })
        .context("cannot start a thread")?;
    Ok(Follower {
        execution,
        link: kept,
        acknowledged,
        cancelled,
        thread: Some(thread),
    })
}

impl Follower {
    pub(crate) fn follows(&self, execution: &Execution) -> bool {
        self.execution == *execution
    }

    /// Keeps an acknowledgement in mind in case the supervisor ends before it reads it; the link is there to send it.
    pub(crate) fn note_acknowledged(&mut self, until: u64) -> Option<&mut Link> {
        self.acknowledged.fetch_max(until, Ordering::SeqCst);
        self.link.as_mut()
    }
}

impl Drop for Follower {
    /// Ends the following, not the execution. Afterwards no frame of it is sent any more.
    fn drop(&mut self) {
        self.cancelled.store(true, Ordering::Relaxed);
        if let Some(link) = &self.link {
            link.hang_up();
        }
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

struct Following {
    subject: Subject,
    reader: SpoolReader,
    link: Option<Link>,
    outbox: Outbox,
    acknowledged: Arc<AtomicU64>,
    cancelled: Arc<AtomicBool>,
}

impl Following {
    fn run(mut self) -> Result<(), Closed> {
        self.outbox.send(&ToMaster::Started {
            execution: self.subject.execution.clone(),
            state: self.subject.state.clone(),
        })?;
        match self.send_output() {
            Ok(Some(end)) => self.send_end(end),
            Ok(None) => Ok(()),
            Err(error) if error.is::<Closed>() => Err(Closed),
            Err(error) => self.refuse(&format!("{error:#}")),
        }
    }

    /// Sends what is spooled until the supervisor has gone and everything is sent; `None` when cancelled.
    fn send_output(&mut self) -> Result<Option<Option<End>>> {
        loop {
            // Whether more may come is asked before the spool is read to its end, so that nothing comes in between.
            let gone = self.link.is_none();
            let mut frame = self.outbox.spare_frame();
            while self.reader.next_frame(&mut frame)? {
                if self.is_cancelled() {
                    return Ok(None);
                }
                self.outbox.send_encoded(frame)?;
                frame = self.outbox.spare_frame();
            }
            if gone {
                let end = record::read_end(&self.subject.dir)?;
                spool::forget(&self.subject.dir, self.acknowledged.load(Ordering::SeqCst))?;
                return Ok(Some(end));
            }
            if let Some(link) = &mut self.link
                && !link.wait()
            {
                self.link = None;
                if self.is_cancelled() {
                    return Ok(None);
                }
                await_supervisors_end(&self.subject.dir)?;
            }
            if self.is_cancelled() {
                return Ok(None);
            }
        }
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    fn send_end(&self, end: Option<End>) -> Result<(), Closed> {
        let sent = self.reader.offset();
        let exit = match end {
            Some(end) if output_bytes(&end) != sent => {
                let whole = output_bytes(&end);
                return self.refuse(&format!(
                    "the spool ends at byte {sent} of {whole}: the rest was deleted"
                ));
            }
            Some(End::Failed { message, .. }) => return self.refuse(&message),
            Some(End::Exited { exit, .. }) => exit,
            None => Exit::Lost,
        };
        self.outbox.send(&ToMaster::Exited {
            execution: self.subject.execution.clone(),
            exit,
            output_bytes: sent,
        })
    }

    fn refuse(&self, why: &str) -> Result<(), Closed> {
        self.outbox.refuse(
            self.subject.request,
            format_args!("{}: {why}", self.subject.execution),
        )
    }
}

/// A supervisor that has hung up has recorded the end, or is dead, or both in a moment.
fn await_supervisors_end(dir: &Path) -> Result<()> {
    while record::read_end(dir)?.is_none() && platform::is_supervised(dir)? {
        std::thread::sleep(ENDING_PAUSE);
    }
    Ok(())
}
