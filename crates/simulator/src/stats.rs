//! What was asked of the simulator.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use crate::config::FaultKind;

/// Counts since the start or the last reset.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Stats {
    /// Requests to the environment and the token endpoint, without the control interface.
    pub requests: u64,
    /// Requests by table, for those about rows or files.
    pub by_table: BTreeMap<String, u64>,
    /// Requests by kind: `page`, `delta`, `row`, `count`, `metadata`, `file`, `token`, `other`.
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
