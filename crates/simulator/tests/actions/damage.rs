//! Damage on purpose, as a person would do it.

use dynavault_simulator::Config;
use serde_json::Value;

use crate::client::{id, start};

fn parse(json: &str) -> Value {
    serde_json::from_str(json).unwrap()
}

#[tokio::test]
async fn blanking_takes_values_from_a_share_of_the_rows() {
    let (simulator, _client) = start(Config::default()).await;
    let before: Vec<Value> = simulator.rows("account").iter().map(|row| parse(&row.json)).collect();
    let columns = ["telephone1", "primarycontactid"];
    let done = simulator.blank("account", &columns, 0.5, 7);
    assert!(!done.rows.is_empty() && done.rows.len() < before.len(), "{} rows", done.rows.len());
    let mut lost = 0;
    for (before, after) in before.iter().zip(simulator.rows("account")) {
        let after = parse(&after.json);
        let changed = before["versionnumber"] != after["versionnumber"];
        assert_eq!(changed, done.rows.iter().any(|id| after["accountid"] == id.as_str()));
        for name in ["telephone1", "_primarycontactid_value"] {
            lost += u64::from(!before[name].is_null() && after[name].is_null());
            if changed {
                assert!(after[name].is_null());
            }
        }
        assert_eq!(changed, before["modifiedon"] != after["modifiedon"]);
    }
    assert_eq!(lost, done.values);
    assert_eq!(simulator.blank("account", &columns, 0.0, 7).rows.len(), 0);
    assert_eq!(simulator.blank("nothing", &columns, 1.0, 7).rows.len(), 0);
}

#[tokio::test]
async fn closed_rows_keep_their_values() {
    let (simulator, _client) = start(Config::default()).await;
    let done = simulator.blank("opportunity", &["description", "estimatedvalue"], 1.0, 1);
    let closed = simulator.rows("opportunity").iter().filter(|row| parse(&row.json)["statecode"] != 0).count();
    assert!(closed > 0 && done.refused > 0 && !done.rows.is_empty());
    assert!(done.refused <= closed as u64);
}

#[tokio::test]
async fn deleted_rows_take_their_children_along_and_fill_the_bin() {
    let (simulator, _client) = start(Config { recycle_bin: true, ..Config::default() }).await;
    let accounts = simulator.rows("account");
    let ids: Vec<&str> = accounts[..5].iter().map(|row| row.keys[0].as_str()).collect();
    let done = simulator.delete_rows("account", &ids);
    assert_eq!(done.tables["account"].deleted, 5);
    assert!(done.tables["customeraddress"].deleted >= 10, "addresses go with their account");
    assert_eq!(simulator.bin("account").len(), 5);
    assert_eq!(simulator.rows("account").len(), accounts.len() - 5);
    assert!(simulator.delete_rows("account", &ids).tables.is_empty());
}

#[tokio::test]
async fn one_value_of_one_row_is_edited() {
    let (simulator, client) = start(Config::default()).await;
    client.account(&id(1)).await;
    let done = simulator.edit_row("account", &id(1), "revenue", "20000.5").unwrap();
    assert!(parse(&done.before)["revenue"].is_null());
    assert!(done.after.contains("\"revenue\":20000.5000"), "{}", done.after);
    let contact = simulator.rows("contact")[0].keys[0].clone();
    let done = simulator.edit_row("account", &id(1), "primarycontactid", &format!("\"contacts({contact})\"")).unwrap();
    assert_eq!(parse(&done.after)["_primarycontactid_value"], contact.as_str());
    let done = simulator.edit_row("account", &id(1), "primarycontactid", "null").unwrap();
    assert!(parse(&done.after)["_primarycontactid_value"].is_null());
    let refused = simulator.edit_row("account", &id(1), "name", &format!("\"{}\"", "x".repeat(161))).unwrap_err();
    assert!(refused.starts_with("0x80044331"), "{refused}");
    assert!(simulator.edit_row("account", &id(9), "name", "\"x\"").is_err());
}
