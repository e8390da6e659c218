//! What answers tell about limits: headers, and the words of a 429.
//!
//! The headers `x-ms-ratelimit-burst-remaining-xrm-requests`, `x-ms-ratelimit-time-remaining-xrm-requests` and
//! `x-ms-dop-hint` are informational and may be missing (`dataverse` protocol, sections 1.3 and 5.1, confirmed). Numbers
//! may carry thousands separators. The codes of a 429 are the contract; the numbers in its text are a gift.

use std::time::Duration;

use jiff::Timestamp;

use crate::fault::{ErrorBody, code};

/// Longest pause a service may ask for (`dataverse` protocol, section 5.2: cap to 10 minutes).
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);

/// Longest window believed from a text.
const WINDOW_SECONDS_MAX: f64 = 3600.0;

/// What the headers of one answer say.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Signals {
    /// Requests left in the window.
    pub remaining_requests: Option<f64>,
    /// Seconds of execution time left in the window.
    pub remaining_seconds: Option<f64>,
    /// Recommended number of requests at once.
    pub parallel_hint: Option<u32>,
    /// Pause asked for, at most [`RETRY_AFTER_MAX`].
    pub retry_after: Option<Duration>,
}

impl Signals {
    /// Reads the headers through `header`, which gives the text of a header by its lower-case name.
    pub fn read<'a>(header: impl Fn(&str) -> Option<&'a str>, now: Timestamp) -> Self {
        Self {
            remaining_requests: header("x-ms-ratelimit-burst-remaining-xrm-requests").and_then(number),
            remaining_seconds: header("x-ms-ratelimit-time-remaining-xrm-requests").and_then(number),
            parallel_hint: header("x-ms-dop-hint").and_then(|text| text.trim().parse().ok()),
            // A date is one by the service's clock, which its answer shows; ours may go wrong.
            retry_after: header("retry-after")
                .and_then(|text| retry_after(text, header("date").and_then(http_date).unwrap_or(now))),
        }
    }
}

/// A number that may have thousands separators: `5999`, `1,199.93`.
fn number(text: &str) -> Option<f64> {
    let plain: String = text.trim().chars().filter(|character| *character != ',').collect();
    plain.parse().ok().filter(|number: &f64| number.is_finite())
}

/// `Retry-After` as seconds or as an HTTP date (`dataverse` protocol, section 5.2; RFC 9110, section 10.2.3).
fn retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    let wanted = match number(text) {
        Some(seconds) => Duration::try_from_secs_f64(seconds.clamp(0.0, RETRY_AFTER_MAX.as_secs_f64())).ok()?,
        None => Duration::try_from(http_date(text)?.duration_since(now)).unwrap_or(Duration::ZERO),
    };
    Some(wanted.min(RETRY_AFTER_MAX))
}

/// A date of HTTP in its preferred form.
pub(crate) fn http_date(text: &str) -> Option<Timestamp> {
    jiff::fmt::rfc2822::parse(text.trim()).ok().map(|date| date.timestamp())
}

/// The limit a 429 names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitKind {
    /// Requests in a window.
    Requests,
    /// Execution time in a window.
    Execution,
    /// Requests at once.
    Concurrency,
}

/// What a 429 says about the limit that was hit.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Throttle {
    /// Which limit, if the code names one.
    pub kind: Option<LimitKind>,
    /// The limit: requests, seconds, or requests at once.
    pub allowed: Option<f64>,
    /// Length of the window.
    pub window: Option<Duration>,
}

impl Throttle {
    /// Reads code and text of a 429, e.g. "Number of requests exceeded the limit of 6000 over time window of 300 seconds".
    pub fn read(body: &ErrorBody) -> Self {
        let kind = match body.code {
            Some(code::REQUESTS_EXCEEDED) => LimitKind::Requests,
            Some(code::EXECUTION_EXCEEDED) => LimitKind::Execution,
            Some(code::CONCURRENCY_EXCEEDED) => LimitKind::Concurrency,
            _ => return Self::default(),
        };
        let text = body.message.to_ascii_lowercase();
        let limit = number_after(&text, "limit of");
        let allowed = limit
            .filter(|(limit, _)| *limit > 0.0)
            .map(|(limit, unit)| if kind == LimitKind::Execution { seconds(limit, unit, 0.001) } else { limit });
        let window = number_after(&text, "window of")
            .map(|(length, unit)| seconds(length, unit, 1.0))
            .filter(|seconds| (0.1..=WINDOW_SECONDS_MAX).contains(seconds))
            .map(Duration::from_secs_f64);
        Self { kind: Some(kind), allowed, window }
    }
}

/// The number that follows `words`, and what follows it.
fn number_after<'a>(text: &'a str, words: &str) -> Option<(f64, &'a str)> {
    let rest = text[text.find(words)? + words.len()..].trim_start();
    let length = rest.bytes().take_while(|byte| byte.is_ascii_digit() || matches!(byte, b',' | b'.')).count();
    Some((number(rest[..length].trim_end_matches(['.', ',']))?, rest[length..].trim_start()))
}

/// A length of time in the unit that follows it, or in `default_unit` seconds.
fn seconds(length: f64, unit: &str, default_unit: f64) -> f64 {
    let factor = if unit.starts_with("milli") || unit.starts_with("ms") {
        0.001
    } else if unit.starts_with("sec") {
        1.0
    } else if unit.starts_with("min") {
        60.0
    } else {
        default_unit
    };
    length * factor
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(headers: &[(&str, &'static str)]) -> Signals {
        let now: Timestamp = "2026-03-01T10:00:00Z".parse().unwrap();
        let pairs: Vec<(String, &'static str)> =
            headers.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        Signals::read(|name| pairs.iter().find(|(known, _)| known == name).map(|(_, value)| *value), now)
    }

    #[test]
    fn numbers_may_have_separators_and_headers_may_be_missing() {
        let signals = read(&[
            ("x-ms-ratelimit-burst-remaining-xrm-requests", "5,999"),
            ("x-ms-ratelimit-time-remaining-xrm-requests", "1,199.93"),
            ("x-ms-dop-hint", "8"),
        ]);
        assert_eq!(signals.remaining_requests, Some(5999.0));
        assert_eq!(signals.remaining_seconds, Some(1199.93));
        assert_eq!(signals.parallel_hint, Some(8));
        assert_eq!(read(&[]), Signals::default());
        assert_eq!(read(&[("x-ms-dop-hint", "many")]).parallel_hint, None);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_and_is_capped() {
        for (text, expected) in [
            ("17", Some(Duration::from_secs(17))),
            ("0", Some(Duration::ZERO)),
            ("86400", Some(RETRY_AFTER_MAX)),
            ("Sun, 01 Mar 2026 10:00:30 GMT", Some(Duration::from_secs(30))),
            ("Sun, 01 Mar 2026 09:00:00 GMT", Some(Duration::ZERO)),
            ("soon", None),
        ] {
            assert_eq!(read(&[("retry-after", text)]).retry_after, expected, "{text}");
        }
        let skewed = [("retry-after", "Sun, 01 Mar 2026 12:00:30 GMT"), ("date", "Sun, 01 Mar 2026 12:00:00 GMT")];
        assert_eq!(read(&skewed).retry_after, Some(Duration::from_secs(30)), "two hours ahead of us");
        assert_eq!(read(&[("retry-after", " 1.5 ")]).retry_after, Some(Duration::from_millis(1500)));
    }

    #[test]
    fn the_words_of_a_429_teach_limit_and_window() {
        for (code, text, allowed, window) in [
            (
                code::REQUESTS_EXCEEDED,
                "Number of requests exceeded the limit of 6000 over time window of 300 seconds.",
                Some(6000.0),
                Some(300.0),
            ),
            (
                code::EXECUTION_EXCEEDED,
                "Combined execution time of incoming requests exceeded limit of 1,200,000 milliseconds over time window of 300 seconds. Decrease number of concurrent requests or reduce the duration of requests and try again later.",
                Some(1200.0),
                Some(300.0),
            ),
            (code::EXECUTION_EXCEEDED, "Combined execution time exceeded limit of 12000", Some(12.0), None),
            (code::CONCURRENCY_EXCEEDED, "Number of concurrent requests exceeded the limit of 52.", Some(52.0), None),
            (code::REQUESTS_EXCEEDED, "Zu viele Anforderungen", None, None),
        ] {
            let throttle = Throttle::read(&ErrorBody { code: Some(code), message: text.into() });
            assert!(throttle.kind.is_some());
            assert_eq!(throttle.allowed, allowed, "{text}");
            assert_eq!(throttle.window.map(|window| window.as_secs_f64()), window, "{text}");
        }
        let plain = ErrorBody { code: Some(429), message: "limit of 5".into() };
        assert_eq!(Throttle::read(&plain), Throttle::default());
    }
}
