//! The recycle bin: reading it, restoring from it, what keeps a row from coming back.

use dynavault_simulator::{Config, Simulator};
use serde_json::{Value, json};

use crate::client::{Client, Reply, id, start};

async fn with_bin() -> (Simulator, Client) {
    start(Config { recycle_bin: true, ..Config::default() }).await
}

async fn fetch(client: &Client, set: &str, xml: &str) -> Reply {
    let mut url = reqwest::Url::parse(&client.api(set)).unwrap();
    url.query_pairs_mut().append_pair("fetchXml", xml);
    client.send("GET", url.as_str(), &[], Vec::new()).await
}

async fn in_bin(client: &Client, table: &str, set: &str, key: &str, ids: &[String]) -> Vec<Value> {
    let values = ids.iter().map(|id| format!("<value>{id}</value>")).collect::<Vec<_>>().concat();
    let xml = format!(
        "<fetch datasource='bin'><entity name='{table}'><all-attributes/><filter><condition attribute='{key}' operator='in'>{values}</condition></filter></entity></fetch>"
    );
    let reply = fetch(client, set, &xml).await;
    assert_eq!(reply.status, 200, "{}", String::from_utf8_lossy(&reply.body));
    reply.json()["value"].as_array().unwrap().clone()
}

async fn delete(client: &Client, path: &str) {
    assert_eq!(client.call("DELETE", path, &Value::Null).await.status, 204, "{path}");
}

async fn restore(client: &Client, path: &str) -> Reply {
    client.message("Restore", json!({"Target": {"@odata.id": client.api(path)}})).await
}

#[tokio::test]
async fn the_configuration_says_which_tables_keep_deleted_rows() {
    let (simulator, client) = with_bin().await;
    let path = "recyclebinconfigs?$select=name,isreadyforrecyclebin,cleanupintervalindays,_extensionofrecordid_value&$filter=statecode eq 0";
    let rows = client.get(path).await["value"].as_array().unwrap().clone();
    let days =
        |name: &str| rows.iter().find(|row| row["name"] == json!(name)).map(|row| row["cleanupintervalindays"].clone());
    assert_eq!(days("organization"), Some(json!(30)));
    assert_eq!(days("account"), Some(json!(-1)));
    assert_eq!(days("queue"), None);
    assert_eq!(days("new_telemetry"), None, "elastic tables have no bin");
    let account = rows.iter().find(|row| row["name"] == json!("account")).unwrap();
    let entity = account["_extensionofrecordid_value"].as_str().unwrap();
    assert_eq!(client.get(&format!("entities({entity})")).await["logicalname"], json!("account"));
    drop(simulator);
    let (_simulator, client) = start(Config::default()).await;
    let none = client.send("GET", "recyclebinconfigs", &[], Vec::new()).await;
    assert_eq!(none.status, 404, "off unless asked for");
}

#[tokio::test]
async fn a_deleted_row_comes_back_with_children_and_the_links_it_lost() {
    let (simulator, client) = with_bin().await;
    let (account, contact, lead) = (id(1), id(2), id(3));
    client.create("accounts", &account, json!({"name": "Gone", "revenue": 12.5})).await;
    let parent = format!("/accounts({account})");
    client
        .create("contacts", &contact, json!({"lastname": "Child", "parentcustomerid_account@odata.bind": parent}))
        .await;
    client.create("leads", &lead, json!({"subject": "Stays", "parentaccountid@odata.bind": parent})).await;
    let mut before = client.get(&format!("accounts({account})")).await;
    delete(&client, &format!("accounts({account})")).await;
    assert_eq!(client.get(&format!("leads({lead})")).await["_parentaccountid_value"], Value::Null);
    assert_eq!(in_bin(&client, "account", "accounts", "accountid", &[account.clone(), id(9)]).await.len(), 1);
    assert_eq!(
        in_bin(&client, "contact", "contacts", "contactid", std::slice::from_ref(&contact)).await[0]["lastname"],
        json!("Child")
    );
    assert!(simulator.bin("account").contains(&account));

    let done = restore(&client, &format!("accounts({account})")).await;
    assert_eq!((done.status, &done.json()["id"]), (200, &json!(account)));
    let mut after = client.get(&format!("accounts({account})")).await;
    for row in [&mut before, &mut after] {
        for name in ["@odata.etag", "versionnumber"] {
            row.as_object_mut().unwrap().remove(name);
        }
    }
    assert_eq!(after, before);
    assert_eq!(client.get(&format!("contacts({contact})")).await["_parentcustomerid_value"], json!(account));
    assert_eq!(client.get(&format!("leads({lead})")).await["_parentaccountid_value"], json!(account));
    assert!(simulator.bin("account").is_empty() && simulator.bin("contact").is_empty());
    assert_eq!(restore(&client, &format!("accounts({})", id(9))).await.status, 404);
}

#[tokio::test]
async fn values_can_be_overridden_on_the_way_back() {
    let (_simulator, client) = with_bin().await;
    client.create("accounts", &id(1), json!({"name": "Gone", "telephone1": "1"})).await;
    delete(&client, &format!("accounts({})", id(1))).await;
    let target = json!({"@odata.type": "Microsoft.Dynamics.CRM.account", "accountid": id(1), "name": "Back"});
    assert_eq!(client.message("Restore", json!({"Target": target})).await.status, 200);
    let row = client.get(&format!("accounts({})", id(1))).await;
    assert_eq!((&row["name"], &row["telephone1"]), (&json!("Back"), &json!("1")));
}

#[tokio::test]
async fn a_row_made_again_under_its_old_id_blocks_the_copy_and_is_not_kept_twice() {
    let (simulator, client) = with_bin().await;
    let path = format!("accounts({})", id(1));
    client.create("accounts", &id(1), json!({"name": "First"})).await;
    delete(&client, &path).await;
    client.create("accounts", &id(1), json!({"name": "Second"})).await;
    assert_eq!(restore(&client, &path).await.refusal(), (400, "0x80049939".to_owned()));
    delete(&client, &path).await;
    assert_eq!(simulator.bin("account"), [id(1)]);
    assert_eq!(restore(&client, &path).await.status, 200);
    assert_eq!(client.get(&path).await["name"], json!("First"));
}

#[tokio::test]
async fn a_row_waits_for_those_it_needs() {
    let (simulator, client) = with_bin().await;
    let (account, lead, other) =
        (format!("accounts({})", id(1)), format!("leads({})", id(2)), format!("leads({})", id(3)));
    client.account(&id(1)).await;
    for lead in [2, 3] {
        let body = json!({"subject": "Lead", "parentaccountid@odata.bind": format!("/{account}")});
        client.create("leads", &id(lead), body).await;
    }
    // This one goes while it names the account, and that one after its lookup was cleared.
    delete(&client, &lead).await;
    delete(&client, &account).await;
    delete(&client, &other).await;
    assert_eq!(restore(&client, &lead).await.refusal(), (400, "0x80049959".to_owned()));
    assert_eq!(restore(&client, &account).await.refusal(), (400, "0x80049959".to_owned()));
    assert_eq!(simulator.bin("account"), [id(1)], "a refused restore takes nothing out");
    assert_eq!(restore(&client, &other).await.status, 200);
    assert_eq!(restore(&client, &account).await.status, 200);
    assert_eq!(client.get(&other).await["_parentaccountid_value"], json!(id(1)));
    assert_eq!(restore(&client, &lead).await.status, 200);
}

#[tokio::test]
async fn a_change_set_that_fails_leaves_the_bin_as_it_was() {
    let (simulator, client) = with_bin().await;
    client.account(&id(1)).await;
    client.account(&id(2)).await;
    delete(&client, &format!("accounts({})", id(1))).await;
    let target = json!({"Target": {"@odata.id": format!("accounts({})", id(1))}});
    let failing = ("PATCH", "accounts", "{\"nothing\":1}".to_owned());
    let remove = format!("accounts({})", id(2));
    let done =
        change_set(&client, &[("POST", "Restore", target.to_string()), ("DELETE", &remove, String::new()), failing])
            .await;
    assert!(!done.contains("204") && done.contains("HTTP/1.1 4"), "{done}");
    assert_eq!(simulator.bin("account"), [id(1)]);
    assert_eq!(client.get(&remove).await["accountid"], json!(id(2)));
    let target = ("POST", "Restore", target.to_string());
    let done = change_set(&client, &[target, ("DELETE", &remove, String::new())]).await;
    assert!(done.contains("200 OK") && done.contains("204"), "{done}");
    assert_eq!(simulator.bin("account"), [id(2)]);
}

/// Sends operations as one change set; the text of the answer.
async fn change_set(client: &Client, operations: &[(&str, &str, String)]) -> String {
    let mut lines = vec!["--b".to_owned(), "Content-Type: multipart/mixed; boundary=c".to_owned(), String::new()];
    for (number, (method, path, body)) in operations.iter().enumerate() {
        lines.extend(["--c".to_owned(), "Content-Type: application/http".to_owned()]);
        lines.extend(["Content-Transfer-Encoding: binary".to_owned(), format!("Content-ID: {}", number + 1)]);
        lines.extend([String::new(), format!("{method} /api/data/v9.2/{path} HTTP/1.1")]);
        lines.extend(["Content-Type: application/json".to_owned(), String::new(), body.clone()]);
    }
    lines.extend(["--c--".to_owned(), "--b--".to_owned(), String::new()]);
    let headers = [("content-type", "multipart/mixed; boundary=b")];
    let reply = client.send("POST", "$batch", &headers, lines.join("\r\n").into_bytes()).await;
    String::from_utf8(reply.body).unwrap()
}

#[tokio::test]
async fn an_alternate_key_taken_meanwhile_blocks_the_way_back() {
    let (_simulator, client) = with_bin().await;
    client.create("accounts", &id(1), json!({"name": "Gone", "accountnumber": "A-1"})).await;
    delete(&client, &format!("accounts({})", id(1))).await;
    client.create("accounts", &id(2), json!({"name": "New", "accountnumber": "A-1"})).await;
    let refused = restore(&client, &format!("accounts({})", id(1))).await;
    assert_eq!(refused.refusal(), (400, "0x80049929".to_owned()));
}

#[tokio::test]
async fn only_the_bin_is_read_with_fetchxml_and_only_by_its_key() {
    let (_simulator, client) = with_bin().await;
    let live = fetch(&client, "accounts", "<fetch><entity name='account'><all-attributes/></entity></fetch>").await;
    assert_eq!(live.status, 501);
    let other = fetch(&client, "accounts", "<fetch datasource='bin'><entity name='contact'/></fetch>").await;
    assert_eq!(other.status, 400);
    client.account(&id(1)).await;
    delete(&client, &format!("accounts({})", id(1))).await;
    let top = "<fetch datasource='bin' top='1'><entity name='account'><attribute name='name'/><attribute name='ownerid'/></entity></fetch>";
    let rows = fetch(&client, "accounts", top).await.json()["value"].clone();
    assert_eq!((&rows[0]["name"], &rows[0]["accountid"]), (&json!("Made here"), &json!(id(1))));
    assert!(rows[0]["_ownerid_value"].is_string() && rows[0].get("createdon").is_none());
}
