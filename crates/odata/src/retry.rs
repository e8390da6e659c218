//! When to try again and when to give up: the one place where pauses grow and budgets are kept.
//!
//! A request has a budget of time without progress, and of tries. A try that brings the body further than any before it
//! is progress and starts both anew. Waiting that the service asked for is not held against the request, but has a
//! budget of its own, so that nothing lasts for ever. Whatever ends it is named in the error.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Seeded randomness for pauses; cheap and shareable. Not for secrets.
pub struct Chance(AtomicU64);

impl Chance {
    /// The same seed gives the same sequence.
    pub fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// A number in 0..1, by SplitMix64.
    pub fn next(&self) -> f64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut bits = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ (bits >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

impl fmt::Debug for Chance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Chance")
    }
}

/// Limits of trying again.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// Longest time without progress, pauses of our own choice included.
    pub time_max: Duration,
    /// The same while the environment has never answered this client: a wrong address should not take as long to be noticed
    /// as an outage is waited out.
    pub first_contact_time_max: Duration,
    /// Most tries without progress.
    pub tries_max: u32,
    /// Most tries more after an unexpected server error (`dataverse` protocol, section 5.7: two).
    pub doubtful_max: u32,
    /// Most tries more after an answer that was whole and yet not what it should be.
    pub malformed_max: u32,
    /// Most answers that asked to slow down.
    pub throttled_max: u32,
    /// Longest time spent being asked to slow down.
    pub throttled_time_max: Duration,
    /// Bound of the first pause; it doubles with each try.
    pub pause_start: Duration,
    /// Largest bound of a pause.
    pub pause_max: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            // Long enough for a fail-over of the service, short enough for an operator to learn of an outage.
            time_max: Duration::from_secs(15 * 60),
            first_contact_time_max: Duration::from_secs(60),
            tries_max: 60,
            doubtful_max: 2,
            malformed_max: 2,
            throttled_max: 500,
            throttled_time_max: Duration::from_secs(4 * 3600),
            pause_start: Duration::from_secs(1),
            pause_max: Duration::from_secs(60),
        }
    }
}

/// Why a try failed, as far as the next one is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Connection, time-out, busy service, body cut short.
    Transient,
    /// An unexpected server error.
    Doubtful,
    /// A whole answer that makes no sense.
    Malformed,
    /// The service asked to slow down; the governor does the waiting.
    Throttled,
}

/// What to do after a failed try.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// Try again after this pause.
    Pause(Duration),
    /// Give up; the limit that was reached, by name and value.
    GiveUp(String),
}

/// The account of one request.
#[derive(Debug)]
pub struct Attempts {
    policy: RetryPolicy,
    begun: Duration,
    /// Since when there was no progress, moved forward by the time the service made us wait.
    since: Duration,
    tries: u32,
    failures: u32,
    doubtful: u32,
    malformed: u32,
    throttled: u32,
    throttled_since: Option<Duration>,
    furthest: u64,
}

impl Attempts {
    /// Opens the account at the time `now`.
    pub fn new(policy: RetryPolicy, now: Duration) -> Self {
        Self {
            policy,
            begun: now,
            since: now,
            tries: 0,
            failures: 0,
            doubtful: 0,
            malformed: 0,
            throttled: 0,
            throttled_since: None,
            furthest: 0,
        }
    }

    /// A try begins.
    pub fn begin(&mut self) {
        self.tries += 1;
    }

    /// Tries begun.
    pub fn tries(&self) -> u32 {
        self.tries
    }

    /// Time since the account was opened.
    pub fn elapsed(&self, now: Duration) -> Duration {
        now.saturating_sub(self.begun)
    }

    /// Time was spent waiting for leave to send; that is nobody's fault.
    pub fn waited(&mut self, time: Duration) {
        self.since += time;
    }

    /// A try got `bytes` into the body before it failed.
    pub fn progress(&mut self, bytes: u64, now: Duration) {
        if bytes > self.furthest {
            self.furthest = bytes;
            self.since = now;
            self.failures = 0;
        }
    }

    /// What becomes of the next try while the environment has never answered.
    pub fn before_first_contact(&self, next: Next, now: Duration) -> Next {
        let limit = self.policy.first_contact_time_max;
        match next {
            Next::Pause(pause) if now.saturating_sub(self.since) + pause > limit => {
                Next::GiveUp(format!("first_contact_time_max = {} s without any answer", limit.as_secs()))
            }
            next => next,
        }
    }

    /// A try failed. `after` is the pause the service asked for; `chance` is a number in 0..1.
    pub fn failed(&mut self, failure: Failure, now: Duration, after: Option<Duration>, chance: f64) -> Next {
        let policy = &self.policy;
        if failure == Failure::Throttled {
            self.throttled += 1;
            let since = *self.throttled_since.get_or_insert(now);
            if self.throttled > policy.throttled_max {
                return Next::GiveUp(format!("throttled_max = {}", policy.throttled_max));
            }
            if now.saturating_sub(since) > policy.throttled_time_max {
                return Next::GiveUp(format!("throttled_time_max = {} s", policy.throttled_time_max.as_secs()));
            }
            // The governor holds every request of this user back, this one included.
            return Next::Pause(Duration::ZERO);
        }
        self.throttled_since = None;
        self.failures += 1;
        let few = match failure {
            Failure::Doubtful => Some((&mut self.doubtful, policy.doubtful_max, "doubtful_max")),
            Failure::Malformed => Some((&mut self.malformed, policy.malformed_max, "malformed_max")),
            _ => None,
        };
        if let Some((count, limit, name)) = few {
            *count += 1;
            if *count > limit {
                return Next::GiveUp(format!("{name} = {limit}"));
            }
        }
        if self.failures >= policy.tries_max {
            return Next::GiveUp(format!("tries_max = {}", policy.tries_max));
        }
        let doubled = policy.pause_start.saturating_mul(1 << (self.failures - 1).min(16));
        // Full jitter: many requests that failed together come back apart.
        let pause = after.unwrap_or_else(|| doubled.min(policy.pause_max).mul_f64(chance));
        if now.saturating_sub(self.since) + pause > policy.time_max {
            return Next::GiveUp(format!("time_max = {} s without progress", policy.time_max.as_secs()));
        }
        Next::Pause(pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn pauses_double_up_to_a_bound_and_time_ends_it() {
        let mut attempts = Attempts::new(RetryPolicy::default(), at(0));
        let mut now = at(0);
        let mut pauses = Vec::new();
        let limit = loop {
            attempts.begin();
            match attempts.failed(Failure::Transient, now, None, 1.0) {
                Next::Pause(pause) => {
                    pauses.push(pause.as_secs());
                    now += pause;
                }
                Next::GiveUp(limit) => break limit,
            }
        };
        assert_eq!(&pauses[..8], [1, 2, 4, 8, 16, 32, 60, 60]);
        assert!(limit.starts_with("time_max = 900 s"), "{limit}");
        assert!(now <= at(900));
        assert_eq!(attempts.tries() as usize, pauses.len() + 1);
    }

    #[test]
    fn doubtful_and_malformed_answers_get_two_more_tries_each() {
        let mut attempts = Attempts::new(RetryPolicy::default(), at(0));
        for failure in [Failure::Doubtful, Failure::Malformed, Failure::Doubtful, Failure::Malformed] {
            assert!(matches!(attempts.failed(failure, at(1), None, 0.5), Next::Pause(_)));
        }
        assert_eq!(attempts.failed(Failure::Doubtful, at(1), None, 0.5), Next::GiveUp("doubtful_max = 2".into()));
        assert_eq!(attempts.failed(Failure::Malformed, at(1), None, 0.5), Next::GiveUp("malformed_max = 2".into()));
    }

    #[test]
    fn progress_and_waiting_for_leave_renew_the_budget() {
        let policy = RetryPolicy { time_max: at(10), tries_max: 3, ..RetryPolicy::default() };
        let mut attempts = Attempts::new(policy, at(0));
        for round in 1..=20 {
            attempts.progress(round * 100, at(round * 8));
            assert!(matches!(attempts.failed(Failure::Transient, at(round * 8), None, 0.0), Next::Pause(_)));
        }
        attempts.waited(at(100));
        assert!(matches!(attempts.failed(Failure::Transient, at(265), None, 0.0), Next::Pause(_)));
        assert_eq!(attempts.failed(Failure::Transient, at(265), None, 0.0), Next::GiveUp("tries_max = 3".into()));
    }

    #[test]
    fn being_throttled_costs_no_tries_but_has_an_end() {
        let policy = RetryPolicy { tries_max: 2, throttled_max: 50, ..RetryPolicy::default() };
        let mut attempts = Attempts::new(policy, at(0));
        for _ in 0..50 {
            assert_eq!(attempts.failed(Failure::Throttled, at(1), None, 0.5), Next::Pause(Duration::ZERO));
        }
        assert_eq!(attempts.failed(Failure::Throttled, at(1), None, 0.5), Next::GiveUp("throttled_max = 50".into()));
    }

    #[test]
    fn an_environment_that_never_answered_is_given_up_sooner() {
        let policy = RetryPolicy { first_contact_time_max: at(60), ..RetryPolicy::default() };
        let mut attempts = Attempts::new(policy, at(0));
        let next = attempts.failed(Failure::Transient, at(58), None, 0.9);
        assert!(matches!(attempts.before_first_contact(next, at(58)), Next::Pause(_)));
        let next = attempts.failed(Failure::Transient, at(60), None, 0.9);
        assert!(matches!(next, Next::Pause(_)));
        let limit = "first_contact_time_max = 60 s without any answer".to_owned();
        assert_eq!(attempts.before_first_contact(next, at(60)), Next::GiveUp(limit));
    }

    #[test]
    fn the_same_seed_gives_the_same_chances() {
        let (one, two) = (Chance::new(7), Chance::new(7));
        let numbers: Vec<f64> = (0..1000).map(|_| one.next()).collect();
        assert!(numbers.iter().all(|number| (0.0..1.0).contains(number)));
        assert!(numbers.iter().zip(std::iter::repeat_with(|| two.next())).all(|(a, b)| (a - b).abs() < f64::EPSILON));
        let mean = numbers.iter().sum::<f64>() / 1000.0;
        assert!((0.45..0.55).contains(&mean), "{mean}");
    }
}
