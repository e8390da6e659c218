//! Looking: environments, snapshots, runs.

use dynavault_catalog::{RunFilter, RunSummary};
use dynavault_model::{FaultKind, RunId, RunKind, RunStatus, SnapshotId};
use dynavault_vault::{Manifest, SnapshotObject, Vault, VaultError};
use jiff::Timestamp;
use serde::Serialize;

use crate::assemble::{Engine, VaultUse};
use crate::config::nearest;
use crate::failure::Failure;
use crate::local_lock::{LocalLock, RESTORE};

/// Which snapshot is meant.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum SnapshotWanted {
    /// The newest.
    #[default]
    Latest,
    /// This one.
    Id(SnapshotId),
    /// The newest committed at or before a time.
    At(Timestamp),
}

/// A snapshot in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnapshotLine {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// Configured name of the environment.
    pub environment: String,
    /// When it was committed.
    pub created: Timestamp,
    /// Whether everything in scope was captured; unknown when its manifest cannot be read here.
    pub whole: Option<bool>,
    /// Tables.
    pub tables: Option<u64>,
    /// Rows over all tables.
    pub rows: Option<u64>,
    /// Whether it is encrypted.
    pub encrypted: bool,
}

impl Engine {
    /// Snapshots of one environment or of all, oldest first, as the vault has them. A host that cannot read the vault is told
    /// what its catalog knows.
    pub async fn snapshots(&self, environment: Option<&str>) -> Result<Vec<SnapshotLine>, Failure> {
        let known = self.catalog().await?.snapshots(environment).await?;
        let vault = self.vault(VaultUse::Read).await?;
        let environments = match environment {
            Some(name) => vec![name.to_string()],
            None => vault.environments().await?,
        };
        let mut lines = Vec::new();
        for name in environments {
            for object in vault.snapshots(&name).await? {
                let cached = known.iter().find(|known| known.snapshot == object.id && known.environment == name);
                let line = match (cached, vault.can_read() || !object.encrypted) {
                    (Some(cached), false) => SnapshotLine {
                        snapshot: object.id,
                        environment: name.clone(),
                        created: cached.created,
                        whole: Some(cached.whole),
                        tables: None,
                        rows: Some(cached.rows),
                        encrypted: object.encrypted,
                    },
                    (None, false) => unreadable(&name, &object),
                    (_, true) => match vault.manifest(&name, &object).await {
                        Ok((manifest, _)) => SnapshotLine {
                            snapshot: object.id,
                            environment: name.clone(),
                            created: manifest.created,
                            whole: Some(manifest.is_whole()),
                            tables: Some(manifest.tables.len() as u64),
                            rows: Some(manifest.tables.iter().map(|table| table.live_rows).sum()),
                            encrypted: object.encrypted,
                        },
                        Err(VaultError::NoKey { .. } | VaultError::Damaged { .. }) => unreadable(&name, &object),
                        Err(error) => return Err(error.into()),
                    },
                };
                lines.push(line);
            }
        }
        Ok(lines)
    }

    /// The manifest of a snapshot.
    pub async fn manifest(&self, environment: &str, wanted: &SnapshotWanted) -> Result<Manifest, Failure> {
        let vault = self.vault(VaultUse::Read).await?;
        find_manifest(&vault, environment, wanted).await
    }

    /// Refuses an environment that is neither configured nor in the vault: to answer for one that is only mistyped, nothing
    /// is wrong with what is not there.
    pub(crate) async fn known_environment(&self, vault: &Vault, name: &str) -> Result<(), Failure> {
        let mut known = vault.environments().await?;
        known.extend(self.config().environments.iter().map(|environment| environment.name.clone()));
        known.sort();
        known.dedup();
        if known.iter().any(|known| known == name) {
            return Ok(());
        }
        let list = format!("known: {}", known.join(", "));
        let remedy = match nearest(name, known.iter().map(String::as_str)) {
            Some(near) => format!("did you mean {near:?}? {list}"),
            None => list,
        };
        Err(Failure::usage(format!("there is no environment {name:?} in the configuration or in the vault"), remedy))
    }

    /// The environment that is meant when none is named: the only one there is.
    pub fn only_environment(&self) -> Result<String, Failure> {
        match self.config().environments.as_slice() {
            [only] => Ok(only.name.clone()),
            [] => Err(Failure::usage("no environment is configured", "add an [[environment]] section")),
            several => {
                let names: Vec<&str> = several.iter().map(|environment| environment.name.as_str()).collect();
                Err(Failure::usage("several environments are configured", format!("name one of {}", names.join(", "))))
            }
        }
    }

    /// Runs, newest first. One whose process is gone is interrupted, also before the next run has said so in the catalog.
    pub async fn runs(&self, filter: RunFilter) -> Result<Vec<RunSummary>, Failure> {
        let catalog = self.catalog().await?;
        let (wanted, limit) = (filter.status, filter.limit);
        let Some(wanted @ (RunStatus::Running | RunStatus::Interrupted)) = wanted else {
            let mut runs = catalog.runs(filter).await?;
            self.tell_the_dead(&mut runs);
            return Ok(runs);
        };
        let mut runs = catalog.runs(RunFilter { status: None, limit: 0, ..filter }).await?;
        self.tell_the_dead(&mut runs);
        runs.retain(|run| run.status == word(&wanted));
        runs.truncate(if limit == 0 { runs.len() } else { limit as usize });
        Ok(runs)
    }

    fn tell_the_dead(&self, runs: &mut [RunSummary]) {
        for run in runs.iter_mut().filter(|run| run.status == word(&RunStatus::Running)) {
            let suffix = if run.kind == word(&RunKind::Restore) { RESTORE } else { "" };
            let lock = format!("{}{suffix}", run.environment);
            if self.state_folder(&run.environment).is_ok_and(|folder| !LocalLock::is_held(&folder, &lock)) {
                run.status = word(&RunStatus::Interrupted);
                run.error = Some("the process ended before the run did".into());
            }
        }
    }

    /// One run: its summary and, when it ended, its report as JSON. An unambiguous end of the id is enough.
    pub async fn run(&self, id: &str) -> Result<(RunSummary, Option<String>), Failure> {
        let (mut summary, report) = self.recorded_run(id).await?;
        self.tell_the_dead(std::slice::from_mut(&mut summary));
        Ok((summary, report))
    }

    async fn recorded_run(&self, id: &str) -> Result<(RunSummary, Option<String>), Failure> {
        let catalog = self.catalog().await?;
        let missing = || Failure::usage(format!("there is no run {id}"), "`dynavault run list` shows the runs");
        if let Ok(run) = id.parse::<RunId>() {
            return catalog.run(run).await?.ok_or_else(missing);
        }
        let wanted = id.to_ascii_uppercase();
        let runs = catalog.runs(RunFilter::default()).await?;
        let matching: Vec<&RunSummary> =
            runs.iter().filter(|run| wanted.len() >= 4 && run.run.ends_with(&wanted)).collect();
        match matching.as_slice() {
            [one] => match one.run.parse::<RunId>() {
                Ok(run) => catalog.run(run).await?.ok_or_else(missing),
                Err(_) => Err(missing()),
            },
            [] => Err(missing()),
            _ => Err(Failure::usage(format!("several runs end in {id}"), "give more of the id")),
        }
    }
}

/// The word of a unit enum, as the catalog has it.
fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_string)).unwrap_or_default()
}

fn unreadable(environment: &str, object: &SnapshotObject) -> SnapshotLine {
    let milliseconds = i64::try_from(object.id.timestamp_ms()).unwrap_or(0);
    SnapshotLine {
        snapshot: object.id,
        environment: environment.to_string(),
        created: Timestamp::from_millisecond(milliseconds).unwrap_or(Timestamp::UNIX_EPOCH),
        whole: None,
        tables: None,
        rows: None,
        encrypted: object.encrypted,
    }
}

/// The manifest that is meant.
pub(crate) async fn find_manifest(
    vault: &Vault,
    environment: &str,
    wanted: &SnapshotWanted,
) -> Result<Manifest, Failure> {
    let objects = vault.snapshots(environment).await?;
    let none = |text: String| VaultError::NoSnapshot { environment: environment.to_string(), wanted: text };
    match wanted {
        SnapshotWanted::Latest => {
            let object = objects.last().ok_or_else(|| none("yet".into()))?;
            Ok(vault.manifest(environment, object).await?.0)
        }
        SnapshotWanted::Id(id) => {
            let object = objects.iter().find(|object| object.id == *id).ok_or_else(|| none(id.to_string()))?;
            Ok(vault.manifest(environment, object).await?.0)
        }
        SnapshotWanted::At(time) => {
            // Ids tell when a snapshot was begun, manifests when it was committed; what counts is the commit.
            for object in objects.iter().rev() {
                if i64::try_from(object.id.timestamp_ms()).unwrap_or(i64::MAX) > time.as_millisecond() {
                    continue;
                }
                let (manifest, _) = vault.manifest(environment, object).await?;
                if manifest.created <= *time {
                    return Ok(manifest);
                }
            }
            Err(none(format!("at or before {time}")).into())
        }
    }
}

/// Runs blocking work that ends in a vault error.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Failure::new(FaultKind::Failed, format!("a worker thread broke off ({error})"), None)),
    }
}
