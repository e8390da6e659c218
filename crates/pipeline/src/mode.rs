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
    /// The operator asked for everything to be read again.
    pub(crate) full: bool,
}

/// Decides the mode of a table.
pub(crate) fn decide(schema: &TableSchema, known: &Known<'_>) -> PlannedMode {
    let Some(prior) = known.prior else {
        return PlannedMode { mode: TableMode::Full, reason: None };
    };
    let compare = |reason: &str| {
        if known.state {
            PlannedMode { mode: TableMode::Sweep, reason: Some(reason.into()) }
        } else {
            let reason =
                format!("{reason}; the rows of the snapshot before cannot be compared with here, so all are stored");
            PlannedMode { mode: TableMode::Full, reason: Some(reason) }
        }
    };
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

    #[test]
    fn a_table_with_refused_rows_is_compared_in_full_by_the_next_run() {
        let schema: TableSchema = serde_json::from_value(serde_json::json!({
            "table": {"platform": "ce", "name": "account"}, "entity_set": "accounts", "key": ["accountid"],
            "columns": [], "content": [], "tracked": true, "page_rows_max": 5000, "definition": null
        }))
        .unwrap();
        let prior = |refused: u64| -> TableManifest {
            serde_json::from_value(serde_json::json!({
                "table": "account", "entity_set": "accounts", "key": ["accountid"], "mode": "full",
                "status": "succeeded", "captured_by": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "schema": "", "segments": [],
                "live_rows": 1, "coverage": {"expected": null, "captured": 1, "refused": refused, "reason": null},
                "delta": {"link": "l", "time": "2026-01-01T00:00:00Z"},
                "window": {"first_read": "2026-01-01T00:00:00Z", "last_read": "2026-01-01T00:00:00Z", "skew_seconds": null}
            }))
            .unwrap()
        };
        let mode = |refused: u64| {
            let prior = prior(refused);
            decide(&schema, &Known { prior: Some(&prior), prior_schema: Some(&schema), state: true, full: false }).mode
        };
        assert_eq!(mode(0), TableMode::Delta);
        assert_eq!(mode(3), TableMode::Sweep);
    }
}
