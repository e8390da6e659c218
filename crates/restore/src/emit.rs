//! From drafts to operations, now that it is known which rows are there, which will be made, and in which order.
//!
//! Operations wait in a scratch file, table by table; 16 bytes of each stay in memory, by which they are sorted into the order
//! of the plan: step, wave, table, kind, guard, caller.

use std::collections::{HashMap, HashSet};

use dynavault_model::{Guard, RowKey, WriteKind};
use serde_json::value::RawValue;

use crate::closes::state_of;
use crate::compare::Winner;
use crate::draft::{Draft, Kind, Lookup, Pair};
use crate::error::RestoreError;
use crate::file::op_line;
use crate::links::Link;
use crate::parties::{self, Differing, Party};
use crate::pieces::Piece;
use crate::plan::{Action, Op, Step};
use crate::project::reason;
use crate::resolve::{Presence, presence, words};
use crate::spill::Spill;
use crate::waves::{Node, Waves};
use crate::work::Work;

/// Waves that fit into the sort key.
const WAVE_MAX: u32 = (1 << 24) - 1;
/// Callers that fit into the sort key; the operations of further ones are mixed, which costs requests and nothing else.
const CALLER_MAX: u64 = (1 << 15) - 1;
/// Wave of the step of lookups in which the rows that come back closed from the recycle bin are open.
const AFTER_OPENING: u32 = 1;
/// Most rows above a row: a longer chain is a circle.
const ABOVE_MAX: u32 = 1_000;

/// Operations in the making.
#[derive(Debug)]
pub(crate) struct Ops {
    pub(crate) lines: Spill,
    /// Sort key and offset.
    pub(crate) index: Vec<(u64, u64)>,
    /// Users on whose behalf rows are made: a request has one.
    callers: HashMap<String, u64>,
}

impl Ops {
    pub(crate) fn new(scratch: &std::path::Path) -> Result<Self, RestoreError> {
        Ok(Self { lines: Spill::new(scratch)?, index: Vec::new(), callers: HashMap::new() })
    }

    /// Adds an operation of a table.
    pub(crate) fn push(&mut self, table: u16, op: &Op) -> Result<(), RestoreError> {
        let line = op_line(op).map_err(|error| RestoreError::Worker(error.to_string()))?;
        let action = match op.action {
            Action::Upload => 0,
            Action::Clear => 1,
            Action::Write(kind) => 2 + kind as u64,
        };
        let guarded = u64::from(matches!(op.guard, Guard::Unchanged(_)));
        let wave = u64::from(op.wave.min(WAVE_MAX));
        let next = self.callers.len() as u64 + 1;
        let caller = op.on_behalf.as_ref().map_or(0, |user| *self.callers.entry(user.clone()).or_insert(next));
        let who = guarded << 15 | caller.min(CALLER_MAX);
        let key = (op.step as u64) << 60 | wave << 36 | u64::from(table) << 20 | action << 16 | who;
        self.index.push((key, self.lines.push(&line)?));
        Ok(())
    }
}

pub(crate) fn raw(text: String) -> Result<Box<RawValue>, RestoreError> {
    RawValue::from_string(text).map_err(|error| RestoreError::Worker(format!("a planned value is not JSON: {error}")))
}

pub(crate) fn object(parts: &[&str]) -> Result<Box<RawValue>, RestoreError> {
    let parts: Vec<&str> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
    raw(format!("{{{}}}", parts.join(",")))
}

/// An operation without values.
pub(crate) fn op(table: &str, key: &RowKey, step: Step, wave: u32, action: Action, guard: Guard) -> Op {
    Op {
        n: 0,
        step,
        wave,
        table: table.to_string(),
        action,
        key: key.clone(),
        set: None,
        from: None,
        guard,
        parties: Vec::new(),
        from_parties: Vec::new(),
        along: Vec::new(),
        close: None,
        content: None,
        on_behalf: None,
        modified: None,
        follows: false,
    }
}

/// What becomes of a lookup.
enum Fate {
    Now,
    Later,
    Gone,
}

/// Turns drafts into operations.
pub(crate) struct Emitter<'a> {
    pub(crate) work: &'a mut Work,
    pub(crate) waves: &'a Waves,
    pub(crate) owner_waves: &'a Waves,
    pub(crate) ops: &'a mut Ops,
    /// Existing rows that an operation changes.
    pub(crate) touched: HashSet<Node>,
    /// Rows whose state is set where states reach below, with a new state that rows are not born in.
    pub(crate) stated: HashMap<Node, Option<i64>>,
}

impl Emitter<'_> {
    fn presence(&self, node: Node) -> Presence {
        presence(&self.work.tables, &self.work.outside, node)
    }

    /// Operations on the rows of a table.
    pub(crate) fn rows(&mut self, number: u16) -> Result<(), RestoreError> {
        let Some(mut drafts) = self.work.tables.get_mut(number).drafts.take() else { return Ok(()) };
        let name = self.work.tables.get(number).name.clone();
        drafts.scan_json(|draft: Draft| {
            self.work.stopped()?;
            let node = Node { table: number, row: draft.row };
            match draft.kind {
                Kind::Change => self.change(node, &name, draft),
                _ if self.presence(node) != Presence::Planned => Ok(()),
                Kind::WithParent => self.with_parent(node, &name, &draft),
                Kind::Create | Kind::Undelete => self.create(node, &name, &draft),
            }
        })
    }

    /// When a lookup of a row that is made in `wave` is written.
    fn fate(&mut self, table: &str, id: &str, lookup: &Lookup, wave: u32) -> Fate {
        let Some(node) = lookup.node else { return Fate::Now };
        match self.presence(node) {
            Presence::Live => Fate::Now,
            Presence::Planned if self.waves.row(node) < wave => Fate::Now,
            Presence::Planned if lookup.later => Fate::Later,
            other => {
                let row = words(&self.work.tables, &self.work.outside, node);
                let sentence = if other == Presence::Missing {
                    format!("{row} is neither there nor made")
                } else {
                    format!("{row} is made later, and the column cannot be written then")
                };
                self.work.findings.row(reason::MISSING_TARGET, table, id, &lookup.member, sentence);
                Fate::Gone
            }
        }
    }

    fn create(&mut self, node: Node, table: &str, draft: &Draft) -> Result<(), RestoreError> {
        let wave = self.waves.row(node);
        let (mut now, mut later) = (vec![draft.set.as_str()], Vec::new());
        for lookup in &draft.lookups {
            match self.fate(table, &draft.key.id, lookup, wave) {
                Fate::Now => now.push(&lookup.set),
                Fate::Later => later.push(lookup.set.as_str()),
                Fate::Gone => {}
            }
        }
        let kind = if draft.kind == Kind::Undelete { WriteKind::Undelete } else { WriteKind::Create };
        let waits = self.work.openings.waits(node);
        let (step, place) = if waits { (Step::Lookups, AFTER_OPENING) } else { (Step::Rows, wave) };
        let mut create = op(table, &draft.key, step, place, Action::Write(kind), Guard::Absent);
        create.set = Some(object(&now)?);
        create.on_behalf.clone_from(&draft.on_behalf);
        if self.work.tables.get(node.table).rules().is_activity {
            create.parties = self.captured_parties(node, table, &draft.key)?;
        }
        // A party whose row was deleted before the activity comes back empty from the bin.
        let emptied = kind == WriteKind::Undelete && self.names_planned(node)?;
        let parties = if emptied { create.parties.clone() } else { Vec::new() };
        self.ops.push(node.table, &create)?;
        let counts = &mut self.work.tables.get_mut(node.table).plan.counts;
        if kind == WriteKind::Undelete {
            counts.undelete += 1;
        } else {
            counts.create += 1;
        }
        let follows = !later.is_empty() || !parties.is_empty() || self.work.openings.opens(node);
        let reopen = draft.reopen.as_ref().filter(|_| follows);
        if let Some(reopen) = reopen {
            // It is closed as soon as it is back, and takes neither lookups, parties nor content then.
            counts.state += 1;
            let mut open = follow(table, &draft.key, Step::Lookups, 0, WriteKind::State);
            (open.set, open.from) = (Some(raw(reopen.set.clone())?), Some(raw(reopen.from.clone())?));
            self.ops.push(node.table, &open)?;
        }
        if !later.is_empty() {
            self.work.tables.get_mut(node.table).plan.counts.update += 1;
            let wave = if waits { AFTER_OPENING + 1 } else { u32::from(reopen.is_some()) };
            let mut update = follow(table, &draft.key, Step::Lookups, wave, WriteKind::Update);
            update.set = Some(object(&later)?);
            self.ops.push(node.table, &update)?;
        }
        if !parties.is_empty() {
            self.work.tables.get_mut(node.table).plan.counts.update += 1;
            let mut replace = follow(table, &draft.key, Step::Parties, 0, WriteKind::Parties);
            replace.parties = parties;
            self.ops.push(node.table, &replace)?;
        }
        if let Some(state) = &draft.state {
            self.state(node, table, draft, state, Guard::Present, true)?;
        }
        Ok(())
    }

    /// Whether a captured party of an activity names a row that the plan makes.
    fn names_planned(&mut self, activity: Node) -> Result<bool, RestoreError> {
        let Some(parties) = self.work.parties.as_mut() else { return Ok(false) };
        let captured = parties.captured(activity)?;
        let named = captured.iter().filter_map(|party| party.who.as_ref()?.node);
        Ok(named.into_iter().any(|node| self.presence(node) == Presence::Planned))
    }

    fn with_parent(&mut self, node: Node, table: &str, draft: &Draft) -> Result<(), RestoreError> {
        let mut set = vec![draft.set.as_str()];
        for lookup in &draft.lookups {
            // All rows are there when lookups are written.
            if !matches!(self.fate(table, &draft.key.id, lookup, u32::MAX), Fate::Gone) {
                set.push(&lookup.set);
            }
        }
        if set.len() == 1 && draft.set.is_empty() {
            return Ok(());
        }
        let action = Action::Write(WriteKind::Update);
        let mut update = op(table, &draft.key, Step::Lookups, 0, action, Guard::Present);
        update.set = Some(object(&set)?);
        self.work.tables.get_mut(node.table).plan.counts.update += 1;
        self.ops.push(node.table, &update)
    }

    fn change(&mut self, node: Node, table: &str, mut draft: Draft) -> Result<(), RestoreError> {
        let opening = self.work.openings.take(node);
        let opens = opening.is_some();
        if let Some(opening) = opening.filter(|_| draft.reopen.is_none()) {
            draft.state = match draft.state.take() {
                // Opening the row is all that was planned for its state.
                Some(state) if state.set == opening.open.set => None,
                Some(state) => Some(Pair { set: state.set, from: opening.close.from }),
                None => Some(opening.close),
            };
            draft.reopen = Some(opening.open);
        }
        let rules = self.work.tables.get(node.table).rules();
        // Only the first operation on a row can ask for the version it was planned for: it makes another.
        let mut version = draft.etag.clone().filter(|_| rules.guards_versions);
        let mut first = true;
        let mut guard = move || {
            let guard = version.take().map_or(Guard::Present, Guard::Unchanged);
            (guard, !std::mem::replace(&mut first, false))
        };
        let wave = self.waves.table(node.table);
        let (mut set, mut from) = (vec![draft.set.as_str()], vec![draft.from.as_str()]);
        let mut waits = false;
        for lookup in &draft.lookups {
            match self.fate(table, &draft.key.id, lookup, wave) {
                Fate::Gone => continue,
                Fate::Later => waits = true,
                Fate::Now => {}
            }
            set.push(&lookup.set);
            from.push(&lookup.from);
        }
        let owner = match &draft.owner {
            Some(owner) if !matches!(self.fate(table, &draft.key.id, owner, u32::MAX), Fate::Gone) => Some(owner),
            _ => None,
        };
        let written = set.iter().any(|part| !part.is_empty());
        // Closing it once more brings back what the closing left behind.
        let opened = written || owner.is_some() || opens || self.work.carries_close(node);
        let reopens = draft.reopen.is_some() && !opened;
        if let Some(reopen) = draft.reopen.as_ref().filter(|_| opened) {
            let (guard, follows) = guard();
            let action = Action::Write(WriteKind::State);
            let mut open = op(table, &draft.key, Step::Reopen, 0, action, guard);
            (open.set, open.from) = (Some(raw(reopen.set.clone())?), Some(raw(reopen.from.clone())?));
            open.follows = follows;
            open.modified.clone_from(&draft.modified);
            self.ops.push(node.table, &open)?;
            self.work.tables.get_mut(node.table).plan.counts.state += 1;
        }
        if written {
            let (guard, follows) = guard();
            let (step, wave) = if waits { (Step::Lookups, 0) } else { (Step::Rows, wave) };
            let mut update = op(table, &draft.key, step, wave, Action::Write(WriteKind::Update), guard);
            (update.set, update.from, update.follows) = (Some(object(&set)?), Some(object(&from)?), follows);
            update.modified.clone_from(&draft.modified);
            self.ops.push(node.table, &update)?;
            self.work.tables.get_mut(node.table).plan.counts.update += 1;
        }
        if let Some(owner) = owner {
            let (mut guard, follows) = guard();
            if self.work.heirs.is_below(node) {
                // The assignment of the row above makes another version of it, with another owner.
                guard = Guard::Present;
            }
            let wave = self.owner_waves.row(node);
            let mut assign = op(table, &draft.key, Step::Owners, wave, Action::Write(WriteKind::Update), guard);
            (assign.set, assign.from) = (Some(object(&[&owner.set])?), Some(object(&[&owner.from])?));
            assign.follows = follows;
            assign.modified.clone_from(&draft.modified);
            self.ops.push(node.table, &assign)?;
            self.work.tables.get_mut(node.table).plan.counts.update += 1;
        }
        // When everything that made it necessary to open the row has fallen away, it is left as it is.
        if let Some(state) = draft.state.as_ref().filter(|_| !reopens) {
            let (guard, follows) = guard();
            self.state(node, table, &draft, state, guard, follows)?;
        }
        if !guard().1 {
            return Ok(());
        }
        self.touched.insert(node);
        Ok(())
    }

    fn state(
        &mut self,
        node: Node,
        table: &str,
        draft: &Draft,
        state: &Pair,
        guard: Guard,
        follows: bool,
    ) -> Result<(), RestoreError> {
        let wave = self.state_wave(node);
        if let Some(rule) = self.work.tables.get(node.table).rules().state.as_ref().filter(|rule| rule.reaches_below) {
            let (wanted, now) = (state_of(rule, &state.set), state_of(rule, &state.from));
            self.stated.insert(node, wanted.filter(|wanted| *wanted != rule.initial && now != Some(*wanted)));
        }
        let mut set = op(table, &draft.key, Step::State, wave, Action::Write(WriteKind::State), guard);
        (set.set, set.from, set.follows) = (Some(raw(state.set.clone())?), Some(raw(state.from.clone())?), follows);
        set.modified.clone_from(&draft.modified);
        set.close = self.work.close(node)?;
        self.ops.push(node.table, &set)?;
        self.work.tables.get_mut(node.table).plan.counts.state += 1;
        Ok(())
    }

    /// When a state is set. Children first: a case with open activities cannot be closed. Where a state reaches below, parents
    /// first: what is set below afterwards stands.
    fn state_wave(&self, node: Node) -> u32 {
        let last = self.waves.last();
        let reaches = self.work.tables.get(node.table).rules().state.as_ref().is_some_and(|state| state.reaches_below);
        if !reaches {
            return last - self.waves.row(node).min(last);
        }
        let mut above = 0;
        let mut at = node;
        while let Some(parent) = self.work.above.get(&at).filter(|_| above < ABOVE_MAX) {
            above += 1;
            at = *parent;
        }
        last - self.waves.table(node.table).min(last) + above
    }

    /// Reports the rows whose states are not set, below rows whose states are: those may reach them (`dataverse` protocol,
    /// section 8.6).
    pub(crate) fn report_states_from_above(&mut self) {
        for (node, captured) in std::mem::take(&mut self.work.states_below) {
            if self.stated.contains_key(&node) || self.presence(node) == Presence::Missing {
                continue;
            }
            let mut at = self.work.above.get(&node);
            for _ in 0..ABOVE_MAX {
                let Some(parent) = at else { break };
                if self.stated.get(parent).copied().flatten().is_some_and(|state| state != captured) {
                    let table = self.work.tables.get(node.table);
                    let (name, id) = (table.name.clone(), table.ids[node.row as usize].to_string());
                    let column = table.rules().state.as_ref().map_or("", |rule| rule.state.as_str()).to_string();
                    let sentence = "the state of the row above is set, which may set that of the row as well";
                    self.work.findings.row("state-from-above", &name, &id, &column, sentence);
                    break;
                }
                at = self.work.above.get(parent);
            }
        }
    }

    /// Operations on closed rows that are opened although nothing is written to the rows themselves.
    pub(crate) fn openings(&mut self) -> Result<(), RestoreError> {
        for (node, table, opening) in self.work.openings.rest() {
            let name = self.work.tables.get(table).name.clone();
            let guard = opening.etag.map_or(Guard::Present, Guard::Unchanged);
            let action = Action::Write(WriteKind::State);
            let mut open = op(&name, &opening.key, Step::Reopen, 0, action, guard);
            (open.set, open.from) = (Some(raw(opening.open.set)?), Some(raw(opening.open.from)?));
            open.modified = opening.modified;
            self.ops.push(table, &open)?;
            let wave = node.map_or(self.waves.last(), |node| self.state_wave(node));
            let mut close = follow(&name, &opening.key, Step::State, wave, WriteKind::State);
            (close.set, close.from) = (Some(raw(opening.close.set)?), Some(raw(opening.close.from)?));
            self.ops.push(table, &close)?;
            self.work.tables.get_mut(table).plan.counts.state += 2;
            self.touched.extend(node);
        }
        Ok(())
    }

    /// Operations that give rows the owners they are to have, after those of the rows above them were changed.
    pub(crate) fn heirs(&mut self) -> Result<(), RestoreError> {
        for (node, heir) in self.work.heirs.take() {
            let name = self.work.tables.get(heir.table).name.clone();
            let wave = self.owner_waves.row(node);
            let mut assign = follow(&name, &heir.key, Step::Owners, wave, WriteKind::Update);
            assign.set = Some(object(&[&heir.owner])?);
            if heir.is_live {
                assign.from = Some(object(&[&heir.owner])?);
                assign.follows = !self.touched.insert(node);
            }
            self.ops.push(heir.table, &assign)?;
            self.work.tables.get_mut(heir.table).plan.counts.update += 1;
        }
        Ok(())
    }

    fn captured_parties(&mut self, node: Node, table: &str, key: &RowKey) -> Result<Vec<Box<RawValue>>, RestoreError> {
        let Some(parties) = self.work.parties.as_mut() else { return Ok(Vec::new()) };
        let captured = parties.captured(node)?;
        self.party_texts(&captured, table, key)
    }

    fn party_texts(
        &mut self,
        parties: &[Party],
        table: &str,
        key: &RowKey,
    ) -> Result<Vec<Box<RawValue>>, RestoreError> {
        let mut texts = Vec::new();
        for party in parties {
            if let Some(sentence) = &party.unfit {
                let sentence = format!("a party is left out: {sentence}");
                self.work.findings.row("party-lost", table, &key.id, "", sentence);
                continue;
            }
            match parties::text_of(party, self.work.can_name(party)) {
                Ok(text) => texts.push(raw(text)?),
                Err(why) => {
                    let sentence = format!("a party is left out: its row is not there and it has no address ({why})");
                    self.work.findings.row("party-lost", table, &key.id, "", sentence);
                }
            }
        }
        Ok(texts)
    }

    /// Operations on the parties of activities that exist.
    pub(crate) fn parties(&mut self) -> Result<(), RestoreError> {
        let mut changed: Vec<(Node, Winner)> = self.work.changed_activities.drain().collect();
        changed.sort_unstable_by_key(|(node, _)| *node);
        for (node, winner) in changed {
            self.work.stopped()?;
            let Some(Differing { captured, live, wins }) = self.work.differing_parties(node, winner)? else { continue };
            let table = self.work.tables.get(node.table);
            let name = table.name.clone();
            let key = RowKey::new(table.ids[node.row as usize].to_string());
            let now: Vec<Box<RawValue>> =
                live.iter().map(|party| raw(parties::text_now(party))).collect::<Result<_, _>>()?;
            let wanted = self.party_texts(&captured, &name, &key)?;
            if !wins {
                let list = |rows: &[Box<RawValue>]| {
                    let rows: Vec<&str> = rows.iter().map(|row| row.get()).collect();
                    format!("[{}]", rows.join(",")).into_bytes()
                };
                let parties = self.work.parties.as_ref().map_or(0, |parties| parties.table);
                let column = self.work.tables.get(parties).name.clone();
                self.work.conflicts.add(&name, &key.id, &column, &list(&wanted), &list(&now))?;
                self.work.tables.get_mut(node.table).plan.counts.conflicts += 1;
                continue;
            }
            let action = Action::Write(WriteKind::Parties);
            let mut replace = op(&name, &key, Step::Parties, 0, action, Guard::Present);
            (replace.parties, replace.from_parties) = (wanted, now);
            replace.follows = !self.touched.insert(node);
            self.ops.push(node.table, &replace)?;
            self.work.tables.get_mut(node.table).plan.counts.update += 1;
        }
        Ok(())
    }

    /// Links that are missing.
    pub(crate) fn links(&mut self) -> Result<(), RestoreError> {
        for (number, mut links) in std::mem::take(&mut self.work.links) {
            let name = self.work.tables.get(number).name.clone();
            let mut drafts = std::mem::replace(&mut links.drafts, Spill::new(&self.work.scratch)?);
            let mut at = 0;
            let mut counts = self.work.tables.get(number).plan.counts;
            drafts.scan_json(|link: Link| {
                let there = links.is_live(at);
                at += 1;
                if there {
                    counts.unchanged += 1;
                    return Ok(());
                }
                if let Some(node) = link.ends.iter().find(|node| self.presence(**node) == Presence::Missing) {
                    let row = words(&self.work.tables, &self.work.outside, *node);
                    let sentence = format!("{row} is neither there nor made");
                    self.work.findings.row(reason::MISSING_TARGET, &name, &link.key.id, "", sentence);
                    counts.impossible += 1;
                    return Ok(());
                }
                let action = Action::Write(WriteKind::Create);
                let mut create = op(&name, &link.key, Step::Links, 0, action, Guard::Absent);
                create.set = Some(raw(link.set)?);
                counts.link += 1;
                self.ops.push(number, &create)
            })?;
            self.work.tables.get_mut(number).plan.counts = counts;
            self.work.links.push((number, links));
        }
        Ok(())
    }

    /// Files, images, notes and attachments of a table.
    pub(crate) fn pieces(&mut self, number: u16) -> Result<(), RestoreError> {
        let Some(mut pieces) = self.work.pieces.take(number) else { return Ok(()) };
        let name = self.work.tables.get(number).name.clone();
        pieces.scan_json(|piece: Piece| {
            let node = Node { table: number, row: piece.row };
            let presence = self.presence(node);
            if presence == Presence::Missing {
                return Ok(());
            }
            let action = if piece.upload { Action::Upload } else { Action::Clear };
            let mut upload = op(&name, &piece.key, Step::Content, 0, action, Guard::Present);
            upload.content = Some(piece.content);
            upload.follows = presence == Presence::Planned || !self.touched.insert(node);
            self.work.tables.get_mut(number).plan.counts.content += 1;
            self.ops.push(number, &upload)
        })
    }
}

/// An operation on a row that an earlier operation made.
fn follow(table: &str, key: &RowKey, step: Step, wave: u32, kind: WriteKind) -> Op {
    Op { follows: true, ..op(table, key, step, wave, Action::Write(kind), Guard::Present) }
}
