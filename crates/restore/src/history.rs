//! What a run did to each row: the operations of its plan, with their outcomes, found by row.
//!
//! A plan is in the order of writing: a row's creation, its lookups and its state stand far apart. Proof and undo look at one
//! row at a time. So the operations are copied into one scratch file per table, with an index of (row id, place) in memory:
//! 24 bytes an operation, however wide its rows are.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use dynavault_catalog::{OpOutcome, OpState};
use dynavault_model::{RowId, RowKey, WriteKind};
use serde::{Deserialize, Serialize};

use crate::RestoreError;
use crate::adjust::{OWNER_REFUSED, TARGET_MISSING};
use crate::plan::{Action, ContentOp, Op, Step};
use crate::settle::{LiveRow, same_value};
use crate::spill::Spill;

/// Code of an operation of which nothing is known, because the outcomes of its run are lost.
pub const OUTCOME_LOST: &str = "outcome-lost";

/// An operation with what became of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Tried {
    pub(crate) op: Op,
    /// Whether it changed the environment.
    pub(crate) done: bool,
    /// Whether it was begun, and what became of it is not known.
    #[serde(default)]
    pub(crate) sent: bool,
    /// Whether not even that is known.
    #[serde(default)]
    pub(crate) lost: bool,
    /// Content that was there before, as JSON.
    #[serde(default)]
    pub(crate) before: Option<String>,
    /// What was done differently from the plan.
    #[serde(default)]
    pub(crate) note: Option<String>,
}

/// The operations about one row, in the order in which they were carried out.
#[derive(Debug)]
pub(crate) struct RowHistory {
    pub(crate) id: RowId,
    pub(crate) tried: Vec<Tried>,
}

/// The operations of one table.
#[derive(Debug)]
pub(crate) struct TableHistory {
    spill: Spill,
    /// Row and offset of each operation.
    places: Vec<(RowId, u64)>,
}

/// The operations of a run, by table and row.
#[derive(Debug, Default)]
pub(crate) struct Histories {
    pub(crate) tables: BTreeMap<String, TableHistory>,
    /// Rows that the run made, as far as it is known.
    pub(crate) made: HashSet<RowId>,
    /// Rows may have got other owners.
    pub(crate) owners_begun: bool,
}

/// The id of a row by its address.
pub(crate) fn row_id(key: &RowKey) -> RowId {
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    match &key.partition {
        None => RowId::of_key(&[quoted(&key.id).as_bytes()]),
        Some(partition) => RowId::of_key(&[quoted(&key.id).as_bytes(), quoted(partition).as_bytes()]),
    }
}

impl Histories {
    /// Adds an operation, without an outcome if it was not tried. Operations come in the order of the plan.
    pub(crate) fn push(&mut self, scratch: &Path, op: Op, outcome: Option<OpOutcome>) -> Result<(), RestoreError> {
        let table = match self.tables.entry(op.table.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(TableHistory { spill: Spill::new(scratch)?, places: Vec::new() }),
        };
        let id = row_id(&op.key);
        let state = outcome.as_ref().map(|outcome| outcome.state);
        let (done, sent) = (state == Some(OpState::Done), state == Some(OpState::Sent));
        if (done || sent) && makes(op.action) {
            self.made.insert(id);
        }
        self.owners_begun |= (done || sent) && op.step == Step::Owners;
        let lost = outcome.as_ref().is_some_and(|outcome| outcome.code.as_deref() == Some(OUTCOME_LOST));
        let (before, note) = outcome.map(|outcome| (outcome.before, outcome.message)).unwrap_or_default();
        let offset = table.spill.push_json(&Tried { op, done, sent, lost, before, note })?;
        table.places.push((id, offset));
        Ok(())
    }
}

impl TableHistory {
    /// Rows of the table, in order of their ids.
    pub(crate) fn rows(&mut self) -> Rows<'_> {
        self.places.sort_unstable();
        Rows { spill: &mut self.spill, places: &self.places }
    }
}

/// The rows of a table that is read.
pub(crate) struct Rows<'a> {
    spill: &'a mut Spill,
    places: &'a [(RowId, u64)],
}

impl Rows<'_> {
    /// The next row with its operations.
    pub(crate) fn next_row(&mut self) -> Result<Option<RowHistory>, RestoreError> {
        let Some((id, _)) = self.places.first().copied() else { return Ok(None) };
        let count = self.places.iter().take_while(|(other, _)| *other == id).count();
        let (mine, rest) = self.places.split_at(count);
        self.places = rest;
        let mut record = Vec::new();
        let mut tried = Vec::with_capacity(count);
        for (_, offset) in mine {
            self.spill.read(*offset, &mut record)?;
            tried.push(serde_json::from_slice(&record).map_err(|error| RestoreError::Worker(error.to_string()))?);
        }
        Ok(Some(RowHistory { id, tried }))
    }
}

/// Whether an operation makes a row.
fn makes(action: Action) -> bool {
    matches!(action, Action::Write(WriteKind::Create | WriteKind::Undelete))
}

impl Tried {
    /// What content there was before; `Err` when that is not known. A row that was deleted with an outcome and without a word about
    /// content had none.
    pub(crate) fn content_before(&self) -> Result<Vec<ContentOp>, ContentLost> {
        match &self.before {
            Some(text) => serde_json::from_str(text).map_err(|_| ContentLost),
            None if self.op.action == Action::Write(WriteKind::Delete) && !self.lost => Ok(Vec::new()),
            None => Err(ContentLost),
        }
    }
}

/// Nothing says what content there was before.
#[derive(Debug)]
pub(crate) struct ContentLost;

impl RowHistory {
    /// Decides about operations that were begun and have no answer, by the row as it is now. A change counts as made: whoever takes
    /// it back looks at each value.
    pub(crate) fn settle(&mut self, live: Option<&LiveRow>) {
        for tried in self.tried.iter_mut().filter(|tried| tried.sent) {
            tried.done = match tried.op.action {
                Action::Write(WriteKind::Create | WriteKind::Undelete) => live.is_some(),
                Action::Write(WriteKind::Delete) => live.is_none(),
                Action::Write(WriteKind::Update | WriteKind::State | WriteKind::Parties) => true,
                // What was there is noted before anything is replaced.
                Action::Upload | Action::Clear => tried.before.is_some() || tried.lost,
            };
        }
    }

    /// Whether the run made the row.
    pub(crate) fn was_created(&self) -> bool {
        self.tried.iter().any(|tried| tried.done && makes(tried.op.action))
    }

    /// The row as it was before it was deleted, where an undo makes it again.
    pub(crate) fn remade_from(&self) -> Option<&serde_json::value::RawValue> {
        let made = self.tried.iter().find(|tried| tried.done && makes(tried.op.action));
        made.and_then(|tried| tried.op.from.as_deref())
    }

    /// Whether the run changed the row in any way, or may have.
    pub(crate) fn was_touched(&self) -> bool {
        self.tried.iter().any(|tried| tried.done || tried.sent)
    }

    /// The values the plan has for the row, the last of each member, of the operations that were carried out.
    pub(crate) fn written(&self) -> BTreeMap<String, Box<serde_json::value::RawValue>> {
        let mut values = BTreeMap::new();
        for tried in self.tried.iter().filter(|tried| tried.done) {
            if let Some(set) = &tried.op.set
                && let Ok(members) =
                    serde_json::from_str::<BTreeMap<String, Box<serde_json::value::RawValue>>>(set.get())
            {
                values.extend(members);
            }
        }
        values
    }

    /// The values that the run left in the row: what it wrote, without what it had to leave out.
    pub(crate) fn standing(&self) -> BTreeMap<String, Box<serde_json::value::RawValue>> {
        let mut values = self.written();
        values.retain(|member, _| self.left_out(member).is_none());
        values
    }

    /// Whether a value is one that the run wrote at some time: a closed row is opened in between.
    pub(crate) fn wrote(&self, member: &str, value: Option<&[u8]>) -> bool {
        let sets = self.tried.iter().filter(|tried| tried.done).filter_map(|tried| tried.op.set.as_deref());
        let mut values = sets.filter_map(|set| {
            let members: BTreeMap<String, Box<serde_json::value::RawValue>> = serde_json::from_str(set.get()).ok()?;
            Some(same_value(Some(members.get(member)?.get().as_bytes()), value))
        });
        values.any(|same| same)
    }

    /// Why a value that the plan has was left out while writing, if it was.
    pub(crate) fn left_out(&self, member: &str) -> Option<&'static str> {
        self.tried.iter().filter(|tried| tried.done).filter_map(|tried| tried.note.as_deref()).find_map(|note| {
            [TARGET_MISSING, OWNER_REFUSED].into_iter().find(|why| note.contains(&format!("{member} ({why})")))
        })
    }

    /// The values the run found, the first of each member.
    pub(crate) fn found(&self) -> BTreeMap<String, Box<serde_json::value::RawValue>> {
        let mut values = BTreeMap::new();
        for tried in self.tried.iter().filter(|tried| tried.done) {
            if let Some(from) = &tried.op.from
                && let Ok(members) =
                    serde_json::from_str::<BTreeMap<String, Box<serde_json::value::RawValue>>>(from.get())
            {
                for (member, value) in members {
                    values.entry(member).or_insert(value);
                }
            }
        }
        values
    }
}
