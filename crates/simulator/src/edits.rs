//! Random changes: what users do between two backups.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::catalogue::BIG;
use crate::database::{Database, RowKey, Table};
use crate::dice::Dice;
use crate::follow::is_surplus;
use crate::rows::{change, create, is_held, make, new_key, remove};
use crate::schema::{Kind, Ownership, Slot, TableDef};

/// What an edit did to one table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableEdits {
    /// Rows created on purpose or along with others.
    pub created: u64,
    /// Rows changed; a cleared lookup counts.
    pub updated: u64,
    /// Rows deleted, also by cascade.
    pub deleted: u64,
}

/// What an edit did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EditSummary {
    /// By logical name; `activitypointer` follows the activities and is not counted.
    pub tables: BTreeMap<String, TableEdits>,
    /// Row ids that were deleted and created again (dataverse 4.4).
    pub recreated: Vec<String>,
}

impl EditSummary {
    fn entry(&mut self, database: &Database, table: usize) -> &mut TableEdits {
        self.tables.entry(database.tables[table].def.name.clone()).or_default()
    }
}

/// Makes about `changes` changes: half updates, a third creations, the rest deletions.
pub(crate) fn edit(database: &mut Database, seed: u64, changes: usize) -> EditSummary {
    let mut dice = Dice::new(seed, 0xed17);
    let mut summary = EditSummary::default();
    // Big tables are edited more, and every table now and then.
    let mut tickets: Vec<usize> = Vec::new();
    for (index, table) in database.tables.iter().enumerate() {
        if !table.def.fixed && !table.def.operational {
            let share = (table.rows.len() as f64).sqrt() as usize;
            tickets.extend(std::iter::repeat_n(index, 1 + share));
        } else if table.big.is_some() {
            tickets.extend(std::iter::repeat_n(index, 10));
        }
    }
    let mut doomed: Vec<(usize, RowKey)> = Vec::new();
    for _ in 0..changes {
        let table = *dice.pick(&tickets);
        if database.tables[table].big.is_some() {
            edit_big(database, &mut dice, table, &mut summary);
            continue;
        }
        match dice.below(100) {
            0..50 => update(database, &mut dice, table, &mut summary),
            50..83 => {
                if let Some(key) = insert(database, &mut dice, table, None, &mut summary)
                    && dice.chance(30)
                {
                    // Created and deleted between two reads (dataverse 4.4).
                    doomed.push((table, key));
                }
            }
            _ => {
                let id = dice.guid();
                // An address goes with its parent, not alone (dataverse 8.1).
                let alone = database.tables[table].def.name != "customeraddress";
                if let Some(key) = database.tables[table].near(id).cloned().filter(|_| alone) {
                    doomed.push((table, key));
                }
            }
        }
    }
    let again = doomed
        .iter()
        .find(|(table, key)| {
            // An address belongs to its parent for good (dataverse 8.1).
            let def = &database.tables[*table].def;
            key.partition.is_none() && !def.is_intersect() && def.name != "customeraddress"
        })
        .cloned();
    doomed.retain(|(table, key)| !is_held(database, *table, key));
    let removed = remove(database, doomed);
    for table in removed.deleted {
        summary.entry(database, table).deleted += 1;
    }
    for table in removed.unlinked {
        summary.entry(database, table).updated += 1;
    }
    // A deleted row may come back with the same id; the next delta then holds both (dataverse 4.4).
    if let Some((table, key)) = again.filter(|_| dice.chance(500)) {
        summary.recreated.push(key.id.to_string());
        insert(database, &mut dice, table, Some(key), &mut summary);
    }
    summary
}

fn edit_big(database: &mut Database, dice: &mut Dice, table: usize, summary: &mut EditSummary) {
    let version = database.next_version();
    let action = dice.below(10);
    let Some(big) = database.tables[table].big.as_mut() else { return };
    let done = match action {
        0 => big.delete(dice, version),
        1 | 2 => {
            big.append(version);
            true
        }
        _ => big.touch(dice, version),
    };
    let entry = summary.tables.entry(BIG.to_owned()).or_default();
    match action {
        0 => entry.deleted += u64::from(done),
        1 | 2 => entry.created += u64::from(done),
        _ => entry.updated += u64::from(done),
    }
}

fn update(database: &mut Database, dice: &mut Dice, table: usize, summary: &mut EditSummary) {
    let Some(key) = database.tables[table].near(dice.guid()).cloned() else { return };
    // Links are made and cut, not changed.
    if !database.tables[table].def.is_intersect() && change(database, dice, table, &key) {
        summary.entry(database, table).updated += 1;
    }
}

fn insert(
    database: &mut Database,
    dice: &mut Dice,
    table: usize,
    key: Option<RowKey>,
    summary: &mut EditSummary,
) -> Option<RowKey> {
    let def = &database.tables[table].def;
    let key = key.unwrap_or_else(|| new_key(dice, def));
    if let Some(ends) = def.ends.clone() {
        let end = |dice: &mut Dice, name: &str| {
            database
                .table(name)
                .and_then(|index| database.tables[index].near(dice.guid()))
                .map(|key| key.id.to_string())
        };
        let (first, second) = (end(dice, &ends.first.0)?, end(dice, &ends.second.0)?);
        let (first, second) = (format!("\"{first}\""), format!("\"{second}\""));
        // The pair may be linked already; then nothing happens (dataverse 6.3).
        if database.tables[table].rows.values().any(|row| row.cell(0) == first && row.cell(1) == second) {
            return None;
        }
        database.put(table, key.clone(), &[first, second]);
    } else {
        let mut cells = make(dice, def, database);
        // Two rows never share an alternate key (dataverse 6.8), and no object is queued twice (8.8).
        if let Some(cell) = def.key.as_deref().and_then(|key| def.cell(key))
            && database.tables[table].rows.values().any(|row| row.cell(cell).eq_ignore_ascii_case(&cells[cell]))
        {
            cells[cell].clear();
        }
        if is_surplus(&database.tables[table], &cells) {
            return None;
        }
        create(database, dice, table, key.clone(), cells);
    }
    summary.entry(database, table).created += 1;
    Some(key)
}

/// What changed in the schema.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaChange {
    /// Table and column that came.
    pub added_column: (String, String),
    /// Table and column that went.
    pub removed_column: Option<(String, String)>,
    /// Table that came, with a few rows.
    pub added_table: String,
}

/// Adds a column to one table, removes one from another, adds a table.
pub(crate) fn change_schema(database: &mut Database, seed: u64) -> SchemaChange {
    let mut dice = Dice::new(seed, 0x5c4e);
    database.schema_version += 1;
    let version = database.schema_version;
    let candidates: Vec<usize> =
        (0..database.tables.len()).filter(|index| is_customizable(&database.tables[*index].def)).collect();
    let grown = *dice.pick(&candidates);
    let column = format!("new_added{version}");
    let def = &mut database.tables[grown].def;
    def.add(&format!("{column}:s100"));
    def.changed_at = version;
    let added_column = (def.name.clone(), column);
    // Some rows have a value at once.
    for _ in 0..3 {
        if let Some(key) = database.tables[grown].near(dice.guid()).cloned() {
            database.update(grown, &key, |def, cells| {
                if let Some(last) = def.columns.last().and_then(|column| def.cell(&column.name)) {
                    "\"value of a new column\"".clone_into(&mut cells[last]);
                }
            });
        }
    }
    let shrunk = *dice.pick(&candidates);
    let removable: Vec<usize> = removable(&database.tables[shrunk].def);
    let removed_column = (!removable.is_empty()).then(|| {
        let index = *dice.pick(&removable);
        let def = &mut database.tables[shrunk].def;
        def.changed_at = version;
        // Its cell stays behind in the rows, unreachable.
        (def.name.clone(), def.columns.remove(index).name)
    });
    let name = format!("new_table{version}");
    let mut def = TableDef::new(&name, Some(&format!("{name}set")), &format!("{name}id"));
    def.add("new_name:s100* new_value:dec10 new_accountid:->account new_when:tzi");
    def.add_common(Ownership::User);
    def.type_code = 10_000 + database.tables.len() as u32;
    def.changed_at = version;
    database.add_table(Table::new(def));
    let table = database.tables.len() - 1;
    for _ in 0..5 {
        let cells = make(&mut dice, &database.tables[table].def, database);
        let key = new_key(&mut dice, &database.tables[table].def);
        create(database, &mut dice, table, key, cells);
    }
    SchemaChange { added_column, removed_column, added_table: name }
}

fn is_customizable(def: &TableDef) -> bool {
    !def.fixed
        && !def.operational
        && !def.is_intersect()
        && def.primary_name.is_some()
        && def.ownership == Ownership::User
}

/// Plain columns that nothing else refers to.
fn removable(def: &TableDef) -> Vec<usize> {
    (0..def.columns.len())
        .filter(|index| {
            let column = &def.columns[*index];
            column.writable
                && matches!(column.slot, Slot::Cell(_))
                && matches!(
                    column.kind,
                    Kind::Text { .. } | Kind::Integer | Kind::Decimal { .. } | Kind::Double | Kind::Date(_)
                )
                && def.primary_name.as_deref() != Some(column.name.as_str())
                && def.key.as_deref() != Some(column.name.as_str())
                && !column.name.starts_with("address")
                && !matches!(
                    column.name.as_str(),
                    "filename" | "mimetype" | "overriddencreatedon" | "importsequencenumber"
                )
        })
        .collect()
}
