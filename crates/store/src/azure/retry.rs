//! The only retry loop towards blobs.
//!
//! ```text
//! try ─ ok ─▶ done
//!     ├ trouble ─▶ wait (Retry-After, or doubling with jitter) ─▶ try, within a budget of time and tries
//!     ├ 401 with a token, once ─▶ fresh token ─▶ try
//!     └ anything else ─▶ the caller decides
//! ```
//!
//! It remembers whether an earlier try may have had its effect although no answer came: a create that then meets its own
//! object has not failed.

use std::sync::Arc;
use std::time::Duration;

use dynavault_model::Clock;
use tracing::debug;

use crate::StoreError;
use crate::azure::fault::{Class, Fault, classify};
use crate::azure::policy::Bearer;
use crate::error::Cause;

const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// Limits of the tries of one request.
#[derive(Debug, Clone, Copy)]
pub struct RetryLimits {
    /// Tries.
    pub tries_max: u32,
    /// Time over all tries and pauses while no connection comes about.
    pub unreachable_max: Duration,
    /// Time over all tries and pauses while the service answers.
    pub total_max: Duration,
}

impl Default for RetryLimits {
    /// Ten tries; a minute for a host that cannot be reached, which is mostly a wrong name or firewall; five minutes for
    /// one that is throttling, as its partitions move within that time.
    fn default() -> Self {
        Self { tries_max: 10, unreachable_max: Duration::from_secs(60), total_max: Duration::from_secs(5 * 60) }
    }
}

/// Repeats requests.
#[derive(Clone)]
pub(crate) struct Retrier {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) limits: RetryLimits,
    pub(crate) bearer: Option<Arc<Bearer>>,
    /// Where requests go, for messages.
    pub(crate) location: String,
}

/// Requests that did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The service's answer, which the caller understands better.
    Answer {
        class: Class,
        cause: Cause,
        /// An earlier try may have had its effect.
        ambiguous: bool,
    },
    /// The tries are used up.
    Final(StoreError),
}

impl Retrier {
    /// Sends the request that `attempt` makes, once or more often.
    pub(crate) async fn run<T, F>(
        &self,
        action: &'static str,
        what: &str,
        mut attempt: impl FnMut() -> F + Send,
    ) -> Result<T, Failure>
    where
        F: Future<Output = azure_core::Result<T>> + Send,
    {
        let start = self.clock.elapsed();
        let (mut tries, mut ambiguous, mut renewed) = (0, false, false);
        loop {
            tries += 1;
            let Fault { class, cause } = match attempt().await {
                Ok(value) => return Ok(value),
                Err(error) => classify(&error),
            };
            let (unreachable, after) = match class {
                Class::Trouble { without_effect, unreachable, after } => {
                    ambiguous |= !without_effect;
                    (unreachable, after)
                }
                Class::Unauthorized if !renewed && self.bearer.is_some() => {
                    renewed = true;
                    if let Some(bearer) = &self.bearer {
                        bearer.refused();
                    }
                    continue;
                }
                class => return Err(Failure::Answer { class, cause, ambiguous }),
            };
            let pause = match after {
                Some(after) => after.pause(self.clock.now()),
                None => (PAUSE_MIN * 2_u32.saturating_pow(tries - 1)).min(PAUSE_MAX).mul_f64(0.5 + 0.5 * random()),
            };
            let elapsed = self.clock.elapsed().saturating_sub(start);
            let time_max = if unreachable { self.limits.unreachable_max } else { self.limits.total_max };
            let limit = if tries >= self.limits.tries_max {
                format!("{} tries", self.limits.tries_max)
            } else if elapsed + pause > time_max {
                format!("{} s", time_max.as_secs())
            } else {
                debug!(action, what, tries, ?pause, error = %cause, "blob request failed, trying again");
                self.clock.sleep(pause).await;
                continue;
            };
            return Err(Failure::Final(StoreError::Exhausted {
                action,
                what: what.to_owned(),
                location: self.location.clone(),
                tries,
                elapsed,
                limit,
                source: cause,
            }));
        }
    }
}

/// Between 0 and 1. Without randomness from the system the middle does as well.
fn random() -> f64 {
    getrandom::u32().map_or(0.5, |bits| f64::from(bits) / f64::from(u32::MAX))
}
