//! `run list`, `run show`, `run report`, `catalog rebuild`.

use std::path::Path;

use dynavault_engine::{Failure, RestoreEnd, RunFilter, RunSummary};
use dynavault_model::{FaultKind, RunReport, RunStatus};

use serde_json::{Value, json};

use super::{Outcome, backup, engine, restore, setup};
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
    if summary.kind == "restore" {
        let end: Option<RestoreEnd> = report.and_then(|json| serde_json::from_str(&json).ok());
        match (global.json, end) {
            (true, Some(end)) => print::json(&end),
            (true, None) => print::json(&summary),
            (false, end) => {
                describe(&summary);
                if let Some(end) = end {
                    restore::ended(&end, print::data);
                }
            }
        }
        return Ok(exit::DONE);
    }
    let report: Option<RunReport> = report.and_then(|json| serde_json::from_str(&json).ok());
    match (global.json, report) {
        (true, Some(report)) => print::json(&report),
        (true, None) => print::json(&unfinished(&summary)),
        (false, report) => {
            describe(&summary);
            if let Some(report) = report.filter(|report| report.snapshot.is_some()) {
                backup::summary(&report, print::data);
            }
        }
    }
    Ok(exit::DONE)
}

/// A run that has no report (it goes on, or its process died) in the shape of one; what is not known is 0.
fn unfinished(run: &RunSummary) -> Value {
    let mut report = json!({
        "tables": [], "excluded": [], "gone": [], "retries": 0, "throttled": 0, "bytes_received": 0, "bytes_raw": 0,
        "peak_memory_bytes": 0, "resumed_from": null,
    });
    if let (Some(report), Ok(Value::Object(known))) = (report.as_object_mut(), serde_json::to_value(run)) {
        report.extend(known);
    }
    report
}

fn describe(run: &RunSummary) {
    print::data(&format!(
        "run {} ({} of {}): {}, started {}{}",
        run.run,
        run.kind,
        run.environment,
        run.status,
        run.started,
        run.finished.as_ref().map(|end| format!(", ended {end}")).unwrap_or_default()
    ));
    if let Some(error) = &run.error {
        print::data(&format!("error: {error}"));
    }
}

pub(super) async fn report(run: &str, output: Option<&Path>, global: &Global) -> Outcome {
    let page = engine(global)?.run_page(run).await?;
    let Some(path) = output else {
        print::data(page.trim_end());
        return Ok(exit::DONE);
    };
    std::fs::write(path, page).map_err(|error| {
        Failure::new(
            FaultKind::Failed,
            format!("could not write {}: {error}", path.display()),
            Some("check that the disk is not full and the place may be written".into()),
        )
    })?;
    setup::written(path, &format!("written: {}", path.display()), global);
    Ok(exit::DONE)
}

pub(super) async fn rebuild(global: &Global) -> Outcome {
    let engine = engine(global)?;
    let stats = engine.rebuild_catalog().await?;
    if global.json {
        print::json(&stats);
    } else {
        let also = |count: u64, what: &str| if count > 0 { format!("; {count} {what}") } else { String::new() };
        print::data(&format!(
            "recorded {} snapshots of {} environments{}{}",
            stats.snapshots,
            stats.environments,
            also(stats.unreadable, "cannot be read with the keys at hand"),
            also(stats.damaged, "are damaged, see `dynavault verify`"),
        ));
    }
    Ok(if stats.damaged > 0 { exit::DAMAGE } else { exit::DONE })
}
