//! What is kept of a machine that failed us: the end of its console, QEMU's own log, and what its display showed.

use crate::model::AttemptId;
use crate::result::log::Mask;
use crate::store::Evidence;
use crate::vm::Machines;

/// Lines of the console,
const CONSOLE_LINES: usize = 200;
/// and most of their bytes: a guest that prints without line ends has no more.
const CONSOLE_BYTES: usize = 64 * 1024;

/// Looks at the machine, or at what is left of it. What cannot be had is left out.
pub(super) async fn gather(machines: &Machines, id: AttemptId, mask: &Mask) -> Evidence {
    let (console, qemu_log, screenshot) = tokio::join!(
        machines.console_tail(id, CONSOLE_BYTES),
        machines.qemu_log(id),
        machines.screenshot(id),
    );
    let shown = |text: &str| (!text.is_empty()).then(|| mask.text(text));
    Evidence {
        console_tail: shown(last_lines(&console, CONSOLE_LINES)),
        qemu_log: shown(&qemu_log),
        screenshot: screenshot.unwrap_or_else(|error| {
            tracing::info!(vm = %id, %error, "there is no screenshot");
            None
        }),
    }
}

fn last_lines(text: &str, lines: usize) -> &str {
    let mut ends = text.trim_end_matches('\n').rmatch_indices('\n');
    match ends.nth(lines.saturating_sub(1)) {
        Some((before, _)) => text.get(before + 1..).unwrap_or(text),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_whole_and_not_more() {
        for (text, last) in [
            ("", ""),
            ("a", "a"),
            ("a\nb", "a\nb"),
            ("a\nb\nc", "b\nc"),
            ("a\nb\nc\n", "b\nc\n"),
            ("\n\n\nc\n", "\nc\n"),
        ] {
            assert_eq!(last_lines(text, 2), last, "{text:?}");
        }
    }
}
