//! Messages that close rows and publish products.

use dynavault_simulator::Config;
use serde_json::{Value, json};

use crate::client::{id, start};

#[tokio::test]
async fn an_opportunity_is_won_once_and_leaves_its_close_activity() {
    let (simulator, client) = start(Config::default()).await;
    let (account, opportunity, close) = (id(1), id(2), id(3));
    client.account(&account).await;
    let customer = format!("/accounts({account})");
    client
        .create("opportunities", &opportunity, json!({"name": "Deal", "customerid_account@odata.bind": customer}))
        .await;
    let path = format!("opportunities({opportunity})");
    let by_patch = client.call("PATCH", &path, &json!({"statecode": 1, "statuscode": 3})).await;
    assert!((400..500).contains(&by_patch.status), "only the message wins");
    let body = json!({"Status": 3, "OpportunityClose": {
        "@odata.type": "Microsoft.Dynamics.CRM.opportunityclose", "subject": "Restored", "activityid": close,
        "opportunityid@odata.bind": format!("/{path}")}});
    assert_eq!(client.message("WinOpportunity", body.clone()).await.status, 204);
    let won = client.get(&path).await;
    assert_eq!((&won["statecode"], &won["statuscode"]), (&json!(1), &json!(3)));
    let activity = client.get(&format!("opportunitycloses({close})")).await;
    assert_eq!(activity["_opportunityid_value"], json!(opportunity));
    assert_eq!(activity["subject"], json!("Restored"));
    let closes = simulator.rows("opportunityclose").len();
    assert_eq!(client.message("LoseOpportunity", body).await.refusal(), (400, "0x80040516".to_owned()));
    assert_eq!(simulator.rows("opportunityclose").len(), closes, "a refused message leaves nothing behind");
    assert_eq!(client.call("PATCH", &path, &json!({"name": "New"})).await.refusal().1, "0x80040230");
    assert_eq!(client.call("PATCH", &path, &json!({"statecode": 0, "statuscode": 1})).await.status, 204);
    assert_eq!(client.call("PATCH", &path, &json!({"name": "New"})).await.status, 204);
}

#[tokio::test]
async fn a_status_of_another_state_closes_nothing() {
    let (simulator, client) = start(Config::default()).await;
    client.account(&id(1)).await;
    let customer = format!("/accounts({})", id(1));
    client.create("incidents", &id(2), json!({"title": "Case", "customerid_account@odata.bind": customer})).await;
    let body = |status: i32, bind: &str| {
        json!({"Status": status, "IncidentResolution": {"@odata.type": "Microsoft.Dynamics.CRM.incidentresolution",
            "subject": "Solved", "incidentid@odata.bind": bind}})
    };
    let case = format!("/incidents({})", id(2));
    let before = simulator.rows("incidentresolution").len();
    assert_eq!(client.message("CloseIncident", body(1, &case)).await.refusal(), (400, "0x80048408".to_owned()));
    assert_eq!(simulator.rows("incidentresolution").len(), before);
    let missing = format!("/incidents({})", id(9));
    assert_eq!(client.message("CloseIncident", body(5, &missing)).await.refusal(), (404, "0x80040217".to_owned()));
    assert_eq!(client.message("CloseIncident", body(-1, &case)).await.status, 204, "-1 is the default status");
    assert_eq!(client.get(&format!("incidents({})", id(2))).await["statecode"], json!(1));
    let no_status = client.message("CloseIncident", json!({"IncidentResolution": {}})).await;
    assert_eq!(no_status.refusal(), (400, "0x80048d19".to_owned()));
}

#[tokio::test]
async fn a_quote_is_activated_before_it_is_won() {
    let (_simulator, client) = start(Config::default()).await;
    client.account(&id(1)).await;
    let customer = format!("/accounts({})", id(1));
    client.create("quotes", &id(2), json!({"name": "Offer", "customerid_account@odata.bind": customer})).await;
    let quote = format!("quotes({})", id(2));
    let body = json!({"Status": -1, "QuoteClose": {"@odata.type": "Microsoft.Dynamics.CRM.quoteclose",
        "subject": "Accepted", "quoteid@odata.bind": format!("/{quote}")}});
    assert_eq!(client.message("WinQuote", body.clone()).await.refusal(), (400, "0x8004f00e".to_owned()));
    assert_eq!(client.call("PATCH", &quote, &json!({"statecode": 1})).await.status, 204);
    assert_eq!(client.message("WinQuote", body.clone()).await.status, 204);
    assert_eq!(client.get(&quote).await["statecode"], json!(2));
    assert_eq!(client.message("CloseQuote", body).await.refusal(), (400, "0x80040516".to_owned()));
}

#[tokio::test]
async fn an_order_is_fulfilled() {
    let (_simulator, client) = start(Config::default()).await;
    client.account(&id(1)).await;
    let customer = format!("/accounts({})", id(1));
    client.create("salesorders", &id(2), json!({"name": "Order", "customerid_account@odata.bind": customer})).await;
    let order = format!("salesorders({})", id(2));
    let body = json!({"Status": -1, "OrderClose": {"@odata.type": "Microsoft.Dynamics.CRM.orderclose",
        "subject": "Sent", "salesorderid@odata.bind": format!("/{order}")}});
    assert_eq!(client.message("FulfillSalesOrder", body.clone()).await.status, 204);
    assert_eq!(client.get(&order).await["statecode"], json!(3));
    assert_eq!(client.message("CancelSalesOrder", body).await.refusal().1, "0x80040516");
}

#[tokio::test]
async fn products_are_drafts_until_their_family_is_published() {
    let (_simulator, client) = start(Config::default()).await;
    let (family, product) = (id(1), id(2));
    client.create("products", &family, json!({"name": "Family"})).await;
    let parent = format!("/products({family})");
    client.create("products", &product, json!({"name": "Part", "parentproductid@odata.bind": parent})).await;
    let state = async |id: &str| client.get(&format!("products({id})")).await["statecode"].clone();
    assert_eq!(state(&product).await, json!(2));
    let by_patch = client.call("PATCH", &format!("products({product})"), &json!({"statecode": 0})).await;
    assert!((400..500).contains(&by_patch.status));
    let publish = format!("products({family})/Microsoft.Dynamics.CRM.PublishProductHierarchy");
    assert_eq!(client.message(&publish, Value::Null).await.status, 204);
    assert_eq!((state(&family).await, state(&product).await), (json!(0), json!(0)));
    assert_eq!(client.message(&publish, Value::Null).await.status, 400);
    let retire = client.call("PATCH", &format!("products({product})"), &json!({"statecode": 1})).await;
    assert_eq!(retire.status, 204);
    assert_eq!(client.message("PublishProductHierarchy", json!({})).await.status, 404, "the action is bound");
}
