use dynavault_model::{RowId, RowKey, TableRef, WriteOptions};
use serde_json::{Value, json};

use super::*;
use crate::transitions::{Less, parts};

const ID: &str = "0fe1c2d3-a4b5-46c7-88d9-eafb0c1d2e3f";
const CLOSE_ID: &str = "c10se000-a4b5-46c7-88d9-eafb0c1d2e3f";

fn member(attribute: &Value) -> String {
    let name = attribute["LogicalName"].as_str().unwrap();
    if attribute["AttributeTypeName"]["Value"] == "LookupType" { format!("_{name}_value") } else { name.into() }
}

fn table(name: &str, set: &str, key: &str, definition: Value) -> TableSchema {
    let columns = definition["Attributes"].as_array().into_iter().flatten().map(|attribute| dynavault_model::Column {
        name: attribute["LogicalName"].as_str().unwrap().into(),
        member: member(attribute),
        kind: attribute["AttributeTypeName"]["Value"].as_str().unwrap_or("StringType").into(),
        secured: false,
    });
    TableSchema {
        table: TableRef::ce(name),
        entity_set: set.into(),
        key: vec![key.into()],
        columns: columns.collect(),
        content: Vec::new(),
        tracked: true,
        page_rows_max: 5000,
        not_captured: Vec::new(),
        definition,
    }
}

fn state(set: &str, from: i64, close: Option<&str>, guard: Guard) -> RowWrite {
    RowWrite {
        key: RowKey::new(ID),
        set: set.as_bytes().into(),
        guard,
        parties: Vec::new(),
        close: close.map(|close| close.as_bytes().into()),
        from_state: Some(from),
        on_behalf: None,
    }
}

fn requests(table: &TableSchema, close: Option<&TableSchema>, row: &RowWrite) -> Vec<(String, Value)> {
    let closes = ["opportunityclose", "incidentresolution", "quoteclose", "orderclose"];
    let closes = closes.map(|name| (name.to_string(), format!("{name}s")));
    let sets = Sets::new([(table.table.name.clone(), table.entity_set.clone())].into_iter().chain(closes));
    let wire = Wire::new(table, &sets);
    let close = close.map(|close| Wire::new(close, &sets));
    let parts = parts(&wire, close.as_ref(), row, RowId([7; 16])).unwrap();
    let print = |(method, path, condition, body): (Method, String, Option<String>, Vec<u8>)| {
        let condition = condition.map(|condition| format!(" if {condition}")).unwrap_or_default();
        let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
        (format!("{} {path}{condition}", method.name()), body)
    };
    parts.into_iter().map(print).collect()
}

#[test]
fn a_state_goes_alone_in_its_own_change() {
    let account = table("account", "accounts", "accountid", Value::Null);
    let row = state(r#"{"statecode":1,"statuscode":2}"#, 0, None, Guard::Unchanged("W/\"7\"".into()));
    assert_eq!(
        requests(&account, None, &row),
        [(format!("PATCH accounts({ID}) if W/\"7\""), json!({"statecode": 1, "statuscode": 2}))]
    );
}

#[test]
fn a_won_opportunity_is_closed_by_its_message_with_the_captured_activity() {
    let opportunity = table("opportunity", "opportunities", "opportunityid", Value::Null);
    let attribute = |name: &str, kind: &str, create: bool| json!({"LogicalName": name, "AttributeTypeName": {"Value": kind}, "IsValidForCreate": create});
    let close = table(
        "opportunityclose",
        "opportunitycloses",
        "activityid",
        json!({"Attributes": [
            attribute("activityid", "UniqueidentifierType", true),
            attribute("subject", "StringType", true),
            attribute("actualrevenue", "MoneyType", true),
            attribute("actualrevenue_base", "MoneyType", false),
            attribute("description", "MemoType", true),
            attribute("statecode", "StateType", true),
            attribute("statuscode", "StatusType", true),
        ], "ManyToOneRelationships": [{"ReferencingAttribute": "opportunityid", "ReferencedEntity": "opportunity",
            "ReferencingEntityNavigationPropertyName": "opportunityid"}]}),
    );
    let id = CLOSE_ID.replace("c10se000", "c1050000");
    let captured = format!(
        r#"{{"@odata.etag":"W/\"1\"","activityid":"{id}","subject":"Won","actualrevenue":10.5000,"actualrevenue_base":10.5,"description":null,"statecode":1,"statuscode":2,"_opportunityid_value":"x","_createdby_value":"y"}}"#
    );
    let row = state(r#"{"statecode":1,"statuscode":3}"#, 0, Some(&captured), Guard::Present);
    let expected = json!({"Status": 3, "OpportunityClose": {
        "@odata.type": "Microsoft.Dynamics.CRM.opportunityclose",
        "opportunityid@odata.bind": format!("/opportunities({ID})"),
        "activityid": id, "subject": "Won", "actualrevenue": 10.5,
    }});
    assert_eq!(requests(&opportunity, Some(&close), &row), [("POST WinOpportunity".to_string(), expected)]);
    let bare = state(r#"{"statecode":2}"#, 0, None, Guard::Present);
    let (request, body) = requests(&opportunity, None, &bare).remove(0);
    assert_eq!((request.as_str(), &body["Status"]), ("POST LoseOpportunity", &json!(-1)));
    let reopened = state(r#"{"statecode":0,"statuscode":1}"#, 1, None, Guard::Present);
    assert_eq!(requests(&opportunity, None, &reopened)[0].0, format!("PATCH opportunities({ID}) if *"));
}

#[test]
fn a_close_activity_goes_with_its_lookups_and_its_own_words_about_the_outcome() {
    let opportunity = table("opportunity", "opportunities", "opportunityid", Value::Null);
    let attribute = |name: &str, kind: &str| json!({"LogicalName": name, "AttributeTypeName": {"Value": kind}, "IsValidForCreate": true});
    let lookup = |name: &str, to: &str| json!({"ReferencingAttribute": name, "ReferencedEntity": to, "ReferencingEntityNavigationPropertyName": name});
    let close = table(
        "opportunityclose",
        "opportunitycloses",
        "activityid",
        json!({"Attributes": [
            attribute("activityid", "UniqueidentifierType"),
            attribute("actualend", "DateTimeType"),
            attribute("actualrevenue", "MoneyType"),
            attribute("regardingobjectid", "LookupType"),
            attribute("opportunityid", "LookupType"),
            attribute("createdon", "DateTimeType"),
            attribute("overriddencreatedon", "DateTimeType"),
        ], "ManyToOneRelationships": [lookup("opportunityid", "opportunity"), lookup("regardingobjectid", "opportunity")]}),
    );
    let id = CLOSE_ID.replace("c10se000", "c1050000");
    let captured = |end: &str, revenue: &str| {
        format!(
            r#"{{"activityid":"{id}","actualend":"{end}","actualrevenue":{revenue},"overriddencreatedon":"2019-03-01T08:00:00Z","_opportunityid_value":"{ID}","_regardingobjectid_value":"{ID}","_regardingobjectid_value@Microsoft.Dynamics.CRM.lookuplogicalname":"opportunity"}}"#
        )
    };
    let body = |close_row: &str| {
        let set = r#"{"statecode":1,"statuscode":3,"actualclosedate":"2019-03-01","actualvalue":10.5000}"#;
        let row = state(set, 0, Some(close_row), Guard::Present);
        requests(&opportunity, Some(&close), &row).remove(0).1["OpportunityClose"].clone()
    };
    let alike = body(&captured("2019-03-01T17:30:00Z", "10.50"));
    assert_eq!(alike["actualend"], "2019-03-01T17:30:00Z");
    assert_eq!(alike["regardingobjectid@odata.bind"], format!("/opportunities({ID})"));
    assert_eq!(alike["overriddencreatedon"], "2019-03-01T08:00:00Z");
    // The service copies what the activity says into the row, so the row's own values count.
    let otherwise = body(&captured("2019-04-01T17:30:00Z", "11"));
    assert_eq!((&otherwise["actualend"], &otherwise["actualrevenue"]), (&json!("2019-03-01T00:00:00Z"), &json!(10.5)));

    let whole = captured("2019-03-01T17:30:00Z", "1");
    let reduced = |less| crate::transitions::reduced(&close, whole.as_bytes(), less).unwrap();
    assert_eq!(reduced(Less::Owner), None, "it has none");
    let without = String::from_utf8(reduced(Less::Lookups).unwrap()).unwrap();
    assert!(!without.contains("_value") && without.contains("overriddencreatedon"), "{without}");
    let least = String::from_utf8(reduced(Less::CreationTime).unwrap()).unwrap();
    assert_eq!(least, format!(r#"{{"activityid":"{id}","actualend":"2019-03-01T17:30:00Z","actualrevenue":1}}"#));
}

#[test]
fn states_that_lie_behind_another_take_both_steps() {
    let quote = table("quote", "quotes", "quoteid", Value::Null);
    let row = state(r#"{"statecode":2,"statuscode":4}"#, 0, None, Guard::Present);
    let names: Vec<String> = requests(&quote, None, &row).into_iter().map(|(name, _)| name).collect();
    // No captured activity belongs to it, so the one that the message makes goes again.
    let gone = "DELETE quotecloses(07070707-0707-0707-0707-070707070707)";
    assert_eq!(names, [format!("PATCH quotes({ID}) if *"), "POST WinQuote".into(), gone.into()]);
    let product = table("product", "products", "productid", Value::Null);
    let row = state(r#"{"statecode":1,"statuscode":2}"#, 2, None, Guard::Present);
    let requests = requests(&product, None, &row);
    assert_eq!(
        requests[0],
        (format!("POST products({ID})/Microsoft.Dynamics.CRM.PublishProductHierarchy"), Value::Null)
    );
    assert_eq!(requests[1].1, json!({"statecode": 1, "statuscode": 2}));
}

#[test]
fn custom_logic_is_bypassed_by_the_header_that_the_privilege_allows() {
    let names = |options: WriteOptions, bypass| -> Vec<String> {
        headers(&options, bypass).into_iter().map(|(name, value)| format!("{name}: {value}")).collect()
    };
    let all = WriteOptions { bypass_logic: true, suppress_flows: true };
    assert_eq!(
        names(all.clone(), Bypass::All),
        [
            "MSCRM.BypassBusinessLogicExecution: CustomSync,CustomAsync",
            "MSCRM.SuppressCallbackRegistrationExpanderJob: true"
        ]
    );
    assert_eq!(names(all, Bypass::SynchronousOnly)[0], "MSCRM.BypassCustomPluginExecution: true");
    assert!(names(WriteOptions::default(), Bypass::All).is_empty());
}
