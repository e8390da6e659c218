//! The custom logic of the environment: one synchronous plug-in and a few cloud flows (dataverse 6.10).
//!
//! The plug-in marks the description of every account that is written, and plans a task for every new
//! opportunity. It is what a restore must leave out: a row written with it does not read back as it was.

use serde_json::json;

use crate::answer::Refusal;
use crate::database::RowKey;
use crate::dice::named_guid;
use crate::guid::Guid;

use super::row::create;
use super::{WriteContext, effects};

/// What the plug-in adds to a description.
pub(crate) const MARK: &str = " [checked]";
/// Tables with a flow on each change.
const FLOWS_ON: [&str; 4] = ["account", "contact", "opportunity", "task"];

/// What happened to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Happened {
    Created,
    Updated,
    Deleted,
}

/// Id of the plug-in's step, for the header that names steps.
pub(super) fn step_id() -> Guid {
    named_guid("custom plug-in step")
}

fn runs(context: &WriteContext<'_>) -> bool {
    context.shared.config.custom_logic && !context.caller.skips_plugins
}

/// Before a row is written.
pub(super) fn before(context: &mut WriteContext<'_>, table: usize, cells: &mut [String]) {
    let def = &context.database.tables[table].def;
    if def.name != "account" || !runs(context) {
        return;
    }
    let Some(cell) = def.cell("description") else { return };
    context.tally.plugins += 1;
    if let Some(open) = cells[cell].strip_suffix('"').filter(|text| !text.ends_with(MARK)) {
        cells[cell] = format!("{open}{MARK}\"");
    }
}

/// After a row was written, or before it goes.
pub(super) fn after(
    context: &mut WriteContext<'_>,
    table: usize,
    key: &RowKey,
    happened: Happened,
) -> Result<(), Refusal> {
    let name = context.database.tables[table].def.name.as_str();
    let is_new_opportunity = name == "opportunity" && happened == Happened::Created;
    if context.shared.config.custom_logic && !context.caller.skips_flows && FLOWS_ON.contains(&name) {
        context.tally.flows += 1;
    }
    if !is_new_opportunity || !runs(context) {
        return Ok(());
    }
    let Some(tasks) = context.database.table("task") else { return Ok(()) };
    context.tally.plugins += 1;
    let body = effects::own_body(&json!({
        "subject": "Follow up",
        "regardingobjectid_opportunity_task@odata.bind": format!("/opportunities({})", key.id),
    }))?;
    // What a plug-in does starts flows whatever the caller asked for.
    let skips = std::mem::replace(&mut context.caller.skips_flows, false);
    let rows = context.tally.rows.clone();
    let created = create(context, tasks, &body);
    context.tally.rows = rows;
    context.caller.skips_flows = skips;
    created.map(|_| ())
}
