//! Owners that the service changes along with others: assigning a row assigns the rows below it, where their relationship says so
//! (`dataverse` protocol, section 6.7).
//!
//! ```text
//!  rows that get another owner ─▶ rows below them, level by level ─▶ each is given its own owner, parents first
//! ```
//!
//! Rows below are those of the plan, made by it or there, and those that are there without being part of it: what was not selected
//! does not change hands either.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use dynavault_model::{Relationship, Row, RowId, RowKey, Treatment};

use crate::below::{self, Known, Place, below};
use crate::compare::{NULL, reference, value};
use crate::draft::{Draft, Kind, live_lookup_text};
use crate::error::RestoreError;
use crate::live::State;
use crate::openings::Opening;
use crate::plan::ConflictPolicy;
use crate::resolve::{Presence, presence};
use crate::settle::key_of;
use crate::tables::with_row;
use crate::waves::{Edges, Node, Waves};
use crate::work::Work;

/// A row below one that gets another owner.
#[derive(Debug, Clone)]
pub(crate) struct Heir {
    /// Number of its table in the snapshot.
    pub(crate) table: u16,
    pub(crate) key: RowKey,
    /// Its owner, as it is written, without braces.
    pub(crate) owner: String,
    /// It is there already.
    pub(crate) is_live: bool,
}

/// The rows below those that get another owner.
#[derive(Debug, Default)]
pub(crate) struct Heirs {
    rows: BTreeMap<Node, Heir>,
    /// Lookups among the rows whose owners are written: (from, to).
    edges: Vec<(Node, Node)>,
}

impl Heirs {
    pub(crate) fn take(&mut self) -> BTreeMap<Node, Heir> {
        std::mem::take(&mut self.rows)
    }

    /// Whether the service may assign a row along with another that the plan assigns before it.
    pub(crate) fn is_below(&self, node: Node) -> bool {
        let at = self.edges.partition_point(|(from, _)| *from < node);
        self.edges.get(at).is_some_and(|(from, _)| *from == node)
    }

    /// Those of the plan that are there.
    pub(crate) fn live(&self) -> impl Iterator<Item = Node> + '_ {
        self.rows.iter().filter(|(node, heir)| heir.is_live && heir.table == node.table).map(|(node, _)| *node)
    }
}

impl Work {
    /// Finds the rows whose owners the service changes along with others; once it is known which rows are made.
    pub(crate) fn find_heirs(&mut self) -> Result<(), RestoreError> {
        let assigned = self.assigned()?;
        if assigned.is_empty() {
            return Ok(());
        }
        let edges = self.edges_below(&assigned)?;
        let mut below: HashMap<Node, Vec<Node>> = HashMap::new();
        for (from, to) in &edges {
            below.entry(*to).or_default().push(*from);
        }
        let mut reached = assigned.clone();
        let mut open: Vec<Node> = assigned.iter().copied().collect();
        while let Some(node) = open.pop() {
            for child in below.get(&node).into_iter().flatten() {
                if reached.insert(*child) {
                    open.push(*child);
                }
            }
        }
        self.heirs.edges = edges;
        self.find_heirs_outside(&assigned, &mut reached)?;
        self.heirs.edges.retain(|(from, to)| from != to && reached.contains(from) && reached.contains(to));
        self.heirs.edges.sort_unstable();
        self.heirs.edges.dedup();
        let mut by_table: BTreeMap<u16, Vec<u32>> = BTreeMap::new();
        for node in reached.difference(&assigned).filter(|node| node.table < self.tables.len()) {
            by_table.entry(node.table).or_default().push(node.row);
        }
        for (number, mut rows) in by_table {
            rows.sort_unstable();
            self.heirs_of(number, &rows)?;
        }
        Ok(())
    }

    /// Finds the rows below that are no part of the plan; adds them, and rows of the plan that are only below those, to `reached`.
    fn find_heirs_outside(
        &mut self,
        assigned: &HashSet<Node>,
        reached: &mut HashSet<Node>,
    ) -> Result<(), RestoreError> {
        let mut known: Vec<Known> = Vec::new();
        for listing in &self.listings {
            let Ok(schema) = &listing.schema else { continue };
            let rules = self.target.rules(schema);
            if rules.treatment == Treatment::Rows && rules.owner.is_some() {
                known.push(Known { schema: Arc::new(schema.clone()), rules: Arc::new(rules) });
            }
        }
        let places: HashMap<&str, u16> =
            known.iter().enumerate().map(|(place, one)| (one.schema.table.name.as_str(), place as u16)).collect();
        let tables = &self.tables;
        let place = |node: &Node| -> Option<Place> {
            let table = tables.get(node.table);
            Some((*places.get(table.name.as_str())?, *table.ids.get(node.row as usize)?))
        };
        let from: HashSet<Place> = assigned.iter().filter_map(place).collect();
        let lookups: Vec<(Place, Place)> =
            self.heirs.edges.iter().filter_map(|(row, above)| Some((place(row)?, place(above)?))).collect();
        let read = below(self.source.as_ref(), &known, &from, &lookups, &self.scratch, &self.call);
        let mut found = self.captured.handle.block_on(read)?;
        for table in &found.unreadable {
            let message =
                "rows of the table are not looked at: the service gives those below an assigned row to its owner";
            self.findings.table("unchecked-owner", table, 0, message);
        }
        let mut nodes: HashMap<Place, Node> = HashMap::new();
        let mut all: Vec<Place> = found.places().chain(from).collect();
        all.sort_unstable();
        for at in all {
            let name = &known[usize::from(at.0)].schema.table.name;
            let node = match self.tables.find(name, at.1) {
                Some(node) => node,
                None => self.outside.node(name, at.1),
            };
            nodes.insert(at, node);
            reached.insert(node);
            if node.table < self.tables.len() {
                continue;
            }
            let Some(below::Heir { key, owner, state }) = found.heir(at)? else { continue };
            let Some(table) = self.tables.number(name) else {
                let message = "rows of a table that the snapshot does not have go to the owner of the row above them";
                self.findings.table("unchecked-owner", name, 1, message);
                continue;
            };
            if let Some((open, close)) = state {
                self.openings.open(table, Opening { key: key.clone(), etag: None, modified: None, open, close });
            }
            self.heirs.rows.insert(node, Heir { table, key, owner, is_live: true });
        }
        let edges = found.edges.iter().filter_map(|(row, above)| Some((*nodes.get(row)?, *nodes.get(above)?)));
        self.heirs.edges.extend(edges);
        Ok(())
    }

    /// Waves in which owners are written: parents before the rows that are assigned along with them.
    pub(crate) fn owner_waves(&self) -> Waves {
        let mut edges = Edges::default();
        for (from, to) in &self.heirs.edges {
            edges.add(*from, *to, true);
        }
        Waves::new(self.tables.with_rows(), &edges)
    }

    /// Rows that are there and get another owner.
    fn assigned(&mut self) -> Result<HashSet<Node>, RestoreError> {
        let mut found = HashSet::new();
        for number in self.tables.with_rows() {
            if self.tables.get(number).rules().owner.is_none() {
                continue;
            }
            let Some(mut drafts) = self.tables.get_mut(number).drafts.take() else { continue };
            drafts.scan_json(|draft: Draft| {
                let gone = |node| presence(&self.tables, &self.outside, node) == Presence::Missing;
                if draft.owner.is_some_and(|owner| !owner.node.is_some_and(gone)) {
                    found.insert(Node { table: number, row: draft.row });
                }
                Ok(())
            })?;
            self.tables.get_mut(number).drafts = Some(drafts);
        }
        Ok(found)
    }

    /// Lookups by which rows of the plan are assigned along with others, of tables below those of `assigned`: (from, to).
    fn edges_below(&mut self, assigned: &HashSet<Node>) -> Result<Vec<(Node, Node)>, RestoreError> {
        let numbers = self.tables.with_rows();
        let mut tables: HashSet<u16> = assigned.iter().map(|node| node.table).collect();
        let follows = |work: &Self, number: u16, tables: &HashSet<u16>| {
            let parents = &work.tables.get(number).rules().parents;
            let reaches = |parent: &str| work.tables.number(parent).is_some_and(|parent| tables.contains(&parent));
            parents.iter().any(|relation| relation.assigns && reaches(&relation.parent))
        };
        loop {
            let before = tables.len();
            tables.extend(numbers.iter().filter(|number| follows(self, **number, &tables)).collect::<Vec<_>>());
            if tables.len() == before {
                break;
            }
        }
        let mut edges = Vec::new();
        let scanned: Vec<u16> = numbers.into_iter().filter(|number| follows(self, *number, &tables)).collect();
        for number in scanned {
            self.stopped()?;
            let table = self.tables.get_mut(number);
            let (rules, ids, name) = (Arc::clone(table.rules()), Arc::clone(&table.ids), table.name.clone());
            let mut live = table.live.take();
            let tables = &self.tables;
            let mut record = Vec::new();
            let above = |row: &Row<'_>, relation: &Relationship| {
                let above = reference(row, &relation.member, rules.column(&relation.member))?;
                let is_parent = above.table.as_ref().is_none_or(|table| *table == relation.parent);
                tables.find(&relation.parent, above.id).filter(|_| is_parent)
            };
            let overwrites = self.conflict == ConflictPolicy::Overwrite;
            let outside = &self.outside;
            self.captured.each(usize::from(number), &ids, |at, captured| {
                let node = Node { table: number, row: at as u32 };
                let state = tables.get(number).state(node.row);
                if state == State::Unmade {
                    return Ok(());
                }
                let relations = || rules.parents.iter().filter(|relation| relation.assigns);
                edges.extend(relations().filter_map(|relation| Some((node, above(captured, relation)?))));
                // What a lookup is now matters as well, where it may be left alone.
                if let (State::Differs(offset), Some(live)) = (state, live.as_mut()) {
                    live.read(offset, &mut record)?;
                    with_row(&record, &name, |live| {
                        let missing = |to: Node| presence(tables, outside, to) == Presence::Missing;
                        let stays =
                            |relation: &Relationship| !overwrites || above(captured, relation).is_some_and(missing);
                        let kept = relations().filter(|relation| stays(relation));
                        edges.extend(kept.filter_map(|relation| Some((node, above(live, relation)?))));
                        Ok(())
                    })?;
                }
                Ok(())
            })?;
            self.tables.get_mut(number).live = live;
        }
        edges.sort_unstable();
        edges.dedup();
        Ok(edges)
    }

    /// Notes the owners that rows of a table are to have.
    fn heirs_of(&mut self, number: u16, rows: &[u32]) -> Result<(), RestoreError> {
        let table = self.tables.get_mut(number);
        let rules = Arc::clone(table.rules());
        let Some(rule) = rules.owner.as_deref().and_then(|owner| rules.column(owner)).filter(|rule| rule.update) else {
            return Ok(());
        };
        let (schema, ids, name) = (Arc::clone(table.target()), Arc::clone(&table.ids), table.name.clone());
        let mut found = Vec::new();
        let mut same = Vec::new();
        let mut record = Vec::new();
        let stands = |row: &Row<'_>| {
            let key = key_of(&schema.key, row).filter(|_| value(row, &rule.member) != NULL)?;
            Some(Heir { table: number, key, owner: live_lookup_text(row, rule), is_live: true })
        };
        for row in rows {
            match table.state(*row) {
                State::Same => same.push(*row),
                State::Differs(offset) => {
                    let Some(live) = table.live.as_mut() else { continue };
                    live.read(offset, &mut record)?;
                    found.extend(with_row(&record, &name, |live| Ok(stands(live)))?.map(|heir| (*row, heir)));
                }
                State::Absent | State::Binned | State::Unmade => {}
            }
        }
        // A row that is as it was captured is read from the snapshot.
        let wanted: Vec<RowId> = same.iter().map(|row| ids[*row as usize]).collect();
        self.captured.each(usize::from(number), &wanted, |at, row| {
            found.extend(stands(row).map(|heir| (same[at], heir)));
            Ok(())
        })?;
        if let Some(mut drafts) = self.tables.get_mut(number).drafts.take() {
            drafts.scan_json(|draft: Draft| {
                let there = |node| presence(&self.tables, &self.outside, node);
                let made = matches!(draft.kind, Kind::Create | Kind::Undelete)
                    && rows.binary_search(&draft.row).is_ok()
                    && there(Node { table: number, row: draft.row }) == Presence::Planned;
                let owner = draft.lookups.iter().find(|lookup| lookup.member == rule.member);
                let owner = owner.filter(|owner| owner.node.is_none_or(|node| there(node) != Presence::Missing));
                if let (true, Some(owner)) = (made, owner) {
                    let heir = Heir { table: number, key: draft.key, owner: owner.set.clone(), is_live: false };
                    found.push((draft.row, heir));
                }
                Ok(())
            })?;
            self.tables.get_mut(number).drafts = Some(drafts);
        }
        self.heirs.rows.extend(found.into_iter().map(|(row, heir)| (Node { table: number, row }, heir)));
        Ok(())
    }
}
