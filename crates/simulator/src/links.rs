//! Links between rows: `$ref` on navigation properties (dataverse 6.2, 6.3).
//!
//! A navigation property leads one of three ways, and each way takes other verbs:
//!
//! | property | kept in | POST | PUT | DELETE |
//! |---|---|---|---|---|
//! | of a lookup | the row itself | - | sets | clears |
//! | of a child table's lookup | the other row | sets there | - | clears there |
//! | of a many-to-many relationship | an intersect row | links | - | unlinks |
//!
//! Intersect rows come and go here alone; their own entity set refuses to write (dataverse 6.3).

use crate::answer::{Answer, Refusal};
use crate::database::RowKey;
use crate::query::Options;
use crate::route::{Request, Verb};
use crate::schema::{Kind, TableDef};
use crate::write::{Body, WriteContext, bad_payload, resolve, row_key, update};

/// Where a navigation property leads.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Way {
    /// Through a lookup of the row towards one kind of target: its cell and the target.
    Lookup { cell: usize, target: String },
    /// To the rows of a table whose lookup names this row: table, cell, and the property there.
    Children { table: usize, cell: usize, navigation: String },
    /// Through an intersect table: the cells of this row's id and of the other's, and the other's table.
    Links { table: usize, own: usize, other: usize, target: String },
}

/// The row of a `$ref` URL and the property it goes through.
pub(crate) struct Reference<'a> {
    pub(crate) table: usize,
    pub(crate) key: &'a str,
    pub(crate) navigation: &'a str,
    /// Key of the other row in `…/{navigation}({other})/$ref`.
    pub(crate) other: Option<&'a str>,
}

/// `POST`, `PUT` and `DELETE {set}({key})/{navigation}/$ref`.
pub(crate) fn reference(
    context: &mut WriteContext<'_>,
    reference: &Reference<'_>,
    request: &Request,
    options: &Options,
) -> Result<Answer, Refusal> {
    let (table, navigation) = (reference.table, reference.navigation);
    let way = find(context, table, navigation).ok_or_else(|| Refusal::no_segment(navigation))?;
    let key = row_key(context, table, reference.key, options)?;
    if context.database.tables[table].get(&key).is_none() {
        return Err(Refusal::no_row(&context.database.tables[table].def.name, &key.id.to_string()));
    }
    match (request.verb, &way) {
        (Verb::Put, Way::Lookup { .. }) => {
            let other = reference_of_body(request)?;
            set_lookup(context, table, &key, navigation, Some(&other))?;
        }
        (Verb::Delete, Way::Lookup { cell, target }) => {
            // Only the property in use clears a lookup with several kinds of target (dataverse 6.2).
            let row = context.database.tables[table].rows.get(&key);
            if row.is_some_and(|row| row.cell(*cell).get(36..) == Some(target)) {
                set_lookup(context, table, &key, navigation, None)?;
            }
        }
        (Verb::Post, Way::Children { table: child, navigation, .. }) => {
            let (found, other) = resolve(context, &reference_of_body(request)?)?;
            check_type(context, found, *child)?;
            let own = context.row_url(table, &key);
            set_lookup(context, found, &other, navigation, Some(&own))?;
        }
        (Verb::Delete, Way::Children { table: child, cell, navigation }) => {
            let other = other_key(context, *child, reference.other, options)?;
            let row = context.database.tables[*child].rows.get(&other);
            if row.is_none_or(|row| row.cell(*cell).get(..36) != Some(key.id.to_string().as_str())) {
                return Err(not_linked(&key, &other));
            }
            set_lookup(context, *child, &other, navigation, None)?;
        }
        (Verb::Post, Way::Links { .. }) => {
            let other = resolve(context, &reference_of_body(request)?)?;
            associate(context, (table, &key), (other.0, &other.1), &way)?;
        }
        (Verb::Delete, Way::Links { target, .. }) => {
            let target = context.database.table(target).ok_or_else(|| Refusal::no_segment(navigation))?;
            let other = other_key(context, target, reference.other, options)?;
            disassociate(context, (table, &key), &other, &way)?;
        }
        _ => {
            return Err(Refusal::new(
                405,
                "0x80060888",
                format!("The navigation property '{navigation}' does not take this method."),
            ));
        }
    }
    Ok(Answer::empty(204))
}

/// Links every member to a row, or unlinks it, through an N:N navigation; members already so are passed over.
pub(crate) fn members(
    context: &mut WriteContext<'_>,
    table: usize,
    key: &RowKey,
    navigation: &str,
    members: &[RowKey],
    joining: bool,
) -> Result<(), Refusal> {
    let Some(way @ Way::Links { .. }) = find(context, table, navigation) else {
        return Err(Refusal::no_segment(navigation));
    };
    let Way::Links { target, .. } = &way else { return Ok(()) };
    let target = context.database.table(target).ok_or_else(|| Refusal::no_segment(navigation))?;
    for member in members {
        let linked = linked(context, key, member, &way).is_some();
        if joining && !linked {
            associate(context, (table, key), (target, member), &way)?;
        } else if !joining && linked {
            disassociate(context, (table, key), member, &way)?;
        }
    }
    Ok(())
}

fn find(context: &WriteContext<'_>, table: usize, navigation: &str) -> Option<Way> {
    let def = &context.database.tables[table].def;
    through_lookup(def, navigation)
        .or_else(|| {
            let mut tables = context.database.tables.iter().enumerate();
            tables.find_map(|(index, entry)| through_links(def, index, &entry.def, navigation))
        })
        .or_else(|| to_children(context, def, navigation))
}

fn through_lookup(def: &TableDef, navigation: &str) -> Option<Way> {
    let owners = ["systemuser".to_owned(), "team".to_owned()];
    def.columns.iter().find_map(|column| {
        let targets = if column.kind == Kind::Owner { &owners[..] } else { column.kind.targets() };
        let target = targets.iter().find(|target| def.navigation(column, target) == navigation)?;
        Some(Way::Lookup { cell: def.cell(&column.name)?, target: target.clone() })
    })
}

fn through_links(def: &TableDef, index: usize, link: &TableDef, navigation: &str) -> Option<Way> {
    let ends = link.ends.as_ref()?;
    let way = |own: &(String, String), other: &(String, String)| {
        Some(Way::Links { table: index, own: link.cell(&own.1)?, other: link.cell(&other.1)?, target: other.0.clone() })
    };
    if ends.first.0 == ends.second.0 {
        // Each role of a self-referential relationship has a property of its own (dataverse 2.4).
        return match navigation.strip_suffix(ends.relationship.as_str()) {
            Some("Referencing") if ends.first.0 == def.name => way(&ends.first, &ends.second),
            Some("Referenced") if ends.first.0 == def.name => way(&ends.second, &ends.first),
            _ => None,
        };
    }
    match navigation == ends.relationship {
        true if ends.first.0 == def.name => way(&ends.first, &ends.second),
        true if ends.second.0 == def.name => way(&ends.second, &ends.first),
        _ => None,
    }
}

fn to_children(context: &WriteContext<'_>, def: &TableDef, navigation: &str) -> Option<Way> {
    // `{child}_{column}_{parent}`, as the metadata spells it.
    let stem = navigation.strip_suffix(&def.name)?.strip_suffix('_')?;
    context.database.tables.iter().enumerate().find_map(|(index, child)| {
        let column = stem.strip_prefix(&child.def.name)?.strip_prefix('_')?;
        let column = child.def.column(column).filter(|column| column.kind.targets().contains(&def.name))?;
        let navigation = child.def.navigation(column, &def.name);
        Some(Way::Children { table: index, cell: child.def.cell(&column.name)?, navigation })
    })
}

/// `@odata.id` of the body; a relative reference counts from the service's root (dataverse 6.2).
fn reference_of_body(request: &Request) -> Result<String, Refusal> {
    Body::parse(&request.body)?.text("@odata.id").ok_or_else(|| bad_payload("The member '@odata.id' is missing."))
}

/// The other row of a removal, from the path or from `$id`.
fn other_key(
    context: &WriteContext<'_>,
    table: usize,
    in_path: Option<&str>,
    options: &Options,
) -> Result<RowKey, Refusal> {
    if let Some(text) = in_path {
        return row_key(context, table, text, options);
    }
    let Some(id) = &options.id else {
        return Err(Refusal::bad_query("The row to be removed is named neither in the path nor by $id."));
    };
    let (found, key) = resolve(context, id)?;
    check_type(context, found, table)?;
    Ok(key)
}

fn check_type(context: &WriteContext<'_>, found: usize, wanted: usize) -> Result<(), Refusal> {
    if found == wanted {
        return Ok(());
    }
    let name = |table: usize| context.database.tables[table].def.name.as_str();
    Err(bad_payload(&format!("The reference leads to '{}' and not to '{}'.", name(found), name(wanted))))
}

fn set_lookup(
    context: &mut WriteContext<'_>,
    table: usize,
    key: &RowKey,
    navigation: &str,
    other: Option<&str>,
) -> Result<(), Refusal> {
    let change = serde_json::json!({ format!("{navigation}@odata.bind"): other }).to_string();
    update(context, table, key, &Body::parse(change.as_bytes())?)
}

/// The intersect row of a pair.
fn linked(context: &WriteContext<'_>, key: &RowKey, with: &RowKey, way: &Way) -> Option<RowKey> {
    let Way::Links { table, own, other, .. } = way else { return None };
    let (this, that) = (cell(key), cell(with));
    let rows = &context.database.tables[*table].rows;
    rows.iter().find(|(_, row)| row.cell(*own) == this && row.cell(*other) == that).map(|(key, _)| key.clone())
}

fn cell(key: &RowKey) -> String {
    format!("\"{}\"", key.id)
}

fn associate(
    context: &mut WriteContext<'_>,
    (table, key): (usize, &RowKey),
    (found, with): (usize, &RowKey),
    way: &Way,
) -> Result<(), Refusal> {
    let Way::Links { table: link, own, other, target } = way else { return Ok(()) };
    let wanted = context.database.table(target).ok_or_else(|| Refusal::no_segment(target))?;
    check_type(context, found, wanted)?;
    context.require("Append", table)?;
    context.require("AppendTo", found)?;
    if context.database.tables[found].get(with).is_none() {
        return Err(Refusal::no_row(target, &with.id.to_string()));
    }
    if linked(context, key, with, way).is_some() {
        return Err(Refusal::new(412, "0x80040237", "Cannot insert duplicate key."));
    }
    // An intersect row has nothing but the two ids and its version (dataverse 6.3).
    let mut cells = vec![String::new(); context.database.tables[*link].def.cells];
    cells[*own] = cell(key);
    cells[*other] = cell(with);
    let id = context.dice.guid().into();
    context.database.put(*link, id, &cells);
    Ok(())
}

fn disassociate(
    context: &mut WriteContext<'_>,
    (table, key): (usize, &RowKey),
    with: &RowKey,
    way: &Way,
) -> Result<(), Refusal> {
    let Way::Links { table: link, .. } = way else { return Ok(()) };
    context.require("Append", table)?;
    let row = linked(context, key, with, way).ok_or_else(|| not_linked(key, with))?;
    context.database.remove(*link, &row);
    Ok(())
}

/// Removing what is not there; 404 is expected, the code is not confirmed (dataverse 6.3).
fn not_linked(key: &RowKey, with: &RowKey) -> Refusal {
    Refusal::new(404, "0x80040217", format!("{} and {} are not associated.", key.id, with.id))
}

#[cfg(test)]
mod tests {
    use super::{Way, through_links, through_lookup};
    use crate::catalogue;

    #[test]
    fn both_roles_of_a_self_reference_and_both_ends_of_others_are_found() {
        let tables = catalogue::tables(false);
        let of = |name: &str| tables.iter().find(|table| table.name == name).unwrap();
        let cells = |table: &str, link: &str, navigation: &str| match through_links(of(table), 0, of(link), navigation)
        {
            Some(Way::Links { own, other, .. }) => Some((own, other)),
            _ => None,
        };
        assert_eq!(cells("account", "new_account_account", "Referencingnew_partner_accounts"), Some((0, 1)));
        assert_eq!(cells("account", "new_account_account", "Referencednew_partner_accounts"), Some((1, 0)));
        assert_eq!(cells("account", "new_account_account", "new_partner_accounts"), None);
        assert_eq!(cells("account", "accountleads", "accountleads_association"), Some((0, 1)));
        assert_eq!(cells("lead", "accountleads", "accountleads_association"), Some((1, 0)));
        assert_eq!(cells("contact", "accountleads", "accountleads_association"), None);
    }

    #[test]
    fn a_lookup_with_several_targets_has_a_property_for_each() {
        let tables = catalogue::tables(false);
        let opportunity = tables.iter().find(|table| table.name == "opportunity").unwrap();
        let target = |navigation: &str| match through_lookup(opportunity, navigation) {
            Some(Way::Lookup { target, .. }) => Some(target),
            _ => None,
        };
        assert_eq!(target("customerid_contact").as_deref(), Some("contact"));
        assert_eq!(target("parentaccountid").as_deref(), Some("account"));
        assert_eq!(target("customerid"), None);
    }
}
