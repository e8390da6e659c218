//! A restore that dies at any moment, or whose answers are lost, ends where an undisturbed one ends: every row, link, party,
//! file and close activity once, none missing.
//!
//! `DYNAVAULT_RESTORE_SEED=N cargo test --test scenarios restore_faults` repeats the rounds of one seed.

use std::collections::BTreeMap;
use std::time::Duration;

use dynavault_simulator::{Config, FaultKind, Faults};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::harness::{Dice, Finished, Moment, Running, Site, World, compare, say};

/// Rows of the data set: few, so that many restores fit into a test.
const ROWS: u64 = 300;
/// Kills of one seed.
const KILLS: u32 = 20;
/// Kills of one restore at most, so that it comes to an end.
const KILLS_OF_ONE: u32 = 6;
/// Requests in which a kill is drawn when nothing is known of an undisturbed restore.
const EDITS: usize = 120;
/// Columns that tell when and how often the service has written a row, and nothing of what is in it.
const MARKS: [&str; 2] = ["versionnumber", "modifiedon"];
/// Columns whose values the service makes anew with each upload.
const UPLOAD_MARKS: [&str; 3] = ["entityimageid", "entityimage_timestamp", "entityimage_url"];

/// What is in the environment, without what differs between two restores that write the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct State {
    rows: BTreeMap<String, Vec<String>>,
    files: BTreeMap<(String, String, String), String>,
}

impl State {
    pub(crate) fn of(world: &World) -> Self {
        let keys: BTreeMap<String, String> =
            world.simulator.tables().into_iter().map(|table| (table.logical_name, table.primary_id)).collect();
        let file_columns: Vec<String> = world.simulator.files().into_iter().map(|file| file.column).collect();
        let Moment { rows, files } = world.now();
        let rows = rows
            .into_iter()
            .map(|(table, rows)| {
                let is_mark = |name: &str| {
                    // The service numbers parties itself (dataverse 6.9).
                    let made = table == "activityparty" && Some(name) == keys.get(&table).map(String::as_str);
                    MARKS.contains(&name)
                        || UPLOAD_MARKS.contains(&name)
                        || file_columns.iter().any(|column| column == name)
                        || made
                };
                let mut rows: Vec<String> = rows.iter().map(|row| without(row, is_mark)).collect();
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

/// A world that was backed up, damaged, and has a plan.
struct Damaged {
    world: World,
    site: Site,
}

impl Damaged {
    fn new(seed: u64, damage: Damage) -> Self {
        let world = World::new(Config { seed, rows: ROWS, latency: Duration::from_millis(1), ..Config::default() });
        let site = world.simple_site();
        site.backup();
        let damaged = Self { world, site };
        damaged.damage(seed, damage);
        damaged
    }

    fn damage(&self, seed: u64, damage: Damage) {
        match damage {
            Damage::Wiped => {
                self.world.simulator.wipe();
            }
            Damage::Edited => {
                self.world.simulator.edit(seed, EDITS);
            }
        }
        self.site.run(damage.plan_arguments()).expect_code(0);
        self.world.simulator.reset_stats();
    }

    /// Applies the plan undisturbed: how it ended, and the requests it took.
    fn undisturbed(&self) -> (Finished, u64) {
        let ended = self.site.run(&APPLY);
        let _ended: Value = ended.json();
        (ended, self.world.simulator.stats().requests)
    }
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
    let (served, delay) = (dice.below(requests + 3), Duration::from_micros(dice.below(4_000)));
    let before = simulator.stats().requests;
    let alive = running.wait_for(|| simulator.stats().requests >= before + served);
    if alive {
        std::thread::sleep(delay);
    }
    alive
}

/// Applies the plan, killing on the way; how it ended, and the kills.
fn apply_with_kills(damaged: &Damaged, dice: &mut Dice, requests: u64, kills_max: u32) -> (Finished, u32) {
    let mut kills = 0;
    loop {
        let mut running = damaged.site.start(&APPLY);
        if kills < kills_max && moment_to_die(&damaged.world, &mut running, dice, requests) {
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
fn same_result(what: &str, found: &Finished, expected: &Finished) {
    let (found, expected): (Value, Value) = (found.json(), expected.json());
    for key in ["status", "planned", "rejections", "conflicts", "follow_ups_rejected", "operations"] {
        assert_eq!(found[key], expected[key], "{what}: {key} of the result");
    }
    let rows = |result: &Value| {
        let of = |name: &str| result["outcomes"][name].as_u64().expect("a number");
        // What a lost answer had done already may be found unchanged.
        (of("created"), of("updated") + of("unchanged"), of("deleted"), of("skipped"), of("rejected"))
    };
    assert_eq!(rows(&found), rows(&expected), "{what}: rows of the result");
    assert_eq!(found["proof"]["unexplained"], 0, "{what}: the proof");
}

fn die_often(seed: u64, damage: Damage) {
    let twin = Damaged::new(seed, damage);
    let (undisturbed, requests) = twin.undisturbed();
    let undisturbed = undisturbed.expect_code(0);
    let expected = State::of(&twin.world);
    let damaged = Damaged::new(seed, damage);
    let (mut dice, mut kills, mut round) = (Dice::new(seed ^ 0x0dea_d000), 0, 0);
    while kills < KILLS {
        if round > 0 {
            damaged.damage(seed, damage);
        }
        let most = KILLS_OF_ONE.min(KILLS - kills);
        let (ended, more) = apply_with_kills(&damaged, &mut dice, requests, most);
        kills += more;
        round += 1;
        let what = format!("DYNAVAULT_RESTORE_SEED={seed}, round {round}, {more} kills");
        let ended = ended.expect_code(0);
        State::of(&damaged.world).expect(&what, &expected);
        same_result(&what, &ended, &undisturbed);
        let status = damaged.site.runs().first().map(|run| run.status.clone());
        assert_eq!(status.as_deref(), Some("succeeded"), "{what}");
        if damage == Damage::Edited {
            // Every round of this kind needs a world of its own: the damage would not be the same again.
            break;
        }
    }
    say(&format!("seed {seed}: {kills} kills in {round} restores of {requests} requests"));
}

#[test]
fn a_restore_of_everything_that_dies_often_ends_where_an_undisturbed_one_ends() {
    for seed in seeds(601..=604) {
        die_often(seed, Damage::Wiped);
    }
}
