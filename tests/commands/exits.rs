//! Exit codes, which scripts decide on: what leads to each of them, and what is said then.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::time::Duration;

use dynavault_simulator::Config;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::site::{Site, UNREADABLE, wait_for};

#[test]
fn a_backup_without_holes_is_0_and_one_with_holes_is_3_and_names_them() {
    let site = Site::small();
    let report = site.run(&["backup", "--json"]).code(0).json();
    assert_eq!(report["status"], "succeeded");
    let mut settings = site.settings();
    settings.environment = "files = false\n".into();
    site.configure("holes.toml", &settings);
    let done = site.run(&["--config", "holes.toml", "backup", "--json"]).code(3);
    let report = done.json();
    assert_eq!(report["status"], "partial");
    let refused: Vec<&str> = report["tables"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|table| table["status"] == "refused")
        .map(|table| {
            assert!(table["reason"].as_str().is_some_and(|reason| reason.len() > 10), "{table}");
            table["table"].as_str().unwrap()
        })
        .collect();
    assert_eq!(refused, UNREADABLE);
    // For people the same is said in words.
    let said = site.run(&["--config", "holes.toml", "backup"]).code(3);
    assert!(said.out.is_empty());
    for table in UNREADABLE {
        assert!(said.err.contains(&format!("refused: {table}: ")), "{}", said.err);
    }
}

#[test]
fn a_bad_configuration_is_2_and_says_where_and_what_is_meant() {
    let site = Site::small();
    let good = fs::read_to_string(site.path("dynavault.toml")).unwrap();
    let changed = |from: &str, to: &str| {
        assert!(good.contains(from));
        fs::write(site.path("bad.toml"), good.replace(from, to)).unwrap();
        site.run(&["--config", "bad.toml", "backup"]).code(2).one_error()
    };
    changed("profiles =", "profile =").says(&["line ", "unknown key `profile`", "did you mean `profiles`"]);
    changed("profiles = [\"app\"]", "profiles = [\"ap\"]").says(&["no profile \"ap\"", "did you mean \"app\""]);
    changed("kind = \"client-secret\"", "kind = \"client-secrets\"").says(&["client-secrets"]);
    changed("url = \"http://127.0.0.1", "url = \"http://192.0.2.1").says(&["is not https"]);
    changed("[limits]\n", "[limits]\nmemory_mib = 1\n").says(&["limits.memory_mib"]);
    changed("secret = { file = ", "secret = { env = \"DYNAVAULT_NOT_SET\" } } # ")
        .says(&["DYNAVAULT_NOT_SET is not set"]);
    changed("name = \"simulated\"", "name = \"../simulated\"").says(&["cannot be a folder"]);
    fs::write(site.path("bad.toml"), "[vault\n").unwrap();
    site.run(&["--config", "bad.toml", "config", "check"]).code(2).one_error().says(&["line 1"]);
    site.run(&["--config", "none.toml", "backup"]).code(2).one_error().says(&["none.toml"]);
    fs::remove_file(site.path("dynavault.toml")).unwrap();
    site.run(&["backup"]).code(2).one_error().says(&["no configuration found", "dynavault init"]);
}

#[test]
fn names_that_do_not_exist_are_2_with_the_way_to_the_right_ones() {
    let site = Site::small();
    let run = |arguments: &[&str]| site.run(arguments).code(2).one_error();
    run(&["backup", "simulate"]).says(&["no environment \"simulate\"", "did you mean \"simulated\""]);
    // Nothing was backed up yet: the vault is not there, and looking does not make it.
    for arguments in
        [&["snapshot", "list"][..], &["verify"], &["export", "--table", "account"], &["catalog", "rebuild"]]
    {
        run(arguments).says(&["no such folder"]);
    }
    assert!(!site.path("vault").exists());
    site.run(&["backup", "-q"]).code(0);
    run(&["export", "--table", "acount"]).says(&["does not have table acount", "snapshot show"]);
    run(&["export", "--table", "account", "--snapshot", "tomorrow"])
        .says(&["\"tomorrow\" is not a snapshot id", "snapshot list"]);
    // A restore of another moment than the one that was meant is worse than none.
    run(&["restore", "--snapshot", "tomorrow"]).says(&["\"tomorrow\" is not a snapshot id", "snapshot list"]);
    run(&["export", "--table", "account", "--snapshot", "01J8ZQ4T3N5K6M7P8R9S0TVWXY"])
        .says(&["has no snapshot 01J8ZQ4T3N5K6M7P8R9S0TVWXY"]);
    run(&["export", "--table", "account", "--at", "2001-01-01T00:00:00Z"]).says(&["no snapshot at or before 2001"]);
    run(&["snapshot", "show", "--at", "2001-01-01T00:00:00Z"]).says(&["no snapshot at or before 2001"]);
    run(&["run", "show", "01J8ZQ4T3N5K6M7P8R9S0TVWXY"]).says(&["no run 01J8ZQ4T3N5K6M7P8R9S0TVWXY", "run list"]);
    run(&["backup", "--table", "[a"]).says(&["is not a pattern"]);
}

#[test]
fn damage_is_4() {
    let site = Site::small();
    site.run(&["backup", "-q"]).code(0);
    let report = site.run(&["verify", "--json"]).code(0).json();
    assert_eq!(report["damage"], Value::Array(vec![]));
    let folder = site.path("vault/environments/simulated/tables/account");
    let object = fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    fs::remove_file(&object).unwrap();
    let done = site.run(&["verify"]).code(4);
    assert!(done.text().contains("rows of account") && done.text().contains("it is missing"), "{}", done.text());
}

#[test]
fn a_second_backup_is_5_on_this_host_and_on_another() {
    let site = Site::new(Config { rows: 150, latency: Duration::from_secs(2), ..Config::default() });
    let mut first = site.start(&["backup"]);
    // Both locks are held before the first request.
    wait_for("the first request", || (site.simulator.stats().requests > 0).then_some(()));
    site.run(&["backup"]).code(5).one_error().says(&["another backup of environment simulated is running"]);
    // Another host has a catalog of its own and meets the lock in the vault.
    let mut settings = site.settings();
    settings.catalog = site.path("other-host/catalog.db");
    site.configure("other.toml", &settings);
    let busy = site.run(&["--config", "other.toml", "backup", "--json"]).code(5);
    assert_eq!(busy.json()["status"], "failed");
    let busy = busy.says(&["is locked by", "wait for the other run"]);
    assert!(!first.is_over(), "the first run ended early, so nothing was proved: {}", busy.err);
    first.signal(Signal::SIGINT);
    first.end().code(130);
}

#[test]
fn a_wrong_or_expired_secret_is_6() {
    let site = Site::small();
    fs::write(site.path("secret.txt"), "not-the-secret").unwrap();
    let wrong = site.run(&["backup"]).code(6).one_error().says(&["AADSTS7000215", "app"]);
    assert!(!wrong.err.contains("not-the-secret"));
    site.run(&["env", "whoami"]).code(6).one_error();
    fs::write(site.path("secret.txt"), site.simulator.secret()).unwrap();
    site.simulator.expire_secret();
    site.run(&["backup"]).code(6).one_error().says(&["AADSTS7000222", "expired"]);
    let mut settings = site.settings();
    settings.client_id = "11111111-2222-3333-4444-555555555555".into();
    site.configure("dynavault.toml", &settings);
    site.run(&["backup"]).code(6).one_error().says(&["AADSTS700016"]);
    // What failed is in the history, and nothing of it hinders the next run.
    let runs = site.run(&["run", "list", "--json"]).code(0).json();
    assert_eq!(runs.as_array().unwrap().len(), 3);
    assert!(runs.as_array().unwrap().iter().all(|run| run["status"] == "failed"), "{runs}");
    site.simulator.renew_secret();
    site.configure("dynavault.toml", &site.settings());
    site.run(&["backup", "-q"]).code(0);
}

/// A sign-in service that signs everybody in, and an environment that knows nobody.
pub(crate) fn stranger_service() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let (mut first, mut length) = (String::new(), 0);
            reader.read_line(&mut first).unwrap();
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).unwrap() == 0 || line.trim().is_empty() {
                    break;
                }
                if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
            }
            reader.take(length).read_to_end(&mut Vec::new()).unwrap();
            let (status, body) = if first.contains("/oauth2/v2.0/token") {
                (
                    "200 OK",
                    r#"{"token_type":"Bearer","expires_in":3600,"ext_expires_in":3600,"access_token":"aaaa.bbbb.cccc"}"#,
                )
            } else {
                (
                    "403 Forbidden",
                    r#"{"error":{"code":"0x80072560","message":"The user is not a member of the organization."}}"#,
                )
            };
            let answer = format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            // The client may have gone away.
            drop(stream.write_all(answer.as_bytes()));
        }
    });
    format!("http://{address}")
}

#[test]
fn an_application_that_is_no_user_of_the_environment_is_6() {
    let site = Site::small();
    let mut settings = site.settings();
    settings.url = stranger_service();
    settings.authority = settings.url.clone();
    site.configure("stranger.toml", &settings);
    for arguments in [&["backup"][..], &["env", "whoami"], &["env", "tables"]] {
        let mut line = vec!["--config", "stranger.toml"];
        line.extend_from_slice(arguments);
        site.run(&line).code(6).one_error().says(&["not a member of the organization"]);
    }
}

#[test]
fn an_interrupt_is_130_and_the_next_run_goes_on() {
    // Small segments, so that something is durable long before the end.
    let site =
        Site::new(Config { rows: 600, page_size_max: 20, latency: Duration::from_millis(60), ..Config::default() });
    let running = site.start(&["backup", "--json"]);
    wait_for("twenty pages", || {
        let pages = site.simulator.stats().by_kind.get("page").copied().unwrap_or(0);
        let deltas = site.simulator.stats().by_kind.get("delta").copied().unwrap_or(0);
        (pages + deltas >= 20).then_some(())
    });
    running.signal(Signal::SIGINT);
    let done = running.end().code(130).says(&["stopping"]);
    let report = done.json();
    assert_eq!((&report["status"], &report["snapshot"]), (&Value::from("cancelled"), &Value::Null));
    let run = report["run"].as_str().unwrap().to_owned();
    let runs = site.run(&["run", "list", "--json"]).code(0).json();
    assert_eq!(runs.as_array().unwrap().len(), 1);
    assert_eq!((&runs[0]["run"], &runs[0]["status"]), (&Value::from(run.as_str()), &Value::from("cancelled")));
    assert!(runs[0]["finished"].is_string());
    assert_eq!(site.run(&["snapshot", "list", "--json"]).code(0).json(), Value::Array(vec![]));
    let before = site.simulator.stats();
    site.simulator.reset_stats();
    let second = site.run(&["backup", "--json"]).code(0).json();
    assert_eq!(second["status"], "succeeded");
    let after = site.simulator.stats();
    // Tables that were finished are not read again.
    let spared: Vec<&String> = before.by_table.keys().filter(|table| !after.by_table.contains_key(*table)).collect();
    assert!(!spared.is_empty(), "nothing was taken over: first {:?}, second {:?}", before.by_table, after.by_table);
    site.is_equal("dynavault.toml");
    site.run(&["verify", "--deep", "-q"]).code(0);
}
