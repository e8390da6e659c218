//! One backup of one environment: who is there, what is to be read and how, all tables, one commit.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dynavault_catalog::{Catalog, Draft, StateFile};
use dynavault_model::{
    Call, Clock, EnvironmentIdentity, Observer, Refusal, RowSource, RunId, RunKind, RunReport, RunStatus,
    SnapshotId, SourceError, TableEvent, TableListing, TableMode, TableReport, TableSchema, TableStatus, Tally,
};
use dynavault_vault::{
    Coverage, CutWindow, FORMAT, Manifest, Previous, RefusedTable, SegmentInfo, TableManifest, TableReader, Vault,
    VaultWriter,
};
use jiff::{SignedDuration, Timestamp};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::commit;
use crate::error::PipelineError;
use crate::mode::{self, Known, PlannedMode};
use crate::progress::sum;
use crate::state::{StateWriter, failed};
use crate::table_run::{Captured, Shared, TableEnd, TableJob, TableRun, blocking};
use crate::{MemoryBudget, SegmentLimits};

/// Age after which an unfinished snapshot is not gone on with: its first tables would be too far from its last.
const DRAFT_AGE_MAX: SignedDuration = SignedDuration::from_hours(24);
/// Tables in a row that nobody answered for, after which the run stops instead of asking for the rest.
const UNREACHABLE_MAX: u32 = 3;

/// The concrete parts of a run.
#[derive(Clone)]
pub struct BackupParts {
    /// The environment.
    pub source: Arc<dyn RowSource>,
    /// The vault.
    pub vault: Vault,
    /// The catalog.
    pub catalog: Catalog,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Who watches.
    pub observer: Arc<dyn Observer>,
    /// Folder for state files and scratch files of this environment.
    pub state_folder: PathBuf,
    /// Counts of the whole run.
    pub tally: Arc<Tally>,
    /// Set when the operator stops the run.
    pub cancel: CancellationToken,
    /// Whether the environment's lock is still ours.
    pub lock_held: Arc<dyn Fn() -> bool + Send + Sync>,
}

/// What the operator asked for.
#[derive(Clone)]
pub struct BackupOptions {
    /// Configured name of the environment.
    pub environment: String,
    /// This run.
    pub run: RunId,
    /// When it started.
    pub started: Timestamp,
    /// The run whose work it takes over, if one was interrupted.
    pub resumed_from: Option<RunId>,
    /// Tables that the configuration protects.
    pub included: Arc<dyn Fn(&str) -> bool + Send + Sync>,
    /// Tables of this run, when only some were asked for.
    pub selected: Option<Arc<dyn Fn(&str) -> bool + Send + Sync>>,
    /// Read everything again and store what differs.
    pub full: bool,
    /// Capture the bytes of files, images and attachments.
    pub files: bool,
    /// Memory.
    pub budget: MemoryBudget,
    /// When segments are cut.
    pub limits: SegmentLimits,
    /// Program and version.
    pub tool: String,
}

/// A table as a run would treat it.
#[derive(Debug, Clone)]
pub struct TablePlan {
    /// Logical name.
    pub table: String,
    /// Whether the configuration leaves it out.
    pub excluded: bool,
    /// How it would be read, or why it cannot be.
    pub mode: Result<PlannedMode, Refusal>,
    /// Rows the service says it has.
    pub rows: Option<u64>,
}

/// See the module.
pub struct EnvironmentRun {
    parts: BackupParts,
    options: BackupOptions,
    writer: VaultWriter,
}

/// What is known before the first table is read.
struct Prior {
    manifest: Option<Manifest>,
    previous: Option<Previous>,
    state: Vec<StateFile>,
}

struct Ended {
    captured: HashMap<String, Captured>,
    failed: HashMap<String, String>,
    refused: Vec<RefusedTable>,
    tallies: HashMap<String, Arc<Tally>>,
}

impl EnvironmentRun {
    /// A run over concrete parts.
    pub fn new(parts: BackupParts, options: BackupOptions) -> Self {
        let writer = parts.vault.writer(&options.environment);
        Self { parts, options, writer }
    }

    fn call(&self) -> Call {
        Call { tally: Arc::clone(&self.parts.tally), cancel: self.parts.cancel.clone() }
    }

    fn notice(&self, message: String) {
        self.parts.observer.event(TableEvent::Notice { table: None, message });
    }

    /// What a backup would do, without reading a row.
    pub async fn plan(&self) -> Result<Vec<TablePlan>, PipelineError> {
        self.parts.source.identity(&self.call()).await?;
        let prior = self.prior().await?;
        let listings = self.parts.source.discover(&self.call()).await?;
        let schemas: Vec<TableSchema> = listings.iter().filter_map(|listing| listing.schema.clone().ok()).collect();
        let rows = self.approximate_rows(&schemas).await;
        let before = mode::prior_tables(prior.manifest.as_ref());
        let mut plans = Vec::new();
        for listing in listings {
            let table = listing.table.name;
            let excluded = !(self.options.included)(&table);
            let mode = match listing.schema {
                Err(refusal) => Err(refusal),
                Ok(schema) => {
                    let prior_table = before.get(table.as_str()).copied().filter(|table| mode::usable(table));
                    let prior_schema = self.prior_schema(prior_table).await;
                    let state = self.state_paths(&table, &prior.state).is_some() || self.parts.vault.can_read();
                    let schema = self.without_files(schema);
                    Ok(mode::decide(
                        &schema,
                        &Known {
                            prior: prior_table,
                            prior_schema: prior_schema.as_ref(),
                            state,
                            full: self.options.full,
                        },
                    ))
                }
            };
            plans.push(TablePlan { rows: rows.get(&table).copied(), table, excluded, mode });
        }
        plans.sort_by(|a, b| a.table.cmp(&b.table));
        Ok(plans)
    }

    /// Makes one snapshot. On an error nothing is lost: what is durable is gone on from by the next run.
    pub async fn run(self) -> Result<RunReport, PipelineError> {
        let folder = self.parts.state_folder.clone();
        blocking(move || Ok(std::fs::create_dir_all(&folder).map_err(failed(&folder))?)).await?;
        let identity = self.parts.source.identity(&self.call()).await?;
        self.forget_what_is_not_there().await?;
        self.complete_commit().await?;
        let prior = self.prior().await?;
        self.same_organization(&identity, prior.manifest.as_ref())?;
        let listings = self.parts.source.discover(&self.call()).await?;
        let (draft, snapshot) = self.take_up_draft(prior.manifest.as_ref()).await?;
        self.sweep_folder(&prior, draft.as_ref()).await?;
        let (jobs, mut ended, excluded) = self.jobs(listings, &prior, draft).await?;
        let expected = self.expected_rows(&jobs).await;
        let schemas: HashMap<String, Arc<TableSchema>> =
            jobs.iter().map(|job| (job.schema.table.name.clone(), Arc::clone(&job.schema))).collect();
        self.read_tables(jobs, &expected, &mut ended).await?;
        self.commit(snapshot, identity, prior, ended, excluded, &expected, &schemas).await
    }

    /// What the catalog remembers is built upon only if the vault has it. The configuration may name another vault by now, or
    /// the vault may have lost something; a delta or half a table on top of what is not there could not be restored. A host
    /// that may only write cannot look.
    async fn forget_what_is_not_there(&self) -> Result<(), PipelineError> {
        let (environment, catalog, vault) = (&self.options.environment, &self.parts.catalog, &self.parts.vault);
        let Ok(listed) = vault.snapshots(environment).await else { return Ok(()) };
        if let Some((known, ..)) = catalog.newest_snapshot(environment).await?
            && !listed.iter().any(|object| object.id == known)
        {
            self.notice(format!(
                "the vault does not have snapshot {known}, which this host remembers; going on from what the vault has"
            ));
            catalog.forget_environment(environment).await?;
            return Ok(());
        }
        let Some(draft) = catalog.draft(environment).await? else { return Ok(()) };
        let mut newest: HashMap<&str, SegmentInfo> = HashMap::new();
        for segment in &draft.segments {
            if let Ok(info) = serde_json::from_str(&segment.info) {
                newest.insert(&segment.table, info);
            }
        }
        for (table, info) in newest {
            if matches!(vault.has_segment(environment, table, &info).await, Ok(false)) {
                self.notice(format!(
                    "the vault does not have the segments of snapshot {}, which run {} began; beginning again",
                    draft.snapshot, draft.run
                ));
                catalog.drop_draft(environment).await?;
                return Ok(());
            }
        }
        Ok(())
    }

    /// A commit that a crash broke off is completed first: its manifest may be in the vault already.
    async fn complete_commit(&self) -> Result<(), PipelineError> {
        let draft = self.parts.catalog.draft(&self.options.environment).await?;
        if let Some(prepared) = draft.and_then(|draft| draft.prepared) {
            let manifest = commit::complete(&self.parts.catalog, &self.writer, &prepared).await?;
            self.notice(format!("completed the commit of snapshot {} that an earlier run began", manifest.snapshot));
        }
        Ok(())
    }

    /// The snapshot to go on from: the newest of the vault where that can be read, else the newest of the catalog.
    async fn prior(&self) -> Result<Prior, PipelineError> {
        let (environment, catalog, vault) = (&self.options.environment, &self.parts.catalog, &self.parts.vault);
        let known = catalog.newest_snapshot(environment).await?;
        // A host that may only write can neither list nor read; then the catalog is what there is.
        let listed = vault.snapshots(environment).await.unwrap_or_default();
        if let Some(newest) = listed.last()
            && known.as_ref().is_none_or(|(id, _, manifest)| *id < newest.id || manifest.is_none())
        {
            match vault.manifest(environment, newest).await {
                Ok((manifest, sha256)) => {
                    let committed = commit::committed(&manifest, newest.encrypted, &sha256);
                    catalog.adopt_snapshot(environment, committed).await?;
                    // State files belong to the snapshot the catalog knew; they are made again from the vault.
                    for table in &manifest.tables {
                        for kind in ["rows", "content"] {
                            catalog.replace_state_files(environment, &table.table, kind, Vec::new()).await?;
                        }
                    }
                    self.notice(format!("took over snapshot {} from the vault", manifest.snapshot));
                }
                Err(dynavault_vault::VaultError::NoKey { .. }) => self.notice(format!(
                    "snapshot {} was made elsewhere and cannot be read here; going on from what this host knows",
                    newest.id
                )),
                Err(error) => return Err(error.into()),
            }
        }
        let Some((snapshot, sha256, manifest)) = catalog.newest_snapshot(environment).await? else {
            return Ok(Prior { manifest: None, previous: None, state: Vec::new() });
        };
        let manifest = manifest.and_then(|json| serde_json::from_str(&json).ok());
        let state = catalog.state_files(environment).await?;
        Ok(Prior { manifest, previous: Some(Previous { snapshot, sha256 }), state })
    }

    fn same_organization(
        &self,
        identity: &EnvironmentIdentity,
        prior: Option<&Manifest>,
    ) -> Result<(), PipelineError> {
        match prior {
            Some(prior) if prior.identity.organization_id != identity.organization_id => {
                Err(PipelineError::OtherEnvironment {
                    environment: self.options.environment.clone(),
                    found: identity.organization_id.clone(),
                    known: prior.identity.organization_id.clone(),
                })
            }
            _ => Ok(()),
        }
    }

    async fn take_up_draft(&self, prior: Option<&Manifest>) -> Result<(Option<Draft>, SnapshotId), PipelineError> {
        let (environment, catalog) = (&self.options.environment, &self.parts.catalog);
        let now = self.parts.clock.now();
        if let Some(draft) = catalog.draft(environment).await? {
            let young = now.duration_since(draft.progressed) <= DRAFT_AGE_MAX;
            let after_prior = prior.is_none_or(|prior| prior.snapshot < draft.snapshot);
            if young && after_prior && !draft.checkpoints.is_empty() {
                let snapshot = draft.snapshot;
                self.notice(format!("going on with snapshot {snapshot}, which run {} began", draft.run));
                return Ok((Some(draft), snapshot));
            }
        }
        let snapshot = SnapshotId::new(self.parts.clock.as_ref());
        catalog.begin_draft(environment, snapshot, self.options.run, now).await?;
        Ok((None, snapshot))
    }

    /// Removes scratch and state files that nothing refers to.
    async fn sweep_folder(&self, prior: &Prior, draft: Option<&Draft>) -> Result<(), PipelineError> {
        let mut keep: HashSet<String> = prior.state.iter().map(|file| file.file.clone()).collect();
        for checkpoint in draft.map(|draft| draft.checkpoints.as_slice()).unwrap_or_default() {
            if let Ok(progress) = serde_json::from_str::<crate::progress::Progress>(&checkpoint.progress) {
                keep.extend(progress.run_files);
                keep.extend(progress.content_files);
                keep.extend(progress.base.unwrap_or_default());
                keep.extend(progress.base_content.unwrap_or_default());
            }
            keep.insert(format!("{}.seen", checkpoint.table));
            keep.insert(format!("{}.items", checkpoint.table));
        }
        let folder = self.parts.state_folder.clone();
        blocking(move || {
            let fail = failed(&folder);
            for entry in std::fs::read_dir(&folder).map_err(&fail)? {
                let entry = entry.map_err(&fail)?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if entry.file_type().map_err(&fail)?.is_file() && !keep.contains(&name) {
                    std::fs::remove_file(entry.path()).map_err(&fail)?;
                }
            }
            Ok(())
        })
        .await
    }

    fn without_files(&self, schema: TableSchema) -> TableSchema {
        if self.options.files { schema } else { TableSchema { content: Vec::new(), ..schema } }
    }

    fn state_paths(&self, table: &str, state: &[StateFile]) -> Option<(Vec<PathBuf>, Vec<PathBuf>)> {
        let of = |kind: &str| -> Vec<PathBuf> {
            state
                .iter()
                .filter(|file| file.table == table && file.kind == kind)
                .map(|file| self.parts.state_folder.join(&file.file))
                .collect()
        };
        let (rows, content) = (of("rows"), of("content"));
        (!rows.is_empty() && rows.iter().chain(&content).all(|path| path.exists())).then_some((rows, content))
    }

    /// State of a table for comparing: the local files, or files made from the vault's indexes.
    async fn base(
        &self,
        prior: Option<&TableManifest>,
        state: &[StateFile],
    ) -> Result<Option<(Vec<PathBuf>, Vec<PathBuf>)>, PipelineError> {
        let Some(prior) = prior else { return Ok(None) };
        if let Some(paths) = self.state_paths(&prior.table, state) {
            return Ok(Some(paths));
        }
        if !self.parts.vault.can_read() {
            return Ok(None);
        }
        let mut made = Vec::new();
        for kind in ["rows", "content"] {
            let name = format!("{}.state", dynavault_model::SegmentId::new(self.parts.clock.as_ref()));
            let path = self.parts.state_folder.join(&name);
            let (vault, environment) = (self.parts.vault.clone(), self.options.environment.clone());
            let (table, into, cancel) = (prior.clone(), path.clone(), self.parts.cancel.clone());
            let entries = blocking(move || {
                let mut writer = StateWriter::create(&into)?;
                let reader = TableReader::new(&vault, Handle::current(), &environment, &table, cancel);
                let mut failure = None;
                let mut push = |id, hash| {
                    if let Err(error) = writer.push(id, hash) {
                        failure.get_or_insert(error);
                    }
                    Ok(())
                };
                if kind == "rows" { reader.live_ids(&mut push) } else { reader.live_content_ids(&mut push) }?;
                match failure {
                    Some(error) => Err(error.into()),
                    None => Ok(writer.finish()?),
                }
            })
            .await;
            match entries {
                Ok(entries) => {
                    let file = StateFile { table: prior.table.clone(), kind: kind.into(), file: name, entries };
                    self.parts
                        .catalog
                        .replace_state_files(&self.options.environment, &prior.table, kind, vec![file])
                        .await?;
                    made.push(vec![path]);
                }
                // Damage or a missing right to read costs a full read of this table, not the run.
                Err(PipelineError::Vault(error)) => {
                    self.notice(format!(
                        "the indexes of table {} cannot be read ({}); it will be stored in full",
                        prior.table,
                        dynavault_model::chain(&error)
                    ));
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        let content = made.pop().unwrap_or_default();
        Ok(Some((made.pop().unwrap_or_default(), content)))
    }

    fn schema_cache(&self, hash: &str) -> PathBuf {
        self.parts.state_folder.join("schemas").join(format!("{hash}.json"))
    }

    async fn prior_schema(&self, prior: Option<&TableManifest>) -> Option<TableSchema> {
        let prior = prior?;
        let path = self.schema_cache(&prior.schema);
        let cached = tokio::task::spawn_blocking(move || std::fs::read(path)).await.ok()?.ok();
        if let Some(schema) = cached.and_then(|json| serde_json::from_slice(&json).ok()) {
            return Some(schema);
        }
        if self.parts.vault.can_read() {
            self.parts.vault.schema(&self.options.environment, &prior.schema).await.ok()
        } else {
            None
        }
    }

    async fn jobs(
        &self,
        listings: Vec<TableListing>,
        prior: &Prior,
        draft: Option<Draft>,
    ) -> Result<(Vec<TableJob>, Ended, Vec<String>), PipelineError> {
        let before = mode::prior_tables(prior.manifest.as_ref());
        let mut resumable: HashMap<String, (dynavault_catalog::Checkpoint, Vec<SegmentInfo>)> = HashMap::new();
        if let Some(draft) = draft {
            for checkpoint in draft.checkpoints {
                resumable.insert(checkpoint.table.clone(), (checkpoint, Vec::new()));
            }
            for segment in draft.segments {
                if let (Some(entry), Ok(info)) =
                    (resumable.get_mut(&segment.table), serde_json::from_str(&segment.info))
                {
                    entry.1.push(info);
                }
            }
        }
        let mut jobs = Vec::new();
        let mut ended = Ended {
            captured: HashMap::new(),
            failed: HashMap::new(),
            refused: Vec::new(),
            tallies: HashMap::new(),
        };
        let mut excluded = Vec::new();
        for listing in listings {
            let name = listing.table.name.clone();
            let chosen = self.options.selected.as_ref().is_none_or(|selected| selected(&name));
            if !(self.options.included)(&name) || !chosen {
                excluded.push(name);
                continue;
            }
            let schema = match listing.schema {
                Ok(schema) if listing.table.has_plain_name() => self.without_files(schema),
                Ok(_) => {
                    let reason = "its name is not made of letters, digits and underscores".to_string();
                    ended.refused.push(RefusedTable { table: name, refusal: Refusal { reason, remedy: None } });
                    continue;
                }
                Err(refusal) => {
                    ended.refused.push(RefusedTable { table: name, refusal });
                    continue;
                }
            };
            let prior_table = before.get(name.as_str()).copied().filter(|table| mode::usable(table));
            let base = self.base(prior_table, &prior.state).await?;
            let prior_schema = self.prior_schema(prior_table).await;
            let known = Known {
                prior: prior_table,
                prior_schema: prior_schema.as_ref(),
                state: base.is_some(),
                full: self.options.full,
            };
            let planned = mode::decide(&schema, &known);
            let tally = Tally::child(&self.parts.tally);
            ended.tallies.insert(name.clone(), Arc::clone(&tally));
            jobs.push(TableJob {
                schema: Arc::new(schema),
                prior: prior_table.cloned(),
                mode: planned.mode,
                reason: planned.reason.filter(|_| planned.mode != TableMode::Sweep || prior_schema.is_some()),
                base,
                resume: resumable.remove(&name),
                tally,
            });
        }
        Ok((jobs, ended, excluded))
    }

    async fn approximate_rows(&self, schemas: &[TableSchema]) -> HashMap<String, u64> {
        match self.parts.source.approximate_rows(schemas, &self.call()).await {
            Ok(rows) => rows.into_iter().collect(),
            // Only for progress and for the report; a service that does not tell is no reason to stop.
            Err(_) => HashMap::new(),
        }
    }

    async fn expected_rows(&self, jobs: &[TableJob]) -> HashMap<String, u64> {
        // An incremental run reads what changed, so totals would say nothing; and it should stay cheap.
        let read_in_full: Vec<TableSchema> =
            jobs.iter().filter(|job| job.mode != TableMode::Delta).map(|job| (*job.schema).clone()).collect();
        if read_in_full.is_empty() { HashMap::new() } else { self.approximate_rows(&read_in_full).await }
    }

    async fn read_tables(
        &self,
        mut jobs: Vec<TableJob>,
        expected: &HashMap<String, u64>,
        ended: &mut Ended,
    ) -> Result<(), PipelineError> {
        let parts = &self.parts;
        let rows = (!expected.is_empty()).then(|| expected.values().sum());
        parts.observer.event(TableEvent::Planned { tables: jobs.len(), rows });
        // Largest first: a long table begun last would keep the run waiting alone.
        jobs.sort_by_key(|job| {
            let rows = expected.get(&job.schema.table.name).copied();
            std::cmp::Reverse(rows.or(job.prior.as_ref().map(|prior| prior.live_rows)).unwrap_or(0))
        });
        let shared = Arc::new(Shared {
            environment: self.options.environment.clone(),
            source: Arc::clone(&parts.source),
            writer: self.writer.clone(),
            catalog: parts.catalog.clone(),
            clock: Arc::clone(&parts.clock),
            observer: Arc::clone(&parts.observer),
            handle: Handle::current(),
            limits: self.options.limits,
            budget: self.options.budget,
            state_folder: parts.state_folder.clone(),
            // A child: when one table ends the run, the others stop, and the operator's own token stays untouched.
            cancel: parts.cancel.child_token(),
        });
        let mut tasks = tokio::task::JoinSet::new();
        let mut waiting = jobs.into_iter();
        let mut unreachable_in_row = 0;
        let mut failure = None;
        loop {
            while failure.is_none()
                && tasks.len() < self.options.budget.tables_in_parallel
                && let Some(job) = waiting.next()
            {
                let shared = Arc::clone(&shared);
                tasks.spawn(async move {
                    let name = job.schema.table.name.clone();
                    (name, TableRun::new(&shared, job).run().await)
                });
            }
            let Some(joined) = tasks.join_next().await else { break };
            let (name, end) = match joined {
                Ok(result) => result,
                Err(error) => (String::new(), Err(PipelineError::Broken { what: format!("the task of a table ({error})") })),
            };
            match end {
                Ok(end) => {
                    let unreachable = matches!(end, TableEnd::Failed { unreachable: true, .. });
                    unreachable_in_row = if unreachable { unreachable_in_row + 1 } else { 0 };
                    let (status, rows) = Self::note_end(&name, end, ended);
                    parts.observer.event(TableEvent::Finished { table: name.clone(), status, rows });
                    if unreachable_in_row >= UNREACHABLE_MAX && failure.is_none() {
                        let last = ended.failed.get(&name).cloned().unwrap_or_default();
                        failure = Some(PipelineError::Source(SourceError::StopRun {
                            reason: format!("{UNREACHABLE_MAX} tables in a row could not be reached: {last}"),
                            remedy: Some("check the connection, then run the backup again: it goes on from here".into()),
                        }));
                    }
                }
                Err(error) if failure.is_none() => failure = Some(error),
                Err(_) => {}
            }
            if failure.is_some() {
                shared.cancel.cancel();
            }
        }
        match failure {
            Some(_) if parts.cancel.is_cancelled() => Err(PipelineError::Cancelled),
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn note_end(name: &str, end: TableEnd, ended: &mut Ended) -> (TableStatus, u64) {
        match end {
            TableEnd::Captured(captured) => {
                let rows = captured.progress.totals.rows_stored;
                ended.captured.insert(name.to_string(), *captured);
                (TableStatus::Succeeded, rows)
            }
            TableEnd::Refused { reason, remedy } => {
                let refusal = Refusal { reason, remedy };
                ended.refused.push(RefusedTable { table: name.to_string(), refusal });
                (TableStatus::Refused, 0)
            }
            TableEnd::Failed { reason, .. } => {
                ended.failed.insert(name.to_string(), reason);
                (TableStatus::Failed, 0)
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "everything a manifest is made of")]
    async fn commit(
        &self,
        snapshot: SnapshotId,
        identity: EnvironmentIdentity,
        prior: Prior,
        mut ended: Ended,
        excluded: Vec<String>,
        expected: &HashMap<String, u64>,
        schemas: &HashMap<String, Arc<TableSchema>>,
    ) -> Result<RunReport, PipelineError> {
        let parts = &self.parts;
        parts.observer.event(TableEvent::Committing);
        let before = mode::prior_tables(prior.manifest.as_ref());
        if ended.captured.is_empty() && before.is_empty() {
            let first = ended.failed.values().next().cloned();
            let first = first.or_else(|| ended.refused.first().map(|table| table.refusal.reason.clone()));
            return Err(PipelineError::NothingCaptured {
                environment: self.options.environment.clone(),
                reason: first.unwrap_or_else(|| "there is no table to capture".into()),
            });
        }
        let mut tables = Vec::new();
        for (name, captured) in &ended.captured {
            let prior_table = before.get(name.as_str()).copied();
            let is_new = prior.manifest.as_ref().is_some_and(|prior| !knows(prior, name));
            tables.push(self.table_manifest(snapshot, captured, prior_table, is_new, expected.get(name).copied()).await?);
        }
        let now = parts.clock.now();
        for (name, reason) in &ended.failed {
            // The last good state of a failed table stays part of the snapshot, marked as such.
            if let Some(prior_table) = before.get(name.as_str()) {
                let coverage = Coverage { reason: Some(reason.clone()), ..prior_table.coverage.clone() };
                tables.push(TableManifest { status: TableStatus::Failed, coverage, ..(*prior_table).clone() });
            } else {
                let refusal = Refusal { reason: format!("could not be read this time: {reason}"), remedy: None };
                ended.refused.push(RefusedTable { table: name.clone(), refusal });
            }
        }
        // Tables that were not asked for this time keep their state; tables that are gone do not.
        let carried: Vec<&TableManifest> =
            excluded.iter().filter_map(|name| before.get(name.as_str()).copied()).collect();
        if self.options.selected.is_some() {
            tables.extend(carried.into_iter().cloned());
        }
        tables.sort_by(|a, b| a.table.cmp(&b.table));
        ended.refused.sort_by(|a, b| a.table.cmp(&b.table));
        let known: HashSet<&str> = tables
            .iter()
            .map(|table| table.table.as_str())
            .chain(ended.refused.iter().map(|table| table.table.as_str()))
            .chain(excluded.iter().map(String::as_str))
            .collect();
        let gone: Vec<String> =
            before.keys().filter(|name| !known.contains(*name)).map(ToString::to_string).collect();
        let mut report = self.report(snapshot, now, &ended, &before, excluded.clone(), gone.clone(), schemas);
        for entry in report.tables.iter_mut().filter(|entry| entry.status == TableStatus::Succeeded) {
            let table = tables.iter().find(|table| table.table == entry.table);
            entry.schema_drift = table.and_then(|table| table.schema_drift.clone());
        }
        let mut manifest = Manifest {
            format: FORMAT,
            snapshot,
            environment: self.options.environment.clone(),
            identity,
            run: self.options.run,
            created: now,
            previous: prior.previous,
            window: window(&tables, self.options.started, now),
            tables,
            refused: ended.refused,
            excluded,
            gone,
            report,
            tool: self.options.tool.clone(),
        };
        let state =
            commit::next_state(parts.clock.as_ref(), &parts.state_folder, &manifest, &ended.captured, &prior.state).await?;
        if parts.cancel.is_cancelled() {
            return Err(PipelineError::Cancelled);
        }
        if !(parts.lock_held)() {
            return Err(PipelineError::LockLost { environment: self.options.environment.clone() });
        }
        manifest.report.finished = Some(parts.clock.now());
        commit::commit(&parts.catalog, &self.writer, &manifest, state).await?;
        Ok(manifest.report)
    }

    async fn table_manifest(
        &self,
        snapshot: SnapshotId,
        captured: &Captured,
        prior: Option<&TableManifest>,
        is_new: bool,
        expected: Option<u64>,
    ) -> Result<TableManifest, PipelineError> {
        let Captured { schema, progress, segments } = captured;
        let (hash, bytes) = self.writer.put_schema(schema).await?;
        self.parts.tally.bytes_stored(bytes);
        self.cache_schema(&hash, schema).await?;
        let prior_schema = self.prior_schema(prior).await;
        let full = progress.mode == TableMode::Full;
        let mut all: Vec<SegmentInfo> =
            prior.filter(|_| !full).map(|prior| prior.segments.clone()).unwrap_or_default();
        all.extend(segments.iter().cloned());
        let counts = progress.counts.unwrap_or_default();
        Ok(TableManifest {
            table: schema.table.name.clone(),
            entity_set: schema.entity_set.clone(),
            key: schema.key.clone(),
            mode: progress.mode,
            status: TableStatus::Succeeded,
            captured_by: snapshot,
            schema: hash,
            segments: all,
            live_rows: counts.live_rows,
            coverage: Coverage {
                expected,
                captured: counts.live_rows,
                refused: progress.refused,
                reason: reason(&progress.reasons),
            },
            delta: progress.delta.clone(),
            window: CutWindow {
                first_read: progress.first_read,
                last_read: progress.last_read,
                skew_seconds: progress.skew_seconds,
            },
            unobserved: progress.unobserved.clone(),
            schema_drift: mode::drift(prior_schema.as_ref(), is_new, schema),
        })
    }

    async fn cache_schema(&self, hash: &str, schema: &TableSchema) -> Result<(), PipelineError> {
        let path = self.schema_cache(hash);
        let json = serde_json::to_vec(schema).unwrap_or_default();
        blocking(move || {
            if path.exists() {
                return Ok(());
            }
            let write = |path: &Path| -> std::io::Result<()> {
                if let Some(folder) = path.parent() {
                    std::fs::create_dir_all(folder)?;
                }
                let partial = path.with_extension("partial");
                std::fs::write(&partial, &json)?;
                std::fs::rename(&partial, path)
            };
            Ok(write(&path).map_err(failed(&path))?)
        })
        .await
    }

    #[expect(clippy::too_many_arguments, reason = "everything a report is made of")]
    fn report(
        &self,
        snapshot: SnapshotId,
        now: Timestamp,
        ended: &Ended,
        before: &HashMap<&str, &TableManifest>,
        excluded: Vec<String>,
        gone: Vec<String>,
        schemas: &HashMap<String, Arc<TableSchema>>,
    ) -> RunReport {
        let mut tables: Vec<TableReport> = ended
            .captured
            .iter()
            .map(|(name, captured)| {
                let progress = &captured.progress;
                let counts = progress.counts.unwrap_or_default();
                let totals = match ended.tallies.get(name) {
                    Some(tally) => sum(progress.totals, tally.totals()),
                    None => progress.totals,
                };
                TableReport {
                    table: name.clone(),
                    mode: progress.mode,
                    status: TableStatus::Succeeded,
                    rows_read: totals.rows_read,
                    rows_stored: totals.rows_stored,
                    created: counts.created,
                    changed: counts.changed,
                    deleted: counts.deleted,
                    live_rows: counts.live_rows,
                    bytes_raw: totals.bytes_raw,
                    bytes_stored: totals.bytes_stored,
                    content_objects: progress.content_objects,
                    requests: totals.requests,
                    refused_rows: progress.refused,
                    reason: reason(&progress.reasons),
                    unobserved: progress.unobserved.clone(),
                    schema_drift: None,
                }
            })
            .collect();
        let hole = |name: &str, status: TableStatus, text: String| TableReport {
            table: name.to_string(),
            mode: if before.contains_key(name) && schemas.get(name).is_some_and(|schema| schema.tracked) {
                TableMode::Delta
            } else {
                TableMode::Full
            },
            status,
            rows_read: ended.tallies.get(name).map_or(0, |tally| tally.totals().rows_read),
            rows_stored: 0,
            created: 0,
            changed: 0,
            deleted: 0,
            live_rows: before.get(name).filter(|_| status == TableStatus::Failed).map_or(0, |prior| prior.live_rows),
            bytes_raw: 0,
            bytes_stored: 0,
            content_objects: 0,
            requests: ended.tallies.get(name).map_or(0, |tally| tally.totals().requests),
            refused_rows: 0,
            reason: Some(text),
            unobserved: None,
            schema_drift: None,
        };
        for refused in &ended.refused {
            let status =
                if ended.failed.contains_key(&refused.table) { TableStatus::Failed } else { TableStatus::Refused };
            tables.push(hole(&refused.table, status, refused.refusal.reason.clone()));
        }
        for (name, text) in &ended.failed {
            if before.contains_key(name.as_str()) {
                tables.push(hole(name, TableStatus::Failed, text.clone()));
            }
        }
        tables.sort_by(|a, b| a.table.cmp(&b.table));
        let whole = tables.iter().all(|table| table.status == TableStatus::Succeeded && table.refused_rows == 0);
        let totals = self.parts.tally.totals();
        RunReport {
            run: self.options.run,
            kind: RunKind::Backup,
            environment: self.options.environment.clone(),
            status: if whole { RunStatus::Succeeded } else { RunStatus::Partial },
            snapshot: Some(snapshot),
            started: self.options.started,
            finished: Some(now),
            tables,
            excluded,
            gone,
            requests: totals.requests,
            retries: totals.retries,
            throttled: totals.throttled,
            bytes_received: totals.bytes_received,
            bytes_raw: totals.bytes_raw,
            bytes_stored: totals.bytes_stored,
            peak_memory_bytes: 0,
            resumed_from: self.options.resumed_from,
            error: None,
        }
    }
}

/// Whether a snapshot says anything of a table. In the first one every table would be "new"; that says nothing.
fn knows(manifest: &Manifest, table: &str) -> bool {
    manifest.table(table).is_some()
        || manifest.refused.iter().any(|refused| refused.table == table)
        || manifest.excluded.iter().any(|excluded| excluded == table)
}

fn reason(reasons: &[String]) -> Option<String> {
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

fn window(tables: &[TableManifest], started: Timestamp, now: Timestamp) -> CutWindow {
    CutWindow {
        first_read: tables.iter().map(|table| table.window.first_read).min().unwrap_or(started),
        last_read: tables.iter().map(|table| table.window.last_read).max().unwrap_or(now),
        skew_seconds: tables.iter().filter_map(|table| table.window.skew_seconds).max_by_key(|skew| skew.abs()),
    }
}
