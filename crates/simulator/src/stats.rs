//! What was asked of the simulator.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::config::FaultKind;
use crate::write::{RowWrites, Tally};

/// Counts since the start or the last reset.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Requests to the environment and the token endpoint, without the control interface.
    pub requests: u64,
    /// Requests by table, for those about rows or files.
    pub by_table: BTreeMap<String, u64>,
    /// Requests by kind: `page`, `delta`, `row`, `count`, `metadata`, `file`, `token`, `other`; for writes `create`, `update`,
    /// `upsert`, `delete`, `link`, `upload`, `message`, `batch` and the four `…_multiple`; for sign-in `authorize`,
    /// `devicecode`, `adminconsent`, `metadata_of_tenant`, `keys`; `graph`.
    pub by_kind: BTreeMap<String, u64>,
    /// Requests by client id.
    pub by_client: BTreeMap<String, u64>,
    /// Answers by HTTP status.
    pub by_status: BTreeMap<u16, u64>,
    /// 429 answers, from limits and from faults.
    pub throttled: u64,
    /// Requests that arrived while their user had to wait (dataverse 5.1, RULE 5.2).
    pub sent_while_blocked: u64,
    /// Most requests handled at once.
    pub max_in_flight: usize,
    /// Execution time charged, in seconds.
    pub execution_seconds: f64,
    /// Requests for a URL (and range) that had been answered well before.
    pub repeated: u64,
    /// Requests that returned the affinity cookie (dataverse 5.1 asks not to).
    pub cookies_returned: u64,
    /// Bytes of bodies sent, after compression.
    pub bytes_sent: u64,
    /// Injected faults: request number and kind.
    pub faults: Vec<(u64, FaultKind)>,
    /// Requests answered 401.
    pub unauthorized: u64,
    /// Operations by kind (`create`, `update`, `upsert`, `delete`, `link`, `upload`, `message`, `create_multiple` …), those
    /// inside of batches one by one; what was refused counts too.
    pub operations: BTreeMap<String, u64>,
    /// Rows that clients wrote, by table.
    pub rows_written: BTreeMap<String, RowWrites>,
    /// Requests with at least one write, refused ones included; a batch counts once, and one that only reads does not.
    pub write_requests: u64,
    /// Times the custom plug-ins ran.
    pub plugins_run: u64,
    /// Cloud flows started.
    pub flows_started: u64,
}

impl Stats {
    /// Adds what one write did.
    pub(crate) fn add_writes(&mut self, tally: Tally) {
        self.write_requests += u64::from(!tally.operations.is_empty());
        for (kind, count) in tally.operations {
            *self.operations.entry(kind.to_owned()).or_default() += count;
        }
        for (table, rows) in tally.rows {
            let sum = self.rows_written.entry(table).or_default();
            sum.created += rows.created;
            sum.updated += rows.updated;
            sum.deleted += rows.deleted;
        }
        self.plugins_run += tally.plugins;
        self.flows_started += tally.flows;
    }
}

/// Counters with what they need to count.
#[derive(Debug, Default)]
pub(crate) struct Counter {
    pub(crate) stats: Stats,
    pub(crate) in_flight: usize,
    seen: HashSet<u64>,
}

impl Counter {
    pub(crate) fn begin(&mut self) {
        self.stats.requests += 1;
        self.in_flight += 1;
        self.stats.max_in_flight = self.stats.max_in_flight.max(self.in_flight);
    }

    /// Remembers a URL that was answered well; counts it when it had been before.
    pub(crate) fn served(&mut self, url: u64) {
        if !self.seen.insert(url) {
            self.stats.repeated += 1;
        }
    }

    pub(crate) fn reset(&mut self) {
        self.stats = Stats::default();
        self.seen.clear();
    }
}
