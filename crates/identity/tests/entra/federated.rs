//! The token of another issuer: what is presented is named when nothing matches, and a new credential is waited for.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dynavault_identity::{Credential, TokenError};
use dynavault_model::{Clock, Diagnose, FaultKind, chain};
use serde_json::json;

use crate::support::{FakeClock, Service, jwt, refusal, token};

const WINDOW: Duration = Duration::from_secs(10 * 60);

fn credential(file: &Path) -> Credential {
    let claims = json!({"iss": "https://issuer.example/1", "sub": "system:serviceaccount:ns:sa", "aud": ["api://AzureADTokenExchange"]});
    std::fs::write(file, jwt(&claims)).unwrap();
    Credential::WorkloadIdentity { token_file: Some(file.to_owned()) }
}

fn unmatched(code: u64) -> String {
    refusal("401 Unauthorized", "invalid_client", code)
}

#[tokio::test]
async fn a_credential_that_still_spreads_is_asked_for_again() {
    for code in [70_021, 700_211, 700_212, 700_213] {
        let service = Service::start(vec![unmatched(code), unmatched(code), token("T1", 3600)]).await;
        let clock = Arc::<FakeClock>::default();
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(service.source(credential(file.path()), &clock).token().await.unwrap().secret(), "T1", "{code}");
        assert_eq!(clock.sleeps().len(), 2, "{code}");
    }
}

#[tokio::test]
async fn what_was_presented_is_named_and_after_the_window_one_try_is_enough() {
    let service = Service::answering(|_| unmatched(70_021)).await;
    let clock = Arc::<FakeClock>::default();
    let file = tempfile::NamedTempFile::new().unwrap();
    let source = service.source(credential(file.path()), &clock);
    let told = |error: &TokenError| {
        let text = chain(error);
        for part in [
            "AADSTS70021",
            "issuer https://issuer.example/1,",
            "subject system:serviceaccount:ns:sa,",
            "audience api://AzureADTokenExchange",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(error.kind(), FaultKind::SignIn);
        assert!(error.remedy().unwrap().contains("ten minutes"), "{:?}", error.remedy());
    };
    told(&source.token().await.unwrap_err());
    assert_eq!(service.requests().len(), 5);
    // Within the window, and past the minute in which a refusal is repeated.
    clock.advance(Duration::from_secs(61));
    told(&source.token().await.unwrap_err());
    assert_eq!(service.requests().len(), 10);
    clock.advance(WINDOW.saturating_sub(clock.elapsed()));
    told(&source.token().await.unwrap_err());
    assert_eq!(service.requests().len(), 11);
}

#[tokio::test]
async fn a_credential_that_matched_begins_a_new_window() {
    let mut answers = [token("T1", 3600), unmatched(70_021), token("T2", 3600)].into_iter();
    let mut first = Some(unmatched(70_021));
    let service = Service::answering(move |_| first.take().unwrap_or_else(|| answers.next().unwrap())).await;
    let clock = Arc::<FakeClock>::default();
    let file = tempfile::NamedTempFile::new().unwrap();
    let source = service.source(credential(file.path()), &clock);
    let given = source.token().await.unwrap();
    clock.advance(WINDOW * 2);
    source.invalidate(&given);
    assert_eq!(source.token().await.unwrap().secret(), "T2", "taken away and put back");
}
