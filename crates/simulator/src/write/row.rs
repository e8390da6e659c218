//! Creating, updating and deleting one row (dataverse 6.1).

use crate::access::{OVERRIDE_CREATED_ON, no_privilege};
use crate::answer::{Answer, Refusal};
use crate::database::RowKey;
use crate::print::etag;
use crate::query::Options;
use crate::route::{Headers, Request};
use crate::rows::set;
use crate::schema::TableDef;

use super::bind::{Address, address, with_key};
use super::changes::{Changes, Purpose, is_elastic, required};
use super::special::Message;
use super::{Body, WriteContext, bad_payload, effects, logic, parties, row_key, special, state};

/// `If-Match` and `If-None-Match` of one operation.
#[derive(Debug, Default)]
struct Conditions {
    /// `*` or an etag.
    matches: Option<String>,
    /// `If-None-Match: *`.
    absent: bool,
}

impl Conditions {
    /// `null` is no condition but keeps the service from answering out of a cache (dataverse 1.2).
    fn read(headers: &Headers) -> Result<Self, Refusal> {
        let absent: Vec<&str> =
            headers.all("if-none-match").flat_map(|value| value.split(',')).map(str::trim).collect();
        if absent.len() > 1 {
            return Err(Refusal::new(400, "0x80060888", "The header If-None-Match was sent more than once."));
        }
        let matches = headers.get("if-match").map(str::to_owned);
        let absent = absent.first() == Some(&"*");
        if absent && matches.is_some() {
            return Err(Refusal::new(400, "0x80060888", "If-Match and If-None-Match exclude each other."));
        }
        Ok(Self { matches, absent })
    }
}

fn does_not_exist(def: &TableDef, key: &RowKey) -> Refusal {
    Refusal::no_row(&def.name, &key.id.to_string())
}

/// Compares an etag with the row (dataverse 6.13).
fn check_match(context: &WriteContext<'_>, table: usize, key: &RowKey, wanted: Option<&str>) -> Result<(), Refusal> {
    let entry = &context.database.tables[table];
    let Some(row) = entry.get(key) else { return Err(does_not_exist(&entry.def, key)) };
    let Some(wanted) = wanted.filter(|wanted| *wanted != "*") else { return Ok(()) };
    if !entry.def.has_concurrency() {
        return Err(Refusal::new(
            400,
            "0x8006088d",
            format!("Optimistic concurrency isn't enabled for entity type {}.", entry.def.name),
        ));
    }
    let mut current = String::new();
    etag(row.version(), is_elastic(&entry.def), &mut current);
    if current.replace("\\\"", "\"") == wanted {
        return Ok(());
    }
    let code = if is_elastic(&entry.def) { "412" } else { "0x80060882" };
    Err(Refusal::new(412, code, "The version of the existing record doesn't match the RowVersion property provided."))
}

/// `POST {set}`.
pub(super) fn post(context: &mut WriteContext<'_>, table: usize, request: &Request) -> Result<Answer, Refusal> {
    let body = Body::parse(&request.body)?;
    let key = create(context, table, &body)?;
    written(context, table, &key, request, 201)
}

/// `PATCH {set}({key})`: an update, a creation or either, as the conditions say.
pub(super) fn patch(
    context: &mut WriteContext<'_>,
    table: usize,
    key: &str,
    request: &Request,
    options: &Options,
) -> Result<Answer, Refusal> {
    let conditions = Conditions::read(&request.headers)?;
    let body = Body::parse(&request.body)?;
    if options.partition.is_some() {
        // The parameter is for GET and DELETE (dataverse 8.12).
        return Err(Refusal::bad_query("The query parameter partitionId is not supported."));
    }
    let (key, preset) = match address(context.database, table, key, options)? {
        Address::Primary(key) => (key_of_body(context, table, key, &body)?, None),
        Address::Alternate { found: Some(key), .. } => (key, None),
        Address::Alternate { found: None, .. } if conditions.matches.is_some() => {
            return Err(row_key(context, table, key, options).expect_err("no row has this alternate key"));
        }
        Address::Alternate { found: None, column, value } => {
            let key = context.dice.guid().into();
            (key, Some((column, value)))
        }
    };
    let exists = context.database.tables[table].get(&key).is_some();
    if conditions.absent && exists {
        return Err(Refusal::new(412, "0x80040237", "A record with matching key values already exists."));
    }
    if let Some(wanted) = &conditions.matches {
        check_match(context, table, &key, Some(wanted))?;
    }
    if exists {
        if is_elastic(&context.database.tables[table].def) && conditions.matches.is_none() {
            replace(context, table, &key, &body)?;
        } else {
            update(context, table, &key, &body)?;
        }
        written(context, table, &key, request, 200)
    } else {
        create_with(context, table, &body, Some(key.clone()), preset)?;
        written(context, table, &key, request, 201)
    }
}

/// A plain address of an elastic row means the partition in the body, else the default one (dataverse 8.12).
fn key_of_body(context: &WriteContext<'_>, table: usize, key: RowKey, body: &Body) -> Result<RowKey, Refusal> {
    let def = &context.database.tables[table].def;
    if let Some(id) = body.text(&def.primary_id)
        && !id.trim_matches(['{', '}']).eq_ignore_ascii_case(&key.id.to_string())
    {
        return Err(Refusal::new(400, "0x80040203", format!("'{}' is not the key of the URL.", def.primary_id)));
    }
    let default = key.id.to_string();
    match body.text("partitionid").filter(|_| is_elastic(def)) {
        Some(partition) if key.partition.as_deref() == Some(default.as_str()) => {
            Ok(RowKey { id: key.id, partition: Some(partition.into()) })
        }
        // The partition of a row never changes.
        Some(partition) if key.partition.as_deref() != Some(partition.as_str()) => {
            Err(Refusal::new(400, "0x80040203", "The partition of a row cannot be changed."))
        }
        _ => Ok(key),
    }
}

/// The answer to a successful write of a row.
fn written(
    context: &WriteContext<'_>,
    table: usize,
    key: &RowKey,
    request: &Request,
    status: u16,
) -> Result<Answer, Refusal> {
    let url = context.row_url(table, key);
    let elastic = is_elastic(&context.database.tables[table].def);
    let mut answer = if request.prefer.representation {
        let options = Options::parse(&request.query)?;
        let reader = context.reader(&request.link);
        let row = reader.single(table, key, &options, &request.prefer)?;
        // The id of the row is in the body then (dataverse 1.3).
        Answer { status, ..row }.with("Preference-Applied", "return=representation")
    } else {
        Answer::empty(204).with("Location", url.clone()).with("OData-EntityId", url)
    };
    if elastic {
        answer = answer.with("x-ms-session-token", format!("0:-1#{}", context.database.version));
    }
    Ok(answer)
}

/// `DELETE {set}({key})`.
pub(super) fn remove(
    context: &mut WriteContext<'_>,
    table: usize,
    key: &str,
    request: &Request,
    options: &Options,
) -> Result<Answer, Refusal> {
    let conditions = Conditions::read(&request.headers)?;
    let key = row_key(context, table, key, options)?;
    special::check_message(context, table, Message::Delete)?;
    check_match(context, table, &key, conditions.matches.as_deref())?;
    delete(context, table, &key)?;
    Ok(Answer::empty(204))
}

/// `PUT` and `DELETE {set}({key})/{property}`.
pub(super) fn property(
    context: &mut WriteContext<'_>,
    table: usize,
    key: &str,
    property: &str,
    request: &Request,
    options: &Options,
) -> Result<Answer, Refusal> {
    let conditions = Conditions::read(&request.headers)?;
    let key = row_key(context, table, key, options)?;
    check_match(context, table, &key, conditions.matches.as_deref())?;
    let def = &context.database.tables[table].def;
    let is_parties = def.activity && property.strip_suffix("_activity_parties") == Some(def.name.as_str());
    if !is_parties && def.property(property).is_none_or(|column| column.kind.is_lookup()) {
        return Err(Refusal::no_segment(property));
    }
    let body = Body::parse(&request.body)?;
    let value = match (request.verb, body.raw("value")) {
        (crate::route::Verb::Delete, _) if !is_parties => "null",
        (crate::route::Verb::Put, Some(value)) => value,
        _ => return Err(bad_payload("The member 'value' is missing.")),
    };
    let change = format!("{{{}:{value}}}", serde_json::Value::from(property));
    update(context, table, &key, &Body::parse(change.as_bytes())?)?;
    Ok(Answer::empty(204))
}

/// Creates a row as `POST` does: checks, defaults, what comes along with it, custom logic.
pub(crate) fn create(context: &mut WriteContext<'_>, table: usize, body: &Body) -> Result<RowKey, Refusal> {
    create_with(context, table, body, None, None)
}

/// Creates a row with a given key, or with a value of an alternate key from the URL.
pub(super) fn create_with(
    context: &mut WriteContext<'_>,
    table: usize,
    body: &Body,
    key: Option<RowKey>,
    preset: Option<(String, String)>,
) -> Result<RowKey, Refusal> {
    special::check_message(context, table, Message::Create)?;
    context.require("Create", table)?;
    let changes = Changes::read(context, table, body, Purpose::Create)?;
    let def = context.database.tables[table].def.clone();
    let key = key.unwrap_or_else(|| {
        let id = changes.id.unwrap_or_else(|| context.dice.guid());
        let partition = changes.partition.clone().unwrap_or_else(|| id.to_string());
        RowKey { id, partition: is_elastic(&def).then(|| partition.into()) }
    });
    if context.database.tables[table].get(&key).is_some() {
        return Err(if is_elastic(&def) {
            Refusal::new(409, "409", "Resource with specified id or name already exists.")
        } else {
            Refusal::new(412, "0x80040237", "Cannot insert duplicate key.")
        });
    }
    let mut cells = vec![String::new(); def.cells];
    if let Some((column, value)) = preset {
        set(&def, &mut cells, &column, Some(value));
    }
    changes.apply(&mut cells);
    effects::stamp_create(context, table, &mut cells);
    if let Some(cell) = def.cell("overriddencreatedon").filter(|cell| !cells[*cell].is_empty()) {
        if !context.has(OVERRIDE_CREATED_ON) {
            return Err(no_privilege(OVERRIDE_CREATED_ON, None, context.caller.id));
        }
        // The given date becomes the date of creation, the real one stands beside it (dataverse 6.6).
        if let Some(created) = def.cell("createdon") {
            cells.swap(cell, created);
        }
    }
    if let Some((state, status)) = state::at_create(&def, changes.status)? {
        set(&def, &mut cells, "statecode", Some(state.to_string()));
        set(&def, &mut cells, "statuscode", Some(status.to_string()));
    }
    effects::own(context, table, &mut cells, None)?;
    special::before_create(context, table, &key, &mut cells)?;
    for column in def.columns.iter().filter(|column| column.required) {
        if def.cell(&column.name).is_some_and(|cell| cells[cell].is_empty()) {
            return Err(required(&def, column));
        }
    }
    check_alternate_key(context, table, &key, &cells, None)?;
    logic::before(context, table, &mut cells);
    effects::derive(context, table, &mut cells)?;
    let addresses = effects::claim_addresses(context, &def, &mut cells)?;
    context.database.put(table, key.clone(), &cells);
    effects::bear_addresses(context, table, &key, addresses);
    effects::reciprocate(context, table, &key);
    if let Some(list) = &changes.parties {
        parties::replace(context, table, &key, list)?;
    }
    context.count_rows(table, |rows| rows.created += 1);
    logic::after(context, table, &key, logic::Happened::Created)?;
    Ok(key)
}

/// Updates an existing row as `PATCH` does.
pub(crate) fn update(context: &mut WriteContext<'_>, table: usize, key: &RowKey, body: &Body) -> Result<(), Refusal> {
    special::check_message(context, table, Message::Update)?;
    context.require("Write", table)?;
    let changes = Changes::read(context, table, body, Purpose::Update)?;
    let def = context.database.tables[table].def.clone();
    let Some(row) = context.database.tables[table].rows.get(key) else { return Err(does_not_exist(&def, key)) };
    let before = row.cells(def.cells);
    if changes.id.is_some_and(|id| id != key.id) {
        return Err(Refusal::new(400, "0x80040203", format!("The key of {} cannot be changed.", def.name)));
    }
    // A closed row takes a new state and nothing else (dataverse 6.5).
    if changes.touches() {
        state::check_open(&def, &before)?;
    }
    special::before_update(context, table, &changes, &before)?;
    let mut cells = before.clone();
    changes.apply(&mut cells);
    if changes.state.is_some() || changes.status.is_some() {
        let (state, status) = state::at_update(&def, &before, changes.state, changes.status)?;
        set(&def, &mut cells, "statecode", Some(state.to_string()));
        set(&def, &mut cells, "statuscode", Some(status.to_string()));
    }
    special::check_hierarchy(context, table, key, &before, &cells)?;
    effects::own(context, table, &mut cells, Some(&before))?;
    check_alternate_key(context, table, key, &cells, Some(&before))?;
    logic::before(context, table, &mut cells);
    effects::derive(context, table, &mut cells)?;
    effects::stamp_update(context, table, &mut cells);
    context.database.put(table, key.clone(), &cells);
    effects::follow_addresses(context, table, key);
    effects::assign_children(context, table, key, &before);
    if let Some(list) = &changes.parties {
        parties::replace(context, table, key, list)?;
    }
    context.count_rows(table, |rows| rows.updated += 1);
    logic::after(context, table, key, logic::Happened::Updated)
}

/// An elastic upsert replaces the whole row: what is not sent becomes null (dataverse 8.12).
pub(super) fn replace(context: &mut WriteContext<'_>, table: usize, key: &RowKey, body: &Body) -> Result<(), Refusal> {
    special::check_message(context, table, Message::Update)?;
    context.require("Write", table)?;
    let changes = Changes::read(context, table, body, Purpose::Update)?;
    let def = context.database.tables[table].def.clone();
    let mut cells = vec![String::new(); def.cells];
    changes.apply(&mut cells);
    effects::stamp_create(context, table, &mut cells);
    effects::own(context, table, &mut cells, None)?;
    context.database.put(table, key.clone(), &cells);
    context.count_rows(table, |rows| rows.updated += 1);
    logic::after(context, table, key, logic::Happened::Updated)
}

/// Deletes a row with what goes with it (dataverse 6.14).
pub(crate) fn delete(context: &mut WriteContext<'_>, table: usize, key: &RowKey) -> Result<(), Refusal> {
    special::check_message(context, table, Message::Delete)?;
    context.require("Delete", table)?;
    let entry = &context.database.tables[table];
    if !entry.rows.contains_key(key) {
        return Err(does_not_exist(&entry.def, key));
    }
    special::before_delete(context, table, key)?;
    logic::after(context, table, key, logic::Happened::Deleted)?;
    let removed = crate::rows::remove(context.database, vec![(table, key.clone())]);
    if let Some(holder) = removed.restricted.first() {
        let holder = context.database.tables[*holder].def.name.clone();
        return Err(Refusal::new(
            405,
            "0x80040227",
            format!(
                "The {} cannot be deleted because it is associated with another record of {holder}.",
                context.database.tables[table].def.name
            ),
        ));
    }
    context.count_rows(table, |rows| rows.deleted += 1);
    Ok(())
}

/// No two rows share the value of an alternate key; null is no value (dataverse 6.8).
fn check_alternate_key(
    context: &WriteContext<'_>,
    table: usize,
    key: &RowKey,
    cells: &[String],
    before: Option<&[String]>,
) -> Result<(), Refusal> {
    let def = &context.database.tables[table].def;
    let Some((column, cell)) = def.key.as_deref().and_then(|column| Some((column, def.cell(column)?))) else {
        return Ok(());
    };
    if cells[cell].is_empty() || before.is_some_and(|before| before[cell] == cells[cell]) {
        return Ok(());
    }
    let text: String = serde_json::from_str(&cells[cell]).unwrap_or_default();
    match with_key(context.database, table, cell, &text) {
        Some(other) if other != *key => Err(Refusal::new(
            412,
            "0x80060892",
            format!(
                "A record that has the attribute values {column} already exists. The entity key new_{column}key requires that this set of attributes contains unique values."
            ),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::Conditions;
    use crate::route::Headers;

    #[test]
    fn null_is_no_condition_and_two_are_one_too_many() {
        let of = |pairs: &[(&str, &str)]| Conditions::read(&Headers::new(pairs.iter().copied()));
        assert!(!of(&[("If-None-Match", "null")]).unwrap().absent);
        assert!(of(&[("If-None-Match", "*")]).unwrap().absent);
        assert!(of(&[("If-None-Match", "null"), ("If-None-Match", "*")]).is_err());
        assert_eq!(of(&[("If-Match", "W/\"7\"")]).unwrap().matches.unwrap(), "W/\"7\"");
        assert!(of(&[("If-Match", "*"), ("If-None-Match", "*")]).is_err());
    }
}
