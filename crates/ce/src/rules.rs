//! What may be written into a table, from the service's own metadata and what its documentation says beside it.
//!
//! ```text
//!  metadata (create, update, source type, targets, length, choices)  ─┐
//!  columns the service manages whatever the metadata says (6.6)       ─┼─▶ TableRules
//!  tables and rows that come into being in their own way (6.5, 8)     ─┘
//! ```
//!
//! A column is written only where the metadata says that it may be: metadata of an older service that does not say leaves
//! columns out, and the plan shows which. Section numbers are those of the `dataverse` protocol notes.

mod birth;
pub(crate) mod state;
mod treatment;

use dynavault_model::{
    Column, ColumnKind, ColumnRule, ContentColumn, ContentKind, Relationship, TableRules, TableSchema,
};

use crate::definition::{Attribute, Definition};

pub(crate) use birth::birth;

/// Set by the service, whatever the metadata says of them (section 6.6). The last three belong to processes that are no longer
/// kept on the row, and writing them can be refused.
const SERVER_SET: &[&str] = &[
    "createdon",
    "createdby",
    "createdonbehalfby",
    "modifiedon",
    "modifiedby",
    "modifiedonbehalfby",
    "versionnumber",
    "overriddencreatedon",
    "owningbusinessunit",
    "owninguser",
    "owningteam",
    "organizationid",
    "traversedpath",
    "processid",
    "stageid",
];
/// Lookups that say who did something; they never hold a row back.
const AUTHORSHIP: &[&str] = &["createdby", "createdonbehalfby", "modifiedby", "modifiedonbehalfby"];
/// Column that takes the original creation time.
const CREATED_ON_TAKER: &str = "overriddencreatedon";
/// Ends of the names of what the service keeps beside a file, and beside an image (sections 7.1 and 7.2).
const FILE_COMPANIONS: &[&str] = &["_name"];
const IMAGE_COMPANIONS: &[&str] = &["id", "_timestamp", "_url"];

/// The rules of a table. Pure.
pub(crate) fn rules(schema: &TableSchema) -> TableRules {
    let definition = Definition::of(schema);
    let table = schema.table.name.as_str();
    let state = state::rule(table, &definition);
    let captured = schema.columns.iter().map(|column| {
        let rule = column_rule(table, schema, &definition, column);
        match &state {
            // Rows are born in their first state, and a state of the body is ignored or refused (section 6.5).
            Some(state) if rule.member == state.state => {
                ColumnRule { create: false, update: true, required: false, not_written: None, ..rule }
            }
            Some(state) if rule.member == state.status => {
                ColumnRule { create: true, update: true, required: false, not_written: None, ..rule }
            }
            _ => rule,
        }
    });
    let bodies = schema.content.iter().filter(|content| !schema.columns.iter().any(|c| c.name == content.column));
    let columns: Vec<ColumnRule> = captured.chain(bodies.map(body_rule)).collect();
    let writable = |column: &str| columns.iter().find(|rule| rule.column == column && rule.create);
    let owner = definition.attributes().iter().find(|attribute| attribute.kind() == "OwnerType");
    let owner = owner.and_then(|attribute| writable(&attribute.logical_name)).map(|rule| rule.member.clone());
    let has = |column: &str| columns.iter().any(|rule| rule.column == column);
    let takes_created_on = definition.attribute(CREATED_ON_TAKER).is_some_and(|a| a.is_valid_for_create == Some(true));
    TableRules {
        table: table.to_string(),
        treatment: treatment::treatment(table, &definition),
        owner,
        created_on: (takes_created_on && has("createdon")).then(|| (CREATED_ON_TAKER.into(), "createdon".into())),
        created_by: has("createdby").then(|| "_createdby_value".into()),
        guards_versions: definition.is_optimistic_concurrency_enabled == Some(true),
        parents: parents(&definition),
        is_activity: definition.is_activity == Some(true),
        columns,
        state,
    }
}

fn parents(definition: &Definition) -> Vec<Relationship> {
    let own = definition.lookups().iter().filter(|lookup| !AUTHORSHIP.contains(&lookup.referencing_attribute.as_str()));
    own.map(|lookup| Relationship {
        member: format!("_{}_value", lookup.referencing_attribute),
        parent: lookup.referenced_entity.clone(),
        deletes: lookup.deletes(),
        assigns: lookup.assigns(),
    })
    .collect()
}

/// The body of a note or an attachment: not among the captured members, and never written with the row.
fn body_rule(content: &ContentColumn) -> ColumnRule {
    ColumnRule {
        member: content.column.clone(),
        column: content.column.clone(),
        kind: ColumnKind::Content,
        create: false,
        update: false,
        required: false,
        not_written: Some("content"),
    }
}

fn column_rule(table: &str, schema: &TableSchema, definition: &Definition, column: &Column) -> ColumnRule {
    let attribute = definition.attribute(&column.name);
    let is_key = schema.key.contains(&column.member);
    let refused = if is_key { None } else { refused(table, schema, definition, &column.name, attribute) };
    let allowed = |flag: Option<bool>| refused.is_none() && flag == Some(true);
    let create = allowed(attribute.and_then(|attribute| attribute.is_valid_for_create));
    let update = allowed(attribute.and_then(|attribute| attribute.is_valid_for_update))
        && !is_key
        && !is_address_id(&column.name);
    let owner = attribute.is_some_and(|attribute| attribute.kind() == "OwnerType");
    ColumnRule {
        member: column.member.clone(),
        column: column.name.clone(),
        kind: kind(schema, definition, column, attribute),
        create,
        update,
        // Without an owner the caller owns the row.
        required: create && !is_key && !owner && attribute.is_some_and(Attribute::is_system_required),
        not_written: refused.or_else(|| (!create && !update).then_some("read-only")),
    }
}

/// Ids of the address rows that come with an account or a contact: given once, when the row is made (section 8.1).
fn is_address_id(name: &str) -> bool {
    name.starts_with("address") && name.ends_with("_addressid")
}

/// Why a column is not written although the metadata may allow it.
fn refused(
    table: &str,
    schema: &TableSchema,
    definition: &Definition,
    name: &str,
    attribute: Option<&Attribute>,
) -> Option<&'static str> {
    let is_content = schema.content.iter().any(|content| {
        let companions = match content.kind {
            ContentKind::File => FILE_COMPANIONS,
            ContentKind::Image => IMAGE_COMPANIONS,
            ContentKind::Base64Body => &[],
        };
        let rest = name.strip_prefix(content.column.as_str());
        rest.is_some_and(|rest| rest.is_empty() || companions.contains(&rest))
            || (content.kind == ContentKind::Base64Body && content.presence_member == name)
    });
    // Several attachments may share one body, which the service keeps in a row of its own: it comes with the upload.
    if is_content || (table == "activitymimeattachment" && name == "attachmentid") {
        return Some("content");
    }
    // On the instances of a process these columns are its very content.
    let of_process = definition.is_process_instance == Some(true);
    if SERVER_SET.contains(&name) && !(of_process && matches!(name, "traversedpath" | "processid")) {
        return Some("server-set");
    }
    let rollup_companion = ["_date", "_state"]
        .iter()
        .filter_map(|end| name.strip_suffix(end))
        .any(|base| definition.attribute(base).is_some_and(|attribute| attribute.source_type == Some(2)));
    let computed = attribute.is_some_and(|attribute| attribute.is_computed() || attribute.shadow_of.is_some());
    // The rate is copied to a row at each write; only a currency has its own (section 8.5).
    let copied_rate = name == "exchangerate" && table != "transactioncurrency";
    (computed || rollup_companion || copied_rate).then_some("calculated")
}

fn kind(schema: &TableSchema, definition: &Definition, column: &Column, attribute: Option<&Attribute>) -> ColumnKind {
    if schema.key.contains(&column.member) {
        return ColumnKind::Key;
    }
    if schema.content.iter().any(|content| content.column == column.name) {
        return ColumnKind::Content;
    }
    let values = || {
        let mut values: Vec<i64> =
            attribute.map(Attribute::choices).unwrap_or_default().iter().filter_map(|c| c.value).collect();
        values.sort_unstable();
        values
    };
    match column.kind.as_str() {
        "StringType" | "MemoType" => ColumnKind::Text(attribute.and_then(|attribute| attribute.max_length)),
        "PicklistType" | "StateType" | "StatusType" => ColumnKind::Choice { values: values(), multi: false },
        "MultiSelectPicklistType" => ColumnKind::Choice { values: values(), multi: true },
        "LookupType" | "CustomerType" | "OwnerType" => {
            ColumnKind::Lookup { targets: targets(definition, attribute, column) }
        }
        _ => ColumnKind::Value,
    }
}

fn targets(definition: &Definition, attribute: Option<&Attribute>, column: &Column) -> Vec<String> {
    if let Some(targets) =
        attribute.and_then(|attribute| attribute.targets.clone()).filter(|targets| !targets.is_empty())
    {
        return targets;
    }
    if column.kind == "OwnerType" {
        return vec!["systemuser".into(), "team".into()];
    }
    let own = definition.lookups().iter().filter(|lookup| lookup.referencing_attribute == column.name);
    let mut targets: Vec<String> = own.map(|lookup| lookup.referenced_entity.clone()).collect();
    targets.sort_unstable();
    targets.dedup();
    targets
}

#[cfg(test)]
mod tests;
