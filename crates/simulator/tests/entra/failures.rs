//! What goes wrong on purpose: the token endpoint itself, refusals, challenges, the wrong tenant.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dynavault_simulator::{AnswerFault, Api};
use serde_json::{Value, json};

use crate::client::Client;

#[tokio::test]
async fn the_token_endpoint_fails_in_every_way_and_recovers() {
    let client = Client::new().await;
    let (entra, scope) = (client.simulator.entra(), client.environment_scope());
    for (fault, status) in [
        (AnswerFault::ServerError, 500),
        (AnswerFault::HtmlBadGateway, 502),
        (AnswerFault::Unavailable, 503),
        (AnswerFault::HtmlSuccess, 200),
        (AnswerFault::Throttled { retry_after: None }, 429),
    ] {
        entra.fail_next(fault, 2);
        for _ in 0..2 {
            let reply = client.app_only(&scope).await;
            assert_eq!(reply.status, status, "{fault:?}");
            assert!(reply.body["access_token"].is_null());
        }
    }
    entra.fail_next(AnswerFault::Throttled { retry_after: Some(7) }, 1);
    assert_eq!(client.app_only(&scope).await.header("retry-after"), "7");
    entra.fail_next(AnswerFault::Cut, 1);
    assert_eq!(client.app_only(&scope).await.body, Value::Null);
    entra.fail_next(AnswerFault::Slow { milliseconds: 60 }, 1);
    let start = std::time::Instant::now();
    assert_eq!(client.app_only(&scope).await.status, 200);
    assert!(start.elapsed() >= Duration::from_millis(60));
}

#[tokio::test]
async fn refusals_are_given_until_told_otherwise_and_after_the_credential() {
    let client = Client::new().await;
    let (entra, scope) = (client.simulator.entra(), client.environment_scope());
    entra.refuse(53_003);
    let reply = client.app_only(&scope).await;
    assert_eq!((reply.status, reply.refusal()), (400, ("invalid_grant".to_owned(), 53_003)));
    assert_eq!(reply.body["suberror"], "message_only");
    assert!(!reply.body["correlation_id"].as_str().unwrap().is_empty());
    let wrong =
        client.token(&[("grant_type", "client_credentials"), ("client_secret", "wrong"), ("scope", &scope)]).await;
    assert_eq!(wrong.refusal().1, 7_000_215);
    entra.accept();
    entra.refuse_next(90_055, 1);
    assert_eq!(client.app_only(&scope).await.status, 429);
    let claims = r#"{"access_token":{"nbf":{"essential":true,"value":"7"}}}"#;
    entra.refuse_grant("refresh_token", 50_076, Some(claims));
    assert_eq!(client.app_only(&scope).await.status, 200);
    let refresh = client.sign_in().await.text("refresh_token");
    assert_eq!(client.refresh(&refresh, &scope).await.body["claims"], claims);
}

#[tokio::test]
async fn an_api_challenges_until_a_token_brings_the_claims() {
    let client = Client::new().await;
    let (entra, scope) = (client.simulator.entra(), client.environment_scope());
    let old = client.app_only(&scope).await.token();
    let refresh = client.sign_in().await.text("refresh_token");
    let wanted = r#"{"access_token":{"nbf":{"essential":true,"value":"1604106651"}}}"#;
    assert!(entra.challenge(Api::DynamicsCrm, wanted));
    assert!(!entra.challenge(Api::Graph, "no json"));
    for _ in 0..2 {
        let reply = client.who_am_i(&old).await;
        assert_eq!(reply.status, 401);
        let challenges: Vec<&str> =
            reply.headers.get_all("www-authenticate").iter().map(|value| value.to_str().unwrap()).collect();
        let bearer = challenges.iter().find(|text| text.contains("insufficient_claims")).unwrap();
        let encoded = bearer.split_once("claims=\"").unwrap().1.split('"').next().unwrap();
        let decoded: Value = serde_json::from_slice(&STANDARD.decode(encoded).unwrap()).unwrap();
        assert_eq!(decoded, serde_json::from_str::<Value>(wanted).unwrap());
        assert_eq!(challenges.len(), 2);
    }
    let again = client.app_only(&scope).await.token();
    assert_eq!(client.who_am_i(&again).await.status, 401);
    let secret = client.simulator.secret();
    let form =
        [("grant_type", "client_credentials"), ("client_secret", &*secret), ("scope", &*scope), ("claims", wanted)];
    assert_eq!(client.who_am_i(&client.token(&form).await.token()).await.status, 200);
    let form = [("grant_type", "refresh_token"), ("refresh_token", &*refresh), ("scope", &*scope), ("claims", wanted)];
    assert_eq!(client.who_am_i(&client.token(&form).await.token()).await.status, 200);
    entra.end_challenge(Api::DynamicsCrm);
    assert_eq!(client.who_am_i(&old).await.status, 200);
}

#[tokio::test]
async fn tenants_scopes_and_clients_that_do_not_exist_are_named() {
    let client = Client::new().await;
    let secret = client.simulator.secret();
    let scope = client.environment_scope();
    let form = |client_id: &str, scope: &str| {
        vec![
            ("grant_type".to_owned(), "client_credentials".to_owned()),
            ("client_secret".to_owned(), secret.clone()),
            ("client_id".to_owned(), client_id.to_owned()),
            ("scope".to_owned(), scope.to_owned()),
        ]
    };
    let id = client.client_id();
    let two = format!("{scope} {}", client.graph_scope());
    let named = format!("{}/user_impersonation", client.simulator.url());
    for (tenant, client_id, scope, error, code) in [
        ("00000000-0000-0000-0000-000000000001", &*id, &*scope, "invalid_request", 90_002),
        ("common", &id, &scope, "invalid_request", 50_194),
        ("nonsense", &id, &scope, "invalid_tenant", 900_023),
        ("simulated.example", "unknown", &scope, "unauthorized_client", 700_016),
        ("simulated.example", &id, "https://elsewhere.example/.default", "invalid_resource", 500_011),
        ("simulated.example", &id, &two, "invalid_scope", 700_022),
        ("simulated.example", &id, &named, "invalid_scope", 1_002_012),
    ] {
        let url = format!("{}/{tenant}/oauth2/v2.0/token", client.simulator.authority());
        let pairs = form(client_id, scope);
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let reply = client.post(&url, &pairs).await;
        assert_eq!((reply.status, reply.refusal()), (400, (error.to_owned(), code)), "{}", reply.body);
    }
}

#[tokio::test]
async fn another_process_steers_with_json() {
    let client = Client::new().await;
    let url = format!("{}/_simulator/entra", client.simulator.url());
    let command = |body: Value| {
        let url = url.clone();
        async move { reqwest::Client::new().post(url).body(body.to_string()).send().await.unwrap().status().as_u16() }
    };
    let id = client.client_id();
    let withdraw =
        json!({"do": "withdraw", "client": id, "api": "graph", "type": "application", "value": "Directory.Read.All"});
    assert_eq!(command(withdraw).await, 200);
    assert_eq!(command(json!({"do": "fail_next", "fault": {"throttled": {"retry_after": 3}}, "times": 1})).await, 200);
    assert_eq!(command(json!({"do": "refuse_next", "code": 50_173, "times": 1})).await, 200);
    assert_eq!(command(json!({"do": "enable_app", "client": "unknown", "on": false})).await, 404);
    assert_eq!(command(json!({"do": "nothing of the kind"})).await, 400);
    let scope = client.graph_scope();
    assert_eq!(client.app_only(&scope).await.status, 429);
    assert_eq!(client.app_only(&scope).await.refusal().1, 50_173);
    let token = client.app_only(&scope).await.token();
    assert_eq!(crate::client::claims(&token)["roles"], json!(["Group.Read.All"]));
    let state = client.get(&url, "", &[]).await;
    assert_eq!(state.body["requests"].as_array().unwrap().len(), 3);
}
