//! People sign in: with a browser, with a code, again, as somebody else, and out.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use dynavault_simulator::BrowserOutcome;
use serde_json::Value;

use crate::profile_site::{People, browse};
use crate::site::wait_for;

fn signed_in(people: &People) -> Value {
    let list = people.run(&["--json", "profile", "list"]).code(0).json();
    let line = list.as_array().unwrap().iter().find(|line| line["profile"] == "me").unwrap();
    line["signed_in"]["user"].clone()
}

#[test]
fn a_person_signs_in_with_a_browser_and_backs_up() {
    let people = People::new();
    people.run(&["backup", "env-me"]).code(6).one_error().says(&["nobody is signed in", "profile login me"]);
    let end = people.login("me").code(0).json();
    let person = &people.entra().people()[0];
    assert_eq!(
        (&end["user"], &end["user_id"]),
        (&person.sign_in_name.clone().into(), &person.object_id.clone().into())
    );
    assert_eq!(signed_in(&people), *person.sign_in_name);

    // The sign-in is there for this user alone, and sealed.
    let folder = people.site.path("catalog.sign-ins");
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o7777, 0o700);
    for entry in fs::read_dir(&folder).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o7777, 0o600, "{entry:?}");
    }
    let whoami = people.run(&["--json", "env", "whoami", "env-me"]).code(0).json();
    assert_eq!(whoami["user_id"], *person.user.as_ref().unwrap());
    people.run(&["-q", "backup", "env-me"]).code(0);

    people.run(&["profile", "logout", "me"]).code(0);
    assert_eq!(signed_in(&people), Value::Null);
    people.run(&["profile", "logout", "me"]).code(0);
    people.run(&["backup", "env-me"]).code(6).one_error().says(&["profile login me"]);
}

#[test]
fn the_named_browser_is_started_without_our_environment() {
    let people = People::new();
    let opened = people.site.path("opened.txt");
    let script = people.site.path("browser.sh");
    fs::write(
        &script,
        format!("#!/bin/sh\nenv > '{0}.part'\necho \"$1\" >> '{0}.part'\nmv '{0}.part' '{0}'\n", opened.display()),
    )
    .unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = people.site.command(&["profile", "login", "me"]);
    command.env("BROWSER", &script).env("CE_SECRET", "must-not-get-there");
    let waiting = people.start(command);
    let seen = wait_for("the browser", || fs::read_to_string(&opened).ok());
    assert!(!seen.contains("must-not-get-there"), "secrets of our environment are not the browser's business");
    let url = seen.lines().last().unwrap();
    assert!(waiting.said().contains(url), "the address is printed, too");
    assert_eq!(browse(url), 200);
    waiting.end().code(0);
}

#[test]
fn without_a_browser_a_code_is_entered_elsewhere() {
    let people = People::new();
    people.entra().set_device_codes(Duration::from_secs(1), Duration::from_secs(900));
    let mut command = people.site.command(&["--json", "profile", "login", "me"]);
    for name in ["BROWSER", "DISPLAY", "WAYLAND_DISPLAY"] {
        command.env_remove(name);
    }
    let mut waiting = people.start(command);
    let code = wait_for("the code", || people.entra().user_codes().into_iter().next());
    assert!(waiting.word(&code) == code || waiting.said().contains(&code));
    assert!(waiting.said().contains("enter only a code that you asked for yourself"));
    assert!(people.entra().approve_device(&code));
    waiting.end().code(0);
    assert_eq!(signed_in(&people), *people.entra().people()[0].sign_in_name);

    // Declined, and not allowed: one message, one remedy.
    let waiting = people.start(people.site.command(&["profile", "login", "me", "--device-code"]));
    let code = wait_for("the code", || people.entra().user_codes().into_iter().next());
    assert!(people.entra().decline_device(&code));
    waiting.end().code(6).says(&["declined", "profile login me"]);
    people.entra().allow_public_flows(&people.client(), false);
    people.run(&["profile", "login", "me", "--device-code"]).code(6).says(&["Allow public client flows"]);
}

#[test]
fn a_profile_stays_that_of_its_person_unless_it_is_handed_over() {
    let people = People::new();
    let (first, second) = (people.entra().people()[0].clone(), people.entra().people()[1].clone());
    people.login("me").code(0);
    people.run(&["-q", "backup", "env-me"]).code(0);
    let runs = people.run(&["--json", "run", "list"]).code(0).json();

    // The page fills in who is signed in already; with a code anybody may come.
    people.entra().set_device_codes(Duration::from_secs(1), Duration::from_secs(900));
    assert!(people.entra().sit_at_browser(&second.sign_in_name));
    let waiting = people.start(people.site.command(&["profile", "reauthorize", "me", "--device-code"]));
    let code = wait_for("the code", || people.entra().user_codes().into_iter().next());
    assert!(people.entra().approve_device(&code));
    waiting.end().code(6).says(&[&first.sign_in_name, &second.sign_in_name, "--switch-user"]);
    assert_eq!(signed_in(&people), *first.sign_in_name);
    people.run(&["-q", "env", "whoami", "env-me"]).code(0);

    let arguments = ["--json", "profile", "reauthorize", "me", "--no-browser"];
    assert!(people.entra().sit_at_browser(&first.sign_in_name));
    let end = people.login_with(&arguments).code(0).json();
    assert_eq!(end["replaced"], Value::Null);
    assert_eq!(people.run(&["--json", "run", "list"]).code(0).json(), runs, "the history stays");

    assert!(people.entra().sit_at_browser(&second.sign_in_name));
    let end = people.login_with(&[&arguments[..], &["--switch-user"]].concat()).code(0).json();
    assert_eq!(end["replaced"], *first.sign_in_name);
    assert_eq!(signed_in(&people), *second.sign_in_name);
}

#[test]
fn a_sign_in_that_fails_leaves_the_stored_one_in_use() {
    let people = People::new();
    people.login("me").code(0);
    for (outcome, texts) in [
        (BrowserOutcome::Decline, ["declined", "profile login me"]),
        (BrowserOutcome::ConsentRequired, ["consented", "profile consent-url me"]),
    ] {
        people.entra().answer_browser(outcome);
        people.login("me").code(6).says(&texts);
    }
    people.run(&["-q", "env", "whoami", "env-me"]).code(0);
}

#[test]
fn nobody_signs_in_with_a_profile_of_an_app() {
    let people = People::new();
    for command in ["login", "reauthorize", "logout"] {
        people.run(&["profile", command, "app"]).code(2).one_error().says(&["client-secret", "profile check app"]);
    }
    people.run(&["profile", "login", "mee", "--no-browser"]).code(2).one_error().says(&["did you mean \"me\""]);
}

#[test]
fn a_damaged_or_open_store_is_named_and_not_taken_for_signed_out() {
    let people = People::new();
    people.login("me").code(0);
    let folder = people.site.path("catalog.sign-ins");
    let sealed = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let sealed = sealed.into_iter().find(|path| path.extension().is_some_and(|end| end == "seal")).unwrap();
    let before = fs::read(&sealed).unwrap();
    let mut damaged = before.clone();
    *damaged.last_mut().unwrap() ^= 1;
    fs::write(&sealed, damaged).unwrap();
    people.run(&["env", "whoami", "env-me"]).code(6).one_error().says(&["does not pass its check"]);
    fs::write(&sealed, before).unwrap();
    fs::set_permissions(&sealed, fs::Permissions::from_mode(0o644)).unwrap();
    people.run(&["env", "whoami", "env-me"]).code(6).one_error().says(&["0644", "chmod 0600"]);
    fs::set_permissions(&sealed, fs::Permissions::from_mode(0o600)).unwrap();
    people.run(&["-q", "env", "whoami", "env-me"]).code(0);
}
