//! A place to try the program in: a scratch folder with configurations, and the simulator they point to.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dynavault_simulator::{Config, Simulator};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// Longest wait for a program or a state; far above what is needed, so that only a hang reaches it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(180);
/// Pause between two looks at a state.
const LOOK: Duration = Duration::from_millis(5);
/// Tables of the simulator that nobody can read.
pub(crate) const UNREADABLE: [&str; 4] = ["new_blocked", "new_external", "new_hidden", "new_secret"];

/// Waits until `found` gives something.
pub(crate) fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(start.elapsed() < DEADLINE, "waited {DEADLINE:?} for {what}");
        std::thread::sleep(LOOK);
    }
}

/// Says that a test did not run here, and why.
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
pub(crate) fn skipped(why: &str) {
    eprintln!("skipped: {why}");
}

/// A TOML string.
pub(crate) fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

/// How a program ended and what it said.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) status: ExitStatus,
    pub(crate) out: Vec<u8>,
    pub(crate) err: String,
}

impl Done {
    /// Standard output as text.
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.out).unwrap()
    }

    /// The only JSON document on standard output.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.out)
            .unwrap_or_else(|error| panic!("no JSON document on standard output ({error}): {self:#?}"))
    }

    /// The exit code must be this one, and nothing may have panicked.
    #[track_caller]
    pub(crate) fn code(self, code: i32) -> Self {
        let said = format!("{}\nstderr:\n{}", String::from_utf8_lossy(&self.out), self.err);
        assert_eq!(self.status.code(), Some(code), "exit code; stdout:\n{said}");
        assert!(!self.err.contains("panicked"), "{said}");
        self
    }

    /// The talk must contain each of these texts.
    #[track_caller]
    pub(crate) fn says(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(self.err.contains(text), "{text:?} is missing from the talk:\n{}", self.err);
        }
        self
    }

    /// A failed command says one error with one hint, and no data.
    #[track_caller]
    pub(crate) fn one_error(self) -> Self {
        let count = |start: &str| self.err.lines().filter(|line| line.starts_with(start)).count();
        assert_eq!((count("error: "), count("hint: ")), (1, 1), "one error with one hint:\n{}", self.err);
        assert!(self.out.is_empty(), "data beside an error: {}", String::from_utf8_lossy(&self.out));
        self
    }
}

/// A program that goes on while the test does something else. Killed when dropped.
pub(crate) struct Running {
    child: Child,
    out: Option<JoinHandle<Vec<u8>>>,
    err: Option<JoinHandle<Vec<u8>>>,
}

fn gather(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (out, err) = (gather(child.stdout.take().unwrap()), gather(child.stderr.take().unwrap()));
        Self { child, out: Some(out), err: Some(err) }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), signal).unwrap();
    }

    pub(crate) fn is_over(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    pub(crate) fn end(mut self) -> Done {
        let status = wait_for("the program to end", || self.child.try_wait().unwrap());
        let out = self.out.take().unwrap().join().unwrap();
        let err = String::from_utf8_lossy(&self.err.take().unwrap().join().unwrap()).into_owned();
        Done { status, out, err }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Only a failed test leaves a program behind; an error here says that it is gone already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What a configuration file says.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Lines of `[vault]`.
    pub(crate) vault: String,
    /// Path of the catalog.
    pub(crate) catalog: PathBuf,
    /// Address of the environment.
    pub(crate) url: String,
    /// Address of the sign-in service.
    pub(crate) authority: String,
    pub(crate) client_id: String,
    /// More lines of `[[environment]]`.
    pub(crate) environment: String,
    /// Lines of `[limits]`.
    pub(crate) limits: String,
}

/// A scratch folder and a simulator.
pub(crate) struct Site {
    pub(crate) simulator: Simulator,
    pub(crate) folder: TempDir,
}

impl Site {
    /// A simulator with few rows, and `dynavault.toml` for it: a folder vault, readable tables only, no files.
    pub(crate) fn small() -> Self {
        Self::new(Config { rows: 150, ..Config::default() })
    }

    pub(crate) fn new(config: Config) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let simulator = runtime.block_on(Simulator::start(config)).unwrap();
        let site = Self { simulator, folder: tempfile::tempdir().unwrap() };
        site.configure("dynavault.toml", &site.settings());
        site
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Settings for everything in the scratch folder.
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            vault: self.folder_vault("vault"),
            catalog: self.path("catalog.db"),
            url: self.simulator.url(),
            authority: self.simulator.authority(),
            client_id: self.simulator.client_id(),
            environment: format!("exclude = {UNREADABLE:?}\nfiles = false\n"),
            limits: String::new(),
        }
    }

    /// `[vault]` lines for a folder below the scratch folder.
    pub(crate) fn folder_vault(&self, name: &str) -> String {
        format!("url = {}\n", quoted(&format!("file://{}", self.path(name).display())))
    }

    /// Writes a configuration file into the scratch folder.
    pub(crate) fn configure(&self, name: &str, settings: &Settings) {
        let Settings { vault, catalog, url, authority, client_id, environment, limits } = settings;
        let secret = self.path("secret.txt");
        fs::write(&secret, self.simulator.secret()).unwrap();
        let text = format!(
            "[vault]\n{vault}\n[catalog]\npath = {catalog}\n\n[limits]\n{limits}\n\n\
             [[profile]]\nname = \"app\"\nkind = \"ce\"\ntenant = \"{tenant}\"\nclient_id = \"{client_id}\"\n\
             credential = {{ kind = \"client-secret\", secret = {{ file = {secret} }} }}\nauthority = \"{authority}\"\n\n\
             [[environment]]\nname = \"simulated\"\nkind = \"ce\"\nurl = \"{url}\"\nprofiles = [\"app\"]\n{environment}",
            catalog = quoted(&catalog.display().to_string()),
            tenant = self.simulator.tenant(),
            secret = quoted(&secret.display().to_string()),
        );
        fs::write(self.path(name), text).unwrap();
    }

    /// The program in the scratch folder, with no settings from outside.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        command_in(self.folder.path(), arguments)
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Done {
        Running::start(self.command(arguments)).end()
    }

    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        Running::start(self.command(arguments))
    }

    /// Rows of a table as the service would print them now, sorted.
    pub(crate) fn oracle(&self, table: &str) -> Vec<String> {
        let mut rows: Vec<String> = self.simulator.rows(table).into_iter().map(|row| row.json).collect();
        rows.sort_unstable();
        rows
    }

    /// Tables a backup should capture.
    pub(crate) fn tables(&self) -> Vec<String> {
        let tables = self.simulator.tables();
        tables.into_iter().filter(|table| table.readable && !table.operational).map(|t| t.logical_name).collect()
    }

    /// Every captured table of the newest snapshot equals the environment now.
    #[track_caller]
    pub(crate) fn is_equal(&self, config: &str) {
        let tables = self.tables();
        assert!(tables.len() > 25, "the simulator has {} readable tables", tables.len());
        for table in tables {
            let done = self.run(&["--config", config, "-q", "export", "--table", &table]).code(0);
            assert_eq!(sorted(done.text()), self.oracle(&table), "rows of {table}");
        }
    }
}

/// The program in a folder, with no settings from outside.
pub(crate) fn command_in(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dynavault"));
    command.args(arguments).current_dir(folder).env("HOME", folder).env("NO_COLOR", "1");
    for name in ["DYNAVAULT_CONFIG", "DYNAVAULT_LOG", "XDG_CONFIG_HOME", "XDG_STATE_HOME"] {
        command.env_remove(name);
    }
    command
}

/// Runs the program in a folder.
pub(crate) fn run_in(folder: &Path, arguments: &[&str]) -> Done {
    Running::start(command_in(folder, arguments)).end()
}

/// Lines, sorted.
pub(crate) fn sorted(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}

/// Every file below a folder with its content, by its path relative to the folder.
pub(crate) fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// Whether a name is that of an object inside an age layer.
pub(crate) fn is_encrypted(name: &str) -> bool {
    Path::new(name).extension().is_some_and(|end| end == "age")
}

/// Copies a folder.
pub(crate) fn copy(from: &Path, to: &Path) {
    for (name, bytes) in files(from) {
        let target = to.join(name);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::write(target, bytes).unwrap();
    }
}
