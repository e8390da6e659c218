//! `run list`, `run show`, `catalog rebuild`.

use dynavault_engine::RunFilter;
use dynavault_model::{RunReport, RunStatus};

use super::{Outcome, backup, engine};
use crate::args::{Global, Status};
use crate::{exit, print};

pub(super) async fn list(
    environment: Option<String>,
    status: Option<Status>,
    since: Option<jiff::Timestamp>,
    limit: u32,
    global: &Global,
) -> Outcome {
    let engine = engine(global)?;
    let status = status.map(|status| match status {
        Status::Running => RunStatus::Running,
        Status::Succeeded => RunStatus::Succeeded,
        Status::Partial => RunStatus::Partial,
        Status::Failed => RunStatus::Failed,
        Status::Cancelled => RunStatus::Cancelled,
        Status::Interrupted => RunStatus::Interrupted,
    });
    let runs = engine.runs(RunFilter { environment, status, since, limit }).await?;
    if global.json {
        print::json(&runs);
        return Ok(exit::DONE);
    }
    let rows: Vec<Vec<String>> = runs
        .iter()
        .map(|run| {
            vec![
                run.run.clone(),
                run.kind.clone(),
                run.environment.clone(),
                run.status.clone(),
                run.started.clone(),
                print::count(run.requests),
                print::bytes(run.bytes_stored),
                run.error.clone().unwrap_or_default(),
            ]
        })
        .collect();
    print::table(&["run", "kind", "environment", "status", "started", ">requests", ">stored", "error"], &rows);
    Ok(exit::DONE)
}

pub(super) async fn show(run: &str, global: &Global) -> Outcome {
    let engine = engine(global)?;
    let (summary, report) = engine.run(run).await?;
    let report: Option<RunReport> = report.and_then(|json| serde_json::from_str(&json).ok());
    match (global.json, report) {
        (true, Some(report)) => print::json(&report),
        (true, None) => print::json(&summary),
        (false, report) => {
            print::data(&format!(
                "run {} ({} of {}): {}, started {}{}",
                summary.run,
                summary.kind,
                summary.environment,
                summary.status,
                summary.started,
                summary.finished.map(|end| format!(", ended {end}")).unwrap_or_default()
            ));
            if let Some(error) = summary.error {
                print::data(&format!("error: {error}"));
            }
            if let Some(report) = report.filter(|report| report.snapshot.is_some()) {
                backup::summary(&report);
            }
        }
    }
    Ok(exit::DONE)
}

pub(super) async fn rebuild(global: &Global) -> Outcome {
    let engine = engine(global)?;
    let stats = engine.rebuild_catalog().await?;
    if global.json {
        print::json(&stats);
    } else {
        print::data(&format!(
            "recorded {} snapshots of {} environments{}",
            stats.snapshots,
            stats.environments,
            if stats.unreadable > 0 {
                format!("; {} cannot be read with the keys at hand", stats.unreadable)
            } else {
                String::new()
            }
        ));
    }
    Ok(exit::DONE)
}
