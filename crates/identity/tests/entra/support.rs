//! A scripted sign-in service on loopback, clocks, and what tokens look like.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use dynavault_identity::{AppIdentity, Credential, MemoryTokenStore, TokenSource, TokenStore, token_source};
use dynavault_model::Clock;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use url::Url;

pub(crate) const SCOPE: &str = "https://contoso.crm.dynamics.com/.default";
pub(crate) const TENANT: &str = "11111111-2222-3333-4444-555555555555";
pub(crate) const PERSON: &str = "99999999-0000-0000-0000-000000000001";

/// A clock that moves only when somebody waits or the test says so.
#[derive(Debug, Default)]
pub(crate) struct FakeClock {
    elapsed: Mutex<Duration>,
    sleeps: Mutex<Vec<Duration>>,
    /// What the wall clock is off by, in seconds.
    wall_offset: Mutex<i64>,
}

impl FakeClock {
    pub(crate) fn advance(&self, by: Duration) {
        *self.elapsed.lock().unwrap() += by;
    }

    pub(crate) fn sleeps(&self) -> Vec<Duration> {
        self.sleeps.lock().unwrap().clone()
    }

    /// Sets the wall clock; time goes on as before.
    pub(crate) fn set_wall(&self, offset_s: i64) {
        *self.wall_offset.lock().unwrap() = offset_s;
    }
}

#[async_trait]
impl Clock for FakeClock {
    fn now(&self) -> Timestamp {
        let start = "2001-02-03T04:05:06Z".parse::<Timestamp>().unwrap() + *self.elapsed.lock().unwrap();
        Timestamp::from_second(start.as_second() + *self.wall_offset.lock().unwrap()).unwrap()
    }

    fn elapsed(&self) -> Duration {
        *self.elapsed.lock().unwrap()
    }

    async fn sleep(&self, duration: Duration) {
        self.sleeps.lock().unwrap().push(duration);
        self.advance(duration);
        tokio::task::yield_now().await;
    }
}

/// The real time, for tests that wait for sockets and locks.
#[derive(Debug)]
pub(crate) struct RealClock(Instant);

impl RealClock {
    pub(crate) fn start() -> Arc<Self> {
        Arc::new(Self(Instant::now()))
    }
}

#[async_trait]
impl Clock for RealClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }
}

/// One request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) text: String,
}

impl Request {
    /// A field of the form.
    pub(crate) fn field(&self, name: &str) -> Option<String> {
        let body = self.text.split_once("\r\n\r\n").unwrap().1;
        url::form_urlencoded::parse(body.as_bytes())
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.into_owned())
    }

    pub(crate) fn path(&self) -> &str {
        self.text.split(' ').nth(1).unwrap()
    }
}

/// Answers requests; each connection carries one.
pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    _server: JoinSet<()>,
}

impl Service {
    /// Gives these answers in order; one request more is a mistake.
    pub(crate) async fn start(replies: Vec<String>) -> Self {
        let mut replies = VecDeque::from(replies);
        Self::answering(move |_| replies.pop_front().expect("no more requests were expected")).await
    }

    /// An empty answer hangs up.
    pub(crate) async fn answering(mut answer: impl FnMut(&Request) -> String + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let mut server = JoinSet::new();
        server.spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let mut text = String::new();
                let mut chunk = [0; 4096];
                while !complete(&text) {
                    let Ok(read @ 1..) = socket.read(&mut chunk).await else { break };
                    text.push_str(std::str::from_utf8(&chunk[..read]).unwrap());
                }
                if !complete(&text) {
                    continue;
                }
                let request = Request { text };
                seen.lock().unwrap().push(request.clone());
                let reply = answer(&request);
                // Whoever gave up does not read it.
                let _gone = socket.write_all(reply.as_bytes()).await;
            }
        });
        Self { address, requests, _server: server }
    }

    pub(crate) fn authority(&self) -> Url {
        Url::parse(&format!("http://{}", self.address)).unwrap()
    }

    pub(crate) fn source(&self, credential: Credential, clock: &Arc<FakeClock>) -> Arc<dyn TokenSource> {
        token_source(identity(credential, self.authority()), SCOPE.into(), clock.clone()).unwrap()
    }

    /// A person's identity with a store of its own.
    pub(crate) fn delegated(&self) -> (AppIdentity, Arc<MemoryTokenStore>) {
        let store = Arc::<MemoryTokenStore>::default();
        (identity(person(store.clone()), self.authority()), store)
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

fn complete(request: &str) -> bool {
    let Some((head, body)) = request.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    body.len() >= length.unwrap_or(0)
}

pub(crate) fn identity(credential: Credential, authority: Url) -> AppIdentity {
    AppIdentity { name: "contoso-ce".into(), tenant: TENANT.into(), client_id: "app-1".into(), credential, authority }
}

pub(crate) fn person(store: Arc<dyn TokenStore>) -> Credential {
    Credential::Delegated { store }
}

pub(crate) fn reply(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}

pub(crate) fn token(name: &str, seconds: u64) -> String {
    reply("200 OK", "", &format!(r#"{{"token_type":"Bearer","expires_in":{seconds},"access_token":"{name}"}}"#))
}

pub(crate) fn refusal(status: &str, error: &str, code: u64) -> String {
    let body = format!(
        r#"{{"error":"{error}","error_description":"AADSTS{code}: Something.","error_codes":[{code}],"trace_id":"tr-1","correlation_id":"co-1","timestamp":"2031-02-03 04:05:06Z"}}"#
    );
    reply(status, "", &body)
}

pub(crate) fn jwt(claims: &Value) -> String {
    format!("e30.{}.SECRETsignature", URL_SAFE_NO_PAD.encode(claims.to_string()))
}

/// The identity token of the person, for `nonce`.
pub(crate) fn id_claims(nonce: &str) -> Value {
    json!({
        "aud": "app-1", "iss": format!("https://login.microsoftonline.com/{TENANT}/v2.0"), "tid": TENANT, "oid": PERSON,
        "exp": 4_000_000_000_i64, "nonce": nonce, "preferred_username": "ada@contoso.com",
    })
}

/// What a person's grant brings: access, refresh and identity token.
pub(crate) fn granted(access: &str, refresh: Option<&str>, id: &Value) -> String {
    let mut body = json!({
        "token_type": "Bearer", "expires_in": "3600", "access_token": access, "scope": "user_impersonation",
        "id_token": jwt(id), "ext_expires_in": 3600, "something": {"new": true},
    });
    if let Some(refresh) = refresh {
        body["refresh_token"] = refresh.into();
    }
    reply("200 OK", "", &body.to_string())
}

/// Sends a request to this machine as a browser would and gives the answer.
pub(crate) async fn browse(host: &str, port: u16, target: &str) -> String {
    let mut stream = TcpStream::connect((host, port)).await.unwrap();
    let request = format!("GET {target} HTTP/1.1\r\nHost: localhost:{port}\r\nAccept: */*\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// A parameter of an address.
pub(crate) fn parameter(url: &Url, name: &str) -> Option<String> {
    url.query_pairs().find(|(known, _)| known == name).map(|(_, value)| value.into_owned())
}
