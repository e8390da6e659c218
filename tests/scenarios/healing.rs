//! What the next run makes of a vault that lost something, of state that is gone, and of another vault in the place of the one
//! it knows: snapshots are whole again, counts are right, and the operator is told.

use std::path::{Path, PathBuf};

use dynavault_engine::{ExposeSecret as _, generate_key};
use dynavault_model::{RunReport, TableMode};
use serde_json::Value;

use crate::harness::{ENVIRONMENT, Moment, Site, SiteOptions, World, entry, holes};
use crate::kill::write_key;

/// Tables that have files are read in other orders; these are large enough and have none.
const TABLE: &str = "contact";

fn folder(site: &Site, table: &str) -> PathBuf {
    site.vault.join("environments").join(ENVIRONMENT).join("tables").join(table)
}

/// The first segment of rows that a snapshot has of a table.
fn segment(site: &Site, report: &RunReport, table: &str) -> PathBuf {
    let manifest = site.manifest(report.snapshot.expect("a snapshot"));
    let id = manifest.table(table).expect("the table").segments[0].id.to_string();
    let entries = std::fs::read_dir(folder(site, table)).expect("segments");
    let mut paths = entries.map(|entry| entry.expect("an entry").path());
    paths.find(|path| path.display().to_string().contains(&id)).expect("the segment")
}

fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).expect("the object can be read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).expect("the object can be written");
}

fn cut(path: &Path) {
    let bytes = std::fs::read(path).expect("the object can be read");
    std::fs::write(path, &bytes[..bytes.len() / 2]).expect("the object can be written");
}

fn remove(path: &Path) {
    std::fs::remove_file(path).expect("the object is removed");
}

/// A whole backup that stored one table in full and compared or followed the others.
fn expect_healed(world: &World, site: &Site, arguments: &[&str], why: &str) -> RunReport {
    let moment = world.now();
    let report = site.run(arguments).expect_code(0).report();
    assert_eq!(holes(&report), Vec::<&str>::new());
    for table in &report.tables {
        assert_eq!(table.mode == TableMode::Full, table.table == TABLE, "{arguments:?}: {table:?}");
    }
    let healed = entry(&report, TABLE);
    assert_eq!((healed.rows_stored, healed.created), (healed.live_rows, healed.live_rows));
    assert!(healed.reason.as_ref().is_some_and(|reason| reason.contains(why)), "{healed:?}");
    site.prove(&report, &moment);
    report
}

/// How an object comes to harm.
type Way = fn(&Path);

#[test]
fn a_full_run_stores_a_table_again_whose_segment_is_missing_or_cut() {
    let world = World::of_rows(701, 1_000);
    let site = world.simple_site();
    let mut report = site.backup();
    let ways: [(Way, &str); 2] = [(remove, "is missing"), (cut, "its manifest says")];
    for (seed, (spoil, why)) in (1..).zip(ways) {
        spoil(&segment(&site, &report, TABLE));
        world.simulator.edit(seed, 100);
        let planned: Vec<Value> = site.run(&["backup", "--full", "--dry-run"]).expect_code(0).json();
        let planned = planned.iter().find(|table| table["table"] == TABLE).expect("the table");
        assert_eq!(planned["mode"], "full", "{planned}");
        expect_healed(&world, &site, &["backup", "--full"], why);
        // From there on it is incremental again.
        world.simulator.edit(seed + 10, 100);
        let moment = world.now();
        let next = site.backup();
        assert_eq!(entry(&next, TABLE).mode, TableMode::Delta);
        site.prove(&next, &moment);
        report = next;
    }
    // What is whole is compared, not stored again.
    let calm = site.whole_backup(&["backup", "--full"]);
    assert!(calm.tables.iter().all(|table| table.mode == TableMode::Sweep && table.rows_stored == 0));
}

#[test]
fn what_verify_found_damaged_is_stored_again_by_the_next_run_of_that_host() {
    let world = World::of_rows(702, 1_000);
    let site = world.simple_site();
    let report = site.backup();
    let path = segment(&site, &report, TABLE);
    let whole = std::fs::read(&path).expect("the object can be read");
    flip(&path);
    site.run(&["verify"]).expect_code(4);
    // An object that came back from a copy is no longer damaged, once that was checked.
    std::fs::write(&path, &whole).expect("the object can be written");
    site.run(&["verify"]).expect_code(0);
    assert_eq!(entry(&site.backup(), TABLE).mode, TableMode::Delta);

    flip(&path);
    site.run(&["verify"]).expect_code(4);
    world.simulator.edit(1, 100);
    expect_healed(&world, &site, &["backup"], "found damaged by `verify`");
    assert_eq!(entry(&site.backup(), TABLE).mode, TableMode::Delta);
}

#[test]
fn a_rebase_stores_everything_again_whatever_the_vault_has() {
    let world = World::of_rows(703, 1_000);
    let site = world.simple_site();
    let report = site.backup();
    // Bytes that changed within an object are seen by no listing; another host may have found them.
    flip(&segment(&site, &report, TABLE));
    let unnoticed = site.whole_backup(&["backup", "--full", "--table", TABLE]);
    assert_eq!(entry(&unnoticed, TABLE).mode, TableMode::Sweep);
    let moment = world.now();
    let report = site.whole_backup(&["backup", "--full", "--rebase", "--table", TABLE]);
    assert_eq!((report.tables.len(), entry(&report, TABLE).mode), (1, TableMode::Full));
    site.prove_snapshot(report.snapshot.expect("a snapshot"), &moment, &[TABLE, "account"]);

    // Content that is gone comes back too.
    let content = site.vault.join("environments").join(ENVIRONMENT).join("content");
    std::fs::remove_dir_all(&content).expect("the content is removed");
    let report = site.whole_backup(&["backup", "--full", "--rebase"]);
    assert!(report.tables.iter().all(|table| table.mode == TableMode::Full));
    site.prove(&report, &moment);
    assert_eq!(site.run(&["verify", "--deep"]).code(), 4, "the old snapshots stay damaged");

    site.run(&["backup", "--rebase"]).expect_code(2);
}

#[test]
fn a_host_without_a_key_that_lost_its_state_files_stores_every_table_and_counts_right() {
    let world = World::of_rows(704, 1_000);
    let (secret, recipient) = generate_key();
    assert!(!secret.expose_secret().is_empty());
    let writer = world.site("writer", &SiteOptions { recipients: vec![recipient], ..SiteOptions::default() });
    let identity_file = Some(write_key(&writer.folder, &secret));
    let vault = Some(writer.vault.clone());
    let reader = world.site("reader", &SiteOptions { vault, identity_file, ..SiteOptions::default() });
    writer.backup();
    world.simulator.edit(1, 200);
    std::fs::remove_dir_all(writer.folder.join("catalog.state")).expect("the state is deleted");
    let before = world.now();
    let report = writer.backup();
    assert!(report.tables.iter().all(|table| table.mode == TableMode::Full));
    reader.prove(&report, &before);
    world.simulator.edit(2, 200);
    let after: Moment = world.now();
    let report = writer.backup();
    let found = entry(&report, TABLE);
    assert_eq!(found.mode, TableMode::Delta);
    assert_eq!((found.created, found.changed, found.deleted), after.since(&before, TABLE, "contactid"));
    reader.prove(&report, &after);
}

/// The same site with another vault in its configuration.
fn point_at(site: &Site, vault: &Path) -> Site {
    let text = std::fs::read_to_string(&site.config).expect("the configuration");
    let text = text.replace(&site.vault.display().to_string(), &vault.display().to_string());
    std::fs::write(&site.config, text).expect("the configuration is written");
    let mut other = site.clone();
    other.vault = vault.to_path_buf();
    other
}

#[test]
fn a_vault_that_moved_is_gone_on_with_and_another_one_in_its_place_is_not() {
    let world = World::of_rows(705, 500);
    let site = world.simple_site();
    site.backup();
    let moved = site.folder.join("moved");
    std::fs::rename(&site.vault, &moved).expect("the vault is moved");
    let site = point_at(&site, &moved);
    assert_eq!(entry(&site.backup(), TABLE).mode, TableMode::Delta);

    // Another vault, not made yet: a dry run foresees it and forgets nothing.
    let empty = site.folder.join("empty");
    let predicted = |site: &Site| {
        let tables: Vec<Value> = site.run(&["backup", "--dry-run"]).expect_code(0).json();
        let table = tables.iter().find(|table| table["table"] == TABLE).expect("the table");
        table["mode"].as_str().map(str::to_string)
    };
    let other = point_at(&site, &empty);
    assert_eq!(predicted(&other).as_deref(), Some("full"));
    let site = point_at(&other, &moved);
    assert_eq!(predicted(&site).as_deref(), Some("delta"));

    // The other vault has a copy of the newest manifest, as a careless copy of a part of a vault would.
    std::fs::create_dir_all(empty.join("environments").join(ENVIRONMENT)).expect("a folder");
    let manifests = |vault: &Path| vault.join("environments").join(ENVIRONMENT).join("manifests");
    std::fs::rename(manifests(&moved), manifests(&empty)).expect("the manifests are moved");
    let description = std::fs::read_to_string(moved.join("dynavault.json")).expect("the description");
    let id = serde_json::from_str::<Value>(&description).expect("JSON")["vault"].as_str().expect("an id").to_string();
    let other_id = description.replace(&id, "01ARZ3NDEKTSV4RRFFQ69G5FAV");
    std::fs::write(empty.join("dynavault.json"), other_id).expect("the description is written");
    let other = point_at(&site, &empty);
    let moment = world.now();
    let ended = other.run(&["backup", "--full"]).expect_code(0);
    assert!(ended.stderr.contains("is not the one that this host wrote to"), "{}", ended.stderr);
    let report = ended.report();
    assert_eq!(entry(&report, TABLE).mode, TableMode::Full);
    other.prove(&report, &moment);
}

#[test]
fn an_export_of_rows_that_were_carried_over_says_how_old_they_are() {
    let world = World::of_rows(706, 500);
    let site = world.simple_site();
    let first = site.backup();
    let fresh = site.run(&["export", "--table", TABLE]).expect_code(0);
    assert!(!fresh.stderr.contains("its rows are those of"), "{}", fresh.stderr);
    world.simulator.deny(TABLE);
    world.simulator.edit(1, 50);
    site.run(&["backup"]).expect_code(3);
    let first = first.snapshot.expect("a snapshot").to_string();
    for quiet in [&["export", "--table", TABLE][..], &["-q", "export", "--table", TABLE]] {
        let said = site.run(quiet).expect_code(0).stderr;
        assert!(said.contains(&first) && said.contains("could not be read by its run (no permission"), "{said}");
    }
    let described: Value = site.run(&["export", "--table", TABLE, "-o", "out.jsonl"]).expect_code(0).json();
    assert_eq!(described["carried"]["captured_by"], first.as_str());
    assert_eq!(described["carried"]["status"], "refused");
    // A run that was not asked for the table carries it over as well.
    world.simulator.allow(TABLE);
    site.run(&["backup", "--table", "account"]).expect_code(0);
    let said = site.run(&["export", "--table", "lead"]).expect_code(0).stderr;
    assert!(said.contains("was not part of its run"), "{said}");
}
