//! The definition of one table, piece by piece, from a service that does not answer `RetrieveMetadataChanges` (`dataverse`,
//! sections 2.2 and 2.4).
//!
//! Base properties of all columns come in one answer. What only some types of column have (targets of lookups, choices, lengths)
//! takes one request for each type that the table has. Relationships come in two more. A piece that the service does not offer
//! is left out: what is unknown is not written.

use dynavault_odata::RequestError;
use serde_json::{Map, Value, json};

use super::{BLOCK_BYTES_MAX, Collection, ColumnWire, Metadata, TableWire};

/// Properties of a column in the answer for a single table, which gives base properties only.
const BASE_PROPERTIES: &str = "LogicalName,SchemaName,AttributeType,AttributeTypeName,AttributeOf,IsValidForRead,IsValidForCreate,\
IsValidForUpdate,IsLogical,SourceType,IsSecured,RequiredLevel,IsPrimaryId,IsPrimaryName";

/// What columns of some types have beside that: real types, the type to cast to, and the question. The abstract type of all
/// choices cannot be cast to.
const CASTS: &[(&[&str], &str, &str)] = &[
    (&["LookupType", "CustomerType", "OwnerType"], "LookupAttributeMetadata", "$select=LogicalName,Targets"),
    (&["StateType"], "StateAttributeMetadata", "$select=LogicalName&$expand=OptionSet"),
    (&["StatusType"], "StatusAttributeMetadata", "$select=LogicalName&$expand=OptionSet"),
    (&["PicklistType"], "PicklistAttributeMetadata", "$select=LogicalName&$expand=OptionSet,GlobalOptionSet"),
    (
        &["MultiSelectPicklistType"],
        "MultiSelectPicklistAttributeMetadata",
        "$select=LogicalName&$expand=OptionSet,GlobalOptionSet",
    ),
    (&["StringType"], "StringAttributeMetadata", "$select=LogicalName,MaxLength,AutoNumberFormat"),
    (&["MemoType"], "MemoAttributeMetadata", "$select=LogicalName,MaxLength"),
    (
        &["MoneyType"],
        "MoneyAttributeMetadata",
        "$select=LogicalName,Precision,PrecisionSource,IsBaseCurrency,CalculationOf",
    ),
    (&["FileType"], "FileAttributeMetadata", "$select=LogicalName,MaxSizeInKB"),
    (&["ImageType"], "ImageAttributeMetadata", "$select=LogicalName,MaxSizeInKB,IsPrimaryImage,CanStoreFullImage"),
];

const LOOKUPS: (&str, &str) = (
    "ManyToOneRelationships",
    "SchemaName,ReferencingEntity,ReferencingAttribute,ReferencingEntityNavigationPropertyName,ReferencedEntity,\
ReferencedAttribute,ReferencedEntityNavigationPropertyName,CascadeConfiguration,IsHierarchical",
);
const LINKS: (&str, &str) = (
    "ManyToManyRelationships",
    "SchemaName,IntersectEntityName,Entity1LogicalName,Entity1IntersectAttribute,Entity1NavigationPropertyName,\
Entity2LogicalName,Entity2IntersectAttribute,Entity2NavigationPropertyName",
);

impl Metadata<'_> {
    /// See the module.
    pub(super) async fn single_definition(&self, wire: &TableWire) -> Result<Value, RequestError> {
        let name = &wire.logical_name;
        let mut columns = self.either(name, "Attributes", BASE_PROPERTIES).await?;
        let kinds: Vec<String> = columns
            .iter()
            .filter_map(|column| serde_json::from_value::<ColumnWire>(column.clone()).ok())
            .map(|column| column.kind())
            .collect();
        for (types, cast, question) in CASTS {
            if !kinds.iter().any(|kind| types.contains(&kind.as_str())) {
                continue;
            }
            let path = format!("Attributes/Microsoft.Dynamics.CRM.{cast}?{question}");
            for details in offered(self.members(name, &path).await)? {
                merge(&mut columns, details);
            }
        }
        let mut definition = wire.properties.clone();
        for (list, properties) in [LOOKUPS, LINKS] {
            let found = offered(self.either(name, list, properties).await)?;
            definition.insert(list.to_string(), Value::Array(found));
        }
        definition.insert("LogicalName".into(), json!(name));
        definition.insert("Attributes".into(), Value::Array(columns));
        Ok(Value::Object(definition))
    }

    /// A collection below the definition of a table, with the properties that are needed, or with all where the service does not
    /// know one of them.
    async fn either(&self, table: &str, list: &str, properties: &str) -> Result<Vec<Value>, RequestError> {
        match self.members(table, &format!("{list}?$select={properties}")).await {
            Err(RequestError::Service { status: 400, .. }) => self.members(table, list).await,
            other => other,
        }
    }

    async fn members(&self, table: &str, path: &str) -> Result<Vec<Value>, RequestError> {
        let body = self.get(&format!("EntityDefinitions(LogicalName='{table}')/{path}"), BLOCK_BYTES_MAX).await?;
        let found: Collection<Value> = serde_json::from_slice(&body).map_err(|error| RequestError::Protocol {
            what: format!("reading the definition of table {table}"),
            detail: error.to_string(),
        })?;
        Ok(found.value)
    }
}

/// A piece that the service refuses is missing, and nothing more.
fn offered(found: Result<Vec<Value>, RequestError>) -> Result<Vec<Value>, RequestError> {
    match found {
        Err(RequestError::Service { status: 400 | 404 | 405 | 500 | 501, message, .. }) => {
            tracing::debug!(message, "a part of a definition is not offered");
            Ok(Vec::new())
        }
        other => other,
    }
}

/// Adds what an answer says of a column to what is known of it.
fn merge(columns: &mut [Value], details: Value) {
    let Value::Object(mut details) = details else { return };
    let name = details.get("LogicalName").cloned();
    let column = columns.iter_mut().find(|column| column.get("LogicalName") == name.as_ref());
    let Some(Value::Object(column)) = column else { return };
    // A choice that several columns share is a set of its own.
    if details.get("OptionSet").is_none_or(Value::is_null)
        && let Some(shared) = details.remove("GlobalOptionSet").filter(|set| !set.is_null())
    {
        details.insert("OptionSet".into(), shared);
    }
    details.remove("GlobalOptionSet");
    let known = |column: &Map<String, Value>, name: &str| column.get(name).is_some_and(|value| !value.is_null());
    for (name, value) in details {
        if !name.starts_with('@') && !known(column, &name) {
            column.insert(name, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_of_a_type_are_added_to_the_base_properties() {
        let mut columns =
            vec![json!({"LogicalName": "a", "SourceType": 1}), json!({"LogicalName": "b", "OptionSet": null})];
        let shared = json!({"LogicalName": "b", "@odata.type": "x", "OptionSet": null, "GlobalOptionSet": {"Options": [{"Value": 7}]}});
        merge(&mut columns, shared);
        merge(&mut columns, json!({"LogicalName": "a", "SourceType": null, "MaxLength": 100}));
        merge(&mut columns, json!({"LogicalName": "unknown", "MaxLength": 1}));
        assert_eq!(columns[0], json!({"LogicalName": "a", "SourceType": 1, "MaxLength": 100}));
        assert_eq!(columns[1], json!({"LogicalName": "b", "OptionSet": {"Options": [{"Value": 7}]}}));
    }
}
