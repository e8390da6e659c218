//! A full backup, ten rounds of edits with an incremental backup each; then every table of every snapshot is compared,
//! with the catalog and without it.

use dynavault_model::{RunReport, TableMode};

use crate::harness::{Moment, Site, World, entry};

/// Rows of the environment; `DYNAVAULT_SCENARIO_ROWS` may raise it.
const ROWS: u64 = 20_000;
const ROWS_MAX: u64 = 200_000;
const ROUNDS: u64 = 10;
/// Tables that the program exports itself; the others go through the engine.
const BY_PROGRAM: [&str; 3] = ["account", "customeraddress", "new_telemetry"];

fn rows() -> u64 {
    let wanted = std::env::var("DYNAVAULT_SCENARIO_ROWS").ok().and_then(|text| text.parse().ok());
    wanted.unwrap_or(ROWS).clamp(ROWS, ROWS_MAX)
}

fn prove_all(site: &Site, history: &[(RunReport, Moment)]) {
    for (report, moment) in history {
        site.prove(report, moment);
    }
    // The program gives what the engine gives.
    for (report, moment) in [&history[0], &history[history.len() / 2], &history[history.len() - 1]] {
        for table in BY_PROGRAM {
            let found = site.export_by_program(report.snapshot.expect("a snapshot"), table);
            crate::harness::compare(table, &found, &moment.rows[table]);
        }
    }
}

/// Tracked tables were read by their tokens, the others compared.
fn expect_increment(world: &World, report: &RunReport) {
    for table in world.simulator.tables().iter().filter(|table| table.readable && !table.operational) {
        let mode = entry(report, &table.logical_name).mode;
        let expected = if table.trackable { TableMode::Delta } else { TableMode::Sweep };
        assert_eq!(mode, expected, "{}", table.logical_name);
    }
}

#[test]
fn ten_rounds_of_edits_leave_every_snapshot_exact_with_and_without_the_catalog() {
    let world = World::of_rows(101, rows());
    let site = world.simple_site();
    let mut history = Vec::new();
    let moment = world.now();
    let report = site.backup();
    assert!(report.tables.iter().all(|table| table.mode == TableMode::Full || table.table == "new_widget_note"));
    assert_eq!(report.tables.iter().map(|table| table.rows_stored).sum::<u64>(), moment.count());
    history.push((report, moment));
    for round in 1..=ROUNDS {
        let changes = 150 + (round as usize % 3) * 200;
        world.simulator.edit(1_000 + round, changes);
        let moment = world.now();
        let report = site.backup();
        expect_increment(&world, &report);
        let (before, last) = (&history[history.len() - 1].1, entry(&report, "contact"));
        let counts = (last.created, last.changed, last.deleted);
        assert_eq!(counts, moment.since(before, "contact", "contactid"), "contacts of round {round}");
        // What is stored is what changed, not what is there.
        let stored: u64 = report.tables.iter().map(|table| table.rows_stored).sum();
        assert!(stored < moment.count() / 4, "{stored} of {} rows stored in round {round}", moment.count());
        history.push((report, moment));
    }
    prove_all(&site, &history);
    let verified = site.verify();
    assert_eq!(verified.manifests, ROUNDS + 1);

    site.forget();
    let rebuilt: serde_json::Value = site.run(&["catalog", "rebuild"]).expect_code(0).expect_calm().json();
    assert_eq!(rebuilt["snapshots"], ROUNDS + 1);
    let kept: Vec<String> =
        history.iter().map(|(report, _)| report.snapshot.expect("a snapshot").to_string()).collect();
    let listed: Vec<serde_json::Value> = site.run(&["snapshot", "list"]).expect_code(0).json();
    let listed: Vec<&str> = listed.iter().filter_map(|line| line["snapshot"].as_str()).collect();
    assert_eq!(listed, kept);
    prove_all(&site, &history[history.len() - 2..]);

    world.simulator.edit(2_000, 300);
    let moment = world.now();
    let report = site.backup();
    expect_increment(&world, &report);
    let stored: u64 = report.tables.iter().map(|table| table.rows_stored).sum();
    assert!(stored < moment.count() / 4, "{stored} of {} rows stored after the rebuild", moment.count());
    let contacts = entry(&report, "contact");
    let counts = (contacts.created, contacts.changed, contacts.deleted);
    assert_eq!(counts, moment.since(&history[history.len() - 1].1, "contact", "contactid"));
    history.push((report, moment));
    prove_all(&site, &history);
}

#[test]
fn a_vault_is_gone_on_from_by_a_host_that_has_never_seen_it() {
    let world = World::of_rows(102, 2_000);
    let first = world.simple_site();
    first.backup();
    world.simulator.edit(5, 200);
    first.backup();
    world.simulator.edit(6, 200);
    let moment = world.now();
    let options = crate::harness::SiteOptions { vault: Some(first.vault.clone()), ..Default::default() };
    let second = world.site("second", &options);
    let report = second.backup();
    expect_increment(&world, &report);
    second.prove(&report, &moment);
    // The first host goes on from what the second one made.
    world.simulator.edit(7, 200);
    let moment = world.now();
    let report = first.backup();
    expect_increment(&world, &report);
    first.prove(&report, &moment);
    assert_eq!(first.verify().manifests, 4);
}
