//! Vaults made by each released format stay readable for ever: verified, exported, and gone on with.
//!
//! `tests/golden/README.md` says what lies where and how a folder is made.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use dynavault_simulator::Config;
use serde_json::Value;
use tempfile::TempDir;

use crate::site::{Done, Site, UNREADABLE, copy, files, is_encrypted, quoted, run_in, sorted};

const KINDS: [&str; 2] = ["plain", "encrypted"];
const SNAPSHOTS: [&str; 2] = ["1", "2"];
/// Tables that are like others and would make the folders larger without adding anything.
const LEFT_OUT: [&str; 6] = ["appointment", "incident", "lead", "opportunity", "phonecall", "queueitem"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// Folders `v<format>`, oldest first.
fn formats() -> Vec<(u64, PathBuf)> {
    let mut found: Vec<(u64, PathBuf)> = fs::read_dir(root())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter_map(|path| Some((path.file_name()?.to_str()?.strip_prefix('v')?.parse().ok()?, path)))
        .collect();
    found.sort();
    found
}

/// A copy of a golden vault with a configuration that reads it. The environment's address is never used.
struct Copy {
    folder: TempDir,
}

impl Copy {
    fn of(golden: &Path, kind: &str, with_key: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy(&golden.join(kind), folder.path());
        let path = |name: &str| quoted(&folder.path().join(name).display().to_string());
        let key = if kind == "encrypted" && with_key {
            format!("identity_file = {}\n", path("restore.key"))
        } else {
            String::new()
        };
        let text = format!(
            "[vault]\nurl = {}\n{key}[catalog]\npath = {}\n\
             [[profile]]\nname = \"app\"\nkind = \"ce\"\ntenant = \"t\"\nclient_id = \"c\"\ncredential = {{ kind = \"managed-identity\" }}\n\
             [[environment]]\nname = \"simulated\"\nkind = \"ce\"\nurl = \"http://127.0.0.1:1\"\nprofiles = [\"app\"]\n",
            quoted(&format!("file://{}", folder.path().join("vault").display())),
            path("catalog.db"),
        );
        fs::write(folder.path().join("dynavault.toml"), text).unwrap();
        Self { folder }
    }

    fn run(&self, arguments: &[&str]) -> Done {
        run_in(self.folder.path(), arguments)
    }

    /// Snapshot ids, oldest first.
    fn snapshots(&self) -> Vec<String> {
        let lines = self.run(&["--json", "snapshot", "list"]).code(0).json();
        lines.as_array().unwrap().iter().map(|line| line["snapshot"].as_str().unwrap().to_owned()).collect()
    }

    /// Every table of a snapshot, as exported.
    fn export(&self, snapshot: &str) -> BTreeMap<String, Vec<u8>> {
        let manifest = self.run(&["--json", "snapshot", "show", "--snapshot", snapshot]).code(0).json();
        let tables = manifest["tables"].as_array().unwrap().iter();
        tables
            .map(|table| {
                let name = table["table"].as_str().unwrap();
                let done = self.run(&["-q", "export", "--table", name, "--snapshot", snapshot]).code(0);
                (format!("{name}.jsonl"), done.out)
            })
            .collect()
    }
}

#[test]
fn every_golden_vault_is_whole_and_exports_what_it_always_did() {
    let formats = formats();
    assert!(!formats.is_empty());
    for (format, golden) in formats {
        let expected = SNAPSHOTS.map(|snapshot| files(&golden.join("expected").join(snapshot)));
        assert!(
            expected[0].len() > 20 && expected[0] != expected[1],
            "format {format}: the expected rows are incomplete"
        );
        for kind in KINDS {
            let copy = Copy::of(&golden, kind, true);
            let before = files(&copy.folder.path().join("vault"));
            let report = copy.run(&["--json", "verify", "--deep"]).code(0).json();
            assert_eq!(report["manifests"], 2, "format {format}, {kind}");
            assert!(
                report["rows"].as_u64().unwrap() > 100 && report["content_objects"].as_u64().unwrap() >= 3,
                "{report}"
            );
            for (snapshot, expected) in copy.snapshots().iter().zip(&expected) {
                let exported = copy.export(snapshot);
                assert_eq!(exported.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
                for (table, rows) in exported {
                    let (rows, expected) =
                        (String::from_utf8(rows).unwrap(), String::from_utf8_lossy(&expected[&table]).into_owned());
                    assert_eq!(rows, expected, "format {format}, {kind}, snapshot {snapshot}, {table}");
                }
            }
            assert_eq!(files(&copy.folder.path().join("vault")), before, "reading changed a vault");
            let rebuilt = copy.run(&["--json", "catalog", "rebuild"]).code(0).json();
            assert_eq!((&rebuilt["snapshots"], &rebuilt["unreadable"]), (&Value::from(2), &Value::from(0)));
        }
    }
}

#[test]
fn an_encrypted_golden_vault_gives_nothing_away_without_its_key() {
    for (format, golden) in formats() {
        let copy = Copy::of(&golden, "encrypted", false);
        let lines = copy.run(&["--json", "snapshot", "list"]).code(0).json();
        assert_eq!(lines.as_array().unwrap().len(), 2);
        assert!(
            lines.as_array().unwrap().iter().all(|line| line["encrypted"] == true && line["rows"].is_null()),
            "{lines}"
        );
        copy.run(&["export", "--table", "account"]).code(2).one_error().says(&["is encrypted", "vault.identity_file"]);
        fs::remove_file(copy.folder.path().join("restore.key")).unwrap();
        copy.run(&["key", "generate", "restore.key"]).code(0);
        let other = Copy { folder: copy.folder };
        let config = other.folder.path().join("dynavault.toml");
        let text =
            fs::read_to_string(&config).unwrap().replacen("[catalog]", "identity_file = \"restore.key\"\n[catalog]", 1);
        fs::write(&config, text).unwrap();
        let done = other.run(&["export", "--table", "account"]).one_error();
        assert!(
            done.status.code() == Some(2) && done.err.contains("cannot be opened with the keys at hand"),
            "{done:?}"
        );
        for (name, bytes) in files(&golden.join("encrypted/vault")) {
            let public = name == "dynavault.json" || name.ends_with("/lock");
            assert!(
                public || (is_encrypted(&name) && bytes.starts_with(b"age-encryption.org/v1\n")),
                "format {format}: {name}"
            );
        }
    }
}

#[test]
fn a_golden_vault_can_be_gone_on_with() {
    for (_, golden) in formats() {
        let site = maker();
        let organization = |copy: &Copy| {
            copy.run(&["--json", "snapshot", "show"]).code(0).json()["identity"]["organization_id"].clone()
        };
        let copied = Copy::of(&golden, "plain", true);
        let known = organization(&copied);
        let vault = site.path("vault");
        copy(&copied.folder.path().join("vault"), &vault);
        let whoami = site.run(&["env", "whoami", "--json"]).code(0).json();
        assert_eq!(whoami["organization_id"], known, "the simulator is not the one the vault was made with");
        let report = site.run(&["backup", "--json"]).code(0).says(&["took over snapshot"]).json();
        assert_eq!(report["status"], "succeeded");
        site.is_equal("dynavault.toml");
        let verified = site.run(&["--json", "verify", "--deep"]).code(0).json();
        assert_eq!(verified["manifests"], 3);
    }
}

/// Deletes the rows that have large files.
fn remove_large_files(site: &Site) {
    while let Some(file) = site.simulator.files().into_iter().find(|file| file.bytes.len() > 12_000) {
        assert!(site.simulator.delete(&file.table, &file.row) >= 1, "{} {}", file.table, file.row);
    }
}

/// The environment of the golden vaults, before its edit: without the rows that have large files.
fn maker() -> Site {
    let site = Site::new(Config { rows: 60, seed: 20_260_101, ..Config::default() });
    remove_large_files(&site);
    let mut settings = site.settings();
    settings.environment = format!("exclude = {UNREADABLE:?}\n");
    site.configure("dynavault.toml", &settings);
    site
}

fn make(golden: &Path) {
    let site = maker();
    for kind in KINDS {
        fs::create_dir_all(golden.join(kind)).unwrap();
    }
    let key = golden.join("encrypted/restore.key");
    let recipient = site.run(&["key", "generate", &key.display().to_string()]).code(0);
    let mut settings = site.settings();
    settings.environment = format!("exclude = {:?}\n", [&UNREADABLE[..], &LEFT_OUT].concat());
    for kind in KINDS {
        settings.catalog = site.path(&format!("{kind}.db"));
        settings.vault =
            format!("url = {}\n", quoted(&format!("file://{}", golden.join(kind).join("vault").display())));
        if kind == "encrypted" {
            let recipients = format!("recipients = [\"{}\"]\n", recipient.text().trim());
            settings.vault.push_str(&recipients);
        }
        site.configure(&format!("{kind}.toml"), &settings);
    }
    for snapshot in SNAPSHOTS {
        for kind in KINDS {
            site.run(&["--config", &format!("{kind}.toml"), "backup", "-q"]).code(0);
        }
        let expected = golden.join("expected").join(snapshot);
        fs::create_dir_all(&expected).unwrap();
        for table in site.tables().into_iter().filter(|table| !LEFT_OUT.contains(&table.as_str())) {
            let done = site.run(&["--config", "plain.toml", "-q", "export", "--table", &table]).code(0);
            assert_eq!(sorted(done.text()), site.oracle(&table), "the expected rows are the simulator's");
            fs::write(expected.join(format!("{table}.jsonl")), &done.out).unwrap();
        }
        site.simulator.edit(1, 50);
        remove_large_files(&site);
    }
    for kind in KINDS {
        // Locks are of this host.
        for (name, _) in files(&golden.join(kind)).iter().filter(|(name, _)| name.ends_with("/lock")) {
            fs::remove_file(golden.join(kind).join(name)).unwrap();
        }
    }
    let bytes: usize = files(golden).values().map(Vec::len).sum();
    assert!(bytes < 1 << 20, "a golden folder of {bytes} bytes is too large to keep for ever");
}

#[test]
fn every_format_has_its_golden_vaults() {
    let site = Site::small();
    site.run(&["backup", "-q", "--table", "account"]).code(0);
    let description: Value = serde_json::from_slice(&fs::read(site.path("vault/dynavault.json")).unwrap()).unwrap();
    let current = description["format"].as_u64().unwrap();
    let golden = root().join(format!("v{current}"));
    if std::env::var_os("DYNAVAULT_MAKE_GOLDEN").is_some() {
        assert!(!golden.exists(), "{} exists; golden vaults are never made again", golden.display());
        make(&golden);
    }
    let found: Vec<u64> = formats().into_iter().map(|(format, _)| format).collect();
    let expected: Vec<u64> = (1..=current).collect();
    assert_eq!(found, expected, "each format has a folder; tests/golden/README.md says how to make one");
    for (format, golden) in formats() {
        for kind in KINDS {
            let description = fs::read(golden.join(kind).join("vault/dynavault.json")).unwrap();
            let description: Value = serde_json::from_slice(&description).unwrap();
            assert_eq!(description["format"], format, "{}", golden.display());
        }
    }
}
