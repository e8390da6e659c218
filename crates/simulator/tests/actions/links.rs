//! `$ref` on every kind of navigation property.

use dynavault_simulator::Config;
use serde_json::{Value, json};

use crate::client::{Client, id, start};

fn reference(client: &Client, row: &str) -> Value {
    json!({"@odata.id": client.api(row)})
}

fn pairs(simulator: &dynavault_simulator::Simulator, table: &str, first: &str, second: &str) -> Vec<(String, String)> {
    let text = |row: &Value, column: &str| row[column].as_str().unwrap().to_owned();
    let rows = simulator.rows(table).into_iter().map(|row| serde_json::from_str::<Value>(&row.json).unwrap());
    rows.map(|row| (text(&row, first), text(&row, second))).collect()
}

#[tokio::test]
async fn a_link_is_made_once_and_removed_in_both_forms() {
    let (simulator, client) = start(Config::default()).await;
    let (account, lead) = (id(1), id(2));
    client.account(&account).await;
    client.create("leads", &lead, json!({"subject": "Linked"})).await;
    let path = format!("accounts({account})/accountleads_association/$ref");
    let to_lead = reference(&client, &format!("leads({lead})"));
    assert_eq!(client.call("POST", &path, &to_lead).await.status, 204);
    let linked = (account.clone(), lead.clone());
    assert!(pairs(&simulator, "accountleads", "accountid", "leadid").contains(&linked));
    assert_eq!(client.call("POST", &path, &to_lead).await.refusal(), (412, "0x80040237".to_owned()));

    let in_path = format!("accounts({account})/accountleads_association({lead})/$ref");
    assert_eq!(client.call("DELETE", &in_path, &Value::Null).await.status, 204);
    assert!(!pairs(&simulator, "accountleads", "accountid", "leadid").contains(&linked));
    assert_eq!(client.call("DELETE", &in_path, &Value::Null).await.status, 404);

    // From the other end, and with the reference in the query.
    let from_lead = format!("leads({lead})/accountleads_association/$ref");
    let to_account = reference(&client, &format!("accounts({account})"));
    assert_eq!(client.call("POST", &from_lead, &to_account).await.status, 204);
    assert!(pairs(&simulator, "accountleads", "accountid", "leadid").contains(&linked));
    let in_query = format!("{from_lead}?$id={}", client.api(&format!("accounts({account})")));
    assert_eq!(client.call("DELETE", &in_query, &Value::Null).await.status, 204);
    assert!(!pairs(&simulator, "accountleads", "accountid", "leadid").contains(&linked));
}

#[tokio::test]
async fn both_roles_of_a_self_reference_are_kept_apart() {
    let (simulator, client) = start(Config::default()).await;
    let (one, two) = (id(1), id(2));
    client.account(&one).await;
    client.account(&two).await;
    let to_two = reference(&client, &format!("accounts({two})"));
    let path = format!("accounts({one})/Referencingnew_partner_accounts/$ref");
    assert_eq!(client.call("POST", &path, &to_two).await.status, 204);
    let path = format!("accounts({one})/Referencednew_partner_accounts/$ref");
    assert_eq!(client.call("POST", &path, &to_two).await.status, 204, "the other orientation is another link");
    let links = pairs(&simulator, "new_account_account", "accountidone", "accountidtwo");
    assert!(links.contains(&(one.clone(), two.clone())) && links.contains(&(two.clone(), one.clone())));
    let path = format!("accounts({two})/Referencednew_partner_accounts({one})/$ref");
    assert_eq!(client.call("DELETE", &path, &Value::Null).await.status, 204);
    let links = pairs(&simulator, "new_account_account", "accountidone", "accountidtwo");
    assert!(!links.contains(&(one.clone(), two.clone())) && links.contains(&(two, one.clone())));
    let wrong = format!("accounts({one})/new_partner_accounts/$ref");
    assert_eq!(client.call("POST", &wrong, &to_two).await.status, 404, "no property has the bare name");
}

#[tokio::test]
async fn links_need_both_rows_of_the_right_tables() {
    let (_simulator, client) = start(Config::default()).await;
    client.account(&id(1)).await;
    let path = format!("accounts({})/accountleads_association/$ref", id(1));
    let missing = reference(&client, &format!("leads({})", id(9)));
    assert_eq!(client.call("POST", &path, &missing).await.refusal(), (404, "0x80040217".to_owned()));
    let other_type = reference(&client, &format!("accounts({})", id(1)));
    assert_eq!(client.call("POST", &path, &other_type).await.status, 400);
    let own_set = client.message("accountleadscollection", json!({"accountleadsid": id(5)})).await;
    assert!((400..500).contains(&own_set.status), "intersect rows have no create of their own");
}

#[tokio::test]
async fn a_lookup_is_set_and_cleared_by_the_property_in_use() {
    let (_simulator, client) = start(Config::default()).await;
    let (account, contact) = (id(1), id(2));
    client.account(&account).await;
    client.create("contacts", &contact, json!({"lastname": "Made"})).await;
    let path = |navigation: &str| format!("contacts({contact})/{navigation}/$ref");
    let to_account = reference(&client, &format!("accounts({account})"));
    assert_eq!(client.call("PUT", &path("parentcustomerid_account"), &to_account).await.status, 204);
    let parent = async || client.get(&format!("contacts({contact})")).await["_parentcustomerid_value"].clone();
    assert_eq!(parent().await, json!(account));
    // The navigation to contacts is not the one in use.
    assert_eq!(client.call("DELETE", &path("parentcustomerid_contact"), &Value::Null).await.status, 204);
    assert_eq!(parent().await, json!(account));
    assert_eq!(client.call("DELETE", &path("parentcustomerid_account"), &Value::Null).await.status, 204);
    assert_eq!(parent().await, Value::Null);
    // From the account's side.
    let children = format!("accounts({account})/contact_parentcustomerid_account/$ref");
    let to_contact = reference(&client, &format!("contacts({contact})"));
    assert_eq!(client.call("POST", &children, &to_contact).await.status, 204);
    assert_eq!(parent().await, json!(account));
    assert_eq!(client.call("PUT", &children, &to_contact).await.status, 405);
}

#[tokio::test]
async fn people_join_and_leave_teams() {
    let (simulator, client) = start(Config::default()).await;
    let team = simulator.rows("team")[0].keys[0].clone();
    let user = simulator.rows("systemuser")[0].keys[0].clone();
    let members = json!({"Members": [{"@odata.type": "Microsoft.Dynamics.CRM.systemuser", "systemuserid": user}]});
    let linked =
        || pairs(&simulator, "teammembership", "systemuserid", "teamid").contains(&(user.clone(), team.clone()));
    let action = |name: &str| format!("teams({team})/Microsoft.Dynamics.CRM.{name}");
    for _ in 0..2 {
        assert_eq!(client.message(&action("AddMembersTeam"), members.clone()).await.status, 204);
        assert!(linked());
    }
    assert_eq!(client.message(&action("RemoveMembersTeam"), members).await.status, 204);
    assert!(!linked());
}
