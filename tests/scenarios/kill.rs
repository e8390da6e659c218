//! The process dies by SIGKILL at moments drawn from a seed, in full and incremental runs. The next run goes on from what is
//! durable; the result is what an undisturbed run gives, and costs hardly more.

use std::path::{Path, PathBuf};
use std::time::Duration;

use dynavault_engine::{ExposeSecret, generate_key};
use dynavault_model::{RunReport, TableMode};
use dynavault_simulator::{Config, FaultKind, Faults, Stats, TableFault};

use crate::harness::{Dice, ENVIRONMENT, Moment, Running, Site, SiteOptions, World, entry};

/// Kills in one world. With ten worlds there are two hundred.
const KILLS: u32 = 20;
const ROWS: u64 = 3_000;
/// Rows of the table that fills several segments.
const BIG_ROWS: u64 = 1_500;
const PAGE_ROWS: u64 = 40;
/// Row JSON in a segment; after three quarters of it the end of a page becomes durable.
const SEGMENT_MIB: u64 = 1;
/// Tables at the same time: the most that can be cut off in the middle by one kill.
const PARALLEL: u64 = 4;
/// Pages of one table that are not durable yet: those of three quarters of a segment of rows of 250 bytes at least, and the
/// one that is under way.
const OPEN_PAGES: u64 = ((SEGMENT_MIB << 20) * 3 / 4 / 250).div_ceil(PAGE_ROWS) + 1;
/// Pieces of content of one table that are not durable yet: the lot that is being fetched.
const OPEN_ITEMS: u64 = 64;

/// Writes a secret key into a file and gives the path.
pub(crate) fn write_key(folder: &Path, secret: &impl ExposeSecret<str>) -> PathBuf {
    let path = folder.join("restore.key");
    std::fs::write(&path, secret.expose_secret()).expect("the key is written");
    path
}

/// What differs between worlds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    /// Encrypted, without a key on the host that backs up.
    WriteOnly,
    /// Every run but the first reads everything and compares.
    Sweeping,
}

/// Requests by what they are for.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    pages: u64,
    content: u64,
    /// Sign-in, metadata, counts, rows asked for one by one.
    other: u64,
}

impl Cost {
    fn of(stats: &Stats) -> Self {
        let of = |kind: &str| stats.by_kind.get(kind).copied().unwrap_or(0);
        let (pages, content) = (of("page") + of("delta"), of("file"));
        Self { pages, content, other: stats.by_kind.values().sum::<u64>() - pages - content }
    }

    fn add(&mut self, more: Self) {
        self.pages += more.pages;
        self.content += more.content;
        self.other += more.other;
    }

    fn sum(self) -> u64 {
        self.pages + self.content + self.other
    }
}

struct Mortal {
    world: World,
    /// The site whose processes die.
    site: Site,
    /// Reads the vault of `site`.
    reader: Site,
    /// Does the same undisturbed, into a vault of its own.
    twin: Site,
    dice: Dice,
    arguments: &'static [&'static str],
    kills: u32,
    /// Kills of processes that had recorded their run.
    recorded: u32,
}

impl Mortal {
    fn new(seed: u64, kind: Kind) -> Self {
        let world = World::new(Config {
            seed,
            rows: ROWS,
            big_table_rows: BIG_ROWS,
            page_size_max: PAGE_ROWS as usize,
            latency: Duration::from_millis(2),
            ..Config::default()
        });
        let mut options = SiteOptions {
            limits: vec![
                ("segment_mib_max", SEGMENT_MIB),
                ("segment_seconds_max", 1),
                ("tables_in_parallel", PARALLEL),
            ],
            ..SiteOptions::default()
        };
        let twin = world.site("twin", &options);
        let mut reading = options.clone();
        if kind == Kind::WriteOnly {
            let (secret, recipient) = generate_key();
            options.recipients = vec![recipient];
            reading.identity_file = Some(write_key(&twin.folder, &secret));
        }
        let site = world.site("site", &options);
        let reader = world.site("reader", &SiteOptions { vault: Some(site.vault.clone()), ..reading });
        let arguments: &[&str] = if kind == Kind::Sweeping { &["backup", "--full"] } else { &["backup"] };
        Self { world, site, reader, twin, dice: Dice::new(seed ^ 0xdead), arguments, kills: 0, recorded: 0 }
    }

    /// What an undisturbed run of the same data costs, in requests.
    fn undisturbed(&self) -> (RunReport, Cost) {
        self.world.simulator.reset_stats();
        let report = self.twin.whole_backup(self.arguments);
        (report, Cost::of(&self.world.simulator.stats()))
    }

    /// Waits for a moment that the dice choose; false if the process ended before.
    fn moment_to_die(&mut self, running: &mut Running, requests: u64) -> bool {
        let delay = Duration::from_micros(self.dice.below(3_000));
        let simulator = self.world.simulator.handle();
        let alive = if self.dice.below(3) == 0 {
            // A number of files in the vault, for the moments in which only we are at work.
            let (before, more) = (self.site.vault_files().len(), 1 + self.dice.below(60) as usize);
            let site = self.site.clone();
            running.wait_for(|| site.vault_files().len() >= before + more)
        } else {
            let served = self.dice.below(requests + 5);
            running.wait_for(|| simulator.stats().requests >= served)
        };
        if alive {
            std::thread::sleep(delay);
        }
        alive
    }

    /// Runs until one run finishes, killing on the way while there are kills left; then checks everything.
    fn finish(&mut self, undisturbed: &RunReport, alone: Cost) -> RunReport {
        let (moment, mut total, mut killed) = (self.world.now(), Cost::default(), 0_u64);
        let (last, last_cost) = loop {
            self.world.simulator.reset_stats();
            let mut running = self.site.start(self.arguments);
            let alive = self.kills < KILLS && self.moment_to_die(&mut running, alone.sum());
            if alive {
                running.kill();
            }
            let ended = running.wait();
            let cost = Cost::of(&self.world.simulator.stats());
            total.add(cost);
            if ended.status.code().is_some() {
                break (ended.expect_code(0).expect_calm().report(), cost);
            }
            killed += 1;
            self.kills += 1;
            self.recorded += u32::from(cost.sum() > 0);
        };
        Self::check_cost(killed, alone, last_cost, total);
        self.reader.prove(&last, &moment);
        if killed == 0 {
            assert_eq!(figures(&last), figures(undisturbed));
        }
        last
    }

    /// A run that goes on pays for sign-in and metadata again, and for what was open when its predecessor died; never more
    /// than from the beginning.
    fn check_cost(killed: u64, alone: Cost, last: Cost, total: Cost) {
        let text = format!("{killed} kills; alone {alone:?}, last {last:?}, all {total:?}");
        assert!(last.pages <= alone.pages && last.content <= alone.content, "{text}");
        assert!(total.other <= (killed + 1) * (alone.other + 5), "{text}");
        assert!(total.pages <= alone.pages + killed * PARALLEL * OPEN_PAGES, "{text}");
        // A file takes its blocks and a question for its size.
        assert!(total.content <= alone.content + killed * PARALLEL * OPEN_ITEMS * 2, "{text}");
    }

    fn check_history(&self) {
        let runs = self.site.runs();
        let count = |status: &str| runs.iter().filter(|run| run.status == status).count() as u32;
        assert_eq!(count("running"), 0);
        // A process may die between the commit of its snapshot and the record of its end.
        assert!(count("interrupted") <= self.kills);
        assert!(count("interrupted") >= self.recorded, "{} of {} kills", count("interrupted"), self.recorded);
        let listed: Vec<serde_json::Value> =
            self.site.run(&["run", "list", "--status", "interrupted"]).expect_code(0).json();
        assert_eq!(listed.len() as u32, count("interrupted").min(50));
        self.reader.verify();
    }
}

/// What two runs of the same data must agree on.
fn figures(report: &RunReport) -> Vec<(String, u64, u64, u64, u64, u64)> {
    let of = |table: &dynavault_model::TableReport| {
        (table.table.clone(), table.rows_stored, table.created, table.changed, table.deleted, table.live_rows)
    };
    report.tables.iter().map(of).collect()
}

fn die_often(seed: u64, kind: Kind) {
    let mut mortal = Mortal::new(seed, kind);
    let mut rounds = 0;
    while mortal.kills < KILLS {
        let (report, alone) = mortal.undisturbed();
        if rounds == 0 {
            let big = mortal.twin.manifest(report.snapshot.expect("a snapshot"));
            assert!(big.table("new_big").expect("the big table").segments.len() >= 3);
        }
        mortal.finish(&report, alone);
        rounds += 1;
        mortal.world.simulator.edit(seed * 100 + rounds, 300);
        mortal.world.simulator.edit_big(seed * 100 + rounds, 200);
    }
    // What was killed last has finished; one more increment stands on all of it.
    let (report, alone) = mortal.undisturbed();
    mortal.finish(&report, alone);
    mortal.check_history();
}

macro_rules! worlds {
    ($($name:ident: $seed:literal $kind:ident,)*) => {
        $(#[test]
        fn $name() {
            die_often($seed, Kind::$kind);
        })*
    };
}

worlds! {
    twenty_kills_lose_nothing_world_1: 201 Plain,
    twenty_kills_lose_nothing_world_2: 202 Plain,
    twenty_kills_lose_nothing_world_3: 203 Plain,
    twenty_kills_lose_nothing_world_4: 204 Plain,
    twenty_kills_lose_nothing_world_5: 205 Plain,
    twenty_kills_lose_nothing_world_6: 206 Plain,
    twenty_kills_of_a_write_only_host_lose_nothing_world_7: 207 WriteOnly,
    twenty_kills_of_a_write_only_host_lose_nothing_world_8: 208 WriteOnly,
    twenty_kills_of_comparing_runs_lose_nothing_world_9: 209 Sweeping,
    twenty_kills_of_comparing_runs_lose_nothing_world_10: 210 Sweeping,
}

/// Kills the site's full backup once the table has been asked for so many pages.
fn kill_at_page(world: &World, site: &Site, table: &str, pages: u64) {
    world.simulator.reset_stats();
    let simulator = world.simulator.handle();
    let mut running = site.start(&["backup"]);
    let alive = running.wait_for(|| simulator.stats().by_table.get(table).copied().unwrap_or(0) >= pages);
    assert!(alive, "the run ended before page {pages} of {table}");
    running.kill();
    assert_eq!(running.wait().code(), -1);
}

#[test]
fn a_table_goes_on_from_its_last_durable_segment() {
    let (rows, page_rows) = (8_000, 100);
    let world = World::new(Config {
        seed: 221,
        rows: 500,
        big_table_rows: rows,
        page_size_max: page_rows,
        latency: Duration::from_millis(2),
        ..Config::default()
    });
    let limits = vec![("segment_mib_max", SEGMENT_MIB), ("segment_seconds_max", 60)];
    let site = world.site("site", &SiteOptions { limits, ..SiteOptions::default() });
    let pages = rows / page_rows as u64;
    kill_at_page(&world, &site, "new_big", pages * 3 / 4);
    world.simulator.reset_stats();
    let report = site.backup();
    assert_eq!(report.resumed_from.map(|run| run.to_string()), site.runs().get(1).map(|run| run.run.clone()));
    // Two kilobytes a row: a segment is three quarters of a mebibyte, at least every fifth page ends one.
    let again = world.simulator.stats().by_table["new_big"];
    assert!(again <= pages / 4 + 6, "{again} of {pages} pages were read by the second run");
    let big = entry(&report, "new_big");
    assert_eq!((big.mode, big.live_rows, big.created), (TableMode::Full, rows, rows));
    site.prove(&report, &world.now());
}

#[test]
fn a_table_that_turned_out_not_to_be_tracked_is_not_read_again_after_a_kill() {
    // A link table whose other end is not tracked: the service says so only when it is asked for changes.
    let world =
        World::new(Config { seed: 222, rows: 2_000, big_table_rows: 2_000, page_size_max: 50, ..Config::default() });
    let site = world.simple_site();
    let slow = |nth| TableFault { table: "new_big".into(), nth, kind: FaultKind::SlowBody };
    world.simulator.set_faults(Faults { on: (1..=40).map(slow).collect(), ..Faults::default() });
    let arguments = ["backup", "--table", "new_widget_note", "--table", "new_big"];
    let mut running = site.start(&arguments);
    let simulator = world.simulator.handle();
    let folder = site.vault.join("environments").join(ENVIRONMENT).join("tables").join("new_widget_note");
    let segment = || {
        let named = |name: &std::ffi::OsStr| name.to_string_lossy().ends_with(".jsonl.zst");
        std::fs::read_dir(&folder).is_ok_and(|entries| entries.flatten().any(|entry| named(&entry.file_name())))
    };
    assert!(running.wait_for(segment), "the run ended too early");
    // Each page of the other table takes half a second: two more, and the small one has long been recorded as done.
    let pages = || simulator.stats().by_table.get("new_big").copied().unwrap_or(0);
    let seen = pages();
    assert!(running.wait_for(|| pages() >= seen + 2), "the run ended too early");
    running.kill();
    assert_eq!(running.wait().code(), -1);
    world.simulator.set_faults(Faults::default());
    world.simulator.reset_stats();
    let report = site.whole_backup(&arguments);
    assert_eq!(world.simulator.stats().by_table.get("new_widget_note"), None);
    let rows = world.now().rows;
    let snapshot = report.snapshot.expect("a snapshot");
    for table in ["new_widget_note", "new_big"] {
        assert_eq!(entry(&report, table).live_rows, rows[table].len() as u64);
        site.prove_table(snapshot, table, &rows[table]);
    }
}

#[test]
fn what_cannot_be_gone_on_from_is_dropped_and_does_not_come_back_after_another_kill() {
    let page_rows = 20;
    let latency = Duration::from_millis(2);
    let world = World::new(Config { seed: 224, rows: 6_000, page_size_max: page_rows, latency, ..Config::default() });
    let limits = vec![("segment_mib_max", SEGMENT_MIB), ("segment_seconds_max", 60)];
    let site = world.site("site", &SiteOptions { limits, ..SiteOptions::default() });
    let folder = site.vault.join("environments").join(ENVIRONMENT).join("tables").join("contact");
    let segments = || {
        let named = |name: &std::ffi::OsStr| name.to_string_lossy().ends_with(".jsonl.zst");
        std::fs::read_dir(&folder)
            .map_or(0, |entries| entries.flatten().filter(|entry| named(&entry.file_name())).count())
    };
    // Kills a run when the table has a segment more, and that has been recorded.
    let kill = || {
        let before = segments();
        world.simulator.reset_stats();
        let simulator = world.simulator.handle();
        let pages = || simulator.stats().by_table.get("contact").copied().unwrap_or(0);
        let mut running = site.start(&["backup"]);
        assert!(running.wait_for(|| segments() > before), "the run ended without a segment of contact");
        let seen = pages();
        assert!(running.wait_for(|| pages() >= seen + 3), "the run ended too early");
        running.kill();
        assert_eq!(running.wait().code(), -1);
    };
    kill();
    // Without their state files the segments of the first run are of no use, and some of their rows are deleted now.
    std::fs::remove_dir_all(site.folder.join("catalog.state")).expect("the state is deleted");
    for row in world.simulator.rows("contact").iter().step_by(9) {
        world.simulator.delete("contact", &row.keys[0]);
    }
    kill();
    let report = site.backup();
    assert!(report.resumed_from.is_some());
    site.prove(&report, &world.now());
}

#[test]
fn a_process_killed_before_its_first_checkpoint_leaves_nothing_in_the_way() {
    let world = World::of_rows(223, 1_000);
    let site = world.simple_site();
    for requests in 1..=12 {
        world.simulator.reset_stats();
        let simulator = world.simulator.handle();
        let mut running = site.start(&["backup"]);
        assert!(running.wait_for(|| simulator.stats().requests >= requests));
        running.kill();
        assert_eq!(running.wait().code(), -1);
    }
    let moment: Moment = world.now();
    let report = site.backup();
    site.prove(&report, &moment);
    let statuses: Vec<String> = site.runs().into_iter().map(|run| run.status).collect();
    assert_eq!(statuses.iter().filter(|status| *status == "interrupted").count(), 12);
    assert_eq!(statuses.first().map(String::as_str), Some("succeeded"));
    assert_eq!(site.verify().manifests, 1);
}
