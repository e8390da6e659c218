//! Apps that sign in by themselves: secret, certificate, federated token, the identity of the machine.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dynavault_identity::{
    ClaimsChallenge, ClientCertificate, Credential, SecretString, TokenError, TokenFault, token_source,
};
use dynavault_model::{Clock, Diagnose, FaultKind, chain};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use url::Url;

use crate::support::{FakeClock, SCOPE, Service, TENANT, identity, jwt, refusal, reply, token};

const SECRET: &str = "a&b=c+d%/SECRET";

fn secret() -> Credential {
    Credential::ClientSecret { secret: SecretString::from(SECRET) }
}

fn certificate() -> Credential {
    let pem = include_bytes!("../keys/client.pem");
    Credential::ClientCertificate { certificate: Arc::new(ClientCertificate::parse(pem, None).unwrap()) }
}

#[tokio::test]
async fn the_secret_arrives_intact_and_is_never_shown() {
    let service = Service::start(vec![token("T1", 3600)]).await;
    let clock = Arc::<FakeClock>::default();
    let source = service.source(secret(), &clock);
    let given = source.token().await.unwrap();
    assert_eq!(given.secret(), "T1");
    assert_eq!(given.expires_on(), clock.now() + Duration::from_secs(3600));
    assert_eq!(source.name(), "contoso-ce");
    let request = service.requests().remove(0).text;
    assert!(request.starts_with("POST /11111111-2222-3333-4444-555555555555/oauth2/v2.0/token "), "{request}");
    assert!(request.contains("client_secret=a%26b%3Dc%2Bd%25%2FSECRET"), "{request}");
    assert!(request.contains("scope=https%3A%2F%2Fcontoso.crm.dynamics.com%2F.default"), "{request}");
    let shown = format!("{source:?} {given:?} {:?}", secret());
    assert!(!shown.contains("SECRET") && !shown.contains("T1"), "{shown}");
}

#[tokio::test]
async fn a_token_is_kept_until_shortly_before_it_expires() {
    let service = Service::start(vec![token("T1", 3600), token("T2", 3600)]).await;
    let clock = Arc::<FakeClock>::default();
    let source = service.source(secret(), &clock);
    assert_eq!(source.token().await.unwrap().secret(), "T1");
    // The margin is a tenth of an hour, give or take a tenth of that.
    clock.advance(Duration::from_secs(3600 - 400));
    assert_eq!(source.token().await.unwrap().secret(), "T1");
    clock.advance(Duration::from_secs(400 - 320));
    assert_eq!(source.token().await.unwrap().secret(), "T2");
    assert_eq!(service.requests().len(), 2);
}

#[tokio::test]
async fn a_hundred_callers_make_one_request_and_one_of_them_leaving_disturbs_nobody() {
    let service = Service::start(vec![token("T1", 3600)]).await;
    let clock = Arc::<FakeClock>::default();
    let source = service.source(secret(), &clock);
    let mut callers = JoinSet::new();
    for _ in 0..100 {
        let source = Arc::clone(&source);
        callers.spawn(async move { source.token().await.unwrap().secret().to_owned() });
    }
    let leaver = tokio::time::timeout(Duration::ZERO, source.token()).await;
    drop(leaver);
    for name in callers.join_all().await {
        assert_eq!(name, "T1");
    }
    assert_eq!(service.requests().len(), 1);
}

#[tokio::test]
async fn a_refused_token_is_dropped_only_if_it_is_still_the_current_one() {
    let service = Service::start(vec![token("T1", 3600), token("T2", 3600)]).await;
    let clock = Arc::<FakeClock>::default();
    let source = service.source(secret(), &clock);
    let first = source.token().await.unwrap();
    source.invalidate(&first);
    assert_eq!(source.token().await.unwrap().secret(), "T2");
    source.invalidate(&first);
    assert_eq!(source.token().await.unwrap().secret(), "T2");
}

#[tokio::test]
async fn an_expired_secret_is_said_once_and_not_asked_again_for_a_minute() {
    let refused = refusal("401 Unauthorized", "invalid_client", 7_000_222);
    let service = Service::start(vec![refused, token("T1", 3600)]).await;
    let clock = Arc::<FakeClock>::default();
    let source = service.source(secret(), &clock);
    for _ in 0..3 {
        let error = source.token().await.unwrap_err();
        assert!(matches!(error, TokenError::Refused { fault: TokenFault::BadCredential, .. }), "{error:?}");
        assert_eq!(error.kind(), FaultKind::SignIn);
        assert_eq!(
            chain(&error),
            "profile contoso-ce could not sign in: the client secret of app app-1 has expired: AADSTS7000222 \
             (trace id tr-1, correlation id co-1, timestamp 2031-02-03 04:05:06Z)"
        );
        assert!(error.remedy().unwrap().contains("create a new client secret"));
    }
    assert_eq!(service.requests().len(), 1);
    clock.advance(Duration::from_secs(61));
    assert_eq!(source.token().await.unwrap().secret(), "T1");
}

#[tokio::test]
async fn throttling_waits_as_long_as_asked_and_trouble_is_ridden_out() {
    let throttled = reply("429 Too Many Requests", "retry-after: 7\r\n", r#"{"error":"temporarily_unavailable"}"#);
    let page = reply("502 Bad Gateway", "", "<html>proxy</html>");
    let service = Service::start(vec![throttled, page, token("T1", 3600)]).await;
    let clock = Arc::<FakeClock>::default();
    assert_eq!(service.source(secret(), &clock).token().await.unwrap().secret(), "T1");
    let waited = clock.elapsed();
    assert!((Duration::from_secs(7)..=Duration::from_secs(9)).contains(&waited), "{waited:?}");
}

#[tokio::test]
async fn tries_end_at_their_limit() {
    let service = Service::start(vec![refusal("503 Service Unavailable", "server_error", 90_033); 5]).await;
    let clock = Arc::<FakeClock>::default();
    let error = service.source(secret(), &clock).token().await.unwrap_err();
    assert!(chain(&error).starts_with("gave up signing in profile contoso-ce after 5 tries"), "{}", chain(&error));
    assert_eq!(error.kind(), FaultKind::SignIn);
    let long = reply("429 Too Many Requests", "retry-after: 3600\r\n", "{}");
    let service = Service::start(vec![long]).await;
    let error = service.source(secret(), &clock).token().await.unwrap_err();
    assert_eq!(error.kind(), FaultKind::SignIn);
}

#[tokio::test]
async fn a_failed_renewal_is_only_a_warning_while_the_token_lasts() {
    let trouble = refusal("503 Service Unavailable", "server_error", 90_033);
    let service = Service::start(vec![token("T1", 3600), trouble, token("T2", 3600)]).await;
    let clock = Arc::<FakeClock>::default();
    let source = service.source(secret(), &clock);
    source.token().await.unwrap();
    clock.advance(Duration::from_secs(3600 - 300));
    assert_eq!(source.token().await.unwrap().secret(), "T1");
    assert_eq!(source.token().await.unwrap().secret(), "T1");
    assert_eq!(service.requests().len(), 2, "a failed renewal is not repeated at once");
    clock.advance(Duration::from_secs(61));
    assert_eq!(source.token().await.unwrap().secret(), "T2");
}

#[tokio::test]
async fn a_page_with_status_200_is_not_a_token() {
    for body in
        ["<html>Sign in to the hotel network</html>", r#"{"hello":1}"#, r#"{"access_token":"SECRET","expires_in":"x"}"#]
    {
        let service = Service::start(vec![reply("200 OK", "", body); 5]).await;
        let clock = Arc::<FakeClock>::default();
        let error = service.source(secret(), &clock).token().await.unwrap_err();
        assert!(chain(&error).ends_with("the answer is not a token"), "{}", chain(&error));
        assert!(!format!("{error:?}").contains("SECRET"));
    }
}

#[tokio::test]
async fn an_unreachable_service_is_named() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let clock = Arc::<FakeClock>::default();
    let authority = Url::parse(&format!("http://{closed}")).unwrap();
    let source = token_source(identity(secret(), authority), SCOPE.into(), clock).unwrap();
    let error = source.token().await.unwrap_err();
    assert!(chain(&error).contains("no connection: Connection refused"), "{}", chain(&error));
    assert!(error.remedy().unwrap().contains("127.0.0.1"));
}

#[tokio::test]
async fn a_federated_token_file_is_read_for_every_request() {
    let service = Service::start(vec![token("T1", 3600), token("T2", 3600)]).await;
    let clock = Arc::<FakeClock>::default();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let source = service.source(Credential::WorkloadIdentity { token_file: Some(file.clone()) }, &clock);
    let error = source.token().await.unwrap_err();
    assert!(error.remedy().unwrap().contains("token file"), "{error:?}");
    for content in ["first", "second"] {
        clock.advance(Duration::from_secs(61));
        std::fs::write(&file, content).unwrap();
        let given = source.token().await.unwrap();
        source.invalidate(&given);
    }
    let requests = service.requests();
    for (request, content) in requests.iter().zip(["first", "second"]) {
        assert_eq!(request.field("client_assertion").as_deref(), Some(content));
    }
}

#[tokio::test]
async fn a_managed_identity_is_asked_through_the_metadata_address() {
    let updating = reply("410 Gone", "", r#"{"error":"gone"}"#);
    let given = reply(
        "200 OK",
        "",
        r#"{"access_token":"M1","expires_in":"86399","expires_on":"981259506","resource":"x","token_type":"Bearer"}"#,
    );
    let service = Service::start(vec![updating, given]).await;
    let clock = Arc::<FakeClock>::default();
    let source = service.source(Credential::ManagedIdentity { client_id: Some("mi-1".into()) }, &clock);
    let given = source.token().await.unwrap();
    assert_eq!(given.expires_on(), clock.now() + Duration::from_secs(86399));
    let request = service.requests().remove(1).text.to_ascii_lowercase();
    assert!(request.starts_with("get /metadata/identity/oauth2/token?api-version="), "{request}");
    assert!(request.contains("client_id=mi-1") && request.contains("\r\nmetadata: true"), "{request}");
    assert!(request.contains("resource=https%3a%2f%2fcontoso.crm.dynamics.com&"), "{request}");
}

#[test]
fn plain_http_to_another_machine_is_refused() {
    for authority in ["http://login.example.com", "http://10.0.0.1:80", "ftp://localhost"] {
        let identity = identity(secret(), Url::parse(authority).unwrap());
        let error = token_source(identity, SCOPE.into(), Arc::<FakeClock>::default()).unwrap_err();
        assert_eq!(error.kind(), FaultKind::Usage, "{authority}");
    }
    let mut malformed = identity(secret(), Url::parse("https://login.microsoftonline.com").unwrap());
    malformed.tenant = "not a tenant".into();
    let error = token_source(malformed, SCOPE.into(), Arc::<FakeClock>::default()).unwrap_err();
    assert_eq!(error.kind(), FaultKind::Usage);
}

#[tokio::test]
async fn a_certificate_signs_a_new_assertion_for_each_request() {
    let service = Service::start(vec![token("T1", 3600), token("T2", 3600)]).await;
    let clock = Arc::<FakeClock>::default();
    let source = service.source(certificate(), &clock);
    let given = source.token().await.unwrap();
    source.invalidate(&given);
    assert_eq!(source.token().await.unwrap().secret(), "T2");
    let ids: Vec<String> = service
        .requests()
        .iter()
        .map(|request| {
            assert_eq!(request.field("grant_type").as_deref(), Some("client_credentials"));
            assert_eq!(
                request.field("client_assertion_type").as_deref(),
                Some("urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
            );
            let payload = payload(&request.field("client_assertion").unwrap());
            assert_eq!(payload["aud"], format!("http://{}/{TENANT}/oauth2/v2.0/token", service.address));
            assert!(payload["exp"].as_i64().unwrap() - payload["nbf"].as_i64().unwrap() <= 600);
            payload["jti"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_ne!(ids[0], ids[1]);
}

fn payload(jwt: &str) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(jwt.split('.').nth(1).unwrap()).unwrap()).unwrap()
}

#[tokio::test]
async fn a_wrong_clock_is_learned_from_the_service_and_its_time_is_used() {
    // The service is ten minutes ahead and refuses what ended before its own time.
    let date = "Date: Sat, 03 Feb 2001 04:15:06 GMT\r\n";
    let theirs = "2001-02-03T04:15:06Z".parse::<jiff::Timestamp>().unwrap().as_second();
    let service = Service::answering(move |request| {
        let payload = payload(&request.field("client_assertion").unwrap());
        let valid = payload["nbf"].as_i64().unwrap() <= theirs && theirs < payload["exp"].as_i64().unwrap();
        if valid {
            reply("200 OK", date, r#"{"access_token":"T1","expires_in":3600}"#)
        } else {
            reply("401 Unauthorized", date, r#"{"error":"invalid_client","error_codes":[700024]}"#)
        }
    })
    .await;
    let clock = Arc::<FakeClock>::default();
    assert_eq!(service.source(certificate(), &clock).token().await.unwrap().secret(), "T1");
    assert_eq!(service.requests().len(), 2);
}

#[tokio::test]
async fn an_expired_certificate_is_refused_before_anything_is_sent() {
    let service = Service::start(Vec::new()).await;
    let clock = Arc::<FakeClock>::default();
    // The certificate of the tests lasts a hundred years; this is later.
    clock.advance(Duration::from_secs(150 * 365 * 24 * 3600));
    let error = token_source(identity(certificate(), service.authority()), SCOPE.into(), clock).unwrap_err();
    assert!(error.to_string().contains("its certificate expired at 2126-"), "{error}");
    assert!(error.remedy().unwrap().contains("create a new certificate"));
}

#[tokio::test]
async fn an_assertion_that_stays_refused_is_refused_once() {
    let service = Service::start(vec![refusal("401 Unauthorized", "invalid_client", 700_027)]).await;
    let clock = Arc::<FakeClock>::default();
    let error = service.source(certificate(), &clock).token().await.unwrap_err();
    assert_eq!(error.fault(), Some(TokenFault::BadCredential));
    assert!(error.remedy().unwrap().contains("upload the certificate"));
}

#[tokio::test]
async fn a_token_for_another_tenant_or_app_is_never_used() {
    let other = "00000000-2222-3333-4444-555555555555";
    for claims in [json!({"tid": other}), json!({"tid": TENANT, "appid": "app-2"}), json!({"azp": "app-2"})] {
        let service = Service::start(vec![token(&jwt(&claims), 3600)]).await;
        let clock = Arc::<FakeClock>::default();
        let error = service.source(secret(), &clock).token().await.unwrap_err();
        assert!(matches!(error, TokenError::Foreign { .. }), "{error:?}");
        assert_eq!(error.kind(), FaultKind::SignIn);
    }
    let ours = jwt(&json!({"tid": TENANT.to_ascii_uppercase(), "appid": "APP-1"}));
    let service = Service::start(vec![token(&ours, 3600)]).await;
    assert!(service.source(secret(), &Arc::<FakeClock>::default()).token().await.is_ok());
}

#[tokio::test]
async fn a_challenge_is_answered_by_the_next_request_and_only_by_that() {
    let service = Service::start(vec![token("T1", 3600), token("T2", 3600), token("T3", 3600)]).await;
    let clock = Arc::<FakeClock>::default();
    let source = service.source(secret(), &clock);
    let first = source.token().await.unwrap();
    let claims = ClaimsChallenge::from_json(r#"{"access_token":{"nbf":{"essential":true,"value":"1"}}}"#).unwrap();
    source.challenge(&first, &claims);
    let second = source.token().await.unwrap();
    // Somebody who still holds the first token is told the same; the second one is not thrown away for that.
    source.challenge(&first, &claims);
    assert_eq!(source.token().await.unwrap(), second);
    source.invalidate(&second);
    source.token().await.unwrap();
    let sent: Vec<Option<String>> = service.requests().iter().map(|request| request.field("claims")).collect();
    let expected = r#"{"access_token":{"nbf":{"essential":true,"value":"1"},"xms_cc":{"values":["cp1"]}}}"#;
    assert_eq!(sent, [None, Some(expected.to_owned()), None]);
}

#[tokio::test]
async fn challenges_are_declared_to_graph_only() {
    let service = Service::start(vec![token("G", 3600)]).await;
    let scope = "https://graph.microsoft.com/.default".to_owned();
    let clock = Arc::<FakeClock>::default();
    token_source(identity(secret(), service.authority()), scope, clock).unwrap().token().await.unwrap();
    let sent = service.requests().remove(0).field("claims");
    assert_eq!(sent.as_deref(), Some(r#"{"access_token":{"xms_cc":{"values":["cp1"]}}}"#));
}

#[tokio::test]
async fn a_token_from_before_consent_is_not_used_for_what_was_consented() {
    let refused = refusal("400 Bad Request", "invalid_grant", 65_001);
    let service =
        Service::start(vec![token("BEFORE", 3600), token("AFTER", 3600), refused, token("LATER", 3600)]).await;
    let clock = Arc::<FakeClock>::default();
    let source = service.source(secret(), &clock);
    assert_eq!(source.token().await.unwrap().secret(), "BEFORE");
    assert_eq!(source.fresh_token().await.unwrap().secret(), "AFTER");
    assert_eq!(source.token().await.unwrap().secret(), "AFTER");
    // A refusal from before is not repeated either.
    let error = source.fresh_token().await.unwrap_err();
    assert_eq!(error.fault(), Some(TokenFault::ConsentNeeded));
    let address = format!("http://{}/{TENANT}/v2.0/adminconsent?client_id=app-1&", service.address);
    assert!(error.remedy().unwrap().contains(&address), "{:?}", error.remedy());
    assert_eq!(source.fresh_token().await.unwrap().secret(), "LATER");
}

#[tokio::test]
async fn a_token_is_renewed_when_a_tenth_of_its_life_remains() {
    for (left, renewed) in [(299, true), (301, true), (400, false)] {
        let service = Service::start(vec![token("T1", 3600), token("T2", 3600)]).await;
        let clock = Arc::<FakeClock>::default();
        let source = service.source(secret(), &clock);
        source.token().await.unwrap();
        clock.advance(Duration::from_secs(3600 - left));
        assert_eq!(source.token().await.unwrap().secret() == "T2", renewed, "{left}");
    }
}

#[tokio::test]
async fn an_endless_answer_is_refused() {
    let service = Service::start(vec![token(&"A".repeat(1024 * 1024), 3600); 5]).await;
    let error = service.source(secret(), &Arc::<FakeClock>::default()).token().await.unwrap_err();
    assert!(chain(&error).ends_with("the answer is not a token"), "{}", chain(&error));
}
