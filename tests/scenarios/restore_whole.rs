//! Whole environments lost and put back.

use crate::harness::{SiteOptions, World};
use crate::restored::{State, reasons, shown};

/// Rows of the environment; `DYNAVAULT_SCENARIO_ROWS` may raise it.
const ROWS: u64 = 2_000;
const ROWS_MAX: u64 = 50_000;

fn rows() -> u64 {
    let wanted = std::env::var("DYNAVAULT_SCENARIO_ROWS").ok().and_then(|text| text.parse().ok());
    wanted.unwrap_or(ROWS).clamp(ROWS, ROWS_MAX)
}

#[test]
fn a_wiped_environment_comes_back_whole() {
    let world = World::of_rows(301, rows());
    let site = world.simple_site();
    let before = State::of(&world.simulator);
    site.backup();
    world.simulator.wipe();
    let plan = site.plan("whole", &["restore"]);
    let ended = site.try_apply(&plan, false);
    std::fs::copy(&plan.path, "/tmp/t1/whole.jsonl").unwrap();
    std::fs::write("/tmp/t1/whole.json", &ended.stdout).unwrap();
    std::fs::write("/tmp/t1/whole.err", &ended.stderr).unwrap();
    let applied = crate::restored::Applied { end: ended.json() };
    let after = State::of(&world.simulator);
    let found = after.since(&before);
    crate::harness::say(&shown(&found));
    applied.expect_clean();
    let _ = reasons(&found, &plan, &applied);
}
