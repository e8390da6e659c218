//! Back up one environment: lock, journal, run, report. The journal is told about every end, good or bad.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dynavault_catalog::Catalog;
use dynavault_model::{Call, EnvironmentIdentity, FaultKind, Observer, RunId, RunKind, RunReport, RunStatus, Tally};
use dynavault_pipeline::{
    BackupOptions, BackupParts, EnvironmentRun, MemoryBudget, PipelineError, SegmentLimits, Selection, TableFilter,
    TablePlan,
};
use dynavault_store::{LockOwner, StoreLock};
use globset::{Glob, GlobSet, GlobSetBuilder};
use tokio_util::sync::CancellationToken;

use crate::TOOL;
use crate::assemble::{Engine, VaultUse};
use crate::config::{ConfigError, EnvironmentConfig};
use crate::failure::Failure;
use crate::local_lock::LocalLock;
use crate::memory::peak_memory_bytes;

/// What to back up and how.
#[derive(Debug, Clone, Default)]
pub struct BackupRequest {
    /// Configured name of the environment.
    pub environment: String,
    /// Only these tables (globs); empty means all that the configuration protects.
    pub tables: Vec<String>,
    /// Read everything again and store what differs.
    pub full: bool,
    /// Read everything again and store all of it: nothing is compared with what the vault has.
    pub rebase: bool,
}

/// How a backup ended: the report, and the failure if there is no snapshot.
#[derive(Debug)]
pub struct BackupEnd {
    /// The report; with status `failed` or `cancelled` when there is no snapshot.
    pub report: RunReport,
    /// Why there is no snapshot.
    pub failure: Option<Failure>,
}

/// A backup with the parts of its environment.
pub struct Backup<'a> {
    engine: &'a Engine,
    environment: &'a EnvironmentConfig,
    request: BackupRequest,
    observer: Arc<dyn Observer>,
    tally: Arc<Tally>,
    cancel: CancellationToken,
}

fn globs(patterns: &[String]) -> Result<GlobSet, Failure> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        let glob = Glob::new(pattern)
            .map_err(|error| Failure::usage(format!("{pattern:?} is not a pattern ({error})"), "use *, ? and [a-z]"))?;
        set.add(glob);
    }
    set.build().map_err(|error| Failure::usage(error.to_string(), "use fewer or simpler patterns"))
}

/// Which tables the configuration protects: included, not excluded, and not one of the service's own logs unless named.
pub(crate) fn protects(
    environment: &EnvironmentConfig,
) -> Result<impl Fn(&str) -> bool + Send + Sync + 'static, Failure> {
    let (include, exclude) = (globs(&environment.include)?, globs(&environment.exclude)?);
    let named = environment.include.clone();
    Ok(move |table: &str| {
        include.is_match(table)
            && !exclude.is_match(table)
            && (!dynavault_ce::excluded_by_default(table) || named.iter().any(|name| name == table))
    })
}

impl<'a> Backup<'a> {
    /// Prepares a backup; reads and writes nothing yet.
    pub fn new(
        engine: &'a Engine,
        request: BackupRequest,
        observer: Arc<dyn Observer>,
        tally: Arc<Tally>,
        cancel: CancellationToken,
    ) -> Result<Self, ConfigError> {
        let environment = engine.config().environment(&request.environment)?;
        Ok(Self { engine, environment, request, observer, tally, cancel })
    }

    fn options(&self, run: RunId) -> Result<BackupOptions, Failure> {
        let limits = &self.engine.config().limits;
        let segments = SegmentLimits {
            bytes_max: u64::from(limits.segment_mib_max) << 20,
            age_max: Duration::from_secs(u64::from(limits.segment_seconds_max)),
            ..SegmentLimits::default()
        };
        let selected = if self.request.tables.is_empty() {
            None
        } else {
            let selection = |text: &String| {
                let glob = globs(std::slice::from_ref(text))?;
                let matches: TableFilter = Arc::new(move |table: &str| glob.is_match(table));
                Ok::<_, Failure>(Selection { text: text.clone(), matches })
            };
            Some(self.request.tables.iter().map(selection).collect::<Result<Vec<_>, _>>()?)
        };
        Ok(BackupOptions {
            environment: self.environment.name.clone(),
            run,
            started: self.engine.clock().now(),
            resumed_from: None,
            included: Arc::new(protects(self.environment)?),
            selected,
            full: self.request.full || self.request.rebase,
            rebase: self.request.rebase,
            files: self.environment.files,
            budget: MemoryBudget::divide(limits.memory_mib, limits.tables_in_parallel as usize, &segments),
            limits: segments,
            tool: TOOL.to_string(),
        })
    }

    async fn parts(&self, catalog: Catalog, vault_use: VaultUse) -> Result<BackupParts, Failure> {
        Ok(BackupParts {
            source: self.engine.source(self.environment)?,
            vault: self.engine.vault(vault_use).await?,
            catalog,
            clock: Arc::clone(self.engine.clock()),
            observer: Arc::clone(&self.observer),
            state_folder: self.engine.state_folder(&self.environment.name)?,
            tally: Arc::clone(&self.tally),
            cancel: self.cancel.clone(),
            lock_held: Arc::new(|| true),
        })
    }

    /// Who the environment says it is, and who we are there.
    pub async fn whoami(&self) -> Result<EnvironmentIdentity, Failure> {
        let call = Call { tally: Arc::clone(&self.tally), cancel: self.cancel.clone() };
        Ok(self.engine.source(self.environment)?.identity(&call).await.map_err(PipelineError::from)?)
    }

    /// What a backup would do, without reading a row. The vault need not exist yet.
    pub async fn plan(&self) -> Result<Vec<TablePlan>, Failure> {
        let run = RunId::new(self.engine.clock().as_ref());
        let options = self.options(run)?;
        let parts = self.parts(self.engine.catalog().await?, VaultUse::Look).await?;
        Ok(Box::pin(EnvironmentRun::new(parts, options).plan()).await?)
    }

    /// Makes one snapshot.
    pub async fn run(self) -> Result<BackupEnd, Failure> {
        let clock = Arc::clone(self.engine.clock());
        let run = RunId::new(clock.as_ref());
        let mut options = self.options(run)?;
        let name = self.environment.name.clone();
        let catalog = self.engine.catalog().await?;
        let local = LocalLock::take(&self.engine.state_folder(&name)?, &name, "backup of").await?;
        // Only one process can hold the local lock, so its id may re-take a lease that a crashed process left behind.
        let owner = LockOwner::new(local.id.clone(), describe_host());
        catalog.begin_run(run, RunKind::Backup, &name, options.started).await?;
        let resumed_from = catalog.interrupt_dead_runs(RunKind::Backup, &name, run, clock.now()).await?;
        options.resumed_from = resumed_from;
        let started = options.started;
        let result = Box::pin(self.locked_run(catalog.clone(), options, &owner)).await;
        let end = match result {
            Ok(mut report) => {
                report.peak_memory_bytes = peak_memory_bytes();
                BackupEnd { report, failure: None }
            }
            Err(failure) => {
                let cancelled = failure.kind() == FaultKind::Cancelled;
                let totals = self.tally.totals();
                let report = RunReport {
                    run,
                    kind: RunKind::Backup,
                    environment: name,
                    status: if cancelled { RunStatus::Cancelled } else { RunStatus::Failed },
                    snapshot: None,
                    started,
                    finished: Some(clock.now()),
                    tables: Vec::new(),
                    excluded: Vec::new(),
                    gone: Vec::new(),
                    requests: totals.requests,
                    retries: totals.retries,
                    throttled: totals.throttled,
                    bytes_received: totals.bytes_received,
                    bytes_raw: totals.bytes_raw,
                    bytes_stored: totals.bytes_stored,
                    peak_memory_bytes: peak_memory_bytes(),
                    resumed_from,
                    error: Some(failure.message()),
                };
                BackupEnd { report, failure: Some(failure) }
            }
        };
        // The journal may be on the disk that is full; the run's own end matters more than its entry.
        if let Err(error) = catalog.finish_run(&end.report).await {
            tracing::error!(run = %run, error = %dynavault_model::chain(&error), "could not record the end of the run");
        }
        drop(local);
        Ok(end)
    }

    async fn locked_run(
        &self,
        catalog: Catalog,
        options: BackupOptions,
        owner: &LockOwner,
    ) -> Result<RunReport, Failure> {
        let mut parts = self.parts(catalog, VaultUse::Write).await?;
        let lock = parts.vault.lock(&options.environment, owner).await?;
        let held: Arc<Mutex<Option<Box<dyn StoreLock>>>> = Arc::new(Mutex::new(Some(lock)));
        let asked = Arc::clone(&held);
        parts.lock_held = Arc::new(move || {
            asked.lock().unwrap_or_else(PoisonError::into_inner).as_ref().is_some_and(|lock| !lock.lost())
        });
        // Boxed: the whole run is one large future, and it is moved about before it starts.
        let result = Box::pin(EnvironmentRun::new(parts, options).run()).await;
        let lock = held.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(lock) = lock {
            lock.release().await;
        }
        Ok(result?)
    }
}

fn describe_host() -> String {
    let host = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
    format!("{} process {}", host.trim(), std::process::id())
}
