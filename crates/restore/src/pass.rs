//! The pass over the captured rows of the plan: each is compared with its live row and, where something has to be written,
//! leaves a draft. After it, all that decides about order and feasibility is known: which rows will be made, and which rows
//! they name.

use std::sync::Arc;

use dynavault_model::{Ability, Birth, Row, TableRules};

use crate::closes::is_by_message;
use crate::compare::{Winner, integer, reference, value, winner};
use crate::content::item;
use crate::doubts::{Contested, LivePiece};
use crate::draft::{Draft, Drafting, Kind, Need};
use crate::error::RestoreError;
use crate::links;
use crate::live::{Packed, State};
use crate::parties;
use crate::pieces::{self, Wish};
use crate::plan::ConflictPolicy;
use crate::resolve::{Presence, Resolver};
use crate::spill::Spill;
use crate::tables::{ColumnIndex, Role, with_row};
use crate::waves::Node;
use crate::work::Work;

/// Link tables of up to so many rows are read whole, which finds links whatever their ids are: ten requests at most.
const LINKS_READ_WHOLE: u64 = 50_000;

/// What happened to the rows of a table.
#[derive(Default)]
struct Passed {
    unmade: Vec<Node>,
    needs: Vec<(Node, Need)>,
    closing: Vec<Node>,
    above: Vec<(Node, Node)>,
    states_below: Vec<(Node, i64)>,
    unchanged: u64,
    conflicts: u64,
    impossible: u64,
}

impl Work {
    /// Drafts the rows of a table.
    pub(crate) fn draft_table(&mut self, number: u16) -> Result<(), RestoreError> {
        self.stopped()?;
        let mut drafts = Spill::new(&self.scratch)?;
        let table = self.tables.get_mut(number);
        let (rules, target) = (Arc::clone(table.rules()), Arc::clone(table.target()));
        let source = table.source.take().expect("schemas of planned tables are read first");
        let mut live = table.live.take();
        let mut not_written = std::mem::take(&mut table.not_written);
        let name = table.name.clone();
        let ids = Arc::clone(&table.ids);
        let mut passed = Passed::default();
        let mut record = Vec::new();
        let content: Vec<(usize, Option<u16>)> = source
            .content
            .iter()
            .enumerate()
            .map(|(at, column)| {
                let there = target.content.iter().position(|other| other.column == column.column);
                (at, there.map(|place| place as u16))
            })
            .collect();
        let mut drafting = Drafting {
            name: &name,
            rules: &rules,
            columns: ColumnIndex::new(&rules),
            source: &source,
            allowed: &self.columns,
            resolver: Resolver { tables: &self.tables, mapping: &mut self.mapping, outside: &mut self.outside },
            findings: &mut self.findings,
            not_written: &mut not_written,
            // What the service does not tell is tried; a target takes it back where it is refused.
            keeps_created_on: !matches!(self.abilities.created_on, Ability::Missing(_)),
            creators: self.creators.as_ref(),
        };
        let (conflicts, pieces, activities) = (&mut self.conflicts, &mut self.pieces, &mut self.changed_activities);
        self.captured.each(usize::from(number), &ids, |at, row| {
            let node = Node { table: number, row: at as u32 };
            if let Some(parent) = above(&drafting.resolver, &rules, row) {
                passed.above.push((node, parent));
                passed.states_below.extend(captured_state(&rules, row).map(|state| (node, state)));
            }
            let state = drafting.resolver.tables.get(number).state(node.row);
            let offset = match state {
                State::Same => {
                    passed.unchanged += 1;
                    return Ok(());
                }
                State::Unmade => return Ok(()),
                State::Differs(offset) => offset,
                State::Absent | State::Binned => {
                    let birth = self.target.birth(&rules, row);
                    // What comes into being by another way is not lost.
                    let elsewhere = matches!(birth, Birth::Mirrored(_));
                    let made = make(&mut drafting, node, row, birth, state == State::Binned);
                    let Some((draft, needs)) = made else {
                        passed.unmade.push(node);
                        passed.impossible += u64::from(!elsewhere);
                        return Ok(());
                    };
                    passed.needs.extend(needs.into_iter().map(|need| (node, need)));
                    if is_by_message(rules.state.as_ref(), &draft) {
                        passed.closing.push(node);
                    }
                    for (at, place) in &content {
                        let column = &source.content[*at];
                        if pieces::of_created(row, column) == Wish::Upload {
                            match place {
                                Some(place) => pieces.want(node, *place, None)?,
                                None => drafting.findings.row(
                                    "missing-column",
                                    &name,
                                    &draft.key.id,
                                    &column.column,
                                    "the environment does not have the column",
                                ),
                            }
                        }
                    }
                    return drafts.push_json(&draft).map(|_| ());
                }
            };
            let Some(live) = live.as_mut() else { return Ok(()) };
            live.read(offset, &mut record)?;
            with_row(&record, &name, |live| {
                let winner = winner(self.conflict, row, live);
                let mut left = Vec::new();
                let id = ids[at].to_string();
                let changed = drafting.changed(node.row, row, live, winner, |conflict| {
                    left.push((conflict.member.to_string(), conflict.captured.to_vec(), conflict.live.to_vec()));
                });
                let (mut touched, mut in_doubt) = (changed.is_some(), false);
                for (at, place) in &content {
                    let column = &source.content[*at];
                    let Some(place) = place.filter(|_| self.columns.allow(&column.column, &column.column)) else {
                        continue;
                    };
                    let version = &column.version_member;
                    let sides = || (value(row, version).to_vec(), value(live, version).to_vec());
                    // Nothing is written under `skip`, so nothing has to be known of the bytes.
                    let doubtful = self.conflict != ConflictPolicy::Skip && pieces::may_be_same(row, live, column);
                    let there = &target.content[usize::from(place)];
                    let item = if doubtful { item(&target, there, live) } else { None };
                    match (pieces::of_existing(row, live, column, winner), item) {
                        (Wish::Nothing, _) => {}
                        (wish @ (Wish::Upload | Wish::Conflict), Some(item)) => {
                            in_doubt = true;
                            let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
                            let (captured, now) = sides();
                            let contested = Contested { captured: text(&captured), live: text(&now) };
                            let contested = (wish == Wish::Conflict).then_some(contested);
                            pieces.want(node, place, Some(&LivePiece { item, contested }))?;
                        }
                        (Wish::Upload, None) => {
                            touched = true;
                            pieces.want(node, place, None)?;
                        }
                        (Wish::Remove, _) => {
                            touched = true;
                            if let Some(key) = crate::settle::key_of(&source.key, row) {
                                pieces.remove(node, &key, &column.column)?;
                            }
                        }
                        (Wish::Conflict, None) => {
                            let (captured, now) = sides();
                            left.push((column.column.clone(), captured, now));
                        }
                    }
                }
                if rules.is_activity {
                    activities.insert(node, winner);
                }
                match !touched && left.is_empty() {
                    true if in_doubt => pieces.is_alone(node),
                    nothing => passed.unchanged += u64::from(nothing),
                }
                passed.conflicts += left.len() as u64;
                for (member, captured, live) in left {
                    conflicts.add(&name, &id, &member, &captured, &live)?;
                }
                if let Some((draft, needs)) = changed {
                    passed.needs.extend(needs.into_iter().map(|(to, _, _)| (node, (to, false, false))));
                    if winner == Winner::Snapshot && is_by_message(rules.state.as_ref(), &draft) {
                        passed.closing.push(node);
                    }
                    drafts.push_json(&draft)?;
                }
                Ok(())
            })
        })?;
        self.above.extend(passed.above.drain(..));
        self.states_below.extend(passed.states_below.drain(..));
        self.closing.extend(passed.closing.drain(..).map(|node| (node, None)));
        let table = self.tables.get_mut(number);
        for node in &passed.unmade {
            table.states[node.row as usize] = Packed::UNMADE;
        }
        table.source = Some(source);
        table.live = live;
        table.not_written = not_written;
        table.drafts = Some(drafts);
        table.plan.counts.unchanged += passed.unchanged;
        table.plan.counts.conflicts += passed.conflicts;
        table.plan.counts.impossible += passed.impossible;
        let made = table.states.iter().filter(|state| !state.is_live() && **state != Packed::UNMADE).count() as u64;
        if made > 0 && rules.created_on.is_some() && self.abilities.created_on != Ability::Granted {
            let privilege = match &self.abilities.created_on {
                Ability::Missing(privilege) => format!("the user lacks {privilege}"),
                _ => "the service does not tell whether the user may set it".to_string(),
            };
            let will = if matches!(self.abilities.created_on, Ability::Unknown) { "may" } else { "will" };
            let sentence =
                format!("the rows {will} say that they were created when they are restored (createdon): {privilege}");
            self.findings.table("server-set", &name, made, sentence);
        }
        let closes = self.close_tables();
        for (from, (to, required, hard)) in passed.needs {
            if closes.contains(&to.table) {
                self.named_closes.insert(to);
            }
            let created = !self.tables.get(from.table).states[from.row as usize].is_live();
            if created && to.table < self.tables.len() {
                self.edges.add(from, to, hard);
            }
            if created && required {
                self.required.push((from, to));
            }
        }
        Ok(())
    }

    /// Drafts the links of the plan and looks which exist.
    pub(crate) fn draft_links(&mut self) -> Result<(), RestoreError> {
        for number in 0..self.tables.len() {
            let Role::Links { first, second } = self.tables.get(number).role.clone() else { continue };
            if self.tables.get(number).ids.is_empty() && !(self.mirror && self.tables.get(number).whole) {
                continue;
            }
            self.stopped()?;
            let mut resolver =
                Resolver { tables: &self.tables, mapping: &mut self.mapping, outside: &mut self.outside };
            let table = self.tables.get(number);
            let ends = (&first, &second);
            let findings = &mut self.findings;
            let mut links = links::drafts(&self.captured, number, table, ends, &mut resolver, findings, &self.scratch)?;
            let others = self.mirror && table.whole;
            let (ids, rows) = (table.ids.len() as u64, self.captured.table(usize::from(number)).live_rows);
            let handle = self.captured.handle.clone();
            let (source, target) = (Arc::clone(&self.source), Arc::clone(&self.target));
            let by_key = rows > LINKS_READ_WHOLE && crate::live::by_key_is_cheaper(table.target(), ids, rows);
            if !others && self.mapping.identity && by_key {
                let read = crate::live::existing(target.as_ref(), table.target(), &table.ids, &self.call);
                let live = handle.block_on(read)?;
                links::compared_by_id(&mut links, &live)?;
            } else {
                let ends = (first, second);
                let read = links::compare(source.as_ref(), table, ends, &mut links, others, &self.scratch, &self.call);
                handle.block_on(read)?;
            }
            self.links.push((number, links));
        }
        Ok(())
    }

    /// Reads the parties of the plan's activities.
    pub(crate) fn read_parties(&mut self) -> Result<(), RestoreError> {
        let Some((number, parent)) = parties::table_of(&self.tables) else { return Ok(()) };
        let activities = |number: &u16| self.tables.get(*number).rules().is_activity;
        if !self.tables.with_rows().iter().any(activities) {
            return Ok(());
        }
        let name = self.tables.get(number).name.clone();
        if self.columns.allow(&name, &name) {
            self.find_emptied_parties(number, &parent)?;
        } else {
            self.changed_activities.clear();
        }
        let (source, target) = (Arc::clone(&self.source), Arc::clone(&self.target));
        let reading = parties::Reading {
            captured: &self.captured,
            source: source.as_ref(),
            target: target.as_ref(),
            changed: &self.changed_activities,
            scratch: &self.scratch,
            whole: self.mirror,
            call: &self.call,
        };
        let resolver = Resolver { tables: &self.tables, mapping: &mut self.mapping, outside: &mut self.outside };
        let mut parties = reading.parties(number, &parent, resolver)?;
        for (from, to) in parties.needs.drain(..) {
            if to.table < self.tables.len() {
                self.edges.add(from, to, true);
            }
        }
        self.parties = Some(parties);
        Ok(())
    }
}

/// The row of the plan that is above a row of the same table, where states reach below.
fn above(resolver: &Resolver<'_>, rules: &TableRules, row: &Row<'_>) -> Option<Node> {
    if !rules.state.as_ref().is_some_and(|state| state.reaches_below) {
        return None;
    }
    let own = rules.parents.iter().filter(|relation| relation.parent == rules.table);
    own.filter_map(|relation| reference(row, &relation.member, rules.column(&relation.member)))
        .find_map(|parent| resolver.tables.find(&rules.table, parent.id))
}

fn captured_state(rules: &TableRules, row: &Row<'_>) -> Option<i64> {
    integer(value(row, &rules.state.as_ref()?.state))
}

/// The draft of a row that is not there; none when it does not come into being by this plan, which has been reported.
fn make(
    drafting: &mut Drafting<'_>,
    node: Node,
    row: &Row<'_>,
    birth: Birth,
    binned: bool,
) -> Option<(Draft, Vec<Need>)> {
    let parent = if let Birth::WithParent(member) = &birth { Some(member.clone()) } else { None };
    let id = drafting.resolver.tables.get(node.table).ids[node.row as usize];
    if drafting.is_written(birth, id) == Some(false) {
        return None;
    }
    let Some(parent) = parent else {
        let kind = if binned { Kind::Undelete } else { Kind::Create };
        return drafting.created(node.row, row, kind).ok();
    };
    let rule = drafting.rules.column(&parent);
    let named = reference(row, &parent, rule).and_then(|reference| drafting.resolver.lead(&reference).ok());
    let to = named.and_then(|led| led.node).filter(|to| to.table < drafting.resolver.tables.len());
    let Some(to) = to.filter(|to| is_planned(&drafting.resolver, *to)) else {
        let sentence = format!("the row comes into being with the row in {parent}, which the plan does not make");
        drafting.findings.row("with-parent", drafting.name, &id.to_string(), "", sentence);
        return None;
    };
    let (draft, mut needs) = drafting.created(node.row, row, Kind::WithParent).ok()?;
    needs.push((to, true, true));
    Some((draft, needs))
}

fn is_planned(resolver: &Resolver<'_>, node: Node) -> bool {
    crate::resolve::presence(resolver.tables, resolver.outside, node) == Presence::Planned
}
