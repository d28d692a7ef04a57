//! Loopback ports, each given to one machine at a time.

use super::VmError;
use crate::model::AttemptId;
use std::collections::HashMap;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// More than the machines that could be starting at one moment.
const TRIES: usize = 64;

/// The ports given out by this process: a port is free to the kernel until QEMU binds it, so two starts at once
/// would be offered the same one.
#[derive(Debug, Default)]
pub(super) struct Ports {
    given: Mutex<HashMap<AttemptId, u16>>,
}

impl Ports {
    /// A free port for this attempt, in place of the one it had.
    pub(super) fn reserve(&self, attempt: AttemptId) -> Result<u16, VmError> {
        let failed = |why: &dyn std::fmt::Display| {
            VmError::host(format!("find a free loopback port for {attempt}"), why)
        };
        let mut given = self.lock();
        // Held until the search ends, so that the kernel offers another port each time.
        let mut passed_over = Vec::new();
        for _ in 0..TRIES {
            let listener =
                TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|error| failed(&error))?;
            let port = listener
                .local_addr()
                .map_err(|error| failed(&error))?
                .port();
            if !given.values().any(|other| *other == port) {
                given.insert(attempt, port);
                return Ok(port);
            }
            passed_over.push(listener);
        }
        Err(failed(&"every port offered belongs to another machine"))
    }

    /// The attempt's machine runs with this port already.
    pub(super) fn keep(&self, attempt: AttemptId, port: u16) {
        self.lock().insert(attempt, port);
    }

    pub(super) fn release(&self, attempt: AttemptId) {
        self.lock().remove(&attempt);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AttemptId, u16>> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_two_machines_get_the_same_port() {
        let ports = Ports::default();
        let given: HashSet<u16> = (0..200)
            .map(|number| ports.reserve(AttemptId(number)).expect("a free port"))
            .collect();
        assert_eq!(given.len(), 200);
    }

    #[test]
    fn another_try_gets_another_port_and_gives_the_first_back() {
        let ports = Ports::default();
        let first = ports.reserve(AttemptId(1)).expect("a free port");
        let second = ports.reserve(AttemptId(1)).expect("a free port");
        assert_ne!(first, second);
        assert_eq!(ports.lock().len(), 1);
    }
}
