//! `export`.

use std::path::{Path, PathBuf};

use dynavault_engine::{ExportFormat, ExportRequest};
use dynavault_model::TableStatus;
use tokio_util::sync::CancellationToken;

use super::{Outcome, engine, environment, wanted};
use crate::args::{Format, Global, When};
use crate::{exit, print};

/// Whether the rows go to standard output.
pub(super) fn streams(output: Option<&Path>) -> bool {
    output.is_none_or(|path| path == Path::new("-"))
}

pub(super) async fn run(
    named: Option<String>,
    table: String,
    when: &When,
    format: Format,
    output: Option<PathBuf>,
    global: &Global,
    cancel: CancellationToken,
) -> Outcome {
    let engine = engine(global)?;
    let request = ExportRequest {
        environment: environment(&engine, named)?,
        snapshot: wanted(when)?,
        table,
        format: match format {
            Format::Jsonl => ExportFormat::Jsonl,
            Format::Csv => ExportFormat::Csv,
        },
    };
    let output = output.filter(|path| !streams(Some(path)));
    let to_file = output.is_some();
    let stats = engine.export(request, output, cancel).await?;
    // Said even when quiet: rows that look like those of the snapshot and are older.
    if let Some(carried) = &stats.carried {
        let what = match (carried.status, &carried.reason) {
            (TableStatus::Succeeded, _) => "was not part of its run".to_string(),
            (_, None) => "could not be read by its run".to_string(),
            (_, Some(reason)) => format!("could not be read by its run ({reason})"),
        };
        print::talk(&format!(
            "note: table {} of snapshot {} {what}; its rows are those of snapshot {}, read until {}",
            stats.table, stats.snapshot, carried.captured_by, carried.read
        ));
    }
    // With rows on standard output there is no room for another document.
    if global.json && to_file {
        print::json(&stats);
    } else if !global.quiet {
        print::talk(&format!(
            "{} rows of {} as of snapshot {}, {}",
            print::count(stats.rows),
            stats.table,
            stats.snapshot,
            print::bytes(stats.bytes)
        ));
    }
    Ok(exit::DONE)
}
