use dynavault_model::{Birth, ColumnKind, Row, TableRef, Treatment, scan};
use serde_json::{Value, json};

use super::*;

/// A column as the service describes it; `flags` may hold `c` (create), `u` (update), `r` (required).
fn attribute(name: &str, kind: &str, flags: &str, more: Value) -> Value {
    let mut attribute = json!({
        "LogicalName": name,
        "AttributeTypeName": {"Value": kind},
        "IsValidForCreate": flags.contains('c'),
        "IsValidForUpdate": flags.contains('u'),
        "RequiredLevel": {"Value": if flags.contains('r') { "SystemRequired" } else { "ApplicationRequired" }},
        "SourceType": 0,
        "AttributeOf": null,
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        attribute[name] = value.clone();
    }
    attribute
}

fn schema(table: &str, properties: &Value, attributes: Vec<Value>) -> TableSchema {
    let mut definition = json!({"LogicalName": table, "Attributes": attributes});
    for (name, value) in properties.as_object().into_iter().flatten() {
        definition[name] = value.clone();
    }
    let key = if properties["IsActivity"] == true { "activityid".to_string() } else { format!("{table}id") };
    let columns = definition["Attributes"].as_array().unwrap().iter().map(|attribute| {
        let (name, kind) =
            (attribute["LogicalName"].as_str().unwrap(), attribute["AttributeTypeName"]["Value"].as_str().unwrap());
        let lookup = matches!(kind, "LookupType" | "CustomerType" | "OwnerType");
        let member = if lookup { format!("_{name}_value") } else { name.to_string() };
        Column { name: name.into(), member, kind: kind.into(), secured: false }
    });
    TableSchema {
        table: TableRef::ce(table),
        entity_set: format!("{table}s"),
        key: vec![key],
        columns: columns.collect(),
        content: Vec::new(),
        tracked: true,
        page_rows_max: 5000,
        not_captured: Vec::new(),
        definition,
    }
}

fn account() -> TableSchema {
    let states = json!({"OptionSet": {"Options": [{"Value": 0}, {"Value": 1}]}});
    let statuses = json!({"OptionSet": {"Options": [{"Value": 1, "State": 0}, {"Value": 2, "State": 1}, {"Value": 7, "State": 0}]}});
    schema(
        "account",
        &json!({
            "IsOptimisticConcurrencyEnabled": true,
            "ManyToOneRelationships": [
                {"ReferencingAttribute": "parentaccountid", "ReferencedEntity": "account",
                 "CascadeConfiguration": {"Delete": "Cascade"}},
                {"ReferencingAttribute": "new_ref", "ReferencedEntity": "new_thing",
                 "CascadeConfiguration": {"Delete": "RemoveLink"}},
                {"ReferencingAttribute": "createdby", "ReferencedEntity": "systemuser"},
            ],
        }),
        vec![
            attribute("accountid", "UniqueidentifierType", "cr", Value::Null),
            attribute("name", "StringType", "cur", json!({"MaxLength": 160})),
            attribute("fullname", "StringType", "", Value::Null),
            attribute(
                "industrycode",
                "PicklistType",
                "cu",
                json!({"OptionSet": {"Options": [{"Value": 2}, {"Value": 1}]}}),
            ),
            attribute(
                "new_segments",
                "MultiSelectPicklistType",
                "cu",
                json!({"OptionSet": {"Options": [{"Value": 5}]}}),
            ),
            attribute("parentaccountid", "LookupType", "cu", json!({"Targets": ["account"]})),
            attribute("new_ref", "LookupType", "cur", Value::Null),
            attribute("ownerid", "OwnerType", "cur", Value::Null),
            attribute("revenue", "MoneyType", "cu", Value::Null),
            attribute("revenue_base", "MoneyType", "cu", json!({"CalculationOf": "revenue"})),
            attribute("exchangerate", "DecimalType", "cu", Value::Null),
            attribute("openrevenue", "MoneyType", "cu", json!({"SourceType": 2})),
            attribute("openrevenue_date", "DateTimeType", "cu", Value::Null),
            attribute("new_sum", "DecimalType", "cu", json!({"SourceType": 1})),
            attribute("parentaccountidname", "StringType", "cu", json!({"AttributeOf": "parentaccountid"})),
            attribute("createdon", "DateTimeType", "", Value::Null),
            attribute("createdby", "LookupType", "", Value::Null),
            attribute("owningbusinessunit", "LookupType", "cu", Value::Null),
            attribute("versionnumber", "BigIntType", "", Value::Null),
            attribute("overriddencreatedon", "DateTimeType", "c", Value::Null),
            attribute("importsequencenumber", "IntegerType", "c", Value::Null),
            attribute("traversedpath", "StringType", "cu", Value::Null),
            attribute("address1_addressid", "UniqueidentifierType", "cu", Value::Null),
            attribute("entityimage", "ImageType", "cu", json!({"IsPrimaryImage": true})),
            attribute("entityimage_url", "StringType", "cu", Value::Null),
            attribute("statecode", "StateType", "cur", states),
            attribute("statuscode", "StatusType", "cu", statuses),
        ],
    )
}

fn with_image(mut schema: TableSchema) -> TableSchema {
    schema.content.push(ContentColumn {
        column: "entityimage".into(),
        kind: ContentKind::Image,
        version_member: "entityimageid".into(),
        presence_member: "entityimage".into(),
        name_member: None,
    });
    schema
}

#[test]
fn columns_are_written_where_the_metadata_allows_it_and_the_service_does_not_own_them() {
    let rules = rules(&with_image(account()));
    let expected: &[(&str, bool, bool, Option<&str>)] = &[
        ("accountid", true, false, None),
        ("name", true, true, None),
        ("fullname", false, false, Some("read-only")),
        ("_parentaccountid_value", true, true, None),
        ("_ownerid_value", true, true, None),
        ("revenue", true, true, None),
        ("revenue_base", false, false, Some("calculated")),
        ("exchangerate", false, false, Some("calculated")),
        ("openrevenue", false, false, Some("calculated")),
        ("openrevenue_date", false, false, Some("calculated")),
        ("new_sum", false, false, Some("calculated")),
        ("parentaccountidname", false, false, Some("calculated")),
        ("createdon", false, false, Some("server-set")),
        ("_createdby_value", false, false, Some("server-set")),
        ("_owningbusinessunit_value", false, false, Some("server-set")),
        ("versionnumber", false, false, Some("server-set")),
        ("overriddencreatedon", false, false, Some("server-set")),
        ("traversedpath", false, false, Some("server-set")),
        ("importsequencenumber", true, false, None),
        ("address1_addressid", true, false, None),
        ("entityimage", false, false, Some("content")),
        ("entityimage_url", false, false, Some("content")),
        ("statecode", false, true, None),
        ("statuscode", true, true, None),
    ];
    for (member, create, update, not_written) in expected {
        let rule = rules.column(member).unwrap();
        assert_eq!((rule.create, rule.update, rule.not_written), (*create, *update, *not_written), "{member}");
    }
    let required: Vec<&str> =
        rules.columns.iter().filter(|rule| rule.required).map(|rule| rule.member.as_str()).collect();
    assert_eq!(required, ["name", "_new_ref_value"]);
    for rule in &rules.columns {
        assert_eq!(rule.not_written.is_some(), !rule.create && !rule.update, "{}", rule.member);
    }
}

#[test]
fn rules_say_what_columns_hold_and_which_rows_they_hang_on() {
    let rules = rules(&account());
    let kind = |member: &str| rules.column(member).unwrap().kind.clone();
    assert_eq!(kind("accountid"), ColumnKind::Key);
    assert_eq!(kind("name"), ColumnKind::Text(Some(160)));
    assert_eq!(kind("industrycode"), ColumnKind::Choice { values: vec![1, 2], multi: false });
    assert_eq!(kind("new_segments"), ColumnKind::Choice { values: vec![5], multi: true });
    assert_eq!(kind("_parentaccountid_value"), ColumnKind::Lookup { targets: vec!["account".into()] });
    assert_eq!(kind("_new_ref_value"), ColumnKind::Lookup { targets: vec!["new_thing".into()] });
    assert_eq!(kind("_ownerid_value"), ColumnKind::Lookup { targets: vec!["systemuser".into(), "team".into()] });
    assert_eq!(rules.owner.as_deref(), Some("_ownerid_value"));
    assert_eq!(rules.created_on, Some(("overriddencreatedon".into(), "createdon".into())));
    assert_eq!(rules.created_by.as_deref(), Some("_createdby_value"));
    assert!(rules.guards_versions && !rules.is_activity);
    let parents: Vec<_> =
        rules.parents.iter().map(|one| (one.member.as_str(), one.parent.as_str(), one.deletes)).collect();
    assert_eq!(parents, [("_parentaccountid_value", "account", true), ("_new_ref_value", "new_thing", false)]);
    let state = rules.state.unwrap();
    assert_eq!((state.initial, state.initial_statuses.as_slice(), state.closed.as_slice()), (0, &[1, 7][..], &[][..]));
    assert_eq!(state.close_table, None);
}

#[test]
fn what_old_metadata_does_not_say_is_not_written() {
    let mut old = account();
    old.definition =
        json!({"LogicalName": "account", "Attributes": [{"LogicalName": "name", "AttributeType": "String"}]});
    let of_old = rules(&old);
    assert!(of_old.columns.iter().all(|rule| !rule.create && !rule.update));
    assert_eq!(of_old.column("name").unwrap().not_written, Some("read-only"));
    assert!(!of_old.guards_versions && of_old.created_on.is_none() && of_old.owner.is_none());
    old.definition = Value::Null;
    assert!(rules(&old).columns.iter().all(|rule| !rule.create));
}

#[test]
fn closed_states_and_close_activities_belong_to_their_tables() {
    let stateful = |table: &str, properties: Value, values: &[i64]| {
        let options: Vec<Value> = values.iter().map(|value| json!({"Value": value})).collect();
        let state = attribute("statecode", "StateType", "cu", json!({"OptionSet": {"Options": options}}));
        rules(&schema(table, &properties, vec![state, attribute("statuscode", "StatusType", "cu", Value::Null)]))
            .state
            .unwrap()
    };
    let opportunity = stateful("opportunity", json!({}), &[0, 1, 2]);
    assert_eq!(opportunity.closed, [1, 2]);
    assert_eq!(opportunity.close_table, Some(("opportunityclose".into(), "_opportunityid_value".into())));
    assert_eq!(opportunity.close_states, [1, 2]);
    assert_eq!(stateful("incident", json!({}), &[0, 1, 2]).close_states, [1]);
    assert_eq!(stateful("quote", json!({}), &[0, 1, 2, 3]).closed, [2, 3]);
    assert_eq!(stateful("email", json!({"IsActivity": true}), &[0, 1, 2]).closed, [1, 2]);
    assert_eq!(stateful("product", json!({}), &[0, 1, 2, 3]).initial, 2);
    assert_eq!(stateful("lead", json!({}), &[0, 1, 2]).closed, [0_i64; 0]);
    assert!(opportunity.initial_statuses.is_empty());
}

#[test]
fn no_status_goes_along_with_the_creation_of_a_close_activity() {
    let initial = |table: &str| {
        let options = json!({"OptionSet": {"Options": [{"Value": 1, "State": 0}, {"Value": 2, "State": 1}]}});
        let state = attribute("statecode", "StateType", "cu", json!({"OptionSet": {"Options": [{"Value": 0}]}}));
        let attributes = vec![state, attribute("statuscode", "StatusType", "cu", options)];
        rules(&schema(table, &json!({"IsActivity": true}), attributes)).state.unwrap().initial_statuses
    };
    assert_eq!((initial("task"), initial("opportunityclose")), (vec![1], Vec::new()));
}

#[test]
fn tables_are_treated_as_an_administrator_expects() {
    let of = |table: &str, properties: Value| rules(&schema(table, &properties, Vec::new())).treatment;
    let never = |treatment: &Treatment| matches!(treatment, Treatment::Never(why) if !why.is_empty());
    for table in
        ["account", "team", "queue", "new_solution_item", "import_thing", "userquery", "territory", "new_plugindata"]
    {
        assert_eq!(of(table, json!({})), Treatment::Rows, "{table}");
    }
    for table in [
        "activitypointer",
        "audit",
        "solutioncomponent",
        "sdkmessageprocessingstep",
        "plugintracelog",
        "asyncoperation",
        "systemuserroles",
        "fileattachment",
        "workflow",
        "stringmap",
        "importlog",
        "calendarrule",
    ] {
        assert!(never(&of(table, json!({}))), "{table}");
    }
    for table in ["systemuser", "businessunit", "transactioncurrency", "role", "organization"] {
        assert!(matches!(of(table, json!({})), Treatment::Reference(_)), "{table}");
    }
    assert!(never(&of("new_hidden", json!({"IsPrivate": true}))));
    assert!(never(&of("new_external", json!({"TableType": "Virtual"}))));
    assert_eq!(of("activityparty", json!({})), Treatment::Along { parent: "_activityid_value".into() });
}

fn link(name: &str, first: (&str, &str), second: (&str, &str)) -> Value {
    json!({"IntersectEntityName": name, "Entity1LogicalName": first.0, "Entity1IntersectAttribute": first.1,
           "Entity1NavigationPropertyName": "Referencingx", "Entity2LogicalName": second.0,
           "Entity2IntersectAttribute": second.1, "Entity2NavigationPropertyName": "Referencedx"})
}

#[test]
fn links_have_the_ends_of_their_one_relationship_in_its_order() {
    let of = |relationships: Value| {
        let properties = json!({"IsIntersect": true, "ManyToManyRelationships": relationships});
        rules(&schema("new_account_account", &properties, Vec::new())).treatment
    };
    let own = link("new_account_account", ("account", "accountidone"), ("account", "accountidtwo"));
    let other = link("accountleads", ("account", "accountid"), ("lead", "leadid"));
    let Treatment::Links { first, second } = of(json!([other, own])) else { panic!("not links") };
    assert_eq!((first.table.as_str(), first.member.as_str()), ("account", "accountidone"));
    assert_eq!((second.table.as_str(), second.member.as_str()), ("account", "accountidtwo"));
    assert!(matches!(of(json!([own, own])), Treatment::Never(_)));
    assert!(matches!(of(Value::Null), Treatment::Never(_)));
}

fn born(table: &str, row: &str) -> Birth {
    let key =
        if matches!(table, "opportunityclose" | "appointment") { "activityid".into() } else { format!("{table}id") };
    let properties = json!({"IsActivity": key == "activityid"});
    let rules = rules(&schema(table, &properties, vec![attribute(&key, "UniqueidentifierType", "c", Value::Null)]));
    let mut members = Vec::new();
    scan(row.as_bytes(), &mut members).unwrap();
    birth(&rules, &Row::new(row.as_bytes(), &members))
}

#[test]
fn rows_that_come_with_others_are_not_made_again() {
    let address = |number: u32, parent: &str| {
        let row = format!(
            r#"{{"addressnumber":{number},"_parentid_value":"x","_parentid_value@Microsoft.Dynamics.CRM.lookuplogicalname":"{parent}"}}"#
        );
        born("customeraddress", &row)
    };
    let with_parent = Birth::WithParent("_parentid_value".into());
    assert_eq!(address(1, "account"), with_parent);
    assert_eq!(address(2, "account"), with_parent);
    assert_eq!(address(3, "account"), Birth::Written);
    assert_eq!(address(3, "contact"), with_parent);
    assert_eq!(address(4, "contact"), Birth::Written);
    assert_eq!(
        born("opportunityclose", r#"{"_opportunityid_value":"x"}"#),
        Birth::ByState("_opportunityid_value".into())
    );
    assert!(matches!(born("connection", r#"{"ismaster":false}"#), Birth::Mirrored(_)));
    assert_eq!(born("connection", r#"{"ismaster":true}"#), Birth::Written);
    assert!(matches!(born("appointment", r#"{"instancetypecode":2}"#), Birth::Mirrored(_)));
    assert_eq!(born("appointment", r#"{"instancetypecode":3}"#), Birth::Written);
    assert!(matches!(born("team", r#"{"isdefault":true}"#), Birth::Never(_)));
    assert!(matches!(born("queue", r#"{"name":"<Ada Lovelace>"}"#), Birth::Never(_)));
    assert_eq!(born("queue", r#"{"name":"Support"}"#), Birth::Written);
    assert_eq!(born("account", "{}"), Birth::Written);
}

#[test]
fn rows_whose_id_the_service_does_not_take_are_not_made() {
    let rules =
        rules(&schema("thing", &json!({}), vec![attribute("thingid", "UniqueidentifierType", "", Value::Null)]));
    let mut members = Vec::new();
    scan(b"{}", &mut members).unwrap();
    assert!(matches!(birth(&rules, &Row::new(b"{}", &members)), Birth::Never(_)));
}

#[test]
fn a_lookup_named_like_a_file_column_is_written() {
    let mut table = schema(
        "new_thing",
        &json!({}),
        vec![
            attribute("new_document", "FileType", "cu", Value::Null),
            attribute("new_document_name", "StringType", "cu", Value::Null),
            attribute("new_documentid", "LookupType", "cu", json!({"Targets": ["new_document"]})),
        ],
    );
    table.content.push(ContentColumn {
        column: "new_document".into(),
        kind: ContentKind::File,
        version_member: "new_document".into(),
        presence_member: "new_document".into(),
        name_member: Some("new_document_name".into()),
    });
    let rules = rules(&table);
    let not_written = |member: &str| rules.column(member).unwrap().not_written;
    assert_eq!(not_written("new_document"), Some("content"));
    assert_eq!(not_written("new_document_name"), Some("content"));
    assert_eq!(not_written("_new_documentid_value"), None);
}
