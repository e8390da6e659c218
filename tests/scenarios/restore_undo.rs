//! Taking restores back: after any edits and any kind of restore, after one that was killed, from a vault alone, and from a vault
//! that has lost what became of the operations. The environment is then what it was before, and the tool itself names every
//! value that is not, with its reason.
//!
//! `DYNAVAULT_UNDO_SEED=N cargo test --test scenarios restore_undo` repeats one seed.

use std::path::PathBuf;

use dynavault_engine::{ExposeSecret as _, generate_key};
use dynavault_simulator::Config;

use crate::harness::{Dice, ENVIRONMENT, Site, SiteOptions, World, say};
use crate::kill::write_key;
use crate::restore_whole::expect_reasons;
use crate::restored::{Applied, Differing, Plan, State, besides_stamps, is_file_id, reasons, shown};

/// Rows of the data set: few, so that many restores fit into a test.
const ROWS: u64 = 300;
/// Edits before a restore.
const EDITS: usize = 150;

/// The seeds of a test, or the one that the environment names.
fn seeds(of_test: impl IntoIterator<Item = u64>) -> Vec<u64> {
    match std::env::var("DYNAVAULT_UNDO_SEED") {
        Ok(seed) => vec![seed.parse().expect("DYNAVAULT_UNDO_SEED is a number")],
        Err(_) => of_test.into_iter().collect(),
    }
}

/// A world that was backed up and edited since.
fn edited(seed: u64) -> (World, Site, State) {
    let world = World::of_rows(seed, ROWS);
    let site = world.simple_site();
    site.backup();
    world.simulator.edit(seed, EDITS);
    let was = State::of(&world.simulator);
    (world, site, was)
}

/// The environment must be as it was, but for what the undo's plan and proof name.
fn expect_as_before(what: &str, world: &World, was: &State, plan: &Plan, undone: &Applied) {
    say(what);
    let end = &undone.end;
    assert_eq!(end["proof"]["unexplained"], 0, "{what}: {end:#}");
    assert_eq!(end["rejections"].as_array().map(Vec::len), Some(0), "{what}: {:#}", end["rejections"]);
    assert_eq!(end["conflicts"].as_array().map(Vec::len), Some(0), "{what}: {:#}", end["conflicts"]);
    let now = State::of(&world.simulator);
    let left = besides_stamps(now.by_meaning().since(&was.by_meaning()));
    // A file that is put back is a new file with the old bytes.
    let left: Vec<_> = left.into_iter().filter(|one| !is_file_id(one)).collect();
    assert!(left.iter().all(|one| one.member.is_some() || one.table == "activityparty"), "{what}:\n{}", shown(&left));
    expect_reasons(&reasons(&left, plan, undone));
    // An image of which only the small version was stored may have become a whole one.
    let reduced = |column: &str| ["entityimage", "new_picture"].contains(&column);
    let new = now.files.keys().filter(|place| !was.files.contains_key(*place));
    assert!(new.clone().all(|place| reduced(&place.2)), "{what}: {:?}", new.collect::<Vec<_>>());
    for (place, hash) in &was.files {
        assert_eq!(now.files.get(place), Some(hash), "{what}: {place:?}");
    }
}

fn undo(site: &Site, run: &str) -> (Plan, Applied) {
    let plan = site.plan(&format!("undo-{run}"), &["restore", "undo", run]);
    let ended = site.try_apply(&plan, true);
    assert!(matches!(ended.code(), 0 | 3), "{}{}", crate::restore_faults::in_short(&ended.stdout), ended.stderr);
    (plan, Applied { end: ended.json() })
}

/// Options of a restore, by the dice.
fn options(dice: &mut Dice) -> Vec<&'static str> {
    let mut all = vec!["restore"];
    all.extend([&[][..], &["--conflict", "overwrite"], &["--conflict", "newer-wins"]][dice.below(3) as usize]);
    match dice.below(4) {
        0 => all.extend(["--mirror"]),
        1 => all.extend(["--table", "account", "--related", "down:2"]),
        2 => all.extend(["--table", "contact", "--table", "opportunity", "--columns", "telephone1,name,ownerid"]),
        _ => {}
    }
    all
}

#[test]
fn any_restore_over_any_edits_can_be_taken_back() {
    for seed in seeds([801, 803, 804, 805, 806, 807, 808, 809]) {
        let (world, site, was) = edited(seed);
        let options = options(&mut Dice::new(seed));
        let plan = site.plan("plan", &options);
        let ended = site.try_apply(&plan, true);
        assert!(matches!(ended.code(), 0 | 3), "seed {seed}: {}", ended.stderr);
        let applied = Applied { end: ended.json() };
        let (undo, undone) = undo(&site, applied.run());
        expect_as_before(&format!("DYNAVAULT_UNDO_SEED={seed} {options:?}"), &world, &was, &undo, &undone);
    }
}

#[test]
fn a_restore_that_was_killed_is_taken_back_without_being_finished() {
    for seed in seeds(811..=816) {
        let config = Config { seed, rows: ROWS, latency: std::time::Duration::from_millis(1), ..Config::default() };
        let world = World::new(config);
        let site = world.simple_site();
        site.backup();
        world.simulator.edit(seed, EDITS);
        let was = State::of(&world.simulator);
        let mut dice = Dice::new(seed);
        let arguments: &[&str] =
            if dice.below(2) == 0 { &["restore", "--conflict", "overwrite", "--mirror"] } else { &["restore"] };
        let plan = site.plan("plan", arguments);
        world.simulator.reset_stats();
        let path = plan.path.to_str().expect("text").to_string();
        let mut running = site.start(&["restore", "apply", &path, "--confirm-deletes"]);
        let (simulator, served) = (world.simulator.handle(), 5 + dice.below(plan.requests()));
        let alive = running.wait_for(|| simulator.stats().write_requests >= served);
        running.kill();
        running.wait();
        say(&format!("seed {seed}: alive {alive} after {served} of {} writes", plan.requests()));
        let run = site.runs().remove(0).run;
        let (undo, undone) = undo(&site, &run);
        expect_as_before(&format!("DYNAVAULT_UNDO_SEED={seed} killed"), &world, &was, &undo, &undone);
    }
}

#[test]
fn an_undo_that_was_killed_goes_on_with_the_same_command() {
    for seed in seeds(821..=823) {
        let (world, site, was) = edited(seed);
        let applied = Applied {
            end: site.try_apply(&site.plan("plan", &["restore", "--conflict", "overwrite", "--mirror"]), true).json(),
        };
        let plan = site.plan("undo", &["restore", "undo", applied.run()]);
        let path = plan.path.to_str().expect("text").to_string();
        let mut dice = Dice::new(seed);
        for _ in 0..3 {
            world.simulator.reset_stats();
            let mut running = site.start(&["restore", "apply", &path, "--confirm-deletes"]);
            let (simulator, served) = (world.simulator.handle(), 1 + dice.below(plan.requests() / 3));
            if running.wait_for(|| simulator.stats().write_requests >= served) {
                running.kill();
            }
            running.wait();
        }
        let ended = site.try_apply(&plan, true);
        assert!(matches!(ended.code(), 0 | 3), "seed {seed}: {}{}", ended.stdout, ended.stderr);
        let undone = Applied { end: ended.json() };
        expect_as_before(&format!("DYNAVAULT_UNDO_SEED={seed} undo killed"), &world, &was, &plan, &undone);
    }
}

#[test]
fn a_host_that_lost_its_catalog_takes_a_restore_back_from_an_encrypted_vault() {
    let world = World::of_rows(831, ROWS);
    let (secret, recipient) = generate_key();
    assert!(secret.expose_secret().starts_with("AGE-SECRET-KEY-"));
    let folder = world.path("keys");
    std::fs::create_dir_all(&folder).expect("a folder for the key");
    let identity_file = Some(write_key(&folder, &secret));
    let site = world
        .site("site", &SiteOptions { recipients: vec![recipient.clone()], identity_file, ..SiteOptions::default() });
    site.backup();
    world.simulator.edit(831, EDITS);
    let was = State::of(&world.simulator);
    let plan = site.plan("plan", &["restore", "--conflict", "overwrite", "--mirror"]);
    let applied = Applied { end: site.try_apply(&plan, true).json() };
    site.forget();
    // Without the key it is the key that is missing, not the run.
    let vault = Some(site.vault.clone());
    let writer = world.site("writer", &SiteOptions { vault, recipients: vec![recipient], ..SiteOptions::default() });
    let refused = writer.run(&["restore", "undo", applied.run(), "-o", "none.jsonl"]).expect_code(2);
    assert!(refused.stderr.contains("key"), "{}", refused.stderr);
    let (undo, undone) = undo(&site, applied.run());
    expect_as_before("an encrypted vault alone", &world, &was, &undo, &undone);
}

/// Columns that follow a file: its name, and the size of a body.
const OF_FILES: [&str; 4] = ["new_contract_name", "new_cv_name", "new_document_name", "filesize"];

/// The outcomes of a run in the vault.
fn outcomes(site: &Site, run: &str) -> PathBuf {
    site.vault.join(format!("environments/{ENVIRONMENT}/restores/{run}/outcomes.jsonl.zst"))
}

#[test]
fn without_the_outcomes_every_row_is_looked_at_and_the_plan_says_so() {
    for (seed, cut) in [(841, false), (842, true)] {
        let (world, site, was) = edited(seed);
        let plan = site.plan("plan", &["restore", "--conflict", "overwrite"]);
        let applied = Applied { end: site.try_apply(&plan, true).json() };
        let path = outcomes(&site, applied.run());
        let bytes = std::fs::read(&path).expect("the outcomes are in the vault");
        if cut {
            std::fs::write(&path, &bytes[..bytes.len() / 2]).expect("the outcomes are cut");
        } else {
            std::fs::remove_file(&path).expect("the outcomes are deleted");
        }
        // As long as the catalog knows, nothing is lost.
        let known = site.plan("known", &["restore", "undo", applied.run()]);
        assert_eq!(codes(&known, "outcome-lost"), 0);
        site.forget();
        let plan = site.plan("undo", &["restore", "undo", applied.run()]);
        assert!(codes(&plan, "outcome-lost") > 0, "{:#}", plan.summary["findings"]);
        // What was replaced is in the vault, and nobody knows where: that is said, and the content stays.
        let lost = codes(&plan, "content-lost");
        let undone = Applied { end: site.try_apply(&plan, true).json() };
        assert_eq!(undone.end["proof"]["unexplained"], 0, "{:#}", undone.end);
        let now = State::of(&world.simulator);
        let files = now.files.iter().filter(|(place, hash)| was.files.get(*place) != Some(hash)).count();
        let gone = was.files.keys().filter(|place| !now.files.contains_key(*place)).count();
        assert!((files + gone) as u64 <= lost, "{files} files are others, {gone} are gone, {lost} are named");
        let left = besides_stamps(now.by_meaning().since(&was.by_meaning()));
        // What is neither as before nor as the restore would have left it is listed, and a file that stays keeps its name and size.
        let conflicts = plan.lines("conflict");
        let listed = |one: &Differing| {
            let same = |line: &serde_json::Value| {
                line["table"] == one.table.as_str()
                    && line["id"] == one.key.as_str()
                    && line["column"].as_str() == one.member.as_deref()
            };
            conflicts.iter().any(same) || one.member.as_deref().is_some_and(|member| OF_FILES.contains(&member))
        };
        let left: Vec<_> = left.into_iter().filter(|one| !is_file_id(one) && !listed(one)).collect();
        expect_reasons(&reasons(&left, &plan, &undone));
    }
}

/// Rows that findings with a code are about.
fn codes(plan: &Plan, code: &str) -> u64 {
    let findings = plan.summary["findings"].as_array().expect("findings").iter();
    findings.filter(|one| one["code"] == code).map(|one| one["rows"].as_u64().expect("a number")).sum()
}

#[test]
fn rows_below_keep_their_owners_when_a_change_of_owner_is_made_and_taken_back() {
    let world = World::of_rows(851, ROWS);
    let site = world.simple_site();
    site.backup();
    let users: Vec<String> = (0..3).map(|number| format!("systemusers({})", world.simulator.user(number))).collect();
    let give = |table: &str, id: &str, user: usize| {
        world.simulator.edit_row(table, id, "ownerid", &format!("\"{}\"", users[user])).is_ok()
    };
    // Accounts are given away, and their contacts to others again: the service assigns contacts along with their account.
    let captured = State::of(&world.simulator);
    let mut given = 0;
    for (id, _) in captured.tables["account"].iter().take(20) {
        if !give("account", id, 0) {
            continue;
        }
        let below =
            captured.tables["contact"].iter().filter(|(_, row)| row["_parentcustomerid_value"].contains(id.as_str()));
        given += below.filter(|(contact, _)| give("contact", contact, 1)).count();
    }
    assert!(given > 3, "{given} contacts below accounts");
    let was = State::of(&world.simulator);
    for (name, arguments) in [
        ("accounts", vec!["restore", "--table", "account", "--conflict", "overwrite"]),
        ("all", vec!["restore", "--conflict", "overwrite"]),
    ] {
        let plan = site.plan(name, &arguments);
        let ended = site.try_apply(&plan, true);
        assert!(matches!(ended.code(), 0 | 3), "{name}: {}", ended.stderr);
        let applied = Applied { end: ended.json() };
        let (undo, undone) = undo(&site, applied.run());
        expect_as_before(name, &world, &was, &undo, &undone);
    }
}
