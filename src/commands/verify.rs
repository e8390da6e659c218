//! `verify`.

use dynavault_engine::VerifyOptions;
use tokio_util::sync::CancellationToken;

use super::{Outcome, engine};
use crate::args::Global;
use crate::{exit, print};

pub(super) async fn run(
    environment: Option<String>,
    deep: bool,
    sample: u8,
    global: &Global,
    cancel: CancellationToken,
) -> Outcome {
    let engine = engine(global)?;
    let report = engine.verify(environment, VerifyOptions { deep, sample_percent: sample }, cancel).await?;
    if global.json {
        print::json(&report);
    } else {
        for damage in &report.damage {
            let rows = match &damage.table {
                Some(table) => {
                    format!(" ({} rows of {table}, in {} snapshots)", print::count(damage.rows), damage.snapshots.len())
                }
                None => String::new(),
            };
            print::data(&format!("damaged: {}: {}{rows}", damage.object, damage.detail));
        }
        print::data(&format!(
            "{}: {} manifests, {} segments, {} rows decoded, {} content objects, {} read{}",
            if report.damage.is_empty() { "whole" } else { "DAMAGED" },
            print::count(report.manifests),
            print::count(report.segments),
            print::count(report.rows),
            print::count(report.content_objects),
            print::bytes(report.bytes),
            if report.skipped > 0 {
                format!(", {} left out by the sample", print::count(report.skipped))
            } else {
                String::new()
            },
        ));
    }
    Ok(if report.damage.is_empty() { exit::DONE } else { exit::DAMAGE })
}
