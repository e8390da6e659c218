//! Nothing that must stay secret is said, even at the loudest log level: secrets, tokens and row values are looked for in
//! everything the program prints and in the bytes of its catalog and state files.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use dynavault_simulator::{Config, FaultKind, Faults, TableFault};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::profile_site::{People, SEAL, browse};
use crate::site::{Done, Running, Site, files};

/// Bearer tokens look like this, at the simulator as in reality: base64 of a JWT header.
pub(crate) const TOKEN_START: &str = "eyJ0eXAi";

/// Assertions that an app signs begin so: base64 of their header.
const ASSERTION_START: &str = "eyJhbGciOiJQUzI1NiI";
/// Codes and refresh tokens of the simulator are this mark and at least so many characters of base64.
const OPAQUE_START: &str = "1.";
const OPAQUE_CHARS: usize = 80;

/// Whether a text holds a code or refresh token.
pub(crate) fn has_opaque(text: &str) -> bool {
    let is_base64 = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    text.match_indices(OPAQUE_START).any(|(at, _)| {
        text.as_bytes()[at + OPAQUE_START.len()..].iter().take_while(|byte| is_base64(byte)).count() >= OPAQUE_CHARS
    })
}

/// Texts of rows that are long and odd enough not to turn up by chance.
fn row_texts(site: &Site) -> BTreeSet<String> {
    let mut texts: BTreeSet<String> = BTreeSet::new();
    for table in site.tables() {
        for row in site.simulator.rows(&table) {
            let row: Value = serde_json::from_str(&row.json).unwrap();
            for (column, value) in row.as_object().unwrap() {
                let personal = [
                    "name",
                    "firstname",
                    "lastname",
                    "emailaddress1",
                    "telephone1",
                    "subject",
                    "description",
                    "address1_line1",
                    "notetext",
                ];
                if let Some(text) =
                    value.as_str().filter(|text| text.chars().count() >= 12 && personal.contains(&column.as_str()))
                {
                    // A part is enough: a cut value is a value.
                    texts.insert(text.chars().take(12).collect());
                }
            }
        }
    }
    // Names of the organization and its currencies are talk, not rows.
    let public: Vec<String> =
        ["organization", "transactioncurrency", "businessunit"].iter().flat_map(|table| site.oracle(table)).collect();
    texts.retain(|text| !public.iter().any(|row| row.contains(text.as_str())));
    assert!(texts.len() > 60, "only {} texts to look for", texts.len());
    texts
}

fn is_clean(what: &str, bytes: &[u8], secrets: &[String], texts: &BTreeSet<String>) {
    let text = String::from_utf8_lossy(bytes);
    for secret in secrets {
        assert!(!text.contains(secret.as_str()), "{what} holds a secret ({} characters)", secret.len());
    }
    for value in texts {
        if let Some(at) = text.find(value.as_str()) {
            let around: String = text[at.saturating_sub(80)..].chars().take(200).collect();
            panic!("{what} holds the row value {value:?}: …{around}…");
        }
    }
}

#[test]
fn nothing_secret_is_logged_or_kept() {
    let secret = "S3cr3t~of.the-application_registration";
    // A page that is half sent, one that is no JSON, refused tokens: errors are where values slip out.
    let on = |table: &str, nth: u64, kind| TableFault { table: table.to_owned(), nth, kind };
    let faults = Faults {
        on: vec![
            on("account", 1, FaultKind::TruncatedJson),
            on("contact", 1, FaultKind::CutBody),
            on("lead", 1, FaultKind::TokenRevoked),
            on("task", 1, FaultKind::HtmlSuccess),
            on("email", 1, FaultKind::ServerError),
        ],
        ..Faults::default()
    };
    let site = Site::new(Config { rows: 400, secret: secret.into(), faults, page_size_max: 20, ..Config::default() });
    let mut texts = row_texts(&site);
    let mut settings = site.settings();
    settings.environment = String::new();
    site.configure("dynavault.toml", &settings);
    let mut talk: Vec<(String, Done)> = Vec::new();
    let mut run = |arguments: &[&str], code: i32| {
        let mut line = vec!["-vvv"];
        line.extend_from_slice(arguments);
        talk.push((arguments.join(" "), site.run(&line).code(code)));
    };
    run(&["backup"], 3);
    assert!(site.simulator.stats().faults.len() >= 5, "the faults did not happen: {:?}", site.simulator.stats().faults);
    site.simulator.edit(9, 80);
    texts.extend(row_texts(&site));
    run(&["--json", "backup"], 3);
    run(&["env", "tables"], 0);
    run(&["env", "whoami"], 0);
    run(&["verify", "--deep"], 0);
    run(&["snapshot", "show"], 0);
    run(&["export", "--table", "account", "-o", "rows.jsonl"], 0);
    fs::write(site.path("secret.txt"), "Wr0ng~secret.of-somebody_else").unwrap();
    run(&["backup"], 6);
    fs::write(site.path("secret.txt"), secret).unwrap();
    site.simulator.expire_secret();
    run(&["backup"], 6);
    site.simulator.renew_secret();
    // Damage in the middle of rows: the message may name the place, not the values.
    let folder = site.path("vault/environments/simulated/tables/account");
    for object in fs::read_dir(folder).unwrap() {
        let path = object.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x20;
        fs::write(&path, bytes).unwrap();
    }
    run(&["verify", "--deep"], 4);
    run(&["export", "--table", "account", "-o", "rows.jsonl"], 4);

    let secrets = [secret.to_owned(), "Wr0ng~secret".to_owned(), TOKEN_START.to_owned()];
    let mut said = 0;
    for (command, done) in &talk {
        said += done.err.len();
        is_clean(&format!("stderr of {command}"), done.err.as_bytes(), &secrets, &texts);
        is_clean(&format!("stdout of {command}"), &done.out, &secrets, &texts);
    }
    assert!(said > 10_000, "the loudest log is {said} bytes long, which cannot be all");
    let kept: Vec<_> = files(site.folder.path())
        .into_iter()
        .filter(|(name, _)| {
            name.starts_with("catalog") || name.starts_with("vault/dynavault.json") || name.contains("/manifests/")
        })
        .collect();
    assert!(kept.iter().any(|(name, bytes)| name == "catalog.db" && bytes.len() > 10_000));
    for (name, bytes) in kept {
        is_clean(&name, &bytes, &secrets, &texts);
    }
}

#[test]
fn a_sas_is_not_repeated_when_storage_cannot_be_reached() {
    let site = Site::small();
    let mut settings = site.settings();
    // Loopback port 1: nobody listens, so the answer comes at once.
    settings.vault = "url = \"azblob://devstoreaccount1/vault\"\nendpoint = \"http://127.0.0.1:1/devstoreaccount1\"\n\
                      auth = { kind = \"sas\", token = { env = \"VAULT_SAS\" } }\n"
        .into();
    site.configure("azure.toml", &settings);
    let signature = "c2lnbmF0dXJlLW9mLXRoZS1zaGFyZWQtYWNjZXNz";
    let mut command = site.command(&["--config", "azure.toml", "-vvv", "config", "check"]);
    command.env("VAULT_SAS", format!("?sv=2021-12-02&ss=b&srt=sco&sp=rwlc&se=2999-01-01T00:00:00Z&sig={signature}"));
    let done = crate::site::Running::start(command).end().code(0);
    assert!(!done.err.contains(signature) && !done.text().contains(signature));
    // A SAS that is written out where it must not be is refused without being repeated.
    settings.vault = format!("url = \"azblob://devstoreaccount1/vault?sig={signature}\"\n");
    site.configure("azure.toml", &settings);
    let done =
        site.run(&["--config", "azure.toml", "-vvv", "snapshot", "list"]).code(2).one_error().says(&["vault.auth"]);
    assert!(!done.err.contains(signature), "{}", done.err);
    settings.vault = format!(
        "url = \"azblob://devstoreaccount1/vault\"\nauth = {{ kind = \"sas\", token = \"sig={signature}\" }}\n"
    );
    site.configure("azure.toml", &settings);
    let done = site.run(&["--config", "azure.toml", "-vvv", "snapshot", "list"]).code(2).one_error();
    assert!(!done.err.contains(signature), "{}", done.err);
}

#[test]
fn no_way_of_signing_in_leaves_a_trace_of_its_secrets() {
    let people = People::new();
    let (entra, client) = (people.entra(), people.client());
    let certificate = entra.make_certificate(std::time::Duration::from_secs(300 * 86_400));
    assert!(entra.register_certificate(&client, &certificate.pem));
    let pem = people.site.path("app.pem");
    fs::write(&pem, &certificate.pem).unwrap();
    let credential = format!(
        "{{ kind = \"client-certificate\", certificate = {{ file = {} }} }}",
        crate::site::quoted(&pem.display().to_string())
    );
    people.configure(&[
        people.profile("app", "ce", &people.secret_credential()),
        people.profile("certificate", "ce", &credential),
        people.profile("me", "ce", "{ kind = \"delegated\" }"),
    ]);
    let mut talk: Vec<(String, Done)> = Vec::new();
    let mut processes = Vec::new();
    // Sign-ins, each looked at from outside while it waits.
    entra.set_device_codes(std::time::Duration::from_secs(1), std::time::Duration::from_secs(900));
    let mut waiting = people.start(people.site.command(&["-vvv", "profile", "login", "me", "--no-browser"]));
    let url = waiting.word("http://");
    processes.push(waiting.command_line());
    assert_eq!(browse(&url), 200);
    talk.push(("login".into(), waiting.end().code(0)));
    let waiting = people.start(people.site.command(&["-vvv", "profile", "reauthorize", "me", "--device-code"]));
    let code = crate::site::wait_for("the code", || entra.user_codes().into_iter().next());
    processes.push(waiting.command_line());
    assert!(entra.approve_device(&code));
    talk.push(("reauthorize".into(), waiting.end().code(0)));

    let mut run = |arguments: &[&str], code: i32| {
        let waiting = people.start(people.site.command(&[&["-vvv"], arguments].concat()));
        processes.push(waiting.command_line());
        talk.push((arguments.join(" "), waiting.end().code(code)));
    };
    for profile in ["app", "certificate", "me"] {
        run(&["profile", "check", profile], 0);
        run(&["--json", "profile", "check", profile], 0);
    }
    run(&["profile", "list"], 0);
    run(&["profile", "consent-url", "me"], 0);
    people.site.simulator.revoke_tokens();
    run(&["backup", "env-me"], 0);
    run(&["backup", "env-certificate"], 0);
    run(&["doctor"], 0);
    fs::write(people.site.path("secret.txt"), "Wr0ng~secret.of-somebody_else").unwrap();
    run(&["profile", "check", "app"], 6);
    let sealed = fs::read(people.site.path("seal.key")).unwrap();
    fs::write(people.site.path("seal.key"), "another-sealing-key-of-more-than-32-characters").unwrap();
    run(&["env", "whoami", "env-me"], 6);
    fs::write(people.site.path("seal.key"), sealed).unwrap();
    entra.revoke_refresh_tokens(&entra.people()[0].sign_in_name);
    run(&["profile", "check", "me"], 6);
    run(&["profile", "logout", "me"], 0);
    entra.forget_certificates(&client);
    run(&["profile", "check", "certificate"], 6);

    let mut secrets: Vec<String> = certificate.pem.lines().filter(|line| line.len() > 40).map(str::to_owned).collect();
    assert!(secrets.len() > 20, "a key and a certificate have many lines");
    let others =
        [&people.site.simulator.secret(), "Wr0ng~secret", SEAL, "another-sealing-key", TOKEN_START, ASSERTION_START];
    secrets.extend(others.map(str::to_owned));
    let look = |what: &str, bytes: &[u8]| {
        is_clean(what, bytes, &secrets, &BTreeSet::new());
        assert!(!has_opaque(&String::from_utf8_lossy(bytes)), "{what} holds a code or a refresh token");
    };
    let mut said = 0;
    for (command, done) in &talk {
        said += done.err.len();
        look(&format!("stderr of {command}"), done.err.as_bytes());
        look(&format!("stdout of {command}"), &done.out);
    }
    assert!(said > 10_000, "the loudest log is {said} bytes long, which cannot be all");
    for (number, line) in processes.iter().enumerate() {
        // The first two wait for a person; others may be over before they are looked at.
        assert!(line.contains("-vvv") || number >= 2, "{line:?}");
        look("a process list", line.as_bytes());
    }
    let given = ["secret.txt", "app.pem", "seal.key"];
    let kept: Vec<_> =
        files(people.site.folder.path()).into_iter().filter(|(name, _)| !given.contains(&name.as_str())).collect();
    for part in ["catalog.db", "catalog.sign-ins/", "vault/"] {
        assert!(kept.iter().any(|(name, _)| name.starts_with(part)), "nothing of {part} was looked at");
    }
    for (name, bytes) in kept {
        look(&name, &bytes);
    }
}

/// The program behind a shell that first runs `before`; its process is the shell's own.
fn behind(people: &People, before: &str, arguments: &[&str]) -> Command {
    let program = people.site.command(arguments);
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("{before}; exec \"$0\" \"$@\"")).arg(program.get_program()).args(program.get_args());
    command.current_dir(people.site.folder.path());
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// What must not be in anything that a crash leaves.
fn of_a_crash(people: &People, what: &str, bytes: &[u8]) {
    let secrets = [people.site.simulator.secret(), SEAL.to_owned(), TOKEN_START.to_owned(), ASSERTION_START.to_owned()];
    is_clean(what, bytes, &secrets, &BTreeSet::new());
    assert!(!has_opaque(&String::from_utf8_lossy(bytes)), "{what} holds a code or a refresh token");
}

#[test]
fn a_crash_leaves_no_memory_behind() {
    let people = People::new();
    people.login("me").code(0);
    // Waiting for a person, with the stored sign-in of the one before in memory.
    let login = ["-vvv", "profile", "reauthorize", "me", "--no-browser"];
    // Each of them would write a core file; a runtime of Rust keeps SIGSEGV to itself when nothing was touched.
    for signal in [Signal::SIGABRT, Signal::SIGILL, Signal::SIGQUIT] {
        let mut waiting = people.start(behind(&people, "ulimit -c unlimited || ulimit -c $(ulimit -H -c)", &login));
        waiting.word("http://");
        let limits = fs::read_to_string(format!("/proc/{}/limits", waiting.id())).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
        waiting.signal(signal);
        let done = waiting.end();
        assert_eq!(done.status.signal(), Some(signal as i32), "{done:?}");
        assert!(!done.status.core_dumped(), "memory was written");
        of_a_crash(&people, &format!("the talk before {signal}"), done.err.as_bytes());
    }
    for (name, bytes) in files(people.site.folder.path()) {
        assert!(!name.starts_with("core"), "{name}");
        if !["secret.txt", "seal.key"].contains(&name.as_str()) {
            of_a_crash(&people, &name, &bytes);
        }
    }
}

#[test]
fn a_program_without_memory_says_nothing_secret_when_it_breaks_down() {
    let people = People::new();
    people.login("me").code(0);
    let mut broken = BTreeSet::new();
    // From too little to start to nearly enough: it breaks down at many places, with ever more secrets at hand.
    for megabytes in (40..=640).step_by(40) {
        let limit = format!("ulimit -v {}; export RUST_BACKTRACE=1", megabytes * 1024);
        for environment in ["env-app", "env-me"] {
            let done = Running::start(behind(&people, &limit, &["-vvv", "backup", environment, "--full"])).end();
            let what = format!("{environment} with {megabytes} MB");
            of_a_crash(&people, &format!("the talk of {what}"), done.err.as_bytes());
            of_a_crash(&people, &format!("the data of {what}"), &done.out);
            if done.status.signal().is_some() || done.err.contains("panicked") || done.err.contains("memory allocation")
            {
                // Its log tells whether it had come as far as a token.
                broken.insert(done.err.contains("DEBUG") || done.err.contains("TRACE"));
            }
        }
    }
    assert!(!broken.is_empty(), "nothing broke down");
    assert!(broken.contains(&true), "nothing broke down after it had begun to work");
}
