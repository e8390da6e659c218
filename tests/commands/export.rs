//! `export`: rows as they were at a time, in both forms, to standard output and to a file that is whole or not there.

use std::fs;
use std::io::Read;
use std::process::Stdio;

use dynavault_simulator::{Config, OracleRow};
use serde_json::Value;

use crate::site::{Site, sorted};

/// Records of a CSV text (RFC 4180); `None` for an empty field without quotes.
fn csv(text: &str) -> Vec<Vec<Option<String>>> {
    let mut records = Vec::new();
    let mut record = Vec::new();
    let mut characters = text.chars().peekable();
    while characters.peek().is_some() {
        let field = if characters.next_if_eq(&'"').is_some() {
            let mut field = String::new();
            loop {
                match characters.next() {
                    Some('"') if characters.next_if_eq(&'"').is_some() => field.push('"'),
                    Some('"') => break Some(field),
                    Some(character) => field.push(character),
                    None => panic!("an open quote"),
                }
            }
        } else {
            let mut field = String::new();
            while let Some(character) = characters.next_if(|character| !matches!(character, ',' | '\r')) {
                assert!(!matches!(character, '"' | '\n'), "needs quotes: {field}");
                field.push(character);
            }
            (!field.is_empty()).then_some(field)
        };
        record.push(field);
        match characters.next() {
            Some(',') => {}
            Some('\r') => {
                assert_eq!(characters.next(), Some('\n'));
                records.push(std::mem::take(&mut record));
            }
            other => panic!("{other:?} after a field"),
        }
    }
    assert!(record.is_empty(), "the last record ends without a line end");
    records
}

/// Rows of the simulator by the text of their id; its own order is that of the service's database.
fn in_order(site: &Site, table: &str) -> Vec<OracleRow> {
    let mut rows = site.simulator.rows(table);
    rows.sort_by(|a, b| a.keys.cmp(&b.keys));
    rows
}

#[test]
fn rows_come_ordered_and_exactly_as_the_service_printed_them() {
    let site = Site::small();
    site.run(&["backup", "-q"]).code(0);
    for table in ["account", "contact", "new_telemetry", "activityparty"] {
        let done = site.run(&["export", "--table", table]).code(0);
        let rows = in_order(&site, table);
        let exported: Vec<&str> = done.text().lines().collect();
        // The ids of elastic rows are hashes of two keys.
        if table == "new_telemetry" {
            assert_eq!(sorted(done.text()), site.oracle(table));
        } else {
            assert_eq!(exported, rows.iter().map(|row| &row.json).collect::<Vec<_>>(), "{table}");
        }
        assert!(!done.text().contains("@odata.etag"));
        assert!(done.err.contains(&format!("{} rows of {table}", rows.len())), "{}", done.err);
    }
}

#[test]
fn csv_holds_the_same_values() {
    let site = Site::small();
    site.run(&["backup", "-q"]).code(0);
    for table in ["account", "contact", "annotation"] {
        let done = site.run(&["-q", "export", "--table", table, "--format", "csv"]).code(0);
        let records = csv(done.text());
        let (header, rows) = records.split_first().unwrap();
        let oracle = in_order(&site, table);
        assert_eq!(rows.len(), oracle.len());
        for (record, row) in rows.iter().zip(&oracle) {
            assert_eq!(record.len(), header.len());
            let row: Value = serde_json::from_str(&row.json).unwrap();
            for (name, value) in header.iter().zip(record) {
                let name = name.as_deref().unwrap();
                match &row[name] {
                    Value::Null => assert_eq!(*value, None, "{name}"),
                    Value::String(text) => assert_eq!(value.as_deref(), Some(text.as_str()), "{name}"),
                    Value::Bool(flag) => assert_eq!(value.as_deref(), Some(flag.to_string().as_str()), "{name}"),
                    // Numbers are compared with the text of the row: no float may come between.
                    _ => {
                        let text = oracle.iter().find(|row| row.keys[0] == record_id(header, record, table)).unwrap();
                        let printed = format!("\"{name}\":{}", value.as_deref().unwrap());
                        assert!(text.json.contains(&printed), "{printed} is not in {}", text.json);
                    }
                }
            }
            let plain = row.as_object().unwrap().keys().filter(|key| !key.contains('@')).count();
            assert!(header.len() >= plain, "{table}: {} columns in the header, {plain} in a row", header.len());
        }
    }
}

fn record_id<'r>(header: &[Option<String>], record: &'r [Option<String>], table: &str) -> &'r str {
    let key = format!("{table}id");
    let index = header.iter().position(|name| name.as_deref() == Some(&key)).unwrap();
    record[index].as_deref().unwrap()
}

#[test]
fn a_time_or_an_id_names_the_snapshot() {
    let site = Site::small();
    let first = site.run(&["backup", "--json"]).code(0).json();
    let before = site.oracle("account");
    let id = site.simulator.rows("account")[0].keys[0].clone();
    assert!(site.simulator.delete("account", &id) >= 1);
    site.simulator.edit(11, 40);
    site.run(&["backup", "-q"]).code(0);
    let after = site.oracle("account");
    assert_ne!(before, after);
    let rows = |extra: &[&str]| {
        let mut line = vec!["-q", "export", "--table", "account"];
        line.extend_from_slice(extra);
        sorted(site.run(&line).code(0).text())
    };
    let snapshots = site.run(&["snapshot", "list", "--json"]).code(0).json();
    let (committed, last) = (snapshots[0]["created"].as_str().unwrap(), snapshots[1]["created"].as_str().unwrap());
    assert_eq!(rows(&[]), after);
    assert_eq!(rows(&["--snapshot", "latest"]), after);
    assert_eq!(rows(&["--snapshot", first["snapshot"].as_str().unwrap()]), before);
    assert_eq!(rows(&["--at", committed]), before, "a snapshot counts from its commit on");
    assert_eq!(rows(&["--at", last]), after);
    assert_eq!(rows(&["--at", "2999-01-01T00:00:00Z"]), after);
    // The second snapshot was begun, but not yet committed, just before its commit.
    let just_before = last.parse::<jiff::Timestamp>().unwrap() - jiff::SignedDuration::from_nanos(1);
    assert_eq!(rows(&["--at", &just_before.to_string()]), before);
    let mut line = vec!["export", "--table", "account", "--at", committed, "--snapshot", "latest"];
    site.run(&line).code(2);
    line.truncate(3);
    site.run(&line).code(0);
}

#[test]
fn a_file_is_whole_or_not_there() {
    let site = Site::small();
    site.run(&["backup", "-q"]).code(0);
    let target = site.path("accounts.jsonl");
    fs::write(&target, "something old").unwrap();
    let stats = site.run(&["--json", "export", "--table", "account", "-o", "accounts.jsonl"]).code(0).json();
    let text = fs::read_to_string(&target).unwrap();
    assert_eq!(sorted(&text), site.oracle("account"));
    assert_eq!(
        (stats["bytes"].as_u64(), stats["rows"].as_u64()),
        (Some(text.len() as u64), Some(site.oracle("account").len() as u64))
    );
    assert_eq!((&stats["table"], stats["snapshot"].as_str().unwrap().len()), (&Value::from("account"), 26));
    assert!(!site.path("accounts.jsonl.partial").exists());

    // An export that fails leaves the old file as it was.
    for object in fs::read_dir(site.path("vault/environments/simulated/tables/contact")).unwrap() {
        let path = object.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    }
    site.run(&["export", "--table", "contact", "-o", "accounts.jsonl"]).code(4).one_error();
    assert_eq!(fs::read_to_string(&target).unwrap(), text);
    assert!(!site.path("accounts.jsonl.partial").exists(), "a failed export left its scratch file behind");
    site.run(&["export", "--table", "account", "-o", "nowhere/rows.jsonl"])
        .code(1)
        .one_error()
        .says(&["nowhere/rows.jsonl"]);
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    // More than a pipe holds, so that writing meets the closed end.
    let site = Site::new(Config { rows: 2_000, ..Config::default() });
    site.run(&["backup", "-q", "--table", "account"]).code(0);
    let mut child = site
        .command(&["-q", "export", "--table", "account"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 100];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(first.starts_with(b"{\"accountid\":"));
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}

#[test]
fn a_refused_table_is_explained() {
    let site = Site::small();
    let mut settings = site.settings();
    settings.environment = "files = false\n".into();
    site.configure("dynavault.toml", &settings);
    site.run(&["backup", "-q"]).code(3);
    site.run(&["export", "--table", "new_secret"]).code(2).one_error().says(&["new_secret was refused", "prvRead"]);
    site.run(&["export", "--table", "new_external"]).code(2).one_error().says(&["virtual table"]);
}
