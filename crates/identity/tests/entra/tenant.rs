//! Tenants by name: the GUID behind a domain is learned once, and tokens of another tenant are never used.

use std::sync::Arc;

use dynavault_identity::{AppIdentity, Credential, SecretString, TokenError, TokenFault, TokenSource, token_source};
use dynavault_model::{Diagnose, FaultKind};
use serde_json::json;

use crate::support::{FakeClock, Request, SCOPE, Service, TENANT, identity, jwt, refusal, reply, token};

fn source(service: &Service, tenant: &str) -> Arc<dyn TokenSource> {
    let credential = Credential::ClientSecret { secret: SecretString::from("secret") };
    let identity = AppIdentity { tenant: tenant.into(), ..identity(credential, service.authority()) };
    token_source(identity, SCOPE.into(), Arc::<FakeClock>::default()).unwrap()
}

fn metadata(tenant: &str) -> String {
    reply("200 OK", "", &json!({"issuer": format!("https://login.example/{tenant}/v2.0"), "more": 1}).to_string())
}

fn is_metadata(request: &Request) -> bool {
    request.path().ends_with("/v2.0/.well-known/openid-configuration")
}

#[tokio::test]
async fn a_domain_becomes_its_guid_once() {
    let service = Service::answering(|request| {
        if is_metadata(request) { metadata(TENANT) } else { token(&jwt(&json!({"tid": TENANT})), 3600) }
    })
    .await;
    let source = source(&service, "contoso.com");
    let given = source.token().await.unwrap();
    source.invalidate(&given);
    source.token().await.unwrap();
    let paths: Vec<String> = service.requests().iter().map(|request| request.path().to_owned()).collect();
    let asked = format!("/{TENANT}/oauth2/v2.0/token");
    assert_eq!(paths, ["/contoso.com/v2.0/.well-known/openid-configuration", &asked, &asked]);
}

#[tokio::test]
async fn a_token_of_another_tenant_than_the_domains_is_not_used() {
    let other = "00000000-2222-3333-4444-555555555555";
    let service = Service::answering(move |request| {
        if is_metadata(request) { metadata(TENANT) } else { token(&jwt(&json!({"tid": other})), 3600) }
    })
    .await;
    let error = source(&service, "contoso.com").token().await.unwrap_err();
    assert!(matches!(&error, TokenError::Foreign { what: "tenant", .. }), "{error:?}");
}

#[tokio::test]
async fn an_unknown_domain_and_a_word_that_is_none_have_different_advice() {
    let mut advice = Vec::new();
    for (tenant, code) in [("nowhere.example", 90_002), ("contoso", 900_023)] {
        let service = Service::start(vec![refusal("400 Bad Request", "invalid_tenant", code)]).await;
        let error = source(&service, tenant).token().await.unwrap_err();
        assert_eq!((error.fault(), error.kind()), (Some(TokenFault::BadConfig), FaultKind::SignIn));
        assert!(error.to_string().contains(&format!("AADSTS{code}")) && error.to_string().contains(tenant), "{error}");
        advice.push(error.remedy().unwrap());
    }
    assert!(advice[0].contains("cloud") && advice[1].contains("domains"), "{advice:?}");
}

#[tokio::test]
async fn a_service_without_metadata_is_asked_by_name_and_one_in_trouble_again() {
    let service =
        Service::answering(
            |request| {
                if is_metadata(request) { reply("404 Not Found", "", "<html>") } else { token("T1", 3600) }
            },
        )
        .await;
    assert_eq!(source(&service, "contoso.com").token().await.unwrap().secret(), "T1");
    assert_eq!(service.requests()[1].path(), "/contoso.com/oauth2/v2.0/token");
    let trouble = reply("503 Service Unavailable", "", "");
    let service = Service::start(vec![trouble, metadata(TENANT), token("T2", 3600)]).await;
    assert_eq!(source(&service, "contoso.com").token().await.unwrap().secret(), "T2");
}
