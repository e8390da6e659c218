//! A restore under service protection limits, scaled down: no run fails, hardly a request is turned away, and nearly
//! everything that is permitted is used. Rates are counted by the simulator.

use std::time::{Duration, Instant};

use dynavault_simulator::{Config, Limits, Stats};
use serde_json::Value;

use crate::harness::{SiteOptions, World, say};

/// Share of what the limits permit that has to be used: the promise is about writing.
const USED_MIN: f64 = 0.9;
/// Share of requests that may be turned away on a quiet machine, on a busy one, and a number that always may: a limit that no
/// header tells is found by hitting it.
const TURNED_MAX: f64 = 0.01;
const TURNED_MAX_BUSY: f64 = 0.05;
const TURNED_ALWAYS: u64 = 2;
/// Requests under way at most: what a first refusal can find on its way.
const IN_FLIGHT: u32 = 8;
/// Share of the writes that is measured: the last steps of a plan are short and wait for each other.
const MEASURED: f64 = 0.9;

/// Rates decide a test only where somebody asks for them on a quiet machine, as in the tests of reading under limits:
/// `DYNAVAULT_MEASURE_RATES=1 cargo test --test scenarios limits -- --test-threads 1`.
fn rates_are_measured() -> bool {
    std::env::var_os("DYNAVAULT_MEASURE_RATES").is_some()
}

/// What had been answered at a moment, since the first write.
struct Sample {
    time: Duration,
    answered: u64,
    execution: f64,
}

fn answered(stats: &Stats) -> u64 {
    stats.by_status.iter().filter(|(status, _)| **status != 429).map(|(_, count)| count).sum()
}

/// Restores everything under limits; requests and seconds of execution in each whole window while it was writing, and the
/// number of those windows.
fn measure(seed: u64, rows: u64, latency: Duration, limits: &Limits) -> (f64, f64, u32) {
    let world = World::new(Config { seed, rows, latency, ..Config::default() });
    let site = world.site("site", &SiteOptions { in_flight: IN_FLIGHT, ..SiteOptions::default() });
    site.backup();
    world.simulator.wipe();
    site.run(&["restore", "-o", "plan.jsonl"]).expect_code(0);
    world.simulator.set_limits(Some(limits.clone()));
    world.simulator.reset_stats();
    let mut running = site.start(&["restore", "apply", "plan.jsonl"]);
    let simulator = world.simulator.handle();
    let (mut begun, mut samples, mut written) = (None, Vec::<Sample>::new(), 0);
    let ended_early = !running.wait_for(|| {
        let stats = simulator.stats();
        let writes: u64 = stats.operations.values().sum();
        let answered = answered(&stats);
        // Reading back is no part of what is measured.
        if writes > written {
            written = writes;
            let time = begun.get_or_insert_with(Instant::now).elapsed();
            samples.push(Sample { time, answered, execution: stats.execution_seconds });
        }
        false
    });
    assert!(ended_early);
    let result: Value = running.wait().expect_code(0).json();
    let stats = world.simulator.stats();
    assert_eq!(result["status"], "succeeded");
    assert_eq!(result["throttled"].as_u64(), Some(stats.throttled));
    let share = if rates_are_measured() { TURNED_MAX } else { TURNED_MAX_BUSY };
    let mut most = TURNED_ALWAYS.max((stats.requests as f64 * share) as u64);
    if !limits.headers {
        most += u64::from(IN_FLIGHT) - 1;
    }
    assert!(stats.throttled <= most, "{} of {} requests were turned away", stats.throttled, stats.requests);

    let (first, last) = (samples.first().expect("a restore writes"), samples.last().expect("a restore writes"));
    let until = first.answered + ((last.answered - first.answered) as f64 * MEASURED) as u64;
    let busy = samples.iter().find(|sample| sample.answered >= until).expect("the last one is").time;
    let windows = (busy.as_secs_f64() / limits.window.as_secs_f64()) as u32;
    let (requests, execution) = match samples.iter().take_while(|one| one.time < limits.window * windows).last() {
        Some(end) => (
            (end.answered - first.answered) as f64 / f64::from(windows),
            (end.execution - first.execution) / f64::from(windows),
        ),
        None => (0.0, 0.0),
    };
    say(&format!(
        "{limits:?}: {requests:.1} requests, {execution:.2} s in each of {windows} windows; {} requests, {} turned away",
        stats.requests, stats.throttled
    ));
    (requests, execution, windows)
}

fn requests_limit(headers: bool) {
    let limits = Limits { requests: 200, window: Duration::from_secs(3), headers, ..Limits::default() };
    let (requests, _, windows) = measure(801, 1_600, Duration::from_millis(10), &limits);
    if rates_are_measured() {
        assert!(windows >= 2, "{windows} windows");
        assert!(requests >= USED_MIN * limits.requests as f64, "{requests:.1} of {} in a window", limits.requests);
    }
}

#[test]
fn the_limit_on_requests_is_used_and_kept_while_writing_with_headers() {
    requests_limit(true);
}

#[test]
fn the_limit_on_requests_is_used_and_kept_while_writing_without_headers() {
    requests_limit(false);
}

#[test]
fn the_limit_on_execution_time_is_used_and_kept_while_writing() {
    // Every part of a batch takes its time: a batch must be small beside what a window permits, as it is in reality.
    let limits = Limits { execution: Duration::from_secs(2), window: Duration::from_secs(3), ..Limits::default() };
    let (_, execution, windows) = measure(802, 900, Duration::from_millis(5), &limits);
    if rates_are_measured() {
        let permitted = limits.execution.as_secs_f64();
        assert!(windows >= 2, "{windows} windows");
        assert!(execution >= USED_MIN * permitted, "{execution:.2} s in a window of {permitted:.2} s");
    }
}

#[test]
fn the_limit_on_requests_at_once_is_kept_while_writing() {
    let limits = Limits { concurrency: 3, window: Duration::from_secs(300), headers: false, ..Limits::default() };
    measure(803, 600, Duration::from_millis(20), &limits);
}
