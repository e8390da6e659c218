//! Service protection limits, scaled down: no run fails, hardly a request is turned away, and nearly everything that is
//! permitted is used. Rates are counted by the simulator.

use std::time::{Duration, Instant};

use dynavault_model::RunReport;
use dynavault_simulator::{Config, Limits, Stats};

use crate::harness::{Site, SiteOptions, World, say};

/// Rates depend on what else the machine is doing, so they decide a test only where somebody asks for them on a quiet one:
/// `DYNAVAULT_MEASURE_RATES=1 cargo test --test scenarios limits -- --test-threads 1`. Everything else is always checked.
fn rates_are_measured() -> bool {
    std::env::var_os("DYNAVAULT_MEASURE_RATES").is_some()
}

/// Small pages, so that requests are what is scarce.
const PAGE_ROWS: usize = 5;
/// Share of what the limits permit that has to be used.
const USED_MIN: f64 = 0.9;
/// Share of requests that may be turned away, and a number that always may: a limit that no header tells is found by hitting it.
const TURNED_MAX: f64 = 0.01;
/// The same on a machine that is busy with other tests, where answers come late and in bursts.
const TURNED_MAX_BUSY: f64 = 0.05;
const TURNED_ALWAYS: u64 = 2;
/// Share of a run's requests that is measured: the last tables of a run are read alone.
const MEASURED: f64 = 0.9;
/// Requests under way at most: what a first refusal can find on its way.
const IN_FLIGHT: u32 = 8;

/// What the simulator had counted at a moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    /// Since the first answer.
    time: Duration,
    answered: u64,
    /// Execution time charged, in seconds.
    execution: f64,
}

/// A run with what the simulator counted, and when.
struct Measured {
    report: RunReport,
    limits: Limits,
    stats: Stats,
    samples: Vec<Sample>,
}

fn site(world: &World, name: &str, profiles: usize) -> Site {
    world.site(
        name,
        &SiteOptions {
            profiles,
            in_flight: IN_FLIGHT,
            limits: vec![("memory_mib", 2_048), ("tables_in_parallel", 16)],
            files: false,
            ..SiteOptions::default()
        },
    )
}

fn answered(stats: &Stats) -> u64 {
    stats.by_status.get(&200).copied().unwrap_or(0)
}

fn measure(world: &World, site: &Site, limits: &Limits) -> Measured {
    world.simulator.set_limits(Some(limits.clone()));
    world.simulator.reset_stats();
    let moment = world.now().without_files();
    let mut running = site.start(&["backup"]);
    let (mut begun, mut samples) = (None, Vec::new());
    let simulator = world.simulator.handle();
    let ended_early = !running.wait_for(|| {
        let stats = simulator.stats();
        let answered = answered(&stats);
        if answered > 0 {
            let time = begun.get_or_insert_with(Instant::now).elapsed();
            if samples.last().is_none_or(|sample: &Sample| sample.answered != answered) {
                samples.push(Sample { time, answered, execution: stats.execution_seconds });
            }
        }
        false
    });
    assert!(ended_early);
    let report = running.wait().expect_code(0).report();
    site.prove(&report, &moment);
    let measured = Measured { report, limits: limits.clone(), stats: world.simulator.stats(), samples };
    let (requests, execution, windows) = measured.per_window();
    say(&format!(
        "{limits:?}: {requests:.1} requests, {execution:.2} s in each of {windows} windows; \
         {} requests, {} turned away, {} of them during a block",
        measured.stats.requests, measured.stats.throttled, measured.stats.sent_while_blocked
    ));
    measured
}

impl Measured {
    /// Requests and seconds of execution in each whole window of the part of the run in which there is always something to
    /// read, and the number of those windows. What is permitted comes in bursts, one a window; only whole ones compare.
    fn per_window(&self) -> (f64, f64, u32) {
        let last = self.samples.last().map_or(0, |sample| sample.answered);
        let until = (last as f64 * MEASURED) as u64;
        let busy = self.samples.iter().find(|sample| sample.answered >= until).expect("a run has answers").time;
        let windows = (busy.as_secs_f64() / self.limits.window.as_secs_f64()) as u32;
        let measured = self.samples.iter().take_while(|sample| sample.time < self.limits.window * windows).last();
        let Some(end) = measured else { return (0.0, 0.0, 0) };
        (end.answered as f64 / f64::from(windows), end.execution / f64::from(windows), windows)
    }

    fn expect_polite(&self) {
        let turned = self.stats.throttled;
        let share = if rates_are_measured() { TURNED_MAX } else { TURNED_MAX_BUSY };
        let mut most = TURNED_ALWAYS.max((self.stats.requests as f64 * share) as u64);
        if !self.limits.headers {
            // The first refusal is how the limit is learned; what is on its way then is refused with it.
            most += u64::from(IN_FLIGHT) - 1;
        }
        assert!(turned <= most, "{turned} of {} requests were turned away", self.stats.requests);
        assert_eq!(self.report.throttled, turned);
    }
}

fn requests_limit(headers: bool) {
    let world = World::new(Config {
        seed: 501,
        rows: 5_000,
        page_size_max: PAGE_ROWS,
        latency: Duration::from_millis(10),
        ..Config::default()
    });
    let limits = Limits { requests: 300, window: Duration::from_secs(3), headers, ..Limits::default() };
    let measured = measure(&world, &site(&world, "site", 1), &limits);
    measured.expect_polite();
    assert!(measured.stats.requests > 900, "{} requests hardly fill three windows", measured.stats.requests);
    let (requests, _, windows) = measured.per_window();
    let permitted = limits.requests as f64;
    if rates_are_measured() {
        assert!(windows >= 2, "{windows} windows");
        assert!(requests >= USED_MIN * permitted, "{requests:.1} requests in a window of {permitted}");
    }
}

#[test]
fn the_limit_on_requests_is_used_and_kept_with_headers() {
    requests_limit(true);
}

#[test]
fn the_limit_on_requests_is_used_and_kept_without_headers() {
    requests_limit(false);
}

fn execution_limit(headers: bool, latency: u64) {
    let world = World::new(Config {
        seed: 502,
        rows: 800,
        page_size_max: PAGE_ROWS,
        latency: Duration::from_millis(latency),
        ..Config::default()
    });
    let limits =
        Limits { execution: Duration::from_secs(4), window: Duration::from_secs(3), headers, ..Limits::default() };
    let measured = measure(&world, &site(&world, "site", 1), &limits);
    measured.expect_polite();
    let (_, execution, windows) = measured.per_window();
    let permitted = limits.execution.as_secs_f64();
    if rates_are_measured() {
        assert!(windows >= 2, "{windows} windows");
        assert!(execution >= USED_MIN * permitted, "{execution:.2} s in a window of {permitted:.2} s");
    }
}

#[test]
fn the_limit_on_execution_time_is_used_and_kept_with_headers() {
    execution_limit(true, 100);
}

#[test]
fn the_limit_on_execution_time_is_used_and_kept_without_headers() {
    execution_limit(false, 60);
}

#[test]
fn the_limit_on_requests_at_once_is_learned_and_kept() {
    for headers in [true, false] {
        let world = World::new(Config {
            seed: 503,
            rows: 3_000,
            page_size_max: PAGE_ROWS,
            latency: Duration::from_millis(20),
            ..Config::default()
        });
        let limits = Limits { concurrency: 4, window: Duration::from_secs(300), headers, ..Limits::default() };
        let measured = measure(&world, &site(&world, "site", 1), &limits);
        measured.expect_polite();
        assert!(measured.stats.throttled >= 1, "eight at once were permitted");
        assert!(measured.stats.max_in_flight >= 4);
    }
}

#[test]
fn two_application_users_read_about_twice_as_fast() {
    let world = World::new(Config {
        seed: 504,
        rows: 4_000,
        page_size_max: PAGE_ROWS,
        latency: Duration::from_millis(10),
        ..Config::default()
    });
    let limits = Limits { requests: 150, window: Duration::from_secs(3), ..Limits::default() };
    let one = measure(&world, &site(&world, "one", 1), &limits);
    let two = measure(&world, &site(&world, "two", 2), &limits);
    for measured in [&one, &two] {
        measured.expect_polite();
    }
    let clients = world.simulator.clients();
    let asked = |measured: &Measured, user: usize| measured.stats.by_client.get(&clients[user]).copied().unwrap_or(0);
    assert_eq!(asked(&one, 1), 0);
    let least = if rates_are_measured() { 300 } else { 50 };
    assert!(asked(&two, 0) > least && asked(&two, 1) > least, "{} and {}", asked(&two, 0), asked(&two, 1));
    let ((slow, ..), (fast, ..)) = (one.per_window(), two.per_window());
    if rates_are_measured() {
        assert!(fast >= 1.6 * slow, "{fast:.1} against {slow:.1} requests in a window");
        assert!(fast <= 2.4 * slow, "{fast:.1} against {slow:.1} requests in a window");
    }
}

#[test]
fn a_limit_that_others_use_too_fails_no_run() {
    // What somebody else spends is seen by headers only; here the limit also shrinks in the middle.
    let world = World::new(Config {
        seed: 505,
        rows: 3_000,
        page_size_max: PAGE_ROWS,
        latency: Duration::from_millis(5),
        ..Config::default()
    });
    let site = site(&world, "site", 1);
    let limits = |requests| Some(Limits { requests, window: Duration::from_secs(3), ..Limits::default() });
    world.simulator.set_limits(limits(600));
    let moment = world.now().without_files();
    let mut running = site.start(&["backup"]);
    let simulator = world.simulator.handle();
    assert!(running.wait_for(|| simulator.stats().requests > 300));
    world.simulator.set_limits(limits(200));
    let report = running.wait().expect_code(0).report();
    site.prove(&report, &moment);
    let stats = world.simulator.stats();
    assert!(stats.throttled <= 20, "{} of {} requests were turned away", stats.throttled, stats.requests);
}
