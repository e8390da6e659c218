//! Profiles: every credential signs in, every failure says one thing and one remedy, and profiles are added by text.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use dynavault_simulator::{AnswerFault, Api, Config};
use jiff::SignedDuration;
use serde_json::{Value, json};

use crate::profile_site::People;
use crate::site::quoted;

const DAY: Duration = Duration::from_secs(86_400);

fn path(people: &People, name: &str, content: &str) -> String {
    let path = people.site.path(name);
    fs::write(&path, content).unwrap();
    quoted(&path.display().to_string())
}

#[test]
fn every_credential_kind_signs_in() {
    let people = People::new();
    let (entra, client) = (people.entra(), people.client());
    let certificate = entra.make_certificate(300 * DAY);
    assert!(entra.register_certificate(&client, &certificate.pem));
    let pem = path(&people, "app.pem", &certificate.pem);
    assert!(entra.trust_federated(
        &client,
        "https://issuer.example",
        "system:serviceaccount:a:b",
        "api://AzureADTokenExchange"
    ));
    let federated =
        entra.federated_token("https://issuer.example", "system:serviceaccount:a:b", "api://AzureADTokenExchange", DAY);
    let federated = path(&people, "federated.jwt", &federated);

    // The metadata service of a machine, and the Azure CLI: each hands out a token that the tenant made.
    let token = people.token();
    let metadata = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = metadata.local_addr().unwrap();
    let answer = json!({"access_token": token, "token_type": "Bearer", "expires_in": "3600", "expires_on": "4102444800", "resource": "x"});
    let answer = answer.to_string();
    std::thread::spawn(move || {
        for stream in metadata.incoming() {
            let mut stream = stream.unwrap();
            let mut asked = [0_u8; 4096];
            let count = stream.read(&mut asked).unwrap();
            assert!(String::from_utf8_lossy(&asked[..count]).to_lowercase().contains("metadata: true"));
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                answer.len()
            );
            stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(answer.as_bytes())).unwrap();
        }
    });
    let folder = people.site.path("bin");
    fs::create_dir(&folder).unwrap();
    let cli = json!({"accessToken": token, "expires_on": 4_102_444_800_u64, "expiresOn": "2099-12-31 00:00:00.000000", "tokenType": "Bearer"});
    fs::write(folder.join("az"), format!("#!/bin/sh\ncat <<'END'\n{cli}\nEND\n")).unwrap();
    fs::set_permissions(folder.join("az"), fs::Permissions::from_mode(0o755)).unwrap();

    let machine = |name: &str, credential: &str| {
        let profile = people.profile(name, "ce", credential);
        profile.replace(&people.site.simulator.authority(), &format!("http://{address}"))
    };
    people.configure(&[
        people.profile("secret", "ce", &people.secret_credential()),
        people.profile(
            "certificate",
            "ce",
            &format!("{{ kind = \"client-certificate\", certificate = {{ file = {pem} }} }}"),
        ),
        people.profile("federated", "ce", &format!("{{ kind = \"workload-identity\", token_file = {federated} }}")),
        machine("machine", "{ kind = \"managed-identity\" }"),
        machine("assigned", &format!("{{ kind = \"managed-identity\", client_id = \"{client}\" }}")),
        people.profile("cli", "ce", "{ kind = \"azure-cli\" }"),
        people.profile("person", "ce", "{ kind = \"delegated\" }"),
    ]);
    people.login("person").code(0);
    for name in ["secret", "certificate", "federated", "machine", "assigned", "cli", "person"] {
        let mut command = people.site.command(&["--json", "env", "whoami", &format!("env-{name}")]);
        let paths = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{paths}", folder.display()));
        let done = crate::site::Running::start(command).end().code(0);
        assert!(done.json()["user_id"].is_string(), "{name}");
    }
    let check = people.check("certificate", 0);
    let ends = &check["credentials"][0];
    assert_eq!(
        (&ends["kind"], ends["days_left"].as_i64().unwrap() >= 298),
        (&"client-certificate".into(), true),
        "{ends}"
    );
    assert_eq!(People::missing(&people.check("federated", 0)), []);
}

#[test]
fn a_vault_signs_in_with_a_certificate() {
    let people = People::new();
    let (entra, client) = (people.entra(), people.client());
    let certificate = entra.make_certificate(300 * DAY);
    let pem = path(&people, "vault.pem", &certificate.pem);
    let simulator = &people.site.simulator;
    let text = format!(
        "[vault]\nurl = \"azblob://devstoreaccount1/vault\"\nendpoint = \"http://127.0.0.1:1/devstoreaccount1\"\n\
         auth = {{ kind = \"client-certificate\", tenant = \"{}\", client_id = \"{client}\", certificate = {{ file = {pem} }}, authority = \"{}\" }}\n\
         [catalog]\npath = {}\n",
        simulator.tenant(),
        simulator.authority(),
        quoted(&people.site.path("catalog.db").display().to_string()),
    );
    fs::write(people.site.path("azure.toml"), text).unwrap();
    let list = ["--config", "azure.toml", "snapshot", "list"];
    people.run(&list).code(6).one_error().says(&["AADSTS700027"]);
    assert!(entra.register_certificate(&client, &certificate.pem));
    // The assertion is accepted now; there is no storage in the simulated tenant.
    people.run(&list).code(6).one_error().says(&["AADSTS500011"]);
}

#[test]
fn every_failed_sign_in_says_one_thing_and_one_remedy() {
    let people = People::new();
    let (entra, client) = (people.entra(), people.client());
    let check = |profile: &str| people.run(&["profile", "check", profile]);

    entra.expire_secrets_in(&client, SignedDuration::from_secs(-60));
    check("app").code(6).one_error().says(&["AADSTS7000222", "has expired", "create a new client secret"]);
    entra.expire_secrets_in(&client, SignedDuration::from_hours(10_000));
    fs::write(people.site.path("secret.txt"), "the id of the secret instead").unwrap();
    check("app").code(6).one_error().says(&["AADSTS7000215", "value, not its id"]);
    fs::write(people.site.path("secret.txt"), people.site.simulator.secret()).unwrap();

    entra.enable_app(&client, false);
    check("app").code(6).one_error().says(&["AADSTS7000112", "enable the enterprise application"]);
    entra.enable_app(&client, true);

    let other = "99999999-2222-3333-4444-555555555555";
    let profile = people.profile("app", "ce", &people.secret_credential());
    people.configure(&[profile.replace(&people.site.simulator.tenant(), other)]);
    check("app").code(6).one_error().says(&["AADSTS90002", other]);
    people.configure(&[profile, people.profile("me", "ce", "{ kind = \"delegated\" }")]);

    entra.refuse(53_003);
    check("app").code(6).one_error().says(&["AADSTS53003", "Conditional Access"]);
    entra.accept();

    people.login("me").code(0);
    let person = entra.people()[0].sign_in_name.clone();
    entra.require_mfa(&person);
    check("me").code(6).one_error().says(&["AADSTS50076", "multi-factor", "profile login me"]);
    people.login("me").code(0);
    check("me").code(0);
    entra.revoke_refresh_tokens(&person);
    check("me").code(6).one_error().says(&["AADSTS50173", "profile login me"]);
    // Access tokens live on for their hour, until they are refused.
    people.site.simulator.revoke_tokens();
    people.run(&["backup", "env-me"]).code(6).says(&["AADSTS50173", "profile login me"]);

    // Nobody has consented to anything: a finding of the check, a failure of everything else.
    people.login("me").code(0);
    for api in [Api::Graph, Api::DynamicsCrm] {
        for permission in dynavault_simulator::Permission::CE.iter().filter(|permission| permission.api == api) {
            entra.withdraw(&client, *permission);
        }
    }
    people.site.simulator.revoke_tokens();
    people.run(&["backup", "env-me"]).code(6).says(&["AADSTS65001", "adminconsent", "consent-url me"]);
    assert_eq!(People::missing(&people.check("me", 6)).len(), 2);
}

#[test]
fn a_service_that_asks_for_claims_is_answered() {
    let people = People::new();
    let entra = people.entra();
    people.login("me").code(0);
    let claims = "{\"access_token\":{\"acrs\":{\"essential\":true,\"value\":\"c1\"}}}";
    for api in [Api::DynamicsCrm, Api::Graph] {
        assert!(entra.challenge(api, claims));
    }
    for profile in ["me", "app"] {
        people.run(&["-q", "backup", &format!("env-{profile}")]).code(0);
        let check = people.check(profile, 0);
        assert_eq!(check["tenant"]["name"], "Simulated Ltd", "{check:#}");
    }
}

#[test]
fn a_sign_in_service_in_trouble_is_asked_again_and_then_named() {
    let people = People::new();
    let entra = people.entra();
    let check = || people.run(&["profile", "check", "app"]);
    entra.fail_next(AnswerFault::Slow { milliseconds: 1_500 }, 2);
    check().code(0);
    entra.fail_next(AnswerFault::Throttled { retry_after: Some(1) }, 1);
    entra.fail_next(AnswerFault::ServerError, 1);
    entra.fail_next(AnswerFault::HtmlBadGateway, 1);
    check().code(0);
    entra.fail_next(AnswerFault::Unavailable, 5);
    check().code(6).one_error().says(&["gave up signing in profile app after 5 tries"]);
    entra.fail_next(AnswerFault::Throttled { retry_after: Some(1) }, 5);
    check().code(6).one_error().says(&["after 5 tries"]);
    entra.fail_next(AnswerFault::HtmlSuccess, 5);
    check().code(6).one_error();
    check().code(0);
    // The same for every command that needs the environment: what is missing is the sign-in.
    entra.fail_next(AnswerFault::Unavailable, 5);
    people.run(&["backup", "env-app"]).code(6).says(&["after 5 tries"]);
    entra.fail_next(AnswerFault::ServerError, 5);
    people.run(&["env", "whoami", "env-app"]).code(6).one_error().says(&["after 5 tries"]);
    // Minutes apart: an assertion is then made by the service's time.
    let certificate = entra.make_certificate(300 * DAY);
    assert!(entra.register_certificate(&people.client(), &certificate.pem));
    let pem = path(&people, "app.pem", &certificate.pem);
    let credential = format!("{{ kind = \"client-certificate\", certificate = {{ file = {pem} }} }}");
    people.configure(&[people.profile("app", "ce", &credential)]);
    entra.skew_clock(SignedDuration::from_mins(20));
    check().code(0).says(&["the clock of this host differs"]);
}

#[test]
fn a_certificate_in_a_pfx_file_signs_in() {
    let people = People::new();
    let keys = concat!(env!("CARGO_MANIFEST_DIR"), "/crates/identity/tests/keys");
    let pem = fs::read_to_string(format!("{keys}/client.pem")).unwrap();
    assert!(people.entra().register_certificate(&people.client(), &pem));
    let password = path(&people, "pfx.password", "opensesame\n");
    for name in ["modern.pfx", "old.pfx"] {
        let pfx = quoted(&format!("{keys}/{name}"));
        let credential = format!(
            "{{ kind = \"client-certificate\", certificate = {{ file = {pfx} }}, password = {{ file = {password} }} }}"
        );
        people.configure(&[people.profile("app", "ce", &credential)]);
        let check = people.check("app", 0);
        assert_eq!(check["credentials"][0]["kind"], "client-certificate", "{name}: {check:#}");
        people.run(&["-q", "env", "whoami", "env-app"]).code(0);
    }
    people.entra().forget_requests();
    fs::write(people.site.path("pfx.password"), "guessed").unwrap();
    people.run(&["profile", "check", "app"]).code(2).one_error().says(&["password does not open the certificate"]);
    // A key of another certificate is told before anything is sent.
    let other = fs::read_to_string(format!("{keys}/other-key.pem")).unwrap();
    let certificate = pem.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap();
    let mixed = path(&people, "mixed.pem", &format!("{certificate}{other}"));
    let credential = format!("{{ kind = \"client-certificate\", certificate = {{ file = {mixed} }} }}");
    people.configure(&[people.profile("app", "ce", &credential)]);
    people.run(&["profile", "check", "app"]).code(2).one_error().says(&["key does not match the certificate"]);
    assert!(people.entra().requests().is_empty());
}

#[test]
fn a_federated_token_that_nothing_matches_is_shown_by_its_names() {
    let people = People::new();
    let (issuer, subject) = ("https://issuer.example", "system:serviceaccount:a:b");
    let audience = "api://AzureADTokenExchange";
    let token = people.entra().federated_token(issuer, subject, audience, DAY);
    let file = path(&people, "federated.jwt", &token);
    let credential = format!("{{ kind = \"workload-identity\", token_file = {file} }}");
    people.configure(&[people.profile("app", "ce", &credential)]);
    let check = people.run(&["profile", "check", "app"]).code(6).one_error();
    check.says(&["AADSTS70021", issuer, subject, audience, "ten minutes"]);
    // It was set up a moment ago, and the service comes to know it.
    assert!(people.entra().trust_federated(&people.client(), issuer, subject, audience));
    people.entra().refuse_next(70_021, 2);
    people.check("app", 0);
}

#[test]
fn a_tenant_is_named_by_its_domain_as_well() {
    let people = People::new();
    let by = |tenant: &str| {
        people.profile("app", "ce", &people.secret_credential()).replace(&people.site.simulator.tenant(), tenant)
    };
    people.configure(&[by("simulated.example")]);
    assert_eq!(people.check("app", 0)["tenant"]["id"], *people.site.simulator.tenant());
    people.run(&["-q", "backup", "env-app"]).code(0);
    let token = |tenant: &str| {
        people.entra().requests().iter().any(|request| request.endpoint == "token" && request.tenant == tenant)
    };
    assert!(
        token(&people.site.simulator.tenant()) && !token("simulated.example"),
        "after the first look the GUID is used"
    );
    people.configure(&[by("nowhere.example")]);
    people.run(&["profile", "check", "app"]).code(6).one_error().says(&["AADSTS90002", "cloud of the profile"]);
    people.configure(&[by("nowhere")]);
    people.run(&["profile", "check", "app"]).code(6).one_error().says(&["AADSTS900023", "verified domains"]);
}

#[test]
fn a_profile_is_appended_and_nothing_else_changes() {
    let people = People::new();
    let file = people.site.path("dynavault.toml");
    let before = fs::read_to_string(&file).unwrap();
    let base = ["profile", "add", "second", "--kind", "ce", "--tenant", "contoso.com", "--client-id", "c-1"];
    let add = |more: &[&str]| people.run(&[&base[..], more].concat());
    add(&["--credential", "client-secret"]).code(2).one_error().says(&["--secret-env"]);
    add(&["--credential", "delegated", "--secret-env", "X"]).code(2).one_error().says(&["no secret"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), before);
    let shown = add(&[
        "--credential",
        "client-certificate",
        "--certificate-file",
        "/c.pfx",
        "--password-env",
        "PFX",
        "--cloud",
        "usgov",
    ])
    .code(0);
    let after = fs::read_to_string(&file).unwrap();
    assert!(after.starts_with(&before) && after.trim_end().ends_with(shown.text().trim_end()), "{after}");
    add(&["--credential", "delegated"]).code(2).one_error().says(&["already", "reauthorize second"]);
    let list = people.run(&["--json", "profile", "list"]).code(0).json();
    let line = list.as_array().unwrap().last().unwrap();
    assert_eq!(
        (&line["profile"], &line["credential"], &line["cloud"]),
        (&"second".into(), &"client-certificate".into(), &"usgov".into())
    );
    people
        .run(&["profile", "add", "x", "--kind", "ce", "--tenant", "t", "--client-id", "c", "--credential", "password"])
        .code(2);
}

#[test]
fn the_page_for_administrators_comes_with_exactly_the_table() {
    let people = People::new();
    for (profile, rows, known) in [("app", 3, 3), ("me-uo", 7, 6)] {
        let page = people.run(&["--json", "profile", "consent-url", profile]).code(0).json();
        assert_eq!(page["permissions"].as_array().unwrap().len(), rows);
        let listed = page["requiredResourceAccess"].as_array().unwrap();
        let ids: usize = listed.iter().map(|api| api["resourceAccess"].as_array().unwrap().len()).sum();
        assert_eq!(ids, known, "{page:#}");
        let url = page["url"].as_str().unwrap();
        assert!(url.starts_with(&people.site.simulator.authority()) && url.contains("/v2.0/adminconsent?"), "{url}");
    }
    assert!(people.entra().requests().is_empty(), "nothing is sent for it");
}

#[test]
fn three_hours_of_five_minute_tokens_reach_nobody() {
    const STEP: Duration = Duration::from_secs(300);
    const STEPS: u32 = 36;
    let people = People::of(Config { rows: 400, token_lifetime: STEP, ..Config::default() });
    let (entra, simulator) = (people.entra(), &people.site.simulator);
    // A refresh token that was used is worth nothing: a new one has to be kept before its access token is used.
    entra.rotate_strictly(true);
    people.login("me").code(0);
    let requests = || simulator.stats().requests;
    let mut steps = 0;
    while steps < STEPS {
        let mut run = people.site.start(&["--json", "-q", "backup", "env-me", "--full"]);
        let mut last = requests();
        while !run.is_over() {
            // Each token serves some requests, and then time has passed.
            if requests() >= last + 15 {
                simulator.pass_time(STEP);
                steps += 1;
                last = requests();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let done = run.end().code(0);
        assert!(done.err.is_empty(), "{}", done.err);
        let report = done.json();
        assert_eq!((&report["status"], &report["kind"]), (&Value::from("succeeded"), &Value::from("backup")));
        simulator.pass_time(STEP);
        steps += 1;
    }
    let renewals = entra.requests().iter().filter(|entry| entry.grant_type.as_deref() == Some("refresh_token")).count();
    assert!(renewals as u32 >= STEPS, "{renewals} renewals in {STEPS} lives of a token");
    assert!(simulator.stats().by_status.contains_key(&401), "some requests met a token that had just expired");
}
