//! Table definitions as JSON, and the two ways to ask for them.
//!
//! `EntityDefinitions` (dataverse 2.1–2.4) answers properties one by one, with casts for what only a derived
//! type has; `RetrieveMetadataChanges` (dataverse 2.5) answers everything at once and, given a stamp, only
//! what changed. Neither is paged.

use serde_json::{Map, Value, json};

use crate::access::{ACTIONS, Controls, privilege};
use crate::answer::{Answer, Refusal};
use crate::catalogue::ELASTIC_PROVIDER;
use crate::content::{FILE_BYTES_MAX, IMAGE_BYTES_MAX};
use crate::database::Database;
use crate::dice::named_guid;
use crate::query::Options;
use crate::schema::{Column, DateBehavior, Kind, Ownership, Slot, Storage, TableDef, schema_name};

type Object = Map<String, Value>;

fn managed(value: bool) -> Value {
    json!({"Value": value, "CanBeChanged": true, "ManagedPropertyLogicalName": "canmodifyadditionalsettings"})
}

fn label(text: &str) -> Value {
    json!({"LocalizedLabels": [{"Label": text, "LanguageCode": 1033, "IsManaged": true}], "UserLocalizedLabel": {"Label": text, "LanguageCode": 1033, "IsManaged": true}})
}

fn object(value: Value) -> Object {
    match value {
        Value::Object(object) => object,
        _ => Object::new(),
    }
}

/// Properties of a table (dataverse 2.1).
fn table_json(def: &TableDef) -> Object {
    let (table_type, provider) = match def.storage {
        Storage::Standard => ("Standard", Value::Null),
        Storage::Elastic => ("Elastic", json!(ELASTIC_PROVIDER)),
        Storage::Virtual => ("Virtual", json!(named_guid("external provider").to_string())),
    };
    let ownership = match def.ownership {
        Ownership::User => "UserOwned",
        Ownership::Organization => "OrganizationOwned",
        Ownership::None => "None",
    };
    let image = def.columns.iter().find(|column| column.kind == Kind::Image).map(|column| column.name.clone());
    object(json!({
        "MetadataId": def.metadata_id().to_string(),
        "LogicalName": def.name,
        "SchemaName": schema_name(&def.name),
        "EntitySetName": def.set,
        "CollectionSchemaName": schema_name(&def.name),
        "LogicalCollectionName": format!("{}s", def.name),
        "DisplayName": label(&def.name),
        "ObjectTypeCode": def.type_code,
        "PrimaryIdAttribute": def.primary_id,
        "PrimaryNameAttribute": def.primary_name,
        "PrimaryImageAttribute": image,
        "OwnershipType": ownership,
        "TableType": table_type,
        "DataProviderId": provider,
        "DataSourceId": if def.storage == Storage::Virtual { json!(named_guid("external source").to_string()) } else { Value::Null },
        "ExternalName": if def.storage == Storage::Virtual { json!("External") } else { Value::Null },
        "IsIntersect": def.is_intersect(),
        "IsActivity": def.activity,
        "IsActivityParty": matches!(def.name.as_str(), "account" | "contact" | "lead" | "systemuser"),
        "IsChildEntity": matches!(def.name.as_str(), "customeraddress" | "activityparty" | "activitymimeattachment"),
        "IsPrivate": def.set.is_none(),
        "IsBPFEntity": false,
        "IsCustomEntity": def.is_custom(),
        "IsManaged": !def.is_custom(),
        "IsLogicalEntity": false,
        "HasNotes": matches!(def.name.as_str(), "account" | "contact" | "incident"),
        "HasActivities": matches!(def.name.as_str(), "account" | "contact" | "lead" | "opportunity" | "incident"),
        "HasEmailAddresses": def.columns.iter().any(|column| matches!(column.kind, Kind::Text { format: "Email", .. })),
        "ChangeTrackingEnabled": def.tracking,
        "CanChangeTrackingBeEnabled": managed(def.storage != Storage::Virtual),
        "IsOptimisticConcurrencyEnabled": def.has_concurrency(),
        "EnforceStateTransitions": false,
        "IsStateModelAware": def.column("statecode").is_some(),
        "IsAuditEnabled": managed(false),
        "IsCustomizable": managed(true),
        "IsValidForAdvancedFind": true,
        "LogicalTypeName": format!("Microsoft.Dynamics.CRM.{}", def.name),
        "IntroducedVersion": "5.0.0.0",
        "Privileges": privileges(def),
        "HasChanged": Value::Null,
    }))
}

/// Names of the privileges of a table; some tables share theirs (dataverse 9.4).
fn privileges(def: &TableDef) -> Vec<Value> {
    if def.storage == Storage::Virtual || def.is_intersect() {
        return Vec::new();
    }
    let of = |action: &&str| {
        let name = privilege(action, def);
        json!({"Name": name, "PrivilegeId": named_guid(&name).to_string(), "PrivilegeType": action, "CanBeGlobal": true})
    };
    ACTIONS.iter().map(of).collect()
}

/// Cast type, `AttributeType` and `AttributeTypeName` of a column (dataverse 2.2).
fn types(column: &Column) -> (&'static str, &'static str, &'static str) {
    match &column.kind {
        Kind::Text { .. } | Kind::Body => ("StringAttributeMetadata", "String", "StringType"),
        Kind::Memo { .. } => ("MemoAttributeMetadata", "Memo", "MemoType"),
        Kind::Integer => ("IntegerAttributeMetadata", "Integer", "IntegerType"),
        Kind::BigInt => ("BigIntAttributeMetadata", "BigInt", "BigIntType"),
        Kind::Decimal { .. } => ("DecimalAttributeMetadata", "Decimal", "DecimalType"),
        Kind::Double => ("DoubleAttributeMetadata", "Double", "DoubleType"),
        Kind::Money { .. } => ("MoneyAttributeMetadata", "Money", "MoneyType"),
        Kind::Boolean => ("BooleanAttributeMetadata", "Boolean", "BooleanType"),
        Kind::Date(_) => ("DateTimeAttributeMetadata", "DateTime", "DateTimeType"),
        Kind::Lookup { .. } => ("LookupAttributeMetadata", "Lookup", "LookupType"),
        Kind::Customer { .. } => ("LookupAttributeMetadata", "Customer", "CustomerType"),
        Kind::Owner => ("LookupAttributeMetadata", "Owner", "OwnerType"),
        Kind::PartyList => ("LookupAttributeMetadata", "PartyList", "PartyListType"),
        Kind::Choice { .. } => ("PicklistAttributeMetadata", "Picklist", "PicklistType"),
        Kind::MultiChoice { .. } => ("MultiSelectPicklistAttributeMetadata", "Virtual", "MultiSelectPicklistType"),
        Kind::State { .. } => ("StateAttributeMetadata", "State", "StateType"),
        Kind::Status { .. } => ("StatusAttributeMetadata", "Status", "StatusType"),
        Kind::Guid => ("UniqueIdentifierAttributeMetadata", "Uniqueidentifier", "UniqueidentifierType"),
        Kind::Image => ("ImageAttributeMetadata", "Virtual", "ImageType"),
        Kind::File => ("FileAttributeMetadata", "Virtual", "FileType"),
        Kind::EntityName => ("EntityNameAttributeMetadata", "EntityName", "EntityNameType"),
        Kind::Virtual => ("AttributeMetadata", "Virtual", "VirtualType"),
    }
}

/// Base properties of a column (dataverse 2.2).
fn column_json(def: &TableDef, column: &Column) -> Object {
    let (_, attribute_type, type_name) = types(column);
    let is_key = column.slot == Slot::Key;
    let required =
        if is_key || matches!(column.slot, Slot::Partition) || column.required { "SystemRequired" } else { "None" };
    object(json!({
        "MetadataId": named_guid(&format!("column {}.{}", def.name, column.name)).to_string(),
        "LogicalName": column.name,
        "SchemaName": column.schema_name(),
        "EntityLogicalName": def.name,
        "DisplayName": label(&column.name),
        "ColumnNumber": column.number,
        "AttributeType": attribute_type,
        "AttributeTypeName": {"Value": type_name},
        "AttributeOf": column.shadow_of,
        "IsValidForRead": true,
        "IsValidForCreate": column.writable,
        // The date of creation is overridden at creation only (dataverse 6.6), and importsequencenumber is flagged so (2.2).
        "IsValidForUpdate": column.writable && !is_key && !matches!(column.name.as_str(), "overriddencreatedon" | "importsequencenumber" | "partitionid"),
        "IsValidODataAttribute": column.slot != Slot::None,
        "IsLogical": column.shadow_of.is_some(),
        "SourceType": if column.calculated { json!(if def.column(&format!("{}_date", column.name)).is_some() { 2 } else { 1 }) } else if column.slot == Slot::None { Value::Null } else { json!(0) },
        "IsSecured": column.secured,
        "CanBeSecuredForRead": column.secured,
        "RequiredLevel": {"Value": required, "CanBeChanged": false, "ManagedPropertyLogicalName": "canmodifyrequirementlevelsettings"},
        "IsPrimaryId": is_key,
        "IsPrimaryName": def.primary_name.as_deref() == Some(column.name.as_str()),
        "IsCustomAttribute": column.name.starts_with("new_"),
        "IsManaged": !column.name.starts_with("new_"),
        "DeprecatedVersion": Value::Null,
        "HasChanged": Value::Null,
    }))
}

/// Properties that only the cast type has (dataverse 2.2).
fn column_details(def: &TableDef, column: &Column) -> Object {
    let state_of = |status: i32| def.states().iter().copied().find(|state| def.statuses(*state).any(|of| of == status));
    let option_set = |values: &[i32], kind: &str| {
        let options: Vec<Value> = values
            .iter()
            .map(|value| {
                let mut option =
                    json!({"Value": value, "Label": label(&format!("{} {value}", column.name)), "Color": Value::Null});
                match kind {
                    "State" => {
                        option["DefaultStatus"] = json!(def.statuses(*value).next());
                        option["InvariantName"] = json!(format!("State{value}"));
                    }
                    "Status" => {
                        option["State"] = json!(state_of(*value));
                        option["TransitionData"] = Value::Null;
                    }
                    _ => {}
                }
                option
            })
            .collect();
        json!({"OptionSet": {"Name": format!("{}_{}", def.name, column.name), "IsGlobal": false, "OptionSetType": kind, "Options": options,
            "MetadataId": named_guid(&format!("options {}.{}", def.name, column.name)).to_string()}, "GlobalOptionSet": Value::Null})
    };
    object(match &column.kind {
        Kind::Text { max, format } => {
            json!({"MaxLength": max, "DatabaseLength": max * 2, "Format": if *format == "Json" { "Text" } else { format }, "FormatName": {"Value": format}, "AutoNumberFormat": if column.name == "ticketnumber" { "CAS-{SEQNUM:5}" } else { "" }, "IsLocalizable": false})
        }
        Kind::Memo { max } => json!({"MaxLength": max, "Format": "TextArea", "FormatName": {"Value": "TextArea"}}),
        Kind::Body => {
            json!({"MaxLength": 1_073_741_823, "DatabaseLength": -1, "Format": "TextArea", "FormatName": {"Value": "TextArea"}, "AutoNumberFormat": ""})
        }
        Kind::Integer => json!({"MinValue": i32::MIN, "MaxValue": i32::MAX, "Format": "None"}),
        Kind::BigInt => json!({"MinValue": i64::MIN, "MaxValue": i64::MAX}),
        Kind::Decimal { precision } => {
            json!({"MinValue": -100_000_000_000_i64, "MaxValue": 100_000_000_000_i64, "Precision": precision})
        }
        Kind::Double => json!({"MinValue": -100_000_000_000_i64, "MaxValue": 100_000_000_000_i64, "Precision": 5}),
        Kind::Money { precision } => {
            json!({"MinValue": -922_337_203_685_477_i64, "MaxValue": 922_337_203_685_477_i64, "Precision": precision, "PrecisionSource": 0,
            "IsBaseCurrency": column.name.ends_with("_base"), "CalculationOf": column.name.strip_suffix("_base")})
        }
        Kind::Boolean => {
            json!({"DefaultValue": false, "OptionSet": {"TrueOption": {"Value": 1, "Label": label("Yes")}, "FalseOption": {"Value": 0, "Label": label("No")}}})
        }
        Kind::Date(behavior) => {
            let (format, behavior) = match behavior {
                DateBehavior::UserLocal { date_format: true } => ("DateOnly", "UserLocal"),
                DateBehavior::UserLocal { date_format: false } => ("DateAndTime", "UserLocal"),
                DateBehavior::DateOnly => ("DateOnly", "DateOnly"),
                DateBehavior::TimeZoneIndependent => ("DateAndTime", "TimeZoneIndependent"),
            };
            json!({"Format": format, "DateTimeBehavior": {"Value": behavior}, "CanChangeDateTimeBehavior": managed(false), "MinSupportedValue": "1753-01-01T00:00:00Z", "MaxSupportedValue": "9999-12-31T23:59:59Z"})
        }
        Kind::Lookup { targets, .. } | Kind::Customer { targets, .. } => json!({"Targets": targets, "Format": "None"}),
        Kind::Owner => json!({"Targets": ["systemuser", "team"], "Format": "None"}),
        Kind::PartyList => json!({"Targets": ["account", "contact", "lead", "systemuser"], "Format": "None"}),
        Kind::Choice { values } | Kind::MultiChoice { values } => option_set(values, "Picklist"),
        Kind::State { values } => option_set(values, "State"),
        Kind::Status { values, .. } => option_set(values, "Status"),
        Kind::File => json!({"MaxSizeInKB": FILE_BYTES_MAX / 1024}),
        Kind::Image => {
            json!({"MaxSizeInKB": IMAGE_BYTES_MAX / 1024, "IsPrimaryImage": column.name == "entityimage", "CanStoreFullImage": true, "MaxHeight": 144, "MaxWidth": 144})
        }
        Kind::Guid | Kind::EntityName | Kind::Virtual => json!({}),
    })
}

fn full_column(def: &TableDef, column: &Column) -> Object {
    let mut full = object(json!({"@odata.type": format!("#Microsoft.Dynamics.CRM.{}", types(column).0)}));
    full.append(&mut column_json(def, column));
    full.append(&mut column_details(def, column));
    full
}

fn keys_json(def: &TableDef) -> Vec<Object> {
    let key = |name: &str, columns: Value, status: &str| {
        object(json!({
            "MetadataId": named_guid(&format!("key {}.{name}", def.name)).to_string(),
            "LogicalName": name.to_lowercase(),
            "SchemaName": name,
            "EntityLogicalName": def.name,
            "KeyAttributes": columns,
            "EntityKeyIndexStatus": status,
        }))
    };
    if def.storage == Storage::Elastic {
        // The one fixed key of elastic tables (dataverse 2.3).
        return vec![key("KeyForNoSqlEntityWithPKPartitionId", json!([def.primary_id, "partitionid"]), "Active")];
    }
    def.key.iter().map(|column| key(&format!("new_{column}key"), json!([column]), "Active")).collect()
}

/// Every many-to-one relationship of a table.
fn lookups_json(database: &Database, def: &TableDef) -> Vec<Object> {
    let owners = ["systemuser".to_owned(), "team".to_owned()];
    let mut relationships = Vec::new();
    for column in def.columns.iter().filter(|column| column.slot != Slot::None) {
        let targets = if column.kind == Kind::Owner { &owners[..] } else { column.kind.targets() };
        for target in targets {
            let Some(referenced) = database.table(target) else { continue };
            let delete = match column.kind {
                Kind::Lookup { cascade: true, .. } | Kind::Customer { cascade: true, .. } => "Cascade",
                _ if column.restricts => "Restrict",
                _ => "RemoveLink",
            };
            let assign = if column.assigns { "Cascade" } else { "NoCascade" };
            let name = format!("{}_{}_{}", def.name, column.name, target);
            relationships.push(object(json!({
                "MetadataId": named_guid(&format!("relationship {name}")).to_string(),
                "SchemaName": name,
                "RelationshipType": "OneToManyRelationship",
                "ReferencingEntity": def.name,
                "ReferencingAttribute": column.name,
                "ReferencingEntityNavigationPropertyName": def.navigation(column, target),
                "ReferencedEntity": target,
                "ReferencedAttribute": database.tables[referenced].def.primary_id,
                "ReferencedEntityNavigationPropertyName": name,
                "IsHierarchical": def.is_hierarchical(column),
                "RelationshipBehavior": 1,
                "CascadeConfiguration": {"Assign": assign, "Delete": delete, "Merge": "NoCascade",
                    "Reparent": "NoCascade", "Share": "NoCascade", "Unshare": "NoCascade", "RollupView": "NoCascade", "Archive": Value::Null},
                "HasChanged": Value::Null,
            })));
        }
    }
    relationships
}

fn children_json(database: &Database, def: &TableDef) -> Vec<Object> {
    database
        .tables
        .iter()
        .flat_map(|table| lookups_json(database, &table.def))
        .filter(|relationship| relationship["ReferencedEntity"] == json!(def.name))
        .collect()
}

fn links_json(database: &Database, def: &TableDef) -> Vec<Object> {
    database
        .tables
        .iter()
        .filter_map(|table| table.def.ends.as_ref().map(|ends| (&table.def, ends)))
        .filter(|(table, ends)| [&ends.first.0, &ends.second.0, &table.name].contains(&&def.name))
        .map(|(table, ends)| {
            let same = ends.first.0 == ends.second.0;
            let side = |number: u8| {
                if same {
                    format!("Referenc{}{}", if number == 1 { "ing" } else { "ed" }, ends.relationship)
                } else {
                    ends.relationship.clone()
                }
            };
            object(json!({
                "MetadataId": named_guid(&format!("relationship {}", ends.relationship)).to_string(),
                "SchemaName": ends.relationship,
                "RelationshipType": "ManyToManyRelationship",
                "IntersectEntityName": table.name,
                "Entity1LogicalName": ends.first.0,
                "Entity1IntersectAttribute": ends.first.1,
                "Entity1NavigationPropertyName": side(1),
                "Entity2LogicalName": ends.second.0,
                "Entity2IntersectAttribute": ends.second.1,
                "Entity2NavigationPropertyName": side(2),
                "HasChanged": Value::Null,
            }))
        })
        .collect()
}

/// Keeps the named properties; `MetadataId` always comes (dataverse 2.1). An unknown name is a refusal.
fn select(all: Object, names: Option<&[String]>, type_name: &str) -> Result<Object, Refusal> {
    let Some(names) = names else { return Ok(all) };
    if let Some(unknown) = names.iter().find(|name| !all.contains_key(*name)) {
        return Err(Refusal::no_property(unknown, type_name));
    }
    Ok(all
        .into_iter()
        .filter(|(name, _)| name == "MetadataId" || name == "@odata.type" || names.contains(name))
        .collect())
}

fn select_all(list: Vec<Object>, names: Option<&[String]>, type_name: &str) -> Result<Vec<Value>, Refusal> {
    list.into_iter().map(|item| select(item, names, type_name).map(Value::Object)).collect()
}

const LISTS: [&str; 5] =
    ["Attributes", "Keys", "ManyToOneRelationships", "OneToManyRelationships", "ManyToManyRelationships"];

fn list(
    database: &Database,
    def: &TableDef,
    name: &str,
    cast: Option<&str>,
    names: Option<&[String]>,
) -> Result<Vec<Value>, Refusal> {
    match name {
        "Attributes" => match cast {
            // Without a cast the derived properties are not there (dataverse 2.2).
            None => {
                let columns = def.columns.iter().map(|column| {
                    let mut base =
                        object(json!({"@odata.type": format!("#Microsoft.Dynamics.CRM.{}", types(column).0)}));
                    base.append(&mut column_json(def, column));
                    base
                });
                select_all(columns.collect(), names, "AttributeMetadata")
            }
            Some("EnumAttributeMetadata") => Err(Refusal::new(
                400,
                "0x0",
                "The type 'Microsoft.Dynamics.CRM.EnumAttributeMetadata' is abstract and cannot be used in a cast.",
            )),
            Some(cast) => {
                let columns: Vec<Object> = def
                    .columns
                    .iter()
                    .filter(|column| types(column).0 == cast)
                    .map(|column| {
                        let mut full = column_json(def, column);
                        full.append(&mut column_details(def, column));
                        full
                    })
                    .collect();
                select_all(columns, names, cast)
            }
        },
        "Keys" => select_all(keys_json(def), names, "EntityKeyMetadata"),
        "ManyToOneRelationships" => select_all(lookups_json(database, def), names, "OneToManyRelationshipMetadata"),
        "OneToManyRelationships" => select_all(children_json(database, def), names, "OneToManyRelationshipMetadata"),
        "ManyToManyRelationships" => select_all(links_json(database, def), names, "ManyToManyRelationshipMetadata"),
        _ => Err(Refusal::no_segment(name)),
    }
}

fn split_top_level(text: &str, separator: char) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0_usize);
    for (index, letter) in text.char_indices() {
        match letter {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            letter if letter == separator && depth == 0 => {
                parts.push(&text[start..index]);
                start = index + letter.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn definition(database: &Database, def: &TableDef, options: &Options) -> Result<Value, Refusal> {
    let mut table = select(table_json(def), options.select.as_deref(), "EntityMetadata")?;
    for part in options.expand.iter().flat_map(|expand| split_top_level(expand, ',')) {
        let (name, inner) = part.trim().split_once('(').unwrap_or((part.trim(), ""));
        if !LISTS.contains(&name) {
            return Err(Refusal::no_property(name, "EntityMetadata"));
        }
        let mut names = None;
        for option in split_top_level(inner.strip_suffix(')').unwrap_or(inner), ';') {
            if let Some(value) = option.trim().strip_prefix("$select=") {
                names = Some(value.split(',').map(|name| name.trim().to_owned()).collect::<Vec<_>>());
            }
        }
        table.insert(name.to_owned(), Value::Array(list(database, def, name, None, names.as_deref())?));
    }
    Ok(Value::Object(table))
}

/// `Name eq value` terms joined by `and`, over plain and managed properties.
fn keeps(def: &TableDef, filter: &str) -> Result<bool, Refusal> {
    let table = Value::Object(table_json(def));
    for term in filter.split(" and ") {
        let mut words = term.trim().splitn(3, ' ');
        let (Some(property), Some(operator @ ("eq" | "ne")), Some(literal)) =
            (words.next(), words.next(), words.next())
        else {
            return Err(Refusal::bad_query(format!("Syntax error in '{term}'.")));
        };
        let value = property
            .split('/')
            .try_fold(&table, |value, name| value.get(name))
            .ok_or_else(|| Refusal::no_property(property, "EntityMetadata"))?;
        // Enums need the qualified literal (dataverse 2.1).
        let literal = literal.trim();
        let quoted = literal.split_once('\'').map(|(prefix, rest)| (prefix, rest.trim_end_matches('\'')));
        let is_enum = matches!(property, "OwnershipType");
        let equal = match (value, quoted) {
            (Value::String(text), Some((prefix, literal))) if prefix.is_empty() != is_enum => text == literal,
            (Value::String(text), None) if property.ends_with("Id") => text == literal,
            (Value::String(_), _) => {
                return Err(Refusal::bad_query("A binary operator with incompatible types was detected."));
            }
            (value, _) => {
                matches!(
                    (value, literal),
                    (Value::Bool(true), "true") | (Value::Bool(false), "false") | (Value::Null, "null")
                ) || value.as_u64().is_some_and(|number| literal.parse() == Ok(number))
            }
        };
        if equal != (operator == "eq") {
            return Ok(false);
        }
    }
    Ok(true)
}

fn find<'a>(database: &'a Database, key: &str) -> Result<&'a TableDef, Refusal> {
    let name = key.strip_prefix("LogicalName='").and_then(|rest| rest.strip_suffix('\''));
    database
        .tables
        .iter()
        .map(|table| &table.def)
        .find(|def| name.map_or_else(|| def.metadata_id().to_string() == key, |name| def.name == name))
        .ok_or_else(|| {
            Refusal::new(
                404,
                "0x80060888",
                format!("The entity with a name = '{key}' was not found in the MetadataCache."),
            )
        })
}

/// `EntityDefinitions…`; `path` is what follows that word.
pub(crate) fn entity_definitions(
    database: &Database,
    url: &str,
    path: &str,
    options: &Options,
) -> Result<Answer, Refusal> {
    let context = format!("{url}/api/data/v9.2/$metadata#EntityDefinitions");
    let Some(rest) = path.strip_prefix('(') else {
        if options.top.is_some() {
            return Err(Refusal::bad_query("The query parameter $top is not supported."));
        }
        let mut tables = Vec::new();
        for table in &database.tables {
            if options.filter.as_deref().map_or(Ok(true), |filter| keeps(&table.def, filter))? {
                tables.push(definition(database, &table.def, options)?);
            }
        }
        return Ok(Answer::json(json!({"@odata.context": context, "value": tables}).to_string()));
    };
    let (key, rest) = rest.split_once(')').ok_or_else(|| Refusal::no_segment(path))?;
    let def = find(database, key)?;
    let mut segments = rest.split('/').filter(|segment| !segment.is_empty());
    let Some(name) = segments.next() else {
        let mut table = object(json!({"@odata.context": format!("{context}/$entity")}));
        table.append(&mut object(definition(database, def, options)?));
        return Ok(Answer::json(Value::Object(table).to_string()));
    };
    let cast = segments.next().map(|cast| cast.trim_start_matches("Microsoft.Dynamics.CRM."));
    let list = list(database, def, name, cast, options.select.as_deref())?;
    Ok(Answer::json(json!({"@odata.context": format!("{context}('{}')/{name}", def.name), "value": list}).to_string()))
}

/// `RetrieveMetadataChanges(Query=@p1,…)` (dataverse 2.5).
pub(crate) fn changes(
    database: &Database,
    url: &str,
    controls: &Controls,
    options: &Options,
) -> Result<Answer, Refusal> {
    let query = options
        .aliases
        .get("@p1")
        .map_or(Ok(Value::Null), |text| serde_json::from_str::<Value>(text))
        .map_err(|error| Refusal::bad_query(format!("The query alias is not valid JSON: {error}")))?;
    let stamp =
        options.aliases.get("@p3").map(|text| text.trim_matches('\'').to_owned()).filter(|text| !text.is_empty());
    let since = match &stamp {
        None => 0,
        Some(stamp) => {
            let version = stamp.split('!').nth(1).and_then(|version| version.parse::<u64>().ok()).unwrap_or(0);
            if version < controls.stamp_floor.max(1) || version > database.schema_version {
                return Err(Refusal::expired_token(400));
            }
            version
        }
    };
    let names = |query: &Value| -> Option<Vec<String>> {
        let all = query["AllProperties"].as_bool().unwrap_or(false);
        let list = query["PropertyNames"]
            .as_array()
            .map(|names| names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect());
        if all { None } else { Some(list.unwrap_or_default()) }
    };
    let properties = names(&query["Properties"]);
    let wants = |list: &str| properties.as_ref().is_none_or(|names| names.iter().any(|name| name == list));
    let plain = properties
        .as_ref()
        .map(|names| names.iter().filter(|name| !LISTS.contains(&name.as_str())).cloned().collect::<Vec<_>>());
    let inner = |part: &str| if query[part]["Properties"].is_null() { None } else { names(&query[part]["Properties"]) };
    let mut tables = Vec::new();
    for table in database.tables.iter().filter(|table| table.def.changed_at > since) {
        let def = &table.def;
        if !meets(&Value::Object(table_json(def)), &query["Criteria"])? {
            continue;
        }
        let mut item = object(json!({"MetadataId": def.metadata_id().to_string(), "HasChanged": true}));
        let mut chosen = lenient(table_json(def), plain.as_deref());
        chosen.remove("HasChanged");
        item.append(&mut chosen);
        for list in LISTS.into_iter().filter(|list| wants(list)) {
            let (items, part) = match list {
                "Attributes" => (def.columns.iter().map(|column| full_column(def, column)).collect(), "AttributeQuery"),
                "Keys" => (keys_json(def), "KeyQuery"),
                "ManyToOneRelationships" => (lookups_json(database, def), "RelationshipQuery"),
                "OneToManyRelationships" => (children_json(database, def), "RelationshipQuery"),
                _ => (links_json(database, def), "RelationshipQuery"),
            };
            let names = inner(part);
            let mut kept = Vec::new();
            for item in items {
                if meets(&Value::Object(item.clone()), &query[part]["Criteria"])? {
                    kept.push(Value::Object(lenient(item, names.as_deref())));
                }
            }
            item.insert(list.to_owned(), Value::Array(kept));
        }
        tables.push(Value::Object(item));
    }
    Ok(Answer::json(
        json!({
            "@odata.context": format!("{url}/api/data/v9.2/$metadata#Microsoft.Dynamics.CRM.RetrieveMetadataChangesResponse"),
            "ServerVersionStamp": format!("{}!{}", database.version, database.schema_version),
            "EntityMetadata": tables,
            "DeletedMetadata": Value::Null,
        })
        .to_string(),
    ))
}

/// Unknown property names are ignored here, unlike in `$select`.
fn lenient(all: Object, names: Option<&[String]>) -> Object {
    match names {
        None => all,
        Some(names) => all
            .into_iter()
            .filter(|(name, _)| name == "MetadataId" || name == "@odata.type" || names.contains(name))
            .collect(),
    }
}

fn meets(item: &Value, criteria: &Value) -> Result<bool, Refusal> {
    let Some(conditions) = criteria["Conditions"].as_array() else { return Ok(true) };
    let any = criteria["FilterOperator"] == json!("Or");
    let mut results = Vec::new();
    for condition in conditions {
        let property = condition["PropertyName"].as_str().unwrap_or_default();
        let value = item.get(property).ok_or_else(|| Refusal::no_property(property, "EntityMetadata"))?;
        // Managed properties compare as booleans.
        let value = value.get("Value").unwrap_or(value);
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let wanted = condition["Value"]["Value"].as_str().unwrap_or("null");
        let list: Vec<String> = serde_json::from_str(wanted)
            .unwrap_or_else(|_| wanted.split(',').map(|part| part.trim().to_owned()).collect());
        let same = text.eq_ignore_ascii_case(wanted);
        results.push(match condition["ConditionOperator"].as_str().unwrap_or_default() {
            "Equals" => same,
            "NotEquals" => !same,
            "In" => list.contains(&text),
            "NotIn" => !list.contains(&text),
            other => return Err(Refusal::bad_query(format!("Condition operator '{other}' is not supported."))),
        });
    }
    Ok(results.is_empty() || if any { results.contains(&true) } else { !results.contains(&false) })
}
