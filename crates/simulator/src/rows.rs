//! Making, changing and removing rows so that they stay consistent with themselves.
//!
//! Values of a row depend on each other: `_base` follows money, `filesize` the content, `objecttypecode` the
//! parent. And rows depend on each other: an account brings its addresses (dataverse 8.1) and takes its
//! children along when it goes (dataverse 6.14). Both the first data set and later edits go through here.

use std::collections::HashSet;

use crate::answer::write_json_text;
use crate::bin::{Orphan, note};
use crate::catalogue::POINTER;
use crate::content::ContentKind;
use crate::database::{Database, RowKey};
use crate::dice::Dice;
use crate::follow::{
    address_columns, base_currency, follow_addresses, follow_currency, follow_names, follow_owner, follow_parent,
    follow_state, money_columns, reciprocal, would_loop,
};
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
    if is_closed_by_message(def) {
        set(def, &mut cells, "statecode", def.states().first().map(ToString::to_string));
    }
    finish_made(dice, def, &mut cells);
    cells
}

/// Makes dependent cells follow in a row that was made up: its document gets a content and the name of it.
pub(crate) fn finish_made(dice: &mut Dice, def: &TableDef, cells: &mut [String]) {
    let document =
        def.columns.iter().find(|column| column.kind == Kind::Body).and_then(|column| def.cell(&column.name));
    if let (Some(body), Some(shared)) = (document, def.cell("attachmentid")) {
        let id = unquoted(&cells[shared]).unwrap_or_else(|| dice.guid());
        cells[shared] = format!("\"{id}\"");
        cells[body] = id.to_string();
    }
    finish(def, cells);
    if let Some(body) = document {
        let content = unquoted(&cells[body]).map(|id| def.contents.find(id, ContentKind::Body));
        set(def, cells, "filename", content.as_ref().map(|content| quoted(content.name())));
        set(def, cells, "mimetype", content.as_ref().map(|content| quoted(content.media_type())));
    }
}

fn quoted(text: &str) -> String {
    let mut json = String::with_capacity(text.len() + 2);
    write_json_text(text, &mut json);
    json
}

fn unquoted(cell: &str) -> Option<Guid> {
    Guid::parse(cell.trim_matches('"'))
}

/// Makes dependent cells follow the ones they depend on.
pub(crate) fn finish(def: &TableDef, cells: &mut [String]) {
    for column in &def.columns {
        if let (Kind::Money { .. }, Slot::Cell(cell)) = (&column.kind, column.slot)
            && let Some(base) = def.cell(&format!("{}_base", column.name))
        {
            let value = cells[cell].clone();
            cells[base] = value;
        }
    }
    follow_content(def, cells);
}

/// Makes the companions of images, files and documents follow, and the type of a note's parent (dataverse 7).
pub(crate) fn follow_content(def: &TableDef, cells: &mut [String]) {
    for column in &def.columns {
        match (&column.kind, column.slot) {
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
                let name = unquoted(&cells[cell]).map(|id| quoted(def.contents.find(id, ContentKind::File).name()));
                set(def, cells, &format!("{}_name", column.name), name);
            }
            (Kind::Body, Slot::Cell(cell)) => {
                // Attachments that share a body carry its id (dataverse 7.3).
                if let Some(shared) = def.cell("attachmentid") {
                    match (unquoted(&cells[cell]), unquoted(&cells[shared])) {
                        (Some(id), _) => cells[shared] = format!("\"{id}\""),
                        (None, Some(id)) => cells[cell] = id.to_string(),
                        (None, None) => {}
                    }
                }
                let content = unquoted(&cells[cell]).map(|id| def.contents.find(id, ContentKind::Body));
                set(def, cells, "filesize", content.as_ref().map(|content| content.size().to_string()));
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
    settle(database, table, &key, None, &mut cells);
    let def = &database.tables[table].def;
    let parent = format!("{}{}", key.id, def.name);
    let mut born = Vec::new();
    // Addresses come with an account or contact, filled or not (dataverse 8.1).
    for number in 1_u32.. {
        let Some(cell) = def.cell(&format!("address{number}_addressid")) else { break };
        let id = dice.guid();
        cells[cell] = format!("\"{id}\"");
        born.push((id, number));
    }
    let is_connection = def.name == "connection";
    database.put(table, key.clone(), &cells);
    if is_connection {
        let id = dice.guid();
        reciprocal(database, table, &key, id);
    }
    let Some(address) = database.table("customeraddress").filter(|_| !born.is_empty()) else { return };
    for (id, number) in born {
        let def = &database.tables[address].def;
        let mut row = make(dice, def, database);
        for (from, to) in address_columns(&database.tables[table].def, def, number) {
            row[to].clone_from(&cells[from]);
        }
        set(def, &mut row, "parentid", Some(parent.clone()));
        set(def, &mut row, "addressnumber", Some(number.to_string()));
        finish(def, &mut row);
        database.put(address, id.into(), &row);
    }
}

/// Tables that a message closes, which leaves a row behind (dataverse 6.5); chance alone does not.
fn is_closed_by_message(def: &TableDef) -> bool {
    matches!(def.name.as_str(), "opportunity" | "incident" | "quote" | "salesorder")
}

/// Makes random cells agree with the rest of the environment.
fn settle(database: &Database, table: usize, key: &RowKey, before: Option<&[String]>, cells: &mut [String]) {
    let entry = &database.tables[table];
    let def = &entry.def;
    if let (true, Some(before), Some(state)) = (is_closed_by_message(def), before, def.cell("statecode")) {
        cells[state].clone_from(&before[state]);
    }
    follow_state(def, cells);
    for column in def.columns.iter().filter(|column| def.is_hierarchical(column)) {
        if let Some(cell) = def.cell(&column.name)
            && would_loop(entry, cell, key.id, &cells[cell])
        {
            cells[cell] = before.map(|before| before[cell].clone()).unwrap_or_default();
        }
    }
    let has_money = money_columns(def).any(|(amount, ..)| !cells[amount].is_empty());
    if let Some(currency) = def.cell("transactioncurrencyid").filter(|cell| has_money && cells[*cell].is_empty()) {
        cells[currency] = base_currency(database).unwrap_or_default();
    }
    follow_owner(database, def, cells);
    follow_currency(database, def, cells);
    follow_names(database, def, cells);
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
    let before = cells.clone();
    for _ in 0..=dice.index(4) {
        let column = &def.columns[*dice.pick(&writable)];
        if let Slot::Cell(cell) | Slot::Thumbnail(cell) = column.slot {
            cells[cell] = value(dice, &def.name, column, database);
        }
    }
    finish_made(dice, def, &mut cells);
    settle(database, table, key, Some(&before), &mut cells);
    set(def, &mut cells, "modifiedon", Some(change_time(database.version + 1)));
    database.put(table, key.clone(), &cells);
    follow_addresses(database, table, key);
    follow_parent(database, table, key);
    true
}

fn is_changeable(def: &TableDef, index: usize) -> bool {
    let column = &def.columns[index];
    // Ids of addresses and shared bodies tie rows together, and a row keeps its parent's ties.
    column.writable
        && matches!(column.slot, Slot::Cell(_) | Slot::Thumbnail(_))
        && !column.name.ends_with("_addressid")
        && def.key.as_deref() != Some(column.name.as_str())
        && !(def.name == "queueitem" && matches!(column.name.as_str(), "objectid" | "statecode"))
        && !matches!(
            column.name.as_str(),
            "addressnumber"
                | "parentid"
                | "overriddencreatedon"
                | "azureactivedirectoryobjectid"
                | "applicationid"
                | "record1id"
                | "record2id"
                | "ttlinseconds"
        )
}

/// What removing rows did to the rest.
#[derive(Debug, Default)]
pub(crate) struct Removed {
    /// Table and number of rows that went.
    pub(crate) deleted: Vec<usize>,
    /// Table of each row whose lookup was cleared.
    pub(crate) unlinked: Vec<usize>,
    /// Table of each row that should have kept its parent from going (dataverse 6.14).
    pub(crate) restricted: Vec<usize>,
}

/// Deletes rows with everything that goes with them; other lookups to them are cleared (dataverse 6.14).
///
/// One pass over all rows for each generation of children, so callers hand over all rows at once.
pub(crate) fn remove(database: &mut Database, doomed: Vec<(usize, RowKey)>) -> Removed {
    let mut result = Removed::default();
    let since = database.version;
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
        generation = if ids.is_empty() { Vec::new() } else { children(database, &ids, since, &mut result) };
    }
    result
}

/// Removes every row of the tables a customer fills; how many went.
pub(crate) fn wipe(database: &mut Database) -> usize {
    let mut count = 0;
    for table in 0..database.tables.len() {
        let def = &database.tables[table].def;
        // What every environment has, and what only follows, stays.
        if def.fixed {
            continue;
        }
        let bin = database.tables[table].bin.take();
        let keys: Vec<RowKey> = database.tables[table].rows.keys().cloned().collect();
        for key in keys {
            count += usize::from(database.remove(table, &key));
        }
        database.tables[table].bin = bin;
    }
    count
}

/// Whether another row keeps this one from being deleted (dataverse 6.14).
pub(crate) fn is_held(database: &Database, table: usize, key: &RowKey) -> bool {
    let name = &database.tables[table].def.name;
    let value = format!("{}{name}", key.id);
    database.tables.iter().any(|holder| {
        let cells = holder.def.columns.iter().filter(|column| column.restricts && column.kind.targets().contains(name));
        let cells: Vec<usize> = cells.filter_map(|column| holder.def.cell(&column.name)).collect();
        !cells.is_empty() && holder.rows.values().any(|row| cells.iter().any(|cell| row.cell(*cell) == value))
    })
}

fn children(database: &mut Database, ids: &HashSet<Guid>, since: u64, result: &mut Removed) -> Vec<(usize, RowKey)> {
    let mut orphans = Vec::new();
    let mut next = Vec::new();
    let mut cleared = Vec::new();
    for (index, table) in database.tables.iter().enumerate() {
        // The mirror follows the activities by itself.
        if table.def.name == POINTER {
            continue;
        }
        let ends: Vec<&str> =
            table.def.ends.iter().flat_map(|ends| [ends.first.1.as_str(), ends.second.1.as_str()]).collect();
        let references: Vec<(usize, bool, bool)> = table
            .def
            .columns
            .iter()
            .filter_map(|column| match (&column.kind, column.slot) {
                (Kind::Lookup { cascade, .. } | Kind::Customer { cascade, .. }, Slot::Cell(cell)) => {
                    Some((cell, *cascade, column.restricts))
                }
                (Kind::Guid, Slot::Cell(cell)) if ends.contains(&column.name.as_str()) => Some((cell, true, false)),
                _ => None,
            })
            .collect();
        if references.is_empty() {
            continue;
        }
        for (key, row) in &table.rows {
            let mut clear = Vec::new();
            let (mut goes, mut holds) = (false, false);
            let mut parents = Vec::new();
            for (cell, cascade, restricts) in &references {
                let text = row.cell(*cell).trim_start_matches('"');
                if text.get(..36).and_then(Guid::parse).is_some_and(|id| ids.contains(&id)) {
                    goes |= *cascade;
                    holds |= *restricts;
                    clear.push(*cell);
                    parents.push((*cell, text.to_owned(), *cascade));
                }
            }
            // A row that goes is put back by the parent it went with, not by one it merely named.
            let noted = parents.into_iter().filter(|(_, _, cascade)| *cascade == goes);
            orphans.extend(noted.map(|(cell, parent, _)| (index, key.clone(), cell, parent, goes)));
            if goes {
                next.push((index, key.clone()));
            } else if !clear.is_empty() {
                if holds {
                    result.restricted.push(index);
                }
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
    for (table, key, cell, parent, goes) in orphans {
        note(database, &Orphan { table, key: &key, cell, parent: &parent, goes }, since);
    }
    next
}
