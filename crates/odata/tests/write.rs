//! Writes against a scripted server: what is sent again, what never is, and what the caller learns.

mod scripted;

use std::time::Duration;

use bytes::Bytes;
use dynavault_model::{Diagnose, Retry};
use dynavault_odata::write::BINARY;
use dynavault_odata::{
    Atomicity, Method, Refusal, RefusalClass, Reply, RequestError, RetryPolicy, WriteFault, WriteReply, WriteRequest,
};
use scripted::{Scripted, Step, announce, answer, error};

const ROW: &str = "accounts(00000000-0000-0000-0000-00000000a001)";

fn patch() -> WriteRequest<'static> {
    let body = Bytes::from_static(br#"{"name":"Restored"}"#);
    WriteRequest { headers: &[("If-None-Match", "*")], ..WriteRequest::new(Method::Patch, ROW, body, "creating a row") }
}

fn done() -> Step {
    Step::Send(answer(204, "OData-EntityId: https://o/accounts(a001)\r\nETag: W/\"7\"\r\n", ""))
}

fn refusal(status: u16, headers: &str, body: &str) -> Step {
    Step::Send(answer(status, headers, body))
}

impl Scripted {
    async fn send(&self, request: &WriteRequest<'_>) -> Result<WriteReply, WriteFault> {
        self.client.write(&self.client.slot(), request, &self.call).await
    }

    async fn done(&self, request: &WriteRequest<'_>) -> Reply {
        match self.send(request).await {
            Ok(WriteReply::Done(reply)) => reply,
            other => panic!("{other:?}"),
        }
    }

    async fn refused(&self, request: &WriteRequest<'_>) -> Refusal {
        match self.send(request).await {
            Ok(WriteReply::Refused(refusal)) => refusal,
            other => panic!("{other:?}"),
        }
    }

    async fn lost(&self, request: &WriteRequest<'_>) -> String {
        match self.send(request).await {
            Err(WriteFault::Unknown { message, .. }) => message,
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_carries_each_header_once_and_gives_the_answers_headers() {
    let uploads = answer(206, "Location: https://o/next\r\nx-ms-chunk-size: 4194304\r\n", "");
    let server = Scripted::new(vec![done(), Step::Send(uploads.clone()), Step::Send(uploads), done()]).await;
    let reply = server.done(&patch()).await;
    assert_eq!(reply.headers.get("OData-EntityId"), Some("https://o/accounts(a001)"));
    assert_eq!((reply.status, reply.headers.get("etag")), (204, Some("W/\"7\"")));

    let begin = WriteRequest {
        headers: &[("x-ms-transfer-mode", "chunked")],
        ..WriteRequest::new(Method::Patch, "accounts(1)/new_contract?x-ms-file-name=a.pdf", Bytes::new(), "uploading")
    };
    assert_eq!(server.done(&begin).await.headers.get("x-ms-chunk-size"), Some("4194304"));
    let chunk = WriteRequest {
        headers: &[("Content-Range", "bytes 0-2/9"), ("x-ms-file-name", "a.pdf")],
        content_type: BINARY,
        ..WriteRequest::new(Method::Patch, "accounts(1)/f?sessiontoken=x", Bytes::from_static(b"a\0b"), "uploading")
    };
    assert_eq!(server.done(&chunk).await.status, 206);
    server.done(&WriteRequest::new(Method::Delete, ROW, Bytes::new(), "deleting a row")).await;

    let requests = server.requests();
    let lower: Vec<String> = requests.iter().map(|request| request.to_ascii_lowercase()).collect();
    assert!(requests[0].starts_with(&format!("PATCH /api/data/v9.2/{ROW} HTTP/1.1\r\n")), "{}", requests[0]);
    assert_eq!(lower[0].matches("if-none-match:").count(), 1);
    for line in ["if-none-match: *\r\n", "content-type: application/json; charset=utf-8\r\n", "odata-version: 4.0\r\n"]
    {
        assert!(lower[0].contains(line), "{line} is missing in {}", requests[0]);
    }
    assert!(requests[0].ends_with(r#"{"name":"Restored"}"#));
    assert!(lower[1].contains("content-length: 0\r\n") && !lower[1].contains("content-type"), "{}", requests[1]);
    assert!(lower[2].contains("content-type: application/octet-stream\r\n"));
    assert!(lower[2].contains("content-range: bytes 0-2/9\r\n") && requests[2].ends_with("\r\n\r\na\0b"));
    assert!(requests[3].starts_with("DELETE ") && !lower[3].contains("content-"), "{}", requests[3]);
    assert_eq!(server.call.tally.totals().requests, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_made_for_reading_writes_nothing() {
    let server = Scripted::with(vec![], |config| config.writes = false).await;
    for method in [Method::Post, Method::Patch, Method::Put, Method::Delete] {
        let request = WriteRequest::new(method, ROW, Bytes::new(), "deleting everything");
        let result = server.send(&request).await;
        assert!(matches!(result, Err(WriteFault::NotDone(RequestError::ReadOnly { .. }))), "{result:?}");
    }
    for path in ["accounts", "$batch", "accounts/Microsoft.Dynamics.CRM.CreateMultiple"] {
        let slot = server.client.slot();
        let result = server.client.post_read(&slot, path, None, &[], Bytes::new(), 100, &server.call).await;
        assert!(matches!(result, Err(RequestError::Protocol { .. })), "{result:?}");
    }
    assert_eq!((server.requests().len(), server.call.tally.totals().requests), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_token_is_renewed_and_the_write_sent_again() {
    let server = Scripted::new(vec![refusal(401, "", ""), done()]).await;
    server.done(&patch()).await;
    let requests = server.requests();
    assert!(requests[0].contains("Bearer token-0") && requests[1].contains("Bearer token-1"));

    let server = Scripted::new((0..9).map(|_| refusal(401, "REQ_ID: r8\r\n", "")).collect()).await;
    match server.send(&patch()).await {
        Err(WriteFault::NotDone(RequestError::Unauthorized { request_id, .. })) => {
            assert_eq!(request_id.as_deref(), Some("r8"));
        }
        other => panic!("{other:?}"),
    }
    assert!(server.requests().len() <= 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_throttled_write_waits_as_told_and_is_sent_again() {
    let words = error("0x80072322", "Number of requests exceeded the limit of 6000 over time window of 300 seconds.");
    for (retry_after, seconds) in [("Retry-After: 17\r\n", 17), ("Retry-After: Sun, 01 Mar 2026 10:00:40 GMT\r\n", 40)]
    {
        let server = Scripted::new(vec![refusal(429, retry_after, &words), done()]).await;
        server.done(&patch()).await;
        assert_eq!(server.requests().len(), 2);
        assert!(server.clock.elapsed_seconds() >= seconds);
        let totals = server.call.tally.totals();
        assert_eq!((totals.requests, totals.retries, totals.throttled), (2, 1, 1));
    }
    let always = (0..9).map(|_| refusal(429, "Retry-After: 1\r\n", &words)).collect();
    let server =
        Scripted::with(always, |config| config.retry = RetryPolicy { throttled_max: 3, ..RetryPolicy::default() })
            .await;
    let fault = server.send(&patch()).await.unwrap_err();
    assert!(matches!(&fault, WriteFault::NotDone(RequestError::Exhausted { tries: 4, .. })), "{fault:?}");
    assert_eq!(fault.retry(), Retry::Backoff);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_answer_is_lost_is_never_sent_again() {
    let json = "Content-Type: application/json\r\n";
    for (step, said) in [
        (Step::Send(Vec::new()), ""),
        (Step::Send(b"HTTP/1.1 204".to_vec()), ""),
        (Step::Send(announce(201, json, 500, r#"{"accountid":"#)), ""),
        (Step::Send(answer(201, json, r#"{"accountid":"#)), "JSON"),
        (Step::Send(answer(200, "", &"x".repeat(2000))), "larger than 1000 bytes"),
        (Step::Send(answer(200, "Content-Type: text/html\r\n", "<html>")), "HTML"),
        (refusal(502, "Content-Type: text/html\r\n", "<html><title>502 Bad Gateway</title></html>"), "502 Bad Gateway"),
        (refusal(503, "Retry-After: 5\r\n", ""), "503"),
        (refusal(504, "", ""), "504"),
        (refusal(500, "", r#"{"error":{"code":"","message":"An error has occurred."}}"#), "An error has occurred."),
        (refusal(408, "", ""), "408"),
    ] {
        let server = Scripted::new(vec![step]).await;
        let message = server.lost(&WriteRequest { bytes_max: 1000, ..patch() }).await;
        assert!(message.contains(said), "{message}");
        assert_eq!((server.requests().len(), server.call.tally.totals().retries), (1, 0), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_was_used_before_and_is_cut_under_a_write_changes_nothing() {
    let server = Scripted::new(vec![Step::Keep(answer(204, "", "")), Step::Send(Vec::new())]).await;
    server.done(&patch()).await;
    server.lost(&patch()).await;
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_server_leaves_a_write_unknown() {
    let server = Scripted::with(vec![Step::Stall], |config| config.headers_timeout = Duration::from_millis(200)).await;
    let message = server.lost(&patch()).await;
    assert!(message.starts_with("no answer within"), "{message}");
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_never_left_is_tried_again_and_then_surely_not_done() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://{}/api/data/v9.2/", nobody.local_addr().unwrap());
    drop(nobody);
    let server = Scripted::with(vec![], |config| config.base_url = base).await;
    match server.send(&patch()).await {
        Err(WriteFault::NotDone(RequestError::Exhausted { tries, limit, .. })) => {
            assert!(tries > 2);
            assert!(limit.starts_with("first_contact_time_max"), "{limit}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_data_in_the_services_own_words() {
    let exists = error("", "A record with matching key values already exists.");
    for (status, body, printed, class) in [
        (412, exists.as_str(), "", RefusalClass::Duplicate),
        (412, &error("0x80060882", "The version differs"), "0x80060882", RefusalClass::Conflict),
        (400, &error("-2147220937", "Cannot insert duplicate key."), "-2147220937", RefusalClass::Duplicate),
        (404, &error("0x80040217", "account With Id = 1 Does Not Exist"), "0x80040217", RefusalClass::Missing),
        (403, &error("0x80040220", "is missing prvCreateAccount privilege"), "0x80040220", RefusalClass::Table),
        (413, "<html><title>Too large</title></html>", "", RefusalClass::Split),
        (503, &error("0x8004a113", "admin mode"), "0x8004a113", RefusalClass::Environment),
    ] {
        let server = Scripted::new(vec![refusal(status, "x-ms-service-request-id: id-9\r\n", body)]).await;
        let refusal = server.refused(&patch()).await;
        assert_eq!((refusal.status, refusal.printed_code.as_str(), refusal.class()), (status, printed, class));
        assert_eq!(refusal.request_id.as_deref(), Some("id-9"));
        assert_eq!(server.requests().len(), 1, "{refusal:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_rolled_back_and_may_pass_is_sent_again_a_few_times() {
    let deadlock = || refusal(500, "", &error("0x80044150", "SQL error 1205: deadlock victim"));
    let server = Scripted::new(vec![deadlock(), deadlock(), done()]).await;
    server.done(&patch()).await;
    assert_eq!(server.call.tally.totals().retries, 2);

    // A lock that is held for long is waited for with growing pauses.
    let server = Scripted::new((0..12).map(|_| deadlock()).collect()).await;
    assert_eq!(server.refused(&patch()).await.class(), RefusalClass::Transient);
    assert_eq!(server.requests().len(), 9);

    let unexpected = || refusal(500, "", &error("0x80040216", "An unexpected error occurred."));
    let server = Scripted::new((0..5).map(|_| unexpected()).collect()).await;
    assert_eq!(server.refused(&patch()).await.class(), RefusalClass::Unexpected);
    assert_eq!(server.requests().len(), 3);

    let crash = || refusal(400, "", &error("0x80040224", "The plug-in crashed"));
    let server = Scripted::new((0..5).map(|_| crash()).collect()).await;
    assert_eq!(server.refused(&patch()).await.class(), RefusalClass::Crashed);
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_writes_row_by_row_is_not_believed_to_have_done_nothing() {
    let parts = || WriteRequest { atomicity: Atomicity::Parts, ..patch() };
    let server = Scripted::new(vec![refusal(500, "", &error("0x80040216", "An unexpected error occurred."))]).await;
    server.lost(&parts()).await;
    assert_eq!(server.requests().len(), 1);

    let partly = r#"{"error":{"code":"429","message":"Bulk","@Microsoft.PowerApps.CDS.ErrorDetails.Plugin.BulkApiErrorDetails":"[{\"RequestIndex\":1}]"}}"#;
    let server = Scripted::new(vec![refusal(429, "Retry-After: 3\r\n", partly)]).await;
    let refusal = server.refused(&parts()).await;
    assert!(refusal.is_partial());
    assert_eq!(refusal.detail("BulkApiErrorDetails").as_deref(), Some(r#"[{"RequestIndex":1}]"#));
    assert_eq!(server.requests().len(), 1);
    // Whoever sends the rest waits as told, and it is counted.
    assert_eq!(server.call.tally.totals().throttled, 1);
    assert!(server.client.slot().governor().pause().as_secs() >= 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_run_sends_nothing_more_and_learns_what_it_can() {
    let server = Scripted::new(vec![]).await;
    server.call.cancel.cancel();
    let result = server.send(&patch()).await;
    assert!(matches!(result, Err(WriteFault::NotDone(RequestError::Cancelled))), "{result:?}");
    assert_eq!(server.requests().len(), 0);

    let server = Scripted::new(vec![Step::CancelAndSend(answer(204, "", ""))]).await;
    assert_eq!(server.done(&patch()).await.status, 204);

    let grace = Duration::from_millis(100);
    let server = Scripted::with(vec![Step::CancelAndStall], |config| config.cancel_grace = grace).await;
    let message = server.lost(&patch()).await;
    assert!(message.contains("cancelled"), "{message}");
    assert_eq!(server.requests().len(), 1);

    let throttled = answer(429, "Retry-After: 1\r\n", "");
    let server = Scripted::new(vec![Step::CancelAndSend(throttled)]).await;
    let result = server.send(&patch()).await;
    assert!(matches!(result, Err(WriteFault::NotDone(RequestError::Cancelled))), "{result:?}");
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neither_rows_nor_answers_show_in_debug_output() {
    let server = Scripted::new(vec![Step::Send(answer(200, "", "secret answer"))]).await;
    let reply = server.send(&patch()).await;
    assert!(!format!("{reply:?}").contains("secret"));
}
