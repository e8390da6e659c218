//! The sign-in of a person whose key is in the keyring of the desktop: a real GNOME keyring on a session bus of the test's
//! own.
//!
//! `tests/run.sh` installs `dbus-daemon` and `gnome-keyring-daemon`; without them the test says that it was skipped, except
//! where `CI` is set: there it fails.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::profile_site::People;
use crate::site::{Done, Running, wait_for};

const PASSWORD: &str = "the-password-of-the-keyring";

/// A bus and a keyring. Both end with the test.
struct Desktop {
    people: People,
    bus: Child,
    address: String,
    keyring: Option<Child>,
}

impl Drop for Desktop {
    fn drop(&mut self) {
        for child in self.keyring.iter_mut().chain([&mut self.bus]) {
            // Only an end that was already there is an error.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn installed(program: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap();
    std::env::split_paths(&paths).any(|folder| folder.join(program).is_file())
}

impl Desktop {
    /// A bus, no keyring yet, and the configuration of a person without a word about where sign-ins are kept.
    fn open() -> Option<Self> {
        for program in ["dbus-daemon", "gnome-keyring-daemon"] {
            if !installed(program) {
                assert!(std::env::var_os("CI").is_none(), "{program} is not installed; tests/run.sh does that");
                crate::site::skipped(&format!("{program} is not installed"));
                return None;
            }
        }
        let people = People::new();
        let config = people.site.path("dynavault.toml");
        let text = fs::read_to_string(&config).unwrap();
        let key = text.lines().find(|line| line.starts_with("key = ")).unwrap().to_owned();
        fs::write(&config, text.replace(&key, "")).unwrap();
        // Nothing on this bus starts by itself, and no other session is met.
        let settings = people.site.path("bus.conf");
        let address = people.site.path("bus");
        fs::write(
            &settings,
            format!(
                "<busconfig><type>session</type><listen>unix:path={}</listen><auth>EXTERNAL</auth><policy context=\"default\">\
                 <allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/><allow own=\"*\"/></policy></busconfig>",
                address.display()
            ),
        )
        .unwrap();
        let mut bus = Command::new("dbus-daemon")
            .arg(format!("--config-file={}", settings.display()))
            .args(["--nofork", "--print-address=1"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut address = String::new();
        BufReader::new(bus.stdout.take().unwrap()).read_line(&mut address).unwrap();
        assert!(address.starts_with("unix:"), "the bus did not start: {address:?}");
        Some(Self { people, bus, address: address.trim().to_owned(), keyring: None })
    }

    fn with_bus(&self, command: &mut Command) {
        for name in ["XDG_RUNTIME_DIR", "XDG_DATA_HOME", "DISPLAY", "WAYLAND_DISPLAY", "GNOME_KEYRING_CONTROL"] {
            command.env_remove(name);
        }
        command.env("DBUS_SESSION_BUS_ADDRESS", &self.address);
    }

    /// Starts the keyring, unlocked with its password or not.
    fn start_keyring(&mut self, unlocked: bool) {
        let control = self.people.site.path("control");
        fs::create_dir_all(&control).unwrap();
        let mut command = Command::new("gnome-keyring-daemon");
        command.args(["--foreground", "--components=secrets"]).arg("--control-directory").arg(&control);
        command.args(unlocked.then_some("--unlock"));
        self.with_bus(&mut command);
        command.env("HOME", self.people.site.folder.path()).current_dir(self.people.site.folder.path());
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(PASSWORD.as_bytes()).unwrap();
        self.keyring = Some(child);
        wait_for("the keyring on the bus", || {
            let mut ask = Command::new("dbus-send");
            ask.args(["--session", "--print-reply", "--dest=org.freedesktop.DBus", "/org/freedesktop/DBus"]);
            ask.args(["org.freedesktop.DBus.NameHasOwner", "string:org.freedesktop.secrets"]);
            self.with_bus(&mut ask);
            let said = ask.output().unwrap();
            String::from_utf8_lossy(&said.stdout).contains("boolean true").then_some(())
        });
    }

    fn stop_keyring(&mut self) {
        let mut child = self.keyring.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.people.site.command(arguments);
        self.with_bus(&mut command);
        command
    }

    fn run(&self, arguments: &[&str]) -> Done {
        Running::start(self.command(arguments)).end()
    }

    fn login(&self) -> Done {
        let mut waiting = self.people.start(self.command(&["--json", "profile", "login", "me", "--no-browser"]));
        let url = waiting.word("http://");
        assert_eq!(crate::profile_site::browse(&url), 200);
        waiting.end()
    }

    /// Files of the sealed sign-ins.
    fn sealed(&self) -> Vec<PathBuf> {
        let folder = self.people.site.path("catalog.sign-ins");
        let files = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
        files.filter(|path| path.extension().is_some_and(|end| end == "seal")).collect()
    }
}

#[test]
fn a_sign_in_is_kept_with_a_key_in_the_keyring() {
    let Some(mut desktop) = Desktop::open() else { return };
    desktop.start_keyring(true);
    let end = desktop.login().code(0).json();
    assert!(end["store"].as_str().unwrap().starts_with("keyring"), "{end}");
    assert_eq!(desktop.sealed().len(), 1);

    // Every renewal is kept before it is used: a used refresh token is worth nothing here.
    let entra = desktop.people.entra();
    entra.rotate_strictly(true);
    for _ in 0..3 {
        desktop.people.site.simulator.revoke_tokens();
        desktop.run(&["-q", "env", "whoami", "env-me"]).code(0);
    }
    let renewals =
        entra.requests().iter().filter(|request| request.grant_type.as_deref() == Some("refresh_token")).count();
    assert_eq!(renewals, 3);

    // Which store is in force is said where one looks.
    let list = desktop.run(&["--json", "profile", "list"]).code(0).json();
    let line = list.as_array().unwrap().iter().find(|line| line["profile"] == "me").unwrap();
    assert!(line["signed_in"]["store"].as_str().unwrap().starts_with("keyring"), "{line}");
    let check = desktop.run(&["--json", "profile", "check", "me"]).code(0).json();
    assert!(check["signed_in_as"]["store"].as_str().unwrap().starts_with("keyring"), "{check:#}");
    let report = desktop.run(&["--json", "doctor", "env-me"]).code(0).json();
    let line = report["checks"].as_array().unwrap().iter().find(|line| line["check"] == "sign-in").unwrap();
    assert!(line["found"].as_str().unwrap().contains("kept in keyring"), "{line}");

    // No file holds a token in the clear.
    for (name, bytes) in crate::site::files(&desktop.people.site.path("catalog.sign-ins")) {
        let text = String::from_utf8_lossy(&bytes);
        assert!(!text.contains(crate::secrets::TOKEN_START) && !crate::secrets::has_opaque(&text), "{name}");
    }

    // The keyring is started again, as after the next log-in to the desktop, and knows the key.
    desktop.stop_keyring();
    desktop.start_keyring(true);
    desktop.run(&["-q", "env", "whoami", "env-me"]).code(0);
    desktop.run(&["profile", "logout", "me"]).code(0);
    assert_eq!(desktop.sealed(), Vec::<PathBuf>::new());
    desktop.run(&["env", "whoami", "env-me"]).code(6).one_error().says(&["nobody is signed in"]);
}

#[test]
fn a_keyring_that_is_absent_or_locked_is_named_with_its_setting() {
    let Some(mut desktop) = Desktop::open() else { return };
    let setting = "store = \"file\"";
    // Before a person is bothered with a page.
    let done = desktop.run(&["profile", "login", "me", "--no-browser"]).code(6).one_error();
    done.says(&["the keyring of the operating system does not answer", setting]);
    assert!(desktop.people.entra().requests().is_empty());

    desktop.start_keyring(true);
    desktop.login().code(0);
    desktop.stop_keyring();
    desktop.run(&["env", "whoami", "env-me"]).code(6).one_error().says(&["does not answer", setting]);

    // Started without its password: whoever could type it is not there.
    desktop.start_keyring(false);
    desktop.run(&["env", "whoami", "env-me"]).code(6).one_error().says(&["keyring of the operating system", setting]);
    desktop.stop_keyring();

    // Signing out and listing need no key.
    let list = desktop.run(&["--json", "profile", "list"]).code(0).json();
    let line = list.as_array().unwrap().iter().find(|line| line["profile"] == "me").unwrap();
    assert!(line["signed_in"]["problem"].as_str().unwrap().contains("keyring"), "{line}");
    assert_eq!(line["signed_in"]["user"], Value::Null);
    desktop.run(&["profile", "logout", "me"]).code(0);
    assert_eq!(desktop.sealed(), Vec::<PathBuf>::new());
}

#[test]
fn the_store_is_chosen_by_the_configuration_and_by_nothing_else() {
    let Some(mut desktop) = Desktop::open() else { return };
    desktop.start_keyring(true);
    let config = desktop.people.site.path("dynavault.toml");
    let text = fs::read_to_string(&config).unwrap();
    let with = |lines: &str| fs::write(&config, text.replace("[tokens]", &format!("[tokens]\n{lines}"))).unwrap();
    let key = format!(
        "key = {{ file = {} }}",
        crate::site::quoted(&desktop.people.site.path("seal.key").display().to_string())
    );
    // A key for files is given: files, although a keyring runs.
    with(&key);
    assert!(desktop.login().code(0).json()["store"].as_str().unwrap().starts_with("file "));
    desktop.run(&["-q", "profile", "logout", "me"]).code(0);
    with("store = \"keyring\"");
    assert!(desktop.login().code(0).json()["store"].as_str().unwrap().starts_with("keyring"));
    with(&format!("store = \"keyring\"\n{key}"));
    desktop.run(&["config", "check"]).code(2).one_error().says(&["tokens.key", "tokens.store"]);
    with("store = \"file\"");
    desktop.run(&["config", "check"]).code(2).one_error().says(&["tokens.key", "openssl rand"]);
}
