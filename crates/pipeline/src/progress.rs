//! What a checkpoint remembers of a table, beside its durable segments.

use dynavault_model::{TableMode, TableSchema, TallyTotals, UnobservedInterval};
use dynavault_vault::{DeltaToken, sha256_hex};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Figures of a finished table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) created: u64,
    pub(crate) changed: u64,
    pub(crate) deleted: u64,
    pub(crate) live_rows: u64,
}

/// How far a table has come. Stored as JSON in the catalog's checkpoint.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Progress {
    pub(crate) mode: TableMode,
    /// Whether the read asks for a delta token.
    pub(crate) tracked: bool,
    /// Hash of what is asked for; a different one makes the progress useless.
    pub(crate) shape: String,
    /// State files the rows are compared with, by name.
    pub(crate) base: Option<Vec<String>>,
    /// State files the content is compared with, by name.
    pub(crate) base_content: Option<Vec<String>>,
    /// State files of the draft's durable segments, in order.
    pub(crate) run_files: Vec<String>,
    /// The same for its content segments.
    pub(crate) content_files: Vec<String>,
    pub(crate) seen_bytes: u64,
    pub(crate) items_bytes: u64,
    /// How much of the items is done.
    pub(crate) items_done: u64,
    pub(crate) content_objects: u64,
    pub(crate) first_read: Timestamp,
    pub(crate) last_read: Timestamp,
    pub(crate) skew_seconds: Option<i64>,
    pub(crate) delta: Option<DeltaToken>,
    pub(crate) unobserved: Option<UnobservedInterval>,
    pub(crate) refused: u64,
    pub(crate) reasons: Vec<String>,
    pub(crate) totals: TallyTotals,
    pub(crate) counts: Option<Counts>,
}

impl Progress {
    pub(crate) fn new(mode: TableMode, schema: &TableSchema, now: Timestamp) -> Self {
        Self {
            mode,
            tracked: schema.tracked,
            shape: shape(schema),
            base: None,
            base_content: None,
            run_files: Vec::new(),
            content_files: Vec::new(),
            seen_bytes: 0,
            items_bytes: 0,
            items_done: 0,
            content_objects: 0,
            first_read: now,
            last_read: now,
            skew_seconds: None,
            delta: None,
            unobserved: None,
            refused: 0,
            reasons: Vec::new(),
            totals: TallyTotals::default(),
            counts: None,
        }
    }
}

/// Hash of what a read of the table asks for and how its rows are understood. Delta tokens and next links belong to it.
pub(crate) fn shape(schema: &TableSchema) -> String {
    let asked: Vec<(&str, &str)> =
        schema.columns.iter().map(|column| (column.member.as_str(), column.kind.as_str())).collect();
    let content: Vec<&str> = schema.content.iter().map(|column| column.column.as_str()).collect();
    let parts = serde_json::json!([schema.entity_set, schema.key, asked, content, schema.tracked]);
    sha256_hex(parts.to_string().as_bytes())
}

/// Sum of two sets of totals.
pub(crate) fn sum(a: TallyTotals, b: TallyTotals) -> TallyTotals {
    TallyTotals {
        requests: a.requests + b.requests,
        retries: a.retries + b.retries,
        throttled: a.throttled + b.throttled,
        bytes_received: a.bytes_received + b.bytes_received,
        bytes_raw: a.bytes_raw + b.bytes_raw,
        bytes_stored: a.bytes_stored + b.bytes_stored,
        rows_read: a.rows_read + b.rows_read,
        rows_stored: a.rows_stored + b.rows_stored,
    }
}
