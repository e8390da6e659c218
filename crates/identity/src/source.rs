//! Keeps the token of one identity fresh: one request at a time, few tries, and silence after a refusal.
//!
//! ```text
//! token() ─ fresh? ─▶ give it
//!         └ refused less than a minute ago? ─▶ the old token while it lasts, else the same refusal
//!         └ somebody asks already? ─▶ wait with them
//!         └ ask: up to five tries, one if the old token still lasts
//! ```
//!
//! Those who wait share one future, so that one of them giving up does not disturb the others. When all of them give
//! up, the request is dropped with them.
//!
//! A challenge, or the wish for a fresh token, begins a new request even while one is under way; what the old one brings
//! is then only for those who wait for it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dynavault_model::{Clock, Diagnose, Retry, chain};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use tracing::{debug, warn};

use crate::credential::{AppIdentity, Asker, Want};
use crate::endpoint::Issued;
use crate::{BearerToken, ClaimsChallenge, TokenError, TokenSource};

/// A token is renewed when less than this remains, or a tenth of its life if that is longer (`entra`, section 6.2).
const RENEW_BEFORE_MIN: Duration = Duration::from_secs(5 * 60);
/// The threshold varies by this share, so that hosts that woke together do not ask together (section 12.2).
const RENEW_JITTER: f64 = 0.1;
/// A token is still handed out while a renewal fails, until this little remains: enough for one request.
const USABLE_MIN: Duration = Duration::from_secs(60);
/// How long a refusal is repeated without asking again (section 7).
const REFUSAL_KEPT: Duration = Duration::from_secs(60);

/// Tries of one request for a token (section 7).
const TRIES_MAX: u32 = 5;
/// Time over all tries and pauses.
const TRYING_MAX: Duration = Duration::from_secs(3 * 60);

/// Tokens of `identity` for `scope`, e.g. `https://contoso.crm.dynamics.com/.default`.
///
/// Sends nothing yet. Fails if the configuration cannot work: plain `http` to another machine, malformed ids.
pub fn token_source(
    identity: AppIdentity,
    scope: String,
    clock: Arc<dyn Clock>,
) -> Result<Arc<dyn TokenSource>, TokenError> {
    let asker = Asker::new(identity, scope, clock)?;
    Ok(Arc::new(CachedSource { inner: Arc::new(Inner { asker, state: Mutex::default() }) }))
}

#[derive(Debug)]
struct CachedSource {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    asker: Asker,
    state: Mutex<State>,
}

type Outcome = Result<BearerToken, TokenError>;
type Flight = Shared<BoxFuture<'static, Outcome>>;

#[derive(Debug, Default)]
struct State {
    held: Option<Held>,
    /// The last refusal and the moment of [`Clock::elapsed`] until which it stands.
    refused: Option<(TokenError, Duration)>,
    /// Weak: those who wait own the request.
    flight: Option<WeakShared<BoxFuture<'static, Outcome>>>,
    /// Number of the newest request; an older one changes nothing any more.
    flights: u64,
    /// What the next request has to bring.
    want: Want,
}

#[derive(Debug)]
struct Held {
    token: BearerToken,
    /// Moments of [`Clock::elapsed`].
    renew_at: Duration,
    usable_until: Duration,
}

#[async_trait]
impl TokenSource for CachedSource {
    async fn token(&self) -> Outcome {
        let flight = match self.inner.hand_out() {
            Handed::Now(outcome) => return outcome,
            Handed::Wait(flight) => flight,
        };
        flight.await
    }

    fn invalidate(&self, token: &BearerToken) {
        let mut state = self.inner.state();
        if state.held.as_ref().is_some_and(|held| held.token == *token) {
            state.held = None;
            state.want.refused = Some(token.clone());
        }
    }

    fn challenge(&self, token: &BearerToken, claims: &ClaimsChallenge) {
        let mut state = self.inner.state();
        if state.held.as_ref().is_none_or(|held| held.token == *token) {
            state.held = None;
            state.want.refused = Some(token.clone());
            // A request under way does not carry the claims, unless it was made for them.
            if state.want.claims.as_ref() != Some(claims) {
                state.want.claims = Some(claims.clone());
                state.flight = None;
            }
        }
    }

    async fn fresh_token(&self) -> Outcome {
        {
            let mut state = self.inner.state();
            *state = State { flights: state.flights, ..State::default() };
            state.want.fresh = true;
        }
        self.token().await
    }

    fn name(&self) -> &str {
        self.inner.asker.name()
    }
}

enum Handed {
    Now(Outcome),
    Wait(Flight),
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while the lock is held, and the state is whole between statements.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hand_out(self: &Arc<Self>) -> Handed {
        let clock = self.asker.clock();
        let elapsed = clock.elapsed();
        let mut state = self.state();
        let usable = state.usable(clock);
        if let Some(held) = &state.held
            && usable.is_some()
            && elapsed < held.renew_at
        {
            return Handed::Now(Ok(held.token.clone()));
        }
        if let Some((error, until)) = &state.refused {
            if elapsed < *until {
                return Handed::Now(usable.ok_or_else(|| error.clone()));
            }
            state.refused = None;
        }
        if let Some(flight) = state.flight.as_ref().and_then(WeakShared::upgrade) {
            return Handed::Wait(flight);
        }
        // While the old token lasts nobody should wait through minutes of tries.
        let tries_max = if usable.is_some() { 1 } else { TRIES_MAX };
        state.flights += 1;
        let (inner, number, want) = (Arc::clone(self), state.flights, state.want.clone());
        let flight = async move {
            let outcome = inner.ask(tries_max, &want).await;
            inner.settle(number, outcome)
        };
        let flight = flight.boxed().shared();
        state.flight = flight.downgrade();
        Handed::Wait(flight)
    }

    fn settle(&self, number: u64, outcome: Result<Issued, TokenError>) -> Outcome {
        let clock = self.asker.clock();
        let elapsed = clock.elapsed();
        let mut state = self.state();
        if number != state.flights || state.flight.is_none() {
            return outcome.map(|issued| issued.token);
        }
        state.flight = None;
        match outcome {
            Ok(Issued { token, life, left }) => {
                let margin = renewal_margin(life).mul_f64(1.0 + RENEW_JITTER * (2.0 * random() - 1.0));
                state.held = Some(Held {
                    token: token.clone(),
                    // A token that lives shorter than the margin is used for half its life instead of never.
                    renew_at: elapsed + left.checked_sub(margin).unwrap_or(left / 2),
                    usable_until: elapsed + left.checked_sub(USABLE_MIN).unwrap_or(left / 2),
                });
                state.refused = None;
                state.want = Want::default();
                Ok(token)
            }
            Err(error) => {
                state.refused = Some((error.clone(), elapsed + REFUSAL_KEPT));
                match state.usable(clock) {
                    Some(token) => {
                        warn!(profile = self.asker.name(), error = %chain(&error), "could not renew the token, the old one is used while it lasts");
                        Ok(token)
                    }
                    None => Err(error),
                }
            }
        }
    }

    async fn ask(&self, tries_max: u32, want: &Want) -> Result<Issued, TokenError> {
        let clock = self.asker.clock();
        let start = clock.elapsed();
        let mut tries = 0;
        loop {
            tries += 1;
            let error = match self.asker.ask(want).await {
                Ok(issued) => return Ok(issued),
                Err(error) => error,
            };
            let pause = match error.retry() {
                Retry::Permanent | Retry::Cancelled => return Err(error),
                Retry::After(pause) => pause,
                Retry::Backoff => self.asker.pause(tries),
            };
            let elapsed = clock.elapsed().saturating_sub(start);
            let limit = if tries >= tries_max {
                format!("{tries_max} tries")
            } else if elapsed + pause > TRYING_MAX {
                format!("{} s", TRYING_MAX.as_secs())
            } else {
                debug!(profile = self.asker.name(), tries, ?pause, error = %chain(&error), "token request failed, trying again");
                clock.sleep(pause).await;
                continue;
            };
            if tries == 1 {
                return Err(error);
            }
            let profile = self.asker.name().to_owned();
            return Err(TokenError::Exhausted { profile, tries, elapsed, limit, source: Arc::new(error) });
        }
    }
}

impl State {
    /// The held token, if it still outlives a request. Both clocks are asked: the wall clock jumps when it is set, and
    /// the other one may stand still while the machine sleeps.
    fn usable(&self, clock: &dyn Clock) -> Option<BearerToken> {
        let held = self.held.as_ref()?;
        let lasts = clock.elapsed() < held.usable_until && clock.now() < held.token.expires_on();
        lasts.then(|| held.token.clone())
    }
}

/// What has to remain of a token that is used without renewal.
pub(crate) fn renewal_margin(life: Duration) -> Duration {
    RENEW_BEFORE_MIN.max(life / 10)
}

/// Between 0 and 1. Without randomness from the system the middle does as well.
pub(crate) fn random() -> f64 {
    getrandom::u32().map_or(0.5, |bits| f64::from(bits) / f64::from(u32::MAX))
}
