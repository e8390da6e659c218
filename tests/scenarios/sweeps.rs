//! Tokens and comparing reads: what is read and stored when tokens expire, were never given, or no longer fit the columns; and
//! tables that come, go, or may not be read for a while.

use std::collections::BTreeSet;
use std::path::PathBuf;

use dynavault_model::{RunReport, RunStatus, TableMode, TableStatus};
use dynavault_simulator::{Config, Simulator};

use crate::harness::{Moment, Site, SiteOptions, World, entry, holes};

const ROWS: u64 = 2_000;

/// Tables whose rows can be told apart by one key, with that key.
fn keyed(world: &World) -> Vec<(String, String)> {
    let tables = world.simulator.tables().into_iter();
    tables
        .filter(|table| table.readable && !table.operational && table.logical_name != "new_telemetry")
        .map(|table| (table.logical_name, table.primary_id))
        .collect()
}

fn trackable(world: &World) -> BTreeSet<String> {
    let tables = world.simulator.tables().into_iter();
    tables.filter(|table| table.trackable && !table.operational).map(|table| table.logical_name).collect()
}

/// Only what differs was stored, and everything that differs was found.
fn expect_differences(world: &World, report: &RunReport, before: &Moment, now: &Moment) {
    for (table, key) in keyed(world) {
        let found = entry(report, &table);
        let counts = now.since(before, &table, &key);
        assert_eq!((found.created, found.changed, found.deleted), counts, "{table}");
        if found.mode == TableMode::Sweep {
            assert_eq!(found.rows_stored, counts.0 + counts.1, "{table}");
            assert_eq!(found.rows_read, now.rows[&table].len() as u64, "{table}");
        }
    }
}

fn expired(seed: u64, status: u16) {
    let world = World::new(Config { seed, rows: ROWS, expired_token_status: status, ..Config::default() });
    let site = world.simple_site();
    let first = site.backup();
    let before = world.now();
    world.simulator.edit(seed, 300);
    world.simulator.expire_delta_tokens();
    let now = world.now();
    let report = site.backup();
    site.prove(&report, &now);
    expect_differences(&world, &report, &before, &now);
    let manifest = site.manifest(report.snapshot.expect("a snapshot"));
    let old = site.manifest(first.snapshot.expect("a snapshot"));
    for table in trackable(&world) {
        let found = entry(&report, &table);
        assert_eq!(found.mode, TableMode::Sweep, "{table}");
        assert!(found.reason.as_ref().is_some_and(|reason| reason.contains("expired")), "{table}: {:?}", found.reason);
        let token = old.table(&table).and_then(|table| table.delta.as_ref()).expect("a token");
        let unobserved = found.unobserved.as_ref().expect("an unobserved interval");
        assert_eq!(unobserved.from, token.time, "{table}");
        assert!(unobserved.to >= report.started && unobserved.to > unobserved.from, "{table}: {unobserved:?}");
        let kept = manifest.table(&table).and_then(|table| table.unobserved.as_ref());
        assert_eq!(kept, Some(unobserved), "{table}");
    }
    let deleted: u64 = report.tables.iter().map(|table| table.deleted).sum();
    assert!(deleted > 0, "the edits deleted nothing");
    // New tokens were given: the next run is an increment again.
    let before = now;
    world.simulator.edit(seed + 1, 200);
    let now = world.now();
    let report = site.backup();
    site.prove(&report, &now);
    expect_differences(&world, &report, &before, &now);
    for table in trackable(&world) {
        let found = entry(&report, &table);
        assert_eq!((found.mode, &found.unobserved), (TableMode::Delta, &None), "{table}");
    }
}

#[test]
fn tokens_that_expired_with_400_cost_a_comparing_read_that_stores_differences_only() {
    expired(401, 400);
}

#[test]
fn tokens_that_expired_with_410_cost_a_comparing_read_that_stores_differences_only() {
    expired(402, 410);
}

#[test]
fn tokens_expire_by_age() {
    let world = World::of_rows(403, 500);
    let site = world.simple_site();
    site.backup();
    world.simulator.advance(std::time::Duration::from_secs(8 * 86_400));
    let report = site.backup();
    site.prove(&report, &world.now());
    for table in trackable(&world) {
        let found = entry(&report, &table);
        assert_eq!((found.mode, found.rows_stored), (TableMode::Sweep, 0), "{table}");
    }
}

#[test]
fn a_table_without_change_tracking_shows_its_deletions() {
    let world = World::of_rows(404, ROWS);
    let site = world.simple_site();
    site.backup();
    for table in ["subject", "activityparty", "new_note"] {
        let doomed = world.simulator.rows(table)[3].keys[0].clone();
        let before = world.now();
        assert!(world.simulator.delete(table, &doomed) >= 1);
        let now = world.now();
        let report = site.backup();
        site.prove(&report, &now);
        expect_differences(&world, &report, &before, &now);
        let found = entry(&report, table);
        assert_eq!(found.mode, TableMode::Sweep);
        assert!(found.deleted >= 1 && found.rows_stored <= found.changed, "{table}: {found:?}");
    }
}

fn new_files(site: &Site, before: &[PathBuf]) -> Vec<String> {
    let known: BTreeSet<&PathBuf> = before.iter().collect();
    let now = site.vault_files();
    now.iter().filter(|path| !known.contains(path)).map(|path| path.display().to_string()).collect()
}

#[test]
fn an_unchanged_incremental_makes_one_request_per_tracked_table_and_stores_nothing() {
    let world = World::of_rows(405, ROWS);
    let site = world.simple_site();
    site.backup();
    let before = site.vault_files();
    world.simulator.reset_stats();
    let report = site.backup();
    let stats = world.simulator.stats();
    let tracked = trackable(&world);
    assert!(tracked.len() > 15);
    assert_eq!(stats.by_kind.get("delta"), Some(&(tracked.len() as u64)));
    // The organization is also asked for its settings.
    for table in tracked.iter().filter(|table| *table != "organization") {
        assert_eq!(stats.by_table.get(table), Some(&1), "{table}");
    }
    assert_eq!(stats.by_kind.get("file"), None);
    assert_eq!((report.retries, report.throttled, stats.repeated), (0, 0, 0));
    assert!(report.tables.iter().all(|table| table.rows_stored == 0 && table.bytes_stored == 0));
    let made = new_files(&site, &before);
    assert!(made.len() == 1 && made[0].contains("/manifests/"), "{made:?}");
    site.prove(&report, &world.now());
}

#[test]
fn a_full_read_stores_only_what_differs() {
    let world = World::of_rows(406, ROWS);
    let site = world.simple_site();
    site.backup();
    let before = world.now();
    world.simulator.edit(9, 300);
    let now = world.now();
    let report = site.whole_backup(&["backup", "--full"]);
    assert!(report.tables.iter().all(|table| table.mode == TableMode::Sweep));
    site.prove(&report, &now);
    expect_differences(&world, &report, &before, &now);
    // Once more, with nothing changed.
    let files = site.vault_files();
    let report = site.whole_backup(&["backup", "--full"]);
    assert_eq!(report.tables.iter().map(|table| table.rows_stored + table.deleted).sum::<u64>(), 0);
    assert_eq!(report.tables.iter().map(|table| table.rows_read).sum::<u64>(), now.count());
    let made = new_files(&site, &files);
    assert!(made.len() == 1 && made[0].contains("/manifests/"), "{made:?}");
    site.prove(&report, &now);
}

#[test]
fn a_row_deleted_and_made_again_with_its_id_is_kept_as_it_is_now() {
    let world = World::of_rows(407, ROWS);
    let site = world.simple_site();
    site.backup();
    let (mut recreated, mut seed, mut before) = (0, 0, world.now());
    while recreated < 5 {
        seed += 1;
        assert!(seed < 100, "no row was made again");
        let edits = world.simulator.edit(seed, 60);
        if edits.recreated.is_empty() {
            continue;
        }
        recreated += edits.recreated.len();
        let now = world.now();
        let report = site.backup();
        site.prove(&report, &now);
        expect_differences(&world, &report, &before, &now);
        before = now;
    }
}

#[test]
fn changed_columns_cost_a_comparing_read_of_their_tables_only_and_are_named() {
    let world = World::of_rows(408, ROWS);
    let site = world.simple_site();
    site.backup();
    for seed in 1..=3 {
        world.simulator.edit(seed, 100);
        let change = world.simulator.change_schema(seed);
        let now = world.now();
        let report = site.backup();
        site.prove(&report, &now);
        let manifest = site.manifest(report.snapshot.expect("a snapshot"));
        let drift = |table: &str| {
            let kept = manifest.table(table).expect("the table is in the manifest").schema_drift.clone();
            assert_eq!(entry(&report, table).schema_drift, kept, "{table}: report and manifest");
            kept
        };
        let (grown, column) = &change.added_column;
        let found = drift(grown).expect("the new column is named");
        assert!(found.added.contains(column), "{found:?}");
        if let Some((shrunk, column)) = &change.removed_column {
            let found = drift(shrunk).expect("the removed column is named");
            assert!(found.removed.contains(column), "{found:?}");
        }
        let new = &change.added_table;
        assert_eq!((entry(&report, new).mode, entry(&report, new).rows_stored), (TableMode::Full, 5));
        assert!(drift(new).is_some_and(|drift| drift.new_table), "{new} is new");
        let shrunk = change.removed_column.as_ref().map(|(table, _)| table.as_str());
        for table in trackable(&world).iter().filter(|table| *table != new) {
            let touched = table == grown || Some(table.as_str()) == shrunk;
            let expected = if touched { TableMode::Sweep } else { TableMode::Delta };
            assert_eq!(entry(&report, table).mode, expected, "{table}");
            assert_eq!(drift(table).is_some(), touched, "{table}");
        }
    }
}

#[test]
fn a_table_that_is_gone_is_listed_and_stays_in_older_snapshots() {
    let config = Config { seed: 409, rows: 500, big_table_rows: 100, ..Config::default() };
    let mut world = World::new(config.clone());
    let site = world.simple_site();
    let before = world.now();
    let first = site.backup();
    assert_eq!(entry(&first, "new_big").live_rows, 100);
    // The same organization at the same address, without that table.
    let port = world.simulator.url().rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    world.replace(Config { port, big_table_rows: 0, ..config });
    let report = site.backup();
    assert_eq!(report.gone, ["new_big"]);
    assert!(report.tables.iter().all(|table| table.table != "new_big"));
    site.prove(&report, &world.now());
    let manifest = site.manifest(report.snapshot.expect("a snapshot"));
    assert_eq!(
        (manifest.gone, manifest.tables.iter().any(|table| table.table == "new_big")),
        (vec!["new_big".to_string()], false)
    );
    // It is still in the snapshot that had it.
    site.prove_table(first.snapshot.expect("a snapshot"), "new_big", &before.rows["new_big"]);
    site.run(&["export", "--table", "new_big"]).expect_code(2);
    // It is said once.
    assert_eq!(site.backup().gone, Vec::<String>::new());
}

#[test]
fn a_table_that_may_not_be_read_for_a_while_is_a_named_hole_and_comes_back() {
    let world = World::of_rows(410, ROWS);
    let site = world.simple_site();
    site.backup();
    world.simulator.edit(1, 100);
    let moment = world.now();
    world.simulator.deny("lead");
    let report = site.run(&["backup"]).expect_code(3).report();
    assert_eq!(report.status, RunStatus::Partial);
    site.prove_except(&report, &moment, &["lead"]);
    let found = entry(&report, "lead");
    assert_eq!(found.status, TableStatus::Refused);
    assert!(found.reason.as_ref().is_some_and(|reason| reason.contains("prvReadLead")), "{:?}", found.reason);
    assert!(report.gone.is_empty());
    let manifest = site.manifest(report.snapshot.expect("a snapshot"));
    assert!(manifest.refused.iter().any(|table| table.table == "lead"));
    world.simulator.allow("lead");
    world.simulator.edit(2, 100);
    let report = site.backup();
    site.prove(&report, &world.now());
    assert!(entry(&report, "lead").live_rows > 0);
    // Then it is an ordinary table again.
    let report = site.backup();
    assert_eq!(entry(&report, "lead").mode, TableMode::Delta);
}

#[test]
fn a_table_that_may_be_read_in_part_only_is_refused_rather_than_captured_in_part() {
    // A plain read would silently give what the user may see; the tracked one is refused (dataverse 4.3).
    let world = World::of_rows(411, ROWS);
    let site = world.simple_site();
    site.backup();
    world.simulator.restrict("lead");
    world.simulator.edit(4, 300);
    let report = site.run(&["backup"]).expect_code(3).report();
    site.prove_except(&report, &world.now(), &["lead"]);
    assert_eq!(entry(&report, "lead").status, TableStatus::Refused);
    world.simulator.allow("lead");
    let report = site.backup();
    site.prove(&report, &world.now());
    // It was away, and is not new.
    assert_eq!(entry(&report, "lead").schema_drift, None);
}

#[test]
fn tables_that_nobody_can_read_are_named_with_their_reasons() {
    let world = World::of_rows(412, 500);
    let site = world.site("site", &SiteOptions { exclude: Vec::new(), ..SiteOptions::default() });
    let report = site.run(&["backup"]).expect_code(3).report();
    site.prove_except(&report, &world.now(), &crate::harness::UNREADABLE);
    for (table, word) in [
        ("new_blocked", "does not support"),
        ("new_external", "virtual"),
        ("new_hidden", "entity set"),
        ("new_secret", "prvRead"),
    ] {
        let found = entry(&report, table);
        assert_eq!(found.status, TableStatus::Refused, "{table}");
        assert!(found.reason.as_ref().is_some_and(|reason| reason.contains(word)), "{table}: {:?}", found.reason);
    }
    assert_eq!(report.excluded, ["asyncoperation", "plugintracelog"]);
    assert_eq!(holes(&report).len(), 4);
}

#[test]
fn a_run_of_some_tables_keeps_the_others_as_they_were() {
    let world = World::of_rows(413, ROWS);
    let site = world.simple_site();
    let before = world.now();
    site.backup();
    world.simulator.edit(4, 300);
    let now = world.now();
    let report = site.whole_backup(&["backup", "--table", "account", "--table", "new_w*"]);
    let read: Vec<&str> = report.tables.iter().map(|table| table.table.as_str()).collect();
    assert_eq!(read, ["account", "new_widget", "new_widget_note"]);
    let snapshot = report.snapshot.expect("a snapshot");
    site.prove_snapshot(snapshot, &now, &read);
    site.prove_snapshot(snapshot, &before, &["contact", "lead", "activityparty"]);
    // The next run of everything takes up the rest by its tokens.
    let report = site.backup();
    site.prove(&report, &now);
    assert_eq!(entry(&report, "contact").mode, TableMode::Delta);
}

impl World {
    /// Another simulator instead of the first; the port is free once that has stopped.
    fn replace(&mut self, config: Config) {
        let port = config.port;
        // A place holder, so that the old one can be stopped by value.
        let idle = self.block_on(Simulator::start(Config { rows: 1, port: 0, ..config.clone() })).expect("it starts");
        let old = std::mem::replace(&mut self.simulator, idle);
        self.block_on(old.stop());
        let new = self.block_on(Simulator::start(config)).unwrap_or_else(|error| panic!("port {port}: {error}"));
        let idle = std::mem::replace(&mut self.simulator, new);
        self.block_on(idle.stop());
    }
}
