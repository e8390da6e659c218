//! Checking the vault.

use dynavault_vault::{VerifyOptions, VerifyReport, verify_environment};
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
        let environments = match environment {
            Some(name) => vec![name],
            None => vault.environments().await?,
        };
        blocking(move || {
            let mut report = VerifyReport::default();
            for environment in &environments {
                verify_environment(&vault, &Handle::current(), environment, options, &cancel, &mut report)?;
            }
            Ok(report)
        })
        .await
    }
}
