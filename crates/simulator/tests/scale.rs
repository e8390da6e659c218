//! A large environment: slow in a debug build, so these run when asked for (`cargo test -- --ignored --nocapture`).

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement, printed for whoever asked for it")]

use std::time::{Duration, Instant};

use dynavault_simulator::{Config, Simulator};

fn resident_megabytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or("0 0");
    line.split_whitespace().nth(1).and_then(|kilobytes| kilobytes.parse::<u64>().ok()).unwrap_or(0) / 1024
}

async fn page(simulator: &Simulator, token: &str, url: &str) -> (usize, Duration) {
    let began = Instant::now();
    let prefer = "odata.include-annotations=\"Microsoft.Dynamics.CRM.lookuplogicalname\"";
    let mut reply = reqwest::Client::new().get(url).bearer_auth(token).header("prefer", prefer).send().await.unwrap();
    assert_eq!(reply.status(), 200, "{}", simulator.url());
    let mut bytes = 0;
    while let Some(chunk) = reply.chunk().await.unwrap() {
        bytes += chunk.len();
    }
    (bytes, began.elapsed())
}

#[tokio::test]
#[ignore = "takes seconds and hundreds of megabytes"]
async fn two_hundred_thousand_rows_and_two_million_generated_ones() {
    let began = Instant::now();
    let config = Config { rows: 200_000, big_table_rows: 2_000_000, ..Config::default() };
    let simulator = Simulator::start(config).await.unwrap();
    let total: u64 = simulator.row_counts().values().sum();
    println!("built {total} rows in {:?}, {} MB resident", began.elapsed(), resident_megabytes());
    assert!(resident_megabytes() < 600);
    let form = format!(
        "grant_type=client_credentials&client_id={}&client_secret={}&scope={}/.default",
        simulator.client_id(),
        simulator.secret(),
        simulator.url()
    );
    let url = format!("{}/{}/oauth2/v2.0/token", simulator.authority(), simulator.tenant());
    let mut reply = reqwest::Client::new().post(url).body(form).send().await.unwrap();
    let body = reply.chunk().await.unwrap().unwrap();
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let token = body["access_token"].as_str().unwrap();
    for set in ["accounts", "contacts", "activitypointers", "new_bigs"] {
        let url = format!("{}/api/data/v9.2/{set}", simulator.url());
        let (bytes, time) = page(&simulator, token, &url).await;
        println!("first page of {set}: {} KB in {time:?}", bytes / 1024);
        assert!(time < Duration::from_secs(2));
    }
    let began = Instant::now();
    let summary = simulator.edit(1, 2_000);
    println!("2,000 edits of {} tables in {:?}", summary.tables.len(), began.elapsed());
}
