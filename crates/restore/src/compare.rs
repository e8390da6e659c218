//! Comparing a captured row with the live one, value by value, as bytes.
//!
//! Null and absent are the same; entity tags, row versions and annotations say nothing about content; a lookup is its id and
//! the table it points to. Which side a differing value is taken from is the conflict policy's to say, and for
//! `newer-wins` that of the whole row.

use dynavault_model::{ColumnKind, ColumnRule, Row, RowId, TableRules};
use jiff::Timestamp;

use crate::plan::ConflictPolicy;
use crate::settle::same_value;

/// End of the annotation that names the table a lookup points to (`dataverse` protocol, section 2.4).
const TARGET_ANNOTATION: &str = ".lookuplogicalname";
/// Member with the time of the last change, on every table that has one (`dataverse` protocol, section 6.6).
const MODIFIED_ON: &str = "modifiedon";
/// Members that say who wrote a row, not what it belongs to: they are not followed from row to row.
const WHO: [&str; 9] = [
    "_createdby_value",
    "_modifiedby_value",
    "_createdonbehalfby_value",
    "_modifiedonbehalfby_value",
    "_createdbyexternalparty_value",
    "_modifiedbyexternalparty_value",
    "_ownerid_value",
    "_owninguser_value",
    "_owningteam_value",
];

/// The bytes that stand for nothing.
pub(crate) const NULL: &[u8] = b"null";

/// A value, null where it is absent.
pub(crate) fn value<'a>(row: &Row<'a>, member: &str) -> &'a [u8] {
    row.get(member).unwrap_or(NULL)
}

/// A text value.
pub(crate) fn text(value: &[u8]) -> Option<String> {
    if value.first() == Some(&b'"') { serde_json::from_slice(value).ok() } else { None }
}

/// A whole number.
pub(crate) fn integer(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// The row that a lookup points to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reference {
    pub(crate) id: RowId,
    /// Table; none when neither the row nor the rules say which.
    pub(crate) table: Option<String>,
}

/// Reads a lookup. None when it is null.
pub(crate) fn reference(row: &Row<'_>, member: &str, rule: Option<&ColumnRule>) -> Option<Reference> {
    let id = RowId::from_guid(text(row.get(member)?)?.as_bytes())?;
    let said = row.members().iter().find_map(|candidate| {
        let annotation = row.key(candidate).strip_prefix(member.as_bytes())?;
        let is_target = annotation.first() == Some(&b'@') && annotation.ends_with(TARGET_ANNOTATION.as_bytes());
        is_target.then(|| text(row.value(candidate))).flatten()
    });
    let table = said.or_else(|| match rule.map(|rule| &rule.kind) {
        Some(ColumnKind::Lookup { targets }) if targets.len() == 1 => targets.first().cloned(),
        _ => None,
    });
    Some(Reference { id, table })
}

/// Calls `each` with every lookup of a row that says what the row belongs to.
pub(crate) fn references(row: &Row<'_>, rules: Option<&TableRules>, mut each: impl FnMut(&str, Reference)) {
    let owner = rules.and_then(|rules| rules.owner.as_deref());
    for member in row.members() {
        let Ok(name) = std::str::from_utf8(row.key(member)) else { continue };
        let lookup = name.starts_with('_') && name.ends_with("_value");
        if !lookup || WHO.contains(&name) || owner == Some(name) || name.starts_with("_owning") {
            continue;
        }
        if let Some(reference) = reference(row, name, rules.and_then(|rules| rules.column(name))) {
            each(name, reference);
        }
    }
}

/// Who decides about the values of a row that differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Winner {
    /// The snapshot.
    Snapshot,
    /// The snapshot, where the environment has nothing.
    Fill,
    /// The environment.
    Live,
}

/// Who decides, by the policy and the times of the last changes.
pub(crate) fn winner(policy: ConflictPolicy, captured: &Row<'_>, live: &Row<'_>) -> Winner {
    match policy {
        ConflictPolicy::Skip => Winner::Live,
        ConflictPolicy::Overwrite => Winner::Snapshot,
        ConflictPolicy::FillEmpty | ConflictPolicy::Fail => Winner::Fill,
        ConflictPolicy::NewerWins => {
            let changed = |row: &Row<'_>| text(row.get(MODIFIED_ON)?)?.parse::<Timestamp>().ok();
            match (changed(captured), changed(live)) {
                (Some(captured), Some(live)) if captured > live => Winner::Snapshot,
                _ => Winner::Live,
            }
        }
    }
}

/// What is to be done about one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is as in the snapshot.
    Same,
    /// It is written.
    Write,
    /// It is left alone although it differs.
    Conflict,
}

/// What is to be done about a value. `equal` is for lookups, whose bytes are not all they are.
pub(crate) fn verdict(winner: Winner, captured: &[u8], live: &[u8], equal: Option<bool>) -> Verdict {
    if equal.unwrap_or_else(|| same_value(Some(captured), Some(live))) {
        return Verdict::Same;
    }
    match winner {
        Winner::Snapshot => Verdict::Write,
        Winner::Fill if live == NULL => Verdict::Write,
        Winner::Fill | Winner::Live => Verdict::Conflict,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dynavault_model::scan;

    fn with<T>(json: &str, f: impl FnOnce(&Row<'_>) -> T) -> T {
        let mut members = Vec::new();
        scan(json.as_bytes(), &mut members).unwrap();
        f(&Row::new(json.as_bytes(), &members))
    }

    #[test]
    fn null_and_absent_are_the_same_and_numbers_are_their_bytes() {
        assert_eq!(verdict(Winner::Fill, NULL, NULL, None), Verdict::Same);
        assert_eq!(verdict(Winner::Snapshot, b"1.0", b"1.00", None), Verdict::Write);
        assert_eq!(verdict(Winner::Fill, b"1", NULL, None), Verdict::Write);
        assert_eq!(verdict(Winner::Fill, NULL, b"1", None), Verdict::Conflict);
        assert_eq!(verdict(Winner::Fill, b"2", b"1", None), Verdict::Conflict);
        assert_eq!(verdict(Winner::Live, b"2", NULL, None), Verdict::Conflict);
        assert_eq!(verdict(Winner::Snapshot, NULL, b"1", None), Verdict::Write);
        with(r#"{"a":1}"#, |row| assert_eq!(value(row, "b"), NULL));
    }

    #[test]
    fn a_lookup_is_its_id_and_its_table() {
        let row = r#"{"_a_value":"0FE1C2D3-A4B5-46C7-88D9-EAFB0C1D2E3F","_a_value@Microsoft.Dynamics.CRM.associatednavigationproperty":"x","_a_value@Microsoft.Dynamics.CRM.lookuplogicalname":"contact","_b_value":null,"_c_value":"0fe1c2d3-a4b5-46c7-88d9-eafb0c1d2e3f"}"#;
        with(row, |row| {
            let a = reference(row, "_a_value", None).unwrap();
            assert_eq!(
                (a.id.to_string().as_str(), a.table.as_deref()),
                ("0fe1c2d3-a4b5-46c7-88d9-eafb0c1d2e3f", Some("contact"))
            );
            assert_eq!(reference(row, "_b_value", None), None);
            assert_eq!(reference(row, "_c_value", None).unwrap().table, None);
            let rule = ColumnRule {
                member: "_c_value".into(),
                column: "c".into(),
                kind: ColumnKind::Lookup { targets: vec!["account".into()] },
                create: true,
                update: true,
                required: false,
                not_written: None,
            };
            assert_eq!(reference(row, "_c_value", Some(&rule)).unwrap().table.as_deref(), Some("account"));
        });
    }

    #[test]
    fn who_wrote_a_row_is_not_what_it_belongs_to() {
        let id = "\"0fe1c2d3-a4b5-46c7-88d9-eafb0c1d2e3f\"";
        let row = format!(
            r#"{{"_createdby_value":{id},"_ownerid_value":{id},"_owningbusinessunit_value":{id},"_parentid_value":{id},"plain":{id}}}"#
        );
        let mut found = Vec::new();
        with(&row, |row| references(row, None, |member, _| found.push(member.to_string())));
        assert_eq!(found, ["_parentid_value"]);
    }

    #[test]
    fn the_side_that_was_changed_last_wins() {
        let policy = ConflictPolicy::NewerWins;
        let row = |time: &str| format!(r#"{{"modifiedon":{time}}}"#);
        for (captured, live, expected) in [
            ("\"2024-05-01T00:00:01Z\"", "\"2024-05-01T00:00:00Z\"", Winner::Snapshot),
            ("\"2024-05-01T00:00:00Z\"", "\"2024-05-01T00:00:00Z\"", Winner::Live),
            ("\"2024-05-01T00:00:00.5Z\"", "\"2024-05-01T00:00:00Z\"", Winner::Snapshot),
            ("null", "\"2024-05-01T00:00:00Z\"", Winner::Live),
        ] {
            with(&row(captured), |captured| {
                with(&row(live), |live| assert_eq!(winner(policy, captured, live), expected));
            });
        }
    }
}
