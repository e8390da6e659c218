//! The backup data path: pages from a source, rows into segments, checkpoints behind them, a manifest at the end.
//!
//! ```text
//! RowSource ─▶ TableSink (compare, encode, compress) ─▶ durable segment ─▶ checkpoint
//!     one task per table, a few at a time                        all tables done ─▶ manifest ─▶ catalog
//! ```
//!
//! Backpressure is by construction: a page is split on the thread that compresses its rows and writes them to the store,
//! so nothing is read faster than it is stored. Memory is divided up front, see [`MemoryBudget`].

mod budget;
mod commit;
mod content_run;
mod environment_run;
mod error;
mod journal;
mod mode;
mod outcome;
mod prior;
mod progress;
mod sink;
mod state;
mod table_run;

use std::time::Duration;

pub use budget::MemoryBudget;
pub use commit::committed;
pub use environment_run::{BackupOptions, BackupParts, EnvironmentRun, Selection, TableFilter, TablePlan};
pub use error::PipelineError;
pub use mode::{PlannedMode, prior_tables};
pub use state::StateError;

/// When a segment is cut. Small segments lose little in a crash, large ones compress better and are fewer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentLimits {
    /// Row JSON in a segment, in bytes.
    pub bytes_max: u64,
    /// Rows in a segment; bounds the index held in memory to 32 bytes each.
    pub rows_max: u32,
    /// Longest time a row waits for its segment to be durable, checked at the end of each page.
    pub age_max: Duration,
}

impl Default for SegmentLimits {
    fn default() -> Self {
        Self { bytes_max: 64 << 20, rows_max: 1 << 18, age_max: Duration::from_secs(60) }
    }
}
