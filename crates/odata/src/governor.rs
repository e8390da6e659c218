//! Keeps one application user just under the service protection limits, without asking for a 429 to find them.
//!
//! ```text
//!  acquire() ─ gate, first come first served ─▶ core.decide(now) ─ start ─▶ Permit
//!                  ▲            │ wait until / wait for one to finish
//!                  └────────────┘
//!  Permit::answered(outcome, headers) ─▶ core learns      drop(Permit) ─▶ the place is free
//! ```
//!
//! The decisions are in `state`, which knows no clock; what is believed about limits is in `limit`; this file only waits.
//! Several application users of one environment have a governor each (`dataverse` protocol, rule 5.3).

mod limit;
mod meter;
mod signals;
#[cfg(test)]
mod simulation;
mod state;

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dynavault_model::Clock;
use tokio::sync::Notify;

use self::state::{Core, Decision};
use crate::retry::Chance;

pub(crate) use signals::http_date;
pub use signals::{LimitKind, RETRY_AFTER_MAX, Signals, Throttle};
pub use state::{Ask, IN_FLIGHT_CEILING, Outcome, RequestKind};

/// The governor of one application user.
pub struct Governor {
    core: Mutex<Core>,
    /// Waiters pass one at a time, in order of arrival; the first of them does the waiting.
    gate: tokio::sync::Mutex<()>,
    /// Something changed that may let the first waiter go on.
    changed: Notify,
    waiting: AtomicUsize,
    clock: Arc<dyn Clock>,
    chance: Chance,
}

impl fmt::Debug for Governor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Governor").field("core", &self.core).finish_non_exhaustive()
    }
}

impl Governor {
    /// A governor that never has more than `in_flight_max` requests under way (at most [`IN_FLIGHT_CEILING`]).
    pub fn new(in_flight_max: u32, clock: Arc<dyn Clock>, chance: Chance) -> Arc<Self> {
        Arc::new(Self {
            core: Mutex::new(Core::new(in_flight_max)),
            gate: tokio::sync::Mutex::new(()),
            changed: Notify::new(),
            waiting: AtomicUsize::new(0),
            clock,
            chance,
        })
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        // The core is plain arithmetic and holds no invariant across calls that a panic could break.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a request may start. Cancel-safe: dropping the future gives the place in the queue up.
    pub async fn acquire(self: &Arc<Self>, ask: impl Into<Ask>) -> Permit {
        let ask = ask.into();
        let _waiting = Waiting::new(&self.waiting);
        let _turn = self.gate.lock().await;
        loop {
            let decision = {
                let mut core = self.core();
                let now = self.clock.elapsed();
                let decision = core.decide(now, ask);
                if decision == Decision::Start {
                    let id = core.start(now, ask);
                    return Permit { governor: Arc::clone(self), id };
                }
                decision
            };
            match decision {
                Decision::At(until) => {
                    let pause = until.saturating_sub(self.clock.elapsed());
                    tokio::select! {
                        () = self.clock.sleep(pause) => {}
                        () = self.changed.notified() => {}
                    }
                }
                _ => self.changed.notified().await,
            }
        }
    }

    /// Requests under way and waiting.
    pub fn load(&self) -> usize {
        self.core().in_flight() + self.waiting.load(Ordering::Relaxed)
    }

    /// How long the service asked this user to stay silent from now on; zero if it did not.
    pub fn pause(&self) -> Duration {
        self.core().paused_until().saturating_sub(self.clock.elapsed())
    }

    /// How many requests may be under way at present.
    pub fn level(&self) -> u32 {
        self.core().level()
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The right to have one request under way. Dropping it frees the place.
#[derive(Debug)]
pub struct Permit {
    governor: Arc<Governor>,
    id: u64,
}

impl Permit {
    /// Tells how the request ended, once its headers are there. The place stays taken until the permit is dropped,
    /// because the body still comes over the same connection.
    pub fn answered(&self, outcome: Outcome, signals: &Signals) {
        let governor = &self.governor;
        let now = governor.clock.elapsed();
        governor.core().answered(self.id, now, outcome, signals, governor.chance.next());
        governor.changed.notify_one();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let now = self.governor.clock.elapsed();
        self.governor.core().released(self.id, now);
        self.governor.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use async_trait::async_trait;
    use tokio::task::JoinSet;

    use super::*;

    /// A clock whose sleeps pass at once.
    #[derive(Default)]
    struct FastClock(AtomicU64);

    #[async_trait]
    impl Clock for FastClock {
        fn now(&self) -> jiff::Timestamp {
            jiff::Timestamp::UNIX_EPOCH
        }

        fn elapsed(&self) -> Duration {
            Duration::from_nanos(self.0.load(Ordering::SeqCst))
        }

        async fn sleep(&self, duration: Duration) {
            self.0.fetch_add(duration.as_nanos() as u64, Ordering::SeqCst);
            tokio::task::yield_now().await;
        }
    }

    fn governor(in_flight_max: u32) -> (Arc<Governor>, Arc<FastClock>) {
        let clock = Arc::new(FastClock::default());
        (Governor::new(in_flight_max, Arc::clone(&clock) as Arc<dyn Clock>, Chance::new(1)), clock)
    }

    #[tokio::test]
    async fn waiters_are_served_in_order_as_places_become_free() {
        let (governor, _) = governor(1);
        let first = governor.acquire(RequestKind::Page).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut waiters = JoinSet::new();
        for number in 0..5 {
            let (governor, order) = (Arc::clone(&governor), Arc::clone(&order));
            waiters.spawn(async move {
                let permit = governor.acquire(RequestKind::Page).await;
                order.lock().unwrap().push(number);
                permit.answered(Outcome::Answered, &Signals::default());
            });
            tokio::task::yield_now().await;
        }
        assert_eq!(governor.load(), 6);
        drop(first);
        while waiters.join_next().await.is_some() {}
        assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3, 4]);
        assert_eq!(governor.load(), 0);
    }

    #[tokio::test]
    async fn a_pause_holds_every_waiter_back_until_it_is_over() {
        let (governor, clock) = governor(8);
        let permit = governor.acquire(RequestKind::Page).await;
        let signals = Signals { retry_after: Some(Duration::from_secs(17)), ..Signals::default() };
        permit.answered(Outcome::Throttled(Throttle::default()), &signals);
        drop(permit);
        assert_eq!(governor.pause(), Duration::from_secs(17));
        let _next = governor.acquire(RequestKind::Small).await;
        assert!(clock.elapsed() >= Duration::from_secs(17));
    }

    #[tokio::test]
    async fn a_waiter_that_gives_up_does_not_block_the_next() {
        let (governor, _) = governor(1);
        let first = governor.acquire(RequestKind::Page).await;
        {
            let waiting = governor.acquire(RequestKind::Page);
            tokio::pin!(waiting);
            assert!(futures::poll!(&mut waiting).is_pending());
        }
        drop(first);
        let _second = governor.acquire(RequestKind::Page).await;
        assert_eq!(governor.load(), 1);
    }
}
