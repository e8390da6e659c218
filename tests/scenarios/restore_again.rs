//! A restore that was carried out leaves nothing to do: a plan made right after it finds what the service has put there by
//! itself, and the plan after that finds nothing at all.

use std::collections::BTreeMap;

use dynavault_simulator::Handle;

use crate::harness::{Site, World};
use crate::restored::{Plan, State};

const ROWS: u64 = 1_000;
/// What a message makes when it closes a row; the message does not take every value (dataverse 6.5).
const CLOSES: [&str; 4] = ["opportunityclose", "incidentresolution", "quoteclose", "orderclose"];

/// Everybody can own rows, so that nothing is refused.
fn enable_everybody(simulator: &Handle) {
    for (id, _) in State::of(simulator).tables["systemuser"].iter().filter(|(_, user)| user["isdisabled"] == "true") {
        simulator.edit_row("systemuser", id, "isdisabled", "false").expect("an administrator may enable users");
    }
}

/// Operations of a plan by row: step, table, kind and the columns they write.
fn ops(plan: &Plan) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for op in plan.lines("op") {
        let word = |member: &str| op[member].as_str().unwrap_or_default().to_string();
        let columns = op["set"].as_object().map(|set| {
            let names = set.keys().filter(|name| !name.contains('@'));
            names.cloned().collect::<Vec<_>>().join(",")
        });
        let what = format!("{} {} {} {}", word("step"), word("table"), word("do"), columns.unwrap_or_default());
        found.entry(op["key"].to_string()).or_default().push(what);
    }
    found
}

/// Whether the operations on a row put right what the service has done by itself, as the guide says.
fn is_documented(ops: &[String]) -> bool {
    let words = |op: &String| op.split(' ').map(str::to_string).collect::<Vec<_>>();
    let are = |meant: fn(&str, &str, &str) -> bool| {
        ops.iter().all(|op| {
            let words = words(op);
            meant(&words[1], &words[2], &words[3])
        })
    };
    // `by-state`, `default-set`, `state-from-above`.
    are(|table, _, _| CLOSES.contains(&table))
        || (are(|_, kind, columns| kind == "state" || columns == "_transactioncurrencyid_value")
            && ops.iter().any(|op| op.ends_with(" update _transactioncurrencyid_value")))
        || are(|table, kind, _| table == "product" && kind == "state")
}

/// Plans the same once more: nothing is left but what the service has done, and after that nothing.
fn expect_nothing_left(site: &Site, arguments: &[&str]) {
    let again = site.plan("again", arguments);
    let mut left = ops(&again);
    left.retain(|_, ops| !is_documented(ops));
    assert!(left.is_empty(), "{arguments:?} leaves\n{left:#?}\n{:#}", again.summary["counts"]);
    site.apply(&again).expect_clean();
    let last = site.plan("last", arguments);
    assert!(ops(&last).is_empty(), "{arguments:?} never ends\n{:#?}", ops(&last));
}

#[test]
fn a_wiped_environment_that_came_back_needs_nothing_more() {
    let world = World::of_rows(351, ROWS);
    let site = world.simple_site();
    enable_everybody(&world.simulator);
    site.backup();
    assert!(world.simulator.wipe() > 500);
    site.apply(&site.plan("whole", &["restore"])).expect_clean();
    let fill = site.plan("fill", &["restore"]);
    assert!(ops(&fill).is_empty(), "{:#?}", ops(&fill));
    expect_nothing_left(&site, &["restore", "--conflict", "overwrite"]);
}

#[test]
fn an_edited_environment_that_was_restored_needs_nothing_more() {
    for (seed, mirror) in [(352, true), (353, false), (354, true)] {
        let world = World::of_rows(seed, ROWS);
        let site = world.simple_site();
        enable_everybody(&world.simulator);
        site.backup();
        world.simulator.edit(seed, 400);
        enable_everybody(&world.simulator);
        let mut arguments = vec!["restore", "--conflict", "overwrite"];
        arguments.extend(mirror.then_some("--mirror"));
        site.apply(&site.plan("edited", &arguments)).expect_clean();
        expect_nothing_left(&site, &arguments);
    }
}
