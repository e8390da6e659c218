//! Parties of activities: written along with their activity, or replaced as a whole.
//!
//! (`dataverse` protocol, section 6.4.) The parties that the service derives from the regarding row and the owner are neither
//! compared nor written. A party whose row is gone keeps its address; without one there is nothing to write, and the plan
//! says so (test case T64).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use dynavault_model::{Call, Row, RowId, RowSource, RowTarget, TableRules};
use serde::{Deserialize, Serialize};

use crate::captured::Captured;
use crate::compare::{NULL, Winner, reference, text, value};
use crate::draft::{Lookup, push_member};
use crate::error::RestoreError;
use crate::live::{State, by_key_is_cheaper, existing_rows, gather};
use crate::plan::ConflictPolicy;
use crate::project::{fits, reason};
use crate::resolve::{Led, Presence, Resolver, presence};
use crate::spill::Spill;
use crate::tables::{Role, Table, Tables};
use crate::waves::Node;
use crate::work::Work;

const PARTY: &str = "_partyid_value";
const MASK: &str = "participationtypemask";
const ADDRESS: &str = "addressused";
const EFFORT: &str = "effort";
/// Members of a party that are written beside the row it names.
const WRITTEN: [&str; 3] = [MASK, ADDRESS, EFFORT];
/// Tables of up to so many parties are read whole, which finds those of an activity whatever their ids are: ten requests at most.
const PARTIES_READ_WHOLE: u64 = 50_000;
/// Parties that the service derives: the regarding row and the owner.
const DERIVED: [&[u8]; 2] = [b"8", b"9"];

/// One party.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Party {
    /// Members without the row it names, without braces.
    pub(crate) plain: String,
    pub(crate) who: Option<Lookup>,
    /// Why it names nobody although the captured party does.
    pub(crate) lost: Option<String>,
    pub(crate) addressed: bool,
    /// Why the environment does not take it.
    pub(crate) unfit: Option<String>,
    mask: String,
    /// Id of the row it names; empty where it names none.
    named: String,
    address: String,
    effort: String,
}

/// The parties of the plan's activities, and those of the live ones that may differ.
#[derive(Debug)]
pub(crate) struct Parties {
    pub(crate) table: u16,
    captured: Spill,
    live: Spill,
    captured_index: Vec<(Node, u64)>,
    live_index: Vec<(Node, u64)>,
    /// Activities that are made, with the rows their parties name: parties go with the creation, so those come first.
    pub(crate) needs: Vec<(Node, Node)>,
}

impl Parties {
    /// The captured parties of an activity.
    pub(crate) fn captured(&mut self, activity: Node) -> Result<Vec<Party>, RestoreError> {
        read(&mut self.captured, &self.captured_index, activity)
    }

    /// Its live parties.
    pub(crate) fn live(&mut self, activity: Node) -> Result<Vec<Party>, RestoreError> {
        read(&mut self.live, &self.live_index, activity)
    }
}

fn read(spill: &mut Spill, index: &[(Node, u64)], activity: Node) -> Result<Vec<Party>, RestoreError> {
    let from = index.partition_point(|(node, _)| *node < activity);
    let mut record = Vec::new();
    let mut parties = Vec::new();
    for (_, offset) in index[from..].iter().take_while(|(node, _)| *node == activity) {
        spill.read(*offset, &mut record)?;
        let party = serde_json::from_slice(&record)
            .map_err(|error| RestoreError::Worker(format!("a party changed in the scratch folder: {error}")))?;
        parties.push(party);
    }
    Ok(parties)
}

/// Whether a captured party says what a live one says, given whether its row can be named. The service may fill in the address
/// of a party that names a row, so there it counts only where both sides have one.
fn says(captured: &Party, can_be_named: bool, live: &Party) -> bool {
    let named = if can_be_named { captured.named.as_str() } else { "" };
    let filled_in = !named.is_empty() && [captured, live].iter().any(|party| party.address == "null");
    captured.mask == live.mask
        && captured.effort == live.effort
        && named == live.named
        && (filled_in || captured.address == live.address)
}

/// Whether parties say the same as live ones; `can_name` tells whether the row of a captured one can be named.
fn same(parties: &[Party], can_name: impl Fn(&Party) -> bool, live: &[Party]) -> bool {
    let mut left: Vec<&Party> = live.iter().collect();
    let mut open: Vec<&Party> = parties.iter().collect();
    // Those with the very same address first: another may do without.
    for exact in [true, false] {
        open.retain(|party| {
            let is_it = |now: &&Party| (!exact || party.address == now.address) && says(party, can_name(party), now);
            let found = left.iter().position(is_it);
            found.map(|at| left.swap_remove(at)).is_none()
        });
    }
    open.is_empty() && left.is_empty()
}

/// Whether writing the captured parties only fills: every live one is a captured one, or what the deletion of its row has left of
/// it, and what is missing beside them names a row that is gone (`is_back`: that the plan makes).
fn fills(captured: &[Party], live: &[Party], is_back: impl Fn(&Party) -> bool) -> bool {
    let mut left: Vec<&Party> = captured.iter().collect();
    for now in live {
        let whole = left.iter().position(|party| says(party, true, now));
        let found = whole.or_else(|| left.iter().position(|party| is_back(party) && says(party, false, now)));
        let Some(at) = found else { return false };
        left.swap_remove(at);
    }
    live.is_empty() || left.into_iter().all(is_back)
}

/// Parties of an activity that differ.
pub(crate) struct Differing {
    pub(crate) captured: Vec<Party>,
    pub(crate) live: Vec<Party>,
    /// The captured ones are written.
    pub(crate) wins: bool,
}

impl Work {
    /// Whether the row of a party can be named; once it is known which rows are made.
    pub(crate) fn can_name(&self, party: &Party) -> bool {
        let there = |node| presence(&self.tables, &self.outside, node) != Presence::Missing;
        party.who.as_ref().is_some_and(|who| who.node.is_none_or(there))
    }

    /// The parties of an activity, unless they are as they can be.
    pub(crate) fn differing_parties(&mut self, node: Node, winner: Winner) -> Result<Option<Differing>, RestoreError> {
        let Some(parties) = self.parties.as_mut() else { return Ok(None) };
        let (captured, live) = (parties.captured(node)?, parties.live(node)?);
        let nothing = captured.is_empty() && winner != Winner::Snapshot;
        if nothing || same(&captured, |_| true, &live) {
            return Ok(None);
        }
        // What of them can be written may be there already.
        let fits = |party: &Party| party.unfit.is_none() && text_of(party, self.can_name(party)).is_ok();
        let fitting: Vec<Party> = captured.iter().filter(|party| fits(party)).cloned().collect();
        if same(&fitting, |party| self.can_name(party), &live) {
            return Ok(None);
        }
        let is_made = |node| presence(&self.tables, &self.outside, node) == Presence::Planned;
        let is_back = |party: &Party| party.who.as_ref().and_then(|who| who.node).is_some_and(is_made);
        let wins = match winner {
            Winner::Snapshot => true,
            // Writing replaces all of them, and would lose one that is there and is not taken any more.
            Winner::Fill if !live.is_empty() && captured.iter().any(|party| party.unfit.is_some()) => false,
            Winner::Fill => fills(&captured, &live, is_back),
            Winner::Live => false,
        };
        Ok(Some(Differing { captured, live, wins }))
    }

    /// Adds the activities that are as they were captured and have parties that name rows which the plan makes: the deletion of
    /// those rows has emptied the parties without a trace in the activity.
    pub(crate) fn find_emptied_parties(&mut self, number: u16, parent: &str) -> Result<(), RestoreError> {
        let winner = match self.conflict {
            ConflictPolicy::Overwrite => Winner::Snapshot,
            ConflictPolicy::Skip => return Ok(()),
            // Neither side of an equal row is newer.
            ConflictPolicy::FillEmpty | ConflictPolicy::NewerWins | ConflictPolicy::Fail => Winner::Fill,
        };
        if self.mirror {
            // Everything is read anyway, so parties are compared whether or not their activities say that they changed.
            for table in self.tables.with_rows() {
                let planned = self.tables.get(table);
                if planned.rules().is_activity {
                    let same = (0..planned.states.len() as u32).filter(|row| planned.state(*row) == State::Same);
                    self.changed_activities.extend(same.map(|row| (Node { table, row }, winner)));
                }
            }
            return Ok(());
        }
        let tables = &self.tables;
        let missing = |node: Node| matches!(tables.get(node.table).state(node.row), State::Absent | State::Binned);
        let any =
            |number: u16| (0..tables.get(number).states.len() as u32).any(|row| missing(Node { table: number, row }));
        if !tables.with_rows().into_iter().any(any) {
            return Ok(());
        }
        let rules = Arc::clone(tables.get(number).rules());
        let changed = &mut self.changed_activities;
        self.captured.all(usize::from(number), |_, row| {
            let Some(activity) = activity(tables, parent, row) else { return Ok(()) };
            if tables.get(activity.table).state(activity.row) != State::Same || changed.contains_key(&activity) {
                return Ok(());
            }
            let who = reference(row, PARTY, rules.column(PARTY));
            let named = who.and_then(|who| tables.find(who.table.as_deref()?, who.id));
            if named.is_some_and(missing) {
                changed.insert(activity, winner);
            }
            Ok(())
        })
    }
}

/// Number of the table of parties, and the member that names their activity.
pub(crate) fn table_of(tables: &Tables) -> Option<(u16, String)> {
    (0..tables.len()).find_map(|number| match &tables.get(number).role {
        Role::Along(parent) => Some((number, parent.clone())),
        _ => None,
    })
}

/// Reads the parties of the plan's activities; `changed` are the activities that exist and differ.
pub(crate) struct Reading<'a> {
    pub(crate) captured: &'a Captured,
    pub(crate) source: &'a dyn RowSource,
    pub(crate) target: &'a dyn RowTarget,
    pub(crate) changed: &'a HashMap<Node, Winner>,
    pub(crate) scratch: &'a std::path::Path,
    /// Parties that were added since are looked for too.
    pub(crate) whole: bool,
    pub(crate) call: &'a Call,
}

impl Reading<'_> {
    pub(crate) fn parties(
        &self,
        number: u16,
        parent: &str,
        mut resolver: Resolver<'_>,
    ) -> Result<Parties, RestoreError> {
        let tables = resolver.tables;
        let table = tables.get(number);
        let rules = Arc::clone(table.rules());
        let mut parties = Parties {
            table: number,
            captured: Spill::new(self.scratch)?,
            live: Spill::new(self.scratch)?,
            captured_index: Vec::new(),
            live_index: Vec::new(),
            needs: Vec::new(),
        };
        let mut keys: Vec<RowId> = Vec::new();
        self.captured.all(usize::from(number), |id, row| {
            let Some(activity) = activity(tables, parent, row) else { return Ok(()) };
            let wanted = match tables.get(activity.table).state(activity.row) {
                State::Absent | State::Binned => true,
                State::Same | State::Differs(_) => self.changed.contains_key(&activity),
                State::Unmade => false,
            };
            if let Some(party) = wanted.then(|| party(row, &rules, Some(&mut resolver))).flatten() {
                let made = !tables.get(activity.table).states[activity.row as usize].is_live();
                let named = party.who.as_ref().and_then(|who| who.node).filter(|_| made);
                parties.needs.extend(named.map(|named| (activity, named)));
                parties.captured_index.push((activity, parties.captured.push_json(&party)?));
                if self.changed.contains_key(&activity) {
                    keys.push(id);
                }
            }
            Ok(())
        })?;
        parties.captured_index.sort_unstable();
        if !self.changed.is_empty() {
            self.live(tables, table, parent, &keys, &mut parties)?;
        }
        Ok(parties)
    }

    /// Reads the live parties. By id, parties that were added since are not seen, and those that were written again have other
    /// ids: they are planned once more.
    fn live(
        &self,
        tables: &Tables,
        table: &Table,
        parent: &str,
        keys: &[RowId],
        parties: &mut Parties,
    ) -> Result<(), RestoreError> {
        let rows = Arc::new(Mutex::new(Spill::new(self.scratch)?));
        let kept = Arc::clone(&rows);
        // Which of the live parties are wanted is known by their activities.
        let mut wanted: Vec<(RowId, Node)> = Vec::with_capacity(self.changed.len());
        for node in self.changed.keys() {
            if let Some(id) = tables.get(node.table).ids.get(node.row as usize) {
                wanted.push((*id, *node));
            }
        }
        wanted.sort_unstable();
        let (member, rules) = (parent.to_string(), Arc::clone(table.rules()));
        let key = table.target().key.first().cloned().unwrap_or_default();
        let make = move |row: &Row<'_>| {
            let id = row.get(&key).map(|value| RowId::of_key(&[value]));
            let activity = row.get(&member).and_then(text).and_then(|text| RowId::from_guid(text.as_bytes()));
            let at = activity.and_then(|activity| wanted.binary_search_by_key(&activity, |(id, _)| *id).ok());
            let (Some(id), Some(at), Some(party)) = (id, at, party(row, &rules, None)) else { return Ok(None) };
            let offset = kept.lock().unwrap_or_else(PoisonError::into_inner).push_json(&party)?;
            Ok(Some((id, wanted[at].1, offset)))
        };
        let approximate = self.captured.table(usize::from(parties.table)).live_rows;
        let handle = &self.captured.handle;
        let by_key =
            approximate > PARTIES_READ_WHOLE && by_key_is_cheaper(table.target(), keys.len() as u64, approximate);
        let mut found = if by_key && !self.whole {
            handle.block_on(existing_rows(self.target, table.target(), keys, make, self.call))?
        } else {
            handle.block_on(gather(self.source, table.target(), make, self.call))?
        };
        // Of two deliveries the last counts.
        found.reverse();
        found.sort_by_key(|(id, _, _)| *id);
        found.dedup_by_key(|(id, _, _)| *id);
        parties.live_index = found.into_iter().map(|(_, node, offset)| (node, offset)).collect();
        parties.live_index.sort_unstable();
        let mut rows = rows.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut parties.live, &mut rows);
        Ok(())
    }
}

fn activity(tables: &Tables, parent: &str, row: &Row<'_>) -> Option<Node> {
    tables.activity(RowId::from_guid(text(row.get(parent)?)?.as_bytes())?)
}

/// Reads a party; none when the service derives it.
fn party(row: &Row<'_>, rules: &TableRules, resolver: Option<&mut Resolver<'_>>) -> Option<Party> {
    let mask = value(row, MASK);
    if DERIVED.contains(&mask) {
        return None;
    }
    let (mut plain, mut unfit) = (String::new(), None);
    for member in WRITTEN {
        if let Some(value) = row.get(member).filter(|value| *value != NULL) {
            push_member(&mut plain, member, value);
            let misfit = rules.column(member).and_then(|rule| fits(rule, value).err());
            unfit = unfit.or(misfit.map(|(code, sentence)| format!("{sentence} ({code})")));
        }
    }
    let reference = reference(row, PARTY, rules.column(PARTY));
    let addressed = value(row, ADDRESS) != NULL;
    let mut lost = None;
    let mut who = None;
    let mut named = String::new();
    if let Some(reference) = &reference {
        let led = match resolver {
            Some(resolver) => resolver.lead(reference),
            None => Ok(Led { id: reference.id, node: None }),
        };
        match led {
            Ok(led) => {
                let mut set = String::new();
                push_member(&mut set, PARTY, format!("\"{}\"", led.id).as_bytes());
                if let Some(table) = &reference.table {
                    let annotation = format!("{PARTY}@Microsoft.Dynamics.CRM.lookuplogicalname");
                    push_member(&mut set, &annotation, serde_json::Value::from(table.as_str()).to_string().as_bytes());
                }
                named = led.id.to_string();
                who = Some(Lookup { member: PARTY.into(), set, from: String::new(), node: led.node, later: false });
            }
            Err(code) => {
                let table = reference.table.as_deref().unwrap_or("row");
                lost = Some(format!("{code}: {table} {}", reference.id));
            }
        }
    }
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    let (mask, address, effort) = (text(mask), text(value(row, ADDRESS)), text(value(row, EFFORT)));
    Some(Party { plain, who, lost, addressed, unfit, mask, named, address, effort })
}

/// The party as it is written, given whether its row can be named; otherwise why it is left out.
pub(crate) fn text_of(party: &Party, can_be_named: bool) -> Result<String, String> {
    match &party.who {
        Some(who) if can_be_named => {
            let comma = if party.plain.is_empty() { "" } else { "," };
            Ok(format!("{{{}{comma}{}}}", party.plain, who.set))
        }
        _ if party.addressed => Ok(format!("{{{}}}", party.plain)),
        Some(_) => Err(reason::MISSING_TARGET.into()),
        None => Err(party.lost.clone().unwrap_or_else(|| reason::NO_TARGET.into())),
    }
}

/// The party as it is; one that names nobody any more is shown as well.
pub(crate) fn text_now(party: &Party) -> String {
    text_of(party, true).unwrap_or_else(|_| format!("{{{}}}", party.plain))
}

/// A live party as an operation holds it, with the id of its activity; none when the service derives it.
pub(crate) fn live_party(row: &Row<'_>, parent: &str, rules: &TableRules) -> Option<(RowId, String)> {
    let activity = row.get(parent).and_then(text).and_then(|text| RowId::from_guid(text.as_bytes()))?;
    Some((activity, text_now(&party(row, rules, None)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dynavault_model::{Treatment, scan};

    fn rules() -> TableRules {
        TableRules {
            table: "activityparty".into(),
            treatment: Treatment::Along { parent: "_activityid_value".into() },
            columns: Vec::new(),
            state: None,
            owner: None,
            created_on: None,
            created_by: None,
            guards_versions: false,
            parents: Vec::new(),
            is_activity: false,
        }
    }

    fn read(json: &str) -> Option<Party> {
        let mut members = Vec::new();
        scan(json.as_bytes(), &mut members).unwrap();
        party(&Row::new(json.as_bytes(), &members), &rules(), None)
    }

    const NAMED: &str = r#"{"participationtypemask":2,"addressused":"a@x","effort":null,"_partyid_value":"0fe1c2d3-a4b5-46c7-88d9-eafb0c1d2e3f","_partyid_value@Microsoft.Dynamics.CRM.lookuplogicalname":"contact"}"#;

    #[test]
    fn a_party_whose_row_is_gone_keeps_its_address() {
        let party = read(NAMED).unwrap();
        assert_eq!(
            text_of(&party, true).unwrap(),
            r#"{"participationtypemask":2,"addressused":"a@x","_partyid_value":"0fe1c2d3-a4b5-46c7-88d9-eafb0c1d2e3f","_partyid_value@Microsoft.Dynamics.CRM.lookuplogicalname":"contact"}"#
        );
        assert_eq!(text_of(&party, false).unwrap(), r#"{"participationtypemask":2,"addressused":"a@x"}"#);
        let silent = read(&NAMED.replace("\"a@x\"", "null")).unwrap();
        assert_eq!(text_of(&silent, false).unwrap_err(), "missing-target");
    }

    #[test]
    fn derived_parties_are_no_part_of_the_comparison() {
        assert_eq!(read(&NAMED.replace(":2,", ":9,")), None);
        let (a, b) = (read(NAMED).unwrap(), read(&NAMED.replace("a@x", "b@x")).unwrap());
        let other = read(&NAMED.replace(":2,", ":3,")).unwrap();
        let same = |a: &[Party], b: &[Party]| same(a, |_| true, b);
        // The service fills in an address that was not given.
        let silent = read(&NAMED.replace("\"a@x\"", "null")).unwrap();
        assert!(same(&[silent.clone(), other.clone()], &[other.clone(), b.clone()]));
        assert!(same(&[silent.clone(), b.clone()], &[b.clone(), a.clone()]));
        assert!(!same(std::slice::from_ref(&a), std::slice::from_ref(&b)));
        let longer = read(&NAMED.replace("\"effort\":null", "\"effort\":2.5")).unwrap();
        assert!(!same(std::slice::from_ref(&a), std::slice::from_ref(&longer)));
        assert!(!same(std::slice::from_ref(&a), &[other]));
        assert!(!same(&[a.clone(), a.clone()], &[a]));
    }

    #[test]
    fn parties_are_filled_when_nothing_else_has_changed() {
        let named = read(NAMED).unwrap();
        let emptied = read(&NAMED.replace("\"0fe1c2d3-a4b5-46c7-88d9-eafb0c1d2e3f\"", "null")).unwrap();
        let other = read(&NAMED.replace(":2,", ":3,")).unwrap();
        let (captured, back) = ([named.clone(), other.clone()], |party: &Party| party.mask == "2");
        assert!(fills(&captured, &[other.clone(), emptied.clone()], back));
        assert!(fills(&captured, std::slice::from_ref(&other), back));
        assert!(fills(&captured, &[], back));
        // Somebody has removed the other one, or has added one.
        assert!(!fills(&captured, std::slice::from_ref(&emptied), back));
        assert!(!fills(&captured, &[other.clone(), emptied, other], back));
        assert!(!fills(std::slice::from_ref(&named), &[read(&NAMED.replace(":2,", ":4,")).unwrap()], back));
    }
}
