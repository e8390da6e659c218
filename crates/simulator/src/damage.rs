//! What goes wrong in an environment, on purpose: a restore needs something to repair.
//!
//! Damage is done the way a person does it, through the same writes as a client's, by one of the people who
//! can sign in: versions and `modifiedon` rise, plug-ins run, closed rows refuse. Deletions take along what the
//! service would take along, and leave in the recycle bin what it would leave there.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::answer::Refusal;
use crate::database::{Database, RowKey};
use crate::dataset::APPLICATIONS;
use crate::dice::Dice;
use crate::edits::EditSummary;
use crate::guid::Guid;
use crate::print::{Columns, Plan};
use crate::query::Prefer;
use crate::rows::{is_held, remove};
use crate::schema::{Column, Kind, TableDef};
use crate::simulator::Handle;
use crate::write::{Body, WriteContext, update};

/// Keeps the choice of victims apart from other uses of the seed.
const BLANKING: u64 = 0xb1a4;

/// What a mass blanking did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Blanked {
    /// Ids of the rows that lost at least one value.
    pub rows: Vec<String>,
    /// Values lost.
    pub values: u64,
    /// Chosen rows that refused, because they are closed or need the value.
    pub refused: u64,
}

/// What an edit of one value did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EditedRow {
    /// The row before, as [`Handle::rows`] prints it.
    pub before: String,
    /// The row after.
    pub after: String,
}

impl Handle {
    /// A person sets columns to null in about `share` (0 to 1) of the rows that have a value there.
    ///
    /// Columns are logical names; unknown ones, and a table that does not exist, blank nothing.
    pub fn blank(&self, table: &str, columns: &[&str], share: f64, seed: u64) -> Blanked {
        let mut result = Blanked::default();
        let mut dice = Dice::new(seed, BLANKING);
        let per_mille = (share.clamp(0.0, 1.0) * 1_000.0).round() as u64;
        self.as_person(|context| {
            let Some(table) = context.database.table(table) else { return };
            let def = context.database.tables[table].def.clone();
            let chosen: Vec<(&Column, usize)> =
                columns.iter().filter_map(|name| Some((def.column(name)?, def.cell(name)?))).collect();
            let keys: Vec<RowKey> = context.database.tables[table].rows.keys().cloned().collect();
            for key in keys {
                let Some(row) = context.database.tables[table].rows.get(&key) else { continue };
                let filled: Vec<_> = chosen.iter().filter(|(_, cell)| !row.cell(*cell).is_empty()).collect();
                if filled.is_empty() || !dice.chance(per_mille) {
                    continue;
                }
                let members: serde_json::Map<String, Value> = filled
                    .iter()
                    .map(|(column, cell)| (clearing(&def, column, row.cell(*cell)), Value::Null))
                    .collect();
                let values = filled.len() as u64;
                if change(context, table, &key, &Value::Object(members).to_string()).is_ok() {
                    result.rows.push(key.id.to_string());
                    result.values += values;
                } else {
                    result.refused += 1;
                }
            }
        });
        result
    }

    /// Deletes rows with everything the service deletes along with them. Ids that do not exist are passed over, and
    /// rows that others keep from being deleted (dataverse 6.14).
    pub fn delete_rows(&self, table: &str, ids: &[&str]) -> EditSummary {
        let mut summary = EditSummary::default();
        let mut database = self.shared.write();
        let Some(table) = database.table(table) else { return summary };
        let wanted: BTreeSet<Guid> = ids.iter().filter_map(|id| Guid::parse(id)).collect();
        let keys = database.tables[table].rows.keys().filter(|key| wanted.contains(&key.id));
        let doomed: Vec<(usize, RowKey)> =
            keys.filter(|key| !is_held(&database, table, key)).map(|key| (table, key.clone())).collect();
        let removed = remove(&mut database, doomed);
        let name = |table: usize| database.tables[table].def.name.clone();
        for table in removed.deleted {
            summary.tables.entry(name(table)).or_default().deleted += 1;
        }
        for table in removed.unlinked {
            summary.tables.entry(name(table)).or_default().updated += 1;
        }
        summary
    }

    /// A person sets one column of a row to a JSON value; a lookup is set by `"set(id)"` or cleared by `null`.
    ///
    /// Fails with the refusal's code and text where the service would refuse.
    pub fn edit_row(&self, table: &str, id: &str, column: &str, json: &str) -> Result<EditedRow, String> {
        self.as_person(|context| {
            let unknown = || format!("there is no column {column} in a row {id} of {table}");
            let index = context.database.table(table).ok_or_else(unknown)?;
            let def = context.database.tables[index].def.clone();
            let (cell, definition) = def.cell(column).zip(def.column(column)).ok_or_else(unknown)?;
            let rows = &context.database.tables[index].rows;
            let wanted = Guid::parse(id);
            let (key, row) = rows.iter().find(|(key, _)| Some(key.id) == wanted).ok_or_else(unknown)?;
            let (key, current) = (key.clone(), row.cell(cell).to_owned());
            let value: Box<RawValue> = serde_json::from_str(json).map_err(|error| error.to_string())?;
            let name = match (&definition.kind, value.get()) {
                (_, "null") => clearing(&def, definition, &current),
                (kind, reference) if kind.is_lookup() => {
                    let set = reference.trim_matches(['"', '/']).split('(').next().unwrap_or_default();
                    let target = context.database.set(set).map(|set| context.database.tables[set].def.name.clone());
                    format!("{}@odata.bind", def.navigation(definition, &target.ok_or_else(unknown)?))
                }
                _ => column.to_owned(),
            };
            let before = printed(context.database, index, &key);
            change(context, index, &key, &format!("{{{}:{}}}", json!(name), value.get()))
                .map_err(|refusal| format!("{}: {}", refusal.code, refusal.message))?;
            Ok(EditedRow { before, after: printed(context.database, index, &key) })
        })
    }

    /// Ids of the rows of a table that are in the recycle bin now.
    pub fn bin(&self, table: &str) -> Vec<String> {
        let database = self.shared.read();
        let bin = database.table(table).and_then(|table| database.tables[table].bin.as_ref());
        bin.into_iter().flat_map(|bin| bin.0.keys()).map(|key| key.id.to_string()).collect()
    }

    /// Works as the first of the people who can sign in.
    fn as_person<T>(&self, work: impl FnOnce(&mut WriteContext<'_>) -> T) -> T {
        let (now, controls) = (self.shared.now(), Arc::clone(&self.shared.state().controls));
        let mut database = self.shared.write();
        let mut context = WriteContext::new(&mut database, &self.shared, controls, now, APPLICATIONS, None);
        let result = work(&mut context);
        // What a person does is not among the writes of the clients under test.
        context.finish();
        result
    }
}

/// The member that clears a column: a lookup goes by the navigation that is in use (dataverse 6.2).
fn clearing(def: &TableDef, column: &Column, current: &str) -> String {
    match (&column.kind, current.get(36..)) {
        (kind, Some(target)) if kind.is_lookup() && *kind != Kind::Owner => {
            format!("{}@odata.bind", def.navigation(column, target))
        }
        (Kind::Owner, _) => "ownerid@odata.bind".to_owned(),
        _ => column.name.clone(),
    }
}

fn change(context: &mut WriteContext<'_>, table: usize, key: &RowKey, json: &str) -> Result<(), Refusal> {
    let body = Body::parse(json.as_bytes())?;
    context.transaction(|context| update(context, table, key, &body))
}

fn printed(database: &Database, table: usize, key: &RowKey) -> String {
    let entry = &database.tables[table];
    let mut json = String::new();
    if let (Ok(plan), Some(row)) = (Plan::new(&entry.def, &Columns::Oracle, &Prefer::default()), entry.get(key)) {
        plan.write(key, row, &mut json);
    }
    json
}
