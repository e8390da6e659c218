//! Rows that a restore made are deleted, and rows that it deleted are made again: parents first, from the whole row that the plan
//! kept, with its parties, its content, and the rows that went along with it.

use dynavault_model::{Birth, ColumnKind, Guard, Row, TableRules, WriteKind, scan};

use crate::RestoreError;
use crate::history::{RowHistory, Tried, row_id};
use crate::plan::{Action, ContentOp, Gone, Op, Step};
use crate::project::{fits, reason};
use crate::settle::{LiveRow, is_value, key_of, same_value};
use crate::undo::{Undo, Values, about, is_state, member_of, object, raw, values_of};

/// The rows that go along with another come into being with it, so they are changed when lookups are: then it is there.
const ALONG: Step = Step::Lookups;

impl Undo<'_> {
    /// A row the restore made: deleted, children before parents.
    pub(crate) fn unmake(
        &mut self,
        rules: &TableRules,
        row: &RowHistory,
        op: &Op,
        live: &LiveRow,
    ) -> Result<(), RestoreError> {
        let written = row.standing();
        let family =
            |member: &str| rules.state.as_ref().is_some_and(|rule| rule.reaches_below) && is_state(rules, member);
        // What was written without an owner or a reference is not known either, where the outcomes are lost.
        let lost = row.tried.iter().any(|tried| tried.lost);
        let uncertain = row.tried.iter().any(|tried| tried.sent && tried.op.action == Action::Write(WriteKind::State));
        let changed: Vec<(String, Option<Vec<u8>>)> = live
            .with(|now| {
                written
                    .iter()
                    .filter(|(member, value)| {
                        // A reference that is empty now lost its row; a state or a plug-in is no person's work.
                        let lookup =
                            rules.column(member).is_some_and(|rule| matches!(rule.kind, ColumnKind::Lookup { .. }));
                        // A change of state without an answer may have been carried out or not.
                        let stands = (uncertain && is_state(rules, member))
                            || same_value(Some(value.get().as_bytes()), now.get(member));
                        let emptied = lookup && now.get(member).is_none_or(|value| value == b"null");
                        is_value(member) && !emptied && (!lost || !lookup) && !family(member) && !stands
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
            self.needs(&live.bytes);
            self.needed.insert(row.id);
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
        let parties = row.tried.iter().rfind(|tried| tried.done && !tried.op.parties.is_empty());
        undo.from_parties = parties.map(|tried| tried.op.parties.clone()).unwrap_or_default();
        self.push_unmade(&undo)
    }

    /// A row the restore deleted: made again, references in a second step so that their order matters only where they are
    /// required.
    pub(crate) fn remake(&mut self, rules: &TableRules, tried: &Tried) -> Result<(), RestoreError> {
        let op = &tried.op;
        let Some(from) = &op.from else { return Ok(()) };
        let values = values_of(from)?;
        let content = self.content_of_deleted(tried, &values);
        let filled = |member: &str| values.get(member).is_some_and(|value| value.get() != "null");
        let owner = |member: &str| rules.owner.as_deref() == Some(member);
        // A lookup that waits; one that cannot be written later goes with the creation.
        let waits = |member: &str| {
            rules.column(member).is_some_and(|rule| {
                matches!(rule.kind, ColumnKind::Lookup { .. }) && !rule.required && rule.update && !owner(member)
            })
        };
        let made_with = |member: &str| {
            rules.column(member).is_some_and(|rule| rule.create) && filled(member) && !is_state(rules, member)
        };
        let first = values.iter().filter(|(name, _)| made_with(member_of(name)) && !waits(member_of(name)));
        let mut set: Values = first.map(|(name, value)| (name.clone(), value.clone())).collect();
        self.leave_out_misfits(rules, &op.key.id, &mut set);
        let state = rules.state.as_ref().filter(|state| filled(&state.state));
        let number = |member: &str| values.get(member).and_then(|value| value.get().parse::<i64>().ok());
        let born = state.is_some_and(|state| {
            number(&state.state) == Some(state.initial)
                && number(&state.status).is_none_or(|status| state.initial_statuses.contains(&status))
        });
        if let (true, Some(state)) = (born, state)
            && let Some(status) = values.get(&state.status).filter(|_| filled(&state.status))
        {
            set.insert(state.status.clone(), status.clone());
        }
        if let Some((taker, source)) = &rules.created_on
            && let Some(created) = values.get(source).filter(|_| filled(source))
        {
            set.insert(taker.clone(), created.clone());
        }
        // Waves of deletions run from children to parents.
        let wave = u32::MAX - op.wave;
        let mut make = about(op, Step::Rows, wave, Action::Write(WriteKind::Create), Guard::Absent);
        make.set = Some(object(set.iter())?);
        // The proof compares the row with what it was.
        make.from = Some(from.clone());
        make.parties = self.writable_parties(op, &op.from_parties, &[]);
        self.push(&make)?;
        for name in values.keys().filter(|name| filled(name) && is_value(name) && name.as_str() != "versionnumber") {
            match rules.column(name) {
                None => self.not_written(&op.table, reason::MISSING_COLUMN, name),
                Some(rule) => {
                    if let Some(code) = rule.not_written {
                        self.not_written(&op.table, code, name);
                    }
                }
            }
        }
        let later: Vec<_> =
            values.iter().filter(|(name, _)| waits(member_of(name)) && filled(member_of(name))).collect();
        if !later.is_empty() {
            let mut bind = about(op, Step::Lookups, 0, Action::Write(WriteKind::Update), Guard::Present);
            bind.set = Some(object(later.into_iter())?);
            bind.follows = true;
            self.push(&bind)?;
        }
        for gone in &op.along {
            self.remake_along(gone)?;
        }
        for item in content {
            let mut upload = about(op, Step::Content, 0, Action::Upload, Guard::Present);
            upload.content = Some(item);
            upload.follows = true;
            self.push(&upload)?;
        }
        self.keep_owner_of_remade(rules, op, &values)?;
        if let Some(state) = state.filter(|_| !born) {
            let closing = |member: &String| state.closing_writes.contains(member) && filled(member);
            let set = values.iter().filter(|(name, _)| is_state(rules, name) || closing(name));
            let mut close = about(op, Step::State, op.wave, Action::Write(WriteKind::State), Guard::Present);
            close.set = Some(object(set)?);
            close.from = Some(raw(format!("{{{:?}:{}}}", state.state, state.initial))?);
            close.follows = true;
            self.state_reaches_below(rules, &close);
            self.push(&close)?;
        }
        Ok(())
    }

    /// The content that a deleted row had.
    fn content_of_deleted(&mut self, tried: &Tried, values: &Values) -> Vec<ContentOp> {
        if let Ok(content) = tried.content_before() {
            return content;
        }
        let schema = self.parts.schemas.get(&tried.op.table);
        let columns = schema.map(|schema| schema.content.as_slice()).unwrap_or_default();
        let had = |member: &str| {
            values.get(member).is_some_and(|value| !matches!(value.get(), "null" | "false" | "0" | "\"\""))
        };
        if columns.iter().any(|column| had(&column.presence_member)) {
            self.content_lost(&tried.op);
        }
        Vec::new()
    }

    pub(crate) fn content_lost(&mut self, op: &Op) {
        let message = "where the content that was there before is stored is not known; it is not put back";
        self.finding(op, "content-lost", message);
    }

    /// A row that comes into being with another one: changed to what it was.
    fn remake_along(&mut self, gone: &Gone) -> Result<(), RestoreError> {
        let Some(schema) = self.parts.schemas.get(&gone.table) else { return Ok(()) };
        let rules = self.rules(&gone.table)?;
        let values = values_of(&gone.row)?;
        let bytes = gone.row.get().as_bytes();
        let mut members = Vec::new();
        if scan(bytes, &mut members).is_err() {
            return Ok(());
        }
        let row = Row::new(bytes, &members);
        let Some(key) = key_of(&schema.key, &row) else { return Ok(()) };
        let Birth::WithParent(parent) = self.parts.target.birth(&rules, &row) else {
            let message = "the service makes the row anew, with an id, an owner and a state of its own";
            self.findings.row("mirrored", &gone.table, &key.id, "", message);
            return Ok(());
        };
        let writable = |name: &str| {
            let rule = rules.column(name).filter(|rule| rule.update && rule.kind != ColumnKind::Key);
            rule.is_some() && name != parent && !is_state(&rules, name)
        };
        let filled = |name: &str| values.get(name).is_some_and(|value| value.get() != "null");
        let set = values.iter().filter(|(name, _)| writable(member_of(name)) && filled(member_of(name)));
        let mut set: Values = set.map(|(name, value)| (name.clone(), value.clone())).collect();
        self.leave_out_misfits(&rules, &key.id, &mut set);
        if set.is_empty() {
            return Ok(());
        }
        let action = Action::Write(WriteKind::Update);
        let mut update = crate::emit::op(&gone.table, &key, ALONG, 0, action, Guard::Present);
        update.set = Some(object(set.iter())?);
        self.push(&update)
    }

    /// Takes out what the environment does not take any more, such as a choice that is gone, and says so.
    fn leave_out_misfits(&mut self, rules: &TableRules, id: &str, set: &mut Values) {
        let misfit = |member: &str, value: &str| {
            let rule = rules.column(member).filter(|rule| !matches!(rule.kind, ColumnKind::Lookup { .. }))?;
            fits(rule, value.as_bytes()).err()
        };
        let found: Vec<_> =
            set.iter().filter_map(|(member, value)| Some((member.clone(), misfit(member, value.get())?))).collect();
        for (member, (code, sentence)) in found {
            set.remove(&member);
            self.findings.row(code, &rules.table, id, &member, sentence);
        }
    }

    /// Parties as they can be written. One that names nobody and has no address cannot: it was left behind by the deletion of its
    /// row. Where the restore has put a row of its own there, that row is named again until it is deleted, which leaves the
    /// same behind.
    pub(crate) fn writable_parties(
        &mut self,
        op: &Op,
        before: &[Box<serde_json::value::RawValue>],
        written: &[Box<serde_json::value::RawValue>],
    ) -> Vec<Box<serde_json::value::RawValue>> {
        let read = |party: &serde_json::value::RawValue| values_of(party).unwrap_or_default();
        let mask = |party: &Values| party.get("participationtypemask").map(|mask| mask.get().to_string());
        let named = |party: &Values| {
            let id: String = serde_json::from_str(party.get("_partyid_value")?.get()).ok()?;
            dynavault_model::RowId::from_guid(id.as_bytes())
        };
        let is_said = |party: &Values, member: &str| party.get(member).is_some_and(|value| value.get() != "null");
        let mut stand_ins: Vec<_> = written
            .iter()
            .filter(|party| {
                let party = read(party);
                !is_said(&party, "addressused") && named(&party).is_some_and(|id| self.made.contains(&id))
            })
            .collect();
        let mut parties = Vec::new();
        for party in before {
            let values = read(party);
            if is_said(&values, "_partyid_value") || is_said(&values, "addressused") {
                parties.push(party.clone());
                continue;
            }
            match stand_ins.iter().position(|other| mask(&read(other)) == mask(&values)) {
                Some(at) => parties.push(stand_ins.swap_remove(at).clone()),
                None => self.finding(op, "party-lost", "a party is left out: it names no row and has no address"),
            }
        }
        parties
    }

    /// The owner of a row that is made again goes with its creation, and once more after the rows above it.
    fn keep_owner_of_remade(&mut self, rules: &TableRules, op: &Op, values: &Values) -> Result<(), RestoreError> {
        let Some(owner) = rules.owner.as_deref().filter(|owner| values.contains_key(*owner)) else { return Ok(()) };
        let own = values.iter().filter(|(name, _)| member_of(name) == owner);
        let mut assign = about(op, Step::Owners, 0, Action::Write(WriteKind::Update), Guard::Present);
        assign.set = Some(object(own)?);
        assign.follows = true;
        let place = self.place(&op.table, row_id(&op.key));
        self.owners_above(rules, place, values);
        self.keep_owner(&assign, None)
    }
}
