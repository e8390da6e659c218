//! Owners in an undo: rows that get theirs back, and the rows below them, which the service assigns along and which keep what they
//! had before the restore.
//!
//! ```text
//!  rows that get an owner back ─▶ rows below them (below) ─▶ each is given its own owner again, parents first
//! ```
//!
//! What a row had before is in the plan of the restore where that wrote its owner; every other row keeps the owner it has.

use std::collections::{HashMap, HashSet};

use dynavault_model::{Guard, RowId, TableRules, WriteKind};
use serde::{Deserialize, Serialize};

use crate::RestoreError;
use crate::below::{Heir, Place, below};
use crate::draft::Pair;
use crate::emit::{op, raw};
use crate::history::row_id;
use crate::plan::{Action, Op, Step};
use crate::spill::Spill;
use crate::undo::{Undo, Values};

/// An owner that stands, and is written again when a row above is assigned.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    op: Op,
    /// What opens the row for that, and closes it again.
    closed: Option<(Pair, Pair)>,
}

/// The owners of an undo in the making.
#[derive(Debug)]
pub(crate) struct Owners {
    /// The restore may have assigned rows.
    pub(crate) begun: bool,
    /// Operations that give owners back.
    given: Spill,
    assigned: HashSet<Place>,
    kept: Spill,
    /// Lookups that rows will have: (row, row above it).
    above: Vec<(Place, Place)>,
}

impl Owners {
    pub(crate) fn new(scratch: &std::path::Path) -> Result<Self, RestoreError> {
        Ok(Self {
            begun: false,
            given: Spill::new(scratch)?,
            assigned: HashSet::new(),
            kept: Spill::new(scratch)?,
            above: Vec::new(),
        })
    }
}

impl Undo<'_> {
    /// Gives a row its owner back.
    pub(crate) fn give_owner(&mut self, assign: &Op) -> Result<(), RestoreError> {
        self.owners.assigned.extend(self.place(&assign.table, row_id(&assign.key)));
        self.owners.given.push_json(assign).map(|_| ())
    }

    /// Gives a row its owner once more, if a row above it is assigned.
    pub(crate) fn keep_owner(&mut self, assign: &Op, closed: Option<(Pair, Pair)>) -> Result<(), RestoreError> {
        self.owners.kept.push_json(&Kept { op: assign.clone(), closed }).map(|_| ())
    }

    /// Notes the rows above a row as its lookups will be.
    pub(crate) fn owners_above(&mut self, rules: &TableRules, place: Option<Place>, values: &Values) {
        let Some(place) = place else { return };
        for relation in rules.parents.iter().filter(|relation| relation.assigns) {
            let id = values.get(&relation.member).and_then(|value| serde_json::from_str::<String>(value.get()).ok());
            let id = id.and_then(|id| RowId::from_guid(id.as_bytes()));
            // Which of several tables it is does not matter: ids are unique among them.
            let above = id.and_then(|id| self.place(&relation.parent, id));
            self.owners.above.extend(above.map(|above| (place, above)));
        }
    }

    /// Plans the operations on owners, once all rows were looked at.
    pub(crate) async fn give_back_owners(&mut self) -> Result<(), RestoreError> {
        if self.owners.assigned.is_empty() {
            return Ok(());
        }
        let owners = std::mem::replace(&mut self.owners, Owners::new(&self.parts.scratch)?);
        let Owners { mut given, assigned, mut kept, above, .. } = owners;
        let (parts, known) = (self.parts, std::mem::take(&mut self.known));
        let found = below(parts.source.as_ref(), &known, &assigned, &above, &parts.scratch, &parts.call).await;
        self.known = known;
        let mut found = found?;
        for table in &found.unreadable {
            let message =
                "rows of the table are not looked at: the service gives those below an assigned row to its owner";
            self.findings.table("unchecked-owner", table, 0, message);
        }
        let depth: HashMap<Place, u32> = std::mem::take(&mut found.depth);
        let mut known: HashSet<Place> = HashSet::new();
        given.scan_json(|mut op: Op| {
            let place = self.place(&op.table, row_id(&op.key));
            op.wave = place.and_then(|place| depth.get(&place)).copied().unwrap_or(0);
            known.extend(place);
            self.push(&op)
        })?;
        kept.scan_json(|Kept { mut op, closed }: Kept| {
            let Some(place) = self.place(&op.table, row_id(&op.key)) else { return Ok(()) };
            known.insert(place);
            let Some(wave) = depth.get(&place) else { return Ok(()) };
            op.wave = *wave;
            self.assign_again(op, closed)
        })?;
        let mut rest: Vec<Place> = found.places().filter(|place| !known.contains(place)).collect();
        rest.sort_unstable();
        for place in rest {
            // What the undo deletes needs no owner.
            let Some(heir) = found.heir(place)?.filter(|_| !self.goes(place)) else { continue };
            let Heir { key, owner, state } = heir;
            let table = self.known[usize::from(place.0)].schema.table.name.clone();
            let wave = depth.get(&place).copied().unwrap_or(0);
            let mut assign = op(&table, &key, Step::Owners, wave, Action::Write(WriteKind::Update), Guard::Present);
            assign.set = Some(raw(format!("{{{owner}}}"))?);
            self.assign_again(assign, state)?;
        }
        Ok(())
    }

    /// Whether the undo deletes a row.
    fn goes(&self, place: Place) -> bool {
        self.made.contains(&place.1) && !self.needed.contains(&place.1)
    }

    /// An owner that a row has, written again; a closed row is opened for it.
    fn assign_again(&mut self, mut assign: Op, closed: Option<(Pair, Pair)>) -> Result<(), RestoreError> {
        assign.from.clone_from(&assign.set);
        if let Some((open, close)) = closed {
            for (step, pair, follows) in [(Step::Reopen, open, assign.follows), (Step::State, close, true)] {
                let action = Action::Write(WriteKind::State);
                let mut state = op(&assign.table, &assign.key, step, 0, action, Guard::Present);
                (state.set, state.from, state.follows) = (Some(raw(pair.set)?), Some(raw(pair.from)?), follows);
                self.push(&state)?;
            }
            assign.follows = true;
        }
        self.push(&assign)
    }
}
