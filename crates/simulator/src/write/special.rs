//! Tables with rules of their own (dataverse 2.8, 6.2, 6.7, 8).

use crate::answer::Refusal;
use crate::catalogue::POINTER;
use crate::database::RowKey;
use crate::follow::{has_active_item, has_connection, would_loop};
use crate::guid::Guid;
use crate::rows::set;
use crate::schema::{Storage, TableDef};

use super::changes::Changes;
use super::{WriteContext, effects, state};

/// What is done to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Message {
    Create,
    Update,
    Delete,
}

impl Message {
    fn name(self) -> &'static str {
        match self {
            Self::Create => "Create",
            Self::Update => "Update",
            Self::Delete => "Delete",
        }
    }
}

/// Refuses a message the table does not support (dataverse 2.8).
pub(super) fn check_message(context: &WriteContext<'_>, table: usize, message: Message) -> Result<(), Refusal> {
    let table = &context.database.tables[table];
    let def = &table.def;
    if def.is_intersect() {
        return Err(Refusal::new(
            400,
            "0x8004830f",
            format!("The entity '{}' is an intersect table; use associate and disassociate.", def.name),
        ));
    }
    if table.big.is_some() {
        return Err(Refusal::not_simulated("Writing to the generated table"));
    }
    if def.storage == Storage::Virtual {
        return Err(Refusal::new(
            400,
            "0x80044822",
            "The external data source of the virtual table cannot be written.",
        ));
    }
    let supported = match def.name.as_str() {
        POINTER | "activityparty" => false,
        // The one row of settings stays, and users come from the directory (dataverse 6.7, 8.4).
        "organization" | "systemuser" => message == Message::Update,
        // Jobs and traces come from the platform (dataverse 8.9).
        "asyncoperation" | "plugintracelog" => message != Message::Create,
        _ => true,
    };
    if supported { Ok(()) } else { Err(unsupported(message.name(), def)) }
}

/// The refusal of a message that a table does not have (dataverse 2.8).
pub(super) fn unsupported(message: &str, def: &TableDef) -> Refusal {
    Refusal::new(501, "0x80040800", format!("The '{message}' method does not support entities of type '{}'.", def.name))
}

fn cell<'a>(def: &TableDef, cells: &'a [String], column: &str) -> &'a str {
    def.cell(column).map(|cell| cells[cell].as_str()).unwrap_or_default()
}

/// Checks and completes a new row.
pub(super) fn before_create(
    context: &mut WriteContext<'_>,
    table: usize,
    key: &RowKey,
    cells: &mut [String],
) -> Result<(), Refusal> {
    let def = context.database.tables[table].def.clone();
    effects::default_currency(context, &def, cells);
    match def.name.as_str() {
        "queueitem" if has_active_item(context.database, table, cell(&def, cells, "objectid")) => {
            // At most one active item for each object (dataverse 8.8).
            Err(Refusal::new(400, "0x80040526", "An active queue item already exists for the given object."))
        }
        "queueitem" => {
            set(&def, cells, "enteredon", Some(crate::values::change_time(context.database.version + 1)));
            Ok(())
        }
        "activitymimeattachment" => check_editable(context, cell(&def, cells, "objectid")),
        "businessunit" if cell(&def, cells, "parentbusinessunitid").is_empty() => {
            Err(Refusal::new(400, "0x80040200", "A business unit needs a parent; there is one root."))
        }
        "transactioncurrency" => check_currency(context, table, &def, key, cells),
        "connection" => {
            set(&def, cells, "ismaster", Some("true".to_owned()));
            if has_connection(&context.database.tables[table], cells) {
                return Err(Refusal::new(400, "0x80048208", "The connection already exists."));
            }
            Ok(())
        }
        "customeraddress" => {
            if cell(&def, cells, "addressnumber").is_empty() {
                let number = next_address(context, table, &def, cell(&def, cells, "parentid"));
                set(&def, cells, "addressnumber", Some(number.to_string()));
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn next_address(context: &WriteContext<'_>, table: usize, def: &TableDef, parent: &str) -> u32 {
    let (Some(of), Some(number)) = (def.cell("parentid"), def.cell("addressnumber")) else { return 1 };
    let numbers = context.database.tables[table].rows.values().filter(|row| row.cell(of) == parent);
    numbers.filter_map(|row| row.cell(number).parse::<u32>().ok()).max().unwrap_or(0) + 1
}

/// Attachments are added while the mail can be edited (dataverse 7.3).
fn check_editable(context: &WriteContext<'_>, mail: &str) -> Result<(), Refusal> {
    let (Some(id), Some(target)) = (mail.get(..36).and_then(Guid::parse), mail.get(36..)) else { return Ok(()) };
    let Some(entry) = context.database.table(target).map(|index| &context.database.tables[index]) else {
        return Ok(());
    };
    match entry.rows.get(&id.into()) {
        Some(row) => state::check_open(&entry.def, &row.cells(entry.def.cells)),
        None => Ok(()),
    }
}

/// Codes of currencies are unique (dataverse 8.5).
fn check_currency(
    context: &WriteContext<'_>,
    table: usize,
    def: &TableDef,
    key: &RowKey,
    cells: &[String],
) -> Result<(), Refusal> {
    let Some(code) = def.cell("isocurrencycode") else { return Ok(()) };
    let taken = context.database.tables[table]
        .rows
        .iter()
        .any(|(other, row)| other != key && !cells[code].is_empty() && row.cell(code) == cells[code]);
    if taken {
        return Err(Refusal::new(400, "0x80048cf3", "A currency with the specified ISO code already exists."));
    }
    Ok(())
}

/// Checks an update.
pub(super) fn before_update(
    context: &WriteContext<'_>,
    table: usize,
    changes: &Changes,
    before: &[String],
) -> Result<(), Refusal> {
    let def = &context.database.tables[table].def;
    let differs = |column: &str| {
        def.cell(column).is_some_and(|cell| changes.get(cell).is_some_and(|value| value != before[cell]))
    };
    match def.name.as_str() {
        // The directory decides who a user is (dataverse 6.7).
        "systemuser" if differs("azureactivedirectoryobjectid") => {
            Err(Refusal::new(400, "0x80041d4f", "The object id of the directory cannot be modified."))
        }
        "systemuser" if differs("applicationid") => {
            Err(Refusal::new(400, "0x80041d48", "The application user cannot be updated."))
        }
        "organization" if differs("basecurrencyid") => {
            Err(Refusal::new(400, "0x80040203", "The base currency of an organization cannot be changed."))
        }
        "customeraddress" if differs("parentid") => {
            Err(Refusal::new(400, "0x80040203", "An address stays with its parent."))
        }
        _ => Ok(()),
    }
}

/// No row is above itself (dataverse 6.2).
pub(super) fn check_hierarchy(
    context: &WriteContext<'_>,
    table: usize,
    key: &RowKey,
    before: &[String],
    after: &[String],
) -> Result<(), Refusal> {
    let entry = &context.database.tables[table];
    for column in entry.def.columns.iter().filter(|column| entry.def.is_hierarchical(column)) {
        let Some(cell) = entry.def.cell(&column.name) else { continue };
        if before[cell] != after[cell] && would_loop(entry, cell, key.id, &after[cell]) {
            let code = match entry.def.name.as_str() {
                "account" => "0x80040507",
                "businessunit" => "0x80041d21",
                _ => "0x80040387",
            };
            return Err(Refusal::new(
                400,
                code,
                format!("Creating this parental association would create a loop in {} hierarchy.", entry.def.name),
            ));
        }
    }
    Ok(())
}

/// Checks a deletion.
pub(super) fn before_delete(context: &WriteContext<'_>, table: usize, key: &RowKey) -> Result<(), Refusal> {
    let entry = &context.database.tables[table];
    let (def, Some(row)) = (&entry.def, entry.rows.get(key)) else { return Ok(()) };
    let is = |column: &str| def.cell(column).map(|cell| row.cell(cell)).unwrap_or_default();
    match def.name.as_str() {
        // The root stays; others are disabled first (dataverse 8.4).
        "businessunit" if is("parentbusinessunitid").is_empty() => {
            Err(Refusal::new(400, "0x80041d63", "The root business unit cannot be deleted."))
        }
        "businessunit" if is("isdisabled") != "true" => {
            Err(Refusal::new(400, "0x80041d60", "A business unit that is not disabled cannot be deleted."))
        }
        // Rows of a currency keep it, and so does the organization (dataverse 8.5).
        "transactioncurrency" => Err(Refusal::new(
            405,
            "0x80040227",
            "The currency cannot be deleted because it is associated with another record.",
        )),
        _ => Ok(()),
    }
}
