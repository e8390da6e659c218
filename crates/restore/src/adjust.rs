//! Leaving a reference out of a row because the row it points to is missing, or is a user who cannot own it.

use dynavault_model::{ColumnKind, Rejection, RejectionClass, Row, TableRules, scan};
use serde_json::value::RawValue;

use crate::plan::Op;
use crate::settle::is_value;

/// Reason code of a lookup that was left out because its row is missing.
pub(crate) const TARGET_MISSING: &str = "missing-target";
/// Reason code of an owner that was left out; the row then belongs to the user who restores.
pub(crate) const OWNER_REFUSED: &str = "owner-refused";

/// The values of `op` without the lookup that was refused, and that lookup's member; `None` if the message names none of the
/// row's lookups, or the service needs it.
pub(crate) fn without_reference(
    op: &Op,
    rules: &TableRules,
    refusal: &Rejection,
) -> Option<(Box<RawValue>, String)> {
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
    let mut text = String::from("{");
    for member in row.members() {
        let name = String::from_utf8_lossy(row.key(member));
        if name == named || name.strip_prefix(named.as_str()).is_some_and(|rest| rest.starts_with('@')) {
            continue;
        }
        if text.len() > 1 {
            text.push(',');
        }
        text.push_str(&String::from_utf8_lossy(&set[member.key_start as usize - 1..member.value_end as usize]));
    }
    text.push('}');
    Some((RawValue::from_string(text).ok()?, named))
}
