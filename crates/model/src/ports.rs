//! The ports between layers: where rows come from, where they go, and who watches.
//!
//! ```text
//!  RowSource::read_page(table, page, sink) ──▶ sink.row(row) …  on a blocking thread, row by row
//!                                          ──▶ sink.restarted()  when the page has to be read again
//!                                          ◀── PageEnd { next, delta }
//! ```
//!
//! A page may be delivered more than once in part: the source retries inside `read_page`. A sink must therefore be
//! idempotent by row id, the newest delivery winning. That is also what the service itself asks for, since its paging
//! is not a snapshot (`dataverse` protocol, sections 3.1 and 4.4).

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    ContentColumn, ContentItem, Row, RowId, SourceError, TableListing, TableMode, TableSchema, TableStatus, Tally,
};

/// What travels with every request: where to count and how to be stopped.
#[derive(Debug, Clone)]
pub struct Call {
    /// Where requests and bytes are counted.
    pub tally: Arc<Tally>,
    /// Set when the operator stops the run.
    pub cancel: CancellationToken,
}

/// The sink does not take more; it holds its own error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped;

/// A row the service reported as gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deletion {
    /// Key of the row as the service sent it, e.g. a GUID.
    pub key: String,
    /// The service's reason, e.g. `deleted`.
    pub reason: String,
}

/// Takes rows on a blocking thread.
pub trait RowSink: Send {
    /// One live row. Must be idempotent by row id.
    fn row(&mut self, row: &Row<'_>) -> Result<(), Stopped>;

    /// One deletion.
    fn deleted(&mut self, deletion: Deletion) -> Result<(), Stopped>;

    /// A row larger than the source may hold was passed over. `start` is its first bytes, for naming it.
    fn oversized(&mut self, start: &[u8], bytes: u64) -> Result<(), Stopped>;

    /// The current page is read again from its first row.
    fn restarted(&mut self);

    /// Largest row, in bytes, that may be held in memory.
    fn row_bytes_max(&self) -> usize;
}

/// A sink as the source sees it. The source locks it while it delivers, the owner between pages.
pub type SharedSink = Arc<Mutex<dyn RowSink>>;

/// Takes the bytes of one piece of content on a blocking thread.
pub trait ContentSink: Send {
    /// The next bytes.
    fn write(&mut self, bytes: &[u8]) -> Result<(), Stopped>;

    /// The content is read again from its first byte.
    fn restarted(&mut self);
}

/// A content sink as the source sees it.
pub type SharedContentSink = Arc<Mutex<dyn ContentSink>>;

/// Which page to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PageRequest {
    /// The first page of a full read; with `tracked`, the last page ends in a delta token.
    First {
        /// Whether a delta token is wanted.
        tracked: bool,
    },
    /// A next link or a delta link, exactly as the service gave it.
    Link(String),
}

/// What a page said after its rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageEnd {
    /// Link of the next page; none on the last.
    pub next: Option<String>,
    /// Delta link, on the last page of a tracked read.
    pub delta: Option<String>,
    /// Version of the environment's metadata, where the service tells.
    pub metadata_version: Option<String>,
}

/// What content reading learned besides the bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContentEnd {
    /// File name, where the service tells.
    pub name: Option<String>,
    /// MIME type, where the service tells.
    pub mime: Option<String>,
    /// What was captured, when it is less than the original, e.g. `thumbnail`.
    pub note: Option<String>,
}

/// Who the environment says it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvironmentIdentity {
    /// Stable id of the database (`OrganizationId`).
    pub organization_id: String,
    /// Stable id of the environment, where the service tells.
    pub environment_id: Option<String>,
    /// Tenant, where the service tells.
    pub tenant_id: Option<String>,
    /// Name for people, where the service tells.
    pub friendly_name: Option<String>,
    /// Version of the service, where it tells.
    pub version: Option<String>,
    /// Base currency, which must match before a restore.
    pub base_currency_id: Option<String>,
    /// Days after which an unused change token expires.
    pub change_tracking_days: Option<u32>,
    /// The calling user.
    pub user_id: String,
}

/// An environment, for reading.
#[async_trait]
pub trait RowSource: Send + Sync {
    /// Signs in and asks who is there.
    async fn identity(&self, call: &Call) -> Result<EnvironmentIdentity, SourceError>;

    /// All tables, readable or not.
    async fn discover(&self, call: &Call) -> Result<Vec<TableListing>, SourceError>;

    /// The present schema of one table, for a table whose metadata changed while it was being read.
    async fn rediscover(&self, table: &TableSchema, call: &Call) -> Result<TableListing, SourceError>;

    /// Reads one page into `sink`. Retries inside; see [`RowSink::restarted`].
    async fn read_page(
        &self,
        table: &TableSchema,
        page: &PageRequest,
        sink: SharedSink,
        call: &Call,
    ) -> Result<PageEnd, SourceError>;

    /// Whether a row exists now; settles a row that one delta lists both as changed and as deleted.
    async fn is_live(&self, table: &TableSchema, key: &str, call: &Call) -> Result<bool, SourceError>;

    /// Reads the bytes of one piece of content into `sink`. Retries inside.
    async fn read_content(
        &self,
        table: &TableSchema,
        column: &ContentColumn,
        item: &ContentItem,
        sink: SharedContentSink,
        call: &Call,
    ) -> Result<ContentEnd, SourceError>;

    /// Approximate row counts for progress; tables may be missing. Never used to decide anything.
    async fn approximate_rows(&self, tables: &[TableSchema], call: &Call) -> Result<Vec<(String, u64)>, SourceError>;

    /// Time by the service's clock at the last answer, where it tells; for the window of the cut.
    fn service_time(&self) -> Option<Timestamp>;
}

/// Something worth showing while a run goes on.
#[derive(Debug, Clone)]
pub enum TableEvent {
    /// The tables of the run are known.
    Planned {
        /// Tables to be read.
        tables: usize,
        /// Rows expected, where the service told.
        rows: Option<u64>,
    },
    /// A table is being read.
    Started {
        /// Logical name.
        table: String,
        /// How it is read.
        mode: TableMode,
    },
    /// A table is finished.
    Finished {
        /// Logical name.
        table: String,
        /// How it fared.
        status: TableStatus,
        /// Rows stored.
        rows: u64,
    },
    /// Rows were written into the environment, or found to be right already.
    Written {
        /// Logical name.
        table: String,
        /// Rows.
        rows: u64,
    },
    /// Tables are done; the snapshot is being committed.
    Committing,
    /// Something surprising that was recovered from.
    Notice {
        /// The table, if it concerns one.
        table: Option<String>,
        /// One sentence.
        message: String,
    },
}

/// Watches a run. Calls come from any thread and must return at once.
pub trait Observer: Send + Sync {
    /// Something happened.
    fn event(&self, event: TableEvent);
}

impl Observer for () {
    fn event(&self, _event: TableEvent) {}
}

/// Key and id of a row from its key members, if they are all there.
impl TableSchema {
    /// The row's id, and its key as the service addresses it.
    pub fn row_id(&self, row: &Row<'_>) -> Option<RowId> {
        match self.key.as_slice() {
            [single] => row.get(single).filter(|token| *token != b"null").map(|token| RowId::of_key(&[token])),
            several => {
                let tokens: Option<Vec<&[u8]>> = several.iter().map(|member| row.get(member)).collect();
                tokens.map(|tokens| RowId::of_key(&tokens))
            }
        }
    }
}
