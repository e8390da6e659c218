//! How many rows go into one request (`dataverse`, sections 5.5, 5.6, 6.11, 6.12).
//!
//! A size starts where Microsoft's advice puts it and stays there, so that a plan can say how many requests it takes. It only goes
//! down, by half, when requests of a table take much longer than the ten seconds that public clients aim at: a request that
//! takes four minutes is cut on its way, and nobody knows what became of it.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use dynavault_model::WriteKind;

use crate::source::lock;

/// Rows of a bulk message; 100 to 1,000 are advised.
pub(crate) const BULK_ROWS: usize = 500;
/// Rows of a bulk message of a table in a document database.
pub(crate) const ELASTIC_ROWS: usize = 100;
/// Rows of a batch: each is a transaction of its own, so that 100 take about as long as 500 of a bulk message.
pub(crate) const BATCH_ROWS: usize = 100;
/// Links of a batch: small, and without custom logic in most environments.
pub(crate) const LINK_ROWS: usize = 250;
/// A size is not lowered below this.
const ROWS_MIN: usize = 10;
/// A request that takes longer halves the size. The time includes waiting for leave to send, so it is generous.
const SLOW: Duration = Duration::from_secs(30);

/// Sizes by table and kind, where they were lowered.
#[derive(Debug, Default)]
pub(crate) struct Sizes(Mutex<HashMap<(String, WriteKind), usize>>);

impl Sizes {
    /// Most rows of the next request, where `start` is the size that the kind begins with.
    pub(crate) fn get(&self, table: &str, kind: WriteKind, start: usize) -> usize {
        lock(&self.0).get(&(table.to_string(), kind)).copied().unwrap_or(start).min(start)
    }

    /// Learns from a request of `rows` rows that took so long.
    pub(crate) fn took(&self, table: &str, kind: WriteKind, rows: usize, time: Duration) {
        if time <= SLOW || rows <= ROWS_MIN {
            return;
        }
        let lowered = (rows / 2).max(ROWS_MIN);
        let mut sizes = lock(&self.0);
        let size = sizes.entry((table.to_string(), kind)).or_insert(lowered);
        *size = (*size).min(lowered);
        tracing::warn!(
            table,
            rows = *size,
            seconds = time.as_secs(),
            "writing takes long; sending fewer rows at a time"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_stay_until_requests_are_slow_and_never_grow() {
        let sizes = Sizes::default();
        let get = || sizes.get("account", WriteKind::Create, BULK_ROWS);
        sizes.took("account", WriteKind::Create, 500, Duration::from_secs(29));
        assert_eq!(get(), 500);
        sizes.took("account", WriteKind::Create, 500, Duration::from_secs(60));
        assert_eq!(get(), 250);
        sizes.took("account", WriteKind::Create, 3, Duration::from_secs(60));
        sizes.took("account", WriteKind::Create, 250, Duration::from_secs(1));
        assert_eq!(get(), 250);
        for _ in 0..10 {
            sizes.took("account", WriteKind::Create, get(), Duration::from_secs(60));
        }
        assert_eq!(get(), ROWS_MIN);
        assert_eq!(sizes.get("account", WriteKind::Delete, BATCH_ROWS), BATCH_ROWS);
    }
}
