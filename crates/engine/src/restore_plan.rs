//! Planning a restore: which snapshot, into which environment, by which rules.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dynavault_model::{EnvironmentIdentity, WriteOptions};
use dynavault_restore::{ConflictPolicy, PlanFile, PlanRequest, PlanTarget, RestoreError, Selection};

use crate::TOOL;
use crate::assemble::VaultUse;
use crate::failure::Failure;
use crate::inspect::{SnapshotWanted, blocking, find_manifest};
use crate::restore::Restore;

/// What to restore and how.
#[derive(Debug, Clone, Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent choices, each a flag of the command")]
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
    pub async fn plan(&self, request: &RestoreRequest, out: &Path) -> Result<PlanFile, Failure> {
        let name = request.to.as_ref().unwrap_or(&request.environment);
        let target = self.target(name)?;
        let vault = self.engine.vault(VaultUse::Read).await?;
        let manifest = find_manifest(&vault, &request.environment, &request.snapshot).await?;
        let call = self.call();
        let identity = target.source.identity(&call).await.map_err(RestoreError::from)?;
        same_place(&manifest.identity, &identity, request.to.as_deref())?;
        let abilities = target.writes.abilities(&call).await.map_err(RestoreError::from)?;
        let listings = target.source.discover(&call).await.map_err(RestoreError::from)?;
        let scratch = self.scratch(name)?;
        let plan = PlanRequest {
            selection: Selection {
                tables: request.tables.clone(),
                ids: request.ids.clone(),
                filter: request.filter.clone(),
                up: request.up,
                down: request.down,
                deleted_only: request.deleted_only,
            },
            conflict: request.conflict,
            columns: request.columns.clone(),
            mirror: request.mirror,
            as_creator: request.as_creator,
            options: WriteOptions { bypass_logic: !request.run_automation, suppress_flows: !request.run_automation },
            mapping: request.map.clone(),
            tool: TOOL.to_string(),
        };
        let parts = PlanTarget {
            rows: target.source,
            writes: target.writes,
            listings,
            abilities,
            identity,
            name: name.clone(),
        };
        let (observer, clock) = (Arc::clone(&self.observer), Arc::clone(self.engine.clock()));
        dynavault_restore::plan(&vault, Arc::new(manifest), parts, plan, &scratch, out, observer, clock, &call).await?;
        let out = out.to_path_buf();
        blocking(move || Ok(PlanFile::open(&out)?)).await
    }
}

/// A snapshot goes back to where it came from, unless another place was named.
fn same_place(captured: &EnvironmentIdentity, live: &EnvironmentIdentity, to: Option<&str>) -> Result<(), Failure> {
    if to.is_some() || captured.organization_id.eq_ignore_ascii_case(&live.organization_id) {
        return Ok(());
    }
    Err(Failure::usage(
        format!(
            "the snapshot is of organization {}, and the environment is now organization {}",
            captured.organization_id, live.organization_id
        ),
        "if that is what you want, name the environment with --to, so that users and currencies are mapped",
    ))
}
