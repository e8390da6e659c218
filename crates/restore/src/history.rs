//! What a run did to each row: the operations of its plan, with their outcomes, found by row.
//!
//! A plan is in the order of writing: a row's creation, its lookups and its state stand far apart. Proof and undo look at one
//! row at a time. So the operations are copied into one scratch file per table, with an index of (row id, place) in memory:
//! 24 bytes an operation, however wide its rows are.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;

use dynavault_catalog::{OpOutcome, OpState};
use dynavault_model::{RowId, RowKey};
use serde::{Deserialize, Serialize};

use crate::RestoreError;
use crate::adjust::{OWNER_REFUSED, TARGET_MISSING};
use crate::plan::{Action, Op};
use crate::spill::Spill;

/// An operation with what became of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Tried {
    pub(crate) op: Op,
    /// Whether it changed the environment.
    pub(crate) done: bool,
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
    /// Adds an operation. Operations come in the order of the plan.
    pub(crate) fn push(&mut self, scratch: &Path, op: Op, outcome: OpOutcome) -> Result<(), RestoreError> {
        let table = match self.tables.entry(op.table.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => place.insert(TableHistory { spill: Spill::new(scratch)?, places: Vec::new() }),
        };
        let id = row_id(&op.key);
        let offset = table.spill.push_json(&Tried {
            op,
            done: outcome.state == OpState::Done,
            before: outcome.before,
            note: outcome.message,
        })?;
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

impl RowHistory {
    /// Whether the run made the row.
    pub(crate) fn was_created(&self) -> bool {
        use dynavault_model::WriteKind;
        self.tried.iter().any(|tried| {
            tried.done && matches!(tried.op.action, Action::Write(WriteKind::Create | WriteKind::Undelete))
        })
    }

    /// Whether the run changed the row in any way.
    pub(crate) fn was_touched(&self) -> bool {
        self.tried.iter().any(|tried| tried.done)
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
