//! What the steps of planning share.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use dynavault_model::{Abilities, Call, Observer, RowSource, RowTarget, TableEvent, TableListing};

use crate::captured::Captured;
use crate::closes::Newest;
use crate::compare::Winner;
use crate::creators::Creators;
use crate::error::RestoreError;
use crate::findings::Findings;
use crate::links::Links;
use crate::mapping::Mapping;
use crate::openings::Openings;
use crate::owners::Heirs;
use crate::parties::Parties;
use crate::pieces::Pieces;
use crate::plan::{Conflict, ConflictPolicy, PlanLine};
use crate::resolve::Outside;
use crate::select::Columns;
use crate::spill::Spill;
use crate::tables::Tables;
use crate::waves::{Edges, Node};

/// Conflicts named in the error of `--conflict fail`.
const CONFLICTS_NAMED: usize = 10;

/// Values that are left alone.
#[derive(Debug)]
pub(crate) struct Conflicts {
    pub(crate) lines: Spill,
    pub(crate) count: u64,
    /// Table, row and column of the first.
    pub(crate) first: Vec<String>,
}

impl Conflicts {
    pub(crate) fn new(scratch: &std::path::Path) -> Result<Self, RestoreError> {
        Ok(Self { lines: Spill::new(scratch)?, count: 0, first: Vec::new() })
    }

    pub(crate) fn add(
        &mut self,
        table: &str,
        id: &str,
        column: &str,
        captured: &[u8],
        live: &[u8],
    ) -> Result<(), RestoreError> {
        let raw = |bytes: &[u8]| {
            serde_json::value::RawValue::from_string(String::from_utf8_lossy(bytes).into_owned())
                .map_err(|error| RestoreError::Worker(format!("a value of table {table} is not JSON: {error}")))
        };
        let conflict = Conflict {
            table: table.to_string(),
            id: id.to_string(),
            column: column.to_string(),
            snapshot: raw(captured)?,
            live: raw(live)?,
        };
        self.count += 1;
        if self.first.len() < CONFLICTS_NAMED {
            self.first.push(format!("{table} {id} {column}"));
        }
        self.lines.push_json(&PlanLine::Conflict(conflict)).map(|_| ())
    }
}

/// Everything a plan is made of.
pub(crate) struct Work {
    pub(crate) captured: Captured,
    pub(crate) source: Arc<dyn RowSource>,
    pub(crate) target: Arc<dyn RowTarget>,
    pub(crate) listings: Vec<TableListing>,
    pub(crate) abilities: Abilities,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) call: Call,
    pub(crate) scratch: PathBuf,
    pub(crate) conflict: ConflictPolicy,
    pub(crate) mirror: bool,
    pub(crate) columns: Columns,
    pub(crate) tables: Tables,
    pub(crate) mapping: Mapping,
    pub(crate) outside: Outside,
    pub(crate) findings: Findings,
    pub(crate) conflicts: Conflicts,
    pub(crate) edges: Edges,
    /// Rows and those they cannot be without.
    pub(crate) required: Vec<(Node, Node)>,
    pub(crate) pieces: Pieces,
    /// Activities that are there and differ.
    pub(crate) changed_activities: HashMap<Node, Winner>,
    pub(crate) parties: Option<Parties>,
    /// Rows that are closed by a message, with the newest activity that closed them.
    pub(crate) closing: HashMap<Node, Option<Newest>>,
    /// Close activities that rows of the plan refer to.
    pub(crate) named_closes: HashSet<Node>,
    pub(crate) closes: Spill,
    pub(crate) links: Vec<(u16, Links)>,
    /// Users on whose behalf rows are made; none when they are made by us.
    pub(crate) creators: Option<Creators>,
    /// Closed rows that are opened for what is written to them or below them.
    pub(crate) openings: Openings,
    /// Rows whose owners the service changes along with those of other rows.
    pub(crate) heirs: Heirs,
    /// The row above within its own table, where the state of a row reaches below it.
    pub(crate) above: HashMap<Node, Node>,
    /// States in which the rows of [`Self::above`] were captured.
    pub(crate) states_below: BTreeMap<Node, i64>,
}

impl Work {
    pub(crate) fn stopped(&self) -> Result<(), RestoreError> {
        if self.call.cancel.is_cancelled() { Err(RestoreError::Cancelled) } else { Ok(()) }
    }

    pub(crate) fn notice(&self, table: Option<&str>, message: impl Into<String>) {
        self.observer.event(TableEvent::Notice { table: table.map(str::to_string), message: message.into() });
    }
}
