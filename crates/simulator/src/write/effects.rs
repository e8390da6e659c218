//! What the service does by itself when a row is written (dataverse 6.6, 6.7, 8.1, 8.5, 8.7).

use crate::answer::Refusal;
use crate::catalogue::organization_id;
use crate::database::RowKey;
use crate::follow::{self, address_columns, follow_currency, follow_names, follow_owner, reciprocal};
use crate::guid::Guid;
use crate::rows::{finish, set};
use crate::schema::TableDef;
use crate::values::change_time;

use super::caller::check_active;
use super::{Body, WriteContext};

/// Time of the change about to be made; the simulated clock ticks once per change.
fn now(context: &WriteContext<'_>) -> String {
    change_time(context.database.version + 1)
}

fn stamp(context: &WriteContext<'_>, table: usize, cells: &mut [String], on: &str, by: &str, behalf: &str) {
    let def = &context.database.tables[table].def;
    set(def, cells, on, Some(now(context)));
    set(def, cells, by, Some(format!("{}systemuser", context.caller.id)));
    set(def, cells, behalf, context.caller.on_behalf.map(|user| format!("{user}systemuser")));
}

/// Who changed the row, and when.
pub(crate) fn stamp_update(context: &WriteContext<'_>, table: usize, cells: &mut [String]) {
    stamp(context, table, cells, "modifiedon", "modifiedby", "modifiedonbehalfby");
}

/// Who made the row, and when.
pub(super) fn stamp_create(context: &WriteContext<'_>, table: usize, cells: &mut [String]) {
    stamp(context, table, cells, "createdon", "createdby", "createdonbehalfby");
    stamp_update(context, table, cells);
    let def = &context.database.tables[table].def;
    if def.name != "organization" {
        let organization = organization_id(context.shared.config.environment);
        set(def, cells, "organizationid", Some(format!("{organization}organization")));
    }
}

/// Gives a row its owner and what follows from it; a new owner must be able to own (dataverse 6.7).
pub(super) fn own(
    context: &WriteContext<'_>,
    table: usize,
    cells: &mut [String],
    before: Option<&[String]>,
) -> Result<(), Refusal> {
    let def = &context.database.tables[table].def;
    let Some(owner) = def.cell("ownerid") else { return Ok(()) };
    let caller = format!("{}systemuser", context.caller.id);
    if cells[owner].is_empty() {
        cells[owner].clone_from(&caller);
    }
    let is_new = before.map_or(cells[owner] != caller, |before| before[owner] != cells[owner]);
    if is_new {
        context.require("Assign", table)?;
        if let (Some(user), Some("systemuser")) = (cells[owner].get(..36).and_then(Guid::parse), cells[owner].get(36..))
        {
            check_active(context, user)?;
        }
    }
    follow_owner(context.database, def, cells);
    Ok(())
}

/// Computes the columns that follow from others.
pub(super) fn derive(context: &WriteContext<'_>, table: usize, cells: &mut [String]) -> Result<(), Refusal> {
    let def = &context.database.tables[table].def;
    let has_money = follow::money_columns(def).any(|(amount, ..)| !cells[amount].is_empty());
    let currency = def.cell("transactioncurrencyid");
    if has_money && currency.is_some_and(|cell| cells[cell].is_empty()) {
        return Err(Refusal::new(400, "0x80048cfb", "The currency cannot be null when money columns have values."));
    }
    finish(def, cells);
    crate::uploads::check_document(context, table, cells)?;
    follow_currency(context.database, def, cells);
    follow_names(context.database, def, cells);
    Ok(())
}

/// The currency of a new row that names none: the base currency of the organization.
pub(super) fn default_currency(context: &WriteContext<'_>, def: &TableDef, cells: &mut [String]) {
    if let Some(cell) = def.cell("transactioncurrencyid").filter(|cell| cells[*cell].is_empty())
        && let Some(base) = follow::base_currency(context.database)
    {
        cells[cell] = base;
    }
}

/// Ids of the addresses a new row will bring; supplied ones are taken when they are free (dataverse 8.1).
pub(super) fn claim_addresses(
    context: &mut WriteContext<'_>,
    def: &TableDef,
    cells: &mut [String],
) -> Result<Vec<(Guid, u32)>, Refusal> {
    let mut claimed = Vec::new();
    let Some(addresses) = context.database.table("customeraddress") else { return Ok(claimed) };
    for number in 1_u32.. {
        let Some(cell) = def.cell(&format!("address{number}_addressid")) else { break };
        let id = Guid::parse(cells[cell].trim_matches('"')).unwrap_or_else(|| context.dice.guid());
        let taken = context.database.tables[addresses].rows.contains_key(&id.into());
        if taken || claimed.iter().any(|(other, _)| *other == id) {
            return Err(Refusal::new(412, "0x80040237", "Cannot insert duplicate key. (customeraddress)"));
        }
        cells[cell] = format!("\"{id}\"");
        claimed.push((id, number));
    }
    Ok(claimed)
}

/// Makes the address rows of a new account or contact, filled or not (dataverse 8.1).
pub(super) fn bear_addresses(context: &mut WriteContext<'_>, table: usize, key: &RowKey, claimed: Vec<(Guid, u32)>) {
    let Some(address) = context.database.table("customeraddress") else { return };
    for (id, number) in claimed {
        let (parent, def) = (&context.database.tables[table], &context.database.tables[address].def);
        let Some(row) = parent.rows.get(key) else { return };
        let mut cells = vec![String::new(); def.cells];
        for (from, to) in address_columns(&parent.def, def, number) {
            row.cell(from).clone_into(&mut cells[to]);
        }
        set(def, &mut cells, "parentid", Some(format!("{}{}", key.id, parent.def.name)));
        set(def, &mut cells, "objecttypecode", Some(format!("\"{}\"", parent.def.name)));
        set(def, &mut cells, "addressnumber", Some(number.to_string()));
        stamp_create(context, address, &mut cells);
        context.database.put(address, id.into(), &cells);
    }
}

/// Keeps the columns of a parent and its address rows the same, whichever was written (dataverse 8.1).
pub(super) fn follow_addresses(context: &mut WriteContext<'_>, table: usize, key: &RowKey) {
    follow::follow_addresses(context.database, table, key);
    follow::follow_parent(context.database, table, key);
}

/// A connection comes with the same one seen from the other end (dataverse 8.7).
pub(super) fn reciprocate(context: &mut WriteContext<'_>, table: usize, key: &RowKey) {
    if context.database.tables[table].def.name == "connection" {
        let id = context.dice.guid();
        reciprocal(context.database, table, key, id);
    }
}

/// A new owner of a parent becomes the owner of the children whose relationship says so (dataverse 6.7, 6.14).
pub(super) fn assign_children(context: &mut WriteContext<'_>, table: usize, key: &RowKey, before: &[String]) {
    let entry = &context.database.tables[table];
    let Some(cell) = entry.def.cell("ownerid") else { return };
    let Some(owner) = entry.rows.get(key).map(|row| row.cell(cell).to_owned()) else { return };
    if before[cell] == owner {
        return;
    }
    let name = entry.def.name.clone();
    let parent = format!("{}{name}", key.id);
    let mut heirs: Vec<(usize, RowKey)> = Vec::new();
    for (index, child) in context.database.tables.iter().enumerate() {
        let links: Vec<usize> = child
            .def
            .columns
            .iter()
            .filter(|column| column.assigns && column.kind.targets().contains(&name))
            .filter_map(|column| child.def.cell(&column.name))
            .collect();
        if !links.is_empty() {
            let follows = child.rows.iter().filter(|(_, row)| links.iter().any(|link| row.cell(*link) == parent));
            heirs.extend(follows.map(|(key, _)| (index, key.clone())));
        }
    }
    for (index, key) in heirs {
        let entry = &context.database.tables[index];
        let Some(row) = entry.rows.get(&key) else { continue };
        let before = row.cells(entry.def.cells);
        let mut cells = before.clone();
        set(&entry.def, &mut cells, "ownerid", Some(owner.clone()));
        if cells == before {
            continue;
        }
        follow_owner(context.database, &entry.def, &mut cells);
        stamp_update(context, index, &mut cells);
        context.database.put(index, key.clone(), &cells);
        assign_children(context, index, &key, &before);
    }
}

/// A body made by the service itself.
pub(super) fn own_body(members: &serde_json::Value) -> Result<Body, Refusal> {
    Body::parse(members.to_string().as_bytes())
}
