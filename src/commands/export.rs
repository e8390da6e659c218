//! `export`.

use std::path::PathBuf;

use dynavault_engine::{ExportFormat, ExportRequest};
use tokio_util::sync::CancellationToken;

use super::{Outcome, engine, environment, wanted};
use crate::args::{Format, Global, When};
use crate::{exit, print};

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
    let to_file = output.is_some();
    let stats = engine.export(request, output, cancel).await?;
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
