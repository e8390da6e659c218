//! Taking back what a restore did: another plan, made from the one that was carried out and its outcomes.
//!
//! ```text
//!  row made              deleted, if it still is as the restore left it                              (remake)
//!  row changed           the values that were there before, where the restore's values still stand   (revert)
//!  row deleted           made again from the whole row the plan kept, with what went along           (remake)
//!  link made / removed   removed / made
//!  content replaced      the bytes that were stored before they went, or none                        (revert)
//!  owner changed         given back, and the rows below get theirs                                   (heirs)
//! ```
//!
//! What somebody has changed since the restore is listed as a conflict and left alone, unless told otherwise. A row that stays
//! keeps the rows it refers to.
//!
//! The restore need not have come to its end: an operation that was begun and has no answer is looked at through its row. Where
//! the outcomes are lost altogether, that is done with every operation, and the plan says so.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dynavault_catalog::Catalog;
use dynavault_model::{
    Call, Guard, RowId, RowSource, RowTarget, RunId, TableRules, TableSchema, Treatment, WriteKind, scan,
};
use serde_json::value::RawValue;

use crate::RestoreError;
use crate::apply::Ops;
use crate::batches::RequestTotals;
use crate::below::{Known, Place};
use crate::file::{PlanWriter, op_line};
use crate::findings::{Findings, NotWritten};
use crate::heirs::Owners;
use crate::history::{OUTCOME_LOST, RowHistory, Tried};
use crate::plan::{Action, Conflict, Counts, Op, PlanEnd, PlanHead, Step, TablePlan};
use crate::readback::histories;
use crate::settle::{LiveRow, read_live};
use crate::spill::Spill;

/// Rows compared with the environment at a time.
const BLOCK_ROWS: usize = 200;

/// What planning an undo needs.
pub struct UndoParts {
    /// The environment, for reading tables.
    pub source: Arc<dyn RowSource>,
    /// The environment that was written to.
    pub target: Arc<dyn RowTarget>,
    /// The journal, with the outcomes.
    pub catalog: Catalog,
    /// Counting and stopping.
    pub call: Call,
    /// Present schemas of all tables of the environment that can be read.
    pub schemas: HashMap<String, Arc<TableSchema>>,
    /// Folder for files in passing.
    pub scratch: PathBuf,
    /// Values that were changed since are taken back as well.
    pub overwrite: bool,
}

pub(crate) type Values = BTreeMap<String, Box<RawValue>>;

/// Plans the undo of a run whose operations are `ops`, into the file `out`.
pub async fn plan_undo(
    parts: &UndoParts,
    run: RunId,
    ops: Ops,
    head: &PlanHead,
    out: &Path,
) -> Result<PlanEnd, RestoreError> {
    let owners = |op: &Op| op.step == Step::Owners;
    let mut histories = histories(&parts.catalog, run, &parts.scratch, ops, owners).await?;
    let mut undo = Undo::new(parts, &head.identity.user_id, std::mem::take(&mut histories.made))?;
    undo.owners.begun = histories.owners_begun;
    for (table, history) in &mut histories.tables {
        let schema = parts
            .schemas
            .get(table)
            .ok_or_else(|| RestoreError::NoTable { table: table.clone(), environment: head.target.clone() })?;
        let rules = undo.rules(table)?;
        let links = matches!(rules.treatment, Treatment::Links { .. });
        let mut rows = history.rows();
        let mut ended = false;
        while !ended {
            if parts.call.cancel.is_cancelled() {
                return Err(RestoreError::Cancelled);
            }
            let mut block: Vec<RowHistory> = Vec::with_capacity(BLOCK_ROWS);
            while block.len() < BLOCK_ROWS {
                let Some(row) = rows.next_row()? else {
                    ended = true;
                    break;
                };
                block.push(row);
            }
            if links {
                block.iter().try_for_each(|row| undo.link(row))?;
                continue;
            }
            let keys: Vec<_> = block.iter().map(|row| row.tried[0].op.key.clone()).collect();
            let live = if keys.is_empty() {
                HashMap::new()
            } else {
                read_live(parts.target.as_ref(), schema, &keys, &parts.call).await?
            };
            for row in &mut block {
                let live = live.get(&row.tried[0].op.key);
                row.settle(live);
                undo.row(&rules, row, live)?;
            }
        }
    }
    undo.keep_what_is_needed()?;
    undo.give_back_owners().await?;
    undo.write(head, out)
}

/// An undo in the making.
pub(crate) struct Undo<'a> {
    pub(crate) parts: &'a UndoParts,
    /// Our own user in the environment.
    pub(crate) user: &'a str,
    /// Tables of the environment, by place and by name.
    pub(crate) known: Vec<Known>,
    numbers: HashMap<String, u16>,
    /// Operations by step and wave.
    places: BTreeMap<(Step, u32), Spill>,
    /// Deletions of rows that the run made, until it is known which of them have to stay.
    unmade: Spill,
    /// Rows that the run made.
    pub(crate) made: HashSet<RowId>,
    /// Rows that others refer to which stay.
    pub(crate) needed: HashSet<RowId>,
    pub(crate) owners: Owners,
    tables: BTreeMap<String, TablePlan>,
    not_written: BTreeMap<String, NotWritten>,
    pub(crate) findings: Findings,
    conflicts: Spill,
}

pub(crate) fn raw(text: String) -> Result<Box<RawValue>, RestoreError> {
    RawValue::from_string(text).map_err(|error| RestoreError::Worker(error.to_string()))
}

pub(crate) fn object<'v>(
    values: impl Iterator<Item = (&'v String, &'v Box<RawValue>)>,
) -> Result<Box<RawValue>, RestoreError> {
    let mut text = String::from("{");
    for (member, value) in values {
        if text.len() > 1 {
            text.push(',');
        }
        text.push_str(&serde_json::Value::from(member.as_str()).to_string());
        text.push(':');
        text.push_str(value.get());
    }
    text.push('}');
    raw(text)
}

/// Members of an object as the plan holds it.
pub(crate) fn values_of(object: &RawValue) -> Result<Values, RestoreError> {
    serde_json::from_str(object.get()).map_err(|error| RestoreError::Worker(error.to_string()))
}

/// The member that an annotation is about, or the member itself.
pub(crate) fn member_of(name: &str) -> &str {
    name.split('@').next().unwrap_or_default()
}

/// Whether a member says in which state a row is.
pub(crate) fn is_state(rules: &TableRules, member: &str) -> bool {
    rules.state.as_ref().is_some_and(|state| state.state == member || state.status == member)
}

/// An operation about the same row as `op`, without values.
pub(crate) fn about(op: &Op, step: Step, wave: u32, action: Action, guard: Guard) -> Op {
    crate::emit::op(&op.table, &op.key, step, wave, action, guard)
}

impl<'a> Undo<'a> {
    fn new(parts: &'a UndoParts, user: &'a str, made: HashSet<RowId>) -> Result<Self, RestoreError> {
        let mut names: Vec<&String> = parts.schemas.keys().collect();
        names.sort_unstable();
        let known = |name: &String| {
            let schema = Arc::clone(&parts.schemas[name]);
            Known { rules: Arc::new(parts.target.rules(&schema)), schema }
        };
        Ok(Self {
            parts,
            user,
            known: names.iter().map(|name| known(name)).collect(),
            numbers: names.iter().enumerate().map(|(number, name)| ((*name).clone(), number as u16)).collect(),
            places: BTreeMap::new(),
            unmade: Spill::new(&parts.scratch)?,
            made,
            needed: HashSet::new(),
            owners: Owners::new(&parts.scratch)?,
            tables: BTreeMap::new(),
            not_written: BTreeMap::new(),
            findings: Findings::default(),
            conflicts: Spill::new(&parts.scratch)?,
        })
    }

    /// The rules of a table of the environment.
    pub(crate) fn rules(&self, table: &str) -> Result<Arc<TableRules>, RestoreError> {
        let number = self.numbers.get(table);
        let missing = || RestoreError::NoTable { table: table.into(), environment: "that was restored".into() };
        number.map(|number| Arc::clone(&self.known[usize::from(*number)].rules)).ok_or_else(missing)
    }

    /// The place of a row.
    pub(crate) fn place(&self, table: &str, id: RowId) -> Option<Place> {
        self.numbers.get(table).map(|number| (*number, id))
    }

    /// Adds an operation.
    pub(crate) fn push(&mut self, op: &Op) -> Result<(), RestoreError> {
        self.count(op);
        let line = self.line(op)?;
        let place = (op.step, op.wave);
        if !self.places.contains_key(&place) {
            self.places.insert(place, Spill::new(&self.parts.scratch)?);
        }
        self.places.get_mut(&place).map_or(Ok(0), |spill| spill.push(&line)).map(|_| ())
    }

    fn line(&self, op: &Op) -> Result<Vec<u8>, RestoreError> {
        op_line(op).map_err(|source| RestoreError::File { path: self.parts.scratch.clone(), source })
    }

    fn count(&mut self, op: &Op) {
        let links = self.rules(&op.table).is_ok_and(|rules| matches!(rules.treatment, Treatment::Links { .. }));
        let counts = &mut self.tables.entry(op.table.clone()).or_default().counts;
        *match op.action {
            Action::Write(WriteKind::Create) if links => &mut counts.link,
            Action::Write(WriteKind::Delete) if links => &mut counts.unlink,
            Action::Write(WriteKind::Create | WriteKind::Undelete) => &mut counts.create,
            Action::Write(WriteKind::Update | WriteKind::Parties) => &mut counts.update,
            Action::Write(WriteKind::State) => &mut counts.state,
            Action::Write(WriteKind::Delete) => &mut counts.delete,
            Action::Upload | Action::Clear => &mut counts.content,
        } += 1;
    }

    /// Adds the deletion of a row that the run made; whether it stays after all is decided later.
    pub(crate) fn push_unmade(&mut self, op: &Op) -> Result<(), RestoreError> {
        let line = self.line(op)?;
        self.unmade.push(&line).map(|_| ())
    }

    pub(crate) fn finding(&mut self, op: &Op, code: &'static str, message: &str) {
        self.findings.row(code, &op.table, &op.key.id, "", message);
    }

    /// Says that columns of a row that is made again are not written.
    pub(crate) fn not_written(&mut self, table: &str, code: &str, column: &str) {
        self.not_written.entry(table.to_string()).or_default().add(code, column);
    }

    pub(crate) fn conflict(
        &mut self,
        op: &Op,
        column: &str,
        before: &RawValue,
        live: Option<&[u8]>,
    ) -> Result<(), RestoreError> {
        let live = String::from_utf8_lossy(live.unwrap_or(b"null")).into_owned();
        self.tables.entry(op.table.clone()).or_default().counts.conflicts += 1;
        self.conflicts.push_json(&Conflict {
            table: op.table.clone(),
            id: op.key.id.clone(),
            column: column.into(),
            snapshot: before.to_owned(),
            live: raw(live)?,
        })?;
        Ok(())
    }

    fn link(&mut self, row: &RowHistory) -> Result<(), RestoreError> {
        // Making and removing a link may be done again, so one without an answer counts as carried out.
        for tried in row.tried.iter().filter(|tried| tried.done || tried.sent) {
            let values = tried.op.set.as_ref().or(tried.op.from.as_ref());
            let mut op = match tried.op.action {
                Action::Write(WriteKind::Create) => {
                    about(&tried.op, Step::Deletes, 0, Action::Write(WriteKind::Delete), Guard::Present)
                }
                _ => about(&tried.op, Step::Links, 0, Action::Write(WriteKind::Create), Guard::Absent),
            };
            op.set = values.cloned();
            op.from = values.cloned().filter(|_| op.step == Step::Deletes);
            self.push(&op)?;
        }
        Ok(())
    }

    fn row(&mut self, rules: &TableRules, row: &RowHistory, live: Option<&LiveRow>) -> Result<(), RestoreError> {
        let lost = row.tried.iter().filter(|tried| tried.lost).count() as u64;
        if lost > 0 {
            let message = "operations whose outcomes the vault has lost: each row was looked at instead";
            self.findings.table(OUTCOME_LOST, &rules.table, lost, message);
        }
        let stated = |tried: &&Tried| tried.done && tried.op.action == Action::Write(WriteKind::State);
        if let Some(tried) = row.tried.iter().find(stated) {
            self.state_reaches_below(rules, &tried.op);
        }
        let is = |kind: WriteKind| row.tried.iter().find(|tried| tried.done && tried.op.action == Action::Write(kind));
        if let Some(tried) = is(WriteKind::Create).or_else(|| is(WriteKind::Undelete)) {
            return live.map_or(Ok(()), |live| self.unmake(rules, row, &tried.op, live));
        }
        if let Some(tried) = is(WriteKind::Delete) {
            if live.is_none() {
                return self.remake(rules, tried);
            }
            self.finding(&tried.op, "made-since", "a row of this id was made again since; it is left alone");
            return Ok(());
        }
        match live {
            Some(live) => self.revert(rules, row, live),
            None if row.tried.iter().any(|tried| tried.done && !tried.sent) => {
                let message = "the row was deleted since; there is nothing to take back";
                self.finding(&row.tried[0].op, "deleted-since", message);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Notes the rows that a row refers to which stays: deleting them would take it along, or empty its lookups.
    pub(crate) fn needs(&mut self, row: &[u8]) {
        let mut members = Vec::new();
        if scan(row, &mut members).is_err() {
            return;
        }
        let row = dynavault_model::Row::new(row, &members);
        for member in row.members() {
            let name = row.key(member);
            if name.starts_with(b"_") && name.ends_with(b"_value") {
                let id = crate::compare::text(row.value(member)).and_then(|id| RowId::from_guid(id.as_bytes()));
                self.needed.extend(id.filter(|id| self.made.contains(id)));
            }
        }
    }

    /// Moves the deletions to the operations, except those of rows that have to stay.
    fn keep_what_is_needed(&mut self) -> Result<(), RestoreError> {
        loop {
            let mut rest = Spill::new(&self.parts.scratch)?;
            let mut unmade = std::mem::replace(&mut self.unmade, Spill::new(&self.parts.scratch)?);
            let mut kept = false;
            unmade.scan(|line| {
                let op = parse(line)?;
                if self.needed.contains(&crate::history::row_id(&op.key)) {
                    self.finding(
                        &op,
                        "needed-since",
                        "a row that stays refers to the row the restore made; it is kept",
                    );
                    self.needs(op.from.as_deref().map_or(b"{}", |from| from.get().as_bytes()));
                    kept = true;
                    return Ok(());
                }
                rest.push(line).map(|_| ())
            })?;
            if !kept {
                return rest.scan(|line| self.push(&parse(line)?));
            }
            // Every round takes a row out, so this ends.
            self.unmade = rest;
        }
    }

    /// Puts the file together. Waves that were counted down from the largest number are numbered from 0.
    fn write(mut self, head: &PlanHead, out: &Path) -> Result<PlanEnd, RestoreError> {
        let mut totals = RequestTotals::new(self.parts.target.as_ref(), &self.parts.schemas);
        let mut ordered = Spill::new(&self.parts.scratch)?;
        let mut last: Option<(Step, u32)> = None;
        let mut wave = 0;
        for (place, mut spill) in std::mem::take(&mut self.places) {
            wave = if last.is_some_and(|(step, _)| step == place.0) { wave + 1 } else { 0 };
            last = Some(place);
            spill.scan(|line| {
                let mut op = parse(line)?;
                op.wave = wave;
                totals.push(&op);
                let line = op_line(&op).map_err(|source| RestoreError::File { path: out.to_path_buf(), source })?;
                ordered.push(&line).map(|_| ())
            })?;
        }
        let (requests, total) = totals.finish();
        let mut writer = PlanWriter::create(out, head)?;
        let mut sum = Counts::default();
        for (table, plan) in &mut self.tables {
            plan.table.clone_from(table);
            plan.requests = requests.get(table).copied().unwrap_or(0);
            plan.not_written = self.not_written.remove(table).unwrap_or_default().list();
            sum.add(&plan.counts);
            writer.table(plan)?;
        }
        self.findings.list().iter().try_for_each(|finding| writer.finding(finding))?;
        self.conflicts.scan_json(|conflict: Conflict| writer.conflict(&conflict))?;
        ordered.scan(|line| writer.op_text(line))?;
        writer.finish(sum, total, crate::batches::minutes(total))
    }
}

/// Reads an operation back from a scratch file.
pub(crate) fn parse(line: &[u8]) -> Result<Op, RestoreError> {
    #[derive(serde::Deserialize)]
    struct Line {
        op: Op,
    }
    serde_json::from_slice::<Line>(line).map(|line| line.op).map_err(|error| RestoreError::Worker(error.to_string()))
}
