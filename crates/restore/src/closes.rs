//! Close activities: what closing a case, an opportunity, a quote or an order leaves behind.
//!
//! ```text
//!  the plan closes the row by its message  ─▶ the newest captured activity goes along with the message, which makes it
//!  every other one that is gone            ─▶ made as a row of its own table, like any activity
//! ```
//!
//! (`dataverse` protocol, sections 6.4 and 6.5.) Others are gone although nothing is closed: they were deleted alone, or tell
//! of an earlier closing. That the service takes them as rows is not confirmed; where it does not, the result names them.
//!
//! An activity that rows of the plan refer to is made as a row as well: the message that would make it comes last. The
//! message makes one of its own then, which is removed with it.

use std::sync::Arc;

use dynavault_model::{ColumnRule, StateRule};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::compare::{integer, reference, text, value};
use crate::draft::{Draft, Drafting, Kind, Lookup, push_member};
use crate::emit::object;
use crate::error::RestoreError;
use crate::findings::{Findings, NotWritten};
use crate::live::{Packed, State};
use crate::resolve::{Presence, Resolver, presence};
use crate::tables::{ColumnIndex, with_row};
use crate::waves::Node;
use crate::work::Work;

/// The captured activity that closed a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Close {
    /// Its members, without lookups that need a row of the plan, without braces.
    set: String,
    lookups: Vec<Lookup>,
    /// The activity itself: where it is there already, closing must not make it again.
    node: Option<Node>,
    live: bool,
}

/// The newest captured activity that closed a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Newest {
    /// When it was made.
    created: String,
    /// Its place among the activities found.
    offset: u64,
    /// Its row in the plan, where it is missing.
    own: Option<Node>,
    /// The message that closes the row makes it.
    carried: bool,
}

/// Whether a state of a draft is reached by the message that makes a close activity.
pub(crate) fn is_by_message(rule: Option<&StateRule>, draft: &Draft) -> bool {
    let (Some(rule), Some(pair)) = (rule, &draft.state) else { return false };
    // A row that comes back closed from the recycle bin is closed again only where it had to be opened.
    if draft.kind == Kind::Undelete {
        return false;
    }
    let wanted = state_of(rule, &pair.set);
    wanted.is_some_and(|wanted| rule.close_states.contains(&wanted)) && wanted != state_of(rule, &pair.from)
}

/// The state in one side of a pair.
pub(crate) fn state_of(rule: &StateRule, pair: &str) -> Option<i64> {
    with_row(pair.as_bytes(), "", |row| Ok(integer(value(row, &rule.state)))).ok().flatten()
}

impl Work {
    /// Numbers of the tables of close activities.
    pub(crate) fn close_tables(&self) -> Vec<u16> {
        let of = |number: u16| {
            let (table, _) = self.tables.get(number).rules.as_ref()?.state.as_ref()?.close_table.as_ref()?;
            self.tables.number(table)
        };
        (0..self.tables.len()).filter_map(of).collect()
    }

    /// Finds the newest captured activity that closed each row which the plan closes by a message, and leaves its making to
    /// that message.
    pub(crate) fn find_closes(&mut self) -> Result<(), RestoreError> {
        let mut kinds: Vec<(u16, u16, String)> = Vec::new();
        for node in self.closing.keys() {
            let rules = self.tables.get(node.table).rules();
            if let Some((close_table, member)) = rules.state.as_ref().and_then(|state| state.close_table.clone())
                && let Some(number) = self.tables.number(&close_table)
                && self.tables.get(number).rules.is_some()
                && !kinds.iter().any(|(table, _, _)| *table == node.table)
            {
                kinds.push((node.table, number, member));
            }
        }
        for (closed, number, member) in kinds {
            self.find_closes_of(closed, number, &member)?;
        }
        let mut carried: Vec<Node> = Vec::new();
        for (parent, newest) in &mut self.closing {
            let Some(newest) = newest else { continue };
            let is_new = self.tables.get(parent.table).state(parent.row) == State::Absent;
            let goes_along = |node: &Node| match self.tables.get(node.table).state(node.row) {
                State::Absent => !self.named_closes.contains(node),
                // The bin gives back what belongs to a row that is there, and nothing for one that is made anew.
                State::Binned => is_new && !self.named_closes.contains(node),
                State::Same | State::Differs(_) | State::Unmade => false,
            };
            newest.carried = newest.own.as_ref().is_some_and(goes_along);
            carried.extend(newest.own.filter(|_| newest.carried));
        }
        carried.sort_unstable();
        for node in carried {
            let table = self.tables.get_mut(node.table);
            table.states[node.row as usize] = Packed::UNMADE;
            let (id, name) = (table.ids[node.row as usize].to_string(), table.name.clone());
            let sentence = "the message that closes its row makes it".to_string();
            self.findings.row("by-state", &name, &id, "", sentence);
        }
        Ok(())
    }

    fn find_closes_of(&mut self, closed: u16, number: u16, member: &str) -> Result<(), RestoreError> {
        let table = self.tables.get_mut(number);
        let rules = Arc::clone(table.rules());
        let Some(source) = table.source.take() else { return Ok(()) };
        let name = table.name.clone();
        // What cannot be written of a closing activity is no loss worth a line of its own.
        let mut findings = Findings::default();
        let mut not_written = NotWritten::default();
        let mut drafting = Drafting {
            name: &name,
            rules: &rules,
            columns: ColumnIndex::new(&rules),
            source: &source,
            allowed: &self.columns,
            resolver: Resolver { tables: &self.tables, mapping: &mut self.mapping, outside: &mut self.outside },
            findings: &mut findings,
            not_written: &mut not_written,
            keeps_created_on: !matches!(self.abilities.created_on, dynavault_model::Ability::Missing(_)),
            creators: None,
        };
        let (closing, spill) = (&mut self.closing, &mut self.closes);
        let read = self.captured.all(usize::from(number), |_, row| {
            let rule: Option<&ColumnRule> = rules.column(member);
            let Some(parent) = reference(row, member, rule) else { return Ok(()) };
            let Ok(at) = drafting.resolver.tables.get(closed).ids.binary_search(&parent.id) else { return Ok(()) };
            let node = Node { table: closed, row: at as u32 };
            let Some(found) = closing.get_mut(&node) else { return Ok(()) };
            let created = row.get("createdon").and_then(text).unwrap_or_default();
            if found.as_ref().is_some_and(|newest| newest.created >= created) {
                return Ok(());
            }
            let Ok((draft, _)) = drafting.created(0, row, Kind::Create) else { return Ok(()) };
            let mut set = String::new();
            for key in &source.key {
                push_member(&mut set, key, value(row, key));
            }
            if !draft.set.is_empty() {
                set.push(',');
                set.push_str(&draft.set);
            }
            let id = source.row_id(row);
            let own = id.and_then(|id| {
                let own = crate::compare::Reference { id, table: Some(name.clone()) };
                drafting.resolver.lead(&own).ok()
            });
            let live = own.is_some_and(|own| own.node.is_none());
            let own = own.and_then(|own| own.node);
            let activity = Close { set, lookups: draft.lookups, live, node: own };
            // One that is not part of the plan is not made but by the message.
            let own = own.filter(|own| own.table == number);
            *found = Some(Newest { created, offset: spill.push_json(&activity)?, own, carried: false });
            Ok(())
        });
        self.tables.get_mut(number).source = Some(source);
        read
    }

    /// Reports the activities whose rows turned out not to be made; after it is known which rows are.
    pub(crate) fn report_lost_closes(&mut self) {
        let mut lost: Vec<Node> = Vec::new();
        for (parent, newest) in &self.closing {
            let missing = presence(&self.tables, &self.outside, *parent) == Presence::Missing;
            lost.extend(newest.as_ref().filter(|newest| missing && newest.carried).and_then(|newest| newest.own));
        }
        lost.sort_unstable();
        for node in lost {
            let table = self.tables.get_mut(node.table);
            table.plan.counts.impossible += 1;
            let (id, name) = (table.ids[node.row as usize].to_string(), table.name.clone());
            let sentence = "the row that it closed is neither there nor made".to_string();
            self.findings.row("missing-required", &name, &id, "", sentence);
        }
    }

    /// Whether closing a row makes an activity that is gone.
    pub(crate) fn carries_close(&self, node: Node) -> bool {
        self.closing.get(&node).and_then(Option::as_ref).is_some_and(|newest| newest.carried)
    }

    /// The captured closing activity of a row, unless it is there already or comes back as a row.
    pub(crate) fn close(&mut self, node: Node) -> Result<Option<Box<RawValue>>, RestoreError> {
        let Some(Some(newest)) = self.closing.get(&node) else { return Ok(None) };
        let mut record = Vec::new();
        self.closes.read(newest.offset, &mut record)?;
        let close: Close = serde_json::from_slice(&record).map_err(|error| {
            RestoreError::Worker(format!("a closing activity changed in the scratch folder: {error}"))
        })?;
        let is_there = |node| presence(&self.tables, &self.outside, node) != Presence::Missing;
        if close.live || close.node.is_some_and(is_there) {
            return Ok(None);
        }
        let mut parts = vec![close.set.as_str()];
        for lookup in &close.lookups {
            if lookup.node.is_none_or(is_there) {
                parts.push(&lookup.set);
            }
        }
        object(&parts).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draft::Pair;
    use dynavault_model::RowKey;

    fn draft(kind: Kind, set: &str, from: &str) -> Draft {
        Draft {
            row: 0,
            key: RowKey::new("0fe1c2d3-a4b5-46c7-88d9-eafb0c1d2e3f"),
            kind,
            set: String::new(),
            from: String::new(),
            lookups: Vec::new(),
            etag: None,
            modified: None,
            owner: None,
            reopen: None,
            state: Some(Pair { set: set.into(), from: from.into() }),
            on_behalf: None,
        }
    }

    #[test]
    fn only_a_way_into_a_closed_state_makes_a_close_activity() {
        let rule = StateRule {
            state: "statecode".into(),
            status: "statuscode".into(),
            initial: 0,
            initial_statuses: vec![1],
            closed: vec![1, 2],
            close_table: Some(("resolution".into(), "_incidentid_value".into())),
            close_states: vec![1],
            closing_writes: Vec::new(),
            reaches_below: false,
        };
        let (open, closed, cancelled) =
            (r#"{"statecode":0}"#, r#"{"statecode":1,"statuscode":5}"#, r#"{"statecode":2}"#);
        let by_message = |kind, set, from| is_by_message(Some(&rule), &draft(kind, set, from));
        assert!(by_message(Kind::Create, closed, open) && by_message(Kind::Change, closed, cancelled));
        assert!(!by_message(Kind::Change, cancelled, open) && !by_message(Kind::Change, closed, closed));
        assert!(!by_message(Kind::Undelete, closed, open));
        assert!(!is_by_message(None, &draft(Kind::Create, closed, open)));
    }
}
