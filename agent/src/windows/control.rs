//! How a connection's side reaches a supervisor: TCP on the loopback address, for Windows has no socket in a folder that
//! every version knows.
//!
//! ```text
//!   control file: "PORT WORD\n" ──> dial: the word ──> a thread for each caller: orders in ──> the supervisor's loop
//!                                    <── "." ───────── a second one: wake-ups out
//! ```
//!
//! Any user of the machine may call the port. Only who can read the execution's folder knows the word.

use crate::control::{Lines, Order};
use crate::{platform, record};
use anyhow::{Context, Result};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::Duration;

/// What a connection and a supervisor talk over.
pub(crate) type Stream = TcpStream;

/// How many connections may follow at once; further ones are turned away.
const MAX_CLIENTS: usize = 32;
/// How long either side may take to say its word.
const GREETING: Duration = Duration::from_secs(5);
/// The word's letters.
const WORD: usize = 32;

/// Calls the supervisor of the execution in `dir`.
pub(crate) fn dial(dir: &Path) -> io::Result<Stream> {
    let address = std::fs::read_to_string(dir.join(record::CONTROL))?;
    let (port, word) = address
        .split_once(' ')
        .and_then(|(port, word)| Some((port.parse().ok()?, word)))
        .ok_or(ErrorKind::InvalidData)?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, GREETING)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(GREETING))?;
    stream.write_all(word.as_bytes())?;
    // A port may be a stranger's once the supervisor has gone: a supervisor answers.
    stream.read_exact(&mut [0])?;
    stream.set_read_timeout(None)?;
    Ok(stream)
}

/// What callers have to say.
#[derive(Debug)]
pub(super) enum Call {
    Begun(Client),
    Order(Order),
    Ended(u64),
}

/// A connection that is to be told of new output.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) number: u64,
    bell: SyncSender<()>,
    line: TcpStream,
}

impl Drop for Client {
    /// Said to the caller, not left to the end of the process: Wine keeps a connection on which a thread was still reading.
    fn drop(&mut self) {
        self.line.shutdown(Shutdown::Both).ok();
    }
}

impl Client {
    /// Says "look again", without waiting: a bell that was not heard yet says the same.
    pub(super) fn wake(&self) -> bool {
        !matches!(self.bell.try_send(()), Err(TrySendError::Disconnected(())))
    }
}

/// Opens the supervisor's port and says in the folder where it is. `tell` gives every call to the supervisor.
pub(super) fn listen(
    dir: &Path,
    tell: impl Fn(Call) -> bool + Clone + Send + 'static,
) -> Result<()> {
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot open the control port")?;
    let port = listener
        .local_addr()
        .context("cannot tell the control port")?
        .port();
    let word = Arc::<str>::from(random_word() + "\n");
    let beside = dir.join("control.new");
    std::fs::write(&beside, format!("{port} {word}"))
        .and_then(|()| platform::rename(&beside, &dir.join(record::CONTROL)))
        .context("cannot write the control file")?;
    let count = Arc::new(AtomicUsize::new(0));
    let accept = move || {
        for (number, stream) in (0..).zip(listener.incoming()) {
            let Ok(stream) = stream else { continue };
            if count.fetch_add(1, Ordering::SeqCst) >= MAX_CLIENTS {
                count.fetch_sub(1, Ordering::SeqCst);
                continue;
            }
            let (word, tell, count) = (Arc::clone(&word), tell.clone(), Arc::clone(&count));
            let serve = move || {
                // A caller that breaks off has said all that it wanted.
                serve(stream, &word, number, &tell).ok();
                tell(Call::Ended(number));
                count.fetch_sub(1, Ordering::SeqCst);
            };
            std::thread::Builder::new()
                .name("client".into())
                .spawn(serve)
                .ok();
        }
    };
    std::thread::Builder::new()
        .name("listener".into())
        .spawn(accept)
        .context("cannot start a thread")?;
    Ok(())
}

fn serve(
    mut stream: TcpStream,
    word: &str,
    number: u64,
    tell: &impl Fn(Call) -> bool,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(GREETING))?;
    let mut said = [0; WORD + 1];
    stream.read_exact(&mut said)?;
    if said != word.as_bytes() {
        return Err(ErrorKind::PermissionDenied.into());
    }
    stream.set_read_timeout(None)?;
    stream.write_all(b".")?;
    let (bell, rings) = sync_channel(1);
    let mut ringer = stream.try_clone()?;
    std::thread::Builder::new()
        .name("ringer".into())
        .spawn(move || {
            for () in rings {
                if ringer.write_all(b".").is_err() {
                    break;
                }
            }
        })?;
    let line = stream.try_clone()?;
    if !tell(Call::Begun(Client { number, bell, line })) {
        return Ok(());
    }
    let mut lines = Lines::default();
    let mut bytes = [0; 4096];
    loop {
        let count = stream.read(&mut bytes)?;
        let said = bytes.get(..count).unwrap_or_default();
        let makes_sense = lines.take(said, |order| {
            tell(Call::Order(order));
        });
        if count == 0 || !makes_sense {
            return Ok(());
        }
    }
}

/// A word that nobody guesses: the standard library keys its hashers with the system's random numbers.
fn random_word() -> String {
    let number = || RandomState::new().hash_one("vivarium");
    format!("{:016x}{:016x}", number(), number())
}
