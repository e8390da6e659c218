//! The documents of a vault: `dynavault.json`, one manifest per snapshot, schema objects. JSON, so that people can read them.

use dynavault_model::{
    EnvironmentIdentity, Refusal, RunId, RunReport, SchemaDrift, SegmentId, SnapshotId, TableMode, TableStatus,
    UnobservedInterval,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The format this version reads and writes.
pub const FORMAT: u32 = 1;

/// `dynavault.json` at the root of a vault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VaultDescription {
    /// Format version.
    pub format: u32,
    /// Id of the vault.
    pub vault: String,
    /// When it was made.
    pub created: Timestamp,
    /// Recipients at that time; public keys. What is encrypted to whom is in each object's own header.
    pub recipients: Vec<String>,
    /// Program and version that made it.
    pub tool: String,
}

/// What a segment holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SegmentKind {
    /// Rows.
    Rows,
    /// Tombstones.
    Deleted,
    /// References from rows to content objects.
    Content,
}

/// One segment as a manifest lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SegmentInfo {
    /// The segment.
    pub id: SegmentId,
    /// What it holds.
    pub kind: SegmentKind,
    /// Rows in its index.
    pub rows: u64,
    /// Rows in its frames; more than `rows` when a page was read again.
    pub rows_stored: u64,
    /// Bytes of row JSON.
    pub bytes_raw: u64,
    /// Size of the object.
    pub bytes_stored: u64,
    /// SHA-256 of the object's bytes, in hexadecimal.
    pub sha256: String,
    /// Whether the object is inside an age layer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub encrypted: bool,
}

/// How completely a table was captured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    /// Rows the service said there are (a cached figure, up to a day old), if it said so.
    pub expected: Option<u64>,
    /// Rows in the snapshot.
    pub captured: u64,
    /// Rows, or pieces of content, that could not be captured.
    pub refused: u64,
    /// Why.
    pub reason: Option<String>,
}

/// A delta token and what it belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeltaToken {
    /// The delta link, exactly as the service gave it.
    pub link: String,
    /// When it was given.
    pub time: Timestamp,
}

/// The time in which a cut was taken. Paging is not a snapshot, so a table's rows are of this stretch, not of an instant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutWindow {
    /// Start of the first read.
    pub first_read: Timestamp,
    /// End of the last read.
    pub last_read: Timestamp,
    /// Our clock minus the service's, in seconds, where it tells.
    pub skew_seconds: Option<i64>,
}

/// One table of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableManifest {
    /// Logical name.
    pub table: String,
    /// URL segment.
    pub entity_set: String,
    /// Members that make up the key.
    pub key: Vec<String>,
    /// How the run read it.
    pub mode: TableMode,
    /// How it fared. A table that failed keeps the segments of the last good capture, if there is one.
    pub status: TableStatus,
    /// Snapshot whose run captured the state; differs from this one when the table failed.
    pub captured_by: SnapshotId,
    /// Hash of the schema object.
    pub schema: String,
    /// Ordered: the newest version of a row id wins, tombstones remove.
    pub segments: Vec<SegmentInfo>,
    /// Rows in the snapshot.
    pub live_rows: u64,
    /// How completely it was captured.
    pub coverage: Coverage,
    /// Token for the next incremental.
    pub delta: Option<DeltaToken>,
    /// When it was read.
    pub window: CutWindow,
    /// Time in which changes could not be observed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unobserved: Option<UnobservedInterval>,
    /// How its columns differ from the snapshot before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema_drift: Option<SchemaDrift>,
}

/// A table that is in the environment and not in the snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedTable {
    /// Logical name.
    pub table: String,
    /// Why, and what can be done.
    #[serde(flatten)]
    pub refusal: Refusal,
}

/// The manifest before this one, in the same environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previous {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// SHA-256 of its manifest object's bytes, in hexadecimal.
    pub sha256: String,
}

/// The commit of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Format version.
    pub format: u32,
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Configured name of the environment.
    pub environment: String,
    /// Who the environment said it is.
    pub identity: EnvironmentIdentity,
    /// The run that committed it.
    pub run: RunId,
    /// When it was committed.
    pub created: Timestamp,
    /// The manifest before this one.
    pub previous: Option<Previous>,
    /// Tables with their segments.
    pub tables: Vec<TableManifest>,
    /// Tables that could not be read.
    pub refused: Vec<RefusedTable>,
    /// Tables left out by configuration or by the default list.
    pub excluded: Vec<String>,
    /// Tables the snapshot before had and the environment no longer has.
    pub gone: Vec<String>,
    /// When the cut was taken, over all tables.
    pub window: CutWindow,
    /// The report of the run, as known at the commit.
    pub report: RunReport,
    /// Program and version.
    pub tool: String,
}

impl Manifest {
    /// The entry of a table.
    pub fn table(&self, name: &str) -> Option<&TableManifest> {
        self.tables.iter().find(|table| table.table == name)
    }

    /// Whether everything in scope was captured.
    pub fn is_whole(&self) -> bool {
        self.refused.is_empty()
            && self.tables.iter().all(|table| table.status == TableStatus::Succeeded && table.coverage.refused == 0)
    }
}
