//! Rows below rows that get another owner: the service gives them to the new owner too, where their relationship says so
//! (`dataverse` protocol, section 6.7).
//!
//! ```text
//!  assigned rows ─▶ live rows whose lookups name them ─▶ rows below those ─▶ …      each with its owner and its depth
//! ```
//!
//! Whether or not a row is part of a plan, an assignment above it reaches it. So the tables that follow are read, level by level,
//! and only ids and edges stay in memory.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use dynavault_model::{Call, ColumnRule, Row, RowId, RowKey, RowSource, SourceError, TableRules, TableSchema};
use serde::{Deserialize, Serialize};

use crate::compare::{NULL, reference, value};
use crate::draft::{Pair, live_lookup_text, open_and_close};
use crate::error::RestoreError;
use crate::live::gather;
use crate::settle::key_of;
use crate::spill::Spill;

/// Levels of rows below rows; what is still deeper is in a circle, which the service does not follow for ever either.
const LEVELS_MAX: u32 = 100;

/// A row: the place of its table among those that are looked at, and its id.
pub(crate) type Place = (u16, RowId);

/// A table that is looked at.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) schema: Arc<TableSchema>,
    pub(crate) rules: Arc<TableRules>,
}

/// A live row that is assigned along with one above it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Heir {
    pub(crate) key: RowKey,
    /// Its owner as it is written, without braces.
    pub(crate) owner: String,
    /// For a closed row: what opens it, and what closes it again.
    pub(crate) state: Option<(Pair, Pair)>,
}

/// What is below.
#[derive(Debug)]
pub(crate) struct Below {
    /// Levels between a row and the assigned row above it, on the longest way.
    pub(crate) depth: HashMap<Place, u32>,
    /// Rows and those right above them.
    pub(crate) edges: Vec<(Place, Place)>,
    rows: Spill,
    index: HashMap<Place, u64>,
    /// Tables that the service does not let us read.
    pub(crate) unreadable: Vec<String>,
}

impl Below {
    /// The live rows that were found.
    pub(crate) fn places(&self) -> impl Iterator<Item = Place> + '_ {
        self.index.keys().copied()
    }

    /// A row that was found.
    pub(crate) fn heir(&mut self, place: Place) -> Result<Option<Heir>, RestoreError> {
        let Some(offset) = self.index.get(&place) else { return Ok(None) };
        let mut record = Vec::new();
        self.rows.read(*offset, &mut record)?;
        let heir = serde_json::from_slice(&record)
            .map_err(|error| RestoreError::Worker(format!("a row changed in the scratch folder: {error}")))?;
        Ok(Some(heir))
    }
}

/// A row as a pass over its table finds it.
struct Found {
    id: RowId,
    above: Vec<Place>,
    heir: Heir,
}

/// The owner of a row, unless it has none.
fn heir(schema: &TableSchema, rules: &TableRules, owner: &ColumnRule, row: &Row<'_>) -> Option<Heir> {
    let key = key_of(&schema.key, row).filter(|_| value(row, &owner.member) != NULL)?;
    let state = rules.state.as_ref().and_then(|rule| open_and_close(rule, row));
    Some(Heir { key, owner: live_lookup_text(row, owner), state })
}

/// Finds what is below `assigned`. `extra` are lookups that rows have beside those that they have now: (row, row above it).
pub(crate) async fn below(
    source: &dyn RowSource,
    tables: &[Known],
    assigned: &HashSet<Place>,
    extra: &[(Place, Place)],
    scratch: &Path,
    call: &Call,
) -> Result<Below, RestoreError> {
    let mut below = Below {
        depth: HashMap::new(),
        edges: Vec::new(),
        rows: Spill::new(scratch)?,
        index: HashMap::new(),
        unreadable: Vec::new(),
    };
    let mut followers: HashMap<Place, Vec<Place>> = HashMap::new();
    for (row, above) in extra {
        followers.entry(*above).or_default().push(*row);
    }
    let numbers: Arc<HashMap<String, u16>> = Arc::new(
        tables.iter().enumerate().map(|(number, known)| (known.schema.table.name.clone(), number as u16)).collect(),
    );
    let mut frontier = Arc::new(assigned.clone());
    for level in 1..=LEVELS_MAX {
        let mut next = HashSet::new();
        for row in frontier.iter().filter_map(|place| followers.get(place)).flatten() {
            below.depth.insert(*row, level);
            next.insert(*row);
        }
        for (number, known) in tables.iter().enumerate() {
            let found = match follow(source, known, &numbers, &frontier, call).await {
                Ok(found) => found,
                Err(RestoreError::Environment(SourceError::Refused { .. })) => {
                    let name = known.schema.table.name.clone();
                    if !below.unreadable.contains(&name) {
                        below.unreadable.push(name);
                    }
                    continue;
                }
                Err(error) => return Err(error),
            };
            for Found { id, above, heir } in found {
                let place = (number as u16, id);
                below.edges.extend(above.into_iter().map(|above| (place, above)));
                // A row that is deeper on another way moves those below it down as well.
                below.depth.insert(place, level);
                next.insert(place);
                if !below.index.contains_key(&place) {
                    let offset = below.rows.push_json(&heir)?;
                    below.index.insert(place, offset);
                }
            }
        }
        if next.is_empty() {
            break;
        }
        frontier = Arc::new(next);
    }
    below.edges.sort_unstable();
    below.edges.dedup();
    Ok(below)
}

/// Rows of a table right below rows of the frontier.
async fn follow(
    source: &dyn RowSource,
    known: &Known,
    numbers: &Arc<HashMap<String, u16>>,
    frontier: &Arc<HashSet<Place>>,
    call: &Call,
) -> Result<Vec<Found>, RestoreError> {
    let reached: HashSet<u16> = frontier.iter().map(|(number, _)| *number).collect();
    let relations: Vec<(String, String, u16)> = known
        .rules
        .parents
        .iter()
        .filter(|relation| relation.assigns)
        .filter_map(|relation| {
            let number = numbers.get(&relation.parent).filter(|number| reached.contains(number))?;
            Some((relation.member.clone(), relation.parent.clone(), *number))
        })
        .collect();
    let Some(owner) = known.rules.owner.as_deref().and_then(|owner| known.rules.column(owner)).cloned() else {
        return Ok(Vec::new());
    };
    if relations.is_empty() || !owner.update {
        return Ok(Vec::new());
    }
    let (schema, rules, frontier) = (Arc::clone(&known.schema), Arc::clone(&known.rules), Arc::clone(frontier));
    // A page may be delivered twice; the last delivery of a row counts.
    let found = Arc::new(Mutex::new(HashMap::new()));
    let kept = Arc::clone(&found);
    let make = move |row: &Row<'_>| -> Result<Option<()>, RestoreError> {
        let mut above = Vec::new();
        for (member, parent, number) in &relations {
            let Some(named) = reference(row, member, rules.column(member)) else { continue };
            let is_parent = named.table.as_ref().is_none_or(|table| table == parent);
            if is_parent && frontier.contains(&(*number, named.id)) {
                above.push((*number, named.id));
            }
        }
        if let (false, Some(id)) = (above.is_empty(), schema.row_id(row))
            && let Some(heir) = heir(&schema, &rules, &owner, row)
        {
            kept.lock().unwrap_or_else(PoisonError::into_inner).insert(id, Found { id, above, heir });
        }
        Ok(None)
    };
    gather(source, &known.schema, make, call).await?;
    let found = std::mem::take(&mut *found.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(found.into_values().collect())
}
