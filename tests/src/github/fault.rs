//! Faults as settings: what goes wrong, on which requests, how many times.

use std::time::Duration;

/// What happens instead of, or on top of, the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FaultKind {
    /// This status without doing anything; 5xx as GitHub's front end answers, in HTML.
    Answer(u16),
    /// The request is carried out, then answered with this status: the client cannot know.
    AnswerAfter(u16),
    /// The secondary limit: 403 or 429, with `Retry-After` in seconds or without any hint.
    SecondaryLimit {
        status: u16,
        retry_after_secs: Option<u64>,
    },
    /// The hour's limit is used up; `x-ratelimit-reset` lies so many seconds ahead.
    PrimaryLimit { reset_secs: u64 },
    /// 401 `Bad credentials`.
    Unauthorized,
    /// The answer comes later.
    Delay(Duration),
    /// The connection is reset before anything was done.
    ResetBefore,
    /// The connection is reset after the request was carried out.
    ResetAfter,
    /// The commit has not reached the API's database yet: 422 `No commit found for SHA`.
    CommitNotVisible,
}

/// A fault on the requests of a method and path.
#[derive(Debug, Clone)]
pub struct Fault {
    pub(super) id: i64,
    method: String,
    pattern: String,
    pub(super) kind: FaultKind,
    /// How many requests it still meets; `None`: all.
    remaining: Option<u32>,
    pub(super) hits: u32,
}

impl Fault {
    /// `method` may be `*`. In `pattern`, a path without the API's prefix and without query, `*` stands for one
    /// segment and `**` at the end for all the rest: `/repos/*/*/statuses/*`.
    pub fn on(method: &str, pattern: &str, kind: FaultKind) -> Fault {
        Fault {
            id: 0,
            method: method.to_owned(),
            pattern: pattern.to_owned(),
            kind,
            remaining: None,
            hits: 0,
        }
    }

    /// A fault on posting statuses.
    pub fn on_status_post(kind: FaultKind) -> Fault {
        Fault::on("POST", "/repos/*/*/statuses/*", kind)
    }

    /// Over after so many requests.
    pub fn times(mut self, times: u32) -> Fault {
        self.remaining = Some(times);
        self
    }

    /// Whether it meets this request; counts it if so.
    pub(super) fn take(&mut self, method: &str, path: &str) -> bool {
        if self.remaining == Some(0)
            || (self.method != "*" && self.method != method)
            || !matches(&self.pattern, path)
        {
            return false;
        }
        self.remaining = self.remaining.map(|remaining| remaining - 1);
        self.hits += 1;
        true
    }
}

fn matches(pattern: &str, path: &str) -> bool {
    let mut segments = path.split('/');
    for part in pattern.split('/') {
        match (part, segments.next()) {
            ("**", _) => return true,
            ("*", Some(_)) => {}
            (part, Some(segment)) if part == segment => {}
            _ => return false,
        }
    }
    segments.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_meets_whole_segments() {
        assert!(matches("/repos/*/*/statuses/*", "/repos/a/b/statuses/c"));
        assert!(!matches("/repos/*/*/statuses/*", "/repos/a/b/statuses"));
        assert!(!matches("/repos/*/*", "/repos/a/b/statuses"));
        assert!(matches("/a/b.git/**", "/a/b.git/info/refs"));
    }

    #[test]
    fn a_fault_is_over_after_its_times() {
        let mut fault = Fault::on("GET", "/user", FaultKind::Answer(500)).times(1);
        assert!(!fault.take("POST", "/user"));
        assert!(fault.take("GET", "/user"));
        assert!(!fault.take("GET", "/user"));
        assert_eq!(fault.hits, 1);
    }
}
