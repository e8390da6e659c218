//! What is believed about one windowed limit and about the window, and how answers change it.
//!
//! Three sources, the better one first: the words of a 429, the headers of answers, the documented defaults.
//!
//! **Limit from headers.** An answer that says "R left" means limit = R + what the server counted at that moment. We
//! know our own count only up to the requests that were under way, so each answer gives a lower and an upper bound; the
//! highest lower and lowest upper bound of the last answers, and the plain figure learned while the window was empty,
//! fix the limit to the request. Several web servers, each with its own count, give more room; then the bounds
//! contradict each other and the lowest one is kept, so that no server is overrun.
//!
//! **Window from headers.** "Used by the server's count" below "sent by ours" means that the oldest have left the
//! window: its length lies between the age of the oldest that is still counted and the age of the youngest that is
//! not. Intervals of many answers are intersected. They are believed when they stayed consistent for a whole window;
//! several servers, or other clients of the same user, make them drift and are thereby found out.

use std::collections::VecDeque;
use std::time::Duration;

use super::meter::Meter;

/// Answers whose headers are remembered.
const SAMPLES_MAX: usize = 12;

/// Documented window (`dataverse` protocol, section 5.1).
const WINDOW_DEFAULT: Duration = Duration::from_secs(300);
/// Shorter windows are not believed from headers: what looks like one is several web servers.
const WINDOW_MIN: Duration = Duration::from_secs(1);
/// Nothing older than this is remembered.
pub(super) const WINDOW_MAX: Duration = Duration::from_secs(3600);
/// How far apart the bounds of a window may be when it is used.
const WINDOW_SPREAD_MAX: f64 = 1.15;
/// Requests arrive in a slightly different order than they are sent.
const ARRIVAL_JITTER: Duration = Duration::from_millis(50);

/// One answer's word on what is left, and what we had spent before and after it.
#[derive(Debug, Clone, Copy)]
struct Sample {
    started: Duration,
    answered: Duration,
    spent_before: f64,
    spent_after: f64,
    remaining: f64,
}

/// A limit on what may be spent in the window.
#[derive(Debug)]
pub(super) struct Limit {
    /// What the documentation says.
    documented: f64,
    /// What a 429 said, or what we had spent when one came without numbers.
    stated: Option<f64>,
    /// `stated` is our own count: it may be too low, so it is probed upwards.
    guessed: bool,
    /// The limit as the headers told while our own spending was the only one that mattered.
    told: Option<f64>,
    samples: VecDeque<Sample>,
    /// Share of the limit that is not used; grows with every 429 that comes in spite of known numbers.
    reserve: f64,
    reserve_min: f64,
    reserve_floor: f64,
}

/// Largest share of a limit that is kept in reserve.
const RESERVE_MAX: f64 = 0.05;
/// By how much a surprising 429 raises the reserve.
const RESERVE_STEP: f64 = 0.005;

impl Limit {
    /// `reserve` is a share; `reserve_floor` an amount that is kept at least.
    pub(super) fn new(documented: f64, reserve: f64, reserve_floor: f64) -> Self {
        Self {
            documented,
            stated: None,
            guessed: false,
            told: None,
            samples: VecDeque::new(),
            reserve,
            reserve_min: reserve,
            reserve_floor,
        }
    }

    /// Whether answers tell what is left.
    pub(super) fn has_headers(&self) -> bool {
        !self.samples.is_empty()
    }

    /// A 429 named this limit.
    pub(super) fn hit(&mut self, allowed: Option<f64>, used: f64) {
        // With known numbers this should not have happened: keep further away from now on.
        if self.stated.is_some() {
            self.reserve = (self.reserve + RESERVE_STEP).min(RESERVE_MAX);
        }
        match (allowed, self.stated) {
            (Some(allowed), _) => {
                self.stated = Some(allowed);
                self.guessed = false;
            }
            (None, None) if self.told.is_none() => {
                self.stated = Some(used.max(1.0));
                self.guessed = true;
            }
            (None, Some(stated)) if self.guessed => self.stated = Some(stated.min(used).max(1.0)),
            (None, _) => {}
        }
    }

    /// An answer told what is left. `itself` is what the request added before the service looked; `spent_before` is our
    /// running total when it was sent (with `itself`), `spent_after` when it was answered.
    pub(super) fn tell(
        &mut self,
        remaining: f64,
        itself: f64,
        started: Duration,
        answered: Duration,
        spent_before: f64,
        spent_after: f64,
    ) {
        // Before the first answer nothing of ours can have left the window; later only the request itself is sure to count.
        let counted = if self.told.is_none() { spent_before } else { itself };
        self.told = Some(self.told.unwrap_or(0.0).max(remaining + counted));
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample { started, answered, spent_before, spent_after, remaining });
    }

    /// The limit, given the window. While the window is only assumed (`sure` is false), the newest answer alone counts:
    /// the limit it gives is then no constant, but what is left by it is right.
    pub(super) fn value(&self, meter: &Meter, window: Duration, sure: bool) -> f64 {
        let plain = self.stated.or(self.told).unwrap_or(self.documented);
        let Some(newest) = self.samples.back() else { return plain };
        let gone = |time: Duration| meter.total_at(time.checked_sub(window).unwrap_or(Duration::ZERO));
        let low = |sample: &Sample| sample.remaining + (sample.spent_before - gone(sample.answered)).max(0.0);
        let high = |sample: &Sample| sample.remaining + (sample.spent_after - gone(sample.started)).max(0.0);
        // What was told a window ago says nothing about others who spend from the same limit now.
        let recent = || self.samples.iter().filter(|sample| sample.answered + window >= newest.answered);
        let highest_low = recent().map(low).fold(0.0, f64::max);
        let lowest_high = recent().map(high).fold(f64::INFINITY, f64::min);
        if highest_low <= lowest_high {
            return plain.clamp(highest_low, lowest_high);
        }
        if !sure {
            return low(newest);
        }
        if highest_low - lowest_high <= 2.0 + 0.01 * plain {
            return lowest_high;
        }
        recent().map(low).fold(f64::INFINITY, f64::min)
    }

    /// The ledger was rewritten: what was told refers to the old one.
    pub(super) fn forget_told(&mut self) {
        self.samples.clear();
    }

    /// Whether `value` is so far below the known limit that somebody else must be spending from it.
    pub(super) fn is_shared(&self, value: f64) -> bool {
        self.has_headers() && self.stated.or(self.told).is_some_and(|known| value < 0.98 * known - 2.0)
    }

    /// What is kept unused of `limit`.
    pub(super) fn reserve(&self, limit: f64) -> f64 {
        (limit * self.reserve).max(self.reserve_floor)
    }

    /// A window went by without a 429 of this limit: come a little closer again.
    pub(super) fn relax(&mut self) {
        self.reserve = (self.reserve - RESERVE_STEP / 5.0).max(self.reserve_min);
        if self.guessed {
            self.stated = self.stated.map(|stated| stated * GUESS_GROWTH);
        }
    }

    /// The limit itself, where the service told it one way or the other.
    pub(super) fn known(&self) -> Option<f64> {
        self.stated.or(self.told)
    }
}

/// How fast a guessed limit is probed upwards, per window.
const GUESS_GROWTH: f64 = 1.02;

/// What is believed about the length of the window.
#[derive(Debug)]
pub(super) struct Window {
    stated: Option<Duration>,
    low: Duration,
    high: Option<Duration>,
    /// When the first of the consistent answers came.
    since: Duration,
    believed: bool,
    /// When the oldest request was sent that the service still counts.
    oldest: Option<Duration>,
}

impl Window {
    pub(super) fn new() -> Self {
        Self { stated: None, low: Duration::ZERO, high: None, since: Duration::ZERO, believed: false, oldest: None }
    }

    /// The length to reckon with.
    pub(super) fn value(&self) -> Duration {
        match (self.stated, self.high) {
            (Some(stated), _) => stated,
            (None, Some(high)) if self.believed => high,
            _ => WINDOW_DEFAULT,
        }
    }

    /// Whether the service told the length, one way or the other.
    pub(super) fn is_known(&self) -> bool {
        self.stated.is_some() || self.believed
    }

    /// Whether a 429 named the length, so that there is nothing more to learn.
    pub(super) fn is_stated(&self) -> bool {
        self.stated.is_some()
    }

    /// A length that is likely enough for trying a single request: such a try halves what is uncertain.
    pub(super) fn hint(&self) -> Option<Duration> {
        let high = self.stated.or(self.high)?;
        Some(if self.believed { (self.low.min(high) + high) / 2 } else { high })
    }

    /// When the oldest request was sent that the service still counts, as far as its last answer told.
    pub(super) fn oldest(&self) -> Option<Duration> {
        self.oldest
    }

    /// A 429 named the length, or it follows from one.
    pub(super) fn state(&mut self, window: Duration) {
        self.stated = Some(window);
    }

    /// An answer told what is left of a limit on requests: learns from which of them the server still counts.
    pub(super) fn observe(
        &mut self,
        limit: f64,
        remaining: f64,
        starts: &Meter,
        started: Duration,
        answered: Duration,
        sent_before: f64,
    ) {
        if self.stated.is_some() {
            return;
        }
        let used = (limit - remaining).max(0.0);
        let slack = 1.0 + 0.002 * limit;
        let gone_at_least = sent_before - used - slack;
        let gone_at_most = (starts.total() - used + slack).max(0.0);
        // The oldest that surely stayed bounds the length from below, the youngest that surely left from above.
        let stayed = starts.time_of(gone_at_most.ceil() + 1.0).unwrap_or(started);
        self.oldest = Some(stayed);
        let low = started.saturating_sub(stayed).saturating_sub(ARRIVAL_JITTER).mul_f64(0.99);
        match starts.time_of(gone_at_least.floor()).filter(|_| gone_at_least >= 1.0) {
            Some(left) => self.intersect(low, answered.saturating_sub(left), answered),
            None if self.high.is_none() => self.low = self.low.max(low),
            None => {}
        }
    }

    fn intersect(&mut self, low: Duration, high: Duration, now: Duration) {
        if self.high.is_none() {
            self.since = now;
        }
        let lower = self.low.max(low);
        let upper = self.high.map_or(high, |known| known.min(high));
        if upper < WINDOW_MIN || lower.mul_f64(0.98) > upper {
            *self = Self { low, high: Some(high.max(WINDOW_MIN)), since: now, oldest: self.oldest, ..Self::new() };
            return;
        }
        self.low = lower;
        self.high = Some(upper);
        let narrow = upper <= lower.mul_f64(WINDOW_SPREAD_MAX);
        self.believed |= narrow && now.saturating_sub(self.since) >= upper;
    }
}
