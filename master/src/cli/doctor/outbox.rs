//! What the doctor finds in the outbox: what GitHub was not told, what it refused, how the last looks at it ended.

use super::{Finding, fault, good, note};
use crate::report::wording;
use crate::store::{Backlog, LookRow, StatusRow, Store, StoreError};
use jiff::{SignedDuration, Timestamp};

const WHAT: &str = "outbox";
/// An older backlog is a fault.
const LATE: SignedDuration = SignedDuration::from_mins(5);
/// Refused statuses that are named.
const MOST_REFUSED: i64 = 5;

pub(super) async fn look(store: &Store) -> Result<Vec<Finding>, StoreError> {
    let backlog = store.status_backlog().await?;
    let mut findings = vec![waiting(&backlog, Timestamp::now())];
    findings.extend(
        store
            .refused_statuses(MOST_REFUSED)
            .await?
            .iter()
            .map(refused),
    );
    findings.extend(store.looks().await?.iter().filter_map(not_compared));
    Ok(findings)
}

fn waiting(backlog: &Backlog, now: Timestamp) -> Finding {
    let Some(oldest) = backlog.oldest else {
        return good(WHAT, "nothing waits to be told to GitHub");
    };
    let said = wording::backlog(backlog.unsent, oldest, now, backlog.trouble.as_deref());
    if now.duration_since(oldest) < LATE {
        return note(WHAT, said);
    }
    let hint =
        "it is sent by a running master as soon as GitHub takes it; see its log for the reason";
    fault(WHAT, format!("{said}\nhint: {hint}"))
}

fn refused(row: &StatusRow) -> Finding {
    let why = row.refused.as_deref().unwrap_or_default();
    let said = format!(
        "GitHub refused `{}` on {} of {}: {why}",
        row.status.context,
        wording::short_sha(&row.sha),
        row.repository
    );
    let hint = "once the reason is mended, the next comparison with GitHub sends it again, and so does a rerun";
    note(WHAT, format!("{said}\nhint: {hint}"))
}

fn not_compared(look: &LookRow) -> Option<Finding> {
    let trouble = look.trouble.as_deref()?;
    let said = format!(
        "{} could not be compared with GitHub: {trouble}",
        look.repository
    );
    Some(note("reconciliation", said))
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_backlog_is_a_fault_only_once_it_is_late() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let finding = |age: Option<i64>| {
            let backlog = Backlog {
                unsent: 1,
                refused: 0,
                oldest: age.map(|secs| now - SignedDuration::from_secs(secs)),
                trouble: None,
            };
            waiting(&backlog, now)
        };
        assert_eq!(finding(None).verdict, Verdict::Good);
        assert_eq!(finding(Some(10)).verdict, Verdict::Note);
        let late = finding(Some(7200));
        assert_eq!(late.verdict, Verdict::Fault);
        assert_eq!(
            late.said,
            "GitHub was not told of 1 status yet, the oldest for 2 h 0 min"
        );
        assert!(late.hint.is_some());
    }
}
