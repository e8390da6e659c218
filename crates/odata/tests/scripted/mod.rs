//! A server that plays a script: one step per request, in order, each on a connection of its own unless the step keeps
//! it. Pauses run on a clock that does not wait, so an hour of back-off takes no time; sockets are real.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use dynavault_identity::{BearerToken, TokenError, TokenSource};
use dynavault_model::{Call, Clock, Tally};
use dynavault_odata::{Client, ClientConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A clock whose sleeps pass at once.
#[derive(Debug, Default)]
pub(crate) struct FastClock {
    nanoseconds: AtomicU64,
}

impl FastClock {
    /// Whole seconds that were slept.
    pub(crate) fn elapsed_seconds(&self) -> u64 {
        self.elapsed().as_secs()
    }
}

#[async_trait]
impl Clock for FastClock {
    fn now(&self) -> jiff::Timestamp {
        let start: jiff::Timestamp = "2026-03-01T10:00:00Z".parse().unwrap();
        start + self.elapsed()
    }

    fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.load(Ordering::SeqCst))
    }

    async fn sleep(&self, duration: Duration) {
        self.nanoseconds.fetch_add(duration.as_nanos() as u64, Ordering::SeqCst);
        tokio::task::yield_now().await;
    }
}

/// Gives `token-N`; N grows with every refusal.
#[derive(Debug, Default)]
struct Renewing {
    number: AtomicU64,
}

#[async_trait]
impl TokenSource for Renewing {
    async fn token(&self) -> Result<BearerToken, TokenError> {
        let number = self.number.load(Ordering::SeqCst);
        Ok(BearerToken::new(format!("token-{number}"), jiff::Timestamp::MAX))
    }

    fn invalidate(&self, _token: &BearerToken) {
        self.number.fetch_add(1, Ordering::SeqCst);
    }

    fn name(&self) -> &'static str {
        "contoso-ce-restore"
    }
}

/// What the server does once it has read a request.
pub(crate) enum Step {
    /// Sends these bytes and closes.
    Send(Vec<u8>),
    /// Sends these bytes and reads the next request from the same connection.
    Keep(Vec<u8>),
    /// Stays silent until the client hangs up.
    Stall,
    /// Cancels the run and stays silent.
    CancelAndStall,
    /// Cancels the run and answers all the same.
    CancelAndSend(Vec<u8>),
}

/// An answer with these header lines, each ended by CRLF.
pub(crate) fn answer(status: u16, headers: &str, body: &str) -> Vec<u8> {
    announce(status, headers, body.len(), body)
}

/// An answer that announces another length than it sends.
pub(crate) fn announce(status: u16, headers: &str, length: usize, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\n{headers}\r\n{body}").into_bytes()
}

/// An error as the service words it.
pub(crate) fn error(code: &str, message: &str) -> String {
    format!(r#"{{"error":{{"code":"{code}","message":"{message}"}}}}"#)
}

pub(crate) struct Scripted {
    pub(crate) client: Client,
    pub(crate) clock: Arc<FastClock>,
    pub(crate) call: Call,
    requests: Arc<Mutex<Vec<String>>>,
    _server: JoinSet<()>,
}

impl Scripted {
    /// A client that may write, before a server that plays `steps`.
    pub(crate) async fn new(steps: Vec<Step>) -> Self {
        Self::with(steps, |_| {}).await
    }

    pub(crate) async fn with(steps: Vec<Step>, adjust: impl FnOnce(&mut ClientConfig)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/api/data/v9.2/", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let cancel = CancellationToken::new();
        let mut server = JoinSet::new();
        server.spawn(play(listener, steps, Arc::clone(&requests), cancel.clone()));
        let clock = Arc::new(FastClock::default());
        let mut config = ClientConfig::new(&base);
        config.writes = true;
        adjust(&mut config);
        let users: Vec<Arc<dyn TokenSource>> = vec![Arc::new(Renewing::default())];
        let client = Client::new(config, users, Arc::clone(&clock) as Arc<dyn Clock>).unwrap();
        let call = Call { tally: Arc::new(Tally::default()), cancel };
        Self { client, clock, call, requests, _server: server }
    }

    /// The requests as they came.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

async fn play(listener: TcpListener, steps: Vec<Step>, requests: Arc<Mutex<Vec<String>>>, cancel: CancellationToken) {
    let mut kept = None;
    let mut silent = Vec::new();
    // A request beyond the script is noted too, so that tests can tell that none came.
    for step in steps.into_iter().chain(std::iter::repeat_with(|| Step::Send(Vec::new()))) {
        let (mut stream, request) = loop {
            let mut stream = match kept.take() {
                Some(stream) => stream,
                None => listener.accept().await.unwrap().0,
            };
            // A kept connection may have been closed instead of used.
            if let Some(request) = read_request(&mut stream).await {
                break (stream, request);
            }
        };
        requests.lock().unwrap().push(request);
        match step {
            Step::Send(bytes) => finish(stream, &bytes).await,
            Step::Keep(bytes) => {
                stream.write_all(&bytes).await.unwrap();
                kept = Some(stream);
            }
            Step::Stall => silent.push(stream),
            Step::CancelAndStall => {
                cancel.cancel();
                silent.push(stream);
            }
            Step::CancelAndSend(bytes) => {
                cancel.cancel();
                finish(stream, &bytes).await;
            }
        }
    }
}

async fn finish(mut stream: TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).await.ok();
    stream.shutdown().await.ok();
}

async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 65536];
    loop {
        let count = stream.read(&mut buffer).await.unwrap_or(0);
        if count == 0 {
            assert!(bytes.is_empty(), "the client hung up in the middle of a request");
            return None;
        }
        bytes.extend_from_slice(&buffer[..count]);
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
        if bytes.len() >= end + 4 + length.unwrap_or(0) {
            return Some(String::from_utf8_lossy(&bytes).into_owned());
        }
    }
}
