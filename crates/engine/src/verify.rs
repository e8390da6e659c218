//! Checking the vault.

use std::collections::{BTreeMap, BTreeSet};

use dynavault_model::SnapshotId;
use dynavault_vault::{Remembered, VerifyOptions, VerifyReport, verify_environment};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::assemble::{Engine, VaultUse};
use crate::failure::Failure;
use crate::inspect::blocking;

impl Engine {
    /// Checks the snapshots of one environment, or of all that the vault has.
    pub async fn verify(
        &self,
        environment: Option<String>,
        options: VerifyOptions,
        cancel: CancellationToken,
    ) -> Result<VerifyReport, Failure> {
        let vault = self.vault(VaultUse::Read).await?;
        let mut known: BTreeMap<String, BTreeMap<SnapshotId, Remembered>> = BTreeMap::new();
        for snapshot in self.catalog().await?.snapshots(environment.as_deref()).await? {
            let remembered = Remembered { sha256: snapshot.sha256, encrypted: snapshot.encrypted };
            known.entry(snapshot.environment).or_default().insert(snapshot.snapshot, remembered);
        }
        let environments = match environment {
            Some(name) => BTreeSet::from([name]),
            None => vault.environments().await?.into_iter().chain(known.keys().cloned()).collect(),
        };
        blocking(move || {
            let mut report = VerifyReport::default();
            for environment in &environments {
                let known = known.remove(environment).unwrap_or_default();
                verify_environment(&vault, &Handle::current(), environment, options, &known, &cancel, &mut report)?;
            }
            Ok(report)
        })
        .await
    }
}
