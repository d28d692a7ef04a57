//! What a reply of GitHub to a status means. Pure, so that every case can be listed.

use http::{HeaderMap, StatusCode, header};
use jiff::Timestamp;
use std::time::Duration;

/// GitHub's limits start anew each hour; a longer wait is nonsense, or a clock that is wrong.
const LONGEST_WAIT: Duration = Duration::from_secs(3700);
/// Texts of GitHub are cut to this many characters before they are recorded.
const LONGEST_MESSAGE: usize = 300;

/// What became of a status that was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// GitHub shows it.
    Sent {
        /// That was the last request of this hour: wait before the next one.
        pause: Option<Duration>,
    },
    /// Unknown or failed, in a way that passes: send again after a while.
    Later { why: String },
    /// GitHub does not know the commit yet, or never will: a few more tries.
    NotYet { why: String },
    /// Too much was sent: all wait, as long as GitHub says if it says.
    Limited { wait: Option<Duration>, why: String },
    /// The token is not accepted: all wait for a person.
    Unauthorized { why: String },
    /// It will never be taken.
    Refused { why: String },
}

/// Reads a reply. `body` is bounded by the caller.
pub fn judge(status: StatusCode, headers: &HeaderMap, body: &[u8], now: Timestamp) -> Verdict {
    let now = server_time(headers).unwrap_or(now);
    let message = message(body);
    let why = match message.as_str() {
        "" => format!("GitHub answered {status}"),
        message => format!("GitHub answered {status}: {message}"),
    };
    let exhausted = until_reset(headers, now);
    if status.is_success() {
        return Verdict::Sent { pause: exhausted };
    }
    let wait = retry_after(headers, now).or(exhausted);
    match status.as_u16() {
        401 => Verdict::Unauthorized { why },
        429 => Verdict::Limited { wait, why },
        403 if wait.is_some() || speaks_of_limit(&message) => Verdict::Limited { wait, why },
        // GitHub answers 409 where rights have not spread yet.
        409 => Verdict::NotYet { why },
        422 if message.contains("No commit found") => Verdict::NotYet { why },
        404 => Verdict::Refused {
            why: format!(
                "{why} (the repository is not there, or the token may not write its commit statuses)"
            ),
        },
        408 | 425 | 500.. => Verdict::Later { why },
        _ => Verdict::Refused { why },
    }
}

/// Whether a status that was refused so is refused however often it is sent.
pub fn is_for_good(why: &str) -> bool {
    why.contains("maximum number of statuses")
}

fn speaks_of_limit(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    ["rate limit", "abuse", "submitted too quickly"]
        .iter()
        .any(|words| message.contains(words))
}

/// `Retry-After`: seconds, or a date.
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match value.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => until(http_date(value)?, now),
    };
    Some(wait.min(LONGEST_WAIT))
}

/// Until the limit starts anew, with a second to spare, if nothing is left of it.
fn until_reset(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let number = |name: &str| -> Option<i64> {
        headers.get(name)?.to_str().ok()?.trim().parse::<i64>().ok()
    };
    if number("x-ratelimit-remaining")? > 0 {
        return None;
    }
    let reset = Timestamp::from_second(number("x-ratelimit-reset")?).ok()?;
    let wait = until(reset, now).saturating_add(Duration::from_secs(1));
    Some(wait.min(LONGEST_WAIT))
}

fn until(time: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(time.duration_since(now)).unwrap_or(Duration::ZERO)
}

/// GitHub's clock, so that a wrong one here does no harm.
fn server_time(headers: &HeaderMap) -> Option<Timestamp> {
    http_date(headers.get(header::DATE)?.to_str().ok()?)
}

fn http_date(text: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::DateTimeParser::new()
        .parse_timestamp(text)
        .ok()
}

/// GitHub's own words: `message`, and those of `errors`.
fn message(body: &[u8]) -> String {
    let Ok(body) = serde_json::from_slice::<serde_json::Value>(body) else {
        return String::new();
    };
    let mut words = Vec::new();
    if let Some(message) = body.get("message").and_then(|message| message.as_str()) {
        words.push(message);
    }
    let errors = body.get("errors").and_then(|errors| errors.as_array());
    for error in errors.into_iter().flatten() {
        if let Some(text) = error
            .as_str()
            .or_else(|| error.get("message").and_then(|message| message.as_str()))
        {
            words.push(text);
        }
    }
    words
        .join(": ")
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(LONGEST_MESSAGE)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn judged(status: u16, headers: &[(&'static str, &str)], body: &str) -> Verdict {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect();
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        judge(
            StatusCode::from_u16(status).unwrap(),
            &headers,
            body.as_bytes(),
            now,
        )
    }

    fn wait_of(verdict: &Verdict) -> Option<u64> {
        match verdict {
            Verdict::Limited { wait, .. } => wait.map(|wait| wait.as_secs()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_servers_own_hint_is_followed() {
        let secondary =
            r#"{"message": "You have exceeded a secondary rate limit. Please wait a few minutes"}"#;
        assert_eq!(
            wait_of(&judged(403, &[("retry-after", "7")], secondary)),
            Some(7)
        );
        assert_eq!(wait_of(&judged(429, &[("retry-after", "9")], "")), Some(9));
        assert_eq!(wait_of(&judged(403, &[], secondary)), None);
        let reset = [
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-reset", "1700000030"),
        ];
        assert_eq!(wait_of(&judged(403, &reset, "")), Some(31));
        let absurd = [("retry-after", "99999999999")];
        assert_eq!(wait_of(&judged(429, &absurd, "")), Some(3700));
    }

    #[test]
    fn a_wrong_clock_here_does_not_lengthen_the_wait() {
        let headers = [
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-reset", "784111787"),
            ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ];
        assert_eq!(wait_of(&judged(403, &headers, "")), Some(11));
        let date = [
            ("retry-after", "Sun, 06 Nov 1994 08:49:57 GMT"),
            ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
        ];
        assert_eq!(wait_of(&judged(429, &date, "")), Some(20));
    }

    #[test]
    fn the_last_request_of_the_hour_says_so() {
        let headers = [
            ("x-ratelimit-remaining", "0"),
            ("x-ratelimit-reset", "1700000005"),
        ];
        let pause = Some(Duration::from_secs(6));
        assert_eq!(judged(201, &headers, ""), Verdict::Sent { pause });
        assert_eq!(judged(201, &[], "{}"), Verdict::Sent { pause: None });
    }

    #[test]
    fn what_never_passes_is_told_from_what_does() {
        assert!(matches!(judged(401, &[], ""), Verdict::Unauthorized { .. }));
        let no_commit = r#"{"message":"No commit found for SHA: abc"}"#;
        assert!(matches!(
            judged(422, &[], no_commit),
            Verdict::NotYet { .. }
        ));
        let cap = r#"{"message":"Validation Failed","errors":[{"message":"This SHA and context has reached the maximum number of statuses."}]}"#;
        match judged(422, &[], cap) {
            Verdict::Refused { why } => {
                assert!(why.contains("maximum number of statuses"), "{why}")
            }
            other => panic!("{other:?}"),
        }
        for status in [400, 403, 404, 410, 451] {
            assert!(matches!(judged(status, &[], ""), Verdict::Refused { .. }));
        }
        for status in [500, 502, 503, 504, 408] {
            assert!(matches!(judged(status, &[], ""), Verdict::Later { .. }));
        }
    }

    proptest! {
        #[test]
        fn any_reply_is_judged(status in 100_u16..1000, name in "[a-z-]{1,20}", value in "[ -~]{0,30}",
                               reset in any::<i64>(), body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let reset = reset.to_string();
            let mut headers = HeaderMap::new();
            for (name, value) in [(name.as_str(), value.as_str()), ("retry-after", value.as_str()),
                                  ("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", &reset)] {
                if let (Ok(name), Ok(value)) = (name.parse::<http::HeaderName>(), value.parse()) {
                    headers.insert(name, value);
                }
            }
            judge(StatusCode::from_u16(status).unwrap(), &headers, &body, Timestamp::now());
        }
    }
}
