//! One backup of one environment: who is there, what is to be read and how, all tables, one commit.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use dynavault_catalog::{Catalog, Draft, StateFile};
use dynavault_model::{
    Call, Clock, Observer, Refusal, RowSource, RunId, RunReport, SourceError, TableEvent, TableListing, TableMode,
    TableSchema, TableStatus, Tally,
};
use dynavault_vault::{Manifest, Previous, RefusedTable, SegmentInfo, Vault, VaultWriter};
use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::error::PipelineError;
use crate::mode::{self, Known, PlannedMode};
use crate::state::failed;
use crate::table_run::{Captured, Shared, TableEnd, TableJob, TableRun, blocking};
use crate::{MemoryBudget, SegmentLimits};

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

/// Chooses tables by name.
pub type TableFilter = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// Tables that were asked for, as they were typed.
#[derive(Clone)]
pub struct Selection {
    /// What was typed.
    pub text: String,
    /// Which tables it means.
    pub matches: TableFilter,
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
    pub included: TableFilter,
    /// Tables of this run, when only some were asked for: those that match any of these.
    pub selected: Option<Vec<Selection>>,
    /// Read everything again and store what differs.
    pub full: bool,
    /// Read everything again and store all of it, whatever the vault has.
    pub rebase: bool,
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
    pub(crate) parts: BackupParts,
    pub(crate) options: BackupOptions,
    pub(crate) writer: VaultWriter,
}

/// What is known before the first table is read.
pub(crate) struct Prior {
    pub(crate) manifest: Option<Manifest>,
    pub(crate) previous: Option<Previous>,
    pub(crate) state: Vec<StateFile>,
}

pub(crate) struct Ended {
    pub(crate) captured: HashMap<String, Captured>,
    pub(crate) failed: HashMap<String, String>,
    pub(crate) refused: Vec<RefusedTable>,
    pub(crate) tallies: HashMap<String, Arc<Tally>>,
}

impl EnvironmentRun {
    /// A run over concrete parts.
    pub fn new(parts: BackupParts, options: BackupOptions) -> Self {
        let writer = parts.vault.writer(&options.environment);
        Self { parts, options, writer }
    }

    /// Whether a table was asked for.
    pub(crate) fn is_selected(&self, table: &str) -> bool {
        let any = |selected: &Vec<Selection>| selected.iter().any(|selection| (selection.matches)(table));
        self.options.selected.as_ref().is_none_or(any)
    }

    /// What was asked for must mean something: a mistyped name would be a run that looks good and protects nothing.
    fn check_selection(&self, listings: &[TableListing]) -> Result<(), PipelineError> {
        for Selection { text, matches } in self.options.selected.iter().flatten() {
            let mut meant = listings.iter().map(|listing| &listing.table.name).filter(|name| matches(name)).peekable();
            let any = meant.peek().is_some();
            let reason = match any {
                false => "matches no table of the environment",
                true if meant.all(|name| !(self.options.included)(name)) => {
                    "matches only tables that the configuration leaves out"
                }
                true => continue,
            };
            return Err(PipelineError::NothingSelected { text: text.clone(), reason });
        }
        Ok(())
    }

    fn call(&self) -> Call {
        Call { tally: Arc::clone(&self.parts.tally), cancel: self.parts.cancel.clone() }
    }

    pub(crate) fn notice(&self, message: String) {
        self.parts.observer.event(TableEvent::Notice { table: None, message });
    }

    /// What a backup would do, without reading a row and without changing what this host remembers.
    pub async fn plan(&self) -> Result<Vec<TablePlan>, PipelineError> {
        self.parts.source.identity(&self.call()).await?;
        let prior = self.prior_to_plan_with().await?;
        let listings = self.parts.source.discover(&self.call()).await?;
        self.check_selection(&listings)?;
        let schemas: Vec<TableSchema> = listings.iter().filter_map(|listing| listing.schema.clone().ok()).collect();
        let rows = self.approximate_rows(&schemas).await;
        let before = mode::prior_tables(prior.manifest.as_ref());
        let damaged = self.damaged_segments().await?;
        let mut plans = Vec::new();
        for listing in listings {
            let table = listing.table.name;
            if !self.is_selected(&table) {
                continue;
            }
            let excluded = !(self.options.included)(&table);
            let mode = match listing.schema {
                Err(refusal) => Err(refusal),
                Ok(schema) => {
                    let prior_table = before.get(table.as_str()).copied();
                    let prior_schema = self.prior_schema(prior_table).await;
                    let state = self.state_paths(&table, &prior.state).is_some() || self.parts.vault.can_read();
                    let unusable = self.unusable(prior_table, &damaged).await;
                    let schema = self.without_files(schema);
                    Ok(mode::decide(
                        &schema,
                        &Known {
                            prior: prior_table,
                            prior_schema: prior_schema.as_ref(),
                            state,
                            unusable: unusable.as_deref(),
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
        blocking(move || {
            std::fs::create_dir_all(&folder).map_err(failed(&folder))?;
            // Names of attachments wait here in plain until they are fetched.
            let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
            Ok(std::fs::set_permissions(&folder, private).map_err(failed(&folder))?)
        })
        .await?;
        let identity = self.parts.source.identity(&self.call()).await?;
        self.forget_what_is_not_there().await?;
        self.complete_commit().await?;
        let prior = self.prior().await?;
        self.same_organization(&identity, prior.manifest.as_ref())?;
        let listings = self.parts.source.discover(&self.call()).await?;
        self.check_selection(&listings)?;
        let (draft, snapshot) = self.take_up_draft(prior.manifest.as_ref()).await?;
        self.sweep_folder(&prior, draft.as_ref()).await?;
        let (jobs, mut ended, excluded) = self.jobs(listings, &prior, draft).await?;
        let expected = self.expected_rows(&jobs).await;
        let schemas: HashMap<String, Arc<TableSchema>> =
            jobs.iter().map(|job| (job.schema.table.name.clone(), Arc::clone(&job.schema))).collect();
        self.read_tables(jobs, &expected, &mut ended).await?;
        self.commit(snapshot, identity, prior, ended, excluded, &expected, &schemas).await
    }

    fn without_files(&self, schema: TableSchema) -> TableSchema {
        if self.options.files { schema } else { TableSchema { content: Vec::new(), ..schema } }
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
        let damaged = self.damaged_segments().await?;
        let mut jobs = Vec::new();
        let mut ended =
            Ended { captured: HashMap::new(), failed: HashMap::new(), refused: Vec::new(), tallies: HashMap::new() };
        let mut excluded = Vec::new();
        for listing in listings {
            let name = listing.table.name.clone();
            if !(self.options.included)(&name) || !self.is_selected(&name) {
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
            let prior_table = before.get(name.as_str()).copied();
            let unusable = self.unusable(prior_table, &damaged).await;
            let base = match &unusable {
                Some(_) => None,
                None => self.base(prior_table, &prior.state).await?,
            };
            let prior_schema = self.prior_schema(prior_table).await;
            let known = Known {
                prior: prior_table,
                prior_schema: prior_schema.as_ref(),
                state: base.is_some(),
                unusable: unusable.as_deref(),
                full: self.options.full,
            };
            let planned = mode::decide(&schema, &known);
            if unusable.is_some() && !self.options.rebase {
                let message = planned.reason.clone().unwrap_or_default();
                self.parts.observer.event(TableEvent::Notice { table: Some(name.clone()), message });
            }
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
                Err(error) => {
                    (String::new(), Err(PipelineError::Broken { what: format!("the task of a table ({error})") }))
                }
            };
            match end {
                Ok(end) => {
                    let unreachable = matches!(end, TableEnd::Failed { unreachable: true, .. });
                    unreachable_in_row = if unreachable { unreachable_in_row + 1 } else { 0 };
                    let rows = ended.tallies.get(&name).map_or(0, |tally| tally.totals().rows_stored);
                    let status = Self::note_end(&name, end, ended);
                    parts.observer.event(TableEvent::Finished { table: name.clone(), status, rows });
                    if unreachable_in_row >= UNREACHABLE_MAX && failure.is_none() {
                        let last = ended.failed.get(&name).cloned().unwrap_or_default();
                        failure = Some(PipelineError::Source(SourceError::StopRun {
                            reason: format!("{UNREACHABLE_MAX} tables in a row could not be reached: {last}"),
                            remedy: Some(
                                "check the connection, then run the backup again: it goes on from here".into(),
                            ),
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

    fn note_end(name: &str, end: TableEnd, ended: &mut Ended) -> TableStatus {
        match end {
            TableEnd::Captured(captured) => {
                ended.captured.insert(name.to_string(), *captured);
                TableStatus::Succeeded
            }
            TableEnd::Refused { reason, remedy } => {
                let refusal = Refusal { reason, remedy };
                ended.refused.push(RefusedTable { table: name.to_string(), refusal });
                TableStatus::Refused
            }
            TableEnd::Failed { reason, .. } => {
                ended.failed.insert(name.to_string(), reason);
                TableStatus::Failed
            }
        }
    }
}
