//! Owners who cannot own rows any more: their rows come back all the same, together, and belong to the user who restores.

use crate::harness::World;
use crate::restored::State;

const ROWS: u64 = 900;

#[test]
fn rows_of_owners_who_lost_their_roles_come_back_in_hardly_more_requests() {
    let world = World::of_rows(321, ROWS);
    let site = world.simple_site();
    site.backup();
    let people: Vec<String> = State::of(&world.simulator).tables["systemuser"].keys().cloned().collect();
    world.simulator.wipe();
    let plan = site.plan("back", &["restore"]);
    // Everybody but us.
    let own = world.simulator.user(0);
    for user in people.iter().filter(|user| !user.eq_ignore_ascii_case(&own)) {
        world.simulator.take_roles(user);
    }
    world.simulator.reset_stats();
    let applied = site.apply(&plan);
    applied.expect_clean();
    let adjusted = applied.end["adjusted"].as_array().expect("a list").len() as u64;
    let stats = world.simulator.stats();
    let more = stats.write_requests.saturating_sub(plan.requests());
    assert!(adjusted > 100, "{adjusted} rows lost their owner");
    assert!(more < adjusted / 4, "{more} requests more for {adjusted} rows");
}
