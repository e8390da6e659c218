//! What a hasty operator and a careless script do: mistyped names, closed pipes, pipes as files, empty variables, a kill.

use std::fs;
use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use dynavault_simulator::Config;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::site::{Running, Site, wait_for};

#[test]
fn a_failure_is_one_json_document_with_the_code_and_the_hint() {
    let site = Site::small();
    for (arguments, code) in [
        (&["snapshot", "list", "--json"][..], 2),
        (&["env", "whoami", "nowhere", "--json"], 2),
        (&["backup", "--bogus", "--json"], 2),
        (&["--config", "none.toml", "config", "check", "--json"], 2),
        (&["key", "generate", "none/key", "--json"], 1),
    ] {
        let document = site.run(arguments).code(code).json();
        assert_eq!((&document["status"], &document["exit_code"]), (&Value::from("failed"), &Value::from(code)));
        assert!(document["error"].is_string() && document["hint"].is_string(), "{document}");
    }
    // Rows may be streaming already: nothing may be taken for one of them.
    site.run(&["export", "--table", "account", "--json"]).code(2).one_error();
}

#[test]
fn files_that_are_written_are_named_in_a_document() {
    let site = Site::small();
    assert_eq!(site.run(&["init", "new.toml", "--json"]).code(0).json()["path"], "new.toml");
    assert_eq!(site.run(&["man", "pages", "--json"]).code(0).json()["path"], "pages");
    let key = site.run(&["key", "generate", "key.txt", "--json"]).code(0).json();
    assert!(key["recipient"].as_str().unwrap().starts_with("age1") && key["path"] == "key.txt", "{key}");
}

#[test]
fn a_run_goes_on_when_nobody_hears_its_talk() {
    let site = Site::small();
    for arguments in [&["backup"][..], &["backup", "-vvv"]] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let status = site.command(arguments).stdout(Stdio::null()).stderr(full).status().unwrap();
        assert_eq!(status.code(), Some(0), "standard error on a full disk");
        let mut child = site.command(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stderr.take());
        assert_eq!(child.wait().unwrap().code(), Some(0), "standard error is a closed pipe");
    }
    site.is_equal("dynavault.toml");
}

#[test]
fn data_that_cannot_be_written_is_not_success() {
    let site = Site::small();
    site.run(&["backup", "-q"]).code(0);
    for arguments in [&["snapshot", "list"][..], &["snapshot", "show", "--json"], &["export", "--table", "account"]] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = site.command(arguments).stdout(full).stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains("could not write standard output"), "{said}");
    }
}

#[test]
fn a_table_that_is_mistyped_is_refused_and_not_a_green_run() {
    let site = Site::small();
    site.run(&["backup", "-q"]).code(0);
    for wrong in ["Account", "nomatch", "new_zzz*"] {
        for more in [&[][..], &["--dry-run"]] {
            let mut line = vec!["backup", "--table", "account", "--table", wrong];
            line.extend_from_slice(more);
            site.run(&line).code(2).one_error().says(&[wrong, "matches no table", "env tables"]);
        }
    }
    site.run(&["backup", "--table", "new_secret"]).code(2).one_error().says(&["the configuration leaves out"]);
    assert_eq!(site.run(&["snapshot", "list", "--json"]).code(0).json().as_array().unwrap().len(), 1);
    site.run(&["export", "--table", "Account"]).code(2).one_error().says(&["did you mean \"account\""]);
}

#[test]
fn an_environment_that_is_mistyped_is_not_whole() {
    let site = Site::small();
    site.run(&["backup", "-q"]).code(0);
    for wrong in ["simulatd", "../../x"] {
        site.run(&["verify", wrong]).code(2).one_error().says(&[wrong, "known: simulated"]);
    }
    site.run(&["verify", "simulated"]).code(0);
}

#[test]
fn an_export_never_replaces_a_pipe_and_follows_a_link() {
    let site = Site::small();
    site.run(&["backup", "-q"]).code(0);
    let pipe = site.path("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let path = pipe.clone();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        fs::File::open(path).unwrap().read_to_string(&mut text).unwrap();
        text
    });
    site.run(&["-q", "export", "--table", "account", "-o", "pipe"]).code(0);
    let plain = site.run(&["-q", "export", "--table", "account"]).code(0);
    assert_eq!(reader.join().unwrap(), plain.text());
    assert!(!fs::symlink_metadata(&pipe).unwrap().is_file(), "the pipe was replaced by a file");
    fs::write(site.path("real.jsonl"), "").unwrap();
    std::os::unix::fs::symlink(site.path("real.jsonl"), site.path("link.jsonl")).unwrap();
    site.run(&["-q", "export", "--table", "account", "-o", "link.jsonl"]).code(0);
    assert!(fs::symlink_metadata(site.path("link.jsonl")).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(site.path("real.jsonl")).unwrap(), plain.text());
    assert_eq!(site.run(&["-q", "export", "--table", "account", "-o", "-"]).code(0).text(), plain.text());
}

#[test]
fn a_time_without_a_zone_is_asked_for_and_any_offset_is_understood() {
    let site = Site::small();
    site.run(&["backup", "-q"]).code(0);
    for time in ["2999-01-01", "2999-01-01T00:00:00", "yesterday", ""] {
        site.run(&["snapshot", "show", "--at", time]).code(2).says(&["give date, time and zone"]);
    }
    for time in ["2999-01-01T00:00:00+05:30", "2999-01-01 00:00-11:00", "2999-01-01t00:00:00z"] {
        site.run(&["snapshot", "show", "--at", time]).code(0);
    }
}

#[test]
fn empty_variables_name_nothing() {
    let site = Site::small();
    let with = |name: &str, value: &str, arguments: &[&str]| {
        let mut command = site.command(arguments);
        command.env(name, value);
        Running::start(command).end()
    };
    assert_eq!(with("DYNAVAULT_CONFIG", "", &["config", "check", "--json"]).code(0).json()["path"], "dynavault.toml");
    with("DYNAVAULT_CONFIG", "none.toml", &["config", "check"]).code(2).one_error().says(&["none.toml"]);
    let text = fs::read_to_string(site.path("dynavault.toml")).unwrap();
    let start = text.find("secret = {").unwrap();
    let end = start + text[start..].find('}').unwrap() + 1;
    fs::write(site.path("env.toml"), format!("{}secret = {{ env = \"APP\" }}{}", &text[..start], &text[end..]))
        .unwrap();
    let line = ["--config", "env.toml", "env", "whoami"];
    with("APP", "", &line).code(2).one_error().says(&["APP is not set or empty"]);
    let secret = format!("{}\n", site.simulator.secret());
    with("APP", &secret, &line).code(0);
    // A link that leads nowhere is not passed over for another file.
    fs::remove_file(site.path("dynavault.toml")).unwrap();
    std::os::unix::fs::symlink("/nowhere/x.toml", site.path("dynavault.toml")).unwrap();
    site.run(&["config", "check"]).code(2).one_error().says(&["could not read the configuration dynavault.toml"]);
}

#[test]
fn a_killed_run_is_shown_as_interrupted_before_the_next_one() {
    let site = Site::new(Config { rows: 150, latency: Duration::from_millis(500), ..Config::default() });
    let running = site.start(&["backup"]);
    wait_for("the first request", || (site.simulator.stats().requests > 0).then_some(()));
    let status = || site.run(&["run", "list", "--json"]).code(0).json()[0]["status"].clone();
    assert_eq!(status(), "running");
    running.signal(Signal::SIGKILL);
    running.end();
    assert_eq!(status(), "interrupted");
    let list = |status: &str| {
        let runs = site.run(&["run", "list", "--status", status, "--json"]).code(0).json();
        runs.as_array().unwrap().len()
    };
    assert_eq!((list("running"), list("interrupted")), (0, 1));
    let run = site.run(&["run", "list", "--json"]).code(0).json()[0]["run"].as_str().unwrap().to_owned();
    let shown = site.run(&["run", "show", &run, "--json"]).code(0).json();
    assert!(shown["status"] == "interrupted" && shown["tables"].is_array() && shown["retries"].is_u64(), "{shown}");
}

#[test]
fn a_rebuild_beside_a_backup_is_busy() {
    let site = Site::small();
    site.run(&["backup", "-q"]).code(0);
    // What a backup holds while it goes on.
    let lock = fs::File::open(site.path("catalog.state/simulated.lock")).unwrap();
    lock.lock().unwrap();
    site.run(&["catalog", "rebuild"]).code(5).one_error().says(&["another backup of environment simulated"]);
    drop(lock);
    site.run(&["catalog", "rebuild"]).code(0);
}

#[test]
fn the_report_of_a_run_is_data_where_it_is_asked_for() {
    let site = Site::small();
    let run = site.run(&["backup", "--json"]).code(0).json()["run"].as_str().unwrap().to_owned();
    let shown = site.run(&["run", "show", &run]).code(0);
    assert!(
        shown.text().contains("account") && shown.text().contains("snapshot ") && shown.err.is_empty(),
        "{shown:?}"
    );
}

#[test]
fn a_dry_run_does_not_plan_on_a_vault_of_another_format() {
    let site = Site::small();
    site.run(&["backup", "-q"]).code(0);
    let path = site.path("vault/dynavault.json");
    let mut description: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    description["format"] = Value::from(2);
    fs::write(&path, description.to_string()).unwrap();
    for arguments in [&["backup", "--dry-run"][..], &["backup"], &["verify"], &["snapshot", "list"]] {
        site.run(arguments).code(1).one_error().says(&["format 2"]);
    }
}

#[test]
fn a_spoilt_catalog_names_the_way_out() {
    let site = Site::small();
    site.run(&["backup", "-q"]).code(0);
    for end in ["", "-wal", "-shm"] {
        drop(fs::remove_file(site.path(&format!("catalog.db{end}"))));
    }
    fs::write(site.path("catalog.db"), "not a database, but long enough to be taken for one ".repeat(50)).unwrap();
    site.run(&["run", "list"]).code(2).one_error().says(&["move it away", "catalog rebuild"]);
    fs::remove_file(site.path("catalog.db")).unwrap();
    site.run(&["catalog", "rebuild"]).code(0);
}
