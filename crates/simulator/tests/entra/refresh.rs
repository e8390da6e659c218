//! Refresh tokens: rotation, age, revocation, other audiences, hours of short tokens.

use std::time::Duration;

use dynavault_simulator::Config;

use crate::client::{Client, claims, parameter};

fn grant(code: u64) -> (String, u64) {
    ("invalid_grant".to_owned(), code)
}

#[tokio::test]
async fn one_refresh_token_serves_every_audience_and_the_old_one_lives_on() {
    let client = Client::new().await;
    let first = client.sign_in().await.text("refresh_token");
    let graph = client.refresh(&first, &client.graph_scope()).await;
    assert_eq!(claims(&graph.token())["scp"], "User.Read");
    let second = graph.text("refresh_token");
    assert_ne!(first, second);
    let again = client.refresh(&first, &client.environment_scope()).await;
    assert_eq!(claims(&again.token())["scp"], "user_impersonation");
    let erp = format!("{}/.default", client.simulator.entra().erp_url());
    let token = claims(&client.refresh(&second, &erp).await.token());
    assert_eq!(token["scp"], "AX.FullAccess CustomService.FullAccess Odata.FullAccess");
    // The resource of the first scope wins.
    let both = format!("{} {}", client.graph_scope(), client.environment_scope());
    let token = claims(&client.refresh(&second, &both).await.token());
    assert_eq!(token["aud"].as_str(), Some(&*client.simulator.entra().graph_url()));
}

#[tokio::test]
async fn strict_rotation_finds_a_client_that_uses_a_token_twice() {
    let client = Client::new().await;
    client.simulator.entra().rotate_strictly(true);
    let first = client.sign_in().await.text("refresh_token");
    let second = client.refresh(&first, &client.environment_scope()).await.text("refresh_token");
    assert_eq!(client.refresh(&first, &client.environment_scope()).await.refusal(), grant(70_000));
    assert_eq!(client.refresh(&second, &client.environment_scope()).await.status, 200);
}

#[tokio::test]
async fn refresh_tokens_end_by_age_revocation_and_account() {
    let client = Client::new().await;
    let (entra, scope) = (client.simulator.entra(), client.environment_scope());
    let person = entra.people()[0].sign_in_name.clone();
    let token = client.sign_in().await.text("refresh_token");
    client.simulator.pass_time(Duration::from_secs(89 * 86_400));
    let renewed = client.refresh(&token, &scope).await.text("refresh_token");
    client.simulator.pass_time(Duration::from_secs(89 * 86_400));
    let renewed = client.refresh(&renewed, &scope).await.text("refresh_token");
    client.simulator.pass_time(Duration::from_secs(90 * 86_400));
    let reply = client.refresh(&renewed, &scope).await;
    assert_eq!((reply.status, reply.refusal()), (400, grant(700_082)));
    assert_eq!(reply.body["suberror"], "token_expired");
    let token = client.sign_in().await;
    entra.revoke_refresh_tokens(&person);
    let refresh = token.text("refresh_token");
    assert_eq!(client.refresh(&refresh, &scope).await.refusal(), grant(50_173));
    // What was given out before still works.
    assert_eq!(client.who_am_i(&token.token()).await.status, 200);
    let token = client.sign_in().await.text("refresh_token");
    entra.enable_person(&person, false);
    assert_eq!(client.refresh(&token, &scope).await.refusal(), grant(50_057));
    entra.enable_person(&person, true);
    assert_eq!(client.refresh("nonsense", &scope).await.refusal(), grant(70_000));
    let secret = client.simulator.secret();
    let form = [
        ("grant_type", "refresh_token"),
        ("refresh_token", token.as_str()),
        ("scope", scope.as_str()),
        ("client_secret", &secret),
    ];
    assert_eq!(client.token(&form).await.refusal().1, 700_025);
}

#[tokio::test]
async fn a_second_factor_is_asked_for_with_claims() {
    let client = Client::new().await;
    let (entra, scope) = (client.simulator.entra(), client.environment_scope());
    let person = entra.people()[0].sign_in_name.clone();
    let token = client.sign_in().await.text("refresh_token");
    entra.require_mfa(&person);
    let reply = client.refresh(&token, &scope).await;
    assert_eq!(reply.refusal(), grant(50_076));
    assert!(reply.body["claims"].as_str().unwrap().contains("access_token"));
    let strong = client.sign_in().await.text("refresh_token");
    assert_eq!(client.refresh(&strong, &scope).await.status, 200);
    // Now only a sign-in that repeats the claims will do.
    let wanted = r#"{"access_token":{"acrs":{"essential":true,"value":"c7"}}}"#;
    entra.require_claims(&person, wanted);
    assert_eq!(client.refresh(&strong, &scope).await.refusal(), grant(50_076));
    assert_eq!(client.sign_in().await.body["claims"], wanted);
    let merged = r#"{"access_token":{"xms_cc":{"values":["cp1"]},"acrs":{"essential":true,"value":"c7"}}}"#;
    let location = client.visit(&[("claims", merged)]).await.unwrap();
    let reply = client.redeem(&parameter(&location, "code").unwrap(), &[]).await;
    assert_eq!(claims(&reply.token())["xms_cc"][0], "cp1");
    assert_eq!(client.refresh(&reply.text("refresh_token"), &scope).await.status, 200);
    let visit = entra.requests().into_iter().rfind(|request| request.endpoint == "authorize").unwrap();
    assert_eq!(visit.claims.as_deref(), Some(merged));
}

#[tokio::test]
async fn three_hours_of_five_minute_tokens_take_thirty_six_of_them() {
    let client =
        Client::with(Config { rows: 200, token_lifetime: Duration::from_secs(300), ..Config::default() }).await;
    let scope = client.environment_scope();
    let mut reply = client.sign_in().await;
    let mut used = 0;
    for _ in 0..3 * 60 {
        client.simulator.pass_time(Duration::from_secs(60));
        if client.who_am_i(&reply.token()).await.status == 401 {
            reply = client.refresh(&reply.text("refresh_token"), &scope).await;
            used += 1;
            assert_eq!(client.who_am_i(&reply.token()).await.status, 200);
        }
    }
    assert_eq!(used, 36);
}
