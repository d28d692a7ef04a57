//! The connection to libvirt: its blocking calls on a few threads of their own, each with a deadline, and a second
//! try on a new connection when libvirtd was restarted.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use virt::connect::Connect;
use virt::enumutil::Enum;
use virt::error::ErrorNumber;

/// Starting and destroying take libvirt from tenths of a second to several; looks must get through beside them.
const THREADS: usize = 4;
/// Calls that wait for a thread. More would mean that libvirt hangs, and each caller is told so.
const WAITING_CALLS: usize = 256;

/// The driver inside the process does not bear two first opens at once.
static OPENING: Mutex<()> = Mutex::new(());

type Call = Box<dyn FnOnce(&Connection) + Send>;

#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    /// libvirt's own answer.
    #[error("{}", .0.message())]
    Libvirt(virt::error::Error),
    /// libvirtd is not there, or went away under the call.
    #[error("{}", .0.message())]
    Away(virt::error::Error),
    #[error("libvirt did not answer within {} s", .0.as_secs())]
    Deadline(Duration),
    #[error("libvirt is behind with {WAITING_CALLS} calls")]
    Behind,
    #[error("the threads that talk to libvirt have ended")]
    Ended,
}

#[derive(Debug)]
pub(super) struct Link {
    calls: SyncSender<Call>,
}

impl Link {
    /// Nothing is opened before the first call.
    pub(super) fn new(uri: &str) -> std::io::Result<Link> {
        // Errors are returned; libvirt would print them as well.
        virt::error::clear_error_callback();
        if uri.starts_with("qemu:///embed") {
            run_event_loop()?;
        }
        let connection = Arc::new(Connection {
            uri: uri.to_owned(),
            slot: Mutex::default(),
        });
        let (calls, waiting) = sync_channel::<Call>(WAITING_CALLS);
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..THREADS {
            let (connection, waiting) = (Arc::clone(&connection), Arc::clone(&waiting));
            std::thread::Builder::new()
                .name("libvirt".into())
                .spawn(move || {
                    while let Some(call) = next(&waiting) {
                        call(&connection);
                    }
                })?;
        }
        Ok(Link { calls })
    }

    /// Makes the call on a thread. `act` may run twice: the second time when the connection turned out dead.
    /// After the deadline the call is on its own; its thread is free again when libvirt answers.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        deadline: Duration,
        act: impl Fn(&Connect, Try) -> Result<T, virt::error::Error> + Send + 'static,
    ) -> Result<T, LinkError> {
        let (answer, answered) = oneshot::channel();
        let call: Call = Box::new(move |connection| {
            // Who no longer waits wants no act either.
            if !answer.is_closed() {
                // A receiver that went away meanwhile has nothing to be told.
                drop(answer.send(connection.run(act)));
            }
        });
        self.calls.try_send(call).map_err(|error| match error {
            TrySendError::Full(_) => LinkError::Behind,
            TrySendError::Disconnected(_) => LinkError::Ended,
        })?;
        tokio::time::timeout(deadline, answered)
            .await
            .map_err(|_| LinkError::Deadline(deadline))?
            .map_err(|_| LinkError::Ended)?
    }
}

/// Which run of a call this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Try {
    First,
    /// The connection died under the first one, which may have had its effect all the same.
    AfterReconnect,
}

fn next(waiting: &Mutex<Receiver<Call>>) -> Option<Call> {
    locked(waiting).recv().ok()
}

struct Connection {
    uri: String,
    slot: Mutex<Slot>,
}

#[derive(Default)]
struct Slot {
    open: Option<Connect>,
    /// Counts the connections opened.
    number: u64,
}

impl Connection {
    fn run<T>(
        &self,
        act: impl Fn(&Connect, Try) -> Result<T, virt::error::Error>,
    ) -> Result<T, LinkError> {
        let mut run = Try::First;
        loop {
            let (connect, number) = self.get().map_err(|error| match is_refusal(&error) {
                true => LinkError::Libvirt(error),
                false => LinkError::Away(error),
            })?;
            let error = match act(&connect, run) {
                Ok(done) => return Ok(done),
                Err(error) => error,
            };
            if connect.is_alive().unwrap_or(false) {
                return Err(LinkError::Libvirt(error));
            }
            self.drop_dead(number);
            match run {
                Try::First => run = Try::AfterReconnect,
                Try::AfterReconnect => return Err(LinkError::Away(error)),
            }
        }
    }

    fn get(&self) -> Result<(Connect, u64), virt::error::Error> {
        let mut slot = locked(&self.slot);
        let connect = match &slot.open {
            Some(connect) => connect.clone(),
            None => {
                let connect = {
                    let _one_at_a_time = locked(&OPENING);
                    Connect::open(Some(&self.uri))?
                };
                slot.number += 1;
                slot.open = Some(connect.clone());
                connect
            }
        };
        Ok((connect, slot.number))
    }

    /// Lets the connection go, unless another thread has put a new one in its place.
    fn drop_dead(&self, number: u64) {
        let mut slot = locked(&self.slot);
        if slot.number == number {
            slot.open = None;
        }
    }
}

/// Whether no connection can be had until a person changes something.
fn is_refusal(error: &virt::error::Error) -> bool {
    matches!(
        error.code(),
        Enum::Known(
            ErrorNumber::AuthFailed
                | ErrorNumber::AuthCancelled
                | ErrorNumber::AuthUnavailable
                | ErrorNumber::NoConnect
                | ErrorNumber::ConfigUnsupported
                | ErrorNumber::InvalidArg
        )
    ) || error.message().contains("Permission denied")
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The driver inside the process needs libvirt's event loop, once for all connections.
fn run_event_loop() -> std::io::Result<()> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    STARTED
        .get_or_init(|| {
            virt::event::event_register_default_impl()
                .map_err(|error| error.message().to_owned())?;
            std::thread::Builder::new()
                .name("libvirt-events".into())
                .spawn(|| {
                    // An error here is of one descriptor; the loop goes on for the others.
                    loop {
                        if let Err(error) = virt::event::event_run_default_impl() {
                            tracing::warn!(%error, "libvirt's event loop");
                        }
                    }
                })
                .map(|_| ())
                .map_err(|error| error.to_string())
        })
        .clone()
        .map_err(std::io::Error::other)
}
