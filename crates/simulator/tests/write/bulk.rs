//! Many rows in one message (dataverse 6.12).

use serde_json::{Value, json};

use crate::client::{Client, id, quiet, start};

fn targets(type_name: &str, rows: impl IntoIterator<Item = Value>) -> Value {
    let typed = rows.into_iter().map(|mut row| {
        row["@odata.type"] = json!(format!("Microsoft.Dynamics.CRM.{type_name}"));
        row
    });
    json!({"Targets": typed.collect::<Vec<_>>()})
}

async fn message(client: &Client, set: &str, name: &str, body: &Value) -> crate::client::Reply {
    client.post(&format!("{set}/Microsoft.Dynamics.CRM.{name}"), body).await
}

async fn name_of(client: &Client, number: u32) -> Value {
    client.get(&format!("accounts({})", id(number))).await["name"].clone()
}

#[tokio::test]
async fn availability_is_told_and_kept() {
    let (_simulator, client) = start(quiet()).await;
    let filters = async |message: &str, table: &str| {
        let query = format!(
            "sdkmessagefilters?$select=sdkmessagefilterid&$filter=sdkmessageid/name eq '{message}' and primaryobjecttypecode eq '{table}'"
        );
        client.get(&query).await["value"].as_array().unwrap().len()
    };
    assert_eq!(filters("CreateMultiple", "account").await, 1);
    assert_eq!(filters("CreateMultiple", "customeraddress").await, 0);
    assert_eq!(filters("UpsertMultiple", "account").await, 0, "never listed");
    assert_eq!(filters("DeleteMultiple", "account").await, 0);
    assert_eq!(filters("DeleteMultiple", "new_telemetry").await, 1);
    let refused = message(&client, "tasks", "CreateMultiple", &targets("task", [json!({"subject": "x"})])).await;
    assert_eq!(refused.code(), "0x80040800");
    assert_eq!(message(&client, "accounts", "DeleteMultiple", &targets("account", [])).await.code(), "0x80040800");
}

#[tokio::test]
async fn a_standard_table_takes_all_or_nothing() {
    let (simulator, client) = start(quiet()).await;
    let rows = |range: std::ops::Range<u32>| {
        range.map(|number| json!({"accountid": id(number), "name": format!("n{number}")}))
    };
    let reply = message(&client, "accounts", "CreateMultiple", &targets("account", rows(1..4))).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(reply.json()["Ids"], json!([id(1), id(2), id(3)]));
    let before = simulator.rows("account").len();
    // One bad row: none is written, and the error names no index.
    let mut bad: Vec<Value> = rows(4..9).collect();
    bad[3]["name"] = json!("x".repeat(200));
    let reply = message(&client, "accounts", "CreateMultiple", &targets("account", bad)).await;
    assert_eq!(reply.refusal(), (400, "0x80044331".to_owned()));
    assert!(!reply.body.contains("RequestIndex"));
    assert_eq!(simulator.rows("account").len(), before);
    assert_eq!(simulator.rows("customeraddress").iter().filter(|row| row.json.contains(&id(4))).count(), 0);
    let changes = [json!({"accountid": id(1), "name": "first"}), json!({"accountid": id(1), "name": "second"})];
    assert_eq!(message(&client, "accounts", "UpdateMultiple", &targets("account", changes)).await.status, 204);
    assert_eq!(name_of(&client, 1).await, json!("first"), "the second copy is left out without a word");
    let missing =
        targets("account", [json!({"accountid": id(2), "name": "x"}), json!({"accountid": id(99), "name": "x"})]);
    assert_eq!(
        message(&client, "accounts", "UpdateMultiple", &missing).await.refusal(),
        (404, "0x80040217".to_owned())
    );
    assert_eq!(name_of(&client, 2).await, json!("n2"));
    let stats = simulator.stats();
    assert_eq!((stats.rows_written["account"].created, stats.rows_written["account"].updated), (3, 1));
    let untyped = json!({"Targets": [{"name": "x"}]});
    assert_eq!(message(&client, "accounts", "CreateMultiple", &untyped).await.code(), "0x80048d19");
    let many = targets("account", (0..1_001).map(|_| json!({"name": "x"})));
    assert_eq!(message(&client, "accounts", "CreateMultiple", &many).await.status, 400);
}

#[tokio::test]
async fn upserts_find_rows_by_key_and_by_alternate_key() {
    let (_simulator, client) = start(quiet()).await;
    client.make(&format!("accounts({})", id(1)), &json!({"name": "A", "accountnumber": "K1"})).await;
    let body = targets(
        "account",
        [
            json!({"@odata.id": "accounts(accountnumber='K1')", "name": "B"}),
            json!({"@odata.id": "accounts(accountnumber='K2')", "name": "C"}),
            json!({"accountid": id(3), "name": "D"}),
        ],
    );
    let reply = message(&client, "accounts", "UpsertMultiple", &body).await;
    assert_eq!((reply.status, reply.body.as_str()), (204, ""));
    assert_eq!(name_of(&client, 1).await, json!("B"));
    assert_eq!(name_of(&client, 3).await, json!("D"));
    let made = client.get("accounts(accountnumber='K2')").await;
    assert_eq!(made["name"], json!("C"));
    let repeated = targets("account", [json!({"@odata.id": "accounts(accountnumber='K9')", "accountnumber": "K9"})]);
    assert_eq!(message(&client, "accounts", "UpsertMultiple", &repeated).await.status, 400);
    let twice = targets("account", [json!({"accountid": id(1)}), json!({"accountid": id(1)})]);
    assert_eq!(message(&client, "accounts", "UpsertMultiple", &twice).await.status, 400);
}

#[tokio::test]
async fn an_elastic_table_takes_what_it_can() {
    let (simulator, client) = start(quiet()).await;
    let row = |number: u32| json!({"new_telemetryid": id(number), "partitionid": "p", "new_name": "n"});
    let all = message(&client, "new_telemetries", "CreateMultiple", &targets("new_telemetry", [row(1), row(2)])).await;
    assert_eq!(all.status, 200, "{}", all.body);
    let mixed = targets("new_telemetry", [row(3), row(1), row(4)]);
    let prefer = [("prefer", "odata.include-annotations=\"*\"")];
    let reply = client.send("POST", "new_telemetries/Microsoft.Dynamics.CRM.CreateMultiple", &prefer, &mixed).await;
    assert_eq!(reply.refusal(), (409, "409".to_owned()));
    let details = reply.json()["error"]["@Microsoft.PowerApps.CDS.ErrorDetails.Plugin.BulkApiErrorDetails"]
        .as_str()
        .unwrap()
        .to_owned();
    let details: Value = serde_json::from_str(&details).unwrap();
    assert_eq!(details, json!([{"RequestIndex": 1, "Id": id(1), "StatusCode": 409}]));
    assert_eq!(simulator.stats().rows_written["new_telemetry"].created, 4, "the others were written");
    let gone = targets(
        "new_telemetry",
        [json!({"new_telemetryid": id(1), "partitionid": "p"}), json!({"new_telemetryid": id(2), "partitionid": "p"})],
    );
    assert_eq!(message(&client, "new_telemetries", "DeleteMultiple", &gone).await.status, 204);
    assert_eq!(simulator.stats().rows_written["new_telemetry"].deleted, 2);
}
