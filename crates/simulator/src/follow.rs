//! Values that follow from other rows: the service sets them whoever writes.
//!
//! The unit of an owner, money in the base currency, the address rows of an account, the other end of a
//! connection. The first data set, random edits and the Web API all keep to them.

use crate::database::{Database, RowKey, Table};
use crate::guid::Guid;
use crate::rows::set;
use crate::schema::{Kind, TableDef};

/// Digits of an exchange rate after the point.
const RATE_SCALE: u32 = 10;

fn unquoted(cell: &str) -> Option<Guid> {
    Guid::parse(cell.trim_matches('"'))
}

/// The cell of a row a lookup leads to.
fn looked_up<'a>(database: &'a Database, lookup: &str, column: &str) -> Option<&'a str> {
    let (id, target) = (lookup.get(..36).and_then(Guid::parse)?, lookup.get(36..)?);
    let table = &database.tables[database.table(target)?];
    Some(table.rows.get(&id.into())?.cell(table.def.cell(column)?))
}

/// The unit, the user and the team of a row are those of its owner (dataverse 6.6).
pub(crate) fn follow_owner(database: &Database, def: &TableDef, cells: &mut [String]) {
    let Some(owner) = def.cell("ownerid").map(|cell| cells[cell].clone()) else { return };
    let unit = looked_up(database, &owner, "businessunitid").unwrap_or_default().to_owned();
    set(def, cells, "owningbusinessunit", Some(unit));
    let is_user = owner.ends_with("systemuser");
    let (user, team) = if is_user { (owner, String::new()) } else { (String::new(), owner) };
    set(def, cells, "owninguser", Some(user));
    set(def, cells, "owningteam", Some(team));
}

/// Money columns with their cell in the base currency and their scale.
pub(crate) fn money_columns(def: &TableDef) -> impl Iterator<Item = (usize, usize, u32)> {
    def.columns.iter().filter_map(|column| match column.kind {
        Kind::Money { precision } => {
            Some((def.cell(&column.name)?, def.cell(&format!("{}_base", column.name))?, precision))
        }
        _ => None,
    })
}

/// The currency of the organization, as a lookup holds it.
pub(crate) fn base_currency(database: &Database) -> Option<String> {
    let table = &database.tables[database.table("organization")?];
    let cell = table.def.cell("basecurrencyid")?;
    table.rows.values().next().map(|row| row.cell(cell).to_owned())
}

/// The rate of the currency at this moment, and every amount at that rate (dataverse 8.5).
pub(crate) fn follow_currency(database: &Database, def: &TableDef, cells: &mut [String]) {
    let (Some(currency), Some(rate)) = (def.cell("transactioncurrencyid"), def.cell("exchangerate")) else { return };
    let current = looked_up(database, &cells[currency], "exchangerate").unwrap_or_default().to_owned();
    cells[rate] = current;
    for (amount, base, scale) in money_columns(def) {
        cells[base] = if cells[amount].is_empty() {
            String::new()
        } else {
            divide(&cells[amount], &cells[rate], scale).unwrap_or_else(|| cells[amount].clone())
        };
    }
}

/// A decimal as a whole number of its smallest units; `None` for other notations.
fn units(text: &str, scale: u32) -> Option<i128> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if fraction.len() > scale as usize {
        return None;
    }
    let whole: i128 = whole.parse().ok()?;
    let padded = format!("{fraction:0<width$}", width = scale as usize);
    let fraction: i128 = if padded.is_empty() { 0 } else { padded.parse().ok()? };
    let units = whole * 10_i128.pow(scale) + fraction;
    Some(if text.starts_with('-') { -units } else { units })
}

fn divide(amount: &str, rate: &str, scale: u32) -> Option<String> {
    let (amount, rate) = (units(amount, scale)?, units(rate, RATE_SCALE)?);
    if rate <= 0 {
        return None;
    }
    let scaled = amount.checked_mul(10_i128.pow(RATE_SCALE))?;
    // Halves go away from zero.
    let half = if amount < 0 { -rate / 2 } else { rate / 2 };
    let result = (scaled + half) / rate;
    let unit = 10_i128.pow(scale);
    let sign = if result < 0 { "-" } else { "" };
    let (whole, fraction) = (result.abs() / unit, result.abs() % unit);
    Some(if scale == 0 {
        format!("{sign}{whole}")
    } else {
        format!("{sign}{whole}.{fraction:0>width$}", width = scale as usize)
    })
}

/// Names made of other columns.
pub(crate) fn follow_names(database: &Database, def: &TableDef, cells: &mut [String]) {
    match def.name.as_str() {
        "contact" | "lead" => {
            let part = |name: &str| {
                let raw = def.cell(name).map(|cell| cells[cell].as_str()).unwrap_or_default();
                raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default().to_owned()
            };
            let (first, last) = (part("firstname"), part("lastname"));
            let gap = if first.is_empty() || last.is_empty() { "" } else { " " };
            let full = format!("\"{first}{gap}{last}\"");
            set(def, cells, "fullname", (full.len() > 2).then_some(full));
        }
        "connection" => {
            // A connection is called after what it leads to.
            let other = def.cell("record2id").map(|cell| cells[cell].clone()).unwrap_or_default();
            let target = other.get(36..).and_then(|target| database.table(target));
            let column = target.and_then(|target| database.tables[target].def.primary_name.clone());
            let name = column.and_then(|column| looked_up(database, &other, &column).map(str::to_owned));
            set(def, cells, "name", name);
        }
        _ if def.activity => set(def, cells, "activitytypecode", Some(format!("\"{}\"", def.name))),
        _ => {}
    }
}

/// A status belongs to its state; one that does not becomes the default of the state (dataverse 2.2).
pub(crate) fn follow_state(def: &TableDef, cells: &mut [String]) {
    let (Some(state), Some(status)) = (def.cell("statecode"), def.cell("statuscode")) else { return };
    let Ok(of) = cells[state].parse::<i32>() else { return };
    let current = cells[status].parse::<i32>().ok();
    if !def.statuses(of).any(|status| Some(status) == current) {
        cells[status] = def.statuses(of).next().map(|status| status.to_string()).unwrap_or_default();
    }
}

/// Cells of a parent's embedded address and the cells of the address row they are the same as (dataverse 8.1).
pub(crate) fn address_columns(parent: &TableDef, address: &TableDef, number: u32) -> Vec<(usize, usize)> {
    let prefix = format!("address{number}_");
    let embedded = parent.columns.iter().filter_map(|column| {
        let name = column.name.strip_prefix(&prefix).filter(|name| *name != "addressid")?;
        Some((parent.cell(&column.name)?, address.cell(name)?))
    });
    embedded.collect()
}

/// A change of an embedded address changes the address row.
pub(crate) fn follow_addresses(database: &mut Database, table: usize, key: &RowKey) {
    let Some(address) = database.table("customeraddress") else { return };
    let mut changed = Vec::new();
    {
        let (parent, addresses) = (&database.tables[table], &database.tables[address]);
        let Some(row) = parent.rows.get(key) else { return };
        for number in 1_u32.. {
            let Some(cell) = parent.def.cell(&format!("address{number}_addressid")) else { break };
            let Some(id) = unquoted(row.cell(cell)) else { continue };
            let Some(old) = addresses.rows.get(&id.into()) else { continue };
            let differing: Vec<(usize, String)> = address_columns(&parent.def, &addresses.def, number)
                .into_iter()
                .filter(|(from, to)| row.cell(*from) != old.cell(*to))
                .map(|(from, to)| (to, row.cell(from).to_owned()))
                .collect();
            if !differing.is_empty() {
                changed.push((RowKey::from(id), differing));
            }
        }
    }
    write_all(database, address, changed);
}

/// A change of an address row changes what its parent has embedded.
pub(crate) fn follow_parent(database: &mut Database, table: usize, key: &RowKey) {
    if database.tables[table].def.name != "customeraddress" {
        return;
    }
    let mut changed = None;
    {
        let entry = &database.tables[table];
        let (Some(row), Some(number), Some(parent)) =
            (entry.rows.get(key), entry.def.cell("addressnumber"), entry.def.cell("parentid"))
        else {
            return;
        };
        let (number, parent) = (row.cell(number), row.cell(parent));
        let (Ok(number), Some(id)) = (number.parse::<u32>(), parent.get(..36).and_then(Guid::parse)) else { return };
        let Some(index) = parent.get(36..).and_then(|target| database.table(target)) else { return };
        let owner = &database.tables[index];
        let Some(old) = owner.rows.get(&id.into()) else { return };
        // Only the built-in addresses are embedded.
        let is_embedded = owner
            .def
            .cell(&format!("address{number}_addressid"))
            .is_some_and(|cell| unquoted(old.cell(cell)) == Some(key.id));
        let differing: Vec<(usize, String)> = address_columns(&owner.def, &entry.def, number)
            .into_iter()
            .filter(|(to, from)| is_embedded && row.cell(*from) != old.cell(*to))
            .map(|(to, from)| (to, row.cell(from).to_owned()))
            .collect();
        if !differing.is_empty() {
            changed = Some((index, vec![(RowKey::from(id), differing)]));
        }
    }
    if let Some((index, changed)) = changed {
        write_all(database, index, changed);
    }
}

fn write_all(database: &mut Database, table: usize, changed: Vec<(RowKey, Vec<(usize, String)>)>) {
    for (key, values) in changed {
        database.update(table, &key, |_, cells| {
            for (cell, value) in values {
                cells[cell] = value;
            }
        });
    }
}

/// Adds the other end of a connection: the same, with its ends exchanged, and not the master (dataverse 8.7).
pub(crate) fn reciprocal(database: &mut Database, table: usize, key: &RowKey, id: Guid) {
    let def = database.tables[table].def.clone();
    let Some(row) = database.tables[table].rows.get(key) else { return };
    let mut cells = row.cells(def.cells);
    if let (Some(one), Some(two)) = (def.cell("record1id"), def.cell("record2id")) {
        cells.swap(one, two);
    }
    set(&def, &mut cells, "ismaster", Some("false".to_owned()));
    set(&def, &mut cells, "relatedconnectionid", Some(format!("{}connection", key.id)));
    follow_names(database, &def, &mut cells);
    database.put(table, id.into(), &cells);
    database.update(table, key, |def, cells| {
        set(def, cells, "ismaster", Some("true".to_owned()));
        set(def, cells, "relatedconnectionid", Some(format!("{id}connection")));
    });
}

/// Whether the two ends of a connection are connected already (dataverse 8.7); false for other tables.
pub(crate) fn has_connection(table: &Table, cells: &[String]) -> bool {
    let ends = (table.def.cell("record1id"), table.def.cell("record2id"));
    let (Some(one), Some(two)) = ends else { return false };
    table.rows.values().any(|row| row.cell(one) == cells[one] && row.cell(two) == cells[two])
}

/// Whether a random row would be one too many: a second connection of two ends, a second queue item of an object.
pub(crate) fn is_surplus(table: &Table, cells: &[String]) -> bool {
    let object = table.def.cell("objectid").filter(|_| table.def.name == "queueitem");
    has_connection(table, cells)
        || object.is_some_and(|object| table.rows.values().any(|row| row.cell(object) == cells[object]))
}

/// Whether an object waits in a queue already (dataverse 8.8).
pub(crate) fn has_active_item(database: &Database, table: usize, object: &str) -> bool {
    let entry = &database.tables[table];
    let (Some(of), Some(state)) = (entry.def.cell("objectid"), entry.def.cell("statecode")) else { return false };
    !object.is_empty() && entry.rows.values().any(|row| row.cell(of) == object && row.cell(state) == "0")
}

/// Whether a row would stand above itself with this parent.
pub(crate) fn would_loop(table: &Table, cell: usize, id: Guid, parent: &str) -> bool {
    let mut at = parent.get(..36).and_then(Guid::parse);
    // A chain is never longer than the table.
    for _ in 0..=table.rows.len() {
        match at {
            None => return false,
            Some(above) if above == id => return true,
            Some(above) => {
                let row = table.rows.get(&above.into());
                at = row.and_then(|row| row.cell(cell).get(..36)).and_then(Guid::parse);
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::divide;

    #[test]
    fn amounts_are_divided_exactly() {
        assert_eq!(divide("20000.0000", "1.0834000000", 4).unwrap(), "18460.4024");
        assert_eq!(divide("-0.0100", "1.0000000000", 4).unwrap(), "-0.0100");
        assert_eq!(divide("99999999999.0000000000", "163.2500000000", 10).unwrap(), "612557427.2526799387");
        assert_eq!(divide("1.00", "", 2), None);
    }
}
