//! `--mirror`: rows and links that the environment has and the snapshot does not are deleted, children first.
//!
//! A deletion is planned only when nothing else goes with it: every table that refers to a table with candidates is read, and
//! a candidate stays when a row that is kept points to it, whether the service would delete that row too (a cascade),
//! empty its lookup, or refuse. A lookup that the plan itself points elsewhere before does not count. What a candidate
//! that stays points to stays as well.
//!
//! (`dataverse` protocol, section 6.14.)

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use dynavault_model::{Birth, Guard, Relationship, Row, RowId, TableRules, TableSchema, Treatment, WriteKind};

use crate::compare::{NULL, reference, text};
use crate::draft::Draft;
use crate::emit::{Ops, op, raw};
use crate::error::RestoreError;
use crate::live::gather;
use crate::plan::{Action, Step};
use crate::resolve::{Presence, presence};
use crate::settle::key_of;
use crate::tables::{Role, with_row};
use crate::waves::{Edges, Node, Waves};
use crate::work::Work;

/// Rows that may be deleted: by table and id, with the place of the live row.
#[derive(Debug, Default)]
struct Candidates {
    /// Sorted.
    rows: Vec<(u16, RowId, u64)>,
    /// Rows that the snapshot does not have either and that go with another: addresses, halves of connections.
    along: HashSet<(u16, RowId)>,
    by_name: HashMap<String, u16>,
}

impl Candidates {
    fn find(&self, table: &str, id: RowId) -> Option<u32> {
        let table = *self.by_name.get(table)?;
        self.rows.binary_search_by_key(&(table, id), |(table, id, _)| (*table, *id)).ok().map(|at| at as u32)
    }

    fn node(&self, at: u32) -> Node {
        Node { table: self.rows[at as usize].0, row: at }
    }
}

/// A live row that points to a candidate.
struct Pointer {
    from: RowId,
    member: usize,
    to: u32,
}

impl Work {
    /// Adds the deletions of a mirror to the operations; before other operations are made, since it looks at their drafts.
    pub(crate) fn delete_others(&mut self, ops: &mut Ops) -> Result<(), RestoreError> {
        let candidates = Arc::new(self.candidates()?);
        let (refused, edges) = self.refusals(&candidates)?;
        let waves = Waves::new([], &edges);
        // The waves of a plan put what is pointed to first; deletions go the other way.
        let last = waves.last();
        let mut record = Vec::new();
        for (at, (number, _, offset)) in candidates.rows.iter().enumerate() {
            if refused.contains(&(at as u32)) {
                continue;
            }
            let node = candidates.node(at as u32);
            let table = self.tables.get_mut(*number);
            let (name, schema, rules) = (table.name.clone(), Arc::clone(table.target()), Arc::clone(table.rules()));
            let Some(live) = table.live.as_mut() else { continue };
            live.read(*offset, &mut record)?;
            // Links go before rows, so rows begin with the wave after theirs.
            let wave = 1 + last - waves.row(node).min(last);
            let delete = with_row(&record, &name, |row| {
                let Some(key) = key_of(&schema.key, row) else { return Ok(None) };
                let etag = row.get("@odata.etag").and_then(text).filter(|_| rules.guards_versions);
                let guard = etag.map_or(Guard::Present, Guard::Unchanged);
                let mut delete = op(&name, &key, Step::Deletes, wave, Action::Write(WriteKind::Delete), guard);
                delete.from = Some(raw(content(row))?);
                Ok(Some(delete))
            })?;
            if let Some(delete) = delete {
                ops.push(*number, &delete)?;
                self.tables.get_mut(*number).plan.counts.delete += 1;
            }
        }
        self.unlink(&candidates, &refused, ops)
    }

    /// Live rows of mirrored tables that the snapshot does not have and that can be deleted as rows.
    fn candidates(&mut self) -> Result<Candidates, RestoreError> {
        let mut found = Candidates::default();
        for number in 0..self.tables.len() {
            let table = self.tables.get_mut(number);
            if !table.is_rows() || !table.whole || table.others.is_empty() {
                continue;
            }
            let rules = Arc::clone(table.rules());
            let name = table.name.clone();
            let mut record = Vec::new();
            let others = std::mem::take(&mut table.others);
            let Some(live) = table.live.as_mut() else { continue };
            let mut kept = 0;
            for (id, offset) in others {
                live.read(offset, &mut record)?;
                let written = with_row(&record, &name, |row| Ok(self.target.birth(&rules, row) == Birth::Written))?;
                if written {
                    found.rows.push((number, id, offset));
                } else {
                    found.along.insert((number, id));
                    kept += 1;
                }
            }
            if kept > 0 {
                let message = "rows that come and go with others are not deleted on their own";
                self.findings.table("not-deleted", &name, kept, message);
            }
            found.by_name.insert(name, number);
        }
        found.rows.sort_unstable();
        Ok(found)
    }

    /// Candidates that must stay, and which candidate points to which.
    fn refusals(&mut self, candidates: &Arc<Candidates>) -> Result<(HashSet<u32>, Edges), RestoreError> {
        let (mut refused, mut edges) = (HashSet::new(), Edges::default());
        let mut pointed: HashMap<u32, Vec<u32>> = HashMap::new();
        if candidates.rows.is_empty() {
            return Ok((refused, edges));
        }
        let replaced = self.replaced_lookups(candidates)?;
        for (schema, rules) in self.referring(candidates) {
            self.stopped()?;
            let name = &schema.table.name;
            let relations: Vec<Relationship> = rules
                .parents
                .iter()
                .filter(|relation| candidates.by_name.contains_key(&relation.parent))
                .cloned()
                .collect();
            let pointers = self.pointers(&schema, &rules, relations.clone(), candidates)?;
            for pointer in pointers {
                let relation = &relations[pointer.member];
                if let Some(from) = candidates.find(name, pointer.from) {
                    if from != pointer.to {
                        edges.add(candidates.node(from), candidates.node(pointer.to), true);
                        pointed.entry(from).or_default().push(pointer.to);
                    }
                    continue;
                }
                let along =
                    self.tables.number(name).is_some_and(|table| candidates.along.contains(&(table, pointer.from)));
                if along || replaced.contains(&(name.clone(), pointer.from, relation.member.clone())) {
                    continue;
                }
                let (code, what) = if relation.deletes {
                    ("cascade-outside", "which the service would delete along with it")
                } else {
                    ("still-referenced", "which is kept")
                };
                if refused.insert(pointer.to) {
                    let sentence = format!("the row is not deleted: {name} {} points to it, {what}", pointer.from);
                    self.stays(candidates, pointer.to, code, sentence);
                }
            }
        }
        let mut open: Vec<u32> = refused.iter().copied().collect();
        while let Some(from) = open.pop() {
            for to in pointed.get(&from).into_iter().flatten() {
                if refused.insert(*to) {
                    let sentence = "the row is not deleted: a row that stays points to it".to_string();
                    self.stays(candidates, *to, "still-referenced", sentence);
                    open.push(*to);
                }
            }
        }
        Ok((refused, edges))
    }

    fn stays(&mut self, candidates: &Candidates, at: u32, code: &'static str, sentence: String) {
        let (number, id, _) = candidates.rows[at as usize];
        let name = self.tables.get(number).name.clone();
        self.findings.row(code, &name, &id.to_string(), "", sentence);
    }

    /// Tables of the environment that refer to a table with candidates, whether or not the snapshot has them.
    fn referring(&self, candidates: &Candidates) -> Vec<(Arc<TableSchema>, Arc<TableRules>)> {
        let mut found = Vec::new();
        for listing in &self.listings {
            let Ok(schema) = &listing.schema else { continue };
            let known = self.tables.number(&listing.table.name).map(|number| self.tables.get(number));
            let rules = match known.and_then(|table| table.rules.clone()) {
                Some(rules) => rules,
                None => Arc::new(self.target.rules(schema)),
            };
            let refers = rules.parents.iter().any(|relation| candidates.by_name.contains_key(&relation.parent));
            if rules.treatment == Treatment::Rows && refers {
                let known = known.and_then(|table| table.target.clone());
                found.push((known.unwrap_or_else(|| Arc::new(schema.clone())), rules));
            }
        }
        found
    }

    fn pointers(
        &self,
        schema: &Arc<TableSchema>,
        rules: &Arc<TableRules>,
        relations: Vec<Relationship>,
        candidates: &Arc<Candidates>,
    ) -> Result<Vec<Pointer>, RestoreError> {
        let (own, rules, candidates) = (Arc::clone(schema), Arc::clone(rules), Arc::clone(candidates));
        let make = move |row: &Row<'_>| {
            let Some(from) = own.row_id(row) else { return Ok(None) };
            let mut found = Vec::new();
            for (member, relation) in relations.iter().enumerate() {
                let Some(reference) = reference(row, &relation.member, rules.column(&relation.member)) else {
                    continue;
                };
                if reference.table.as_ref().is_none_or(|table| *table == relation.parent)
                    && let Some(to) = candidates.find(&relation.parent, reference.id)
                {
                    found.push(Pointer { from, member, to });
                }
            }
            Ok(Some(found).filter(|found| !found.is_empty()))
        };
        let read = gather(self.source.as_ref(), schema, make, &self.call);
        Ok(self.captured.handle.block_on(read)?.into_iter().flatten().collect())
    }

    /// Lookups to candidates that the plan points elsewhere: table, row, member.
    fn replaced_lookups(&mut self, candidates: &Candidates) -> Result<HashSet<(String, RowId, String)>, RestoreError> {
        let mut replaced = HashSet::new();
        for number in self.tables.with_rows() {
            let Some(mut drafts) = self.tables.get_mut(number).drafts.take() else { continue };
            let table = self.tables.get(number);
            let (name, rules, ids) = (&table.name, table.rules.as_deref(), &table.ids);
            drafts.scan_json(|draft: Draft| {
                for lookup in draft.lookups.iter().filter(|lookup| !lookup.from.is_empty()) {
                    // A lookup that leads nowhere is left out, so it stays as it is.
                    let missing = |node| presence(&self.tables, &self.outside, node) == Presence::Missing;
                    if lookup.node.is_some_and(missing) {
                        continue;
                    }
                    let from = format!("{{{}}}", lookup.from);
                    let now = with_row(from.as_bytes(), name, |row| {
                        Ok(reference(row, &lookup.member, rules.and_then(|rules| rules.column(&lookup.member))))
                    })?;
                    if let Some(now) = now
                        && candidates.by_name.keys().any(|table| {
                            now.table.as_ref().is_none_or(|said| said == table)
                                && candidates.find(table, now.id).is_some()
                        })
                    {
                        replaced.insert((name.clone(), ids[draft.row as usize], lookup.member.clone()));
                    }
                }
                Ok(())
            })?;
            self.tables.get_mut(number).drafts = Some(drafts);
        }
        Ok(replaced)
    }

    /// Links that the snapshot does not have. Those of rows that are deleted go with them.
    fn unlink(&mut self, candidates: &Candidates, refused: &HashSet<u32>, ops: &mut Ops) -> Result<(), RestoreError> {
        let mut all = std::mem::take(&mut self.links);
        for (number, links) in &mut all {
            let Some(mut others) = links.others.take() else { continue };
            let number = *number;
            let table = self.tables.get(number);
            let Role::Links { first, second } = table.role.clone() else { continue };
            let (name, schema) = (table.name.clone(), Arc::clone(table.target()));
            let mut removed: HashSet<String> = HashSet::new();
            others.scan(|record| {
                with_row(record, &name, |row| {
                    let goes = [&first, &second].into_iter().any(|end| {
                        let id = row.get(&end.member).and_then(text).and_then(|id| RowId::from_guid(id.as_bytes()));
                        let at = id.and_then(|id| candidates.find(&end.table, id));
                        at.is_some_and(|at| !refused.contains(&at))
                    });
                    let Some(key) = key_of(&schema.key, row).filter(|_| !goes) else { return Ok(()) };
                    if !removed.insert(key.id.clone()) {
                        return Ok(());
                    }
                    let action = Action::Write(WriteKind::Delete);
                    let mut delete = op(&name, &key, Step::Deletes, 0, action, Guard::Present);
                    delete.set = Some(raw(content(row))?);
                    delete.from = Some(raw(content(row))?);
                    ops.push(number, &delete)
                })
            })?;
            self.tables.get_mut(number).plan.counts.unlink += removed.len() as u64;
        }
        self.links = all;
        Ok(())
    }
}

/// A row without its entity tag and its empty values.
fn content(row: &Row<'_>) -> String {
    let mut text = String::new();
    for member in row.members() {
        let name = String::from_utf8_lossy(row.key(member));
        if name != "@odata.etag" && row.value(member) != NULL {
            crate::draft::push_member(&mut text, &name, row.value(member));
        }
    }
    format!("{{{text}}}")
}
