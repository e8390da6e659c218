//! The result of a run, in the JSON shape that scripts rely on.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{RunId, SnapshotId};

/// What a run did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunKind {
    /// A backup.
    Backup,
    /// A restore.
    Restore,
    /// A check of the vault.
    Verify,
    /// Retention.
    Prune,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunStatus {
    /// Still going on.
    Running,
    /// Everything in scope was captured.
    Succeeded,
    /// A snapshot exists, with named holes.
    Partial,
    /// No snapshot.
    Failed,
    /// Stopped by the operator.
    Cancelled,
    /// The process died; a later run went on from its last durable segment.
    Interrupted,
}

/// How the rows of a table were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TableMode {
    /// Everything was read and stored.
    Full,
    /// Only the changes since the last snapshot were read.
    Delta,
    /// Everything was read, only differences were stored.
    Sweep,
}

/// How a table fared in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TableStatus {
    /// Captured whole.
    Succeeded,
    /// Cannot be read; the reason says why.
    Refused,
    /// Could not be read this time.
    Failed,
}

/// One table of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableReport {
    /// Logical name.
    pub table: String,
    /// How it was read; for a refused table, how it would have been.
    pub mode: TableMode,
    /// How it fared.
    pub status: TableStatus,
    /// Rows the service sent.
    pub rows_read: u64,
    /// Rows written into segments.
    pub rows_stored: u64,
    /// Rows that the snapshot before did not have.
    pub created: u64,
    /// Rows whose content differs from the snapshot before.
    pub changed: u64,
    /// Rows that are gone since the snapshot before.
    pub deleted: u64,
    /// Rows in this snapshot.
    pub live_rows: u64,
    /// Bytes of row JSON written into segments.
    pub bytes_raw: u64,
    /// Bytes of objects written to the vault.
    pub bytes_stored: u64,
    /// File, image and attachment objects captured by this run.
    pub content_objects: u64,
    /// Requests sent for this table.
    pub requests: u64,
    /// Rows (or pieces of content) that could not be captured.
    #[serde(default)]
    pub refused_rows: u64,
    /// Why the table or some of its rows were refused, or why it was re-read.
    pub reason: Option<String>,
    /// Time in which changes could not be observed, if the token of the snapshot before had expired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unobserved: Option<UnobservedInterval>,
    /// How the table's columns differ from the snapshot before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema_drift: Option<SchemaDrift>,
}

/// A time in which deletions followed by re-creations, and intermediate versions, could not be seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnobservedInterval {
    /// Time of the last good token.
    pub from: Timestamp,
    /// Start of the comparing read.
    pub to: Timestamp,
}

/// Columns that differ from the snapshot before.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaDrift {
    /// New columns, or all of them when the table is new.
    pub added: Vec<String>,
    /// Columns that are gone.
    pub removed: Vec<String>,
    /// Columns whose type changed.
    pub retyped: Vec<String>,
    /// The table itself is new.
    #[serde(default)]
    pub new_table: bool,
}

impl SchemaDrift {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        !self.new_table && self.added.is_empty() && self.removed.is_empty() && self.retyped.is_empty()
    }
}

/// The whole result of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunReport {
    /// The run.
    pub run: RunId,
    /// What it did.
    pub kind: RunKind,
    /// Configured name of the environment.
    pub environment: String,
    /// How it ended.
    pub status: RunStatus,
    /// The snapshot it made, if it made one.
    pub snapshot: Option<SnapshotId>,
    /// Start of the run.
    pub started: Timestamp,
    /// End of the run.
    pub finished: Option<Timestamp>,
    /// One entry a table.
    pub tables: Vec<TableReport>,
    /// Tables left out by configuration or by the default list.
    #[serde(default)]
    pub excluded: Vec<String>,
    /// Tables the snapshot before had and the environment no longer has.
    #[serde(default)]
    pub gone: Vec<String>,
    /// Requests sent to the environment, retries included.
    pub requests: u64,
    /// Requests sent again after a failure.
    pub retries: u64,
    /// Answers that asked to slow down.
    pub throttled: u64,
    /// Bytes of reply bodies on the wire.
    pub bytes_received: u64,
    /// Bytes of row JSON written into segments.
    pub bytes_raw: u64,
    /// Bytes of objects written to the vault.
    pub bytes_stored: u64,
    /// Highest resident size of the process, where the system tells.
    pub peak_memory_bytes: u64,
    /// The run whose unfinished work this one took over.
    #[serde(default)]
    pub resumed_from: Option<RunId>,
    /// Why the run failed, if it did.
    #[serde(default)]
    pub error: Option<String>,
}
