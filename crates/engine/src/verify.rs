//! Checking the vault.

use std::collections::{BTreeMap, BTreeSet};

use dynavault_model::{SegmentId, SnapshotId};
use dynavault_vault::{Damage, Remembered, VerifyOptions, VerifyReport, verify_environment};
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
        if let Some(name) = &environment {
            self.known_environment(&vault, name).await?;
        }
        let mut known: BTreeMap<String, BTreeMap<SnapshotId, Remembered>> = BTreeMap::new();
        for snapshot in self.catalog().await?.snapshots(environment.as_deref()).await? {
            let remembered = Remembered { sha256: snapshot.sha256, encrypted: snapshot.encrypted };
            known.entry(snapshot.environment).or_default().insert(snapshot.snapshot, remembered);
        }
        let environments = match environment {
            Some(name) => BTreeSet::from([name]),
            None => vault.environments().await?.into_iter().chain(known.keys().cloned()).collect(),
        };
        let checked = environments.clone();
        let report = blocking(move || {
            let mut report = VerifyReport::default();
            for environment in &environments {
                let known = known.remove(environment).unwrap_or_default();
                verify_environment(&vault, &Handle::current(), environment, options, &known, &cancel, &mut report)?;
            }
            Ok(report)
        })
        .await?;
        // The next backup of this host builds upon nothing that was found damaged.
        let catalog = self.catalog().await?;
        for environment in &checked {
            let damaged = report.damage.iter().filter_map(|damage| damaged_segment(environment, damage)).collect();
            catalog.note_damage(environment, damaged, options.sample_percent >= 100).await?;
        }
        Ok(report)
    }
}

/// Table and segment of a finding, if it concerns a segment of the environment.
fn damaged_segment(environment: &str, damage: &Damage) -> Option<(String, SegmentId)> {
    let table = damage.table.as_ref()?;
    let object = damage.object.strip_prefix(&format!("environments/{environment}/tables/{table}/"))?;
    Some((table.clone(), object.split('.').next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_names_its_segment_whatever_its_kind() {
        let id = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
        let found = |object: &str, table: Option<&str>| {
            let (object, detail, table) = (object.to_string(), String::new(), table.map(str::to_string));
            damaged_segment("prod", &Damage { object, detail, table, rows: 1, snapshots: Vec::new() })
        };
        for end in [".jsonl.zst", ".jsonl.zst.age", ".deleted.jsonl.zst", ".content.jsonl.zst.age"] {
            let name = format!("environments/prod/tables/account/{id}{end}");
            assert_eq!(found(&name, Some("account")), Some(("account".to_string(), id.parse().unwrap())));
            assert_eq!(found(&name.replace("/prod/", "/test/"), Some("account")), None);
        }
        assert_eq!(found("environments/prod/content/aa/aabb", None), None);
    }
}
