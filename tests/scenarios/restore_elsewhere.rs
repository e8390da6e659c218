//! Other ways back: into another environment, and out of the service's own recycle bin.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use dynavault_simulator::Config;

use crate::harness::{Site, World};
use crate::restore_whole::expect_reasons;
use crate::restored::{Applied, Plan, State, reasons};

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
    let pairs = matched(&map);
    assert!(pairs.len() > 10, "{pairs:?}");
    let applied = site.apply(&plan);
    applied.expect_clean();
    let after = State::of(&other.simulator);
    for table in ["systemuser", "businessunit", "transactioncurrency"] {
        assert_eq!(after.tables[table].len(), empty.tables[table].len(), "nothing is made in {table}");
    }
    expect_mapped(&source, &after, &pairs, &plan, &applied);
    let mut files = source.clone();
    files.files.retain(|(table, _, _), _| !PEOPLE.contains(&table.as_str()));
    let mut restored = after.clone();
    restored.files.retain(|(table, _, _), _| !PEOPLE.contains(&table.as_str()));
    restored.expect_files_of(&files, &plan);

    // A person says who stands for whom; that goes before what was found.
    let owner = source.tables["contact"].values().map(|row| row["_ownerid_value"].trim_matches('"'));
    let from = owner.into_iter().find(|id| pairs.contains_key(*id)).expect("an owner with a counterpart");
    let (found, chosen) = (&pairs[from], other.simulator.user(1));
    assert_ne!(*found, chosen);
    let text = std::fs::read_to_string(&map).expect("a mapping file");
    let text = text.replace(&format!("{from} = \"{found}\""), &format!("{from} = \"{chosen}\""));
    std::fs::write(&map, text).expect("the mapping file is written");
    let mut overwrite = arguments.to_vec();
    overwrite.extend(["--table", "contact", "--conflict", "overwrite"]);
    let plan = site.plan("chosen", &overwrite);
    assert_eq!(plan.count("create"), 0);
    site.apply(&plan);
    let now = State::of(&other.simulator);
    let (from, chosen) = (format!("\"{from}\""), format!("\"{chosen}\""));
    for (key, _) in source.tables["contact"].iter().filter(|(_, row)| row["_ownerid_value"] == from) {
        assert_eq!(now.value("contact", key, "_ownerid_value"), Some(chosen.as_str()), "contact {key}");
    }
}

/// Tables whose rows another environment has under ids of its own.
const PEOPLE: [&str; 4] = ["systemuser", "businessunit", "team", "transactioncurrency"];

/// Counterparts by id, of all tables of a mapping file.
fn matched(map: &std::path::Path) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(map).expect("a mapping file");
    let pair = |line: &str| {
        let (from, to) = line.split_once(" = \"")?;
        (from.len() == 36).then(|| (from.to_string(), to.trim_end_matches('"').to_string()))
    };
    text.lines().filter_map(pair).collect()
}

/// Every lookup names what it named, or the counterpart of that; or the plan or the proof says why not.
fn expect_mapped(source: &State, after: &State, pairs: &BTreeMap<String, String>, plan: &Plan, applied: &Applied) {
    let mut expected = source.clone();
    for members in expected.tables.values_mut().flat_map(BTreeMap::values_mut) {
        for value in members.values_mut() {
            if let Some(to) = pairs.get(value.trim_matches('"')) {
                *value = format!("\"{to}\"");
            }
        }
    }
    // What every environment has for itself is not restored; memberships of teams are compared by their pairs.
    let (mut expected, mut after) = (expected.by_meaning(), after.by_meaning());
    for table in PEOPLE.iter().chain(&["organization"]) {
        expected.tables.remove(*table);
        after.tables.remove(*table);
    }
    let found = after.since(&expected);
    let reasons = reasons(&found, plan, applied);
    expect_reasons(&reasons);
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
