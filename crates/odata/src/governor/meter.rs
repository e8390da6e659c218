//! How much was spent when: the ledger's memory of one sliding window, in bounded space.

use std::collections::VecDeque;
use std::time::Duration;

/// Most entries kept. At the documented 6,000 requests per window every request has its own; beyond that neighbours are
/// joined, which makes them leave the window a little late, never early.
const ENTRIES_MAX: usize = 8192;

/// Spendings closer than this are joined to begin with.
const GRAIN_MIN: Duration = Duration::from_millis(1);

#[derive(Debug, Clone, Copy)]
struct Entry {
    opened: Duration,
    /// When the last spending joined here was made; the entry leaves a window with it.
    latest: Duration,
    /// Everything ever spent up to and including this entry.
    total: f64,
}

/// A running total with its history, so that any question about a window is one binary search.
#[derive(Debug)]
pub(crate) struct Meter {
    entries: VecDeque<Entry>,
    total: f64,
    /// The total at the time before which nothing is remembered.
    forgotten: f64,
    grain: Duration,
}

impl Meter {
    pub(crate) fn new() -> Self {
        Self { entries: VecDeque::new(), total: 0.0, forgotten: 0.0, grain: GRAIN_MIN }
    }

    /// Notes a spending. Times must not go backwards.
    pub(crate) fn spend(&mut self, now: Duration, amount: f64) {
        self.total += amount;
        match self.entries.back_mut() {
            Some(last) if now.saturating_sub(last.opened) < self.grain => {
                last.latest = now;
                last.total = self.total;
            }
            _ => self.entries.push_back(Entry { opened: now, latest: now, total: self.total }),
        }
        if self.entries.len() > ENTRIES_MAX {
            self.coarsen();
        }
    }

    /// Everything ever spent.
    pub(crate) fn total(&self) -> f64 {
        self.total
    }

    /// Everything spent at or before `time`.
    pub(crate) fn total_at(&self, time: Duration) -> f64 {
        let after = self.entries.partition_point(|entry| entry.latest <= time);
        if after == 0 { self.forgotten } else { self.entries[after - 1].total }
    }

    /// What was spent in the window that ends at `now`, its start excluded. `now` may lie in the future.
    pub(crate) fn within(&self, now: Duration, window: Duration) -> f64 {
        match now.checked_sub(window) {
            Some(start) => self.total - self.total_at(start),
            None => self.total - self.forgotten,
        }
    }

    /// The first moment at which no more than `allowed` of what was spent so far is in the window; `None` if `allowed`
    /// is negative.
    pub(crate) fn free_at(&self, window: Duration, allowed: f64) -> Option<Duration> {
        if allowed < 0.0 {
            return None;
        }
        if self.total - self.forgotten <= allowed {
            return Some(Duration::ZERO);
        }
        let last_to_leave = self.entries.partition_point(|entry| self.total - entry.total > allowed);
        self.entries.get(last_to_leave).map(|entry| entry.latest + window)
    }

    /// When the running total first reached `total`.
    pub(crate) fn time_of(&self, total: f64) -> Option<Duration> {
        if total <= self.forgotten {
            return None;
        }
        self.entries.get(self.entries.partition_point(|entry| entry.total < total)).map(|entry| entry.latest)
    }

    /// The first and the last spending remembered.
    pub(crate) fn span(&self) -> Option<(Duration, Duration)> {
        Some((self.entries.front()?.opened, self.entries.back()?.latest))
    }

    /// The same history with every amount multiplied.
    pub(crate) fn scaled(&self, factor: f64) -> Self {
        let entries = self.entries.iter().map(|entry| Entry { total: entry.total * factor, ..*entry }).collect();
        Self { entries, total: self.total * factor, forgotten: self.forgotten * factor, grain: self.grain }
    }

    /// Drops what was spent before `time`.
    pub(crate) fn forget_before(&mut self, time: Duration) {
        while let Some(first) = self.entries.front()
            && first.latest < time
        {
            self.forgotten = first.total;
            self.entries.pop_front();
        }
    }

    fn coarsen(&mut self) {
        self.grain *= 2;
        let mut joined: VecDeque<Entry> = VecDeque::with_capacity(self.entries.len());
        for entry in self.entries.drain(..) {
            match joined.back_mut() {
                Some(last) if entry.latest.saturating_sub(last.opened) < self.grain => {
                    last.latest = entry.latest;
                    last.total = entry.total;
                }
                _ => joined.push_back(entry),
            }
        }
        self.entries = joined;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn spendings_leave_the_window_one_by_one() {
        let mut meter = Meter::new();
        for second in 1..=5 {
            meter.spend(at(second * 1000), 2.0);
        }
        let window = at(3000);
        assert!((meter.within(at(5000), window) - 6.0).abs() < 1e-9);
        assert!((meter.within(at(6500), window) - 4.0).abs() < 1e-9);
        assert_eq!(meter.free_at(window, 4.0), Some(at(6000)));
        assert_eq!(meter.free_at(window, 0.0), Some(at(8000)));
        assert_eq!(meter.free_at(window, 10.0), Some(Duration::ZERO));
        assert_eq!(meter.free_at(window, -1.0), None);
        assert_eq!(meter.time_of(5.0), Some(at(3000)));
        meter.forget_before(at(2500));
        assert!((meter.within(at(5000), at(60_000)) - 6.0).abs() < 1e-9);
        assert_eq!(meter.time_of(4.0), None);
    }

    #[test]
    fn memory_is_bounded_and_never_forgets_early() {
        let mut meter = Meter::new();
        for step in 0..100_000_u64 {
            meter.spend(at(step), 1.0);
        }
        assert!(meter.entries.len() <= ENTRIES_MAX);
        let counted = meter.within(at(99_999), at(10_000));
        assert!((10_000.0..10_100.0).contains(&counted), "{counted}");
    }
}
