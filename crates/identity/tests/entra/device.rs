//! A person signs in with a code on another device.

use std::sync::Arc;
use std::time::Duration;

use dynavault_identity::{AppIdentity, SignIn, SignInError, TokenFault};
use dynavault_model::{Clock, Diagnose};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::support::{FakeClock, SCOPE, Service, granted, id_claims, refusal, reply};

/// The answer that begins it.
pub(crate) fn code(interval: u64, expires_in: u64) -> String {
    let body = json!({
        "device_code": "DEVICE-SECRET", "user_code": "ABCD-1234", "verification_uri": "https://microsoft.com/devicelogin",
        "expires_in": expires_in, "interval": interval, "message": "To sign in, ...",
    });
    reply("200 OK", "", &body.to_string())
}

fn pending() -> String {
    refusal("400 Bad Request", "authorization_pending", 70_016)
}

fn success() -> String {
    granted("ACCESS-1", Some("REFRESH-1"), &id_claims("none"))
}

async fn finish(identity: AppIdentity, clock: &Arc<FakeClock>) -> Result<(), SignInError> {
    let device = SignIn::new(identity, clock.clone()).unwrap().begin_device(SCOPE).await?;
    assert_eq!((device.user_code(), device.verification_uri()), ("ABCD-1234", "https://microsoft.com/devicelogin"));
    assert!(!format!("{device:?}").contains("SECRET"));
    device.finish(&CancellationToken::new()).await.map(drop)
}

async fn ended(replies: Vec<String>) -> (Result<(), SignInError>, Service, Arc<FakeClock>) {
    let service = Service::start([vec![code(5, 900)], replies].concat()).await;
    let clock = Arc::<FakeClock>::default();
    let result = finish(service.delegated().0, &clock).await;
    (result, service, clock)
}

fn seconds(clock: &FakeClock) -> Vec<u64> {
    clock.sleeps().iter().map(Duration::as_secs).collect()
}

#[tokio::test]
async fn the_service_is_asked_at_its_own_pace_until_the_person_is_done() {
    let (result, service, clock) = ended(vec![pending(), pending(), pending(), success()]).await;
    result.unwrap();
    assert_eq!(seconds(&clock), [5, 5, 5, 5]);
    let requests = service.requests();
    assert!(requests[0].path().ends_with("/oauth2/v2.0/devicecode"));
    assert_eq!(requests[0].field("scope").unwrap(), format!("{SCOPE} offline_access openid profile"));
    assert_eq!(requests[1].field("device_code").as_deref(), Some("DEVICE-SECRET"));
    assert_eq!(requests[1].field("grant_type").as_deref(), Some("urn:ietf:params:oauth:grant-type:device_code"));
}

#[tokio::test]
async fn a_service_that_finds_us_too_fast_is_asked_more_slowly_for_good() {
    let slow = refusal("400 Bad Request", "slow_down", 0);
    let (result, _service, clock) = ended(vec![pending(), slow, pending(), pending(), success()]).await;
    result.unwrap();
    assert_eq!(seconds(&clock), [5, 5, 10, 10, 10]);
}

#[tokio::test]
async fn each_end_is_told_as_what_it_is() {
    let end = |error: &'static str, code: u64| async move {
        ended(vec![pending(), refusal("400 Bad Request", error, code)]).await.0.unwrap_err()
    };
    assert!(matches!(end("expired_token", 70_020).await, SignInError::TimedOut { .. }));
    assert!(matches!(end("authorization_declined", 70_017).await, SignInError::Declined { .. }));
    assert!(matches!(end("access_denied", 70_017).await, SignInError::Declined { .. }));
    for (error, code, fault) in [
        ("bad_verification_code", 70_018, TokenFault::Bug),
        ("access_denied", 53_003, TokenFault::PolicyBlocked),
        ("invalid_grant", 530_035, TokenFault::PolicyBlocked),
        ("invalid_client", 7_000_218, TokenFault::BadConfig),
    ] {
        let got = end(error, code).await;
        let SignInError::Token(refused) = &got else { panic!("{got:?}") };
        assert_eq!(refused.fault(), Some(fault), "{error}");
        if code == 7_000_218 {
            assert!(got.remedy().unwrap().contains("Allow public client flows"), "{:?}", got.remedy());
        }
        if code == 53_003 {
            assert!(refused.to_string().contains("correlation id co-1"), "{refused}");
        }
    }
}

#[tokio::test]
async fn trouble_on_the_way_is_survived_while_the_code_lasts() {
    let trouble = refusal("503 Service Unavailable", "server_error", 90_033);
    let throttled = reply("429 Too Many Requests", "retry-after: 30\r\n", r#"{"error":"temporarily_unavailable"}"#);
    let dropped = String::new();
    let (result, _service, clock) = ended(vec![pending(), trouble, dropped, throttled, pending(), success()]).await;
    result.unwrap();
    assert_eq!(seconds(&clock), [5, 5, 10, 20, 30, 20]);
}

#[tokio::test]
async fn the_deadline_does_not_move_when_the_clock_is_set_back() {
    let service = {
        let mut first = true;
        Service::answering(move |_| if std::mem::take(&mut first) { code(5, 60) } else { pending() }).await
    };
    let clock = Arc::<FakeClock>::default();
    let sign_in = SignIn::new(service.delegated().0, clock.clone()).unwrap();
    let device = sign_in.begin_device(SCOPE).await.unwrap();
    clock.set_wall(-3600);
    let error = device.finish(&CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, SignInError::TimedOut { .. }), "{error:?}");
    assert_eq!(clock.elapsed(), Duration::from_secs(60));
}

#[tokio::test]
async fn waiting_can_be_cancelled() {
    let service = Service::start(vec![code(5, 900)]).await;
    let clock = Arc::<FakeClock>::default();
    let device = SignIn::new(service.delegated().0, clock).unwrap().begin_device(SCOPE).await.unwrap();
    let cancel = CancellationToken::new();
    cancel.cancel();
    assert!(matches!(device.finish(&cancel).await.unwrap_err(), SignInError::Cancelled { .. }));
    assert_eq!(service.requests().len(), 1);
}
