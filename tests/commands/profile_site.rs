//! A site whose profiles sign in in every way: configuration, a browser, a person.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dynavault_simulator::{Config, Entra};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::Client;
use reqwest::redirect::Policy;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::site::{Done, Site, UNREADABLE, quoted, wait_for};

/// Secret that seals stored sign-ins.
pub(crate) const SEAL: &str = "a-sealing-key-of-more-than-32-characters";

/// A simulator, and profiles for it.
pub(crate) struct People {
    pub(crate) site: Site,
}

/// A program that waits for a person; what it says can be read while it waits.
pub(crate) struct Waiting {
    child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Only a failed test leaves a program behind.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Waiting {
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.err).unwrap()
    }

    /// What everybody on the machine can see of it.
    pub(crate) fn command_line(&self) -> String {
        let line = fs::read(format!("/proc/{}/cmdline", self.child.id())).unwrap();
        String::from_utf8_lossy(&line).replace('\0', " ")
    }

    /// The first word of the talk that begins so.
    pub(crate) fn word(&mut self, start: &str) -> String {
        wait_for(start, || {
            let said = self.said();
            let found = said.split_whitespace().find(|word| word.starts_with(start)).map(str::to_owned);
            assert!(found.is_some() || self.child.try_wait().unwrap().is_none(), "it ended:\n{said}");
            // A word at the end may be half a word.
            found.filter(|_| said.ends_with('\n'))
        })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    pub(crate) fn end(mut self) -> Done {
        let status = wait_for("the program to end", || self.child.try_wait().unwrap());
        Done { status, out: fs::read(&self.out).unwrap(), err: self.said() }
    }
}

fn client(redirects: Policy) -> (Runtime, Client) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = Client::builder().no_proxy().redirect(redirects).timeout(Duration::from_secs(60)).build().unwrap();
    (runtime, client)
}

/// A browser on this machine: opens an address and follows where it leads. The status of the last page.
pub(crate) fn browse(url: &str) -> u16 {
    let (runtime, client) = client(Policy::limited(5));
    runtime.block_on(async { client.get(url).send().await.unwrap().status().as_u16() })
}

/// Opens an address, and goes no further.
pub(crate) fn visit(url: &str) -> u16 {
    let (runtime, client) = client(Policy::none());
    runtime.block_on(async { client.get(url).send().await.unwrap().status().as_u16() })
}

impl People {
    pub(crate) fn new() -> Self {
        Self::of(Config { rows: 150, ..Config::default() })
    }

    pub(crate) fn of(config: Config) -> Self {
        let people = Self { site: Site::new(config) };
        people.configure(&[
            people.profile("app", "ce", &people.secret_credential()),
            people.profile("me", "ce", "{ kind = \"delegated\" }"),
            people.profile("app-uo", "uo", &people.secret_credential()),
            people.profile("me-uo", "uo", "{ kind = \"delegated\" }"),
        ]);
        people
    }

    pub(crate) fn entra(&self) -> Entra {
        self.site.simulator.entra()
    }

    pub(crate) fn client(&self) -> String {
        self.site.simulator.client_id()
    }

    pub(crate) fn secret_credential(&self) -> String {
        let file = self.site.path("secret.txt");
        format!("{{ kind = \"client-secret\", secret = {{ file = {} }} }}", quoted(&file.display().to_string()))
    }

    /// A `[[profile]]` of the simulated tenant.
    pub(crate) fn profile(&self, name: &str, kind: &str, credential: &str) -> String {
        let simulator = &self.site.simulator;
        format!(
            "[[profile]]\nname = \"{name}\"\nkind = \"{kind}\"\ntenant = \"{}\"\nclient_id = \"{}\"\ncredential = {credential}\n\
             authority = \"{}\"\ngraph = \"{}\"\n",
            simulator.tenant(),
            simulator.client_id(),
            simulator.authority(),
            self.entra().graph_url(),
        )
    }

    /// `dynavault.toml` with these profiles; environments `simulated` and `finance` use those of their kind, an environment
    /// named after each.
    pub(crate) fn configure(&self, profiles: &[String]) {
        let key = self.site.path("seal.key");
        fs::write(&key, SEAL).unwrap();
        let simulator = &self.site.simulator;
        let mut text = format!(
            "[vault]\n{}\n[catalog]\npath = {}\n\n[tokens]\nkey = {{ file = {} }}\n\n",
            self.site.folder_vault("vault"),
            quoted(&self.site.path("catalog.db").display().to_string()),
            quoted(&key.display().to_string()),
        );
        for profile in profiles {
            let part = |key: &str| {
                let (_, rest) = profile.split_once(&format!("\n{key} = \"")).unwrap();
                rest.split_once('"').unwrap().0.to_owned()
            };
            let (name, kind) = (part("name"), part("kind"));
            let url = if kind == "ce" { simulator.url() } else { self.entra().erp_url() };
            write!(
                text,
                "{profile}\n[[environment]]\nname = \"env-{name}\"\nkind = \"{kind}\"\nurl = \"{url}\"\nprofiles = [\"{name}\"]\n\
                 exclude = {UNREADABLE:?}\nfiles = false\n\n"
            )
            .unwrap();
        }
        fs::write(self.site.path("dynavault.toml"), text).unwrap();
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Done {
        self.site.run(arguments)
    }

    /// `profile check` as JSON, whatever its exit code.
    pub(crate) fn check(&self, profile: &str, code: i32) -> Value {
        self.run(&["--json", "profile", "check", profile]).code(code).json()
    }

    /// Starts the program; it goes on while the test does something else.
    pub(crate) fn start(&self, mut command: Command) -> Waiting {
        let (out, err) = (self.site.path("waiting.out"), self.site.path("waiting.err"));
        let child = command
            .stdin(Stdio::null())
            .stdout(File::create(&out).unwrap())
            .stderr(File::create(&err).unwrap())
            .spawn()
            .unwrap();
        Waiting { child, out, err }
    }

    /// An access token of the first app for the environment.
    pub(crate) fn token(&self) -> String {
        let simulator = &self.site.simulator;
        let url = format!("{}/{}/oauth2/v2.0/token", simulator.authority(), simulator.tenant());
        let form = [
            ("grant_type", "client_credentials".to_owned()),
            ("client_id", simulator.client_id()),
            ("client_secret", simulator.secret()),
            ("scope", format!("{}/.default", simulator.url())),
        ];
        let (runtime, client) = client(Policy::none());
        let body: Vec<u8> = runtime.block_on(async {
            let mut reply = client.post(url).form(&form).send().await.unwrap();
            let mut body = Vec::new();
            while let Some(chunk) = reply.chunk().await.unwrap() {
                body.extend_from_slice(&chunk);
            }
            body
        });
        let body: Value = serde_json::from_slice(&body).unwrap();
        body["access_token"].as_str().unwrap().to_owned()
    }

    /// Signs the person at the browser in.
    pub(crate) fn login(&self, profile: &str) -> Done {
        self.login_with(&["--json", "profile", "login", profile, "--no-browser"])
    }

    /// Runs a command that prints an address, and opens it.
    pub(crate) fn login_with(&self, arguments: &[&str]) -> Done {
        let mut waiting = self.start(self.site.command(arguments));
        let url = waiting.word("http://");
        assert_eq!(browse(&url), 200, "the page at the end of the sign-in");
        waiting.end()
    }

    /// Names of the missing permissions of a check.
    pub(crate) fn missing(check: &Value) -> Vec<(String, String)> {
        let rows = check["permissions"].as_array().unwrap().iter().filter(|row| row["state"] == "missing");
        let text = |row: &Value, name: &str| row[name].as_str().unwrap().to_owned();
        rows.map(|row| (text(row, "api"), text(row, "permission"))).collect()
    }

    /// State and source of one row.
    pub(crate) fn state<'a>(check: &'a Value, permission: &str) -> (&'a str, &'a str) {
        let rows = check["permissions"].as_array().unwrap();
        let row = rows.iter().find(|row| row["permission"] == permission).unwrap();
        (row["state"].as_str().unwrap(), row["found_by"].as_str().unwrap_or(""))
    }
}
