//! Closed rows that have to be open for a while although nothing is written to the rows themselves: for their parties, for their
//! files, for attachments that are made below them, and for owners that the service has changed along with others. They are
//! opened before everything else and closed again, as they were, after everything else.
//!
//! What comes back closed from the recycle bin is opened once it is back. Attachments below it wait for that.
//!
//! (`dataverse` protocol, sections 6.5, 6.17 step 4, 7.3.) Notes and attachments are the tables whose content is a body; of the rows
//! above them only activities are opened: an account's or a case's notes can be added at any time.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use dynavault_model::{ContentKind, Row, RowId, RowKey, SourceError, TableRules, TableSchema};

use crate::compare::{Winner, reference, text};
use crate::draft::{Draft, Kind, Pair, open_and_close};
use crate::error::RestoreError;
use crate::live::{State, existing_rows};
use crate::resolve::{Presence, presence};
use crate::settle::{MODIFIED, key_of};
use crate::tables::with_row;
use crate::waves::Node;
use crate::work::Work;

/// A closed row that is opened.
#[derive(Debug, Clone)]
pub(crate) struct Opening {
    pub(crate) key: RowKey,
    /// Entity tag of the live row.
    pub(crate) etag: Option<String>,
    /// When the live row was last modified.
    pub(crate) modified: Option<String>,
    pub(crate) open: Pair,
    pub(crate) close: Pair,
}

/// The closed rows that are opened.
#[derive(Debug, Default)]
pub(crate) struct Openings {
    /// Rows of the plan.
    rows: BTreeMap<Node, Opening>,
    /// Rows that are not in the plan, by table.
    outside: Vec<(u16, Opening)>,
    /// Rows that come back from the recycle bin and have content to upload.
    content: HashSet<Node>,
    /// Activities that come back from the recycle bin and get attachments.
    above: HashSet<Node>,
    /// Attachments of those.
    attachments: HashSet<Node>,
}

impl Openings {
    /// The opening of a row that is changed.
    pub(crate) fn take(&mut self, node: Node) -> Option<Opening> {
        self.rows.remove(&node)
    }

    /// Opens a row that is not in the plan.
    pub(crate) fn open(&mut self, table: u16, opening: Opening) {
        self.outside.push((table, opening));
    }

    /// Whether a row that comes back from the recycle bin has to be open: for content, or for attachments.
    pub(crate) fn opens(&self, node: Node) -> bool {
        self.content.contains(&node) || self.above.contains(&node)
    }

    /// Whether a row is made only after the activity above it came back from the recycle bin and was opened.
    pub(crate) fn waits(&self, node: Node) -> bool {
        self.attachments.contains(&node)
    }

    /// Rows to which nothing else is written, with the numbers of their tables.
    pub(crate) fn rest(&mut self) -> Vec<(Option<Node>, u16, Opening)> {
        let rows = std::mem::take(&mut self.rows).into_iter().map(|(node, opening)| (Some(node), node.table, opening));
        // A row may have to be open for several reasons.
        let mut outside = std::mem::take(&mut self.outside);
        outside.sort_by(|(a, one), (b, other)| (a, &one.key).cmp(&(b, &other.key)));
        outside.dedup_by(|(a, one), (b, other)| (a, &one.key) == (b, &other.key));
        let outside = outside.into_iter().map(|(table, opening)| (None, table, opening));
        rows.chain(outside).collect()
    }
}

/// Rows that have to be open.
#[derive(Default)]
struct Wanted {
    rows: BTreeSet<Node>,
    outside: BTreeMap<u16, BTreeSet<RowId>>,
}

fn opening(schema: &TableSchema, rules: &TableRules, row: &Row<'_>) -> Option<Opening> {
    let (open, close) = open_and_close(rules.state.as_ref()?, row)?;
    let etag = row.get("@odata.etag").and_then(text).filter(|_| rules.guards_versions);
    let modified = row.get(MODIFIED).and_then(text);
    Some(Opening { key: key_of(&schema.key, row)?, etag, modified, open, close })
}

impl Work {
    /// Finds the closed rows that have to be opened; once it is known which rows are made.
    pub(crate) fn find_openings(&mut self) -> Result<(), RestoreError> {
        let mut wanted = Wanted::default();
        self.for_parties(&mut wanted)?;
        self.for_content(&mut wanted)?;
        self.for_attachments(&mut wanted)?;
        wanted.rows.extend(self.heirs.live());
        let mut by_table: BTreeMap<u16, Vec<u32>> = BTreeMap::new();
        for node in wanted.rows {
            by_table.entry(node.table).or_default().push(node.row);
        }
        for (number, rows) in by_table {
            self.open_planned(number, &rows)?;
        }
        for (number, ids) in wanted.outside {
            self.open_outside(number, &ids.into_iter().collect::<Vec<_>>())?;
        }
        Ok(())
    }

    fn has_closed(&self, number: u16) -> bool {
        let rules = self.tables.get(number).rules.as_ref();
        rules.and_then(|rules| rules.state.as_ref()).is_some_and(|state| !state.closed.is_empty())
    }

    /// Activities whose parties are replaced.
    fn for_parties(&mut self, wanted: &mut Wanted) -> Result<(), RestoreError> {
        let changed: Vec<(Node, Winner)> = self.changed_activities.iter().map(|(node, by)| (*node, *by)).collect();
        for (node, winner) in changed {
            if self.differing_parties(node, winner)?.is_some_and(|parties| parties.wins) {
                wanted.rows.insert(node);
            }
        }
        Ok(())
    }

    /// Rows whose files are replaced.
    fn for_content(&mut self, wanted: &mut Wanted) -> Result<(), RestoreError> {
        for table in self.tables.with_rows() {
            if !self.has_closed(table) {
                continue;
            }
            for row in self.pieces.rows(table)? {
                let node = Node { table, row };
                match self.tables.get(table).state(row) {
                    State::Binned => drop(self.openings.content.insert(node)),
                    State::Same | State::Differs(_) => drop(wanted.rows.insert(node)),
                    State::Absent | State::Unmade => {}
                }
            }
        }
        Ok(())
    }

    /// Activities that get attachments: those that are there, and those that come back from the recycle bin as they were.
    fn for_attachments(&mut self, wanted: &mut Wanted) -> Result<(), RestoreError> {
        for number in self.tables.with_rows() {
            let table = self.tables.get(number);
            let is_body = |kind: &ContentKind| matches!(kind, ContentKind::Base64Body);
            if !table.target().content.iter().any(|column| is_body(&column.kind)) {
                continue;
            }
            let (rules, name) = (Arc::clone(table.rules()), table.name.clone());
            let Some(mut drafts) = self.tables.get_mut(number).drafts.take() else { continue };
            drafts.scan_json(|draft: Draft| {
                let node = Node { table: number, row: draft.row };
                let made = matches!(draft.kind, Kind::Create | Kind::Undelete);
                if !made || presence(&self.tables, &self.outside, node) != Presence::Planned {
                    return Ok(());
                }
                let own = |member: &str| rules.parents.iter().any(|relation| relation.member == member);
                for lookup in draft.lookups.iter().filter(|lookup| own(&lookup.member)) {
                    let set = format!("{{{}}}", lookup.set);
                    let rule = rules.column(&lookup.member);
                    let above = with_row(set.as_bytes(), &name, |row| Ok(reference(row, &lookup.member, rule)))?;
                    let Some((table, id)) = above.and_then(|above| Some((above.table?, above.id))) else { continue };
                    let planned = self.tables.find(&table, id);
                    let number = planned.map(|node| node.table).or_else(|| self.tables.number(&table));
                    let Some(number) = number.filter(|number| self.has_closed(*number)) else { continue };
                    if !self.tables.get(number).rules().is_activity {
                        continue;
                    }
                    match planned {
                        Some(above) => match self.tables.get(above.table).state(above.row) {
                            State::Same | State::Differs(_) => drop(wanted.rows.insert(above)),
                            State::Binned => {
                                self.openings.above.insert(above);
                                self.openings.attachments.insert(node);
                            }
                            State::Absent | State::Unmade => {}
                        },
                        None => drop(wanted.outside.entry(number).or_default().insert(id)),
                    }
                }
                Ok(())
            })?;
            self.tables.get_mut(number).drafts = Some(drafts);
        }
        Ok(())
    }

    fn open_planned(&mut self, number: u16, rows: &[u32]) -> Result<(), RestoreError> {
        let table = self.tables.get_mut(number);
        let Some(rules) = table.rules.clone().filter(|rules| rules.state.is_some()) else { return Ok(()) };
        let (schema, ids, name) = (Arc::clone(table.target()), Arc::clone(&table.ids), table.name.clone());
        let mut found: HashMap<u32, Opening> = HashMap::new();
        let mut same = Vec::new();
        let mut record = Vec::new();
        for row in rows {
            match table.state(*row) {
                State::Same => same.push(*row),
                State::Differs(offset) => {
                    let Some(live) = table.live.as_mut() else { continue };
                    live.read(offset, &mut record)?;
                    let opening = with_row(&record, &name, |live| Ok(opening(&schema, &rules, live)))?;
                    found.extend(opening.map(|opening| (*row, opening)));
                }
                State::Absent | State::Binned | State::Unmade => {}
            }
        }
        // A row that is as it was captured is read from the snapshot.
        let wanted: Vec<RowId> = same.iter().map(|row| ids[*row as usize]).collect();
        self.captured.each(usize::from(number), &wanted, |at, row| {
            found.extend(opening(&schema, &rules, row).map(|opening| (same[at], opening)));
            Ok(())
        })?;
        let rows = found.into_iter().map(|(row, opening)| (Node { table: number, row }, opening));
        self.openings.rows.extend(rows);
        Ok(())
    }

    fn open_outside(&mut self, number: u16, ids: &[RowId]) -> Result<(), RestoreError> {
        let table = self.tables.get(number);
        let (Some(schema), Some(rules)) = (table.target.clone(), table.rules.clone()) else { return Ok(()) };
        let own = Arc::clone(&schema);
        let make = move |row: &Row<'_>| Ok(opening(&own, &rules, row));
        let read = existing_rows(self.target.as_ref(), &schema, ids, make, &self.call);
        match self.captured.handle.block_on(read) {
            Ok(mut found) => {
                found.sort_by(|a, b| a.key.cmp(&b.key));
                found.dedup_by(|a, b| a.key == b.key);
                self.openings.outside.extend(found.into_iter().map(|opening| (number, opening)));
                Ok(())
            }
            // Whether they are closed cannot be seen; the service will say so when something is written below them.
            Err(RestoreError::Environment(SourceError::Refused { .. })) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
