//! The JSON documents that scripts rely on: every documented key with its type, and standard output with data only.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::site::{Done, Site};

/// A type as a script would ask for it.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Count,
    Text,
    Time,
    Id,
    List,
    Flag,
    Map,
    /// This or null.
    Maybe(&'static Kind),
    /// One of these words.
    Word(&'static [&'static str]),
}
use Kind::{Count, Flag, Id, List, Map, Maybe, Text, Time, Word};

fn fits(value: &Value, kind: Kind) -> bool {
    match kind {
        Count => value.is_u64(),
        Text => value.as_str().is_some_and(|text| !text.is_empty()),
        Time => value.as_str().is_some_and(|text| text.ends_with('Z') && text.parse::<jiff::Timestamp>().is_ok()),
        Id => value
            .as_str()
            .is_some_and(|text| text.len() == 26 && text.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())),
        List => value.is_array(),
        Flag => value.is_boolean(),
        Map => value.is_object(),
        Maybe(kind) => value.is_null() || fits(value, *kind),
        Word(words) => value.as_str().is_some_and(|text| words.contains(&text)),
    }
}

#[track_caller]
fn has(value: &Value, keys: &[(&str, Kind)]) {
    for (key, kind) in keys {
        let found = value.get(key).unwrap_or_else(|| panic!("{key:?} is missing from {value:#}"));
        assert!(fits(found, *kind), "{key:?} should be {kind:?}: {found}");
    }
}

/// Each of a list that must not be empty.
#[track_caller]
fn each<'v>(value: &'v Value, keys: &[(&str, Kind)]) -> &'v [Value] {
    let items = value.as_array().unwrap_or_else(|| panic!("not a list: {value:#}"));
    assert!(!items.is_empty());
    for item in items {
        has(item, keys);
    }
    items
}

const MODES: &[&str] = &["full", "delta", "sweep"];
const RUN_KINDS: &[&str] = &["backup", "restore", "verify", "prune"];
const RUN_STATES: &[&str] = &["running", "succeeded", "partial", "failed", "cancelled", "interrupted"];
const TABLE_STATES: &[&str] = &["succeeded", "refused", "failed"];

const RUN_REPORT: &[(&str, Kind)] = &[
    ("run", Id),
    ("kind", Word(RUN_KINDS)),
    ("environment", Text),
    ("status", Word(RUN_STATES)),
    ("snapshot", Maybe(&Id)),
    ("started", Time),
    ("finished", Maybe(&Time)),
    ("tables", List),
    ("requests", Count),
    ("retries", Count),
    ("throttled", Count),
    ("bytes_received", Count),
    ("bytes_raw", Count),
    ("bytes_stored", Count),
    ("peak_memory_bytes", Count),
];

const TABLE_REPORT: &[(&str, Kind)] = &[
    ("table", Text),
    ("mode", Word(MODES)),
    ("status", Word(TABLE_STATES)),
    ("rows_read", Count),
    ("rows_stored", Count),
    ("created", Count),
    ("changed", Count),
    ("deleted", Count),
    ("live_rows", Count),
    ("bytes_raw", Count),
    ("bytes_stored", Count),
    ("content_objects", Count),
    ("requests", Count),
    ("reason", Maybe(&Text)),
];

fn json(site: &Site, arguments: &[&str], code: i32) -> Value {
    let mut line = vec!["--json"];
    line.extend_from_slice(arguments);
    site.run(&line).code(code).json()
}

fn sum(report: &Value, key: &str) -> u64 {
    report["tables"].as_array().unwrap().iter().map(|table| table[key].as_u64().unwrap()).sum()
}

/// Images of which the service keeps only the thumbnail; they are captured as what there is.
fn thumbnails_alone(site: &Site) -> u64 {
    let files = site.simulator.files();
    let mut alone = 0;
    for table in site.tables() {
        for row in site.simulator.rows(&table) {
            let columns: Value = serde_json::from_str(&row.json).unwrap();
            for (column, value) in columns.as_object().unwrap() {
                let is_image = value.as_str().is_some_and(|text| text.starts_with("iVBORw0KGg"));
                let is_file =
                    files.iter().any(|file| (&file.table, &file.row, &file.column) == (&table, &row.keys[0], column));
                alone += u64::from(is_image && !is_file);
            }
        }
    }
    alone
}

#[test]
fn the_report_of_a_backup_has_every_documented_key_and_adds_up() {
    let site = Site::small();
    let mut settings = site.settings();
    settings.environment = String::new();
    site.configure("dynavault.toml", &settings);
    let full = json(&site, &["backup"], 3);
    has(&full, RUN_REPORT);
    each(&full["tables"], TABLE_REPORT);
    let rows: u64 = site.tables().iter().map(|table| site.oracle(table).len() as u64).sum();
    for key in ["rows_read", "rows_stored", "created", "live_rows"] {
        assert_eq!(sum(&full, key), rows, "{key}");
    }
    assert_eq!((sum(&full, "changed"), sum(&full, "deleted")), (0, 0));
    assert_eq!(sum(&full, "content_objects"), site.simulator.files().len() as u64 + thumbnails_alone(&site));
    assert_eq!(full["bytes_raw"], sum(&full, "bytes_raw"));
    assert!(full["bytes_stored"].as_u64().unwrap() >= sum(&full, "bytes_stored"));
    assert!(full["peak_memory_bytes"].as_u64().unwrap() > 1 << 20);
    // Every request that reached the service is in the report; signing in is not one.
    let stats = site.simulator.stats();
    assert_eq!(full["requests"], stats.requests - stats.by_kind.get("token").copied().unwrap_or(0));
    assert_eq!((&full["retries"], &full["throttled"]), (&Value::from(0), &Value::from(0)));

    let ids = || -> BTreeMap<String, BTreeSet<Vec<String>>> {
        let of = |table: &String| site.simulator.rows(table).into_iter().map(|row| row.keys).collect();
        site.tables().into_iter().map(|table| (table.clone(), of(&table))).collect()
    };
    let before = ids();
    site.simulator.edit(7, 60);
    let now = ids();
    let next = json(&site, &["backup"], 3);
    has(&next, RUN_REPORT);
    for table in each(&next["tables"], TABLE_REPORT) {
        let name = table["table"].as_str().unwrap();
        if table["status"] != "succeeded" {
            assert!(table["reason"].is_string(), "{table}");
            continue;
        }
        let (created, deleted) =
            (now[name].difference(&before[name]).count(), before[name].difference(&now[name]).count());
        for (key, count) in [("live_rows", now[name].len()), ("created", created), ("deleted", deleted)] {
            assert_eq!(table[key], count, "seed 7: {key} of {name}");
        }
    }
    assert!(sum(&next, "deleted") > 0 && sum(&next, "created") > 0 && sum(&next, "changed") > 0);
}

#[test]
fn lists_and_details_have_their_shapes() {
    let site = Site::small();
    let first = json(&site, &["backup"], 0);
    site.simulator.edit(3, 20);
    let second = json(&site, &["backup"], 0);
    let snapshots = json(&site, &["snapshot", "list"], 0);
    let shape = [
        ("snapshot", Id),
        ("environment", Text),
        ("created", Time),
        ("whole", Flag),
        ("tables", Count),
        ("rows", Count),
        ("encrypted", Flag),
    ];
    let snapshots = each(&snapshots, &shape);
    assert_eq!(
        snapshots.iter().map(|line| &line["snapshot"]).collect::<Vec<_>>(),
        [&first["snapshot"], &second["snapshot"]]
    );
    assert_eq!(snapshots[1]["rows"], sum(&second, "live_rows"));
    assert_eq!(json(&site, &["snapshot", "list", "nowhere"], 0), Value::Array(vec![]));

    let manifest = json(&site, &["snapshot", "show", "--snapshot", "latest"], 0);
    let shape = [
        ("format", Count),
        ("snapshot", Id),
        ("environment", Text),
        ("identity", Map),
        ("run", Id),
        ("created", Time),
        ("previous", Map),
        ("tables", List),
        ("refused", List),
        ("window", Map),
    ];
    has(&manifest, &shape);
    assert_eq!(manifest["previous"]["snapshot"], first["snapshot"]);
    let table = [
        ("table", Text),
        ("mode", Word(MODES)),
        ("status", Word(TABLE_STATES)),
        ("schema", Text),
        ("segments", List),
        ("live_rows", Count),
        ("coverage", Map),
    ];
    for table in each(&manifest["tables"], &table) {
        for segment in table["segments"].as_array().unwrap() {
            has(
                segment,
                &[
                    ("id", Id),
                    ("kind", Text),
                    ("rows", Count),
                    ("bytes_raw", Count),
                    ("bytes_stored", Count),
                    ("sha256", Text),
                ],
            );
        }
    }
    let by_id = json(&site, &["snapshot", "show", "--snapshot", first["snapshot"].as_str().unwrap()], 0);
    assert_eq!(by_id["snapshot"], first["snapshot"]);
    assert!(by_id["previous"].is_null());

    let runs = json(&site, &["run", "list"], 0);
    let shape = [
        ("run", Id),
        ("kind", Word(RUN_KINDS)),
        ("environment", Text),
        ("status", Word(RUN_STATES)),
        ("snapshot", Id),
        ("started", Time),
        ("finished", Time),
        ("requests", Count),
        ("bytes_stored", Count),
        ("error", Maybe(&Text)),
    ];
    let runs = each(&runs, &shape);
    assert_eq!(runs.iter().map(|run| &run["run"]).collect::<Vec<_>>(), [&second["run"], &first["run"]], "newest first");
    assert_eq!(json(&site, &["run", "list", "--status", "failed"], 0), Value::Array(vec![]));
    assert_eq!(json(&site, &["run", "list", "--limit", "1"], 0).as_array().unwrap().len(), 1);
    assert_eq!(json(&site, &["run", "list", "--env", "other"], 0), Value::Array(vec![]));
    assert_eq!(json(&site, &["run", "list", "--since", "2999-01-01T00:00:00Z"], 0), Value::Array(vec![]));
    let id = first["run"].as_str().unwrap();
    assert_eq!(json(&site, &["run", "show", id], 0), first);
    assert_eq!(
        json(&site, &["run", "show", &id[18..].to_lowercase()], 0)["run"],
        first["run"],
        "the end of an id is enough"
    );
}

#[test]
fn checks_and_environments_have_their_shapes() {
    let site = Site::small();
    let mut settings = site.settings();
    settings.environment = String::new();
    site.configure("dynavault.toml", &settings);
    let whoami = json(&site, &["env", "whoami"], 0);
    has(&whoami, &[("organization_id", Text), ("user_id", Text), ("version", Text), ("change_tracking_days", Count)]);
    let environments = json(&site, &["env", "list"], 0);
    let environments =
        each(&environments, &[("environment", Text), ("kind", Word(&["ce", "uo"])), ("url", Text), ("profiles", List)]);
    assert_eq!(environments[0]["url"], site.simulator.url());
    let check = json(&site, &["config", "check"], 0);
    has(&check, &[("path", Text), ("environments", Count), ("profiles", Count), ("jobs", Count)]);

    let tables = json(&site, &["env", "tables"], 0);
    let words = &["full", "delta", "sweep", "refused", "excluded"];
    let tables = each(
        &tables,
        &[
            ("table", Text),
            ("mode", Word(words)),
            ("rows", Maybe(&Count)),
            ("reason", Maybe(&Text)),
            ("remedy", Maybe(&Text)),
        ],
    );
    for info in site.simulator.tables() {
        let line = tables
            .iter()
            .find(|line| line["table"] == info.logical_name.as_str())
            .unwrap_or_else(|| panic!("{} is not listed", info.logical_name));
        match (info.operational, info.entity_set.is_some()) {
            (true, _) => assert_eq!(line["mode"], "excluded"),
            (false, false) => assert!(line["mode"] == "refused" && line["reason"].is_string(), "{line}"),
            (false, true) if info.readable => {
                assert!(line["mode"] == "full" && line["rows"] == info.rows, "{line} {info:?}");
            }
            _ => {}
        }
    }

    json(&site, &["backup"], 3);
    let verify = json(&site, &["verify", "--deep"], 0);
    has(
        &verify,
        &[
            ("manifests", Count),
            ("segments", Count),
            ("rows", Count),
            ("content_objects", Count),
            ("bytes", Count),
            ("skipped", Count),
            ("damage", List),
        ],
    );
    assert_eq!((&verify["manifests"], &verify["skipped"]), (&Value::from(1), &Value::from(0)));
    let sampled = json(&site, &["verify", "--sample", "10%"], 0);
    assert!(sampled["skipped"].as_u64().unwrap() > sampled["segments"].as_u64().unwrap(), "{sampled}");
    let rebuilt = json(&site, &["catalog", "rebuild"], 0);
    assert_eq!(
        (&rebuilt["environments"], &rebuilt["snapshots"], &rebuilt["unreadable"]),
        (&Value::from(1), &Value::from(1), &Value::from(0))
    );
}

#[test]
fn a_failed_backup_still_has_a_report() {
    let site = Site::small();
    site.simulator.expire_secret();
    let done = site.run(&["--json", "backup"]).code(6);
    let report = done.json();
    has(&report, RUN_REPORT);
    assert_eq!(
        (&report["status"], &report["snapshot"], &report["tables"]),
        (&Value::from("failed"), &Value::Null, &Value::Array(vec![]))
    );
    assert!(report["error"].as_str().unwrap().contains("AADSTS7000222"), "{report}");
}

#[test]
fn standard_output_is_data_and_nothing_else() {
    let site = Site::small();
    let silent = |done: Done| assert!(done.out.is_empty(), "{}", String::from_utf8_lossy(&done.out));
    silent(site.run(&["-v", "backup"]).code(0));
    silent(site.run(&["init", "other.toml"]).code(0));
    // With the loudest log each of these still prints one document, which `json` checks.
    for arguments in [
        &["backup", "-vvv"][..],
        &["snapshot", "list", "-vvv"],
        &["run", "list", "-vvv"],
        &["verify", "-vvv"],
        &["env", "tables", "-vvv"],
    ] {
        json(&site, arguments, 0);
    }
    let export = site.run(&["-vvv", "export", "--table", "account"]).code(0);
    assert_eq!(crate::site::sorted(export.text()), site.oracle("account"));
    assert!(!export.err.is_empty());
    // Silence is silence.
    for arguments in [&["-q", "backup"][..], &["-q", "export", "--table", "account", "-o", "rows.jsonl"]] {
        let done = site.run(arguments).code(0);
        assert!(done.out.is_empty() && done.err.is_empty(), "{done:?}");
    }
}

#[test]
fn a_dry_run_says_what_it_would_do_and_writes_nothing() {
    let site = Site::small();
    let plan = json(&site, &["backup", "--dry-run"], 0);
    assert!(plan.as_array().unwrap().iter().any(|line| line["table"] == "account" && line["mode"] == "full"));
    assert!(!site.path("vault").exists(), "a dry run made a vault");
    assert_eq!(json(&site, &["run", "list"], 0), Value::Array(vec![]));
    json(&site, &["backup"], 0);
    site.simulator.edit(5, 30);
    let vault = crate::site::files(&site.path("vault"));
    site.simulator.reset_stats();
    let plan = json(&site, &["backup", "--dry-run", "--table", "acc*"], 0);
    let names: Vec<&str> = plan.as_array().unwrap().iter().map(|line| line["table"].as_str().unwrap()).collect();
    assert_eq!(names, ["account", "accountleads"]);
    assert!(plan[0]["mode"] == "delta" && plan[0]["rows"].is_u64(), "{plan}");
    assert_eq!(crate::site::files(&site.path("vault")), vault, "a dry run wrote to the vault");
    let read: Vec<String> = site.simulator.stats().by_table.into_keys().collect();
    assert_eq!(read, ["organization"], "a dry run asks who the environment is and nothing else");
    assert_eq!(json(&site, &["run", "list"], 0).as_array().unwrap().len(), 1);
}
