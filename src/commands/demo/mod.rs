//! `demo`: the whole way on an embedded simulator: backups, a proof over every table, an accident, its restore, its undo.

mod moment;
mod recovery;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dynavault_engine::{Backup, BackupRequest, Config, Engine, ExportRequest, Failure, SnapshotWanted, VerifyOptions};
use dynavault_model::{FaultKind, Observer, RunReport, SnapshotId, TableStatus, Tally};
use dynavault_simulator::{Config as SimulatorConfig, Handle, Simulator};
use tokio_util::sync::CancellationToken;

use super::simulator::{failed, write_config};
use super::{Outcome, backup};
use crate::args::Global;
use crate::commands::demo::moment::Moment;
use crate::progress::Progress;
use crate::{exit, print};

const ENVIRONMENT: &str = "simulated";

struct Demo<'a> {
    engine: Engine,
    simulator: Handle,
    folder: PathBuf,
    global: &'a Global,
    cancel: CancellationToken,
}

pub(super) async fn run(
    rows: u64,
    seed: u64,
    keep: Option<PathBuf>,
    global: &Global,
    cancel: CancellationToken,
) -> Outcome {
    let temporary = tempfile::tempdir().map_err(|error| failed("make a folder for the demo", &error))?;
    let folder = keep.clone().unwrap_or_else(|| temporary.path().to_path_buf());
    if folder.join("vault").exists() {
        return Err(Failure::usage(format!("{} holds a vault already", folder.display()), "name an empty folder"));
    }
    let config = SimulatorConfig { seed, rows, custom_logic: false, ..SimulatorConfig::default() };
    let simulator = Simulator::start(config).await.map_err(|error| failed("start the simulator", &error))?;
    let path = write_config(&folder, &simulator).map_err(|error| failed("write the configuration", &error))?;
    let demo = Demo {
        engine: Engine::new(Config::load(Some(&path))?.config),
        simulator: simulator.handle(),
        folder,
        global,
        cancel,
    };
    let proved = demo.steps(seed).await?;
    simulator.stop().await;
    demo.farewell(keep.as_deref());
    Ok(if proved { exit::DONE } else { exit::FAILED })
}

impl Demo<'_> {
    fn heading(&self, text: &str) {
        if !self.global.quiet {
            print::talk(&format!("\n── {text}"));
        }
    }

    async fn steps(&self, seed: u64) -> Result<bool, Failure> {
        self.heading("1. A simulated Dataverse environment on this machine, and a full backup");
        let before = Moment::of(&self.simulator);
        let first = self.backup().await?;
        self.heading("2. A day of work: random creates, updates, deletes, links and files");
        let edits = self.simulator.edit(seed, 400);
        let sum = edits
            .tables
            .values()
            .fold((0, 0, 0), |sum, table| (sum.0 + table.created, sum.1 + table.updated, sum.2 + table.deleted));
        print::talk(&format!(
            "{} rows created, {} updated, {} deleted in {} tables",
            sum.0,
            sum.1,
            sum.2,
            edits.tables.len()
        ));
        let after = Moment::of(&self.simulator);
        self.heading("3. An incremental backup: only what changed");
        let second = self.backup().await?;
        print::talk(&format!(
            "the full backup read {} rows with {} requests, the incremental one {} rows with {}",
            print::count(first.tables.iter().map(|table| table.rows_read).sum()),
            first.requests,
            print::count(second.tables.iter().map(|table| table.rows_read).sum()),
            second.requests
        ));
        self.heading("4. The proof: every table of both snapshots against the environment at that moment");
        let old = self.prove(&before, &first).await?;
        let new = self.prove(&after, &second).await?;
        self.heading("5. Every object of the vault against its hashes");
        let report =
            self.engine.verify(None, VerifyOptions { deep: true, sample_percent: 100 }, self.cancel.clone()).await?;
        print::talk(&format!(
            "{} segments and {} content objects checked, {} rows decoded, {} damaged",
            report.segments,
            report.content_objects,
            print::count(report.rows),
            report.damage.len()
        ));
        let recovery = self.recover(&after, seed).await?;
        let proved = old && new && report.damage.is_empty() && recovery.proved;
        if self.global.json {
            print::json(&serde_json::json!({
                "proved": proved, "full": first, "incremental": second, "verify": report,
                "restore": recovery.restore, "undo": recovery.undo,
            }));
        }
        Ok(proved)
    }

    async fn backup(&self) -> Result<RunReport, Failure> {
        let request = BackupRequest { environment: ENVIRONMENT.into(), ..BackupRequest::default() };
        let tally = Arc::new(Tally::default());
        let progress = Progress::new(self.global);
        let observer = Arc::clone(&progress) as Arc<dyn Observer>;
        let backup = Backup::new(&self.engine, request, observer, Arc::clone(&tally), self.cancel.clone())?;
        let end = progress.during(&tally, backup.run()).await?;
        if let Some(failure) = end.failure {
            return Err(failure);
        }
        if !self.global.quiet {
            backup::summary(&end.report, print::talk);
        }
        Ok(end.report)
    }

    /// Compares every captured table with the environment at the moment of the backup; counts, rows and files.
    async fn prove(&self, moment: &Moment, report: &RunReport) -> Result<bool, Failure> {
        let Some(snapshot) = report.snapshot else { return Ok(false) };
        let (mut tables, mut rows, mut wrong) = (0_u64, 0_u64, Vec::new());
        for table in report.tables.iter().filter(|table| table.status == TableStatus::Succeeded) {
            let exported = self.export(snapshot, &table.table).await?;
            tables += 1;
            rows += exported.len() as u64;
            if moment.rows.get(&table.table) != Some(&exported) {
                wrong.push(table.table.clone());
            }
        }
        // Captured or named as a hole: nothing may be missing from the report.
        let missing = moment
            .rows
            .keys()
            .filter(|name| !report.tables.iter().any(|table| table.table == **name) && !report.excluded.contains(name));
        wrong.extend(missing.cloned());
        let files = self.prove_files(moment, report, snapshot, &mut wrong).await?;
        if wrong.is_empty() {
            print::talk(&format!(
                "snapshot {snapshot}: {tables} tables, {} rows and {files} files are equal, value for value",
                print::count(rows)
            ));
        } else {
            print::talk(&format!("snapshot {snapshot}: NOT equal: {}", wrong.join(", ")));
        }
        Ok(wrong.is_empty())
    }

    async fn prove_files(
        &self,
        moment: &Moment,
        report: &RunReport,
        snapshot: SnapshotId,
        wrong: &mut Vec<String>,
    ) -> Result<u64, Failure> {
        let mut captured = BTreeMap::new();
        for table in report.tables.iter().filter(|table| table.status == TableStatus::Succeeded) {
            let wanted = SnapshotWanted::Id(snapshot);
            for reference in self.engine.content_references(ENVIRONMENT, &wanted, &table.table).await? {
                captured.insert((table.table.clone(), reference.row, reference.column), reference.sha256);
            }
        }
        for file in &moment.files {
            let key = (file.table.clone(), file.row.clone(), file.column.clone());
            if captured.get(&key) != Some(&dynavault_engine::sha256_hex(&file.bytes)) {
                wrong.push(format!("{} of {} {}", file.column, file.table, file.row));
            }
        }
        Ok(moment.files.len() as u64)
    }

    async fn export(&self, snapshot: SnapshotId, table: &str) -> Result<Vec<String>, Failure> {
        let path = self.folder.join("export.jsonl");
        let request = ExportRequest {
            environment: ENVIRONMENT.into(),
            snapshot: SnapshotWanted::Id(snapshot),
            table: table.to_string(),
            ..ExportRequest::default()
        };
        self.engine.export(request, Some(path.clone()), self.cancel.clone()).await?;
        let text = std::fs::read_to_string(&path)
            .map_err(|error| Failure::new(FaultKind::Failed, format!("could not read the export: {error}"), None))?;
        let mut lines: Vec<String> = text.lines().map(str::to_string).collect();
        lines.sort_unstable();
        Ok(lines)
    }

    fn farewell(&self, kept: Option<&Path>) {
        if self.global.quiet {
            return;
        }
        print::talk("\n── What to try next");
        match kept {
            Some(folder) => {
                let config = folder.join("dynavault.toml");
                print::talk(&format!("dynavault --config {} snapshot list", config.display()));
                print::talk(&format!("dynavault --config {} export --table account | head -n 1", config.display()));
                print::talk(&format!("dynavault --config {} run list", config.display()));
                print::talk(&format!(
                    "zstd -dc {}/vault/environments/{ENVIRONMENT}/tables/account/*.jsonl.zst | head -c 400",
                    folder.display()
                ));
            }
            None => print::talk("dynavault demo --keep ./demo      the same, with a vault to look into afterwards"),
        }
        print::talk("dynavault simulator serve --write-config ./try    an environment to back up by hand");
        print::talk("dynavault init                    a configuration for your own environment");
    }
}
