//! Rows that a restore changed: the values from before, where the restore's still stand; parties, content, owners and states
//! likewise.

use dynavault_model::{ColumnKind, Guard, Row, TableRules, WriteKind};
use serde_json::value::RawValue;

use crate::RestoreError;
use crate::draft::open_and_close;
use crate::history::{RowHistory, Tried, row_id};
use crate::plan::{Action, ContentOp, Gone, Op, Step};
use crate::settle::{LiveRow, MODIFIED, is_value, same_value};
use crate::undo::{Undo, Values, about, is_state, member_of, object, raw, values_of};

/// What is written back into a row: values from before, and those that are there now.
#[derive(Debug, Default)]
struct Back {
    before: Values,
    now: Values,
}

impl Back {
    /// Those of the members for which `wanted` holds, with their annotations: before, and now.
    fn of(&self, wanted: impl Fn(&str) -> bool) -> (Values, Values) {
        let part = |values: &Values| {
            let own = values.iter().filter(|(name, _)| wanted(member_of(name)));
            own.map(|(name, value)| (name.clone(), value.clone())).collect()
        };
        (part(&self.before), part(&self.now))
    }
}

/// The condition of the first operation on a row, and none for those after it.
struct Guards {
    first: Option<Guard>,
    modified: Option<String>,
}

impl Guards {
    fn of(rules: &TableRules, live: &LiveRow) -> Self {
        let first = live.etag().filter(|_| rules.guards_versions).map_or(Guard::Present, Guard::Unchanged);
        let modified = live.with(|row| row.get(MODIFIED).and_then(crate::compare::text)).flatten();
        Self { first: Some(first), modified }
    }

    /// Puts the condition into an operation; says of the later ones that they follow.
    fn guard(&mut self, op: &mut Op) {
        op.follows = self.first.is_none();
        if let Some(guard) = self.first.take() {
            op.guard = guard;
            op.modified.clone_from(&self.modified);
        }
    }
}

impl Undo<'_> {
    /// A row the restore changed.
    pub(crate) fn revert(&mut self, rules: &TableRules, row: &RowHistory, live: &LiveRow) -> Result<(), RestoreError> {
        let back = self.values_back(rules, row, live)?;
        let assign = self.owner_back(rules, row, live)?;
        let content = self.content_back(row);
        let parties = self.parties_back(row, live)?;
        // A closed row takes neither parties nor files: it is opened for them like for values.
        let along = !content.is_empty() || parties.is_some() || assign.as_ref().is_some_and(|assign| assign.changes);
        let op = &row.tried[0].op;
        let mut guards = Guards::of(rules, live);
        let is_open = self.revert_values(rules, row, live, &back, along, &mut guards)?;
        if let Some(mut parties) = parties {
            guards.guard(&mut parties);
            parties.guard = Guard::Present;
            self.push(&parties)?;
        }
        for mut content in content {
            content.follows = guards.first.take().is_none();
            self.push(&content)?;
        }
        let Some(mut assign) = assign else { return Ok(()) };
        assign.op.follows = guards.first.take().is_none();
        let place = self.place(&op.table, row_id(&op.key));
        self.owners_above(rules, place, &back.before);
        if assign.changes {
            return self.give_owner(&assign.op);
        }
        let closed = live.with(|row| rules.state.as_ref().and_then(|rule| open_and_close(rule, row))).flatten();
        self.keep_owner(&assign.op, closed.filter(|_| !is_open))
    }

    /// Plain values and states.
    fn values_back(&mut self, rules: &TableRules, row: &RowHistory, live: &LiveRow) -> Result<Back, RestoreError> {
        let (written, mut found) = (row.standing(), row.found());
        let op = &row.tried[0].op;
        let owner = |member: &str| rules.owner.as_deref() == Some(member);
        // What closing a row writes by itself stands in no operation where there was nothing before.
        let filled = filled_by_closing(rules, row);
        for member in &filled {
            // A row that was closed is closed again in the end, and that fills it in once more.
            if !closed_in(rules, &found) {
                found.entry(member.clone()).or_insert(raw("null".into())?);
            } else if found.get(member).is_none_or(|value| value.get() == "null") {
                found.remove(member);
                let message = "the column was empty, and closing the row fills it in";
                self.findings.row("default-set", &op.table, &op.key.id, member, message);
            }
        }
        // A change of state has several steps, and one without an answer may have come to any of them.
        let uncertain = row.tried.iter().any(|tried| tried.sent && tried.op.action == Action::Write(WriteKind::State));
        let mut back = Back::default();
        let mut conflicts = Vec::new();
        let _read = live.with(|now| {
            let members = written.keys().chain(filled.iter().filter(|member| !written.contains_key(*member)));
            for member in members.filter(|member| is_value(member) && !owner(member)) {
                let Some(before) = found.get(member) else { continue };
                let current = now.get(member);
                if same_value(Some(before.get().as_bytes()), current) {
                    continue;
                }
                let stands = !written.contains_key(member)
                    || row.wrote(member, current)
                    || (uncertain && is_state(rules, member));
                if !stands && !self.parts.overwrite {
                    conflicts.push((member.clone(), before.clone(), current.map(<[u8]>::to_vec)));
                    continue;
                }
                if let Some(Ok(current)) =
                    current.map(|value| RawValue::from_string(String::from_utf8_lossy(value).into_owned()))
                {
                    back.now.insert(member.clone(), current);
                }
                back.before.insert(member.clone(), before.clone());
            }
        });
        // A state never goes without its status.
        if let Some(state) = rules.state.as_ref().filter(|_| back.before.keys().any(|member| is_state(rules, member))) {
            for member in [&state.state, &state.status] {
                if let Some(before) = found.get(member) {
                    back.before.entry(member.clone()).or_insert_with(|| before.clone());
                }
            }
        }
        for (member, before, current) in conflicts {
            self.conflict(op, &member, &before, current.as_deref())?;
            self.needs(&live.bytes);
        }
        let annotations: Vec<String> = back.before.keys().cloned().collect();
        for (name, value) in &found {
            if name.contains('@') && annotations.iter().any(|known| known == member_of(name)) {
                back.before.insert(name.clone(), value.clone());
            }
        }
        Ok(back)
    }

    /// Operations that write values and states back; whether the row is open for others in between.
    fn revert_values(
        &mut self,
        rules: &TableRules,
        row: &RowHistory,
        live: &LiveRow,
        back: &Back,
        along: bool,
        guards: &mut Guards,
    ) -> Result<bool, RestoreError> {
        let op = &row.tried[0].op;
        let state_now = live_state(rules, live);
        let number =
            |values: &Values, member: &str| values.get(member).and_then(|value| value.get().parse::<i64>().ok());
        let now = rules.state.as_ref().and_then(|state| number(&state_now, &state.state));
        let closed = rules.state.as_ref().is_some_and(|state| now.is_some_and(|now| state.closed.contains(&now)));
        let (state_before, _) = back.of(|member| is_state(rules, member));
        let (before, current) = back.of(|member| !is_state(rules, member));
        let mut state_back = state_before;
        let mut state_from = now;
        let mut opened = !closed;
        if let Some(state) = rules.state.as_ref().filter(|_| closed && (along || !before.is_empty())) {
            let mut reopen = about(op, Step::Reopen, 0, Action::Write(WriteKind::State), Guard::Present);
            let status = state.initial_statuses.first().map(|status| format!(",{:?}:{status}", state.status));
            let text = format!("{{{:?}:{}{}}}", state.state, state.initial, status.unwrap_or_default());
            reopen.set = Some(raw(text)?);
            reopen.from = Some(object(state_now.iter())?);
            guards.guard(&mut reopen);
            self.push(&reopen)?;
            if state_back.is_empty() {
                state_back.clone_from(&state_now);
            }
            state_from = Some(state.initial);
            opened = true;
        }
        if !before.is_empty() {
            // A lookup may name a row that is made again: that is there when lookups are written.
            let names = before.iter().any(|(member, value)| {
                let rule = rules.column(member);
                value.get() != "null" && rule.is_some_and(|rule| matches!(rule.kind, ColumnKind::Lookup { .. }))
            });
            let step = if names { Step::Lookups } else { Step::Rows };
            let mut write = about(op, step, 0, Action::Write(WriteKind::Update), Guard::Present);
            write.set = Some(object(before.iter())?);
            write.from = Some(object(current.iter())?);
            guards.guard(&mut write);
            self.push(&write)?;
        }
        if let Some(state) = rules.state.as_ref().filter(|_| !state_back.is_empty()) {
            let wave = row.tried.iter().rfind(|tried| tried.op.step == Step::State).map_or(0, |tried| tried.op.wave);
            let mut write = about(op, Step::State, wave, Action::Write(WriteKind::State), Guard::Present);
            // A state always goes with its status.
            let mut values = state_now;
            values.extend(state_back);
            // What closing writes into the row: the value it is to have, or keep. What the restore's closing filled in, and was
            // empty before, is not kept.
            let filled = if closed_in(rules, &row.found()) { emptied(rules, row) } else { Vec::new() };
            let is_closing = number(&values, &state.state).is_some_and(|value| state.closed.contains(&value));
            let sent =
                |member: &&String| is_closing && (back.before.contains_key(*member) || !filled.contains(*member));
            for member in state.closing_writes.iter().filter(sent) {
                if let Some(value) = back.before.get(member).cloned().or_else(|| live_value(live, member)) {
                    values.insert(member.clone(), value);
                }
            }
            write.set = Some(object(values.iter())?);
            // Whether somebody else has changed it is told by all values that it is about.
            let mut seen: Values =
                values.keys().filter_map(|name| Some((name.clone(), live_value(live, name)?))).collect();
            if let Some(from) = state_from.filter(|from| now != Some(*from)) {
                seen = Values::from([(state.state.clone(), raw(from.to_string())?)]);
            }
            write.from = Some(object(seen.iter())?);
            guards.guard(&mut write);
            self.state_reaches_below(rules, &write);
            self.push(&write)?;
        }
        self.remove_closes(row)?;
        Ok(opened)
    }

    /// Says that rows below a row whose state is set may get that state as well (`dataverse` protocol, section 8.6).
    pub(crate) fn state_reaches_below(&mut self, rules: &TableRules, op: &Op) {
        if let Some(state) = rules.state.as_ref().filter(|state| state.reaches_below) {
            let sentence = "the state of the row is set, which may set those of the rows below as well";
            self.findings.row("state-from-above", &op.table, &op.key.id, &state.state, sentence);
        }
    }

    /// The activities that closing the row left behind, which the restore had it make.
    fn remove_closes(&mut self, row: &RowHistory) -> Result<(), RestoreError> {
        let closes = row.tried.iter().filter(|tried| tried.done && tried.op.action == Action::Write(WriteKind::State));
        for close in closes.filter_map(|tried| tried.op.close.as_ref()) {
            let Some((table, key)) = self.close_of(&row.tried[0].op.table, close)? else { continue };
            let action = Action::Write(WriteKind::Delete);
            let mut delete = crate::emit::op(&table, &key, Step::Deletes, 0, action, Guard::Present);
            delete.from = Some(close.clone());
            self.push(&delete)?;
        }
        Ok(())
    }

    /// Table and key of a close activity.
    fn close_of(
        &self,
        closed: &str,
        close: &RawValue,
    ) -> Result<Option<(String, dynavault_model::RowKey)>, RestoreError> {
        let rules = self.rules(closed)?;
        let Some((table, _)) = rules.state.as_ref().and_then(|state| state.close_table.clone()) else {
            return Ok(None);
        };
        let Some(schema) = self.parts.schemas.get(&table) else { return Ok(None) };
        let gone = Gone { table: table.clone(), row: close.to_owned() };
        let key = crate::tables::with_row(gone.row.get().as_bytes(), &table, |row: &Row<'_>| {
            Ok(crate::settle::key_of(&schema.key, row))
        })?;
        Ok(key.map(|key| (table, key)))
    }

    /// The owner from before, if the restore wrote the row's owner or was to.
    fn owner_back(
        &mut self,
        rules: &TableRules,
        row: &RowHistory,
        live: &LiveRow,
    ) -> Result<Option<Assign>, RestoreError> {
        let Some(owner) = rules.owner.as_deref() else { return Ok(None) };
        let steps: Vec<&Tried> = row.tried.iter().filter(|tried| tried.op.step == Step::Owners).collect();
        let Some(first) = steps.first() else { return Ok(None) };
        let Some(before) = first.op.from.as_deref().map(values_of).transpose()? else { return Ok(None) };
        let Some(was) = before.get(owner).filter(|value| value.get() != "null") else { return Ok(None) };
        let mut assign = about(&first.op, Step::Owners, 0, Action::Write(WriteKind::Update), Guard::Present);
        assign.set = Some(object(before.iter())?);
        let now = live_value(live, owner);
        let is =
            |value: &RawValue| same_value(Some(value.get().as_bytes()), now.as_ref().map(|now| now.get().as_bytes()));
        if is(was) {
            return Ok(Some(Assign { op: assign, changes: false }));
        }
        let now_text: Values = now.iter().map(|now| (owner.to_string(), now.clone())).collect();
        assign.from = Some(object(now_text.iter())?);
        let written = row.standing();
        let done = steps.iter().any(|tried| tried.done);
        // A row that was to get its own owner back, and did not: the service gave it to the owner of the row above it.
        let stands = match written.get(owner).filter(|_| done) {
            Some(written) => is(written) || steps.iter().any(|tried| tried.sent),
            None => self.owners.begun,
        };
        if !stands && !self.parts.overwrite {
            self.conflict(&first.op, owner, was, now.as_ref().map(|now| now.get().as_bytes()))?;
            return Ok(None);
        }
        Ok(Some(Assign { op: assign, changes: true }))
    }

    fn parties_back(&mut self, row: &RowHistory, live: &LiveRow) -> Result<Option<Op>, RestoreError> {
        let replaced = |tried: &&Tried| tried.done && tried.op.action == Action::Write(WriteKind::Parties);
        let Some(tried) = row.tried.iter().find(replaced) else { return Ok(None) };
        let op = &tried.op;
        // Replacing the parties modified the activity, so whoever modified it last may have changed them.
        if !tried.sent && !self.parts.overwrite && !self.modified_by_us(live) {
            let list = |parties: &[Box<RawValue>]| {
                let parties: Vec<&str> = parties.iter().map(|party| party.get()).collect();
                format!("[{}]", parties.join(","))
            };
            self.conflict(op, "activityparty", &raw(list(&op.from_parties))?, Some(list(&op.parties).as_bytes()))?;
            return Ok(None);
        }
        let mut undo = about(op, Step::Parties, 0, Action::Write(WriteKind::Parties), Guard::Present);
        undo.parties = self.writable_parties(op, &op.from_parties, &op.parties);
        undo.from_parties.clone_from(&op.parties);
        Ok(Some(undo))
    }

    /// Whether our own user was the last to modify a row, or wrote it in somebody's name.
    fn modified_by_us(&self, live: &LiveRow) -> bool {
        let by = |row: &Row<'_>, member: &str| row.get(member).and_then(crate::compare::text);
        let ours = |user: Option<String>| user.is_some_and(|user| user.eq_ignore_ascii_case(self.user));
        live.with(|row| ours(by(row, "_modifiedby_value")) || ours(by(row, "_modifiedonbehalfby_value")))
            .unwrap_or(false)
    }

    fn content_back(&mut self, row: &RowHistory) -> Vec<Op> {
        let mut found = Vec::new();
        for tried in row.tried.iter().filter(|tried| tried.done) {
            if !matches!(tried.op.action, Action::Upload | Action::Clear) {
                continue;
            }
            let Ok(before) = tried.content_before() else {
                self.content_lost(&tried.op);
                continue;
            };
            let action = if before.is_empty() { Action::Clear } else { Action::Upload };
            let mut undo = about(&tried.op, Step::Content, 0, action, Guard::Present);
            undo.content = before.into_iter().next().or_else(|| {
                tried.op.content.as_ref().map(|content| ContentOp { sha256: None, size: 0, ..content.clone() })
            });
            found.push(undo);
        }
        found
    }
}

/// An owner that is given back, or one that stands and has to be kept when rows above are assigned.
struct Assign {
    op: Op,
    changes: bool,
}

/// Members that the message which closed the row may have filled in by itself.
fn filled_by_closing(rules: &TableRules, row: &RowHistory) -> Vec<String> {
    let Some(rule) = &rules.state else { return Vec::new() };
    let closed = |tried: &&Tried| {
        let state = tried.op.set.as_deref().and_then(|set| values_of(set).ok());
        let state = state.and_then(|values| values.get(&rule.state)?.get().parse::<i64>().ok());
        tried.done
            && tried.op.action == Action::Write(WriteKind::State)
            && state.is_some_and(|state| rule.close_states.contains(&state))
    };
    if row.tried.iter().any(|tried| closed(&tried)) { rule.closing_writes.clone() } else { Vec::new() }
}

/// Those of them that were empty before.
fn emptied(rules: &TableRules, row: &RowHistory) -> Vec<String> {
    let found = row.found();
    let was = |member: &String| found.get(member).is_some_and(|value| value.get() != "null");
    filled_by_closing(rules, row).into_iter().filter(|member| !was(member)).collect()
}

/// Whether values say that a row is in a state that a message brings it into.
fn closed_in(rules: &TableRules, values: &Values) -> bool {
    let Some(rule) = &rules.state else { return false };
    let state = values.get(&rule.state).and_then(|value| value.get().parse::<i64>().ok());
    state.is_some_and(|state| rule.close_states.contains(&state))
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
    let members = [&state.state, &state.status].into_iter();
    members.filter_map(|member| Some((member.clone(), live_value(live, member)?))).collect()
}
