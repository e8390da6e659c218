//! Many rows in one message (dataverse 6.12).
//!
//! On standard tables the message is one transaction with one error that names no row. On elastic tables each
//! row stands alone, and the error lists what became of the failed ones.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::answer::{Answer, Refusal};
use crate::database::RowKey;
use crate::dice::named_guid;
use crate::query::{Options, Prefer};
use crate::read::Reader;
use crate::route::{Request, split_key};
use crate::schema::TableDef;

use super::bind::{Address, address};
use super::changes::is_elastic;
use super::row::{create_with, delete, replace, update};
use super::special::unsupported;
use super::{Body, WriteContext, bad_payload};

/// Most rows in one message; more are refused as too much for one request.
const TARGETS_MAX: usize = 1_000;
/// The error annotation with what became of the rows of an elastic table.
const ELASTIC_DETAILS: &str = "ErrorDetails.Plugin.BulkApiErrorDetails";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bulk {
    Create,
    Update,
    Upsert,
    Delete,
}

impl Bulk {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "CreateMultiple" => Self::Create,
            "UpdateMultiple" => Self::Update,
            "UpsertMultiple" => Self::Upsert,
            "DeleteMultiple" => Self::Delete,
            _ => return None,
        })
    }

    fn is_offered(self, def: &TableDef) -> bool {
        match self {
            Self::Delete => is_elastic(def),
            _ => def.bulk,
        }
    }
}

/// `POST {set}/Microsoft.Dynamics.CRM.{name}`.
pub(super) fn message(
    context: &mut WriteContext<'_>,
    table: usize,
    name: &str,
    request: &Request,
) -> Result<Answer, Refusal> {
    let bulk = Bulk::parse(name).ok_or_else(|| Refusal::no_segment(&format!("Microsoft.Dynamics.CRM.{name}")))?;
    let def = &context.database.tables[table].def;
    if !bulk.is_offered(def) {
        return Err(unsupported(name, def));
    }
    let elastic = is_elastic(def);
    let type_name = def.name.clone();
    let targets = Body::parse(&request.body)?
        .list("Targets")?
        .ok_or_else(|| bad_payload("The parameter 'Targets' is missing."))?;
    if targets.len() > TARGETS_MAX {
        return Err(Refusal::new(400, "0x80040203", format!("At most {TARGETS_MAX} targets are allowed.")));
    }
    if targets.iter().any(|target| target.type_name().as_deref() != Some(type_name.as_str())) {
        return Err(bad_payload(&format!(
            "Each target needs '@odata.type' with the value 'Microsoft.Dynamics.CRM.{type_name}'."
        )));
    }
    context.tally.parts += targets.len() as u32;
    let mut ids = Vec::new();
    let mut seen = HashSet::new();
    let mut failed: Vec<Value> = Vec::new();
    let mut first: Option<Refusal> = None;
    for (index, target) in targets.iter().enumerate() {
        if !elastic {
            ids.extend(one(context, table, bulk, target, &mut seen)?);
            continue;
        }
        match context.transaction(|context| one(context, table, bulk, target, &mut seen)) {
            Ok(id) => ids.extend(id),
            Err(refusal) => {
                let id = target.text(&context.database.tables[table].def.primary_id).unwrap_or_default();
                failed.push(json!({"RequestIndex": index, "Id": id, "StatusCode": refusal.status}));
                first.get_or_insert(refusal);
            }
        }
    }
    if let Some(mut refusal) = first {
        // What succeeded stays, so this is an answer and not a refusal of the operation.
        refusal.details.push((ELASTIC_DETAILS, Value::from(failed).to_string()));
        return Ok(refusal.for_client(&request.prefer).into_answer());
    }
    if bulk != Bulk::Create {
        return Ok(Answer::empty(204));
    }
    let ids: Vec<String> = ids.iter().map(|key| key.id.to_string()).collect();
    let answer = json!({
        "@odata.context": format!("{}$metadata#Microsoft.Dynamics.CRM.CreateMultipleResponse", context.base()),
        "Ids": ids,
    });
    Ok(Answer::json(answer.to_string()))
}

/// Writes one target; `None` for one that was left out.
fn one(
    context: &mut WriteContext<'_>,
    table: usize,
    bulk: Bulk,
    target: &Body,
    seen: &mut HashSet<RowKey>,
) -> Result<Option<RowKey>, Refusal> {
    if bulk == Bulk::Create {
        return create_with(context, table, target, None, None).map(Some);
    }
    let (key, preset) = match address_of(context, table, target)? {
        Address::Primary(key) | Address::Alternate { found: Some(key), .. } => (key, None),
        Address::Alternate { found: None, column, value } => {
            if bulk != Bulk::Upsert {
                return Err(missing(context, table, &value));
            }
            if target.raw(&column).is_some() {
                // The key stands in the reference and must not come again (dataverse 6.12).
                return Err(bad_payload(&format!("The key attribute '{column}' is in the body and in '@odata.id'.")));
            }
            (context.dice.guid().into(), Some((column, value)))
        }
    };
    if !seen.insert(key.clone()) {
        return match bulk {
            // Only the first copy counts; the others are left out without a word (dataverse 6.12).
            Bulk::Update => Ok(None),
            _ => Err(Refusal::new(400, "0x80040237", "The same row occurs more than once in the request.")),
        };
    }
    let exists = context.database.tables[table].get(&key).is_some();
    match bulk {
        _ if !exists && bulk != Bulk::Upsert => return Err(missing(context, table, &key.id.to_string())),
        Bulk::Delete => delete(context, table, &key)?,
        _ if !exists => {
            create_with(context, table, target, Some(key.clone()), preset)?;
        }
        Bulk::Upsert if is_elastic(&context.database.tables[table].def) => replace(context, table, &key, target)?,
        _ => update(context, table, &key, target)?,
    }
    Ok(Some(key))
}

fn missing(context: &WriteContext<'_>, table: usize, id: &str) -> Refusal {
    Refusal::no_row(&context.database.tables[table].def.name, id)
}

/// The row a target means: by `@odata.id`, or by its primary key.
fn address_of(context: &mut WriteContext<'_>, table: usize, target: &Body) -> Result<Address, Refusal> {
    let def = &context.database.tables[table].def;
    let options = Options::in_partition(target.text("partitionid"));
    if let Some(reference) = target.text("@odata.id") {
        let set = def.set.as_deref().unwrap_or_default();
        let key = reference
            .rsplit('/')
            .next()
            .and_then(|last| last.strip_prefix(set))
            .and_then(split_key)
            .filter(|(_, rest)| rest.is_empty())
            .ok_or_else(|| bad_payload(&format!("The reference '{reference}' is not one of '{set}'.")))?
            .0
            .to_owned();
        return address(context.database, table, &key, &options);
    }
    match target.text(&def.primary_id) {
        Some(id) => address(context.database, table, &id, &options),
        // A new row without an id (dataverse 6.12 does not say; an upsert on nothing creates).
        None => Err(Refusal::new(400, "0x80040203", format!("The primary key '{}' is missing.", def.primary_id))),
    }
}

/// `GET sdkmessagefilters`: which tables offer which bulk message; UpsertMultiple is never listed (dataverse 6.12).
pub(crate) fn filters(reader: &Reader<'_>, options: &Options) -> Answer {
    let filter = options.filter.as_deref().unwrap_or_default();
    let of = |property: &str| -> Vec<&str> {
        filter
            .split(property)
            .skip(1)
            .filter_map(|rest| rest.trim_start().strip_prefix("eq '")?.split('\'').next())
            .collect()
    };
    let (messages, tables) = (of("sdkmessageid/name"), of("primaryobjecttypecode"));
    let mut rows = Vec::new();
    for table in &reader.database.tables {
        let def = &table.def;
        if !tables.is_empty() && !tables.contains(&def.name.as_str()) {
            continue;
        }
        for message in ["CreateMultiple", "UpdateMultiple", "DeleteMultiple"] {
            let offered = Bulk::parse(message).is_some_and(|bulk| bulk.is_offered(def));
            if offered && messages.contains(&message) {
                let id = named_guid(&format!("message filter {message} {}", def.name)).to_string();
                rows.push(json!({"sdkmessagefilterid": id, "primaryobjecttypecode": def.name}));
            }
        }
    }
    let context = format!("{}/api/data/v9.2/$metadata#sdkmessagefilters", reader.url);
    Answer::json(json!({"@odata.context": context, "value": rows}).to_string())
}

/// A batch part may fail although its operation stands.
pub(super) fn has_failed(answer: &Answer) -> bool {
    answer.status >= 400
}

/// Preferences of a part.
pub(super) fn preferences(headers: &crate::route::Headers) -> Prefer {
    Prefer::parse(headers.all("prefer"))
}
