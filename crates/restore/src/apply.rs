//! Carrying out a plan: batch by batch, journal before and outcome after.
//!
//! ```text
//!  plan file ─▶ cut into batches ─▶ ┌ sent before, no answer known: read the rows, decide       (settle)
//!               (one step and wave  │ note the intents in the journal, durably
//!                at a time, several │ write through the RowTarget
//!                batches at once)   │ answer lost: read the rows, decide, send what is not there
//!                                   └ note the outcomes
//! ```
//!
//! - The plan is in the vault before the first write: it holds every value that will be overwritten.
//! - Content that is replaced or goes with a deleted row is stored in the vault before it goes.
//! - A row that is refused because a row it refers to is missing is written without that reference, if it may be; the
//!   result says so. One lookup must not cost a row and everything below it (`dataverse` protocol, rule 6.2).
//! - A row that cannot be made on behalf of the user who made it is made as our own (`dataverse` protocol, section 6.16).

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use dynavault_catalog::{Catalog, OpOutcome, OpState};
use dynavault_model::{
    Call, Guard, Observer, Rejection, RejectionClass, RowSource, RowTarget, RowWrite, RunId, SourceError, TableEvent,
    TableSchema, Treatment, WriteKind, WriteOptions, WriteOutcome,
};
use dynavault_vault::Vault;
use serde_json::value::RawValue;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::RestoreError;
use crate::adjust::{
    OWNER_REFUSED, TARGET_MISSING, as_noted, both, left_out_as, refuses_creator, without_creator, without_reference,
    written_without,
};
use crate::batches::{BatchKey, Cutter};
use crate::disowned::RefusedOwners;
use crate::outcomes::RestoreReport;
use crate::plan::{Action, Op};
use crate::settle::{LiveRow, Settled, differs_by_cascade_only, holds, read_live, settle, still_as_seen};

/// Operations read ahead of the writes.
const AHEAD_MAX: usize = 256;
/// Times in a row that a batch is sent when its answer is lost and no row of it gets any further; after that the run stops
/// and can be resumed.
const SENDS_MAX: u32 = 6;
/// References left out of one row before it is given up.
const REFERENCES_MAX: usize = 32;

/// Said of a row that is neither as planned nor as it was, after an answer was lost.
const CHANGED_MEANWHILE: &str = "the row was changed by somebody else while the answer was lost";

/// What applying needs.
pub struct ApplyParts {
    /// The environment, for reading content that is replaced.
    pub source: Arc<dyn RowSource>,
    /// The environment, for writing.
    pub target: Arc<dyn RowTarget>,
    /// The vault: bytes to upload, and place of what is replaced.
    pub vault: Vault,
    /// Folder of the vault that holds the bytes to upload.
    pub content_from: String,
    /// Folder of the vault that takes what is replaced.
    pub records_in: String,
    /// The journal.
    pub catalog: Catalog,
    /// Told of progress.
    pub observer: Arc<dyn Observer>,
    /// Counting and stopping.
    pub call: Call,
    /// Present schemas of the tables of the plan.
    pub schemas: HashMap<String, Arc<TableSchema>>,
    /// Folder for files in passing.
    pub scratch: PathBuf,
    /// Batches under way at once.
    pub parallel: usize,
    /// How writes are made.
    pub options: WriteOptions,
    /// Our own user in the environment.
    pub user: String,
}

/// Applies plans. One at a time.
pub(crate) struct Applier {
    pub(crate) parts: ApplyParts,
    pub(crate) run: RunId,
    report: Mutex<RestoreReport>,
    /// Tables that take no writes of a kind, with the service's words.
    blocked: Mutex<HashMap<(String, Action), (String, String)>>,
    /// Tables whose rows are links.
    links: HashSet<String>,
    pub(crate) owners: RefusedOwners,
}

/// An operation on its way.
struct Item {
    op: Op,
    /// What the journal says of it, if it was begun and no answer is known.
    begun: Option<OpOutcome>,
}

/// What is known of operations that are sent again.
#[derive(Default)]
struct Again {
    /// Sent before, without an answer.
    sent: HashSet<u64>,
    /// Content that was stored before it was replaced, as JSON.
    kept: HashMap<u64, String>,
}

/// Operations of a plan, in order, as they are read.
pub type Ops = mpsc::Receiver<Result<Op, RestoreError>>;

/// Reads operations on a blocking thread, a bounded number ahead.
pub fn stream_ops(ops: impl Iterator<Item = Result<Op, RestoreError>> + Send + 'static) -> Ops {
    let (sender, receiver) = mpsc::channel(AHEAD_MAX);
    tokio::task::spawn_blocking(move || {
        for op in ops {
            let failed = op.is_err();
            if sender.blocking_send(op).is_err() || failed {
                break;
            }
        }
    });
    receiver
}

/// Carries out the operations of a plan; those that an earlier process finished are left alone. An error leaves the journal
/// so that the same call goes on where this one stopped.
pub async fn apply(parts: ApplyParts, run: RunId, mut ops: Ops) -> Result<RestoreReport, RestoreError> {
    let links = parts
        .schemas
        .values()
        .filter(|schema| matches!(parts.target.rules(schema).treatment, Treatment::Links { .. }))
        .map(|schema| schema.table.name.clone())
        .collect();
    let parallel = parts.parallel.max(1);
    let applier = Arc::new(Applier {
        parts,
        run,
        report: Mutex::new(RestoreReport::new(run)),
        blocked: Mutex::default(),
        links,
        owners: RefusedOwners::default(),
    });
    let mut done = Journal::default();
    let mut cutter = Cutter::default();
    let mut batch: Vec<Item> = Vec::new();
    let mut work: JoinSet<Result<(), RestoreError>> = JoinSet::new();
    let permits = Arc::new(Semaphore::new(parallel));
    let mut place: Option<(crate::plan::Step, u32)> = None;
    while let Some(op) = ops.recv().await {
        let op = op?;
        if applier.parts.call.cancel.is_cancelled() {
            return Err(RestoreError::Cancelled);
        }
        let rows_max = match op.action {
            Action::Write(kind) => applier.parts.target.batch_rows(applier.schema(&op.table)?, kind),
            _ => 1,
        };
        // A batch ends where the planner counted its end, whatever an earlier process has done of it.
        if cutter.begins(&op, rows_max) && !batch.is_empty() {
            applier.start(std::mem::take(&mut batch), &permits, &mut work).await?;
        }
        if place.is_some_and(|place| place != (op.step, op.wave)) {
            applier.start(std::mem::take(&mut batch), &permits, &mut work).await?;
            drain(&mut work).await?;
        }
        place = Some((op.step, op.wave));
        match done.state(&applier.parts.catalog, run, op.n).await? {
            None => batch.push(Item { op, begun: None }),
            Some(outcome) if outcome.state == OpState::Sent => batch.push(Item { op, begun: Some(outcome) }),
            Some(outcome) => applier.lock_report().count(&op, &outcome),
        }
    }
    applier.start(batch, &permits, &mut work).await?;
    drain(&mut work).await?;
    let mut report = applier.lock_report().clone();
    report.status = report.ended();
    Ok(report)
}

/// Waits for the batches under way; the first failure stops the others at their next request.
async fn drain(work: &mut JoinSet<Result<(), RestoreError>>) -> Result<(), RestoreError> {
    let mut failed = None;
    while let Some(ended) = work.join_next().await {
        let result = ended.unwrap_or_else(|error| Err(RestoreError::Worker(error.to_string())));
        if let Err(error) = result {
            failed.get_or_insert(error);
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Outcomes an earlier process noted, read in order beside the plan.
#[derive(Default)]
pub(crate) struct Journal {
    page: std::collections::VecDeque<OpOutcome>,
    next: u64,
    ended: bool,
}

impl Journal {
    pub(crate) async fn state(
        &mut self,
        catalog: &Catalog,
        run: RunId,
        n: u64,
    ) -> Result<Option<OpOutcome>, RestoreError> {
        loop {
            while self.page.front().is_some_and(|outcome| outcome.n < n) {
                self.page.pop_front();
            }
            if let Some(outcome) = self.page.front() {
                return Ok((outcome.n == n).then(|| outcome.clone()));
            }
            if self.ended {
                return Ok(None);
            }
            let page = catalog.op_outcomes(run, self.next.max(n)).await?;
            match page.last() {
                Some(last) => self.next = last.n + 1,
                None => self.ended = true,
            }
            self.page = page.into();
        }
    }
}

impl Applier {
    fn lock_report(&self) -> std::sync::MutexGuard<'_, RestoreReport> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn schema(&self, table: &str) -> Result<&Arc<TableSchema>, RestoreError> {
        self.parts.schemas.get(table).ok_or_else(|| RestoreError::NoTable {
            table: table.to_string(),
            environment: self.parts.records_in.clone(),
        })
    }

    /// Hands a batch to a task as soon as one of the places is free.
    async fn start(
        self: &Arc<Self>,
        batch: Vec<Item>,
        permits: &Arc<Semaphore>,
        work: &mut JoinSet<Result<(), RestoreError>>,
    ) -> Result<(), RestoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        while let Some(ended) = work.try_join_next() {
            ended.unwrap_or_else(|error| Err(RestoreError::Worker(error.to_string())))?;
        }
        let permit =
            Arc::clone(permits).acquire_owned().await.map_err(|error| RestoreError::Worker(error.to_string()))?;
        let this = Arc::clone(self);
        work.spawn(async move {
            let result = this.batch(batch).await;
            drop(permit);
            result
        });
        Ok(())
    }

    /// One batch, from intents to outcomes.
    async fn batch(&self, items: Vec<Item>) -> Result<(), RestoreError> {
        let Some(first) = items.first() else { return Ok(()) };
        let key = BatchKey::of(&first.op);
        let schema = Arc::clone(self.schema(&key.table)?);
        let mut outcomes: Vec<(Op, OpOutcome)> = Vec::with_capacity(items.len());
        let mut fresh: Vec<Op> = Vec::new();
        let mut begun: Vec<(Op, Option<String>)> = Vec::new();
        let mut again = Again::default();
        for Item { op, begun: journal } in items {
            let Some(journal) = journal else {
                fresh.push(op);
                continue;
            };
            again.sent.insert(op.n);
            again.kept.extend(journal.before.map(|before| (op.n, before)));
            begun.push((op, journal.message));
        }
        fresh.extend(self.settle(&schema, begun, &mut outcomes).await?);
        let blocked = self.blocked(&key.table, key.action);
        if let Some((code, message)) = blocked {
            let rejected = |op: Op| {
                let outcome = noted(op.n, OpState::Rejected, Some(code.clone()), Some(message.clone()));
                (op, outcome)
            };
            outcomes.extend(fresh.drain(..).map(rejected));
        }
        if !fresh.is_empty() {
            self.parts.catalog.intend(self.run, fresh.iter().map(|op| op.n).collect()).await?;
            match key.action {
                Action::Write(kind) => self.write(&schema, kind, fresh, again, &mut outcomes).await?,
                Action::Upload | Action::Clear => {
                    for op in fresh {
                        let outcome = self.content(&schema, &op, again.kept.remove(&op.n)).await?;
                        outcomes.push((op, outcome));
                    }
                }
            }
        }
        self.parts.catalog.conclude(self.run, outcomes.iter().map(|(_, outcome)| outcome.clone()).collect()).await?;
        let mut report = self.lock_report();
        for (op, outcome) in &outcomes {
            report.count(op, outcome);
        }
        drop(report);
        self.parts.observer.event(TableEvent::Written { table: key.table, rows: outcomes.len() as u64 });
        Ok(())
    }

    /// Reads rows whose write has no known answer; gives back those that have to be sent. With each operation goes what was
    /// done differently from the plan when it was sent.
    async fn settle(
        &self,
        schema: &TableSchema,
        ops: Vec<(Op, Option<String>)>,
        outcomes: &mut Vec<(Op, OpOutcome)>,
    ) -> Result<Vec<Op>, RestoreError> {
        // Making or removing a link, and uploading, may simply be done again.
        let plain = |op: &Op| matches!(op.action, Action::Write(_)) && !self.links.contains(&op.table);
        let (rows, others): (Vec<_>, Vec<_>) = ops.into_iter().partition(|(op, _)| plain(op));
        let mut again: Vec<Op> = others.into_iter().map(|(op, _)| op).collect();
        if rows.is_empty() {
            return Ok(again);
        }
        let keys: Vec<_> = rows.iter().map(|(op, _)| op.key.clone()).collect();
        let live = read_live(self.parts.target.as_ref(), schema, &keys, &self.parts.call).await?;
        for (op, note) in rows {
            let sent = note.as_deref().and_then(|note| as_noted(&op, note));
            match settle(sent.as_ref().unwrap_or(&op), live.get(&op.key), &self.parts.user) {
                Settled::Done => outcomes.push((noted(op.n, OpState::Done, None, note), op).swap()),
                Settled::Conflict => {
                    let message = Some(CHANGED_MEANWHILE.to_string());
                    outcomes.push((noted(op.n, OpState::Conflict, None, message), op).swap());
                }
                Settled::NotDone => again.push(op),
            }
        }
        Ok(again)
    }

    /// Writes rows until every one of them has an outcome.
    async fn write(
        &self,
        schema: &TableSchema,
        kind: WriteKind,
        mut ops: Vec<Op>,
        mut again: Again,
        outcomes: &mut Vec<(Op, OpOutcome)>,
    ) -> Result<(), RestoreError> {
        let links = self.links.contains(&schema.table.name);
        let mut before: HashMap<u64, String> = HashMap::new();
        if kind == WriteKind::Delete {
            for op in &ops {
                if let Some(content) = self.content_of_row(schema, op).await? {
                    before.insert(op.n, content);
                }
            }
            // Before the rows go: a process that dies after that still knows where their content is.
            let kept = before.iter().map(|(n, content)| OpOutcome {
                before: Some(content.clone()),
                ..noted(*n, OpState::Sent, None, None)
            });
            let kept: Vec<OpOutcome> = kept.collect();
            if !kept.is_empty() {
                self.parts.catalog.conclude(self.run, kept).await?;
            }
        }
        let mut last = String::new();
        // Rows that are no longer written on behalf of their creators.
        let mut alone: HashSet<u64> = HashSet::new();
        // Notes of rows that are written without their owners.
        let mut notes: HashMap<u64, String> = HashMap::new();
        let mut tries = 0;
        while tries < SENDS_MAX {
            let open = ops.len();
            ops = self.disown(schema, kind, ops, &mut notes, outcomes).await?;
            let writes: Vec<RowWrite> = ops.iter().map(row_write).collect();
            let answers = self.parts.target.write(schema, kind, &writes, &self.parts.options, &self.parts.call).await?;
            let (mut unknown, mut unsent) = (Vec::new(), Vec::new());
            for (op, answer) in ops.into_iter().zip(answers) {
                match answer {
                    WriteOutcome::Unknown { message } => {
                        last = message;
                        again.sent.insert(op.n);
                        let note = notes.get(&op.n).cloned();
                        unknown.push((op, note));
                    }
                    WriteOutcome::NotSent => unsent.push(op),
                    WriteOutcome::Rejected(refusal) if refuses_creator(&op, &refusal) => {
                        alone.insert(op.n);
                        unsent.push(Op { on_behalf: None, ..op });
                    }
                    WriteOutcome::Rejected(refusal) if self.refuses_owner(schema, kind, &op, &refusal) => {
                        unsent.push(op);
                    }
                    answer => {
                        // A link that is there, or gone, when it is sent again was made, or cut, the first time.
                        let answer = match answer {
                            WriteOutcome::Unchanged if links && again.sent.contains(&op.n) => WriteOutcome::Done,
                            answer => answer,
                        };
                        let mut outcome = self.outcome(schema, kind, &op, answer).await?;
                        outcome.before = before.remove(&op.n);
                        if let Some(note) = notes.get(&op.n).filter(|_| outcome.state == OpState::Done) {
                            outcome.message = Some(both(outcome.message.take(), note));
                        }
                        outcomes.push((op, outcome));
                    }
                }
            }
            let from = outcomes.len();
            ops = self.settle(schema, unknown, outcomes).await?;
            for (op, outcome) in &mut outcomes[from..] {
                outcome.before = before.remove(&op.n);
            }
            ops.extend(unsent);
            if ops.is_empty() {
                let done = |outcome: &OpOutcome| outcome.state == OpState::Done && alone.contains(&outcome.n);
                for (_, outcome) in outcomes.iter_mut().filter(|(_, outcome)| done(outcome)) {
                    outcome.message = Some(without_creator(outcome.message.take()));
                }
                return Ok(());
            }
            // Refused rows are found out in many requests, each of which may be lost: only a try that gets no row any
            // further counts.
            tries = if ops.len() < open { 0 } else { tries + 1 };
        }
        Err(exhausted(schema, ops.len(), last))
    }

    /// The outcome of a write that was answered; a row refused for a missing reference gets another try without it.
    async fn outcome(
        &self,
        schema: &TableSchema,
        kind: WriteKind,
        op: &Op,
        answer: WriteOutcome,
    ) -> Result<OpOutcome, RestoreError> {
        let rejection = match answer {
            WriteOutcome::Done => return Ok(noted(op.n, OpState::Done, None, None)),
            WriteOutcome::Unchanged => return Ok(noted(op.n, OpState::Unchanged, None, None)),
            WriteOutcome::Conflict { message } => return self.conflict(schema, kind, op, message).await,
            WriteOutcome::Unknown { message } => return Ok(noted(op.n, OpState::Sent, None, Some(message))),
            WriteOutcome::NotSent => return Ok(noted(op.n, OpState::Sent, None, None)),
            WriteOutcome::Rejected(rejection) => rejection,
        };
        let rejected = noted(op.n, OpState::Rejected, Some(rejection.code.clone()), Some(rejection.message.clone()));
        match rejection.class {
            RejectionClass::Table => {
                let mut blocked = self.blocked.lock().unwrap_or_else(PoisonError::into_inner);
                let message = format!("not tried: {}", rejection.message);
                blocked.insert((op.table.clone(), op.action), (rejection.code, message));
                Ok(rejected)
            }
            RejectionClass::MissingReference | RejectionClass::Owner
                if matches!(kind, WriteKind::Create | WriteKind::Undelete | WriteKind::Update) =>
            {
                self.without_refused(schema, kind, op, rejection, rejected).await
            }
            _ => Ok(rejected),
        }
    }

    /// A row that is not the version the plan was made for. Often the run itself made it another one: deletions empty lookups to
    /// what goes, the recycle bin gives children back with their parent and fills lookups (`dataverse` protocol, section 6.15),
    /// addresses are a part of their account. So the row is read, and what the operation is about decides: values that are as
    /// they should be are done, values that are still the ones the plan saw are written, everything else is left alone.
    async fn conflict(
        &self,
        schema: &TableSchema,
        kind: WriteKind,
        op: &Op,
        message: String,
    ) -> Result<OpOutcome, RestoreError> {
        let conflict = noted(op.n, OpState::Conflict, None, Some(message));
        let (target, call) = (self.parts.target.as_ref(), &self.parts.call);
        let ended = |state| Ok(noted(op.n, state, None, None));
        for _ in 0..SENDS_MAX {
            if !matches!(kind, WriteKind::Undelete | WriteKind::Update | WriteKind::State | WriteKind::Delete) {
                return Ok(conflict);
            }
            let live = read_live(target, schema, std::slice::from_ref(&op.key), call).await?;
            let as_planned = |live: &LiveRow| op.set.as_deref().is_some_and(|set| holds(set, live));
            let as_seen = |live: &LiveRow| match kind {
                WriteKind::Delete => {
                    op.from.as_deref().is_some_and(|from| differs_by_cascade_only(from, live, &self.parts.user))
                }
                _ => still_as_seen(op, live, &self.parts.user),
            };
            let etag = match (kind, live.get(&op.key)) {
                (WriteKind::Delete, None) => return ended(OpState::Done),
                (WriteKind::Undelete, Some(live)) if as_planned(live) => return ended(OpState::Done),
                (WriteKind::Update | WriteKind::State, Some(live)) if as_planned(live) => {
                    return ended(OpState::Unchanged);
                }
                (WriteKind::Delete | WriteKind::Update | WriteKind::State, Some(live)) if as_seen(live) => live.etag(),
                _ => None,
            };
            let Some(etag) = etag else { return Ok(conflict) };
            let again = Op { guard: Guard::Unchanged(etag), ..op.clone() };
            let answers = target.write(schema, kind, &[row_write(&again)], &self.parts.options, call).await?;
            match answers.into_iter().next().unwrap_or(WriteOutcome::NotSent) {
                WriteOutcome::Done | WriteOutcome::Unchanged => return ended(OpState::Done),
                WriteOutcome::Rejected(rejection) => {
                    let (code, message) = (rejection.code.clone(), rejection.message.clone());
                    let rejected = noted(op.n, OpState::Rejected, Some(code), Some(message));
                    let reference = matches!(rejection.class, RejectionClass::MissingReference | RejectionClass::Owner);
                    if reference && kind == WriteKind::Update {
                        return self.without_refused(schema, kind, &again, rejection, rejected).await;
                    }
                    return Ok(rejected);
                }
                WriteOutcome::Conflict { .. } => return Ok(conflict),
                WriteOutcome::Unknown { .. } | WriteOutcome::NotSent => {}
            }
        }
        Err(exhausted(schema, 1, String::new()))
    }

    /// Writes a row without the references the service says are missing, and without an owner that cannot own it.
    async fn without_refused(
        &self,
        schema: &TableSchema,
        kind: WriteKind,
        op: &Op,
        mut refusal: Rejection,
        rejected: OpOutcome,
    ) -> Result<OpOutcome, RestoreError> {
        let rules = self.parts.target.rules(schema);
        let mut op = op.clone();
        let mut left_out: Vec<String> = Vec::new();
        while left_out.len() < REFERENCES_MAX {
            let Some((set, member)) = without_reference(&op, &rules, &refusal) else { return Ok(rejected) };
            let why = if refusal.class == RejectionClass::Owner { OWNER_REFUSED } else { TARGET_MISSING };
            left_out.push(left_out_as(&member, why));
            // Nothing is left of an operation that was about this value alone.
            if set.get() == "{}" && kind == WriteKind::Update {
                let owner = refusal.class == RejectionClass::Owner;
                let note = || noted(op.n, OpState::Done, None, Some(written_without(&left_out)));
                return Ok(if owner { note() } else { rejected });
            }
            op.set = Some(set);
            match self.write_adjusted(schema, kind, &op, written_without(&left_out)).await? {
                Ok(outcome) => return Ok(outcome),
                Err(next) => refusal = next,
            }
        }
        Ok(rejected)
    }

    /// Writes a row differently from the plan. `Err` is a refusal that leaving out another reference may mend.
    async fn write_adjusted(
        &self,
        schema: &TableSchema,
        kind: WriteKind,
        op: &Op,
        note: String,
    ) -> Result<Result<OpOutcome, Rejection>, RestoreError> {
        // A process that dies now must know later what it was that it had sent.
        let intent = noted(op.n, OpState::Sent, None, Some(note.clone()));
        self.journal(intent).await?;
        let (target, call) = (self.parts.target.as_ref(), &self.parts.call);
        let done = || noted(op.n, OpState::Done, None, Some(note.clone()));
        let mut last = String::new();
        for _ in 0..SENDS_MAX {
            let answers = target.write(schema, kind, &[row_write(op)], &self.parts.options, call).await?;
            match answers.into_iter().next().unwrap_or(WriteOutcome::NotSent) {
                WriteOutcome::Done | WriteOutcome::Unchanged => return Ok(Ok(done())),
                WriteOutcome::Rejected(next)
                    if matches!(next.class, RejectionClass::MissingReference | RejectionClass::Owner) =>
                {
                    return Ok(Err(next));
                }
                WriteOutcome::Rejected(next) => {
                    return Ok(Ok(noted(op.n, OpState::Rejected, Some(next.code), Some(next.message))));
                }
                WriteOutcome::Conflict { message } => {
                    return Ok(Ok(noted(op.n, OpState::Conflict, None, Some(message))));
                }
                WriteOutcome::NotSent => {}
                WriteOutcome::Unknown { message } => {
                    last = message;
                    let live = read_live(target, schema, std::slice::from_ref(&op.key), call).await?;
                    match settle(op, live.get(&op.key), &self.parts.user) {
                        Settled::Done => return Ok(Ok(done())),
                        Settled::Conflict => {
                            return Ok(Ok(noted(op.n, OpState::Conflict, None, Some(CHANGED_MEANWHILE.into()))));
                        }
                        Settled::NotDone => {}
                    }
                }
            }
        }
        Err(exhausted(schema, 1, last))
    }

    /// Notes what is about to be done, durably.
    pub(crate) async fn journal(&self, intent: OpOutcome) -> Result<(), RestoreError> {
        Ok(self.parts.catalog.conclude(self.run, vec![intent]).await?)
    }

    fn blocked(&self, table: &str, action: Action) -> Option<(String, String)> {
        let blocked = self.blocked.lock().unwrap_or_else(PoisonError::into_inner);
        blocked.get(&(table.to_string(), action)).cloned()
    }
}

/// Swaps a pair: outcomes are made before their operation is moved.
pub(crate) trait Swap {
    type Output;
    fn swap(self) -> Self::Output;
}

impl Swap for (OpOutcome, Op) {
    type Output = (Op, OpOutcome);
    fn swap(self) -> (Op, OpOutcome) {
        (self.1, self.0)
    }
}

/// The intents stay in the journal; resuming reads these rows again.
fn exhausted(schema: &TableSchema, rows: usize, last: String) -> RestoreError {
    RestoreError::Environment(SourceError::Exhausted {
        what: format!("writing {rows} rows of table {}", schema.table),
        tries: SENDS_MAX,
        elapsed: std::time::Duration::ZERO,
        limit: format!("SENDS_MAX = {SENDS_MAX}"),
        last,
    })
}

pub(crate) fn noted(n: u64, state: OpState, code: Option<String>, message: Option<String>) -> OpOutcome {
    OpOutcome { n, state, code, message, before: None }
}

fn bytes(value: &RawValue) -> Arc<[u8]> {
    value.get().as_bytes().into()
}

fn row_write(op: &Op) -> RowWrite {
    let state = |value: &RawValue| {
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(value.get()).ok()?;
        object.iter().find(|(name, _)| name.ends_with("statecode")).and_then(|(_, value)| value.as_i64())
    };
    RowWrite {
        key: op.key.clone(),
        set: op.set.as_deref().map_or_else(|| b"{}"[..].into(), bytes),
        guard: op.guard.clone(),
        parties: op.parties.iter().map(|party| bytes(party)).collect(),
        close: op.close.as_deref().map(bytes),
        from_state: op.from.as_deref().filter(|_| op.action == Action::Write(WriteKind::State)).and_then(state),
        on_behalf: op.on_behalf.clone(),
    }
}
