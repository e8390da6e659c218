//! Planning how to take a restore back, from what the vault keeps of it: the plan with every value it overwrote, and the outcomes.
//!
//! ```text
//!  catalog knows the run      its journal says what was done, also of a run that was killed
//!  catalog is lost            the outcomes of the vault, page by page into the new catalog
//!  outcomes are lost too      every operation may have been carried out: the plan of the undo looks at each row, and says so
//! ```

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use dynavault_catalog::{Catalog, OpOutcome, OpState, RestoreEnd};
use dynavault_model::{Diagnose, FaultKind, RunId, RunKind, RunStatus};
use dynavault_restore::{OUTCOME_LOST, PlanFile, PlanHead, PlanKind, RestoreReport, UndoParts, plan_undo, stream_ops};
use dynavault_store::StoreError;
use dynavault_vault::{RestoreRecord, Vault, VaultError};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::TOOL;
use crate::assemble::VaultUse;
use crate::failure::Failure;
use crate::inspect::blocking;
use crate::restore::{Restore, restore_row, unusable};

/// Outcomes that are taken over at once.
const PAGE_OUTCOMES: usize = 10_000;
/// Longest line of outcomes: a message of the service, and where the content of a row is.
const LINE_BYTES_MAX: u64 = 4 << 20;
/// Where the plan of a run is that only the vault knew.
const IN_VAULT: &str = "in the vault";

/// What reading outcomes came to.
enum Recalled {
    /// A page, and whether everything in it was carried out.
    Page(Vec<OpOutcome>),
    /// They are missing or damaged from here on; why.
    Lost(String),
}

impl Restore<'_> {
    /// Plans how to take back what a run did.
    pub async fn plan_undo(&self, run: &str, overwrite: bool, out: &Path) -> Result<PlanFile, Failure> {
        let catalog = self.engine.catalog().await?;
        let vault = self.engine.vault(VaultUse::Read).await?;
        let (run, environment) = self.find_restore(run, &catalog, &vault).await?;
        let scratch = self.scratch(&environment)?;
        let folder = tempfile::tempdir_in(&scratch).map_err(|error| unusable(&scratch, &error))?;
        let plan = stored_plan(&vault, &environment, run, &folder.path().join("plan.jsonl"), &catalog).await?;
        let known = catalog.restore(run).await?;
        // A process that died while it took the outcomes over has left a part of them.
        if known.is_none_or(|known| known.plan == IN_VAULT && known.status == "running") {
            self.recall(run, &environment, &plan, &catalog, &vault).await?;
        }
        let target = self.target(&plan.head().target)?;
        let identity = target.source.identity(&self.call()).await.map_err(dynavault_restore::RestoreError::from)?;
        plan.check_environment(&identity)?;
        let head = PlanHead {
            kind: PlanKind::Undo,
            tool: TOOL.to_string(),
            created: self.engine.clock().now(),
            undoes: Some(run.to_string()),
            selection: vec![format!("undo {run}")],
            identity,
            ..plan.head().clone()
        };
        // Also tells which tables take bulk messages: the plan counts requests as applying will make them.
        target.writes.abilities(&self.call()).await.map_err(dynavault_restore::RestoreError::from)?;
        let parts = UndoParts {
            source: Arc::clone(&target.source),
            target: Arc::clone(&target.writes),
            catalog,
            call: self.call(),
            schemas: self.schemas(&target).await?,
            scratch,
            overwrite,
        };
        plan_undo(&parts, run, stream_ops(plan.ops()?), &head, out).await?;
        let out = out.to_path_buf();
        blocking(move || Ok(PlanFile::open(&out)?)).await
    }

    /// A restore by the end of its id, in the catalog or, on a host that has lost it, in the vault.
    async fn find_restore(&self, run: &str, catalog: &Catalog, vault: &Vault) -> Result<(RunId, String), Failure> {
        if let Ok((summary, _)) = self.engine.run(run).await
            && let Ok(id) = summary.run.parse()
            && let Some(restore) = catalog.restore(id).await?
        {
            return Ok((id, restore.target));
        }
        let unknown = || Failure::usage(format!("{run:?} is not a restore run"), "`dynavault run list` shows them");
        let id: RunId = run.parse().map_err(|_| unknown())?;
        for environment in self.engine.config().environments.iter().map(|environment| environment.name.clone()) {
            let (vault, handle) = (vault.clone(), Handle::current());
            let name = environment.clone();
            let there = move || match vault.restore_record(&handle, &name, id, RestoreRecord::Plan) {
                Ok(_) => Ok(true),
                Err(error) if is_missing(&error) => Ok(false),
                // A key that is missing is not a run that is missing.
                Err(error) => Err(error.into()),
            };
            if blocking(there).await? {
                return Ok((id, environment));
            }
        }
        Err(unknown())
    }

    /// Records a restore that only the vault knows, page by page.
    async fn recall(
        &self,
        run: RunId,
        environment: &str,
        plan: &PlanFile,
        catalog: &Catalog,
        vault: &Vault,
    ) -> Result<(), Failure> {
        if catalog.restore(run).await?.is_none() {
            catalog.begin_run(run, RunKind::Restore, environment, plan.head().created).await?;
            catalog.begin_restore(restore_row(run, Path::new(IN_VAULT), plan.head(), plan.end())).await?;
        }
        let ops = plan.end().ops;
        let mut pages = read_outcomes(vault, environment, run, ops);
        let (mut status, mut why) = (RunStatus::Succeeded, None);
        while let Some(page) = pages.recv().await {
            match page? {
                Recalled::Page(page) => {
                    let clean = |one: &OpOutcome| matches!(one.state, OpState::Done | OpState::Unchanged);
                    if !page.iter().all(clean) {
                        status = RunStatus::Partial;
                    }
                    catalog.conclude(run, page).await?;
                }
                Recalled::Lost(reason) => why = Some(reason),
            }
        }
        if let Some(reason) = &why {
            tracing::warn!(run = %run, reason = %reason, "the outcomes of the restore are lost: every row is looked at");
            status = RunStatus::Interrupted;
            let mut from = 0;
            while from < ops {
                let to = ops.min(from + PAGE_OUTCOMES as u64);
                catalog.conclude(run, (from..to).map(lost).collect()).await?;
                from = to;
            }
        }
        let report = RestoreReport { status, ..RestoreReport::new(run) };
        let end = RestoreEnd {
            status,
            finished: self.engine.clock().now(),
            error: why,
            requests: 0,
            throttled: 0,
            report: serde_json::to_string(&report).unwrap_or_default(),
        };
        Ok(catalog.finish_restore(run, end).await?)
    }
}

/// An operation of which nothing is known.
fn lost(n: u64) -> OpOutcome {
    OpOutcome { n, state: OpState::Sent, code: Some(OUTCOME_LOST.into()), message: None, before: None }
}

/// Whether a vault simply does not have an object.
fn is_missing(error: &VaultError) -> bool {
    matches!(error, VaultError::Store { source: StoreError::NotFound { .. }, .. })
}

/// Our own errors travel inside of `io::Error`; any other one means that the bytes are not what was written.
fn of_reading(error: std::io::Error, what: &str) -> VaultError {
    let damaged = |error: std::io::Error| VaultError::Damaged { object: what.into(), detail: error.to_string() };
    error.downcast::<VaultError>().unwrap_or_else(damaged)
}

/// The plan of a run, copied out of the vault and checked.
async fn stored_plan(
    vault: &Vault,
    environment: &str,
    run: RunId,
    copy: &Path,
    catalog: &Catalog,
) -> Result<PlanFile, Failure> {
    let (reader, name, to) = (vault.clone(), environment.to_string(), copy.to_path_buf());
    let handle = Handle::current();
    let copied = blocking(move || {
        let mut stored = match reader.restore_record(&handle, &name, run, RestoreRecord::Plan) {
            Err(error) if is_missing(&error) => return Ok(None),
            stored => stored?,
        };
        let mut file = std::fs::File::create(&to).map_err(|error| unusable(&to, &error))?;
        let mut block = vec![0; 1 << 16];
        loop {
            let read = stored.read(&mut block).map_err(|error| of_reading(error, "the plan of the restore"))?;
            if read == 0 {
                break;
            }
            std::io::Write::write_all(&mut file, &block[..read]).map_err(|error| unusable(&to, &error))?;
        }
        let opened = PlanFile::open(&to).map_err(|error| {
            let detail = dynavault_model::chain(&error);
            VaultError::Damaged { object: format!("the plan of restore {run}"), detail }
        })?;
        Ok(Some(opened))
    })
    .await?;
    if let Some(plan) = copied {
        return Ok(plan);
    }
    if catalog.op_totals(run).await?.is_empty() {
        let message = format!("run {run} wrote nothing, so there is nothing to take back");
        return Err(Failure::usage(message, "`dynavault run list` shows the runs that did"));
    }
    Err(Failure::new(
        FaultKind::Damage,
        format!("the vault has lost the plan of run {run}, and with it the values from before"),
        Some("look for the object in a copy or an older version of the storage".into()),
    ))
}

/// Reads the outcomes of a run on a blocking thread, a page ahead.
fn read_outcomes(vault: &Vault, environment: &str, run: RunId, ops: u64) -> mpsc::Receiver<Result<Recalled, Failure>> {
    let (sender, receiver) = mpsc::channel(1);
    let (vault, handle, environment) = (vault.clone(), Handle::current(), environment.to_string());
    tokio::task::spawn_blocking(move || {
        let send = |page| sender.blocking_send(page).is_ok();
        let ended = match vault.restore_record(&handle, &environment, run, RestoreRecord::Outcomes) {
            Ok(stored) => send_pages(stored, ops, |page| send(Ok(Recalled::Page(page)))),
            Err(error) => Err(error),
        };
        match ended {
            Ok(()) => {}
            Err(error) if is_missing(&error) || error.kind() == FaultKind::Damage => {
                send(Ok(Recalled::Lost(dynavault_model::chain(&error))));
            }
            Err(error) => drop(send(Err(error.into()))),
        }
    });
    receiver
}

/// Cuts lines of outcomes into pages. What does not read as outcomes of a plan of `ops` operations is damage.
fn send_pages(stored: impl Read, ops: u64, mut send: impl FnMut(Vec<OpOutcome>) -> bool) -> Result<(), VaultError> {
    let damaged = |detail: String| VaultError::Damaged { object: "the outcomes of the restore".into(), detail };
    let mut reader = BufReader::new(stored);
    let mut page: Vec<OpOutcome> = Vec::new();
    let (mut line, mut next) = (Vec::new(), 0);
    loop {
        line.clear();
        let read = reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
        if read.map_err(|error| of_reading(error, "the outcomes of the restore"))? == 0 {
            break;
        }
        let outcome: OpOutcome = match serde_json::from_slice(&line) {
            Ok(outcome) if line.ends_with(b"\n") => outcome,
            Ok(_) => return Err(damaged("it was cut".into())),
            Err(error) => return Err(damaged(format!("a line is no outcome ({:?})", error.classify()))),
        };
        if outcome.n < next || outcome.n >= ops {
            return Err(damaged(format!("operation {} is out of its place", outcome.n)));
        }
        next = outcome.n + 1;
        page.push(outcome);
        if page.len() >= PAGE_OUTCOMES && !send(std::mem::take(&mut page)) {
            return Ok(());
        }
    }
    if !page.is_empty() {
        send(page);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(text: &str, ops: u64) -> Result<Vec<u64>, VaultError> {
        let mut found = Vec::new();
        send_pages(text.as_bytes(), ops, |page| {
            found.extend(page.iter().map(|one| one.n));
            true
        })?;
        Ok(found)
    }

    fn line(n: u64) -> String {
        serde_json::to_string(&OpOutcome { state: OpState::Done, code: None, ..lost(n) }).unwrap() + "\n"
    }

    #[test]
    fn outcomes_are_read_in_pages_whatever_their_number() {
        let count = 2 * PAGE_OUTCOMES as u64 + 7;
        let text: String = (0..count).map(line).collect();
        let (mut sizes, mut all) = (Vec::new(), 0);
        send_pages(text.as_bytes(), count, |page| {
            sizes.push(page.len());
            all += page.len() as u64;
            true
        })
        .unwrap();
        assert_eq!((sizes, all), (vec![PAGE_OUTCOMES, PAGE_OUTCOMES, 7], count));
        assert_eq!(pages("", 3).unwrap(), Vec::<u64>::new());
        assert_eq!(pages(&(line(0) + &line(2)), 3).unwrap(), [0, 2], "an operation that was not tried has no line");
    }

    #[test]
    fn outcomes_that_are_cut_or_changed_are_damage() {
        let whole = line(0) + &line(1);
        for text in [
            whole[..whole.len() - 1].to_string(),
            whole[..whole.len() - 5].to_string(),
            line(1) + &line(0),
            line(0) + &line(0),
            line(0) + &line(9),
            "hello\n".to_string(),
            "x".repeat(LINE_BYTES_MAX as usize + 1),
        ] {
            let error = pages(&text, 2).unwrap_err();
            assert_eq!(error.kind(), FaultKind::Damage, "{error}");
        }
    }
}
