//! One table from its first page to its last durable byte, through restarts and crashes.
//!
//! ```text
//!          ┌──────────── restart (link rejected, schema changed, token expired → sweep) ───────────┐
//!          ▼                                                                                        │
//!  prepare state ─▶ page ─▶ page ─▶ … ─▶ sweep: tombstones for what was not seen ─▶ content ─▶ counts ─▶ done
//!                      └─ segment durable ─▶ checkpoint (next link) ─┘
//! ```

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use dynavault_catalog::{Catalog, Checkpoint, Phase};
use dynavault_model::{
    Call, Clock, Observer, PageEnd, PageRequest, RowId, RowSource, SharedSink, SourceError, TableEvent, TableMode,
    TableSchema, Tally, UnobservedInterval,
};
use dynavault_vault::{DeltaToken, SegmentInfo, TableManifest, VaultWriter};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::error::PipelineError;
use crate::journal::{Journal, read_ordinals};
use crate::progress::{Counts, Progress, shape, sum};
use crate::sink::{DurableSegment, Seen, SinkParts, TableSink};
use crate::state::{self, GONE, State};
use crate::{MemoryBudget, SegmentLimits};

/// Times a table is begun anew in one run before it counts as failed.
const RESTARTS_MAX: u32 = 4;
/// Pages of one read; a billion rows. Stops a service that never ends.
const PAGES_MAX: usize = 200_000;

/// What every table of a run shares.
pub(crate) struct Shared {
    pub(crate) environment: String,
    pub(crate) source: Arc<dyn RowSource>,
    pub(crate) writer: VaultWriter,
    pub(crate) catalog: Catalog,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) handle: Handle,
    pub(crate) limits: SegmentLimits,
    pub(crate) budget: MemoryBudget,
    pub(crate) state_folder: PathBuf,
    pub(crate) cancel: CancellationToken,
}

/// A table to be read.
pub(crate) struct TableJob {
    pub(crate) schema: Arc<TableSchema>,
    pub(crate) prior: Option<TableManifest>,
    pub(crate) mode: TableMode,
    pub(crate) reason: Option<String>,
    /// State files of the snapshot before: rows, content. `None` when there is no usable state.
    pub(crate) base: Option<(Vec<PathBuf>, Vec<PathBuf>)>,
    /// What an interrupted run left: its checkpoint and durable segments.
    pub(crate) resume: Option<(Checkpoint, Vec<SegmentInfo>)>,
    pub(crate) tally: Arc<Tally>,
}

/// A table that was captured.
pub(crate) struct Captured {
    pub(crate) schema: Arc<TableSchema>,
    pub(crate) progress: Progress,
    pub(crate) segments: Vec<SegmentInfo>,
}

/// How a table ended.
pub(crate) enum TableEnd {
    Captured(Box<Captured>),
    Refused { reason: String, remedy: Option<String> },
    Failed { reason: String, unreachable: bool },
}

/// Why a read of the rows broke off without failing the table.
enum Restart {
    /// Begin anew in the same mode.
    Anew(String),
    /// Compare in full.
    Sweep { reason: String, tracked: bool },
}

enum Broken {
    Restart(Restart),
    Source(SourceError),
    Run(PipelineError),
}

impl From<PipelineError> for Broken {
    fn from(error: PipelineError) -> Self {
        Self::Run(error)
    }
}

pub(crate) struct TableRun<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) job: TableJob,
    pub(crate) schema: Arc<TableSchema>,
    pub(crate) progress: Progress,
    pub(crate) segments: Vec<SegmentInfo>,
    pub(crate) phase: Phase,
    link: Option<String>,
    /// An interrupted run left something that cannot be gone on from.
    stale: bool,
}

/// Runs blocking work and unpacks its result.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PipelineError> + Send + 'static,
) -> Result<T, PipelineError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(PipelineError::Broken { what: format!("a worker thread ({error})") }),
    }
}

fn lock(sink: &Mutex<TableSink>) -> std::sync::MutexGuard<'_, TableSink> {
    // A panic inside the sink is carried to us by the join error of its thread; the lock itself stays usable.
    sink.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> TableRun<'a> {
    /// Takes up a table, where an interrupted run left it if that still fits.
    pub(crate) fn new(shared: &'a Shared, mut job: TableJob) -> Self {
        let schema = Arc::clone(&job.schema);
        let progress = Progress::new(job.mode, &schema, shared.clock.now());
        let resume = job.resume.take();
        let (phase, stale) = (Phase::Rows, resume.is_some());
        let mut run = Self { shared, job, schema, progress, segments: Vec::new(), phase, link: None, stale };
        if let Some(reason) = run.job.reason.take() {
            run.progress.reasons.push(reason);
        }
        if let Some((checkpoint, segments)) = resume
            && let Ok(progress) = serde_json::from_str::<Progress>(&checkpoint.progress)
            && run.fits(&progress, &checkpoint)
        {
            if !progress.tracked {
                run.schema = untracked(&run.schema);
            }
            run.progress = progress;
            run.segments = segments;
            run.phase = checkpoint.phase;
            run.link = checkpoint.link;
            run.stale = false;
        }
        run
    }

    /// Whether what an interrupted run left can be gone on from: same columns, same state, all files there.
    fn fits(&self, progress: &Progress, checkpoint: &Checkpoint) -> bool {
        let here = |name: &String| self.path(name).exists();
        let same_base = match (&progress.base, &self.job.base) {
            (Some(names), Some((rows, _))) => *names == file_names(rows),
            (None, _) => true,
            (Some(_), None) => false,
        };
        // A table may have turned out not to be tracked only when it was asked.
        let schema = if progress.tracked { Arc::clone(&self.schema) } else { untracked(&self.schema) };
        progress.shape == shape(&schema)
            && (progress.mode == self.job.mode || self.job.mode == TableMode::Delta)
            && same_base
            && progress.run_files.iter().all(here)
            && progress.content_files.iter().all(here)
            && (checkpoint.phase != Phase::Rows || checkpoint.link.is_some())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.shared.state_folder.join(name)
    }

    fn scratch(&self, suffix: &str) -> PathBuf {
        self.path(&format!("{}.{suffix}", self.schema.table.name))
    }

    pub(crate) fn call(&self) -> Call {
        Call { tally: Arc::clone(&self.job.tally), cancel: self.shared.cancel.clone() }
    }

    fn notice(&self, message: String) {
        self.shared.observer.event(TableEvent::Notice { table: Some(self.schema.table.name.clone()), message });
    }

    /// Reads the table to its end. An error ends the whole run; what is durable stays for the next one.
    pub(crate) async fn run(mut self) -> Result<TableEnd, PipelineError> {
        if self.stale {
            // Its segments must not be taken for ours, should this run be interrupted as well.
            self.shared.catalog.reset_table(&self.shared.environment, &self.schema.table.name).await?;
        }
        let mut restarts = 0;
        while self.phase == Phase::Rows {
            let mode = self.progress.mode;
            self.shared.observer.event(TableEvent::Started { table: self.schema.table.name.clone(), mode });
            match self.read_rows().await {
                Ok(()) => break,
                Err(Broken::Run(error)) => return Err(error),
                Err(Broken::Restart(restart)) if restarts < RESTARTS_MAX => {
                    restarts += 1;
                    if let Some(end) = self.restart(restart).await? {
                        return Ok(end);
                    }
                }
                Err(Broken::Restart(Restart::Anew(reason) | Restart::Sweep { reason, .. })) => {
                    let reason = format!("{reason}; given up after {RESTARTS_MAX} new beginnings");
                    return Ok(TableEnd::Failed { reason, unreachable: false });
                }
                Err(Broken::Source(error)) => return Self::ended(error),
            }
        }
        if self.phase == Phase::Content {
            self.read_content().await?;
        }
        Ok(TableEnd::Captured(Box::new(Captured {
            schema: self.schema,
            progress: self.progress,
            segments: self.segments,
        })))
    }

    /// Sorts failures: of this table, or of the whole run.
    fn ended(error: SourceError) -> Result<TableEnd, PipelineError> {
        match error {
            SourceError::Refused { reason, remedy, .. } => Ok(TableEnd::Refused { reason, remedy }),
            SourceError::StopRun { .. } | SourceError::SignIn { .. } | SourceError::Cancelled => Err(error.into()),
            SourceError::Exhausted { .. } => Ok(TableEnd::Failed { reason: error.to_string(), unreachable: true }),
            other => Ok(TableEnd::Failed { reason: other.to_string(), unreachable: false }),
        }
    }

    async fn restart(&mut self, restart: Restart) -> Result<Option<TableEnd>, PipelineError> {
        let shared = self.shared;
        shared.catalog.reset_table(&shared.environment, &self.schema.table.name).await?;
        // Whatever broke the read may be a change of the table itself.
        match shared.source.rediscover(&self.schema, &self.call()).await {
            Ok(listing) => match listing.schema {
                Ok(schema) => {
                    self.schema = Arc::new(TableSchema { content: self.kept_content(&schema), ..schema });
                }
                Err(refusal) => {
                    return Ok(Some(TableEnd::Refused { reason: refusal.reason, remedy: refusal.remedy }));
                }
            },
            Err(error) => return Self::ended(error).map(Some),
        }
        let mut mode = self.progress.mode;
        let now = shared.clock.now();
        let mut unobserved = self.progress.unobserved.take();
        let mut reasons = std::mem::take(&mut self.progress.reasons);
        match restart {
            Restart::Anew(reason) => {
                if mode == TableMode::Delta && shape(&self.schema) != self.progress.shape {
                    mode = TableMode::Sweep;
                }
                self.notice(format!("{reason}; the table is read from its start"));
                reasons.push(reason);
            }
            Restart::Sweep { reason, tracked } => {
                mode = TableMode::Sweep;
                self.notice(format!("{reason}; the table is compared in full"));
                if !tracked {
                    self.schema = untracked(&self.schema);
                }
                if let Some(token) = self.job.prior.as_ref().and_then(|prior| prior.delta.as_ref()) {
                    unobserved = Some(UnobservedInterval { from: token.time, to: now });
                }
                reasons.push(reason);
            }
        }
        if mode == TableMode::Sweep && self.job.base.is_none() {
            mode = TableMode::Full;
        }
        reasons.dedup();
        let totals = self.progress.totals;
        self.progress = Progress { unobserved, reasons, totals, ..Progress::new(mode, &self.schema, now) };
        self.segments.clear();
        self.link = None;
        Ok(None)
    }

    /// Content columns of a schema that was discovered anew, as far as the run captures content at all.
    fn kept_content(&self, schema: &TableSchema) -> Vec<dynavault_model::ContentColumn> {
        if self.job.schema.content.is_empty() { Vec::new() } else { schema.content.clone() }
    }

    async fn prepare(&mut self) -> Result<Arc<Mutex<TableSink>>, PipelineError> {
        let sweeping = self.progress.mode == TableMode::Sweep;
        if self.progress.base.is_none()
            && self.progress.mode != TableMode::Full
            && let Some((rows, content)) = self.job.base.clone()
        {
            // A sweep marks records of one file; a long chain of small files is folded anyway.
            let rows = if sweeping || rows.len() > state::FILES_MAX { self.fold("rows", rows).await? } else { rows };
            self.progress.base = Some(file_names(&rows));
            self.progress.base_content = Some(file_names(&content));
            self.job.base = Some((rows, content));
        }
        let paths = |names: &Option<Vec<String>>| -> Option<Vec<PathBuf>> {
            names.as_ref().map(|names| names.iter().map(|name| self.path(name)).collect())
        };
        let base = paths(&self.progress.base);
        let base_content = paths(&self.progress.base_content);
        let draft: Vec<PathBuf> = self.progress.run_files.iter().map(|name| self.path(name)).collect();
        let (seen_path, items_path) = (self.scratch("seen"), self.scratch("items"));
        let (seen_bytes, items_bytes) = (self.progress.seen_bytes, self.progress.items_bytes);
        let has_content = !self.schema.content.is_empty();
        let shared = self.shared;
        let (writer, handle) = (shared.writer.clone(), shared.handle.clone());
        let (schema, tally, clock) = (Arc::clone(&self.schema), Arc::clone(&self.job.tally), Arc::clone(&shared.clock));
        let (limits, row_bytes_max, state_folder) =
            (shared.limits, shared.budget.row_bytes_max, shared.state_folder.clone());
        let gone_after = self.job.prior.as_ref().map(|prior| prior.window.last_read);
        let sink = blocking(move || {
            let base = base.map(|paths| State::open(&paths)).transpose()?;
            let seen = match &base {
                Some(base) if sweeping => {
                    let mut bits = vec![0_u64; (base.records() as usize).div_ceil(64)];
                    read_ordinals(&seen_path, seen_bytes, |ordinal| {
                        if let Some(word) = bits.get_mut((ordinal / 64) as usize) {
                            *word |= 1 << (ordinal % 64);
                        }
                    })?;
                    Some(Seen { bits, journal: Journal::open(&seen_path, seen_bytes)? })
                }
                _ => None,
            };
            Ok(TableSink::new(SinkParts {
                vault: writer,
                handle,
                schema,
                limits,
                row_bytes_max,
                tally,
                clock,
                state_folder,
                base,
                base_content: base_content.map(|paths| State::open(&paths)).transpose()?,
                draft: State::open(&draft)?,
                seen,
                items: if has_content { Some(Journal::open(&items_path, items_bytes)?) } else { None },
                gone_after,
            }))
        })
        .await?;
        Ok(Arc::new(Mutex::new(sink)))
    }

    /// Folds state files of the committed snapshot into one and tells the catalog.
    pub(crate) async fn fold(&self, kind: &str, files: Vec<PathBuf>) -> Result<Vec<PathBuf>, PipelineError> {
        if files.len() == 1 {
            return Ok(files);
        }
        let shared = self.shared;
        let table = self.schema.table.name.clone();
        let name = format!("{}.state", dynavault_model::SegmentId::new(shared.clock.as_ref()));
        let path = self.path(&name);
        let (from, into) = (files, path.clone());
        let entries = blocking(move || Ok(state::fold(&from, &into)?)).await?;
        let file = dynavault_catalog::StateFile { table: table.clone(), kind: kind.into(), file: name, entries };
        shared.catalog.replace_state_files(&shared.environment, &table, kind, vec![file]).await?;
        Ok(vec![path])
    }

    async fn read_rows(&mut self) -> Result<(), Broken> {
        let sink = self.prepare().await?;
        let mut request = match (&self.link, self.progress.mode) {
            (Some(link), _) => PageRequest::Link(link.clone()),
            (None, TableMode::Delta) => match self.job.prior.as_ref().and_then(|prior| prior.delta.as_ref()) {
                Some(token) => PageRequest::Link(token.link.clone()),
                None => PageRequest::First { tracked: self.schema.tracked },
            },
            (None, _) => PageRequest::First { tracked: self.schema.tracked },
        };
        if self.link.is_none() {
            self.progress.first_read = self.shared.clock.now();
        }
        let call = self.call();
        let mut links = HashSet::new();
        let mut metadata_version = None;
        loop {
            let shared_sink: SharedSink = Arc::clone(&sink) as SharedSink;
            let page = self.shared.source.read_page(&self.schema, &request, shared_sink, &call).await;
            let end = match page {
                Ok(end) => end,
                Err(error) => return Err(self.page_failed(error, &sink)),
            };
            self.settle_conflicts(&sink, &call).await?;
            self.note_time();
            self.check_metadata(&mut metadata_version, &end).await?;
            let Some(next) = end.next else {
                return self.rows_ended(sink, end.delta).await;
            };
            if !links.insert(dynavault_vault::version_hash(&next)) || links.len() > PAGES_MAX {
                return Err(Broken::Source(SourceError::Protocol {
                    what: format!("table {}", self.schema.table),
                    detail: "paging loop: the service gave a next link it had given before".into(),
                }));
            }
            if lock(&sink).wants_cut() {
                self.cut(&sink, Phase::Rows, Some(next.clone())).await?;
            }
            request = PageRequest::Link(next);
        }
    }

    fn note_time(&mut self) {
        let now = self.shared.clock.now();
        self.progress.last_read = now;
        if let Some(service) = self.shared.source.service_time() {
            self.progress.skew_seconds = Some(now.as_second() - service.as_second());
        }
    }

    fn page_failed(&self, error: SourceError, sink: &Mutex<TableSink>) -> Broken {
        match error {
            SourceError::SinkStopped => Broken::Run(
                lock(sink)
                    .take_error()
                    .unwrap_or_else(|| PipelineError::Broken { what: "a sink without an error".into() }),
            ),
            SourceError::TokenExpired { .. } => Broken::Restart(Restart::Sweep {
                reason: "the change token of the snapshot before had expired".into(),
                tracked: self.schema.tracked,
            }),
            SourceError::NotTracked { message, .. } => Broken::Restart(Restart::Sweep {
                reason: format!("the service does not track changes of this table ({message})"),
                tracked: false,
            }),
            SourceError::LinkRejected { message, .. } => {
                Broken::Restart(Restart::Anew(format!("the service no longer accepted a page link ({message})")))
            }
            other => Broken::Source(other),
        }
    }

    /// A change of the environment's metadata matters to this table only if its own columns changed; the service is asked
    /// when the version moves (`dataverse` protocol, section 2.5).
    async fn check_metadata(&mut self, known: &mut Option<String>, end: &PageEnd) -> Result<(), Broken> {
        let Some(version) = &end.metadata_version else { return Ok(()) };
        let moved = known.as_ref().is_some_and(|before| before != version);
        *known = Some(version.clone());
        if !moved {
            return Ok(());
        }
        let listing = self.shared.source.rediscover(&self.schema, &self.call()).await.map_err(Broken::Source)?;
        match listing.schema {
            Ok(now)
                if shape(&TableSchema { content: self.kept_content(&now), ..now.clone() }) == shape(&self.schema) =>
            {
                Ok(())
            }
            _ => Err(Broken::Restart(Restart::Anew("the table's columns changed while it was read".into()))),
        }
    }

    /// Rows that one delta lists both as changed and as deleted: the environment is asked which it is.
    async fn settle_conflicts(&mut self, sink: &Arc<Mutex<TableSink>>, call: &Call) -> Result<(), Broken> {
        let conflicts = lock(sink).take_conflicts();
        for deletion in conflicts {
            match self.shared.source.is_live(&self.schema, &deletion.key, call).await {
                Ok(true) => {}
                Ok(false) => {
                    let sink = Arc::clone(sink);
                    blocking(move || {
                        let Some(id) = RowId::from_guid(deletion.key.as_bytes()) else { return Ok(()) };
                        lock(&sink).bury(id, &deletion.key, &deletion.reason)
                    })
                    .await?;
                }
                Err(error) => return Err(Broken::Source(error)),
            }
        }
        Ok(())
    }

    async fn rows_ended(&mut self, sink: Arc<Mutex<TableSink>>, delta: Option<String>) -> Result<(), Broken> {
        let now = self.shared.clock.now();
        if delta.is_none() && self.schema.tracked {
            let reason = "the service gave no change token at the end; the next run compares the table in full";
            self.notice(reason.into());
            self.progress.reasons.push(reason.into());
        }
        self.progress.delta = delta.map(|link| DeltaToken { link, time: now });
        if self.progress.mode == TableMode::Sweep {
            self.bury_missing(&sink).await?;
        }
        // A phase of its own: whatever happens from here on, the rows are never read again.
        self.cut(&sink, Phase::Content, None).await?;
        self.phase = Phase::Content;
        Ok(())
    }

    /// A sweep has read every row: what was not seen is gone.
    async fn bury_missing(&mut self, sink: &Arc<Mutex<TableSink>>) -> Result<(), PipelineError> {
        let Some(names) = &self.progress.base else { return Ok(()) };
        let paths: Vec<PathBuf> = names.iter().map(|name| self.path(name)).collect();
        let sink = Arc::clone(sink);
        let cancel = self.shared.cancel.clone();
        blocking(move || {
            let mut ordinal = 0_u64;
            let mut failure = None;
            state::merge(&paths, |id, _| {
                let mut sink = lock(&sink);
                let missing = sink.seen_mut().is_some_and(|seen| !seen.contains(ordinal));
                ordinal += 1;
                if failure.is_none() && missing {
                    let result = if cancel.is_cancelled() {
                        Err(PipelineError::Cancelled)
                    } else {
                        sink.bury(id, &id.to_string(), "missing")
                    };
                    failure = result.err();
                }
                Ok(())
            })?;
            failure.map_or(Ok(()), Err)
        })
        .await
    }

    /// Makes everything read so far durable and records it.
    async fn cut(
        &mut self,
        sink: &Arc<Mutex<TableSink>>,
        phase: Phase,
        link: Option<String>,
    ) -> Result<(), PipelineError> {
        let shared_sink = Arc::clone(sink);
        let (durable, seen_bytes, items_bytes) = blocking(move || {
            let mut sink = lock(&shared_sink);
            let durable = sink.cut()?;
            let seen = sink.seen_mut().map(|seen| seen.journal.sync()).transpose()?;
            let items = sink.items_mut().map(Journal::sync).transpose()?;
            Ok((durable, seen, items))
        })
        .await?;
        {
            let mut sink = lock(sink);
            self.progress.refused += std::mem::take(&mut sink.refused);
            self.progress.reasons.append(&mut sink.reasons);
        }
        self.progress.seen_bytes = seen_bytes.unwrap_or(0);
        self.progress.items_bytes = items_bytes.unwrap_or(0);
        self.progress.run_files.extend(durable.iter().map(|segment| file_name(&segment.run_file)));
        self.checkpoint(phase, link, &durable).await
    }

    /// Records progress and the segments that are durable since the last record.
    pub(crate) async fn checkpoint(
        &mut self,
        phase: Phase,
        link: Option<String>,
        durable: &[DurableSegment],
    ) -> Result<(), PipelineError> {
        let shared = self.shared;
        let infos: Vec<String> =
            durable.iter().map(|segment| serde_json::to_string(&segment.info).unwrap_or_default()).collect();
        self.segments.extend(durable.iter().map(|segment| segment.info.clone()));
        let progress = Progress { totals: sum(self.progress.totals, self.job.tally.totals()), ..self.progress.clone() };
        let checkpoint = Checkpoint {
            table: self.schema.table.name.clone(),
            phase,
            link: link.filter(|link| !link.is_empty()),
            rows: progress.totals.rows_stored,
            progress: serde_json::to_string(&progress).unwrap_or_default(),
        };
        shared.catalog.checkpoint(&shared.environment, checkpoint, infos, shared.clock.now()).await?;
        Ok(())
    }

    /// Counts created, changed and deleted rows against the snapshot before.
    pub(crate) async fn finish_counts(&mut self) -> Result<(), PipelineError> {
        let run_files: Vec<PathBuf> = self.progress.run_files.iter().map(|name| self.path(name)).collect();
        let base: Option<Vec<PathBuf>> =
            self.progress.base.as_ref().map(|names| names.iter().map(|name| self.path(name)).collect());
        // What is read in full is compared with nothing; everything else has a state to be compared with.
        let prior = self.job.prior.as_ref().filter(|_| base.is_some());
        let before = prior.map_or(0, |prior| prior.live_rows);
        let counts = blocking(move || {
            let base = base.map(|paths| State::open(&paths)).transpose()?;
            let mut counts = Counts::default();
            state::merge(&run_files, |id, hash| {
                let known = match &base {
                    Some(base) => base.hash(id)?.is_some(),
                    None => false,
                };
                match (hash, known) {
                    (GONE, true) => counts.deleted += 1,
                    (GONE, false) => {}
                    (_, true) => counts.changed += 1,
                    (_, false) => counts.created += 1,
                }
                Ok(())
            })?;
            counts.live_rows = (before + counts.created).saturating_sub(counts.deleted);
            Ok(counts)
        })
        .await?;
        self.progress.counts = Some(counts);
        Ok(())
    }
}

fn untracked(schema: &TableSchema) -> Arc<TableSchema> {
    Arc::new(TableSchema { tracked: false, ..schema.clone() })
}

pub(crate) fn file_name(path: &std::path::Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

pub(crate) fn file_names(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|path| file_name(path)).collect()
}
