//! `--mirror`: rows and links that the environment has and the snapshot does not are deleted, children first.
//!
//! A deletion is planned only when nothing else goes with it: every table that refers to a table with candidates is read, and
//! a candidate stays when a row that is kept points to it, whether the service would delete that row too (a cascade),
//! empty its lookup, or refuse. A lookup that the plan itself points elsewhere before does not count. What a candidate
//! that stays points to stays as well.
//!
//! (`dataverse` protocol, section 6.14.)

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use dynavault_model::{Birth, Guard, Relationship, Row, RowId, TableRules, TableSchema, Treatment, WriteKind};

use crate::compare::{NULL, reference, text};
use crate::draft::Draft;
use crate::emit::{Ops, op, raw};
use crate::error::RestoreError;
use crate::live::gather;
use crate::parties;
use crate::plan::{Action, Gone, Op, Step};
use crate::resolve::{Presence, presence};
use crate::settle::key_of;
use crate::spill::Spill;
use crate::tables::with_row;
use crate::waves::{Edges, Node, Waves};
use crate::work::Work;

/// Rows that may be deleted: by table and id, with the place of the live row.
#[derive(Debug, Default)]
struct Candidates {
    /// Sorted.
    rows: Vec<(u16, RowId, u64)>,
    /// Rows that the snapshot does not have either and that go with another: addresses, halves of connections; with the places
    /// of the live rows.
    along: BTreeMap<(u16, RowId), u64>,
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

/// What goes along with candidates: places of rows and of parties, by candidate.
struct Going {
    spill: Spill,
    along: Vec<(u32, u64)>,
    parties: Vec<(u32, u64)>,
}

impl Going {
    /// Puts what goes along with a candidate into its deletion.
    fn add(&mut self, at: u32, delete: &mut Op) -> Result<(), RestoreError> {
        let of = |index: &[(u32, u64)]| {
            let from = index.partition_point(|(candidate, _)| *candidate < at);
            let mine = index[from..].iter().take_while(|(candidate, _)| *candidate == at);
            mine.map(|(_, offset)| *offset).collect::<Vec<u64>>()
        };
        for offset in of(&self.along) {
            delete.along.push(read(&mut self.spill, offset)?);
        }
        for offset in of(&self.parties) {
            delete.from_parties.push(read(&mut self.spill, offset)?);
        }
        Ok(())
    }
}

fn read<T: serde::de::DeserializeOwned>(spill: &mut Spill, offset: u64) -> Result<T, RestoreError> {
    let mut record = Vec::new();
    spill.read(offset, &mut record)?;
    serde_json::from_slice(&record)
        .map_err(|error| RestoreError::Worker(format!("a row changed in the scratch folder: {error}")))
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
        let mut going = self.going_along(&candidates)?;
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
            if let Some(mut delete) = delete {
                going.add(at as u32, &mut delete)?;
                ops.push(*number, &delete)?;
                self.tables.get_mut(*number).plan.counts.delete += 1;
            }
        }
        self.unlink(ops)
    }

    /// What goes along with the candidates and an undo has to put back: addresses and the like, and parties of activities.
    fn going_along(&mut self, candidates: &Arc<Candidates>) -> Result<Going, RestoreError> {
        let mut going = Going { spill: Spill::new(&self.scratch)?, along: Vec::new(), parties: Vec::new() };
        let mut record = Vec::new();
        for ((number, _), offset) in &candidates.along {
            let table = self.tables.get_mut(*number);
            let (name, rules) = (table.name.clone(), Arc::clone(table.rules()));
            let Some(live) = table.live.as_mut() else { continue };
            live.read(*offset, &mut record)?;
            with_row(&record, &name, |row| {
                for relation in &rules.parents {
                    let Some(parent) = reference(row, &relation.member, rules.column(&relation.member)) else {
                        continue;
                    };
                    let is_parent = parent.table.as_ref().is_none_or(|table| *table == relation.parent);
                    let Some(at) = candidates.find(&relation.parent, parent.id).filter(|_| is_parent) else { continue };
                    let gone = Gone { table: name.clone(), row: raw(content(row))? };
                    going.along.push((at, going.spill.push_json(&gone)?));
                    break;
                }
                Ok(())
            })?;
        }
        going.along.sort_unstable();
        self.parties_of(candidates, &mut going)?;
        Ok(going)
    }

    /// The parties of the activities among the candidates.
    fn parties_of(&self, candidates: &Arc<Candidates>, going: &mut Going) -> Result<(), RestoreError> {
        let is_activity = |number: &u16| self.tables.get(*number).rules().is_activity;
        let activities: HashMap<RowId, u32> = candidates
            .rows
            .iter()
            .enumerate()
            .filter(|(_, (number, _, _))| is_activity(number))
            .map(|(at, (_, id, _))| (*id, at as u32))
            .collect();
        let Some((number, parent)) = parties::table_of(&self.tables).filter(|_| !activities.is_empty()) else {
            return Ok(());
        };
        let table = self.tables.get(number);
        let (schema, rules) = (Arc::clone(table.target()), Arc::clone(table.rules()));
        let spill = Arc::new(Mutex::new(std::mem::replace(&mut going.spill, Spill::new(&self.scratch)?)));
        let (kept, own) = (Arc::clone(&spill), Arc::clone(&schema));
        let make = move |row: &Row<'_>| {
            let Some((activity, party)) = parties::live_party(row, &parent, &rules) else { return Ok(None) };
            let (Some(at), Some(id)) = (activities.get(&activity), own.row_id(row)) else { return Ok(None) };
            let mut spill = kept.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(Some((*at, id, spill.push_json(&raw(party)?)?)))
        };
        let mut found = self.captured.handle.block_on(gather(self.source.as_ref(), &schema, make, &self.call))?;
        // A page may be delivered twice.
        found.sort_unstable();
        found.dedup_by_key(|(at, id, _)| (*at, *id));
        going.parties = found.into_iter().map(|(at, _, offset)| (at, offset)).collect();
        let mut spill = spill.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut going.spill, &mut spill);
        Ok(())
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
                // Closing a row left its activity behind; what the snapshot does not have of that goes as well.
                let birth = with_row(&record, &name, |row| Ok(self.target.birth(&rules, row)))?;
                if matches!(birth, Birth::Written | Birth::ByState(_)) {
                    found.rows.push((number, id, offset));
                } else {
                    found.along.insert((number, id), offset);
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
                    self.tables.number(name).is_some_and(|table| candidates.along.contains_key(&(table, pointer.from)));
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

    /// Links that the snapshot does not have; also those of rows that are deleted, so that the plan holds them.
    fn unlink(&mut self, ops: &mut Ops) -> Result<(), RestoreError> {
        let mut all = std::mem::take(&mut self.links);
        for (number, links) in &mut all {
            let Some(mut others) = links.others.take() else { continue };
            let number = *number;
            let table = self.tables.get(number);
            let (name, schema) = (table.name.clone(), Arc::clone(table.target()));
            let mut removed: HashSet<String> = HashSet::new();
            others.scan(|record| {
                with_row(record, &name, |row| {
                    let Some(key) = key_of(&schema.key, row) else { return Ok(()) };
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
