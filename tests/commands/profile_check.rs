//! `profile check`: every row of the permission table, in both modes, with each one missing in turn.

use std::time::Duration;

use dynavault_simulator::{AnswerFault, Api, GraphQuirk, Permission, PermissionType, TokenQuirk};
use serde_json::Value;

use crate::profile_site::{People, visit};

#[test]
fn an_app_sees_its_table_its_tenant_and_the_end_of_its_secret() {
    let people = People::new();
    let check = people.check("app", 0);
    assert_eq!((&check["profile"], &check["mode"]), (&"app".into(), &"app-only".into()));
    assert_eq!(check["tenant"]["id"], *people.site.simulator.tenant());
    assert_eq!(check["tenant"]["name"], "Simulated Ltd");
    assert_eq!(check["tenant"]["domains"], serde_json::json!(["simulated.example", "simulated.onmicrosoft.example"]));
    assert_eq!(check["signed_in_as"]["kind"], "application");
    let rows = check["permissions"].as_array().unwrap();
    assert_eq!(rows.len(), 3);
    for row in rows {
        for key in ["api", "permission", "type", "state", "found_by", "remedy"] {
            assert!(row.get(key).is_some(), "{key} in {row}");
        }
    }
    assert_eq!(People::state(&check, "User.Read"), ("not-needed", ""));
    assert_eq!(People::state(&check, "Directory.Read.All"), ("granted", "token"));
    assert_eq!(People::state(&check, "user_impersonation"), ("not-needed", ""));
    assert_eq!(
        (&check["environments"][0]["environment"], &check["environments"][0]["state"]),
        (&"env-app".into(), &"ok".into())
    );
    let credential = &check["credentials"][0];
    assert!(credential["kind"] == "client-secret" && credential["days_left"].as_i64().unwrap() > 700, "{credential}");
    assert_eq!(check["warnings"], serde_json::json!([]));

    let check = people.check("app-uo", 0);
    assert_eq!(check["permissions"].as_array().unwrap().len(), 7);
    assert_eq!(check["groups"], 250);
    assert_eq!(People::state(&check, "Connector.FullAccess"), ("granted", "token"));
    let text = people.run(&["profile", "check", "app-uo"]).code(0);
    assert!(text.text().contains("Connector.FullAccess") && text.text().contains("not-needed"), "{}", text.text());
}

/// Takes each permission of a kind away in turn: exactly the rows that count in the mode are then missing.
fn each_one_missing(people: &People, profile: &str, rows: &[Permission], mode: PermissionType) {
    let url = people.run(&["profile", "consent-url", profile]).code(0).text().trim().to_owned();
    let (entra, client) = (people.entra(), people.client());
    assert!(url.contains(&client) && url.contains(&people.site.simulator.tenant()), "{url}");
    assert_eq!(People::missing(&people.check(profile, 0)), []);
    for permission in rows {
        assert!(entra.withdraw(&client, *permission));
        let counts = permission.kind == mode;
        let check = people.check(profile, if counts { 6 } else { 0 });
        let row = (permission.api.name().to_owned(), permission.value.to_owned());
        let expected = if counts { vec![row] } else { Vec::new() };
        assert_eq!(People::missing(&check), expected, "{profile} without {permission:?}: {check:#}");
        if counts {
            let rows = check["permissions"].as_array().unwrap();
            let row = rows.iter().find(|row| row["state"] == "missing").unwrap();
            assert_eq!(row["grant_url"], *url);
            let remedy = row["remedy"].as_str().unwrap();
            assert!(remedy.contains(&url) && remedy.contains(permission.value), "{remedy}");
            let words = people.run(&["profile", "check", profile]).code(6);
            assert_eq!(words.err.lines().filter(|line| line.starts_with("missing: ")).count(), 1, "{}", words.err);
            assert!(words.err.contains(&url), "{}", words.err);
        }
        assert!(entra.grant(&client, *permission));
    }
    assert_eq!(People::missing(&people.check(profile, 0)), []);
}

#[test]
fn each_missing_permission_of_an_app_is_named_alone() {
    let people = People::new();
    each_one_missing(&people, "app", &Permission::CE, PermissionType::Application);
    each_one_missing(&people, "app-uo", &Permission::UO, PermissionType::Application);
}

#[test]
fn each_missing_permission_of_a_person_is_named_alone() {
    let people = People::new();
    people.login("me").code(0);
    each_one_missing(&people, "me", &Permission::CE, PermissionType::Delegated);
    people.login("me-uo").code(0);
    each_one_missing(&people, "me-uo", &Permission::UO, PermissionType::Delegated);
}

#[test]
fn granting_at_the_page_mends_what_was_missing() {
    let people = People::new();
    let (entra, client) = (people.entra(), people.client());
    entra.withdraw(&client, Permission::application(Api::Graph, "Directory.Read.All"));
    let check = people.check("app", 6);
    let url = check["permissions"].as_array().unwrap().iter().find_map(|row| row["grant_url"].as_str()).unwrap();
    assert_eq!(visit(url), 302, "back to where the page was asked to return");
    assert_eq!(People::missing(&people.check("app", 0)), []);
}

#[test]
fn grants_that_tokens_do_not_carry_yet_are_found_in_the_directory() {
    let people = People::new();
    let (entra, client) = (people.entra(), people.client());
    let directory = Permission::delegated(Api::Graph, "Directory.Read.All");
    let odata = Permission::delegated(Api::DynamicsErp, "Odata.FullAccess");
    entra.grant(&client, directory);
    people.login("me-uo").code(0);
    entra.withdraw(&client, odata);
    // Here the person may read the grants, so they say it and nothing has to be tried.
    assert_eq!(People::state(&people.check("me-uo", 6), "Odata.FullAccess"), ("missing", "graph"));
    people.site.simulator.pass_time(Duration::from_secs(7_200));
    entra.spread_grants_after(Duration::from_secs(3_600));
    entra.grant_to(&client, odata, &entra.people()[1].sign_in_name);
    assert_eq!(People::state(&people.check("me-uo", 6), "Odata.FullAccess"), ("missing", "graph"), "of somebody else");
    entra.grant_to(&client, odata, &entra.people()[0].sign_in_name);
    let check = people.check("me-uo", 0);
    assert_eq!(People::state(&check, "Odata.FullAccess"), ("granted", "graph"));
    let warnings = check["warnings"].to_string();
    assert!(warnings.contains("excess") && warnings.contains("Directory.Read.All"), "{warnings}");
}

#[test]
fn a_wider_permission_satisfies_the_row_and_is_named_as_excess() {
    let people = People::new();
    let (entra, client) = (people.entra(), people.client());
    entra.withdraw(&client, Permission::application(Api::Graph, "Directory.Read.All"));
    entra.grant(&client, Permission::application(Api::Graph, "Directory.ReadWrite.All"));
    let check = people.check("app", 0);
    assert_eq!(People::state(&check, "Directory.Read.All"), ("granted", "token"));
    assert!(check["warnings"].to_string().contains("Directory.ReadWrite.All"), "{}", check["warnings"]);
}

#[test]
fn tokens_that_cannot_be_read_leave_the_directory_to_ask() {
    let people = People::new();
    let (entra, client) = (people.entra(), people.client());
    entra.distort(&[TokenQuirk::Opaque]);
    assert_eq!(People::state(&people.check("app", 0), "Directory.Read.All"), ("granted", "graph"));
    // Neither the token nor the directory nor a request tells about this one.
    entra.withdraw(&client, Permission::application(Api::Graph, "Directory.Read.All"));
    assert_eq!(People::state(&people.check("app-uo", 6), "Connector.FullAccess"), ("unknown", ""));
    // Longer than any token: nothing of it is kept.
    entra.distort(&[TokenQuirk::Huge]);
    people.run(&["profile", "check", "app"]).code(6).one_error().says(&["after 5 tries", "the answer is not a token"]);
}

#[test]
fn an_environment_of_unified_operations_is_asked_for_its_companies() {
    let people = People::new();
    let (entra, client) = (people.entra(), people.client());
    people.login("me-uo").code(0);
    for profile in ["app-uo", "me-uo"] {
        let line = people.check(profile, 0)["environments"][0].clone();
        assert_eq!(
            (&line["state"], &line["companies"], &line["data_entities"]),
            (&"ok".into(), &3.into(), &6.into()),
            "{line}"
        );
    }
    // An older version has another list of them.
    entra.hide_in_erp("LegalEntities");
    assert_eq!(people.check("app-uo", 0)["environments"][0]["companies"], 3);
    // A company that is to be protected, and that the user does not see.
    let config = people.site.path("dynavault.toml");
    let before = std::fs::read_to_string(&config).unwrap();
    let uo = "name = \"env-app-uo\"\n";
    std::fs::write(&config, before.replace(uo, &format!("{uo}companies = [\"USMF\", \"frrt\"]\n"))).unwrap();
    let warnings = people.check("app-uo", 0)["warnings"].to_string();
    assert!(warnings.contains("does not see 1 of 2 configured companies: frrt"), "{warnings}");
    std::fs::write(&config, before).unwrap();
    // A valid token is not enough: the app has to be known there.
    entra.let_into_erp(&client, false);
    let check = people.check("app-uo", 6);
    assert_eq!(People::missing(&check), []);
    let line = &check["environments"][0];
    assert_eq!(line["state"], "failed");
    assert!(line["remedy"].as_str().unwrap().contains("Microsoft Entra applications"), "{line}");
    people.check("me-uo", 0);
    let report = people.run(&["--json", "doctor", "env-app-uo"]).code(6).json();
    let failed = report["checks"].as_array().unwrap().iter().find(|line| line["status"] == "failed").unwrap();
    assert_eq!(failed["check"], "environment", "{report:#}");
    entra.let_into_erp(&client, true);
    let report = people.run(&["--json", "doctor", "env-app-uo"]).code(0).json();
    assert!(report.to_string().contains("3 companies, 5 data entities"), "{report:#}");
    // Another service at the address: known as not probed, and no verdict on the profile.
    let other = format!("{}/entra/nowhere", people.site.simulator.url());
    entra.add_erp(&other);
    let text = std::fs::read_to_string(&config).unwrap().replace(&entra.erp_url(), &other);
    std::fs::write(&config, text).unwrap();
    let check = people.check("app-uo", 0);
    assert_eq!(check["environments"][0]["state"], "not-probed", "{check:#}");
}

#[test]
fn a_product_that_is_not_in_the_tenant_is_no_missing_permission() {
    let people = People::new();
    people.entra().install_api(Api::DynamicsErp, false);
    let check = people.check("app-uo", 6);
    assert_eq!(People::missing(&check), []);
    assert_eq!(People::state(&check, "Connector.FullAccess"), ("not-needed", "token"));
    assert!(check["environments"][0]["message"].as_str().unwrap().contains("AADSTS500011"), "{check:#}");
}

#[test]
fn an_environment_that_does_not_let_us_in_is_told_beside_the_table() {
    let people = People::new();
    let outsider = people.entra().people()[2].sign_in_name.clone();
    assert!(people.entra().sit_at_browser(&outsider));
    people.login("me").code(0);
    let check = people.check("me", 6);
    assert_eq!(People::missing(&check), []);
    let line = &check["environments"][0];
    assert_eq!(line["state"], "failed");
    assert!(line["message"].as_str().unwrap().contains("does not let"), "{line}");
    assert!(!line["remedy"].is_null());
}

#[test]
fn trouble_of_graph_makes_rows_unknown_and_another_tenant_ends_the_check() {
    let people = People::new();
    let (entra, client) = (people.entra(), people.client());
    entra.fail_graph_next(AnswerFault::Throttled { retry_after: Some(1) }, 1);
    entra.fail_graph_next(AnswerFault::ServerError, 1);
    people.check("app", 0);
    entra.set_graph_page(Some(60));
    assert_eq!(people.check("app-uo", 0)["groups"], 250, "pages are followed, empty ones too");
    for quirk in [GraphQuirk::RepeatedLink, GraphQuirk::ForeignLink] {
        entra.distort_graph(Some(quirk));
        let check = people.check("app-uo", 0);
        assert_eq!(check["groups"], Value::Null);
        assert!(check["warnings"].to_string().contains("the groups"), "{}", check["warnings"]);
    }
    entra.distort_graph(Some(GraphQuirk::OtherOrganization));
    people.run(&["profile", "check", "app"]).code(6).one_error().says(&["answers for tenant", "graph"]);
    entra.distort_graph(None);
    // A secret that ends soon is worth a warning.
    entra.expire_secrets_in(&client, jiff::SignedDuration::from_hours(48));
    assert!(people.check("app", 0)["warnings"].to_string().contains("client-secret"));
}
