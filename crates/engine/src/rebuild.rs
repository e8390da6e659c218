//! The catalog from the vault alone.

use dynavault_pipeline::committed;
use serde::Serialize;

use crate::assemble::{Engine, VaultUse};
use crate::failure::Failure;
use crate::local_lock::LocalLock;

/// What a rebuild found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RebuildStats {
    /// Environments.
    pub environments: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Snapshots whose manifests cannot be read with the keys at hand.
    pub unreadable: u64,
    /// Snapshots whose manifests are damaged; `verify` names them.
    pub damaged: u64,
}

impl Engine {
    /// Records every snapshot of the vault in the catalog. History of runs that the catalog still has stays.
    pub async fn rebuild_catalog(&self) -> Result<RebuildStats, Failure> {
        let vault = self.vault(VaultUse::Read).await?;
        let catalog = self.catalog().await?;
        let mut stats = RebuildStats::default();
        for environment in vault.environments().await? {
            stats.environments += 1;
            // What a backup that goes on here remembers must not be taken from under it.
            let _held = LocalLock::take(&self.state_folder(&environment)?, &environment, "backup of").await?;
            catalog.forget_environment(&environment).await?;
            for object in vault.snapshots(&environment).await? {
                match vault.manifest(&environment, &object).await {
                    Ok((manifest, sha256)) => {
                        catalog.finish_run(&manifest.report).await?;
                        catalog.adopt_snapshot(&environment, committed(&manifest, object.encrypted, &sha256)).await?;
                        stats.snapshots += 1;
                    }
                    Err(dynavault_vault::VaultError::NoKey { .. }) => stats.unreadable += 1,
                    // One damaged manifest must not keep the others from being known.
                    Err(dynavault_vault::VaultError::Damaged { .. }) => stats.damaged += 1,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(stats)
    }
}
