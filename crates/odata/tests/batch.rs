//! Batches against a scripted server: every part gets the answer that belongs to it, and nothing is sent twice that may
//! have been carried out.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod scripted;

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use dynavault_odata::{BatchReply, BatchRequest, Item, Method, OnError, Part, PartReply, RequestError, RetryPolicy};
use scripted::{Scripted, Step, answer, error};

const KIND: &str = "Content-Type: multipart/mixed; boundary=batchresponse_1\r\n";

fn part(method: Method, number: usize) -> Part {
    let body =
        if method == Method::Get || method == Method::Delete { String::new() } else { format!("{{\"n\":{number}}}") };
    let headers = vec![("If-Match".to_owned(), "*".to_owned())];
    Part { method, path: format!("accounts({number})"), headers, body: Bytes::from(body) }
}

fn patches(count: usize) -> Vec<Item> {
    (1..=count).map(|number| Item::Part(part(Method::Patch, number))).collect()
}

/// A part of an answer.
fn said(status: u16, headers: &str, body: &str) -> String {
    format!(
        "Content-Type: application/http\r\nContent-Transfer-Encoding: binary\r\n\r\nHTTP/1.1 {status} X\r\n{headers}\r\n{body}\r\n"
    )
}

fn fine() -> String {
    said(204, "OData-Version: 4.0\r\nOData-EntityId: https://o/accounts(1)\r\n", "")
}

fn wrong(status: u16, code: &str) -> String {
    said(status, "REQ_ID: r1\r\nContent-Type: application/json\r\n", &error(code, "no"))
}

/// The whole body of an answer.
fn multipart(parts: &[String]) -> String {
    let mut body = String::new();
    for part in parts {
        write!(body, "--batchresponse_1\r\n{part}").unwrap();
    }
    body + "--batchresponse_1--\r\n"
}

fn answers(status: u16, parts: &[String]) -> Step {
    Step::Send(answer(status, KIND, &multipart(parts)))
}

fn word(reply: &PartReply) -> String {
    match reply {
        PartReply::Done(reply) => reply.status.to_string(),
        PartReply::Refused(refusal) => format!("refused {} {:?}", refusal.status, refusal.class()),
        PartReply::NotSent => "not sent".to_owned(),
        PartReply::Unknown { .. } => "unknown".to_owned(),
    }
}

fn words(reply: &BatchReply) -> Vec<String> {
    reply.parts.iter().map(word).collect()
}

impl Scripted {
    async fn batch(&self, items: &[Item], on_error: OnError) -> BatchReply {
        let request = BatchRequest { items, on_error, what: "writing table account", bytes_max: 1 << 20 };
        self.client.batch(&self.client.slot(), &request, &self.call).await
    }
}

/// The paths of the parts of a sent batch.
fn paths(request: &str) -> Vec<&str> {
    let lines = request.lines().filter_map(|line| line.strip_suffix(" HTTP/1.1")?.split_once(" /api/data/v9.2/"));
    // The first is that of the batch itself.
    lines.map(|(_, path)| path).skip(1).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_has_crlf_only_and_one_over_a_thousand_is_split() {
    let first = Step::Keep(answer(200, KIND, &multipart(&vec![fine(); 1000])));
    let server = Scripted::new(vec![first, answers(200, &[fine()])]).await;
    let reply = server.batch(&patches(1001), OnError::Continue).await;
    assert!(reply.stopped.is_none());
    assert!(words(&reply).iter().all(|word| word == "204"));
    let requests = server.requests();
    assert_eq!(requests.iter().map(|request| paths(request).len()).collect::<Vec<_>>(), [1000, 1]);
    for request in &requests {
        assert!(request.starts_with("POST /api/data/v9.2/$batch HTTP/1.1\r\n"));
        assert!(request.contains("content-type: multipart/mixed; boundary=\"batch_dynavault\"\r\n"));
        assert!(request.contains("prefer: odata.continue-on-error\r\n"));
        assert!(request.ends_with("--batch_dynavault--\r\n"));
        assert_eq!(request.matches('\n').count(), request.matches("\r\n").count());
        assert_eq!(request.matches('\r').count(), request.matches("\r\n").count());
    }
    assert_eq!(server.call.tally.totals().requests, 2);
    match &reply.parts[0] {
        PartReply::Done(reply) => assert_eq!(reply.headers.get("odata-entityid"), Some("https://o/accounts(1)")),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_stops_at_a_failing_part_tells_done_refused_and_not_sent_apart() {
    let step = answers(400, &[fine(), fine(), wrong(400, "0x80044331")]);
    let server = Scripted::new(vec![step]).await;
    let reply = server.batch(&patches(5), OnError::Stop).await;
    assert_eq!(words(&reply), ["204", "204", "refused 400 Value", "not sent", "not sent"]);
    assert!(reply.stopped.is_none());
    let requests = server.requests();
    assert_eq!(requests.len(), 1);
    assert!(!requests[0].contains("prefer:"));
    match &reply.parts[2] {
        PartReply::Refused(refusal) => assert_eq!(refusal.request_id.as_deref(), Some("r1")),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_throttled_part_is_sent_again_alone_and_after_the_pause() {
    let throttled = said(429, "Retry-After: 23\r\n", &error("0x80072322", "slow down"));
    let server = Scripted::new(vec![
        answers(200, &[fine(), wrong(400, "0x80040237"), throttled, fine()]),
        answers(200, &[fine()]),
    ])
    .await;
    let reply = server.batch(&patches(4), OnError::Continue).await;
    assert_eq!(words(&reply), ["204", "refused 400 Duplicate", "204", "204"]);
    assert_eq!(paths(&server.requests()[1]), ["accounts(3)"]);
    assert!(server.clock.elapsed_seconds() >= 23);
    let totals = server.call.tally.totals();
    assert_eq!((totals.requests, totals.retries, totals.throttled), (2, 1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_throttled_part_of_a_batch_in_order_takes_those_after_it_along() {
    let throttled = said(429, "", &error("0x80072321", "slow down"));
    let server = Scripted::new(vec![answers(429, &[fine(), throttled]), answers(200, &[fine(), fine(), fine()])]).await;
    let reply = server.batch(&patches(4), OnError::Stop).await;
    assert_eq!(words(&reply), ["204", "204", "204", "204"]);
    assert_eq!(paths(&server.requests()[1]), ["accounts(2)", "accounts(3)", "accounts(4)"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_that_stays_throttled_or_deadlocked_keeps_its_refusal() {
    let throttled = || answers(200, &[fine(), said(429, "", &error("0x80072322", "slow down"))]);
    let again = || answers(200, &[said(429, "", &error("0x80072322", "slow down"))]);
    let policy = RetryPolicy { throttled_max: 2, ..RetryPolicy::default() };
    let server = Scripted::with(vec![throttled(), again(), again()], |config| config.retry = policy).await;
    let reply = server.batch(&patches(2), OnError::Continue).await;
    assert_eq!(words(&reply), ["204", "refused 429 Throttled"]);
    assert_eq!(server.requests().len(), 3);

    for (code, requests, class) in [("0x80044150", 3, "Unexpected"), ("0x8004ed47", 9, "Transient")] {
        let server = Scripted::new((0..12).map(|_| answers(200, &[wrong(500, code)])).collect()).await;
        let reply = server.batch(&patches(1), OnError::Continue).await;
        assert_eq!(words(&reply), [format!("refused 500 {class}")]);
        assert_eq!(server.requests().len(), requests, "{code}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_change_set_fails_as_one_and_the_rest_stays_aligned() {
    let set = Item::ChangeSet((2..=4).map(|number| part(Method::Post, number)).collect());
    let good = Item::ChangeSet((6..=7).map(|number| part(Method::Post, number)).collect());
    let items = [Item::Part(part(Method::Patch, 1)), set, Item::Part(part(Method::Delete, 5)), good];
    let inner = |id: u32| format!("--cs\r\nContent-ID: {id}\r\n{}", fine());
    let nested = format!("Content-Type: multipart/mixed; boundary=cs\r\n\r\n{}{}--cs--\r\n", inner(1), inner(2));
    let step = answers(200, &[fine(), wrong(400, "0x80040217"), fine(), nested]);
    let server = Scripted::new(vec![step]).await;
    let reply = server.batch(&items, OnError::Continue).await;
    let missing = "refused 400 Missing";
    assert_eq!(words(&reply), ["204", missing, missing, missing, "204", "204", "204"]);
    assert_eq!(server.requests()[0].matches("Content-ID: ").count(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_refused_as_a_whole_is_renewed_waited_for_or_reported() {
    let slow = || Step::Send(answer(429, "Retry-After: 9\r\n", &error("0x80072326", "slow down")));
    let server = Scripted::new(vec![Step::Send(answer(401, "", "")), slow(), answers(200, &[fine(), fine()])]).await;
    let reply = server.batch(&patches(2), OnError::Continue).await;
    assert_eq!(words(&reply), ["204", "204"]);
    assert!(server.requests()[2].contains("Bearer token-1"));

    let server =
        Scripted::new(vec![Step::Send(answer(400, "", &error("0x80048d19", "Stream was not readable")))]).await;
    let reply = server.batch(&patches(2), OnError::Continue).await;
    assert_eq!(words(&reply), ["refused 400 OurMistake", "refused 400 OurMistake"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_is_too_much_at_once_is_sent_in_smaller_ones() {
    let large = || Step::Send(answer(413, "Content-Type: text/html\r\n", "<title>Too large</title>"));
    let server = Scripted::new(vec![
        large(),
        large(),
        answers(200, &[fine()]),
        answers(200, &[wrong(400, "0x80040237")]),
        answers(200, &[fine()]),
        answers(200, &[fine()]),
    ])
    .await;
    let reply = server.batch(&patches(4), OnError::Continue).await;
    assert_eq!(words(&reply), ["204", "refused 400 Duplicate", "204", "204"]);
    let requests = server.requests();
    let asked: Vec<Vec<&str>> = requests[2..].iter().map(|request| paths(request)).collect();
    assert_eq!(asked, [["accounts(1)"], ["accounts(2)"], ["accounts(3)"], ["accounts(4)"]]);

    // A single part that is too much is refused, and nothing is sent for ever.
    let server = Scripted::new(vec![large()]).await;
    assert_eq!(words(&server.batch(&patches(1), OnError::Continue).await), ["refused 413 Split"]);
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_whose_answer_is_lost_is_unknown_and_not_sent_again() {
    let whole = multipart(&[fine(), fine()]);
    let cut = &whole[..whole.len() - 30];
    let closed = "--batchresponse_1--\r\n";
    for (step, expected) in [
        (Step::Send(Vec::new()), ["unknown", "unknown", "unknown"]),
        (Step::Send(answer(200, "Content-Type: application/json\r\n", "{}")), ["unknown", "unknown", "unknown"]),
        (Step::Send(answer(500, "", &error("0x80040216", "unexpected"))), ["unknown", "unknown", "unknown"]),
        (Step::Send(answer(504, "", "")), ["unknown", "unknown", "unknown"]),
        (Step::Send(answer(200, KIND, cut)), ["204", "unknown", "unknown"]),
        (Step::Send(answer(200, KIND, closed)), ["unknown", "unknown", "unknown"]),
        (answers(200, &[fine(), said(502, "", "<html>")]), ["204", "unknown", "unknown"]),
    ] {
        let server = Scripted::new(vec![step]).await;
        let reply = server.batch(&patches(3), OnError::Continue).await;
        assert_eq!(words(&reply), expected);
        assert!(reply.stopped.is_none());
        assert_eq!(server.requests().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_earlier_request_of_a_split_batch_did_is_told_even_when_a_later_one_fails() {
    let steps = vec![answers(200, &vec![fine(); 1000]), Step::CancelAndSend(answer(429, "Retry-After: 1\r\n", ""))];
    let server = Scripted::new(steps).await;
    let reply = server.batch(&patches(1002), OnError::Continue).await;
    let words = words(&reply);
    assert!(words[..1000].iter().all(|word| word == "204"));
    assert_eq!(words[1000..], ["not sent", "not sent"]);
    assert!(matches!(reply.stopped, Some(RequestError::Cancelled)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_and_cancelling_leave_a_batch_unknown_and_the_next_request_of_it_unsent() {
    let server = Scripted::with(vec![Step::Stall], |config| config.headers_timeout = Duration::from_millis(200)).await;
    let reply = server.batch(&patches(2), OnError::Continue).await;
    assert_eq!(words(&reply), ["unknown", "unknown"]);
    assert_eq!(server.requests().len(), 1);

    let server = Scripted::with(vec![Step::CancelAndStall], |config| {
        config.cancel_grace = Duration::from_millis(100);
    })
    .await;
    let reply = server.batch(&patches(1001), OnError::Continue).await;
    assert_eq!(words(&reply)[999..], ["unknown", "not sent"]);
    assert!(matches!(reply.stopped, Some(RequestError::Cancelled)));
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_stops_leaves_later_requests_unsent() {
    let server = Scripted::new(vec![Step::Send(Vec::new())]).await;
    let reply = server.batch(&patches(1001), OnError::Stop).await;
    let words = words(&reply);
    assert_eq!((words[999].as_str(), words[1000].as_str()), ("unknown", "not sent"));
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_reads_needs_no_leave_to_write_and_is_sent_again_like_any_read() {
    let reads: Vec<Item> = (1..=2).map(|number| Item::Part(part(Method::Get, number))).collect();
    let row = said(200, "Content-Type: application/json\r\n", r#"{"n":1}"#);
    let gone = wrong(404, "0x80040217");
    let server = Scripted::with(
        vec![
            Step::Send(Vec::new()),
            Step::Send(answer(503, "", "")),
            answers(200, &[row.clone(), said(500, "", "")]),
            answers(200, &[gone]),
        ],
        |config| config.writes = false,
    )
    .await;
    let reply = server.batch(&reads, OnError::Continue).await;
    assert_eq!(words(&reply), ["200", "refused 404 Missing"]);
    assert_eq!(server.requests().len(), 4);
    assert_eq!(paths(&server.requests()[3]), ["accounts(2)"]);

    let reply = server.batch(&patches(1), OnError::Continue).await;
    assert!(matches!(reply.stopped, Some(RequestError::ReadOnly { .. })));
    assert_eq!(words(&reply), ["not sent"]);
    assert_eq!(server.requests().len(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_that_cannot_be_sent_are_found_before_anything_is() {
    let server = Scripted::new(vec![]).await;
    let mut elsewhere = part(Method::Patch, 2);
    elsewhere.path = "https://evil.example/api/data/v9.2/accounts".to_owned();
    let mut broken = part(Method::Patch, 2);
    broken.body = Bytes::from_static(b"{\n}");
    for bad in [elsewhere, broken] {
        let mut items = patches(1);
        items.push(Item::Part(bad));
        let reply = server.batch(&items, OnError::Continue).await;
        assert!(matches!(reply.stopped, Some(RequestError::Protocol { .. })), "{reply:?}");
    }
    let none = server.batch(&[], OnError::Continue).await;
    assert!(none.parts.is_empty() && none.stopped.is_none());
    assert_eq!(server.requests().len(), 0);
}
