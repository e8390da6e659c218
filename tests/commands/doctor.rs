//! `doctor`: what is right, what is not, and how it is mended, in one go.

use std::fs;

use dynavault_simulator::{Api, Permission};
use serde_json::Value;

use crate::azure::{Cloud, sas};
use crate::profile_site::People;

fn line<'a>(report: &'a Value, check: &str, subject: &str) -> &'a Value {
    let lines = report["checks"].as_array().unwrap();
    let found = lines.iter().find(|line| line["check"] == check && line["subject"].as_str().unwrap().contains(subject));
    found.unwrap_or_else(|| panic!("no check {check} of {subject} in {report:#}"))
}

#[test]
fn everything_is_looked_at_and_nothing_is_left_behind() {
    let people = People::new();
    people.configure(&[people.profile("app", "ce", &people.secret_credential())]);
    // Before the first backup there is no vault, which is no failure.
    let report = people.run(&["--json", "doctor"]).code(0).json();
    assert_eq!(line(&report, "storage", "vault")["status"], "warning");
    people.run(&["-q", "backup", "env-app"]).code(0);
    let report = people.run(&["--json", "doctor", "env-app"]).code(0).json();
    for (check, subject) in [
        ("configuration", "dynavault.toml"),
        ("address", "sign-in of app"),
        ("address", "environment env-app"),
        ("catalog", "catalog.db"),
        ("sign-in", "app"),
        ("permissions", "app"),
        ("environment", "env-app with app"),
        ("clock", "this host"),
        ("privileges for backup", "env-app with app"),
        ("privileges for restore", "env-app with app"),
        ("storage write", ""),
        ("storage create-only", ""),
        ("storage list", ""),
        ("storage read", ""),
        ("storage delete", ""),
    ] {
        assert_eq!(line(&report, check, subject)["status"], "ok", "{check} of {subject}: {report:#}");
    }
    line(&report, "disk", "catalog and state");
    let left = crate::site::files(&people.site.path("vault"));
    assert!(left.keys().all(|name| !name.starts_with("doctor")), "the probe object is removed");
    people.run(&["-q", "verify", "--deep"]).code(0);
}

#[test]
fn what_fails_is_named_with_its_remedy_and_decides_the_exit_code() {
    let people = People::new();
    people.configure(&[people.profile("app", "ce", &people.secret_credential())]);
    people.run(&["-q", "backup", "env-app"]).code(0);
    let (entra, client) = (people.entra(), people.client());
    entra.withdraw(&client, Permission::application(Api::Graph, "Directory.Read.All"));
    let report = people.run(&["--json", "doctor"]).code(6).json();
    let found = line(&report, "permissions", "app");
    assert_eq!(found["status"], "failed");
    assert!(found["remedy"].as_str().unwrap().contains("adminconsent"), "{found}");
    assert_eq!(line(&report, "storage write", "")["status"], "ok", "the other checks are made all the same");

    entra.enable_app(&client, false);
    let done =
        people.run(&["doctor"]).code(6).says(&["failed: sign-in of app", "hint: enable the enterprise application"]);
    assert!(done.text().contains("storage delete"), "{}", done.text());
    entra.enable_app(&client, true);
    entra.grant(&client, Permission::application(Api::Graph, "Directory.Read.All"));

    // A privilege that is not held is a warning: a backup would name the table and go on.
    people.site.simulator.take_privilege("prvReadAccount");
    people.site.simulator.take_privilege("prvBypassCustomBusinessLogic");
    people.site.simulator.take_privilege("prvBypassCustomPlugins");
    let report = people.run(&["--json", "doctor"]).code(0).json();
    let found = line(&report, "privileges for backup", "env-app");
    assert!(found["status"] == "warning" && found["found"].as_str().unwrap().contains("account"), "{found}");
    let found = line(&report, "privileges for restore", "env-app");
    assert!(found["found"].as_str().unwrap().contains("prvBypassCustomBusinessLogic"), "{found}");

    // A clock that is wrong is neither sign-in nor configuration.
    entra.skew_clock(jiff::SignedDuration::from_mins(20));
    let report = people.run(&["--json", "doctor"]).code(1).json();
    let found = line(&report, "clock", "this host");
    assert!(found["status"] == "failed" && found["remedy"].as_str().unwrap().contains("NTP"), "{found}");
    entra.skew_clock(jiff::SignedDuration::ZERO);
    fs::write(people.site.path("catalog.db"), "no database").unwrap();
    let report = people.run(&["--json", "doctor"]).code(2).json();
    assert_eq!(line(&report, "catalog", "catalog.db")["status"], "failed");
}

#[test]
fn a_configuration_that_cannot_be_used_is_the_only_line() {
    let people = People::new();
    fs::write(people.site.path("dynavault.toml"), "[vault]\nulr = \"file:///v\"\n").unwrap();
    let report = people.run(&["--json", "doctor"]).code(2).json();
    assert_eq!(report["checks"].as_array().unwrap().len(), 1);
    assert!(
        line(&report, "configuration", "file")["found"].as_str().unwrap().contains("did you mean `url`"),
        "{report:#}"
    );
    people.run(&["doctor", "nowhere"]).code(2);
}

#[test]
fn rights_on_azure_storage_are_tried_and_more_than_needed_is_said() {
    const EXPIRY: &str = "2999-01-01T00:00:00Z";
    let Some(cloud) = Cloud::open("doctor") else { return };
    let recipient = cloud.site.run(&["key", "generate", "restore.key"]).code(0).text().trim().to_owned();
    let recipients = format!("recipients = [\"{recipient}\"]\n");
    let key = format!("identity_file = {:?}\n", cloud.site.path("restore.key"));
    let graph = cloud.site.simulator.entra().graph_url();
    let doctor = |rights: &str, more: &str, code: i32| {
        cloud.configure("doctor.toml", &cloud.sas("doctor.txt", &sas(rights, EXPIRY)), more);
        let config = cloud.site.path("doctor.toml");
        let text = fs::read_to_string(&config).unwrap();
        fs::write(&config, text.replace("\nauthority = ", &format!("\ngraph = \"{graph}\"\nauthority = "))).unwrap();
        let report = cloud.run("doctor.toml", &["--json", "doctor"]).code(code).json();
        let statuses: Vec<String> = ["write", "create-only", "list", "read", "delete"]
            .iter()
            .filter_map(|right| {
                let check = format!("storage {right}");
                let lines = report["checks"].as_array().unwrap();
                let line = lines.iter().find(|line| line["check"] == *check)?;
                assert!(line["status"] == "ok" || line["remedy"].is_string(), "{line}");
                Some(line["status"].as_str().unwrap().to_owned())
            })
            .collect();
        (statuses.join(" "), report)
    };
    // A host that only captures: create and write are enough, and recommended.
    let (statuses, report) = doctor("wc", &recipients, 0);
    assert_eq!(statuses, "ok ok ok ok ok", "{report:#}");
    assert!(line(&report, "storage read", "")["found"].as_str().unwrap().contains("as recommended"), "{report:#}");
    let probes = |cloud: &Cloud| cloud.objects().iter().filter(|name| name.contains("/doctor/")).count();
    assert_eq!(probes(&cloud), 1, "what may not be deleted stays, and is named");
    // The same host with every right.
    let (statuses, report) = doctor("rwdlc", &recipients, 0);
    assert_eq!(statuses, "ok ok warning warning warning", "{report:#}");
    let found = line(&report, "storage list", "");
    assert!(found["found"].as_str().unwrap().contains("more than capture needs"), "{found}");
    assert_eq!(probes(&cloud), 1, "this one was removed again");
    // A host that reads backups needs to list and read; deleting is for pruning alone.
    let (statuses, report) = doctor("rwdlc", &format!("{recipients}{key}"), 0);
    assert_eq!(statuses, "ok ok ok ok warning", "{report:#}");
    let (statuses, report) = doctor("wc", "", 0);
    assert_eq!(statuses, "ok ok warning warning ok", "{report:#}");
    // Nothing may be written: the one right that is needed is named.
    let (statuses, report) = doctor("rl", &recipients, 6);
    assert_eq!(statuses, "failed", "{report:#}");
    assert!(line(&report, "storage write", "")["remedy"].as_str().unwrap().contains("create"), "{report:#}");
}
