//! The governor's decisions as a plain state machine: the time goes in, "start", "wait until" or "wait for one to finish"
//! comes out. No clock, no lock, no waiting, so that a test can run hours of it in a blink.
//!
//! Four things hold a request back, in this order:
//!
//! 1. a pause the service asked for (`Retry-After`): nothing starts before it is over;
//! 2. the level: how many requests may be under way. It starts at two, grows by one per round of answers while latency
//!    is steady, and is cut on 429, on 503 and when latency rises strongly;
//! 3. the ledger of requests: what was started in the window, against the limit less a reserve;
//! 4. the ledger of execution time: what was spent in the window, what is under way at its expected length, and the
//!    window as it will be when the new request ends.
//!
//! As long as nobody told a limit, starts are spread evenly besides, so that one request meets it and not all of them.
//!
//! When a ledger is full the answer is the exact moment at which enough of it leaves the window.
//!
//! While the length of the window is not known but answers tell what is left, single requests are sent after growing
//! silences, out of a reserve kept for this. One of them sees the figure rise, and the length is known.

#[cfg(test)]
mod tests;

use std::time::Duration;

use super::limit::{Limit, WINDOW_MAX, Window};
use super::meter::Meter;
use super::signals::{LimitKind, RETRY_AFTER_MAX, Signals, Throttle};

/// Documented limits (`dataverse` protocol, section 5.1): requests and seconds of execution in the window.
const REQUESTS_DOCUMENTED: f64 = 6000.0;
const SECONDS_DOCUMENTED: f64 = 1200.0;

/// No user ever has more requests under way (`dataverse` protocol, rule 5.1; the documented limit is 52).
pub const IN_FLIGHT_CEILING: u32 = 48;
/// Requests under way at the start (section 5.1: start low).
const LEVEL_START: f64 = 2.0;
/// The level after a 429 or 503, as a share of the level before (rule 5.1).
const LEVEL_CUT: f64 = 0.5;
/// The level after latency rose strongly, as a share of the level before.
const LEVEL_EASE: f64 = 0.8;
/// Latency alone does not push the level below this: one slow table must not strangle a run.
const LEVEL_EASE_MIN: f64 = 4.0;
/// Recent over usual latency up to which the level grows.
const STEADY_MAX: f64 = 1.5;
/// Recent over usual latency from which the level is cut.
const RISING_MIN: f64 = 2.5;
/// Answers before latency is judged.
const ANSWERS_TO_JUDGE: u32 = 20;

/// Requests in the window before their cost is judged.
const REQUESTS_TO_JUDGE: f64 = 10.0;
/// How much more than we measured may be charged before we believe the charge.
const CHARGE_TOLERANCE: f64 = 1.25;

/// What is left of a surcharge after an answer that knows of less.
const SURCHARGE_DECAY: f64 = 0.9;

/// How much one batch changes what is believed of the next.
const EACH_SHARE: f64 = 0.2;

/// Safety margin on the window: clocks and networks differ a little.
const WINDOW_MARGIN_SHARE: f64 = 1.003;
const WINDOW_MARGIN: Duration = Duration::from_millis(5);

/// Reserve kept of the limits on requests and on seconds.
const REQUESTS_RESERVE: f64 = 0.005;
const SECONDS_RESERVE: f64 = 0.01;
/// Requests kept for finding the length of the window: enough for growing silences from a second to the documented
/// length, but no more than a tenth of the limit.
const PROBES: f64 = 30.0;
/// First silence before such a probe.
const PROBE_PAUSE_MIN: Duration = Duration::from_millis(250);
/// Least time between two probes.
const PROBE_SPACING: Duration = Duration::from_millis(50);
/// Silence before a probe that may itself be throttled, because nothing is left.
const PROBE_PAUSE_EMPTY_MIN: Duration = Duration::from_secs(1);

/// As long as nobody told a limit, the next request starts no sooner after the last than the places divide the time of one,
/// and no later than this: evenly spread, one of them meets the limit instead of all.
const SPACING_MAX: Duration = Duration::from_millis(100);

/// Pause after a first 429 without `Retry-After`; doubles with each further one (`dataverse` protocol, section 5.2).
const PAUSE_START: Duration = Duration::from_secs(2);

/// What a request is, as far as its length can be guessed from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestKind {
    /// Metadata, single rows, functions.
    Small,
    /// A page of a collection.
    Page,
    /// Bytes of a file.
    Content,
    /// A write of one row, or of a piece of a file.
    Write,
    /// A write of many rows.
    Bulk,
}

/// What is about to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// What it is.
    pub kind: RequestKind,
    /// Operations in it: a batch counts as one request, and each of its parts takes its time (`dataverse` protocol, section 5.1).
    pub operations: u32,
}

impl From<RequestKind> for Ask {
    fn from(kind: RequestKind) -> Self {
        Self { kind, operations: 1 }
    }
}

/// Number of [`RequestKind`]s.
const KINDS: usize = 5;

/// May a request start?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Now.
    Start,
    /// Not before this time; ask again then, or when something changed.
    At(Duration),
    /// When one that is under way has ended.
    AfterOne,
}

/// How a request ended, as far as limits are concerned.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Outcome {
    /// With an answer.
    Answered,
    /// The service is busy (503 and the like).
    Busy,
    /// 429.
    Throttled(Throttle),
    /// Without an answer: connection, time-out, cancelled.
    Lost,
}

#[derive(Debug)]
struct Flight {
    id: u64,
    ask: Ask,
    started: Duration,
    /// Our totals when it started, itself included.
    requests_before: f64,
    seconds_before: f64,
    answered: bool,
}

/// Usual and recent latency of one kind of request, in seconds.
#[derive(Debug, Clone, Copy)]
struct Latency {
    usual: f64,
    recent: f64,
    answers: u32,
}

impl Latency {
    /// Assumed length of a request before one was seen.
    const UNKNOWN: Self = Self { usual: 0.2, recent: 0.2, answers: 0 };

    fn note(&mut self, seconds: f64) {
        // The first answers count fully, so that the assumed length is forgotten at once.
        let weight = |share: f64| share.max(1.0 / f64::from(self.answers + 1));
        self.usual += weight(0.02) * (seconds - self.usual);
        self.recent += weight(0.2) * (seconds - self.recent);
        self.answers = self.answers.saturating_add(1);
    }

    /// How much longer requests take than usual.
    fn rise(&self) -> f64 {
        if self.answers < ANSWERS_TO_JUDGE { 1.0 } else { self.recent / self.usual.max(0.001) }
    }
}

/// State of one application user; see the module.
#[derive(Debug)]
pub(crate) struct Core {
    in_flight_max: f64,
    requests: Limit,
    seconds: Limit,
    /// Requests at once that a 429 named, less a margin.
    concurrency: Option<f64>,
    window: Window,
    starts: Meter,
    /// Operations that were carried out, by the end of their requests: that is when they are charged.
    ended: Meter,
    spent: Meter,
    flights: Vec<Flight>,
    next_id: u64,
    level: f64,
    /// Requests started before this time saw the level before its last cut.
    cut_at: Option<Duration>,
    /// When all places were last taken.
    full_at: Option<Duration>,
    paused_until: Duration,
    throttles_in_row: u32,
    calm_since: Duration,
    latency: [Latency; KINDS],
    /// Seconds the service charges per operation beyond what we measure; see [`Core::recharge`].
    surcharge: f64,
    /// Seconds that each part of a batch but the first is charged, as batches tell; see [`Core::learn_from_batch`].
    each: f64,
    /// What was left of the seconds when the last answer came.
    left: Option<f64>,
}

impl Core {
    pub(crate) fn new(in_flight_max: u32) -> Self {
        Self {
            in_flight_max: f64::from(in_flight_max.clamp(1, IN_FLIGHT_CEILING)),
            requests: Limit::new(REQUESTS_DOCUMENTED, REQUESTS_RESERVE, 1.0),
            seconds: Limit::new(SECONDS_DOCUMENTED, SECONDS_RESERVE, 0.0),
            concurrency: None,
            window: Window::new(),
            starts: Meter::new(),
            ended: Meter::new(),
            spent: Meter::new(),
            flights: Vec::new(),
            next_id: 0,
            level: LEVEL_START,
            cut_at: None,
            full_at: None,
            paused_until: Duration::ZERO,
            throttles_in_row: 0,
            calm_since: Duration::ZERO,
            latency: [Latency::UNKNOWN; KINDS],
            surcharge: 0.0,
            each: 0.0,
            left: None,
        }
    }

    /// Requests under way.
    pub(crate) fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// End of the pause the service asked for; may lie in the past.
    pub(crate) fn paused_until(&self) -> Duration {
        self.paused_until
    }

    /// Requests that may be under way now.
    pub(crate) fn level(&self) -> u32 {
        self.level.min(self.ceiling()).max(1.0) as u32
    }

    fn ceiling(&self) -> f64 {
        self.concurrency.map_or(self.in_flight_max, |learned| learned.min(self.in_flight_max)).max(1.0)
    }

    /// Whether such a request may start.
    pub(crate) fn decide(&self, now: Duration, ask: impl Into<Ask>) -> Decision {
        let ask = ask.into();
        if now < self.paused_until {
            return Decision::At(self.paused_until);
        }
        if self.flights.len() >= self.level() as usize {
            return Decision::AfterOne;
        }
        if let Some(turn) = self.turn(ask.kind).filter(|turn| *turn > now) {
            return Decision::At(turn);
        }
        match self.ledger(now, ask, self.window.value()) {
            Decision::At(wake) if self.requests.has_headers() => self.probe(now, ask, wake),
            decision => decision,
        }
    }

    /// When the next request may start at the earliest while no limit was told by anybody.
    fn turn(&self, kind: RequestKind) -> Option<Duration> {
        let told = |limit: &Limit| limit.has_headers() || limit.known().is_some();
        if self.flights.is_empty() || told(&self.requests) || told(&self.seconds) || self.concurrency.is_some() {
            return None;
        }
        let (_, last) = self.starts.span()?;
        let spacing = Duration::from_secs_f64(self.latency[kind as usize].recent / f64::from(self.level()));
        Some(last + spacing.min(SPACING_MAX))
    }

    /// What the ledgers say if the window has this length.
    fn ledger(&self, now: Duration, ask: Ask, window: Duration) -> Decision {
        match self.requests_ledger(now, window) {
            Decision::Start => self.seconds_ledger(now, ask, window),
            blocked => blocked,
        }
    }

    fn requests_ledger(&self, now: Duration, measured: Duration) -> Decision {
        let sure = self.window.is_known();
        let limit = self.requests.value(&self.starts, measured, sure);
        let mut reserve = self.requests.reserve(limit);
        if !sure && self.requests.has_headers() {
            reserve = reserve.max(PROBES.min(limit / 10.0));
        }
        // A limit that leaves nothing over its reserve still lets one request through.
        let allowed = (limit - reserve).max(1.0);
        let window = with_margin(measured);
        if self.starts.within(now, window) + 1.0 > allowed {
            return at(self.starts.free_at(window, allowed - 1.0), now);
        }
        Decision::Start
    }

    fn seconds_ledger(&self, now: Duration, ask: Ask, measured: Duration) -> Decision {
        let limit = self.seconds.value(&self.spent, measured, self.window.is_known());
        let window = with_margin(measured);
        let allowed = (limit - self.seconds.reserve(limit)).max(0.0);
        // What is about to be added when the oldest under way end counts already: the new one may arrive just after.
        let ripening = self.ripening(now);
        if self.spent.within(now, window) + ripening > allowed && self.spent.within(now, window) > 0.0 {
            return at(self.spent.free_at(window, allowed - ripening), now);
        }
        // What is under way counts in full. Of a batch itself one operation does: the service looks only when it begins, and a
        // batch that had to fit in whole would leave room unused for want of a small one.
        let expected = self.expected(Ask { operations: 1, ..ask });
        let ending = now + Duration::from_secs_f64(self.latency[ask.kind as usize].recent);
        let coming = self.under_way(now) + expected;
        if self.spent.within(ending, window) + coming > allowed {
            return match self.spent.free_at(window, allowed - coming) {
                Some(free) if free > ending => Decision::At(now + free.saturating_sub(ending)),
                // Nothing left to wait for in the ledger: what is under way fills the limit by itself.
                _ if self.flights.iter().any(|flight| !flight.answered) => Decision::AfterOne,
                // A single request longer than the whole limit has to be let through, or nothing ever is.
                None => match self.spent.free_at(window, 0.0) {
                    Some(empty) if empty > now => Decision::At(empty),
                    _ => Decision::Start,
                },
                Some(_) => Decision::Start,
            };
        }
        Decision::Start
    }

    /// What a request is expected to be charged, in seconds.
    fn expected(&self, ask: Ask) -> f64 {
        self.latency[ask.kind as usize].recent + self.beyond(ask)
    }

    /// What a request is charged beyond the time it takes, in seconds.
    fn beyond(&self, ask: Ask) -> f64 {
        let operations = f64::from(ask.operations.max(1));
        (self.surcharge * operations).max(self.each * (operations - 1.0))
    }

    /// Execution time of what is under way and not yet in the ledger, in seconds.
    fn under_way(&self, now: Duration) -> f64 {
        self.flights
            .iter()
            .filter(|flight| !flight.answered)
            .map(|flight| {
                let elapsed = now.saturating_sub(flight.started).as_secs_f64();
                self.expected(flight.ask).max(elapsed + self.beyond(flight.ask))
            })
            .sum()
    }

    /// Execution time so far of what is under way and past half its expected length, in seconds.
    fn ripening(&self, now: Duration) -> f64 {
        let elapsed = |flight: &Flight| now.saturating_sub(flight.started).as_secs_f64();
        self.flights
            .iter()
            .filter(|flight| !flight.answered && elapsed(flight) > 0.5 * self.latency[flight.ask.kind as usize].recent)
            .map(|flight| elapsed(flight) + self.beyond(flight.ask))
            .sum()
    }

    /// Blocked until `wake` as far as we know, which is not exactly: when may a single request find out more?
    fn probe(&self, now: Duration, ask: Ask, wake: Duration) -> Decision {
        if self.flights.iter().any(|flight| !flight.answered) {
            return Decision::AfterOne;
        }
        let Some((first, last)) = self.starts.span() else { return Decision::At(wake) };
        let window = self.window.value();
        let limit = self.requests.value(&self.starts, window, self.window.is_known());
        let left = limit - self.starts.within(now, window);
        let by_requests = self.seconds_ledger(now, ask, window) == Decision::Start;
        if by_requests && self.window.is_known() && self.requests.is_shared(limit) {
            // What others spent leaves the window when no ledger of ours says; look again now and then.
            let pause = PROBE_PAUSE_MIN.max(window / if left >= 1.0 { 100 } else { 20 });
            let next = wake.min(last + pause);
            return if next <= now { Decision::Start } else { Decision::At(next) };
        }
        if self.window.is_stated() {
            return Decision::At(wake);
        }
        let likely = self.window.hint().and_then(|hint| match self.ledger(now, ask, hint) {
            Decision::Start => Some(now),
            Decision::At(time) => Some(time),
            Decision::AfterOne => None,
        });
        let next = if self.window.is_known() {
            likely.filter(|_| left >= 1.0).unwrap_or(wake)
        } else {
            // The length is at least the age of the oldest that still counts: try again when that has grown a little.
            let age = last.saturating_sub(self.window.oldest().unwrap_or(first));
            let pause = if left >= 2.0 { PROBE_PAUSE_MIN.max(age / 6) } else { PROBE_PAUSE_EMPTY_MIN.max(age) };
            likely.map_or(last + pause, |likely| likely.min(last + pause))
        };
        let next = next.max(last + PROBE_SPACING).min(wake);
        if next <= now { Decision::Start } else { Decision::At(next) }
    }

    /// Notes that a request starts; [`Self::decide`] said it may.
    pub(crate) fn start(&mut self, now: Duration, ask: impl Into<Ask>) -> u64 {
        let ask = ask.into();
        self.starts.spend(now, 1.0);
        if let Some(horizon) = now.checked_sub(WINDOW_MAX) {
            self.starts.forget_before(horizon);
            self.ended.forget_before(horizon);
            self.spent.forget_before(horizon);
        }
        self.next_id += 1;
        self.flights.push(Flight {
            id: self.next_id,
            ask,
            started: now,
            requests_before: self.starts.total(),
            seconds_before: self.spent.total(),
            answered: false,
        });
        if self.flights.len() >= self.level() as usize {
            self.full_at = Some(now);
        }
        self.next_id
    }

    /// Notes how a request ended: with its headers if there were any. `chance` in 0..1 spreads pauses of our own choice.
    pub(crate) fn answered(&mut self, id: u64, now: Duration, outcome: Outcome, signals: &Signals, chance: f64) {
        let Some(index) = self.flights.iter().position(|flight| flight.id == id && !flight.answered) else { return };
        self.flights[index].answered = true;
        let Flight { ask, started, requests_before, .. } = self.flights[index];
        let kind = ask.kind;
        let seconds = now.saturating_sub(started).as_secs_f64();
        // What was refused was not executed.
        if !matches!(outcome, Outcome::Throttled(_)) {
            self.spent.spend(now, seconds + self.beyond(ask));
            self.ended.spend(now, f64::from(ask.operations.max(1)));
        }
        match outcome {
            Outcome::Answered => {
                self.latency[kind as usize].note(seconds);
                self.adjust_level(now, kind, started, signals);
                if started >= self.paused_until {
                    self.throttles_in_row = 0;
                }
                if let Some(remaining) = signals.remaining_requests {
                    self.requests.tell(remaining, 1.0, started, now, requests_before, self.starts.total());
                    if let Some(limit) = self.requests.known() {
                        self.window.observe(limit, remaining, &self.starts, started, now, requests_before);
                    }
                }
                if let Some(remaining) = signals.remaining_seconds {
                    self.learn_from_batch(ask, seconds, remaining);
                    if let Some(limit) = self.seconds.known() {
                        self.recharge(now, limit - remaining);
                    }
                    // Read only now: charging may have rewritten the ledger.
                    let seconds_before = self.flights[index].seconds_before;
                    self.seconds.tell(remaining, 0.0, started, now, seconds_before, self.spent.total());
                }
                if now.saturating_sub(self.calm_since) > self.window.value() {
                    self.calm_since = now;
                    self.requests.relax();
                    self.seconds.relax();
                }
            }
            Outcome::Busy => {
                self.cut(now, started, LEVEL_CUT);
                if let Some(pause) = signals.retry_after {
                    self.pause(now + pause);
                }
            }
            Outcome::Throttled(throttle) => self.throttled(now, started, throttle, signals.retry_after, chance),
            Outcome::Lost => {}
        }
    }

    /// Notes that a request no longer takes up a place: its body is done with, or it was given up.
    pub(crate) fn released(&mut self, id: u64, now: Duration) {
        if let Some(index) = self.flights.iter().position(|flight| flight.id == id) {
            let flight = self.flights.swap_remove(index);
            if !flight.answered {
                self.spent.spend(now, now.saturating_sub(flight.started).as_secs_f64());
            }
        }
    }

    fn adjust_level(&mut self, now: Duration, kind: RequestKind, started: Duration, signals: &Signals) {
        if self.cut_at.is_none()
            && let Some(hint) = signals.parallel_hint
        {
            // Only at the very start: later the level knows better than a hint.
            if self.level <= LEVEL_START {
                self.level = LEVEL_START.min(f64::from(hint.max(1)));
            }
        }
        let rise = self.latency[kind as usize].rise();
        if rise >= RISING_MIN && self.level > LEVEL_EASE_MIN {
            self.cut_down_to(now, started, LEVEL_EASE, LEVEL_EASE_MIN);
        } else if rise <= STEADY_MAX && self.full_at.is_some_and(|full| full >= started) {
            // Growing is pointless while places stay empty; every answer of a full round adds its share of one.
            self.level = (self.level + 1.0 / self.level).min(self.ceiling());
        }
    }

    fn cut(&mut self, now: Duration, started: Duration, share: f64) {
        self.cut_down_to(now, started, share, 1.0);
    }

    /// Cuts the level once per round: requests that started before the last cut say nothing new.
    fn cut_down_to(&mut self, now: Duration, started: Duration, share: f64, least: f64) {
        if self.cut_at.is_none_or(|cut| started >= cut) {
            self.level = (self.level.min(self.ceiling()) * share).max(least);
            self.cut_at = Some(now);
        }
    }

    fn pause(&mut self, until: Duration) {
        self.paused_until = self.paused_until.max(until);
    }

    fn throttled(
        &mut self,
        now: Duration,
        started: Duration,
        throttle: Throttle,
        retry_after: Option<Duration>,
        chance: f64,
    ) {
        self.calm_since = now;
        let news = self.cut_at.is_none_or(|cut| started >= cut);
        if news {
            self.learn(now, throttle, retry_after);
            self.throttles_in_row = self.throttles_in_row.saturating_add(1);
        }
        self.cut(now, started, LEVEL_CUT);
        let pause = retry_after.unwrap_or_else(|| {
            let doubled = PAUSE_START.saturating_mul(1 << self.throttles_in_row.saturating_sub(1).min(16));
            doubled.min(RETRY_AFTER_MAX).mul_f64(0.5 + 0.5 * chance)
        });
        // A second 429 of the same round must not make the pause longer unless the service itself says so.
        if news || retry_after.is_some() {
            self.pause(now + pause);
        }
    }

    fn learn(&mut self, now: Duration, throttle: Throttle, retry_after: Option<Duration>) {
        let Some(kind) = throttle.kind else { return };
        if kind == LimitKind::Concurrency {
            let allowed = throttle.allowed.unwrap_or(self.flights.len().saturating_sub(1) as f64).max(1.0);
            // The margin is for requests that we think ended and the service still counts.
            let margin = (allowed / 20.0).floor();
            let again = self.concurrency.is_some_and(|known| known <= allowed - margin);
            let known = self.concurrency.map_or(allowed - margin, |known| known.min(allowed - margin));
            self.concurrency = Some(if again { (known - 1.0).max(1.0) } else { known.max(1.0) });
            return;
        }
        match (throttle.window, retry_after) {
            (Some(window), _) => self.window.state(window),
            // Without numbers: what we started first leaves when the service lets us go on.
            (None, Some(pause)) if throttle.allowed.is_none() && !self.window.is_known() => {
                if let Some((first, _)) = self.starts.span()
                    && now.saturating_sub(first) < self.window.value()
                {
                    self.window.state((now.saturating_sub(first) + pause).min(self.window.value()));
                }
            }
            _ => {}
        }
        let window = self.window.value();
        if kind == LimitKind::Requests {
            self.requests.hit(throttle.allowed, self.starts.within(now, window));
            return;
        }
        self.seconds.hit(throttle.allowed, self.spent.within(now, window));
        if let Some(allowed) = throttle.allowed {
            self.recharge(now, allowed);
        }
    }

    /// By how much less is left after a batch than before tells what its parts cost, unless something else left the window or
    /// ended in between: then it tells too little, or nothing.
    fn learn_from_batch(&mut self, ask: Ask, seconds: f64, left: f64) {
        let cost = self.left.replace(left).map_or(0.0, |before| before - left - seconds);
        if ask.operations > 1 && cost > 0.0 {
            let sample = cost / f64::from(ask.operations - 1);
            self.each += EACH_SHARE * (sample - self.each);
        }
    }

    /// The service counts `used` seconds in the window. Plug-ins and work after the answer are charged and not seen from
    /// here (`dataverse` protocol, section 5.1); if much more is charged than was measured, every operation is taken to
    /// cost its share. If much less is charged, as it may seem with several web servers, the share is forgotten slowly.
    fn recharge(&mut self, now: Duration, used: f64) {
        let window = self.window.value();
        let under_way = self.flights.iter().filter(|flight| !flight.answered).count() as f64;
        let (requests, measured) = (self.starts.within(now, window) - under_way, self.spent.within(now, window));
        let operations = self.ended.within(now, window);
        // While plenty is left it holds nothing back, and the next batch may be as dear as the last.
        let holds_back = self.seconds.known().is_none_or(|limit| measured > limit / 2.0);
        if used * CHARGE_TOLERANCE < measured && holds_back {
            self.surcharge *= SURCHARGE_DECAY;
        }
        if requests < REQUESTS_TO_JUDGE
            || operations < 1.0
            || used <= CHARGE_TOLERANCE * (measured + self.under_way(now))
        {
            return;
        }
        let seen = self.latency.iter().map(|latency| latency.recent * f64::from(latency.answers)).sum::<f64>()
            / f64::from(self.latency.iter().map(|latency| latency.answers).sum::<u32>().max(1));
        self.surcharge = ((used - requests * seen) / operations).max(0.0);
        self.spent = self.ended.scaled(used / operations);
        self.seconds.forget_told();
        for flight in &mut self.flights {
            flight.seconds_before = self.spent.total();
        }
    }
}

/// A window as it is reckoned with: a little longer than it is.
fn with_margin(window: Duration) -> Duration {
    window.mul_f64(WINDOW_MARGIN_SHARE) + WINDOW_MARGIN
}

/// The moment `free`, or right now if it has passed; a ledger that never frees asks again after the present request.
fn at(free: Option<Duration>, now: Duration) -> Decision {
    match free {
        Some(free) if free > now => Decision::At(free),
        Some(_) => Decision::Start,
        None => Decision::AfterOne,
    }
}
