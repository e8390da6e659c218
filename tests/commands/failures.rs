//! When the world around fails: folders that cannot be written, full disks, services that cannot be reached, a vault that is
//! not the one it was. One clear message, exit code 1, and a catalog from which the next run goes on.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use dynavault_simulator::Config;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::site::{Running, Site, UNREADABLE, wait_for};

/// An address where nobody listens.
fn closed() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// The history is readable and has these states, newest first.
#[track_caller]
fn history(site: &Site, config: &str, states: &[&str]) {
    let runs = site.run(&["--config", config, "run", "list", "--json"]).code(0).json();
    let found: Vec<&str> = runs.as_array().unwrap().iter().map(|run| run["status"].as_str().unwrap()).collect();
    assert_eq!(found, states, "{runs:#}");
    for run in runs.as_array().unwrap() {
        assert_eq!(run["error"].is_null(), run["status"] == "succeeded", "a run that failed says why: {run}");
    }
}

#[test]
fn a_vault_that_cannot_be_written_fails_the_run_and_the_next_one_succeeds() {
    let site = Site::small();
    // Nothing can be made below a file, even by root, nor in the kernel's own file system.
    for place in [site.path("secret.txt/vault"), "/proc/dynavault/vault".into()] {
        let mut settings = site.settings();
        settings.vault = format!("url = \"file://{}\"\n", place.display());
        site.configure("dynavault.toml", &settings);
        site.run(&["backup"]).code(2).one_error().says(&[&place.display().to_string(), "vault.url"]);
    }
    assert_eq!(site.simulator.stats().by_kind.get("page"), None, "rows were read although they cannot be stored");
    site.configure("dynavault.toml", &site.settings());
    site.run(&["backup", "-q"]).code(0);
    history(&site, "dynavault.toml", &["succeeded", "failed", "failed"]);
    site.is_equal("dynavault.toml");
}

#[test]
fn a_catalog_that_cannot_be_written_fails_before_anything_is_read() {
    let site = Site::small();
    let mut settings = site.settings();
    settings.catalog = site.path("secret.txt/catalog.db");
    site.configure("dynavault.toml", &settings);
    for arguments in [&["backup"][..], &["run", "list"]] {
        site.run(arguments).code(2).one_error().says(&["secret.txt/catalog.db"]);
    }
    assert_eq!(site.simulator.stats().requests, 0);
    assert!(!site.path("vault").exists());
    // A file that is no catalog is not overwritten.
    let mut settings = site.settings();
    settings.catalog = site.path("notes.txt");
    site.configure("dynavault.toml", &settings);
    let notes = "These are notes, not a database. ".repeat(100);
    std::fs::write(site.path("notes.txt"), &notes).unwrap();
    site.run(&["backup"]).code(2).one_error().says(&["notes.txt"]);
    assert_eq!(std::fs::read_to_string(site.path("notes.txt")).unwrap(), notes);
}

/// The program with a limit on the size of the files it writes, whose signal is ignored: writing then fails.
fn limited(site: &Site, blocks: u32, arguments: &[&str]) -> Running {
    let plain = site.command(arguments);
    let mut command = Command::new("sh");
    command.args(["-c", &format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\""), "sh"]).arg(plain.get_program());
    command.args(plain.get_args()).current_dir(site.folder.path());
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    Running::start(command)
}

#[test]
fn a_file_that_grows_too_large_is_one_message_and_the_next_run_goes_on() {
    // One account of this data set has a file of seven megabytes, more than the limit of the first run.
    let site = Site::new(Config { rows: 150, ..Config::default() });
    let mut settings = site.settings();
    settings.environment = format!("exclude = {UNREADABLE:?}\n");
    site.configure("dynavault.toml", &settings);
    let done = limited(&site, 4096, &["backup"]).end().code(1).one_error();
    assert!(done.err.contains("too large") || done.err.contains("no space"), "{}", done.err);
    history(&site, "dynavault.toml", &["failed"]);
    assert_eq!(site.run(&["snapshot", "list", "--json"]).code(0).json(), Value::Array(vec![]));
    site.run(&["backup", "-q"]).code(0);
    history(&site, "dynavault.toml", &["succeeded", "failed"]);
    site.is_equal("dynavault.toml");
    site.run(&["verify", "--deep", "-q"]).code(0);
}

#[test]
fn a_catalog_that_cannot_grow_is_one_message() {
    let site = Site::small();
    // 64 KiB at most in any shell's blocks: less than an empty catalog with its tables.
    limited(&site, 32, &["backup"]).end().code(1).one_error();
    assert_eq!(site.simulator.stats().by_kind.get("page"), None);
    site.run(&["run", "list", "--json"]).code(0);
    site.run(&["backup", "-q"]).code(0);
    site.is_equal("dynavault.toml");
}

/// A small disk of its own; unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    /// `None` where mounting is not allowed.
    fn mount(path: &Path, size: &str) -> Option<Self> {
        std::fs::create_dir_all(path).unwrap();
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(path)
            .output()
            .ok()?;
        done.status.success().then(|| Self(path.to_path_buf()))
    }

    fn change(&self, options: &str) {
        let status = Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(&self.0).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a program that was killed may still be letting go of it.
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

#[test]
fn a_full_disk_is_one_message_and_the_run_after_more_space_goes_on() {
    let site = Site::new(Config { rows: 3_000, ..Config::default() });
    let Some(disk) = Disk::mount(&site.path("disk"), "600k") else {
        crate::site::skipped("mounting a small disk is not allowed here");
        return;
    };
    let mut settings = site.settings();
    settings.vault = site.folder_vault("disk/vault");
    site.configure("dynavault.toml", &settings);
    let done = site.run(&["backup"]).code(1).one_error().says(&["no space left", "free space or raise the quota"]);
    assert!(done.err.contains("environments/simulated/"), "the object is named: {}", done.err);
    history(&site, "dynavault.toml", &["failed"]);
    disk.change("size=64m");
    let second = site.run(&["backup", "--json"]).code(0).json();
    assert_eq!(second["status"], "succeeded");
    history(&site, "dynavault.toml", &["succeeded", "failed"]);
    site.is_equal("dynavault.toml");
    site.run(&["verify", "--deep", "-q"]).code(0);

    // Read-only from now on: backups fail, looking goes on.
    disk.change("ro");
    site.simulator.edit(2, 30);
    site.run(&["backup"]).code(1).one_error().says(&["read-only"]);
    site.run(&["verify", "-q"]).code(0);
    site.run(&["-q", "export", "--table", "account", "-o", "rows.jsonl"]).code(0);
    disk.change("rw");
    site.run(&["backup", "-q"]).code(0);
    site.is_equal("dynavault.toml");
}

#[test]
fn a_full_disk_under_the_catalog_is_one_message_and_nothing_is_lost() {
    let site = Site::new(Config { rows: 1_500, ..Config::default() });
    let Some(disk) = Disk::mount(&site.path("disk"), "400k") else {
        crate::site::skipped("mounting a small disk is not allowed here");
        return;
    };
    let mut settings = site.settings();
    settings.catalog = site.path("disk/catalog.db");
    site.configure("dynavault.toml", &settings);
    let done = site.run(&["backup"]).code(1);
    let errors: Vec<&str> = done.err.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{}", done.err);
    assert!(done.err.contains("full") || done.err.contains("space"), "{}", done.err);
    disk.change("size=64m");
    site.run(&["run", "list", "--json"]).code(0);
    site.run(&["backup", "-q"]).code(0);
    site.is_equal("dynavault.toml");
    site.run(&["verify", "--deep", "-q"]).code(0);
}

#[test]
fn an_environment_that_cannot_be_reached_is_given_up_within_about_a_minute() {
    let site = Site::small();
    let mut settings = site.settings();
    let address = closed();
    // The simulator signs in for its own address only; a source of tokens that never fails is the stranger's.
    settings.url = address.clone();
    settings.authority = crate::exits::stranger_service();
    site.configure("dynavault.toml", &settings);
    let start = Instant::now();
    site.run(&["backup"]).code(1).one_error().says(&["first_contact_time_max", "onnect"]);
    assert!(start.elapsed() < Duration::from_secs(100), "it took {:?}", start.elapsed());
    history(&site, "dynavault.toml", &["failed"]);
}

#[test]
fn a_sign_in_service_that_cannot_be_reached_is_a_clear_failure() {
    let site = Site::small();
    let mut settings = site.settings();
    settings.authority = closed();
    site.configure("dynavault.toml", &settings);
    let done = site.run(&["backup"]).code(6).one_error();
    assert!(done.err.contains("sign-in service at 127.0.0.1"), "the host is named: {}", done.err);
    assert_eq!(site.simulator.stats().requests, 0);
    site.configure("dynavault.toml", &site.settings());
    // A short outage of the sign-in service is waited out.
    site.simulator.set_faults(dynavault_simulator::Faults { token_unavailable: 2, ..Default::default() });
    site.run(&["backup", "-q"]).code(0);
    history(&site, "dynavault.toml", &["succeeded", "failed"]);
}

#[test]
fn storage_that_cannot_be_reached_is_a_clear_failure() {
    let site = Site::small();
    std::fs::write(site.path("sas.txt"), "sv=2021-12-02&ss=b&srt=sco&sp=rwlc&se=2999-01-01T00:00:00Z&sig=c2lnbmF0dXJl")
        .unwrap();
    let mut settings = site.settings();
    settings.vault = format!(
        "url = \"azblob://devstoreaccount1/vault\"\nendpoint = \"{}/devstoreaccount1\"\nauth = {{ kind = \"sas\", token = {{ file = {:?} }} }}\n",
        closed(),
        site.path("sas.txt")
    );
    site.configure("dynavault.toml", &settings);
    let start = Instant::now();
    let done = site.run(&["backup"]).code(1).one_error();
    assert!(done.err.contains("127.0.0.1") && !done.err.contains("c2lnbmF0dXJl"), "{}", done.err);
    assert!(start.elapsed() < Duration::from_secs(150), "it took {:?}", start.elapsed());
}

#[test]
fn another_vault_is_not_built_upon_what_it_does_not_have() {
    let site = Site::small();
    site.run(&["backup", "-q"]).code(0);
    site.simulator.edit(31, 40);
    let mut settings = site.settings();
    settings.vault = site.folder_vault("moved");
    site.configure("dynavault.toml", &settings);
    // The catalog remembers a snapshot and its delta tokens; the new vault has neither rows nor manifest.
    let report = site.run(&["backup", "--json"]).code(0).says(&["is not the one that this host wrote to"]).json();
    for table in report["tables"].as_array().unwrap() {
        assert_eq!(table["mode"], "full", "{table}");
    }
    site.is_equal("dynavault.toml");
    site.run(&["verify", "--deep", "-q"]).code(0);

    // The same when a vault is lost between two runs, and when the new vault is not empty but older.
    std::fs::remove_dir_all(site.path("moved")).unwrap();
    site.simulator.edit(32, 40);
    site.run(&["backup", "-q"]).code(0);
    site.is_equal("dynavault.toml");
    site.run(&["verify", "--deep", "-q"]).code(0);
    site.configure("dynavault.toml", &site.settings());
    site.run(&["backup", "-q"]).code(0);
    site.is_equal("dynavault.toml");
    let verified = site.run(&["verify", "--deep", "--json"]).code(0).json();
    assert_eq!(verified["manifests"], 2, "the old vault was gone on with");
}

#[test]
fn a_begun_snapshot_is_not_gone_on_with_in_another_vault() {
    let site =
        Site::new(Config { rows: 600, page_size_max: 20, latency: Duration::from_millis(60), ..Config::default() });
    let running = site.start(&["backup"]);
    let folder = site.path("vault/environments/simulated/tables");
    wait_for("durable segments of five tables", || (std::fs::read_dir(&folder).ok()?.count() >= 5).then_some(()));
    running.signal(Signal::SIGKILL);
    assert_eq!(running.end().status.code(), None);
    let mut settings = site.settings();
    settings.vault = site.folder_vault("moved");
    site.configure("dynavault.toml", &settings);
    site.run(&["backup", "-q"]).code(0);
    site.is_equal("dynavault.toml");
    site.run(&["verify", "--deep", "-q"]).code(0);
    history(&site, "dynavault.toml", &["succeeded", "interrupted"]);
}
