//! The Azure store against a service that misbehaves on purpose, on loopback.

#![expect(clippy::unwrap_used, reason = "the lint's exception for tests does not reach helpers")]

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use dynavault_identity::{BearerToken, FixedToken, SecretString, TokenError, TokenSource};
use dynavault_model::{Clock, Diagnose, FaultKind, Retry, chain};
use dynavault_store::{
    AzureAuth, AzureStore, BlobName, BlobStore, LockOwner, RetryLimits, StoreError, VaultLocation, parse_vault_url,
};
use jiff::Timestamp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

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
        // A real moment, so that a task that only waits does not starve the others.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[derive(Debug, Clone)]
struct Seen {
    /// Request line and headers, lower case.
    head: String,
    body: Vec<u8>,
}

impl Seen {
    fn is(&self, method: &str, query: &str) -> bool {
        let line = self.head.lines().next().unwrap();
        line.starts_with(method) && line.contains(query)
    }
}

enum Answer {
    Reply(String),
    HangUp,
}

fn reply(status: &str, headers: &str, body: &str) -> Answer {
    Answer::Reply(format!(
        "HTTP/1.1 {status}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    ))
}

fn refusal(status: &str, code: &str) -> Answer {
    reply(status, &format!("x-ms-error-code: {code}\r\nx-ms-request-id: req-1\r\n"), "<Error>words</Error>")
}

fn created() -> Answer {
    reply("201 Created", "", "")
}

/// A service that answers what `script` says to the requests seen so far, the last one being the one to answer.
struct Service {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    _server: JoinSet<()>,
}

impl Service {
    async fn start(script: impl Fn(&[Seen]) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, script) = (Arc::clone(&seen), Arc::new(script));
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                let (log, script) = (Arc::clone(&log), Arc::clone(&script));
                connections.spawn(async move { serve(socket, &log, &*script).await });
            }
        });
        Self { address, seen, _server: server }
    }

    fn store(&self, auth: AzureAuth, clock: &Arc<FakeClock>) -> AzureStore {
        store(self.address, auth, clock)
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

async fn serve(mut socket: TcpStream, log: &Mutex<Vec<Seen>>, script: &(impl Fn(&[Seen]) -> Answer + Send + Sync)) {
    let mut bytes = Vec::new();
    let seen = loop {
        if socket.read_buf(&mut bytes).await.unwrap() == 0 {
            return;
        }
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
        if bytes.len() >= end + 4 + length {
            break Seen { head, body: bytes.split_off(end + 4) };
        }
    };
    let answer = {
        let mut log = log.lock().unwrap();
        log.push(seen);
        script(&log)
    };
    if let Answer::Reply(text) = answer {
        // The client may have gone.
        let _gone = socket.write_all(text.as_bytes()).await.is_err();
    }
}

fn store(address: SocketAddr, auth: AzureAuth, clock: &Arc<FakeClock>) -> AzureStore {
    let endpoint = format!("http://{address}/acct");
    let VaultLocation::Azure(location) = parse_vault_url("azblob://acct/vault/v", Some(&endpoint)).unwrap() else {
        unreachable!("the URL names a container")
    };
    AzureStore::new(location, auth, RetryLimits::default(), clock.clone()).unwrap()
}

fn sas() -> AzureAuth {
    AzureAuth::Sas(SecretString::from("?sv=2024&sig=SECRET%3D"))
}

fn name(text: &str) -> BlobName {
    BlobName::new(text).unwrap()
}

fn count(seen: &[Seen], method: &str, query: &str) -> usize {
    seen.iter().filter(|one| one.is(method, query)).count()
}

#[tokio::test]
async fn trouble_is_ridden_out_and_retry_after_is_obeyed() {
    let service = Service::start(|seen| match seen.len() {
        1 => refusal("500 Internal Server Error", "InternalError"),
        2 => reply("503 Service Unavailable", "retry-after: 20\r\nx-ms-error-code: ServerBusy\r\n", ""),
        _ => created(),
    })
    .await;
    let clock = Arc::<FakeClock>::default();
    service.store(sas(), &clock).put(&name("a/b c"), Bytes::from_static(b"123456789")).await.unwrap();
    let waited = clock.elapsed();
    assert!((Duration::from_secs(20)..Duration::from_secs(22)).contains(&waited), "{waited:?}");
    let seen = service.seen();
    assert_eq!(seen.len(), 3);
    for request in &seen {
        assert!(request.is("put", "/acct/vault/v%2fa%2fb%20c?sv=2024&sig=secret%3d"), "{}", request.head);
        assert!(request.head.contains("\r\nif-none-match: *"), "{}", request.head);
        // CRC-64/NVME of the body, least significant byte first.
        assert!(
            request.head.contains("\r\nx-ms-content-crc64: iJh5CoYUi64=".to_ascii_lowercase().as_str()),
            "{}",
            request.head
        );
        assert_eq!(request.body, b"123456789");
    }
}

#[tokio::test]
async fn a_lost_answer_to_a_small_create_is_settled_by_its_content() {
    let scenario = async |on_get: fn() -> Answer| {
        let service = Service::start(move |seen| match seen.last().unwrap() {
            request if request.is("get", "") => on_get(),
            _ if seen.len() == 1 => Answer::HangUp,
            _ => refusal("409 Conflict", "BlobAlreadyExists"),
        })
        .await;
        let clock = Arc::<FakeClock>::default();
        service.store(sas(), &clock).put(&name("x"), Bytes::from_static(b"mine")).await
    };
    scenario(|| reply("206 Partial Content", "content-range: bytes 0-3/4\r\n", "mine")).await.unwrap();
    let other = scenario(|| reply("206 Partial Content", "content-range: bytes 0-3/4\r\n", "else")).await;
    assert!(matches!(other, Err(StoreError::AlreadyExists { .. })), "{other:?}");
    let unreadable = scenario(|| refusal("403 Forbidden", "AuthorizationPermissionMismatch")).await.unwrap_err();
    assert!(matches!(unreadable, StoreError::Unsettled { .. }), "{unreadable:?}");
    assert!(unreadable.remedy().unwrap().contains("read right"));
}

#[tokio::test]
async fn an_object_that_was_there_before_is_not_ours() {
    let service = Service::start(|seen| match seen.last().unwrap() {
        request if request.is("head", "") => reply("200 OK", "", ""),
        _ => refusal("409 Conflict", "BlobAlreadyExists"),
    })
    .await;
    let clock = Arc::<FakeClock>::default();
    let refused = service.store(sas(), &clock).put(&name("x"), Bytes::from_static(b"mine")).await;
    assert!(matches!(refused, Err(StoreError::AlreadyExists { .. })), "{refused:?}");
    assert_eq!(count(&service.seen(), "get", ""), 0, "the content of others is not read");
}

/// The ids of a commit's body, in base64.
fn block_ids(body: &[u8]) -> Vec<String> {
    let text = String::from_utf8(body.to_vec()).unwrap();
    text.split("<Latest>").skip(1).map(|rest| rest.split('<').next().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_lost_answer_to_a_commit_is_settled_by_the_blocks() {
    for ours in [true, false] {
        let service = Service::start(move |seen| {
            let request = seen.last().unwrap();
            let commits: Vec<_> = seen.iter().filter(|one| one.is("put", "comp=blocklist")).collect();
            if request.is("get", "comp=blocklist") {
                let ids = if ours { block_ids(&commits[0].body) } else { vec!["c29tZWJvZHkgZWxzZQ==".to_owned()] };
                let blocks = ids.join("</Name><Size>1</Size></Block><Block><Name>");
                let blocks = format!("<Block><Name>{blocks}</Name><Size>1</Size></Block>");
                let xml = format!(
                    "<?xml version=\"1.0\"?><BlockList><CommittedBlocks>{blocks}</CommittedBlocks></BlockList>"
                );
                return reply("200 OK", "content-type: application/xml\r\n", &xml);
            }
            match commits.len() {
                0 => created(),
                1 => Answer::HangUp,
                _ => refusal("409 Conflict", "BlobAlreadyExists"),
            }
        })
        .await;
        let clock = Arc::<FakeClock>::default();
        let store = service.store(sas(), &clock);
        let mut writer = store.create(&name("large")).await.unwrap();
        for _ in 0..9 {
            writer.write(Bytes::from(vec![3; 1 << 20])).await.unwrap();
        }
        let finished = writer.finish().await;
        match finished {
            Ok(length) => assert!(ours && length == 9 << 20),
            Err(StoreError::AlreadyExists { .. }) => assert!(!ours),
            Err(other) => panic!("{other:?}"),
        }
        assert_eq!(count(&service.seen(), "put", "comp=block&"), 3, "9 MiB are three blocks");
    }
}

#[tokio::test]
async fn a_failed_block_fails_the_object() {
    let service = Service::start(|seen| match seen.last().unwrap() {
        request if request.is("put", "comp=block&") => refusal("400 Bad Request", "InvalidHeaderValue"),
        _ => created(),
    })
    .await;
    let clock = Arc::<FakeClock>::default();
    let mut writer = service.store(sas(), &clock).create(&name("large")).await.unwrap();
    let mut failures = 0;
    for _ in 0..20 {
        failures += u32::from(writer.write(Bytes::from(vec![3; 1 << 20])).await.is_err());
    }
    assert!(failures > 0, "a writer does not swallow failures of its blocks");
    writer.finish().await.unwrap_err();
    assert_eq!(count(&service.seen(), "put", "comp=blocklist"), 0);
}

#[tokio::test]
async fn an_unreachable_service_is_given_up_after_a_minute_with_one_clear_message() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let clock = Arc::<FakeClock>::default();
    let error = store(closed, sas(), &clock).size(&name("x")).await.unwrap_err();
    assert!(clock.elapsed() <= Duration::from_secs(60), "{:?}", clock.elapsed());
    let text = chain(&error);
    assert!(text.starts_with("gave up looking at x after "), "{text}");
    assert!(text.contains(&format!("could not connect to {closed}")) && text.contains("Connection refused"), "{text}");
    assert!(error.remedy().unwrap().contains(&format!("http://{closed}/acct/vault can be reached")));
    assert_eq!((error.kind(), error.retry()), (FaultKind::Failed, Retry::Backoff));
    assert!(!format!("{text}{error:?}").contains("SECRET"));
}

#[tokio::test]
async fn a_service_that_throttles_for_hours_is_given_up() {
    let service = Service::start(|_| reply("503 Service Unavailable", "retry-after: 7200\r\n", "")).await;
    let clock = Arc::<FakeClock>::default();
    let error = service.store(sas(), &clock).read(&name("x"), 0..10).await.unwrap_err();
    assert!(chain(&error).contains("(limit: 300 s)"), "{}", chain(&error));
    assert_eq!(service.seen().len(), 1);
}

#[tokio::test]
async fn a_reply_that_breaks_off_is_read_again() {
    let service = Service::start(|seen| match seen.len() {
        1 => Answer::Reply(
            "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 0-9/10\r\ncontent-length: 10\r\n\r\n0123".into(),
        ),
        _ => reply("206 Partial Content", "content-range: bytes 0-9/10\r\n", "0123456789"),
    })
    .await;
    let clock = Arc::<FakeClock>::default();
    assert_eq!(service.store(sas(), &clock).read(&name("x"), 0..10).await.unwrap(), "0123456789");
}

#[tokio::test]
async fn a_denial_names_the_rights_and_not_the_signature() {
    let service = Service::start(|_| refusal("403 Forbidden", "AuthorizationPermissionMismatch")).await;
    let clock = Arc::<FakeClock>::default();
    let error = service.store(sas(), &clock).put(&name("x"), Bytes::new()).await.unwrap_err();
    assert_eq!(error.kind(), FaultKind::SignIn);
    assert!(error.remedy().unwrap().contains("create, write, list and read"));
    let text = chain(&error);
    assert!(text.starts_with("not allowed: writing x: "), "{text}");
    assert!(text.contains("403 AuthorizationPermissionMismatch (request id req-1)"), "{text}");
    assert!(!format!("{text}{error:?}").contains("SECRET"));
    assert_eq!(service.seen().len(), 1);
}

#[tokio::test]
async fn a_refused_token_is_renewed_once() {
    let service = Service::start(|seen| match seen.len() {
        1 | 3.. => refusal("401 Unauthorized", "InvalidAuthenticationInfo"),
        _ => reply("202 Accepted", "", ""),
    })
    .await;
    let clock = Arc::<FakeClock>::default();
    let token = Arc::new(FixedToken::new("vault", "TOKEN"));
    let store = service.store(AzureAuth::Token(token.clone()), &clock);
    store.delete(&name("x")).await.unwrap();
    assert_eq!(token.invalidations(), 1);
    let error = store.size(&name("x")).await.unwrap_err();
    assert!(matches!(error, StoreError::Denied { .. }), "{error:?}");
    assert_eq!(token.invalidations(), 2);
    assert!(service.seen().iter().all(|request| request.head.contains("authorization: bearer token")));
    assert_eq!(service.seen().len(), 4);
}

#[derive(Debug)]
struct NoToken;

#[async_trait]
impl TokenSource for NoToken {
    async fn token(&self) -> Result<BearerToken, TokenError> {
        let (profile, reason, remedy) = ("vault".into(), "no such file".into(), "write the file".into());
        Err(TokenError::Config { profile, reason, remedy })
    }

    fn invalidate(&self, _: &BearerToken) {}

    fn name(&self) -> &'static str {
        "vault"
    }
}

#[tokio::test]
async fn a_vault_without_token_passes_on_the_reason() {
    let service = Service::start(|_| created()).await;
    let clock = Arc::<FakeClock>::default();
    let error = service.store(AzureAuth::Token(Arc::new(NoToken)), &clock).size(&name("x")).await.unwrap_err();
    assert_eq!(
        chain(&error),
        "could not sign in to the vault: the credential of profile vault cannot be used: no such file"
    );
    assert_eq!(error.remedy().unwrap(), "write the file");
    assert!(service.seen().is_empty());
}

#[tokio::test]
async fn a_lock_that_somebody_broke_is_lost() {
    let service = Service::start(|seen| match seen.last().unwrap() {
        request if request.head.contains("x-ms-lease-action: renew") => {
            let renewals = seen.iter().filter(|one| one.head.contains("x-ms-lease-action: renew")).count();
            match renewals {
                1 => refusal("500 Internal Server Error", "InternalError"),
                2 => reply("200 OK", "", ""),
                _ => refusal("409 Conflict", "LeaseIdMismatchWithLeaseOperation"),
            }
        }
        _ => created(),
    })
    .await;
    let clock = Arc::<FakeClock>::default();
    let store = service.store(sas(), &clock);
    let held = store.lock(&name("lock"), &LockOwner::new("one", "host one")).await.unwrap();
    let lost = async {
        while !held.lost() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), lost).await.unwrap();
    let renewals = service.seen().iter().filter(|one| one.head.contains("x-ms-lease-action: renew")).count();
    assert_eq!(renewals, 3, "trouble is ridden out, a foreign lease is not");
}

#[tokio::test]
async fn a_machine_that_slept_through_its_lease_notices_by_the_clock() {
    let service = Service::start(|seen| match seen.last().unwrap() {
        request if request.head.contains("x-ms-lease-action: renew") => Answer::HangUp,
        _ => created(),
    })
    .await;
    let clock = Arc::<FakeClock>::default();
    let store = service.store(sas(), &clock);
    let held = store.lock(&name("lock"), &LockOwner::new("one", "host one")).await.unwrap();
    assert!(!held.lost());
    clock.advance(Duration::from_secs(51));
    assert!(held.lost());
}
