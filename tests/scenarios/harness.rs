//! The world of a scenario: a simulator, places that back it up, and what the service had at a moment.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dynavault_engine::{
    Config, Engine, ExportRequest, Manifest, RunSummary, SnapshotWanted, VerifyOptions, VerifyReport, sha256_hex,
};
use dynavault_model::{RunReport, RunStatus, SnapshotId, TableReport, TableStatus};
use dynavault_simulator::{Config as SimulatorConfig, Handle, Limits, Simulator};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

/// Configured name of the environment.
pub(crate) const ENVIRONMENT: &str = "simulated";
/// Tables of the standard data set that nobody can read; left out so that a good run ends in success.
pub(crate) const UNREADABLE: [&str; 4] = ["new_blocked", "new_external", "new_hidden", "new_secret"];
/// Longest time a process may take before a scenario gives it up.
pub(crate) const DEADLINE: Duration = Duration::from_secs(240);
/// The deadline, longer where more rows were asked for.
fn deadline() -> Duration {
    let rows = std::env::var("DYNAVAULT_SCENARIO_ROWS").ok().and_then(|text| text.parse::<u32>().ok());
    DEADLINE * (rows.unwrap_or(0) / 20_000).max(1)
}

/// Rows of the standard data set whose files the documented limits let through at once.
const ROWS_WITHIN_LIMITS: u64 = 20_000;
/// Pause between two looks at something that is waited for.
const LOOK: Duration = Duration::from_millis(1);

#[expect(clippy::print_stderr, reason = "what a person needs to replay a failure")]
pub(crate) fn say(text: &str) {
    eprintln!("{text}");
}

/// Numbers from a seed; SplitMix64.
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}

/// A simulator and a folder for the places that back it up.
pub(crate) struct World {
    pub(crate) simulator: Simulator,
    runtime: Arc<Runtime>,
    folder: TempDir,
    seed: u64,
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            say(&format!("the scenario's seed is {}", self.seed));
        }
    }
}

/// A place that backs the simulator up: a configuration, a catalog, a vault.
#[derive(Clone)]
pub(crate) struct Site {
    runtime: Arc<Runtime>,
    pub(crate) folder: PathBuf,
    pub(crate) config: PathBuf,
    pub(crate) vault: PathBuf,
}

/// What differs from the simplest configuration.
#[derive(Debug, Clone)]
pub(crate) struct SiteOptions {
    /// A vault of another site.
    pub(crate) vault: Option<PathBuf>,
    /// Lines of `[limits]`.
    pub(crate) limits: Vec<(&'static str, u64)>,
    pub(crate) recipients: Vec<String>,
    pub(crate) identity_file: Option<PathBuf>,
    /// Application users.
    pub(crate) profiles: usize,
    pub(crate) exclude: Vec<&'static str>,
    pub(crate) files: bool,
    pub(crate) in_flight: u32,
}

impl Default for SiteOptions {
    fn default() -> Self {
        Self {
            vault: None,
            limits: Vec::new(),
            recipients: Vec::new(),
            identity_file: None,
            profiles: 1,
            exclude: UNREADABLE.to_vec(),
            files: true,
            in_flight: 8,
        }
    }
}

fn quoted(text: &str) -> String {
    // JSON's escapes are a subset of those of TOML basic strings.
    serde_json::Value::from(text).to_string()
}

fn path_text(path: &Path) -> String {
    quoted(&path.display().to_string())
}

impl World {
    /// Starts a simulator; the seed is its seed and that of the scenario.
    pub(crate) fn new(config: SimulatorConfig) -> Self {
        let seed = config.seed;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let simulator = runtime.block_on(Simulator::start(config)).expect("the simulator starts");
        let folder = tempfile::tempdir().expect("a folder");
        Self { simulator, runtime: Arc::new(runtime), folder, seed }
    }

    /// A simulator with so many rows. A large one announces a limit that has room for its files, one request each: of the
    /// documented 6,000 requests in 300 seconds it would be waiting most of the time, rightly.
    pub(crate) fn of_rows(seed: u64, rows: u64) -> Self {
        let limits = (rows > ROWS_WITHIN_LIMITS).then(|| Limits {
            requests: rows,
            execution: Duration::from_secs(rows),
            ..Limits::default()
        });
        Self::new(SimulatorConfig { seed, rows, limits, ..SimulatorConfig::default() })
    }

    pub(crate) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// What the service has now.
    pub(crate) fn now(&self) -> Moment {
        Moment::of(&self.simulator)
    }

    /// A place with the simplest configuration.
    pub(crate) fn simple_site(&self) -> Site {
        self.site("site", &SiteOptions::default())
    }

    /// A place that backs the simulator up.
    pub(crate) fn site(&self, name: &str, options: &SiteOptions) -> Site {
        let folder = self.path(name);
        std::fs::create_dir_all(&folder).expect("a folder for the site");
        let secret = folder.join("secret.txt");
        std::fs::write(&secret, self.simulator.secret()).expect("the secret is written");
        let vault = options.vault.clone().unwrap_or_else(|| folder.join("vault"));
        let config = folder.join("dynavault.toml");
        let mut text = format!("[vault]\nurl = {}\n", quoted(&format!("file://{}", vault.display())));
        if !options.recipients.is_empty() {
            let list: Vec<String> = options.recipients.iter().map(|recipient| quoted(recipient)).collect();
            writeln!(text, "recipients = [{}]", list.join(", ")).expect("text grows");
        }
        if let Some(path) = &options.identity_file {
            writeln!(text, "identity_file = {}", path_text(path)).expect("text grows");
        }
        write!(text, "\n[catalog]\npath = {}\n\n[limits]\n", path_text(&folder.join("catalog.db")))
            .expect("text grows");
        for (key, value) in &options.limits {
            writeln!(text, "{key} = {value}").expect("text grows");
        }
        let clients = self.simulator.clients();
        for (index, client) in clients.iter().take(options.profiles).enumerate() {
            write!(
                text,
                "\n[[profile]]\nname = \"user{index}\"\nkind = \"ce\"\ntenant = \"{}\"\nclient_id = \"{client}\"\n\
                 credential = {{ kind = \"client-secret\", secret = {{ file = {} }} }}\nauthority = \"{}\"\n",
                self.simulator.tenant(),
                path_text(&secret),
                self.simulator.authority(),
            )
            .expect("text grows");
        }
        let profiles: Vec<String> = (0..options.profiles).map(|index| format!("\"user{index}\"")).collect();
        let exclude: Vec<String> = options.exclude.iter().map(|table| quoted(table)).collect();
        write!(
            text,
            "\n[[environment]]\nname = \"{ENVIRONMENT}\"\nkind = \"ce\"\nurl = \"{}\"\nprofiles = [{}]\nexclude = [{}]\n\
             files = {}\nmax_requests_in_flight = {}\n",
            self.simulator.url(),
            profiles.join(", "),
            exclude.join(", "),
            options.files,
            options.in_flight,
        )
        .expect("text grows");
        std::fs::write(&config, text).expect("the configuration is written");
        Site { runtime: Arc::clone(&self.runtime), folder, config, vault }
    }
}

/// The environment at one moment: for every table the rows as the service would print them, sorted; and hashes of files.
#[derive(Debug, Clone)]
pub(crate) struct Moment {
    pub(crate) rows: BTreeMap<String, Vec<String>>,
    pub(crate) files: BTreeMap<(String, String, String), String>,
}

impl Moment {
    pub(crate) fn of(simulator: &Handle) -> Self {
        let tables = simulator.tables();
        let rows = tables
            .iter()
            .filter(|table| table.readable && !table.operational)
            .map(|table| {
                let mut rows: Vec<String> =
                    simulator.rows(&table.logical_name).into_iter().map(|row| row.json).collect();
                rows.sort_unstable();
                (table.logical_name.clone(), rows)
            })
            .collect();
        let files = simulator
            .files()
            .into_iter()
            .map(|file| ((file.table, file.row, file.column), sha256_hex(&file.bytes)))
            .collect();
        Self { rows, files }
    }

    /// The same for a site that leaves files out.
    pub(crate) fn without_files(self) -> Self {
        Self { files: BTreeMap::new(), ..self }
    }

    /// Rows over all tables.
    pub(crate) fn count(&self) -> u64 {
        self.rows.values().map(|rows| rows.len() as u64).sum()
    }

    /// Created, changed and deleted rows of a table since an earlier moment; rows are told apart by their key.
    pub(crate) fn since(&self, before: &Self, table: &str, key: &str) -> (u64, u64, u64) {
        let keyed = |moment: &Self| -> BTreeMap<String, String> {
            let member = format!("\"{key}\":\"");
            moment.rows[table]
                .iter()
                .map(|row| {
                    let at = row.find(&member).expect("a row has its key") + member.len();
                    (row[at..at + 36].to_string(), row.clone())
                })
                .collect()
        };
        let (old, new) = (keyed(before), keyed(self));
        let created = new.keys().filter(|key| !old.contains_key(*key)).count();
        let changed = new.iter().filter(|(key, row)| old.get(*key).is_some_and(|was| was != *row)).count();
        let deleted = old.keys().filter(|key| !new.contains_key(*key)).count();
        (created as u64, changed as u64, deleted as u64)
    }
}

/// A process of the program.
pub(crate) struct Running {
    child: Child,
    command: String,
    out: PathBuf,
    err: PathBuf,
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) && self.child.kill().is_ok() {
            self.child.wait().expect("a killed process ends");
        }
    }
}

/// How a process ended.
pub(crate) struct Finished {
    pub(crate) command: String,
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Running {
    /// Sends SIGKILL.
    pub(crate) fn kill(&self) {
        let id = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"));
        // It may have ended by itself.
        let sent = nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGKILL);
        assert!(matches!(sent, Ok(()) | Err(nix::errno::Errno::ESRCH)), "kill failed: {sent:?}");
    }

    /// Waits until `reached` or the end of the process; false if the process ended first.
    pub(crate) fn wait_for(&mut self, mut reached: impl FnMut() -> bool) -> bool {
        let begun = Instant::now();
        loop {
            if reached() {
                return true;
            }
            if self.child.try_wait().expect("the process can be asked").is_some() {
                return false;
            }
            assert!(begun.elapsed() < deadline(), "{}: not there after {} s", self.command, deadline().as_secs());
            std::thread::sleep(LOOK);
        }
    }

    /// Waits for the end.
    pub(crate) fn wait(mut self) -> Finished {
        let ended = !self.wait_for(|| false);
        assert!(ended);
        let status = self.child.wait().expect("the process ended");
        let read = |path: &Path| std::fs::read_to_string(path).expect("the output is text");
        Finished { command: self.command.clone(), status, stdout: read(&self.out), stderr: read(&self.err) }
    }
}

impl Finished {
    /// Exit code; -1 for a process that was killed.
    pub(crate) fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    pub(crate) fn expect_code(self, code: i32) -> Self {
        let said = match serde_json::from_str::<RunReport>(&self.stdout) {
            Ok(report) => reasons(&report),
            Err(_) => self.stdout.clone(),
        };
        assert_eq!(self.code(), code, "{}\n{said}\n{}", self.command, self.stderr);
        self
    }

    pub(crate) fn json<T: serde::de::DeserializeOwned>(&self) -> T {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{}: {error}\n{}\n{}", self.command, self.stdout, self.stderr))
    }

    /// The report of a backup.
    pub(crate) fn report(&self) -> RunReport {
        self.json()
    }

    /// Fails when the log has a warning or an error.
    pub(crate) fn expect_calm(self) -> Self {
        let loud = self.stderr.lines().find(|line| line.contains("\"WARN\"") || line.contains("\"ERROR\""));
        assert!(loud.is_none(), "{}: unexpected in the log: {}", self.command, loud.unwrap_or_default());
        self
    }
}

/// The table's entry of a report.
pub(crate) fn entry<'a>(report: &'a RunReport, table: &str) -> &'a TableReport {
    report.tables.iter().find(|entry| entry.table == table).unwrap_or_else(|| panic!("no {table} in the report"))
}

/// Names of tables that were not captured whole.
pub(crate) fn holes(report: &RunReport) -> Vec<&str> {
    let whole = |table: &&TableReport| table.status == TableStatus::Succeeded && table.refused_rows == 0;
    report.tables.iter().filter(|table| !whole(table)).map(|table| table.table.as_str()).collect()
}

impl Site {
    fn engine(&self) -> Engine {
        Engine::new(Config::load(Some(&self.config)).expect("the configuration loads").config)
    }

    /// Starts the program.
    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        let number = std::fs::read_dir(&self.folder).expect("the site's folder").count();
        let out = self.folder.join(format!("{number}.out"));
        let err = self.folder.join(format!("{number}.err"));
        let file = |path: &Path| std::fs::File::create(path).expect("a file for the output");
        let child = Command::new(env!("CARGO_BIN_EXE_dynavault"))
            .arg("--config")
            .arg(&self.config)
            .args(["--json", "--no-progress"])
            .args(arguments)
            .current_dir(&self.folder)
            .env_remove("DYNAVAULT_CONFIG")
            .env_remove("DYNAVAULT_LOG")
            .stdin(Stdio::null())
            .stdout(file(&out))
            .stderr(file(&err))
            .spawn()
            .expect("the program starts");
        Running { child, command: format!("dynavault {}", arguments.join(" ")), out, err }
    }

    /// Runs the program to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Finished {
        self.start(arguments).wait()
    }

    /// A backup that must capture everything, and say nothing of note.
    pub(crate) fn backup(&self) -> RunReport {
        self.whole_backup(&["backup"])
    }

    /// A backup with arguments that must capture everything.
    pub(crate) fn whole_backup(&self, arguments: &[&str]) -> RunReport {
        let report = self.run(arguments).expect_code(0).expect_calm().report();
        assert_eq!((report.status, holes(&report)), (RunStatus::Succeeded, Vec::new()));
        report
    }

    /// Rows of a table as of a snapshot, sorted as text.
    pub(crate) fn export(&self, snapshot: SnapshotId, table: &str) -> Vec<String> {
        let path = self.folder.join("export.jsonl");
        let request = ExportRequest {
            environment: ENVIRONMENT.into(),
            snapshot: SnapshotWanted::Id(snapshot),
            table: table.to_string(),
            ..ExportRequest::default()
        };
        let exported =
            self.runtime.block_on(self.engine().export(request, Some(path.clone()), CancellationToken::new()));
        exported.unwrap_or_else(|failure| panic!("export of {table}: {}", failure.message()));
        sorted_lines(&std::fs::read_to_string(path).expect("the export is text"))
    }

    /// The same through the program's standard output.
    pub(crate) fn export_by_program(&self, snapshot: SnapshotId, table: &str) -> Vec<String> {
        let id = snapshot.to_string();
        let ended = self.run(&["export", "--snapshot", &id, "--table", table]).expect_code(0).expect_calm();
        sorted_lines(&ended.stdout)
    }

    /// Checks one table of a snapshot.
    pub(crate) fn prove_table(&self, snapshot: SnapshotId, table: &str, expected: &[String]) {
        compare(&format!("{table} in snapshot {snapshot}"), &self.export(snapshot, table), expected);
    }

    /// Checks a run that captured everything: every table, every file.
    pub(crate) fn prove(&self, report: &RunReport, moment: &Moment) {
        self.prove_except(report, moment, &[]);
    }

    /// Checks a run: every table and file except those of `holes`, which must be named as such.
    pub(crate) fn prove_except(&self, report: &RunReport, moment: &Moment, missing: &[&str]) {
        let mut expected: Vec<&str> = missing.to_vec();
        expected.sort_unstable();
        assert_eq!(holes(report), expected, "holes of the run; {}", reasons(report));
        for (table, rows) in &moment.rows {
            let entry = entry(report, table);
            if !missing.contains(&table.as_str()) {
                assert_eq!(entry.live_rows, rows.len() as u64, "live rows of {table}");
            }
        }
        let snapshot = report.snapshot.expect("a snapshot");
        let captured: Vec<&str> =
            moment.rows.keys().map(String::as_str).filter(|name| !missing.contains(name)).collect();
        self.prove_snapshot(snapshot, moment, &captured);
        for table in report.tables.iter().filter(|table| missing.contains(&table.table.as_str())) {
            assert!(table.reason.as_ref().is_some_and(|reason| !reason.is_empty()), "{} has no reason", table.table);
        }
    }

    /// Checks tables and their files of a snapshot.
    pub(crate) fn prove_snapshot(&self, snapshot: SnapshotId, moment: &Moment, tables: &[&str]) {
        for table in tables {
            self.prove_table(snapshot, table, &moment.rows[*table]);
        }
        self.prove_files(snapshot, moment, tables);
    }

    fn prove_files(&self, snapshot: SnapshotId, moment: &Moment, tables: &[&str]) {
        let engine = self.engine();
        let wanted = SnapshotWanted::Id(snapshot);
        for table in tables {
            let files: Vec<_> = moment.files.iter().filter(|((of, _, _), _)| of == table).collect();
            if files.is_empty() {
                continue;
            }
            let references = self.runtime.block_on(engine.content_references(ENVIRONMENT, &wanted, table));
            let references = references.unwrap_or_else(|failure| panic!("files of {table}: {}", failure.message()));
            let captured: BTreeMap<(String, String), String> =
                references.into_iter().map(|reference| ((reference.row, reference.column), reference.sha256)).collect();
            for ((_, row, column), sha256) in files {
                let found = captured.get(&(row.clone(), column.clone()));
                assert_eq!(found, Some(sha256), "{column} of {table} {row} in snapshot {snapshot}");
            }
        }
    }

    /// Every object and every row of the vault.
    pub(crate) fn verify(&self) -> VerifyReport {
        let report: VerifyReport = self.run(&["verify", "--deep"]).expect_code(0).expect_calm().json();
        assert_eq!((report.damage.len(), report.skipped), (0, 0));
        report
    }

    /// Like [`Self::verify`], in this process.
    pub(crate) fn verify_here(&self) -> VerifyReport {
        let options = VerifyOptions { deep: true, sample_percent: 100 };
        let report = self.runtime.block_on(self.engine().verify(None, options, CancellationToken::new()));
        let report = report.unwrap_or_else(|failure| panic!("verify: {}", failure.message()));
        assert!(report.damage.is_empty(), "{:?}", report.damage);
        report
    }

    /// The manifest of a snapshot.
    pub(crate) fn manifest(&self, snapshot: SnapshotId) -> Manifest {
        let manifest = self.runtime.block_on(self.engine().manifest(ENVIRONMENT, &SnapshotWanted::Id(snapshot)));
        manifest.unwrap_or_else(|failure| panic!("manifest: {}", failure.message()))
    }

    /// Runs that the catalog knows, newest first.
    pub(crate) fn runs(&self) -> Vec<RunSummary> {
        let filter = dynavault_engine::RunFilter { environment: None, status: None, since: None, limit: 1_000 };
        let runs = self.runtime.block_on(self.engine().runs(filter));
        runs.unwrap_or_else(|failure| panic!("runs: {}", failure.message()))
    }

    /// Deletes the catalog and everything beside it that only this host has.
    pub(crate) fn forget(&self) {
        for name in ["catalog.db", "catalog.db-wal", "catalog.db-shm"] {
            let path = self.folder.join(name);
            if path.exists() {
                std::fs::remove_file(path).expect("the catalog is deleted");
            }
        }
        std::fs::remove_dir_all(self.folder.join("catalog.state")).expect("the state is deleted");
    }

    /// Files below the vault.
    pub(crate) fn vault_files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut folders = vec![self.vault.clone()];
        while let Some(folder) = folders.pop() {
            // A folder may come or go while a backup is running.
            let Ok(entries) = std::fs::read_dir(folder) else { continue };
            for entry in entries.flatten() {
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                    _ => files.push(entry.path()),
                }
            }
        }
        files
    }
}

/// What a report says of its holes.
pub(crate) fn reasons(report: &RunReport) -> String {
    let say = |table: &TableReport| {
        format!(
            "{}: {:?}, {} rows refused: {}",
            table.table,
            table.status,
            table.refused_rows,
            table.reason.as_deref().unwrap_or("-")
        )
    };
    let named = holes(report);
    let all: Vec<String> =
        report.tables.iter().filter(|table| named.contains(&table.table.as_str())).map(say).collect();
    all.join("\n")
}

fn sorted_lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_string).collect();
    lines.sort_unstable();
    lines
}

/// Panics with the first differences.
pub(crate) fn compare(what: &str, found: &[String], expected: &[String]) {
    if found == expected {
        return;
    }
    let missing: Vec<&String> = expected.iter().filter(|row| found.binary_search(row).is_err()).collect();
    let extra: Vec<&String> = found.iter().filter(|row| expected.binary_search(row).is_err()).collect();
    // Both are sorted, so the first of each are often two versions of one row: shown from shortly before they differ.
    let first = |rows: &[&String]| rows.first().map(ToString::to_string).unwrap_or_default();
    let (one, other) = (first(&missing), first(&extra));
    let same = one.chars().zip(other.chars()).take_while(|(a, b)| a == b).count().saturating_sub(60);
    let part = |row: &str| row.chars().skip(same).take(300).collect::<String>();
    let key = |row: &str| row.chars().take(60).collect::<String>();
    panic!(
        "{what}: {} rows, expected {}; {} missing, {} too many\nmissing {} … {}\nfound   {} … {}",
        found.len(),
        expected.len(),
        missing.len(),
        extra.len(),
        key(&one),
        part(&one),
        key(&other),
        part(&other),
    );
}
