//! Writing a row otherwise than planned because that is the only way: without a reference whose row is missing, without an owner
//! who cannot own it, not on behalf of a user who may not write it.

use dynavault_model::{ColumnKind, Rejection, RejectionClass, Row, TableRules, scan};
use serde_json::value::RawValue;

use crate::plan::Op;
use crate::settle::is_value;

/// Reason code of a lookup that was left out because its row is missing.
pub(crate) const TARGET_MISSING: &str = "missing-target";
/// Reason code of an owner that was left out; the row then belongs to the user who restores.
pub(crate) const OWNER_REFUSED: &str = "owner-refused";
/// Reason code of a row that is made by the user who restores, not by the one who made it.
pub(crate) const CREATOR_LOST: &str = "creator-lost";

/// Refusals that are about the caller: not to act on behalf of others, without roles, disabled, without a licence, not a member,
/// without a privilege (`dataverse` protocol, sections 6.6, 6.16 and 9.3). Both users need every privilege of such a write.
const CALLER_REFUSED: [&str; 8] =
    ["0x8004a110", "0x80042f09", "0x8004a112", "0x8004d24b", "0x80072560", "0x80040220", "0x80040299", "0x80048306"];

/// Whether a refusal may be about the user on whose behalf the row was written, so that it is worth another try without.
pub(crate) fn refuses_creator(op: &Op, refusal: &Rejection) -> bool {
    let about = refusal.class == RejectionClass::Table
        || CALLER_REFUSED.iter().any(|code| refusal.code.eq_ignore_ascii_case(code));
    op.on_behalf.is_some() && about
}

/// The values of `op` without the lookup that was refused, and that lookup's member; `None` if the message names none of the
/// row's lookups, or the service needs it.
pub(crate) fn without_reference(op: &Op, rules: &TableRules, refusal: &Rejection) -> Option<(Box<RawValue>, String)> {
    let set = op.set.as_deref()?.get().as_bytes();
    let mut members = Vec::new();
    scan(set, &mut members).ok()?;
    let row = Row::new(set, &members);
    let lower = refusal.message.to_ascii_lowercase();
    let named = row.members().iter().find_map(|member| {
        let name = std::str::from_utf8(row.key(member)).ok()?;
        if refusal.class == RejectionClass::Owner {
            return (rules.owner.as_deref() == Some(name)).then(|| name.to_string());
        }
        let id: String = serde_json::from_slice(row.value(member)).ok()?;
        let rule = rules.column(name)?;
        let fits = is_value(name) && matches!(rule.kind, ColumnKind::Lookup { .. }) && !rule.required;
        (fits && id.len() == 36 && lower.contains(&id.to_ascii_lowercase())).then(|| name.to_string())
    })?;
    Some((without(set, &row, &named)?, named))
}

/// The values of `op` without a member.
pub(crate) fn without_member(op: &Op, member: &str) -> Option<Box<RawValue>> {
    let set = op.set.as_deref()?.get().as_bytes();
    let mut members = Vec::new();
    scan(set, &mut members).ok()?;
    without(set, &Row::new(set, &members), member)
}

/// A set of values without a member and the annotations on it.
fn without(set: &[u8], row: &Row<'_>, named: &str) -> Option<Box<RawValue>> {
    let mut text = String::from("{");
    for member in row.members() {
        let name = String::from_utf8_lossy(row.key(member));
        if name == named || name.strip_prefix(named).is_some_and(|rest| rest.starts_with('@')) {
            continue;
        }
        if text.len() > 1 {
            text.push(',');
        }
        text.push_str(&String::from_utf8_lossy(&set[member.key_start as usize - 1..member.value_end as usize]));
    }
    text.push('}');
    RawValue::from_string(text).ok()
}

/// The note of a row that is made by us, beside what else was done differently.
pub(crate) fn without_creator(note: Option<String>) -> String {
    let creator = left_out_as("its creator", CREATOR_LOST);
    note.map_or_else(|| format!("{WRITTEN_WITHOUT}{creator}"), |note| format!("{note}, {creator}"))
}

/// Two notes of the same row as one.
pub(crate) fn both(note: Option<String>, other: &str) -> String {
    let left_out = other.strip_prefix(WRITTEN_WITHOUT).unwrap_or(other);
    note.map_or_else(|| other.to_string(), |note| format!("{note}, {left_out}"))
}

const WRITTEN_WITHOUT: &str = "written without ";

/// A member that was left out, and why, as notes say it.
pub(crate) fn left_out_as(member: &str, why: &str) -> String {
    format!("{member} ({why})")
}

/// The note of a row that was written without some of its values.
pub(crate) fn written_without(left_out: &[String]) -> String {
    format!("{WRITTEN_WITHOUT}{}", left_out.join(", "))
}

/// An operation as it was sent according to its note; `None` if the note says nothing of the kind.
pub(crate) fn as_noted(op: &Op, note: &str) -> Option<Op> {
    let mut sent = op.clone();
    for part in note.strip_prefix(WRITTEN_WITHOUT)?.split(", ") {
        let (member, _) = part.split_once(" (")?;
        let values = sent.set.take()?;
        let bytes = values.get().as_bytes();
        let mut members = Vec::new();
        scan(bytes, &mut members).ok()?;
        sent.set = without(bytes, &Row::new(bytes, &members), member);
    }
    Some(sent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_leads_back_to_what_was_sent() {
        let op = |set: &str| -> Op {
            let text = format!(
                r#"{{"n":0,"step":"rows","wave":0,"table":"contact","do":"create","key":{{"id":"0fe1c2d3-a4b5-46c7-88d9-eafb0c1d2e3f"}},
                    "set":{set},"guard":"absent"}}"#
            );
            serde_json::from_str(&text).unwrap()
        };
        let planned =
            op(r#"{"name":"A","_ownerid_value":"1","_ownerid_value@x.lookuplogicalname":"systemuser","_a_value":"2"}"#);
        let note =
            written_without(&[left_out_as("_ownerid_value", OWNER_REFUSED), left_out_as("_a_value", TARGET_MISSING)]);
        let sent = as_noted(&planned, &note).unwrap();
        assert_eq!(sent.set.unwrap().get(), r#"{"name":"A"}"#);
        assert!(as_noted(&planned, "the row has changed").is_none());
        let owner = written_without(&[left_out_as("_ownerid_value", OWNER_REFUSED)]);
        let reference = written_without(&[left_out_as("_a_value", TARGET_MISSING)]);
        let sent = as_noted(&planned, &both(Some(reference), &owner)).unwrap();
        assert_eq!(sent.set.unwrap().get(), r#"{"name":"A"}"#);
        assert_eq!(both(None, &owner), owner);
    }
}
