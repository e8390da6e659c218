//! Restore: apply, status; planning and taking back are in `restore_plan` and `restore_undo`. The environment is read and
//! written as its restore profile.
//!
//! ```text
//!  plan    vault + environment ─▶ plan file                              writes nothing
//!  apply   plan file ─▶ vault (the plan, with what it overwrites) ─▶ environment ─▶ read back, compare ─▶ vault (outcomes)
//!  undo    vault (plan, outcomes) + environment ─▶ another plan file      writes nothing
//! ```

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dynavault_catalog::{Catalog, OpOutcome, OpState, RestoreRow};
use dynavault_model::{
    Ability, Call, EnvironmentIdentity, FaultKind, Observer, RowSource, RowTarget, RunId, RunKind, RunStatus,
    TableListing, TableSchema, Tally,
};
use dynavault_restore::{
    ApplyParts, PlanEnd, PlanFile, PlanHead, PlanKind, Proof, ProveParts, RestoreReport, apply, prove, stream_ops,
};
use dynavault_vault::{RestoreRecord, Vault};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::assemble::{Engine, VaultUse};
use crate::config::EnvironmentConfig;
use crate::failure::Failure;
use crate::inspect::{SnapshotWanted, blocking, find_manifest};
use crate::local_lock::{LocalLock, RESTORE};

/// Batches under way at once; the governor of the environment decides how many requests really are.
const BATCHES_IN_PARALLEL_MAX: usize = 8;

/// How carrying out a plan ended.
#[derive(Debug, Serialize, Deserialize)]
pub struct RestoreEnd {
    /// What became of the rows.
    #[serde(flatten)]
    pub report: RestoreReport,
    /// What reading back showed; none when it did not come to that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
    /// Environment that was written to.
    pub environment: String,
    /// Digest of the plan.
    pub plan: String,
    /// Requests the plan foresaw.
    pub requests_planned: u64,
    /// Requests sent by this process, reading back included.
    pub requests: u64,
    /// Requests the service asked to slow down for.
    pub throttled: u64,
    /// Why it did not come to its end.
    #[serde(skip)]
    pub failure: Option<Failure>,
}

/// How far a restore has come.
#[derive(Debug, Serialize)]
pub struct RestoreStatus {
    /// The restore.
    #[serde(flatten)]
    pub restore: RestoreRow,
    /// Operations by state.
    pub operations: Vec<(OpState, u64)>,
    /// Refusals and conflicts, the first ones.
    pub refused: Vec<OpOutcome>,
}

/// An environment that is written to.
pub(crate) struct Target<'a> {
    pub(crate) config: &'a EnvironmentConfig,
    pub(crate) source: Arc<dyn RowSource>,
    pub(crate) writes: Arc<dyn RowTarget>,
}

/// Restores with the parts they need.
pub struct Restore<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) tally: Arc<Tally>,
    pub(crate) cancel: CancellationToken,
}

impl<'a> Restore<'a> {
    /// Prepares; reads and writes nothing yet.
    pub fn new(engine: &'a Engine, observer: Arc<dyn Observer>, tally: Arc<Tally>, cancel: CancellationToken) -> Self {
        Self { engine, observer, tally, cancel }
    }

    pub(crate) fn call(&self) -> Call {
        Call { tally: Arc::clone(&self.tally), cancel: self.cancel.clone() }
    }

    pub(crate) fn target(&self, environment: &str) -> Result<Target<'a>, Failure> {
        let config = self.engine.config().environment(environment)?;
        let (source, writes) = self.engine.target(config)?;
        Ok(Target { config, source, writes })
    }

    pub(crate) fn scratch(&self, environment: &str) -> Result<PathBuf, Failure> {
        let folder = self.engine.state_folder(environment)?.join("restore");
        std::fs::create_dir_all(&folder).map_err(|error| {
            Failure::new(
                FaultKind::Failed,
                format!("could not make the folder {}: {error}", folder.display()),
                Some("check that the disk is not full and the folder of the catalog may be written".into()),
            )
        })?;
        Ok(folder)
    }

    /// Carries out a plan, or goes on with one that was interrupted.
    pub async fn apply(&self, path: &Path, confirm_deletes: bool) -> Result<RestoreEnd, Failure> {
        let file = path.to_path_buf();
        let plan = blocking(move || Ok(PlanFile::open(&file)?)).await?;
        let (head, end) = (plan.head().clone(), plan.end().clone());
        if end.counts.delete + end.counts.unlink > 0 && !confirm_deletes {
            return Err(Failure::usage(
                format!("the plan deletes {} rows and {} links", end.counts.delete, end.counts.unlink),
                "read the plan, then add --confirm-deletes",
            ));
        }
        let target = self.target(&head.target)?;
        let state = self.engine.state_folder(&head.target)?;
        let local = LocalLock::take(&state, &format!("{}{RESTORE}", head.target), "restore into").await?;
        let identity = target.source.identity(&self.call()).await.map_err(dynavault_restore::RestoreError::from)?;
        plan.check_environment(&identity)?;
        let catalog = self.engine.catalog().await?;
        let run = self.begin(&catalog, path, &head, &end).await?;
        let now = self.engine.clock().now();
        catalog.interrupt_dead_runs(RunKind::Restore, &head.target, run, now).await?;
        let result = Box::pin(self.carry_out(run, &plan, &target, &identity, catalog.clone())).await;
        let ended = self.conclude(run, &head, &end, &catalog, result).await;
        drop(local);
        Ok(ended)
    }

    /// The run of a plan: a new one, or the one that was interrupted.
    async fn begin(&self, catalog: &Catalog, path: &Path, head: &PlanHead, end: &PlanEnd) -> Result<RunId, Failure> {
        if let Some(run) = catalog.unfinished_restore(&end.digest).await? {
            catalog.resume_restore(run).await?;
            return Ok(run);
        }
        if let Some(run) = catalog.finished_restore(&end.digest).await? {
            return Err(Failure::usage(
                format!("run {run} has carried out this plan already"),
                "make a new plan; it holds what is still to do",
            ));
        }
        let run = RunId::new(self.engine.clock().as_ref());
        catalog.begin_run(run, RunKind::Restore, &head.target, self.engine.clock().now()).await?;
        catalog.begin_restore(restore_row(run, path, head, end)).await?;
        Ok(run)
    }

    /// Schemas of the tables of the environment that can be read.
    pub(crate) async fn schemas(&self, target: &Target<'_>) -> Result<HashMap<String, Arc<TableSchema>>, Failure> {
        let listings = target.source.discover(&self.call()).await.map_err(dynavault_restore::RestoreError::from)?;
        let readable = |listing: TableListing| Some((listing.table.name, Arc::new(listing.schema.ok()?)));
        Ok(listings.into_iter().filter_map(readable).collect())
    }

    async fn carry_out(
        &self,
        run: RunId,
        plan: &PlanFile,
        target: &Target<'_>,
        identity: &EnvironmentIdentity,
        catalog: Catalog,
    ) -> Result<(RestoreReport, Proof), Failure> {
        let head = plan.head();
        let vault = self.engine.vault(VaultUse::Write).await?;
        let mut schemas = self.schemas(target).await?;
        schemas.retain(|name, _| plan.tables().iter().any(|table| table.table == *name));
        let scratch = self.scratch(&head.target)?;
        // Also tells which tables take bulk messages, as it did when the plan counted its requests.
        let abilities = target.writes.abilities(&self.call()).await.map_err(dynavault_restore::RestoreError::from)?;
        if let (true, Ability::Missing(privilege)) = (head.options.bypass_logic, &abilities.bypass_logic) {
            return Err(Failure::new(
                FaultKind::SignIn,
                format!("the restore profile may not bypass custom logic: it lacks {privilege}"),
                Some(format!(
                    "give its role in {} the privilege {privilege}, or plan again with --run-automation",
                    head.target
                )),
            ));
        }
        self.keep_plan(run, plan, &vault).await?;
        let parts = ApplyParts {
            source: Arc::clone(&target.source),
            target: Arc::clone(&target.writes),
            vault: vault.clone(),
            content_from: content_folder(head),
            records_in: head.target.clone(),
            catalog: catalog.clone(),
            observer: Arc::clone(&self.observer),
            call: self.call(),
            schemas: schemas.clone(),
            scratch: scratch.clone(),
            parallel: (target.config.max_requests_in_flight as usize).min(BATCHES_IN_PARALLEL_MAX),
            options: head.options.clone(),
            user: identity.user_id.clone(),
        };
        let report = apply(parts, run, stream_ops(plan.ops()?)).await?;
        let manifest = match head.kind {
            PlanKind::Restore => {
                let wanted = SnapshotWanted::Id(head.snapshot);
                Some(Arc::new(find_manifest(&vault, &head.source, &wanted).await?))
            }
            PlanKind::Undo => None,
        };
        let parts = ProveParts {
            source: Arc::clone(&target.source),
            target: Arc::clone(&target.writes),
            vault: vault.clone(),
            manifest,
            catalog: catalog.clone(),
            call: self.call(),
            schemas,
            scratch: scratch.clone(),
            options: head.options.clone(),
            user: identity.user_id.clone(),
        };
        let proof = prove(&parts, run, stream_ops(plan.ops()?)).await?;
        self.keep_outcomes(run, head, &vault, &catalog, &scratch).await?;
        Ok((report, proof))
    }

    /// The plan goes into the vault before the first write: it holds everything an undo needs.
    async fn keep_plan(&self, run: RunId, plan: &PlanFile, vault: &Vault) -> Result<(), Failure> {
        let (writer, path) = (vault.writer(&plan.head().target), plan.path().to_path_buf());
        let handle = Handle::current();
        blocking(move || {
            let file = std::fs::File::open(&path).map_err(|error| unusable(&path, &error))?;
            Ok(writer.put_restore_record(&handle, run, RestoreRecord::Plan, file)?)
        })
        .await
    }

    async fn keep_outcomes(
        &self,
        run: RunId,
        head: &PlanHead,
        vault: &Vault,
        catalog: &Catalog,
        scratch: &Path,
    ) -> Result<(), Failure> {
        use std::io::{Seek, Write};
        let failed = |error: std::io::Error| unusable(scratch, &error);
        let mut file = std::io::BufWriter::new(tempfile::tempfile_in(scratch).map_err(failed)?);
        let mut from = 0;
        loop {
            let page = catalog.op_outcomes(run, from).await?;
            let Some(last) = page.last() else { break };
            from = last.n + 1;
            for outcome in &page {
                serde_json::to_writer(&mut file, outcome).map_err(|error| failed(error.into()))?;
                file.write_all(b"\n").map_err(failed)?;
            }
        }
        let mut file = file.into_inner().map_err(|error| failed(error.into_error()))?;
        file.rewind().map_err(failed)?;
        let (writer, handle) = (vault.writer(&head.target), Handle::current());
        blocking(move || Ok(writer.put_restore_record(&handle, run, RestoreRecord::Outcomes, file)?)).await
    }

    /// Records the end, good or bad.
    async fn conclude(
        &self,
        run: RunId,
        head: &PlanHead,
        end: &PlanEnd,
        catalog: &Catalog,
        result: Result<(RestoreReport, Proof), Failure>,
    ) -> RestoreEnd {
        let (mut report, proof, mut failure) = match result {
            Ok((report, proof)) => (report, Some(proof), None),
            Err(failure) => (RestoreReport::new(run), None, Some(failure)),
        };
        if let Some(failure) = &failure {
            let cancelled = failure.kind() == FaultKind::Cancelled;
            report.status = if cancelled { RunStatus::Cancelled } else { RunStatus::Failed };
        }
        let unexplained = proof.as_ref().map_or(0, |proof| proof.unexplained);
        if unexplained > 0 {
            report.status = RunStatus::Partial;
            failure = Some(Failure::new(
                FaultKind::Failed,
                format!("{unexplained} values differ from what was written, without a known reason"),
                Some(format!(
                    "`dynavault run report {run}` names them; `dynavault restore undo {run}` takes the run back"
                )),
            ));
        }
        let totals = self.tally.totals();
        let ended = RestoreEnd {
            report,
            proof,
            environment: head.target.clone(),
            plan: end.digest.clone(),
            requests_planned: end.requests,
            requests: totals.requests,
            throttled: totals.throttled,
            failure,
        };
        let record = dynavault_catalog::RestoreEnd {
            status: ended.report.status,
            finished: self.engine.clock().now(),
            error: ended.failure.as_ref().map(Failure::message),
            requests: totals.requests,
            throttled: totals.throttled,
            report: serde_json::to_string(&ended).unwrap_or_default(),
        };
        if let Err(error) = catalog.finish_restore(run, record).await {
            tracing::error!(run = %run, error = %dynavault_model::chain(&error), "could not record the end of the run");
        }
        ended
    }

    /// How far a restore has come.
    pub async fn status(&self, run: &str) -> Result<RestoreStatus, Failure> {
        /// Refusals shown.
        const SHOWN_MAX: usize = 200;
        let catalog = self.engine.catalog().await?;
        let (summary, _) = self.engine.run(run).await?;
        let unknown =
            || Failure::usage(format!("run {} is not a restore", summary.run), "`dynavault run list` shows runs");
        let id: RunId = summary.run.parse().map_err(|_| unknown())?;
        let restore = catalog.restore(id).await?.ok_or_else(unknown)?;
        let mut refused = Vec::new();
        let mut from = 0;
        while refused.len() < SHOWN_MAX {
            let page = catalog.op_outcomes(id, from).await?;
            let Some(last) = page.last() else { break };
            from = last.n + 1;
            let bad = |outcome: &OpOutcome| matches!(outcome.state, OpState::Rejected | OpState::Conflict);
            refused.extend(page.into_iter().filter(bad).take(SHOWN_MAX - refused.len()));
        }
        Ok(RestoreStatus { operations: catalog.op_totals(id).await?, restore, refused })
    }
}

/// Folder of the vault that holds the bytes a plan uploads: the snapshot's, or for an undo what the restore stored.
fn content_folder(head: &PlanHead) -> String {
    match head.kind {
        PlanKind::Restore => head.source.clone(),
        PlanKind::Undo => head.target.clone(),
    }
}

pub(crate) fn restore_row(run: RunId, path: &Path, head: &PlanHead, end: &PlanEnd) -> RestoreRow {
    RestoreRow {
        run: run.to_string(),
        kind: match head.kind {
            PlanKind::Restore => "restore".into(),
            PlanKind::Undo => "undo".into(),
        },
        environment: head.source.clone(),
        target: head.target.clone(),
        digest: end.digest.clone(),
        plan: path.display().to_string(),
        ops: end.ops,
        status: "running".into(),
    }
}

pub(crate) fn unusable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(
        FaultKind::Failed,
        format!("could not use {}: {error}", path.display()),
        Some("check that the disk is not full and the folder may be written".into()),
    )
}
