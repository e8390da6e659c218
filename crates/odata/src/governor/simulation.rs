//! The governor against a model of the service, over many windows, without a clock: how much of what is permitted does it
//! use, and how often does it run into a limit? The cases are a table; each says what range is acceptable.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use super::signals::{LimitKind, Signals, Throttle};
use super::state::{Ask, Core, Decision, Outcome, RequestKind};
use crate::retry::Chance;

/// A service, its limits scaled or not, and who calls it.
#[derive(Debug, Clone, Copy)]
struct Case {
    name: &'static str,
    /// Limits per server: requests, seconds of execution, requests at once, window in seconds.
    requests: u32,
    seconds: f64,
    at_once: usize,
    window: f64,
    servers: usize,
    /// Remaining figures in the headers; numbers in the text of a 429.
    headers: bool,
    numbers: bool,
    /// Execution and network time of a request, in seconds; both vary by half.
    execution: f64,
    network: f64,
    /// By which share both vary: 0.5 means from half to one and a half.
    spread: f64,
    workers: usize,
    /// Operations of every other request, or of every other hundred, and the execution time charged for each beyond the first,
    /// which nobody waits for.
    operations: u32,
    in_turn: u64,
    charged_each: f64,
    /// Execution time charged, in multiples of the time a request takes.
    charge: f64,
    /// The figures in the headers are those of the arrival of a request, not of its end.
    early_headers: bool,
    /// Share of the limit on requests that is used up when we begin, and that another client keeps using.
    used_before: f64,
    others: f64,
    /// Length of the trial in windows.
    windows: f64,
    /// Least share of what is permitted, most share of requests answered with 429.
    share_min: f64,
    throttled_max: f64,
}

const PRODUCTION: Case = Case {
    name: "documented limits, headers",
    requests: 6000,
    seconds: 1200.0,
    at_once: 52,
    window: 300.0,
    servers: 1,
    headers: true,
    numbers: true,
    execution: 0.1,
    network: 0.02,
    spread: 0.5,
    workers: 8,
    operations: 1,
    in_turn: 1,
    charged_each: 0.0,
    charge: 1.0,
    early_headers: false,
    used_before: 0.0,
    others: 0.0,
    windows: 8.0,
    share_min: 0.95,
    throttled_max: 0.000_1,
};
const SCALED_30: Case = Case {
    name: "600 per 30 s, headers",
    requests: 600,
    seconds: 120.0,
    window: 30.0,
    execution: 0.05,
    throttled_max: 0.001,
    ..PRODUCTION
};
const SCALED_3: Case = Case {
    name: "60 per 3 s, headers",
    requests: 60,
    seconds: 12.0,
    window: 3.0,
    execution: 0.05,
    network: 0.002,
    windows: 40.0,
    throttled_max: 0.002,
    ..PRODUCTION
};
/// A limit on execution that a few requests at once reach; a run of some two hundred requests.
const SHORT: Case = Case {
    name: "4 s per 3 s",
    requests: 6000,
    seconds: 4.0,
    window: 3.0,
    execution: 0.06,
    network: 0.002,
    share_min: 0.9,
    throttled_max: 0.01,
    ..PRODUCTION
};
/// Trials of each case.
const SEEDS: u64 = 2;

/// Without headers the first meeting with a limit is a 429 for everything under way.
const BLIND: f64 = 0.01;

const CASES: &[Case] = &[
    PRODUCTION,
    Case { name: "documented limits, no headers", headers: false, ..PRODUCTION },
    Case { name: "documented limits, one worker", workers: 1, execution: 0.02, ..PRODUCTION },
    Case { name: "documented limits, many fast workers", workers: 16, execution: 0.02, ..PRODUCTION },
    Case { name: "documented limits, execution binds", execution: 0.5, workers: 16, ..PRODUCTION },
    Case { name: "documented limits, execution binds, slow", execution: 1.0, workers: 16, ..PRODUCTION },
    Case {
        name: "documented limits, execution binds, no headers",
        execution: 0.5,
        workers: 16,
        headers: false,
        share_min: 0.945,
        ..PRODUCTION
    },
    Case { name: "documented limits, far away", execution: 0.1, network: 0.15, workers: 16, ..PRODUCTION },
    SCALED_30,
    Case { name: "600 per 30 s, no headers", headers: false, throttled_max: BLIND, ..SCALED_30 },
    Case { name: "600 per 30 s, one worker", workers: 1, execution: 0.02, network: 0.005, ..SCALED_30 },
    Case { name: "600 per 30 s, 16 workers", workers: 16, execution: 0.02, ..SCALED_30 },
    Case {
        name: "600 per 30 s, 16 workers, no headers",
        workers: 16,
        execution: 0.02,
        headers: false,
        throttled_max: BLIND,
        ..SCALED_30
    },
    Case { name: "120 s per 30 s bind", execution: 0.5, workers: 16, throttled_max: 0.002, ..SCALED_30 },
    Case {
        name: "120 s per 30 s bind, no headers",
        execution: 0.5,
        workers: 16,
        headers: false,
        windows: 40.0,
        throttled_max: BLIND,
        ..SCALED_30
    },
    Case {
        name: "120 s per 30 s bind, slow",
        execution: 1.0,
        workers: 16,
        windows: 20.0,
        throttled_max: 0.005,
        ..SCALED_30
    },
    SCALED_3,
    Case { name: "60 per 3 s, no headers", headers: false, throttled_max: BLIND, ..SCALED_3 },
    Case { name: "60 per 3 s, one worker", workers: 1, execution: 0.02, ..SCALED_3 },
    Case { name: "60 per 3 s, 16 workers", workers: 16, execution: 0.1, ..SCALED_3 },
    Case {
        name: "60 per 3 s, 16 workers, no headers",
        workers: 16,
        execution: 0.02,
        headers: false,
        throttled_max: BLIND,
        ..SCALED_3
    },
    Case { name: "12 s per 3 s bind", execution: 0.3, workers: 16, share_min: 0.92, throttled_max: 0.005, ..SCALED_3 },
    Case {
        name: "four at once",
        at_once: 4,
        workers: 16,
        execution: 0.1,
        requests: 6000,
        seconds: 1e6,
        throttled_max: 0.005,
        ..SCALED_30
    },
    Case {
        name: "twelve at once",
        at_once: 12,
        workers: 40,
        execution: 0.2,
        requests: 60_000,
        seconds: 1e6,
        throttled_max: 0.005,
        ..SCALED_30
    },
    Case { name: "no limit in reach", requests: 100_000, seconds: 1e6, workers: 16, ..SCALED_30 },
    Case {
        name: "three servers, headers",
        servers: 3,
        workers: 16,
        execution: 0.05,
        requests: 300,
        share_min: 0.85,
        throttled_max: BLIND,
        ..SCALED_30
    },
    Case {
        name: "three servers, documented limits",
        servers: 3,
        workers: 16,
        execution: 0.05,
        share_min: 0.85,
        throttled_max: BLIND,
        ..PRODUCTION
    },
    Case { name: "much more is charged than seen", charge: 10.0, throttled_max: 0.005, share_min: 0.9, ..SCALED_30 },
    Case {
        name: "much more is charged than seen, no headers",
        charge: 10.0,
        headers: false,
        windows: 20.0,
        throttled_max: BLIND,
        share_min: 0.9,
        ..SCALED_30
    },
    Case {
        name: "much more is charged than seen, 3 s",
        charge: 10.0,
        network: 0.0,
        execution: 0.03,
        throttled_max: 0.015,
        share_min: 0.85,
        ..SCALED_3
    },
    Case { name: "much more is charged than seen, documented limits", charge: 5.0, ..PRODUCTION },
    Case { name: "figures of the arrival", early_headers: true, workers: 16, ..SCALED_30 },
    Case {
        name: "figures of the arrival, execution binds",
        early_headers: true,
        execution: 0.5,
        workers: 16,
        throttled_max: 0.005,
        ..SCALED_30
    },
    Case {
        name: "a full window was used before",
        used_before: 0.95,
        share_min: 0.90,
        throttled_max: 0.002,
        ..SCALED_30
    },
    Case {
        name: "documented limits, half a window used before",
        used_before: 0.5,
        share_min: 0.90,
        throttled_max: 0.002,
        ..PRODUCTION
    },
    Case {
        name: "another client uses a third",
        others: 0.33,
        workers: 16,
        share_min: 0.85,
        throttled_max: BLIND,
        ..SCALED_30
    },
    Case { name: "60 per 3 s, uneven network", network: 0.06, share_min: 0.93, throttled_max: 0.005, ..SCALED_3 },
    Case {
        name: "60 per 3 s, uneven network, no headers",
        network: 0.06,
        headers: false,
        throttled_max: BLIND,
        ..SCALED_3
    },
    Case {
        name: "a short run, no headers, execution binds",
        headers: false,
        windows: 3.0,
        throttled_max: BLIND,
        ..SHORT
    },
    Case {
        name: "a short run, no headers, execution binds, no spread",
        headers: false,
        spread: 0.0,
        windows: 3.0,
        throttled_max: BLIND,
        ..SHORT
    },
    Case {
        name: "a short run, no headers, requests bind",
        headers: false,
        requests: 60,
        spread: 0.0,
        windows: 3.0,
        throttled_max: BLIND,
        ..SHORT
    },
    Case { name: "a short run, headers, no spread", spread: 0.0, windows: 3.0, throttled_max: BLIND, ..SHORT },
    Case {
        name: "batches of 20, each operation charged",
        operations: 20,
        charged_each: 0.005,
        seconds: 2.0,
        execution: 0.005,
        network: 0.001,
        windows: 30.0,
        share_min: 0.9,
        throttled_max: 0.005,
        ..SHORT
    },
    Case {
        name: "batches of 100 now and then",
        operations: 100,
        in_turn: 100,
        charged_each: 0.005,
        seconds: 2.0,
        execution: 0.005,
        network: 0.001,
        windows: 60.0,
        share_min: 0.85,
        throttled_max: 0.01,
        ..SHORT
    },
    Case {
        name: "batches of 100, each operation charged",
        operations: 100,
        charged_each: 0.005,
        seconds: 2.0,
        execution: 0.005,
        network: 0.001,
        windows: 60.0,
        share_min: 0.9,
        throttled_max: 0.01,
        ..SHORT
    },
    Case {
        name: "no headers, no numbers",
        headers: false,
        numbers: false,
        share_min: 0.80,
        throttled_max: 0.02,
        windows: 30.0,
        ..SCALED_30
    },
];

#[derive(Debug, Default)]
struct Server {
    arrivals: VecDeque<f64>,
    executions: VecDeque<(f64, f64)>,
    spent: f64,
    running: usize,
}

impl Server {
    fn prune(&mut self, now: f64, window: f64) {
        while self.arrivals.front().is_some_and(|arrival| *arrival <= now - window) {
            self.arrivals.pop_front();
        }
        while let Some((end, seconds)) = self.executions.front()
            && *end <= now - window
        {
            self.spent -= seconds;
            self.executions.pop_front();
        }
    }

    fn signals(&self, case: &Case) -> Signals {
        if !case.headers {
            return Signals::default();
        }
        Signals {
            remaining_requests: Some(f64::from(case.requests) - self.arrivals.len() as f64),
            remaining_seconds: Some((case.seconds - self.spent).max(0.0)),
            ..Signals::default()
        }
    }

    /// The limit that refuses a request now, and the seconds until it would not.
    fn refusal(&self, case: &Case, now: f64) -> Option<(LimitKind, f64)> {
        if self.arrivals.len() >= case.requests as usize {
            return Some((LimitKind::Requests, self.arrivals[0] + case.window - now));
        }
        if self.spent >= case.seconds {
            let mut left = self.spent;
            for (end, seconds) in &self.executions {
                left -= seconds;
                if left < case.seconds {
                    return Some((LimitKind::Execution, end + case.window - now));
                }
            }
        }
        (self.running >= case.at_once).then_some((LimitKind::Concurrency, 1.0))
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Event {
    Wake,
    /// A request of another client.
    Other,
    Arrive {
        worker: usize,
        id: u64,
    },
    End {
        worker: usize,
        id: u64,
        server: usize,
        execution: f64,
        signals: Signals,
    },
    Reply {
        worker: usize,
        id: u64,
        outcome: Outcome,
        signals: Signals,
    },
}

#[derive(Debug, Clone, Default)]
struct Score {
    good: u32,
    throttled: u32,
    /// Good answers per window.
    by_window: Vec<u32>,
}

fn run(case: &Case, seed: u64) -> Score {
    let chance = Chance::new(seed);
    let mut core = Core::new(16);
    let mut servers: Vec<Server> = (0..case.servers).map(|_| Server::default()).collect();
    let mut events: BinaryHeap<Reverse<(u64, u64)>> = BinaryHeap::new();
    let mut payloads: Vec<Event> = Vec::new();
    let mut waiting: VecDeque<usize> = (0..case.workers).collect();
    let mut started = 0;
    let mut score = Score { by_window: vec![0; 64], ..Score::default() };
    let end = case.window * case.windows;
    // The ledger must not depend on starting at zero.
    let origin = 1000.0;
    let push = |events: &mut BinaryHeap<Reverse<(u64, u64)>>, payloads: &mut Vec<Event>, time: f64, event: Event| {
        events.push(Reverse(((time * 1e9) as u64, payloads.len() as u64)));
        payloads.push(event);
    };
    push(&mut events, &mut payloads, origin, Event::Wake);
    for server in &mut servers {
        let used = (case.used_before * f64::from(case.requests)) as u32;
        server
            .arrivals
            .extend((0..used).map(|number| origin - case.window * (1.0 - f64::from(number) / f64::from(used))));
    }
    if case.others > 0.0 {
        push(&mut events, &mut payloads, origin, Event::Other);
    }
    let varied = |mean: f64| mean * (1.0 - case.spread + 2.0 * case.spread * chance.next());
    while let Some(Reverse((nanoseconds, index))) = events.pop() {
        let now = nanoseconds as f64 / 1e9;
        if now > origin + end {
            break;
        }
        let clock = Duration::from_nanos(nanoseconds);
        match payloads[index as usize] {
            Event::Wake => {}
            Event::Other => {
                servers[0].prune(now, case.window);
                if servers[0].refusal(case, now).is_none() {
                    servers[0].arrivals.push_back(now);
                }
                let pause = case.window / (case.others * f64::from(case.requests));
                push(&mut events, &mut payloads, now + pause, Event::Other);
            }
            Event::Arrive { worker, id } => {
                let number = (chance.next() * servers.len() as f64) as usize;
                let server = &mut servers[number];
                server.prune(now, case.window);
                if let Some((kind, seconds)) = server.refusal(case, now) {
                    let (allowed, window) = match kind {
                        LimitKind::Requests => (f64::from(case.requests), Some(case.window)),
                        LimitKind::Execution => (case.seconds, Some(case.window)),
                        LimitKind::Concurrency => (case.at_once as f64, None),
                    };
                    let throttle = Throttle {
                        kind: Some(kind),
                        allowed: case.numbers.then_some(allowed),
                        window: window.filter(|_| case.numbers).map(Duration::from_secs_f64),
                    };
                    let signals =
                        Signals { retry_after: Some(Duration::from_secs_f64(seconds.ceil())), ..Signals::default() };
                    let reply = Event::Reply { worker, id, outcome: Outcome::Throttled(throttle), signals };
                    push(&mut events, &mut payloads, now + varied(case.network / 2.0), reply);
                } else {
                    server.arrivals.push_back(now);
                    server.running += 1;
                    let execution = varied(case.execution);
                    let signals = server.signals(case);
                    let ending = Event::End { worker, id, server: number, execution, signals };
                    push(&mut events, &mut payloads, now + execution, ending);
                }
            }
            Event::End { worker, id, server, execution, signals } => {
                let server = &mut servers[server];
                server.running -= 1;
                let beyond = f64::from(operations(case, id) - 1) * case.charged_each;
                let charged = execution * case.charge + beyond;
                server.executions.push_back((now, charged));
                server.spent += charged;
                server.prune(now, case.window);
                let signals = if case.early_headers { signals } else { server.signals(case) };
                let reply = Event::Reply { worker, id, outcome: Outcome::Answered, signals };
                push(&mut events, &mut payloads, now + varied(case.network / 2.0), reply);
            }
            Event::Reply { worker, id, outcome, signals } => {
                core.answered(id, clock, outcome, &signals, chance.next());
                core.released(id, clock);
                if outcome == Outcome::Answered {
                    score.good += 1;
                    score.by_window[(((now - origin) / case.window) as usize).min(63)] += 1;
                } else {
                    score.throttled += 1;
                }
                waiting.push_back(worker);
            }
        }
        while let Some(worker) = waiting.front().copied() {
            let ask = Ask { kind: RequestKind::Page, operations: operations(case, started + 1) };
            match core.decide(clock, ask) {
                Decision::Start => {
                    waiting.pop_front();
                    let id = core.start(clock, ask);
                    started = id;
                    let arrival = Event::Arrive { worker, id };
                    push(&mut events, &mut payloads, now + varied(case.network / 2.0), arrival);
                }
                Decision::At(time) => {
                    assert!(time > clock, "{}: asked to wait until now", case.name);
                    push(&mut events, &mut payloads, time.as_secs_f64() + 1e-9, Event::Wake);
                    break;
                }
                Decision::AfterOne => {
                    assert!(core.in_flight() > 0, "{}: waits for a request that does not exist", case.name);
                    break;
                }
            }
        }
    }
    score
}

/// Operations of the request with this number.
fn operations(case: &Case, number: u64) -> u32 {
    if (number / case.in_turn).is_multiple_of(2) { case.operations } else { 1 }
}

/// Good answers the limits and the workers would permit, the burst of an empty window not counted.
fn permitted(case: &Case) -> f64 {
    let servers = case.servers as f64;
    let beyond = f64::from(case.operations - 1) * case.charged_each / 2.0;
    let rate = [
        servers * f64::from(case.requests) * (1.0 - case.others) / case.window,
        servers * case.seconds / case.window / (case.execution * case.charge + beyond),
        servers * case.at_once as f64 / (case.execution + case.network),
        case.workers.min(16) as f64 / (case.execution + case.network),
    ];
    rate.into_iter().fold(f64::INFINITY, f64::min) * case.window * case.windows
}

#[test]
fn the_governor_stays_just_under_every_limit_of_the_table() {
    let mut failures = Vec::new();
    for case in CASES {
        for seed in 1..=SEEDS {
            let score = run(case, seed);
            let share = f64::from(score.good) / permitted(case);
            let throttled = f64::from(score.throttled) / f64::from(score.good + score.throttled);
            let line = format!(
                "{:50} seed {seed}: {:5.1} % of permitted, {:5.2} % ({}) throttled",
                case.name,
                share * 100.0,
                throttled * 100.0,
                score.throttled
            );
            if std::env::var_os("GOVERNOR_TABLE").is_some() {
                failures.push(format!("{line} {:?}", &score.by_window[..(case.windows as usize).min(14)]));
            } else if share < case.share_min || throttled > case.throttled_max {
                failures.push(line);
            }
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}
