//! Moments at which a test may let the master die, each named for what has just happened.
//!
//! They are compiled in only with the feature `crash-points`, which the tests' crate asks for: a program built for use
//! has none. `FAILPOINTS="domain_started=2*off->return"` lets the third start of a domain be the last thing that the
//! process does: it ends as by `kill -9`, with nothing flushed, closed or said.

/// Arms the moments that the environment names.
#[cfg(feature = "crash-points")]
pub(crate) fn arm() {
    // Dropped, it would disarm them.
    std::mem::forget(fail::FailScenario::setup());
    let armed: Vec<String> = fail::list().into_iter().map(|(name, _)| name).collect();
    if !armed.is_empty() {
        tracing::warn!(?armed, "this master dies at a crash point");
    }
}

#[cfg(not(feature = "crash-points"))]
pub(crate) fn arm() {}

/// This has just happened.
#[cfg(feature = "crash-points")]
pub(crate) fn point(name: &str) {
    fail::fail_point!(name, |_| {
        // Every thread stops where it is; an abort would leave a core file as well.
        if let Err(error) = nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL) {
            tracing::error!(%error, "cannot die");
        }
    });
}

#[cfg(not(feature = "crash-points"))]
pub(crate) fn point(_name: &str) {}
