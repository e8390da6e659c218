//! The people of an activity, which are written with it and in no other way (dataverse 6.4).

use crate::answer::Refusal;
use crate::database::RowKey;
use crate::rows::{remove, set};

use super::changes::{Changes, Purpose};
use super::{Body, WriteContext};

/// Replaces all parties of an activity.
pub(super) fn replace(
    context: &mut WriteContext<'_>,
    table: usize,
    key: &RowKey,
    list: &[Body],
) -> Result<(), Refusal> {
    let activity = context.database.tables[table].def.name.clone();
    let Some(parties) = context.database.table("activityparty") else { return Ok(()) };
    let def = context.database.tables[parties].def.clone();
    let takes = def.column("activityid").is_some_and(|column| column.kind.targets().contains(&activity));
    if !takes {
        return Err(Refusal::new(400, "0x80040203", format!("Activities of type '{activity}' have no parties.")));
    }
    let owner = format!("{}{activity}", key.id);
    let cell = def.cell("activityid").unwrap_or_default();
    let old: Vec<RowKey> = context.database.tables[parties]
        .rows
        .iter()
        .filter(|(_, row)| row.cell(cell) == owner)
        .map(|(key, _)| key.clone())
        .collect();
    remove(context.database, old.into_iter().map(|key| (parties, key)).collect());
    for body in list {
        let changes = Changes::read(context, parties, body, Purpose::Create)?;
        let mut cells = vec![String::new(); def.cells];
        changes.apply(&mut cells);
        set(&def, &mut cells, "activityid", Some(owner.clone()));
        let is_empty = |name: &str| def.cell(name).is_none_or(|cell| cells[cell].is_empty());
        if is_empty("participationtypemask") {
            return Err(Refusal::new(400, "0x80040200", "The party has no participationtypemask."));
        }
        // Somebody who is no row of ours needs an address at least (dataverse 6.4).
        if is_empty("partyid") && is_empty("addressused") {
            return Err(Refusal::new(400, "0x80040203", "The party has neither a row nor an address."));
        }
        set(&def, &mut cells, "ispartydeleted", Some("false".to_owned()));
        let id = changes.id.unwrap_or_else(|| context.dice.guid());
        context.database.put(parties, id.into(), &cells);
    }
    Ok(())
}
