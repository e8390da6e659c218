//! Token sources against a scripted sign-in service on loopback.

#![expect(clippy::unwrap_used, reason = "the lint's exception for tests does not reach helpers")]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use dynavault_identity::{AppIdentity, Credential, SecretString, TokenError, TokenFault, TokenSource, token_source};
use dynavault_model::{Clock, Diagnose, FaultKind, chain};
use jiff::Timestamp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use url::Url;

const SECRET: &str = "a&b=c+d%/SECRET";
const SCOPE: &str = "https://contoso.crm.dynamics.com/.default";

/// A clock that moves only when somebody waits or the test says so.
#[derive(Debug, Default)]
struct FakeClock {
    elapsed: Mutex<Duration>,
}

impl FakeClock {
    fn advance(&self, by: Duration) {
        *self.elapsed.lock().unwrap() += by;
    }
}

#[async_trait]
impl Clock for FakeClock {
    fn now(&self) -> Timestamp {
        "2001-02-03T04:05:06Z".parse::<Timestamp>().unwrap() + *self.elapsed.lock().unwrap()
    }

    fn elapsed(&self) -> Duration {
        *self.elapsed.lock().unwrap()
    }

    async fn sleep(&self, duration: Duration) {
        self.advance(duration);
        tokio::task::yield_now().await;
    }
}

/// Answers requests in order; each connection carries one.
struct Service {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    _server: JoinSet<()>,
}

impl Service {
    async fn start(replies: Vec<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let mut replies = VecDeque::from(replies);
        let mut server = JoinSet::new();
        server.spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut text = String::new();
                let mut chunk = [0; 4096];
                while !complete(&text) {
                    let read = socket.read(&mut chunk).await.unwrap();
                    assert!(read > 0, "the request ended early");
                    text.push_str(std::str::from_utf8(&chunk[..read]).unwrap());
                }
                seen.lock().unwrap().push(text);
                let reply = replies.pop_front().expect("no more requests were expected");
                socket.write_all(reply.as_bytes()).await.unwrap();
            }
        });
        Self { address, requests, _server: server }
    }

    fn source(&self, credential: Credential, clock: &Arc<FakeClock>) -> Arc<dyn TokenSource> {
        let authority = Url::parse(&format!("http://{}", self.address)).unwrap();
        token_source(identity(credential, authority), SCOPE.into(), clock.clone()).unwrap()
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn complete(request: &str) -> bool {
    let Some((head, body)) = request.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    body.len() >= length.unwrap_or(0)
}

fn identity(credential: Credential, authority: Url) -> AppIdentity {
    let tenant = "11111111-2222-3333-4444-555555555555".into();
    AppIdentity { name: "contoso-ce".into(), tenant, client_id: "app-1".into(), credential, authority }
}

fn secret() -> Credential {
    Credential::ClientSecret { secret: SecretString::from(SECRET) }
}

fn reply(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

fn token(name: &str, seconds: u64) -> String {
    reply("200 OK", "", &format!(r#"{{"token_type":"Bearer","expires_in":{seconds},"access_token":"{name}"}}"#))
}

fn refusal(status: &str, error: &str, code: u64) -> String {
    let body = format!(
        r#"{{"error":"{error}","error_description":"AADSTS{code}: Something.","error_codes":[{code}],"trace_id":"tr-1","correlation_id":"co-1","timestamp":"2031-02-03 04:05:06Z"}}"#
    );
    reply(status, "", &body)
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
    let request = service.requests().remove(0);
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
    assert_eq!(error.kind(), FaultKind::Failed);
    let long = reply("429 Too Many Requests", "retry-after: 3600\r\n", "{}");
    let service = Service::start(vec![long]).await;
    let error = service.source(secret(), &clock).token().await.unwrap_err();
    assert_eq!(error.kind(), FaultKind::Failed);
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
    assert!(requests[0].contains("client_assertion=first") && requests[1].contains("client_assertion=second"));
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
    let request = service.requests().remove(1).to_ascii_lowercase();
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
