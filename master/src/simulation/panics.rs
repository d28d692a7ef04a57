//! Panics of the master's tasks: its runtime catches them, and another try would hide them.

use std::cell::RefCell;
use std::panic;
use std::sync::Once;

thread_local! {
    /// All tasks of a schedule run on its thread.
    static SEEN: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// A schedule begins on this thread.
pub(super) fn forget() {
    static HOOKED: Once = Once::new();
    HOOKED.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            SEEN.with_borrow_mut(|seen| seen.push(panic.to_string()));
            before(panic);
        }));
    });
    SEEN.take();
}

pub(super) fn seen() -> Vec<String> {
    SEEN.take()
}
