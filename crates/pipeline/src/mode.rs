//! How each table is to be read, decided from what the snapshot before left behind. Plain functions on values.

use std::collections::HashMap;

use dynavault_model::{SchemaDrift, TableMode, TableSchema};
use dynavault_vault::{Manifest, TableManifest};
use serde::Serialize;

/// How a table is to be read, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedMode {
    /// The mode.
    pub mode: TableMode,
    /// Why not the cheaper one.
    pub reason: Option<String>,
}

/// Tables of a manifest by name.
pub fn prior_tables(manifest: Option<&Manifest>) -> HashMap<&str, &TableManifest> {
    manifest
        .map(|manifest| manifest.tables.iter().map(|table| (table.table.as_str(), table)).collect())
        .unwrap_or_default()
}

/// What is known of a table before it is read.
pub(crate) struct Known<'a> {
    pub(crate) prior: Option<&'a TableManifest>,
    /// Schema of the snapshot before, if it can be had.
    pub(crate) prior_schema: Option<&'a TableSchema>,
    /// Whether the rows of the snapshot before can be compared with.
    pub(crate) state: bool,
    /// Why nothing may be built upon what the snapshot before has.
    pub(crate) unusable: Option<&'a str>,
    /// The operator asked for everything to be read again.
    pub(crate) full: bool,
}

/// Decides the mode of a table.
pub(crate) fn decide(schema: &TableSchema, known: &Known<'_>) -> PlannedMode {
    let Some(prior) = known.prior else {
        return PlannedMode { mode: TableMode::Full, reason: None };
    };
    if let Some(why) = known.unusable {
        return PlannedMode { mode: TableMode::Full, reason: Some(format!("{why}; everything is stored again")) };
    }
    if !known.state {
        // Rows could be added to those of the snapshot before, but nobody could count what the sum is.
        let reason = "the rows of the snapshot before are not known here, so all are stored again".to_string();
        return PlannedMode { mode: TableMode::Full, reason: Some(reason) };
    }
    let compare = |reason: &str| PlannedMode { mode: TableMode::Sweep, reason: Some(reason.into()) };
    if known.full {
        return compare("a full read was asked for");
    }
    if prior.coverage.refused > 0 {
        // A change token never brings back what did not change: the hole would stay and look closed.
        return compare("rows or files were refused in the snapshot before");
    }
    if !schema.tracked {
        return compare("the service does not track changes of this table");
    }
    if prior.delta.is_none() {
        return compare("the snapshot before has no change token");
    }
    match known.prior_schema {
        Some(before) if same_columns(before, schema) => PlannedMode { mode: TableMode::Delta, reason: None },
        Some(_) => compare("the table's columns have changed, and a change token belongs to its columns"),
        None => compare("the columns of the snapshot before cannot be read here"),
    }
}

/// Whether a change token of the one belongs to the other.
pub(crate) fn same_columns(a: &TableSchema, b: &TableSchema) -> bool {
    crate::progress::shape(a) == crate::progress::shape(b)
}

/// How the columns differ.
pub(crate) fn drift(before: Option<&TableSchema>, new_table: bool, now: &TableSchema) -> Option<SchemaDrift> {
    let Some(before) = before else {
        return new_table.then(|| SchemaDrift { new_table: true, ..SchemaDrift::default() });
    };
    let kinds = |schema: &TableSchema| -> HashMap<String, String> {
        schema.columns.iter().map(|column| (column.name.clone(), column.kind.clone())).collect()
    };
    let (old, new) = (kinds(before), kinds(now));
    let mut drift = SchemaDrift {
        added: new.keys().filter(|name| !old.contains_key(*name)).cloned().collect(),
        removed: old.keys().filter(|name| !new.contains_key(*name)).cloned().collect(),
        retyped: new
            .iter()
            .filter(|(name, kind)| old.get(*name).is_some_and(|was| was != *kind))
            .map(|(name, _)| name.clone())
            .collect(),
        new_table: false,
    };
    drift.added.sort();
    drift.removed.sort();
    drift.retyped.sort();
    (!drift.is_empty()).then_some(drift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema() -> TableSchema {
        serde_json::from_value(serde_json::json!({
            "table": {"platform": "ce", "name": "account"}, "entity_set": "accounts", "key": ["accountid"],
            "columns": [], "content": [], "tracked": true, "page_rows_max": 5000, "definition": null
        }))
        .unwrap()
    }

    fn prior(refused: u64) -> TableManifest {
        serde_json::from_value(serde_json::json!({
            "table": "account", "entity_set": "accounts", "key": ["accountid"], "mode": "full",
            "status": "succeeded", "captured_by": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "schema": "", "segments": [],
            "live_rows": 1, "coverage": {"expected": null, "captured": 1, "refused": refused, "reason": null},
            "delta": {"link": "l", "time": "2026-01-01T00:00:00Z"},
            "window": {"first_read": "2026-01-01T00:00:00Z", "last_read": "2026-01-01T00:00:00Z", "skew_seconds": null}
        }))
        .unwrap()
    }

    #[test]
    fn a_table_with_refused_rows_is_compared_in_full_by_the_next_run() {
        let schema = schema();
        let mode = |refused: u64| {
            let prior = prior(refused);
            let (prior, prior_schema) = (Some(&prior), Some(&schema));
            decide(&schema, &Known { prior, prior_schema, state: true, unusable: None, full: false }).mode
        };
        assert_eq!(mode(0), TableMode::Delta);
        assert_eq!(mode(3), TableMode::Sweep);
    }

    #[test]
    fn nothing_is_built_upon_rows_that_are_not_known_or_not_whole() {
        let (schema, prior) = (schema(), prior(0));
        let decided = |state: bool, unusable: Option<&str>, full: bool| {
            let (prior, prior_schema) = (Some(&prior), Some(&schema));
            decide(&schema, &Known { prior, prior_schema, state, unusable, full })
        };
        for full in [false, true] {
            assert_eq!(decided(false, None, full).mode, TableMode::Full);
            let planned = decided(true, Some("a segment is missing"), full);
            assert_eq!(planned.mode, TableMode::Full);
            assert!(planned.reason.unwrap().starts_with("a segment is missing; "));
        }
        assert_eq!(decided(true, None, true).mode, TableMode::Sweep);
    }
}
