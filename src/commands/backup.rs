//! `backup`.

use std::sync::Arc;

use dynavault_engine::{Backup, BackupRequest};
use dynavault_model::{Observer, RunReport, RunStatus, TableStatus, Tally};
use tokio_util::sync::CancellationToken;

use super::{Outcome, engine, env, environment};
use crate::args::Global;
use crate::progress::Progress;
use crate::{exit, print};

pub(super) async fn run(
    named: Option<String>,
    request: BackupRequest,
    dry_run: bool,
    global: &Global,
    cancel: CancellationToken,
) -> Outcome {
    let engine = engine(global)?;
    let request = BackupRequest { environment: environment(&engine, named)?, ..request };
    let tally = Arc::new(Tally::default());
    let progress = Progress::new(global);
    let observer = Arc::clone(&progress) as Arc<dyn Observer>;
    let backup = Backup::new(&engine, request, observer, Arc::clone(&tally), cancel)?;
    if dry_run {
        env::show_plan(&backup.plan().await?, global);
        return Ok(exit::DONE);
    }
    let end = progress.during(&tally, backup.run()).await?;
    if global.json {
        print::json(&end.report);
    } else if !global.quiet && end.failure.is_none() {
        summary(&end.report, print::talk);
    }
    match end.failure {
        Some(failure) => Err(failure),
        None => Ok(exit::of_status(end.report.status)),
    }
}

/// What a person wants to know of a finished run; talk where the run was asked for, data where its report is.
pub(super) fn summary(report: &RunReport, say: fn(&str)) {
    let moved: Vec<Vec<String>> = report
        .tables
        .iter()
        .filter(|table| {
            table.status == TableStatus::Succeeded
                && (table.rows_stored > 0 || table.deleted > 0 || table.content_objects > 0)
        })
        .map(|table| {
            let mode = serde_json::to_value(table.mode).ok();
            vec![
                table.table.clone(),
                mode.and_then(|mode| mode.as_str().map(str::to_string)).unwrap_or_default(),
                print::count(table.rows_read),
                print::count(table.created),
                print::count(table.changed),
                print::count(table.deleted),
                print::count(table.live_rows),
                print::bytes(table.bytes_stored),
            ]
        })
        .collect();
    if !moved.is_empty() {
        let headers = ["table", "mode", ">read", ">created", ">changed", ">deleted", ">rows now", ">stored"];
        say(&print::table_text(&headers, &moved));
    }
    for table in &report.tables {
        if table.status != TableStatus::Succeeded || table.refused_rows > 0 {
            let what = match table.status {
                TableStatus::Refused => "refused".to_string(),
                TableStatus::Failed => "failed".to_string(),
                TableStatus::Succeeded => format!("{} rows or files refused", print::count(table.refused_rows)),
            };
            say(&format!("{what}: {}: {}", table.table, table.reason.as_deref().unwrap_or("no reason given")));
        }
    }
    let word = match report.status {
        RunStatus::Succeeded => "complete",
        RunStatus::Partial => "made, with the holes named above (exit code 3)",
        _ => "ended",
    };
    let seconds = report.finished.map_or(0.0, |end| end.duration_since(report.started).as_secs_f64());
    let captured = report.tables.iter().filter(|table| table.status == TableStatus::Succeeded);
    say(&format!(
        "snapshot {} {word}: {} tables, {} rows, {} requests, {} in, {} stored, {seconds:.1} s{}",
        report.snapshot.map(|id| id.to_string()).unwrap_or_default(),
        captured.clone().count(),
        print::count(captured.map(|table| table.live_rows).sum()),
        print::count(report.requests),
        print::bytes(report.bytes_received),
        print::bytes(report.bytes_stored),
        if report.throttled > 0 { format!(", throttled {} times", report.throttled) } else { String::new() },
    ));
}
