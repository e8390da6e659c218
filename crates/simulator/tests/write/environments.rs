//! A second environment, an empty one, and one that was emptied (dataverse 1.7, 6.7, 8.5).

use std::collections::BTreeMap;

use dynavault_simulator::{Config, Simulator};
use serde_json::{Value, json};

use crate::client::{quiet, start};

/// Rows by the values of some columns.
fn by(simulator: &Simulator, table: &str, columns: &[&str]) -> BTreeMap<String, String> {
    let rows = simulator.rows(table);
    rows.iter()
        .map(|row| {
            let json: Value = serde_json::from_str(&row.json).unwrap();
            let values: Vec<String> = columns.iter().map(|column| json[*column].to_string()).collect();
            (values.join("|"), row.keys[0].clone())
        })
        .collect()
}

#[tokio::test]
async fn another_environment_has_the_same_people_under_other_ids() {
    let (first, client) = start(quiet()).await;
    let (second, other) = start(Config { environment: 1, empty: true, ..quiet() }).await;
    for (table, columns) in [
        ("systemuser", &["domainname", "internalemailaddress", "azureactivedirectoryobjectid", "isdisabled"][..]),
        ("team", &["name", "teamtype"]),
        ("businessunit", &["name"]),
        ("transactioncurrency", &["isocurrencycode", "exchangerate"]),
    ] {
        let (here, there) = (by(&first, table, columns), by(&second, table, columns));
        assert_eq!(here.keys().collect::<Vec<_>>(), there.keys().collect::<Vec<_>>(), "{table}");
        assert!(here.values().all(|id| !there.values().any(|other| other == id)), "{table}");
    }
    let (here, there) = (client.get("WhoAmI").await, other.get("WhoAmI").await);
    for property in ["OrganizationId", "UserId", "BusinessUnitId"] {
        assert_ne!(here[property], there[property], "{property}");
    }
    assert_eq!(there["UserId"], json!(second.user(0)));
    let units = other.get(&format!("businessunits({})", there["BusinessUnitId"].as_str().unwrap())).await;
    assert_eq!(units["_parentbusinessunitid_value"], Value::Null);
    let filled: Vec<String> =
        second.tables().into_iter().filter(|table| table.rows > 0).map(|table| table.logical_name).collect();
    assert_eq!(filled, ["organization", "businessunit", "systemuser", "team", "transactioncurrency"]);
}

#[tokio::test]
async fn a_wiped_environment_keeps_its_people_and_tells_the_delta() {
    let (simulator, client) = start(quiet()).await;
    let tracked = client.send("GET", "accounts?$select=name", &[("prefer", "odata.track-changes")], &Value::Null).await;
    let link = tracked.json()["@odata.deltaLink"].as_str().unwrap().to_owned();
    let accounts = simulator.rows("account").len();
    let users = simulator.rows("systemuser").len();
    assert!(simulator.wipe() > accounts);
    assert_eq!((simulator.rows("account").len(), simulator.rows("activitypointer").len()), (0, 0));
    assert_eq!(simulator.rows("systemuser").len(), users);
    let gone = client.get(&link).await["value"].as_array().unwrap().len();
    assert_eq!(gone, accounts);
    assert_eq!(client.post("accounts", &json!({"name": "A"})).await.status, 204);
}
