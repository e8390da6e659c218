//! State and status of a row: what it is born with, and what may follow (dataverse 6.5).

use crate::answer::Refusal;
use crate::database::RowKey;
use crate::rows::set;
use crate::schema::TableDef;

use super::{WriteContext, effects};

/// How a state can be reached.
enum Way {
    /// By PATCH.
    Patch,
    /// By this message alone.
    Message(&'static str),
    /// Not from where the row is.
    Never,
}

/// The state graph of the special tables; everywhere else PATCH does it.
fn way(table: &str, from: i32, to: i32) -> Way {
    match (table, from, to) {
        (_, from, to) if from == to => Way::Patch,
        ("opportunity", _, 1) => Way::Message("WinOpportunity"),
        ("opportunity", _, 2) => Way::Message("LoseOpportunity"),
        ("incident", _, 1) => Way::Message("CloseIncident"),
        ("quote", _, 2) => Way::Message("WinQuote"),
        ("quote", _, 3) => Way::Message("CloseQuote"),
        ("salesorder", _, 2) => Way::Message("CancelSalesOrder"),
        ("salesorder", _, 3) => Way::Message("FulfillSalesOrder"),
        ("product", 2 | 3, 0) => Way::Message("PublishProductHierarchy"),
        // A closed quote becomes a draft first, a closed lead is opened first, and products go the round.
        ("quote", 2 | 3, 1) | ("lead", 1, 2) | ("lead", 2, 1) | ("product", 1, 0 | 3) | ("product", 2, 1 | 3) => {
            Way::Never
        }
        _ => Way::Patch,
    }
}

/// Whether a row refuses changes until it is reopened (dataverse 6.5).
fn is_closed(def: &TableDef, state: i32) -> bool {
    match def.name.as_str() {
        "opportunity" | "incident" => state != 0,
        "quote" => matches!(state, 2 | 3),
        "salesorder" => matches!(state, 2..=4),
        "opportunityclose" | "incidentresolution" | "quoteclose" | "orderclose" => false,
        _ => def.activity && state != 0,
    }
}

/// The first state of a table and its default status; `None` for a table without states.
pub(super) fn initial(def: &TableDef) -> Option<(i32, i32)> {
    let state = match def.name.as_str() {
        // Written down when something else was closed, and complete from the start.
        "opportunityclose" | "incidentresolution" | "quoteclose" | "orderclose" => 1,
        _ => *def.states().first()?,
    };
    Some((state, def.statuses(state).next()?))
}

fn not_of_state(status: i32, state: i32, def: &TableDef) -> Refusal {
    Refusal::new(
        400,
        "0x80048408",
        format!("{status} is not a valid status code for state code {state} on {}.", def.name),
    )
}

/// State and status of a new row: a state in the body is ignored, a status must belong to the first state.
pub(super) fn at_create(def: &TableDef, status: Option<i32>) -> Result<Option<(i32, i32)>, Refusal> {
    let Some((state, default)) = initial(def) else { return Ok(None) };
    match status {
        None => Ok(Some((state, default))),
        Some(status) if def.statuses(state).any(|of| of == status) => Ok(Some((state, status))),
        Some(status) => Err(not_of_state(status, state, def)),
    }
}

fn current(def: &TableDef, cells: &[String], column: &str) -> Option<i32> {
    def.cell(column).and_then(|cell| cells.get(cell)).and_then(|cell| cell.parse().ok())
}

/// Refuses a change of a row that is closed (dataverse 6.16).
pub(super) fn check_open(def: &TableDef, cells: &[String]) -> Result<(), Refusal> {
    match current(def, cells, "statecode") {
        Some(state) if is_closed(def, state) => Err(Refusal::new(
            400,
            "0x80040230",
            format!("The object of type {} is inactive or closed and cannot be updated.", def.name),
        )),
        _ => Ok(()),
    }
}

/// State and status after a PATCH that names at least one of them.
pub(super) fn at_update(
    def: &TableDef,
    cells: &[String],
    state: Option<i32>,
    status: Option<i32>,
) -> Result<(i32, i32), Refusal> {
    let before = current(def, cells, "statecode").unwrap_or(0);
    let after = state.unwrap_or(before);
    let chosen = match status {
        // A status alone may bring its state along.
        Some(status) if state.is_none() => {
            let owner = def.states().iter().copied().find(|state| def.statuses(*state).any(|of| of == status));
            (owner.unwrap_or(before), status)
        }
        Some(status) => (after, status),
        None if after == before => (after, current(def, cells, "statuscode").unwrap_or_default()),
        None => (after, def.statuses(after).next().unwrap_or_default()),
    };
    if !def.statuses(chosen.0).any(|status| status == chosen.1) {
        return Err(not_of_state(chosen.1, chosen.0, def));
    }
    match way(&def.name, before, chosen.0) {
        Way::Patch => Ok(chosen),
        Way::Message(message) => Err(Refusal::new(
            400,
            "0x80040203",
            format!(
                "This message can not be used to set the state of {0} to {1}. In order to set state of {0} to {1}, use the {message}Request message instead.",
                def.name, chosen.0
            ),
        )),
        Way::Never => Err(Refusal::new(
            400,
            "0x8004f00e",
            format!("The state transition from {before} to {} is not valid for {}.", chosen.0, def.name),
        )),
    }
}

/// The state of a row; `None` for no row or a table without states.
pub(crate) fn state_of(context: &WriteContext<'_>, table: usize, key: &RowKey) -> Option<i32> {
    let entry = &context.database.tables[table];
    let cell = entry.def.cell("statecode")?;
    entry.rows.get(key)?.cell(cell).parse().ok()
}

/// Sets a state as a message does, however it could be reached by PATCH; without a status, its default one.
pub(crate) fn force_state(
    context: &mut WriteContext<'_>,
    table: usize,
    key: &RowKey,
    state: i32,
    status: Option<i32>,
) -> Result<(), Refusal> {
    let entry = &context.database.tables[table];
    let def = &entry.def;
    let row = entry.rows.get(key).ok_or_else(|| Refusal::no_row(&def.name, &key.id.to_string()))?;
    // -1 stands for the default status.
    let status = status.filter(|status| *status != -1).or_else(|| def.statuses(state).next());
    let status = status
        .filter(|status| def.statuses(state).any(|of| of == *status))
        .ok_or_else(|| not_of_state(status.unwrap_or_default(), state, def))?;
    let mut cells = row.cells(def.cells);
    set(def, &mut cells, "statecode", Some(state.to_string()));
    set(def, &mut cells, "statuscode", Some(status.to_string()));
    effects::stamp_update(context, table, &mut cells);
    context.database.put(table, key.clone(), &cells);
    Ok(())
}
