//! The state machine step by step; the whole of it is tried in `simulation`.

use super::*;

fn at_ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// Sends one request that is answered after `latency` milliseconds; returns the time of the answer.
fn one(core: &mut Core, now: u64, latency: u64, outcome: Outcome, signals: &Signals) -> u64 {
    assert_eq!(core.decide(at_ms(now), RequestKind::Page), Decision::Start);
    let id = core.start(at_ms(now), RequestKind::Page);
    core.answered(id, at_ms(now + latency), outcome, signals, 0.5);
    core.released(id, at_ms(now + latency));
    now + latency
}

/// Rounds in which every place is taken; returns the time after the last.
fn rounds(core: &mut Core, mut now: u64, count: usize, latency: u64) -> u64 {
    for _ in 0..count {
        let mut ids = Vec::new();
        while core.decide(at_ms(now), RequestKind::Page) == Decision::Start {
            ids.push(core.start(at_ms(now), RequestKind::Page));
        }
        now += latency;
        for id in ids {
            core.answered(id, at_ms(now), Outcome::Answered, &Signals::default(), 0.5);
            core.released(id, at_ms(now));
        }
    }
    now
}

/// A core that was told a limit far away, so that it does not feel its way.
fn told(in_flight_max: u32) -> Core {
    let mut core = Core::new(in_flight_max);
    core.requests.hit(Some(1e6), 0.0);
    core
}

fn throttled(retry_after: Option<u64>) -> (Outcome, Signals) {
    let signals = Signals { retry_after: retry_after.map(Duration::from_secs), ..Signals::default() };
    (Outcome::Throttled(Throttle::default()), signals)
}

#[test]
fn the_level_starts_low_and_grows_by_one_per_round_up_to_its_ceiling() {
    let mut core = told(6);
    assert_eq!(core.level(), 2);
    let mut levels = Vec::new();
    let mut now = 0;
    for _ in 0..8 {
        now = rounds(&mut core, now, 1, 100);
        levels.push(core.level());
    }
    assert_eq!(levels.last(), Some(&6));
    assert!(levels.windows(2).all(|pair| pair[1] - pair[0] <= 1), "{levels:?}");
}

#[test]
fn a_hint_of_one_is_heeded_and_a_missing_hint_does_no_harm() {
    let mut core = Core::new(8);
    let signals = Signals { parallel_hint: Some(1), ..Signals::default() };
    one(&mut core, 0, 50, Outcome::Answered, &signals);
    assert_eq!(core.level(), 1 + u32::from(core.level() > 1));
    let mut core = Core::new(8);
    one(&mut core, 0, 50, Outcome::Answered, &Signals::default());
    assert_eq!(core.level(), 2);
}

#[test]
fn nothing_starts_while_a_pause_is_pending() {
    let mut core = Core::new(8);
    let (outcome, signals) = throttled(Some(17));
    let now = one(&mut core, 1000, 100, outcome, &signals);
    assert_eq!(core.decide(at_ms(now), RequestKind::Small), Decision::At(at_ms(now + 17_000)));
    assert_eq!(core.decide(at_ms(now + 16_999), RequestKind::Page), Decision::At(at_ms(now + 17_000)));
    assert_eq!(core.decide(at_ms(now + 17_000), RequestKind::Page), Decision::Start);
}

#[test]
fn pauses_without_retry_after_double_until_an_answer_comes() {
    let mut core = Core::new(8);
    let mut now = 0;
    let mut pauses = Vec::new();
    for _ in 0..12 {
        let (outcome, signals) = throttled(None);
        now = one(&mut core, now, 10, outcome, &signals);
        let Decision::At(until) = core.decide(at_ms(now), RequestKind::Page) else { panic!("no pause") };
        pauses.push(until.saturating_sub(at_ms(now)).as_millis());
        now = until.as_millis() as u64;
    }
    assert_eq!(&pauses[..4], [1500, 3000, 6000, 12_000]);
    assert_eq!(pauses[11], 450_000, "three quarters of ten minutes");
    now = one(&mut core, now, 10, Outcome::Answered, &Signals::default());
    let (outcome, signals) = throttled(None);
    now = one(&mut core, now, 10, outcome, &signals);
    assert_eq!(core.decide(at_ms(now), RequestKind::Page), Decision::At(at_ms(now + 1500)));
}

#[test]
fn a_429_or_503_halves_the_level_once_per_round() {
    let mut core = told(16);
    let now = rounds(&mut core, 0, 40, 100);
    assert_eq!(core.level(), 16);
    let ids: Vec<u64> = (0..8).map(|_| core.start(at_ms(now), RequestKind::Page)).collect();
    for id in ids {
        core.answered(id, at_ms(now + 50), Outcome::Busy, &Signals::default(), 0.5);
        core.released(id, at_ms(now + 50));
    }
    assert_eq!(core.level(), 8);
    let (outcome, signals) = throttled(Some(0));
    one(&mut core, now + 100, 10, outcome, &signals);
    assert_eq!(core.level(), 4);
}

#[test]
fn latency_that_rises_strongly_lowers_the_level_but_not_below_four() {
    let mut core = told(16);
    let now = rounds(&mut core, 0, 60, 100);
    let now = rounds(&mut core, now, 2, 1000);
    assert!(core.level() < 16, "{}", core.level());
    let now = rounds(&mut core, now, 4, 4000);
    assert!((4..16).contains(&core.level()), "{}", core.level());
    rounds(&mut core, now, 60, 4000);
    assert_eq!(core.level(), 16, "what lasts becomes usual");
}

#[test]
fn a_request_without_an_answer_costs_its_time_and_frees_its_place() {
    let mut core = Core::new(1);
    let id = core.start(at_ms(0), RequestKind::Page);
    assert_eq!(core.decide(at_ms(10), RequestKind::Page), Decision::AfterOne);
    core.released(id, at_ms(3000));
    assert!((core.spent.total() - 3.0).abs() < 1e-9);
    assert_eq!(core.in_flight(), 0);
}

#[test]
fn while_no_limit_is_known_requests_are_spread_evenly_so_that_one_alone_meets_it() {
    let mut core = Core::new(8);
    // A steady latency of 80 ms, answers without headers.
    let mut now = rounds(&mut core, 0, 4, 80);
    let mut starts = Vec::new();
    while starts.len() < 2 {
        match core.decide(at_ms(now), RequestKind::Page) {
            Decision::Start => {
                starts.push(now);
                core.start(at_ms(now), RequestKind::Page);
            }
            Decision::At(turn) => now = turn.as_millis() as u64,
            Decision::AfterOne => panic!("two may be under way"),
        }
    }
    assert_eq!(starts[1] - starts[0], 40, "half of the time that one takes");
    // A word about a limit ends it.
    core.requests.hit(Some(6000.0), 10.0);
    assert_eq!(core.turn(RequestKind::Page), None);
}

#[test]
fn a_batch_is_expected_to_cost_what_its_operations_cost() {
    let mut core = told(8);
    let batch = Ask { kind: RequestKind::Bulk, operations: 100 };
    let mut now = 0;
    // Twenty batches of 100 take 5 ms each and are charged 500 ms.
    for number in 1..=20 {
        let id = core.start(at_ms(now), batch);
        now += 5;
        let left = 1200.0 - 0.5 * f64::from(number);
        let signals = Signals { remaining_seconds: Some(left), ..Signals::default() };
        core.answered(id, at_ms(now), Outcome::Answered, &signals, 0.5);
        core.released(id, at_ms(now));
    }
    assert!((0.4..0.6).contains(&core.expected(batch)), "{}", core.expected(batch));
    let single = core.expected(RequestKind::Bulk.into());
    assert!(single < 0.02, "{single}");
}

#[test]
fn a_refused_request_is_charged_nothing() {
    let mut core = Core::new(8);
    let (outcome, signals) = throttled(Some(1));
    one(&mut core, 0, 700, outcome, &signals);
    assert!(core.spent.total() < 1e-9);
}
