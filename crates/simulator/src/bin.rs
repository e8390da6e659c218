//! The recycle bin: what deleted rows leave behind, reading it, and the way back (dataverse 6.15).
//!
//! A deleted row of an enabled table stays here with everything needed to undo the deletion: its values, the
//! children that went along, and the rows elsewhere whose lookup was cleared. The bin cannot be read but by
//! FetchXML with `datasource='bin'`, and only the part of that language a restorer needs is understood: one
//! table, some columns, a filter on the primary key.
//!
//! - A row deleted a second time under an id that is still in the bin is not kept again.
//! - `Restore` is all or nothing, children and cleared lookups included.
//! - Rows of intersect tables are not kept: links do not come back. That, and that `modifiedon` keeps its old
//!   value, is assumed; the documentation is silent.

use std::collections::BTreeMap;

use crate::answer::{Answer, Refusal};
use crate::database::{Database, Row, RowKey, RowView, Table};
use crate::guid::Guid;
use crate::print::{Columns, Plan};
use crate::query::Prefer;
use crate::read::{Reader, parse_key};
use crate::rows::set;
use crate::schema::{Kind, Ownership, Slot, Storage, TableDef, Unreadable};
use crate::write::{Body, WriteContext, bad_payload, update};
use crate::{actions, dice};

/// Most rows in one answer (dataverse 3.3).
const FETCH_ROWS_MAX: usize = 5_000;
/// Tables that are never kept, of those the catalogue has (dataverse 6.15).
const UNSUPPORTED: [&str; 3] = ["businessunit", "queue", "asyncoperation"];

/// A deleted row.
#[derive(Debug, Clone)]
pub(crate) struct Binned {
    /// Version of the deletion.
    pub(crate) deleted: u64,
    row: Row,
    /// Table and key of rows that went along.
    children: Vec<(usize, RowKey)>,
    /// Table, key and cell of lookups that were cleared.
    unlinked: Vec<(usize, RowKey, usize)>,
}

/// Deleted rows of one table.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bin(pub(crate) BTreeMap<RowKey, Binned>);

impl Bin {
    /// Keeps a row, unless one with its key is here already.
    pub(crate) fn keep(&mut self, key: &RowKey, row: &Row, deleted: u64) {
        let binned = Binned { deleted, row: row.clone(), children: Vec::new(), unlinked: Vec::new() };
        self.0.entry(key.clone()).or_insert(binned);
    }

    /// Forgets a row whose deletion was taken back.
    pub(crate) fn discard(&mut self, key: &RowKey, deleted: u64) {
        if self.0.get(key).is_some_and(|binned| binned.deleted == deleted) {
            self.0.remove(key);
        }
    }
}

/// A row that lost its parent: its own table and key, the lookup's cell and what that held.
pub(crate) struct Orphan<'a> {
    pub(crate) table: usize,
    pub(crate) key: &'a RowKey,
    pub(crate) cell: usize,
    pub(crate) parent: &'a str,
    /// It goes with the parent, instead of having its lookup cleared.
    pub(crate) goes: bool,
}

/// Notes beside a parent deleted after version `since` what happened to a row that named it.
pub(crate) fn note(database: &mut Database, orphan: &Orphan<'_>, since: u64) {
    let (Some(id), Some(name)) = (orphan.parent.get(..36).and_then(Guid::parse), orphan.parent.get(36..)) else {
        return;
    };
    let Some(table) = database.table(name) else { return };
    let bin = database.tables[table].bin.as_mut();
    let Some(binned) = bin.and_then(|bin| bin.0.get_mut(&id.into())).filter(|binned| binned.deleted > since) else {
        return;
    };
    if orphan.goes {
        binned.children.push((orphan.table, orphan.key.clone()));
    } else {
        binned.unlinked.push((orphan.table, orphan.key.clone(), orphan.cell));
    }
}

fn is_supported(def: &TableDef) -> bool {
    def.storage == Storage::Standard
        && def.set.is_some()
        && !def.fixed
        && !def.operational
        && !def.is_intersect()
        && def.unreadable != Some(Unreadable::NotSupported)
        && !UNSUPPORTED.contains(&def.name.as_str())
}

/// Switches the bin on for every table that can have one, and adds the tables that say so.
pub(crate) fn install(database: &mut Database) {
    let mut entity = TableDef::new("entity", Some("entities"), "entityid");
    entity.add("name:s64* logicalname:s64 entitysetname:s64");
    let mut config = TableDef::new("recyclebinconfig", Some("recyclebinconfigs"), "recyclebinconfigid");
    config.add(
        "name:s256* extensionofrecordid:->entity cleanupintervalindays:int isreadyforrecyclebin:bool \
         statecode:state(0,1) statuscode:status(1@0,2@1)",
    );
    let supported: Vec<TableDef> = database
        .tables
        .iter_mut()
        .filter(|table| is_supported(&table.def))
        .map(|table| {
            table.bin = Some(Bin::default());
            table.def.clone()
        })
        .collect();
    for (number, (mut def, ownership)) in
        [(entity, Ownership::None), (config, Ownership::Organization)].into_iter().enumerate()
    {
        def.add_common(ownership);
        def.fixed = true;
        def.tracking = false;
        def.type_code = 9_900 + number as u32;
        database.add_table(Table::new(def));
    }
    // The row of the environment itself says how long, all others defer to it with -1 (dataverse 6.15).
    write_config(database, "organization", "organizations", dice::named_guid("table organization"), 30);
    for def in supported {
        write_config(database, &def.name, def.set.as_deref().unwrap_or_default(), def.metadata_id(), -1);
    }
}

fn write_config(database: &mut Database, name: &str, set_name: &str, entity_id: Guid, days: i32) {
    let (Some(entity), Some(config)) = (database.table("entity"), database.table("recyclebinconfig")) else { return };
    let def = &database.tables[entity].def;
    let mut cells = vec![String::new(); def.cells];
    for (column, value) in [("name", name), ("logicalname", name), ("entitysetname", set_name)] {
        set(def, &mut cells, column, Some(format!("\"{value}\"")));
    }
    database.put(entity, entity_id.into(), &cells);
    let def = &database.tables[config].def;
    let mut cells = vec![String::new(); def.cells];
    for (column, value) in [
        ("name", format!("\"{name}\"")),
        ("extensionofrecordid", format!("{entity_id}entity")),
        ("cleanupintervalindays", days.to_string()),
        ("isreadyforrecyclebin", "true".to_owned()),
        ("statecode", "0".to_owned()),
        ("statuscode", "1".to_owned()),
    ] {
        set(def, &mut cells, column, Some(value));
    }
    database.put(config, dice::named_guid(&format!("bin of {name}")).into(), &cells);
}

/// A query in FetchXML, as far as it is understood.
#[derive(Debug, Default, PartialEq, Eq)]
struct Fetch {
    bin: bool,
    entity: String,
    /// Logical names; `None` for all.
    columns: Option<Vec<String>>,
    /// Column and values of the one condition.
    condition: Option<(String, Vec<String>)>,
    limit: Option<usize>,
}

impl Fetch {
    fn parse(xml: &str) -> Result<Self, Refusal> {
        let malformed = || Refusal::new(400, "0x80041130", "The FetchXML is malformed.");
        let mut fetch = Self::default();
        let (mut columns, mut everything) = (Vec::new(), false);
        let mut inside_value = false;
        let mut rest = xml.trim();
        while let Some(start) = rest.find('<') {
            let text = rest[..start].trim();
            if inside_value && let Some((_, values)) = &mut fetch.condition {
                values.push(unescape(text));
            }
            let end = rest.find('>').filter(|end| *end > start).ok_or_else(malformed)?;
            let tag = rest[start + 1..end].trim_end_matches('/').trim();
            inside_value = tag == "value";
            rest = &rest[end + 1..];
            if tag.starts_with('/') {
                continue;
            }
            let (name, attributes) = tag.split_once(char::is_whitespace).unwrap_or((tag, ""));
            let attribute = |wanted: &str| find_attribute(attributes, wanted);
            match name {
                "fetch" => {
                    fetch.bin = attribute("datasource").as_deref() == Some("bin");
                    fetch.limit = attribute("top").or_else(|| attribute("count")).and_then(|text| text.parse().ok());
                }
                "entity" => fetch.entity = attribute("name").ok_or_else(malformed)?,
                "attribute" => columns.push(attribute("name").ok_or_else(malformed)?),
                "all-attributes" => everything = true,
                "condition" if fetch.condition.is_none() => {
                    let operator = attribute("operator").ok_or_else(malformed)?;
                    if !matches!(operator.as_str(), "eq" | "in") {
                        return Err(Refusal::not_simulated(&format!("The FetchXML operator '{operator}'")));
                    }
                    let column = attribute("attribute").ok_or_else(malformed)?;
                    fetch.condition = Some((column, attribute("value").into_iter().collect()));
                }
                "filter" | "value" => {}
                other => return Err(Refusal::not_simulated(&format!("The FetchXML element '{other}' at this place"))),
            }
        }
        if fetch.entity.is_empty() {
            return Err(malformed());
        }
        fetch.columns = (!everything && !columns.is_empty()).then_some(columns);
        Ok(fetch)
    }
}

fn find_attribute(attributes: &str, wanted: &str) -> Option<String> {
    let mut rest = attributes.trim_start();
    while let Some((name, after)) = rest.split_once('=') {
        let after = after.trim_start();
        let quote = after.chars().next().filter(|quote| matches!(quote, '\'' | '"'))?;
        let (value, next) = after[1..].split_once(quote)?;
        if name.trim() == wanted {
            return Some(unescape(value));
        }
        rest = next.trim_start();
    }
    None
}

fn unescape(text: &str) -> String {
    let mut text = text.to_owned();
    for (entity, letter) in [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&amp;", "&")] {
        text = text.replace(entity, letter);
    }
    text
}

/// `GET {set}?fetchXml=…`: deleted rows, in key order.
pub(crate) fn fetch(reader: &Reader<'_>, index: usize, xml: &str, prefer: &Prefer) -> Result<Answer, Refusal> {
    let fetch = Fetch::parse(xml)?;
    let table = &reader.database.tables[index];
    let def = &table.def;
    if fetch.entity != def.name {
        return Err(Refusal::bad_query(format!("The FetchXML is about '{}' and not '{}'.", fetch.entity, def.name)));
    }
    if !fetch.bin {
        return Err(Refusal::not_simulated("FetchXML on live rows"));
    }
    reader.controls.check_read(def, reader.user)?;
    let wanted = match &fetch.condition {
        Some((column, _)) if *column != def.primary_id => {
            return Err(Refusal::not_simulated("A FetchXML condition on another column than the primary key"));
        }
        Some((_, values)) => {
            let ids: Option<Vec<Guid>> = values.iter().map(|value| Guid::parse(value.trim())).collect();
            Some(ids.ok_or_else(|| Refusal::bad_query("A value of the condition is no id."))?)
        }
        None => None,
    };
    // FetchXML says columns by logical name, the answer by property.
    let names = fetch
        .columns
        .map(|columns| {
            let property = |name: &String| {
                let property = def.column(name).and_then(crate::schema::Column::property);
                property.ok_or_else(|| no_attribute(def, name))
            };
            columns.iter().map(property).collect::<Result<Vec<String>, Refusal>>()
        })
        .transpose()?;
    let plan = Plan::new(def, &names.as_deref().map_or(Columns::Default, Columns::Named), prefer)?;
    let mut rows: Vec<String> = Vec::new();
    for (key, binned) in table.bin.iter().flat_map(|bin| &bin.0) {
        if rows.len() == fetch.limit.unwrap_or(FETCH_ROWS_MAX).min(FETCH_ROWS_MAX) {
            break;
        }
        if wanted.as_ref().is_none_or(|ids| ids.contains(&key.id)) {
            let mut row = String::new();
            plan.write(key, RowView::Stored(&binned.row), &mut row);
            rows.push(row);
        }
    }
    let set = def.set.as_deref().unwrap_or_default();
    Ok(Answer::json(format!(
        "{{\"@odata.context\":\"{}/api/data/v9.2/$metadata#{set}\",\"value\":[{}]}}",
        reader.url,
        rows.join(",")
    )))
}

fn no_attribute(def: &TableDef, name: &str) -> Refusal {
    Refusal::new(400, "0x80041103", format!("'{}' entity doesn't contain attribute with Name = '{name}'.", def.name))
}

/// `POST Restore`.
pub(crate) fn restore(context: &mut WriteContext<'_>, body: &Body) -> Result<Answer, Refusal> {
    let target = body.object("Target")?.ok_or_else(|| bad_payload("The parameter 'Target' is missing."))?;
    let (table, key) = addressed(context, &target)?;
    context.require("Create", table)?;
    let mut restored = Vec::new();
    put_back(context, table, &key, &mut restored)?;
    for (table, key) in &restored {
        check_references(context, *table, key)?;
    }
    let primary_id = context.database.tables[table].def.primary_id.clone();
    let overrides: Vec<_> =
        target.0.into_iter().filter(|(name, _)| !name.starts_with('@') && *name != primary_id).collect();
    if !overrides.is_empty() {
        update(context, table, &key, &Body(overrides))?;
    }
    Ok(actions::id_answer(context, "Restore", &key))
}

/// The row a target means: by URL, or by type and primary key; alternate keys do not reach the bin.
fn addressed(context: &WriteContext<'_>, target: &Body) -> Result<(usize, RowKey), Refusal> {
    let database = &context.database;
    if let Some(url) = target.text("@odata.id") {
        let path = url.rsplit('/').next().unwrap_or_default();
        let (set, key) = path.split_once('(').unwrap_or((path, ""));
        let table = database.set(set).ok_or_else(|| Refusal::no_segment(set))?;
        return Ok((table, parse_key(&database.tables[table].def, key.trim_end_matches(')'), None)?));
    }
    let name = target.type_name().ok_or_else(|| bad_payload("The target has no '@odata.type'."))?;
    let table = database
        .table(&name)
        .ok_or_else(|| Refusal::bad_query(format!("The entity with a name = '{name}' was not found.")))?;
    let def = &database.tables[table].def;
    let id =
        target.text(&def.primary_id).ok_or_else(|| bad_payload(&format!("The target has no '{}'.", def.primary_id)))?;
    Ok((table, parse_key(def, &id, None)?))
}

fn put_back(
    context: &mut WriteContext<'_>,
    table: usize,
    key: &RowKey,
    restored: &mut Vec<(usize, RowKey)>,
) -> Result<(), Refusal> {
    let entry = &context.database.tables[table];
    let def = entry.def.clone();
    if entry.rows.contains_key(key) {
        return Err(Refusal::new(
            400,
            "0x80049939",
            format!(
                "Please delete the existing conflicting record '{}' with primary key '{}' and primary key value '{}' before attempting restore.",
                def.name, def.primary_id, key.id
            ),
        ));
    }
    let Some(binned) = entry.bin.as_ref().and_then(|bin| bin.0.get(key)) else {
        // The code for a row that is not in the bin is not confirmed.
        return Err(Refusal::no_row(&def.name, &key.id.to_string()));
    };
    let cells = binned.row.cells(def.cells);
    check_options(&def, &cells)?;
    if let Some(cell) = def.key.as_deref().and_then(|column| def.cell(column)).filter(|cell| !cells[*cell].is_empty())
        && entry.rows.values().any(|row| row.cell(cell) == cells[cell])
    {
        return Err(Refusal::new(
            400,
            "0x80049929",
            format!(
                "Duplicate entity key preventing restore of record '{}' with primary key '{}' and primary key value '{}'. See inner exception for entity key details.",
                def.name, def.primary_id, key.id
            ),
        ));
    }
    let Some(binned) = context.database.unbin(table, key) else { return Ok(()) };
    context.database.put(table, key.clone(), &cells);
    restored.push((table, key.clone()));
    for (child, key) in &binned.children {
        let child_table = &context.database.tables[*child];
        // A child that is somewhere else by now stays there.
        if child_table.bin.as_ref().is_some_and(|bin| bin.0.contains_key(key)) && !child_table.rows.contains_key(key) {
            put_back(context, *child, key, restored)?;
        }
    }
    for (other, other_key, cell) in &binned.unlinked {
        let entry = &context.database.tables[*other];
        let Some(row) = entry.rows.get(other_key) else {
            return Err(lost_reference(&entry.def, other_key, &def, key, *cell));
        };
        // A lookup that was set to something else meanwhile is left alone.
        if row.cell(*cell).is_empty() {
            let value = format!("{}{}", key.id, def.name);
            context.database.update(*other, other_key, |_, cells| cells[*cell] = value);
        }
    }
    Ok(())
}

/// Refuses values that are no longer an option of their column.
fn check_options(def: &TableDef, cells: &[String]) -> Result<(), Refusal> {
    for column in &def.columns {
        let (Kind::Choice { values } | Kind::State { values } | Kind::Status { values, .. }, Slot::Cell(cell)) =
            (&column.kind, column.slot)
        else {
            continue;
        };
        if !cells[cell].is_empty() && !values.iter().any(|value| value.to_string() == cells[cell]) {
            return Err(Refusal::new(
                400,
                "0x80049949",
                "Picklist value not valid, please add the invalid value back to the picklist before restoring record",
            ));
        }
    }
    Ok(())
}

/// Refuses a row that points to one which is not there.
fn check_references(context: &WriteContext<'_>, table: usize, key: &RowKey) -> Result<(), Refusal> {
    let entry = &context.database.tables[table];
    let Some(row) = entry.rows.get(key) else { return Ok(()) };
    for column in entry.def.columns.iter().filter(|column| column.kind.is_lookup()) {
        let Slot::Cell(cell) = column.slot else { continue };
        let raw = row.cell(cell);
        let (Some(id), Some(target)) = (raw.get(..36).and_then(Guid::parse), raw.get(36..)) else { continue };
        // Users, units and currencies are never deleted, and the data set may name some it does not have.
        let Some(target) = context.database.table(target).map(|index| &context.database.tables[index]) else {
            continue;
        };
        if target.bin.is_some() && !target.rows.contains_key(&id.into()) {
            return Err(lost_reference(&target.def, &id.into(), &entry.def, key, cell));
        }
    }
    Ok(())
}

fn lost_reference(missing: &TableDef, id: &RowKey, from: &TableDef, key: &RowKey, cell: usize) -> Refusal {
    let column = [missing, from].into_iter().find_map(|def| {
        let found = def.columns.iter().find(|column| column.kind.is_lookup() && column.slot == Slot::Cell(cell))?;
        Some(found.name.clone())
    });
    Refusal::new(
        400,
        "0x80049959",
        format!(
            "Entity with id '{}' and logical name '{}' does not exist. We cannot restore the reference '{}' that must be restored as part of this Restore call. ValueToBeRestored: {}, ReferencedEntityName: {}, AttributeName: {}",
            id.id,
            missing.name,
            from.primary_id,
            key.id,
            from.name,
            column.unwrap_or_default()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::{Fetch, check_options};
    use crate::schema::TableDef;

    #[test]
    fn an_option_that_is_gone_keeps_the_row_in_the_bin() {
        let mut def = TableDef::new("thing", Some("things"), "thingid");
        def.add("size:opt(1,2) statecode:state(0,1)");
        let cells = |size: &str| vec![size.to_owned(), "0".to_owned()];
        assert!(check_options(&def, &cells("2")).is_ok() && check_options(&def, &cells("")).is_ok());
        assert_eq!(check_options(&def, &cells("3")).unwrap_err().code, "0x80049949");
    }

    #[test]
    fn the_query_a_restorer_needs_is_understood() {
        let xml = r#"<fetch datasource='bin' count="3"><entity name="account"><attribute name='name' /><attribute name="accountid"/>
            <filter type='and'><condition attribute='accountid' operator='in'><value>a</value><value>b&amp;c</value></condition></filter>
            </entity></fetch>"#;
        let fetch = Fetch::parse(xml).unwrap();
        assert!(fetch.bin);
        assert_eq!((fetch.entity.as_str(), fetch.limit), ("account", Some(3)));
        assert_eq!(fetch.columns.unwrap(), ["name", "accountid"]);
        assert_eq!(fetch.condition.unwrap(), ("accountid".to_owned(), vec!["a".to_owned(), "b&c".to_owned()]));
        let one = "<fetch><entity name='task'><all-attributes/><filter><condition attribute='activityid' operator='eq' value='x'/></filter></entity></fetch>";
        let fetch = Fetch::parse(one).unwrap();
        assert!(!fetch.bin && fetch.columns.is_none());
        assert_eq!(fetch.condition.unwrap().1, ["x"]);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for xml in [
            "<fetch><entity name='account'><link-entity name='contact'/></entity></fetch>",
            "<fetch><entity name='account'><filter><condition attribute='name' operator='like' value='a%'/></filter></entity></fetch>",
            "<fetch datasource='bin'></fetch>",
            "<fetch",
        ] {
            assert!(Fetch::parse(xml).is_err(), "{xml}");
        }
    }
}
