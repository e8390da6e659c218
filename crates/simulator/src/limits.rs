//! Service protection limits (dataverse 5.1): three limits per application user over a sliding window.
//!
//! A refused request does not count, but it prolongs the wait: ignoring `Retry-After` does not pay.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::answer::Refusal;
use crate::config::Limits;

/// Wait after too many requests at once; the real one is short too.
const CONCURRENCY_WAIT: Duration = Duration::from_secs(1);
/// A request during a block prolongs it by this part of the window.
const PROLONG_PART: u32 = 60;

/// The window of one application user.
#[derive(Debug, Default)]
pub(crate) struct Window {
    served: VecDeque<(Instant, Duration)>,
    execution: Duration,
    running: usize,
    blocked: Option<(Instant, &'static str, String)>,
}

/// Why a request was turned away, and whether the user had been told to wait.
pub(crate) struct Turned {
    pub(crate) refusal: Refusal,
    pub(crate) was_blocked: bool,
}

impl Window {
    fn forget(&mut self, limits: &Limits, now: Instant) {
        while let Some((when, execution)) = self.served.front().copied() {
            if now.duration_since(when) < limits.window {
                break;
            }
            self.served.pop_front();
            self.execution = self.execution.saturating_sub(execution);
        }
    }

    /// Lets a request in, or says when to come back.
    pub(crate) fn admit(&mut self, limits: &Limits, now: Instant) -> Result<(), Turned> {
        self.forget(limits, now);
        if let Some((until, code, message)) = &mut self.blocked {
            if now < *until {
                *until = (*until + limits.window / PROLONG_PART).min(now + limits.window);
                let refusal = refuse(code, message.clone(), *until - now);
                return Err(Turned { refusal, was_blocked: true });
            }
            self.blocked = None;
        }
        let seconds = limits.window.as_secs();
        // Until the oldest request leaves the window there is no room.
        let wait = self
            .served
            .front()
            .map_or(limits.window, |(when, _)| limits.window.saturating_sub(now.duration_since(*when)));
        let turned = if self.running >= limits.concurrency {
            let message = format!("Number of concurrent requests exceeded the limit of {}.", limits.concurrency);
            return Err(Turned { refusal: refuse("0x80072326", message, CONCURRENCY_WAIT), was_blocked: false });
        } else if self.served.len() as u64 >= limits.requests {
            (
                "0x80072322",
                format!(
                    "Number of requests exceeded the limit of {} over time window of {seconds} seconds.",
                    limits.requests
                ),
            )
        } else if self.execution >= limits.execution {
            let milliseconds = thousands(u128::from(limits.execution.as_millis() as u64));
            let message = format!(
                "Combined execution time of incoming requests exceeded limit of {milliseconds} milliseconds over time window of {seconds} seconds. \
                 Decrease number of concurrent requests or reduce the duration of requests and try again later."
            );
            ("0x80072321", message)
        } else {
            self.running += 1;
            return Ok(());
        };
        let (code, message) = turned;
        self.blocked = Some((now + wait, code, message.clone()));
        Err(Turned { refusal: refuse(code, message, wait), was_blocked: false })
    }

    /// Forgets the past; requests that are running stay counted.
    pub(crate) fn clear(&mut self) {
        *self = Self { running: self.running, ..Self::default() };
    }

    /// Books a finished request.
    pub(crate) fn finish(&mut self, now: Instant, execution: Duration) {
        self.running = self.running.saturating_sub(1);
        self.served.push_back((now, execution));
        self.execution += execution;
    }

    /// Values of the two `x-ms-ratelimit-*` headers.
    pub(crate) fn remaining(&self, limits: &Limits) -> (String, String) {
        let requests = limits.requests.saturating_sub((self.served.len() + self.running) as u64);
        let left = limits.execution.saturating_sub(self.execution);
        (requests.to_string(), format!("{}.{:02}", thousands(u128::from(left.as_secs())), left.subsec_millis() / 10))
    }
}

fn refuse(code: &'static str, message: String, wait: Duration) -> Refusal {
    // Whole seconds, never zero.
    let seconds = wait.as_millis().div_ceil(1_000).max(1);
    let mut refusal = Refusal::new(429, code, message);
    refusal.headers.push(("Retry-After", seconds.to_string()));
    refusal
}

fn thousands(number: u128) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Window, thousands};
    use crate::config::Limits;
    use std::time::{Duration, Instant};

    #[test]
    fn separators_stand_every_three_digits() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(1_199), "1,199");
        assert_eq!(thousands(1_200_000), "1,200,000");
    }

    #[test]
    fn the_window_slides_and_impatience_costs() {
        let limits = Limits { requests: 2, window: Duration::from_secs(60), ..Limits::default() };
        let mut window = Window::default();
        let start = Instant::now();
        for _ in 0..2 {
            assert!(window.admit(&limits, start).is_ok());
            window.finish(start, Duration::from_millis(10));
        }
        assert_eq!(window.remaining(&limits), ("0".to_owned(), "1,199.98".to_owned()));
        let turned = window.admit(&limits, start).err().unwrap();
        assert_eq!((turned.refusal.code, turned.was_blocked), ("0x80072322", false));
        assert_eq!(turned.refusal.headers[0].1, "60");
        // Asking again at once moves the end of the block.
        assert!(window.admit(&limits, start + Duration::from_secs(30)).err().unwrap().was_blocked);
        assert!(window.admit(&limits, start + Duration::from_millis(60_500)).is_err());
        assert!(window.admit(&limits, start + Duration::from_secs(63)).is_ok());
    }
}
