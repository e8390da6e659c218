use dynavault_model::{Column, ContentColumn, ContentKind, TableRef};
use serde_json::{Value, json};

use super::*;

const ID: &str = "0fe1c2d3-a4b5-46c7-88d9-eafb0c1d2e3f";
const OTHER: &str = "7d1f0000-a4b5-46c7-88d9-eafb0c1d2e3f";

/// A table with a lookup of one target, one of several, a self reference, and an owner, as the service describes them.
fn opportunity() -> TableSchema {
    let attribute = |name: &str, kind: &str, targets: Value| {
        json!({"LogicalName": name, "AttributeTypeName": {"Value": kind}, "Targets": targets,
               "IsValidForCreate": true, "IsValidForUpdate": true})
    };
    let lookup = |column: &str, target: &str, navigation: &str| {
        json!({"ReferencingAttribute": column, "ReferencedEntity": target,
               "ReferencingEntityNavigationPropertyName": navigation})
    };
    TableSchema {
        table: TableRef::ce("opportunity"),
        entity_set: "opportunities".into(),
        key: vec!["opportunityid".into()],
        columns: vec![Column { name: "name".into(), member: "name".into(), kind: "StringType".into(), secured: false }],
        content: vec![ContentColumn {
            column: "new_picture".into(),
            kind: ContentKind::Image,
            version_member: "new_pictureid".into(),
            presence_member: "new_picture".into(),
            name_member: None,
        }],
        tracked: true,
        page_rows_max: 5000,
        not_captured: Vec::new(),
        definition: json!({
            "LogicalName": "opportunity",
            "Attributes": [
                attribute("name", "StringType", Value::Null),
                attribute("customerid", "CustomerType", json!(["account", "contact"])),
                attribute("new_campaignid", "LookupType", json!(["new_campaign"])),
                attribute("ownerid", "OwnerType", json!(["systemuser", "team"])),
            ],
            "ManyToOneRelationships": [
                lookup("customerid", "account", "customerid_account"),
                lookup("customerid", "contact", "customerid_contact"),
                lookup("new_campaignid", "new_campaign", "new_CampaignId"),
                lookup("ownerid", "owner", "ownerid"),
            ],
        }),
    }
}

fn sets() -> Sets {
    let names = [
        ("account", "accounts"),
        ("contact", "contacts"),
        ("new_campaign", "new_campaignset"),
        ("systemuser", "systemusers"),
        ("team", "teams"),
    ];
    Sets::new(names.map(|(table, set)| (table.to_string(), set.to_string())))
}

fn body(set: &str, purpose: Purpose) -> Result<String, Unwritable> {
    let (table, sets) = (opportunity(), sets());
    let body = Wire::new(&table, &sets).body(set.as_bytes(), purpose)?;
    Ok(String::from_utf8(body).unwrap())
}

fn annotated(member: &str, id: &str, target: &str) -> String {
    format!(r#""{member}":"{id}","{member}{TARGET}":"{target}""#)
}

#[test]
fn values_keep_their_bytes_and_annotations_are_dropped() {
    let set = r#"{"@odata.etag":"W/\"1\"","opportunityid":"0fe1c2d3-a4b5-46c7-88d9-eafb0c1d2e3f","revenue":20000.0000,"tiny":1e-10,"big":638751518483842799,"name":"\u00e9\/ \"A\"","flags":"1,2","choice@OData.Community.Display.V1.FormattedValue":"Yes","choice":1,"new_picture":"iVBOR"}"#;
    let expected = r#"{"revenue":20000.0000,"tiny":1e-10,"big":638751518483842799,"name":"\u00e9\/ \"A\"","flags":"1,2","choice":1}"#;
    assert_eq!(body(set, Purpose::Create).unwrap(), expected);
}

#[test]
fn lookups_are_bound_through_the_property_of_their_target_in_its_case() {
    for (member, target, expected) in [
        ("_customerid_value", "account", r#""customerid_account@odata.bind":"/accounts("#),
        ("_customerid_value", "contact", r#""customerid_contact@odata.bind":"/contacts("#),
        ("_new_campaignid_value", "new_campaign", r#""new_CampaignId@odata.bind":"/new_campaignset("#),
        ("_ownerid_value", "team", r#""ownerid@odata.bind":"/teams("#),
        ("_ownerid_value", "systemuser", r#""ownerid@odata.bind":"/systemusers("#),
    ] {
        let set = format!("{{{}}}", annotated(member, OTHER, target));
        assert_eq!(body(&set, Purpose::Create).unwrap(), format!("{{{expected}{OTHER})\"}}"), "{member} {target}");
    }
    let only = format!(r#"{{"_new_campaignid_value":"{OTHER}"}}"#);
    assert!(body(&only, Purpose::Create).unwrap().contains("new_CampaignId@odata.bind"));
}

#[test]
fn a_property_that_the_metadata_does_not_know_comes_from_the_captured_row() {
    let set = format!(
        r#"{{{},"_customerid_value{NAVIGATION}":"customerid_lead"}}"#,
        annotated("_customerid_value", OTHER, "team")
    );
    assert_eq!(body(&set, Purpose::Create).unwrap(), format!(r#"{{"customerid_lead@odata.bind":"/teams({OTHER})"}}"#));
}

#[test]
fn empty_lookups_are_left_out_of_new_rows_and_cleared_through_every_property_of_old_ones() {
    let set = r#"{"_customerid_value":null,"name":null}"#;
    assert_eq!(body(set, Purpose::Create).unwrap(), r#"{"name":null}"#);
    assert_eq!(
        body(set, Purpose::Update).unwrap(),
        r#"{"customerid_account@odata.bind":null,"customerid_contact@odata.bind":null,"name":null}"#
    );
}

#[test]
fn lookups_that_cannot_be_bound_are_named_and_their_values_are_not() {
    for (set, expected) in [
        (
            annotated("_customerid_value", OTHER, "lead"),
            Unwritable::NoNavigation { column: "customerid".into(), table: "lead".into() },
        ),
        (annotated("_customerid_value", OTHER, "entity"), Unwritable::NoTarget("customerid".into())),
        (format!(r#""_customerid_value":"{OTHER}""#), Unwritable::NoTarget("customerid".into())),
        (annotated("_customerid_value", "x)/evil(", "account"), Unwritable::NotAnId("customerid".into())),
        (r#""_unknown_value":null"#.to_string(), Unwritable::NoTarget("unknown".into())),
    ] {
        let failed = body(&format!("{{{set}}}"), Purpose::Update).unwrap_err();
        assert!(!failed.to_string().contains(OTHER) && !failed.to_string().contains("evil"));
        assert_eq!(failed, expected, "{set}");
    }
    assert_eq!(body("[]", Purpose::Update), Err(Unwritable::NotAnObject));
}

#[test]
fn items_of_bulk_messages_say_their_type_and_key() {
    let (table, sets) = (opportunity(), sets());
    let item = Wire::new(&table, &sets).item(&RowKey::new(ID), br#"{"name":"A"}"#, Purpose::Create).unwrap();
    let expected =
        format!(r#"{{"@odata.type":"Microsoft.Dynamics.CRM.opportunity","opportunityid":"{ID}","name":"A"}}"#);
    assert_eq!(String::from_utf8(item.finish()).unwrap(), expected);
}

#[test]
fn addresses_hold_ids_only_and_partitions_in_quotes() {
    let mut table = opportunity();
    assert_eq!(address(&table, &RowKey::new(ID)).unwrap(), format!("opportunities({ID})"));
    assert_eq!(address(&table, &RowKey::new("1)/x")), Err(Unwritable::Key));
    assert_eq!(address(&table, &RowKey::new(format!("{{{ID}}}"))), Err(Unwritable::Key));
    table.key.push("partitionid".into());
    let key = RowKey { partition: Some("it's & more".into()), ..RowKey::new(ID) };
    assert_eq!(
        address(&table, &key).unwrap(),
        format!("opportunities(opportunityid={ID},partitionid='it%27%27s%20%26%20more')")
    );
}

#[test]
fn parties_are_bound_or_kept_by_their_address() {
    let mut table = opportunity();
    table.definition = json!({"ManyToOneRelationships": [{"ReferencingAttribute": "partyid",
        "ReferencedEntity": "contact", "ReferencingEntityNavigationPropertyName": "partyid_contact"}]});
    let sets = sets();
    let wire = Wire::new(&table, &sets);
    let party = |person: &str, mask: u32, rest: &str| format!(r#"{{{person},"participationtypemask":{mask}{rest}}}"#);
    let rows = [
        party(&annotated("_partyid_value", OTHER, "contact"), 2, r#","effort":1.0,"ispartydeleted":false"#),
        party(r#""_partyid_value":null"#, 3, r#","addressused":"a@example.org""#),
        party(&annotated("_partyid_value", OTHER, "lead"), 4, r#","addressused":"b@example.org""#),
        party(r#""_partyid_value":null"#, 2, ""),
        party(&annotated("_partyid_value", OTHER, "contact"), 9, ""),
    ];
    let parties = wire.parties(rows.iter().map(String::as_bytes)).unwrap();
    assert_eq!(
        String::from_utf8(parties).unwrap(),
        format!(
            r#"[{{"partyid_contact@odata.bind":"/contacts({OTHER})","participationtypemask":2,"effort":1.0}},{{"participationtypemask":3,"addressused":"a@example.org"}},{{"participationtypemask":4,"addressused":"b@example.org"}}]"#
        )
    );
}

#[test]
fn content_in_a_body_is_base64_of_its_bytes() {
    for (bytes, text) in [(&b""[..], ""), (b"a", "YQ=="), (b"abc", "YWJj"), (b"\xff\xfe\xfd\xfc", "//79/A==")] {
        let mut body = Object::new();
        body.base64("documentbody", bytes);
        assert_eq!(String::from_utf8(body.finish()).unwrap(), format!(r#"{{"documentbody":"{text}"}}"#));
    }
}
