//! The identity of the machine: where there is no metadata service that is known at once, and one in trouble is asked again
//! at its own pace.

use std::sync::Arc;
use std::time::Duration;

use dynavault_identity::{Credential, TokenError, token_source};
use dynavault_model::{Clock, Diagnose, FaultKind, chain};
use tokio::net::TcpListener;
use url::Url;

use crate::support::{FakeClock, SCOPE, Service, identity, reply};

const MACHINE: Credential = Credential::ManagedIdentity { client_id: None };

#[tokio::test]
async fn a_machine_without_metadata_service_is_known_after_one_try() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let clock = Arc::<FakeClock>::default();
    let authority = Url::parse(&format!("http://{closed}")).unwrap();
    let source = token_source(identity(MACHINE, authority), SCOPE.into(), clock.clone()).unwrap();
    let error = source.token().await.unwrap_err();
    assert!(matches!(&error, TokenError::Local { .. }), "{error:?}");
    assert!(chain(&error).contains("no metadata service here"), "{}", chain(&error));
    assert_eq!((clock.sleeps().len(), error.kind()), (0, FaultKind::SignIn));
}

#[tokio::test]
async fn trouble_of_the_metadata_service_is_ridden_out_at_its_pace() {
    let given = reply("200 OK", "", r#"{"access_token":"M1","expires_in":"86399","expires_on":"981259506"}"#);
    let trouble = |status: &str| reply(status, "", r#"{"error":"x"}"#);
    let replies = vec![
        trouble("404 Not Found"),
        trouble("429 Too Many Requests"),
        trouble("500 Internal Server Error"),
        trouble("503 Service Unavailable"),
        given,
    ];
    let service = Service::start(replies).await;
    let clock = Arc::<FakeClock>::default();
    assert_eq!(service.source(MACHINE, &clock).token().await.unwrap().secret(), "M1");
    let seconds: Vec<u64> = clock.sleeps().iter().map(Duration::as_secs).collect();
    assert_eq!(seconds, [2, 4, 8, 16]);
}

#[tokio::test]
async fn an_answer_with_no_more_than_is_promised_is_enough() {
    for answer in [
        r#"{"access_token":"M1","token_type":"Bearer","expires_in":3599}"#,
        r#"{"access_token":"M1","token_type":"Bearer","expires_in":"3599","expires_on":981259506}"#,
        r#"{"access_token":"M1","expires_in":"3599","expires_on":"02/03/2001 05:05:05 +00:00"}"#,
    ] {
        let service = Service::start(vec![reply("200 OK", "", answer)]).await;
        let clock = Arc::<FakeClock>::default();
        let given = service.source(MACHINE, &clock).token().await.unwrap();
        assert_eq!((given.secret(), given.expires_on()), ("M1", clock.now() + Duration::from_secs(3599)), "{answer}");
    }
}

#[tokio::test]
async fn a_refusal_of_the_metadata_service_is_final() {
    let refused =
        reply("400 Bad Request", "", r#"{"error":"invalid_request","error_description":"Identity not found"}"#);
    let service = Service::start(vec![refused]).await;
    let clock = Arc::<FakeClock>::default();
    let error = service.source(MACHINE, &clock).token().await.unwrap_err();
    assert!(error.remedy().unwrap().contains("managed identity"), "{error:?}");
    assert_eq!(service.requests().len(), 1);
}
