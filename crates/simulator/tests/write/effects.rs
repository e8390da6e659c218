//! What the service does by itself (dataverse 6.4, 6.6, 6.7, 6.10, 6.14, 8).

use dynavault_simulator::Config;
use serde_json::{Value, json};

use crate::client::{Client, id, quiet, start};

async fn find(client: &Client, query: &str) -> Vec<Value> {
    client.get(query).await["value"].as_array().unwrap().clone()
}

#[tokio::test]
async fn dates_and_people_are_stamped() {
    let (simulator, client) = start(quiet()).await;
    let path = format!("accounts({})", id(1));
    client.make(&path, &json!({"name": "A", "overriddencreatedon": "2019-03-01T08:00:00Z"})).await;
    let row = client.get(&path).await;
    assert_eq!(row["createdon"], json!("2019-03-01T08:00:00Z"));
    assert_ne!(row["overriddencreatedon"], row["createdon"]);
    assert_eq!(row["_createdby_value"], json!(simulator.user(0)));
    let late = client.patch(&path, &json!({"overriddencreatedon": "2019-03-01T08:00:00Z"})).await;
    assert_eq!(late.status, 400);
    simulator.take_privilege("prvOverrideCreatedOnCreatedBy");
    let refused = client.post("accounts", &json!({"overriddencreatedon": "2019-03-01T08:00:00Z"})).await;
    assert_eq!(refused.refusal(), (403, "0x80040220".to_owned()));
    // Somebody else creates, by id or by the id of the directory.
    let other = find(&client, "systemusers?$select=azureactivedirectoryobjectid&$filter=isdisabled eq false and accessmode eq 0 and azureactivedirectoryobjectid ne null").await[0].clone();
    let (user, object) =
        (other["systemuserid"].as_str().unwrap(), other["azureactivedirectoryobjectid"].as_str().unwrap());
    for (number, header) in [(2, ("mscrmcallerid", user)), (3, ("callerobjectid", object))] {
        let path = format!("accounts({})", id(number));
        assert_eq!(client.send("PATCH", &path, &[header], &json!({})).await.status, 204);
        let row = client.get(&path).await;
        assert_eq!(row["_createdby_value"], json!(user));
        assert_eq!(row["_createdonbehalfby_value"], json!(simulator.user(0)));
        assert_eq!(row["_ownerid_value"], json!(user));
    }
    simulator.take_privilege_from(user, "prvWriteAccount");
    let narrower = client.send("PATCH", &path, &[("mscrmcallerid", user)], &json!({"name": "B"})).await;
    assert_eq!(narrower.refusal(), (403, "0x80040220".to_owned()), "rights are the intersection");
    simulator.take_privilege("prvActOnBehalfOfAnotherUser");
    let refused = client.send("PATCH", &path, &[("mscrmcallerid", user)], &json!({})).await;
    assert_eq!(refused.refusal(), (403, "0x8004a110".to_owned()));
}

#[tokio::test]
async fn money_follows_its_currency() {
    let (_simulator, client) = start(quiet()).await;
    let dollar = find(&client, "transactioncurrencies?$select=exchangerate&$filter=isocurrencycode eq 'USD'").await[0]
        ["transactioncurrencyid"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = format!("accounts({})", id(1));
    let bind = format!("/transactioncurrencies({dollar})");
    client.make(&path, &json!({"revenue": 20_000, "transactioncurrencyid@odata.bind": bind})).await;
    let text = client.send("GET", &path, &[], &Value::Null).await.body;
    assert!(text.contains("\"revenue\":20000.0000,\"revenue_base\":18460.4024"), "{text}");
    assert!(text.contains("\"exchangerate\":1.0834000000"));
    let cleared = client.patch(&path, &json!({"transactioncurrencyid@odata.bind": null})).await;
    assert_eq!(cleared.refusal(), (400, "0x80048cfb".to_owned()));
    client.make(&format!("accounts({})", id(2)), &json!({"revenue": 5})).await;
    let plain = client.get(&format!("accounts({})", id(2))).await;
    assert_ne!(plain["_transactioncurrencyid_value"], json!(dollar), "the base currency stands in");
}

#[tokio::test]
async fn addresses_come_and_go_with_their_parent() {
    let (_simulator, client) = start(quiet()).await;
    let path = format!("accounts({})", id(1));
    client.make(&path, &json!({"name": "A", "address1_addressid": id(7), "address1_city": "Oslo"})).await;
    let of_account = format!("customeraddresses?$filter=_parentid_value eq {}", id(1));
    let rows = find(&client, &of_account).await;
    assert_eq!(rows.len(), 2);
    let first = client.get(&format!("customeraddresses({})", id(7))).await;
    assert_eq!((&first["city"], &first["addressnumber"]), (&json!("Oslo"), &json!(1)));
    client.make(&path, &json!({"address1_city": "Lyon"})).await;
    assert_eq!(client.get(&format!("customeraddresses({})", id(7))).await["city"], json!("Lyon"));
    client.make(&format!("customeraddresses({})", id(7)), &json!({"city": "Leeds", "name": "Home"})).await;
    assert_eq!(client.get(&path).await["address1_city"], json!("Leeds"));
    let third = client.post("customeraddresses", &json!({"parentid_account@odata.bind": path})).await;
    assert_eq!(client.get(third.header("odata-entityid")).await["addressnumber"], json!(3));
    let taken = client.post("accounts", &json!({"address1_addressid": id(7)})).await;
    assert_eq!(taken.code(), "0x80040237");
    assert_eq!(client.delete(&path).await.status, 204);
    assert!(find(&client, &of_account).await.is_empty());
}

#[tokio::test]
async fn connections_have_two_ends_and_queues_hold_an_object_once() {
    let (_simulator, client) = start(quiet()).await;
    client.make(&format!("accounts({})", id(1)), &json!({"name": "A"})).await;
    client.make(&format!("contacts({})", id(2)), &json!({"lastname": "C"})).await;
    let body = json!({
        "connectionid": id(3),
        "record1id_account@odata.bind": format!("/accounts({})", id(1)),
        "record2id_contact@odata.bind": format!("/contacts({})", id(2)),
    });
    assert_eq!(client.post("connections", &body).await.status, 204);
    let other = find(&client, &format!("connections?$filter=_record1id_value eq {}", id(2))).await;
    assert_eq!((other.len(), &other[0]["ismaster"], &other[0]["_record2id_value"]), (1, &json!(false), &json!(id(1))));
    let mut again = body.clone();
    again["connectionid"] = json!(id(4));
    assert_eq!(client.post("connections", &again).await.code(), "0x80048208");
    client.delete(&format!("connections({})", id(3))).await;
    assert!(find(&client, &format!("connections?$filter=_record1id_value eq {}", id(2))).await.is_empty());
    let queue = find(&client, "queues?$select=queueid&$top=1").await[0]["queueid"].as_str().unwrap().to_owned();
    client.make(&format!("tasks({})", id(5)), &json!({"subject": "T"})).await;
    let item = json!({"queueid@odata.bind": format!("/queues({queue})"), "objectid_task@odata.bind": format!("/tasks({})", id(5))});
    assert_eq!(client.post("queueitems", &item).await.status, 204);
    assert_eq!(client.post("queueitems", &item).await.refusal(), (400, "0x80040526".to_owned()));
}

#[tokio::test]
async fn a_new_owner_reaches_the_children_that_follow() {
    let (_simulator, client) = start(quiet()).await;
    let account = format!("accounts({})", id(1));
    client.make(&account, &json!({"name": "A"})).await;
    let contact = format!("contacts({})", id(2));
    client.make(&contact, &json!({"lastname": "C", "parentcustomerid_account@odata.bind": account})).await;
    let note = format!("annotations({})", id(3));
    client.make(&note, &json!({"subject": "N", "objectid_account@odata.bind": account})).await;
    let team = find(&client, "teams?$select=teamid&$top=1").await[0]["teamid"].as_str().unwrap().to_owned();
    client.make(&account, &json!({"ownerid@odata.bind": format!("/teams({team})")})).await;
    assert_eq!(client.get(&contact).await["_ownerid_value"], json!(team));
    assert_ne!(client.get(&note).await["_ownerid_value"], json!(team));
    let told = client.get("EntityDefinitions(LogicalName='contact')/ManyToOneRelationships?$select=ReferencingAttribute,CascadeConfiguration").await;
    let list = told["value"].as_array().unwrap();
    let cascade = list.iter().find(|entry| entry["ReferencingAttribute"] == json!("parentcustomerid")).unwrap();
    assert_eq!(cascade["CascadeConfiguration"]["Assign"], json!("Cascade"));
}

#[tokio::test]
async fn deleting_takes_children_clears_lookups_and_may_be_refused() {
    let (_simulator, client) = start(quiet()).await;
    let account = format!("accounts({})", id(1));
    client.make(&account, &json!({"name": "A"})).await;
    client
        .make(
            &format!("contacts({})", id(2)),
            &json!({"lastname": "C", "parentcustomerid_account@odata.bind": account}),
        )
        .await;
    client.make(&format!("leads({})", id(3)), &json!({"subject": "L", "parentaccountid@odata.bind": account})).await;
    let version = client.get(&format!("leads({})", id(3))).await["versionnumber"].as_u64().unwrap();
    client.make(&format!("pricelevels({})", id(4)), &json!({"name": "P"})).await;
    let opportunity = json!({"customerid_account@odata.bind": account, "pricelevelid@odata.bind": format!("/pricelevels({})", id(4))});
    client.make(&format!("opportunities({})", id(5)), &opportunity).await;
    let held = client.delete(&format!("pricelevels({})", id(4))).await;
    assert_eq!(held.refusal(), (405, "0x80040227".to_owned()));
    let kept = client.get(&format!("opportunities({})", id(5))).await;
    assert_eq!(kept["_pricelevelid_value"], json!(id(4)), "a refused deletion left nothing behind");
    assert_eq!(client.delete(&account).await.status, 204);
    assert_eq!(client.send("GET", &format!("contacts({})", id(2)), &[], &Value::Null).await.status, 404);
    assert_eq!(client.send("GET", &format!("opportunities({})", id(5)), &[], &Value::Null).await.status, 404);
    let lead = client.get(&format!("leads({})", id(3))).await;
    assert_eq!(lead["_parentaccountid_value"], Value::Null);
    assert!(lead["versionnumber"].as_u64().unwrap() > version);
    assert_eq!(client.delete(&format!("pricelevels({})", id(4))).await.status, 204);
}

#[tokio::test]
async fn activities_bring_their_parties() {
    let (_simulator, client) = start(quiet()).await;
    client.make(&format!("contacts({})", id(1)), &json!({"lastname": "C"})).await;
    let body = json!({"activityid": id(2), "subject": "Hello", "email_activity_parties": [
        {"partyid_contact@odata.bind": format!("/contacts({})", id(1)), "participationtypemask": 2},
        {"addressused": "gone@example.org", "participationtypemask": 3},
    ]});
    assert_eq!(client.post("emails", &body).await.status, 204);
    let parties = format!("activityparties?$filter=_activityid_value eq {}", id(2));
    assert_eq!(find(&client, &parties).await.len(), 2);
    let pointer = client.get(&format!("activitypointers({})", id(2))).await;
    assert_eq!((&pointer["activitytypecode"], &pointer["subject"]), (&json!("email"), &json!("Hello")));
    let set = format!("emails({})/email_activity_parties", id(2));
    let one = json!({"value": [{"addressused": "one@example.org", "participationtypemask": 1}]});
    assert_eq!(client.send("PUT", &set, &[], &one).await.status, 204);
    let left = find(&client, &parties).await;
    assert_eq!((left.len(), &left[0]["addressused"]), (1, &json!("one@example.org")));
    // A party that cannot be leaves the mail as it was, and without the mail nothing at all.
    let nobody = json!({"value": [{"participationtypemask": 1}]});
    assert_eq!(client.send("PUT", &set, &[], &nobody).await.status, 400);
    assert_eq!(find(&client, &parties).await.len(), 1);
    let broken = json!({"activityid": id(3), "email_activity_parties": [{"participationtypemask": 1}]});
    assert_eq!(client.post("emails", &broken).await.status, 400);
    assert_eq!(client.send("GET", &format!("emails({})", id(3)), &[], &Value::Null).await.status, 404);
    client.delete(&format!("emails({})", id(2))).await;
    assert!(find(&client, &parties).await.is_empty());
}

#[tokio::test]
async fn custom_logic_runs_unless_it_is_left_out() {
    let (simulator, client) = start(Config { custom_logic: true, ..quiet() }).await;
    let described = json!({"description": "D"});
    let of = |number: u32| format!("accounts({})", id(number));
    client.make(&of(1), &described).await;
    assert_eq!(client.get(&of(1)).await["description"], json!("D [checked]"));
    for (number, header) in [
        (2, ("mscrm.bypasscustompluginexecution", "true")),
        (3, ("mscrm.bypassbusinesslogicexecution", "CustomSync,CustomAsync")),
    ] {
        assert_eq!(client.send("PATCH", &of(number), &[header], &described).await.status, 204);
        assert_eq!(client.get(&of(number)).await["description"], json!("D"));
    }
    let flows = simulator.stats().flows_started;
    let quietly =
        [("mscrm.suppresscallbackregistrationexpanderjob", "true"), ("mscrm.bypasscustompluginexecution", "true")];
    assert_eq!(client.send("PATCH", &of(4), &quietly, &described).await.status, 204);
    assert_eq!(simulator.stats().flows_started, flows);
    let customer = json!({"customerid_account@odata.bind": of(1)});
    assert_eq!(client.send("PATCH", &format!("opportunities({})", id(5)), &quietly, &customer).await.status, 204);
    client.make(&format!("opportunities({})", id(6)), &customer).await;
    let tasks = |number: u32| format!("tasks?$filter=_regardingobjectid_value eq {}", id(number));
    assert_eq!(find(&client, &tasks(5)).await.len(), 0);
    assert_eq!(find(&client, &tasks(6)).await.len(), 1);
    for (privilege, header) in [
        ("prvBypassCustomPlugins", ("mscrm.bypasscustompluginexecution", "true")),
        ("prvBypassCustomBusinessLogic", ("mscrm.bypassbusinesslogicexecution", "CustomSync")),
    ] {
        simulator.take_privilege(privilege);
        assert_eq!(client.send("PATCH", &of(7), &[header], &described).await.refusal(), (403, "0x80040220".to_owned()));
    }
}
