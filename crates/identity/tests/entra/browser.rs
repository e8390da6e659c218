//! A person signs in with a browser on this machine.

use std::sync::Arc;

use dynavault_identity::{
    AppIdentity, ClaimsChallenge, Cloud, CodeSignIn, Prompt, SignIn, SignInError, SignInOptions, SignedIn, TokenError,
    TokenFault, token_source,
};
use dynavault_model::{Diagnose, FaultKind};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::support::{
    FakeClock, PERSON, RealClock, SCOPE, Service, TENANT, browse, granted, id_claims, identity, jwt, parameter, person,
    refusal, reply,
};

fn options() -> SignInOptions {
    SignInOptions { scope: SCOPE.into(), ..SignInOptions::default() }
}

async fn begin(identity: AppIdentity) -> CodeSignIn {
    SignIn::new(identity, RealClock::start()).unwrap().begin_code(options()).await.unwrap()
}

/// A sign-in on its way, and what a browser needs to know of it.
struct Waiting {
    finish: JoinSet<Result<SignedIn, SignInError>>,
    url: Url,
    port: u16,
    state: String,
    cancel: CancellationToken,
}

impl Waiting {
    fn new(code: CodeSignIn) -> Self {
        let url = code.url().clone();
        let port = Url::parse(&parameter(&url, "redirect_uri").unwrap()).unwrap().port().unwrap();
        let state = parameter(&url, "state").unwrap();
        let cancel = CancellationToken::new();
        let mut finish = JoinSet::new();
        let token = cancel.clone();
        finish.spawn(async move { code.finish(&token).await });
        Self { finish, url, port, state, cancel }
    }

    async fn end(mut self) -> Result<SignedIn, SignInError> {
        self.finish.join_next().await.unwrap().unwrap()
    }
}

/// Answers the token request of a sign-in whose nonce it is told later.
async fn service() -> (Service, Arc<std::sync::Mutex<String>>) {
    let nonce = Arc::<std::sync::Mutex<String>>::default();
    let told = Arc::clone(&nonce);
    let service =
        Service::answering(move |_| granted("ACCESS-1", Some("REFRESH-1"), &id_claims(&told.lock().unwrap()))).await;
    (service, nonce)
}

#[tokio::test]
async fn the_right_redirect_ends_the_wait_and_nothing_else_does() {
    let (service, nonce) = service().await;
    let (identity, store) = service.delegated();
    let waiting = Waiting::new(begin(identity.clone()).await);
    *nonce.lock().unwrap() = parameter(&waiting.url, "nonce").unwrap();
    let (port, state) = (waiting.port, waiting.state.clone());

    // An idle connection, as browsers open them in advance, holds up nobody.
    let _idle = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    for stranger in [
        "/".to_owned(),
        format!("/other?code=c&state={state}"),
        "/?code=c&state=wrong".to_owned(),
        "/?code=c".to_owned(),
        format!("/?state={state}"),
        format!("/?code=&state={state}"),
        format!("/?code=a&code=b&state={state}"),
        format!("/?code=a&state={state}&state={state}"),
    ] {
        let answer = browse("127.0.0.1", port, &stranger).await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{stranger}: {answer}");
    }
    let done = browse("127.0.0.1", port, &format!("/?code=CODE-1&state={state}&session_state=x")).await;
    assert!(done.starts_with("HTTP/1.1 200 "), "{done}");
    assert!(done.contains("Cache-Control: no-store") && done.contains("default-src 'none'"), "{done}");
    assert!(!done.contains("CODE-1") && !done.contains(&state), "{done}");

    let redirect = parameter(&waiting.url, "redirect_uri").unwrap();
    let url = waiting.url.clone();
    let signed_in = waiting.end().await.unwrap();
    assert_eq!((signed_in.tenant.as_str(), signed_in.object_id.as_str()), (TENANT, PERSON));
    assert_eq!(signed_in.user_name.as_deref(), Some("ada@contoso.com"));
    assert!(tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err(), "the port is still open");

    // What was asked in the browser is redeemed byte for byte, and the verifier belongs to the challenge.
    assert_eq!(url.path(), format!("/{TENANT}/oauth2/v2.0/authorize"));
    assert_eq!(parameter(&url, "scope").unwrap(), format!("{SCOPE} offline_access openid profile"));
    assert_eq!(parameter(&url, "code_challenge_method").unwrap(), "S256");
    assert_eq!(parameter(&url, "prompt").unwrap(), "select_account");
    assert_eq!(parameter(&url, "claims"), None);
    let request = service.requests().remove(0);
    assert_eq!(request.field("redirect_uri").unwrap(), redirect);
    assert_eq!(request.field("code").unwrap(), "CODE-1");
    assert_eq!(request.field("code_verifier").unwrap().len(), 43);
    assert_eq!(request.field("client_secret"), None);

    // The token of the sign-in is there for the sources, without another request.
    let source = token_source(identity.clone(), SCOPE.into(), RealClock::start()).unwrap();
    assert_eq!(source.token().await.unwrap().secret(), "ACCESS-1");
    assert_eq!(service.requests().len(), 1);
    let sign_in = SignIn::new(identity, RealClock::start()).unwrap();
    assert_eq!(sign_in.current().await.unwrap().unwrap().user_name(), Some("ada@contoso.com"));
    assert!(sign_in.sign_out().await.unwrap() && sign_in.current().await.unwrap().is_none());
    drop(store);
}

#[tokio::test]
async fn both_addresses_of_this_machine_are_listened_on() {
    let has_six = TcpListener::bind("[::1]:0").await.is_ok();
    for host in ["127.0.0.1", "::1"].into_iter().take(if has_six { 2 } else { 1 }) {
        let (service, nonce) = service().await;
        let waiting = Waiting::new(begin(service.delegated().0).await);
        *nonce.lock().unwrap() = parameter(&waiting.url, "nonce").unwrap();
        let answer = browse(host, waiting.port, &format!("/?code=c&state={}", waiting.state)).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{host}: {answer}");
        waiting.end().await.unwrap();
    }
}

#[tokio::test]
async fn a_refusal_of_the_person_is_told_clean_and_that_of_a_policy_as_what_it_is() {
    let service = Service::start(Vec::new()).await;
    let waiting = Waiting::new(begin(service.delegated().0).await);
    let target = format!(
        "/?error=access_denied&error_description=AADSTS65004%3A+User+declined%0d%0a%1b%5b31mred&state={}",
        waiting.state
    );
    let page = browse("127.0.0.1", waiting.port, &target).await;
    assert!(!page.contains("declined"), "{page}");
    let error = waiting.end().await.unwrap_err();
    let SignInError::Declined { description, .. } = &error else { panic!("{error:?}") };
    assert!(description.starts_with("AADSTS65004: User declined") && !description.contains(char::is_control));
    assert_eq!(error.kind(), FaultKind::SignIn);

    let waiting = Waiting::new(begin(service.delegated().0).await);
    let target = format!("/?error=access_denied&error_description=AADSTS53003%3A+Blocked&state={}", waiting.state);
    browse("127.0.0.1", waiting.port, &target).await;
    let error = waiting.end().await.unwrap_err();
    assert!(
        matches!(&error, SignInError::Token(error) if error.fault() == Some(TokenFault::PolicyBlocked)),
        "{error:?}"
    );

    let waiting = Waiting::new(begin(service.delegated().0).await);
    let target = format!("/?error=consent_required&error_description=AADSTS90094%3A+Admin&state={}", waiting.state);
    browse("127.0.0.1", waiting.port, &target).await;
    let error = waiting.end().await.unwrap_err();
    assert!(error.remedy().unwrap().contains("/v2.0/adminconsent?client_id=app-1"), "{error:?}");
}

#[tokio::test]
async fn waiting_ends_in_time_or_at_once_when_cancelled_and_frees_the_port() {
    let service = Service::start(Vec::new()).await;
    // This clock passes five minutes in no time.
    let clock = Arc::<FakeClock>::default();
    let code = SignIn::new(service.delegated().0, clock).unwrap().begin_code(options()).await.unwrap();
    let waiting = Waiting::new(code);
    let port = waiting.port;
    let error = waiting.end().await.unwrap_err();
    assert!(matches!(error, SignInError::TimedOut { .. }), "{error:?}");
    assert!(TcpListener::bind(("127.0.0.1", port)).await.is_ok());

    let waiting = Waiting::new(begin(service.delegated().0).await);
    let port = waiting.port;
    waiting.cancel.cancel();
    let error = waiting.end().await.unwrap_err();
    assert!(matches!(error, SignInError::Cancelled { .. }), "{error:?}");
    assert_eq!(error.kind(), FaultKind::Cancelled);
    assert!(TcpListener::bind(("127.0.0.1", port)).await.is_ok());
}

#[tokio::test]
async fn an_identity_token_for_somebody_else_is_refused() {
    let other = "00000000-2222-3333-4444-555555555555";
    for (member, value) in [
        ("nonce", json!("wrong")),
        ("nonce", json!(null)),
        ("aud", json!("app-2")),
        ("tid", json!(other)),
        ("tid", json!(null)),
        ("iss", json!(format!("https://login.microsoftonline.com/{other}/v2.0"))),
        ("exp", json!(1_000_000_000)),
        ("oid", json!(null)),
    ] {
        let nonce = Arc::<std::sync::Mutex<String>>::default();
        let told = Arc::clone(&nonce);
        let changed = value.clone();
        let service = Service::answering(move |_| {
            let mut claims = id_claims(&told.lock().unwrap());
            claims[member] = changed.clone();
            granted("ACCESS-1", Some("REFRESH-1"), &claims)
        })
        .await;
        let (identity, _store) = service.delegated();
        let waiting = Waiting::new(begin(identity.clone()).await);
        *nonce.lock().unwrap() = parameter(&waiting.url, "nonce").unwrap();
        browse("127.0.0.1", waiting.port, &format!("/?code=c&state={}", waiting.state)).await;
        let error = waiting.end().await.unwrap_err();
        assert!(matches!(error, SignInError::Answer { .. }), "{member} {value}: {error:?}");
        let kept = SignIn::new(identity, RealClock::start()).unwrap().current().await.unwrap();
        assert!(kept.is_none(), "{member} {value}");
    }
}

#[tokio::test]
async fn an_access_token_of_another_person_and_answers_without_tokens_are_refused() {
    let foreign = jwt(&json!({"tid": TENANT, "appid": "app-1", "oid": "00000000-0000-0000-0000-00000000000f"}));
    for body in [
        json!({"access_token": foreign, "expires_in": 3600, "refresh_token": "R", "id_token": true}),
        json!({"access_token": "A", "expires_in": 3600, "id_token": true}),
        json!({"access_token": "A", "expires_in": 3600, "refresh_token": "R"}),
    ] {
        let nonce = Arc::<std::sync::Mutex<String>>::default();
        let told = Arc::clone(&nonce);
        let service = Service::answering(move |_| {
            let mut body = body.clone();
            if body.get("id_token").is_some() {
                body["id_token"] = jwt(&id_claims(&told.lock().unwrap())).into();
            }
            reply("200 OK", "", &body.to_string())
        })
        .await;
        let waiting = Waiting::new(begin(service.delegated().0).await);
        *nonce.lock().unwrap() = parameter(&waiting.url, "nonce").unwrap();
        browse("127.0.0.1", waiting.port, &format!("/?code=c&state={}", waiting.state)).await;
        let error = waiting.end().await.unwrap_err();
        let known =
            matches!(error, SignInError::Answer { .. } | SignInError::Token(TokenError::Foreign { what: "user", .. }));
        assert!(known, "{error:?}");
    }
}

#[tokio::test]
async fn claims_of_a_refused_renewal_are_in_the_next_address() {
    let claims = r#"{"access_token":{"capolids":{"essential":true,"values":["c"]}}}"#;
    let body = json!({"error": "invalid_grant", "error_codes": [50076], "claims": claims});
    let service = Service::start(vec![
        crate::device::code(1, 900),
        granted("A1", Some("R1"), &id_claims("n")),
        reply("400 Bad Request", "", &body.to_string()),
    ])
    .await;
    let (identity, _store) = service.delegated();
    crate::renewal::sign_in(&identity).await;
    let source = token_source(identity.clone(), "https://other.example/.default".into(), RealClock::start()).unwrap();
    let error = source.token().await.unwrap_err();
    assert_eq!(error.fault(), Some(TokenFault::ReauthUser));
    assert!(error.remedy().unwrap().contains("dynavault profile login contoso-ce"));
    let expected = r#"{"access_token":{"capolids":{"essential":true,"values":["c"]},"xms_cc":{"values":["cp1"]}}}"#;
    let code = begin(identity.clone()).await;
    assert_eq!(parameter(code.url(), "claims").unwrap(), expected);
    // The same ones by hand, from the error.
    let from_error = error.claims().cloned();
    assert_eq!(from_error, ClaimsChallenge::from_json(claims));
    let (fresh, _store) = service.delegated();
    let given =
        SignInOptions { claims: from_error, prompt: Prompt::Consent, login_hint: Some("a@b".into()), ..options() };
    let code = SignIn::new(fresh, RealClock::start()).unwrap().begin_code(given).await.unwrap();
    assert_eq!(parameter(code.url(), "claims").unwrap(), expected);
    assert_eq!(parameter(code.url(), "prompt").unwrap(), "consent");
    assert_eq!(parameter(code.url(), "login_hint").unwrap(), "a@b");
}

#[tokio::test]
async fn a_code_is_redeemed_once_whatever_happens() {
    let service = Service::start(vec![refusal("503 Service Unavailable", "server_error", 90_033)]).await;
    let waiting = Waiting::new(begin(service.delegated().0).await);
    browse("127.0.0.1", waiting.port, &format!("/?code=c&state={}", waiting.state)).await;
    assert!(matches!(waiting.end().await.unwrap_err(), SignInError::Token(_)));
    assert_eq!(service.requests().len(), 1);
}

#[tokio::test]
async fn only_people_sign_in_and_only_over_safe_ways() {
    let clock = RealClock::start();
    let app = identity(dynavault_identity::Credential::AzureCli, Url::parse(Cloud::Public.authority()).unwrap());
    assert_eq!(SignIn::new(app, clock.clone()).unwrap_err().kind(), FaultKind::Usage);
    let store = Arc::<dynavault_identity::MemoryTokenStore>::default();
    let plain = identity(person(store), Url::parse("http://login.example.com").unwrap());
    let error = SignIn::new(plain, clock).unwrap().begin_code(options()).await.unwrap_err();
    assert_eq!(error.kind(), FaultKind::Usage);
}
