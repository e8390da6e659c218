//! Create, update, upsert, delete and the headers that tell them apart (dataverse 6.1, 6.8, 6.13, 8.12).

use serde_json::json;

use crate::client::{id, quiet, start};

#[tokio::test]
async fn a_row_is_created_with_the_servers_id_or_with_ours() {
    let (_simulator, client) = start(quiet()).await;
    let reply = client.post("accounts", &json!({"name": "One"})).await;
    assert_eq!((reply.status, reply.body.as_str()), (204, ""));
    let url = reply.header("odata-entityid").to_owned();
    assert_eq!(client.get(&url).await["name"], json!("One"));
    let reply = client
        .send(
            "POST",
            "accounts?$select=name",
            &[("prefer", "return=representation")],
            &json!({"accountid": id(1), "name": "Two"}),
        )
        .await;
    assert_eq!((reply.status, reply.json()["name"].as_str()), (201, Some("Two")));
    assert!(reply.header("odata-entityid").is_empty());
    assert_eq!(reply.header("preference-applied"), "return=representation");
    assert_eq!(client.get(&format!("accounts({})", id(1))).await["name"], json!("Two"));
    let again = client.post("accounts", &json!({"accountid": id(1)})).await;
    assert_eq!(again.refusal(), (412, "0x80040237".to_owned()));
}

#[tokio::test]
async fn conditions_decide_between_create_and_update() {
    let (_simulator, client) = start(quiet()).await;
    let path = format!("accounts({})", id(1));
    let name = |text: &str| json!({"name": text});
    let missing = client.send("PATCH", &path, &[("if-match", "*")], &name("A")).await;
    assert_eq!(missing.refusal(), (404, "0x80040217".to_owned()));
    assert_eq!(client.send("PATCH", &path, &[("if-none-match", "*")], &name("A")).await.status, 204);
    let exists = client.send("PATCH", &path, &[("if-none-match", "*")], &name("B")).await;
    assert_eq!(exists.refusal(), (412, "0x80040237".to_owned()));
    let both = client.send("PATCH", &path, &[("if-none-match", "null"), ("if-none-match", "*")], &name("B")).await;
    assert_eq!(both.status, 400);
    assert_eq!(
        client.send("PATCH", &path, &[("if-match", "*"), ("if-none-match", "null")], &name("B")).await.status,
        204
    );
    let shown = [("prefer", "return=representation")];
    assert_eq!(client.send("PATCH", &path, &shown, &name("C")).await.status, 200);
    assert_eq!(client.send("PATCH", &format!("accounts({})", id(2)), &shown, &name("D")).await.status, 201);
    // An etag holds until the row changes.
    let etag = client.get(&path).await["@odata.etag"].as_str().unwrap().to_owned();
    assert_eq!(client.send("PATCH", &path, &[("if-match", &etag)], &name("E")).await.status, 204);
    let stale = client.send("PATCH", &path, &[("if-match", &etag)], &name("F")).await;
    assert_eq!(stale.refusal(), (412, "0x80060882".to_owned()));
    assert_eq!(client.send("DELETE", &path, &[("if-match", &etag)], &json!(null)).await.code(), "0x80060882");
    assert_eq!(client.delete(&path).await.status, 204);
    assert_eq!(client.delete(&path).await.refusal(), (404, "0x80040217".to_owned()));
}

#[tokio::test]
async fn etags_need_a_table_that_has_them() {
    let (simulator, client) = start(quiet()).await;
    let path = format!("subjects({})", id(1));
    client.make(&path, &json!({"title": "A"})).await;
    simulator.set_concurrency("subject", false);
    let etag = client.get(&path).await["@odata.etag"].as_str().unwrap().to_owned();
    let reply = client.send("PATCH", &path, &[("if-match", &etag)], &json!({"title": "B"})).await;
    assert_eq!(reply.refusal(), (400, "0x8006088d".to_owned()));
    assert_eq!(client.send("PATCH", &path, &[("if-match", "*")], &json!({"title": "B"})).await.status, 204);
    let told = client.get("EntityDefinitions(LogicalName='subject')?$select=IsOptimisticConcurrencyEnabled").await;
    assert_eq!(told["IsOptimisticConcurrencyEnabled"], json!(false));
}

#[tokio::test]
async fn single_properties_are_set_and_cleared() {
    let (_simulator, client) = start(quiet()).await;
    let path = format!("accounts({})", id(1));
    client.make(&path, &json!({"name": "A"})).await;
    assert_eq!(client.send("PUT", &format!("{path}/name"), &[], &json!({"value": "B"})).await.status, 204);
    assert_eq!(client.get(&path).await["name"], json!("B"));
    assert_eq!(client.delete(&format!("{path}/name")).await.status, 204);
    assert_eq!(client.get(&path).await["name"], json!(null));
    assert_eq!(client.send("PUT", &format!("{path}/nonsense"), &[], &json!({"value": 1})).await.status, 404);
}

#[tokio::test]
async fn alternate_keys_address_rows() {
    let (_simulator, client) = start(quiet()).await;
    let path = "accounts(accountnumber='X''1 (new)')";
    assert_eq!(
        client.send("PATCH", path, &[("if-match", "*")], &json!({"name": "A"})).await.refusal(),
        (404, "0x80060891".to_owned())
    );
    assert_eq!(client.patch(path, &json!({"name": "A"})).await.status, 204);
    assert_eq!(client.patch(path, &json!({"name": "B"})).await.status, 204);
    let rows = client.get("accounts?$filter=accountnumber eq 'x''1 (NEW)'&$select=name").await;
    assert_eq!(rows["value"].as_array().unwrap().len(), 1);
    assert_eq!(rows["value"][0]["name"], json!("B"));
    let taken = client.post("accounts", &json!({"accountnumber": "X'1 (new)"})).await;
    assert_eq!(taken.refusal(), (412, "0x80060892".to_owned()));
    assert_eq!(client.patch("accounts(name='x')", &json!({})).await.code(), "0x80060890");
    let bound = client
        .post("contacts", &json!({"lastname": "L", "parentcustomerid_account@odata.bind": format!("/{path}")}))
        .await;
    assert_eq!(bound.status, 204, "{}", bound.body);
}

#[tokio::test]
async fn elastic_rows_live_in_partitions_and_upserts_replace_them() {
    let (_simulator, client) = start(quiet()).await;
    let key = format!("new_telemetries(new_telemetryid={},partitionid='p 1')", id(1));
    let full = json!({"new_name": "A", "new_reading": 1.5});
    let made = client.patch(&key, &full).await;
    assert_eq!(made.status, 204, "{}", made.body);
    assert!(!made.header("x-ms-session-token").is_empty());
    assert_eq!(client.send("GET", &format!("new_telemetries({})", id(1)), &[], &json!(null)).await.status, 404);
    let by_parameter = client.get(&format!("new_telemetries({})?partitionId=p 1", id(1))).await;
    assert_eq!(by_parameter["new_reading"], json!(1.5));
    assert_eq!(client.patch(&format!("new_telemetries({})?partitionId=p 1", id(1)), &full).await.status, 400);
    assert_eq!(client.patch(&key, &json!({"new_name": "B"})).await.status, 204);
    assert_eq!(client.get(&key).await["new_reading"], json!(null), "an upsert replaces the row");
    client.make(&key, &full).await;
    assert_eq!(client.send("PATCH", &key, &[("if-match", "*")], &json!({"new_name": "C"})).await.status, 204);
    assert_eq!(client.get(&key).await["new_reading"], json!(1.5), "an update does not");
    let second = client.post("new_telemetries", &json!({"new_telemetryid": id(1), "partitionid": "other"})).await;
    assert_eq!(second.status, 204, "the same id in another partition is another row");
    let again = client.post("new_telemetries", &json!({"new_telemetryid": id(1), "partitionid": "other"})).await;
    assert_eq!(again.refusal(), (409, "409".to_owned()));
    assert_eq!(client.post("new_telemetries", &json!({"partitionid": "a/b"})).await.status, 400);
    assert_eq!(client.delete(&format!("new_telemetries({})", id(1))).await.status, 404);
    assert_eq!(client.delete(&format!("new_telemetries({})?partitionId=p 1", id(1))).await.status, 204);
}
