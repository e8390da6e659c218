//! The client against a server that plays a script: one answer per request, then the connection closes. Pauses run on a
//! clock that does not wait, so an hour of back-off takes no time; sockets are real.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use dynavault_identity::{BearerToken, TokenError, TokenSource};
use dynavault_model::{
    Call, Clock, ContentSink, Deletion, PageEnd, Row, RowSink, SharedContentSink, SharedSink, Stopped, Tally,
};
use dynavault_odata::{Client, ClientConfig, RequestError, RetryPolicy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A clock whose sleeps pass at once.
#[derive(Debug, Default)]
struct FastClock {
    nanoseconds: AtomicU64,
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

    fn invalidate(&self, token: &BearerToken) {
        assert_eq!(token.secret(), format!("token-{}", self.number.load(Ordering::SeqCst)));
        self.number.fetch_add(1, Ordering::SeqCst);
    }

    fn name(&self) -> &'static str {
        "contoso-ce"
    }
}

/// What the server does with one request.
enum Step {
    /// Sends these bytes and closes.
    Send(Vec<u8>),
    /// Sends these bytes and stays silent until the client hangs up.
    Stall(Vec<u8>),
}

fn answer(status: u16, headers: &str, body: &[u8]) -> Vec<u8> {
    announce(status, headers, body.len(), body)
}

/// An answer that announces another length than it sends.
fn announce(status: u16, headers: &str, length: usize, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\nDate: Sun, 01 Mar 2026 10:00:07 GMT\r\n{headers}\r\n"
    );
    [head.as_bytes(), body].concat()
}

fn good(body: &str) -> Step {
    Step::Send(answer(200, "Content-Type: application/json; odata.metadata=minimal\r\n", body.as_bytes()))
}

fn refusal(status: u16, headers: &str, body: &str) -> Step {
    Step::Send(answer(status, headers, body.as_bytes()))
}

struct Trial {
    client: Client,
    clock: Arc<FastClock>,
    call: Call,
    requests: Arc<Mutex<Vec<String>>>,
    base: String,
    _server: JoinSet<()>,
}

async fn trial(steps: Vec<Step>) -> Trial {
    trial_with(steps, |_| {}).await
}

async fn trial_with(steps: Vec<Step>, adjust: impl FnOnce(&mut ClientConfig)) -> Trial {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}/api/data/v9.2/", listener.local_addr().unwrap());
    let requests = Arc::new(Mutex::new(Vec::new()));
    let mut server = JoinSet::new();
    let seen = Arc::clone(&requests);
    server.spawn(async move {
        let mut stalled = Vec::new();
        for step in steps {
            let (mut stream, _) = listener.accept().await.unwrap();
            let request = read_request(&mut stream).await;
            seen.lock().unwrap().push(request);
            match step {
                Step::Send(bytes) => {
                    stream.write_all(&bytes).await.unwrap();
                    stream.shutdown().await.ok();
                }
                Step::Stall(bytes) => {
                    stream.write_all(&bytes).await.unwrap();
                    stalled.push(stream);
                }
            }
        }
        std::future::pending::<()>().await;
    });
    let clock = Arc::new(FastClock::default());
    let mut config = ClientConfig::new(&base);
    adjust(&mut config);
    let users: Vec<Arc<dyn TokenSource>> = vec![Arc::new(Renewing::default())];
    let client = Client::new(config, users, Arc::clone(&clock) as Arc<dyn Clock>).unwrap();
    let call = Call { tally: Arc::new(Tally::default()), cancel: CancellationToken::new() };
    Trial { client, clock, call, requests, base, _server: server }
}

async fn read_request(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer).await.unwrap();
        assert!(count > 0, "the client hung up in the middle of a request");
        bytes.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let lower = head.to_ascii_lowercase();
            let length = lower.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return text;
            }
        }
    }
}

#[derive(Debug, Default)]
struct Rows {
    kept: Vec<String>,
    restarts: u32,
    stop_after: Option<usize>,
    cancel: Option<CancellationToken>,
}

impl RowSink for Rows {
    fn row(&mut self, row: &Row<'_>) -> Result<(), Stopped> {
        if let Some(cancel) = &self.cancel {
            cancel.cancel();
        }
        if self.stop_after.is_some_and(|limit| self.kept.len() >= limit) {
            return Err(Stopped);
        }
        self.kept.push(String::from_utf8(row.bytes().to_vec()).unwrap());
        Ok(())
    }

    fn deleted(&mut self, _deletion: Deletion) -> Result<(), Stopped> {
        Ok(())
    }

    fn oversized(&mut self, _start: &[u8], _bytes: u64) -> Result<(), Stopped> {
        Ok(())
    }

    fn restarted(&mut self) {
        self.restarts += 1;
        self.kept.clear();
    }

    fn row_bytes_max(&self) -> usize {
        1 << 20
    }
}

impl Trial {
    async fn read_page(&self, sink: &Arc<Mutex<Rows>>) -> Result<PageEnd, RequestError> {
        let slot = self.client.slot();
        let shared: SharedSink = Arc::clone(sink) as SharedSink;
        let prefer = Some("odata.maxpagesize=5000");
        self.client
            .read_page(&slot, "accounts?$select=name", prefer, &[], shared, "reading table account", &self.call)
            .await
    }

    async fn get(&self) -> Result<dynavault_odata::Reply, RequestError> {
        self.client.get(&self.client.slot(), "WhoAmI", None, &[], 1 << 20, &self.call).await
    }

    fn request_count(&self) -> usize {
        self.requests.lock().unwrap().len()
    }
}

/// Rows kept and restarts told.
fn seen(sink: &Mutex<Rows>) -> (usize, u32) {
    let sink = sink.lock().unwrap();
    (sink.kept.len(), sink.restarts)
}

fn page(rows: usize) -> String {
    let rows: Vec<String> = (0..rows).map(|number| format!(r#"{{"id":{number},"name":"row {number}"}}"#)).collect();
    format!(r#"{{"@odata.context":"x","value":[{}],"@odata.nextLink":"https://o/next"}}"#, rows.join(","))
}

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_carries_the_headers_of_the_protocol_and_no_cookie() {
    let cookie =
        "Content-Type: application/json\r\nSet-Cookie: ARRAffinity=abc; Path=/\r\nx-ms-service-request-id: id-1\r\n";
    let trial = trial(vec![Step::Send(answer(200, cookie, b"{}")), good("{}"), good("{}")]).await;
    let first = trial.get().await.unwrap();
    assert_eq!(first.headers.get("Set-Cookie"), None);
    assert_eq!(first.headers.request_id().as_deref(), Some("id-1"));
    trial.get().await.unwrap();
    let slot = trial.client.slot();
    let conditional = [("If-None-Match", "W/\"1\""), ("Accept", "text/plain")];
    trial
        .client
        .post_read(&slot, "DownloadBlock", Some("a=1"), &conditional, "{\"b\":1}".into(), 100, &trial.call)
        .await
        .unwrap();
    let requests = trial.requests.lock().unwrap().clone();
    for request in &requests {
        let lower = request.to_ascii_lowercase();
        for line in
            ["odata-version: 4.0", "odata-maxversion: 4.0", "accept-encoding: gzip", "authorization: bearer token-0"]
        {
            assert!(lower.contains(line), "{line} is missing in {request}");
        }
        assert!(lower.contains("user-agent: dynavault/"), "{request}");
        assert!(!lower.contains("cookie"), "{request}");
    }
    assert!(requests[1].contains("if-none-match: null\r\n"));
    assert!(requests[2].starts_with("POST "));
    assert!(requests[2].contains("if-none-match: W/\"1\"\r\n") && requests[2].contains("accept: text/plain\r\n"));
    assert!(requests[2].contains("prefer: a=1\r\n") && requests[2].ends_with("{\"b\":1}"));
    assert_eq!(trial.client.service_time().unwrap().to_string(), "2026-03-01T10:00:07Z");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_cut_in_the_middle_is_read_again_from_its_start() {
    let body = page(1000);
    let half = announce(200, "", body.len(), &body.as_bytes()[..body.len() / 2]);
    let trial = trial(vec![Step::Send(half), good(&body)]).await;
    let sink = Arc::new(Mutex::new(Rows::default()));
    let end = trial.read_page(&sink).await.unwrap();
    assert_eq!(end.next.as_deref(), Some("https://o/next"));
    let sink = sink.lock().unwrap();
    assert_eq!((sink.kept.len(), sink.restarts), (1000, 1));
    let totals = trial.call.tally.totals();
    assert_eq!((totals.requests, totals.retries), (2, 1));
    assert!(totals.bytes_received > body.len() as u64);
    assert!(trial.requests.lock().unwrap().iter().all(|request| request.contains("prefer: odata.maxpagesize=5000")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_that_ends_early_under_status_200_is_read_again_but_not_for_ever() {
    let body = page(10);
    let short = || Step::Send(answer(200, "", &body.as_bytes()[..body.len() - 1]));
    let trial1 = trial(vec![short(), short(), good(&body)]).await;
    let sink = Arc::new(Mutex::new(Rows::default()));
    trial1.read_page(&sink).await.unwrap();
    assert_eq!(seen(&sink), (10, 2));

    let trial2 = trial(vec![short(), short(), short()]).await;
    match trial2.read_page(&sink).await {
        Err(RequestError::Exhausted { tries: 3, limit, .. }) => assert_eq!(limit, "malformed_max = 2"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gzip_is_undone_by_us_and_counted_as_it_came() {
    let body = page(2000);
    let packed = gzip(&body);
    assert!(packed.len() < body.len() / 2);
    let headers = "Content-Encoding: gzip\r\nContent-Type: application/json\r\n";
    let cut = answer(200, headers, &packed[..packed.len() - 9]);
    let trial = trial(vec![
        Step::Send(cut),
        Step::Send(answer(200, headers, &packed)),
        Step::Send(answer(200, headers, &gzip("{}"))),
    ])
    .await;
    let sink = Arc::new(Mutex::new(Rows::default()));
    trial.read_page(&sink).await.unwrap();
    assert_eq!(seen(&sink), (2000, 1));
    assert_eq!(trial.call.tally.totals().bytes_received, (2 * packed.len() - 9) as u64);
    assert_eq!(trial.get().await.unwrap().body.as_ref(), b"{}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_429_silences_the_user_for_as_long_as_it_says() {
    // By the service's own clock, which stands at seven seconds, the date is 33 seconds away.
    for (retry_after, seconds) in
        [("Retry-After: 17\r\n", 17), ("Retry-After: Sun, 01 Mar 2026 10:00:40 GMT\r\n", 33), ("", 1)]
    {
        let body = r#"{"error":{"code":"0x80072322","message":"Number of requests exceeded the limit of 6000 over time window of 300 seconds."}}"#;
        let trial = trial(vec![refusal(429, retry_after, body), good("{}")]).await;
        trial.get().await.unwrap();
        assert!(trial.clock.elapsed() >= Duration::from_secs(seconds), "{retry_after:?}: {:?}", trial.clock.elapsed());
        assert!(trial.clock.elapsed() < Duration::from_secs(seconds + 2));
        let totals = trial.call.tally.totals();
        assert_eq!((totals.requests, totals.retries, totals.throttled), (2, 1, 1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busy_gateways_are_waited_out_and_their_html_is_not_an_answer() {
    let html = "<html><title>502 Bad Gateway</title></html>";
    let trial = trial(vec![
        refusal(502, "Content-Type: text/html\r\n", html),
        refusal(503, "", ""),
        Step::Send(answer(200, "Content-Type: text/html\r\n", html.as_bytes())),
        good("{\"a\":"),
        good("{\"a\":1}"),
    ])
    .await;
    assert_eq!(trial.get().await.unwrap().body.as_ref(), b"{\"a\":1}");
    assert_eq!(trial.call.tally.totals().retries, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_that_is_spent_is_named_in_the_error() {
    let html = "<html><title>502 Bad Gateway</title></html>";
    let steps = (0..4).map(|_| refusal(502, "", html)).collect();
    let trial = trial_with(steps, |config| config.retry = RetryPolicy { tries_max: 4, ..RetryPolicy::default() }).await;
    match trial.get().await {
        Err(RequestError::Exhausted { tries: 4, limit, last, .. }) => {
            assert_eq!(limit, "tries_max = 4");
            assert!(last.contains("502 Bad Gateway"), "{last}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_token_is_renewed_once_and_the_second_refusal_is_final() {
    let trial1 = trial(vec![refusal(401, "", ""), good("{}")]).await;
    trial1.get().await.unwrap();
    let requests = trial1.requests.lock().unwrap().clone();
    for (number, request) in requests.iter().enumerate() {
        assert!(request.contains(&format!("Bearer token-{number}")), "{request}");
    }
    assert_eq!(requests.len(), 2);
    let trial2 =
        trial(vec![refusal(401, "REQ_ID: r7\r\n", "<title>no</title>"), refusal(401, "REQ_ID: r8\r\n", "")]).await;
    match trial2.get().await {
        Err(RequestError::Unauthorized { request_id, .. }) => assert_eq!(request_id.as_deref(), Some("r8")),
        other => panic!("{other:?}"),
    }
    assert_eq!(trial2.request_count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_401_that_names_somebody_the_environment_does_not_know_is_no_matter_of_the_token() {
    let body = r#"{"error":{"code":"0x80072560","message":"The user is not a member of the organization."}}"#;
    let trial = trial(vec![refusal(401, "REQ_ID: r7\r\n", body)]).await;
    let error = trial.get().await.unwrap_err();
    assert_eq!((error.status(), error.code()), (Some(401), Some(0x8007_2560)));
    assert!(error.to_string().contains("(request r7)"), "{error}");
    assert_eq!(trial.request_count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_revoked_twice_during_one_page_costs_no_row() {
    let body = page(100);
    let cut = announce(200, "", body.len(), &body.as_bytes()[..body.len() / 2]);
    let trial = trial(vec![refusal(401, "", ""), Step::Send(cut), refusal(401, "", ""), good(&body)]).await;
    let sink = Arc::new(Mutex::new(Rows::default()));
    trial.read_page(&sink).await.unwrap();
    assert_eq!(seen(&sink), (100, 1));
    assert!(trial.requests.lock().unwrap()[3].contains("Bearer token-2"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unexpected_errors_get_two_more_tries_and_final_ones_none() {
    let unexpected = r#"{"error":{"code":"0x80040216","message":"An unexpected error occurred."}}"#;
    let steps = (0..3).map(|_| refusal(500, "", unexpected)).collect();
    let trial1 = trial(steps).await;
    assert_eq!(trial1.get().await.unwrap_err().code(), Some(0x8004_0216));
    assert_eq!(trial1.request_count(), 3);

    for (status, code) in [(503, "0x8004a113"), (500, "0x8004a104"), (429, "-2147015899"), (404, "0x80040217")] {
        let body = format!(r#"{{"error":{{"code":"{code}","message":"no"}}}}"#);
        let trial = trial(vec![refusal(status, "", &body)]).await;
        assert!(matches!(trial.get().await, Err(RequestError::Service { code: Some(_), .. })), "{code}");
        assert_eq!(trial.request_count(), 1, "{code}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_inside_a_page_is_tried_again_and_then_reported_with_its_code() {
    let body = r#"{"value":[{"id":1}],"error":{"code":"0x80040216","message":"An unexpected error occurred."}}"#;
    let trial1 = trial(vec![good(body), good(&page(3))]).await;
    let sink = Arc::new(Mutex::new(Rows::default()));
    trial1.read_page(&sink).await.unwrap();
    assert_eq!(seen(&sink), (3, 1));

    let body = r#"{"value":[{"id":1}],"error":{"code":"0x80044151","message":"SQL timeout"}}"#;
    let trial2 = trial(vec![good(body)]).await;
    assert_eq!(trial2.read_page(&sink).await.unwrap_err().code(), Some(0x8004_4151));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_body_is_given_up_and_read_again() {
    let body = page(100);
    let start = announce(200, "", body.len(), &body.as_bytes()[..200]);
    let trial =
        trial_with(vec![Step::Stall(start), good(&body)], |config| config.idle_timeout = Duration::from_millis(200))
            .await;
    let sink = Arc::new(Mutex::new(Rows::default()));
    trial.read_page(&sink).await.unwrap();
    assert_eq!(seen(&sink), (100, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_never_answers_is_given_up() {
    let trial = trial_with(vec![Step::Stall(Vec::new()), good("{}")], |config| {
        config.headers_timeout = Duration::from_millis(200);
    })
    .await;
    trial.get().await.unwrap();
    assert_eq!(trial.call.tally.totals().retries, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_to_other_hosts_are_refused_before_anything_is_sent() {
    let trial = trial(vec![]).await;
    for link in ["https://evil.example/api/data/v9.2/accounts", "http://127.0.0.1:1/x", "http://127.0.0.2/x"] {
        let slot = trial.client.slot();
        let result = trial.client.get(&slot, link, None, &[], 100, &trial.call).await;
        assert!(matches!(result, Err(RequestError::Protocol { .. })), "{link}");
        assert!(trial.client.check_link(link).is_err());
    }
    assert!(trial.client.check_link(&format!("{}accounts?$skiptoken=1", trial.base)).is_ok());
    assert_eq!(trial.call.tally.totals().requests, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redirects_are_not_followed() {
    let trial = trial(vec![refusal(302, "Location: https://evil.example/\r\n", "")]).await;
    assert_eq!(trial.get().await.unwrap_err().status(), Some(302));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sink_that_stops_and_a_run_that_is_cancelled_end_the_reading() {
    let body = page(5000);
    let trial1 = trial(vec![good(&body)]).await;
    let sink = Arc::new(Mutex::new(Rows { stop_after: Some(3), ..Rows::default() }));
    assert!(matches!(trial1.read_page(&sink).await, Err(RequestError::SinkStopped)));

    let start = announce(200, "", body.len(), &body.as_bytes()[..2000]);
    let trial2 = trial(vec![Step::Stall(start)]).await;
    let sink = Arc::new(Mutex::new(Rows { cancel: Some(trial2.call.cancel.clone()), ..Rows::default() }));
    assert!(matches!(trial2.read_page(&sink).await, Err(RequestError::Cancelled)));
    assert_eq!(Arc::strong_count(&sink), 1, "the sink is still in use");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_over_the_callers_limit_are_refused() {
    let trial = trial(vec![good(&page(100))]).await;
    let result = trial.client.get(&trial.client.slot(), "x", None, &[], 1000, &trial.call).await;
    assert!(matches!(result, Err(RequestError::Protocol { .. })), "{result:?}");
}

#[derive(Debug, Default)]
struct Content {
    bytes: Vec<u8>,
    restarts: u32,
}

impl ContentSink for Content {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Stopped> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn restarted(&mut self) {
        self.restarts += 1;
        self.bytes.clear();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn file_bytes_stream_to_the_sink_and_start_over_after_a_cut() {
    let file: Vec<u8> = (0..300_000_u32).map(|number| (number % 251) as u8).collect();
    let headers = "x-ms-file-name: a.bin\r\nContent-Type: application/octet-stream\r\n";
    let trial = trial(vec![
        Step::Send(announce(206, headers, file.len(), &file[..100_000])),
        Step::Send(answer(206, headers, &file)),
    ])
    .await;
    let sink = Arc::new(Mutex::new(Content::default()));
    let shared: SharedContentSink = Arc::clone(&sink) as SharedContentSink;
    let range = [("Range", "bytes=0-299999")];
    let slot = trial.client.slot();
    let head =
        trial.client.download(&slot, "accounts(1)/f/$value", &range, shared, "reading a file", &trial.call).await;
    let head = head.unwrap();
    assert_eq!((head.status, head.headers.get("x-ms-file-name")), (206, Some("a.bin")));
    let sink = sink.lock().unwrap();
    assert!(sink.bytes == file && sink.restarts == 1);
    assert!(trial.requests.lock().unwrap()[0].contains("range: bytes=0-299999"));
}

impl Trial {
    /// Downloads into a sink; what it has in the end, and how often it began again.
    async fn download(&self) -> (Result<(), RequestError>, Vec<u8>, u32) {
        let sink = Arc::new(Mutex::new(Content::default()));
        let shared: SharedContentSink = Arc::clone(&sink) as SharedContentSink;
        let slot = self.client.slot();
        let done = self.client.download(&slot, "accounts(1)/f/$value", &[], shared, "reading a file", &self.call).await;
        let sink = std::mem::take(&mut *sink.lock().unwrap());
        (done.map(drop), sink.bytes, sink.restarts)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_shorter_than_the_file_says_is_asked_for_again_but_not_for_ever() {
    let headers = "x-ms-file-size: 1000\r\nContent-Type: application/octet-stream\r\n";
    let short = || Step::Send(answer(200, headers, &[7; 600]));
    let trial1 = trial(vec![short(), short(), Step::Send(answer(200, headers, &[7; 1000]))]).await;
    let (done, bytes, restarts) = trial1.download().await;
    done.unwrap();
    assert_eq!((bytes.len(), restarts), (1000, 2));

    let trial2 = trial(vec![short(), short(), short()]).await;
    match trial2.download().await.0 {
        Err(RequestError::Exhausted { tries: 3, last, .. }) => {
            assert!(last.contains("600 bytes came of a file of 1000"), "{last}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_web_page_in_place_of_a_file_is_asked_for_again_and_a_file_that_is_a_web_page_is_taken() {
    let html = b"<html><title>We are sorry</title></html>";
    let page = |headers: &str| Step::Send(answer(200, &format!("Content-Type: text/html\r\n{headers}"), html));
    let trial1 = trial(vec![page(""), Step::Send(answer(200, "Content-Type: image/png\r\n", &[7; 50]))]).await;
    let (done, bytes, _) = trial1.download().await;
    done.unwrap();
    assert_eq!(bytes, [7; 50]);

    let trial2 = trial(vec![page(""), page(""), page("")]).await;
    let (done, bytes, _) = trial2.download().await;
    assert!(matches!(done, Err(RequestError::Exhausted { tries: 3, .. })), "{done:?}");
    assert!(bytes.is_empty(), "a gateway's page reached the sink");

    let trial3 = trial(vec![page(&format!("x-ms-file-size: {}\r\n", html.len()))]).await;
    let (done, bytes, _) = trial3.download().await;
    done.unwrap();
    assert_eq!(bytes, html);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_of_all_answers_throttled_still_brings_every_row() {
    let throttled = r#"{"error":{"code":"0x80072321","message":"Combined execution time of incoming requests exceeded limit of 1,200,000 milliseconds."}}"#;
    let steps = (0..80)
        .map(|number| if number % 2 == 0 { refusal(429, "Retry-After: 2\r\n", throttled) } else { good(&page(50)) })
        .collect();
    let trial = trial(steps).await;
    let mut rows = 0;
    for _ in 0..40 {
        let sink = Arc::new(Mutex::new(Rows::default()));
        trial.read_page(&sink).await.unwrap();
        rows += sink.lock().unwrap().kept.len();
    }
    assert_eq!(rows, 2000);
    assert_eq!(trial.call.tally.totals().throttled, 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_spread_over_the_application_users() {
    let clock: Arc<dyn Clock> = Arc::new(FastClock::default());
    let users: Vec<Arc<dyn TokenSource>> = vec![Arc::new(Renewing::default()), Arc::new(Renewing::default())];
    let client = Client::new(ClientConfig::new("http://127.0.0.1:9/"), users, clock).unwrap();
    let (one, two) = (client.slot(), client.slot());
    assert!(!Arc::ptr_eq(one.governor(), two.governor()));
    let freed = Arc::clone(two.governor());
    drop(two);
    assert!(Arc::ptr_eq(client.slot().governor(), &freed));
}

#[test]
fn a_client_without_https_or_users_is_refused() {
    let clock: Arc<dyn Clock> = Arc::new(FastClock::default());
    let users = || -> Vec<Arc<dyn TokenSource>> { vec![Arc::new(Renewing::default())] };
    let plain = Client::new(ClientConfig::new("http://contoso.crm.dynamics.com/"), users(), Arc::clone(&clock));
    assert!(plain.is_err());
    assert!(Client::new(ClientConfig::new("https://contoso.crm.dynamics.com/"), Vec::new(), clock).is_err());
}
