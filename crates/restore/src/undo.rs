//! Taking back what a restore did: another plan, made from the one that was carried out and its outcomes.
//!
//! ```text
//!  row made              deleted, if it still is as the restore left it
//!  row changed           the values that were there before, where the restore's values still stand
//!  row deleted           made again from the whole row the plan kept, with its content
//!  link made / removed   removed / made
//!  content replaced      the bytes that were stored before they went, or none
//! ```
//!
//! What somebody has changed since the restore is listed as a conflict and left alone, unless told otherwise.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dynavault_catalog::Catalog;
use dynavault_model::{Call, ColumnKind, Guard, RowTarget, RunId, TableRules, TableSchema, Treatment, WriteKind};
use serde_json::value::RawValue;

use crate::RestoreError;
use crate::apply::Ops;
use crate::batches::RequestTotals;
use crate::file::{PlanWriter, op_line};
use crate::history::RowHistory;
use crate::plan::{Action, Conflict, ContentOp, Counts, Finding, Op, PlanEnd, PlanHead, Step, TablePlan};
use crate::readback::histories;
use crate::settle::{LiveRow, is_value, read_live, same_value};
use crate::spill::Spill;

/// Rows compared with the environment at a time.
const BLOCK_ROWS: usize = 200;
/// Findings of one kind listed row by row.
const LISTED_MAX: usize = 1_000;

/// What planning an undo needs.
pub struct UndoParts {
    /// The environment that was written to.
    pub target: Arc<dyn RowTarget>,
    /// The journal, with the outcomes.
    pub catalog: Catalog,
    /// Counting and stopping.
    pub call: Call,
    /// Present schemas of the tables of the plan.
    pub schemas: HashMap<String, Arc<TableSchema>>,
    /// Folder for files in passing.
    pub scratch: PathBuf,
    /// Values that were changed since are taken back as well.
    pub overwrite: bool,
}

type Values = BTreeMap<String, Box<RawValue>>;

/// Plans the undo of a run whose operations are `ops`, into the file `out`.
pub async fn plan_undo(
    parts: &UndoParts,
    run: RunId,
    ops: Ops,
    head: &PlanHead,
    out: &Path,
) -> Result<PlanEnd, RestoreError> {
    let mut histories = histories(&parts.catalog, run, &parts.scratch, ops).await?;
    let mut undo = Undo {
        parts,
        places: BTreeMap::new(),
        tables: BTreeMap::new(),
        findings: Vec::new(),
        conflicts: Spill::new(&parts.scratch)?,
    };
    for (table, history) in &mut histories.tables {
        let schema = parts
            .schemas
            .get(table)
            .ok_or_else(|| RestoreError::NoTable { table: table.clone(), environment: head.target.clone() })?;
        let rules = parts.target.rules(schema);
        let links = matches!(rules.treatment, Treatment::Links { .. });
        let mut rows = history.rows();
        let mut ended = false;
        while !ended {
            let mut block: Vec<RowHistory> = Vec::with_capacity(BLOCK_ROWS);
            while block.len() < BLOCK_ROWS {
                match rows.next_row()? {
                    Some(row) if row.was_touched() => block.push(row),
                    Some(_) => {}
                    None => {
                        ended = true;
                        break;
                    }
                }
            }
            if links {
                for row in &block {
                    undo.link(row)?;
                }
                continue;
            }
            let keys: Vec<_> = block.iter().map(|row| row.tried[0].op.key.clone()).collect();
            let live = if keys.is_empty() {
                HashMap::new()
            } else {
                read_live(parts.target.as_ref(), schema, &keys, &parts.call).await?
            };
            for row in &block {
                undo.row(&rules, row, live.get(&row.tried[0].op.key))?;
            }
        }
    }
    undo.write(head, out)
}

struct Undo<'a> {
    parts: &'a UndoParts,
    /// Operations by step and wave; a wave of deletions runs backwards.
    places: BTreeMap<(Step, u32), Spill>,
    tables: BTreeMap<String, TablePlan>,
    findings: Vec<Finding>,
    conflicts: Spill,
}

fn raw(text: String) -> Result<Box<RawValue>, RestoreError> {
    RawValue::from_string(text).map_err(|error| RestoreError::Worker(error.to_string()))
}

fn object<'v>(values: impl Iterator<Item = (&'v String, &'v Box<RawValue>)>) -> Result<Box<RawValue>, RestoreError> {
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

/// An operation about the same row as `op`, without values.
fn about(op: &Op, step: Step, wave: u32, action: Action, guard: Guard) -> Op {
    Op {
        n: 0,
        step,
        wave,
        table: op.table.clone(),
        action,
        key: op.key.clone(),
        set: None,
        from: None,
        guard,
        parties: Vec::new(),
        from_parties: Vec::new(),
        close: None,
        content: None,
        on_behalf: None,
        follows: false,
    }
}

impl Undo<'_> {
    fn push(&mut self, op: &Op) -> Result<(), RestoreError> {
        let counts = &mut self.tables.entry(op.table.clone()).or_default().counts;
        *match op.action {
            Action::Write(WriteKind::Create | WriteKind::Undelete) => &mut counts.create,
            Action::Write(WriteKind::Update | WriteKind::Parties) => &mut counts.update,
            Action::Write(WriteKind::State) => &mut counts.state,
            Action::Write(WriteKind::Delete) => &mut counts.delete,
            Action::Upload | Action::Clear => &mut counts.content,
        } += 1;
        let line = op_line(op).map_err(|source| RestoreError::File { path: self.parts.scratch.clone(), source })?;
        let place = (op.step, op.wave);
        if !self.places.contains_key(&place) {
            self.places.insert(place, Spill::new(&self.parts.scratch)?);
        }
        self.places.get_mut(&place).map_or(Ok(0), |spill| spill.push(&line)).map(|_| ())
    }

    fn finding(&mut self, op: &Op, code: &str, message: &str) {
        if let Some(known) = self.findings.iter_mut().rev().find(|known| {
            known.code == code && known.table.as_deref() == Some(&op.table) && known.rows > 0 && known.id.is_none()
        }) {
            known.rows += 1;
            return;
        }
        let listed = self.findings.len() < LISTED_MAX;
        self.findings.push(Finding {
            code: code.into(),
            table: Some(op.table.clone()),
            id: listed.then(|| op.key.id.clone()),
            column: None,
            message: message.into(),
            rows: 1,
        });
    }

    fn conflict(&mut self, op: &Op, column: &str, before: &RawValue, live: Option<&[u8]>) -> Result<(), RestoreError> {
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
        for tried in row.tried.iter().filter(|tried| tried.done) {
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
        let is = |kind: WriteKind| row.tried.iter().find(|tried| tried.done && tried.op.action == Action::Write(kind));
        let made = is(WriteKind::Create).or_else(|| is(WriteKind::Undelete));
        if let Some(tried) = made {
            return match live {
                Some(live) => self.unmake(rules, row, &tried.op, live),
                None => Ok(()),
            };
        }
        if let Some(tried) = is(WriteKind::Delete) {
            let before: Vec<ContentOp> =
                tried.before.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
            if live.is_none() {
                return self.remake(rules, &tried.op, before);
            }
            self.finding(&tried.op, "made-since", "a row of this id was made again since; it is left alone");
            return Ok(());
        }
        if let Some(live) = live {
            return self.revert(rules, row, live);
        }
        let message = "the row was deleted since; there is nothing to take back";
        self.finding(&row.tried[0].op, "deleted-since", message);
        Ok(())
    }

    /// A row the restore made: deleted, children before parents.
    fn unmake(&mut self, rules: &TableRules, row: &RowHistory, op: &Op, live: &LiveRow) -> Result<(), RestoreError> {
        let written = row.standing();
        let family = |member: &str| {
            rules
                .state
                .as_ref()
                .is_some_and(|rule| rule.reaches_below && (rule.state == member || rule.status == member))
        };
        let changed: Vec<(String, Option<Vec<u8>>)> = live
            .with(|now| {
                written
                    .iter()
                    .filter(|(member, value)| {
                        // A reference that is empty now lost its row; a state or a plug-in is no person's work.
                        let lookup =
                            rules.column(member).is_some_and(|rule| matches!(rule.kind, ColumnKind::Lookup { .. }));
                        let emptied = lookup && now.get(member).is_none_or(|value| value == b"null");
                        is_value(member)
                            && !emptied
                            && !family(member)
                            && !same_value(Some(value.get().as_bytes()), now.get(member))
                    })
                    .map(|(member, _)| (member.clone(), now.get(member).map(<[u8]>::to_vec)))
                    .collect()
            })
            .unwrap_or_default();
        if !changed.is_empty() && !self.parts.overwrite {
            for (member, value) in changed {
                let written = &written[&member];
                self.conflict(op, &member, written, value.as_deref())?;
            }
            self.finding(op, "changed-since", "the row was changed since the restore made it; it is kept");
            return Ok(());
        }
        let guard = match live.etag().filter(|_| rules.guards_versions) {
            Some(etag) => Guard::Unchanged(etag),
            None => Guard::Present,
        };
        // Waves of rows run from parents to children; deletions the other way.
        let wave = u32::MAX - op.wave;
        let mut undo = about(op, Step::Deletes, wave, Action::Write(WriteKind::Delete), guard);
        undo.from = Some(raw(String::from_utf8_lossy(&live.bytes).into_owned())?);
        self.push(&undo)
    }

    /// A row the restore deleted: made again, references in a second step so that their order does not matter.
    fn remake(&mut self, rules: &TableRules, op: &Op, content: Vec<ContentOp>) -> Result<(), RestoreError> {
        let Some(from) = &op.from else { return Ok(()) };
        let values: Values =
            serde_json::from_str(from.get()).map_err(|error| RestoreError::Worker(error.to_string()))?;
        let of_member = |member: &str| member.split('@').next().unwrap_or_default().to_string();
        let filled = |member: &str| values.get(member).is_some_and(|value| value.get() != "null");
        let lookup = |member: &str| {
            rules.column(member).is_some_and(|rule| matches!(rule.kind, ColumnKind::Lookup { .. }) && !rule.required)
        };
        let writable = |member: &str, update: bool| {
            rules.column(member).is_some_and(|rule| if update { rule.update } else { rule.create }) && filled(member)
        };
        let is_state =
            |member: &str| rules.state.as_ref().is_some_and(|state| state.state == member || state.status == member);
        let owner = |member: &str| rules.owner.as_deref() == Some(member);
        let first = values.iter().filter(|(name, _)| {
            let member = of_member(name);
            writable(&member, false) && !is_state(&member) && (!lookup(&member) || owner(&member))
        });
        let mut set: Values = first.map(|(name, value)| (name.clone(), value.clone())).collect();
        if let Some((taker, source)) = &rules.created_on
            && let Some(created) = values.get(source).filter(|_| filled(source))
        {
            set.insert(taker.clone(), created.clone());
        }
        let mut make = about(op, Step::Rows, 0, Action::Write(WriteKind::Create), Guard::Absent);
        make.set = Some(object(set.iter())?);
        self.push(&make)?;
        let later: Vec<_> = values
            .iter()
            .filter(|(name, _)| {
                let member = of_member(name);
                lookup(&member) && !owner(&member) && writable(&member, true)
            })
            .collect();
        if !later.is_empty() {
            let mut bind = about(op, Step::Lookups, 0, Action::Write(WriteKind::Update), Guard::Present);
            bind.set = Some(object(later.into_iter())?);
            bind.follows = true;
            self.push(&bind)?;
        }
        for item in content {
            let mut upload = about(op, Step::Content, 0, Action::Upload, Guard::Present);
            upload.content = Some(item);
            upload.follows = true;
            self.push(&upload)?;
        }
        if let Some(state) = &rules.state {
            let number = |member: &str| values.get(member).and_then(|value| value.get().parse::<i64>().ok());
            let initial = number(&state.state) == Some(state.initial)
                && number(&state.status).is_none_or(|status| state.initial_statuses.first() == Some(&status));
            if filled(&state.state) && !initial {
                let closing = |member: &String| state.closing_writes.contains(member) && filled(member);
                let set = values.iter().filter(|(name, _)| is_state(name) || closing(name));
                let mut close = about(op, Step::State, 0, Action::Write(WriteKind::State), Guard::Present);
                close.set = Some(object(set)?);
                close.from = Some(raw(format!("{{{:?}:{}}}", state.state, state.initial))?);
                close.follows = true;
                self.push(&close)?;
            }
        }
        Ok(())
    }

    /// A row the restore changed: the values from before, where the restore's still stand.
    fn revert(&mut self, rules: &TableRules, row: &RowHistory, live: &LiveRow) -> Result<(), RestoreError> {
        let (written, found) = (row.standing(), row.found());
        let op = &row.tried[0].op;
        let mut back: Values = Values::new();
        let mut now_values: Values = Values::new();
        let mut conflicts = Vec::new();
        let _read = live.with(|now| {
            for (member, value) in written.iter().filter(|(member, _)| is_value(member)) {
                // What a closing message writes itself stands in no `from` when it was not there.
                let Some(before) = found.get(member).cloned() else { continue };
                let current = now.get(member);
                if same_value(Some(before.get().as_bytes()), current) {
                    continue;
                }
                if !same_value(Some(value.get().as_bytes()), current) && !self.parts.overwrite {
                    conflicts.push((member.clone(), before, current.map(<[u8]>::to_vec)));
                    continue;
                }
                if let Some(Ok(current)) =
                    current.map(|value| RawValue::from_string(String::from_utf8_lossy(value).into_owned()))
                {
                    now_values.insert(member.clone(), current);
                }
                back.insert(member.clone(), before);
            }
        });
        for (member, before, current) in conflicts {
            self.conflict(op, &member, &before, current.as_deref())?;
        }
        let annotations: Vec<String> = back.keys().cloned().collect();
        for (name, value) in &found {
            if name.split_once('@').is_some_and(|(member, _)| annotations.iter().any(|known| known == member)) {
                back.insert(name.clone(), value.clone());
            }
        }
        // A closed row takes neither parties nor files: it is opened for them like for values.
        let along = row.tried.iter().any(|tried| {
            tried.done && matches!(tried.op.action, Action::Write(WriteKind::Parties) | Action::Upload | Action::Clear)
        });
        self.revert_values(rules, op, live, (&back, &now_values), along)?;
        self.revert_parties(row)?;
        self.revert_content(row)
    }

    fn revert_values(
        &mut self,
        rules: &TableRules,
        op: &Op,
        live: &LiveRow,
        (back, now): (&Values, &Values),
        along: bool,
    ) -> Result<(), RestoreError> {
        let is_state =
            |member: &str| rules.state.as_ref().is_some_and(|state| state.state == member || state.status == member);
        let owner = |member: &str| rules.owner.as_deref() == member.split('@').next();
        let plain = |member: &str| !is_state(member) && !owner(member);
        let guard = match live.etag().filter(|_| rules.guards_versions) {
            Some(etag) => Guard::Unchanged(etag),
            None => Guard::Present,
        };
        let state_now = rules.state.as_ref().and_then(|state| {
            live.with(|row| {
                row.get(&state.state).and_then(|value| std::str::from_utf8(value).ok()?.parse::<i64>().ok())
            })
            .flatten()
        });
        let writes = along || back.keys().any(|member| !is_state(member));
        let closed = rules.state.as_ref().is_some_and(|state| state_now.is_some_and(|now| state.closed.contains(&now)));
        let mut state_back: Values =
            back.iter().filter(|(name, _)| is_state(name)).map(|(n, v)| (n.clone(), v.clone())).collect();
        let mut state_from = state_now;
        let mut follows = false;
        let mut guard = guard;
        if let Some(state) = rules.state.as_ref().filter(|_| closed && writes) {
            let mut reopen = about(op, Step::Reopen, 0, Action::Write(WriteKind::State), guard.clone());
            let status = state.initial_statuses.first().map(|status| format!(",{:?}:{status}", state.status));
            let text = format!("{{{:?}:{}{}}}", state.state, state.initial, status.unwrap_or_default());
            reopen.set = Some(raw(text)?);
            reopen.from = Some(object(live_state(rules, live).iter())?);
            self.push(&reopen)?;
            if state_back.is_empty() {
                state_back = live_state(rules, live);
            }
            state_from = Some(state.initial);
            follows = true;
            guard = Guard::Present;
        }
        let update: Vec<_> = back.iter().filter(|(name, _)| plain(name)).collect();
        if !update.is_empty() {
            let mut write = about(op, Step::Rows, 0, Action::Write(WriteKind::Update), guard.clone());
            write.set = Some(object(update.into_iter())?);
            write.from = Some(object(now.iter().filter(|(name, _)| plain(name)))?);
            write.follows = follows;
            self.push(&write)?;
            (follows, guard) = (true, Guard::Present);
        }
        let assign: Vec<_> = back.iter().filter(|(name, _)| owner(name)).collect();
        if !assign.is_empty() {
            let mut write = about(op, Step::Owners, op.wave, Action::Write(WriteKind::Update), guard.clone());
            write.set = Some(object(assign.into_iter())?);
            write.from = Some(object(now.iter().filter(|(name, _)| owner(name)))?);
            write.follows = follows;
            self.push(&write)?;
            (follows, guard) = (true, Guard::Present);
        }
        if let Some(state) = rules.state.as_ref().filter(|_| !state_back.is_empty()) {
            let mut write = about(op, Step::State, 0, Action::Write(WriteKind::State), guard);
            // A state always goes with its status.
            let mut values = live_state(rules, live);
            values.extend(state_back);
            // What closing writes into the row: the value it is to have, or keep.
            let is_closing = values
                .get(&state.state)
                .and_then(|value| value.get().parse::<i64>().ok())
                .is_some_and(|value| state.closed.contains(&value));
            for member in state.closing_writes.iter().filter(|_| is_closing) {
                if let Some(value) = back.get(member).cloned().or_else(|| live_value(live, member)) {
                    values.insert(member.clone(), value);
                }
            }
            write.set = Some(object(values.iter())?);
            write.from = state_from.map(|from| raw(format!("{{{:?}:{from}}}", state.state))).transpose()?;
            write.follows = follows;
            self.push(&write)?;
        }
        Ok(())
    }

    fn revert_parties(&mut self, row: &RowHistory) -> Result<(), RestoreError> {
        let done = |kind: WriteKind| {
            row.tried.iter().find(|tried| tried.done && tried.op.action == Action::Write(kind)).map(|tried| &tried.op)
        };
        if let Some(op) = done(WriteKind::Parties) {
            let mut undo = about(op, Step::Parties, 0, Action::Write(WriteKind::Parties), Guard::Present);
            undo.parties.clone_from(&op.from_parties);
            undo.from_parties.clone_from(&op.parties);
            undo.follows = true;
            self.push(&undo)?;
        }
        Ok(())
    }

    fn revert_content(&mut self, row: &RowHistory) -> Result<(), RestoreError> {
        for tried in row.tried.iter().filter(|tried| tried.done) {
            if !matches!(tried.op.action, Action::Upload | Action::Clear) {
                continue;
            }
            let before: Vec<ContentOp> =
                tried.before.as_deref().and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
            let action = if before.is_empty() { Action::Clear } else { Action::Upload };
            let mut undo = about(&tried.op, Step::Content, 0, action, Guard::Present);
            undo.content = before.into_iter().next().or_else(|| {
                tried.op.content.as_ref().map(|content| ContentOp { sha256: None, size: 0, ..content.clone() })
            });
            undo.follows = row.tried.len() > 1;
            self.push(&undo)?;
        }
        Ok(())
    }

    /// Puts the file together: deletions of later waves first.
    fn write(mut self, head: &PlanHead, out: &Path) -> Result<PlanEnd, RestoreError> {
        let mut totals = RequestTotals::new(self.parts.target.as_ref(), &self.parts.schemas);
        // The waves of deletions were counted down from the largest number; now they are numbered from 0.
        let places: Vec<(Step, u32)> = self.places.keys().copied().collect();
        let mut ordered = Spill::new(&self.parts.scratch)?;
        let mut last: Option<(Step, u32)> = None;
        let mut wave = 0;
        for place in places {
            wave = if last.is_some_and(|(step, _)| step == place.0) { wave + 1 } else { 0 };
            last = Some(place);
            let Some(spill) = self.places.get_mut(&place) else { continue };
            spill.scan(|line| {
                let mut op = parse(line)?;
                op.wave = wave;
                totals.push(&op);
                ordered
                    .push(&op_line(&op).map_err(|source| RestoreError::File { path: out.to_path_buf(), source })?)?;
                Ok(())
            })?;
        }
        let (requests, total) = totals.finish();
        let mut writer = PlanWriter::create(out, head)?;
        let mut sum = Counts::default();
        for (table, plan) in &mut self.tables {
            plan.table.clone_from(table);
            plan.requests = requests.get(table).copied().unwrap_or(0);
            sum.add(&plan.counts);
            writer.table(plan)?;
        }
        for finding in &self.findings {
            writer.finding(finding)?;
        }
        self.conflicts.scan_json(|conflict: Conflict| writer.conflict(&conflict))?;
        ordered.scan(|line| writer.op_text(line))?;
        writer.finish(sum, total, crate::batches::minutes(total))
    }
}

fn parse(line: &[u8]) -> Result<Op, RestoreError> {
    #[derive(serde::Deserialize)]
    struct Line {
        op: Op,
    }
    serde_json::from_slice::<Line>(line).map(|line| line.op).map_err(|error| RestoreError::Worker(error.to_string()))
}

fn live_value(live: &LiveRow, member: &str) -> Option<Box<RawValue>> {
    live.with(|row| {
        let value = row.get(member).filter(|value| *value != b"null")?;
        RawValue::from_string(String::from_utf8_lossy(value).into_owned()).ok()
    })
    .flatten()
}

/// State and status as they are now.
fn live_state(rules: &TableRules, live: &LiveRow) -> Values {
    let Some(state) = &rules.state else { return Values::new() };
    live.with(|row| {
        [&state.state, &state.status]
            .into_iter()
            .filter_map(|member| {
                let text = String::from_utf8_lossy(row.get(member)?).into_owned();
                Some((member.clone(), RawValue::from_string(text).ok()?))
            })
            .collect()
    })
    .unwrap_or_default()
}
