//! Other ways back: into another environment, and out of the service's own recycle bin.

use std::fmt::Write as _;

use dynavault_simulator::Config;

use crate::harness::{Site, World};
use crate::restore_whole::expect_reasons;
use crate::restored::{State, reasons, shown};

const ROWS: u64 = 1_000;

/// Adds another simulator as an environment of the site.
fn add_environment(site: &Site, other: &World) {
    let mut text = std::fs::read_to_string(&site.config).expect("the configuration is text");
    let secret = site.folder.join("secret.txt");
    write!(
        text,
        "\n[[profile]]\nname = \"other\"\nkind = \"ce\"\ntenant = \"{}\"\nclient_id = \"{}\"\n\
         credential = {{ kind = \"client-secret\", secret = {{ file = \"{}\" }} }}\nauthority = \"{}\"\n\
         \n[[environment]]\nname = \"other\"\nkind = \"ce\"\nurl = \"{}\"\nprofiles = [\"other\"]\n",
        other.simulator.tenant(),
        other.simulator.client_id(),
        secret.display(),
        other.simulator.authority(),
        other.simulator.url(),
    )
    .expect("text grows");
    std::fs::write(&site.config, text).expect("the configuration is written");
}

#[test]
fn an_empty_environment_takes_everything_with_its_own_people_and_currencies() {
    let world = World::of_rows(351, ROWS);
    let other = World::new(Config { seed: 351, rows: ROWS, environment: 1, empty: true, ..Config::default() });
    let site = world.simple_site();
    let source = State::of(&world.simulator);
    site.backup();
    add_environment(&site, &other);
    let empty = State::of(&other.simulator);
    let map = site.folder.join("map.toml");
    let map_text = map.to_str().expect("text");
    let arguments = ["restore", "simulated", "--to", "other", "--map", map_text];
    let plan = site.plan("other", &arguments);
    crate::harness::say(&std::fs::read_to_string(&map).expect("a mapping file"));
    let applied = site.apply(&plan);
    let after = State::of(&other.simulator);
    crate::harness::say(&shown(&after.by_meaning().since(&source.by_meaning())));
    crate::harness::say(&format!("{:#}", applied.end));
    let _ = empty;
}

#[test]
fn deleted_rows_come_back_through_the_recycle_bin() {
    let world = World::new(Config { seed: 361, rows: ROWS, recycle_bin: true, ..Config::default() });
    let site = world.simple_site();
    let before = State::of(&world.simulator);
    site.backup();
    for table in ["task", "new_widget", "account", "contact", "lead"] {
        let ids: Vec<&str> = before.tables[table].keys().map(String::as_str).take(20).collect();
        assert!(!world.simulator.delete_rows(table, &ids).tables.is_empty(), "{table}");
    }
    let plan = site.plan("bin", &["restore"]);
    assert!(plan.count("undelete") > 20, "{:#}", plan.summary["counts"]);
    let applied = site.apply(&plan);
    applied.expect_clean();
    let after = State::of(&world.simulator);
    let found = after.by_meaning().since(&before.by_meaning());
    expect_reasons(&reasons(&found, &plan, &applied));
    after.expect_files_of(&before, &plan);
}
