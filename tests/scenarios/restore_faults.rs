//! A restore that dies at any moment, or whose answers are lost, ends where an undisturbed one ends: every row, link, party,
//! file and close activity once, none missing.
//!
//! `DYNAVAULT_RESTORE_SEED=N cargo test --test scenarios restore_faults` repeats the rounds of one seed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use dynavault_simulator::{Config, FaultKind, Faults, TableKind};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::harness::{Dice, Finished, Moment, Running, Site, World, compare, say};

/// Rows of the data set: few, so that many restores fit into a test.
const ROWS: u64 = 240;
/// Kills of one seed.
const KILLS: u32 = 20;
/// Kills of one restore at most, so that it comes to an end.
const KILLS_OF_ONE: u32 = 10;
/// Edits before a restore.
const EDITS: usize = 120;
/// Columns that tell when, how often and by whom a row was written last, and nothing of what is in it.
const MARKS: [&str; 7] = [
    "versionnumber",
    "modifiedon",
    "_modifiedby_value",
    "_modifiedonbehalfby_value",
    "overriddencreatedon",
    // When a row came into its queue, and where the bytes of an attachment are (dataverse 8.5, 8.8).
    "enteredon",
    "attachmentid",
];
/// What the service makes anew with each upload, beside the column itself; its bytes are compared by their hash.
const UPLOAD_MARKS: [&str; 4] = ["", "id", "_timestamp", "_url"];

/// Activities that come into being when something is closed.
const CLOSING: [&str; 4] = ["opportunityclose", "incidentresolution", "quoteclose", "orderclose"];

/// What is in the environment, without what differs between two restores that write the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    rows: BTreeMap<String, Vec<String>>,
    files: BTreeMap<(String, String, String), String>,
}

impl State {
    pub(crate) fn of(world: &World) -> Self {
        let tables = world.simulator.tables();
        let links: Vec<String> = tables
            .iter()
            .filter(|table| table.kind == TableKind::Intersect)
            .map(|table| table.logical_name.clone())
            .collect();
        let keys: BTreeMap<String, String> =
            tables.into_iter().map(|table| (table.logical_name, table.primary_id)).collect();
        let file_columns: Vec<String> = world.simulator.files().into_iter().map(|file| file.column).collect();
        let Moment { rows, files } = world.now();
        let is_of_upload =
            |name: &str, column: &str| name.strip_prefix(column).is_some_and(|rest| UPLOAD_MARKS.contains(&rest));
        let rows = rows
            .into_iter()
            .map(|(table, rows)| {
                let key = keys.get(&table).map(String::as_str);
                // The service numbers parties, links and the other half of a connection itself (dataverse 6.3, 6.9, 8.7).
                let numbered = |row: &str| match table.as_str() {
                    "activityparty" => true,
                    "connection" => row.contains("\"ismaster\":false"),
                    _ => links.contains(&table),
                };
                // What comes into being with a row or when it is closed was made at that moment (dataverse 6.5, 8.1).
                let by_service = |row: &str| {
                    let closing = |kind: &&str| row.contains(&format!("\"activitytypecode\":\"{kind}\""));
                    table == "customeraddress" || CLOSING.iter().any(closing)
                };
                let without_marks = |row: &String| {
                    let (numbered, by_service) = (numbered(row), by_service(row));
                    without(row, |name| {
                        (by_service && name == "createdon")
                            || MARKS.contains(&name)
                            || file_columns.iter().any(|column| is_of_upload(name, column))
                            || name == "_relatedconnectionid_value"
                            || (numbered && Some(name) == key)
                    })
                };
                let mut rows: Vec<String> = rows.iter().map(without_marks).collect();
                rows.sort_unstable();
                (table, rows)
            })
            .collect();
        Self { rows, files }
    }

    pub(crate) fn expect(&self, what: &str, expected: &Self) {
        assert!(self.rows.keys().eq(expected.rows.keys()), "{what}: other tables");
        for (table, rows) in &self.rows {
            compare(&format!("{what}: {table}"), rows, &expected.rows[table]);
        }
        assert_eq!(self.files, expected.files, "{what}: files");
    }
}

/// A row without some of its members.
fn without(row: &str, left_out: impl Fn(&str) -> bool) -> String {
    let members: BTreeMap<String, Box<RawValue>> = serde_json::from_str(row).expect("a row is a JSON object");
    let kept: BTreeMap<String, Box<RawValue>> =
        members.into_iter().filter(|(name, _)| !left_out(name.split('@').next().unwrap_or(name))).collect();
    serde_json::to_string(&kept).expect("members are JSON")
}

/// What goes wrong before a restore.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Damage {
    /// Everything is gone.
    Wiped,
    /// Rows were edited, deleted and added since; the restore puts back the snapshot and deletes what is not in it.
    Edited,
}

impl Damage {
    fn plan_arguments(self) -> &'static [&'static str] {
        match self {
            Self::Wiped => &["restore", "-o", "plan.jsonl"],
            Self::Edited => &["restore", "--mirror", "--conflict", "overwrite", "-o", "plan.jsonl"],
        }
    }
}

const APPLY: [&str; 4] = ["restore", "apply", "plan.jsonl", "--confirm-deletes"];

/// A world that was backed up, and what an undisturbed restore makes of the same damage.
struct Repaired {
    world: World,
    site: Site,
    damage: Damage,
    /// How an undisturbed restore ends, what it leaves, and the requests it takes.
    code: i32,
    result: Value,
    expected: State,
    requests: u64,
}

impl Repaired {
    /// Two worlds of one seed are the same; in one of them nothing goes wrong.
    fn new(seed: u64, damage: Damage) -> Self {
        let make = || {
            let world = World::new(Config { seed, rows: ROWS, latency: Duration::from_millis(1), ..Config::default() });
            let site = world.simple_site();
            site.backup();
            (world, site)
        };
        let (twin, twin_site) = make();
        do_damage(&twin, &twin_site, damage);
        let ended = twin_site.run(&APPLY);
        // What cannot be put back at all is refused in both worlds.
        let code = ended.code();
        assert!(matches!(code, 0 | 3), "seed {seed}: {code}\n{}\n{}", in_short(&ended.stdout), ended.stderr);
        let (expected, requests) = (State::of(&twin), twin.simulator.stats().requests);
        let (world, site) = make();
        Self { world, site, damage, code, result: ended.json(), expected, requests }
    }

    fn damage(&self) {
        do_damage(&self.world, &self.site, self.damage);
    }

    /// Whether the same damage can be done again: what a restore leaves is not what the edits started from.
    fn repeats(&self) -> bool {
        self.damage == Damage::Wiped
    }

    /// Checks a restore that was disturbed.
    fn check(&self, what: &str, ended: &Finished) {
        assert_eq!(ended.code(), self.code, "{what}\n{}\n{}", in_short(&ended.stdout), ended.stderr);
        State::of(&self.world).expect(what, &self.expected);
        same_result(what, &ended.json(), &self.result);
        let status = self.site.runs().first().map(|run| run.status.clone());
        assert_eq!(status.as_deref(), self.result["status"].as_str(), "{what}");
    }
}

/// What a person needs to know of a restore that did not end well.
pub(crate) fn in_short(result: &str) -> String {
    let Ok(result) = serde_json::from_str::<Value>(result) else { return result.to_string() };
    let mut text = String::new();
    for (key, value) in result.as_object().into_iter().flatten().filter(|(key, _)| *key != "proof") {
        writeln!(text, "{key}: {value}").expect("text grows");
    }
    let differences = result["proof"]["differences"].as_array().map(Vec::as_slice).unwrap_or_default();
    for difference in differences.iter().filter(|difference| difference["reason"] == "unexplained").take(5) {
        writeln!(text, "{difference}").expect("text grows");
    }
    text
}

/// Does the same damage each time, and plans how to repair it.
fn do_damage(world: &World, site: &Site, damage: Damage) {
    match damage {
        Damage::Wiped => {
            world.simulator.wipe();
        }
        Damage::Edited => {
            world.simulator.edit(7, EDITS);
        }
    }
    site.run(damage.plan_arguments()).expect_code(0);
    world.simulator.reset_stats();
}

/// The seeds of a test, or the one that the environment names.
fn seeds(of_test: impl IntoIterator<Item = u64>) -> Vec<u64> {
    match std::env::var("DYNAVAULT_RESTORE_SEED") {
        Ok(seed) => vec![seed.parse().expect("DYNAVAULT_RESTORE_SEED is a number")],
        Err(_) => of_test.into_iter().collect(),
    }
}

/// Waits for a moment that the dice choose; false if the process ended before.
fn moment_to_die(world: &World, running: &mut Running, dice: &mut Dice, requests: u64) -> bool {
    let simulator = world.simulator.handle();
    // A process that goes on has less to do than the first one: half of the kills come early.
    let until = if dice.below(2) == 0 { requests / 4 } else { requests + 3 };
    let (served, delay) = (dice.below(until), Duration::from_micros(dice.below(4_000)));
    let before = simulator.stats().requests;
    let alive = running.wait_for(|| simulator.stats().requests >= before + served);
    if alive {
        std::thread::sleep(delay);
    }
    alive
}

/// Applies the plan, killing on the way; how it ended, and the kills.
fn apply_with_kills(repaired: &Repaired, dice: &mut Dice, kills_max: u32) -> (Finished, u32) {
    let mut kills = 0;
    loop {
        let mut running = repaired.site.start(&APPLY);
        if kills < kills_max && moment_to_die(&repaired.world, &mut running, dice, repaired.requests) {
            running.kill();
        }
        let ended = running.wait();
        if ended.status.code().is_some() {
            return (ended, kills);
        }
        kills += 1;
    }
}

/// Rows and links of the result must be those of an undisturbed run, whichever process wrote them.
fn same_result(what: &str, found: &Value, expected: &Value) {
    for key in ["status", "planned", "rejections", "conflicts", "follow_ups_rejected", "operations"] {
        assert_eq!(found[key], expected[key], "{what}: {key} of the result");
    }
    let rows = |result: &Value| {
        let of = |name: &str| result["outcomes"][name].as_u64().expect("a number");
        // What a lost answer had done already may be found unchanged.
        (of("created"), of("updated") + of("unchanged"), of("deleted"), of("skipped"), of("rejected"))
    };
    assert_eq!(rows(found), rows(expected), "{what}: rows of the result");
    assert_eq!(found["proof"]["unexplained"], 0, "{what}: the proof");
}

/// Kills restores of one seed; how many kills there were.
fn die_often(seed: u64, damage: Damage) -> u32 {
    let repaired = Repaired::new(seed, damage);
    let (mut dice, mut kills, mut round) = (Dice::new(seed ^ 0x0dea_d000), 0, 0);
    while kills < KILLS && (round == 0 || repaired.repeats()) {
        repaired.damage();
        let (ended, more) = apply_with_kills(&repaired, &mut dice, KILLS_OF_ONE.min(KILLS - kills));
        kills += more;
        round += 1;
        repaired.check(&format!("DYNAVAULT_RESTORE_SEED={seed}, round {round}, {more} kills"), &ended);
    }
    say(&format!("seed {seed}: {kills} kills in {round} restores of {} requests", repaired.requests));
    kills
}

#[test]
fn a_restore_of_everything_that_dies_often_ends_where_an_undisturbed_one_ends() {
    for seed in seeds(601..=608) {
        die_often(seed, Damage::Wiped);
    }
}

#[test]
fn a_restore_over_edits_that_dies_often_ends_where_an_undisturbed_one_ends() {
    let mut kills = 0;
    for seed in seeds(611..=640) {
        kills += die_often(seed, Damage::Edited);
        if kills >= 2 * KILLS {
            break;
        }
    }
}

/// Restores with every answer at risk; adds the faults that were met.
fn answers_get_lost(seed: u64, damage: Damage, met: &mut BTreeMap<FaultKind, usize>) {
    let repaired = Repaired::new(seed, damage);
    for round in 1..=if repaired.repeats() { 2 } else { 1 } {
        repaired.damage();
        let per_mille = [(FaultKind::CutAfter, 50), (FaultKind::CutBefore, 30), (FaultKind::ThrottledPart, 30)];
        repaired.world.simulator.set_faults(Faults {
            seed: seed * 100 + round,
            per_mille: per_mille.into(),
            ..Faults::default()
        });
        let ended = repaired.site.run(&APPLY);
        repaired.world.simulator.set_faults(Faults::default());
        let faults = repaired.world.simulator.stats().faults;
        for (_, kind) in &faults {
            *met.entry(*kind).or_default() += 1;
        }
        repaired.check(&format!("DYNAVAULT_RESTORE_SEED={seed}, round {round}, {faults:?}"), &ended);
    }
}

fn expect_enough(met: &BTreeMap<FaultKind, usize>) {
    for kind in FaultKind::WRITING {
        assert!(met.get(&kind).copied().unwrap_or(0) >= 10, "hardly any fault came: {met:?}");
    }
    say(&format!("{met:?}"));
}

#[test]
fn a_restore_of_everything_whose_answers_get_lost_writes_everything_once() {
    let mut met = BTreeMap::new();
    for seed in seeds(621..=623) {
        answers_get_lost(seed, Damage::Wiped, &mut met);
    }
    expect_enough(&met);
}

#[test]
fn a_restore_over_edits_whose_answers_get_lost_writes_everything_once() {
    let mut met = BTreeMap::new();
    for seed in seeds(631..=636) {
        answers_get_lost(seed, Damage::Edited, &mut met);
    }
    expect_enough(&met);
}
