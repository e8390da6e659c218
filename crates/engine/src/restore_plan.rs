//! Planning a restore: which snapshot, into which environment, by which rules.

use std::path::{Path, PathBuf};

use dynavault_restore::{ConflictPolicy, PlanFile};

use crate::failure::Failure;
use crate::inspect::SnapshotWanted;
use crate::restore::Restore;

/// What to restore and how.
#[derive(Debug, Clone, Default)]
pub struct RestoreRequest {
    /// Configured name of the environment that was backed up.
    pub environment: String,
    /// Which snapshot.
    pub snapshot: SnapshotWanted,
    /// Only tables that match; empty means all.
    pub tables: Vec<String>,
    /// Only these rows.
    pub ids: Vec<String>,
    /// Only rows for which this holds.
    pub filter: Option<String>,
    /// Only these columns of rows that exist.
    pub columns: Vec<String>,
    /// Levels of rows that the selected ones refer to.
    pub up: u32,
    /// Levels of rows that refer to the selected ones.
    pub down: u32,
    /// Only rows that no longer exist.
    pub deleted_only: bool,
    /// Configured name of the environment to write into, if it is another one.
    pub to: Option<String>,
    /// Mapping file.
    pub map: Option<PathBuf>,
    /// What to do with values that differ.
    pub conflict: ConflictPolicy,
    /// Delete what the snapshot does not have.
    pub mirror: bool,
    /// Let custom logic run.
    pub run_automation: bool,
    /// Make rows on behalf of the user who made them.
    pub as_creator: bool,
}

impl Restore<'_> {
    /// Makes a plan and writes it to `out`. Reads the vault and the environment, writes neither.
    #[expect(clippy::unused_async, reason = "in progress")]
    pub async fn plan(&self, request: &RestoreRequest, out: &Path) -> Result<PlanFile, Failure> {
        Err(Failure::usage(format!("{:?} {}", request, out.display()), "in progress"))
    }
}
