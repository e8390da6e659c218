//! Microsoft Graph: who may read what, pages, credentials, faults.

use std::time::Duration;

use dynavault_simulator::{AnswerFault, Api, GraphQuirk, Permission, PermissionType};
use serde_json::{Value, json};

use crate::client::Client;

fn code(body: &Value) -> &str {
    body["error"]["code"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn a_person_reads_themselves_and_a_part_of_their_organization() {
    let client = Client::new().await;
    let refresh = client.sign_in().await.text("refresh_token");
    let person = client.refresh(&refresh, &client.graph_scope()).await.token();
    let me = client.graph(&person, "me?$select=id,userPrincipalName,displayName,mail").await;
    assert_eq!(me.text("id"), client.simulator.entra().people()[0].object_id);
    let columns = "organization?$select=id,displayName,verifiedDomains,tenantType,countryLetterCode";
    let organization = client.graph(&person, columns).await.body["value"][0].clone();
    assert_eq!(organization["id"].as_str(), Some(&*client.simulator.tenant()));
    assert!(organization["tenantType"].is_null() && organization["verifiedDomains"].is_array());
    for denied in ["domains", "groups", "servicePrincipals", "oauth2PermissionGrants", "applications"] {
        let reply = client.graph(&person, denied).await;
        assert_eq!((reply.status, code(&reply.body)), (403, "Authorization_RequestDenied"), "{denied}");
    }
    let app = client.app_only(&client.graph_scope()).await.token();
    assert_eq!(client.graph(&app, "me").await.status, 400);
    assert_eq!(client.graph(&app, columns).await.body["value"][0]["countryLetterCode"], "NL");
    let domains = client.graph(&app, "domains?$select=id,isDefault,isInitial,isVerified,authenticationType").await;
    assert_eq!(
        domains.body["value"][0],
        json!({"id": "simulated.example", "isDefault": true, "isInitial": false, "isVerified": true, "authenticationType": "Managed"})
    );
}

#[tokio::test]
async fn each_call_needs_its_permission() {
    let client = Client::new().await;
    let (entra, id) = (client.simulator.entra(), client.client_id());
    let granted = || async { client.app_only(&client.graph_scope()).await.token() };
    entra.withdraw(&id, Permission::application(Api::Graph, "Directory.Read.All"));
    let token = granted().await;
    assert_eq!(client.graph(&token, "groups?$select=id").await.status, 200);
    assert_eq!(client.graph(&token, "domains").await.status, 403);
    entra.withdraw(&id, Permission::application(Api::Graph, "Group.Read.All"));
    let token = granted().await;
    assert_eq!(client.graph(&token, "groups?$select=id").await.status, 403);
    entra.grant(&id, Permission::application(Api::Graph, "Directory.ReadWrite.All"));
    let token = granted().await;
    for path in ["groups", "domains", "organization", "servicePrincipals", "oauth2PermissionGrants"] {
        assert_eq!(client.graph(&token, path).await.status, 200, "{path}");
    }
    // The same value as a scope is another permission.
    assert!(Permission::find(Api::Graph, PermissionType::Delegated, "Directory.Read.All").is_some());
}

#[tokio::test]
async fn tokens_for_others_and_old_ones_are_refused() {
    let client = Client::new().await;
    let environment = client.app_only(&client.environment_scope()).await.token();
    let graph = client.app_only(&client.graph_scope()).await.token();
    assert_eq!(client.who_am_i(&graph).await.status, 401);
    for token in [environment.as_str(), "", "nonsense"] {
        let reply = client.graph(token, "organization").await;
        assert_eq!((reply.status, code(&reply.body)), (401, "InvalidAuthenticationToken"));
        assert!(reply.header("www-authenticate").starts_with("Bearer "));
    }
    let entra = client.simulator.entra();
    entra.challenge(Api::Graph, r#"{"access_token":{"nbf":{"essential":true,"value":"5"}}}"#);
    let reply = client.graph(&graph, "organization").await;
    assert_eq!(reply.status, 401);
    assert_eq!(reply.headers.get_all("www-authenticate").iter().count(), 2);
    entra.end_challenge(Api::Graph);
    client.simulator.pass_time(Duration::from_secs(3_601));
    assert_eq!(client.graph(&graph, "organization").await.status, 401);
}

#[tokio::test]
async fn groups_come_in_pages_of_which_one_is_empty() {
    let client = Client::new().await;
    let token = client.app_only(&client.graph_scope()).await.token();
    let first = format!("{}/v1.0/groups?$select=id,displayName&$count=true", client.simulator.entra().graph_url());
    let eventual = [("ConsistencyLevel", "eventual")];
    assert_eq!(client.get(&first, &token, &[]).await.status, 400);
    let (mut link, mut sizes, mut ids) = (Some(first.clone()), Vec::new(), std::collections::BTreeSet::new());
    while let Some(url) = link {
        let page = client.get(&url, &token, &eventual).await;
        assert_eq!(page.body["@odata.count"].as_u64(), (sizes.is_empty()).then_some(250));
        // The header is not in the link.
        assert_eq!(client.get(&url, &token, &[]).await.status, 400);
        let value = page.body["value"].as_array().unwrap();
        sizes.push(value.len());
        ids.extend(value.iter().map(|group| group["id"].as_str().unwrap().to_owned()));
        link = page.body["@odata.nextLink"].as_str().map(str::to_owned);
    }
    assert_eq!((sizes, ids.len()), (vec![100, 0, 100, 50], 250));
    let entra = client.simulator.entra();
    assert_eq!(entra.graph_requests()[0].consistency_level, None);
    entra.distort_graph(Some(GraphQuirk::ForeignLink));
    let foreign = client.graph(&token, "groups").await.body["@odata.nextLink"].as_str().unwrap().to_owned();
    assert!(foreign.starts_with("http://elsewhere.example/"));
    entra.distort_graph(Some(GraphQuirk::RepeatedLink));
    let second = client.graph(&token, "groups").await.body["@odata.nextLink"].as_str().unwrap().to_owned();
    assert_eq!(client.get(&second, &token, &[]).await.body["@odata.nextLink"], second);
    entra.distort_graph(Some(GraphQuirk::OtherOrganization));
    let other = client.graph(&token, "organization").await.body["value"][0]["id"].clone();
    assert_ne!(other.as_str(), Some(&*client.simulator.tenant()));
    entra.distort_graph(None);
    entra.set_groups(3);
    assert!(client.graph(&token, "groups").await.body["@odata.nextLink"].is_null());
    assert_eq!(client.graph(&token, "groups?$top=1000").await.status, 400);
    assert_eq!(client.graph(&token, "groups?$select=nonsense").await.status, 400);
}

#[tokio::test]
async fn grants_are_found_by_the_ids_of_the_tenant() {
    let client = Client::new().await;
    let token = client.app_only(&client.graph_scope()).await.token();
    let principal = client.own_principal(&token).await;
    let apps: Vec<String> = Api::ALL.iter().map(|api| format!("'{}'", api.app_id())).collect();
    let path = format!(
        "servicePrincipals?$filter=appId in ({})&$select=id,appId,displayName,oauth2PermissionScopes,appRoles",
        apps.join(",")
    );
    let services = client.graph(&token, &path).await.body["value"].clone();
    assert_eq!(services.as_array().unwrap().len(), 3);
    let assignments =
        client.graph(&token, &format!("servicePrincipals/{principal}/appRoleAssignments?$top=999")).await.body;
    let grants = client.graph(&token, &format!("oauth2PermissionGrants?$filter=clientId eq '{principal}'")).await.body;
    for row in Permission::CE.into_iter().chain(Permission::UO) {
        let service = services.as_array().unwrap().iter().find(|service| service["appId"] == row.api.app_id()).unwrap();
        let found = if row.kind == PermissionType::Application {
            let roles = service["appRoles"].as_array().unwrap().iter();
            let mut ids = roles
                .filter(|role| {
                    role["value"] == row.value
                        && role["isEnabled"] == true
                        && role["allowedMemberTypes"][0] == "Application"
                })
                .map(|role| role["id"].clone());
            let id = ids.next().unwrap();
            assert_eq!(ids.next(), None);
            assignments["value"]
                .as_array()
                .unwrap()
                .iter()
                .any(|own| own["appRoleId"] == id && own["resourceId"] == service["id"])
        } else {
            grants["value"].as_array().unwrap().iter().any(|grant| {
                let words: Vec<&str> = grant["scope"].as_str().unwrap().split_whitespace().collect();
                grant["resourceId"] == service["id"]
                    && grant["consentType"] == "AllPrincipals"
                    && words.contains(&row.value)
            })
        };
        assert!(found, "{row:?}");
    }
    let missing = client.graph(&token, "servicePrincipals(appId='00000000-0000-0000-0000-000000000001')").await;
    assert_eq!((missing.status, code(&missing.body)), (404, "Request_ResourceNotFound"));
}

#[tokio::test]
async fn the_dates_of_credentials_are_shown_but_not_the_credentials() {
    let client = Client::new().await;
    let (entra, id) = (client.simulator.entra(), client.client_id());
    let certificate = entra.make_certificate(Duration::from_secs(20 * 86_400));
    entra.register_certificate(&id, &certificate.pem);
    let token = client.app_only(&client.graph_scope()).await.token();
    let path = format!("applications(appId='{id}')?$select=passwordCredentials,keyCredentials");
    let body = client.graph(&token, &path).await.body;
    let ends: jiff::Timestamp = body["keyCredentials"][0]["endDateTime"].as_str().unwrap().parse().unwrap();
    let days = (ends.as_second() - jiff::Timestamp::now().as_second()) / 86_400;
    assert!((19..=20).contains(&days));
    assert!(body["passwordCredentials"][0]["endDateTime"].is_string());
    assert!(!body.to_string().contains(&client.simulator.secret()));
}

#[tokio::test]
async fn graph_throttles_and_breaks() {
    let client = Client::new().await;
    let entra = client.simulator.entra();
    let token = client.app_only(&client.graph_scope()).await.token();
    entra.fail_graph_next(AnswerFault::Throttled { retry_after: Some(11) }, 1);
    entra.fail_graph_next(AnswerFault::Unavailable, 1);
    let reply = client.graph(&token, "organization").await;
    assert_eq!((reply.status, reply.header("retry-after")), (429, "11"));
    assert_eq!(client.graph(&token, "organization").await.status, 503);
    assert_eq!(client.graph(&token, "organization").await.status, 200);
    let statuses: Vec<u16> = entra.graph_requests().iter().map(|request| request.status).collect();
    assert_eq!(statuses, [429, 503, 200]);
    assert_eq!(client.simulator.stats().by_kind["graph"], 3);
}
