//! The damage matrix of a folder vault: every kind of object, damaged in every way, met by every command that reads.
//!
//! ```text
//! {manifest, rows, tombstones, content references, content, schema, dynavault.json}
//!   × {deleted, cut, one byte flipped (at several places), replaced by another of its kind}
//!   × {verify, verify --deep, export}
//! ```
//!
//! `verify` names the object and exits with 4. `export` gives exactly the right rows or fails; it never gives wrong ones.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use dynavault_simulator::Config;
use serde_json::Value;

use crate::site::{Site, UNREADABLE, copy, files, sorted};

const ROOT: &str = "environments/simulated";

/// How an object is damaged.
#[derive(Debug, Clone, Copy)]
enum Way<'a> {
    Deleted,
    /// To this share of its length, in percent.
    Cut(usize),
    /// The bit of the byte at this share of its length, in percent.
    Flipped(usize, u8),
    /// By another object.
    Replaced(&'a str),
}

fn damage(vault: &Path, object: &str, way: Way<'_>) {
    let path = vault.join(object);
    let mut bytes = fs::read(&path).unwrap();
    match way {
        Way::Deleted => return fs::remove_file(&path).unwrap(),
        Way::Cut(percent) => bytes.truncate(bytes.len() * percent / 100),
        Way::Flipped(percent, bit) => {
            let at = ((bytes.len() - 1) * percent) / 100;
            bytes[at] ^= bit;
        }
        Way::Replaced(other) => {
            let other = fs::read(vault.join(other)).unwrap();
            assert_ne!(bytes, other, "{object} would not change");
            bytes = other;
        }
    }
    fs::write(&path, bytes).unwrap();
}

const FLIPS: [Way<'static>; 9] = [
    Way::Flipped(0, 1),
    Way::Flipped(10, 4),
    Way::Flipped(30, 1),
    Way::Flipped(50, 2),
    Way::Flipped(70, 1),
    Way::Flipped(85, 8),
    Way::Flipped(92, 1),
    Way::Flipped(97, 2),
    Way::Flipped(100, 1),
];

/// A vault with two snapshots: a full one, and one with changes and deletions of accounts.
struct Bench {
    site: Site,
    manifests: [Value; 2],
    /// Rows of every table as of the two snapshots.
    rows: [BTreeMap<String, Vec<String>>; 2],
}

/// What the commands made of a damaged vault.
struct Seen {
    context: String,
    /// Report of `verify` and of `verify --deep`, with their exit codes.
    verified: [(i32, Option<Value>, String); 2],
    /// Exit code and text of an export of each snapshot.
    exported: [(i32, Vec<String>, String); 2],
}

impl Bench {
    fn new() -> Self {
        let site = Site::new(Config { rows: 150, ..Config::default() });
        let mut settings = site.settings();
        // Notes have content that is small; accounts have one of seven megabytes.
        settings.environment =
            format!("include = [\"account\", \"annotation\", \"contact\"]\nexclude = {UNREADABLE:?}\n");
        site.configure("all.toml", &settings);
        let table = |site: &Site| {
            ["account", "annotation"].iter().map(|name| ((*name).to_owned(), site.oracle(name))).collect()
        };
        let run = |site: &Site| {
            site.run(&["--config", "all.toml", "-q", "backup", "--table", "a*"]).code(0);
            site.run(&["--config", "all.toml", "--json", "snapshot", "show"]).code(0).json()
        };
        settings.environment = settings.environment.replace("[\"account\", ", "[");
        let first = (run(&site), table(&site));
        for row in site.simulator.rows("account").iter().take(2) {
            assert!(site.simulator.delete("account", &row.keys[0]) >= 1);
        }
        site.simulator.edit(21, 120);
        let second = (run(&site), table(&site));
        assert_ne!(first.1, second.1);
        Self { site, manifests: [first.0, second.0], rows: [first.1, second.1] }
    }

    fn table(&self, snapshot: usize, table: &str) -> &Value {
        let tables = self.manifests[snapshot]["tables"].as_array().unwrap();
        tables.iter().find(|entry| entry["table"] == table).unwrap()
    }

    /// Object and rows of the segment of a kind that the second snapshot has last.
    fn segment(&self, table: &str, kind: &str, nth: usize) -> (String, u64) {
        let segments = self.table(1, table)["segments"].as_array().unwrap();
        let of_kind: Vec<&Value> = segments.iter().filter(|segment| segment["kind"] == kind).collect();
        let segment =
            of_kind.get(nth).unwrap_or_else(|| panic!("{table} has {} segments of kind {kind}", of_kind.len()));
        let middle = match kind {
            "rows" => String::new(),
            other => format!(".{other}"),
        };
        let id = segment["id"].as_str().unwrap();
        (format!("{ROOT}/tables/{table}/{id}{middle}.jsonl.zst"), segment["rows"].as_u64().unwrap())
    }

    fn manifest(&self, snapshot: usize) -> String {
        format!("{ROOT}/manifests/{}.json", self.manifests[snapshot]["snapshot"].as_str().unwrap())
    }

    /// Damages a copy of the vault and lets the commands meet it.
    fn meet(&self, object: &str, way: Way<'_>, table: &str, form: &str) -> Seen {
        let context = format!("{object} {way:?}");
        let vault = self.site.path("damaged");
        if vault.exists() {
            fs::remove_dir_all(&vault).unwrap();
        }
        copy(&self.site.path("vault"), &vault);
        damage(&vault, object, way);
        let mut settings = self.site.settings();
        settings.vault = self.site.folder_vault("damaged");
        self.site.configure("damaged.toml", &settings);
        let run = |arguments: &[&str]| {
            let mut line = vec!["--config", "damaged.toml"];
            line.extend_from_slice(arguments);
            let done = self.site.run(&line);
            assert!(!done.err.contains("panicked"), "{context}: {arguments:?}: {}", done.err);
            let code = done.status.code().unwrap_or_else(|| panic!("{context}: {arguments:?} died: {:?}", done.status));
            assert!(
                code == 0 || code == 4 || done.err.starts_with("error: "),
                "{context}: {arguments:?}: {code} without a word"
            );
            (code, done)
        };
        let verified = [&["--json", "verify"][..], &["--json", "verify", "--deep"]].map(|arguments| {
            let (code, done) = run(arguments);
            (code, serde_json::from_slice(&done.out).ok(), done.err)
        });
        let exported = [0, 1].map(|snapshot| {
            let id = self.manifests[snapshot]["snapshot"].as_str().unwrap();
            let (code, done) = run(&["-q", "export", "--table", table, "--format", form, "--snapshot", id]);
            (code, if code == 0 { sorted(done.text()) } else { Vec::new() }, done.err)
        });
        Seen { context, verified, exported }
    }

    /// An export that says it succeeded has exactly the rows of its moment.
    fn never_wrong(&self, seen: &Seen, table: &str) {
        for (snapshot, (code, rows, _)) in seen.exported.iter().enumerate() {
            if *code == 0 {
                assert_eq!(
                    rows, &self.rows[snapshot][table],
                    "{}: snapshot {snapshot} was exported with wrong rows",
                    seen.context
                );
            }
        }
    }
}

impl Seen {
    /// Both checks exit with 4 and name the object (and the rows it holds, if it holds rows), and nothing else.
    fn is_found(&self, object: &str, rows: Option<(&str, u64)>) {
        for (code, report, err) in &self.verified {
            assert_eq!(*code, 4, "{}: verify: {report:?} {err}", self.context);
            let report = report.as_ref().unwrap_or_else(|| panic!("{}: no report: {err}", self.context));
            let damage = report["damage"].as_array().unwrap();
            assert_eq!(damage.len(), 1, "{}: {damage:#?}", self.context);
            assert_eq!(damage[0]["object"], object, "{}", self.context);
            assert!(damage[0]["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{}", self.context);
            if let Some((table, rows)) = rows {
                assert_eq!(
                    (&damage[0]["table"], &damage[0]["rows"]),
                    (&Value::from(table), &Value::from(rows)),
                    "{}",
                    self.context
                );
                assert!(!damage[0]["snapshots"].as_array().unwrap().is_empty());
            }
        }
    }
}

fn ways<'a>(others: &[&'a str]) -> Vec<Way<'a>> {
    let mut ways = vec![Way::Deleted, Way::Cut(0), Way::Cut(40), Way::Cut(95)];
    ways.extend(FLIPS);
    ways.extend(others.iter().map(|other| Way::Replaced(other)));
    ways
}

#[test]
fn damaged_rows_and_tombstones_are_named_and_never_exported() {
    let bench = Bench::new();
    let (base, base_rows) = bench.segment("account", "rows", 0);
    let (changes, change_rows) = bench.segment("account", "rows", 1);
    let (tombstones, tombstone_rows) = bench.segment("account", "deleted", 0);
    let (foreign, _) = bench.segment("annotation", "rows", 0);
    for (object, rows, others) in [
        (&base, base_rows, [&changes, &foreign]),
        (&changes, change_rows, [&base, &foreign]),
        (&tombstones, tombstone_rows, [&changes, &base]),
    ] {
        for way in ways(&others.map(String::as_str)) {
            let seen = bench.meet(object, way, "account", "jsonl");
            seen.is_found(object, Some(("account", rows)));
            bench.never_wrong(&seen, "account");
            // What an export must have read cannot have been overlooked.
            let needed = matches!(way, Way::Deleted | Way::Cut(_) | Way::Replaced(_));
            assert!(!needed || seen.exported[1].0 == 4, "{}: {:?}", seen.context, seen.exported[1]);
            // The first snapshot does not need what came later.
            assert!(*object == base || seen.exported[0].0 == 0, "{}: {:?}", seen.context, seen.exported[0]);
        }
    }
}

#[test]
fn damaged_content_and_its_references_are_named() {
    let bench = Bench::new();
    let (references, rows) = bench.segment("annotation", "content", 0);
    let (foreign, _) = bench.segment("account", "content", 0);
    for way in ways(&[&foreign]) {
        let seen = bench.meet(&references, way, "annotation", "jsonl");
        seen.is_found(&references, Some(("annotation", rows)));
        bench.never_wrong(&seen, "annotation");
    }
    let contents: Vec<(String, usize)> = files(&bench.site.path("vault"))
        .into_iter()
        .filter(|(name, _)| name.starts_with(&format!("{ROOT}/content/")))
        .map(|(name, bytes)| (name, bytes.len()))
        .collect();
    let (small, _) = contents.iter().min_by_key(|(_, length)| *length).unwrap();
    let (other, _) = contents.iter().find(|(name, _)| name != small).unwrap();
    for way in ways(&[other]) {
        let seen = bench.meet(small, way, "annotation", "jsonl");
        seen.is_found(small, None);
        // Rows do not need content to be exported.
        assert_eq!((seen.exported[0].0, seen.exported[1].0), (0, 0), "{}", seen.context);
        bench.never_wrong(&seen, "annotation");
    }
}

#[test]
fn a_damaged_schema_object_is_named() {
    let bench = Bench::new();
    let schema = |table: &str| format!("{ROOT}/schemas/{}.json.zst", bench.table(1, table)["schema"].as_str().unwrap());
    let (object, other) = (schema("account"), schema("annotation"));
    for way in ways(&[&other]) {
        let seen = bench.meet(&object, way, "account", "csv");
        seen.is_found(&object, None);
        assert_eq!((seen.exported[0].0, seen.exported[1].0), (4, 4), "{}: {:?}", seen.context, seen.exported);
        // JSON lines are exported without it.
        let done = bench.site.run(&["--config", "damaged.toml", "-q", "export", "--table", "account"]).code(0);
        assert_eq!(sorted(done.text()), bench.rows[1]["account"]);
    }
}

#[test]
fn a_damaged_manifest_is_named_and_the_other_snapshot_stays() {
    let bench = Bench::new();
    let objects = [bench.manifest(0), bench.manifest(1)];
    for snapshot in [0, 1] {
        for way in ways(&[&objects[1 - snapshot]]) {
            let seen = bench.meet(&objects[snapshot], way, "account", "jsonl");
            for (code, report, err) in &seen.verified {
                assert_eq!(*code, 4, "{}: {report:?} {err}", seen.context);
                let damage = report.as_ref().unwrap()["damage"].as_array().unwrap();
                assert!(
                    damage.iter().any(|damage| damage["object"] == objects[snapshot].as_str()),
                    "{}: {damage:?}",
                    seen.context
                );
            }
            bench.never_wrong(&seen, "account");
            assert_eq!(seen.exported[1 - snapshot].0, 0, "{}: {:?}", seen.context, seen.exported);
        }
    }
}

#[test]
fn a_damaged_description_is_a_clear_error_and_catalog_rebuild_heals_nothing_silently() {
    let bench = Bench::new();
    let manifest = bench.manifest(0);
    for way in
        [Way::Deleted, Way::Cut(0), Way::Cut(50), Way::Flipped(0, 1), Way::Flipped(100, 1), Way::Replaced(&manifest)]
    {
        let seen = bench.meet("dynavault.json", way, "account", "jsonl");
        bench.never_wrong(&seen, "account");
        let code = if matches!(way, Way::Deleted) { 2 } else { 4 };
        // The line end at the end of the document does not count.
        let harmless = matches!(way, Way::Flipped(100, _)) && seen.verified[0].0 == 0;
        for (found, said) in [
            (seen.verified[0].0, &seen.verified[0].2),
            (seen.verified[1].0, &seen.verified[1].2),
            (seen.exported[1].0, &seen.exported[1].2),
        ] {
            assert!(harmless || found == code, "{}: {found}: {said}", seen.context);
            let named = if code == 2 { "there is no vault at" } else { "dynavault.json" };
            assert!(harmless || said.contains(named), "{}: {said}", seen.context);
        }
    }
}
