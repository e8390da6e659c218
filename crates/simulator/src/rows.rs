//! Making, changing and removing rows so that they stay consistent with themselves.
//!
//! Values of a row depend on each other: `_base` follows money, `filesize` the content, `objecttypecode` the
//! parent. And rows depend on each other: an account brings its addresses (dataverse 8.1) and takes its
//! children along when it goes (dataverse 6.14). Both the first data set and later edits go through here.

use std::collections::HashSet;

use crate::catalogue::POINTER;
use crate::content::{Content, ContentKind};
use crate::database::{Database, RowKey};
use crate::dice::Dice;
use crate::guid::Guid;
use crate::schema::{Kind, Slot, Storage, TableDef};
use crate::values::{Targets, change_time, value};

impl Targets for Database {
    fn pick(&self, dice: &mut Dice, table: &str) -> Option<String> {
        let table = &self.tables[self.table(table)?];
        table.near(dice.guid()).map(|key| key.id.to_string())
    }
}

/// Cells of a new row.
pub(crate) fn make(dice: &mut Dice, def: &TableDef, targets: &dyn Targets) -> Vec<String> {
    let mut cells = vec![String::new(); def.cells];
    for column in &def.columns {
        // The id of an image shares the cell of the image, which has filled it.
        if let Slot::Cell(cell) | Slot::Thumbnail(cell) = column.slot
            && cells[cell].is_empty()
            && !(column.kind == Kind::Guid && def.columns.iter().any(|image| image.slot == Slot::Thumbnail(cell)))
        {
            cells[cell] = value(dice, &def.name, column, targets);
        }
    }
    finish(dice, def, &mut cells);
    cells
}

fn unquoted(cell: &str) -> Option<Guid> {
    Guid::parse(cell.trim_matches('"'))
}

/// Makes dependent cells follow the ones they depend on.
pub(crate) fn finish(dice: &mut Dice, def: &TableDef, cells: &mut [String]) {
    for column in &def.columns {
        match (&column.kind, column.slot) {
            (Kind::Money { .. }, Slot::Cell(cell)) => {
                if let Some(base) = def.cell(&format!("{}_base", column.name)) {
                    let value = cells[cell].clone();
                    cells[base] = value;
                }
            }
            (Kind::Image, Slot::Thumbnail(cell)) => {
                let id = unquoted(&cells[cell]);
                let stamp = id.map(|id| (638_000_000_000_000_000 + id.fold() % 900_000_000_000_000).to_string());
                set(def, cells, &format!("{}_timestamp", column.name), stamp);
                let url = id.map(|id| {
                    format!("\"/Image/download.aspx?Entity={}&Attribute={}&Id={id}&Full=true\"", def.name, column.name)
                });
                set(def, cells, &format!("{}_url", column.name), url);
            }
            (Kind::File, Slot::Cell(cell)) => {
                let name =
                    unquoted(&cells[cell]).map(|id| format!("\"{}\"", Content::new(id, ContentKind::File).name()));
                set(def, cells, &format!("{}_name", column.name), name);
            }
            (Kind::Body, Slot::Cell(cell)) => {
                // Attachments that share a body carry its id (dataverse 7.3).
                if let Some(shared) = def.cell("attachmentid") {
                    let id = unquoted(&cells[shared]).unwrap_or_else(|| dice.guid());
                    cells[shared] = format!("\"{id}\"");
                    cells[cell] = id.to_string();
                }
                let content = unquoted(&cells[cell]).map(|id| Content::new(id, ContentKind::Body));
                set(def, cells, "filesize", content.map(|content| content.size().to_string()));
                set(def, cells, "filename", content.map(|content| format!("\"{}\"", content.name())));
                set(def, cells, "mimetype", content.map(|content| format!("\"{}\"", content.media_type())));
                set(def, cells, "isdocument", Some(content.is_some().to_string()));
            }
            (Kind::EntityName, Slot::Cell(cell)) => {
                let parent = def.cell("objectid").or_else(|| def.cell("parentid"));
                if let Some(target) = parent.map(|parent| cells[parent].get(36..).unwrap_or_default()) {
                    cells[cell] = if target.is_empty() { String::new() } else { format!("\"{target}\"") };
                }
            }
            _ => {}
        }
    }
}

/// Sets a cell by column name, if the table has that column.
pub(crate) fn set(def: &TableDef, cells: &mut [String], name: &str, value: Option<String>) {
    if let Some(cell) = def.cell(name) {
        cells[cell] = value.unwrap_or_default();
    }
}

/// A key for a new row.
pub(crate) fn new_key(dice: &mut Dice, def: &TableDef) -> RowKey {
    let id = dice.guid();
    let partition = (def.storage == Storage::Elastic).then(|| match dice.below(4) {
        // The default partition is the id itself (dataverse 8.12).
        0 | 1 => id.to_string().into(),
        2 => "device-0042".into(),
        _ => "tenant 'ä' #7".into(),
    });
    RowKey { id, partition }
}

/// Stores a new row and the rows that come into being with it.
pub(crate) fn create(database: &mut Database, dice: &mut Dice, table: usize, key: RowKey, mut cells: Vec<String>) {
    let def = &database.tables[table].def;
    // Two addresses with an account, here one with a contact, filled or not (dataverse 8.1).
    let addresses: u32 = match def.name.as_str() {
        "account" => 2,
        "contact" => 1,
        _ => 0,
    };
    let parent = format!("{}{}", key.id, def.name);
    let mut born = Vec::new();
    for number in 1..=addresses {
        let id = dice.guid();
        set(def, &mut cells, &format!("address{number}_addressid"), Some(format!("\"{id}\"")));
        let city = def.cell(&format!("address{number}_city")).map(|cell| cells[cell].clone()).unwrap_or_default();
        born.push((id, number, city));
    }
    database.put(table, key, &cells);
    let Some(address) = database.table("customeraddress").filter(|_| !born.is_empty()) else { return };
    for (id, number, city) in born {
        let def = &database.tables[address].def;
        let mut cells = make(dice, def, database);
        set(def, &mut cells, "parentid", Some(parent.clone()));
        set(def, &mut cells, "addressnumber", Some(number.to_string()));
        set(def, &mut cells, "city", Some(city));
        finish(dice, def, &mut cells);
        database.put(address, id.into(), &cells);
    }
}

/// Gives a row new values in some writable columns.
pub(crate) fn change(database: &mut Database, dice: &mut Dice, table: usize, key: &RowKey) -> bool {
    let Some(row) = database.tables[table].rows.get(key) else { return false };
    let def = &database.tables[table].def;
    let mut cells = row.cells(def.cells);
    let writable: Vec<usize> = (0..def.columns.len()).filter(|index| is_changeable(def, *index)).collect();
    if writable.is_empty() {
        return false;
    }
    for _ in 0..=dice.index(4) {
        let column = &def.columns[*dice.pick(&writable)];
        if let Slot::Cell(cell) | Slot::Thumbnail(cell) = column.slot {
            cells[cell] = value(dice, &def.name, column, database);
        }
    }
    finish(dice, def, &mut cells);
    set(def, &mut cells, "modifiedon", Some(change_time(database.version + 1)));
    database.put(table, key.clone(), &cells);
    follow_address(database, table, key);
    true
}

fn is_changeable(def: &TableDef, index: usize) -> bool {
    let column = &def.columns[index];
    // Ids of addresses and shared bodies tie rows together, and a row keeps its parent's ties.
    column.writable
        && matches!(column.slot, Slot::Cell(_) | Slot::Thumbnail(_))
        && !column.name.ends_with("_addressid")
        && !matches!(
            column.name.as_str(),
            "addressnumber"
                | "parentid"
                | "overriddencreatedon"
                | "azureactivedirectoryobjectid"
                | "applicationid"
                | "ttlinseconds"
        )
}

/// A change of an embedded address changes the address row (dataverse 8.1).
fn follow_address(database: &mut Database, table: usize, key: &RowKey) {
    let def = &database.tables[table].def;
    let (Some(id), Some(city)) = (def.cell("address1_addressid"), def.cell("address1_city")) else { return };
    let Some(row) = database.tables[table].rows.get(key) else { return };
    let (Some(id), city) = (unquoted(row.cell(id)), row.cell(city).to_owned()) else { return };
    let Some(address) = database.table("customeraddress") else { return };
    let same = database.tables[address]
        .rows
        .get(&id.into())
        .is_none_or(|row| database.tables[address].def.cell("city").is_some_and(|cell| row.cell(cell) == city));
    if !same {
        database.update(address, &id.into(), |def, cells| set(def, cells, "city", Some(city)));
    }
}

/// What removing rows did to the rest.
#[derive(Debug, Default)]
pub(crate) struct Removed {
    /// Table and number of rows that went.
    pub(crate) deleted: Vec<usize>,
    /// Table of each row whose lookup was cleared.
    pub(crate) unlinked: Vec<usize>,
}

/// Deletes rows with everything that goes with them; other lookups to them are cleared (dataverse 6.14).
///
/// One pass over all rows for each generation of children, so callers hand over all rows at once.
pub(crate) fn remove(database: &mut Database, doomed: Vec<(usize, RowKey)>) -> Removed {
    let mut result = Removed::default();
    let mut generation = doomed;
    while !generation.is_empty() {
        let mut ids: HashSet<Guid> = HashSet::new();
        for (table, key) in &generation {
            if database.remove(*table, key) {
                result.deleted.push(*table);
                // Ids of elastic rows are not targets, and link rows have no children.
                if key.partition.is_none() && !database.tables[*table].def.is_intersect() {
                    ids.insert(key.id);
                }
            }
        }
        generation = if ids.is_empty() { Vec::new() } else { children(database, &ids, &mut result) };
    }
    result
}

fn children(database: &mut Database, ids: &HashSet<Guid>, result: &mut Removed) -> Vec<(usize, RowKey)> {
    let mut next = Vec::new();
    let mut cleared = Vec::new();
    for (index, table) in database.tables.iter().enumerate() {
        // The mirror follows the activities by itself.
        if table.def.name == POINTER {
            continue;
        }
        let ends: Vec<&str> =
            table.def.ends.iter().flat_map(|ends| [ends.first.1.as_str(), ends.second.1.as_str()]).collect();
        let references: Vec<(usize, bool)> = table
            .def
            .columns
            .iter()
            .filter_map(|column| match (&column.kind, column.slot) {
                (Kind::Lookup { cascade, .. } | Kind::Customer { cascade, .. }, Slot::Cell(cell)) => {
                    Some((cell, *cascade))
                }
                (Kind::Guid, Slot::Cell(cell)) if ends.contains(&column.name.as_str()) => Some((cell, true)),
                _ => None,
            })
            .collect();
        if references.is_empty() {
            continue;
        }
        for (key, row) in &table.rows {
            let mut clear = Vec::new();
            let mut goes = false;
            for (cell, cascade) in &references {
                let text = row.cell(*cell).trim_start_matches('"');
                if text.get(..36).and_then(Guid::parse).is_some_and(|id| ids.contains(&id)) {
                    goes |= *cascade;
                    clear.push(*cell);
                }
            }
            if goes {
                next.push((index, key.clone()));
            } else if !clear.is_empty() {
                cleared.push((index, key.clone(), clear));
            }
        }
    }
    for (table, key, cells_to_clear) in cleared {
        database.update(table, &key, |_, cells| {
            for cell in cells_to_clear {
                cells[cell].clear();
            }
        });
        result.unlinked.push(table);
    }
    next
}
