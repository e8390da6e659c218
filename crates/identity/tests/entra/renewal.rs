//! Tokens from a stored sign-in: rotation, durability, one request for many, refusals.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dynavault_identity::{
    AccountKey, AccountLock, AppIdentity, ClaimsChallenge, FileTokenStore, MemoryTokenStore, SecretString, SignIn,
    StoreError, StoredSignIn, TokenError, TokenFault, TokenSource, TokenStore, token_source,
};
use dynavault_model::{Diagnose, FaultKind, chain};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::device::code;
use crate::support::{
    FakeClock, PERSON, RealClock, SCOPE, Service, TENANT, granted, id_claims, identity, jwt, person, refusal, reply,
    token,
};

const OTHER: &str = "https://graph.microsoft.com/.default";

/// Signs a person in; the service's next two answers are a device code and a grant.
pub(crate) async fn sign_in(identity: &AppIdentity) {
    let sign_in = SignIn::new(identity.clone(), Arc::<FakeClock>::default()).unwrap();
    sign_in.begin_device(SCOPE).await.unwrap().finish(&CancellationToken::new()).await.unwrap();
}

/// A service that gives `REFRESH-1` at sign-in and then these answers, and a person signed in there.
async fn signed_in(replies: Vec<String>) -> (Service, AppIdentity) {
    let begin = vec![code(1, 900), renewed("ACCESS-1", Some("REFRESH-1"))];
    let service = Service::start([begin, replies].concat()).await;
    let (identity, _) = service.delegated();
    sign_in(&identity).await;
    (service, identity)
}

fn renewed(access: &str, refresh: Option<&str>) -> String {
    granted(access, refresh, &id_claims("none"))
}

fn source(identity: &AppIdentity, scope: &str, clock: &Arc<FakeClock>) -> Arc<dyn TokenSource> {
    token_source(identity.clone(), scope.into(), clock.clone()).unwrap()
}

fn refresh_tokens(service: &Service) -> Vec<String> {
    service.requests().iter().filter_map(|request| request.field("refresh_token")).collect()
}

#[tokio::test]
async fn one_sign_in_serves_every_resource_and_each_renewal_uses_the_newest_token() {
    let replies = vec![
        renewed("GRAPH-1", Some("REFRESH-2")),
        // No new one: the old one goes on.
        renewed("ACCESS-2", None),
        renewed("GRAPH-2", Some("REFRESH-3")),
        renewed("ACCESS-3", Some("REFRESH-4")),
    ];
    let (service, identity) = signed_in(replies).await;
    let clock = Arc::<FakeClock>::default();
    let (ce, graph) = (source(&identity, SCOPE, &clock), source(&identity, OTHER, &clock));
    assert_eq!(ce.token().await.unwrap().secret(), "ACCESS-1", "the token of the sign-in itself");
    assert_eq!(graph.token().await.unwrap().secret(), "GRAPH-1");
    clock.advance(Duration::from_secs(3500));
    assert_eq!(ce.token().await.unwrap().secret(), "ACCESS-2");
    assert_eq!(graph.token().await.unwrap().secret(), "GRAPH-2");
    clock.advance(Duration::from_secs(3500));
    assert_eq!(ce.token().await.unwrap().secret(), "ACCESS-3");
    assert_eq!(refresh_tokens(&service), ["REFRESH-1", "REFRESH-2", "REFRESH-2", "REFRESH-3"]);
    let requests = service.requests();
    assert_eq!(requests[2].field("scope").unwrap(), format!("{OTHER} offline_access openid profile"));
    assert_eq!(requests[2].field("grant_type").as_deref(), Some("refresh_token"));
    // The tenant is the GUID that the sign-in told.
    assert_eq!(requests[2].path(), format!("/{TENANT}/oauth2/v2.0/token"));
}

#[tokio::test]
async fn a_token_of_an_earlier_run_is_used_while_enough_of_it_remains() {
    for (left, requests) in [(299, 3), (301, 3), (361, 2), (400, 2)] {
        let (service, identity) = signed_in(vec![renewed("ACCESS-2", None)]).await;
        let clock = Arc::<FakeClock>::default();
        // The sign-in itself took a second.
        clock.advance(Duration::from_secs(3601 - left));
        source(&identity, SCOPE, &clock).token().await.unwrap();
        assert_eq!(service.requests().len(), requests, "{left}");
    }
}

/// A store whose writes can be made to fail, as those of a full disk.
#[derive(Debug, Default)]
struct Failing {
    inner: MemoryTokenStore,
    full: AtomicBool,
}

impl TokenStore for Failing {
    fn load(&self, account: &AccountKey) -> Result<Option<StoredSignIn>, StoreError> {
        self.inner.load(account)
    }

    fn save(&self, account: &AccountKey, sign_in: &StoredSignIn) -> Result<(), StoreError> {
        if self.full.load(Ordering::SeqCst) {
            let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
            return Err(StoreError::Io { what: "write", path: "/vault/sign-ins/x".into(), source });
        }
        self.inner.save(account, sign_in)
    }

    fn delete(&self, account: &AccountKey) -> Result<bool, StoreError> {
        self.inner.delete(account)
    }

    fn try_lock(&self, account: &AccountKey) -> Result<Option<AccountLock>, StoreError> {
        self.inner.try_lock(account)
    }

    fn describe(&self) -> String {
        "failing".to_owned()
    }
}

#[tokio::test]
async fn nothing_is_handed_out_before_the_new_sign_in_is_durable() {
    let service = Service::start(vec![
        code(1, 900),
        renewed("ACCESS-1", Some("REFRESH-1")),
        renewed("LOST", Some("REFRESH-LOST")),
        renewed("ACCESS-2", Some("REFRESH-2")),
        renewed("ACCESS-3", Some("REFRESH-3")),
    ])
    .await;
    let store = Arc::<Failing>::default();
    let identity = identity(person(store.clone()), service.authority());
    sign_in(&identity).await;
    let clock = Arc::<FakeClock>::default();
    clock.advance(Duration::from_secs(3700));
    // The answer came and could not be kept: a crash between answer and write.
    store.full.store(true, Ordering::SeqCst);
    let error = source(&identity, SCOPE, &clock).token().await.unwrap_err();
    assert!(matches!(&error, TokenError::Store { .. }), "{error:?}");
    assert_eq!(error.kind(), FaultKind::Failed);
    assert!(chain(&error).contains("could not write /vault/sign-ins/x"), "{}", chain(&error));
    // The next process goes on with the old one, which still works.
    store.full.store(false, Ordering::SeqCst);
    assert_eq!(source(&identity, SCOPE, &clock).token().await.unwrap().secret(), "ACCESS-2");
    // A crash after the write: what was handed out belongs to what is kept.
    clock.advance(Duration::from_secs(3700));
    assert_eq!(source(&identity, SCOPE, &clock).token().await.unwrap().secret(), "ACCESS-3");
    assert_eq!(refresh_tokens(&service), ["REFRESH-1", "REFRESH-1", "REFRESH-2"]);
}

#[tokio::test]
async fn a_hundred_callers_and_a_leaver_make_one_request() {
    let (service, identity) = signed_in(vec![renewed("ACCESS-2", Some("REFRESH-2"))]).await;
    let clock = Arc::<FakeClock>::default();
    clock.advance(Duration::from_secs(3700));
    let source = source(&identity, SCOPE, &clock);
    let mut callers = JoinSet::new();
    for _ in 0..100 {
        let source = Arc::clone(&source);
        callers.spawn(async move { source.token().await.unwrap().secret().to_owned() });
    }
    let leaver = tokio::time::timeout(Duration::ZERO, source.token()).await;
    drop(leaver);
    for name in callers.join_all().await {
        assert_eq!(name, "ACCESS-2");
    }
    assert_eq!(service.requests().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_at_once_make_one_request() {
    let service = Service::start(vec![
        code(1, 900),
        // Signed in, and expired at once, by the real time.
        granted_for("ACCESS-1", 1),
        renewed("ACCESS-2", Some("REFRESH-2")),
    ])
    .await;
    let folder = tempfile::tempdir().unwrap();
    let open = || {
        let secret = SecretString::from("0123456789abcdef0123456789abcdef");
        Arc::new(FileTokenStore::open(folder.path().join("sign-ins"), &secret).unwrap())
    };
    sign_in(&identity(person(open()), service.authority())).await;
    let mut processes = JoinSet::new();
    for _ in 0..2 {
        let identity = identity(person(open()), service.authority());
        let source = token_source(identity, SCOPE.into(), RealClock::start()).unwrap();
        processes.spawn(async move { source.token().await.unwrap().secret().to_owned() });
    }
    assert_eq!(processes.join_all().await, ["ACCESS-2", "ACCESS-2"]);
    assert_eq!(service.requests().len(), 3);
}

fn granted_for(access: &str, seconds: u64) -> String {
    let body = json!({
        "access_token": access, "expires_in": seconds, "refresh_token": "REFRESH-1", "id_token": jwt(&id_claims("none")),
    });
    reply("200 OK", "", &body.to_string())
}

#[tokio::test]
async fn a_lock_that_nobody_frees_is_not_waited_for_forever() {
    let service = Service::start(vec![code(1, 900), renewed("ACCESS-1", Some("REFRESH-1"))]).await;
    let (identity, store) = service.delegated();
    sign_in(&identity).await;
    let _held = store.try_lock(&AccountKey::of(&identity)).unwrap().unwrap();
    let clock = Arc::<FakeClock>::default();
    let error = source(&identity, SCOPE, &clock).token().await.unwrap_err();
    assert_eq!(error.kind(), FaultKind::Busy);
    assert!(chain(&error).contains("another process has been renewing"), "{}", chain(&error));
}

#[tokio::test]
async fn a_sign_in_that_ended_asks_for_a_person_and_is_not_tried_again() {
    for code in [700_082, 70_008, 50_173, 70_043, 123_456] {
        let (service, identity) = signed_in(vec![refusal("400 Bad Request", "invalid_grant", code)]).await;
        let clock = Arc::<FakeClock>::default();
        clock.advance(Duration::from_secs(3700));
        let source = source(&identity, SCOPE, &clock);
        for _ in 0..2 {
            let error = source.token().await.unwrap_err();
            assert_eq!((error.fault(), error.kind()), (Some(TokenFault::ReauthUser), FaultKind::SignIn), "{code}");
            assert!(error.remedy().unwrap().contains("`dynavault profile login contoso-ce`"), "{code}");
        }
        assert_eq!(service.requests().len(), 3, "{code}");
    }
}

#[tokio::test]
async fn without_a_sign_in_nothing_is_sent() {
    let service = Service::start(vec![code(1, 900), renewed("ACCESS-1", Some("REFRESH-1"))]).await;
    let (identity, _store) = service.delegated();
    let clock = Arc::<FakeClock>::default();
    let ours = source(&identity, SCOPE, &clock);
    let error = ours.token().await.unwrap_err();
    assert!(matches!(error, TokenError::NotSignedIn { .. }), "{error:?}");
    assert_eq!(error.remedy().unwrap(), "sign in with `dynavault profile login contoso-ce`");
    assert_eq!(service.requests().len(), 0);
    // A person signs in meanwhile; a running process notices within a minute.
    sign_in(&identity).await;
    clock.advance(Duration::from_secs(61));
    assert_eq!(ours.token().await.unwrap().secret(), "ACCESS-1");
}

#[tokio::test]
async fn a_refused_token_is_not_taken_from_the_store_again() {
    let replies = vec![renewed("ACCESS-2", None), renewed("ACCESS-3", None), renewed("ACCESS-4", None)];
    let (service, identity) = signed_in(replies).await;
    let clock = Arc::<FakeClock>::default();
    let source = source(&identity, SCOPE, &clock);
    let first = source.token().await.unwrap();
    source.invalidate(&first);
    let second = source.token().await.unwrap();
    assert_eq!(second.secret(), "ACCESS-2");
    let claims = ClaimsChallenge::from_json(r#"{"access_token":{"nbf":{"value":"1"}}}"#).unwrap();
    source.challenge(&second, &claims);
    assert_eq!(source.token().await.unwrap().secret(), "ACCESS-3");
    assert_eq!(source.fresh_token().await.unwrap().secret(), "ACCESS-4");
    let sent: Vec<bool> = service.requests().iter().map(|request| request.field("claims").is_some()).collect();
    assert_eq!(sent, [false, false, false, true, false]);
}

#[tokio::test]
async fn a_challenge_that_the_service_does_not_meet_asks_for_a_person() {
    let refused: Value = json!({"error": "interaction_required", "error_codes": [50076], "claims": "{\"a\":{}}"});
    let (service, identity) = signed_in(vec![reply("400 Bad Request", "", &refused.to_string())]).await;
    let clock = Arc::<FakeClock>::default();
    let source = source(&identity, SCOPE, &clock);
    let first = source.token().await.unwrap();
    source.challenge(&first, &ClaimsChallenge::from_json("{}").unwrap());
    for _ in 0..2 {
        assert_eq!(source.token().await.unwrap_err().fault(), Some(TokenFault::ReauthUser));
    }
    assert_eq!(service.requests().len(), 3);
}

#[tokio::test]
async fn a_renewed_token_of_another_person_is_neither_used_nor_kept() {
    let foreign = |member: &str, value: &str| {
        let mut claims = json!({"tid": TENANT, "appid": "app-1", "oid": PERSON});
        claims[member] = value.into();
        jwt(&claims)
    };
    for (member, value) in [("tid", "00000000-2222-3333-4444-555555555555"), ("appid", "app-2"), ("oid", "other")] {
        let token = foreign(member, value);
        let replies = vec![renewed(&token, Some("REFRESH-FOREIGN")), renewed("ACCESS-2", Some("REFRESH-2"))];
        let (service, identity) = signed_in(replies).await;
        let clock = Arc::<FakeClock>::default();
        clock.advance(Duration::from_secs(3700));
        let error = source(&identity, SCOPE, &clock).token().await.unwrap_err();
        assert!(matches!(error, TokenError::Foreign { .. }), "{error:?}");
        source(&identity, SCOPE, &clock).token().await.unwrap();
        assert_eq!(refresh_tokens(&service), ["REFRESH-1", "REFRESH-1"], "{member}");
    }
}

#[tokio::test]
async fn a_damaged_store_is_said_to_be_damaged_and_signing_in_again_mends_it() {
    let grants = vec![code(1, 900), renewed("A", Some("R")), code(1, 900), renewed("B", Some("R")), token("X", 1)];
    let service = Service::start(grants).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sign-ins");
    let secret = SecretString::from("0123456789abcdef0123456789abcdef");
    let identity = identity(person(Arc::new(FileTokenStore::open(&path, &secret).unwrap())), service.authority());
    sign_in(&identity).await;
    let file = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path());
    let file = file.into_iter().find(|path| path.extension().is_some_and(|ending| ending == "seal")).unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let clock = Arc::<FakeClock>::default();
    let error = source(&identity, SCOPE, &clock).token().await.unwrap_err();
    assert!(chain(&error).contains("does not pass its check"), "{}", chain(&error));
    assert_eq!((error.kind(), error.fault()), (FaultKind::SignIn, None));
    sign_in(&identity).await;
    assert_eq!(source(&identity, SCOPE, &clock).token().await.unwrap().secret(), "B");
}
