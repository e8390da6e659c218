//! Discovery: which tables there are and how each is read, from the service's metadata alone.
//!
//! The list of tables comes in one answer. Their columns come through `RetrieveMetadataChanges`, which gives all types in one
//! request, a block of tables at a time so that no answer is large; a service that does not offer it is asked table by
//! table (`dataverse`, sections 2.1, 2.2, 2.5). Names are never derived: entity set names are irregular (section 2.7).

use bytes::Bytes;
use dynavault_model::{
    Call, Column, ContentColumn, ContentKind, Refusal, SourceError, TableListing, TableRef, TableSchema,
};
use dynavault_odata::{Client, RequestError, UserSlot};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::refusals;
use crate::source::first_page;

mod single;

/// Largest answer with the list of tables: 900 tables take about 30 MB with every property, far less with ours.
pub(crate) const LIST_BYTES_MAX: usize = 64 << 20;
/// Largest answer with the columns of a block of tables.
const BLOCK_BYTES_MAX: usize = 48 << 20;
/// Tables in a block: about 100 columns of 600 bytes each make 1.5 MB, and the URL stays short.
const BLOCK_TABLES: usize = 25;
/// Data provider of elastic tables (section 2.1).
pub(crate) const ELASTIC_PROVIDER: &str = "1d9bde74-9ebd-4da9-8ff5-aa74945b9f74";
/// An id that stands for none.
const NO_PROVIDER: &str = "00000000-0000-0000-0000-000000000000";
/// Rows in a page (section 3.1).
const PAGE_ROWS: u32 = 5000;
/// Rows in a page of an elastic table (section 8.12).
const ELASTIC_PAGE_ROWS: u32 = 500;

const TABLE_PROPERTIES: &[&str] = &[
    "LogicalName",
    "SchemaName",
    "EntitySetName",
    "ObjectTypeCode",
    "PrimaryIdAttribute",
    "PrimaryNameAttribute",
    "OwnershipType",
    "TableType",
    "DataProviderId",
    "IsIntersect",
    "IsActivity",
    "IsActivityParty",
    "IsChildEntity",
    "IsPrivate",
    "IsBPFEntity",
    "IsCustomEntity",
    "IsLogicalEntity",
    "ChangeTrackingEnabled",
    "IsOptimisticConcurrencyEnabled",
    "EnforceStateTransitions",
];

/// Asked for when an older service does not know one of the above (section 2.1).
const TABLE_PROPERTIES_LEAST: &[&str] = &[
    "LogicalName",
    "EntitySetName",
    "PrimaryIdAttribute",
    "IsIntersect",
    "IsActivity",
    "ChangeTrackingEnabled",
    "TableType",
    "DataProviderId",
];

/// Properties of columns that reading and a later restore need (section 2.2).
const COLUMN_PROPERTIES: &[&str] = &[
    "LogicalName",
    "SchemaName",
    "AttributeType",
    "AttributeTypeName",
    "AttributeOf",
    "IsValidForRead",
    "IsValidForCreate",
    "IsValidForUpdate",
    "IsValidODataAttribute",
    "IsLogical",
    "SourceType",
    "IsSecured",
    "RequiredLevel",
    "IsPrimaryId",
    "IsPrimaryName",
    "MaxLength",
    "Precision",
    "PrecisionSource",
    "MinValue",
    "MaxValue",
    "Format",
    "FormatName",
    "DateTimeBehavior",
    "AutoNumberFormat",
    "Targets",
    "OptionSet",
    "MaxSizeInKB",
    "IsPrimaryImage",
    "CanStoreFullImage",
    "CalculationOf",
    "IsBaseCurrency",
];

const RELATIONSHIP_PROPERTIES: &[&str] = &[
    "SchemaName",
    "ReferencingEntity",
    "ReferencingAttribute",
    "ReferencingEntityNavigationPropertyName",
    "ReferencedEntity",
    "ReferencedAttribute",
    "ReferencedEntityNavigationPropertyName",
    "CascadeConfiguration",
    "IsHierarchical",
    "IntersectEntityName",
    "Entity1LogicalName",
    "Entity1IntersectAttribute",
    "Entity1NavigationPropertyName",
    "Entity2LogicalName",
    "Entity2IntersectAttribute",
    "Entity2NavigationPropertyName",
];

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TableWire {
    logical_name: String,
    #[serde(default)]
    entity_set_name: Option<String>,
    #[serde(default)]
    primary_id_attribute: Option<String>,
    #[serde(default)]
    table_type: Option<String>,
    #[serde(default)]
    data_provider_id: Option<String>,
    #[serde(default)]
    change_tracking_enabled: Option<bool>,
    /// All of it, as it came.
    #[serde(skip)]
    properties: Map<String, Value>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ColumnWire {
    logical_name: String,
    #[serde(default)]
    attribute_type: Option<String>,
    #[serde(default)]
    attribute_type_name: Option<TypeName>,
    #[serde(default)]
    attribute_of: Option<String>,
    #[serde(default)]
    is_valid_for_read: Option<bool>,
    #[serde(default, rename = "IsValidODataAttribute")]
    is_valid_odata_attribute: Option<bool>,
    #[serde(default)]
    is_secured: Option<bool>,
    #[serde(default)]
    is_primary_id: Option<bool>,
}

#[derive(Debug, Clone, Deserialize)]
struct TypeName {
    #[serde(rename = "Value", default)]
    value: Option<String>,
}

#[derive(Deserialize)]
struct Collection<T> {
    value: Vec<T>,
}

impl ColumnWire {
    /// The real type name; `AttributeType` alone is ambiguous (section 2.2).
    fn kind(&self) -> String {
        let real = self.attribute_type_name.as_ref().and_then(|name| name.value.clone());
        match (real, &self.attribute_type) {
            (Some(name), _) => name,
            (None, Some(kind)) => format!("{kind}Type"),
            (None, None) => String::new(),
        }
    }

    /// Rule 2.1: readable, not the shadow of another column, and a property of rows at all.
    fn is_read(&self) -> bool {
        self.is_valid_for_read != Some(false)
            && self.attribute_of.is_none()
            && self.is_valid_odata_attribute != Some(false)
            && !matches!(self.kind().as_str(), "VirtualType" | "PartyListType" | "CalendarRulesType")
    }

    fn member(&self) -> String {
        match self.kind().as_str() {
            "LookupType" | "CustomerType" | "OwnerType" => format!("_{}_value", self.logical_name),
            _ => self.logical_name.clone(),
        }
    }
}

/// What a discovery needs.
pub(crate) struct Metadata<'a> {
    pub(crate) client: &'a Client,
    pub(crate) slot: &'a UserSlot,
    pub(crate) call: &'a Call,
}

impl Metadata<'_> {
    /// All tables.
    pub(crate) async fn tables(&self) -> Result<Vec<TableListing>, SourceError> {
        let mut wires = self.list(None).await?;
        wires.sort_by(|a, b| a.logical_name.cmp(&b.logical_name));
        let mut listings = Vec::with_capacity(wires.len());
        for block in wires.chunks(BLOCK_TABLES) {
            let readable: Vec<&TableWire> = block.iter().filter(|wire| refusal(wire).is_none()).collect();
            let mut definitions = if readable.is_empty() { Vec::new() } else { self.definitions(&readable).await? };
            for wire in block {
                listings.push(self.listing(wire, &mut definitions).await?);
            }
        }
        Ok(listings)
    }

    /// One table.
    pub(crate) async fn table(&self, table: &TableRef) -> Result<TableListing, SourceError> {
        let wires = self.list(Some(&table.name)).await?;
        let Some(wire) = wires.into_iter().find(|wire| wire.logical_name == table.name) else {
            let refusal = Refusal { reason: "the table no longer exists".into(), remedy: None };
            return Ok(TableListing { table: table.clone(), schema: Err(refusal) });
        };
        let mut definitions = if refusal(&wire).is_none() { self.definitions(&[&wire]).await? } else { Vec::new() };
        self.listing(&wire, &mut definitions).await
    }

    async fn listing(&self, wire: &TableWire, definitions: &mut Vec<Value>) -> Result<TableListing, SourceError> {
        let table = TableRef::ce(&wire.logical_name);
        if let Some(reason) = refusal(wire) {
            return Ok(TableListing { table, schema: Err(reason) });
        }
        // A definition without columns is as good as none.
        let found = definitions.iter().position(|definition| {
            definition["LogicalName"] == wire.logical_name.as_str() && definition["Attributes"].is_array()
        });
        let definition = match found {
            Some(at) => definitions.swap_remove(at),
            None => match self.single_definition(wire).await {
                Ok(definition) => definition,
                Err(RequestError::Service { message, .. }) => {
                    let refusal = Refusal { reason: format!("its columns cannot be listed: {message}"), remedy: None };
                    return Ok(TableListing { table, schema: Err(refusal) });
                }
                Err(error) => return Err(refusals::of_run(error)),
            },
        };
        Ok(TableListing { table, schema: schema(wire, definition) })
    }

    async fn list(&self, only: Option<&str>) -> Result<Vec<TableWire>, SourceError> {
        let path = |properties: &[&str]| {
            let filter = only.map(|name| format!("&$filter=LogicalName eq '{name}'")).unwrap_or_default();
            format!("EntityDefinitions?$select={}{filter}", properties.join(","))
        };
        let first = self.get(&path(TABLE_PROPERTIES), LIST_BYTES_MAX).await;
        let body = match first {
            // One unknown property makes the whole request fail; then less is asked for.
            Err(RequestError::Service { status: 400, .. }) => {
                self.get(&path(TABLE_PROPERTIES_LEAST), LIST_BYTES_MAX).await.map_err(refusals::of_run)?
            }
            other => other.map_err(refusals::of_run)?,
        };
        let what = "the list of tables";
        let tables = parse::<Collection<Value>>(what, &body)?.value.into_iter();
        let wire = |table: Value| -> Result<TableWire, serde_json::Error> {
            let wire = TableWire::deserialize(&table)?;
            Ok(TableWire { properties: table.as_object().cloned().unwrap_or_default(), ..wire })
        };
        let wires = tables.map(wire).collect::<Result<_, _>>();
        wires.map_err(|error| SourceError::Protocol { what: what.to_string(), detail: error.to_string() })
    }

    async fn get(&self, path: &str, bytes_max: usize) -> Result<Bytes, RequestError> {
        // Metadata reads skip a cache of up to half a minute (section 1.2), so that a table made just now is seen.
        let headers = [("Consistency", "Strong")];
        let reply = self.client.get(self.slot, path, None, &headers, bytes_max, self.call).await?;
        Ok(reply.body)
    }

    /// Full definitions of a block of tables; empty where the service does not offer the message.
    async fn definitions(&self, wires: &[&TableWire]) -> Result<Vec<Value>, SourceError> {
        let names: Vec<&str> = wires.iter().map(|wire| wire.logical_name.as_str()).collect();
        let properties = |names: &[&str]| json!({"AllProperties": false, "PropertyNames": names});
        let mut table_properties = TABLE_PROPERTIES.to_vec();
        table_properties.extend(["Attributes", "Keys", "ManyToOneRelationships", "ManyToManyRelationships"]);
        let query = json!({
            "Properties": properties(&table_properties),
            "Criteria": {"FilterOperator": "And", "Conditions": [{
                "PropertyName": "LogicalName",
                "ConditionOperator": "In",
                "Value": {"Type": "System.String[]", "Value": json!(names).to_string()},
            }]},
            "AttributeQuery": {"Properties": properties(COLUMN_PROPERTIES)},
            "RelationshipQuery": {"Properties": properties(RELATIONSHIP_PROPERTIES)},
            "KeyQuery": {"Properties": properties(&["LogicalName", "SchemaName", "KeyAttributes", "EntityKeyIndexStatus"])},
            "LabelQuery": {"FilterLanguages": [1033], "MissingLabelBehavior": 0},
        });
        let query: String = url::form_urlencoded::byte_serialize(query.to_string().as_bytes()).collect();
        // Form encoding writes a space as a plus, which a query option would take literally.
        let path = format!("RetrieveMetadataChanges(Query=@p1)?@p1={}", query.replace('+', "%20"));
        match self.get(&path, BLOCK_BYTES_MAX).await {
            Ok(body) => {
                #[derive(Deserialize)]
                struct Answer {
                    #[serde(rename = "EntityMetadata", default)]
                    tables: Vec<Value>,
                }
                parse::<Answer>("the columns of the tables", &body).map(|answer| answer.tables)
            }
            // Not offered, or this form of it is not: every table is asked for on its own.
            Err(RequestError::Service { status: 400 | 404 | 405 | 500 | 501, .. } | RequestError::Protocol { .. }) => {
                Ok(Vec::new())
            }
            Err(error) => Err(refusals::of_run(error)),
        }
    }
}

fn parse<T: for<'de> Deserialize<'de>>(what: &str, body: &[u8]) -> Result<T, SourceError> {
    serde_json::from_slice(body)
        .map_err(|error| SourceError::Protocol { what: what.to_string(), detail: error.to_string() })
}

/// Why a table cannot be read at all, as far as its own properties tell.
fn refusal(wire: &TableWire) -> Option<Refusal> {
    let exclude = "add the table to `exclude` of the environment if that is acceptable".to_string();
    if is_virtual(wire) {
        return Some(Refusal {
            reason: "virtual table: its rows live in another system, which has to be backed up there".into(),
            remedy: Some(exclude),
        });
    }
    if wire.entity_set_name.as_deref().unwrap_or_default().is_empty() {
        return Some(Refusal { reason: "the Web API has no entity set for this table".into(), remedy: Some(exclude) });
    }
    if wire.primary_id_attribute.as_deref().unwrap_or_default().is_empty() {
        return Some(Refusal { reason: "the table has no primary key".into(), remedy: Some(exclude) });
    }
    None
}

fn provider(wire: &TableWire) -> Option<&str> {
    wire.data_provider_id.as_deref().filter(|id| !id.is_empty() && *id != NO_PROVIDER)
}

fn is_elastic(wire: &TableWire) -> bool {
    wire.table_type.as_deref() == Some("Elastic")
        || provider(wire).is_some_and(|id| id.eq_ignore_ascii_case(ELASTIC_PROVIDER))
}

/// A data provider other than the elastic one means an external source (section 2.1).
fn is_virtual(wire: &TableWire) -> bool {
    wire.table_type.as_deref() == Some("Virtual") || (provider(wire).is_some() && !is_elastic(wire))
}

fn schema(wire: &TableWire, mut definition: Value) -> Result<TableSchema, Refusal> {
    let missing = |what: &str| Refusal { reason: format!("the service's metadata lacks {what}"), remedy: None };
    let (Some(entity_set), Some(primary_id)) = (wire.entity_set_name.clone(), wire.primary_id_attribute.clone()) else {
        return Err(missing("its entity set or key"));
    };
    let columns: Vec<ColumnWire> =
        serde_json::from_value(definition["Attributes"].clone()).map_err(|_| missing("readable columns"))?;
    let elastic = is_elastic(wire);
    let mut key = vec![primary_id.clone()];
    if elastic && columns.iter().any(|column| column.logical_name == "partitionid") {
        key.push("partitionid".into());
    }
    let content = content_columns(&wire.logical_name, &columns, &primary_id);
    let mut read: Vec<Column> = columns
        .iter()
        .filter(|column| column.is_read())
        // Bodies come one by one: in a list they would make pages of hundreds of megabytes (section 7.3).
        .filter(|column| !content.iter().any(|c| c.kind == ContentKind::Base64Body && c.column == column.logical_name))
        .map(|column| Column {
            name: column.logical_name.clone(),
            member: column.member(),
            kind: column.kind(),
            secured: column.is_secured == Some(true),
        })
        .collect();
    // The key first, then by name: the order of metadata is not promised, and a change token belongs to the order.
    read.sort_by(|a, b| (!key.contains(&a.member), &a.name).cmp(&(!key.contains(&b.member), &b.name)));
    read.dedup_by(|a, b| a.member == b.member);
    if !read.iter().any(|column| column.member == primary_id)
        && !columns.iter().any(|column| column.is_primary_id == Some(true) && column.logical_name == primary_id)
    {
        return Err(missing("its primary key column"));
    }
    if let Some(object) = definition.as_object_mut() {
        // Differs from answer to answer without meaning anything, and would make every schema object a new one.
        object.remove("HasChanged");
    }
    Ok(with_images_that_come(TableSchema {
        table: TableRef::ce(&wire.logical_name),
        entity_set,
        key,
        columns: read,
        content,
        // A deletion in an elastic delta may come without its partition (section 4.4, unconfirmed), and without it the row
        // cannot be named; so elastic tables are compared in full.
        tracked: wire.change_tracking_enabled == Some(true) && !elastic,
        page_rows_max: if elastic { ELASTIC_PAGE_ROWS } else { PAGE_ROWS },
        not_captured: Vec::new(),
        definition,
    }))
}

/// Images are the only columns that come only when they are named (section 3.4). Where there are too many columns to name them,
/// the id of an image tells that there is one, and its bytes are fetched as ever.
fn with_images_that_come(mut schema: TableSchema) -> TableSchema {
    if first_page(&schema).contains('?') {
        return schema;
    }
    let has: Vec<String> = schema.columns.iter().map(|column| column.member.clone()).collect();
    let (mut kept, mut lost) = (Vec::new(), Vec::new());
    for mut content in std::mem::take(&mut schema.content) {
        if content.kind == ContentKind::Image {
            schema.columns.retain(|column| column.name != content.column);
            let id = format!("{}id", content.column);
            if !has.contains(&id) {
                lost.push((content.column, "the table has too many columns to name each of them".to_string()));
                continue;
            }
            content.presence_member = id;
        }
        kept.push(content);
    }
    TableSchema { content: kept, not_captured: lost, ..schema }
}

/// Columns whose bytes are captured beside the rows (section 7).
fn content_columns(table: &str, columns: &[ColumnWire], primary_id: &str) -> Vec<ContentColumn> {
    let has = |name: &str| columns.iter().any(|column| column.logical_name == name);
    let mut content = Vec::new();
    for column in columns.iter().filter(|column| column.is_read()) {
        let name = &column.logical_name;
        match column.kind().as_str() {
            "FileType" => content.push(ContentColumn {
                column: name.clone(),
                kind: ContentKind::File,
                version_member: name.clone(),
                presence_member: name.clone(),
                name_member: Some(format!("{name}_name")).filter(|member| has(member)),
            }),
            // The image's id changes with the image; without it the row's version has to do.
            "ImageType" => {
                let id = format!("{name}id");
                let version = if has(&id) { id } else { "versionnumber".into() };
                content.push(ContentColumn {
                    column: name.clone(),
                    kind: ContentKind::Image,
                    version_member: version,
                    presence_member: name.clone(),
                    name_member: None,
                });
            }
            _ => {}
        }
    }
    let body = match (table, primary_id) {
        ("annotation", _) if has("documentbody") => Some("documentbody"),
        ("activitymimeattachment", _) if has("body") => Some("body"),
        _ => None,
    };
    if let Some(column) = body {
        content.push(ContentColumn {
            column: column.into(),
            kind: ContentKind::Base64Body,
            version_member: "versionnumber".into(),
            presence_member: "filesize".into(),
            name_member: Some("filename".into()),
        });
    }
    content
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_a_table_too_wide_to_name_its_columns_are_found_by_their_ids_or_named_as_missing() {
        let column = |name: &str, kind: &str| json!({"LogicalName": name, "AttributeTypeName": {"Value": kind}});
        let of = |columns: u32| {
            let wide = (0..columns).map(|n| column(&format!("new_a_column_with_a_long_name_{n}"), "StringType"));
            let known = [
                column("accountid", "UniqueidentifierType"),
                column("new_logo", "ImageType"),
                column("new_logoid", "UniqueidentifierType"),
                column("new_photo", "ImageType"),
            ];
            let attributes: Vec<Value> = known.into_iter().chain(wide).collect();
            let table =
                json!({"LogicalName": "account", "EntitySetName": "accounts", "PrimaryIdAttribute": "accountid"});
            schema(&TableWire::deserialize(table).unwrap(), json!({"Attributes": attributes})).unwrap()
        };
        let narrow = of(10);
        let presence = |schema: &TableSchema| -> Vec<String> {
            schema.content.iter().map(|content| content.presence_member.clone()).collect()
        };
        assert_eq!(presence(&narrow), ["new_logo", "new_photo"]);
        assert!(first_page(&narrow).contains("new_photo") && narrow.not_captured.is_empty());
        let wide = of(1000);
        assert_eq!(first_page(&wide), "accounts");
        assert_eq!(presence(&wide), ["new_logoid"]);
        assert_eq!(wide.not_captured.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["new_photo"]);
        assert!(!wide.columns.iter().any(|column| column.name == "new_logo"));
    }

    #[test]
    fn an_id_of_nothing_is_no_data_provider() {
        let wire = |provider: &str| {
            let table = json!({"LogicalName": "account", "EntitySetName": "accounts", "PrimaryIdAttribute": "accountid",
                "DataProviderId": provider});
            TableWire::deserialize(table).unwrap()
        };
        assert!(!is_virtual(&wire(NO_PROVIDER)) && !is_virtual(&wire(ELASTIC_PROVIDER)));
        assert!(is_elastic(&wire(ELASTIC_PROVIDER)));
        assert!(is_virtual(&wire("7015a531-cc0d-4537-b5f2-c882a1eb65ad")));
    }
}
