//! Granting and taking permissions: what tokens, directory and consent pages then say.

use std::time::Duration;

use dynavault_simulator::{Api, BrowserOutcome, Permission};
use serde_json::{Value, json};

use crate::client::{Client, claims, parameter};

const DIRECTORY_READ: Permission = Permission::application(Api::Graph, "Directory.Read.All");

/// Visits the consent page; where the administrator is sent.
async fn consent(client: &Client) -> String {
    let scope = client.graph_scope();
    let url = format!("{}/{}/v2.0/adminconsent", client.simulator.authority(), client.simulator.tenant());
    let parameters = [
        ("client_id", &*client.client_id()),
        ("scope", &*scope),
        ("redirect_uri", "http://localhost/consent"),
        ("state", "s7"),
    ];
    let url = reqwest::Url::parse_with_params(&url, parameters).unwrap();
    let reply = client.get(url.as_str(), "", &[]).await;
    assert_eq!(reply.status, 302);
    reply.header("location").to_owned()
}

#[tokio::test]
async fn every_row_of_the_profiles_comes_and_goes_alone() {
    let client = Client::new().await;
    let (entra, id) = (client.simulator.entra(), client.client_id());
    let refresh = client.sign_in().await.text("refresh_token");
    let rows: Vec<Permission> = Permission::CE.into_iter().chain(Permission::UO).collect();
    let resource = |api| match api {
        Api::Graph => entra.graph_url(),
        Api::DynamicsCrm => client.simulator.url(),
        Api::DynamicsErp => entra.erp_url(),
    };
    for row in rows {
        let carries = || async {
            let scope = format!("{}/.default", resource(row.api));
            let delegated = row.kind == dynavault_simulator::PermissionType::Delegated;
            let reply = if delegated { client.refresh(&refresh, &scope).await } else { client.app_only(&scope).await };
            if reply.status != 200 {
                assert_eq!(reply.refusal(), ("invalid_grant".to_owned(), 65_001));
                return false;
            }
            let token = claims(&reply.token());
            let roles: Vec<&str> = token["roles"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            roles.contains(&row.value)
                || token["scp"].as_str().unwrap_or_default().split(' ').any(|scope| scope == row.value)
        };
        assert!(carries().await, "{row:?}");
        entra.withdraw(&id, row);
        assert!(!carries().await, "{row:?}");
        entra.grant(&id, row);
        assert!(carries().await, "{row:?}");
    }
    // The environment decides for itself about applications (entra 2.2).
    assert!(claims(&client.app_only(&client.environment_scope()).await.token())["roles"].is_null());
}

#[tokio::test]
async fn an_administrator_consents_and_the_tokens_follow_after_a_while() {
    let client = Client::new().await;
    let (entra, id) = (client.simulator.entra(), client.client_id());
    for row in Permission::CE {
        entra.withdraw(&id, row);
    }
    let location = client.visit(&[]).await.unwrap();
    assert_eq!(parameter(&location, "error").as_deref(), Some("consent_required"));
    entra.answer_browser(BrowserOutcome::Decline);
    let location = consent(&client).await;
    // Failure carries the mark of success too: only the missing `error` tells.
    assert_eq!(parameter(&location, "admin_consent").as_deref(), Some("True"));
    assert_eq!(parameter(&location, "error").as_deref(), Some("access_denied"));
    entra.answer_browser(BrowserOutcome::OtherTenant);
    assert_ne!(parameter(&consent(&client).await, "tenant"), Some(client.simulator.tenant()));
    entra.answer_browser(BrowserOutcome::Accept);
    entra.spread_grants_after(Duration::from_secs(120));
    let location = consent(&client).await;
    assert!(location.starts_with("http://localhost/consent?admin_consent=True&tenant="), "{location}");
    assert_eq!((parameter(&location, "error"), parameter(&location, "state")), (None, Some("s7".to_owned())));
    let roles = || async { claims(&client.app_only(&client.graph_scope()).await.token())["roles"].clone() };
    assert_eq!(roles().await, json!(["Group.Read.All"]));
    client.simulator.pass_time(Duration::from_secs(120));
    assert_eq!(roles().await, json!(["Group.Read.All", "Directory.Read.All"]));
    assert_eq!(client.sign_in().await.status, 200);
}

#[tokio::test]
async fn people_may_consent_for_themselves_where_they_are_let() {
    let client = Client::new().await;
    let (entra, id) = (client.simulator.entra(), client.client_id());
    let row = Permission::delegated(Api::DynamicsCrm, "user_impersonation");
    entra.withdraw(&id, row);
    let error = |location: String| parameter(&location, "error");
    assert_eq!(error(client.visit(&[]).await.unwrap()).as_deref(), Some("consent_required"));
    entra.allow_user_consent(true);
    assert_eq!(error(client.visit(&[("prompt", "none")]).await.unwrap()).as_deref(), Some("consent_required"));
    assert_eq!(client.sign_in().await.status, 200);
    // That was for one person; another still has to.
    entra.allow_user_consent(false);
    let people = entra.people();
    entra.sit_at_browser(&people[1].sign_in_name);
    assert_eq!(error(client.visit(&[]).await.unwrap()).as_deref(), Some("consent_required"));
    let token = client.app_only(&client.graph_scope()).await.token();
    let principal = client.own_principal(&token).await;
    let grants = client.graph(&token, &format!("oauth2PermissionGrants?$filter=clientId eq '{principal}'")).await.body;
    let own =
        grants["value"].as_array().unwrap().iter().find(|grant| grant["consentType"] == "Principal").unwrap().clone();
    assert_eq!(own["principalId"].as_str(), Some(&*people[0].object_id));
    assert_eq!(own["scope"], " user_impersonation");
    entra.grant_to(&id, row, &people[1].sign_in_name);
    assert_eq!(client.sign_in().await.status, 200);
}

#[tokio::test]
async fn default_asks_nothing_where_something_was_granted() {
    let client = Client::new().await;
    let (entra, id) = (client.simulator.entra(), client.client_id());
    let row = Permission::delegated(Api::DynamicsErp, "Odata.FullAccess");
    entra.withdraw(&id, row);
    let erp = entra.erp_url();
    let scope = format!("openid offline_access {erp}/.default");
    let location = client.visit(&[("scope", &scope)]).await.unwrap();
    let reply = client.redeem(&parameter(&location, "code").unwrap(), &[("scope", &format!("{erp}/.default"))]).await;
    assert_eq!(claims(&reply.token())["scp"], "AX.FullAccess CustomService.FullAccess");
    // Naming it, or asking again, does ask.
    let named = format!("openid {erp}/Odata.FullAccess");
    let location = client.visit(&[("scope", &named)]).await.unwrap();
    assert_eq!(parameter(&location, "error").as_deref(), Some("consent_required"));
    let location = client.visit(&[("scope", &scope), ("prompt", "consent")]).await.unwrap();
    assert_eq!(parameter(&location, "error").as_deref(), Some("consent_required"));
}

#[tokio::test]
async fn a_product_that_is_not_there_cannot_be_signed_in_to() {
    let client = Client::new().await;
    let (entra, id) = (client.simulator.entra(), client.client_id());
    entra.install_api(Api::DynamicsErp, false);
    let scope = format!("{}/.default", entra.erp_url());
    let reply = client.app_only(&scope).await;
    assert_eq!((reply.status, reply.refusal()), (400, ("invalid_resource".to_owned(), 500_011)));
    let token = client.app_only(&client.graph_scope()).await.token();
    let filter = format!("servicePrincipals?$filter=appId eq '{}'&$select=id", Api::DynamicsErp.app_id());
    assert_eq!(client.graph(&token, &filter).await.body["value"], json!([]));
    let principal = client.own_principal(&token).await;
    let assignments = client.graph(&token, &format!("servicePrincipals/{principal}/appRoleAssignments?$top=999")).await;
    assert!(!assignments.body.to_string().contains("Dynamics ERP"));
    entra.install_api(Api::DynamicsErp, true);
    assert_eq!(claims(&client.app_only(&scope).await.token())["roles"], json!(["Connector.FullAccess"]));
    entra.withdraw(&id, DIRECTORY_READ);
    let poor = client.app_only(&client.graph_scope()).await.token();
    assert_eq!(client.graph(&poor, &filter).await.status, 403);
    // A token from before keeps what it had.
    assert_eq!(client.graph(&token, &filter).await.status, 200);
}
