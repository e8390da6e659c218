//! What the service does not take, with its codes (dataverse 6.5, 6.6, 6.7, 6.16).

use serde_json::{Value, json};

use crate::client::{id, quiet, start};

#[tokio::test]
async fn bodies_are_checked() {
    let (_simulator, client) = start(quiet()).await;
    client.make(&format!("accounts({})", id(1)), &json!({"name": "A"})).await;
    let account = format!("/accounts({})", id(1));
    let long = "x".repeat(161);
    for (set, body, code) in [
        ("accounts", json!({"nonsense": 1}), "0x80048d19"),
        ("accounts", json!({"Name": "a"}), "0x80048d19"),
        ("accounts", json!({"_primarycontactid_value": id(1)}), "0x80048d19"),
        ("accounts", json!({"PrimaryContactId@odata.bind": format!("/contacts({})", id(1))}), "0x80048d19"),
        ("accounts", json!({"primarycontactid@odata.bind": format!("/contacts({})", id(9))}), "0x80040217"),
        ("accounts", json!({"primarycontactid@odata.bind": account}), "0x80048d19"),
        ("accounts", json!({"primarycontactid@odata.bind": format!("/contact({})", id(1))}), "0x8006088a"),
        ("contacts", json!({"parentcustomerid@odata.bind": account}), "0x80048d19"),
        ("contacts", json!({"parentcustomerid_contact@odata.bind": account}), "0x80048d19"),
        ("accounts", json!({"createdon": "2020-01-01T00:00:00Z"}), "0x80040203"),
        ("accounts", json!({"versionnumber": 5}), "0x80040203"),
        ("accounts", json!({"revenue_base": 5}), "0x80040203"),
        ("accounts", json!({"createdby@odata.bind": "/systemusers(x)"}), "0x80040203"),
        ("accounts", json!({"openrevenue": 5}), "0x80044911"),
        ("accounts", json!({"name": long}), "0x80044331"),
        ("accounts", json!({"industrycode": 99}), "0x8004431a"),
        ("accounts", json!({"new_segments": "1,99"}), "0x8004431a"),
        ("accounts", json!({"numberofemployees": 3_000_000_000_u64}), "0x8004432f"),
        ("accounts", json!({"new_rating": 200_000_000_000_u64}), "0x80044330"),
        ("accounts", json!({"revenue": 922_337_203_685_478_u64}), "0x80040317"),
        ("accounts", json!({"creditonhold": 3}), "0x8004431c"),
        ("accounts", json!({"new_founded": "2020-02-30"}), "0x80048d19"),
        ("accounts", json!({"new_contract": id(1)}), "0x80040203"),
        ("accounts", json!({"ownerid@odata.bind": null}), "0x80040215"),
        ("accounts", json!({"statuscode": 2}), "0x80048408"),
        ("opportunities", json!({"name": "no customer"}), "0x80040505"),
        ("incidents", json!({"title": "no customer"}), "0x80040200"),
        ("customeraddresses", json!({"name": "no parent"}), "0x80040200"),
        ("activitypointers", json!({"subject": "x"}), "0x80040800"),
        ("activityparties", json!({"addressused": "a@example.org"}), "0x80040800"),
        ("accountleadscollection", json!({}), "0x8004830f"),
        ("systemusers", json!({"firstname": "x"}), "0x80040800"),
        ("new_externals", json!({"new_name": "x"}), "0x80044822"),
        ("transactioncurrencies", json!({"isocurrencycode": "EUR", "currencyname": "Euro"}), "0x80048cf3"),
    ] {
        let reply = client.post(set, &body).await;
        assert!(reply.status >= 400, "{set} {body}");
        assert_eq!(reply.code(), code, "{set} {body}: {}", reply.body);
    }
    let twice = client.try_send("POST", "accounts", &[], r#"{"name":"a","name":"b"}"#).await.unwrap();
    assert_eq!(twice.code(), "0x80048d19");
    // A state at creation is left out without a word.
    let reply = client.send("POST", "accounts", &[("prefer", "return=representation")], &json!({"statecode": 1})).await;
    assert_eq!((reply.status, &reply.json()["statecode"]), (201, &json!(0)));
}

#[tokio::test]
async fn hierarchies_have_no_loops() {
    let (_simulator, client) = start(quiet()).await;
    for (set, navigation, code) in [
        ("accounts", "parentaccountid", "0x80040507"),
        ("new_widgetses", "new_Parent", "0x80040387"),
        ("subjects", "parentsubject", "0x80040387"),
    ] {
        let path = |number: u32| format!("{set}({})", id(number));
        client.make(&path(1), &json!({})).await;
        client.make(&path(2), &json!({format!("{navigation}@odata.bind"): path(1)})).await;
        let closed = client.patch(&path(1), &json!({format!("{navigation}@odata.bind"): path(2)})).await;
        assert_eq!(closed.refusal(), (400, code.to_owned()), "{}", closed.body);
        client.make(&path(2), &json!({format!("{navigation}@odata.bind"): null})).await;
        client.make(&path(1), &json!({format!("{navigation}@odata.bind"): path(2)})).await;
    }
}

#[tokio::test]
async fn states_follow_their_graph_and_closed_rows_refuse_changes() {
    let (_simulator, client) = start(quiet()).await;
    client.make(&format!("accounts({})", id(1)), &json!({"name": "A"})).await;
    let customer = json!({"customerid_account@odata.bind": format!("/accounts({})", id(1))});
    for (set, state, code) in [
        ("opportunities", 1, "0x80040203"),
        ("opportunities", 2, "0x80040203"),
        ("incidents", 1, "0x80040203"),
        ("quotes", 2, "0x80040203"),
        ("salesorders", 3, "0x80040203"),
    ] {
        let path = format!("{set}({})", id(2));
        client.patch(&path, &customer).await;
        assert_eq!(client.patch(&path, &json!({"statecode": state})).await.code(), code, "{set}");
    }
    // Without a message: a case is cancelled, an order invoiced, a quote activated.
    for (set, state, status) in [("incidents", 2, 6), ("salesorders", 4, 100_003), ("quotes", 1, 2)] {
        let path = format!("{set}({})", id(2));
        client.make(&path, &json!({"statecode": state, "statuscode": status})).await;
        assert_eq!(client.get(&path).await["statuscode"], json!(status), "{set}");
    }
    let case = format!("incidents({})", id(2));
    assert_eq!(client.patch(&case, &json!({"title": "late"})).await.refusal(), (400, "0x80040230".to_owned()));
    assert_eq!(client.patch(&case, &json!({"statecode": 0, "title": "late"})).await.code(), "0x80040230");
    client.make(&case, &json!({"statecode": 0})).await;
    client.make(&case, &json!({"title": "late"})).await;
    let wrong = client.patch(&case, &json!({"statecode": 2, "statuscode": 1})).await;
    assert_eq!(wrong.code(), "0x80048408");
    // A task is completed and refuses; an account is only inactive and does not.
    let task = format!("tasks({})", id(3));
    client.make(&task, &json!({"subject": "A"})).await;
    client.make(&task, &json!({"statecode": 1})).await;
    assert_eq!(client.patch(&task, &json!({"subject": "B"})).await.code(), "0x80040230");
    client.make(&format!("accounts({})", id(1)), &json!({"statecode": 1, "statuscode": 2})).await;
    client.make(&format!("accounts({})", id(1)), &json!({"name": "B"})).await;
    let product = format!("products({})", id(4));
    client.make(&product, &json!({"name": "P"})).await;
    assert_eq!(client.get(&product).await["statecode"], json!(2), "products are born as drafts");
    assert_eq!(client.patch(&product, &json!({"statecode": 1})).await.code(), "0x8004f00e");
}

async fn user(client: &crate::client::Client, disabled: bool) -> String {
    let filter = format!("systemusers?$select=systemuserid&$filter=isdisabled eq {disabled} and accessmode eq 0");
    client.get(&filter).await["value"][0]["systemuserid"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn owners_must_be_able_to_own() {
    let (simulator, client) = start(quiet()).await;
    let (active, disabled) = (user(&client, false).await, user(&client, true).await);
    let owned = |owner: &str| json!({"ownerid@odata.bind": format!("/systemusers({owner})")});
    assert_eq!(client.post("accounts", &owned(&id(9))).await.code(), "0x80040217");
    assert_eq!(client.post("accounts", &owned(&disabled)).await.code(), "0x8004a112");
    let path = format!("accounts({})", id(1));
    client.make(&path, &owned(&active)).await;
    let row = client.get(&path).await;
    let unit = client.get(&format!("systemusers({active})?$select=_businessunitid_value")).await;
    assert_eq!(row["_owningbusinessunit_value"], unit["_businessunitid_value"]);
    assert_eq!(row["_owninguser_value"], json!(active));
    simulator.take_roles(&active);
    assert_eq!(client.post("accounts", &owned(&active)).await.refusal(), (403, "0x80042f09".to_owned()));
    // The row keeps the owner it has.
    client.make(&path, &json!({"name": "still there"})).await;
    simulator.take_privilege("prvAssignAccount");
    let team = client.get("teams?$select=teamid&$top=1").await["value"][0]["teamid"].as_str().unwrap().to_owned();
    let assigned = client.patch(&path, &json!({"ownerid@odata.bind": format!("/teams({team})")})).await;
    assert_eq!(assigned.refusal(), (403, "0x80040220".to_owned()));
    assert!(assigned.body.contains("prvAssignAccount"));
    simulator.give_privilege("prvAssignAccount");
    client.make(&path, &json!({"ownerid@odata.bind": format!("/teams({team})")})).await;
    assert_eq!(client.get(&path).await["_owningteam_value"], json!(team));
}

#[tokio::test]
async fn privileges_are_asked_for_and_told() {
    let (simulator, client) = start(quiet()).await;
    let path = format!("accounts({})", id(1));
    let told = |reply: &Value| {
        let list = reply["RolePrivileges"].as_array().unwrap().iter();
        list.map(|entry| entry["PrivilegeName"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let list = format!("systemusers({})/Microsoft.Dynamics.CRM.RetrieveUserPrivileges()", simulator.user(0));
    let before = told(&client.get(&list).await);
    for name in
        ["prvCreateAccount", "prvBypassCustomPlugins", "prvOverrideCreatedOnCreatedBy", "prvActOnBehalfOfAnotherUser"]
    {
        assert!(before.iter().any(|have| have == name), "{name}");
    }
    assert!(!before.iter().any(|have| have == "prvReadnew_Secret"));
    for (privilege, method, body) in [
        ("prvCreateAccount", "PATCH", json!({"name": "A"})),
        ("prvWriteAccount", "PATCH", json!({"name": "B"})),
        (
            "prvAppendAccount",
            "PATCH",
            json!({"preferredsystemuserid@odata.bind": format!("/systemusers({})", simulator.user(0))}),
        ),
        (
            "prvAppendToSystemuser",
            "PATCH",
            json!({"preferredsystemuserid@odata.bind": format!("/systemusers({})", simulator.user(0))}),
        ),
        ("prvDeleteAccount", "DELETE", Value::Null),
    ] {
        simulator.take_privilege(privilege);
        let refused = client.send(method, &path, &[], &body).await;
        assert_eq!(refused.refusal(), (403, "0x80040220".to_owned()), "{privilege}");
        assert!(refused.body.contains(privilege), "{}", refused.body);
        assert!(!told(&client.get(&list).await).iter().any(|have| have == privilege));
        simulator.give_privilege(privilege);
        assert_eq!(client.send(method, &path, &[], &body).await.status, 204, "{privilege}");
    }
}
