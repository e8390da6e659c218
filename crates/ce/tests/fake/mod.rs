//! A service that answers each request by a rule of the test, for answers that the simulator never gives. Sockets are real;
//! pauses run on a clock that does not wait.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use dynavault_ce::{DataverseSource, DataverseTarget, SourceOptions};
use dynavault_identity::{BearerToken, TokenError, TokenSource};
use dynavault_model::{
    Call, Clock, Column, ContentSink, Deletion, Row, RowSink, Stopped, TableRef, TableSchema, Tally,
};
use dynavault_odata::{Client, ClientConfig};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A clock whose sleeps pass at once.
#[derive(Debug, Default)]
struct FastClock(AtomicU64);

#[async_trait]
impl Clock for FastClock {
    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::UNIX_EPOCH + self.elapsed()
    }

    fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::SeqCst))
    }

    async fn sleep(&self, duration: Duration) {
        self.0.fetch_add(duration.as_nanos() as u64, Ordering::SeqCst);
        tokio::task::yield_now().await;
    }
}

#[derive(Debug)]
struct Token;

#[async_trait]
impl TokenSource for Token {
    async fn token(&self) -> Result<BearerToken, TokenError> {
        Ok(BearerToken::new("token".to_string(), jiff::Timestamp::MAX))
    }

    fn invalidate(&self, _token: &BearerToken) {}

    fn name(&self) -> &'static str {
        "contoso-ce"
    }
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path and query below the Web API, decoded.
    pub(crate) path: String,
    head: String,
    pub(crate) body: String,
}

impl Request {
    /// A header, by its name in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// Status, header lines, body.
pub(crate) type Answer = (u16, Vec<(&'static str, String)>, Vec<u8>);

pub(crate) fn json(value: &Value) -> Answer {
    (200, vec![("Content-Type", "application/json".into())], value.to_string().into_bytes())
}

pub(crate) fn refusal(status: u16, code: &str, message: &str) -> Answer {
    let body = serde_json::json!({"error": {"code": code, "message": message}});
    (status, vec![("Content-Type", "application/json".into())], body.to_string().into_bytes())
}

/// The answer to a batch: status and body of each part.
pub(crate) fn parts(parts: &[(u16, String)]) -> Answer {
    let part = |(status, text): &(u16, String)| {
        format!("--b\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 {status} X\r\n\r\n{text}\r\n")
    };
    let body: String = parts.iter().map(part).chain(["--b--\r\n".to_string()]).collect();
    (200, vec![("Content-Type", "multipart/mixed; boundary=b".into())], body.into_bytes())
}

/// A service and both sides of our access to it.
pub(crate) struct Service {
    pub(crate) source: Arc<DataverseSource>,
    pub(crate) target: DataverseTarget,
    pub(crate) call: Call,
    pub(crate) base: String,
    requests: Arc<Mutex<Vec<Request>>>,
    _server: JoinSet<()>,
}

impl Service {
    pub(crate) async fn new(rule: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/api/data/v9.2/", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let mut server = JoinSet::new();
        server.spawn(serve(listener, Arc::new(rule), Arc::clone(&requests)));
        let clock: Arc<dyn Clock> = Arc::new(FastClock::default());
        let mut config = ClientConfig::new(&base);
        config.writes = true;
        let users: Vec<Arc<dyn TokenSource>> = vec![Arc::new(Token)];
        let client = Client::new(config, users, Arc::clone(&clock)).unwrap();
        let source = Arc::new(DataverseSource::new(client, SourceOptions::default()));
        let target = DataverseTarget::new(Arc::clone(&source), clock);
        let call = Call { tally: Arc::new(Tally::default()), cancel: CancellationToken::new() };
        Self { source, target, call, base, requests, _server: server }
    }

    /// Requests whose paths begin so.
    pub(crate) fn requests(&self, start: &str) -> Vec<Request> {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter(|request| request.path.starts_with(start)).cloned().collect()
    }
}

async fn serve(
    listener: TcpListener,
    rule: Arc<dyn Fn(&Request) -> Answer + Send + Sync>,
    requests: Arc<Mutex<Vec<Request>>>,
) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (rule, requests) = (Arc::clone(&rule), Arc::clone(&requests));
        connections.spawn(async move { answer(stream, &*rule, &requests).await });
    }
}

async fn answer(mut stream: TcpStream, rule: &(dyn Fn(&Request) -> Answer + Send + Sync), seen: &Mutex<Vec<Request>>) {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 65536];
    let request = loop {
        let count = stream.read(&mut buffer).await.unwrap_or(0);
        if count == 0 {
            return;
        }
        bytes.extend_from_slice(&buffer[..count]);
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let (line, head) = head.split_once("\r\n").unwrap();
        let mut request =
            Request { method: String::new(), path: String::new(), head: head.into(), body: String::new() };
        let length = request.header("content-length").map_or(0, |length| length.parse().unwrap());
        if bytes.len() < end + 4 + length {
            continue;
        }
        let mut words = line.split(' ');
        request.method = words.next().unwrap().into();
        let path = words.next().unwrap().strip_prefix("/api/data/v9.2/").unwrap();
        let decoded =
            url::form_urlencoded::parse(format!("x={}", path.replace('&', "%26").replace('+', "%2B")).as_bytes())
                .next()
                .map(|(_, path)| path.into_owned());
        request.path = decoded.unwrap();
        request.body = String::from_utf8_lossy(&bytes[end + 4..]).into_owned();
        break request;
    };
    seen.lock().unwrap().push(request.clone());
    let (status, headers, body) = rule(&request);
    let headers = headers.iter().fold(String::new(), |all, (name, value)| all + name + ": " + value + "\r\n");
    let length = body.len();
    let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(head.as_bytes()).await.ok();
    stream.write_all(&body).await.ok();
    stream.shutdown().await.ok();
}

/// Keeps rows and bytes.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    pub(crate) rows: Vec<Value>,
    pub(crate) bytes: Vec<u8>,
}

impl RowSink for Kept {
    fn row(&mut self, row: &Row<'_>) -> Result<(), Stopped> {
        self.rows.push(serde_json::from_slice(row.bytes()).unwrap());
        Ok(())
    }

    fn deleted(&mut self, _deletion: Deletion) -> Result<(), Stopped> {
        Ok(())
    }

    fn oversized(&mut self, _start: &[u8], _bytes: u64) -> Result<(), Stopped> {
        Ok(())
    }

    fn restarted(&mut self) {
        self.rows.clear();
        self.bytes.clear();
    }

    fn row_bytes_max(&self) -> usize {
        1 << 20
    }
}

impl ContentSink for Kept {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Stopped> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn restarted(&mut self) {
        self.bytes.clear();
    }
}

/// A table of text columns.
pub(crate) fn table(name: &str, columns: &[&str], definition: Value) -> TableSchema {
    let key = format!("{name}id");
    let column =
        |column: &str| Column { name: column.into(), member: column.into(), kind: "StringType".into(), secured: false };
    TableSchema {
        table: TableRef::ce(name),
        entity_set: format!("{name}s"),
        columns: std::iter::once(key.as_str()).chain(columns.iter().copied()).map(column).collect(),
        key: vec![key],
        content: Vec::new(),
        tracked: true,
        page_rows_max: 5000,
        not_captured: Vec::new(),
        definition,
    }
}
