//! Writes that go wrong on the way, and writes beyond the limits (dataverse 5.1, 5.3).

use std::time::Duration;

use dynavault_simulator::{Config, FaultKind, Faults, Limits, TableFault};
use serde_json::{Value, json};

use crate::client::{id, part, quiet, start, statuses};

fn on_write(table: &str, nth: u64, kind: FaultKind) -> Faults {
    Faults { on_write: vec![TableFault { table: table.to_owned(), nth, kind }], ..Faults::default() }
}

#[tokio::test]
async fn a_cut_connection_does_not_say_what_was_done() {
    let (simulator, client) = start(quiet()).await;
    for (number, kind, done) in [(1, FaultKind::CutBefore, false), (2, FaultKind::CutAfter, true)] {
        simulator.set_faults(on_write("account", 1, kind));
        let path = format!("accounts({})", id(number));
        let lost = client.try_send("PATCH", &path, &[], "{\"name\":\"A\"}").await;
        assert!(lost.is_err(), "{kind:?}: {lost:?}");
        let found = client.send("GET", &path, &[], &Value::Null).await;
        assert_eq!(found.status == 200, done, "{kind:?}");
        assert_eq!(client.patch(&path, &json!({"name": "B"})).await.status, 204, "{kind:?}: once");
    }
    assert_eq!(simulator.stats().faults.len(), 2);
}

#[tokio::test]
async fn a_server_error_comes_before_anything_is_done() {
    let (simulator, client) = start(quiet()).await;
    for (number, kind, status) in
        [(1, FaultKind::ServerError, 500), (2, FaultKind::Unavailable, 503), (3, FaultKind::Throttled, 429)]
    {
        simulator.set_faults(on_write("account", 1, kind));
        let path = format!("accounts({})", id(number));
        assert_eq!(client.patch(&path, &json!({"name": "A"})).await.status, status);
        assert_eq!(client.send("GET", &path, &[], &Value::Null).await.status, 404);
    }
}

#[tokio::test]
async fn a_batch_may_be_turned_away_whole_or_in_part() {
    let (simulator, client) = start(quiet()).await;
    let parts: Vec<String> =
        (1..=3).map(|number| part("POST /api/data/v9.2/accounts", "", &json!({"accountid": id(number)}))).collect();
    simulator.set_faults(on_write("$batch", 1, FaultKind::Throttled));
    assert_eq!(client.batch(&[], &parts).await.status, 429);
    simulator.set_faults(on_write("$batch", 1, FaultKind::ThrottledPart));
    let reply = client.batch(&[("prefer", "odata.continue-on-error")], &parts).await;
    assert_eq!((reply.status, statuses(&reply)), (200, vec![204, 429, 204]));
    assert!(reply.body.contains("Retry-After: 1"));
    assert_eq!(client.send("GET", &format!("accounts({})", id(2)), &[], &Value::Null).await.status, 404);
}

#[tokio::test]
async fn a_batch_is_one_request_that_takes_its_time() {
    let limits = Limits { requests: 3, execution: Duration::from_secs(10), ..Limits::default() };
    let config = Config { limits: Some(limits), execution: Some(Duration::from_secs(1)), ..quiet() };
    let (simulator, client) = start(config).await;
    let parts = |count: u32| -> Vec<String> {
        (0..count).map(|_| part("GET /api/data/v9.2/WhoAmI", "", &Value::Null)).collect()
    };
    assert_eq!(client.batch(&[], &parts(9)).await.status, 200);
    assert!((simulator.stats().execution_seconds - 9.0).abs() < 0.01);
    assert_eq!(client.batch(&[], &parts(1)).await.status, 200);
    let refused = client.batch(&[], &parts(1)).await;
    assert_eq!(refused.refusal(), (429, "0x80072321".to_owned()), "time is up before requests are");
}
