//! What a client proves itself with: secret, certificate, federated token.

use std::time::Duration;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::{RSA_PSS_SHA256, RsaEncoding};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dynavault_simulator::{Config, IssuedCertificate};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::client::{Client, Reply, claims};

const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

fn sign(certificate: &IssuedCertificate, header: &Value, body: &Value) -> String {
    let key = KeyPair::from_pkcs8(&certificate.private_der).unwrap();
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let head = format!("{}.{}", part(header), part(body));
    let mut signature = vec![0; key.public_modulus_len()];
    let padding: &'static dyn RsaEncoding = &RSA_PSS_SHA256;
    key.sign(padding, &SystemRandom::new(), head.as_bytes(), &mut signature).unwrap();
    format!("{head}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn header(certificate: &IssuedCertificate) -> Value {
    let thumbprint = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &certificate.der);
    json!({"alg": "PS256", "typ": "JWT", "x5t#S256": URL_SAFE_NO_PAD.encode(thumbprint)})
}

fn body(client: &Client, id: &str, from: i64, seconds: i64) -> Value {
    json!({"aud": client.token_url(), "iss": client.client_id(), "sub": client.client_id(), "jti": id,
        "nbf": from, "iat": from, "exp": from + seconds})
}

async fn present(client: &Client, assertion: &str) -> Reply {
    let scope = client.environment_scope();
    let form = [
        ("grant_type", "client_credentials"),
        ("client_assertion_type", ASSERTION_TYPE),
        ("client_assertion", assertion),
        ("scope", &scope),
    ];
    client.token(&form).await
}

fn invalid(code: u64) -> (u16, (String, u64)) {
    (401, ("invalid_client".to_owned(), code))
}

fn told(reply: &Reply) -> (u16, (String, u64)) {
    (reply.status, reply.refusal())
}

#[tokio::test]
async fn a_certificate_signs_an_assertion_that_works_once() {
    let client = Client::new().await;
    let entra = client.simulator.entra();
    let certificate = entra.make_certificate(Duration::from_secs(90 * 86_400));
    let now = Timestamp::now().as_second();
    let assertion = sign(&certificate, &header(&certificate), &body(&client, "one", now, 300));
    assert_eq!(told(&present(&client, &assertion).await), invalid(700_027));
    assert!(entra.register_certificate(&client.client_id(), &certificate.pem));
    let reply = present(&client, &assertion).await;
    assert_eq!(claims(&reply.token())["appidacr"], "2");
    assert_eq!(client.who_am_i(&reply.token()).await.status, 200);
    assert_eq!(told(&present(&client, &assertion).await), invalid(50_012));
    let ids: Vec<_> = entra.requests().into_iter().filter_map(|request| request.assertion_id).collect();
    assert_eq!(ids, ["one", "one", "one"]);
}

#[tokio::test]
async fn assertions_with_a_wrong_part_are_refused() {
    let client = Client::new().await;
    let entra = client.simulator.entra();
    let (certificate, other) =
        (entra.make_certificate(Duration::from_secs(86_400)), entra.make_certificate(Duration::from_secs(86_400)));
    entra.register_certificate(&client.client_id(), &certificate.pem);
    let now = Timestamp::now().as_second();
    let changed = |name: &str, value: Value| {
        let mut body = body(&client, name, now, 300);
        body[name] = value;
        sign(&certificate, &header(&certificate), &body)
    };
    // The thumbprint names the certificate, another key signs.
    let forged = sign(&other, &header(&certificate), &body(&client, "a", now, 300));
    assert_eq!(told(&present(&client, &forged).await), invalid(700_027));
    let mut two = header(&certificate);
    two["x5t"] = json!("also");
    let both = sign(&certificate, &two, &body(&client, "b", now, 300));
    assert_eq!(told(&present(&client, &both).await), invalid(700_027));
    assert_eq!(told(&present(&client, &changed("aud", json!("https://elsewhere.example"))).await), invalid(50_027));
    assert_eq!(told(&present(&client, &changed("sub", json!("somebody"))).await), invalid(50_027));
    assert_eq!(told(&present(&client, &changed("jti", Value::Null)).await), invalid(50_027));
    assert_eq!(told(&present(&client, &changed("exp", json!(now + 601))).await), invalid(700_024));
    assert_eq!(told(&present(&client, "no.jwt").await), invalid(50_027));
    let expired = entra.make_certificate(Duration::ZERO);
    entra.register_certificate(&client.client_id(), &expired.pem);
    let late = sign(&expired, &header(&expired), &body(&client, "c", now, 300));
    assert_eq!(told(&present(&client, &late).await), invalid(1_000_502));
}

#[tokio::test]
async fn an_assertion_must_fit_the_clock_that_the_date_header_shows() {
    let client = Client::new().await;
    let entra = client.simulator.entra();
    let certificate = entra.make_certificate(Duration::from_secs(86_400));
    entra.register_certificate(&client.client_id(), &certificate.pem);
    entra.skew_clock(SignedDuration::from_mins(10));
    let now = Timestamp::now().as_second();
    let assertion = sign(&certificate, &header(&certificate), &body(&client, "own clock", now, 300));
    let reply = present(&client, &assertion).await;
    assert_eq!(told(&reply), invalid(700_024));
    let date = jiff::fmt::rfc2822::parse(reply.header("date")).unwrap().timestamp().as_second();
    assert!((595..=660).contains(&(date - now)), "{}", date - now);
    let assertion = sign(&certificate, &header(&certificate), &body(&client, "their clock", date, 300));
    let token = present(&client, &assertion).await.token();
    let answer = client.who_am_i(&token).await;
    assert_eq!(answer.status, 200);
    assert!(jiff::fmt::rfc2822::parse(answer.header("date")).unwrap().timestamp().as_second() - now >= 595);
}

#[tokio::test]
async fn a_federated_token_counts_where_issuer_subject_and_audience_are_registered() {
    let client = Client::new().await;
    let (entra, id) = (client.simulator.entra(), client.client_id());
    let life = Duration::from_secs(600);
    let token = |issuer: &str, subject: &str, audience: &str| entra.federated_token(issuer, subject, audience, life);
    let good = ("https://oidc.example/cluster", "system:serviceaccount:backup:dynavault", "api://AzureADTokenExchange");
    let text = token(good.0, good.1, good.2);
    assert_eq!(told(&present(&client, &text).await), invalid(70_021));
    entra.trust_federated(&id, good.0, good.1, good.2);
    assert_eq!(present(&client, &text).await.status, 200);
    for (wrong, code) in [
        (token("https://oidc.example", good.1, good.2), 700_211),
        (token(good.0, "system:serviceaccount:backup:other", good.2), 700_213),
        (token(good.0, good.1, "api://AzureADTokenExchangeChina"), 700_212),
    ] {
        let reply = present(&client, &wrong).await;
        assert_eq!(told(&reply), invalid(code));
        assert!(reply.body["error_description"].as_str().unwrap().contains("subject 'system:"));
    }
    client.simulator.pass_time(Duration::from_secs(3_600));
    assert_eq!(told(&present(&client, &text).await), invalid(700_024));
    entra.accept_assertion(&id, "whatever");
    assert_eq!(present(&client, "whatever").await.status, 200);
    let second = token(good.0, good.1, good.2);
    assert_eq!(present(&client, &second).await.status, 200);
    let ids: std::collections::BTreeSet<_> =
        entra.requests().into_iter().filter_map(|request| request.assertion_id).collect();
    assert!(ids.len() >= 5, "{ids:?}");
}

#[tokio::test]
async fn secrets_arrive_intact_expire_and_are_never_shown() {
    let secret = "a&b=c+d%/ ~é";
    let client = Client::with(Config { rows: 200, secret: secret.to_owned(), ..Config::default() }).await;
    let (entra, id) = (client.simulator.entra(), client.client_id());
    assert_eq!(client.app_only(&client.environment_scope()).await.status, 200);
    entra.add_secret(&id, "second", Duration::from_secs(3_600));
    client.simulator.expire_secret();
    let scope = client.environment_scope();
    let refused = client.app_only(&scope).await;
    assert_eq!(told(&refused), invalid(7_000_222));
    client.simulator.renew_secret();
    assert_eq!(client.app_only(&scope).await.status, 200);
    entra.expire_secrets_in(&id, SignedDuration::from_secs(-1));
    assert_eq!(told(&client.app_only(&scope).await), invalid(7_000_222));
    let no_proof = client.token(&[("grant_type", "client_credentials"), ("scope", &scope)]).await;
    assert_eq!(told(&no_proof), invalid(7_000_218));
    assert!(!serde_json::to_string(&entra.requests()).unwrap().contains("a&b"));
    entra.enable_app(&id, false);
    let reply = client.app_only(&scope).await;
    assert_eq!((reply.status, reply.refusal()), (400, ("unauthorized_client".to_owned(), 7_000_112)));
}
