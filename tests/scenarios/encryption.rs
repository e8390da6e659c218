//! A host that encrypts to recipients and holds no key: it writes backups of every kind, resumes them, and cannot read them.
//! Another host with the key can.

use std::path::Path;

use dynavault_engine::{ExposeSecret as _, generate_key};
use dynavault_model::TableMode;

use crate::harness::{Site, SiteOptions, World, entry};
use crate::kill::write_key;

/// A host that only writes, and one that only reads; the secret key is in a file of the reader.
fn hosts(world: &World) -> (Site, Site) {
    let (secret, recipient) = generate_key();
    assert!(secret.expose_secret().starts_with("AGE-SECRET-KEY-"));
    let writer = world.site("writer", &SiteOptions { recipients: vec![recipient], ..SiteOptions::default() });
    let folder = world.path("keys");
    std::fs::create_dir_all(&folder).expect("a folder for the key");
    let identity_file = Some(write_key(&folder, &secret));
    let vault = Some(writer.vault.clone());
    let reader = world.site("reader", &SiteOptions { vault, identity_file, ..SiteOptions::default() });
    (writer, reader)
}

/// Values that must not be readable: names and ids of rows, and parts of a file.
fn secrets(world: &World) -> Vec<Vec<u8>> {
    let mut secrets = Vec::new();
    for table in ["account", "contact", "lead"] {
        for row in world.simulator.rows(table).iter().step_by(7) {
            let id = row.keys[0].clone();
            secrets.push(id.clone().into_bytes());
            let value: serde_json::Value = serde_json::from_str(&row.json).expect("a row is JSON");
            // Annotations hold names of the schema, which a change token in the catalog repeats.
            let members = value.as_object().expect("a row is an object").iter();
            let texts = members.filter(|(name, _)| !name.contains('@')).filter_map(|(_, value)| value.as_str());
            secrets.extend(
                texts.filter(|text| text.len() > 11 && *text != id).take(4).map(|text| text.as_bytes().to_vec()),
            );
        }
    }
    let files = world.simulator.files();
    secrets.extend(files.iter().filter(|file| file.bytes.len() > 40).step_by(9).map(|file| file.bytes[8..40].to_vec()));
    secrets
}

fn expect_none(path: &Path, secrets: &[Vec<u8>]) {
    let bytes = std::fs::read(path).expect("the file can be read");
    for secret in secrets {
        let found = bytes.windows(secret.len()).any(|window| window == secret);
        assert!(!found, "{} holds {:?}", path.display(), String::from_utf8_lossy(secret));
    }
}

#[test]
fn a_host_without_a_key_makes_backups_that_another_host_reads() {
    let world = World::of_rows(601, 1_500);
    let (writer, reader) = hosts(&world);
    let mut history = Vec::new();
    for (round, kind) in [TableMode::Full, TableMode::Delta, TableMode::Sweep, TableMode::Delta].into_iter().enumerate()
    {
        if round > 0 {
            world.simulator.edit(round as u64, 200);
        }
        if kind == TableMode::Sweep {
            world.simulator.expire_delta_tokens();
        }
        let moment = world.now();
        let report = writer.backup();
        let found = entry(&report, "contact");
        assert_eq!(found.mode, kind, "round {round}");
        if round > 0 {
            assert!(found.rows_stored < found.live_rows / 2, "round {round} stored {} rows", found.rows_stored);
        }
        history.push((report, moment));
    }
    for (report, moment) in &history {
        reader.prove(report, moment);
    }
    assert_eq!(reader.verify().manifests, 4);

    // The host that writes knows what it made.
    let listed: Vec<serde_json::Value> = writer.run(&["snapshot", "list"]).expect_code(0).json();
    assert_eq!(listed.len(), 4);
    for (line, (report, moment)) in listed.iter().zip(&history) {
        assert_eq!(line["snapshot"].as_str(), report.snapshot.map(|id| id.to_string()).as_deref());
        assert_eq!(line["rows"], moment.count());
        assert_eq!((line["whole"].as_bool(), line["encrypted"].as_bool()), (Some(true), Some(true)));
    }
}

#[test]
fn without_the_key_reading_fails_and_says_what_is_missing() {
    let world = World::of_rows(602, 500);
    let (writer, _) = hosts(&world);
    writer.backup();
    let commands: [&[&str]; 4] = [
        &["export", "--table", "account"],
        &["export", "--table", "account", "-o", "out.jsonl"],
        &["snapshot", "show"],
        &["verify", "--deep"],
    ];
    for command in commands {
        let ended = writer.run(command).expect_code(2);
        assert!(ended.stderr.contains("identity_file"), "{}", ended.stderr);
        assert!(ended.stderr.contains("key"), "{}", ended.stderr);
        // Rows would go to standard output only without a file.
        if command == ["export", "--table", "account"] {
            assert_eq!(ended.stdout, "");
        } else {
            assert_eq!(ended.json::<serde_json::Value>()["exit_code"], 2);
        }
    }
    assert!(!writer.folder.join("out.jsonl").exists());
}

#[test]
fn nothing_in_an_encrypted_vault_shows_a_value() {
    let world = World::of_rows(603, 1_000);
    let (writer, _) = hosts(&world);
    let mut secrets = secrets(&world);
    writer.backup();
    world.simulator.edit(3, 100);
    secrets.extend(self::secrets(&world));
    secrets.sort_unstable();
    secrets.dedup();
    // One in eight is plenty; every file is searched for each.
    let secrets: Vec<Vec<u8>> = secrets.into_iter().step_by(8).collect();
    assert!(secrets.len() > 10, "{} values", secrets.len());
    let report = writer.backup();
    assert!(report.tables.iter().any(|table| table.rows_stored > 0));
    let files = writer.vault_files();
    let (sealed, open): (Vec<_>, Vec<_>) =
        files.iter().partition(|path| path.extension().is_some_and(|end| end == "age"));
    assert!(sealed.len() > 100, "{} encrypted objects", sealed.len());
    // In plain text there is what the vault is, and locks.
    let open: Vec<_> =
        open.iter().filter(|path| path.file_name().is_some_and(|name| name != "dynavault.json")).collect();
    for path in open {
        assert!(std::fs::metadata(path).expect("it is there").len() < 1_024, "{}", path.display());
    }
    for path in &files {
        expect_none(path, &secrets);
    }
    // Nor does the catalog, which stays on the host.
    for name in ["catalog.db", "catalog.db-wal"] {
        let path = writer.folder.join(name);
        if path.exists() {
            expect_none(&path, &secrets);
        }
    }
}

#[test]
fn a_host_without_a_key_that_lost_its_state_stores_everything_again() {
    let world = World::of_rows(604, 1_000);
    let (writer, reader) = hosts(&world);
    let first_moment = world.now();
    let first = writer.backup();
    world.simulator.edit(1, 100);
    writer.forget();
    let moment = world.now();
    let report = writer.run(&["backup"]).expect_code(0).report();
    assert!(report.tables.iter().all(|table| table.mode == TableMode::Full));
    reader.prove(&report, &moment);
    reader.prove(&first, &first_moment);
    // From there on it is incremental again.
    world.simulator.edit(2, 100);
    let moment = world.now();
    let report = writer.backup();
    assert_eq!(entry(&report, "contact").mode, TableMode::Delta);
    reader.prove(&report, &moment);
}
