//! How single rows come into being where that differs from the rest of their table (`dataverse`, section 8).

use dynavault_model::{Birth, Row, TableRules};

use super::state;

/// Addresses that come with their parent, by table of the parent (section 8.1).
const BUILT_IN_ADDRESSES: &[(&str, i64)] = &[("account", 2), ("contact", 3), ("lead", 2)];
/// An instance that the service makes from a recurring series (section 6.4).
const RECURRING_INSTANCE: i64 = 2;

/// How one captured row comes into being. Pure.
pub(crate) fn birth(rules: &TableRules, row: &Row<'_>) -> Birth {
    let table = rules.table.as_str();
    if let Some(member) = state::closes(table).filter(|member| text(row, member).is_some()) {
        return Birth::ByState(member);
    }
    match table {
        "customeraddress" | "leadaddress" if is_built_in_address(table, row) => {
            return Birth::WithParent("_parentid_value".into());
        }
        "connection" if row.get("ismaster") == Some(b"false") => {
            return Birth::Mirrored("the service makes the other direction of a connection along with it".into());
        }
        "appointment" if number(row, "instancetypecode") == Some(RECURRING_INSTANCE) => {
            return Birth::Mirrored("the service makes the instances of a recurring series from the series".into());
        }
        "team" if row.get("isdefault") == Some(b"true") => {
            return Birth::Never("the default team comes with its business unit".into());
        }
        // Queues of a user or a team carry its name in angle brackets (section 8.8).
        "queue" if text(row, "name").is_some_and(|name| name.starts_with('<') && name.ends_with('>')) => {
            return Birth::Never("the default queue comes with its user or team".into());
        }
        _ => {}
    }
    // Instances of a business process come with their row, under an id of their own (section 8.9).
    let is_process = ["bpf_name", "bpf_duration"].iter().any(|member| rules.column(member).is_some());
    if is_process && row.get("activestageid").or_else(|| row.get("_activestageid_value")).is_some() {
        return Birth::Never("the service makes the process instance along with its row".into());
    }
    let keys = rules.columns.iter().filter(|column| column.kind == dynavault_model::ColumnKind::Key);
    if keys.clone().any(|key| !key.create) {
        return Birth::Never("the service does not take new rows of this table with their own ids".into());
    }
    Birth::Written
}

fn is_built_in_address(table: &str, row: &Row<'_>) -> bool {
    let parent = text(row, "_parentid_value@Microsoft.Dynamics.CRM.lookuplogicalname");
    let parent = parent.as_deref().unwrap_or(if table == "leadaddress" { "lead" } else { "account" });
    let built_in = BUILT_IN_ADDRESSES.iter().find(|(name, _)| *name == parent).map_or(0, |(_, count)| *count);
    number(row, "addressnumber").is_some_and(|number| (1..=built_in).contains(&number))
}

fn text(row: &Row<'_>, member: &str) -> Option<String> {
    row.get(member).and_then(|value| serde_json::from_slice(value).ok())
}

fn number(row: &Row<'_>, member: &str) -> Option<i64> {
    row.get(member).and_then(|value| serde_json::from_slice(value).ok())
}
