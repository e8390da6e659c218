//! Owners that the service refused, so that rows of theirs are sent without them at once, and together.
//!
//! A user who is disabled, without a role, or gone may own thousands of rows. The first of them are refused for it; all that follow
//! in the table go without that owner, belong to the user who restores, and say so. Found out row by row, each would cost two
//! requests (`dataverse` protocol, section 6.7).

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use dynavault_catalog::{OpOutcome, OpState};
use dynavault_model::{Rejection, RejectionClass, Row, TableRules, TableSchema, WriteKind, scan};
use serde_json::value::RawValue;

use crate::RestoreError;
use crate::adjust::{OWNER_REFUSED, TARGET_MISSING, left_out_as, without_member, without_reference, written_without};
use crate::apply::{Applier, Swap, noted};
use crate::plan::Op;

/// Owners that one run remembers; beyond that, rows are found out one by one again.
const OWNERS_MAX: usize = 100_000;

/// By table and id, why.
#[derive(Debug, Default)]
pub(crate) struct RefusedOwners(Mutex<HashMap<(String, String), &'static str>>);

impl RefusedOwners {
    fn lock(&self) -> MutexGuard<'_, HashMap<(String, String), &'static str>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether any owner was refused in a table: most tables need not be looked through.
    pub(crate) fn any_of(&self, table: &str) -> bool {
        self.lock().keys().any(|(of, _)| of == table)
    }

    /// Remembers the owner of a row that was refused for it. False if the refusal is about something else, or if the row was
    /// to have no owner: leaving it out would then change nothing.
    pub(crate) fn note(&self, op: &Op, rules: &TableRules, refusal: &Rejection) -> bool {
        let about_owner = without_reference(op, rules, refusal).map(|(_, member)| member) == rules.owner;
        let Some(id) = rules.owner.as_deref().filter(|_| about_owner).and_then(|owner| owner_of(op, owner)) else {
            return false;
        };
        let why = if refusal.class == RejectionClass::Owner { OWNER_REFUSED } else { TARGET_MISSING };
        let mut known = self.lock();
        let room = known.len() < OWNERS_MAX;
        if room {
            known.insert((op.table.clone(), id), why);
        }
        room
    }

    /// What `op` sets without its owner, and the note of that; `None` if that owner was not refused.
    pub(crate) fn without(&self, op: &Op, rules: &TableRules) -> Option<(Box<RawValue>, String)> {
        let owner = rules.owner.as_deref()?;
        let id = owner_of(op, owner)?;
        let why = *self.lock().get(&(op.table.clone(), id))?;
        Some((without_member(op, owner)?, written_without(&[left_out_as(owner, why)])))
    }
}

impl Applier {
    /// Whether a refusal is about the owner of a row; the row then has another try without, with all others of that owner.
    pub(crate) fn refuses_owner(&self, schema: &TableSchema, kind: WriteKind, op: &Op, refusal: &Rejection) -> bool {
        let about = matches!(refusal.class, RejectionClass::Owner | RejectionClass::MissingReference);
        about && may_go_without(kind) && self.owners.note(op, &self.parts.target.rules(schema), refusal)
    }

    /// Leaves out owners that were refused before. What is left of nothing has its outcome.
    pub(crate) async fn disown(
        &self,
        schema: &TableSchema,
        kind: WriteKind,
        ops: Vec<Op>,
        notes: &mut HashMap<u64, String>,
        outcomes: &mut Vec<(Op, OpOutcome)>,
    ) -> Result<Vec<Op>, RestoreError> {
        if !may_go_without(kind) || !self.owners.any_of(&schema.table.name) {
            return Ok(ops);
        }
        let rules = self.parts.target.rules(schema);
        let (mut open, mut intents) = (Vec::with_capacity(ops.len()), Vec::new());
        for op in ops {
            match self.owners.without(&op, &rules) {
                None => open.push(op),
                Some((set, note)) if set.get() == "{}" && kind == WriteKind::Update => {
                    outcomes.push((noted(op.n, OpState::Done, None, Some(note)), op).swap());
                }
                Some((set, note)) => {
                    // A process that dies now must know later what it was that it had sent.
                    intents.push(noted(op.n, OpState::Sent, None, Some(note.clone())));
                    notes.insert(op.n, note);
                    open.push(Op { set: Some(set), ..op });
                }
            }
        }
        if !intents.is_empty() {
            self.parts.catalog.conclude(self.run, intents).await?;
        }
        Ok(open)
    }
}

/// Whether a write of this kind may go without its owner.
fn may_go_without(kind: WriteKind) -> bool {
    matches!(kind, WriteKind::Create | WriteKind::Undelete | WriteKind::Update)
}

/// The owner that a row is to have.
fn owner_of(op: &Op, owner: &str) -> Option<String> {
    let set = op.set.as_deref()?.get().as_bytes();
    let mut members = Vec::new();
    scan(set, &mut members).ok()?;
    let id: String = serde_json::from_slice(Row::new(set, &members).get(owner)?).ok()?;
    Some(id.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use dynavault_model::Treatment;

    use super::*;

    fn op(table: &str, set: &str) -> Op {
        let text = format!(
            r#"{{"n":0,"step":"rows","wave":0,"table":"{table}","do":"create","key":{{"id":"0fe1c2d3-a4b5-46c7-88d9-eafb0c1d2e3f"}},
                "set":{set},"guard":"absent"}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    fn rules() -> TableRules {
        TableRules {
            table: "account".into(),
            treatment: Treatment::Rows,
            columns: Vec::new(),
            state: None,
            owner: Some("_ownerid_value".into()),
            created_on: None,
            created_by: None,
            guards_versions: true,
            parents: Vec::new(),
            is_activity: false,
        }
    }

    #[test]
    fn an_owner_that_was_refused_is_left_out_of_every_row_of_the_table() {
        let (owners, rules) = (RefusedOwners::default(), rules());
        let owned =
            op("account", r#"{"name":"A","_ownerid_value":"AB","_ownerid_value@x.lookuplogicalname":"systemuser"}"#);
        let refusal = Rejection { code: "0x8004a112".into(), message: "disabled".into(), class: RejectionClass::Owner };
        assert!(!owners.any_of("account") && owners.without(&owned, &rules).is_none());
        assert!(owners.note(&owned, &rules, &refusal));
        let (set, note) = owners.without(&op("account", r#"{"name":"B","_ownerid_value":"ab"}"#), &rules).unwrap();
        assert_eq!((set.get(), note.as_str()), (r#"{"name":"B"}"#, "written without _ownerid_value (owner-refused)"));
        // Others may own, and what one table refuses another may take.
        assert!(owners.without(&op("account", r#"{"_ownerid_value":"cd"}"#), &rules).is_none());
        assert!(owners.without(&op("contact", r#"{"_ownerid_value":"ab"}"#), &rules).is_none());
        // Nothing is left to leave out, and other refusals are not about the owner.
        assert!(!owners.note(&op("account", r#"{"name":"A"}"#), &rules, &refusal));
        let other = Rejection { class: RejectionClass::MissingReference, message: "contact 12".into(), ..refusal };
        assert!(!owners.note(&op("account", r#"{"name":"A","_ownerid_value":"ef"}"#), &rules, &other));
    }
}
