//! What stands between a plan and the environment: plans that are not to be believed, privileges that are missing, rows that
//! the service refuses; and how a restore tells what became of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use dynavault_simulator::{Config, Handle, Stats};
use serde_json::Value;

use crate::harness::{Finished, Moment, Site, SiteOptions, World, say};
use crate::restore_faults::in_short;

/// Requests of signing in and of asking the environment who it is.
const IDENTITY_REQUESTS: u64 = 8;
/// Rows of a bulk message.
const BULK_ROWS: u64 = 500;

/// A world that was backed up and wiped.
fn wiped(config: Config) -> (World, Site) {
    let world = World::new(config);
    let site = world.simple_site();
    site.backup();
    world.simulator.wipe();
    (world, site)
}

fn small(seed: u64) -> (World, Site) {
    wiped(Config { seed, rows: 400, ..Config::default() })
}

fn plan(site: &Site, arguments: &[&str]) -> Value {
    site.run(&[&["restore", "-o", "plan.jsonl"], arguments].concat()).expect_code(0).json()
}

fn apply(site: &Site) -> Finished {
    site.run(&["restore", "apply", "plan.jsonl"])
}

/// Requests that write, batches and their parts included.
fn writes(stats: &Stats) -> u64 {
    stats.operations.values().sum()
}

fn of_kind(stats: &Stats, kind: &str) -> u64 {
    stats.by_kind.get(kind).copied().unwrap_or(0)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key} of {value} is no text"))
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().unwrap_or_else(|| panic!("{key} of {value} is no list"))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// The command must refuse what it was given, say why, and have asked the environment for no more than who it is.
fn refused(world: &World, ended: &Finished, code: i32, reasons: &[&str], requests_max: u64) {
    let said = format!("{}\n{}\n{}", ended.command, ended.stdout, ended.stderr);
    assert_eq!(ended.code(), code, "{said}");
    for reason in reasons {
        assert!(ended.stderr.contains(reason), "{reason:?} was not said: {said}");
    }
    assert!(ended.stderr.contains("hint: "), "no remedy: {said}");
    let stats = world.simulator.stats();
    assert!(stats.requests <= requests_max, "{} requests: {:?}\n{said}", stats.requests, stats.by_kind);
    assert_eq!(writes(&stats), 0, "{said}");
    assert!(stats.rows_written.is_empty(), "{:?}", stats.rows_written);
}

#[test]
fn hostile_plans_are_refused_before_the_first_call() {
    let (world, site) = small(701);
    plan(&site, &[]);
    let path = site.folder.join("plan.jsonl");
    let whole = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    let op = lines.iter().position(|line| line.starts_with("{\"op\"")).unwrap();
    let joined = |lines: &[&str]| lines.join("\n") + "\n";
    let replaced = |at: usize, from: &str, to: &str| {
        let mut lines = lines.clone();
        assert!(lines[at].contains(from), "{from} is not in line {at}");
        let line = lines[at].replacen(from, to, 1);
        lines[at] = &line;
        joined(&lines)
    };
    let without = |left_out: usize| {
        let kept: Vec<&str> =
            lines.iter().enumerate().filter(|(at, _)| *at != left_out).map(|(_, line)| *line).collect();
        joined(&kept)
    };
    let mut swapped = lines.clone();
    swapped.swap(op, op + 1);
    let mut doubled = lines.clone();
    doubled.insert(op, lines[op]);
    let hostile: Vec<(&str, String, &str)> = vec![
        ("cut in a line", whole[..whole.len() * 2 / 3].to_string(), "it was cut"),
        ("cut after a line", joined(&lines[..lines.len() - 1]), "it was cut"),
        ("cut in its last line", whole[..whole.len() - 9].to_string(), "it was cut"),
        ("an edited operation", replaced(op, "\"create\"", "\"delete\""), "edited or damaged"),
        ("an edited head", replaced(0, "\"bypass_logic\":true", "\"bypass_logic\":false"), "edited or damaged"),
        ("a flipped digit", replaced(lines.len() - 1, "\"digest\":\"", "\"digest\":\"0"), "edited or damaged"),
        ("a missing operation", without(op), "edited or damaged"),
        ("a doubled operation", joined(&doubled), "edited or damaged"),
        ("swapped operations", joined(&swapped), "edited or damaged"),
        ("a line too many", whole.clone() + lines[op] + "\n", "something follows its last line"),
        ("an older format", replaced(0, "\"format\":1", "\"format\":0"), "too old"),
        ("a newer format", replaced(0, "\"format\":1", "\"format\":2"), "newer version"),
        ("nothing", String::new(), "the file is empty"),
        ("no plan", "hello\nworld\n".into(), "it is not a plan"),
        ("some other JSON", "{\"plan\":{\"name\":\"x\"}}\n".into(), "it is not a plan"),
        ("a head alone", joined(&lines[..1]), "it was cut"),
        ("no head", joined(&lines[1..]), "it is not a plan"),
    ];
    world.simulator.reset_stats();
    for (what, text, reason) in &hostile {
        fs::write(&path, text).unwrap();
        let ended = site.run(&["restore", "apply", "plan.jsonl", "--confirm-deletes"]);
        say(what);
        refused(&world, &ended, 2, &[reason], 0);
    }
    // Bytes that are no text, and a line without an end: zeros as far as anybody will read.
    fs::write(&path, [0xff, 0xfe, b'{', b'\n']).unwrap();
    refused(&world, &apply(&site), 2, &["it is not a plan"], 0);
    fs::File::create(&path).unwrap().set_len(400 << 20).unwrap();
    refused(&world, &apply(&site), 2, &["a line is longer than"], 0);
    fs::remove_file(&path).unwrap();
    refused(&world, &apply(&site), 2, &["cannot be opened"], 0);
    fs::create_dir(&path).unwrap();
    refused(&world, &apply(&site), 2, &["not a file"], 0);
    assert!(site.runs().iter().all(|run| run.kind == "backup"), "a refused plan became a run");
    // The plan itself was good.
    fs::remove_dir(&path).unwrap();
    fs::write(&path, &whole).unwrap();
    apply(&site).expect_code(0);
}

#[test]
fn a_plan_for_another_environment_is_refused_when_it_says_who_it_is() {
    let (_world, site) = small(702);
    plan(&site, &[]);
    let other = World::new(Config { seed: 702, rows: 400, environment: 1, ..Config::default() });
    let other_site = other.simple_site();
    fs::copy(site.folder.join("plan.jsonl"), other_site.folder.join("plan.jsonl")).unwrap();
    let ended = apply(&other_site);
    refused(
        &other,
        &ended,
        2,
        &["it was made for organization", "this environment is organization"],
        IDENTITY_REQUESTS,
    );
}

#[test]
fn without_the_privilege_to_bypass_nothing_is_written_and_automation_can_be_allowed() {
    let (world, site) = small(703);
    plan(&site, &[]);
    for privilege in ["prvBypassCustomBusinessLogic", "prvBypassCustomPlugins"] {
        world.simulator.take_privilege(privilege);
    }
    world.simulator.reset_stats();
    let ended = apply(&site);
    refused(&world, &ended, 6, &["prvBypassCustomBusinessLogic", "--run-automation"], u64::MAX);
    assert_eq!(site.runs()[0].status, "failed");
    // The older privilege is enough for plug-ins.
    world.simulator.give_privilege("prvBypassCustomPlugins");
    world.simulator.reset_stats();
    apply(&site).expect_code(0);
    assert_eq!(world.simulator.stats().plugins_run, 0);

    world.simulator.take_privilege("prvBypassCustomPlugins");
    world.simulator.wipe();
    plan(&site, &["--run-automation"]);
    world.simulator.reset_stats();
    let result: Value = apply(&site).expect_code(0).json();
    let stats = world.simulator.stats();
    assert!(stats.plugins_run > 0 && stats.flows_started > 0);
    let automated = number(&result["proof"]["tables"]["account"]["reasons"]["changed-by-automation"]);
    assert!(automated > 0, "{}", result["proof"]["tables"]["account"]);
}

#[test]
fn without_the_privilege_to_set_it_the_time_of_creation_is_reported() {
    let (world, site) = small(704);
    world.simulator.take_privilege("prvOverrideCreatedOnCreatedBy");
    let summary = plan(&site, &["--table", "contact"]);
    let findings = about_creation(&summary);
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(number(&findings[0]["rows"]), number(&summary["counts"]["create"]));
    let result: Value = apply(&site).expect_code(0).json();
    assert_eq!(result["rejections"], Value::Array(Vec::new()));
    let contacts = &result["proof"]["tables"]["contact"];
    assert!(number(&contacts["reasons"]["server-set"]) >= number(&contacts["rows"]), "{contacts}");

    world.simulator.give_privilege("prvOverrideCreatedOnCreatedBy");
    world.simulator.wipe();
    let summary = plan(&site, &["--table", "contact"]);
    assert_eq!(about_creation(&summary), Vec::<&Value>::new());
}

/// Findings that name the privilege to set the time of creation.
fn about_creation(summary: &Value) -> Vec<&Value> {
    let named = |finding: &&Value| text(finding, "message").contains("prvOverrideCreatedOnCreatedBy");
    list(summary, "findings").iter().filter(named).collect()
}

#[test]
fn a_table_that_takes_no_rows_is_asked_once_and_costs_the_others_nothing() {
    /// Requests under way at once, each of which may meet the refusal for itself.
    const IN_FLIGHT: u64 = 8;
    let (world, site) = wiped(Config { seed: 705, rows: 12_000, ..Config::default() });
    let summary = plan(&site, &["--table", "contact", "--table", "lead"]);
    let selected = |table: &str| {
        let tables = list(&summary, "tables").iter();
        number(&tables.clone().find(|entry| entry["table"] == table).unwrap()["counts"]["create"])
    };
    let (contacts, leads) = (selected("contact"), selected("lead"));
    world.simulator.take_privilege("prvCreateContact");
    world.simulator.reset_stats();
    let result: Value = apply(&site).expect_code(3).json();
    assert_eq!(number(&result["outcomes"]["rejected"]), contacts);
    assert_eq!(number(&result["outcomes"]["created"]), leads);
    assert_eq!(world.simulator.row_counts()["contact"], 0);
    assert_eq!(world.simulator.row_counts()["lead"], leads);
    for rejection in list(&result, "rejections").iter().filter(|rejection| rejection["do"] == "create") {
        assert_eq!((text(rejection, "table"), text(rejection, "code")), ("contact", "0x80040220"), "{rejection}");
        assert!(text(rejection, "message").contains("prvCreateContact"), "{rejection}");
    }
    // Alone, so that every message is one of the refused table.
    plan(&site, &["--table", "contact"]);
    world.simulator.reset_stats();
    apply(&site).expect_code(3);
    let messages = of_kind(&world.simulator.stats(), "create_multiple");
    assert!(contacts > 2 * BULK_ROWS && (1..=IN_FLIGHT).contains(&messages), "{messages} messages of {contacts} rows");
}

#[test]
fn deletions_need_their_own_word_and_a_plan_is_carried_out_once() {
    let world = World::of_rows(706, 400);
    let site = world.simple_site();
    site.backup();
    // A row that the snapshot does not have.
    let before = world.now();
    let mut seed = 0;
    while created_since(&world.now(), &before) == 0 {
        seed += 1;
        world.simulator.edit(seed, 40);
    }
    plan(&site, &["--mirror", "--table", "lead"]);
    world.simulator.reset_stats();
    refused(&world, &apply(&site), 2, &["the plan deletes", "--confirm-deletes"], 0);
    let ended = site.run(&["restore", "apply", "plan.jsonl", "--confirm-deletes"]);
    assert!(matches!(ended.code(), 0 | 3), "{}{}", in_short(&ended.stdout), ended.stderr);
    let run = text(&ended.json::<Value>(), "run").to_string();
    world.simulator.reset_stats();
    let again = site.run(&["restore", "apply", "plan.jsonl", "--confirm-deletes"]);
    refused(&world, &again, 2, &[&format!("run {run} has carried out this plan already")], IDENTITY_REQUESTS);
    assert_eq!(site.runs().iter().filter(|run| run.kind == "restore").count(), 1);
}

fn created_since(now: &Moment, before: &Moment) -> u64 {
    now.since(before, "lead", "leadid").0
}

#[test]
fn two_restores_into_one_environment_do_not_meet() {
    let world = World::new(Config { seed: 707, rows: 400, latency: Duration::from_millis(20), ..Config::default() });
    let site = world.simple_site();
    site.backup();
    world.simulator.wipe();
    plan(&site, &[]);
    world.simulator.reset_stats();
    let mut first = site.start(&["restore", "apply", "plan.jsonl"]);
    let simulator = world.simulator.handle();
    assert!(first.wait_for(|| writes(&simulator.stats()) > 0), "the restore ended early");
    let before = fs::read(site.folder.join("plan.jsonl")).unwrap();
    let second = apply(&site);
    assert_eq!(second.code(), 5, "{}", second.stderr);
    let first = first.wait().expect_code(0);
    assert_eq!(number(&first.json::<Value>()["outcomes"]["rejected"]), 0);
    assert_eq!(fs::read(site.folder.join("plan.jsonl")).unwrap(), before);
    assert_eq!(site.runs().iter().filter(|run| run.kind == "restore").count(), 1);
}

/// Accounts by id, with their number.
fn accounts(simulator: &Handle) -> BTreeMap<String, Option<String>> {
    let number = |json: &str| {
        serde_json::from_str::<Value>(json).expect("the oracle prints JSON")["accountnumber"]
            .as_str()
            .map(str::to_string)
    };
    simulator.rows("account").into_iter().map(|row| (row.keys[0].clone(), number(&row.json))).collect()
}

#[test]
fn seven_bad_rows_of_a_thousand_are_named_and_their_neighbours_are_written() {
    const ROWS: usize = 1_000;
    const BAD: usize = 7;
    let world = World::new(Config { seed: 708, rows: 22_500, ..Config::default() });
    let site = world.simple_site();
    // Rows to lose; all of them belong to somebody who can own rows, so that nothing else is refused.
    let owner = Value::from(format!("systemusers({})", world.simulator.user(0))).to_string();
    let mut given: Vec<String> = accounts(&world.simulator).into_keys().collect();
    given.retain(|id| world.simulator.edit_row("account", id, "ownerid", &owner).is_ok());
    site.whole_backup(&["backup", "--table", "account"]);
    let all = accounts(&world.simulator);
    let lost: Vec<&str> = given.iter().take(ROWS).map(String::as_str).collect();
    // Others survive, and seven of those take over the number of a lost one.
    let mut takers = all.keys().filter(|id| !lost.contains(&id.as_str()));
    world.simulator.delete_rows("account", &lost);
    let left = accounts(&world.simulator);
    let gone: Vec<&String> = all.keys().filter(|id| !left.contains_key(*id)).collect();
    assert_eq!(gone.len(), ROWS, "of {}, {} of them given away", all.len(), given.len());
    let numbered: Vec<&String> = gone.iter().copied().filter(|id| all[*id].is_some()).collect();
    let bad: Vec<&String> = (0..BAD).map(|nth| numbered[nth * numbered.len() / BAD]).collect();
    for id in &bad {
        let number = Value::from(all[*id].clone().unwrap()).to_string();
        let mut taken = || world.simulator.edit_row("account", takers.next()?, "accountnumber", &number).ok();
        while taken().is_none() {}
    }
    let summary = plan(&site, &["--table", "account", "--deleted-only"]);
    assert_eq!(number(&summary["counts"]["create"]), ROWS as u64);
    world.simulator.reset_stats();
    let ended = apply(&site).expect_code(3);
    let result: Value = ended.json();
    assert_eq!(number(&result["outcomes"]["created"]), (ROWS - BAD) as u64);
    assert_eq!(number(&result["outcomes"]["rejected"]), BAD as u64);
    let rejected: BTreeMap<&str, &Value> = list(&result, "rejections")
        .iter()
        .filter(|rejection| rejection["do"] == "create")
        .map(|rejection| (text(rejection, "id"), rejection))
        .collect();
    assert!(rejected.keys().copied().eq(bad.iter().map(|id| id.as_str())), "{rejected:?} are not {bad:?}");
    for rejection in rejected.values() {
        assert_eq!(text(rejection, "code"), "0x80060892");
        assert!(text(rejection, "message").contains("accountnumber"), "{rejection}");
    }
    let now = accounts(&world.simulator);
    assert!(all.keys().all(|id| now.contains_key(id) != bad.contains(&id)));
    // Finding a bad row takes two messages for each halving of the one it is in.
    assert!(list(&result, "adjusted").iter().all(|row| row["do"] != "create"), "{}", result["adjusted"]);
    let stats = world.simulator.stats();
    let messages = of_kind(&stats, "create_multiple");
    let halvings = u64::from(BULK_ROWS.ilog2() + 1);
    let most = (ROWS as u64).div_ceil(BULK_ROWS) + BAD as u64 * 2 * halvings;
    say(&format!("{messages} messages, at most {most}; {:?}", stats.by_kind));
    assert!(messages <= most, "{messages} messages");
}

#[test]
fn a_row_that_a_person_changed_after_the_plan_is_reported_and_left_alone_whatever_they_changed() {
    let world = World::of_rows(712, 600);
    let site = world.simple_site();
    site.backup();
    let rows = || -> BTreeMap<String, String> {
        world.simulator.rows("account").into_iter().map(|row| (row.keys[0].clone(), row.json)).collect()
    };
    let emptied = |row: &str| row.contains("\"telephone1\":null");
    let full = rows();
    world.simulator.blank("account", &["telephone1"], 0.9, 712);
    let blank: Vec<String> =
        rows().into_iter().filter(|(id, row)| emptied(row) && !emptied(&full[id])).map(|(id, _)| id).collect();
    assert!(blank.len() > 8, "{} rows", blank.len());
    let summary = plan(&site, &["--table", "account"]);
    assert_eq!(number(&summary["counts"]["update"]), blank.len() as u64);
    // Every other edit is of the column that the plan writes.
    let edited: Vec<&String> = blank.iter().take(8).collect();
    for (nth, id) in edited.iter().enumerate() {
        let column = ["telephone1", "fax"][nth % 2];
        world.simulator.edit_row("account", id, column, &format!("\"by hand {nth}\"")).expect("a person may edit");
    }
    let before = rows();
    let result: Value = apply(&site).expect_code(3).json();
    let conflicts: BTreeMap<&str, &Value> =
        list(&result, "conflicts").iter().map(|conflict| (text(conflict, "id"), conflict)).collect();
    assert!(conflicts.keys().copied().eq(edited.iter().map(|id| id.as_str())), "{conflicts:?} are not {edited:?}");
    assert_eq!(number(&result["outcomes"]["skipped"]), 8);
    assert_eq!(number(&result["outcomes"]["updated"]), blank.len() as u64 - 8);
    let after = rows();
    for (id, row) in &after {
        let by_hand = edited.contains(&id);
        assert_eq!(*row == before[id], by_hand || !blank.contains(id), "{id}");
        assert!(by_hand || !emptied(row) || !blank.contains(id), "{id} was not filled");
    }
}

/// A page that needs nothing but itself.
fn expect_self_contained(page: &str) {
    assert!(page.starts_with("<!DOCTYPE html>") || page.starts_with("<!doctype html>"), "{}", &page[..60]);
    let lower = page.to_ascii_lowercase();
    for forbidden in ["<script", "<img", "<iframe", "<link", "<object", "<embed", "@import", "url(", "javascript:"] {
        assert!(!lower.contains(forbidden), "the page has {forbidden}");
    }
    for reference in ["src=\"", "href=\""] {
        let outside = lower.match_indices(reference).map(|(at, _)| &lower[at + reference.len()..]);
        assert!(outside.clone().all(|rest| rest.starts_with('#')), "the page refers to something outside");
    }
    // Every opened element of a table is closed: text of the service did not become markup.
    for element in ["table", "tr", "td"] {
        assert_eq!(lower.matches(&format!("<{element}")).count(), lower.matches(&format!("</{element}>")).count());
    }
}

#[test]
fn status_history_and_report_tell_what_became_of_a_restore() {
    let (world, site) = small(709);
    plan(&site, &[]);
    world.simulator.take_privilege("prvCreateLead");
    let result: Value = apply(&site).expect_code(3).json();
    let run = text(&result, "run");
    assert_eq!(text(&result, "status"), "partial");
    let outcomes = result["outcomes"].as_object().unwrap();
    let names: Vec<&str> = outcomes.keys().map(String::as_str).collect();
    assert_eq!(names, ["created", "deleted", "rejected", "skipped", "unchanged", "updated"]);
    assert_eq!(number(&result["planned"]), outcomes.values().map(number).sum::<u64>());
    let rejection = &list(&result, "rejections")[0];
    for key in ["table", "id", "code", "message"] {
        assert!(!text(rejection, key).is_empty(), "{key} of {rejection}");
    }
    // The end of the id is enough, and what was said at the end is said again.
    let end = &run[run.len() - 8..];
    let shown: Value = site.run(&["run", "show", end]).expect_code(0).json();
    assert_eq!(shown, result);
    let status: Value = site.run(&["restore", "status", end]).expect_code(0).json();
    assert_eq!((text(&status, "run"), text(&status, "status"), text(&status, "kind")), (run, "partial", "restore"));
    let operations: u64 = list(&status, "operations").iter().map(|state| number(&state[1])).sum();
    assert_eq!(operations, number(&status["ops"]));
    assert!(list(&status, "refused").iter().any(|refused| refused["code"] == "0x80040220"), "{status:#}");
    let listed: Vec<Value> = site.run(&["run", "list"]).expect_code(0).json();
    assert_eq!((text(&listed[0], "run"), text(&listed[0], "kind")), (run, "restore"));

    site.run(&["run", "report", end, "-o", "report.html"]).expect_code(0);
    let page = fs::read_to_string(site.folder.join("report.html")).unwrap();
    expect_self_contained(&page);
    for told in [run, "lead", "0x80040220", "prvCreateLead"] {
        assert!(page.contains(told), "{told} is not in the report");
    }
    // The result has ids and codes; no value of a row is in it.
    let addresses = addresses_of_plan(&site, Path::new("plan.jsonl"));
    assert!(addresses.len() > 20 && addresses.iter().all(|address| !page.contains(address.as_str())));

    for unknown in ["restore status NOSUCHRUN", "run show NOSUCHRUN", "run report NOSUCHRUN", "restore undo NOSUCHRUN"]
    {
        let arguments: Vec<&str> = unknown.split(' ').collect();
        let ended = site.run(&arguments);
        assert_eq!(ended.code(), 2, "{unknown}: {}", ended.stderr);
    }
}

/// E-mail addresses that a plan writes.
fn addresses_of_plan(site: &Site, plan: &Path) -> Vec<String> {
    let text = fs::read_to_string(site.folder.join(plan)).expect("the plan is text");
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter_map(|line| line["op"]["set"]["emailaddress1"].as_str().map(str::to_string)).collect()
}

#[test]
fn a_plan_for_many_rows_stays_within_its_memory() {
    /// Rows when nobody says otherwise: `DYNAVAULT_CLOSURE_ROWS=100000` is what the promise says.
    const ROWS: u64 = 20_000;
    const PEAK_MAX: u64 = 256 << 20;
    let rows = std::env::var("DYNAVAULT_CLOSURE_ROWS").ok();
    let rows = rows.map_or(ROWS, |rows| rows.parse().expect("DYNAVAULT_CLOSURE_ROWS is a number"));
    let world = World::new(Config { seed: 710, rows, ..Config::default() });
    // Bytes of files are no part of a plan.
    let site = world.site("site", &SiteOptions { files: false, ..SiteOptions::default() });
    site.backup();
    world.simulator.wipe();
    let begun = std::time::Instant::now();
    let summary = plan(&site, &["--table", "account", "--related", "up:2,down:3"]);
    let took = begun.elapsed();
    let selected: u64 = list(&summary, "tables").iter().map(|table| number(&table["selected"])).sum();
    let peak = number(&summary["peak_memory_bytes"]);
    say(&format!(
        "{selected} rows, {} operations planned in {:.1} s with {} MiB at most",
        summary["operations"],
        took.as_secs_f64(),
        peak >> 20
    ));
    assert!(selected >= rows / 2, "{selected} of {rows} rows are related to an account");
    assert!(peak > 1 << 20 && peak < PEAK_MAX, "{} MiB", peak >> 20);
}
