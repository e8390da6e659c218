//! Many requests in one (dataverse 6.11).

use serde_json::{Value, json};

use crate::client::{change_set, id, part, quiet, start, statuses};

const V: &str = "/api/data/v9.2";

fn post(set: &str, body: &Value) -> String {
    part(&format!("POST {V}/{set}"), "", body)
}

#[tokio::test]
async fn parts_run_in_order_and_answer_one_by_one() {
    let (simulator, client) = start(quiet()).await;
    let parts = [
        part(&format!("PATCH {V}/accounts({})", id(1)), "If-None-Match: *\r\n", &json!({"name": "A"})),
        part(&format!("GET {V}/accounts({})?$select=name", id(1)), "", &Value::Null),
        part(
            &format!("PATCH {}{V}/accounts({})", client.url, id(1)),
            "Prefer: return=representation\r\n",
            &json!({"name": "B"}),
        ),
        part(&format!("DELETE {V}/accounts({})", id(1)), "", &Value::Null),
    ];
    let reply = client.batch(&[], &parts).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert!(reply.header("content-type").starts_with("multipart/mixed; boundary=batchresponse_"));
    assert_eq!(statuses(&reply), [204, 200, 200, 204]);
    assert!(reply.body.contains("\"name\":\"A\"") && reply.body.contains("OData-EntityId: http"));
    assert!(reply.body.ends_with("--\r\n") && !reply.body.replace("\r\n", "").contains('\n'));
    let stats = simulator.stats();
    assert_eq!(stats.by_kind["batch"], 1);
    assert_eq!((stats.operations["create"], stats.operations["upsert"], stats.operations["delete"]), (1, 1, 1));
}

#[tokio::test]
async fn the_first_failure_ends_a_batch_unless_it_goes_on() {
    let (_simulator, client) = start(quiet()).await;
    let parts: Vec<String> = (1..=5)
        .map(|number| {
            let body = if number == 3 { json!({"nonsense": 1}) } else { json!({"accountid": id(number), "name": "A"}) };
            post("accounts", &body)
        })
        .collect();
    let reply = client.batch(&[], &parts).await;
    assert_eq!((reply.status, statuses(&reply)), (400, vec![204, 204, 400]));
    assert!(reply.body.contains("REQ_ID") && reply.body.contains("0x80048d19"));
    let parts: Vec<String> = parts.iter().map(|part| part.replace("00000", "10000")).collect();
    let reply = client.batch(&[("prefer", "odata.continue-on-error")], &parts).await;
    assert_eq!((reply.status, statuses(&reply)), (200, vec![204, 204, 400, 204, 204]));
    let missing = client.send("GET", &format!("accounts({})", id(4)), &[], &Value::Null).await;
    assert_eq!(missing.status, 404, "what came after the failure was not done");
}

#[tokio::test]
async fn a_change_set_is_one_transaction_with_references() {
    let (simulator, client) = start(quiet()).await;
    let requests = [
        (format!("POST {V}/contacts"), json!({"contactid": id(1), "lastname": "B"})),
        (format!("PATCH {V}/accounts({})", id(2)), json!({"name": "A", "primarycontactid@odata.bind": "$1"})),
        ("PATCH $1".to_owned(), json!({"jobtitle": "J", "parentcustomerid_account@odata.bind": "$2"})),
    ];
    let borrowed: Vec<(&str, Value)> = requests.iter().map(|(line, body)| (line.as_str(), body.clone())).collect();
    let reply = client.batch(&[], &[change_set(&borrowed)]).await;
    assert_eq!((reply.status, statuses(&reply)), (200, vec![204, 204, 204]), "{}", reply.body);
    assert!(reply.body.contains("boundary=changesetresponse_") && reply.body.contains("Content-ID: 3"));
    let contact = client.get(&format!("contacts({})", id(1))).await;
    assert_eq!((&contact["jobtitle"], &contact["_parentcustomerid_value"]), (&json!("J"), &json!(id(2))));
    // Everything of a failed set is undone, whatever it was.
    let (rows, deltas) = (simulator.rows("account"), simulator.rows("customeraddress"));
    let account = format!("DELETE {V}/accounts({})", id(2));
    let contact = format!("PATCH {V}/accounts({})", id(3));
    let broken = [
        (account.as_str(), Value::Null),
        (contact.as_str(), json!({"name": "C"})),
        ("PATCH $2", json!({"nonsense": 1})),
    ];
    let after = post("accounts", &json!({"accountid": id(4)}));
    let reply = client.batch(&[("prefer", "odata.continue-on-error")], &[change_set(&broken), after]).await;
    assert_eq!((reply.status, statuses(&reply)), (200, vec![400, 204]), "one part stands for the set: {}", reply.body);
    assert_eq!(simulator.rows("account").len(), rows.len() + 1);
    assert_eq!(simulator.rows("customeraddress").len(), deltas.len() + 2);
    let unknown = [("PATCH $7", json!({}))];
    let reply = client.batch(&[], &[change_set(&unknown)]).await;
    assert_eq!(
        (reply.status, reply.body.as_str()),
        (400, "Content-ID Reference: '$7' does not exist in the batch context.")
    );
    let reading = format!("GET {V}/accounts");
    let reply = client.batch(&[], &[change_set(&[(reading.as_str(), Value::Null)])]).await;
    assert_eq!(reply.status, 400);
}

#[tokio::test]
async fn the_text_of_a_batch_is_strict_and_bounded() {
    let (_simulator, client) = start(quiet()).await;
    let typed = [("content-type", "multipart/mixed; boundary=b")];
    let whole = format!("--b\r\n{}\r\n--b--\r\n", post("accounts", &json!({"name": "A"})));
    assert_eq!(client.try_send("POST", "$batch", &typed, &whole).await.unwrap().status, 200);
    for broken in [whole.replace("\r\n", "\n"), whole.trim_end().to_owned(), whole.replace("--b--\r\n", "")] {
        let reply = client.try_send("POST", "$batch", &typed, &broken).await.unwrap();
        assert_eq!(reply.refusal(), (400, "0x80048d19".to_owned()));
        assert!(reply.body.contains("Stream was not readable"));
    }
    let part_of =
        |count: usize| (0..count).map(|_| part(&format!("GET {V}/WhoAmI"), "", &Value::Null)).collect::<Vec<_>>();
    assert_eq!(client.batch(&[], &part_of(1_001)).await.status, 400);
    assert_eq!(statuses(&client.batch(&[], &part_of(1_000)).await).len(), 1_000);
    let nested = client.batch(&[], &[part(&format!("POST {V}/$batch"), "", &Value::Null)]).await;
    assert_eq!(nested.status, 400);
}

#[tokio::test]
async fn headers_of_the_batch_do_not_reach_its_parts() {
    let (simulator, client) = start(dynavault_simulator::Config { custom_logic: true, ..quiet() }).await;
    let bypass = "MSCRM.BypassCustomPluginExecution: true\r\n";
    let body = |number: u32| json!({"accountid": id(number), "description": "D"});
    let parts = [post("accounts", &body(1)), part(&format!("POST {V}/accounts"), bypass, &body(2))];
    let reply = client.batch(&[("MSCRM.BypassCustomPluginExecution", "true")], &parts).await;
    assert_eq!(reply.status, 200);
    assert_eq!(client.get(&format!("accounts({})", id(1))).await["description"], json!("D [checked]"));
    assert_eq!(client.get(&format!("accounts({})", id(2))).await["description"], json!("D"));
    simulator.take_privilege("prvBypassCustomPlugins");
    let reply = client.batch(&[], &[part(&format!("POST {V}/accounts"), bypass, &body(3))]).await;
    assert_eq!((reply.status, statuses(&reply)), (403, vec![403]));
}

#[tokio::test]
async fn elastic_rows_of_a_failed_change_set_stay() {
    let (_simulator, client) = start(quiet()).await;
    let line = format!("POST {V}/new_telemetries");
    let requests =
        [(line.as_str(), json!({"new_telemetryid": id(1), "new_name": "A"})), (line.as_str(), json!({"nonsense": 1}))];
    assert_eq!(client.batch(&[], &[change_set(&requests)]).await.status, 400);
    assert_eq!(client.get(&format!("new_telemetries({})", id(1))).await["new_name"], json!("A"));
}
